"""Triton spellings: operators, constants, table entries, and loads of values that are one per tensor."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from optgen.backends.emit import (
    Names,
    Spell,
    bracket,
    spell_bitwise,
    spell_infix,
    u32,
)
from optgen.backends.layout import MAX_DIMS, PLACE, TABLES, Layout
from optgen.ir.extent import Extent
from optgen.ir.node import ATOM, DType, Node, Op, Spelling

THREADS = 128  # of a program instance; a warp has 32 of them, a wave of a CDNA GPU 64
BLOCK = 512  # 4 elements a thread: 128 bits of float32, and at most 64 registers
BLOCKS = 16
WIDTH, TILE_BLOCKS = 128, 8  # of a tile: columns of its blocks at most, and how many blocks below each other
SMALL = 32, 16  # elements and columns of a tile's block in the interpreter
MAX_SLICES = 8  # kinds of slices in a rule
DEPTH = 8  # parts of a slice that a program adds at a time
COMBINE_BLOCK = 256
TYPES = {"fp64": "tl.float64", "fp32": "tl.float32", "bf16": "tl.uint16", "fp16": "tl.uint16"}
GLOBALS = {"tl", "triton", "maximum", "minimum", "key_of", "value_of"}
LOCALS = {
    *GLOBALS, *TABLES, "moving", "lines", "numbers", "slices",
    "chunk", "tensor", "start", "entry", "numel", "row", "lane", "block", "base", "mask", "rest",
    "index", "first", "count", "total", "done", "at", "part", *(f"size{d}" for d in range(MAX_DIMS)),
    "top", "left", "bottom", "columns", "rows", "line", "column", "piece", "which", "deep", "nth", "matrix",
    "live", "groups", "each", "inner", "size", "inside", "end", "right",
    "from_column", "width", "padded", "keys", "many", "turns", "side", "stack", "matrices",
    "place", *PLACE, *(f"{name}{i}" for name in ("inner", "count") for i in range(MAX_SLICES)),
}  # fmt: skip
FORMS = (
    "{}_ptr", "{}_at", "{}_new", "{}_base", "{}reduce_axis",
    *(f"{{}}_stride{d}" for d in range(MAX_DIMS)),
)  # fmt: skip


def speller(real: str, math_mode: str) -> Spell:
    """The function that spells each op for Triton, in working precision `real` (`fp32` or `fp64`)."""
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


def extremes(ops: Collection[Op]) -> list[str]:
    """Definitions of `maximum` and `minimum`, if they are used.

    Of two zeros both give b, on every machine, and a NaN if there is one; tl.maximum guarantees neither.
    """
    text = "@triton.jit\ndef {}(a, b):\n    return tl.where(a {} b, a, tl.where(a != a, a, b))\n"
    wanted = {"maximum": (">", {Op.MAXIMUM, Op.AMAX}), "minimum": ("<", {Op.MINIMUM})}
    return [text.format(name, sign) for name, (sign, which) in wanted.items() if which & set(ops)]


def shifted(base: str, offset: int) -> str:
    """Add a constant offset to an address."""
    return f"{base} + {offset}" if offset else base


def table_cell(table: str, row: str, width: int, column: int) -> str:
    """Address of a table's cell, for rows of `width` numbers."""
    return shifted(f"{table} + {row}*{width}" if width > 1 else f"{table} + {row}", column)


def partial_of(layout: Layout, slot: int) -> str:
    """Address of a chunk's partial result of a reduction to one value per tensor."""
    return table_cell("partials", "chunk", len(layout.partial), layout.partial.index(slot))


def read_tensor_values(layout: Layout, names: Names, leaf_nodes: Iterable[Node]) -> list[str]:
    """Print loads of values that are one per tensor: scalars, slots, states, random keys, totals."""
    plan, columns = layout.plan, layout.columns
    real = TYPES[plan.real]
    lines = []
    if any(n.op is Op.SCALAR for n in leaf_nodes):
        index = f"tl.load({shifted('entry', columns['@row'])})"
        lines.append(f"row = {table_cell('scalars', index, len(plan.scalars), 0)}")
    for n in leaf_nodes:
        if n.extent > Extent.TENSOR:
            continue
        if n.op is Op.SCALAR:
            value = f"tl.load({shifted('row', int(n.value or 0))})" + (
                " != 0" if n.dtype is DType.BOOL else ""
            )
        elif n.op is Op.TOTAL:
            value = f"tl.load({shifted('numbers', plan.numbers[f'@total{n.value}'])})" + (
                " != 0" if n.dtype is DType.BOOL else f".to({real})"
            )
        elif n.op is Op.KEY:
            word, _, half = (n.value or "").partition("_")
            value = f"tl.load({shifted('entry', columns[f'@{word}'])})"
            value = f"({value} >> 32).to(tl.uint32)" if half == "high" else f"{value}.to(tl.uint32)"
        elif n.op is Op.SLOT:
            place = table_cell("slots", "tensor", len(plan.extents), int(n.value or 0))
            value = f"tl.load({place}).to({real})"
        else:
            value = f"tl.load({pointer_of(layout, n.value or '', real)})"
        lines.append(f"{names.leaf(n)} = {value}")
    return lines


def pointer_of(layout: Layout, store: str, kind: str) -> str:
    """Spell a store's pointer, loaded from `tensors`."""
    return f"tl.load({shifted('entry', layout.columns[store])}).to(tl.pointer_type({kind}))"


def pointers(layout: Layout, touched: Mapping[str, str]) -> list[str]:
    """Print loads of the pointers of element stores; `touched` has each store's variable."""
    lines = []
    for s, name in touched.items():
        kind = TYPES[layout.plan.codecs.get(s, layout.plan.real)]
        if s in layout.moving:
            place = table_cell("moving", "tensor", len(layout.moving), layout.moving[s])
            lines.append(f"{name}_ptr = tl.load({place}).to(tl.pointer_type({kind}))")
        else:
            lines.append(f"{name}_ptr = {pointer_of(layout, s, kind)}")
    return lines


def entry_of(layout: Layout, column: str) -> str:
    """Spell the load of a tensor's entry in a column of `tensors`."""
    return f"tl.load({shifted('entry', layout.columns[column])})"


def reduce_axis(op: Op, values: str, axis: int) -> str:
    """Spell the reduction of a block along an axis."""
    return f"tl.sum({values}, {axis})" if op is Op.SUM else f"tl.reduce({values}, {axis}, maximum)"


def accumulate(op: Op, total: str, part: str) -> str:
    """Spell the accumulation of a part into a total."""
    return f"{total} + {part}" if op is Op.SUM else f"maximum({total}, {part})"


def neutral(op: Op) -> str:
    """Spell the neutral element of a reduction."""
    return "0.0" if op is Op.SUM else 'float("-inf")'
