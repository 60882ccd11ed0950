"""Step counters and host states on the CPU: 0-d tensors, read and written in bulk by address.

In: addresses that a guard has just compared. Out: values as one array. Each stays a tensor of its own, so
that its pickle is small and its version counter its own; with Numba, many are read in one compiled call.
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
    """0-d tensors in the CPU's memory, by address.

    Args:
        addresses: int64.
        doubles: of each whether it is float64; float32 otherwise.
        warm: compile even for few.
    """

    def __init__(self, addresses: np.ndarray, doubles: np.ndarray, warm: bool = False):
        self.addresses, self.doubles = np.ascontiguousarray(addresses), np.ascontiguousarray(doubles)
        self.module = compiled() if warm or len(addresses) >= MANY else None
        kinds = (ctypes.c_float, ctypes.c_double)
        few = () if self.module is not None else zip(addresses.tolist(), doubles.tolist(), strict=True)
        self.cells = [kinds[double].from_address(address) for address, double in few]

    def read(self) -> np.ndarray:
        """All values, float64."""
        if self.module is None:
            return np.array([cell.value for cell in self.cells], np.float64)
        values = np.empty(len(self.addresses))
        self.module.gather(self.addresses, self.doubles, values)
        return values

    def common_value(self) -> float | None:
        """The value that all have; None if they differ, or it is not finite."""
        if self.module is None:
            values = {cell.value for cell in self.cells}
        else:
            values = set(self.module.range_of(self.addresses, self.doubles))
        return values.pop() if len(values) == 1 and all(map(math.isfinite, values)) else None

    def write(self, values: np.ndarray) -> None:
        """Write a value to each."""
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
    """The step counters of a step's parameters; those on a device are incremented there, and never read.

    Args:
        counters: 0-d tensors, float32 or float64.
        addresses: int64.
        counted: of each whether it is on a device.
    """

    def __init__(self, counters: Sequence[Tensor], addresses: np.ndarray, counted: Sequence[bool]):
        self.counted = list(counted)
        self.cells: Cells | None = None
        if not any(counted) and {counter.device for counter in counters} == {_HOST}:
            self.cells = Cells(addresses, np.array([c.dtype is torch.float64 for c in counters]))

    def warm(self) -> None:
        """Compile for few counters too."""
        if self.cells is not None:
            self.cells = Cells(self.cells.addresses, self.cells.doubles, warm=True)

    def read(self, counters: Sequence[Tensor]) -> float | np.ndarray | None:
        """The counts, one number if all are equal; None if one is not finite."""
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
        """Increment the counters, unless `stop` is not 0; does not synchronise with the device."""
        if self.cells is not None and stop is None:
            self.cells.add_one()
        else:
            advance(counters, stop)


def advance(counters: Sequence[Tensor], stop: Tensor | None) -> None:
    """Increment counters, unless `stop` is not 0; does not synchronise with the device."""
    if stop is None:
        torch._foreach_add_(list(counters), 1.0)
        return
    by_device: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for counter in counters:
        by_device.setdefault((counter.device, counter.dtype), []).append(counter)
    for (device, dtype), found in by_device.items():
        torch._foreach_add_(found, (stop == 0).to(device, dtype))
