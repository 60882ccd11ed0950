"""The page about training loops: its Python runs from top to bottom, and does what the text says."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from optgen import library

PAGE = Path(__file__).parent.parent / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)


class Model(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.add_module(last, nn.Linear(4, 2))

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


def loss_of(model, x):
    return model(x).square().mean()


def train(model, optimizer):
    loss_of(model, torch.ones(1, 3)).backward()
    optimizer.step()


@pytest.fixture
def names():
    torch.manual_seed(0)
    found = {
        "model": Model("out"),
        "with_new_head": Model("head"),
        "batches": torch.randn(4, 5, 3),
        "loss_of": loss_of,
        "train": train,
    }
    for kind, text in BLOCKS:
        assert kind in ("python", "py")
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), found)
    return found


def test_python_runs(names, capsys):
    model, tuned = names["with_new_head"], names["tuned"]
    assert names["report"].mismatched == {}
    assert set(tuned.state) == {model.body.weight, model.body.bias}
    assert names["scheduler"].get_last_lr() == [pytest.approx(1e-5)]
    assert names["Both"].program.hypers["n"].default == 4


def test_what_is_printed(capsys, request):
    request.getfixturevalue("names")
    shown = re.findall(r"^ *print\(.*# (.*)$", TEXT, re.M)
    for line, said in zip(shown, capsys.readouterr().out.splitlines(), strict=True):
        assert said.startswith(line.removesuffix("…")) if line.endswith("…") else said == line


def test_rules_are_shipped():
    named = re.findall(r"`(clip_\w+|agc|accum_grad|skip_if_nonfinite)`", TEXT)
    assert set(named) - {"clip_grad_norm_"} <= set(library.names())
