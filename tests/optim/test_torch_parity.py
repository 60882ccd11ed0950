"""Every rule that torch.optim has, against torch.optim's single-tensor loop, on every option.

Both sides run 200 steps on the same random gradients. Some elements of a gradient are exactly zero, one
parameter has no gradient in every fifth step (the first among them), and lr falls half-way, so that t, the
bias corrections and the scalars that outlive a step are compared too. torch keeps such scalars in the default
dtype, so the default dtype is that of the case.
"""

import inspect
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import optgen
from optgen.errors import Source
from optgen.language.parse import parse

RULES = Path(__file__).parents[2] / "rules"
STEPS = 200
SHAPES = [(), (7,), (33, 4)]
ABSENT = 1  # the parameter that has no gradient in every fifth step
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
FLAGS = {"params", "foreach", "fused", "capturable", "differentiable", "maximize"}
BACKENDS = [
    "numpy",
    pytest.param("cpu", marks=pytest.mark.full),
    pytest.param(
        "triton",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")],
    ),
]


def grid(**axes):
    """Every combination of the values."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def with_each(settings, *options):
    """Every setting with every one of the options."""
    return [{**a, **b} for a in settings for b in options]


MOMENTA = [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3}, {"momentum": 0.8, "nesterov": True}]
DECAYS = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]
SETTINGS = {
    "SGD": with_each(grid(weight_decay=[0, 0.1], lr=[1e-2]), *MOMENTA),
    "Adam": with_each(grid(amsgrad=[False, True]), *DECAYS, {"decoupled_weight_decay": True}),
    "AdamW": [*grid(weight_decay=[0, 0.1], amsgrad=[False, True]), {"betas": (0.0, 0.9), "eps": 1e-3}],
    "NAdam": with_each(grid(momentum_decay=[4e-3, 0.1]), *DECAYS),
    # rho: first below 5 and then above; always below; above almost at once
    "RAdam": [*DECAYS, {"betas": (0.8, 0.6)}, {"betas": (0.9, 0.99), "eps": 1e-3}],
    "Adamax": grid(weight_decay=[0, 0.1], betas=[(0.9, 0.999), (0.5, 0.8)]),
    "Adagrad": grid(weight_decay=[0, 0.1], lr_decay=[0, 0.01], initial_accumulator_value=[0, 0.5]),
    "Adadelta": grid(weight_decay=[0, 0.1], rho=[0.9, 0.5]),
    "RMSprop": grid(weight_decay=[0, 0.1], momentum=[0, 0.9], centered=[False, True]),
    "Rprop": grid(etas=[(0.5, 1.2), (0.3, 1.5)], step_sizes=[(1e-6, 50), (1e-3, 0.02)]),
    "ASGD": grid(weight_decay=[0, 0.1], t0=[1e6, 50]) + [{"lambd": 0.01, "alpha": 0.5}],
}
# Ascent negates the gradient before all else; with everything else switched on it meets every branch.
CASES = [
    (name, {**setting, **ascent})
    for name, settings in SETTINGS.items()
    for setting in settings
    for ascent in ([{}, {"maximize": True}] if setting is settings[-1] else [{}])
]


def label(value):
    if not isinstance(value, dict):
        return None
    return ",".join(k if v is True else f"{k}={v}" for k, v in value.items() if v is not False) or "defaults"


@pytest.fixture
def default_dtype():
    """Set torch's default dtype; it is put back after the test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@cache
def data(dtype, device):
    """The initial parameters, and the gradients of every step: a drift, noise, and one exact zero in ten.

    The seed is one with which no 0-d tensor ends near zero, where a single number has no relative error.
    """
    random = np.random.default_rng(4)
    drift = [0.5 * np.sign(random.standard_normal(shape)) for shape in SHAPES]

    def tensors(arrays):
        return [torch.tensor(a, dtype=dtype, device=device) for a in arrays]

    start = tensors([random.standard_normal(shape) for shape in SHAPES])
    gradients = []
    for _ in range(STEPS):
        noisy = [d + random.standard_normal(d.shape) for d in drift]
        gradients.append(tensors([np.where(random.random(x.shape) < 0.1, 0, x) for x in noisy]))
    return start, gradients


def single_tensor(name, parameters, options):
    """torch's optimizer, made to run its single-tensor loop."""
    kind = getattr(torch.optim, name)
    fused = {"fused": False} if "fused" in inspect.signature(kind).parameters else {}
    return kind(parameters, **options, foreach=False, **fused)


def take_step(optimizer, step, gradients):
    for i, (parameter, gradient) in enumerate(zip(parameters_of(optimizer), gradients, strict=True)):
        parameter.grad = None if i == ABSENT and step % 5 == 0 else gradient.clone()
    if step == STEPS // 2:
        for group in optimizer.param_groups:
            group["lr"] /= 2
    optimizer.step()


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def error(ours, theirs):
    """max|a - b| / max|b|; below the smallest normal float32 a value counts as zero."""
    a, b = torch.as_tensor(ours).double().cpu(), torch.as_tensor(theirs).double().cpu()
    assert a.shape == b.shape
    return float((a - b).abs().max() / max(b.abs().max(), torch.finfo(torch.float32).tiny))


def compare(ours, theirs, dtype):
    """Assert that parameters and state agree; torch's SGD alone keeps no `step`."""
    for i, (a, b) in enumerate(zip(parameters_of(ours), parameters_of(theirs), strict=True)):
        assert error(a.detach(), b.detach()) < TOLERANCE[dtype], f"p of shape {tuple(b.shape)}"
        mine, known = (dict(o.state_dict()["state"].get(i, {})) for o in (ours, theirs))
        step = mine.pop("step")
        assert step == known.pop("step", step)
        assert set(mine) == set(known)
        for key in known:
            assert error(mine[key], known[key]) < TOLERANCE[dtype], f"{key} of shape {tuple(b.shape)}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=label)
def test_two_hundred_steps(name, options, dtype, backend, default_dtype):
    default_dtype(dtype)
    start, gradients = data(dtype, "cuda" if backend == "triton" else "cpu")
    theirs = single_tensor(name, [p.clone().requires_grad_() for p in start], options)
    ours = getattr(optgen, name)([p.clone().requires_grad_() for p in start], **options, backend=backend)
    for step in range(STEPS):
        take_step(theirs, step, gradients[step])
        take_step(ours, step, gradients[step])
    compare(ours, theirs, dtype)


@pytest.mark.parametrize("name", SETTINGS)
def test_checkpoints_interchange(name, default_dtype):
    default_dtype(torch.float64)
    options = SETTINGS[name][-1]
    start, gradients = data(torch.float64, "cpu")
    theirs = single_tensor(name, [p.clone().requires_grad_() for p in start], options)
    ours = getattr(optgen, name)([p.clone().requires_grad_() for p in start], **options, backend="numpy")
    for step in range(20):
        take_step(theirs, step, gradients[step])
        take_step(ours, step, gradients[step])
    saved = theirs.state_dict(), ours.state_dict()
    ours.load_state_dict(saved[0])
    theirs.load_state_dict(saved[1])
    for step in range(20, 40):
        take_step(theirs, step, gradients[step])
        take_step(ours, step, gradients[step])
    for a, b in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        assert error(a.detach(), b.detach()) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", SETTINGS)
def test_constructor_arguments(name):
    """Names, order and defaults are torch's, but for what says how to run and not what to compute."""
    path = RULES / f"{name.lower()}.rule"
    ours = {k: h.default for k, h in parse(Source(path.read_text("utf-8"), path.name)).hypers.items()}
    arguments = inspect.signature(getattr(torch.optim, name)).parameters
    theirs = {k: a.default for k, a in arguments.items() if k not in FLAGS}
    assert list(ours.items()) == list(theirs.items())
    assert [type(v) is bool for v in ours.values()] == [type(v) is bool for v in theirs.values()]


MOMENT_RULES = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax")
REFUSED = [
    *((name, {"lr": -1e-3}) for name in SETTINGS),
    *((name, {"weight_decay": -0.1}) for name in SETTINGS if name != "Rprop"),
    *((name, {"eps": -1e-8}) for name in (*MOMENT_RULES, "Adagrad", "Adadelta", "RMSprop")),
    *((name, {"betas": betas}) for name in MOMENT_RULES for betas in [(1.0, 0.9), (-0.1, 0.9), (0.9, 1.0)]),
    ("SGD", {"momentum": -0.1}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("NAdam", {"momentum_decay": -1e-3}),
    ("Adagrad", {"lr_decay": -0.1}),
    ("Adagrad", {"initial_accumulator_value": -0.1}),
    ("Adadelta", {"rho": 1.1}),
    ("Adadelta", {"rho": -0.1}),
    ("RMSprop", {"momentum": -0.1}),
    ("RMSprop", {"alpha": -0.1}),
    ("Rprop", {"etas": (0.0, 1.2)}),
    ("Rprop", {"etas": (1.0, 1.2)}),
    ("Rprop", {"etas": (0.5, 1.0)}),
]
ALLOWED = [
    *((name, {"lr": 0.0}) for name in SETTINGS),
    *((name, {"betas": (0.0, 0.0), "eps": 0.0}) for name in MOMENT_RULES),
    ("SGD", {"dampening": -0.5}),
    ("Adadelta", {"rho": 1.0}),
    ("RMSprop", {"alpha": 1.5}),
    ("ASGD", {"lambd": -0.1, "alpha": -1.0, "t0": -1.0}),
]


@pytest.mark.parametrize(("name", "options"), REFUSED, ids=label)
def test_refuses_what_torch_refuses(name, options):
    for kind in (getattr(torch.optim, name), getattr(optgen, name)):
        with pytest.raises(ValueError, match=r"."):
            kind([torch.zeros(3, requires_grad=True)], **options)


@pytest.mark.parametrize(("name", "options"), ALLOWED, ids=label)
def test_allows_what_torch_allows(name, options):
    for kind in (getattr(torch.optim, name), getattr(optgen, name)):
        (group,) = kind([torch.zeros(3, requires_grad=True)], **options).param_groups
        assert {key: group[key] for key in options} == options
