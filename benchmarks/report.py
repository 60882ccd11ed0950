"""What the scripts here report: one row a question, a table, a picture and a JSON file.

In: rows and whatever else a script measured. Out: text on standard output, and in `results/` the file
`<script>-<machine>.json` and beside it the picture `<script>-<machine>.png`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import RESULTS, Others, describe, slug


@dataclass(frozen=True)
class Row:
    """One question and its answer.

    `target` is the most that the figure may be, or with `at_least` the least; None asks for nothing.
    `quartiles` are those of the turns whose median the figure is. With `bound` the figure is a bound in the
    target's direction, because what it is compared with was stopped.
    """

    question: str
    figure: float
    target: float | None = None
    at_least: bool = False
    unit: str = ""
    quartiles: tuple[float, float] | None = None
    bound: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def record(self) -> dict[str, Any]:
        """The row for JSON."""
        return {**asdict(self), "met": self.met}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Row:
        """The row that `record` made."""
        given = {key: value for key, value in record.items() if key != "met"}
        quartiles = given["quartiles"]
        return cls(**{**given, "quartiles": tuple(quartiles) if quartiles else None})

    def __str__(self) -> str:
        """One line: met or not, the figure, its quartiles, the target, the question."""
        verdict = {True: "met", False: "NOT MET", None: ""}[self.met]
        sign = "" if not self.bound else ">" if self.at_least else "<"
        spread = f"[{number(self.quartiles[0])}, {number(self.quartiles[1])}]" if self.quartiles else ""
        asked = ""
        if self.target is not None:
            asked = f"{'>=' if self.at_least else '<='} {number(self.target)}{self.unit and ' ' + self.unit}"
        figure = f"{sign}{number(self.figure)}{self.unit and ' ' + self.unit}"
        note = f" ({self.note})" if self.note else ""
        return f"{verdict:7} {figure:>9} {spread:16} {asked:9} {self.question}{note}"


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def finish(
    script: str, rows: Sequence[Row], figures: Mapping[str, Any], others: Others, keep: bool = True
) -> None:
    """Print the rows; with `keep`, write them, the further figures and a picture to `results/`.

    `others` began with the first measurement. What it says is kept too, and said where it is much.
    """
    used = others.share()
    print()
    for row in rows:
        print(row)
    others.warn()
    if keep:
        path = save(f"{script}-{slug()}", rows, {"used_by_others": used, **figures})
        draw(path.with_suffix(".png"), rows, f"{script}.py on {describe()['cpu']}")
        print(f"\nwritten to {os.path.relpath(path)} and {path.with_suffix('.png').name}")


def save(name: str, rows: Sequence[Row], figures: Mapping[str, Any]) -> Path:
    """Write rows and figures, with the machine, to `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    written = {"machine": describe(), "rows": [row.record() for row in rows], **figures}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return path


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """A bar a row that has a target: how much of the target it uses up, so that 1 is the target.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; it comes with `optgen[demo]`.
    """
    from matplotlib.figure import Figure

    asked = [row for row in rows if row.target is not None]
    if not asked:
        return
    used = [share(row, row.figure) for row in asked]
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(asked)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(asked)), used, color=["#4c956c" if row.met else "#d1495b" for row in asked])
    for i, row in enumerate(asked):
        if row.quartiles:
            axes.plot([share(row, q) for q in row.quartiles], [i, i], color="black", linewidth=1)
        axes.text(0.01 * max(1, *used), i, number(row.figure) + row.unit, va="center", fontsize=7)
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(asked)), [row.question for row in asked], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("of the target: what reaches past the line does not meet it")
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def share(row: Row, value: float) -> float:
    """How much of a row's target a value uses up: at most 1 where it meets it."""
    assert row.target is not None
    return row.target / value if row.at_least else value / row.target
