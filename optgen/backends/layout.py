"""What the tables of a launch hold, column by column, and how many program instances there are.

A launch covers a bucket: tensors with the same device, dtypes and specialisation. `tensors` has a row a
tensor (addresses, size, scalar row, and for strided kernels sizes and strides), `chunks` a row a
program instance (tensor and first element, or tile), `scalars` a row for each distinct set of STEP values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from optgen.backends.slices import is_columns
from optgen.ir.extent import Extent
from optgen.plan.plan import Plan, Reduction

SLICES = 64  # of a program that works on slices
LOWEST = -(1 << 63) + (1 << 52) - 1  # minus infinity as the integer that maxima in place are kept as
MAX_DIMS = 8  # of a strided kernel, after dimensions that lie in one stride were merged


class Block(NamedTuple):
    """What a program of a GPU takes of a tile at a time: lines and columns, powers of two.

    Where matrices are so small that some fit, and their columns have values, each has `rows` of the lines,
    of which the last ones may be none of its own; otherwise `rows` is 0.
    """

    height: int
    width: int
    rows: int = 0


@dataclass(frozen=True)
class Layout:
    """The columns of the `tensors` table for a plan.

    With `dims` 0 every element store of a tensor is walked in memory order, and on a GPU it begins at a
    multiple of 16 bytes, as do the lines of tiles; otherwise each store has its own strides over `dims`
    common dimensions. Spills are always contiguous. A plan with slices is walked in tiles, a range of lines
    by a range of columns. In a `sharded` one, tensors are parts of larger ones, and random numbers follow
    from an element's place in the whole. On a GPU a tile is walked in blocks.
    """

    plan: Plan
    dims: int = 0
    sharded: bool = False
    block: Block | None = None

    @property
    def tiled(self) -> bool:
        """Whether a chunk is a tile."""
        return bool(self.plan.slices)

    @property
    def pointers(self) -> tuple[str, ...]:
        """The columns that hold addresses: element stores, spills, states of slices and tensors."""
        return (*self.plan.stores, *self.plan.spills, *self.plan.tensor_states)

    @cached_property
    def moving(self) -> dict[str, int]:
        """The element stores that may lie elsewhere in each step: gradients, inputs and spills, by number."""
        fixed = {"p", *self.plan.states, *self.plan.tensor_states}
        return {name: i for i, name in enumerate(n for n in self.pointers if n not in fixed)}

    @cached_property
    def lines(self) -> tuple[int, ...]:
        """The slots that have a value for each slice, in order."""
        return tuple(i for i, e in enumerate(self.plan.extents) if e.sliced)

    @cached_property
    def sliced_reductions(self) -> tuple[Reduction, ...]:
        """The reductions of slices that a sweep finds in part."""
        return tuple(r for step in self.plan.sweeps for r in step.reductions if r.extent.sliced)

    def spans_lines(self, kind: Extent) -> bool:
        """Whether slices of a kind are several lines each."""
        one_line = kind is Extent.ROW or kind.name.startswith("BLOCK") or self.plan.slices == (Extent.UNIT,)
        return not (one_line or is_columns(kind))

    @cached_property
    def partial(self) -> tuple[int, ...]:
        """The slots of tensors that a sweep finds in part, one chunk after the other."""
        reductions = (r for step in self.plan.sweeps for r in step.reductions)
        return tuple(r.slot for r in reductions if not r.extent.sliced)

    @cached_property
    def columns(self) -> dict[str, int]:
        """The index of each column by its name."""
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
        """How many columns there are."""
        return len(self.columns)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The tables that a kernel takes."""
        more = ("lines",) if self.tiled else ()
        return (*TABLES, *more, *(("numbers",) if self.plan.numbers else ()))


TABLES = ("tensors", "chunks", "scalars", "partials", "slots")


# From an element's place in its part of a tensor to that in the whole: add `skip0` after `every0` elements,
# then the same with the other two, then `offset`.
PLACE = ("every0", "skip0", "every1", "skip1", "offset")
