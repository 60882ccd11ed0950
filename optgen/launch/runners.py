"""One step of the buckets: sweeps and rounds in order, sums over all tensors across buckets.

Where tensors are divided over processes, what a kernel has reduced is completed by all of them before the
next one reads it. Buckets go on together for that, as far as each can, so that one collective serves all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from optgen.backends import numpy as reference
from optgen.ir import Op
from optgen.launch.buckets import Bucket
from optgen.launch.door import Move
from optgen.launch.guards import Guard
from optgen.launch.sharding import Share, complete
from optgen.launch.uploads import refuse_in_capture
from optgen.launch.work import Work, as_array
from optgen.plan import Plan, Reduction, Round


@dataclass(frozen=True)
class Act:
    """What a bucket does next, by the name of the kernel's method, and the slots that it completes.

    Before a total every bucket waits for those that have a part in it.
    """

    name: str
    what: int | Round | Reduction
    slots: tuple[int, ...] = ()


def acts_of(plan: Plan) -> Iterator[Act]:
    """The acts of a plan, in order: before a phase come the parts of its rounds."""
    for k in range(len(plan.phases) + 1):
        for found in plan.rounds:
            if found.boundary == k:
                if found.sweeps:
                    yield Act("combine", found, found.sweeps)
                for r in found.small:
                    yield Act("small", r, (r.slot,))
                if found.over:
                    yield Act("over", found)
                yield Act("total", found)
        if k < len(plan.phases):
            yield Act("sweep", k)


class _Runner:
    """A bucket's part in one step: sweeps and rounds in order, each as soon as its totals are known."""

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
        self.members = [work[m] for m in bucket.members]
        self.divided = any(w.shard is not None for w in self.members)
        self.seeds = [int(groups[w.group].get("seed", 0)) for w in self.members] if self.plan.random else []
        self.acts = list(acts_of(self.plan))
        self.done = 0

    @property
    def next(self) -> Act | None:
        """What comes next."""
        return self.acts[self.done] if self.done < len(self.acts) else None

    @property
    def tags(self) -> dict[str, Op]:
        """The sums over all tensors that this bucket has a part in."""
        return {r.tag: r.op for found in self.plan.rounds for r in found.over}


class Launch(_Runner):
    """A bucket whose kernel is launched."""

    def __init__(
        self,
        bucket: Bucket,
        work: Sequence[Work],
        values: np.ndarray,
        rows: np.ndarray,
        groups: Sequence[Mapping[str, Any]],
        addresses: np.ndarray,
    ):
        super().__init__(bucket, work, values, rows, groups, addresses)
        self.work = work
        self.pointed = -1  # how often gradients had moved when their addresses were sent
        self.sent: list[list[float]] = []
        self.calls: list[tuple[str, Any]] = []
        if not bucket.counted:
            self._send(values)
        self.keep = bucket.point(work, addresses, rows, self.seeds)
        if bucket.counted:
            bucket.set_clock(work, groups)
        self.prepare()

    def prepare(self) -> None:
        """Compile what is launched, so that nothing can fail after the first launch."""
        assert self.bucket.kernel is not None
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
        self.calls = [(act.name, act.what) for act in self.acts if act.name != "total"]

    def repeat(self) -> None:
        """Launch all, where there are no sums over other buckets or processes to wait for."""
        assert self.bucket.kernel is not None
        with _on(self.bucket.device):
            for name, what in self.calls:
                getattr(self.bucket.kernel, name)(what, self.bucket.tables)
            if self.plan.finish:
                self.bucket.kernel.finish(self.bucket.tables)

    def run(self, act: Act) -> None:
        """Launch what an act names."""
        with _on(self.bucket.device):
            getattr(self.bucket.kernel, act.name)(act.what, self.bucket.tables)

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

    def shares(self, act: Act) -> list[Share]:
        """What an act has left of which other processes have more."""
        return self.bucket.shares(self.work, act.slots) if self.divided and act.slots else []

    def total(self, act: Round) -> None:
        """Compute the totals of a round."""
        assert self.bucket.kernel is not None
        if act.totals:
            with _on(self.bucket.device):
                self.bucket.kernel.total(act, self.bucket.tables)

    def finish(self) -> None:
        """Write the new states of tensors and slices."""
        assert self.bucket.kernel is not None
        if self.plan.finish:
            with _on(self.bucket.device):
                self.bucket.kernel.finish(self.bucket.tables)
        self.bucket.complete = True

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


class Interpreted(_Runner):
    """A bucket that the reference runs, tensor by tensor."""

    def __init__(
        self,
        bucket: Bucket,
        work: Sequence[Work],
        values: np.ndarray,
        rows: np.ndarray,
        groups: Sequence[Mapping[str, Any]],
        addresses: np.ndarray,
    ):
        super().__init__(bucket, work, values, rows, groups, addresses)
        self.numbers = np.zeros(len(self.plan.numbers))
        self.runs = []
        for i, (w, row) in enumerate(zip(self.members, rows, strict=True)):
            keys = {}
            if self.plan.random:
                seed = self.seeds[i] & 0xFFFFFFFFFFFFFFFF
                keys = {
                    "seed_low": seed & 0xFFFFFFFF,
                    "seed_high": seed >> 32,
                    "param": w.index,
                    "step": int(w.step),
                }
            stores = {s: as_array(w.tensor(s)) for s in self.plan.codecs if s != "g" or w.grad is not None}
            states = {s: as_array(w.states[s]) for s in self.plan.tensor_states}
            states = {s: a.reshape(-1) if self.plan.states[s].extent.sliced else a for s, a in states.items()}
            places = w.shard.places if self.plan.random and w.shard is not None else None
            self.runs.append(
                reference.Run(
                    self.plan, stores, values[row], states, keys=keys, numbers=self.numbers, places=places
                )
            )

    def begin(self, stop: Tensor | None) -> None:
        """The host has all that the reference needs."""

    def run(self, act: Act) -> None:
        """Run what an act names."""
        if isinstance(act.what, int):
            for run in self.runs:
                run.sweep(act.what)
        elif isinstance(act.what, Reduction):
            for run in self.runs:
                run.small(act.what)
        elif act.name == "over":
            parts = [run.over(act.what) for run in self.runs]
            for r in act.what.over:
                found = np.array([part[r.slot] for part in parts])
                self.numbers[self.plan.numbers[f"@slot{r.slot}"]] = (
                    found.sum() if r.op is Op.SUM else found.max()
                )

    def shares(self, act: Act) -> list[Share]:
        """What an act has left of which other processes have more."""
        found = []
        for w, run in zip(self.members, self.runs, strict=True):
            for slot in act.slots:
                reduction = self.plan.reductions[slot]
                dims = () if w.shard is None else w.shard.apart(reduction)
                if w.shard is not None and dims:
                    values = run.slots[str(slot)] = np.array(run.slots[str(slot)], np.float64)
                    at = np.arange(values.size)
                    keys = np.stack([np.full_like(at, w.index), np.full_like(at, slot), at], axis=1)
                    empty = np.full(len(at), not w.param.numel())
                    flat, where = torch.from_numpy(values).view(-1), torch.from_numpy(at)
                    found.append(Share(flat, where, keys, empty, reduction.op, w.shard.mesh, dims))
        return found

    def total(self, act: Round) -> None:
        """Compute the totals of a round."""
        reference.total(self.plan, act, self.numbers)

    def finish(self) -> None:
        """Write the new states of tensors and slices."""
        for run in self.runs:
            run.finish()

    def fill(self, values: Mapping[str, float | Tensor]) -> None:
        """Set numbers that are one for the whole optimizer."""
        for name, value in values.items():
            self.numbers[self.plan.numbers[name]] = float(value)

    def number(self, name: str) -> float | Tensor:
        """One of those numbers."""
        return float(self.numbers[self.plan.numbers[name]])


Runner = Launch | Interpreted


@dataclass
class Ready:
    """A step up to its first launch.

    `moves` are states that kernels will have in other memory; `numbers` those that are one for the whole
    optimizer; `guard` knows the tensors.
    """

    runners: list[Runner]
    work: Sequence[Work]
    moves: Sequence[Move]
    numbers: Mapping[str, Any]
    stop: Tensor | None
    guard: Guard

    def launch(self) -> list[Runner]:
        """Make the step, bucket by bucket; call it where no signal interrupts. Returns what was run."""
        for move in self.moves:
            move.old.data = move.new
        for r in self.runners:
            r.begin(self.stop)
        advance(self.runners)
        for r in self.runners:
            r.finish()
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


def advance(runners: Sequence[Runner]) -> None:
    """Run every bucket to its end; a sum over all tensors waits for the part of each bucket that has one."""
    owners: dict[str, int] = {}
    for r in runners:
        for tag in r.tags:
            owners[tag] = owners.get(tag, 0) + 1
    parts: dict[str, list[float | Tensor]] = {tag: [] for tag in owners}
    pending: dict[int, Round] = {}
    left = list(range(len(runners)))
    while left:
        ready = [
            i
            for i in left
            if i not in pending or all(len(parts[x.tag]) == owners[x.tag] for x in pending[i].over)
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
                r.fill(
                    {f"@slot{x.slot}": _together(parts[x.tag], x.op) for x in found.over if owners[x.tag] > 1}
                )
                r.total(found)
            ours: list[Share] = []
            while (act := r.next) is not None and i not in pending and not ours:
                r.done += 1
                if isinstance(act.what, Round) and act.name == "total":
                    pending[i] = act.what
                    continue
                r.run(act)
                ours = r.shares(act)
                if isinstance(act.what, Round) and act.name == "over":
                    for x in act.what.over:
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
