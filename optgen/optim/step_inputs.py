"""What a step is handed besides gradients: the inputs that a rule declares.

In: the keywords of `step()`, and the closure's loss. Out: a tensor for each parameter, or one number for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.ir.extent import Extent
from optgen.ir.program import Program
from optgen.launch.door import has_numbers, resolved
from optgen.launch.dtensor import local, matching
from optgen.launch.work import CODEC_OF, SUPPORTED


def handed_to(
    optimizer: torch.optim.Optimizer,
    program: Program,
    given: Mapping[str, Any],
    loss: Any,
    home: torch.device,
) -> dict[str, Any]:
    """The inputs of a step by name: a mapping from parameters, or one number, 0-d float64 on `home`.

    Raises:
        TypeError: there is no such input, or one is missing.
        ValueError: there is not one tensor for each parameter.
    """
    declared, name = program.inputs, type(optimizer).__name__
    for key in given:
        if key not in declared:
            known = ", ".join(declared) or "none"
            raise TypeError(f"{name}.step() has no input '{key}'; the rule has: {known}")
    handed: dict[str, Any] = {}
    for key, made in declared.items():
        value = given.get(key)
        if made.extent is Extent.ALL:
            value = loss if value is None else value
            if value is not None:
                value = _one_number(key, value, home)
        elif value is not None and not isinstance(value, Mapping):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            if isinstance(value, Tensor) or len(value) != len(params):
                raise ValueError(f"input '{key}' needs a tensor for each of {len(params)} parameters")
            value = dict(zip(params, value, strict=True))
        if value is not None:
            handed[key] = value
        elif made.default is None:
            hint = f"step(closure), or step({key}=…)" if made.extent is Extent.ALL else f"step({key}=…)"
            raise TypeError(f"{name}.step() needs the input '{key}': call {hint}")
    return handed


def _one_number(name: str, value: Any, home: torch.device) -> Tensor:
    """An input that is one number, 0-d float64 on a device."""
    try:
        value = torch.as_tensor(value).detach()
        if not has_numbers(value) or value.is_complex():
            raise ValueError(f"a tensor of {value.dtype} without such numbers")
        number: Tensor = value.to(home, torch.float64).reshape(())
        return number
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"input '{name}' must be one number: {error}") from None


def for_parameter(handed: Mapping[str, Any], p: Tensor) -> dict[str, Tensor]:
    """The inputs of one parameter by name.

    Raises:
        ValueError: there is none for it, or one of another shape or dtype.
    """
    found = {}
    for name, values in handed.items():
        if isinstance(values, Tensor):  # one number for all
            continue
        value = values.get(p)
        fits = isinstance(value, Tensor) and has_numbers(local(value)) and value.dtype in CODEC_OF
        if not fits or value.shape != p.shape:
            what = f"one of shape {tuple(value.shape)}" if fits else "none that has such numbers"
            raise ValueError(
                f"input '{name}' needs a tensor of {SUPPORTED} for the parameter of shape "
                f"{tuple(p.shape)}, and has {what}"
            )
        found[name] = resolved(matching(value.detach(), p)).to(p.device)
    return found
