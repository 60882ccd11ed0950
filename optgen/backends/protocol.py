"""The interface of back ends: `Tables`, which the launcher fills, and `Kernel`, which runs a step on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from optgen.backends.layout import Layout
from optgen.ir.extent import Extent
from optgen.plan.plan import Step


@dataclass
class Tables:
    """The arrays that a launch reads, NumPy's or torch's as the back end wants them.

    `tensors` int64 [tensors, width]; `chunks` int64 [chunks, 2] (tensor, first element), or [tiles, 7]
    (tensor, then `Tiling.chunk_rows`); `scalars` in working precision [rows, scalars]; `partials`
    float64 [chunks, `Layout.partial`]; `slots` float64 [tensors, slots].

    With slices: `lines` float64, the slots of slices from `@slot<i>`, and partial results of tiles from
    `@parts<i>` (see `launch/tiles.py`); `slices` by kind, int64 [n, 2] (tensor, first slice).
    `numbers` float64: values that are one for the whole optimizer, see `Plan.numbers`.
    `moving` int64 [tensors, stores]: on a GPU, the addresses in `Layout.moving`.
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
        """The tables named in `Layout.arguments`."""
        return tuple(getattr(self, name) for name in layout.arguments)


class Kernel(Protocol):
    """A plan compiled for one layout."""

    chunk: int  # elements that one row of `chunks` stands for, or
    tile: tuple[int, int]  # lines and columns, or more of them
    atomic: bool  # whether slices' maxima are found in place, without parts
    numpy_tables: bool  # whether it takes NumPy arrays, and not torch tensors

    def prepare(self, tables: Tables) -> None:
        """Compile all that a step on these tables runs, so that nothing can fail after the first launch."""

    def run(self, step: Step, tables: Tables) -> None:
        """Run one step of the plan on every tensor."""

    def c_call(self, step: Step, tables: Tables) -> tuple[int, int] | None:
        """The address of a C function and of its argument, which run this step in the calling thread.

        None if the step is worth several threads, or there is no such function. Both stay valid as long as
        `words` of the tables does.
        """
        return None
