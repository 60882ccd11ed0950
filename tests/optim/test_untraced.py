"""torch.compile calls a step and does not trace into it; see optgen/optim/untraced.py."""

import subprocess
import sys

import pytest
import torch

import optgen

SCRIPT = """
import sys, torch, optgen
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
optgen.AdamW([p], backend="numpy").step()
assert float(p.detach()[0]) < 1
print("torch._dynamo" in sys.modules)
"""


def test_a_first_step_does_not_import_the_compiler():
    child = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"


def parameter() -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
    p.grad = torch.linspace(1, 2, 6).reshape(2, 3)
    return p


class Recorder:
    """A back end of torch.compile that runs a graph as it is and keeps what the graph computes."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        self.graphs.append([str(n.target) for n in graph.graph.nodes if n.op.startswith("call")])
        return graph.forward


@pytest.fixture
def recorder():
    torch._dynamo.reset()
    yield Recorder()
    torch._dynamo.reset()


def test_a_compiled_step_has_no_graph_and_the_same_bits(recorder):
    ours, compiled = parameter(), parameter()
    eager = optgen.AdamW([ours], lr=0.1, backend="numpy")
    opt = optgen.AdamW([compiled], lr=0.1, backend="numpy")
    step = torch.compile(opt.step, backend=recorder)
    for _ in range(3):
        eager.step()
        step()
    assert recorder.graphs == []
    assert torch.equal(ours, compiled)
    assert opt.state[compiled]["step"] == 3


def test_only_what_is_around_a_step_is_compiled(recorder):
    p = parameter()
    opt = optgen.SGD([p], lr=0.5, backend="numpy")

    @torch.compile(backend=recorder)
    def around(x):
        doubled = x * 2
        opt.step()
        return doubled + 1

    assert torch.equal(around(torch.ones(2)), torch.full((2,), 3.0))
    assert [len(graph) for graph in recorder.graphs] == [1, 1]
    assert torch.equal(p, parameter() - 0.5 * p.grad)


def test_a_closure_may_call_what_is_compiled(recorder):
    p = parameter()
    opt = optgen.SGD([p], lr=0.5, backend="numpy")
    loss = torch.compile(lambda x: (x * 2).sum(), backend=recorder)

    def closure():
        opt.zero_grad()
        value = loss(p)
        value.backward()
        return value

    assert opt.step(closure).item() == 0
    assert [len(graph) for graph in recorder.graphs] == [2]
    assert torch.equal(p, parameter() - 1)


def test_modes_are_not_traced_either(recorder):
    p = parameter()
    opt = optgen.AdamWScheduleFree([p], lr=0.1, backend="numpy")
    for _ in range(2):  # the first makes y and z the same point
        opt.step()
    before = p.detach().clone()
    torch.compile(opt.eval, backend=recorder)()
    assert not torch.equal(p, before)
    torch.compile(opt.train, backend=recorder)()
    torch.testing.assert_close(p.detach(), before)
    assert recorder.graphs == []


def test_a_step_inside_one_whole_graph_is_refused_with_the_reason(recorder):
    p = parameter()
    opt = optgen.SGD([p], lr=0.5, backend="numpy")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="optgen's kernels are compiled already"):
        torch.compile(opt.step, backend=recorder, fullgraph=True)()
    assert torch.equal(p, parameter())
    assert opt.state == {}
