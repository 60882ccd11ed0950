"""CUDA graphs on the simulated device.

In: what runs inside `Graph.capture()`. Out: nothing has happened by its end, and `replay()` does all of it,
launch by launch and operation of torch by operation, with the same addresses. Memory that the capture
allocated has no sense in it until then.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from optgen.launch import uploads
from virtual_gpu.device import Device

POISON = 0xA5
WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}  # for the device
VIEWS = ("aten.detach", "aten.view", "aten.select", "aten.slice", "aten.alias")


class CaptureError(Exception):
    """What CUDA refuses while a graph is captured."""


class Graph:
    """One CUDA graph."""

    def __init__(self, device: Device):
        self.device = device
        self.acts: list[Callable[[], object]] = []
        self.made: list[torch.Tensor] = []  # in the graph's own memory, which it keeps

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Record what happens inside, and undo it."""
        host = {b.pinned.data_ptr() for b in gc.get_objects() if type(b) is uploads.PinnedBuffer}
        device = [t for t in self.device.tensors if _plain(t) and t.data_ptr() not in host]
        before = [(t, t.detach().clone()) for t in device]
        self.device.capturing, self.device.graph = True, self
        try:
            with mock.patch.object(uploads.PinnedBuffer, "__init__", _refuse_to_pin), _Recorder(self):
                yield
        finally:
            self.device.capturing, self.device.graph = False, None
        known = host | {t.untyped_storage().data_ptr() for t, _ in before}
        for t, content in before:
            t.detach().copy_(content)
        for t in self.made:
            storage = t.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in known:
                ctypes.memset(storage.data_ptr(), POISON, storage.nbytes())

    def replay(self) -> None:
        """Do all of it again."""
        with torch.no_grad():
            for act in self.acts:
                act()


def _plain(t: torch.Tensor) -> bool:
    return t.layout is torch.strided and not t.is_meta and t.untyped_storage().nbytes() > 0 and not t.is_neg()


def _refuse_to_pin(*_: Any) -> None:
    raise CaptureError("pinned memory was allocated while a graph was captured")


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function) in WAITS:
            raise CaptureError(f"{function} waits for the device while a graph is captured")
        out = function(*args, **(kwargs or {}))
        results = [
            t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, torch.Tensor)
        ]
        given = {id(t) for t in torch.utils._pytree.tree_leaves((args, kwargs))}
        new = [t for t in results if id(t) not in given]
        self.graph.made += new

        def again() -> None:
            found = function(*args, **(kwargs or {}))
            found = found if isinstance(found, list | tuple) else [found]
            for old, now in zip(results, found, strict=False):
                if id(old) not in given and not old._is_view() and old.numel():
                    old.copy_(now)

        if not str(function).startswith(
            ("aten.detach", "aten.view", "aten.select", "aten.slice", "aten.alias")
        ):
            self.graph.acts.append(again)
        return out
