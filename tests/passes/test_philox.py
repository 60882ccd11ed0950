"""Random numbers: the published generator, the same bits everywhere, and the right distributions."""

import copy
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

import optgen
from optgen.ir.node import DType, const
from optgen.ir.semantics import evaluate
from optgen.launch import dtensor
from optgen.launch.dtensor import Shard
from optgen.launch.launcher import Launcher
from optgen.launch.work import Work
from optgen.passes import philox
from optgen.passes.chain import complete
from optgen.passes.variants import with_maximize

BACKENDS = ["numpy", "cpu"]

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(counter, key, result):
    def words(text):
        return tuple(const(int(word, 16), DType.U32) for word in text.split())

    found = philox.philox(words(counter), words(key))
    values = evaluate(found, lambda n: None)
    assert " ".join(f"{int(values[n]):08x}" for n in found) == result


def drawn(text, shape, backend="cpu", seed=0, steps=1, dtype=torch.float32, before=0, group=False):
    """What `p = …` holds after some steps, for the parameter that comes after so many others."""
    others = [nn.Parameter(torch.zeros(2, dtype=dtype)) for _ in range(before)]
    p = nn.Parameter(torch.zeros(shape, dtype=dtype))
    groups = [{"params": others}, {"params": [p]}] if group else [*others, p]
    optimizer = optgen.optimizer(text)(groups, backend=backend, seed=seed)
    for _ in range(steps):
        for q in (*others, p):
            q.grad = torch.zeros_like(q)
        optimizer.step()
    return p.detach().numpy()


def by_hand(numel, seed=0, param=0, step=1, draw=0):
    """Philox4x32-10 in Python's own integers."""
    found = []
    for i in range(numel):
        x = [i & 0xFFFFFFFF, (i >> 32) + (draw << 16), param, step]
        k = [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(10):
            a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
            x = [(b >> 32) ^ x[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ x[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        found.append(x[0])
    return np.array(found, np.uint64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_follows_from_seed_step_parameter_and_element(backend):
    found = drawn("p = uniform()", (3, 5), backend, seed=7 << 33 | 12, steps=4, before=2)
    right = (by_hand(15, 7 << 33 | 12, param=2, step=4) >> np.uint64(8)) * 2.0**-24
    assert np.array_equal(found.ravel(), right.astype(np.float32))
    assert np.array_equal(
        found, drawn("p = uniform()", (3, 5), backend, 7 << 33 | 12, 4, before=2, group=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_calls_give_two_numbers(backend):
    found = drawn("p = uniform() + 2*uniform()", (9,), backend)
    first, second = ((by_hand(9, draw=d) >> np.uint64(8)) * 2.0**-24 for d in (0, 1))
    assert np.array_equal(found, (first + 2 * second).astype(np.float32))


def test_two_rules_of_a_chain_draw_for_themselves():
    noisy = "g = g + uniform()"
    p = nn.Parameter(torch.zeros(9))
    optimizer = optgen.optimizer(optgen.chain(noisy, noisy, "p = g"))([p], backend="numpy")
    p.grad = torch.zeros(9)
    optimizer.step()
    first, second = ((by_hand(9, draw=d) >> np.uint64(8)) * 2.0**-24 for d in (0, 1))
    assert np.array_equal(p.detach().numpy(), (first + second).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_chunks_and_memory_orders_make_no_difference(dtype):
    text = "p = normal() + uniform()"
    shape = (130, 300)
    right = drawn_in(torch.zeros(shape, dtype=dtype), text, "numpy")
    assert torch.equal(drawn_in(torch.zeros(shape, dtype=dtype), text, "cpu"), right)
    assert torch.equal(drawn_in(torch.zeros(shape[::-1], dtype=dtype).t(), text, "cpu"), right)
    assert torch.equal(drawn_in(torch.zeros((260, 300), dtype=dtype)[::2], text, "cpu"), right)


def drawn_in(p, text, backend):
    p = nn.Parameter(p)
    optimizer = optgen.optimizer(text)([p], backend=backend)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    return p.detach()


def test_a_resumed_run_draws_what_an_uninterrupted_one_does():
    def make(p):
        return optgen.optimizer("p = p + normal()")([p], seed=3)

    def run(optimizer, p, steps):
        for _ in range(steps):
            p.grad = torch.zeros_like(p)
            optimizer.step()

    whole, part = (nn.Parameter(torch.zeros(50)) for _ in range(2))
    run(make(whole), whole, 6)
    first = make(part)
    run(first, part, 3)
    second = optgen.optimizer("p = p + normal()")([part])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, part, 3)
    assert torch.equal(whole, part)


def test_a_group_has_its_own_seed():
    params = [nn.Parameter(torch.zeros(9)) for _ in range(2)]
    optimizer = optgen.optimizer("p = uniform()")([{"params": [p], "seed": i} for i, p in enumerate(params)])
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for i, p in enumerate(params):
        right = (by_hand(9, seed=i, param=i) >> np.uint64(8)) * 2.0**-24
        assert np.array_equal(p.detach().numpy(), right.astype(np.float32))


def test_uniform_numbers():
    x = drawn("p = uniform()", (200_000,)).astype(np.float64)
    assert x.min() >= 0
    assert x.max() < 1
    assert stats.kstest(x, "uniform").pvalue > 1e-3


def test_normal_numbers():
    x = drawn("p = normal()", (200_000,)).astype(np.float64)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.01
    once_more = drawn("p = normal()", (200_000,), steps=2).astype(np.float64)
    assert abs(np.corrcoef(x, once_more)[0, 1]) < 0.01


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.float64, 1e-6)], ids=str)
def test_normal_is_the_inverse_of_the_distribution(dtype, within):
    """To a few units of float32, which is what its 24 bits are good for."""
    u = drawn("p = uniform()", (100_000,), dtype=torch.float64)
    right = np.sqrt(2) * special.erfinv(2 * u - 1 + 2.0**-24)
    found = drawn("p = normal()", (100_000,), dtype=dtype)
    assert np.abs(found - right).max() < within


def test_the_ends_of_the_normal_distribution():
    """The least and the largest bits give finite numbers, as far from 0 as each other."""
    for bits, sign in ((0, -1), (0xFFFFFFFF, 1)):
        root = philox.normal(0)
        word = philox.bits(0)
        known = {word: np.array([bits], np.uint32)}
        values = evaluate([root], lambda n: np.zeros(1, np.uint32), np.float32, known)
        assert sign * values[root][0] == pytest.approx(5.4, abs=0.1)


PARTS = [((6, 5), (2, 0)), ((6, 2), (0, 3)), ((2, 3), (4, 1))]  # sizes and offsets, of a tensor of (6, 5)


def check_parts(monkeypatch, backend, text="p = uniform()", shape=(6, 5), parts=PARTS):
    """A part of a larger tensor draws the numbers that the whole draws there; sums are of zeros."""
    monkeypatch.setattr(dtensor, "_all_reduce", lambda values, op, group: None)
    mesh = Mock()
    program = optgen.rule(text)
    launcher = Launcher(with_maximize(complete(program)), backend)

    def draw(p, shard=None):
        options = {h.name: h.default for h in launcher.program.hypers.values()}
        truths = launcher.compiler.facts(options, p.dim())
        launcher.run([Work(p, torch.zeros_like(p), {}, 0, truths, 1.0, index=3, shard=shard)], [options])
        return p

    whole = draw(torch.zeros(shape))
    for sizes, offset in parts:
        sizes = tuple(min(n, s - o) for n, s, o in zip(sizes, shape, offset, strict=True))
        shard = Shard(shape, sizes, offset, tuple(range(len(shape))), mesh)
        found = draw(torch.zeros(sizes), shard)
        box = tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
        assert torch.equal(found, whole[box]), (sizes, offset)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_of_a_tensor_draws_what_the_whole_draws_there(monkeypatch, backend):
    check_parts(monkeypatch, backend)
    check_parts(monkeypatch, backend, "p = uniform() + sum(p, axis=-1)")
    check_parts(monkeypatch, backend, shape=(3, 4, 5), parts=[((3, 2, 5), (0, 1, 0)), ((2, 4, 2), (1, 0, 3))])


def test_parts_that_are_no_box_or_cut_three_ways_draw_nothing():
    three_ways = Shard((4, 4, 4), (2, 2, 2), (0, 0, 0), (0, 1, 2), None)
    no_box = Shard((4,), (2,), (0,), (0,), None, False)
    for shard in (three_ways, no_box):
        with pytest.raises(ValueError, match="random numbers need a parameter of shape"):
            shard.place  # noqa: B018
