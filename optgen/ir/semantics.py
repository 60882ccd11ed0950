"""What every operation means, on NumPy values: the definition that all back ends must agree with.

In: nodes and a value for each leaf. Out: a value for each node. STEP and CONST nodes are `np.float64`
(Python's own floats raise where IEEE has an answer); the rest are arrays or scalars of the working
dtype. A value per step, or one for the whole optimizer, is rounded once, where it meets the working dtype.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from optgen.ir.extent import Extent
from optgen.ir.functions import operation
from optgen.ir.node import DType, Node, Op, toposort


def _where(condition: Any, a: Any, b: Any) -> Any:
    return np.where(condition, a, b)[()]


def _upper_half(a: Any, b: Any) -> Any:
    product = np.asarray(a, np.uint64) * np.asarray(b, np.uint64)
    return (product >> np.uint64(32)).astype(np.uint32)[()]


# Of operators and reductions; a function's is in its row.
MEANING: dict[Op, Callable[..., Any]] = {
    Op.ADD: operator.add,
    Op.SUB: operator.sub,
    Op.MUL: operator.mul,
    Op.DIV: operator.truediv,
    Op.MOD: np.mod,
    Op.POW: np.power,
    Op.NEG: operator.neg,
    Op.LT: np.less,
    Op.LE: np.less_equal,
    Op.EQ: np.equal,
    Op.NE: np.not_equal,
    Op.AND: np.bitwise_and,
    Op.OR: np.bitwise_or,
    Op.NOT: np.logical_not,
    Op.WHERE: _where,
    Op.CHOOSE: _where,
    Op.SHL: np.left_shift,
    Op.SHR: np.right_shift,
    Op.XOR: np.bitwise_xor,
    Op.MULHI: _upper_half,
    Op.ONCE: lambda x: x,
    Op.BITS: lambda x: np.asarray(x, np.float32).view(np.uint32)[()],
    Op.FLOAT: lambda x: np.asarray(x, np.uint32).view(np.float32)[()],
    Op.SUM: lambda x: np.sum(x, dtype=np.float64),
    Op.AMAX: np.max,
}


def meaning(op: Op) -> Callable[..., Any]:
    """What an operation does to NumPy values."""
    row = operation(op)
    return row.numpy if row else MEANING[op]


_KINDS = {DType.REAL: np.float64, DType.F32: np.float32, DType.U32: np.uint32, DType.BOOL: np.bool_}


def literal(n: Node) -> Any:
    """The value of a CONST, in float64 where it is real."""
    return _KINDS[n.dtype](n.number)


def evaluate(
    nodes: Iterable[Node],
    leaf: Callable[[Node], Any],
    real: type[np.floating] = np.float64,
    known: dict[Node, Any] | None = None,
) -> dict[Node, Any]:
    """The value of every node that `nodes` reach; `leaf` answers for those without arguments.

    `real` is the working dtype. Values in `known` are taken as they are, and what is found is added.
    """
    values: dict[Node, Any] = {} if known is None else known
    dtypes = {**_KINDS, DType.REAL: real}
    with np.errstate(all="ignore"):
        for n in toposort(nodes):
            if n in values:
                continue
            if n.op is Op.CONST:
                values[n] = literal(n)
                continue
            if not n.args:
                values[n] = leaf(n)
                continue
            args = [values[a] for a in n.args]
            if n.extent > Extent.ALL:
                args = [
                    dtypes[a.dtype](x) if a.extent <= Extent.ALL else x
                    for a, x in zip(n.args, args, strict=True)
                ]
            if n.op is Op.CAST:
                values[n] = np.asarray(args[0]).astype(dtypes[n.dtype])[()]
            elif n.op in (Op.SUM, Op.AMAX):
                values[n] = (real if n.extent > Extent.ALL else np.float64)(MEANING[n.op](args[0]))
            else:
                values[n] = meaning(n.op)(*args)
    return values


def constant(current: Node) -> Any | None:
    """The value of a node that depends on nothing, or None where it depends on something."""
    order = toposort([current])
    if any(not n.args and n.op is not Op.CONST for n in order):
        return None
    return evaluate(order, lambda n: None)[current]
