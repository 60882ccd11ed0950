"""Random rules through every pass, every plan and the back ends that run here; see `strategies`.

Passes and the reference are compared to the bit. Numba's kernels too, in every store: sums are compared
with the reference's, within an error in proportion to the size of their terms, and then given to it.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buckets import bucket, direct, raw, same, stores_of, tensor_values, truths
from optgen.backends.reference import REAL
from optgen.ir.semantics import evaluate
from optgen.passes import pipeline
from optgen.plan.codecs import CODECS
from strategies import CODEC_LISTS, cases, compiled, examples, staged

ANY = cases(reductions=True, tensor_states=True)


@examples(200)
@given(ANY, st.integers(0, 9999), st.booleans(), st.sampled_from(list(REAL)))
def test_every_pass_keeps_every_value(case, seed, wild, real):
    real = REAL[real]
    held = truths(case.program, case.options)
    program = pipeline.specialise(pipeline.recur(case.program), held)
    stores = stores_of(program, seed, wild, real)
    numbers = tensor_values(program, seed)
    before = direct(program, case, stores, numbers, real)
    for change in pipeline.PASSES:
        program = change(program)
        after = direct(program, case, stores, numbers, real)
        for name in before:
            same(real(after[name]), real(before[name]), f"{name} after {change.__name__}")


@examples(200)
@given(ANY, st.integers(0, 9999), st.booleans())
def test_recur_and_specialise_keep_every_value(case, seed, wild):
    """In float64, where the host's precision is the device's."""
    held = truths(case.program, case.options)
    stores = stores_of(case.program, seed, wild, np.float64)
    numbers = tensor_values(case.program, seed)
    decided = pipeline.specialise(case.program, held)
    moved = pipeline.specialise(pipeline.recur(case.program), held)
    before, after = (direct(p, case, stores, numbers, np.float64) for p in (decided, moved))
    assert before.keys() == after.keys()
    for name in before:
        same(np.float64(after[name]), np.float64(before[name]), name)


@examples(200)
@given(st.one_of(ANY, staged()), st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_plan_keeps_every_value(case, seed, wild, codecs):
    """Phases, spills and storage: the plan's results are those of the program, rounded once."""
    program, one = bucket(case, seed, wild, codecs)
    real = REAL[one.plan.real]
    (stores,) = one.tensors
    decoded = {}
    for s, bits in stores.items():
        decode = CODECS[one.plan.codecs[s]].load(s)
        wide = bits.astype(np.uint32) if bits.dtype == np.uint16 else bits
        decoded[s] = evaluate([decode], lambda n, wide=wide: wide, real)[decode]
    numbers = tensor_values(program, seed)
    right = direct(program, case, decoded, numbers, real)
    (mine,), (states,) = one.reference()
    for name, value in right.items():
        if name in stores:
            with np.errstate(all="ignore"):
                value = np.broadcast_to(value.astype(real), stores[name].shape)
                exact = value.astype(np.float32) if one.plan.codecs[name] != "fp64" else value
            same(mine[name], raw(one.plan.codecs[name], exact), name, one.plan.codecs[name])
        elif name in one.plan.tensor_states:
            with np.errstate(all="ignore"):
                same(states[name], value.astype(real), name)


def check_cpu(case, seed, wild, codecs):
    _, several = bucket(case, seed, wild, codecs, sizes=(1, 37, 16384 * 2 + 5))
    several.check("cpu")


# 100 programs through Numba, as four tests so that both cores compile; 200 more are `full`.


@compiled(25)
@given(ANY, st.integers(0, 9999), st.booleans())
def test_cpu_agrees_in_float32(case, seed, wild):
    check_cpu(case, seed, wild, ("fp32",))


@compiled(25)
@given(ANY, st.integers(0, 9999), st.booleans())
def test_cpu_agrees_in_float64(case, seed, wild):
    check_cpu(case, seed, wild, ("fp64",))


@compiled(25)
@given(ANY, st.integers(0, 9999), st.booleans(), st.sampled_from(["bf16", "fp16"]))
def test_cpu_agrees_in_16_bits(case, seed, wild, codec):
    check_cpu(case, seed, wild, (codec,))


@compiled(25)
@given(ANY, st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_cpu_agrees_in_mixed_storage(case, seed, wild, codecs):
    check_cpu(case, seed, wild, codecs)


@pytest.mark.full
@compiled(200)
@given(st.one_of(ANY, staged()), st.integers(0, 9999), st.booleans(), CODEC_LISTS)
def test_cpu_agrees_on_many(case, seed, wild, codecs):
    check_cpu(case, seed, wild, codecs)
