"""Intrinsics that compiled code calls: one or two LLVM instructions, branch-free so that loops vectorise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

Build = Callable[..., Any]


def _instruction(result: Any, arguments: tuple[Any, ...], build: Build) -> tuple[Any, Build]:
    """An intrinsic's type, and its code generator from an LLVM builder and argument values."""
    return result(*arguments), lambda context, builder, signature, values: build(builder, *values)


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """Cast an integer address to a pointer that `numba.carray` takes."""
    return _instruction(types.voidptr, (address,), lambda builder, x: builder.inttoptr(x, cgutils.voidptr_t))


def _call(arguments: int) -> tuple[Any, Build]:
    """Call a C function of this many int64 arguments by its address."""
    word = ir.IntType(64)
    kind = ir.FunctionType(word, arguments * [word]).as_pointer()
    return _instruction(
        types.int64, (1 + arguments) * (types.int64,), lambda b, f, *xs: b.call(b.inttoptr(f, kind), xs)
    )


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """Prefetch a cache line; an invalid address does no harm."""

    def build(builder: Any, x: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), (cgutils.voidptr_t, number, number, number))
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", (cgutils.voidptr_t,), kind)
        place = builder.inttoptr(x, cgutils.voidptr_t)
        builder.call(prefetch, (place, number(0), number(3), number(1)))  # to read, for long, as data
        return ir.Constant(ir.IntType(64), 0)

    return _instruction(types.int64, (types.int64,), build)


@intrinsic
def count_up(typing: Any, address: Any) -> Any:
    """Atomically add 1 to the uint32 at an address."""

    def build(builder: Any, x: Any) -> Any:
        number = ir.IntType(32)
        builder.atomic_rmw("add", builder.inttoptr(x, number.as_pointer()), number(1), "monotonic")
        return ir.Constant(ir.IntType(64), 0)

    return _instruction(types.int64, (types.int64,), build)


@intrinsic
def widest(typing: Any) -> Any:
    """Compile the calling function to 512-bit vectors, if the processor has them.

    By itself LLVM takes 256 bits on Intel's. With 512 a step takes 0.97 of the time, and a bfloat16 one 0.86.
    llvmlite accepts only attributes on a list of its own, and this one is not on it: hence `set.add`.
    """

    def build(builder: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return ir.Constant(ir.IntType(64), 0)

    return _instruction(types.int64, (), build)


@intrinsic
def ask(typing: Any, function: Any) -> Any:
    """Call a C function without arguments that returns an int, by its address."""
    kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
    return _instruction(
        types.int64, (types.int64,), lambda b, f: b.sext(b.call(b.inttoptr(f, kind), []), ir.IntType(64))
    )


@intrinsic
def call1(typing: Any, function: Any, a: Any) -> Any:
    """Call a C function of one argument by its address, all int64."""
    return _call(1)


@intrinsic
def call2(typing: Any, function: Any, a: Any, b: Any) -> Any:
    """Call a C function of two arguments by its address, all int64."""
    return _call(2)


@intrinsic
def call3(typing: Any, function: Any, a: Any, b: Any, c: Any) -> Any:
    """Call a C function of three arguments by its address, all int64."""
    return _call(3)


@intrinsic
def call4(typing: Any, function: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Call a C function of four arguments by its address, all int64."""
    return _call(4)


@intrinsic
def bits_of(typing: Any, x: Any) -> Any:
    """Reinterpret a float32 as uint32."""
    return _instruction(types.uint32, (types.float32,), lambda builder, x: builder.bitcast(x, ir.IntType(32)))


@intrinsic
def float_of(typing: Any, x: Any) -> Any:
    """Reinterpret a uint32 as float32."""
    return _instruction(types.float32, (types.uint32,), lambda builder, x: builder.bitcast(x, ir.FloatType()))


@intrinsic
def where(typing: Any, condition: Any, a: Any, b: Any) -> Any:
    """Select a or b by a condition, without a branch."""
    return _instruction(a, (types.boolean, a, a), lambda builder, c, x, y: builder.select(c, x, y))


def _extreme(sign: str) -> Build:
    """Code generator of `maximum` or `minimum`, which propagate a NaN in either operand."""

    def build(builder: Any, x: Any, y: Any) -> Any:
        beyond = builder.fcmp_ordered(sign, x, y)
        return builder.select(builder.or_(beyond, builder.fcmp_unordered("uno", x, x)), x, y)

    return build


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two floats, NaN if either is; of two equal zeros, b."""
    return _instruction(a, (a, a), _extreme(">"))


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """The smaller of two floats, NaN if either is; of two equal zeros, b."""
    return _instruction(a, (a, a), _extreme("<"))
