"""Parameter stores and updates, as in Gen.jl: a test for each row, over every kind of store.

Stores of files are opened again before what they hold is looked at, so that it is the files that count.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import numpy as np
import pytest
import torch

import optgen
from optgen import store as stores
from optgen.store import (
    ADAM,
    PARAMETER_STORE_KEY,
    DecayStepGradientDescent,
    FileParameterStore,
    FixedStepGradientDescent,
    GradientDescent,
    ParameterStore,
    ParamUpdate,
    RuleConf,
    TorchOptimConf,
    TorchParameterStore,
    accumulate_param_gradients,
    apply_update,
    get_parameters,
    get_store,
    init_optimizer,
    register_parameters,
    register_update,
)

NUMPY = {"backend": "numpy"}
A, B, C, THETA = ("foo", "a"), ("foo", "b"), ("foo", "c"), ("bar", "theta")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No test here switches the power off."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=["torch", "folder", "memory://"])
def make(request, tmp_path):
    """Makes empty stores of one kind."""

    def made():
        match request.param:
            case "torch":
                return TorchParameterStore()
            case "folder":
                return FileParameterStore(tmp_path / str(uuid4()))
        return FileParameterStore(f"memory://{uuid4()}/a store")

    return made


@pytest.fixture
def store(make):
    return make()


def again(store):
    """A store as another process finds it."""
    if not isinstance(store, FileParameterStore):
        return store
    store.flush()
    return FileParameterStore(store.url)


def value(store, id):
    return again(store).get_parameter_value(id).tolist()


def gradient(store, id):
    return again(store).get_gradient(id).tolist()


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def near(found, wanted, **tolerances):
    np.testing.assert_allclose(found, wanted, **{"rtol": 1e-11, "atol": 0, **tolerances})


def fill(store):
    """The parameters of the first row, with their gradients."""
    one = torch.ones((), dtype=torch.float64)
    store.init_parameter(A, one)
    store.init_parameter(C, 5 * one)
    store.init_parameter(THETA, double(1, 2))
    store.increment_gradient(A, 2.0)
    store.increment_gradient(C, 7.0)
    store.increment_gradient(THETA, [1.0, 3.0])


# The released API


@pytest.mark.parametrize("form", ["pairs", "dict"])
def test_gen_01_update_of_some_parameters(store, form):
    fill(store)
    pairs = [("foo", ["a"]), ("bar", ["theta"])]
    selections = [dict(pairs)] if form == "dict" else pairs
    update = ParamUpdate(FixedStepGradientDescent(0.01, **NUMPY), *selections, store=store)
    assert update.apply() is None
    near(value(store, A), 1.02)
    near(value(store, THETA), [1.01, 2.03])
    assert (value(store, C), gradient(store, C)) == (5, 7)
    assert (gradient(store, A), gradient(store, THETA)) == (0, [0, 0])


def test_gen_01_each_owner_counts_its_own_steps(store):
    fill(store)
    conf = GradientDescent(0.1, 1, **NUMPY)
    first = ParamUpdate(conf, ("foo", ["a"]), store=store)
    first.apply()
    both = ParamUpdate(conf, ("bar", ["theta"]), ("foo", ["c"]), ("foo", ["a"]), store=store)
    assert list(both.optimizers) == ["bar", "foo"]
    both.apply()
    near(value(store, THETA), [1.1, 2.3])
    assert value(store, C) == 5  # the last pair of foo wins
    ParamUpdate(conf, store=store).apply()  # no pairs, nothing to do
    ParamUpdate(conf, ("foo", ["nothing"]), store=store)
    with pytest.raises(KeyError, match="nothing"):
        ParamUpdate(conf, ("foo", ["nothing"]), store=store).apply()
    with pytest.raises(TypeError, match="pairs of an owner and a list of names"):
        ParamUpdate(conf, ("foo", "a"), store=store)


def test_gen_02_update_of_an_owner_is_a_snapshot(store):
    store.init_parameter(A, 0.0)
    store.init_parameter(("callee", "x"), 0.0)
    update = ParamUpdate(FixedStepGradientDescent(0.1, **NUMPY), "foo", store=store)
    store.init_parameter(B, 0.0)
    for id in (A, B, ("callee", "x")):
        store.increment_gradient(id, 1.0)
    update.apply()
    near(value(store, A), 0.1, rtol=1e-7)
    assert (value(store, B), value(store, ("callee", "x"))) == (0, 0)


def test_gen_03_apply_returns_none_and_updates_every_owner_once(store):
    fill(store)
    update = ParamUpdate(
        FixedStepGradientDescent(1.0, **NUMPY), ("foo", ["a"]), ("bar", ["theta"]), store=store
    )
    assert update.apply() is None
    assert (value(store, A), value(store, THETA)) == (3, [2, 5])
    update.apply()
    assert (value(store, A), value(store, THETA)) == (3, [2, 5])


def test_gen_04_fixed_step(store):
    store.init_parameter(THETA, double(0))
    store.increment_gradient(THETA, [1.0])
    ParamUpdate(FixedStepGradientDescent(0.001, **NUMPY), "bar", store=store).apply()
    assert value(store, THETA) == [0.001]
    assert gradient(store, THETA) == [0]


@pytest.mark.parametrize(
    ("step_size", "beta", "at"),
    [
        (0.1, 1, {1: 0.1, 2: 1 / 6, 3: 13 / 60}),
        (0.001, 100, {1: 0.001, 2: 0.001 + 0.101 / 102}),
    ],
)
def test_gen_05_decaying_step(store, step_size, beta, at):
    store.init_parameter(THETA, double(0))
    optimizer = init_optimizer(GradientDescent(step_size, beta, **NUMPY), [THETA], store)
    for t in range(1, max(at) + 1):
        store.increment_gradient(THETA, [1.0])
        optimizer.apply_update()
        near(value(store, THETA), [at[t]])


def test_gen_05_steps_without_gradients_count():
    store = TorchParameterStore()
    store.init_parameter(THETA, double(0))
    optimizer = init_optimizer(GradientDescent(0.001, 100, **NUMPY), [THETA], store)
    for _ in range(100):
        optimizer.apply_update()
    assert value(store, THETA) == [0]
    store.increment_gradient(THETA, [1.0])
    optimizer.apply_update()
    near(value(store, THETA), [0.000502487562], rtol=1e-9)
    with pytest.raises(TypeError):
        GradientDescent()


def test_gen_06_adam(store):
    conf = ADAM(0.001, 0.9, 0.999, 1e-8, **NUMPY)
    store.init_parameter(THETA, double(1, -2, 0.5))
    update = ParamUpdate(conf, "bar", store=store)
    for g in ([0.1, -0.2, 0.3], [-0.3, 0.4, 0.05], [0.2, 0, -0.6]):
        store.increment_gradient(THETA, g)
        update.apply()
    near(value(store, THETA), [1.00052459778, -2.00035089736, 0.501486975869])
    with pytest.raises(TypeError):
        ADAM(0.001)
    with pytest.raises(ValueError, match="adam needs lr >= 0"):
        ParamUpdate(ADAM(-1.0, 0.9, 0.999, 1e-8, **NUMPY), "bar", store=store)


def test_gen_07_gradients_of_log_probabilities_add_up(store):
    store.init_parameter(THETA, torch.ones((), dtype=torch.float64))
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for scale in (1.0, 0.5):
        theta = store.get_parameter_value(THETA)
        logp = -((theta - 3) ** 2) / 2 + 5 * x
        (dx,) = accumulate_param_gradients(logp, store, scale, arguments=[x])
        assert dx == 5  # not scaled
    assert gradient(store, THETA) == 3
    assert x.grad is None
    assert theta.grad is None
    init_optimizer(FixedStepGradientDescent(0.1, **NUMPY), [THETA], store).apply_update()
    near(value(store, THETA), 1.3)
    assert gradient(store, THETA) == 0
    with pytest.raises(ValueError, match="one number"):
        accumulate_param_gradients(theta * double(1, 2), store)


def test_gen_08_only_what_was_updated_is_reset(store):
    fill(store)
    fixed = init_optimizer(FixedStepGradientDescent(0.01, **NUMPY), [A], store)
    fixed.apply_update()
    before = value(store, A)
    fixed.apply_update()
    assert value(store, A) == before
    assert gradient(store, C) == 7
    decay = init_optimizer(GradientDescent(0.1, 1, **NUMPY), [THETA], store)
    store.reset_gradient(THETA)
    decay.apply_update()
    store.increment_gradient(THETA, [1.0, 0.0])
    decay.apply_update()
    near(value(store, THETA), [1 + 0.2 / 3, 2])


def test_gen_09_init_param(store):
    stores.init_param("foo", "a", 0.6, store)
    assert gradient(store, A) == 0
    store.increment_gradient(A, 2.0)
    stores.init_param("foo", "a", 0.7, store)
    near(value(store, A), 0.7, rtol=1e-7)
    assert gradient(store, A) == 0


def test_gen_10_get_and_set_param(store):
    with pytest.raises(KeyError, match="'a' of owner 'foo'"):
        stores.get_param("foo", "a", store)
    stores.init_param("foo", "a", 1.0, store)
    store.increment_gradient(A, 2.0)
    stores.set_param("foo", "a", 5.0, store)
    assert stores.get_param("foo", "a", store) == 5
    assert (value(store, A), gradient(store, A)) == (5, 2)
    stores.set_param("foo", "b", 6.0, store)
    assert (value(store, B), gradient(store, B)) == (6, 0)


def test_gen_11_param_grad(store):
    stores.init_param("foo", "a", 1.0, store)
    stores.set_param_grad("foo", "a", 3.0, store)
    assert stores.get_param_grad("foo", "a", store) == 3
    assert gradient(store, A) == 3
    stores.zero_param_grad("foo", "a", store)
    assert gradient(store, A) == 0
    with pytest.raises(ValueError, match=r"shape \(2,\) does not fit the parameter foo.a"):
        stores.set_param_grad("foo", "a", [1.0, 2.0], store)


def test_gen_12_what_was_not_initialised_is_named(store):
    for call in (
        store.get_parameter_value,
        store.get_gradient,
        store.reset_gradient,
        lambda id: store.set_parameter_value(id, 1.0),
        lambda id: store.set_gradient(id, 1.0),
        lambda id: store.increment_gradient(id, 1.0),
        lambda id: init_optimizer(FixedStepGradientDescent(1.0), [id], store).apply_update(),
    ):
        with pytest.raises(KeyError, match="parameter 'theta' of owner 'bar' was not initialised"):
            call(THETA)
    with pytest.raises(TypeError, match="a tuple \\(owner, name\\)"):
        store.get_parameter_value("theta")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gen_13_dtype_stays(store, dtype):
    mine = torch.tensor([1.0, 2.0], dtype=dtype)
    store.init_parameter(THETA, mine)
    store.increment_gradient(THETA, double(1, 1))
    init_optimizer(FixedStepGradientDescent(0.5, **NUMPY), [THETA], store).apply_update()
    found = again(store)
    assert found.get_parameter_value(THETA).dtype is found.get_gradient(THETA).dtype is dtype
    assert found.get_parameter_value(THETA).tolist() == [1.5, 2.5]
    assert mine.tolist() == [1, 2]


def test_gen_14_a_name_given_twice_counts_once(store):
    store.init_parameter(A, 0.0)
    store.increment_gradient(A, 1.0)
    ParamUpdate(FixedStepGradientDescent(0.1, **NUMPY), ("foo", ["a", "a"]), store=store).apply()
    near(value(store, A), 0.1, rtol=1e-7)


class SignAscent:
    """A configuration of a user's."""

    def __init__(self, step):
        self.step = step


@register_update(SignAscent, TorchParameterStore)
class SignAscentUpdate:
    def __init__(self, conf, ids, store):
        self.conf, self.ids, self.store = conf, ids, store

    def apply_update(self):
        def step(values, gradients):
            with torch.no_grad():
                for p, g in zip(values, gradients, strict=True):
                    p.add_(g.sign(), alpha=self.conf.step)

        self.store.update(self.ids, step)


def test_gen_15_custom_configuration(store):
    store.init_parameter(THETA, double(0))
    store.increment_gradient(THETA, [-7.0])
    ParamUpdate(SignAscent(0.1), ("bar", ["theta"]), store=store).apply()
    assert value(store, THETA) == [-0.1]
    assert gradient(store, THETA) == [0]


def test_gen_15_any_rule_is_a_configuration(store):
    store.init_parameter(THETA, double(0))
    for rule in ("signum", "hyper(lr=1)\np = p - lr*sign(g)"):
        store.init_parameter(THETA, double(0))
        store.increment_gradient(THETA, [-7.0])
        init_optimizer(RuleConf(rule, lr=0.1, **NUMPY), [THETA], store).apply_update()
        assert value(store, THETA) == [-0.1]


def test_gen_15_inputs_of_a_rule():
    """What a rule declares with `input()` is handed to the update, by ID."""
    store = TorchParameterStore()
    store.init_parameter(A, double(1))
    store.init_parameter(B, double(1, 1))
    optimizer = init_optimizer(RuleConf("hyper(lr=1)\ninput(h)\np = p - lr*g/h", **NUMPY), [A, B], store)
    store.increment_gradient(A, [1.0])
    store.increment_gradient(B, [1.0, 1.0])
    optimizer.apply_update(h={B: double(4, 8), A: double(2)})
    assert (value(store, A), value(store, B)) == ([1.5], [1.25, 1.125])


@pytest.mark.parametrize("maximize", [True, False])
def test_gen_16_optimizers_of_torch(store, maximize):
    fill(store)
    mine = TorchOptimConf(torch.optim.SGD, lr=0.1, maximize=maximize)
    ParamUpdate(mine, "bar", store=store).apply()
    other = TorchParameterStore()
    fill(other)
    ParamUpdate(FixedStepGradientDescent(0.1, maximize=maximize, **NUMPY), "bar", store=other).apply()
    assert value(store, THETA) == value(other, THETA)
    assert gradient(store, THETA) == [0, 0]


def test_gen_17_train(store):
    store.init_parameter(THETA, torch.zeros((), dtype=torch.float64))
    seen, applied = [], []
    update = ParamUpdate(FixedStepGradientDescent(0.1, **NUMPY), "bar", store=store)

    class Counting:
        def apply(self):
            applied.append(gradient(store, THETA))
            update.apply()

    def model(x):
        return -((store.get_parameter_value(THETA) - x) ** 2) / 2

    options = {"num_epoch": 4, "epoch_size": 5, "num_minibatch": 3, "minibatch_size": 2, "evaluation_size": 1}
    history = stores.train(
        model, lambda: 1.0, Counting(), store=store, callback=lambda *a: seen.append(a), **options
    )
    assert len(history) == 4
    assert len(applied) == 4 * 3
    near(applied[:2], [2, 2 * 0.8])
    assert [s[:2] for s in seen] == [(e, m) for e in range(1, 5) for m in range(1, 4)]
    near([s[2] for s in seen], [-(0.8 ** (2 * i)) / 2 for i in range(12)])
    near(history, [-(0.8 ** (6 * i)) / 2 for i in range(1, 5)])
    with pytest.raises(ValueError, match="a minibatch has 1 to epoch_size=1 data"):
        stores.train(model, lambda: 1.0, update, store=store, minibatch_size=2)


# Stores


def test_gen_20_one_script_for_every_store(make):
    """The same 20 steps of Adam in each kind of store and in none give the same bits."""
    store, p = make(), torch.nn.Parameter(torch.linspace(-1, 1, 7))
    store.init_parameter(THETA, p)
    mine = init_optimizer(ADAM(0.01, 0.9, 0.999, 1e-8, **NUMPY), [THETA], store)
    theirs = optgen.Adam([p], lr=0.01, maximize=True, **NUMPY)
    for _ in range(20):
        accumulate_param_gradients(-(store.get_parameter_value(THETA) ** 4).sum(), store)
        mine.apply_update()
        p.grad = torch.autograd.grad(-(p**4).sum(), p)[0]
        theirs.step()
    assert torch.equal(again(store).get_parameter_value(THETA), p)


def script(store, backend):
    """A few steps, and where they led."""
    store.init_parameter(THETA, torch.linspace(-1, 1, 1000))
    optimizer = init_optimizer(ADAM(0.01, 0.9, 0.999, 1e-8, backend=backend), [THETA], store, name="adam")
    for _ in range(5):
        accumulate_param_gradients(-(store.get_parameter_value(THETA) ** 4).sum(), store)
        optimizer.apply_update()
    return store.get_parameter_value(THETA).detach().cpu()


@pytest.mark.gpu
def test_gen_20_the_same_script_on_a_gpu(tmp_path):
    store = TorchParameterStore(device="cuda")
    found = script(store, "auto")
    assert store.get_parameter_value(THETA).is_cuda
    assert store.get_gradient(THETA).is_cuda
    wanted = script(TorchParameterStore(), "numpy")
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)  # its powers are the GPU's
    files = FileParameterStore(tmp_path / "store", device="cuda")
    assert torch.equal(script(files, "auto"), found)
    back = FileParameterStore(files.url, device="cuda")
    assert back.get_parameter_value(THETA).is_cuda
    assert torch.equal(back.get_parameter_value(THETA).cpu(), found)


def test_gen_21_stores_are_independent(make):
    one, other = make(), make()
    one.init_parameter(THETA, 1.0)
    with pytest.raises(KeyError, match="theta"):
        again(other).get_parameter_value(THETA)
    assert other.ids() == []
    assert one.ids() == [THETA]


def test_gen_22_default_store(store):
    owner = object()
    stores.init_param(owner, "x", 1.0)
    default = stores.default_parameter_store
    assert default.get_parameter_value((owner, "x")) == 1
    before = default.ids()
    store.init_parameter(A, 1.0)
    store.increment_gradient(A, 1.0)
    init_optimizer(FixedStepGradientDescent(1.0, **NUMPY), [A], store).apply_update()
    assert default.ids() == before
    stores.default_parameter_store.increment_gradient((owner, "x"), 2.0)
    ParamUpdate(FixedStepGradientDescent(1.0, **NUMPY), owner).apply()
    assert stores.get_param(owner, "x") == 3


def test_gen_23_contexts(store):
    assert get_store() is get_store(stores.default_parameter_context) is stores.default_parameter_store
    assert get_store({PARAMETER_STORE_KEY: store}) is store
    with pytest.raises(TypeError, match="3, which is no ParameterStore"):
        get_store({PARAMETER_STORE_KEY: 3})
    with pytest.raises(KeyError, match="parameter_store"):
        get_store({})


def test_gen_24_owners_are_apart(store):
    store.init_parameter(("f", "x"), 1.0)
    store.init_parameter(("g", "x"), 2.0)
    store.increment_gradient(("g", "x"), 3.0)
    assert (value(store, ("f", "x")), value(store, ("g", "x"))) == (1, 2)
    assert (gradient(store, ("f", "x")), gradient(store, ("g", "x"))) == (0, 3)


def test_gen_24_modules_are_owners():
    store, first, second = TorchParameterStore(), torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    for owner in (first, second):
        store.init_parameter((owner, "weight"), owner.weight, copy=False)
    assert store.get_parameter_value((first, "weight")) is first.weight
    before = [m.weight.detach().clone() for m in (first, second)]
    accumulate_param_gradients(first(torch.ones(2)), store)
    ParamUpdate(FixedStepGradientDescent(1.0, **NUMPY), first, store=store).apply()
    assert torch.equal(first.weight, before[0] + 1)
    assert torch.equal(second.weight, before[1])


def test_gen_25_init_parameter(store):
    mine = double(1, 2)
    store.init_parameter(THETA, mine)
    mine[0] = 9
    assert (value(store, THETA), gradient(store, THETA)) == ([1, 2], [0, 0])
    store.increment_gradient(THETA, [1.0, 1.0])
    assert store.init_parameter(THETA, [1.0, 2.0, 3.0]) is None
    assert (value(store, THETA), gradient(store, THETA)) == ([1, 2, 3], [0, 0, 0])
    store.init_parameter(THETA, mine, copy=False)
    assert store.get_parameter_value(THETA).data_ptr() == mine.data_ptr()
    array = np.array([1.0, 2.0])
    store.init_parameter(THETA, array, copy=False)
    array[0] = 7
    assert store.get_parameter_value(THETA).tolist() == [7, 2]
    for wrong in ([1.0], torch.tensor([1])):
        with pytest.raises(ValueError, match="copy=False takes a floating-point tensor or array"):
            store.init_parameter(THETA, wrong, copy=False)
    for wrong in ("text", torch.tensor(1j)):
        with pytest.raises(ValueError, match=r"not a number|parameters are real"):
            store.init_parameter(THETA, wrong)
    store.init_parameter(THETA, 3)
    assert store.get_parameter_value(THETA).dtype is torch.get_default_dtype()


def test_gen_26_increment_gradient(store):
    store.init_parameter(A, torch.ones((), dtype=torch.float64))
    store.increment_gradient(A, 1.1)
    assert gradient(store, A) == 1.1
    store.increment_gradient(A, 1.1, 2.0)
    near(gradient(store, A), 3.3)
    store.init_parameter(THETA, double(1, 2))
    store.increment_gradient(THETA, [1.1, 1.2])
    store.increment_gradient(THETA, double(1.1, 1.2), 2.0)
    near(gradient(store, THETA), [3.3, 3.6])
    for wrong in (1.0, [1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=r"bar.theta, whose shape is \(2,\)"):
            store.increment_gradient(THETA, wrong)
    near(gradient(store, THETA), [3.3, 3.6])


def test_gen_27_reset_gradient(store):
    store.init_parameter(A, 1.0)
    store.increment_gradient(A, 3.3)
    store.reset_gradient(A)
    assert gradient(store, A) == 0
    with pytest.raises(KeyError, match="'b' of owner 'foo'"):
        store.reset_gradient(B)


def test_gen_28_live_and_copied(store):
    store.init_parameter(THETA, double(1, 2))
    live, copied = store.get_gradient(THETA), store.get_gradient(THETA, copy=True)
    assert store.get_parameter_value(THETA) is store.get_parameter_value(THETA)
    store.increment_gradient(THETA, [1.0, 1.0])
    assert (live.tolist(), copied.tolist()) == ([1, 1], [0, 0])


def test_gen_29_set_parameter_value(store):
    store.init_parameter(A, 1.0)
    store.increment_gradient(A, 3.0)
    store.set_parameter_value(A, 2.0)
    assert (value(store, A), gradient(store, A)) == (2, 3)
    with pytest.raises(ValueError, match=r"a value of shape \(2,\) does not fit the parameter foo.a"):
        store.set_parameter_value(A, [1.0, 2.0])
    assert value(store, A) == 2


def test_gen_30_local_parameters(store):
    assert store.local_parameters("foo") == {}
    store.init_parameter(A, 1.0)
    store.init_parameter(B, 2.0)
    store.init_parameter(THETA, 3.0)
    assert {name: v.item() for name, v in again(store).local_parameters("foo").items()} == {"a": 1, "b": 2}


def test_gen_31_register_parameters(store):
    owner, other = object(), object()
    register_parameters(owner, ["a", (other, "b")])
    with pytest.raises(ValueError, match="are registered already"):
        register_parameters(owner, ["a"])
    with pytest.raises(ValueError, match="not 3"):
        register_parameters(object(), [3])
    with pytest.raises(ValueError, match="not the string 'ab'"):
        register_parameters(object(), "ab")
    context = {PARAMETER_STORE_KEY: store}
    assert get_parameters(owner, context) == {store: {(owner, "a"), (other, "b")}}
    stores.unregister_parameters(owner)
    assert get_parameters(owner, context) == {}
    register_parameters(owner, lambda given: {get_store(given): {A}})
    assert get_parameters(owner, context) == {store: {A}}


def test_gen_31_gradient_of_a_parameter_that_was_not_registered(store):
    owner = str(uuid4())
    for name in ("a", "b"):
        store.init_parameter((owner, name), 1.0)
    register_parameters(owner, ["a"])
    a, b = (store.get_parameter_value((owner, name)) for name in ("a", "b"))
    accumulate_param_gradients(2 * a, store, owner=owner)
    with pytest.raises(ValueError, match=r"\.b, which it is not registered to use"):
        accumulate_param_gradients(a * b, store, owner=owner)
    assert (gradient(store, (owner, "a")), gradient(store, (owner, "b"))) == (2, 0)


def test_gen_32_parameters_of_what_is_called(make):
    one, other = make(), make()
    f, g = object(), object()
    assert get_parameters(f) == {}
    register_parameters(f, ["x"], calls=[g])
    register_parameters(g, lambda _: {other: {(g, "y")}, one: {(g, "z")}}, calls=[f])
    found = get_parameters(f, {PARAMETER_STORE_KEY: one})
    assert found == {one: {(f, "x"), (g, "z")}, other: {(g, "y")}}


# Optimizers


def test_gen_33_configurations(store):
    for conf in (FixedStepGradientDescent(0.01, **NUMPY), FixedStepGradientDescent(step_size=0.01, **NUMPY)):
        store.init_parameter(A, torch.ones((), dtype=torch.float64))
        store.init_parameter(B, double(1, 2))
        store.init_parameter(C, 5.0)
        for id, g in ((A, 2.0), (B, [1.0, 3.0]), (C, 7.0)):
            store.increment_gradient(id, g)
        apply_update(init_optimizer(conf, [A, B], store))
        near(value(store, A), 1.02)
        near(value(store, B), [1.01, 2.03])
        assert (value(store, C), gradient(store, C)) == (5, 7)
        assert (gradient(store, A), gradient(store, B)) == (0, [0, 0])
    assert DecayStepGradientDescent is GradientDescent
    assert DecayStepGradientDescent(step_size_init=0.1, step_size_beta=1) == GradientDescent(0.1, 1)
    with pytest.raises(TypeError):
        FixedStepGradientDescent()


def test_gen_34_update_is_in_place(store):
    fill(store)
    live = store.get_parameter_value(THETA)
    place, accumulator = live.data_ptr(), store.get_gradient(THETA)
    optimizer = init_optimizer(GradientDescent(0.1, 1, **NUMPY), {THETA, ("later", "x")}, store)
    store.init_parameter(("later", "x"), double(0))  # looked up when it is applied
    assert optimizer.apply_update() is None
    assert store.get_parameter_value(THETA) is live
    assert live.data_ptr() == place
    near(live.tolist(), [1.1, 2.3])
    assert store.get_gradient(THETA) is accumulator
    assert accumulator.tolist() == [0, 0]
    assert live.grad is None


def test_gen_34_what_is_initialised_again_is_updated():
    store = TorchParameterStore()
    store.init_parameter(A, double(1))
    adam = init_optimizer(RuleConf("adam", lr=0.1, **NUMPY), [A], store)
    decay = init_optimizer(GradientDescent(0.1, 1, **NUMPY), [A], store)
    for optimizer in (adam, decay):
        store.increment_gradient(A, [1.0])
        optimizer.apply_update()
    store.init_parameter(A, double(0))  # the same shape: the state stays
    store.increment_gradient(A, [1.0])
    adam.apply_update()
    assert adam.state_dict()["state"][0]["step"] == 2
    store.init_parameter(A, double(0, 0, 0))  # another: it begins again, but a count alone goes on
    store.increment_gradient(A, [1.0, 1.0, 1.0])
    adam.apply_update()
    assert adam.state_dict()["state"][0]["step"] == 1
    near(value(store, A), [0.1, 0.1, 0.1], rtol=1e-7)
    store.init_parameter(A, double(0, 0))
    store.increment_gradient(A, [1.0, 1.0])
    decay.apply_update()
    near(value(store, A), [0.2 / 3, 0.2 / 3])


def test_gen_35_parameters_in_several_stores(make):
    one, other = make(), TorchParameterStore()
    f, g = str(uuid4()), str(uuid4())
    one.init_parameter((f, "x"), double(1))
    other.init_parameter((g, "y"), double(1, 1))
    register_parameters(f, ["x"], calls=[g])
    register_parameters(g, lambda _: {other: {(g, "y")}})
    context = {PARAMETER_STORE_KEY: one}
    conf = DecayStepGradientDescent(0.1, 1, **NUMPY)
    by_owner = init_optimizer(conf, f, context=context)
    by_store = init_optimizer(conf, {one: {(f, "x")}, other: [(g, "y")]})
    for optimizer in (by_owner, by_store):
        one.init_parameter((f, "x"), double(1))
        other.init_parameter((g, "y"), double(1, 1))
        for step in (0.1, 0.2 / 3):
            before = value(one, (f, "x")) + value(other, (g, "y"))
            one.increment_gradient((f, "x"), [1.0])
            other.increment_gradient((g, "y"), [2.0, 3.0])
            assert optimizer.apply_update() is None
            after = value(one, (f, "x")) + value(other, (g, "y"))
            near(np.subtract(after, before), [step, 2 * step, 3 * step])
    saved = by_owner.state_dict()
    fresh = init_optimizer(conf, f, context=context)
    fresh.load_state_dict(saved)
    assert fresh.state_dict()["optimizers"][1]["state"][0]["step"] == 2
    wrong = init_optimizer(FixedStepGradientDescent(0.1, **NUMPY), {other: [(g, "y")]}).state_dict()
    with pytest.raises(ValueError, match="another rule"):
        fresh.load_state_dict({"optimizers": [saved["optimizers"][0], wrong["optimizers"][0]]})
    assert [o["state"][0]["step"] for o in fresh.state_dict()["optimizers"]] == [2, 2]
    with pytest.raises(ValueError, match="for 2 stores, not 1"):
        init_optimizer(conf, {one: [(f, "x")]}).load_state_dict(saved)
    with pytest.raises(ValueError, match="no parameters are registered for owner 'nobody'"):
        init_optimizer(conf, "nobody", context=context)


class TextStore(ParameterStore):
    """A toy of another make: each number in a text file of its own."""

    def __init__(self, folder):
        self.folder = folder

    def _file(self, kind, id):
        return self.folder / f"{kind}-{id[0]}-{id[1]}"

    def _read(self, kind, id):
        return torch.tensor(float(self._file(kind, id).read_text()), dtype=torch.float64)

    def init_parameter(self, id, value, *, copy=True):
        self._file("value", id).write_text(str(float(value)))
        self.reset_gradient(id)

    def ids(self):
        return [tuple(path.name.split("-")[1:]) for path in sorted(self.folder.glob("value-*"))]

    def get_parameter_value(self, id):
        return self._read("value", id)

    def set_parameter_value(self, id, value):
        self._file("value", id).write_text(str(float(value)))

    def get_gradient(self, id, *, copy=False):
        return self._read("gradient", id)

    def increment_gradient(self, id, increment, scale=1.0):
        self._file("gradient", id).write_text(str(float(self.get_gradient(id)) + float(increment) * scale))

    def reset_gradient(self, id):
        self._file("gradient", id).write_text("0.0")


def test_gen_36_a_store_of_ones_own(tmp_path):
    store = TextStore(tmp_path)
    store.init_parameter(A, 1.0)
    store.increment_gradient(A, 1.0)
    store.increment_gradient(A, 0.5, 2.0)
    init_optimizer(FixedStepGradientDescent(0.01, **NUMPY), [A], store).apply_update()
    assert (tmp_path / "value-foo-a").read_text() == "1.02"
    assert store.get_gradient(A) == 0
    adam = init_optimizer(RuleConf("adam", **NUMPY), [A], store)
    for _ in range(3):
        store.increment_gradient(A, 1.0)
        adam.apply_update()
    near(float((tmp_path / "value-foo-a").read_text()), 1.023, rtol=1e-9)
    assert adam.state_dict()["state"][0]["step"] == 3
    store.set_gradient(A, 4.0)
    assert store.get_gradient(A) == 4
    assert store.local_parameters("foo").keys() == {"a"}
    with pytest.raises(NotImplementedError, match="configuration SignAscent and the store TextStore"):
        init_optimizer(SignAscent(0.1), [A], store)
    with pytest.raises(NotImplementedError, match="configuration int and the store TorchParameterStore"):
        init_optimizer(3, [A], TorchParameterStore())
    with pytest.raises(NotImplementedError, match="TextStore keeps no optimizer's state"):
        init_optimizer(FixedStepGradientDescent(0.01, **NUMPY), [A], store, name="x")


def in_threads(count, work):
    """Run `work(i)` in so many threads at once."""
    start = threading.Barrier(count)

    def run(i):
        start.wait()
        work(i)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, i) for i in range(count)]:
            done.result()


def test_gen_37_threads_increment_one_gradient(store):
    store.init_parameter(A, 0.0)
    store.init_parameter(THETA, torch.zeros(3))

    def numbers(_):
        for _ in range(10_000):
            store.increment_gradient(A, 1.0)

    def arrays(_):
        ones = torch.ones(3)
        for _ in range(2000):
            store.increment_gradient(THETA, ones)

    in_threads(8, numbers)
    in_threads(8, arrays)
    assert gradient(store, A) == 80_000.0
    assert gradient(store, THETA) == [16_000.0] * 3


def test_gen_37_updates_lose_no_increment():
    """What is added while an update runs counts for the next one."""
    store = TorchParameterStore()
    store.init_parameter(A, double(0))
    optimizer = init_optimizer(FixedStepGradientDescent(1.0, **NUMPY), [A], store)

    def work(i):
        for _ in range(1000):
            if i:
                store.increment_gradient(A, [1.0])
            else:
                optimizer.apply_update()

    in_threads(5, work)
    optimizer.apply_update()
    assert value(store, A) == [4000]


def test_gen_37_minibatch_in_a_thread_pool(store):
    torch.manual_seed(0)
    xs, weights = torch.randn(100, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    store.init_parameter(THETA, weights)

    def accumulate(x):
        accumulate_param_gradients(-((store.get_parameter_value(THETA) @ x - 1) ** 2), store)

    for x in xs:
        accumulate(x)
    serial = np.array(gradient(store, THETA))
    store.reset_gradient(THETA)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(accumulate, xs))
    near(gradient(store, THETA), serial, rtol=1e-12)


@pytest.mark.gpu
def test_gen_37_threads_and_streams_of_a_gpu():
    store = TorchParameterStore(device="cuda")
    store.init_parameter(A, 0.0)
    store.init_parameter(THETA, torch.zeros(1_000_000))

    def work(i):
        ones = torch.ones(1_000_000, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(500):
                store.increment_gradient(THETA, ones)
            for _ in range(10_000):
                store.increment_gradient(A, 1.0)

    in_threads(8, work)
    assert store.get_gradient(A).item() == 80_000
    assert store.get_gradient(THETA).unique().tolist() == [4000]


def test_gen_38_optimizer_state_goes_on(store):
    conf = GradientDescent(0.1, 1, **NUMPY)
    store.init_parameter(A, double(0))
    optimizer = init_optimizer(conf, [A], store)
    for _ in range(5):
        optimizer.apply_update()
    fresh = init_optimizer(conf, [A], store)
    fresh.load_state_dict(optimizer.state_dict())
    store.increment_gradient(A, [1.0])
    fresh.apply_update()
    near(value(store, A), [0.1 * 2 / (1 + 6)])
    with pytest.raises(ValueError, match=r"for the parameters \['foo.a'\], the optimizer for \['foo.b'\]"):
        init_optimizer(conf, [B], store).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="another rule"):
        init_optimizer(FixedStepGradientDescent(1.0, **NUMPY), [A], store).load_state_dict(
            optimizer.state_dict()
        )


def test_gen_38_a_name_keeps_the_state_in_the_store(store):
    conf = ADAM(0.01, 0.9, 0.999, 1e-8, **NUMPY)
    straight = TorchParameterStore()
    for place in (store, straight):
        place.init_parameter(THETA, double(1, -2))
    whole = init_optimizer(conf, [THETA], straight)
    for _ in range(3):
        optimizer = init_optimizer(conf, {THETA}, store, name="adam")
        for g in ([1.0, -3.0], [0.5, 2.0]):
            for place, each in ((store, optimizer), (straight, whole)):
                place.increment_gradient(THETA, g)
                each.apply_update()
        store = again(store)
    assert value(store, THETA) == value(straight, THETA)
    assert init_optimizer(conf, [THETA], store, name="adam").state_dict()["state"][0]["step"] == 6
    assert init_optimizer(conf, [THETA], store).state_dict()["state"] == {}
    with pytest.raises(ValueError, match="another rule"):
        init_optimizer(FixedStepGradientDescent(1.0), [THETA], store, name="adam")


# Every configuration is the class of its rule


@pytest.mark.parametrize(
    ("conf", "cls", "options"),
    [
        (FixedStepGradientDescent(0.1, **NUMPY), "Descent", {"lr": 0.1}),
        (GradientDescent(0.1, 10, **NUMPY), "GradientDescent", {"lr": 0.1, "beta": 10}),
        (ADAM(0.01, 0.8, 0.99, 1e-6, **NUMPY), "Adam", {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6}),
        (RuleConf("adamw", lr=0.01, **NUMPY), "AdamW", {"lr": 0.01}),
        (RuleConf("rprop", **NUMPY), "Rprop", {}),
        (RuleConf("lamb", lr=0.01, **NUMPY), "LAMB", {"lr": 0.01}),
    ],
)
def test_a_configuration_is_the_class_of_its_rule(conf, cls, options):
    """50 steps of three tensors, bit by bit."""
    torch.manual_seed(1)
    store, shapes = TorchParameterStore(), [(), (5,), (3, 4)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    ids = [("net", str(shape)) for shape in shapes]
    store.init_parameters(dict(zip(ids, params, strict=True)))
    mine = init_optimizer(conf, ids, store)
    theirs = getattr(optgen, cls)(params, maximize=True, **options, **NUMPY)
    for _ in range(50):
        for p, id in zip(params, ids, strict=True):
            p.grad = torch.randn(p.shape)
            store.increment_gradient(id, p.grad)
        mine.apply_update()
        theirs.step()
    for p, id in zip(params, ids, strict=True):
        assert torch.equal(store.get_parameter_value(id), p)
