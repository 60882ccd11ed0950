"""A schedule in the parameter groups of an optimizer, of optgen or of torch.

In: a schedule's text and a group. Out: the value for a step, and that value in the group. What the group
had at first is kept there as `initial_lr`, as torch's schedulers do, so that state dicts hold it.
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
    """One hyperparameter of every group, `name`, as an expression, `text`; see `ScheduledLR`."""

    name: str
    text: str

    @property
    def first(self) -> str:
        """Where a group keeps what it had at first."""
        return f"initial_{self.name}"

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a wrong text, or groups that have no such hyperparameter.

        Raises:
            RuleError: the text is wrong; with its place.
            ValueError: a group has no such hyperparameter.
        """
        for i, group in enumerate(optimizer.param_groups):
            hypers = _hypers(optimizer, group)
            if self.name.partition("[")[0] not in group:
                raise ValueError(f"parameter group {i} has no '{self.name}'; it has: {', '.join(hypers)}")
            _compiled(self.text, self.name, tuple(hypers.items()))

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep what every group has now, unless it keeps something already."""
        for group in optimizer.param_groups:
            group.setdefault(self.first, plain(lookup(group, self.name)))

    def value(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any], t: float) -> float:
        """The value for a group in step `t`, counted from 1."""
        found = _compiled(self.text, self.name, tuple(_hypers(optimizer, group).items()))
        return value(found, t, _with(group, self.name, group[self.first]))

    def write(self, group: dict[str, Any], new: float) -> None:
        """Put a value into a group; a tensor keeps its identity, as a captured graph needs it."""
        old = lookup(group, self.name)
        if isinstance(old, Tensor):
            old.fill_(new)
        else:
            name = self.name.partition("[")[0]
            group[name] = _with(group, self.name, new)[name]


def plain(given: Any) -> Any:
    """A value that nobody else can change in place."""
    return given.clone() if isinstance(given, Tensor) else given


def _with(group: Mapping[str, Any], path: str, given: Any) -> dict[str, Any]:
    """The options of a group with another value for one of them, or for one item of a tuple."""
    name, _, item = path.partition("[")
    if not item:
        return {**group, name: given}
    i = int(item[:-1])
    return {**group, name: (*group[name][:i], given, *group[name][i + 1 :])}


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
    """0.0 for a number; an option as it is; a tuple of numbers; None for what is no hyperparameter."""
    if isinstance(given, bool | str):
        return given
    if isinstance(given, tuple | list) and given and all(isinstance(g, int | float | Tensor) for g in given):
        return (0.0,) * len(given)
    return 0.0 if isinstance(given, int | float | Tensor) else None


@lru_cache(maxsize=256)
def _compiled(text: str, path: str, hypers: tuple[tuple[str, Any], ...]) -> Expression:
    return expression(Source(text, f"<{path}>"), path, {name: Hyper(name, d) for name, d in hypers})
