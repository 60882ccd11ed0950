"""Whether an optimizer's lists and dictionaries hold the objects that they held at the step before.

In: lists of parameters and the state. Out: `ObjectGuard`, which compares them and picks out a step's tensors;
one for many objects does it in compiled code, where Numba is there, at some ten nanoseconds each. It keeps
addresses and no tensor: what is found in place may be another object at the same address, so `launch.guards`
looks at the tensors themselves.
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
    """Guards the identity of the objects in lists and dictionaries, and picks out some of them."""

    def __init__(self, lists: Lists, state: State, wanted: Sequence[Any]):
        self.lengths = list(map(len, lists))
        keys = list(_keys(state))
        self.texts = [key for key in keys if isinstance(key, str)]  # kept, so that none gets such an address
        self.present, self.entries = _addresses_of(_present(lists, state)), _addresses_of(keys)
        self.objects, self.keys = self.present.tolist(), self.entries.tolist()
        sought, order = _addresses_of(wanted), np.argsort(self.present, kind="stable")
        found = order[np.searchsorted(self.present, sought, sorter=order)]
        assert np.array_equal(self.present[found], sought), "what is wanted is not there"
        self.places: list[int] = found.tolist()
        self.pick = picker(self.places)

    def find(self, lists: Lists, state: State) -> list[Any] | None:
        """The wanted objects, if the guard holds; None if not."""
        if list(map(len, lists)) != self.lengths:
            return None
        present = _present(lists, state)
        if list(map(id, present)) != self.objects or list(map(id, _keys(state))) != self.keys:
            return None
        return list(self.pick(present))


class CompiledObjectGuard(ObjectGuard):
    """The same, where lists and dictionaries are read in place."""

    def __init__(self, lists: Lists, state: State, wanted: Sequence[Any], module: ModuleType):
        super().__init__(lists, state, wanted)
        self.module, self.address = module, id(state)
        self.ends = np.array(list(accumulate(self.lengths)), np.int64)
        count = sum(self.lengths)
        self.items = self.present[:count]
        dicts: list[Mapping[Any, Any]] = [state, *_inner(state)]
        self.dicts, self.parts = _addresses_of(dicts), _ends(dicts)
        self.pairs = np.stack([self.entries, self.present[count:]], axis=1)
        slots = np.full(len(self.objects), -1, np.int64)
        slots[self.places] = np.arange(len(self.places))
        arrays = self.ends, self.items, slots[:count], self.dicts, self.parts, self.pairs, slots[count:]
        self.arrays = tuple(map(np.ascontiguousarray, arrays))
        names = ("PyList_GetItem", "PyDict_Next", "PyList_SetItem", "Py_IncRef")
        words = [c_function(name) for name in names]
        self.words = np.array(
            [*words, *(word for array in self.arrays for word in words_of(array))], np.int64
        )

    def find(self, lists: Lists, state: State) -> list[Any] | None:
        """The wanted objects, if the guard holds; None if not."""
        if id(state) != self.address or list(map(len, lists)) != self.lengths:
            return None
        if list(map(type, lists)).count(list) < len(lists):
            return None
        found = [None] * len(self.places)
        return found if self.module.hold(self.words, id(lists), id(found)) else None


def object_guard(lists: Lists, state: State, wanted: Sequence[Any], warm: bool = False) -> ObjectGuard:
    """Guard these lists and dictionaries as they are now, to pick out the wanted objects, each once."""
    module = compiled() if isinstance(state, dict) and (warm or len(wanted) >= MANY) else None
    return (
        ObjectGuard(lists, state, wanted)
        if module is None
        else CompiledObjectGuard(lists, state, wanted, module)
    )


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that picks out the items at some places."""
    if len(places) > 1:
        return itemgetter(*places)  # in C
    return lambda items: [items[i] for i in places]


def _inner(state: State) -> list[Mapping[Any, Any]]:
    """The dictionaries in a dictionary."""
    return [kept for kept in state.values() if isinstance(kept, dict)]


def _present(lists: Lists, state: State) -> list[Any]:
    """What the lists hold, then the values of the dictionary and of those in it, in order."""
    inner = (kept.values() for kept in _inner(state))
    return [*chain.from_iterable(lists), *state.values(), *chain.from_iterable(inner)]


def _keys(state: State) -> Iterable[Any]:
    """The keys of the dictionary, then of those in it."""
    return chain(state, *_inner(state))


def _addresses_of(objects: Iterable[Any]) -> np.ndarray:
    return np.array(list(map(id, objects)), np.int64)


def _ends(parts: Iterable[Sized]) -> np.ndarray:
    """Where each part ends in all of them together."""
    return np.array(list(accumulate(map(len, parts))), np.int64)
