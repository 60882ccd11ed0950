"""Steps within the backward pass, against the same steps after it; and the mean of several gradients."""

import copy
import gc
import io
import weakref

import pytest
import torch
from test_launcher import spy
from torch import nn

import optgen
from optgen import release, training

RULES = {
    "adamw": ("adamw",),
    "clipped": ("clip_norm", "adamw"),
    "lamb": ("lamb",),
    "sgld": ("sgld",),
    "schedulefree": ("schedulefree_sgd",),
    "accumulating": (optgen.rule("accum_grad", n=2), "adamw"),
}


class Net(nn.Module):
    """Two layers of one weight, a scale between them, and a layer that no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(4, 4) for _ in range(3))
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)) * self.scale)


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def loss_of(model, step):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.flip(1)).square().mean()


def train(model, optimizer, steps, start=0, scheduler=None):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def made(rule, model, **options):
    return optgen.optimizer(optgen.chain(*rule))(model.parameters(), lr=0.05, backend="numpy", **options)


def assert_same(a, b):
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def assert_same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, entry in a["state"].items():
        assert entry.keys() == b["state"][key].keys()
        assert all(torch.equal(value, b["state"][key][name]) for name, value in entry.items())


# Gradient release


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_same_bits_as_an_ordinary_loop(rule):
    plain, released = net(), net()
    a, b = made(rule, plain), made(rule, released)
    train(plain, a, 3)
    with release.attach(b):
        train(released, b, 3)
        assert all(p.grad is None for p in released.parameters())
    assert_same(plain, released)
    assert_same_state(a, b)
    train(plain, a, 2, 3)
    train(released, b, 2, 3)
    assert_same(plain, released)
    assert all(p.grad is not None for p in released.first.parameters())


def test_compiled_kernels_too():
    plain, released = net(), net()
    a, b = optgen.AdamW(plain.parameters(), lr=0.05), optgen.AdamW(released.parameters(), lr=0.05)
    release.attach(b)
    train(plain, a, 3)
    train(released, b, 3)
    assert_same(plain, released)


def test_one_gradient_at_a_time():
    """What is alive when a hook runs: its own gradient, and nothing once it has run."""
    model = net()
    optimizer = made(RULES["adamw"], model)
    live = []

    def count(_):
        live.append(sum(p.grad is not None for p in model.parameters()))

    used = [p for name, p in model.named_parameters() if not name.startswith("unused")]
    for p in used:
        p.register_post_accumulate_grad_hook(count)
    release.attach(optimizer)
    for p in used:
        p.register_post_accumulate_grad_hook(count)
    loss_of(model, 0).backward()
    assert live == [1, 0] * len(used)


def test_a_tied_parameter_is_stepped_once_a_backward():
    model = net()
    optimizer = made(RULES["adamw"], model)
    release.attach(optimizer)
    train(model, optimizer, 2)
    assert [optimizer.state[p]["step"].item() for p in model.parameters() if p in optimizer.state] == [2] * 4


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    ],
    ids=["lambda", "onecycle"],
)
def test_schedulers(make):
    """They see that `step` was called, and what they set counts from the next backward."""
    plain, released = net(), net()
    a, b = made(RULES["adamw"], plain), made(RULES["adamw"], released)
    release.attach(b)
    train(plain, a, 4, scheduler=make(a))
    train(released, b, 4, scheduler=make(b))
    assert_same(plain, released)
    assert a.param_groups[0]["lr"] != 0.05


def test_groups_frozen_and_late_parameters():
    """Each group has its options; what is frozen stays, and what has no hook is stepped by `step`."""
    models = net(), net()
    for model in models:
        model.first.bias.requires_grad_(False)
        optimizer = optgen.AdamW(
            [
                {"params": [model.first.weight, model.first.bias], "lr": 0.1},
                {"params": model.second.bias, "weight_decay": 0.5},
            ],
            backend="numpy",
        )
        optimizer.freeze(model.second.bias)
        released = release.attach(optimizer) if model is models[1] else None
        train(model, optimizer, 2)
        optimizer.thaw(model.second.bias)
        model.first.bias.requires_grad_(True)
        optimizer.add_param_group({"params": model.scale, "lr": 0.3})
        train(model, optimizer, 2, 2)
        if released is not None:
            assert model.second.bias.grad is None
            assert model.scale.grad is not None
        assert [optimizer.state[p]["step"].item() for p in optimizer.param_groups[0]["params"]] == [4, 2]
        assert optimizer.state[model.second.bias]["step"] == 2
    assert_same(*models)


@pytest.mark.parametrize("first", [True, False], ids=["then without", "then with"])
def test_a_state_dict_goes_on_with_release_and_without(first):
    whole, part = net(), net()
    a, b = made(RULES["clipped"], whole), made(RULES["clipped"], part)
    train(whole, a, 5)
    if first:
        release.attach(b)
    train(part, b, 2)
    file = io.BytesIO()
    torch.save(b.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(part)
    c = made(RULES["clipped"], other)
    if not first:
        release.attach(c)
    c.load_state_dict(torch.load(file, weights_only=True))
    train(other, c, 3, 2)
    assert_same(whole, other)
    b.load_state_dict(copy.deepcopy(b.state_dict()))  # into an optimizer that is released, or not
    train(part, b, 3, 2)
    assert_same(whole, part)


def test_hooks_and_closures_of_step():
    model, other = net(), net()
    optimizer, plain = made(RULES["adamw"], model), made(RULES["adamw"], other)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    release.attach(optimizer)
    for step in range(2):
        for o, m in ((optimizer, model), (plain, other)):

            def closure(o=o, m=m, step=step):
                o.zero_grad()
                loss = loss_of(m, step)
                loss.backward()
                return loss

            assert o.step(closure) > 0
    assert calls == ["pre", "post"] * 2
    assert_same(model, other)


def test_removed_hooks_are_gone():
    model = net()
    optimizer = made(RULES["adamw"], model)
    released = release.attach(optimizer)
    with pytest.raises(ValueError, match=r"released already: call remove\(\) first"):
        release.attach(optimizer)
    released.remove()
    released.remove()
    before = copy.deepcopy(model)
    loss_of(model, 0).backward()
    assert_same(model, before)
    with pytest.raises(ValueError, match=r"a parameter of shape \(\) has a gradient: call optimizer\.step"):
        release.attach(optimizer)
    optimizer.zero_grad()
    with release.attach(optimizer), pytest.raises(KeyError):
        raise KeyError
    loss_of(model, 0).backward()
    assert_same(model, before)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (
            ("clip_global_norm", "adamw"),
            "'clip_global_norm' needs the gradients of all parameters at once; to clip",
        ),
        (("skip_if_nonfinite", "sgd"), "'skip_if_nonfinite' needs the gradients of all"),
        (("dog",), "'dog' keeps numbers that are one for all parameters"),
        (("prodigy",), "'prodigy' keeps numbers that are one for all"),
        (("polyak_sgd",), r"'polyak_sgd' is handed loss by step\(\)"),
        (("sophia",), r"'sophia' is handed hess by step\(\)"),
    ],
)
def test_what_needs_all_gradients_is_refused(rule, reason):
    model = net()
    optimizer = optgen.optimizer(optgen.chain(*rule))(model.parameters(), backend="numpy")
    with pytest.raises(ValueError, match=f"gradients cannot be released: {reason}"):
        release.attach(optimizer)
    before = copy.deepcopy(model)
    loss_of(model, 0).backward()
    assert_same(model, before)


def test_other_optimizers_and_tensors_are_refused():
    with pytest.raises(TypeError, match="takes an optgen optimizer, not AdamW"):
        release.attach(torch.optim.AdamW(net().parameters()))
    p = nn.Parameter(torch.ones(2))
    doubled = 2 * p
    doubled.retain_grad()
    with pytest.raises(ValueError, match=r"a tensor of shape \(2,\) is no leaf"):
        release.attach(optgen.SGD([p, doubled]))
    p.sum().backward()
    assert p.grad is not None


@pytest.mark.parametrize("model_stays", [True, False])
def test_hooks_keep_nothing_alive(model_stays):
    model = net()
    optimizer = made(RULES["adamw"], model)
    release.attach(optimizer)
    train(model, optimizer, 1)
    gone = [weakref.ref(optimizer), weakref.ref(optimizer.state[model.scale]["exp_avg"])]
    kept = model if model_stays else None
    if not model_stays:
        gone.append(weakref.ref(model.scale))
    del model, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    if kept is not None:
        loss_of(kept, 0).backward()
        assert kept.scale.grad is not None


@pytest.mark.parametrize("unscaled", [True, False])
def test_a_gradient_scaler_is_an_error_of_its_step(unscaled):
    model = net()
    optimizer = made(RULES["adamw"], model)
    released = release.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    if unscaled:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="cannot be released under a GradScaler"):
        scaler.step(optimizer)
    optimizer.step()  # by itself it is none
    released.remove()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 1)).backward()
    scaler.step(optimizer)
    off = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.zero_grad()
    with release.attach(optimizer):
        off.scale(loss_of(model, 2)).backward()
        off.step(optimizer)


def test_errors_within_backward():
    model = net()
    optimizer = made(RULES["schedulefree"], model)
    release.attach(optimizer)
    train(model, optimizer, 1)
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"evaluation mode: call optimizer.train\(\) before backward"):
        loss_of(model, 1).backward()
    table = nn.Embedding(4, 2, sparse=True)
    sparse = optgen.AdamW(table.parameters(), backend="numpy")
    release.attach(sparse)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        table(torch.tensor([1])).sum().backward()
    assert not sparse.state


# Accumulation


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((5, 3), (7,), ())]


def micro_steps(optimizer, params, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
        optimizer.zero_grad()


def mean_steps(optimizer, params, steps, n):
    """torch's way: gradients of loss/n are summed in `p.grad`."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            grad = torch.randn(p.shape, generator=generator).to(p.dtype) / n
            p.grad = grad if p.grad is None else p.grad + grad
        if (step + 1) % n == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("rule", [("adamw",), ("clip_global_norm", "adamw"), ("clip_norm", "lion")], ids=str)
@pytest.mark.parametrize("n", [1, 3, 4])
def test_accumulated_steps_are_steps_with_the_mean(rule, n):
    program = optgen.chain(*rule)
    a, b = parameters(), parameters()
    micro_steps(training.accumulated(program, n)(a, lr=0.1, backend="numpy"), a, 3 * n)
    mean_steps(optgen.optimizer(program)(b, lr=0.1, backend="numpy"), b, 3 * n, n)
    assert all(map(torch.equal, a, b))


def test_gradients_divided_before_they_are_summed():
    """The mean itself, in float64, for an n that divides nothing exactly."""
    (p,) = params = [nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    optimizer = training.accumulated("descent", 7)(params, lr=1.0, backend="numpy")
    grads = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i, g in enumerate(grads):
        assert torch.equal(p, torch.zeros(3))
        p.grad = g.clone()
        optimizer.step()
        if i < 6:
            torch.testing.assert_close(optimizer.state[p]["acc"], grads[: i + 1].sum(0) / 7)
    torch.testing.assert_close(p.detach(), -grads.mean(0))


def test_between_steps_nothing_else_changes():
    params = parameters()
    optimizer = training.accumulated(optgen.AdamW, 4)(params, lr=0.1, backend="numpy")
    micro_steps(optimizer, params, 4)
    before = copy.deepcopy([(p.detach(), optimizer.state[p]) for p in params])
    micro_steps(optimizer, params, 3, 4)
    for p, (value, state) in zip(params, before, strict=True):
        assert torch.equal(p, value)
        kept = {k: v for k, v in optimizer.state[p].items() if k not in ("acc", "step")}
        assert kept.keys() == {"exp_avg", "exp_avg_sq"}
        assert all(torch.equal(v, state[k]) for k, v in kept.items())
        assert optimizer.state[p]["step"] == 7


@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_resumes_in_mid_accumulation_to_the_bit(state_dtype):
    make = training.accumulated(optgen.AdamW, 4)
    options = {"lr": 0.1, "backend": "numpy", "state_dtype": state_dtype}
    whole, part = parameters(dtype=torch.bfloat16), parameters(dtype=torch.bfloat16)
    a, b = make(whole, **options), make(part, **options)
    micro_steps(a, whole, 10)
    micro_steps(b, part, 6)
    assert b.state[part[0]]["acc"].dtype is (state_dtype or torch.bfloat16)
    resumed = [nn.Parameter(p.detach().clone()) for p in part]
    c = make(resumed, **options)
    c.load_state_dict(b.state_dict())
    micro_steps(c, resumed, 4, 6)
    assert all(map(torch.equal, whole, resumed))


def test_accumulation_costs_no_launch(monkeypatch):
    """One launch a micro-step for any number of tensors; with a global norm, that rule's own."""
    launches = spy(monkeypatch)
    for rule, wanted in ((("adamw",), 1), (("clip_global_norm", "adamw"), 5)):
        for make in (optgen.optimizer(optgen.chain(*rule)), training.accumulated(optgen.chain(*rule), 2)):
            for count in (2, 100):
                params = [nn.Parameter(torch.ones(3)) for _ in range(count)]
                optimizer = make(params, backend="cpu")
                for _ in range(2):
                    launches.clear()
                    micro_steps(optimizer, params, 1)
                    assert [tensors for _, tensors in launches] == [count] * wanted


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "2"])
def test_n_is_a_whole_number(n):
    with pytest.raises(ValueError, match="a whole number from 1"):
        training.accumulated("adamw", n)


def test_rules_with_a_number_for_all_tensors_are_refused():
    with pytest.raises(optgen.RuleError, match="'prodigy' has a value for all tensors"):
        training.accumulated("prodigy", 2)
