"""Values per step made shorter by sympy, and derivatives: sympy's expressions as nodes again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import sympy as sp

from optgen.algebra.bounds import paths
from optgen.algebra.proof import exact, op_of, sympy_of
from optgen.ir import functions as fn
from optgen.ir.extent import Extent
from optgen.ir.functions import operation
from optgen.ir.node import REDUCTIONS, DType, Node, Op, const, node, toposort
from optgen.ir.program import Program


def simplify(scalar: Node) -> Node:
    """A STEP scalar with fewer operations and the same real value, or the same node where none is found.

    It rounds differently: use it to show a scalar, not to compute one.

    Raises:
        ValueError: the node is not a value per step.
    """
    if scalar.extent > Extent.STEP:
        raise ValueError(f"simplify() takes a value per step, and this is {scalar.extent.phrase}")
    order = toposort([scalar])
    if len(order) > 300:  # sympy recurses, and would take minutes
        return scalar
    values: dict[Node, Any] = {}
    leaves: dict[Any, Node] = {}
    for n in order:
        if n.args:
            values[n] = sympy_of(n.op)(*(values[x] for x in n.args))
        elif n.op is Op.CONST:
            values[n] = sp.true if n.dtype is DType.BOOL and n.number else exact(n)
        else:
            known = {"real": True} if n.dtype is not DType.BOOL else {}
            known |= {"integer": True, "positive": True} if n.op is Op.COUNT else {}
            values[n] = sp.Symbol(n.value or "t", **known)
            leaves[values[n]] = n
    short = sp.simplify(values[scalar])
    if not _known(short):
        return scalar
    found = _node(short, leaves)
    return found if len(toposort([found])) < len(order) else scalar


def _node(x: Any, leaves: Mapping[Any, Node]) -> Node:
    """The node of a small sympy expression."""
    if x in leaves:
        return leaves[x]
    if x in (sp.true, sp.false):
        return const(bool(x), DType.BOOL)
    if x.is_number and x.is_real is not False and not x.free_symbols:
        return const(float(x))
    if x.is_Add:
        first, *rest = sorted(x.as_ordered_terms(), key=lambda term: bool(term.could_extract_minus_sign()))
        whole = _node(first, leaves)
        for term in rest:
            minus = term.could_extract_minus_sign()
            whole = node(Op.SUB if minus else Op.ADD, whole, _node(-term if minus else term, leaves))
        return whole
    if x.is_Mul and x.could_extract_minus_sign():
        return node(Op.NEG, _node(-x, leaves))
    if x.is_Mul or (x.is_Pow and x.exp.could_extract_minus_sign()):
        over, under = x.as_numer_denom() if x.is_Pow else sp.fraction(x)
        if under != 1:
            return node(Op.DIV, _node(over, leaves), _node(under, leaves))
        whole, *factors = (_node(f, leaves) for f in x.as_ordered_factors())
        for factor in factors:
            whole = node(Op.MUL, whole, factor)
        return whole
    if x.is_Pow:
        return fn.power(_node(x.base, leaves), _node(x.exp, leaves))
    if isinstance(x, sp.Piecewise):
        whole = _node(x.args[-1].expr, leaves)
        for value, condition in x.args[-2::-1]:
            whole = node(Op.WHERE, _node(condition, leaves), _node(value, leaves), whole)
        return whole
    if isinstance(x, sp.Gt | sp.Ge):
        return _node(x.reversed, leaves)
    if isinstance(x, sp.sign):
        return fn.sign(_node(x.args[0], leaves))
    args = [_node(arg, leaves) for arg in x.args]
    op = op_of(x.func)
    if op is None:
        raise ValueError(f"no operation for {x.func}")
    whole = node(op, *args[:2])
    for extra in args[2:]:  # sympy's maximum, for one, takes any number
        whole = node(op, whole, extra)
    return whole


@cache
def _partials(op: Op, count: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Symbols for the arguments of an operation, and its derivative with respect to each."""
    x, y = symbols = sp.symbols("x y", real=True)
    row = operation(op)
    if row and row.flat:
        return symbols, (sp.Integer(0),) * count
    if op is Op.MOD:
        return symbols, (sp.Integer(1), -sp.floor(x / y))
    if op in (Op.MAXIMUM, Op.MINIMUM):
        first = sp.Piecewise((1, x >= y if op is Op.MAXIMUM else x <= y), (0, True))
        return symbols, (first, 1 - first)
    value = sympy_of(op)(*symbols[:count])
    partials = (sp.powsimp(sp.diff(value, s)) for s in symbols[:count])
    return symbols, tuple(d if _known(d) else d.rewrite(sp.exp) for d in partials)


def _known(x: Any) -> bool:
    """Whether each function in an expression is one that nodes have."""
    return all(op_of(f.func) or isinstance(f, sp.Piecewise | sp.sign) for f in x.atoms(sp.Function))


def derive(program: Program, by: str, of: str = "p") -> Node:
    """The derivative of what a step assigns to `of`, by a hyperparameter, `t`, p, g or a state.

    For example `derive(sgd, "lr")`, the hypergradient of p. What `of` and `by` name is per element:
    the derivative of an element by that same element. At a kink (`maximum`, `abs`) it is one side's.

    Raises:
        ValueError: the rule has no such name, or through a reduction an element depends on all others.
    """
    if of not in program.assigns:
        raise ValueError(f"{program.name} does not assign '{of}'; it assigns {', '.join(program.assigns)}")
    known = [*paths(program), *program.states, "p", "g", "u", "t"]
    if by not in known:
        raise ValueError(f"{program.name} has no '{by}'; there are {', '.join(known)}")
    found: dict[Node, Node] = {}
    zero, one = const(0), const(1)
    for n in toposort([program.assigns[of]]):
        if not n.args and n.op is not Op.CONST and (n.value or "t") == by:
            found[n] = one
        rates = [found.get(x) for x in n.args]
        if not any(rates) or n.dtype is DType.BOOL:
            continue
        if n.op in REDUCTIONS:
            if (
                n.extent is not Extent.TENSOR
                or n.op is Op.AMAX
                or by in program.states
                or by in ("p", "g", "u")
            ):
                raise ValueError(
                    f"no derivative of {of} by {by} element by element: {n.op.value}() mixes them"
                )
            inner = found[n.args[0]]
            found[n] = node(Op.SUM, inner) if inner.extent is Extent.ELEMENT else _product(fn.NUMEL, inner)
        elif n.op in (Op.WHERE, Op.CHOOSE):
            found[n] = node(n.op, n.args[0], rates[1] or zero, rates[2] or zero)
        else:
            symbols, partials = _partials(n.op, len(n.args))
            leaves = dict(zip(symbols, n.args, strict=False))
            for part, rate in zip(partials, rates, strict=True):
                if rate and part != 0:
                    term = _product(_node(part, leaves), rate)
                    found[n] = node(Op.ADD, found[n], term) if n in found else term
    return found.get(program.assigns[of], zero)


def _product(x: Node, y: Node) -> Node:
    if x is const(1):
        return y
    if x is const(-1):
        return node(Op.NEG, y)
    return x if y is const(1) else node(Op.MUL, x, y)
