"""One step of the buckets: sweeps and rounds in order, sums over all tensors across buckets."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.backends import numpy as reference
from optgen.ir import Op
from optgen.launch.buckets import Bucket
from optgen.launch.work import Work, as_array
from optgen.plan import Round


class _Runner:
    """A bucket's part in one step: sweeps and rounds in order, each as soon as its totals are known."""

    def __init__(
        self,
        bucket: Bucket,
        work: Sequence[Work],
        values: np.ndarray,
        rows: np.ndarray,
        groups: Sequence[Mapping[str, Any]],
    ):
        self.bucket, self.plan, self.values, self.rows = bucket, bucket.plan, values, rows
        self.members = [work[m] for m in bucket.members]
        self.seeds = [int(groups[w.group].get("seed", 0)) for w in self.members] if self.plan.random else []
        self.acts: list[int | Round] = []
        for k in range(len(self.plan.phases) + 1):
            self.acts += [found for found in self.plan.rounds if found.boundary == k]
            self.acts += [k] if k < len(self.plan.phases) else []
        self.done = 0

    @property
    def next(self) -> int | Round | None:
        """What comes next, a phase or a round."""
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
    ):
        super().__init__(bucket, work, values, rows, groups)
        real = np.float64 if self.plan.real == "fp64" else np.float32
        with np.errstate(over="ignore"):
            bucket.tables.scalars = bucket.put(values.astype(real))
        self.keep = bucket.point(work, rows, self.seeds)

    def run(self, act: int | Round) -> None:
        """Launch a phase, or what completes the sums of a round for this bucket."""
        assert self.bucket.kernel is not None
        with _on(self.bucket.device):
            if isinstance(act, Round):
                self.bucket.kernel.gather(act, self.bucket.tables)
            else:
                self.bucket.kernel.sweep(act, self.bucket.tables)

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

    def fill(self, values: Mapping[str, float | Tensor]) -> None:
        """Set numbers that are one for the whole optimizer."""
        table, places = self.bucket.tables.numbers, self.plan.numbers
        if self.bucket.numpy_tables:
            for name, value in values.items():
                table[places[name]] = float(value)
            return
        tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
        plain = {name: v for name, v in values.items() if name not in tensors}
        if plain:
            where = torch.tensor([places[name] for name in plain]).to(table.device, non_blocking=True)
            what = torch.tensor(list(plain.values()), dtype=torch.float64).to(table.device, non_blocking=True)
            table.index_copy_(0, where, what)
        if tensors:
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
    ):
        super().__init__(bucket, work, values, rows, groups)
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
            self.runs.append(
                reference.Run(self.plan, stores, values[row], states, keys=keys, numbers=self.numbers)
            )

    def run(self, act: int | Round) -> None:
        """Run a phase, or what completes the sums of a round for this bucket."""
        if not isinstance(act, Round):
            for run in self.runs:
                run.sweep(act)
            return
        parts = [run.gather(act) for run in self.runs]
        for r in act.over:
            found = np.array([part[r.slot] for part in parts])
            self.numbers[self.plan.numbers[f"@slot{r.slot}"]] = found.sum() if r.op is Op.SUM else found.max()

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


def advance(runners: Sequence[Launch | Interpreted]) -> None:
    """Run every bucket to its end; a sum over all tensors waits for the part of each bucket that has one."""
    owners: dict[str, int] = {}
    for r in runners:
        for tag in r.tags:
            owners[tag] = owners.get(tag, 0) + 1
    parts: dict[str, list[float | Tensor]] = {tag: [] for tag in owners}
    pending: dict[int, Round] = {}
    left = list(range(len(runners)))
    while left:
        moved = False
        for i in list(left):
            r = runners[i]
            if i in pending:
                if any(len(parts[x.tag]) < owners[x.tag] for x in pending[i].over):
                    continue
                found = pending.pop(i)
                r.fill(
                    {f"@slot{x.slot}": _together(parts[x.tag], x.op) for x in found.over if owners[x.tag] > 1}
                )
                r.total(found)
            moved = True
            while r.next is not None and i not in pending:
                act, r.done = r.next, r.done + 1
                r.run(act)
                if isinstance(act, Round):
                    for x in act.over:
                        value = r.number(f"@slot{x.slot}")
                        parts[x.tag].append(value.clone() if isinstance(value, Tensor) else value)
                    pending[i] = act
            if r.next is None and i not in pending:
                left.remove(i)
        if not moved:
            raise RuntimeError(
                "tensors of two kinds wait for each other's sums: the rule reduces in another order"
            )


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
