"""Values of nodes on given inputs, and what is known of a value's sign.

In: nodes, and numbers or ranges for their leaves. Out: numbers, or ranges; an end that is not reached is
the next float inside. No sympy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from optgen.ir.extent import Extent
from optgen.ir.facts import Value
from optgen.ir.functions import TINY, Bounds, operation
from optgen.ir.node import DType, Node, Op, load
from optgen.ir.program import Program
from optgen.ir.semantics import constant, evaluate

Values = dict[Node, Any]
Limits = dict[Node, Bounds]


def paths(program: Program) -> dict[str, Value]:
    """The default of every single hyperparameter by its path, `lr` or `betas[0]`."""
    found: dict[str, Value] = {}
    for name, hyper in program.hypers.items():
        whole = hyper.default
        items = whole if isinstance(whole, tuple) else ()
        found |= {f"{name}[{i}]": v for i, v in enumerate(items)} or {name: whole}  # type: ignore[dict-item]
    return found


def values_of(nodes: Iterable[Node], leaves: Values) -> Values:
    """The float64 value of every node that `nodes` reach, over the elements that the leaves have."""
    shape = np.shape(leaves[load("p")])

    def leaf(n: Node) -> Any:
        value: Any = np.asarray(leaves[n], np.float64)
        return np.broadcast_to(value, shape) if n.extent is Extent.ELEMENT else value[()]

    return evaluate(nodes, leaf)


REALS: Bounds = (-math.inf, math.inf)


def limits_of(conditions: Iterable[Node]) -> Limits | None:
    """What conditions like `0 <= x < 1` say of single leaves; None if they cannot all hold."""
    found: Limits = {}
    stack = list(conditions)
    while stack:
        c = stack.pop()
        if c.op is Op.AND:
            stack.extend(c.args)
        elif c.op is Op.CONST and not c.number:
            return None
        elif c.op in (Op.LT, Op.LE, Op.EQ):
            for below in (True, False):
                x, other = c.args if below else c.args[::-1]
                end = constant(other) if x.op in (Op.HYPER, Op.SHAPE) else None
                if end is None or not math.isfinite(end):
                    continue
                low, high = found.get(x, REALS)
                if below or c.op is Op.EQ:
                    high = min(high, float(end if c.op is not Op.LT else np.nextafter(end, -math.inf)))
                if not below or c.op is Op.EQ:
                    low = max(low, float(end if c.op is not Op.LT else np.nextafter(end, math.inf)))
                if low > high:
                    return None
                found[x] = (low, high)
    return found


def all_bounds(order: Iterable[Node], limits: Limits) -> dict[Node, Bounds]:
    """The range of every node in an order that has arguments first."""
    found: dict[Node, Bounds] = {}
    for n in order:
        found[n] = bounds_of(n, found, limits)
    return found


def bounds_of(n: Node, found: Mapping[Node, Bounds], limits: Limits) -> Bounds:
    """Where the value of a node lies, wherever it is defined."""
    match n.op, [found[x] for x in n.args]:
        case Op.CONST, _ if n.dtype is DType.REAL and not math.isnan(n.number):
            return n.number, n.number
        case ((Op.COUNT | Op.SHAPE), _):
            return limits.get(n, (0 if n.value == "ndim" else 1, math.inf))
        case Op.NEG, [(low, high)]:
            return -high, -low
        case Op.ADD, [x, y]:
            a, step = n.args
            if step.op is Op.MUL and step.args[1].op is Op.SUB and step.args[1].args[1] is a:
                (least, most), b = found[step.args[0]], found[step.args[1].args[0]]
                if least >= 0 and most <= 1:  # lerp(a, b, weight) lies between a and b
                    return min(x[0], b[0]), max(x[1], b[1])
            return x[0] + y[0], x[1] + y[1]
        case Op.SUB, [x, y]:
            return x[0] - y[1], x[1] - y[0]
        case Op.MUL, [x, y]:
            low, high = _times(x, y)
            return (max(low, 0) if n.args[0] is n.args[1] else low), high
        case Op.DIV, [x, (low, high)] if low >= 0:  # and not 0, where it is defined
            return _times(x, (max(1 / high, TINY) if high else TINY, 1 / low if low else math.inf))
        case Op.POW, [(low, high), (least, _)] if low >= 0:
            most = math.inf if high > 1 or least < 0 else high if least >= 1 else 1
            return (TINY if low > 0 else 0), most
        case Op.WHERE, [_, x, y]:
            return min(x[0], y[0]), max(x[1], y[1])
        case Op.SUM, [(low, _)] if low >= 0:
            return low, math.inf
        case ((Op.AMAX | Op.CAST), [x]):
            return x
        case op, arguments if (row := operation(op)) and row.bounds:
            return row.bounds(*arguments)
    return limits.get(n, REALS)


def _times(x: Bounds, y: Bounds) -> Bounds:
    ends = [0 if 0 in (p, q) else p * q for p in x for q in y]
    return (max(min(ends), TINY) if x[0] > 0 and y[0] > 0 else min(ends)), max(ends)
