"""Whether an optimizer's lists, dictionaries and tensors are what and where they were at the step before.

In: parameter groups, the state and its tensors. Out: `Watch`, which compares them; one for many tensors does
it in compiled code, where Numba is there, at some ten nanoseconds a tensor.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import cache
from itertools import accumulate, chain
from operator import is_
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.cache import load

MANY = 200  # tensors for which it pays to compile, in half a second, once on a machine
Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, Mapping[str, Any]]
GUARDS: Any = getattr(torch._C._dynamo, "guards", None)  # private to torch, and so perhaps not there
DATA: int | None = getattr(GUARDS, "_torchinductor_pyobject_tensor_data_ptr", None)  # a C function's address


class Watch:
    """The parameters of the groups, everything in the state, and where some tensors lie."""

    module: ModuleType | None = None  # what looks at many tensors in one call

    def __init__(self, groups: Groups, state: State, tensors: Sequence[Tensor]):
        self.lists, self.kept = [list(group["params"]) for group in groups], _entries(state)
        self.tensors = tuple(tensors)
        self.places = np.array([t.data_ptr() for t in tensors], np.int64)

    def same(self, groups: Groups, state: State) -> bool:
        """Whether all of it is as it was."""
        return (
            len(groups) == len(self.lists)
            and all(_same(group["params"], known) for group, known in zip(groups, self.lists, strict=True))
            and _same(_entries(state), self.kept)
            and bool(np.array_equal(self.addresses(self.tensors), self.places))
        )

    def addresses(self, tensors: tuple[Tensor, ...]) -> np.ndarray:
        """Where tensors lie, int64."""
        return np.fromiter(map(Tensor.data_ptr, tensors), np.int64, len(tensors))


class CompiledWatch(Watch):
    """The same, by the addresses of objects: lists and dictionaries are read in place, none is built."""

    def __init__(self, groups: Groups, state: State, tensors: Sequence[Tensor], module: ModuleType):
        super().__init__(groups, state, tensors)
        self.module: ModuleType = module
        self.state = state
        self.lengths = list(map(len, self.lists))
        self.ends, self.items = _ends(self.lists), _addresses_of(chain.from_iterable(self.lists))
        self.objects = _addresses_of(self.tensors)
        dicts: list[Mapping[Any, Any]] = [state, *state.values()]
        self.dicts, self.parts, self.pairs = _addresses_of(dicts), _ends(dicts), _pairs(dicts)

    def same(self, groups: Groups, state: State) -> bool:
        """Whether all of it is as it was."""
        lists = [group["params"] for group in groups]
        if state is not self.state or not all(type(x) is list for x in lists):
            return False
        if list(map(len, lists)) != self.lengths:
            return False
        item, following, module = _c_function("PyList_GetItem"), _c_function("PyDict_Next"), self.module
        if not module.lists_hold(item, _addresses_of(lists), self.ends, self.items):
            return False
        if not module.dicts_hold(following, self.dicts, self.parts, self.pairs):
            return False
        return bool(module.lie(DATA, self.objects, self.places))

    def addresses(self, tensors: tuple[Tensor, ...]) -> np.ndarray:
        """Where tensors lie, int64."""
        found = np.empty(len(tensors), np.int64)
        self.module.addresses_in(_c_function("PyTuple_GetItem"), DATA, id(tensors), found)
        return found


def watch(groups: Groups, state: State, tensors: Sequence[Tensor]) -> Watch:
    """What tells whether all of it is as it is now; it keeps the tensors alive."""
    plain = isinstance(state, dict) and all(isinstance(kept, dict) for kept in state.values())
    module = compiled() if plain and DATA is not None and len(tensors) >= MANY else None
    return Watch(groups, state, tensors) if module is None else CompiledWatch(groups, state, tensors, module)


@cache
def compiled() -> ModuleType | None:
    """What looks at many tensors in one call, where Numba is there."""
    if importlib.util.find_spec("numba") is None:
        return None
    from optgen.backends import cpu

    source = Path(cpu.__file__).with_name("objects.py").read_text(encoding="utf-8")
    return load(source, "objects", "cpu")


def _entries(state: State) -> list[Any]:
    """The keys and the values of all of the state, in order."""
    parts = ((p, kept, *kept.keys(), *kept.values()) for p, kept in state.items())
    return list(chain.from_iterable(parts))


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


def _addresses_of(objects: Iterable[Any]) -> np.ndarray:
    return np.array([id(x) for x in objects], np.int64)


def _ends(parts: Iterable[Sized]) -> np.ndarray:
    """Where each part ends in all of them together."""
    return np.array(list(accumulate(map(len, parts))), np.int64)


def _pairs(dicts: Iterable[Mapping[Any, Any]]) -> np.ndarray:
    """The addresses of keys and values, a row for each."""
    found = [(id(key), id(value)) for d in dicts for key, value in d.items()]
    return np.array(found, np.int64).reshape(-1, 2)


@cache
def _c_function(name: str) -> int:
    """The address of a function of Python's C interface."""
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0
