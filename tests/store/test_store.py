"""Parameter stores, as in Gen.jl: a test for each row, over every kind of store.

Stores of files are opened again before what they hold is looked at, so that it is the files that count.
"""

from __future__ import annotations

from uuid import uuid4

import numpy as np
import pytest
import torch

import optgen
from optgen import store as stores
from optgen.store.configurations import ADAM, FixedStepGradientDescent
from optgen.store.context import PARAMETER_STORE_KEY, get_parameters, get_store, register_parameters
from optgen.store.files import FileParameterStore
from optgen.store.gradients import accumulate_param_gradients
from optgen.store.memory import TorchParameterStore
from optgen.store.released import ParamUpdate
from optgen.store.updates import init_optimizer
from stores import NUMPY, THETA, A, B, again, double, gradient, near, value


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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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
