"""All questions that need no GPU, one after the other: what `make bench` runs, in some twelve minutes.

Each script is a process of its own, and leaves its own files in `results/`. At the end comes one line a
question, and `results/summary-<machine>.json` has them all. A target that is not met is no error; a script
that fails is, after the others have run.

    python benchmarks/run.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from machine import RESULTS, Others, describe, slug
from report import Row, draw, save

HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "overhead": (),
    "cpu": ("--turns", "11", "--seconds", "10"),
    "memory": (),
    "latency": ("--quick",),
}


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--only", nargs="+", choices=[*SCRIPTS], help="run these scripts")
    options = parser.parse_args()
    others, start = Others(), time.perf_counter()
    rows, failed, taken = [], [], {}
    for script in options.only or SCRIPTS:
        print(f"\n{script}.py {' '.join(SCRIPTS[script])}", flush=True)
        began = time.perf_counter()
        done = subprocess.run([sys.executable, HERE / f"{script}.py", *SCRIPTS[script]])
        taken[script] = round(time.perf_counter() - began, 1)
        if done.returncode:
            failed.append(script)
        else:
            rows += rows_of(script)
    used = others.share()
    if rows:
        path = save(f"summary-{slug()}", rows, {"used_by_others": used, "seconds": taken})
        draw(path.with_suffix(".png"), rows, f"{describe()['cpu']}, {describe()['cores']} cores")
    print(f"\n{describe()['cpu']}, {describe()['cores']} cores, {time.perf_counter() - start:.0f} s")
    for row in rows:
        print(row)
    others.warn()
    for script in failed:
        print(f"{script}.py FAILED: its error is above", file=sys.stderr)
    return 1 if failed else 0


def rows_of(script: str) -> list[Row]:
    """The rows that a script has just written."""
    text = (RESULTS / f"{script}-{slug()}.json").read_text(encoding="utf-8")
    return [Row.of(record) for record in json.loads(text)["rows"]]


if __name__ == "__main__":
    sys.exit(main())
