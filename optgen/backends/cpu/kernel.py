"""The CPU back end: a plan as Numba functions over chunks, in place and without temporaries.

In: a layout. Out: source of a module (`emit`), and a `Kernel` that runs it (`CpuKernel`). Phase k is
`update<k>`, the arithmetic of one element, and `sweep<k>`, which applies it to a range of chunks. Sums add
into 64 float64 lanes, whole rows of lanes first, so that the compiler vectorises them and the order is
fixed. Lanes lie in memory, and an addition waits for the one before it in its lane: a step of AdamW clipped
by the global norm takes 54 ms with 16 lanes, 30 with 64 and 31 with 256 (32 M elements, 2 cores).

Threads are torch's own OpenMP team (`openmp.team`), or Python's if that is not available, each in a call that
releases the interpreter's lock. A parallel Numba function would take 1.0 to 1.4 s to compile for each phase,
besides 0.6 s for the phase itself, would abort the process if two threads enter it (workqueue), and waits for
all of its threads at once: on two cores of which one was busy, a million elements took 14 ms that way and
1.4 ms on Python's threads.

IEEE semantics need nothing special here: LLVM contracts no multiplication with an addition unless asked.
`math="fast"` asks for that, and for reciprocals in place of divisions. It costs one or two units in the
last place of the largest term of each sum: after a step of any shipped rule max|a - b| / max|b| was at most
1.7e-7 in float32 and 2.2e-16 in float64. In float32 memory bounds a step either way.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from llvmlite import binding
from numba import int64, typeof

from optgen.backends import reference as reference
from optgen.backends.cpu.machine_code import c_function
from optgen.backends.cpu.openmp import Team, available, team
from optgen.backends.cpu.printer import CHUNK, FORMS, GLOBALS, LOCALS, RUNTIME, TILE
from optgen.backends.cpu.reductions import between_source
from optgen.backends.cpu.sweep import sweep_source
from optgen.backends.emit import Names, emitted, header, helper_name
from optgen.backends.layout import Layout
from optgen.backends.protocol import Kernel, Tables
from optgen.locks import once
from optgen.plan.plan import Step

# A rule touches more arrays than LLVM's vectoriser is by default willing to check for overlap.
binding.set_option("optgen", "-runtime-memory-check-threshold=128")


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """Source of a module with a function for every step."""
    plan = layout.plan
    fast = ", fastmath={'contract', 'arcp', 'afn'}" if math_mode == "fast" else ""
    names = Names(plan, GLOBALS | LOCALS, FORMS)
    parts = [
        f"""\
{header(layout, math_mode)}
import math

import numpy as np
from numba import carray, njit

from optgen.backends.cpu.intrinsics import {", ".join(RUNTIME)}
from optgen.backends.cpu.machine_code import stored

f32, f64, u16, u32, u64 = np.float32, np.float64, np.uint16, np.uint32, np.uint64
inline = njit(error_model="numpy", forceinline=True{fast})
compiled = stored(nogil=True, error_model="numpy"{fast})
"""
    ]
    for step in emitted(plan):
        if step.kind != "global":  # some twenty numbers: the reference computes them
            build = sweep_source if step.kind == "sweep" else between_source
            parts.append(build(layout, step, names))
    return "\n\n".join(parts)


_pools: dict[str, ThreadPoolExecutor] = {}  # the one of this process


def _pool() -> ThreadPoolExecutor:
    """This process's thread pool, for when torch has no OpenMP team."""
    threads = max(1, (os.cpu_count() or 1) - 1)
    return once(_pools, "all", lambda: ThreadPoolExecutor(threads, thread_name_prefix="optgen"))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


class SweepPart:
    """A sweep as a C function of one pointer: each thread of a team runs its share of the chunks."""

    def __init__(self, compiled: Any):
        self.compiled, self.address = compiled, compiled.address
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)


class CpuKernel(Kernel):
    """A module emitted by `emit`, run on as many threads as torch uses."""

    chunk = CHUNK
    tile = TILE
    atomic = False
    numpy_tables = True
    min_elements = CHUNK  # a thread gets no fewer elements: they take about as long as waking it,
    min_elements_python = 4 * CHUNK  # and these as handing them over to one of Python's
    chunk_overhead = 16  # elements that take as long as finding a chunk

    def __init__(self, layout: Layout, module: ModuleType):
        self.layout, self.module = layout, module
        self.parts: dict[str, SweepPart] = {}  # by sweep: what does the calling thread's share
        self.ready: set[bool] = set()  # what is compiled: sweeps, or parts of them for torch's threads

    def prepare(self, tables: Tables) -> None:
        """Compile every function of a step on these tables, and set the number of threads."""
        count, openmp = len(tables.chunks), team()
        effort = self._useful_threads(tables, self.min_elements if openmp else self.min_elements_python)
        tables.threads = max(1, min(available(), count, effort)) if effort > 1 else 1
        parts = openmp is not None
        if parts in self.ready:
            return
        arguments = tuple(map(typeof, tables.arguments(self.layout)))
        for step in self.layout.plan.steps:
            if step.kind == "sweep" and parts:
                self.parts[step.name] = SweepPart(c_function(getattr(self.module, helper_name(step, "part"))))
            elif step.kind != "global":
                first = (int64, int64) if step.kind == "sweep" else ()
                getattr(self.module, step.name).compile((*first, *arguments))
        self.ready.add(parts)

    def run(self, step: Step, tables: Tables) -> None:
        """Run one step of the plan on every tensor."""
        if step.kind == "sweep":
            self._sweep(step.name, tables)
        elif step.kind == "global":
            reference.compute_globals(step, self.layout.plan.numbers, tables.numbers)
        else:
            getattr(self.module, step.name)(*tables.arguments(self.layout))

    def _useful_threads(self, tables: Tables, min_elements: int) -> int:
        """The number of threads that a sweep keeps busy, with at least so many elements each."""
        return (tables.elements + len(tables.chunks) * self.chunk_overhead) // min_elements

    def c_call(self, step: Step, tables: Tables) -> tuple[int, int] | None:
        """Addresses of a short sweep's C function and its argument; None if threads should share it."""
        openmp = team()
        if step.kind != "sweep" or openmp is None or self._useful_threads(tables, self.min_elements) > 1:
            return None
        return self.parts[step.name].address, self.words(tables, openmp).ctypes.data

    def _sweep(self, name: str, tables: Tables) -> None:
        """Run a sweep on every chunk, on the number of threads set by `prepare`."""
        openmp, threads, count = team(), tables.threads, len(tables.chunks)
        if openmp is not None:
            data = self.words(tables, openmp).ctypes.data
            if threads > 1:
                openmp.run(self.parts[name].address, data, threads)
            else:
                self.parts[name].call(data)
            return
        run, arguments = getattr(self.module, name), tables.arguments(self.layout)
        parts = list(pairwise(count * k // threads for k in range(threads + 1)))
        # This thread runs the first part itself: with one part nothing is handed to the pool.
        others = [_pool().submit(run, *part, *arguments) for part in parts[1:]]
        run(*parts[0], *arguments)
        for other in others:
            other.result()

    def words(self, tables: Tables, openmp: Team) -> np.ndarray:
        """Argument of the C functions: OpenMP's own functions, number of chunks, addresses of tables."""
        # Rebuilt only if `tensors` or `scalars` was replaced: the other tables live as long as the bucket.
        # It is kept alive with the tables, since C functions and `OneCall` hold its address.
        cached = tables.words
        if cached is None or cached[0] is not tables.tensors or cached[1] is not tables.scalars:
            words = [*openmp.functions, len(tables.chunks)]
            for array in tables.arguments(self.layout):
                words += [array.ctypes.data, *array.shape]
            cached = tables.words = tables.tensors, tables.scalars, np.array(words, np.int64)
        return cached[2]


def load(layout: Layout, math_mode: str, module: Callable[[], ModuleType]) -> CpuKernel:
    """The kernel of a layout."""
    return CpuKernel(layout, module())
