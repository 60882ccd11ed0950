"""Python's and torch's objects by their addresses, read by compiled code that holds the interpreter's lock.

In: C functions of Python and torch, by address; a tensor is where its object has the address of its C++
tensor, in the third word. The text of this module is loaded as kernels are, and what is compiled of it is
kept as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from optgen.backends.cpu.intrinsics import call1, call2, call3, call4, count_up, fetch, pointer
from optgen.backends.cpu.machine_code import stored

compiled: Any = stored()
inline: Any = njit(forceinline=True)
BLOCK = 32  # tensors that are fetched together
# What is looked with: torch's functions in the order of `launch.guards.FACTS`, then which words of a C++
# tensor say what it is a view of, how many dimensions it has, after which follow sizes and strides of up to
# five of them, and where its version counter is; then the version's place in that, in bytes.
FACTS, SIZES, KEY, DIMS, COUNTER, VERSION, INLINE = 8, 6, 8, 9, 10, 11, 5
TYPE, CPP = 8, 16  # bytes after which an object says what it is, and where its C++ tensor is


@inline
def word(address: int) -> int:
    """The word at an address; no number is handed in, as Numba compiles a function for each literal."""
    return carray(pointer(address), 1, np.int64)[0]


@inline
def lists_match(
    get_item: int, lists: int, ends: Any, objects: Any, slots: Any, out: int, set_item: int, incref: int
) -> bool:
    """Whether lists, which are long enough, hold these objects; `ends` says where in these each list does.

    An object goes into the list `out` at its slot, if that is not negative.
    """
    at = 0
    for k in range(len(ends)):
        held = call2(get_item, lists, k)
        for i in range(at, ends[k]):
            if call2(get_item, held, i - at) != objects[i]:
                return False
            if slots[i] >= 0:
                call1(incref, objects[i])
                call3(set_item, out, slots[i], objects[i])
        at = ends[k]
    return True


@inline
def dicts_match(
    next_entry: int, dicts: Any, ends: Any, entries: Any, slots: Any, out: int, set_item: int, incref: int
) -> bool:
    """Whether dictionaries have these keys and values, in this order, and no others.

    A value goes into the list `out` at its slot, if that is not negative.
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
    """The int64 array whose address and length are words k and k + 1."""
    return carray(pointer(words[k]), words[k + 1], np.int64)


@inline
def matrix(words: Any, k: int) -> Any:
    """The int64 array whose address, rows and columns are words k to k + 2."""
    return carray(pointer(words[k]), (words[k + 1], words[k + 2]), np.int64)


@compiled
def objects_match(words: Any, lists: int, out: int) -> bool:
    """`lists_hold` and `dicts_hold` of a list of lists.

    An array handed in costs as much as checking ten objects: where all lie is in `words`, for
    `launch.object_guards.CompiledObjectGuard` to say.
    """
    get_item, next_entry, set_item, incref = words[0], words[1], words[2], words[3]
    ends, objects, slots = vector(words, 4), vector(words, 6), vector(words, 8)
    if not lists_match(get_item, lists, ends, objects, slots, out, set_item, incref):
        return False
    dicts, parts, entries, places = vector(words, 10), vector(words, 12), matrix(words, 14), vector(words, 17)
    return dicts_match(next_entry, dicts, parts, entries, places, out, set_item, incref)


@inline
def prefetch_block(get_item: int, tensors: int, begin: int, end: int, objects: Any) -> None:
    """The addresses of some tensors in a list; what is asked of them is on its way into the cache then.

    One after the other, each would be waited for: that takes twice as long.
    """
    for i in range(begin, end):
        objects[i - begin] = call2(get_item, tensors, i)
        fetch(objects[i - begin])
    for i in range(end - begin):
        for line in range(3):
            fetch(word(objects[i] + CPP) + 64 * line)


@inline
def query(probe: Any, tensor: int, facts: Any, begin: int, count: int) -> int:
    """Ask some of torch's functions, see `launch.guards.FACTS`; not 0 where one of them fails."""
    place, failed = facts.ctypes.data, 0
    for k in range(begin, begin + count):
        failed |= call2(probe[k], tensor, place + 8 * k)
    return failed & 0xFFFFFFFF


@inline
def matches_row(probe: Any, obj: int, rows: Any, i: int, sizes: Any, at: int, facts: Any) -> bool:
    """Whether the object at an address is a tensor as a row and sizes and strides from `at` on say.

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
    """Fill what torch knows of the rows of tensors in a list, and where they lie; whether it knows them."""
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
    """Fill sizes and strides of the tensors in a list, the bytes that each spans, and if it is contiguous."""
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
    """Whether the tensors in a list are what they were, in storages of the same size, at these addresses."""
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
            if word(word(objects[i - begin] + CPP) + 8 * probe[COUNTER]) == 0:  # an inference tensor has none
                return False
            at += 2 * rows[i, 5]
    return True


@inline
def bump_versions(probe: Any, get_item: int, tensors: int, count: int) -> None:
    """Count a version up for the tensors in a list, as torch does where one is written in place."""
    for i in range(count):
        count_up(word(word(call2(get_item, tensors, i) + CPP) + 8 * probe[COUNTER]) + probe[VERSION])


@compiled
def increment_versions(probe: Any, get_item: int, tensors: int, count: int) -> None:
    """The same for Python."""
    bump_versions(probe, get_item, tensors, count)


@inline
def free_match(probe: Any, get_item: int, tensors: int, rows: Any, sizes: Any, places: Any) -> bool:
    """Whether the tensors in a list are what others were, each within its storage; tells where they lie."""
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
    """Whether no stretch of memory overlaps with others, see `launch.guards.Spans`."""
    for i in range(len(places)):
        before = np.searchsorted(starts, places[i] + rows[i, 7])
        if rows[i, 7] > 0 and reach[before] > places[i]:
            return False
    return True


@inline
def compare_tensors(words: Any, fixed: int, free: int) -> int:
    """0 where tensors in two lists are not what and where they were, 1 where they are, 2 where `free` moved.

    `words` says where all lies that is compared, see `launch.guards.CompiledGuard`.
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
    if same:
        return 1
    return 2 if disjoint(vector(words, 19), vector(words, 21), moved, rows) else 0


@compiled
def guard(words: Any, fixed: int, free: int) -> int:
    """The same for Python."""
    return compare_tensors(words, fixed, free)


@inline
def read_number(place: int, double: bool) -> float:
    """The number at an address, float64 or float32."""
    if double:
        return carray(pointer(place), 1, np.float64)[0]
    return np.float64(carray(pointer(place), 1, np.float32)[0])


@inline
def write_number(place: int, double: bool, value: float) -> None:
    """Write a number to an address, as float64 or float32."""
    if double:
        carray(pointer(place), 1, np.float64)[0] = value
    else:
        carray(pointer(place), 1, np.float32)[0] = np.float32(value)


@compiled
def range_of(places: Any, doubles: Any) -> Any:
    """The least and the largest of numbers in memory; two of NaN if one is."""
    least, most = np.inf, -np.inf
    for i in range(len(places)):
        value = read_number(places[i], doubles[i])
        if np.isnan(value):
            return value, value
        least, most = min(least, value), max(most, value)
    return least, most


@compiled
def gather(places: Any, doubles: Any, values: Any) -> None:
    """Read numbers in memory."""
    for i in range(len(places)):
        values[i] = read_number(places[i], doubles[i])


@compiled
def scatter(places: Any, doubles: Any, values: Any) -> None:
    """Write numbers to memory."""
    for i in range(len(places)):
        write_number(places[i], doubles[i], values[i])


@compiled
def add_one(places: Any, doubles: Any) -> None:
    """Add 1 to numbers in memory."""
    for i in range(len(places)):
        write_number(places[i], doubles[i], read_number(places[i], doubles[i]) + 1)


@compiled
def make(words: Any, more: Any, fixed: int, free: int, count: float, free_grad: bool) -> int:
    """A step: what `guard` says, and 0, with nothing done, where a parameter has not made `count` steps.

    `more` says where the rest lies: counters, and which are float64; tables' cells for addresses of free
    tensors, and of which; functions of one pointer, and their pointers (see `launch.one_call`); what sets an
    attribute, its name and None, for the gradient of the first fixed tensor with `free_grad`.
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
    bump_versions(vector(words, 0), words[2], fixed, words[4])
    functions, data = vector(more, 8), vector(more, 10)
    for i in range(len(functions)):
        call1(functions[i], data[i])
    for i in range(len(counters)):
        write_number(counters[i], doubles[i] != 0, count + 1)
    if free_grad:
        call3(more[12], call2(words[2], fixed, 0), more[13], more[14])
    return outcome
