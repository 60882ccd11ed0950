"""The interface of Gen.jl's releases: a test for each row, over every kind of store.

Stores of files are opened again before what they hold is looked at, so that it is the files that count.
"""

from __future__ import annotations

import pytest
import torch

from optgen import store as stores
from optgen.store.configurations import (
    ADAM,
    FixedStepGradientDescent,
    GradientDescent,
    RuleConf,
    TorchOptimConf,
)
from optgen.store.gradients import accumulate_param_gradients
from optgen.store.memory import TorchParameterStore
from optgen.store.released import ParamUpdate
from optgen.store.updates import init_optimizer
from stores import NUMPY, THETA, A, B, C, SignAscent, again, double, fill, gradient, near, value


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


def test_gen_07_gradients_in_several_stores(make):
    one, other = make(), make()
    one.init_parameter(A, 2.0)
    other.init_parameter(A, 3.0)
    logp = one.get_parameter_value(A) * other.get_parameter_value(A) ** 2
    accumulate_param_gradients(logp, [one, other])
    assert (gradient(one, A), gradient(other, A)) == (9, 12)
    assert accumulate_param_gradients(torch.ones(()), one, arguments=[logp]) == (None,)


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
