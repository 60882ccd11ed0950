"""Rules as mathematics: whether two are the same, STEP scalars made shorter, derivatives, LaTeX.

In: programs of rules' texts. Out: an `Equality`, a `Node`, a text. Only this
package imports sympy.

Numbers are real here, and a constant is the decimal that was written. Nothing found here may replace
what a kernel computes: sympy reorders float arithmetic and folds `0*x` and `x/x`.

A program shares its nodes; as one formula it can be exponentially long. So nothing here recurses over
nodes or hands sympy a whole program. `equal` runs both programs on random numbers, which refutes, or
shows which nodes seem equal. It then proves those pairs from the leaves upwards, each from the few
operations by which the two differ, with whatever lies below as free symbols.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from optgen.algebra.bounds import limits_of, paths
from optgen.algebra.pairs import LOWERED, Equality, Pair
from optgen.errors import RuleError
from optgen.ir.extent import Extent
from optgen.ir.facts import Fact, Value
from optgen.ir.node import DType, Node, Op, const, load, node, toposort
from optgen.ir.program import Program
from optgen.ir.semantics import constant


class Undecided(RuntimeError):
    """Neither a proof nor a counterexample was found."""


def equal(a: Program, b: Program, **options: Value | tuple[Value, ...]) -> Equality:
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
        TypeError: an option is no hyperparameter of either rule.
        ValueError: the options violate a `require`, or a program is lowered beyond `passes.hoist`.
    """
    pairs = list(_pairs(a, b, options))
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


def _pairs(a: Program, b: Program, options: Mapping[str, Any]) -> Iterator[Pair]:
    """A pair for each way in which the compile-time conditions on free numbers can come out."""
    defaults = {**paths(b), **paths(a)}
    fixed: dict[str, Value] = {}
    for name, value in options.items():
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
        limits = limits_of(conditions)
        if limits is not None:
            possible = True
            where = " where " * bool(ranges) + " and ".join(r.text for r in ranges)
            yield Pair(one, _like(one, other), conditions, limits, {**fixed, **points}, where)
    if not possible:
        broken = [r.text for r in required if r.condition.op is Op.CONST and not r.condition.number]
        texts = dict.fromkeys(broken or [r.text for r in required])
        raise ValueError(f"no hyperparameters satisfy require({', '.join(texts)})")


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
    """The program with options put in, conditions decided, and without states that nothing touches."""
    values = {**paths(program), **inside, **fixed}

    def change(n: Node) -> Node | None:
        if n.op in LOWERED:
            raise ValueError(f"{program.name} is lowered: compare rules as syntax.parse gives them")
        if n.extent.sliced or n.extent is Extent.ALL or n.op in (Op.NORMAL, Op.UNIFORM):
            raise ValueError(
                f"{program.name} has {n.extent.phrase} or random numbers, which are not compared"
            )
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
