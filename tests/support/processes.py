"""Processes in one gloo group, which run functions of a test module together."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from typing import Any


class Processes:
    """`world` processes; `run(function, ...)` calls it in each, and gives the result of the first.

    The function is called inside the group, with nothing but its own arguments; it must be importable. If it
    fails in any process, all of them are stopped and the failure is raised here; the next call starts others.
    """

    def __init__(self, world: int):
        self.world = world
        self.children: list[Any] = []

    def _start(self) -> None:
        world, context = self.world, get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        pipes = [context.Pipe() for _ in range(world)]
        self.pipes = [mine for mine, _ in pipes]
        where = os.path.join(self.folder.name, "meeting")
        self.children = [
            context.Process(target=_serve, args=(theirs, rank, world, where), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for child in self.children:
            child.start()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        if not self.children:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, args))
        results, failures = [], []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(240):
                failures.append(f"process {rank} did not answer")
                continue
            failed, result = pipe.recv()
            (failures if failed else results).append(result)
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return results[0]

    def close(self) -> None:
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.join()
        if self.children:
            self.folder.cleanup()
        self.children = []


def _serve(pipe: Any, rank: int, world: int, where: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    wait = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=world, timeout=wait)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((False, function(*args)))
        except BaseException:
            pipe.send((True, f"process {rank}:\n{traceback.format_exc()}"))
