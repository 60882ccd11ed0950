"""The typed program that every stage after `syntax` reads: hash-consed nodes and one `Program`.

A `Node` is an operation on nodes. Equal nodes are one object, so common subexpressions are shared by
construction and identity is equality. Two properties are worked out when a node is built: its dtype
(a number in working precision, a truth value, or raw storage bits) and its extent, which says how
often its value changes. Hoisting, phases and allocation all follow from the extent.

Programs unroll loops, so a node can stand thousands of levels deep: nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import reduce
from typing import ClassVar, TypeVar
from weakref import WeakValueDictionary

from optgen.errors import Source, Span
from optgen.locks import lock, once

T = TypeVar("T")
Value = float | bool | str | None  # what a hyperparameter can hold, besides a tuple of them


@dataclass(frozen=True, eq=False)
class Extent:
    """How often a value changes; a node varies as fast as its fastest argument (see `join`).

    STEP covers everything the host knows before a launch: hyperparameters, the step count, the facts
    of a tensor's shape, and tensor state that follows from those alone. ALL is one number for the whole
    optimizer. Between TENSOR and ELEMENT stand the slices of a tensor: ROW and COL of its last two
    dimensions and the MATRIX that those two make, UNIT (an index of the first dimension), `dim(k)` (an
    index of dimension k; -1 is the last), and `block(n)` (n elements in a row). Each is one object.
    """

    name: str
    rank: int
    size: int = 0  # the k of dim(k), the n of block(n)

    CONST: ClassVar[Extent]
    STEP: ClassVar[Extent]
    ALL: ClassVar[Extent]
    TENSOR: ClassVar[Extent]
    MATRIX: ClassVar[Extent]
    ROW: ClassVar[Extent]
    COL: ClassVar[Extent]
    UNIT: ClassVar[Extent]
    ELEMENT: ClassVar[Extent]

    @staticmethod
    def dim(k: int) -> Extent:
        """One value for each index of dimension k."""
        return once(_extents, ("DIM", k), lambda: Extent(f"DIM({k})", 5, k))

    @staticmethod
    def block(n: int) -> Extent:
        """One value for each n elements in a row."""
        return once(_extents, ("BLOCK", n), lambda: Extent(f"BLOCK({n})", 5, n))

    def __lt__(self, other: Extent) -> bool:
        return self.rank < other.rank

    def __le__(self, other: Extent) -> bool:
        return self.rank <= other.rank

    def __gt__(self, other: Extent) -> bool:
        return self.rank > other.rank

    def __ge__(self, other: Extent) -> bool:
        return self.rank >= other.rank

    def __repr__(self) -> str:
        return self.name

    @property
    def sliced(self) -> bool:
        """Whether a tensor has several of these values, but fewer than elements."""
        return 3 < self.rank < 6

    @property
    def phrase(self) -> str:
        """The extent as error texts name it."""
        plain = {
            "CONST": "a constant", "STEP": "one value per step", "ALL": "one value for all tensors",
            "TENSOR": "one value per tensor", "ELEMENT": "a value per element",
        }  # fmt: skip
        return plain.get(self.name) or f"a value per {self.name.lower()}"


_extents: dict[tuple[str, int], Extent] = {}  # each is one object, whichever thread asks first
Extent.CONST, Extent.STEP, Extent.ALL = Extent("CONST", 0), Extent("STEP", 1), Extent("ALL", 2)
Extent.TENSOR, Extent.MATRIX = Extent("TENSOR", 3), Extent("MATRIX", 4)
Extent.ROW, Extent.COL, Extent.UNIT = Extent("ROW", 5), Extent("COL", 5), Extent("UNIT", 5)
Extent.ELEMENT = Extent("ELEMENT", 6)
EXTENTS = {
    e.name: e
    for e in (
        *(Extent.CONST, Extent.STEP, Extent.ALL, Extent.TENSOR, Extent.MATRIX, Extent.ROW, Extent.COL),
        *(Extent.UNIT, Extent.ELEMENT),
    )
}


def join(a: Extent, b: Extent) -> Extent:
    """The extent of a value made of two others.

    One value per step and one for all tensors make one per tensor, for a step's values differ between
    groups. Slices of two kinds make a value per element.
    """
    if a is b:
        return a
    low, high = (a, b) if a.rank <= b.rank else (b, a)
    if (low, high) == (Extent.STEP, Extent.ALL):
        return Extent.TENSOR
    if high.sliced and low.sliced and not (low is Extent.MATRIX and high in (Extent.ROW, Extent.COL)):
        return Extent.ELEMENT
    return high


def fits(extent: Extent, limit: Extent) -> bool:
    """Whether a store of one extent can hold a value of another."""
    return join(extent, limit) is limit


class DType(Enum):
    """What a node's value is. REAL is the working precision: float32, or float64 for float64 storage."""

    REAL = "real"
    F32 = "f32"
    U32 = "u32"
    BOOL = "bool"


class Op(Enum):
    """Every operation. Leaves carry a `value`; the rest carry `args`."""

    # leaves
    CONST = "const"  # value: float.hex()
    HYPER = "hyper"  # value: "lr", or "betas[0]"
    COUNT = "t"
    SHAPE = "shape"  # value: numel, ndim, rows, cols, or UNIT, DIM(k): the elements of such a slice
    LOAD = "load"  # value: p, g, or the name of a state or an input
    FACT = "fact"  # value: a compile-time condition, "amsgrad" or "momentum != 0"
    UNDEF = "undef"  # value: a name that has no value on this branch
    SCALAR = "scalar"  # value: index into Program.scalars
    SLOT = "slot"  # value: index of a finished reduction (after `plan`)
    SPILL = "spill"  # value: a temporary that an earlier phase wrote, "#0" (after `plan`)
    TOTAL = "total"  # value: index into Plan.totals, what is one number for the optimizer (after `plan`)
    NORMAL = "normal"  # a random number; value: which call of the rule it is
    UNIFORM = "uniform"
    INDEX = "index"  # an element's place in its tensor; value: low or high, 32 bits each
    KEY = "key"  # what random numbers follow from; value: seed_low, seed_high, param, step
    # arithmetic
    ADD = "+"
    SUB = "-"
    MUL = "*"
    DIV = "/"
    MOD = "%"
    POW = "**"
    NEG = "neg"
    ABS = "abs"
    SQRT = "sqrt"
    EXP = "exp"
    LOG = "log"
    TANH = "tanh"
    ATAN2 = "atan2"
    COS = "cos"  # of values per step: the host computes it
    FLOOR = "floor"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    ONCE = "once"  # a value per step as one for the optimizer: every group must have the same
    # truth
    LT = "<"
    LE = "<="
    EQ = "=="
    NE = "!="
    AND = "and"  # on U32: the bitwise operation
    OR = "or"
    NOT = "not"
    WHERE = "where"  # run-time choice
    CHOOSE = "choose"  # compile-time choice; `specialise` removes it
    # reductions, to the extent of their node
    SUM = "sum"
    AMAX = "amax"
    # storage
    CAST = "cast"  # REAL <-> F32, U32 -> REAL
    BITS = "bits"  # F32 -> U32
    FLOAT = "float"  # U32 -> F32
    SHL = "<<"
    SHR = ">>"
    XOR = "^"
    MULHI = "mulhi"  # the upper half of a product of 32 bits each


LEAVES = frozenset(
    {
        *(Op.CONST, Op.HYPER, Op.COUNT, Op.SHAPE, Op.LOAD, Op.FACT, Op.UNDEF, Op.SCALAR, Op.SLOT, Op.SPILL),
        *(Op.TOTAL, Op.NORMAL, Op.UNIFORM, Op.INDEX, Op.KEY),
    }
)
REDUCTIONS = frozenset({Op.SUM, Op.AMAX})
COMPARISONS = frozenset({Op.LT, Op.LE, Op.EQ, Op.NE})
_LEAF_EXTENT = {
    Op.CONST: Extent.CONST,
    Op.FACT: Extent.CONST,
    Op.UNDEF: Extent.CONST,
    Op.HYPER: Extent.STEP,
    Op.COUNT: Extent.STEP,
    Op.SHAPE: Extent.STEP,
    Op.SCALAR: Extent.STEP,
    Op.SLOT: Extent.TENSOR,
    Op.SPILL: Extent.ELEMENT,
    Op.LOAD: Extent.ELEMENT,
    Op.TOTAL: Extent.ALL,
    Op.NORMAL: Extent.ELEMENT,
    Op.UNIFORM: Extent.ELEMENT,
    Op.INDEX: Extent.ELEMENT,
    Op.KEY: Extent.TENSOR,
}


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Node:
    """One operation on other nodes. Equal nodes are the same object: build them with `node`."""

    op: Op
    dtype: DType
    args: tuple[Node, ...]
    value: str | None  # a leaf's name; for CONST its float.hex(), so that -0.0 is not 0.0
    extent: Extent

    def __repr__(self) -> str:
        texts: dict[Node, Spelling] = {}
        for n in toposort([self]):
            text, rank = spell(n, [texts[a] for a in n.args])
            texts[n] = (text, rank) if len(text) <= 200 else ("...", ATOM)
        return texts[self][0]

    @property
    def number(self) -> float:
        """The value of a CONST."""
        assert self.op is Op.CONST
        assert self.value is not None
        return float.fromhex(self.value)


_nodes: WeakValueDictionary[tuple[object, ...], Node] = WeakValueDictionary()
_adding = lock()  # two threads that build the same node get one


def node(
    op: Op,
    *args: Node,
    value: str | None = None,
    dtype: DType | None = None,
    extent: Extent | None = None,
) -> Node:
    """The node of an operation; its dtype and extent follow from the arguments where not given."""
    if dtype is None:
        dtype = _result_dtype(op, args)
    if extent is None:
        if not args:
            extent = _LEAF_EXTENT[op]
        elif op in REDUCTIONS:
            extent = Extent.TENSOR
        elif op is Op.ONCE:
            extent = Extent.ALL
        else:
            extent = reduce(join, (a.extent for a in args))
    key = (op, dtype, args, value, extent)
    found = _nodes.get(key)
    if found is not None:
        return found
    with _adding:
        return _nodes.setdefault(key, Node(op, dtype, args, value, extent))


def _result_dtype(op: Op, args: tuple[Node, ...]) -> DType:
    if op in COMPARISONS or op is Op.NOT or op is Op.FACT:
        return DType.BOOL
    if op in (Op.BITS, Op.INDEX, Op.KEY):
        return DType.U32
    if op is Op.FLOAT:
        return DType.F32
    if op in (Op.WHERE, Op.CHOOSE):
        return args[1].dtype
    return args[0].dtype if args else DType.REAL


def const(value: float, dtype: DType = DType.REAL) -> Node:
    """A constant of the given dtype."""
    return node(Op.CONST, value=float(value).hex(), dtype=dtype)


def load(name: str, dtype: DType = DType.REAL, extent: Extent = Extent.ELEMENT) -> Node:
    """The value that a stored tensor (`p`, `g` or a state) has when the step begins."""
    return node(Op.LOAD, value=name, dtype=dtype, extent=extent)


def toposort(roots: Iterable[Node]) -> list[Node]:
    """Every node that the roots reach, arguments before their users, in a fixed order."""
    order: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        current, ready = stack.pop()
        if current in order:
            continue
        if ready:
            order[current] = None
        else:
            stack.append((current, True))
            stack.extend((a, False) for a in reversed(current.args))
    return list(order)


def rebuild(current: Node, args: tuple[Node, ...]) -> Node:
    """The node with other arguments; a changed extent follows from them, but for a reduction's."""
    if args == current.args:
        return current
    extent = current.extent if current.op in REDUCTIONS else None
    return node(current.op, *args, value=current.value, dtype=current.dtype, extent=extent)


def rewrite(roots: Iterable[Node], change: Callable[[Node], Node | None]) -> dict[Node, Node]:
    """Map each reachable node to its rewritten form, arguments first.

    `change` gets a node whose arguments are rewritten already, and answers with its replacement, or
    with None to keep it. A replacement is not visited again.
    """
    done: dict[Node, Node] = {}
    for old in toposort(roots):
        new = rebuild(old, tuple(done[a] for a in old.args))
        changed = change(new)
        done[old] = new if changed is None else changed
    return done


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
    """What a step is handed besides gradients: a tensor for each parameter, or one number for all.

    `default` stands for an input that is not handed in; None: it must be.
    """

    name: str
    extent: Extent
    default: float | None = None


@dataclass(frozen=True)
class Fact:
    """A compile-time condition on an option, a hyperparameter, `ndim`, or whether an input is given.

    `relation` is one of `== != < <= > >= is`; a bare boolean option is `name is True`.
    """

    subject: str
    relation: str
    value: Value

    def __str__(self) -> str:
        if self.relation == "is" and self.value is True:
            return self.subject
        return f"{self.subject} {self.relation} {self.value!r}"


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


# Printing. A spelling is a text with the rank of its outermost operator, so that whoever puts it into
# a larger text knows whether it needs parentheses. The written order of operations is always kept.

Spelling = tuple[str, int]
ATOM = 10
INFIX = {
    Op.OR: 1, Op.AND: 2, Op.LT: 4, Op.LE: 4, Op.EQ: 4, Op.NE: 4,
    Op.ADD: 6, Op.SUB: 6, Op.MUL: 7, Op.DIV: 7, Op.MOD: 7,
}  # fmt: skip
LINE_OPERATORS = 24  # an expression with more operators than this is given a name of its own


def infix(symbol: str, rank: int, left: Spelling, right: Spelling) -> Spelling:
    """`left symbol right`, with parentheses where the order of operations needs them."""
    a = left[0] if left[1] >= rank + (rank == 4) else f"({left[0]})"
    b = right[0] if right[1] > rank else f"({right[0]})"
    tight = rank == 7
    return (f"{a}{symbol}{b}" if tight else f"{a} {symbol} {b}"), rank


def spell(current: Node, args: Sequence[Spelling]) -> Spelling:
    """A node in the notation of rules, from the spellings of its arguments."""
    op = current.op
    if op is Op.CONST:
        text = repr(current.number).removesuffix(".0")
        return text, (8 if text.startswith("-") else ATOM)
    if op in LEAVES:
        if op in (Op.NORMAL, Op.UNIFORM):
            return f"{op.value}()", ATOM
        name = (current.value or op.value).removeprefix("#")
        if op is Op.TOTAL and name.startswith("once"):  # what the host computes for the totals
            return name, ATOM
        prefix = {Op.SCALAR: "s", Op.SLOT: "r", Op.SPILL: "x", Op.TOTAL: "total"}.get(op, "")
        return prefix + name, ATOM
    if op in INFIX:
        return infix(op.value, INFIX[op], args[0], args[1])
    if op is Op.NEG:
        return f"-{args[0][0] if args[0][1] >= 8 else f'({args[0][0]})'}", 8
    if op is Op.NOT:
        return f"not {args[0][0] if args[0][1] >= 3 else f'({args[0][0]})'}", 3
    if op is Op.POW:
        base, exponent = (t if r == ATOM else f"({t})" for t, r in args)
        return f"{base}**{exponent}", 9
    if op in (Op.WHERE, Op.CHOOSE):
        condition, a, b = (t if r > 0 else f"({t})" for t, r in args)
        return f"{a} if {condition} else {b}", 0
    texts = [t for t, _ in args]
    if op in REDUCTIONS and current.extent is Extent.ALL:
        texts.append("over=all")
    elif op in REDUCTIONS and current.extent is not Extent.TENSOR:
        along = {Extent.ROW: "-1", Extent.COL: "-2"}
        along[Extent.MATRIX] = "-2" if current.args[0].extent is Extent.ROW else "-1"
        texts.append(f"axis={along.get(current.extent) or current.extent.name.lower()}")
    return f"{op.value}({', '.join(texts)})", ATOM


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
