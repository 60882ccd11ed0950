"""How often a value changes: the extent that every node has, and how extents join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optgen.locks import once


@dataclass(frozen=True, eq=False)
class Extent:
    """How often a value changes; a node varies as fast as its fastest argument (see `join`).

    STEP covers everything the host knows before a launch: hyperparameters, the step count, the facts
    of a tensor's shape, and tensor state that follows from those alone. ALL is one number for the whole
    optimizer. Between TENSOR and ELEMENT stand the slices of a tensor: ROW and COL of its last two
    dimensions and the MATRIX that those two make, UNIT (an index of the first dimension), `dim(k)` (an
    index of dimension k; -1 is the last), and `block(n)` (n elements in a row). Each is one object.
    """

    name: str
    rank: int
    size: int = 0  # the k of dim(k), the n of block(n)

    CONST: ClassVar[Extent]
    STEP: ClassVar[Extent]
    ALL: ClassVar[Extent]
    TENSOR: ClassVar[Extent]
    MATRIX: ClassVar[Extent]
    ROW: ClassVar[Extent]
    COL: ClassVar[Extent]
    UNIT: ClassVar[Extent]
    ELEMENT: ClassVar[Extent]

    @staticmethod
    def dim(k: int) -> Extent:
        """One value for each index of dimension k."""
        return once(_extents, ("DIM", k), lambda: Extent(f"DIM({k})", 5, k))

    @staticmethod
    def block(n: int) -> Extent:
        """One value for each n elements in a row."""
        return once(_extents, ("BLOCK", n), lambda: Extent(f"BLOCK({n})", 5, n))

    def __lt__(self, other: Extent) -> bool:
        return self.rank < other.rank

    def __le__(self, other: Extent) -> bool:
        return self.rank <= other.rank

    def __gt__(self, other: Extent) -> bool:
        return self.rank > other.rank

    def __ge__(self, other: Extent) -> bool:
        return self.rank >= other.rank

    def __repr__(self) -> str:
        return self.name

    @property
    def sliced(self) -> bool:
        """Whether a tensor has several of these values, but fewer than elements."""
        return 3 < self.rank < 6

    @property
    def phrase(self) -> str:
        """The extent as error texts name it."""
        plain = {
            "CONST": "a constant", "STEP": "one value per step", "ALL": "one value for all tensors",
            "TENSOR": "one value per tensor", "ELEMENT": "a value per element",
        }  # fmt: skip
        return plain.get(self.name) or f"a value per {self.name.lower()}"


_extents: dict[tuple[str, int], Extent] = {}  # each is one object, whichever thread asks first


Extent.CONST, Extent.STEP, Extent.ALL = Extent("CONST", 0), Extent("STEP", 1), Extent("ALL", 2)


Extent.TENSOR, Extent.MATRIX = Extent("TENSOR", 3), Extent("MATRIX", 4)


Extent.ROW, Extent.COL, Extent.UNIT = Extent("ROW", 5), Extent("COL", 5), Extent("UNIT", 5)


Extent.ELEMENT = Extent("ELEMENT", 6)


EXTENTS = {
    e.name: e
    for e in (
        *(Extent.CONST, Extent.STEP, Extent.ALL, Extent.TENSOR, Extent.MATRIX, Extent.ROW, Extent.COL),
        *(Extent.UNIT, Extent.ELEMENT),
    )
}


def join(a: Extent, b: Extent) -> Extent:
    """The extent of a value made of two others.

    One value per step and one for all tensors make one per tensor, for a step's values differ between
    groups. Slices of two kinds make a value per element.
    """
    if a is b:
        return a
    low, high = (a, b) if a.rank <= b.rank else (b, a)
    if (low, high) == (Extent.STEP, Extent.ALL):
        return Extent.TENSOR
    if high.sliced and low.sliced and not (low is Extent.MATRIX and high in (Extent.ROW, Extent.COL)):
        return Extent.ELEMENT
    return high


def fits(extent: Extent, limit: Extent) -> bool:
    """Whether a store of one extent can hold a value of another."""
    return join(extent, limit) is limit
