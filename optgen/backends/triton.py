"""A plan as Triton source: one multi-tensor kernel per phase.

In: a layout. Out: the source of a module (`emit`), a `Kernel` that launches it (`TritonKernel`), and
ahead-of-time compilation that needs no GPU (`compile_ahead`).

A program instance updates one chunk of one tensor, block by block. A block that lies whole inside an
aligned tensor takes the path without a mask, whose loads and stores are 128 bits wide; tails and
misaligned views take the masked one. Addresses are read from a table, so nothing about a launch is an
integer argument that Triton would specialise on. `math="exact"` divides and takes roots as IEEE says
and contracts nothing. Launch options were read off the registers and widths of the compiled code: see
`benchmarks/` and `optgen compile`.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from optgen.backends import Layout, Tables
from optgen.backends.emit import Spell, identifier, indent, leaf_name, spell_infix, write
from optgen.codecs import CODECS
from optgen.ir import ATOM, LEAVES, DType, Extent, Node, Op, Spelling, toposort
from optgen.plan import Phase

BLOCK = 512  # 4 elements a thread: 128 bits of float32, and at most 64 registers
BLOCKS = 16
COMBINE_BLOCK = 256
WARPS = 4
TYPES = {"fp64": "tl.float64", "fp32": "tl.float32", "bf16": "tl.uint16", "fp16": "tl.uint16"}


def interpreting() -> bool:
    """Whether Triton executes kernels on the CPU (`TRITON_INTERPRET=1`, read when they are decorated)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def speller(real: str, math_mode: str) -> Spell:
    """How Triton spells each op in working precision `real` (`fp32` or `fp64`)."""
    kinds = {DType.REAL: TYPES[real], DType.F32: "tl.float32", DType.U32: "tl.uint32", DType.BOOL: "tl.int1"}
    calls = {Op.ABS: "tl.abs", Op.SQRT: "tl.sqrt", Op.EXP: "tl.exp", Op.LOG: "tl.log", Op.FLOOR: "tl.floor"}
    # tl.div_rn and tl.sqrt_rn refuse float64, where `/` and tl.sqrt are IEEE's already.
    rounded = math_mode == "exact" and real == "fp32"
    if rounded:
        calls[Op.SQRT] = "tl.sqrt_rn"

    def spell(n: Node, args: Sequence[Spelling]) -> Spelling:
        texts = [t for t, _ in args]
        kind = kinds[n.dtype]
        if n.op is Op.CONST:
            return _constant(n, kind), ATOM
        if n.op in calls:
            return f"{calls[n.op]}({texts[0]})", ATOM
        if n.op is Op.WHERE:
            return f"tl.where({', '.join(texts)})", ATOM
        if n.op in (Op.MAXIMUM, Op.MINIMUM):
            return f"tl.{n.op.value}({texts[0]}, {texts[1]}, propagate_nan=tl.PropagateNan.ALL)", ATOM
        if n.op is Op.DIV and rounded:
            return f"tl.div_rn({texts[0]}, {texts[1]})", ATOM
        if n.op is Op.NEG:  # Triton's own minus is 0 - x, which loses the sign of a zero
            return f"{texts[0] if args[0][1] > 7 else f'({texts[0]})'}*-1.0", 7
        if n.op is Op.NOT:
            return f"({texts[0]} == 0)", ATOM
        if n.op is Op.CAST:
            source = kinds[n.args[0].dtype]
            return args[0] if source == kind else (f"{_bracket(args[0])}.to({kind})", ATOM)
        if n.op in (Op.BITS, Op.FLOAT):
            return f"{_bracket(args[0])}.to({kind}, bitcast=True)", ATOM
        if n.op in (Op.AND, Op.OR):
            return f"({_bracket(args[0])} {'&' if n.op is Op.AND else '|'} {_bracket(args[1])})", ATOM
        if n.op in (Op.SHL, Op.SHR):
            return f"({_bracket(args[0])} {n.op.value} {_bracket(args[1])})", ATOM
        return spell_infix(n, args)

    return spell


def _constant(n: Node, kind: str) -> str:
    """A literal; typed in float64 kernels, where Triton would read it as float32."""
    if n.dtype is DType.BOOL:
        return str(bool(n.number))
    if n.dtype is DType.U32:
        return f"{int(n.number):#x}"
    text = repr(n.number) if math.isfinite(n.number) else f'float("{n.number}")'
    return f"tl.full((), {text}, tl.float64)" if kind == "tl.float64" else text


def _bracket(spelling: Spelling) -> str:
    return spelling[0] if spelling[1] == ATOM else f"({spelling[0]})"


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """The source of a module with `sweep<k>` for every phase, `combine` and `finish`."""
    plan = layout.plan
    parts = [
        f'''\
"""{plan.name}: {len(plan.phases)} phase(s), {plan.bytes} bytes per element, {plan.real}, math={math_mode}."""

import triton
import triton.language as tl
'''
    ]
    if any(r.op is Op.AMAX for phase in plan.phases for r in phase.reductions):
        parts.append(
            "@triton.jit\ndef greater(a, b):\n    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)\n"
        )
    for k, phase in enumerate(plan.phases):
        parts.append(_update(layout, k, phase, math_mode))
        parts.append(_sweep(layout, k, phase))
    if plan.slots:
        parts.append(_combine(layout))
    if plan.finish:
        parts.append(_finish(layout, math_mode))
    return "\n\n".join(parts)


def _leaves(roots: Sequence[Node]) -> list[Node]:
    return [n for n in toposort(roots) if n.op in LEAVES and n.op is not Op.CONST]


def _variable(store: str) -> str:
    return f"x{store[1:]}" if store.startswith("#") else identifier(store)


def _update(layout: Layout, k: int, phase: Phase, math_mode: str) -> str:
    """The arithmetic of one phase on one block, as a function of its own."""
    leaves = _leaves(phase.roots())
    spell = speller(layout.plan.real, math_mode)
    body, results = write(phase.roots(), layout.plan.names, spell, {"tl", "triton"})
    arguments = ", ".join(leaf_name(n) for n in leaves)
    text = f"@triton.jit\ndef update{k}({arguments}):\n"
    return text + indent([*body, f"return {', '.join(results)}"], 1)


def _read_scalars(layout: Layout, leaves: Sequence[Node]) -> list[str]:
    plan, columns = layout.plan, layout.columns
    real = TYPES[plan.real]
    lines = []
    for n in leaves:
        if n.op is Op.SCALAR:
            truth = " != 0" if n.dtype is DType.BOOL else ""
            lines.append(f"{leaf_name(n)} = tl.load(scalars + row_ * {len(plan.scalars)} + {n.value}){truth}")
        elif n.op is Op.SLOT:
            lines.append(f"{leaf_name(n)} = tl.load(slots + tensor_ * {plan.slots} + {n.value}).to({real})")
        elif n.op is Op.LOAD and n.extent is Extent.TENSOR:
            address = f"tl.load(entry_ + {columns[n.value or '']}).to(tl.pointer_type({real}))"
            lines.append(f"{leaf_name(n)} = tl.load({address})")
    return lines


ARGUMENTS = "tensors, chunks, scalars, partials, slots"


def _sweep(layout: Layout, k: int, phase: Phase) -> str:
    """One phase over every chunk: addresses, loads, `update`, stores."""
    plan, columns = layout.plan, layout.columns
    touched = list(dict.fromkeys([*phase.loads, *phase.stores]))
    leaves = _leaves(phase.roots())
    lines = [
        "chunk_ = tl.program_id(0).to(tl.int64)",
        "tensor_ = tl.load(chunks + chunk_ * 2)",
        "start_ = tl.load(chunks + chunk_ * 2 + 1)",
        f"entry_ = tensors + tensor_ * {layout.width}",
        f"numel_ = tl.load(entry_ + {columns['@numel']})",
    ]
    if any(n.op is Op.SCALAR for n in leaves):
        lines.append(f"row_ = tl.load(entry_ + {columns['@row']})")
    for s in touched:
        kind = TYPES[plan.real if s.startswith("#") else plan.codecs[s]]
        lines.append(f"{_variable(s)}_base_ = tl.load(entry_ + {columns[s]}).to(tl.pointer_type({kind}))")
    lines += _read_scalars(layout, leaves)
    real = TYPES[plan.real]
    for r in phase.reductions:
        empty = 'float("-inf")' if r.op is Op.AMAX else "0.0"
        lines.append(f"sum{r.slot}_ = tl.full([BLOCK], {empty}, {real})")
    lines.append("lane_ = tl.arange(0, BLOCK)")
    if layout.dims:
        for d in range(layout.dims):
            lines.append(f"size{d}_ = tl.load(entry_ + {columns[f'@size{d}']})")
            lines += [
                f"{_variable(s)}_stride{d}_ = tl.load(entry_ + {columns[f'@stride_{s}{d}']})"
                for s in touched
                if not s.startswith("#")
            ]
    else:
        lines.append(f"aligned_ = tl.load(entry_ + {columns['@aligned']}) != 0")
    text = f"@triton.jit\ndef sweep{k}({ARGUMENTS}, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):\n"
    text += indent(lines, 1)
    text += indent(["for block_ in range(BLOCKS):", "    base_ = start_ + block_ * BLOCK"], 1)
    if layout.dims:
        text += indent(_strided(layout, touched) + _body(k, phase, leaves, "mask_"), 2)
    else:
        text += indent(["if aligned_ & (base_ + BLOCK <= numel_):"], 2)
        whole = [
            f"{_variable(s)}_at_ = tl.multiple_of({_variable(s)}_base_, 16) + tl.multiple_of(base_, BLOCK) + lane_"
            for s in touched
        ]
        text += indent(whole + _body(k, phase, leaves, None), 3)
        text += indent(["else:"], 2)
        tail = ["mask_ = base_ + lane_ < numel_"]
        tail += [f"{_variable(s)}_at_ = {_variable(s)}_base_ + base_ + lane_" for s in touched]
        text += indent(tail + _body(k, phase, leaves, "mask_"), 3)
    for r in phase.reductions:
        total = "tl.sum({0})" if r.op is Op.SUM else "tl.reduce({0}, 0, greater)"
        value = total.format(f"sum{r.slot}_") + ".to(tl.float64)"
        text += indent([f"tl.store(partials + chunk_ * {plan.slots} + {r.slot}, {value})"], 1)
    return text


def _strided(layout: Layout, touched: Sequence[str]) -> list[str]:
    """Addresses from the logical index, last dimension first."""
    strided = [s for s in touched if not s.startswith("#")]
    lines = ["mask_ = base_ + lane_ < numel_", "rest_ = base_ + lane_"]
    lines += [f"{_variable(s)}_at_ = {_variable(s)}_base_ + base_ + lane_" for s in touched if s not in strided]
    for d in reversed(range(layout.dims)):
        lines.append(f"index_ = rest_ % size{d}_" if d else "index_ = rest_")
        if d:
            lines.append(f"rest_ = rest_ // size{d}_")
        for s in strided:
            name = _variable(s)
            before = f"{name}_base_" if d == layout.dims - 1 else f"{name}_at_"
            lines.append(f"{name}_at_ = {before} + index_ * {name}_stride{d}_")
    return lines


def _body(k: int, phase: Phase, leaves: Sequence[Node], mask: str | None) -> list[str]:
    """Loads, the update, stores and partial sums of one block, with or without a mask."""
    masked = f", mask={mask}" if mask else ""
    lines = []
    for n in leaves:
        if n.extent is Extent.ELEMENT:
            value = f"tl.load({_variable(n.value or '')}_at_{masked}{', other=0' if mask else ''})"
            lines.append(f"{leaf_name(n)} = {value}{'.to(tl.uint32)' if n.dtype is DType.U32 else ''}")
    results = [f"{_variable(s)}_new_" for s in phase.stores] + [f"sum{r.slot}_new_" for r in phase.reductions]
    call = f"update{k}({', '.join(leaf_name(n) for n in leaves)})"
    lines.append(f"{', '.join(results)} = {call}")
    for s, n in phase.stores.items():
        value = f"{_variable(s)}_new_" + (".to(tl.uint16)" if n.dtype is DType.U32 else "")
        lines.append(f"tl.store({_variable(s)}_at_, {value}{masked})")
    for r in phase.reductions:
        name = f"sum{r.slot}_"
        empty = 'float("-inf")' if r.op is Op.AMAX else "0.0"
        value = f"tl.where({mask}, {name}new_, {empty})" if mask else f"{name}new_"
        lines.append(f"{name} = {f'greater({name}, {value})' if r.op is Op.AMAX else f'{name} + {value}'}")
    return lines


def _combine(layout: Layout) -> str:
    """One program a tensor: add up its chunks' partial results, in float64 and in a fixed order."""
    columns, count = layout.columns, layout.plan.slots
    text = "@triton.jit\ndef combine(tensors, partials, slots, FIRST: tl.constexpr, LAST: tl.constexpr, "
    text += "BLOCK: tl.constexpr):\n"
    text += indent(
        [
            "tensor_ = tl.program_id(0).to(tl.int64)",
            f"entry_ = tensors + tensor_ * {layout.width}",
            f"first_ = tl.load(entry_ + {columns['@first']})",
            f"count_ = tl.load(entry_ + {columns['@count']})",
            "lane_ = tl.arange(0, BLOCK)",
        ],
        1,
    )
    for phase in layout.plan.phases:
        for r in phase.reductions:
            empty = 'float("-inf")' if r.op is Op.AMAX else "0.0"
            join = "greater(total_, part_)" if r.op is Op.AMAX else "total_ + part_"
            total = "tl.reduce(total_, 0, greater)" if r.op is Op.AMAX else "tl.sum(total_)"
            text += indent([f"if (FIRST <= {r.slot}) & ({r.slot} <= LAST):"], 1)
            text += indent(
                [
                    f"total_ = tl.full([BLOCK], {empty}, tl.float64)",
                    "for done_ in range(0, count_, BLOCK):",
                    f"    at_ = (first_ + done_ + lane_) * {count} + {r.slot}",
                    f"    part_ = tl.load(partials + at_, mask=done_ + lane_ < count_, other={empty})",
                    f"    total_ = {join}",
                    f"tl.store(slots + tensor_ * {count} + {r.slot}, {total})",
                ],
                2,
            )
    return text


def _finish(layout: Layout, math_mode: str) -> str:
    """One program a tensor: the new values of the states that are one number a tensor."""
    plan, columns = layout.plan, layout.columns
    roots = list(plan.finish.values())
    leaves = _leaves(roots)
    reserved = {"tl", "triton", "tensors", "scalars", "slots"}
    body, results = write(roots, plan.names, speller(plan.real, math_mode), reserved)
    real = TYPES[plan.real]
    lines = ["tensor_ = tl.program_id(0).to(tl.int64)", f"entry_ = tensors + tensor_ * {layout.width}"]
    lines += [f"row_ = tl.load(entry_ + {columns['@row']})", *_read_scalars(layout, leaves), *body]
    for name, result in zip(plan.finish, results, strict=True):
        address = f"tl.load(entry_ + {columns[name]}).to(tl.pointer_type({real}))"
        lines.append(f"tl.store({address}, {result})")
    return "@triton.jit\ndef finish(tensors, scalars, slots):\n" + indent(lines, 1)


class TritonKernel:
    """A module made by `emit`. Launches on the device of its tables, or in Triton's interpreter."""

    numpy_tables = False

    def __init__(self, layout: Layout, module: ModuleType, math_mode: str = "exact"):
        self.layout, self.module = layout, module
        # The interpreter spends milliseconds on a program instance: small chunks keep tests quick.
        self.block, self.blocks = (64, 2) if interpreting() else (BLOCK, BLOCKS)
        self.chunk = self.block * self.blocks
        self.options: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": math_mode == "fast"}
        if interpreting():
            self.options = {}

    def sweep(self, phase: int, tables: Tables) -> None:
        """Run one phase over every chunk."""
        getattr(self.module, f"sweep{phase}")[(len(tables.chunks),)](
            tables.tensors,
            tables.chunks,
            tables.scalars,
            tables.partials,
            tables.slots,
            BLOCK=self.block,
            BLOCKS=self.blocks,
            **self.options,
        )

    def combine(self, tables: Tables, slots: Sequence[int]) -> None:
        """Combine the chunks' partial results of these slots, one value a tensor."""
        self.module.combine[(len(tables.tensors),)](
            tables.tensors,
            tables.partials,
            tables.slots,
            FIRST=min(slots),
            LAST=max(slots),
            BLOCK=COMBINE_BLOCK,
            **self.options,
        )

    def finish(self, tables: Tables) -> None:
        """Write the new tensor states."""
        self.module.finish[(len(tables.tensors),)](
            tables.tensors, tables.scalars, tables.slots, **self.options
        )
