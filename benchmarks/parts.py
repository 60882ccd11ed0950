"""Steps of parameters that two processes hold together, as DTensors over gloo.

In: a class of optgen. Out: the seconds of its steps and of torch's AdamW, foreach, in the first process, in
turns that both processes take together: they wait for each other before every step, so that none is charged
for the other's being late. Each has one thread, and of each of 200 parameters a part of 8 elements.
"""

from __future__ import annotations

import gc
import tempfile
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

from turns import WARMUP, Times, alternate, seconds

WORLD, COUNT, COLUMNS = 2, 200, 8
WAIT = timedelta(seconds=60)


def measure(name: str, turns: int, limit: float) -> Times:
    """Seconds of each in each turn.

    Raises:
        RuntimeError: a process failed; what it said is on standard error.
    """
    context = get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        given = f"file://{folder}/meeting", name, turns, limit, theirs
        children = [context.Process(target=_serve, args=(rank, *given)) for rank in range(WORLD)]
        for child in children:
            child.start()
        theirs.close()  # so that what is read ends where no child has it open any more
        try:
            found: Times = mine.recv()
        except EOFError:
            raise RuntimeError(f"DTensor parts, {name}: a process failed") from None
        finally:
            for child in children:
                child.join()
    return found


def _serve(rank: int, where: str, name: str, turns: int, limit: float, out: Any) -> None:
    """What each of the processes does."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=WORLD, timeout=WAIT)
    try:
        found = _times(name, turns, limit)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        out.send(found)


def _times(name: str, turns: int, limit: float) -> Times:
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    import optgen

    own, others = _divided(), _divided()
    ours = getattr(optgen, name)(own, lr=1e-3)
    peer = torch.optim.AdamW(others, lr=1e-3, foreach=True)
    steps = {"optgen": ours.step, "torch foreach": peer.step}
    made = 0

    def count() -> None:
        nonlocal made
        made += 1

    def clock(step: Any) -> float:
        dist.barrier()
        return seconds(step)

    def take(turns: int) -> Times:
        return alternate(steps, turns, count, clock)

    take(1)
    one = torch.tensor(sum(found[0] for found in take(1).values()))
    dist.broadcast(one, 0)  # both must take as many turns
    gc.collect()
    gc.freeze()
    times = take(max(3, min(turns, int(limit / one.item()) - WARMUP)))
    whole = others
    if name != "AdamW":
        whole = _tensors()
        alone = getattr(optgen, name)(whole, lr=1e-3)
        for _ in range(made):
            alone.step()
    for p, q in zip(own, whole, strict=True):
        full = q.full_tensor() if isinstance(q, DTensor) else q
        torch.testing.assert_close(p.full_tensor(), full, rtol=1e-4, atol=1e-6)
    return times


def _tensors() -> list[Any]:
    """The whole parameters, the same in each process."""
    from shapes import tensors

    return tensors(COUNT * [(WORLD, COLUMNS)])


def _divided() -> list[Any]:
    """The parameters by rows."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    found = []
    for p in _tensors():
        found.append(torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
        found[-1].grad = distribute_tensor(p.grad, mesh, [Shard(0)])
    return found
