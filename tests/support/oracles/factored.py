"""Rules that keep second moments by slices, or look at the angle between a gradient's slices and p's."""

from __future__ import annotations

import numpy as np
import pytorch_optimizer

from oracles import Oracle, Setting, each, torch_class

SHAPES = ((7,), (6, 5), (4, 3, 2), (2, 3, 4, 5))


def came(*params, eps=(1e-30, 1e-16), **options):
    """pytorch_optimizer's class with the authors' pair `eps`."""
    return pytorch_optimizer.CAME(*params, eps1=eps[0], eps2=eps[1], foreach=False, **options)


def projected(p, g, x, delta, eps):
    """The authors' projection of an update x, and whether there was one.

    Of the partitions of a tensor into its units and into one vector, the first in which every part of g is
    nearly orthogonal to p's; from each part of x its component along p's is taken.
    """
    if p.ndim < 2:
        return x, False
    for parts in (len(p), 1):
        pairs = list(zip(p.reshape(parts, -1), g.reshape(parts, -1), x.reshape(parts, -1), strict=True))
        angles = [abs(np.vdot(b / np.linalg.norm(b), a / np.linalg.norm(a))) for a, b, _ in pairs]
        if max(angles) * np.sqrt(p.size / parts) < delta:
            units = [a / (np.linalg.norm(a) + eps) for a, _, _ in pairs]
            rest = [c - np.vdot(n, c) * n for n, (_, _, c) in zip(units, pairs, strict=True)]
            return np.stack(rest).reshape(p.shape), True
    return x, False


def adamp(
    p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, delta=0.1, wd_ratio=0.1, nesterov=False
):
    """Heo et al., Algorithm 2 with Adam's bias corrections, moments as weighted sums of what came so far."""
    m, v, weights = np.zeros_like(p), np.zeros_like(p), np.zeros(2)
    g = yield
    while True:
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        weights = weights * betas + (1 - np.array(betas))
        first = betas[0] * m + (1 - betas[0]) * g if nesterov else m
        x, radial = projected(p, g, first / weights[0] / (np.sqrt(v / weights[1]) + eps), delta, eps)
        p = p - lr * (x + weight_decay * (wd_ratio if radial else 1) * p)
        g = yield p


def neuron_norm(p, lr=1e-3, beta2=0.95, eps=1e-10):
    """Li et al., lines 7 to 9 of Algorithm 1, for the updates of SGD; the norm is given back to them."""
    squares = np.zeros(len(p))
    g = yield
    while True:
        u = lr * g
        if p.ndim > 1:
            rows = u.reshape(len(u), -1)
            squares = beta2 * squares + (1 - beta2) * np.array([np.dot(r, r) / r.size for r in rows])
            x = np.stack([r / (np.sqrt(s) + eps) for r, s in zip(rows, squares, strict=True)])
            u = (x / (np.linalg.norm(x) + eps)).reshape(p.shape) * np.linalg.norm(rows)
        p = p - u
        g = yield p


ORACLES = [
    Oracle(
        "came",
        "pytorch_optimizer.CAME",
        torch_class(came),
        [
            Setting(),
            Setting({"lr": 0.02, "betas": (0.8, 0.9, 0.95), "clip_threshold": 0.5, "weight_decay": 0.1}),
            Setting({"lr": 0.02, "eps": (1e-2, 1e-1), "clip_threshold": 3.0}),
        ],
        "pytorch_optimizer",
        shapes=SHAPES,
    ),
    Oracle(
        "sm3",
        "pytorch_optimizer.SM3",
        torch_class(pytorch_optimizer.SM3, foreach=False),
        [Setting(), Setting({"lr": 0.02, "momentum": 0.9, "eps": 1e-3})],
        "pytorch_optimizer",
        shapes=(*SHAPES, (2, 3, 1, 2, 2)),
        learns={"lr": 0.5},
    ),
    Oracle(
        "adamp",
        "recurrence, the paper's Algorithm 2, debiased",
        each(adamp),
        [
            Setting(),
            Setting({"lr": 0.01, "weight_decay": 0.1, "delta": 2.0, "eps": 1e-3}),
            Setting({"lr": 0.01, "betas": (0.8, 0.95), "wd_ratio": 0.5, "delta": 0.5, "nesterov": True}),
            Setting({"delta": 1.0, "weight_decay": 0.2, "wd_ratio": 0.5}),
        ],
        shapes=SHAPES,
    ),
    Oracle(
        "sgdp",
        "pytorch_optimizer.SGDP",
        torch_class(pytorch_optimizer.SGDP),
        [
            Setting(),
            Setting({"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "delta": 2.0, "eps": 1e-3}),
            Setting({"momentum": 0.8, "dampening": 0.2, "nesterov": True, "delta": 1.0, "wd_ratio": 0.5}),
        ],
        "pytorch_optimizer",
        shapes=SHAPES,
    ),
    Oracle(
        "neuron_norm",
        "recurrence, the paper's Algorithm 1; after sgd",
        each(neuron_norm),
        [Setting(), Setting({"lr": 0.02, "beta2": 0.8, "eps": 1e-3})],
        chain=("sgd", "neuron_norm"),
        shapes=SHAPES,
    ),
]
