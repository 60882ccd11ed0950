"""Fixtures: `golden`, with the option that rewrites what it compares with, and `gpu`, a simulated one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def gpu() -> Iterator[Any]:
    """A simulated GPU, see `virtual_gpu.device`; a test fails that launches nothing on it, or has a fault."""
    from virtual_gpu.device import Device, require

    require()
    with Device() as device:
        yield device
    assert device.launches, "this test has launched nothing on the simulated GPU"
    assert not device.errors, device.errors
    assert not device.harmful, device.harmful
