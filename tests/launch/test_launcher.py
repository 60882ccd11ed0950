"""Buckets, tables and host scalars."""

import numpy as np
import pytest
import torch
from torch import nn

import optgen
from optgen import library
from optgen.backends.cpu.kernel import CpuKernel
from optgen.backends.cpu.printer import CHUNK
from optgen.ir.extent import Extent
from optgen.ir.node import const
from optgen.ir.program import State
from optgen.launch import guards
from optgen.launch.door import convert_states
from optgen.launch.launcher import Launcher
from optgen.launch.strides import geometry
from optgen.launch.work import Work
from optgen.passes.variants import with_maximize


def spy(monkeypatch):
    """Record every launch as (kind, tensors)."""
    launches, run = [], CpuKernel.run

    def record(self, step, tables):
        launches.append((step.kind, len(tables.tensors)))
        return run(self, step, tables)

    monkeypatch.setattr(CpuKernel, "run", record)
    return launches


def fill(params, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("adamw", ["sweep"]),
        ("lamb", ["sweep", "combine", "sweep"]),
        (("clip_norm", "adamw"), ["sweep", "combine", "sweep"]),
        (("clip_value", "weight_decay", "adam"), ["sweep"]),
    ],
)
def test_one_launch_per_phase_whatever_the_tensors(monkeypatch, rule, wanted):
    launches = spy(monkeypatch)
    make = optgen.optimizer(optgen.chain(*rule) if isinstance(rule, tuple) else rule)
    for count in (1, 300):
        params = [nn.Parameter(torch.ones(3 + i % 5)) for i in range(count)]
        optimizer = make([{"params": params[i::3], "lr": 0.1 * (i + 1)} for i in range(min(3, count))])
        fill(params)
        launches.clear()
        optimizer.step()
        assert launches == [(name, count) for name in wanted]


def test_buckets_split_by_dtype_and_truth(monkeypatch):
    launches = spy(monkeypatch)
    kinds = [torch.float32, torch.bfloat16]
    params = [nn.Parameter(torch.ones(4, dtype=kinds[i % 2])) for i in range(10)]
    optimizer = optgen.SGD([{"params": params[:6]}, {"params": params[6:], "momentum": 0.9}], lr=0.1)
    fill(params)
    optimizer.step()
    assert sorted(launches) == [("sweep", 2), ("sweep", 2), ("sweep", 3), ("sweep", 3)]


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "Adafactor", "LAMB"])
def test_many_tensors_have_the_buckets_that_few_have(monkeypatch, name):
    """What parts look like is told by one call for many tensors, and by torch for few."""
    kinds = (torch.float32, torch.bfloat16, torch.float64)
    shapes = [(3, 4), (7,), (), (2, 3, 4), (5, 2), (2, 3, 2, 2)]
    runs = []
    for many in (guards.MANY, 1 << 60):
        monkeypatch.setattr(guards, "MANY", many)
        params = []
        for i in range(90):
            value = torch.full(shapes[i % 6], 1.0 + i, dtype=kinds[i // 6 % 3])
            value = value.transpose(0, -1) if i % 4 == 1 and value.dim() == 3 else value
            value = value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
            params.append(nn.Parameter(value))
        fill(params)
        params[3].grad = torch.full((3, 2, 4), 0.5, dtype=params[3].dtype).transpose(0, 1)
        optimizer = getattr(optgen, name)(params, backend="cpu", state_dtype=torch.float32)
        for _ in range(3):
            optimizer.step()
        (recording,) = optimizer._launcher._recordings.values()
        found = [(b.members, b.geometries, tuple(b.plan.codecs.values())) for b in recording.buckets]
        states = [value for p in params for value in optimizer.state[p].values()]
        runs.append((found, [*params, *states]))
    assert runs[0][0] == runs[1][0]
    assert all(map(torch.equal, runs[0][1], runs[1][1]))


def test_twenty_thousand_tensors_with_as_many_rows():
    """Thousands of groups and of different step counts, each with scalars of its own."""
    params = [nn.Parameter(torch.full((2,), float(i))) for i in range(20_000)]
    groups = [{"params": params[i::500], "lr": 1e-3 * (i + 1)} for i in range(500)]
    optimizer = optgen.SGD(groups, lr=0.1)
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    for i in (0, 1, 499, 500, 9_999, 19_999):
        lr = 1e-3 * (i % 500 + 1)
        assert torch.equal(params[i].detach(), torch.full((2,), float(i)) - torch.tensor(lr) * 1.0)


def test_tensors_of_several_chunks_and_tails():
    sizes = [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17, 1]
    a = [nn.Parameter(torch.linspace(-1, 1, n)) for n in sizes]
    b = [nn.Parameter(p.detach().clone()) for p in a]
    x, y = optgen.AdamW(a, lr=0.1), optgen.AdamW(b, lr=0.1, backend="numpy")
    for k in range(2):
        fill(a, k)
        fill(b, k)
        x.step()
        y.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_misaligned_views_and_their_neighbours():
    memory = torch.arange(4096, dtype=torch.float32)
    kept = memory.clone()
    p = nn.Parameter(memory[3:2050])
    q = nn.Parameter(kept[3:2050].clone())
    a, b = optgen.AdamW([p], lr=0.1), optgen.AdamW([q], lr=0.1, backend="numpy")
    fill([p], 5)
    fill([q], 5)
    a.step()
    b.step()
    assert torch.equal(p, q)
    assert torch.equal(memory[:3], kept[:3])
    assert torch.equal(memory[2050:], kept[2050:])


@pytest.mark.parametrize("position", [0, 1, 2])
def test_empty_tensors_touch_no_neighbour(position):
    tensors = [torch.ones(5), torch.ones(5)]
    tensors.insert(position, torch.zeros(0, 7))
    params = [nn.Parameter(t) for t in tensors]
    optimizer = optgen.SGD(params, lr=0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in params:
        assert torch.equal(p.detach(), torch.full(p.shape, 0.5))


def test_step_values_are_float64_on_the_host():
    """1 - beta2**t with this beta2 is 0 in float32, and the update would be NaN."""
    p = nn.Parameter(torch.zeros(3))
    optimizer = optgen.Adam([p], lr=1.0, betas=(0.9, 1 - 1e-9))
    p.grad = torch.full((3,), 1e-3)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -1.0), rtol=1e-4, atol=0)


def test_step_arithmetic_never_raises():
    """IEEE answers where Python's floats raise: 1/0, a huge power, the root of a negative number."""
    text = "hyper(lr=0.1, a=0.0, b=2000.0, c=-1.0)\np = p - lr*g*(1/a) - minimum(2**b, 0) - 0*sqrt(c)\n"
    p = nn.Parameter(torch.ones(3))
    optimizer = optgen.optimizer(text)([p])
    p.grad = torch.ones(3)
    optimizer.step()
    assert torch.isnan(p).all()


def test_shape_facts():
    text = "hyper(lr=1.0)\np = p - lr*(numel + 10*ndim + 100*rows + 1000*cols) - 0*g\n"
    params = [nn.Parameter(torch.zeros(s)) for s in [(), (3,), (2, 3), (4, 2, 3)]]
    optimizer = optgen.optimizer(text)(params)
    fill(params)
    optimizer.step()
    wanted = [1 + 0 + 100 + 1000, 3 + 10 + 100 + 3000, 6 + 20 + 200 + 3000, 24 + 30 + 200 + 3000]
    assert [-p.flatten()[0].item() for p in params] == wanted


def test_ndim_chooses_at_compile_time():
    text = "hyper(lr=1.0)\nif ndim >= 2:\n    p = p - lr*g\nelse:\n    p = p - 2*lr*g\n"
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, 3))]
    optimizer = optgen.optimizer(text)(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert params[0][0].item() == -2
    assert params[1][0, 0].item() == -1


def test_hyperparameters_that_may_be_none():
    text = "hyper(lr=1.0, T=None)\nif T is None:\n    p = p - lr*g\nelse:\n    p = p - lr*g/T\n"
    make = optgen.optimizer(text)
    p = nn.Parameter(torch.zeros(2))
    optimizer = make([p])
    p.grad = torch.ones(2)
    optimizer.step()
    assert p[0].item() == -1
    optimizer.param_groups[0]["T"] = 4
    optimizer.step()
    assert p[0].item() == -1.25


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_tensor_state_on_the_device_and_on_the_host(backend):
    text = """
hyper(lr=0.1, decay=0.5)
state(scale=0, per=tensor)
state(count=1, per=tensor)
scale = maximum(decay*scale, norm(g))
count = count*decay
p = p - lr*count*g/scale
"""
    params = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(70_000))]
    optimizer = optgen.optimizer(text)(params, backend=backend)
    scales, count = [0.0, 0.0], 1.0
    values = [torch.zeros_like(p, dtype=torch.float64) for p in params]
    for k in range(4):
        fill(params, k)
        optimizer.step()
        count *= 0.5
        for i, p in enumerate(params):
            g = p.grad.double()
            scales[i] = max(0.5 * scales[i], g.norm().item())
            values[i] -= 0.1 * count * g / scales[i]
    for i, p in enumerate(params):
        torch.testing.assert_close(p.detach().double(), values[i], rtol=1e-5, atol=1e-7)
        state = optimizer.state[p]
        assert state["scale"].shape == ()
        assert state["count"].item() == 0.5**4
        assert state["count"].dtype is torch.float64
        np.testing.assert_allclose(state["scale"].item(), scales[i], rtol=1e-6)


def test_geometry_merges_dimensions():
    x = torch.zeros(4, 5, 6)
    assert geometry([x, x]).sizes == ()
    assert geometry([x.permute(2, 0, 1), x.permute(2, 0, 1)]).sizes == ()
    found = geometry([x, x.expand(4, 5, 6).transpose(1, 2).contiguous().transpose(1, 2)])
    assert found.sizes == (4, 5, 6)
    assert geometry([x[:, ::2], torch.zeros(4, 3, 6)]).sizes == (4, 3, 6)
    assert geometry([x[::2], torch.zeros(2, 5, 6)]).sizes == (2, 30)
    found = geometry([x, torch.zeros(()).expand(4, 5, 6)])
    assert (found.sizes, found.strides) == ((120,), ((1,), (0,)))
    with pytest.raises(ValueError, match="share memory"):
        geometry([torch.zeros(5).expand(4, 5), torch.zeros(4, 5)])


def test_too_many_dimensions_are_refused():
    odd = torch.zeros([3] * 9)[tuple([slice(None, None, 2)] * 9)]
    with pytest.raises(ValueError, match="needs 9 strides; at most 8"):
        geometry([odd, torch.zeros(odd.shape)])


def test_gradients_do_not_outlive_the_step():
    import gc
    import weakref

    p = nn.Parameter(torch.zeros(3))
    optimizer = optgen.SGD([p], lr=0.1)
    p.grad = torch.ones(3)
    gone = weakref.ref(p.grad)
    optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    assert gone() is None


def test_offsets_are_64_bit():
    """A tensor beyond 2**31 elements: its table entries, without its memory."""
    program = with_maximize(library.rule("sgd"))
    launcher = Launcher(program, "cpu")
    options = {n: h.default for n, h in program.hypers.items()}
    plan = launcher.compiler.planned(launcher.compiler.facts(options), ("fp32", "fp32"))
    from optgen.backends import cache
    from optgen.backends.layout import Layout
    from optgen.launch.buckets import Bucket
    from optgen.launch.strides import Geometry
    from optgen.launch.work import Work

    class Huge:
        shape = torch.Size([3, 2**31])

        def numel(self):
            return 3 * 2**31

    bucket = Bucket(
        torch.device("cpu"), plan, Layout(plan), cache.kernel(plan, "cpu", "exact"), [0], [Geometry((), ())]
    )
    bucket.build([Work(Huge(), None, {}, 0, (), 1.0)])
    starts = bucket.tables.chunks[:, 1]
    assert starts.dtype == np.int64
    assert starts[-1] == 3 * 2**31 - CHUNK
    assert (np.diff(starts) == CHUNK).all()


def test_state_moves_with_its_parameter_but_for_what_the_host_computes():
    """Devices by name: there is but one here. `test_gpu.py` moves tensors."""

    class Tensor:
        dtype = torch.float64

        def __init__(self, device):
            self.device = device

        def to(self, device, dtype):
            return Tensor(device)

    extents = {"m": Extent.ELEMENT, "mu": Extent.TENSOR, "count": Extent.STEP}
    states = {name: State(name, const(0.0), extent, name) for name, extent in extents.items()}
    for device, moved in (("cpu", []), ("cuda", ["m", "mu"])):
        tensors = {name: Tensor("cpu") for name in extents}
        work = Work(Tensor(device), None, tensors, 0, (), 1.0)
        moves = convert_states(work, states, "fp64")
        assert [move.old for move in moves] == [tensors[name] for name in moved]
        assert {name: t.device for name, t in work.states.items()} == {
            "m": device,
            "mu": device,
            "count": "cpu",
        }
