"""Strided tensors: the fewest dimensions that walk all stores of a parameter, and the shapes of slices."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from optgen.backends.layout import MAX_DIMS
from optgen.backends.slices import View
from optgen.ir.extent import Extent


@dataclass(frozen=True)
class Geometry:
    """How the element stores of one tensor are walked: sizes, and each store's strides.

    Without sizes, every store is dense in the same order, and is walked in memory order.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    def one_by_one(self, numel: int, stores: int) -> Geometry:
        """The same with a stride for every element, for stores that are dense but not aligned."""
        return self if self.sizes else Geometry((numel,), ((1,),) * stores)


def geometry(tensors: Sequence[Tensor], logical: bool = False) -> Geometry:
    """Collapse the dimensions of tensors of one shape as far as one stride walks them.

    With `logical`, dimensions keep their order, so that the i-th element walked has flat index i.

    Raises:
        ValueError: elements of the first one share memory, or too many dimensions are left.
    """
    first = tensors[0]
    if all(t.is_contiguous() for t in tensors):
        return Geometry((), ())
    used = [d for d in range(first.dim()) if first.shape[d] > 1]
    order = sorted(used, key=first.stride, reverse=True)
    if logical and order != used:
        _merge(first, tensors, order)  # it checks
        order = used
        merged_sizes, merged = _merge(first, tensors, order, False)
    else:
        merged_sizes, merged = _merge(first, tensors, order)
    if not merged or (len(merged) == 1 and all(s == 1 for s in merged[0])):
        return Geometry((), ())
    if len(merged) > MAX_DIMS:
        raise ValueError(
            f"a parameter of shape {tuple(first.shape)} needs {len(merged)} strides; at most {MAX_DIMS} work"
        )
    return Geometry(tuple(merged_sizes), tuple(zip(*merged, strict=True)))


def _merge(
    first: Tensor, tensors: Sequence[Tensor], order: Sequence[int], check: bool = True
) -> tuple[list[int], list[list[int]]]:
    """Collapse adjacent dimensions, in this order; checks that the first tensor's elements are distinct."""
    sizes = [first.shape[d] for d in order]
    strides = [[t.stride(d) for t in tensors] for d in order]
    merged_sizes: list[int] = []
    merged: list[list[int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if merged and all(a == b * size for a, b in zip(merged[-1], stride, strict=True)):
            merged_sizes[-1] *= size
            merged[-1] = stride
        else:
            merged_sizes.append(size)
            merged.append(stride)
    reach = 1
    for size, stride in zip(reversed(merged_sizes), reversed(merged), strict=True):
        if check and stride[0] < reach:
            raise ValueError(
                f"elements of a parameter of shape {tuple(first.shape)} and strides {first.stride()} share "
                "memory, so it cannot be updated in place; optimize a contiguous copy of it"
            )
        reach = stride[0] * (size - 1) + reach
    return merged_sizes, merged


def slice_shape(param: Tensor, kind: Extent) -> tuple[int, ...]:
    """The shape of a state of slices: the parameter's, with 1 in dimensions that are reduced."""
    if kind.name.startswith("BLOCK"):
        return (View.of(param.shape, (kind,)).count(kind),)
    dims = slice_dims(param.dim(), kind)
    return tuple(size if d in dims else 1 for d, size in enumerate(param.shape))


def slice_dims(ndim: int, kind: Extent) -> Collection[int]:
    """The dimensions that index slices; the others are reduced."""
    dims: dict[Extent, Collection[int]] = {
        Extent.ROW: range(ndim - 1), Extent.COL: [*range(ndim - 2), ndim - 1],
        Extent.MATRIX: range(ndim - 2), Extent.UNIT: [0],
    }  # fmt: skip
    return dims[kind] if kind in dims else [kind.size % ndim]
