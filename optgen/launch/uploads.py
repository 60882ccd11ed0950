"""Uploads of tables to a GPU, also while a CUDA graph is being captured.

In: arrays of the host. Out: the same where kernels read them. During a capture no pinned memory may be
allocated, and an upload is recorded, for every replay: what a graph reads must have been sent before. Only
the addresses of gradients, inputs and spills are new then; each graph has a table of its own for them
(`AddressTable`), with pinned memory that is never written again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from optgen.launch.work import Work

PIECE = 1 << 16  # bytes of one upload
SPARES = 2  # captures without a step in between


def capturing(device: torch.device) -> bool:
    """Whether launches on a device are captured into a CUDA graph now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    refuse_in_capture(device, "a table that this step reads")
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True, copy=True)


def refuse_in_capture(device: torch.device, what: str) -> None:
    """Raise if a CUDA graph is being captured: it would not see this upload."""
    if capturing(device):
        raise RuntimeError(
            f"{what} has changed since the step before the capture, and a CUDA graph cannot take it over: "
            "make a step outside of it first, with the same parameters and options, and then capture"
        )


class PinnedBuffer:
    """Pinned int64 memory; an event says when an upload has read it."""

    def __init__(self, count: int, device: torch.device):
        self.pinned = torch.empty(count, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.event: Any = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def fill(self, array: np.ndarray) -> None:
        """Write it, after waiting until no upload reads it any more."""
        if self.event is not None:
            self.event.synchronize()
        self.pinned.numpy()[:] = array.reshape(-1)

    def send(self, table: Tensor) -> None:
        """Upload it in pieces."""
        flat, step = table.view(-1), PIECE // 8
        for at in range(0, len(flat), step):
            flat[at : at + step].copy_(self.pinned[at : at + step], non_blocking=True)


class AddressTable:
    """The table of addresses that change from step to step, int64 [tensors, stores].

    Args:
        shape: of the table.
        device: where kernels read it.
        captured: whether CUDA graphs may be captured; tables for those are then kept in reserve.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device, captured: bool):
        self.shape, self.device, self.captured = shape, device, captured
        self.table, self.sent = self._empty(), np.zeros(shape, np.int64)
        self.table.zero_()
        self.ring = [self._buffer(), self._buffer()]
        self.spares: list[tuple[PinnedBuffer, Tensor]] = []
        self.captured_tables: list[tuple[PinnedBuffer, Tensor]] = []  # to graphs

    def _empty(self) -> Tensor:
        """Allocate a table on the device."""
        return torch.empty(self.shape, dtype=torch.int64, device=self.device)

    def _buffer(self) -> PinnedBuffer:
        """Allocate pinned memory for one upload."""
        return PinnedBuffer(self.shape[0] * self.shape[1], self.device)

    def send(self, addresses: np.ndarray) -> Tensor:
        """The table with these addresses; during a capture, one of the graph's own.

        Raises:
            RuntimeError: more graphs were captured than tables are in reserve.
        """
        if capturing(self.device):
            return self._capture_table(addresses)
        while self.captured and len(self.spares) < SPARES:
            self.spares.append((self._buffer(), self._empty()))
        if not np.array_equal(addresses, self.sent):
            buffer = self.ring[0]
            buffer.fill(addresses)
            buffer.send(self.table)
            if buffer.event is not None:
                buffer.event.record()
            # Two buffers in turn: the next step need not wait for this upload.
            self.ring.reverse()
            self.sent = addresses.copy()
        return self.table

    def _capture_table(self, addresses: np.ndarray) -> Tensor:
        """A graph's own table: each replay uploads it again, from pinned memory of its own."""
        if not self.spares:
            refuse_in_capture(self.device, "where gradients lie")
        buffer, table = self.spares.pop()
        self.captured_tables.append((buffer, table))
        buffer.pinned.numpy()[:] = addresses.reshape(-1)
        buffer.send(table)
        return table


class Captured:
    """Tables that a CUDA graph reads, kept alive for its replays; no parameter and no state.

    Args:
        tables: to keep alive.
        work: the step that was captured.
    """

    def __init__(self, tables: Sequence[Any], work: Sequence[Work]):
        self.tables = tables
        self.addresses = {id(_owner(w)): (ref(_owner(w)), _addresses(w)) for w in work}
        self.warned = False

    def check(self, work: Sequence[Work]) -> None:
        """Warn, once, if a step's tensors have moved: replays of the graph would update the old ones."""
        for w in () if self.warned else work:
            known, addresses = self.addresses.get(id(_owner(w)), (None, {}))
            if known is None or known() is not _owner(w):
                continue
            now = _addresses(w)
            changed = [name for name, address in addresses.items() if now.get(name, address) != address]
            if changed:
                self.warned = True
                what = "the parameter" if changed[0] == "p" else f"state '{changed[0]}'"
                warnings.warn(
                    f"{what} of a parameter of shape {tuple(w.param.shape)} lies elsewhere than when a CUDA "
                    "graph was captured, as after load_state_dict(): capture the graph anew, because its "
                    "replays move the old tensors",
                    stacklevel=2,
                )
                return


def _owner(w: Work) -> Tensor:
    """The optimizer's parameter that a part belongs to."""
    return w.param if w.owner is None else w.owner


def _addresses(w: Work) -> dict[str, int]:
    """Addresses of the tensors that a part writes, by name."""
    addresses = {"p": w.param.data_ptr()} | {name: t.data_ptr() for name, t in w.states.items()}
    return addresses if w.counter is None else addresses | {"step": w.counter.data_ptr()}
