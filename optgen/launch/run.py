"""Launch order: each bucket's steps, with reductions over all tensors completed across buckets.

With sharded tensors, partial reductions are completed by all processes before the next kernel reads them.
Buckets advance together for that, as far as each can, so that one collective serves all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.ir.node import Op
from optgen.launch.buckets import Bucket
from optgen.launch.dtensor import PartialValues, all_reduce
from optgen.launch.guards import Guard
from optgen.launch.step_counters import Cells
from optgen.launch.uploads import capturing, refuse_in_capture
from optgen.plan.plan import Step


@dataclass(slots=True)
class Moment:
    """What a step depends on besides its tensors.

    `counts` is the step number, one for all or one per part; `numbers` are the states and inputs that are one
    for the whole optimizer, which has made `steps` before. If `stop` is not 0, states that follow from counts
    on the device keep their values. `counters` are the step counters.
    """

    groups: Sequence[Mapping[str, Any]]
    counts: float | np.ndarray
    numbers: Mapping[str, Any]
    steps: float | Tensor
    stop: Tensor | None
    counters: Sequence[Tensor]


class Launch:
    """A bucket's part in a step: brings its tables up to date, and runs its kernels in order.

    Args:
        bucket: with its tables.
        guard: which has the current addresses of the tensors.
    """

    def __init__(self, bucket: Bucket, guard: Guard):
        self.bucket, self.plan = bucket, bucket.plan
        self.random, self.cuda = bucket.plan.random, bucket.device.type == "cuda"
        global_steps = [step for step in bucket.plan.steps if step.kind == "global_reduce"]
        # The sums over all tensors that this bucket has a part in.
        self.tags = {r.tag: r.op for step in global_steps for r in step.reductions}
        self.position = 0
        self.spills: list[Tensor] = []  # spills
        self.distributed = any(shard is not None for shard in bucket.shards)
        states = () if bucket.counted else bucket.host_states
        self.cells = {
            name: Cells(guard.addresses[bucket.sources[name]], np.ones(len(bucket.members), np.bool_))
            for name in states
        }
        # A table of scalars in the host's memory, and the same as C numbers: filled at once, with no warning.
        self.scalar_cells: tuple[np.ndarray, ctypes.Array[Any]] | None = None
        self._invalidate()

    # Before the first launch

    def _invalidate(self) -> None:
        """Mark everything in the tables as unknown, so that `refresh` writes it anew."""
        self.fresh = False  # whether the last refresh came to its end
        self.moves = -1  # how often free tensors had moved when their addresses were taken
        self.same_count = False  # whether rows are those of one count for all
        self.rows = np.empty(0, np.int64)  # of each member the row of its scalars
        self.firsts: list[int] = []  # of each row its first member,
        self.row_inputs: list[tuple[int, list[float]]] = []  # and its group, host states and shape facts
        self.sent: list[list[float]] = []  # the scalars

    def refresh(self, moment: Moment, guard: Guard) -> None:
        """Bring the bucket's tables up to date, and compile what is launched."""
        # A refresh that failed may have written some tables and not others.
        if not self.fresh:
            self._invalidate()
        bucket, self.fresh = self.bucket, False
        changed = self.moves < 0
        if bucket.counted:
            bucket.prepare_scalars(moment.groups)
        else:
            changed |= self._scalars(moment.groups, moment.counts)
        if self.random:
            changed |= self._random(moment)
        captured = capturing(bucket.device)  # a graph has a table of its own of what moves
        if captured or self.moves != guard.moves or self.plan.spills:
            self.spills = bucket.point(guard.addresses, self.moves >= 0)
            self.moves = -1 if captured else guard.moves
            changed = True
        if changed:
            bucket.send()
        if self.cuda:
            with torch.cuda.device(bucket.device):
                bucket.kernel.prepare(bucket.tables)
        else:
            bucket.kernel.prepare(bucket.tables)
        self.fresh = True

    def rescale(self, groups: Sequence[Mapping[str, Any]], count: float) -> bool:
        """Update the scalars for step `count`; False if more than scalars may be out of date.

        All members must have made one step less than `count`.
        """
        if not (self.fresh and self.same_count):
            return False
        self.fresh = False
        self._scalars(groups, count)
        self.fresh = True
        return True

    def _scalars(self, groups: Sequence[Mapping[str, Any]], counts: float | np.ndarray) -> bool:
        """Compute and send the scalars; returns whether members' rows changed."""
        bucket = self.bucket
        if not isinstance(counts, float):
            counts = counts[bucket.members]
        same_count = isinstance(counts, float) and not self.cells
        moved = not (same_count and self.same_count) and self._find_rows(counts, same_count)
        if isinstance(counts, float):
            wanted = [(groups[g], counts, inputs) for g, inputs in self.row_inputs]
        else:
            each = zip(self.row_inputs, counts[self.firsts].tolist(), strict=True)
            wanted = [(groups[g], step, inputs) for (g, inputs), step in each]
        rows = bucket.scalars.rows(wanted)
        # On a GPU an unchanged table is not uploaded. Texts tell -0.0 from 0.0, which compare equal.
        if bucket.numpy_tables or moved or rows != self.sent or str(rows) != str(self.sent):  # -0.0 too
            self.sent = rows
            self._send(rows)
        return moved

    def _find_rows(self, counts: float | np.ndarray, same_count: bool) -> bool:
        """Group members with equal scalars into rows; returns whether the rows changed."""
        bucket, facts = self.bucket, self.bucket.facts
        if self.cells:
            facts = facts.copy()
            for k, n in enumerate(bucket.scalars.facts):
                if n.op is Op.LOAD:
                    facts[:, k] = self.cells[n.value or ""].read()
        steps = np.full(len(bucket.members), counts) if isinstance(counts, float) else counts
        keys = np.column_stack([bucket.groups, steps, facts])
        moved = not len(self.rows) or not np.array_equal(keys, keys[self.firsts][self.rows])
        if moved:
            _, firsts, rows = np.unique(keys, axis=0, return_index=True, return_inverse=True)
            self.firsts, self.rows = firsts.tolist(), rows.reshape(-1)
            bucket.host[:, bucket.layout.columns["@row"]] = self.rows
        self.same_count = same_count
        row_inputs = zip(bucket.groups[self.firsts].tolist(), facts[self.firsts].tolist(), strict=True)
        self.row_inputs = list(row_inputs)
        return moved

    def _send(self, values: list[list[float]]) -> None:
        """Write rows of scalars into the table, in place if its shape is the same."""
        tables, cells = self.bucket.tables, self.scalar_cells
        count = len(values) * len(self.plan.scalars)
        if cells is not None and cells[0] is tables.scalars and len(cells[1]) == count:
            cells[1][:] = values[0] if len(values) == 1 else [*chain.from_iterable(values)]
            return
        real = np.float64 if self.plan.real == "fp64" else np.float32
        with np.errstate(over="ignore"):
            table = np.array(values, real).reshape(len(values), len(self.plan.scalars))
        tables.scalars = self.bucket.put(table)
        if self.bucket.numpy_tables:
            cell = ctypes.c_double if self.plan.real == "fp64" else ctypes.c_float
            self.scalar_cells = tables.scalars, (cell * count).from_buffer(tables.scalars)

    def _random(self, moment: Moment) -> bool:
        """Write the seeds and steps of random numbers."""
        bucket, columns, counts = self.bucket, self.bucket.layout.columns, moment.counts
        unsigned = [int(group.get("seed", 0)) & 0xFFFFFFFFFFFFFFFF for group in moment.groups]
        seeds = np.array(unsigned, np.uint64).view(np.int64)
        bucket.host[:, columns["@seed"]] = seeds[bucket.groups]
        if not bucket.counted:
            bucket.host[:, columns["@step"]] = counts if isinstance(counts, float) else counts[bucket.members]
        return True

    def fill(self, values: Mapping[str, float | Tensor]) -> None:
        """Set values that are one for the whole optimizer, by buffer."""
        table, columns = self.bucket.tables.numbers, self.plan.numbers
        if self.bucket.numpy_tables:
            for name, value in values.items():
                table[columns[name]] = float(value)
            return
        tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
        plain = {name: float(v) for name, v in values.items() if name not in tensors}
        filled = self.bucket.filled
        if any(filled.get(name) != v for name, v in plain.items()):
            refuse_in_capture(self.bucket.device, "a hyperparameter or number")
            indices = torch.tensor([columns[name] for name in plain]).to(table.device, non_blocking=True)
            numbers = torch.tensor(list(plain.values()), dtype=torch.float64).to(
                table.device, non_blocking=True
            )
            table.index_copy_(0, indices, numbers)
            filled.update(plain)
        if tensors:
            for name in tensors:
                filled.pop(name, None)
            torch._foreach_copy_([table[columns[name]] for name in tensors], list(tensors.values()))

    def number(self, name: str) -> float | Tensor:
        """A value that is one for the whole optimizer; on a device, a view."""
        value = self.bucket.tables.numbers[self.plan.numbers[name]]
        return float(value) if self.bucket.numpy_tables else value

    # The step

    @property
    def simple(self) -> bool:
        """Whether a replay needs no more than `rescale` and addresses, so that one call can make it."""
        bucket, plan = self.bucket, self.plan
        more = self.random or self.cuda or self.distributed or self.cells or plan.spills or plan.numbers
        return not (more or bucket.counted or bucket.in_place_cells)

    @property
    def next_step(self) -> Step | None:
        """The next step of the plan; None at its end."""
        return self.plan.steps[self.position] if self.position < len(self.plan.steps) else None

    def begin(self, moment: Moment) -> None:
        """Begin a step: reset what a failed one left, compute scalars on the device if counters are there."""
        bucket, self.position = self.bucket, 0
        if bucket.in_place_cells and not bucket.finished:
            bucket.reset_maxima()
        # Stays so if a kernel fails: the next step resets what this one left.
        bucket.finished = False
        if bucket.counted:
            bucket.count([moment.counters[m] for m in bucket.members], moment.stop)

    def run(self, step: Step) -> None:
        """Launch a step of the plan."""
        if self.cuda:  # Triton launches on the current device, whatever the tensors say
            with torch.cuda.device(self.bucket.device):
                self.bucket.kernel.run(step, self.bucket.tables)
        else:
            self.bucket.kernel.run(step, self.bucket.tables)

    def partial_values(self, step: Step) -> list[PartialValues]:
        """Values that a step left partial, as other processes hold further shards."""
        return self.bucket.partial_values(step.slots) if self.distributed and step.slots else []

    def end(self) -> None:
        """End a step: write the host states."""
        self.bucket.finished = True
        for name, n in self.plan.host.items() if self.cells else ():
            if n.op is Op.CONST:
                self.cells[name].write(np.full(len(self.rows), n.number))
            else:
                column = np.array([row[int(n.value or 0)] for row in self.sent])
                self.cells[name].write(column[self.rows])


def advance(launches: Sequence[Launch]) -> None:
    """Run all launches to their end; a reduction over all tensors waits for every bucket's part."""
    if len(launches) == 1 and not launches[0].distributed:  # nothing to wait for
        for each in launches[0].plan.steps:
            launches[0].run(each)
        return
    owners: dict[str, int] = {}
    for r in launches:
        for tag in r.tags:
            owners[tag] = owners.get(tag, 0) + 1
    parts: dict[str, list[float | Tensor]] = {tag: [] for tag in owners}
    pending: dict[int, Step] = {}
    unfinished = [i for i, r in enumerate(launches) if r.next_step is not None]
    while unfinished:
        ready = [
            i
            for i in unfinished
            if i not in pending or all(len(parts[x.tag]) == owners[x.tag] for x in pending[i].reductions)
        ]
        if not ready:
            raise RuntimeError(
                "tensors of two kinds wait for each other's sums: the rule reduces in another order"
            )
        partial_values: list[PartialValues] = []
        for i in ready:
            r = launches[i]
            waiting = pending.pop(i, None)
            if waiting is not None:
                several = [x for x in waiting.reductions if owners[x.tag] > 1]
                r.fill({f"@slot{x.slot}": _reduce_parts(parts[x.tag], x.op) for x in several})
            partial: list[PartialValues] = []
            ran = False
            while (step := r.next_step) is not None and i not in pending and not partial:
                if step.kind == "sweep" and ran:  # every bucket ends its phase before the next
                    break
                r.position, ran = r.position + 1, True
                r.run(step)
                partial = r.partial_values(step)
                if step.kind == "global_reduce":
                    pending[i] = step
                    for x in step.reductions:
                        value = r.number(f"@slot{x.slot}")
                        parts[x.tag].append(value.clone() if isinstance(value, Tensor) else value)
            partial_values += partial
            if r.next_step is None and i not in pending:
                unfinished.remove(i)
        if partial_values:
            all_reduce(partial_values)


def _reduce_parts(parts: Sequence[float | Tensor], op: Op) -> float | Tensor:
    """Reduce the parts of all buckets to one number, in their order."""
    tensors = [p for p in parts if isinstance(p, Tensor)]
    if not tensors:
        numbers = np.array(parts, np.float64)
        return float(numbers.sum() if op is Op.SUM else numbers.max())
    home = tensors[0].device
    stacked = torch.stack([torch.as_tensor(p, dtype=torch.float64, device=home) for p in parts])
    return stacked.sum() if op is Op.SUM else stacked.amax()
