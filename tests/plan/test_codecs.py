"""Every 16-bit pattern and every rounding, against torch: through the IR, the reference and Numba.

`test_interpreter` runs the same through Triton's source.
"""

import numpy as np
import pytest
import torch

from buckets import Bucket, planned, same
from optgen.ir.node import DType, load
from optgen.ir.semantics import evaluate
from optgen.plan.codecs import CODECS, working

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}
QUIET = {"bf16": 0x7FC0, "fp16": 0x7E00}
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
# Below, at and above the middle between two bfloat16 numbers, beside each of them.
LOWER_HALVES = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)


def decoded(codec, bits):
    """What torch reads in 16-bit patterns."""
    return torch.from_numpy(bits.view(np.int16)).view(TORCH[codec]).float().numpy()


def encoded(codec, values):
    """torch's patterns for numbers, with the one NaN that optgen writes."""
    bits = torch.from_numpy(values).to(TORCH[codec]).view(torch.int16).numpy().view(np.uint16)
    return np.where(np.isnan(values), np.uint16(QUIET[codec]), bits)


def middles():
    """Numbers of float16, the middles between them, and their neighbours in float32."""
    numbers = np.sort(decoded("fp16", PATTERNS[:0x7C00]))
    halves = ((numbers[1:].astype(np.float64) + numbers[:-1]) / 2).astype(np.float32)
    beyond = np.array([65504, 65519.996, 65520, 65536, 1e6], np.float32)
    values = np.concatenate([numbers, halves, beyond])
    return np.concatenate(
        [values, np.nextafter(values, np.float32(0)), np.nextafter(values, np.float32(np.inf))]
    )


def numbers():
    """Float32 numbers: every upper half with ties, every float16 with ties, random bits, special ones."""
    upper = (PATTERNS.astype(np.uint32)[:, None] << 16 | LOWER_HALVES).ravel()
    noise = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    with np.errstate(all="ignore"):
        return np.concatenate([upper.view(np.float32), noise.view(np.float32), middles(), -middles()])


NUMBERS = numbers()


@pytest.mark.parametrize("codec", TORCH)
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_decode_is_exact_through_the_ir(codec, real):
    root = CODECS[codec].load("p")
    found = evaluate([root], lambda n: PATTERNS.astype(np.uint32), real)[root]
    with np.errstate(invalid="ignore"):
        same(found, decoded(codec, PATTERNS).astype(real))


@pytest.mark.parametrize("codec", TORCH)
def test_encode_rounds_to_nearest_even_through_the_ir(codec):
    root = CODECS[codec].encode(load("p"))
    found = evaluate([root], lambda n: NUMBERS, np.float32)[root]
    assert np.array_equal(found, encoded(codec, NUMBERS))


@pytest.mark.parametrize("codec", TORCH)
def test_float64_is_rounded_as_torch_rounds_it(codec):
    """By way of float32, like torch's own conversion."""
    wide = np.random.default_rng(1).standard_normal(100_000) * 10.0 ** (np.arange(100_000) % 9 - 4.0)
    root = CODECS[codec].encode(load("p"))
    found = evaluate([root], lambda n: wide, np.float64)[root]
    theirs = torch.from_numpy(wide).to(TORCH[codec]).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(found, theirs)


@pytest.mark.parametrize("codec", TORCH)
def test_what_was_stored_comes_back(codec):
    decode = CODECS[codec].load("p")
    root = CODECS[codec].encode(decode)
    found = evaluate([root], lambda n: PATTERNS.astype(np.uint32), np.float32)[root]
    assert np.array_equal(found, np.where(np.isnan(decoded(codec, PATTERNS)), QUIET[codec], PATTERNS))


def check_decode(backend, codec):
    """All patterns through a kernel that copies g to p."""
    made = planned("p = g", "fp32", codec)
    one = Bucket(made, [{"p": np.zeros(PATTERNS.size, np.float32), "g": PATTERNS}], [[]], block=1 << 15)
    (found,) = one.reference()[0] if backend == "numpy" else one.run(backend)[0]
    same(found["p"], decoded(codec, PATTERNS))


def check_encode(backend, codec):
    """All numbers through a kernel that copies g to p."""
    made = planned("p = g", codec, "fp32")
    one = Bucket(made, [{"p": np.zeros(NUMBERS.size, np.uint16), "g": NUMBERS}], [[]], block=1 << 15)
    (found,) = one.reference()[0] if backend == "numpy" else one.run(backend)[0]
    assert np.array_equal(found["p"], encoded(codec, NUMBERS))


@pytest.mark.parametrize("codec", TORCH)
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_decode_in_a_kernel(backend, codec):
    check_decode(backend, codec)


@pytest.mark.parametrize("codec", TORCH)
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_encode_in_a_kernel(backend, codec):
    check_encode(backend, codec)


def test_sizes_and_precision():
    assert {name: codec.bytes for name, codec in CODECS.items()} == {
        "fp64": 8,
        "fp32": 4,
        "bf16": 2,
        "fp16": 2,
    }
    assert [CODECS[c].raw for c in ("fp64", "fp32", "bf16")] == [DType.REAL, DType.F32, DType.U32]
    assert CODECS["fp32"].lossless("fp32")
    assert not CODECS["fp32"].lossless("fp64")
    assert not CODECS["bf16"].lossless("fp32")
    assert working(["bf16", "fp32"]) == "fp32"
    assert working(["bf16", "fp64", "fp32"]) == "fp64"
