"""Rules as mathematics: whether two are the same, STEP scalars made shorter, derivatives, LaTeX.

In: programs from `syntax`. Out: an `Equality`, a `Node`, a text. The only module that imports sympy.

Here numbers are real and a constant is the decimal that was written, so nothing that this module finds
may replace what a kernel computes: sympy reorders float arithmetic and folds `0*x` and `x/x`.

A program shares its nodes, and written out as a formula it can be exponentially long. So no step below
recurses over nodes or hands sympy a whole program; it sees the few operations that two nodes differ in.
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
from optgen.ir import (
    COMPARISONS,
    LEAVES,
    REDUCTIONS,
    DType,
    Extent,
    Fact,
    Node,
    Op,
    Program,
    Value,
    const,
    load,
    node,
    rebuild,
    rewrite,
    toposort,
)
from optgen.semantics import constant, evaluate

CHOICES = COMPARISONS | {Op.AND, Op.OR, Op.NOT, Op.WHERE, Op.CHOOSE, Op.MAXIMUM, Op.MINIMUM}
MODULUS = {Op.MOD: lambda x, y: x - y * sp.floor(x / y)}
REAL = {  # operations that read the same for sympy's expressions and mpmath's numbers
    Op.ADD: operator.add,
    Op.SUB: operator.sub,
    Op.MUL: operator.mul,
    Op.DIV: operator.truediv,
    Op.POW: operator.pow,
    Op.NEG: operator.neg,
    Op.ABS: abs,
}
NAMED = {
    Op.SQRT: "sqrt", Op.EXP: "exp", Op.LOG: "log", Op.TANH: "tanh", Op.ATAN2: "atan2", Op.FLOOR: "floor",
}  # fmt: skip
EXACT: dict[Op, Callable[..., Any]] = {
    **REAL,
    **{op: getattr(sp, name) for op, name in NAMED.items()},
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


class Undecided(RuntimeError):
    """Neither a proof nor a counterexample was found."""


@dataclass(frozen=True)
class Equality:
    """The answer of `equal`, true or false like a bool.

    `reason` says how it was found. A refutation has a `counterexample`: the `inputs` of one step by
    name, the `target` that differs, its two `values`, and `start`, the state's first values' step count.
    """

    equal: bool
    reason: str
    counterexample: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return self.equal
