"""What MkDocs calls: the pages of the rules are made when the documentation is built.

In: the rules as they are now. Out: pages and figures that exist in the site only. Nothing is kept from one
build to the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from pages import Page

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
WORKERS = 2
log = get_plugin_logger("gallery")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, the pages of the rules, the gallery and the kernels; and name the rules in the menu."""
    with _importable():
        import kernels
        import pages

        from optgen import library

        names = library.names()
        for name in sorted(set(names) - pages.oracles().keys()):
            log.warning("rules/ORACLES.md has no row for '%s'", name)
        if set(names) != kernels.known():
            log.warning("benchmarks/results/static.json has other rules: run python benchmarks/static.py")
        made = {page.uri: page for page in _built(pages.drawn, names)}
        found = [*made.values(), pages.gallery(names), kernels.page()]
        classes = pages.in_classes(names)
    for page in found:
        files.append(File.generated(config, page.uri, content=page.text))
        if page.figure:
            files.append(File.generated(config, page.figure_uri, content=page.figure))
    readme = README.read_text(encoding="utf-8").replace("](docs/", "](")  # its links are a checkout's
    files.append(File.generated(config, "readme.md", content=readme))
    sections = [
        {pages.HEADINGS[kind][0]: [{made[f"rules/{n}.md"].title: f"rules/{n}.md"} for n in members]}
        for kind, members in classes.items()
    ]
    config.nav = [{"Rules": sections} if item == "rules" else item for item in config.nav or []]
    return files


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """A rule is coloured as the Python that it looks like."""
    return markdown.replace("\n```rule\n", "\n```python\n").replace("\n```triton\n", "\n```python\n")


def _built(draw: Callable[[str], Page], names: list[str]) -> Iterator[Page]:
    """The pages of all rules, made by two processes."""
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        yield from pool.map(draw, names, chunksize=4)


@contextmanager
def _importable() -> Iterator[None]:
    """The modules here, and the oracles of the tests, to be imported in this process and its workers."""
    before = sys.path.copy()
    sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "support")]
    try:
        yield
    finally:
        sys.path[:] = before
