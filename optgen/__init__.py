"""optgen: from an optimizer's update rule to fused kernels and a `torch.optim.Optimizer`.

`optgen.AdamW`, `optgen.Lion` and the other shipped rules are classes made on first use; `optimizer`
makes one from a rule of your own, `chain` joins rules and transforms, `rule` reads one. Modules such as
`optgen.training` are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from optgen.errors import RuleError
    from optgen.library import chain, rule
    from optgen.optim import Optimizer, optimizer

__all__ = ["Optimizer", "RuleError", "chain", "optimizer", "rule"]

_HOME = {
    "Optimizer": "optgen.optim",
    "optimizer": "optgen.optim",
    "RuleError": "optgen.errors",
    "chain": "optgen.library",
    "rule": "optgen.library",
}
_MODULES = ("config", "release", "schedules", "store", "training", "tree")


def __getattr__(name: str) -> Any:
    """Import a public name or module, or make a shipped rule's class, on first use."""
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"optgen.{name}")
    if not name.startswith("_"):
        rules = import_module("optgen.library").classes()
        if name in rules:
            globals()[name] = made = import_module("optgen.optim").optimizer(rules[name], name)
            return made
    raise AttributeError(f"module 'optgen' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__", *import_module("optgen.library").classes()])
