"""Rules with one number per tensor, rules that keep copies of the parameters, and some momentum variants."""

from __future__ import annotations

import numpy as np
import pytorch_optimizer
import schedulefree
import torch

from oracles import Oracle, Setting, each, torch_class

MATRICES = ((6, 5), (4, 3, 2))


def settings(*options):
    return [Setting(o) for o in options]


def pytorch_optimizer_class(rule, name, *options, **other):
    kind = getattr(pytorch_optimizer, name)
    source = f"pytorch_optimizer.{name}"
    make = torch_class(kind, foreach=False)
    return Oracle(rule, source, make, settings(*options), "pytorch_optimizer", **other)


@each
def adanorm(p, lr=1e-3, betas=(0.9, 0.99), r=0.95, eps=1e-8):
    """AdamNorm of the paper."""
    m, v, e, t = 0.0, 0.0, 0.0, 0
    g = yield
    while True:
        t += 1
        size = np.linalg.norm(g)
        e = r * e + (1 - r) * size
        s = e * g / size if e > size > 0 else g
        m = betas[0] * m + (1 - betas[0]) * s
        v = betas[1] * v + (1 - betas[1]) * g * g
        unbiased = [x / (1 - b**t) for x, b in zip((m, v), betas, strict=True)]
        p = p - lr * unbiased[0] / (np.sqrt(unbiased[1]) + eps)
        g = yield p


@each
def adamod(p, lr=1e-3, betas=(0.9, 0.999), beta3=0.999, eps=1e-8):
    """Algorithm 1 of the paper, its bounds as sums over all earlier step sizes."""
    squares, sizes, m, t = [], [], 0.0, 0
    g = yield
    while True:
        t += 1
        m = betas[0] * m + (1 - betas[0]) * g
        squares.append(g * g)
        weights = betas[1] ** np.arange(t - 1, -1, -1)
        sizes.append(lr / (np.sqrt(np.tensordot(weights / weights.sum(), squares, 1)) + eps))
        bound = (1 - beta3) * np.tensordot(beta3 ** np.arange(t - 1, -1, -1), sizes, 1)
        p = p - np.minimum(sizes[-1], bound) * m / (1 - betas[0] ** t)
        g = yield p


@each
def padam(p, lr=0.1, betas=(0.9, 0.999), partial=0.125, eps=1e-8):
    """Algorithm 1 of the paper, with the code's eps."""
    m, v, largest = 0.0, 0.0, 0.0
    g = yield
    while True:
        m += (1 - betas[0]) * (g - m)
        v += (1 - betas[1]) * (g * g - v)
        largest = np.fmax(largest, v)
        p = p - lr * m * np.exp(-2 * partial * np.log(np.sqrt(largest) + eps))
        g = yield p


@each
def rmsprop_tf(p, lr=1e-2, alpha=0.9, eps=1e-10, weight_decay=0.0, momentum=0.0, centered=False):
    """The formulas in the docstring of TensorFlow's RMSProp, whose average of squares starts at 1."""
    square, mean, step = np.ones_like(p), np.zeros_like(p), 0.0
    g = yield
    while True:
        g = g + weight_decay * p
        square = alpha * square + (1 - alpha) * g * g
        mean = alpha * mean + (1 - alpha) * g
        step = momentum * step + lr * g * (square - centered * mean * mean + eps) ** -0.5
        p = p - step
        g = yield p


def averaged_sgd(params, lr=1e-2, momentum=0.9):
    """(1 - momentum) taken out of the average."""
    return torch.optim.SGD(params, lr=(1 - momentum) * lr, momentum=momentum, foreach=False)


def still_gravity(params, **options):
    """Gravity, whose first velocity is drawn from a distribution without width."""
    return pytorch_optimizer.Gravity(params, alpha=0.0, foreach=False, **options)


def heavy_ball(params, lr=1e-2, beta=0.9):
    return torch.optim.SGD(params, lr=lr, momentum=beta, foreach=False)


def clipped_adamw(params, **options):
    """AdaGC of pytorch_optimizer, which never clips by the global norm here."""
    return pytorch_optimizer.AdaGC(params, lambda_abs=1e30, foreach=False, **options)


def schedulefree_class(rule, name, *options):
    make = torch_class(getattr(schedulefree, name), foreach=False)
    return Oracle(rule, f"schedulefree.{name}", make, settings(*options), "schedulefree")


def looking_ahead(params, k=5, alpha=0.5, **options):
    return pytorch_optimizer.Lookahead(torch.optim.AdamW(params, **options), k=k, alpha=alpha)


def adamw(params, **options):
    """AdamW without the options of a transform that only watches the parameters."""
    kept = {k: v for k, v in options.items() if k in ("lr", "weight_decay")}
    return torch.optim.AdamW(params, foreach=False, **kept)


def watching(rule, *options):
    """tests/rules/test_tensorwise_packages.py checks the average, and that `eval()` and `train()` swap it."""
    source = "torch.optim.AdamW, which it must leave as it is"
    return Oracle(rule, source, torch_class(adamw), settings(*options), "torch", chain=("adamw", rule))


def orthogonal_sgd(params, **options):
    return pytorch_optimizer.OrthoGrad(torch.optim.SGD(params, **options), foreach=False)


ORACLES = [
    pytorch_optimizer_class(
        "lars",
        "LARS",
        {"lr": 1.0},
        {"lr": 2.0, "momentum": 0.5, "weight_decay": 0.1, "trust_coefficient": 0.01},
        shapes=MATRICES,
        learns={"lr": 10.0},
    ),
    pytorch_optimizer_class(
        "novograd",
        "NovoGrad",
        {},
        {"lr": 0.01, "betas": (0.9, 0.7), "eps": 1e-3, "weight_decay": 0.1},
    ),
    pytorch_optimizer_class(
        "sgd_sai",
        "SGDSaI",
        {},
        {"lr": 0.003, "momentum": 0.5, "eps": 0.1, "weight_decay": 0.3},
        shapes=MATRICES,
    ),
    Oracle(
        "adanorm",
        "the paper's AdamNorm",
        adanorm,
        settings({}, {"lr": 0.01, "betas": (0.8, 0.95), "r": 0.8, "eps": 1e-3}),
    ),
    pytorch_optimizer_class("fromage", "Fromage", {}, {"lr": 0.1}),
    Oracle(
        "adagc",
        "pytorch_optimizer.AdaGC",
        torch_class(clipped_adamw),
        [
            Setting({"lr": 0.01, "weight_decay": 0.1, "warmup_steps": 10}),
            Setting({"lr": 0.01, "weight_decay": 0.0, "warmup_steps": 0, "beta": 0.5, "lambda_rel": 0.9}),
        ],
        "pytorch_optimizer",
        chain=("adagc", "adamw"),
    ),
    Oracle(
        "orthograd",
        "pytorch_optimizer.OrthoGrad",
        torch_class(orthogonal_sgd),
        settings({"lr": 0.01}, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
        "pytorch_optimizer",
        chain=("orthograd", "sgd"),
    ),
    schedulefree_class(
        "schedulefree_adamw",
        "AdamWScheduleFree",
        {"lr": 0.01},
        {
            "lr": 0.01,
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "warmup_steps": 20,
            "r": 0.5,
            "weight_lr_power": 1.5,
        },
    ),
    schedulefree_class(
        "schedulefree_sgd",
        "SGDScheduleFree",
        {"lr": 0.1},
        {
            "lr": 0.1,
            "momentum": 0.7,
            "weight_decay": 0.1,
            "warmup_steps": 20,
            "r": 1.0,
            "weight_lr_power": 0.5,
        },
    ),
    schedulefree_class(
        "schedulefree_radam",
        "RAdamScheduleFree",
        {"lr": 0.01},
        {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1, "silent_sgd_phase": False, "r": 0.5},
        {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-3, "weight_lr_power": 1.0},
    ),
    Oracle(
        "lookahead",
        "pytorch_optimizer.Lookahead",
        torch_class(looking_ahead),
        settings({"lr": 0.01}, {"lr": 0.01, "k": 3, "alpha": 0.8, "weight_decay": 0.1}),
        "pytorch_optimizer",
        chain=("adamw", "lookahead"),
    ),
    watching("ema", {"lr": 0.01}, {"lr": 0.01, "weight_decay": 0.1, "decay": 0.9}),
    watching("swa", {"lr": 0.01}, {"lr": 0.01, "weight_decay": 0.1, "swa_start": 40, "swa_freq": 7}),
    Oracle(
        "ema_momentum",
        "torch.optim.SGD, at (1 - momentum)*lr",
        torch_class(averaged_sgd),
        settings({}, {"lr": 0.1, "momentum": 0.5}),
        "torch",
    ),
    Oracle(
        "adamod",
        "Algorithm 1 of the paper",
        adamod,
        settings({}, {"lr": 0.01, "betas": (0.8, 0.95), "beta3": 0.9, "eps": 1e-3}),
        learns={"lr": 0.1},
    ),
    Oracle(
        "padam",
        "Algorithm 1 of the paper",
        padam,
        settings({}, {"lr": 0.01, "betas": (0.8, 0.95), "partial": 0.25, "eps": 1e-3}),
    ),
    Oracle(
        "rmsprop_tf",
        "TensorFlow's formulas",
        rmsprop_tf,
        settings(
            {},
            {"lr": 0.003, "alpha": 0.95, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "centered": True},
        ),
    ),
    Oracle(
        "gravity",
        "pytorch_optimizer.Gravity",
        torch_class(still_gravity),
        settings({"lr": 0.1}, {"lr": 0.03, "beta": 0.5}),
        "pytorch_optimizer",
        learns={"lr": 0.1},
    ),
    pytorch_optimizer_class(
        "pid",
        "PID",
        {"lr": 1e-3, "momentum": 0.9},
        {
            "lr": 1e-3,
            "momentum": 0.5,
            "dampening": 0.3,
            "integral": 2.0,
            "derivative": 30.0,
            "weight_decay": 0.1,
        },
    ),
    Oracle(
        "sgd_polyak",
        "torch.optim.SGD",
        torch_class(heavy_ball),
        settings({}, {"lr": 0.1, "beta": 0.5}),
        "torch",
    ),
]
