"""Rules over all tensors: what the oracles of oracles/totals.py do not reach, and where packages differ."""

import copy

import numpy as np
import prodigyopt
import pytest
import pytorch_optimizer
import torch
from torch import nn

import optgen

BACKENDS = [("numpy", torch.float64, 1e-12), ("cpu", torch.float32, 1e-6)]
back_ends = pytest.mark.parametrize(("backend", "dtype", "tolerance"), BACKENDS, ids=["float64", "float32"])


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


# Distances to the solution


def test_prodigy_scales_eps_by_the_d_of_this_step():
    """The second step makes d 0.2 of 0.1, which the package already has in that step's denominator."""
    options = {"lr": 1.0, "betas": (0.5, 0.75), "beta3": 1.0, "eps": 1.0, "d0": 0.1, "d_coef": 8.0}
    for kind, d in ((optgen.Prodigy, 0.1), (prodigyopt.Prodigy, 0.2)):
        params = parameters([0.0])
        optimizer = kind(params, **options)
        close(step(optimizer, params, [[2.0]]), [[-0.1 * 0.1 / (0.1 + 0.1)]])
        m, v = 0.5 * 0.1 + 0.5 * 0.2, 0.75 * 0.01 + 0.25 * 0.04
        close(step(optimizer, params, [[2.0]]), [[-0.05 - 0.1 * m / (v**0.5 + d)]])
        assert float(optimizer.param_groups[0]["d"]) == pytest.approx(0.2)


def test_prodigy_continues_from_a_checkpoint_of_prodigyopt():
    theirs, ours = parameters([1.0, -2.0], [0.5]), parameters([1.0, -2.0], [0.5])
    options = {"d0": 0.01, "eps": 1e-30}
    a, b = prodigyopt.Prodigy(theirs, **options), optgen.Prodigy(ours, **options)
    gradients = [[[0.3 * k, 1.0], [-0.2 * k]] for k in range(1, 9)]
    for g in gradients[:4]:
        step(a, theirs, g)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q.data)
    for g in gradients[4:]:
        close(step(b, ours, g), step(a, theirs, g), 1e-12)
    assert b.param_groups[0]["d"] == pytest.approx(a.param_groups[0]["d"], rel=1e-12)


@pytest.mark.parametrize("kind", [optgen.Prodigy, optgen.DAdaptAdam, optgen.DAdaptSGD, optgen.DAdaptLion])
def test_without_any_gradient_d_and_the_parameters_stay(kind):
    params = parameters([1.0, -2.0], [0.5])
    optimizer = kind(params, d0=0.1)
    for _ in range(3):
        assert step(optimizer, params, [[0.0, 0.0], [0.0]]) == [[1, -2], [0.5]]
    assert optimizer.param_groups[0]["d"] == 0.1
    assert step(optimizer, params, [[1.0, 0.0], [0.0]])[0][0] < 1


@pytest.mark.parametrize("kind", [optgen.Prodigy, optgen.DAdaptAdam, optgen.DAdaptSGD, optgen.DAdaptLion])
def test_d_is_one_number_for_all_groups(kind):
    """Two groups are as one; groups of two rates are refused."""
    runs = []
    for split in (False, True):
        params = parameters([1.0, -2.0], [0.5])
        optimizer = kind([{"params": [p]} for p in params] if split else params, d0=0.1)
        runs.append([step(optimizer, params, [[0.3, k], [-0.2]]) for k in (1.0, 2.0, 3.0)])
        assert len({float(group["d"]) for group in optimizer.param_groups}) == 1
    assert runs[0] == runs[1]
    params = parameters([1.0], [0.5])
    optimizer = kind([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
    with pytest.raises(ValueError, match="lr"):
        step(optimizer, params, [[1.0], [1.0]])


@pytest.mark.parametrize("kind", [optgen.DoG, optgen.LDoG])
def test_dog_begins_with_reps_rel_and_ldog_does_so_by_tensor(kind):
    """Norms 3 and 4, together 5; gradients 0.6 and 0.8, together 1: a first step of r*g/norm(g)."""
    params = parameters([3.0], [4.0])
    found = step(kind(params, reps_rel=0.1, eps=1e-12), params, [[0.6], [0.8]])
    if kind is optgen.DoG:
        close(found, [[3 - 0.1 * 6 * 0.6], [4 - 0.1 * 6 * 0.8]])
    else:
        close(found, [[3 - 0.1 * 4], [4 - 0.1 * 5]])


# Losses and diagonals handed in


@pytest.mark.parametrize(
    ("kind", "rate"),
    [(optgen.MoMo, 0.5), (optgen.AliG, 0.5 * 4 / (4 + 1e-5)), (optgen.PolyakSGD, 1.0)],
)
def test_a_rate_that_brings_a_linear_loss_to_its_bound(kind, rate):
    """A loss of 2 and a gradient of norm 2: 2/4, and with c = 1/2 twice that; lr is the bound."""
    for loss in ({"loss": 2.0}, {"closure": lambda: 2.0}):
        params = parameters([0.0, 0.0], [0.0])
        found = step(kind(params, lr=10.0), params, [[0.0, 1.2], [1.6]], **loss)
        close(found, [[0, -1.2 * rate], [-1.6 * rate]])
    found = step(kind(params, lr=0.01), params, [[0.0, 1.0], [0.0]], loss=2.0)
    close(found, [[0, -1.2 * rate - 0.01], [-1.6 * rate]])
    with pytest.raises(TypeError, match="loss"):
        kind(params).step()


@pytest.mark.parametrize("kind", [optgen.MoMo, optgen.AliG, optgen.PolyakSGD])
def test_a_gradient_of_zero_moves_nothing(kind):
    params = parameters([1.0])
    assert step(kind(params), params, [[0.0]], loss=2.0) == [[1]]


def test_alig_adds_the_eps_of_its_authors():
    """loss/(norm(g)**2 + eps) for a gradient of 0.001: eps is 1e-5, and 1e-6 in the package."""
    params = parameters([0.0])
    close(step(optgen.AliG(params, lr=1e3), params, [[1e-3]], loss=1e-5), [[-1e-3 * 1e-5 / 1.1e-5]])
    params = parameters([0.0])
    theirs = pytorch_optimizer.AliG(params, max_lr=1e3, foreach=False)
    close(step(theirs, params, [[1e-3]], closure=lambda: 1e-5), [[-1e-3 * 1e-5 / 2e-6]], 1e-6)


def test_adahessian_averages_the_kernels_of_convolutions_only_if_told_to():
    """abs is 1 and 3 in one kernel, 2 in the other; the first step of a gradient of 1 is 1/abs(D)."""
    diagonal = torch.tensor([[[[1.0, -3.0]], [[2.0, 2.0]]]], dtype=torch.float64)
    for average, expected in ((True, [[-0.5, -0.5], [-0.5, -0.5]]), (False, [[-1, -1 / 3], [-0.5, -0.5]])):
        params = parameters(np.zeros((1, 2, 1, 2)))
        optimizer = optgen.AdaHessian(params, lr=1.0, eps=0.0, average_conv_kernel=average)
        found = step(optimizer, params, [np.ones((1, 2, 1, 2))], hess=[diagonal])
        close(np.reshape(found[0], (2, 2)), expected)


def test_sophia_takes_every_kth_diagonal_and_needs_no_other():
    """betas (0, 0): steps of g/(gamma*h), clipped at 1, with h of the first and the fourth step."""
    params = parameters([0.0, 0.0])
    optimizer = optgen.Sophia(params, lr=1.0, betas=(0.0, 0.0), gamma=0.5, k=3)
    places = [[0.0, 0.0]]
    for t in range(1, 6):
        hess = {} if t in (2, 5) else {"hess": [torch.tensor([2.0 * t, -1.0], dtype=torch.float64)]}
        places += step(optimizer, params, [[0.5, 0.5]], **hess)
    close(np.diff(places, axis=0)[:, 0], [-0.5, -0.5, -0.5, -0.125, -0.125])
    close(np.diff(places, axis=0)[:, 1], [-1.0] * 5)


# Means over all tensors


def test_avagrad_moves_in_its_first_step_and_the_package_does_not():
    """v is 0 then, so every rate is the same, and the step lr*m; the second is normalised by its own v."""
    options = {"lr": 1.0, "betas": (0.0, 0.75), "eps": 1.0}
    ours, theirs = parameters([0.0, 0.0]), parameters([0.0, 0.0])
    a = optgen.AvaGrad(ours, **options)
    b = pytorch_optimizer.AvaGrad(theirs, foreach=False, **options)
    close(step(a, ours, [[2.0, 0.0]]), [[-2, 0]])
    assert step(b, theirs, [[2.0, 0.0]]) == [[0, 0]]
    # v = 1 and 0, so eta = 1/2 and 1, its mean square 5/8. The package: v/(1 - 0.75) = 4, and a mean of 1.
    close(step(a, ours, [[2.0, 0.0]]), [[-2 - 2 * 0.5 / (5 / 8) ** 0.5, 0]])
    close(step(b, theirs, [[2.0, 0.0]]), [[-2 / 3, 0]])


def test_adai_takes_the_mean_of_all_tensors_however_small():
    """v_hat is 3e-4 and 1e-4: beta1 = 1 - 0.1*1.5 and 1 - 0.1*0.5, and in the package 1 - eps."""
    gradients = [[3e-4**0.5], [1e-4**0.5]]
    runs = []
    for kind in (optgen.Adai, pytorch_optimizer.Adai):
        params = parameters([0.0], [0.0])
        optimizer = kind(params, lr=1.0)
        step(optimizer, params, gradients)
        runs.append([optimizer.state[p]["beta1_prod"].tolist() for p in params])
    close(runs[0], [[0.85], [0.95]])
    close(runs[1], [[1 - 0.1 * 0.3], [1 - 0.1 * 0.1]])


# Noise


@pytest.mark.parametrize(
    ("kind", "options", "deviation"),
    [
        (optgen.SGLD, {"lr": 0.04}, 0.2),
        (optgen.SGLD, {"lr": 0.04, "temperature": 0.25}, 0.1),
        (optgen.PSGLD, {"lr": 0.04, "eps": 4.0}, 0.1),
        (optgen.SGHMC, {"lr": 0.04, "friction": 0.6, "noise": 0.1}, 0.2),
        (optgen.NoisySGD, {"lr": 2.0, "eta": 0.01}, 0.2),
    ],
)
def test_noise_has_the_variance_of_the_paper(kind, options, deviation):
    """With gradients of 0 the first step is noise alone; another seed makes another."""
    moved = []
    for seed in (0, 1):
        params = parameters(np.zeros((100, 100)))
        moved.append(np.array(step(kind(params, seed=seed, **options), params, [np.zeros((100, 100))])[0]))
        assert moved[-1].std() == pytest.approx(deviation, rel=0.02)
        assert abs(moved[-1].mean()) < 4 * deviation / 100
    assert abs(np.corrcoef(moved[0].ravel(), moved[1].ravel())[0, 1]) < 0.05


def test_sgld_samples_a_gaussian():
    """10000 chains on x**2/2 end with a variance of 1."""
    params = parameters(np.zeros(10_000))
    optimizer = optgen.SGLD(params, lr=0.1)
    for _ in range(100):
        step(optimizer, params, [params[0].detach()])
    assert params[0].var().item() == pytest.approx(1 / (1 - 0.1 / 4), rel=0.05)
