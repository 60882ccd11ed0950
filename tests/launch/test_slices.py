"""Values for slices and for all tensors: what they are, when they are computed, how they are saved."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

import optgen
from optgen import library
from optgen.backends.cpu.kernel import CpuKernel
from optgen.backends.slices import View, is_columns, slice_of
from optgen.compiler import planned
from optgen.errors import RuleError
from optgen.ir.extent import Extent, fits, join
from optgen.passes.specialise import canonical
from optgen.plan.phases import element_stores
from sliced import LARGE, RULES, SHAPES, check, train

BACKENDS = ["numpy", "cpu"]


def step(text, params, grads, **options):
    """An optimizer after one step."""
    optimizer = optgen.optimizer(text)(params, **options)
    for p, g in zip(optimizer_params(optimizer), grads, strict=True):
        p.grad = g
    optimizer.step()
    return optimizer


def optimizer_params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def tensors(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


# What they are


def test_joined_extents():
    e = Extent
    assert join(e.STEP, e.ALL) is e.TENSOR
    assert join(e.CONST, e.ALL) is e.ALL
    assert join(e.ALL, e.ROW) is e.ROW
    assert join(e.ROW, e.COL) is e.ELEMENT
    assert join(e.MATRIX, e.COL) is e.COL
    assert join(e.dim(0), e.dim(1)) is e.ELEMENT
    assert join(e.dim(0), e.dim(0)) is e.dim(0)
    assert fits(e.TENSOR, e.ROW)
    assert not fits(e.STEP, e.ALL)
    assert not fits(e.COL, e.ROW)


@pytest.mark.parametrize(
    ("kind", "ndim", "same"),
    [
        (Extent.UNIT, 0, Extent.ELEMENT),
        (Extent.UNIT, 1, Extent.ELEMENT),
        (Extent.UNIT, 2, Extent.ROW),
        (Extent.UNIT, 3, Extent.UNIT),
        (Extent.ROW, 1, Extent.TENSOR),
        (Extent.COL, 1, Extent.ELEMENT),
        (Extent.MATRIX, 2, Extent.TENSOR),
        (Extent.MATRIX, 3, Extent.MATRIX),
        (Extent.dim(0), 1, Extent.ELEMENT),
        (Extent.dim(0), 2, Extent.ROW),
        (Extent.dim(1), 2, Extent.COL),
        (Extent.dim(-1), 2, Extent.COL),
        (Extent.dim(0), 4, Extent.UNIT),
        (Extent.dim(3), 4, Extent.dim(-1)),
        (Extent.dim(2), 4, Extent.dim(2)),
    ],
    ids=str,
)
def test_slices_that_are_alike(kind, ndim, same):
    assert canonical(kind, ndim) is same


AXES = {
    "axis=-1": lambda shape: (len(shape) - 1,),
    "axis=-2": lambda shape: (len(shape) - 2,) if len(shape) > 1 else (),
    "axis=unit": lambda shape: tuple(range(1, len(shape))),
    "axis=dim(0)": lambda shape: tuple(range(1, len(shape))),
    "axis=dim(-1)": lambda shape: tuple(range(len(shape) - 1)),
    "": lambda shape: tuple(range(len(shape))),
}
NUMPY = {
    "sum": np.sum,
    "mean": np.mean,
    "amax": np.max,
    "norm": lambda x, axis, keepdims: np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)),
    "rms": lambda x, axis, keepdims: np.sqrt(np.mean(x * x, axis=axis, keepdims=keepdims)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", NUMPY)
def test_reductions_are_those_of_numpy(name, axis, backend):
    shapes = [(7,), (6, 5), (4, 3, 2), (2, 3, 4, 5), (67, 520)]
    params = tensors(*shapes)
    grads = tensors(*shapes, seed=1)
    step(f"p = {name}({', '.join(filter(None, ['g', axis]))})", params, grads, backend=backend)
    for p, g in zip(params, grads, strict=True):
        x = g.numpy()
        right = NUMPY[name](x, axis=AXES[axis](x.shape), keepdims=True)
        assert_allclose(p.numpy(), np.broadcast_to(right, x.shape), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_are_runs_of_elements_and_the_last_may_be_short(backend):
    (p,), (g,) = tensors((5, 7)), tensors((5, 7), seed=1)
    step("p = mean(g, axis=block(8))", [p], [g], backend=backend)
    right = np.concatenate([np.full(len(b), b.mean()) for b in np.split(g.numpy().ravel(), range(8, 35, 8))])
    assert_allclose(p.numpy().ravel(), right, rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reduction_runs_over_its_own_values_never_over_a_broadcast(backend):
    (p,), (g,) = tensors((3, 4, 5)), tensors((3, 4, 5), seed=1)
    text = "r = sum(g, axis=-1)\np = sum(r) + 10*mean(r, axis=-2)"
    step(text, [p], [g], backend=backend)
    rows = g.numpy().sum(-1)
    right = rows.sum() + 10 * rows.mean(-1)[:, None, None]
    assert_allclose(p.numpy(), np.broadcast_to(right, (3, 4, 5)), rtol=1e-12)


def test_an_option_that_chooses_a_coarser_value_counts_what_it_stands_for():
    text = "hyper(fine=True)\nx = g if fine else sum(g, axis=-1)\np = sum(x)"
    for fine in (True, False):
        (p,), (g,) = tensors((3, 4)), tensors((3, 4), seed=1)
        step(text, [p], [g], fine=fine, backend="numpy")
        assert_allclose(p.numpy(), g.sum() if fine else 4 * g.sum(), rtol=1e-13)


def test_the_reference_numbers_slices_as_numpy_does():
    shape = (2, 3, 4, 5)
    at = np.indices(shape)
    view = View.of(shape, ())

    def index(kind):
        place = np.arange(view.numel).reshape(shape)
        return slice_of(place, kind, view.columns, view.inner(kind), view.count(kind))

    assert (index(Extent.ROW) == (at[0] * 3 + at[1]) * 4 + at[2]).all()
    assert (index(Extent.COL) == (at[0] * 3 + at[1]) * 5 + at[3]).all()
    assert (index(Extent.MATRIX) == at[0] * 3 + at[1]).all()
    assert (index(Extent.UNIT) == at[0]).all()
    assert all((index(Extent.dim(k)) == at[k]).all() for k in (1, 2))
    assert (index(Extent.dim(-1)) == at[3]).all()
    kinds = [Extent.ROW, Extent.COL, Extent.MATRIX, Extent.UNIT, Extent.dim(1), Extent.dim(2), Extent.dim(-1)]
    assert all(view.count(kind) == index(kind).max() + 1 for kind in kinds)
    assert [is_columns(kind) for kind in kinds] == [False, True, False, False, False, False, True]


def test_a_dimension_that_is_not_there():
    with pytest.raises(RuleError, match=r"dim\(1\) of a tensor with 1 dimensions"):
        step("p = p - sum(g, axis=dim(1))", tensors((3,)), tensors((3,)))


def test_blocks_go_with_no_other_slice():
    text = "p = p - sum(g, axis=block(4))*sum(g, axis=-1)"
    with pytest.raises(ValueError, match=r"each of block\(4\), row"):
        step(text, tensors((3, 4)), tensors((3, 4)))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(d, marks=pytest.mark.full) for d in (torch.float64, torch.bfloat16))],
    ids=str,
)
@pytest.mark.parametrize("name", RULES)
def test_the_cpu_agrees(name, dtype):
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6 if dtype is torch.float32 else 1e-2
    # a tensor of another dtype is among them, whose numbers are in float32
    check(RULES[name], "cpu", LARGE, dtype, max(tolerance, 1e-6))


# When they are computed


@pytest.mark.parametrize(
    ("rules", "moved"),
    [
        (["lamb"], [24, 16]),
        (["clip_norm", "adamw"], [4, 28]),
        (["clip_global_norm", "adamw"], [4, 28]),
        (["clip_global_norm", "sgd"], [4, 12]),
        (["gradient_centralization", "sgd"], [4, 12]),
        (["agc", "sgd"], [8, 12]),
    ],
    ids=str,
)
def test_the_fewest_sweeps(rules, moved):
    """Bytes per element of each phase: what is reduced is read once more, and nothing else."""
    made = planned(library.chain(*rules))
    assert [phase.bytes for phase in made.sweeps] == moved


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", library.names())
def test_a_sweep_writes_elements_only(name, ndim):
    """What is coarser than an element is written after every sweep that may read it."""
    from optgen.library import runnable

    made = planned(runnable([library.rule(name)])[0], ndim=ndim)
    coarse = {s for s, state in made.states.items() if state.extent is not Extent.ELEMENT}
    for phase in made.sweeps:
        assert all(s.startswith("#") or s in made.codecs for s in (*phase.loads, *phase.values))
        assert not coarse & {*phase.loads, *phase.values}
    finish = [name for step in made.steps if step.kind == "finish" for name in step.values]
    assert set(finish) | set(made.host) | set(made.finals) <= coarse


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_value_per_step_times_one_for_all_is_per_group(backend):
    params, grads = tensors((3,), (2, 2)), tensors((3,), (2, 2), seed=1)
    before = [p.clone() for p in params]
    groups = [{"params": [params[0]], "lr": 0.5}, {"params": [params[1]], "lr": 2.0}]
    step("hyper(lr=1)\np = p - lr*norm(g, over=all)", groups, grads, backend=backend)
    size = torch.cat([g.ravel() for g in grads]).norm()
    for p, old, lr in zip(params, before, (0.5, 2.0), strict=True):
        assert_allclose(p, old - lr * size, rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_total_is_over_every_bucket(backend):
    """Several dtypes, numbers of dimensions, truths, memory orders; one has no gradient, one is frozen."""
    params = [nn.Parameter(p) for p in tensors((3,), (4, 5), (), (2, 3, 4), (6,), (7,))]
    params.append(nn.Parameter(tensors((9,), dtype=torch.float32)[0]))
    params.append(nn.Parameter(tensors((5, 6))[0].t()))
    text = "hyper(lr=1, k=0)\nx = g if k > 0 else 2*g\np = sum(x**2, over=all) + 0*lr"
    groups = [{"params": params[:3]}, {"params": params[3:], "k": 1}]
    optimizer = optgen.optimizer(text)(groups, backend=backend)
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, i + 1.0)
    params[4].grad = None
    optimizer.freeze(params[5])
    before = [p.detach().clone() for p in params]
    optimizer.step()
    moving = [0, 1, 2, 3, 6, 7]
    total = sum((2 if i < 3 else 1) ** 2 * (i + 1) ** 2 * params[i].numel() for i in moving)
    for i, p in enumerate(params):
        right = torch.full_like(p, total) if i in moving else before[i]
        assert torch.equal(p.detach(), right), i


def test_every_bucket_ends_its_phase_before_a_total(monkeypatch):
    calls, run = [], CpuKernel.run
    monkeypatch.setattr(
        CpuKernel, "run", lambda self, step, tables: (calls.append(step.name), run(self, step, tables))
    )
    params = [*tensors((3,)), *tensors((4,), dtype=torch.float32)]
    grads = [torch.ones_like(p) for p in params]
    step("p = p - g/norm(g, over=all)", params, grads, backend="cpu")
    first_total = calls.index("total0")
    assert calls[:first_total].count("sweep0") == 2
    assert calls[:first_total].count("sweep1") == 0
    assert calls.count("sweep1") == 2


def test_one_more_phase_whatever_the_number_of_tensors(monkeypatch):
    calls, run = [], CpuKernel.run
    monkeypatch.setattr(
        CpuKernel, "run", lambda self, step, tables: (calls.append(step.kind), run(self, step, tables))
    )
    counts = []
    for count in (1, 100):
        params = [torch.ones(3 + i % 5) for i in range(count)]
        calls.clear()
        step("p = p - g/norm(g, over=all)", params, [torch.ones_like(p) for p in params], backend="cpu")
        counts.append(list(calls))
    assert counts[0] == counts[1]
    assert counts[0].count("sweep") == 2


# State of all tensors

GROWS = """
hyper(lr=0.1)
state(d=1e-3, count=0, per=all)
keys(d="d", count="count")
d = maximum(d, lr*norm(g, over=all))
count = t
p = p - d*g
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_of_all_lies_in_every_group_and_resumes(backend):
    def make(params):
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        return optgen.optimizer(GROWS)(groups, backend=backend)

    def run(optimizer, params, steps, start=0):
        for k in range(start, start + steps):
            for p, g in zip(params, tensors((3,), (2, 2), seed=k), strict=True):
                p.grad = g * (k + 1)
            optimizer.step()

    whole, part = ([nn.Parameter(p) for p in tensors((3,), (2, 2), seed=9)] for _ in range(2))
    a, b = make(whole), make(part)
    run(a, whole, 6)
    run(b, part, 3)
    assert b.param_groups[0]["d"] is b.param_groups[1]["d"]
    assert b.param_groups[0]["d"].dtype is torch.float64
    assert b.param_groups[0]["count"].item() == 3
    saved = copy.deepcopy(b.state_dict())
    fresh = make(part)
    fresh.load_state_dict(saved)
    run(fresh, part, 3, 3)
    assert all(torch.equal(p, q) for p, q in zip(whole, part, strict=True))
    assert a.param_groups[0]["d"].item() == fresh.param_groups[0]["d"].item()
    assert saved["param_groups"][0]["count"].item() == 3
    copied = pickle.loads(pickle.dumps(fresh))
    assert copied.param_groups[1]["d"].item() == fresh.param_groups[1]["d"].item()


def test_a_group_that_is_added_later_shares_the_state():
    params = tensors((3,), (2,))
    optimizer = step(GROWS, params[:1], tensors((3,)))
    optimizer.add_param_group({"params": params[1:]})
    params[1].grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    assert optimizer.param_groups[1]["d"] is optimizer.param_groups[0]["d"]


def test_state_of_all_needs_the_same_hyperparameters_in_every_group():
    params = tensors((3,), (2,))
    groups = [{"params": params[:1], "lr": 0.1}, {"params": params[1:], "lr": 0.2}]
    with pytest.raises(ValueError, match="depends on lr, so every group needs the same"):
        step(GROWS, groups, tensors((3,), (2,)))


def test_its_own_step_count_is_the_optimizers():
    """A parameter whose first gradient comes late has t = 1 then; the optimizer's count goes on."""
    text = "state(k=0, per=all)\nk = t\np = p - k*g - 100*t"
    params = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2)]
    optimizer = optgen.optimizer(text)(params)
    for late in (False, False, True):
        params[0].grad = torch.ones(1, dtype=torch.float64)
        params[1].grad = torch.ones(1, dtype=torch.float64) if late else None
        optimizer.step()
    assert params[0].item() == -(1 + 2 + 3) - 100 * (1 + 2 + 3)
    assert params[1].item() == -3 - 100


# State of slices


@pytest.mark.parametrize(
    ("per", "shape", "kept"),
    [
        ("row", (2, 3, 4), (2, 3, 1)),
        ("col", (2, 3, 4), (2, 1, 4)),
        ("matrix", (2, 3, 4), (2, 1, 1)),
        ("unit", (2, 3, 4), (2, 1, 1)),
        ("dim(1)", (2, 3, 4), (1, 3, 1)),
        ("dim(-1)", (2, 3, 4), (1, 1, 4)),
        ("block(5)", (2, 3, 4), (5,)),
        ("row", (5,), ()),
        ("col", (5,), (5,)),
        ("unit", (2, 3), (2, 1)),
    ],
)
def test_the_shape_of_its_state(per, shape, kept):
    (p,) = tensors(shape, dtype=torch.bfloat16)
    optimizer = step(f"state(s=1, per={per})\np = p - s*g", [p], [torch.ones_like(p)])
    state = optimizer.state[p]["s"]
    assert tuple(state.shape) == kept
    assert state.dtype is (torch.bfloat16 if kept == shape else torch.float32)


def test_it_loads_from_a_tensor_of_other_sizes_of_one():
    text = "state(r=0, per=row)\nr = r + sum(g, axis=-1)\np = p - r*g"
    (p,) = tensors((3, 4))
    optimizer = step(text, [p], [torch.ones_like(p)])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["r"] = torch.tensor([1.0, 2.0, 3.0])
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["r"].tolist() == [[1.0], [2.0], [3.0]]
    saved["state"][0]["r"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"state 'r' of parameter 0 is \(4,\); it needs \(3, 1\)"):
        optimizer.load_state_dict(saved)


def test_stores_are_in_one_order():
    program = library.rule("input(h)\nstate(m=0)\nm = m + h\np = p - m*g")
    assert element_stores(program) == ["p", "g", "m", "h"]


def test_the_dimensions_need_no_new_kernel_where_they_are_alike(monkeypatch):
    from optgen.backends import cache

    train(RULES["factored"], "cpu", SHAPES)
    built = cache.built
    train(RULES["factored"], "cpu", SHAPES, lr=0.5)
    assert cache.built == built
