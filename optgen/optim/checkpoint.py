"""What a state dict holds besides numbers, and how a saved one is read.

In: saved groups and states, made here or by torch.optim. Out: state tensors where the step wants them,
or a `ValueError` that says which group, parameter or rule does not fit. Nothing is changed in place.
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

COUNTS = ("step", "k")  # what packages call a step count that is a group's


def rule_text(program: Program) -> str | list[str]:
    """The text of a rule, or of each part of a chain, as it travels in a state dict."""
    texts = [part.sources[0].text for part in program.parts or (program,)]
    return texts[0] if len(texts) == 1 else texts


def same_rule(text: str | list[str], program: Program) -> bool:
    """Whether a saved rule text does what a program does, whatever its comments and defaults."""
    try:
        saved = from_texts((text,) if isinstance(text, str) else tuple(text))
    except RuleError:
        return False
    return _meaning(saved) == _meaning(from_texts(as_tuple(rule_text(program))))


def _meaning(program: Program) -> tuple[str, list[tuple[str, str, str]]]:
    states = [(s.name, s.key, s.extent.name) for s in program.states.values()]
    return str(program), states


def as_tuple(text: str | list[str]) -> tuple[str, ...]:
    """The texts of a rule's parts, however they were saved."""
    return (text,) if isinstance(text, str) else tuple(text)


def part_names(program: Program) -> tuple[str, ...]:
    """What a chain calls its parts, in front of names that are taken."""
    return tuple(part.name for part in program.parts or (program,))


def from_texts(texts: tuple[str, ...], names: tuple[str, ...] = ()) -> Program:
    """The program that saved texts make, its parts with their own names where those are given."""
    sources = map(Source, texts, names) if names else map(Source, texts)
    return chain(*(library.rule(source) for source in sources))


def _difference(saved: str | list[str], mine: str | list[str]) -> str:
    a, b = ("\n\n".join(as_tuple(t)).splitlines() for t in (saved, mine))
    return "\n".join(unified_diff(a, b, "saved", "this optimizer", lineterm="", n=1))


def counter_dtype() -> torch.dtype:
    """torch's own choice for step counts: exact up to 2**24 steps, or 2**53."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def check_sizes(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse saved groups of other numbers or sizes."""
    if len(saved) != len(groups):
        raise ValueError(f"the state dict has {len(saved)} parameter groups, the optimizer {len(groups)}")
    for i, (group, mine) in enumerate(zip(saved, groups, strict=True)):
        if len(group["params"]) != len(mine["params"]):
            raise ValueError(
                f"group {i} of the state dict has {len(group['params'])} parameters, "
                f"the optimizer's has {len(mine['params'])}"
            )


def check_rules(program: Program, saved: Sequence[Mapping[str, Any]]) -> None:
    """Refuse saved groups of another rule; those of torch and other packages name none."""
    mine = rule_text(program)
    for i, group in enumerate(saved):
        text = group.get("rule", mine)
        if text != mine and not same_rule(text, program):
            raise ValueError(
                f"group {i} of the state dict was made by another rule:\n{_difference(text, mine)}"
            )


def load_entry(
    launcher: Launcher, key: Any, p: Tensor, entry: Mapping[str, Any], group: Mapping[str, Any]
) -> dict[str, Any]:
    """One parameter's saved state, each tensor cloned to where the step wants it.

    What other packages keep once a group, the step count as `step` or `k` and states that are one number
    a tensor here, is taken from there.
    """
    program = launcher.program
    by_key = {s.key: s for s in program.states.values() if s.extent is not Extent.ALL}
    loaded: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Tensor) and not has_numbers(local(value)):
            how = "its memory was freed" if value.layout is torch.strided else f"its layout is {value.layout}"
            how = "it is on meta" if value.is_meta else how
            raise ValueError(f"state '{name}' of parameter {key} has no numbers that can be read: {how}")
        if name == "step":
            loaded[name] = torch.tensor(_count(key, value), dtype=counter_dtype(), device="cpu")
        elif value is None:
            continue
        elif name not in by_key:
            known = ", ".join(by_key) or "none"
            raise ValueError(
                f"parameter {key} of the state dict has a state '{name}', which the rule "
                f"'{program.name}' does not have (it has: {known})"
            )
        else:
            loaded[name] = _load_tensor(launcher, key, name, by_key[name], p, value)
    for name, state in by_key.items():
        if name not in loaded and state.extent is Extent.TENSOR and isinstance(group.get(name), int | float):
            loaded[name] = _load_tensor(launcher, key, name, state, p, group[name])
    if loaded and "step" not in loaded:
        counts = [float(group[name]) for name in COUNTS if isinstance(group.get(name), int | float | Tensor)]
        # torch's SGD counts no steps; 1 makes the next step the second, which keeps its momentum.
        loaded["step"] = torch.tensor(counts[0] if counts else 1.0, dtype=counter_dtype(), device="cpu")
    return loaded


def _count(key: Any, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"state 'step' of parameter {key} must be one number: {error}") from None


def _load_tensor(launcher: Launcher, key: Any, name: str, state: State, p: Tensor, value: Any) -> Tensor:
    """A saved state where the step wants it: its own dtype, the parameter's device and layout."""
    extent = _extent(launcher, state, p)
    if extent is not Extent.ELEMENT:
        if extent is Extent.STEP:
            return torch.tensor(float(value), dtype=torch.float64, device="cpu")
        dtype = torch.float64 if p.dtype is torch.float64 else torch.float32
        shape = slice_shape(p, extent) if extent.sliced else ()
        found = torch.as_tensor(value).detach()
        if found.numel() != math.prod(shape):
            raise ValueError(f"state '{name}' of parameter {key} is {tuple(found.shape)}; it needs {shape}")
        home = like(p, torch.empty(slice_shape(local(p), extent), device="meta"), extent) if shape else found
        part = brought(found.reshape(shape), home, local(p).device)
        return like(p, part.to(local(p).device, dtype, copy=True).contiguous(), extent)
    if not isinstance(value, Tensor) or value.shape != p.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(f"state '{name}' of parameter {key} is {shape}, its parameter {tuple(p.shape)}")
    if value.dtype not in CODEC_OF:
        raise ValueError(f"state '{name}' of parameter {key} is {value.dtype}; optgen reads {SUPPORTED}")
    part = local(p)
    made = torch.empty_like(part, dtype=value.dtype, memory_format=torch.preserve_format, requires_grad=False)
    return like(p, made.copy_(brought(value.detach(), p, part.device)), extent)


def _extent(launcher: Launcher, state: State, p: Tensor) -> Extent:
    """What a parameter has one of a state for; STEP where the host computes it, as a float64 number."""
    lowered = launcher.compiler.specialised(launcher.compiler.facts(ndim=p.dim()))
    found = lowered.states.get(state.name)
    return canonical(state.extent, p.dim()) if found is None else found.extent
