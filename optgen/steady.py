"""A step like the one before it, without the work of finding that out tensor by tensor.

In: what an ordinary step has found and launched. Out: the next step, if nothing but values, gradients and
addresses has changed; otherwise nothing is touched, and the step is an ordinary one. What is compared costs
well under a microsecond a tensor, where describing a tensor's part in a step costs four.

Only steps are repeated whose values per step follow from the count and the groups alone, of contiguous
tensors: no random numbers, inputs, slices, numbers for the whole optimizer, host states, spills or
distributed tensors. A parameter or state whose address changed makes the step an ordinary one; gradients may
be other tensors each time, and none is kept alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from optgen import counting
from optgen.launch import Launch, Launcher, Work, advance

Groups = Sequence[Mapping[str, Any]]
_layout, _dtype = attrgetter("layout"), attrgetter("dtype")


class Steady:
    """The tensors of one step, and the launches that it made."""

    def __init__(
        self,
        launcher: Launcher,
        runners: Sequence[Launch],
        work: Sequence[Work],
        counters: Sequence[Tensor],
        groups: Groups,
        state: Mapping[Tensor, Any],
    ):
        self.launcher, self.runners, self.counters = launcher, runners, list(counters)
        self.params = _params(groups)
        self.frozen = [list(group["frozen"]) for group in groups]
        self.truths = {w.group: w.truths for w in work}
        moving = {id(w.param) for w in work}
        self.moving = [w.param for w in work]
        moving |= {id(group["params"][at]) for group in groups for at in group["frozen"]}
        self.still = [p for p in self.params if id(p) not in moving]
        self.sizes = [p.numel() for p in self.moving]
        self.dtypes = [w.grad.dtype for w in work if w.grad is not None]
        self.types = [type(w.grad) for w in work]
        for w in work:
            w.grad = None
        self.kept = _flat(state)
        self.count = counting.Count(self.counters)
        self.touched = [*self.moving, *(s for w in work for s in w.states.values())]
        self.places = list(map(Tensor.data_ptr, self.touched))

    @staticmethod
    def of(
        launcher: Launcher,
        runners: Sequence[Any],
        work: Sequence[Work],
        counters: Sequence[Tensor],
        groups: Groups,
        state: Mapping[Tensor, Any],
    ) -> Steady | None:
        """What can be repeated of a step that has just been made; None where it cannot."""
        alike = len({w.step for w in work}) == 1 and len(counters) == len(work)
        if not alike or launcher.per_shape or launcher.program.inputs or not runners:
            return None
        for r in runners:
            plan = r.plan
            fixed = plan.random or plan.host or plan.spills or plan.numbers or r.bucket.reads
            if not isinstance(r, Launch) or fixed or r.bucket.layout.dims or r.bucket.counted or r.divided:
                return None
        if any(c.device.type != "cpu" for c in counters):
            return None
        return Steady(launcher, runners, work, counters, groups, state)

    def repeat(self, groups: Groups, state: Mapping[Tensor, Any]) -> bool:
        """Make the next step, and count it, if it is like the one before; whether it was."""
        found = self._matches(groups, state)
        if found is None:
            return False
        steps, grads = found
        for r in self.runners:
            r.again(grads, groups, steps + 1)
        advance(self.runners)
        for r in self.runners:
            r.finish()
        torch.autograd.graph.increment_version(self.touched)
        self.count.advance()
        return True

    def _matches(self, groups: Groups, state: Mapping[Tensor, Any]) -> tuple[float, list[Tensor]] | None:
        """The steps made so far, and the gradients, if every other tensor is where and what it was."""
        if not _same(_params(groups), self.params) or [g["frozen"] for g in groups] != self.frozen:
            return None
        if any(p.grad is not None for p in self.still):
            return None
        grads: list[Any] = [p.grad for p in self.moving]
        if not self._alike(grads):
            return None
        if list(map(Tensor.data_ptr, self.touched)) != self.places:
            return None
        if not _same(_flat(state), self.kept):
            return None
        for index, truths in self.truths.items():
            if self.launcher.truths(groups[index]) != truths:
                return None
        steps = self.count.common()
        return None if steps is None else (steps, grads)

    def _alike(self, grads: Sequence[Any]) -> bool:
        """Whether gradients are dense tensors as the ones before, and parameters contiguous as they were."""
        if not _same(list(map(type, grads)), self.types):
            return False
        if not set(map(_layout, grads)) <= {torch.strided} or not _same(
            list(map(_dtype, grads)), self.dtypes
        ):
            return False
        if list(map(Tensor.numel, grads)) != self.sizes:
            return False
        return all(map(Tensor.is_contiguous, grads)) and all(map(Tensor.is_contiguous, self.moving))


def _params(groups: Groups) -> list[Tensor]:
    return list(chain.from_iterable([group["params"] for group in groups]))


def _flat(state: Mapping[Tensor, Any]) -> list[Any]:
    """Everything that is kept for any parameter, in order."""
    return list(chain.from_iterable(map(dict.values, state.values())))


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))
