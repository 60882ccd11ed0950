"""Code in a process of its own, for what hangs or breaks one: with a time limit, and a cache of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

LIMIT = 200  # seconds; the slowest takes ten on two free cores, where nothing hangs

# What every such program may use.
PRELUDE = """
import os, signal, sys, threading, time, warnings
import torch
import optgen

def moved(cls, size=1000, steps=2):
    # where a parameter is after some steps of a class, as bytes; no lock of torch's global generator is taken
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(size, generator=generator))
    optimizer = cls([p])
    for _ in range(steps):
        p.grad = torch.randn(size, generator=generator)
        optimizer.step()
    return p.detach().numpy().tobytes()

def together(*calls):
    # what calls return that begin together, each in a thread; an error of any is raised
    barrier, found = threading.Barrier(len(calls)), [None] * len(calls)
    def run(i):
        barrier.wait()
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
"""


def run(code: str, cache: Path, limit: int = LIMIT, **environment: str) -> str:
    """What a program prints, on its standard output and then its standard error; it must succeed in time."""
    env = {**os.environ, "OPTGEN_CACHE_DIR": str(cache), **environment}
    program = [sys.executable, "-c", PRELUDE + textwrap.dedent(code)]
    done = subprocess.run(program, capture_output=True, text=True, env=env, timeout=limit, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
