"""Proofs that nodes are equal, node by node from the leaves upwards, and STEP scalars as formulas.

In: nodes of two programs that seem equal. Out: which of them are; simplified scalars; derivatives. Each
proof is of a small formula, with whatever lies below as free symbols. sympy works here.
"""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain, combinations
from typing import Any

import numpy as np
import sympy as sp

from optgen.algebra.bounds import Limits, Values, bounds_of, values_of
from optgen.ir import functions as fn
from optgen.ir.extent import Extent
from optgen.ir.functions import Bounds, operation, operations
from optgen.ir.node import COMPARISONS, REDUCTIONS, DType, Node, Op, node
from optgen.ir.semantics import constant, meaning

# Of operators; a function's row names sympy's.
SYMPY: dict[Op, Callable[..., Any]] = {
    Op.ADD: operator.add, Op.SUB: operator.sub, Op.MUL: operator.mul, Op.DIV: operator.truediv,
    Op.MOD: lambda x, y: x - y * sp.floor(x / y), Op.POW: operator.pow, Op.NEG: operator.neg,
    Op.CAST: lambda x: x,
    Op.LT: sp.Lt, Op.LE: sp.Le, Op.EQ: sp.Eq, Op.NE: sp.Ne, Op.AND: sp.And, Op.OR: sp.Or, Op.NOT: sp.Not,
    Op.WHERE: lambda c, a, b: sp.Piecewise((a, c), (b, True)),
    Op.CHOOSE: lambda c, a, b: sp.Piecewise((a, c), (b, True)),
}  # fmt: skip
CHOICES = COMPARISONS | {Op.AND, Op.OR, Op.NOT, Op.WHERE, Op.CHOOSE, Op.MAXIMUM, Op.MINIMUM}
CONE = 60  # at most so many operations make one formula
LARGE = 150  # sympy sees no larger expression
DEPTH = 5  # at most so many signs are told apart in one proof


def signatures(order: Sequence[Node], points: Iterable[Values]) -> dict[Node, str]:
    """What each node is worth at every point, as a text of nine digits a value."""
    columns: dict[Node, list[str]] = {n: [] for n in order}
    for leaves in points:
        values = values_of(order, leaves)
        for n in order:
            value = float(np.ravel(values[n])[0])
            columns[n].append(f"{value + 0.0:.8e}" if math.isfinite(value) else "")
    return {n: " ".join(column) for n, column in columns.items()}


class Sweep:
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
                self.bounds[new] = bounds_of(new, self.bounds, self.limits)
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
            return exact(n)
        if n not in self.symbols:
            low, high = self.bounds.get(n) or bounds_of(n, {}, {})
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
                found[n] = sympy_of(n.op)(*args)
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
    point = [
        2 + i if s.is_integer else (-1) ** bool(s.is_nonpositive) * (1 + i / 7) for i, s in enumerate(symbols)
    ]
    with np.errstate(all="ignore"):
        terms = [_value(term, dict(zip(symbols, point, strict=True))) for term in sp.Add.make_args(x)]
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
    op = Op.POW if x.is_Pow else op_of(x.func)
    return meaning(op)(*args) if op else np.float64(np.nan)


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


def exact(n: Node) -> Any:
    """A constant as the decimal that was written."""
    if n.dtype is DType.BOOL:
        return bool(n.number)
    if not math.isfinite(n.number):
        return sp.nan if math.isnan(n.number) else sp.oo if n.number > 0 else -sp.oo
    return sp.pi if n.number == math.pi else sp.Rational(repr(n.number))


NODES: dict[Any, Op] = {
    sp.And: Op.AND, sp.Or: Op.OR, sp.Not: Op.NOT,
    sp.Lt: Op.LT, sp.Le: Op.LE, sp.Eq: Op.EQ, sp.Ne: Op.NE, sp.Mod: Op.MOD,
}  # fmt: skip


def sympy_of(op: Op) -> Callable[..., Any]:
    """An operation on sympy's expressions."""
    row = operation(op)
    return getattr(sp, row.sympy) if row else SYMPY[op]


def op_of(kind: Any) -> Op | None:
    """The operation that a class of sympy's expressions is, if it is one."""
    for row in operations():
        if getattr(sp, row.sympy) is kind:
            return row.op
    return NODES.get(kind)
