"""What a step costs besides the arithmetic: 1,000 tensors of 8 elements, beside torch's fused AdamW.

The second question has 4 parameter groups and an LR scheduler, which steps before every turn, untimed, so
that no step finds the hyperparameters of the one before.

    python benchmarks/overhead.py                   10 s
    python benchmarks/overhead.py --against PATH    two to three minutes

With --against it is another checkout of optgen that a step is compared with, for 1 to 10,000 tensors of 8
elements: each has processes of its own (`checkouts.py`), and the figures are ratios, this one / the other.
--fresh-grads gives every step new gradient tensors, as a training loop does. Nothing is written.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkouts import Failed, compare, table
from machine import Others
from report import Row, finish
from shapes import tensors
from turns import Times, alternate, milliseconds, ratio

TENSORS, ELEMENTS = 1000, 8
AGAINST: dict[str, Any] = {"counts": [1, 10, 100, 1000, 10_000], "rules": ["AdamW"], "pairs": 3}


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--turns", type=int, default=300, help="turns that are measured (300)")
    parser.add_argument("--no-save", action="store_true", help="write no JSON and no picture")
    other = parser.add_argument_group("another checkout")
    other.add_argument("--against", type=Path, metavar="PATH", help="its folder")
    other.add_argument("--limit", type=float, help="end with 1 where a median is above this")
    other.add_argument("--counts", type=listed(int), help="of tensors (1,10,100,1000,10000)")
    other.add_argument("--rules", type=listed(str), help="classes, with their defaults (AdamW)")
    other.add_argument("--fresh-grads", action="store_true", help="new gradient tensors for every step")
    other.add_argument("--pairs", type=int, help="of processes that the turns are divided among (3)")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in (*AGAINST, "limit", "fresh_grads")}
    if options.against is None:
        for name in (name for name, value in given.items() if value):
            parser.error(f"--{name.replace('_', '-')} needs --against")
        beside_torch(options.turns, not options.no_save)
        return 0
    given |= {name: value for name, value in AGAINST.items() if not given[name]}
    try:
        return against(options.against, options.turns, **given)
    except Failed as error:
        parser.error(str(error))


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """What reads values of one kind with commas between them."""
    return lambda text: [kind(item) for item in text.split(",")]


def against(
    other: Path,
    turns: int,
    counts: list[int],
    rules: list[str],
    pairs: int,
    limit: float | None,
    fresh_grads: bool,
) -> int:
    """Print what a step takes beside the other checkout's; 1 where a median is above the limit, else 0."""
    others = Others()
    questions = [(rule, count) for rule in rules for count in counts]
    found = compare(other, questions, turns, pairs, fresh_grads)
    print("\n".join(table(found, limit)))
    others.warn()
    return int(limit is not None and any(ratio(times, *times).median > limit for times in found.values()))


def beside_torch(turns: int, keep: bool) -> None:
    """Report what a step takes beside torch's; with `keep`, also to files."""
    others = Others()
    rows, figures = [], {}
    for groups, target in ((1, 1 / 4), (4, 1 / 3)):
        times = measure(groups, turns)
        found = ratio(times, "optgen", "torch fused")
        with_groups = "" if groups == 1 else f", {groups} groups and a scheduler"
        question = f"{TENSORS} tensors of {ELEMENTS}{with_groups}: step() / torch fused"
        figures[f"{groups} groups"] = milliseconds(times)
        note = ", ".join(f"{name} {t['median']:.2f} ms" for name, t in figures[f"{groups} groups"].items())
        rows.append(Row(question, found.median, target, quartiles=found.quartiles, note=note))
    finish("overhead", rows, {"milliseconds": figures}, others, keep)


def measure(groups: int, turns: int) -> Times:
    """Seconds of `step()` of both; with several groups, a scheduler changes lr before every turn."""
    import torch  # not by what only starts the processes of two checkouts

    import optgen

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


def in_groups(groups: int) -> list[dict[str, list[Any]]]:
    """The parameters, with gradients, in groups of the same size."""
    params = tensors(TENSORS * [(ELEMENTS,)])
    return [{"params": params[k::groups]} for k in range(groups)]


if __name__ == "__main__":
    sys.exit(main())
