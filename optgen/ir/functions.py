"""The functions of the rule language: one row of one table is all that any stage knows of a function.

In: a function's name, or an operation. Out: its row. A new function of elements is a new row, of two kinds:

- `Function`: it can be written in operations that there are (`rsqrt`, `sign`, `round`). The language builds
  those at once, so that no later stage meets the function.
- `Operation`: it is a member of `Op`, whose value is the function's name, with a meaning of its own. The pass
  `expand` writes it out as its `expansion`, a function in `ir.expansions`. An operation without one (`sqrt`,
  `exp`, `log`, `abs`, `floor`, `maximum`, `minimum`) has an entry in the printer of each back end besides: it
  comes to all of them, or to none.

The parser and its hints, the reference, the host's values per step, LaTeX, proofs, derivatives, and the
tolerance of `optgen check` read the row. For people the README and docs/language.md list the functions.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optgen.ir import expansions
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


def _maximum(a: Any, b: Any) -> Any:
    """a where it is greater or NaN, else b: so of two zeros b, where np.maximum takes either."""
    return np.where(np.greater(a, b) | np.not_equal(a, a), a, b)[()]


def _minimum(a: Any, b: Any) -> Any:
    return np.where(np.less(a, b) | np.not_equal(a, a), a, b)[()]


TINY = math.ulp(0.0)
Bounds = tuple[float, float]


def _within(low: float, high: float) -> Callable[..., Bounds]:
    """The range of a function that lies between two numbers, whatever its arguments."""
    return lambda *x: (low, high)


def _increasing(f: Callable[[float], Any], least: float = -math.inf) -> Callable[..., Bounds]:
    """The range of a function that grows with its argument, and is defined from `least` on."""
    return lambda x: (float(f(max(x[0], least))), float(f(max(x[1], least))))


@dataclass(frozen=True)
class Function:
    """A row: what is known of a function. Of one that is written in operations, all else follows from those.

    Attributes:
        arguments: how many it takes.
        stands_for: an operation, or what builds its nodes from those of its arguments.
        latex: with a %s for each argument. Without it, a formula shows the operations that it is written in.
    """

    arguments: int
    stands_for: Op | Callable[..., Node]
    latex: str = ""

    def __call__(self, *args: Any) -> Node:
        """The node of a call."""
        return node(self.stands_for, *args) if isinstance(self.stands_for, Op) else self.stands_for(*args)


@dataclass(frozen=True, kw_only=True)
class Operation(Function):
    """A row of a function that is an operation of the IR.

    Attributes:
        numpy: its meaning on NumPy values, with which every back end must agree.
        sympy: the name of sympy's function.
        exact: whether it is correctly rounded on every back end, so that all give the same bits. What has an
            expansion is judged by the operations in that.
        expansion: the function in operations that have none. Without it, every back end's printer has it.
        bounds: from the range of each argument to the range of its value. Without it, any number.
        error: from arguments x that are wrong by d to how wrong its value is, before that is rounded itself.
            Without it the largest d, which is right for slopes from -1 to 1.
        least: the least argument for which it is defined.
        flat: whether it is constant between jumps, so that its derivative is 0.
    """

    numpy: Callable[..., Any]
    sympy: str
    exact: bool
    expansion: Callable[..., Node] | None = None
    bounds: Callable[..., Bounds] | None = None
    error: Callable[[Sequence[Any], Sequence[Any]], Any] | None = None
    least: float = -math.inf
    flat: bool = False

    @property
    def op(self) -> Op:
        """The operation."""
        assert isinstance(self.stands_for, Op)
        return self.stands_for


# By name. An operation's name is its op's value.
ELEMENT_FUNCTIONS: dict[str, Function] = {
    "sqrt": Operation(
        1, Op.SQRT, r"\sqrt{%s}", numpy=np.sqrt, sympy="sqrt", exact=True,
        bounds=_increasing(math.sqrt, 0.0), least=0.0,
        error=lambda x, d: np.where(d[0] > 0, np.minimum(d[0] / np.sqrt(x[0]), np.sqrt(d[0])), 0.0),
    ),
    "rsqrt": Function(1, rsqrt),
    "exp": Operation(
        1, Op.EXP, r"\exp\left(%s\right)", numpy=np.exp, sympy="exp", exact=False,
        bounds=_within(TINY, math.inf),
        error=lambda x, d: np.exp(x[0]) * np.expm1(d[0]),
    ),
    "log": Operation(
        1, Op.LOG, r"\log\left(%s\right)", numpy=np.log, sympy="log", exact=False, least=TINY,
        error=lambda x, d: np.where(d[0] < x[0], d[0] / (x[0] - d[0]), math.inf),
    ),
    "abs": Operation(
        1, Op.ABS, r"\left|%s\right|", numpy=np.abs, sympy="Abs", exact=True,
        bounds=lambda x: (max(x[0], -x[1], 0), max(x[1], -x[0])),
    ),
    "sign": Function(1, sign, r"\operatorname{sign}\left(%s\right)"),
    "maximum": Operation(
        2, Op.MAXIMUM, r"\max\left(%s, %s\right)", numpy=_maximum, sympy="Max", exact=True,
        bounds=lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    ),
    "minimum": Operation(
        2, Op.MINIMUM, r"\min\left(%s, %s\right)", numpy=_minimum, sympy="Min", exact=True,
        bounds=lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    ),
    "clip": Function(3, clip, r"\operatorname{clip}\left(%s, %s, %s\right)"),
    "lerp": Function(3, lerp),
    "tanh": Operation(
        1, Op.TANH, r"\tanh\left(%s\right)", numpy=np.tanh, sympy="tanh", exact=False,
        expansion=expansions.tanh, bounds=_within(-1.0, 1.0),
    ),
    "atan2": Operation(
        2, Op.ATAN2, r"\operatorname{atan2}\left(%s, %s\right)", numpy=np.arctan2, sympy="atan2", exact=False,
        expansion=expansions.atan2, bounds=_within(-math.pi, math.pi),
        error=lambda x, d: np.where(d[0] + d[1] > 0, 2 * (d[0] + d[1]) / np.hypot(x[0], x[1]), 0.0),
    ),
    "floor": Operation(
        1, Op.FLOOR, r"\left\lfloor %s\right\rfloor", numpy=np.floor, sympy="floor", exact=True,
        bounds=_increasing(np.floor), flat=True,
        error=lambda x, d: np.where(np.floor(x[0] - d[0]) < np.floor(x[0] + d[0]), math.inf, 0.0),
    ),
    "round": Function(1, round_half_even, r"\operatorname{round}\left(%s\right)"),
    "isfinite": Function(1, isfinite),
}  # fmt: skip
# Of values per step only, so that no back end's element loop has them.
STEP_FUNCTIONS: dict[str, Function] = {
    "cos": Operation(
        1, Op.COS, r"\cos\left(%s\right)", numpy=np.cos, sympy="cos", exact=False, bounds=_within(-1.0, 1.0)
    ),
}
REDUCTION_FUNCTIONS: dict[str, Function] = {
    "sum": Function(1, total),
    "mean": Function(1, mean),
    "norm": Function(1, norm),
    "rms": Function(1, rms),
    "amax": Function(1, amax),
    "dot": Function(2, dot),
}
# All of them, as they are at the time of the look-up.
FUNCTIONS = ChainMap(ELEMENT_FUNCTIONS, STEP_FUNCTIONS, REDUCTION_FUNCTIONS)


def operation(op: Op) -> Operation | None:
    """The row of an operation that is a function; None for leaves, operators and reductions."""
    row = ELEMENT_FUNCTIONS.get(op.value) or STEP_FUNCTIONS.get(op.value)
    return row if isinstance(row, Operation) and row.stands_for is op else None


def operations() -> list[Operation]:
    """The rows of all functions that are operations."""
    return [row for row in FUNCTIONS.values() if isinstance(row, Operation)]
