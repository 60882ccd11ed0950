"""What bounds a step: the bytes that its plan moves, and the same sweeps with next to no arithmetic.

In: an optimizer that has stepped. Out: the bytes of a step by the plans that its launcher made, never by a
constant here; and a `Roof`, which makes the same sweeps over tensors of its own. It is emitted, compiled and
divided over threads as kernels are. A sweep of it loads and stores what the plan's does, in the same dtypes,
but what it stores is a sum of what it has loaded, one addition a store (two where a sweep loads more than
twice what it stores), and a sweep that only loads adds up one sum. So it shows what memory gives these
streams, where STREAM's triad, which has three, shows what it gives others: fused AdamW of torch and of ours
move nearly twice as many bytes a second as the triad does.

Chunks are those of a rule without rows or columns, so a rule with them has to make up for its tiles.

Nothing else in benchmarks/ looks into plans and kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import torch

from optgen.backends import cache
from optgen.backends.layout import Layout
from optgen.backends.protocol import Kernel, Tables
from optgen.ir.extent import Extent
from optgen.ir.node import Node, Op, node
from optgen.launch.launcher import Launcher
from optgen.launch.work import CODEC_OF
from optgen.optim.optimizer import Optimizer
from optgen.plan.phases import element_stores
from optgen.plan.plan import Buffer, Plan, Reduction, Step

DTYPE_OF = {codec: dtype for dtype, codec in CODEC_OF.items()}


def plans(opt: Optimizer) -> list[tuple[Plan, int]]:
    """The plan and the number of elements of every parameter of an optimizer that has stepped."""
    launcher = Launcher(opt.program)
    found = []
    for group in opt.param_groups:
        for p in group["params"]:
            truths = launcher.compiler.facts(group, p.dim())
            program = launcher.compiler.specialised(truths)
            kept = {name: opt.state[p][s.key] for name, s in program.states.items() if s.key in opt.state[p]}
            tensors = {"p": p, "g": p.grad, **kept}
            stores = tuple(CODEC_OF[tensors.get(s, p).dtype] for s in element_stores(program))
            found.append((launcher.compiler.planned(truths, stores), p.numel()))
    return found


def planned_bytes(opt: Optimizer) -> int:
    """The bytes of one step: those of each parameter's plan, times its elements."""
    return sum(plan.bytes * elements for plan, elements in plans(opt))


class Roof:
    """The sweeps of an optimizer that has stepped, each a few additions; a call makes all of them.

    `sweep(k)` makes the k-th of every plan. All values are positive, so none becomes a subnormal, which is
    slow; some grow, with many calls to infinity, which is not.
    """

    def __init__(self, opt: Optimizer):
        found: dict[str, tuple[Plan, list[int]]] = {}
        for plan, elements in plans(opt):
            found.setdefault(plan.fingerprint(), (plan, []))[1].append(elements)
        self.parts = [Part(plan, numels) for plan, numels in found.values()]
        self.count = max(len(part.plan.sweeps) for part in self.parts)

    def __call__(self) -> None:
        """All sweeps, in the order of the plan."""
        for k in range(self.count):
            self.sweep(k)

    def sweep(self, k: int) -> None:
        """One sweep, of all tensors that have it."""
        for part in self.parts:
            if k < len(part.plan.sweeps):
                part.kernel.run(part.plan.sweeps[k], part.tables)


class Part:
    """Tensors of one plan: its sweeps with other arithmetic, and new tensors for them to run on."""

    def __init__(self, plan: Plan, numels: Sequence[int]):
        self.plan = bare(plan)
        layout = Layout(self.plan)
        self.kernel: Kernel = cache.kernel(self.plan, "cpu", "exact")
        kinds = {store: DTYPE_OF[self.plan.codecs.get(store, plan.real)] for store in layout.pointers}
        self.held = [{s: torch.full((n,), 1e-3, dtype=kind) for s, kind in kinds.items()} for n in numels]
        starts = [(i, s) for i, n in enumerate(numels) for s in range(0, n, self.kernel.chunk)]
        table = np.zeros((len(numels), layout.width), np.int64)
        for store in layout.pointers:
            table[:, layout.columns[store]] = [tensors[store].data_ptr() for tensors in self.held]
        table[:, layout.columns["@numel"]] = numels
        self.tables = Tables(
            tensors=table,
            chunks=np.array(starts, np.int64),
            scalars=np.zeros((1, 0), np.float64 if plan.real == "fp64" else np.float32),
            partials=np.zeros((len(starts), max(1, len(layout.partial)))),
            slots=np.zeros((len(numels), max(1, len(self.plan.extents)))),
            elements=sum(numels),
        )
        self.kernel.prepare(self.tables)


def bare(plan: Plan) -> Plan:
    """A plan with the loads and stores of each sweep, and nothing between the sweeps."""
    sums = [step.name for step in plan.sweeps if not step.values]
    steps = []
    for step in plan.sweeps:
        loads = [value(plan, s) for s in step.loads]
        if step.values:
            steps.append(replace(step, values=additions(plan, step), reductions=()))
        else:
            total = Reduction(sums.index(step.name), Op.SUM, reduce(add, loads), Extent.TENSOR)
            steps.append(replace(step, reductions=(total,)))
    buffers = [b for b in plan.buffers if b.role in ("spill", "store")]
    buffers += [Buffer(f"@slot{i}", "slot", Extent.TENSOR, "fp64") for i in range(len(sums))]
    return replace(
        plan,
        name=f"roof of {plan.name}",
        states={},
        buffers=tuple(buffers),
        steps=tuple(steps),
        scalars=(),
        onces=(),
        host={},
        finals={},
        names={},
    )


def additions(plan: Plan, step: Step) -> dict[str, Node]:
    """What to store: each store's own value, and those that are only loaded, dealt out to the stores."""
    only = [s for s in step.loads if s not in step.values] or list(step.loads)
    dealt: dict[str, list[str]] = {s: [s] if s in step.loads else [] for s in step.values}
    stores = list(step.values)
    for i in range(max(len(only), len(stores))):
        dealt[stores[i % len(stores)]].append(only[i % len(only)])
    return {s: reduce(add, [value(plan, name) for name in names]) for s, names in dealt.items()}


def add(a: Node, b: Node) -> Node:
    """Their sum."""
    return node(Op.ADD, a, b)


def value(plan: Plan, store: str) -> Node:
    """What a sweep loads from a store, which must be in working precision: to convert is arithmetic.

    Raises:
        ValueError: it is not.
    """
    if store.startswith("#"):
        return node(Op.SPILL, value=store)
    if plan.codecs[store] != plan.real:
        raise ValueError(
            f"there is a roof for stores of {plan.real} only, and {store} is {plan.codecs[store]}"
        )
    return node(Op.LOAD, value=store)
