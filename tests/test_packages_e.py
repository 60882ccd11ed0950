"""Rules over all tensors: what the oracles of oracles/totals.py do not reach, and where packages differ."""

import numpy as np
import pytest
import torch
from torch import nn

import optgen

BACKENDS = [("numpy", torch.float64, 1e-12), ("cpu", torch.float32, 1e-6)]
back_ends = pytest.mark.parametrize("backend, dtype, tolerance", BACKENDS, ids=["float64", "float32"])


def parameters(*values, dtype=torch.float64):
    return [nn.Parameter(torch.tensor(v, dtype=dtype)) for v in values]


def step(optimizer, params, gradients, **inputs):
    """One step; afterwards the parameters as lists."""
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.as_tensor(g, dtype=p.dtype).clone()
    optimizer.step(**inputs)
    return [p.tolist() for p in params]


def close(found, expected, tolerance=1e-9):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Transforms


@back_ends
def test_clip_global_norm_adds_a_millionth_as_torch_does(backend, dtype, tolerance):
    """A common norm of 5 at a threshold of 5 is still scaled; one tensor alone would have its own norm."""
    params = parameters([0.0, 0.0], [0.0], dtype=dtype)
    optimizer = optgen.optimizer(optgen.chain("clip_global_norm", "descent"))(
        params, lr=1.0, max_norm=5.0, backend=backend
    )
    found = step(optimizer, params, [[3.0, 0.0], [4.0]])
    scale = 5 / 5.000001
    close(found, [[-3 * scale, 0], [-4 * scale]], tolerance)
    assert -found[1][0] < 4


def test_clip_global_norm_with_a_norm_that_is_not_finite():
    """An infinite gradient is inf*0, NaN, and every finite one becomes 0; NaN spreads everywhere."""
    clipped = optgen.optimizer(optgen.chain("clip_global_norm", "descent"))
    params = parameters([1.0, 1.0], [1.0])
    found = step(clipped(params, lr=1.0), params, [[np.inf, 5.0], [7.0]])
    assert np.isnan(found[0][0])
    assert (found[0][1], found[1]) == (1, [1])
    params = parameters([1.0, 1.0], [1.0])
    assert np.isnan(np.concatenate(step(clipped(params, lr=1.0), params, [[np.nan, 5.0], [7.0]]))).all()


def adam_without(bad, start, gradients, lr):
    """Adam in float64; in the steps of `bad` only its count advances."""
    m, v, p = 0.0, 0.0, start
    for t, g in enumerate(gradients, 1):
        if t not in bad:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        yield p


@back_ends
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_skip_if_nonfinite_leaves_out_the_step_of_every_tensor(value, backend, dtype, tolerance):
    """The bad element lies in the first, the second and again the first of two tensors."""
    random = np.random.default_rng(5)
    shapes, bad = ((7,), (3, 4)), {1: 0, 4: 1, 5: 0}
    start = [random.standard_normal(s) for s in shapes]
    gradients = [[random.standard_normal(s) for s in shapes] for _ in range(8)]
    params = parameters(*start, dtype=dtype)
    optimizer = optgen.optimizer(optgen.chain("skip_if_nonfinite", "adam"))(params, lr=0.1, backend=backend)
    expected = [adam_without(bad, p, [g[i] for g in gradients], lr=0.1) for i, p in enumerate(start)]
    for t, g in enumerate(gradients, 1):
        given = [x.copy() for x in g]
        if t in bad:
            given[bad[t]].flat[2] = value
        before = [p.detach().clone() for p in params]
        states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in params]
        found = step(optimizer, params, given)
        close(found, [next(e) for e in expected], tolerance)
        if t in bad:
            assert all(map(torch.equal, before, params))
            for old, p in zip(states, params, strict=True):
                assert all(torch.equal(x, optimizer.state[p][k]) for k, x in old.items() if k != "step")


@back_ends
def test_opt_50_accum_grad(backend, dtype, tolerance):
    """Chain(AccumGrad(2), WeightDecay(0.01), Descent(0.1)): 1 and 2 stay, and become -0.651 and -20.202."""
    params = parameters(1.0, 2.0, dtype=dtype)
    program = optgen.chain("accum_grad", "weight_decay", "descent")
    optimizer = optgen.optimizer(program)(params, n=2, weight_decay=0.01, lr=0.1, backend=backend)
    assert step(optimizer, params, [33.0, 0.0]) == [1, 2]
    close(step(optimizer, params, [0.0, 444.0]), [-0.651, -20.202], tolerance)
    with pytest.raises(ValueError, match="n >= 1"):
        optgen.optimizer(program)(params, n=0)


@back_ends
def test_opt_50_rules_after_accum_grad_keep_their_state_between(backend, dtype, tolerance):
    """Momentum of the means 1.5 and 3.5, and nothing of the steps between; n = 1 accumulates nothing."""
    program = optgen.chain("accum_grad", "momentum")
    for n, expected in ((2, [0, -1.5, -1.5, -1.5 - (0.5 * 1.5 + 3.5)]), (1, [-1, -3.5, -7.75, -13.875])):
        params = parameters(0.0, dtype=dtype)
        optimizer = optgen.optimizer(program)(params, n=n, lr=1.0, momentum=0.5, backend=backend)
        found = [step(optimizer, params, [g])[0] for g in (1.0, 2.0, 3.0, 4.0)]
        close(found, expected, tolerance)
