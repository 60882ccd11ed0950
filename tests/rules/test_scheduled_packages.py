"""Where a package differs from a paper, by numbers, and where a rule agrees with the package all the same."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_optimizer
import torch

import optgen


def run(kind, start, gradients, rates=(), **options):
    """The parameter after each step, in float64; `rates` are the values of lr, one for each step."""
    p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = kind([p], **options)
    places = []
    for k, g in enumerate(gradients):
        if len(rates):
            optimizer.param_groups[0]["lr"] = rates[k]
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        places.append(p.detach().numpy().copy())
    return np.stack(places)


def ours(name, *data, **options):
    return run(getattr(optgen, name), *data, **options, backend="numpy")


def theirs(name, *data, **options):
    return run(getattr(pytorch_optimizer, name), *data, **options, foreach=False)


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(5)
    return random.standard_normal((4, 3)), 0.2 + random.standard_normal((30, 4, 3))


@pytest.mark.parametrize("name", ["MARS", "AdamC", "AdaPNM"])
def test_without_eps_the_package_computes_the_same(name, data):
    options = {"lr": 0.01, "eps": 0, "weight_decay": 0.1}
    normalized = {"normalized": True} if name == "AdamC" else {}
    expected = theirs(name, *data, **options, **normalized)
    np.testing.assert_allclose(ours(name, *data, **options), expected, rtol=1e-10)


# The first step on a gradient of 1, which is m_hat / (1 + eps): pytorch_optimizer has eps / sqrt(1 - beta2).
@pytest.mark.parametrize(
    ("name", "m_hat", "beta2"),
    [("MARS", 1.0, 0.99), ("AdamC", 1.0, 0.999), ("AdaPNM", 1.9 * 2 / np.sqrt(5), 0.999)],
)
def test_pytorch_optimizer_debiases_eps(name, m_hat, beta2):
    data, options = ([[0.0]], [[[1.0]]]), {"lr": 1.0, "eps": 1.0}
    assert ours(name, *data, **options) == pytest.approx(-m_hat / 2)
    scaled = 1 / np.sqrt(1 - beta2)
    assert theirs(name, *data, **options) == pytest.approx(-m_hat / (1 + scaled))


def test_mars_cuts_each_tensor_to_a_norm_of_one():
    """With betas of 0 the step is c over its own size; gamma then adds nothing."""
    options = {"lr": 1.0, "betas": (0.0, 0.0), "eps": 1.0}
    assert ours("MARS", [0.0, 0.0], [[3.0, 4.0]], **options) == pytest.approx(
        -np.array([[0.6 / 1.6, 0.8 / 1.8]])
    )
    assert ours("MARS", [0.0, 0.0], [[0.3, 0.4]], **options) == pytest.approx(
        -np.array([[0.3 / 1.3, 0.4 / 1.4]])
    )


STILL = [[0.0], [0.0]]  # two gradients of zero, so that only the decay moves the parameter


@pytest.mark.parametrize(
    ("options", "rates", "expected"),
    [
        ({}, (0.1, 0.05), (1 - 0.1, 1 - 0.05**2 / 0.1)),
        ({}, (0.05, 0.1), (1 - 0.05, 1 - 0.1)),
        ({"max_lr": 0.1}, (0.05, 0.1), (1 - 0.05**2 / 0.1, 1 - 0.1)),
        ({"normalized": False}, (0.1, 0.05), (1 - 0.1, 1 - 0.05)),
        ({}, (0.0, 0.1), (1, 1 - 0.1)),
    ],
    ids=["falls", "rises", "rises to a known lr", "AdamW", "from 0"],
)
def test_adamc_decays_with_the_square_of_lr(options, rates, expected):
    found = ours("AdamC", [1.0], STILL, rates=rates, weight_decay=1.0, **options)
    assert found[:, 0] == pytest.approx(np.cumprod(expected))


def test_pytorch_optimizer_takes_the_first_lr_for_the_largest():
    """max_lr says the same in ours, whatever lr the class was made with."""
    options = {"rates": (0.05, 0.1), "weight_decay": 1.0}
    expected = theirs("AdamC", [1.0], STILL, lr=0.1, normalized=True, **options)
    assert ours("AdamC", [1.0], STILL, max_lr=0.1, **options) == pytest.approx(expected)
    expected = theirs("AdamC", [1.0], STILL, lr=0.05, normalized=True, **options)
    assert expected[:, 0] == pytest.approx(np.cumprod([1 - 0.05, 1 - 0.1**2 / 0.05]))


def test_adapnm_checkpoint_holds_both_averages(data):
    """An odd step writes exp_avg, an even one neg_exp_avg, as in the package."""
    start, gradients = data
    p, q = (torch.nn.Parameter(torch.tensor(start)) for _ in range(2))
    mine = optgen.AdaPNM([p], lr=0.01, backend="numpy")
    other = pytorch_optimizer.AdaPNM([q], lr=0.01, foreach=False)
    for g in gradients[:3]:
        p.grad, q.grad = torch.tensor(g), torch.tensor(g)
        mine.step()
        other.step()
    for key, value in other.state[q].items():
        np.testing.assert_allclose(mine.state[p][key].numpy(), value.numpy(), rtol=1e-12)


def test_adabound_lowers_final_lr_with_lr(data):
    rates = [0.01] * 10 + [0.002] * 20
    options = {"lr": 0.01, "rates": rates, "gamma": 0.1, "final_lr": 0.05}
    expected = theirs("AdaBound", *data, **options)
    np.testing.assert_allclose(ours("AdaBound", *data, **options), expected, rtol=1e-9)


def test_adabound_first_step_is_not_the_papers():
    """Both averages are debiased, as in the authors' package; the paper's is lr*0.1 / sqrt(0.001) here."""
    options = {"lr": 1e-3, "final_lr": 0.1, "eps": 0}
    assert ours("AdaBound", [0.0], [[2.0]], **options) == pytest.approx(-1e-3)
    assert theirs("AdaBound", [0.0], [[2.0]], **options) == pytest.approx(-1e-3)


def test_sgdw_scales_the_decay_by_lr():
    """The paper's Algorithm 1 with its schedule at 1 would leave 0.5."""
    options = {"lr": 0.1, "weight_decay": 0.5}
    assert ours("SGDW", [1.0], [[0.0]], **options) == pytest.approx(0.95)
    assert theirs("SGDW", [1.0], [[0.0]], **options) == pytest.approx(0.95)


def test_ftrl_is_zero_until_the_gradients_outweigh_the_penalty():
    """z is the sum of the gradients where p is 0: Algorithm 1's closed form."""
    options = {"lr": 0.5, "beta": 1.0, "lambda_1": 2.0, "lambda_2": 0.25}
    places = ours("FTRL", [0.0], [[1.0], [1.0], [1.0]], **options)[:, 0]
    assert places[:2].tolist() == [0.0, 0.0]
    assert places[2] == pytest.approx(-(3 - 2) / ((1 + np.sqrt(3)) / 0.5 + 0.25))
    assert ours("FTRL", [5.0], [[0.0]])[0] == 0.0


def test_adam_atan2_knows_no_scale(data):
    start, gradients = data
    small = ours("AdamAtan2", start, gradients * 2.0**-40)
    np.testing.assert_allclose(small, ours("AdamAtan2", start, gradients), rtol=1e-12)
    assert ours("AdamAtan2", [0.0], [[7.0]], lr=1.0) == pytest.approx(-1.27 * np.pi / 4)
    assert ours("AdamAtan2", [0.0], [[0.0]], lr=1.0) == 0.0


def test_grams_takes_the_sign_of_the_gradient():
    """Adam's second step on 1, -0.5 still goes down; this one goes up by as much."""
    gradients = [[1.0], [-0.5]]
    adam, grams = ours("Adam", [0.0], gradients, eps=1e-6), ours("Grams", [0.0], gradients)
    assert adam[0] == grams[0]
    assert adam[1] - adam[0] == pytest.approx(-(grams[1] - grams[0]))
    assert adam[1] < adam[0]
