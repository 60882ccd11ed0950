"""Overlap of tensors in memory, where a step of one would change another.

In: tensors. Out: nothing, or a `ValueError` with the shapes of two that overlap. Views of one buffer are
fine as long as no element is in two of them. Tensors without an address are skipped: subclasses such as
DTensor, empty ones, those on the meta device or with freed storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from optgen.launch.strides import geometry

_PLAIN = (Tensor, nn.Parameter)


class _RawArray:
    """A tensor's memory as `numpy.shares_memory` takes it; it is never read, so it may be a GPU's."""

    def __init__(self, p: Tensor):
        size = p.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "shape": tuple(p.shape),
            "strides": tuple(stride * size for stride in p.stride()),
            "data": (p.data_ptr(), False),
        }


def check_memory(params: Iterable[Tensor]) -> None:
    """Refuse a parameter whose elements share memory, and two parameters that overlap.

    Raises:
        ValueError: with the shapes.
    """
    tensors = list(params)
    for p in tensors:
        if _has_memory(p) and not p.is_contiguous():
            geometry([p])  # refuses elements that share memory
    pair = overlapping(tensors, same=True)
    if pair is not None:
        a, b = (tuple(tensors[i].shape) for i in pair)
        raise ValueError(
            f"parameters of shapes {a} and {b} overlap in memory, so a step of one would change the other: "
            "optimize one of them, or what they are views of"
        )


def overlapping(tensors: Sequence[Tensor], same: bool = False) -> tuple[int, int] | None:
    """Indices of two tensors that share an element; with `same`, one tensor may occur twice."""
    spans = sorted((*_span(t), i) for i, t in enumerate(tensors) if _has_memory(t))
    before: list[tuple[int, int, int]] = []
    for start, end, i in spans:
        # Sorted by start: whatever ended before this one starts overlaps with none that follow.
        before = [other for other in before if other[1] > start]
        for *_, j in before:
            a, b = tensors[j], tensors[i]
            if not (same and a is b) and _overlap(a, b):
                return min(i, j), max(i, j)
        before.append((start, end, i))
    return None


def _has_memory(p: Tensor) -> bool:
    """Whether a tensor is plain and has an address."""
    plain = type(p) in _PLAIN and p.layout is torch.strided and p.device.type != "meta"
    return plain and bool(p.numel()) and bool(p.untyped_storage().nbytes())


def _span(p: Tensor) -> tuple[int, int]:
    """A tensor's address range: its first byte, and the one after its last."""
    start, size = p.data_ptr(), p.element_size()
    return start, start + size * (1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)))


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share an element, given that their address ranges overlap."""
    return a.device == b.device and np.shares_memory(np.asarray(_RawArray(a)), np.asarray(_RawArray(b)))
