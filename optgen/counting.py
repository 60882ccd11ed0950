"""Which step it is: counters on the host or on the device, gradient scalers, and CUDA graphs.

In: an optimizer's groups, and what a `torch.amp.GradScaler` has left on it. Out: whether the host may know
the step, and counters that are advanced where they lie. The host does not know it under a scaler on a GPU,
which skips a step without telling, nor in a CUDA graph, which is replayed without it; then the step count
lies on the device, and the values that follow from it are computed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.ir import Extent, State


def scaling_of(optimizer: torch.optim.Optimizer, home: torch.device) -> dict[str, Tensor] | None:
    """What a scaler has left for this step, 0-d float64: `grad_scale`, 1 where it has divided already, and
    `found_inf`; None without a scaler."""
    found = vars(optimizer).get("found_inf")
    if found is None:
        return None
    scale = vars(optimizer).get("grad_scale")
    given = {"grad_scale": torch.ones(()) if scale is None else scale, "found_inf": found}
    return {name: x.detach().to(home, torch.float64).reshape(()) for name, x in given.items()}


def move_counts(
    kept: dict[str, Any], states: dict[str, Tensor], wanted: Iterable[State], device: torch.device
) -> None:
    """Bring a parameter's step count, and the states that follow from it, to where the step reads them."""
    kept["step"] = kept["step"].to(device)
    for state in wanted:
        if state.extent is Extent.STEP:
            states[state.name] = kept[state.key] = kept[state.key].to(device)


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


def check_capture(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to leave a parameter out of a CUDA graph that is being captured, and so out of every replay.

    Raises:
        RuntimeError: a parameter that is not frozen has no gradient.
    """
    if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return
    for group in groups:
        for position, p in enumerate(group["params"]):
            if p.grad is None and p.requires_grad and position not in group["frozen"]:
                raise RuntimeError(
                    f"a parameter of shape {tuple(p.shape)} has no gradient, so the graph would never step "
                    "it: run backward() before the capture, or freeze the parameter"
                )


class Count:
    """The step counts of many parameters on the host, read and advanced in one call.

    Args:
        counters: 0-d tensors.
        places: their addresses, int64, which stay what they are.
        module: what does it in one call, see `optgen.watching`; None to ask tensor by tensor.
    """

    def __init__(self, counters: Sequence[Tensor], places: np.ndarray, module: ModuleType | None):
        self.counters, self.places = list(counters), places
        dtypes = {counter.dtype for counter in counters}
        known = len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}
        self.double = dtypes == {torch.float64}
        self.module = module if known else None

    def take(self) -> float | None:
        """Count a step, if all have the same count, and return that; else None, and nothing is counted."""
        if self.module is not None:
            least, most = self.module.take(self.places, self.double)
            return least if least == most else None
        found = {counter.item() for counter in self.counters}
        if len(found) > 1:
            return None
        torch._foreach_add_(self.counters, 1.0)
        return found.pop()

    def give_back(self) -> None:
        """Take a step back."""
        torch._foreach_add_(self.counters, -1.0)
