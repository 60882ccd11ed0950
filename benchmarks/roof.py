"""What bounds a step: the bytes that its plan moves, and the bandwidth of the machine.

In: an optimizer that has stepped. Out: the bytes of a step by the plans that its launcher made, never by a
constant here; and STREAM's triad, a = b + s*c, on as many threads as torch uses.

STREAM counts 12 bytes for an element of float32, although a processor reads `a` too before it writes it. A
step writes what it has read, and so can go beyond the triad. `InPlace`, a = a + s*b, has no such hidden
traffic and is the harder roof: 53 GB/s where the triad has 31 (2 cores of an Intel Xeon). Both are measured.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numba import njit

from optgen.launch import CODEC_OF, Launcher
from optgen.optim import Optimizer
from optgen.plan import Plan, element_stores

LEAST = 256 << 20  # bytes of each array, where the last cache is small


def plans(opt: Optimizer) -> list[tuple[Plan, int]]:
    """The plan and the number of elements of every parameter of an optimizer that has stepped."""
    launcher = Launcher(opt.program)
    found = []
    for group in opt.param_groups:
        for p in group["params"]:
            truths = launcher.compiler.facts(group, p.dim())
            program = launcher.compiler.specialised(truths)
            kept = {name: opt.state[p][s.key] for name, s in program.states.items() if s.key in opt.state[p]}
            tensors = {"p": p, "g": p.grad, **kept}
            stores = tuple(CODEC_OF[tensors.get(s, p).dtype] for s in element_stores(program))
            found.append((launcher.compiler.planned(truths, stores), p.numel()))
    return found


def planned_bytes(opt: Optimizer) -> int:
    """The bytes of one step: those of each parameter's plan, times its elements."""
    return sum(plan.bytes * elements for plan, elements in plans(opt))


# Over whole arrays from 0: a start that might be negative would keep the compiler from vectorising.


@njit(nogil=True)
def _triad(a, b, c, s):  # type: ignore[no-untyped-def]
    for i in range(len(a)):
        a[i] = b[i] + s * c[i]


@njit(nogil=True)
def _in_place(a, b, c, s):  # type: ignore[no-untyped-def]
    for i in range(len(a)):
        a[i] = a[i] + s * b[i]


class Triad:
    """a = b + s*c over arrays that together are three times the last cache at least; `scale` is for tests."""

    bytes_per_element = 12
    kernel = staticmethod(_triad)

    def __init__(self, arrays: tuple[np.ndarray, ...] | None = None, scale: float = 1.0):
        size = int(scale * max(LEAST, last_cache())) // 4
        self.arrays = arrays or tuple(np.full(size, x, np.float32) for x in (1.0, 2.0, 3.0))
        self.bytes = self.bytes_per_element * len(self.arrays[0])
        threads, count = torch.get_num_threads(), len(self.arrays[0])
        places = pairwise(count * k // threads for k in range(threads + 1))
        self.parts = [[array[start:stop] for array in self.arrays] for start, stop in places]
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self) -> None:
        """One sweep."""
        list(self.pool.map(lambda part: self.kernel(*part, np.float32(1e-3)), self.parts))


class InPlace(Triad):
    """a = a + s*b over the triad's arrays."""

    kernel = staticmethod(_in_place)


def last_cache() -> int:
    """Bytes of the largest cache that the system tells of; 0 where it tells of none."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text(encoding="utf-8").strip())[-1:] in units
    ]
    return max(sizes, default=0)
