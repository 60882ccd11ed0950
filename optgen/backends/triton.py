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
from collections.abc import Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

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
from optgen.ir import ATOM, DType, Extent, Node, Op, Spelling, toposort
from optgen.plan import Phase, Reduction

THREADS = 128  # of a program instance; a warp has 32 of them, a wave of a CDNA GPU 64
BLOCK = 512  # 4 elements a thread: 128 bits of float32, and at most 64 registers
BLOCKS = 16
COMBINE_BLOCK = 256
TYPES = {"fp64": "tl.float64", "fp32": "tl.float32", "bf16": "tl.uint16", "fp16": "tl.uint16"}
ARGUMENTS = "tensors, chunks, scalars, partials, slots"
GLOBALS = {"tl", "triton", "maximum", "minimum"}
LOCALS = {
    *GLOBALS, *ARGUMENTS.split(", "),
    "chunk", "tensor", "start", "entry", "numel", "row", "lane", "aligned", "block", "base", "mask", "rest",
    "index", "first", "count", "total", "done", "at", "part", *(f"size{d}" for d in range(MAX_DIMS)),
}  # fmt: skip
FORMS = ("{}_ptr", "{}_at", "{}_new", *(f"{{}}_stride{d}" for d in range(MAX_DIMS)))


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
        if n.op in (Op.BITS, Op.FLOAT):
            return f"{bracket(args[0])}.to({kind}, bitcast=True)", ATOM
        if n.dtype is DType.BOOL and n.op in (Op.AND, Op.OR) and _mixed(n):
            # Triton's interpreter widens a scalar's truth value to a block of floats, which `&` refuses.
            scalar, block = texts if n.args[1].extent is Extent.ELEMENT else reversed(texts)
            sides = (block, "False") if n.op is Op.AND else ("True", block)
            return f"tl.where({scalar}, {', '.join(sides)})", ATOM
        if n.op in (Op.AND, Op.OR, Op.SHL, Op.SHR):
            return spell_bitwise(n, args)
        return spell_infix(n, args)

    return spell


def _mixed(n: Node) -> bool:
    """Whether one of two arguments is a block and the other a scalar."""
    return len({a.extent is Extent.ELEMENT for a in n.args}) == 2


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


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """The source of a module with `sweep<k>` for every phase, `combine` and `finish`."""
    plan = layout.plan
    names = Names(plan, LOCALS, FORMS)
    spell = speller(plan.real, math_mode)
    parts = [f"{header(layout, math_mode)}\nimport triton\nimport triton.language as tl\n"]
    roots = [*plan.finish.values(), *(n for phase in plan.phases for n in phase.roots())]
    ops = {n.op for n in toposort(roots)} | {r.op for phase in plan.phases for r in phase.reductions}
    # Of two zeros both give b, on every machine, and a NaN where there is one; tl.maximum says neither.
    extreme = "@triton.jit\ndef {}(a, b):\n    return tl.where(a {} b, a, tl.where(a != a, a, b))\n"
    if ops & {Op.MAXIMUM, Op.AMAX}:
        parts.append(extreme.format("maximum", ">"))
    if Op.MINIMUM in ops:
        parts.append(extreme.format("minimum", "<"))
    for k, phase in enumerate(plan.phases):
        parts.append("@triton.jit\n" + update(k, phase, plan, names, spell, GLOBALS))
        parts.append("@triton.jit\n" + _sweep(layout, k, phase, names))
    if plan.slots:
        parts.append("@triton.jit\n" + _combine(layout))
    if plan.finish:
        parts.append("@triton.jit\n" + _finish(layout, names, spell))
    return "\n\n".join(parts)


def _read(layout: Layout, names: Names, found: Iterable[Node]) -> list[str]:
    """Lines that read a tensor's scalars, finished reductions and states."""
    plan, columns = layout.plan, layout.columns
    real = TYPES[plan.real]
    lines = []
    if any(n.op is Op.SCALAR for n in found):
        index = f"tl.load({_plus('entry', columns['@row'])})"
        lines.append(f"row = {_cell('scalars', index, len(plan.scalars), 0)}")
    for n in found:
        if n.op is Op.SCALAR:
            value = f"tl.load({_plus('row', int(n.value or 0))})" + (" != 0" if n.dtype is DType.BOOL else "")
        elif n.op is Op.SLOT:
            value = f"tl.load({_cell('slots', 'tensor', plan.slots, int(n.value or 0))}).to({real})"
        elif n.extent is Extent.TENSOR:
            value = f"tl.load({_pointer(layout, n.value or '', real)})"
        else:
            continue
        lines.append(f"{names.leaf(n)} = {value}")
    return lines


def _pointer(layout: Layout, store: str, kind: str) -> str:
    """The address of a store, from the table."""
    return f"tl.load({_plus('entry', layout.columns[store])}).to(tl.pointer_type({kind}))"


def _empty(r: Reduction) -> str:
    return "0.0" if r.op is Op.SUM else 'float("-inf")'


def _sweep(layout: Layout, k: int, phase: Phase, names: Names) -> str:
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
    return f"def sweep{k}({ARGUMENTS}, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):\n" + indent(lines, 1)


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


def _block(k: int, phase: Phase, found: Sequence[Node], names: Names, mask: str) -> list[str]:
    """Loads, the update, stores and partial sums of one block; `mask` is `, mask` or empty."""
    lines = []
    for n in found:
        if n.extent is Extent.ELEMENT:
            value = f"tl.load({names.stores[n.value or '']}_at{mask}{', 0' if mask else ''})"
            lines.append(f"{names.leaf(n)} = {value}{'.to(tl.uint32)' if n.dtype is DType.U32 else ''}")
    results = [f"{names.stores[s]}_new" for s in phase.stores] + [f"r{r.slot}" for r in phase.reductions]
    lines.append(f"{', '.join(results)} = update{k}({', '.join(map(names.leaf, found))})")
    for s in phase.stores:
        name = names.stores[s]
        lines.append(f"tl.store({name}_at, {name}_new{mask})")
    for r in phase.reductions:
        term = f"tl.where(mask, r{r.slot}, {_empty(r)})" if mask else f"r{r.slot}"
        total = f"sum{r.slot} + {term}" if r.op is Op.SUM else f"maximum(sum{r.slot}, {term})"
        lines.append(f"sum{r.slot} = {total}")
    return lines


def _combine(layout: Layout) -> str:
    """One program a tensor: add up its chunks' partial results, in float64 and in a fixed order."""
    columns, slots = layout.columns, layout.plan.slots
    lines = [
        "tensor = tl.program_id(0).to(tl.int64)",
        f"entry = tensors + tensor*{layout.width}",
        f"first = tl.load({_plus('entry', columns['@first'])})",
        f"count = tl.load({_plus('entry', columns['@count'])})",
        "lane = tl.arange(0, BLOCK)",
    ]
    for r in (r for phase in layout.plan.phases for r in phase.reductions):
        join, total = "total + part", "tl.sum(total)"
        if r.op is Op.AMAX:
            join, total = "maximum(total, part)", "tl.reduce(total, 0, maximum)"
        lines += [
            f"if (FIRST <= {r.slot}) & ({r.slot} <= LAST):",
            f"    total = tl.full([BLOCK], {_empty(r)}, tl.float64)",
            "    for done in range(0, count, BLOCK):",
            f"        at = {_cell('partials', '(first + done + lane)', slots, r.slot)}",
            f"        part = tl.load(at, done + lane < count, {_empty(r)})",
            f"        total = {join}",
            f"    tl.store({_cell('slots', 'tensor', slots, r.slot)}, {total})",
        ]
    constants = ", ".join(f"{name}: tl.constexpr" for name in ("FIRST", "LAST", "BLOCK"))
    return f"def combine(tensors, partials, slots, {constants}):\n" + indent(lines, 1)


def _finish(layout: Layout, names: Names, spell: Spell) -> str:
    """One program a tensor: the new values of the states that are one number a tensor."""
    plan = layout.plan
    roots = list(plan.finish.values())
    body, results = write(roots, plan.names, names, spell, names.taken)
    lines = ["tensor = tl.program_id(0).to(tl.int64)", f"entry = tensors + tensor*{layout.width}"]
    lines += [*_read(layout, names, leaves(roots, ())), *body]
    for name, result in zip(plan.finish, results, strict=True):
        lines.append(f"tl.store({_pointer(layout, name, TYPES[plan.real])}, {result})")
    return "def finish(tensors, scalars, slots):\n" + indent(lines, 1)


class TritonKernel:
    """A module made by `emit`. Launches on the device of its tables, or in Triton's interpreter."""

    numpy_tables = False

    def __init__(self, layout: Layout, module: ModuleType, math_mode: str = "exact"):
        self.layout, self.module = layout, module
        # The interpreter spends milliseconds on a program instance: small chunks keep tests quick.
        self.block, self.blocks = (64, 2) if interpreting() else (BLOCK, BLOCKS)
        self.chunk = self.block * self.blocks
        self.fuse = math_mode == "fast"

    def sweep(self, phase: int, tables: Tables) -> None:
        """Run one phase over every chunk."""
        arguments = (tables.tensors, tables.chunks, tables.scalars, tables.partials, tables.slots)
        constants = {"BLOCK": self.block, "BLOCKS": self.blocks}
        self._launch(f"sweep{phase}", len(tables.chunks), *arguments, **constants)

    def combine(self, tables: Tables, slots: Sequence[int]) -> None:
        """Combine the chunks' partial results of these slots, one value a tensor."""
        arguments = (tables.tensors, tables.partials, tables.slots)
        constants = {"FIRST": min(slots), "LAST": max(slots), "BLOCK": COMBINE_BLOCK}
        self._launch("combine", len(tables.tensors), *arguments, **constants)

    def finish(self, tables: Tables) -> None:
        """Write the new tensor states."""
        self._launch("finish", len(tables.tensors), tables.tensors, tables.scalars, tables.slots)

    def _launch(self, name: str, programs: int, *arguments: Any, **constants: int) -> None:
        kernel = getattr(self.module, name)[(programs,)]
        if interpreting():
            with np.errstate(all="ignore"):  # the interpreter computes with NumPy, and IEEE has an answer
                kernel(*arguments, **constants)
        else:
            kernel(*arguments, **constants, num_warps=THREADS // _warp_size(), enable_fp_fusion=self.fuse)


@cache
def _warp_size() -> int:
    from triton.runtime import driver

    return int(driver.active.get_current_target().warp_size)
