"""A plan as Triton source: one multi-tensor kernel per phase.

In: a layout. Out: the source of a module (`emit`), and a `Kernel` that launches it (`TritonKernel`).
`ahead` compiles the same source where there is no GPU.

A program instance updates one chunk of one tensor, block by block. A block that lies whole inside an
aligned tensor takes the path without a mask, whose loads and stores are 128 bits wide; tails and
misaligned views take the masked one. Addresses are read from a table, so nothing about a launch is an
integer argument that Triton would specialise on, and offsets are int64. `math="exact"` divides and takes
roots as IEEE says and contracts nothing. `math="fast"` leaves both to Triton's own `/` and `tl.sqrt`, which
on NVIDIA's GPUs are div.full and sqrt.approx, wrong by 2 units in the last place and by 1 (PTX ISA), and
contracts. Of two zeros `maximum` takes the second, as everywhere.
`BLOCK` and `THREADS` were read off the registers and widths of the compiled code.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np

from optgen.backends import MAX_DIMS, SLICES, TABLES, Layout, Tables, across
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
from optgen.ir import ATOM, LEAVES, DType, Extent, Node, Op, Spelling, toposort
from optgen.plan import Phase, Reduction, Round

THREADS = 128  # of a program instance; a warp has 32 of them, a wave of a CDNA GPU 64
BLOCK = 512  # 4 elements a thread: 128 bits of float32, and at most 64 registers
BLOCKS = 16
HEIGHT, WIDTH, TILE_BLOCKS = 4, 128, 8  # a tile's blocks: lines, columns, and how many of them
DEPTH = 8  # parts of a slice that a program adds at a time
COMBINE_BLOCK = 256
TYPES = {"fp64": "tl.float64", "fp32": "tl.float32", "bf16": "tl.uint16", "fp16": "tl.uint16"}
GLOBALS = {"tl", "triton", "maximum", "minimum"}
LOCALS = {
    *GLOBALS, *TABLES, "lines", "line_parts", "column_parts", "numbers", "slices",
    "chunk", "tensor", "start", "entry", "numel", "row", "lane", "aligned", "block", "base", "mask", "rest",
    "index", "first", "count", "total", "done", "at", "part", *(f"size{d}" for d in range(MAX_DIMS)),
    "top", "left", "bottom", "columns", "rows", "line", "column", "piece", "which", "deep", "nth", "matrix",
    "live", "groups", "each", "parts", "inner", "across", "down", "kept", "tile", "height", "size",
}  # fmt: skip
FORMS = ("{}_ptr", "{}_at", "{}_new", "{}_all", *(f"{{}}_stride{d}" for d in range(MAX_DIMS)))


def interpreting() -> bool:
    """Whether Triton executes kernels on the CPU (`TRITON_INTERPRET=1`, read when they are decorated)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def speller(real: str, math_mode: str) -> Spell:
    """How Triton spells each op in working precision `real` (`fp32` or `fp64`)."""
    kinds = {DType.REAL: TYPES[real], DType.F32: "tl.float32", DType.U32: "tl.uint32", DType.BOOL: "tl.int1"}
    # tl.div_rn and tl.sqrt_rn refuse float64, where `/` and tl.sqrt are IEEE's already.
    rounded = math_mode == "exact" and real == "fp32"
    calls = {
        Op.ABS: "tl.abs", Op.SQRT: "tl.sqrt_rn" if rounded else "tl.sqrt", Op.EXP: "tl.exp",
        Op.LOG: "tl.log", Op.FLOOR: "tl.floor", Op.WHERE: "tl.where",
        Op.MAXIMUM: "maximum", Op.MINIMUM: "minimum",
    } | ({Op.DIV: "tl.div_rn"} if rounded else {})  # fmt: skip

    def spell(n: Node, args: Sequence[Spelling]) -> Spelling:
        texts = [text for text, _ in args]
        kind = kinds[n.dtype]
        if n.op is Op.CONST:
            return _constant(n, kind), ATOM
        if n.op in calls:
            return f"{calls[n.op]}({', '.join(texts)})", ATOM
        if n.op is Op.NEG:  # Triton's own minus is 0 - x, which loses the sign of a zero
            return f"{texts[0] if args[0][1] > 7 else f'({texts[0]})'}*-1.0", 7
        if n.op is Op.NOT:
            return f"{bracket(args[0])} == 0", 4
        if n.op is Op.CAST:
            source = kinds[n.args[0].dtype]
            return args[0] if source == kind else (f"{bracket(args[0])}.to({kind})", ATOM)
        if n.op is Op.MULHI:
            return f"tl.umulhi({', '.join(texts)})", ATOM
        if n.op in (Op.BITS, Op.FLOAT):
            return f"{bracket(args[0])}.to({kind}, bitcast=True)", ATOM
        if n.dtype is DType.BOOL and n.op in (Op.AND, Op.OR) and _mixed(n):
            # Triton's interpreter widens a scalar's truth value to a block of floats, which `&` refuses.
            scalar, block = texts if n.args[1].extent > Extent.TENSOR else reversed(texts)
            sides = (block, "False") if n.op is Op.AND else ("True", block)
            return f"tl.where({scalar}, {', '.join(sides)})", ATOM
        if n.op in (Op.AND, Op.OR, Op.SHL, Op.SHR, Op.XOR):
            return spell_bitwise(n, args)
        return spell_infix(n, args)

    return spell


def _mixed(n: Node) -> bool:
    """Whether one of two arguments is a block and the other a scalar."""
    return len({a.extent > Extent.TENSOR for a in n.args}) == 2


def _constant(n: Node, kind: str) -> str:
    """A literal; typed in float64 kernels, where Triton would read it as float32."""
    if n.dtype is DType.BOOL:
        return str(bool(n.number))
    if n.dtype is DType.U32:
        return u32(n.number)
    if n.number == 0 and math.copysign(1, n.number) < 0:  # of which Triton makes a positive zero
        width = 64 if kind == "tl.float64" else 32
        return f"tl.full((), {1 << width - 1:#x}, tl.uint{width}).to({kind}, bitcast=True)"
    text = repr(n.number) if math.isfinite(n.number) else f'float("{n.number}")'
    return f"tl.full((), {text}, tl.float64)" if kind == "tl.float64" else text


def _plus(base: str, offset: int) -> str:
    """An address some columns further on."""
    return f"{base} + {offset}" if offset else base


def _cell(table: str, row: str, width: int, column: int) -> str:
    """The address of a number in a table whose rows have so many."""
    return _plus(f"{table} + {row}*{width}" if width > 1 else f"{table} + {row}", column)


@dataclass(frozen=True)
class Spec:
    """A kernel of a module: its name, the tables that it takes, its constants, and what a program is for."""

    name: str
    tables: tuple[str, ...]
    constants: Mapping[str, int]
    grid: str | Extent  # chunks, tensors, one, or slices of a kind
    planned: int | None = None  # bytes per element of a sweep


def specs(layout: Layout, small: bool = False) -> dict[str, Spec]:
    """The kernels of a plan's module by name; `small`: with blocks that the interpreter is quick with."""
    plan, tables = layout.plan, layout.arguments
    block, blocks = (64, 2) if small else (BLOCK, BLOCKS)
    height, width, tile_blocks = (2, 16, 2) if small else (HEIGHT, WIDTH, TILE_BLOCKS)
    swept = {"HEIGHT": height, "WIDTH": width} if layout.tiled else {"BLOCK": block}
    swept["BLOCKS"] = tile_blocks if layout.tiled else blocks
    tile = {"HEIGHT": height * tile_blocks, "WIDTH": width}
    found: list[Spec] = []
    for k in range(len(plan.phases) + 1):
        for number, r in enumerate(plan.rounds):
            if r.boundary == k:
                found += _round_specs(layout, number, r, tile)
        if k < len(plan.phases):
            found.append(Spec(f"sweep{k}", tables, swept, "chunks", plan.phases[k].bytes))
    for kind in finishes(plan):
        if kind.sliced:
            found.append(Spec(f"finish_{_word(kind)}", (*tables, "slices"), {"SLICES": SLICES}, kind))
        else:
            found.append(Spec(f"finish_{_word(kind)}", tables, {}, "tensors"))
    return {spec.name: spec for spec in found}


def _round_specs(layout: Layout, k: int, found: Round, tile: Mapping[str, int]) -> Iterator[Spec]:
    """The kernels of a round, in their order."""
    extents, tables = layout.plan.extents, layout.arguments
    by_slice, by_tensor = {"DEPTH": DEPTH, "SLICES": SLICES}, {"BLOCK": COMBINE_BLOCK}
    if any(not extents[slot].sliced for slot in found.sweeps):
        yield Spec(f"combine{k}", ("tensors", "partials", "slots"), by_tensor, "tensors")
    for slot in found.sweeps:
        if extents[slot].sliced:
            yield Spec(f"lines{slot}", (*tables, "slices"), {**tile, **by_slice}, extents[slot])
    for r in found.small:
        if r.extent.sliced:
            yield Spec(f"small{r.slot}", (*tables, "slices"), by_slice, r.extent)
        else:
            yield Spec(f"small{r.slot}", tables, by_tensor, "tensors")
    if found.over:
        yield Spec(f"over{k}", (*tables, "size"), by_tensor, "one")
    if found.totals:
        yield Spec(f"total{k}", ("numbers",), {}, "one")


def _word(kind: Extent) -> str:
    """The name of an extent in an identifier."""
    return "".join(c if c.isalnum() else "_" for c in kind.name.lower().replace("-1", "last")).strip("_")


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """The source of a module with the kernels of `specs`."""
    plan = layout.plan
    names = Names(plan, LOCALS, FORMS)
    spell = speller(plan.real, math_mode)
    parts = [f"{header(layout, math_mode)}\nimport triton\nimport triton.language as tl\n"]
    ops = {n.op for n in toposort([*plan.roots, *plan.totals])}
    ops |= {r.op for phase in plan.phases for r in phase.reductions}
    ops |= {r.op for found in plan.rounds for r in (*found.small, *found.over)}
    # Of two zeros both give b, on every machine, and a NaN where there is one; tl.maximum says neither.
    extreme = "@triton.jit\ndef {}(a, b):\n    return tl.where(a {} b, a, tl.where(a != a, a, b))\n"
    if ops & {Op.MAXIMUM, Op.AMAX}:
        parts.append(extreme.format("maximum", ">"))
    if Op.MINIMUM in ops:
        parts.append(extreme.format("minimum", "<"))
    for k, phase in enumerate(plan.phases):
        parts.append("@triton.jit\n" + update(k, phase, plan, names, spell, GLOBALS))
        build = _tile if layout.tiled else _sweep
        parts.append(_kernel(layout, f"sweep{k}", build(layout, k, phase, names)))
    for k, found in enumerate(plan.rounds):
        parts += _round(layout, k, found, names, spell)
    for kind, states in finishes(plan).items():
        parts.append(_kernel(layout, f"finish_{_word(kind)}", _finish(layout, kind, states, names, spell)))
    return "\n\n".join(parts)


def _kernel(layout: Layout, name: str, lines: Iterable[str]) -> str:
    """A kernel with the parameters that its spec has."""
    spec = specs(layout)[name]
    constants = [f"{constant}: tl.constexpr" for constant in spec.constants]
    return f"@triton.jit\ndef {name}({', '.join((*spec.tables, *constants))}):\n" + indent(lines, 1)


def _read(layout: Layout, names: Names, found: Iterable[Node]) -> list[str]:
    """Lines that read a tensor's scalars, finished reductions and states."""
    plan, columns = layout.plan, layout.columns
    real = TYPES[plan.real]
    lines = []
    if any(n.op is Op.SCALAR for n in found):
        index = f"tl.load({_plus('entry', columns['@row'])})"
        lines.append(f"row = {_cell('scalars', index, len(plan.scalars), 0)}")
    for n in found:
        if n.extent > Extent.TENSOR:
            continue
        if n.op is Op.SCALAR:
            value = f"tl.load({_plus('row', int(n.value or 0))})" + (" != 0" if n.dtype is DType.BOOL else "")
        elif n.op is Op.TOTAL:
            place = plan.numbers[f"@total{n.value}"]
            value = f"tl.load({_plus('numbers', place)})" + (
                " != 0" if n.dtype is DType.BOOL else f".to({real})"
            )
        elif n.op is Op.KEY:
            word, _, half = (n.value or "").partition("_")
            value = f"tl.load({_plus('entry', columns[f'@{word}'])})"
            value = f"({value} >> 32).to(tl.uint32)" if half == "high" else f"{value}.to(tl.uint32)"
        elif n.op is Op.SLOT:
            value = f"tl.load({_cell('slots', 'tensor', plan.slots, int(n.value or 0))}).to({real})"
        else:
            value = f"tl.load({_pointer(layout, n.value or '', real)})"
        lines.append(f"{names.leaf(n)} = {value}")
    return lines


def _pointer(layout: Layout, store: str, kind: str) -> str:
    """The address of a store, from the table."""
    return f"tl.load({_plus('entry', layout.columns[store])}).to(tl.pointer_type({kind}))"


def _empty(r: Reduction) -> str:
    return "0.0" if r.op is Op.SUM else 'float("-inf")'


def _entry(layout: Layout, column: str) -> str:
    """A tensor's entry in the table."""
    return f"tl.load({_plus('entry', layout.columns[column])})"


def _sweep(layout: Layout, k: int, phase: Phase, names: Names) -> list[str]:
    """One phase over every chunk: addresses, loads, `update`, stores."""
    plan, columns = layout.plan, layout.columns
    touched = {s: names.stores[s] for s in dict.fromkeys([*phase.loads, *phase.stores])}
    found = leaves(phase.roots(), phase.loads)
    lines = [
        "chunk = tl.program_id(0).to(tl.int64)",
        "tensor = tl.load(chunks + chunk*2)",
        "start = tl.load(chunks + chunk*2 + 1)",
        f"entry = tensors + tensor*{layout.width}",
        f"numel = tl.load({_plus('entry', columns['@numel'])})",
        *_read(layout, names, found),
    ]
    for s, name in touched.items():
        lines.append(f"{name}_ptr = {_pointer(layout, s, TYPES[plan.codecs.get(s, plan.real)])}")
    for r in phase.reductions:
        lines.append(f"sum{r.slot} = tl.full([BLOCK], {_empty(r)}, {TYPES[plan.real]})")
    lines.append("lane = tl.arange(0, BLOCK)")
    if layout.dims:
        for d in range(layout.dims):
            lines.append(f"size{d} = tl.load({_plus('entry', columns[f'@size{d}'])})")
            for s, name in touched.items():
                if s in plan.codecs:
                    place = _plus("entry", columns[f"@stride_{s}{d}"])
                    lines.append(f"{name}_stride{d} = tl.load({place})")
    else:
        lines.append(f"aligned = tl.load({_plus('entry', columns['@aligned'])}) != 0")
    lines += ["for block in range(BLOCKS):", "    base = start + block*BLOCK"]
    if layout.dims:
        lines += [
            "    " + line for line in (*_strided(layout, touched), *_block(k, phase, found, names, ", mask"))
        ]
    else:
        whole = [
            f"{n}_at = tl.multiple_of({n}_ptr, 16) + tl.multiple_of(base, BLOCK) + lane"
            for n in touched.values()
        ]
        tail = ["mask = base + lane < numel", *(f"{n}_at = {n}_ptr + base + lane" for n in touched.values())]
        lines.append("    if aligned & (base + BLOCK <= numel):")
        lines += ["        " + line for line in (*whole, *_block(k, phase, found, names, ""))]
        lines.append("    else:")
        lines += ["        " + line for line in (*tail, *_block(k, phase, found, names, ", mask"))]
    for r in phase.reductions:
        total = f"tl.sum(sum{r.slot})" if r.op is Op.SUM else f"tl.reduce(sum{r.slot}, 0, maximum)"
        place = _cell("partials", "chunk", plan.slots, r.slot)
        lines.append(f"tl.store({place}, {total}.to(tl.float64))")
    return lines


def _strided(layout: Layout, touched: dict[str, str]) -> list[str]:
    """Addresses from the logical index, last dimension first."""
    lines = ["mask = base + lane < numel", "rest = base + lane"]
    lines += [f"{name}_at = {name}_ptr + rest" for s, name in touched.items() if s not in layout.plan.codecs]
    for d in reversed(range(layout.dims)):
        lines += [f"index = rest % size{d}", f"rest = rest // size{d}"] if d else ["index = rest"]
        for s, name in touched.items():
            if s in layout.plan.codecs:
                before = f"{name}_ptr" if d == layout.dims - 1 else f"{name}_at"
                lines.append(f"{name}_at = {before} + index*{name}_stride{d}")
    return lines


def _block(
    k: int,
    phase: Phase,
    found: Sequence[Node],
    names: Names,
    mask: str,
    place: str = "(base + lane)",
    line_parts: Collection[int] | None = None,
) -> list[str]:
    """Loads, the update, stores and partial sums of one block; `mask` is `, mask` or empty.

    `place` is where an element stands in its tensor; in a tile, the sums of lines in `line_parts` are
    those of this block, and the others are added up element by element.
    """
    lines = []
    for n in found:
        if n.op is Op.INDEX:
            shift = " >> 32" if n.value == "high" else ""
            lines.append(f"{names.leaf(n)} = ({place}{shift}).to(tl.uint32)")
        elif n.extent is Extent.ELEMENT:
            value = f"tl.load({names.stores[n.value or '']}_at{mask}{', 0' if mask else ''})"
            lines.append(f"{names.leaf(n)} = {value}{'.to(tl.uint32)' if n.dtype is DType.U32 else ''}")
    results = [f"{names.stores[s]}_new" for s in phase.stores] + [f"r{r.slot}" for r in phase.reductions]
    lines.append(f"{', '.join(results)} = update{k}({', '.join(map(names.leaf, found))})")
    for s in phase.stores:
        name = names.stores[s]
        lines.append(f"tl.store({name}_at, {name}_new{mask})")
    for r in phase.reductions:
        term = f"r{r.slot}"
        if line_parts is not None:
            term = f"tl.broadcast_to({term}, [HEIGHT, WIDTH])"
        term = f"tl.where(mask, {term}, {_empty(r)})" if mask else term
        if line_parts is not None and r.slot in line_parts:
            lines.append(f"sum{r.slot} = {_all(r.op, term, 1)}")
            continue
        total = f"sum{r.slot} + {term}" if r.op is Op.SUM else f"maximum(sum{r.slot}, {term})"
        lines.append(f"sum{r.slot} = {total}")
    return lines


def _all(op: Op, values: str, axis: int) -> str:
    """All values along an axis as one."""
    return f"tl.sum({values}, {axis})" if op is Op.SUM else f"tl.reduce({values}, {axis}, maximum)"


def _more(op: Op, total: str, part: str) -> str:
    """A total with one more part."""
    return f"{total} + {part}" if op is Op.SUM else f"maximum({total}, {part})"


def _tile(layout: Layout, k: int, phase: Phase, names: Names) -> list[str]:
    """One phase over every tile, a few lines at a time: what slices have is read once a line or column."""
    plan = layout.plan
    blocked = any(e.name.startswith("BLOCK") for e in plan.slices)
    touched = {s: names.stores[s] for s in dict.fromkeys([*phase.loads, *phase.stores])}
    found = leaves(phase.roots(), phase.loads)
    lines = [
        "chunk = tl.program_id(0).to(tl.int64)",
        "tensor = tl.load(chunks + chunk*3)",
        "top = tl.load(chunks + chunk*3 + 1)",
        "left = tl.load(chunks + chunk*3 + 2)",
        f"entry = tensors + tensor*{layout.width}",
        f"numel = {_entry(layout, '@numel')}",
        f"columns = {_entry(layout, '@columns')}",
        f"rows = {_entry(layout, '@rows')}",
        "bottom = tl.minimum(top + HEIGHT*BLOCKS, (top // rows + 1)*rows)",
        "lane = tl.arange(0, WIDTH)",
        "column = left + lane",
        *_read(layout, names, found),
    ]
    for n in found:
        if n.extent.sliced and across(n.extent):
            at = f"top // {_entry(layout, f'@inner_{n.extent}')}*columns + column"
            lines.append(f"{names.leaf(n)} = {_values(layout, n, at, 'column < columns')}[None, :]")
    for s, name in touched.items():
        lines.append(f"{name}_ptr = {_pointer(layout, s, TYPES[plan.codecs.get(s, plan.real)])}")
    by_line = [r for r in phase.reductions if r.extent.sliced and not across(r.extent)]
    others = [r for r in phase.reductions if r not in by_line]
    for r in others:
        lines.append(f"sum{r.slot} = tl.full([HEIGHT, WIDTH], {_empty(r)}, {TYPES[plan.real]})")
    if layout.dims:
        for d in range(layout.dims):
            lines.append(f"size{d} = {_entry(layout, f'@size{d}')}")
            for s, name in touched.items():
                if s in plan.codecs:
                    lines.append(f"{name}_stride{d} = {_entry(layout, f'@stride_{s}{d}')}")
    else:
        lines.append(f"aligned = {_entry(layout, '@aligned')} != 0")
    body = ["first = top + block*HEIGHT", "line = first + tl.arange(0, HEIGHT)"]
    for n in found:
        if n.extent.sliced and not across(n.extent):
            inner, count = (_entry(layout, f"@{what}_{n.extent}") for what in ("inner", "count"))
            body.append(f"at = line // {inner} % {count}")
            body.append(f"{names.leaf(n)} = {_values(layout, n, 'at', 'line < bottom')}[:, None]")
    ranks = layout.parts(False)
    where = {
        r.slot: f"line_parts + (chunk*{len(ranks)} + {ranks.index(r.slot)})*HEIGHT*BLOCKS"
        " + block*HEIGHT + tl.arange(0, HEIGHT)"
        for r in by_line
    }
    inside = "(line < bottom)[:, None] & (column < columns)[None, :]"
    general = ["index = (line*columns)[:, None] + column[None, :]"]
    general.append(f"mask = {inside}" + (" & (index < numel)" if blocked else ""))
    run = _block(k, phase, found, names, ", mask", "index", where)
    if layout.dims:
        body += [*general, "rest = index", *_strided(layout, touched)[2:], *run]
    else:
        whole = "aligned & (first + HEIGHT <= bottom) & (left + WIDTH <= columns)"
        whole += " & ((first + HEIGHT)*columns <= numel)" if blocked else ""
        step = "(tl.arange(0, HEIGHT)*tl.multiple_of(columns, 16))[:, None] + lane[None, :]"
        fast = [f"index = tl.multiple_of(first*columns + left, 16) + {step}"]
        fast += [f"{n}_at = tl.multiple_of({n}_ptr, 16) + index" for n in touched.values()]
        body += [
            f"if {whole}:",
            *("    " + line for line in (*fast, *_block(k, phase, found, names, "", "index", where))),
        ]
        slow = [*general, *(f"{n}_at = {n}_ptr + index" for n in touched.values()), *run]
        body += ["else:", *("    " + line for line in slow)]
    body += [f"tl.store({place}, sum{slot}.to(tl.float64))" for slot, place in where.items()]
    lines += ["for block in range(BLOCKS):", *("    " + line for line in body)]
    for r in others:
        if r.extent.sliced:
            rank = layout.parts(True).index(r.slot)
            place = f"column_parts + (chunk*{len(layout.parts(True))} + {rank})*WIDTH + lane"
            lines.append(f"tl.store({place}, {_all(r.op, f'sum{r.slot}', 0)}.to(tl.float64))")
        else:
            total = (
                f"tl.sum(sum{r.slot})"
                if r.op is Op.SUM
                else f"tl.reduce(tl.reduce(sum{r.slot}, 1, maximum), 0, maximum)"
            )
            lines.append(
                f"tl.store({_cell('partials', 'chunk', plan.slots, r.slot)}, {total}.to(tl.float64))"
            )
    return lines


def _values(layout: Layout, n: Node, at: str, live: str) -> str:
    """Values of a state or of a reduction of slices."""
    real = TYPES[layout.plan.real]
    if n.op is Op.SLOT:
        return f"tl.load(lines + {_entry(layout, f'@slot{n.value}')} + {at}, {live}, 0.0).to({real})"
    return f"tl.load({_pointer(layout, n.value or '', real)} + {at}, {live}, 0.0)"


def _round(layout: Layout, k: int, found: Round, names: Names, spell: Spell) -> list[str]:
    """The kernels that complete the reductions of a round, and that of its totals."""
    plan, parts = layout.plan, []
    ops = {r.slot: r.op for phase in plan.phases for r in phase.reductions}
    tensor = [slot for slot in found.sweeps if not plan.extents[slot].sliced]
    if tensor:
        parts.append(_kernel(layout, f"combine{k}", _combine(layout, tensor, ops)))
    for slot in found.sweeps:
        if plan.extents[slot].sliced:
            parts.append(_kernel(layout, f"lines{slot}", _lines(layout, slot, ops[slot])))
    for r in found.small:
        parts.append(_kernel(layout, f"small{r.slot}", _small(layout, r, names, spell)))
    if found.over:
        parts.append(_kernel(layout, f"over{k}", _over(layout, found.over, names, spell)))
    if found.totals:
        parts.append(_kernel(layout, f"total{k}", _total(layout, found, names)))
    return parts


def _combine(layout: Layout, slots: Sequence[int], ops: Mapping[int, Op]) -> list[str]:
    """One program a tensor: add up its chunks' partial results, in float64 and in a fixed order."""
    columns, count = layout.columns, layout.plan.slots
    lines = [
        "tensor = tl.program_id(0).to(tl.int64)",
        f"entry = tensors + tensor*{layout.width}",
        f"first = tl.load({_plus('entry', columns['@first'])})",
        f"count = tl.load({_plus('entry', columns['@count'])})",
        "lane = tl.arange(0, BLOCK)",
    ]
    for slot in slots:
        empty = _nothing(ops[slot])
        lines += [
            f"total = tl.full([BLOCK], {empty}, tl.float64)",
            "for done in range(0, count, BLOCK):",
            f"    at = {_cell('partials', '(first + done + lane)', count, slot)}",
            f"    part = tl.load(at, done + lane < count, {empty})",
            f"    total = {_more(ops[slot], 'total', 'part')}",
            f"tl.store({_cell('slots', 'tensor', count, slot)}, {_all(ops[slot], 'total', 0)})",
        ]
    return lines


def _nothing(op: Op) -> str:
    return "0.0" if op is Op.SUM else 'float("-inf")'


PIECE = (
    "piece = tl.program_id(0).to(tl.int64)",
    "tensor = tl.load(slices + piece*2)",
    "start = tl.load(slices + piece*2 + 1)",
)


def _lines(layout: Layout, slot: int, op: Op) -> list[str]:
    """Some slices of a tensor: add up the parts that its tiles have of them."""
    kind, columns = layout.plan.extents[slot], across(layout.plan.extents[slot])
    rank, ranks = layout.parts(columns).index(slot), len(layout.parts(columns))
    named = {
        "first": "first", "columns": "columns", "rows": "rows", "height": "lines",
        "down": "tiles_down", "across": "tiles_across",
        "inner": f"inner_{kind}", "count": f"count_{kind}",
    }  # fmt: skip
    lines = [*PIECE, f"entry = tensors + tensor*{layout.width}"]
    lines += [f"{name} = {_entry(layout, f'@{column}')}" for name, column in named.items()]
    lines += ["which = (start + tl.arange(0, SLICES))[None, :]", "deep = tl.arange(0, DEPTH)[:, None]"]
    if columns:
        lines += [
            "kept = height // inner",
            "column = which % columns",
            "groups = kept*columns",
            "parts = height // rows // kept*down",
        ]
        place = [
            "matrix = nth // down*kept + which // columns",
            "tile = first + (matrix*down + nth % down)*across + column // WIDTH",
            f"at = column_parts + (tile*{ranks} + {rank})*WIDTH + column % WIDTH",
        ]
    else:
        lines += ["groups = count", "parts = height // count*across"]
        place = [
            "line = (nth // (across*inner)*count + which)*inner + nth // across % inner",
            "tile = first + (line // rows*down + line % rows // HEIGHT)*across + nth % across",
            f"at = line_parts + (tile*{ranks} + {rank})*HEIGHT + line % rows % HEIGHT",
        ]
    return [
        *lines,
        f"total = tl.full([DEPTH, SLICES], {_nothing(op)}, tl.float64)",
        "for done in range(0, parts, DEPTH):",
        "    nth = done + deep",
        *("    " + line for line in place),
        f"    part = tl.load(at, (nth < parts) & (which < groups), {_nothing(op)})",
        f"    total = {_more(op, 'total', 'part')}",
        "at = start + tl.arange(0, SLICES)",
        f"tl.store(lines + {_entry(layout, f'@slot{slot}')} + at, {_all(op, 'total', 0)}, at < groups)",
    ]


def _at_slice(layout: Layout, kind: Extent, found: Sequence[Node], names: Names) -> list[str]:
    """Lines that read what slices `at` of a kind have, of their own or of their matrix."""
    lines = []
    for n in found:
        if n.extent.sliced:
            at = "at"
            if n.extent is not kind:
                at = f"at // (count // {_entry(layout, f'@count_{n.extent}')})"
            lines.append(f"{names.leaf(n)} = {_values(layout, n, at, 'live')}")
    return lines


def _small(layout: Layout, r: Reduction, names: Names, spell: Spell) -> list[str]:
    """A reduction of slices: of a tensor's to one value, or to one for each matrix."""
    plan, kind = layout.plan, r.operand.extent
    found = leaves([r.operand], ())
    texts, (result,) = write([r.operand], plan.names, names, spell, names.taken)
    shape = "[DEPTH, SLICES]" if r.extent.sliced else "[BLOCK]"
    lines = list(PIECE) if r.extent.sliced else ["tensor = tl.program_id(0).to(tl.int64)"]
    lines += [f"entry = tensors + tensor*{layout.width}", f"count = {_entry(layout, f'@count_{kind}')}"]
    if r.extent.sliced:
        lines += [
            f"groups = {_entry(layout, f'@count_{r.extent}')}",
            "each = count // groups",
            "which = (start + tl.arange(0, SLICES))[None, :]",
            "deep = tl.arange(0, DEPTH)[:, None]",
        ]
        index = ["at = which*each + done + deep", "live = (done + deep < each) & (which < groups)"]
    else:
        lines += ["each = count", "deep = tl.arange(0, BLOCK)"]
        index = ["at = done + deep", "live = at < count"]
    term = f"tl.where(live, tl.zeros({shape}, tl.float64) + ({result}), {_nothing(r.op)})"
    lines += _read(layout, names, found)
    lines += [
        f"total = tl.full({shape}, {_nothing(r.op)}, tl.float64)",
        f"for done in range(0, each, {'DEPTH' if r.extent.sliced else 'BLOCK'}):",
        *("    " + line for line in (*index, *_at_slice(layout, kind, found, names), *texts)),
        f"    total = {_more(r.op, 'total', term)}",
    ]
    total = _all(r.op, "total", 0)
    if r.extent.sliced:
        lines.append("at = start + tl.arange(0, SLICES)")
        lines.append(f"tl.store(lines + {_entry(layout, f'@slot{r.slot}')} + at, {total}, at < groups)")
    else:
        lines.append(f"tl.store({_cell('slots', 'tensor', plan.slots, r.slot)}, {total})")
    return lines


def _over(layout: Layout, found: Sequence[Reduction], names: Names, spell: Spell) -> list[str]:
    """One program: what reductions over all tensors find in those of this launch."""
    plan = layout.plan
    roots = [r.operand for r in found]
    texts, results = write(roots, plan.names, names, spell, names.taken)
    body = [
        "at = done + tl.arange(0, BLOCK)",
        "live = at < count",
        "tensor = tl.where(live, at, 0)",
        f"entry = tensors + tensor*{layout.width}",
        *_read(layout, names, leaves(roots, ())),
        *texts,
    ]
    for r, result in zip(found, results, strict=True):
        term = f"tl.where(live, tl.zeros([BLOCK], tl.float64) + ({result}), {_nothing(r.op)})"
        body.append(f"sum{r.slot} = {_more(r.op, f'sum{r.slot}', term)}")
    lines = ["count = tl.load(size)"]
    lines += [f"sum{r.slot} = tl.full([BLOCK], {_nothing(r.op)}, tl.float64)" for r in found]
    lines += ["for done in range(0, count, BLOCK):", *("    " + line for line in body)]
    for r in found:
        place = _plus("numbers", plan.numbers[f"@slot{r.slot}"])
        lines.append(f"tl.store({place}, {_all(r.op, f'sum{r.slot}', 0)})")
    return lines


def _total(layout: Layout, found: Round, names: Names) -> list[str]:
    """One program: the totals of a round, in float64."""
    plan = layout.plan
    roots = [plan.totals[i] for i in found.totals]
    lines = []
    for n in toposort(roots):
        if n.op in LEAVES and n.op is not Op.CONST:
            value = n.value or ""
            key = {Op.SLOT: f"@slot{value}", Op.TOTAL: f"@{value}"}.get(n.op, value)
            truth = " != 0" if n.dtype is DType.BOOL else ""
            lines.append(f"{names.leaf(n)} = tl.load({_plus('numbers', plan.numbers[key])}){truth}")
    texts, results = write(roots, plan.names, names, speller("fp64", "exact"), names.taken)
    lines += texts
    for i, result in zip(found.totals, results, strict=True):
        value = f"tl.where({result}, 1.0, 0.0)" if plan.totals[i].dtype is DType.BOOL else result
        lines.append(f"tl.store({_plus('numbers', plan.numbers[f'@total{i}'])}, {value})")
    return lines


def _finish(layout: Layout, kind: Extent, states: Sequence[str], names: Names, spell: Spell) -> list[str]:
    """The new values of the states of one extent: one program a tensor, or for some of its slices."""
    plan = layout.plan
    roots = [plan.finish[s] for s in states]
    found = leaves(roots, ())
    body, results = write(roots, plan.names, names, spell, names.taken)
    lines = list(PIECE) if kind.sliced else ["tensor = tl.program_id(0).to(tl.int64)"]
    lines.append(f"entry = tensors + tensor*{layout.width}")
    if kind.sliced:
        lines.append(f"count = {_entry(layout, f'@count_{kind}')}")
        lines += ["at = start + tl.arange(0, SLICES)", "live = at < count"]
    lines += [*_read(layout, names, found), *_at_slice(layout, kind, found, names), *body]
    for s, result in zip(states, results, strict=True):
        place = _pointer(layout, s, TYPES[plan.real])
        lines.append(
            f"tl.store({place} + at, {result}, live)" if kind.sliced else f"tl.store({place}, {result})"
        )
    return lines


class TritonKernel:
    """A module made by `emit`. Launches on the device of its tables, or in Triton's interpreter."""

    numpy_tables = False

    def __init__(self, layout: Layout, module: ModuleType, math_mode: str = "exact"):
        self.layout, self.module = layout, module
        # The interpreter spends milliseconds on a program instance: small chunks keep tests quick.
        self.specs = specs(layout, interpreting())
        swept = next((s.constants for s in self.specs.values() if s.grid == "chunks"), {})
        blocks = swept.get("BLOCKS", 1)
        self.chunk = swept.get("BLOCK", 1) * blocks
        self.tile = (swept.get("HEIGHT", 1) * blocks, swept.get("WIDTH", 1))
        self.fuse = math_mode == "fast"

    def sweep(self, phase: int, tables: Tables) -> None:
        """Run one phase over every chunk."""
        self._launch(f"sweep{phase}", tables)

    def gather(self, found: Round, tables: Tables) -> None:
        """Complete the reductions of a round: a launch for each kind of slice, or for all tensors."""
        k = self.layout.plan.rounds.index(found)
        slots = [f"lines{slot}" for slot in found.sweeps] + [f"small{r.slot}" for r in found.small]
        for name in (f"combine{k}", *slots, f"over{k}"):
            if name in self.specs:
                self._launch(name, tables)

    def total(self, found: Round, tables: Tables) -> None:
        """Compute the totals of a round."""
        self._launch(f"total{self.layout.plan.rounds.index(found)}", tables)

    def finish(self, tables: Tables) -> None:
        """Write the new states of tensors and slices, the finest first."""
        for name in self.specs:
            if name.startswith("finish_"):
                self._launch(name, tables)

    def _launch(self, name: str, tables: Tables) -> None:
        spec = self.specs[name]
        piece = tables.slices[spec.grid] if isinstance(spec.grid, Extent) else None
        special = {"slices": piece, "size": tables.size}
        arguments = [special[t] if t in special else getattr(tables, t) for t in spec.tables]
        counts = {"chunks": len(tables.chunks), "tensors": len(tables.tensors), "one": 1}
        programs = len(tables.slices[spec.grid]) if isinstance(spec.grid, Extent) else counts[spec.grid]
        kernel = getattr(self.module, name)[(programs,)]
        if interpreting():
            with np.errstate(all="ignore"):  # the interpreter computes with NumPy, and IEEE has an answer
                kernel(*arguments, **spec.constants)
        else:
            kernel(
                *arguments, **spec.constants, num_warps=THREADS // _warp_size(), enable_fp_fusion=self.fuse
            )


@cache
def _warp_size() -> int:
    from triton.runtime import driver

    return int(driver.active.get_current_target().warp_size)
