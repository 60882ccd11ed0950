"""The rules of Optimisers.jl, row by row: the numbers that its source gives, and where it differs from torch.

The numbers are those of its rules with their defaults, in float64: three steps from 1 on the gradients 0.5,
-0.25 and 1, and three steps of a vector. Each is asserted with the reference in float64 and with the
compiled CPU back end in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import optgen

SCALAR = 1.0, (0.5, -0.25, 1.0)
VECTOR = [1, -2, 0.5], ([0.1, -0.2, 0.3], [-0.3, 0.4, 0.05], [0.2, 0, -0.6])

CLIP_AND_DECAY = {"max_value": 2.0, "weight_decay": 0.1, "lr": 1.0}


@dataclass(frozen=True)
class Numbers:
    """A back end and a dtype, and how near they must come, relative to the expected value."""

    backend: str
    dtype: torch.dtype
    tolerance: float

    def after(self, rules, start, gradients, **options):
        """The parameter after each step with one of the gradients, as float64 arrays."""
        p = torch.nn.Parameter(torch.tensor(start, dtype=self.dtype))
        chain = optgen.chain(*rules.split())
        optimizer = optgen.optimizer(chain)([p], **options, backend=self.backend)
        steps = []
        for g in gradients:
            p.grad = torch.tensor(g, dtype=self.dtype)
            optimizer.step()
            steps.append(p.detach().double().numpy().copy())
        return steps

    def end(self, rules, start, gradients, **options):
        return self.after(rules, start, gradients, **options)[-1]

    def near(self, found, expected):
        np.testing.assert_allclose(found, expected, rtol=self.tolerance, atol=self.tolerance / 1e3)

    def golden(self, rule, scalar, vector, **options):
        self.near(self.after(rule, *SCALAR, **options), scalar)
        self.near(self.end(rule, *VECTOR, **options), vector)


EXACT = Numbers("numpy", torch.float64, 1e-9)


@pytest.fixture(params=[EXACT, Numbers("cpu", torch.float32, 1e-5)], ids=["float64", "float32"])
def at(request):
    return request.param


def from_torch(kind, **options):
    """Where torch's optimizer leaves seven elements after 100 random gradients, and where they began."""
    random = np.random.default_rng(7)
    start, gradients = random.standard_normal(7), random.standard_normal((100, 7))
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = kind([p], **options, foreach=False)
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
    return p.detach().numpy(), start, gradients


def same_as_torch(rule, kind, **options):
    expected, *data = from_torch(kind, **options)
    np.testing.assert_allclose(EXACT.end(rule, *data), expected, rtol=1e-11)


def test_opt_30_descent(at):
    at.golden("descent", [0.95, 0.975, 0.875], [1, -2.02, 0.525])
    same_as_torch("descent", torch.optim.SGD, lr=0.1)


def test_opt_31_momentum(at):
    at.golden("momentum", [0.995, 0.993, 0.9812], [1.00099, -2.00218, 0.49692])
    same_as_torch("momentum", torch.optim.SGD, lr=0.01, momentum=0.9)


def test_opt_31_a_new_lr_leaves_what_was_gathered():
    """torch scales the whole buffer by the new lr."""
    p, q = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    for x, optimizer in ((p, optgen.Momentum([p], lr=1.0)), (q, optgen.SGD([q], lr=1.0, momentum=0.9))):
        x.grad = torch.ones(1)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
    assert p.item() == pytest.approx(-1.9)
    assert q.item() == -1.0


def test_opt_32_nesterov(at):
    at.golden("nesterov", [0.99905, 0.99912, 0.997058], [1.0000891, -2.0003962, 0.4999728])
    same_as_torch("nesterov", torch.optim.SGD, lr=0.001, momentum=0.9, nesterov=True)


def test_opt_33_adagrad(at):
    at.golden(
        "optimisers_adagrad",
        [0.9000000040, 0.9447213620, 0.8574342070],
        [0.941416137017, -1.98944273236, 0.472755406826],
    )
    same_as_torch("optimisers_adagrad", torch.optim.Adagrad, lr=0.1, initial_accumulator_value=1e-8, eps=1e-8)


def test_opt_34_rmsprop(at):
    at.golden(
        "optimisers_rmsprop",
        [0.9968377225, 0.9983121420, 0.9954935628],
        [0.998092616948, -1.99969486549, 0.499166830881],
    )
    at.golden(
        "optimisers_rmsprop",
        [0.9966666669, 0.9981514515, 0.9951627262],
        [0.997990963924, -1.99955975392, 0.498991506115],
        centred=True,
    )
    same_as_torch("optimisers_rmsprop", torch.optim.RMSprop, lr=0.001, alpha=0.9)


def test_opt_34_a_negative_variance_counts_as_zero(at):
    """A constant gradient: the variance is 0 but for rounding, whose square root would be NaN."""
    steps = at.after("optimisers_rmsprop", [0.1, 0.7, 1.3], [[0.1, 0.7, 1.3]] * 400, centred=True)
    assert np.isfinite(steps).all()


def test_opt_35_rprop(at):
    at.golden("optimisers_rprop", [0.999, 0.999, 0.9985], [0.9985, -1.999, 0.4978])
    at.near(at.after("optimisers_rprop", 0.0, (1.0, 1.0, -1.0, -1.0), lr=0.1), [-0.1, -0.22, -0.22, -0.16])
    same_as_torch("optimisers_rprop", torch.optim.Rprop, lr=1e-3)


def test_opt_35_a_step_size_is_bounded_when_it_changes():
    """torch bounds the first one too."""
    options = {"lr": 1.0, "step_sizes": (1e-6, 0.5)}
    assert EXACT.after("optimisers_rprop", 0.0, (1.0, 1.0), **options) == [-1.0, -1.5]
    assert EXACT.after("rprop", 0.0, (1.0, 1.0), **options) == [-0.5, -1.0]


def test_opt_36_radam(at):
    at.golden(
        "optimisers_radam",
        [0.9995, 0.9993947368, 0.9989593125],
        [1.00000646728, -1.9999888522, 0.499646708099],
    )
    at.near(at.end("optimisers_radam", 0.0, [1.0] * 5), -0.0040173115)
    at.near(at.end("radam", 0.0, [1.0] * 5), -0.005)


def test_opt_37_amsgrad(at):
    at.golden(
        "amsgrad",
        [0.9968377870, 0.9957059816, 0.9924481873],
        [0.998846304428, -1.99979405077, 0.494976253245],
    )
    at.near(at.end("adam", 1.0, [0.5], amsgrad=True), 0.999)


def test_opt_38_nadam(at):
    at.golden(
        "optimisers_nadam",
        [0.9985255784, 0.9986905245, 0.9976655458],
        [0.999188808637, -1.99962348826, 0.498689072926],
    )
    assert abs(at.end("nadam", *SCALAR, lr=1e-3) - 0.9976655458) > 1e-4


def test_opt_39_adam(at):
    at.golden(
        "adam",
        [0.9990000000, 0.9987336630, 0.9980755514],
        [0.999475402218, -1.99964910264, 0.498513024131],
    )


def test_opt_40_adamw(at):
    at.golden(
        "optimisers_adamw",
        [0.9990000000, 0.9987336630, 0.9980755514],
        [0.999475402218, -1.99964910264, 0.498513024131],
    )
    at.golden(
        "optimisers_adamw",
        [0.9989900000, 0.9987136731, 0.9980455744],
        [0.999445417576, -1.99958911958, 0.498498052114],
        weight_decay=0.01,
    )
    at.golden(
        "optimisers_adamw",
        [0.9890000000, 0.9788436630, 0.9683971148],
        [0.969789360318, -1.94026334161, 0.483690257404],
        weight_decay=0.01,
        couple=False,
    )
    expected, *data = from_torch(torch.optim.AdamW, lr=0.001, weight_decay=0.1)
    np.testing.assert_allclose(EXACT.end("optimisers_adamw", *data, weight_decay=0.1), expected, rtol=1e-11)


@pytest.mark.parametrize(("couple", "expected"), [(True, 9.8), (False, 8.9)])
def test_opt_40_lr_scales_the_decay_or_not(at, couple, expected):
    found = at.end("optimisers_adamw", 10.0, [1.0], lr=0.1, weight_decay=0.1, couple=couple)
    np.testing.assert_allclose(found, expected, rtol=max(at.tolerance, 1e-8))  # eps takes 1e-9 of the step


def test_opt_41_adamax(at):
    at.golden(
        "optimisers_adamax",
        [0.9990000000, 0.9987892630, 0.9983538386],
        [0.999354877462, -1.99947231339, 0.498629916493],
    )
    expected, *data = from_torch(torch.optim.Adamax, lr=0.001)
    np.testing.assert_allclose(EXACT.end("optimisers_adamax", *data), expected, rtol=1e-6)


def test_opt_41_eps_stands_outside_the_maximum():
    found = EXACT.end("optimisers_adamax", 0.0, [1.0], lr=1.0, eps=1.0)
    assert found == pytest.approx(-0.5)
    assert EXACT.after("optimisers_adamax", 0.0, [1.0, 0.0], lr=1.0, betas=(0, 0.5), eps=1.0)[1] == found
    assert EXACT.end("adamax", 0.0, [0.0], lr=1.0, eps=1.0) == 0.0


def test_opt_42_oadam(at):
    at.golden(
        "oadam",
        [0.9980000000, 0.9990000000, 0.9973231013],
        [0.999337430622, -2.00029462139, 0.499790002672],
    )
    at.near(at.end("oadam", 0.0, [3.0], lr=0.1, eps=0), -0.2)


def test_opt_43_adadelta(at):
    at.golden(
        "adadelta",
        [0.9996837723, 0.9998922867, 0.9994616079],
        [0.999770759105, -2.00008783329, 0.500009057444],
        eps=1e-8,
    )


def test_opt_44_adabelief(at):
    at.golden(
        "optimisers_adabelief",
        [0.9988888889, 0.9986051881, 0.9978705496],
        [0.999402126006, -1.99958190325, 0.498324943851],
    )


def test_opt_45_lion(at):
    numbers = [0.999, 1.0, 0.999], [0.999, -2.001, 0.499]
    at.golden("optimisers_lion", *numbers)
    at.golden("lion", *numbers, lr=1e-3, betas=(0.9, 0.999))


@pytest.mark.parametrize(("rule", "expected"), [("optimisers_lion", 0.0), ("lion", -0.2)])
def test_opt_45_lion_as_coded_and_as_published(at, rule, expected):
    at.near(at.end(rule, 0.0, (1.0, -0.05), lr=0.1, betas=(0.9, 0.99)), expected)


def test_opt_46_weight_decay(at):
    """First in a chain it is an L2 penalty, which Adam's first step does not show."""
    at.near(at.end("weight_decay descent", 10.0, [1.0], lr=1.0), 10 - (1 + 5e-4 * 10))
    found = at.end("clip_value weight_decay descent", [1.0, 10.0, 100.0], [[1.0, 2.0, 3.0]], **CLIP_AND_DECAY)
    at.near(found, [-0.1, 7, 88])
    found = at.end("weight_decay adam", 10.0, [1.0], lr=0.1, weight_decay=0.1)
    np.testing.assert_allclose(found, 9.9, rtol=max(at.tolerance, 1e-8))


def test_opt_47_sign_decay(at):
    x, g = np.array([2.0, -3.0, 0.0]), np.array([0.5, 0.25, 1.0])
    at.near(at.end("sign_decay descent", x, [g], lr=1.0), x - g - 1e-3 * np.sign(x))
    found = at.end("sign_decay weight_decay descent", x, [g], sign_decay=0.012, weight_decay=0.034, lr=1.0)
    at.near(found, x - (g + 0.012 * np.sign(x) + 0.034 * x))


def test_opt_48_clip_grad(at):
    found = at.end("clip_value descent", [0.0, 0.0, 0.0], [[0.3, 1.0, 7.0]], max_value=1.0)
    at.near(found, [-0.03, -0.1, -0.1])
    found = at.end("weight_decay clip_value descent", [1.0, 10.0, 100.0], [[1.0, 2.0, 3.0]], **CLIP_AND_DECAY)
    at.near(found, [-0.1, 8, 98])


def test_opt_49_clip_norm(at):
    """With p = 2. A norm that is not finite spreads NaN, as with throw=false."""
    options = {"max_norm": 10.0, "lr": 1.0}
    found = at.end("clip_norm descent", [0.0, 0.0, 0.0], [[1.0, 10.0, 100.0]], **options)
    at.near(found, np.array([1, 10, 100]) * 10 / np.sqrt(10101) * -1)
    np.testing.assert_allclose(-found, [0.0994988, 0.994988, 9.949879], rtol=1e-5)
    at.near(at.end("clip_norm descent", [0.0], [[0.1]], **options), [-0.1])
    at.near(at.end("clip_norm descent", [0.0, 0.0], [[0.0, 0.0]], **options), [0, 0])
    found = at.end("clip_norm descent", [0.0, 0.0], [[np.inf, 1.0]], **options)
    assert np.isnan(found[0])
    assert found[1] == 0
    assert np.isnan(at.end("clip_norm descent", [0.0, 0.0], [[np.nan, 1.0]], **options)).all()


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("gradient", [0.0, 1e-7, 1e-3, 1.0])
def test_opt_52_a_small_eps_is_enough_in_half_precision(backend, gradient):
    """1e-8 is 0 in float16, whose rules are computed in float32 here: it needs no floor."""
    half = Numbers(backend, torch.float16, 1e-3)
    for rule in ("adam", "optimisers_adamw"):
        steps = half.after(rule, [0.01, -0.01, 0.0], [[gradient, -gradient, 0.0]] * 3, lr=1e-4)
        assert np.isfinite(steps).all()
        assert (steps[-1][0] < 0.01) == (gradient > 0)
        assert steps[-1][2] == 0


def test_gen_05_decaying_step(at):
    """Gen.jl's GradientDescent, which ascends; t starts at 1."""
    options = {"lr": 0.1, "beta": 1, "maximize": True}
    at.near(at.after("gen_decay", 0.0, [1.0] * 3, **options), [0.1, 1 / 6, 13 / 60])
    places = at.after("gen_decay", 0.0, [-1.0] * 101, lr=0.001, beta=100)
    steps = np.diff([0, *places])
    np.testing.assert_allclose(steps[[0, 1, 100]], [0.001, 0.000990196078, 0.000502487562], rtol=2e-3)
    if at is EXACT:
        at.near(steps[[0, 1, 100]], [0.001, 0.101 / 102, 0.101 / 201])
