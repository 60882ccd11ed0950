"""Specialisation: which states the host computes, and a program without compile-time conditions.

In: a program, which of its conditions hold, and how many dimensions a tensor has. Out: a program without
conditions, options and what only other options use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from optgen.errors import RuleError
from optgen.ir.extent import Extent
from optgen.ir.functions import number_of
from optgen.ir.node import LEAVES, REDUCTIONS, DType, Node, Op, const, load, node, rebuild, toposort
from optgen.ir.program import Program
from optgen.ir.semantics import constant


def recur(program: Program) -> Program:
    """Turn tensor state that follows from STEP values alone into a recurrence that the host computes.

    The answer holds for all options and for `train()` and `eval()`, so a state never
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
    """Give some states another extent, wherever they are read."""

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
            conditions = ", ".join(f"{text}: {truth}" for text, truth in truths.items())
            raise RuleError(
                f"'{n.value}' has no value with these options ({conditions})",
                program.spans.get(n),
                f"assign {n.value} on both branches",
            )
    chosen = _shape(_drop_states(chosen), ndim)
    return replace(chosen, assigns=chosen.modes.get(mode, {}) if mode else chosen.assigns, modes={})


def _narrowed(old: Node, new: Node) -> Node:
    """Scale a reduction by how many elements each value stands for: options made its operand coarser."""
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
