"""Every rule against an implementation that nobody here wrote, or a recurrence from its paper.

100 steps, three shapes, two settings of the hyperparameters, on gradients that do not depend on the
parameters: float64 to 1e-10, float32 to 1e-5 of a tensor's largest element. The oracle always runs in
float64, on numbers that float32 holds. `rules/ORACLES.md` has a row for each rule; `pytest
tests/rules/test_oracles.py --update-golden` writes it, and without that option a row must be as it was
written: the same oracle and version, differences no more than ten times those in the table.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import optgen
from optgen import library
from oracles import Step, every

TABLE = Path(__file__).parents[2] / "rules" / "ORACLES.md"
HEAD = """\
# What each rule is checked against

Written by `pytest tests/rules/test_oracles.py --update-golden`. Difference: the largest max|a - b| / max|b|
of a tensor over 100 steps, three shapes and every setting; the oracle runs in float64.

| rule | oracle | version | float32 | float64 |
|---|---|---|---|---|
"""
STEPS = 100
FLOOR = 1e-14  # a difference below this is rounding, and may differ between machines
NUMBERS = {"float32": torch.float32, "float64": torch.float64}
ORACLES = every()


@functools.cache
def data(shapes, scale, steps=STEPS):
    """Initial parameters, and gradients: a drift, noise of varying size, and one exact zero in ten."""
    random = np.random.default_rng(11)

    def rounded(x):
        return np.asarray(x, np.float32).astype(np.float64)

    start = [rounded(random.standard_normal(shape)) for shape in shapes]
    drift = [0.5 * np.sign(random.standard_normal(shape)) for shape in shapes]
    gradients = []
    for k in range(steps):
        size = 3.0 if k % 25 == 20 else 1.0
        noisy = [d + size * random.standard_normal(d.shape) for d in drift]
        gradients.append([rounded(scale * np.where(random.random(x.shape) < 0.1, 0.0, x)) for x in noisy])
    return start, gradients


def measure(oracle, setting, dtype):
    """The largest difference over all steps and tensors, and how many elements a tie moved apart."""
    start, gradients = data(tuple(oracle.shapes), oracle.scale)
    program = optgen.chain(*oracle.chain) if oracle.chain else oracle.rule
    parameters = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start]
    optimizer = optgen.optimizer(program)(parameters, **setting.ours, backend="numpy")
    theirs = oracle.make([p.copy() for p in start], **setting.oracle)
    next(theirs)
    worst, tied = 0.0, 0
    limit = 1e-10 if dtype is torch.float64 else oracle.tolerance
    for k, step in enumerate(gradients, 1):
        inputs = oracle.inputs(k, list(oracle.shapes)) if oracle.inputs else {}
        expected = theirs.send(Step(k, [g.copy() for g in step], inputs))
        for p, g in zip(parameters, step, strict=True):
            p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step(**{name: given(value, parameters, dtype) for name, value in inputs.items()})
        apart = 0
        for p, right in zip(parameters, expected, strict=True):
            mine = p.detach().double().numpy()
            assert mine.shape == right.shape
            difference = np.abs(mine - right) / np.abs(right).max()
            if oracle.ties:
                apart += int((difference > limit).sum())
                difference = np.where(difference > limit, 0, difference)
            worst = max(worst, float(difference.max()))
            assert np.isfinite(right).all()
        tied = max(tied, apart)
    return worst, tied


def given(value, parameters, dtype):
    """A further input as our `step` takes it: tensors by parameter, or a number."""
    if not isinstance(value, list):
        return value
    return {p: torch.tensor(v, dtype=dtype) for p, v in zip(parameters, value, strict=True)}


def rows():
    """The rows of the table by rule."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {c[0].strip("`"): c[1:] for c in cells[1:]}


def write(table):
    body = "".join(f"| `{rule}` | {' | '.join(cells)} |\n" for rule, cells in sorted(table.items()))
    TABLE.write_text(HEAD + body)


def test_every_rule_has_an_oracle_and_a_row():
    assert sorted(ORACLES) == library.names()
    assert sorted(rows()) == library.names()


@pytest.mark.parametrize("rule", ORACLES)
def test_a_hundred_steps(rule, request):
    oracle = ORACLES[rule]
    assert len(oracle.settings) >= 2
    worst = {}
    for name, dtype in NUMBERS.items():
        found = [measure(oracle, setting, dtype) for setting in oracle.settings]
        worst[name] = max(difference for difference, _ in found)
        assert worst[name] <= (1e-10 if name == "float64" else oracle.tolerance)
        ties = max(tied for _, tied in found)
        assert ties <= (oracle.ties if name == "float32" else 0)
    table = rows()
    cells = [oracle.source, oracle.version, f"{worst['float32']:.0e}", f"{worst['float64']:.0e}"]
    if request.config.getoption("--update-golden"):
        write({**table, rule: cells})
        return
    assert rule in table, "no row: run `pytest tests/rules/test_oracles.py --update-golden`, and review it"
    assert table[rule][:2] == cells[:2]
    for recorded, now in zip(table[rule][2:], worst.values(), strict=True):
        assert now <= max(10 * float(recorded), FLOOR)
