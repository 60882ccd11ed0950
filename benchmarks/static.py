"""What the compiled kernels are, without a GPU: registers, spills, widths, bytes an element.

Every shipped rule, transforms chained with one, is compiled for sm_80 and sm_90, with float32 throughout and
with bfloat16 parameters and gradients beside float32 state. `results/static.json` has a record for each, from
which the documentation makes its table. A record whose emitted source is still the same is kept, so that a
second run compiles only what has changed.

    python benchmarks/static.py            two minutes at first
    python benchmarks/static.py --only adamw lamb
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from machine import cores
from optgen import library
from optgen.backends import cache
from optgen.compiler import planned
from optgen.library import runnable
from optgen.plan.plan import Plan
from report import Row

PATH = Path(__file__).resolve().parent / "results" / "static.json"
TARGETS = ("sm_80", "sm_90")
STORAGE = {"fp32": ("fp32", None), "bf16+fp32": ("bf16", "fp32")}
REGISTERS = 64  # of a thread, for half of the threads that an SM can hold
Record = dict[str, Any]


def main() -> int:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--only", nargs="+", metavar="RULE", help="look at these rules; the others are kept")
    options = parser.parse_args()
    if unknown := sorted(set(options.only or ()) - {*library.names()}):
        parser.error(f"there is no rule {', '.join(unknown)}")
    triton = version("triton")
    known = records() if compiler() == triton else {}
    wanted = [(r, s, t) for r in options.only or library.names() for s in STORAGE for t in TARGETS]
    stale = [key for key in wanted if known.get(key, {}).get("source") != digest(*key[:2])]
    print(f"{len(wanted)} records, {len(stale)} to compile", file=sys.stderr)
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
        for i, record in enumerate(pool.map(compiled, stale), 1):
            known[record["rule"], record["storage"], record["target"]] = record
            print(
                f"{i}/{len(stale)} {record['rule']} {record['storage']} {record['target']}", file=sys.stderr
            )
    kept = [known[key] for key in sorted(known) if key[0] in library.names()]
    PATH.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(record) for record in kept)
    PATH.write_text(f'{{"triton": "{triton}", "records": [\n{lines}\n]}}\n', encoding="utf-8")
    for row in rows(kept):
        print(row)
    print(f"\nwritten to {os.path.relpath(PATH)}")
    return 0


def records() -> dict[tuple[str, str, str], Record]:
    """What `results/static.json` has, by rule, storage and target; nothing where there is no such file."""
    found = json.loads(PATH.read_text(encoding="utf-8"))["records"] if PATH.exists() else []
    return {(r["rule"], r["storage"], r["target"]): r for r in found}


def compiler() -> str:
    """The version of Triton that `results/static.json` is of, or an empty text."""
    return json.loads(PATH.read_text(encoding="utf-8"))["triton"] if PATH.exists() else ""


def plan_of(rule: str, storage: str) -> Plan:
    """The plan of a shipped rule under its defaults, for matrices."""
    return planned(runnable([library.rule(rule)])[0], *STORAGE[storage])


def digest(rule: str, storage: str) -> str:
    """A name for the source that Triton compiles."""
    source = cache.emit(plan_of(rule, storage), "triton")
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def compiled(key: tuple[str, str, str]) -> Record:
    """Compile the kernels of one rule for one storage and target."""
    from optgen.backends.layout import Layout
    from optgen.backends.triton.ahead_of_time import compile_ahead

    rule, storage, target = key
    plan = plan_of(rule, storage)
    module = cache.load(cache.emit(plan, "triton"), plan.name, "triton")
    halves = iter(
        sum(plan.codecs.get(s) in ("bf16", "fp16") for s in (*step.loads, *step.values))
        for step in plan.sweeps
    )
    kernels = [
        {
            "kernel": r.kernel, "registers": r.registers, "spilled": r.spilled, "loads": r.loads,
            "stores": r.stores, "planned": r.planned, "found": r.found,
            "halves": 0 if r.planned is None else next(halves),
        }
        for r in compile_ahead(Layout(plan), module, target)
    ]  # fmt: skip
    head = {"rule": rule, "storage": storage, "target": target, "phases": len(plan.sweeps)}
    return {**head, "codecs": dict(plan.codecs), "source": digest(rule, storage), "kernels": kernels}


# What is asked of them


def sweeps(record: Mapping[str, Any]) -> list[Record]:
    """The kernels that sweep elements, one a phase."""
    return [k for k in record["kernels"] if k["planned"] is not None]


def registers(record: Mapping[str, Any]) -> int:
    """The most registers that a kernel of the record uses."""
    return max(k["registers"] for k in record["kernels"])


def spilled(record: Mapping[str, Any]) -> int:
    """The bytes that all kernels of the record spill."""
    return sum(k["spilled"] for k in record["kernels"])


def as_planned(record: Mapping[str, Any]) -> bool:
    """Whether each sweep moves the bytes an element that the plan says."""
    return all(k["found"] == k["planned"] for k in sweeps(record))


def wide(record: Mapping[str, Any]) -> bool:
    """Whether every access has 128 bits, but for one of 64 for each tensor of 16-bit elements."""
    return all(
        widths.count(64) == k["halves"] and widths.count(128) == len(widths) - k["halves"]
        for k in sweeps(record)
        for widths in [[*k["loads"], *k["stores"]]]
    )


def light(record: Mapping[str, Any]) -> bool:
    """Whether a rule of one phase leaves room for half of the threads; more phases are not asked."""
    return record["phases"] > 1 or all(k["registers"] <= REGISTERS for k in sweeps(record))


QUESTIONS = {
    "no bytes spilled": lambda record: spilled(record) == 0,
    "the planned bytes an element": as_planned,
    "wide accesses only": wide,
    f"at most {REGISTERS} registers, where there is one phase": light,
}


def rows(found: Iterable[Record]) -> list[Row]:
    """A row a question: the share of the records for which it holds, and the rules for which it does not."""
    found, result = list(found), []
    for question, holds in QUESTIONS.items():
        failing = sorted({r["rule"] for r in found if not holds(r)})
        share = sum(map(holds, found)) / max(1, len(found))
        result.append(Row(f"compiled kernels with {question}", share, 1.0, True, note=", ".join(failing)))
    return result


if __name__ == "__main__":
    sys.exit(main())
