"""A step like the one before it, without the work of finding that out tensor by tensor.

In: what an ordinary step has found and launched. Out: the next step, if nothing but values, gradients and
addresses of gradients has changed; otherwise nothing is touched, and the step is an ordinary one. What is
compared costs well under a microsecond a tensor, where describing a tensor's part in a step costs four.

Only steps are repeated whose values per step follow from the count and the groups alone: no random numbers,
inputs, slices, numbers for the whole optimizer, host states, spills, distributed tensors or tensors whose
elements need strides to be found. No tensor is kept alive by what is remembered of it: `watching` compares
which objects there are, `launch.guards` what they are and where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import attrgetter, is_
from typing import Any

from torch import Tensor

from optgen.counting import Count
from optgen.facts import Facts, path_of
from optgen.launch import Launcher, Ready
from optgen.launch.recording import fixed_of
from optgen.launch.uploads import capturing
from optgen.watching import Groups, State, picker, watch

_grad_of = attrgetter("grad")


def _unchanging(value: Any) -> bool:
    return isinstance(value, int | float | str | None) or (
        isinstance(value, tuple) and all(map(_unchanging, value))
    )


class Steady:
    """What is remembered of a step: which tensors it had, by their places, and the launches that it made."""

    def __init__(self, launcher: Launcher, ready: Ready, groups: Groups, state: State):
        self.launcher, self.guard = launcher, ready.guard
        self.runners = ready.runners
        work, moving = ready.work, {id(w.param) for w in ready.work}
        fixed = fixed_of(work)
        self.gpus = {r.bucket.device for r in self.runners if r.bucket.moving is not None}
        self.watch = watch(groups, state, fixed)
        after = list(accumulate(2 + len(w.states) for w in work))
        self.moving = picker([0, *after[:-1]])
        counters = [at - 1 for at in after]
        self.counters = picker(counters)
        self.count = Count(self.counters(fixed), self.guard.addresses[counters], self.guard)
        params = [p for group in groups for p in group["params"]]
        marks = [group.get("frozen") or () for group in groups]
        frozen = [
            at in mine
            for mine, group in zip(marks, groups, strict=True)
            for at in range(len(group["params"]))
        ]
        self.still = [i for i, p in enumerate(params) if id(p) not in moving and not frozen[i]]
        self.frozen = list(map(list, marks))
        self.facts = {w.group: w.facts for w in work}
        self.subjects = list(dict.fromkeys(path_of(f.subject)[0] for f in launcher.program.facts.values()))
        self.values: dict[int, list[Any]] = {}  # by group, of the hyperparameters that conditions ask for
        for r in self.runners:
            r.forget()

    @staticmethod
    def of(
        launcher: Launcher, ready: Ready, counters: Sequence[Tensor], groups: Groups, state: State
    ) -> Steady | None:
        """What can be repeated of a step that has just been made; None where it cannot."""
        work = ready.work
        alike = len({w.step for w in work}) == 1 and len(counters) == len(work)
        if not alike or launcher.compiler.per_shape or launcher.program.inputs or ready.moves:
            return None
        if launcher.backend == "numpy":  # what others are judged by takes no short way
            return None
        for r in ready.runners:
            plan = r.plan
            fixed = plan.random or plan.host or plan.spills or plan.numbers or r.bucket.reads
            if fixed or r.bucket.layout.dims or r.bucket.counted:
                return None
        if any(w.owner is not None or w.grad is not w.param.grad or w.counter is None for w in work):
            return None
        if any(c.device.type != "cpu" for c in counters) or not all(type(s) is dict for s in state.values()):
            return None
        return Steady(launcher, ready, groups, state)

    def repeat(self, groups: Groups, state: State) -> bool:
        """Make the next step, and count it, if it is like the one before; whether it was.

        Call it where no signal interrupts.
        """
        if [group.get("frozen") for group in groups] != self.frozen or any(map(capturing, self.gpus)):
            return False
        fixed = self.watch.find(groups, state)
        if fixed is None or (self.still and self._more_move(groups)):
            return False
        if self.guard.find(fixed, list(map(_grad_of, self.moving(fixed)))) is None:
            return False
        if not all(r.fits(self.guard) for r in self.runners):
            return False
        for index, facts in self.facts.items():
            if not self._as_before(groups[index], index, facts):
                return False
        counters = self.counters(fixed) if self.count.asks else ()
        steps = self.count.read(counters)
        if steps is None:
            return False
        for r in self.runners:
            r.again(self.guard, groups, steps + 1)
        # Before the launches, which leave nothing of the tensors' own data in any cache.
        self.guard.change(fixed)
        for r in self.runners:
            r.repeat()
        self.count.advance(counters)
        return True

    def _as_before(self, group: Mapping[str, Any], index: int, facts: Facts) -> bool:
        """Whether the compile-time conditions hold for a group that held for it."""
        values = [group.get(name, self) for name in self.subjects]  # which is no value, for one that is gone
        if not all(map(is_, values, self.values.get(index, ()))) or index not in self.values:
            if self.launcher.compiler.facts(group) != facts:
                return False
            if all(
                v is self or _unchanging(v) for v in values
            ):  # a tensor or list may have other numbers next time
                self.values[index] = values
        return True

    def _more_move(self, groups: Groups) -> bool:
        """Whether a parameter has a gradient that had none."""
        params = [p for group in groups for p in group["params"]]
        return any(params[i].grad is not None for i in self.still)
