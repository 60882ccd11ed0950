"""What a step costs besides the arithmetic: 1,000 tensors of 8 elements, beside torch's fused AdamW.

The second question has 4 parameter groups and an LR scheduler, which steps before every turn, untimed, so
that no step finds the hyperparameters of the one before.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import gc

import torch

import optgen
from machine import Others
from report import Row, finish
from shapes import tensors
from turns import Times, alternate, milliseconds, ratio

TENSORS, ELEMENTS = 1000, 8


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--turns", type=int, default=300, help="turns that are measured (300)")
    parser.add_argument("--no-save", action="store_true", help="write no JSON and no picture")
    options = parser.parse_args()
    others = Others()
    rows, figures = [], {}
    for groups, target in ((1, 1 / 4), (4, 1 / 3)):
        times = measure(groups, options.turns)
        found = ratio(times, "optgen", "torch fused")
        with_groups = "" if groups == 1 else f", {groups} groups and a scheduler"
        question = f"{TENSORS} tensors of {ELEMENTS}{with_groups}: step() / torch fused"
        figures[f"{groups} groups"] = milliseconds(times)
        note = ", ".join(f"{name} {t['median']:.2f} ms" for name, t in figures[f"{groups} groups"].items())
        rows.append(Row(question, found.median, target, quartiles=found.quartiles, note=note))
    finish("overhead", rows, {"milliseconds": figures}, others, not options.no_save)


def measure(groups: int, turns: int) -> Times:
    """Seconds of `step()` of both; with several groups, a scheduler changes lr before every turn."""
    optimizers = {
        "optgen": optgen.AdamW(in_groups(groups), lr=1e-3),
        "torch fused": torch.optim.AdamW(in_groups(groups), lr=1e-3, fused=True),
    }
    schedulers = []
    if groups > 1:
        decays = [lambda step, k=k: 1 / (1 + 0.01 * step * (k + 1)) for k in range(groups)]
        schedulers = [torch.optim.lr_scheduler.LambdaLR(opt, decays) for opt in optimizers.values()]
    for opt in optimizers.values():
        opt.step()
    gc.freeze()  # a collection of what torch and numba hold takes longer than a step
    times = alternate(
        {name: opt.step for name, opt in optimizers.items()},
        turns,
        before=lambda: [scheduler.step() for scheduler in schedulers],
    )
    mine, theirs = (
        torch.cat([p.detach() for group in opt.param_groups for p in group["params"]])
        for opt in optimizers.values()
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)  # a wrong step may be fast
    return times


def in_groups(groups: int) -> list[dict[str, list[torch.nn.Parameter]]]:
    """The parameters, with gradients, in groups of the same size."""
    params = tensors(TENSORS * [(ELEMENTS,)])
    return [{"params": params[k::groups]} for k in range(groups)]


if __name__ == "__main__":
    main()
