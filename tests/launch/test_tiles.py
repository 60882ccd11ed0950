"""How tensors with slices are cut into tiles, and how much memory a step takes for what they find."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import optgen
from optgen import library
from optgen.backends.cpu.kernel import CpuKernel
from optgen.backends.layout import Layout
from optgen.backends.slices import View
from optgen.backends.triton.kernels import TritonKernel, block_of
from optgen.compiler import Compiler, planned
from optgen.ir.node import Op
from optgen.launch.buckets import Bucket
from optgen.launch.strides import Geometry
from optgen.library import runnable
from optgen.plan.phases import element_stores

MILLION = 1_000_000
LARGE = [(1024, 1024), (4096, 1000), (100, 20_000), (MILLION + 1,), (2, MILLION), (MILLION, 1), (4, 4096, 64)]
CONVOLUTIONS = [(512, 512, 3, 3), (1024, 1024, 1, 1), (64, 3, 7, 7)]
SMALL = [(), (1,), (3, 5), (900, 1100), (7, 1), (1, 7), (64, 10_000), (10_000, 64), (5, 3, 4)]
KERNELS = {"cpu": CpuKernel, "triton": TritonKernel}


@cache
def plans(name, ndim):
    """The plans of a rule for tensors of so many dimensions, in each mode."""
    program, _ = runnable([library.rule(name)])
    compiler = Compiler.of(program)
    facts = compiler.facts(ndim=ndim)
    modes = {m: len(element_stores(compiler.specialised(facts, m))) for m in (None, *program.modes)}
    return [compiler.planned(facts, ["fp32"] * stores, mode) for mode, stores in modes.items()]


def built(plan, shape, backend):
    """The bucket of one tensor, whose tables are there; nothing is compiled."""
    param = torch.empty(shape, device="meta")
    block = (
        block_of(View.of(shape, plan.slices), plan.slices) if plan.slices and backend == "triton" else None
    )
    layout = Layout(plan, 0, False, block)
    bucket = Bucket(
        torch.device("cpu"), plan, layout, KERNELS[backend](layout, None), [0], [Geometry((), ())]
    )
    bucket.build([SimpleNamespace(param=param, shard=None, group=0, index=0, shape=param.shape)])
    return bucket


def scratch(tables):
    """Bytes of what a step keeps beside states and parameters."""
    found = (tables.partials, tables.slots, tables.lines, tables.numbers)
    return sum(t.nbytes for t in found if t is not None)


def allowed(plan, shape):
    """A hundredth of the parameter's bytes; if that is less, 16 for each row, column or tensor."""
    view = View.of(shape, plan.slices)
    values = sum(view.count(kind) if kind.sliced else 1 for kind in plan.extents)
    beside = 8 * (len(plan.extents) + len(plan.numbers)) + 32  # a row of the tensor, and tables of nothing
    return max(view.numel * 4 // 100, 16 * values) + beside


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("shape", [*LARGE, *CONVOLUTIONS, *SMALL], ids=str)
def test_scratch_is_a_hundredth(shape, backend):
    wrong = {}
    for name in library.names():
        for plan in plans(name, len(shape)):
            found, most = scratch(built(plan, shape, backend).tables), allowed(plan, shape)
            if found > most:
                wrong[name] = found, most
    assert not wrong


@pytest.mark.parametrize("backend", KERNELS)
def test_a_tile_has_some_thousand_elements(backend):
    """Small matrices share one, however many there are."""
    for name in ("adafactor", "came", "adahessian", "sm3"):
        for plan in plans(name, 4):
            if plan.slices:
                count = len(built(plan, (512, 512, 3, 3), backend).tables.chunks)
                assert count <= 512 * 512 * 9 // 1000, (name, count)


@pytest.mark.parametrize("name", ["adafactor", "came", "sm3", "agc", "adahessian", "adam_mini"])
@pytest.mark.parametrize("shape", [*SMALL, (100, 333), (20, 7, 3, 3), (3, 2, 70, 40), (2, 3, 1, 5)], ids=str)
def test_tiles_have_every_element_once(name, shape):
    for backend in KERNELS:
        for plan in plans(name, len(shape)):
            if not plan.slices:
                continue
            bucket, view = built(plan, shape, backend), View.of(shape, plan.slices)
            columns, block = bucket.layout.columns, bucket.layout.block
            width, rows = (int(bucket.host[0, columns[f"@{name}"]]) for name in ("width", "rows"))
            padded = block.rows if block is not None and block.rows else rows
            seen = np.zeros((view.lines, view.columns), int)
            for _, top, left, end, *_ in np.asarray(bucket.tables.chunks):
                lines = np.arange(top, end)
                lines = lines[lines % padded < rows]
                seen[lines // padded * rows + lines % padded, left : left + width] += 1
            assert (seen == 1).all(), (backend, plan.name)


@pytest.mark.parametrize("shape", [(0, 6), (4, 0, 6), (0, 3, 6), (4, 3, 0)], ids=str)
@pytest.mark.parametrize("name", ["adafactor", "sm3"])
def test_a_part_of_a_tensor_without_elements_has_no_tiles(name, shape):
    """Of a distributed parameter: its slices have values, and no part is read for them."""
    for backend in KERNELS:
        for plan in plans(name, len(shape)):
            bucket = built(plan, shape, backend)
            assert len(bucket.tables.chunks) == 0
            for r in bucket.layout.sliced_reductions:
                if not (bucket.kernel.atomic and r.op is Op.AMAX):
                    assert bucket.host[0, bucket.layout.columns[f"@turns{r.slot}"]] == 0


def test_dimensions_beside_matrices():
    """What all matrices have one of needs no part for each of them."""
    text = """
        hyper(lr=0.1)
        state(b=0)
        if ndim >= 3:
            b = b + mean(mean(g, axis=-1), axis=-2)*0 + g
            b = b + sum(g, axis=dim(-1))
        p = p - lr*b
    """
    program = library.rule("\n".join(line[8:] for line in text.strip("\n").splitlines()))
    plan = planned(program, ndim=4)
    assert {kind.name for kind in plan.slices} == {"ROW", "MATRIX", "DIM(-1)"}
    for backend in KERNELS:
        bucket = built(plan, (256, 256, 3, 3), backend)
        assert len(bucket.tables.chunks) < 1000
        assert scratch(bucket.tables) < 8 * 3 * 256 * 256 * 3


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_maxima_of_a_step_that_failed_are_forgotten(backend):
    forgotten(backend)


LARGEST = """
hyper(lr=0.1)
state(c=0, per=row)
if ndim >= 2:
    c = amax(g, axis=-1)
    g = g/(1 + c)
p = p - lr*g
"""


def forgotten(backend):
    p = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = optgen.optimizer(LARGEST)([p], backend=backend)
    p.grad = torch.ones(3, 4)
    optimizer.step()
    (bucket,) = next(iter(optimizer._launcher._recordings.values())).buckets
    kind, run = type(bucket.kernel), type(bucket.kernel).run
    kind.run = lambda self, step, tables: run(self, step, tables) if step.kind == "sweep" else 1 / 0
    p.grad = torch.full((3, 4), 100.0)
    try:
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    finally:
        kind.run = run
    p.grad = torch.ones(3, 4)
    optimizer.step()
    assert optimizer.state[p]["c"].flatten().tolist() == [1, 1, 1]
