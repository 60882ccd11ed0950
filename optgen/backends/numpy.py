"""The reference: runs a plan node by node on NumPy arrays. It defines the meaning of the language.

In: a plan, an array for each element store (raw bits as unsigned integers for 16-bit storage), the
scalars, and an array for each state of a tensor or of its slices. Out: the arrays, updated in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optgen.backends import Layout, View
from optgen.backends.emit import Names, header, indent, write
from optgen.ir import DType, Extent, Node, Op, spell
from optgen.plan import Plan, Reduction, Round, reduction_text
from optgen.semantics import MEANING, evaluate

REAL: dict[str, type[np.floating]] = {"fp32": np.float32, "fp64": np.float64}
NEUTRAL = {Op.SUM: 0.0, Op.AMAX: -np.inf}
RAW = {"fp64": np.float64, "fp32": np.float32, "bf16": np.uint16, "fp16": np.uint16}


def reduce(reduction: Reduction, operand: np.ndarray) -> float:
    """A reduction over one tensor, in float64; over none, what changes no other."""
    return float(MEANING[reduction.op](operand)) if operand.size else NEUTRAL[reduction.op]


def by_slice(op: Op, values: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """A reduction over each slice, in float64; `index` has the slice of each value."""
    if op is Op.SUM:
        return np.bincount(index.ravel(), values.ravel(), count)
    largest = np.full(count, -np.inf)
    np.maximum.at(largest, index.ravel(), values.ravel())
    return largest


class Run:
    """One step of one tensor, in parts, in place.

    `stores` are arrays of one shape; `scalars` are float64 and rounded here once; `tensor_states` are 0-d
    arrays, or 1-d ones for states of slices; `keys` are the words that random numbers follow from;
    `numbers` are the plan's, shared by all tensors. `places` are those of the elements in a larger tensor
    that this is a part of. `reduce` may bring in what lies elsewhere.
    """

    def __init__(
        self,
        plan: Plan,
        stores: Mapping[str, np.ndarray],
        scalars: Sequence[float],
        tensor_states: Mapping[str, np.ndarray] | None = None,
        reduce: Callable[[Reduction, np.ndarray], float] = reduce,
        keys: Mapping[str, int] | None = None,
        numbers: np.ndarray | None = None,
        places: np.ndarray | None = None,
    ):
        self.plan, self.stores, self.scalars, self.reduce = plan, stores, scalars, reduce
        self.real = REAL[plan.real]
        self.states, self.keys, self.numbers = tensor_states or {}, keys or {}, numbers
        self.shape = next(iter(stores.values())).shape
        self.view = View.of(self.shape, plan.slices)
        self.spills: dict[str, np.ndarray] = {}
        self.slots: dict[str, Any] = {}
        self.places = np.arange(self.view.numel) if places is None else places

    def _leaf(self, n: Node, kind: Extent) -> Any:
        """The value of a leaf for elements, slices of a kind, or the tensor."""
        value = n.value or ""
        match n.op:
            case Op.SCALAR:
                return (
                    np.bool_(self.scalars[int(value)])
                    if n.dtype is DType.BOOL
                    else np.float64(self.scalars[int(value)])
                )
            case Op.TOTAL:
                assert self.numbers is not None
                found = self.numbers[self.plan.numbers[f"@total{value}"]]
                return np.bool_(found) if n.dtype is DType.BOOL else np.float64(found)
            case Op.SPILL:
                return self.spills[value]
            case Op.KEY:
                return np.uint32(self.keys[value])
            case Op.INDEX:
                at = self.places.astype(np.uint64).reshape(self.shape)
                return (at & np.uint64(0xFFFFFFFF) if value == "low" else at >> np.uint64(32)).astype(
                    np.uint32
                )
            case Op.SLOT:
                return self._spread(self.real(self.slots[value]), n.extent, kind)
        if n.extent < Extent.ELEMENT:
            return self._spread(self.real(self.states[value]), n.extent, kind)
        array = self.stores[value]
        return array.astype(np.uint32) if n.dtype is DType.U32 else array.copy()

    def _spread(self, values: Any, have: Extent, want: Extent) -> Any:
        """Values of one extent, for each of a finer one."""
        if not have.sliced or have is want:
            return values
        if want is Extent.ELEMENT:
            return values[self.view.index(have)]
        count, whole = self.view.count(want), self.view.count(have)
        return np.repeat(values, count // whole)  # a matrix has so many rows, or columns

    def evaluate(self, roots: Iterable[Node], kind: Extent) -> dict[Node, Any]:
        """The values of nodes, for elements, slices of a kind, or the tensor."""
        return evaluate(roots, lambda n: self._leaf(n, kind), self.real)

    @np.errstate(all="ignore")
    def sweep(self, k: int) -> None:
        """Run one phase."""
        phase = self.plan.phases[k]
        values = self.evaluate(phase.roots(), Extent.ELEMENT)
        for name, n in phase.stores.items():
            if name.startswith("#"):
                self.spills[name] = values[n]
            else:
                self.stores[name][...] = values[n]
        for r in phase.reductions:
            operand = np.broadcast_to(values[r.operand], self.shape)
            if r.extent.sliced:
                count = self.view.count(r.extent)
                self.slots[str(r.slot)] = by_slice(r.op, operand, self.view.index(r.extent), count)
            else:
                self.slots[str(r.slot)] = self.reduce(r, operand)

    @np.errstate(all="ignore")
    def small(self, r: Reduction) -> None:
        """Reduce what slices have."""
        kind = r.operand.extent
        operand = np.broadcast_to(self.evaluate([r.operand], kind)[r.operand], self.view.count(kind))
        if r.extent.sliced:
            groups = self.view.count(r.extent)
            parts = operand.astype(np.float64).reshape(groups, operand.size // max(1, groups))
            reduced = np.add if r.op is Op.SUM else np.maximum
            self.slots[str(r.slot)] = reduced.reduce(parts, axis=1, initial=NEUTRAL[r.op])
        else:
            self.slots[str(r.slot)] = reduce(r, operand.astype(np.float64))

    @np.errstate(all="ignore")
    def over(self, found: Round) -> dict[int, float]:
        """The part of this tensor in the reductions over all."""
        values = self.evaluate([r.operand for r in found.over], Extent.TENSOR)
        return {r.slot: float(self.real(values[r.operand])) for r in found.over}

    @np.errstate(all="ignore")
    def finish(self) -> None:
        """Write the new states of tensors and slices."""
        made = {}
        for name, n in self.plan.finish.items():
            kind = self.plan.states[name].extent
            made[name] = self.evaluate([n], kind)[n]
        for name, value in made.items():
            self.states[name][...] = value


@np.errstate(all="ignore")
def total(plan: Plan, found: Round, numbers: np.ndarray) -> None:
    """Compute the totals of a round, in float64, in place."""

    def leaf(n: Node) -> Any:
        name = n.value or ""
        key = f"@slot{name}" if n.op is Op.SLOT else f"@{name}" if n.op is Op.TOTAL else name
        value = numbers[plan.numbers[key]]
        return np.bool_(value) if n.dtype is DType.BOOL else np.float64(value)

    values = evaluate([plan.totals[i] for i in found.totals], leaf)
    for i in found.totals:
        numbers[plan.numbers[f"@total{i}"]] = values[plan.totals[i]]


def run(plan: Plan, *args: Any, **more: Any) -> None:
    """One whole step of one tensor, which is all that the optimizer has; see `Run`."""
    step = Run(plan, *args, **more)
    for k in range(len(plan.phases) + 1):
        for found in plan.rounds:
            if found.boundary == k:
                for r in found.small:
                    step.small(r)
                for slot, value in step.over(found).items():
                    step.numbers[plan.numbers[f"@slot{slot}"]] = value  # type: ignore[index]
                if found.totals:
                    total(plan, found, step.numbers)  # type: ignore[arg-type]
        if k < len(plan.phases):
            step.sweep(k)
    step.finish()


def emit(plan: Plan) -> str:
    """The plan as the reference walks it, in the notation of rules."""
    names = Names(plan, ())
    parts = [header(Layout(plan), "exact")]
    for k in range(len(plan.phases) + 1):
        for found in plan.rounds:
            reductions = (*found.small, *found.over)
            if found.boundary == k and reductions:
                lines, results = write([r.operand for r in reductions], plan.names, names, spell)
                lines += [_reduced(r, result) for r, result in zip(reductions, results, strict=True)]
                parts.append(f"# before phase {k}\n" if k < len(plan.phases) else "# after the last phase\n")
                parts[-1] += indent(lines, 0)
        if k < len(plan.phases):
            phase = plan.phases[k]
            lines, results = write(phase.roots(), plan.names, names, spell)
            lines += [f"{s} <- {result}" for s, result in zip(phase.stores, results, strict=False)]
            reduced = zip(phase.reductions, results[len(phase.stores) :], strict=True)
            lines += [_reduced(r, result) for r, result in reduced]
            parts.append(f"# phase {k}: load {', '.join(phase.loads)}\n" + indent(lines, 0))
    if plan.finish:
        lines, results = write(list(plan.finish.values()), plan.names, names, spell)
        lines += [f"{s} <- {result}" for s, result in zip(plan.finish, results, strict=True)]
        parts.append("# states that are no element's\n" + indent(lines, 0))
    return "\n".join(parts)


def _reduced(reduction: Reduction, operand: str) -> str:
    return f"r{reduction.slot} = {reduction_text(reduction)}({operand})"
