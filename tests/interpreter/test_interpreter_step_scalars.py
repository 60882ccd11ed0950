"""Values per step that the device computes (`capturable=True`, a scaler on it), in Triton's interpreter."""

import copy
from collections import defaultdict

import numpy as np
import pytest
import torch
from test_rules import inputs
from torch import nn

import optgen
from optgen import library
from optgen.backends.triton.kernels import interpreting
from optgen.ir.semantics import evaluate
from optgen.launch.device_scalars import DeviceScalars
from optgen.launch.host_scalars import step_leaf
from optgen.launch.launcher import Launcher
from optgen.launch.work import Work
from optgen.library import runnable
from optgen.optim.hyperparameters import complete_group

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
SHAPES = [(3, 4), (5,), (2, 3)]


def put(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def train(optimizer, params, steps, scale=None, infinite=()):
    for k in steps:
        generator = torch.Generator().manual_seed(k)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            if scale:
                p.grad *= scale
        if scale:
            optimizer.grad_scale = torch.tensor(float(scale))
            optimizer.found_inf = torch.tensor(float(k in infinite))
        optimizer.step(**inputs(optimizer, params, generator))


def tensors(optimizer, params):
    return [*params, *(v for p in params for v in optimizer.state[p].values())]


def close(mine, right, tolerance):
    for a, b in zip(mine, right, strict=True):
        largest = b.detach().abs().max().double()
        assert (a.detach() - b.detach()).abs().max().double() <= tolerance * largest


def computed(name, t):
    """Every value per step of a rule at step t: on the device, and by the host."""
    program, _ = runnable([library.rule(name)])
    launcher = Launcher(program, "triton")
    options = complete_group(program, {}, {h.name: h.default for h in program.hypers.values()})
    truths = launcher.compiler.facts(options)
    lowered = launcher.compiler.specialised(truths)
    states = {
        s.name: torch.tensor(0.75 + launcher.number(s.init, options), dtype=torch.float64)
        for s in lowered.states.values()
        if s.extent.name == "STEP"
    }
    facts = {"numel": 12.0, "ndim": 2.0, "rows": 3.0, "cols": 4.0}
    roots = [*lowered.scalars, *lowered.onces]
    host = defaultdict(lambda: 4.0, {**facts, **{k: float(v) for k, v in states.items()}})
    right = evaluate(roots, lambda n: step_leaf(n, options, t, host))
    clock = DeviceScalars(roots, {}, "fp64", torch.device("cpu"), put)
    counter = torch.tensor(t - 1.0, dtype=torch.float64)
    stop = torch.zeros((), dtype=torch.float64)
    clock.point([counter], [states])
    clock.set([options], np.zeros(1, np.int64), lambda row, what: facts.get(what, 4.0))
    found = clock.run(stop)
    return roots, found[0].numpy()[: len(roots)], np.array([float(right[n]) for n in roots])


@pytest.mark.parametrize("name", library.names())
def test_values_are_those_of_the_host(name):
    """To 1e-12, as the host computes them in float64, early and late."""
    for t in (1.0, 2.0, 1000.0, 1_000_000.0):
        roots, found, right = computed(name, t)
        for n, a, b in zip(roots, found, right, strict=True):
            assert a == pytest.approx(b, rel=1e-12, abs=1e-300, nan_ok=True), (n, t)


SCHEDULE = """
hyper(lr=0.1, beta=0.9, power=-0.8)
state(mu=1)
mu = mu*beta*(1 - 0.5*0.96**t)
rate = lr*(0.5 + 0.5*cos(3.14159*minimum(t/100, 1)))*t**power*(1 if t % 3 == 0 else tanh(t/7))
p = p - rate*mu*g
"""


@pytest.mark.parametrize("rule", ["adamw", "nadam", "radam", "asgd", SCHEDULE], ids=lambda r: r[:5].strip())
def test_a_capturable_optimizer_trains_like_another(rule):
    one, two = parameters(), parameters()
    a = optgen.optimizer(rule)(one, lr=0.05, backend="triton")
    b = optgen.optimizer(rule)(two, lr=0.05, backend="triton", capturable=True)
    for optimizer, params in ((a, one), (b, two)):
        train(optimizer, params, range(4))
        optimizer.param_groups[0]["lr"] = 0.01  # no schedule of torch's knows where the numbers lie
        train(optimizer, params, range(4, 6))
    close(tensors(b, two), tensors(a, one), 1e-6)
    assert [b.state[p]["step"].item() for p in two] == [6.0] * 3


def test_lr_as_a_tensor_is_read_in_every_step():
    lr = torch.tensor(0.1)
    one, two = parameters(), parameters()
    a = optgen.SGD(one, lr=0.1, backend="triton")
    groups = [{"params": two[:1]}, {"params": two[1:], "lr": lr}]
    b = optgen.SGD(groups, lr=0.1, backend="triton", capturable=True)
    for k, value in enumerate((0.1, 0.02, 0.5)):
        a.param_groups[0]["lr"] = b.param_groups[0]["lr"] = value
        lr.fill_(value)
        train(a, one, [k])
        train(b, two, [k])
    close(two, one, 1e-6)


@pytest.mark.parametrize("name", ["adamw", "nadam", "prodigy", "lamb", "sgld", "adafactor"])
def test_an_infinity_found_on_the_device_is_no_step(name):
    """Neither parameters nor state nor counts change, and the host is not asked; then it goes on."""
    one, two = parameters(), parameters()
    cls = optgen.optimizer(name)
    a, b = cls(one, backend="triton"), cls(two, backend="triton", capturable=True)
    train(a, one, [0, 2])
    train(b, two, [0], scale=1024)
    before = copy.deepcopy([t.detach() for t in tensors(b, two)])
    train(b, two, [1], scale=1024, infinite=[1])
    assert all(map(torch.equal, before, tensors(b, two)))
    train(b, two, [2], scale=1024)
    close(tensors(b, two), tensors(a, one), 1e-6)
    assert [b.state[p]["step"].item() for p in two] == [2.0] * 3


def test_counts_move_between_host_and_device():
    """A state dict of one optimizer goes on in the other."""
    one, two = parameters(), parameters()
    a = optgen.NAdam(one, backend="triton")
    train(a, one, range(5))
    b = optgen.NAdam(two, backend="triton", capturable=True)
    train(b, two, range(3))
    c = optgen.NAdam(two, backend="triton")
    c.load_state_dict(b.state_dict())
    train(c, two, range(3, 5))
    close(tensors(c, two), tensors(a, one), 1e-6)


def test_counts_of_float64():
    one, two = parameters(torch.float64), parameters(torch.float64)
    a, b = (optgen.Adam(p, backend="triton", capturable=c) for p, c in ((one, False), (two, True)))
    for optimizer, params in ((a, one), (b, two)):
        train(optimizer, params, range(3))
    close(tensors(b, two), tensors(a, one), 1e-12)


def test_a_table_is_sent_again_only_when_it_changed(monkeypatch):
    params = parameters()
    optimizer = optgen.AdamW(params, backend="triton", capturable=True)
    train(optimizer, params, range(2))
    (bucket,) = optimizer._launcher._recordings[None].buckets
    sent = dict(bucket.device_scalars.sent)  # by table what was sent, and where to
    for p in params:
        p.grad = p.grad.clone()
    optimizer.step()
    assert {k: v[0] is sent[k][0] for k, v in bucket.device_scalars.sent.items()} == dict.fromkeys(sent, True)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert [k for k, v in bucket.device_scalars.sent.items() if v[0] is not sent[k][0]] == ["values"]
    assert all(v[1] is sent[k][1] for k, v in bucket.device_scalars.sent.items())  # a CUDA graph reads it


def test_a_hyperparameter_that_is_none():
    params = parameters()
    launcher = Launcher(optgen.AdamW.program, "triton")
    options = {h.name: h.default for h in launcher.program.hypers.values()}
    p = params[0]
    states = {s: torch.zeros_like(p) for s in ("m", "v")}
    counter = torch.zeros(())
    work = Work(p.detach(), torch.ones_like(p), states, 0, launcher.compiler.facts(options), 0.0)
    work.counter, work.counted = counter, True
    with pytest.raises(ValueError, match="hyperparameter 'lr' is None"):
        launcher.run([work], [{**options, "lr": None}])
