"""Steps in one call of compiled code, where edits, signals and threads come between them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import optgen
from optgen import release
from optgen.backends.triton.kernels import interpreting
from optgen.launch import replay
from optgen.launch.one_call import OneCall

pytestmark = pytest.mark.skipif(interpreting(), reason="runs other back ends")


@pytest.fixture
def made(monkeypatch):
    """Of each call whether it was the step; the third of an optimizer is the first that may be one."""
    found, original = [], OneCall.make

    def make(self, *args, **options):
        done = original(self, *args, **options)
        found.extend([done] * (self.count == self.count))  # none where it is only compiled
        return done

    monkeypatch.setattr(replay, "WARM", 0)
    monkeypatch.setattr(OneCall, "make", make)
    return found


def stepped(count, steps=4, **options):
    """An optimizer with as many groups of one parameter, which has made steps."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(count)]
    optimizer = optgen.SGD([{"params": [p]} for p in params], lr=0.5, **options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
    return optimizer, params


def group_gone(optimizer):
    del optimizer.param_groups[1]


def all_gone(optimizer):
    optimizer.param_groups.clear()


def group_without_options(optimizer):
    optimizer.param_groups.insert(0, {"params": []})


def frozen_with_no_lr(optimizer):
    optimizer.freeze(1)
    optimizer.param_groups[1]["lr"] = None


def still_with_no_lr(optimizer):
    optimizer.param_groups[1]["params"][0].grad = None
    optimizer.param_groups[1]["lr"] = None


def option_no_longer_needed(optimizer):
    for group in optimizer.param_groups:
        group.update(momentum=0, dampening=None)


EDITS = [
    *(group_gone, all_gone, group_without_options, frozen_with_no_lr, still_with_no_lr),
    option_no_longer_needed,
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_that_is_none_of_an_error_is_none(monkeypatch, made, edit):
    runs = []
    for replayed in (True, False):
        if not replayed:
            monkeypatch.setattr(replay.Replay, "of", lambda *args: None)
        optimizer, params = stepped(2, momentum=0.9)
        edit(optimizer)
        optimizer.step()
        runs.append(params)
    assert made[:2] == [True, True]
    assert all(map(torch.equal, *runs))


def test_what_is_wrong_first_is_said_first(made):
    optimizer, params = stepped(1)
    params[0].grad.data = torch.ones(4)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(RuntimeError, match="has the shape"):
        optimizer.step()
    params[0].grad.data = torch.ones(3)
    with pytest.raises(ValueError, match="'lr' is None"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    before = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], before - 0.5)


def test_parameters_without_elements_alone(made):
    p = nn.Parameter(torch.empty(0))
    optimizer = optgen.SGD([p], lr=0.1)
    for _ in range(4):
        p.grad = torch.empty(0)
        optimizer.step()
    assert optimizer.state[p]["step"] == 4


def released(p):
    """An optimizer of one parameter that has been stepped in four backward passes."""
    optimizer = optgen.SGD([p], lr=0.25)
    release.attach(optimizer)
    for _ in range(4):
        (p * p).sum().backward()
    return optimizer


def test_release_frees_the_gradient_in_the_call(made):
    p = nn.Parameter(torch.ones(3))
    optimizer = released(p)
    assert made == [True, True]
    assert p.grad is None
    assert torch.equal(p.detach(), torch.full((3,), 0.5**4))
    assert optimizer.state[p]["step"] == 4


def test_an_interrupt_before_the_call_leaves_the_gradient(monkeypatch, made):
    p = nn.Parameter(torch.ones(3))
    optimizer = released(p)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(OneCall, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        (p * p).sum().backward()
    assert torch.equal(p.grad, 2 * p.detach())
    assert optimizer.state[p]["step"] == 4


def test_a_released_parameter_that_a_hook_has_changed(made):
    p = nn.Parameter(torch.ones(3))
    swapping = []

    def swap(t):
        if swapping:
            t.data = t.data.double()

    p.register_post_accumulate_grad_hook(swap)
    optimizer = released(p)
    swapping.append(True)
    (p * p).sum().backward()
    assert p.dtype is torch.float64
    assert p.grad is None
    assert torch.equal(p.detach(), torch.full((3,), 0.5**5, dtype=torch.float64))
    assert optimizer.state[p]["step"] == 5


class Subclass(nn.Parameter):
    """Whose attributes may call anything."""


def test_a_released_parameter_of_a_subclass_has_no_such_call(made):
    p = Subclass(torch.ones(3))
    released(p)
    assert made == []
    assert torch.equal(p.detach(), torch.full((3,), 0.5**4))


SCRIPT = """
import os, signal, torch, optgen
from optgen.launch import replay
from optgen.backends.cpu.machine_code import FunctionCache
replay.WARM, original = 0, FunctionCache.load_overload

def load(self, *args):
    if self.name in ("objects_match", "make"):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):  # here a handler would run
            pass
        print(self.name)
    return original(self, *args)

FunctionCache.load_overload = load
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
optimizer = optgen.SGD([p])
interrupts = 0
for _ in range(5):
    try:
        optimizer.step()
    except KeyboardInterrupt:
        interrupts += 1
print(interrupts, optimizer.state[p]["step"].item())
"""


def test_no_interrupt_cuts_what_is_compiled_for_it():
    """Numba's own tables would be half filled."""
    child = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["make", "objects_match", "1", "5.0"]


@pytest.mark.parametrize("warm", [0, 1 << 60])
def test_threads_that_step_one_optimizer_take_turns(monkeypatch, warm):
    monkeypatch.setattr(replay, "WARM", warm)
    params = [nn.Parameter(torch.ones(7)) for _ in range(4)]
    optimizer = optgen.SGD(params, lr=0.5)
    for p in params:
        p.grad = torch.ones(7)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for made in [pool.submit(lambda: [optimizer.step() for _ in range(300)]) for _ in range(4)]:
                made.result()
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(p.detach(), torch.full((7,), 1.0 - 0.5 * 1200)) for p in params)
    assert all(optimizer.state[p]["step"] == 1200 for p in params)
