"""Rules with a value for each row, column or unit of a tensor."""

from __future__ import annotations

import numpy as np
import torch

from oracles import Oracle, Setting, each, torch_class

SHAPES = ((7,), (6, 5), (4, 3, 2), (2, 3, 4, 5))


def units(x):
    """All dimensions but the first; of a single dimension, that one."""
    return tuple(range(1, x.ndim)) if x.ndim > 1 else None


def by_unit(x):
    """The Euclidean norm of each unit, found row by row."""
    if x.ndim < 2:
        return np.linalg.norm(x)
    sizes = [np.linalg.norm(row.ravel()) for row in x]
    return np.array(sizes).reshape(-1, *[1] * (x.ndim - 1))


def centralised(p, lr=1e-3):
    """Yong et al.: the gradient's projection beside the vector of ones, for each unit."""
    g = yield
    while True:
        if g.ndim > 1:
            flat = g.reshape(len(g), -1)
            ones = np.ones(flat.shape[1]) / np.sqrt(flat.shape[1])
            g = (flat - np.outer(flat @ ones, ones)).reshape(g.shape)
        p = p - lr * g
        g = yield p


def clipped(p, lr=1e-3, clipping=1e-2, eps=1e-3):
    """Brock et al., equation 3."""
    g = yield
    while True:
        size, weight = by_unit(g), np.maximum(by_unit(p), eps)
        scale = np.minimum(1.0, clipping * weight / np.where(size == 0, 1, size))
        p = p - lr * scale * g
        g = yield p


def rowwise(p, lr=1e-2, eps=1e-8):
    """One sum of squares for each row, divided by how many columns there are."""
    total = np.zeros((*p.shape[:-1], 1))
    g = yield
    while True:
        total = total + np.square(g).sum(-1, keepdims=True)
        p = p - lr * g / (np.sqrt(total / p.shape[-1]) + eps)
        g = yield p


def adam_mini(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Zhang et al., Algorithm 1, with moments as weighted sums of what came so far."""
    moments, squares, weights = np.zeros_like(p), 0.0, np.zeros(2)
    g = yield
    while True:
        moments = betas[0] * moments + (1 - betas[0]) * g
        square = (g * g).mean(axis=units(g), keepdims=True)
        squares = betas[1] * squares + (1 - betas[1]) * square
        weights = weights * betas + (1 - np.array(betas))
        step = moments / weights[0] / (np.sqrt(squares / weights[1]) + eps)
        p = p - lr * (weight_decay * p + step)
        g = yield p


ORACLES = [
    Oracle(
        "adafactor",
        "torch.optim.Adafactor",
        torch_class(torch.optim.Adafactor, foreach=False),
        [
            Setting({"eps": (torch.finfo(torch.float64).eps, 1e-3)}, {}),
            Setting({"lr": 0.1, "d": 2.0, "weight_decay": 0.1, "beta2_decay": -0.5, "eps": (1e-6, 1e-2)}),
        ],
        "torch",
        shapes=SHAPES,
        learns={"lr": 0.1},
    ),
    Oracle(
        "gradient_centralization",
        "recurrence, the paper's projection; before sgd",
        each(centralised),
        [Setting(), Setting({"lr": 0.02})],
        chain=("gradient_centralization", "sgd"),
        shapes=SHAPES,
    ),
    Oracle(
        "agc",
        "recurrence, the paper's equation 3; before sgd",
        each(clipped),
        [Setting({"lr": 0.01}), Setting({"lr": 0.02, "clipping": 0.3, "eps": 0.5})],
        chain=("agc", "sgd"),
        shapes=SHAPES,
    ),
    Oracle(
        "rowwise_adagrad",
        "recurrence, FBGEMM's formula",
        each(rowwise),
        [Setting(), Setting({"lr": 0.1, "eps": 1e-3})],
        shapes=SHAPES,
        learns={"lr": 0.3},
    ),
    Oracle(
        "adam_mini",
        "recurrence, the paper's Algorithm 1",
        each(adam_mini),
        [Setting(), Setting({"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1})],
        shapes=SHAPES,
    ),
]
