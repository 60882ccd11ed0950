"""Rules as mathematics: whether two are the same, STEP scalars made shorter, derivatives, LaTeX.

In: programs from `syntax`. Out: an `Equality`, a `Node`, a text. The only module that imports sympy.

Numbers are real here, and a constant is the decimal that was written. Nothing found here may replace
what a kernel computes: sympy reorders float arithmetic and folds `0*x` and `x/x`.

A program shares its nodes; written out as one formula it can be exponentially long. So nothing below
recurses over nodes or hands sympy a whole program. `equal` evaluates both on random training runs,
which refutes, or shows which nodes seem equal; then it proves those pairs from the leaves upwards,
each from the few operations by which the pair differs, with what lies below as free symbols.
"""

from __future__ import annotations

import heapq
import math
import operator
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

import mpmath
import numpy as np
import sympy as sp

from optgen import functions
from optgen.errors import RuleError
from optgen.ir import COMPARISONS, LEAVES, REDUCTIONS, DType, Extent, Fact, Node, Op, Program, State, Value
from optgen.ir import const, load, node, rebuild, rewrite, toposort
from optgen.semantics import constant, evaluate

CHOICES = COMPARISONS | {Op.AND, Op.OR, Op.NOT, Op.WHERE, Op.CHOOSE, Op.MAXIMUM, Op.MINIMUM}
COMMON: dict[Op, Callable[..., Any]] = {  # reads the same for sympy's expressions and mpmath's numbers
    Op.ADD: operator.add,
    Op.SUB: operator.sub,
    Op.MUL: operator.mul,
    Op.DIV: operator.truediv,
    Op.POW: operator.pow,
    Op.NEG: operator.neg,
    Op.ABS: abs,
}
SAME_NAME = (Op.SQRT, Op.EXP, Op.LOG, Op.TANH, Op.ATAN2, Op.FLOOR)
SYMPY: dict[Op, Callable[..., Any]] = {
    **COMMON,
    **{op: getattr(sp, op.value) for op in SAME_NAME},
    Op.MOD: lambda x, y: x - y * sp.floor(x / y),
    Op.MAXIMUM: sp.Max,
    Op.MINIMUM: sp.Min,
    Op.LT: sp.Lt,
    Op.LE: sp.Le,
    Op.EQ: sp.Eq,
    Op.NE: sp.Ne,
    Op.AND: sp.And,
    Op.OR: sp.Or,
    Op.NOT: sp.Not,
    Op.WHERE: lambda c, a, b: sp.Piecewise((a, c), (b, True)),
    Op.CHOOSE: lambda c, a, b: sp.Piecewise((a, c), (b, True)),
}
MPMATH: dict[Op, Callable[..., Any]] = {
    **COMMON,
    **{op: getattr(mpmath, op.value) for op in SAME_NAME},
    Op.DIV: lambda x, y: x / y if y else x * mpmath.inf,
    Op.MOD: lambda x, y: x - y * mpmath.floor(x / y),
    Op.MAXIMUM: lambda x, y: x + y if mpmath.isnan(x + y) else max(x, y),
    Op.MINIMUM: lambda x, y: x + y if mpmath.isnan(x + y) else min(x, y),
    Op.LT: operator.lt,
    Op.LE: operator.le,
    Op.EQ: operator.eq,
    Op.NE: operator.ne,
    Op.AND: operator.and_,
    Op.OR: operator.or_,
    Op.NOT: operator.not_,
    Op.WHERE: lambda c, a, b: a if c else b,
}
RUNS = ((1, 1.0), (1, 1.0), (6, 1.0), (1, 1e-4), (4, 1e-4), (1, 30.0), (6, 30.0), (1, 1e-9))  # numel, scale
STEPS = 4
TOLERANCE = 1e-10  # a relative difference in float64 beyond this is looked at in 30 and 60 digits
CONE = 60  # at most so many operations go into one formula
DEPTH = 5  # at most so many signs are told apart in one proof


class Undecided(RuntimeError):
    """Neither a proof nor a counterexample was found."""


@dataclass(frozen=True)
class Equality:
    """The answer of `equal`, true or false like a bool; `reason` says what it rests on.

    A refutation has a `counterexample`: the `inputs` of one step (p, g, states, hyperparameters, t) by
    name, the `target` whose `values` differ, and at which `element`. A value is None where it is not a
    finite real number.
    """

    equal: bool
    reason: str
    counterexample: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return self.equal


def equal(a: Program, b: Program, **settings: Value | tuple[Value, ...]) -> Equality:
    """Whether two rules are the same: from the same start they move p alike, whatever the gradients.

    Precisely: take any p, any sequence of gradients, any hyperparameters that satisfy the `require` of
    both rules (they may change between steps) and any first step count. Training with `a` and with `b`
    gives the same p after every step, and the same value of every state that both keep: states are the
    same by their `state_dict` key, or else by their name. A state that only one of them keeps, under
    these options, may hold anything. Transforms are compared by the g or u that they assign.

    A proof shows that one step keeps all this equal, for any values of the states (nonnegative where
    the rule keeps them so), and that the first values agree. It holds wherever both sides are defined;
    that they are undefined in the same places is only tried out, at points that include zeros. A
    refutation is a step of such a training whose two results differ by more than rounding explains.

    Settings fix hyperparameters in both: `equal(adam, adamw, weight_decay=0)`. Options that are not set
    have each rule's own default. Other numbers are free, and a compile-time condition on one of them
    (`weight_decay != 0`) is decided both ways.

    Raises:
        Undecided: neither a proof nor a counterexample was found.
        TypeError: a setting is no hyperparameter of either rule.
        ValueError: the settings violate a `require`, or a program is lowered beyond `hoist`.
    """
    cases = list(_cases(a, b, settings))
    for case in cases:
        found = case.refute()
        if found:
            return found
    for case in cases:
        open_targets = case.prove()
        if open_targets:
            raise Undecided(
                f"{a.name} and {b.name} agree on every training run that was tried, but no proof was "
                f"found for {', '.join(open_targets)}" + (f" where {case.label}" if case.label else "")
            )
    if all(x is y for case in cases for x, y in case.targets.values()):
        return Equality(True, "the programs are identical" + (f" in {len(cases)} cases" * (len(cases) > 1)))
    shown = ", ".join(dict.fromkeys(k for case in cases for k in case.targets if " " not in k))
    labels = "; ".join(case.label for case in cases if case.label)
    return Equality(True, f"proved that a step assigns the same {shown}" + (f" ({labels})" if labels else ""))


# Which programs are compared: options and compile-time conditions resolved, states matched.


def _cases(a: Program, b: Program, settings: Mapping[str, Any]) -> Iterator[_Case]:
    """One pair of programs for each way in which compile-time conditions on free numbers can come out."""
    fixed = {k: v for name, value in settings.items() for k, v in _items(name, value, (a, b))}
    free: dict[str, set[float]] = {}
    for program in (a, b):
        defaults = _defaults(program)
        for fact in program.facts.values():
            value = fixed.get(fact.subject, defaults.get(fact.subject, 0.0))
            if fact.subject not in fixed and _is_number(value):
                free.setdefault(fact.subject, set()).add(float(fact.value))  # type: ignore[arg-type]
    pieces = [_pieces(subject, sorted(values)) for subject, values in free.items()]
    if math.prod(len(p) for p in pieces) > 500:
        raise Undecided(f"too many compile-time conditions to tell apart: {', '.join(free)}")
    for combination in product(*pieces):
        points = {p.subject: p.value for p in combination if p.exact}
        inside = {p.subject: p.value for p in combination if not p.exact}
        sides = [_resolve(x, fixed | points, inside) for x in (a, b)]
        required = [r for side in sides for r in side.requires]
        if not combination and any(constant(r.condition) is not None and not constant(r.condition) for r in required):
            text = next(r.text for r in required if constant(r.condition) is not None and not constant(r.condition))
            raise ValueError(f"these settings violate require({text})")
        conditions = [r.condition for r in required] + [c for p in combination for c in p.conditions]
        bounds = _leaf_bounds(conditions)
        if bounds is not None:
            yield _Case(
                *_matched(*sides), conditions, bounds, _defaults(a) | _defaults(b),
                ", ".join(p.label for p in combination), (a.name, b.name),
            )  # fmt: skip


def _items(name: str, value: Any, programs: Sequence[Program]) -> list[tuple[str, Value]]:
    """A setting as paths of single hyperparameters: betas=(x, y) is betas[0]=x, betas[1]=y."""
    known = {path for program in programs for path in _defaults(program)}
    items = [(f"{name}[{i}]", v) for i, v in enumerate(value)] if isinstance(value, tuple) else [(name, value)]
    for path, _ in items:
        if path not in known:
            raise TypeError(f"no hyperparameter '{path}' in either rule; there are {', '.join(sorted(known))}")
    return items


def _defaults(program: Program) -> dict[str, Value]:
    """The default of every single hyperparameter by its path, `lr` or `betas[0]`."""
    found: dict[str, Value] = {}
    for name, hyper in program.hypers.items():
        if isinstance(hyper.default, tuple):
            found |= {f"{name}[{i}]": v for i, v in enumerate(hyper.default)}
        else:
            found[name] = hyper.default
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Piece:
    """One number, or an open interval between two, that a hyperparameter may lie in."""

    subject: str
    value: float
    exact: bool
    label: str
    conditions: tuple[Node, ...] = ()


def _pieces(subject: str, cuts: list[float]) -> list[_Piece]:
    leaf = node(Op.SHAPE, value=subject) if subject == "ndim" else node(Op.HYPER, value=subject)
    found = []
    for low, high in zip([-math.inf, *cuts], [*cuts, math.inf], strict=True):
        inner = high - 1 if low == -math.inf else low + 1 if high == math.inf else (low + high) / 2
        over = [node(Op.LT, const(low), leaf)] if low > -math.inf else []
        under = [node(Op.LT, leaf, const(high))] if high < math.inf else []
        label = (f"{low:g} < " if over and under else "") + subject + (f" < {high:g}" if under else f" > {low:g}")
        if subject != "ndim" or (inner >= 0 and (high - low > 1)):
            found.append(_Piece(subject, inner, False, label, (*over, *under)))
        if high < math.inf:
            found.append(_Piece(subject, high, True, f"{subject} == {high:g}"))
    return found


def _holds(fact: Fact, value: Value) -> bool:
    if fact.relation == "is":
        return value is fact.value
    if not _is_number(value) or not _is_number(fact.value):
        return (value == fact.value) == (fact.relation == "==")
    compare = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}[fact.relation]
    return bool(getattr(operator, compare)(value, fact.value))


def _resolve(program: Program, fixed: Mapping[str, Value], inside: Mapping[str, float]) -> Program:
    """The program with settings put in, compile-time conditions decided, and hoisted scalars put back."""
    values = {**_defaults(program), **inside, **fixed}

    def change(n: Node) -> Node | None:
        if n.op is Op.FACT:
            fact = program.facts[n.value or ""]
            return const(_holds(fact, values[fact.subject]), DType.BOOL)
        if n.op in (Op.HYPER, Op.SHAPE) and _is_number(fixed.get(n.value or "")):
            return const(fixed[n.value or ""])  # type: ignore[arg-type]
        if n.op is Op.CAST:
            return n.args[0]
        if n.op in (Op.BITS, Op.FLOAT, Op.SHL, Op.SHR, Op.SLOT, Op.SPILL):
            raise ValueError(f"{program.name} is lowered: compare rules as `syntax.parse` gives them")
        if n.op in (Op.CHOOSE, Op.WHERE) and n.args[0].op is Op.CONST:
            return n.args[1] if n.args[0].number else n.args[2]
        if n.op in (Op.AND, Op.OR) and any(x.op is Op.CONST for x in n.args):
            known, other = n.args if n.args[0].op is Op.CONST else n.args[::-1]
            return other if bool(known.number) == (n.op is Op.AND) else known
        if n.dtype is DType.BOOL and n.args and all(x.op is Op.CONST for x in n.args):
            return const(bool(constant(n)), DType.BOOL)
        return None

    bare = replace(program, update=None, gradient=None, parts=(), spans={}, names={})
    if bare.scalars:
        bare = bare.map(lambda n: program.scalars[int(n.value or 0)] if n.op is Op.SCALAR else None)
    bare = replace(bare, scalars=()).map(change)
    missing = next((n for n in toposort(_step_roots(bare)) if n.op is Op.UNDEF), None)
    if missing is not None:
        raise RuleError(f"'{missing.value}' has no value in {program.name} with these options")
    kept = {n.value for n in toposort(_step_roots(bare)) if n.op is Op.LOAD}
    kept |= {k for k, n in bare.assigns.items() if n.op is not Op.LOAD or n.value != k}
    return replace(bare, states={k: s for k, s in bare.states.items() if k in kept})


def _step_roots(program: Program) -> list[Node]:
    return [*program.assigns.values(), *(n for mode in program.modes.values() for n in mode.values())]


def _matched(a: Program, b: Program) -> tuple[Program, Program]:
    """Both programs, with the states of `b` called as in `a` where they are the same."""
    by_key = {s.key: k for k, s in a.states.items()}
    names: dict[str, str] = {}
    for find in (lambda k: by_key.get(b.states[k].key), lambda k: k):
        for k, state in b.states.items():
            match = find(k)
            if k not in names and match in a.states and match not in names.values():
                if a.states[match].extent is state.extent:
                    names[k] = match
    for k in b.states:
        names.setdefault(k, k if k not in a.states else f"{k} of {b.name}")
    return a, _rename(b, names)


def _rename(program: Program, names: Mapping[str, str]) -> Program:
    def change(n: Node) -> Node | None:
        if n.op is Op.LOAD and n.value in names:
            return load(names[n.value], n.dtype, n.extent)
        return None

    moved = program.map(change)
    return replace(
        moved,
        assigns={names.get(k, k): n for k, n in moved.assigns.items()},
        modes={m: {names.get(k, k): n for k, n in mode.items()} for m, mode in moved.modes.items()},
        states={names.get(k, k): replace(s, name=names.get(k, k)) for k, s in moved.states.items()},
    )


@dataclass
class _Case:
    """Two resolved programs with common names; what must agree; random training runs of both."""

    a: Program
    b: Program
    conditions: list[Node]
    bounds: dict[Node, Bounds]
    defaults: dict[str, Value]
    label: str
    titles: tuple[str, str]
    points: list[dict[Node, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        both = {k for k in self.a.states if k in self.b.states}
        self.states: dict[str, State] = {**self.b.states, **self.a.states}
        self.targets: dict[str, tuple[Node, Node]] = {}
        self.own: dict[str, Node] = {}
        for k in dict.fromkeys([*self.a.assigns, *self.b.assigns]):
            x, y = (side.assigns.get(k, load(k, extent=self.extent(k))) for side in (self.a, self.b))
            if k in self.states and k not in both:
                self.own[k] = x if k in self.a.states else y
            else:
                self.targets[k] = (x, y)
        for k in both:
            self.targets[f"first {k}"] = (self.a.states[k].init, self.b.states[k].init)
        for mode in {**self.a.modes, **self.b.modes}:
            one, other = self.a.modes.get(mode, {}), self.b.modes.get(mode, {})
            for k in {**one, **other}:
                old = load(k, extent=self.extent(k))
                if k not in self.states or k in both:
                    self.targets[f"{k} after {mode}()"] = (one.get(k, old), other.get(k, old))
        self.leaves = [
            n for n in toposort([*self.roots(), *self.conditions]) if not n.args and n.op is not Op.CONST
        ]

    def extent(self, name: str) -> Extent:
        return self.states[name].extent if name in self.states else Extent.ELEMENT

    def roots(self) -> list[Node]:
        found = [n for pair in self.targets.values() for n in pair] + list(self.own.values())
        return found + [s.init for s in self.states.values()]

    # Refutation: random training runs, in float64 and where they differ once more in many digits

    def refute(self) -> Equality | None:
        """A training run on which the programs differ; `points` are what the others started each step from."""
        rng = np.random.default_rng(0)
        pairs = {k: pair for k, pair in self.targets.items() if pair[0] is not pair[1]}
        for numel, scale in RUNS:
            inputs = self.inputs(rng, numel, scale)
            for i, (leaves, values) in enumerate(self.train(inputs, _floats)):
                for target, (x, y) in pairs.items():
                    at = _difference(np.broadcast_to(values[x], numel), np.broadcast_to(values[y], numel))
                    if at is not None and self.confirmed(inputs[: i + 1], (x, y), at):
                        return self.counterexample(leaves, target, at, values[x], values[y])
                self.points.append(leaves)
        return None

    def inputs(self, rng: np.random.Generator, numel: int, scale: float) -> list[dict[Node, Any]]:
        """What a run is given at each step: gradients, hyperparameters, t; and p, used at the first."""
        t = int(rng.choice([1, 1, 2, 7, 1000]))
        rows = 2 if numel > 1 else 1
        shape = {"numel": numel, "ndim": 2, "rows": rows, "cols": numel // rows}
        steps: list[dict[Node, Any]] = []
        hypers: dict[Node, float] = {}
        for i in range(STEPS):
            if i == 0 or rng.random() < 0.5:
                hypers = self.hypers(rng)
            step: dict[Node, Any] = dict(hypers)
            for n in [*self.leaves, load("p")]:
                if n.op is Op.COUNT:
                    step[n] = np.float64(t + i)
                elif n.op is Op.SHAPE:
                    step[n] = np.float64(shape[n.value or ""])
                elif n.op is Op.LOAD and n.value not in self.states:
                    drawn = _short(rng.normal(size=numel) * scale * 10 ** rng.uniform(-1, 0.5, numel))
                    step[n] = np.where(rng.random(numel) < 0.15, 0.0, drawn)
            steps.append(step)
        return steps

    def hypers(self, rng: np.random.Generator) -> dict[Node, float]:
        """Hyperparameters that satisfy every condition, where such were found."""
        leaves = [n for n in self.leaves if n.op is Op.HYPER]
        found = {n: np.float64(_as_number(self.defaults.get(n.value or ""))) for n in leaves}
        for _ in range(2):
            for n in leaves:
                for _ in range(20):
                    trial = found | {n: np.float64(_draw(rng, self.bounds.get(n, REALS), found[n]))}
                    about = [c for c in self.conditions if n in toposort([c])]
                    if all(evaluate(about, lambda x, v=trial: v.get(x, np.float64(2)))[c] for c in about):
                        found = trial
                        break
        return found

    def train(
        self, inputs: list[dict[Node, Any]], run: Callable[..., dict[Node, Any]]
    ) -> Iterator[tuple[dict[Node, Any], dict[Node, Any]]]:
        """Run both programs side by side: for each step the values of the leaves, and of all nodes.

        States that both keep agree, so that one copy of them is enough.
        """
        numel = len(inputs[0][load("p")])
        first = run([s.init for s in self.states.values()], inputs[0].__getitem__, numel)
        stores = {k: first[s.init] for k, s in self.states.items()}
        for step in inputs:
            stores = {"p": step[load("p")], **stores}
            known = {n: stores[n.value or ""] if n.value in stores else step[n] for n in self.leaves}
            values = run(self.roots(), known.__getitem__, numel)
            yield known, values
            after = {k: pair[0] for k, pair in self.targets.items() if k == "p" or k in self.states} | self.own
            stores |= {k: values[n] for k, n in after.items()}

    def confirmed(self, inputs: list[dict[Node, Any]], pair: tuple[Node, Node], at: int) -> bool:
        """Whether the last step's difference is more than rounding: it is the same in 30 and 60 digits."""
        gaps = []
        for digits in (30, 60):
            with mpmath.workdps(digits):
                *_, (_, values) = self.train(inputs, _precise)
                x, y = (values[n][at] for n in pair)
                if not (mpmath.isfinite(x) and mpmath.isfinite(y)):
                    gaps.append(mpmath.inf if mpmath.isfinite(x) or mpmath.isfinite(y) else mpmath.mpf(0))
                else:
                    gaps.append((x - y) / max(abs(x), abs(y), mpmath.mpf(10) ** -300))
        return bool(abs(gaps[1]) > TOLERANCE / 10 and (gaps[0] == gaps[1] or abs(gaps[0] / gaps[1] - 1) < 1e-6))

    def counterexample(self, leaves: Mapping[Node, Any], target: str, at: int, x: Any, y: Any) -> Equality:
        inputs = {n.value or "t": np.asarray(v, float).tolist() for n, v in leaves.items()}
        values = [float(np.broadcast_to(v, at + 1)[at]) if np.ndim(v) == 0 else float(v[at]) for v in (x, y)]
        shown = tuple(v if math.isfinite(v) else None for v in values)
        one = lambda v: v[at] if isinstance(v, list) else v  # noqa: E731
        given = ", ".join(f"{k}={one(v):.6g}" for k, v in inputs.items())
        words = [f"{v:.9g}" if v is not None else "undefined" for v in shown]
        reason = f"{target} is {words[0]} in {self.titles[0]} and {words[1]} in {self.titles[1]}, from {given}"
        if self.label:
            reason += f" (where {self.label})"
        return Equality(False, reason, dict(inputs=inputs, target=target, values=shown, element=at))

    # Proof

    def prove(self) -> list[str]:
        """The targets for which no proof was found."""
        if all(x is y for x, y in self.targets.values()):
            return []
        sweep = _Sweep(self.bounds, self.nonnegative(), self.points)
        merged = sweep.merge(self.pair_states())
        return [k for k, (x, y) in self.targets.items() if merged(x) is not merged(y)]

    def pair_states(self) -> ...:
        raise NotImplementedError
