"""Utilities of a training loop: gradient clipping, accumulation, parameter groups, schedules, checkpoints.

In: models and optimizers, optgen's or torch's. Out: clipped gradients, parameter groups, schedulers and
files. Each is torch's own where torch has it; this module adds atomic checkpoint files, parameter groups
without duplicates, and a norm as a number.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, StepLR

from optgen import library
from optgen.optim.optimizer import Optimizer, optimizer

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LambdaLR",
    "StepLR",
    "accumulated",
    "clip_grad_norm_",
    "clip_grad_value_",
    "decay_groups",
    "get_cosine_schedule_with_warmup",
    "load_checkpoint",
    "save_checkpoint",
    "state_bytes",
]

NORMS = (nn.LayerNorm, nn.RMSNorm)  # weights of other normalization layers have one dimension
KEYS = ("model_state_dict", "optimizer_state_dict")  # of a checkpoint file


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients in place so that their norm, taken together, is at most `max_norm`.

    `torch.nn.utils.clip_grad_norm_`, but it returns the norm as a float, for which it waits for a GPU. To
    clip inside the kernel, and leave `p.grad` alone, chain `clip_global_norm` before a rule.

    Args:
        parameters: a parameter or several, of any shape; those without a gradient are skipped.
        max_norm: gradients are multiplied by `max_norm / (norm + 1e-6)` where that is below 1.
        norm_type: 1, 2, `math.inf`, or another p of the p-norm.
        error_if_nonfinite: raise, and change nothing, if the norm is infinite or NaN.

    Returns:
        The norm before clipping; 0 without gradients.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
    """
    return float(nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite))


def accumulated(source: library.Rule | type[Optimizer], n: int) -> type[Optimizer]:
    """Gradient accumulation: an optimizer class that steps with the mean of every n gradients.

    It is `chain(accum_grad, …)` of the rule. Call `step()` and free the gradients after each backward. Of n
    calls, n-1 add `grad/n` to a state `acc` and change nothing else; the n-th runs the rule with the sum, so
    that what follows in the chain, such as clipping, sees the mean. The rule's `t` counts its own steps. The
    sum is in the state dict, in the parameter's dtype or in `state_dtype`. Each parameter counts its own
    gradients.

    Args:
        source: a rule or a chain, as `optgen.optimizer` takes it, or an optgen class.
        n: the default of the class's hyperparameter `n`.

    Returns:
        A class as `optgen.optimizer` returns it.

    Raises:
        RuleError: the rule keeps a number for all tensors, which has no meaning before the last gradient.
        ValueError: n is not a whole number from 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is how many gradients make a step, a whole number from 1, not {n!r}")
    program = source.program if isinstance(source, type) else library.rule(source)
    return optimizer(library.chain(library.rule("accum_grad", n=n), program))


def decay_groups(
    model: nn.Module,
    weight_decay: float,
    skip: str | Collection[str] | Callable[[str, Tensor], bool] | None = None,
) -> list[dict[str, Any]]:
    """Split a model's parameters into two groups: with `weight_decay`, and without weight decay.

    Every parameter is in one group, once: shared ones by their first name, and those that need no gradient
    too.

    Args:
        model: the module that has them.
        weight_decay: of the first group; the second has 0.
        skip: the parameters of the second group. By default those called `bias`, those of normalization
            layers, and all others of less than two dimensions. In its place: patterns of whole names, such as
            `"*.bias"` or `["*norm*", "embed.*"]`, or a function of name and parameter.

    Returns:
        Two dicts with `params`, a list, and `weight_decay`, for any optimizer's constructor.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    named = dict(model.named_parameters())  # shared parameters once
    if skip is None:
        of_norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(False)}
        skipped = {
            name
            for name, p in named.items()
            if p.dim() < 2 or name.rpartition(".")[2] == "bias" or id(p) in of_norms
        }
    elif callable(skip):
        skipped = {name for name, p in named.items() if skip(name, p)}
    else:
        skipped = set()
        for pattern in [skip] if isinstance(skip, str) else skip:
            matches = {name for name in named if fnmatchcase(name, pattern)}
            if not matches:
                names = ", ".join(list(named)[:3])
                raise ValueError(f"skip pattern '{pattern}' matches no parameter; names begin {names}")
            skipped |= matches
    return [
        {"params": [p for name, p in named.items() if name not in skipped], "weight_decay": weight_decay},
        {"params": [p for name, p in named.items() if name in skipped], "weight_decay": 0.0},
    ]


def get_cosine_schedule_with_warmup(
    optimizer: torch.optim.Optimizer,
    num_warmup_steps: float,
    num_training_steps: float,
    last_epoch: int = -1,
) -> LambdaLR:
    """Linear warmup from 0, then cosine decay to 0, as a torch scheduler.

    The schedule of the same name in `transformers`. At step s, counted from 0, lr is the optimizer's times
    `s / max(1, w)` for s < w, and then `max(0, (1 + cos(pi*(s - w) / max(1, T - w))) / 2)`, which rises again
    after T.

    Args:
        optimizer: any; its lr is scaled in every group.
        num_warmup_steps: w, the steps of the warmup.
        num_training_steps: T, all steps, with the warmup.
        last_epoch: the last step when resuming, as in `LambdaLR`.
    """

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return step / max(1, num_warmup_steps)
        progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor, last_epoch)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of all tensors in an optimizer's `state`, step counts too; 0 before the first step.

    Of a DTensor it counts the elements of all processes. Global states, which lie in the groups, are not
    counted.
    """

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        if isinstance(value, Mapping):
            return sum(map(size, value.values()))
        return sum(map(size, value)) if isinstance(value, list | tuple) else 0

    return size(optimizer.state)


def save_checkpoint(
    model_state_dict: Mapping[str, Any],
    optimizer_state_dict: Mapping[str, Any],
    path: str | os.PathLike[str],
) -> None:
    """Write both state dicts to a file atomically: after an error the file is what it was.

    Args:
        model_state_dict: what `model.state_dict()` returns; not changed.
        optimizer_state_dict: what `optimizer.state_dict()` returns; not changed.
        path: the file; its folder must exist.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    # Beside the file, for a rename must stay on one file system; random, for two processes may save at once.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(part, "xb") as file:
            torch.save(dict(zip(KEYS, (model_state_dict, optimizer_state_dict), strict=True)), file)
            file.flush()
            os.fsync(file.fileno())  # before the rename: a power failure must not leave an empty file there
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # there after an error only


def load_checkpoint(
    path: str | os.PathLike[str], map_location: torch.device | str = "cpu"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the model's and the optimizer's state dict that `save_checkpoint` wrote.

    No code in the file is run: it may contain tensors, numbers, strings and containers, nothing else. Tensors
    are on the CPU, or on `map_location`; `load_state_dict` copies them to the parameters' devices.

    Args:
        path: the file.
        map_location: the device of all tensors.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file holds something else.
        pickle.UnpicklingError: it holds objects of other kinds.
    """
    saved = torch.load(path, map_location=map_location, weights_only=True)
    if not isinstance(saved, dict) or not set(KEYS) <= saved.keys():
        what = f"the keys {', '.join(map(str, saved))}" if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(f"{path} holds {what}; a checkpoint has {' and '.join(KEYS)}")
    model_state_dict, optimizer_state_dict = (saved[key] for key in KEYS)
    return model_state_dict, optimizer_state_dict
