"""Edits at random between steps, and that their judge sees what is wrong; see `edits.py`."""

from __future__ import annotations

import shutil
import sys

import pytest

from changes import GO, STOP
from edits import GOOD, outcomes, report

SEEDS = {"cpu": range(220), "numpy": range(1000, 1220)}  # of 300 edits
MORE = {"cpu": range(2000, 3500), "numpy": range(4000, 5500)}  # of 2,000


def check(backend, seeds, least, guard=False):
    found = outcomes(backend, seeds, guard=guard)
    text = report(found, backend)
    print(text)
    assert all(line["verdict"] in GOOD for line in found), text
    made = [line for line in found if "later" not in line["edit"] and "undone" not in line["edit"]]
    assert len(made) >= least
    right = {line["edit"] for line in made if line["verdict"] == "right"}
    refused = {line["edit"] for line in made if line["verdict"] == "refused"}
    assert len(GO & right) > 20
    assert len(STOP & refused) > 20
    assert len([line for line in made if line["verdict"] == "right"]) > least / 3


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_edits(backend):
    check(backend, SEEDS[backend], 300)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_many_edits(backend):
    check(backend, MORE[backend], 2000, guard=sys.platform == "linux" and shutil.which("cc") is not None)
