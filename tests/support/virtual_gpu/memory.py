"""Global and shared memory: where threads read and write, and what is wrong with that.

Outside live tensors, misaligned, before anybody wrote: a `Fault`. Two threads at one place, one of them
writing, with no barrier between: a race, by what kind of threads they are.
"""

from __future__ import annotations

import ctypes
import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import numpy as np
import torch

Array = np.ndarray[Any, Any]
PLAIN = (torch.Tensor, torch.nn.Parameter)
UNIT = 2  # bytes: no element is smaller
# Kinds of races. The last two were looked at: several warps may hold the same values and write them all; and
# threads beyond the values of a slice hold copies, which load what the first ones store, and store nothing.
BLOCKS_WRITE = "two blocks write"
BLOCKS_READ = "a block reads what another writes"
THREADS_WRITE = "two threads of a block write other values"
WARPS = "two warps in shared memory without a barrier between"
SAME_BYTES = "several warps write the same bytes to shared memory"
COPIES = "a thread reads what another of its block writes"
HARMLESS = {SAME_BYTES, COPIES}


class Fault(Exception):
    """What would end a kernel on a GPU, or would give it other values each time."""


class Tensors:
    """All tensors that live, until `close`.

    A search of all objects takes long, so it is made once. Objects made later are young: those that are
    tensors are noted when the collector is about to move them among the old ones, and else looked for.
    """

    def __init__(self) -> None:
        gc.collect()
        self.old = {id(t): ref(t) for t in gc.get_objects() if type(t) in PLAIN}
        gc.callbacks.append(self._collector)

    def close(self) -> None:
        """Leave the collector alone."""
        gc.callbacks.remove(self._collector)

    def _collector(self, phase: str, info: object) -> None:
        if phase == "start":
            self.old.update((id(t), ref(t)) for t in self._young())

    def _young(self) -> Iterator[torch.Tensor]:
        return (t for t in (*gc.get_objects(0), *gc.get_objects(1)) if type(t) in PLAIN)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for t in (*(t() for t in [*self.old.values()]), *self._young()):
            if t is not None:
                yield t
                if t.is_leaf and type(t.grad) in PLAIN:
                    yield t.grad


def memory_of(tensors: Iterable[torch.Tensor]) -> Array:
    """Where storages lie: rows of first and last address, merged and in order."""
    found = set()
    for t in tensors:
        if t.layout is torch.strided and not (t.is_meta or t._is_zerotensor()):  # which have no memory
            storage = t.untyped_storage()
            if storage.nbytes():
                found.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    merged: list[list[int]] = []
    for first, end in sorted(found):
        if merged and first < merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([first, end])
    return np.array(merged, np.uint64).reshape(-1, 2)


@dataclass
class Access:
    """What some threads did in one instruction: the block, thread and barriers passed of each."""

    addresses: Array
    size: int
    blocks: Array
    threads: Array
    epochs: Array
    values: Array | None  # the bytes that are written
    atomic: bool = False  # whether it reads and writes at once


class GlobalMemory:
    """The memory of live tensors, at its own addresses."""

    def __init__(self, driver: ctypes.CDLL, live: Array | None, log: bool):
        self.driver, self.live = driver, live
        self.log: list[Access] | None = [] if log else None

    def check(self, addresses: Array, size: int, where: str) -> None:
        """Raise a Fault if a thread may not access so many bytes there."""
        if (wrong := addresses % np.uint64(size) != 0).any():
            raise Fault(f"{where}: misaligned access of {size} bytes at {int(addresses[wrong][0]):#x}")
        if self.live is None:
            return
        before = np.searchsorted(self.live[:, 0], addresses, side="right").astype(np.int64) - 1
        inside = (before >= 0) & (addresses + np.uint64(size) <= self.live[np.maximum(before, 0), 1])
        if not inside.all():
            first = int(addresses[~inside][0])
            raise Fault(f"{where}: {(~inside).sum()} accesses outside live tensors, the first at {first:#x}")

    def load(self, addresses: Array, size: int) -> Array:
        """Bytes [threads, size]."""
        addresses, out = np.ascontiguousarray(addresses), np.empty((len(addresses), size), np.uint8)
        self.driver.gather(*_pointers(addresses, out), ctypes.c_int64(len(addresses)), ctypes.c_int64(size))
        return out

    def store(self, addresses: Array, values: Array) -> None:
        """Write bytes [threads, size]."""
        addresses, values = np.ascontiguousarray(addresses), np.ascontiguousarray(values)
        count, size = values.shape
        self.driver.scatter(*_pointers(addresses, values), ctypes.c_int64(count), ctypes.c_int64(size))

    def races(self) -> Counter[str]:
        """How many accesses race, by kind."""
        found: Counter[str] = Counter()
        writes = _spread([a for a in self.log or [] if a.values is not None])
        reads = _spread([a for a in self.log or [] if a.values is None])
        if not len(writes):
            return found
        writes = writes[np.argsort(writes["at"], kind="stable")]
        a, b = writes[:-1], writes[1:]
        same = a["at"] == b["at"]
        same &= ~(a["atomic"] & b["atomic"])
        found[BLOCKS_WRITE] = int((same & (a["block"] != b["block"])).sum())
        ours = same & (a["block"] == b["block"]) & (a["thread"] != b["thread"]) & (a["epoch"] == b["epoch"])
        found[THREADS_WRITE] = int((ours & (a["value"] != b["value"])).sum())
        near = np.minimum(np.searchsorted(writes["at"], reads["at"]), len(writes) - 1)
        w, hit = writes[near], writes["at"][near] == reads["at"]
        found[BLOCKS_READ] = int((hit & (w["block"] != reads["block"])).sum())
        ours = hit & (w["block"] == reads["block"]) & (w["thread"] != reads["thread"])
        found[COPIES] = int((ours & (w["epoch"] == reads["epoch"])).sum())
        return +found


def _pointers(*arrays: Array) -> tuple[ctypes.c_void_p, ...]:
    return tuple(ctypes.c_void_p(a.ctypes.data) for a in arrays)


FIELDS = [("at", "u8"), ("block", "i8"), ("thread", "i8"), ("epoch", "i8"), ("value", "u2"), ("atomic", "?")]


def _spread(accesses: list[Access]) -> Array:
    """A row for each unit of memory that a thread accesses."""
    rows = [np.zeros(0, FIELDS)]
    for access in accesses:
        for k in range(0, access.size, UNIT):
            row = np.zeros(len(access.addresses), FIELDS)
            row["at"] = access.addresses // np.uint64(UNIT) + np.uint64(k // UNIT)
            row["block"], row["thread"], row["epoch"] = access.blocks, access.threads, access.epochs
            row["atomic"] = access.atomic
            if access.values is not None:
                row["value"] = np.ascontiguousarray(access.values[:, k : k + UNIT]).view(np.uint16)[:, 0]
            rows.append(row)
    return np.concatenate(rows)


@dataclass
class SharedMemory:
    """The shared memory of every block, with nothing in it at first."""

    blocks: int
    size: int
    log: list[tuple[Access, Array]] | None
    bytes: Array = field(init=False)
    written: Array = field(init=False)

    def __post_init__(self) -> None:
        self.bytes = np.full((self.blocks, max(16, self.size)), 0xA5, np.uint8)
        self.written = np.zeros(self.bytes.shape, bool)

    def places(self, addresses: Array, size: int, where: str) -> Array:
        """The bytes of each access; a Fault if they are misaligned or not there."""
        at = addresses.astype(np.int64)
        if (at % size).any():
            raise Fault(f"{where}: misaligned access to shared memory")
        if (at + size > self.bytes.shape[1]).any():
            raise Fault(f"{where}: byte {int(at.max())} of {self.size} of shared memory")
        return at[:, None] + np.arange(size)

    def load(self, blocks: Array, places: Array, where: str) -> Array:
        """Bytes [threads, size]."""
        if not self.written[blocks[:, None], places].all():
            raise Fault(f"{where}: a read of shared memory that nobody has written")
        return np.asarray(self.bytes[blocks[:, None], places])

    def store(self, blocks: Array, places: Array, values: Array) -> None:
        """Write bytes [threads, size]."""
        self.bytes[blocks[:, None], places] = values
        self.written[blocks[:, None], places] = True

    def races(self) -> Counter[str]:
        """How many bytes two warps touch between barriers, one of them writing."""
        found: Counter[str] = Counter()
        if not self.log:
            return found
        columns = []
        for access, places in self.log:
            size = places.shape[1]
            warps, blocks, epochs = (
                np.repeat(x, size) for x in (access.threads // 32, access.blocks, access.epochs)
            )
            wrote = np.full(places.size, access.values is not None)
            values = np.zeros(places.size, np.uint8) if access.values is None else access.values.ravel()
            columns.append((blocks << 40 | epochs << 20 | places.ravel(), warps, wrote, values))
        keys, warps, wrote, values = map(np.concatenate, zip(*columns, strict=True))
        order = np.lexsort((warps, keys))
        keys, warps, wrote, values = keys[order], warps[order], wrote[order], values[order]
        first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        several = np.minimum.reduceat(warps, first) != np.maximum.reduceat(warps, first)
        alike = np.minimum.reduceat(values, first) == np.maximum.reduceat(values, first)
        harmless = alike & np.logical_and.reduceat(wrote, first)  # written only, and the same
        bad = several & np.logical_or.reduceat(wrote, first)
        found[SAME_BYTES], found[WARPS] = int((bad & harmless).sum()), int((bad & ~harmless).sum())
        return +found
