"""What a back end makes of a plan: a `Kernel`, which runs one step of it on the tables of a launch.

In: `Tables`, arrays of the host or tensors of the device. Out: a sweep, a combination of partial sums, or
what else `plan.plan.Step` names, done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from optgen.backends.layout import Layout
from optgen.ir.extent import Extent
from optgen.plan.plan import Step


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

    def c_call(self, step: Step, tables: Tables) -> tuple[int, int] | None:
        """Function pointer and argument with which compiled code runs a short step in this thread, or None.

        None where it is not short, or no such function. Both are good while `words` of the tables stay.
        """
        return None
