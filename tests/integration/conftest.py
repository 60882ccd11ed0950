"""What the tests of the trainers share. Each trains a small model of random weights on the CPU, offline.

Every client is compared with itself: torch.optim in optgen's place, and an interrupted run with a whole one.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

FEATURES, CLASSES = 8, 4

# Every other warning is an error, as in the rest of the suite.
OF_THE_CLIENTS = [
    r"ignore:.*isinstance\(treespec, LeafSpec\)",  # Lightning 2.6 with torch 2.13
    r"ignore:Checkpoint directory .* exists and is not empty",  # which Lightning tells a resumed run
    r"ignore:.*torch\.jit\.script_method",  # torch 2.13's own inductor
    r"ignore:The \.grad attribute of a Tensor that is not a leaf",  # what torch.compile hides by itself
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the warnings pass that the clients cause without optgen too."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for warning in OF_THE_CLIENTS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to another machine fails the test."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        assert self.family == socket.AF_UNIX, f"a connection to {address} is tried"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def same_bits() -> Callable[[Iterable[Tensor], Iterable[Tensor]], None]:
    """`same_bits(a, b)`: equal tensors, in the same order."""

    def check(a: Iterable[Tensor], b: Iterable[Tensor]) -> None:
        pairs = list(zip(a, b, strict=True))
        assert pairs
        for x, y in pairs:
            assert x.dtype == y.dtype
            assert torch.equal(x, y), f"{(x != y).sum()} of {x.numel()} elements differ"

    return check


@pytest.fixture
def perceptron() -> Callable[[], torch.nn.Module]:
    """Makes a classifier of two layers, always with the same weights."""

    def make() -> torch.nn.Module:
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 32),
            torch.nn.LayerNorm(32),
            torch.nn.GELU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(32, CLASSES),
        )

    return make


@pytest.fixture
def examples() -> torch.utils.data.Dataset:
    """96 points of FEATURES dimensions, labelled by a random linear map."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(96, FEATURES, generator=generator)
    y = (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)
    return torch.utils.data.TensorDataset(x, y)
