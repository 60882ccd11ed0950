"""Operations that no back end has, written out in those that every back end has.

In: a program, or values per step for a device. Out: the same in simpler operations. What a function becomes
its row in `ir.functions` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from optgen.ir import expansions
from optgen.ir.extent import Extent
from optgen.ir.functions import operation
from optgen.ir.node import LEAVES, Node, Op, const, rebuild, toposort
from optgen.ir.program import Program
from optgen.ir.semantics import constant
from optgen.passes import philox
from optgen.passes.fold import without

OPERATORS = {Op.POW: expansions.power, Op.MOD: expansions.mod}


def expand(program: Program) -> Program:
    """Write `tanh` and such, `**` and random numbers out in simpler operations, but for the host's."""
    random = {Op.NORMAL: philox.normal, Op.UNIFORM: philox.uniform}
    drawn = {n.value: n.op for n in toposort(program.roots()) if n.op in random}
    draws = {value: i for i, value in enumerate(sorted(drawn, key=str))}

    def write_out(n: Node) -> Node | None:
        if n.op in random:
            return random[n.op](draws[n.value])
        written = expansion(n.op) if n.extent > Extent.STEP else None
        return written(*n.args) if written else None

    return program.map(write_out)


def expansion(op: Op) -> Callable[..., Node] | None:
    """What an operation is written out as; None for one that every back end has."""
    row = operation(op)
    return row.expansion if row else OPERATORS.get(op)


def spelled_out(roots: Sequence[Node]) -> list[Node]:
    """Values per step with `**`, `%` and functions written out too, for a device that computes them."""
    done: dict[Node, Node] = {}
    for n in toposort(roots):
        args = tuple(done[a] for a in n.args)
        written_out = expansion(n.op)
        written = written_out(*args) if written_out else rebuild(n, args)
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
    return without(n) or n
