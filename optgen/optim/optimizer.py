"""A `torch.optim.Optimizer` made from a rule.

In: a rule, and what torch's optimizers take. Out: a class with parameter groups, state dicts, freezing,
hooks and closures. Everything that outlives the process lies in `state` and `param_groups`, because
pickling and torch's distributed checkpoints keep nothing else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from optgen import library
from optgen.ir.extent import Extent
from optgen.ir.facts import Facts
from optgen.ir.node import Op
from optgen.ir.program import Program, State
from optgen.launch.door import has_numbers, has_room, name_of, resolved
from optgen.launch.dtensor import like, local, matching, shard_of
from optgen.launch.guards import PLAIN
from optgen.launch.launcher import BACKENDS, MODES, Launcher, resolve
from optgen.launch.overlap import check_memory
from optgen.launch.replay import Place, Replay
from optgen.launch.step_counters import advance
from optgen.launch.uninterrupted import Uninterrupted, undisturbed
from optgen.launch.uploads import capturing
from optgen.launch.work import CODEC_OF, SUPPORTED, Work
from optgen.locks import once
from optgen.optim import _restore
from optgen.optim.checkpoint import as_tuple, counter_dtype, from_texts, part_names, rule_text
from optgen.optim.freeze import mark
from optgen.optim.grad_scaler import check_capture, scaling_of
from optgen.optim.hyperparameters import GROUP, checked, complete_group
from optgen.optim.loading import LoadReport, load
from optgen.optim.signature import docstring, signature
from optgen.optim.step_inputs import for_parameter, handed_to
from optgen.optim.untraced import opaque
from optgen.passes.chain import complete
from optgen.passes.grad_scaling import with_scaling
from optgen.passes.variants import with_defaults, with_maximize

# torch wraps this method so that its compiler, if it should meet it, leaves it alone; the wrapper imports
# that compiler on its first call, which takes a second before the first step.
_add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

COUNTERS = (torch.float32, torch.float64)
Moving = tuple[Place, Tensor, Tensor, Mapping[str, Any]]  # a parameter's place, it, its gradient and inputs
Makers = list[tuple[str, str, Callable[[Tensor], Tensor]]]  # of states: names, keys, and how they are made
Entries = list[tuple[Any, Any, Any]]  # what a step will put into dictionaries: each, a key, a value


class Optimizer(torch.optim.Optimizer):
    """The base of every class that `optgen.optimizer` makes. `program` is the rule."""

    program: ClassVar[Program]
    _constructing = False  # all groups are checked together then

    def __init__(self, params: Any, *args: Any, **options: Any):
        given = self._arguments(params, args, options)
        settings = ("backend", "math", "state_dtype", "capturable", "fused")
        self._configure(**{name: given.pop(name) for name in settings})
        defaults = {name: checked(self.program, name, value) for name, value in given.items()}
        self._constructing = True
        super().__init__(params, {**defaults, "rule": rule_text(self.program), "frozen": []})
        self._constructing = False
        check_memory(self._params())

    def _arguments(self, params: Any, args: Any, options: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments by name, defaults filled in; torch's own flags are looked at."""
        name = type(self).__name__
        options.pop("foreach", None)  # it chooses an implementation, and optgen has one
        if options.pop("differentiable", False):
            raise ValueError(f"{name} does not support differentiable=True: a step is no part of a graph")
        flags = {flag: bool(options.pop(flag, False)) for flag in ("capturable", "fused")}
        signature: inspect.Signature = self.__signature__  # type: ignore[attr-defined]
        try:
            bound = signature.bind(params, *args, **options)
        except TypeError as error:
            known = ", ".join(n for n in signature.parameters if n != "params")
            raise TypeError(f"{name}: {error}; it takes {known}") from None
        bound.apply_defaults()
        return {n: value for n, value in bound.arguments.items() if n != "params"} | flags

    def __repr__(self) -> str:
        """As torch's: every group with its options, but not the rule's text."""
        lines = []
        for i, group in enumerate(self.param_groups):
            lines += ["", f"Parameter Group {i}"]
            hidden = {"params", "rule"} | (set() if group.get("frozen") else {"frozen"})
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key not in hidden]
        return f"{type(self).__name__} (" + "\n".join(lines) + "\n)"

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

    # Options

    def _check_group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group's hyperparameters, completed and checked; the rule has a value for every name then."""
        options = complete_group(self.program, group, self.defaults)
        self._launcher.compiler.specialised(self._launcher.compiler.facts(options))
        return options

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own options, as torch does; a bad one changes nothing.

        Raises:
            ValueError: an option is wrong, a parameter is in the group twice or in another group, or it
                overlaps with another in memory.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group = {**param_group, **self._check_group(param_group), "frozen": []}
        if not isinstance(group["params"], set):  # torch has its own words for a set
            given = group["params"]
            group["params"] = [given] if isinstance(given, Tensor) else list(given)
            tensors = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
            if len({id(p) for p in tensors}) < len(tensors):  # one launch would step it twice at once
                raise ValueError("a parameter is twice in a parameter group")
            if not self._constructing:
                check_memory([*self._params(), *(p for p in tensors if isinstance(p, Tensor))])
        _add_param_group(self, group)

    # Step

    @opaque
    def step(self, closure: Callable[[], Any] | None = None, **inputs: Any) -> Any:
        """One step for every parameter that has a gradient and is not frozen.

        Args:
            closure: evaluates the model again and returns the loss, as in torch.
            **inputs: what the rule declares with `input()`: for each parameter a tensor of its shape, as a
                mapping from parameters or a sequence in the order of the groups; or one number, such as
                the loss, which is the closure's result where it is not given.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: a gradient is sparse or complex, the optimizer is in evaluation mode, or a
                parameter has no gradient while a CUDA graph is captured.
            TypeError: the rule has no such input, or needs one that is missing.
            ValueError: an input has another shape than its parameter, or there is none for a parameter.
        """
        if not self.state and _materialising():
            self._materialise()
            return None
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        launcher, key = self._launcher, (self._settings["capturable"],)
        with launcher.lock:  # two steps at once would fill the same tables
            quiet = undisturbed()
            if inputs or not (quiet and self._again(launcher, key)):
                with Uninterrupted():  # so that no handler changes what has been checked, or cuts an import
                    if inputs or quiet or not self._again(launcher, key):
                        self._step(inputs, loss)
        return loss

    def _again(self, launcher: Launcher, key: tuple[Any, ...]) -> bool:
        """Make a launcher's last step again in one call; False, with nothing changed, where it is another."""
        replay = launcher.replay
        if replay is None or replay.key != key or vars(self).get("found_inf") is not None:
            return False
        launcher.replay = None  # for other threads
        made = bool(replay.again(self.param_groups, self.state))
        launcher.replay = replay
        return made

    def _step(self, inputs: Mapping[str, Any], loss: Any) -> None:
        """A step, once the closure has been called."""
        groups = self.param_groups
        for index, group in enumerate(groups):
            if not group.get("train_mode", True):
                raise RuntimeError(
                    f"group {index} is in evaluation mode: call optimizer.train() before step()"
                )
        home = self._home()
        captured = capturing(home)
        if captured:
            check_capture(type(self).__name__, groups, self._settings["capturable"])
        handed = handed_to(self, self.program, inputs, loss, home) if inputs or self.program.inputs else {}
        launcher, entries = self._launcher, Entries()
        numbers: dict[str, Tensor] = {}
        steps: float | Tensor = 0.0
        on_device, stop = self._settings["capturable"], None
        if vars(self).get("found_inf") is not None:
            numbers = scaling_of(self, home)
            stop, launcher = numbers["found_inf"], self._for_scaled()
            on_device = on_device or stop.device.type != "cpu"
            if not on_device:
                if stop.item():
                    return
                stop = None  # the host knows now that there is a step
        if launcher.compiler.counts:
            steps = self._steps(on_device, entries)
            numbers |= self._numbers(entries)
        if handed:
            numbers |= {name: handed[name] for name in launcher.compiler.whole & {*handed}}
        key = (*handed, on_device)
        replay, launcher.replay = launcher.replay, None
        ready = None
        if replay is not None and replay.key == key and not captured:
            ready = replay.ready(groups, self.state, handed, numbers, steps, stop)
        again = ready is not None
        if ready is None:
            with torch.no_grad():
                work = self._prepare(handed, entries, on_device=on_device)
                if not work:
                    _enter(entries)
                    return
                ready = launcher.prepare(work, groups, None, numbers, steps, stop)
        _enter(entries)
        ready.launch()
        if isinstance(steps, Tensor):
            advance([steps], stop)
        elif launcher.compiler.counts:
            for group in groups:
                group["steps"] = steps + 1
        launcher.replay = replay if again else Replay.of(launcher, ready, groups, self.state, key)

    def _for_scaled(self) -> Launcher:
        """What runs the program for scaled gradients."""
        if self._scaled is None:
            settings = self._settings
            self._scaled = Launcher(with_scaling(self.program), settings["backend"], settings["math"])
        return self._scaled

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

    def _step_parameter(self, p: Tensor, place: Place, launcher: Launcher) -> None:
        """The step of one parameter, whose own launcher keeps its tables; for `optgen.release`.

        `place` is where it was; nothing is done for one that is in no group any more.
        """
        quiet = undisturbed()
        if not (quiet and self._step_alone_again(p, place, launcher)):
            with Uninterrupted():
                if quiet or not self._step_alone_again(p, place, launcher):
                    self._step_alone(p, place, launcher)

    def _step_alone_again(self, p: Tensor, place: Place, launcher: Launcher) -> bool:
        """The same in one call, where that can be."""
        groups = self.param_groups
        if launcher.compiler.logical or place[1] >= len(groups):
            return False
        group = groups[place[1]]
        if place[2] >= len(group["params"]) or group["params"][place[2]] is not p:
            return False
        frozen = group.get("frozen")
        if frozen and place[2] in frozen:
            return False
        return self._again(launcher, (place, self._settings["capturable"]))

    def _step_alone(self, p: Tensor, place: Place, launcher: Launcher) -> None:
        groups = self.param_groups
        params = groups[place[1]]["params"] if place[1] < len(groups) else ()
        if place[2] >= len(params) or params[place[2]] is not p:
            found = [at for at in self._places() if groups[at[1]]["params"][at[2]] is p]
            if not found:
                return
            place = found[0]
        if launcher.compiler.logical:  # random numbers follow from the number, which groups before it change
            place = sum(len(group["params"]) for group in groups[: place[1]]) + place[2], *place[1:]
        if not groups[place[1]].get("train_mode", True):
            raise RuntimeError(
                f"group {place[1]} is in evaluation mode: call optimizer.train() before backward()"
            )
        if capturing(p.device):
            check_capture(type(self).__name__, (), self._settings["capturable"])
        entries: Entries = []
        key = (place, self._settings["capturable"])
        replay, launcher.replay = launcher.replay, None
        ready = None
        frozen = place[2] in (groups[place[1]].get("frozen") or ())
        if replay is not None and replay.key == key and not (frozen or capturing(p.device)):
            ready = replay.ready(groups, self.state, {}, {})
        if ready is None:
            with torch.no_grad():
                work = self._prepare({}, entries, [place], self._settings["capturable"])
                ready = launcher.prepare(work, groups) if work else None
            replay = None
        _enter(entries)
        if ready is not None:
            ready.launch()
            launcher.replay = replay or Replay.of(launcher, ready, groups, self.state, key, place)
        p.grad = None

    def _home(self) -> torch.device:
        """Where the numbers lie that are one for the whole optimizer."""
        for group in self.param_groups:
            for p in group["params"]:
                if not p.is_meta:
                    return cast(torch.device, p.device)
        return torch.device("cpu")

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

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _places(self) -> Iterator[Place]:
        """The place of every parameter."""
        number = 0
        for index, group in enumerate(self.param_groups):
            for position in range(len(group["params"])):
                yield number, index, position
                number += 1

    def _moving(self, places: Iterable[Place], handed: Mapping[str, Any]) -> Iterator[Moving]:
        """The parameters that have a gradient and are not frozen, with what they are handed."""
        for place in places:
            _, index, position = place
            group = self.param_groups[index]
            p, frozen = group["params"][position], group.get("frozen")
            if not isinstance(p, Tensor):
                raise TypeError(f"group {index} has {p!r} among its parameters, which is no tensor")
            grad = p.grad
            if grad is None or (frozen and position in frozen):
                continue
            if grad.layout is not torch.strided or grad.dtype not in CODEC_OF or p.dtype not in CODEC_OF:
                self._refuse(index, position)
            if grad.is_nested or p.is_nested:
                self._refuse(index, position)
            try:
                mine = for_parameter(handed, p) if handed else {}
            except ValueError as error:
                raise ValueError(f"{name_of(self.param_groups, index, position)}: {error}") from None
            yield place, p, grad, mine

    def _prepare(
        self,
        handed: Mapping[str, Any],
        entries: Entries,
        places: Iterable[Place] | None = None,
        on_device: bool = False,
    ) -> list[Work]:
        """Describe this step's work.

        Nothing is changed; `entries` gets what must be put into dictionaries when the step is made, such as
        state that is created. Empty tensors are counted, not launched.
        """
        work: list[Work] = []
        counting: dict[torch.device, bool] = {}  # which devices count the steps themselves
        used: dict[tuple[int, int], tuple[Facts, list[State]]] = {}
        makers: dict[tuple[int, int], Makers | None] = {}
        compiler = self._launcher.compiler
        for place, p, grad, inputs in list(
            self._moving(self._places() if places is None else places, handed)
        ):
            number, index, _ = place
            group = self.param_groups[index]
            key = (index, p.dim() if compiler.per_shape else 0)
            if key not in used:
                facts = compiler.facts(group, p.dim(), handed)
                used[key] = facts, list(compiler.specialised(facts).states.values())
            facts, wanted = used[key]
            made = Work(p, None, {}, index, facts, 1.0, inputs, number)
            if type(p) in PLAIN and self.state.get(p) is None and p.numel() and not on_device:
                if key not in makers:
                    makers[key] = self._makers(wanted, group)
                simple = makers[key]
                if simple is not None:  # a thousand of them are a first step
                    made.grad, made.counter = resolved(grad), _zero(counter_dtype()).clone()
                    made.states = {name: make(p) for name, _, make in simple}
                    kept = {key: made.states[name] for name, key, _ in simple}
                    entries.append((self.state, p, {"step": made.counter} | kept))
                    work.append(made)
                    continue
            device = local(p).device
            if on_device and device not in counting:
                counting[device] = resolve(self._settings["backend"], device) == "triton"
            made.counted = on_device and counting[device]
            work.append(self._described(made, place, grad, wanted, entries))
        return work

    def _described(
        self, made: Work, place: Place, grad: Tensor, wanted: Iterable[State], entries: Entries
    ) -> Work:
        """A parameter's part in a step, with all that belongs to it."""
        p, part = made.param, local(made.param)
        counter, states = self._states(place, wanted, entries, part.device if made.counted else None)
        if part is not p:
            made.param, made.owner, made.shard = part, p, shard_of(p)
        divided = made.shard is not None and p.numel() and self._launcher.compiler.reduces
        made.launched = bool(part.numel() or divided)
        kept = self.state.get(p, {})
        if not (made.launched or made.counted) and counter is kept.get("step"):
            counter = counter.clone()  # whose memory is nobody else's, for no launch looks at it
            entries.append((kept, "step", counter))
        made.counter, made.states, made.step = counter, states, 0.0
        if made.launched:
            made.grad = resolved(grad if part is p else matching(grad, p))
        if not made.counted:
            made.step = counter.item() + 1.0
            if not math.isfinite(made.step):
                what = f"the state 'step' of {name_of(self.param_groups, *place[1:])}"
                raise RuntimeError(f"{what} must be one number, not {made.step}")
        return made

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
            _enter(entries)

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
            return _zero(counter_dtype()).clone()
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

    def _refuse(self, index: int, position: int) -> NoReturn:
        """Say why a parameter cannot be stepped."""
        p: Tensor = self.param_groups[index]["params"][position]
        grad, name = cast(Tensor, p.grad), type(self).__name__
        where = name_of(self.param_groups, index, position)
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{name} does not support sparse gradients: pass dense ones for {where}, or "
                "torch.optim.SparseAdam for the embedding layers"
            )
        if p.is_complex() or grad.is_complex():
            raise RuntimeError(
                f"{name} does not support complex tensors: optimize torch.view_as_real(param) for {where}"
            )
        if grad.dtype in CODEC_OF and p.dtype in CODEC_OF:
            raise RuntimeError(f"{name} needs dense tensors with memory, for {where} and its gradient too")
        raise RuntimeError(
            f"{name} supports {SUPPORTED}, not {p.dtype} with a gradient of {grad.dtype} for {where}"
        )

    def train(self, mode: bool = True) -> None:
        """Run the rule's `train()` program on every parameter that has state; nothing without one."""
        self._switch(mode)

    def eval(self) -> None:
        """Run the rule's `eval()` program on every parameter that has state; nothing without one."""
        self._switch(False)

    @opaque
    @torch.no_grad()
    def _switch(self, training: bool) -> None:
        if self.program.modes:
            with self._launcher.lock, Uninterrupted():
                self._switch_now(training)

    def _switch_now(self, training: bool) -> None:
        mode = "train" if training else "eval"
        work: list[Work] = []
        entries: Entries = []
        for place in self._places():
            group = self.param_groups[place[1]]
            p = group["params"][place[2]]
            if group.get("train_mode", True) != training and p in self.state and local(p).numel():
                facts = self._launcher.compiler.facts(group, p.dim())
                wanted = self._launcher.compiler.specialised(facts).states.values()
                counter, states = self._states(place, wanted, entries)
                made = Work(local(p), None, states, place[1], facts, counter.item(), shard=shard_of(p))
                made.owner = p
                work.append(made)
        ready = None
        if work and mode in self.program.modes:
            ready = self._launcher.prepare(work, self.param_groups, mode, self._numbers(entries))
        _enter(entries)
        if ready is not None:
            ready.launch()
        for group in self.param_groups:
            group["train_mode"] = training

    # Freezing

    def freeze(self, target: nn.Module | Tensor | Mapping[str, Any] | int | Iterable[Tensor]) -> None:
        """Keep parameters and their state as they are until `thaw`; recorded in the state dict.

        Args:
            target: a parameter, several, a module, a parameter group or its index.

        Raises:
            ValueError: a parameter is not one of this optimizer's.
        """
        mark(self.param_groups, target, True)

    def thaw(self, target: nn.Module | Tensor | Mapping[str, Any] | int | Iterable[Tensor]) -> None:
        """Let frozen parameters move again; takes what `freeze` takes."""
        mark(self.param_groups, target, False)

    # Saving and loading

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> LoadReport:  # type: ignore[override]
        """Load what `state_dict` returned, here or by torch.optim for the same rule.

        Parameters are matched by name where both sides have names, `AdamW(model.named_parameters())`, so that
        their order and their groups may differ; otherwise by position. Every tensor keeps its own dtype and
        moves to its parameter's device; the dict is not changed and shares nothing with the optimizer
        afterwards. On an error nothing is loaded.

        Args:
            state_dict: what to load.
            strict: whether every parameter must be on both sides, and its state fit. If not, what fits is
                loaded, and other parameters and groups keep the state and the options that they have.

        Returns:
            What was left; with `strict`, nothing.

        Raises:
            ValueError: another rule, or an option that the rule refuses; with `strict` also other parameters,
                groups or sizes. The message says which.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        made, report = load(
            state_dict, self.param_groups, self.state, self._launcher, self._check_group, strict
        )
        self.__setstate__(made)
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)
        return report

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        settings = state.pop("settings", None)
        if settings is not None:
            self._configure(**settings)
        super().__setstate__(state)

    def __reduce__(self) -> Any:
        defaults = {h.name: h.default for h in self.program.hypers.values()}
        return (
            _restore,
            (type(self).__name__, as_tuple(rule_text(self.program)), defaults, part_names(self.program)),
            self.__getstate__(),
        )


@cache
def _zero(dtype: torch.dtype) -> Tensor:
    """No step, on the host; to be cloned, which is faster than to make a tensor of a number."""
    with torch.inference_mode(False):
        return torch.tensor(0.0, dtype=dtype, device="cpu")


def _enter(entries: Entries) -> None:
    """Put a step's new states and numbers where they are kept."""
    for where, key, value in entries:
        where[key] = value


def _materialising() -> bool:
    """Whether torch.distributed.checkpoint takes a step only to have the state created."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "_init_optim_state":
        frame = frame.f_back
    return frame is not None


def optimizer(source: library.Rule, name: str | None = None) -> type[Optimizer]:
    """The optimizer class of a rule.

    Args:
        source: a shipped name, a path, the text of a rule, or a program (a chain, for example).
        name: what to call the class; by default the name that the rule's docstring begins with.

    Returns:
        A subclass of `torch.optim.Optimizer`. Its constructor takes `params`, then the rule's
        hyperparameters in their order, and by keyword `maximize`, `backend` ("auto", "triton", "cpu",
        "numpy"), `math` ("exact", "fast") and `state_dtype` (None: each parameter's own).

    Raises:
        RuleError: the text is wrong, or the rule is a transform that needs another rule beside it.
    """
    program = library.rule(source)
    if name is None:
        title = program.doc.split(":")[0].strip()
        alone = not program.parts and title.isidentifier()
        name = title if alone else library.camel(program.name)
    return _make(with_maximize(complete(program)), name)


_made: dict[tuple[Any, ...], type[Optimizer]] = {}


def _make(program: Program, name: str) -> type[Optimizer]:
    """The class of a program, one object whichever thread asks first."""

    def make() -> type[Optimizer]:
        shipped = library.classes().get(name)
        own = not (shipped and not program.parts and library.rule(shipped).sources == program.sources)
        return type(
            name,
            (Optimizer,),
            {
                "program": program,
                "__signature__": signature(program),
                "__doc__": docstring(program, name, name if own else f"optgen.{name}"),
                "__module__": __name__ if own else "optgen",
                "__qualname__": name,
            },
        )

    return once(_made, (name, as_tuple(rule_text(program)), repr(program.hypers)), make)


def restored(
    name: str, texts: tuple[str, ...], defaults: dict[str, Any], names: tuple[str, ...] = ()
) -> Optimizer:
    """An empty optimizer of the class that these rule texts make; unpickling fills it."""
    program = with_defaults(with_maximize(complete(from_texts(texts, names))), **defaults)
    cls = _make(program, name)
    return cls.__new__(cls)
