"""Rules by name, path or text.

In: what a user calls a rule. Out: its `Program`, parsed once per text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path

from optgen import compose
from optgen.errors import RuleError, Source
from optgen.ir import Program, Value
from optgen.syntax import decode, parse

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
        return f": {own} is a transform; chain it with a rule: {compose.example(rule(own).kind, own)}"
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
    return compose.with_defaults(program, **defaults) if defaults else program


def chain(*sources: Rule) -> Program:
    """One program that runs rules and transforms in order, as one step.

    Args:
        *sources: transforms of the gradient, one rule, transforms of its update: `chain("clip_norm",
            "adamw", "cautious")`. Each as `rule` takes it.

    Returns:
        The program, for `optimizer` or another chain. A hyperparameter or state whose name is taken has
        the name of its part in front; see `optgen.compose.chain`.

    Raises:
        RuleError: there is no such rule, a text is wrong, the order makes no sense, or a transform needs
            an update that the rule does not have.
    """
    return compose.chain(*(rule(source) for source in sources))
