"""How long one step of AdamW takes, beside torch.optim's own: fused, foreach and the plain loop.

Every optimizer has its own copy of the same tensors. They take turns, one step each, so that a slow
moment of the machine meets all of them; the figures are medians, and the ratio is the median of the
ratios within a turn.

    python benchmarks/step.py
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import optgen

sys.path.insert(0, str(Path(__file__).parent))

from machine import describe, save
from shapes import SETS

OPTIONS = {"lr": 1e-3, "weight_decay": 1e-2}
MAKE: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "optgen": lambda params: optgen.AdamW(params, **OPTIONS),
    "torch fused": lambda params: torch.optim.AdamW(params, **OPTIONS, fused=True),
    "torch foreach": lambda params: torch.optim.AdamW(params, **OPTIONS, foreach=True),
    "torch loop": lambda params: torch.optim.AdamW(params, **OPTIONS, foreach=False),
}
BYTES = 28  # that AdamW moves for one float32 element: p, m and v read and written, g read


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="turns that are measured (default 40)")
    parser.add_argument("--tensors", type=int, nargs="+", default=[*SETS], choices=[*SETS])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-save", action="store_true", help="write no JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    machine = describe()
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{machine['cpu']}, {machine['cores']} cores"
    )
    print(f"{where}, torch {machine['torch']}: AdamW, float32\n")
    rows = []
    for count in options.tensors:
        rows += measure(count, options.steps, device)
    if not options.no_save:
        path = save("step", {"device": where, "threads": torch.get_num_threads(), "steps": rows})
        print(f"written to {os.path.relpath(path)}")


def measure(count: int, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Medians for one list of tensors, printed and returned."""
    elements = 0
    optimizers = {}
    for name, make in MAKE.items():
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in SETS[count]()]
        for p in params:
            p.grad = torch.randn_like(p)
        elements = sum(p.numel() for p in params)
        optimizers[name] = make(params)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(steps + 3):
        for name, opt in optimizers.items():
            seconds = timed(opt.step, device)
            if turn >= 3:
                times[name].append(seconds)
    agree(optimizers)
    print(f"{count} tensors, {elements / 1e6:.1f} M elements")
    rows = []
    for name, found in times.items():
        ratio = median(a / b for a, b in zip(found, times["optgen"], strict=True))
        middle = median(found)
        rows.append(
            {
                "tensors": count,
                "elements": elements,
                "what": name,
                "ms": round(middle * 1e3, 3),
                "fastest_ms": round(min(found) * 1e3, 3),
                "times_optgen": round(ratio, 3),
            }
        )
        speed = (
            f"{elements * BYTES / middle / 1e9:6.1f} GB/s"
            if "loop" not in name and "foreach" not in name
            else ""
        )
        print(f"  {name:14} {middle * 1e3:8.2f} ms   {ratio:5.2f} x optgen   {speed}")
    print()
    return rows


def agree(optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """Check that they all did the same: a fast wrong step is worth nothing."""
    reference = [p for g in optimizers["torch loop"].param_groups for p in g["params"]]
    mine = [p for g in optimizers["optgen"].param_groups for p in g["params"]]
    for a, b in zip(mine, reference, strict=True):
        error = ((a - b).abs().max() / b.abs().max()).item()
        assert error < 1e-5, f"optgen and torch differ by {error:.1e}"


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, with the work that it leaves on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
