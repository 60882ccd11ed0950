"""One assignment of stores and reductions to phases, with its cheapest loads and spills."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from itertools import chain, combinations

from optgen.ir.extent import Extent
from optgen.ir.node import DType, Node, Op, const, node, rebuild, toposort
from optgen.ir.semantics import constant
from optgen.plan.codecs import CODECS
from optgen.plan.graph import Graph, Item
from optgen.plan.min_cut import above, minimum_cut
from optgen.plan.plan import Reduction, Step

MAX_EXTRA = 4  # loads that a phase could add for the sake of spills; beyond these it adds none


class Candidate:
    """A placement with the cheapest cut for each phase; spills are considered only if `extra` is given.

    `extra` has further loads for a phase, so that it can spill a value that it could not compute otherwise.
    `shared` prices a new spill as if all later phases would read it too, not the current one alone.
    `reads`: by phase the nodes that it loads, and from which store or spill. `spilled`: the number of each
    spill, and the phase that writes it.
    """

    def __init__(
        self,
        graph: Graph,
        placed: Mapping[Item, int],
        extra: Mapping[int, Collection[Node]] | None = None,
        shared: bool = False,
    ):
        self.graph, self.placed, self.extra, self.shared = graph, placed, extra, shared
        self.last = max(placed.values(), default=-1)
        self.ready = graph.ready(placed)
        self.reads: list[dict[Node, str]] = []
        self.computable: list[set[Node]] = []
        self.spilled: dict[Node, tuple[int, int]] = {}
        self.names: dict[Node, str] = {}
        self.sweeps: tuple[Step, ...] = ()
        self.cost: tuple[float, int] = (math.inf, 0)
        if all(self._cut(k) for k in range(self.last + 1)):
            self.sweeps = tuple(self._sweep(k) for k in range(self.last + 1))
            self.cost = (sum(step.bytes for step in self.sweeps), len(self.spilled))

    def with_spills(self) -> Iterator[Candidate]:
        """The same placement with spills, for every set of extra loads in early phases."""
        if self.sweeps and sum(step.bytes for step in self.sweeps[1:]) <= 2 * self.graph.word:
            return  # to write a spill and read it back costs as much as all that it could save
        loads = [n for n in self.graph.order if n.op is Op.LOAD and n.extent is Extent.ELEMENT]
        missing = [
            (k, n)
            for k, reads in enumerate(self.reads[: self.last])
            for n in loads
            if n in self._available(k) and n not in reads
        ]
        if len(missing) > MAX_EXTRA:
            missing = []
        for chosen in chain.from_iterable(combinations(missing, size) for size in range(len(missing) + 1)):
            extra = {k: [n for j, n in chosen if j == k] for k in range(self.last)}
            for shared in (False, True)[: self.last]:
                yield Candidate(self.graph, self.placed, extra, shared)

    def _available(self, k: int) -> dict[Node, str]:
        """Nodes that phase k can load, each with the cheapest store that holds it then."""
        available: dict[Node, str] = {}
        for s in self.graph.codecs:
            # Not yet overwritten: the store still holds the value from before the step.
            if self.placed.get(s, k) >= k:
                available.setdefault(node(Op.LOAD, value=s), s)
        for s, codec in self.graph.codecs.items():
            # Already written: usable only if storage is lossless, as a name means the unrounded value.
            if self.placed.get(s, k) < k and CODECS[codec].lossless(self.graph.real):
                n = self.graph.values[s]
                if n not in available or self._bytes(available[n]) > self._bytes(s):
                    available[n] = s
        return available

    def _cut(self, k: int) -> bool:
        """Choose the loads of phase k by a minimum cut, and the spills that earlier phases write for it.

        False if it needs a value that no store holds any more.
        """
        roots = [n for i, n in self.graph.values.items() if self.placed[i] == k]
        roots = [n for n in roots if n.extent is Extent.ELEMENT]
        order = [n for n in toposort(roots) if n.extent is Extent.ELEMENT]
        available, extra = self._available(k), (self.extra or {}).get(k, ())
        # Thousandths of a byte, as readers share a write; the + 1 below prefers a load to a spill.
        price = {n: 0 if n in extra else 1000 * self._bytes(available[n]) for n in order if n in available}
        writer: dict[Node, int] = {}
        for n in order if self.extra is not None else ():
            phases = (j for j in range(self.ready[n], k) if n in self.computable[j])
            phase = self.spilled[n][1] if n in self.spilled else next(phases, None)
            if phase is not None and n.dtype is DType.REAL and n not in available:
                writer[n] = phase
                readers = 1 + (self.last - k if self.shared else 0)
                write = 0 if n in self.spilled else 1000 * self.graph.word // readers
                price[n] = 1000 * self.graph.word + write + 1
        cut = minimum_cut(order, roots, price)
        if cut is None:
            return False
        reads = {n: available[n] for n in extra}
        for n in cut:
            if n not in available:
                self.spilled.setdefault(n, (len(self.spilled), writer[n]))
            reads[n] = available[n] if n in available else f"#{self.spilled[n][0]}"
        self.reads.append(reads)
        # What this phase has or can compute: a later phase can have it spill any of these.
        computable = set(reads)
        for n in self.graph.order:
            free = n.args or n.extent < Extent.ELEMENT or n.op is Op.INDEX
            if free and self.ready[n] <= k and all(a in computable for a in n.args):
                computable.add(n)
        self.computable.append(computable)
        return True

    def _sweep(self, k: int) -> Step:
        """The step of phase k, its values in terms of raw loads."""
        graph, reads = self.graph, self.reads[k]
        here = {item: n for item, n in graph.values.items() if self.placed[item] == k}
        spills = {f"#{i}": n for n, (i, phase) in self.spilled.items() if phase == k}
        needed, used = above([*here.values(), *spills.values()], reads)
        rewritten = {n: self._read(reads[n]) for n in used}
        for n in needed:
            rewritten[n] = rebuild(n, tuple(rewritten[a] for a in n.args))
        stores = {
            s: _encode(graph.codecs[s], graph.real, rewritten[n])
            for s, n in here.items()
            if isinstance(s, str)
        }
        stores |= {s: rewritten[n] for s, n in spills.items()}
        slots = [i for i in here if isinstance(i, int)]
        reductions = tuple(Reduction(i, graph.ops[i], rewritten[here[i]], graph.extents[i]) for i in slots)
        used_stores = {reads[n] for n in used}
        loads = tuple(
            s for s in (*graph.codecs, *(f"#{i}" for i in range(len(self.spilled)))) if s in used_stores
        )
        self.names |= {rewritten[n]: graph.names[n] for n in needed if n in graph.names}
        for s in (*loads, *stores):
            if s in graph.codecs and CODECS[graph.codecs[s]].raw is DType.U32:
                self.names[CODECS[graph.codecs[s]].load(s)] = s
                if s in stores:
                    self.names[stores[s]] = f"{s}_bits"
        moved = sum(map(self._bytes, (*loads, *stores)))
        return Step("sweep", f"sweep{k}", stores, reductions, loads, moved)

    def _bytes(self, store: str) -> int:
        return self.graph.word if store.startswith("#") else CODECS[self.graph.codecs[store]].bytes

    def _read(self, store: str) -> Node:
        if store.startswith("#"):
            return node(Op.SPILL, value=store)
        codec = CODECS[self.graph.codecs[store]]
        return node(Op.LOAD, value=store) if codec.lossless(self.graph.real) else codec.load(store)


def _encode(codec: str, real: str, value: Node) -> Node:
    """Encode a value for storage; constants are folded."""
    raw = value if CODECS[codec].lossless(real) else CODECS[codec].encode(value)
    folded = constant(raw) if raw.extent is Extent.CONST else None
    return raw if folded is None else const(float(folded), raw.dtype)
