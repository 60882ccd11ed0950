"""The Triton back end: a plan as multi-tensor kernels, one or a few per step.

In: a layout. Out: the source of a module (`emit`), and a `Kernel` that launches it (`TritonKernel`).
`ahead_of_time` compiles the same source without a GPU.

A program instance updates one chunk of one tensor, block by block. A block that lies inside a tensor takes
the path without a mask, whose loads and stores are 128 bits wide; tails take the masked one. Both assume
that addresses are multiples of 16, since Triton applies such a hint to a value wherever it is used:
misaligned views, and tiles whose lines are no multiple of 16 elements, take the strided kernel. Addresses
are read from tables, so nothing about a launch is an integer argument that Triton would specialise on, and
offsets are int64. `math="exact"` divides and takes roots as IEEE says and contracts nothing. `math="fast"`
leaves both to Triton's own `/` and `tl.sqrt`, which on NVIDIA's GPUs are div.full and sqrt.approx, wrong by
2 units in the last place and by 1 (PTX ISA), and contracts. Of two zeros `maximum` takes the second, as
everywhere. `BLOCK` and `THREADS` were read off the registers and widths of the compiled code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from optgen.backends.emit import (
    Names,
    emitted,
    function,
    header,
    helper_name,
)
from optgen.backends.layout import Block, Layout
from optgen.backends.protocol import Kernel, Tables
from optgen.backends.slices import View
from optgen.backends.triton.printer import (
    BLOCK,
    FORMS,
    GLOBALS,
    LOCALS,
    SMALL,
    THREADS,
    TILE_BLOCKS,
    WIDTH,
    extremes,
    speller,
)
from optgen.backends.triton.reductions import between_sources
from optgen.backends.triton.specs import ONE_THREAD, kernel_source, step_specs
from optgen.backends.triton.sweep import sweep_lines
from optgen.backends.triton.tiles import KEYS, tile_lines
from optgen.ir.extent import Extent
from optgen.ir.node import Op, toposort
from optgen.plan.plan import Step


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels (`TRITON_INTERPRET=1`, read when they are decorated)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def block_of(view: View, slices: Sequence[Extent]) -> Block:
    """The block for a tensor's view: as wide as its lines, up to a limit, and as high as fits."""
    elements, widest = SMALL if interpreting() else (BLOCK, WIDTH)
    width = min(widest, _power(view.columns))
    height = elements // width
    small = Extent.COL in slices and view.rows <= height
    return Block(height, width, _power(view.rows) if small else 0)


def _power(n: int) -> int:
    """Round up to a power of two."""
    return 1 << max(0, n - 1).bit_length()


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """Source of a module with the kernels of `specs`."""
    plan = layout.plan
    names = Names(plan, LOCALS, FORMS)
    spell = speller(plan.real, math_mode)
    parts = [f"{header(layout, math_mode)}\nimport triton\nimport triton.language as tl\n"]
    ops = {n.op for n in toposort([*plan.roots, *plan.totals])}
    parts += extremes(ops | {r.op for r in plan.reductions})
    if any(r.op is Op.AMAX for r in layout.sliced_reductions):
        parts.append(KEYS)
    for step in emitted(plan):
        if step.kind != "sweep":
            parts += between_sources(layout, step, names, spell)
            continue
        roots, word = step.roots(), helper_name(step, "update")
        parts.append("@triton.jit\n" + function(word, roots, step.loads, plan.names, names, spell, GLOBALS))
        build = tile_lines if layout.tiled else sweep_lines
        (spec,) = step_specs(layout, step)
        parts.append(kernel_source(spec, build(layout, step, names)))
    return "\n\n".join(parts)


class TritonKernel(Kernel):
    """A module emitted by `emit`, launched on its tables' device or in Triton's interpreter."""

    numpy_tables = False
    atomic = True

    def __init__(self, layout: Layout, module: ModuleType, math_mode: str = "exact"):
        self.layout, self.module = layout, module
        # The interpreter spends milliseconds on a program instance: small chunks keep tests quick.
        by_step = {step.name: [*step_specs(layout, step, interpreting())] for step in layout.plan.steps}
        self.specs = {spec.name: spec for kernels in by_step.values() for spec in kernels}
        self.kernels = {name: [spec.name for spec in kernels] for name, kernels in by_step.items()}
        swept = next((s.constants for s in self.specs.values() if s.grid == "chunks"), {})
        self.chunk = swept.get("BLOCK", 1) * swept.get("BLOCKS", 1)
        self.tile = (swept.get("HEIGHT", 1) * TILE_BLOCKS, swept.get("WIDTH", 1))
        self.fuse = math_mode == "fast"
        self.ready: set[object] = set()  # the devices that it has been compiled for

    def prepare(self, tables: Tables) -> None:
        """Compile and load every kernel for the tables' device, so that none can fail after a launch."""
        device = tables.tensors.device
        if device in self.ready:
            return
        with ONE_THREAD:
            for name in self.specs:
                arguments, programs, options = self._call(name, tables)
                compiled = getattr(self.module, name).warmup(*arguments, grid=(max(1, programs),), **options)
                if compiled is not None:  # Triton's interpreter compiles nothing
                    compiled._init_handles()  # as Triton's tutorials do
        self.ready.add(device)

    def run(self, step: Step, tables: Tables) -> None:
        """Launch the kernels of one step of the plan."""
        for name in self.kernels[step.name]:
            self._launch(name, tables)

    def _launch(self, name: str, tables: Tables) -> None:
        """Launch one kernel, unless its grid is empty."""
        arguments, programs, options = self._call(name, tables)
        if not programs:  # a part of tensors may be empty
            return
        # The interpreter computes with NumPy, where IEEE has an answer, and has one grid for the process.
        with ONE_THREAD if interpreting() else nullcontext(), np.errstate(all="ignore"):
            getattr(self.module, name)[(programs,)](*arguments, **options)

    def _call(self, name: str, tables: Tables) -> tuple[list[Any], int, dict[str, Any]]:
        """A kernel's arguments, grid size and compile options."""
        spec = self.specs[name]
        piece = tables.slices[spec.grid] if isinstance(spec.grid, Extent) else None
        special = {"slices": piece, "size": tables.size}
        arguments = [special[t] if t in special else getattr(tables, t) for t in spec.tables]
        counts = {"chunks": len(tables.chunks), "tensors": len(tables.tensors), "one": 1}
        programs = len(tables.slices[spec.grid]) if isinstance(spec.grid, Extent) else counts[spec.grid]
        how = {} if interpreting() else {"num_warps": THREADS // _warp_size(), "enable_fp_fusion": self.fuse}
        return arguments, programs, {**spec.constants, **how}


def load(layout: Layout, math_mode: str, module: Callable[[], ModuleType]) -> TritonKernel:
    """The kernel of a layout."""
    return TritonKernel(layout, module(), math_mode)


@cache
def _warp_size() -> int:
    from triton.runtime import driver

    return int(driver.active.get_current_target().warp_size)
