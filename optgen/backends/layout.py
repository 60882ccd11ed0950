"""Layout of the tables that kernels read: columns, row counts, and the variant of the kernel.

A launch covers a bucket: tensors with the same device, dtypes and specialisation. `tensors` has a row per
tensor (addresses, size, scalar row, and for strided kernels sizes and strides), `chunks` a row per
program instance (tensor and first element, or tile), `scalars` a row per distinct set of STEP values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from optgen.backends.slices import is_columns
from optgen.ir.extent import Extent
from optgen.plan.plan import Plan, Reduction

SLICES = 64  # of a program that works on slices
# Maxima are kept in place as order-preserving integers (`key_of` in triton/tiles.py): this is minus infinity.
LOWEST = -(1 << 63) + (1 << 52) - 1  # minus infinity as the integer that maxima in place are kept as
MAX_DIMS = 8  # of a strided kernel, after dimensions that lie in one stride were merged


class Block(NamedTuple):
    """The part of a tile that a GPU program processes at a time: lines by columns, powers of two.

    If columns have values and several matrices fit, each takes `rows` lines of the block, the last of them
    padding; otherwise `rows` is 0.
    """

    height: int
    width: int
    rows: int = 0


@dataclass(frozen=True)
class Layout:
    """The columns of the `tensors` table for a plan, and the variant of its kernel.

    With `dims` 0, stores are walked in memory order, and on a GPU begin at a multiple of 16 bytes, as do the
    lines of tiles; otherwise each store has its own strides over `dims` common dimensions. Spills are always
    contiguous. A plan with slices is walked in tiles, and on a GPU a tile in blocks. If `sharded`, tensors
    are shards of larger ones, and random numbers depend on an element's index in the full tensor.
    """

    plan: Plan
    dims: int = 0
    sharded: bool = False
    block: Block | None = None

    @property
    def tiled(self) -> bool:
        """Whether a row of `chunks` is a tile instead of a range of elements."""
        return bool(self.plan.slices)

    @property
    def pointers(self) -> tuple[str, ...]:
        """Columns that hold addresses: element stores, spills, states of slices and tensors."""
        return (*self.plan.stores, *self.plan.spills, *self.plan.tensor_states)

    @cached_property
    def moving(self) -> dict[str, int]:
        """Column in `moving` of buffers whose addresses may change every step: gradients, inputs, spills."""
        fixed = {"p", *self.plan.states, *self.plan.tensor_states}
        return {name: i for i, name in enumerate(n for n in self.pointers if n not in fixed)}

    @cached_property
    def lines(self) -> tuple[int, ...]:
        """Slots with a value for each slice, which lie in the table `lines`."""
        return tuple(i for i, e in enumerate(self.plan.extents) if e.sliced)

    @cached_property
    def sliced_reductions(self) -> tuple[Reduction, ...]:
        """Reductions to slices that sweeps compute as partial results, in order of sweeps."""
        return tuple(r for step in self.plan.sweeps for r in step.reductions if r.extent.sliced)

    def spans_lines(self, kind: Extent) -> bool:
        """Whether a slice of this kind spans several lines of the tensor."""
        one_line = kind is Extent.ROW or kind.name.startswith("BLOCK") or self.plan.slices == (Extent.UNIT,)
        return not (one_line or is_columns(kind))

    @cached_property
    def partial(self) -> tuple[int, ...]:
        """Slots with one value per tensor that sweeps compute as partial results, one per chunk."""
        reductions = (r for step in self.plan.sweeps for r in step.reductions)
        return tuple(r.slot for r in reductions if not r.extent.sliced)

    @cached_property
    def columns(self) -> dict[str, int]:
        """Index of each column by name; `@` marks those that are not addresses."""
        names = [*self.pointers, "@numel", "@row", "@first", "@count"]
        if self.plan.random:
            names += ["@seed", "@param", "@step"]
        if self.sharded:
            names += [f"@{name}" for name in PLACE]
        if self.tiled:
            names += ["@columns", "@rows", "@lines", "@width"]
            names += [f"@{what}_{kind}" for kind in self.plan.slices for what in ("inner", "count")]
            names += [f"@slot{i}" for i in self.lines]
            names += [f"@{what}{r.slot}" for r in self.sliced_reductions for what in ("parts", "turns")]
        names += [f"@size{d}" for d in range(self.dims)]
        names += [f"@stride_{s}{d}" for s in self.plan.stores for d in range(self.dims)]
        return {name: i for i, name in enumerate(names)}

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.columns)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The tables that a kernel takes, in order."""
        more = ("lines",) if self.tiled else ()
        return (*TABLES, *more, *(("numbers",) if self.plan.numbers else ()))


TABLES = ("tensors", "chunks", "scalars", "partials", "slots")


# From an element's place in its part of a tensor to that in the whole: add `skip0` after `every0` elements,
# then the same with the other two, then `offset`.
PLACE = ("every0", "skip0", "every1", "skip1", "offset")
