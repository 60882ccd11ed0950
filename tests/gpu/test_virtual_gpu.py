"""The simulated GPU itself: what instructions compute, and that each kind of mistake is found."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import optgen
from optgen.launch.buckets import Bucket
from virtual_gpu import memory
from virtual_gpu.arithmetic import NoSemantics, computation
from virtual_gpu.device import Device, require
from virtual_gpu.memory import Fault
from virtual_gpu.ptx import parse

RNG = np.random.default_rng(0)
F32 = np.array([0.0, -0.0, 1.5, -2.25, 1e-40, 3e38, np.inf, -np.inf, np.nan, 7.0], np.float32)
F64 = F32.astype(np.float64)
U32 = np.array([0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)
I32 = U32.view(np.int32)
U64 = np.concatenate([U32, [1 << 63, (1 << 64) - 1]]).astype(np.uint64)


def compute(name, *operands):
    """What an instruction makes of all pairs of these values, as bits."""
    function, _ = computation(tuple(name.split(".")))
    with np.errstate(all="ignore"):
        return function(*(np.ascontiguousarray(x).view(f"u{x.itemsize}") for x in operands))


def pairs(values):
    a, b = np.meshgrid(values, values)
    return a.ravel(), b.ravel()


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("values", [F32, F64], ids=["f32", "f64"])
def test_floating_point(name, values):
    a, b = pairs(values)
    with np.errstate(all="ignore"):
        right = {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b}[name]
    found = compute(f"{name}.rn.f{8 * values.itemsize}", a, b).view(values.dtype)
    np.testing.assert_array_equal(found, right)
    assert len(set(found[np.isnan(found)].view(f"u{values.itemsize}"))) == 1  # hardware's only NaN


def test_contraction_rounds_once():
    a, b, c = np.float32([1 + 2**-23]), np.float32([1 - 2**-23]), np.float32([-1])
    assert compute("fma.rn.f32", a, b, c).view(np.float32) == np.float32(-(2.0**-46))
    assert (a * b + c) == 0


def test_flushed_to_zero():
    tiny = np.float32([1e-40, -1e-40])
    assert compute("mul.rn.ftz.f32", tiny, np.float32([1, 1])).tolist() == [0, 0x80000000]
    assert compute("mul.rn.f32", tiny, np.float32([1, 1])).view(np.float32).tolist() == tiny.tolist()
    assert compute("abs.ftz.f32", tiny).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_fields_of_bits(kind):
    for at, count in ((0, 1), (5, 1), (4, 4), (31, 1), (0, 31)):
        field = (U32.astype(np.int64) >> at) & ((1 << count) - 1)
        if kind == "s32":
            field -= (field >> count - 1) << count
        found = compute(f"bfe.{kind}", U32, np.uint32([at]), np.uint32([count]))
        assert found.tolist() == (field % 2**32).tolist(), (at, count)


@pytest.mark.parametrize("values", [I32, U32, U64.view(np.int64), U64], ids=["s32", "u32", "s64", "u64"])
def test_integers(values):
    a, b = pairs(values)
    kind = f"{'s' if values.dtype.kind == 'i' else 'u'}{8 * values.itemsize}"
    bits = 8 * values.itemsize
    whole = [(int(x), int(y)) for x, y in zip(a, b, strict=True)]

    def same(name, function, chosen=slice(None)):
        right = [function(x, y) % 2**bits for x, y in whole[chosen] if name not in ("div", "rem") or y]
        live = b[chosen] != 0 if name in ("div", "rem") else np.ones(len(b[chosen]), bool)
        assert compute(f"{name}.{kind}", a[chosen][live], b[chosen][live]).tolist() == right

    same("add", lambda x, y: x + y)
    same("sub", lambda x, y: x - y)
    same("mul.lo", lambda x, y: x * y)
    same("mul.hi", lambda x, y: x * y >> bits)
    same("min", min)
    same("max", max)
    same("div", lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1))
    same("rem", lambda x, y: abs(x) % abs(y) * (1 if x >= 0 else -1))


def test_shifts_beyond_the_width():
    by = np.uint32([0, 31, 32, 100])
    one = np.full(4, 0x80000001, np.uint32)
    assert compute("shl.b32", one, by).tolist() == [0x80000001, 0x80000000, 0, 0]
    assert compute("shr.u32", one, by).tolist() == [0x80000001, 1, 0, 0]
    assert compute("shr.s32", one, by).tolist() == [0x80000001, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF]


def test_comparisons_with_nan():
    a, b = np.float32([1, np.nan, 2]), np.float32([1, 1, 3])
    assert compute("setp.eq.f32", a, b).tolist() == [True, False, False]
    assert compute("setp.ne.f32", a, b).tolist() == [False, False, True]
    assert compute("setp.neu.f32", a, b).tolist() == [False, True, True]
    assert compute("setp.geu.f32", a, b).tolist() == [True, True, False]
    assert compute("setp.nan.f32", a, b).tolist() == [False, True, False]
    assert compute("setp.lt.s32", np.int32([-1]), np.int32([1])).tolist() == [True]
    assert compute("setp.lt.u32", np.int32([-1]), np.int32([1])).tolist() == [False]


def test_conversions():
    assert compute("cvt.rn.f32.f64", F64).view(np.float32).tolist()[:6] == F32.tolist()[:6]
    assert compute("cvt.s64.s32", np.int32([-1])).tolist() == [2**64 - 1]
    assert compute("cvt.u64.u32", np.int32([-1])).tolist() == [2**32 - 1]
    assert compute("cvt.rzi.s32.f32", np.float32([-1.7, np.nan, 3e38])).tolist() == [2**32 - 1, 0, 2**31 - 1]
    assert compute("cvt.rmi.f32.f32", np.float32([-1.5])).view(np.float32) == -2
    assert compute("cvt.rn.f32.u32", np.uint32([2**32 - 1])).view(np.float32) == np.float32(2**32)


def test_bits():
    x = np.uint32([0x12345678])
    assert compute("bfe.u32", x, np.uint32([8]), np.uint32([12])).tolist() == [0x456]
    assert compute("prmt.b32", x, np.uint32([0xAABBCCDD]), np.uint32([0x7610])).tolist() == [0xAABB5678]
    assert compute("shf.l.wrap.b32", x, x, np.uint32([4])).tolist() == [0x23456781]
    assert compute("mad.wide.u32", x, x, np.uint64([1])).tolist() == [0x12345678**2 + 1]


def test_an_unknown_instruction_is_no_guess():
    with pytest.raises(NoSemantics, match=r"no semantics for tanh\.approx\.f32"):
        computation(("tanh", "approx", "f32"))


def test_text_is_read():
    text = """
        .visible .entry f(
        .param .u64 f_param_0
        )
        {
        .loc 1 12 3
        @!%p1 bra $L__BB0_2; // a comment
        $L__BB0_2:
        ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 8 ];
        { .reg .b16 tmp; mov.b32 {tmp, %rs1}, %r1; }
        }
    """.replace("\n        ", "\n")
    found = parse(text)
    branch, load, move = found.instructions
    assert (found.name, found.parameters, found.labels) == ("f", 1, {"$L__BB0_2": 1})
    assert (branch.predicate, branch.negated, branch.line) == ("%p1", True, 12)
    assert load.operands == ("{ %r1, %r2 }", "[ %rd1 + 8 ]")
    assert move.operands == ("{_, %rs1}", "%r1")


# Mistakes


@pytest.fixture
def mistaken():
    """A device with something wrong on it."""
    require()
    with Device() as device:
        yield device


def step(rule="adamw", shape=(5000,), **options):
    params = [nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(3))]
    optimizer = optgen.optimizer(rule)(params, backend="triton", **options)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer, params


def found_by(device, kind, text):
    with pytest.raises(RuntimeError, match="simulated launch failed"):
        step()
    assert isinstance(device.errors[-1], kind)
    assert re.search(text, str(device.errors[-1])), device.errors[-1]


def test_a_table_entry_off_by_one_element(mistaken, monkeypatch):
    send = Bucket.send

    def off(self):
        self.host[0, self.layout.columns["p"]] += 4
        send(self)

    monkeypatch.setattr(Bucket, "send", off)
    found_by(mistaken, Fault, r"misaligned access of 16 bytes")
    monkeypatch.setattr(Bucket, "send", lambda self: (self.host.__iadd__(0), move(self, 16), send(self)))
    found_by(mistaken, Fault, r"outside live tensors|misaligned")


def move(bucket, by):
    bucket.host[:, bucket.layout.columns["p"]] += by


def test_a_missing_mask(mistaken):
    mistaken.edit = lambda text: re.sub(r"@%p\d+ ((?:ld|st)\.global)", r"\1", text)
    found_by(mistaken, Fault, "accesses outside live tensors")


def test_a_barrier_that_is_missing(mistaken):
    mistaken.edit = lambda text: re.sub(r"\n\s*bar\.sync[^\n]*", "", text)
    mistaken.schedule = "last"
    try:
        step("lamb")
    except RuntimeError:
        assert any("nobody has written" in str(error) for error in mistaken.errors)
    else:
        assert any(kind == memory.WARPS for _, kind in mistaken.harmful)


def test_a_freed_table(mistaken):
    optimizer, params = step()
    (bucket,) = optimizer._launcher._recordings[None].buckets
    bucket.tables.chunks = Freed(bucket.tables.chunks)
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(RuntimeError, match="simulated launch failed"):
        bucket.kernel.run(bucket.plan.sweeps[0], bucket.tables)
    assert "outside live tensors" in str(mistaken.errors[-1])


class Freed:
    """A tensor's address and size without its memory."""

    def __init__(self, tensor):
        self.dtype, self.length, self.address = tensor.dtype, len(tensor), tensor.data_ptr()
        tensor.untyped_storage().resize_(0)

    def data_ptr(self):
        return self.address

    def __len__(self):
        return self.length


def test_two_blocks_that_write_to_one_place(mistaken):
    """Every program instance takes the first chunk."""
    mistaken.edit = lambda text: text.replace("%ctaid.x", "0")
    step(shape=(20_000,))
    assert any(kind == memory.BLOCKS_WRITE for _, kind in mistaken.harmful)


def half_go_round(text):
    """PTX in which half of the threads take another barrier for the first one."""
    if "bar.sync" not in text:
        return text
    before, after = text.split("bar.sync", 1)
    barrier, rest = after.split("\n", 1)
    lines = [
        "mov.u32 %r9999, %tid.x;", "setp.lt.u32 %p9999, %r9999, 64;", "@%p9999 bra $L__X;",
        f"bar.sync {barrier}", "bra.uni $L__Y;", "$L__X:", "bar.sync 0;", "$L__Y:", rest,
    ]  # fmt: skip
    return before + "\n".join(lines)


def test_a_divergent_barrier(mistaken):
    mistaken.edit = half_go_round
    with pytest.raises(RuntimeError, match="simulated launch failed"):
        step("lamb")
    assert "threads wait at different barriers" in str(mistaken.errors[-1])


def test_maxima_that_are_not_atomic(mistaken):
    """What all blocks write to one place races, unless the device compares and writes at once."""
    name = r"atom\.global\.gpu\.relaxed\.max\.s64 (%rd\d+), (\[[^\]]*\]), (%rd\d+)"
    step("sm3", (100, 300))
    assert not mistaken.harmful
    assert any(re.search(name, launch.kernel.asm["ptx"]) for launch in mistaken.launches)
    mistaken.edit = lambda text: re.sub(name, r"st.global.b64 \2, \3", text)
    step("sm3", (100, 300))
    assert memory.BLOCKS_WRITE in {kind for _, kind in mistaken.harmful}


def test_everything_is_as_before_afterwards():
    from triton.runtime import driver

    require()
    before, resolve = driver._active, optgen.optim.state.resolve
    with Device():
        step()
    assert (driver._active, optgen.optim.state.resolve) == (before, resolve)
    with pytest.raises(ValueError, match="backend='triton' needs tensors on a GPU"):
        step()
