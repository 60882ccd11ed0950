"""Slices, totals and random numbers in Triton's interpreter; see test_interpreter.py."""

import pytest
import torch

from optgen.backends.triton.kernels import interpreting
from sliced import FACTORED, RULES, SHAPES, SMALL, check, stored, train

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")


@pytest.mark.parametrize("name", RULES)
def test_rules_agree(name):
    check(RULES[name], "triton", SMALL, torch.float32, 1e-6)


SHIPPED = [n if n in ("sm3", "adamp") else pytest.param(n, marks=pytest.mark.full) for n in FACTORED]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rules_agree(name):
    check(FACTORED[name], "triton", SHAPES, torch.float32, 1e-6)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_rules_agree_in_other_dtypes(name, dtype):
    check(RULES[name], "triton", SMALL, dtype, 1e-6 if dtype is torch.float64 else 1e-2)


def test_random_numbers_have_the_same_bits():
    mine, right = (stored(*train(RULES["noise"], b, SMALL)) for b in ("triton", "numpy"))
    assert all((mine[name] == x).all() for name, x in right.items())
