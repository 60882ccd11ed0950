"""What a training loop needs beside an optimizer: clipping, groups, schedules, checkpoints.

In: models and optimizers, optgen's or torch's. Out: clipped gradients, parameter groups, schedulers and
files. Each is torch's own where torch has it; what is here adds a file written whole or not at all, groups
in which each parameter stands once, and a norm as a number.
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

NORMS = (nn.LayerNorm, nn.RMSNorm)  # whose weights may have several dimensions; those of other norms have one
KEYS = ("model_state_dict", "optimizer_state_dict")


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients in place so that their norm, taken together, is at most `max_norm`.

    `torch.nn.utils.clip_grad_norm_`, but the norm comes back as a number, for which a GPU is waited for.
    To clip inside the kernel, and leave `p.grad` alone, chain `clip_global_norm` before a rule.

    Args:
        parameters: a parameter or several; those without a gradient are passed over.
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
    """An optimizer class that steps with the mean of every n gradients: `chain(accum_grad, …)` of a rule.

    Call `step()` and free the gradients after each backward. Of n calls, n-1 add `grad/n` to a state `acc`
    and change nothing else; the n-th runs the rule with the sum, so that what follows in the chain, such as
    clipping, sees the mean. The rule's `t` counts its own steps. What was summed is in the state dict, in
    the parameter's dtype or in `state_dtype`. Each parameter counts the gradients that it has had.

    Args:
        source: a rule or a chain, as `optgen.optimizer` takes it, or an optgen class.
        n: the default of the class's hyperparameter `n`.

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
    """Two parameter groups of a model: what decays by `weight_decay`, then what does not decay.

    Every parameter is in one group and once, shared ones under their first name, frozen ones too.

    Args:
        model: whose parameters.
        weight_decay: of the first group; the second has 0.
        skip: what does not decay. By default parameters called `bias`, those of normalization layers, and
            all others of less than two dimensions. In its place: patterns of whole names, such as
            `"*.bias"` or `["*norm*", "embed.*"]`, or a function of name and parameter.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    named = dict(model.named_parameters())
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
            found = {name for name in named if fnmatchcase(name, pattern)}
            if not found:
                names = ", ".join(list(named)[:3])
                raise ValueError(f"skip pattern '{pattern}' matches no parameter; names begin {names}")
            skipped |= found
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
    """A scheduler that raises lr linearly from 0, then lowers it along half a cosine to 0.

    At step s, counted from 0, lr is the optimizer's times `s / max(1, w)` for s < w, and then
    `max(0, (1 + cos(pi*(s - w) / max(1, T - w))) / 2)`, which rises again after T.

    Args:
        optimizer: whose lr, in every group.
        num_warmup_steps: w.
        num_training_steps: T, with the warmup.
        last_epoch: the last step when resuming, as in `LambdaLR`.
    """

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return step / max(1, num_warmup_steps)
        progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor, last_epoch)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The bytes of all tensors in an optimizer's state, step counts too; 0 before the first step."""

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
    """Write both state dicts to a file, which is replaced whole, or on an error stays as it was.

    Args:
        model_state_dict: what `model.state_dict()` returns; not changed.
        optimizer_state_dict: what `optimizer.state_dict()` returns; not changed.
        path: the file; its folder must exist.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(part, "xb") as file:
            torch.save(dict(zip(KEYS, (model_state_dict, optimizer_state_dict), strict=True)), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # there after an error only


def load_checkpoint(
    path: str | os.PathLike[str], map_location: torch.device | str = "cpu"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's and the optimizer's state dict that `save_checkpoint` wrote.

    No code in the file is run: it may hold tensors, numbers, texts and containers, nothing else. Tensors
    come to the CPU, or to `map_location`; `load_state_dict` takes them to where the parameters are.

    Args:
        path: the file.
        map_location: the device of all tensors.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file holds something else.
        pickle.UnpicklingError: it holds objects of other kinds.
    """
    found = torch.load(path, map_location=map_location, weights_only=True)
    if not isinstance(found, dict) or not set(KEYS) <= found.keys():
        what = f"the keys {', '.join(map(str, found))}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{path} holds {what}; a checkpoint has {' and '.join(KEYS)}")
    model_state_dict, optimizer_state_dict = (found[key] for key in KEYS)
    return model_state_dict, optimizer_state_dict
