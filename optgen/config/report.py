"""Log lines of a training loop about schedulers, word for word those of SpeeChain.

In: a name and seconds. Out: a line of text.
"""

from __future__ import annotations

from optgen.config.scheduler import OptimScheduler


def opening(name: str, scheduler: OptimScheduler) -> str:
    """The line at the start of a training."""
    return f"The {name} OptimScheduler: {scheduler!r}"


def progress(name: str, loss_backward_time: float, optim_time: float, lr: float) -> str:
    """The part of a line about one step; times in seconds."""
    return (
        f"{name}: loss backward time= {loss_backward_time:.2f}s, optimization time={optim_time:.2f}s, "
        f"learning rate={lr:.2e} -- "
    )


def summary(name: str, loss_backward_time: float, optim_time: float, lr: float) -> str:
    """The line at the end of an epoch: total times in seconds, and the mean learning rate."""
    return (
        f"{name} -- Total loss backward time: {loss_backward_time:.2f}s, "
        f"Total optimization time: {optim_time:.2f}s, Average learning rate: {lr:.2e}"
    )
