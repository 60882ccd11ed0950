"""A program as a planner sees it: what must be placed, and in which phases each item may lie."""

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
    """A program whose reductions are replaced by slots, and what that makes of its order.

    `values` has what each element store holds after the step, and what each slot that a sweep fills
    reduces; `waits` has the slots that a node needs from sweeps before it. `small` are the reductions
    that need no sweep: of slices, and over all tensors. `totals` number the values that are one for the
    whole optimizer; `names` are the rule's.
    """

    codecs: Mapping[str, str]
    values: dict[Item, Node] = field(default_factory=dict)
    tensor: dict[str, Node] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    small: dict[int, Node] = field(default_factory=dict)
    totals: dict[Node, int] = field(default_factory=dict)
    finals: dict[str, Node] = field(default_factory=dict)
    waits: dict[Node, frozenset[int]] = field(default_factory=dict)
    names: dict[Node, str] = field(default_factory=dict)

    @staticmethod
    def of(program: Program, codecs: Mapping[str, str]) -> Graph:
        """The graph of a lowered program; slots are numbered in the order in which they can be filled."""
        graph = Graph(codecs)
        order = toposort(program.assigns.values())
        level: dict[Node, int] = {}
        for n in order:
            level[n] = max((level[a] for a in n.args), default=0) + (n.op in REDUCTIONS)
        reductions = sorted((n for n in order if n.op in REDUCTIONS), key=level.__getitem__)
        slot = {n: i for i, n in enumerate(reductions)}
        done: dict[Node, Node] = {}
        operands: dict[int, Node] = {}
        for n in order:
            args = tuple(done[a] for a in n.args)
            if n.extent > Extent.ALL or n in slot:
                args = tuple(graph.total(a) for a in args)
            new = rebuild(n, args)
            needs = frozenset[int]().union(*(graph.waits[a] for a in args))
            if n in slot:
                operands[slot[n]] = new.args[0]
                if n.args[0].extent is Extent.ELEMENT:
                    # What the operand waits for lies before this slot: `placements` places them in order.
                    needs = frozenset([slot[n]])
                new = node(Op.SLOT, value=str(slot[n]), extent=n.extent)
            done[n] = new
            graph.waits[new] = needs
        for target, n in program.assigns.items():
            if target in codecs:
                graph.values[target] = graph.total(done[n])
            elif program.states[target].extent is Extent.ALL:
                graph.finals[target] = done[n]
                graph.total(done[n])
            else:
                graph.tensor[target] = graph.total(done[n])
        for i, n in enumerate(reductions):
            (graph.values if n.args[0].extent is Extent.ELEMENT else graph.small)[i] = operands[i]
        graph.ops = [n.op for n in reductions]
        graph.extents = [n.extent for n in reductions]
        graph.tags = [n.value or "" for n in reductions]
        graph.names = {done[n]: name for n, name in program.names.items() if n in done}
        return graph

    def total(self, n: Node) -> Node:
        """The leaf that stands for a value that is one for the whole optimizer; others as they are."""
        if n.extent is not Extent.ALL or (n.op is Op.TOTAL and not (n.value or "").startswith("once")):
            return n
        leaf = node(Op.TOTAL, value=str(self.totals.setdefault(n, len(self.totals))), dtype=n.dtype)
        self.waits[leaf] = self.waits[n]
        return leaf

    def steps(self, placed: Mapping[Item, int], sweeps: Sequence[Step]) -> Iterator[Step]:
        """The sweeps in order, and after each the reductions and globals that it completes."""
        number, swept = 0, {r.slot: r for step in sweeps for r in step.reductions}
        ready = {i: self._after(n, placed) for i, n in self.small.items()}
        ready |= {i: placed[i] + 1 for i in self.values if isinstance(i, int)}
        for boundary in range(len(sweeps) + 1):
            slots = sorted(i for i, b in ready.items() if b == boundary)
            wanted = {n: i for n, i in self.totals.items() if self._after(n, placed) == boundary}
            while slots or wanted:
                now, totals = self._round(slots, wanted)
                yield from self._between(number, now, totals, swept)
                slots = [i for i in slots if i not in now]
                wanted = {n: i for n, i in wanted.items() if f"@total{i}" not in totals}
                number += 1
            yield from sweeps[boundary : boundary + 1]

    def _round(self, slots: Sequence[int], wanted: Mapping[Node, int]) -> tuple[list[int], dict[str, Node]]:
        """The slots and totals still to be computed that depend on no other pending total."""
        pending = {f"@total{i}" for i in wanted.values()}
        left = {f"@slot{i}" for i in slots}
        now = []
        for i in slots:  # a slot needs those with smaller numbers only
            needs = set(map(buffer_of, toposort([self.small[i]]))) if i in self.small else set()
            if needs.isdisjoint(pending | left):
                now.append(i)
                left.remove(f"@slot{i}")
        computable = [n for n in wanted if left.isdisjoint(map(buffer_of, toposort([n])))]
        return now, {f"@total{wanted[n]}": n for n in computable}

    def _between(
        self, number: int, slots: Sequence[int], totals: Mapping[str, Node], swept: Mapping[int, Reduction]
    ) -> Iterator[Step]:
        """The steps that complete these slots and compute these totals, in order."""
        if combined := tuple(swept[i] for i in slots if i not in self.small):
            yield Step("combine", f"combine{number}", reductions=combined)
        small = [
            Reduction(i, self.ops[i], self.small[i], self.extents[i], self.tags[i])
            for i in slots
            if i in self.small
        ]
        for r in small:
            if r.extent is not Extent.ALL:
                yield Step("slice_reduce", f"small{r.slot}", reductions=(r,))
        if over := tuple(r for r in small if r.extent is Extent.ALL):
            yield Step("global_reduce", f"over{number}", reductions=over)
        if totals:
            yield Step("global", f"total{number}", totals)

    @property
    def real(self) -> str:
        """The working precision."""
        return working(list(self.codecs.values()))

    @property
    def word(self) -> int:
        """Bytes of a number in working precision."""
        return CODECS[self.real].bytes

    @cached_property
    def order(self) -> list[Node]:
        """Every node, arguments first."""
        return toposort(self.values.values())

    @cached_property
    def windows(self) -> dict[Item, tuple[int, int]]:
        """The first and the last phase that could write a store or fill a slot, of the fewest phases."""
        first: dict[Item, int] = {}
        slots = sorted(item for item in self.values if isinstance(item, int))
        for slot in slots:  # a slot waits for those with smaller numbers only
            first[slot] = self._after(self.values[slot], first)
        for item, n in self.values.items():
            first[item] = self._after(n, first)
        final = max(first.values(), default=0)
        last: dict[Item, int] = dict.fromkeys(self.values, final)
        stores: list[Item] = [item for item in self.values if isinstance(item, str)]
        for item in [*stores, *reversed(slots)]:
            for slot in self.waits[self.values[item]]:
                last[slot] = min(last[slot], last[item] - 1)
        return {item: (first[item], last[item]) for item in self.values}

    def _after(self, n: Node, placed: Mapping[Item, int]) -> int:
        """The first phase that can compute a node."""
        return max((placed[slot] + 1 for slot in self.waits[n]), default=0)

    def ready(self, placed: Mapping[Item, int]) -> dict[Node, int]:
        """The first phase that can compute each node."""
        return {n: self._after(n, placed) for n in self.order}

    def placements(self) -> Iterator[dict[Item, int]]:
        """Ways to say which phase writes each store and fills each slot, early ones first."""
        windows = [range(first, last + 1) for first, last in self.windows.values()]
        if math.prod(map(len, windows)) > MAX_PLACEMENTS:
            yield {item: first for item, (first, _) in self.windows.items()}
            windows = [window[-1:] for window in windows]
        for choice in product(*windows):
            placed = dict(zip(self.windows, choice, strict=True))
            if all(placed[slot] < placed[i] for i, n in self.values.items() for slot in self.waits[n]):
                yield placed
