"""What README.md shows is what happens: its rule compiles, its Python runs, its output is the output."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optgen
from optgen.backends import cache
from optgen.compiler import planned
from optgen.ir.functions import ELEMENT_FUNCTIONS, REDUCTION_FUNCTIONS, STEP_FUNCTIONS

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


def blocks(language):
    found = [text for kind, text in BLOCKS if kind == language]
    assert found, f"README.md has no {language} block"
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the README's rule in it."""
    (rule,) = blocks("rule")
    (tmp_path / "my_adamw.rule").write_text(rule, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_first_screen():
    """One sentence, the rule, its use, what it became, a figure and two commands, in 40 lines."""
    head = README.read_text(encoding="utf-8").splitlines()[:40]
    kinds = [line[3:] for line in head if line.startswith("```") and len(line) > 3]
    assert kinds == ["rule", "python", "triton"]
    assert any(line.startswith("    make demo") for line in head)
    assert any(line.startswith("    make test") for line in head)


def test_every_block_is_tested():
    assert {kind for kind, _ in BLOCKS} <= {"rule", "python", "triton", "error", "sh"}


def test_rule_is_adamw(folder):
    stepped = []
    for make in (optgen.optimizer("my_adamw.rule"), torch.optim.AdamW):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(50, 3))
        opt = make([p], lr=1e-2)
        for _ in range(3):
            p.grad = torch.randn_like(p)
            opt.step()
        stepped.append(p.detach())
    torch.testing.assert_close(*stepped, rtol=1e-5, atol=1e-6)


def test_python_runs(folder):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 1))
    names = {"model": model, "loss": model(torch.randn(7, 5)).square().mean()}
    for text in blocks("python"):
        before = [p.detach().clone() for p in model.parameters()]
        exec(compile(text, str(README), "exec"), names)
        if "opt.step()" in text:
            assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_triton_is_what_is_emitted(folder):
    (shown,) = blocks("triton")
    emitted = iter(cache.emit(planned(optgen.rule("my_adamw.rule")), "triton").splitlines())
    for line in shown.splitlines():
        assert line.strip() == "..." or line in emitted, line


def test_error_is_the_error():
    (shown,) = blocks("error")
    (text,) = (found for found in blocks("python") if '"""' in found)
    rule = text.split('"""')[1].replace("m = momentum*m", "m = momentun*m")
    with pytest.raises(optgen.RuleError) as caught:
        optgen.rule(rule)
    assert str(caught.value) == shown.rstrip("\n")


@pytest.mark.parametrize("line", [line for text in blocks("sh") for line in text.splitlines()])
def test_command_runs(line, folder):
    """Each command of the README, but for what is a comment, ends well and says something."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "optgen"
    command = [sys.executable, "-m", "optgen", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_every_function_is_listed():
    text = README.read_text(encoding="utf-8")
    rows = [set(row.split()) for row in re.findall(r"^\| `([a-z0-9 ]+)` \| of ", text, re.M)]
    assert rows == [set(ELEMENT_FUNCTIONS), set(REDUCTION_FUNCTIONS), set(STEP_FUNCTIONS)]
