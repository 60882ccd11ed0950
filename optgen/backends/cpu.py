"""A plan as a Numba function over chunks: parallel, in place, without temporaries.

In: a layout. Out: the source of a module (`emit`), and a `Kernel` that runs it (`CpuKernel`). A phase is
`update<k>`, the arithmetic of one element, and `sweep<k>`, which applies it to a range of chunks. Sums add
into 16 float64 lanes, whole rows of lanes first, so that the compiler vectorises them and the order is
fixed: LAMB's first phase takes 0.9 ns an element in cache, and 3.6 with one loop that is bounded by what
is left.

Threads are Python's, each in a call that holds no lock of the interpreter. A parallel Numba function
would take 1.0 to 1.4 s to compile for each phase, besides 0.6 s for the phase itself, would abort the
process where two threads enter it (workqueue), and waits for all of its threads at once: on two cores of
which one was busy, a million elements took 14 ms that way and 1.4 ms this way.

IEEE semantics need nothing special here: LLVM contracts no multiplication with an addition unless asked.
`math="fast"` asks for that, and for reciprocals in place of divisions. It costs one or two units in the
last place of the largest term of each sum: after a step of any shipped rule max|a - b| / max|b| was at most
1.7e-7 in float32 and 2.2e-16 in float64. In float32 memory bounds a step either way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from optgen.backends import MAX_DIMS, Layout, Tables
from optgen.backends.emit import (
    Names,
    Spell,
    bracket,
    header,
    indent,
    leaves,
    spell_bitwise,
    spell_infix,
    u32,
    update,
    write,
)
from optgen.codecs import CODECS
from optgen.ir import ATOM, DType, Extent, Node, Op, Spelling
from optgen.plan import Phase

CHUNK = 1 << 14
LANES = 16
TYPES = {"fp64": "f64", "fp32": "f32", "bf16": "u16", "fp16": "u16"}
ARGUMENTS = "tensors, chunks, scalars, partials, slots"
RUNTIME = ("bits_of", "float_of", "maximum", "minimum", "pointer", "where")
GLOBALS = {"math", "np", "carray", "njit", "f32", "f64", "u16", "u32", "inline", "compiled", *RUNTIME}
LOCALS = {
    *ARGUMENTS.split(", "),
    "begin", "end", "c", "tensor", "start", "count", "row", "whole", "first", "lane", "i", "rest", "at",
    *(f"size{d}" for d in range(MAX_DIMS)),
}  # fmt: skip
FORMS = ("{}_at", *(f"{{}}_stride{d}" for d in range(MAX_DIMS)))

# A rule touches more arrays than LLVM's vectoriser is by default willing to check for overlap.
binding.set_option("optgen", "-runtime-memory-check-threshold=128")


def speller(real: str) -> Spell:
    """How Numba source spells each op, in working precision `real` (`fp32` or `fp64`)."""
    kinds = {DType.REAL: TYPES[real], DType.F32: "f32", DType.U32: "u32", DType.BOOL: "bool"}
    calls = {
        Op.ABS: "abs", Op.SQRT: "math.sqrt", Op.EXP: "math.exp", Op.LOG: "math.log", Op.FLOOR: "np.floor",
        Op.WHERE: "where", Op.MAXIMUM: "maximum", Op.MINIMUM: "minimum",
        Op.BITS: "bits_of", Op.FLOAT: "float_of",
    }  # fmt: skip

    def spell(n: Node, args: Sequence[Spelling]) -> Spelling:
        kind = kinds[n.dtype]
        if n.op is Op.CONST:
            return _constant(n, kind), ATOM
        if n.op in calls:
            texts = [text for text, _ in args]
            if n.dtype is DType.U32 and n.op is Op.WHERE:
                texts = [
                    f"u32({text})" if a.op is Op.CONST else text
                    for a, text in zip(n.args, texts, strict=True)
                ]
            return f"{calls[n.op]}({', '.join(texts)})", ATOM
        if n.op is Op.NEG:
            return f"-{bracket(args[0])}", 8
        if n.op is Op.NOT:
            return f"not {bracket(args[0])}", 3
        if n.op is Op.CAST:
            source = kinds[n.args[0].dtype]
            return args[0] if source == kind else (f"{kind}({args[0][0]})", ATOM)
        if n.dtype is DType.U32:  # Numba computes these in 64 bits
            return f"u32({spell_bitwise(n, args)[0]})", ATOM
        if n.op in (Op.AND, Op.OR):
            return spell_bitwise(n, args)
        return spell_infix(n, args)

    return spell


def _constant(n: Node, kind: str) -> str:
    if n.dtype is DType.BOOL:
        return str(bool(n.number))
    if n.dtype is DType.U32:
        return u32(n.number)
    return (
        f"{kind}({n.number!r})"
        if math.isfinite(n.number)
        else f"{kind}(np.{n.number})".replace("np.-", "-np.")
    )


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """The source of a module with `sweep<k>` for every phase, `combine` and `finish`."""
    plan = layout.plan
    fast = ", fastmath={'contract', 'arcp', 'afn'}" if math_mode == "fast" else ""
    names = Names(plan, GLOBALS | LOCALS, FORMS)
    parts = [
        f"""\
{header(layout, math_mode)}
import math

import numpy as np
from numba import carray, njit

from optgen.backends.cpu import {", ".join(RUNTIME)}

f32, f64, u16, u32 = np.float32, np.float64, np.uint16, np.uint32
inline = njit(error_model="numpy", forceinline=True{fast})
compiled = njit(nogil=True, error_model="numpy", cache=True{fast})
"""
    ]
    for k, phase in enumerate(plan.phases):
        parts.append("@inline\n" + update(k, phase, plan, names, speller(plan.real), GLOBALS))
        parts.append(_sweep(layout, k, phase, names))
    if plan.slots:
        parts.append(_combine(layout))
    if plan.finish:
        parts.append(_finish(layout, names))
    return "\n\n".join(parts)


def _read(layout: Layout, names: Names, found: Sequence[Node]) -> list[str]:
    """Lines that read a tensor's scalars, finished reductions and states."""
    plan, columns = layout.plan, layout.columns
    real = TYPES[plan.real]
    lines = []
    if any(n.op is Op.SCALAR for n in found):
        lines.append(f"row = tensors[tensor, {columns['@row']}]")
    for n in found:
        if n.op is Op.SCALAR:
            value = f"scalars[row, {n.value}]" + (" != 0" if n.dtype is DType.BOOL else "")
        elif n.op is Op.SLOT:
            value = f"{real}(slots[tensor, {n.value}])"
        elif n.extent is Extent.TENSOR:
            value = f"carray(pointer(tensors[tensor, {columns[n.value or '']}]), 1, {real})[0]"
        else:
            continue
        lines.append(f"{names.leaf(n)} = {value}")
    return lines


def _sweep(layout: Layout, k: int, phase: Phase, names: Names) -> str:
    """One phase over a range of chunks: addresses, and `update` for every element."""
    plan, columns = layout.plan, layout.columns
    found = leaves(phase.roots(), phase.loads)
    touched = list(dict.fromkeys([*phase.loads, *phase.stores]))
    lines = [
        "tensor, start = chunks[c, 0], chunks[c, 1]",
        f"count = min({CHUNK}, tensors[tensor, {columns['@numel']}] - start)",
        *_read(layout, names, found),
    ]
    for s in touched:
        codec = plan.codecs.get(s, plan.real)
        if layout.dims and s in plan.codecs:
            place, size = f"tensors[tensor, {columns[s]}]", "1 << 62"
        else:
            place, size = f"tensors[tensor, {columns[s]}] + start*{CODECS[codec].bytes}", "count"
        lines.append(f"{names.stores[s]} = carray(pointer({place}), {size}, {TYPES[codec]})")
    for d in range(layout.dims):
        lines.append(f"size{d} = tensors[tensor, {columns[f'@size{d}']}]")
        strided = [s for s in touched if s in plan.codecs]
        lines += [
            f"{names.stores[s]}_stride{d} = tensors[tensor, {columns[f'@stride_{s}{d}']}]" for s in strided
        ]
    lines += [f"sum{r.slot} = np.full({LANES}, {_empty(r.op)})" for r in phase.reductions]
    one = _element(layout, k, phase, names, found, touched)
    if phase.reductions:
        lines += [
            f"whole = count // {LANES}*{LANES}",
            f"for first in range(0, whole, {LANES}):",
            f"    for lane in range({LANES}):",
            *("        " + line for line in ("i = first + lane", *one)),
            "for i in range(whole, count):",
            *("    " + line for line in ("lane = i - whole", *one)),
        ]
        for r in phase.reductions:
            total = "sum" if r.op is Op.SUM else "max"  # of which the second carries a NaN through
            lines.append(f"partials[c, {r.slot}] = sum{r.slot}.{total}()")
    else:
        lines += ["for i in range(count):", *("    " + line for line in one)]
    head = f"@compiled\ndef sweep{k}(begin, end, {ARGUMENTS}):\n    for c in range(begin, end):\n"
    return head + indent(lines, 2)


def _empty(op: Op) -> str:
    return "0.0" if op is Op.SUM else "-np.inf"


def _element(
    layout: Layout, k: int, phase: Phase, names: Names, found: Sequence[Node], touched: Sequence[str]
) -> list[str]:
    """The body of the loop: addresses where there are strides, and the call of `update`."""
    lines = []
    cell = {s: f"{names.stores[s]}[i]" for s in touched}
    if layout.dims:
        strided = [s for s in touched if s in layout.plan.codecs]
        cell |= {s: f"{names.stores[s]}[{names.stores[s]}_at]" for s in strided}
        lines.append("rest = start + i")
        for d in reversed(range(layout.dims)):
            lines += [f"at = rest % size{d}", f"rest = rest // size{d}"] if d else ["at = rest"]
            for s in strided:
                sign = "=" if d == layout.dims - 1 else "+="
                lines.append(f"{names.stores[s]}_at {sign} at*{names.stores[s]}_stride{d}")
    arguments = []
    for n in found:
        value = cell[n.value or ""] if n.extent is Extent.ELEMENT else names.leaf(n)
        arguments.append(f"u32({value})" if n.extent is Extent.ELEMENT and n.dtype is DType.U32 else value)
    results = [cell[s] for s in phase.stores] + [f"r{r.slot}" for r in phase.reductions]
    lines.append(f"{', '.join(results)} = update{k}({', '.join(arguments)})")
    for r in phase.reductions:
        lane = f"sum{r.slot}[lane]"
        more = f"+= r{r.slot}" if r.op is Op.SUM else f"= maximum({lane}, f64(r{r.slot}))"
        lines.append(f"{lane} {more}")
    return lines


def _combine(layout: Layout) -> str:
    columns = layout.columns
    ops = {r.slot: r.op for phase in layout.plan.phases for r in phase.reductions}
    maxima = " or ".join(f"slot == {slot}" for slot, op in ops.items() if op is Op.AMAX)
    step = f"maximum(total, part) if {maxima} else total + part" if maxima else "total + part"
    return f"""\
@compiled
def combine(which, tensors, partials, slots):
    for tensor in range(len(tensors)):
        first = tensors[tensor, {columns["@first"]}]
        count = tensors[tensor, {columns["@count"]}]
        for slot in which:
            total = partials[first, slot]
            for c in range(first + 1, first + count):
                part = partials[c, slot]
                total = {step}
            slots[tensor, slot] = total
"""


def _finish(layout: Layout, names: Names) -> str:
    plan, columns = layout.plan, layout.columns
    roots = list(plan.finish.values())
    body, results = write(roots, plan.names, names, speller(plan.real), names.taken)
    real = TYPES[plan.real]
    lines = [*_read(layout, names, leaves(roots, ())), *body]
    for name, result in zip(plan.finish, results, strict=True):
        lines.append(f"carray(pointer(tensors[tensor, {columns[name]}]), 1, {real})[0] = {result}")
    head = "@compiled\ndef finish(tensors, scalars, slots):\n    for tensor in range(len(tensors)):\n"
    return head + indent(lines, 2)


# What emitted modules call. Each is an instruction or two, without a branch that would stop the vectoriser.

Build = Callable[..., Any]


def _instruction(result: Any, arguments: tuple[Any, ...], build: Build) -> tuple[Any, Build]:
    """What an intrinsic returns: its type, and how to make its code from an LLVM builder and values."""
    return result(*arguments), lambda context, builder, signature, values: build(builder, *values)


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An integer address as a pointer that `numba.carray` takes."""
    return _instruction(types.voidptr, (address,), lambda builder, x: builder.inttoptr(x, cgutils.voidptr_t))


@intrinsic
def bits_of(typing: Any, x: Any) -> Any:
    """The bits of a float32 as uint32."""
    return _instruction(types.uint32, (types.float32,), lambda builder, x: builder.bitcast(x, ir.IntType(32)))


@intrinsic
def float_of(typing: Any, x: Any) -> Any:
    """The float32 that some bits stand for."""
    return _instruction(types.float32, (types.uint32,), lambda builder, x: builder.bitcast(x, ir.FloatType()))


@intrinsic
def where(typing: Any, condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; both are computed."""
    return _instruction(a, (types.boolean, a, a), lambda builder, c, x, y: builder.select(c, x, y))


def _extreme(sign: str) -> Build:
    def build(builder: Any, x: Any, y: Any) -> Any:
        beyond = builder.fcmp_ordered(sign, x, y)
        return builder.select(builder.or_(beyond, builder.fcmp_unordered("uno", x, x)), x, y)

    return build


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two floats, or NaN where there is one."""
    return _instruction(a, (a, a), _extreme(">"))


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """The smaller of two floats, or NaN where there is one."""
    return _instruction(a, (a, a), _extreme("<"))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="optgen")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


class CpuKernel:
    """A module made by `emit`, with as many threads as torch uses."""

    chunk = CHUNK
    numpy_tables = True
    share = 4  # a thread gets no fewer chunks than this: they take about as long as handing them over

    def __init__(self, layout: Layout, module: ModuleType):
        self.layout, self.module = layout, module

    def sweep(self, phase: int, tables: Tables) -> None:
        """Run one phase over every chunk."""
        import torch

        run = getattr(self.module, f"sweep{phase}")
        arguments = (tables.tensors, tables.chunks, tables.scalars, tables.partials, tables.slots)
        count = len(tables.chunks)
        threads = max(1, min(torch.get_num_threads(), count // self.share))
        parts = list(pairwise(count * k // threads for k in range(threads + 1)))
        others = [_pool().submit(run, *part, *arguments) for part in parts[1:]]
        run(*parts[0], *arguments)
        for other in others:
            other.result()

    def combine(self, tables: Tables, slots: Sequence[int]) -> None:
        """Combine the chunks' partial results of these slots, one value a tensor."""
        self.module.combine(np.array(slots), tables.tensors, tables.partials, tables.slots)

    def finish(self, tables: Tables) -> None:
        """Write the new tensor states."""
        self.module.finish(tables.tensors, tables.scalars, tables.slots)
