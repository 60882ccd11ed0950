"""Triton's source, as Triton's interpreter executes it. Runs with TRITON_INTERPRET=1, in a process of its own."""

import numpy as np
import pytest
import torch
from buckets import Bucket, planned, raw, scalars, settings
from hypothesis import given
from hypothesis import strategies as st
from strategies import array, cases
from test_random_programs import CODEC_LISTS, bucket, compiled

from optgen import library
from optgen.backends.triton import interpreting

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
ANY = cases(reductions=True, tensor_states=True)
SIZES = (1, 64, 131, 300)  # of which a block is 64, a chunk 128


def check(case, seed, wild, codecs):
    _, several = bucket(case, seed, wild, codecs, sizes=SIZES)
    several.check("triton")


@compiled(40)
@given(ANY, st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_random_programs(case, seed, wild, codecs):
    check(case, seed, wild, codecs)


@pytest.mark.full
@compiled(200)
@given(ANY, st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_many_random_programs(case, seed, wild, codecs):
    check(case, seed, wild, codecs)
