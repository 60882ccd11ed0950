"""Which step it is: counters on the host or on the device, gradient scalers, and CUDA graphs.

In: an optimizer's groups, and what a `torch.amp.GradScaler` has left on it. Out: whether the host may know
the step, and counters that are advanced where they lie. The host does not know it under a scaler on a GPU,
which skips a step without telling, nor in a CUDA graph, which is replayed without it; then the step count
lies on the device, and the values that follow from it are computed there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def scaling_of(optimizer: torch.optim.Optimizer, home: torch.device) -> dict[str, Tensor]:
    """What a scaler has left for this step, 0-d float64: `grad_scale`, 1 where it has divided already, and
    `found_inf`."""
    scale = vars(optimizer).get("grad_scale")
    if scale is None:
        scale = torch.ones((), device="cpu")
    given = {"grad_scale": scale, "found_inf": vars(optimizer)["found_inf"]}
    return {name: x.detach().to(home, torch.float64).reshape(()) for name, x in given.items()}


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
