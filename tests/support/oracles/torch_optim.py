"""The rules that torch.optim has, by its single-tensor loops."""

from __future__ import annotations

import torch

from oracles import Oracle, Setting, torch_class


def in_float64(make):
    """The same oracle where torch's default dtype is float64: NAdam and ASGD keep scalars in that dtype."""

    def wrapped(params, **options):
        running = make(params, **options)
        step = None
        while True:
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                result = running.send(step)
            finally:
                torch.set_default_dtype(before)
            step = yield result

    return wrapped


def torch_optim(rule, name, *settings, **options):
    make = in_float64(torch_class(getattr(torch.optim, name), foreach=False))
    settings = [Setting(s) for s in settings]
    return Oracle(rule, f"torch.optim.{name}", make, settings, "torch", **options)


ORACLES = [
    torch_optim(
        "sgd",
        "SGD",
        {},
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"lr": 0.01, "momentum": 0.8, "nesterov": True},
        learns={"lr": 0.1},
    ),
    torch_optim("adam", "Adam", {}, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    torch_optim("adamw", "AdamW", {}, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    torch_optim(
        "nadam",
        "NAdam",
        {},
        {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    # rho is below 5 in the first steps; with beta2 = 0.6 it always is.
    torch_optim(
        "radam",
        "RAdam",
        {},
        {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.6)},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.9, 0.99)},
    ),
    torch_optim("adamax", "Adamax", {}, {"lr": 0.01, "betas": (0.5, 0.8), "weight_decay": 0.1}),
    torch_optim(
        "adagrad",
        "Adagrad",
        {},
        {"lr_decay": 0.01, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
        learns={"lr": 0.3},
    ),
    torch_optim("adadelta", "Adadelta", {}, {"rho": 0.5, "weight_decay": 0.1}, learns={"lr": 30.0}),
    torch_optim(
        "rmsprop", "RMSprop", {}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "lr": 1e-3}
    ),
    torch_optim("rprop", "Rprop", {}, {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.02)}),
    torch_optim(
        "asgd", "ASGD", {}, {"t0": 50, "lambd": 0.01, "alpha": 0.5, "weight_decay": 0.1}, learns={"lr": 0.1}
    ),
]
