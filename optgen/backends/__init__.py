"""The back ends, and what they share: the tables of a launch and the protocol of a compiled kernel.

A launch covers a bucket: tensors with the same device, dtypes and specialisation. `tensors` has a row a
tensor (addresses, size, scalar row, and for strided kernels sizes and strides), `chunks` a row a
program instance (tensor, first element), `scalars` a row for each distinct set of STEP values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from optgen.plan import Plan

MAX_DIMS = 8  # of a strided kernel, after dimensions that lie in one stride were merged


@dataclass(frozen=True)
class Layout:
    """The columns of the `tensors` table for a plan.

    With `dims` 0 every element store of a tensor is walked in memory order; otherwise each store has
    its own strides over `dims` common dimensions. Spills are always contiguous.
    """

    plan: Plan
    dims: int = 0

    @property
    def pointers(self) -> tuple[str, ...]:
        """The columns that hold addresses: element stores, spills, tensor states."""
        spills = tuple(f"#{i}" for i in range(self.plan.spills))
        return (*self.plan.stores, *spills, *self.plan.tensor_states)

    @cached_property
    def columns(self) -> dict[str, int]:
        """The index of each column by its name."""
        names = [*self.pointers, "@numel", "@row", "@aligned", "@first", "@count"]
        names += [f"@size{d}" for d in range(self.dims)]
        names += [f"@stride_{s}{d}" for s in self.plan.stores for d in range(self.dims)]
        return {name: i for i, name in enumerate(names)}

    @property
    def width(self) -> int:
        """How many columns there are."""
        return len(self.columns)


@dataclass
class Tables:
    """What a launch reads, as arrays of the back end's own kind.

    `tensors` int64 [tensors, width], `chunks` int64 [chunks, 2], `scalars` in working precision [rows,
    scalars], `partials` float64 [chunks, slots], `slots` float64 [tensors, slots].
    """

    tensors: Any
    chunks: Any
    scalars: Any
    partials: Any
    slots: Any


class Kernel(Protocol):
    """A plan compiled for one layout. Each method is one launch."""

    chunk: int  # elements that one row of `chunks` stands for
    numpy_tables: bool  # whether it takes NumPy arrays, and not torch tensors

    def sweep(self, phase: int, tables: Tables) -> None:
        """Run one phase over every chunk."""

    def combine(self, tables: Tables, slots: Sequence[int]) -> None:
        """Combine the chunks' partial results of these slots, one value a tensor, in a fixed order."""

    def finish(self, tables: Tables) -> None:
        """Write the new tensor states."""
