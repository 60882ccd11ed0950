"""Buckets: tensors that share a launch, and the tables that it reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optgen.backends.layout import LOWEST, PLACE, SLICES, Layout
from optgen.backends.protocol import Kernel, Tables
from optgen.backends.slices import View
from optgen.ir.node import Op
from optgen.launch.dtensor import EVERY, PartialValues, Shard
from optgen.launch.host_scalars import Scalars
from optgen.launch.strides import Geometry
from optgen.launch.tiles import Tiling
from optgen.launch.uploads import AddressTable, upload
from optgen.launch.work import Work, shape_fact
from optgen.plan.plan import Plan

if TYPE_CHECKING:
    from optgen.launch.device_scalars import DeviceScalars  # needs Triton

SPILL_ALIGN = 64  # elements that members' spills begin at multiples of
NOWHERE = (EVERY, 0, EVERY, 0, 0)  # the place of a tensor that is no part of another


@dataclass
class Bucket:
    """Tensors that share a launch, and its tables."""

    device: torch.device
    plan: Plan
    layout: Layout
    kernel: Kernel
    members: list[int]  # indices into the step's work
    geometries: list[Geometry]
    counted: bool = False  # whether the counters lie on the device, which computes what follows from them
    tables: Tables = field(init=False)
    host: np.ndarray = field(init=False)  # the host's copy of tables.tensors
    sent: np.ndarray | None = field(init=False, default=None)  # what the device has of it
    moving: AddressTable | None = field(init=False, default=None)  # addresses that a GPU has in a table apart
    in_place_cells: int = field(init=False, default=0)  # places in which maxima are found
    finished: bool = field(init=False, default=True)  # whether the last step came to its end
    filled: dict[str, float] = field(init=False, default_factory=dict)  # the numbers that the host has sent
    partials_by_slot: dict[int, list[PartialValues]] = field(init=False, default_factory=dict)
    # Where counters lie on the device: values per row, and those that are one for the whole optimizer.
    device_scalars: DeviceScalars | None = field(init=False, default=None)
    global_scalars: DeviceScalars | None = field(init=False, default=None)
    scalars: Scalars = field(init=False)  # the values per step that the host computes
    sources: dict[str, np.ndarray] = field(init=False)  # by store: which of the step's tensors
    groups: np.ndarray = field(init=False)  # of each member, its group,
    param_indices: np.ndarray = field(init=False)  # which of the optimizer's parameters it is,
    numels: np.ndarray = field(init=False)  # how many elements it has,
    shards: list[Shard | None] = field(init=False)  # where it lies in a distributed parameter,
    facts: np.ndarray = field(init=False)  # and its shape facts [members, `scalars.facts`]; NaN for states

    def __post_init__(self) -> None:
        self.scalars = Scalars(self.plan.scalars)

    @property
    def host_states(self) -> list[str]:
        """States that the host reads to compute scalars, or computes itself."""
        return list(
            dict.fromkeys([*(n.value or "" for n in self.scalars.facts if n.op is Op.LOAD), *self.plan.host])
        )

    def build(self, work: Sequence[Work]) -> None:
        """Fill the columns that depend on sizes, strides and shards only, and allocate all tables."""
        columns, members = self.layout.columns, [work[m] for m in self.members]
        self.groups = np.array([w.group for w in members], np.int64)
        self.param_indices = np.array([w.index for w in members], np.int64)
        self.numels = numels = np.array([w.param.numel() for w in members], np.int64)
        self.shards = [w.shard for w in members]
        self.facts = np.full((len(members), len(self.scalars.facts)), np.nan)
        for k, n in enumerate(self.scalars.facts):
            if n.op is Op.SHAPE:
                self.facts[:, k] = [shape_fact(w.shape, n.value or "") for w in members]
        table = np.zeros((len(numels), self.layout.width), np.int64)
        table[:, columns["@numel"]] = numels
        if self.plan.random:
            table[:, columns["@param"]] = self.param_indices
        tilings = self._tilings([w.param for w in members]) if self.layout.tiled else []
        chunks, counts = self._tiles(table, tilings) if tilings else self._chunks(numels)
        table[:, columns["@first"]], table[:, columns["@count"]] = np.cumsum(counts) - counts, counts
        if self.layout.sharded:
            for i, shard in enumerate(self.shards):
                table[i, [columns[f"@{name}"] for name in PLACE]] = NOWHERE if shard is None else shard.place
        for i, shape in enumerate(self.geometries):
            for d, size in enumerate(shape.sizes):
                table[i, columns[f"@size{d}"]] = size
                for s, strides in zip(self.plan.codecs, shape.strides, strict=True):
                    if f"@stride_{s}{d}" in columns:
                        table[i, columns[f"@stride_{s}{d}"]] = strides[d]
        self.host, self.sent = table, None
        slots = len(self.plan.extents)
        self.tables = Tables(
            tensors=None,
            elements=int(numels.sum()),
            chunks=self.put(chunks),
            scalars=None,
            partials=self.empty(len(chunks) * bool(self.layout.partial), len(self.layout.partial)),
            slots=self.empty(len(numels), slots),
        )
        if self.plan.numbers:
            self.tables.numbers = self.empty(len(self.plan.numbers))
            self.tables.size = self.put(np.array([len(numels)], np.int64))
        if self.layout.moving and not self.numpy_tables:
            self.moving = AddressTable((len(numels), len(self.layout.moving)), self.device, self.counted)
        if tilings:
            self._slices(table, tilings)

    def _chunks(self, numels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `chunks` (tensor, first element), and the number of chunks per tensor."""
        chunk = self.kernel.chunk
        counts = -(-numels // chunk)
        tensor = np.repeat(np.arange(len(numels)), counts)
        starts = (np.arange(int(counts.sum())) - (np.cumsum(counts) - counts)[tensor]) * chunk
        return np.stack([tensor, starts], axis=1).astype(np.int64), counts

    def _tilings(self, params: Sequence[Tensor]) -> list[Tiling]:
        """The tiling of each tensor; tensors of one shape share it."""
        known: dict[tuple[Any, ...], Tiling] = {}
        for p in params:
            key = tuple(p.shape), p.element_size()
            if key not in known:
                view, size = View.of(p.shape, self.plan.slices), p.numel() * p.element_size()
                known[key] = Tiling.of(self.layout, view, self.kernel, size)
        return [known[tuple(p.shape), p.element_size()] for p in params]

    def _tiles(self, table: np.ndarray, tilings: Sequence[Tiling]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `chunks` (tensor and tile), and the number of tiles per tensor; fills their columns."""
        rows = []
        for i, tiling in enumerate(tilings):
            rows.append(np.insert(tiling.chunk_rows(), 0, i, axis=1))
            for name, value in tiling.columns().items():
                table[i, self.layout.columns[f"@{name}"]] = value
        return np.concatenate(rows), np.array([len(f) for f in rows], np.int64)

    def _slices(self, table: np.ndarray, tilings: Sequence[Tiling]) -> None:
        """Allocate the table `lines` (slots of slices and partial results), and the tables `slices`."""
        columns = self.layout.columns
        in_place_cells = sum(tiling.cells_needed(tiling.in_place_offsets) for tiling in tilings)
        first, used = 0, in_place_cells
        for i, tiling in enumerate(tilings):
            for slot in self.layout.lines:
                table[i, columns[f"@slot{slot}"]] = used
                used += tiling.view.count(self.plan.extents[slot])
            for r in self.layout.sliced_reductions:
                parts = table[i, columns[f"@slot{r.slot}"]]
                if tiling.needs_scratch(r):
                    parts = (
                        first + tiling.in_place_offsets[r.slot]
                        if tiling.in_place(r)
                        else used + tiling.scratch_offsets[r.slot]
                    )
                table[i, columns[f"@parts{r.slot}"]] = parts
            first += tiling.cells_needed(tiling.in_place_offsets)
            used += tiling.cells_needed(tiling.scratch_offsets)
        # Cells of in-place maxima come first, so that one slice resets them all.
        self.tables.lines, self.in_place_cells = self.empty(used), in_place_cells
        self.reset_maxima()
        for kind in self.plan.slices:
            counts = [tiling.view.count(kind) for tiling in tilings]
            starts = [(i, s) for i, count in enumerate(counts) for s in range(0, count, SLICES)]
            self.tables.slices[kind] = self.put(np.array(starts, np.int64).reshape(-1, 2))

    def reset_maxima(self) -> None:
        """Reset in-place maxima to minus infinity; a step that completes leaves them so."""
        self.tables.lines[: self.in_place_cells] = float(np.array(LOWEST).view(np.float64))

    def put(self, array: np.ndarray) -> Any:
        """Copy an array to where the kernel reads it."""
        if self.numpy_tables:
            return np.ascontiguousarray(array)
        return upload(array, self.device)

    def empty(self, *sizes: int) -> Any:
        """Allocate a float64 table of zeros where the kernel reads it; dimensions are at least 1."""
        sizes = tuple(max(1, size) for size in sizes)
        if self.numpy_tables:
            return np.zeros(sizes)
        return torch.zeros(sizes, dtype=torch.float64, device=self.device)

    @property
    def numpy_tables(self) -> bool:
        """Whether the kernel takes NumPy arrays; Triton takes torch tensors, in its interpreter too."""
        return self.kernel.numpy_tables

    def point(self, addresses: np.ndarray, moved: bool) -> list[Tensor]:
        """Write addresses into the table: those that may move, or all. Returns the spills, to be kept alive.

        `addresses` are those of all tensors of the step, in its order; they have passed `door`.
        """
        columns, spills = self.layout.columns, []
        by_column: dict[str, np.ndarray] = {}
        for name in self.layout.moving if moved else self.layout.pointers:
            if name.startswith("#"):
                buffer, starts = self._spill()
                spills.append(buffer)
                by_column[name] = buffer.data_ptr() + starts
            else:
                by_column[name] = addresses[self.sources[name]]
        if self.moving is not None:
            table = [by_column.pop(name) for name in self.layout.moving]
            self.tables.moving = self.moving.send(np.stack(table, axis=1))
        for name, places in by_column.items():
            self.host[:, columns[name]] = places
        return spills

    def _spill(self) -> tuple[Tensor, np.ndarray]:
        """Allocate a spill for every member; returns the buffer and each member's offset in bytes."""
        dtype = torch.float64 if self.plan.real == "fp64" else torch.float32
        sizes = -(-self.numels // SPILL_ALIGN) * SPILL_ALIGN
        starts = (np.cumsum(sizes) - sizes) * dtype.itemsize
        return torch.empty(int(sizes.sum()), dtype=dtype, device=self.device), starts

    def send(self) -> None:
        """Make the host's table visible to the device, if it has changed."""
        if self.numpy_tables:
            self.tables.tensors = self.host
        elif self.sent is None or not np.array_equal(self.sent, self.host):
            self.tables.tensors = self.put(self.host)
            self.sent = self.host.copy()

    def captured_tables(self) -> list[Any]:
        """Tables that a CUDA graph captured now reads, to be kept alive for its replays."""
        clocks = [c.sent.copy() for c in (self.device_scalars, self.global_scalars) if c is not None]
        return [copy(self.tables), self.moving, *clocks]

    def point_scalars(self, counters: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]]) -> None:
        """Set the counters and states, on the device, from which it computes the scalars."""
        if self.device_scalars is None:
            from optgen.launch.device_scalars import DeviceScalars

            scalars, host = self.plan.scalars, self.plan.host.items()
            roots = {k: n if n.op is Op.CONST else scalars[int(n.value or 0)] for k, n in host}
            self.device_scalars = DeviceScalars(scalars, roots, self.plan.real, self.device, self.put)
        self.device_scalars.point(counters, states)
        self.host[:, self.layout.columns["@row"]] = np.arange(len(self.members))

    def prepare_scalars(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Send hyperparameters and compile, for `count`: whatever can fail fails here."""
        assert self.device_scalars is not None
        place = {n.value: k for k, n in enumerate(self.scalars.facts) if n.op is Op.SHAPE}
        self.device_scalars.set(groups, self.groups, lambda row, name: float(self.facts[row, place[name]]))
        if self.tables.scalars is None:  # what the kernel is compiled for; `count` fills another one
            self.tables.scalars = self.device_scalars.empty()

    def count(self, counters: Sequence[Tensor], stop: Tensor | None) -> None:
        """Compute the scalars, and the step that random numbers depend on, on the device."""
        assert self.device_scalars is not None
        if stop is None:
            stop = torch.zeros((), dtype=torch.float64, device=self.device)
        self.tables.scalars = self.device_scalars.run(stop.to(self.device))
        if self.plan.random:
            steps = torch.stack(list(counters)).to(torch.float64) + 1
            self.tables.tensors[:, self.layout.columns["@step"]] = steps.to(torch.int64)

    def once(self, options: Mapping[str, Any], steps: float | Tensor) -> dict[str, float | Tensor]:
        """Compute the values that are one for the whole optimizer, after so many steps (0-d float64)."""
        onces = self.plan.onces
        if not isinstance(steps, Tensor):
            (row,) = Scalars(onces).rows([(options, steps + 1, ())])
            return {f"@once{i}": x for i, x in enumerate(row)}
        if self.global_scalars is None:
            from optgen.launch.device_scalars import DeviceScalars

            self.global_scalars = DeviceScalars(onces, {}, "fp64", self.device, self.put)
        self.global_scalars.point([steps.to(self.device)], [{}])
        self.global_scalars.set([options], np.zeros(1, np.int64), lambda row, name: 0.0)
        values = self.global_scalars.run(torch.zeros((), dtype=torch.float64, device=self.device))
        return {f"@once{i}": values[0, i] for i in range(len(onces))}

    def partial_values(self, slots: Sequence[int]) -> list[PartialValues]:
        """Values of these slots that are partial on this process, as other processes hold further shards."""
        for slot in slots:
            if slot not in self.partials_by_slot:
                self.partials_by_slot[slot] = list(self._partial_values(slot))
        return [partial for slot in slots for partial in self.partials_by_slot[slot]]

    def _partial_values(self, slot: int) -> Iterator[PartialValues]:
        """The same for one slot, by mesh and mesh dimensions."""
        reduction, by_mesh = self.plan.reductions[slot], defaultdict[tuple[Any, ...], list[int]](list)
        for i, shard in enumerate(self.shards):
            if shard is not None and shard.partial_dims(reduction):
                by_mesh[shard.mesh, shard.partial_dims(reduction)].append(i)
        for (mesh, dims), rows in by_mesh.items():
            offsets, keys, empty = self._slot_offsets(slot, rows)
            values = self.tables.lines if reduction.extent.sliced else self.tables.slots
            flat = (torch.from_numpy(values) if self.numpy_tables else values).view(-1)
            where = torch.from_numpy(offsets).to(flat.device)
            yield PartialValues(flat, where, keys, empty, reduction.op, mesh, dims)

    def _slot_offsets(self, slot: int, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets into the slot table, sort keys (parameter, slot, index), and a mask of empty shards."""
        kind, columns, width = self.plan.extents[slot], self.layout.columns, len(self.plan.extents)
        offsets, keys, empty = [], [], []
        for i in rows:
            count = int(self.host[i, columns[f"@count_{kind}"]]) if kind.sliced else 1
            start = self.host[i, columns[f"@slot{slot}"]] if kind.sliced else i * width + slot
            offsets.append(int(start) + np.arange(count))
            number = np.full(count, self.param_indices[i])
            keys.append(np.stack([number, np.full(count, slot), np.arange(count)], axis=1))
            empty.append(np.full(count, not self.numels[i]))
        return np.concatenate(offsets), np.concatenate(keys), np.concatenate(empty)
