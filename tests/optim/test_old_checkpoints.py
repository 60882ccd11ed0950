"""Pickles and state dicts that optgen 0.1.0 wrote, before its modules moved into rooms, go on to the bit."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optgen

GOLDEN = Path(__file__).parents[1] / "golden"
SAVED = torch.load(GOLDEN / "saved_by_0_1_0.pt", weights_only=False)
OWN = "hyper(lr=0.1)\nstate(m=0)\nm = 0.5*m + g\np = p - lr*m\n"
MAKE = {
    "AdamW": lambda groups: optgen.AdamW(groups, lr=1e-2, amsgrad=True),
    "NAdam": lambda groups: optgen.NAdam(groups, lr=1e-2),
    "Adafactor": lambda groups: optgen.Adafactor(groups),
    "Prodigy": lambda groups: optgen.Prodigy(groups),
    "SGLD": lambda groups: optgen.SGLD(groups),
    "ScheduleFree": lambda groups: optgen.AdamWScheduleFree(groups),
    "chain": lambda groups: optgen.optimizer(optgen.chain("clip_global_norm", "lion", "cautious"))(groups),
    "own": lambda groups: optgen.optimizer(OWN, "Own")(groups),
}


def goes_on(optimizer, saved):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    with torch.no_grad():
        for p, before, grad in zip(params, saved["before"], saved["grads"], strict=True):
            p.copy_(before)
            p.grad = grad.clone()
    optimizer.step()
    assert all(torch.equal(p, after) for p, after in zip(params, saved["after"], strict=True))


def test_programs_that_were_pickled_are_read():
    with (GOLDEN / "programs_by_0_1_0.pkl").open("rb") as file:
        saved = pickle.load(file)
    chain = optgen.chain("clip_norm", "adamw", "cautious")
    assert str(pickle.loads(saved["rule"])) == str(optgen.rule("adamw"))
    assert pickle.loads(saved["chain"]).hypers == chain.hypers
    assert "lr" in pickle.loads(saved["scheduled"]).hypers
    assert pickle.loads(saved["class"]) is optgen.Optimizer


def test_every_case_was_saved():
    assert set(SAVED) == set(MAKE)


@pytest.mark.parametrize("name", MAKE)
def test_a_pickle_goes_on(name):
    optimizer = pickle.loads(SAVED[name]["pickle"])
    assert isinstance(optimizer, optgen.Optimizer)
    goes_on(optimizer, SAVED[name])


@pytest.mark.parametrize("name", MAKE)
def test_a_state_dict_goes_on(name):
    params = [torch.nn.Parameter(torch.zeros_like(p)) for p in SAVED[name]["before"]]
    optimizer = MAKE[name]([{"params": params[:2]}, {"params": params[2:]}])
    optimizer.load_state_dict(torch.load(io.BytesIO(SAVED[name]["state_dict"])))
    goes_on(optimizer, SAVED[name])


def test_new_pickles_name_what_old_ones_do():
    assert b"optgen.optim\n_restore" in pickle.dumps(
        optgen.SGD([torch.nn.Parameter(torch.ones(3))]), protocol=0
    )


def test_a_pickle_makes_the_shipped_class():
    """Whether it is unpickled before or after the class is asked for."""
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=SAVED["AdamW"]["pickle"], capture_output=True, check=True
    )
    assert child.stdout.split() == [b"True", b"optgen", b"True"]


SCRIPT = """
import pickle, sys, optgen
made = type(pickle.load(sys.stdin.buffer))
print(made is optgen.AdamW, made.__module__, "optgen.AdamW(model.parameters()" in made.__doc__)
"""
