"""A program under chosen settings: what `--set` says, which facts hold, the plan, every combination.

In: a program and texts or storage forms. Out: programs, plans, a rule's class and costs, lists of options.
Nothing here needs torch, so that `optgen list`, `show` and `emit` start quickly.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

from optgen import compose, library
from optgen.codecs import CODECS
from optgen.compiler import planned
from optgen.errors import RuleError
from optgen.facts import holds
from optgen.ir import REDUCTIONS, Extent, Fact, Op, Program, Value, load, toposort
from optgen.plan import Plan

DTYPES = ("fp32", "fp64", "bf16", "fp16")
EXAMINED = 1000  # combinations at most, before the search for valid ones gives up
CLASSES = ("element-wise", "per-tensor", "slices", "copies", "global", "noise", "inputs")
Options = dict[str, Any]


def default(program: Program, path: str) -> Any:
    """The default of a hyperparameter, `betas`, or of one item of a tuple; an input counts as handed in."""
    name, _, item = path.partition("[")
    if name in program.inputs:
        return 1
    value = program.hypers[name].default
    return value[int(item[:-1])] if item and isinstance(value, tuple) else value


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
        parts.insert(min(after, default=len(parts)), library.rule(partner))
    return compose.complete(compose.chain(*parts)), partner


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


def costs(program: Program) -> dict[str, int]:
    """What one step takes: `phases`, `bytes` moved and `state_bytes` kept, per parameter in fp32.

    Of a transform: what it adds to the rule that `runnable` chains it with. State of a tensor or of its
    slices counts as nothing, for it is small beside the elements.
    """
    whole, partner = runnable([program])
    plans = [planned(whole)] + ([planned(library.rule(partner))] if partner else [])
    numbers = [(len(p.sweeps), p.bytes, kept_bytes(p)) for p in plans]
    difference = (a - sum(rest) for a, *rest in zip(*numbers, strict=True))
    return dict(zip(("phases", "bytes", "state_bytes"), difference, strict=True))


def kept_bytes(made: Plan) -> int:
    """Bytes of element state per parameter; what a step is handed is no state."""
    return sum(CODECS[codec].bytes for store, codec in made.codecs.items() if store in made.states)


def assign(program: Program, texts: Iterable[str]) -> tuple[Program, list[str]]:
    """The program with the defaults that `name=value` texts set, and the names.

    Raises:
        RuleError: a text is no assignment, or the program has no such hyperparameter or not this value.
    """
    values: Options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise RuleError(f"--set {text}: write name=value", None, "for example --set weight_decay=0.1")
        values[name.strip()] = _literal(value.strip())
    if "maximize" in values:
        program = compose.with_maximize(program)
    for name, value in values.items():
        if name in program.hypers:
            values[name] = _fit(name, value, program.hypers[name].default)
    return compose.with_defaults(program, **values), list(values)


def _literal(text: str) -> Any:
    """A Python literal; anything else is a word, such as an option's name."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _fit(name: str, value: Any, given: Value | tuple[Value, ...]) -> Any:
    """The value as the kind of thing that the default is."""
    if isinstance(given, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(given):
            raise RuleError(f"'{name}' is a tuple of {len(given)} values, not {value!r}")
        pairs = zip(value, given, strict=True)
        return tuple(_fit(f"{name}[{i}]", v, d) for i, (v, d) in enumerate(pairs))
    if isinstance(given, bool):
        if not isinstance(value, bool):
            raise RuleError(f"'{name}' is True or False, not {value!r}")
    elif isinstance(given, str):
        if not isinstance(value, str):
            raise RuleError(f"'{name}' is a word, not {value!r}")
    elif value is not None or given is not None:
        return _number(name, value)
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise RuleError(f"'{name}' is a number, not {value!r}")


def every(
    program: Program,
    valid: Callable[[Options], bool],
    fixed: Collection[str] = (),
    limit: int | None = None,
) -> tuple[list[Options], int]:
    """Options that make each of the program's facts true and false: the defaults first, then one change, …

    Args:
        program: what has the facts; facts about `ndim` are left to the shapes.
        valid: whether the rule's requirements hold.
        fixed: hyperparameters that keep their defaults.
        limit: how many to return at most.

    Returns:
        Valid options by name, each only with what departs from the defaults; and how many combinations
        there are, with those that the requirements exclude.
    """
    subjects: dict[str, list[Fact]] = {}
    for fact in program.facts.values():
        if fact.subject not in ("ndim", *program.inputs) and fact.subject.partition("[")[0] not in fixed:
            subjects.setdefault(fact.subject, []).append(fact)
    others = {s: _others(default(program, s), facts) for s, facts in subjects.items()}
    total = prod(1 + len(values) for values in others.values())
    found: list[Options] = []
    for examined, changes in enumerate(_departures(others)):
        options = _options(program, changes)
        if valid(options):
            found.append(options)
        if len(found) == limit or examined == EXAMINED:
            break
    return found, total


def _departures(others: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """Every choice of other values for some subjects, the fewest changes first."""
    for count in range(len(others) + 1):
        for chosen in combinations(others, count):
            for values in product(*(others[subject] for subject in chosen)):
                yield dict(zip(chosen, values, strict=True))


def _options(program: Program, changes: Mapping[str, Value]) -> Options:
    """Values by path, `betas[0]`, as options by name."""
    options: Options = {}
    for path, value in changes.items():
        name, _, item = path.partition("[")
        if not item:
            options[name] = value
            continue
        items: list[Any] = list(options[name] if name in options else default(program, name))
        items[int(item[:-1])] = value
        options[name] = tuple(items)
    return options


def _others(given: Value, facts: Sequence[Fact]) -> list[Value]:
    """Values of one subject whose facts hold otherwise than for the default and for each other."""
    pool: list[Value] = [given]
    for fact in facts:
        value = fact.value
        if isinstance(given, bool):
            pool += [True, False]
        elif value is None or isinstance(value, str | bool):
            pool += [0.9] if given is None else [value] if isinstance(given, str) else []
        else:
            around = abs(float(value)) / 2 or 0.1
            pool += [float(value), value + around, value - around]
    seen: dict[tuple[bool, ...], Value] = {}
    for candidate in pool:
        seen.setdefault(tuple(holds(fact, candidate) for fact in facts), candidate)
    return list(seen.values())[1:]
