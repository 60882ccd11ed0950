"""The launcher: plans, compiles and launches steps; from parameters to buckets, tables and recordings.

In: one `Work` for each parameter that moves, and the options of the parameter groups. Tensors that
share a device, storage and specialisation form a bucket. For each phase, each bucket is one launch,
whatever the number of tensors and groups in it. Buckets are rebuilt when a shape, stride, dtype, device
or truth value changes; a moved address only rewrites the address columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from optgen.backends import cache, registry
from optgen.backends.layout import Layout
from optgen.backends.slices import View
from optgen.compiler import Compiler
from optgen.ir.extent import Extent
from optgen.ir.node import Node, Op
from optgen.ir.program import Program, State
from optgen.ir.semantics import evaluate
from optgen.launch.buckets import Bucket
from optgen.launch.door import Move, check_all, convert_states, fixed_of, free_of, offsets_of
from optgen.launch.guards import Survey, guard
from optgen.launch.host_scalars import step_leaf
from optgen.launch.recording import (
    WIDEST,
    Ready,
    Recording,
    counters_of,
    increment_versions,
    part_key,
    signatures_of,
    sources_of,
)
from optgen.launch.run import Launch, Moment
from optgen.launch.strides import Geometry, geometry, slice_shape
from optgen.launch.uninterrupted import Uninterrupted
from optgen.launch.uploads import Captured, capturing
from optgen.launch.work import CODEC_OF, Work
from optgen.locks import lock
from optgen.plan.plan import Plan

BACKENDS: tuple[str, ...] = ("auto", *registry.BACKENDS)
MODES = ("exact", "fast")


class Launcher:
    """Plans, compiles and launches the steps of one optimizer's program."""

    def __init__(self, program: Program, backend: str = "auto", math_mode: str = "exact"):
        self.program, self.backend, self.math_mode = program, backend, math_mode
        self.compiler = Compiler.of(program)
        self._recordings: dict[str | None, Recording] = {}
        self.replay: Any = None  # the optimizer's last step, see `optgen.launch.replay`
        self._captured: list[Captured] = []  # by CUDA graphs
        self.lock = lock()  # for those who let several threads step with one launcher

    def clone(self) -> Launcher:
        """A launcher with the same programs and plans, and buckets of its own."""
        launcher = copy(self)
        launcher._recordings, launcher._captured, launcher.replay, launcher.lock = {}, [], None, lock()
        return launcher

    def initial(
        self, state: State, param: Tensor, options: Mapping[str, Any], dtype: torch.dtype | None
    ) -> Tensor:
        """A state's initial value: shaped like the parameter, with size 1 in reduced dimensions, or 0-d."""
        return self.maker(state, options, dtype)(param)

    def maker(
        self, state: State, options: Mapping[str, Any], dtype: torch.dtype | None
    ) -> Callable[[Tensor], Tensor]:
        """A function that makes a state's initial value for a parameter, with these options."""
        like: dict[str, Any] = {"dtype": dtype, "memory_format": torch.preserve_format}
        if state.init.op is Op.LOAD and state.extent is Extent.ELEMENT:
            return lambda param: torch.empty_like(param, **like).copy_(param.detach())
        value = self.number(state.init, options)
        if state.extent is Extent.ELEMENT:
            zeros = str(value) == "0.0"  # and not -0.0; a third faster
            return (
                partial(torch.zeros_like, **like)
                if zeros
                else partial(torch.full_like, fill_value=value, **like)
            )
        host, sliced = state.extent is Extent.STEP, state.extent.sliced

        # `door.convert_states` moves a coarse state where the plan's precision is another, as with float64
        # states beside float32 parameters.
        def make(param: Tensor) -> Tensor:
            kind = torch.float64 if host or param.dtype is torch.float64 else torch.float32
            shape = slice_shape(param, state.extent) if sliced else ()
            return torch.full(shape, value, dtype=kind, device="cpu" if host else param.device)

        return make

    @staticmethod
    def number(value: Node, options: Mapping[str, Any]) -> float:
        """Evaluate an expression of hyperparameters."""
        if value.op is Op.CONST:
            return value.number
        return float(evaluate([value], lambda n: step_leaf(n, options, 0.0, {}))[value])

    def run(self, *args: Any, **more: Any) -> None:
        """Make one step: `prepare`, then `launch` with signals deferred; takes the arguments of `prepare`."""
        ready = self.prepare(*args, **more)
        with Uninterrupted():
            ready.launch()

    def prepare(
        self,
        work: Sequence[Work],
        groups: Sequence[Mapping[str, Any]],
        mode: str | None = None,
        numbers: Mapping[str, Any] | None = None,
        steps: float | Tensor = 0.0,
        stop: Tensor | None = None,
    ) -> Ready:
        """Prepare a step of all parameters in `work`, up to the first launch; nothing has changed yet.

        Args:
            work: no empty tensors but parts of others, and those that are only counted.
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
        recording, moves = self._record(work, groups, mode)
        counts = np.array([w.step for w in work], np.float64)
        counters = [w.counter for w in work if w.counter is not None]
        moment = Moment(groups, counts, numbers or {}, steps, stop, counters)
        recording.refresh(moment)
        # Before anything changes: a graph's replays would move the tensors that it has captured.
        for captured in self._captured:
            captured.check(work)
        if any(capturing(bucket.device) for bucket in recording.buckets):
            self._captured.append(Captured([bucket.captured_tables() for bucket in recording.buckets], work))
        global_states = [x for name, x in moment.numbers.items() if name in self.program.states]
        increment_versions(work, moves, global_states)
        return Ready(recording, moment, work, moves)

    def _record(
        self, work: Sequence[Work], groups: Sequence[Mapping[str, Any]], mode: str | None
    ) -> tuple[Recording, list[Move]]:
        """The recording of this work, and the states to be converted when it is launched.

        The last one if its guard holds; otherwise a new one, with the last buckets if only addresses changed.
        """
        parts = [part_key(w) for w in work]
        last = self._recordings.get(mode)
        fixed, free = fixed_of(work), free_of(work)
        # `find` takes over the addresses of gradients that moved, also where alignment then does not hold.
        if (
            last
            and last.parts == parts
            and last.guard.find(fixed, free) is not None
            and last.alignment_holds()
        ):
            return last, []
        self._backends(work)
        states = [self.compiler.specialised(w.facts).states for w in work]
        # Order matters: every tensor is checked before the guard and the tables take its address.
        survey = Survey.of([*fixed, *free])
        # Few tensors are asked what they look like only when each is checked: a nested one cannot say it.
        copied = survey is None and check_all(work, states, groups, None, ())
        offsets = offsets_of(work)
        signatures = signatures_of(work, offsets, survey)
        classes: dict[Any, int] = {}  # parts with the same facts and signature
        keys = [(w.facts, each) for w, each in zip(work, signatures, strict=True)]
        class_ids = [classes.setdefault(key, len(classes)) for key in keys]
        if survey is not None:
            copied = check_all(work, states, groups, survey, class_ids)
        plans, moves = self._check_and_plan(work, states, class_ids, mode)
        if copied or moves:
            fixed, free, survey = fixed_of(work), free_of(work), None
            signatures = signatures_of(work, offsets, survey)
        aligned = [plan is not None and self._aligned(w, plan) for w, plan in zip(work, plans, strict=True)]
        signature = list(zip(signatures, aligned, strict=True))
        if last is not None and (last.parts, last.signature) == (parts, signature):
            buckets = last.buckets
        else:
            buckets = self._make_buckets(work, plans, signature)
        tensor_guard = guard(fixed, free, survey=survey)
        for bucket in buckets:
            bucket.sources = sources_of(bucket, work, offsets)
            if bucket.counted:
                members = [work[m] for m in bucket.members]
                bucket.point_scalars([cast(Tensor, w.counter) for w in members], [w.states for w in members])
        launches = [Launch(bucket, tensor_guard) for bucket in buckets]
        wide = any(bucket.moving is not None for bucket in buckets)
        aligned_addresses = tensor_guard.addresses % WIDEST == 0 if wide else None
        name = self.program.name
        counters = counters_of(work, offsets, tensor_guard.addresses)
        recording = Recording(name, parts, signature, launches, tensor_guard, aligned_addresses, counters)
        self._recordings[mode] = recording
        return recording, moves

    def _backends(self, work: Sequence[Work]) -> dict[torch.device, str]:
        """The back end for each device with launches."""
        devices = dict.fromkeys(w.param.device for w in work if w.launched)
        return {device: resolve(self.backend, device) for device in devices}

    def _check_and_plan(
        self,
        work: Sequence[Work],
        states: Sequence[Mapping[str, State]],
        class_ids: Sequence[int],
        mode: str | None,
    ) -> tuple[list[Plan | None], list[Move]]:
        """The plan of every part, once its tensors are checked, and the states to be converted."""
        plans: list[Plan | None] = []
        moves: list[Move] = []
        plan_by_class: dict[tuple[int, bool], Plan] = {}  # of parts whose states need not move
        for w, declared, class_id in zip(work, states, class_ids, strict=True):
            if not w.launched:
                plans.append(None)
                continue
            key = class_id, w.counted
            plan = plan_by_class.get(key)
            if plan is None:
                codecs = [CODEC_OF[w.tensor(s).dtype] for s in self.compiler.stores(w.facts, mode)]
                plan = self.compiler.planned(w.facts, codecs, mode)
                conversions = convert_states(w, declared, plan.real)
                moves += conversions
                if not conversions:
                    plan_by_class[key] = plan
            plans.append(plan)
        return plans, moves

    def _aligned(self, w: Work, plan: Plan) -> bool:
        """Whether a GPU may load several elements of a part at once; see `Layout.dims`."""
        if w.param.device.type == "cpu" and self.backend != "triton":
            return True
        lines = View.of(w.param.shape, plan.slices).columns * bool(plan.slices)
        return lines % WIDEST == 0 and all(w.tensor(s).data_ptr() % WIDEST == 0 for s in plan.codecs)

    def _make_buckets(
        self, work: Sequence[Work], plans: Sequence[Plan | None], signature: Sequence[tuple[Any, bool]]
    ) -> list[Bucket]:
        """Group parts into buckets and fill their tables; parts of one signature share the work."""
        buckets: dict[tuple[Any, ...], Bucket] = {}
        by_signature: dict[Any, tuple[Bucket, Geometry]] = {}
        backends = self._backends(work)
        for i, (w, plan) in enumerate(zip(work, plans, strict=True)):
            if plan is None:
                continue
            key = w.facts, w.param.device, signature[i], w.shard is None, w.counted
            if key not in by_signature:
                by_signature[key] = self._bucket(buckets, w, plan, signature[i][1], backends[w.param.device])
            bucket, shape = by_signature[key]
            bucket.members.append(i)
            bucket.geometries.append(shape)
        for bucket in buckets.values():
            bucket.build(work)
        return list(buckets.values())

    def _bucket(
        self, buckets: dict[tuple[Any, ...], Bucket], w: Work, plan: Plan, aligned: bool, backend: str
    ) -> tuple[Bucket, Geometry]:
        """The bucket of a part, which may be new, and its geometry."""
        shape = geometry([w.tensor(s) for s in plan.codecs], self.compiler.logical)
        shape = shape if aligned else shape.one_by_one(w.param.numel(), len(plan.codecs))
        sharded = w.shard is not None
        counter = w.counter.dtype if w.counted and w.counter is not None else None
        block = None
        if backend == "triton" and plan.slices:
            from optgen.backends.triton.kernels import block_of

            block = block_of(View.of(w.param.shape, plan.slices), plan.slices)
        key = w.param.device, w.facts, tuple(plan.codecs.values()), len(shape.sizes), sharded, counter, block
        if key not in buckets:
            layout = Layout(plan, len(shape.sizes), sharded and plan.random, block)
            kernel = cache.kernel(plan, backend, self.math_mode, layout.dims, layout.sharded, block)
            buckets[key] = Bucket(w.param.device, plan, layout, kernel, [], [], counter is not None)
        return buckets[key], shape


def resolve(backend: str, device: torch.device) -> str:
    """The back end for a device; `auto` is Triton on a GPU and Numba on the CPU.

    Raises:
        ValueError: the back end cannot run there.
        ImportError: its package is not installed.
    """
    ours = [name for name, spec in registry.BACKENDS.items() if device.type in spec.devices]
    if not ours:
        raise ValueError(f"optgen runs on cpu and cuda (also ROCm) tensors, not on {device.type}")
    chosen = ours[0] if backend == "auto" else backend
    if device.type == "cuda" and chosen == "triton":
        from optgen.backends.triton.kernels import interpreting

        if interpreting():
            raise ValueError(
                f"TRITON_INTERPRET=1 runs kernels on the CPU, and a parameter is on {device}: unset it "
                "before Python starts, or move the model to the CPU"
            )
    if device.type != "cpu" and chosen not in ours:
        raise ValueError(f"backend='{chosen}' needs tensors on the CPU, and a parameter is on {device}")
    if chosen == "triton" and device.type == "cpu":
        from optgen.backends.triton.kernels import interpreting

        if not interpreting():
            raise ValueError(
                "backend='triton' needs tensors on a GPU; without one, set TRITON_INTERPRET=1 before "
                "Python starts to run kernels in Triton's interpreter"
            )
    registry.BACKENDS[chosen].require()
    return chosen
