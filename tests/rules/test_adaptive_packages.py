"""Where a package differs from the paper that a rule follows: both results, on gradients done by hand.

`pytorch_optimizer` is meant where no package is named.
"""

import math

import numpy as np
import pytest
import pytorch_optimizer
import torch

import optgen

SIGMOID = 1 / (1 + math.exp(-1))


def moved(kind, gradients, start=(0.0,), **options):
    """How far the parameters have come from `start`, after a step with each of the gradients."""
    p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = kind([p], **options)
    for g in gradients:
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    return p.detach().numpy() - np.array(start)


def test_lamb_debiases_v_and_has_no_limit_on_the_norm():
    """Theirs: m is debiased by 1 - 0.9, v is not, and the norm of p counts as 10 at most."""
    options = {"lr": 0.01, "eps": 0.0, "weight_decay": 0.0}
    for norm in (5.0, 50.0):
        start = (0.6 * norm, 0.8 * norm)
        ours = moved(optgen.LAMB, [(1.0, 1.0)], start, **options)
        theirs = moved(pytorch_optimizer.Lamb, [(1.0, 1.0)], start, foreach=False, **options)
        assert ours == pytest.approx([-0.01 * norm / math.sqrt(2)] * 2)
        assert theirs == pytest.approx([-0.1 * min(norm, 10) / math.sqrt(2)] * 2)


def test_cautious_divides_by_the_mean_of_the_mask():
    """Theirs: by the sum plus one, over the number of elements, as in the paper's Algorithm 1."""
    kind = optgen.optimizer(optgen.chain("sgd", "cautious"))
    gradients = [(1.0,) * 4, (1.0, 1.0, 1.0, -0.5)]
    ours = moved(kind, gradients, (0.0,) * 4, lr=1.0, momentum=0.9)
    assert ours == pytest.approx([-1 - 1.9 * 4 / 3] * 3 + [-1])
    theirs = torch.tensor([1.9, 1.9, 1.9, 0.4])
    pytorch_optimizer.Lamb.apply_cautious(theirs, torch.tensor(gradients[1]))
    assert theirs.numpy() == pytest.approx([1.9 * 4 / (3 + 1)] * 3 + [0])


def test_clip_norm_adds_nothing_to_the_norm():
    """torch.nn.utils.clip_grad_norm_ adds 1e-6."""
    kind = optgen.optimizer(optgen.chain("clip_norm", "sgd"))
    ours = moved(kind, [(3.0, 4.0)], (0.0, 0.0), lr=1.0, max_norm=2.5)
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([p], 2.5)
    assert ours == pytest.approx([-1.5, -2.0], rel=1e-14)
    assert p.grad.numpy() == pytest.approx(np.array([1.5, 2.0]) * 5 / (5 + 1e-6), rel=1e-14)


def test_yogi_has_no_bias_correction():
    """Theirs has Adam's, and m starts where v does."""
    options = {"lr": 0.1, "eps": 0.0, "initial_accumulator": 0.01}
    v = 0.01 + 0.001
    ours = moved(optgen.Yogi, [(1.0,)], **options)
    debiased = moved(optgen.Yogi, [(1.0,)], **options, debias=True)
    theirs = moved(pytorch_optimizer.Yogi, [(1.0,)], foreach=False, **options)
    assert ours == pytest.approx(-0.1 * 0.1 / math.sqrt(v))
    assert debiased == pytest.approx(-0.1 / math.sqrt(v / 0.001))
    assert theirs == pytest.approx(-0.1 * (0.1 + 0.9 * 0.01) / 0.1 / math.sqrt(v / 0.001))


def test_adopt_clips_its_first_step_to_one():
    """Theirs counts the gradient that only sets v, and clips to the fourth root of 2."""
    gradients = [(1.0,), (100.0,)]
    ours = moved(optgen.ADOPT, gradients, lr=1.0)
    theirs = moved(pytorch_optimizer.ADOPT, gradients, lr=1.0, foreach=False)
    assert ours == pytest.approx(-0.1)
    assert theirs == pytest.approx(-0.1 * 2**0.25)


def test_laprop_adds_eps_after_debiasing():
    """Theirs adds it before, and lr is part of the momentum, which is therefore no state of ours."""
    options = {"lr": 0.1, "eps": 1.0}
    ours = moved(optgen.LaProp, [(1.0,)], **options)
    theirs = moved(pytorch_optimizer.LaProp, [(1.0,)], foreach=False, **options)
    assert ours == pytest.approx(-0.1 / (1 + 1))
    assert theirs == pytest.approx(-0.1 * math.sqrt(0.001) / (math.sqrt(0.001) + 1))

    p = torch.nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    saved = pytorch_optimizer.LaProp([p], lr=0.1)
    saved.step()
    assert saved.state[p]["exp_avg"].item() == pytest.approx(0.1 * 0.1)
    with pytest.raises(ValueError, match="exp_avg"):
        optgen.LaProp([p], lr=0.1).load_state_dict(saved.state_dict())


def test_qhadam_keeps_no_weights_in_float32():
    """Theirs does, so that float64 parameters are as exact as float32 ones."""
    gradients = [(math.sin(k + 1),) for k in range(20)]
    options = {"lr": 0.1, "nus": (0.7, 0.9)}
    ours = moved(optgen.QHAdam, gradients, **options)
    theirs = moved(pytorch_optimizer.QHAdam, gradients, foreach=False, **options)
    assert 1e-12 < abs(ours - theirs).item() < 1e-6


def test_madgrad_does_not_add_eps_to_lr():
    options = {"lr": 0.1, "eps": 0.1, "momentum": 0.0}
    ours = moved(optgen.MADGRAD, [(1.0,)], **options)
    theirs = moved(pytorch_optimizer.MADGRAD, [(1.0,)], foreach=False, **options)
    assert ours == pytest.approx(-0.1 / (0.1 ** (1 / 3) + 0.1))
    assert theirs == pytest.approx(-0.2 / (0.2 ** (1 / 3) + 0.1))


def test_diffgrad_adds_eps_after_debiasing():
    options = {"lr": 0.1, "eps": 1.0}
    ours = moved(optgen.DiffGrad, [(1.0,)], **options)
    theirs = moved(pytorch_optimizer.DiffGrad, [(1.0,)], foreach=False, **options)
    assert ours == pytest.approx(-0.1 * SIGMOID / (1 + 1))
    assert theirs == pytest.approx(-0.1 * SIGMOID * math.sqrt(0.001) / (math.sqrt(0.001) + 1))
