"""A step: replays the recording of the last one, or records anew from the parameters that have gradients.

In: an optimizer's groups and states, and the inputs of `step`. Out: kernels launched and step counts
advanced, or, after an error, nothing changed. Also steps of single parameters, for `optgen.release`, and the
programs of `train()` and `eval()`.

Every path has the same order. Checks, new states and tables come first and may raise. Then `enter` puts new
states into their dictionaries, `launch` runs the kernels, and counts advance: none of that may raise, and
signals wait. The launcher's `replay` is None in between, so that a step which fails leaves no recording that
the next one would believe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from optgen.ir.facts import Facts
from optgen.ir.program import State
from optgen.launch.door import name_of, resolved
from optgen.launch.dtensor import local, matching, shard_of
from optgen.launch.guards import PLAIN
from optgen.launch.launcher import Launcher, resolve
from optgen.launch.replay import Place, Replay
from optgen.launch.step_counters import advance
from optgen.launch.uninterrupted import Uninterrupted, undisturbed
from optgen.launch.uploads import capturing
from optgen.launch.work import CODEC_OF, SUPPORTED, Work
from optgen.optim.checkpoint import counter_dtype
from optgen.optim.grad_scaler import check_capture, scaler_values
from optgen.optim.state import Entries, Initializers, States, enter, zero
from optgen.optim.step_inputs import inputs_of_parameter, inputs_of_step
from optgen.passes.grad_scaling import with_scaling

ParamGrad = tuple[Place, Tensor, Tensor, Mapping[str, Any]]  # a place, the parameter, gradient and inputs


class Steps(States):
    """The steps of an optimizer: replayed, recorded, of single parameters, and of modes."""

    def _try_replay(self, launcher: Launcher, key: tuple[Any, ...]) -> bool:
        """Replay a launcher's last step in one compiled call; False, with nothing changed, if a guard fails.

        `key` is what the recording must be of besides its tensors. Under a scaler every step goes through
        `_step`, which reads `found_inf` first.
        """
        replay = launcher.replay
        if replay is None or replay.key != key or vars(self).get("found_inf") is not None:
            return False
        launcher.replay = None  # nobody else may use it meanwhile, nor after an error
        replayed = bool(replay.again(self.param_groups, self.state))
        launcher.replay = replay
        return replayed

    def _step(self, inputs: Mapping[str, Any], loss: Any) -> None:
        """A step after the closure: replays the recording with other inputs or options, or records anew."""
        groups = self.param_groups
        for index, group in enumerate(groups):
            if not group.get("train_mode", True):
                raise RuntimeError(
                    f"group {index} is in evaluation mode: call optimizer.train() before step()"
                )
        home = self._home()
        captured = capturing(home)
        if captured:  # a graph needs tables of its own, so the step is recorded anew
            check_capture(type(self).__name__, groups, self._compile_options["capturable"])
        if inputs or self.program.inputs:
            inputs = inputs_of_step(self, self.program, inputs, loss, home)
        launcher, entries = self._launcher, Entries()
        global_values: dict[str, Tensor] = {}
        steps: float | Tensor = 0.0
        on_device, found_inf = self._compile_options["capturable"], None
        if vars(self).get("found_inf") is not None:
            global_values = scaler_values(self, home)
            found_inf, launcher = global_values["found_inf"], self._launcher_for_scaled()
            on_device = on_device or found_inf.device.type != "cpu"
            # On the CPU the host reads the flag and skips. On a GPU it must not wait for it: the kernels read
            # the flag, and step counts are advanced on the device.
            if not on_device:
                if found_inf.item():
                    return
                found_inf = None
        if launcher.compiler.counts:
            steps = self._optimizer_steps(on_device, entries)
            global_values |= self._global_states(entries)
        if inputs:
            global_values |= {name: inputs[name] for name in launcher.compiler.whole & {*inputs}}
        # Which inputs there are decides compile-time conditions, so a recording is of one set of them.
        key = (*inputs, on_device)
        replay, launcher.replay = launcher.replay, None
        ready = None
        if replay is not None and replay.key == key and not captured:
            ready = replay.ready(groups, self.state, inputs, global_values, steps, found_inf)
        replayed = ready is not None
        if ready is None:
            with torch.no_grad():
                work = self._build_work(inputs, entries, on_device=on_device)
                if not work:  # no parameter has a gradient: global states exist afterwards, as after a step
                    enter(entries)
                    return
                ready = launcher.prepare(work, groups, None, global_values, steps, found_inf)
        enter(entries)
        ready.launch()
        if isinstance(steps, Tensor):
            advance([steps], found_inf)
        elif launcher.compiler.counts:  # the same number in every group, as global states
            for group in groups:
                group["steps"] = steps + 1
        launcher.replay = replay if replayed else Replay.of(launcher, ready, groups, self.state, key)

    def _launcher_for_scaled(self) -> Launcher:
        """The launcher of the program for gradients that a GradScaler has multiplied."""
        if self._scaled_launcher is None:
            options = self._compile_options
            self._scaled_launcher = Launcher(with_scaling(self.program), options["backend"], options["math"])
        return self._scaled_launcher

    def _step_parameter(self, p: Tensor, place: Place, launcher: Launcher) -> None:
        """One step of a single parameter, whose own launcher has its tables; for `optgen.release`.

        `place` is where it was when its hook was made; nothing is done for one that is in no group any more.
        The gradient is freed.
        """
        quiet = undisturbed()
        if not (quiet and self._try_replay_parameter(p, place, launcher)):
            with Uninterrupted():
                if quiet or not self._try_replay_parameter(p, place, launcher):
                    self._record_parameter(p, place, launcher)

    def _try_replay_parameter(self, p: Tensor, place: Place, launcher: Launcher) -> bool:
        """Replay a parameter's last step in one compiled call; False, with nothing changed, if impossible."""
        groups = self.param_groups
        if launcher.compiler.logical or place[1] >= len(groups):
            return False
        group = groups[place[1]]
        if place[2] >= len(group["params"]) or group["params"][place[2]] is not p:
            return False
        frozen = group.get("frozen")
        if frozen and place[2] in frozen:
            return False
        return self._try_replay(launcher, (place, self._compile_options["capturable"]))

    def _record_parameter(self, p: Tensor, place: Place, launcher: Launcher) -> None:
        """The step of a parameter that no single call replays; found again if groups have changed."""
        groups = self.param_groups
        params = groups[place[1]]["params"] if place[1] < len(groups) else ()
        if place[2] >= len(params) or params[place[2]] is not p:
            places = [at for at in self._places() if groups[at[1]]["params"][at[2]] is p]
            if not places:
                return
            place = places[0]
        if launcher.compiler.logical:  # its random numbers follow from its number, which groups may shift
            place = sum(len(group["params"]) for group in groups[: place[1]]) + place[2], *place[1:]
        if not groups[place[1]].get("train_mode", True):
            raise RuntimeError(
                f"group {place[1]} is in evaluation mode: call optimizer.train() before backward()"
            )
        if capturing(p.device):
            check_capture(type(self).__name__, (), self._compile_options["capturable"])
        entries: Entries = []
        key = (place, self._compile_options["capturable"])
        replay, launcher.replay = launcher.replay, None
        ready = None
        frozen = place[2] in (groups[place[1]].get("frozen") or ())
        if replay is not None and replay.key == key and not (frozen or capturing(p.device)):
            ready = replay.ready(groups, self.state, {}, {})
        if ready is None:
            with torch.no_grad():
                work = self._build_work({}, entries, [place], self._compile_options["capturable"])
                ready = launcher.prepare(work, groups) if work else None
            replay = None  # a new recording follows the launch
        enter(entries)
        if ready is not None:
            ready.launch()
            launcher.replay = replay or Replay.of(launcher, ready, groups, self.state, key, place)
        p.grad = None  # this is what releases the memory

    def _params_with_grads(self, places: Iterable[Place], inputs: Mapping[str, Any]) -> Iterator[ParamGrad]:
        """The parameters that have a gradient and are not frozen, with their inputs."""
        for place in places:
            _, index, position = place
            group = self.param_groups[index]
            p, frozen = group["params"][position], group.get("frozen")
            if not isinstance(p, Tensor):
                raise TypeError(f"group {index} has {p!r} among its parameters, which is no tensor")
            grad = p.grad
            # No gradient is not a zero gradient: momentum and decay would still move the parameter.
            if grad is None or (frozen and position in frozen):
                continue
            if grad.layout is not torch.strided or grad.dtype not in CODEC_OF or p.dtype not in CODEC_OF:
                self._refuse(index, position)
            if grad.is_nested or p.is_nested:
                self._refuse(index, position)
            try:
                tensors = inputs_of_parameter(inputs, p) if inputs else {}
            except ValueError as error:
                raise ValueError(f"{name_of(self.param_groups, index, position)}: {error}") from None
            yield place, p, grad, tensors

    def _build_work(
        self,
        inputs: Mapping[str, Any],
        entries: Entries,
        places: Iterable[Place] | None = None,
        on_device: bool = False,
    ) -> list[Work]:
        """The `Work` of each parameter that this step moves: gradient, states, step count, facts and inputs.

        Nothing is changed; `entries` gets the deferred assignments, such as that of state which is created.
        Empty tensors are counted, not launched.

        Args:
            inputs: those of the step, by name.
            entries: is added to.
            places: of the parameters; by default of all.
            on_device: whether devices count the steps where their back end can.
        """
        work: list[Work] = []
        device_counts: dict[torch.device, bool] = {}
        # By group, and number of dimensions where the program depends on it.
        specialised: dict[tuple[int, int], tuple[Facts, list[State]]] = {}
        initializers: dict[tuple[int, int], Initializers | None] = {}
        compiler = self._launcher.compiler
        # All gradients and inputs are checked before a state is created.
        for place, p, grad, tensors in list(
            self._params_with_grads(self._places() if places is None else places, inputs)
        ):
            number, index, _ = place
            group = self.param_groups[index]
            key = (index, p.dim() if compiler.per_shape else 0)
            if key not in specialised:
                facts = compiler.facts(group, p.dim(), inputs)
                specialised[key] = facts, list(compiler.specialised(facts).states.values())
            facts, declared = specialised[key]
            part = Work(p, None, {}, index, facts, 1.0, tensors, number)
            # New state of a plain parameter needs none of what `_complete` looks at.
            if type(p) in PLAIN and self.state.get(p) is None and p.numel() and not on_device:
                if key not in initializers:
                    initializers[key] = self._initializers(declared, group)
                simple = initializers[key]
                if simple is not None:  # a fast path: a first step has thousands of them
                    part.grad, part.counter = resolved(grad), zero(counter_dtype()).clone()
                    part.states = {name: make(p) for name, _, make in simple}
                    by_key = {key: part.states[name] for name, key, _ in simple}
                    entries.append((self.state, p, {"step": part.counter} | by_key))
                    work.append(part)
                    continue
            device = local(p).device
            if on_device and device not in device_counts:
                device_counts[device] = resolve(self._compile_options["backend"], device) == "triton"
            part.counted = on_device and device_counts[device]
            work.append(self._complete(part, place, grad, declared, entries))
        return work

    def _complete(
        self, work: Work, place: Place, grad: Tensor, declared: Iterable[State], entries: Entries
    ) -> Work:
        """Fill in a parameter's `Work`: local shards, gradient, states, and step count on host or device."""
        p, part = work.param, local(work.param)
        counter, states = self._states(place, declared, entries, part.device if work.counted else None)
        if part is not p:
            work.param, work.owner, work.shard = part, p, shard_of(p)
        # A process without elements of a distributed parameter takes part in reductions over the parameter.
        divided = work.shard is not None and p.numel() and self._launcher.compiler.reduces
        work.launched = bool(part.numel() or divided)
        param_state = self.state.get(p, {})
        if not (work.launched or work.counted) and counter is param_state.get("step"):
            counter = counter.clone()  # no launch checks its memory, which must be nobody else's
            entries.append((param_state, "step", counter))
        work.counter, work.states, work.step = counter, states, 0.0
        if work.launched:
            work.grad = resolved(grad if part is p else matching(grad, p))
        if not work.counted:  # else the host does not know the count, and must not wait for it
            work.step = counter.item() + 1.0
            if not math.isfinite(work.step):
                what = f"the state 'step' of {name_of(self.param_groups, *place[1:])}"
                raise RuntimeError(f"{what} must be one number, not {work.step}")
        return work

    def _refuse(self, index: int, position: int) -> NoReturn:
        """Raise the RuntimeError that says why a parameter with this gradient cannot be stepped."""
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

    def _run_mode(self, training: bool) -> None:
        """Run the rule's `train` or `eval` program on parameters with state, and set `train_mode`."""
        mode = "train" if training else "eval"
        work: list[Work] = []
        entries: Entries = []
        for place in self._places():
            group = self.param_groups[place[1]]
            p = group["params"][place[2]]
            # A parameter without state has made no step, and is the same in both modes.
            if group.get("train_mode", True) != training and p in self.state and local(p).numel():
                facts = self._launcher.compiler.facts(group, p.dim())
                declared = self._launcher.compiler.specialised(facts).states.values()
                counter, states = self._states(place, declared, entries)
                part = Work(local(p), None, states, place[1], facts, counter.item(), shard=shard_of(p))
                part.owner = p
                work.append(part)
        ready = None
        if work and mode in self.program.modes:
            ready = self._launcher.prepare(work, self.param_groups, mode, self._global_states(entries))
        enter(entries)
        if ready is not None:
            ready.launch()
        for group in self.param_groups:
            group["train_mode"] = training
