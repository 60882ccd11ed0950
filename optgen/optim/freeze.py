"""Frozen parameters, as marks in the parameter groups.

In: what `freeze` and `thaw` take. Out: positions in each group's `frozen`, which a state dict keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Groups = list[dict[str, Any]]


def mark(groups: Groups, target: Any, frozen: bool) -> None:
    """Freeze or thaw what `target` means; on an error nothing is marked.

    Raises:
        ValueError: it is, or has, no parameter of these groups.
    """
    places = [_place(groups, p) for p in _parameters_of(groups, target)]
    for group, position in places:
        marks = set(group["frozen"]) | {position} if frozen else set(group["frozen"]) - {position}
        group["frozen"] = sorted(marks)


def _parameters_of(groups: Groups, target: Any) -> list[Tensor]:
    if isinstance(target, nn.Module):
        mine = {id(p) for group in groups for p in group["params"]}
        found: list[Tensor] = [p for p in target.parameters() if id(p) in mine]
        if not found:
            raise ValueError(f"no parameter of this {type(target).__name__} belongs to the optimizer")
        return found
    if isinstance(target, Tensor):
        return [target]
    if isinstance(target, int) and not isinstance(target, bool):
        if not -len(groups) <= target < len(groups):
            raise ValueError(f"there is no group {target}: the optimizer has {len(groups)}")
        return list(groups[target]["params"])
    if isinstance(target, Mapping):
        return list(target["params"])
    found = list(target)
    if not all(isinstance(p, Tensor) for p in found):
        raise ValueError("freeze and thaw take a parameter, several, a module, a group or its index")
    return found


def _place(groups: Groups, param: Tensor) -> tuple[dict[str, Any], int]:
    for group in groups:
        for position, p in enumerate(group["params"]):
            if p is param:
                return group, position
    raise ValueError(f"a tensor of shape {tuple(param.shape)} is not one of the optimizer's parameters")
