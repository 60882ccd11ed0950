"""Which step it is: counters on the host or on the device, gradient scalers, and CUDA graphs.

In: an optimizer's groups, and what a `torch.amp.GradScaler` has left on it. Out: whether the host may know
the step, and counters that are advanced where they lie. The host does not know it under a scaler on a GPU,
which skips a step without telling, nor in a CUDA graph, which is replayed without it; then the step count
lies on the device, and the values that follow from it are computed there.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.launch.guards import CompiledGuard, Guard


def scaling_of(optimizer: torch.optim.Optimizer, home: torch.device) -> dict[str, Tensor] | None:
    """What a scaler has left for this step, 0-d float64: `grad_scale`, 1 where it has divided already, and
    `found_inf`; None without a scaler."""
    found = vars(optimizer).get("found_inf")
    if found is None:
        return None
    scale = vars(optimizer).get("grad_scale")
    given = {"grad_scale": torch.ones((), device="cpu") if scale is None else scale, "found_inf": found}
    return {name: x.detach().to(home, torch.float64).reshape(()) for name, x in given.items()}


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


def check_capture(name: str, groups: Sequence[Mapping[str, Any]], capturable: bool) -> None:
    """Refuse a CUDA graph that is being captured where its replays would not be steps.

    Raises:
        RuntimeError: the optimizer is not capturable, so that every replay would be the same step; or a
            parameter that is not frozen has no gradient, so that none would move it.
    """
    if not capturable:
        raise RuntimeError(
            f"Attempting CUDA graph capture of step() for an instance of {name} whose capturable is False: "
            f"every replay would be the same step. Pass capturable=True to {name}"
        )
    for group in groups:
        for position, p in enumerate(group["params"]):
            if p.grad is None and p.requires_grad and position not in (group.get("frozen") or ()):
                raise RuntimeError(
                    f"a parameter of shape {tuple(p.shape)} has no gradient, so the graph would never step "
                    "it: run backward() before the capture, or freeze the parameter"
                )


class Count:
    """The step counts of many parameters on the host, read and advanced in one call.

    Args:
        counters: 0-d tensors.
        places: where they lie, int64.
        guard: what makes sure that they are still what they are now, before each call.
    """

    def __init__(self, counters: Sequence[Tensor], places: np.ndarray, guard: Guard):
        dtypes = {counter.dtype for counter in counters}
        kind = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}.get(dtypes.pop())
        self.asks = kind is None or bool(dtypes)  # whether the counters themselves are needed
        self.places, self.double = places, kind is ctypes.c_double
        self.module = guard.module if isinstance(guard, CompiledGuard) and not self.asks else None
        few = not self.asks and self.module is None
        # Their memory as numbers, which no function of torch reads and adds to as quickly.
        self.cells = [kind.from_address(place) for place in places.tolist()] if few and kind else []

    def read(self, counters: Sequence[Tensor]) -> float | None:
        """The count that all of them have; None where they differ, or have none."""
        if self.module is not None:
            found = set(self.module.range_of(self.places, self.double))
        else:
            found = {c.item() for c in counters} if self.asks else {c.value for c in self.cells}
        return found.pop() if len(found) == 1 and all(map(math.isfinite, found)) else None

    def advance(self, counters: Sequence[Tensor]) -> None:
        """Count a step."""
        if self.module is not None:
            self.module.add_one(self.places, self.double)
        elif self.asks:
            torch._foreach_add_(list(counters), 1.0)
        else:
            for cell in self.cells:
                cell.value += 1.0
