"""DTensor: local shards of parameters, gradients and states, and all-reduces of partial reductions.

In: parameters, states and gradients as the optimizer has them. Out: this process's shard of each as a plain
tensor, its position in the full tensor (`Shard`), and, between phases, reductions completed over all
processes: one collective for all tensors, and one more if a rule needs both sums and maxima.

A local shard may be empty. It is launched nevertheless if its rule has reductions, since every process must
reach the same collectives in the same order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from optgen.backends.reference import NEUTRAL
from optgen.ir.extent import Extent
from optgen.ir.node import Op
from optgen.launch.guards import PLAIN
from optgen.launch.strides import slice_dims
from optgen.plan.plan import Reduction

EVERY = 1 << 62  # more elements than there are: nothing is skipped


@dataclass(frozen=True)
class Shard:
    """Position of a process's shard in the full tensor.

    `sizes` are the shard's, `offset` the index of its first element, `dims` the tensor dimension that each
    mesh dimension shards, or -1. `box` says whether the shard is one box of the tensor.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    offset: tuple[int, ...]
    dims: tuple[int, ...]
    mesh: Any
    box: bool = True

    @cached_property
    def place(self) -> tuple[int, ...]:
        """Local to full flat index: `every0`, `skip0`, `every1`, `skip1`, `offset` of `layout.PLACE`.

        Raises:
            ValueError: the shard is no box, or three dimensions are sharded.
        """
        divided = [d for d in reversed(range(len(self.shape))) if self.sizes[d] != self.shape[d]]
        if not self.box or len(divided) > 2:
            raise ValueError(
                f"random numbers need a parameter of shape {self.shape} to be divided once along each of at "
                f"most two dimensions, and it is divided over the mesh as {self.dims}"
            )
        steps = []
        for d in divided:
            inner = math.prod(self.shape[d + 1 :])
            steps += [max(1, self.sizes[d] * inner), (self.shape[d] - self.sizes[d]) * inner]
        steps += [EVERY, 0] * (2 - len(divided))
        strides = [math.prod(self.shape[d + 1 :]) for d in range(len(self.shape))]
        return (*steps, sum(o * s for o, s in zip(self.offset, strides, strict=True)))

    def partial_dims(self, reduction: Reduction) -> tuple[int, ...]:
        """Mesh dimensions over which a reduction's local results are partial."""
        before, after = (self._dims_of(e) for e in (reduction.operand.extent, reduction.extent))
        return tuple(i for i, d in enumerate(self.dims) if d in before and d not in after)

    def _dims_of(self, kind: Extent) -> Collection[int]:
        """The tensor dimensions that values of an extent have."""
        ndim = len(self.shape)
        if kind.sliced:
            return slice_dims(ndim, kind)
        return range(ndim) if kind is Extent.ELEMENT else ()


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, in the same memory; a plain tensor as it is."""
    if not _distributed(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    wait: Callable[[], Tensor] | None = getattr(part, "wait", None)  # of a collective still under way
    return wait() if wait is not None else part


def shard_of(tensor: Tensor) -> Shard | None:
    """Position of this process's shard; None for a plain or fully replicated tensor. Cached by parameter.

    Raises:
        ValueError: its placement is partial.
    """
    if not _distributed(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    cached: tuple[Any, Any, Any, Shard | None] | None = _shards.get(tensor)  # type: ignore[no-untyped-call]
    if cached is None or cached[0] is not mesh or cached[1:3] != (placements, tensor.shape):
        cached = _shards[tensor] = (mesh, placements, tensor.shape, _locate(tensor, mesh, placements))
    return cached[3]


# Where parts lie, found once for a parameter; it is forgotten with the parameter.
_shards: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _locate(tensor: Tensor, mesh: Any, placements: Sequence[Any]) -> Shard | None:
    """Compute the position from a DTensor's mesh and placements."""
    from torch.distributed.tensor import Shard as Divided
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(p.is_partial() for p in placements):
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} is a sum over processes: redistribute it"
        )
    dims = tuple(
        p.dim % tensor.dim() if p.is_shard() and mesh.size(i) > 1 else -1 for i, p in enumerate(placements)
    )
    if max(dims, default=-1) < 0:
        return None
    sizes, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    box = all(type(p) is Divided for p, d in zip(placements, dims, strict=True) if d >= 0)
    return Shard(tuple(tensor.shape), tuple(sizes), tuple(offset), dims, mesh, box)


def like(param: Tensor, state: Tensor, kind: Extent) -> Tensor:
    """Wrap a state, made for a parameter's local shard, as a DTensor with the parameter's placements.

    Raises:
        ValueError: the state has a value for each block of elements, which shards may cut.
    """
    if not _distributed(param) or not (kind.sliced or kind is Extent.ELEMENT):
        return state
    from torch.distributed.tensor import DTensor, Replicate

    if kind.name.startswith("BLOCK"):
        raise ValueError(
            f"a parameter with a state per={kind.name.lower()} cannot be distributed: parts cut it"
        )
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    dims = range(param.dim()) if kind is Extent.ELEMENT else slice_dims(param.dim(), kind)
    size = torch.Size(s if d in dims else 1 for d, s in enumerate(param.shape))
    stride = param.stride() if kind is Extent.ELEMENT else torch.empty(size, device="meta").stride()
    state_placements = [
        Replicate() if p.is_shard() and p.dim % param.dim() not in dims else p for p in placements
    ]
    state_dtensor: Tensor = DTensor.from_local(
        state, mesh, state_placements, run_check=False, shape=size, stride=stride
    )
    return state_dtensor


def matching(tensor: Tensor, param: Tensor) -> Tensor:
    """This process's shard of a gradient or input, redistributed to the parameter's placements."""
    if _distributed(param) and _distributed(tensor):
        if tensor.placements != param.placements:  # type: ignore[attr-defined]
            tensor = tensor.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    elif _distributed(param) or _distributed(tensor):
        mine, its = ("distributed" if _distributed(t) else "plain" for t in (param, tensor))
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} is {mine}, but its gradient or input is {its}"
        )
    return local(tensor)


def brought(value: Tensor, home: Tensor, device: torch.device) -> Tensor:
    """This process's shard of a checkpoint's value, on a device and with the placements of `home`."""
    if not _distributed(home):
        return value.full_tensor() if _distributed(value) else value  # type: ignore[attr-defined]
    mesh, placements = home.device_mesh, home.placements  # type: ignore[attr-defined]
    if not _distributed(value):
        from torch.distributed.tensor import distribute_tensor

        return local(distribute_tensor(value.to(device), mesh, placements, src_data_rank=None))
    if value.placements != placements or value.device_mesh != mesh:  # type: ignore[attr-defined]
        value = value.redistribute(mesh, placements)  # type: ignore[attr-defined]
    return local(value)


def _distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, without importing that module."""
    if type(tensor) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@dataclass(frozen=True)
class PartialValues:
    """Partial results of one kernel that an all-reduce completes: for one op and mesh.

    `values` is the flat float64 table that has them, `offsets` their indices there; sorting by `keys` orders
    them alike on every process. `empty` marks those of empty local shards.
    """

    values: Tensor
    offsets: Tensor
    keys: np.ndarray  # int64 [values, 3]: parameter, slot, place in its slices
    empty: np.ndarray  # bool [values]
    op: Op
    mesh: Any
    dims: tuple[int, ...]


def all_reduce(partials: Sequence[PartialValues]) -> None:
    """Complete partial results over all processes, in place: one collective for each op and mesh."""
    groups: dict[tuple[Any, ...], list[PartialValues]] = {}
    for partial in partials:
        groups.setdefault((partial.op.value, partial.dims, partial.mesh), []).append(partial)
    # Every process must start the same collectives in the same order.
    for _, group in sorted(groups.items(), key=lambda item: item[0][:2]):
        keys = np.concatenate([partial.keys for partial in group])
        order = np.lexsort(keys.T[::-1])
        empty = np.concatenate([partial.empty for partial in group])
        parts = torch.cat([partial.values[partial.offsets].to(group[0].values.device) for partial in group])
        device = parts.device
        # An empty shard contributes nothing, whatever a kernel has left in its cells.
        parts[torch.from_numpy(empty).to(device)] = NEUTRAL[group[0].op]
        where = torch.from_numpy(order).to(device)
        sent = parts[where]
        for dim in group[0].dims:
            _all_reduce(sent, group[0].op, group[0].mesh.get_group(dim))
        parts[where] = sent
        sizes = [len(partial.offsets) for partial in group]
        for partial, part in zip(group, torch.split(parts, sizes), strict=True):
            partial.values[partial.offsets] = part.to(partial.values.device)


def _all_reduce(values: Tensor, op: Op, group: Any) -> None:
    """All-reduce in place. A maximum is taken of order-preserving integers, so that NaN is the largest."""
    import torch.distributed as dist

    if op is Op.SUM:
        dist.all_reduce(values, dist.ReduceOp.SUM, group)
        return
    bits = torch.where(values.isnan(), torch.nan, values).view(torch.int64)
    # Negative floats sort in reverse as integers: flip all their bits but the sign.
    bits = torch.where(bits < 0, bits ^ torch.iinfo(torch.int64).max, bits)
    dist.all_reduce(bits, dist.ReduceOp.MAX, group)
    values.copy_(torch.where(bits < 0, bits ^ torch.iinfo(torch.int64).max, bits).view(torch.float64))
