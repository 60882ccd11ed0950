"""Whether parameters lie in each other's memory, where a step would change two at once.

In: parameters. Out: nothing, or a `ValueError` that names the two. Views of one buffer are fine as long as
no element is in two of them. Tensors without an address are passed over: those of other classes, such as
DTensor, empty ones, those on the meta device or whose storage has been freed.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from optgen.launch.geometry import geometry

_PLAIN = (Tensor, nn.Parameter)


class _Memory:
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
    spans = sorted((*span, i, p) for i, p in enumerate(params) if (span := _span(p)) is not None)
    before: list[tuple[int, int, int, Tensor]] = []
    for start, end, i, p in spans:
        before = [other for other in before if other[1] > start]
        for *_, other in before:
            if other is not p and _overlap(other, p):
                raise ValueError(
                    f"parameters of shapes {tuple(other.shape)} and {tuple(p.shape)} overlap in memory, so a "
                    "step of one would change the other: optimize one of them, or what they are views of"
                )
        before.append((start, end, i, p))


def _span(p: Tensor) -> tuple[int, int] | None:
    """The first address of a tensor, and the first behind it."""
    if type(p) not in _PLAIN or p.layout is not torch.strided or p.device.type == "meta" or not p.numel():
        return None
    start, size = p.data_ptr(), p.element_size()
    if p.is_contiguous():
        return start, start + p.numel() * size
    geometry([p])  # refuses elements that share memory
    return start, start + size * (1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)))


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether an element of one lies in one of the other, when their spans overlap."""
    if a.device != b.device or not a.untyped_storage().nbytes() or not b.untyped_storage().nbytes():
        return False
    return np.shares_memory(np.asarray(_Memory(a)), np.asarray(_Memory(b)))
