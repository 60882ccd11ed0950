"""The back ends, and what they share: the tables of a launch and the protocol of a compiled kernel.

A launch covers a bucket: tensors with the same device, dtypes and specialisation. `tensors` has a row a
tensor (addresses, size, scalar row, and for strided kernels sizes and strides), `chunks` a row a
program instance (tensor and first element, or tile), `scalars` a row for each distinct set of STEP values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from optgen.ir.node import Extent
from optgen.plan.plan import Plan, Reduction, Step

SLICES = 64  # of a program that works on slices
LOWEST = -(1 << 63) + (1 << 52) - 1  # minus infinity as the integer that maxima in place are kept as
MAX_DIMS = 8  # of a strided kernel, after dimensions that lie in one stride were merged


@dataclass(frozen=True)
class View:
    """A tensor as a table of lines, which slices are made of: rows of its last dimension, or blocks.

    Lines come in matrices of `rows`. A kind of slice is lines, each slice those with one value of
    `line // inner % count`; or it is columns, of each matrix or, with `inner` lines, of all. Where there are
    units only, a unit is a line.
    """

    shape: tuple[int, ...]
    block: int = 0
    units: bool = False

    @staticmethod
    def of(shape: Sequence[int], slices: Sequence[Extent]) -> View:
        """The view of a tensor whose values have these kinds of slices.

        Raises:
            ValueError: blocks of two sizes, or blocks beside other slices.
        """
        blocks = [e for e in slices if e.name.startswith("BLOCK")]
        if blocks and len(slices) > 1:
            names = ", ".join(e.name.lower() for e in slices)
            raise ValueError(
                f"a rule cannot have values for each of {names}: a block goes with no other slice"
            )
        units = len(shape) > 1 and tuple(slices) == (Extent.UNIT,)
        return View(tuple(shape), blocks[0].size if blocks else 0, units)

    @property
    def numel(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """How many elements a line has; the last block may have fewer."""
        if self.units:
            return math.prod(self.shape[1:])
        return self.block or (self.shape[-1] if self.shape else 1)

    @property
    def lines(self) -> int:
        """How many lines there are, of no columns too."""
        if self.units:
            return self.shape[0]
        return -(-self.numel // self.block) if self.block else math.prod(self.shape[:-1])

    @property
    def rows(self) -> int:
        """How many lines a matrix of the last two dimensions has."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    def inner(self, kind: Extent) -> int:
        """How many lines in a row belong to one slice; of columns: how many lines they run through."""
        if kind is Extent.ROW or self.block:
            return 1
        if kind in (Extent.COL, Extent.MATRIX):
            return self.rows
        if kind is Extent.UNIT:
            return self.lines // max(1, self.shape[0])
        return self.lines if kind.size == -1 else math.prod(self.shape[kind.size + 1 : -1])

    def count(self, kind: Extent) -> int:
        """How many slices there are."""
        if kind in (Extent.UNIT, Extent.dim(-1)) or (kind.name.startswith("DIM") and kind.size >= 0):
            return self.shape[0 if kind is Extent.UNIT else kind.size]
        if kind in (Extent.COL, Extent.MATRIX):
            return math.prod(self.shape[:-2]) * (self.columns if kind is Extent.COL else 1)
        return self.lines


def across(kind: Extent) -> bool:
    """Whether slices of a kind are columns, and not lines."""
    return kind in (Extent.COL, Extent.dim(-1))


def slice_of(at: np.ndarray, kind: Extent, columns: int, inner: int, count: int) -> np.ndarray:
    """The slice of each element, by its place in a tensor; see `View` for the numbers."""
    line, column = at // columns, at % columns
    return line // inner * columns + column if across(kind) else line // inner % count


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
    def swept(self) -> tuple[Reduction, ...]:
        """The reductions of slices that a sweep finds in part."""
        return tuple(r for step in self.plan.sweeps for r in step.reductions if r.extent.sliced)

    def several(self, kind: Extent) -> bool:
        """Whether slices of a kind are several lines each."""
        alone = kind is Extent.ROW or kind.name.startswith("BLOCK") or self.plan.slices == (Extent.UNIT,)
        return not (alone or across(kind))

    @cached_property
    def partial(self) -> tuple[int, ...]:
        """The slots of tensors that a sweep finds in part, one chunk after the other."""
        found = (r for step in self.plan.sweeps for r in step.reductions)
        return tuple(r.slot for r in found if not r.extent.sliced)

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
            names += [f"@{what}{r.slot}" for r in self.swept for what in ("parts", "turns")]
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


@dataclass
class Tables:
    """What a launch reads, as arrays of the back end's own kind.

    `tensors` int64 [tensors, width]; `chunks` int64 [chunks, 2] (tensor, first element), or [tiles, 7]
    (tensor, then what `launch/tiles.py` says); `scalars` in working precision [rows, scalars]; `partials`
    float64 [chunks, `Layout.partial`]; `slots` float64 [tensors, slots].

    With slices: `lines` float64, the slots of slices, from `@slot<i>`, and what tiles have found of them,
    from `@parts<i>` (see `launch/tiles.py`); `slices` by kind, int64 [n, 2] (tensor, first slice).
    `numbers` float64: what is one for the whole optimizer, see `Plan.numbers`.
    `moving` int64 [tensors, stores]: where torch tensors have the addresses in `Layout.moving`.
    """

    tensors: Any
    chunks: Any
    scalars: Any
    partials: Any
    slots: Any
    lines: Any = None
    numbers: Any = None
    moving: Any = None
    size: Any = None  # int64 [1], how many tensors there are
    elements: int = 0  # of all tensors together
    slices: dict[Extent, Any] = field(default_factory=dict)
    words: tuple[Any, Any, np.ndarray] | None = None  # `tensors`, `scalars`, and where all lie
    threads: int = 1  # that a sweep is divided over

    def arguments(self, layout: Layout) -> tuple[Any, ...]:
        """What `Layout.arguments` names."""
        return tuple(getattr(self, name) for name in layout.arguments)


class Kernel(Protocol):
    """A plan compiled for one layout."""

    chunk: int  # elements that one row of `chunks` stands for, or
    tile: tuple[int, int]  # lines and columns, or more of them
    atomic: bool  # whether slices' maxima are found in place, without parts
    numpy_tables: bool  # whether it takes NumPy arrays, and not torch tensors

    def prepare(self, tables: Tables) -> None:
        """Compile all that a step of these tables runs, so that nothing can fail after the first launch."""

    def run(self, step: Step, tables: Tables) -> None:
        """Run one step of the plan over every tensor."""

    def alone(self, step: Step, tables: Tables) -> tuple[int, int] | None:
        """A C function of one pointer and what it points to, which make a step that is short in this thread.

        None where it is not short, or no such function. Both are good while `words` of the tables stay.
        """
        return None
