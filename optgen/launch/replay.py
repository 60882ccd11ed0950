"""Replay of a recorded step, without describing each tensor's part in it again.

In: a step that has just been made, and its optimizer's groups and state. Out: the same step, if only values,
gradients, options and addresses of gradients have changed; otherwise nothing is touched, and the step is
recorded anew. Comparing costs well under a microsecond a tensor, describing ten.

No tensor is kept alive: `object_guards` compares which objects there are, `guards` what they are and where
they lie. What differs between rules (random numbers, inputs, host states and states of slices, values for
the whole optimizer) is in the recording's tables, and refreshed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from optgen.ir.extent import Extent
from optgen.ir.facts import Facts, path_of
from optgen.launch.door import fixed_of, offsets_of
from optgen.launch.dtensor import local
from optgen.launch.guards import PLAIN
from optgen.launch.launcher import Launcher
from optgen.launch.object_guards import object_guard, picker
from optgen.launch.recording import Ready
from optgen.launch.run import Moment
from optgen.launch.work import CODEC_OF, Work

Groups = Sequence[Mapping[str, Any]]
State = Mapping[Tensor, Mapping[str, Any]]
Place = tuple[int, int, int]  # a parameter's number, its group's index, its position there
WARM = 100  # replays in a process, after which it pays to look at a few tensors in compiled code too
_replays = itertools.count()

_grad_of = attrgetter("grad")


def _immutable(value: Any) -> bool:
    """Whether an option can be compared by identity from now on."""
    return isinstance(value, int | float | str | None) or (
        isinstance(value, tuple) and all(map(_immutable, value))
    )


def _sharding(spec: Any) -> Any:
    """A distributed tensor's mesh and placements; None for a plain one."""
    return None if spec is None else (spec.mesh, spec.placements)


def _is_empty(p: Tensor) -> bool:
    """Whether a parameter has no elements, and a gradient that fits: such a one is only counted."""
    grad = p.grad
    return (
        grad is not None
        and not grad.is_nested
        and grad.layout is torch.strided
        and grad.dtype in CODEC_OF
        and p.dtype in CODEC_OF
        and grad.device == p.device
        and grad.shape == p.shape
        and not local(p).numel()
    )


class Replay:
    """A recorded step, and where its tensors are in the optimizer's groups and state.

    Args:
        launcher: which made the step.
        ready: the step.
        groups: of the optimizer.
        state: of the optimizer.
        key: must be equal for a replay.
        alone: the parameter's number, group and position, if the step is of that one alone.
    """

    @staticmethod
    def of(
        launcher: Launcher,
        ready: Ready,
        groups: Groups,
        state: State,
        key: tuple[Any, ...],
        alone: Place | None = None,
    ) -> Replay | None:
        """A replay of a step that was just made; None if it is not supported, or states were converted."""
        foreign = any(isinstance(x, Mapping) and not isinstance(x, dict) for x in state.values())
        # One without elements is only counted: what it has besides is looked at when the step is recorded.
        empty = [w for w in ready.work if not w.launched]
        declared = [launcher.compiler.specialised(w.facts).states.values() for w in empty]
        host_states = any(state.extent is Extent.STEP for states in declared for state in states)
        if ready.moves or foreign or host_states or (empty and (alone is not None or ready.work[0].inputs)):
            return None
        return Replay(launcher, ready, groups, state, key, alone)

    def __init__(
        self,
        launcher: Launcher,
        ready: Ready,
        groups: Groups,
        state: State,
        key: tuple[Any, ...],
        alone: Place | None = None,
    ):
        self.launcher, self.recording, work = launcher, ready.recording, ready.work
        self.key, self.alone, self.warm = key, alone, False
        self.inputs = tuple(work[0].inputs)
        self.plain = not (self.inputs or launcher.compiler.counts)  # no more than parameters and states
        owners = [w.param if w.owner is None else w.owner for w in work]
        self._record_tensors(work, owners, groups, state)
        self._record_skipped({id(p): w.launched for w, p in zip(work, owners, strict=True)}, groups)
        self.facts: dict[int, dict[int, Facts]] = {}  # by group and number of dimensions
        for w, p in zip(work, owners, strict=True):
            self.facts.setdefault(w.group, {})[p.dim()] = w.facts
        program = launcher.program
        subjects = dict.fromkeys(path_of(fact.subject)[0] for fact in program.facts.values())
        self.subjects = [s for s in subjects if s != "ndim" and s not in program.inputs]
        self.values: dict[int, list[Any]] = {}  # by group, of the hyperparameters that conditions ask for

    def _record_tensors(
        self, work: Sequence[Work], owners: Sequence[Tensor], groups: Groups, state: State
    ) -> None:
        """Record where the tensors that the step writes are held, and which are distributed."""
        keys = {name: declared.key for name, declared in self.launcher.program.states.items()}
        offsets, _ = offsets_of(work)
        tensors: list[Any] = fixed_of(work)
        param_offsets = [offset for offset, w in zip(offsets, work, strict=True) if w.launched]
        self.params_of = picker(param_offsets)
        self.counters_of = picker([offset - 1 for offset in [*offsets[1:], len(tensors)]])
        for w, p, offset in zip(work, owners, offsets, strict=True):
            if p is not w.param and w.launched:
                tensors[offset : offset + 1 + len(w.states)] = [
                    p,
                    *(state[p][keys[name]] for name in w.states),
                ]
        plain = {*map(type, tensors)} <= {*PLAIN}
        self.distributed = [] if plain else [i for i, x in enumerate(tensors) if local(x) is not x]
        self.owners = sorted({*param_offsets} & {*self.distributed})
        self.specs = [tensors[i]._spec for i in self.distributed]
        self.object_guard = object_guard(*self._containers(groups, state), tensors)

    def _record_skipped(self, launched: Mapping[int, bool], groups: Groups) -> None:
        """Record which parameters are frozen, have no gradient, or are empty and only counted."""
        self.frozen = [list(group.get("frozen") or ()) for group in groups]
        self.without_grad: list[tuple[int, int]] = []
        self.empty_params: list[tuple[int, int]] = []
        for index, group in enumerate(groups if self.alone is None else ()):
            for position, p in enumerate(group["params"]):
                if launched.get(id(p)) is False:
                    self.empty_params.append((index, position))
                elif id(p) not in launched and position not in self.frozen[index]:
                    self.without_grad.append((index, position))

    def _containers(self, groups: Groups, state: State) -> tuple[list[list[Tensor]], Mapping[Any, Any]]:
        """The lists and the dictionary that hold the step's tensors."""
        if self.alone is None:
            return [group["params"] for group in groups], state
        p = groups[self.alone[1]]["params"][self.alone[2]]
        return [[p]], state.get(p, {})

    def ready(
        self,
        groups: Groups,
        state: State,
        step_inputs: Mapping[str, Any],
        numbers: Mapping[str, Tensor],
        steps: float | Tensor = 0.0,
        stop: Tensor | None = None,
    ) -> Ready | None:
        """Prepare a replay, up to its first launch; None if the recording does not hold.

        Args:
            groups: of the optimizer.
            state: of the optimizer.
            step_inputs: values of the rule's inputs, for each parameter.
            numbers: as for `Launcher.prepare`, like the others.
            steps: how many steps the optimizer has made.
            stop: where it is not 0, nothing moves.
        """
        tensors = self._find(groups, state, step_inputs)
        if (
            tensors is None
            or self.recording.guard.find(*tensors[:2]) is None
            or not self.recording.alignment_holds()
        ):
            return None
        fixed, free, owners = tensors
        self._warm(groups, state, fixed, free)
        counters = self.counters_of(fixed)
        assert self.recording.counters is not None
        counts = self.recording.counters.read(counters)
        if counts is None:
            return None
        moment = Moment(groups, counts + 1, numbers, steps, stop, counters)
        self.recording.refresh(moment)
        # Before the launches, which leave nothing of the tensors' own data in any cache.
        self.recording.guard.increment_versions(fixed)
        global_states = [x for name, x in numbers.items() if name in self.launcher.program.states]
        if owners or global_states:
            torch.autograd.graph.increment_version([*owners, *global_states])
        return Ready(self.recording, moment)

    def again(self, groups: Groups, state: State) -> bool:
        """Replay the step in one compiled call; False, with nothing changed, if that is not possible.

        The gradient of a parameter alone is freed.
        """
        one_call = self.recording.one_call
        if one_call is None or one_call.count is None or not self.plain:
            return False
        for group in groups:
            if not group.get("train_mode", True):
                return False
        tensors = self._find(groups, state, {})
        if tensors is None:
            return False
        try:
            ready = one_call.refresh(groups)
        except ValueError:  # of a hyperparameter; the ordinary way says it, or what comes before it
            return False
        return ready and one_call.make(*tensors[:2], free_grad=self.alone is not None)

    def _find(
        self, groups: Groups, state: State, step_inputs: Mapping[str, Any]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]] | None:
        """The step's fixed and free tensors and distributed parameters; None if objects or options changed.

        The tensors themselves are not compared yet.
        """
        if self.alone is None and [group.get("frozen") or [] for group in groups] != self.frozen:
            return None
        # A new list each time: distributed tensors in it are replaced by their shards below.
        fixed = self.object_guard.find(*self._containers(groups, state))
        if fixed is None or self._skipped_changed(groups):
            return None
        free: list[Any] = list(map(_grad_of, self.params_of(fixed)))
        if self.inputs:
            params = self.params_of(fixed)
            rows = zip(
                free, *([step_inputs[name].get(p) for p in params] for name in self.inputs), strict=True
            )
            free = [x for row in rows for x in row]
        owners = [fixed[i] for i in self.owners]
        if self.distributed:
            if not self._same_sharding(fixed, owners, free):
                return None
            for i in self.distributed:
                fixed[i] = fixed[i]._local_tensor
            # `_local_tensor` is the shard that `to_local()` wraps for autograd.
            free = [getattr(x, "_local_tensor", x) for x in free]
        for index, facts in self.facts.items():
            if not self._facts_hold(groups[index], index, facts, step_inputs):
                return None
        return fixed, free, owners

    def _warm(self, groups: Groups, state: State, fixed: list[Tensor], free: list[Tensor]) -> None:
        """After `WARM` replays in this process, compile guards for few objects too."""
        if not self.warm and next(_replays) >= WARM:
            self.warm = True
            plain = {*map(type, fixed)} <= {*PLAIN}  # to free the gradient of another may call anything
            self.recording.warm(fixed, free, self.alone is None or plain)
            if not self.distributed:
                self.object_guard = object_guard(*self._containers(groups, state), fixed, warm=True)
                self.object_guard.find(
                    *self._containers(groups, state)
                )  # compiled here, where no signal interrupts

    def _same_sharding(self, fixed: Sequence[Any], owners: Sequence[Any], free: Sequence[Any]) -> bool:
        """Whether distributed tensors are sharded as before, and gradients and inputs as their parameters."""
        if not all(fixed[i]._spec is spec for i, spec in zip(self.distributed, self.specs, strict=True)):
            return False
        each = 1 + len(self.inputs)
        params = self.params_of(fixed)
        for p, *its in zip(params, *(free[k::each] for k in range(each)), strict=True):
            mine = getattr(p, "_spec", None)
            for x in its:
                other = getattr(x, "_spec", None)
                if other is not mine and _sharding(other) != _sharding(mine):
                    return False
        return True

    def _facts_hold(
        self,
        group: Mapping[str, Any],
        index: int,
        facts: Mapping[int, Facts],
        step_inputs: Mapping[str, Any],
    ) -> bool:
        """Whether a group's compile-time conditions are as recorded."""
        values = [group.get(name, self) for name in self.subjects]  # which is no value, for one that is gone
        if not all(map(is_, values, self.values.get(index, ()))) or index not in self.values:
            compiler = self.launcher.compiler
            if any(compiler.facts(group, ndim, step_inputs) != known for ndim, known in facts.items()):
                return False
            # A tensor or a list may have other numbers next time.
            if all(v is self or _immutable(v) for v in values):
                self.values[index] = values
        return True

    def _skipped_changed(self, groups: Groups) -> bool:
        """Whether a parameter without gradient has one now, or an empty one has none or is not empty."""
        if self.without_grad and any(
            groups[index]["params"][at].grad is not None for index, at in self.without_grad
        ):
            return True
        return bool(self.empty_params) and not all(
            _is_empty(groups[index]["params"][at]) for index, at in self.empty_params
        )
