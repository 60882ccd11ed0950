"""The reference: runs a plan node by node on NumPy arrays. It defines the meaning of the language.

In: a plan, an array for each element store (raw bits as unsigned integers for 16-bit storage), one
number for each scalar and each tensor state. Out: the arrays, updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optgen.backends import Layout
from optgen.backends.emit import Names, header, indent, write
from optgen.ir import DType, Extent, Node, Op, spell
from optgen.plan import Plan, Reduction
from optgen.semantics import MEANING, evaluate

REAL: dict[str, type[np.floating]] = {"fp32": np.float32, "fp64": np.float64}
RAW = {"fp64": np.float64, "fp32": np.float32, "bf16": np.uint16, "fp16": np.uint16}


def reduce(reduction: Reduction, operand: np.ndarray) -> float:
    """A reduction over one tensor, in float64."""
    return float(MEANING[reduction.op](operand))


@np.errstate(all="ignore")
def run(
    plan: Plan,
    stores: Mapping[str, np.ndarray],
    scalars: Sequence[float],
    tensor_states: Mapping[str, np.ndarray] | None = None,
    reduce: Callable[[Reduction, np.ndarray], float] = reduce,
) -> None:
    """One step over one tensor, phase by phase, in place.

    `stores` are arrays of one shape; `scalars` are float64 and rounded here once; `tensor_states` are
    0-d arrays; `reduce` may bring in what lies elsewhere. Empty tensors are the caller's to leave out.
    """
    real = REAL[plan.real]
    tensor_states = tensor_states or {}
    temporary: dict[str, np.ndarray] = {}
    slots: dict[str, Any] = {}

    def leaf(n: Node) -> Any:
        if n.op is Op.SCALAR:
            value = scalars[int(n.value or 0)]
            return np.bool_(value) if n.dtype is DType.BOOL else np.float64(value)
        if n.op is Op.SLOT:
            return real(slots[n.value or ""])
        if n.op is Op.SPILL:
            return temporary[n.value or ""]
        if n.extent is Extent.TENSOR:
            return real(tensor_states[n.value or ""])
        array = stores[n.value or ""]
        return array.astype(np.uint32) if n.dtype is DType.U32 else array.copy()

    for phase in plan.phases:
        values = evaluate(phase.roots(), leaf, real)
        for name, n in phase.stores.items():
            if name.startswith("#"):
                temporary[name] = values[n]
            else:
                stores[name][...] = values[n]
        for r in phase.reductions:
            slots[str(r.slot)] = reduce(r, values[r.operand])
    finished = evaluate(plan.finish.values(), leaf, real)
    for name, n in plan.finish.items():
        tensor_states[name][...] = finished[n]


def emit(plan: Plan) -> str:
    """The plan as the reference walks it, in the notation of rules."""
    names = Names(plan, ())
    parts = [header(Layout(plan), "exact")]
    for k, phase in enumerate(plan.phases):
        lines, results = write(phase.roots(), plan.names, names, spell)
        lines += [f"{s} <- {result}" for s, result in zip(phase.stores, results, strict=False)]
        reduced = zip(phase.reductions, results[len(phase.stores) :], strict=True)
        lines += [f"r{r.slot} = {r.op.value}({result})" for r, result in reduced]
        parts.append(f"# phase {k}: load {', '.join(phase.loads)}\n" + indent(lines, 0))
    if plan.finish:
        lines, results = write(list(plan.finish.values()), plan.names, names, spell)
        lines += [f"{s} <- {result}" for s, result in zip(plan.finish, results, strict=True)]
        parts.append("# after the last phase\n" + indent(lines, 0))
    return "\n".join(parts)
