"""The rules that torch.optim has, by its single-tensor loops."""

from __future__ import annotations

import torch
from oracles import Oracle, Setting, torch_class


def torch_optim(rule, name, *settings):
    kind = getattr(torch.optim, name)
    fixed = {"foreach": False}
    return Oracle(
        rule, f"torch.optim.{name}", torch_class(kind, **fixed), [Setting(s) for s in settings], "torch"
    )


ORACLES = [
    torch_optim("adam", "Adam", {}, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    torch_optim("adamw", "AdamW", {}, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
]
