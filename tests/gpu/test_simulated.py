"""Every kind of rule on the simulated GPU: launches, bits, bounds, races, any order of warps and blocks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import torch
from test_tiles import forgotten
from torch import nn

import edits
import optgen
from optgen import library
from optgen.library import CLASSES, class_of, runnable
from optgen.passes.specialise import shaped
from optgen.verify.differential import Case, run
from virtual_gpu import device

RULES = {  # of each class, and how many steps
    "adamw": 3, "sgd": 2, "nadam": 2, "rprop": 2, "lamb": 2, "adafactor": 2, "schedulefree_adamw": 2,
    "prodigy": 2, "sgld": 2, "sophia": 2, "polyak_sgd": 2,
}  # fmt: skip
OTHERS = [name for name in library.names() if name not in RULES]


def agrees(gpu, name, store, steps=2, thorough=True):
    """As `optgen check` has it: bits where no sum and no transcendental function is, else its bounds."""
    program, _ = runnable([library.rule(name)])
    outcome = run(program, Case("triton", store, None, {}, thorough=thorough, steps=steps))
    assert outcome.failure is None, outcome
    return program


@pytest.mark.parametrize("name", RULES)
def test_rules_agree_with_the_reference(gpu, name):
    agrees(gpu, name, "fp32", RULES[name])


@pytest.mark.parametrize("store", ["fp64", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_other_storage(gpu, name, store):
    agrees(gpu, name, store)


@pytest.mark.full
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_rules(gpu, name):
    agrees(gpu, name, "fp32", thorough=shaped(library.rule(name)))


def test_there_is_a_rule_of_each_class():
    assert {class_of(library.rule(name)) for name in RULES} == set(CLASSES)


def trained(name, steps=1):
    """Parameters after some steps; several chunks and tiles, tails, and tensors without any."""
    params = [nn.Parameter(torch.randn(s, generator=seeded(1))) for s in ((9000,), (70, 130), (3, 5), (1,))]
    optimizer = optgen.optimizer(name)(params, backend="triton")
    for k in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=seeded(k))
        optimizer.step()
    return params


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["lamb", "adafactor", "prodigy"])
def test_no_order_of_warps_and_blocks_makes_a_difference(gpu, name):
    gpu.log = False
    expected = trained(name)
    for schedule, order in (("first", None), ("last", None), (None, lambda n: range(n - 1, -1, -1))):
        gpu.schedule, gpu.order = schedule, order
        assert all(map(torch.equal, trained(name), expected)), (schedule, order)


@pytest.mark.parametrize("name", ["adafactor", "came", "sm3", "adam_mini", "adahessian"])
def test_tiles_of_every_form(gpu, name):
    """Small matrices in one block, many blocks in a tile, tiles below and beside each other, and tails."""
    shapes = [(6, 5, 3, 3), (40, 300), (70, 3, 2), (260, 16), (3, 600), (9, 4, 48), (2, 3, 1, 1)]
    both = []
    for backend in ("triton", "numpy"):
        params = [nn.Parameter(torch.randn(s, generator=seeded(1))) for s in shapes]
        optimizer = optgen.optimizer(name)(params, backend=backend)
        for k in range(2):
            for p in params:
                p.grad = torch.randn(p.shape, generator=seeded(k))
            inputs = {
                i: {p: torch.rand(p.shape, generator=seeded(9)) for p in params}
                for i in optimizer.program.inputs
            }
            optimizer.step(**inputs)
        both.append([*params, *(t for p in params for t in optimizer.state[p].values())])
    for mine, right in zip(*both, strict=True):
        assert (mine - right).abs().max() <= 1e-6 * right.abs().max()


def test_maxima_of_a_step_that_failed_are_forgotten(gpu):
    forgotten("triton")


def test_a_part_of_a_tensor_without_rows():
    """Its columns have sums nevertheless, of which other processes have the elements."""
    device.require()
    script = Path(edits.__file__).with_name("empty_part.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


CHECKOUT = Path(optgen.__file__).parent.parent
SEEDS = range(6000, 6280)  # of 50 edits and more for each class


def test_edits_between_steps():
    device.require()
    found = edits.outcomes("triton", SEEDS, "simulated")
    text = edits.report(found, "simulated")
    print(text)
    assert all(line["verdict"] in edits.GOOD for line in found), text
    made = [line for line in found if "later" not in line["edit"] and "undone" not in line["edit"]]
    counts = Counter(class_of(edits.rules()[line["rule"]].kind.program) for line in made)
    assert all(counts[kind] >= 50 for kind in CLASSES), counts


def test_the_benchmark_comes_to_its_end(gpu, monkeypatch, capsys):
    gpu.log = gpu.memory = False
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--dry", "--only", "SGD"])
    assert not import_module("gpu").main()
    assert "SGD, bf16+fp32" in capsys.readouterr().out


@pytest.mark.full
def test_another_triton(tmp_path):
    """The one that torch 2.11 pins; some of these tests again, with it in front of the installed one."""
    device.require()
    start = time.perf_counter()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path),
        "triton==3.6.0",
    ]
    if (done := subprocess.run(pip, capture_output=True, text=True)).returncode:
        pytest.skip(f"pip cannot install Triton 3.6.0: {done.stderr[-300:]}")
    code = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}]
        import triton, pytest
        assert triton.__version__ == "3.6.0", triton.__version__
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", {__file__!r}, "-k", "agree or storage"]))
    """
    lines = "\n".join(line.strip() for line in code.strip().splitlines())
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=CHECKOUT, env={**edits.os.environ, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    print(f"Triton 3.6.0: {done.stdout.splitlines()[-1]}; {time.perf_counter() - start:.0f} s in all")
