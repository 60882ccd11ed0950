"""Tiling of tensors with slices: tile sizes, and where partial results of each tile are stored.

In: a layout and shapes. Out: rows of tables. A tile is a range of lines by a range of columns. Partial
results of a reduction to slices are cells of the table `lines`, one row of cells for every part that slices
are divided into: lines over the `across` tiles side by side, columns over the `down` tiles below each other
in a matrix. If slices are not divided, the cells are those of the result itself; others are free again after
the sweep. On a GPU maxima are taken in place; on the CPU slices of several lines have a row per tile, and on
a GPU, for sums of them, a cell per line.

Larger tiles need fewer cells, smaller ones more parallelism: tiles are as small as possible while all that
a step allocates for a tensor besides its state stays within `allowance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from optgen.backends.layout import Layout
from optgen.backends.protocol import Kernel
from optgen.backends.slices import View, is_columns
from optgen.ir.extent import Extent
from optgen.ir.node import Op
from optgen.plan.plan import Reduction

CELL_BYTES = 8  # bytes of a place


def allowance(layout: Layout, view: View, size: int) -> int:
    """Bytes of scratch memory that a step may use for a tensor of so many bytes.

    A hundredth; where that is less, 16 for each value of a reduction, 8 for it and 8 for one part of it.
    """
    counts = [view.count(kind) if kind.sliced else 1 for kind in layout.plan.extents]
    return max(size // 100, 2 * CELL_BYTES * sum(counts))


@dataclass(frozen=True)
class Tiling:
    """The tiles of one tensor, at most `height` lines by `width` columns.

    If columns of matrices have values, a tile is a part of one matrix, or some whole ones; if blocks have
    several matrices, lines are counted with the blocks' padding.
    """

    layout: Layout
    view: View
    height: int
    width: int
    atomic: bool  # whether maxima are found in place

    @staticmethod
    def of(layout: Layout, view: View, kernel: Kernel, cells_needed: int) -> Tiling:
        """The smallest tiles within the allowance of a tensor of so many bytes; else the least scratch."""
        height, width = kernel.tile
        height *= max(1, width // max(1, view.columns))
        candidates = [Tiling(layout, view, height, width, kernel.atomic).fitted()]
        allowed = allowance(layout, view, cells_needed)
        if candidates[0].scratch <= allowed:
            return candidates[0]
        while (taller := replace(candidates[-1], height=candidates[-1].height * 2).fitted()) != candidates[
            -1
        ]:
            candidates.append(taller)
        widened = []
        for tiling in candidates:
            wide = tiling
            while wide.scratch > allowed and wide.width < view.columns:
                wide = replace(wide, width=wide.width * 2).fitted()
            widened.append(wide)
        within = [tiling for tiling in widened if tiling.scratch <= allowed]
        if within:
            return max(within, key=lambda tiling: tiling.count)
        return min(widened, key=lambda tiling: tiling.scratch)

    def fitted(self) -> Tiling:
        """Clip to the tensor's lines and columns, and to whole matrices or a part of one."""
        height = min(self.height, self.rows * max(1, self.matrices))
        if height > self.rows:
            height = height // self.rows * self.rows if self.multi_matrix else self.rows
        return replace(self, height=height, width=min(self.width, max(1, self.view.columns)))

    @property
    def by_matrix(self) -> bool:
        """Whether a tile must not mix parts of different matrices."""
        return Extent.COL in self.layout.plan.slices

    @property
    def multi_matrix(self) -> bool:
        """Whether a tile may have several matrices; on a GPU, only if a block does."""
        return self.layout.block is None or self.layout.block.rows > 0

    @property
    def rows(self) -> int:
        """Lines of a matrix, with padding, or all lines if tiles need not respect matrices."""
        padded = self.layout.block.rows if self.layout.block is not None else 0
        return max(1, (padded or self.view.rows) if self.by_matrix else self.view.lines)

    @property
    def matrices(self) -> int:
        """The number of matrices, or 1 if tiles need not respect them."""
        return self.view.lines // max(1, self.view.rows) if self.by_matrix else min(1, self.view.lines)

    @property
    def down(self) -> int:
        """Tiles below each other in a matrix."""
        return -(-self.rows // self.height) if self.view.lines else 0

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return -(-self.view.columns // self.width)

    @property
    def count(self) -> int:
        """The number of tiles."""
        high = self.matrices * self.rows
        return (
            -(-high // self.height) if self.height > self.rows else self.matrices * self.down
        ) * self.across

    def chunk_rows(self) -> np.ndarray:
        """A row per tile, int64 [tiles, 6].

        First line, first column, end line, index among tiles beside each other, matrix of the first line, and
        the row of column cells of that matrix.
        """
        high = self.matrices * self.rows
        tops = np.arange(0, high, max(self.rows, self.height))[:, None] + np.arange(0, self.rows, self.height)
        lefts = np.arange(0, self.view.columns, self.width)
        top, left = (a.ravel() for a in np.meshgrid(tops.ravel(), lefts, indexing="ij"))
        matrix = top // self.rows
        end = np.minimum(top + self.height, high if self.height > self.rows else (matrix + 1) * self.rows)
        stack = top % self.rows // self.height * self.matrices + matrix
        fields = (top, left, end, left // self.width, matrix, stack)
        return np.stack(fields, axis=1).astype(np.int64)

    def cell_count(self, r: Reduction) -> int:
        """Cells for a reduction's partial results."""
        if self.in_place(r):
            return self.view.count(r.extent)
        if is_columns(r.extent):
            return self.matrices * self.down * self.view.columns
        if not self.atomic and self.layout.spans_lines(r.extent):
            return self.view.count(r.extent) * self.count
        return self.across * self.view.lines

    def in_place(self, r: Reduction) -> bool:
        """Whether a reduction is a maximum taken in place, by atomics."""
        return self.atomic and r.op is Op.AMAX

    def needs_scratch(self, r: Reduction) -> bool:
        """Whether partial results need cells besides those of the result."""
        several = self.atomic and self.layout.spans_lines(r.extent)
        return self.in_place(r) or several or self.cell_count(r) != self.view.count(r.extent)

    @cached_property
    def in_place_offsets(self) -> dict[int, int]:
        """Offset of the cells of each reduction in place, by slot."""
        return _exclusive_sums(
            {r.slot: self.cell_count(r) for r in self.layout.sliced_reductions if self.in_place(r)}
        )

    @cached_property
    def scratch_offsets(self) -> dict[int, int]:
        """Offset of the scratch cells of each other reduction, by slot; sweeps reuse the same cells."""
        offsets: dict[int, int] = {}
        for step in self.layout.plan.sweeps:
            reductions = [
                r
                for r in step.reductions
                if r.extent.sliced and self.needs_scratch(r) and not self.in_place(r)
            ]
            offsets |= _exclusive_sums({r.slot: self.cell_count(r) for r in reductions})
        return offsets

    def cells_needed(self, slots: Mapping[int, int]) -> int:
        """Cells that `in_place_offsets` or `scratch_offsets` span."""
        return max(
            (slots[r.slot] + self.cell_count(r) for r in self.layout.sliced_reductions if r.slot in slots),
            default=0,
        )

    @cached_property
    def scratch(self) -> int:
        """Bytes that a step allocates for this tensor: results, and partial results."""
        kinds, partial = self.layout.plan.extents, len(self.layout.partial)
        values = sum(self.view.count(kind) if kind.sliced else 1 for kind in kinds)
        return CELL_BYTES * (
            values
            + self.cells_needed(self.in_place_offsets)
            + self.cells_needed(self.scratch_offsets)
            + partial * self.count
        )

    def columns(self) -> dict[str, int]:
        """The tensor's entries in columns that depend on its tiling."""
        columns = {
            "columns": self.view.columns, "lines": self.view.lines, "width": self.width,
            "rows": max(1, self.view.rows if self.by_matrix else self.view.lines),
        }  # fmt: skip
        for r in self.layout.sliced_reductions:
            columns[f"turns{r.slot}"] = self.cell_count(r) // max(1, self.view.count(r.extent))
        for kind in self.layout.plan.slices:
            columns |= {
                f"inner_{kind}": max(1, self.view.inner(kind)),
                f"count_{kind}": self.view.count(kind),
            }
        return columns


def _exclusive_sums(counts: Mapping[int, int]) -> dict[int, int]:
    """Exclusive prefix sums, by slot."""
    return dict(zip(counts, (0, *accumulate(counts.values())), strict=False))
