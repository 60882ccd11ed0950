"""Every combination of a program's options that tells its conditions apart.

In: a program, and which options are valid. Out: options, the defaults first, then one change, then two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

from optgen.ir.facts import Fact, Value, holds
from optgen.ir.program import Program

EXAMINED = 1000  # combinations at most, before the search for valid ones gives up
Options = dict[str, Any]


def default(program: Program, path: str) -> Any:
    """The default of a hyperparameter, `betas`, or of one item of a tuple; an input counts as handed in."""
    name, _, item = path.partition("[")
    if name in program.inputs:
        return 1
    value = program.hypers[name].default
    return value[int(item[:-1])] if item and isinstance(value, tuple) else value


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
