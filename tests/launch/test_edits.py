"""Edits at random between steps, and that their judge sees what is wrong; see `edits.py`."""

from __future__ import annotations

import ctypes
import shutil
import sys

import pytest
import torch

import edits
from changes import GO, STOP
from edits import Case, outcomes, report, rules
from judge import GOOD, Picture, judged
from optgen.library import CLASSES, class_of

GUARD = sys.platform == "linux" and shutil.which("cc") is not None
SEEDS = {"cpu": range(300), "numpy": range(1000, 1300)}  # of 300 edits and more
MORE = {"cpu": range(2000, 3430), "numpy": range(4000, 5430)}  # of 2,000


def check(backend, seeds, least):
    found = outcomes(backend, seeds, guard=GUARD)
    text = report(found, backend)
    print(text)
    assert all(line["verdict"] in GOOD for line in found), text
    made = [line for line in found if "later" not in line["edit"] and "undone" not in line["edit"]]
    assert len(made) >= least
    right, refused = (
        [line["edit"] for line in made if line["verdict"] == verdict] for verdict in ("right", "refused")
    )
    assert len(right) > least / 3
    assert len(GO & {*right}) > 20
    assert len(STOP & {*refused}) > 10
    assert {line["rule"] for line in found} == set(rules())


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_some_edits(backend):
    check(backend, SEEDS[backend], 300)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_many_edits(backend):
    check(backend, MORE[backend], 2000)


def test_every_class_has_a_rule():
    assert {class_of(rule.kind.program) for rule in rules().values()} == set(CLASSES)


# The judge


@pytest.fixture
def case():
    """A case of AdamW with some steps behind it, all of whose parameters have elements."""
    seed = next(s for s in range(1000) if usual(Case(s, "numpy")))
    made = Case(seed, "numpy")
    for _ in range(3):
        made.feed()
        made.step()
    made.feed()
    return made


def usual(case):
    params = case.params
    return case.name == "AdamW" and not case.still and all(p.numel() > 1 for p in params) and len(params) < 9


def adding(case, act):
    """A case whose step does something more."""
    step = case.step

    def more():
        step()
        act(case.params[0])

    case.step = more
    return case


def nudge(p):
    p.data.flatten()[0] += 1e-3


def first_gradient(p):
    p.grad.add_(1e-3)


def write_at_the_end(p):
    ctypes.c_char.from_address(p.data_ptr() + p.nbytes).value = 1


def add_state(case, p):
    case.optimizer.state[p]["more"] = torch.zeros(2)


def test_a_right_step(case):
    assert judged(case) == ("right", "")


@pytest.mark.parametrize("act", [nudge, first_gradient])
def test_a_wrong_step(case, act):
    assert judged(adding(case, act))[0] == "wrong"


def test_a_write_beside_a_tensor(case):
    p = case.params[0]
    p.data = torch.cat([p.data.flatten(), p.data.flatten()])[: p.numel()].view(p.shape)
    verdict, detail = judged(adding(case, write_at_the_end))
    assert (verdict, detail) == ("wrong", "memory of parameter was written that is not the step's")


def test_more_state(case):
    verdict, detail = judged(adding(case, lambda p: add_state(case, p)))
    assert verdict == "wrong"
    assert "more" in detail


def test_an_option_that_a_step_changes(case):
    verdict, detail = judged(adding(case, lambda p: case.optimizer.param_groups[1].update(lr=3.0)))
    assert verdict == "wrong"
    assert "lr" in detail


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (RuntimeError("parameter 3 is too short"), "refused"),
        (ValueError("lr is no number"), "refused"),
        (TypeError("group 1 has a str"), "refused"),
        (RuntimeError("shape '[]' is invalid"), "unnamed"),
        (KeyError("parameter 3"), "internal"),
        (NotImplementedError("parameter 3"), "internal"),
    ],
)
def test_errors(case, error, verdict):
    def fail():
        raise error

    case.step = fail
    assert judged(case)[0] == verdict


@pytest.mark.parametrize("change", ["value", "key", "option", "list", "shape", "gradient"])
def test_an_error_after_a_change(case, change):
    group, p = case.optimizer.param_groups[0], case.params[0]
    acts = {
        "value": lambda: nudge(p),
        "key": lambda: add_state(case, p),
        "option": lambda: group.update(lr=3.0),
        "list": lambda: group["params"].reverse() or group["params"].append(p),
        "shape": lambda: setattr(p, "data", p.data.flatten().clone()),
        "gradient": lambda: setattr(p, "grad", p.grad.clone()),
    }

    def fail():
        acts[change]()
        raise RuntimeError("parameter 0 is wrong")

    case.step = fail
    before = Picture(case, aliases=True)
    assert judged(case)[0] == "changed"
    before.restore()
    assert before.changed() is None


def test_a_process_that_dies(monkeypatch):
    script = """if True:
        import json, os, signal, sys
        first, end = map(int, sys.argv[-1].split(":"))
        for seed in range(first, end):
            print(json.dumps({"seed": seed, "rule": "AdamW", "step": "step 0 after larger"}), flush=True)
            if seed % 3 == 0:
                os.kill(os.getpid(), signal.SIGSEGV)
            print(json.dumps({"seed": seed, "rule": "AdamW", "edit": "larger", "verdict": "right"}))
        print(json.dumps({"end": True}))
    """
    monkeypatch.setattr(edits, "PYTHON", [sys.executable, "-c", script])
    found = outcomes("cpu", range(8))
    assert [(line["seed"], line["verdict"]) for line in found] == [
        (seed, "crashed" if seed % 3 == 0 else "right") for seed in range(8)
    ]
    assert "crashed: larger (3; AdamW; seeds 0 3 6): exit status -11" in report(found, "cpu")
