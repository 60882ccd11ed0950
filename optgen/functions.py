"""The functions of the rule language, each as the nodes it stands for.

In: argument nodes. Out: a node. What has an exact expression in simpler operations is written out here,
so that back ends never see it (`rsqrt`, `sign`, `lerp`, `clip`, `round`, `isfinite`, `mean`, `norm`, …).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from optgen.ir import DType, Extent, Node, Op, const, node

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


def total(x: Node) -> Node:
    """The sum over the tensor; a condition counts as 1 where it holds."""
    if x.dtype is DType.BOOL:
        x = node(Op.WHERE, x, const(1), const(0))
    return node(Op.SUM, x)


def mean(x: Node) -> Node:
    """sum(x) / numel."""
    return node(Op.DIV, total(x), NUMEL)


def norm(x: Node) -> Node:
    """The Euclidean norm, sqrt(sum(x*x))."""
    return node(Op.SQRT, total(node(Op.MUL, x, x)))


def rms(x: Node) -> Node:
    """The root mean square, sqrt(sum(x*x) / numel)."""
    return node(Op.SQRT, mean(node(Op.MUL, x, x)))


def dot(a: Node, b: Node) -> Node:
    """sum(a*b)."""
    return total(node(Op.MUL, a, b))


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
REDUCTION_FUNCTIONS: dict[str, tuple[int, Callable[..., Node]]] = {
    "sum": (1, total),
    "mean": (1, mean),
    "norm": (1, norm),
    "rms": (1, rms),
    "amax": (1, _plain(Op.AMAX)),
    "dot": (2, dot),
}
