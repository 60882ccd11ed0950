"""Freezing: marks of frozen parameters in the parameter groups.

In: what `freeze` and `thaw` take. Out: sorted positions in each group's `frozen`, which a state dict has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Groups = list[dict[str, Any]]


def mark(groups: Groups, target: Any, frozen: bool) -> None:
    """Freeze or thaw the parameters that `target` means, in their groups' `frozen`; on an error none.

    Raises:
        ValueError: it is, or has, no parameter of these groups.
    """
    # All places first: one that is not found must leave every group as it was.
    places = [_place(groups, p) for p in _parameters_of(groups, target)]
    for group, position in places:
        positions = set(group["frozen"]) | {position} if frozen else set(group["frozen"]) - {position}
        group["frozen"] = sorted(positions)


def _parameters_of(groups: Groups, target: Any) -> list[Tensor]:
    """The parameters that the argument of `freeze` or `thaw` means."""
    if isinstance(target, nn.Module):
        own = {id(p) for group in groups for p in group["params"]}
        members: list[Tensor] = [p for p in target.parameters() if id(p) in own]
        if not members:
            raise ValueError(f"no parameter of this {type(target).__name__} belongs to the optimizer")
        return members
    if isinstance(target, Tensor):
        return [target]
    if isinstance(target, int) and not isinstance(target, bool):  # a group's index, negative from the end
        if not -len(groups) <= target < len(groups):
            raise ValueError(f"there is no group {target}: the optimizer has {len(groups)}")
        return list(groups[target]["params"])
    if isinstance(target, Mapping):
        return list(target["params"])
    params = list(target)
    if not all(isinstance(p, Tensor) for p in params):
        raise ValueError("freeze and thaw take a parameter, several, a module, a group or its index")
    return params


def _place(groups: Groups, param: Tensor) -> tuple[dict[str, Any], int]:
    """The group of a parameter and its position there, by identity."""
    for group in groups:
        for position, p in enumerate(group["params"]):
            if p is param:
                return group, position
    raise ValueError(f"a tensor of shape {tuple(param.shape)} is not one of the optimizer's parameters")
