"""Program and storage to `Plan`: phases, what each loads and stores, and the bytes that they move.

A phase is one sweep over the elements. A reduction ends one: what depends on its result comes in the
next. What a later phase needs again it recomputes from stores or reads from a spill, whichever moves
fewer bytes: for each phase that is a minimum vertex cut between the stores and what the phase must
produce. Within a step a name means the unrounded value, so a later phase may read back a store that an
earlier one wrote only where storage keeps every bit; the plan never changes results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from optgen.codecs import CODECS, working
from optgen.ir import REDUCTIONS, DType, Extent, Node, Op, Program, State, node, rewrite, toposort

MAX_CHOICES = 8  # stores whose phase is chosen by trying every combination


@dataclass(frozen=True)
class Reduction:
    """One reduction of a phase: its slot, SUM or AMAX, and the value per element that it reduces."""

    slot: int
    op: Op
    operand: Node


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
    store. `tensor_states` are one number per tensor, kept on the device; `finish` holds their new
    values, written after the last phase. `host` maps a state that the host computes to its scalar.
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
    names: Mapping[Node, str]

    @property
    def stores(self) -> tuple[str, ...]:
        """The element stores that any phase touches, in a fixed order."""
        touched = {s for phase in self.phases for s in (*phase.loads, *phase.stores)}
        return tuple(s for s in self.codecs if s in touched)

    @property
    def bytes(self) -> int:
        """Bytes that a step moves per element."""
        return sum(phase.bytes for phase in self.phases)

    @property
    def reads_gradient(self) -> bool:
        """Whether any phase reads the gradient."""
        return any("g" in phase.loads for phase in self.phases)

    def fingerprint(self) -> str:
        """A text that is the same for plans that do the same."""
        lines = [self.real, repr(sorted(self.codecs.items())), repr(self.tensor_states), str(self.slots)]
        numbers: dict[Node, int] = {}
        roots = [n for phase in self.phases for n in phase.roots()]
        for n in toposort([*roots, *self.finish.values(), *self.scalars, *self.host.values()]):
            numbers[n] = len(numbers)
            lines.append(f"{n.op.name} {n.dtype.name} {[numbers[a] for a in n.args]} {n.value} {n.extent.name}")
        for phase in self.phases:
            lines.append(repr((phase.loads, [(k, numbers[n]) for k, n in phase.stores.items()])))
            lines.append(repr([(r.slot, r.op.name, numbers[r.operand]) for r in phase.reductions]))
        lines.append(repr([(k, numbers[n]) for k, n in self.finish.items()]))
        lines.append(repr([numbers[n] for n in self.scalars]))
        return "\n".join(lines)


def plan(program: Program, codecs: Mapping[str, str]) -> Plan:
    """Schedule a lowered program (see `passes.lower`) for the given storage of `p`, `g` and its states.

    Among the ways to place stores and to spill, the one that moves the fewest bytes wins; of equals, the
    one that spills least.
    """
    element = [k for k, s in program.states.items() if s.extent is Extent.ELEMENT]
    codecs = {s: codecs[s] for s in ("p", "g", *element)}
    level, slots = _levels(program)
    assigns = _finish_reductions(program, slots)
    tensor = {k: n for k, n in assigns.items() if k in program.states and k not in element}
    outputs = {k: n for k, n in assigns.items() if k not in tensor}
    host = {k: n for k, n in tensor.items() if program.states[k].extent is Extent.STEP}
    best = min(_candidates(outputs, slots, level, codecs), key=lambda schedule: schedule.cost)
    return Plan(
        name=program.name,
        real=working(list(codecs.values())),
        codecs=codecs,
        states=program.states,
        tensor_states=tuple(k for k, s in program.states.items() if s.extent is Extent.TENSOR),
        finish={k: n for k, n in tensor.items() if k not in host},
        scalars=program.scalars,
        host=host,
        phases=best.phases,
        slots=len(slots),
        spills=len(best.spilled),
        names={**best.names(program.names), **_name_bits(best.phases, codecs)},
    )


def _name_bits(phases: Iterable[Phase], codecs: Mapping[str, str]) -> dict[Node, str]:
    """Names for what codecs decode and encode, so that emitted code says `g` and `p_bits`."""
    names: dict[Node, str] = {}
    for phase in phases:
        for s in phase.loads:
            if s in codecs and CODECS[codecs[s]].raw is DType.U32:
                names[CODECS[codecs[s]].load(s)] = s
        for s, n in phase.stores.items():
            if n.dtype is DType.U32:
                names[n] = f"{s}_bits"
    return names


def _levels(program: Program) -> tuple[dict[Node, int], dict[Node, int]]:
    """The earliest phase in which each node has a value, and a slot for each reduction.

    Both are in terms of nodes with reductions replaced by SLOT leaves; a slot's level is the phase
    after the sweep that fills it.
    """
    level: dict[Node, int] = {}
    slots: dict[Node, int] = {}
    done: dict[Node, Node] = {}
    for n in toposort(program.assigns.values()):
        args = tuple(done[a] for a in n.args)
        new = n if args == n.args else node(n.op, *args, value=n.value, dtype=n.dtype, extent=n.extent)
        below = max((level[a] for a in args), default=0)
        if n.op in REDUCTIONS:
            slots[new] = len(slots)
            new = node(Op.SLOT, value=str(slots[new]))
            below += 1
        level[new] = below
        done[n] = new
    return level, slots


def _finish_reductions(program: Program, slots: Mapping[Node, int]) -> dict[str, Node]:
    """The program's assignments with every reduction replaced by its slot."""
    order = list(slots)

    def change(n: Node) -> Node | None:
        return node(Op.SLOT, value=str(slots[n])) if n.op in REDUCTIONS and n in slots else None

    done = rewrite([*order, *program.assigns.values()], change)
    return {k: done[n] for k, n in program.assigns.items()}


def _candidates(
    outputs: Mapping[str, Node],
    slots: Mapping[Node, int],
    level: Mapping[Node, int],
    codecs: Mapping[str, str],
) -> Iterable[_Schedule]:
    """Every schedule that works; with all stores written last and nothing spilled, one always does."""
    for placed in _placements(outputs, level, slots):
        for spill in (False, True):
            try:
                yield _Schedule(outputs, slots, level, codecs, placed, spill)
            except _Infeasible:
                continue


def _placements(
    outputs: Mapping[str, Node], level: Mapping[Node, int], slots: Mapping[Node, int]
) -> Iterable[dict[str, int]]:
    """Ways to say in which phase each store is written: as soon as its value is known, or last."""
    last = _last(outputs, level, slots)
    free = [k for k, n in outputs.items() if level[n] < last]
    if len(free) > MAX_CHOICES:
        choices: Iterable[Sequence[bool]] = [[True] * len(free), [False] * len(free)]
    else:
        choices = product((True, False), repeat=len(free))
    for choice in choices:
        early = dict(zip(free, choice, strict=True))
        yield {k: level[n] if early.get(k) else last for k, n in outputs.items()}


def _last(outputs: Mapping[str, Node], level: Mapping[Node, int], slots: Mapping[Node, int]) -> int:
    return max([level[n] for n in outputs.values()] + [level[n.args[0]] for n in slots], default=0)


class _Infeasible(Exception):
    """A placement overwrites a store that a later phase still needs."""


class _Schedule:
    """One candidate: where each store is written, and the cheapest cut for each phase given that."""

    def __init__(
        self,
        outputs: Mapping[str, Node],
        slots: Mapping[Node, int],
        level: Mapping[Node, int],
        codecs: Mapping[str, str],
        placed: Mapping[str, int],
        spill: bool,
    ):
        self.outputs, self.slots, self.level, self.codecs = outputs, slots, level, codecs
        self.placed, self.spill = placed, spill
        self.real = working(list(codecs.values()))
        self.word = CODECS[self.real].bytes
        self.spilled: dict[Node, int] = {}
        self.renamed: dict[Node, Node] = {}
        count = 1 + _last(outputs, level, slots)
        cuts = [self._cut(k) for k in range(count)]
        self.phases = tuple(self._phase(k, cuts[k]) for k in range(count))
        self.cost = (sum(p.bytes for p in self.phases), len(self.spilled), len(self.phases))

    def _roots(self, k: int) -> list[Node]:
        stores = [n for s, n in self.outputs.items() if self.placed[s] == k]
        spills = [n for n in self.spilled if self.level[n] == k]
        return stores + spills + [n.args[0] for n in self.slots if self.level[n.args[0]] == k]

    def _overwritten(self, k: int) -> dict[str, Node]:
        """The stores that an earlier phase than k writes, and what it writes."""
        return {s: n for s, n in self.outputs.items() if self.placed[s] < k}

    def _cut(self, k: int) -> dict[Node, str]:
        """For phase k: the nodes that it reads, each from a store or a spill; the rest it computes."""
        roots = [n for n in self._roots(k) if n.extent is Extent.ELEMENT]
        gone = self._overwritten(k)
        price: dict[Node, int] = {}
        where: dict[Node, str] = {}
        order = [n for n in toposort(roots) if n.extent is Extent.ELEMENT]
        for n in order:
            if n.op is Op.LOAD and n.value not in gone:
                assert n.value is not None
                price[n], where[n] = CODECS[self.codecs[n.value]].bytes * 1000, n.value
            elif self.spill and 0 < k and self.level[n] < k and n.dtype is DType.REAL and n.op is not Op.LOAD:
                price[n] = self.word * (1000 if n in self.spilled else 2000) + 1
        members = set(order)
        for s, n in gone.items():
            kept = CODECS[self.codecs[s]].keeps(self.real)
            if kept and n in members:
                price[n], where[n] = CODECS[self.codecs[s]].bytes * 1000, s
        for n in _minimum_cut(order, roots, price):
            if n not in where:
                self.spilled.setdefault(n, len(self.spilled))
                where[n] = f"#{self.spilled[n]}"
            price[n] = -1
        return {n: s for n, s in where.items() if price[n] == -1}

    def _phase(self, k: int, cut: Mapping[Node, str]) -> Phase:
        values = {n: self._read(s) for n, s in cut.items()}
        roots = self._roots(k)
        computed = _above(roots, cut)
        missing = [n for n in computed if n.op is Op.LOAD and n.extent is Extent.ELEMENT]
        if missing:  # what this phase spills for a later one may need more than its own cut reads
            gone = self._overwritten(k)
            if any(n.value in gone for n in missing):
                raise _Infeasible
            values |= {n: self._read(n.value or "") for n in missing}
        done: dict[Node, Node] = dict(values)
        for n in toposort(roots):
            if n in done or n not in computed:
                continue
            args = tuple(done[a] for a in n.args)
            done[n] = n if args == n.args else node(n.op, *args, value=n.value, dtype=n.dtype, extent=n.extent)
        self.renamed.update({n: done[n] for n in done if n not in self.renamed})
        loads = tuple(dict.fromkeys([*cut.values(), *(n.value or "" for n in values if n not in cut)]))
        loads = tuple(s for s in (*self.codecs, *(f"#{i}" for i in range(len(self.spilled)))) if s in loads)
        stores = {
            s: CODECS[self.codecs[s]].encode(done[n]) for s, n in self.outputs.items() if self.placed[s] == k
        }
        stores |= {f"#{i}": done[n] for n, i in self.spilled.items() if self.level[n] == k}
        reductions = tuple(
            Reduction(i, n.op, done[n.args[0]]) for n, i in self.slots.items() if self.level[n.args[0]] == k
        )
        moved = sum(self._bytes(s) for s in loads) + sum(self._bytes(s) for s in stores)
        return Phase(loads, stores, reductions, moved)

    def _bytes(self, store: str) -> int:
        return self.word if store.startswith("#") else CODECS[self.codecs[store]].bytes

    def _read(self, store: str) -> Node:
        if store.startswith("#"):
            return node(Op.SPILL, value=store)
        return CODECS[self.codecs[store]].load(store)

    def names(self, names: Mapping[Node, str]) -> dict[Node, str]:
        return {self.renamed.get(n, n): name for n, name in names.items()}


def _above(roots: Iterable[Node], cut: Mapping[Node, str]) -> dict[Node, None]:
    """The nodes between the roots and a cut, the cut itself left out."""
    seen: dict[Node, None] = {}
    stack = [n for n in roots if n not in cut]
    while stack:
        n = stack.pop()
        if n not in seen:
            seen[n] = None
            stack.extend(a for a in n.args if a not in cut)
    return seen


def _minimum_cut(order: Sequence[Node], roots: Sequence[Node], price: Mapping[Node, int]) -> list[Node]:
    """The cheapest nodes whose values let every root be computed.

    A minimum vertex cut by augmenting paths (Edmonds and Karp, 1972): every node is an edge from its
    entrance to its exit with its price as capacity; leaves hang on the source, roots on the sink.
    """
    number = {n: i for i, n in enumerate(order)}
    count = len(order)
    source, sink = 2 * count, 2 * count + 1
    residual: list[dict[int, float]] = [{} for _ in range(2 * count + 2)]

    def edge(a: int, b: int, capacity: float) -> None:
        residual[a][b] = residual[a].get(b, 0) + capacity
        residual[b].setdefault(a, 0)

    endless = float("inf")
    for n, i in number.items():
        edge(2 * i, 2 * i + 1, price.get(n, endless))
        if n.op is Op.LOAD:
            edge(source, 2 * i, endless)
        for a in n.args:
            if a in number:
                edge(2 * number[a] + 1, 2 * i, endless)
    for n in roots:
        edge(2 * number[n] + 1, sink, endless)
    while True:
        parent = _search(residual, source)
        if sink not in parent:
            break
        path, at = [], sink
        while at != source:
            path.append((parent[at], at))
            at = parent[at]
        flow = min(residual[a][b] for a, b in path)
        if flow == endless:
            raise _Infeasible
        for a, b in path:
            residual[a][b] -= flow
            residual[b][a] += flow
    return [n for n, i in number.items() if 2 * i in parent and 2 * i + 1 not in parent]


def _search(residual: Sequence[Mapping[int, float]], source: int) -> dict[int, int]:
    parent = {source: source}
    queue = deque([source])
    while queue:
        at = queue.popleft()
        for to, capacity in residual[at].items():
            if capacity > 0 and to not in parent:
                parent[to] = at
                queue.append(to)
    return parent
