"""Element-wise rules and transforms, by their packages, or by recurrences from their papers."""

from __future__ import annotations

import lion_pytorch
import numpy as np
import pytorch_optimizer
import torch

from oracles import Oracle, Setting, each, torch_class


def averages(p, betas):
    """Adam's two debiased averages, as sums of weighted gradients over the sums of the weights."""
    sums, weights = [np.zeros_like(p), np.zeros_like(p)], [0.0, 0.0]
    g = yield
    while True:
        for i, (beta, x) in enumerate(zip(betas, (g, g * g), strict=True)):
            sums[i] = beta * sums[i] + x
            weights[i] = beta * weights[i] + 1
        g = yield sums[0] / weights[0], sums[1] / weights[1]


def started(generator):
    next(generator)
    return generator


def lamb(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-2):
    """You et al., 2020, Algorithm 2, with phi(x) = x and 1 for a ratio that has a norm of 0."""
    adam = started(averages(p, betas))
    g = yield
    while True:
        m, v = adam.send(g)
        r = m / (np.sqrt(v) + eps) + weight_decay * p
        sizes = np.sqrt(np.vdot(p, p)), np.sqrt(np.vdot(r, r))
        ratio = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
        p = p - lr * ratio * r
        g = yield p


def cautious_adamw(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
    """Liang et al., 2024, in the form of their c_adamw.py: the mask over its mean, at least 1e-3."""
    adam = started(averages(p, betas))
    g = yield
    while True:
        m, v = adam.send(g)
        kept = np.sign(m) * np.sign(g) > 0
        share = max(np.count_nonzero(kept) / kept.size, 1e-3)
        p = (1 - lr * weight_decay) * p - np.where(kept, lr / share * m / (np.sqrt(v) + eps), 0)
        g = yield p


def clipped_norm(p, max_norm=1.0, lr=1e-3, momentum=0.0):
    """Pascanu et al., 2013, Algorithm 1, before SGD: a norm above the threshold becomes the threshold."""
    b = np.zeros_like(p)
    g = yield
    while True:
        size = np.sqrt(np.vdot(g, g))
        if size > max_norm:
            g = g / size * max_norm
        b = momentum * b + g
        p = p - lr * b
        g = yield p


def clipped_value(params, max_value=1.0, **options):
    """torch's clip_grad_value_ before torch's SGD."""
    running = torch_class(torch.optim.SGD, foreach=False)(params, **options)
    step = yield next(running)
    while True:
        tensors = [torch.nn.Parameter(torch.tensor(g)) for g in step.grads]
        for x in tensors:
            x.grad = x.detach().clone()
        torch.nn.utils.clip_grad_value_(tensors, max_value, foreach=False)
        step.grads[:] = [x.grad.numpy() for x in tensors]
        step = yield running.send(step)


def yogi(p, lr=1e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0, initial_accumulator=1e-6, debias=False):
    """Zaheer et al., 2018: v moves towards the squared gradient by a share of it."""
    m, v = np.zeros_like(p), np.full_like(p, initial_accumulator)
    product = np.ones(2)
    g = yield
    while True:
        m += (1 - betas[0]) * (g - m)
        step = (1 - betas[1]) * np.square(g)
        v = np.where(v > np.square(g), v - step, np.where(v < np.square(g), v + step, v))
        product *= betas
        c = 1 - product if debias else np.ones(2)
        p = (1 - lr * weight_decay) * p - lr / c[0] * m / (np.sqrt(v) / np.sqrt(c[1]) + eps)
        g = yield p


def laprop(p, lr=4e-4, betas=(0.9, 0.999), eps=1e-15, weight_decay=0.0):
    """Ziyin et al., 2020: gradients over the root of their average square, then averaged."""
    square = started(averages(p, betas))
    momentum = started(averages(p, betas))
    g = yield
    while True:
        _, n = square.send(g)
        m, _ = momentum.send(g / (np.sqrt(n) + eps))
        p = p - lr * (m + weight_decay * p)
        g = yield p


def diffgrad(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    """Dubey et al., 2020: Adam times a sigmoid, here half of 1 + tanh(x/2)."""
    adam = started(averages(p, betas))
    before = np.zeros_like(p)
    g = yield
    while True:
        m, v = adam.send(g)
        friction = (1 + np.tanh(np.abs(g - before) / 2)) / 2
        p = p - lr * friction * m / (np.sqrt(v) + eps)
        before = g
        g = yield p


class QHAdam(pytorch_optimizer.QHAdam):
    """The package's class with its two weights in float64: it keeps them in float32."""

    def init_group(self, group, **kwargs):
        super().init_group(group, **kwargs)
        for p in group["params"]:
            for name in ("beta1_weight", "beta2_weight"):
                self.state[p][name] = self.state[p][name].double()


def package(rule, name, *settings, kind=None, fixed=None, **options):
    """An oracle that is a class of pytorch_optimizer, in its loop over single tensors.

    A setting is ours, or a pair of ours and theirs.
    """
    make = torch_class(kind or getattr(pytorch_optimizer, name), **{"foreach": False, **(fixed or {})})
    both = [Setting(*s) if isinstance(s, tuple) else Setting(s) for s in settings]
    return Oracle(rule, f"pytorch_optimizer.{name}", make, both, "pytorch_optimizer", **options)


def paper(rule, source, recurrence, *settings, **options):
    return Oracle(rule, source, each(recurrence), [Setting(s) for s in settings], **options)


ORACLES = [
    Oracle(
        "lion",
        "lion_pytorch.Lion",
        torch_class(lion_pytorch.Lion),
        [Setting({}), Setting({"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1})],
        "lion-pytorch",
    ),
    paper(
        "lamb",
        "Algorithm 2 of the paper",
        lamb,
        {},
        {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3},
        {"weight_decay": 0.0, "betas": (0.8, 0.95)},
        learns={"lr": 0.02},
    ),
    package(
        "stable_adamw",
        "StableAdamW",
        ({}, {"eps": 1e-6}),
        {"lr": 0.01, "betas": (0.8, 0.999), "eps": 0.3, "weight_decay": 0.1},
    ),
    Oracle(
        "clip_value",
        "torch.nn.utils.clip_grad_value_",
        clipped_value,
        [Setting({}), Setting({"max_value": 0.3, "lr": 0.1, "momentum": 0.9})],
        "torch",
        chain=("clip_value", "sgd"),
    ),
    paper(
        "clip_norm",
        "Algorithm 1 of the paper",
        clipped_norm,
        {},
        {"max_norm": 2.5, "lr": 0.1, "momentum": 0.9},
        chain=("clip_norm", "sgd"),
    ),
    Oracle(
        "weight_decay",
        "torch.optim.Adam's weight_decay",
        torch_class(torch.optim.Adam, foreach=False),
        [Setting({"weight_decay": w, "adam_weight_decay": 0}, {"weight_decay": w}) for w in (5e-4, 0.3)],
        "torch",
        chain=("weight_decay", "adam"),
    ),
    paper(
        "cautious",
        "the authors' c_adamw.py, written again",
        cautious_adamw,
        {},
        {"lr": 0.01, "betas": (0.95, 0.99), "weight_decay": 0.1},
        chain=("adamw", "cautious"),
    ),
    package("tiger", "Tiger", {}, {"lr": 0.01, "beta": 0.8, "weight_decay": 0.1}),
    package("signum", "SignSGD", {}, {"lr": 0.01, "momentum": 0.0}),
    package(
        "adabelief", "AdaBelief", {}, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    ),
    paper(
        "yogi",
        "the paper's update",
        yogi,
        {},
        {"lr": 0.03, "betas": (0.8, 0.95), "initial_accumulator": 1.0, "weight_decay": 0.1, "debias": True},
    ),
    package(
        "adan",
        "Adan",
        {},
        ({"lr": 0.01, "betas": (0.9, 0.8, 0.95), "weight_decay": 0.1},),
        (
            {"weight_decay": 0.1, "no_prox": True},
            {"weight_decay": 0.1, "weight_decouple": True},
        ),
    ),
    package(
        "ademamix",
        "AdEMAMix",
        ({}, {"alpha": 2.0}),
        (
            {"lr": 0.01, "alpha": 5.0, "weight_decay": 0.1, "alpha_warmup": 50, "beta3_warmup": 50},
            {"lr": 0.01, "alpha": 5.0, "weight_decay": 0.1, "t_alpha_beta3": 50},
        ),
        fixed={"weight_decouple": True},
    ),
    # The package counts one step more than the authors in the bound of the clipping.
    package(
        "adopt",
        "ADOPT",
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.1},
        fixed={"weight_decouple": True, "clip_lambda": lambda step: (step - 1) ** 0.25},
    ),
    paper(
        "laprop",
        "the paper's update",
        laprop,
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.1},
    ),
    package(
        "qhadam",
        "QHAdam",
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "nus": (0.7, 0.9), "eps": 1e-3},
        {"betas": (0.0, 0.9), "nus": (0.5, 1.0)},
        kind=QHAdam,
    ),
    package(
        "qhm",
        "QHM",
        ({}, {"lr": 1.0, "momentum": 0.999, "nu": 0.7}),
        {"lr": 0.01, "momentum": 0.9, "nu": 0.4},
    ),
    # The package adds eps to lr.
    package(
        "madgrad",
        "MADGRAD",
        ({}, {"lr": 1e-2 - 1e-6}),
        ({"lr": 0.05, "momentum": 0.5, "eps": 1e-3}, {"lr": 0.05 - 1e-3, "momentum": 0.5, "eps": 1e-3}),
        ({"momentum": 0.0}, {"lr": 1e-2 - 1e-6, "momentum": 0.0}),
    ),
    paper(
        "diffgrad",
        "the paper's update",
        diffgrad,
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 0.1},
    ),
    package("aggmo", "AggMo", {}, {"lr": 0.01, "betas": (0.3, 0.8, 0.95)}),
]
