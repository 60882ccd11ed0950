"""Step scalars on the host, in float64 and by the reference meaning of each operation.

In: the nodes that `hoist` moved out of the element loop, and rows of options, step counts and facts. Out: a
row of values for each, from two generated Python functions: one of hyperparameters alone, one of the rest.
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


CACHED_ROWS = 64  # rows of values that are kept


STEPS_AHEAD = 8  # steps that are computed together where nothing but the step changes


ARITHMETIC = (Op.ADD, Op.SUB, Op.MUL, Op.DIV)  # which Python writes as the rule does


class Hoisted(NamedTuple):
    """Cached results for some hyperparameter objects, which stay referenced so that their ids stay unique."""

    hypers: list[Any]
    values: tuple[Any, ...]  # what `ScalarFunctions.changing` takes
    rows: dict[tuple[float, ...], list[float]]  # values by the step and facts


class ScalarFunctions(NamedTuple):
    """Step scalars as two Python functions: the part that depends on hyperparameters alone, and the rest."""

    hypers: tuple[str, ...]  # paths
    facts: tuple[Node, ...]  # host states (LOAD) and facts about a shape (SHAPE)
    fixed: Callable[..., tuple[Any, ...]]  # hyperparameters -> what `changing` takes
    changing: Callable[..., list[float]]  # that, the step, facts -> the values
    cache: dict[tuple[int, ...], Hoisted]  # by the identities of hyperparameters


@lru_cache(256)
def scalar_functions(nodes: tuple[Node, ...]) -> ScalarFunctions:
    """Generate the functions that compute some nodes, in float64."""
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
    return ScalarFunctions(paths, tuple(facts), known["fixed"], known["changing"], {})


class Scalars:
    """Computes rows of step scalars, and caches them by hyperparameters and step.

    With `optgen.release` each parameter asks for its own row: others with the same options and step reuse it.
    """

    def __init__(self, nodes: Sequence[Node]):
        self.functions = scalar_functions(tuple(nodes))
        self.paths = [path_of(path) for path in self.functions.hypers]
        self.cache: dict[int, Hoisted] = {}  # by row

    @property
    def facts(self) -> tuple[Node, ...]:
        """The host states and shape facts that a row needs, in order."""
        return self.functions.facts

    def rows(self, wanted: Iterable[Row]) -> list[list[float]]:
        """Compute a row of values for each."""
        return [self._row(number, *each) for number, each in enumerate(wanted)]

    def _row(
        self, number: int, options: Mapping[str, Any], step: float, facts: Sequence[float]
    ) -> list[float]:
        """One row, from the cache if the hyperparameters are the same objects as before."""
        try:
            given = [options[name] if item is None else options[name][item] for name, item in self.paths]
        except (KeyError, TypeError, IndexError):
            given = [lookup(options, path) for path in self.functions.hypers]  # which says what is wrong
        hoisted, ahead = self.cache.get(number), 0 if self.functions.facts else STEPS_AHEAD
        if hoisted is None or not all(map(is_, hoisted.hypers, given)):
            if not all(isinstance(value, int | float | np.generic) for value in given):
                with np.errstate(all="ignore"):
                    passed = self._hoist(given)  # not cached: it may change and stay the same object
                    return self.functions.changing(passed, np.float64(step), *map(np.float64, facts))
            hoisted, ahead = self._hoisted(given), 0
            self.cache[number] = hoisted
        key = step, *facts
        values = hoisted.rows.get(key)
        if values is None:
            if len(hoisted.rows) >= CACHED_ROWS:
                hoisted.rows.clear()
            given = [*map(np.float64, facts)]
            with np.errstate(all="ignore"):
                values = self.functions.changing(hoisted.values, np.float64(step), *given)
                for k in range(1, ahead):
                    hoisted.rows[(step + k,)] = self.functions.changing(hoisted.values, np.float64(step + k))
            hoisted.rows[key] = values
        return values

    def _hoisted(self, hypers: list[Any]) -> Hoisted:
        """Results for these hyperparameter objects, shared by all rows that have the same ones."""
        cache, key = self.functions.cache, tuple(map(id, hypers))
        hoisted = cache.get(key)
        if hoisted is None:
            if len(cache) >= CACHED_ROWS:
                cache.clear()
            with np.errstate(all="ignore"):
                hoisted = cache[key] = Hoisted(hypers, self._hoist(hypers), {})
        return hoisted

    def _hoist(self, hypers: list[Any]) -> tuple[Any, ...]:
        """Compute what depends on hyperparameters alone."""
        return self.functions.fixed(*map(_number, self.functions.hypers, hypers))


def _number(path: str, value: Any) -> np.float64:
    """Convert a hyperparameter to float64, or say by its path what is wrong."""
    if value is None:
        raise ValueError(f"hyperparameter '{path}' is None, but the rule needs a number here")
    try:
        return np.float64(float(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"hyperparameter '{path}' must be a number, not {value!r}") from None
