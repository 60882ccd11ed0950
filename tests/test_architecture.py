"""The pages about architecture and contributing: the code prints the blocks, and what they name is there."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optgen

CHECKOUT = Path(optgen.__file__).parent.parent
DOCS = CHECKOUT / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("architecture", "contributing")}


def walk():
    """docs/walk.py as a module."""
    spec = importlib.util.spec_from_file_location("walk", DOCS / "walk.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WALK = walk()
BLOCKS = {found[1]: found[3] for found in WALK.BLOCK.finditer(PAGES["architecture"])}


@pytest.fixture(scope="module")
def printed(request):
    """What a fresh process prints, by block: in this one kernels may have been compiled before."""

    def run(*words):
        command = [sys.executable, str(DOCS / "walk.py"), *words]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout

    if request.config.getoption("--update-golden"):
        run("--write")
        BLOCKS.update((f[1], f[3]) for f in WALK.BLOCK.finditer(WALK.PAGE.read_text(encoding="utf-8")))
    parts = re.split(r"^== (\w+)\n", run(), flags=re.M)[1:]
    return {name: text.rstrip("\n") + "\n" for name, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("name", WALK.BLOCKS)
def test_a_block_is_what_the_code_prints(printed, name):
    assert printed[name] == BLOCKS[name], "run python docs/walk.py --write, and review what it writes"


def test_the_page_has_every_block_once_and_in_order():
    assert re.findall(r"<!-- walk: (\w+) -->", PAGES["architecture"]) == list(WALK.BLOCKS)


# What the pages name


def defined(statement):
    """The names that a statement gives a meaning to."""
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    names = [getattr(statement, "name", None), *(getattr(target, "id", None) for target in targets)]
    return {name for name in names if name}


def names_in(path):
    """What a module defines at its top, and what its classes do: `Graph` and `Graph.of`."""
    found = set()
    for outer in ast.parse(path.read_text(encoding="utf-8")).body:
        found |= defined(outer)
        for inner in outer.body if isinstance(outer, ast.ClassDef) else ():
            found |= {f"{outer.name}.{name}" for name in defined(inner)}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page):
    """`plan/graph.py:Graph.of` is a file below optgen/ and what it defines; other files the checkout's."""
    pattern = r"`((?:[\w.]+/)*\w+\.(?:py|pyi|md|json|toml|txt|yml))(?::([\w.]+))?`"
    named = set(re.findall(pattern, PAGES[page]))
    assert named
    missing = []
    for path, name in named - {("tests/golden/latex/x.txt", "")}:
        places = [root / path for root in (CHECKOUT / "optgen", CHECKOUT) if (root / path).is_file()]
        if not places or (name and name not in names_in(places[0])):
            missing.append(f"{path}:{name}")
    assert not missing


def test_the_makefile_has_the_targets():
    targets = set(re.findall(r"^([\w.-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.M))
    for text in PAGES.values():
        assert set(re.findall(r"`make ([\w.-]+)", text)) <= targets
    (ran,) = re.findall(
        r"^for target in (.*); do$", (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8"), re.M
    )
    for target in ran.split():
        assert f"`make {target}`" in PAGES["contributing"] or f"`{target}`" in PAGES["contributing"]


def test_the_questions_are_asked_and_the_hour_is_one():
    text = PAGES["architecture"]
    minutes = re.findall(r"^\*\*`[\w./]+`, (\d+) minutes\.\*\*", text, re.M)
    assert sum(map(int, minutes)) == 60
    asked = re.findall(r"^\*\*(.*\?)\*\*", text[text.index("## Five questions") :], re.M)
    assert len(asked) == 5
    for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", text, re.M)
        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page):
    lines = [line for line in PAGES[page].splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 118] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_reader_finds_the_page(page):
    last = (CHECKOUT / "README.md").read_text(encoding="utf-8").rpartition("\n## ")[2]
    assert f"](docs/{page}.md)" in last
    assert f": {page}.md\n" in (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8")
