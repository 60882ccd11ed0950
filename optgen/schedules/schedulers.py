"""Schedules as torch's `LRScheduler`s, for optimizers of optgen and of torch alike.

In: an optimizer and a schedule. Out: a scheduler that writes the schedule's value into every parameter
group, for the first step when it is made and for the next one whenever `step()` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optgen.errors import Source
from optgen.ir import Hyper
from optgen.schedules.named import Schedule, noam
from optgen.schedules.values import lookup, value
from optgen.stepwise import Expression, expression


class ScheduledLR(LRScheduler):
    """A hyperparameter of every parameter group, as a schedule has it.

    The value for the first step is there at once. Then `step()` goes on by one step; call it after each
    `optimizer.step()`. Like torch's schedulers it keeps what the group had at first, as `initial_lr`.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        schedule: a named schedule, or the text of one; in a text the hyperparameter's own name is its first
            value, other hyperparameters are what the group has now, and `t` is `last_epoch + 1`.
        last_epoch: how many steps were done; -1 for none.
        name: the hyperparameter, `"weight_decay"` or `"betas[0]"`.

    Raises:
        RuleError: the text is wrong; with its place.
        ValueError: a parameter group has no such hyperparameter.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | str,
        last_epoch: int = -1,
        name: str = "lr",
    ):
        self.name = name
        self.text = schedule.of(name) if isinstance(schedule, Schedule) else schedule
        self._first = f"initial_{name}"
        for i, group in enumerate(optimizer.param_groups):
            if name.partition("[")[0] not in group:
                known = ", ".join(_hypers(optimizer, group))
                raise ValueError(f"parameter group {i} has no '{name}'; it has: {known}")
            _compiled(self.text, name, tuple(_hypers(optimizer, group).items()))
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault(self._first, _plain(lookup(group, name)))
            elif self._first not in group:
                raise KeyError(
                    f"'{self._first}' is not in parameter group {i}, which a resumed scheduler needs"
                )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The learning rate of every group for the next step."""
        if self.name != "lr":
            return [_plain(group["lr"]) for group in self.optimizer.param_groups]
        return [self._value(group) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step; call it after `optimizer.step()`."""
        super().step(epoch)
        if self.name != "lr":
            for group in self.optimizer.param_groups:
                _assign(group, self.name, self._value(group))

    def _value(self, group: Mapping[str, Any]) -> float:
        hypers = _hypers(self.optimizer, group)
        found = _compiled(self.text, self.name, tuple(hypers.items()))
        return value(found, self.last_epoch + 1, _with(group, self.name, group[self._first]))


def _plain(given: Any) -> Any:
    return given.clone() if isinstance(given, Tensor) else given


def _with(group: Mapping[str, Any], path: str, given: Any) -> dict[str, Any]:
    """The options of a group with another value for one of them, or for one item of a tuple."""
    name, _, item = path.partition("[")
    if not item:
        return {**group, name: given}
    i = int(item[:-1])
    return {**group, name: (*group[name][:i], given, *group[name][i + 1 :])}


def _assign(group: dict[str, Any], path: str, new: float) -> None:
    """Write a value into a group; a tensor keeps its identity, as a captured graph needs it."""
    old = lookup(group, path)
    if isinstance(old, Tensor):
        old.fill_(new)
    else:
        name = path.partition("[")[0]
        group[name] = _with(group, path, new)[name]


def _hypers(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """The kind of every hyperparameter that a text may read: what stands for a default of it."""
    program = getattr(optimizer, "program", None)
    if program is not None:
        return {h.name: h.default for h in program.hypers.values()}
    return {
        key: kind
        for key, given in group.items()
        if key != "params" and not key.startswith("initial_") and (kind := _kind(given)) is not None
    }


def _kind(given: Any) -> Any:
    """0.0 for a number; an option as it is; a tuple of those; None for what is no hyperparameter."""
    if isinstance(given, bool | str):
        return given
    if isinstance(given, tuple | list) and given and all(isinstance(g, int | float | Tensor) for g in given):
        return (0.0,) * len(given)
    return 0.0 if isinstance(given, int | float | Tensor) else None


@lru_cache(maxsize=256)
def _compiled(text: str, path: str, hypers: tuple[tuple[str, Any], ...]) -> Expression:
    return expression(Source(text, f"<{path}>"), path, {name: Hyper(name, d) for name, d in hypers})


def lr_scheduler(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | str,
    last_epoch: int = -1,
    name: str = "lr",
) -> ScheduledLR:
    """A torch scheduler for a schedule; see `ScheduledLR`."""
    return ScheduledLR(optimizer, schedule, last_epoch, name)


class NoamLR(ScheduledLR):
    """The schedule of `schedules.noam`, Vaswani et al., 2017, with the group's `lr` as its peak.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        d_model: the width of the model, which then sets the peak, `(d_model*warmup_steps)**-0.5`.
        warmup_steps: the step that has the peak.
        last_epoch: how many steps were done; -1 for none.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        d_model: float | None = None,
        warmup_steps: float = 4000,
        last_epoch: int = -1,
    ):
        super().__init__(optimizer, noam(warmup_steps, d_model), last_epoch)
