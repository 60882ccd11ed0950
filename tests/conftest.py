"""The `golden` fixture, and the option that rewrites the files it compares with, and `features.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import features

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


def pytest_configure(config: pytest.Config) -> None:
    worker = hasattr(config, "workerinput")  # of pytest-xdist
    if config.getoption("--update-golden") and not worker:
        config.pluginmanager.register(features.Recorder())


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text is the one in tests/golden/<name>, or becomes it."""

    def check(name: str, text: str) -> None:
        path, text = GOLDEN / name, text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        assert path.exists(), f"{path} is missing: run pytest --update-golden, and review what it writes"
        assert text == path.read_bytes().decode()

    return check
