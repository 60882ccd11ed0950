"""Storage formats as IR: decode a stored tensor's raw bits to working precision, and encode them back.

A codec is written once, here; every back end runs it. Rounding to 16 bits is explicit integer
arithmetic, to nearest with ties to even, because back ends' own conversions differ (Triton's
interpreter truncates float32 to bfloat16). A NaN becomes the one quiet NaN 0x7fc0, or 0x7e00 in float16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optgen.ir.extent import Extent
from optgen.ir.node import DType, Node, Op, const, load, node


@dataclass(frozen=True)
class Codec:
    """A storage format: dtype of the raw bits, bytes per element, and expressions to decode and encode."""

    name: str
    bytes: int
    raw: DType
    decode: Callable[[Node], Node]
    encode: Callable[[Node], Node]

    def load(self, store: str, extent: Extent = Extent.ELEMENT) -> Node:
        """The decoded value of an element store."""
        return self.decode(load(store, self.raw, extent))

    def lossless(self, real: str) -> bool:
        """Whether encoding a value of working precision `real` (`fp32` or `fp64`) keeps every bit."""
        return self.name == real


def _bits(value: int) -> Node:
    return const(value, DType.U32)


def _u32(op: Op, a: Node, b: Node | int) -> Node:
    return node(op, a, _bits(b) if isinstance(b, int) else b)


def _widen(x: Node) -> Node:
    return node(Op.CAST, x, dtype=DType.REAL)


def _narrow(x: Node) -> Node:
    return node(Op.CAST, x, dtype=DType.F32)


def decode_bf16(bits: Node) -> Node:
    """Decode bfloat16: the upper half of a float32."""
    return _widen(node(Op.FLOAT, _u32(Op.SHL, bits, 16)))


def encode_bf16(x: Node) -> Node:
    """Encode bfloat16, rounding to nearest even: add 0x7fff plus the lowest kept bit, then shift."""
    bits = node(Op.BITS, _narrow(x))
    odd = _u32(Op.AND, _u32(Op.SHR, bits, 16), 1)
    rounded = _u32(Op.SHR, _u32(Op.ADD, _u32(Op.ADD, bits, 0x7FFF), odd), 16)
    nan = _u32(Op.LT, _bits(0x7F800000), _u32(Op.AND, bits, 0x7FFFFFFF))
    return node(Op.WHERE, nan, _bits(0x7FC0), rounded)


def decode_fp16(bits: Node) -> Node:
    """Decode float16: shift exponent and mantissa into place, scale by 2**112; exact, also subnormals."""
    size = _u32(Op.AND, bits, 0x7FFF)
    shifted = _u32(Op.SHL, size, 13)
    scaled = node(Op.BITS, node(Op.MUL, node(Op.FLOAT, shifted), const(2.0**112, DType.F32)))
    special = _u32(Op.LT, _bits(0x7BFF), size)  # Inf or NaN
    value = node(Op.WHERE, special, _u32(Op.OR, shifted, 0x7F800000), scaled)
    sign = _u32(Op.SHL, _u32(Op.AND, bits, 0x8000), 16)
    return _widen(node(Op.FLOAT, _u32(Op.OR, value, sign)))


def encode_fp16(x: Node) -> Node:
    """Encode float16, rounding to nearest even; below 2**-14 (subnormal) adding 0.5 rounds."""
    bits = node(Op.BITS, _narrow(x))
    sign = _u32(Op.AND, _u32(Op.SHR, bits, 16), 0x8000)
    size = _u32(Op.AND, bits, 0x7FFFFFFF)
    odd = _u32(Op.AND, _u32(Op.SHR, size, 13), 1)
    # From float32's exponent bias 127 to float16's 15, modulo 2**32, plus just under half a unit to round.
    rebiased = _u32(Op.ADD, size, (0x100000000 - (112 << 23)) + 0xFFF)
    normal = _u32(Op.SHR, _u32(Op.ADD, rebiased, odd), 13)
    half = 126 << 23  # 0.5: its last mantissa bit is worth 2**-24, the smallest float16
    lifted = node(Op.BITS, node(Op.ADD, node(Op.FLOAT, size), const(0.5, DType.F32)))
    subnormal = _u32(Op.SUB, lifted, half)
    small = _u32(Op.LT, size, 113 << 23)
    # From 2**16 on, Inf; 65520 to 2**16 carries into the exponent by rounding and so becomes Inf too.
    large = _u32(Op.LE, _bits(143 << 23), size)
    nan = _u32(Op.LT, _bits(0x7F800000), size)
    value = node(Op.WHERE, large, _bits(0x7C00), node(Op.WHERE, small, subnormal, normal))
    return node(Op.WHERE, nan, _bits(0x7E00), _u32(Op.OR, value, sign))


CODECS = {
    "fp64": Codec("fp64", 8, DType.REAL, lambda x: x, lambda x: x),
    "fp32": Codec("fp32", 4, DType.F32, _widen, _narrow),
    "bf16": Codec("bf16", 2, DType.U32, decode_bf16, encode_bf16),
    "fp16": Codec("fp16", 2, DType.U32, decode_fp16, encode_fp16),
}


def working(codecs: list[str]) -> str:
    """The working precision for a set of codecs: `fp64` if any of them stores float64, else `fp32`."""
    return "fp64" if "fp64" in codecs else "fp32"


DTYPES = ("fp32", "fp64", "bf16", "fp16")
