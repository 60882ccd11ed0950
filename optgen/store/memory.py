"""The parameter store in memory, on the CPU or a GPU.

In: values and increments of any device. Out: live tensors on the store's device.

Each parameter has its own lock, so that threads add to one accumulator in turn, and to different ones at
once. On a GPU the lock orders the launches, and an event the streams: each access waits for the one before
it. A fork waits for all locks, so that its child finds complete values and free locks. Lock order: the
table's lock, then parameters' locks by number, then an optimizer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.launch.uninterrupted import Uninterrupted
from optgen.locks import section
from optgen.store.base import (
    ParameterID,
    ParameterStore,
    SavedState,
    Step,
    check_shape,
    checked_id,
    missing,
    tensor_of,
)


class Entry:
    """A parameter's value, gradient and lock."""

    __slots__ = ("done", "gradient", "lock", "number", "value")

    def __init__(self, value: Tensor, gradient: Tensor, number: int):
        self.value, self.gradient, self.number = value, gradient, number  # locks are taken by number
        self.lock = section()
        self.done: torch.cuda.Event | None = None  # of the last access, on whatever stream it was

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive access: other threads wait, and this thread's CUDA stream waits for the last access."""
        with self.lock:
            if not self.value.is_cuda:
                yield
                return
            stream = torch.cuda.current_stream(self.value.device)
            if self.done is not None:
                stream.wait_event(self.done)
            # Else the allocator may reuse their memory before this stream has finished with it.
            for tensor in (self.value, self.gradient):
                tensor.record_stream(stream)
            try:
                yield
            finally:
                self.done = stream.record_event()


class TorchParameterStore(ParameterStore):
    """A parameter store in this process's memory.

    Args:
        device: where every value and gradient lies; by default each where the given value does.
    """

    def __init__(self, device: torch.device | str | None = None):
        self.device = None if device is None else torch.device(device)
        self._entries: dict[ParameterID, Entry] = {}
        self._states: dict[str, Mapping[str, Any]] = {}
        self._table = section()  # of the two dicts; taken before any entry's lock
        self._entry_numbers = count()  # of entries, also of those that were replaced

    def __repr__(self) -> str:
        where = "" if self.device is None else f"device={str(self.device)!r}"
        return f"<{type(self).__name__}({where}) of {len(self._entries)} parameters>"

    def _entry(self, id: ParameterID) -> Entry:
        """A parameter's entry; KeyError if it was not initialised."""
        try:
            return self._entries[id]
        except (KeyError, TypeError):
            raise missing(checked_id(id)) from None

    def init_parameter(self, id: ParameterID, value: Any, *, copy: bool = True) -> None:
        """As in the base class; ValueError for `copy=False` where the value must be converted or moved."""
        self.init_parameters({id: value}, copy=copy)

    def init_parameters(self, values: Mapping[ParameterID, Any], *, copy: bool = True) -> None:
        """`init_parameter` for several parameters: all, or after an error none."""
        # All conversions before the table changes: an error must leave every parameter as it was.
        leaves = {checked_id(id): self._leaf(value, copy) for id, value in values.items()}
        with self._table:
            for id, tensor in leaves.items():
                zeros = torch.zeros_like(tensor, requires_grad=False)
                self._entries[id] = Entry(tensor, zeros, next(self._entry_numbers))

    def _leaf(self, value: Any, copy: bool) -> Tensor:
        """A value as a leaf tensor that requires a gradient, on the store's device."""
        if copy:
            source = tensor_of(value).detach()
            return source.to(self.device or source.device, copy=True).requires_grad_()
        if isinstance(value, np.ndarray | Tensor):
            tensor = torch.as_tensor(value)
            home = tensor.device if self.device is None else torch.empty(0, device=self.device).device
            if tensor.is_floating_point() and tensor.device == home:
                return tensor if tensor.requires_grad and tensor.is_leaf else tensor.detach().requires_grad_()
        where = "" if self.device is None else f" on {self.device}"
        raise ValueError(f"copy=False takes a floating-point tensor or array{where}")

    def ids(self) -> list[ParameterID]:
        """The initialised parameters, in the order of their first initialisation."""
        with self._table:
            return list(self._entries)

    def get_parameter_value(self, id: ParameterID) -> Tensor:
        """The value itself: a leaf tensor, which every update changes in place."""
        entry = self._entry(id)
        with entry.locked():
            return entry.value

    @torch.no_grad()
    def set_parameter_value(self, id: ParameterID, value: Any) -> None:
        """Copy another value into the parameter's memory; see the base class."""
        entry = self._entry(id)
        tensor = tensor_of(value, entry.value.dtype)
        check_shape(id, "a value", tensor, entry.value)
        with entry.locked():
            entry.value.copy_(tensor)

    def get_gradient(self, id: ParameterID, *, copy: bool = False) -> Tensor:
        """The accumulator itself, or a copy made while no other thread adds to it."""
        entry = self._entry(id)
        with entry.locked():
            return entry.gradient.clone() if copy else entry.gradient

    def increment_gradient(self, id: ParameterID, increment: Any, scale: float = 1.0) -> None:
        """Add to the accumulator under the parameter's lock; see the base class."""
        entry = self._entry(id)
        gradient = entry.gradient
        addend = tensor_of(increment, gradient.dtype).detach()
        check_shape(id, "an increment", addend, gradient)
        with entry.locked():
            addend = addend.to(gradient.device, gradient.dtype)
            gradient.add_(addend if scale == 1 else addend * scale)

    def reset_gradient(self, id: ParameterID) -> None:
        """Set the gradient to zeros."""
        entry = self._entry(id)
        with entry.locked():
            entry.gradient.zero_()

    @torch.no_grad()
    def set_gradient(self, id: ParameterID, value: Any) -> None:
        """Set the gradient; ValueError for another shape."""
        entry = self._entry(id)
        tensor = tensor_of(value, entry.gradient.dtype)
        check_shape(id, "a gradient", tensor, entry.gradient)
        with entry.locked():
            entry.gradient.copy_(tensor)

    def update(
        self,
        ids: Sequence[ParameterID],
        step: Step,
        name: str | None = None,
        state: SavedState | None = None,
    ) -> None:
        """Run `step` on the live tensors while holding all their locks; see the base class.

        Increments of other threads wait, and count for the next update. Signals, such as that of Ctrl-C, wait
        too: they come before the update or after it.
        """
        with self._locked(ids) as entries, Uninterrupted():
            step([e.value for e in entries], [e.gradient for e in entries])
            # Nothing below may fail: values have moved. The store's own accumulators are zeroed in place.
            for entry in entries:
                entry.gradient.zero_()
            if name is not None and state is not None:
                self.set_optimizer_state(name, state())

    @contextmanager
    def _locked(self, ids: Iterable[ParameterID]) -> Iterator[list[Entry]]:
        """Lock parameters in the order of their numbers, so that two updates cannot deadlock."""
        with self._table, ExitStack() as locks:
            entries = [self._entry(id) for id in ids]
            for entry in sorted(entries, key=lambda e: e.number):
                locks.enter_context(entry.locked())
            yield entries

    def get_optimizer_state(self, name: str) -> Mapping[str, Any] | None:
        """The state dict stored under a name, or None."""
        return self._states.get(name)

    def set_optimizer_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Store a state dict under a name."""
        with self._table:
            self._states[name] = state
