"""Whether tensors lie in each other's memory, where a step would change two at once.

In: tensors, and what each is called. Out: nothing, or a `ValueError` that names the two. Views of one buffer
are fine as long as no element is in two of them. Tensors without an address are passed over: those of other
classes, such as DTensor, empty ones, those on the meta device or whose storage has been freed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from optgen.launch.strides import geometry

_PLAIN = (Tensor, nn.Parameter)


class _RawArray:
    """A tensor's memory as `numpy.shares_memory` takes it: nothing is read, so it may be a GPU's."""

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
    """Refuse a parameter with elements that share memory, and two different ones that overlap.

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
    """Two tensors that share an element, by their places; with `same`, one may be there twice."""
    spans = sorted((*_span(t), i) for i, t in enumerate(tensors) if _has_memory(t))
    before: list[tuple[int, int, int]] = []
    for start, end, i in spans:
        before = [other for other in before if other[1] > start]
        for *_, j in before:
            a, b = tensors[j], tensors[i]
            if not (same and a is b) and _overlap(a, b):
                return min(i, j), max(i, j)
        before.append((start, end, i))
    return None


def _has_memory(p: Tensor) -> bool:
    plain = type(p) in _PLAIN and p.layout is torch.strided and p.device.type != "meta"
    return plain and bool(p.numel()) and bool(p.untyped_storage().nbytes())


def _span(p: Tensor) -> tuple[int, int]:
    """The first address of a tensor, and the first behind it."""
    start, size = p.data_ptr(), p.element_size()
    return start, start + size * (1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)))


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether an element of one lies in one of the other, when their spans overlap."""
    return a.device == b.device and np.shares_memory(np.asarray(_RawArray(a)), np.asarray(_RawArray(b)))
