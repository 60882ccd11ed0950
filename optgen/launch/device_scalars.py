"""Step scalars on the device, for when the host does not know the step: in CUDA graphs, or with GradScaler.

In: a bucket whose step counters are on the device. Out: its scalar table, filled there by one launch
(`backends.triton.step_scalars`) from counters, states and a table of hyperparameters, which is sent only
when one has changed. A hyperparameter that is a tensor on the device is read in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.backends import cache
from optgen.backends.triton import step_scalars
from optgen.ir.facts import lookup
from optgen.ir.node import Node, Op
from optgen.launch.uploads import refuse_in_capture
from optgen.passes.expand import spelled_out

Put = Callable[[np.ndarray], Tensor]
Fact = Callable[[int, str], float]  # of a row: a fact about its shape


class DeviceScalars:
    """Computes the same expressions for the same rows in every step."""

    def __init__(
        self, roots: Sequence[Node], results: Mapping[str, Node], real: str, device: torch.device, put: Put
    ):
        done = spelled_out([*roots, *results.values()])
        self.values = step_scalars.Values(
            tuple(done[: len(roots)]), dict(zip(results, done[len(roots) :], strict=True))
        )
        self.leaves, self.state_names = self.values.leaves, self.values.states
        source = step_scalars.emit(self.values, f"tl.{'float64' if real == 'fp64' else 'float32'}")
        self.module: ModuleType = cache.load(source, "prologue", "triton")
        self.real = torch.float64 if real == "fp64" else torch.float32
        self.device, self.put = device, put
        self.sent: dict[str, tuple[np.ndarray, Tensor]] = {}
        self.facts: dict[str, np.ndarray] = {}
        self.compiled: set[bool] = set()  # for which widths of counters

    def point(self, counters: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]]) -> None:
        """Set where counters and states are.

        Args:
            counters: each row's step counter, 0-d, all float32 or all float64, on the device.
            states: each row's states, 0-d, float64, on the device.
        """
        self.count, self.wide = len(counters), counters[0].dtype is torch.float64
        counter_addresses = np.array([c.data_ptr() for c in counters], np.int64)
        state_addresses = np.array(
            [[s[name].data_ptr() for name in self.state_names] for s in states], np.int64
        )
        self.pointer_tables = (
            self._send_table("counters", counter_addresses),
            self._send_table("states", state_addresses.reshape(self.count, -1)),
            self._send_table("rows", np.array([self.count], np.int64)),
        )

    def set(self, groups: Sequence[Mapping[str, Any]], rows: np.ndarray, fact: Fact) -> None:
        """Send the hyperparameters that `run` reads, and compile its kernel.

        Args:
            groups: hyperparameters.
            rows: each row's group.
            fact: a row's shape fact, by name; called once for each.

        Raises:
            ValueError: a hyperparameter is None that the rule needs.
        """
        self.hyper_table = self._hyper_table(groups, rows, fact)
        if self.wide not in self.compiled:
            self._launch(torch.zeros((), dtype=torch.float64, device=self.device), step_scalars.prepare)
            self.compiled.add(self.wide)

    def run(self, stop: Tensor) -> Tensor:
        """Compute every row, `real` [rows, roots]; states are updated if `stop`, 0-d float64, is 0."""
        return self._launch(stop, step_scalars.run)

    def empty(self) -> Tensor:
        """Allocate a table for the values of every row."""
        return torch.empty(self.count, max(1, len(self.values.roots)), dtype=self.real, device=self.device)

    def _launch(self, stop: Tensor, how: Callable[..., None]) -> Tensor:
        """Run or compile the kernel on the device, with a new output table."""
        counters, states, rows = self.pointer_tables
        out = self.empty()
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            how(self.module, (self.hyper_table, counters, states, stop, rows, out), self.count, self.wide)
        return out

    def _hyper_table(self, groups: Sequence[Mapping[str, Any]], rows: np.ndarray, fact: Fact) -> Tensor:
        """The table of hyperparameters and shape facts; those on the device are copied there."""
        table = np.zeros((len(rows), max(1, len(self.leaves))))
        on_device: list[tuple[int, int, Tensor]] = []
        for column, n in enumerate(self.leaves):
            path = n.value or ""
            if n.op is Op.SHAPE:
                if path not in self.facts:
                    self.facts[path] = np.array([fact(row, path) for row in range(len(rows))])
                table[:, column] = self.facts[path]
                continue
            for group in np.unique(rows):
                value = lookup(groups[group], path)
                if value is None:
                    raise ValueError(f"hyperparameter '{path}' is None, but the rule needs a number here")
                if isinstance(value, Tensor):
                    on_device.append((column, int(group), value))
                else:
                    table[rows == group, column] = float(value)
        sent = self._send_values(table)
        for column, group, value in on_device:
            where = self._send_table(f"rows of {group}", np.flatnonzero(rows == group))
            sent[where, column] = value.to(self.device, torch.float64)
        return sent

    def _send_table(self, name: str, table: np.ndarray) -> Tensor:
        """A table on the device, sent only if it differs from the last one of that name."""
        cached = self.sent.get(name)
        if cached is None or not np.array_equal(cached[0], table):
            cached = self.sent[name] = (
                table,
                self.put(table.copy() if table.size else np.zeros(1, np.int64)),
            )
        return cached[1]

    def _send_values(self, table: np.ndarray) -> Tensor:
        """The hyperparameter table, always at one address: captured CUDA graphs see later changes."""
        cached = self.sent.get("values")
        if cached is None or cached[0].shape != table.shape:
            return self._send_table("values", table)
        if not np.array_equal(cached[0], table):
            refuse_in_capture(self.device, "a hyperparameter")
            cached[1].copy_(torch.from_numpy(table), non_blocking=True)
            self.sent["values"] = table, cached[1]
        return cached[1]
