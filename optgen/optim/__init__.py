"""The `torch.optim.Optimizer` of a rule: options, state, steps and checkpoints."""

from __future__ import annotations

from typing import Any


def _restore(*args: Any) -> Any:
    """Make an empty optimizer, for unpickling to fill. Pickles name this function: it stays here."""
    from optgen.optim.optimizer import restored

    return restored(*args)
