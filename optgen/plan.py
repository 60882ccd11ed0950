"""Program and storage to `Plan`: phases, what each loads and stores, and the bytes that they move.

A phase is one sweep over the elements. A reduction ends one: what depends on its result comes in a later
one. What a later phase needs again it recomputes from stores or reads from a spill, whichever moves
fewer bytes: for each phase that is a minimum vertex cut between what lies in memory and what the phase
must produce. Within a step a name means the unrounded value, so a later phase may read back a store that
an earlier one wrote only where storage keeps every bit; the plan never changes results.

For one or two phases the plan moves the fewest bytes that any placement of stores and reductions and any
choice of spills can. With more, the spills of each phase are chosen after those of the phases before it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations, product

from optgen.codecs import CODECS, working
from optgen.ir import (
    ATOM,
    REDUCTIONS,
    DType,
    Extent,
    Node,
    Op,
    Program,
    Spelling,
    State,
    const,
    node,
    rebuild,
    spell,
    toposort,
)
from optgen.semantics import constant

MAX_PLACEMENTS = 64  # beyond these only the earliest and the latest places are tried
MAX_EXTRA = 4  # loads that a phase could add for the sake of spills; beyond these it adds none


@dataclass(frozen=True)
class Reduction:
    """One reduction: its slot, SUM or AMAX, what it reduces, and what it leaves."""

    slot: int
    op: Op
    operand: Node
    extent: Extent = Extent.TENSOR
    tag: str = ""  # of one over all tensors: which it is, in every plan of the program


def reduction_text(r: Reduction) -> str:
    """`sum`, `sum by row`, or `sum over all`."""
    if r.extent.sliced:
        return f"{r.op.value} by {r.extent.name.lower()}"
    return r.op.value + (" over all" if r.extent is Extent.ALL else "")


@dataclass(frozen=True)
class Round:
    """What happens between two phases, after the sums of the one before are complete.

    Reductions of slices, then those over all tensors, in order; then `totals`, which need them. A second
    round before the same phase has what needs the totals of the first.
    """

    boundary: int  # the phase that comes after it
    sweeps: tuple[int, ...]  # slots that the phase before has filled in part
    small: tuple[Reduction, ...]
    over: tuple[Reduction, ...]
    totals: tuple[int, ...]


@dataclass(frozen=True)
class Phase:
    """One sweep over the elements: stores read, raw values written, reductions finished after it.

    Loads and stores name `p`, `g`, a state, or a spill (`#0`). Values are in terms of raw loads.
    """

    loads: tuple[str, ...]
    stores: Mapping[str, Node]
    reductions: tuple[Reduction, ...]
    bytes: int

    def roots(self) -> list[Node]:
        """Every value that the sweep must compute."""
        return [*self.stores.values(), *(r.operand for r in self.reductions)]


@dataclass(frozen=True)
class Plan:
    """What a back end needs to run one step, or one mode, over a bucket of tensors.

    `real` is the working precision, `fp32` or `fp64`. `codecs` gives the storage form of every element
    store. `tensor_states` are one number per tensor, or per slice of it, kept on the device; `finish`
    holds their new values, written after the last phase. `host` maps a state that the host computes to
    its scalar. `totals` are the values that are one for the whole optimizer, computed in float64 between
    the phases from `onces` (which the host computes), states, inputs and sums over all tensors; `finals`
    has the new values of such states. `unspilled` is what a step would move per element if nothing were
    spilled.
    """

    name: str
    real: str
    codecs: Mapping[str, str]
    states: Mapping[str, State]
    tensor_states: tuple[str, ...]
    finish: Mapping[str, Node]
    scalars: tuple[Node, ...]
    host: Mapping[str, Node]
    phases: tuple[Phase, ...]
    slots: int
    spills: int
    unspilled: int
    names: Mapping[Node, str]
    rounds: tuple[Round, ...] = ()
    extents: tuple[Extent, ...] = ()  # of the slots
    totals: tuple[Node, ...] = ()
    finals: Mapping[str, int] = field(default_factory=dict)  # state -> its total
    onces: tuple[Node, ...] = ()

    @cached_property
    def roots(self) -> list[Node]:
        """Every value that a kernel computes for elements, slices or tensors."""
        small = [r.operand for found in self.rounds for r in (*found.small, *found.over)]
        return [*(n for phase in self.phases for n in phase.roots()), *small, *self.finish.values()]

    @cached_property
    def slices(self) -> tuple[Extent, ...]:
        """The kinds of slices of a tensor that have values."""
        found = {n.extent for n in toposort(self.roots)} | {self.states[s].extent for s in self.tensor_states}
        return tuple(sorted((e for e in {*found, *self.extents} if e.sliced), key=lambda e: e.name))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Where each number for all tensors lies: totals, sums, what the host computes, states, inputs."""
        names = [f"@total{i}" for i in range(len(self.totals))]
        names += [f"@slot{i}" for i, e in enumerate(self.extents) if e is Extent.ALL]
        names += [f"@once{i}" for i in range(len(self.onces))]
        loads = {n.value or "" for n in toposort(self.totals) if n.op is Op.LOAD}
        return {name: i for i, name in enumerate([*names, *sorted(loads)])}

    @property
    def logical(self) -> bool:
        """Whether it matters which element is which, so that no tensor is walked in another order."""
        return bool(self.slices) or any(n.op is Op.INDEX for n in toposort(self.roots))

    @property
    def random(self) -> bool:
        """Whether random numbers are drawn."""
        return any(n.op is Op.KEY for n in toposort(self.roots))

    @property
    def stores(self) -> tuple[str, ...]:
        """The element stores that any phase touches, in a fixed order."""
        touched = {s for phase in self.phases for s in (*phase.loads, *phase.stores)}
        return tuple(s for s in self.codecs if s in touched)

    @property
    def bytes(self) -> int:
        """Bytes that a step moves per element."""
        return sum(phase.bytes for phase in self.phases)

    def fingerprint(self) -> str:
        """A text that is the same for plans that do the same."""
        states = [(s, self.states[s].extent) for s in self.tensor_states]
        lines = [self.real, repr(list(self.codecs.items())), repr(states), repr(self.extents)]
        numbers: dict[Node, int] = {}
        outside = [*self.scalars, *self.host.values(), *self.totals, *self.onces]
        for n in toposort([*self.roots, *outside]):
            numbers[n] = len(numbers)
            args = [numbers[a] for a in n.args]
            lines.append(f"{n.op.name} {n.dtype.name} {args} {n.value} {n.extent.name}")
        for phase in self.phases:
            lines.append(repr((phase.loads, [(k, numbers[n]) for k, n in phase.stores.items()])))
            lines.append(repr([(r.slot, r.op.name, numbers[r.operand]) for r in phase.reductions]))
        for found in self.rounds:
            small = [(r.slot, r.op.name, numbers[r.operand], r.tag) for r in (*found.small, *found.over)]
            lines.append(repr((found.boundary, found.sweeps, small, len(found.small), found.totals)))
        lines.append(repr([(k, numbers[n]) for k, n in self.finish.items()]))
        lines.append(repr([(k, i) for k, i in self.finals.items()]))
        lines.append(repr([[numbers[n] for n in group] for group in (self.scalars, self.totals, self.onces)]))
        return "\n".join(lines)

    def __str__(self) -> str:
        """What each phase does and moves, and why it is done so."""
        lines = [f"{self.name}: {len(self.phases)} phase(s), {self.bytes} bytes per element, {self.real}"]
        for k, phase in enumerate(self.phases):
            parts = [f"loads {', '.join(phase.loads) or 'nothing'}"]
            parts += [f"stores {', '.join(phase.stores)}"] if phase.stores else []
            parts += [f"{s} = {self._text(n)}" for s, n in phase.stores.items() if s.startswith("#")]
            parts += [f"r{r.slot} = {r.op.value}({self._text(r.operand)})" for r in phase.reductions]
            lines.append(f"phase {k}: {phase.bytes} bytes: {'; '.join(parts)}")
        if self.spills:
            lines.append(f"spilled {self.spills}: without that, {self.unspilled} bytes per element")
        elif len(self.phases) > 1:
            lines.append("nothing is spilled: to recompute moves no more bytes")
        return "\n".join(lines)

    def _text(self, root: Node) -> str:
        """A value in the notation of rules, in terms of what the rule has names for."""
        texts: dict[Node, Spelling] = {}
        for n in toposort([root]):
            named = n in self.names and n.args
            texts[n] = (self.names[n], ATOM) if named else spell(n, [texts[a] for a in n.args])
        return texts[root][0]


def plan(program: Program, codecs: Mapping[str, str]) -> Plan:
    """Schedule a lowered program (see `passes.lower`) for the given storage of `p`, `g` and its states.

    Among the ways to place stores and reductions and to spill, the one that moves the fewest bytes wins;
    of equals, the one that spills least, and then the one that writes earliest.
    """
    codecs = {s: codecs[s] for s in element_stores(program)}
    graph = _Graph.of(program, codecs)
    plain = [_Candidate(graph, placed) for placed in graph.placements()]
    spilling = [other for candidate in plain for other in candidate.with_spills()]
    best = min([*plain, *spilling], key=lambda candidate: candidate.cost)
    tensor = {k: n for k, n in graph.tensor.items() if program.states[k].extent is not Extent.ALL}
    host = {k: n for k, n in tensor.items() if program.states[k].extent is Extent.STEP}
    coarse = [k for k, s in program.states.items() if s.extent is Extent.TENSOR or s.extent.sliced]
    return Plan(
        name=program.name,
        real=graph.real,
        codecs=codecs,
        states=program.states,
        tensor_states=tuple(coarse),
        finish={k: n for k, n in tensor.items() if k not in host},
        scalars=program.scalars,
        host=host,
        phases=best.phases,
        slots=len(graph.ops),
        spills=len(best.spilled),
        unspilled=int(min(candidate.cost[0] for candidate in plain)),
        names={**graph.names, **best.names},
        rounds=graph.rounds(best.placed),
        extents=tuple(graph.extents),
        totals=tuple(graph.totals),
        finals={k: graph.totals[n] for k, n in graph.finals.items()},
        onces=program.onces,
    )


def element_stores(program: Program) -> list[str]:
    """The tensors that a step walks: p, g, element states and inputs."""
    states = [k for k, s in program.states.items() if s.extent is Extent.ELEMENT]
    used = {n.value for n in toposort(program.assigns.values()) if n.op is Op.LOAD}
    inputs = [k for k, i in program.inputs.items() if i.extent is Extent.ELEMENT and k in used]
    return ["p", "g", *states, *inputs]


Item = str | int  # a store, or the slot of a reduction


@dataclass
class _Graph:
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
    def of(program: Program, codecs: Mapping[str, str]) -> _Graph:
        """The graph of a lowered program; slots are numbered in the order in which they can be filled."""
        graph = _Graph(codecs)
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

    def rounds(self, placed: Mapping[Item, int]) -> tuple[Round, ...]:
        """What to compute between the phases, each as soon as the sweeps that it waits for are done."""
        ready = {i: self._after(n, placed) for i, n in self.small.items()}
        ready |= {i: placed[i] + 1 for i in self.values if isinstance(i, int)}
        totals = {i: self._after(n, placed) for n, i in self.totals.items()}
        found = []
        for boundary in sorted({*ready.values(), *totals.values()}):
            slots = sorted(i for i, b in ready.items() if b == boundary)
            wanted = {n: i for n, i in self.totals.items() if totals[i] == boundary}
            while slots or wanted:
                pending = {i for n, i in wanted.items()}
                now: list[int] = []
                for i in slots:  # a slot needs those with smaller numbers only
                    needs = toposort([self.small[i]]) if i in self.small else []
                    blocked = any(n.op is Op.TOTAL and int(n.value or 0) in pending for n in needs)
                    late = any(
                        n.op is Op.SLOT and int(n.value or 0) in slots and int(n.value or 0) not in now
                        for n in needs
                    )
                    if not blocked and not late:
                        now.append(i)
                slots = [i for i in slots if i not in now]
                waiting = {str(i) for i in slots}
                have = [
                    i
                    for n, i in wanted.items()
                    if not any(x.op is Op.SLOT and x.value in waiting for x in toposort([n]))
                ]
                wanted = {n: i for n, i in wanted.items() if i not in have}
                made = [
                    Reduction(i, self.ops[i], self.small[i], self.extents[i], self.tags[i])
                    for i in now
                    if i in self.small
                ]
                found.append(
                    Round(
                        boundary,
                        tuple(i for i in now if i not in self.small),
                        tuple(r for r in made if r.extent is not Extent.ALL),
                        tuple(r for r in made if r.extent is Extent.ALL),
                        tuple(have),
                    )
                )
        return tuple(found)

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


class _Candidate:
    """A placement with the cheapest cut for each phase; with `extra` loads in a phase, spills may be.

    A new spill is priced for the phase at hand alone or, `shared`, as if all later ones would read it too.
    `reads` says where each phase finds the nodes that it does not compute; `spilled` has the number of
    each spill and the phase that writes it.
    """

    def __init__(
        self,
        graph: _Graph,
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
        self.phases: tuple[Phase, ...] = ()
        self.cost: tuple[float, int] = (math.inf, 0)
        if all(self._cut(k) for k in range(self.last + 1)):
            self.phases = tuple(self._phase(k) for k in range(self.last + 1))
            self.cost = (sum(phase.bytes for phase in self.phases), len(self.spilled))

    def with_spills(self) -> Iterator[_Candidate]:
        """The same placement with spills, and with loads that an early phase adds so that it can spill."""
        if self.phases and sum(phase.bytes for phase in self.phases[1:]) <= 2 * self.graph.word:
            return  # to write a spill and read it back costs as much as all that it could save
        loads = [n for n in self.graph.order if n.op is Op.LOAD and n.extent is Extent.ELEMENT]
        missing = [
            (k, n)
            for k, reads in enumerate(self.reads[: self.last])
            for n in loads
            if n in self._memory(k) and n not in reads
        ]
        if len(missing) > MAX_EXTRA:
            missing = []
        for chosen in chain.from_iterable(combinations(missing, size) for size in range(len(missing) + 1)):
            extra = {k: [n for j, n in chosen if j == k] for k in range(self.last)}
            for shared in (False, True)[: self.last]:
                yield _Candidate(self.graph, self.placed, extra, shared)

    def _memory(self, k: int) -> dict[Node, str]:
        """The nodes that lie in stores when phase k runs, each with the cheapest store that has it."""
        found: dict[Node, str] = {}
        for s in self.graph.codecs:
            if self.placed.get(s, k) >= k:
                found.setdefault(node(Op.LOAD, value=s), s)
        for s, codec in self.graph.codecs.items():
            if self.placed.get(s, k) < k and CODECS[codec].keeps(self.graph.real):
                n = self.graph.values[s]
                if n not in found or self._bytes(found[n]) > self._bytes(s):
                    found[n] = s
        return found

    def _cut(self, k: int) -> bool:
        """Choose what phase k reads: stores, spills, and with them the spills that earlier phases write.

        False where it needs what a store no longer has.
        """
        roots = [n for i, n in self.graph.values.items() if self.placed[i] == k]
        roots = [n for n in roots if n.extent is Extent.ELEMENT]
        order = [n for n in toposort(roots) if n.extent is Extent.ELEMENT]
        memory, extra = self._memory(k), (self.extra or {}).get(k, ())
        price = {n: 0 if n in extra else 1000 * self._bytes(memory[n]) for n in order if n in memory}
        writer: dict[Node, int] = {}
        for n in order if self.extra is not None else ():
            phases = (j for j in range(self.ready[n], k) if n in self.computable[j])
            phase = self.spilled[n][1] if n in self.spilled else next(phases, None)
            if phase is not None and n.dtype is DType.REAL and n not in memory:
                writer[n] = phase
                readers = 1 + (self.last - k if self.shared else 0)
                write = 0 if n in self.spilled else 1000 * self.graph.word // readers
                price[n] = 1000 * self.graph.word + write + 1
        cut = _minimum_cut(order, roots, price)
        if cut is None:
            return False
        reads = {n: memory[n] for n in extra}
        for n in cut:
            if n not in memory:
                self.spilled.setdefault(n, (len(self.spilled), writer[n]))
            reads[n] = memory[n] if n in memory else f"#{self.spilled[n][0]}"
        self.reads.append(reads)
        found = set(reads)
        for n in self.graph.order:
            free = n.args or n.extent < Extent.ELEMENT or n.op is Op.INDEX
            if free and self.ready[n] <= k and all(a in found for a in n.args):
                found.add(n)
        self.computable.append(found)
        return True

    def _phase(self, k: int) -> Phase:
        """Phase k with its values in terms of raw loads."""
        graph, reads = self.graph, self.reads[k]
        here = {item: n for item, n in graph.values.items() if self.placed[item] == k}
        spills = {f"#{i}": n for n, (i, phase) in self.spilled.items() if phase == k}
        needed, used = _above([*here.values(), *spills.values()], reads)
        done = {n: self._read(reads[n]) for n in used}
        for n in needed:
            done[n] = rebuild(n, tuple(done[a] for a in n.args))
        stores = {
            s: _encode(graph.codecs[s], graph.real, done[n]) for s, n in here.items() if isinstance(s, str)
        }
        stores |= {s: done[n] for s, n in spills.items()}
        slots = [i for i in here if isinstance(i, int)]
        reductions = tuple(Reduction(i, graph.ops[i], done[here[i]], graph.extents[i]) for i in slots)
        found = {reads[n] for n in used}
        loads = tuple(s for s in (*graph.codecs, *(f"#{i}" for i in range(len(self.spilled)))) if s in found)
        self.names |= {done[n]: graph.names[n] for n in needed if n in graph.names}
        for s in (*loads, *stores):
            if s in graph.codecs and CODECS[graph.codecs[s]].raw is DType.U32:
                self.names[CODECS[graph.codecs[s]].load(s)] = s
                if s in stores:
                    self.names[stores[s]] = f"{s}_bits"
        return Phase(loads, stores, reductions, sum(map(self._bytes, (*loads, *stores))))

    def _bytes(self, store: str) -> int:
        return self.graph.word if store.startswith("#") else CODECS[self.graph.codecs[store]].bytes

    def _read(self, store: str) -> Node:
        if store.startswith("#"):
            return node(Op.SPILL, value=store)
        codec = CODECS[self.graph.codecs[store]]
        return node(Op.LOAD, value=store) if codec.keeps(self.graph.real) else codec.load(store)


def _encode(codec: str, real: str, value: Node) -> Node:
    """What to store for a value; what depends on nothing is worked out here."""
    raw = value if CODECS[codec].keeps(real) else CODECS[codec].encode(value)
    found = constant(raw) if raw.extent is Extent.CONST else None
    return raw if found is None else const(float(found), raw.dtype)


def _above(roots: Iterable[Node], cut: Collection[Node]) -> tuple[list[Node], list[Node]]:
    """The nodes between the roots and a cut, arguments first, and the nodes of the cut that they reach."""
    seen: dict[Node, None] = {}
    stack = list(roots)
    while stack:
        n = stack.pop()
        if n not in seen:
            seen[n] = None
            stack.extend(() if n in cut else n.args)
    inside = [n for n in toposort(seen) if n in seen]
    return [n for n in inside if n not in cut], [n for n in inside if n in cut]


def _minimum_cut(
    order: Sequence[Node], roots: Sequence[Node], price: Mapping[Node, int]
) -> list[Node] | None:
    """The cheapest nodes whose values let every root be computed, or None where nodes with a price do not.

    A minimum vertex cut by augmenting paths (Edmonds and Karp, 1972): every node is an edge from its
    entrance to its exit with its price as capacity; leaves hang on the source, roots on the sink.
    """
    number = {n: i for i, n in enumerate(order)}
    source, sink = 2 * len(order), 2 * len(order) + 1
    residual: list[dict[int, float]] = [{} for _ in range(2 * len(order) + 2)]

    def edge(start: int, end: int, capacity: float) -> None:
        residual[start][end] = residual[start].get(end, 0) + capacity
        residual[end].setdefault(start, 0)

    for n, i in number.items():
        edge(2 * i, 2 * i + 1, price.get(n, math.inf))
        if n.op is Op.LOAD:
            edge(source, 2 * i, math.inf)
        for a in n.args:
            if a in number:
                edge(2 * number[a] + 1, 2 * i, math.inf)
    for n in roots:
        edge(2 * number[n] + 1, sink, math.inf)
    while sink in (parent := _search(residual, source)):
        path, end = [], sink
        while end != source:
            path.append((parent[end], end))
            end = parent[end]
        flow = min(residual[start][end] for start, end in path)
        if flow == math.inf:
            return None
        for start, end in path:
            residual[start][end] -= flow
            residual[end][start] += flow
    return [n for n, i in number.items() if 2 * i in parent and 2 * i + 1 not in parent]


def _search(residual: Sequence[Mapping[int, float]], source: int) -> dict[int, int]:
    """How a breadth-first search from the source reached each vertex."""
    parent = {source: source}
    queue = deque([source])
    while queue:
        start = queue.popleft()
        for end, capacity in residual[start].items():
            if capacity > 0 and end not in parent:
                parent[end] = start
                queue.append(end)
    return parent
