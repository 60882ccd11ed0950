"""Kernel specs of a plan: names, parameters, compile-time constants and grids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from optgen.backends.emit import (
    indent,
    states_by_extent,
)
from optgen.backends.layout import SLICES, Block, Layout
from optgen.backends.triton.printer import BLOCK, BLOCKS, COMBINE_BLOCK, DEPTH, WIDTH
from optgen.ir.extent import Extent
from optgen.locks import section
from optgen.plan.plan import Step

# Triton's interpreter has one grid for the whole process, and a first launch compiles: one thread at a time.
ONE_THREAD = section()


@dataclass(frozen=True)
class Spec:
    """One kernel of a module: the tables it takes, its constants, and what a program instance works on."""

    name: str
    tables: tuple[str, ...]
    constants: Mapping[str, int]
    grid: str | Extent  # chunks, tensors, one, or slices of a kind
    planned: int | None = None  # bytes per element of a sweep


def specs(layout: Layout, small: bool = False) -> dict[str, Spec]:
    """Every kernel of a plan's module by name; `small` takes blocks that suit the interpreter."""
    return {spec.name: spec for step in layout.plan.steps for spec in step_specs(layout, step, small)}


def step_specs(layout: Layout, step: Step, small: bool = False) -> Iterator[Spec]:
    """Kernel specs of a step: `combine` has one per slot of slices, `finish` one per extent."""
    name, tables = step.name, layout.arguments
    by_slice, by_tensor = {"DEPTH": DEPTH, "SLICES": SLICES}, {"BLOCK": COMBINE_BLOCK}
    match step.kind:
        case "sweep":
            apart = ("moving",) if layout.moving else ()
            yield Spec(name, (*tables, *apart), _sweep_constants(layout, small), "chunks", step.bytes)
        case "combine":
            if any(not r.extent.sliced for r in step.reductions):
                yield Spec(name, ("tensors", "partials", "slots"), by_tensor, "tensors")
            for r in step.reductions:
                if r.extent.sliced:
                    yield Spec(f"lines{r.slot}", (*tables, "slices"), by_slice, r.extent)
        case "slice_reduce":
            (r,) = step.reductions
            if r.extent.sliced:
                yield Spec(name, (*tables, "slices"), by_slice, r.extent)
            else:
                yield Spec(name, tables, by_tensor, "tensors")
        case "global_reduce":
            yield Spec(name, (*tables, "size"), by_tensor, "one")
        case "global":
            yield Spec(name, ("numbers",), {}, "one")
        case "finish":
            for kind in states_by_extent(layout.plan, step):
                if kind.sliced:
                    yield Spec(
                        f"{name}_{extent_identifier(kind)}", (*tables, "slices"), {"SLICES": SLICES}, kind
                    )
                else:
                    yield Spec(f"{name}_{extent_identifier(kind)}", tables, {}, "tensors")


def _sweep_constants(layout: Layout, small: bool) -> dict[str, int]:
    """Compile-time constants of a sweep: block sizes."""
    if not layout.tiled:
        return {"BLOCK": 64, "BLOCKS": 2} if small else {"BLOCK": BLOCK, "BLOCKS": BLOCKS}
    shape = layout.block or Block(BLOCK // WIDTH, WIDTH)
    return {"HEIGHT": shape.height, "WIDTH": shape.width} | ({"ROWS": shape.rows} if shape.rows else {})


def extent_identifier(kind: Extent) -> str:
    """Name of an extent as part of an identifier."""
    return "".join(c if c.isalnum() else "_" for c in kind.name.lower().replace("-1", "last")).strip("_")


def kernel_source(spec: Spec, lines: Iterable[str]) -> str:
    """Print a kernel's signature and body."""
    constants = [f"{constant}: tl.constexpr" for constant in spec.constants]
    return f"@triton.jit\ndef {spec.name}({', '.join((*spec.tables, *constants))}):\n" + indent(lines, 1)
