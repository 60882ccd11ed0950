"""Random numbers as IR: Philox4x32-10, and uniform and normal numbers of its bits.

In: which random number of the rule it is. Out: nodes, made of operations that every back end has to the bit.
The counter is (element, parameter, step), the key the seed, so a number depends on nothing else: not on the
back end, the launch or what was drawn before. Philox: Salmon et al., SC 2011.
"""

from __future__ import annotations

from optgen.ir.node import DType, Node, Op, const, node

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
DRAW_SHIFT = 16  # a tensor has fewer than 2**48 elements, so the counter has room for which call it is
# M. Giles, Approximating the erfinv function, GPU Computing Gems 2, 2012: single precision.
CENTRE = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)
# S. Moshier, Cephes Mathematical Library, logf.c: log(1 + x) for x from sqrt(1/2) - 1 to sqrt(2) - 1.
LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def _u32(value: int) -> Node:
    return const(value, DType.U32)


def philox(counter: tuple[Node, Node, Node, Node], key: tuple[Node, Node]) -> tuple[Node, Node, Node, Node]:
    """Four words of 32 random bits."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for round in range(ROUNDS):
        if round:
            k0, k1 = node(Op.ADD, k0, _u32(WEYL[0])), node(Op.ADD, k1, _u32(WEYL[1]))
        high0, low0 = (node(op, x0, _u32(MULTIPLIERS[0])) for op in (Op.MULHI, Op.MUL))
        high1, low1 = (node(op, x2, _u32(MULTIPLIERS[1])) for op in (Op.MULHI, Op.MUL))
        x0 = node(Op.XOR, node(Op.XOR, high1, x1), k0)
        x2 = node(Op.XOR, node(Op.XOR, high0, x3), k1)
        x1, x3 = low1, low0
    return x0, x1, x2, x3


def bits(draw: int) -> Node:
    """32 random bits for each element."""
    high = node(Op.INDEX, value="high")
    if draw:
        high = node(Op.ADD, high, _u32(draw << DRAW_SHIFT))
    param, step = node(Op.KEY, value="param"), node(Op.KEY, value="step")
    key = node(Op.KEY, value="seed_low"), node(Op.KEY, value="seed_high")
    return philox((node(Op.INDEX, value="low"), high, param, step), key)[0]


def _real(x: Node) -> Node:
    return node(Op.CAST, x, dtype=DType.REAL)


def uniform(draw: int) -> Node:
    """A number from 0 up to but not including 1, a multiple of 2**-24."""
    whole = _real(node(Op.SHR, bits(draw), _u32(8)))
    return node(Op.MUL, whole, const(2.0**-24))


def _horner(x: Node, coefficients: tuple[float, ...]) -> Node:
    total = const(coefficients[0])
    for c in coefficients[1:]:
        total = node(Op.ADD, node(Op.MUL, total, x), const(c))
    return total


def _log(x: Node) -> Node:
    """The natural logarithm of a normal float32, to about 1e-7, from its bits: no library's differs."""
    word = node(Op.BITS, node(Op.CAST, x, dtype=DType.F32))
    # To a mantissa from sqrt(1/2) to sqrt(2): the exponent of x/sqrt(1/2).
    shifted = node(Op.SHR, node(Op.ADD, word, _u32(0x3F800000 - 0x3F3504F3)), _u32(23))
    exponent = node(Op.SUB, _real(shifted), const(127))
    scaled = node(Op.ADD, node(Op.SUB, word, node(Op.SHL, shifted, _u32(23))), _u32(0x3F800000))
    rest = node(Op.SUB, _real(node(Op.FLOAT, scaled)), const(1))
    square = node(Op.MUL, rest, rest)
    series = node(Op.MUL, node(Op.MUL, rest, square), _horner(rest, LOG))
    series = node(Op.ADD, rest, node(Op.SUB, series, node(Op.MUL, const(0.5), square)))
    return node(Op.ADD, series, node(Op.MUL, exponent, const(0.6931471805599453)))


def normal(draw: int) -> Node:
    """A number of mean 0 and variance 1: sqrt(2) erfinv(x) of a uniform x between -1 and 1.

    x is an odd multiple of 2**-24, so the largest magnitude is 5.42.
    """
    whole = _real(node(Op.SHR, bits(draw), _u32(8)))
    x = node(Op.SUB, node(Op.MUL, whole, const(2.0**-23)), const(1 - 2.0**-24))
    w = node(Op.NEG, _log(node(Op.MUL, node(Op.SUB, const(1), x), node(Op.ADD, const(1), x))))
    near = _horner(node(Op.SUB, w, const(2.5)), CENTRE)
    far = _horner(node(Op.SUB, node(Op.SQRT, w), const(3)), TAIL)
    scale = node(Op.WHERE, node(Op.LT, w, const(5)), near, far)
    return node(Op.MUL, node(Op.MUL, scale, x), const(2.0**0.5))
