"""Parameters in memory, on the CPU or a GPU.

In: values and increments of any device. Out: live tensors on the store's device. Each parameter has its
own lock, so that threads add to one accumulator in turn, and to different ones at once. On a GPU the lock
orders the launches, and an event the streams: each access waits for the one before it. A fork waits for all
of them, so that its child finds whole values and free locks.
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
    """A parameter: its value, its gradient, and the lock of both."""

    __slots__ = ("done", "gradient", "lock", "number", "value")

    def __init__(self, value: Tensor, gradient: Tensor, number: int):
        self.value, self.gradient, self.number = value, gradient, number
        self.lock = section()
        self.done: torch.cuda.Event | None = None  # of the last access, on whatever stream it was

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the parameter alone: other threads wait, and so does this thread's stream for others."""
        with self.lock:
            if not self.value.is_cuda:
                yield
                return
            stream = torch.cuda.current_stream(self.value.device)
            if self.done is not None:
                stream.wait_event(self.done)
            for tensor in (self.value, self.gradient):
                tensor.record_stream(stream)
            try:
                yield
            finally:
                self.done = stream.record_event()


class TorchParameterStore(ParameterStore):
    """Parameters in this process's memory.

    Args:
        device: where every value and gradient lies; by default each where the given value does.
    """

    def __init__(self, device: torch.device | str | None = None):
        self.device = None if device is None else torch.device(device)
        self._entries: dict[ParameterID, Entry] = {}
        self._states: dict[str, Mapping[str, Any]] = {}
        self._table = section()  # of the two dicts; taken before any entry's lock
        self._numbers = count()

    def __repr__(self) -> str:
        where = "" if self.device is None else f"device={str(self.device)!r}"
        return f"<{type(self).__name__}({where}) of {len(self._entries)} parameters>"

    def _entry(self, id: ParameterID) -> Entry:
        try:
            return self._entries[id]
        except (KeyError, TypeError):
            raise missing(checked_id(id)) from None

    def init_parameter(self, id: ParameterID, value: Any, *, copy: bool = True) -> None:
        """As in the base class; ValueError for `copy=False` where the value must be converted or moved."""
        self.init_parameters({id: value}, copy=copy)

    def init_parameters(self, values: Mapping[ParameterID, Any], *, copy: bool = True) -> None:
        """`init_parameter` for several; all or, after an error, none."""
        made = {checked_id(id): self._adopted(value, copy) for id, value in values.items()}
        with self._table:
            for id, tensor in made.items():
                zeros = torch.zeros_like(tensor, requires_grad=False)
                self._entries[id] = Entry(tensor, zeros, next(self._numbers))

    def _adopted(self, value: Any, copy: bool) -> Tensor:
        """A value as the store keeps it: a leaf on its device that autograd follows."""
        if copy:
            found = tensor_of(value).detach()
            return found.to(self.device or found.device, copy=True).requires_grad_()
        if isinstance(value, np.ndarray | Tensor):
            found = torch.as_tensor(value)
            home = found.device if self.device is None else torch.empty(0, device=self.device).device
            if found.is_floating_point() and found.device == home:
                return found if found.requires_grad and found.is_leaf else found.detach().requires_grad_()
        where = "" if self.device is None else f" on {self.device}"
        raise ValueError(f"copy=False takes a floating-point tensor or array{where}")

    def ids(self) -> list[ParameterID]:
        """The initialised parameters, in the order of their first initialisation."""
        with self._table:
            return list(self._entries)

    def get_parameter_value(self, id: ParameterID) -> Tensor:
        """The value itself: a leaf, changed in place by every update."""
        entry = self._entry(id)
        with entry.held():
            return entry.value

    @torch.no_grad()
    def set_parameter_value(self, id: ParameterID, value: Any) -> None:
        """Write another value into the parameter's memory; see the base class."""
        entry = self._entry(id)
        found = tensor_of(value, entry.value.dtype)
        check_shape(id, "a value", found, entry.value)
        with entry.held():
            entry.value.copy_(found)

    def get_gradient(self, id: ParameterID, *, copy: bool = False) -> Tensor:
        """The accumulator itself, or a copy made while no other thread adds to it."""
        entry = self._entry(id)
        with entry.held():
            return entry.gradient.clone() if copy else entry.gradient

    def increment_gradient(self, id: ParameterID, increment: Any, scale: float = 1.0) -> None:
        """Add to the accumulator under the parameter's lock; see the base class."""
        entry = self._entry(id)
        gradient = entry.gradient
        found = tensor_of(increment, gradient.dtype).detach()
        check_shape(id, "an increment", found, gradient)
        with entry.held():
            found = found.to(gradient.device, gradient.dtype)
            gradient.add_(found if scale == 1 else found * scale)

    def reset_gradient(self, id: ParameterID) -> None:
        """Make the gradient zero."""
        entry = self._entry(id)
        with entry.held():
            entry.gradient.zero_()

    @torch.no_grad()
    def set_gradient(self, id: ParameterID, value: Any) -> None:
        """Make the gradient this; ValueError for another shape."""
        entry = self._entry(id)
        found = tensor_of(value, entry.gradient.dtype)
        check_shape(id, "a gradient", found, entry.gradient)
        with entry.held():
            entry.gradient.copy_(found)

    def update(
        self,
        ids: Sequence[ParameterID],
        step: Step,
        name: str | None = None,
        state: SavedState | None = None,
    ) -> None:
        """Run `step` on the live tensors, with the locks of all of them; see the base class.

        What other threads add meanwhile waits, and counts for the next update. So do signals, such as that
        of Ctrl-C: they come before the update or after it.
        """
        with self._held(ids) as entries, Uninterrupted():
            step([e.value for e in entries], [e.gradient for e in entries])
            for entry in entries:
                entry.gradient.zero_()
            if name is not None and state is not None:
                self.set_optimizer_state(name, state())

    @contextmanager
    def _held(self, ids: Iterable[ParameterID]) -> Iterator[list[Entry]]:
        """The entries of parameters, locked in one order everywhere, so that no two updates wait for ever."""
        with self._table, ExitStack() as locks:
            entries = [self._entry(id) for id in ids]
            for entry in sorted(entries, key=lambda e: e.number):
                locks.enter_context(entry.held())
            yield entries

    def get_optimizer_state(self, name: str) -> Mapping[str, Any] | None:
        """The state dict kept under a name, or None."""
        return self._states.get(name)

    def set_optimizer_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep a state dict under a name."""
        with self._table:
            self._states[name] = state
