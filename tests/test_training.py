"""What genesis.optim's documentation promises, row by row, with the numbers of its formulas.

A vector in float64 and its three gradients serve wherever an optimizer's own arithmetic is asserted. The
helpers of `optgen.training` are tested here too.
"""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import optgen
from optgen import training
from optgen.backends import cache

PAGE = Path(__file__).parent.parent / "docs" / "genesis.md"
START = [1.0, -2.0, 0.5]
GRADIENTS = [[0.1, -0.2, 0.3], [-0.3, 0.4, 0.05], [0.2, 0.0, -0.6]]


def parameter(values=START, dtype=torch.float64):
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def stepped(optimizer, p, gradients):
    """A parameter after a step with each gradient, as a float64 array."""
    for g in gradients:
        p.grad = torch.tensor(g, dtype=p.dtype)
        optimizer.step()
    return p.detach().double().numpy().copy()


def after(make, start=START, gradients=GRADIENTS, **options):
    p = parameter(start)
    return stepped(make([p], **options, backend="numpy"), p, gradients)


def near(found, expected, rtol=1e-10):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0)


def moved_by(optimizer, *parameters):
    """How far one step with gradients of one moves the first element of each parameter."""
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return [(b - p.detach()).flatten()[0].item() for p, b in zip(parameters, before, strict=True)]


def sgd(*parameters, lr=0.1, **options):
    return optgen.SGD(parameters, lr=lr, **options, backend="numpy")


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()


# The base class


def test_gns_01_parameters_may_be_an_iterator():
    model = small_model()
    optimizer = optgen.Adam(model.parameters(), backend="numpy")
    for _ in range(2):
        assert all(step > 0 for step in moved_by(optimizer, *model.parameters()))
    assert isinstance(optimizer, optgen.Optimizer)
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize("spell", [list, iter, lambda ps: [("a", ps[0]), ("b", ps[1])]])
def test_gns_01_no_parameter_and_one_twice_are_errors(spell):
    p = parameter()
    with pytest.raises(ValueError, match="empty parameter list"):
        sgd()
    with pytest.raises(ValueError, match="a parameter is twice in a parameter group"):
        optgen.SGD([{"params": spell([p, p])}], lr=0.1)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optgen.SGD([{"params": [p]}, {"params": [p]}], lr=0.1)
    q = parameter()  # as long as the other, and equal to it
    assert len(optgen.SGD([{"params": spell([p, q])}]).param_groups[0]["params"]) == 2


def test_gns_02_groups_have_their_own_options():
    a, b, c = parameter(), parameter(), parameter()
    groups = [{"params": a, "lr": 0.001}, {"params": b, "lr": 0.01}]
    near(moved_by(optgen.SGD(groups, momentum=0.9, backend="numpy"), a, b), [0.001, 0.01])
    groups = [{"params": [a], "weight_decay": 0.5}, {"params": [b, c], "lr": 0.2}]
    optimizer = optgen.SGD(groups, lr=0.1, backend="numpy")
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0]
    near(moved_by(optimizer, a, b, c), [0.1 * (1 + 0.5 * 0.999), 0.2, 0.2])


def test_gns_03_step_returns_what_its_closure_does():
    p = parameter()
    optimizer = sgd(p)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        p.square().sum().backward()
        return 2.5

    assert optimizer.step(closure) == 2.5
    near(p.detach().numpy(), 0.8 * np.array(START))
    assert optimizer.step() is None


def test_gns_04_zero_grad():
    p = parameter()
    optimizer = sgd(p)
    for arguments in ((), (True,)):
        p.grad = torch.ones_like(p)
        optimizer.zero_grad(*arguments)
        assert p.grad is None
    p.grad = kept = torch.ones_like(p)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is kept
    assert torch.equal(kept, torch.zeros(3))


def test_gns_05_state_dict(tmp_path):
    p = parameter()
    optimizer = optgen.Adam([p], backend="numpy")
    stepped(optimizer, p, GRADIENTS[:2])
    saved = optimizer.state_dict()
    assert saved.keys() == {"state", "param_groups"}
    assert saved["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert saved["param_groups"][0]["params"] == [0]
    kept = copy.deepcopy(saved)
    torch.save(saved, tmp_path / "adam.pt")
    stepped(optimizer, p, GRADIENTS[2:])
    read = torch.load(tmp_path / "adam.pt", weights_only=True)
    assert read["param_groups"] == kept["param_groups"]
    for name, value in kept["state"][0].items():
        assert torch.equal(read["state"][0][name], value)
        assert not torch.equal(optimizer.state[p][name], value)


ADAM_3 = [0.999475402218, -1.99964910264, 0.498513024131]


@pytest.mark.parametrize("first", [optgen.Adam, torch.optim.Adam])
def test_gns_06_load_state_dict_resumes(first):
    p = parameter()
    optimizer = first([p])
    stepped(optimizer, p, GRADIENTS[:2])
    fresh = optgen.Adam([p], lr=1.0, backend="numpy")
    fresh.load_state_dict(optimizer.state_dict())
    near(stepped(fresh, p, GRADIENTS[2:]), ADAM_3)
    assert fresh.state[p]["step"] == 3


def test_gns_06_other_sizes_are_refused():
    one, two = optgen.Adam([parameter()]), optgen.Adam([parameter(), parameter()])
    with pytest.raises(ValueError, match="group 0 of the state dict has 2 parameters, the optimizer's has 1"):
        one.load_state_dict(two.state_dict())


def test_gns_07_add_param_group():
    old, new = parameter(), parameter()
    optimizer = sgd(old, lr=0.1)
    moved_by(optimizer, old)
    optimizer.add_param_group({"params": new, "lr": 0.5})
    near(moved_by(optimizer, old, new), [0.1, 0.5])
    for twice in (new, [parameter(), old]):
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer.add_param_group({"params": twice})
    assert len(optimizer.param_groups) == 2


def test_gns_08_param_groups_may_be_edited():
    p = parameter()
    optimizer = optgen.SGD([p], lr=0.1, backend="cpu")
    near(moved_by(optimizer, p), [0.1])
    built = cache.built
    for group in optimizer.param_groups:
        group["lr"] *= 0.9
    near(moved_by(optimizer, p), [0.09])
    assert cache.built == built


# The optimizers


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, -2.002, 0.5025]),
        ({"momentum": 0.9}, [1.00099, -2.00218, 0.49692]),
        ({"momentum": 0.9, "nesterov": True}, [1.000891, -2.003962, 0.499728]),
        ({"momentum": 0.9, "dampening": 0.5}, [0.99914, -1.99838, 0.494395]),
        ({"momentum": 0.9, "weight_decay": 1e-4}, [1.0009843908, -2.00216878361, 0.496917206902]),
    ],
)
def test_gns_10_sgd(options, expected):
    near(after(optgen.SGD, lr=0.01, **options), expected)


def test_gns_10_nesterov_needs_momentum_and_no_dampening():
    for options in ({"momentum": 0}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="momentum > 0 and dampening == 0"):
            sgd(parameter(), nesterov=True, **options)


def test_gns_10_what_the_code_computes():
    """An average of the gradients: what momentum makes of a tenth of lr."""
    near(after(optgen.EMAMomentum, lr=0.1, momentum=0.9), [1.00099, -2.00218, 0.49692])


def test_gns_11_adam():
    near(after(optgen.Adam), ADAM_3)
    near(after(optgen.Adam, weight_decay=0.01), [0.999393306744, -1.99951763124, 0.498492750209])
    defaults = optgen.Adam([parameter()]).defaults
    assert [defaults[n] for n in ("lr", "betas", "eps", "weight_decay")] == [1e-3, (0.9, 0.999), 1e-8, 0]


@pytest.mark.parametrize(("amsgrad", "expected"), [(False, -0.263858155747), (True, -0.199126134324)])
def test_gns_12_amsgrad(amsgrad, expected):
    near(after(optgen.Adam, 0.0, [1.0, 0.01, 0.01], lr=0.1, betas=(0.9, 0.5), amsgrad=amsgrad), expected)


@pytest.mark.parametrize("make", [optgen.Adam, optgen.AdamW])
def test_gns_13_state_names(make):
    for amsgrad in (False, True):
        p = parameter()
        optimizer = make([p], amsgrad=amsgrad, backend="numpy")
        stepped(optimizer, p, GRADIENTS)
        names = {"step", "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])}
        assert optimizer.state[p].keys() == names
        assert optimizer.state[p]["step"] == 3


def test_gns_14_adamw():
    near(after(optgen.AdamW), [0.999445417576, -1.99958911958, 0.498498052114])
    found = after(optgen.AdamW, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    near(found, [0.999917062286, -1.99990479173, 0.499834915949])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.941252592152, -1.98953232617, 0.472854380496]),
        ({"centered": True}, [0.940941320235, -1.98912020058, 0.472306227823]),
        ({"momentum": 0.9}, [0.855676955743, -1.89911146022, 0.286986023898]),
        ({"weight_decay": 0.01}, [0.937444130214, -1.9821686833, 0.47140450196]),
    ],
)
def test_gns_15_rmsprop(options, expected):
    near(after(optgen.RMSprop, **options), expected)


@pytest.mark.parametrize("make", [optgen.SGD, optgen.Adam, optgen.AdamW, optgen.RMSprop])
def test_gns_16_no_gradient_no_step(make):
    p, q = parameter(), parameter()
    optimizer = make([p, q], backend="numpy")
    moved_by(optimizer, p)
    near(q.detach().numpy(), START, rtol=0)
    assert p in optimizer.state
    assert q not in optimizer.state


def test_gns_16_each_parameter_counts_its_own_steps():
    """Its first step is as long as lr, whatever the other parameter has done before."""
    p, q = parameter(), parameter()
    optimizer = optgen.Adam([p, q], lr=0.1, backend="numpy")
    moved_by(optimizer, p)
    near(moved_by(optimizer, q), [0.1], rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (optgen.Adam, {"lr": -1}, "lr >= 0"),
        (optgen.Adam, {"eps": -1e-8}, "eps >= 0"),
        (optgen.Adam, {"betas": (1.0, 0.999)}, r"0 <= betas\[0\] < 1"),
        (optgen.AdamW, {"betas": (0.9, -0.1)}, r"0 <= betas\[1\] < 1"),
        (optgen.AdamW, {"weight_decay": -0.01}, "weight_decay >= 0"),
        (optgen.SGD, {"lr": -1}, "lr >= 0"),
        (optgen.SGD, {"momentum": -0.9}, "momentum >= 0"),
        (optgen.RMSprop, {"alpha": -0.1}, "alpha >= 0"),
        (optgen.RMSprop, {"momentum": -0.9}, "momentum >= 0"),
    ],
)
def test_gns_18_bad_options_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make([parameter()], **options)


# Groups by decay


class Block(nn.Module):
    """A layer of each kind; `head` shares the weight of `embed`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm((2, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.batch = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(2, 4))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight


def names_of(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [sorted(names[id(p)] for p in group["params"]) for group in groups]


DECAYING = ["attention.in_proj_weight", "attention.out_proj.weight", "embed.weight"]


def test_gns_17_decay_groups():
    model = Block()
    model.embed.weight.requires_grad_(False)
    groups = training.decay_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decaying, rest = names_of(model, groups)
    assert decaying == DECAYING
    assert sorted(decaying + rest) == sorted(name for name, _ in model.named_parameters())
    assert {"norm.weight", "batch.weight", "bias", "scale", "attention.in_proj_bias"} <= set(rest)


def test_gns_17_skip_names_what_does_not_decay():
    model = Block()
    decaying, rest = names_of(model, training.decay_groups(model, 0.1, skip=["embed.*", "*bias"]))
    assert rest == sorted(n for n, _ in model.named_parameters() if n.endswith("bias") or "embed" in n)
    assert "norm.weight" in decaying
    assert names_of(model, training.decay_groups(model, 0.1, skip="embed.weight"))[1] == ["embed.weight"]
    by_size = training.decay_groups(model, 0.1, skip=lambda name, p: p.numel() > 4 and name != "bias")
    large = {*DECAYING, "attention.in_proj_bias", "head.bias", "norm.bias", "norm.weight"}
    assert set(names_of(model, by_size)[1]) == large
    with pytest.raises(ValueError, match=r"'nrom\.\*' matches no parameter; names begin scale, bias, embed"):
        training.decay_groups(model, 0.1, skip=["norm.*", "nrom.*"])


def test_gns_17_one_group_decays_and_the_other_does_not():
    model = nn.Linear(3, 2)
    nn.init.ones_(model.bias)
    weight = model.weight.detach().clone()
    optimizer = optgen.AdamW(training.decay_groups(model, 0.01), lr=0.1, backend="numpy")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    near(model.weight.detach(), weight * (1 - 0.1 * 0.01), rtol=1e-6)
    assert torch.equal(model.bias, torch.ones(2))


# Clipping


def with_gradients(*gradients):
    parameters = [parameter([0.0] * len(g)) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = torch.tensor(g, dtype=torch.float64)
    return parameters


def test_gns_20_clip_grad_norm():
    parameters = [*with_gradients([3, 4], [0, 12]), parameter()]
    gradients = [p.grad for p in parameters]
    norm = training.clip_grad_norm_(iter(parameters), 6.5)
    assert isinstance(norm, float)
    near(norm, 13)
    near(np.concatenate(gradients[:2]), [1.49999988, 1.99999985, 0, 5.99999954], rtol=1e-8)
    near(np.concatenate(gradients[:2]), np.array([3, 4, 0, 12]) * 6.5 / (13 + 1e-6))
    assert gradients[2] is None
    assert parameters[0].grad is gradients[0]


@pytest.mark.parametrize(("norm_type", "expected"), [(1, 19), (2, 13), (math.inf, 12), (3, 1819 ** (1 / 3))])
def test_gns_20_norms(norm_type, expected):
    parameters = with_gradients([3, -4], [0, -12])
    near(training.clip_grad_norm_(parameters, 100.0, norm_type), expected)
    near(np.concatenate([p.grad for p in parameters]), [3, -4, 0, -12], rtol=0)
    near(training.clip_grad_norm_(parameters, 1.0, norm_type), expected)
    near(training.clip_grad_norm_(parameters, 1.0, norm_type), 1, rtol=1e-6)


def test_gns_20_a_norm_that_is_not_finite():
    (p,) = with_gradients([3, math.nan])
    with pytest.raises(RuntimeError, match="non-finite"):
        training.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert p.grad[0] == 3
    assert math.isnan(training.clip_grad_norm_(p, 1.0))
    assert training.clip_grad_norm_([parameter()], 1.0) == 0


def test_gns_21_clip_grad_value():
    (p,) = with_gradients([-3, 0.5, 2])
    training.clip_grad_value_([p, parameter()], 1)
    near(p.grad, [-1, 0.5, 1], rtol=0)


# Mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gns_22_half_precision_is_rounded_once(dtype):
    """A step in float32 from the same numbers, rounded: nothing in between is."""
    torch.manual_seed(0)
    half = nn.Parameter(torch.randn(50).to(dtype))
    full = nn.Parameter(half.detach().float())
    theirs = nn.Parameter(full.detach().clone())
    a = optgen.AdamW([half], lr=0.01, state_dtype=torch.float32, backend="numpy")
    b = optgen.AdamW([full], lr=0.01, backend="numpy")
    c = torch.optim.AdamW([theirs], lr=0.01)
    for k in range(5):
        half.grad = torch.randn(50).to(dtype)
        full.grad = theirs.grad = half.grad.float()
        for optimizer in (a, b, c):
            optimizer.step()
        assert torch.equal(half, full.to(dtype))
        if k == 0:
            torch.testing.assert_close(half, theirs.detach().to(dtype), rtol=0, atol=0)
        full.data.copy_(half)


def test_gns_22_autocast_loop():
    model = small_model().float()
    data = torch.randn(16, 4)
    optimizer = optgen.AdamW(model.parameters(), lr=0.02, backend="numpy")
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(data)
            loss = (output.float() - data.sum(1, keepdim=True)).square().mean()
        assert output.dtype is torch.bfloat16
        loss.backward()
        training.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def scaled_step(scaler, optimizer, p, gradient):
    """One step of a loss whose gradient is this."""
    optimizer.zero_grad()
    scaler.scale((p * torch.tensor(gradient)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()


def test_gns_23_grad_scaler():
    p = parameter([1.0, 1.0], torch.float32)
    optimizer = sgd(p)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    for _ in range(2):
        assert scaler.get_scale() == 65536
        scaled_step(scaler, optimizer, p, [1.0, 2.0])
    assert scaler.get_scale() == 131072
    near(p.detach(), [0.8, 0.6], rtol=1e-6)
    scaled_step(scaler, optimizer, p, [1.0, math.inf])
    assert scaler.get_scale() == 65536
    near(p.detach(), [0.8, 0.6], rtol=1e-6)


def test_gns_23_unscaling_once_then_clipping():
    p = parameter([1.0, 1.0], torch.float32)
    optimizer = sgd(p)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((p * torch.tensor([3.0, 4.0])).sum()).backward()
    scaler.unscale_(optimizer)
    near(training.clip_grad_norm_([p], 1.0), 5)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    near(p.detach(), [0.94, 0.92], rtol=1e-6)


def test_gns_23_large_and_finite_is_not_infinite():
    """The square of this gradient is not a float32."""
    p = parameter([0.0], torch.float32)
    optimizer = sgd(p, lr=1e-20)
    scaled_step(torch.amp.GradScaler("cpu"), optimizer, p, [1e20])
    near(p.detach(), [-1], rtol=1e-6)


# Schedules


def rates(scheduler, steps):
    """The first group's lr at construction and after each step."""
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        assert found[-1] == scheduler.optimizer.param_groups[0]["lr"]
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_gns_30_cosine_annealing():
    found = rates(training.CosineAnnealingLR(sgd(parameter(), lr=1e-3), T_max=100, eta_min=1e-6), 101)
    near([found[t] for t in (0, 25, 50, 100)], [1e-3, 8.536998372e-4, 5.005e-4, 1e-6], rtol=1e-9)


def test_gns_31_a_rate_for_each_group():
    a, b = parameter(), parameter()
    optimizer = optgen.SGD([{"params": a, "lr": 0.4}, {"params": b, "lr": 0.2}], backend="numpy")
    scheduler = training.StepLR(optimizer, 1, gamma=0.5)
    assert scheduler.get_last_lr() == [0.4, 0.2]
    near(moved_by(optimizer, a, b), [0.4, 0.2])
    scheduler.step()
    assert scheduler.get_last_lr() == [0.2, 0.1]
    near(moved_by(optimizer, a, b), [0.2, 0.1])


def test_gns_32_lambda_lr():
    near(rates(training.LambdaLR(sgd(parameter()), lambda epoch: 0.5**epoch), 3), [0.1, 0.05, 0.025])
    optimizer = optgen.SGD([{"params": parameter()}, {"params": parameter()}], lr=0.1, backend="numpy")
    scheduler = training.LambdaLR(optimizer, [lambda epoch: 0.5**epoch, lambda epoch: epoch + 1])
    optimizer.step()
    scheduler.step()
    near(scheduler.get_last_lr(), [0.05, 0.2])
    assert scheduler.state_dict()["last_epoch"] == 1
    assert scheduler.state_dict()["base_lrs"] == [0.1, 0.1]


def test_gns_33_cosine_with_warmup():
    scheduler = training.get_cosine_schedule_with_warmup(sgd(parameter(), lr=1.0), 2, 6)
    expected = [0, 0.5, 1, 0.8535533906, 0.5, 0.1464466094, 0, 0.1464466094]
    np.testing.assert_allclose(rates(scheduler, 8), expected, atol=1e-10)
    scheduler = training.get_cosine_schedule_with_warmup(sgd(parameter(), lr=1.0), 0, 0)
    assert rates(scheduler, 1) == [1.0]


def test_gns_34_step_and_exponential():
    found = rates(training.StepLR(sgd(parameter()), step_size=30, gamma=0.1), 61)
    near([found[t] for t in (29, 30, 60)], [0.1, 0.01, 0.001])
    near(rates(training.ExponentialLR(sgd(parameter()), gamma=0.95), 3)[2], 0.09025)


def test_gns_35_noam():
    def noam(step):
        return 0.0 if step == 0 else 512**-0.5 * min(step**-0.5, step * 40**-1.5)

    found = rates(training.LambdaLR(sgd(parameter(), lr=1.0), noam), 161)
    assert found[0] == 0
    near([found[t] for t in (1, 40, 160)], np.array([1 / 40, 1, 1 / 2]) * (512 * 40) ** -0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: training.CosineAnnealingLR(optimizer, 20),
        lambda optimizer: training.StepLR(optimizer, 3),
        lambda optimizer: training.LambdaLR(optimizer, lambda t: 1 / (1 + t)),
        lambda optimizer: training.get_cosine_schedule_with_warmup(optimizer, 4, 12),
    ],
)
def test_gns_36_a_schedule_resumes(make):
    whole = rates(make(sgd(parameter())), 12)
    optimizer = sgd(parameter())
    scheduler = make(optimizer)
    rates(scheduler, 7)
    fresh = sgd(parameter())
    resumed = make(fresh)
    fresh.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    near(rates(resumed, 5), whole[7:])


# Loops, memory and files


def test_gns_40_accumulated_gradients_are_one_batch():
    data = torch.randn(8, 4, dtype=torch.float64)
    models = small_model(), small_model()
    for parts, model in zip((1, 4), models, strict=True):
        optimizer = optgen.AdamW(model.parameters(), lr=0.1, backend="numpy")
        for _ in range(3):
            for part in data.chunk(parts):
                (model(part).square().mean() / parts).backward()
            training.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0)


def test_gns_41_state_bytes():
    counter = 4
    for make, options, expected in (
        (optgen.Adam, {}, 8000),
        (optgen.AdamW, {}, 8000),
        (optgen.SGD, {}, 0),
        (optgen.SGD, {"momentum": 0.9}, 4000),
    ):
        p = nn.Parameter(torch.zeros(1000))
        optimizer = make([p], **options, backend="numpy")
        assert training.state_bytes(optimizer) == 0
        moved_by(optimizer, p)
        assert training.state_bytes(optimizer) == expected + counter


def test_gns_41_state_may_lie_in_lists():
    """As that of torch.optim.LBFGS does."""
    p = parameter()
    optimizer = torch.optim.SGD([p])
    optimizer.state[p] = {"n": 3, "old": [torch.zeros(5), (torch.zeros(2, dtype=torch.float64),)]}
    assert training.state_bytes(optimizer) == 5 * 4 + 2 * 8


def test_gns_42_state_follows_its_parameter():
    """Loading takes it there; `test_gpu.py` has what moves from a CPU to a GPU between steps."""
    p = parameter()
    optimizer = optgen.Adam([p], backend="numpy")
    stepped(optimizer, p, GRADIENTS)
    there = nn.Parameter(torch.empty(3, dtype=torch.float64, device="meta"))
    loaded = optgen.Adam([there])
    loaded.load_state_dict(optimizer.state_dict())
    devices = {name: value.device.type for name, value in loaded.state[there].items()}
    assert devices == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
    assert optimizer.state[p]["exp_avg"].device.type == "cpu"


def same(a, b):
    """Whether two state dicts are equal."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.fixture
def trained():
    model = small_model()
    optimizer = optgen.AdamW(model.parameters(), lr=0.1, backend="numpy")
    for _ in range(2):
        moved_by(optimizer, *model.parameters())
    return model, optimizer


def test_gns_43_saving_changes_nothing(trained, tmp_path):
    model, optimizer = trained
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    kept = copy.deepcopy(states)
    torch.save(states, tmp_path / "both.pt")
    training.save_checkpoint(states["model"], states["optimizer"], tmp_path / "both.pt")
    assert same(states, kept)


def test_gns_43_a_failed_save_leaves_the_file_as_it_was(trained, tmp_path):
    model, optimizer = trained
    path = tmp_path / "last.pt"
    training.save_checkpoint(model.state_dict(), optimizer.state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(AttributeError, match="local"):
        training.save_checkpoint(model.state_dict(), {"state": lambda: None}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        training.save_checkpoint({}, {}, tmp_path / "nowhere" / "last.pt")


def test_gns_44_checkpoints(trained, tmp_path):
    model, optimizer = trained
    path = str(tmp_path / "last.pt")
    training.save_checkpoint(model.state_dict(), optimizer.state_dict(), path)
    assert torch.load(path, weights_only=True).keys() == {"model_state_dict", "optimizer_state_dict"}
    model_state, optimizer_state = training.load_checkpoint(path)
    assert same(model_state, dict(model.state_dict()))
    other = small_model()
    resumed = optgen.AdamW(other.parameters(), backend="numpy")
    other.load_state_dict(model_state)
    resumed.load_state_dict(optimizer_state)
    near(moved_by(resumed, *other.parameters()), moved_by(optimizer, *model.parameters()), rtol=0)


def test_gns_44_other_files_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds the keys model; a checkpoint has model_state_dict and"):
        training.load_checkpoint(tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds list"):
        training.load_checkpoint(tmp_path / "list.pt")


def test_gns_45_layouts_do_not_matter():
    torch.manual_seed(0)
    square = torch.randn(6, 5)
    turned, gaps = nn.Parameter(square.clone().t()), nn.Parameter(square.clone()[:, ::2])
    plain = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in (turned, gaps)]
    assert not turned.is_contiguous()
    a, b = (optgen.AdamW(ps, lr=0.1, backend="cpu") for ps in ([turned, gaps], plain))
    for _ in range(2):
        for p, q in zip((turned, gaps), plain, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, start in zip((turned, gaps), plain, (square.t(), square[:, ::2]), strict=True):
        assert torch.equal(p, q)
        assert not torch.isclose(p, start).any()


def test_gns_46_lr_is_a_number_to_print():
    optimizer = optgen.Adam([parameter()])
    assert f"{optimizer.param_groups[0]['lr']:.6f}" == "0.001000"


def test_modules_are_reached_from_the_package():
    """In a fresh process, where nothing has imported them."""
    show = "print(name, getattr(optgen, name).__name__, name in dir(optgen))"
    code = f"import optgen\nfor name in optgen._MODULES: {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} optgen.{name} True" for name in optgen._MODULES]
    assert "training" in optgen._MODULES
    assert all(hasattr(training, name) for name in training.__all__)


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.norm, self.head = nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.norm(self.base(x)))


def test_the_page_runs(tmp_path, monkeypatch):
    """Its blocks in order. Those of genesis are marked `py`, and those here `python`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = Regression()
    loader = [(torch.randn(5, 4), torch.randn(5, 1)) for _ in range(4)]
    names = {"model": model, "loader": loader, "criterion": nn.MSELoss(), "new_layer": nn.Linear(2, 2)}
    names["device"] = "cpu"
    weights = [model.base.weight, model.head.weight]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert {kind for kind, _ in blocks} == {"py", "python"}
    for text in [text for kind, text in blocks if kind == "python"]:
        before = [p.detach().clone() for p in weights]
        exec(compile(text, str(PAGE), "exec"), names)
        steps = "optimizer.step()" in text or "scaler.step" in text
        assert [not torch.equal(p, b) for p, b in zip(weights, before, strict=True)] == [steps] * 2, text
    assert names["norm"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
