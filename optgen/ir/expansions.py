"""Functions as arithmetic that every back end has, so that all of them round alike.

In: argument nodes. Out: a node. Triton has no built-in for these, and a library call would differ between
back ends. A row of `ir.functions` names one of these, and the pass `expand` puts it in the operation's place.
"""

from __future__ import annotations

import math

from optgen.ir.node import Node, Op, const, node


def _polynomial(z: Node, coefficients: tuple[float, ...]) -> Node:
    """Horner's scheme, highest power first."""
    total = const(coefficients[0])
    for c in coefficients[1:]:
        total = node(Op.ADD, node(Op.MUL, total, z), const(c))
    return total


def mod(x: Node, y: Node) -> Node:
    """x - y*floor(x/y): exact for whole numbers below 2**53."""
    return node(Op.SUB, x, node(Op.MUL, y, node(Op.FLOOR, node(Op.DIV, x, y))))


def tanh(x: Node) -> Node:
    """tanh: a rational function near zero, 1 - 2/(exp(2|x|) + 1) elsewhere; within 2 units in the last place.

    Coefficients: S. Moshier, Cephes Mathematical Library, tanh.c (relative error 4e-17 below 0.625).
    """
    z = node(Op.MUL, x, x)
    over = _polynomial(z, (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3))
    under = _polynomial(
        z, (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)
    )
    near = node(Op.ADD, x, node(Op.MUL, node(Op.MUL, x, z), node(Op.DIV, over, under)))
    size = node(Op.ABS, x)
    raised = node(Op.EXP, node(Op.MUL, const(2), size))
    tail = node(Op.SUB, const(1), node(Op.DIV, const(2), node(Op.ADD, raised, const(1))))
    far = node(Op.WHERE, node(Op.LT, x, const(0)), node(Op.NEG, tail), tail)
    return node(Op.WHERE, node(Op.LT, size, const(0.625)), near, far)


def _atan(x: Node) -> Node:
    """arctan of a non-negative number. Coefficients: Cephes Mathematical Library, atan.c."""
    large = node(Op.LT, const(2.41421356237309504880), x)  # tan(3 pi/8)
    middle = node(Op.LT, const(0.66), x)
    turned = node(Op.DIV, const(-1), x)
    halved = node(Op.DIV, node(Op.SUB, x, const(1)), node(Op.ADD, x, const(1)))
    reduced = node(Op.WHERE, large, turned, node(Op.WHERE, middle, halved, x))
    offset = node(Op.WHERE, large, const(math.pi / 2), node(Op.WHERE, middle, const(math.pi / 4), const(0)))
    z = node(Op.MUL, reduced, reduced)
    over = _polynomial(
        z,
        (
            -8.750608600031904122785e-1,
            -1.615753718733365076637e1,
            -7.500855792314704667340e1,
            -1.228866684490136173410e2,
            -6.485021904942025371773e1,
        ),
    )
    under = _polynomial(
        z,
        (
            1.0,
            2.485846490142306297962e1,
            1.650270098316988542046e2,
            4.328810604912902668951e2,
            4.853903996359136964868e2,
            1.945506571482613964425e2,
        ),
    )
    series = node(Op.MUL, z, node(Op.DIV, over, under))
    return node(Op.ADD, offset, node(Op.ADD, node(Op.MUL, reduced, series), reduced))


def atan2(y: Node, x: Node) -> Node:
    """The angle of the point (x, y), in (-pi, pi]; 0 at the origin; at most 2 units in the last place.

    A zero's sign does not count.
    """
    angle = _atan(node(Op.DIV, node(Op.ABS, y), node(Op.ABS, x)))
    both_infinite = node(
        Op.AND,
        node(Op.EQ, node(Op.ABS, y), const(math.inf)),
        node(Op.EQ, node(Op.ABS, x), const(math.inf)),
    )
    angle = node(Op.WHERE, both_infinite, const(math.pi / 4), angle)
    origin = node(Op.AND, node(Op.EQ, y, const(0)), node(Op.EQ, x, const(0)))
    angle = node(Op.WHERE, origin, const(0), angle)
    angle = node(Op.WHERE, node(Op.LT, x, const(0)), node(Op.SUB, const(math.pi), angle), angle)
    return node(Op.WHERE, node(Op.LT, y, const(0)), node(Op.NEG, angle), angle)


def power(x: Node, y: Node) -> Node:
    """x**y as exp(y*log|x|); a negative base needs a whole exponent, and a zero's sign does not count.

    An error of log is multiplied by y*log(x): 3 units in the last place of float32 for a fractional y and
    an x from 0.1 to 10, 40 for 10 there, and 150 (1e-5) at the ends of the range.
    """
    size = node(Op.EXP, node(Op.MUL, y, node(Op.LOG, node(Op.ABS, x))))
    whole = node(Op.EQ, node(Op.FLOOR, y), y)
    half = node(Op.MUL, y, const(0.5))
    odd = node(Op.AND, whole, node(Op.NOT, node(Op.EQ, node(Op.FLOOR, half), half)))
    signed = node(Op.WHERE, odd, node(Op.NEG, size), size)
    negative = node(Op.WHERE, whole, signed, const(math.nan))
    result = node(Op.WHERE, node(Op.LT, x, const(0)), negative, size)
    one = node(Op.OR, node(Op.EQ, y, const(0)), node(Op.EQ, x, const(1)))
    return node(Op.WHERE, one, const(1), result)
