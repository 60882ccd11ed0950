"""The reference: runs a plan's steps with NumPy, node by node, and prints them.

In: a layout. Out: a `Kernel` that runs it (`NumpyKernel`), or a text (`emit`). Elementwise values are
computed in working precision for a whole tensor at once, reductions in float64; nothing is compiled, tiled
or run in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np

from optgen.backends.emit import Names, header, indent, write
from optgen.backends.layout import PLACE, Layout
from optgen.backends.protocol import Kernel, Tables
from optgen.backends.slices import slice_of
from optgen.ir.extent import Extent
from optgen.ir.node import DType, Node, Op, spell
from optgen.ir.semantics import MEANING, evaluate
from optgen.plan.plan import Reduction, Step, buffer_of, reduction_text

REAL: dict[str, type[np.floating]] = {"fp32": np.float32, "fp64": np.float64}
NEUTRAL = {Op.SUM: 0.0, Op.AMAX: -np.inf}
RAW = {"fp64": np.float64, "fp32": np.float32, "bf16": np.uint16, "fp16": np.uint16}
LOW = 0xFFFFFFFF


def reduce(reduction: Reduction, operand: np.ndarray) -> float:
    """Reduce an array to one number in float64; the neutral element if it is empty."""
    return float(MEANING[reduction.op](operand)) if operand.size else NEUTRAL[reduction.op]


def by_slice(op: Op, values: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Reduce each slice in float64; `index` has the slice of each value."""
    if op is Op.SUM:
        return np.bincount(index.ravel(), values.ravel(), count)
    largest = np.full(count, -np.inf)
    np.maximum.at(largest, index.ravel(), values.ravel())
    return largest


class ArrayAt:
    """An address, type and shape as `np.asarray` takes them, without a copy."""

    def __init__(self, address: int, kind: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None):
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "typestr": np.dtype(kind).str,
            "shape": shape,
            "strides": strides,
        }


class Member:
    """One tensor of a launch: reads the leaves of a step, and stores results."""

    def __init__(self, layout: Layout, tables: Tables, index: int):
        self.layout, self.tables, self.index = layout, tables, index
        self.plan, self.real = layout.plan, REAL[layout.plan.real]

    def cell(self, column: str) -> int:
        """The tensor's entry in a column of `tensors`."""
        return int(self.tables.tensors[self.index, self.layout.columns[column]])

    def array(self, name: str) -> np.ndarray:
        """A view of a store, spill or state; 16-bit formats as raw bits."""
        kind = RAW[self.plan.codecs.get(name, self.plan.real)]
        coarse = name in self.plan.tensor_states
        extent = self.plan.states[name].extent if coarse else Extent.ELEMENT
        shape: tuple[int, ...] = (self.count(extent),)
        strides = None
        if f"@stride_{name}0" in self.layout.columns:
            dims = range(self.layout.dims)
            shape = tuple(self.cell(f"@size{d}") for d in dims)
            strides = tuple(self.cell(f"@stride_{name}{d}") * np.dtype(kind).itemsize for d in dims)
        if 0 in shape:
            return np.empty(shape, kind)
        return np.asarray(ArrayAt(self.cell(name), kind, shape, strides))

    def put(self, name: str, value: Any) -> None:
        """Store a value into a store, spill or state."""
        array = self.array(name)
        array[...] = np.broadcast_to(value, array.size).reshape(array.shape)

    def count(self, kind: Extent) -> int:
        """The number of values of an extent."""
        if kind.sliced:
            return self.cell(f"@count_{kind}")
        return self.cell("@numel") if kind is Extent.ELEMENT else 1

    def slot(self, slot: int) -> np.ndarray:
        """A view of the values of a slot, float64."""
        kind = self.plan.extents[slot]
        if not kind.sliced:
            return np.asarray(self.tables.slots[self.index, slot : slot + 1])
        first = self.cell(f"@slot{slot}")
        return np.asarray(self.tables.lines[first : first + self.count(kind)])

    def slice_indices(self, kind: Extent) -> np.ndarray:
        """The index of each element's slice."""
        at, inner = np.arange(self.count(Extent.ELEMENT)), self.cell(f"@inner_{kind}")
        return slice_of(at, kind, self.cell("@columns"), inner, self.count(kind))

    @cached_property
    def global_indices(self) -> np.ndarray:
        """The index of each element in its tensor, or if that is a shard in the full tensor."""
        at = np.arange(self.count(Extent.ELEMENT))
        if self.layout.sharded:
            every0, skip0, every1, skip1, offset = (self.cell(f"@{name}") for name in PLACE)
            at += at // every0 * skip0
            at += at // every1 * skip1 + offset
        return at

    def evaluate(self, roots: Iterable[Node], kind: Extent) -> dict[Node, Any]:
        """Evaluate nodes for every element, every slice of a kind, or the tensor."""
        return evaluate(roots, lambda n: self._leaf(n, kind), self.real)

    def _leaf(self, n: Node, kind: Extent) -> Any:
        """The value of a leaf, broadcast to an extent."""
        value = n.value or ""
        truth = np.bool_ if n.dtype is DType.BOOL else self.real
        match n.op:
            case Op.SCALAR:
                return truth(self.tables.scalars[self.cell("@row"), int(value)])
            case Op.TOTAL:
                return truth(self.tables.numbers[self.plan.numbers[f"@total{value}"]])
            case Op.KEY:
                word, _, half = value.partition("_")
                return np.uint32(self.cell(f"@{word}") >> (32 if half == "high" else 0) & LOW)
            case Op.INDEX:
                return (self.global_indices >> (32 if value == "high" else 0) & LOW).astype(np.uint32)
            case Op.SLOT:
                return self._broadcast(self.slot(int(value)).astype(self.real), n.extent, kind)
        values = self.array(value).flatten()
        return values.astype(np.uint32) if n.dtype is DType.U32 else self._broadcast(values, n.extent, kind)

    def _broadcast(self, values: np.ndarray, have: Extent, want: Extent) -> Any:
        """Broadcast values of one extent to a finer one."""
        if not have.sliced:
            return values if have is Extent.ELEMENT else values[0]
        if have is want:
            return values
        if want is Extent.ELEMENT:
            return values[self.slice_indices(have)]
        each = self.count(want) // self.count(have)  # rows, or columns, of a matrix
        return np.repeat(values, each)

    def sweep(self, step: Step) -> None:
        """Run a sweep; its reductions are complete at once, as a tensor is one chunk."""
        values = self.evaluate(step.roots(), Extent.ELEMENT)
        for name, n in step.values.items():
            self.put(name, values[n])
        for r in step.reductions:
            operand = np.broadcast_to(values[r.operand], self.count(Extent.ELEMENT))
            if r.extent.sliced:
                index, count = self.slice_indices(r.extent), self.count(r.extent)
                self.slot(r.slot)[:] = by_slice(r.op, operand, index, count)
            else:
                self.slot(r.slot)[:] = reduce(r, operand)

    def reduce_slices(self, step: Step) -> None:
        """Reduce values of slices to one value, or to one per matrix."""
        for r in step.reductions:
            kind, groups = r.operand.extent, self.count(r.extent)
            operand = np.broadcast_to(self.evaluate([r.operand], kind)[r.operand], self.count(kind))
            parts = operand.astype(np.float64).reshape(groups, operand.size // max(1, groups))
            if r.extent.sliced:
                reduced = np.add if r.op is Op.SUM else np.maximum
                self.slot(r.slot)[:] = reduced.reduce(parts, axis=1, initial=NEUTRAL[r.op])
            else:
                self.slot(r.slot)[:] = reduce(r, parts)

    def finish(self, step: Step) -> None:
        """Compute all new states of tensors and slices, then write them."""
        new = {}
        for name, n in step.values.items():
            kind = self.plan.states[name].extent
            new[name] = self.evaluate([n], kind)[n]
        for name, value in new.items():
            self.put(name, value)


def reduce_all(step: Step, members: Sequence[Member]) -> None:
    """Reduce over all tensors of a launch."""
    plan, numbers = members[0].plan, members[0].tables.numbers
    values = [member.evaluate(step.roots(), Extent.TENSOR) for member in members]
    for r in step.reductions:
        parts = [float(members[0].real(computed[r.operand])) for computed in values]
        numbers[plan.numbers[f"@slot{r.slot}"]] = MEANING[r.op](parts)


def compute_globals(step: Step, columns: Mapping[str, int], numbers: np.ndarray) -> None:
    """Compute values that are one for the whole optimizer, in float64, in place; the CPU's too."""

    def leaf(n: Node) -> Any:
        value = numbers[columns[buffer_of(n) or ""]]
        return np.bool_(value) if n.dtype is DType.BOOL else np.float64(value)

    values = evaluate(step.values.values(), leaf)
    for name, n in step.values.items():
        numbers[columns[name]] = values[n]


class NumpyKernel(Kernel):
    """The reference behind the interface of compiled kernels: it reads the same tables."""

    chunk = 1 << 62  # a tensor is one chunk
    tile = (1 << 30, 1 << 30)
    atomic = False
    numpy_tables = True

    def __init__(self, layout: Layout):
        self.layout = layout

    def prepare(self, tables: Tables) -> None:
        """Do nothing: there is nothing to compile."""

    @np.errstate(all="ignore")
    def run(self, step: Step, tables: Tables) -> None:
        """Run one step of the plan on every tensor."""
        if step.kind == "global":
            compute_globals(step, self.layout.plan.numbers, tables.numbers)
            return
        members = [Member(self.layout, tables, i) for i in range(len(tables.tensors))]
        if step.kind == "global_reduce":
            reduce_all(step, members)
            return
        for member in members:
            match step.kind:
                case "sweep":
                    member.sweep(step)
                case "slice_reduce":
                    member.reduce_slices(step)
                case "finish":
                    member.finish(step)


def load(layout: Layout, math_mode: str, module: Callable[[], ModuleType]) -> NumpyKernel:
    """The kernel of a layout, which needs no module."""
    return NumpyKernel(layout)


def emit(layout: Layout, math_mode: str = "exact") -> str:
    """Print the plan in the notation of rules, step by step."""
    plan = layout.plan
    names, parts, done = Names(plan, ()), [header(Layout(plan), "exact")], 0
    for kind, group in groupby(plan.steps, _group_key):
        if kind in ("combine", "global"):
            continue
        steps = list(group)
        lines, results = write([n for s in steps for n in s.roots()], plan.names, names, spell)
        texts = iter(results)
        for step in steps:
            lines += [f"{name} <- {next(texts)}" for name in step.values]
            lines += [f"r{r.slot} = {reduction_text(r)}({next(texts)})" for r in step.reductions]
        title = f"before phase {done}" if done < len(plan.sweeps) else "after the last phase"
        if steps[0].kind == "sweep":
            title, done = f"phase {done}: load {', '.join(steps[0].loads)}", done + 1
        elif kind == "finish":
            title = "states that are no element's"
        parts.append(f"# {title}\n" + indent(lines, 0))
    return "\n".join(parts)


def _group_key(step: Step) -> str:
    """Key of consecutive steps that are printed as one paragraph."""
    if step.kind in ("slice_reduce", "global_reduce"):
        return "reduce"
    return step.name if step.kind == "sweep" else step.kind
