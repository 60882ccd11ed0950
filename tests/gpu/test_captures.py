"""CUDA graphs on the simulated GPU: replays are steps, whatever eager steps come in between."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optgen
from optgen.launch import uploads
from virtual_gpu.capture import Graph

SHAPES = ((64, 33), (513,), (3,))
RULES = ["adamw", "nadam", "lamb", "prodigy", "sgld"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Training:
    """An optimizer with gradients that stay where they are, and the reference beside it."""

    def __init__(self, rule, warm=2):
        cls = optgen.optimizer(rule)
        self.sides = []
        for backend in ("triton", "numpy"):
            params = [nn.Parameter(torch.randn(s, generator=seeded(i))) for i, s in enumerate(SHAPES)]
            options = {"capturable": True} if backend == "triton" else {}
            self.sides.append((params, cls(params, lr=0.1, backend=backend, **options)))
        (self.params, self.optimizer), (self.others, self.reference) = self.sides
        self.static = [torch.zeros_like(p) for p in self.params]
        for p, g in zip(self.params, self.static, strict=True):
            p.grad = g
        self.k = 0
        for _ in range(warm):
            self.fill()
            self.both()

    def fill(self):
        """The next gradients, in the same memory."""
        self.k += 1
        for p, q, g in zip(self.params, self.others, self.static, strict=True):
            g.copy_(torch.randn(p.shape, generator=seeded(100 + self.k)))
            q.grad = g.clone()

    def both(self):
        """An eager step, with the gradients that parameters have."""
        for p, q in zip(self.params, self.others, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        for _, optimizer in self.sides:
            optimizer.step()

    def captured(self, gpu):
        graph = Graph(gpu)
        with graph.capture():
            self.optimizer.step()
        return graph

    def replay(self, graph):
        self.fill()
        graph.replay()
        self.reference.step()

    def check(self):
        for p, q in zip(self.params, self.others, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)
            steps = [float(o.state[x]["step"]) for x, o in ((p, self.optimizer), (q, self.reference))]
            assert steps[0] == steps[1]


@pytest.mark.parametrize("rule", RULES)
def test_replays_are_steps(gpu, rule):
    training = Training(rule)
    before = [p.detach().clone() for p in training.params]
    graph = training.captured(gpu)
    assert all(map(torch.equal, training.params, before))  # a capture is no step
    for _ in range(3):
        training.replay(graph)
        training.check()


def nothing(training):
    pass


def another_lr(training):
    for _, optimizer in training.sides:
        optimizer.param_groups[0]["lr"] = 0.01


def other_gradients(training):
    for p in training.params:
        p.grad = torch.randn(p.shape, generator=seeded(7))


def misaligned_gradients(training):
    for p in training.params:
        p.grad = torch.randn(p.numel() + 1, generator=seeded(7))[1:].view(p.shape)


def no_gradient(training):
    training.params[1].grad = None


def frozen(training):
    for params, optimizer in training.sides:
        optimizer.freeze(params[1])


@pytest.mark.parametrize("rule", ["adamw", "prodigy"])
@pytest.mark.parametrize(
    "change", [nothing, another_lr, other_gradients, misaligned_gradients, no_gradient, frozen]
)
def test_eager_steps_leave_a_graph_whole(gpu, rule, change):
    """A replay reads its own tables, and hyperparameters as the groups have them."""
    training = Training(rule)
    graph = training.captured(gpu)
    training.replay(graph)
    change(training)
    for _ in range(2):
        training.both()
    training.check()
    for (params, optimizer), grads in zip(training.sides, (training.static, None), strict=True):
        optimizer.thaw(0)
        for i, p in enumerate(params):
            p.grad = p.grad if grads is None else grads[i]
    for _ in range(2):
        training.replay(graph)
        training.check()


def test_what_is_sent_in_a_capture_is_valid_in_eager_steps(gpu):
    """Where gradients lie is new in most captures, as those of the backward pass are allocated there."""
    training = Training("adamw")
    training.static = [torch.zeros_like(p) for p in training.params]
    for p, g in zip(training.params, training.static, strict=True):
        p.grad = g
    graph = training.captured(gpu)
    training.fill()
    training.both()  # no replay has sent anything yet
    training.check()
    training.replay(graph)
    training.check()


def test_several_graphs(gpu):
    training = Training("adamw")
    graphs = [training.captured(gpu) for _ in range(uploads.SPARES)]
    with pytest.raises(RuntimeError, match="make a step outside of it first"):
        training.captured(gpu)
    training.fill()
    training.both()
    graphs.append(training.captured(gpu))
    for graph in graphs:
        training.replay(graph)
    training.check()


@pytest.mark.parametrize("change", ["load_state_dict", "another tensor"])
def test_a_graph_of_states_that_were_replaced_must_be_captured_anew(gpu, change):
    training = Training("adamw")
    training.captured(gpu)
    optimizer, p = training.optimizer, training.params[0]
    if change == "load_state_dict":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].clone()
    with pytest.warns(UserWarning, match="capture the graph anew"):
        optimizer.step()
    optimizer.step()  # it is said once


def test_a_capture_needs_capturable(gpu):
    training = Training("adamw")
    plain = optgen.AdamW(training.params, backend="triton")
    plain.step()
    with (
        pytest.raises(
            RuntimeError, match=r"Attempting CUDA graph capture of step\(\) .* capturable is False"
        ),
        Graph(gpu).capture(),
    ):
        plain.step()


def test_a_capture_needs_a_step_before_it(gpu):
    training = Training("adamw")
    fresh = optgen.AdamW(training.params, backend="triton", capturable=True)
    for what in ("a table that this step reads", "a hyperparameter"):
        changed = pytest.raises(RuntimeError, match=f"{what} has changed since the step before the capture")
        with changed, Graph(gpu).capture():
            fresh.step()
        fresh.step()
        fresh.param_groups[0]["lr"] = 0.5
    fresh.step()
    with Graph(gpu).capture():
        fresh.step()


def test_tables_die_with_the_optimizer(gpu):
    import gc
    from weakref import ref

    training = Training("adamw")
    training.captured(gpu)
    (captured,) = training.optimizer._launcher._captured
    kept = [ref(captured), ref(training.optimizer.state[training.params[0]]["exp_avg"])]
    training.optimizer.state.clear()
    assert kept[1]() is None  # tables only, and no state
    del captured, training
    gc.collect()
    assert kept[0]() is None


def test_a_gradient_that_moved_sends_its_address(gpu, monkeypatch):
    sent, pieces = [], []
    send, copy = uploads.PinnedBuffer.send, torch.Tensor.copy_
    monkeypatch.setattr(
        uploads.PinnedBuffer, "send", lambda self, table: (sent.append(self), send(self, table))[1]
    )
    params = [nn.Parameter(torch.ones(2)) for _ in range(9000)]
    optimizer = optgen.SGD(params, backend="triton")
    gpu.execute = gpu.memory = gpu.log = False
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    (bucket,) = optimizer._launcher._recordings[None].buckets
    table, before = bucket.tables.tensors, len(sent)
    params[5].grad = torch.ones(2)
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda self, *a, **k: (pieces.append(self.nbytes), copy(self, *a, **k))[1]
    )
    optimizer.step()
    assert bucket.tables.tensors is table
    assert len(sent) == before + 1
    assert sum(pieces) == 8 * len(params)
    assert max(pieces) <= uploads.PIECE == 64 * 1024
    optimizer.step()
    assert len(sent) == before + 1
