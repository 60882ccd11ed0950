"""Rules by name, path or text.

In: what a user calls a rule. Out: its `Program`, parsed once per text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path

from optgen.errors import RuleError, Source
from optgen.ir.extent import Extent
from optgen.ir.facts import Value
from optgen.ir.node import REDUCTIONS, Op, load, toposort
from optgen.ir.program import Program
from optgen.language.grammar import decode
from optgen.language.parse import parse
from optgen.passes.chain import chain as joined
from optgen.passes.chain import complete, example
from optgen.passes.variants import with_defaults

Rule = str | os.PathLike[str] | Source | Program


@cache
def folder() -> Path:
    """Where the shipped rules lie: inside the package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "rules" if (here / "rules").is_dir() else here.parent / "rules"


def names() -> list[str]:
    """The names of the shipped rules, sorted."""
    return sorted(path.stem for path in folder().glob("*.rule"))


@cache
def classes() -> dict[str, str]:
    """Class name to rule name; the class is called what the rule's docstring calls the method."""
    found = {}
    for name in names():
        title = re.match(r'\s*"""\s*(\w+)\s*:', read(folder() / f"{name}.rule").text)
        found[title[1] if title else camel(name)] = name
    return found


@cache
def optimizers() -> dict[str, str]:
    """Class name to rule name, without the transforms, which need a rule beside them."""
    return {title: name for title, name in classes().items() if rule(name).kind == "rule"}


def suggestion(name: str, others: Iterable[str]) -> str:
    """What to say after a name that no class has: what it is, or the nearest of the classes and others."""
    if name in classes():
        own = classes()[name]
        return f": {own} is a transform; chain it with a rule: {example(rule(own).kind, own)}"
    known = {known.lower(): known for known in (*optimizers(), *others)}
    known |= {own: title for title, own in optimizers().items()}
    close = get_close_matches(name.lower(), known, 1)
    return f": did you mean '{known[close[0]]}'?" if close else ""


def camel(name: str) -> str:
    """`clip_norm_adamw` as a class name."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def read(path: str | os.PathLike[str]) -> Source:
    """The source in a rule file.

    Args:
        path: the file, which must be UTF-8; errors show a shipped one as `rules/<name>.rule`.

    Raises:
        RuleError: there is no such file, or it is not text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RuleError(f"cannot read '{os.fspath(path)}': {error.strerror}") from None
    shown = os.fspath(path)
    if Path(shown).is_relative_to(folder()):
        shown = f"rules/{Path(shown).name}"
    return decode(data, shown)


@lru_cache(maxsize=1024)
def _parsed(source: Source) -> Program:
    return parse(source)


def rule(source: Rule, **defaults: Value | tuple[Value, ...]) -> Program:
    """The program of a rule, given as a shipped name, a path, a text, or a program.

    Args:
        source: `"adamw"`, `"my/own.rule"`, a `Path`, the text of a rule, a `Source` or a `Program`.
        **defaults: other defaults for its hyperparameters.

    Returns:
        The program, for `optimizer` or `chain`; it never changes.

    Raises:
        RuleError: there is no such rule, its text is wrong, or it has no such hyperparameter.
    """
    if isinstance(source, Program):
        program = source
    elif isinstance(source, Source):
        program = _parsed(source)
    elif isinstance(source, str) and ("\n" in source or "=" in source):
        program = _parsed(Source(source))
    elif isinstance(source, str) and source in names():
        program = _parsed(read(folder() / f"{source}.rule"))
    elif not isinstance(source, str) or source.endswith(".rule") or os.path.sep in source:
        program = _parsed(read(source))
    else:
        close = get_close_matches(source, names(), 1)
        help = f"did you mean '{close[0]}'?" if close else f"shipped rules: {', '.join(names())}"
        raise RuleError(f"there is no rule '{source}'", None, help)
    return with_defaults(program, **defaults) if defaults else program


def chain(*sources: Rule) -> Program:
    """One program that runs rules and transforms in order, as one step.

    Args:
        *sources: transforms of the gradient, one rule, transforms of its update: `chain("clip_norm",
            "adamw", "cautious")`. Each as `rule` takes it.

    Returns:
        The program, for `optimizer` or another chain. A hyperparameter or state whose name is taken has
        the name of its part in front; see `optgen.passes.chain.chain`.

    Raises:
        RuleError: there is no such rule, a text is wrong, the order makes no sense, or a transform needs
            an update that the rule does not have.
    """
    return joined(*(rule(source) for source in sources))


CLASSES = ("element-wise", "per-tensor", "slices", "copies", "global", "noise", "inputs")


def runnable(programs: Sequence[Program]) -> tuple[Program, str | None]:
    """One program that can be trained with, and the name of the shipped rule that it needed for that.

    Transforms without a rule get sgd, or adamw where one of them comes after a rule.

    Raises:
        RuleError: the programs make no chain.
    """
    parts, partner = list(programs), None
    if all(part.kind != "rule" or load("u") in toposort(part.assigns.values()) for part in parts):
        after = [i for i, part in enumerate(parts) if part.kind != "before"]
        partner = "adamw" if after else "sgd"
        parts.insert(min(after, default=len(parts)), rule(partner))
    return complete(joined(*parts)), partner


def class_of(program: Program) -> str:
    """The class of a rule, one of `CLASSES`: by the most that it needs beyond its own element.

    Where several hold, the one that comes last here wins. What changes how an optimizer is used comes
    after what changes how it is computed, and a coupling of all tensors after one of a tensor's elements.

    element-wise: each element by itself; a number per tensor that no element enters is no exception.
    per-tensor: a reduction to one value a tensor.
    slices: values per row, column, matrix, unit, dimension or block, as states or reductions.
    copies: `train()` and `eval()`, or a state that starts as the parameter.
    global: one value for the whole optimizer, as a state or a reduction over all tensors.
    noise: random numbers.
    inputs: `step` is handed more than gradients.
    """
    nodes = toposort(program.roots())
    extents = {n.extent for n in nodes if n.op in REDUCTIONS}
    kept = {s.extent for s in program.states.values()}
    holds_for = {
        "per-tensor": Extent.TENSOR in extents,
        "slices": any(e.sliced for e in extents | kept),
        "copies": bool(program.modes) or any(s.init is load("p") for s in program.states.values()),
        "global": Extent.ALL in extents | kept,
        "noise": any(n.op in (Op.NORMAL, Op.UNIFORM) for n in nodes),
        "inputs": bool(program.inputs),
    }
    return next((name for name in reversed(CLASSES) if holds_for.get(name)), "element-wise")
