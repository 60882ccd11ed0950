"""How long a step takes on the CPU, beside torch's optimizers and beside its roof.

The tensors are those of a small GPT-2: 52, with 44.5 million elements. Every contestant has its own copy of
them. They take turns, one step each in random order, with the roof among them: the sweeps of the same plans,
with the same loads and stores on as many threads, and additions for arithmetic (`roof.py`). A ratio is the
median of those within a turn. Rules of + - * / and roots should come close to the roof; those with other
functions or with random numbers are bound by these, and only reported, in nanoseconds an element.

    python benchmarks/cpu.py                    some five minutes, two of them torch.compile's
    python benchmarks/cpu.py --only AdamW LAMB
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

import optgen
from machine import Others
from report import Row, finish
from roof import Roof, planned_bytes
from shapes import copies, gpt2_small, tensors
from turns import Times, alternate, milliseconds, ratio, seconds, spread

ONE_SWEEP, SEVERAL = 0.9, 0.85  # what the roof's time is of a step's, at the least
MAX_NORM = 1.0
Params = list[torch.nn.Parameter]
Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One of our optimizers and those that it is measured against.

    `targets` are the most that the time may be of each peer's; peers that are not in it are only reported,
    the fastest of them. All of them must end with the same parameters, but for `apart` of the largest.
    What is not `plain` has transcendental functions or random numbers, and no target beside the roof.
    """

    name: str
    ours: Callable[[Params], optgen.Optimizer]
    peers: dict[str, Callable[[Params], Step]] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    apart: float | None = 1e-4  # None: they do not do the same
    plain: bool = True


def torch_steps(name: str, compiled: bool = False, fused: bool = False, **options: Any) -> dict[str, Any]:
    """A torch optimizer's implementations by name, each as a function from parameters to its `step`."""
    make = getattr(torch.optim, name)
    kinds: dict[str, dict[str, bool]] = {"fused": {"fused": True}} if fused else {}
    kinds |= {"foreach": {"foreach": True}, "loop": {"foreach": False}}
    found = {
        f"torch {kind}": lambda params, flags=flags: make(params, **options, **flags).step
        for kind, flags in kinds.items()
    }
    if compiled:
        found["torch.compile"] = lambda params: torch.compile(make(params, **options).step)
    return found


def against_torch(
    name: str, fused: bool = False, compiled: bool = False, title: str = "", **options: Any
) -> Case:
    """A class of ours beside the one that torch has under the same name."""
    targets = {"torch fused": 1.0} if fused else {}
    targets |= {"torch.compile": 1.0} if compiled else {}
    peers = torch_steps(name, compiled, fused, **options)
    return Case(title or name, partial(getattr(optgen, name), **options), peers, targets)


def clip_and_step(params: Params) -> Step:
    """torch's way to clip by the global norm and step: one pass for the norm, one to scale, one to step."""
    step = torch.optim.AdamW(params, fused=True).step

    def both() -> None:
        clip_grad_norm_(params, MAX_NORM)
        step()

    return both


def chained(params: Params) -> optgen.Optimizer:
    clip = optgen.rule("clip_global_norm", max_norm=MAX_NORM)
    return optgen.optimizer(optgen.chain(clip, "adamw"), "ClippedAdamW")(params)


CLIPPED = {"torch clip + fused AdamW": clip_and_step}
CASES = [
    against_torch("AdamW", fused=True, compiled=True),
    against_torch("SGD", fused=True, title="SGD with momentum", lr=1e-3, momentum=0.9),
    against_torch("Adagrad", fused=True),
    against_torch("RMSprop", compiled=True),
    against_torch("NAdam", compiled=True),
    *(against_torch(name) for name in ("Adadelta", "Adamax", "RAdam", "Rprop", "ASGD")),
    # torch sums the squares of 38 M elements in float32, and is 1e-4 from its own float64; ours 4e-7.
    replace(against_torch("Adafactor"), apart=1e-3),
    Case("LAMB", optgen.LAMB, CLIPPED, {"torch clip + fused AdamW": 1.0}, apart=None),
    Case("AdamW clipped by the global norm", chained, CLIPPED, {"torch clip + fused AdamW": 1.0}),
    Case("Yogi", optgen.Yogi),
    *(Case(name, getattr(optgen, name), plain=False) for name in ("SGLD", "Padam", "DiffGrad", "AdamAtan2")),
]
HALVES = "AdamW, bf16 parameters and gradients, fp32 state"


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--turns", type=int, default=15, help="turns that are measured (15)")
    parser.add_argument("--seconds", type=float, default=60, help="at most, for the turns of a case (60)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose names begin with one of these")
    parser.add_argument("--scale", type=float, default=1.0, help="of the tensors' width, for tests (1)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-save", action="store_true", help="write no JSON and no picture")
    options = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its workers would count among the others
    others = Others()
    chosen = [c for c in CASES if not options.only or c.name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"no case begins with {' or '.join(options.only)}: there are {[c.name for c in CASES]}")
    shapes = gpt2_small(options.scale)
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    print(f"{len(shapes)} tensors, {elements / 1e6:.1f} M elements, {torch.get_num_threads()} threads")
    params = tensors(shapes)
    rows, figures = [], {}
    for case in chosen:
        print(f"{case.name} ...", file=sys.stderr)
        made = Measured(case, params, options)
        rows += made.rows()
        figures[case.name] = made.figures()
        del made
        gc.collect()
    found = {"threads": torch.get_num_threads(), "cases": figures}
    finish("cpu", rows, found, others, not options.no_save)


class Measured:
    """A case with its times."""

    def __init__(self, case: Case, params: Params, options: argparse.Namespace):
        self.case, self.elements = case, sum(p.numel() for p in params)
        self.params = {"optgen": copies(params)}
        mine = case.ours(self.params["optgen"])
        steps: dict[str, Step] = {"optgen": mine.step}
        for name, make in case.peers.items():
            if name != "torch.compile" or not options.no_compile:
                self.params[name] = copies(params)
                steps[name] = make(self.params[name])
        halves = None
        if case.name == "AdamW":
            halves = optgen.AdamW(copies(params, torch.bfloat16), state_dtype=torch.float32)
            steps["bf16"] = halves.step
        self.first = {name: seconds(step) for name, step in steps.items()}  # kernels are made here
        self.bytes = planned_bytes(mine)
        self.half_bytes = planned_bytes(halves) if halves else 0
        roof = Roof(mine)
        self.sweeps = roof.count
        self.times: Times = alternate({**steps, "roof": roof}, options.turns, limit=options.seconds)
        if case.apart is not None:
            self.check(case.apart)

    def check(self, apart: float) -> None:
        """All must have done the same: a fast wrong step is worth nothing."""
        for name, theirs in self.params.items():
            for a, b in zip(self.params["optgen"], theirs, strict=True):
                error = ((a - b).abs().max() / b.abs().max()).item()
                assert error < apart, f"{self.case.name}: optgen and {name} differ by {error:.1e}"

    def rows(self) -> list[Row]:
        """What the case says about each question."""
        case, times = self.case, self.times
        rows = []
        for peer, target in case.targets.items():
            if peer in times:
                found = ratio(times, "optgen", peer)
                title = f"{case.name}: time / {peer}"
                rows.append(Row(title, found.median, target, quartiles=found.quartiles))
        rows.append(self.beside_roof())
        if "bf16" in times:
            found = ratio(times, "optgen", "bf16", scale=self.half_bytes / self.bytes)
            title = f"{HALVES}: bytes per second / those of fp32"
            rows.append(Row(title, found.median, 0.9, True, quartiles=found.quartiles))
        return rows

    def beside_roof(self) -> Row:
        """The roof's time over the step's; of a rule that arithmetic bounds, what an element takes."""
        case, found = self.case, ratio(self.times, "roof", "optgen")
        each = spread([1e9 * x / self.elements for x in self.times["optgen"]])
        if not case.plain:
            note = f"roof / time {found.median:.2f}"
            title = f"{case.name}: time of an element"
            return Row(title, each.median, unit="ns", quartiles=each.quartiles, note=note)
        note = f"{each.median:.2f} ns an element"
        others = [name for name in case.peers if name in ("torch foreach", "torch loop")]
        if others and "torch fused" not in case.targets:
            better = ratio(self.times, "optgen", *others)
            note += f"; {better.median:.2f} of the better of foreach and loop"
        target = ONE_SWEEP if self.sweeps == 1 else SEVERAL
        title = f"{case.name}: roof / time" + (f", {self.sweeps} sweeps" if self.sweeps > 1 else "")
        return Row(title, found.median, target, True, quartiles=found.quartiles, note=note)

    def figures(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        return {
            "milliseconds": milliseconds(self.times),
            "first_step_seconds": {name: round(found, 2) for name, found in self.first.items()},
            "turns": len(self.times["optgen"]),
            "planned_bytes": self.bytes,
            "sweeps": self.sweeps,
            "elements": self.elements,
        }


if __name__ == "__main__":
    main()
