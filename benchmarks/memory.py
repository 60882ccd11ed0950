"""What a step takes of memory beyond the parameters, gradients and states: its peak, for every rule.

Processes of their own step every shipped rule, transforms chained with one, on two tensors of 16 and 4 MiB.
From the second step on, when the state is there, the system's kernel is told to forget the highest resident
size, then comes the step, and then that size is read again (`VmHWM` in /proc): it has in it what torch,
NumPy, Numba and anything else allocates and touches. glibc is told to hand every block of 64 KiB and more
back at once, so that no step reuses what another one left.

A rule whose plan spills needs room for what it spills, and is reported apart. Linux only.

    python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import Others, cores
from report import Row, finish

SHAPES = ((2048, 2048), (1 << 20,))
LARGEST = 4 * SHAPES[0][0] * SHAPES[0][1]
ALLOWED = 0.1  # of the largest parameter: tables, and what a slice of a tensor has
STEPS = 2  # that are measured; the figure is the larger
GLIBC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--only", nargs="+", metavar="RULE", help="measure these rules")
    parser.add_argument("--no-save", action="store_true", help="write no JSON and no picture")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for name in options.child:
            print(json.dumps(measure(name)), flush=True)
        return
    if not Path("/proc/self/clear_refs").exists():
        parser.error("this needs Linux: /proc/self/clear_refs resets the highest resident size")
    from optgen import library

    known = library.names()
    if unknown := sorted(set(options.only or ()) - {*known}):
        parser.error(f"there is no rule {', '.join(unknown)}")
    others, found = Others(), in_children(options.only or known)
    finish("memory", rows(found), {"rules": found}, others, not options.no_save)


def rows(found: list[dict[str, Any]]) -> list[Row]:
    """The worst rule of each kind, and by name every one that takes more than is allowed."""
    result = []
    for spilled, title in ((False, "no spilled phase"), (True, "spilled phases")):
        kind = sorted((r for r in found if (r["spills"] > 0) is spilled), key=lambda r: -r["share"])
        if not kind:
            continue
        large = [f"{r['rule']} {r['share']:.2f}" for r in kind if r["share"] > ALLOWED]
        listed = ", ".join(large) if large else f"most: {kind[0]['rule']}"
        question = f"peak extra memory of a step / largest parameter, {len(kind)} rules with {title}"
        result.append(Row(question, kind[0]["share"], None if spilled else ALLOWED, note=listed))
    return result


def in_children(names: list[str]) -> list[dict[str, Any]]:
    """The measurements of all rules, by one process a core.

    Raises:
        subprocess.CalledProcessError: a rule could not be stepped; its traceback is on standard error.
    """
    children = []
    for k in range(min(cores(), len(names))):
        command = [sys.executable, __file__, "--child", *names[k :: cores()]]
        environment = {**os.environ, **GLIBC, "OMP_NUM_THREADS": "2"}
        children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    found = []
    for child in children:
        out, _ = child.communicate()
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, child.args)
        found += [json.loads(line) for line in out.splitlines()]
    return sorted(found, key=lambda record: names.index(record["rule"]))


# A child


def measure(name: str) -> dict[str, Any]:
    """The peak of one rule, in bytes and as a share of the largest parameter, and its spills."""
    from optgen import library, optimizer
    from optgen.library import runnable
    from roof import plans
    from shapes import tensors

    params = tensors(SHAPES)
    opt = optimizer(runnable([library.rule(name)])[0])(params)
    given = inputs(opt, params)
    opt.step(**given)
    peak = max(extra_memory(lambda: opt.step(**given)) for _ in range(STEPS))
    spills = max(len(plan.spills) for plan, _ in plans(opt))
    return {"rule": name, "bytes": peak, "share": round(peak / LARGEST, 4), "spills": spills}


def inputs(opt: Any, params: list[Any]) -> dict[str, Any]:
    """What a rule is handed besides gradients: ones."""
    import torch

    from optgen.ir.extent import Extent

    return {
        name: 1.0 if made.extent is Extent.ALL else [torch.ones_like(p) for p in params]
        for name, made in opt.program.inputs.items()
    }


def extra_memory(call: Callable[[], Any]) -> int:
    """Bytes that the resident memory of this process rises by, at most, while a call runs."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return max(0, resident("VmHWM") - before)


def resident(key: str) -> int:
    """`VmRSS`, the resident bytes of this process, or `VmHWM`, the most there have been."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
