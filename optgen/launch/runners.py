"""One step of the buckets: the steps of their plans in order, sums over all tensors across buckets.

Where tensors are divided over processes, what a kernel has reduced is completed by all of them before the
next one reads it. Buckets go on together for that, as far as each can, so that one collective serves all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from optgen.ir import Op
from optgen.launch.buckets import Bucket
from optgen.launch.door import Move
from optgen.launch.guards import Guard
from optgen.launch.sharding import Share, complete
from optgen.launch.uploads import refuse_in_capture
from optgen.launch.work import Work
from optgen.plan import Step


class Launch:
    """A bucket's part in one step: its plan's steps in order, each as soon as its totals are known."""

    def __init__(
        self,
        bucket: Bucket,
        work: Sequence[Work],
        values: np.ndarray,
        rows: np.ndarray,
        groups: Sequence[Mapping[str, Any]],
        addresses: np.ndarray,
    ):
        self.bucket, self.plan, self.values, self.rows = bucket, bucket.plan, values, rows
        self.work, self.members = work, [work[m] for m in bucket.members]
        self.divided = any(w.shard is not None for w in self.members)
        self.seeds = [int(groups[w.group].get("seed", 0)) for w in self.members] if self.plan.random else []
        self.done = 0  # steps
        self.pointed = -1  # how often gradients had moved when their addresses were sent
        self.sent: list[list[float]] = []
        if not bucket.counted:
            self._send(values)
        self.keep = bucket.point(work, addresses, rows, self.seeds)
        if bucket.counted:
            bucket.set_clock(work, groups)
        self.prepare()

    @property
    def next(self) -> Step | None:
        """What comes next."""
        return self.plan.steps[self.done] if self.done < len(self.plan.steps) else None

    @property
    def tags(self) -> dict[str, Op]:
        """The sums over all tensors that this bucket has a part in."""
        over = [step for step in self.plan.steps if step.kind == "global_reduce"]
        return {r.tag: r.op for step in over for r in step.reductions}

    def prepare(self) -> None:
        """Compile what is launched, so that nothing can fail after the first launch."""
        with _on(self.bucket.device):
            self.bucket.kernel.prepare(self.bucket.tables)

    def begin(self, stop: Tensor | None) -> None:
        """Compute on the device what follows from counts there: the first launch, where there is one."""
        if self.bucket.kept and not self.bucket.complete:
            self.bucket.clear()
        self.bucket.complete = False
        if self.bucket.counted:
            self.bucket.count([cast(Tensor, w.counter) for w in self.members], stop)

    def forget(self) -> None:
        """Keep what the next step of the same tensors needs, and none of them."""
        self.groups = self.groups  # which looks at members
        self.work = self.members = []

    def repeat(self) -> None:
        """Launch all, where there are no sums over other buckets or processes to wait for."""
        with _on(self.bucket.device):
            for step in self.plan.steps:
                self.bucket.kernel.run(step, self.bucket.tables)

    def run(self, step: Step) -> None:
        """Launch a step."""
        with _on(self.bucket.device):
            self.bucket.kernel.run(step, self.bucket.tables)

    def fits(self, guard: Guard) -> bool:
        """Whether a GPU can load gradients where they are now as it was compiled to."""
        if self.bucket.moving is None or self.pointed == guard.moves:
            return True
        return all((guard.addresses[at] % 16 == 0).all() for at in self.bucket.sources.values())

    def again(self, guard: Guard, groups: Sequence[Mapping[str, Any]], step: float) -> None:
        """Be ready for the next step of the same tensors, all of them at the same step.

        `guard` has just found them.
        """
        rows = self.bucket.scalars.rows([(groups[group], step, {}) for group in self.groups])
        if rows != self.sent:
            self.sent = rows
            self._send(rows)
        self.prepare()
        if self.pointed != guard.moves and self.bucket.layout.moving:
            self.bucket.point_again(guard.addresses)
        self.pointed = guard.moves

    def _send(self, values: Any) -> None:
        real = np.float64 if self.plan.real == "fp64" else np.float32
        known, shape = self.bucket.tables.scalars, (len(values), len(self.plan.scalars))
        with np.errstate(over="ignore"):
            if self.bucket.numpy_tables and known is not None and known.shape == shape:
                known[:] = values
            else:
                self.bucket.tables.scalars = self.bucket.put(np.array(values, real).reshape(shape))

    @cached_property
    def groups(self) -> list[int]:
        """The group that each row of the scalars is for."""
        found = dict(zip(self.rows.tolist(), (w.group for w in self.members), strict=True))
        return [found[row] for row in range(len(self.values))]

    def shares(self, step: Step) -> list[Share]:
        """What a step has left of which other processes have more."""
        return self.bucket.shares(self.work, step.slots) if self.divided and step.slots else []

    def fill(self, values: Mapping[str, float | Tensor]) -> None:
        """Set numbers that are one for the whole optimizer."""
        table, places = self.bucket.tables.numbers, self.plan.numbers
        if self.bucket.numpy_tables:
            for name, value in values.items():
                table[places[name]] = float(value)
            return
        tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
        plain = {name: float(v) for name, v in values.items() if name not in tensors}
        filled = self.bucket.filled
        if any(filled.get(name) != v for name, v in plain.items()):
            refuse_in_capture(self.bucket.device, "a hyperparameter or number")
            filled.update(plain)
            where = torch.tensor([places[name] for name in plain]).to(table.device, non_blocking=True)
            what = torch.tensor(list(plain.values()), dtype=torch.float64).to(table.device, non_blocking=True)
            table.index_copy_(0, where, what)
        if tensors:
            for name in tensors:
                filled.pop(name, None)
            torch._foreach_copy_([table[places[name]] for name in tensors], list(tensors.values()))

    def number(self, name: str) -> float | Tensor:
        """One of those numbers: where the device has it, a view."""
        found = self.bucket.tables.numbers[self.plan.numbers[name]]
        return float(found) if self.bucket.numpy_tables else found


@dataclass
class Ready:
    """A step up to its first launch.

    `moves` are states that kernels will have in other memory; `numbers` those that are one for the whole
    optimizer; `guard` knows the tensors.
    """

    runners: list[Launch]
    work: Sequence[Work]
    moves: Sequence[Move]
    numbers: Mapping[str, Any]
    stop: Tensor | None
    guard: Guard

    def launch(self) -> list[Launch]:
        """Make the step, bucket by bucket; call it where no signal interrupts. Returns what was run."""
        for move in self.moves:
            move.old.data = move.new
        for r in self.runners:
            r.begin(self.stop)
        advance(self.runners)
        for r in self.runners:
            r.bucket.complete = True
        kept: dict[str, float | Tensor] = {}
        for r in self.runners if self.numbers else ():
            for name, i in r.plan.finals.items():
                kept.setdefault(name, r.number(f"@total{i}"))
        for name, value in kept.items():
            self.numbers[name].fill_(value)
        self._store_host_states()
        return self.runners

    def _store_host_states(self) -> None:
        for r in self.runners:
            for name, n in () if r.bucket.counted else r.plan.host.items():
                for w, row in zip(r.members, r.rows, strict=True):
                    value = n.number if n.op is Op.CONST else r.values[row, int(n.value or 0)]
                    w.states[name].fill_(float(value))


def advance(runners: Sequence[Launch]) -> None:
    """Run every bucket to its end; a sum over all tensors waits for the part of each bucket that has one."""
    owners: dict[str, int] = {}
    for r in runners:
        for tag in r.tags:
            owners[tag] = owners.get(tag, 0) + 1
    parts: dict[str, list[float | Tensor]] = {tag: [] for tag in owners}
    pending: dict[int, Step] = {}
    left = [i for i, r in enumerate(runners) if r.next is not None]
    while left:
        ready = [
            i
            for i in left
            if i not in pending or all(len(parts[x.tag]) == owners[x.tag] for x in pending[i].reductions)
        ]
        if not ready:
            raise RuntimeError(
                "tensors of two kinds wait for each other's sums: the rule reduces in another order"
            )
        shares: list[Share] = []
        for i in ready:
            r = runners[i]
            found = pending.pop(i, None)
            if found is not None:
                several = [x for x in found.reductions if owners[x.tag] > 1]
                r.fill({f"@slot{x.slot}": _together(parts[x.tag], x.op) for x in several})
            ours: list[Share] = []
            ran = False
            while (step := r.next) is not None and i not in pending and not ours:
                if step.kind == "sweep" and ran:  # every bucket ends its phase before the next
                    break
                r.done, ran = r.done + 1, True
                r.run(step)
                ours = r.shares(step)
                if step.kind == "global_reduce":
                    pending[i] = step
                    for x in step.reductions:
                        value = r.number(f"@slot{x.slot}")
                        parts[x.tag].append(value.clone() if isinstance(value, Tensor) else value)
            shares += ours
            if r.next is None and i not in pending:
                left.remove(i)
        if shares:
            complete(shares)


def _together(parts: Sequence[float | Tensor], op: Op) -> float | Tensor:
    """The parts of all buckets as one number, in their order."""
    tensors = [p for p in parts if isinstance(p, Tensor)]
    if not tensors:
        numbers = np.array(parts, np.float64)
        return float(numbers.sum() if op is Op.SUM else numbers.max())
    home = tensors[0].device
    together = torch.stack([torch.as_tensor(p, dtype=torch.float64, device=home) for p in parts])
    return together.sum() if op is Op.SUM else together.amax()


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
