"""Numba spellings: operators, constants, table entries, and loads of values that are one per tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from optgen.plan.codecs import CODECS

CHUNK = 1 << 14
TILE = (8, 4096)  # lines and columns, or more: whole rows where they are no longer, which memory likes
LANES = 64
DIMS = {"lines": 1, "numbers": 1}  # of tables that have not two
FIRST_TABLE = 3  # after where a thread's number, the number of threads and that of chunks lie
TYPES = {"fp64": "f64", "fp32": "f32", "bf16": "u16", "fp16": "u16"}
RUNTIME = ("ask", "bits_of", "float_of", "maximum", "minimum", "pointer", "where", "widest")
GLOBALS = {
    "math", "np", "carray", "njit", "f32", "f64", "u16", "u32", "u64", "inline", "compiled", "stored",
    *RUNTIME,
}  # fmt: skip
LOCALS = {
    *TABLES, "lines", "line_parts", "column_parts", "numbers",
    "words", "data", "thread", "threads", "begin", "end", "c", "tensor", "start", "count", "row", "whole",
    "first", "lane", "i", "rest", "at", "top", "left", "bottom", "right", "columns", "rows", "line",
    "column", "base", "total", "part", "inner",
    "turn", "turns", "which", "side", "stack", "each", "groups", "many", "corner", "last",
    *(f"size{d}" for d in range(MAX_DIMS)), "place", *PLACE,
}  # fmt: skip
FORMS = ("{}_at", "{}_across", *(f"{{}}_stride{d}" for d in range(MAX_DIMS)))


def speller(real: str) -> Spell:
    """The function that spells each op for Numba, in working precision `real` (`fp32` or `fp64`)."""
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
    """Spell a constant with its dtype."""
    if n.dtype is DType.BOOL:
        return str(bool(n.number))
    if n.dtype is DType.U32:
        return u32(n.number)
    return (
        f"{kind}({n.number!r})"
        if math.isfinite(n.number)
        else f"{kind}(np.{n.number})".replace("np.-", "-np.")
    )


def table_cell(layout: Layout, column: str) -> str:
    """Spell a tensor's entry in a column of `tensors`."""
    return f"tensors[tensor, {layout.columns[column]}]"


def read_tensor_values(layout: Layout, names: Names, leaf_nodes: Sequence[Node]) -> list[str]:
    """Print loads of values that are one per tensor: scalars, slots, states, random keys, totals."""
    plan = layout.plan
    real = TYPES[plan.real]
    lines = []
    if any(n.op is Op.SCALAR for n in leaf_nodes):
        lines.append(f"row = {table_cell(layout, '@row')}")
    for n in leaf_nodes:
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
            value = f"u32({table_cell(layout, f'@{column[0]}')}{' >> 32' if column[2] == 'high' else ''})"
        else:
            value = f"{states_at(layout, n.value or '', '0', '1')}[0]"
        lines.append(f"{names.leaf(n)} = {value}")
    return lines


def states_at(layout: Layout, state: str, start: str, count: str) -> str:
    """Spell an array over some values of a state of slices, or of a tensor."""
    real = layout.plan.real
    offset = "" if start == "0" else f" + ({start})*{CODECS[real].bytes}"
    return f"carray(pointer({table_cell(layout, state)}{offset}), {count}, {TYPES[real]})"


def slice_at(layout: Layout, n: Node, at: str) -> str:
    """Spell the load of one value of a state or slot of slices."""
    if n.op is Op.SLOT:
        return f"{TYPES[layout.plan.real]}(lines[{table_cell(layout, f'@slot{n.value}')} + {at}])"
    return f"{states_at(layout, n.value or '', at, '1')}[0]"


def neutral(op: Op) -> str:
    """Spell the neutral element of a reduction."""
    return "0.0" if op is Op.SUM else "-np.inf"


def accumulate(op: Op, total: str, part: str) -> str:
    """Spell the accumulation of a part into a total."""
    return f"{total} + {part}" if op is Op.SUM else f"maximum({total}, {part})"
