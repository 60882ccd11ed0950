"""Builds the optimizer of a configuration: its class by name, its options, and options that are schedules.

In: `optim_type`, `optim_conf` and parameter groups. Out: an optimizer, of optgen where optgen has the
class and of torch otherwise, and a `GroupSchedule` for each option whose value is a text.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch

from optgen import library
from optgen.config.schema import ConfigError, unknown
from optgen.errors import RuleError
from optgen.optim.optimizer import Optimizer, optimizer
from optgen.schedules.groups import GroupSchedule


def optimizer_class(name: str | list[str]) -> type[torch.optim.Optimizer]:
    """Look up the class that `optim_type` names.

    Args:
        name: a class of optgen, `Adam`; one of torch.optim that optgen has not; a shipped rule, `adamw`; the
            path of a `.rule` file; or a list of rules, which is a chain.

    Raises:
        ConfigError: there is none.
    """
    shipped = library.classes()
    try:
        if isinstance(name, list):
            return optimizer(library.chain(*(shipped.get(part, part) for part in name)))
        if name in shipped:
            return optimizer(shipped[name], name)
        torch_class = getattr(torch.optim, name, None) if name.isidentifier() else None
        if isinstance(torch_class, type) and issubclass(torch_class, torch.optim.Optimizer):
            return torch_class
        if name in library.names() or name.endswith(".rule") or os.path.sep in name:
            return optimizer(name)
    except RuleError as error:
        raise ConfigError(error.message, ("optim_type",), error.span, error.help) from None
    close = get_close_matches(name, [*shipped, *library.names()], 1)
    help = f"did you mean '{close[0]}'?" if close else "`optgen list` shows the rules"
    raise ConfigError(
        f"neither optgen nor torch.optim has an optimizer '{name}'", ("optim_type",), None, help
    )


def build(
    name: str | list[str], conf: Mapping[str, Any], groups: list[dict[str, Any]]
) -> tuple[torch.optim.Optimizer, list[GroupSchedule]]:
    """Make the optimizer of `optim_type` and `optim_conf`, and the schedules of its hyperparameters.

    Raises:
        ConfigError: the class or an option is wrong; at its key.
    """
    cls = optimizer_class(name)
    defaults = _defaults(cls)
    if "lr" not in defaults:
        raise ConfigError(f"{cls.__name__} has no lr, which a scheduler sets", ("optim_type",))
    for key in conf:
        if key not in defaults:
            problem, help = unknown(key, defaults)
            raise ConfigError(problem, ("optim_conf", key), None, help)
    options: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for key, value in conf.items():
        options[key], texts_of_key = _split(key, value, defaults[key])
        texts |= texts_of_key
    # Where a text stands the constructor takes its default, and the schedule writes the value of each step.
    options = {key: value for key, value in options.items() if key not in texts}
    try:
        built = cls(groups, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        # Constructors name the option in their message: the error is put at its key.
        at = next(([key] for key in options if re.search(rf"\b{key}\b", str(error))), [])
        raise ConfigError(str(error), ("optim_conf", *at)) from error
    schedules = [GroupSchedule(path, text) for path, text in texts.items()]
    for schedule in schedules:
        _check(schedule, built)
    return built, schedules


def _defaults(cls: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """The options of an optimizer class, from its signature, with their defaults."""
    if issubclass(cls, Optimizer):
        parameters = cls.__signature__.parameters  # type: ignore[attr-defined]
    else:
        parameters = inspect.signature(cls).parameters
    return {name: p.default for name, p in parameters.items() if name != "params"}


def _split(key: str, value: Any, default: Any) -> tuple[Any, dict[str, str]]:
    """Split an option into a value for the constructor and texts of schedules, by `name` or `name[i]`."""
    if isinstance(default, tuple) and isinstance(value, list | tuple) and len(value) == len(default):
        texts = {f"{key}[{i}]": v for i, v in enumerate(value) if _is_text(v, default[i])}
        return tuple(d if _is_text(v, d) else v for v, d in zip(value, default, strict=True)), texts
    return value, {key: value} if _is_text(value, default) else {}


def _is_text(value: Any, default: Any) -> bool:
    """Whether a value is a schedule's text: a string where the default is a number."""
    # An option whose default is a string or a bool takes its value literally.
    return isinstance(value, str) and isinstance(default, int | float) and not isinstance(default, bool)


def _check(schedule: GroupSchedule, built: torch.optim.Optimizer) -> None:
    """Check a schedule's text against the optimizer; a ConfigError at its key."""
    key, _, item = schedule.name.partition("[")
    path = ("optim_conf", key, int(item[:-1])) if item else ("optim_conf", key)
    try:
        schedule.check(built)
    except RuleError as error:
        raise ConfigError(error.message, path, error.span, error.help) from None
