"""The functions of the rule language, each as the nodes it stands for.

In: argument nodes. Out: a node. What has an exact expression in simpler operations is written out here,
so that back ends never see it (`rsqrt`, `sign`, `lerp`, `clip`, `round`, `isfinite`, `mean`, `norm`, …).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from optgen.ir.extent import Extent
from optgen.ir.node import DType, Node, Op, const, node

NUMEL = node(Op.SHAPE, value="numel")


def rsqrt(x: Node) -> Node:
    """1/sqrt(x)."""
    return node(Op.DIV, const(1), node(Op.SQRT, x))


def sign(x: Node) -> Node:
    """1, -1, or x itself where x is a zero or NaN."""
    negative = node(Op.WHERE, node(Op.LT, x, const(0)), const(-1), x)
    return node(Op.WHERE, node(Op.LT, const(0), x), const(1), negative)


def clip(x: Node, low: Node, high: Node) -> Node:
    """x, no lower than `low` and no higher than `high`."""
    return node(Op.MINIMUM, node(Op.MAXIMUM, x, low), high)


def lerp(a: Node, b: Node, weight: Node) -> Node:
    """a + weight*(b - a)."""
    return node(Op.ADD, a, node(Op.MUL, weight, node(Op.SUB, b, a)))


def round_half_even(x: Node) -> Node:
    """The nearest integer; a half goes to the even neighbour."""
    low = node(Op.FLOOR, x)
    rest = node(Op.SUB, x, low)
    high = node(Op.ADD, low, const(1))
    half = node(Op.MUL, low, const(0.5))
    even = node(Op.WHERE, node(Op.EQ, node(Op.FLOOR, half), half), low, high)
    below = node(Op.WHERE, node(Op.LT, rest, const(0.5)), low, even)
    return node(Op.WHERE, node(Op.LT, const(0.5), rest), high, below)


def isfinite(x: Node) -> Node:
    """Whether x is neither infinite nor NaN."""
    return node(Op.LT, node(Op.ABS, x), const(math.inf))


def power(x: Node, exponent: Node) -> Node:
    """x**exponent; a constant integer up to 8 is a chain of multiplications, 0.5 a square root."""
    n = exponent.number if exponent.op is Op.CONST else math.nan
    if abs(n) == 0.5:
        return node(Op.SQRT, x) if n > 0 else rsqrt(x)
    if not (abs(n) <= 8 and n.is_integer()) or x.extent is Extent.CONST:
        return node(Op.POW, x, exponent)
    if n == 0:
        return const(1)
    chain = x
    for _ in range(int(abs(n)) - 1):
        chain = node(Op.MUL, chain, x)
    return chain if n > 0 else node(Op.DIV, const(1), chain)


def number_of(extent: Extent) -> Node:
    """How many values of an extent a tensor has."""
    rows, cols = (node(Op.SHAPE, value=name) for name in ("rows", "cols"))
    if extent is Extent.ELEMENT:
        return NUMEL
    if extent is Extent.ROW:
        return node(Op.DIV, NUMEL, cols)
    if extent is Extent.COL:
        return node(Op.DIV, NUMEL, rows)
    if extent is Extent.MATRIX:
        return node(Op.DIV, node(Op.DIV, NUMEL, rows), cols)
    if extent.name.startswith("BLOCK"):
        blocks = node(Op.DIV, NUMEL, const(extent.size))
        return node(Op.NEG, node(Op.FLOOR, node(Op.NEG, blocks)))
    if extent.sliced:
        return node(Op.DIV, NUMEL, node(Op.SHAPE, value=extent.name))
    return const(1)


@dataclass(frozen=True)
class Reducer:
    """A reduction of values of one extent to another: what `axis` and `over` say."""

    source: Extent
    target: Extent
    tag: str = ""  # of one over all tensors: which it is

    def fold(self, op: Op, x: Node) -> Node:
        """SUM or AMAX of a value."""
        if self.target is not Extent.ALL:
            return node(op, x, extent=self.target)
        inner = node(op, x) if x.extent > Extent.TENSOR else x
        return node(op, inner, value=f"{op.value}{self.tag}", extent=Extent.ALL)

    def total(self, x: Node) -> Node:
        """The sum; a condition counts as 1 where it holds."""
        if x.dtype is DType.BOOL:
            x = node(Op.WHERE, x, const(1), const(0))
        return self.fold(Op.SUM, x)

    @property
    def count(self) -> Node:
        """How many values go into one."""
        if self.target is Extent.ALL:
            number = number_of(self.source)
            return node(Op.SUM, number, value=f"count{self.source}", extent=Extent.ALL)
        if self.target.name.startswith("BLOCK"):  # of which the last may be shorter
            index = node(Op.INDEX, value="low")
            return node(
                Op.SUM, node(Op.WHERE, node(Op.EQ, index, index), const(1), const(0)), extent=self.target
            )
        direct = {(Extent.ELEMENT, Extent.ROW): "cols", (Extent.COL, Extent.MATRIX): "cols"}
        direct |= {(Extent.ELEMENT, Extent.COL): "rows", (Extent.ROW, Extent.MATRIX): "rows"}
        if (self.source, self.target) in direct:
            return node(Op.SHAPE, value=direct[self.source, self.target])
        if self.target.sliced:
            return node(Op.SHAPE, value=self.target.name)
        return number_of(self.source)


def total(r: Reducer, x: Node) -> Node:
    """The sum."""
    return r.total(x)


def mean(r: Reducer, x: Node) -> Node:
    """The sum over how many there are."""
    return node(Op.DIV, r.total(x), r.count)


def norm(r: Reducer, x: Node) -> Node:
    """The Euclidean norm, sqrt(sum(x*x))."""
    return node(Op.SQRT, r.total(node(Op.MUL, x, x)))


def rms(r: Reducer, x: Node) -> Node:
    """The root mean square, sqrt(mean(x*x))."""
    return node(Op.SQRT, mean(r, node(Op.MUL, x, x)))


def amax(r: Reducer, x: Node) -> Node:
    """The largest value."""
    return r.fold(Op.AMAX, x)


def dot(r: Reducer, a: Node, b: Node) -> Node:
    """sum(a*b)."""
    return r.total(node(Op.MUL, a, b))


def _plain(op: Op) -> Callable[..., Node]:
    return lambda *args: node(op, *args)


# name -> (number of arguments, the nodes it stands for)
ELEMENT_FUNCTIONS: dict[str, tuple[int, Callable[..., Node]]] = {
    "sqrt": (1, _plain(Op.SQRT)),
    "rsqrt": (1, rsqrt),
    "exp": (1, _plain(Op.EXP)),
    "log": (1, _plain(Op.LOG)),
    "abs": (1, _plain(Op.ABS)),
    "sign": (1, sign),
    "maximum": (2, _plain(Op.MAXIMUM)),
    "minimum": (2, _plain(Op.MINIMUM)),
    "clip": (3, clip),
    "lerp": (3, lerp),
    "tanh": (1, _plain(Op.TANH)),
    "atan2": (2, _plain(Op.ATAN2)),
    "floor": (1, _plain(Op.FLOOR)),
    "round": (1, round_half_even),
    "isfinite": (1, isfinite),
}
# Of values per step only, so that no back end has them.
STEP_FUNCTIONS: dict[str, tuple[int, Callable[..., Node]]] = {
    "cos": (1, _plain(Op.COS)),
}
REDUCTION_FUNCTIONS: dict[str, tuple[int, Callable[..., Node]]] = {
    "sum": (1, total),
    "mean": (1, mean),
    "norm": (1, norm),
    "rms": (1, rms),
    "amax": (1, amax),
    "dot": (2, dot),
}
