"""Schedules: hyperparameters as expressions of the step count.

`scheduled` compiles them into a rule, where they cost no launch and no recompilation; `lr_scheduler` makes a
torch `LRScheduler` of one. The named ones (`cosine`, `noam`, …) are texts that both take.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from optgen.schedules.fused import scheduled
from optgen.schedules.named import (
    NAMED,
    Schedule,
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    noam,
    one_cycle,
    polynomial,
    step,
    warmup,
    wsd,
)

if TYPE_CHECKING:
    from optgen.schedules.schedulers import NoamLR, ScheduledLR, lr_scheduler

__all__ = [
    "NAMED",
    "NoamLR",
    "Schedule",
    "ScheduledLR",
    "constant",
    "cosine",
    "exponential",
    "inverse_sqrt",
    "linear",
    "lr_scheduler",
    "noam",
    "one_cycle",
    "polynomial",
    "scheduled",
    "step",
    "warmup",
    "wsd",
]


def __getattr__(name: str) -> Any:
    """What needs torch, on first use."""
    if name in ("NoamLR", "ScheduledLR", "lr_scheduler"):
        return getattr(import_module("optgen.schedules.schedulers"), name)
    raise AttributeError(f"module 'optgen.schedules' has no attribute '{name}'")
