"""The machine that a figure was measured on, in general terms, and where its results go.

Out: `describe()` for people and JSON, `slug()` for file names, and a note where others use it too.
"""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("optgen", "torch", "triton", "numba", "llvmlite", "numpy")


def cpu() -> str:
    """The model name of the processor, as far as the system says."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*:\s*(.+)", text)
    plain = re.sub(r"\((R|TM)\)", "", name[1]) if name else platform.machine()
    return " ".join(plain.split())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, cores and the versions of everything that matters."""
    found: dict[str, Any] = {"cpu": cpu(), "cores": cores(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def slug(name: str | None = None) -> str:
    """A name for files: that of a device, or by default processor and cores."""
    return re.sub(r"[^a-z0-9]+", "-", (name or f"{cpu()} {cores()} cores").lower()).strip("-")


class Others:
    """How much of the processors others use from now on: other processes, and other guests of the host.

    Where threads wait for each other a little of that costs much: OpenMP's spin until the last one has
    arrived, so that torch's fused AdamW has been seen to take twenty times as long, and ours three times.
    """

    NOTED = 0.1

    def __init__(self) -> None:
        self.start = _busy(), _own(), time.perf_counter()

    def warn(self) -> None:
        """Say on standard output where it is so much that figures are not to be quoted."""
        if (used := self.share() or 0.0) > self.NOTED:
            print(f"\nothers used {used:.0%} of the processors meanwhile: figures not to be quoted")

    def share(self) -> float | None:
        """The part of all processors' time since the start; None where the system does not say."""
        busy, own, now = _busy(), _own(), time.perf_counter()
        if busy is None or self.start[0] is None:
            return None
        theirs = busy - self.start[0] - (own - self.start[1])
        return round(max(0.0, theirs / (now - self.start[2]) / (os.cpu_count() or 1)), 3)


def _busy() -> float | None:
    """Seconds that the processors have been busy with anything, or were given to other guests."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
