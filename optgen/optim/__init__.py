"""The `torch.optim.Optimizer` of a rule: options, state, steps and checkpoints."""

from __future__ import annotations

from typing import Any


def _restore(*args: Any) -> Any:
    """Make an empty optimizer, for unpickling to fill. Pickles name this function: it stays here."""
    from optgen.optim.optimizer import restored

    return restored(*args)


def __getattr__(name: str) -> Any:
    """Find the class, which is `optgen.Optimizer`, where stubs and pickles of 0.1.0 name it."""
    if name == "Optimizer":
        from optgen.optim.optimizer import Optimizer

        return Optimizer
    raise AttributeError(f"module 'optgen.optim' has no attribute '{name}'")
