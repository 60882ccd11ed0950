"""A recorded step: which kernels run, in which order, on which tables; valid while its guard holds.

In: the buckets of a step and the addresses of its tensors. Out: replays, for the current options, counts and
numbers: `refresh` brings the tables up to date, which may fail and changes nothing that a step changes;
`launch` runs the kernels. It holds addresses, and no tensor. A step's tensors have one order, `fixed` ones
before `free` ones (see `guards`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.ir.facts import lookup
from optgen.ir.node import Node, Op, toposort
from optgen.launch.buckets import Bucket
from optgen.launch.door import Move, Offsets, fixed_of
from optgen.launch.guards import Guard, Survey, guard
from optgen.launch.one_call import OneCall
from optgen.launch.run import Launch, Moment, advance
from optgen.launch.step_counters import StepCounters
from optgen.launch.work import Work

WIDEST = 16  # bytes of a GPU's widest access, and elements that lines of tiles are multiples of


@dataclass
class Recording:
    """The launches of a step, and what they depend on.

    `parts` and `signature` describe the tensors; `aligned` says on a GPU which are at multiples of 16 bytes.
    """

    name: str  # of the rule
    parts: list[Any]
    signature: list[Any]
    launches: list[Launch]
    guard: Guard
    aligned: np.ndarray | None
    counters: StepCounters | None
    one_call: OneCall | None = None  # the step in one call, where that can be

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets that are launched."""
        return [launch.bucket for launch in self.launches]

    def alignment_holds(self) -> bool:
        """Whether the same tensors as when recorded are aligned to 16 bytes, if that matters."""
        return self.aligned is None or np.array_equal(self.guard.addresses % WIDEST == 0, self.aligned)

    def warm(self, fixed: list[Tensor], free: list[Tensor], in_one_call: bool) -> None:
        """Compile guards and counters for few tensors, and if allowed the step as one call.

        The guard has just accepted these tensors.
        """
        warmed = guard(fixed, free, warm=True)
        if warmed.find(fixed, free) is None:  # it refuses what torch counts no versions for
            return
        # Launches compare `moves` with their own: a new guard must not seem to have moved anything.
        warmed.moves, self.guard = self.guard.moves, warmed
        if self.counters is not None:
            self.counters.warm()
            if in_one_call:
                self.one_call = OneCall.of(self.launches, warmed, self.counters.cells)
            if self.one_call is not None:
                self.one_call.compile(fixed, free)

    def refresh(self, moment: Moment) -> None:
        """Bring all tables up to date and compile what is launched: whatever can fail fails here."""
        for launch in self.launches:
            launch.refresh(moment, self.guard)
        if any(launch.plan.numbers for launch in self.launches):
            self._fill(moment)

    def _fill(self, moment: Moment) -> None:
        """Set the values that are one for the whole optimizer: states, inputs, and host values."""
        for launch in self.launches:
            host_values: dict[str, float | Tensor] = {}
            if launch.plan.onces:
                self._check_same_in_groups(launch.plan.onces, moment.groups)
                host_values = launch.bucket.once(moment.groups[0], moment.steps)
            names = (name for name in launch.plan.numbers if not name.startswith("@"))
            launch.fill(host_values | {name: moment.numbers[name] for name in names})

    def _check_same_in_groups(self, onces: Sequence[Node], groups: Sequence[Mapping[str, Any]]) -> None:
        """Check that groups agree on the options of values that are one for the whole optimizer."""
        for n in onces:
            names = sorted({x.value or "" for x in toposort([n]) if x.op is Op.HYPER})
            values = {name: [lookup(group, name) for group in groups] for name in names}
            for name, options in values.items():
                if not all(_same_option(x, options[0]) for x in options[1:]):
                    raise ValueError(
                        f"{self.name} has a value that is one for the whole optimizer and depends on "
                        f"{name}, so every group needs the same; they have {name} = "
                        f"{', '.join(map(str, options))}"
                    )

    def launch(self, moment: Moment) -> None:
        """Run all kernels, store host states, and count the step; signals must be deferred."""
        for launch in self.launches:
            launch.begin(moment)
        advance(self.launches)
        new_states: dict[str, float | Tensor] = {}
        for launch in self.launches:
            launch.end()
            for name, i in launch.plan.finals.items() if moment.numbers else ():
                new_states.setdefault(name, launch.number(f"@total{i}"))
        for name, value in new_states.items():
            moment.numbers[name].fill_(value)
        if self.counters is not None:
            self.counters.advance(moment.counters, moment.stop)
        if self.one_call is not None:
            plain = isinstance(moment.counts, float) and moment.stop is None
            self.one_call.count = float(moment.counts) if plain else None


@dataclass
class Ready:
    """A prepared step: only launches are left. `moves` are states whose data a converted copy replaces."""

    recording: Recording
    moment: Moment
    work: Sequence[Work] = ()  # kept for its tensors
    moves: Sequence[Move] = ()

    def launch(self) -> None:
        """Make the step; signals must be deferred."""
        for move in self.moves:
            # The optimizer's state keeps its tensor object; only its data is replaced.
            move.old.data = move.new
        self.recording.launch(self.moment)


def _same_option(a: Any, b: Any) -> bool:
    """Whether two options have the same value, tensors or not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and bool((a.cpu() == b.cpu()).all()))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        one_call, other = (a, b) if isinstance(a, Tensor) else (b, a)
        return one_call.numel() == 1 and bool(one_call.item() == other)
    return bool(a == b)


def part_key(w: Work) -> tuple[Any, ...]:
    """Everything about a parameter's part in a step but its tensors."""
    known = w.launched, w.grad is None, w.counter is None, w.counted, w.shard
    return w.facts, w.group, w.index, known, tuple(w.states), tuple(w.inputs)


def signature_of(w: Work) -> tuple[Any, ...]:
    """What a bucket and its tables depend on of a part's tensors, except addresses."""
    tensors = [w.param, *w.states.values(), *w.inputs.values(), *([] if w.grad is None else [w.grad])]
    counter = None if w.counter is None else w.counter.dtype
    return w.param.shape, w.param.device, counter, *((t.stride(), t.dtype) for t in tensors)


def signatures_of(work: Sequence[Work], offsets: Offsets, survey: Survey | None) -> list[Any]:
    """The signature of each part; with a survey, from one table for all.

    They compare equal within one process only. A survey is of all of `fixed_of` and `free_of`.
    """
    if survey is None:
        return [signature_of(w) for w in work]
    kinds = survey.kinds([*chain(*offsets), len(survey.rows)][1:])
    return list(zip(kinds[: len(work)], kinds[len(work) :], strict=True))


def sources_of(bucket: Bucket, work: Sequence[Work], offsets: Offsets) -> dict[str, np.ndarray]:
    """For each store and host state of a bucket, the indices of its members' tensors in the step."""
    starts, free_starts = (np.array(by_name, np.int64)[bucket.members] for by_name in offsets)
    first = work[bucket.members[0]]  # the others have the same stores
    by_name = {"p": starts, "g": starts if first.grad is None else free_starts}
    by_name |= {name: starts + 1 + k for k, name in enumerate(first.states)}
    by_name |= {name: free_starts + (first.grad is not None) + k for k, name in enumerate(first.inputs)}
    names = [name for name in bucket.layout.pointers if not name.startswith("#")]
    return {name: by_name[name] for name in dict.fromkeys([*names, *bucket.host_states])}


def increment_versions(work: Sequence[Work], moves: Sequence[Move], numbers: Sequence[Tensor]) -> None:
    """Increment the version counters of all tensors that the step writes; inference tensors may raise."""
    written = [*fixed_of(work), *(move.old for move in moves), *numbers]
    written += [w.owner for w in work if w.owner is not None]
    torch.autograd.graph.increment_version(written)


def counters_of(work: Sequence[Work], offsets: Offsets, addresses: np.ndarray) -> StepCounters | None:
    """The step counters; None if the caller counts by itself."""
    counters = [w.counter for w in work if w.counter is not None]
    if not counters:
        return None
    with_offsets = zip(work, offsets[0], strict=True)
    indices = [at + (1 + len(w.states)) * w.launched for w, at in with_offsets if w.counter is not None]
    return StepCounters(counters, addresses[indices], [w.counted for w in work])
