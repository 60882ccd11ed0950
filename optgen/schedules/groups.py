"""A schedule applied to the parameter groups of an optimizer, of optgen or of torch.

In: a schedule's text and a group. Out: the value for a step, written into the group. The group's initial
value is kept there as `initial_lr`, as torch's schedulers do, so that state dicts contain it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from optgen.errors import Source
from optgen.ir.facts import lookup
from optgen.ir.program import Hyper
from optgen.language.schedule_expressions import Expression, expression
from optgen.schedules.values import value


@dataclass(frozen=True)
class GroupSchedule:
    """A schedule, `text`, of the hyperparameter `name` in every group; see `ScheduledLR`."""

    name: str
    text: str

    @property
    def first(self) -> str:
        """The key of a group's initial value: `initial_lr`."""
        return f"initial_{self.name}"

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a text that is wrong, or groups without the hyperparameter.

        Raises:
            RuleError: the text is wrong; with its place.
            ValueError: a group has no such hyperparameter.
        """
        # Each group by itself: groups of torch's optimizers may have other options.
        for i, group in enumerate(optimizer.param_groups):
            hypers = _hypers(optimizer, group)
            if self.name.partition("[")[0] not in group:
                raise ValueError(f"parameter group {i} has no '{self.name}'; it has: {', '.join(hypers)}")
            _compiled(self.text, self.name, tuple(hypers.items()))

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Record every group's present value as its initial one, unless it has one already."""
        for group in optimizer.param_groups:
            group.setdefault(self.first, plain(lookup(group, self.name)))

    def value(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any], t: float) -> float:
        """The value for a group in step `t`, counted from 1, in float64."""
        compiled = _compiled(self.text, self.name, tuple(_hypers(optimizer, group).items()))
        return value(compiled, t, _with(group, self.name, group[self.first]))

    def write(self, group: dict[str, Any], new: float) -> None:
        """Write a value into a group; a tensor is filled in place, for a captured CUDA graph reads it."""
        old = lookup(group, self.name)
        if isinstance(old, Tensor):
            old.fill_(new)
        else:
            name = self.name.partition("[")[0]
            group[name] = _with(group, self.name, new)[name]


def plain(value: Any) -> Any:
    """A copy of a tensor, which nobody else can change in place; other values as they are."""
    return value.clone() if isinstance(value, Tensor) else value


def _with(group: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a group with another value for one hyperparameter, or for one item of a tuple."""
    name, _, item = path.partition("[")
    if not item:
        return {**group, name: value}
    i = int(item[:-1])
    return {**group, name: (*group[name][:i], value, *group[name][i + 1 :])}


def _hypers(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyperparameter that a text may read, with a default that says what type it has."""
    program = getattr(optimizer, "program", None)
    if program is not None:  # an optimizer of optgen; of torch's only the groups' values are known
        return {h.name: h.default for h in program.hypers.values()}
    return {
        # Types and not values: the cache of `_compiled` must not grow with every value of a schedule.
        key: default
        for key, value in group.items()
        if key != "params" and not key.startswith("initial_") and (default := _kind(value)) is not None
    }


def _kind(value: Any) -> Any:
    """A default with the type of an option's value: 0.0 for a number, None for no hyperparameter."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, tuple | list) and value and all(isinstance(g, int | float | Tensor) for g in value):
        return (0.0,) * len(value)
    return 0.0 if isinstance(value, int | float | Tensor) else None


@lru_cache(maxsize=256)
def _compiled(text: str, path: str, hypers: tuple[tuple[str, Any], ...]) -> Expression:
    """The parsed expression of a text; cached, for it is needed in every step."""
    return expression(Source(text, f"<{path}>"), path, {name: Hyper(name, d) for name, d in hypers})
