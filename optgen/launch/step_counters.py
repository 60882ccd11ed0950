"""Numbers of the host that are tensors of their own: step counts and host states, read and written in bulk.

In: addresses that a guard has just compared. Out: their values as one array. A tensor each keeps a pickle
of one small and a version count its own; many are read in one call of compiled code, where Numba is there.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from optgen.launch.guards import MANY, compiled

_HOST = torch.device("cpu")


class Cells:
    """0-d tensors in the host's memory.

    Args:
        places: their addresses, int64.
        doubles: of each whether it is float64; float32 otherwise.
        warm: whether it pays to compile for few of them too.
    """

    def __init__(self, addresses: np.ndarray, doubles: np.ndarray, warm: bool = False):
        self.addresses, self.doubles = np.ascontiguousarray(addresses), np.ascontiguousarray(doubles)
        self.module = compiled() if warm or len(addresses) >= MANY else None
        kinds = (ctypes.c_float, ctypes.c_double)
        few = () if self.module is not None else zip(addresses.tolist(), doubles.tolist(), strict=True)
        self.cells = [kinds[double].from_address(address) for address, double in few]

    def read(self) -> np.ndarray:
        """Their values, float64."""
        if self.module is None:
            return np.array([cell.value for cell in self.cells], np.float64)
        values = np.empty(len(self.addresses))
        self.module.gather(self.addresses, self.doubles, values)
        return values

    def common_value(self) -> float | None:
        """The value that all of them have; None where they differ, or it is not finite."""
        if self.module is None:
            values = {cell.value for cell in self.cells}
        else:
            values = set(self.module.range_of(self.addresses, self.doubles))
        return values.pop() if len(values) == 1 and all(map(math.isfinite, values)) else None

    def write(self, values: np.ndarray) -> None:
        """Give each a value."""
        if self.module is not None:
            self.module.scatter(self.addresses, self.doubles, values)
        for cell, value in zip(self.cells, values.tolist(), strict=False):
            cell.value = value

    def add_one(self) -> None:
        """Add 1 to each."""
        if self.module is not None:
            self.module.add_one(self.addresses, self.doubles)
        for cell in self.cells:
            cell.value += 1.0


class StepCounters:
    """The step counts of a step's parameters; those on a device are advanced there, and not read.

    Args:
        counters: 0-d tensors, float32 or float64.
        places: where they lie, int64.
        counted: of each whether the device alone knows it.
    """

    def __init__(self, counters: Sequence[Tensor], addresses: np.ndarray, counted: Sequence[bool]):
        self.counted = list(counted)
        self.cells: Cells | None = None
        if not any(counted) and {counter.device for counter in counters} == {_HOST}:
            self.cells = Cells(addresses, np.array([c.dtype is torch.float64 for c in counters]))

    def warm(self) -> None:
        """Look at a few counters in compiled code too."""
        if self.cells is not None:
            self.cells = Cells(self.cells.addresses, self.cells.doubles, warm=True)

    def read(self, counters: Sequence[Tensor]) -> float | np.ndarray | None:
        """How many steps each has made, one number where that is the same; None if one has no number."""
        if self.cells is not None:
            value = self.cells.common_value()
            if value is not None:
                return value
            values = self.cells.read()
        else:
            pairs = zip(counters, self.counted, strict=True)
            values = np.array([0.0 if counted else counter.item() for counter, counted in pairs])
        return values if np.isfinite(values).all() else None

    def advance(self, counters: Sequence[Tensor], stop: Tensor | None) -> None:
        """Count a step, unless `stop` is not 0; nothing waits for the device."""
        if self.cells is not None and stop is None:
            self.cells.add_one()
        else:
            advance(counters, stop)


def advance(counters: Sequence[Tensor], stop: Tensor | None) -> None:
    """Count a step, unless `stop` is not 0; nothing waits for the device."""
    if stop is None:
        torch._foreach_add_(list(counters), 1.0)
        return
    by_device: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for counter in counters:
        by_device.setdefault((counter.device, counter.dtype), []).append(counter)
    for (device, dtype), found in by_device.items():
        torch._foreach_add_(found, (stop == 0).to(device, dtype))
