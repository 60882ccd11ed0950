"""Replay of a step in one compiled call, which nothing can interrupt: for steps that are bound by the host.

In: a recording whose guard is compiled, and whose kernels are sweeps too short for a second thread. Out: the
step, or nothing changed. The call compares tensors and counters, writes addresses of tensors that moved,
increments version counters, sweeps, and increments step counters. It holds the interpreter's lock
throughout, so that no other thread and no signal handler runs in between.
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
    """The compiled call and its arguments.

    Args:
        launches: of the recording, with tables that are up to date.
        calls: addresses of the C functions that make the step, and of their arguments.
        guard: of the tensors, which it has just accepted.
        counters: of the parameters.
        module: the compiled checks, which have `make`.
    """

    @staticmethod
    def of(launches: Sequence[Launch], guard: Any, counters: Cells | None) -> OneCall | None:
        """The call; None if the step cannot be made in one."""
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
        # Kept alive: `arguments` has their addresses only.
        self.arrays = [np.ascontiguousarray(array, np.int64) for array in arrays]
        words = [*chain.from_iterable(map(words_of, self.arrays)), c_function("PyObject_SetAttr")]
        self.arguments = np.array([*words, id(GRAD), id(None)], np.int64)

    def _address_cells(self, launch: Launch) -> tuple[np.ndarray, np.ndarray]:
        """Addresses of table cells that hold a free tensor's address, and which tensor's."""
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
        """Bring the tables up to date; False if the step needs more than that."""
        moves, count = self.guard.moves, self.count
        if count is None:
            return False
        for launch, tables, words in zip(self.launches, self.tables, self.words, strict=True):
            if launch.moves != moves or not launch.rescale(groups, count + 1):
                return False
            if words is None or tables.words is not words:
                return False
            # The compiled call has addresses of these arrays, and would read the old ones.
            if words[0] is not tables.tensors or words[1] is not tables.scalars:
                return False
        return True

    def compile(self, fixed: Tensors, free: Tensors) -> None:
        """Compile the call: NaN is no parameter's step count, so it changes nothing."""
        self.count = math.nan
        self.make(fixed, free)
        self.count = None

    def make(self, fixed: Tensors, free: Tensors, free_grad: bool = False) -> bool:
        """Make the step; False, with nothing changed, if a tensor or counter differs from the recording.

        With `free_grad` the gradient of the first fixed tensor, a plain parameter, is set to None.
        """
        guard, count = self.guard, self.count
        if count is None or len(fixed) != guard.count or len(free) != guard.free_count:
            return False
        if not self.step(guard.words, self.arguments, id(fixed), id(free), count, free_grad):
            return False
        self.count = count + 1
        return True
