"""Guards on tensors: whether they are still what was recorded, and where they lie now.

In: the tensors of a step. `fixed` ones, parameters and states, must be at their recorded addresses; `free`
ones, gradients and inputs, may be anywhere but in the memory of those. Out: the addresses of all, or None if
one has another type, dtype, size, stride, device or lazy negation, or less storage.

A guard keeps no tensor alive. Many tensors are compared in one compiled call, at some thirty nanoseconds
each, by torch's stable C functions and, as these are slow, some words of the C++ tensors; few tensors, or
all without Numba, by torch's own guards and Python.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.backends.cache import load

MANY = 200  # tensors for which it pays to compile, in half a second, once on a machine
GUARDS: Any = getattr(torch._C._dynamo, "guards", None)  # private to torch, and so perhaps not there
TensorGuards: Any = getattr(GUARDS, "TensorGuards", None)
FACTS = ("data_ptr", "storage_size", "dtype", "storage_offset", "device_index", "dim", "sizes", "strides")
Tensors = list[Tensor]
PLAIN = (Tensor, torch.nn.Parameter)  # most tensors are no more than that
TRIES = 9  # a word that nobody has set looks like one of those that are searched once in two thousand
_IMPL = 22  # words that a tensor in C++ has at least
_COUNTER = 7  # numbers of 32 bits that a version counter in C++ has at least

_storage = torch._C.TensorBase.untyped_storage
_bytes_of = torch.UntypedStorage.nbytes
_offset_of = torch._C.TensorBase.storage_offset
_address_of = torch._C.TensorBase.data_ptr


def _is_nested(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_nested


def extent_of(tensor: Tensor) -> int:
    """Bytes that a tensor spans, from its first element to the end of its last."""
    if tensor.is_contiguous() or not tensor.numel():
        return tensor.numel() * tensor.element_size()
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + reach) * tensor.element_size()


class Spans:
    """Sorted address ranges, for tests of overlap.

    Args:
        starts: first addresses, int64.
        sizes: bytes, int64; an empty range overlaps with nothing.
    """

    def __init__(self, starts: np.ndarray, sizes: np.ndarray):
        order = np.argsort(starts, kind="stable")
        self.order = order[sizes[order] > 0]
        self.starts = starts[self.order]
        # reach[i] is the highest end of the first i ranges, so that nested ranges are seen too.
        self.reach = np.concatenate([[-1], np.maximum.accumulate(self.starts + sizes[self.order])])

    def disjoint(self) -> bool:
        """Whether no two of the ranges overlap."""
        return bool((self.reach[1:-1] <= self.starts[1:]).all()) if len(self.starts) else True

    def clear_of(self, starts: np.ndarray, sizes: np.ndarray) -> bool:
        """Whether none of the ranges overlaps with any of these."""
        before = np.searchsorted(self.starts, starts + sizes)
        return not bool(((self.reach[before] > starts) & (sizes > 0)).any())


class Guard:
    """Recorded properties and addresses of tensors, each of which `door` has checked."""

    moves = 0  # how often free tensors have been found at other addresses than before

    def __init__(self, fixed: Tensors, free: Tensors):
        self.same_kind = _same_kind(fixed), _same_kind(free)
        self.fixed_addresses = [t.data_ptr() for t in fixed]
        self.addresses = np.array([*self.fixed_addresses, *(t.data_ptr() for t in free)], np.int64)
        self.fixed = self.addresses[: len(fixed)]
        self.storages = [t.untyped_storage().nbytes() for t in fixed]
        self.sizes = np.array([extent_of(t) for t in free], np.int64)
        self.items = [t.element_size() for t in free]
        self.extents = self.sizes.tolist()
        self.spans = Spans(self.fixed, np.array([extent_of(t) for t in fixed], np.int64))
        self.free_addresses = self.addresses[len(fixed) :].tolist()

    def find(self, fixed: Tensors, free: Tensors) -> np.ndarray | None:
        """The addresses of all tensors, int64, fixed ones first; None if one has changed.

        The array is valid until the next call.
        """
        if len(fixed) != len(self.fixed) or len(free) != len(self.free_addresses):
            return None
        if any(map(_is_nested, fixed)) or any(map(_is_nested, free)):  # of which the next ends the process
            return None
        if not (self.same_kind[0](*fixed) and self.same_kind[1](*free)):
            return None
        if list(map(_address_of, fixed)) != self.fixed_addresses:
            return None
        # A storage may be resized or freed although the tensor's sizes stay.
        if list(map(_bytes_of, map(_storage, fixed))) != self.storages:
            return None
        for offset, size, item, storage_size in zip(
            map(_offset_of, free), self.extents, self.items, map(_bytes_of, map(_storage, free)), strict=True
        ):
            if offset * item + size > storage_size:
                return None
        addresses = list(map(_address_of, free))
        return self.addresses if addresses == self.free_addresses or self._move(addresses) else None

    def increment_versions(self, fixed: Tensors) -> None:
        """Increment the version counters of the fixed tensors, which `find` has just accepted."""
        torch.autograd.graph.increment_version(fixed)

    def _move(self, addresses: list[int]) -> bool:
        """Record new addresses of free tensors; False if one overlaps with a fixed tensor."""
        starts = np.array(addresses, np.int64)
        if not self.spans.clear_of(starts, self.sizes):
            return False
        self.moves += 1  # first, so that nobody takes the old addresses for these
        self.addresses[len(self.fixed) :] = starts
        self.free_addresses = addresses
        return True


class CompiledGuard(Guard):
    """A guard that compares all tensors in one compiled call."""

    def __init__(self, fixed: Tensors, free: Tensors, module: ModuleType, survey: Survey | None = None):
        self.module, self.count, self.free_count = module, len(fixed), len(free)
        self.probe = probe_arguments()
        self.types = {*map(type, fixed), *map(type, free)}  # kept, so that no other type gets its address
        if survey is None:
            survey = Survey([*fixed, *free], module)
        rows, free_rows = survey.rows[: self.count], survey.rows[self.count :]
        border = 2 * int(rows[:, 5].sum())
        sizes, free_sizes = survey.sizes[:border], survey.sizes[border:]
        self.addresses = survey.starts.copy()
        self.moved = self.addresses[self.count :].copy()
        self.fixed, self.free_addresses = self.addresses[: self.count], self.addresses[self.count :]
        self.spans = Spans(self.fixed, rows[:, 7])
        spans = np.ascontiguousarray(self.spans.starts), np.ascontiguousarray(self.spans.reach)
        self.arrays = (
            self.probe[0],
            rows,
            sizes,
            self.fixed,
            free_rows,
            free_sizes,
            self.moved,
            self.free_addresses,
            *spans,
        )
        probe, *others = map(words_of, self.arrays)
        self.words = np.array(
            [*probe, self.probe[1], *(word for words in others for word in words)], np.int64
        )

    def find(self, fixed: Tensors, free: Tensors) -> np.ndarray | None:
        """The addresses of all tensors, int64, fixed ones first; None if one has changed.

        The array is valid until the next call.
        """
        if len(fixed) != self.count or len(free) != self.free_count:
            return None
        outcome = self.module.guard(self.words, id(fixed), id(free))
        if outcome == 2:
            self.moves += 1  # first, so that nobody takes the old addresses for these
            self.free_addresses[:] = self.moved
        return self.addresses if outcome else None

    def increment_versions(self, fixed: Tensors) -> None:
        """Increment the version counters of the fixed tensors, which `find` has just accepted."""
        self.module.increment_versions(*self.probe, id(fixed), len(fixed))


def probe_arguments() -> tuple[Any, int]:
    """What compiled code needs to read tensors in a list: `_probe` and the address of PyList_GetItem."""
    return _probe(), c_function("PyList_GetItem")


def words_of(array: np.ndarray) -> list[int]:
    """Address and shape of an int64 array, for compiled code."""
    return [array.ctypes.data, *array.shape]


class Survey:
    """Properties of many tensors, read in one compiled call: int64 arrays with a row per tensor.

    Columns of `rows`: type, dispatch keys, storage bytes, dtype, device, number of dimensions, element size,
    bytes spanned, whether contiguous, storage offset. `sizes` has each tensor's sizes and then strides.

    Raises:
        RuntimeError: torch cannot describe one.
    """

    def __init__(self, tensors: Tensors, module: ModuleType):
        self.rows, self.starts = np.zeros((len(tensors), 10), np.int64), np.zeros(len(tensors), np.int64)
        if not module.describe(*probe_arguments(), id(tensors), self.rows, self.starts):
            raise RuntimeError("torch cannot describe a tensor of this step: it has no memory of its own")
        _, firsts, kinds = np.unique(self.rows[:, 3], return_index=True, return_inverse=True)
        self.rows[:, 6] = np.array([tensors[i].element_size() for i in firsts], np.int64)[kinds]
        self.sizes = np.zeros(2 * int(self.rows[:, 5].sum()), np.int64)
        module.measure(*probe_arguments(), id(tensors), self.rows, self.sizes)

    @staticmethod
    def of(tensors: Tensors) -> Survey | None:
        """A survey if there are enough tensors for it to pay; None also if one is not plain."""
        module = compiled() if len(tensors) >= MANY else None
        if module is None or not {*map(type, tensors)} <= {*PLAIN}:
            return None
        try:
            return Survey(tensors, module)
        except RuntimeError:
            return None

    @property
    def spans(self) -> np.ndarray:
        """Bytes that each tensor spans."""
        return self.rows[:, 7]

    def plain(self) -> np.ndarray:
        """Mask of tensors that need no further check: contiguous, on the CPU, float, within storage."""
        rows = self.rows
        types, key, dtypes = _plain()
        # Types are compared as addresses of objects that are never freed.
        plain = np.isin(rows[:, 0], types) & (rows[:, 1] == key) & np.isin(rows[:, 3], dtypes)
        in_storage = (rows[:, 9] * rows[:, 6] + rows[:, 7] <= rows[:, 2]) & (
            (self.starts != 0) | (rows[:, 7] == 0)
        )
        result: np.ndarray = plain & in_storage & (rows[:, 8] == 1)
        return result

    def kinds(self, ends: Sequence[int]) -> list[tuple[bytes, bytes]]:
        """Keys of consecutive ranges of tensors: lazy views, dtypes, devices, sizes and strides."""
        properties = np.ascontiguousarray(self.rows[:, [1, 3, 4, 5]]).tobytes()
        sizes, lengths = self.sizes.tobytes(), np.concatenate([[0], np.cumsum(16 * self.rows[:, 5])])
        ranges = zip(pairwise([0, *ends]), pairwise([0, *lengths[list(ends)].tolist()]), strict=True)
        return [(properties[32 * a : 32 * b], sizes[c:d]) for (a, b), (c, d) in ranges]


@cache
def _plain() -> tuple[list[int], int, list[int]]:
    """Types, dispatch keys and dtypes of plain tensors, as `Survey` has them."""
    module = compiled()
    assert module is not None
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    with torch.device("cpu"), torch.inference_mode(False):
        rows = Survey([torch.zeros(1, dtype=kind) for kind in kinds], module).rows
    return list(map(id, PLAIN)), int(rows[0, 1]), rows[:, 3].tolist()


def guard(fixed: Tensors, free: Tensors, warm: bool = False, survey: Survey | None = None) -> Guard:
    """A guard for tensors that `door` has checked.

    `warm`: compile even for few tensors, as steps are replayed often enough for it to pay. `survey`: of all
    of them, if there is one.
    """
    module = compiled() if warm or len(fixed) + len(free) >= MANY else None
    return Guard(fixed, free) if module is None else CompiledGuard(fixed, free, module, survey)


@cache
def compiled() -> ModuleType | None:
    """The compiled checks (`backends.cpu.pyobjects`); None without Numba or a known tensor layout."""
    if importlib.util.find_spec("numba") is None or _probe() is None:
        return None
    from optgen.backends.cpu import kernel

    source = Path(kernel.__file__).with_name("pyobjects.py").read_text(encoding="utf-8")
    return load(source, "objects", "cpu")


@cache
def c_function(name: str) -> int:
    """The address of a function of Python's C API."""
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0


@cache
def _probe() -> np.ndarray | None:
    """Addresses of torch's C functions (`FACTS`), then `_tensor_layout`, int64; None if one is missing."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        functions = [
            ctypes.cast(getattr(library, f"aoti_torch_get_{name}"), ctypes.c_void_p) for name in FACTS
        ]
    except (OSError, AttributeError):
        return None
    # Whatever the default is now, and whoever looks at torch's calls.
    with torch.device("cpu"), torch.inference_mode(False), torch._C.DisableTorchFunction():
        layout = next((found for _ in range(TRIES) if (found := _tensor_layout()) is not None), None)
    return None if layout is None else np.array([*(f.value for f in functions), *layout], np.int64)


def _tensor_layout() -> tuple[int, ...] | None:
    """Find the words of a C++ tensor that `backends.cpu.pyobjects` reads: KEY, DIMS, COUNTER, VERSION.

    They are found by comparing tensors that differ in one property, as torch exports no function for them.
    None if a word is ambiguous, or if a Python tensor does not have its C++ tensor's address where expected.
    """
    plain, shape = (
        [torch.zeros(n) for n in (1, 3)],
        torch.zeros(2, dtype=torch.complex64),
    )
    tensors = [*plain, *map(torch._neg_view, plain), shape, shape.conj()]
    a, b, negated, again, c, conjugated = map(_words, tensors)
    keys = [
        i
        for i in range(_IMPL)
        if a[i] == b[i] == c[i]
        and negated[i] == again[i] != conjugated[i]
        and (a[i] ^ negated[i]).bit_count() == (c[i] ^ conjugated[i]).bit_count() == 1
    ]
    strided = [torch.zeros(2000).as_strided((7, 5, 3, 9, 11)[:n], (23, 2, 19, 17, 13)[:n]) for n in range(6)]
    dims = [
        i for i in range(_IMPL - 11) if all(_is_sizes_and_strides(_words(t)[i : i + 11], t) for t in strided)
    ]
    versions = _versions(plain[0])
    addresses = all((ctypes.c_int64 * 3).from_address(id(t))[2] == t._cdata for t in (*tensors, *strided))
    unique = len(keys) == len(dims) == len(versions) == 1
    return (keys[0], dims[0], *versions[0]) if addresses and unique else None


def _versions(tensor: Tensor) -> list[tuple[int, int]]:
    """Candidates for the word with the version counter's address, and the byte of the version in that.

    Tensors that share memory by `detach` share a counter, and those by `.data` do not.
    """
    detached, apart = tensor.detach(), tensor.data
    a, same, other = map(_words, (tensor, detached, apart))
    counters = [i for i in range(_IMPL) if a[i] == same[i] != other[i] and a[i] and other[i]]
    if len(counters) != 1:
        return []
    candidates = []
    for times in (1234, 4321):
        torch.autograd.graph.increment_version([tensor] * times)
        numbers = (ctypes.c_uint32 * _COUNTER).from_address(a[counters[0]])
        candidates.append({4 * at for at, number in enumerate(numbers) if number == tensor._version})
    return [(counters[0], at) for at in candidates[0] & candidates[1]]


def _words(tensor: Tensor) -> list[int]:
    """The first words of a C++ tensor."""
    return list((ctypes.c_int64 * _IMPL).from_address(tensor._cdata))


def _is_sizes_and_strides(words: list[int], tensor: Tensor) -> bool:
    """Whether words are a number of dimensions, then five sizes and five strides."""
    n = tensor.dim()
    return words[0] == n and (*words[1 : 1 + n], *words[6 : 6 + n]) == (*tensor.shape, *tensor.stride())


def _same_kind(tensors: Sequence[Tensor]) -> Any:
    """A predicate: whether tensors have the same types, dtypes, devices, sizes, strides and lazy views."""
    if TensorGuards is not None and tensors:
        return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    kinds = [_kind(t) for t in tensors]
    return lambda *others: len(others) == len(kinds) and list(map(_kind, others)) == kinds


def _kind(t: Any) -> Any:
    """The properties that `_same_kind` compares, without torch's guards."""
    if not isinstance(t, Tensor):
        return type(t)
    return type(t), t.dtype, t.device, t.shape, t.stride(), t.layout, t.is_neg(), t.is_conj()
