"""Configurations of updates: which rule, with which hyperparameters.

In: what Gen.jl's constructors take, the name or text of any rule, or a class of torch.optim. Out: a
`torch.optim.Optimizer` over a store's tensors. Gradients in a store are those of a log probability, so every
configuration ascends, unless it is told `maximize=False`. No arithmetic is here: it is in `rules/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from optgen import library
from optgen.optim.optimizer import optimizer


class Configuration(ABC):
    """What makes an optimizer for the parameters of one store."""

    negates = False  # whether the optimizer is to see the negative gradients

    @abstractmethod
    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters.

        Raises:
            ValueError: a hyperparameter's value is out of its bounds.
        """


class RuleConf(Configuration):
    """Any rule: `RuleConf("adamw", lr=1e-3)`.

    Args:
        rule: a shipped name, a path, the text of a rule, or a program, as `optgen.optimizer` takes it.
        maximize: ascend, as all of Gen's configurations do.
        **options: the rule's hyperparameters, and `backend`, `math` and `state_dtype`.

    Raises:
        RuleError: there is no such rule, or its text is wrong.
    """

    def __init__(self, rule: library.Rule, *, maximize: bool = True, **options: Any):
        self.rule, self.maximize, self.options = rule, maximize, options
        self._class = optimizer(rule)

    def __repr__(self) -> str:
        given = {"maximize": self.maximize, **self.options}
        return f"RuleConf({self.rule!r}, {', '.join(f'{k}={v!r}' for k, v in given.items())})"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """An instance of the rule's class; see the base class."""
        return self._class(list(params), maximize=self.maximize, **self.options)


@dataclass(frozen=True)
class FixedStepGradientDescent(Configuration):
    """`p + step_size*g` (`rules/descent.rule`)."""

    step_size: float
    _: KW_ONLY
    maximize: bool = True
    backend: str = "auto"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """See the base class."""
        options = {"lr": self.step_size, "backend": self.backend}
        return RuleConf("descent", maximize=self.maximize, **options).make(params)


@dataclass(frozen=True)
class GradientDescent(Configuration):
    """`p + step_size_init*(step_size_beta + 1)/(step_size_beta + t)*g` (`rules/gen_decay.rule`).

    t is 1 in the first update, and grows by one with each, whatever the gradients.
    """

    step_size_init: float
    step_size_beta: float
    _: KW_ONLY
    maximize: bool = True
    backend: str = "auto"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """See the base class."""
        options = {"lr": self.step_size_init, "beta": self.step_size_beta, "backend": self.backend}
        return RuleConf("gen_decay", maximize=self.maximize, **options).make(params)


DecayStepGradientDescent = GradientDescent  # as the API with stores calls it


@dataclass(frozen=True)
class ADAM(Configuration):
    """Adam as torch has it, epsilon added after the bias correction (`rules/adam.rule`)."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    _: KW_ONLY
    maximize: bool = True
    backend: str = "auto"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """See the base class."""
        options = {"lr": self.learning_rate, "betas": (self.beta1, self.beta2), "eps": self.epsilon}
        return RuleConf("adam", maximize=self.maximize, backend=self.backend, **options).make(params)


class TorchOptimConf(Configuration):
    """A class of torch.optim, or one like it: `TorchOptimConf(torch.optim.SGD, lr=0.1)`.

    To ascend it is handed negative gradients, so that it needs no `maximize` of its own. Its `step` takes no
    closure here.
    """

    def __init__(self, cls: type[torch.optim.Optimizer], *args: Any, maximize: bool = True, **options: Any):
        self.cls, self.args, self.options = cls, args, options
        self.negates = maximize

    def __repr__(self) -> str:
        given = [*map(repr, self.args), f"maximize={self.negates}"]
        given += [f"{k}={v!r}" for k, v in self.options.items()]
        return f"TorchOptimConf({', '.join([self.cls.__name__, *given])})"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """An instance of the class; see the base class."""
        return self.cls(list(params), *self.args, **self.options)
