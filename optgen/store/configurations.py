"""Configurations of updates: a rule with its hyperparameters, from which optimizers are made.

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
    """A factory of optimizers for the parameters of one store."""

    negates = False  # whether the optimizer gets negated gradients, because it can only descend

    @abstractmethod
    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters.

        Args:
            params: floating-point tensors that share the memory of the store's values.

        Raises:
            ValueError: a hyperparameter's value is out of its bounds.
        """


class RuleConf(Configuration):
    """The configuration of any rule: `RuleConf("adamw", lr=1e-3)`.

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
        arguments = {"maximize": self.maximize, **self.options}
        return f"RuleConf({self.rule!r}, {', '.join(f'{k}={v!r}' for k, v in arguments.items())})"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make an instance of the rule's class; see the base class."""
        return self._class(list(params), maximize=self.maximize, **self.options)


@dataclass(frozen=True)
class FixedStepGradientDescent(Configuration):
    """Gradient ascent with a fixed step: `p + step_size*g` (`rules/descent.rule`)."""

    step_size: float
    _: KW_ONLY
    maximize: bool = True
    backend: str = "auto"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make the optimizer; see the base class."""
        options = {"lr": self.step_size, "backend": self.backend}
        return RuleConf("descent", maximize=self.maximize, **options).make(params)


@dataclass(frozen=True)
class GradientDescent(Configuration):
    """Gradient ascent with a step that decays as 1/t, as in Gen.jl (`rules/gen_decay.rule`).

    `p + step_size_init*(step_size_beta + 1)/(step_size_beta + t)*g`, where t is 1 in the first update and
    grows by one with each, whatever the gradients.
    """

    step_size_init: float
    step_size_beta: float
    _: KW_ONLY
    maximize: bool = True
    backend: str = "auto"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make the optimizer; see the base class."""
        options = {"lr": self.step_size_init, "beta": self.step_size_beta, "backend": self.backend}
        return RuleConf("gen_decay", maximize=self.maximize, **options).make(params)


DecayStepGradientDescent = GradientDescent  # its name in the versions of Gen.jl that have stores


@dataclass(frozen=True)
class ADAM(Configuration):
    """Adam, Kingma & Ba, 2015, as torch has it: eps is added after bias correction (`rules/adam.rule`)."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    _: KW_ONLY
    maximize: bool = True
    backend: str = "auto"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make the optimizer; see the base class."""
        options = {"lr": self.learning_rate, "betas": (self.beta1, self.beta2), "eps": self.epsilon}
        return RuleConf("adam", maximize=self.maximize, backend=self.backend, **options).make(params)


class TorchOptimConf(Configuration):
    """The configuration of a torch.optim class: `TorchOptimConf(torch.optim.SGD, lr=0.1)`.

    Any class with torch's protocol will do. To ascend it gets negated gradients, so that it needs no
    `maximize` of its own. Its `step` is called without a closure.
    """

    def __init__(self, cls: type[torch.optim.Optimizer], *args: Any, maximize: bool = True, **options: Any):
        self.cls, self.args, self.options = cls, args, options
        self.negates = maximize

    def __repr__(self) -> str:
        arguments = [*map(repr, self.args), f"maximize={self.negates}"]
        arguments += [f"{k}={v!r}" for k, v in self.options.items()]
        return f"TorchOptimConf({', '.join([self.cls.__name__, *arguments])})"

    def make(self, params: Sequence[Tensor]) -> torch.optim.Optimizer:
        """Make an instance of the class; see the base class."""
        return self.cls(list(params), *self.args, **self.options)
