"""torch's OpenMP thread team, on which sweeps run.

Threads of our own would compete with torch's for cores: those spin for some milliseconds after each
operation before they sleep. A million elements of AdamW take 0.3 ms this way after an operation of torch's,
and 0.7 ms on other threads.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path


class Team:
    """Starts a parallel region of GNU OpenMP through its C interface.

    Raises:
        AttributeError: torch was built with another threading library.
    """

    def __init__(self, library: ctypes.CDLL):
        self.parallel = library.GOMP_parallel
        self.parallel.restype = None
        self.parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        numbers = library.omp_get_thread_num, library.omp_get_num_threads
        self.functions = [ctypes.cast(f, ctypes.c_void_p).value or 0 for f in numbers]

    def run(self, function: int, data: int, threads: int) -> None:
        """Call the C function at an address with `data` in each of the threads, and wait for all."""
        self.parallel(function, data, threads, 0)


_forks = 0


def team() -> Team | None:
    """torch's team; None without GNU OpenMP, and in a forked child, where its threads do not exist."""
    return None if _forks else _team()


@cache
def _team() -> Team | None:
    """Look the team up in torch's library."""
    import torch

    try:
        return Team(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")))
    except (OSError, AttributeError):
        return None


def available() -> int:
    """The number of threads that torch computes with."""
    import torch

    return torch.get_num_threads()


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
