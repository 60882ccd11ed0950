"""Rules as mathematics: whether two are the same, STEP scalars made shorter, derivatives, LaTeX.

In: programs from `syntax`. Out: an `Equality`, a `Node`, a text. The only module that imports sympy.

Numbers are real here, and a constant is the decimal that was written. Nothing found here may replace
what a kernel computes: sympy reorders float arithmetic and folds `0*x` and `x/x`.

A program shares its nodes; as one formula it can be exponentially long. So nothing here recurses over
nodes or hands sympy a whole program. `equal` runs both programs on random numbers, which refutes, or
shows which nodes seem equal. It then proves those pairs from the leaves upwards, each from the few
operations by which the two differ, with whatever lies below as free symbols.
"""

from __future__ import annotations

import heapq
import math
import operator
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache, reduce
from itertools import chain, combinations, product
from typing import Any

import numpy as np
import sympy as sp

from optgen import functions as fn
from optgen.errors import RuleError
from optgen.ir import (
    COMPARISONS,
    REDUCTIONS,
    DType,
    Extent,
    Fact,
    Node,
    Op,
    Program,
    State,
    Value,
    const,
    load,
    node,
    rewrite,
    toposort,
)
from optgen.semantics import MEANING, constant, evaluate

SYMPY: dict[Op, Callable[..., Any]] = {
    Op.ADD: operator.add, Op.SUB: operator.sub, Op.MUL: operator.mul, Op.DIV: operator.truediv,
    Op.MOD: lambda x, y: x - y * sp.floor(x / y), Op.POW: operator.pow, Op.NEG: operator.neg, Op.ABS: abs,
    Op.SQRT: sp.sqrt, Op.EXP: sp.exp, Op.LOG: sp.log, Op.TANH: sp.tanh, Op.ATAN2: sp.atan2,
    Op.FLOOR: sp.floor, Op.MAXIMUM: sp.Max, Op.MINIMUM: sp.Min, Op.CAST: lambda x: x,
    Op.LT: sp.Lt, Op.LE: sp.Le, Op.EQ: sp.Eq, Op.NE: sp.Ne, Op.AND: sp.And, Op.OR: sp.Or, Op.NOT: sp.Not,
    Op.WHERE: lambda c, a, b: sp.Piecewise((a, c), (b, True)),
    Op.CHOOSE: lambda c, a, b: sp.Piecewise((a, c), (b, True)),
}  # fmt: skip
CHOICES = COMPARISONS | {Op.AND, Op.OR, Op.NOT, Op.WHERE, Op.CHOOSE, Op.MAXIMUM, Op.MINIMUM}
LOWERED = {Op.BITS, Op.FLOAT, Op.SHL, Op.SHR, Op.SLOT, Op.SPILL}
RUNS = (  # the number of elements, their size, and how often a value is an end of its range, or 0
    (1, 1.0, 0.0), (1, 1.0, 0.2), (6, 1.0, 0.2), (1, 1e-4, 0.2),
    (4, 1e-4, 0.2), (1, 30.0, 0.2), (6, 30.0, 0.0), (1, 1e-9, 0.0), (1, 3.0, 0.1), (2, 3.0, 0.0),
)  # fmt: skip
STEPS = 4
TOLERANCE = 1e-10  # a larger relative difference in float64 is looked at: is it more than rounding?
UNIT = 2.0**-52
# How wrong a result is whose arguments x are wrong by d, before it is rounded itself; else the largest d.
ERRORS: dict[Op, Callable[[list[Any], list[Any]], Any]] = {
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
    Op.SQRT: lambda x, d: np.where(d[0] > 0, np.minimum(d[0] / np.sqrt(x[0]), np.sqrt(d[0])), 0.0),
    Op.EXP: lambda x, d: np.exp(x[0]) * np.expm1(d[0]),
    Op.LOG: lambda x, d: np.where(d[0] < x[0], d[0] / (x[0] - d[0]), math.inf),
    Op.ATAN2: lambda x, d: np.where(d[0] + d[1] > 0, 2 * (d[0] + d[1]) / np.hypot(x[0], x[1]), 0.0),
    Op.FLOOR: lambda x, d: np.where(np.floor(x[0] - d[0]) < np.floor(x[0] + d[0]), math.inf, 0.0),
}
CONE = 60  # at most so many operations make one formula
LARGE = 150  # sympy sees no larger expression
DEPTH = 5  # at most so many signs are told apart in one proof

Values = dict[Node, Any]
Bounds = tuple[float, float]
Limits = dict[Node, Bounds]


class Undecided(RuntimeError):
    """Neither a proof nor a counterexample was found."""


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


def equal(a: Program, b: Program, **settings: Value | tuple[Value, ...]) -> Equality:
    """Whether two rules are the same: whatever the gradients, they move p alike.

    Precisely: take any p, any gradients, any hyperparameters that satisfy the `require` of both rules
    (they may change between steps), any first step count. Training with `a` and with `b` gives the same
    p after every step, and the same value of every state that both keep. A state of one is a state of
    the other if their `state_dict` keys are the same, or else their names; one that only one rule keeps
    (under these options) may hold anything. Of transforms, the g or u that they assign is compared.

    A proof shows that the first values agree and that one step keeps all this equal, for any values of
    the states (nonnegative ones, where the rule keeps them so). It holds where both sides are defined;
    that they are undefined at the same places is only tried out, at points that include zeros. A
    refutation is a step of such a training whose two results differ by more than rounding explains.

    Settings fix hyperparameters in both: `equal(adam, adamw, weight_decay=0)`. Options that are not set
    have each rule's own default. Other numbers are free, and a compile-time condition on one of them
    (`weight_decay != 0`) is decided both ways.

    Raises:
        Undecided: neither a proof nor a counterexample was found.
        TypeError: a setting is no hyperparameter of either rule.
        ValueError: the settings violate a `require`, or a program is lowered beyond `passes.hoist`.
    """
    pairs = list(_pairs(a, b, settings))
    for pair in pairs:
        refuted = pair.refute()
        if refuted is not None:
            return refuted
    for pair in pairs:
        unproved = ", ".join(dict.fromkeys(pair.unproved()))
        if unproved:
            own = f"; only one of them keeps {', '.join(pair.own)}" if pair.own else ""
            raise Undecided(
                f"{a.name} and {b.name} agree wherever they were tried, but there is no proof for "
                f"{unproved}{pair.where}{own}"
            )
    if all(x is y for pair in pairs for x, y in pair.targets.values()):
        return Equality(True, "the programs are identical")
    shown = ", ".join(dict.fromkeys(k for pair in pairs for k in pair.targets if " " not in k))
    wheres = ";".join(pair.where for pair in pairs)
    return Equality(True, f"proved: one step assigns the same {shown}{wheres}")


# What is compared: two programs with options and compile-time conditions decided, and states matched.


def _pairs(a: Program, b: Program, settings: Mapping[str, Any]) -> Iterator[_Pair]:
    """A pair for each way in which the compile-time conditions on free numbers can come out."""
    defaults = {**_paths(b), **_paths(a)}
    fixed: dict[str, Value] = {}
    for name, value in settings.items():
        fixed |= (
            {f"{name}[{i}]": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value}
        )
    for path in fixed:
        if path not in defaults:
            known = ", ".join(sorted(defaults))
            raise TypeError(f"'{path}' is no hyperparameter of {a.name} or {b.name}; there are {known}")
    cuts: dict[str, set[float]] = {}
    for fact in [*a.facts.values(), *b.facts.values()]:
        if fact.subject not in fixed and _is_number(defaults.get(fact.subject, 0.0)):
            cuts.setdefault(fact.subject, set()).add(float(fact.value or 0))
    if math.prod(2 * len(values) + 1 for values in cuts.values()) > 1000:
        raise Undecided(f"too many compile-time conditions to tell apart, on {', '.join(cuts)}")
    possible = False
    for ranges in product(*(_ranges(subject, sorted(values)) for subject, values in cuts.items())):
        points = {r.subject: r.value for r in ranges if not r.conditions}
        inside = {r.subject: r.value for r in ranges if r.conditions}
        one, other = (_resolve(x, {**fixed, **points}, inside) for x in (a, b))
        required = [*one.requires, *other.requires]
        conditions = [r.condition for r in required] + [c for r in ranges for c in r.conditions]
        limits = _limits(conditions)
        if limits is not None:
            possible = True
            where = " where " * bool(ranges) + " and ".join(r.text for r in ranges)
            yield _Pair(one, _like(one, other), conditions, limits, {**fixed, **points}, where)
    if not possible:
        broken = [r.text for r in required if r.condition.op is Op.CONST and not r.condition.number]
        texts = dict.fromkeys(broken or [r.text for r in required])
        raise ValueError(f"no hyperparameters satisfy require({', '.join(texts)})")


def _paths(program: Program) -> dict[str, Value]:
    """The default of every single hyperparameter by its path, `lr` or `betas[0]`."""
    found: dict[str, Value] = {}
    for name, hyper in program.hypers.items():
        whole = hyper.default
        items = whole if isinstance(whole, tuple) else ()
        found |= {f"{name}[{i}]": v for i, v in enumerate(items)} or {name: whole}  # type: ignore[dict-item]
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Range:
    """One number, or an open interval with a number inside, for the subject of compile-time conditions."""

    subject: str
    value: float
    text: str
    conditions: tuple[Node, ...] = ()


def _ranges(subject: str, cuts: list[float]) -> Iterator[_Range]:
    x = node(Op.SHAPE if subject == "ndim" else Op.HYPER, value=subject)
    for low, high in zip([-math.inf, *cuts], [*cuts, math.inf], strict=True):
        middle = high - 1 if low == -math.inf else low + 1 if high == math.inf else (low + high) / 2
        bounds = (node(Op.LT, const(low), x), node(Op.LT, x, const(high)))
        text = f"{low:g} < " * (low > -math.inf) + subject + f" < {high:g}" * (high < math.inf)
        if subject != "ndim" or (middle >= 0 and high - low > 1):
            yield _Range(subject, middle, text, bounds)
        if high < math.inf:
            yield _Range(subject, high, f"{subject} == {high:g}")


def _holds(fact: Fact, value: Value) -> bool:
    if fact.relation == "is":
        return value is fact.value
    if not (_is_number(value) and _is_number(fact.value)):
        return (value == fact.value) is (fact.relation == "==")
    name = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}[fact.relation]
    return bool(getattr(operator, name)(value, fact.value))


def _resolve(program: Program, fixed: Mapping[str, Value], inside: Mapping[str, float]) -> Program:
    """The program with settings put in, conditions decided, and without states that nothing touches."""
    values = {**_paths(program), **inside, **fixed}

    def change(n: Node) -> Node | None:
        if n.op in LOWERED:
            raise ValueError(f"{program.name} is lowered: compare rules as syntax.parse gives them")
        if n.op is Op.FACT:
            fact = program.facts[n.value or ""]
            return const(_holds(fact, values[fact.subject]), DType.BOOL)
        if n.op in (Op.HYPER, Op.SHAPE) and _is_number(fixed.get(n.value or "")):
            return const(fixed[n.value or ""])  # type: ignore[arg-type]
        if n.op in (Op.CHOOSE, Op.WHERE) and n.args[0].op is Op.CONST:
            return n.args[1] if n.args[0].number else n.args[2]
        if n.op in (Op.AND, Op.OR) and any(x.op is Op.CONST for x in n.args):
            known, other = n.args if n.args[0].op is Op.CONST else n.args[::-1]
            return other if bool(known.number) is (n.op is Op.AND) else known
        if n.dtype is DType.BOOL and n.args and all(x.op is Op.CONST for x in n.args):
            return const(bool(constant(n)), DType.BOOL)
        return None

    bare = replace(program, update=None, gradient=None, parts=(), spans={}, names={})
    if bare.scalars:
        bare = bare.map(lambda n: program.scalars[int(n.value or 0)] if n.op is Op.SCALAR else None)
    bare = replace(bare, scalars=()).map(change)
    assigns = {k: n for k, n in bare.assigns.items() if not (n.op is Op.LOAD and n.value == k)}
    reached = toposort([*assigns.values(), *(n for mode in bare.modes.values() for n in mode.values())])
    for n in reached:
        if n.op is Op.UNDEF:
            raise RuleError(f"'{n.value}' has no value in {program.name} with these options")
    kept = {*assigns, *(n.value for n in reached if n.op is Op.LOAD)}
    return replace(bare, assigns=assigns, states={k: s for k, s in bare.states.items() if k in kept})


def _like(a: Program, b: Program) -> Program:
    """The program `b` with its states called as in `a` where they are the same."""
    keys = {s.key: k for k, s in a.states.items()}
    names: dict[str, str] = {}
    for find in (lambda k: keys.get(b.states[k].key, ""), lambda k: k):
        for k, s in b.states.items():
            same = a.states.get(find(k))
            if k not in names and same and same.name not in names.values() and same.extent is s.extent:
                names[k] = same.name
    names |= {k: f"{k} of {b.name}" for k in b.states if k in a.states and k not in names}
    loads = {load(k, extent=s.extent): load(names.get(k, k), extent=s.extent) for k, s in b.states.items()}
    b = b.map(loads.get)
    modes = {m: {names.get(k, k): n for k, n in mode.items()} for m, mode in b.modes.items()}
    states = {names.get(k, k): s for k, s in b.states.items()}
    return replace(b, assigns={names.get(k, k): n for k, n in b.assigns.items()}, modes=modes, states=states)


class _Pair:
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
        self.defaults = {**_paths(b), **_paths(a)}
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
        first = _evaluate(self.inits, inputs[0])
        stores = {"p": inputs[0][load("p")], **{k: first[s.init] for k, s in self.states.items()}}
        for step in inputs:
            leaves = {n: stores[n.value or ""] if n not in step else step[n] for n in self.leaves}
            leaves[load("p")] = stores["p"]
            values = _evaluate(self.roots, leaves)
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
        values = [_evaluate(loads, leaves) for leaves in self.points]
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
        first = _all_bounds(toposort(self.inits), self.limits)
        kept = {n for n in loads if first[self.states[n.value or ""].init][0] >= 0}
        order = toposort(self.roots)
        while True:
            bounds = _all_bounds(order, {**self.limits, **dict.fromkeys(kept, (0, math.inf))})
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
    sweep = _Sweep(limits)
    merged = sweep.merge(order, _signatures(order, points), same)
    pairs = {k: (merged[x], merged[y]) for k, (x, y) in targets.items()}
    return [k for k, (x, y) in pairs.items() if not (x is y or sweep.equal(x, y))]


def _evaluate(nodes: Iterable[Node], leaves: Values) -> Values:
    shape = np.shape(leaves[load("p")])

    def leaf(n: Node) -> Any:
        value: Any = np.asarray(leaves[n], np.float64)
        return np.broadcast_to(value, shape) if n.extent is Extent.ELEMENT else value[()]

    return evaluate(nodes, leaf)


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
                exact = n.op is not Op.CONST or Fraction(repr(n.number)) == Fraction(n.number)
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
                spread = ERRORS[n.op](x, dx) if n.op in ERRORS else reduce(np.maximum, dx)
                found[n] = np.max(spread) if n.op is Op.AMAX else spread + UNIT * abs(v)
    return found


def _undefined(n: Node, values: Values, errors: Values) -> bool:
    """Whether a value that is not finite is so in the reals too: no overflow, no zero by rounding."""
    x = [values[a] for a in n.args]
    if not x or np.isfinite(values[n]).all() or not all(np.isfinite(a).all() for a in x):
        return True
    if n.op in (Op.DIV, Op.MOD, Op.POW):
        return bool(np.any((x[n.op is not Op.POW] == 0) & (errors[n.args[n.op is not Op.POW]] == 0)))
    return n.op in (Op.SQRT, Op.LOG) and bool(np.any(x[0] + errors[n.args[0]] < (n.op is Op.LOG) * TINY))


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


# Bounds: what is known of a value's sign. An end that is not reached is the next float inside.

TINY = math.ulp(0.0)
REALS: Bounds = (-math.inf, math.inf)


def _limits(conditions: Iterable[Node]) -> Limits | None:
    """What conditions like `0 <= x < 1` say of single leaves; None if they cannot all hold."""
    found: Limits = {}
    stack = list(conditions)
    while stack:
        c = stack.pop()
        if c.op is Op.AND:
            stack.extend(c.args)
        elif c.op is Op.CONST and not c.number:
            return None
        elif c.op in (Op.LT, Op.LE, Op.EQ):
            for below in (True, False):
                x, other = c.args if below else c.args[::-1]
                end = constant(other) if x.op in (Op.HYPER, Op.SHAPE) else None
                if end is None or not math.isfinite(end):
                    continue
                low, high = found.get(x, REALS)
                if below or c.op is Op.EQ:
                    high = min(high, float(end if c.op is not Op.LT else np.nextafter(end, -math.inf)))
                if not below or c.op is Op.EQ:
                    low = max(low, float(end if c.op is not Op.LT else np.nextafter(end, math.inf)))
                if low > high:
                    return None
                found[x] = (low, high)
    return found


def _all_bounds(order: Iterable[Node], limits: Limits) -> dict[Node, Bounds]:
    found: dict[Node, Bounds] = {}
    for n in order:
        found[n] = _bounds(n, found, limits)
    return found


def _bounds(n: Node, found: Mapping[Node, Bounds], limits: Limits) -> Bounds:
    """Where the value of a node lies, wherever it is defined."""
    match n.op, [found[x] for x in n.args]:
        case Op.CONST, _ if n.dtype is DType.REAL and not math.isnan(n.number):
            return n.number, n.number
        case ((Op.COUNT | Op.SHAPE), _):
            return limits.get(n, (0 if n.value == "ndim" else 1, math.inf))
        case Op.NEG, [(low, high)]:
            return -high, -low
        case Op.ADD, [x, y]:
            a, step = n.args
            if step.op is Op.MUL and step.args[1].op is Op.SUB and step.args[1].args[1] is a:
                (least, most), b = found[step.args[0]], found[step.args[1].args[0]]
                if least >= 0 and most <= 1:  # lerp(a, b, weight) lies between a and b
                    return min(x[0], b[0]), max(x[1], b[1])
            return x[0] + y[0], x[1] + y[1]
        case Op.SUB, [x, y]:
            return x[0] - y[1], x[1] - y[0]
        case Op.MUL, [x, y]:
            low, high = _times(x, y)
            return (max(low, 0) if n.args[0] is n.args[1] else low), high
        case Op.DIV, [x, (low, high)] if low >= 0:  # and not 0, where it is defined
            return _times(x, (max(1 / high, TINY) if high else TINY, 1 / low if low else math.inf))
        case Op.ABS, [(low, high)]:
            return max(low, -high, 0), max(high, -low)
        case Op.SQRT, [(low, high)]:
            return math.sqrt(max(low, 0)), math.sqrt(max(high, 0))
        case Op.EXP, _:
            return TINY, math.inf
        case Op.POW, [(low, high), (least, _)] if low >= 0:
            most = math.inf if high > 1 or least < 0 else high if least >= 1 else 1
            return (TINY if low > 0 else 0), most
        case Op.MAXIMUM, [x, y]:
            return max(x[0], y[0]), max(x[1], y[1])
        case Op.MINIMUM, [x, y]:
            return min(x[0], y[0]), min(x[1], y[1])
        case Op.WHERE, [_, x, y]:
            return min(x[0], y[0]), max(x[1], y[1])
        case Op.SUM, [(low, _)] if low >= 0:
            return low, math.inf
        case ((Op.AMAX | Op.CAST), [x]):
            return x
    return limits.get(n, REALS)


def _times(x: Bounds, y: Bounds) -> Bounds:
    ends = [0 if 0 in (p, q) else p * q for p in x for q in y]
    return (max(min(ends), TINY) if x[0] > 0 and y[0] > 0 else min(ends)), max(ends)


# Proof: the nodes of both programs from the leaves upwards, merging those that are proved equal.


def _signatures(order: Sequence[Node], points: Iterable[Values]) -> dict[Node, str]:
    """What each node is worth at every point, as a text of nine digits a value."""
    columns: dict[Node, list[str]] = {n: [] for n in order}
    for leaves in points:
        values = _evaluate(order, leaves)
        for n in order:
            value = float(np.ravel(values[n])[0])
            columns[n].append(f"{value + 0.0:.8e}" if math.isfinite(value) else "")
    return {n: " ".join(column) for n, column in columns.items()}


class _Sweep:
    """Merges nodes that are equal for all values of the leaves within their limits."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.bounds: dict[Node, Bounds] = {}
        self.place: dict[Node, int] = {}
        self.height: dict[Node, int] = {}

    def merge(
        self, order: Sequence[Node], signatures: Mapping[Node, str], leaves: Mapping[Node, Node]
    ) -> dict[Node, Node]:
        """For each node the first that is proved equal to it; only those with equal signatures are tried.

        `leaves` are taken to be equal to begin with.
        """
        built: dict[Node, Node] = {}
        merged: dict[Node, Node] = {}
        same: dict[Node, Node] = {}
        groups: dict[str, list[Node]] = {}
        for n in order:
            args = [same[x] for x in n.args]
            if n.op in REDUCTIONS:  # the sum of a constant over the elements is not the constant
                args = [x if x.extent is n.args[0].extent else built[n.args[0]] for x in args]
            new = leaves.get(n, n)
            if args:
                new = node(n.op, *args, value=n.value, dtype=n.dtype, extent=n.extent)
            built[n] = new
            if new not in merged:
                merged[new] = new
                self.place[new] = len(self.place)
                self.bounds[new] = _bounds(new, self.bounds, self.limits)
                self.height[new] = height = 1 + max((self.height[x] for x in new.args), default=0)
                if n.dtype is not DType.BOOL:
                    group = groups.setdefault(signatures[n], [])
                    near = heapq.nsmallest(4, group, key=lambda x: abs(self.height[x] - height))
                    merged[new] = next((x for x in near if self.equal(new, x)), new)
                    group.extend([new] * (merged[new] is new))
            same[n] = merged[new]
        return same

    def equal(self, x: Node, y: Node) -> bool:
        """Whether a proof is found: first from what both share, then from ever smaller things."""
        tried: list[list[Node]] = []
        for level in range(3):
            inside = self.cone(x, y, level)
            if inside and inside not in tried:
                tried.append(inside)
                if _Formula(inside, self.bounds).vanishes(x, y, {}):
                    return True
        return False

    def cone(self, x: Node, y: Node, level: int) -> list[Node]:
        """The operations that a formula for both is made of, arguments first; the rest is symbols.

        Level 0 stops at every node that both reach, level 1 unless the host knows it, level 2 nowhere.
        A node is met after all its users, as it is younger than they are.
        """
        reached = {x: 1, y: 2}
        heap = [(-self.place[n], n) for n in (x, y)]
        heapq.heapify(heap)
        inside: list[Node] = []
        while heap and len(inside) < CONE:
            _, n = heapq.heappop(heap)
            if reached[n] == 3 and (level == 0 or (level == 1 and n.extent > Extent.STEP)):
                continue
            if (
                n.extent is Extent.CONST
                and n.op in (Op.EXP, Op.POW)
                and not 1e-99 < (constant(n) or 0) < 1e99
            ):
                continue  # sympy would write out all digits
            inside.extend([n] * bool(n.args))
            for arg in n.args:
                if arg not in reached:
                    heapq.heappush(heap, (-self.place[arg], arg))
                reached[arg] = reached.get(arg, 0) | reached[n]
        size: dict[Node, int] = {}
        for n in inside[::-1]:
            size[n] = 1 + sum(size.get(arg, 0) for arg in n.args)
        return inside[::-1] if max(size.values(), default=0) <= 4 * CONE else []


class _Split(Exception):
    """The sign of `key` is needed and not known; it is one of `signs`."""

    def __init__(self, key: sp.Expr, signs: Sequence[int]):
        self.key, self.signs = key, signs


class _Formula:
    """A few operations as sympy's expressions, and the nodes below them as symbols with known signs.

    Choices are made while the expressions are built: a comparison whose outcome is open splits the proof
    into one for each sign of the difference. A sum is a symbol of its own for each term, after what is
    the same for all elements is taken out. The sign of an element says nothing about a sum over all of
    them, so that inside a reduction choices are symbols too.
    """

    def __init__(self, inside: Sequence[Node], bounds: Mapping[Node, Bounds]):
        self.inside, self.bounds = inside, bounds
        self.symbols: dict[Node, sp.Symbol] = {}
        self.sums: dict[Any, sp.Symbol] = {}
        self.within = self.expressions(None) if any(n.op in REDUCTIONS for n in inside) else {}

    def expression(self, n: Node) -> Any:
        """A leaf, or a node that stands for all below it. Names follow from the order of first use."""
        if n.op is Op.CONST:
            return _exact(n)
        if n not in self.symbols:
            low, high = self.bounds.get(n) or _bounds(n, {}, {})
            known: dict[str, bool] = {} if n.dtype is DType.BOOL else {"real": True}
            if n.op is Op.COUNT:  # from 2 on it is 1 + a positive integer
                return sp.Symbol("t", integer=True, positive=True) + int(low - 1)
            if low >= 0:
                known["positive" if low > 0 else "nonnegative"] = True
            elif high <= 0:
                known["negative" if high < 0 else "nonpositive"] = True
            self.symbols[n] = sp.Symbol(f"x{len(self.symbols)}", **known)
        return self.symbols[n]

    def expressions(self, signs: Mapping[Any, int] | None) -> dict[Node, Any]:
        found: dict[Node, Any] = {}
        for n in self.inside:
            args = [found[x] if x in found else self.expression(x) for x in n.args]
            if n.op in REDUCTIONS:
                found[n] = self.within[n] if signs is not None else self.reduction(n, args[0])
            elif n.op in CHOICES:
                found[n] = self.expression(n) if signs is None else self.choice(n.op, args, signs)
            else:
                found[n] = SYMPY[n.op](*args)
        return found

    def reduction(self, n: Node, x: Any) -> Any:
        if n.args[0].extent is not Extent.ELEMENT:
            return x
        elements = [s for m, s in self.symbols.items() if m.extent is Extent.ELEMENT]
        whole = sp.Integer(0)
        for term in sp.Add.make_args(sp.expand(x)) if n.op is Op.SUM else [x]:
            factor, rest = term.as_independent(*elements, as_Add=False)
            if n.op is Op.AMAX and not factor.is_nonnegative:
                factor, rest = sp.Integer(1), term
            if rest == 1:
                whole += factor * (self.expression(fn.NUMEL) if n.op is Op.SUM else 1)
            else:
                known = {"positive": rest.is_positive or None, "nonnegative": rest.is_nonnegative or None}
                symbol = sp.Symbol(f"s{len(self.sums)}", real=True, **known)
                whole += factor * self.sums.setdefault((n.op, rest), symbol)
        return whole

    def choice(self, op: Op, args: list[Any], signs: Mapping[Any, int]) -> Any:
        if op in (Op.WHERE, Op.CHOOSE, Op.AND, Op.OR, Op.NOT):
            truths = [self.truth(x, signs) for x in (args[:1] if len(args) == 3 else args)]
            if len(args) == 3:
                return args[1] if truths[0] else args[2]
            return not truths[0] if op is Op.NOT else all(truths) if op is Op.AND else any(truths)
        sign = self.sign(args[0] - args[1], signs)
        if op in (Op.MAXIMUM, Op.MINIMUM):
            return args[0] if (sign >= 0) is (op is Op.MAXIMUM) else args[1]
        return {Op.LT: sign < 0, Op.LE: sign <= 0, Op.EQ: sign == 0, Op.NE: sign != 0}[op]

    @staticmethod
    def truth(x: Any, signs: Mapping[Any, int]) -> bool:
        if isinstance(x, bool):
            return x
        if x not in signs:
            raise _Split(x, (1, -1))
        return signs[x] > 0

    @staticmethod
    def sign(x: Any, signs: Mapping[Any, int]) -> int:
        """The sign of an expression: from its symbols, from the signs supposed so far, or a split."""
        turn, rest = _signed(_given(x, signs))
        if rest.is_zero or rest == 1:
            return 0 if rest.is_zero else turn
        if rest in signs:
            return turn * signs[rest]
        known = [
            (turned * q, s)
            for q, s in signs.items()
            if isinstance(q, sp.Expr)
            for turned in ({s} if s else {1, -1})
        ]
        for some in chain(combinations(known, 1), combinations(known, 2)):
            for side in (1, -1):  # as much as a sum of what is known to be positive, or zero
                if any(s for _, s in some) and _never_negative(side * rest - sum(q for q, _ in some)):
                    return turn * side
        possible = {1: not rest.is_nonpositive, 0: not rest.is_nonzero, -1: not rest.is_nonnegative}
        raise _Split(rest, [s for s, open_ in possible.items() if open_])

    def vanishes(self, x: Node, y: Node, signs: Mapping[Any, int]) -> bool:
        """Whether two nodes are equal, supposing these signs."""
        try:
            values = self.expressions(signs)
        except _Split as split:
            cases = ({**signs, split.key: s} for s in split.signs)
            return len(signs) < DEPTH and all(self.vanishes(x, y, case) for case in cases)
        left, right = (values[n] if n in values else self.expression(n) for n in (x, y))
        gap = left - right
        for absolute in gap.atoms(sp.Abs):
            with suppress(_Split):  # it stays |x| where the sign of x is open
                gap = gap.subs(absolute, self.sign(absolute.args[0], signs) * absolute.args[0])
        return _is_zero(_given(gap, signs))


def _given(x: sp.Expr, signs: Mapping[Any, int]) -> sp.Expr:
    """An expression where what is supposed to be zero makes one symbol a function of the others."""
    for key in [key for key, sign in signs.items() if sign == 0]:
        for symbol in sorted(key.free_symbols, key=str):
            factor = sp.diff(key, symbol)
            if factor.is_nonzero and not factor.has(symbol):
                x = x.subs(symbol, symbol - key / factor)
                break
    return x


@lru_cache(maxsize=10_000)
def _is_zero(x: sp.Expr) -> bool:
    """Whether an expression is zero; symbols go by their place, so that the same question comes often."""
    if x == 0:
        return True
    if x.has(sp.nan, sp.zoo, sp.oo) or sp.count_ops(x) > LARGE:
        return False
    if sp.expand(x) == 0:
        return True
    # Most of what is no identity stops here. sympy's simplify would look for minutes, and guesses at numbers.
    symbols = sorted(x.free_symbols, key=str)
    trial = [
        2 + i if s.is_integer else (-1) ** bool(s.is_nonpositive) * (1 + i / 7) for i, s in enumerate(symbols)
    ]
    with np.errstate(all="ignore"):
        terms = [_value(term, dict(zip(symbols, trial, strict=True))) for term in sp.Add.make_args(x)]
        if abs(sum(terms)) > 1e-9 * max(map(abs, terms)):
            return False
    over = sp.fraction(sp.together(sp.expand_power_exp(x)))[0]
    return bool(sp.expand(over) == 0 or sp.powsimp(sp.expand(over)) == 0)


def _value(x: sp.Expr, point: Mapping[Any, float]) -> Any:
    """The value of a small expression in float64, NaN where it has none. (sympy's evalf may never end.)"""
    if x in point or not x.args:
        try:
            return np.float64(point[x] if x in point else float(x))
        except (OverflowError, TypeError):  # too large, or not real
            return np.float64(np.nan)
    args = [_value(arg, point) for arg in x.args]
    if x.is_Add or x.is_Mul:
        return sum(args) if x.is_Add else math.prod(args)
    return np.power(*args) if x.is_Pow else MEANING[NODES[x.func]](*args)


@lru_cache(maxsize=10_000)
def _never_negative(x: sp.Expr) -> bool:
    """Whether an expression is a sum of terms of which none can be negative. (sympy asks on for minutes.)"""
    if sp.count_ops(x) > LARGE:
        return False
    number, rest = sp.expand(x).as_independent(*x.free_symbols, as_Add=True)
    if number != 0 and not _value(number, {}) > 1e-9:
        return False
    return all(term.is_nonnegative for term in sp.Add.make_args(rest))


@lru_cache(maxsize=10_000)
def _signed(x: sp.Expr) -> tuple[int, sp.Expr]:
    """An expression without its factors of known sign, and the sign of those."""
    turn, rest = 1, sp.Integer(1)
    for factor in sp.Mul.make_args(sp.factor_terms(sp.together(sp.expand(x)))):
        divides = factor.is_Pow and factor.exp.is_negative  # and is not 0 where it is defined
        if factor.is_extended_negative:
            turn = -turn
        elif not (factor.is_extended_positive or (divides and factor.base.is_nonnegative)):
            rest *= factor
    return (-turn, -rest) if rest.could_extract_minus_sign() else (turn, rest)


def _exact(n: Node) -> Any:
    """A constant as the decimal that was written."""
    if n.dtype is DType.BOOL:
        return bool(n.number)
    if not math.isfinite(n.number):
        return sp.nan if math.isnan(n.number) else sp.oo if n.number > 0 else -sp.oo
    return sp.pi if n.number == math.pi else sp.Rational(repr(n.number))


# Scalars and derivatives: nodes to sympy's expressions and back.

NODES: dict[Any, Op] = {
    sp.exp: Op.EXP, sp.log: Op.LOG, sp.tanh: Op.TANH, sp.atan2: Op.ATAN2, sp.floor: Op.FLOOR, sp.Abs: Op.ABS,
    sp.Max: Op.MAXIMUM, sp.Min: Op.MINIMUM, sp.And: Op.AND, sp.Or: Op.OR, sp.Not: Op.NOT,
    sp.Lt: Op.LT, sp.Le: Op.LE, sp.Eq: Op.EQ, sp.Ne: Op.NE, sp.Mod: Op.MOD,
}  # fmt: skip


def simplify(scalar: Node) -> Node:
    """A STEP scalar with fewer operations and the same real value, or the same node where none is found.

    It rounds differently: use it to show a scalar, not to compute one.

    Raises:
        ValueError: the node is not a value per step.
    """
    if scalar.extent > Extent.STEP:
        raise ValueError(f"simplify() takes a value per step, and this is {scalar.extent.phrase}")
    order = toposort([scalar])
    if len(order) > 300:  # sympy recurses, and would take minutes
        return scalar
    values: dict[Node, Any] = {}
    leaves: dict[Any, Node] = {}
    for n in order:
        if n.args:
            values[n] = SYMPY[n.op](*(values[x] for x in n.args))
        elif n.op is Op.CONST:
            values[n] = sp.true if n.dtype is DType.BOOL and n.number else _exact(n)
        else:
            known = {"real": True} if n.dtype is not DType.BOOL else {}
            known |= {"integer": True, "positive": True} if n.op is Op.COUNT else {}
            values[n] = sp.Symbol(n.value or "t", **known)
            leaves[values[n]] = n
    short = sp.simplify(values[scalar])
    if not all(f.func in NODES or isinstance(f, sp.Piecewise | sp.sign) for f in short.atoms(sp.Function)):
        return scalar
    found = _node(short, leaves)
    return found if len(toposort([found])) < len(order) else scalar


def _node(x: Any, leaves: Mapping[Any, Node]) -> Node:
    """The node of a small sympy expression."""
    if x in leaves:
        return leaves[x]
    if x in (sp.true, sp.false):
        return const(bool(x), DType.BOOL)
    if x.is_number and x.is_real is not False and not x.free_symbols:
        return const(float(x))
    if x.is_Add:
        first, *rest = sorted(x.as_ordered_terms(), key=lambda term: bool(term.could_extract_minus_sign()))
        whole = _node(first, leaves)
        for term in rest:
            minus = term.could_extract_minus_sign()
            whole = node(Op.SUB if minus else Op.ADD, whole, _node(-term if minus else term, leaves))
        return whole
    if x.is_Mul and x.could_extract_minus_sign():
        return node(Op.NEG, _node(-x, leaves))
    if x.is_Mul or (x.is_Pow and x.exp.could_extract_minus_sign()):
        over, under = x.as_numer_denom() if x.is_Pow else sp.fraction(x)
        if under != 1:
            return node(Op.DIV, _node(over, leaves), _node(under, leaves))
        whole, *factors = (_node(f, leaves) for f in x.as_ordered_factors())
        for factor in factors:
            whole = node(Op.MUL, whole, factor)
        return whole
    if x.is_Pow:
        return fn.power(_node(x.base, leaves), _node(x.exp, leaves))
    if isinstance(x, sp.Piecewise):
        whole = _node(x.args[-1].expr, leaves)
        for value, condition in x.args[-2::-1]:
            whole = node(Op.WHERE, _node(condition, leaves), _node(value, leaves), whole)
        return whole
    if isinstance(x, sp.Gt | sp.Ge):
        return _node(x.reversed, leaves)
    if isinstance(x, sp.sign):
        return fn.sign(_node(x.args[0], leaves))
    args = [_node(arg, leaves) for arg in x.args]
    whole = node(NODES[x.func], *args[:2])
    for extra in args[2:]:  # sympy's maximum, for one, takes any number
        whole = node(NODES[x.func], whole, extra)
    return whole


@cache
def _partials(op: Op, count: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Symbols for the arguments of an operation, and its derivative with respect to each."""
    x, y = symbols = sp.symbols("x y", real=True)
    if op is Op.FLOOR:
        return symbols, (sp.Integer(0),)
    if op is Op.MOD:
        return symbols, (sp.Integer(1), -sp.floor(x / y))
    if op in (Op.MAXIMUM, Op.MINIMUM):
        first = sp.Piecewise((1, x >= y if op is Op.MAXIMUM else x <= y), (0, True))
        return symbols, (first, 1 - first)
    value = SYMPY[op](*symbols[:count])
    return symbols, tuple(sp.powsimp(sp.diff(value, s)) for s in symbols[:count])


def derive(program: Program, by: str, of: str = "p") -> Node:
    """The derivative of what a step assigns to `of`, by a hyperparameter, `t`, p, g or a state.

    For example `derive(sgd, "lr")`, the hypergradient of p. What `of` and `by` name is per element:
    the derivative of an element by that same element. At a kink (`maximum`, `abs`) it is one side's.

    Raises:
        ValueError: the rule has no such name, or through a reduction an element depends on all others.
    """
    if of not in program.assigns:
        raise ValueError(f"{program.name} does not assign '{of}'; it assigns {', '.join(program.assigns)}")
    known = [*_paths(program), *program.states, "p", "g", "u", "t"]
    if by not in known:
        raise ValueError(f"{program.name} has no '{by}'; there are {', '.join(known)}")
    found: dict[Node, Node] = {}
    zero, one = const(0), const(1)
    for n in toposort([program.assigns[of]]):
        if not n.args and n.op is not Op.CONST and (n.value or "t") == by:
            found[n] = one
        rates = [found.get(x) for x in n.args]
        if not any(rates) or n.dtype is DType.BOOL:
            continue
        if n.op in REDUCTIONS:
            if n.op is Op.AMAX or by in program.states or by in ("p", "g", "u"):
                raise ValueError(
                    f"no derivative of {of} by {by} element by element: {n.op.value}() mixes them"
                )
            inner = found[n.args[0]]
            found[n] = node(Op.SUM, inner) if inner.extent is Extent.ELEMENT else _product(fn.NUMEL, inner)
        elif n.op in (Op.WHERE, Op.CHOOSE):
            found[n] = node(n.op, n.args[0], rates[1] or zero, rates[2] or zero)
        else:
            symbols, partials = _partials(n.op, len(n.args))
            leaves = dict(zip(symbols, n.args, strict=False))
            for part, rate in zip(partials, rates, strict=True):
                if rate and part != 0:
                    term = _product(_node(part, leaves), rate)
                    found[n] = node(Op.ADD, found[n], term) if n in found else term
    return found.get(program.assigns[of], zero)


def _product(x: Node, y: Node) -> Node:
    if x is const(1):
        return y
    if x is const(-1):
        return node(Op.NEG, y)
    return x if y is const(1) else node(Op.MUL, x, y)


# LaTeX: statements in the written order and in the notation of papers.

GREEK = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta",
    "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
)  # fmt: skip
USUAL = {"p": "theta", "lr": "eta", "eps": "epsilon", "weight_decay": "lambda", "momentum": "mu"}
ACCENTS = ("hat", "bar", "tilde", "dot")
SYMBOLS = {
    Op.ADD: "+", Op.SUB: "-", Op.MOD: r"\bmod", Op.AND: r"\land", Op.OR: r"\lor",
    Op.LT: "<", Op.LE: r"\le", Op.EQ: "=", Op.NE: r"\ne",
}  # fmt: skip
RELATIONS = {"is": "=", "==": "=", "!=": r"\ne", "<": "<", "<=": r"\le", ">": ">", ">=": r"\ge"}
WRITTEN = {
    Op.SQRT: r"\sqrt{%s}", Op.ABS: r"\left|%s\right|", Op.FLOOR: r"\left\lfloor %s\right\rfloor",
    Op.EXP: r"\exp\left(%s\right)", Op.LOG: r"\log\left(%s\right)", Op.TANH: r"\tanh\left(%s\right)",
    Op.ATAN2: r"\operatorname{atan2}\left(%s, %s\right)", Op.MAXIMUM: r"\max\left(%s, %s\right)",
    Op.MINIMUM: r"\min\left(%s, %s\right)", Op.SUM: r"\operatorname{sum}\left(%s\right)",
    Op.AMAX: r"\operatorname{amax}\left(%s\right)",
}  # fmt: skip
LONG = 40  # an expression of more operations than this gets a line of its own
Spelling = tuple[str, int]  # a text, and how tightly it binds: 4 a relation, 6 +, 7 *, 8 a fraction
ATOM = 10
DOT, NEXT = r" \cdot ", r" \\ "


def latex(program: Program) -> str:
    r"""The step of a rule as an `aligned` environment, for MathJax or any LaTeX with amsmath.

    One line a statement, in the written order. A state is $m_{t-1}$ before the step and $m_t$ after it,
    a value that is replaced later is $g_t'$. p is $\theta$, lr $\eta$, eps $\epsilon$, weight_decay
    $\lambda$ and momentum $\mu$, unless the rule has another name for that letter. A choice that is not
    yet made, or is made at run time, is written as cases.
    """
    if program.scalars:
        program = program.map(lambda n: program.scalars[int(n.value or 0)] if n.op is Op.SCALAR else None)
    letters = _Letters(program)
    order, names = _statements(program)
    label = letters.labels(order, names, program.assigns)
    texts: dict[Node, Spelling] = {}
    lines = []
    for n in toposort([*order, *program.assigns.values()]):
        texts[n] = _spell(n, texts, letters, set(label))
        if n in label:
            lines.append(f"{label[n]} &= {texts[n][0]}")
            texts[n] = (label[n], 9 if "'" in label[n] or "^" in label[n] else ATOM)
    for target, n in program.assigns.items():
        if texts[n][0] != letters.after(target):
            lines.append(f"{letters.after(target)} &= {texts[n][0]}")
    return "\n".join([r"\begin{aligned}", " \\\\\n".join(lines), r"\end{aligned}"])


def _statements(program: Program) -> tuple[list[Node], dict[Node, str]]:
    """The nodes that get a line of their own, as the rule orders them, and the names that it gives them."""
    roots = list(program.assigns.values())
    order = toposort(roots)
    names = {n: program.names[n] for n in order if n in program.names}
    names |= {n: k for k, n in program.assigns.items() if n.args and n not in names}
    uses: dict[Node, int] = dict.fromkeys(order, 0)
    for n in order:
        for x in n.args:
            uses[x] += 1
    for n in order:  # a compile-time choice between values of one name is what has that name
        if n.op is Op.CHOOSE:
            stems = {names.get(x, x.value if x.op is Op.LOAD else None) for x in n.args[1:]}
            if len(stems) == 1 and None not in stems:
                names.setdefault(n, str(stems.pop()))
                for x in n.args[1:]:
                    if uses[x] == 1 and x not in roots:
                        names.pop(x, None)
    size: dict[Node, int] = {}
    for n in order:
        size[n] = 1 + sum(size[x] for x in n.args) if n.args else 0
        if size[n] > LONG and n.dtype is not DType.BOOL:
            names.setdefault(n, "x")
        size[n] = 0 if n in names else size[n]
    places = {source: i for i, source in enumerate(program.sources)}

    def place(n: Node) -> tuple[int, int]:
        span = program.spans.get(n)
        return (places.get(span.source, 0), span.line) if span else (len(places), 0)

    return [n for n in toposort(sorted(names, key=place)) if n in names], names


class _Letters:
    """How a program's names are written."""

    def __init__(self, program: Program):
        self.program = program
        self.hypers = {n.value for n in toposort(program.roots()) if n.op is Op.HYPER}
        self.moving = {*program.states, "p", "g", "u"}
        named = {*self.hypers, *program.hypers, *self.moving, *program.names.values()}
        spelled = {_greek(str(k).rstrip("0123456789").split("_")[0].split("[")[0]) for k in named}
        self.usual = {k: "\\" + v for k, v in USUAL.items() if "\\" + v not in spelled}

    def write(self, name: str, *below: str) -> str:
        """A name in LaTeX, with further subscripts."""
        stem, _, index = name.partition("[")
        if index:
            hyper = stem in self.program.hypers  # betas[0] is what rules call beta1
            below = (str(int(index[:-1]) + hyper), *below)
            stem = stem.removesuffix("s" if hyper and _greek(stem[:-1]) != stem[:-1] else "")
        if stem in self.usual:
            return _below(self.usual[stem], below)
        parts = [part for part in stem.split("_") if part] or [stem]
        accents = [part for part in parts[1:] if part in ACCENTS]
        digits = parts[0][len(parts[0].rstrip("0123456789")) :]
        head = parts[0].removesuffix(digits)
        if len(_greek(head)) > 1 and not _greek(head).startswith("\\"):
            accents, below = [], below
            text = _roman(stem)
        else:
            words = [_roman(part) for part in parts[1:] if part not in ACCENTS]
            below = (*([digits] if digits else []), *words, *below)
            text = _greek(head)
        for accent in accents:
            text = rf"\{accent}{{{text}}}"
        return _below(text, below)

    def before(self, n: Node) -> str:
        """A leaf: what a store holds when the step begins, a hyperparameter, t, a shape."""
        name = n.value or "t"
        if n.op is not Op.LOAD:
            return self.write(name)
        return self.write(name, "t" if name in ("g", "u") else "t-1")

    def after(self, target: str) -> str:
        return self.write(target, "t") + "'" * (target in ("g", "u"))

    def labels(
        self, order: Sequence[Node], names: Mapping[Node, str], assigns: Mapping[str, Node]
    ) -> dict[Node, str]:
        """What stands left of `=` for each node: values that are replaced within the step get primes."""
        final = {n: k for k, n in assigns.items()}
        flat = {k.replace("[", "").replace("]", ""): k for k in self.moving}
        total: dict[str, int] = {}
        for n in order:
            total[names[n]] = total.get(names[n], 0) + (n not in final)
        seen: dict[str, int] = {}
        found: dict[Node, str] = {}
        for n in order:
            name = flat.get(names[n], names[n])
            if n in final and final[n] not in ("g", "u"):
                found[n] = self.write(final[n], "t")
                continue
            seen[name] = count = seen.get(name, 0) + 1
            if name not in self.moving and count == total[names[n]]:
                count = 0
            timed = any(x.op in (Op.LOAD, Op.COUNT) for x in toposort([n]))
            text = self.write(name, *(["t"] if timed else []))
            found[n] = text + ("'" * count if count <= 3 else f"^{{({count})}}")
        return found


def _roman(text: str) -> str:
    return "\\mathrm{" + text.replace("_", r"\_") + "}"


def _below(text: str, below: Sequence[str]) -> str:
    return f"{text}_{{{','.join(below)}}}" if below else text


def _greek(word: str) -> str:
    if len(word) == 1 and not word.isascii():
        *_, kind, _, letter = ("", "", "", *unicodedata.name(word, "").split())
        word = {"SMALL": letter.lower(), "CAPITAL": letter.title()}.get(kind, word)
    word = {"lam": "lambda", "lambd": "lambda", "lamda": "lambda"}.get(word, word)
    return "\\" + word if word in GREEK else word


def _number(x: float) -> str:
    if x == math.pi or not math.isfinite(x):
        return (
            r"\pi"
            if x == math.pi
            else r"\mathrm{nan}"
            if math.isnan(x)
            else r"\infty"
            if x > 0
            else r"-\infty"
        )
    mantissa, _, exponent = repr(x).partition("e")
    mantissa = mantissa.removesuffix(".0")
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}"


def _spell(n: Node, texts: Mapping[Node, Spelling], letters: _Letters, named: set[Node]) -> Spelling:
    """A node from the spellings of its arguments, as a paper would write it."""

    def tight(x: Node, rank: int) -> str:
        return texts[x][0] if texts[x][1] >= rank else rf"\left({texts[x][0]}\right)"

    if n.op is Op.CONST:
        text = _roman(str(bool(n.number))) if n.dtype is DType.BOOL else _number(n.number)
        return text, 5 if text.startswith("-") else 7 if "cdot" in text else 9 if "^" in text else ATOM
    if n.op is Op.FACT:
        return _fact(letters, n, True)
    if n.op is Op.UNDEF:
        return r"\mathrm{undefined}", ATOM
    if not n.args:
        return letters.before(n), ATOM
    known = _known(n)
    if known:
        text, parts = known
        return text % tuple(texts[x][0] for x in parts), (6 if text == "%s" else ATOM)
    x, y = n.args[0], n.args[-1]
    if n.op is Op.ADD and y.op is Op.MUL and y not in named and n is fn.lerp(x, *_last_two(y)):
        return _mean(x, *_last_two(y), texts, named), 6
    if n.op in WRITTEN:
        return WRITTEN[n.op] % tuple(texts[a][0] for a in n.args), ATOM
    if n.op is Op.CAST:
        return texts[x]
    if n.op is Op.DIV:
        return rf"\frac{{{texts[x][0]}}}{{{texts[y][0]}}}", 8
    if n.op is Op.POW:
        return rf"{tight(x, ATOM)}^{{{texts[y][0]}}}", 9
    if n.op is Op.MUL:
        base, count = _power(n, named)
        if count > 1:
            return rf"{tight(base, ATOM)}^{{{count}}}", 9
        left, right = tight(x, 5 if texts[x][1] == 5 else 7), tight(y, 7)
        return f"{left}{DOT if right[0].isdigit() else ' '}{right}", 5 if left[0] == "-" else 7
    if n.op is Op.NEG:
        return "-" + tight(x, 7), 5
    if n.op is Op.NOT:
        return _fact(letters, x, False) if x.op is Op.FACT else (r"\neg " + tight(x, 8), 3)
    if n.op in (Op.WHERE, Op.CHOOSE):
        rows, rest = [], n
        while rest.op in (Op.WHERE, Op.CHOOSE) and (rest is n or rest not in named):
            rows.append(rf"{texts[rest.args[1]][0]} & \text{{if }} {texts[rest.args[0]][0]}")
            rest = rest.args[2]
        rows.append(rf"{texts[rest][0]} & \text{{otherwise}}")
        return rf"\begin{{cases}} {NEXT.join(rows)} \end{{cases}}", 0
    rank = {Op.ADD: 6, Op.SUB: 6, Op.MOD: 7, Op.AND: 2, Op.OR: 1}.get(n.op, 4)
    return f"{tight(x, rank)} {SYMBOLS[n.op]} {tight(y, rank + (n.op is not Op.ADD))}", rank


def _known(n: Node) -> tuple[str, list[Node]] | None:
    """What functions of the language that are lowered to simpler operations look like."""
    x = n.args[0]
    if n.op is Op.WHERE and x.op is Op.LT and n is fn.sign(x.args[1]):
        return r"\operatorname{sign}\left(%s\right)", [x.args[1]]
    if n.op is Op.MINIMUM and x.op is Op.MAXIMUM:
        return r"\operatorname{clip}\left(%s, %s, %s\right)", [*x.args, n.args[1]]
    if n.op is Op.SQRT and x.op in (Op.SUM, Op.DIV):
        inner = x if x.op is Op.SUM else x.args[0]
        square = inner.args[0] if inner.op is Op.SUM else inner
        if square.op is Op.MUL and n is fn.norm(square.args[0]):
            return r"\left\|%s\right\|", [square.args[0]]
        if square.op is Op.MUL and n is fn.rms(square.args[0]):
            return r"\operatorname{rms}\left(%s\right)", [square.args[0]]
    if n.op is Op.DIV and x.op is Op.SUM and n.args[1] is fn.NUMEL:
        return r"\operatorname{mean}\left(%s\right)", [x.args[0]]
    return None


def _last_two(product: Node) -> tuple[Node, Node]:
    """b and weight of the `weight*(b - a)` in a lerp."""
    weight, gap = product.args
    return (gap.args[0] if gap.op is Op.SUB else gap), weight


def _mean(a: Node, b: Node, weight: Node, texts: Mapping[Node, Spelling], named: set[Node]) -> str:
    """lerp(a, b, weight) as a weighted mean: with 1 - beta for its weight it is beta a + (1 - beta) b."""

    def times(factor: Spelling, x: Node) -> str:
        both = [text if rank >= 7 else rf"\left({text}\right)" for text, rank in (factor, texts[x])]
        return f"{both[0]}{DOT if both[1][0].isdigit() else ' '}{both[1]}"

    if weight.op is Op.SUB and weight.args[0] is const(1) and weight not in named:
        rest = texts[weight.args[1]]
    else:
        inner, rank = texts[weight]
        rest = ("1 - " + (inner if rank > 6 else rf"\left({inner}\right)"), 6)
    return f"{times(rest, a)} + {times(texts[weight], b)}"


def _power(n: Node, named: set[Node]) -> tuple[Node, int]:
    """x and k where a product is the chain x*x*…*x of k factors."""
    count, base = 1, n.args[1]
    while n.op is Op.MUL and n.args[1] is base and (count == 1 or n not in named):
        count, n = count + 1, n.args[0]
    return (base, count) if n is base else (base, 1)


def _fact(letters: _Letters, n: Node, truth: bool) -> Spelling:
    fact = letters.program.facts[n.value or ""]
    subject = letters.write(fact.subject)
    if fact.relation == "is" and fact.value is True:
        return (subject if truth else rf"\text{{not }} {subject}"), (ATOM if truth else 3)
    relation = (
        RELATIONS[fact.relation] if truth else {"=": r"\ne", r"\ne": "="}.get(RELATIONS[fact.relation], "")
    )
    value = _number(float(fact.value)) if isinstance(fact.value, int | float) else _roman(str(fact.value))
    if not relation:
        return rf"\neg \left({subject} {RELATIONS[fact.relation]} {value}\right)", 3
    return f"{subject} {relation} {value}", 4
