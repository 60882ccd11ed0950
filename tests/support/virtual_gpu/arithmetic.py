"""What PTX instructions compute, in NumPy: values are unsigned integers of a register's width, or bool.

In: an instruction's name in parts. Out: a function of its source operands. Approximate instructions
(`ex2.approx`, `rcp.approx`) are taken as exact; NaN is the one that hardware makes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Compute = Callable[..., Array]
UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT: dict[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}
NAN = {32: 0x7FFFFFFF, 64: 0x7FFFFFFFFFFFFFFF, 16: 0x7FFF}
ROUNDED = {"rmi": np.floor, "rni": np.rint, "rzi": np.trunc, "rpi": np.ceil}


class NoSemantics(Exception):
    """An instruction that the simulation does not know."""


@cache
def bits_of(kind: str) -> int:
    """The width of a type such as `f32`, `b64` or `pred`."""
    return 1 if kind == "pred" else int(re.sub(r"\D", "", kind))


def seen_as(kind: str, values: Array) -> Array:
    """Bits as the numbers that a type has them be."""
    bits = bits_of(kind)
    table = {"f": FLOAT, "s": SIGNED}.get(kind[0], UNSIGNED)
    return np.asarray(values, UNSIGNED[bits]).view(table[bits])


def as_bits(values: Any, bits: int) -> Array:
    """Numbers as bits; every NaN is the same."""
    values = np.asarray(values)
    found = values.view(UNSIGNED[bits])
    if values.dtype.kind == "f":
        found = np.where(np.isnan(values), UNSIGNED[bits](NAN[bits]), found)
    return found


def flushed(values: Array) -> Array:
    """float32 with subnormal numbers replaced by zeros of their sign."""
    bits = values.view(np.uint32)
    return np.where(bits & 0x7F800000 == 0, bits & np.uint32(0x80000000), bits).view(np.float32)


def _fma(a: Array, b: Array, c: Array) -> Array:
    wide = np.longdouble if a.dtype == np.float64 else np.float64
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(a.dtype)


def _wide(function: Callable[[Array], Any]) -> Callable[[Array], Array]:
    return lambda x: np.asarray(function(x.astype(np.float64)), np.float64).astype(x.dtype)


FLOATING: dict[str, Any] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "sqrt": np.sqrt, "fma": _fma, "min": np.fmin, "max": np.fmax,
    "ex2": _wide(np.exp2), "lg2": _wide(np.log2), "sin": _wide(np.sin), "cos": _wide(np.cos),
    "rcp": _wide(lambda x: 1 / x), "rsqrt": _wide(lambda x: 1 / np.sqrt(x)),
}  # fmt: skip


def _divided(x: Array, y: Array) -> Array:
    """Integer division towards zero."""
    if (y == 0).any():
        raise NoSemantics("integer division by zero")
    if x.dtype.kind == "u":
        return x // y
    unsigned = UNSIGNED[8 * x.itemsize]  # which the least number's size needs
    quotient = (np.abs(x).astype(unsigned) // np.abs(y).astype(unsigned)).astype(x.dtype)
    return np.where((x < 0) != (y < 0), -quotient, quotient)


INTEGER: dict[str, Any] = {
    "add": operator.add, "sub": operator.sub, "and": operator.and_, "or": operator.or_,
    "xor": operator.xor, "not": operator.invert, "neg": operator.neg, "abs": np.abs,
    "min": np.minimum, "max": np.maximum, "div": _divided, "rem": lambda x, y: x - _divided(x, y) * y,
}  # fmt: skip
COMPARED: dict[str, Any] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge, "lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge,
}  # fmt: skip


def floating(parts: tuple[str, ...]) -> Compute:
    """Arithmetic of floating-point numbers."""
    name, kind = parts[0], parts[-1]
    bits = bits_of(kind)
    sign = UNSIGNED[bits](1 << (bits - 1))
    flush = flushed if "ftz" in parts and bits == 32 else lambda x: x
    if name in ("neg", "abs"):
        how = operator.xor if name == "neg" else lambda x, y: x & ~y
        return lambda x: how(flush(seen_as(kind, x)).view(UNSIGNED[bits]), sign)
    function = FLOATING[name]
    if "NaN" in parts:
        function = {"min": np.minimum, "max": np.maximum}[name]

    def compute(*operands: Array) -> Array:
        found = function(*(flush(seen_as(kind, x)) for x in operands))
        return as_bits(flush(np.asarray(found, FLOAT[bits])), bits)

    return compute


def integer(parts: tuple[str, ...]) -> Compute:
    """Arithmetic of integers, of one width."""
    name, kind = parts[0], parts[-1]
    bits = bits_of(kind)
    if name in ("shl", "shr"):
        return _shift(name, kind, bits)
    if name == "mul" and parts[1] == "hi":
        return _high(kind, bits)
    function = operator.mul if name == "mul" else INTEGER[name]
    return lambda *operands: as_bits(
        np.asarray(function(*(seen_as(kind, x) for x in operands)), seen_as(kind, np.zeros(0)).dtype), bits
    )


def _shift(name: str, kind: str, bits: int) -> Compute:
    def compute(x: Array, by: Array) -> Array:
        values, far = seen_as(kind, x), np.asarray(by, np.uint64)
        by = np.minimum(far, np.uint64(bits - 1)).astype(values.dtype)
        if name == "shr":
            found = values >> by
            return as_bits(
                found if kind[0] == "s" else np.where(far >= bits, found.dtype.type(0), found), bits
            )
        found = values << by
        return as_bits(np.where(far >= bits, found.dtype.type(0), found), bits)

    return compute


def _high(kind: str, bits: int) -> Compute:
    """The upper half of a product."""
    if bits == 32:
        wide = SIGNED[64] if kind[0] == "s" else UNSIGNED[64]
        return lambda x, y: (
            seen_as(kind, x).astype(wide) * seen_as(kind, y).astype(wide) >> wide(32)
        ).astype(np.uint32)
    whole = np.frompyfunc(lambda a, b: (int(a) * int(b) >> 64) & (1 << 64) - 1, 2, 1)
    return lambda x, y: np.asarray(whole(seen_as(kind, x), seen_as(kind, y))).astype(np.uint64)


def widened(parts: tuple[str, ...]) -> Compute:
    """A product of twice the width, to which `mad` adds; `mad.lo` adds to the lower half."""
    kind = parts[-1]
    bits = bits_of(kind)
    if parts[1] == "lo":
        return lambda x, y, z: np.asarray(
            np.asarray(x, UNSIGNED[bits]) * np.asarray(y, UNSIGNED[bits]) + np.asarray(z, UNSIGNED[bits])
        )
    table = SIGNED if kind[0] == "s" else UNSIGNED

    def compute(x: Array, y: Array, *z: Array) -> Array:
        found = seen_as(kind, x).astype(table[2 * bits]) * seen_as(kind, y).astype(table[2 * bits])
        found = found.view(UNSIGNED[2 * bits])
        return found + np.asarray(z[0], UNSIGNED[2 * bits]) if z else found

    return compute


def compared(parts: tuple[str, ...]) -> Compute:
    """`setp`: a comparison; one that ends in `u` holds for NaN too."""
    how, kind = parts[1], parts[-1]
    flush = flushed if "ftz" in parts else lambda x: x

    def compute(x: Array, y: Array) -> Array:
        a, b = flush(seen_as(kind, x)), flush(seen_as(kind, y))
        unordered = (a != a) | (b != b)
        if how in ("nan", "num"):
            return unordered if how == "nan" else ~unordered
        if how in COMPARED:
            return COMPARED[how](a, b) & ~unordered
        return COMPARED[how[:-1]](a, b) | unordered

    return compute


def converted(parts: tuple[str, ...]) -> Compute:
    """`cvt`: from one type to another, rounded to an integer where it says so."""
    to, given = parts[-2:]
    bits = bits_of(to)
    rounding = next((ROUNDED[p] for p in parts if p in ROUNDED), None)

    def compute(x: Array) -> Array:
        values = seen_as(given, np.asarray(x).astype(UNSIGNED[bits_of(given)]))
        if given[0] != "f":
            return as_bits(values.astype(FLOAT[bits]), bits) if to[0] == "f" else _resized(values, bits)
        values = values if rounding is None else rounding(values)
        if to[0] == "f":
            return as_bits(values.astype(FLOAT[bits]), bits)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if to[0] == "s" else (0, 2**bits - 1)
        whole = [0 if v != v else min(max(int(np.clip(v, -1e300, 1e300)), low), high) for v in values.ravel()]
        return np.array([v & 2**bits - 1 for v in whole], UNSIGNED[bits]).reshape(values.shape)

    return compute


def _resized(values: Array, bits: int) -> Array:
    return values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).astype(UNSIGNED[bits])


def extracted(parts: tuple[str, ...]) -> Compute:
    """`bfe`: some bits from a place on; of signed numbers the last of them goes on above."""
    kind = UNSIGNED[bits_of(parts[-1])]
    one, signed = kind(1), parts[-1][0] == "s"

    def compute(x: Array, at: Array, count: Array) -> Array:
        mask = (one << count.astype(kind)) - one
        found = (np.asarray(x, kind) >> at.astype(kind)) & mask
        last = (mask + one) >> one
        return np.asarray(np.where(signed & ((found & last) != 0), found | ~mask, found), kind)

    return compute


def permuted(parts: tuple[str, ...]) -> Compute:
    """`prmt`: four of the bytes of two registers, as a selector says; bit 3 of each repeats the sign."""

    def compute(x: Array, y: Array, how: Array) -> Array:
        both = np.asarray(x, np.uint64) | np.asarray(y, np.uint64) << np.uint64(32)
        found = np.zeros(np.broadcast(both, how).shape, np.uint64)
        for k in range(4):
            choice = (np.asarray(how, np.uint64) >> np.uint64(4 * k)) & np.uint64(15)
            byte = (both >> (choice & np.uint64(7)) * np.uint64(8)) & np.uint64(255)
            byte = np.where(choice & np.uint64(8), np.where(byte >> np.uint64(7), 255, 0), byte)
            found |= byte.astype(np.uint64) << np.uint64(8 * k)
        return found.astype(np.uint32)

    return compute


def funnelled(parts: tuple[str, ...]) -> Compute:
    """`shf`: the shift of two registers as one."""

    def compute(low: Array, high: Array, by: Array) -> Array:
        both = np.asarray(low, np.uint64) | np.asarray(high, np.uint64) << np.uint64(32)
        by = np.asarray(by, np.uint64)
        by = by & np.uint64(31) if "wrap" in parts else np.minimum(by, np.uint64(32))
        return (both >> by if parts[1] == "r" else both << by >> np.uint64(32)).astype(np.uint32)

    return compute


def logical(parts: tuple[str, ...]) -> Compute:
    """Operations of predicates."""
    return INTEGER[parts[0]]


def computation(parts: tuple[str, ...]) -> tuple[Compute, list[int]]:
    """What an instruction computes, and the widths of its source operands, the last for all further ones."""
    name, kind = parts[0], parts[-1]
    bits = bits_of(kind)
    if kind == "pred" and name in INTEGER:
        return logical(parts), [1]
    match name:
        case "selp":
            return (lambda x, y, p: np.where(p, x, y)), [bits, bits, 1]
        case "setp":
            return compared(parts), [bits]
        case "cvt":
            return converted(parts), [bits]
        case "bfe":
            return extracted(parts), [bits, 32]
        case "prmt":
            return permuted(parts), [32]
        case "shf":
            return funnelled(parts), [32]
        case "shl" | "shr":
            return integer(parts), [bits, 32]
        case "mul" | "mad" if parts[1] == "wide" or name == "mad":
            return widened(parts), [bits, bits, bits if parts[1] == "lo" else 2 * bits]
    if kind[0] == "f" and (name in FLOATING or name in ("neg", "abs")):
        return floating(parts), [bits]
    if kind[0] != "f" and (name in INTEGER or name == "mul"):
        return integer(parts), [bits]
    raise NoSemantics(f"no semantics for {'.'.join(parts)}")
