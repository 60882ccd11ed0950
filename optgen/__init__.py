"""optgen: from an optimizer's update rule to fused kernels and a `torch.optim.Optimizer`.

`optgen.AdamW`, `optgen.Lion` and the other shipped rules are classes made on first use; `optimizer`
makes one from a rule of your own, `chain` joins rules and transforms, `rule` reads one. Modules such as
`optgen.training` are imported on first use. Type checkers and editors read `__init__.pyi` in place of this.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from optgen import locks as _locks  # noqa: F401 - from now on a fork waits for what another thread imports
from optgen.__version__ import __version__ as __version__

_HOME = {
    "Optimizer": "optgen.optim.optimizer",
    "optimizer": "optgen.optim.optimizer",
    "RuleError": "optgen.errors",
    "chain": "optgen.library",
    "rule": "optgen.library",
}
_MODULES = ("config", "release", "schedules", "store", "training", "tree")


def __getattr__(name: str) -> Any:
    """Import a public name or module, or make a shipped rule's class, on first use."""
    if name == "__all__":  # for `from optgen import *`, which is to bring the classes too
        return [*_HOME, *import_module("optgen.library").optimizers()]
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"optgen.{name}")
    hint = ""
    if not name.startswith("_"):
        library = import_module("optgen.library")
        own = library.classes().get(name)
        if own and library.rule(own).kind == "rule":
            globals()[name] = made = import_module("optgen.optim.optimizer").optimizer(own, name)
            return made
        if find_spec(f"optgen.{name}") is None:  # an import of a module asks here first
            hint = library.suggestion(name, (*_HOME, *_MODULES))
    raise AttributeError(f"module 'optgen' has no attribute '{name}'{hint}")


def __dir__() -> list[str]:
    return sorted([*_HOME, *_MODULES, "__version__", *import_module("optgen.library").optimizers()])
