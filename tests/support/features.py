"""`features.md`: each row of `rows.py`, the tests named after it, and what became of them.

In: the names in tests/**/*.py, and outcomes as pytest reports them. Out: the table. `conftest.py` hands the
outcomes over when pytest runs with `--update-golden`; `test_rows.py` checks the table without it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from rows import ROWS, SYSTEMS

TESTS = Path(__file__).parents[1]
TABLE = TESTS / "features.md"
NAME = re.compile(rf"test_({'|'.join(SYSTEMS).lower()})_(\d\d)_")
HEAD = """\
# The four systems, feature by feature

Written by `pytest -k "test_gen_ or test_spc_ or test_opt_ or test_gns_" --update-golden`, which replaces the
outcome of what it ran. `rows.py` lists the rows and says what the priorities mean.
"""
COLUMNS = "\n| row | priority | what | tests | outcome |\n|---|---|---|---|---|\n"
NOT_RUN = "not run"


class Entry(NamedTuple):
    """A line of the table, as text."""

    id: str
    priority: str
    what: str
    tests: str
    outcome: str


def row_of(test: str) -> str | None:
    """The row that a test is named after: GEN-01 for `test_gen_01_…`."""
    found = NAME.match(test)
    return f"{found[1].upper()}-{found[2]}" if found else None


def named_tests(folder: Path = TESTS) -> dict[str, list[str]]:
    """The tests in a folder that are named after rows, as `file.py::test_gen_01_…`, in order."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py"), key=lambda path: path.name):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (row := row_of(node.name)):
                found.setdefault(row, []).append(f"{path.name}::{node.name}")
    return found


def outcome(before: str, tests: Collection[str], ran: Mapping[str, str]) -> str:
    """A row's outcome after a session, in which some of its tests ran.

    One failure is a failure, which lasts until a session in which all tests of the row ran.
    """
    found = {ran[test] for test in tests if test in ran}
    if "failed" in found:
        return "failed"
    if "passed" not in found or (before == "failed" and not set(tests) <= ran.keys()):
        return before
    return "passed"


def listed() -> list[Entry]:
    """The lines of the table as it is."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return [Entry(*c) for c in cells if len(c) == len(Entry._fields) and c[0][:3] in SYSTEMS]


def entries(before: Mapping[str, str], ran: Mapping[str, str]) -> list[Entry]:
    """The table as it should be, from each row's outcome until now and what became of tests since."""
    tests = named_tests()
    return [
        Entry(
            *row,
            ", ".join(f"`{name}`" for name in tests.get(row.id, [])),
            outcome(before.get(row.id, NOT_RUN), tests[row.id], ran) if row.id in tests else "no test",
        )
        for row in ROWS
    ]


def write(ran: Mapping[str, str]) -> None:
    """Bring the table up to date with what became of tests, by `file.py::test_gen_01_…`."""
    table = entries({entry.id: entry.outcome for entry in listed() if entry.tests}, ran)
    text = HEAD
    for prefix, system in SYSTEMS.items():
        lines = [f"| {' | '.join(entry)} |\n" for entry in table if entry.id.startswith(prefix)]
        text += f"\n## {system}\n{COLUMNS}{''.join(lines)}"
    TABLE.write_text(text, encoding="utf-8")


class Recorder:
    """A pytest plugin that notes what becomes of the tests of rows, and writes the table at the end.

    It belongs on the controller of pytest-xdist, which is handed the reports of all workers.
    """

    def __init__(self) -> None:
        self.ran: dict[str, str] = {}

    def pytest_runtest_logreport(self, report) -> None:
        path, *_, test = report.nodeid.partition("[")[0].split("::")
        if row_of(test) is None:
            return
        name = f"{Path(path).name}::{test}"
        if report.failed:
            self.ran[name] = "failed"
        elif report.passed and report.when == "call":
            self.ran.setdefault(name, "passed")
        elif report.skipped:
            self.ran.setdefault(name, "skipped")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus in (0, 1):  # not when it was interrupted
            write(self.ran)
