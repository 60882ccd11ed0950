"""Edits at random between two steps of an optimizer, and the judge of what comes of them.

In: a back end, a device and seeds. Out: for each edit of each seed what the step after it did, as `judge.py`
has it; the edits are in `changes.py`. `python tests/support/edits.py --backend cpu --seeds 7:8` runs one seed
again; with `--guard` each tensor lies between pages that nobody may touch, see `guard.c`.

A wrong address ends the process, so cases run in processes of their own, which say first what they do.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import optgen
from changes import EDITS, GO, STOP, WEIGHTS, Inapplicable, need, readable, usual
from judge import GOOD, Picture, judged, tensors_of
from optgen.ir.extent import Extent
from optgen.library import CLASSES, class_of
from optgen.release import attach
from optgen.training import accumulated
from optgen.verify.differential import TOLERANCE

SHAPES = [(), (0,), (2, 3), (4, 1, 5), (7,), (1025,), (3, 1), (2, 3, 2, 2)]
LONG = 60  # seconds for one case, and ten times that on the simulated GPU
PYTHON = [sys.executable, __file__]


class Rule(NamedTuple):
    """A class, options that it is used with, torch's class for the same rule, and dtypes of parameters."""

    kind: type[optgen.Optimizer]
    options: Mapping[str, Any] = MappingProxyType({})
    oracle: type[torch.optim.Optimizer] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)


@cache
def rules() -> dict[str, Rule]:
    """One rule of each class at least, and hard ones; compiling takes a second each, and more for CAME."""
    wide = (torch.float32, torch.float32, torch.float64, torch.bfloat16)
    return {
        "AdamW": Rule(optgen.AdamW, {"lr": 0.01}, torch.optim.AdamW, wide),
        "SGD": Rule(optgen.SGD, {"momentum": 0.9}, torch.optim.SGD, wide),
        "NAdam": Rule(optgen.NAdam, {}, torch.optim.NAdam),
        "LAMB": Rule(optgen.LAMB),
        "Adafactor": Rule(optgen.Adafactor, {}, torch.optim.Adafactor),
        "SM3": Rule(optgen.SM3, {"momentum": 0.5}),
        "CAME": Rule(optgen.CAME),
        "AdamWScheduleFree": Rule(optgen.AdamWScheduleFree),
        "Prodigy": Rule(optgen.Prodigy),
        "SGLD": Rule(optgen.SGLD),
        "AdaHessian": Rule(optgen.AdaHessian),
        "PolyakSGD": Rule(optgen.PolyakSGD),
        "Lion cautious": Rule(optgen.optimizer(optgen.chain("lion", "cautious"))),
        "clipped AdamW": Rule(optgen.optimizer(optgen.chain("clip_global_norm", "adamw"))),
        "accumulated SGD": Rule(accumulated("sgd", 2)),
        "released AdamW": Rule(optgen.AdamW, {}, torch.optim.AdamW),
    }


@cache
def by_class() -> list[list[str]]:
    """Names of rules, a list for each of `CLASSES`."""
    return [[n for n, rule in rules().items() if class_of(rule.kind.program) == c] for c in CLASSES]


class Case:
    """An optimizer in use: what edits change, and what is judged."""

    def __init__(self, seed: int, backend: str, device: str = "cpu"):
        self.rng, self.backend, self.device = random.Random(seed), backend, device
        torch.manual_seed(seed)
        # The widest ones are met most often, but where a step takes long each class is, in turn.
        often = ["AdamW", "AdamW", "AdamW", "SGD", *rules()]
        self.name = self.rng.choice(often if backend != "triton" else by_class()[seed % len(CLASSES)])
        self.rule = rules()[self.name]
        self.wide = self.name in ("AdamW", "SGD")  # gets every dtype and shape, each of which is compiled
        many = self.name in ("AdamW", "SGD", "LAMB") and self.rng.random() < 0.4
        shapes = [self._shape() for _ in range(60 if many else self.rng.randint(3, 6))]
        dtypes = self.rule.dtypes if self.rng.random() < 0.4 else (torch.float32,)
        params = [nn.Parameter(torch.randn(s, dtype=self.rng.choice(dtypes), device=device)) for s in shapes]
        named = [(f"layer{i}.weight", p) for i, p in enumerate(params)] if self.rng.random() < 0.5 else params
        cut = self.rng.randrange(1, len(params))
        groups = [{"params": named[:cut]}, {"params": named[cut:]}]
        self.optimizer: Any = self.rule.kind(groups, backend=backend, **self.rule.options)
        self.release = attach(self.optimizer) if self.name == "released AdamW" else None
        self.still = {params[-1]} if self.rng.random() < 0.2 else set()  # have no gradient
        self.in_place = self.rng.random() < 0.4  # as after zero_grad(set_to_none=False)
        self.inputs: dict[str, Any] = {}
        self.witnesses: list[Tensor] = []  # copies that others have, which no step may change
        self.edited = ""
        self.moves = False  # whether what was edited takes part in the next step

    def _shape(self) -> tuple[int, ...]:
        small = SHAPES if self.wide else SHAPES[:-1]
        return (40_001,) if self.rng.random() < 0.01 else self.rng.choice(small)

    @property
    def params(self) -> list[Tensor]:
        """The parameters of all groups, each once."""
        return tensors_of(self.optimizer.param_groups)

    def takes_part(self, p: Tensor) -> bool:
        """Whether a step moves elements of a parameter."""
        return self.counts(p) and p.numel() > 0

    def counts(self, p: Tensor) -> bool:
        """Whether a step is one for a parameter."""
        for group in self.optimizer.param_groups:
            at = next((i for i, q in enumerate(group["params"]) if q is p), None)
            if at is not None:
                return p.grad is not None and at not in (group.get("frozen") or ())
        return False

    def replace(self, duplicate: Callable[[Any], Any]) -> None:
        """Go on with a copy of the optimizer, which has its own parameters."""
        grads = [p.grad for p in self.params if need(not self.release)]
        self.optimizer, self.inputs, still = duplicate((self.optimizer, self.inputs, list(self.still)))
        self.still = set(still)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def feed(self) -> None:
        """New gradients and inputs, as a backward pass leaves them; of one parameter if hooks step it."""
        params = [p for p in self.params if p not in self.still and p.is_floating_point()]
        if self.release and params:
            for p in params:
                p.grad = None
            params = self.rng.sample(params, 1)
        for p in params:
            g = p.grad
            if self.in_place and type(g) is Tensor and usual(g) and g.dtype in TOLERANCE:
                g.detach().normal_()
                continue
            p.grad = None
            if readable(p) and p.dtype in TOLERANCE:
                made = torch.empty_like(p, requires_grad=False).normal_()
                p.grad = made.mul_(10 ** self.rng.uniform(-2, 1))
        for name, declared in self.optimizer.program.inputs.items():
            whole = declared.extent is Extent.ALL
            able = (p for p in self.params if p.dtype in TOLERANCE and readable(p))
            each = {p: torch.rand_like(p, requires_grad=False) for p in able}
            self.inputs[name] = torch.rand(()) if whole else each

    def step(self) -> None:
        """What is judged: a step of all parameters, or of those with a gradient in the backward pass."""
        if not self.release:
            self.optimizer.step(**self.inputs)
            return
        for p in [p for p in self.params if p.grad is not None]:
            for hook in [*(p._post_accumulate_grad_hooks or {}).values()]:
                hook(p)
        if any(p.grad is not None for p in self.params):  # because it has no hook
            self.optimizer.step()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that a step may read or write, and those that it may not."""
        for p in self.params:
            yield "parameter", p
            if p.grad is not None:
                yield "gradient", p.grad
        for kept in [*self.optimizer.state.values(), *self.optimizer.param_groups]:
            yield from ((k, v) for k, v in kept.items() if isinstance(v, Tensor))
        for value in self.inputs.values():
            values = value.values() if isinstance(value, Mapping) else [value]
            yield from (("input", v) for v in values if isinstance(v, Tensor))
        yield from (("witness", t) for t in self.witnesses)


# One seed, a process for many, and what starts it


def attempts(case: Case, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Steps and edits; what came of each step after an edit."""
    if case.rng.random() < 0.5:
        case.feed()
        yield from attempt(case, say)
    for k in range(case.rng.randint(3, 5) * (2 if case.release else 1)):
        case.feed()
        say(f"step {k} after {case.edited or 'nothing'}")
        if not case.edited:
            case.step()
            continue
        verdict, detail = judged(case)
        yield {"edit": f"{case.edited}, later", "verdict": verdict, "detail": detail}
        if verdict not in ("right", "torch"):
            return
    case.feed()
    yield from attempt(case, say)


def attempt(case: Case, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """One edit, a step, and two more; where it was refused, perhaps undo it and go on."""
    undo, first = case.rng.random() < 0.5, not case.edited  # an earlier edit may be felt only now
    for _ in range(30):
        picture, case.moves = Picture(case, aliases=True), False
        (name,) = case.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        try:
            with torch.no_grad():
                where = EDITS[name](case)
            break
        except Inapplicable:
            continue
        except (RuntimeError, TypeError, ValueError):  # torch may refuse half way
            try:
                picture.restore()
            except RuntimeError:  # what it has done cannot be undone
                return
    else:
        return
    if not undo:  # what is replaced may be freed
        picture.aliases.clear()
    case.edited = name = f"{where} {name}" if where else name
    if case.release:  # hooks come one by one, and an error in one leaves others as they are
        for p in [p for p in case.params if p.grad is not None][1:]:
            p.grad = None
    stop = name in STOP and case.moves
    if case.rng.random() < 0.3:
        case.feed()
        stop = stop and name.startswith("state")
    for k in range(3):
        say(f"step {k} after {name}")
        verdict, detail = judged(case)
        if k == 0 and verdict == "refused" and name in GO and first:
            verdict = "refused, but must go on"
        if k == 0 and verdict in ("right", "torch") and stop and first:
            verdict = "went on, but must be refused"
        yield {"edit": name if k == 0 else f"{name}, later", "verdict": verdict, "detail": detail}
        if verdict not in ("right", "torch"):
            break
        case.feed()
    if verdict == "refused" and undo:
        try:
            picture.restore()
        except (RuntimeError, TypeError):  # of another layout, for example
            return
        for k in range(2):
            say(f"step {k} after {name} was undone")
            verdict, detail = judged(case)
            verdict = "refused, but undone" if verdict == "refused" and first else verdict
            yield {"edit": f"{name}, undone", "verdict": verdict, "detail": detail}
            case.feed()


def run(case: Case, tell: Callable[..., None]) -> None:
    """Run one seed; when this returns, its tensors are free."""
    try:
        for found in attempts(case, lambda text: tell(rule=case.name, step=text)):
            tell(rule=case.name, **found)
    except Exception:  # of this module
        tell(rule=case.name, edit=case.edited, verdict="failed", detail=traceback.format_exc())


def serve(backend: str, device: str, seeds: range) -> None:
    """Run seeds in this process: a line of JSON for each outcome, and for each step before it is taken."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if device == "simulated":
        from virtual_gpu.device import Device

        with Device(log=False) as gpu:
            _serve(backend, "cpu", seeds)
        assert gpu.launches, "nothing was launched on the simulated GPU"
        return
    _serve(backend, device, seeds)


def _serve(backend: str, device: str, seeds: range) -> None:

    def tell(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    for seed in seeds:
        faulthandler.dump_traceback_later(LONG * (10 if backend == "triton" else 1), exit=True)
        run(Case(seed, backend, device), lambda seed=seed, **what: tell(seed=seed, **what))
    faulthandler.cancel_dump_traceback_later()
    tell(end=True)


def outcomes(backend: str, seeds: range, device: str = "cpu", guard: bool = False) -> list[dict[str, Any]]:
    """What came of every edit of these seeds, in two processes at a time."""
    environment = {**os.environ, "MALLOC_PERTURB_": "85", "PYTHONPATH": os.pathsep.join(sys.path)}
    if backend == "triton" and device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [*PYTHON, "--serve", "--backend", backend, "--device", device]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        if guard:
            library = os.path.join(folder, "guard.so")
            source = str(Path(__file__).with_name("guard.c"))
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
            environment["LD_PRELOAD"] = library
        half = seeds.start + len(seeds) // 2
        parts = [range(seeds.start, half), range(half, seeds.stop)]
        return [line for part in pool.map(lambda s: _served(command, environment, s), parts) for line in part]


def _served(command: list[str], environment: Mapping[str, str], seeds: range) -> list[dict[str, Any]]:
    """The same in one process, and in another one each time that it has ended before the seeds did."""
    found: list[dict[str, Any]] = []
    while seeds:
        wanted = [*command, "--seeds", f"{seeds.start}:{seeds.stop}"]
        done = subprocess.run(wanted, capture_output=True, env=environment, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
        found += [line for line in lines if "verdict" in line]
        if lines and "end" in lines[-1]:
            break
        last = lines[-1] if lines else {"seed": seeds.start, "rule": "?"}
        trace = done.stderr.split("Extension modules")[0]
        fatal = re.search(r"(guard: .*\n)?(Fatal|Timeout)(.*\n)*", trace)
        trace = fatal[0] if fatal else trace[-2000:]
        verdict = "hung" if "Timeout" in trace else "crashed" if done.returncode < 0 else "failed"
        what = f"exit status {done.returncode}: {trace}"
        found.append({"edit": "nothing", **last, "verdict": verdict, "detail": what})
        seeds = range(last["seed"] + 1, seeds.stop)
    return found


def report(found: Sequence[Mapping[str, Any]], backend: str) -> str:
    """Counts of verdicts, and each edit that had a bad one, with a seed that shows it."""
    counts = Counter(line["verdict"] for line in found)
    lines = [f"{backend}: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())]
    bad = [line for line in found if line["verdict"] not in GOOD]
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for line in bad:
        kinds[line["verdict"], line.get("step", line["edit"]).split(" after ")[-1]].append(line)
    for (verdict, name), several in sorted(kinds.items()):
        seeds = " ".join(str(line["seed"]) for line in several[:6])
        first = several[0]
        lines.append(
            f"{verdict}: {name} ({len(several)}; {first['rule']}; seeds {seeds}): {first['detail'][:1200]}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run seeds of one back end, and end with 1 where an outcome is a fourth one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cpu", choices=["cpu", "numpy", "triton"])
    parser.add_argument(
        "--device", default="cpu", help="for triton: cpu (its interpreter), cuda or simulated"
    )
    parser.add_argument("--seeds", default="0:300", help="first:end")
    parser.add_argument(
        "--guard", action="store_true", help="each tensor between pages that nobody may touch"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seeds = range(*map(int, given.seeds.split(":")))
    if given.serve:
        serve(given.backend, given.device, seeds)
        return
    start = time.perf_counter()
    found = outcomes(given.backend, seeds, given.device, given.guard)
    print(report(found, given.backend))
    print(f"{len(seeds)} seeds in {time.perf_counter() - start:.0f} s")
    sys.exit(any(line["verdict"] not in GOOD for line in found))


if __name__ == "__main__":
    main()
