"""Values per step that the host computes, in float64 and by the meaning of each operation.

In: the nodes that `hoist` moved out of the element loop, and rows of options, step counts and facts. Out: a
row of values for each, from two Python functions: what hyperparameters alone decide, then what changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from optgen.ir.facts import lookup, path_of
from optgen.ir.node import Node, Op, toposort
from optgen.ir.semantics import literal, meaning


def step_leaf(n: Node, options: Mapping[str, Any], step: float, facts: Mapping[str, float]) -> Any:
    """The float64 value of a leaf that the host knows."""
    if n.op is Op.HYPER:
        return _number(n.value or "", lookup(options, n.value or ""))
    if n.op is Op.COUNT:
        return np.float64(step)
    return np.float64(facts[n.value or ""])


Row = tuple[Mapping[str, Any], float, Sequence[float]]  # a group, its step, host states and shape facts


KNOWN = 64  # rows of values that are kept


AHEAD = 8  # steps that are computed together where nothing but the step changes


ARITHMETIC = (Op.ADD, Op.SUB, Op.MUL, Op.DIV)  # which Python writes as the rule does


class Decided(NamedTuple):
    """Cached values that depend on hyperparameters alone; these are kept: no other has their identity."""

    given: list[Any]
    passed: tuple[Any, ...]  # what `Program.changing` takes
    rows: dict[tuple[float, ...], list[float]]  # values by the step and facts


class Program(NamedTuple):
    """Values per step as two Python functions: what hyperparameters alone decide, then what changes."""

    hypers: tuple[str, ...]  # paths
    facts: tuple[Node, ...]  # host states (LOAD) and facts about a shape (SHAPE)
    fixed: Callable[..., tuple[Any, ...]]  # hyperparameters -> what `changing` takes
    changing: Callable[..., list[float]]  # that, the step, facts -> the values
    known: dict[tuple[int, ...], Decided]  # by the identities of hyperparameters


@lru_cache(256)
def program_of(nodes: tuple[Node, ...]) -> Program:
    """The functions that compute some nodes, in float64 and by the meaning of each operation."""
    order = toposort(nodes)
    known: dict[str, Any] = {f"f{n.op.name}": meaning(n.op) for n in order if n.args}
    names = {n: f"v{i}" for i, n in enumerate(order)}
    hypers = [n for n in order if n.op is Op.HYPER]
    facts = [n for n in order if n.op in (Op.SHAPE, Op.LOAD)]
    changing = {n for n in order if n.op is Op.COUNT} | {*facts}
    lines: tuple[list[str], list[str]] = ([], [])
    for n in order:
        if n.op is Op.CONST:
            known[names[n]] = literal(n)
        if n.args:
            late = not changing.isdisjoint(n.args)
            changing |= {n} if late else set()
            args = [names[a] for a in n.args]
            text = f" {n.op.value} ".join(args) if n.op in ARITHMETIC else f"f{n.op.name}({', '.join(args)})"
            lines[late].append(f"    {names[n]} = {text}")
    used = dict.fromkeys([*(a for n in changing for a in n.args), *nodes])
    passed = [names[n] for n in order if n in used and n not in changing and n.op is not Op.CONST]
    results = ", ".join(f"float({names[n]})" for n in nodes)
    count = next((names[n] for n in order if n.op is Op.COUNT), "t")
    arguments = ", ".join([count, *(names[n] for n in facts)])
    source = [
        f"def fixed({', '.join(names[n] for n in hypers)}):",
        *lines[0],
        f"    return {''.join(name + ', ' for name in passed) or '()'}",
        f"def changing(passed, {arguments}):",
        *([f"    {''.join(name + ', ' for name in passed)} = passed"] if passed else []),
        *lines[1],
        f"    return [{results}]",
    ]
    exec("\n".join(source), known)
    paths = tuple(n.value or "" for n in hypers)
    return Program(paths, tuple(facts), known["fixed"], known["changing"], {})


class Scalars:
    """Values per step, as the host computes them, row by row.

    What a row's group has decided is kept, and so are some values, for others with the same options and step:
    with `optgen.release` each parameter asks for its own.
    """

    def __init__(self, nodes: Sequence[Node]):
        self.program = program_of(tuple(nodes))
        self.paths = [path_of(path) for path in self.program.hypers]
        self.known: dict[int, Decided] = {}  # by row

    @property
    def facts(self) -> tuple[Node, ...]:
        """The host states and shape facts that a row needs, in order."""
        return self.program.facts

    def rows(self, wanted: Iterable[Row]) -> list[list[float]]:
        """Compute the scalars, one row for each group, step count and facts."""
        return [self._row(number, *each) for number, each in enumerate(wanted)]

    def _row(
        self, number: int, options: Mapping[str, Any], step: float, facts: Sequence[float]
    ) -> list[float]:
        try:
            given = [options[name] if item is None else options[name][item] for name, item in self.paths]
        except (KeyError, TypeError, IndexError):
            given = [lookup(options, path) for path in self.program.hypers]  # which says what is wrong
        decided, ahead = self.known.get(number), 0 if self.program.facts else AHEAD
        if decided is None or not all(map(is_, decided.given, given)):
            if not all(isinstance(value, int | float | np.generic) for value in given):
                with np.errstate(all="ignore"):
                    passed = self._decide(given)  # it may change and stay the same object
                    return self.program.changing(passed, np.float64(step), *map(np.float64, facts))
            decided, ahead = self._decided(given), 0
            self.known[number] = decided
        key = step, *facts
        values = decided.rows.get(key)
        if values is None:
            if len(decided.rows) >= KNOWN:
                decided.rows.clear()
            given = [*map(np.float64, facts)]
            with np.errstate(all="ignore"):
                values = self.program.changing(decided.passed, np.float64(step), *given)
                for k in range(1, ahead):
                    decided.rows[(step + k,)] = self.program.changing(decided.passed, np.float64(step + k))
            decided.rows[key] = values
        return values

    def _decided(self, given: list[Any]) -> Decided:
        """What these numbers decide, for all who have the same ones."""
        known, key = self.program.known, tuple(map(id, given))
        found = known.get(key)
        if found is None:
            if len(known) >= KNOWN:
                known.clear()
            with np.errstate(all="ignore"):
                found = known[key] = Decided(given, self._decide(given), {})
        return found

    def _decide(self, given: list[Any]) -> tuple[Any, ...]:
        return self.program.fixed(*map(_number, self.program.hypers, given))


def _number(path: str, value: Any) -> np.float64:
    if value is None:
        raise ValueError(f"hyperparameter '{path}' is None, but the rule needs a number here")
    try:
        return np.float64(float(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"hyperparameter '{path}' must be a number, not {value!r}") from None
