"""Optimisers.jl's rules, Gen.jl's step that decays, and further rules that are mostly element-wise.

The recurrences are written from Optimisers.jl's and Gen.jl's source, and from papers. They are in another
form than the rules: averages are sums over all gradients so far, powers of beta are running products.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytorch_optimizer

from oracles import Oracle, Setting, each, torch_class

Array = np.ndarray
Recurrence = Iterator[Array]


def discounted(history: list[Array], beta: float) -> Array:
    """The sum of the history, each entry weighted by beta to the power of its age."""
    ages = np.arange(len(history))[::-1]
    return np.tensordot(np.power(beta, ages), np.stack(history), 1)


def descent(p: Array, lr: float = 0.1) -> Recurrence:
    start, total = p.copy(), np.zeros_like(p)
    while True:
        total = total + (yield p)
        p = start - lr * total


def momentum(p: Array, lr: float = 0.01, momentum: float = 0.9) -> Recurrence:
    history: list[Array] = []
    while True:
        history.append((yield p))
        p = p - lr * discounted(history, momentum)


def nesterov(p: Array, lr: float = 0.001, momentum: float = 0.9) -> Recurrence:
    velocity = np.zeros_like(p)
    while True:
        g = yield p
        d = -(momentum**2) * velocity + (1 + momentum) * lr * g
        velocity = momentum * velocity - lr * g
        p = p - d


def adagrad(p: Array, lr: float = 0.1, eps: float = 1e-8) -> Recurrence:
    squares = [np.full_like(p, eps)]
    while True:
        g = yield p
        squares.append(np.square(g))
        p = p - lr * g / (np.sqrt(np.sum(squares, axis=0)) + eps)


def rmsprop(
    p: Array, lr: float = 0.001, alpha: float = 0.9, eps: float = 1e-8, centred: bool = False
) -> Recurrence:
    history: list[Array] = []
    while True:
        g = yield p
        history.append(g)
        variance = (1 - alpha) * discounted([h * h for h in history], alpha)
        if centred:
            variance = np.clip(variance - ((1 - alpha) * discounted(history, alpha)) ** 2, 0, None)
        p = p - lr * g / (np.sqrt(variance) + eps)


def rprop(
    p: Array,
    lr: float = 1e-3,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50),
) -> Recurrence:
    before, size = np.zeros_like(p), np.full_like(p, lr)
    while True:
        g = (yield p).copy()
        same, turned = np.sign(before) == np.sign(g), np.sign(before) == -np.sign(g)
        same, turned = same & (g != 0), turned & (g != 0)
        size[same] = np.clip(size[same] * etas[1], None, step_sizes[1])
        size[turned] = np.clip(size[turned] * etas[0], step_sizes[0], None)
        g[turned] = 0
        before = g
        p = p - size * np.sign(g)


class Moments:
    """Adam's averages as sums over all gradients, and the powers of the betas as products."""

    def __init__(self, betas: tuple[float, ...]):
        self.betas = betas
        self.history: list[Array] = []
        self.power1 = self.power2 = 1.0

    def see(self, g: Array) -> tuple[Array, Array]:
        """The averages of the gradients and of their squares, neither debiased."""
        beta1, beta2 = self.betas[:2]
        self.history.append(g)
        self.power1, self.power2 = self.power1 * beta1, self.power2 * beta2
        squares = [h * h for h in self.history]
        return (1 - beta1) * discounted(self.history, beta1), (1 - beta2) * discounted(squares, beta2)

    def debiased(self, g: Array) -> tuple[Array, Array]:
        m, v = self.see(g)
        return m / (1 - self.power1), v / (1 - self.power2)


BETAS = (0.9, 0.999)


def radam(p: Array, lr: float = 1e-3, betas: tuple[float, float] = BETAS, eps: float = 1e-8) -> Recurrence:
    moments, t = Moments(betas), 0
    longest = 2 / (1 - betas[1]) - 1
    while True:
        m, v = moments.debiased((yield p))
        t += 1
        length = longest - 2 * t * moments.power2 / (1 - moments.power2)
        if length <= 4:
            p = p - lr * m
            continue
        shrink = (length - 4) / (longest - 4) * (length - 2) / (longest - 2) * longest / length
        p = p - lr * np.sqrt(shrink) * m / (np.sqrt(v) + eps)


def amsgrad(p: Array, lr: float = 1e-3, betas: tuple[float, float] = BETAS, eps: float = 1e-8) -> Recurrence:
    moments, largest = Moments(betas), np.full_like(p, eps)
    while True:
        m, v = moments.see((yield p))
        largest = np.maximum(largest, v + moments.power2 * eps)
        p = p - lr * (m + moments.power1 * eps) / (np.sqrt(largest) + eps)


def nadam(p: Array, lr: float = 1e-3, betas: tuple[float, float] = BETAS, eps: float = 1e-8) -> Recurrence:
    moments = Moments(betas)
    while True:
        g = yield p
        m, v = moments.debiased(g)
        ahead = betas[0] * m * (1 - moments.power1) / (1 - moments.power1 * betas[0])
        now = (1 - betas[0]) * g / (1 - moments.power1)
        p = p - lr * (ahead + now) / (np.sqrt(betas[1] * v) + eps)


def adamax(p: Array, lr: float = 1e-3, betas: tuple[float, float] = BETAS, eps: float = 1e-8) -> Recurrence:
    moments = Moments(betas)
    while True:
        m, _ = moments.debiased((yield p))
        ages = range(len(moments.history) - 1, -1, -1)
        largest = np.max([betas[1] ** k * np.abs(h) for k, h in zip(ages, moments.history, strict=True)], 0)
        p = p - lr * m / (largest + eps)


def oadam(
    p: Array, lr: float = 1e-3, betas: tuple[float, float] = (0.5, 0.9), eps: float = 1e-8
) -> Recurrence:
    moments, place = Moments(betas), p.copy()
    while True:  # `place` is where Adam would be; the parameter is one update further on
        m, v = moments.debiased((yield p))
        update = lr * m / (np.sqrt(v) + eps)
        place = place - update
        p = place - update


def adabelief(
    p: Array, lr: float = 1e-3, betas: tuple[float, float] = BETAS, eps: float = 1e-16
) -> Recurrence:
    moments, errors, gathered = Moments(betas), [], 0.0
    while True:
        g = yield p
        m, _ = moments.see(g)
        errors.append((g - m) ** 2)
        gathered = betas[1] * gathered + eps
        s = (1 - betas[1]) * discounted(errors, betas[1]) + gathered
        m_hat, s_hat = m / (1 - moments.power1), s / (1 - moments.power2)
        p = p - lr * m_hat / (np.sqrt(s_hat) + eps)


def lion_as_coded(p: Array, lr: float = 1e-3, betas: tuple[float, float] = BETAS) -> Recurrence:
    history: list[Array] = []
    while True:
        history.append((yield p))
        m = betas[1] * discounted(history, 1 - betas[1])
        p = p - lr * np.sign((betas[1] - betas[0]) * history[-1] + betas[0] * m)


def adamw(
    p: Array,
    lr: float = 1e-3,
    betas: tuple[float, float] = BETAS,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    couple: bool = True,
) -> Recurrence:
    moments = Moments(betas)
    while True:
        m, v = moments.debiased((yield p))
        d = m / (np.sqrt(v) + eps)
        p = p - lr * (d + weight_decay * p) if couple else p - (lr * d + weight_decay * p)


def descent_with_l1(p: Array, lr: float = 0.1, sign_decay: float = 1e-3) -> Recurrence:
    while True:
        g = yield p
        p = p - lr * (g + np.where(p == 0, 0, np.copysign(sign_decay, p)))


def gen_gradient_descent(p: Array, lr: float = 1e-3, beta: float = 100.0) -> Recurrence:
    t = 1
    while True:
        p = p - (yield p) * (lr * (beta + 1) / (beta + t))
        t += 1


def julia(rule, name, make, *settings, **more):
    source = f"recurrence from Optimisers.jl's {name}"
    return Oracle(rule, source, each(make), [Setting(s) for s in settings], **more)


OPTIMISERS = [
    julia("descent", "Descent", descent, {}, {"lr": 0.01}),
    julia("momentum", "Momentum", momentum, {}, {"lr": 0.05, "momentum": 0.5}),
    julia("nesterov", "Nesterov", nesterov, {}, {"lr": 0.05, "momentum": 0.5}),
    julia("optimisers_adagrad", "AdaGrad", adagrad, {}, {"lr": 0.01, "eps": 0.1}, learns={"lr": 0.3}),
    julia("optimisers_rmsprop", "RMSProp", rmsprop, {}, {"lr": 0.01, "alpha": 0.99, "centred": True}),
    julia(
        "optimisers_rprop",
        "Rprop",
        rprop,
        {},
        {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (1e-3, 0.02)},
    ),
    julia("optimisers_radam", "RAdam", radam, {}, {"lr": 0.01, "betas": (0.8, 0.6), "eps": 1e-3}),
    julia("amsgrad", "AMSGrad", amsgrad, {}, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-2}),
    julia("optimisers_nadam", "NAdam", nadam, {}, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-2}),
    julia("optimisers_adamax", "AdaMax", adamax, {}, {"lr": 0.01, "betas": (0.5, 0.8), "eps": 1e-2}),
    julia("oadam", "OAdam", oadam, {}, {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-2}),
    julia("optimisers_adabelief", "AdaBelief", adabelief, {}, {"lr": 0.01, "eps": 1e-3}),
    julia("optimisers_lion", "Lion", lion_as_coded, {}, {"lr": 0.01, "betas": (0.8, 0.9)}),
    julia(
        "optimisers_adamw",
        "AdamW",
        adamw,
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.01, "couple": False},
    ),
    julia(
        "sign_decay",
        "SignDecay",
        descent_with_l1,
        {},
        {"lr": 0.01, "sign_decay": 0.5},
        chain=("sign_decay", "descent"),
    ),
    Oracle(
        "gen_decay",
        "recurrence from Gen.jl's GradientDescent",
        each(gen_gradient_descent),
        [Setting(), Setting({"lr": 0.1, "beta": 1})],
    ),
]


def mars(
    p: Array,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    gamma: float = 0.025,
) -> Recurrence:
    moments, before, largest = Moments(betas), np.zeros_like(p), np.zeros_like(p)
    weight = gamma * betas[0] / (1 - betas[0])
    while True:
        g = yield p
        c = (1 + weight) * g - weight * before
        length = np.sqrt((c * c).sum())
        m, v = moments.see(c if length <= 1 else c / length)
        largest = np.maximum(largest, v)
        v_hat = (largest if amsgrad else v) / (1 - moments.power2)
        before = g
        p = p - lr * (m / (1 - moments.power1) / (np.sqrt(v_hat) + eps) + weight_decay * p)


def adamc(
    p: Array,
    lr: float = 1e-3,
    betas: tuple[float, float] = BETAS,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    normalized: bool = True,
    max_lr: float | None = None,
) -> Recurrence:
    moments = Moments(betas)
    share = lr / max_lr if normalized and max_lr else 1.0
    while True:
        m, v = moments.debiased((yield p))
        p = p - lr * (m / (np.sqrt(v) + eps) + share * weight_decay * p)


def adapnm(
    p: Array,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 1.0),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = True,
) -> Recurrence:
    moments, largest = Moments(betas), np.zeros_like(p)
    positive = negative = np.zeros_like(p)
    size = np.hypot(1 + betas[2], betas[2])
    while True:
        _, v = moments.see((yield p))
        history = moments.history
        keep = betas[0] ** 2
        positive, negative = (1 - keep) * discounted(history[::-2][::-1], keep), positive
        largest = np.maximum(largest, v)
        v_hat = (largest if amsgrad else v) / (1 - moments.power2)
        d = (positive + betas[2] * (positive - negative)) / size / (1 - moments.power1)
        p = p - lr * (d / (np.sqrt(v_hat) + eps) + weight_decay * p)


def adam_atan2(
    p: Array,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    a: float = 1.27,
    b: float = 1.0,
) -> Recurrence:
    moments = Moments(betas)
    while True:
        m, v = moments.debiased((yield p))
        angle = np.angle(b * np.sqrt(v) + 1j * m)
        p = p - lr * (a * angle + weight_decay * p)


def recurrence(rule, make, *settings, **more):
    return Oracle(rule, "recurrence from the paper", each(make), [Setting(s) for s in settings], **more)


def package(rule, name, *settings, fixed=None, **more):
    kind = getattr(pytorch_optimizer, name)
    make = torch_class(kind, foreach=False, **(fixed or {}))
    return Oracle(rule, f"pytorch_optimizer.{name}", make, settings, "pytorch_optimizer", **more)


PAPERS = [
    package(
        "ftrl",
        "FTRL",
        Setting(),
        Setting({"lr": 0.1, "beta": 1, "lambda_1": 2.0, "lambda_2": 0.5}),
        learns={"lr": 0.3},
    ),
    package("grams", "Grams", Setting(), Setting({"lr": 0.01, "weight_decay": 0.1, "betas": (0.5, 0.9)})),
    recurrence(
        "mars",
        mars,
        {},
        {"lr": 0.01, "weight_decay": 0.1, "gamma": 0.5, "amsgrad": True},
        {"lr": 0.01, "betas": (0, 0.9), "eps": 1e-3},
    ),
    recurrence(
        "adamc",
        adamc,
        {"weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.5, "max_lr": 0.05, "eps": 1e-3},
        {"lr": 0.01, "weight_decay": 0.5, "max_lr": 0.05, "normalized": False},
    ),
    recurrence(
        "adapnm",
        adapnm,
        {},
        {"lr": 0.01, "betas": (0.8, 0.9, 0.5), "weight_decay": 0.1, "amsgrad": False, "eps": 1e-3},
    ),
    recurrence(
        "adam_atan2",
        adam_atan2,
        {},
        {"lr": 0.01, "weight_decay": 0.1, "a": 1.0, "b": 2.0},
    ),
    package(
        "adabound",
        "AdaBound",
        Setting(),
        Setting(
            {"lr": 0.01, "weight_decay": 0.1, "gamma": 0.1, "final_lr": 0.02, "amsbound": True},
            {"lr": 0.01, "weight_decay": 0.1, "gamma": 0.1, "final_lr": 0.02, "ams_bound": True},
        ),
        fixed={"weight_decouple": False},
    ),
    package(
        "sgdw",
        "SGDW",
        Setting(),
        Setting({"lr": 0.01, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
        Setting({"lr": 0.01, "momentum": 0.8, "nesterov": True}),
    ),
]

ORACLES = [*OPTIMISERS, *PAPERS]
