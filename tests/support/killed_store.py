"""What the test of killed stores runs in a process of its own: a fork server.

It imports once. For each line `URL SEED` that it reads, it forks a child, which says its process ID, opens
the store at that URL and updates it for ever; when the child is gone, it says so. Which parameters the child
moves, and by which gradients, the test knows from here too.
"""

from __future__ import annotations

import os
import random
import sys
from itertools import count

import torch

from optgen.store.configurations import ADAM
from optgen.store.files import FileParameterStore
from optgen.store.memory import TorchParameterStore
from optgen.store.updates import init_optimizer

SHAPES = {("net", "bias"): (), ("net", "weight"): (300, 40), ("head", "scale"): (7,)}
CONF = ADAM(0.01, 0.9, 0.999, 1e-8, backend="numpy")


def start(store: TorchParameterStore) -> None:
    """Give a new store its parameters, in one commit."""
    store.init_parameters(
        {id: torch.linspace(-1, 1, torch.Size(s).numel()).reshape(s) for id, s in SHAPES.items()}
    )


def gradients(k: int) -> dict[tuple[str, str], torch.Tensor]:
    """The gradients of step k, counted from 0; none is zero."""
    generator = torch.Generator().manual_seed(k)
    return {id: torch.rand(s, generator=generator) + 0.5 for id, s in SHAPES.items()}


def accumulate(store: TorchParameterStore, k: int) -> None:
    """Add the gradients of step k."""
    for id, gradient in gradients(k).items():
        store.increment_gradient(id, gradient)


def steps(optimizer: object) -> int:
    """How many updates an optimizer has made."""
    state = optimizer.state_dict()["state"]
    return int(state[0]["step"]) if state else 0


def work(url: str, seed: int) -> None:
    """Update a store for ever, sometimes with a commit of the gradients before."""
    chance = random.Random(seed)
    store = FileParameterStore(url)
    if not store.ids():
        start(store)
    optimizer = init_optimizer(CONF, list(SHAPES), store, name="adam")
    for k in count(steps(optimizer)):
        if not store.get_gradient(("net", "bias")):  # else the child before was killed after its flush
            accumulate(store, k)
        if chance.random() < 0.5:
            store.flush()
        optimizer.apply_update()


def main() -> None:
    """Serve."""
    torch.set_num_threads(1)
    warm = FileParameterStore("memory://warm")  # so that no child has to import or to plan anything
    start(warm)
    accumulate(warm, 0)
    init_optimizer(CONF, list(SHAPES), warm, name="adam").apply_update()
    for line in sys.stdin:
        url, seed = line.rsplit(maxsplit=1)
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            work(url, int(seed))
        os.waitpid(child, 0)
        print("gone", flush=True)
