"""The back ends against the reference, and what they emit.

`check_…` functions take a back end: here Numba's, in `test_interpreter` Triton's.
"""

import ast
import keyword
import os
import platform
import re
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optgen
from buckets import Bucket, flat, planned, raw, same, scalars, settings
from optgen import library
from optgen.backends import cache
from optgen.backends.cpu import kernel as cpu
from optgen.backends.emit import PYTHON, Names, identifier
from optgen.backends.layout import Layout
from optgen.backends.registry import BACKENDS
from optgen.ir.extent import Extent
from optgen.ir.node import DType, Op
from optgen.launch.launcher import resolve
from optgen.plan.plan import Buffer
from strategies import SPECIAL, array, examples

# test_slices and `optgen check --all` have those with slices, totals, random numbers and further inputs.
RULES = [name for name in library.names() if library.rule(name).kind == "rule" and flat(name)]
MIXED = ("bf16", "bf16", "fp32")
CODECS = [("fp32",), ("fp64",), ("bf16",), ("fp16",), MIXED]
CODECS += [("fp16", "fp16", "fp32"), ("fp32", "fp32", "bf16")]


def variants(name):
    """The defaults; every boolean option turned round; decay and momentum switched on."""
    hypers = library.rule(name).hypers
    found = [{}]
    found += [{h: not hyper.default} for h, hyper in hypers.items() if isinstance(hyper.default, bool)]
    more = {h: x for h, x in {"weight_decay": 0.1, "momentum": 0.9}.items() if h in hypers}
    found += [more] if more else []
    found += [{"momentum": 0.9, "nesterov": True}] if "nesterov" in hypers else []
    return found


def rule_bucket(rule, codecs=("fp32",), sizes=(1, 5, 16389), options=None, **layout):
    """Tensors of a rule with random values; states are not negative, as squares are not."""
    options = settings(library.rule(rule), **(options or {}))
    made = planned(rule, *codecs, **options)
    tensors, rows, states = [], [], []
    for i, size in enumerate(sizes):
        values = {s: array(100 * i + j, size, False, np.float64) for j, s in enumerate(made.codecs)}
        tensors.append(
            {s: raw(made.codecs[s], np.abs(x) if s in made.states else x) for s, x in values.items()}
        )
        host = {s: 0.5 for s, state in made.states.items() if state.extent is Extent.STEP}
        rows.append(scalars(made, options, t=4 + i, numel=size, host=host))
        states.append(dict.fromkeys(made.tensor_states, 0.5))
    return Bucket(made, tensors, rows, states, **layout)


# Every rule


@pytest.mark.parametrize("codecs", [("fp32",), MIXED], ids=",".join)
@pytest.mark.parametrize("rule", RULES)
def test_rules_agree(rule, codecs):
    rule_bucket(rule, codecs).check("cpu")


COMMON = ("adamw", "lamb", "sgd", "rprop", "stable_adamw")
# Some rules with every storage, all of them with two.
MATRIX = [
    (name, options, codecs)
    for name in RULES
    for options in variants(name)
    for codecs in (CODECS if name in COMMON else (("fp32",), MIXED))
]


@pytest.mark.full
@pytest.mark.parametrize(("rule", "options", "codecs"), MATRIX, ids=str)
def test_rules_agree_under_every_option(rule, options, codecs):
    rule_bucket(rule, codecs, options=options).check("cpu")


def check_chain(backend, sizes):
    rule_bucket(library.chain("clip_norm", "lamb", "cautious"), sizes=sizes).check(backend)


def test_a_chain_with_four_phases_agrees():
    check_chain("cpu", (1, 7, 40_000))


DEVICE_STATE = """
hyper(beta=0.9)
state(r=1, top=0, per=tensor)
state(m=0)
r = beta*prev(r) + (1 - beta)*norm(g)
top = maximum(top, amax(abs(g)))
m = m + g/(1 + prev(r))
p = p - m/r
"""


def check_device_state(backend, sizes):
    """State per tensor that follows from reductions: every sweep reads its old value, `finish` writes."""
    one = rule_bucket(DEVICE_STATE, sizes=sizes)
    assert one.plan.tensor_states == ("r", "top")
    one.check(backend)
    _, states, slots = one.run(backend)
    for i in range(len(sizes)):
        largest = np.abs(one.tensors[i]["g"]).max()
        assert states[i]["top"] == max(0.5, largest)
        assert states[i]["r"] > 0.5 * 0.9
    assert np.isfinite(slots).all()


def test_device_state_agrees():
    check_device_state("cpu", (1, 7, 40_000))


# Shapes and places


def check_sizes(backend, chunk):
    """About every border of blocks and chunks, and where a row of lanes ends."""
    sizes = (1, 2, 15, 16, 17, chunk - 1, chunk, chunk + 1, 3 * chunk + 5)
    rule_bucket("adamw", MIXED, sizes).check(backend)
    rule_bucket("lamb", ("fp32",), sizes).check(backend)
    rule_bucket("p = p - g/amax(abs(g))", ("fp32",), sizes).check(backend)


def test_sizes():
    check_sizes("cpu", cpu.CHUNK)


def check_misaligned(backend, size):
    """Views that begin one or three elements from an aligned address."""
    dims = 1 if backend == "triton" else 0  # which walks them by strides
    for offset in (1, 3):
        rule_bucket("lamb", ("fp32",), (1, 5, size), offset=offset, dims=dims).check(backend)
        rule_bucket("adamw", MIXED, (1, 5, size), offset=offset, dims=dims).check(backend)


def test_misaligned_views():
    check_misaligned("cpu", 40_000)


def strided(rule, shapes, **layout):
    """Tensors whose stores lie in different orders, two or three dimensions of them."""
    one = rule_bucket(rule, sizes=[int(np.prod(shape)) for shape in shapes])
    dims = len(shapes[0])
    orders = [tuple(range(dims)), tuple(reversed(range(dims))), (*range(1, dims), 0)]
    tensors = []
    for shape, stores in zip(shapes, one.tensors, strict=True):
        views = {}
        for i, (s, x) in enumerate(stores.items()):
            order = orders[i % len(orders)]
            memory = x.reshape([shape[d] for d in order])
            views[s] = memory.transpose(np.argsort(order))
        tensors.append(views)
    return Bucket(one.plan, tensors, one.scalars, one.tensor_states, dims=dims, **layout)


def check_strided(backend, large):
    """Stores in different memory orders, and a reduction and a spill among them."""
    many = "state(m=0, v=0, w=0)\nx = p*g + m*v + w\np = p - x/norm(x)"
    assert len(planned(many).spills) == 1
    strided("adamw", [(1, 1), (3, 5), (2, large)]).check(backend)
    strided("lamb", [(1, 2, 3), (4, 3, 2), (5, 7, large)]).check(backend)
    strided(many, [(3, 5), (large, 3)]).check(backend)


def test_strided():
    check_strided("cpu", 9000)


FAR = 1 << 33


def check_far(backend, size):
    """Elements from 2**33 on: 32 bits hold neither their index nor their offset in bytes."""
    rule_bucket("adamw", MIXED, (size, 3), far=FAR).check(backend)
    rule_bucket("lamb", ("fp32",), (size, 3), far=FAR).check(backend)
    strided("adamw", [(3, 8), (size // 8, 8)], far=FAR).check(backend)


def test_far_elements():
    check_far("cpu", 20_000)


# Functions


def grid(real):
    """Every pair of special numbers and small ones, as two arrays."""
    numbers = np.concatenate([SPECIAL, [2, -2, 3, 0.25, -0.75, 2.5, 3.5, -1.5, 1e6, 16777217, -0.4, 89.0]])
    with np.errstate(all="ignore"):
        a, b = np.meshgrid(numbers.astype(real), numbers.astype(real))
    return a.ravel(), b.ravel()


# What NumPy says of x and y: -0 and 0 are equal to it in the second table.
EXACT = {
    "p + g": np.add,
    "p - g": np.subtract,
    "p*g": np.multiply,
    "p / g": np.divide,
    "-p": np.negative,
    "abs(p)": np.abs,
    "sqrt(p)": np.sqrt,
    "floor(p)": np.floor,
    "rsqrt(p)": lambda x, y: 1 / np.sqrt(x),
    "p**0.5": np.sqrt,
    "p**-0.5": lambda x, y: 1 / np.sqrt(x),
    "p**2": lambda x, y: x * x,
    "p**3": lambda x, y: x * x * x,
    "p**-1": lambda x, y: 1 / x,
    "p**-2": lambda x, y: 1 / (x * x),
    "p**0": lambda x, y: np.ones_like(x),
    "lerp(p, g, 0.25)": lambda x, y: x + x.dtype.type(0.25) * (y - x),
    "p if p < g else g": lambda x, y: np.where(x < y, x, y),
    "p if p <= g else g": lambda x, y: np.where(x <= y, x, y),
    "p if p == g else g": lambda x, y: np.where(x == y, x, y),
    "p if p != g else g": lambda x, y: np.where(x != y, x, y),
    "p if not p > g else g": lambda x, y: np.where(~(x > y), x, y),
    "p if p > 0 and g > 0 else g": lambda x, y: np.where((x > 0) & (y > 0), x, y),
    "p if p > 0 or not g > 0 else g": lambda x, y: np.where((x > 0) | ~(y > 0), x, y),
    "p if isfinite(p) else g": lambda x, y: np.where(np.isfinite(x), x, y),
    "p if -1 < g <= 2 else 0": lambda x, y: np.where((y > -1) & (y <= 2), x, 0),
    "sign(p)": lambda x, y: np.where(x == 0, x, np.sign(x)),
}
BUT_FOR_ZEROS = {
    "maximum(p, g)": np.maximum,
    "minimum(p, g)": np.minimum,
    "clip(p, -1, 2)": lambda x, y: np.clip(x, -1, 2),
    "round(p)": lambda x, y: np.round(x),
}


def one_function(text, real, x, y, backend):
    """p after `p = text` in a kernel."""
    codec = "fp32" if real is np.float32 else "fp64"
    made = planned(f"p = {text}", codec)
    one = Bucket(made, [{"p": x, "g": y}], [[]], block=2048)
    (found,) = one.reference()[0] if backend == "numpy" else one.run(backend)[0]
    return found["p"]


def check_exact_functions(backend, real):
    """All of them in one kernel each: the bits of NumPy's own functions."""
    x, y = grid(real)
    for text, function in {**EXACT, **BUT_FOR_ZEROS}.items():
        with np.errstate(all="ignore"):
            unary = isinstance(function, np.ufunc) and function.nin == 1
            right = (function(x) if unary else function(x, y)).astype(real)
        found = one_function(text, real, x, y, backend)
        if text in BUT_FOR_ZEROS:
            found, right = found + real(0), right + real(0)
        same(found, right, text)


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_exact_functions_of_the_reference(real):
    check_exact_functions("numpy", real)


@pytest.mark.full
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_exact_functions(real):
    check_exact_functions("cpu", real)


def dense(text, real):
    """Arguments over the range of a function."""
    random = np.random.default_rng(3)
    if text.startswith("exp"):
        return np.linspace(-80, 80, 4000).astype(real), np.ones(4000, real)
    if text.startswith("tanh"):
        x = np.concatenate(
            [np.linspace(-12, 12, 3000), np.linspace(0.6, 0.65, 500), np.geomspace(1e-30, 1, 500)]
        )
        return x.astype(real), np.ones(4000, real)
    if text.startswith("atan2"):
        x, y = random.standard_normal((2, 4000)) * 10.0 ** random.integers(-6, 6, (2, 4000))
        return x.astype(real), y.astype(real)
    low = 1e-30 if text.startswith("log") else 0.1
    return np.geomspace(low, 1 / low, 4000).astype(real), np.ones(4000, real)


# The function in higher precision, and how many units in the last place of the larger type may be wrong.
TRANSCENDENTAL = {
    "exp(p)": (np.exp, 3),
    "log(p)": (np.log, 3),
    "tanh(p)": (np.tanh, 3),
    "atan2(p, g)": (np.arctan2, 3),
    "p**0.3125": (lambda x: x ** x.dtype.type(0.3125), 8),
    "p**-1.75": (lambda x: x ** x.dtype.type(-1.75), 16),
    "p**10": (lambda x: x**10, 48),
}


def check_transcendental(backend, real):
    wide = np.float64 if real is np.float32 else np.longdouble
    for text, (function, units) in TRANSCENDENTAL.items():
        x, y = dense(text, real)
        right = function(x.astype(wide), y.astype(wide)) if "g" in text else function(x.astype(wide))
        found = one_function(text, real, x, y, backend)
        error = np.abs(found.astype(wide) - right) / np.spacing(np.abs(right).astype(real))
        assert error.max() <= units, text


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_transcendental_functions(backend, real):
    check_transcendental(backend, real)


TRANSCENDENTAL_EDGES = [
    ("exp(p)", [np.inf, -np.inf, 1e4, -1e4, 0.0], [np.inf, 0.0, np.inf, 0.0, 1.0]),
    ("log(p)", [np.inf, 0.0, -0.0, -1.0, 1.0], [np.inf, -np.inf, -np.inf, np.nan, 0.0]),
    ("tanh(p)", [np.inf, -np.inf, np.nan, 0.0, 300.0], [1.0, -1.0, np.nan, 0.0, 1.0]),
    ("atan2(p, 1)", [np.inf, -np.inf, np.nan, 0.0], [np.pi / 2, -np.pi / 2, np.nan, 0.0]),
    ("atan2(p, -1)", [np.inf, -np.inf, np.nan, 0.0], [np.pi / 2, -np.pi / 2, np.nan, np.pi]),
    ("atan2(p, p)", [np.inf, -np.inf, 0.0, 1.0], [np.pi / 4, -3 * np.pi / 4, 0.0, np.pi / 4]),
    ("p**0.3", [0.0, np.inf, -1.0, np.nan, 1.0], [0.0, np.inf, np.nan, np.nan, 1.0]),
    ("p**-0.3", [0.0, np.inf, -1.0, np.nan, 1.0], [np.inf, 0.0, np.nan, np.nan, 1.0]),
    ("p**9", [0.0, -1.0, -np.inf, np.nan, 1.0], [0.0, -1.0, -np.inf, np.nan, 1.0]),
    ("p**-10", [0.0, -1.0, -np.inf, np.nan, 1.0], [np.inf, 1.0, 0.0, np.nan, 1.0]),
    ("g**p", [0.0, 1.0, -1.0, np.nan, np.inf], [1.0, 1.0, 1.0, 1.0, 1.0]),
]


def check_transcendental_edges(backend):
    for text, arguments, right in TRANSCENDENTAL_EDGES:
        x = np.array(arguments, np.float32)
        found = one_function(text, np.float32, x, np.ones_like(x), backend)
        np.testing.assert_allclose(found, np.array(right, np.float32), rtol=3e-7, err_msg=text)


@pytest.mark.parametrize("backend", ["numpy", pytest.param("cpu", marks=pytest.mark.full)])
def test_transcendental_edges(backend):
    check_transcendental_edges(backend)


def check_subnormals(backend):
    """Kept on the way in, in the arithmetic, and on the way out."""
    x = np.array([1e-45, -3e-45, 1e-40, 1.1754942e-38, 2e-38, 0.0], np.float32)
    found = one_function("p*0.5 + g", np.float32, x, x, backend)
    with np.errstate(all="ignore"):
        same(found, x * np.float32(0.5) + x)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_subnormals_are_kept(backend):
    check_subnormals(backend)


# math="fast"


@pytest.mark.parametrize(("codec", "limit"), [("fp32", 2.5e-7), ("fp64", 5e-16)])
@pytest.mark.parametrize("rule", ["adamw", pytest.param("lamb", marks=pytest.mark.full), "rmsprop", "radam"])
def test_fast_costs_little(rule, codec, limit):
    """The figure of `cpu`'s docstring: of a tensor, max|a - b| / max|b|."""
    one = rule_bucket(rule, (codec,), (5, 20_000))
    exact, fast = one.run("cpu")[0], one.run("cpu", "fast")[0]
    for a, b in zip(exact, fast, strict=True):
        for s in a:
            assert np.abs(a[s] - b[s]).max() <= limit * np.abs(a[s]).max(), s


# Threads


@pytest.fixture
def torch_threads():
    """Put the number of torch's threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_results_do_not_depend_on_the_number_of_threads(torch_threads):
    one = rule_bucket("lamb", ("fp32",), (cpu.CHUNK * 40 + 3, 70_000))
    found = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        found.append(one.run("cpu"))
    for tensors, _, slots in found[1:]:
        assert np.array_equal(slots, found[0][2])
        for a, b in zip(tensors, found[0][0], strict=True):
            for s in a:
                same(a[s], b[s], s)


def test_concurrent_calls():
    """Four threads of the caller's, each with tensors of its own."""
    buckets = [rule_bucket("adamw", ("fp32",), (cpu.CHUNK * 20 + i,)) for i in range(4)]
    right = [one.reference()[0] for one in buckets]
    buckets[0].run("cpu")
    found = [None] * 4

    def work(i):
        for _ in range(5):
            found[i] = buckets[i].run("cpu")[0]

    threads = [threading.Thread(target=work, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(found, right, strict=True):
        same(mine[0]["p"], theirs[0]["p"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_in_a_forked_process():
    one = rule_bucket("adamw", ("fp32",), (cpu.CHUNK * 20,))
    right = one.run("cpu")[0][0]["p"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork while there are threads
        child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(one.run("cpu")[0][0]["p"], right) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("rule", ["adafactor", "lamb", "prodigy", "adamw", "clip_global_norm"])
def test_threads_of_torch_and_of_python_give_the_same_bits(monkeypatch, torch_threads, rule):
    """Also where slices make the tables, and where there are numbers for the whole optimizer."""
    source = optgen.chain(rule, "adamw") if rule == "clip_global_norm" else rule
    kind = optgen.optimizer(source, "Tried")
    assert cpu.team() is not None
    found = []
    for threads, ours in ((1, False), (2, False), (3, False), (2, True)):
        torch.set_num_threads(threads)
        if ours:
            monkeypatch.setattr(cpu, "team", lambda: None)
        generator = torch.Generator().manual_seed(0)
        shapes = (300, 700), (100_000,), (3, 40, 600), ()
        params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        optimizer = kind(params)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        found.append([*params, *(v for p in params for v in optimizer.state[p].values())])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_an_error_in_a_thread_is_raised(monkeypatch, torch_threads):
    torch.set_num_threads(2)
    monkeypatch.setattr(cpu, "team", lambda: None)
    one = rule_bucket("sgd", ("fp32",), (cpu.CHUNK * 20,))
    kernel = cache.kernel(one.plan, "cpu", "exact")
    one.run("cpu")  # what is compiled is not looked up again

    def broken(begin, end, *tables):
        if begin > 0:
            raise RuntimeError("broken")

    monkeypatch.setattr(kernel.module, "sweep0", broken)
    with pytest.raises(RuntimeError, match="broken"):
        one.run("cpu")


# Launches


class Counted:
    """The launches of a kernel class, in order, as (step, kernel)."""

    def __init__(self, monkeypatch, kind):
        self.calls, run = [], kind.run

        def launch(kernel, step, tables):
            self.calls.append((step.name, id(kernel)))
            return run(kernel, step, tables)

        monkeypatch.setattr(kind, "run", launch)

    @property
    def names(self):
        return [name for name, _ in self.calls]


def check_launches(monkeypatch, backend, kind):
    """One launch a phase and bucket, whatever the number of tensors and groups."""
    counted = Counted(monkeypatch, kind)
    torch.manual_seed(0)
    shapes = [(3,), (4, 5), (), (7, 2), (1,), (6,), (2, 2)]
    params = [torch.randn(shape, requires_grad=True) for shape in shapes]
    groups = [{"params": params[:3], "lr": 0.1}, {"params": params[3:5]}, {"params": params[5:], "eps": 1e-3}]
    opt = optgen.optimizer("lamb")(groups, backend=backend)
    for p in params:
        p.grad = torch.randn_like(p)
    for _ in range(2):
        counted.calls.clear()
        opt.step()
        assert counted.names == ["sweep0", "combine0", "sweep1"]


def test_one_launch_a_phase(monkeypatch):
    check_launches(monkeypatch, "cpu", cpu.CpuKernel)


def test_every_bucket_ends_a_phase_before_the_next(monkeypatch):
    counted = Counted(monkeypatch, cpu.CpuKernel)
    params = [torch.randn(5, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64)]
    opt = optgen.optimizer("lamb")(params, backend="cpu")
    for p in params:
        p.grad = torch.randn_like(p)
    opt.step()
    assert counted.names == ["sweep0", "combine0"] * 2 + ["sweep1"] * 2
    assert len({kernel for _, kernel in counted.calls}) == 2


def test_finish_is_one_launch(monkeypatch):
    counted = Counted(monkeypatch, cpu.CpuKernel)
    params = [torch.randn(n, requires_grad=True) for n in (3, 1, 9)]
    opt = optgen.optimizer(DEVICE_STATE)(params, backend="cpu")
    for p in params:
        p.grad = torch.randn_like(p)
    opt.step()
    assert counted.names == ["sweep0", "combine0", "sweep1", "finish"]


def test_nothing_to_assign_launches_nothing(monkeypatch):
    counted = Counted(monkeypatch, cpu.CpuKernel)
    p = torch.ones(3, requires_grad=True)
    opt = optgen.optimizer("hyper(lr=0.1, move=False)\nif move:\n    p = p - lr*g")([p], backend="cpu")
    p.grad = torch.ones(3)
    opt.step()
    assert counted.calls == []
    assert p.tolist() == [1, 1, 1]


def test_tables_are_int64(monkeypatch):
    """Addresses, sizes, starts and rows; an emitted kernel narrows none of them."""
    seen = []
    monkeypatch.setattr(cpu.CpuKernel, "run", lambda kernel, step, tables: seen.append(tables))
    p = torch.ones(3, requires_grad=True)
    opt = optgen.optimizer("sgd")([p], backend="cpu")
    p.grad = torch.ones(3)
    opt.step()
    (tables,) = seen
    assert tables.tensors.dtype == tables.chunks.dtype == np.int64


@pytest.mark.parametrize("dims", [0, 3])
@pytest.mark.parametrize("rule", RULES)
def test_emitted_offsets_are_int64(rule, dims):
    made = planned(rule)
    text = cache.emit(made, "triton", dims=dims)
    assert "int32" not in text.replace("uint32", "")
    assert text.count("tl.program_id(0)") == text.count("tl.program_id(0).to(tl.int64)") > 0
    assert "int32" not in cache.emit(made, "cpu", dims=dims).replace("uint32", "")


# Names


WEIRD = """
hyper(lr=0.1)
state(tl=0, np=0, s0=0, x0=0, r0=0, sum0=0, row=0, p_bits=0, m_at=0, m=0, m_=0, β=0, beta=0)
state(total=0, entry=0, per=tensor)
float = p*lr
min = float + tl - np
triton = min*s0 + x0*r0 - sum0
where_ = triton - m_at*m + m_*row
tl = tl + g
np = np - g
s0 = s0*where_
x0 = x0 + prev(p_bits)
p_bits = p_bits + prev(m)
m = m + m_at
β = β + beta*2
beta = beta - g
math = norm(where_) + total
entry = entry + amax(abs(g))
total = total + entry + math
x = p - where_/math
x_1 = x*x
x_2 = x_1*x + x_1
ŵ = x_2*lr
ē = ŵ + g
p = p - lr*ē*numel
"""
LOOP_NAMES = """
state(update0=0, carray=0, f32=0, u16=0, pointer=0, i=0, lane=0, tensors=0, mask=0, numel_=0, base=0)
maximum_ = update0 + carray*f32
update0 = update0 + tensors
u16 = maximum_ + u16 + pointer*i
lane = lane + tensors*mask
numel_ = numel_ + base
p = p - maximum(u16, lane)
"""


def check_weird_names(backend, sizes):
    rule_bucket(WEIRD, ("fp32", "fp32", "fp32", "bf16"), sizes).check(backend)
    rule_bucket(LOOP_NAMES, ("bf16", "bf16", "fp32"), sizes).check(backend)


def test_names_that_the_back_end_uses_itself():
    check_weird_names("cpu", (1, 5, 20_000))


def test_identifiers():
    table = {
        "m": "m", "β1": "beta1", "Δ": "delta", "v[0]": "v_0", "ŵ": "w_hat", "x̄": "x_bar", "é": "e",
        "ϑ": "theta", "ß": "s", "参": "x", "m_": "m_", "_": "_",
    }  # fmt: skip
    assert {name: identifier(name) for name in table} == table


WORDS = ["p", "g", "m", "m_at", "m_at_1", "m_bits", "β", "beta", "beta_1", "Β", "tl", "np", "s0", "r1", "x0"]
WORDS += [
    "class",
    "float",
    "match",
    "update0",
    "sum0",
    "m_ptr",
    "m_stride0",
    "base",
    "row",
    "m[0]",
    "m_0",
    "m_1",
]


@examples(200)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text("mβ_0é参", min_size=1, max_size=3)), unique=True))
def test_no_two_variables_are_alike(words):
    """Whatever states are called: in every form that a back end makes of them, and among its own names."""
    made = planned("p = p - g")
    states = [w for w in words if w.replace("[", "").replace("]", "").isidentifier()]
    stores = [Buffer(name, "store", Extent.ELEMENT, "fp32") for name in dict.fromkeys(["p", "g", *states])]
    more = [Buffer(f"#{i}", "spill", Extent.ELEMENT, "fp32") for i in range(2)]
    more += [Buffer(f"@slot{i}", "slot", Extent.TENSOR, "fp64") for i in range(2)]
    plan = replace(made, buffers=(*more, *stores))
    forms = ("{}_at", "{}_ptr", "{}_stride0")
    names = Names(plan, {"tl", "row", "base"}, forms)
    found = [form.format(x) for x in names.stores.values() for form in ("{}", "{}_bits", *forms)]
    assert len(found) == len(set(found))
    assert all(x.isidentifier() and x.isascii() and not keyword.iskeyword(x) for x in found)
    assert not {"tl", "row", "base", "s0", "r0", "sum1", "update0", *PYTHON} & set(found)
    assert names.stores["p"] == "p"
    assert names.stores["g"] == "g"


# Texts


GOLDEN = {
    "adamw": ("adamw", ("fp32",), {}),
    "adamw_bf16": ("adamw", MIXED, {}),
    "lamb": ("lamb", ("fp32",), {}),
    "sgd": ("sgd", ("fp32",), {"momentum": 0.9}),
}


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("backend", ["cpu", "triton", "numpy"])
def test_emitted_text(backend, name, golden):
    rule, codecs, options = GOLDEN[name]
    golden(f"{backend}/{name}.txt", cache.emit(planned(rule, *codecs, **options), backend))


def test_emitted_text_with_strides(golden):
    golden("triton/sgd_strided.txt", cache.emit(planned("sgd"), "triton", dims=2))
    golden("cpu/sgd_strided.txt", cache.emit(planned("sgd"), "cpu", dims=2))


@pytest.mark.parametrize("math_mode", ["exact", "fast"])
@pytest.mark.parametrize("rule", RULES)
def test_emitted_text_is_python(rule, math_mode):
    for codecs in CODECS:
        for backend in ("cpu", "triton"):
            for dims in (0, 2):
                tree = ast.parse(cache.emit(planned(rule, *codecs), backend, math_mode, dims))
                functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
                assert len(functions) == len(set(functions))


def test_exact_triton_source_divides_and_takes_roots_as_ieee_says():
    exact, fast = (cache.emit(planned("adamw"), "triton", mode) for mode in ("exact", "fast"))
    body = exact[exact.index("def update0") : exact.index("def sweep0")]
    assert "/" not in body
    assert body.count("tl.div_rn(") == 2
    assert body.count("tl.sqrt_rn(") == 1
    assert "div_rn" not in fast
    wide = cache.emit(planned("adamw", "fp64"), "triton")
    assert "_rn" not in wide  # which refuses float64


def test_no_library_function_in_triton_source():
    rule = "p = tanh(p) + atan2(p, g) + abs(g)**0.3 + exp(p) + log(p) + floor(p) + round(g)"
    text = cache.emit(planned(rule), "triton")
    assert "libdevice" not in text
    called = set(re.findall(r"tl\.(\w+)\(", text))
    known = "program_id load store arange multiple_of pointer_type full abs floor exp log where div_rn"
    assert called <= set(known.split()) | {"sqrt_rn"}


def test_a_constant_has_the_type_of_the_kernel():
    for codec, kind in (("fp32", "f32"), ("fp64", "f64")):
        text = cache.emit(planned("p = p*0.1 - g", codec), "cpu")
        assert f"{kind}(0.1)" in text
    assert "tl.full((), 0.1, tl.float64)" in cache.emit(planned("p = p*0.1 - g", "fp64"), "triton")


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("text", ["p = g*(-0.0)", "p = p + inf*0", "p = maximum(p, -inf)", "p = p*1e-45 + g"])
def test_constants_at_the_edges(backend, text):
    x = np.array([1.0, -2.0, 0.0, np.inf], np.float32)
    made = planned(text, "fp32")
    one = Bucket(made, [{"p": x, "g": x}], [[]])
    one.check("cpu") if backend == "cpu" else one.reference()


# Machine code


PACKED = [
    ("adamw", ("fp32",), {}),
    ("adamw", ("fp32",), {"amsgrad": True}),
    ("adamw", ("bf16",), {}),
    ("adamw", ("fp16",), {}),
    ("adagrad", ("fp32",), {}),
    ("rprop", ("fp32",), {}),
    ("lamb", ("fp32",), {}),
    ("stable_adamw", ("fp32",), {}),
]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize(("rule", "codecs", "options"), PACKED, ids=str)
def test_inner_loops_are_vectorised(rule, codecs, options):
    """In every phase there are packed multiplications, and packed divisions and roots where there are any."""
    made = planned(rule, *codecs, **options)
    source = cache.emit(made, "cpu").replace("cache=True", "cache=False")
    module = {}
    exec(compile(source, "<emitted>", "exec"), module)
    one = rule_bucket(rule, codecs, (100,), options)
    tensors = one.copies()
    kernel = cpu.CpuKernel(Layout(made), type("Module", (), module))
    tables = one.tables(kernel, tensors, [{} for _ in tensors])
    for k, phase in enumerate(made.sweeps):
        sweep = module[f"sweep{k}"]
        sweep(0, 1, tables.tensors, tables.chunks, tables.scalars, tables.partials, tables.slots)
        (text,) = sweep.inspect_asm().values()
        ops = {n.op for root in phase.roots() for n in [root, *root.args]}
        assert ops
        packed = {name for name, width in re.findall(r"\bv?(mul|div|sqrt)p[sd]\s.*%([yzx])mm", text)}
        body = cache.emit(made, "cpu").split(f"def update{k}")[1].split("def sweep")[0]
        expected = {name for name, sign in (("mul", "*"), ("div", "/"), ("sqrt", "sqrt")) if sign in body}
        assert expected <= packed, (expected, packed)


@pytest.mark.parametrize("rule", ["adamw", "lamb", "adafactor"])
def test_the_reference_is_a_kernel(rule):
    """It runs the steps of a bucket that was made for another back end, table by table."""
    ends = []
    for backend in ("numpy", "cpu"):
        torch.manual_seed(0)
        params = [torch.randn(n, 3, requires_grad=True) for n in (5, 2)]
        opt = optgen.optimizer(rule)(params, backend="cpu")
        for p in params:
            p.grad = torch.randn_like(p)
        opt.step()
        (bucket,) = opt._launcher._recordings[None].buckets
        kernel = cache.kernel(bucket.plan, backend, "exact", bucket.layout.dims)
        kernel.prepare(bucket.tables)
        for step in bucket.plan.steps:
            kernel.run(step, bucket.tables)
        ends.append(params)
    for mine, right in zip(*ends, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_missing_package_is_an_error_that_names_the_remedy(monkeypatch, name):
    there = BACKENDS[name]
    assert there.available
    gone = replace(there, package="no_such_module")
    assert not gone.available
    with pytest.raises(ImportError, match=rf"{there.package}: pip install '?\w+"):
        gone.require()
    monkeypatch.setitem(BACKENDS, "cpu", replace(BACKENDS["cpu"], package="no_such_module"))
    with pytest.raises(ImportError, match=r"pip install 'optgen\[cpu\]', or pass backend='numpy'"):
        resolve("auto", torch.device("cpu"))


def test_layout_of_the_tables():
    layout = Layout(planned("lamb"), dims=2)
    assert layout.columns["p"] == 0
    assert layout.width == len(layout.columns) == 4 + 4 + 2 + 4 * 2
    assert {n.dtype for n in planned("lamb").names} <= {DType.REAL, DType.BOOL}
    assert Op.SPILL not in {n.op for n in planned("lamb").names}
