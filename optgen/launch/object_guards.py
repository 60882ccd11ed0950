"""Guards on containers: whether an optimizer's lists and dictionaries still hold the recorded objects.

In: lists of parameters and the state. Out: an `ObjectGuard`, which compares object addresses and picks out
the tensors of a step; for many objects in compiled code, at some ten nanoseconds each. It keeps no tensor
alive, so another object may have taken an address: `launch.guards` compares the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import accumulate, chain
from operator import itemgetter
from types import ModuleType
from typing import Any

import numpy as np

from optgen.launch.guards import MANY, c_function, compiled, words_of

Lists = Sequence[Sequence[Any]]
State = Mapping[Any, Any]


class ObjectGuard:
    """Recorded objects of lists, a dictionary and the dictionaries in it, of which some are wanted."""

    def __init__(self, lists: Lists, state: State, wanted: Sequence[Any]):
        self.lengths = list(map(len, lists))
        keys = list(_keys(state))
        self.texts = [key for key in keys if isinstance(key, str)]  # kept, so that none gets such an address
        self.value_addresses, self.key_addresses = _addresses_of(_values(lists, state)), _addresses_of(keys)
        self.objects, self.keys = self.value_addresses.tolist(), self.key_addresses.tolist()
        wanted_addresses, order = _addresses_of(wanted), np.argsort(self.value_addresses, kind="stable")
        indices = order[np.searchsorted(self.value_addresses, wanted_addresses, sorter=order)]
        assert np.array_equal(self.value_addresses[indices], wanted_addresses), "what is wanted is not there"
        self.indices: list[int] = indices.tolist()
        self.pick = picker(self.indices)

    def find(self, lists: Lists, state: State) -> list[Any] | None:
        """The wanted objects; None if a container differs from the recording."""
        if list(map(len, lists)) != self.lengths:
            return None
        values = _values(lists, state)
        if list(map(id, values)) != self.objects or list(map(id, _keys(state))) != self.keys:
            return None
        return list(self.pick(values))


class CompiledObjectGuard(ObjectGuard):
    """An object guard that reads lists and dictionaries in compiled code."""

    def __init__(self, lists: Lists, state: State, wanted: Sequence[Any], module: ModuleType):
        super().__init__(lists, state, wanted)
        self.module, self.address = module, id(state)
        self.ends = np.array(list(accumulate(self.lengths)), np.int64)
        count = sum(self.lengths)
        self.items = self.value_addresses[:count]
        dicts: list[Mapping[Any, Any]] = [state, *_inner(state)]
        self.dicts, self.parts = _addresses_of(dicts), _ends(dicts)
        self.pairs = np.stack([self.key_addresses, self.value_addresses[count:]], axis=1)
        slots = np.full(len(self.objects), -1, np.int64)
        slots[self.indices] = np.arange(len(self.indices))
        arrays = self.ends, self.items, slots[:count], self.dicts, self.parts, self.pairs, slots[count:]
        self.arrays = tuple(map(np.ascontiguousarray, arrays))
        names = ("PyList_GetItem", "PyDict_Next", "PyList_SetItem", "Py_IncRef")
        words = [c_function(name) for name in names]
        self.words = np.array(
            [*words, *(word for array in self.arrays for word in words_of(array))], np.int64
        )

    def find(self, lists: Lists, state: State) -> list[Any] | None:
        """The wanted objects; None if a container differs from the recording."""
        if id(state) != self.address or list(map(len, lists)) != self.lengths:
            return None
        # Compiled code calls PyList_GetItem, which takes lists only.
        if list(map(type, lists)).count(list) < len(lists):
            return None
        picked = [None] * len(self.indices)
        return picked if self.module.objects_match(self.words, id(lists), id(picked)) else None


def object_guard(lists: Lists, state: State, wanted: Sequence[Any], warm: bool = False) -> ObjectGuard:
    """Record what lists and a state hold, to pick out `wanted` objects while that holds, each once."""
    module = compiled() if isinstance(state, dict) and (warm or len(wanted) >= MANY) else None
    return (
        ObjectGuard(lists, state, wanted)
        if module is None
        else CompiledObjectGuard(lists, state, wanted, module)
    )


def picker(indices: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that picks the items at some indices."""
    if len(indices) > 1:
        return itemgetter(*indices)  # in C
    return lambda items: [items[i] for i in indices]


def _inner(state: State) -> list[Mapping[Any, Any]]:
    """The dictionaries in a dictionary."""
    return [mapping for mapping in state.values() if isinstance(mapping, dict)]


def _values(lists: Lists, state: State) -> list[Any]:
    """Items of the lists, then values of the dictionary and of those in it, in order."""
    inner = (mapping.values() for mapping in _inner(state))
    return [*chain.from_iterable(lists), *state.values(), *chain.from_iterable(inner)]


def _keys(state: State) -> Iterable[Any]:
    """Keys of the dictionary, then of those in it."""
    return chain(state, *_inner(state))


def _addresses_of(objects: Iterable[Any]) -> np.ndarray:
    """The objects' addresses (`id`), int64."""
    return np.array(list(map(id, objects)), np.int64)


def _ends(parts: Iterable[Sized]) -> np.ndarray:
    """Where each part ends when all are concatenated."""
    return np.array(list(accumulate(map(len, parts))), np.int64)
