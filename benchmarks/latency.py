"""How long from a rule's text to the first step, and whether a new lr compiles anything.

Each measurement is a process of its own that imports torch, numba and optgen and then times
`optgen.optimizer(text)`, the constructor and the first step, with an empty cache folder (cold) and again
with the folder that this left behind (warm). Beside it: `torch.compile(opt.step)` of torch.optim.AdamW.

torch, numba and optgen put a part of their own imports off until the first optimizer (torch._dynamo, the
modules of optgen) and the first compiled function (numba's registries). The children do that part beforehand
and report it in a column of its own, with --lazy they leave it where it falls.

    python benchmarks/latency.py                  about a quarter of an hour, most of it torch.compile's
    python benchmarks/latency.py --quick          three minutes: fewer runs, torch.compile stopped early
    python benchmarks/latency.py --only optgen    two minutes
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from machine import Others, describe
from report import Row, finish
from shapes import SETS, tensors

TARGET = {"cold": 2.0, "warm": 0.2}  # seconds
ALIKE = 1.1  # the time of one list of tensors over that of the other
AGAINST_COMPILE = 0.1
QUICK = {"runs": 3, "limit": 45.0}
CHANGES = 20
WHAT = {"optgen": "optgen", "compile": "torch.compile"}
TEXT = (Path(__file__).parent.parent / "rules" / "adamw.rule").read_text(encoding="utf-8")


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--runs", type=int, default=5, help="processes a figure, for the median (5)")
    parser.add_argument("--quick", action="store_true", help="3 runs, and a limit of 45 s for torch.compile")
    parser.add_argument("--tensors", type=int, nargs="+", default=[*SETS], choices=[*SETS])
    parser.add_argument("--only", choices=[*WHAT], help="measure one of the two")
    parser.add_argument("--lazy", action="store_true", help="leave the imports put off in the figures")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one torch.compile (600)")
    parser.add_argument("--no-save", action="store_true", help="write no JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child = {"optgen": measure_optgen, "compile": measure_compile}[options.only]
        print(json.dumps(child(options.tensors[0], options.lazy)))
        return
    if options.quick:
        options.runs, options.limit = QUICK["runs"], QUICK["limit"]
    others, measured = Others(), []
    for what in [options.only] if options.only else WHAT:
        runs, limit = (options.runs, None) if what == "optgen" else (1, options.limit)
        for count in options.tensors:
            measured += run(what, count, runs, options.lazy, limit)
    print(f"\n{table(sorted(measured, key=lambda row: row['tensors']))}")
    name = "latency-lazy" if options.lazy else "latency"
    finish(name, rows(measured), {"seconds": measured}, others, not options.no_save)


def rows(measured: list[dict[str, Any]]) -> list[Row]:
    """The questions: seconds, whether they are the same for all lists, and beside torch.compile."""
    known = {(m["what"], m["tensors"], m["cache"]): m for m in measured}
    result = []
    for cache, target in TARGET.items():
        mine = {n: m["total"] for (what, n, c), m in known.items() if (what, c) == ("optgen", cache)}
        for count, total in mine.items():
            question = f"rule text to first step, {count} tensors, {cache}"
            result.append(Row(question, total, target, unit="s"))
        if len(mine) > 1:
            slower, faster = max(mine, key=mine.__getitem__), min(mine, key=mine.__getitem__)
            question = f"rule text to first step, {cache}: {slower} tensors / {faster} tensors"
            result.append(Row(question, mine[slower] / mine[faster], ALIKE))
        for count, total in mine.items():
            question = f"rule text to first step, {count} tensors, {cache} / torch.compile"
            theirs = known.get(("torch.compile", count, cache))
            if theirs is not None:
                stopped = theirs["runs"] == 0
                seconds = theirs["over_limit"] if stopped else theirs["total"]
                note = f"stopped after {seconds:.0f} s, imports included" if stopped else ""
                result.append(Row(question, total / seconds, AGAINST_COMPILE, bound=stopped, note=note))
    return result


# A child: one process, one measurement


def measure_optgen(count: int, lazy: bool) -> dict[str, float]:
    """Seconds of each stage, and of steps with a new lr, in a process that has done nothing yet."""
    import numba
    import torch

    import optgen

    deferred = 0.0 if lazy else finish_imports()
    params = tensors(SETS[count]())
    marks = [time.perf_counter()]
    cls = optgen.optimizer(TEXT)
    marks.append(time.perf_counter())
    opt = cls(params)
    marks.append(time.perf_counter())
    opt.step()
    marks.append(time.perf_counter())
    parsed, made, stepped = (b - a for a, b in pairwise(marks))

    from optgen.backends import cache

    built = cache.built
    gc.freeze()  # a collection of what torch and numba hold takes 0.15 s, and would fall into some step
    steady = median(timed(opt.step) for _ in range(5))
    changed = []
    for i in range(CHANGES):
        opt.param_groups[0]["lr"] = 1e-3 * 0.9**i
        changed.append(timed(opt.step))
    assert cache.built == built, f"a new lr built {cache.built - built} kernels"
    for name, module in list(sys.modules.items()):
        if name.startswith("optgen_kernel_") and hasattr(module, "sweep0"):  # of a rule
            for f in vars(module).values():
                if isinstance(f, numba.core.dispatcher.Dispatcher):
                    assert len(f.signatures) <= 1, f"{f.py_func.__name__} was compiled for {f.signatures}"
    assert all(torch.isfinite(p).all() for p in params)
    return {
        "deferred": deferred,
        "read": parsed,
        "construct": made,
        "first_step": stepped,
        "total": marks[-1] - marks[0],
        "step": steady,
        "new_lr": max(changed),
    }


def measure_compile(count: int, lazy: bool) -> dict[str, float]:
    """The same of torch.optim.AdamW under torch.compile; every change of lr may compile again."""
    import torch

    deferred = 0.0
    if not lazy:
        start = time.perf_counter()
        import_module("torch._dynamo")
        import_module("torch._inductor.compile_fx")
        deferred = time.perf_counter() - start
    params = tensors(SETS[count]())
    marks = [time.perf_counter()]
    opt = torch.optim.AdamW(params)
    marks.append(time.perf_counter())
    step = torch.compile(opt.step)
    step()
    marks.append(time.perf_counter())
    gc.freeze()
    steady = median(timed(step) for _ in range(5))
    opt.param_groups[0]["lr"] = 0.9e-3
    return {
        "deferred": deferred,
        "read": 0.0,
        "construct": marks[1] - marks[0],
        "first_step": marks[2] - marks[1],
        "total": marks[2] - marks[0],
        "step": steady,
        "new_lr": timed(step),
    }


def finish_imports() -> float:
    """Import what torch, numba and optgen import at first use. Returns the seconds that this took."""
    start = time.perf_counter()
    import_module("torch._dynamo")
    import_module("optgen.optim.optimizer")
    from numba.core.registry import cpu_target

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    return time.perf_counter() - start


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# The parent: processes, medians, a table


def run(what: str, count: int, runs: int, lazy: bool, limit: float | None) -> list[dict[str, Any]]:
    """A cold row and a warm row of medians for one list of tensors."""
    samples: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    label = WHAT[what]
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            for state, kept in samples.items():
                print(f"{label}, {count} tensors, {state} ...", file=sys.stderr)
                figures = spawn(what, count, lazy, folder, limit)
                if figures is None:
                    kind = {"what": label, "tensors": count, "cache": state, "runs": 0}
                    return [{**kind, "over_limit": limit}]
                kept.append(figures)
    return [
        {
            "what": label,
            "tensors": count,
            "cache": state,
            "runs": runs,
            **{key: round(median(s[key] for s in kept), 4) for key in kept[0]},
        }
        for state, kept in samples.items()
    ]


def spawn(what: str, count: int, lazy: bool, folder: str, limit: float | None) -> dict[str, float] | None:
    """One measurement in a new process with its caches in `folder`, or None past the limit."""
    command = [sys.executable, __file__, "--child", "--only", what, "--tensors", str(count)]
    command += ["--lazy"] if lazy else []
    caches = {"OPTGEN_CACHE_DIR": f"{folder}/optgen", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **caches},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return None
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal; an asterisk where optgen misses its target."""
    machine = describe()
    versions = f"torch {machine['torch']}, numba {machine['numba']}"
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {versions}",
        "",
        "                             imports                       first                later    a step",
        "              tensors cache  put off     read  construct    step      TOTAL      step  + new lr",
    ]
    for row in rows:
        line = f"{row['what']:13} {row['tensors']:7} {row['cache']:5}"
        if row["runs"] == 0:
            lines.append(f"{line} stopped after {row['over_limit']:.0f} s")
            continue
        cells = [
            f"{seconds(row[key]):>9}" for key in ("deferred", "read", "construct", "first_step", "total")
        ]
        cells.append(" ")
        cells += [f"{seconds(row[key]):>9}" for key in ("step", "new_lr")]
        lines.append(line + "".join(cells))
    lines += [
        "",
        "TOTAL runs from the rule's text to the end of the first step, without the imports put off.",
        f"The last column is the slowest of {CHANGES} steps, each with another lr, in which nothing was",
        "compiled; for torch.compile it is the first such step.",
    ]
    return "\n".join(lines)


def seconds(value: float) -> str:
    """Seconds, or milliseconds under one."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms"


if __name__ == "__main__":
    main()
