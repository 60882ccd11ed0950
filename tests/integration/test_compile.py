"""torch.compile around a whole training step, and around the step alone.

The optimizer's step is one call in the compiled function (optgen/optim/untraced.py): what is before and after
it is compiled, and a learning rate that changes compiles nothing again.
"""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

import optgen

STEPS, WARM, BATCH = 12, 3, 8
SETTINGS = {
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Lion": {"lr": 1e-3},
    "LAMB": {"lr": 1e-2},
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "AdamWScheduleFree": {"lr": 1e-2},
}


@pytest.fixture(autouse=True)
def fresh():
    """A compiler that has seen nothing."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def train(perceptron, examples):
    """`train(library, name, …)`: the losses and the weights of one run.

    Args of the function: `wrap` makes the training step, or the optimizer's step where `only_step`, into
    another function; with `schedule` the learning rate falls at every step; after WARM steps a
    recompilation is an error.
    """

    def run(library, name, wrap=None, schedule=True, only_step=False):
        model = perceptron().eval()  # without dropout, whose masks depend on the compiler
        opt = getattr(library, name)(model.parameters(), **SETTINGS[name])
        slope = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=STEPS) if schedule else None
        advance = wrap(opt.step) if wrap and only_step else opt.step

        def train_step(features, labels):
            loss = cross_entropy(model(features), labels)
            loss.backward()
            advance()
            opt.zero_grad()
            return loss.detach()

        step = wrap(train_step) if wrap and not only_step else train_step
        losses = []
        for i in range(STEPS):
            with torch._dynamo.config.patch(error_on_recompile=i >= WARM):
                losses.append(step(*examples[i * BATCH : (i + 1) * BATCH]).item())
            if slope:
                slope.step()
        assert library is not optgen or {float(s["step"]) for s in opt.state.values()} == {STEPS}
        return losses, [p.detach() for p in model.parameters()]

    return run


def compiler(backend, **options):
    return lambda function: torch.compile(function, backend=backend, **options)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("schedule", [False, True])
def test_a_compiled_training_step_has_the_bits_of_the_eager_one(train, same_bits, name, schedule):
    losses, weights = train(optgen, name, compiler("eager"), schedule)
    assert counters["stats"]["unique_graphs"] == 2  # the loss, and its detach() after the step
    expected, others = train(optgen, name, None, schedule)
    assert losses == expected
    same_bits(weights, others)


def test_autograd_compiled_ahead_of_time(train, same_bits):
    losses, weights = train(optgen, "AdamW", compiler("aot_eager"))
    expected, others = train(optgen, "AdamW")
    assert losses == expected
    same_bits(weights, others)


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_inductor(train):
    """Its kernels for the model need not round as eager ones do: compared with torch.optim, to rounding."""
    losses, weights = train(optgen, "SGD", compiler("inductor"))
    assert counters["stats"]["unique_graphs"] == 2
    assert counters["inductor"]
    expected, others = train(torch.optim, "SGD")
    assert losses == pytest.approx(expected, rel=1e-5)
    for p, q in zip(weights, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_beside_torch(train):
    losses, _ = train(optgen, "AdamW", compiler("eager"))
    expected, _ = train(torch.optim, "AdamW")
    assert losses == pytest.approx(expected, rel=1e-6)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", ["AdamW", "AdamWScheduleFree"])
@pytest.mark.parametrize("schedule", [False, True])
def test_the_compiled_step_alone(train, same_bits, name, schedule):
    losses, weights = train(optgen, name, compiler("eager"), schedule, only_step=True)
    assert counters["stats"]["unique_graphs"] == 0
    expected, others = train(optgen, name, None, schedule)
    assert losses == expected
    same_bits(weights, others)


def test_two_optimizers_and_their_hooks_in_one_step(perceptron, examples, same_bits):
    def run(wrap):
        model, called = perceptron().eval(), []
        opts = [
            optgen.AdamW(model[0].parameters(), **SETTINGS["AdamW"]),
            optgen.SGD(model[1:].parameters(), **SETTINGS["SGD"]),
        ]
        for opt in opts:
            opt.register_step_post_hook(lambda opt, args, kwargs: called.append(type(opt).__name__))

        def train_step(features, labels):
            cross_entropy(model(features), labels).backward()
            for opt in opts:
                opt.step()
                opt.zero_grad()

        step = wrap(train_step)
        for i in range(STEPS):
            with torch._dynamo.config.patch(error_on_recompile=i >= WARM):
                step(*examples[i * BATCH : (i + 1) * BATCH])
        assert called == ["AdamW", "SGD"] * STEPS
        return [p.detach() for p in model.parameters()]

    same_bits(run(compiler("eager")), run(lambda function: function))


def test_a_step_with_a_closure(perceptron, examples, same_bits):
    def run(wrap):
        model = perceptron().eval()
        opt = optgen.AdamW(model.parameters(), **SETTINGS["AdamW"])

        def train_step(features, labels):
            def closure():
                opt.zero_grad()
                loss = cross_entropy(model(features), labels)
                loss.backward()
                return loss

            return opt.step(closure).detach()

        step = wrap(train_step)
        losses = [step(*examples[:BATCH]).item() for _ in range(STEPS)]
        assert losses[-1] < losses[0] - 0.1
        return [p.detach() for p in model.parameters()]

    same_bits(run(compiler("eager")), run(lambda function: function))


def test_a_whole_graph_cannot_hold_a_step(perceptron):
    """fullgraph=True is for the model; around a step it is an error that says why, and moves nothing."""
    model = perceptron()
    opt = optgen.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="optgen's kernels are compiled already"):
        torch.compile(lambda: opt.step(), backend="eager", fullgraph=True)()
    assert opt.state == {}
