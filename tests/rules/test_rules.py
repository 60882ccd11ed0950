"""Every shipped rule has every property; dropping a file into rules/ is all it takes."""

import copy

import pytest
import torch
from torch import nn

import optgen
from optgen import library
from optgen.backends import cache
from optgen.ir.extent import Extent
from optgen.ir.node import Op, toposort
from optgen.passes.specialise import shaped
from optgen.verify.differential import Case, run
from oracles import every

SHAPES = ((7,), (4, 5), (), (33, 3))
ORACLES = every()


def names_of(kind):
    return [name for name in library.names() if library.rule(name).kind == kind]


def program_of(name):
    """The rule itself, or the transform beside a rule that it can stand with."""
    kind = library.rule(name).kind
    return optgen.chain(*{"before": (name, "adam"), "rule": (name,), "after": ("adamw", name)}[kind])


@pytest.fixture(params=library.names())
def make(request):
    """The class of each shipped rule, or of a chain with each transform."""
    return optgen.optimizer(program_of(request.param))


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]


def train(optimizer, params, steps, start=0):
    for k in range(start, start + steps):
        generator = torch.Generator().manual_seed(k)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step(**inputs(optimizer, params, generator))


def inputs(optimizer, params, generator):
    """What the rule is handed besides gradients: a loss, or a tensor for each parameter."""
    given = {}
    for name, declared in optimizer.program.inputs.items():
        each = {p: torch.rand(p.shape, generator=generator).to(p.dtype) for p in params}
        given[name] = torch.rand((), generator=generator) if declared.extent is Extent.ALL else each
    return given


def bits(optimizer, params):
    return [p.detach().clone() for p in params] + [
        v.clone() for p in params for _, v in sorted(optimizer.state[p].items())
    ]


def assert_same(a, b):
    assert len(a) == len(b)
    assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_moves_every_parameter(make):
    params = parameters()
    before = [p.detach().clone() for p in params]
    train(make(params), params, 8)  # Schedule-Free RAdam stands still for five
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert all(torch.isfinite(p).all() for p in params)


def test_the_cpu_kernel_agrees_with_the_reference(make):
    outcome = run(make.program, Case("cpu", "fp32", None, {}, shaped(make.program), 5))
    assert outcome.failure is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_state_resumes_to_the_bit(make, dtype):
    whole, part = parameters(dtype), parameters(dtype)
    a, b = make(whole), make(part)
    train(a, whole, 6)
    train(b, part, 3)
    saved = copy.deepcopy(b.state_dict())
    fresh = make(part)
    fresh.load_state_dict(saved)
    train(fresh, part, 3, 3)
    assert_same(bits(a, whole), bits(fresh, part))


def test_runs_are_deterministic(make):
    results = []
    for _ in range(2):
        params = parameters()
        optimizer = make(params)
        train(optimizer, params, 4)
        results.append(bits(optimizer, params))
    assert_same(*results)


def test_frozen_parameters_do_not_move(make):
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, 2)
    optimizer.freeze(params[:2])
    before = bits(optimizer, params[:2])
    train(optimizer, params, 2, 2)
    assert_same(before, bits(optimizer, params[:2]))
    optimizer.thaw(params[:2])
    train(optimizer, params, 8, 4)
    assert not torch.equal(before[1], params[1])


def test_no_gradient_leaves_parameter_and_state(make):
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, 2)
    before = bits(optimizer, params[1:2])
    params[1].grad = None
    optimizer.step(**inputs(optimizer, params, torch.Generator().manual_seed(9)))
    assert_same(before, bits(optimizer, params[1:2]))


def test_second_step_and_new_lr_compile_nothing(make):
    params = parameters()
    optimizer = make(params)
    train(optimizer, params, 1)
    built = cache.built
    for group in optimizer.param_groups:
        group["lr"] *= 0.37
    train(optimizer, params, 3, 1)
    assert cache.built == built


def shares_nothing(name):
    """Whether what a rule does to one parameter depends on that parameter alone."""
    program = program_of(name)
    nodes = toposort(program.roots())
    random = any(n.op in (Op.NORMAL, Op.UNIFORM) for n in nodes)
    return not (random or program.inputs or any(n.extent is Extent.ALL for n in nodes))


@pytest.mark.parametrize("name", [name for name in library.names() if shares_nothing(name)])
def test_a_late_parameter_takes_a_first_step(name):
    """The same update as a parameter that was there from the start: steps count per parameter."""
    make = optgen.optimizer(program_of(name))
    early, late = parameters()[:1], parameters()[:1]
    a = make(early)
    train(a, early, 1)
    other = parameters()[1:2]
    b = make([*other, *late])
    train(b, other, 5)
    generator = torch.Generator().manual_seed(0)
    other[0].grad, late[0].grad = None, torch.randn(late[0].shape, generator=generator)
    b.step(**inputs(b, [*other, *late], torch.Generator().manual_seed(0)))
    assert_same(bits(a, early), bits(b, late))


@pytest.mark.parametrize("name", names_of("rule"))
def test_text_is_short_and_cited(name):
    program = library.rule(name)
    assert len(program.doc.splitlines()[0]) <= 120
    assert any(c.isdigit() for c in program.doc), "a year or an id"
    lines = [line for line in program.sources[0].text.splitlines() if line.strip()]
    statements = [line for line in lines if line[0].isalpha() or line.startswith(" ")]
    assert len(statements) <= 40
    assert str(program).count("\n") <= 40


@pytest.mark.parametrize("name", names_of("rule"))
def test_learns_a_quadratic(name):
    """Twenty times smaller than where it began, with options of its oracle's choosing."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = optgen.optimizer(name)([p], **ORACLES[name].learns)
    inputs = optimizer.program.inputs
    for _ in range(400):
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        # The diagonal of the Hessian is 2.
        optimizer.step(**{k: loss if k == "loss" else {p: torch.full_like(p, 2.0)} for k in inputs})
    assert (p**2).sum().item() < 5.25 / 20
