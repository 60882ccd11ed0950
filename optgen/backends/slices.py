"""Slices of a tensor (rows, columns, blocks, other dimensions): their number, and their elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optgen.ir.extent import Extent


@dataclass(frozen=True)
class View:
    """A tensor as a table of lines: rows of its last dimension, or blocks of consecutive elements.

    `rows` lines make a matrix. A slice of most kinds is the set of lines with one value of
    `line // inner % count`. A slice of columns is one column of each matrix or, if `inner` is all lines,
    of the whole tensor. If `units`, a line is a whole entry of the first dimension.
    """

    shape: tuple[int, ...]
    block: int = 0
    units: bool = False

    @staticmethod
    def of(shape: Sequence[int], slices: Sequence[Extent]) -> View:
        """The view for a plan whose values have these kinds of slices.

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
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Elements of a line; the last block may have fewer."""
        if self.units:
            return math.prod(self.shape[1:])
        return self.block or (self.shape[-1] if self.shape else 1)

    @property
    def lines(self) -> int:
        """The number of lines, also if they are empty."""
        if self.units:
            return self.shape[0]
        return -(-self.numel // self.block) if self.block else math.prod(self.shape[:-1])

    @property
    def rows(self) -> int:
        """Lines of a matrix (the last two dimensions)."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    def inner(self, kind: Extent) -> int:
        """Consecutive lines that belong to one slice; for columns, the lines that one column runs through."""
        if kind is Extent.ROW or self.block:
            return 1
        if kind in (Extent.COL, Extent.MATRIX):
            return self.rows
        if kind is Extent.UNIT:
            return self.lines // max(1, self.shape[0])
        return self.lines if kind.size == -1 else math.prod(self.shape[kind.size + 1 : -1])

    def count(self, kind: Extent) -> int:
        """The number of slices of a kind."""
        if kind in (Extent.UNIT, Extent.dim(-1)) or (kind.name.startswith("DIM") and kind.size >= 0):
            return self.shape[0 if kind is Extent.UNIT else kind.size]
        if kind in (Extent.COL, Extent.MATRIX):
            return math.prod(self.shape[:-2]) * (self.columns if kind is Extent.COL else 1)
        return self.lines


def is_columns(kind: Extent) -> bool:
    """Whether slices of a kind are columns instead of lines."""
    return kind in (Extent.COL, Extent.dim(-1))


def slice_of(at: np.ndarray, kind: Extent, columns: int, inner: int, count: int) -> np.ndarray:
    """Slice index of elements, given their flat indices; see `View` for `columns`, `inner` and `count`."""
    line, column = at // columns, at % columns
    return line // inner * columns + column if is_columns(kind) else line // inner % count
