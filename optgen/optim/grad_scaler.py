"""What a `torch.amp.GradScaler` and the capture of a CUDA graph mean for a step.

In: an optimizer with a scaler's attributes `grad_scale` and `found_inf`, or a capture under way. Out: the
scale and the skip flag as inputs of the kernels, or a RuntimeError. Under a scaler on a GPU the host cannot
know whether a step was skipped, and the replay of a CUDA graph runs without the host; then step counts lie on
the device, and the values that follow from them are computed there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def scaler_values(optimizer: torch.optim.Optimizer, home: torch.device) -> dict[str, Tensor]:
    """The `grad_scale` and `found_inf` that a GradScaler has set on the optimizer, as 0-d float64 on `home`.

    torch's protocol for optimizers with `_step_supports_amp_scaling`: gradients are still multiplied by
    `grad_scale`, or it is absent after `unscale_`, which makes it 1 here; the step is skipped where
    `found_inf` is not 0.
    """
    scale = vars(optimizer).get("grad_scale")
    if scale is None:  # after `scaler.unscale_`, when gradients are divided already
        scale = torch.ones((), device="cpu")
    # `.to` enqueues a copy on the device, and the host does not wait for the scaler's values.
    values = {"grad_scale": scale, "found_inf": vars(optimizer)["found_inf"]}
    return {name: x.detach().to(home, torch.float64).reshape(()) for name, x in values.items()}


def check_capture(name: str, groups: Sequence[Mapping[str, Any]], capturable: bool) -> None:
    """Refuse to capture a CUDA graph whose replays would not each be a step.

    Raises:
        RuntimeError: the optimizer is not capturable, so that every replay would be the same step; or a
            parameter that is not frozen has no gradient, so that none would move it.
    """
    if not capturable:
        raise RuntimeError(
            f"Attempting CUDA graph capture of step() for an instance of {name} whose capturable is False: "
            f"every replay would be the same step. Pass capturable=True to {name}"
        )
    # torch leaves out parameters without gradients too, but a graph does so in every replay, without a word.
    for group in groups:
        for position, p in enumerate(group["params"]):
            if p.grad is None and p.requires_grad and position not in (group.get("frozen") or ()):
                raise RuntimeError(
                    f"a parameter of shape {tuple(p.shape)} has no gradient, so the graph would never step "
                    "it: run backward() before the capture, or freeze the parameter"
                )
