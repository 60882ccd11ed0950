"""`Work`: one parameter's part in a step, as the optimizer hands it to the launcher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from optgen.ir.facts import Facts
from optgen.launch.dtensor import Shard

CODEC_OF = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}
SUPPORTED = "float32, float64, bfloat16 and float16"


@dataclass(slots=True)
class Work:
    """One parameter's part in a step: its gradient (None in a mode), states by name, group and step number.

    `inputs`: the rule's further inputs; `index`: the parameter's number in the optimizer. If the parameter is
    distributed (`owner`), all tensors are this process's shards, and `shard` is their position.
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
    launched: bool = True  # or only counted: of a tensor without elements
    counted: bool = False  # whether it is on the device, and `step` not known

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the full parameter."""
        return tuple(self.param.shape) if self.shard is None else self.shard.shape

    def tensor(self, store: str) -> Tensor:
        """The tensor of an element store; in a mode without gradient, the parameter stands for it."""
        if store == "p" or (store == "g" and self.grad is None):
            return self.param
        if store == "g":
            return cast(Tensor, self.grad)
        return self.states[store] if store in self.states else self.inputs[store]


def shape_fact(shape: Sequence[int], name: str) -> float:
    """A fact about the shape of a full parameter, such as `numel`."""
    match name:
        case "numel":
            return float(math.prod(shape))
        case "ndim":
            return float(len(shape))
        case "rows":
            return float(shape[-2]) if len(shape) >= 2 else 1.0
        case "cols":
            return float(shape[-1]) if len(shape) >= 1 else 1.0
    size = shape[int(name[4:-1])] if name.startswith("DIM") else shape[0] if len(shape) else 1
    return float(math.prod(shape)) / size  # elements of a slice
