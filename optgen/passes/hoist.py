"""Loop-invariant code motion: values per step leave the element loop, and the host computes them."""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.extent import Extent
from optgen.ir.node import Node, Op, node, rebuild, toposort
from optgen.ir.program import Program


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
