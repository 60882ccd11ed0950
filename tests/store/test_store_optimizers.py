"""Optimizers over stores, as in Gen.jl: a test for each row, over every kind of store.

Stores of files are opened again before what they hold is looked at, so that it is the files that count.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import numpy as np
import pytest
import torch

import optgen
from optgen.store.base import ParameterStore
from optgen.store.configurations import (
    ADAM,
    DecayStepGradientDescent,
    FixedStepGradientDescent,
    GradientDescent,
    RuleConf,
)
from optgen.store.context import PARAMETER_STORE_KEY, register_parameters
from optgen.store.gradients import accumulate_param_gradients
from optgen.store.memory import TorchParameterStore
from optgen.store.updates import apply_update, init_optimizer
from stores import NUMPY, THETA, A, B, C, SignAscent, again, double, fill, gradient, near, value


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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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


def test_the_optimizer_inside(store):
    """Its options can be changed and its parameters frozen, as those of any optimizer."""
    fill(store)
    optimizer = init_optimizer(FixedStepGradientDescent(0.1, **NUMPY), [A, THETA], store)
    optimizer.optimizer.param_groups[0]["lr"] = 1.0
    optimizer.optimizer.freeze(0)
    optimizer.apply_update()
    assert (value(store, A), value(store, THETA)) == (1, [1, 2])
    store.increment_gradient(THETA, [1.0, 1.0])
    optimizer.optimizer.thaw(0)
    optimizer.apply_update()
    assert value(store, THETA) == [2, 3]


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
