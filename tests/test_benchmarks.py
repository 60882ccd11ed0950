"""The benchmarks' own logic, and what the committed results about compiled kernels say.

What the scripts measure is not tested, but that each runs from end to end on small tensors is (full).
"""

import gc
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pytest
import torch

import optgen
from optgen import library
from optgen.ir.node import Op, toposort

FOLDER = Path(__file__).parent.parent / "benchmarks"
NAMES = (
    "cases",
    "checkouts",
    "clocks",
    "machine",
    "memory",
    "overhead",
    "report",
    "roof",
    "shapes",
    "static",
    "turns",
)


@pytest.fixture(scope="module")
def bench():
    """The modules of benchmarks/, as attributes."""
    sys.path.insert(0, str(FOLDER))
    try:
        return type("Bench", (), {name: import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))


# Rows


@pytest.mark.parametrize(
    ("figure", "target", "at_least", "met"),
    [(0.9, 1.0, False, True), (1.1, 1.0, False, False), (0.9, 0.85, True, True), (0.8, 0.85, True, False),
     (1.0, 1.0, False, True), (7.0, None, False, None)],
)  # fmt: skip
def test_a_row_is_met_or_not(bench, figure, target, at_least, met):
    row = bench.report.Row("a / b", figure, target, at_least)
    assert row.met is met
    assert str(row).startswith({True: "met ", False: "NOT MET ", None: "  "}[met])
    if target is not None:
        assert (bench.report.share(row, figure) <= 1) is met


def test_a_row_is_one_line_with_all_of_it(bench):
    row = bench.report.Row("a / b", 0.8125, 1.0, quartiles=(0.75, 1.25), note="quiet")
    assert re.split(r"\s{2,}", str(row)) == ["met", "0.812 [0.75, 1.25]", "<= 1", "a / b (quiet)"]
    stopped = bench.report.Row("a / b", 0.01, 0.1, unit="s", bound=True)
    assert re.split(r"\s{2,}", str(stopped)) == ["met", "<0.01 s", "<= 0.1 s", "a / b"]


def test_rows_survive_a_file(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.report, "RESULTS", tmp_path)
    rows = [bench.report.Row("a", 0.5, 1.0, quartiles=(0.4, 0.6)), bench.report.Row("b", 2.0, unit="s")]
    path = bench.report.save("some", rows, {"more": 1})
    found = json.loads(path.read_text())
    assert [bench.report.Row.of(record) for record in found["rows"]] == rows
    assert found["rows"][0]["met"] is True
    assert found["more"] == 1
    bench.report.draw(tmp_path / "some.png", rows, "title")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


# Turns


def test_everyone_runs_once_a_turn_in_changing_order(bench):
    ran = []
    calls = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    times = bench.turns.alternate(calls, 20, before=lambda: ran.append("|"))
    turns = "".join(ran).split("|")[1:]
    assert len(turns) == 20 + bench.turns.WARMUP
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 3
    assert [len(found) for found in times.values()] == [20, 20, 20]


def test_turns_end_past_the_limit(bench):
    times = bench.turns.alternate({"a": lambda: None}, 1000, limit=0)
    assert len(times["a"]) == bench.turns.FEWEST


def test_a_ratio_is_the_median_of_those_within_a_turn(bench):
    times = {"mine": [1.0, 20.0, 3.0, 1.0], "a": [2.0, 40.0, 1.0, 4.0], "b": [4.0, 10.0, 6.0, 2.0]}
    found = bench.turns.ratio(times, "mine", "a", "b", scale=2.0)
    ratios = [2 * 1 / 2, 2 * 20 / 10, 2 * 3 / 1, 2 * 1 / 2]
    assert found.median == median(ratios) == 2.5
    assert found.quartiles == (1.0, 4.5)


# Two checkouts


def against(path, *arguments):
    """`overhead.py --against` on few small tensors, when it has ended."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, FOLDER / "overhead.py", "--against", path, "--counts", "1,10", "--pairs", "1"]
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)


def test_a_checkout_beside_itself():
    done = against(FOLDER.parent, "--turns", "6", "--rules", "SGD", "--fresh-grads", "--limit", "0.001")
    assert done.returncode == 1, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[1:3]]
    assert [line[:2] + line[-2:] for line in lines] == [["SGD", n, "above", "0.001"] for n in ("1", "10")]
    assert all(0.1 < float(middle) < 10 for _, _, middle, *_ in lines)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    (tmp_path / "optgen").mkdir()  # without __init__.py the installed package would be taken
    done = against(tmp_path, "--turns", "2")
    assert done.returncode == 2
    assert f"{tmp_path} is no checkout of optgen" in done.stderr
    assert f"the process of {tmp_path} ended" in done.stderr


def test_a_limit_is_for_the_median_of_each_question(bench, monkeypatch, capsys):
    overhead = bench.overhead
    found = {
        ("AdamW", 1): {"this": [1.0, 2.0, 9.0], "other": [1.0, 2.0, 3.0]},
        ("AdamW", 10): {"this": [1.05, 2.1, 3.0], "other": [1.0, 2.0, 3.0]},
    }
    monkeypatch.setattr(overhead, "compare", lambda *_: found)
    for limit, ended in ((None, 0), (1.05, 0), (1.04, 1)):
        assert overhead.against(Path(), 3, [1, 10], ["AdamW"], 1, limit, False) == ended
        _, first, second = capsys.readouterr().out.splitlines()[:3]
        assert first.split()[2:5] == ["1.000", "[1.000,", "2.000]"]
        assert second.split()[2] == "1.050"
        assert ("above 1.04" in second) is bool(ended)
        assert "above" not in first


class FakeCheckout:
    """Answers with the values that it was given, and notes what it is asked for."""

    def __init__(self, values, seconds):
        self.values, self.seconds, self.asked = values, seconds, []

    def ask(self, what, *given):
        self.asked.append(what)

    def answer(self):
        return self.values.pop(0)

    def fastest(self, steps):
        self.asked.append(steps)
        return self.seconds


@pytest.mark.parametrize(("number", "places"), [(1, 8), (1000, 8), (1500, 5), (10_000, 4)])
@pytest.mark.parametrize("turns", [1, 10, 300])
def test_turns_are_divided_among_processes_and_tensors(bench, number, places, turns):
    found = bench.checkouts.shares(("AdamW", number), turns, 3)
    assert len(found) == 3 * places
    assert sum(found) == turns
    assert max(found) - min(found) <= 1


def test_both_take_as_many_steps_and_must_agree(bench):
    mine, theirs = FakeCheckout([[1.0], [1.0]], 2e-3), FakeCheckout([[1.0], [1.001]], 1e-3)
    times = bench.checkouts.in_turns(mine, theirs, ("AdamW", 1), 4, False)
    assert times == {"this": 4 * [2e-3], "other": 4 * [1e-3]}
    assert mine.asked == theirs.asked
    assert mine.asked[2] == round(bench.checkouts.BLOCK / 1e-3)
    for values in ([[1.001], [1.0]], [[1.0], [1.1]], [[1.0], [float("nan")]]):
        mine, theirs = FakeCheckout([[1.0], [1.0]], 1.0), FakeCheckout(values, 1.0)
        with pytest.raises(bench.checkouts.Failed, match="parameters of both differ"):
            bench.checkouts.in_turns(mine, theirs, ("AdamW", 1), 4, False)
        assert mine.asked == theirs.asked


def test_fresh_gradients_are_new_tensors_with_the_same_values(bench):
    steps = bench.checkouts.Steps()
    steps.prepare("SGD", 3, True)
    gc.unfreeze()  # a process of its own leaves it so
    before = [p.grad for p in steps.params]
    steps.step()
    for p, old, first in zip(steps.params, before, steps.grads, strict=True):
        assert p.grad is not old
        assert p.grad is not first
        assert torch.equal(p.grad, first)


# The machine


def test_what_others_use_is_what_is_not_ours(bench, monkeypatch):
    machine = bench.machine
    readings = iter([(100.0, 7.0, 50.0), (105.0, 8.0, 52.0)])  # busy, own, now
    values = {}

    def read():
        values["busy"], values["own"], values["now"] = next(readings)

    monkeypatch.setattr(machine, "_busy", lambda: (read(), values["busy"])[1])
    monkeypatch.setattr(machine, "_own", lambda: values["own"])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: values["now"])
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine.Others().share() == pytest.approx((5 - 1) / 2 / 4)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="not Linux")
def test_a_process_is_among_the_others(bench):
    others = bench.machine.Others()
    before = bench.machine._own()
    while bench.machine._own() - before < 0.1:
        pass
    assert 0 <= others.share() <= 1


# Bytes and memory


def test_planned_bytes_are_those_of_the_plans(bench):
    shapes = [(5, 3), (7,)]
    for dtype, state_dtype, bytes_per_element in (
        (torch.float32, None, 28), (torch.bfloat16, torch.float32, 22), (torch.bfloat16, None, 14),
    ):  # fmt: skip
        params = bench.shapes.tensors(shapes, dtype)
        opt = optgen.AdamW(params, backend="numpy", state_dtype=state_dtype)
        opt.step()
        assert bench.roof.planned_bytes(opt) == 22 * bytes_per_element


def test_planned_bytes_follow_the_number_of_dimensions(bench):
    """Adafactor keeps rows and columns of a matrix, and every element's variance of a vector."""
    found = []
    for shape in ((32, 32), (1024,)):
        opt = optgen.Adafactor(bench.shapes.tensors([shape]), backend="numpy")
        opt.step()
        found.append(bench.roof.planned_bytes(opt) // 1024)
    assert found[0] != found[1]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "LAMB", "Adafactor", "CAME"])
def test_a_roof_has_the_streams_of_the_plan(bench, name):
    """Each sweep loads and stores what the plan's does, and adds once a store, or for each load."""
    opt = getattr(optgen, name)(bench.shapes.tensors([(32, 16), (7,)]))
    opt.step()
    for plan, _ in bench.roof.plans(opt):
        bare = bench.roof.bare(plan)
        assert bare.bytes == plan.bytes
        for phase, roof in zip(plan.sweeps, bare.sweeps, strict=True):
            assert (roof.loads, list(roof.values)) == (phase.loads, list(phase.values))
            order = toposort(roof.roots())
            assert {n.value for n in order if n.op is Op.LOAD} == set(phase.loads)
            added = [n for n in order if n.args]
            assert {n.op for n in added} <= {Op.ADD}
            assert len(added) <= max(len(phase.values), len(phase.loads) - 1)


def test_a_roof_runs_on_tensors_of_its_own(bench):
    params = bench.shapes.tensors([(32, 16), (7,)])
    opt = optgen.Adafactor(params)
    opt.step()
    before = [p.detach().clone() for p in params]
    roof = bench.roof.Roof(opt)
    for _ in range(1000):
        roof()
    assert roof.count == 3
    for p, old in zip(params, before, strict=True):
        assert torch.equal(p, old)
    held = [x for part in roof.parts for tensors in part.held for x in tensors.values()]
    assert sum(x.numel() for x in held if x[0] > 0.9) == 526  # p and the variance of 7 have grown, g has not
    assert all((x == x[0]).all() and x[0] > 0 for x in held)


def test_a_roof_is_for_stores_that_need_no_conversion(bench):
    opt = optgen.AdamW(bench.shapes.tensors([(7,)], torch.bfloat16))
    opt.step()
    with pytest.raises(ValueError, match="fp32 only, and p is bf16"):
        bench.roof.Roof(opt)


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="not Linux")
def test_memory_of_every_allocator_is_seen(bench):
    code = """if True:
        import numba, numpy, torch
        from memory import extra_memory
        n = 1 << 20
        f = numba.njit(lambda n: numpy.ones(n, numpy.float32).sum())
        f(3), torch.ones(3)
        print(extra_memory(lambda: torch.ones(n)), extra_memory(lambda: numpy.ones(n, "f4")),
              extra_memory(lambda: f(n)), extra_memory(lambda: None))
    """
    environment = {**os.environ, **bench.memory.GLIBC, "PYTHONPATH": f"{FOLDER}{os.pathsep}{FOLDER.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    *seen, nothing = map(int, done.stdout.split())
    assert min(seen) > 0.9 * (4 << 20)
    assert nothing < 0.1 * (4 << 20)


# The scripts


def script(name, *arguments):
    """The rows that a script prints, with its tensors small and nothing written."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    command = [sys.executable, FOLDER / f"{name}.py", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("met ", "NOT MET "))]


@pytest.mark.full
def test_cpu_runs():
    found = script(
        "cpu", "--scale", "0.05", "--turns", "3", "--no-compile", "--no-save", "--only", "SGD", "LAMB"
    )
    assert len(found) == 4


@pytest.mark.full
def test_overhead_runs(bench):
    found = script("overhead", "--turns", "3", "--no-save")
    assert len(found) == len(bench.cases.CASES)


@pytest.fixture
def small(bench, monkeypatch):
    """The contests of `cases`, with three tensors."""
    monkeypatch.setattr(bench.cases, "SMALL", 3 * [(8,)])
    return bench.cases


KINDS = ["clipped", "scaled", "accumulated", "released", "first"]


@pytest.mark.parametrize("kind", KINDS)
def test_who_does_nothing_is_not_fast(small, kind):
    contest = getattr(small, kind)()
    contest.steps["optgen"] = lambda: 0.0
    with pytest.raises(AssertionError):
        contest.times(2, 10.0)


@pytest.mark.parametrize("kind", KINDS)
def test_contestants_come_to_the_same(small, kind):
    times = getattr(small, kind)().times(3, 10.0)
    assert len(times) >= 2
    assert all(len(found) == 3 and min(found) > 0 for found in times.values())


def test_a_step_is_compared_with_the_reference(small, monkeypatch):
    params = small.tensors(small.SMALL)
    opt = optgen.Sophia(params, k=1)
    given = small.hessians(params)
    opt.step(**given)
    small.as_reference(opt, params, given)
    monkeypatch.setattr(opt, "step", lambda **given: None)
    with pytest.raises(AssertionError, match="changes nothing"):
        small.as_reference(opt, params, given)
    monkeypatch.setattr(opt, "step", lambda **given: params[0].data.add_(1))
    with pytest.raises(AssertionError, match="not close"):
        small.as_reference(opt, params, given)


def test_rows_of_overhead_can_be_chosen(bench, monkeypatch, capsys):
    overhead = bench.overhead
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--only", "Ada"])
    monkeypatch.setattr(overhead, "finish", lambda *given: None)
    chosen = []
    for case in bench.cases.CASES:

        def measure(turns, limit, name=case.name):
            chosen.append(name)
            return {"optgen": [1.0, 2.0], "torch": [4.0, 8.0], "backward": [0.5, 0.5]}

        monkeypatch.setitem(vars(case), "measure", measure)
    assert overhead.main() == 0
    assert chosen == ["AdamW", "Adadelta", "Adafactor"]
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--only", "Nobody"])
    with pytest.raises(SystemExit):
        overhead.main()
    assert "no row begins with Nobody" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="not Linux")
def test_memory_runs():
    (row,) = script("memory", "--no-save", "--only", "lamb", "clip_norm", "adahessian")
    assert row.startswith("met "), row


@pytest.mark.full
def test_latency_runs():
    found = script("latency", "--only", "optgen", "--runs", "1", "--no-save")
    assert len(found) == 6


@pytest.mark.full
def test_gpu_runs_on_the_cpu():
    found = script("gpu", "--device", "cpu", "--dry", "--only", "SGD")
    assert [re.split(r"\s{2,}", row)[-1].split(":")[0] for row in found] == [
        *(f"SGD, {storage}" for storage in ("fp32", "bf16+fp32", "bf16")),
        "4 tensors of 1024, SGD",
        "SGD, fp32",
        "SGD, bf16",
    ]


class FakeEvent:
    """An event of a device on which the first step takes 1 ms, the second 2 ms, and so on."""

    recorded = 0

    def __init__(self, enable_timing):
        self.time = None

    def record(self):
        count, odd = divmod(FakeEvent.recorded, 2)
        self.time = 100 * count + (count + 1) * odd
        FakeEvent.recorded += 1

    def elapsed_time(self, other):
        return other.time - self.time


@pytest.mark.parametrize(("moved", "flushed"), [(4095, True), (4096, False)])
def test_the_clock_of_a_device(bench, monkeypatch, moved, flushed):
    """Steps are queued behind a wait, and the cache is overwritten where what they move would stay in it."""
    slept, steps = [], []
    properties = type("Properties", (), {"L2_cache_size": 1024})
    for name, fake in {
        "Event": FakeEvent, "_sleep": slept.append, "synchronize": lambda device=None: None,
        "get_device_properties": lambda device: properties,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(FakeEvent, "recorded", 0)
    clock = bench.clocks.CudaClock(torch.device("cpu"))
    clock.flush.fill_(7)
    assert clock.device(lambda: steps.append(1), moved) == pytest.approx(3e-3)
    assert (clock.flush == 0).all().item() is flushed
    assert len(steps) == 2 * clock.repeat  # half of them to see how long the host takes
    assert len(slept) == 1
    assert 0 < slept[0] <= clock.longest * clock.hertz
    assert clock.wall(lambda: None) < 0.1


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_says_that_there_is_none():
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr


# Compiled kernels

# Rules of one phase with more than 64 registers a thread: five states and more, sums over all tensors in
# float64, or a long expansion.
HEAVY = {"adam_atan2", "adan", "adapnm", "dadapt_adam", "dadapt_lion", "prodigy", "sm3"}
SAMPLE = [("adamw", "bf16+fp32", "sm_90"), ("lamb", "fp32", "sm_80")]


def test_every_rule_has_records(bench):
    keys = {(r, s, t) for r in library.names() for s in bench.static.STORAGE for t in bench.static.TARGETS}
    assert set(bench.static.records()) == keys, "run python benchmarks/static.py"


def test_compiled_kernels_are_as_asked(bench):
    for key, record in bench.static.records().items():
        assert bench.static.spilled(record) == 0, key
        assert bench.static.as_planned(record), key
        assert bench.static.wide(record), key
        assert bench.static.light(record) or key[0] in HEAVY, key


@pytest.mark.parametrize("name", ["adamw", "lamb", pytest.param(None, marks=pytest.mark.full)])
def test_records_are_of_the_source_that_is_emitted_now(bench, name):
    for (rule, storage, _), record in bench.static.records().items():
        if name in (rule, None):
            assert record["source"] == bench.static.digest(rule, storage), "run python benchmarks/static.py"


@pytest.mark.parametrize("key", SAMPLE, ids=" ".join)
def test_records_are_what_a_compiler_finds(bench, key):
    if bench.static.compiler() != version("triton"):
        pytest.skip("results/static.json is of another version of Triton")
    fresh = json.loads(json.dumps(bench.static.compiled(key)))
    assert fresh == bench.static.records()[key]


def test_the_checks_of_records_fail_where_they_should(bench):
    kernel = {"kernel": "sweep0", "registers": 64, "spilled": 0, "loads": [128, 64], "stores": [128],
              "planned": 10, "found": 10.0, "halves": 1}  # fmt: skip

    def record(**changes):
        return {"storage": "fp32", "phases": 1, "kernels": [{**kernel, **changes}]}

    static = bench.static
    assert static.as_planned(record())
    assert static.wide(record())
    assert static.light(record())
    assert static.spilled(record(spilled=4)) == 4
    assert not static.as_planned(record(found=12.0))
    assert not static.wide(record(halves=0))
    assert not static.wide(record(loads=[64, 64, 64]))
    assert not static.wide(record(loads=[32, 128]))
    assert not static.light(record(registers=65))
