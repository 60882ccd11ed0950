"""Implementations written elsewhere, and recurrences written from papers, to check the rules against.

Each module here has a list `ORACLES`; `every()` finds them all. An oracle takes initial parameters (float64
arrays), then the gradients of each step, and yields the parameters after it.

A recurrence is a generator over lists of arrays, one for each tensor: it is given the initial parameters
and hyperparameters, receives a `Step`, and yields the parameters. `each` makes one from a generator that
knows a single tensor.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Step:
    """What a step is given: its number from 1, gradients, and further inputs (`hess=[...]`, `loss=0.3`)."""

    t: int
    grads: Arrays
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Hyperparameters of our class, and of the oracle where its own names or values differ."""

    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] | None = None

    @property
    def oracle(self) -> Mapping[str, Any]:
        return self.ours if self.theirs is None else self.theirs


@dataclass(frozen=True)
class Oracle:
    """How one rule is checked.

    Args:
        rule: the name of the rule in rules/, which this oracle's row in rules/ORACLES.md is for.
        source: what the oracle is, in words: "torch.optim.AdamW", "pytorch_optimizer.Lion",
            "Algorithm 1 of the paper".
        make: from initial arrays and hyperparameters, an iterator that receives a `Step` and gives arrays.
        settings: two or more settings of the hyperparameters.
        package: the distribution that the oracle comes from, whose version the row names.
        chain: what to run, where the rule is a transform: names in order.
        inputs: from the step's number and the parameters' shapes, what `step` is handed besides gradients.
        ties: how many elements may differ at all, where the rule takes a sign (0: none may).
        scale: gradients are multiplied by it.
        tolerance: for float32; looser than 1e-5 only with a reason beside it.
        learns: the options with which the rule minimises a quadratic (see test_rules), where lr=0.03 is not
            of its scale.
    """

    rule: str
    source: str
    make: Callable[..., Any]
    settings: Sequence[Setting]
    package: str | None = None
    chain: tuple[str, ...] = ()
    inputs: Callable[[int, list[tuple[int, ...]]], Mapping[str, Any]] | None = None
    ties: int = 0
    scale: float = 1.0
    tolerance: float = 1e-5
    learns: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.03})
    shapes: Sequence[tuple[int, ...]] = ((7,), (6, 5), (4, 3, 2))

    @property
    def version(self) -> str:
        return version(self.package).partition("+")[0] if self.package else "–"


def each(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A recurrence over all tensors from one over a single tensor: `g = yield` first, then `g = yield p`.

    Where the generator also wants the inputs of the step, it takes them from the second item: it receives
    (g, {name: this tensor's}) if it has the attribute `wants_inputs`.
    """

    def make(params: Arrays, **options: Any) -> Any:
        running = [rule(p, **options) for p in params]
        for r in running:
            next(r)
        step = yield
        while True:
            result = []
            for i, (r, g) in enumerate(zip(running, step.grads, strict=True)):
                mine = {k: v[i] if isinstance(v, list) else v for k, v in step.inputs.items()}
                result.append(r.send((g, mine) if getattr(rule, "wants_inputs", False) else g))
            step = yield result

    return make


def torch_class(kind: Callable[..., torch.optim.Optimizer], **fixed: Any) -> Callable[..., Any]:
    """An oracle from an optimizer class of torch's kind, run in float64."""

    def make(params: Arrays, **options: Any) -> Any:
        tensors = [torch.nn.Parameter(torch.tensor(p, dtype=torch.float64)) for p in params]
        optimizer = kind(tensors, **fixed, **options)
        if hasattr(optimizer, "train"):
            optimizer.train()
        step = yield
        while True:
            for p, g in zip(tensors, step.grads, strict=True):
                p.grad = torch.tensor(g, dtype=torch.float64)
            optimizer.step()
            step = yield [p.detach().numpy().copy() for p in tensors]

    return make


def every() -> dict[str, Oracle]:
    """The oracles of all modules here, by rule."""
    found: dict[str, Oracle] = {}
    for module in pkgutil.iter_modules(__path__):
        for oracle in importlib.import_module(f"{__name__}.{module.name}").ORACLES:
            assert oracle.rule not in found, f"two oracles for {oracle.rule}"
            found[oracle.rule] = oracle
    return found
