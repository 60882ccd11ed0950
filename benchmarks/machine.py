"""The machine that a figure was measured on, in general terms, and where its results go.

Out: `describe()` for people and JSON, `slug()` for file names, and a note where others use it too.
"""

from __future__ import annotations

import os
import platform
import re
import sys
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


def note_load() -> float:
    """The system's load over the last minute; where others work too, a line on standard error says so."""
    load = os.getloadavg()[0]
    if load > 1:
        print(f"note: the load is {load:.1f} before the first measurement; ratios suffer", file=sys.stderr)
    return round(load, 2)
