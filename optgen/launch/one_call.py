"""A recorded step as one call of compiled code that holds the interpreter's lock: for short steps.

In: a recording whose tensors are compared in compiled code, and whose kernels are sweeps that take no longer
than to wake another thread. Out: the step, or nothing changed. The call looks at the tensors and counters,
enters the addresses of tensors that lie elsewhere, tells autograd what is written, sweeps, and counts. It
holds the lock of the interpreter all the while, so that no other thread and no signal handler comes between.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np

from optgen.launch.guards import CompiledGuard, Tensors, c_function, words_of
from optgen.launch.run import Launch
from optgen.launch.step_counters import Cells

Groups = Sequence[Mapping[str, Any]]
GRAD = sys.intern("grad")


class OneCall:
    """The compiled call of a recorded step, and the tables of addresses that it reads.

    Args:
        launches: of the recording, with tables that are up to date.
        calls: the C functions and their pointers that make the step.
        guard: of the tensors, which has just found them.
        counters: of the parameters.
        module: which has the call.
    """

    @staticmethod
    def of(launches: Sequence[Launch], guard: Any, counters: Cells | None) -> OneCall | None:
        """The call; None where the step takes more than one."""
        if not isinstance(guard, CompiledGuard) or counters is None or counters.module is None:
            return None
        if not launches or not all(launch.simple for launch in launches):
            return None
        calls = []
        for bucket in (launch.bucket for launch in launches):
            calls += [bucket.kernel.c_call(step, bucket.tables) for step in bucket.plan.steps]
        runnable = [call for call in calls if call is not None]
        return (
            None
            if len(runnable) < len(calls)
            else OneCall(launches, runnable, guard, counters, counters.module)
        )

    def __init__(
        self,
        launches: Sequence[Launch],
        calls: Sequence[tuple[int, int]],
        guard: CompiledGuard,
        counters: Cells,
        module: ModuleType,
    ):
        self.launches, self.guard, self.step = launches, guard, module.make
        self.count: float | None = None  # how many steps each parameter has made, if one number says it
        self.tables = [launch.bucket.tables for launch in launches]
        self.words = [tables.words for tables in self.tables]  # which keep what the calls read
        cells, of = zip(*map(self._address_cells, launches), strict=True)
        functions, data = zip(*calls, strict=True)
        doubles = counters.doubles.astype(np.int64)
        arrays = counters.addresses, doubles, np.concatenate(cells), np.concatenate(of), functions, data
        self.arrays = [np.ascontiguousarray(array, np.int64) for array in arrays]
        words = [*chain.from_iterable(map(words_of, self.arrays)), c_function("PyObject_SetAttr")]
        self.arguments = np.array([*words, id(GRAD), id(None)], np.int64)

    def _address_cells(self, launch: Launch) -> tuple[np.ndarray, np.ndarray]:
        """Which cells of a table have addresses of free tensors, and of which."""
        bucket, layout = launch.bucket, launch.bucket.layout
        rows = np.arange(len(bucket.members)) * layout.width
        cells, of = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for name, tensors in bucket.sources.items():
            if name in layout.pointers:
                free = tensors >= self.guard.count
                addresses = bucket.host.ctypes.data + 8 * (rows + layout.columns[name])
                cells.append(addresses[free])
                of.append(tensors[free] - self.guard.count)
        return np.concatenate(cells), np.concatenate(of)

    def refresh(self, groups: Groups) -> bool:
        """Bring the tables up to date; False where the step must be made in another way."""
        moves, count = self.guard.moves, self.count
        if count is None:
            return False
        for launch, tables, words in zip(self.launches, self.tables, self.words, strict=True):
            if launch.moves != moves or not launch.rescale(groups, count + 1):
                return False
            if words is None or tables.words is not words:
                return False
            if words[0] is not tables.tensors or words[1] is not tables.scalars:
                return False
        return True

    def compile(self, fixed: Tensors, free: Tensors) -> None:
        """Have the call compiled, which no parameter is at the step for."""
        self.count = math.nan
        self.make(fixed, free)
        self.count = None

    def make(self, fixed: Tensors, free: Tensors, free_grad: bool = False) -> bool:
        """Make the step; False where a tensor or a counter is not what it was, and nothing has changed.

        With `free_grad` the first of the fixed ones, a plain parameter, loses its gradient.
        """
        guard, count = self.guard, self.count
        if count is None or len(fixed) != guard.count or len(free) != guard.free_count:
            return False
        if not self.step(guard.words, self.arguments, id(fixed), id(free), count, free_grad):
            return False
        self.count = count + 1
        return True
