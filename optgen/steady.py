"""A step like the one before it, without the work of finding that out tensor by tensor.

In: what an ordinary step has found and launched. Out: the next step, if nothing but values, gradients and
addresses has changed; otherwise nothing is touched, and the step is an ordinary one. What is compared costs
well under a microsecond a tensor, where describing a tensor's part in a step costs four.

Only steps are repeated whose values per step follow from the count and the groups alone: no random numbers,
inputs, slices, numbers for the whole optimizer, host states, spills, distributed tensors or tensors whose
elements need strides to be found. A parameter or state whose address changed makes the step an ordinary one;
gradients may be other tensors each time, and none is kept alive. Types, dtypes, sizes and strides are
compared in one call by the guards that torch.compile has; a torch without them repeats no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.counting import Count
from optgen.launch import Launch, Launcher, Work, advance
from optgen.watching import GUARDS, Groups, State, watch

TensorGuards: Any = getattr(GUARDS, "TensorGuards", None)


class Steady:
    """The tensors of one step, and the launches that it made."""

    def __init__(
        self,
        launcher: Launcher,
        runners: Sequence[Launch],
        work: Sequence[Work],
        counters: Sequence[Tensor],
        groups: Groups,
        state: State,
    ):
        self.launcher, self.runners = launcher, runners
        self.frozen = [list(group["frozen"]) for group in groups]
        self.truths = {w.group: w.truths for w in work}
        moving = {id(w.param) for w in work}
        self.moving = tuple(w.param for w in work)
        moving |= {id(group["params"][at]) for group in groups for at in group["frozen"]}
        self.still = [p for group in groups for p in group["params"] if id(p) not in moving]
        self.params_alike, self.grads_alike = _guards(self.moving), _guards([p.grad for p in self.moving])
        for w in work:
            w.grad = None
        self.touched = (*self.moving, *(s for w in work for s in w.states.values()), *counters)
        self.watch = watch(groups, state, self.touched)
        self.count = Count(counters, self.watch.places[-len(counters) :], self.watch.module)

    @staticmethod
    def of(
        launcher: Launcher,
        runners: Sequence[Any],
        work: Sequence[Work],
        counters: Sequence[Tensor],
        groups: Groups,
        state: State,
    ) -> Steady | None:
        """What can be repeated of a step that has just been made; None where it cannot."""
        alike = len({w.step for w in work}) == 1 and len(counters) == len(work)
        if TensorGuards is None or not alike or launcher.per_shape or launcher.program.inputs or not runners:
            return None
        for r in runners:
            plan = r.plan
            fixed = plan.random or plan.host or plan.spills or plan.numbers or r.bucket.reads
            if not isinstance(r, Launch) or fixed or r.bucket.layout.dims or r.bucket.counted or r.divided:
                return None
        if any(c.device.type != "cpu" for c in counters):
            return None
        return Steady(launcher, runners, work, counters, groups, state)

    def repeat(self, groups: Groups, state: State) -> bool:
        """Make the next step, and count it, if it is like the one before; whether it was."""
        grads = self._matches(groups, state)
        steps = None if grads is None else self.count.take()
        if grads is None or steps is None:
            return False
        try:
            places = self.watch.addresses(grads)
            for r in self.runners:
                r.again(places, groups, steps + 1)
            torch.autograd.graph.increment_version(self.touched)  # a launch leaves nothing of it in any cache
            advance(self.runners)
            for r in self.runners:
                r.finish()
        except BaseException:
            self.count.give_back()
            raise
        return True

    def _matches(self, groups: Groups, state: State) -> tuple[Any, ...] | None:
        """The gradients, if every other tensor is where and what it was."""
        if [group["frozen"] for group in groups] != self.frozen:
            return None
        if any(p.grad is not None for p in self.still):
            return None
        grads: tuple[Any, ...] = tuple([p.grad for p in self.moving])
        if not (self.grads_alike(*grads) and self.params_alike(*self.moving)):
            return None
        if not self.watch.same(groups, state):
            return None
        for index, truths in self.truths.items():
            if self.launcher.truths(groups[index]) != truths:
                return None
        return grads


def _guards(tensors: Sequence[Any]) -> Any:
    """A function: whether others are of the same types, dtypes, devices, sizes and strides as these."""
    return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
