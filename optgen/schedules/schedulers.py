"""Schedules as torch `LRScheduler`s, for optimizers of optgen and of torch.

In: an optimizer and a schedule. Out: a scheduler that writes the schedule's value into every parameter
group, for the first step when it is made and for the next one whenever `step()` is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from optgen.schedules.groups import GroupSchedule, plain
from optgen.schedules.named import Schedule, noam


class ScheduledLR(LRScheduler):
    """A torch scheduler of one hyperparameter, which writes a schedule's values into every group.

    The constructor writes the value for the first step, and each `step()` that of the next; call it after
    each `optimizer.step()`. Like torch's schedulers it keeps a group's initial value there as `initial_lr`.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        schedule: a named schedule, or the text of one; in a text the hyperparameter's own name is its first
            value, other hyperparameters are what the group has now, and `t` is `last_epoch + 1`.
        last_epoch: the number of steps done so far, less one; -1 for none.
        name: the hyperparameter, `"weight_decay"` or `"betas[0]"`.

    Raises:
        RuleError: the text is wrong; with its place.
        ValueError: a parameter group has no such hyperparameter.
        KeyError: `last_epoch` is given, but a group has no first value.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | str,
        last_epoch: int = -1,
        name: str = "lr",
    ):
        text = schedule.of(name) if isinstance(schedule, Schedule) else schedule
        self.schedule = GroupSchedule(name, text)
        self.schedule.check(optimizer)
        first = self.schedule.first
        if last_epoch == -1:  # a resumed run has initial values in its groups, and must not take present ones
            self.schedule.start(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if first not in group:
                raise KeyError(f"parameter group {i} has no '{first}', which a resumed scheduler needs")
        super().__init__(optimizer, last_epoch)  # calls `step`, which writes the first values

    def get_lr(self) -> list[Any]:
        """The learning rate of every group for the next step."""
        if self.schedule.name != "lr":
            return [plain(group["lr"]) for group in self.optimizer.param_groups]
        return [self._value(group) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Advance by one step; call it after `optimizer.step()`.

        Args:
            epoch: as in torch, which deprecates it: go to this `last_epoch` in place of the next.
        """
        super().step(epoch)  # writes what `get_lr` returns into `lr`
        if self.schedule.name != "lr":
            for group in self.optimizer.param_groups:
                self.schedule.write(group, self._value(group))

    def _value(self, group: dict[str, Any]) -> float:
        """A group's value for the next step."""
        return self.schedule.value(self.optimizer, group, self.last_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values, which `torch.load` reads with `weights_only=True`."""
        schedule = {"name": self.schedule.name, "text": self.schedule.text}
        return {**super().state_dict(), "schedule": schedule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict({**state_dict, "schedule": GroupSchedule(**state_dict["schedule"])})


def lr_scheduler(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | str,
    last_epoch: int = -1,
    name: str = "lr",
) -> ScheduledLR:
    """Make a torch scheduler of a schedule; see `ScheduledLR` for arguments and errors."""
    return ScheduledLR(optimizer, schedule, last_epoch, name)


class NoamLR(ScheduledLR):
    """The schedule of `schedules.noam`, Vaswani et al., 2017, with the group's `lr` as its peak.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        d_model: the width of the model, which sets the peak to `(d_model*warmup_steps)**-0.5`, whatever `lr`.
        warmup_steps: the step that has the peak.
        last_epoch: the number of steps done so far, less one; -1 for none.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        d_model: float | None = None,
        warmup_steps: float = 4000,
        last_epoch: int = -1,
    ):
        super().__init__(optimizer, noam(warmup_steps, d_model), last_epoch)
