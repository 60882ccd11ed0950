"""The page about compiled kernels, as Markdown: what `benchmarks/static.py` found, one line a rule.

In: `benchmarks/results/static.json`. Out: a `Page`. Nothing is compiled when the documentation is built; a
test compares the file with fresh compilations, and the names of the rules with those that there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import Page, title_of

RECORDS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "static.json"
TITLE = "Compiled kernels"
STORAGE = {"fp32": "float32", "bf16+fp32": "bfloat16 parameters and gradients, float32 state"}
TEXT = """\
# Compiled kernels

What Triton {triton} makes of every rule, compiled without a GPU by `benchmarks/static.py`. A transform is
chained with a rule. Bytes are those of one element, as planned and as found in the machine code. Accesses
are the widths in bits of a thread's loads and stores. Registers are those of a thread, in the kernel that
has the most, for {targets}: up to 64 leave room for half of the threads that an SM can hold.
"""


def page() -> Page:
    """The page, with a table for each storage."""
    read = json.loads(RECORDS.read_text(encoding="utf-8"))
    found = {(r["rule"], r["storage"], r["target"]): r for r in read["records"]}
    targets = sorted({target for _, _, target in found})
    sections = [TEXT.format(triton=read["triton"], targets=" and ".join(targets))]
    for storage, title in STORAGE.items():
        head = f"## {title[0].upper()}{title[1:]}\n"
        lines = ["| rule | phases | bytes planned | found | accesses | registers | spilled |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for rule in sorted({rule for rule, _, _ in found}, key=lambda name: title_of(name).lower()):
            lines.append(_line(rule, [found[rule, storage, target] for target in targets]))
        sections.append("\n".join([head, *lines]) + "\n")
    return Page("kernels.md", TITLE, "", "\n".join(sections))


def known() -> set[str]:
    """The rules that the file has."""
    return {r["rule"] for r in json.loads(RECORDS.read_text(encoding="utf-8"))["records"]}


def _line(rule: str, records: Sequence[Mapping[str, Any]]) -> str:
    """A rule's line; what differs between the targets is given for each."""
    sweeps = [[k for k in r["kernels"] if k["planned"] is not None] for r in records]
    cells = [
        f"[{title_of(rule)}](rules/{rule}.md)",
        str(records[0]["phases"]),
        _each(sum(k["planned"] for k in found) for found in sweeps),
        _each(f"{sum(k['found'] for k in found):g}" for found in sweeps),
        _each(_widths(found) for found in sweeps),
        _each((max(k["registers"] for k in r["kernels"]) for r in records), always=True),
        _each(sum(k["spilled"] for k in r["kernels"]) for r in records),
    ]
    return f"| {' | '.join(cells)} |"


def _widths(found: Sequence[Mapping[str, Any]]) -> str:
    """`128` or `64, 128`."""
    return ", ".join(map(str, sorted({bits for k in found for bits in (*k["loads"], *k["stores"])})))


def _each(values: Any, always: bool = False) -> str:
    """The values of all targets, or one for all where they are equal."""
    texts = [str(value) for value in values]
    return " / ".join(texts if always or len(set(texts)) > 1 else texts[:1])
