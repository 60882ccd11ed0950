"""Hash-consed nodes: what every stage after the language reads.

A `Node` is an operation on nodes. Equal nodes are one object, so common subexpressions are shared by
construction and identity is equality. Two properties are worked out when a node is built: its dtype
(a number in working precision, a truth value, or raw storage bits) and its extent, which says how
often its value changes. Hoisting, phases and allocation all follow from the extent.

Programs unroll loops, so a node can stand thousands of levels deep: nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from weakref import WeakValueDictionary

from optgen.ir.extent import Extent, join
from optgen.locks import lock


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
    TOTAL = "total"  # value: index into Plan.totals, or `once0` of the host's (after `plan`)
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


# Printing. A spelling is a text with the rank of its outermost operator, so that whoever puts it into
# a larger text knows whether it needs parentheses. The written order of operations is always kept.

Spelling = tuple[str, int]
ATOM = 10
INFIX = {
    Op.OR: 1, Op.AND: 2, Op.LT: 4, Op.LE: 4, Op.EQ: 4, Op.NE: 4,
    Op.ADD: 6, Op.SUB: 6, Op.MUL: 7, Op.DIV: 7, Op.MOD: 7,
}  # fmt: skip


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
