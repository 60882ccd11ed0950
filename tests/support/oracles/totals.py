"""Rules with one number for all tensors, rules that are handed more than gradients, and rules with noise."""

from __future__ import annotations

import numpy as np
import prodigyopt
import pytorch_optimizer
import torch

import optgen
from oracles import Oracle, Setting, Step, each, torch_class
from oracles.torch_optim import in_float64


def settings(*options):
    return [Setting(o) for o in options]


class ClippedSGD(torch.optim.SGD):
    """torch's clip_grad_norm_ over all tensors before torch's SGD."""

    def __init__(self, params, max_norm=1.0, **options):
        super().__init__(params, foreach=False, **options)
        self.max_norm = max_norm

    def step(self):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], self.max_norm, foreach=False)
        super().step()


def on_means(params, n=3, **options):
    """torch's AdamW in every n-th step, on the mean of the gradients since the last."""
    running = torch_class(torch.optim.AdamW, foreach=False)(params, **options)
    next(running)
    result, gathered = params, []
    step = yield
    while True:
        gathered.append(step.grads)
        if len(gathered) == n:
            means = [sum(of_one) / n for of_one in zip(*gathered, strict=True)]
            result, gathered = running.send(Step(step.t // n, means)), []
        step = yield result


def quiet_prodigy(params, decouple=True, **options):
    """The package's class, which prints when it is told to decouple a decay as it does by default."""
    made = prodigyopt.Prodigy(params, decouple=False, **options)
    for group in made.param_groups:
        group["decouple"] = decouple
    return made


class DAdaptSGD(pytorch_optimizer.DAdaptSGD):
    """The package's class with its first norm in float64: it takes that in float32."""

    def step(self):
        for group in self.param_groups:
            if group["step"] == 0:
                whole = torch.cat([p.grad.flatten() for p in group["params"]])
                group.update(step=1, g0_norm=float(whole.norm()))
        super().step()


def dadaptation(name, decouple=False, use_bias_correction=False):
    """A class of pytorch_optimizer, whose sums are of torch's default dtype."""
    kind = DAdaptSGD if name == "DAdaptSGD" else getattr(pytorch_optimizer, name)

    def made(params, decouple=decouple, use_bias_correction=use_bias_correction, **options):
        return kind(
            params, weight_decouple=decouple, bias_correction=use_bias_correction, foreach=False, **options
        )

    return in_float64(torch_class(made))


def flat(arrays):
    """All tensors as one vector, which is what the papers write of."""
    return np.concatenate([np.ravel(a) for a in arrays])


def whole(rule):
    """A recurrence over all tensors from one over a single vector, which receives (g, inputs)."""

    def make(params, **options):
        ends = np.cumsum([p.size for p in params])[:-1]
        running = rule(flat(params), **options)
        next(running)
        step = yield
        while True:
            inputs = {k: flat(v) if isinstance(v, list) else v for k, v in step.inputs.items()}
            x = running.send((flat(step.grads), inputs))
            parts = np.split(x, ends)
            step = yield [part.reshape(p.shape) for part, p in zip(parts, params, strict=True)]

    return make


def distance_over_gradients(x, lr=1.0, reps_rel=1e-6, eps=1e-8, weight_decay=0.0):
    """Section 2 of the paper, from lists of all distances and all squared norms."""
    start, squares = x, [eps]
    distances = [reps_rel * (1 + np.linalg.norm(x))]
    g = yield
    while True:
        g = g + weight_decay * x
        distances.append(np.linalg.norm(x - start))
        squares.append(g @ g)
        x = x - lr * max(distances) / np.sqrt(sum(squares)) * g
        g = yield x


def dog(x, **options):
    running = distance_over_gradients(x, **options)
    x = next(running)
    g, _ = yield
    while True:
        g, _ = yield running.send(g)


@each
def ldog(p, **options):
    running = distance_over_gradients(p.ravel(), **options)
    next(running)
    g = yield
    while True:
        g = yield running.send(g.ravel()).reshape(p.shape)


def dowg(x, lr=1.0, eps=1e-4):
    """Algorithm 1 of the paper without its projection, and with the code's eps."""
    start, points, weighted = x, [], []
    g, _ = yield
    while True:
        points.append(x)
        square = max(eps, *(np.square(y - start).sum() for y in [start, *points]))
        weighted.append(square * np.square(g).sum())
        x = x - lr * square * g / (np.sum(weighted) ** 0.5 + eps)
        g, _ = yield x


def momo(x, lr=1.0, beta=0.9, lb=0.0, weight_decay=0.0, bias_correction=False):
    """Algorithm 1 of the paper, its averages as weighted sums over all earlier steps."""
    seen = []
    g, inputs = yield
    while True:
        seen.append((inputs["loss"], g @ x, g))
        weights = (1 - beta) * beta ** np.arange(len(seen) - 1, -1, -1.0)
        if not bias_correction:
            weights[0] /= 1 - beta
        f, inner, d = (
            sum(w * a for w, a in zip(weights, column, strict=True)) for column in zip(*seen, strict=True)
        )
        scale, rho = 1 + lr * weight_decay, weights.sum()
        model = scale * (f - rho * lb - inner) + d @ x
        x = (x - min(lr / rho, max(model, 0) / (d @ d)) * d) / scale
        g, inputs = yield x


def polyak(x, lr=1.0, c=0.5, f_min=0.0):
    """SPS_max of the paper."""
    g, inputs = yield
    while True:
        gap = inputs["loss"] - f_min
        if gap > 0:
            x = x - min(gap / (c * np.square(g).sum()), lr) * g
        g, inputs = yield x


class AliG(pytorch_optimizer.AliG):
    """The package's class with eps as an option, and the squared norm not in float32, as it takes it."""

    def __init__(self, params, lr=0.1, eps=1e-5, **options):
        super().__init__(params, max_lr=lr, foreach=False, **options)
        self.eps = eps

    def compute_step_size(self, loss):
        return loss / (sum(float(p.grad.square().sum()) for p in self.param_groups[0]["params"]) + self.eps)


def handed(kind, name, as_step, **fixed):
    """An oracle from a class whose `step` takes the further input, if `as_step` does not give None."""

    def make(params, **options):
        tensors = [torch.nn.Parameter(torch.tensor(p, dtype=torch.float64)) for p in params]
        optimizer = kind(tensors, **fixed, **options)
        step = yield
        while True:
            for p, g in zip(tensors, step.grads, strict=True):
                p.grad = torch.tensor(g, dtype=torch.float64)
            optimizer.step(**as_step(step.inputs[name], step.t, options))
            step = yield [p.detach().numpy().copy() for p in tensors]

    return make


def hessian(value, t, options):
    return {"hessian": [torch.tensor(h) for h in value]}


def hessian_every_k(value, t, options):
    return hessian(value, t, options) if (t - 1) % options["update_period"] == 0 else {}


def averaged_hessian(value, t, options):
    """The package averages only the diagonals that it estimates itself, so that is done here."""
    means = [np.ones_like(h) * np.abs(h).mean((2, 3), keepdims=True) if h.ndim == 4 else h for h in value]
    return hessian(means, t, options)


def a_loss(t, shapes):
    """A falling loss, below the bounds of some settings now and then."""
    return {"loss": float(np.float32(3 * 0.97**t * (1.2 + np.sin(t))))}


def a_diagonal(t, shapes):
    random = np.random.default_rng(t)
    return {"hess": [random.standard_normal(s).astype(np.float32).astype(np.float64) for s in shapes]}


def noise_of(params, seed):
    """optgen's normal numbers for each step, by a rule that is nothing but them."""
    tensors = [torch.nn.Parameter(torch.zeros(p.shape, dtype=torch.float64)) for p in params]
    optimizer = optgen.optimizer("p = normal()", "Noise")(tensors, seed=seed, backend="numpy")
    while True:
        for p in tensors:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        yield [p.detach().numpy().copy() for p in tensors]


def noisy(rule):
    """A recurrence over all tensors from one over a single tensor, which receives (g, normal numbers)."""

    def make(params, seed=0, **options):
        running = [rule(p, **options) for p in params]
        for r in running:
            next(r)
        step = yield
        for numbers in noise_of(params, seed):
            sent = zip(running, step.grads, numbers, strict=True)
            step = yield [r.send((g, n)) for r, g, n in sent]

    return make


@noisy
def sgld(p, lr=1e-3, temperature=1.0):
    """Equation 4 of the paper; the gradient is of the negative logarithm."""
    g, n = yield
    while True:
        p = p + 0.5 * lr * -g + n * np.sqrt(temperature * lr)
        g, n = yield p


@noisy
def psgld(p, lr=1e-3, alpha=0.99, eps=1e-5, num_data=1.0, temperature=1.0):
    """Algorithm 1 of the paper without Gamma, V as a sum over all earlier gradients."""
    squares = []
    g, n = yield
    while True:
        squares.append((1 - alpha) * g * g)
        weights = alpha ** np.arange(len(squares) - 1, -1, -1.0)
        step = lr / (eps + np.tensordot(weights, squares, 1) ** 0.5)
        p = p - step * num_data * g / 2 + n * (temperature * step) ** 0.5
        g, n = yield p


@noisy
def sghmc(p, lr=1e-4, friction=0.1, noise=0.0, temperature=1.0):
    """Equation 15 of the paper."""
    v = np.zeros_like(p)
    g, n = yield
    while True:
        dv = -lr * g - friction * v + n * np.sqrt(2 * (friction - noise) * lr * temperature)
        v = v + dv
        p = p + v
        g, n = yield p


@noisy
def noisy_sgd(p, lr=1e-2, eta=0.01, gamma=0.55):
    """Equation 1 of the paper, where t starts at 0."""
    t = 0
    g, n = yield
    while True:
        deviation = (eta / (1 + t) ** gamma) ** 0.5
        p = p - lr * (g + deviation * n)
        t += 1
        g, n = yield p


def sophia_h(params, gamma=0.01, eps=1e-12, lr=6e-4, weight_decay=0.0, update_period=10, **options):
    """The package's class: it clips at gamma and not at 1, and so has other scales."""
    return pytorch_optimizer.SophiaH(
        params,
        lr=lr / gamma,
        p=gamma,
        eps=eps / gamma,
        weight_decay=weight_decay * gamma,
        update_period=update_period,
        foreach=False,
        **options,
    )


def avagrad(x, lr=0.1, betas=(0.9, 0.999), eps=0.1, weight_decay=0.0):
    """Algorithm 2 of the paper, with a decoupled decay."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    g, _ = yield
    while True:
        m = betas[0] * m + (1 - betas[0]) * g
        eta = 1 / (np.sqrt(v) + eps)
        length = np.linalg.norm(eta / np.sqrt(x.size))
        x = x - lr * (weight_decay * x + eta / length * m)
        v = betas[1] * v + (1 - betas[1]) * g * g
        g, _ = yield x


def adai(params, decouple=False, **options):
    """The package's class; its stable decay is AdaiW's."""
    kind = {"weight_decouple": decouple, "stable_weight_decay": decouple}
    return pytorch_optimizer.Adai(params, foreach=False, **kind, **options)


ORACLES = [
    Oracle(
        "clip_global_norm",
        "torch.nn.utils.clip_grad_norm_",
        torch_class(ClippedSGD),
        settings(
            {"lr": 0.01, "max_norm": 10.0},
            {"lr": 0.01, "max_norm": 0.5, "momentum": 0.9, "weight_decay": 0.1},
        ),
        "torch",
        chain=("clip_global_norm", "sgd"),
    ),
    # What it leaves out, tests/rules/test_global_packages.py checks.
    Oracle(
        "skip_if_nonfinite",
        "torch.optim.AdamW, where all is finite",
        torch_class(torch.optim.AdamW, foreach=False),
        settings({}, {"lr": 0.01, "weight_decay": 0.1}),
        "torch",
        chain=("skip_if_nonfinite", "adamw"),
    ),
    Oracle(
        "accum_grad",
        "torch.optim.AdamW on means",
        on_means,
        settings({}, {"lr": 0.01, "weight_decay": 0.1, "n": 2}),
        "torch",
        chain=("accum_grad", "adamw"),
    ),
    # The package scales eps by the next d: too small an eps to tell here.
    Oracle(
        "prodigy",
        "prodigyopt.Prodigy",
        torch_class(quiet_prodigy),
        settings(
            {"d0": 0.01, "d_coef": 0.3, "eps": 1e-30},
            {
                "lr": 0.5,
                "betas": (0.8, 0.95),
                "beta3": 0.9,
                "d0": 0.01,
                "d_coef": 2.0,
                "growth_rate": 1.02,
                "weight_decay": 0.1,
                "use_bias_correction": True,
                "eps": 1e-30,
            },
            {
                "d0": 0.01,
                "weight_decay": 0.1,
                "decouple": False,
                "safeguard_warmup": True,
                "lr": 0.5,
                "eps": 1e-30,
            },
        ),
        "prodigyopt",
        learns={"d0": 0.01},
    ),
    Oracle(
        "dadapt_adam",
        "pytorch_optimizer.DAdaptAdam",
        dadaptation("DAdaptAdam"),
        settings(
            {},
            {"d0": 0.01, "lr": 0.5, "betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.1, "decouple": True},
            {"d0": 1e-3, "weight_decay": 0.1, "use_bias_correction": True, "growth_rate": 1.02},
        ),
        "pytorch_optimizer",
        learns={"d0": 0.1},
    ),
    Oracle(
        "dadapt_sgd",
        "pytorch_optimizer.DAdaptSGD",
        dadaptation("DAdaptSGD"),
        settings({}, {"d0": 0.1, "lr": 2.0, "momentum": 0.5, "growth_rate": 1.05}),
        "pytorch_optimizer",
        learns={"d0": 0.1},
    ),
    Oracle(
        "dadapt_lion",
        "pytorch_optimizer.DAdaptLion",
        dadaptation("DAdaptLion", decouple=True),
        settings({"d0": 1e-3}, {"d0": 0.01, "lr": 0.5, "betas": (0.8, 0.95), "weight_decay": 0.1}),
        "pytorch_optimizer",
        learns={"d0": 0.01},
    ),
    Oracle(
        "dog",
        "the paper's formula",
        whole(dog),
        settings({"reps_rel": 1e-3}, {"lr": 0.5, "reps_rel": 1e-3, "eps": 0.1, "weight_decay": 0.1}),
        learns={"reps_rel": 0.01},
    ),
    Oracle(
        "ldog",
        "the paper's formula",
        ldog,
        settings({"reps_rel": 1e-3}, {"lr": 0.5, "reps_rel": 1e-3, "eps": 0.1, "weight_decay": 0.1}),
        learns={"reps_rel": 0.01},
    ),
    Oracle(
        "dowg",
        "Algorithm 1 of the paper",
        whole(dowg),
        settings({}, {"lr": 0.5, "eps": 0.01}),
        learns={},
    ),
    Oracle(
        "momo",
        "Algorithm 1 of the paper",
        whole(momo),
        settings(
            {},
            {"lr": 0.02, "beta": 0.5, "lb": 0.5, "weight_decay": 0.1},
            {"lr": 0.1, "beta": 0.8, "bias_correction": True},
        ),
        inputs=a_loss,
        learns={},
    ),
    Oracle(
        "alig",
        "pytorch_optimizer.AliG",
        handed(AliG, "loss", lambda loss, t, options: {"closure": lambda: loss}),
        settings({}, {"lr": 0.02, "momentum": 0.9, "eps": 0.1}),
        "pytorch_optimizer",
        inputs=a_loss,
        learns={},
    ),
    Oracle(
        "polyak_sgd",
        "SPS_max of the paper",
        whole(polyak),
        settings({}, {"lr": 0.02, "c": 0.2, "f_min": 0.5}),
        inputs=a_loss,
        learns={},
    ),
    Oracle(
        "sgld",
        "equation 4 of the paper",
        sgld,
        settings({}, {"lr": 0.01, "temperature": 0.1, "seed": 7}),
        learns={"lr": 0.1, "temperature": 0.0},
    ),
    Oracle(
        "psgld",
        "Algorithm 1 of the paper",
        psgld,
        settings({}, {"lr": 0.01, "alpha": 0.9, "eps": 0.1, "num_data": 3.0, "temperature": 0.1, "seed": 7}),
        learns={"lr": 0.03, "temperature": 0.0},
    ),
    Oracle(
        "sghmc",
        "equation 15 of the paper",
        sghmc,
        settings({}, {"lr": 0.01, "friction": 0.3, "noise": 0.1, "temperature": 0.1, "seed": 7}),
        learns={"lr": 0.01, "temperature": 0.0},
    ),
    Oracle(
        "noisy_sgd",
        "equation 1 of the paper",
        noisy_sgd,
        settings({}, {"lr": 0.03, "eta": 0.5, "gamma": 0.3, "seed": 7}),
    ),
    Oracle(
        "sophia",
        "pytorch_optimizer.SophiaH",
        handed(sophia_h, "hess", hessian_every_k),
        [
            Setting({}, {"update_period": 10}),
            Setting(
                {"lr": 0.01, "betas": (0.8, 0.9), "gamma": 0.3, "eps": 0.03, "weight_decay": 0.1, "k": 3},
                {
                    "lr": 0.01,
                    "betas": (0.8, 0.9),
                    "gamma": 0.3,
                    "eps": 0.03,
                    "weight_decay": 0.1,
                    "update_period": 3,
                },
            ),
        ],
        "pytorch_optimizer",
        inputs=a_diagonal,
        learns={"lr": 0.03},
    ),
    Oracle(
        "adahessian",
        "pytorch_optimizer.AdaHessian",
        handed(pytorch_optimizer.AdaHessian, "hess", averaged_hessian, foreach=False),
        [
            Setting({"average_conv_kernel": True}, {"lr": 0.15, "eps": 1e-4}),
            Setting(
                {
                    "lr": 0.03,
                    "betas": (0.8, 0.95),
                    "eps": 0.1,
                    "weight_decay": 0.1,
                    "hessian_power": 0.5,
                    "average_conv_kernel": True,
                },
                {"lr": 0.03, "betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.1, "hessian_power": 0.5},
            ),
        ],
        "pytorch_optimizer",
        inputs=a_diagonal,
        shapes=((7,), (6, 5), (2, 3, 3, 2)),
    ),
    Oracle(
        "avagrad",
        "Algorithm 2 of the paper",
        whole(avagrad),
        settings({}, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ),
    Oracle(
        "adai",
        "pytorch_optimizer.Adai",
        torch_class(adai),
        settings(
            {},
            {"lr": 0.01, "betas": (0.3, 0.9), "eps": 0.01, "weight_decay": 0.1},
            {"lr": 0.01, "weight_decay": 0.1, "decouple": True},
        ),
        "pytorch_optimizer",
    ),
]
