"""The same rules and properties on a CUDA or ROCm GPU: `pytest -m gpu`. Collected, and skipped, elsewhere.

With TRITON_INTERPRET=1 some rules run on the CPU, in the interpreter, and what needs a GPU is skipped: the
errors of these tests themselves show before there is a GPU.
"""

import copy

import pytest
import torch
from torch import nn

import optgen
from optgen import library
from optgen.backends import cache
from optgen.backends.triton.kernels import interpreting
from optgen.ir.extent import Extent

INTERPRETED = interpreting()
DEVICE, BACKEND = ("cpu", "triton") if INTERPRETED else ("cuda", "auto")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a GPU"),
]
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPES = ((), (1,), (513,), (64, 33), (8193,), (3, 5, 7), (0, 4), (100_003,))
if INTERPRETED:  # which takes milliseconds for some hundred elements
    SHAPES = ((), (1,), (133,), (6, 33), (129,), (3, 5, 7), (0, 4))
    RULES = ["adamw", "lamb", "adafactor", "schedulefree_adamw", "prodigy", "sgld", "sophia", "polyak_sgd"]
else:
    RULES = library.names()
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def program_of(name):
    kind = library.rule(name).kind
    return optgen.chain(*{"before": (name, "adam"), "rule": (name,), "after": ("adamw", name)}[kind])


@pytest.fixture(params=RULES)
def make(request):
    return optgen.optimizer(program_of(request.param))


def made(make, params, **options):
    """An optimizer whose parameters are on the device."""
    return make(params, backend=BACKEND, **moving(make), **options)


def moving(make):
    """Options with which a rule moves 16-bit parameters in a few steps."""
    return {"d0": 0.01} if "d0" in make.program.hypers else {}


def parameters(dtype, device, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype).to(device)) for s in shapes]


def train(optimizer, params, steps, start=0):
    for k in range(start, start + steps):
        generator = torch.Generator().manual_seed(k)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype).to(p.device)
        optimizer.step(**inputs(optimizer, params, k))


def inputs(optimizer, params, k):
    """What the rule is handed besides gradients: positive numbers."""
    generator, found = torch.Generator().manual_seed(1000 + k), {}
    for name, declared in optimizer.program.inputs.items():
        if declared.extent is Extent.ALL:
            found[name] = torch.tensor(0.7)
        else:
            values = [torch.rand(p.shape, generator=generator) + 0.1 for p in params]
            found[name] = [x.to(p.dtype).to(p.device) for x, p in zip(values, params, strict=True)]
    return found


def exact(make):
    """Whether the rule has neither a reduction nor a transcendental function per element."""
    from optgen.ir.node import REDUCTIONS, Op, toposort

    free = {Op.EXP, Op.LOG, Op.TANH, Op.ATAN2, Op.POW}
    nodes = toposort(make.program.assigns.values())
    return not any(n.op in REDUCTIONS or (n.op in free and n.extent > Extent.STEP) for n in nodes)


def compare(a, b, same):
    for x, y in zip(a, b, strict=True):
        x, y = x.detach().cpu(), y.detach().cpu()
        if same:
            assert torch.equal(x, y)
        elif x.numel():
            bound = {8: 1e-12, 4: 2e-6, 2: 2e-2}[x.element_size()]
            assert torch.isfinite(y).all(), "the reference has no numbers to compare with"
            assert ((x.double() - y.double()).abs().max() <= bound * y.double().abs().max()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64", "bf16", "fp16"])
def test_agrees_with_the_reference(make, dtype):
    here, there = parameters(dtype, "cpu"), parameters(dtype, DEVICE)
    before = [p.detach().clone() for p in here]
    a, b = make(here, backend="numpy", **moving(make)), made(make, there)
    steps = 3 if INTERPRETED else 20
    train(a, here, steps)
    train(b, there, steps)
    assert any(not torch.equal(p, old) for p, old in zip(here, before, strict=True)), "nothing has moved"
    compare(there, here, exact(make))
    for p, q in zip(here, there, strict=True):
        assert a.state[p].keys() == b.state[q].keys()
        compare([b.state[q][k] for k in a.state[p]], [a.state[p][k] for k in a.state[p]], exact(make))


def test_runs_are_deterministic(make):
    results = []
    for _ in range(2):
        params = parameters(torch.float32, DEVICE)
        train(made(make, params), params, 5)
        results.append(params)
    compare(*results, True)


def test_layouts_agree_with_contiguous_copies(make):
    base = torch.randn(16, 48, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    gaps = base.clone()
    views = [base.clone().t(), gaps[::2, 1::3], base.clone()[1:, :]]
    views.append(
        torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(4))
        .to(DEVICE)
        .to(memory_format=torch.channels_last)
    )
    odd = [nn.Parameter(v) for v in views]
    plain = [nn.Parameter(v.clone(memory_format=torch.contiguous_format)) for v in views]
    a, b = made(make, odd), made(make, plain)
    train(a, odd, 3)
    train(b, plain, 3)
    compare(odd, plain, exact(make))
    mask = torch.ones_like(gaps, dtype=torch.bool)
    mask[::2, 1::3] = False
    assert torch.equal(gaps[mask], base[mask])


def test_resumes_to_the_bit(make):
    whole, part = parameters(torch.bfloat16, DEVICE), parameters(torch.bfloat16, DEVICE)
    a, b = made(make, whole), made(make, part)
    train(a, whole, 6)
    train(b, part, 3)
    fresh = made(make, part)
    fresh.load_state_dict(copy.deepcopy(b.state_dict()))
    train(fresh, part, 3, 3)
    compare(part, whole, True)


def test_new_lr_compiles_nothing(make):
    params = parameters(torch.float32, DEVICE)
    optimizer = made(make, params)
    train(optimizer, params, 1)
    built = cache.built
    for group in optimizer.param_groups:
        group["lr"] *= 0.37
    train(optimizer, params, 3, 1)
    assert cache.built == built


def test_frozen_and_missing_gradients(make):
    params = parameters(torch.float32, DEVICE)
    optimizer = made(make, params)
    train(optimizer, params, 1)
    optimizer.freeze(params[3])
    before = [p.detach().clone() for p in params]
    params[4].grad = None
    optimizer.step(**inputs(optimizer, params, 9))
    assert torch.equal(params[3], before[3])
    assert torch.equal(params[4], before[4])
    assert not torch.equal(params[5], before[5])


def test_a_cpu_checkpoint_moves_to_the_gpu():
    here, there = parameters(torch.float32, "cpu"), parameters(torch.float32, DEVICE)
    a, b = optgen.AdamW(here), optgen.AdamW(there, backend=BACKEND)
    train(a, here, 3)
    with torch.no_grad():
        for p, q in zip(here, there, strict=True):
            q.copy_(p)
    b.load_state_dict(a.state_dict())
    train(a, here, 3, 3)
    train(b, there, 3, 3)
    compare(there, here, True)


@needs_a_gpu
def test_state_follows_its_parameter():
    here, moved = parameters(torch.float32, "cpu"), parameters(torch.float32, "cpu")
    a, b = optgen.AdamW(here), optgen.AdamW(moved)
    train(a, here, 9)
    for k, device in enumerate(("cpu", "cuda", "cpu")):
        for p in moved:
            p.grad = None
            p.data = p.data.to(device)
        train(b, moved, 3, 3 * k)
        assert {b.state[p]["exp_avg"].device.type for p in moved} == {device}
    compare(moved, here, True)


@needs_a_gpu
def test_one_launch_for_a_thousand_tensors_and_four_groups():
    params = [nn.Parameter(torch.ones(8, device="cuda")) for _ in range(1000)]
    optimizer = optgen.AdamW([{"params": params[i::4], "lr": 0.1 * (i + 1)} for i in range(4)])
    train(optimizer, params, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    kernels = [e.key for e in profile.events() if "sweep" in e.key]
    assert len(kernels) == 1


@needs_a_gpu
def test_gradients_are_released_in_the_backward_pass():
    """With the bits of an ordinary loop, and no gradient left."""
    nets = []
    for released in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(33, 65), nn.Tanh(), nn.Linear(65, 7)).cuda()
        optimizer = optgen.optimizer(optgen.chain("clip_norm", "adamw"))(net.parameters(), lr=0.01)
        if released:
            optgen.release.attach(optimizer)
        for step in range(3):
            optimizer.zero_grad()
            net(torch.full((5, 33), float(step), device="cuda")).square().mean().backward()
            optimizer.step()
        nets.append(net)
    assert all(torch.equal(p, q) for p, q in zip(*(net.parameters() for net in nets), strict=True))
    assert all(p.grad is None for p in nets[1].parameters())


# Counters on the device


def clocked(capturable, shapes=((3, 4), (5,))):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, device="cuda")) for s in shapes]
    rule = "hyper(lr=0.1)\nstate(mu=1)\nmu = mu*(1 - 0.5*0.96**t)\np = p - lr*minimum(t/4, 1)*mu*g"
    return optgen.optimizer(rule)(params, capturable=capturable, fused=True), params


@needs_a_gpu
def test_a_graph_replays_a_schedule_without_the_host():
    (graphed, mine), (eager, others) = clocked(True), clocked(False)
    for p in (*mine, *others):
        p.grad = torch.ones_like(p)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # for the gradients
    with torch.cuda.stream(side):
        for _ in range(3):
            graphed.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graphed.step()
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    for _ in range(8):
        eager.step()
    for p, q in zip(mine, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert graphed.state[p]["step"].item() == eager.state[q]["step"].item() == 8


@needs_a_gpu
def test_trap_13_a_parameter_without_gradient_is_no_part_of_a_graph():
    optimizer, (first, _) = clocked(True)
    for _ in range(2):
        first.grad = torch.ones_like(first)
        optimizer.step()
    refused = pytest.raises(RuntimeError, match="has no gradient, so the graph would never step")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@needs_a_gpu
def test_a_scaler_on_the_gpu_skips_a_step_without_asking(monkeypatch):
    optimizer, params = clocked(False)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params) * (torch.inf if bad else 1)
        scaler.scale(loss).backward()
        before = [p.detach().clone() for p in params]
        scaler.step(optimizer)
        scaler.update()
        assert all(map(torch.equal, before, params)) is bad
    assert [s["step"].item() for s in optimizer.state.values()] == [2.0, 2.0]
    assert all(s["step"].is_cuda for s in optimizer.state.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_trap_22_tensors_on_another_device_than_the_current_one():
    p = torch.nn.Parameter(torch.ones(1000, device="cuda:1"))
    p.grad = torch.ones_like(p)
    optgen.SGD([p], lr=0.5).step()
    assert torch.equal(p.detach(), torch.full_like(p, 0.5))
