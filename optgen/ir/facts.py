"""What a program is specialised on: its compile-time conditions, and values of hyperparameters by path.

In: conditions and the options of a parameter group. Out: which hold. A path is a name, or one item of a
tuple: `betas[0]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Value = float | bool | str | None  # what a hyperparameter can hold, besides a tuple of them


@dataclass(frozen=True)
class Fact:
    """A compile-time condition on an option, a hyperparameter, `ndim`, or whether an input is given.

    `relation` is one of `== != < <= > >= is`; a bare boolean option is `name is True`.
    """

    subject: str
    relation: str
    value: Value

    def __str__(self) -> str:
        if self.relation == "is" and self.value is True:
            return self.subject
        return f"{self.subject} {self.relation} {self.value!r}"


class Facts(NamedTuple):
    """Which of a program's conditions hold, in the order of `Program.facts`, and the number of dimensions.

    `ndim` is that of the tensor, or 2 where the program does the same for every number.
    """

    truths: tuple[bool, ...]
    ndim: int = 2


def holds(fact: Fact, value: object) -> bool:
    """Whether a compile-time condition holds for a setting of its subject."""
    given = bool(value) if isinstance(value, bool | np.bool_) else value
    if fact.relation == "is":
        return given is fact.value
    if fact.value is None or isinstance(fact.value, str | bool):
        return (given == fact.value) is (fact.relation == "==")
    if given is None or isinstance(given, str):
        return fact.relation == "!="
    x, y = float(given), float(fact.value)  # type: ignore[arg-type]
    return {"==": x == y, "!=": x != y, "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}[fact.relation]


def path_of(path: str) -> tuple[str, int | None]:
    """The name in a path like `betas[0]`, and the item, if there is one."""
    name, _, item = path.partition("[")
    return name, int(item[:-1]) if item else None


def lookup(options: Mapping[str, Any], path: str) -> Any:
    """The value of `lr`, or of one item of a tuple, `betas[0]`, in a parameter group."""
    name, item = path_of(path)
    if name not in options:
        raise ValueError(f"a parameter group has no '{name}' any more, which the rule needs")
    try:
        return options[name] if item is None else options[name][item]
    except (TypeError, IndexError, KeyError):
        raise ValueError(f"hyperparameter '{name}' is {options[name]!r} and has no item {item}") from None
