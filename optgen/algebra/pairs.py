"""Two programs side by side: what both compute on random numbers, and which of their nodes are proven equal.

In: two programs without conditions. Out: where they differ, with the numbers that show it, or that they
do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from optgen.algebra.bounds import REALS, Limits, Values, all_bounds, paths, values_of
from optgen.algebra.proof import Sweep, signatures
from optgen.ir.extent import Extent
from optgen.ir.facts import Value
from optgen.ir.functions import TINY, Bounds, operation
from optgen.ir.node import COMPARISONS, DType, Node, Op, const, load, node, rewrite, toposort
from optgen.ir.program import Program, State
from optgen.ir.semantics import evaluate

LOWERED = {Op.BITS, Op.FLOAT, Op.SHL, Op.SHR, Op.SLOT, Op.SPILL}


RUNS = (  # the number of elements, their size, and how often a value is an end of its range, or 0
    (1, 1.0, 0.0), (1, 1.0, 0.2), (6, 1.0, 0.2), (1, 1e-4, 0.2),
    (4, 1e-4, 0.2), (1, 30.0, 0.2), (6, 30.0, 0.0), (1, 1e-9, 0.0), (1, 3.0, 0.1), (2, 3.0, 0.0),
)  # fmt: skip


STEPS = 4


TOLERANCE = 1e-10  # a larger relative difference in float64 is looked at: is it more than rounding?


UNIT = 2.0**-52


# How wrong an operator's result is whose arguments x are wrong by d, before it is rounded itself; else the
# largest d. For a function its row says it.
ERRORS: dict[Op, Callable[[Sequence[Any], Sequence[Any]], Any]] = {
    Op.ADD: lambda x, d: d[0] + d[1],
    Op.SUB: lambda x, d: d[0] + d[1],
    Op.MUL: lambda x, d: abs(x[0]) * d[1] + abs(x[1]) * d[0] + d[0] * d[1],
    Op.DIV: lambda x, d: np.where(
        d[1] < abs(x[1]), (d[0] + abs(x[0] / x[1]) * d[1]) / (abs(x[1]) - d[1]), math.inf
    ),
    Op.MOD: lambda x, d: np.where(d[0] + d[1] > 0, math.inf, 0.0),
    Op.POW: lambda x, d: np.where(
        d[0] + d[1] > 0,
        2 * abs(x[0] ** x[1]) * (abs(x[1] / x[0]) * d[0] + abs(np.log(abs(x[0]))) * d[1]),
        0.0,
    ),
}


class Pair:
    """Two resolved programs with common names: what must agree, and training runs of both at once.

    `targets` are the pairs of nodes that must be equal, `own` the next values of states of one program
    only, `points` the values of all leaves at every step of the runs.
    """

    def __init__(
        self,
        a: Program,
        b: Program,
        conditions: list[Node],
        limits: Limits,
        fixed: Mapping[str, Value],
        where: str,
    ):
        self.titles = (a.name, b.name) if a.name != b.name else ("the first", "the second")
        self.conditions, self.limits, self.fixed, self.where = conditions, limits, fixed, where
        self.defaults = {**paths(b), **paths(a)}
        self.states: dict[str, State] = {**b.states, **a.states}
        shared = [k for k in a.states if k in b.states]
        old = {k: load(k) for k in ("p", "g", "u")}
        old |= {k: load(k, extent=s.extent) for k, s in self.states.items()}
        self.targets = {f"first {k}": (a.states[k].init, b.states[k].init) for k in shared}
        self.own: dict[str, Node] = {}
        self.firsts = set(a.states)
        for k in dict.fromkeys([*a.assigns, *b.assigns, *self.states]):
            x, y = a.assigns.get(k, old[k]), b.assigns.get(k, old[k])
            if k in self.states and k not in shared:
                self.own[k] = x if k in a.states else y
            else:
                self.targets[k] = (x, y)
        for mode in {**a.modes, **b.modes}:
            one, other = a.modes.get(mode, {}), b.modes.get(mode, {})
            for k in {**one, **other}:
                if k not in self.own:
                    self.targets[f"{k} after {mode}()"] = (one.get(k, old[k]), other.get(k, old[k]))
        self.next = {k: x for k, (x, _) in self.targets.items() if k == "p" or k in self.states} | self.own
        self.roots = [n for both in self.targets.values() for n in both] + list(self.own.values())
        self.inits = [s.init for s in self.states.values()]
        reached = toposort([*self.roots, *self.inits, *conditions, load("p")])
        self.leaves = [n for n in reached if not n.args and n.op is not Op.CONST]
        self.points: list[Values] = []

    def refute(self) -> Equality | None:
        """A step of a training run in which a target differs."""
        rng = np.random.default_rng(0)
        tried = {k: both for k, both in self.targets.items() if both[0] is not both[1]}
        for numel, scale, edge in RUNS if tried else ():
            inputs = self.inputs(rng, numel, scale, edge)
            for i, (leaves, values) in enumerate(self.train(inputs) if inputs else ()):
                self.points.append(leaves)
                for target, both in tried.items():
                    x, y = (np.broadcast_to(values[n], numel) for n in both)
                    at = _apart(x, y)
                    if at is not None and self.confirmed(inputs[: i + 1], both, at):
                        return self.refutation(leaves, target, at, (float(x[at]), float(y[at])))
        return None

    def inputs(self, rng: np.random.Generator, numel: int, scale: float, edge: float) -> list[Values]:
        """What a run is given at each step: gradients, hyperparameters, t; and p, used at the first.

        Empty where no hyperparameters were found that satisfy all conditions.
        """
        t = int(rng.choice([1, 1, 1, 2, 7, 1000]))
        least, most = self.limits.get(node(Op.SHAPE, value="ndim"), REALS)
        rows = 2 if numel > 1 else 1
        shape = {
            "numel": numel,
            "ndim": math.ceil(max(least, min(2, most))),
            "rows": rows,
            "cols": numel // rows,
        }
        steps: list[Values] = []
        hypers: Values | None = None
        for i in range(STEPS):
            if hypers is None or rng.random() < 0.5:
                hypers = self.hypers(rng, edge)
            if hypers is None:
                return []
            steps.append(dict(hypers))
            for n in self.leaves:
                if n.op is Op.COUNT:
                    steps[i][n] = t + i
                elif n.op is Op.SHAPE:
                    steps[i][n] = shape[n.value or ""]
                elif n.op is Op.LOAD and n.value not in self.states:
                    drawn = rng.normal(size=numel) * scale * 10 ** rng.uniform(-1, 0.5, numel)
                    steps[i][n] = np.array([0.0 if rng.random() < edge else _short(x) for x in drawn])
        return steps

    def hypers(self, rng: np.random.Generator, edge: float) -> Values | None:
        """Hyperparameters that satisfy all conditions, or None where trying finds none."""
        defaults = {n: self.defaults.get(n.value or "") for n in self.leaves if n.op is Op.HYPER}
        found = {n: float(v) if isinstance(v, int | float) else 1.0 for n, v in defaults.items()}

        def hold(conditions: list[Node]) -> bool:
            values = evaluate(conditions, lambda n: np.float64(found.get(n, 2)))
            return all(values[c] for c in conditions)

        for n in [*found, *found]:
            about = [c for c in self.conditions if n in toposort([c])]
            for _ in range(20):
                found[n] = _draw(rng, self.limits.get(n, REALS), found[n], edge)
                if hold(about):
                    break
        of_hypers = [c for c in self.conditions if all(n.op is not Op.SHAPE for n in toposort([c]))]
        return found if hold(of_hypers) else None

    def train(self, inputs: list[Values]) -> Iterator[tuple[Values, Values]]:
        """Run both programs: the values of the leaves and of all nodes at each step.

        One copy of the states that both keep is enough: they agreed up to here.
        """
        first = values_of(self.inits, inputs[0])
        stores = {"p": inputs[0][load("p")], **{k: first[s.init] for k, s in self.states.items()}}
        for step in inputs:
            leaves = {n: stores[n.value or ""] if n not in step else step[n] for n in self.leaves}
            leaves[load("p")] = stores["p"]
            values = values_of(self.roots, leaves)
            yield leaves, values
            stores |= {k: values[n] for k, n in self.next.items()}

    def confirmed(self, inputs: list[Values], both: tuple[Node, Node], at: int) -> bool:
        """Whether the last step's difference is more than all the rounding in the run can explain."""
        order, stores = toposort(self.roots), dict[str, Any]()
        for leaves, values in self.train(inputs):
            errors = _errors(
                order, values, {n: stores.get(n.value or "", 0.0) for n in leaves if n.op is Op.LOAD}
            )
            stores = {k: errors[n] for k, n in self.next.items()}
        shape = np.shape(leaves[load("p")])
        x, y = (np.broadcast_to(values[n], shape)[at] for n in both)
        if np.isfinite(x) and np.isfinite(y):
            slack = sum(np.broadcast_to(errors[n], shape)[at] for n in both)
            return bool(abs(x - y) > slack)
        return all(_undefined(n, values, errors) for n in toposort(both))

    def refutation(self, leaves: Values, target: str, at: int, both: tuple[float, float]) -> Equality:
        """The answer that two programs differ, with the numbers for which they do."""
        inputs = {n.value or "t": np.asarray(v, float).tolist() for n, v in leaves.items()}
        values = tuple(x if math.isfinite(x) else None for x in both)
        words = ["not finite" if x is None else f"{x:.12g}" for x in values]
        shown = ", ".join(f"{k}={v[at] if isinstance(v, list) else v:.6g}" for k, v in inputs.items())
        reason = f"{target} is {words[0]} in {self.titles[0]} and {words[1]} in {self.titles[1]} for {shown}"
        found = {"inputs": {**self.fixed, **inputs}, "target": target, "values": values, "element": at}
        return Equality(False, reason, found)

    def unproved(self) -> list[str]:
        """The targets for which no proof is found: for every step, or for the first and all later ones."""
        if all(x is y for x, y in self.targets.values()):
            return []
        count = node(Op.COUNT)
        first = {load(k, extent=s.extent): s.init for k, s in self.states.items()}
        same = self.renamed()
        targets = dict(self.targets)
        for y, x in same.items():
            targets[f"next {y.value}"] = (self.own[x.value or ""], self.own[y.value or ""])
            targets[f"first {y.value}"] = (first[x], first[y])
        limits = {**self.limits, **dict.fromkeys(self.nonnegative(), (0, math.inf)), count: (1, math.inf)}
        missing = _missing(targets, limits, self.points, same)
        if not missing or count not in self.leaves:
            return missing
        at_first = rewrite([n for both in targets.values() for n in both], {**first, count: const(1)}.get)
        starts = {k: (at_first[x], at_first[y]) for k, (x, y) in targets.items()}
        missing = _missing(starts, limits, [p for p in self.points if p[count] == 1], {})
        limits[count] = (2, math.inf)
        return missing + _missing(targets, limits, [p for p in self.points if p[count] > 1], same)

    def renamed(self) -> dict[Node, Node]:
        """States of the second program only, and the state of the first that always had the same value."""
        loads = [n for n in self.leaves if n.op is Op.LOAD and n.value in self.own]
        found: dict[Node, Node] = {}
        if not self.points:
            return found
        values = [values_of(loads, leaves) for leaves in self.points]
        history = {n: np.hstack([v[n] for v in values]) for n in loads}
        for x, y in product(loads, loads):
            ours = x.value in self.firsts and y.value not in self.firsts and x.extent is y.extent
            if ours and y not in found and x not in found.values():
                size = np.max(np.abs(history[x]))
                if np.allclose(history[x], history[y], 1e-6, 1e-12 * size):
                    found[y] = x
        return found

    def nonnegative(self) -> set[Node]:
        """The states that start nonnegative, and stay so as long as all of these are."""
        loads = [n for n in self.leaves if n.op is Op.LOAD and n.value in self.states]
        first = all_bounds(toposort(self.inits), self.limits)
        kept = {n for n in loads if first[self.states[n.value or ""].init][0] >= 0}
        order = toposort(self.roots)
        while True:
            bounds = all_bounds(order, {**self.limits, **dict.fromkeys(kept, (0, math.inf))})
            after = {n: self.targets.get(n.value or "") or (self.own[n.value or ""],) for n in kept}
            negative = {n for n, nodes in after.items() if any(bounds[x][0] < 0 for x in nodes)}
            if not negative:
                return kept
            kept -= negative


def _missing(
    targets: Mapping[str, tuple[Node, Node]], limits: Limits, points: list[Values], same: Mapping[Node, Node]
) -> list[str]:
    """The targets that are not proved equal within limits, where some leaves are the same as others."""
    order = toposort(n for both in targets.values() for n in both)
    sweep = Sweep(limits)
    merged = sweep.merge(order, signatures(order, points), same)
    pairs = {k: (merged[x], merged[y]) for k, (x, y) in targets.items()}
    return [k for k, (x, y) in pairs.items() if not (x is y or sweep.equal(x, y))]


def _apart(x: np.ndarray, y: np.ndarray) -> int | None:
    """Where two arrays differ most, if that is beyond rounding: by value, or where one only is finite."""
    with np.errstate(all="ignore"):
        gap = np.nan_to_num(np.abs(x - y) / np.maximum(np.maximum(np.abs(x), np.abs(y)), 1e-300))
    gap = np.where(np.isfinite(x) & np.isfinite(y), gap, np.isfinite(x) != np.isfinite(y))
    at = int(np.argmax(gap))
    return at if gap[at] > TOLERANCE else None


def _errors(order: Iterable[Node], values: Values, leaves: Values) -> Values:
    """How far a float64 value may be from the real one, carried along the operations to first order.

    A condition has an infinite error where rounding may have turned it.
    """
    found: Values = {}
    with np.errstate(all="ignore"):
        for n in order:
            v, x, dx = values[n], [values[a] for a in n.args], [found[a] for a in n.args]
            if not n.args:
                exact = (
                    n.op is not Op.CONST
                    or math.isinf(n.number)
                    or Fraction(repr(n.number)) == Fraction(n.number)
                )
                found[n] = leaves.get(n, 0.0) if exact else UNIT * abs(v)
            elif n.op in COMPARISONS:
                slack = dx[0] + dx[1]
                found[n] = np.where((slack > 0) & (abs(x[0] - x[1]) <= slack), math.inf, 0.0)
            elif n.dtype is DType.BOOL:
                found[n] = sum(dx)
            elif n.op in (Op.WHERE, Op.CHOOSE):
                turned = np.where((dx[0] > 0) & (x[1] != x[2]), math.inf, 0.0)
                found[n] = turned + np.where(x[0], dx[1], dx[2])
            elif n.op is Op.SUM and n.args[0].extent is Extent.ELEMENT:
                found[n] = np.sum(dx[0] + UNIT * np.size(x[0]) * abs(x[0]))
            else:
                row = operation(n.op)
                rule = row.error if row else ERRORS.get(n.op)
                spread = rule(x, dx) if rule else reduce(np.maximum, dx)
                found[n] = np.max(spread) if n.op is Op.AMAX else spread + UNIT * abs(v)
    return found


def _undefined(n: Node, values: Values, errors: Values) -> bool:
    """Whether a value that is not finite is so in the reals too: no overflow, no zero by rounding."""
    x = [values[a] for a in n.args]
    if not x or np.isfinite(values[n]).all() or not all(np.isfinite(a).all() for a in x):
        return True
    if n.op in (Op.DIV, Op.MOD, Op.POW):
        return bool(np.any((x[n.op is not Op.POW] == 0) & (errors[n.args[n.op is not Op.POW]] == 0)))
    row = operation(n.op)
    return row is not None and bool(np.any(x[0] + errors[n.args[0]] < row.least))


def _short(x: float) -> float:
    return float(f"{x:.3g}")


def _draw(rng: np.random.Generator, limits: Bounds, default: float, edge: float) -> float:
    """A number within limits, sometimes one of them, mostly of the size of 1 or of the default."""
    low, high = limits
    ends = [x for x in limits if x == _short(x) and x not in (TINY, math.inf, -math.inf)]
    if low == high or (ends and rng.random() < edge):
        return float(rng.choice(ends or [low]))
    if high - low < math.inf:
        return _short(rng.uniform(low, high))
    size = rng.choice([1.0, abs(default) or 1.0]) * 10 ** rng.uniform(-1, 1.5)
    return _short(
        low + size if low > -math.inf else high - size if high < math.inf else size * rng.choice([-1, 1])
    )


@dataclass(frozen=True)
class Equality:
    """The answer of `equal`, true or false like a bool; `reason` says what it rests on.

    A refutation has a `counterexample`: the `inputs` of one step by name (p, g, states as the first rule
    calls them, hyperparameters, t), the `target` that differs, its two `values`, and at which `element`.
    A value is None where it is not a finite real number.
    """

    equal: bool
    reason: str
    counterexample: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return self.equal
