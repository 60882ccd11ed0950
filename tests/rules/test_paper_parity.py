"""Rules and transforms that torch.optim does not have, against float64 recurrences.

The recurrences are written from the papers, in other forms than the rule files: decay inside the bracket,
moments debiased afterwards instead of debiased betas, masks from m and not from the update. Each is a
generator that takes gradients and yields (p, state).
"""

import numpy as np
import pytest
import torch

import optgen

STEPS = 200
SHAPES = [(), (7,), (33, 4)]


def lion(p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al., 2023, Algorithm 2: the decay stands beside the sign."""
    m = np.zeros_like(p)
    g = yield
    while True:
        c = betas[0] * m + (1 - betas[0]) * g
        p = p - lr * (np.sign(c) + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
        g = yield p, {"exp_avg": m}


def moments(p, betas):
    """Adam's moments, as weighted sums of the gradients so far, and the same debiased."""
    m, v, weights = np.zeros_like(p), np.zeros_like(p), np.zeros(2)
    g = yield
    while True:
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * np.square(g)
        weights = weights * betas + (1 - np.array(betas))
        g = yield m, v, m / weights[0], v / weights[1]


def started(generator):
    next(generator)
    return generator


def lamb(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-2):
    """You et al., 2020, Algorithm 2, with phi(x) = x; 1 for a ratio that has a norm of 0."""
    adam = started(moments(p, betas))
    g = yield
    while True:
        m, v, m_hat, v_hat = adam.send(g)
        update = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p
        sizes = np.linalg.norm(p.ravel()), np.linalg.norm(update.ravel())
        p = p - lr * (sizes[0] / sizes[1] if all(sizes) else 1.0) * update
        g = yield p, {"exp_avg": m, "exp_avg_sq": v}


def stable_adamw(p, lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=1e-2):
    """Wortsman et al., 2023: the stored moments are the debiased ones."""
    adam = started(moments(p, betas))
    g = yield
    while True:
        _, _, m_hat, v_hat = adam.send(g)
        rms = np.sqrt(np.mean(np.square(g) / np.maximum(v_hat, eps**2)))
        eta = lr / max(1.0, rms)
        p = p - eta * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)
        g = yield p, {"exp_avg": m_hat, "exp_avg_sq": v_hat}


def adamw(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, cautious=False):
    """Loshchilov & Hutter, 2019; cautious: Liang et al., 2024, as the authors' code has it."""
    adam = started(moments(p, betas))
    g = yield
    while True:
        m, v, m_hat, v_hat = adam.send(g)
        agree = (m * g > 0).astype(p.dtype) if cautious else np.ones_like(p)
        step = m_hat / (np.sqrt(v_hat) + eps) * agree / max(agree.mean(), 1e-3)
        p = p - lr * (step + weight_decay * p)
        g = yield p, {"exp_avg": m, "exp_avg_sq": v}


def cautious_lion(p, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
    m = np.zeros_like(p)
    g = yield
    while True:
        step = np.sign(betas[0] * m + (1 - betas[0]) * g)
        agree = step * g > 0
        p = p - lr * (np.where(agree, step, 0) / max(agree.sum() / agree.size, 1e-3) + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
        g = yield p, {"exp_avg": m}


def sgd(p, lr=1e-3, momentum=0.0):
    b = np.zeros_like(p)
    g = yield
    while True:
        b = momentum * b + g
        p = p - lr * b
        g = yield p, {"momentum_buffer": b} if momentum else {}


def transformed(change, rule, p, **options):
    """A rule that sees `change(g, p)` for the gradient g."""
    rule = started(rule(p, **options))
    g = yield
    while True:
        p, state = rule.send(change(g, p))
        g = yield p, state


def by_norm(limit):
    def change(g, p):
        size = np.sqrt(np.square(g).sum())
        return g * (limit / size) if size > limit else g

    return change


def by_value(limit):
    return lambda g, p: np.where(np.abs(g) > limit, limit * np.sign(g), g)


def penalised(weight):
    return lambda g, p: g + weight * p


# name, what to chain, the options of the class, the recurrence
CASES = {
    "lion": (["lion"], {}, lion),
    "lion-decay": (["lion"], {"lr": 1e-2, "weight_decay": 0.3, "betas": (0.8, 0.95)}, lion),
    "lamb": (["lamb"], {}, lamb),
    "lamb-no-decay": (["lamb"], {"lr": 1e-2, "weight_decay": 0.0}, lamb),
    "lamb-betas": (["lamb"], {"betas": (0.0, 0.9), "eps": 1e-3, "weight_decay": 0.5}, lamb),
    "stable_adamw": (["stable_adamw"], {}, stable_adamw),
    "stable_adamw-decay": (["stable_adamw"], {"lr": 1e-2, "weight_decay": 0.5}, stable_adamw),
    "stable_adamw-eps": (["stable_adamw"], {"eps": 0.5, "betas": (0.8, 0.999)}, stable_adamw),
    "adamw+cautious": (
        ["adamw", "cautious"],
        {"weight_decay": 0.3},
        lambda p, **options: adamw(p, **options, cautious=True),
    ),
    "lion+cautious": (["lion", "cautious"], {"weight_decay": 0.3}, cautious_lion),
    "clip_norm+sgd": (
        ["clip_norm", "sgd"],
        {"max_norm": 2.5, "momentum": 0.9},
        lambda p, max_norm, **options: transformed(by_norm(max_norm), sgd, p, **options),
    ),
    "clip_value+sgd": (
        ["clip_value", "sgd"],
        {"max_value": 0.7},
        lambda p, max_value, **options: transformed(by_value(max_value), sgd, p, **options),
    ),
    "weight_decay+lamb": (
        ["weight_decay", "lamb"],
        {"weight_decay": 0.3, "lamb_weight_decay": 0.1},
        lambda p, weight_decay, lamb_weight_decay: transformed(
            penalised(weight_decay), lamb, p, weight_decay=lamb_weight_decay
        ),
    ),
    "clip_norm+adamw+cautious": (
        ["clip_norm", "adamw", "cautious"],
        {"lr": 1e-2},
        lambda p, **options: transformed(by_norm(1.0), adamw, p, **options, cautious=True),
    ),
}


def gradients(random):
    """Noise about a drift; an element in ten is exactly zero, and all of the third gradient are."""
    drift = [0.3 * np.sign(random.standard_normal(shape)) for shape in SHAPES]
    for step in range(STEPS):
        noisy = [d + random.standard_normal(d.shape) * (5 if step % 50 == 20 else 1) for d in drift]
        yield [np.where(random.random(x.shape) < (1 if step == 2 else 0.1), 0.0, x) for x in noisy]


def error(ours, theirs):
    """max|a - b| / max|b|."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float32).tiny)


@pytest.mark.parametrize("maximize", [False, True], ids=["descent", "ascent"])
@pytest.mark.parametrize("case", CASES)
def test_two_hundred_steps(case, maximize):
    names, options, recurrence = CASES[case]
    random = np.random.default_rng(7)
    start = [random.standard_normal(shape) for shape in SHAPES]
    known = [started(recurrence(p, **options)) for p in start]
    parameters = [torch.tensor(p, requires_grad=True) for p in start]
    program = optgen.chain(*names) if len(names) > 1 else names[0]
    optimizer = optgen.optimizer(program)(parameters, **options, maximize=maximize, backend="numpy")
    for step in gradients(random):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        expected = [rule.send(-g if maximize else g) for rule, g in zip(known, step, strict=True)]
    for i, (p, state) in enumerate(expected):
        assert error(parameters[i].detach(), p) < 1e-12
        stored = dict(optimizer.state_dict()["state"][i])
        assert stored.pop("step") == STEPS
        assert set(stored) == set(state)
        for key in state:
            assert error(stored[key], state[key]) < 1e-12, key


def one_step(names, p, g, **options):
    """The parameter after one step from p with gradient g."""
    parameter = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    optimizer = optgen.optimizer(optgen.chain(*names))([parameter], **options, backend="numpy")
    parameter.grad = torch.tensor(g, dtype=torch.float64)
    optimizer.step()
    return parameter.detach().tolist()


@pytest.mark.parametrize(
    ("names", "options", "g", "expected"),
    [
        pytest.param(["clip_norm", "sgd"], {}, [0.0, 0.0], [1.0, 2.0], id="clip_norm-of-zero"),
        pytest.param(["clip_norm", "sgd"], {}, [0.3, 0.4], [0.7, 1.6], id="clip_norm-below"),
        pytest.param(["clip_norm", "sgd"], {}, [3.0, 4.0], [0.4, 1.2], id="clip_norm-above"),
        pytest.param(["clip_value", "sgd"], {}, [-3.0, 0.5], [2.0, 1.5], id="clip_value"),
        pytest.param(["sgd", "cautious"], {}, [0.0, 0.0], [1.0, 2.0], id="cautious-nothing-agrees"),
        pytest.param(["sgd", "cautious"], {}, [0.0, 0.5], [1.0, 1.0], id="cautious-half-agrees"),
        pytest.param(
            ["sgd", "cautious"], {"maximize": True}, [0.0, 0.5], [1.0, 3.0], id="cautious-ascent-half-agrees"
        ),
    ],
)
def test_corners_of_the_transforms(names, options, g, expected):
    assert one_step(names, [1.0, 2.0], g, lr=1.0, **options) == pytest.approx(expected, rel=1e-15)


def test_cautious_divides_by_a_thousandth_at_the_least():
    """One element of 2000 agrees: the mask has a mean of 5e-4, and the step is 1000 times the update."""
    g = np.zeros(2000)
    g[5] = 0.25
    p = one_step(["sgd", "cautious"], np.zeros(2000), g, lr=1.0)
    assert p[5] == pytest.approx(-250, rel=1e-15)


def test_weight_decay_is_that_of_sgd():
    p, g = [1.0, -2.0], [0.5, 0.25]
    chained = one_step(["weight_decay", "sgd"], p, g, lr=0.5, weight_decay=0.1)
    assert chained == one_step(["sgd"], p, g, lr=0.5, weight_decay=0.1)


@pytest.mark.parametrize(
    ("p", "g"), [([0.0, 0.0], [1.0, -1.0]), ([1.0, 2.0], [0.0, 0.0])], ids=["p-is-zero", "update-is-zero"]
)
def test_lamb_without_a_norm_is_adamw(p, g):
    lamb = one_step(["lamb"], p, g, weight_decay=0.0, eps=1e-6)
    assert lamb == pytest.approx(one_step(["adamw"], p, g, weight_decay=0.0, eps=1e-6), rel=1e-15)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lion", {"lr": -1.0}),
        ("lion", {"betas": (0.9, 1.0)}),
        ("lamb", {"eps": -1e-6}),
        ("lamb", {"weight_decay": -0.1}),
        ("stable_adamw", {"betas": (1.0, 0.9)}),
    ],
)
def test_refuses(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        optgen.optimizer(name)([torch.zeros(3, requires_grad=True)], **options)
