"""What torch checks of its own optimizers, with optgen's class of the same name in place of torch's.

Inputs, error inputs and schedulers are those of `torch.testing._internal.common_optimizers.optim_db`.
"""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import optgen
from optgen import library

INFOS = [info for info in optim_db if info.name in library.classes()]
MISSING = {"LBFGS", "Muon", "SparseAdam"}  # a closure in each step, a matrix rule, sparse gradients
INPUTS = [(info, given) for info in INFOS for given in info.optim_inputs_func("cpu")]
SCHEDULERS = [(info, made) for info in INFOS for made in info.scheduler_inputs]
# Mistakes in torch's eyes that optgen has a meaning for, or treats otherwise.
ACCEPTED = {
    "lr as Tensor doesn't work with foreach & not capturable": "foreach chooses nothing here",
    "betas must be either both floats or both Tensors": "each is one number",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "likewise",
}
STRICTER = {"a param group cannot have duplicate parameters": ValueError}  # torch warns, and steps it twice
SHAPES = ((2, 3), (7,), (), (4, 1, 5))
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
ROUNDED = {"ASGD": 1e-8, "NAdam": 1e-9}  # torch keeps a number of theirs in float32


def named(cases):
    return [f"{info.name}-{getattr(case, 'desc', i)}" for i, (info, case) in enumerate(cases)]


def ours(info):
    return getattr(optgen, info.name)


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def train(optimizer, params, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


def close(mine, right, tolerance):
    for a, b in zip(mine, right, strict=True):
        scale = b.detach().abs().max().clamp(min=1e-30)
        assert (a.detach() - b.detach()).abs().max() / scale <= tolerance


def test_every_optimizer_of_torch_is_here_or_named():
    assert {info.name for info in optim_db} == {info.name for info in INFOS} | MISSING


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("info", "given"), INPUTS, ids=named(INPUTS))
def test_inputs(info, given, dtype):
    """The path of torch's class; then the state moves over, both ways, and the paths go on together."""
    tolerance = max(TOLERANCE[dtype], ROUNDED.get(info.name, 0))
    mine, right = parameters(dtype), parameters(dtype)
    a, b = ours(info)(mine, **given.kwargs), info.optim_cls(right, **given.kwargs)
    train(a, mine, 6)
    train(b, right, 6)
    close(mine, right, tolerance)
    saved = b.state_dict()
    untouched = copy.deepcopy(saved)
    fresh = [nn.Parameter(p.detach().clone()) for p in right]
    c = ours(info)(fresh, **given.kwargs)
    c.load_state_dict(saved)
    assert repr(saved) == repr(untouched)
    train(c, fresh, 3, 6)
    train(b, right, 3, 6)
    close(fresh, right, tolerance)
    theirs = [nn.Parameter(p.detach().clone()) for p in fresh]
    d = info.optim_cls(theirs, **given.kwargs)
    d.load_state_dict(copy.deepcopy(c.state_dict()))  # torch keeps the tensors that it is given
    train(c, fresh, 3, 9)
    train(d, theirs, 3, 9)
    close(fresh, theirs, tolerance)


@pytest.mark.parametrize(("info", "given"), INPUTS, ids=named(INPUTS))
def test_a_state_dict_resumes_to_the_bit(info, given):
    whole, part = parameters(), parameters()
    a, b = ours(info)(whole, **given.kwargs), ours(info)(part, **given.kwargs)
    train(a, whole, 5)
    train(b, part, 2)
    for copied in (copy.deepcopy(b), pickle.loads(pickle.dumps(b))):
        assert repr(copied) == repr(b)
    other = [nn.Parameter(p.detach().clone()) for p in part]
    c = ours(info)(other, **given.kwargs)
    c.load_state_dict(b.state_dict())
    train(c, other, 3, 2)
    assert all(torch.equal(p, q) for p, q in zip(whole, other, strict=True))


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_error_inputs(info):
    for error in info.optim_error_inputs_func("cpu", torch.float32):
        given = error.optimizer_error_input
        params = parameters(shapes=((1, 1),)) if given.params is None else given.params
        if given.desc in ACCEPTED:
            ours(info)(params, **given.kwargs)
            continue
        kind = STRICTER.get(given.desc, error.error_type)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(kind):
                    ours(info)(params, **given.kwargs)
            else:
                optimizer = ours(info)(params, **given.kwargs)
                with pytest.raises(kind):
                    optimizer.step()


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_flags(info):
    """What chooses an implementation is taken; what would change the result is refused."""
    for flag in ("foreach", "fused"):
        for value in (True, False, None):
            ours(info)(parameters(), **{flag: value})
    for value in (True, False):
        ours(info)(parameters(), capturable=value)
    ours(info)(parameters(), differentiable=False)
    with pytest.raises(ValueError, match="does not support differentiable=True"):
        ours(info)(parameters(), differentiable=True)


@pytest.mark.parametrize(("info", "schedulers"), SCHEDULERS, ids=named(SCHEDULERS))
def test_schedulers(info, schedulers):
    mine, right = parameters(), parameters()
    pair = []
    for params, kind in ((mine, ours(info)), (right, info.optim_cls)):
        optimizer = kind(params, lr=0.01)
        pair.append((optimizer, params, [make(optimizer) for make in schedulers]))
    for step in range(6):
        for optimizer, params, made in pair:
            train(optimizer, params, 1, step)
            for scheduler in made:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(1.0) if plateau else scheduler.step()
    assert pair[0][0].param_groups[0]["lr"] == pair[1][0].param_groups[0]["lr"]
    close(mine, right, 2e-6)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_groups(info):
    """A group with its own lr, and one added later."""
    mine, right = parameters(), parameters()
    for params, kind in ((mine, ours(info)), (right, info.optim_cls)):
        optimizer = kind([{"params": params[:2], "lr": 0.1}, {"params": params[2:3]}], lr=0.01)
        train(optimizer, params, 2)
        optimizer.add_param_group({"params": params[3], "lr": 0.05})
        train(optimizer, params, 2, 2)
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer.add_param_group({"params": params[3]})
    close(mine, right, 2e-6)


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_closures_hooks_and_gradients(info):
    params = parameters()
    optimizer, calls = ours(info)(params), []
    optimizer.register_step_pre_hook(lambda *a: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *a: calls.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        calls.append("closure")
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).requires_grad
    assert calls == ["pre", "closure", "post"]
    optimizer.zero_grad(set_to_none=False)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    before = [p.detach().clone() for p in params]
    optimizer.step()  # nothing has a gradient
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_layouts(info):
    """Parameters and gradients that are no contiguous blocks, and empty ones between them."""
    generator = torch.Generator().manual_seed(0)
    plain = [
        torch.randn(6, 4, generator=generator),
        torch.randn(0, 3),
        torch.randn(2, 3, 4, 5, generator=generator),
    ]
    grads = [torch.randn(p.shape, generator=generator) for p in plain]
    mine = [nn.Parameter(plain[0].t().contiguous().t()), nn.Parameter(plain[1].clone())]
    mine.append(nn.Parameter(plain[2].to(memory_format=torch.channels_last)))
    right = [nn.Parameter(p.clone()) for p in plain]
    a = ours(info)(mine)
    b = info.optim_cls([q for q in right if q.numel()])  # torch's Adafactor divides by the size
    for _ in range(3):
        for p, q, g in zip(mine, right, grads, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        mine[0].grad = grads[0].t().contiguous().t()
        a.step()
        b.step()
    close([mine[0], mine[2]], [right[0], right[2]], 2e-6)


def test_a_failed_constructor_leaves_the_groups_alone():
    groups = [{"params": parameters(), "lr": -1.0}]
    given = [dict(group) for group in groups]
    with pytest.raises(ValueError, match="lr >= 0"):
        optgen.AdamW(groups)
    assert [set(group) for group in groups] == [set(group) for group in given]
    assert groups[0]["lr"] == -1.0


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_a_parameter_whose_first_gradient_comes_late(info):
    """It begins with the first step's corrections, whatever the others have counted."""
    mine, right = parameters(), parameters()
    a, b = ours(info)(mine, lr=0.01), info.optim_cls(right, lr=0.01)
    for optimizer, params in ((a, mine), (b, right)):
        train(optimizer, params[1:], 50)
        train(optimizer, params, 3, 50)
    close(mine, right, 2e-6)
    assert [a.state[p]["step"].item() for p in mine] == [3, 53, 53, 53]


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_gradients_that_lie_otherwise_than_their_parameters(info):
    """Transposed, channels-last, expanded, of every second column, and of another dtype in one group."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    shapes = (6, 4), (2, 3, 4, 5), (3, 7), (5, 4)
    start = [*(random(*shape) for shape in shapes), random(9).double()]
    mine, right = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    a, b = ours(info)(mine, lr=0.01), info.optim_cls(right, lr=0.01)
    for _ in range(3):
        grads = [
            random(4, 6).t(),
            random(2, 3, 4, 5).to(memory_format=torch.channels_last),
            random(3, 1).expand(3, 7),
            random(5, 8)[:, ::2],
            random(9).double(),
        ]
        assert not any(g.is_contiguous() for g in grads[:4])
        for p, q, g in zip(mine, right, grads, strict=True):
            p.grad, q.grad = g, g.contiguous()
        a.step()
        b.step()
    close(mine, right, 2e-6)
