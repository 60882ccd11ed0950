"""The kernels of a plan: their names, parameters, constants and grids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from optgen.backends import SLICES, Block, Layout
from optgen.backends.emit import (
    finishes,
    indent,
)
from optgen.backends.triton.spelling import BLOCK, BLOCKS, COMBINE_BLOCK, DEPTH, WIDTH
from optgen.ir import Extent
from optgen.locks import section
from optgen.plan import Round

# Triton's interpreter has one grid for the whole process, and a first launch compiles: one thread at a time.
ALONE = section()


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
    swept = {"BLOCK": block, "BLOCKS": blocks}
    if layout.tiled:
        shape = layout.block or Block(BLOCK // WIDTH, WIDTH)
        swept = {"HEIGHT": shape.height, "WIDTH": shape.width} | ({"ROWS": shape.rows} if shape.rows else {})
    found: list[Spec] = []
    for k in range(len(plan.phases) + 1):
        for number, r in enumerate(plan.rounds):
            if r.boundary == k:
                found += _round_specs(layout, number, r)
        if k < len(plan.phases):
            apart = ("moving",) if layout.moving else ()
            found.append(Spec(f"sweep{k}", (*tables, *apart), swept, "chunks", plan.phases[k].bytes))
    for kind in finishes(plan):
        if kind.sliced:
            found.append(Spec(f"finish_{word_of(kind)}", (*tables, "slices"), {"SLICES": SLICES}, kind))
        else:
            found.append(Spec(f"finish_{word_of(kind)}", tables, {}, "tensors"))
    return {spec.name: spec for spec in found}


def _round_specs(layout: Layout, k: int, found: Round) -> Iterator[Spec]:
    """The kernels of a round, in their order."""
    extents, tables = layout.plan.extents, layout.arguments
    by_slice, by_tensor = {"DEPTH": DEPTH, "SLICES": SLICES}, {"BLOCK": COMBINE_BLOCK}
    if any(not extents[slot].sliced for slot in found.sweeps):
        yield Spec(f"combine{k}", ("tensors", "partials", "slots"), by_tensor, "tensors")
    for slot in found.sweeps:
        if extents[slot].sliced:
            yield Spec(f"lines{slot}", (*tables, "slices"), by_slice, extents[slot])
    for r in found.small:
        if r.extent.sliced:
            yield Spec(f"small{r.slot}", (*tables, "slices"), by_slice, r.extent)
        else:
            yield Spec(f"small{r.slot}", tables, by_tensor, "tensors")
    if found.over:
        yield Spec(f"over{k}", (*tables, "size"), by_tensor, "one")
    if found.totals:
        yield Spec(f"total{k}", ("numbers",), {}, "one")


def word_of(kind: Extent) -> str:
    """The name of an extent in an identifier."""
    return "".join(c if c.isalnum() else "_" for c in kind.name.lower().replace("-1", "last")).strip("_")


def kernel_source(layout: Layout, name: str, lines: Iterable[str]) -> str:
    """A kernel with the parameters that its spec has."""
    spec = specs(layout)[name]
    constants = [f"{constant}: tl.constexpr" for constant in spec.constants]
    return f"@triton.jit\ndef {name}({', '.join((*spec.tables, *constants))}):\n" + indent(lines, 1)
