"""What an optimizer keeps: its settings, the states and step counts of parameters, numbers for all of them.

In: parameter groups and a rule's declarations. Out: tensors, those that are there and those that are made;
what is new is noted as entries, and put into dictionaries when nothing of the step can fail any more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from optgen.ir.extent import Extent
from optgen.ir.node import Op
from optgen.ir.program import Program, State
from optgen.launch.door import has_numbers, has_room, name_of, resolved
from optgen.launch.dtensor import like, local
from optgen.launch.launcher import BACKENDS, MODES, Launcher, resolve
from optgen.launch.replay import Place
from optgen.launch.uninterrupted import Uninterrupted
from optgen.launch.work import CODEC_OF, SUPPORTED
from optgen.optim.checkpoint import counter_dtype
from optgen.optim.hyperparameters import GROUP

COUNTERS = (torch.float32, torch.float64)
Makers = list[tuple[str, str, Callable[[Tensor], Tensor]]]  # of states: names, keys, and how they are made
Entries = list[tuple[Any, Any, Any]]  # what a step will put into dictionaries: each, a key, a value


class States(torch.optim.Optimizer):
    """Settings and states of an optimizer; `program` is its rule."""

    program: ClassVar[Program]

    def _configure(
        self,
        backend: str,
        math: str,
        state_dtype: torch.dtype | None,
        capturable: bool = False,
        fused: bool = False,
    ) -> None:
        """Keep what is not saved: how to compute, not what."""
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r} is not one of {', '.join(BACKENDS)}")
        if math not in MODES:
            raise ValueError(f"math={math!r} is not one of {', '.join(MODES)}")
        if state_dtype is not None and state_dtype not in CODEC_OF:
            raise ValueError(f"state_dtype={state_dtype} is not one of {SUPPORTED}")
        self._settings: dict[str, Any] = {
            "backend": backend, "math": math, "state_dtype": state_dtype,
            "capturable": capturable, "fused": fused,
        }  # fmt: skip
        # As in torch: only then does a GradScaler leave the division and the decision to the step. Trainers
        # that clip gradients themselves refuse such an optimizer.
        self._step_supports_amp_scaling = fused
        self._launcher = Launcher(self.program, backend, math)
        self._scaled: Launcher | None = None

    def _home(self) -> torch.device:
        """Where the numbers lie that are one for the whole optimizer."""
        for group in self.param_groups:
            for p in group["params"]:
                if not p.is_meta:
                    return cast(torch.device, p.device)
        return torch.device("cpu")

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _places(self) -> Iterator[Place]:
        """The place of every parameter."""
        number = 0
        for index, group in enumerate(self.param_groups):
            for position in range(len(group["params"])):
                yield number, index, position
                number += 1

    def _numbers(self, entries: Entries) -> dict[str, Tensor]:
        """The states that are one for the whole optimizer: the same tensor in every group."""
        found = {}
        for state in self.program.states.values():
            if state.extent is not Extent.ALL:
                continue
            key = state.key.removeprefix(GROUP)
            value = self.param_groups[0].get(key)
            if value is None:
                firsts = [self._launcher.number(state.init, group) for group in self.param_groups]
                if len(set(firsts)) > 1:
                    raise ValueError(
                        f"state '{state.name}' is one for the whole optimizer, but the groups would start it "
                        f"at {', '.join(map(str, firsts))}"
                    )
                value = firsts[0]
            try:
                if isinstance(value, Tensor) and not has_numbers(value):
                    raise ValueError(f"it is a tensor of {value.dtype} that has none")
                tensor = torch.as_tensor(value, dtype=torch.float64, device=self._home()).detach().reshape(())
            except (TypeError, RuntimeError, ValueError) as error:
                raise RuntimeError(f"'{key}' in group 0 must be one number: {error}") from None
            if tensor.device.type == "cpu":  # no door looks at its memory, so what is there is not written
                tensor = resolved(tensor).clone()
            entries += [(group, key, tensor) for group in self.param_groups]
            found[state.name] = tensor
        return found

    def _steps(self, on_device: bool, entries: Entries) -> float | Tensor:
        """How many steps the optimizer has made, where a state counts them: one tensor, if on the device."""
        steps = self.param_groups[0].get("steps", 0)
        if isinstance(steps, Tensor) and not has_numbers(steps):
            raise RuntimeError("'steps' in group 0 must be one number, and it is a tensor that has none")
        home = self._home()
        device_counts = on_device and resolve(self._settings["backend"], home) == "triton"
        if not device_counts:
            return float(steps) if isinstance(steps, Tensor) else steps
        tensor = torch.as_tensor(steps, dtype=torch.float64, device=home)
        entries += [(group, "steps", tensor) for group in self.param_groups]
        return tensor

    def _states(
        self,
        place: Place,
        wanted: Iterable[State],
        entries: Entries,
        counting: torch.device | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A parameter's step count, and the tensors of the wanted states by name; missing ones are made.

        `counting` is the device that the count and what follows from it must be on.
        """
        group = self.param_groups[place[1]]
        p = group["params"][place[2]]
        kept = self.state.get(p, {})
        if not kept:
            entries.append((self.state, p, kept))
        counter = self._counter(place, kept.get("step"))
        counter = counter if counting is None else counter.to(counting)
        if counter is not kept.get("step"):
            entries.append((kept, "step", counter))
        states = {}
        for state in wanted:
            if state.extent is Extent.ALL:
                continue
            tensor = kept.get(state.key)
            if tensor is None:
                if state.init.op is Op.LOAD and not has_numbers(local(p)):
                    resolve(self._settings["backend"], local(p).device)
                    raise RuntimeError(f"{name_of(self.param_groups, *place[1:])} has no memory of its size")
                made = self._launcher.initial(state, local(p), group, self._settings["state_dtype"])
                tensor = like(p, made, state.extent)
            if not isinstance(tensor, Tensor) or (state.extent is Extent.STEP and not has_numbers(tensor)):
                what = f"the state '{state.key}' of {name_of(self.param_groups, *place[1:])}"
                raise RuntimeError(f"{what} must be a tensor that has numbers, not {type(tensor).__name__}")
            if counting is not None and state.extent is Extent.STEP:
                tensor = tensor.to(counting)
            if tensor is not kept.get(state.key):
                entries.append((kept, state.key, tensor))
            states[state.name] = local(tensor)
        return counter, states

    def _counter(self, place: Place, count: Any) -> Tensor:
        """A parameter's step count as a tensor: what is kept, or a new one of the number that is kept."""
        if count is None:
            return zero(counter_dtype()).clone()
        try:
            plain = type(count) is Tensor and count.dtype in COUNTERS and not count.dim()
            if plain and has_room(count) and not (count.is_inference() or count.is_meta):
                return cast(Tensor, count)
            if isinstance(count, Tensor) and (not has_numbers(count) or count.is_complex()):
                raise ValueError(f"it is a tensor of {count.dtype} that has none")
            return torch.tensor(float(count), dtype=counter_dtype(), device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"the state 'step' of {name_of(self.param_groups, *place[1:])}"
            raise RuntimeError(f"{what} must be one number: {error}") from None

    def _makers(self, wanted: Iterable[State], options: Mapping[str, Any]) -> Makers | None:
        """How to make the states of a plain parameter; None if one of them is a copy of it."""
        wanted = [state for state in wanted if state.extent is not Extent.ALL]
        if any(state.init.op is Op.LOAD for state in wanted):  # whose memory must be looked at first
            return None
        dtype = self._settings["state_dtype"]
        return [(x.name, x.key, self._launcher.maker(x, options, dtype)) for x in wanted]

    def _materialise(self) -> None:
        """Create the state of every parameter that has a gradient; nothing moves and no step is counted."""
        entries: Entries = []
        for place in self._places():
            group = self.param_groups[place[1]]
            p = group["params"][place[2]]
            if p.grad is not None:
                facts = self._launcher.compiler.facts(group, p.dim())
                self._states(place, self._launcher.compiler.specialised(facts).states.values(), entries)
        self._numbers(entries)
        with Uninterrupted():
            enter(entries)


@cache
def zero(dtype: torch.dtype) -> Tensor:
    """No step, on the host; to be cloned, which is faster than to make a tensor of a number."""
    with torch.inference_mode(False):
        return torch.tensor(0.0, dtype=dtype, device="cpu")


def enter(entries: Entries) -> None:
    """Put a step's new states and numbers where they are kept."""
    for where, key, value in entries:
        where[key] = value


def materialising() -> bool:
    """Whether torch.distributed.checkpoint takes a step only to have the state created."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "_init_optim_state":
        frame = frame.f_back
    return frame is not None
