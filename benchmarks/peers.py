"""The optimizers that gpu.py compares: ours, torch's, and those of packages that may be installed.

`OURS` makes, for a state dtype and further options, a function from parameters to an optimizer. `PEERS` has
such functions by rule and name; a function instead of an optimizer is a step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

import optgen

Make = Callable[[list[Any]], Any]
LR = 1e-3
MAX_NORM = 1.0
CLIPPED = "clipped AdamW"
UNAVAILABLE = [name for name in ("optimi", "flashoptim") if find_spec(name) is None]


def _ours(cls: Any, **own: Any) -> Callable[..., Make]:
    def of(state_dtype: Any = None, **options: Any) -> Make:
        return lambda params: cls(params, lr=LR, state_dtype=state_dtype, **own, **options)

    return of


def _clipped(state_dtype: Any = None, **options: Any) -> Make:
    clip = optgen.rule("clip_global_norm", max_norm=MAX_NORM)
    return _ours(optgen.optimizer(optgen.chain(clip, "adamw"), "ClippedAdamW"))(state_dtype, **options)


OURS: dict[str, Callable[..., Make]] = {
    "AdamW": _ours(optgen.AdamW),
    "Lion": _ours(optgen.Lion),
    "RMSprop": _ours(optgen.RMSprop),
    "SGD": _ours(optgen.SGD, momentum=0.9),
    "LAMB": _ours(optgen.LAMB),
    "Adafactor": _ours(optgen.Adafactor),
    CLIPPED: _clipped,
}


def _torch(name: str, fused: bool, **options: Any) -> dict[str, Make]:
    make = getattr(torch.optim, name)
    kinds = ["fused", "foreach"] if fused else ["foreach"]
    return {f"torch {k}": lambda params, k=k: make(params, lr=LR, **options, **{k: True}) for k in kinds}


def _clip_and_step(params: list[Any]) -> Callable[[], None]:
    step = torch.optim.AdamW(params, lr=LR, fused=True).step

    def both() -> None:
        clip_grad_norm_(params, MAX_NORM)
        step()

    return both


def _installed(package: str, name: str, **options: Any) -> dict[str, Make]:
    """An optimizer of another package with its fastest implementation, where there is such a package."""
    if package in UNAVAILABLE:
        return {}

    def make(params: list[Any]) -> Any:
        cls = getattr(import_module(package), name)
        taken = inspect.signature(cls).parameters
        fastest = {flag: True for flag in ("triton", "fused") if flag in taken}
        return cls(params, lr=LR, **options, **fastest)

    return {package: make}


PEERS: dict[str, dict[str, Make]] = {
    "AdamW": {
        **_torch("AdamW", fused=True),
        **_installed("optimi", "AdamW"),
        **_installed("flashoptim", "FlashAdamW"),
    },
    "Lion": {**_installed("optimi", "Lion"), **_installed("flashoptim", "FlashLion")},
    "RMSprop": _torch("RMSprop", fused=False),
    "SGD": {
        **_torch("SGD", fused=True, momentum=0.9),
        **_installed("optimi", "SGD", momentum=0.9),
        **_installed("flashoptim", "FlashSGD", momentum=0.9),
    },
    "Adafactor": _torch("Adafactor", fused=False),
    CLIPPED: {"torch fused": _clip_and_step},
}
