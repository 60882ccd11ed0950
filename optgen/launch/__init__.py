"""From parameters to launches: buckets, tables and the scalars that the host computes.

In: one `Work` for each parameter that moves, and the options of the parameter groups. Tensors that
share a device, storage and specialisation form a bucket. For each phase, each bucket is one launch,
whatever the number of tensors and groups in it. Buckets are rebuilt when a shape, stride, dtype, device
or truth value changes; a moved address only rewrites the address columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen import cache
from optgen.backends import Layout, View, registry
from optgen.compiler import Compiler
from optgen.facts import lookup
from optgen.ir import Extent, Node, Op, Program, State, toposort
from optgen.launch.buckets import Bucket
from optgen.launch.door import Move, check, fitted, separate
from optgen.launch.geometry import Geometry, geometry, slice_shape
from optgen.launch.guards import Guard, guard
from optgen.launch.overlap import check_memory
from optgen.launch.recording import (
    Recording,
    fixed_of,
    free_of,
    part_of,
    places_of,
    signature_of,
    sources_of,
)
from optgen.launch.runners import Launch, Ready, advance
from optgen.launch.sharding import Shard, brought, like, local, matching, shard_of
from optgen.launch.uninterrupted import Uninterrupted
from optgen.launch.uploads import Captured, capturing
from optgen.launch.work import (
    CODEC_OF,
    SUPPORTED,
    Row,
    Work,
    fact_of,
    step_leaf,
)
from optgen.locks import lock
from optgen.plan import Plan, element_stores
from optgen.semantics import evaluate

__all__ = [
    "BACKENDS",
    "CODEC_OF",
    "MODES",
    "SUPPORTED",
    "Bucket",
    "Geometry",
    "Launch",
    "Launcher",
    "Ready",
    "Shard",
    "Uninterrupted",
    "Work",
    "advance",
    "brought",
    "check_memory",
    "geometry",
    "like",
    "local",
    "matching",
    "resolve",
    "shard_of",
    "slice_shape",
]

WIDEST = 16  # bytes of a GPU's widest access, and elements that lines of tiles are multiples of
BACKENDS: tuple[str, ...] = ("auto", *registry.BACKENDS)
MODES = ("exact", "fast")


class Launcher:
    """Plans, compiles and launches the steps of one optimizer's program."""

    def __init__(self, program: Program, backend: str = "auto", math_mode: str = "exact"):
        self.program, self.backend, self.math_mode = program, backend, math_mode
        self.compiler = Compiler.of(program)
        self._recordings: dict[str | None, Recording] = {}
        self._captured: list[Captured] = []  # by CUDA graphs
        self.lock = lock()  # for those who let several threads step with one launcher

    def apart(self) -> Launcher:
        """A launcher with the same programs and plans, and buckets of its own."""
        made = copy(self)
        made._recordings, made._captured, made.lock = {}, [], lock()
        return made

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
        return float(evaluate([value], lambda n: step_leaf(n, options, 0.0, {}))[value])

    def run(self, *args: Any, **more: Any) -> list[Launch]:
        """One step: `prepare`, then `launch`, which no signal interrupts; takes what `prepare` takes."""
        ready = self.prepare(*args, **more)
        with Uninterrupted():
            return ready.launch()

    def prepare(
        self,
        work: Sequence[Work],
        groups: Sequence[Mapping[str, Any]],
        mode: str | None = None,
        numbers: Mapping[str, Any] | None = None,
        steps: float | Tensor = 0.0,
        stop: Tensor | None = None,
    ) -> Ready:
        """One step over all parameters in `work`, up to the first launch; nothing has changed then.

        Args:
            work: no empty tensors but parts of others.
            groups: hyperparameters.
            mode: a rule's `train` or `eval` in place of its step.
            numbers: the states and inputs that are one for the whole optimizer, as 0-d tensors, of which
                states are updated.
            steps: how many steps were made before, a tensor where the device counts.
            stop: a tensor; where it is not 0, states that follow from counts on the device stay as they are.

        Raises:
            RuntimeError: a tensor is not what a kernel takes; the message names it.
            ValueError: tensors overlap in memory, or a hyperparameter has no value that will do.
        """
        buckets, guard, moves = self._find_buckets(work, groups, mode)
        runners: list[Launch] = []
        for bucket in buckets:
            if bucket.counted:
                values, rows = np.empty((0, 0)), np.arange(len(bucket.members))
            else:
                values, rows = self._scalars(bucket, work, groups)
            runners.append(Launch(bucket, work, values, rows, groups, guard.addresses))
        if any(r.plan.numbers for r in runners):
            self._fill(runners, groups, numbers or {}, steps)
        for known in self._captured:
            known.check(work)
        if any(capturing(bucket.device) for bucket in buckets):
            self._captured.append(Captured([bucket.held() for bucket in buckets], work))
        written = [*fixed_of(work), *(move.old for move in moves), *(numbers or {}).values()]
        written += [w.owner for w in work if w.owner is not None]
        torch.autograd.graph.increment_version(written)  # first, as some torch refuse inference tensors
        return Ready(runners, work, moves, numbers or {}, stop, guard)

    def _fill(
        self,
        runners: Sequence[Launch],
        groups: Sequence[Mapping[str, Any]],
        numbers: Mapping[str, Any],
        steps: float | Tensor,
    ) -> None:
        """What totals are made of: states and inputs, and what is computed once for all groups."""
        for r in runners:
            given: dict[str, float | Tensor] = {}
            if r.plan.onces:
                self._check_alike(r.plan.onces, groups)
                given = r.bucket.once(groups[0], steps)
            given |= {name: numbers[name] for name in r.plan.numbers if not name.startswith("@")}
            r.fill(given)

    def _check_alike(self, onces: Sequence[Node], groups: Sequence[Mapping[str, Any]]) -> None:
        """Every group must have the same options for what is one for the whole optimizer."""
        for n in onces:
            names = sorted({x.value or "" for x in toposort([n]) if x.op is Op.HYPER})
            values = {name: [lookup(group, name) for group in groups] for name in names}
            for name, found in values.items():
                if not all(_alike(x, found[0]) for x in found[1:]):
                    raise ValueError(
                        f"{self.program.name} has a value that is one for the whole optimizer and depends on "
                        f"{name}, so every group needs the same; they have {name} = "
                        f"{', '.join(map(str, found))}"
                    )

    def _find_buckets(
        self, work: Sequence[Work], groups: Sequence[Mapping[str, Any]], mode: str | None
    ) -> tuple[list[Bucket], Guard, list[Move]]:
        """The buckets of this work, the guard that has its addresses, and states that must move first.

        They are those of the last step where the tensors are what they were.
        """
        parts = [part_of(w) for w in work]
        known = self._recordings.get(mode)
        fixed, free = fixed_of(work), free_of(work)
        places = known.guard.find(fixed, free) if known and known.parts == parts else None
        if known and places is not None and known.holds(places % WIDEST == 0):
            return known.buckets, known.guard, []
        plans, moves = self._admit(work, groups, mode)
        even = [self._even(w, made) for w, made in zip(work, plans, strict=True)]
        signature = [(signature_of(w), at) for w, at in zip(work, even, strict=True)]
        if known is not None and (known.parts, known.signature) == (parts, signature):
            buckets = known.buckets
        else:
            buckets = self._make_buckets(work, plans, even)
        found = guard(fixed_of(work), free_of(work))
        wide = any(bucket.moving is not None for bucket in buckets)
        known_even = found.addresses % WIDEST == 0 if wide else None
        self._recordings[mode] = Recording(parts, signature, buckets, found, known_even)
        return buckets, found, moves

    def _admit(
        self, work: Sequence[Work], groups: Sequence[Mapping[str, Any]], mode: str | None
    ) -> tuple[list[Plan], list[Move]]:
        """Every part's plan, once its tensors have passed the door, and states that must move first."""
        for device in {w.param.device: None for w in work}:
            resolve(self.backend, device)
        states = [self.compiler.specialised(w.facts).states for w in work]
        for w, declared in zip(work, states, strict=True):
            check(w, declared, groups)
        separate(work, states, groups)
        plans, moves = [], []
        for w, declared in zip(work, states, strict=True):
            stores = element_stores(self.compiler.specialised(w.facts, mode))
            codecs = [CODEC_OF[w.tensor(s).dtype] for s in stores]
            plans.append(self.compiler.planned(w.facts, codecs, mode))
            moves += fitted(w, declared, plans[-1].real)
        return plans, moves

    def _even(self, w: Work, made: Plan) -> bool:
        """Whether a GPU may load several elements of a part at once; see `Layout.dims`."""
        if resolve(self.backend, w.param.device) != "triton":
            return True
        lines = View.of(w.param.shape, made.slices).columns * bool(made.slices)
        return lines % WIDEST == 0 and all(w.tensor(s).data_ptr() % WIDEST == 0 for s in made.codecs)

    def _make_buckets(
        self, work: Sequence[Work], plans: Sequence[Plan], even: Sequence[bool]
    ) -> list[Bucket]:
        found: dict[tuple[Any, ...], Bucket] = {}
        for i, (w, made) in enumerate(zip(work, plans, strict=True)):
            shape = geometry([w.tensor(s) for s in made.codecs], self.compiler.logical)
            shape = shape if even[i] else shape.one_by_one(w.param.numel(), len(made.codecs))
            sharded, counter = (
                w.shard is not None,
                w.counter.dtype if w.counted and w.counter is not None else None,
            )
            codecs = tuple(made.codecs.values())
            backend, block = resolve(self.backend, w.param.device), None
            if backend == "triton" and made.slices:
                from optgen.backends.triton import block_of

                block = block_of(View.of(w.param.shape, made.slices), made.slices)
            key = (w.param.device, w.facts, codecs, len(shape.sizes), sharded, counter, block)
            if key not in found:
                layout = Layout(made, len(shape.sizes), sharded and made.random, block)
                kernel = cache.kernel(made, backend, self.math_mode, layout.dims, layout.sharded, block)
                found[key] = Bucket(w.param.device, made, layout, kernel, [], [], counter is not None)
            found[key].members.append(i)
            found[key].geometries.append(shape)
        buckets, places = list(found.values()), places_of(work)
        for bucket in buckets:
            bucket.sources = sources_of(bucket, places)
            bucket.build(work)
        return buckets

    @staticmethod
    def _scalars(
        bucket: Bucket, work: Sequence[Work], groups: Sequence[Mapping[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A row of float64 scalars for each distinct set of STEP values, and each member's row."""
        index: dict[tuple[Any, ...], int] = {}
        wanted: list[Row] = []
        rows = np.empty(len(bucket.members), np.int64)
        for i, m in enumerate(bucket.members):
            w = work[m]
            key = (w.group, w.step, *(fact_of(w, name) for name in bucket.reads))
            row = index.get(key)
            if row is None:
                row = index[key] = len(wanted)
                wanted.append((groups[w.group], w.step, dict(zip(bucket.reads, key[2:], strict=True))))
            rows[i] = row
        table = np.array(bucket.scalars.rows(wanted), np.float64)
        return table.reshape(len(wanted), len(bucket.plan.scalars)), rows


def _alike(a: Any, b: Any) -> bool:
    """Whether two options are the same, of whatever kind."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and bool((a.cpu() == b.cpu()).all()))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        one, other = (a, b) if isinstance(a, Tensor) else (b, a)
        return one.numel() == 1 and bool(one.item() == other)
    return bool(a == b)


def resolve(backend: str, device: torch.device) -> str:
    """The back end that runs tensors of a device; `auto` is Triton on a GPU and Numba on the CPU.

    Raises:
        ValueError: the back end cannot run there.
        ImportError: its package is not installed.
    """
    ours = [name for name, found in registry.BACKENDS.items() if device.type in found.devices]
    if not ours:
        raise ValueError(f"optgen runs on cpu and cuda (also ROCm) tensors, not on {device.type}")
    chosen = ours[0] if backend == "auto" else backend
    if device.type == "cuda" and chosen == "triton":
        from optgen.backends.triton import interpreting

        if interpreting():
            raise ValueError(
                f"TRITON_INTERPRET=1 runs kernels on the CPU, and a parameter is on {device}: unset it "
                "before Python starts, or move the model to the CPU"
            )
    if device.type == "cuda" and chosen not in ours:
        raise ValueError(f"backend='{chosen}' needs tensors on the CPU, and a parameter is on {device}")
    if chosen == "triton" and device.type == "cpu":
        from optgen.backends.triton import interpreting

        if not interpreting():
            raise ValueError(
                "backend='triton' needs tensors on a GPU; without one, set TRITON_INTERPRET=1 before "
                "Python starts to run kernels in Triton's interpreter"
            )
    registry.BACKENDS[chosen].require()
    return chosen
