"""From parameters to launches: buckets, tables and the scalars that the host computes.

In: one `Work` for each parameter that moves, and the options of the parameter groups. Tensors that
share a device, storage and specialisation form a bucket. For each phase, each bucket is one launch,
whatever the number of tensors and groups in it. Buckets are rebuilt when a shape, stride, dtype, device
or truth value changes; a moved address only rewrites the address columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen import cache
from optgen.backends import Layout
from optgen.ir import REDUCTIONS, Extent, Node, Op, Program, State, toposort
from optgen.launch.buckets import Bucket
from optgen.launch.geometry import Geometry, geometry, slice_shape
from optgen.launch.runners import Interpreted, Launch, advance
from optgen.launch.sharding import Shard, brought, like, local, matching, shard_of
from optgen.launch.work import (
    CODEC_OF,
    SUPPORTED,
    Row,
    Truths,
    Work,
    fact_of,
    lookup,
    signature_of,
    step_leaf,
)
from optgen.passes import holds, lower, shaped
from optgen.plan import Plan, element_stores, plan
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
    "Shard",
    "Truths",
    "Work",
    "advance",
    "brought",
    "geometry",
    "like",
    "local",
    "lookup",
    "matching",
    "resolve",
    "shard_of",
    "slice_shape",
]

BACKENDS = ("auto", "triton", "cpu", "numpy")
MODES = ("exact", "fast")


class Launcher:
    """Plans, compiles and launches the steps of one optimizer's program."""

    def __init__(self, program: Program, backend: str = "auto", math_mode: str = "exact"):
        self.program, self.backend, self.math_mode = program, backend, math_mode
        self.facts = list(program.facts.values())
        self.per_shape = shaped(program)
        self.logical = self.per_shape or any(
            n.op in (Op.NORMAL, Op.UNIFORM) for n in toposort(program.roots())
        )
        self.reduces = any(n.op in REDUCTIONS for n in toposort(program.roots()))
        self.counts = any(state.extent is Extent.ALL for state in program.states.values())
        self.whole = {name for name, given in program.inputs.items() if given.extent is Extent.ALL}
        self._lowered: dict[tuple[Truths, str | None], Program] = {}
        self._plans: dict[tuple[Truths, str | None, tuple[str, ...]], Plan] = {}
        self._buckets: dict[str | None, tuple[list[Any], list[Bucket], list[Any]]] = {}

    def apart(self) -> Launcher:
        """A launcher with the same programs and plans, and buckets of its own."""
        made = copy(self)
        made._buckets = {}
        return made

    def truths(
        self, options: Mapping[str, Any], ndim: int = 2, given: Collection[str] | None = None
    ) -> Truths:
        """Which of the program's compile-time conditions hold for a group and a number of dimensions.

        `given` are the inputs that the step was handed; by default, all.
        """
        inputs = {
            name: None if given is not None and name not in given else 1 for name in self.program.inputs
        }
        known = {**options, **inputs} if inputs else options
        found = (holds(f, ndim if f.subject == "ndim" else lookup(known, f.subject)) for f in self.facts)
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
        return float(evaluate([value], lambda n: step_leaf(n, options, 0.0, {}))[value])

    def run(
        self,
        work: Sequence[Work],
        groups: Sequence[Mapping[str, Any]],
        mode: str | None = None,
        numbers: Mapping[str, Any] | None = None,
        steps: float | Tensor = 0.0,
        stop: Tensor | None = None,
    ) -> list[Launch | Interpreted]:
        """One step, or one mode, over all parameters in `work`; no empty tensors but parts of others.

        `numbers` are the states and inputs that are one for the whole optimizer, as 0-d tensors, of which
        states are updated; `steps` is how many steps were made before, a tensor where the device counts.
        Where `stop`, a tensor, is not 0, states that follow from counters on the device stay what they are.
        Returns what was run, bucket by bucket.
        """
        buckets = self._find_buckets(work, mode)
        runners: list[Launch | Interpreted] = []
        for bucket in buckets:
            if bucket.counted:
                values, rows = np.empty((0, 0)), np.arange(len(bucket.members))
            else:
                values, rows = self._scalars(bucket, work, groups)
            runners.append(
                (Launch if bucket.kernel is not None else Interpreted)(bucket, work, values, rows, groups)
            )
            if bucket.counted:
                bucket.count(work, groups, stop)
        if any(r.plan.numbers for r in runners):
            self._fill(runners, groups, numbers or {}, steps)
        advance(runners)
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
            [w.param for w in work]
            + [w.owner for w in work if w.owner is not None]
            + [s for w in work for s in w.states.values()]
        )
        return runners

    def _fill(
        self,
        runners: Sequence[Launch | Interpreted],
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
                if any(x is not found[0] and x != found[0] for x in found[1:]):
                    raise ValueError(
                        f"{self.program.name} has a value that is one for the whole optimizer and depends on "
                        f"{name}, so every group needs the same; they have {name} = "
                        f"{', '.join(f'{float(x):g}' for x in found)}"
                    )

    def _find_buckets(self, work: Sequence[Work], mode: str | None) -> list[Bucket]:
        """The buckets of this work, from the last step where nothing but addresses changed."""
        signature = [signature_of(w) for w in work]
        known = self._buckets.get(mode)
        if known is not None and known[0] == signature:
            return known[1]
        found: dict[tuple[Any, ...], Bucket] = {}
        for i, w in enumerate(work):
            program = self.lowered(w.truths, mode)
            w.follow(program.states.values())
            tensors = [w.tensor(s) for s in element_stores(program)]
            shape = geometry(tensors, self.logical)
            codecs = tuple(CODEC_OF[t.dtype] for t in tensors)
            backend = resolve(self.backend, w.param.device)
            sharded = w.shard is not None
            counted = w.counter is not None
            key = (w.param.device, w.truths, codecs, len(shape.sizes), sharded, counted)
            if key not in found:
                made = self.plan(w.truths, codecs, mode)
                layout = Layout(made, len(shape.sizes), sharded and made.random)
                kernel = None
                if backend != "numpy":
                    kernel = cache.kernel(made, backend, self.math_mode, layout.dims, layout.sharded)
                found[key] = Bucket(w.param.device, made, layout, kernel, [], [], counted)
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

    @staticmethod
    def _store_host_states(runners: Sequence[Launch | Interpreted], work: Sequence[Work]) -> None:
        for r in runners:
            for name, n in () if r.bucket.counted else r.plan.host.items():
                for m, row in zip(r.bucket.members, r.rows, strict=True):
                    value = n.number if n.op is Op.CONST else r.values[row, int(n.value or 0)]
                    work[m].states[name].fill_(float(value))


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
