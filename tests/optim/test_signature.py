"""What a person sees of the classes: signatures, docstrings, repr, and names that complete."""

import inspect
import pydoc
import re
import subprocess
import sys
from typing import Literal

import pytest
import torch
from torch import Tensor

import optgen
from optgen import library
from optgen.ir.extent import Extent
from optgen.optim import signature

CLASSES = sorted(library.optimizers())
NUMBER = float | Tensor
OWN = '''"""Own: a rule with words."""
hyper(lr=0.1, mode="plain", kind="a", betas=(0.5, None), least=None)
require(lr > 0, mode == "plain" or mode == "signed", 0 <= betas[0] < 1)
state(m=0)

b, c = betas
# The average.
m = b*m + g
if kind == "b":
    m = 2*m
step_size = lr if least is None else maximum(lr, least)
p = p - step_size*(sign(m) if mode == "signed" else m)*(1 if c is None else c)
'''


def parameter():
    return torch.nn.Parameter(torch.ones(2))


# Signatures


def test_signature_is_typed():
    found = inspect.signature(optgen.AdamW)
    assert str(found).partition(", lr: ")[2] == (
        "float | torch.Tensor = 0.001, "
        "betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999), "
        "eps: float | torch.Tensor = 1e-08, weight_decay: float | torch.Tensor = 0.01, "
        "amsgrad: bool = False, *, maximize: bool = False, "
        "backend: Literal['auto', 'triton', 'cpu', 'numpy'] = 'auto', "
        "math: Literal['exact', 'fast'] = 'exact', state_dtype: torch.dtype | None = None)"
    )
    assert (
        found.parameters["params"].annotation
        == inspect.signature(torch.optim.AdamW).parameters["params"].annotation
    )
    found.bind([parameter()], 0.1, (0.9, 0.99), 1e-6, 0.0, True, maximize=True)


def test_words_are_literal_where_the_rule_restricts_them():
    found = inspect.signature(optgen.optimizer(OWN)).parameters
    assert found["mode"].annotation == Literal["plain", "signed"]
    assert found["kind"].annotation is str
    assert found["betas"].annotation == tuple[NUMBER, NUMBER | None]
    assert found["least"].annotation == NUMBER | None


@pytest.mark.parametrize("name", CLASSES)
def test_every_default_is_of_its_type(name):
    for parameter in inspect.signature(getattr(optgen, name)).parameters.values():
        default, text = parameter.default, signature.spelled(parameter.annotation)
        if isinstance(default, tuple):
            assert text.startswith("tuple[")
            assert len(default) == len(parameter.annotation.__args__)
        elif isinstance(default, bool):
            assert text == "bool"
        elif isinstance(default, float):
            assert text == "float | Tensor"
        elif default is None:
            assert text.endswith("| None")


# Docstrings


@pytest.mark.parametrize("name", CLASSES)
def test_docstring_says_everything(name):
    cls = getattr(optgen, name)
    doc, program = cls.__doc__, cls.program
    assert doc.startswith(f"{name}: ")
    sections = dict(re.findall(r"^(\w[\w ()]*):\n((?:(?:    .*)?\n?)+)", doc + "\n", re.MULTILINE))
    for hyper in program.hypers.values():
        assert re.search(rf"^    {hyper.name} \(.*\): ", sections["Args"], re.MULTILINE), hyper.name
        assert repr(hyper.default) in sections["Args"]
    for requirement in program.requires:
        assert requirement.text in re.sub(r"\s+", " ", sections["Args"])
    for state in program.states.values():
        key = state.key.removeprefix("group:")
        extent = Extent.TENSOR if state.extent is Extent.STEP else state.extent
        (line,) = re.findall(rf"^    {key}: (.*)", sections["State"], re.MULTILINE)
        assert extent.phrase in line
        assert "float64" in line or "the parameter's dtype" in line
    for place in re.findall(r"arXiv:\S+\d|[A-Z]\w+ \w* ?\d+, \d{4}", program.doc.partition("\n\n")[0]):
        assert place in sections["Reference"]
    assert re.search(r"\b(1[5-9]|20)\d\d\b", sections["Reference"])
    for line in signature.statements(program.sources[0]):
        assert line in program.sources[0].text
        assert line in sections["Formula"]
    assert f"optgen.{name}(model.parameters()" in sections["Example"]
    for made in program.inputs.values():
        assert f"    {made.name}: " in sections["Inputs of step()"]
    assert max(map(len, doc.split("\n"))) <= 114


def test_bounds_belong_to_the_names_they_are_about():
    """`d >= 1` is no bound of weight_decay, whose name holds a d."""
    lines = optgen.Adafactor.__doc__.split("\n")
    assert "    d (float | Tensor): default 1.0; needs d >= 1." in lines
    (decay,) = (line for line in lines if line.startswith("    weight_decay "))
    assert decay.endswith("(float | Tensor): strength of weight decay; default 0.0; needs weight_decay >= 0.")


def test_formula_is_the_text_without_declarations():
    doc = optgen.optimizer(OWN).__doc__
    assert "Formula:\n    b, c = betas\n    # The average.\n    m = b*m + g\n" in doc
    assert doc.startswith("Own: a rule with words.\n\nFormula:")
    assert 'mode (Literal["plain", "signed"]): default \'plain\'; needs mode == "plain"' in doc
    assert "Reference:" not in doc
    assert ">>> optimizer = Own(model.parameters(), lr=0.1)" in doc


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("hyper(lr=1); p = p - lr*g", ["hyper(lr=1); p = p - lr*g"]),
        ("hyper(\n  lr=1,\n)\r\np = p - lr*g\r\n", ["p = p - lr*g"]),
        ("p = p - g\nstate(m=0)\nm = m + g", ["p = p - g", "m = m + g"]),
        ("p = p - g\n\nstate(m=0)\n\n\nm = m + g\n\n", ["p = p - g", "", "m = m + g"]),
    ],
)
def test_statements_of_odd_texts(text, kept):
    assert signature.statements(library.Source(text)) == kept


def test_docstring_of_a_rule_without_one():
    doc = optgen.optimizer("p = p - 0.1*g", "Plain").__doc__
    assert doc.startswith("Plain: an optimizer.\n\nFormula:\n    p = p - 0.1*g\n\nArgs:\n    params: ")
    assert doc.endswith(">>> optimizer = Plain(model.parameters())\n    >>> optimizer.step()")


def test_docstring_of_a_chain_names_its_parts():
    doc = optgen.optimizer(optgen.chain("clip_norm", "adamw", "ema")).__doc__
    assert doc.startswith("ClipNormAdamwEma: clip_norm, adamw, ema, in one step.\n")
    for part in ("clip_norm", "adamw", "ema"):
        assert f"    # {part}\n" in doc
    for reference in ("arXiv:1211.5063", "arXiv:1711.05101", "arXiv:1703.01780"):
        assert reference in doc.partition("Reference:\n")[2]


def test_help_shows_the_docstring():
    shown = pydoc.plain(pydoc.render_doc(optgen.Sophia))
    for line in (
        "class Sophia(optgen.optim.optimizer.Optimizer)",
        "optimizer.step(hess=hess)",
        "hessian: h, a value per",
    ):
        assert line in shown


# repr


def blocks(optimizer):
    """The name of the class, and of each group its lines in order."""
    first, *rest = repr(optimizer).removesuffix("\n)").split("\nParameter Group ")
    return first, [text.split("\n") for text in rest]


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Rprop", "Adagrad"])
def test_repr_is_torchs(name):
    """Line by line, for the options that both have, with two groups and a tensor."""
    shown = []
    for module in (optgen, torch.optim):
        torch.manual_seed(0)
        optimizer = getattr(module, name)([{"params": [parameter()]}], lr=0.5)
        optimizer.add_param_group({"params": [parameter()], "lr": torch.tensor(0.25)})
        shown.append(blocks(optimizer))
    (mine, my_groups), (theirs, their_groups) = shown
    assert mine == theirs == f"{name} ("
    assert len(my_groups) == 2
    for my_lines, their_lines in zip(my_groups, their_groups, strict=True):
        keys = {line.partition(":")[0] for line in my_lines}
        shared = [line for line in their_lines if line.partition(":")[0] in keys]
        ours = [line for line in my_lines if line.partition(":")[0] in {s.partition(":")[0] for s in shared}]
        assert [line.replace(".0", "") for line in ours] == [line.replace(".0", "") for line in shared]
        assert ours == my_lines  # nothing else
    assert "    lr: 0.25" in my_groups[1]


def test_repr_ends_as_torchs_and_shows_what_is_frozen():
    optimizer = optgen.AdamW([parameter(), parameter()])
    torchs = repr(torch.optim.AdamW([parameter()]))
    assert repr(optimizer).split("\n")[:2] == torchs.split("\n")[:2] == ["AdamW (", "Parameter Group 0"]
    assert repr(optimizer).endswith("    weight_decay: 0.01\n)")
    assert torchs.endswith("    weight_decay: 0.01\n)")
    optimizer.freeze(0)
    assert "    frozen: [0, 1]\n" in repr(optimizer)


# Names


def run(code):
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_dir_lists_what_there_is():
    names = dir(optgen)
    assert names == sorted(names)
    assert {"AdamW", "Lion", "Optimizer", "chain", "optimizer", "rule", "RuleError", "training"} <= set(names)
    assert not {"Cautious", "ClipNorm", "_HOME"} & set(names)  # transforms are no classes
    for name in names:
        assert hasattr(optgen, name), name
    assert len(inspect.getmembers(optgen)) == len(names)


def test_names_complete_as_in_a_console():
    import rlcompleter

    completer = rlcompleter.Completer({"optgen": optgen})
    found = []
    while match := completer.complete("optgen.AdamW", len(found)):
        found.append(match.rstrip("("))
    assert sorted(found) == ["optgen.AdamW", "optgen.AdamWScheduleFree"]


def test_star_import_brings_the_classes():
    code = (
        "from optgen import *\nfrom optgen import AdamW as A, Lion as L\nprint(AdamW is A, Lion is L, Yogi)"
    )
    assert run(code)[:2] == ["True", "True"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("AdmaW", ": did you mean 'AdamW'?"),
        ("adamw", ": did you mean 'AdamW'?"),
        ("schedulefree_adamw", ": did you mean 'AdamWScheduleFree'?"),
        ("trainig", ": did you mean 'training'?"),
        ("optimiser", ": did you mean 'optimizer'?"),
        ("Cautious", ": cautious is a transform; chain it with a rule: chain(adamw, cautious)"),
        ("ClipNorm", ": clip_norm is a transform; chain it with a rule: chain(clip_norm, adamw)"),
        ("Xyzzy", ""),
        ("_AdamW", ""),
    ],
)
def test_a_misspelt_name_says_which_is_near(name, hint):
    with pytest.raises(AttributeError) as caught:
        getattr(optgen, name)
    assert str(caught.value) == f"module 'optgen' has no attribute '{name}'{hint}"
    assert not hasattr(optgen, name)


def test_an_optimizer_is_made_without_reading_every_rule():
    """The hint after a misspelt name needs them all; an import of a module of ours is no misspelt name."""
    code = """
import optgen
optgen.optimizer("adamw")
from optgen import library
print(library.optimizers.cache_info().currsize)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0", done.stderr
