"""Program to program: everything between the text and the plan, as a visible list of functions.

`recur` and `specialise` come first: one says for every setting which state the host computes, the other
needs the settings of a parameter group. `PASSES` follow in order. None of them changes the value that the
reference computes, except that `expand` rounds otherwise than a library does (its figures are there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from optgen.errors import RuleError
from optgen.ir.extent import Extent, join
from optgen.ir.functions import number_of
from optgen.ir.node import LEAVES, REDUCTIONS, DType, Node, Op, const, load, node, rebuild, toposort
from optgen.ir.program import Program
from optgen.ir.semantics import constant
from optgen.passes import philox

Pass = Callable[[Program], Program]


def recur(program: Program) -> Program:
    """Turn tensor state that follows from STEP values alone into a recurrence that the host computes.

    The answer holds for every setting of the options and for `train()` and `eval()`, so a state never
    changes its place.
    """
    host = {k for k, s in program.states.items() if s.extent is Extent.TENSOR}
    while True:
        changed = _with_extent(program, host, Extent.STEP)
        steps = (changed.assigns, *changed.modes.values())
        slow = {k for step in steps for k, n in step.items() if k in host and n.extent > Extent.STEP}
        if not slow:
            return changed
        host -= slow


def _with_extent(program: Program, names: Collection[str], extent: Extent) -> Program:
    def change(n: Node) -> Node | None:
        name = n.value or ""
        return load(name, extent=extent) if n.op is Op.LOAD and name in names else None

    changed = program.map(change)
    states = {k: replace(s, extent=extent) if k in names else s for k, s in changed.states.items()}
    return replace(changed, states=states)


def shaped(program: Program) -> bool:
    """Whether what a program does for a tensor depends on how many dimensions it has."""
    nodes = toposort(program.roots())
    extents = {n.extent for n in nodes} | {s.extent for s in program.states.values()}
    return any(e.sliced for e in extents) or any(f.subject == "ndim" for f in program.facts.values())


def canonical(extent: Extent, ndim: int) -> Extent:
    """The extent that the slices of a tensor with so many dimensions have, of those that are alike.

    Raises:
        RuleError: there is no such dimension.
    """
    if extent.name.startswith("DIM"):
        if not extent.size < ndim:
            raise RuleError(
                f"{extent.name.lower()} of a tensor with {ndim} dimensions", None, "ask `if ndim > …`"
            )
        if extent.size in (-1, ndim - 1):
            return {1: Extent.ELEMENT, 2: Extent.COL}.get(ndim, Extent.dim(-1))
        extent = Extent.UNIT if extent.size == 0 else extent
    if extent in (Extent.UNIT, Extent.COL) and ndim < 2:
        return Extent.ELEMENT
    if extent is Extent.UNIT and ndim == 2:
        return Extent.ROW
    if (extent is Extent.ROW and ndim < 2) or (extent is Extent.MATRIX and ndim < 3):
        return Extent.TENSOR
    return extent


def specialise(
    program: Program, truths: Mapping[str, bool], mode: str | None = None, ndim: int = 2
) -> Program:
    """Resolve every compile-time choice; `truths` says which of the program's facts hold.

    Slices become what they are for a tensor with `ndim` dimensions.

    With a `mode`, the program of `def train()` or `def eval()` takes the place of the step. State that
    neither the step nor a mode reads or assigns is dropped.

    Raises:
        RuleError: a name is used that has no value under these options.
    """

    def decide(n: Node) -> Node | None:
        if n.op is Op.FACT:
            return const(truths[n.value or ""], DType.BOOL)
        if n.dtype is DType.BOOL and n.extent is Extent.CONST and n.op not in LEAVES:
            value = constant(n)
            return None if value is None else const(bool(value), DType.BOOL)
        if n.op is Op.CHOOSE and n.args[0].op is Op.CONST:
            return n.args[1] if n.args[0].number else n.args[2]
        kept = n.op is Op.WHERE and n.args[1] is n.args[2] and n.args[1].op is Op.LOAD
        return n.args[1] if kept and n.args[1].extent is n.extent else None

    bare = replace(
        program, requires=(), update=None, gradient=None, parts=(), skip=None, count=None, schedules={}
    )
    done: dict[Node, Node] = {}
    for old in toposort(bare.roots()):
        new = rebuild(old, tuple(done[a] for a in old.args))
        done[old] = decide(new) or _narrowed(old, new)
    chosen = bare.moved(done)
    for n in toposort(chosen.roots()):
        if n.op is Op.UNDEF:
            settings = ", ".join(f"{text}: {truth}" for text, truth in truths.items())
            raise RuleError(
                f"'{n.value}' has no value with these options ({settings})",
                program.spans.get(n),
                f"assign {n.value} on both branches",
            )
    chosen = _shape(_drop_states(chosen), ndim)
    return replace(chosen, assigns=chosen.modes.get(mode, {}) if mode else chosen.assigns, modes={})


def _narrowed(old: Node, new: Node) -> Node:
    """A reduction whose options chose a coarser value than the text has: it counts what that stands for."""
    if new.op not in REDUCTIONS or new.extent is Extent.ALL or old.args[0].extent is new.args[0].extent:
        return new
    x, before, target = new.args[0], old.args[0].extent, new.extent
    over, under = number_of(before), number_of(target)
    if x.extent > Extent.TENSOR and x.extent is not target:
        if target is Extent.TENSOR:
            x, under = node(new.op, x), number_of(x.extent)
        elif {x.extent, target} == {Extent.ROW, Extent.COL}:
            return node(new.op, x, extent=Extent.MATRIX)
        else:
            raise RuleError(
                f"{new.op.value}() along {target.name.lower()} of {x.extent.phrase}, with these options"
            )
    if new.op is Op.AMAX:
        return x
    return node(Op.MUL, over if under is const(1) else node(Op.DIV, over, under), x)


def _shape(program: Program, ndim: int) -> Program:
    """Slices as those of a tensor with so many dimensions."""
    done: dict[Node, Node] = {}
    for old in toposort(program.roots()):
        new = rebuild(old, tuple(done[a] for a in old.args))
        if new.op in REDUCTIONS and new.extent is not Extent.ALL:
            target = canonical(new.extent, ndim)
            new = new.args[0] if new.args[0].extent is target else node(new.op, *new.args, extent=target)
        elif new.op is Op.LOAD:
            new = load(new.value or "", extent=canonical(new.extent, ndim))
        done[old] = new
    states = {k: replace(s, extent=canonical(s.extent, ndim)) for k, s in program.states.items()}
    return replace(program, states=states).moved(done)


def _drop_states(program: Program) -> Program:
    """Forget assignments of a state to itself, and states that nothing touches."""

    def effective(assigns: Mapping[str, Node]) -> dict[str, Node]:
        return {k: n for k, n in assigns.items() if not (n.op is Op.LOAD and n.value == k)}

    assigns = effective(program.assigns)
    modes = {m: effective(mode) for m, mode in program.modes.items()}
    touched = {*assigns, *(k for mode in modes.values() for k in mode)}
    roots = [*assigns.values(), *(n for mode in modes.values() for n in mode.values())]
    touched |= {n.value or "" for n in toposort(roots) if n.op is Op.LOAD}
    states = {k: s for k, s in program.states.items() if k in touched}
    return replace(program, assigns=assigns, modes=modes, states=states)


def expand(program: Program) -> Program:
    """Write `tanh`, `atan2`, `**` and random numbers out in simpler operations, but for the host's."""
    rules: dict[Op, Callable[..., Node]] = {Op.TANH: _tanh, Op.ATAN2: _atan2, Op.POW: _pow}
    random = {Op.NORMAL: philox.normal, Op.UNIFORM: philox.uniform}
    drawn = {n.value: n.op for n in toposort(program.roots()) if n.op in random}
    draws = {value: i for i, value in enumerate(sorted(drawn, key=str))}

    def write_out(n: Node) -> Node | None:
        if n.op in random:
            return random[n.op](draws[n.value])
        return rules[n.op](*n.args) if n.op in rules and n.extent > Extent.STEP else None

    return program.map(write_out)


def spelled_out(roots: Sequence[Node]) -> list[Node]:
    """Values per step with `**`, `tanh`, `atan2` and `%` written out too, for a device that computes them."""
    rules: dict[Op, Callable[..., Node]] = {Op.TANH: _tanh, Op.ATAN2: _atan2, Op.POW: _pow, Op.MOD: _mod}
    done: dict[Node, Node] = {}
    for n in toposort(roots):
        args = tuple(done[a] for a in n.args)
        written = rules[n.op](*args) if n.op in rules else rebuild(n, args)
        settled: dict[Node, Node] = {}
        for part in toposort([written]):
            settled[part] = _settled(rebuild(part, tuple(settled[a] for a in part.args)))
        done[n] = settled[written]
    return [done[n] for n in roots]


def _settled(n: Node) -> Node:
    """A constant for what is one, and the other side of a truth that decides nothing."""
    if n.extent is Extent.CONST and n.op not in LEAVES:
        return const(float(cast(Any, constant(n))), n.dtype)
    if n.op in (Op.AND, Op.OR) and Op.CONST in (n.args[0].op, n.args[1].op):
        known, other = n.args if n.args[0].op is Op.CONST else reversed(n.args)
        return other if bool(known.number) is (n.op is Op.AND) else known
    return _without(n) or n


def fold(program: Program) -> Program:
    """Compute what is constant, in float64, and drop operations that change no value."""

    def simplify(n: Node) -> Node | None:
        if n.op in LEAVES:
            return None
        if n.extent is Extent.CONST:
            value = constant(n)
            return None if value is None else const(float(value), n.dtype)
        plain = _without(n)
        # A value per step is not yet rounded to working precision: nothing faster may become one.
        return plain if plain is None or join(plain.extent, Extent.STEP) is n.extent else None

    return program.map(simplify)


def _without(n: Node) -> Node | None:
    """The argument that an operation gives back as it is, if it does that."""
    one, zero = const(1), const(0)
    match n.op, n.args:
        case ((Op.MUL | Op.DIV), (a, b)) if b is one:
            return a
        case Op.MUL, (a, b) if a is one:
            return b
        case Op.SUB, (a, b) if b is zero:
            return a
        case Op.NEG, (a,) if a.op is Op.NEG:
            return a.args[0]
        case Op.WHERE, (_, a, b) if a is b:
            return a
        case Op.WHERE, (c, a, b) if c.op is Op.CONST:
            return a if c.number else b
    return None


def hoist(program: Program) -> Program:
    """Move each largest STEP subtree out of the element loop: the host computes it once per step."""
    host = {k for k, s in program.states.items() if s.extent is Extent.STEP}
    wanted: dict[Node, None] = {}
    for target, root in program.assigns.items():
        if root.extent is Extent.STEP or (target in host and root.extent is Extent.CONST):
            wanted[root] = None
    once: dict[Node, Node] = {}
    for n in toposort(program.assigns.values()):
        if n.op is Op.ONCE:
            once.setdefault(n.args[0], node(Op.TOTAL, value=f"once{len(once)}", dtype=n.dtype))
        elif n.extent > Extent.STEP:
            wanted.update(dict.fromkeys(a for a in n.args if a.extent is Extent.STEP))
    scalars = {n: node(Op.SCALAR, value=str(i), dtype=n.dtype) for i, n in enumerate(wanted)}

    # Only where a STEP value meets a faster one; inside a larger STEP subtree it stays what it is.
    done: dict[Node, Node] = {}
    for n in toposort(program.assigns.values()):
        if n.op is Op.ONCE:
            done[n] = once[n.args[0]]
        elif n.extent > Extent.STEP:
            args = tuple(done[a] if a.extent > Extent.STEP else scalars.get(a, a) for a in n.args)
            done[n] = rebuild(n, args)
    assigns = {k: done.get(n) or scalars.get(n, n) for k, n in program.assigns.items()}
    moved = done | scalars
    return replace(
        program,
        assigns=assigns,
        scalars=tuple(wanted),
        onces=tuple(once),
        names={moved[n]: name for n, name in program.names.items() if n in moved},
        spans={moved[n]: span for n, span in program.spans.items() if n in moved},
    )


PASSES: tuple[Pass, ...] = (expand, fold, hoist)


def lower(program: Program, truths: Mapping[str, bool], mode: str | None = None, ndim: int = 2) -> Program:
    """The program that `plan` takes: specialised, then every pass in order."""
    program = specialise(recur(program), truths, mode, ndim)
    for run in PASSES:
        program = run(program)
    return program


@dataclass(frozen=True)
class Count:
    """How many operations a program has after a pass, per element and per step."""

    name: str
    element: int
    tensor: int
    step: int


def count(name: str, program: Program) -> Count:
    """Count the operations of a program by extent; leaves are free."""
    nodes = [n for n in toposort([*program.assigns.values(), *program.scalars]) if n.op not in LEAVES]
    element = sum(n.extent is Extent.ELEMENT for n in nodes)
    tensor = sum(n.extent is Extent.TENSOR for n in nodes)
    return Count(name, element, tensor, len(nodes) - element - tensor)


def trace(program: Program, truths: Mapping[str, bool]) -> list[Count]:
    """The op counts of the program as written and after each pass."""
    counts = [count("written", program)]
    program = specialise(recur(program), truths)
    counts.append(count("specialise", program))
    for run in PASSES:
        program = run(program)
        counts.append(count(run.__name__, program))
    return counts


# Expansions. Triton has no built-in for these, and a library call would differ between back ends.


def _polynomial(z: Node, coefficients: tuple[float, ...]) -> Node:
    """Horner's scheme, highest power first."""
    total = const(coefficients[0])
    for c in coefficients[1:]:
        total = node(Op.ADD, node(Op.MUL, total, z), const(c))
    return total


def _mod(x: Node, y: Node) -> Node:
    """x - y*floor(x/y): exact for whole numbers below 2**53."""
    return node(Op.SUB, x, node(Op.MUL, y, node(Op.FLOOR, node(Op.DIV, x, y))))


def _tanh(x: Node) -> Node:
    """tanh: a rational function near zero, 1 - 2/(exp(2|x|) + 1) elsewhere; within 2 units in the last place.

    Coefficients: S. Moshier, Cephes Mathematical Library, tanh.c (relative error 4e-17 below 0.625).
    """
    z = node(Op.MUL, x, x)
    over = _polynomial(z, (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3))
    under = _polynomial(
        z, (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)
    )
    near = node(Op.ADD, x, node(Op.MUL, node(Op.MUL, x, z), node(Op.DIV, over, under)))
    size = node(Op.ABS, x)
    raised = node(Op.EXP, node(Op.MUL, const(2), size))
    tail = node(Op.SUB, const(1), node(Op.DIV, const(2), node(Op.ADD, raised, const(1))))
    far = node(Op.WHERE, node(Op.LT, x, const(0)), node(Op.NEG, tail), tail)
    return node(Op.WHERE, node(Op.LT, size, const(0.625)), near, far)


def _atan(x: Node) -> Node:
    """arctan of a non-negative number. Coefficients: Cephes Mathematical Library, atan.c."""
    large = node(Op.LT, const(2.41421356237309504880), x)  # tan(3 pi/8)
    middle = node(Op.LT, const(0.66), x)
    turned = node(Op.DIV, const(-1), x)
    halved = node(Op.DIV, node(Op.SUB, x, const(1)), node(Op.ADD, x, const(1)))
    reduced = node(Op.WHERE, large, turned, node(Op.WHERE, middle, halved, x))
    offset = node(Op.WHERE, large, const(math.pi / 2), node(Op.WHERE, middle, const(math.pi / 4), const(0)))
    z = node(Op.MUL, reduced, reduced)
    over = _polynomial(
        z,
        (
            -8.750608600031904122785e-1,
            -1.615753718733365076637e1,
            -7.500855792314704667340e1,
            -1.228866684490136173410e2,
            -6.485021904942025371773e1,
        ),
    )
    under = _polynomial(
        z,
        (
            1.0,
            2.485846490142306297962e1,
            1.650270098316988542046e2,
            4.328810604912902668951e2,
            4.853903996359136964868e2,
            1.945506571482613964425e2,
        ),
    )
    series = node(Op.MUL, z, node(Op.DIV, over, under))
    return node(Op.ADD, offset, node(Op.ADD, node(Op.MUL, reduced, series), reduced))


def _atan2(y: Node, x: Node) -> Node:
    """The angle of the point (x, y), in (-pi, pi]; 0 at the origin; at most 2 units in the last place.

    A zero's sign does not count.
    """
    angle = _atan(node(Op.DIV, node(Op.ABS, y), node(Op.ABS, x)))
    both_infinite = node(
        Op.AND,
        node(Op.EQ, node(Op.ABS, y), const(math.inf)),
        node(Op.EQ, node(Op.ABS, x), const(math.inf)),
    )
    angle = node(Op.WHERE, both_infinite, const(math.pi / 4), angle)
    origin = node(Op.AND, node(Op.EQ, y, const(0)), node(Op.EQ, x, const(0)))
    angle = node(Op.WHERE, origin, const(0), angle)
    angle = node(Op.WHERE, node(Op.LT, x, const(0)), node(Op.SUB, const(math.pi), angle), angle)
    return node(Op.WHERE, node(Op.LT, y, const(0)), node(Op.NEG, angle), angle)


def _pow(x: Node, y: Node) -> Node:
    """x**y as exp(y*log|x|); a negative base needs a whole exponent, and a zero's sign does not count.

    An error of log is multiplied by y*log(x): 3 units in the last place of float32 for a fractional y and
    an x from 0.1 to 10, 40 for 10 there, and 150 (1e-5) at the ends of the range.
    """
    size = node(Op.EXP, node(Op.MUL, y, node(Op.LOG, node(Op.ABS, x))))
    whole = node(Op.EQ, node(Op.FLOOR, y), y)
    half = node(Op.MUL, y, const(0.5))
    odd = node(Op.AND, whole, node(Op.NOT, node(Op.EQ, node(Op.FLOOR, half), half)))
    signed = node(Op.WHERE, odd, node(Op.NEG, size), size)
    negative = node(Op.WHERE, whole, signed, const(math.nan))
    result = node(Op.WHERE, node(Op.LT, x, const(0)), negative, size)
    one = node(Op.OR, node(Op.EQ, y, const(0)), node(Op.EQ, x, const(1)))
    return node(Op.WHERE, one, const(1), result)
