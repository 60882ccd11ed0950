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

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from optgen.backends import MAX_DIMS, TABLES, Layout, Tables, across
from optgen.backends import numpy as reference
from optgen.backends.emit import (
    Names,
    Spell,
    bracket,
    finishes,
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
from optgen.plan import Phase, Reduction, Round

CHUNK = 1 << 14
TILE = (64, 512)  # lines and columns
LANES = 16
TYPES = {"fp64": "f64", "fp32": "f32", "bf16": "u16", "fp16": "u16"}
RUNTIME = ("bits_of", "float_of", "maximum", "minimum", "pointer", "where")
GLOBALS = {"math", "np", "carray", "njit", "f32", "f64", "u16", "u32", "u64", "inline", "compiled", *RUNTIME}
LOCALS = {
    *TABLES, "lines", "line_parts", "column_parts", "numbers",
    "begin", "end", "c", "tensor", "start", "count", "row", "whole", "first", "lane", "i", "rest", "at",
    "top", "left", "bottom", "right", "columns", "rows", "line", "column", "base", "total", "part", "inner",
    "outer", "kept", "tile", "across", "down", "turn", "which", "nth", "side", "each", "groups", "height",
    *(f"size{d}" for d in range(MAX_DIMS)),
}  # fmt: skip
FORMS = ("{}_at", "{}_across", *(f"{{}}_stride{d}" for d in range(MAX_DIMS)))

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
        if n.op is Op.MULHI:
            return f"u32((u64({args[0][0]})*u64({args[1][0]})) >> u64(32))", ATOM
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
    """The source of a module with `sweep<k>` for every phase, `gather<k>` for every round, and `finish`."""
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

f32, f64, u16, u32, u64 = np.float32, np.float64, np.uint16, np.uint32, np.uint64
inline = njit(error_model="numpy", forceinline=True{fast})
compiled = njit(nogil=True, error_model="numpy", cache=True{fast})
"""
    ]
    for k, phase in enumerate(plan.phases):
        parts.append("@inline\n" + update(k, phase, plan, names, speller(plan.real), GLOBALS))
        parts.append(_sweep(layout, k, phase, names))
    for k, found in enumerate(plan.rounds):
        if found.sweeps or found.small or found.over:
            parts.append(_gather(layout, k, found, names))
    if plan.finish:
        parts.append(_finish(layout, names))
    return "\n\n".join(parts)


def _cell(layout: Layout, column: str) -> str:
    """A tensor's entry in the table."""
    return f"tensors[tensor, {layout.columns[column]}]"


def _read(layout: Layout, names: Names, found: Sequence[Node]) -> list[str]:
    """Lines that read what a tensor has one of: scalars, finished reductions, states, keys, totals."""
    plan = layout.plan
    real = TYPES[plan.real]
    lines = []
    if any(n.op is Op.SCALAR for n in found):
        lines.append(f"row = {_cell(layout, '@row')}")
    for n in found:
        if n.extent > Extent.TENSOR:
            continue
        truth = n.dtype is DType.BOOL
        if n.op is Op.SCALAR:
            value = f"scalars[row, {n.value}]" + (" != 0" if truth else "")
        elif n.op is Op.TOTAL:
            cell = f"numbers[{plan.numbers[f'@total{n.value}']}]"
            value = f"{cell} != 0" if truth else f"{real}({cell})"
        elif n.op is Op.SLOT:
            value = f"{real}(slots[tensor, {n.value}])"
        elif n.op is Op.KEY:
            column = (n.value or "").partition("_")
            value = f"u32({_cell(layout, f'@{column[0]}')}{' >> 32' if column[2] == 'high' else ''})"
        else:
            value = f"{_states(layout, n.value or '', '0', '1')}[0]"
        lines.append(f"{names.leaf(n)} = {value}")
    return lines


def _states(layout: Layout, state: str, start: str, count: str) -> str:
    """An array on some of the values of a state of slices, or of a tensor."""
    real = layout.plan.real
    offset = "" if start == "0" else f" + ({start})*{CODECS[real].bytes}"
    return f"carray(pointer({_cell(layout, state)}{offset}), {count}, {TYPES[real]})"


def _slice(layout: Layout, n: Node, at: str) -> str:
    """One value of a state or a reduction of slices."""
    if n.op is Op.SLOT:
        return f"{TYPES[layout.plan.real]}(lines[{_cell(layout, f'@slot{n.value}')} + {at}])"
    return f"{_states(layout, n.value or '', at, '1')}[0]"


def _sweep(layout: Layout, k: int, phase: Phase, names: Names) -> str:
    """One phase over a range of chunks: addresses, and `update` for every element."""
    found = leaves(phase.roots(), phase.loads)
    touched = list(dict.fromkeys([*phase.loads, *phase.stores]))
    body = (_tile if layout.tiled else _chunk)(layout, k, phase, names, found, touched)
    head = f"@compiled\ndef sweep{k}(begin, end, {', '.join(layout.arguments)}):\n"
    return head + "    for c in range(begin, end):\n" + indent(body, 2)


def _arrays(layout: Layout, names: Names, touched: Sequence[str], start: str) -> list[str]:
    """An array on the elements of each store from some on; the whole of it where there are strides."""
    plan, lines = layout.plan, []
    for s in touched:
        codec = plan.codecs.get(s, plan.real)
        if layout.dims and s in plan.codecs:
            place, size = _cell(layout, s), "1 << 62"
        else:
            place, size = f"{_cell(layout, s)} + {start}*{CODECS[codec].bytes}", "count"
        lines.append(f"{names.stores[s]} = carray(pointer({place}), {size}, {TYPES[codec]})")
    return lines


def _strides(layout: Layout, names: Names, touched: Sequence[str]) -> list[str]:
    """Lines that read sizes and strides."""
    lines = []
    for d in range(layout.dims):
        lines.append(f"size{d} = {_cell(layout, f'@size{d}')}")
        strided = [s for s in touched if s in layout.plan.codecs]
        lines += [f"{names.stores[s]}_stride{d} = {_cell(layout, f'@stride_{s}{d}')}" for s in strided]
    return lines


def _loop(phase: Phase, one: Sequence[str]) -> list[str]:
    """The loop over `count` elements; whole rows of lanes first where something is reduced."""
    if any(not across(r.extent) for r in phase.reductions):
        return [
            f"whole = count // {LANES}*{LANES}",
            f"for first in range(0, whole, {LANES}):",
            f"    for lane in range({LANES}):",
            *("        " + line for line in ("i = first + lane", *one)),
            "for i in range(whole, count):",
            *("    " + line for line in ("lane = i - whole", *one)),
        ]
    return ["for i in range(count):", *("    " + line for line in one)]


def _whole(r: Reduction) -> str:
    """All lanes together; the largest carries a NaN through."""
    return f"sum{r.slot}.{'sum' if r.op is Op.SUM else 'max'}()"


def _chunk(
    layout: Layout, k: int, phase: Phase, names: Names, found: Sequence[Node], touched: Sequence[str]
) -> list[str]:
    """A chunk of one tensor, element by element."""
    return [
        "tensor, start = chunks[c, 0], chunks[c, 1]",
        f"count = min({CHUNK}, {_cell(layout, '@numel')} - start)",
        *_read(layout, names, found),
        *_arrays(layout, names, touched, "start"),
        *_strides(layout, names, touched),
        *(f"sum{r.slot} = np.full({LANES}, {_empty(r.op)})" for r in phase.reductions),
        *_loop(phase, _element(layout, k, phase, names, found, touched, "start")),
        *(f"partials[c, {r.slot}] = {_whole(r)}" for r in phase.reductions),
    ]


def _tile(
    layout: Layout, k: int, phase: Phase, names: Names, found: Sequence[Node], touched: Sequence[str]
) -> list[str]:
    """A tile of one tensor, line by line: what slices have is read once a line, or once a column."""
    plan = layout.plan
    block = any(e.name.startswith("BLOCK") for e in plan.slices)
    down = [n for n in found if n.extent.sliced and not across(n.extent)]
    over = [n for n in found if n.extent.sliced and across(n.extent)]
    by_line = [r for r in phase.reductions if r.extent.sliced and not across(r.extent)]
    by_column = [r for r in phase.reductions if across(r.extent)]
    by_tensor = [r for r in phase.reductions if not r.extent.sliced]
    lines = [
        "tensor, top, left = chunks[c, 0], chunks[c, 1], chunks[c, 2]",
        f"columns, rows = {_cell(layout, '@columns')}, {_cell(layout, '@rows')}",
        f"bottom = min(top + {TILE[0]}, (top // rows + 1)*rows)",
        f"right = min(left + {TILE[1]}, columns)",
        *_read(layout, names, found),
        *_strides(layout, names, touched),
    ]
    for n in over:
        lines.append(f"at = top // {_cell(layout, f'@inner_{n.extent}')}*columns + left")
        if n.op is Op.SLOT:
            offset = _cell(layout, f"@slot{n.value}")
            array = f"lines[{offset} + at:{offset} + at + right - left]"
        else:
            array = _states(layout, n.value or "", "at", "right - left")
        lines.append(f"{names.leaf(n)}_across = {array}")
    lines += [f"sum{r.slot} = np.full({LANES}, {_empty(r.op)})" for r in (*by_tensor, *by_line)]
    lines += [f"sum{r.slot} = np.full({TILE[1]}, {_empty(r.op)})" for r in by_column]
    body = ["base = line*columns + left", "count = right - left"]
    if block:
        body[1] = f"count = min(right - left, {_cell(layout, '@numel')} - base)"
    body += _arrays(layout, names, touched, "base")
    for n in down:
        inner, count = (_cell(layout, f"@{what}_{n.extent}") for what in ("inner", "count"))
        body += [f"at = line // {inner} % {count}", f"{names.leaf(n)} = {_slice(layout, n, 'at')}"]
    body += [f"sum{r.slot}[:] = {_empty(r.op)}" for r in by_line]
    body += _loop(phase, _element(layout, k, phase, names, found, touched, "base"))
    ranks = {slot: i for columns in (False, True) for i, slot in enumerate(layout.parts(columns))}
    body += [f"line_parts[c, {ranks[r.slot]}, line - top] = {_whole(r)}" for r in by_line]
    lines += ["for line in range(top, bottom):", *("    " + line for line in body)]
    lines += [
        f"column_parts[c, {ranks[r.slot]}, :right - left] = sum{r.slot}[:right - left]" for r in by_column
    ]
    lines += [f"partials[c, {r.slot}] = {_whole(r)}" for r in by_tensor]
    return lines


def _empty(op: Op) -> str:
    return "0.0" if op is Op.SUM else "-np.inf"


def _element(
    layout: Layout,
    k: int,
    phase: Phase,
    names: Names,
    found: Sequence[Node],
    touched: Sequence[str],
    start: str,
) -> list[str]:
    """The body of the loop: addresses where there are strides, and the call of `update`."""
    lines = []
    cell = {s: f"{names.stores[s]}[i]" for s in touched}
    if layout.dims:
        strided = [s for s in touched if s in layout.plan.codecs]
        cell |= {s: f"{names.stores[s]}[{names.stores[s]}_at]" for s in strided}
        lines.append(f"rest = {start} + i")
        for d in reversed(range(layout.dims)):
            lines += [f"at = rest % size{d}", f"rest = rest // size{d}"] if d else ["at = rest"]
            for s in strided:
                sign = "=" if d == layout.dims - 1 else "+="
                lines.append(f"{names.stores[s]}_at {sign} at*{names.stores[s]}_stride{d}")
    arguments = []
    for n in found:
        if n.op is Op.INDEX:
            value = f"u32({start} + i)" if n.value == "low" else f"u32(({start} + i) >> 32)"
        elif n.extent is Extent.ELEMENT:
            value = cell[n.value or ""]
            value = f"u32({value})" if n.dtype is DType.U32 else value
        elif across(n.extent):
            value = f"{TYPES[layout.plan.real]}({names.leaf(n)}_across[i])"
        else:
            value = names.leaf(n)
        arguments.append(value)
    results = [cell[s] for s in phase.stores] + [f"r{r.slot}" for r in phase.reductions]
    lines.append(f"{', '.join(results)} = update{k}({', '.join(arguments)})")
    for r in phase.reductions:
        lane = f"sum{r.slot}[{'i' if across(r.extent) else 'lane'}]"
        lines.append(
            f"{lane} = {_more(r.op, lane, f'f64(r{r.slot})')}" if r.op is Op.AMAX else f"{lane} += r{r.slot}"
        )
    return lines


def _more(op: Op, total: str, part: str) -> str:
    """A total with one more part."""
    return f"{total} + {part}" if op is Op.SUM else f"maximum({total}, {part})"


def _gather(layout: Layout, k: int, found: Round, names: Names) -> str:
    """Complete the reductions of a round, tensor by tensor, in a fixed order."""
    plan = layout.plan
    ops = {r.slot: r.op for phase in plan.phases for r in phase.reductions}
    body = []
    for slot in found.sweeps:
        body += (_lines if plan.extents[slot].sliced else _parts)(layout, slot, ops[slot])
    for r in found.small:
        body += _small(layout, r, names)
    for r in found.over:
        texts, (result,) = write([r.operand], plan.names, names, speller(plan.real), names.taken)
        body += [*_read(layout, names, leaves([r.operand], ())), *texts]
        body.append(f"sum{r.slot} = {_more(r.op, f'sum{r.slot}', f'f64({result})')}")
    lines = [f"sum{r.slot} = {_empty(r.op)}" for r in found.over]
    lines += ["for tensor in range(len(tensors)):", *("    " + line for line in body)]
    for r in found.over:
        number = f"numbers[{plan.numbers[f'@slot{r.slot}']}]"
        lines.append(f"{number} = sum{r.slot}")
    return f"@compiled\ndef gather{k}({', '.join(layout.arguments)}):\n" + indent(lines, 1)


def _parts(layout: Layout, slot: int, op: Op) -> list[str]:
    """A tensor's sum, from those of its chunks."""
    return [
        f"first = {_cell(layout, '@first')}",
        f"total = partials[first, {slot}]",
        f"for c in range(first + 1, first + {_cell(layout, '@count')}):",
        f"    total = {_more(op, 'total', f'partials[c, {slot}]')}",
        f"slots[tensor, {slot}] = total",
    ]


def _lines(layout: Layout, slot: int, op: Op) -> list[str]:
    """The sums of a tensor's slices, from those of its tiles."""
    kind, columns = layout.plan.extents[slot], across(layout.plan.extents[slot])
    rank = layout.parts(columns).index(slot)
    head = [
        f"first, at = {_cell(layout, '@first')}, {_cell(layout, f'@slot{slot}')}",
        f"columns, rows = {_cell(layout, '@columns')}, {_cell(layout, '@rows')}",
        f"down, across = {_cell(layout, '@tiles_down')}, {_cell(layout, '@tiles_across')}",
        f"inner, count = {_cell(layout, f'@inner_{kind}')}, {_cell(layout, f'@count_{kind}')}",
        f"height = {_cell(layout, '@lines')}",
    ]
    if columns:
        part = f"column_parts[tile, {rank}, column % {TILE[1]}]"
        return [
            *head,
            "kept = height // inner",
            "outer = height // rows // kept",
            "for which in range(kept):",
            "    for column in range(columns):",
            f"        total = {_empty(op)}",
            "        for turn in range(outer):",
            "            for nth in range(down):",
            f"                tile = first + ((turn*kept + which)*down + nth)*across + column // {TILE[1]}",
            f"                total = {_more(op, 'total', part)}",
            "        lines[at + which*columns + column] = total",
        ]
    part = f"line_parts[tile + side, {rank}, line % rows % {TILE[0]}]"
    return [
        *head,
        "outer = height // (inner*count)",
        "for which in range(count):",
        f"    total = {_empty(op)}",
        "    for turn in range(outer):",
        "        for nth in range(inner):",
        "            line = (turn*count + which)*inner + nth",
        f"            tile = first + (line // rows*down + line % rows // {TILE[0]})*across",
        "            for side in range(across):",
        f"                total = {_more(op, 'total', part)}",
        "    lines[at + which] = total",
    ]


def _at_slice(layout: Layout, kind: Extent, found: Sequence[Node], names: Names) -> list[str]:
    """Lines that read what slice `at` of a kind has, of its own or of its matrix."""
    lines = []
    for n in found:
        if n.extent.sliced:
            at = "at"
            if n.extent is not kind:
                at = f"at // (count // {_cell(layout, f'@count_{n.extent}')})"
            lines.append(f"{names.leaf(n)} = {_slice(layout, n, at)}")
    return lines


def _small(layout: Layout, r: Reduction, names: Names) -> list[str]:
    """A reduction of slices: to one value, or to one for each matrix."""
    plan, kind = layout.plan, r.operand.extent
    found = leaves([r.operand], ())
    texts, (result,) = write([r.operand], plan.names, names, speller(plan.real), names.taken)
    groups = _cell(layout, f"@count_{r.extent}") if r.extent.sliced else "1"
    target = (
        f"lines[{_cell(layout, f'@slot{r.slot}')} + which]" if r.extent.sliced else f"slots[tensor, {r.slot}]"
    )
    return [
        f"count, groups = {_cell(layout, f'@count_{kind}')}, {groups}",
        "each = count // groups",
        *_read(layout, names, found),
        "for which in range(groups):",
        f"    total = {_empty(r.op)}",
        "    for at in range(which*each, (which + 1)*each):",
        *("        " + line for line in (*_at_slice(layout, kind, found, names), *texts)),
        f"        total = {_more(r.op, 'total', f'f64({result})')}",
        f"    {target} = total",
    ]


def _finish(layout: Layout, names: Names) -> str:
    """The new states of tensors and slices, the finest first."""
    plan = layout.plan
    lines = []
    for kind, states in finishes(plan).items():
        roots = [plan.finish[s] for s in states]
        found = leaves(roots, ())
        body, results = write(roots, plan.names, names, speller(plan.real), names.taken)
        at = "at" if kind.sliced else "0"
        body = [*_at_slice(layout, kind, found, names), *body]
        for s, result in zip(states, results, strict=True):
            body.append(f"{_states(layout, s, at, '1')}[0] = {result}")
        lines += _read(layout, names, found)
        if kind.sliced:
            lines += [f"count = {_cell(layout, f'@count_{kind}')}", "for at in range(count):"]
            body = ["    " + line for line in body]
        lines += body
    head = f"@compiled\ndef finish({', '.join(layout.arguments)}):\n    for tensor in range(len(tensors)):\n"
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
    tile = TILE
    numpy_tables = True
    share = 4  # a thread gets no fewer chunks than this: they take about as long as handing them over

    def __init__(self, layout: Layout, module: ModuleType):
        self.layout, self.module = layout, module

    def sweep(self, phase: int, tables: Tables) -> None:
        """Run one phase over every chunk."""
        import torch

        run = getattr(self.module, f"sweep{phase}")
        arguments = tables.arguments(self.layout)
        count = len(tables.chunks)
        threads = max(1, min(torch.get_num_threads(), count // self.share))
        parts = list(pairwise(count * k // threads for k in range(threads + 1)))
        others = [_pool().submit(run, *part, *arguments) for part in parts[1:]]
        run(*parts[0], *arguments)
        for other in others:
            other.result()

    def gather(self, found: Round, tables: Tables) -> None:
        """Complete the reductions of a round."""
        if found.sweeps or found.small or found.over:
            k = self.layout.plan.rounds.index(found)
            getattr(self.module, f"gather{k}")(*tables.arguments(self.layout))

    def total(self, found: Round, tables: Tables) -> None:
        """Compute the totals of a round: some twenty numbers, for which nothing need be compiled."""
        reference.total(self.layout.plan, found, tables.numbers)

    def finish(self, tables: Tables) -> None:
        """Write the new states of tensors and slices."""
        self.module.finish(*tables.arguments(self.layout))
