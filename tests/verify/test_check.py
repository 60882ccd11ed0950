"""`optgen check`, its trials and its settings: what they cover, what they allow, and what they see."""

import math

import pytest
import torch

from optgen import library
from optgen.backends import cache
from optgen.errors import RuleError, Source
from optgen.optim.optimizer import optimizer
from optgen.verify import check, differential


def program(text, name="own.rule"):
    return library.rule(Source(text, name))


def case(backend, dtype="fp32", options=None, thorough=True, steps=3):
    return differential.Case(backend, dtype, None, options or {}, thorough, steps)


# Differences


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([0.0], [-0.0], 0),
        ([math.nan, 1], [math.nan, 1], 0),
        ([math.inf], [math.inf], 0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1e-9, 4.0], [0.0, 4.0], 0.25e-9),  # an element near zero has no relative error of its own
        ([math.nan, 1], [0, 1], math.inf),
        ([0, 1], [math.nan, 1], math.inf),
        ([math.inf], [1], math.inf),
        ([-math.inf], [math.inf], math.inf),
        ([1e-30], [0.0], math.inf),
        ([], [], 0),
    ],
)
def test_difference(a, b, expected):
    assert differential.difference(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-6)


def test_one_bit_of_bfloat16_is_a_difference():
    a = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    b = torch.tensor([1.0, 3.015625], dtype=torch.bfloat16)
    assert 0 < differential.difference(a, b) < 0.01


# What is allowed


@pytest.mark.parametrize(
    ("statement", "exact"),
    [
        ("p = p - 0.1*g / sqrt(abs(g) + 1)", True),
        ("p = p - 0.1*g*amax(abs(p))", True),  # the order of a maximum does not matter
        ("p = p - 0.1*0.9**t*g", True),  # a power that the host computes
        ("p = p - 0.1*atan2(g, abs(p))", True),  # written out in plain arithmetic
        ("p = p - 0.1*g / norm(g)", False),
        ("p = p - 0.1*exp(g)", False),
        ("p = p - 0.1*tanh(g)", False),
        ("p = p - 0.1*log(1 + abs(g))", False),
        ("p = p - 0.1*abs(g)**0.3", False),
    ],
)
def test_bits_must_be_equal_unless_a_sum_or_a_transcendental_function_varies(statement, exact):
    found = differential.allowed(program(statement), {}, [torch.float32], [1])
    assert (found == 0) is exact
    assert found in (0, 1e-6)


def test_the_coarsest_storage_sets_the_tolerance():
    lamb = library.rule("lamb")
    assert differential.allowed(lamb, {}, [torch.float64], [2]) == 1e-13
    assert differential.allowed(lamb, {}, [torch.float32, torch.bfloat16], [2]) == 2**-6


def test_an_option_decides_what_is_allowed():
    text = "hyper(lr=0.1, scaled=False)\nif scaled:\n    g = g / norm(g)\np = p - lr*g"
    assert differential.allowed(program(text), {}, [torch.float32], [1]) == 0
    assert differential.allowed(program(text), {"scaled": True}, [torch.float32], [1]) == 1e-6


def test_a_mode_counts_too():
    text = "state(z=p)\nz = z - g\np = 0.5*p + 0.5*z\ndef eval():\n    p = p*norm(z)"
    assert differential.allowed(program(text), {}, [torch.float32], [1]) == 1e-6


# Settings


def labels(text_or_name, fixed=(), limit=None):
    source = Source(text_or_name) if "=" in text_or_name else text_or_name
    found, total = check.option_sets(library.rule(source), fixed, limit)
    return found, total


def test_every_option_both_ways_and_the_defaults_first():
    found, total = labels("adamw")
    assert found[0] == {}
    assert {"amsgrad": True} in found
    assert {"amsgrad": True, "maximize": True} in found
    assert len(found) == total == 4


def test_settings_that_a_requirement_excludes_are_left_out():
    found, total = labels("sgd")
    assert total == 16
    assert {"momentum": 0.1} in found
    assert {"weight_decay": 0.1, "momentum": 0.1, "nesterov": True} in found
    assert not any(s.get("nesterov") and not s.get("momentum") for s in found)
    assert len(found) == 12


def test_single_changes_come_first_under_a_limit():
    found, _ = labels("sgd", limit=4)
    assert found == [{}, {"weight_decay": 0.1}, {"momentum": 0.1}, {"maximize": True}]


def test_fixed_options_stay():
    found, total = labels("sgd", fixed=["momentum", "nesterov"])
    assert total == 4
    assert not any({"momentum", "nesterov"} & s.keys() for s in found)


@pytest.mark.parametrize(
    ("declared", "condition", "values"),
    [
        ("x=0.0", "x != 0", [0.0, 0.1]),
        ("x=1.5", "x > 1", [1.5, 1.0]),
        ("x=0.5", "0 < x", [0.5, 0.0]),
        ("x='a'", "x == 'b'", ["a", "b"]),
        ("x=None", "x is not None", [None, 0.9]),
        ("x=False", "not x", [False, True]),
    ],
)
def test_each_kind_of_condition_is_met_both_ways(declared, condition, values):
    text = f"hyper(lr=0.1, {declared})\nif {condition}:\n    g = 2*g\np = p - lr*g"
    found, _ = labels(text, fixed=["maximize"])
    assert [s.get("x", values[0]) for s in found] == values


def test_an_item_of_a_tuple_is_changed_alone():
    text = "hyper(lr=0.1, b=(0.9, 0.5))\nm, n = b\nif n != 0:\n    g = n*g\np = p - lr*m*g"
    found, _ = labels(text, fixed=["maximize"])
    assert found == [{}, {"b": (0.9, 0)}]


def test_many_conditions_do_not_take_forever():
    names = [f"o{i}" for i in range(40)]
    text = f"hyper({', '.join(f'{n}=False' for n in names)})\n"
    text += "".join(f"if {n}:\n    g = g + p\n" for n in names) + "p = p - 0.1*g"
    found, total = labels(text, limit=8)
    assert len(found) == 8
    assert total == 2**41


def test_defaults_that_violate_a_requirement_are_a_mistake_in_the_rule():
    with pytest.raises(RuleError, match="own needs lr > 1, but lr = 0"):
        check.option_sets(program("hyper(lr=0.5)\nrequire(lr > 1)\np = p - lr*g"))


# Samples


def test_the_samples_are_what_their_names_say():
    by_name = {s.name: s for s in differential.samples(False)}
    views = {name: s.view(torch.zeros(s.memory)) for name, s in by_name.items()}
    assert views["0-d"].shape == ()
    assert views["empty"].numel() == 0
    assert views["2**k + 1"].numel() == 1025
    assert views["several chunks"].numel() > 16384
    assert views["transposed"].stride() == (1, 9)
    assert views["channels last"].is_contiguous(memory_format=torch.channels_last)
    assert views["misaligned"].is_contiguous()
    assert views["misaligned"].storage_offset() == 1
    assert not views["slice"].is_contiguous()
    gradient = by_name["gradient transposed"].gradient(torch.zeros(6, 11))
    assert gradient.shape == (6, 11)
    assert gradient.stride() == (1, 6)


def test_gradients_have_zeros_and_decades_and_are_the_same_every_time():
    chosen = differential.samples(False)
    first, again, other = (list(differential._gradients(chosen, step)) for step in (2, 2, 3))
    large = first[4].abs()
    assert 0.05 < (large == 0).double().mean() < 0.15
    assert large[large > 0].min() < 1e-4
    assert large.max() > 5
    assert torch.equal(first[4], again[4])
    assert not torch.equal(first[4], other[4])
    assert next(iter(differential._gradients(chosen, 1))) is not None
    assert list(differential._gradients(chosen, 1))[differential.ABSENT] is None


# Trials


@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16"])
def test_the_cpu_back_end_gives_the_bits_of_the_reference(dtype):
    pytest.importorskip("numba")
    outcome = differential.run(library.rule("lion"), case("cpu", dtype))
    assert outcome.failure is None
    assert outcome.worst == outcome.allowed == 0
    assert (outcome.error == 0) is (dtype == "fp64")
    assert outcome.tensors == 11


def test_sums_may_differ_a_little():
    pytest.importorskip("numba")
    outcome = differential.run(library.rule("lamb"), case("cpu", "fp64", thorough=False, steps=5))
    assert outcome.failure is None
    assert 0 <= outcome.worst <= outcome.allowed == 1e-13


def spoil(monkeypatch, old, new):
    """Let every kernel that is made from now on have another text in one place."""
    emit = cache.emit

    def broken(*arguments):
        source = emit(*arguments)
        assert old in source
        return source.replace(old, new)

    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(cache, "emit", broken)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("s1*(g - m)", "s1*(m - g)"),
        ("s3*v", "f32(1.0000002)*s3*v"),
        (" + s6", ""),
        ("return", "return v, p, m  #"),
    ],
)
def test_a_broken_kernel_is_seen(monkeypatch, old, new):
    pytest.importorskip("numba")
    spoil(monkeypatch, old, new)
    outcome = differential.run(library.rule("adamw"), case("cpu", thorough=False))
    assert outcome.failure is not None
    assert outcome.failure.startswith("with the defaults, step ")


def test_a_wrong_value_is_named(monkeypatch):
    pytest.importorskip("numba")
    spoil(monkeypatch, "s1*m + s2*g", "s1*m - s2*g")
    rows = check.check(check.Request(library.rule("lion"), ["cpu"], ["fp32"], option_sets=[{}], steps=2))
    assert [row.passed for row in rows] == [False]
    assert rows[0].verdict == "disagrees"
    assert "step 1: p of '0-d' is " in rows[0].failures[0]
    assert ", in the reference " in rows[0].failures[0]


def test_a_back_end_that_raises_has_failed(monkeypatch):
    pytest.importorskip("numba")

    def refuse(*arguments):
        raise RuntimeError("no kernel today")

    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(cache, "emit", refuse)
    outcome = differential.run(library.rule("lion"), case("cpu", options={"weight_decay": 0.5}))
    assert outcome.failure == "with weight_decay=0.5, RuntimeError: no kernel today"


def test_a_step_that_writes_elsewhere_is_seen():
    kind = optimizer("lion")
    chosen = differential.samples(False)
    one, two = (
        differential.Trainee(kind, chosen, {}, torch.float32, torch.float32, backend="numpy")
        for _ in range(2)
    )
    slice_ = next(i for i, s in enumerate(chosen) if s.name == "slice")
    assert differential._compare(one, two, 0.0) == (0.0, None)
    one.memory[slice_][1, 1] += 1  # a row that the slice leaves out
    assert "p of 'slice' is " in differential._compare(one, two, 0.0)[1]


def test_an_accumulator_is_compared_by_the_largest_that_it_held():
    scales = {}
    one, two = (
        differential.Trainee(
            optimizer("descent"), differential.samples(False), {}, torch.float64, torch.float64
        )
        for _ in range(2)
    )
    assert differential._compare(one, two, 1e-13, scales) == (0.0, None)
    for trainee, value in ((one, 1e-9), (two, 1e-9 + 1e-14)):
        trainee.memory[1].fill_(value)  # it had a value about 1 before
    assert differential._compare(one, two, 1e-13, scales)[1] is None
    assert "p of 'one element'" in differential._compare(one, two, 1e-13)[1]


def test_a_step_that_writes_into_a_gradient_is_seen(monkeypatch):
    kind = optimizer("sgd")
    trainee = differential.Trainee(
        kind, differential.samples(False), {}, torch.float32, torch.float32, backend="numpy"
    )
    step = trainee.optimizer.step

    def scribble():
        step()
        trainee.params[2].grad.mul_(2)

    monkeypatch.setattr(trainee.optimizer, "step", scribble)
    with pytest.raises(AssertionError, match="wrote into the gradient of 'odd'"):
        trainee.step(2)


def test_modes_are_compared_after_the_steps():
    names = [when for when, _ in differential._acts(2, modes=True)]
    assert names == ["step 1", "step 2", "eval()", "train()"]


# Rows and processes


def test_a_row_gathers_its_cases():
    row = check.Row("cpu", "CPU", "fp32", "fp32", 50)
    row.add(differential.Outcome(11, 1e-8, 1e-6, 2e-7, None, 1.0))
    row.add(differential.Outcome(3, 0.0, 1e-6, math.inf, None, 0.5))
    assert (row.runs, row.tensors, row.worst, row.seconds) == (2, 11, 1e-8, 1.5)
    assert row.verdict == "within 1.0e-08"
    assert row.record()["error"] == "inf"
    row.add(differential.Outcome(3, 0.1, 1e-6, 0.0, "with x=1, step 3: …", 0.5))
    assert not row.passed


def test_few_samples_under_settings_that_do_not_walk_tensors_otherwise():
    adamw = check.Request(library.rule("adamw"), ["cpu"], ["fp32"], option_sets=[{}, {"amsgrad": True}])
    assert [c.thorough for c in adamw.cases("cpu")] == [True, False]
    text = "hyper(lr=0.1, deep=False)\nif ndim > 1 and deep:\n    g = 2*g\np = p - lr*g"
    shaped = check.Request(program(text), ["cpu"], ["fp32"], option_sets=[{}, {"deep": True}])
    assert [c.thorough for c in shaped.cases("cpu")] == [True, True]


def test_triton_is_checked_without_a_gpu():
    pytest.importorskip("triton")
    lion = library.rule("lion", weight_decay=0.25)
    request = check.Request(lion, ["triton"], ["bf16", "fp32"], "fp32", [{}, {"maximize": True}], 2)
    seen = []
    rows = check.check(request, lambda: seen.append(1))
    assert [(row.dtype, row.verdict, row.runs) for row in rows] == [
        ("bf16", "bit-exact", 2),
        ("fp32", "bit-exact", 2),
    ]
    assert len(seen) == 4
    assert rows[0].device == check.where("triton")


def test_a_process_that_dies_has_failed(monkeypatch):
    pytest.importorskip("triton")
    if not check._needs_process():
        pytest.skip("Triton runs in this process")
    monkeypatch.setattr(check, "WORKER", "raise SystemExit('out of\\nmemory')")
    request = check.Request(library.rule("lion"), ["triton"], ["fp32"], option_sets=[{}, {"maximize": True}])
    [row] = check.check(request)
    assert row.runs == 2
    assert row.failures == [
        "the process with Triton's interpreter ended early:\nout of\nmemory",
        "the process had ended: memory",
    ]
