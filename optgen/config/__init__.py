"""Optimizers from a configuration, YAML text or a dict: each with its losses, modules and schedule.

The format is that of SpeeChain's `OptimScheduler`: docs/speechain.md shows it. Needs `optgen[config]`.
"""

from __future__ import annotations

from optgen.config.build import OptimSchedulerDict, build_optim_sches, freeze_modules, state_dicts
from optgen.config.report import opening, progress, summary
from optgen.config.scheduler import OptimScheduler
from optgen.config.schema import ConfigError
from optgen.config.types import ExponentDecayLr, Noamlr, register

__all__ = [
    "ConfigError",
    "ExponentDecayLr",
    "Noamlr",
    "OptimScheduler",
    "OptimSchedulerDict",
    "build_optim_sches",
    "freeze_modules",
    "opening",
    "progress",
    "register",
    "state_dicts",
    "summary",
]
