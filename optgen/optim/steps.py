"""A step: a replay of the one before it, or recorded anew from the parameters that have gradients.

In: an optimizer's groups and states, and what `step` was handed. Out: kernels launched and counts advanced,
or nothing changed. Steps of one parameter, for `optgen.release`, and those of `train()` and `eval()` too.
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
from optgen.optim.grad_scaler import check_capture, scaling_of
from optgen.optim.state import Entries, Makers, States, enter, zero
from optgen.optim.step_inputs import for_parameter, handed_to
from optgen.passes.grad_scaling import with_scaling

Moving = tuple[Place, Tensor, Tensor, Mapping[str, Any]]  # a parameter's place, it, its gradient and inputs


class Steps(States):
    """Makes steps."""

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
                    enter(entries)
                    return
                ready = launcher.prepare(work, groups, None, numbers, steps, stop)
        enter(entries)
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
        enter(entries)
        if ready is not None:
            ready.launch()
            launcher.replay = replay or Replay.of(launcher, ready, groups, self.state, key, place)
        p.grad = None

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
                    made.grad, made.counter = resolved(grad), zero(counter_dtype()).clone()
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
        enter(entries)
        if ready is not None:
            ready.launch()
        for group in self.param_groups:
            group["train_mode"] = training
