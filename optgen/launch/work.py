"""One parameter's part in a step, and the host's values of what it depends on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from optgen.facts import Facts, lookup, path_of
from optgen.ir import Node, Op, toposort
from optgen.launch.sharding import Shard
from optgen.semantics import MEANING, literal

CODEC_OF = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
SUPPORTED = "float32, float64, bfloat16 and float16"


@dataclass(slots=True)
class Work:
    """One parameter's part in a step: its gradient (None in a mode), states by name, group and count.

    `inputs` are further tensors that the step was handed; `index` counts the optimizer's parameters. Of a
    distributed parameter, `owner`, all tensors are this process's parts; `shard` says where they lie.
    """

    param: Tensor
    grad: Tensor | None
    states: Mapping[str, Tensor]
    group: int
    facts: Facts
    step: float
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    index: int = 0
    shard: Shard | None = None
    owner: Tensor | None = None
    counter: Tensor | None = None  # which the caller advances
    counted: bool = False  # whether it is on the device, and `step` not known

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter."""
        return tuple(self.param.shape) if self.shard is None else self.shard.shape

    def tensor(self, store: str) -> Tensor:
        """The tensor of an element store; what a mode has no gradient for is its parameter's."""
        if store == "p" or (store == "g" and self.grad is None):
            return self.param
        if store == "g":
            return cast(Tensor, self.grad)
        return self.states[store] if store in self.states else self.inputs[store]


def fact_of(w: Work, name: str) -> float:
    """A shape fact, or the value of a state that the host computes."""
    shape, numel = w.shape, float(math.prod(w.shape))
    if name not in ("numel", "ndim", "rows", "cols") and name not in w.states:  # elements of a slice
        sizes = [shape[int(name[4:-1])] if name.startswith("DIM") else shape[0] if len(shape) else 1]
        return numel / sizes[0]
    match name:
        case "numel":
            return numel
        case "ndim":
            return float(len(shape))
        case "rows":
            return float(shape[-2]) if len(shape) >= 2 else 1.0
        case "cols":
            return float(shape[-1]) if len(shape) >= 1 else 1.0
    return float(w.states[name].item())


def step_leaf(n: Node, options: Mapping[str, Any], step: float, facts: Mapping[str, float]) -> Any:
    """The float64 value of a leaf that the host knows."""
    if n.op is Op.HYPER:
        return _number(n.value or "", lookup(options, n.value or ""))
    if n.op is Op.COUNT:
        return np.float64(step)
    return np.float64(facts[n.value or ""])


Row = tuple[Mapping[str, Any], float, Mapping[str, float]]  # a group, its step, and host states and facts


class Scalars:
    """Values per step, as the host computes them: what to do is found once, and done group by group."""

    def __init__(self, nodes: Sequence[Node]):
        order = toposort(nodes)
        place = {n: i for i, n in enumerate(order)}
        inner = [(i, n) for i, n in enumerate(order) if n.args]
        self.start = [literal(n) if n.op is Op.CONST else None for n in order]
        leaves = [(i, n) for i, n in enumerate(order) if not n.args and n.op is not Op.CONST]
        self.hypers = [(i, n.value or "", *path_of(n.value or "")) for i, n in leaves if n.op is Op.HYPER]
        self.others = [(i, n) for i, n in leaves if n.op is not Op.HYPER]
        self.tasks = [(i, MEANING[n.op], [place[a] for a in n.args]) for i, n in inner]
        changing = {i for i, _ in self.others}
        for i, _, args in self.tasks:
            changing |= {i} if changing.intersection(args) else set()
        self.changing = [task for task in self.tasks if task[0] in changing]
        self.results = [place[n] for n in nodes]
        self.known: dict[int, tuple[list[Any], list[Any]]] = {}  # by row: hyperparameters, and all values

    @np.errstate(all="ignore")
    def rows(self, wanted: Iterable[Row]) -> list[list[float]]:
        """A row of values for each."""
        return [self._row(number, *each) for number, each in enumerate(wanted)]

    def _row(
        self, number: int, options: Mapping[str, Any], step: float, facts: Mapping[str, float]
    ) -> list[float]:
        try:
            given = [
                options[name] if item is None else options[name][item] for _, _, name, item in self.hypers
            ]
        except (KeyError, TypeError, IndexError):
            given = [lookup(options, text) for _, text, _, _ in self.hypers]  # which says what is wrong
        known = self.known.get(number)
        if known is not None and all(map(is_, known[0], given)):
            values, tasks = known[1], self.changing
        else:
            values, tasks = self.start.copy(), self.tasks
            for (i, text, _, _), value in zip(self.hypers, given, strict=True):
                values[i] = _number(text, value)
        for i, n in self.others:
            values[i] = step_leaf(n, options, step, facts)
        for i, meaning, args in tasks:
            values[i] = meaning(*[values[a] for a in args])
        if not any(isinstance(value, Tensor) for value in given):  # which changes and stays the same object
            self.known[number] = given, values
        return [float(values[i]) for i in self.results]


def _number(path: str, value: Any) -> np.float64:
    if value is None:
        raise ValueError(f"hyperparameter '{path}' is None, but the rule needs a number here")
    try:
        return np.float64(float(value))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"hyperparameter '{path}' must be a number, not {value!r}") from None
