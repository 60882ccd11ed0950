"""What a plan consists of: reductions, rounds, phases, and what a back end asks about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from optgen.ir import (
    ATOM,
    Extent,
    Node,
    Op,
    Spelling,
    State,
    spell,
    toposort,
)


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
    def reductions(self) -> tuple[Reduction, ...]:
        """Every reduction, in order of their slots."""
        swept = [r for phase in self.phases for r in phase.reductions]
        small = [r for found in self.rounds for r in (*found.small, *found.over)]
        return tuple(sorted((*swept, *small), key=lambda r: r.slot))

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

    @cached_property
    def logical(self) -> bool:
        """Whether it matters which element is which, so that no tensor is walked in another order."""
        return bool(self.slices) or any(n.op is Op.INDEX for n in toposort(self.roots))

    @cached_property
    def random(self) -> bool:
        """Whether random numbers are drawn."""
        return any(n.op is Op.KEY for n in toposort(self.roots))

    @cached_property
    def stores(self) -> tuple[str, ...]:
        """The element stores that any phase touches, in a fixed order."""
        touched = {s for phase in self.phases for s in (*phase.loads, *phase.stores)}
        return tuple(s for s in self.codecs if s in touched)

    @cached_property
    def bytes(self) -> int:
        """Bytes that a step moves per element."""
        return sum(phase.bytes for phase in self.phases)

    def fingerprint(self) -> str:
        """A text that is the same for plans whose kernels do the same, whatever the host does for them."""
        states = [(s, self.states[s].extent) for s in self.tensor_states]
        lines = [self.real, repr(list(self.codecs.items())), repr(states), repr(self.extents)]
        numbers: dict[Node, int] = {}
        for n in toposort([*self.roots, *self.totals]):
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
        counts = len(self.scalars), len(self.onces)  # of columns: what is in them does not matter here
        lines.append(repr(([numbers[n] for n in self.totals], counts)))
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
