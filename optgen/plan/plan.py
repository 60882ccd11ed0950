"""A plan: named buffers, and the ordered steps that read and write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from optgen.ir.extent import Extent
from optgen.ir.node import ATOM, Node, Op, Spelling, spell, toposort
from optgen.ir.program import State

Role = Literal["store", "spill", "state", "global", "slot", "partial", "scalar"]
Kind = Literal["sweep", "combine", "slice_reduce", "global_reduce", "global", "finish"]


@dataclass(frozen=True)
class Buffer:
    """A named buffer: its role, how often it has a value (`extent`), and how each is stored (`codec`).

    Roles: `store`, an element tensor of the caller's; `spill`, an element temporary from one sweep to a
    later one; `state`, a state per tensor or slice; `slot`, the result of a reduction; `partial`, its partial
    results by chunk or tile; `global`, one value for the whole optimizer; `scalar`, a value from the host.
    """

    name: str
    role: Role
    extent: Extent
    codec: str


@dataclass(frozen=True)
class Reduction:
    """One reduction: its slot, operation (SUM or AMAX), operand, and the extent of its result."""

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


def buffer_of(leaf: Node) -> str | None:
    """Name of the buffer that a leaf reads; None for constants, random keys and element indices."""
    value = leaf.value or ""
    match leaf.op:
        case Op.LOAD | Op.SPILL:
            return value
        case Op.TOTAL if value.startswith("once"):
            return f"@{value}"
        case Op.SLOT | Op.TOTAL | Op.SCALAR:
            return f"@{leaf.op.value}{value}"
    return None


@dataclass(frozen=True)
class Step:
    """One kernel invocation over all tensors of a launch; `name` is that of the emitted function.

        sweep          elementwise loop: writes stores and spills, and partial results of reductions
        combine        finishes the reductions of the sweep before it from their partial results
        slice_reduce   reduces values of slices
        global_reduce  reduces over all tensors
        global         computes values that are one for the whole optimizer, in float64
        finish         writes the new states of tensors and slices

    `values`: by buffer that it writes, the value in terms of raw loads. `loads` and `bytes`: the stores and
    spills that a sweep reads, and the bytes that it moves per element.
    """

    kind: Kind
    name: str
    values: Mapping[str, Node] = field(default_factory=dict)
    reductions: tuple[Reduction, ...] = ()
    loads: tuple[str, ...] = ()
    bytes: int = 0

    def roots(self) -> list[Node]:
        """Every value that the step must compute: what it writes, and operands of its reductions."""
        operands = () if self.kind == "combine" else self.reductions
        return [*self.values.values(), *(r.operand for r in operands)]

    @property
    def reads(self) -> list[str]:
        """Names of the buffers that it reads."""
        if self.kind == "combine":
            return [f"@partial{r.slot}" for r in self.reductions]
        names = map(buffer_of, toposort(self.roots()))
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def writes(self) -> list[str]:
        """Names of the buffers that it writes."""
        role = "partial" if self.kind == "sweep" else "slot"
        return [*self.values, *(f"@{role}{r.slot}" for r in self.reductions)]

    @property
    def slots(self) -> tuple[int, ...]:
        """Slots of tensors and slices that are complete after this step."""
        done = self.kind in ("combine", "slice_reduce")
        return tuple(r.slot for r in self.reductions) if done else ()


@dataclass(frozen=True)
class Plan:
    """The schedule of one step, or one mode, of a rule for given storage: what a back end compiles.

    `real` is the working precision, `fp32` or `fp64`. `scalars` and `onces` are computed by the host, per
    group and once for the whole optimizer; `host` maps a state that the host computes to its scalar. `finals`
    says which total is the new value of a state that is one for the whole optimizer. `unspilled` is the bytes
    per element of the best plan without spills.
    """

    name: str
    real: str
    states: Mapping[str, State]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    scalars: tuple[Node, ...]
    onces: tuple[Node, ...]
    host: Mapping[str, Node]
    finals: Mapping[str, int]
    unspilled: int
    names: Mapping[Node, str]

    def _with_role(self, role: Role) -> list[Buffer]:
        return [b for b in self.buffers if b.role == role]

    @cached_property
    def codecs(self) -> dict[str, str]:
        """The storage format of every element store."""
        return {b.name: b.codec for b in self._with_role("store")}

    @cached_property
    def spills(self) -> tuple[str, ...]:
        """Names of the spills."""
        return tuple(b.name for b in self._with_role("spill"))

    @cached_property
    def tensor_states(self) -> tuple[str, ...]:
        """States of tensors and of slices, which lie on the device."""
        return tuple(b.name for b in self._with_role("state"))

    @cached_property
    def extents(self) -> tuple[Extent, ...]:
        """The extent of each slot."""
        return tuple(b.extent for b in self._with_role("slot"))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Index in `Tables.numbers` of each value that is one for the whole optimizer."""
        return {b.name: i for i, b in enumerate(b for b in self.buffers if b.extent is Extent.ALL)}

    @cached_property
    def sweeps(self) -> tuple[Step, ...]:
        """The sweeps, one per phase."""
        return tuple(step for step in self.steps if step.kind == "sweep")

    @cached_property
    def totals(self) -> list[Node]:
        """Values that are one for the whole optimizer, in order of their numbers."""
        by_name = {name: n for step in self.steps if step.kind == "global" for name, n in step.values.items()}
        return [by_name[b.name] for b in self._with_role("global") if b.name in by_name]

    @cached_property
    def roots(self) -> list[Node]:
        """Every value that a kernel computes for elements, slices or tensors."""
        later = [step for step in self.steps if step.kind not in ("sweep", "global")]
        return [n for step in (*self.sweeps, *later) for n in step.roots()]

    @cached_property
    def reductions(self) -> tuple[Reduction, ...]:
        """Every reduction, in order of slots."""
        by_slot = {r.slot: r for step in self.steps for r in step.reductions}
        return tuple(by_slot[slot] for slot in sorted(by_slot))

    @cached_property
    def slices(self) -> tuple[Extent, ...]:
        """The kinds of slices (rows, columns, blocks ...) that have values, by name."""
        kinds = {n.extent for n in toposort(self.roots)} | {b.extent for b in self.buffers}
        return tuple(sorted((e for e in kinds if e.sliced), key=lambda e: e.name))

    @cached_property
    def logical(self) -> bool:
        """Whether results depend on an element's index: strided tensors are walked in logical order then."""
        return bool(self.slices) or any(n.op is Op.INDEX for n in toposort(self.roots))

    @cached_property
    def random(self) -> bool:
        """Whether the plan draws random numbers."""
        return any(n.op is Op.KEY for n in toposort(self.roots))

    @cached_property
    def stores(self) -> tuple[str, ...]:
        """Element stores that any sweep reads or writes, in a fixed order."""
        touched = {s for step in self.sweeps for s in (*step.loads, *step.values)}
        return tuple(s for s in self.codecs if s in touched)

    @cached_property
    def bytes(self) -> int:
        """Bytes that a step moves per element."""
        return sum(step.bytes for step in self.sweeps)

    def fingerprint(self) -> str:
        """Cache key: equal for plans whose kernels are equal, whatever the host computes for them."""
        states = [(s, self.states[s].extent) for s in self.tensor_states]
        lines = [self.real, repr(list(self.codecs.items())), repr(states), repr(self.extents)]
        numbers: dict[Node, int] = {}
        for n in toposort([*self.roots, *self.totals]):
            numbers[n] = len(numbers)
            args = [numbers[a] for a in n.args]
            # Nodes by their index, not by identity: the text must be equal in every process.
            lines.append(f"{n.op.name} {n.dtype.name} {args} {n.value} {n.extent.name}")
        for step in self.sweeps:
            lines.append(repr((step.loads, [(k, numbers[n]) for k, n in step.values.items()])))
            lines.append(repr([(r.slot, r.op.name, numbers[r.operand]) for r in step.reductions]))
        # The key covers what is computed between sweeps and in which order, but not how steps are named.
        for boundary, between in self._rounds():
            combined = tuple(r.slot for s in between if s.kind == "combine" for r in s.reductions)
            later = [(s.kind, r) for s in between if s.kind != "combine" for r in s.reductions]
            small = [(r.slot, r.op.name, numbers[r.operand], r.tag) for _, r in later]
            sliced = sum(kind == "slice_reduce" for kind, _ in later)
            totals = tuple(self.numbers[b] for s in between for b in s.values)
            lines.append(repr((boundary, combined, small, sliced, totals)))
        finishes = [step for step in self.steps if step.kind == "finish"]
        lines.append(repr([(b, numbers[n]) for step in finishes for b, n in step.values.items()]))
        counts = len(self.scalars), len(self.onces)  # of columns: what is in them does not matter here
        lines.append(repr(([numbers[n] for n in self.totals], counts)))
        return "\n".join(lines)

    def _rounds(self) -> list[tuple[int, list[Step]]]:
        """Steps between sweeps, cut after each `global` step, with the number of sweeps before them."""
        rounds: list[tuple[int, list[Step]]] = []
        sweeps_done, begins_round = 0, True
        for step in self.steps:
            if step.kind == "sweep":
                sweeps_done, begins_round = sweeps_done + 1, True
            elif step.kind != "finish":
                if begins_round:
                    rounds.append((sweeps_done, []))
                rounds[-1][1].append(step)
                begins_round = step.kind == "global"
        return rounds

    def __str__(self) -> str:
        """Bytes, loads, stores and reductions of each phase, and what spilling saves."""
        lines = [f"{self.name}: {len(self.sweeps)} phase(s), {self.bytes} bytes per element, {self.real}"]
        for k, step in enumerate(self.sweeps):
            parts = [f"loads {', '.join(step.loads) or 'nothing'}"]
            parts += [f"stores {', '.join(step.values)}"] if step.values else []
            parts += [f"{s} = {self._text(n)}" for s, n in step.values.items() if s in self.spills]
            parts += [f"r{r.slot} = {r.op.value}({self._text(r.operand)})" for r in step.reductions]
            lines.append(f"phase {k}: {step.bytes} bytes: {'; '.join(parts)}")
        if self.spills:
            lines.append(f"spilled {len(self.spills)}: without that, {self.unspilled} bytes per element")
        elif len(self.sweeps) > 1:
            lines.append("nothing is spilled: to recompute moves no more bytes")
        return "\n".join(lines)

    def _text(self, root: Node) -> str:
        """A value in the rule's notation, in terms of names of the rule."""
        texts: dict[Node, Spelling] = {}
        for n in toposort([root]):
            named = n in self.names and n.args
            texts[n] = (self.names[n], ATOM) if named else spell(n, [texts[a] for a in n.args])
        return texts[root][0]
