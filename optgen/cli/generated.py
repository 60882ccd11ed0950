"""What is generated for a shipped rule, in a checkout: type stub, LaTeX, a record of its compiled kernels.

In: the name of a rule in rules/. Out: files that tests compare with what the rule gives now, and what is left
to be written by hand: its oracle. A fresh process makes each part, and knows the rules that lie there now.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optgen import library
from optgen.cli import new
from optgen.errors import RuleError

STUB = Path("optgen/__init__.pyi")
RECORDS = Path("benchmarks/results/static.json")
TABLE = Path("rules/ORACLES.md")


def checkout() -> Path:
    """The folder that optgen's own source lies in, with the tests.

    Raises:
        RuleError: this optgen is installed, and its rules lie inside the package.
    """
    root = Path(__file__).resolve().parents[2]
    if library.folder() != root / "rules" or not (root / "tests").is_dir():
        help = "without --shipped the rule is written into this folder"
        raise RuleError("--shipped is for a checkout of optgen, and this is none", None, help)
    return root


def ship(name: str) -> Iterator[str]:
    """Write a shipped rule, if it is not there, and what is generated for it; yields what was done.

    Raises:
        RuleError: no rule can have that name, the rule's text is wrong, or this is no checkout.
    """
    root = checkout()
    if name in library.names():
        library.rule(name)  # a mistake in it is to be shown with its place
        yield f"rules/{name}.rule stays as it is"
    else:
        new.check_name(name)
        path = new.write(name, root / "rules")
        yield f"wrote {path.relative_to(root)}: {library.camel(name)}, the heavy ball to start from"
    yield _put(root, STUB, _run(root, "-m", "optgen", "stubs"))
    latex = _run(root, "-m", "optgen", "show", name, "--latex")
    yield _put(root, Path(f"tests/golden/latex/{name}.txt"), latex)
    yield _records(name, root)
    yield from _missing(name, root)
    yield f"next: write the rule in rules/{name}.rule, and `make rule NAME={name}` again after each change"


def _missing(name: str, root: Path) -> Iterator[str]:
    """What is written by hand for a rule, and is not there."""
    folder = min(root.glob("tests/**/oracles"))
    test = min(root.glob("tests/**/test_oracles.py"))
    first = re.compile(rf"\(\s*[\"']{name}[\"'],")  # argument of a call
    if not any(first.search(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")):
        yield f"missing: an oracle, Oracle({name!r}, …) among the ORACLES of {folder.relative_to(root)}/"
    if f"| `{name}` |" not in (root / TABLE).read_text(encoding="utf-8"):
        writes = f"pytest '{test.relative_to(root)}::test_a_hundred_steps[{name}]' --update-golden"
        yield f"missing: its row of {TABLE}, which this writes: {writes}"


def _put(root: Path, path: Path, text: str) -> str:
    """Write a file, unless it has that text; what was done."""
    there = root / path
    if there.exists() and there.read_text(encoding="utf-8") == text:
        return f"{path} is as it should be"
    there.write_text(text, encoding="utf-8", newline="\n")
    return f"wrote {path}"


def _records(name: str, root: Path) -> str:
    """Compile the rule's kernels for the table of them; what was done."""
    known = json.loads((root / RECORDS).read_text(encoding="utf-8"))["triton"]
    try:
        installed = version("triton")
    except PackageNotFoundError:
        installed = "not installed"
    if installed != known:  # a record is of one version of Triton, and so is every other in the file
        return f"missing: its records in {RECORDS}, which are of Triton {known}, and here it is {installed}"
    _run(root, "benchmarks/static.py", "--only", name)
    return f"wrote {RECORDS}"


def _run(root: Path, *words: str) -> str:
    """What Python prints, started in the checkout.

    Raises:
        RuleError: it failed; what it wrote is printed.
    """
    given = {**os.environ, "PYTHONPATH": os.fspath(root), "PYTHONUTF8": "1"}
    given.pop("TRITON_INTERPRET", None)  # with which nothing is compiled
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=root, env=given, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise RuleError(f"this failed: python {' '.join(words)}")
    return done.stdout
