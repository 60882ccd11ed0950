"""One bucket of NumPy arrays, as a kernel sees it and as the reference does.

In: a plan, and for each tensor its stores, scalars and tensor states. A kernel of any back end runs over
copies of them; what it reduced is then given to the reference, so that the rest must agree to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from optgen import library
from optgen.backends import cache
from optgen.backends import reference as reference
from optgen.backends.layout import Layout
from optgen.backends.protocol import Tables
from optgen.compiler import Compiler
from optgen.ir.extent import Extent
from optgen.ir.facts import lookup
from optgen.ir.node import DType, Op, toposort
from optgen.ir.program import Program
from optgen.ir.semantics import evaluate
from optgen.passes.pipeline import lower
from optgen.plan.phases import element_stores, plan
from optgen.plan.plan import Plan
from strategies import array

RAW = reference.RAW


def settings(program: Program, **options):
    """The defaults of a program, with other values for some."""
    return {name: hyper.default for name, hyper in program.hypers.items()} | options


def flat(name):
    """Whether a rule has elements, tensors and the host's numbers, gradients and exact functions alone."""
    program = library.rule(name)
    nodes = toposort(program.roots())
    random = any(n.op in (Op.NORMAL, Op.UNIFORM) for n in nodes)
    rounded = any(n.op in (Op.EXP, Op.LOG, Op.POW, Op.TANH) and n.extent > Extent.STEP for n in nodes)
    return not (
        program.inputs or random or rounded or any(n.extent.sliced or n.extent is Extent.ALL for n in nodes)
    )


def truths(program: Program, options, ndim=2):
    """Which facts of a program hold under these options; inputs are handed in."""
    compiler = Compiler.of(program)
    return compiler.named(compiler.facts(options, ndim))


def element_states(program: Program):
    return [name for name, state in program.states.items() if state.extent is Extent.ELEMENT]


def planned(rule, *codecs, mode=None, **options) -> Plan:
    """The plan of a rule; `codecs` are those of p, g and the states, the last one for all that follow."""
    compiler = Compiler.of(library.rule(rule))
    facts = compiler.facts({**compiler.defaults, **options})
    stores = element_stores(compiler.specialised(facts, mode))
    codecs = (*codecs, *[codecs[-1] if codecs else "fp32"] * len(stores))[: len(stores)]
    return compiler.planned(facts, codecs, mode)


def step_leaf(options, t=3.0, numel=1, host: Mapping[str, float] | None = None):
    """The float64 values of what the host knows."""

    def leaf(n):
        if n.op is Op.HYPER:
            return np.float64(lookup(options, n.value))
        if n.op is Op.COUNT:
            return np.float64(t)
        if n.op is Op.SHAPE:
            return np.float64({"numel": numel, "ndim": 2, "rows": 1, "cols": numel}[n.value])
        return np.float64(host[n.value])

    return leaf


def scalars(made: Plan, options, **facts):
    """The values of a plan's scalars."""
    values = evaluate(made.scalars, step_leaf(options, **facts))
    return [float(values[n]) for n in made.scalars]


def raw(codec, values):
    """Numbers as a codec stores them; 16-bit ones as torch rounds them."""
    if codec in ("bf16", "fp16"):
        kind = torch.bfloat16 if codec == "bf16" else torch.float16
        return (
            torch.from_numpy(np.asarray(values, np.float32))
            .to(kind)
            .view(torch.int16)
            .numpy()
            .view(np.uint16)
        )
    return np.asarray(values, RAW[codec])


def stores_of(program, seed, wild, dtype, numel=9):
    names = ["p", "g", *element_states(program)]
    return {s: array(seed + i, numel, wild, dtype) for i, s in enumerate(names)}


def tensor_values(program, seed):
    random = np.random.default_rng(seed)
    return {s: random.random() for s, state in program.states.items() if state.extent is not Extent.ELEMENT}


def direct(program, case, stores, numbers, real):
    """What a program assigns, node by node, without a plan."""
    numel = stores["p"].size
    host = {s: np.float64(x) for s, x in numbers.items()}
    step = step_leaf(case.options, case.t, numel, host)
    values = evaluate(program.scalars, step)
    known = [values[n] for n in program.scalars]

    def leaf(n):
        if n.op is Op.SCALAR:
            return np.bool_(known[int(n.value)]) if n.dtype is DType.BOOL else known[int(n.value)]
        if n.op is not Op.LOAD or n.extent is Extent.STEP:
            return step(n)
        return real(numbers[n.value]) if n.extent is Extent.TENSOR else stores[n.value].copy()

    values = evaluate(program.assigns.values(), leaf, real)
    return {k: np.asarray(values[n]) for k, n in program.assigns.items()}


@dataclass
class Bucket:
    """Tensors that share a launch. `tensors` holds each one's raw stores, in any layout but of one shape.

    `offset` moves each array so many elements from an aligned address; with `dims` arrays are walked by
    their strides; `far` makes a kernel begin at that element of a tensor whose address lies so far before.
    The interpreter takes milliseconds a block, so `block` may be larger there than on a GPU.
    """

    plan: Plan
    tensors: Sequence[Mapping[str, np.ndarray]]
    scalars: Sequence[Sequence[float]]
    tensor_states: Sequence[Mapping[str, float]] = ()
    dims: int = 0
    offset: int = 0
    far: int = 0
    block: int = 64
    keep: list = field(default_factory=list)

    def copies(self):
        """The tensors, copied to fresh memory with the same strides."""
        return [{s: self.copy(a) for s, a in stores.items()} for stores in self.tensors]

    def copy(self, array):
        size = array.itemsize
        memory = np.zeros(array.size + self.offset + 16 // size, array.dtype)
        self.keep.append(memory)
        skip = -memory.ctypes.data % 16 // size + self.offset
        if self.dims:  # the strides of a dense array in another order
            order = np.argsort([-s for s in array.strides], kind="stable")
            flat = memory[skip : skip + array.size].reshape([array.shape[d] for d in order])
            view = flat.transpose(np.argsort(order))
        else:
            view = memory[skip : skip + array.size].reshape(array.shape)
        view[...] = array
        return view

    def tables(self, kernel, tensors, states):
        """The tables of a launch over these arrays."""
        layout = Layout(self.plan, self.dims)
        columns, chunk = layout.columns, kernel.chunk
        table = np.zeros((len(tensors), layout.width), np.int64)
        chunks = []
        real = np.dtype(reference.REAL[self.plan.real])
        for i, stores in enumerate(tensors):
            numel = stores["p"].size
            table[i, columns["@numel"]], table[i, columns["@row"]] = self.far + numel, i
            table[i, columns["@first"]] = len(chunks)
            chunks += [(i, self.far + start) for start in range(0, numel, chunk)]
            table[i, columns["@count"]] = len(chunks) - table[i, columns["@first"]]
            for name in layout.pointers:
                if name.startswith("#"):
                    array = np.full(numel, np.nan, real)
                    self.keep.append(array)
                else:
                    array = states[i][name] if name in self.plan.tensor_states else stores[name]
                table[i, columns[name]] = array.ctypes.data
                if name not in self.plan.tensor_states:
                    rows = array.size // len(array) if self.dims else 1  # elements that one index stands for
                    step = array.strides[0] if self.dims else array.itemsize
                    table[i, columns[name]] -= self.far // rows * step
                if self.dims and f"@stride_{name}0" in columns:
                    for d in range(self.dims):
                        table[i, columns[f"@size{d}"]] = array.shape[d]
                        table[i, columns[f"@stride_{name}{d}"]] = array.strides[d] // array.itemsize
        rows = np.array(self.scalars, np.float64).reshape(len(tensors), -1)
        with np.errstate(over="ignore"):
            rows = rows.astype(real)
        slots = max(1, len(self.plan.extents))
        partials = np.zeros((len(chunks), max(1, len(layout.partial))))
        arrays = [table, np.array(chunks, np.int64), rows, partials]
        arrays.append(np.full((len(tensors), slots), np.nan))
        elements = int(table[:, columns["@numel"]].sum())
        made = Tables(*(a if kernel.numpy_tables else torch.from_numpy(a) for a in arrays), elements=elements)
        if not kernel.numpy_tables:
            moving = table[:, [columns[name] for name in layout.moving]]
            made.moving = torch.from_numpy(np.ascontiguousarray(moving))
        return made

    def run(self, backend, math_mode="exact"):
        """What a back end leaves in the stores and in the tensor states, and its slots."""
        kernel = cache.kernel(self.plan, backend, math_mode, self.dims)
        if backend == "triton":
            kernel.chunk = 2 * self.block
            swept = {"BLOCK": self.block, "BLOCKS": 2}
            kernel.specs = {
                name: replace(spec, constants=swept) if spec.grid == "chunks" else spec
                for name, spec in kernel.specs.items()
            }
        tensors, states, tables = self.fresh(kernel)
        kernel.prepare(tables)
        for step in self.plan.steps:
            kernel.run(step, tables)
        return tensors, states, np.asarray(tables.slots)

    def fresh(self, kernel):
        """Copies of the tensors and tensor states, and the tables of a launch over them."""
        real = reference.REAL[self.plan.real]
        tensors = self.copies()
        given = self.tensor_states or [{}] * len(tensors)
        states = [{k: np.array(v, real) for k, v in one.items()} for one in given]
        return tensors, states, self.tables(kernel, tensors, states)

    def reference(self, slots=None, tolerance=0.0):
        """What the reference leaves; given slots are checked against its own, and take their place."""
        kernel = cache.kernel(self.plan, "numpy", "exact", self.dims)
        tensors, states, tables = replace(self, far=0).fresh(kernel)
        for step in self.plan.steps:
            reduced = step.reductions if step.kind == "sweep" and slots is not None else ()
            terms = [(i, r, self.terms(kernel, tables, i, r)) for i in range(len(tensors)) for r in reduced]
            kernel.run(step, tables)
            for i, r, x in terms:
                mine, right = slots[i, r.slot], tables.slots[i, r.slot]
                if r.op is Op.SUM:
                    close(mine, right, x, tolerance)
                else:
                    assert np.array_equal(mine, right, equal_nan=True)
                tables.slots[i, r.slot] = mine
        return tensors, states

    def terms(self, kernel, tables, i, reduction):
        """What is reduced of a tensor."""
        member = reference.Member(kernel.layout, tables, i)
        value = member.evaluate([reduction.operand], Extent.ELEMENT)[reduction.operand]
        return np.broadcast_to(value, member.count(Extent.ELEMENT))

    def check(self, backend, tolerance=None):
        """Assert that a back end agrees with the reference: reductions to a tolerance, the rest exactly."""
        if tolerance is None:
            tolerance = 1e-6 if self.plan.real == "fp32" else 1e-13
        mine, my_states, slots = self.run(backend)
        again, _, _ = self.run(backend)
        right, right_states = self.reference(slots, tolerance)
        for i, stores in enumerate(right):
            for s in stores:
                same(mine[i][s], stores[s], f"{s} of tensor {i}", self.plan.codecs[s])
                same(mine[i][s], again[i][s], f"{s} of tensor {i}, run twice", self.plan.codecs[s])
            for s in right_states[i]:
                same(my_states[i][s], right_states[i][s], f"{s} of tensor {i}")


def close(mine, right, terms, tolerance):
    """Assert that two sums agree, relative to the sum of the sizes of their terms."""
    with np.errstate(all="ignore"):
        size = np.abs(np.asarray(terms, np.float64)).sum()
    if np.isfinite(size):
        assert abs(mine - right) <= tolerance * max(size, np.finfo(np.float32).tiny), (mine, right)
    elif not np.isfinite(terms).all():  # finite terms with an infinite sum: the order decides
        assert np.array_equal(mine, right, equal_nan=True), (mine, right)


def same(mine, right, what="", codec="fp32"):
    """Assert equal bits; every NaN is equal to every other."""
    mine, right = np.asarray(mine), np.asarray(right)
    assert mine.dtype == right.dtype
    assert mine.shape == right.shape
    if mine.dtype == np.uint16:
        quiet = {"bf16": 0x7F80, "fp16": 0x7C00}[codec]
        nan = ((mine & 0x7FFF) > quiet) & ((right & 0x7FFF) > quiet)
        equal = (mine == right) | nan
    else:
        bits = f"u{mine.itemsize}"
        equal = (np.ascontiguousarray(mine).view(bits) == np.ascontiguousarray(right).view(bits)).reshape(
            mine.shape
        )
        equal |= np.isnan(mine) & np.isnan(right)
    where = np.argwhere(~equal)
    assert where.size == 0, (
        f"{what}: {len(where)} of {mine.size} differ, {mine[~equal][:4]} and not {right[~equal][:4]}"
    )


def bucket(case, seed, wild, codecs, sizes=(9,)):
    """A case as one bucket; `codecs` are those of p, g and every state."""
    program = lower(case.program, truths(case.program, case.options))
    names = ["p", "g", *element_states(program)]
    made = plan(program, dict(zip(names, [*codecs, *[codecs[-1]] * len(names)], strict=False)))
    tensors, rows, states = [], [], []
    for i, numel in enumerate(sizes):
        stores = stores_of(program, seed + 100 * i, wild, np.float64, numel)
        tensors.append({s: raw(made.codecs[s], x) for s, x in stores.items()})
        numbers = tensor_values(program, seed + i)
        host = {s: np.float64(x) for s, x in numbers.items()}
        rows.append(scalars(made, case.options, t=case.t, numel=numel, host=host))
        states.append({s: numbers[s] for s in made.tensor_states})
    return program, Bucket(made, tensors, rows, states)
