"""Rules that keep or compare slices: what each phase reads and writes, worked examples, other packages."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import pytorch_optimizer
import torch
from numpy.testing import assert_allclose
from pytorch_optimizer.optimizer.muon import normuon
from torch import nn

import optgen
from optgen import library
from optgen.compiler import planned
from sliced import FACTORED, check

BACKENDS = ["numpy", "cpu"]
SHAPES = ((7,), (6, 5), (4, 3, 2), (2, 3, 4, 5))


def parameters(*values):
    return [nn.Parameter(torch.as_tensor(v, dtype=torch.float64).clone()) for v in values]


def random(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def step(optimizer, params, gradients):
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.as_tensor(g, dtype=p.dtype).clone()
    optimizer.step()


def apart(mine, theirs, steps=100, shapes=SHAPES):
    """How far two optimizers bring the same tensors apart: max|a - b| / max|b|."""
    ours, others = (parameters(*random(*shapes)) for _ in range(2))
    a, b = mine(ours), theirs(others)
    for k in range(steps):
        gradients = random(*shapes, seed=k + 1)
        step(a, ours, gradients)
        step(b, others, gradients)
    pairs = zip(ours, others, strict=True)
    return max(((p - q).abs().max() / q.abs().max()).item() for p, q in pairs)


# What each phase reads and writes


@pytest.mark.parametrize(
    ("rule", "options", "ndim", "phases"),
    [
        # The size of p needs the first sweep; x needs the sums of the first, its size the second.
        ("adafactor", {}, 2, ["p g", "g", "p g > p"]),
        ("adafactor", {}, 4, ["p g", "g", "p g > p"]),
        ("adafactor", {"beta1": 0.9}, 2, ["p g", "g", "p g m > p m"]),
        # Not factored, the variance is known where g is: one sum less to wait for.
        ("adafactor", {}, 1, ["p g variance > variance", "p g variance > p"]),
        ("adafactor", {"beta1": 0.9}, 1, ["p g variance > variance", "p g m variance > p m"]),
        # Sums of g**2; the size of x; sums of (x - m)**2, where m is written; p, from m alone.
        ("came", {}, 2, ["g", "g", "g m > m", "p m > p"]),
        ("came", {}, 4, ["g", "g", "g m > m", "p m > p"]),
        # Without confidence nothing waits for m.
        ("came", {}, 1, ["g v > v", "p g m v > p m"]),
        # The step needs the accumulators as they were; the new ones are no elements.
        ("sm3", {}, 2, ["p g > p"]),
        ("sm3", {}, 5, ["p g > p"]),
        ("sm3", {"momentum": 0.9}, 4, ["p g m > p m"]),
        # Of a single dimension they are: Adagrad.
        ("sm3", {}, 1, ["p g mu0 > p mu0"]),
        # As LAMB: the products of p with g and with the update, then the update from its moments.
        ("adamp", {}, 2, ["p g m v > m v", "p m v > p"]),
        ("adamp", {}, 4, ["p g m v > m v", "p m v > p"]),
        # With Nesterov the update needs g again: it is kept (#0), 40 bytes; to find it again takes 44.
        ("adamp", {"nesterov": True}, 2, ["p g m v > m v #0", "p #0 > p"]),
        ("adamp", {}, 1, ["p g m v > p m v"]),
        ("sgdp", {"momentum": 0.9}, 2, ["p g b > b", "p b > p"]),
        ("sgdp", {"momentum": 0.9}, 1, ["p g b > p b"]),
    ],
    ids=str,
)
def test_streams(rule, options, ndim, phases):
    """Four bytes for each name: what is read, then what is written."""
    made = planned(library.rule(rule, **options), ndim=ndim)
    assert [streams(phase) for phase in made.sweeps] == phases
    assert [phase.bytes for phase in made.sweeps] == [4 * len(p.replace(">", "").split()) for p in phases]


def streams(phase):
    written = f" > {' '.join(phase.values)}" if phase.values else ""
    return " ".join(phase.loads) + written


@pytest.mark.parametrize(
    ("rules", "moved"),
    [
        (["sgd", "neuron_norm"], [4, 12]),  # g; g, p, and p again
        (["adamw", "neuron_norm"], [20, 16]),  # g, m, v, m and v again; m, v, p, and p again
    ],
    ids=str,
)
def test_the_norm_of_normalised_rows_needs_no_sweep(rules, moved):
    """It follows from the sums of the rows."""
    assert [phase.bytes for phase in planned(library.chain(*rules)).sweeps] == moved


@pytest.mark.parametrize(
    ("rule", "bytes_by_ndim"),
    [("adafactor", {1: 32, 2: 24, 4: 24}), ("came", {1: 36, 2: 32, 4: 32}), ("sm3", {1: 20, 2: 12, 4: 12})],
)
def test_planned_bytes(rule, bytes_by_ndim):
    made = {ndim: planned(library.rule(rule), ndim=ndim) for ndim in bytes_by_ndim}
    assert {ndim: plan.bytes for ndim, plan in made.items()} == bytes_by_ndim


def test_adafactor_has_three_phases_at_most():
    for options in ({}, {"beta1": 0.9}):
        rule = library.rule("adafactor", **options)
        assert [len(planned(rule, ndim=n).sweeps) for n in range(5)] == [2, 2, 3, 3, 3]


# Back ends


@pytest.mark.parametrize("name", FACTORED)
def test_the_cpu_agrees(name):
    check(FACTORED[name], "cpu", (*SHAPES, (70, 530), (3, 65, 33)), torch.float32, 1e-6)


# State


@pytest.mark.parametrize(
    ("rule", "shape", "kept"),
    [
        ("sm3", (), {"accumulator_0": ()}),
        ("sm3", (5,), {"accumulator_0": (5,)}),
        ("sm3", (3, 4), {"accumulator_0": (3, 1), "accumulator_1": (1, 4)}),
        (
            "sm3",
            (2, 3, 4, 5),
            {
                "accumulator_0": (2, 1, 1, 1),
                "accumulator_1": (1, 3, 1, 1),
                "accumulator_2": (1, 1, 4, 1),
                "accumulator_3": (1, 1, 1, 5),
            },
        ),
        ("came", (5,), {"exp_avg": (5,), "exp_avg_sq": (5,)}),
        (
            "came",
            (2, 3, 4),
            {
                "exp_avg": (2, 3, 4),
                "exp_avg_sq_row": (2, 3, 1),
                "exp_avg_sq_col": (2, 1, 4),
                "exp_avg_res_row": (2, 3, 1),
                "exp_avg_res_col": (2, 1, 4),
            },
        ),
        ("adafactor", (2, 3, 4), {"row_var": (2, 3, 1), "col_var": (2, 1, 4)}),
        (("sgd", "neuron_norm"), (5,), {}),
        (("sgd", "neuron_norm"), (2, 3, 4), {"second_momentum_buffer": (2, 1, 1)}),
    ],
    ids=str,
)
def test_what_is_kept(rule, shape, kept):
    params = parameters(*random(shape))
    optimizer = optgen.optimizer(optgen.chain(*rule) if isinstance(rule, tuple) else rule)(params)
    step(optimizer, params, random(shape, seed=1))
    state = {key: tuple(x.shape) for key, x in optimizer.state[params[0]].items() if key != "step"}
    assert state == kept


# SM3


@pytest.mark.parametrize("backend", BACKENDS)
def test_sm3_adds_to_the_smallest_of_the_sets_that_cover_an_element(backend):
    """Worked by hand: after the first step the rows have 4 and 16, the columns 9 and 16."""
    params, g = parameters(np.zeros((2, 2))), np.array([[1.0, 2.0], [3.0, 4.0]])
    optimizer = optgen.SM3(params, lr=1.0, backend=backend)
    step(optimizer, params, [g])
    assert params[0].tolist() == [[-1, -1], [-1, -1]]
    state = optimizer.state[params[0]]
    assert state["accumulator_0"].tolist() == [[4], [16]]
    assert state["accumulator_1"].tolist() == [[9, 16]]
    step(optimizer, params, [g])
    nu = np.array([[4.0, 4.0], [9.0, 16.0]]) + g**2
    assert_allclose(params[0].detach(), -1 - g / np.sqrt(nu), rtol=1e-14)
    assert state["accumulator_0"].tolist() == [[8], [32]]
    assert state["accumulator_1"].tolist() == [[18, 32]]


def test_sm3_is_never_below_the_sum_of_squares():
    shape = (3, 2, 4, 2)
    params, squares = parameters(*random(shape)), torch.zeros(shape)
    optimizer = optgen.SM3(params)
    for k in range(20):
        gradients = random(shape, seed=k)
        step(optimizer, params, gradients)
        squares = squares + gradients[0] ** 2
        sets = [optimizer.state[params[0]][f"accumulator_{i}"] for i in range(4)]
        assert (torch.stack(torch.broadcast_tensors(*sets)).amin(0) >= squares * (1 - 1e-14)).all()


def test_sm3_covers_six_dimensions_with_five():
    params, (g,) = parameters(np.zeros((2, 1, 2, 1, 2, 3))), random((2, 1, 2, 1, 2, 3))
    optimizer = optgen.SM3(params, lr=1.0)
    for _ in range(2):
        step(optimizer, params, [g])
    assert [k for k in optimizer.state[params[0]] if k != "step"] == [f"accumulator_{i}" for i in range(5)]
    squares = g**2
    sets = [squares.amax([d for d in range(6) if d != i], keepdim=True) for i in range(5)]
    nu = torch.stack(torch.broadcast_tensors(*sets)).amin(0) + squares
    assert_allclose(params[0].detach(), -g.sign() - g / nu.sqrt(), rtol=1e-13)


# AdamP and SGDP


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("p", "g", "after"),
    [
        # g is orthogonal to p in each row: (1, -1) loses -0.2 (0.6, 0.8), and 5% of p decays.
        ([[3, 4], [1, 0]], [[4, -3], [0, 2]], [[1.73, 4.64], [0.95, -1]]),
        # As a whole only: ((1, 1), (-1, 1)) loses 0.2 p.
        ([[3, 0], [1, 0]], [[1, 1], [-3, 1]], [[2.45, -1], [2.15, -1]]),
        # Neither: 50% of p decays.
        ([[3, 0], [1, 0]], [[1, 1], [1, 1]], [[0.5, -1], [-0.5, -1]]),
        # A tensor of one dimension is not asked.
        ([3, 4], [4, -3], [0.5, 3]),
    ],
    ids=["unit", "whole", "neither", "vector"],
)
def test_adamp_projects_by_unit_or_else_as_a_whole(p, g, after, backend):
    """Adam's first step is the sign of g."""
    params = parameters(p)
    step(optgen.AdamP(params, lr=1.0, eps=1e-14, weight_decay=0.5, backend=backend), params, [g])
    assert_allclose(params[0].detach(), after, rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_adamp_is_that_of_pytorch_optimizer_but_for_eps(nesterov):
    """It adds eps to a v that is not debiased yet: g/(|g| + eps/sqrt(1 - beta2)) at first."""
    options = {"lr": 0.01, "weight_decay": 0.1, "delta": 1.0, "nesterov": nesterov}

    def difference(eps):
        return apart(
            lambda params: optgen.AdamP(params, eps=eps, **options),
            lambda params: pytorch_optimizer.AdamP(params, eps=eps, **options),
        )

    assert difference(1e-30) < 1e-12
    assert difference(1e-2) > 1e-3


def test_adamp_adds_eps_to_a_debiased_v():
    after = []
    for kind in (optgen.AdamP, pytorch_optimizer.AdamP):
        params = parameters([0.0])
        step(kind(params, lr=1.0, eps=0.1), params, [[1.0]])
        after.append(params[0].item())
    assert_allclose(after, [-1 / 1.1, -1 / (1 + 0.1 / math.sqrt(0.001))], rtol=1e-12)


# NorMuon


@pytest.mark.parametrize("scale", ["preserve_norm", "match_rms"])
def test_neuron_norm_is_that_of_normuon(scale):
    """Beside the package's class with nothing orthogonalised; the paper's own norm is another."""
    shapes = ((5, 6), (2, 3, 4, 5))  # Muon's factor for tall matrices is 1
    chained = optgen.optimizer(optgen.chain("sgd", "neuron_norm"))

    def theirs(params):
        group = {"params": params, "lr": 0.01, "momentum": 0.0, "nesterov": False, "use_muon": True}
        return pytorch_optimizer.NorMuon([group], eps=0.0, update_scale=scale, foreach=False)

    with mock.patch.object(normuon, "zero_power_via_newton_schulz_5", lambda x, **_: x.clone()):
        difference = apart(lambda params: chained(params, lr=0.01, eps=0.0), theirs, shapes=shapes)
    assert (difference < 1e-12) is (scale == "preserve_norm")


def test_neuron_norm_evens_rows_out_and_keeps_the_norm():
    params, g = parameters(np.zeros((2, 2))), np.array([[3.0, 4.0], [0.0, 0.5]])
    step(optgen.optimizer(optgen.chain("sgd", "neuron_norm"))(params, lr=1.0, eps=0.0), params, [g])
    rows = np.linalg.norm(params[0].detach(), axis=1)
    assert_allclose(rows, np.sqrt([12.625, 12.625]), rtol=1e-13)


# Adafactor


@pytest.mark.parametrize("beta1", [None, 0.9])
def test_adafactor_is_that_of_pytorch_optimizer_but_for_eps_and_decay(beta1):
    """It adds eps to g**2, where torch and we have a least v; its decay too is relative to the size of p."""

    def difference(eps=1e-30, weight_decay=0.0):
        return apart(
            lambda params: optgen.Adafactor(
                params, eps=(math.sqrt(eps), 1e-3), weight_decay=weight_decay, beta1=beta1
            ),
            lambda params: pytorch_optimizer.AdaFactor(
                params,
                betas=(beta1, 0.999),
                eps1=eps,
                weight_decay=weight_decay,
                momentum_dtype=torch.float64,
                foreach=False,
            ),
        )

    assert difference() < 1e-10
    assert difference(eps=1e-2) > 1e-5
    assert difference(weight_decay=0.1) > 1e-5


def test_adafactor_loads_torchs_state_and_gives_it_back():
    """torch has no beta1; a group without one has no first moment."""
    ours, theirs = (parameters(*random(*SHAPES)) for _ in range(2))
    eps = (torch.finfo(torch.float64).eps, 1e-3)
    a, b = optgen.Adafactor(ours, eps=eps), torch.optim.Adafactor(theirs, eps=eps)
    step(b, theirs, random(*SHAPES, seed=1))
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    for k in (2, 3):
        step(a, ours, random(*SHAPES, seed=k))
        step(b, theirs, random(*SHAPES, seed=k))
        for p, q in zip(ours, theirs, strict=True):
            assert_allclose(p.detach(), q.detach(), rtol=1e-12)
        b.load_state_dict(copy.deepcopy(a.state_dict()))
    assert all("exp_avg" not in a.state[p] for p in ours)
