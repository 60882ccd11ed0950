"""A rule, or a chain of rules, as assignments of nodes to stores.

In: nodes by the name of what they are assigned to, and declarations. Out: a `Program`, which can be rewritten
node by node, and prints itself in the notation of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from optgen.errors import Source, Span
from optgen.ir.extent import Extent
from optgen.ir.facts import Fact, Value
from optgen.ir.node import ATOM, LEAVES, Node, Spelling, rewrite, spell, toposort

T = TypeVar("T")


@dataclass(frozen=True)
class Hyper:
    """A hyperparameter: numbers are run-time values, booleans, strings and None compile-time options."""

    name: str
    default: Value | tuple[Value, ...]


@dataclass(frozen=True)
class State:
    """State that outlives the step: its first value, how often it varies, its `state_dict` key."""

    name: str
    init: Node
    extent: Extent
    key: str


@dataclass(frozen=True)
class Input:
    """What `step` is given besides gradients: a tensor for each parameter, or one number for all.

    `default` stands for an input that is not given; None: it must be.
    """

    name: str
    extent: Extent
    default: float | None = None


@dataclass(frozen=True)
class Requirement:
    """A condition on hyperparameters, checked whenever they are set; `text` is quoted in the error."""

    condition: Node
    text: str
    span: Span


@dataclass(frozen=True)
class Program:
    """A rule, or a chain of them, as assignments of nodes to stores.

    `assigns` maps `p`, `g` (a transform that comes before a rule), `u` (one that comes after) and the
    names of states to their values at the end of the step. `modes` are the small programs that
    `optimizer.train()` and `.eval()` run. `update` is the X of the rule's last `p = p - X`, with the
    value of `p` before that statement. `scalars` are the STEP values that `hoist` moved to the host.
    """

    name: str
    doc: str
    sources: tuple[Source, ...]
    hypers: Mapping[str, Hyper]
    states: Mapping[str, State]
    requires: tuple[Requirement, ...]
    facts: Mapping[str, Fact]
    assigns: Mapping[str, Node]
    update: tuple[Node, Node] | None = None
    modes: Mapping[str, Mapping[str, Node]] = field(default_factory=dict)
    parts: tuple[Program, ...] = ()  # what a chain was made of
    gradient: Node | None = None  # in a chain: what the rule was given as g
    scalars: tuple[Node, ...] = ()
    onces: tuple[Node, ...] = ()  # likewise, of the values that are one for the whole optimizer
    inputs: Mapping[str, Input] = field(default_factory=dict)
    skip: Node | None = None  # in a transform before a rule: whether the rest of the step is left out
    count: Node | None = None  # likewise: the t of the programs after it
    schedules: Mapping[str, Node] = field(default_factory=dict)  # likewise: their hyperparameters, by path
    spans: Mapping[Node, Span] = field(default_factory=dict, compare=False, repr=False)
    names: Mapping[Node, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """`rule`, or the place of a transform in a chain: `before` or `after` the rule."""
        if "g" in self.assigns:
            return "before"
        return "rule" if "p" in self.assigns else "after"

    def roots(self) -> list[Node]:
        """Every node that something outside the graph holds on to."""
        found = [*self.assigns.values(), *(s.init for s in self.states.values()), *self.scalars, *self.onces]
        found += [n for mode in self.modes.values() for n in mode.values()]
        found += [r.condition for r in self.requires]
        found += [n for n in (self.gradient, self.skip, self.count) if n is not None]
        return found + list(self.schedules.values()) + list(self.update or ())

    def map(self, change: Callable[[Node], Node | None]) -> Program:
        """The program with every node rewritten; names and places follow their nodes."""
        return self.moved(rewrite(self.roots(), change))

    def moved(self, done: Mapping[Node, Node]) -> Program:
        """The program with other nodes in place of its own."""
        return replace(
            self,
            assigns={k: done[n] for k, n in self.assigns.items()},
            states={k: replace(s, init=done[s.init]) for k, s in self.states.items()},
            requires=tuple(replace(r, condition=done[r.condition]) for r in self.requires),
            modes={m: {k: done[n] for k, n in mode.items()} for m, mode in self.modes.items()},
            scalars=tuple(done[n] for n in self.scalars),
            onces=tuple(done[n] for n in self.onces),
            update=None if self.update is None else (done[self.update[0]], done[self.update[1]]),
            gradient=None if self.gradient is None else done[self.gradient],
            skip=None if self.skip is None else done[self.skip],
            count=None if self.count is None else done[self.count],
            schedules={path: done[n] for path, n in self.schedules.items()},
            spans=_follow(self.spans, done),
            names=_follow(self.names, done),
        )

    def __str__(self) -> str:
        """The program as statements in the rule's own notation, one a line."""
        return "\n".join(statements(self))


def _follow(table: Mapping[Node, T], done: Mapping[Node, Node]) -> dict[Node, T]:
    moved: dict[Node, T] = {}
    for old, entry in table.items():
        if old in done:
            moved.setdefault(done[old], entry)
    return moved


LINE_OPERATORS = 24  # an expression with more operators than this is given a name of its own


def name_nodes(
    roots: Sequence[Node],
    names: Mapping[Node, str],
    reserved: Iterable[str] = (),
    always: Container[Node] = (),
) -> dict[Node, str]:
    """A distinct identifier for each node that deserves a line of its own, in order.

    Those are the nodes that the rule named or that are used more than once, those in `always`, and any
    that would make an expression too long to read. `reserved` identifiers are left alone.
    """
    order = toposort(roots)
    uses = dict.fromkeys(order, 0)
    for n in order:
        for a in n.args:
            uses[a] += 1
    size: dict[Node, int] = {}
    chosen: dict[Node, str] = {}
    taken = dict.fromkeys(reserved, 0)
    for n in order:
        size[n] = 1 + sum(size[a] for a in n.args) if n.args else 0
        if n.op in LEAVES or not (n in names or uses[n] > 1 or size[n] > LINE_OPERATORS or n in always):
            continue
        size[n] = 0
        stem = names.get(n, "x")
        taken[stem] = taken.get(stem, -1) + 1
        name = stem if taken[stem] == 0 else f"{stem}_{taken[stem]}"
        while name in taken and taken[stem]:
            taken[stem] += 1
            name = f"{stem}_{taken[stem]}"
        taken.setdefault(name, 0)
        chosen[n] = name
    return chosen


def statements(program: Program) -> list[str]:
    """The program's assignments as lines in the notation of rules."""
    roots = list(program.assigns.values())
    leaves = {spell(n, ())[0] for n in toposort(roots) if n.op in LEAVES}
    names = name_nodes(roots, program.names, leaves)
    texts: dict[Node, Spelling] = {}
    lines = [f"s{i} = {scalar!r}" for i, scalar in enumerate(program.scalars)]
    for n in toposort(roots):
        texts[n] = spell(n, [texts[a] for a in n.args])
        if n in names:
            lines.append(f"{names[n]} = {texts[n][0]}")
            texts[n] = (names[n], ATOM)
    return lines + [f"{target} <- {texts[n][0]}" for target, n in program.assigns.items()]
