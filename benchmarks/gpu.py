"""How long a step takes on a GPU, beside the copy bandwidth and beside other optimizers, in 8 minutes.

First the copy bandwidth of the device. Then AdamW, Lion, RMSprop, SGD, LAMB, Adafactor and AdamW clipped by
the global norm: in float32, with bfloat16 parameters beside float32 state, and in bfloat16 throughout; with
10 million, 100 million and 1 billion parameters in one tensor and in 1,000; and 1,000 tensors of 1,024
elements. Beside them torch's fused and foreach optimizers, `math="fast"`, optimi and FlashOptim where they
are installed, and torch.compile in processes of its own that are stopped after 45 s. torch keeps its state in
the parameters' dtype: with bfloat16 beside float32 it moves fewer bytes, and there is no target.

The cases come in the order of their importance. What there is no time or no memory for is named, and is not
in the figures. All contestants of a case take turns; see clocks.py for what is timed.

    python benchmarks/gpu.py                     results/<gpu>.json and a picture
    python benchmarks/gpu.py --device cpu --dry  tries the script, with small tensors; writes nothing
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import product
from statistics import median
from typing import Any, NamedTuple

import torch

from clocks import Clock, CudaClock, HostClock, launches
from machine import slug
from peers import OURS, PEERS, UNAVAILABLE, Make
from report import Row, draw, save
from roof import plans
from shapes import Shape, tensors

TURNS = 3
SINGLE, SEVERAL, SMALL = 0.92, 0.85, 0.5  # the targets
WIDTH = 1024
MILLION = 1_000_000
SIZES = [100 * MILLION, 1000 * MILLION, 10 * MILLION]  # the most important first
DTYPES = {
    "fp32": (torch.float32, None),
    "bf16+fp32": (torch.bfloat16, torch.float32),
    "bf16": (torch.bfloat16, None),
}
COMPILED = (("AdamW", 1), ("RMSprop", 1), ("AdamW", 1000))  # rules and numbers of tensors
COMPILE_LIMIT = 45.0
COMPILE_RESERVE = 90.0  # seconds of the whole that are kept for them


class Case(NamedTuple):
    """A rule, how it is stored, how many parameters it has, and in how many tensors they are."""

    rule: str
    storage: str
    elements: int
    count: int

    def __str__(self) -> str:
        """In words."""
        return f"{self.rule}, {self.storage}, {self.elements / MILLION:g} M in {self.count}"

    def shapes(self) -> list[Shape]:
        """Matrices of one width, so that rules with rows and columns have some."""
        rows = max(1, round(self.elements / self.count / WIDTH))
        return self.count * [(rows, WIDTH)]


def cases(sizes: list[int], many: int) -> list[Case]:
    """Small tensors first, then by size; of one size, AdamW in float32 and one tensor first."""
    small = many * WIDTH
    found = [Case(rule, storage, small, many) for storage in DTYPES for rule in OURS]
    for elements in sizes:
        found += [Case(r, storage, elements, n) for storage in DTYPES for n in (1, many) for r in OURS]
    return found


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="that the whole may take (7.5)")
    parser.add_argument("--only", nargs="+", choices=[*OURS], help="measure these rules")
    parser.add_argument("--dry", action="store_true", help="small tensors, nothing written")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py needs a GPU, and torch sees none; try it with --device cpu --dry", file=sys.stderr)
        return 2
    if options.device == "cpu" and not options.dry:
        parser.error("on the CPU this measures nothing of interest: add --dry, or run cpu.py")
    device = torch.device(options.device)
    clock = CudaClock(device) if device.type == "cuda" else HostClock()
    if options.child:
        print(json.dumps(measure_compiled(options.child, device, clock)))
        return 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    run = Run(device, clock, time.perf_counter() + 60 * options.minutes - COMPILE_RESERVE)
    sizes, many = ([MILLION // 8], 4) if options.dry else (SIZES, 1000)
    wanted = [case for case in cases(sizes, many) if not options.only or case.rule in options.only]
    print(f"{name}: copies at {run.bandwidth / 1e12:.2f} TB/s; absent: {', '.join(UNAVAILABLE) or 'none'}\n")
    run.measure(wanted)
    if device.type == "cuda":
        run.compile(sizes[0])
    rows = run.rows(min(sizes[0], 100 * MILLION), many)
    run.summarise(rows)
    if not options.dry:
        figures = {"gpu": name, "copy_bandwidth": run.bandwidth, "absent": UNAVAILABLE, **run.figures()}
        path = save(slug(name), rows, figures)
        draw(path.with_suffix(".png"), rows, f"gpu.py on {name}")
        print(f"\nwritten to {path}")
    return 1 if run.failed else 0


class Run:
    """All cases on one device, until the time is over."""

    def __init__(self, device: torch.device, clock: Clock, deadline: float):
        self.device, self.clock, self.deadline = device, clock, deadline
        self.bandwidth = clock.bandwidth() if isinstance(clock, CudaClock) else copy_bandwidth()
        self.records: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}
        self.failed: list[str] = []

    def measure(self, wanted: list[Case]) -> None:
        """Measure cases in order, and print a line each; those past the deadline are left out."""
        for case in wanted:
            if time.perf_counter() > self.deadline:
                self.left_out[str(case)] = "no time"
                continue
            try:
                record = measure(case, self.device, self.clock)
            except torch.OutOfMemoryError:
                self.left_out[str(case)] = "no memory"
                continue
            except Exception:  # the other cases are worth having, and `main` ends with an error
                traceback.print_exc()
                self.failed.append(str(case))
                continue
            finally:
                release(self.device)
            record["of_copy"] = round(
                record["bytes"] / record["seconds"]["optgen"]["device"] / self.bandwidth, 4
            )
            self.records.append(record)
            others = " ".join(
                f"{name} {1e3 * found['device']:.3f}/{1e3 * found['wall']:.3f}"
                for name, found in record["seconds"].items()
            )
            print(f"{case!s:45} {record['of_copy']:.2f} of copy; ms on the device/each: {others}", flush=True)

    def compile(self, elements: int) -> None:
        """torch.compile, in processes of their own because only those can be stopped."""
        for rule, count in COMPILED:
            case = Case(rule, "fp32", elements, count)
            mine = next((r for r in self.records if r["case"] == list(case)), None)
            if mine is None:
                continue
            command = [sys.executable, __file__, "--child", rule, str(elements), str(count)]
            try:
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, timeout=COMPILE_LIMIT
                )
            except subprocess.TimeoutExpired:
                self.left_out[f"torch.compile of {case}"] = f"not done in {COMPILE_LIMIT:.0f} s"
                continue
            except subprocess.CalledProcessError as error:
                self.left_out[f"torch.compile of {case}"] = f"it failed, with exit code {error.returncode}"
                continue
            mine["seconds"]["torch.compile"] = json.loads(done.stdout.splitlines()[-1])

    def summarise(self, rows: list[Row]) -> None:
        """Print the rows, and what is not in them."""
        print()
        for row in rows:
            print(row)
        for what, reason in self.left_out.items():
            print(f"left out: {what}: {reason}")
        for what in self.failed:
            print(f"FAILED: {what}: its error is above", file=sys.stderr)

    def figures(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        return {"cases": self.records, "left_out": self.left_out, "failed": self.failed}

    def rows(self, least: int, many: int) -> list[Row]:
        """What was asked: bandwidth from `least` elements up, small tensors, and torch's fused optimizers."""
        return [*self._bandwidths(least), *self._small(many), *self._fused(), *self._others(least)]

    def _bandwidths(self, least: int) -> Iterator[Row]:
        """Of each rule and storage, the worst of the large cases."""
        large = [r for r in self.records if r["case"][2] >= least]
        for rule in OURS:
            for storage in DTYPES:
                mine = [r for r in large if r["case"][:2] == [rule, storage]]
                if not mine:
                    continue
                worst = min(mine, key=lambda r: r["of_copy"])
                target = SINGLE if worst["phases"] == 1 else SEVERAL
                question = f"{rule}, {storage}: planned bytes per second / copy bandwidth"
                note = f"{worst['phases']} phase(s); {Case(*worst['case'])}"
                yield Row(question, worst["of_copy"], target, True, note=note)

    def _small(self, many: int) -> Iterator[Row]:
        """From one step to the next with small tensors."""
        for r in self.records:
            found, case = r["seconds"], Case(*r["case"])
            if case.elements == many * WIDTH and "torch fused" in found and case.storage == "fp32":
                figure = found["optgen"]["wall"] / found["torch fused"]["wall"]
                yield Row(f"{many} tensors of {WIDTH}, {case.rule}: a step / torch fused", figure, SMALL)

    def _fused(self) -> Iterator[Row]:
        """Of each rule and storage that is the same in torch, the worst of device and wall."""
        for rule in OURS:
            for storage in ("fp32", "bf16"):
                ratios = [
                    (found["optgen"][key] / found["torch fused"][key], f"{key}, {Case(*r['case'])}")
                    for r in self.records
                    for key, found in product(("device", "wall"), [r["seconds"]])
                    if r["case"][:2] == [rule, storage] and "torch fused" in found
                ]
                if ratios:
                    figure, where = max(ratios)
                    yield Row(f"{rule}, {storage}: the worst time / torch fused", figure, 1.0, note=where)

    def _others(self, elements: int) -> Iterator[Row]:
        """The device's time beside every other contestant's, for one tensor of some size."""
        for r in self.records:
            case, found = Case(*r["case"]), r["seconds"]
            if case.elements == elements and case.count == 1 and case.storage != "bf16+fp32":
                for name in sorted(found.keys() - {"optgen", "torch fused"}):
                    figure = found["optgen"]["device"] / found[name]["device"]
                    yield Row(f"{case}: time / {name}", figure)


def measure(case: Case, device: torch.device, clock: Clock) -> dict[str, Any]:
    """Every contestant's seconds in one case, and what our plan moves.

    Raises:
        torch.OutOfMemoryError: the contestants do not fit on the device together.
    """
    dtype, state_dtype = DTYPES[case.storage]
    contestants = {"optgen": OURS[case.rule](state_dtype)}
    if case.count == 1:
        contestants["optgen fast"] = OURS[case.rule](state_dtype, math="fast")
    contestants |= PEERS.get(case.rule, {})
    steps: dict[str, Callable[[], Any]] = {}
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    mine: Any = None
    for name, make in contestants.items():
        try:
            opt, step = started(make, tensors(case.shapes(), dtype, device))
            start = time.perf_counter()
            step()
            first[name] = round(time.perf_counter() - start, 3)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if name.startswith("optgen"):
                raise
            failed[name] = f"{type(error).__name__}: {error}"  # another package's, and said in the results
            continue
        steps[name] = step
        mine = opt if name == "optgen" else mine
    planned = plans(mine)
    moved = sum(plan.bytes * elements for plan, elements in planned)
    times: dict[str, dict[str, list[float]]] = {n: {"device": [], "wall": [], "host": []} for n in steps}
    order, dice = list(steps), random.Random(0)
    for _ in range(TURNS):
        dice.shuffle(order)
        for name in order:
            times[name]["device"].append(clock.device(steps[name], moved))
            times[name]["wall"].append(clock.wall(steps[name]))
            times[name]["host"].append(clock.host(steps[name]))
    return {
        "case": list(case),
        "phases": max(len(plan.sweeps) for plan, _ in planned),
        "bytes": moved,
        "seconds": {n: {key: median(found) for key, found in t.items()} for n, t in times.items()},
        "first_step": first,
        "launches": {n: launches(steps[n]) for n in steps} if case.count * WIDTH >= case.elements else {},
        "failed": failed,
    }


def started(make: Make, params: list[Any]) -> tuple[Any, Callable[[], Any]]:
    """An optimizer and its step; a function that steps is both."""
    made = make(params)
    return made, getattr(made, "step", made)


def measure_compiled(words: list[str], device: torch.device, clock: Clock) -> dict[str, float]:
    """A child's work: one of torch's optimizers under torch.compile."""
    case = Case(words[0], "fp32", int(words[1]), int(words[2]))
    params = tensors(case.shapes(), torch.float32, device)
    step = torch.compile(getattr(torch.optim, case.rule)(params).step)
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    moved = 4 * sum(p.numel() for p in params)
    return {
        "device": clock.device(step, moved),
        "wall": clock.wall(step),
        "host": clock.host(step),
        "first": first,
    }


def copy_bandwidth(size: int = 1 << 26) -> float:
    """The same as the GPU's, for a trial on the CPU."""
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / min(HostClock().host(lambda: target.copy_(source)) for _ in range(3))


def release(device: torch.device) -> None:
    """Hand back what a case held, so that the next one finds the memory free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
