"""Imports go one way between the rooms of docs/architecture.md, and nothing in them is too long to read.

Each outside package has its place.

The imports are read from the source with `ast`, those inside functions and under TYPE_CHECKING too.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import optgen

PACKAGE = Path(optgen.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
# What is imported within a function or a class, by module: what it needs may not be installed, or is slow
# to import and not always needed.
LATE = {
    "cli.main": {
        "algebra.latex",
        "backends.triton.ahead_of_time",
        "backends.triton.kernels",
        "cli.demo",
        "cli.stubs",
        "verify.check",
    },
    "cli.render": {"backends.triton.ahead_of_time", "verify.check"},
    "launch.buckets": {"launch.device_scalars"},
    "launch.guards": {"backends.cpu.kernel"},
    "launch.launcher": {"backends.triton.kernels"},
    "optim": {"optim.optimizer"},  # old pickles name a function of the package
    "schedules": {"schedules.schedulers"},
    "tree": {"library"},
    "verify.check": {"backends.triton.kernels"},
    "verify.differential": {"backends.triton.kernels"},
}
PACKAGES, ENTRIES = 14, 20  # at most, at the top of optgen/
LINES = {ast.Module: 400, ast.ClassDef: 300, ast.FunctionDef: 60}  # at most

# Who may import an outside package; None is anybody. What is not here is not a dependency.
TRAINING = {"launch", "optim", "tree", "store", "training", "release", "schedules", "config", "verify", "cli"}
OUTSIDE: dict[str, set[str] | None] = {
    "numpy": None,
    "torch": TRAINING | {"backends.cpu.kernel", "backends.cpu.openmp"},  # which use torch's threads
    "numba": TRAINING
    | {f"backends.cpu.{name}" for name in ("kernel", "intrinsics", "machine_code", "pyobjects")},
    "llvmlite": {"backends.cpu.kernel", "backends.cpu.intrinsics", "backends.cpu.machine_code"},
    "triton": TRAINING | {f"backends.triton.{name}" for name in ("kernels", "step_scalars", "ahead_of_time")},
    "sympy": {"algebra.proof", "algebra.scalars"},
    "mpmath": {"algebra.proof", "algebra.scalars"},  # sympy's own arithmetic
    "rich": {"cli"},
    "matplotlib": {"cli.demo"},
    "sklearn": {"cli.demo"},
    "fsspec": {"store.folder"},
    "safetensors": {"store.snapshot"},
    "pydantic": {"config.schema"},
    "yaml": {"config.reading"},
}


def name_of(path: Path) -> str:
    """`backends.cache` for optgen/backends/cache.py, and the empty name for optgen/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    """Whether it is late, the module and the names of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for found in ast.walk(tree):
        late = found not in tree.body
        if isinstance(found, ast.Import):
            for alias in found.names:
                yield late, alias.name, ()
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, f"{path}:{found.lineno} imports relatively: write the whole name"
            yield late, found.module or "", tuple(alias.name for alias in found.names)


def reached(name: str) -> set[tuple[bool, str]]:
    """The modules of optgen that one imports; `from optgen import library` reaches `library`."""
    found = set()
    for late, module, names in imports(FILES[name]):
        if module.split(".")[0] == "optgen":
            inside = module.removeprefix("optgen").lstrip(".")
            inner = [f"{inside}.{each}".lstrip(".") for each in names]
            found |= {(late, each) for each in [e for e in inner if e in FILES] or [inside]}
    return found


def rooms() -> dict[str, set[str]]:
    """What each room may import, as the page's table says, from the bottom up."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {room: set(re.findall(r"`(\w+)`", below)) for room, below in rows}


ROOMS = rooms()


def room_of(name: str) -> str:
    return name.split(".")[0]


def test_the_table_goes_one_way():
    above: set[str] = set()
    for room, below in ROOMS.items():
        assert below <= above, f"{room} imports {sorted(below - above)}, which stands below it"
        above.add(room)


def test_every_entry_is_a_room_and_there_are_few():
    entries = {
        path.stem: path.is_dir() for path in PACKAGE.iterdir() if not re.match(r"__|py\.typed", path.name)
    }
    assert set(ROOMS) == set(entries)
    assert sum(entries.values()) <= PACKAGES
    assert len(entries) <= ENTRIES


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("__")])
def test_imports_go_one_way(name):
    room = room_of(name)
    allowed = {room, "", "__version__"} | (ROOMS[room] if name else {"locks"})
    wrong = sorted(target for _, target in reached(name) if room_of(target) not in allowed)
    assert wrong == [], f"optgen.{name} may import {sorted(allowed)}"


def test_no_two_modules_need_each_other():
    graph = {name: {t for _, t in reached(name)} - LATE.get(name, set()) for name in FILES}
    assert list(TopologicalSorter(graph).static_order())  # raises a CycleError


def test_late_imports_are_counted():
    late = {name: {target for is_late, target in reached(name) if is_late} for name in FILES}
    assert {name: found for name, found in late.items() if found} == LATE


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_too_long(name):
    text = FILES[name].read_text(encoding="utf-8")
    tree = ast.parse(text)
    sizes = {
        n.name: (type(n), n.end_lineno - n.lineno + 1)
        for n in ast.walk(tree)
        if type(n) in LINES and n is not tree
    }
    sizes[name] = ast.Module, text.count("\n")
    assert {each: lines for each, (kind, lines) in sizes.items() if lines > LINES[kind]} == {}


@pytest.mark.parametrize("name", FILES)
def test_outside_packages_stay_in_their_place(name):
    wrong = []
    for _, module, _ in imports(FILES[name]):
        top = module.split(".")[0]
        if top == "optgen" or top in sys.stdlib_module_names:
            continue
        places = OUTSIDE.get(top, set())
        if places is not None and not places & {name, room_of(name)}:
            wrong.append(f"{module}, which belongs in {sorted(places)}")
    assert wrong == []


LIGHT = [
    "optgen",
    "optgen.errors",
    "optgen.language.parse",
    "optgen.passes.chain",
    "optgen.passes.pipeline",
    "optgen.plan.phases",
    "optgen.backends.emit",
    "optgen.backends.reference",
    "optgen.library",
    "optgen.compiler",
    "optgen.schedules",
    "optgen.cli.main",
]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        *((light, ("torch", "numba", "triton", "sympy")) for light in LIGHT),
        ("optgen.algebra.equality", ("torch", "numba", "triton")),
        ("optgen.backends.triton.kernels", ("torch", "numba")),
        ("optgen.optim.optimizer", ("numba", "triton", "matplotlib")),
        ("optgen.store", ("numba", "triton", "fsspec", "safetensors")),
    ],
)
def test_heavy_packages_are_not_imported(module, absent):
    """What a module brings with it, seen from a fresh process."""
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
