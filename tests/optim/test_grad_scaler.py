"""torch.amp.GradScaler on the CPU: scaled gradients, infinities, and what a skipped step leaves alone."""

import copy

import pytest
import torch
from torch import nn

import optgen
from optgen.backends.triton.kernels import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="runs other back ends")
CHAIN = optgen.optimizer(optgen.chain("clip_global_norm", "adamw"))
CLASSES = [optgen.AdamW, optgen.SGD, optgen.LAMB, optgen.NAdam, optgen.Prodigy, CHAIN]


def models():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    return first, copy.deepcopy(first)


def loss_of(model, k, bad=False):
    generator = torch.Generator().manual_seed(k)
    x, y = torch.randn(8, 5, generator=generator), torch.randn(8, 2, generator=generator)
    return ((model(x) - y) ** 2).mean() * (torch.inf if bad else 1)


def everything(optimizer):
    kept = [p for group in optimizer.param_groups for p in group["params"]]
    kept += [v for state in optimizer.state.values() for v in state.values()]
    numbers = {k: v for g in optimizer.param_groups for k, v in g.items() if k not in ("params", "lr")}
    return copy.deepcopy(([t.detach() for t in kept], numbers))


def scaler_of(**options):
    return torch.amp.GradScaler("cpu", init_scale=1024.0, **options)


def plain_step(model, optimizer, k):
    optimizer.zero_grad()
    loss_of(model, k).backward()
    optimizer.step()


def scaled_step(scaler, model, optimizer, k, bad=False):
    optimizer.zero_grad()
    scaler.scale(loss_of(model, k, bad)).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_scaled_training_is_the_same_to_the_bit(cls, backend):
    """The scale is a power of two, so dividing by it is exact."""
    plain, scaled = models()
    a, b = cls(plain.parameters(), backend=backend), cls(scaled.parameters(), backend=backend, fused=True)
    scaler = scaler_of()
    for k in range(4):
        plain_step(plain, a, k)
        scaled_step(scaler, scaled, b, k)
    assert all(map(torch.equal, plain.parameters(), scaled.parameters()))
    assert not {"grad_scale", "found_inf"} & vars(b).keys()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_trap_11_an_infinity_is_no_step(cls):
    """Nothing moves, the step count included; the next step is the one that would have come."""
    plain, scaled = models()
    a, b = cls(plain.parameters(), backend="numpy"), cls(scaled.parameters(), backend="numpy", fused=True)
    scaler = scaler_of()
    for k in range(3):
        plain_step(plain, a, k)
        for bad in (True, False) if k == 1 else (False,):
            b.zero_grad()
            scaler.scale(loss_of(scaled, k, bad)).backward()
            before = everything(b)
            scaler.step(b)
            scaler.update()
            if bad:
                after = everything(b)
                assert all(map(torch.equal, before[0], after[0]))
                assert before[1] == after[1]
                assert scaler.get_scale() == 512
    assert all(map(torch.equal, plain.parameters(), scaled.parameters()))
    assert [s["step"].item() for s in b.state.values()] == [3.0] * 4


def test_an_infinity_in_the_first_step_makes_no_state():
    model, _ = models()
    optimizer, scaler = optgen.AdamW(model.parameters(), backend="numpy", fused=True), scaler_of()
    scaler.scale(loss_of(model, 0, bad=True)).backward()
    scaler.step(optimizer)
    assert not optimizer.state


def test_gradients_unscaled_and_clipped_by_hand_are_not_divided_again():
    plain, scaled = models()
    a = optgen.AdamW(plain.parameters(), backend="numpy")
    b = optgen.AdamW(scaled.parameters(), backend="numpy", fused=True)
    scaler = scaler_of()
    for k in range(3):
        a.zero_grad()
        loss_of(plain, k).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        a.step()
        b.zero_grad()
        scaler.scale(loss_of(scaled, k)).backward()
        scaler.unscale_(b)
        nn.utils.clip_grad_norm_(scaled.parameters(), 0.5)
        scaler.step(b)
        scaler.update()
    assert all(map(torch.equal, plain.parameters(), scaled.parameters()))


def test_clipping_in_the_step_sees_the_unscaled_gradients():
    """torch needs `unscale_` before it clips; here the chain divides first, with no pass of its own."""
    plain, scaled = models()
    a = torch.optim.SGD(plain.parameters(), lr=0.1)
    b = optgen.optimizer(optgen.chain("clip_global_norm", "sgd"))(
        scaled.parameters(), lr=0.1, max_norm=0.5, backend="numpy", fused=True
    )
    scaler = scaler_of()
    for k in range(3):
        a.zero_grad()
        loss_of(plain, k).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        a.step()
        scaled_step(scaler, scaled, b, k)
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_two_optimizers_and_one_scaler(fused):
    first, second = models()
    a, b = (optgen.AdamW(m.parameters(), backend="numpy", fused=fused) for m in (first, second))
    scaler = scaler_of()
    scaler.scale(loss_of(first, 0, bad=True) + loss_of(second, 0)).backward()
    scaler.step(a)
    scaler.step(b)
    scaler.update()
    assert not a.state
    assert [s["step"].item() for s in b.state.values()] == [1.0] * 4


def test_a_step_without_a_scaler_afterwards():
    model, _ = models()
    optimizer, scaler = optgen.AdamW(model.parameters(), backend="cpu", fused=True), scaler_of()
    for scaled in (True, False, True, False):
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        (scaler.scale(loss) if scaled else loss).backward()
        if scaled:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    assert [s["step"].item() for s in optimizer.state.values()] == [4.0] * 4


def test_capturable_changes_nothing_on_the_cpu():
    one, two = models()
    for model, capturable in ((one, False), (two, True)):
        optimizer = optgen.NAdam(model.parameters(), capturable=capturable)
        for k in range(3):
            optimizer.zero_grad()
            loss_of(model, k).backward()
            optimizer.step()
        assert copy.deepcopy(optimizer)._compile_options["capturable"] is capturable
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_without_fused_the_scaler_does_it_all():
    """As with torch's own: trainers that clip gradients look for the flag."""
    plain, scaled = models()
    a, b = (optgen.AdamW(m.parameters(), backend="numpy") for m in (plain, scaled))
    assert not b._step_supports_amp_scaling
    assert optgen.AdamW(plain.parameters(), fused=True)._step_supports_amp_scaling
    assert copy.deepcopy(optgen.AdamW(plain.parameters(), fused=True))._step_supports_amp_scaling
    scaler = scaler_of()
    for k in range(3):
        plain_step(plain, a, k)
        for bad in (True, False):
            scaled_step(scaler, scaled, b, k, bad)
    assert all(map(torch.equal, plain.parameters(), scaled.parameters()))
    assert [s["step"].item() for s in b.state.values()] == [3.0] * 4
