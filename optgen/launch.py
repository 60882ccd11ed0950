"""From parameters to launches: buckets, tables and the scalars that the host computes.

In: one `Work` for each parameter that moves, and the options of the parameter groups. Tensors that
share a device, storage and specialisation form a bucket. For each phase, each bucket is one launch,
whatever the number of tensors and groups in it. Buckets are rebuilt when a shape, stride, dtype, device
or truth value changes; a moved address only rewrites the address columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen import cache
from optgen.backends import MAX_DIMS, Kernel, Layout, Tables
from optgen.backends import numpy as reference
from optgen.ir import Extent, Node, Op, Program, State, toposort
from optgen.passes import holds, lower
from optgen.plan import Plan, plan
from optgen.semantics import evaluate

CODEC_OF = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
SUPPORTED = "float32, float64, bfloat16 and float16"
BACKENDS = ("auto", "triton", "cpu", "numpy")
MODES = ("exact", "fast")
Truths = tuple[bool, ...]


@dataclass(slots=True)
class Work:
    """One parameter's part in a step: its gradient (None in a mode), states by name, group and count."""

    param: Tensor
    grad: Tensor | None
    states: Mapping[str, Tensor]
    group: int
    truths: Truths
    step: float


@dataclass(frozen=True)
class Geometry:
    """How the element stores of one tensor are walked: sizes, and each store's strides over them.

    No sizes: every store is dense in the same order, and memory order will do.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def geometry(tensors: Sequence[Tensor]) -> Geometry:
    """Merge the dimensions that lie in one stride for all of these tensors of one shape.

    Raises:
        ValueError: elements of the first one share memory, or too many dimensions are left.
    """
    first = tensors[0]
    if all(t.is_contiguous() for t in tensors):
        return Geometry((), ())
    order = sorted((d for d in range(first.dim()) if first.shape[d] > 1), key=first.stride, reverse=True)
    sizes = [first.shape[d] for d in order]
    strides = [[t.stride(d) for t in tensors] for d in order]
    merged_sizes: list[int] = []
    merged: list[list[int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if merged and all(a == b * size for a, b in zip(merged[-1], stride, strict=True)):
            merged_sizes[-1] *= size
            merged[-1] = stride
        else:
            merged_sizes.append(size)
            merged.append(stride)
    reach = 1
    for size, stride in zip(reversed(merged_sizes), reversed(merged), strict=True):
        if stride[0] < reach:
            raise ValueError(
                f"elements of a parameter of shape {tuple(first.shape)} and strides {first.stride()} share "
                "memory, so it cannot be updated in place; optimize a contiguous copy of it"
            )
        reach = stride[0] * (size - 1) + reach
    if not merged or (len(merged) == 1 and all(s == 1 for s in merged[0])):
        return Geometry((), ())
    if len(merged) > MAX_DIMS:
        raise ValueError(
            f"a parameter of shape {tuple(first.shape)} needs {len(merged)} strides; at most {MAX_DIMS} work"
        )
    return Geometry(tuple(merged_sizes), tuple(zip(*merged, strict=True)))


@dataclass
class Bucket:
    """Tensors that share a launch, and the tables of it."""

    device: torch.device
    plan: Plan
    layout: Layout
    kernel: Kernel | None
    members: list[int]  # indices into the step's work
    geometries: list[Geometry]
    tables: Tables = field(init=False)
    host: np.ndarray = field(init=False)  # the host's copy of tables.tensors
    sent: np.ndarray | None = field(init=False, default=None)  # what the device has of it
    reads: tuple[str, ...] = field(init=False)  # host states and shape facts that the scalars depend on

    def __post_init__(self) -> None:
        leaves = [n for n in toposort(self.plan.scalars) if not n.args]
        facts = [n.value or "" for n in leaves if n.op is Op.SHAPE]
        states = [n.value or "" for n in leaves if n.op is Op.LOAD]
        self.reads = tuple(dict.fromkeys([*facts, *states]))

    def build(self, work: Sequence[Work]) -> None:
        """Fill the columns that depend on sizes and strides."""
        assert self.kernel is not None
        columns, chunk = self.layout.columns, self.kernel.chunk
        numels = np.array([work[m].param.numel() for m in self.members], np.int64)
        counts = -(-numels // chunk)
        firsts = np.cumsum(counts) - counts
        table = np.zeros((len(numels), self.layout.width), np.int64)
        table[:, columns["@numel"]] = numels
        table[:, columns["@first"]], table[:, columns["@count"]] = firsts, counts
        for i, found in enumerate(self.geometries):
            for d, size in enumerate(found.sizes):
                table[i, columns[f"@size{d}"]] = size
                for s, strides in zip(("p", "g", *self.element_states()), found.strides, strict=True):
                    if f"@stride_{s}{d}" in columns:
                        table[i, columns[f"@stride_{s}{d}"]] = strides[d]
        tensor_of = np.repeat(np.arange(len(numels)), counts)
        starts = (np.arange(int(counts.sum())) - firsts[tensor_of]) * chunk
        chunks = np.stack([tensor_of, starts], axis=1).astype(np.int64)
        self.host, self.sent = table, None
        slots = self.plan.slots
        self.tables = Tables(
            tensors=None,
            chunks=self.put(chunks),
            scalars=None,
            partials=self.empty(len(chunks), slots),
            slots=self.empty(len(numels), slots),
        )

    def element_states(self) -> list[str]:
        """The states that have a value per element, in the order of their strides."""
        return [s for s in self.plan.codecs if s not in ("p", "g")]

    def put(self, array: np.ndarray) -> Any:
        """An array where the kernel reads it."""
        if self.numpy_tables:
            return np.ascontiguousarray(array)
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def empty(self, rows: int, columns: int) -> Any:
        """A float64 table of zeros where the kernel reads it, with at least one column."""
        return self.put(np.zeros((rows, max(1, columns))))

    @property
    def numpy_tables(self) -> bool:
        """Whether the kernel takes NumPy arrays; Triton takes torch tensors, in its interpreter too."""
        return self.kernel is not None and self.kernel.numpy_tables

    def point(self, work: Sequence[Work], rows: np.ndarray) -> list[Tensor]:
        """Fill the address and row columns. Returns the spill buffers, to be kept alive."""
        columns, table = self.layout.columns, self.host
        spills: list[Tensor] = []
        members = [work[m] for m in self.members]
        for name in self.layout.pointers:
            if name == "p":
                addresses = [w.param.data_ptr() for w in members]
            elif name == "g":
                addresses = [w.grad.data_ptr() for w in members]  # type: ignore[union-attr]
            elif name.startswith("#"):
                dtype = torch.float64 if self.plan.real == "fp64" else torch.float32
                buffers = [torch.empty(w.param.numel(), dtype=dtype, device=self.device) for w in members]
                spills += buffers
                addresses = [b.data_ptr() for b in buffers]
            else:
                addresses = [w.states[name].data_ptr() for w in members]
            table[:, columns[name]] = addresses
        element = [columns[n] for n in self.layout.pointers if n not in self.plan.tensor_states]
        table[:, columns["@aligned"]] = (table[:, element] % 16 == 0).all(axis=1)
        table[:, columns["@row"]] = rows
        if self.sent is None or not np.array_equal(self.sent, table):
            self.tables.tensors = self.put(table)
            self.sent = table.copy()
        return spills


class Launcher:
    """Plans, compiles and launches the steps of one optimizer's program."""

    def __init__(self, program: Program, backend: str = "auto", math_mode: str = "exact"):
        self.program, self.backend, self.math_mode = program, backend, math_mode
        self.facts = list(program.facts.values())
        self.per_shape = any(f.subject == "ndim" for f in self.facts)
        self._lowered: dict[tuple[Truths, str | None], Program] = {}
        self._plans: dict[tuple[Truths, str | None, tuple[str, ...]], Plan] = {}
        self._buckets: dict[str | None, tuple[list[Any], list[Bucket], list[Any]]] = {}

    def truths(self, options: Mapping[str, Any], ndim: int = 0) -> Truths:
        """Which of the program's compile-time conditions hold for a group and a number of dimensions."""
        return tuple(
            holds(f, ndim if f.subject == "ndim" else lookup(options, f.subject)) for f in self.facts
        )

    def lowered(self, truths: Truths, mode: str | None = None) -> Program:
        """The program specialised on these truth values, through every pass."""
        key = (truths, mode)
        if key not in self._lowered:
            named = dict(zip(self.program.facts, truths, strict=True))
            self._lowered[key] = lower(self.program, named, mode)
        return self._lowered[key]

    def plan(self, truths: Truths, codecs: tuple[str, ...], mode: str | None = None) -> Plan:
        """The plan for these truth values and the storage of p, g and the element states."""
        key = (truths, mode, codecs)
        if key not in self._plans:
            program = self.lowered(truths, mode)
            element = [k for k, s in program.states.items() if s.extent is Extent.ELEMENT]
            self._plans[key] = plan(program, dict(zip(("p", "g", *element), codecs, strict=True)))
        return self._plans[key]

    def initial(
        self, state: State, param: Tensor, options: Mapping[str, Any], dtype: torch.dtype | None
    ) -> Tensor:
        """A state's first value: laid out like the parameter, or 0-d for one number per tensor."""
        value = state.init
        if state.extent is Extent.ELEMENT:
            kind = dtype or param.dtype
            like = torch.empty_like(param, dtype=kind, memory_format=torch.preserve_format)
            if value.op is Op.LOAD:
                return like.copy_(param.detach())
            return like.fill_(self.number(value, options))
        host = state.extent is Extent.STEP
        kind = torch.float64 if host or param.dtype is torch.float64 else torch.float32
        return torch.full((), self.number(value, options), dtype=kind, device="cpu" if host else param.device)

    @staticmethod
    def number(value: Node, options: Mapping[str, Any]) -> float:
        """An expression of hyperparameters as a number."""
        return float(evaluate([value], lambda n: _step_leaf(n, options, 0.0, {}))[value])

    def run(self, work: Sequence[Work], groups: Sequence[Mapping[str, Any]], mode: str | None = None) -> None:
        """One step, or one mode, over all parameters in `work`; empty tensors must not be among them."""
        buckets = self._find_buckets(work, mode)
        ready = []
        for bucket in buckets:
            values, rows = self._scalars(bucket, work, groups)
            ready.append((bucket, values, rows))
        keep: list[Tensor] = []
        for bucket, values, rows in ready:
            if bucket.kernel is not None:
                real = np.float64 if bucket.plan.real == "fp64" else np.float32
                with np.errstate(over="ignore"):
                    bucket.tables.scalars = bucket.put(values.astype(real))
                keep += bucket.point(work, rows)
            else:
                _interpret(bucket, work, values, rows)
        launched = [b for b in buckets if b.kernel is not None]
        for k in range(max((len(b.plan.phases) for b in launched), default=0)):
            for bucket in launched:
                if k < len(bucket.plan.phases):
                    with _on(bucket.device):
                        bucket.kernel.sweep(k, bucket.tables)  # type: ignore[union-attr]
                        slots = [r.slot for r in bucket.plan.phases[k].reductions]
                        if slots:
                            bucket.kernel.combine(bucket.tables, slots)  # type: ignore[union-attr]
        for bucket in launched:
            if bucket.plan.finish:
                with _on(bucket.device):
                    bucket.kernel.finish(bucket.tables)  # type: ignore[union-attr]
        self._store_host_states(ready, work)
        torch.autograd.graph.increment_version(
            [w.param for w in work] + [s for w in work for s in w.states.values()]
        )

    def _find_buckets(self, work: Sequence[Work], mode: str | None) -> list[Bucket]:
        """The buckets of this work, from the last step where nothing but addresses changed."""
        signature = [_signature(w) for w in work]
        known = self._buckets.get(mode)
        if known is not None and known[0] == signature:
            return known[1]
        found: dict[tuple[Any, ...], Bucket] = {}
        for i, w in enumerate(work):
            program = self.lowered(w.truths, mode)
            element = [k for k, s in program.states.items() if s.extent is Extent.ELEMENT]
            tensors = [w.param, w.param if w.grad is None else w.grad, *(w.states[s] for s in element)]
            shape = geometry(tensors)
            codecs = tuple(CODEC_OF[t.dtype] for t in tensors)
            backend = resolve(self.backend, w.param.device)
            key = (w.param.device, w.truths, codecs, len(shape.sizes))
            if key not in found:
                made = self.plan(w.truths, codecs, mode)
                layout = Layout(made, len(shape.sizes))
                kernel = None
                if backend != "numpy":
                    kernel = cache.kernel(made, backend, self.math_mode, layout.dims)
                found[key] = Bucket(w.param.device, made, layout, kernel, [], [])
            found[key].members.append(i)
            found[key].geometries.append(shape)
        buckets = list(found.values())
        for bucket in buckets:
            if bucket.kernel is not None:
                bucket.build(work)
        self._buckets[mode] = (signature, buckets, [w.states for w in work])
        return buckets

    @staticmethod
    def _scalars(
        bucket: Bucket, work: Sequence[Work], groups: Sequence[Mapping[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A row of float64 scalars for each distinct set of STEP values, and each member's row."""
        scalars = bucket.plan.scalars
        index: dict[tuple[Any, ...], int] = {}
        table: list[list[float]] = []
        rows = np.empty(len(bucket.members), np.int64)
        for i, m in enumerate(bucket.members):
            w = work[m]
            key = (w.group, w.step, *(_fact(w, name) for name in bucket.reads))
            row = index.get(key)
            if row is None:
                row = index[key] = len(table)
                facts = dict(zip(bucket.reads, key[2:], strict=True))
                options = groups[w.group]
                values = evaluate(
                    scalars,
                    lambda n, o=options, t=w.step, f=facts: _step_leaf(n, o, t, f),  # type: ignore[misc]
                )
                table.append([float(values[n]) for n in scalars])
            rows[i] = row
        return np.array(table, np.float64).reshape(len(table), len(scalars)), rows

    @staticmethod
    def _store_host_states(
        ready: Sequence[tuple[Bucket, np.ndarray, np.ndarray]], work: Sequence[Work]
    ) -> None:
        for bucket, values, rows in ready:
            for name, n in bucket.plan.host.items():
                for m, row in zip(bucket.members, rows, strict=True):
                    value = n.number if n.op is Op.CONST else values[row, int(n.value or 0)]
                    work[m].states[name].fill_(float(value))


def _interpret(bucket: Bucket, work: Sequence[Work], values: np.ndarray, rows: np.ndarray) -> None:
    """Run the reference over a bucket, tensor by tensor."""
    for m, row in zip(bucket.members, rows, strict=True):
        w = work[m]
        stores = {"p": _array(w.param)}
        if w.grad is not None:
            stores["g"] = _array(w.grad)
        stores |= {s: _array(w.states[s]) for s in bucket.element_states()}
        tensor_states = {s: _array(w.states[s]) for s in bucket.plan.tensor_states}
        reference.run(bucket.plan, stores, values[row], tensor_states)


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as NumPy sees it; 16-bit storage as its raw bits."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _signature(w: Work) -> tuple[Any, ...]:
    """Everything that a bucket and its tables depend on, but for addresses and scalars."""
    p, g = w.param, w.grad
    states = tuple(map(id, w.states.values()))  # alive as long as the signature is kept
    if g is None:
        return p.shape, p.stride(), p.dtype, p.device, w.truths, states
    return p.shape, p.stride(), p.dtype, p.device, g.stride(), g.dtype, w.truths, states


def _fact(w: Work, name: str) -> float:
    """A shape fact, or the value of a state that the host computes."""
    shape = w.param.shape
    match name:
        case "numel":
            return float(w.param.numel())
        case "ndim":
            return float(w.param.dim())
        case "rows":
            return float(shape[-2]) if len(shape) >= 2 else 1.0
        case "cols":
            return float(shape[-1]) if len(shape) >= 1 else 1.0
    return float(w.states[name].item())


def _step_leaf(n: Node, options: Mapping[str, Any], step: float, facts: Mapping[str, float]) -> Any:
    """The float64 value of a leaf that the host knows."""
    if n.op is Op.HYPER:
        value = lookup(options, n.value or "")
        if value is None:
            raise ValueError(f"hyperparameter '{n.value}' is None, but the rule needs a number here")
        return np.float64(float(value))
    if n.op is Op.COUNT:
        return np.float64(step)
    return np.float64(facts[n.value or ""])


def lookup(options: Mapping[str, Any], path: str) -> Any:
    """The value of `lr`, or of one item of a tuple, `betas[0]`, in a parameter group."""
    name, _, item = path.partition("[")
    return options[name][int(item[:-1])] if item else options[name]


def resolve(backend: str, device: torch.device) -> str:
    """The back end that runs tensors of a device; `auto` is Triton on a GPU and Numba on the CPU.

    Raises:
        ValueError: the back end cannot run there.
        ImportError: its package is not installed.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"optgen runs on cpu and cuda (also ROCm) tensors, not on {device.type}")
    chosen = backend if backend != "auto" else "cpu" if device.type == "cpu" else "triton"
    if device.type == "cuda" and chosen != "triton":
        raise ValueError(f"backend='{chosen}' needs tensors on the CPU, and a parameter is on {device}")
    if chosen == "cpu":
        try:
            import numba  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "the CPU back end needs numba: pip install 'optgen[cpu]', or pass backend='numpy'"
            ) from error
    if chosen == "triton" and device.type == "cpu":
        from optgen.backends.triton import interpreting

        if not interpreting():
            raise ValueError(
                "backend='triton' needs tensors on a GPU; without one, set TRITON_INTERPRET=1 before "
                "Python starts to run kernels in Triton's interpreter"
            )
    return chosen


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
