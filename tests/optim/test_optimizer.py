"""The optimizer class: groups, state, checkpoints, freezing, hooks, refusals."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import optgen
from optgen.backends import cache

EMA = """
"Heavy ball with an averaged copy"
hyper(lr=0.1, μ=0.9)
state(v=0, x=p)
v = μ*v + g
p = p - lr*v
x = lerp(x, p, 0.5)
"""


def parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def train(optimizer, params, steps, start=0):
    for k in range(start, start + steps):
        give_gradients(params, k)
        optimizer.step()


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_class_is_a_torch_optimizer():
    (p,) = parameters((3,))
    optimizer = optgen.AdamW([p], lr=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert type(optimizer).__name__ == "AdamW"
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optgen.AdamW is optgen.AdamW


def test_positional_arguments_are_torchs():
    import inspect

    for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Rprop", "NAdam", "RAdam", "Adamax", "ASGD"):
        ours = list(inspect.signature(getattr(optgen, name)).parameters.values())
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        skip = ("foreach", "fused", "capturable", "differentiable", "maximize")
        wanted = [(n, p.default) for n, p in theirs.items() if n not in skip]
        assert [(p.name, p.default) for p in ours][: len(wanted)] == wanted


def test_groups_have_their_own_options():
    a, b, c = parameters((4,), (4,), (4,))
    optimizer = optgen.SGD([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.25)
    optimizer.add_param_group({"params": [c], "lr": 1.0, "momentum": 0.9})
    before = [p.detach().clone() for p in (a, b, c)]
    for p in (a, b, c):
        p.grad = torch.ones(4)
    optimizer.step()
    for p, old, lr in zip((a, b, c), before, (0.5, 0.25, 1.0), strict=True):
        assert torch.equal(p, old - lr)
    assert "momentum_buffer" in optimizer.state[c]
    assert "momentum_buffer" not in optimizer.state[a]


def test_groups_share_one_launch(monkeypatch):
    params = parameters(*[(7,)] * 40)
    groups = [{"params": params[i::4], "lr": 0.1 * (i + 1)} for i in range(4)]
    optimizer = optgen.AdamW(groups, backend="cpu")
    train(optimizer, params, 1)
    from optgen.backends.cpu.kernel import CpuKernel

    launches = []
    run = CpuKernel.run
    monkeypatch.setattr(CpuKernel, "run", lambda self, s, t: (launches.append(s.name), run(self, s, t)))
    train(optimizer, params, 1)
    assert launches == ["sweep0"]


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_each_parameter_counts_its_own_steps(backend):
    a, b = parameters((5,), (5,))
    optimizer = optgen.Adam([a, b], lr=0.1, backend=backend)
    for k in range(50):
        give_gradients([a], k)
        optimizer.step()
    assert b not in optimizer.state
    old = b.detach().clone()
    b.grad = torch.ones(5)
    optimizer.step()
    torch.testing.assert_close(b.detach(), old - 0.1, rtol=0, atol=1e-6)
    assert optimizer.state[a]["step"].item() == 51
    assert optimizer.state[b]["step"].item() == 1


def test_no_gradient_is_not_a_zero_gradient():
    a, b = parameters((5,), (5,))
    optimizer = optgen.Adam([a, b], lr=0.1)
    train(optimizer, [a, b], 3)
    a.grad, b.grad = torch.zeros(5), None
    kept = {k: v.clone() for k, v in optimizer.state[b].items()}
    values = a.detach().clone(), b.detach().clone()
    optimizer.step()
    assert not torch.equal(a, values[0])
    assert torch.equal(b, values[1])
    assert all(torch.equal(optimizer.state[b][k], v) for k, v in kept.items())


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    (p,) = parameters((3,))
    optimizer = optgen.SGD([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert first.item() > optimizer.step(closure).item()
    assert optimizer.step() is None


def test_hooks_run_once():
    (p,) = parameters((3,))
    optimizer = optgen.SGD([p], lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(optimizer, [p], 1)
    assert calls == ["pre", "post"]


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "CosineAnnealingLR"])
def test_schedulers_change_lr_without_compiling(name):
    make = {
        "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
        "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    }[name]
    ours, theirs = parameters((6, 3)), parameters((6, 3))
    a, b = optgen.AdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1, foreach=False)
    schedulers = make(a), make(b)
    train(a, ours, 1)
    train(b, theirs, 1)
    built = cache.built
    for k in range(1, 21):
        for s in schedulers:
            s.step()
        train(a, ours, 1, k)
        train(b, theirs, 1, k)
        assert a.param_groups[0]["lr"] == b.param_groups[0]["lr"]
    assert cache.built == built
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)


def test_twenty_learning_rates_compile_nothing():
    params = parameters((100,), (3, 3))
    optimizer = optgen.AdamW(params, backend="cpu")
    train(optimizer, params, 1)
    built = cache.built
    sweeps = [getattr(getattr(k, "module", None), "sweep0", None) for k in cache._kernels.values()]
    compiled = [sweep for sweep in sweeps if hasattr(sweep, "signatures")]
    signatures = [len(sweep.signatures) for sweep in compiled]
    assert signatures
    for k in range(20):
        optimizer.param_groups[0]["lr"] = 10.0 ** -(k / 4)
        train(optimizer, params, 1, k)
    assert cache.built == built
    assert signatures == [len(sweep.signatures) for sweep in compiled]


def test_lr_may_be_a_tensor():
    a, b = parameters((4,)), parameters((4,))
    x, y = optgen.SGD(a, lr=torch.tensor(0.5)), optgen.SGD(b, lr=0.5)
    train(x, a, 2)
    train(y, b, 2)
    assert_same(a, b)


def test_maximize_ascends():
    a, b = parameters((4,)), parameters((4,))
    x, y = optgen.AdamW(a, maximize=True), optgen.AdamW(b)
    for k in range(3):
        give_gradients(a, k)
        b[0].grad = -a[0].grad
        x.step()
        y.step()
    assert_same(a, b)


# Checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rule", ["adamw", "sgd", "nadam", "asgd", "lamb", "rprop"])
def test_resumes_to_the_bit(rule, dtype):
    make = optgen.optimizer(rule)
    options = {"momentum": 0.9} if rule == "sgd" else {}
    whole, first = parameters((9,), (3, 4), dtype=dtype), parameters((9,), (3, 4), dtype=dtype)
    uninterrupted = make(whole, lr=0.01, **options)
    train(uninterrupted, whole, 10)
    saved = make(first, lr=0.01, **options)
    train(saved, first, 5)
    file = io.BytesIO()
    torch.save({"model": [p.detach() for p in first], "optimizer": saved.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second = [nn.Parameter(p) for p in loaded["model"]]
    resumed = make(second, lr=123.0, **options)
    resumed.load_state_dict(loaded["optimizer"])
    train(resumed, second, 5, 5)
    assert_same(whole, second)


def test_state_keeps_its_dtype_on_load():
    params = parameters((5,), dtype=torch.bfloat16)
    optimizer = optgen.AdamW(params, state_dtype=torch.float32)
    train(optimizer, params, 2)
    other = optgen.AdamW(params)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[params[0]]["exp_avg"].dtype is torch.float32
    assert torch.equal(other.state[params[0]]["exp_avg"], optimizer.state[params[0]]["exp_avg"])


def test_loading_shares_and_changes_nothing():
    params = parameters((5,))
    optimizer = optgen.AdamW(params)
    train(optimizer, params, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    train(optimizer, params, 2)
    assert saved["param_groups"] == kept["param_groups"]
    for key, value in kept["state"][0].items():
        assert torch.equal(saved["state"][0][key], value)


def test_torch_checkpoints_load_both_ways():
    ours, theirs = parameters((5, 2)), parameters((5, 2))
    a, b = optgen.AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01, foreach=False)
    train(b, theirs, 5)
    with torch.no_grad():
        ours[0].copy_(theirs[0])
    a.load_state_dict(b.state_dict())
    train(a, ours, 5, 5)
    train(b, theirs, 5, 5)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7)
    b.load_state_dict(a.state_dict())
    assert torch.equal(b.state[theirs[0]]["exp_avg"], a.state[ours[0]]["exp_avg"])


def test_torch_sgd_momentum_survives_loading():
    ours, theirs = parameters((5,)), parameters((5,))
    b = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.5, foreach=False)
    train(b, theirs, 3)
    a = optgen.SGD(ours, lr=0.1, momentum=0.9, dampening=0.5)
    with torch.no_grad():
        ours[0].copy_(theirs[0])
    a.load_state_dict(b.state_dict())
    train(a, ours, 3, 3)
    train(b, theirs, 3, 3)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7)


def test_another_rules_checkpoint_is_refused_with_the_difference():
    params = parameters((5,))
    text = "hyper(lr=0.1)\np = p - lr*g\n"
    changed = "hyper(lr=0.1)\np = p - 2*lr*g\n"
    saved = optgen.optimizer(text)(params).state_dict()
    other = optgen.optimizer(changed)(params)
    with pytest.raises(ValueError, match="made by another rule") as error:
        other.load_state_dict(saved)
    assert "-p = p - lr*g" in str(error.value)
    assert "+p = p - 2*lr*g" in str(error.value)
    commented = optgen.optimizer("# my rule\nhyper(lr=0.5)\np = p - lr*g\n")(params)
    commented.load_state_dict(saved)
    assert commented.param_groups[0]["lr"] == 0.1


def test_bad_checkpoints_are_refused_whole():
    params = parameters((5,), (2,))
    optimizer = optgen.AdamW(params)
    train(optimizer, params, 2)
    good = copy.deepcopy(optimizer.state_dict())

    def broken(change):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(ValueError) as error:  # noqa: PT011
            optimizer.load_state_dict(bad)
        for key, value in good["state"][0].items():
            assert torch.equal(optimizer.state[params[0]][key], value)
        return str(error.value)

    assert "2 parameter groups" in broken(lambda d: d["param_groups"].append(d["param_groups"][0]))
    assert "group 0 of the state dict has 1 parameters" in broken(
        lambda d: d["param_groups"][0]["params"].pop()
    )
    assert "lr >= 0" in broken(lambda d: d["param_groups"][0].update(lr=-1.0))
    assert "'exp_avg' of parameter 1 is (7,)" in broken(
        lambda d: d["state"][1].update(exp_avg=torch.zeros(7))
    )
    assert "'momentum_buffer'" in broken(lambda d: d["state"][1].update(momentum_buffer=torch.zeros(2)))


def test_pickle_and_deepcopy():
    params = parameters((5,))
    for make in (optgen.AdamW, optgen.optimizer(EMA), optgen.optimizer(optgen.chain("clip_norm", "lion"))):
        optimizer = make(params, lr=0.01, backend="numpy")
        train(optimizer, params, 2)
        for clone in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
            assert type(clone) is make
            (p,) = clone.param_groups[0]["params"]
            q = params[0].detach().clone().requires_grad_()
            p.grad = torch.ones(5)
            clone.step()
            assert clone._compile_options["backend"] == "numpy"
            assert not torch.equal(p, q)


def test_own_rule_from_text_and_path(tmp_path):
    path = tmp_path / "heavy.rule"
    path.write_text(EMA, encoding="utf-8")
    a, b = parameters((4, 4)), parameters((4, 4))
    x, y = optgen.optimizer(EMA)(a, lr=0.01), optgen.optimizer(path)(b, lr=0.01)
    train(x, a, 3)
    train(y, b, 3)
    assert_same(a, b)
    v = torch.zeros(4, 4)
    p = parameters((4, 4))[0].detach()
    average = p.clone()
    for k in range(3):
        give_gradients(a, k)
        v = 0.9 * v + a[0].grad
        p = p - 0.01 * v
        average = average + 0.5 * (p - average)
    torch.testing.assert_close(a[0].detach(), p)
    torch.testing.assert_close(x.state[a[0]]["x"], average)


# Freezing


def test_frozen_parameters_and_state_do_not_move():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    params = list(model.parameters())
    optimizer = optgen.AdamW(params, lr=0.1)
    train(optimizer, params, 2)
    optimizer.freeze(model[0])
    values = [p.detach().clone() for p in params]
    state = copy.deepcopy({i: optimizer.state[p] for i, p in enumerate(params[:2])})
    train(optimizer, params, 2, 2)
    assert torch.equal(params[0], values[0])
    assert torch.equal(params[1], values[1])
    assert not torch.equal(params[2], values[2])
    for i, entry in state.items():
        assert all(torch.equal(optimizer.state[params[i]][k], v) for k, v in entry.items())
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["param_groups"][0]["frozen"] == [0, 1]
    fresh = optgen.AdamW(params, lr=0.1)
    fresh.load_state_dict(saved)
    train(fresh, params, 1, 4)
    assert torch.equal(params[0], values[0])
    fresh.thaw(params[0])
    train(fresh, params, 1, 5)
    assert not torch.equal(params[0], values[0])
    assert torch.equal(params[1], values[1])
    fresh.thaw(0)
    assert fresh.param_groups[0]["frozen"] == []


def test_freeze_takes_groups_and_refuses_strangers():
    a, b = parameters((3,), (3,))
    optimizer = optgen.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    optimizer.freeze(1)
    optimizer.freeze(optimizer.param_groups[0])
    values = a.detach().clone(), b.detach().clone()
    train(optimizer, [a, b], 1)
    assert torch.equal(a, values[0])
    assert torch.equal(b, values[1])
    optimizer.thaw([a, b])
    assert all(g["frozen"] == [] for g in optimizer.param_groups)
    with pytest.raises(ValueError, match="is not one of the optimizer's parameters"):
        optimizer.freeze(parameters((3,))[0])
    with pytest.raises(ValueError, match="there is no group 7"):
        optimizer.freeze(7)
    with pytest.raises(ValueError, match="no parameter of this Linear"):
        optimizer.freeze(nn.Linear(2, 2))


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "adamw needs lr >= 0, but lr = -1"),
        ({"lr": float("nan")}, "lr >= 0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": 0.9}, "betas is a tuple of 2 values"),
        ({"betas": (0.9,)}, "betas is a tuple of 2 values"),
        ({"lr": "fast"}, "lr is a number"),
        ({"lr": None}, "lr is a number"),
        ({"lr": True}, "lr is a number"),
        ({"amsgrad": 1}, "amsgrad is True or False"),
        ({"backend": "cuda"}, "backend='cuda' is not one of auto, triton, cpu, numpy"),
        ({"math": "sloppy"}, "math='sloppy' is not one of exact, fast"),
        ({"state_dtype": torch.int8}, "state_dtype"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        optgen.AdamW(parameters((2,)), **options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'weigth_decay'; it takes lr, betas"):
        optgen.AdamW(parameters((2,)), weigth_decay=0.1)
    with pytest.raises(ValueError, match="did you mean 'weight_decay'"):
        optgen.AdamW([{"params": parameters((2,)), "weigth_decay": 0.1}])


def test_a_bad_group_changes_nothing():
    optimizer = optgen.AdamW(parameters((2,)))
    group = {"params": parameters((3,)), "lr": -1.0}
    before = dict(group)
    with pytest.raises(ValueError, match="lr >= 0"):
        optimizer.add_param_group(group)
    assert group == before
    assert len(optimizer.param_groups) == 1


def test_sparse_and_complex_gradients_are_refused_before_anything_moves():
    embedding = nn.Embedding(4, 2, sparse=True)
    dense = parameters((3,))
    optimizer = optgen.AdamW([*dense, embedding.weight])
    give_gradients(dense, 0)
    embedding(torch.tensor([1])).sum().backward()
    before = dense[0].detach().clone()
    with pytest.raises(RuntimeError, match="AdamW does not support sparse gradients: pass dense ones"):
        optimizer.step()
    assert torch.equal(dense[0], before)
    assert not optimizer.state
    z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = optgen.AdamW([z])
    z.grad = torch.zeros(2, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"complex tensors: optimize torch\.view_as_real"):
        optimizer.step()


def test_overlapping_memory_is_refused_and_counts_nothing():
    p = nn.Parameter(torch.zeros(4))
    optimizer = optgen.SGD([p], lr=0.1, momentum=0.9)
    p.data = torch.zeros(1).expand(4)
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step()
    assert not optimizer.state


def test_triton_without_a_gpu_says_how():
    from optgen.backends.triton.kernels import interpreting

    if interpreting():
        pytest.skip("the interpreter is on in this process")
    params = parameters((2,))
    optimizer = optgen.SGD(params, lr=0.1, backend="triton")
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1"):
        train(optimizer, params, 1)


def test_a_transform_alone_is_refused():
    with pytest.raises(optgen.RuleError, match=r"'clip_norm' is a transform.*\n.*chain\(clip_norm, adamw\)"):
        optgen.optimizer("clip_norm")
    with pytest.raises(optgen.RuleError, match="there is no rule 'adamv'"):
        optgen.optimizer("adamv")


# Tensors of all kinds


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_layouts_and_empty_tensors(rule, backend):
    """Each kind of layout gives what a contiguous copy gives, and gaps between elements stay."""
    base = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    gaps = base.clone()
    views = {
        "transposed": base.clone().t(),
        "sliced": gaps[::2, 1::3],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "plain": base.clone(),
        "permuted": torch.randn(3, 4, 5).permute(2, 0, 1),
    }
    odd = {n: nn.Parameter(v) for n, v in views.items()}
    plain = {n: nn.Parameter(v.clone(memory_format=torch.contiguous_format)) for n, v in views.items()}
    make = optgen.optimizer(rule)
    a, b = (
        make(list(odd.values()), lr=0.1, backend=backend),
        make(list(plain.values()), lr=0.1, backend="numpy"),
    )
    for k in range(3):
        for n in odd:
            grad = torch.randn(odd[n].shape, generator=torch.Generator().manual_seed(k))
            plain[n].grad = grad
            kinds = [grad, grad.t().contiguous().t() if grad.dim() == 2 else grad, grad.clone()]
            odd[n].grad = kinds[k]
        plain["plain"].grad = torch.ones(40, 30) * 0.5
        odd["plain"].grad = torch.tensor(0.5).expand(40, 30)
        a.step()
        b.step()
    for n in odd:
        if rule == "adamw":
            assert torch.equal(odd[n], plain[n]), n
        else:
            torch.testing.assert_close(odd[n], plain[n], rtol=1e-6, atol=1e-7)
    mask = torch.ones_like(gaps, dtype=torch.bool)
    mask[::2, 1::3] = False
    assert torch.equal(gaps[mask], base[mask])
    assert a.state[odd["empty"]]["step"].item() == 3


def test_parameters_may_be_replaced_between_steps():
    (p,) = parameters((6, 4))
    (q,) = parameters((6, 4))
    a, b = optgen.AdamW([p], lr=0.1), optgen.AdamW([q], lr=0.1, backend="numpy")
    for k in range(4):
        give_gradients([p, q], k)
        q.grad = p.grad.clone()
        if k == 2:
            p.data = p.data.clone()
        if k == 3:
            a.state[p]["exp_avg"] = a.state[p]["exp_avg"].clone()
            a.state[p]["exp_avg_sq"].mul_(2)
            b.state[q]["exp_avg_sq"].mul_(2)
        a.step()
        b.step()
    assert torch.equal(p, q)


def test_versions_are_bumped():
    (p,) = parameters((4,))
    optimizer = optgen.SGD([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = torch.ones(4)
    version = p._version
    optimizer.step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_dtypes_may_mix_in_a_group():
    params = parameters((5,)) + parameters((5,), dtype=torch.bfloat16) + parameters((5,), dtype=torch.float64)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    a, b = optgen.AdamW(params, lr=0.1), optgen.AdamW(copies, lr=0.1, backend="numpy")
    train(a, params, 3)
    train(b, copies, 3)
    assert_same(params, copies)
    assert [a.state[p]["step"].item() for p in params] == [3, 3, 3]


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_a_device_without_a_back_end_is_refused_before_anything_moves(backend):
    (p,) = parameters((5,))
    elsewhere = nn.Parameter(torch.zeros(5, device="meta"))
    optimizer = optgen.AdamW([p, elsewhere], backend=backend)
    p.grad, elsewhere.grad = torch.ones(5), torch.ones(5, device="meta")
    before = p.detach().clone()
    with pytest.raises(ValueError, match=r"optgen runs on cpu and cuda .* tensors, not on meta"):
        optimizer.step()
    assert torch.equal(p, before)
    assert not optimizer.state
    elsewhere.grad = None
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


def test_gradients_are_left_alone():
    params = parameters((5,))
    optimizer = optgen.optimizer(optgen.chain("clip_value", "weight_decay", "adamw"))(params)
    give_gradients(params, 0)
    before = params[0].grad.clone()
    optimizer.step()
    assert torch.equal(params[0].grad, before)


def test_state_can_be_switched_on_in_mid_training():
    params = parameters((5,))
    optimizer = optgen.AdamW(params, lr=0.1)
    train(optimizer, params, 3)
    first = optimizer.state[params[0]]["exp_avg"]
    optimizer.param_groups[0]["amsgrad"] = True
    train(optimizer, params, 1, 3)
    assert optimizer.state[params[0]]["exp_avg"] is first
    assert "max_exp_avg_sq" in optimizer.state[params[0]]


MODES = """
"Schedule-free SGD (the constant-weight form), to exercise train() and eval()."
hyper(lr=0.1, beta=0.9)
state(z=p)
z = z - lr*g
p = lerp(p, z, 1/t) + beta*(z - z)

def eval():
    p = lerp(p, z, 1 - 1/beta)

def train():
    p = lerp(p, z, 1 - beta)
"""


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_train_and_eval_programs(backend):
    (p,) = parameters((6,))
    optimizer = optgen.optimizer(MODES)([p], backend=backend)
    optimizer.eval()  # nothing has state yet
    optimizer.train()
    train(optimizer, [p], 3)
    y, z = p.detach().clone(), optimizer.state[p]["z"].clone()
    optimizer.eval()
    torch.testing.assert_close(p.detach(), y + (1 - 1 / 0.9) * (z - y))
    with pytest.raises(RuntimeError, match=r"evaluation mode: call optimizer\.train\(\)"):
        optimizer.step()
    optimizer.eval()  # a second call changes nothing
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["param_groups"][0]["train_mode"] is False
    optimizer.train()
    torch.testing.assert_close(p.detach(), y, rtol=1e-5, atol=1e-6)
    assert optimizer.state[p]["step"].item() == 3
    optgen.AdamW([p]).eval()  # a rule without modes: nothing to do


def test_compiled_modules_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = parameters((5,))
        train(optgen.optimizer(EMA)(params), params, 2)
