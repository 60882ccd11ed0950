"""What was found out about the tensors of a step, for the steps after it that have the same.

In: the work of a step. Out: its tensors in one order, `fixed` ones before `free` ones (see `guards`); what
each parameter's part is besides them; and a `Recording`, the buckets with the guard that says whether they
still hold. It has addresses, and no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from optgen.launch.buckets import Bucket
from optgen.launch.guards import Guard
from optgen.launch.work import Work


class Recording(NamedTuple):
    """The buckets of a step, and what they depend on; on a GPU, which tensors lie at multiples of 16."""

    parts: list[Any]
    signature: list[Any]
    buckets: list[Bucket]
    guard: Guard
    even: np.ndarray | None = None

    def holds(self, even: np.ndarray) -> bool:
        """Whether the same tensors lie at multiples of 16, if that matters."""
        return self.even is None or np.array_equal(even, self.even)


def fixed_of(work: Sequence[Work]) -> list[Tensor]:
    """The tensors that a step writes: of each part its parameter, its states and its counter."""
    found: list[Tensor] = []
    for w in work:
        found.append(w.param)
        found += w.states.values()
        if w.counter is not None:
            found.append(w.counter)
    return found


def free_of(work: Sequence[Work]) -> list[Tensor]:
    """The tensors that a step only reads: of each part its gradient and its inputs."""
    found: list[Tensor] = []
    for w in work:
        if w.grad is not None:
            found.append(w.grad)
        found += w.inputs.values()
    return found


def part_of(w: Work) -> tuple[Any, ...]:
    """What a parameter's part in a step is, but for its tensors."""
    return w.facts, w.grad is None, w.counter is None, w.counted, w.shard, tuple(w.states), tuple(w.inputs)


def signature_of(w: Work) -> tuple[Any, ...]:
    """What a bucket and its tables depend on of a part's tensors, but for addresses."""
    tensors = [w.param, *w.states.values(), *w.inputs.values(), *([] if w.grad is None else [w.grad])]
    counter = None if w.counter is None else w.counter.dtype
    return w.param.shape, w.param.device, counter, *((t.stride(), t.dtype) for t in tensors)


def places_of(work: Sequence[Work]) -> list[dict[str, int]]:
    """Of each part where its stores are among all tensors, those of `fixed_of` and then of `free_of`."""
    places: list[dict[str, int]] = []
    at = 0
    for w in work:
        places.append({"p": at, "g": at} | {name: at + 1 + i for i, name in enumerate(w.states)})
        at += 1 + len(w.states) + (w.counter is not None)
    for w, mine in zip(work, places, strict=True):
        handed = [*([] if w.grad is None else ["g"]), *w.inputs]
        mine |= {name: at + i for i, name in enumerate(handed)}
        at += len(handed)
    return places


def sources_of(bucket: Bucket, places: Sequence[dict[str, int]]) -> dict[str, np.ndarray]:
    """For each column of addresses in a bucket's table, which tensors they are of."""
    names = [name for name in bucket.layout.pointers if not name.startswith("#")]
    return {name: np.array([places[m][name] for m in bucket.members], np.int64) for name in names}
