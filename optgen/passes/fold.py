"""Constant folding, and what arithmetic with a constant leaves as it is."""

from __future__ import annotations

from optgen.ir.extent import Extent, join
from optgen.ir.node import LEAVES, Node, Op, const
from optgen.ir.program import Program
from optgen.ir.semantics import constant


def fold(program: Program) -> Program:
    """Compute what is constant, in float64, and drop operations that change no value."""

    def simplify(n: Node) -> Node | None:
        if n.op in LEAVES:
            return None
        if n.extent is Extent.CONST:
            value = constant(n)
            return None if value is None else const(float(value), n.dtype)
        plain = without(n)
        # A value per step is not yet rounded to working precision: nothing faster may become one.
        return plain if plain is None or join(plain.extent, Extent.STEP) is n.extent else None

    return program.map(simplify)


def without(n: Node) -> Node | None:
    """The argument that an operation gives back as it is, if it does that."""
    one, zero = const(1), const(0)
    match n.op, n.args:
        case ((Op.MUL | Op.DIV), (a, b)) if b is one:
            return a
        case Op.MUL, (a, b) if a is one:
            return b
        case Op.SUB, (a, b) if b is zero:
            return a
        case Op.NEG, (a,) if a.op is Op.NEG:
            return a.args[0]
        case Op.WHERE, (_, a, b) if a is b:
            return a
        case Op.WHERE, (c, a, b) if c.op is Op.CONST:
            return a if c.number else b
    return None
