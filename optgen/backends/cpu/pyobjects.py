"""Compiled checks of Python's and torch's objects, read by address while the interpreter's lock is held.

In: addresses of objects, and of C functions of Python and torch; a tensor object has the address of its C++
tensor in its third word. Out: whether they are as recorded. The source is loaded, and its machine code
cached, as that of kernels is. Nothing here may release the lock or run Python code while it compares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from optgen.backends.cpu.intrinsics import call1, call2, call3, call4, count_up, fetch, pointer
from optgen.backends.cpu.machine_code import stored

compiled: Any = stored()
inline: Any = njit(forceinline=True)
BLOCK = 32  # tensors that are prefetched together
# `probe` has the addresses of torch's functions in the order of `launch.guards.FACTS`; then, by index, the
# words of a C++ tensor with its dispatch keys (KEY), with the number of dimensions (DIMS), followed by up to
# five (INLINE) sizes and then strides, and with the address of its version counter (COUNTER); then the byte
# of the version in that (VERSION).
FACTS, SIZES, KEY, DIMS, COUNTER, VERSION, INLINE = 8, 6, 8, 9, 10, 11, 5
TYPE, CPP = 8, 16  # byte offsets in a Python tensor of its type and of its C++ tensor's address


@inline
def word(address: int) -> int:
    """The int64 at an address; pass variables, as Numba compiles a version for each literal."""
    return carray(pointer(address), 1, np.int64)[0]


@inline
def lists_match(
    get_item: int, lists: int, ends: Any, objects: Any, slots: Any, out: int, set_item: int, incref: int
) -> bool:
    """Whether lists hold exactly these objects, by address; `ends` has the end of each list in `objects`.

    The lists must not be shorter than that. Objects with a slot >= 0 are also stored in the list `out` there.
    """
    at = 0
    for k in range(len(ends)):
        held = call2(get_item, lists, k)
        for i in range(at, ends[k]):
            if call2(get_item, held, i - at) != objects[i]:
                return False
            if slots[i] >= 0:
                # PyList_SetItem steals a reference.
                call1(incref, objects[i])
                call3(set_item, out, slots[i], objects[i])
        at = ends[k]
    return True


@inline
def dicts_match(
    next_entry: int, dicts: Any, ends: Any, entries: Any, slots: Any, out: int, set_item: int, incref: int
) -> bool:
    """Whether dicts have exactly these keys and values, by address and in this order.

    Values with a slot >= 0 are also stored in the list `out` there.
    """
    cursor = np.zeros(3, np.int64)
    place = cursor.ctypes.data
    at = 0
    for k in range(len(dicts)):
        cursor[0] = 0
        while call4(next_entry, dicts[k], place, place + 8, place + 16) & 1:
            if at == ends[k] or cursor[1] != entries[at, 0] or cursor[2] != entries[at, 1]:
                return False
            if slots[at] >= 0:
                call1(incref, cursor[2])
                call3(set_item, out, slots[at], cursor[2])
            at += 1
        if at != ends[k]:
            return False
    return True


@inline
def vector(words: Any, k: int) -> Any:
    """View the int64 array whose address and length are words k and k + 1."""
    return carray(pointer(words[k]), words[k + 1], np.int64)


@inline
def matrix(words: Any, k: int) -> Any:
    """View the int64 array whose address, rows and columns are words k to k + 2."""
    return carray(pointer(words[k]), (words[k + 1], words[k + 2]), np.int64)


@compiled
def objects_match(words: Any, lists: int, out: int) -> bool:
    """`lists_match` and `dicts_match` on the lists in a list.

    Each array argument would cost as much as checking ten objects: `words` has all their addresses, as
    `launch.object_guards.CompiledObjectGuard` writes them.
    """
    get_item, next_entry, set_item, incref = words[0], words[1], words[2], words[3]
    ends, objects, slots = vector(words, 4), vector(words, 6), vector(words, 8)
    if not lists_match(get_item, lists, ends, objects, slots, out, set_item, incref):
        return False
    dicts, parts, entries, places = vector(words, 10), vector(words, 12), matrix(words, 14), vector(words, 17)
    return dicts_match(next_entry, dicts, parts, entries, places, out, set_item, incref)


@inline
def prefetch_block(get_item: int, tensors: int, begin: int, end: int, objects: Any) -> None:
    """The addresses of a block of tensors in a list, with prefetches of the words that are compared.

    Without prefetching, each cache miss would be waited for in turn: that takes twice as long.
    """
    for i in range(begin, end):
        objects[i - begin] = call2(get_item, tensors, i)
        fetch(objects[i - begin])
    for i in range(end - begin):
        for line in range(3):
            fetch(word(objects[i] + CPP) + 64 * line)


@inline
def query(probe: Any, tensor: int, facts: Any, begin: int, count: int) -> int:
    """Call some of torch's functions, see `launch.guards.FACTS`; not 0 if one of them fails."""
    place, failed = facts.ctypes.data, 0
    for k in range(begin, begin + count):
        failed |= call2(probe[k], tensor, place + 8 * k)
    return failed & 0xFFFFFFFF


@inline
def matches_row(probe: Any, obj: int, rows: Any, i: int, sizes: Any, at: int, facts: Any) -> bool:
    """Whether the object at an address is a tensor with a row's properties, sizes and strides (from `at` on).

    Addresses are read one by one: a view of an array would count its owners up and down each time.
    """
    tensor, dims = word(obj + CPP), rows[i, 5]
    if word(obj + TYPE) != rows[i, 0] or word(tensor + 8 * probe[KEY]) != rows[i, 1]:
        return False
    if word(tensor + 8 * probe[DIMS]) != dims:
        return False
    shape = tensor + 8 * (probe[DIMS] + 1)
    strides = shape + 8 * INLINE
    if dims > INLINE:
        query(probe, obj + 16, facts, SIZES, 2)
        shape, strides = facts[SIZES], facts[SIZES + 1]
    for d in range(dims):
        if word(shape + 8 * d) != sizes[at + d] or word(strides + 8 * d) != sizes[at + dims + d]:
            return False
    return query(probe, obj + 16, facts, 0, 3) == 0 and facts[2] & 0xFFFFFFFF == rows[i, 3]


@compiled
def describe(probe: Any, get_item: int, tensors: int, rows: Any, places: Any) -> bool:
    """Fill in the rows of tensors in a list, and their addresses; False if torch cannot describe one."""
    facts = np.zeros(FACTS, np.int64)
    for i in range(len(places)):
        obj = call2(get_item, tensors, i)
        if query(probe, obj + 16, facts, 0, FACTS):
            return False
        rows[i, 0], rows[i, 1] = word(obj + TYPE), word(word(obj + CPP) + 8 * probe[KEY])
        rows[i, 2], rows[i, 3], rows[i, 4] = facts[1], facts[2] & 0xFFFFFFFF, facts[4] & 0xFFFFFFFF
        rows[i, 5], rows[i, 9], places[i] = facts[5], facts[3], facts[0]
    return True


@compiled
def measure(probe: Any, get_item: int, tensors: int, rows: Any, sizes: Any) -> None:
    """Fill in sizes and strides of the tensors in a list, bytes spanned, and whether contiguous."""
    facts = np.zeros(FACTS, np.int64)
    at = 0
    for i in range(len(rows)):
        query(probe, call2(get_item, tensors, i) + 16, facts, SIZES, 2)
        dims = rows[i, 5]
        reach, empty, contiguous, dense = 1, False, True, 1
        for d in range(dims - 1, -1, -1):
            size, stride = word(facts[SIZES] + 8 * d), word(facts[SIZES + 1] + 8 * d)
            sizes[at + d], sizes[at + dims + d] = size, stride
            reach += (size - 1) * stride
            contiguous = contiguous and (size == 1 or stride == dense)
            empty, dense = empty or size == 0, dense * size
        rows[i, 7], rows[i, 8] = 0 if empty else reach * rows[i, 6], empty or contiguous
        at += 2 * dims


@inline
def fixed_match(probe: Any, get_item: int, tensors: int, rows: Any, sizes: Any, places: Any) -> bool:
    """Whether the tensors in a list have the recorded properties, storage sizes and addresses."""
    facts, objects = np.zeros(FACTS, np.int64), np.empty(BLOCK, np.int64)
    at = 0
    for begin in range(0, len(places), BLOCK):
        end = min(begin + BLOCK, len(places))
        prefetch_block(get_item, tensors, begin, end, objects)
        for i in range(begin, end):
            if not matches_row(probe, objects[i - begin], rows, i, sizes, at, facts):
                return False
            if facts[0] != places[i] or facts[1] != rows[i, 2]:
                return False
            # Its version could not be incremented: `bump_versions` would write through a null pointer.
            if word(word(objects[i - begin] + CPP) + 8 * probe[COUNTER]) == 0:  # an inference tensor has none
                return False
            at += 2 * rows[i, 5]
    return True


@inline
def bump_versions(probe: Any, get_item: int, tensors: int, count: int) -> None:
    """Increment the version counters of the tensors in a list, as an in-place operation of torch's does."""
    for i in range(count):
        count_up(word(word(call2(get_item, tensors, i) + CPP) + 8 * probe[COUNTER]) + probe[VERSION])


@compiled
def increment_versions(probe: Any, get_item: int, tensors: int, count: int) -> None:
    """`bump_versions` for callers in Python."""
    bump_versions(probe, get_item, tensors, count)


@inline
def free_match(probe: Any, get_item: int, tensors: int, rows: Any, sizes: Any, places: Any) -> bool:
    """Whether the tensors in a list have the recorded properties, within their storage; fills in `places`."""
    facts, objects = np.zeros(FACTS, np.int64), np.empty(BLOCK, np.int64)
    at = 0
    for begin in range(0, len(places), BLOCK):
        end = min(begin + BLOCK, len(places))
        prefetch_block(get_item, tensors, begin, end, objects)
        for i in range(begin, end):
            if not matches_row(probe, objects[i - begin], rows, i, sizes, at, facts):
                return False
            query(probe, objects[i - begin] + 16, facts, 3, 2)
            if facts[3] * rows[i, 6] + rows[i, 7] > facts[1] or facts[4] & 0xFFFFFFFF != rows[i, 4]:
                return False
            places[i] = facts[0]
            at += 2 * rows[i, 5]
    return True


@inline
def disjoint(starts: Any, reach: Any, places: Any, rows: Any) -> bool:
    """Whether no tensor overlaps with the sorted address ranges of `launch.guards.Spans`."""
    for i in range(len(places)):
        before = np.searchsorted(starts, places[i] + rows[i, 7])
        if rows[i, 7] > 0 and reach[before] > places[i]:
            return False
    return True


@inline
def compare_tensors(words: Any, fixed: int, free: int) -> int:
    """Compare two lists of tensors with a recording: 0 if they differ, 1 if not, 2 if only `free` ones moved.

    `words` has the addresses of what is compared, see `launch.guards.CompiledGuard`.
    """
    probe, get_item = vector(words, 0), words[2]
    rows, sizes, places = matrix(words, 3), vector(words, 6), vector(words, 8)
    if not fixed_match(probe, get_item, fixed, rows, sizes, places):
        return 0
    rows, sizes, moved, before = matrix(words, 10), vector(words, 13), vector(words, 15), vector(words, 17)
    if not free_match(probe, get_item, free, rows, sizes, moved):
        return 0
    same = True
    for i in range(len(moved)):
        same = same and moved[i] == before[i]
    # Nothing has been written up to here, so that a difference leaves the recording as it was.
    if same:
        return 1
    return 2 if disjoint(vector(words, 19), vector(words, 21), moved, rows) else 0


@compiled
def guard(words: Any, fixed: int, free: int) -> int:
    """`compare_tensors` for callers in Python."""
    return compare_tensors(words, fixed, free)


@inline
def read_number(place: int, double: bool) -> float:
    """Read the float64 or float32 at an address."""
    if double:
        return carray(pointer(place), 1, np.float64)[0]
    return np.float64(carray(pointer(place), 1, np.float32)[0])


@inline
def write_number(place: int, double: bool, value: float) -> None:
    """Write a float64 or float32 to an address."""
    if double:
        carray(pointer(place), 1, np.float64)[0] = value
    else:
        carray(pointer(place), 1, np.float32)[0] = np.float32(value)


@compiled
def range_of(places: Any, doubles: Any) -> Any:
    """Minimum and maximum of the numbers at some addresses; NaN twice if one is NaN."""
    least, most = np.inf, -np.inf
    for i in range(len(places)):
        value = read_number(places[i], doubles[i])
        if np.isnan(value):
            return value, value
        least, most = min(least, value), max(most, value)
    return least, most


@compiled
def gather(places: Any, doubles: Any, values: Any) -> None:
    """Read the numbers at some addresses."""
    for i in range(len(places)):
        values[i] = read_number(places[i], doubles[i])


@compiled
def scatter(places: Any, doubles: Any, values: Any) -> None:
    """Write numbers to some addresses."""
    for i in range(len(places)):
        write_number(places[i], doubles[i], values[i])


@compiled
def add_one(places: Any, doubles: Any) -> None:
    """Add 1 to the numbers at some addresses."""
    for i in range(len(places)):
        write_number(places[i], doubles[i], read_number(places[i], doubles[i]) + 1)


@compiled
def make(words: Any, more: Any, fixed: int, free: int, count: float, free_grad: bool) -> int:
    """Replay a step if tensors match the recording and all counters are `count`; else return 0.

    `more` has the addresses of counters and whether each is float64; of table cells that hold addresses of
    free tensors, and which tensors; of C functions and their arguments (see `launch.one_call`); of
    PyObject_SetAttr, an attribute's name and None, for the gradient of the first fixed tensor if `free_grad`.
    """
    outcome = compare_tensors(words, fixed, free)
    if outcome == 0:
        return 0
    counters, doubles = vector(more, 0), vector(more, 2)
    for i in range(len(counters)):
        if read_number(counters[i], doubles[i] != 0) != count:
            return 0
    if outcome == 2:
        moved, before, cells, sources = vector(words, 15), vector(words, 17), vector(more, 4), vector(more, 6)
        for i in range(len(moved)):
            before[i] = moved[i]
        for i in range(len(cells)):
            carray(pointer(cells[i]), 1, np.int64)[0] = moved[sources[i]]
    # From here on the step is made: nothing below can fail, and no signal handler runs in between.
    bump_versions(vector(words, 0), words[2], fixed, words[4])
    functions, data = vector(more, 8), vector(more, 10)
    for i in range(len(functions)):
        call1(functions[i], data[i])
    for i in range(len(counters)):
        write_number(counters[i], doubles[i] != 0, count + 1)
    if free_grad:
        call3(more[12], call2(words[2], fixed, 0), more[13], more[14])
    return outcome
