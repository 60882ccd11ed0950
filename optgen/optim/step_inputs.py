"""The inputs of a step besides gradients, which a rule declares with `input()`.

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


def inputs_of_step(
    optimizer: torch.optim.Optimizer,
    program: Program,
    keywords: Mapping[str, Any],
    loss: Any,
    home: torch.device,
) -> dict[str, Any]:
    """Check the keywords of `step()` against the declared inputs, and complete them from the loss.

    Args:
        optimizer: whose parameters the tensors of a sequence belong to, in the order of its groups.
        program: the rule.
        keywords: those of `step()`.
        loss: the closure's result, which a missing input with one number for all parameters is.
        home: the device of the inputs that are one number.

    Returns:
        For each input that has a value: a mapping from parameters to tensors, whose shapes are not checked
        yet (see `inputs_of_parameter`), or a 0-d float64 tensor on `home`. One with a default may be absent.

    Raises:
        TypeError: there is no such input, or one is missing.
        ValueError: there is not one tensor for each parameter, or an input is no number.
    """
    declarations, name = program.inputs, type(optimizer).__name__
    for key in keywords:
        if key not in declarations:
            known = ", ".join(declarations) or "none"
            raise TypeError(f"{name}.step() has no input '{key}'; the rule has: {known}")
    inputs: dict[str, Any] = {}
    for key, declaration in declarations.items():
        value = keywords.get(key)
        if declaration.extent is Extent.ALL:
            value = loss if value is None else value
            if value is not None:
                value = _one_number(key, value, home)
        elif value is not None and not isinstance(value, Mapping):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            # A tensor is a sequence of its rows, which nobody means.
            if isinstance(value, Tensor) or len(value) != len(params):
                raise ValueError(f"input '{key}' needs a tensor for each of {len(params)} parameters")
            value = dict(zip(params, value, strict=True))
        if value is not None:
            inputs[key] = value
        elif declaration.default is None:
            either = "step(closure), or " if declaration.extent is Extent.ALL else ""
            raise TypeError(f"{name}.step() needs the input '{key}': call {either}step({key}=…)")
    return inputs


def _one_number(name: str, value: Any, home: torch.device) -> Tensor:
    """Convert an input that is one number to a 0-d float64 tensor on a device."""
    try:
        value = torch.as_tensor(value).detach()
        if not has_numbers(value) or value.is_complex():
            raise ValueError(f"a tensor of {value.dtype} without such numbers")
        number: Tensor = value.to(home, torch.float64).reshape(())
        return number
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"input '{name}' must be one number: {error}") from None


def inputs_of_parameter(inputs: Mapping[str, Any], p: Tensor) -> dict[str, Tensor]:
    """The tensors of one parameter among the inputs of a step, by name.

    Raises:
        ValueError: there is none for it, or one of another shape, or of a dtype that kernels do not take.
    """
    tensors = {}
    for name, values in inputs.items():
        if isinstance(values, Tensor):  # one number for all parameters, which the launcher takes
            continue
        value = values.get(p)
        fits = isinstance(value, Tensor) and has_numbers(local(value)) and value.dtype in CODEC_OF
        if not fits or value.shape != p.shape:
            what = f"one of shape {tuple(value.shape)}" if fits else "none that has such numbers"
            raise ValueError(
                f"input '{name}' needs a tensor of {SUPPORTED} for the parameter of shape "
                f"{tuple(p.shape)}, and has {what}"
            )
        # As gradients are: dense, without lazy negation, divided as the parameter and on its device.
        tensors[name] = resolved(matching(value.detach(), p)).to(p.device)
    return tensors
