"""Dependence graph of a lowered program: the reductions that a node waits for, and its possible phases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from optgen.ir.extent import Extent
from optgen.ir.node import REDUCTIONS, Node, Op, node, rebuild, toposort
from optgen.ir.program import Program
from optgen.plan.codecs import CODECS, working
from optgen.plan.plan import Reduction, Step, buffer_of

MAX_PLACEMENTS = 64  # beyond these only the earliest and the latest places are tried
Item = str | int  # a store, or the slot of a reduction


@dataclass
class Graph:
    """A program whose reductions are replaced by slots, with the dependences between them.

    `values`: by element store its new value, by slot of a sweep the operand of its reduction.
    `required_slots`: by node, the slots that earlier sweeps must have filled. `coarse`: operands of
    reductions that need no sweep, of slices or over all tensors. `totals` number the values that are one
    for the whole optimizer; `names` are the rule's names for nodes.
    """

    codecs: Mapping[str, str]
    values: dict[Item, Node] = field(default_factory=dict)
    tensor: dict[str, Node] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    coarse: dict[int, Node] = field(default_factory=dict)
    totals: dict[Node, int] = field(default_factory=dict)
    finals: dict[str, Node] = field(default_factory=dict)
    required_slots: dict[Node, frozenset[int]] = field(default_factory=dict)
    names: dict[Node, str] = field(default_factory=dict)

    @staticmethod
    def of(program: Program, codecs: Mapping[str, str]) -> Graph:
        """Build the graph of a lowered program, with slots numbered by depth of nested reductions."""
        graph = Graph(codecs)
        order = toposort(program.assigns.values())
        level: dict[Node, int] = {}
        for n in order:
            level[n] = max((level[a] for a in n.args), default=0) + (n.op in REDUCTIONS)
        # A stable sort by depth: a slot only ever depends on slots with smaller numbers.
        reductions = sorted((n for n in order if n.op in REDUCTIONS), key=level.__getitem__)
        slot = {n: i for i, n in enumerate(reductions)}
        rewritten: dict[Node, Node] = {}
        operands: dict[int, Node] = {}
        for n in order:
            args = tuple(rewritten[a] for a in n.args)
            if n.extent > Extent.ALL or n in slot:
                args = tuple(graph.total(a) for a in args)
            new = rebuild(n, args)
            required = frozenset[int]().union(*(graph.required_slots[a] for a in args))
            if n in slot:
                operands[slot[n]] = new.args[0]
                # Only a reduction of elements needs a sweep; one of coarser values runs between sweeps.
                if n.args[0].extent is Extent.ELEMENT:
                    # What the operand waits for lies before this slot: `placements` places them in order.
                    required = frozenset([slot[n]])
                new = node(Op.SLOT, value=str(slot[n]), extent=n.extent)
            rewritten[n] = new
            graph.required_slots[new] = required
        for target, n in program.assigns.items():
            if target in codecs:
                graph.values[target] = graph.total(rewritten[n])
            elif program.states[target].extent is Extent.ALL:
                graph.finals[target] = rewritten[n]
                graph.total(rewritten[n])
            else:
                graph.tensor[target] = graph.total(rewritten[n])
        for i, n in enumerate(reductions):
            (graph.values if n.args[0].extent is Extent.ELEMENT else graph.coarse)[i] = operands[i]
        graph.ops = [n.op for n in reductions]
        graph.extents = [n.extent for n in reductions]
        graph.tags = [n.value or "" for n in reductions]
        graph.names = {rewritten[n]: name for n, name in program.names.items() if n in rewritten}
        return graph

    def total(self, n: Node) -> Node:
        """Replace a value that is one for the whole optimizer by a numbered TOTAL leaf."""
        if n.extent is not Extent.ALL or (n.op is Op.TOTAL and not (n.value or "").startswith("once")):
            return n
        leaf = node(Op.TOTAL, value=str(self.totals.setdefault(n, len(self.totals))), dtype=n.dtype)
        self.required_slots[leaf] = self.required_slots[n]
        return leaf

    def steps(self, placed: Mapping[Item, int], sweeps: Sequence[Step]) -> Iterator[Step]:
        """Order the steps: each sweep, and before it the reductions and globals that are ready by then."""
        # `number` counts rounds: names such as combine2 and total2 are unique over the plan.
        number, swept = 0, {r.slot: r for step in sweeps for r in step.reductions}
        ready = {i: self._earliest_phase(n, placed) for i, n in self.coarse.items()}
        ready |= {i: placed[i] + 1 for i in self.values if isinstance(i, int)}
        for boundary in range(len(sweeps) + 1):
            slots = sorted(i for i, b in ready.items() if b == boundary)
            pending = {n: i for n, i in self.totals.items() if self._earliest_phase(n, placed) == boundary}
            while slots or pending:
                ready_slots, totals = self._next_round(slots, pending)
                yield from self._reduction_steps(number, ready_slots, totals, swept)
                slots = [i for i in slots if i not in ready_slots]
                pending = {n: i for n, i in pending.items() if f"@total{i}" not in totals}
                number += 1
            yield from sweeps[boundary : boundary + 1]

    def _next_round(
        self, slots: Sequence[int], totals: Mapping[Node, int]
    ) -> tuple[list[int], dict[str, Node]]:
        """Pick the slots and totals that depend on no other pending one: they are computed next."""
        unavailable = {f"@total{i}" for i in totals.values()}
        unfilled = {f"@slot{i}" for i in slots}
        ready = []
        for i in slots:  # a slot needs those with smaller numbers only
            reads = set(map(buffer_of, toposort([self.coarse[i]]))) if i in self.coarse else set()
            if reads.isdisjoint(unavailable | unfilled):
                ready.append(i)
                unfilled.remove(f"@slot{i}")
        computable = [n for n in totals if unfilled.isdisjoint(map(buffer_of, toposort([n])))]
        return ready, {f"@total{totals[n]}": n for n in computable}

    def _reduction_steps(
        self, number: int, slots: Sequence[int], totals: Mapping[str, Node], swept: Mapping[int, Reduction]
    ) -> Iterator[Step]:
        """Finish partial sums, reduce slices, reduce over all tensors, then compute globals: one round."""
        if combined := tuple(swept[i] for i in slots if i not in self.coarse):
            yield Step("combine", f"combine{number}", reductions=combined)
        coarse = [
            Reduction(i, self.ops[i], self.coarse[i], self.extents[i], self.tags[i])
            for i in slots
            if i in self.coarse
        ]
        for r in coarse:
            if r.extent is not Extent.ALL:
                yield Step("slice_reduce", f"small{r.slot}", reductions=(r,))
        if over := tuple(r for r in coarse if r.extent is Extent.ALL):
            yield Step("global_reduce", f"over{number}", reductions=over)
        if totals:
            yield Step("global", f"total{number}", totals)

    @property
    def real(self) -> str:
        """Working precision, `fp32` or `fp64`."""
        return working(list(self.codecs.values()))

    @property
    def word(self) -> int:
        """Bytes of a number in working precision: what a spill moves per element, each way."""
        return CODECS[self.real].bytes

    @cached_property
    def order(self) -> list[Node]:
        """Every node in topological order, arguments first."""
        return toposort(self.values.values())

    @cached_property
    def windows(self) -> dict[Item, tuple[int, int]]:
        """Earliest and latest phase for each store and slot, in a schedule with the fewest phases."""
        first: dict[Item, int] = {}
        slots = sorted(item for item in self.values if isinstance(item, int))
        for slot in slots:  # a slot waits for those with smaller numbers only
            first[slot] = self._earliest_phase(self.values[slot], first)
        for item, n in self.values.items():
            first[item] = self._earliest_phase(n, first)
        final = max(first.values(), default=0)
        last: dict[Item, int] = dict.fromkeys(self.values, final)
        stores: list[Item] = [item for item in self.values if isinstance(item, str)]
        for item in [*stores, *reversed(slots)]:
            for slot in self.required_slots[self.values[item]]:
                last[slot] = min(last[slot], last[item] - 1)
        return {item: (first[item], last[item]) for item in self.values}

    def _earliest_phase(self, n: Node, placed: Mapping[Item, int]) -> int:
        """Earliest phase that can compute a node: after the last phase that fills a slot it needs."""
        return max((placed[slot] + 1 for slot in self.required_slots[n]), default=0)

    def ready(self, placed: Mapping[Item, int]) -> dict[Node, int]:
        """The earliest phase of each node, for slots placed like this."""
        return {n: self._earliest_phase(n, placed) for n in self.order}

    def placements(self) -> Iterator[dict[Item, int]]:
        """Assignments of stores and slots to phases, earliest first.

        Beyond `MAX_PLACEMENTS` only the earliest and the latest.
        """
        windows = [range(first, last + 1) for first, last in self.windows.values()]
        if math.prod(map(len, windows)) > MAX_PLACEMENTS:
            yield {item: first for item, (first, _) in self.windows.items()}
            windows = [window[-1:] for window in windows]
        for choice in product(*windows):
            placed = dict(zip(self.windows, choice, strict=True))
            if all(
                placed[slot] < placed[i] for i, n in self.values.items() for slot in self.required_slots[n]
            ):
                yield placed
