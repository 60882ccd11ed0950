"""Checkpoints: rule texts in a state dict, and saved state converted to what a step needs.

In: groups and states of a state dict, saved here, by torch.optim or by another library. Out: state tensors of
the step's dtype, device and layout, or a `ValueError` that says which group, parameter or rule does not fit.
Nothing is changed in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import unified_diff
from typing import Any

import torch
from torch import Tensor

from optgen import library
from optgen.errors import RuleError, Source
from optgen.ir.extent import Extent
from optgen.ir.program import Program, State
from optgen.launch.door import has_numbers
from optgen.launch.dtensor import brought, like, local
from optgen.launch.launcher import Launcher
from optgen.launch.strides import slice_shape
from optgen.launch.work import CODEC_OF, SUPPORTED
from optgen.passes.chain import chain
from optgen.passes.specialise import canonical

# Where other libraries keep a step count in a group: pytorch_optimizer, then prodigyopt and schedulefree.
STEP_KEYS = ("step", "k")


def rule_text(program: Program) -> str | list[str]:
    """The text of a rule, or the texts of a chain's parts, as a state dict holds them under `rule`."""
    texts = [part.sources[0].text for part in program.parts or (program,)]
    return texts[0] if len(texts) == 1 else texts


def same_rule(text: str | list[str], program: Program) -> bool:
    """Whether a saved rule text and a program compute the same, whatever their comments and defaults."""
    try:
        theirs = from_texts((text,) if isinstance(text, str) else tuple(text))
    except RuleError:
        return False
    # Both from text: the program's defaults or `maximize` may have been changed since.
    return _semantics(theirs) == _semantics(from_texts(as_tuple(rule_text(program))))


def _semantics(program: Program) -> tuple[str, list[tuple[str, str, str]]]:
    """What two rules with the same computation and the same states have in common."""
    states = [(s.name, s.key, s.extent.name) for s in program.states.values()]
    return str(program), states


def as_tuple(text: str | list[str]) -> tuple[str, ...]:
    """A rule text, or the texts of a chain's parts, as a tuple, whether saved as a string or a list."""
    return (text,) if isinstance(text, str) else tuple(text)


def part_names(program: Program) -> tuple[str, ...]:
    """The names of a chain's parts, which come before hyperparameter and state names that are taken."""
    return tuple(part.name for part in program.parts or (program,))


def from_texts(texts: tuple[str, ...], names: tuple[str, ...] = ()) -> Program:
    """The program of saved rule texts: a rule, or a chain whose parts get these names."""
    sources = map(Source, texts, names) if names else map(Source, texts)
    return chain(*(library.rule(source) for source in sources))


def _difference(theirs: str | list[str], mine: str | list[str]) -> str:
    """A unified diff of a saved rule text and the optimizer's."""
    a, b = ("\n\n".join(as_tuple(t)).splitlines() for t in (theirs, mine))
    return "\n".join(unified_diff(a, b, "saved", "this optimizer", lineterm="", n=1))


def counter_dtype() -> torch.dtype:
    """The dtype of new step counts, which is torch's choice: float32, exact up to 2**24, or float64.

    float64, exact up to 2**53, where that is torch's default dtype.
    """
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def check_sizes(saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse saved groups whose number, or whose numbers of parameters, differ from the optimizer's."""
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the state dict has {len(saved_groups)} parameter groups, the optimizer {len(groups)}"
        )
    for i, (group, mine) in enumerate(zip(saved_groups, groups, strict=True)):
        if len(group["params"]) != len(mine["params"]):
            raise ValueError(
                f"group {i} of the state dict has {len(group['params'])} parameters, "
                f"the optimizer's has {len(mine['params'])}"
            )


def check_rules(program: Program, saved_groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse saved groups of a rule that computes something else; other libraries save no rule."""
    mine = rule_text(program)
    for i, group in enumerate(saved_groups):
        text = group.get("rule", mine)
        if text != mine and not same_rule(text, program):
            raise ValueError(
                f"group {i} of the state dict was made by another rule:\n{_difference(text, mine)}"
            )


def load_param_state(
    launcher: Launcher, key: Any, p: Tensor, saved: Mapping[str, Any], group: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert one parameter's saved state to tensors of the dtype, device and layout of the step.

    Step counts, and states that are one number a tensor here, are looked for in the saved group too: other
    libraries keep them once a group.

    Args:
        launcher: of the optimizer's rule.
        key: what messages call the parameter.
        p: the parameter, whose shape and device tensors get.
        saved: its entry in the state dict's `state`.
        group: the saved group that it was in.

    Returns:
        New tensors by state key, which share no memory with the saved ones; empty if nothing was saved.

    Raises:
        ValueError: a state that the rule does not have, or of another shape or an unsupported dtype.
    """
    program = launcher.program
    by_key = {s.key: s for s in program.states.values() if s.extent is not Extent.ALL}
    loaded: dict[str, Any] = {}
    for name, value in saved.items():
        # A freed or sparse tensor would be read where it has no memory.
        if isinstance(value, Tensor) and not has_numbers(local(value)):
            how = "its memory was freed" if value.layout is torch.strided else f"its layout is {value.layout}"
            how = "it is on meta" if value.is_meta else how
            raise ValueError(f"state '{name}' of parameter {key} has no numbers that can be read: {how}")
        if name == "step":
            loaded[name] = torch.tensor(_count(key, value), dtype=counter_dtype(), device="cpu")
        elif value is None:  # torch's SGD has this for a momentum buffer before its first step
            continue
        elif name not in by_key:
            known = ", ".join(by_key) or "none"
            raise ValueError(
                f"parameter {key} of the state dict has a state '{name}', which the rule "
                f"'{program.name}' does not have (it has: {known})"
            )
        else:
            loaded[name] = _load_tensor(launcher, key, name, by_key[name], p, value)
    for name, state in by_key.items():  # once a group in other libraries
        if name not in loaded and state.extent is Extent.TENSOR and isinstance(group.get(name), int | float):
            loaded[name] = _load_tensor(launcher, key, name, state, p, group[name])
    if loaded and "step" not in loaded:
        counts = [float(group[k]) for k in STEP_KEYS if isinstance(group.get(k), int | float | Tensor)]
        # torch's SGD counts no steps. 1 makes the next step the second: rules start momentum buffers in the
        # first step, and would discard the loaded one.
        loaded["step"] = torch.tensor(counts[0] if counts else 1.0, dtype=counter_dtype(), device="cpu")
    return loaded


def _count(key: Any, value: Any) -> float:
    """A saved step count as a number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"state 'step' of parameter {key} must be one number: {error}") from None


def _load_tensor(launcher: Launcher, key: Any, name: str, state: State, p: Tensor, value: Any) -> Tensor:
    """Convert a saved state: an element state keeps its own dtype, others get that of the kernel."""
    extent = _extent(launcher, state, p)
    if extent is not Extent.ELEMENT:
        if extent is Extent.STEP:  # the host computes with it
            return torch.tensor(float(value), dtype=torch.float64, device="cpu")
        dtype = torch.float64 if p.dtype is torch.float64 else torch.float32
        shape = slice_shape(p, extent) if extent.sliced else ()
        saved = torch.as_tensor(value).detach()
        # Only the number of elements counts: other libraries keep slices with dimensions of 1, or without.
        if saved.numel() != math.prod(shape):
            raise ValueError(f"state '{name}' of parameter {key} is {tuple(saved.shape)}; it needs {shape}")
        home = like(p, torch.empty(slice_shape(local(p), extent), device="meta"), extent) if shape else saved
        part = brought(saved.reshape(shape), home, local(p).device)
        return like(p, part.to(local(p).device, dtype, copy=True).contiguous(), extent)
    if not isinstance(value, Tensor) or value.shape != p.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(f"state '{name}' of parameter {key} is {shape}, its parameter {tuple(p.shape)}")
    if value.dtype not in CODEC_OF:
        raise ValueError(f"state '{name}' of parameter {key} is {value.dtype}; optgen reads {SUPPORTED}")
    # The parameter's strides: kernels walk p, g and element states together.
    part = local(p)
    new = torch.empty_like(part, dtype=value.dtype, memory_format=torch.preserve_format, requires_grad=False)
    return like(p, new.copy_(brought(value.detach(), p, part.device)), extent)


def _extent(launcher: Launcher, state: State, p: Tensor) -> Extent:
    """The extent of a state for this parameter's dimensions; STEP if the host computes it in float64."""
    lowered = launcher.compiler.specialised(launcher.compiler.facts(ndim=p.dim()))
    declared = lowered.states.get(state.name)  # None where these dimensions leave the state unused
    return canonical(state.extent, p.dim()) if declared is None else declared.extent
