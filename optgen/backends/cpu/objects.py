"""Python's and torch's objects by their addresses, read by compiled code that holds the interpreter's lock.

In: C functions of Python and torch, by address. The text of this module is loaded as kernels are, and what is
compiled of it is kept as they are.
"""
# ruff: noqa: SIM110

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from optgen.backends.cpu.runtime import call1, call2, call4, pointer
from optgen.backends.cpu.stored import stored

compiled: Any = stored()


@compiled
def lists_hold(item: int, lists: Any, ends: Any, objects: Any) -> bool:
    """Whether lists, which are long enough, hold these objects; `ends` says where in these each list does."""
    at = 0
    for k in range(len(lists)):
        for i in range(ends[k] - at):
            if call2(item, lists[k], i) != objects[at + i]:
                return False
        at = ends[k]
    return True


@compiled
def dicts_hold(following: int, dicts: Any, ends: Any, entries: Any) -> bool:
    """Whether dictionaries have these keys and values, in this order, and no others."""
    found = np.zeros(3, np.int64)
    place = found.ctypes.data
    at = 0
    for k in range(len(dicts)):
        found[0] = 0
        while call4(following, dicts[k], place, place + 8, place + 16) & 1:
            if at == ends[k] or found[1] != entries[at, 0] or found[2] != entries[at, 1]:
                return False
            at += 1
        if at != ends[k]:
            return False
    return True


@compiled
def lie(data: int, objects: Any, places: Any) -> bool:
    """Whether the elements of tensors lie at these addresses."""
    for i in range(len(objects)):
        if call1(data, objects[i]) != places[i]:
            return False
    return True


@compiled
def addresses_in(item: int, data: int, of: int, places: Any) -> None:
    """Where the elements of the tensors in a tuple lie, which is long enough."""
    for i in range(len(places)):
        places[i] = call1(data, call2(item, of, i))


@compiled
def take(places: Any, double: bool) -> Any:
    """The least and the largest of numbers in memory, float64 or float32; adds 1 to all if they are alike."""
    least, most = np.inf, -np.inf
    for place in places:
        if double:
            number = carray(pointer(place), 1, np.float64)[0]
        else:
            number = carray(pointer(place), 1, np.float32)[0]
        least, most = min(least, number), max(most, number)
    if least == most:
        for place in places:
            if double:
                carray(pointer(place), 1, np.float64)[0] += 1
            else:
                carray(pointer(place), 1, np.float32)[0] += 1
    return least, most
