"""The grid of a program's options: values that make each of its compile-time conditions true and false.

In: a program, and which options are valid. Out: options, the defaults first, then one change, then two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod
from typing import Any

from optgen.ir.facts import Fact, Value, holds
from optgen.ir.program import Program

EXAMINED = 1000  # combinations at most, valid or not
Options = dict[str, Any]  # values of hyperparameters, only those that are not the defaults


def default(program: Program, path: str) -> Any:
    """The default of a hyperparameter, `betas`, or of an item, `betas[0]`; an input counts as given."""
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
    """Combinations of options that cover the program's conditions: the defaults, then one change, then two, …

    Args:
        program: has the conditions as facts; those about `ndim` and about inputs are not decided by options.
        valid: whether the rule's `require`s hold.
        fixed: hyperparameters that keep their defaults.
        limit: how many to return at most.

    Returns:
        Valid options, each only with values that are not the defaults; and the number of all combinations,
        also of those that a `require` excludes.
    """
    subjects: dict[str, list[Fact]] = {}
    for fact in program.facts.values():
        if fact.subject not in ("ndim", *program.inputs) and fact.subject.partition("[")[0] not in fixed:
            subjects.setdefault(fact.subject, []).append(fact)
    others = {s: _others(default(program, s), facts) for s, facts in subjects.items()}
    total = prod(1 + len(values) for values in others.values())
    valid_options: list[Options] = []
    for examined, changes in enumerate(_departures(others)):
        options = _options(program, changes)
        if valid(options):
            valid_options.append(options)
        if len(valid_options) == limit or examined == EXAMINED:
            break
    return valid_options, total


def _departures(others: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """Every combination of other values for some subjects, the fewest changes first."""
    for count in range(len(others) + 1):
        for chosen in combinations(others, count):
            for values in product(*(others[subject] for subject in chosen)):
                yield dict(zip(chosen, values, strict=True))


def _options(program: Program, changes: Mapping[str, Value]) -> Options:
    """Options by name, `betas`, of values by path, `betas[0]`."""
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


def _others(default_value: Value, facts: Sequence[Fact]) -> list[Value]:
    """Values of one subject that decide its facts in every way that the default does not."""
    pool: list[Value] = [default_value]
    for fact in facts:
        value = fact.value
        if isinstance(default_value, bool):
            pool += [True, False]
        elif value is None or isinstance(value, str | bool):
            pool += [0.9] if default_value is None else [value] if isinstance(default_value, str) else []
        else:
            around = abs(float(value)) / 2 or 0.1  # for comparisons: above and below
            pool += [float(value), value + around, value - around]
    # One value for each combination of truths; the default's comes first, and is left out.
    seen: dict[tuple[bool, ...], Value] = {}
    for candidate in pool:
        seen.setdefault(tuple(holds(fact, candidate) for fact in facts), candidate)
    return list(seen.values())[1:]
