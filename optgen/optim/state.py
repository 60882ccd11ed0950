"""The state of an optimizer: compile options, states and step counts of parameters, and global states.

In: parameter groups and a rule's declarations. Out: the tensors of a step, existing or new. New ones are
noted as entries and put into `state` and `param_groups` only when nothing in the step can fail any more, so
that a step which raises leaves both as they were.
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

COUNTERS = (torch.float32, torch.float64)  # dtypes of a step count that kernels read where it lies
Initializers = list[tuple[str, str, Callable[[Tensor], Tensor]]]  # a state's name, key, function of p
Entries = list[tuple[Any, Any, Any]]  # deferred assignments of a step: a dictionary, a key, a value


class States(torch.optim.Optimizer):
    """Compile options and states of an optimizer; `program` is its rule."""

    program: ClassVar[Program]

    def _configure(
        self,
        backend: str,
        math: str,
        state_dtype: torch.dtype | None,
        capturable: bool = False,
        fused: bool = False,
    ) -> None:
        """Set the compile options, which no state dict has: they say how to compute, not what."""
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r} is not one of {', '.join(BACKENDS)}")
        if math not in MODES:
            raise ValueError(f"math={math!r} is not one of {', '.join(MODES)}")
        if state_dtype is not None and state_dtype not in CODEC_OF:
            raise ValueError(f"state_dtype={state_dtype} is not one of {SUPPORTED}")
        self._compile_options: dict[str, Any] = {
            "backend": backend, "math": math, "state_dtype": state_dtype,
            "capturable": capturable, "fused": fused,
        }  # fmt: skip
        # torch's protocol: a GradScaler leaves the division and the decision to skip to optimizers that have
        # this attribute set. Trainers that clip gradients themselves refuse such an optimizer.
        self._step_supports_amp_scaling = fused
        self._launcher = Launcher(self.program, backend, math)
        self._scaled_launcher: Launcher | None = None  # of the program for gradients that a scaler multiplied

    def _home(self) -> torch.device:
        """The device of the global states: that of the first parameter that is not on meta, or the CPU."""
        for group in self.param_groups:
            for p in group["params"]:
                if not p.is_meta:
                    return cast(torch.device, p.device)
        return torch.device("cpu")

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _places(self) -> Iterator[Place]:
        """The place of every parameter: its number, its group's index, its position in the group."""
        number = 0
        for index, group in enumerate(self.param_groups):
            for position in range(len(group["params"])):
                yield number, index, position
                number += 1

    def _global_states(self, entries: Entries) -> dict[str, Tensor]:
        """The states that are one number for the whole optimizer, 0-d float64, by name.

        `param_groups` keeps them, for a state dict has nothing else that belongs to no parameter: the same
        tensor in every group, of which the first one's counts.

        Raises:
            RuntimeError: the first group has something else there.
            ValueError: the groups' hyperparameters give it different initial values.
        """
        states = {}
        for state in self.program.states.values():
            if state.extent is not Extent.ALL:
                continue
            key = state.key.removeprefix(GROUP)
            value = self.param_groups[0].get(key)
            if value is None:  # before the first step
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
            # `launch.door` does not check its memory, and as_tensor may alias what a user put there.
            if tensor.device.type == "cpu":
                tensor = resolved(tensor).clone()
            entries += [(group, key, tensor) for group in self.param_groups]
            states[state.name] = tensor
        return states

    def _optimizer_steps(self, on_device: bool, entries: Entries) -> float | Tensor:
        """How many steps the optimizer has made, which rules with global states count.

        A number; a 0-d float64 tensor where the device counts, and so the host may not know it.
        """
        steps = self.param_groups[0].get("steps", 0)
        if isinstance(steps, Tensor) and not has_numbers(steps):
            raise RuntimeError("'steps' in group 0 must be one number, and it is a tensor that has none")
        home = self._home()
        device_counts = on_device and resolve(self._compile_options["backend"], home) == "triton"
        if not device_counts:
            return float(steps) if isinstance(steps, Tensor) else steps
        tensor = torch.as_tensor(steps, dtype=torch.float64, device=home)
        entries += [(group, "steps", tensor) for group in self.param_groups]
        return tensor

    def _states(
        self,
        place: Place,
        declared: Iterable[State],
        entries: Entries,
        counter_device: torch.device | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A parameter's step count and the tensors of its states by name; missing ones are created.

        Args:
            place: the parameter's.
            declared: the states of the specialised program.
            entries: gets what is new or was converted.
            counter_device: where the step count and states computed from it must be, if the device counts.

        Raises:
            RuntimeError: what is there is no tensor with numbers.
        """
        group = self.param_groups[place[1]]
        p = group["params"][place[2]]
        param_state = self.state.get(p, {})
        if not param_state:  # a new dictionary, which is filled by the entries below it
            entries.append((self.state, p, param_state))
        counter = self._counter(place, param_state.get("step"))
        counter = counter if counter_device is None else counter.to(counter_device)
        if counter is not param_state.get("step"):
            entries.append((param_state, "step", counter))
        states = {}
        for state in declared:
            if state.extent is Extent.ALL:
                continue
            tensor = param_state.get(state.key)
            if tensor is None:
                if state.init.op is Op.LOAD and not has_numbers(local(p)):  # it starts as a copy of p
                    resolve(self._compile_options["backend"], local(p).device)
                    raise RuntimeError(f"{name_of(self.param_groups, *place[1:])} has no memory of its size")
                initial = self._launcher.initial(state, local(p), group, self._compile_options["state_dtype"])
                tensor = like(p, initial, state.extent)
            if not isinstance(tensor, Tensor) or (state.extent is Extent.STEP and not has_numbers(tensor)):
                what = f"the state '{state.key}' of {name_of(self.param_groups, *place[1:])}"
                raise RuntimeError(f"{what} must be a tensor that has numbers, not {type(tensor).__name__}")
            if counter_device is not None and state.extent is Extent.STEP:
                tensor = tensor.to(counter_device)
            if tensor is not param_state.get(state.key):
                entries.append((param_state, state.key, tensor))
            states[state.name] = local(tensor)
        return counter, states

    def _counter(self, place: Place, count: Any) -> Tensor:
        """A parameter's step count as a 0-d float tensor with memory of its own.

        That in `state` where it is one; else a new tensor of its value, for other libraries keep counts as
        integers, as Python numbers or as tensors on a device.
        """
        if count is None:
            return zero(counter_dtype()).clone()
        try:
            usable = type(count) is Tensor and count.dtype in COUNTERS and not count.dim()
            if usable and has_room(count) and not (count.is_inference() or count.is_meta):
                return cast(Tensor, count)
            if isinstance(count, Tensor) and (not has_numbers(count) or count.is_complex()):
                raise ValueError(f"it is a tensor of {count.dtype} that has none")
            return torch.tensor(float(count), dtype=counter_dtype(), device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            what = f"the state 'step' of {name_of(self.param_groups, *place[1:])}"
            raise RuntimeError(f"{what} must be one number: {error}") from None

    def _initializers(self, declared: Iterable[State], options: Mapping[str, Any]) -> Initializers | None:
        """Functions that create the states of a plain parameter; None if one starts as a copy of it."""
        declared = [state for state in declared if state.extent is not Extent.ALL]
        if any(state.init.op is Op.LOAD for state in declared):  # p's memory must be checked before
            return None
        dtype = self._compile_options["state_dtype"]
        return [(x.name, x.key, self._launcher.maker(x, options, dtype)) for x in declared]

    def _materialise(self) -> None:
        """Create the state of every parameter that has a gradient; nothing moves, no step is counted."""
        entries: Entries = []
        for place in self._places():
            group = self.param_groups[place[1]]
            p = group["params"][place[2]]
            if p.grad is not None:
                facts = self._launcher.compiler.facts(group, p.dim())
                self._states(place, self._launcher.compiler.specialised(facts).states.values(), entries)
        self._global_states(entries)
        with Uninterrupted():
            enter(entries)


@cache
def zero(dtype: torch.dtype) -> Tensor:
    """A 0-d zero on the host, to be cloned as a new step count: faster than a tensor made of a number."""
    with torch.inference_mode(False):  # it is cached, and outlives the mode in which it was asked for
        return torch.tensor(0.0, dtype=dtype, device="cpu")


def enter(entries: Entries) -> None:
    """Perform the deferred assignments of a step.

    The step is past all checks then, and signals wait: from here until counts have advanced, nothing fails.
    """
    for where, key, value in entries:
        where[key] = value


def materialising() -> bool:
    """Whether torch.distributed.checkpoint called this step, which wants the state created and nothing moved.

    Its `_init_optim_state` sets gradients and `lr` to 0 and calls `step()`. That leaves parameters of torch's
    optimizers alone, but not those of every rule: weight decay and noise need not be multiplied by `lr`.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "_init_optim_state":
        frame = frame.f_back
    return frame is not None
