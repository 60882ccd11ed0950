"""No text names a module that has moved: what source, pages and tests name is where they say."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import optgen

CHECKOUT = Path(optgen.__file__).parent.parent
ROOMS = [path.name for path in (CHECKOUT / "optgen").iterdir() if path.is_dir() and path.name[0] != "_"]
# Modules that lay at the top of optgen/, or in a room by another name, up to 0.1.0.
OLD = [
    "syntax", "stepwise", "compose", "scaling", "settings", "interface", "handing", "watching",
    "counting", "opaque", "trial", "saved", "freezing", "steady", "disk", "tables", "stubs", "demo",
    "arguments", "semantics", "functions", "grammar", "declarations", "expressions", "philox", "codecs",
    "backends.numpy", "backends.ahead", "cpu.runtime", "cpu.objects", "cpu.spelling", "cpu.sweeps",
    "cpu.rounds", "cpu.team", "cpu.stored", "triton.spelling", "triton.sweeps", "triton.rounds",
    "triton.prologue", "plan.steps", "plan.cut", "plan.candidates", "launch.geometry", "launch.sharding",
    "launch.runners", "launch.cells", "launch.onecall", "launch.clock",
]  # fmt: skip
BARE = "syntax stepwise compose handing watching onecall ahead prologue runners sharding"
TEXTS = sorted(
    path
    for pattern in (
        "optgen/**/*.py",
        "docs/**/*.md",
        "docs/*.py",
        "tests/**/*.py",
        "benchmarks/*.py",
        "*.md",
        "Makefile",
    )
    for path in CHECKOUT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "test_rows.py", Path(__file__).name)
)
DOTTED = re.compile(r"\boptgen((?:\.[A-Za-z_]\w*)+)")
PATHS = re.compile(r"(?<![\w/.])(?:optgen|tests|benchmarks)/[\w/]+\.(?:py|c)\b")


def resolves(names: list[str]) -> bool:
    """Whether a dotted name inside optgen is a module, or something in one."""
    home, found = "optgen", optgen
    while names and hasattr(found, "__path__") and find_spec(f"{home}.{names[0]}") is not None:
        home = f"{home}.{names.pop(0)}"
        found = import_module(home)
    return all((found := getattr(found, name, None)) is not None for name in names)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_no_text_names_what_has_moved(path):
    text = path.read_text(encoding="utf-8")
    wrong = [old for old in OLD if re.search(rf"optgen(\.|/){old.replace('.', '[./]')}\b", text)]
    wrong += re.findall(rf"`(?:{BARE.replace(' ', '|')})`", text)
    wrong += [f"`{old}…`" for old in OLD if re.search(rf"`{re.escape(old)}\.\w+", text)]
    for found in DOTTED.finditer(text):
        names = found[1][1:].split(".")
        if names[0] in ROOMS and names[0] not in ("tree", "store", "config") and not resolves(names):
            wrong.append(found[0])
    for room, rest in re.findall(r"`([a-z]+)\.([\w.]+)`", text):
        if (
            room in ROOMS
            and room not in ("tree", "store", "config", "plan")
            and not resolves([room, *rest.split(".")])
        ):
            wrong.append(f"{room}.{rest}")
    wrong += [p for p in PATHS.findall(text) if not (CHECKOUT / p).exists()]
    assert wrong == []
