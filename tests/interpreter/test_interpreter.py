"""Triton's source, as Triton's interpreter executes it: with TRITON_INTERPRET=1, in a process of its own."""

import numpy as np
import pytest
import test_codecs as codecs
import test_kernels as backends
import test_philox as philox
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import MIXED

from buckets import Bucket, bucket, planned, raw
from optgen.backends.triton.kernels import TritonKernel, interpreting
from strategies import CODEC_LISTS, cases, compiled, staged

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
ANY = cases(reductions=True, tensor_states=True)
SIZES = (1, 64, 131, 300)  # of which a block is 64, a chunk 128


def check(case, seed, wild, codecs):
    _, several = bucket(case, seed, wild, codecs, sizes=SIZES)
    several.check("triton")


@compiled(50)
@given(ANY, st.integers(0, 9999), st.booleans())
def test_random_programs_in_float32(case, seed, wild):
    check(case, seed, wild, ("fp32",))


@compiled(50)
@given(ANY, st.integers(0, 9999), st.booleans())
def test_random_programs_in_float64(case, seed, wild):
    check(case, seed, wild, ("fp64",))


@compiled(50)
@given(ANY, st.integers(0, 9999), st.booleans(), st.sampled_from(["bf16", "fp16"]))
def test_random_programs_in_16_bits(case, seed, wild, codec):
    check(case, seed, wild, (codec,))


@compiled(50)
@given(ANY, st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_random_programs_in_mixed_storage(case, seed, wild, codecs):
    check(case, seed, wild, codecs)


@pytest.mark.full
@compiled(400)
@given(st.one_of(ANY, staged()), st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_many_random_programs(case, seed, wild, codecs):
    check(case, seed, wild, codecs)


@pytest.mark.parametrize("codecs", [("fp32",), MIXED], ids=",".join)
@pytest.mark.parametrize("rule", backends.RULES)
def test_rules_agree(rule, codecs):
    backends.rule_bucket(rule, codecs, SIZES).check("triton")


@pytest.mark.full
@pytest.mark.parametrize(("rule", "options", "codecs"), backends.MATRIX, ids=str)
def test_rules_agree_under_every_option(rule, options, codecs):
    backends.rule_bucket(rule, codecs, SIZES, options).check("triton")


def test_a_chain_with_four_phases_agrees():
    backends.check_chain("triton", SIZES)


def test_device_state_agrees():
    backends.check_device_state("triton", SIZES)


def test_sizes():
    backends.check_sizes("triton", 128)


def test_misaligned_views():
    backends.check_misaligned("triton", 300)


def test_strided():
    backends.check_strided("triton", 70)


def test_far_elements():
    backends.check_far("triton", 200)


def test_names_that_the_back_end_uses_itself():
    backends.check_weird_names("triton", (1, 5, 131))


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_exact_functions(real):
    backends.check_exact_functions("triton", real)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_transcendental_functions(real):
    backends.check_transcendental("triton", real)


def test_transcendental_edges():
    backends.check_transcendental_edges("triton")


def test_subnormals_are_kept():
    backends.check_subnormals("triton")


@pytest.mark.parametrize(
    "text", ["p = g*(-0.0)", "p = p + inf*0", "p = maximum(p, -inf)", "p = maximum(0, p)"]
)
@pytest.mark.parametrize("codec", ["fp32", "fp64", "bf16"])
def test_constants_at_the_edges(text, codec):
    x = raw(codec, [1.0, -2.0, 0.0, np.inf])
    Bucket(planned(text, codec), [{"p": x, "g": x}], [[]]).check("triton")


@pytest.mark.parametrize("text", ["p = 3", "p = t"])
@pytest.mark.parametrize("codec", ["fp32", "fp64", "bf16", "fp16"])
def test_one_value_for_all_elements(text, codec):
    """A constant, or a value per step, stored into every element."""
    made = planned(text, codec)
    one = Bucket(made, [{"p": raw(codec, np.zeros(70))}], [[5.0] * len(made.scalars)])
    one.check("triton")
    (found,) = one.run("triton")[0]
    assert np.array_equal(found["p"], raw(codec, np.full(70, 3.0 if text == "p = 3" else 5.0)))


@pytest.mark.parametrize("codec", codecs.TORCH)
def test_decode_in_a_kernel(codec):
    codecs.check_decode("triton", codec)


@pytest.mark.parametrize("codec", codecs.TORCH)
def test_encode_in_a_kernel(codec):
    codecs.check_encode("triton", codec)


def test_one_launch_a_phase(monkeypatch):
    backends.check_launches(monkeypatch, "triton", TritonKernel)


def test_float32_sums_of_many_terms():
    """A chunk adds up in float32: 8192 terms of one sign stay within 1e-6."""
    x = np.random.default_rng(0).random(8192 * 3).astype(np.float32)
    one = Bucket(planned("p = p - g/norm(g)"), [{"p": x, "g": x}], [[]], block=4096)
    one.check("triton")


@pytest.mark.parametrize("text", ["p = uniform()", "p = uniform() + sum(p, axis=-1)"])
def test_a_part_of_a_tensor_draws_what_the_whole_draws_there(monkeypatch, text):
    """In chunks, and in tiles where there are slices."""
    philox.check_parts(monkeypatch, "triton", text)
