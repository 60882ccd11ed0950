"""From parameters to launches: buckets, tables and the scalars that the host computes.

In: one `Work` for each parameter that moves, and the options of the parameter groups. Tensors that
share a device, storage and specialisation form a bucket. For each phase, each bucket is one launch,
whatever the number of tensors and groups in it. Buckets are rebuilt when a shape, stride, dtype, device
or truth value changes; a moved address only rewrites the address columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from optgen import cache
from optgen.backends import MAX_DIMS, SLICES, Kernel, Layout, Tables, View, across
from optgen.backends import numpy as reference
from optgen.ir import Extent, Node, Op, Program, State, toposort
from optgen.passes import holds, lower, shaped
from optgen.plan import Plan, Round, element_stores, plan
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
Truths = tuple[int, ...]  # which facts hold, and the number of dimensions where it matters


@dataclass(slots=True)
class Work:
    """One parameter's part in a step: its gradient (None in a mode), states by name, group and count.

    `inputs` are further tensors that the step was handed; `index` counts the optimizer's parameters.
    """

    param: Tensor
    grad: Tensor | None
    states: Mapping[str, Tensor]
    group: int
    truths: Truths
    step: float
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    index: int = 0

    def tensor(self, store: str) -> Tensor:
        """The tensor of an element store; what a mode has no gradient for is its parameter's."""
        if store == "p" or (store == "g" and self.grad is None):
            return self.param
        if store == "g":
            return cast(Tensor, self.grad)
        return self.states[store] if store in self.states else self.inputs[store]


@dataclass(frozen=True)
class Geometry:
    """How the element stores of one tensor are walked: sizes, and each store's strides over them.

    No sizes: every store is dense in the same order, and memory order will do.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def geometry(tensors: Sequence[Tensor], logical: bool = False) -> Geometry:
    """Merge the dimensions that lie in one stride for all of these tensors of one shape.

    With `logical` the dimensions keep their order, so that the i-th element is the i-th.

    Raises:
        ValueError: elements of the first one share memory, or too many dimensions are left.
    """
    first = tensors[0]
    if all(t.is_contiguous() for t in tensors):
        return Geometry((), ())
    used = [d for d in range(first.dim()) if first.shape[d] > 1]
    order = sorted(used, key=first.stride, reverse=True)
    if logical and order != used:
        _merge(first, tensors, order)  # it checks
        order = used
        merged_sizes, merged = _merge(first, tensors, order, False)
    else:
        merged_sizes, merged = _merge(first, tensors, order)
    if not merged or (len(merged) == 1 and all(s == 1 for s in merged[0])):
        return Geometry((), ())
    if len(merged) > MAX_DIMS:
        raise ValueError(
            f"a parameter of shape {tuple(first.shape)} needs {len(merged)} strides; at most {MAX_DIMS} work"
        )
    return Geometry(tuple(merged_sizes), tuple(zip(*merged, strict=True)))


def _merge(
    first: Tensor, tensors: Sequence[Tensor], order: Sequence[int], check: bool = True
) -> tuple[list[int], list[list[int]]]:
    """Sizes and strides of these dimensions, those in one stride as one."""
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
        if check and stride[0] < reach:
            raise ValueError(
                f"elements of a parameter of shape {tuple(first.shape)} and strides {first.stride()} share "
                "memory, so it cannot be updated in place; optimize a contiguous copy of it"
            )
        reach = stride[0] * (size - 1) + reach
    return merged_sizes, merged


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
        columns = self.layout.columns
        numels = np.array([work[m].param.numel() for m in self.members], np.int64)
        table = np.zeros((len(numels), self.layout.width), np.int64)
        table[:, columns["@numel"]] = numels
        views = [View.of(work[m].param.shape, self.plan.slices) for m in self.members]
        chunks, counts = self._tiles(table, views) if self.layout.tiled else self._chunks(numels)
        table[:, columns["@first"]], table[:, columns["@count"]] = np.cumsum(counts) - counts, counts
        for i, found in enumerate(self.geometries):
            for d, size in enumerate(found.sizes):
                table[i, columns[f"@size{d}"]] = size
                for s, strides in zip(self.plan.codecs, found.strides, strict=True):
                    if f"@stride_{s}{d}" in columns:
                        table[i, columns[f"@stride_{s}{d}"]] = strides[d]
        self.host, self.sent = table, None
        slots = self.plan.slots
        self.tables = Tables(
            tensors=None,
            chunks=self.put(chunks),
            scalars=None,
            partials=self.empty(len(chunks), slots),
            slots=self.empty(len(numels), slots),
        )
        if self.plan.numbers:
            self.tables.numbers = self.empty(len(self.plan.numbers))
            self.tables.size = self.put(np.array([len(numels)], np.int64))
        if self.layout.tiled:
            self._slices(table, views, len(chunks))

    def _chunks(self, numels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunks of the tensors, and how many each has."""
        chunk = self.kernel.chunk  # type: ignore[union-attr]
        counts = -(-numels // chunk)
        tensor = np.repeat(np.arange(len(numels)), counts)
        starts = (np.arange(int(counts.sum())) - (np.cumsum(counts) - counts)[tensor]) * chunk
        return np.stack([tensor, starts], axis=1).astype(np.int64), counts

    def _tiles(self, table: np.ndarray, views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
        """The tiles of the tensors, none of which lies in two matrices, and how many each tensor has."""
        columns, (height, width) = self.layout.columns, self.kernel.tile  # type: ignore[union-attr]
        apart = any(across(kind) or kind is Extent.MATRIX for kind in self.plan.slices)
        found = []
        for i, view in enumerate(views):
            rows = view.rows if apart else view.lines
            tops = (np.arange(0, view.lines, rows)[:, None] + np.arange(0, rows, height)).ravel()
            lefts = np.arange(0, view.columns, width)
            tile = np.stack([a.ravel() for a in np.meshgrid(tops, lefts, indexing="ij")], axis=1)
            found.append(np.insert(tile, 0, i, axis=1))
            numbers = {
                "columns": view.columns, "rows": rows, "lines": view.lines,
                "tiles_down": -(-rows // height), "tiles_across": len(lefts),
            }  # fmt: skip
            for kind in self.plan.slices:
                numbers |= {f"inner_{kind}": view.inner(kind), f"count_{kind}": view.count(kind)}
            for name, value in numbers.items():
                table[i, columns[f"@{name}"]] = value
        return np.concatenate(found).astype(np.int64), np.array([len(f) for f in found], np.int64)

    def _slices(self, table: np.ndarray, views: Sequence[View], tiles: int) -> None:
        """Places for what slices have, and for the parts of it that tiles find."""
        columns, (height, width) = self.layout.columns, self.kernel.tile  # type: ignore[union-attr]
        used = 0
        for slot in self.layout.lines:
            for i, view in enumerate(views):
                table[i, columns[f"@slot{slot}"]] = used
                used += view.count(self.plan.extents[slot])
        down, over = len(self.layout.parts(False)), len(self.layout.parts(True))
        self.tables.lines = self.empty(used)
        self.tables.line_parts = self.empty(tiles if down else 1, max(1, down), height)
        self.tables.column_parts = self.empty(tiles if over else 1, max(1, over), width)
        for kind in self.plan.slices:
            starts = [(i, s) for i, view in enumerate(views) for s in range(0, view.count(kind), SLICES)]
            self.tables.slices[kind] = self.put(np.array(starts, np.int64).reshape(-1, 2))

    def put(self, array: np.ndarray) -> Any:
        """An array where the kernel reads it."""
        if self.numpy_tables:
            return np.ascontiguousarray(array)
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def empty(self, *sizes: int) -> Any:
        """A float64 table of zeros where the kernel reads it, never an empty one."""
        return self.put(np.zeros(tuple(max(1, size) for size in sizes)))

    @property
    def numpy_tables(self) -> bool:
        """Whether the kernel takes NumPy arrays; Triton takes torch tensors, in its interpreter too."""
        return self.kernel is not None and self.kernel.numpy_tables

    def point(self, work: Sequence[Work], rows: np.ndarray, seeds: Sequence[int]) -> list[Tensor]:
        """Fill the address and row columns. Returns the spill buffers, to be kept alive."""
        columns, table = self.layout.columns, self.host
        spills: list[Tensor] = []
        members = [work[m] for m in self.members]
        for name in self.layout.pointers:
            if name.startswith("#"):
                dtype = torch.float64 if self.plan.real == "fp64" else torch.float32
                buffers = [torch.empty(w.param.numel(), dtype=dtype, device=self.device) for w in members]
                spills += buffers
                addresses = [b.data_ptr() for b in buffers]
            else:
                addresses = [w.tensor(name).data_ptr() for w in members]
            table[:, columns[name]] = addresses
        element = [columns[n] for n in self.layout.pointers if n not in self.plan.tensor_states]
        table[:, columns["@aligned"]] = (table[:, element] % 16 == 0).all(axis=1)
        if self.layout.tiled:  # a line must begin at such an address too
            table[:, columns["@aligned"]] &= table[:, columns["@columns"]] % 16 == 0
        table[:, columns["@row"]] = rows
        if self.plan.random:
            table[:, columns["@param"]] = [w.index for w in members]
            table[:, columns["@step"]] = [int(w.step) for w in members]
            table[:, columns["@seed"]] = seeds
        if self.sent is None or not np.array_equal(self.sent, table):
            self.tables.tensors = self.put(table)
            self.sent = table.copy()
        return spills


class Launcher:
    """Plans, compiles and launches the steps of one optimizer's program."""

    def __init__(self, program: Program, backend: str = "auto", math_mode: str = "exact"):
        self.program, self.backend, self.math_mode = program, backend, math_mode
        self.facts = list(program.facts.values())
        self.per_shape = shaped(program)
        self.logical = self.per_shape or any(
            n.op in (Op.NORMAL, Op.UNIFORM) for n in toposort(program.roots())
        )
        self.counts = any(state.extent is Extent.ALL for state in program.states.values())
        self.whole = {name for name, given in program.inputs.items() if given.extent is Extent.ALL}
        self._lowered: dict[tuple[Truths, str | None], Program] = {}
        self._plans: dict[tuple[Truths, str | None, tuple[str, ...]], Plan] = {}
        self._buckets: dict[str | None, tuple[list[Any], list[Bucket], list[Any]]] = {}

    def truths(
        self, options: Mapping[str, Any], ndim: int = 2, given: Collection[str] | None = None
    ) -> Truths:
        """Which of the program's compile-time conditions hold for a group and a number of dimensions.

        `given` are the inputs that the step was handed; by default, all.
        """
        inputs = {
            name: None if given is not None and name not in given else 1 for name in self.program.inputs
        }
        found = (
            holds(f, ndim if f.subject == "ndim" else lookup({**options, **inputs}, f.subject))
            for f in self.facts
        )
        return (*found, *((ndim,) if self.per_shape else ()))

    def lowered(self, truths: Truths, mode: str | None = None) -> Program:
        """The program specialised on these truth values, through every pass."""
        key = (truths, mode)
        if key not in self._lowered:
            named = {text: bool(truth) for text, truth in zip(self.program.facts, truths, strict=False)}
            self._lowered[key] = lower(self.program, named, mode, truths[-1] if self.per_shape else 2)
        return self._lowered[key]

    def plan(self, truths: Truths, codecs: tuple[str, ...], mode: str | None = None) -> Plan:
        """The plan for these truth values and the storage of p, g and the element states."""
        key = (truths, mode, codecs)
        if key not in self._plans:
            program = self.lowered(truths, mode)
            self._plans[key] = plan(program, dict(zip(element_stores(program), codecs, strict=True)))
        return self._plans[key]

    def initial(
        self, state: State, param: Tensor, options: Mapping[str, Any], dtype: torch.dtype | None
    ) -> Tensor:
        """A state's first value: laid out like the parameter, with sizes of 1 where it is sliced, or 0-d."""
        value = state.init
        if state.extent is Extent.ELEMENT:
            kind = dtype or param.dtype
            like = torch.empty_like(param, dtype=kind, memory_format=torch.preserve_format)
            if value.op is Op.LOAD:
                return like.copy_(param.detach())
            return like.fill_(self.number(value, options))
        if state.extent.sliced:
            kind = torch.float64 if param.dtype is torch.float64 else torch.float32
            return torch.full(
                slice_shape(param, state.extent), self.number(value, options), dtype=kind, device=param.device
            )
        host = state.extent is Extent.STEP
        kind = torch.float64 if host or param.dtype is torch.float64 else torch.float32
        return torch.full((), self.number(value, options), dtype=kind, device="cpu" if host else param.device)

    @staticmethod
    def number(value: Node, options: Mapping[str, Any]) -> float:
        """An expression of hyperparameters as a number."""
        return float(evaluate([value], lambda n: _step_leaf(n, options, 0.0, {}))[value])

    def run(
        self,
        work: Sequence[Work],
        groups: Sequence[Mapping[str, Any]],
        mode: str | None = None,
        numbers: Mapping[str, Any] | None = None,
        steps: float = 0.0,
    ) -> None:
        """One step, or one mode, over all parameters in `work`; empty tensors must not be among them.

        `numbers` are the states and inputs that are one for the whole optimizer, as 0-d tensors, of which
        states are updated; `steps` counts the optimizer's own steps.
        """
        buckets = self._find_buckets(work, mode)
        runners: list[_Launch | _Interpreted] = []
        for bucket in buckets:
            values, rows = self._scalars(bucket, work, groups)
            runners.append(
                (_Launch if bucket.kernel is not None else _Interpreted)(bucket, work, values, rows, groups)
            )
        if any(r.plan.numbers for r in runners):
            self._fill(runners, groups, numbers or {}, steps)
        _advance(runners)
        for r in runners:
            r.finish()
        if numbers:
            kept: dict[str, float | Tensor] = {}
            for r in runners:
                for name, i in r.plan.finals.items():
                    kept.setdefault(name, r.number(f"@total{i}"))
            for name, value in kept.items():
                numbers[name].fill_(value)
        self._store_host_states(runners, work)
        torch.autograd.graph.increment_version(
            [w.param for w in work] + [s for w in work for s in w.states.values()]
        )

    def _fill(
        self,
        runners: Sequence[_Launch | _Interpreted],
        groups: Sequence[Mapping[str, Any]],
        numbers: Mapping[str, Any],
        steps: float,
    ) -> None:
        """What totals are made of: states and inputs, and what the host computes once for all groups."""
        for r in runners:
            values = [
                evaluate(r.plan.onces, lambda n, o=options: _step_leaf(n, o, steps, {}))  # type: ignore[misc]
                for options in groups
            ]
            given: dict[str, float | Tensor] = {}
            for i, n in enumerate(r.plan.onces):
                found = {float(v[n]) for v in values}
                if len(found) > 1 and not any(x != x for x in found):
                    names = sorted({x.value or "" for x in toposort([n]) if x.op is Op.HYPER})
                    raise ValueError(
                        f"{self.program.name} has a value that is one for the whole optimizer and depends on "
                        f"{', '.join(names)}, so every group needs the same; they have {n!r} = "
                        f"{', '.join(f'{float(v[n]):g}' for v in values)}"
                    )
                given[f"@once{i}"] = float(values[0][n])
            given |= {name: numbers[name] for name in r.plan.numbers if not name.startswith("@")}
            r.fill(given)

    def _find_buckets(self, work: Sequence[Work], mode: str | None) -> list[Bucket]:
        """The buckets of this work, from the last step where nothing but addresses changed."""
        signature = [_signature(w) for w in work]
        known = self._buckets.get(mode)
        if known is not None and known[0] == signature:
            return known[1]
        found: dict[tuple[Any, ...], Bucket] = {}
        for i, w in enumerate(work):
            program = self.lowered(w.truths, mode)
            tensors = [w.tensor(s) for s in element_stores(program)]
            shape = geometry(tensors, self.logical)
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
    def _store_host_states(runners: Sequence[_Launch | _Interpreted], work: Sequence[Work]) -> None:
        for r in runners:
            for name, n in r.plan.host.items():
                for m, row in zip(r.bucket.members, r.rows, strict=True):
                    value = n.number if n.op is Op.CONST else r.values[row, int(n.value or 0)]
                    work[m].states[name].fill_(float(value))


class _Runner:
    """A bucket's part in one step: sweeps and rounds in order, each as soon as its totals are known."""

    def __init__(
        self,
        bucket: Bucket,
        work: Sequence[Work],
        values: np.ndarray,
        rows: np.ndarray,
        groups: Sequence[Mapping[str, Any]],
    ):
        self.bucket, self.plan, self.values, self.rows = bucket, bucket.plan, values, rows
        self.members = [work[m] for m in bucket.members]
        self.seeds = [int(groups[w.group].get("seed", 0)) for w in self.members] if self.plan.random else []
        self.acts: list[int | Round] = []
        for k in range(len(self.plan.phases) + 1):
            self.acts += [found for found in self.plan.rounds if found.boundary == k]
            self.acts += [k] if k < len(self.plan.phases) else []
        self.done = 0

    @property
    def next(self) -> int | Round | None:
        """What comes next, a phase or a round."""
        return self.acts[self.done] if self.done < len(self.acts) else None

    @property
    def tags(self) -> dict[str, Op]:
        """The sums over all tensors that this bucket has a part in."""
        return {r.tag: r.op for found in self.plan.rounds for r in found.over}


class _Launch(_Runner):
    """A bucket whose kernel is launched."""

    def __init__(
        self,
        bucket: Bucket,
        work: Sequence[Work],
        values: np.ndarray,
        rows: np.ndarray,
        groups: Sequence[Mapping[str, Any]],
    ):
        super().__init__(bucket, work, values, rows, groups)
        real = np.float64 if self.plan.real == "fp64" else np.float32
        with np.errstate(over="ignore"):
            bucket.tables.scalars = bucket.put(values.astype(real))
        self.keep = bucket.point(work, rows, self.seeds)

    def run(self, act: int | Round) -> None:
        """Launch a phase, or what completes the sums of a round for this bucket."""
        assert self.bucket.kernel is not None
        with _on(self.bucket.device):
            if isinstance(act, Round):
                self.bucket.kernel.gather(act, self.bucket.tables)
            else:
                self.bucket.kernel.sweep(act, self.bucket.tables)

    def total(self, act: Round) -> None:
        """Compute the totals of a round."""
        assert self.bucket.kernel is not None
        if act.totals:
            with _on(self.bucket.device):
                self.bucket.kernel.total(act, self.bucket.tables)

    def finish(self) -> None:
        """Write the new states of tensors and slices."""
        assert self.bucket.kernel is not None
        if self.plan.finish:
            with _on(self.bucket.device):
                self.bucket.kernel.finish(self.bucket.tables)

    def fill(self, values: Mapping[str, float | Tensor]) -> None:
        """Set numbers that are one for the whole optimizer."""
        table, places = self.bucket.tables.numbers, self.plan.numbers
        if self.bucket.numpy_tables:
            for name, value in values.items():
                table[places[name]] = float(value)
            return
        tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
        plain = {name: v for name, v in values.items() if name not in tensors}
        if plain:
            where = torch.tensor([places[name] for name in plain]).to(table.device, non_blocking=True)
            what = torch.tensor(list(plain.values()), dtype=torch.float64).to(table.device, non_blocking=True)
            table.index_copy_(0, where, what)
        if tensors:
            torch._foreach_copy_([table[places[name]] for name in tensors], list(tensors.values()))

    def number(self, name: str) -> float | Tensor:
        """One of those numbers: where the device has it, a view."""
        found = self.bucket.tables.numbers[self.plan.numbers[name]]
        return float(found) if self.bucket.numpy_tables else found


class _Interpreted(_Runner):
    """A bucket that the reference runs, tensor by tensor."""

    def __init__(
        self,
        bucket: Bucket,
        work: Sequence[Work],
        values: np.ndarray,
        rows: np.ndarray,
        groups: Sequence[Mapping[str, Any]],
    ):
        super().__init__(bucket, work, values, rows, groups)
        self.numbers = np.zeros(len(self.plan.numbers))
        self.runs = []
        for i, (w, row) in enumerate(zip(self.members, rows, strict=True)):
            keys = {}
            if self.plan.random:
                seed = self.seeds[i] & 0xFFFFFFFFFFFFFFFF
                keys = {
                    "seed_low": seed & 0xFFFFFFFF,
                    "seed_high": seed >> 32,
                    "param": w.index,
                    "step": int(w.step),
                }
            stores = {s: _array(w.tensor(s)) for s in self.plan.codecs if s != "g" or w.grad is not None}
            states = {s: _array(w.states[s]) for s in self.plan.tensor_states}
            states = {s: a.reshape(-1) if self.plan.states[s].extent.sliced else a for s, a in states.items()}
            self.runs.append(
                reference.Run(self.plan, stores, values[row], states, keys=keys, numbers=self.numbers)
            )

    def run(self, act: int | Round) -> None:
        """Run a phase, or what completes the sums of a round for this bucket."""
        if not isinstance(act, Round):
            for run in self.runs:
                run.sweep(act)
            return
        parts = [run.gather(act) for run in self.runs]
        for r in act.over:
            found = np.array([part[r.slot] for part in parts])
            self.numbers[self.plan.numbers[f"@slot{r.slot}"]] = found.sum() if r.op is Op.SUM else found.max()

    def total(self, act: Round) -> None:
        """Compute the totals of a round."""
        reference.total(self.plan, act, self.numbers)

    def finish(self) -> None:
        """Write the new states of tensors and slices."""
        for run in self.runs:
            run.finish()

    def fill(self, values: Mapping[str, float | Tensor]) -> None:
        """Set numbers that are one for the whole optimizer."""
        for name, value in values.items():
            self.numbers[self.plan.numbers[name]] = float(value)

    def number(self, name: str) -> float | Tensor:
        """One of those numbers."""
        return float(self.numbers[self.plan.numbers[name]])


def _advance(runners: Sequence[_Launch | _Interpreted]) -> None:
    """Run every bucket to its end; a sum over all tensors waits for the part of each bucket that has one."""
    owners: dict[str, int] = {}
    for r in runners:
        for tag in r.tags:
            owners[tag] = owners.get(tag, 0) + 1
    parts: dict[str, list[float | Tensor]] = {tag: [] for tag in owners}
    pending: dict[int, Round] = {}
    left = list(range(len(runners)))
    while left:
        moved = False
        for i in list(left):
            r = runners[i]
            if i in pending:
                if any(len(parts[x.tag]) < owners[x.tag] for x in pending[i].over):
                    continue
                found = pending.pop(i)
                r.fill(
                    {f"@slot{x.slot}": _together(parts[x.tag], x.op) for x in found.over if owners[x.tag] > 1}
                )
                r.total(found)
            moved = True
            while r.next is not None and i not in pending:
                act, r.done = r.next, r.done + 1
                r.run(act)
                if isinstance(act, Round):
                    for x in act.over:
                        value = r.number(f"@slot{x.slot}")
                        parts[x.tag].append(value.clone() if isinstance(value, Tensor) else value)
                    pending[i] = act
            if r.next is None and i not in pending:
                left.remove(i)
        if not moved:
            raise RuntimeError(
                "tensors of two kinds wait for each other's sums: the rule reduces in another order"
            )


def _together(parts: Sequence[float | Tensor], op: Op) -> float | Tensor:
    """The parts of all buckets as one number, in their order."""
    tensors = [p for p in parts if isinstance(p, Tensor)]
    if not tensors:
        numbers = np.array(parts, np.float64)
        return float(numbers.sum() if op is Op.SUM else numbers.max())
    home = tensors[0].device
    together = torch.stack([torch.as_tensor(p, dtype=torch.float64, device=home) for p in parts])
    return together.sum() if op is Op.SUM else together.amax()


def slice_shape(param: Tensor, kind: Extent) -> tuple[int, ...]:
    """The shape of what slices of a parameter have: its own, with 1 where a dimension is reduced."""
    shape = list(param.shape)
    if kind.name.startswith("BLOCK"):
        return (View.of(shape, (kind,)).count(kind),)
    kept = {
        Extent.ROW: range(len(shape) - 1), Extent.COL: [*range(len(shape) - 2), len(shape) - 1],
        Extent.MATRIX: range(len(shape) - 2), Extent.UNIT: [0],
    }.get(kind, [kind.size % len(shape)])  # fmt: skip
    return tuple(size if d in kept else 1 for d, size in enumerate(shape))


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as NumPy sees it; 16-bit storage as its raw bits."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _signature(w: Work) -> tuple[Any, ...]:
    """Everything that a bucket and its tables depend on, but for addresses and scalars."""
    p, g = w.param, w.grad
    if w.inputs:
        more = tuple((name, x.stride(), x.dtype) for name, x in w.inputs.items())
        return (*_signature(replace(w, inputs={})), more)
    states = tuple(map(id, w.states.values()))  # alive as long as the signature is kept
    if g is None:
        return p.shape, p.stride(), p.dtype, p.device, w.truths, states
    return p.shape, p.stride(), p.dtype, p.device, g.stride(), g.dtype, w.truths, states


def _fact(w: Work, name: str) -> float:
    """A shape fact, or the value of a state that the host computes."""
    shape = w.param.shape
    if name not in ("numel", "ndim", "rows", "cols") and name not in w.states:  # elements of a slice
        sizes = [shape[int(name[4:-1])] if name.startswith("DIM") else shape[0] if len(shape) else 1]
        return float(w.param.numel() / sizes[0])
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
