"""What a step costs besides the arithmetic, beside torch's: 1,000 tensors of 8 elements and other cases.

A row is a feature and what it replaces (`cases.py` says what is timed of both, and what makes it fair).

    python benchmarks/overhead.py                   some two minutes
    python benchmarks/overhead.py --only AdamW Adafactor
    python benchmarks/overhead.py --against PATH    two to three minutes

With --against it is another checkout of optgen that a step is compared with, for 1 to 10,000 tensors of 8
elements: each has processes of its own (`checkouts.py`), and the figures are ratios, this one / the other.
--fresh-grads gives every step new gradient tensors, as a training loop does. Nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from checkouts import Failed, compare, table
from machine import Others
from report import Row, finish, number
from turns import milliseconds, ratio

AGAINST: dict[str, Any] = {"counts": [1, 10, 100, 1000, 10_000], "rules": ["AdamW"], "pairs": 3}


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--turns", type=int, default=300, help="turns that are measured (300)")
    parser.add_argument("--seconds", type=float, default=4, help="at most, for the turns of a row (4)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows that begin with one of these")
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
        try:
            beside_torch(options.turns, options.seconds, options.only, not options.no_save)
        except Failed as error:
            parser.error(str(error))
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


def beside_torch(turns: int, limit: float, names: Sequence[str] | None, keep: bool) -> None:
    """Report what steps take beside torch's; with `keep`, also to files."""
    from cases import CASES  # torch, which what only starts the processes of two checkouts does not need

    chosen = [case for case in CASES if names is None or case.name.startswith(tuple(names))]
    if not chosen:
        raise Failed(f"no row begins with {' or '.join(names or ())}: there are {[c.name for c in CASES]}")
    others = Others()
    rows, figures = [], {}
    for case in chosen:
        print(f"{case.name} ...", file=sys.stderr)
        times = case.measure(turns, limit)
        found = ratio(times, "optgen", *case.others(times))
        figures[case.name] = {"turns": len(times["optgen"]), **milliseconds(times)}
        medians = {name: 1e3 * median(values) for name, values in times.items()}
        note = ", ".join(f"{name} {number(value)} ms" for name, value in medians.items())
        note += f"; {case.note(times)}" if case.note else ""
        question = f"{case.name} / {case.beside}"
        rows.append(Row(question, found.median, case.target, quartiles=found.quartiles, note=note))
    finish("overhead", rows, {"milliseconds": figures}, others, keep)


if __name__ == "__main__":
    sys.exit(main())
