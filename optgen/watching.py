"""Whether an optimizer's lists and dictionaries hold the objects that they held at the step before.

In: parameter groups and the state. Out: `Watch`, which compares them and picks out the tensors of a step;
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
from torch import Tensor

from optgen.launch.guards import MANY, c_function, compiled

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, Mapping[str, Any]]


class Watch:
    """The parameters of the groups and every key and value in the state, of which some are wanted."""

    def __init__(self, groups: Groups, state: State, wanted: Sequence[Any]):
        self.lengths = [len(group["params"]) for group in groups]
        present = _present(groups, state)
        self.objects, self.keys = list(map(id, present)), list(map(id, _keys(state)))
        self.texts = [key for kept in state.values() for key in kept]  # kept: no other gets such an address
        place = {address: i for i, address in enumerate(self.objects)}
        self.places = [place[id(x)] for x in wanted]
        self.pick = picker(self.places)

    def find(self, groups: Groups, state: State) -> list[Any] | None:
        """The wanted objects, if all of it is as it was."""
        if [len(group["params"]) for group in groups] != self.lengths:
            return None
        present = _present(groups, state)
        if list(map(id, present)) != self.objects or list(map(id, _keys(state))) != self.keys:
            return None
        return list(self.pick(present))


class CompiledWatch(Watch):
    """The same, where lists and dictionaries are read in place."""

    def __init__(self, groups: Groups, state: State, wanted: Sequence[Any], module: ModuleType):
        super().__init__(groups, state, wanted)
        self.module, self.address = module, id(state)
        self.ends = np.array(list(accumulate(self.lengths)), np.int64)
        count = sum(self.lengths)
        self.items = np.array(self.objects[:count], np.int64)
        dicts: list[Mapping[Any, Any]] = [state, *state.values()]
        self.dicts, self.parts, self.pairs = _addresses_of(dicts), _ends(dicts), _pairs(dicts)
        slots = np.full(len(self.objects), -1, np.int64)
        slots[self.places] = np.arange(len(self.places))
        self.slots, self.value_slots = slots[:count], np.full(len(self.pairs), -1, np.int64)
        self.value_slots[len(state) :] = slots[count:]

    def find(self, groups: Groups, state: State) -> list[Any] | None:
        """The wanted objects, if all of it is as it was."""
        lists = [group["params"] for group in groups]
        if id(state) != self.address or not all(type(x) is list for x in lists):
            return None
        if list(map(len, lists)) != self.lengths:
            return None
        found = [None] * len(self.places)
        put = id(found), c_function("PyList_SetItem"), c_function("Py_IncRef")
        item, following = c_function("PyList_GetItem"), c_function("PyDict_Next")
        if not self.module.lists_hold(item, _addresses_of(lists), self.ends, self.items, self.slots, *put):
            return None
        if not self.module.dicts_hold(following, self.dicts, self.parts, self.pairs, self.value_slots, *put):
            return None
        return found


def watch(groups: Groups, state: State, wanted: Sequence[Any]) -> Watch:
    """What tells whether all of it is as it is now, and then picks out what is wanted of it, each once."""
    many = len(wanted) >= MANY
    plain = isinstance(state, dict) and all(isinstance(kept, dict) for kept in state.values())
    module = compiled() if plain and many else None
    return Watch(groups, state, wanted) if module is None else CompiledWatch(groups, state, wanted, module)


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that picks out the items at some places."""
    if len(places) > 1:
        return itemgetter(*places)  # in C
    return lambda items: [items[i] for i in places]


def _present(groups: Groups, state: State) -> list[Any]:
    """The parameters of the groups, then the values in the state, in order."""
    params = chain.from_iterable([group["params"] for group in groups])
    return [*params, *chain.from_iterable([kept.values() for kept in state.values()])]


def _keys(state: State) -> Iterable[Any]:
    """The parameters that the state has entries for, then the keys of these."""
    return chain(state, *state.values())


def _addresses_of(objects: Iterable[Any]) -> np.ndarray:
    return np.array([id(x) for x in objects], np.int64)


def _ends(parts: Iterable[Sized]) -> np.ndarray:
    """Where each part ends in all of them together."""
    return np.array(list(accumulate(map(len, parts))), np.int64)


def _pairs(dicts: Iterable[Mapping[Any, Any]]) -> np.ndarray:
    """The addresses of keys and values, a row for each."""
    found = [(id(key), id(value)) for d in dicts for key, value in d.items()]
    return np.array(found, np.int64).reshape(-1, 2)
