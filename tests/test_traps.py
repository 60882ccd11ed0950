"""Traps that other optimizer libraries fell into, by their numbers in the project's list.

4, 9, 10, 24 and a part of 27, on distributed tensors, are in `test_dtensor.py`, 11 in `test_grad_scaler.py`,
13 and a part of 22 in `test_gpu.py`. 1 and 12 wait for what they are about, compensated and 8-bit storage.

Those of the second part have the numbers of a list of their own. More of its 7 to 10 is in `test_cache.py`.
"""

import contextlib
import copy
import faulthandler
import gc
import io
import json
import pickle
import random
import signal
import textwrap
import weakref
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from test_kernels import check_far
from torch import nn

import optgen
from fresh import run
from optgen import library, schedules
from optgen.backends import cache
from optgen.backends.layout import Layout
from optgen.backends.registry import BACKENDS, Backend
from optgen.compiler import planned
from optgen.launch.launcher import resolve
from optgen.launch.run import Launch
from optgen.plan.plan import Step

SIZES = (1, 7, 1025, 40_001)  # below and above every vector, block and chunk


def parameters(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def train(optimizer, params, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def pair(kind, *shapes, **options):
    """optgen's class and torch's, each with parameters of its own."""
    mine, right = parameters(*shapes), parameters(*shapes)
    return getattr(optgen, kind)(mine, **options), mine, getattr(torch.optim, kind)(right, **options), right


def assert_close(mine, right):
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=2e-6, atol=2e-6)


def test_trap_02_a_late_parameter_counts_its_own_steps():
    early, late = parameters((3,), (3,))
    optimizer = optgen.Adam([early, late], lr=0.1)
    train(optimizer, [early], 50)
    before = late.detach().clone()
    train(optimizer, [early, late], 1, 50)
    torch.testing.assert_close((late - before).abs().detach(), torch.full((3,), 0.1), rtol=1e-5, atol=0)
    assert [optimizer.state[p]["step"].item() for p in (early, late)] == [51, 1]


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trap_03_state_keeps_its_dtype_on_load(dtype, state):
    whole, part = parameters((9,), dtype=dtype), parameters((9,), dtype=dtype)
    a, b = (optgen.AdamW(p, lr=0.1, state_dtype=state) for p in (whole, part))
    train(a, whole, 4)
    train(b, part, 2)
    c = optgen.AdamW(part, lr=0.1, state_dtype=state)
    c.load_state_dict(b.state_dict())
    assert c.state[part[0]]["exp_avg"].dtype == state
    train(c, part, 2, 2)
    assert torch.equal(whole[0], part[0])


def test_trap_05_a_scheduler_may_write_plain_numbers_or_tensors():
    mine = parameters((3,))
    optimizer = optgen.SGD(mine, lr=torch.tensor(0.1))
    before = mine[0].detach().clone()
    optimizer.param_groups[0]["lr"] = 0.5
    mine[0].grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(mine[0].detach(), before - 0.5)


def test_trap_06_addresses_are_looked_at_in_every_step():
    optimizer, mine, reference, right = pair("AdamW", (8,), (5, 3), lr=0.1)
    for step in range(6):
        for params in (mine, right):
            params[step % 2].data = params[step % 2].data.clone()  # the old memory is used again
        train(optimizer, mine, 1, step)
        train(reference, right, 1, step)
    assert_close(mine, right)


def test_trap_07_offsets_have_64_bits():
    pytest.importorskip("numba")
    check_far("cpu", 1000)  # Triton's: test_interpreter.py
    assert "int32" not in cache.emit(planned(library.rule("adamw")), "triton")


def test_trap_08_nothing_is_tuned_on_live_data():
    for name in ("adamw", "lamb", "adafactor"):
        assert "autotune" not in cache.emit(planned(library.rule(name)), "triton")


def test_trap_14_where_epsilon_stands_is_in_the_text():
    """At small gradients eps inside and outside of the root differ; the classes follow their texts."""
    outside, inside = (
        optgen.optimizer(f"hyper(eps=1e-8)\nstate(v=0)\nv = v + g**2\np = p - g/{root}")
        for root in ("(sqrt(v) + eps)", "sqrt(v + eps)")
    )
    moved = []
    for kind in (outside, inside):
        p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        p.grad = torch.full((1,), 1e-6, dtype=torch.float64)
        kind([p]).step()
        moved.append(-p.item())
    np.testing.assert_allclose(moved, [1e-6 / (1e-6 + 1e-8), 1e-6 / np.sqrt(1e-12 + 1e-8)])


def test_trap_15_a_sign_of_zero_is_zero():
    p = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    p.grad = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    optgen.Lion([p], lr=0.5).step()
    assert p.tolist() == [1.0, 1.0, 0.5, 1.5]


def test_trap_16_a_failed_constructor_changes_no_group():
    groups = [{"params": parameters((2,)), "lr": -1.0}]
    with pytest.raises(ValueError, match="lr >= 0"):
        optgen.AdamW(groups)
    assert {k: v for k, v in groups[0].items() if k != "params"} == {"lr": -1.0}


def test_trap_17_arguments_keep_their_names():
    mine = parameters((2,))
    a = optgen.Adam(params=mine, lr=0.1)
    train(a, mine, 1)
    b = optgen.Adam(mine)
    b.load_state_dict(state_dict=a.state_dict())
    b.step(closure=lambda: torch.tensor(1.0))
    b.zero_grad(set_to_none=True)
    b.add_param_group(param_group={"params": parameters((1,))})


@pytest.mark.parametrize("size", SIZES)
def test_trap_18_what_lies_between_strided_elements_stays(size):
    memory = torch.arange(3.0 * size).reshape(size, 3)
    before = memory.clone()
    p = nn.Parameter(memory[:, 1])
    p.grad = torch.ones(2, size)[0]
    optgen.SGD([p], lr=1.0, momentum=0.9).step()
    assert torch.equal(memory[:, 1], before[:, 1] - 1)
    assert torch.equal(memory[:, ::2], before[:, ::2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES)
def test_trap_18_half_precision_moves_in_every_element(size, dtype):
    p = nn.Parameter(torch.ones(size, dtype=dtype))
    p.grad = torch.ones(size, dtype=dtype)
    optgen.SGD([p], lr=0.5).step()
    assert torch.equal(p, torch.full_like(p, 0.5))


@pytest.mark.parametrize("place", range(4))
def test_trap_19_empty_tensors_anywhere(place):
    mine = parameters((3,), (4, 2), (1,))
    right = [p.detach().clone() for p in mine]
    mine.insert(place, nn.Parameter(torch.empty(0, 5)))
    for p in mine:
        p.grad = torch.ones_like(p)
    optgen.LAMB(mine, lr=0.0).step()
    optgen.SGD(mine, lr=1.0).step()
    del mine[place]
    assert all(torch.equal(p, q - 1) for p, q in zip(mine, right, strict=True))


def test_trap_20_an_address_alone_is_no_key():
    memory = torch.ones(64)
    p = nn.Parameter(memory[:32])
    optimizer = optgen.SGD([p], lr=1.0)
    for view in (memory[:32], memory[:8], memory.reshape(8, 8)[:, :2], memory[:16].to(torch.float64)):
        p.data = view
        p.grad = torch.ones_like(view)
        before = view.clone()
        optimizer.step()
        assert torch.equal(p, before - 1)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_trap_21_autograd_sees_that_a_parameter_was_written(backend):
    p = nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    version = p._version
    p.grad = torch.ones(3)
    optgen.SGD([p], lr=0.1, backend=backend).step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_trap_23_no_step_count_or_size_is_an_argument():
    """Kernels get addresses only, so Triton has no integer to specialise on; and nothing compiles later."""
    from optgen.backends.triton.specs import specs

    tables = {"tensors", "chunks", "scalars", "partials", "slots", "numbers", "lines", "size", "slices"}
    tables |= {"moving"}
    for name in ("adamw", "lamb", "adafactor", "prodigy"):
        for spec in specs(Layout(planned(library.rule(name)))).values():
            assert set(spec.tables) <= tables
    mine = parameters((17,))
    optimizer = optgen.NAdam(mine)
    train(optimizer, mine, 1)
    built = cache.built
    train(optimizer, mine, 40, 1)
    assert cache.built == built


def test_trap_25_copies_keep_all_that_matters():
    mine = parameters((3,), (2, 2))
    optimizer = optgen.optimizer(optgen.chain("clip_norm", "adamw"))(
        mine, lr=0.1, backend="numpy", math="fast"
    )
    optimizer.freeze(mine[1])
    train(optimizer, mine, 2)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(other).program.sources == type(optimizer).program.sources
        assert other._compile_options == optimizer._compile_options
        assert other.param_groups[0]["frozen"] == [1]
        assert repr(other) == repr(optimizer)


def test_trap_26_hooks_run_once_a_step():
    mine, calls = parameters((3,)), []
    optimizer = optgen.AdamW(mine)
    optimizer.register_step_pre_hook(lambda *a: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *a: calls.append("post"))
    train(optimizer, mine, 2)
    assert calls == ["pre", "post"] * 2


@pytest.mark.parametrize(("kind", "key"), [("NAdam", "mu_product"), ("ASGD", "eta")])
def test_trap_27_numbers_of_the_host_are_not_rounded_on_load(kind, key):
    whole, part = parameters((5,), dtype=torch.bfloat16), parameters((5,), dtype=torch.bfloat16)
    a, b = getattr(optgen, kind)(whole), getattr(optgen, kind)(part)
    train(a, whole, 5)
    train(b, part, 3)
    c = getattr(optgen, kind)(part)
    c.load_state_dict(b.state_dict())
    assert c.state[part[0]][key].dtype == torch.float64
    train(c, part, 2, 3)
    assert c.state[part[0]][key] == a.state[whole[0]][key]


def test_trap_28_a_checkpoint_shares_nothing_and_may_hold_lists():
    mine = parameters((3,))
    optimizer = optgen.AdamW(mine, betas=(0.8, 0.9))
    train(optimizer, mine, 2)
    saved = optimizer.state_dict()
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
    other = optgen.AdamW(mine)
    other.load_state_dict(saved)
    assert other.param_groups[0]["betas"] == (0.8, 0.9)
    train(other, mine, 3)
    assert saved["state"][0]["step"].item() == 2
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optgen.AdamW(mine).load_state_dict(torch.load(file, weights_only=True))


def test_trap_29_twenty_thousand_tensors():
    values = torch.arange(20_321.0)
    mine = [nn.Parameter(v.clone()) for v in values]
    for p in mine:
        p.grad = torch.ones(())
    optgen.SGD(mine, lr=1.0).step()
    assert torch.equal(torch.stack([p.detach() for p in mine]), values - 1)


def test_trap_30_what_a_comparison_with_itself_misses():
    """Each against torch: bias correction, hyperparameters changed later, moved memory; sparse gradients."""
    optimizer, mine, reference, right = pair("AdamW", (7,), lr=0.1)
    for step in range(5):
        for o in (optimizer, reference):
            o.param_groups[0]["lr"] *= 0.5
            o.param_groups[0]["betas"] = (0.5 + 0.05 * step, 0.9)
            o.param_groups[0]["weight_decay"] = 0.1 * step
        train(optimizer, mine, 1, step)
        train(reference, right, 1, step)
    assert_close(mine, right)
    mine[0].grad = torch.sparse_coo_tensor([[0]], [1.0], (7,), check_invariants=True)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_trap_22_a_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """Whatever the current device is; `test_gpu.py` runs it where there are two."""
    entered = []

    class Device(contextlib.AbstractContextManager):
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    class Kernel:
        def run(self, step, tables):
            assert entered == [torch.device("cuda", 1)]

    monkeypatch.setattr(torch.cuda, "device", Device)
    launch = Launch.__new__(Launch)
    launch.bucket, launch.cuda = Mock(device=torch.device("cuda", 1), kernel=Kernel()), True
    launch.run(Step("sweep", "sweep0"))
    assert entered == [torch.device("cuda", 1), None]


# Second part: what happens between two steps


EDITED = """
def step(o, g=1.0):
    for group in o.param_groups:
        for p in group["params"]:
            p.grad = torch.full_like(p, g)
    o.step()

def facts(o):
    # everything that a step may change, with where it lies
    found = []
    for group in o.param_groups:
        found.append({k: v for k, v in group.items() if k != "params"})
        for p in group["params"]:
            for key, t in {"p": p, "g": p.grad, **o.state.get(p, {})}.items():
                found.append((key, t.data_ptr(), t.shape, t.dtype, t.stride(), t.detach().clone()))
    return found

def same(a, b):
    flat = zip([x for r in a for x in (r if isinstance(r, tuple) else (r,))],
               [x for r in b for x in (r if isinstance(r, tuple) else (r,))], strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in flat)

def refused(o, *words, kind=RuntimeError):
    # the step raises, names all this, and has changed nothing
    before = facts(o)
    try:
        o.step()
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, (missing, str(error))
    else:
        raise AssertionError(f"not refused: {words}")
    assert same(before, facts(o)), words
"""


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("count", [1, 60])
def test_trap_memory_01_sizes_are_compared_before_a_kernel_has_an_address(tmp_path, backend, count):
    """One of few tensors, and of so many that they are compared in compiled code."""
    code = f"""
        def trained(n=1000):
            params = [torch.nn.Parameter(torch.ones(n)) for _ in range({count})]
            o = optgen.AdamW(params, backend="{backend}")
            for _ in range(4):
                step(o)
            return o, params[-1], o.state[params[-1]]

        where = "parameter {count - 1} of group 0"
        for size in (5000, 10, 0):  # the first reads and writes beyond the ends of the state
            o, p, state = trained()
            p.data = torch.ones(size)
            p.grad = torch.ones(size)
            refused(o, where, "'exp_avg'", "(1000,)", f"({{size}},)") if size else o.step()
        o, p, state = trained()
        state["exp_avg_sq"] = torch.zeros(10)
        refused(o, where, "'exp_avg_sq'", "(10,)", "(1000,)")
        state["exp_avg_sq"] = torch.zeros(1000)
        state["exp_avg"].data = state["exp_avg"].data[:999]
        refused(o, where, "'exp_avg'", "(999,)")
        o, p, state = trained()
        for wrong in (torch.ones(999), torch.ones(1001), torch.ones(10, 100), torch.ones(1000, 1)):
            p.grad = torch.ones(1000)
            p.grad.data = wrong
            refused(o, "gradient", where, str(tuple(wrong.shape)))
        p.grad = torch.ones(1000)
        p.data = p.data.view(10, 100)  # the same size in another shape
        refused(o, "gradient", where, "(10, 100)")
        o, p, state = trained()
        p.grad = torch.ones(1000)
        p.grad.untyped_storage().resize_(8)
        refused_text = "lies in a storage of 8 bytes"
        before = p.detach().clone()
        try:
            o.step()
        except RuntimeError as error:
            assert refused_text in str(error) and where in str(error), error
        else:
            raise AssertionError
        assert torch.equal(p, before) and state["step"] == 4
        p.grad = torch.ones(1000)
        o.step()  # and training goes on
        assert state["step"] == 5
    """
    run(EDITED + textwrap.dedent(code), tmp_path)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)])
def test_trap_memory_02_states_of_slices_and_tensors_have_the_dtype_of_the_kernel(tmp_path, every):
    """`model.double()` after three steps: the reference's result, for each class or kind of such states."""
    code = """
        import copy
        from optgen import library
        from optgen.ir.node import Extent
        kinds = {}
        for name in sorted(library.classes()):
            kind = getattr(optgen, name, None)
            states = kind.program.states.values() if kind and not kind.program.inputs else ()
            coarse = frozenset(s.extent.name for s in states if s.extent is not Extent.ELEMENT)
            if coarse:
                kinds.setdefault(name if EVERY else coarse, kind)
        assert len(kinds) > 5
        generator = torch.Generator().manual_seed(0)
        start = [torch.randn(4, 6, generator=generator), torch.randn(5, generator=generator)]
        for kind in kinds.values():
            ends = []
            for backend in ("cpu", "numpy"):
                params = [torch.nn.Parameter(x.clone()) for x in start]
                o = kind(params, backend=backend)
                for k in range(6):
                    if k == 3:
                        for p in params:
                            p.data = p.data.double()
                    gradients = torch.Generator().manual_seed(k)
                    for p in params:
                        p.grad = torch.randn(p.shape, generator=gradients).to(p.dtype)
                    o.step()
                ends.append([*params, *(v for p in params for v in o.state[p].values())])
            for a, b in zip(*ends, strict=True):
                assert a.dtype == b.dtype, kind
                scale = b.detach().abs().max() + 1e-30
                assert ((a - b).abs().max() <= 1e-6 * scale) or not b.isfinite().all(), (kind, a, b)
    """
    run(f"EVERY = {every}" + textwrap.dedent(code), cache.folder() if every else tmp_path, 600)


def test_trap_memory_03_what_torch_resolves_or_refuses_about_a_tensor(tmp_path):
    code = """
        def trained(count=3):
            params = [torch.nn.Parameter(torch.full((6,), float(k))) for k in range(count)]
            o = optgen.AdamW(params, lr=0.1, backend="cpu")
            for _ in range(4):
                step(o)
            return o, params

        for count in (3, 80):
            o, (p, q, r, *_) = trained(count)
            twin, (a, b, c, *_) = trained(count)
            step(o)
            step(twin)
            p.grad = torch._neg_view(torch.full((6,), -2.0))  # 2.0, if its sign is not forgotten
            q.grad = torch.ones(1).expand(6)
            r.grad = torch.ones(12)[::2]
            a.grad, b.grad, c.grad = torch.full((6,), 2.0), torch.ones(6), torch.ones(6)
            o.step()
            twin.step()
            assert all(torch.equal(x, y) for x, y in zip((p, q, r), (a, b, c)))
            p.grad = p.data  # a gradient in the parameter's own memory is read before it is written
            a.grad = a.detach().clone()
            o.step()
            twin.step()
            assert torch.equal(p, a)
            o, (p, q, *_) = trained(count)
            q.data = p.data
            names = "parameter 0 of group 0 and parameter 1 of group 0"
            refused(o, names, "overlap in memory", kind=ValueError)
            q.data = torch.zeros(6)
            o.state[q]["exp_avg"] = o.state[p]["exp_avg"]
            refused(o, "'exp_avg' of parameter 0", "'exp_avg' of parameter 1", "overlap", kind=ValueError)
            o, (p, q, *_) = trained(count)
            o.state[p]["exp_avg"].data = torch._neg_view(o.state[p]["exp_avg"].data)
            refused(o, "'exp_avg'", "negated view", "resolve_neg")
            o, (p, q, *_) = trained(count)
            o.state[p]["exp_avg"].untyped_storage().resize_(0)
            before = p.detach().clone()
            try:
                o.step()
            except RuntimeError as error:
                assert "'exp_avg'" in str(error) and "storage of 0 bytes" in str(error), error
            else:
                raise AssertionError
            assert torch.equal(p, before)
            o, (p, q, *_) = trained(count)
            o.state[p]["exp_avg"] = torch.zeros(1).expand(6)
            refused(o, "'exp_avg'", "strides (0,)")
            o.state[p]["exp_avg"] = torch.zeros(6, dtype=torch.int32)
            refused(o, "'exp_avg'", "int32")
            o.state[p]["exp_avg"] = None
            o.step()  # as if it had never been
            o.state[p]["step"] = "many"
            try:
                o.step()
            except RuntimeError as error:
                assert "'step'" in str(error) and "'many'" in str(error), error
            else:
                raise AssertionError
            o.state[p]["step"] = 7  # as old checkpoints have it
            o.step()
            assert o.state[p]["step"] == 8
            o.param_groups[0]["params"].append(p)
            try:
                o.step()
            except ValueError as error:
                assert "is there twice" in str(error), error
            else:
                raise AssertionError
    """
    run(EDITED + textwrap.dedent(code), tmp_path)


@pytest.mark.parametrize("name", ["AdamW", "LAMB", "Adafactor", "Prodigy"])
@pytest.mark.parametrize("count", [2, 100])
def test_trap_memory_04_a_state_that_was_replaced_is_freed_at_once(name, count):
    params = parameters(*[(4, 3)] * count)
    optimizer = getattr(optgen, name)(params, backend="cpu")
    train(optimizer, params, 4)
    for p in params:
        for key in list(optimizer.state[p]):
            gone = weakref.ref(optimizer.state[p][key])
            optimizer.state[p][key] = optimizer.state[p][key].clone()
            assert gone() is None, key
    old = [weakref.ref(value) for p in params for value in optimizer.state[p].values()]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(each() is None for each in old)
    train(optimizer, params, 2, 4)
    old = [weakref.ref(value) for p in params for value in optimizer.state[p].values()]
    optimizer.state.clear()
    assert all(each() is None for each in old)
    removed = weakref.ref(params[0])
    del optimizer.param_groups[0]["params"][0], params[0]
    gc.collect()
    assert removed() is None


def test_trap_memory_03_what_no_launch_looks_at():
    """Counts of empty parameters, numbers for the whole optimizer, and states that start as the parameter."""
    full, empty = parameters((7,), (0,))
    optimizer = optgen.AdamW([full, empty], backend="cpu")
    train(optimizer, [full, empty], 3)
    optimizer.state[empty]["step"] = optimizer.state[full]["step"]
    train(optimizer, [full, empty], 1, 3)
    assert [optimizer.state[p]["step"].item() for p in (full, empty)] == [4, 4]
    moment = optimizer.state[full]["exp_avg_sq"]
    optimizer.state[empty]["step"] = moment[0]
    before = moment[0].item()
    full.grad = None
    optimizer.step()
    assert moment[0].item() == before

    (p,) = parameters((8,))
    prodigy = optgen.Prodigy([p], backend="cpu")
    train(prodigy, [p], 3)
    kept = prodigy.state[p]["exp_avg"]
    prodigy.param_groups[0]["d_max"] = kept.view(torch.float64)[0]
    train(prodigy, [p], 1, 3)
    assert prodigy.param_groups[0]["d_max"].data_ptr() != kept.data_ptr()
    freed = torch.zeros((), dtype=torch.float64)
    freed.untyped_storage().resize_(0)
    prodigy.param_groups[0]["d_max"] = freed
    with pytest.raises(RuntimeError, match="'d_max' in group 0 must be one number"):
        prodigy.step()

    (p,) = parameters((1025,))
    copies = optgen.AdamWScheduleFree([p], backend="cpu")
    p.grad = torch.ones(1025)
    p.data.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="parameter 0 of group 0 has no memory of its size"):
        copies.step()
    assert not copies.state


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_trap_memory_06_a_count_that_cannot_be_written(backend):
    """An inference tensor may not be written outside `inference_mode`: found before the launch, not after."""
    (p,) = parameters((7,))
    optimizer = optgen.AdamW([p], backend=backend)
    train(optimizer, [p], 3)
    with torch.inference_mode():
        optimizer.state[p]["step"] = optimizer.state[p]["step"].clone()
    train(optimizer, [p], 1, 3)
    assert optimizer.state[p]["step"].item() == 4


@pytest.mark.parametrize("count", [1, 3, 80])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_trap_memory_06_a_count_that_is_no_number(count, value):
    """In a repeated step too, whatever the number of tensors, and in all of them or in one."""
    for edited in (1, count):
        params = parameters(*[(3,)] * count)
        optimizer = optgen.AdamW(params, backend="cpu")
        train(optimizer, params, 4)
        for p in params[-edited:]:
            optimizer.state[p]["step"].fill_(value)
        before = [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError, match=r"the state 'step' of parameter .* must be one number"):
            train(optimizer, params, 1, 4)
        assert all(map(torch.equal, params, before))


def _freed(t):
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


@pytest.mark.parametrize("damage", [_freed, torch.Tensor.to_sparse, lambda t: t.to("meta")])
@pytest.mark.parametrize("key", ["exp_avg", "step"])
def test_trap_memory_03_a_saved_state_without_memory(damage, key):
    (p,) = parameters((3, 4))
    optimizer = optgen.AdamW([p])
    train(optimizer, [p], 2)
    saved = optimizer.state_dict()
    saved["state"] = {0: saved["state"][0] | {key: damage(saved["state"][0][key])}}
    kept = dict(optimizer.state[p])
    with pytest.raises(ValueError, match=f"state '{key}' of parameter 0 has no numbers that can be read"):
        optimizer.load_state_dict(saved)
    assert all(optimizer.state[p][name] is kept[name] for name in kept)


def test_trap_memory_05_the_interpreter_refuses_a_gpu(monkeypatch):
    """It would follow a GPU's addresses on the host."""
    monkeypatch.setattr("optgen.backends.triton.kernels.interpreting", lambda: True)
    with pytest.raises(
        ValueError, match=r"TRITON_INTERPRET=1 runs kernels on the CPU, and .* is on cuda:0: unset"
    ):
        resolve("auto", torch.device("cuda", 0))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize(
    "name", ["AdamW", "NAdam", "Prodigy", "DoG", "MoMo", "DAdaptAdam", "SGLD", "Adafactor"]
)
def test_trap_memory_05_capturable_on_a_cpu(name, backend):
    """Every class was tried; of these the first is usual, and others have counts that a device would keep."""
    kind = getattr(optgen, name)
    ends = []
    for capturable in (True, False):
        params = parameters((3, 4), (5,))
        optimizer = kind(params, backend=backend, capturable=capturable)
        for k in range(4):
            give(params, k)
            optimizer.step(**({"loss": 1.0} if kind.program.inputs else {}))
        ends.append([*params, *(v for p in params for v in optimizer.state[p].values())])
    assert all(map(torch.equal, *ends))


def give(params, k):
    generator = torch.Generator().manual_seed(k)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def test_trap_memory_07_threads_that_ask_together_get_one_thing(tmp_path):
    """The first step of a rule in two threads, and classes by name and by program in eight."""
    run(
        """
        from optgen.ir.node import Extent
        sys.setswitchinterval(1e-5)  # at the default, threads seldom meet in so short a time
        kinds = together(*[lambda: optgen.AdamW] * 8)
        assert all(kind is kinds[0] for kind in kinds)
        chains = together(*[lambda: optgen.optimizer(optgen.chain("clip_norm", "adamw"))] * 8)
        assert all(kind is chains[0] for kind in chains)
        for k in range(100):
            made = together(*[lambda: Extent.dim(k)] * 4)
            assert all(extent is made[0] for extent in made)
        sys.setswitchinterval(0.005)
        a, b, c, d = together(*[lambda: moved(optgen.Lion)] * 2, *[lambda: moved(chains[0])] * 2)
        assert a == b and c == d
        assert moved(optgen.Lion) == a and moved(chains[0]) == c
        """,
        tmp_path,
    )


def test_trap_memory_08_a_fork_waits_for_a_compilation(tmp_path):
    """Children of forks in the middle of another thread's imports, first step or compilation step too."""
    run(
        """
        def forked(busy, delay):
            thread = threading.Thread(target=lambda: moved(getattr(optgen, busy)))
            thread.start()
            time.sleep(delay)
            out, into = os.pipe()
            child = os.fork()
            if not child:
                signal.alarm(30)
                os.write(into, moved(getattr(optgen, busy), 20) + moved(optgen.SGD, 20))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            thread.join()
            assert status == 0, (busy, delay, status)
            right = moved(getattr(optgen, busy), 20) + moved(optgen.SGD, 20)
            assert os.read(out, 1000) == right, (busy, delay)

        forked("Lion", 0.01)
        forked("AdamW", 0.1)
        forked("RMSprop", 0.3)
        """,
        tmp_path,
    )


STEP = """
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(moved(optgen.AdamW).hex()[:400])
for each in said:
    print(each.category.__name__, each.message)
"""


def test_trap_memory_09_a_damaged_cache_heals(tmp_path):
    """Files that were cut or overwritten are compiled again and replaced; nobody else may read one."""
    folder = tmp_path / "cache"
    right = run(f"os.umask(0)\n{STEP}", folder)
    assert right.count("\n") == 1
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert paths
    assert [oct(path.stat().st_mode & 0o777) for path in paths] == ["0o600"] * len(paths)
    assert folder.stat().st_mode & 0o777 == 0o700
    whole = {path: path.read_bytes() for path in paths}
    for i, (path, data) in enumerate(whole.items()):
        path.write_bytes(random.Random(0).randbytes(len(data)) if i % 2 else data[: len(data) // 2])
    assert run(STEP, folder) == right
    assert sorted(folder.iterdir()) == paths
    assert all(len(path.read_bytes()) > 0.9 * len(data) for path, data in whole.items())


def test_trap_memory_09_nowhere_to_write(tmp_path):
    """One warning with the folder and what to do, and nothing left in the temporary directory."""
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    folder = tmp_path / "file" / "cache"
    lines = run(STEP, folder, TMPDIR=str(tmp_path / "temporary")).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("RuntimeWarning")
    assert str(folder) in lines[1]
    assert "set OPTGEN_CACHE_DIR to a folder that only you can write" in lines[1]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_trap_memory_09_a_disk_that_is_full(tmp_path):
    """A limit on the size of files stands for it here; a file system of 64 KB is in test_cache.py."""
    limit = """
    import numba, resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    """
    lines = run(textwrap.dedent(limit) + STEP, tmp_path / "cache").splitlines()
    assert len(lines) == 2
    assert f"{tmp_path / 'cache'}, where nothing can be written" in lines[1]
    assert "make room there" in lines[1]
    assert list((tmp_path / "cache").iterdir()) == []  # no half files


def test_trap_memory_10_one_kernel_for_what_the_host_computes():
    """Thirty schedules differ in what stands in the header, and in nothing that the machine runs."""
    before, stems = cache.built, set()
    for k in range(30):
        rule = schedules.scheduled("p = p - 0.375*g*lr\nhyper(lr=0.1)", lr=f"lr*minimum(t/{k + 10}, 1)")
        params = parameters((5,))
        train(optgen.optimizer(rule)(params), params, 1)
        stems.add(params[0].detach().numpy().tobytes())
    assert cache.built == before + 1
    assert len(stems) == 30  # and each has its own values


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_trap_memory_10_every_file_of_a_back_end_is_in_its_key(backend, monkeypatch):
    """An intrinsic that changes makes another kernel, in whichever file it is."""
    pytest.importorskip({"cpu": "numba"}.get(backend, backend))
    versions, home = Backend.version.__wrapped__, Path(optgen.__file__).parent / "backends" / backend
    backend = BACKENDS[backend]
    before, read_bytes, read_text = versions(backend), Path.read_bytes, Path.read_text
    for file in sorted(home.glob("*.py")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda p, f=file: read_bytes(p) + b"\n" * (p == f))
            patch.setattr(Path, "read_text", lambda p, f=file, **o: read_text(p, **o) + "\n" * (p == f))
            assert versions(backend) != before, file
    assert versions(backend) == before


# What a hostile reader found


def test_trap_memory_06_a_handler_that_edits_waits_for_the_step(monkeypatch):
    """It does not raise: between the check of an address and its use it would change what lies there."""
    (p,), (q,) = parameters((2000,)), parameters((2000,))
    optimizer, twin = optgen.AdamW([p], backend="cpu"), optgen.AdamW([q], backend="cpu")
    train(twin, [q], 1)
    kernel = cache.kernel

    def interrupted(*args):
        signal.raise_signal(signal.SIGUSR1)
        return kernel(*args)

    def shrink(*_):
        p.data = p.data[:10].clone()

    before = signal.signal(signal.SIGUSR1, shrink)
    try:
        monkeypatch.setattr(cache, "kernel", interrupted)
        train(optimizer, [p], 1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert torch.equal(p, q[:10])


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize(
    ("kind", "name"), [("SGD", "momentum"), ("SGD", "weight_decay"), ("Adam", "weight_decay")]
)
def test_trap_memory_03_a_condition_on_a_tensor_that_changes_in_place(kind, name, count):
    found = []
    for backend in ("cpu", "numpy"):
        params, value = parameters(*[(3,)] * count), torch.tensor(0.0)
        optimizer = getattr(optgen, kind)(params, lr=0.1, backend=backend, **{name: value})
        train(optimizer, params, 4)
        value.fill_(0.9)
        train(optimizer, params, 3, 4)
        found.append(params)
    assert all(map(torch.equal, *found))


def test_trap_memory_06_the_system_s_handlers_are_as_before(tmp_path):
    """faulthandler's, and flags such as `siginterrupt` sets, which Python's own `signal` takes away."""
    (p,) = parameters((3,))
    optimizer, seen = optgen.AdamW([p], backend="cpu"), []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    with (tmp_path / "dump").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, chain=True)
        try:
            train(optimizer, [p], 2)
            signal.raise_signal(signal.SIGUSR1)
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, before)
    assert seen == [1]
    assert "Current thread" in (tmp_path / "dump").read_text()


def test_trap_memory_03_the_default_device_is_another():
    (p,), (q,) = parameters((3,)), parameters((3,))
    optimizer = optgen.AdamW([p])
    train(optgen.AdamW([q]), [q], 1)
    p.grad = q.grad
    with torch.device("meta"):
        optimizer.step()
    assert torch.equal(p, q)
    assert optimizer.state[p]["step"].item() == 1


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_trap_memory_03_a_count_on_meta_and_a_group_without_marks(backend):
    """Neither an error of torch's own, nor a KeyError: the count is named, and nothing is frozen."""
    (p,) = parameters((3,))
    optimizer = optgen.AdamW([p], backend=backend)
    train(optimizer, [p], 2)
    del optimizer.param_groups[0]["frozen"]
    train(optimizer, [p], 1, 2)
    optimizer.state[p]["step"] = torch.zeros((), device="meta")
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="the state 'step' of parameter 0 of group 0 must be one number"):
        train(optimizer, [p], 1, 3)
    assert torch.equal(p, before)
