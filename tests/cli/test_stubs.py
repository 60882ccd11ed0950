"""The type stub: what the rules make now, what is there at run time, and what mypy makes of it."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import optgen
from optgen import library
from optgen.cli import main, stubs
from optgen.optim.signature import FLAGS

CHECKOUT = Path(__file__).parents[2]
PATH = CHECKOUT / "optgen" / "__init__.pyi"

RIGHT = """
import torch
from torch import nn

import optgen
from optgen import Adafactor, AdamW, Lion, Optimizer, training

model = nn.Linear(2, 3)
first: AdamW = optgen.AdamW(model.parameters(), lr=1e-3)
second: torch.optim.Optimizer = Lion(model.named_parameters(), torch.tensor(1.0), betas=(0.9, 0.99))
optgen.SGD([{"params": [model.weight], "lr": 1}], 0.1, foreach=True, state_dtype=torch.bfloat16)
Adafactor(model.parameters(), eps=(None, 1e-3), beta1=None, backend="numpy", math="fast")
own: type[Optimizer] = optgen.optimizer(optgen.chain("clip_norm", "adamw"))
first.freeze(model)
first.step(lambda: 1.0)
version: str = optgen.__version__
"""
WRONG = {
    "optgen.AdamW(model.parameters(), lrr=1)": 'Unexpected keyword argument "lrr" for "AdamW"',
    'optgen.AdamW(model.parameters(), backend="cuda")': 'Argument "backend" to "AdamW" has incompatible type',
    'optgen.AdamW(model.parameters(), lr="1e-3")': 'Argument "lr" to "AdamW" has incompatible type "str"',
    "optgen.AdamW(model.parameters(), betas=0.9)": 'Argument "betas" to "AdamW" has incompatible type',
    "optgen.SGD(model.parameters(), 0.1, 0.9, 0.0, 0.0, False, True)": "Too many positional arguments",
    "optgen.AdamW()": 'Missing positional argument "params"',
    "optgen.AdmaW": 'Module has no attribute "AdmaW"; maybe "AdamW"?',
    "optgen.Cautious": 'Module has no attribute "Cautious"',
}


def test_is_what_the_rules_make(request):
    text = stubs.stub()
    if request.config.getoption("--update-golden"):
        PATH.write_text(text, encoding="utf-8", newline="\n")
    assert text == PATH.read_text(encoding="utf-8"), "run `optgen stubs > optgen/__init__.pyi`"


def test_command_prints_it(capsys):
    assert main.main(["stubs"]) == 0
    assert capsys.readouterr().out == stubs.stub()


def test_holds_what_is_there_at_run_time():
    """Names, docstrings, parameters in their order and defaults, read back from the text."""
    tree = ast.parse(stubs.stub())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert set(classes) == set(library.optimizers())
    for name, node in classes.items():
        cls = getattr(optgen, name)
        assert inspect.cleandoc(ast.get_docstring(node)) == inspect.cleandoc(cls.__doc__)
        made = node.body[1]
        arguments = [a.arg for a in (*made.args.args, *made.args.kwonlyargs)]
        expected = [*inspect.signature(cls).parameters.values()]
        assert arguments == ["self", *(p.name for p in expected), *FLAGS]
        defaults = [eval(ast.unparse(d)) for d in (*made.args.defaults, *made.args.kw_defaults)]
        flags = [default for _, default in FLAGS.values()]
        assert defaults == [p.default for p in expected if p.name != "params"] + flags
    imported = {a.asname for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert imported - {None} == {*optgen._HOME, *optgen._MODULES}
    assert set(dir(optgen)) == {*(imported - {None}), *classes, "__version__"}
    (listed,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
    assert sorted(ast.literal_eval(listed)) == sorted(optgen.__all__)


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_of_torch_are_what_the_constructor_takes(flag):
    import torch

    kind, default = FLAGS[flag]
    parameter = inspect.signature(torch.optim.AdamW).parameters[flag]
    assert (parameter.annotation, parameter.default) == (kind, default)
    p = torch.nn.Parameter(torch.ones(1))
    assert flag not in optgen.AdamW([p], **{flag: default}).param_groups[0]


def test_a_text_is_escaped():
    assert ast.literal_eval(f'"""{stubs._escaped(chr(92) + " and " + 3 * chr(34))} """') == '\\ and """ '


def test_mypy_reads_it(tmp_path):
    """In one process, with the cache of `make lint`, which the first run has to fill."""
    user = tmp_path / "user.py"
    user.write_text(RIGHT + "\n".join(WRONG) + "\n")
    config = str(CHECKOUT / "pyproject.toml")
    code = "import sys; from mypy import api; print(*api.run(sys.argv[1:])[:2], sep='')"
    command = [sys.executable, "-c", code, "--config-file", config, "--no-error-summary", str(user)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    first = len(RIGHT.splitlines()) + 1
    assert len(errors) == len(WRONG), done.stdout
    for number, (error, words) in enumerate(zip(errors, WRONG.values(), strict=True), first):
        assert f"user.py:{number}: error: {words}" in error
