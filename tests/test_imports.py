"""Imports go one way, and each outside package has its place.

The order of `MODULES` is the order of the compiler: a module imports only from those above it. The
imports are read from the source with `ast`, those inside functions and under TYPE_CHECKING too.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "optgen"

MODULES = [
    "locks",
    "errors",
    "ir",
    "semantics",
    "functions",
    "grammar",
    "scope",
    "expressions",
    "declarations",
    "stepwise",
    "syntax",
    "algebra.bounds",
    "algebra.proof",
    "algebra.latex",
    "algebra",
    "compose",
    "philox",
    "facts",
    "passes",
    "scaling",
    "codecs",
    "plan.steps",
    "plan.cut",
    "plan.graph",
    "plan.candidates",
    "plan",
    "backends",
    "backends.emit",
    "backends.numpy",
    "backends.registry",
    "disk",
    "backends.cpu.runtime",
    "backends.cpu.stored",
    "backends.cpu.objects",
    "backends.cpu.spelling",
    "backends.cpu.sweeps",
    "backends.cpu.rounds",
    "backends.cpu.team",
    "backends.cpu",
    "backends.triton.spelling",
    "backends.triton.specs",
    "backends.triton.sweeps",
    "backends.triton.tiles",
    "backends.triton.rounds",
    "backends.triton.prologue",
    "backends.triton",
    "backends.ahead",
    "cache",
    "library",
    "compiler",
    "settings",
    "launch.geometry",
    "launch.tiles",
    "launch.overlap",
    "launch.uninterrupted",
    "launch.guards",
    "launch.cells",
    "launch.sharding",
    "launch.work",
    "launch.uploads",
    "launch.door",
    "launch.clock",
    "launch.buckets",
    "launch.runners",
    "launch.onecall",
    "launch.recording",
    "launch",
    "counting",
    "watching",
    "freezing",
    "handing",
    "replay",
    "options",
    "saved",
    "loading",
    "interface",
    "opaque",
    "optim",
    "release",
    "stubs",
    "training",
    "tree.nodes",
    "tree.rules",
    "tree.states",
    "tree.steps",
    "tree.flat",
    "tree",
    "store.base",
    "store.memory",
    "store.folder",
    "store.snapshot",
    "store.files",
    "store.context",
    "store.configurations",
    "store.updates",
    "store.released",
    "store.gradients",
    "store",
    "schedules.values",
    "schedules.named",
    "schedules.fused",
    "schedules.groups",
    "schedules.schedulers",
    "schedules",
    "config.settings",
    "config.reading",
    "config.optimizers",
    "config.scheduler",
    "config.types",
    "config.build",
    "config.report",
    "config",
    "trial",
    "check",
    "tables",
    "demo",
    "arguments",
    "cli",
    "__main__",
]

# Who may import a package; None is anybody. What is not here is not a dependency.
AFTER_LAUNCH = set(MODULES[MODULES.index("launch.geometry") :])
OUTSIDE = {
    "numpy": None,
    "torch": AFTER_LAUNCH | {"backends.cpu", "backends.cpu.team"},  # which use torch's threads
    "numba": AFTER_LAUNCH
    | {
        "backends.cpu",
        "backends.cpu.runtime",
        "backends.cpu.stored",
        "backends.cpu.objects",
    },
    "llvmlite": {"backends.cpu", "backends.cpu.runtime", "backends.cpu.stored"},
    "triton": AFTER_LAUNCH | {"backends.triton", "backends.triton.prologue", "backends.ahead"},
    "sympy": {"algebra.proof"},
    "mpmath": {"algebra.proof"},  # sympy's own arithmetic
    "rich": {"demo", "tables", "cli"},
    "matplotlib": {"demo"},
    "sklearn": {"demo"},
    "fsspec": {"store.folder"},
    "safetensors": {"store.snapshot"},
    "pydantic": {"config.settings"},
    "yaml": {"config.reading"},
}


def name_of(path: Path) -> str:
    """`backends.cpu` for optgen/backends/cpu.py, and the empty name for optgen/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """The line, the module and the names of every import in a file."""
    for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(found, ast.Import):
            for alias in found.names:
                yield found.lineno, alias.name, ()
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, f"{path}:{found.lineno} imports relatively: write the whole name"
            yield found.lineno, found.module or "", tuple(alias.name for alias in found.names)


def targets(module: str, names: tuple[str, ...]) -> list[str]:
    """The optgen modules that an import of `optgen…` reaches; `from optgen import ir` reaches `ir`."""
    inside = module.removeprefix("optgen").lstrip(".")
    reached = [f"{inside}.{name}".lstrip(".") for name in names]
    return [r for r in reached if r in FILES] or [inside]


def test_every_module_has_its_place():
    assert sorted(set(FILES) - {""} - set(MODULES)) == [], "give these a place in MODULES"


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    allowed = set(MODULES[: MODULES.index(name)]) if name else set(MODULES)
    wrong = [
        f"{FILES[name].name}:{line} imports optgen.{target}, which comes after it"
        for line, module, names in imports(FILES[name])
        if module.split(".")[0] == "optgen"
        for target in targets(module, names)
        if target and target not in allowed  # the package itself holds only __version__
    ]
    assert wrong == []


@pytest.mark.parametrize("name", FILES)
def test_outside_packages_stay_in_their_place(name):
    wrong = []
    for line, module, _ in imports(FILES[name]):
        top = module.split(".")[0]
        if top == "optgen" or top in sys.stdlib_module_names:
            continue
        places = OUTSIDE.get(top, set())
        if places is not None and name not in places:
            wrong.append(f"{FILES[name].name}:{line} imports {module}, which belongs in {sorted(places)}")
    assert wrong == []


LIGHT = [
    "optgen",
    "optgen.errors",
    "optgen.syntax",
    "optgen.compose",
    "optgen.passes",
    "optgen.plan",
    "optgen.backends.emit",
    "optgen.backends.numpy",
    "optgen.library",
    "optgen.schedules",
    "optgen.cli",
]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        *((light, ("torch", "numba", "triton", "sympy")) for light in LIGHT),
        ("optgen.algebra", ("torch", "numba", "triton")),
        ("optgen.backends.triton", ("torch", "numba")),
        ("optgen.optim", ("numba", "triton", "matplotlib")),
        ("optgen.store", ("numba", "triton", "fsspec", "safetensors")),
    ],
)
def test_heavy_packages_are_not_imported(module, absent):
    """What a module brings with it, seen from a fresh process."""
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
