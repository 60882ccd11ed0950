"""`optgen.tree` beside the rows of Optimisers.jl: the bits of the classes, containers, errors, its page."""

import collections
import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import optgen
from optgen import tree

PAGE = Path(__file__).parents[2] / "docs" / "optimisers.md"
SHAPES = ((7,), (4, 5), (), (33, 3))

# A rule here, and the class that must give the same bits.
SAME = {
    "adam": (lambda: tree.Adam(0.01), lambda p: optgen.Adam(p, lr=0.01)),
    "momentum": (lambda: tree.Momentum(0.05), lambda p: optgen.Momentum(p, lr=0.05)),
    "lamb": (lambda: tree.LAMB(lr=0.01), lambda p: optgen.LAMB(p, lr=0.01)),
    "prodigy": (lambda: tree.Prodigy(), lambda p: optgen.Prodigy(p)),
    "clipped": (
        lambda: tree.chain(tree.ClipGlobalNorm(max_norm=1.0), tree.rule("adamw")(lr=0.01)),
        lambda p: optgen.optimizer(optgen.chain("clip_global_norm", "adamw"))(p, lr=0.01),
    ),
}


def parameters():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator) for s in SHAPES]


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(s, generator=generator) for s in SHAPES]


@pytest.mark.parametrize("name", SAME)
def test_the_bits_of_the_classes(name):
    rule, make = SAME[name]
    inside, outside = parameters(), parameters()
    theirs = [nn.Parameter(p) for p in parameters()]
    optimizer = make(theirs)
    here = tree.setup(rule(), inside)
    there = tree.setup(rule(), outside)
    for step in range(50):
        given = gradients(step)
        for p, g in zip(theirs, given, strict=True):
            p.grad = g.clone()
        optimizer.step()
        tree.update_(here, inside, given)
        there, outside = tree.update(there, outside, given)
    for p, a, b, leaf in zip(theirs, inside, outside, here, strict=True):
        assert torch.equal(p, a)
        assert torch.equal(p, b)
        state = optimizer.state[p]
        assert state.keys() == leaf.state.keys()
        assert all(torch.equal(state[k], leaf.state[k]) for k in state)


def test_random_numbers_belong_to_the_leaf():
    """They are those of the class, and the same where another array has no gradient."""
    kind = tree.rule("hyper(lr=0.1)\np = p - lr*(g + normal())", "Noisy")
    theirs = [nn.Parameter(p) for p in parameters()]
    optimizer = optgen.optimizer(kind.program, "Noisy")(theirs)
    whole, part = parameters(), parameters()
    first, second = tree.setup(kind(), whole), tree.setup(kind(), part)
    for p, g in zip(theirs, gradients(0), strict=True):
        p.grad = g
    optimizer.step()
    tree.update_(first, whole, gradients(0))
    tree.update_(second, part, [None, *gradients(0)[1:]])
    assert all(torch.equal(a, b) for a, b in zip(theirs, whole, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], part[1:], strict=True))


def test_groups_of_one_tree_share_a_launch():
    """Parts with other hyperparameters are groups of one step."""
    model = parameters()
    state = tree.setup(tree.Adam(0.1), model)
    tree.adjust(state[0], 0.0)
    before = model[0].clone()
    tree.update_(state, model, gradients(0))
    assert torch.equal(model[0], before)
    assert not torch.equal(model[1], parameters()[1])


# Containers

Point = collections.namedtuple("Point", ["x", "y"])


def test_containers_of_every_kind():
    model = collections.OrderedDict(
        a=Point(torch.ones(1), [np.ones(1)]),
        b=collections.defaultdict(list, c=torch.ones(1)),
        d=None,
        e="text",
    )
    state = tree.setup(tree.Descent(0.5), model)
    assert isinstance(state["a"], Point)
    grads = {"a": Point(torch.ones(1), [np.ones(1)]), "b": {"c": torch.ones(1)}}
    state, after = tree.update(state, model, grads)
    assert [type(after), type(after["a"]), type(after["b"])] == [type(model), Point, type(model["b"])]
    assert [after["a"].x.item(), after["a"].y[0].item(), after["b"]["c"].item()] == [0.5, 0.5, 0.5]
    assert (after["d"], after["e"]) == (None, "text")
    assert model["a"].y[0].item() == 1.0


def test_numpy_arrays_are_updated_in_place_where_they_can():
    plain, fixed = np.ones(3), np.ones(3)
    fixed.flags.writeable = False
    backwards = np.ones(6, np.float32)[::-2]
    swapped = np.ones(3).astype(">f8")
    model = [plain, fixed, backwards, swapped]
    state = tree.setup(tree.Descent(0.5), model)
    _, after = tree.update_(state, model, [np.arange(3.0)] * 4)
    assert after[0] is plain
    assert after[2] is backwards
    assert after[3] is swapped
    for array in after:
        np.testing.assert_array_equal(array, [1, 0.5, 0])
    np.testing.assert_array_equal(fixed, [1, 1, 1])
    assert backwards.base.tolist() == [1, 0, 1, 0.5, 1, 1]


def test_strided_and_requires_grad():
    base = torch.arange(12.0).reshape(3, 4)
    part, leaf = base[:, 1:3], nn.Parameter(torch.ones(2))
    state = tree.setup(tree.Descent(1.0), [part, leaf])
    tree.update_(state, [part, leaf], [torch.ones(3, 2), torch.ones(2)])
    assert base.tolist() == [[0, 0, 1, 3], [4, 4, 5, 7], [8, 8, 9, 11]]
    _, (_, new) = tree.update(state, [part, leaf], [None, torch.ones(2)])
    assert isinstance(new, nn.Parameter)
    assert new.requires_grad
    assert new.is_leaf
    assert [leaf.tolist(), new.tolist()] == [[0, 0], [-1, -1]]


def test_a_new_module_shares_what_is_not_trained():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    state = tree.setup(tree.Descent(1.0), net)
    _, other = tree.update(state, net, {"0": {"weight": torch.ones(2, 2)}})
    assert other[0].bias is net[0].bias
    assert other[1].running_mean is net[1].running_mean
    assert torch.equal(other[0].weight, net[0].weight - 1)
    assert set(other.state_dict()) == set(net.state_dict())
    assert next(other.parameters()) is other[0].weight


def test_tensors_without_memory_and_parametrized_modules():
    meta = [torch.ones(2, device="meta"), torch.ones(2, device="meta")]
    assert len(tree.trainables(meta)) == 2
    net = nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))
    flat, rebuild = tree.destructure(net)
    found = torch.func.grad(lambda v: tree.destructure(rebuild(v))[0].square().sum())(flat.detach())
    torch.testing.assert_close(found, 2 * flat.detach())
    state = tree.setup(tree.Descent(1.0), net)
    _, other = tree.update(state, net, {"bias": torch.ones(2)})
    assert torch.equal(other.bias, net.bias - 1)


def test_inputs():
    model = {"a": torch.ones(2), "b": torch.ones(2)}
    hessian = tree.setup(tree.rule("input(h)\np = p - g/h", "Newton")(), model)
    _, after = tree.update(hessian, model, model, h={"a": torch.full((2,), 2.0), "b": torch.full((2,), 4.0)})
    assert [after["a"].tolist(), after["b"].tolist()] == [[0.5, 0.5], [0.75, 0.75]]
    loss = tree.setup(tree.rule("input(loss, per=all)\np = p - loss*g", "Loss")(), model)
    _, after = tree.update(loss, model, model, loss=0.25)
    assert after["a"].tolist() == [0.75, 0.75]
    with pytest.raises(TypeError, match="needs the input 'loss'"):
        tree.update(loss, model, model)
    with pytest.raises(TypeError, match="no input 'los'; it has: loss"):
        tree.update(loss, model, model, los=1)


# Mistakes


def test_trees_that_do_not_fit():
    model = {"a": [torch.ones(2)], "b": torch.ones(3)}
    state = tree.setup(tree.Adam(), model)
    untouched = copy.deepcopy(state)
    one = {"a": [torch.ones(2)], "b": torch.ones(3)}
    for grads, message in [
        ({**one, "b": torch.ones(2)}, r"gradient at b has the shape \(2,\), and the array \(3,\)"),
        ({**one, "bb": one["b"]}, "gradients have 'bb' at the root"),
        ({**one, "a": {"0": torch.ones(2)}}, "gradients have '0' at a"),
        ({**one, "a": [torch.ones(2)] * 2}, "gradients at a do not have the model's nesting: list"),
        ({**one, "b": "big"}, "gradient at b is no array"),
    ]:
        with pytest.raises(ValueError, match=message):
            tree.update_(state, model, grads)
    assert state == untouched
    with pytest.raises(ValueError, match=r"state tree has nothing at a\.0"):
        tree.update_({**state, "a": []}, model, one)
    with pytest.raises(ValueError, match="Tensor stands at the root where the state tree has a node"):
        tree.update_(torch.ones(1), model, one)
    with pytest.raises(ValueError, match=r"state tree has Tensor at a\.0, where the model has an array"):
        tree.update_(model, model, one)
    with pytest.raises(ValueError, match="state tree has nothing at b, where the model has an array"):
        tree.update_({**state, "b": ()}, model, one)
    with pytest.raises(ValueError, match="gradient at b is complex"):
        tree.update_(state, model, {**one, "b": torch.ones(3, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="state tree has a leaf at b, where the model has 3"):
        tree.update_(state, {**model, "b": 3}, one)
    with pytest.raises(TypeError, match="setup takes a rule first"):
        tree.setup(model, tree.Adam())
    assert all(torch.equal(x, torch.ones(x.shape)) for x in (model["a"][0], model["b"]))


def test_a_state_belongs_to_its_arrays():
    a, b = torch.ones(2), torch.ones(2)
    tied, free = tree.setup(tree.Momentum(), [a, a]), tree.setup(tree.Momentum(), [a, b])
    with pytest.raises(ValueError, match="at 0 and 1 have one state, and are not tied now"):
        tree.update_(tied, [a, b], [a, b])
    with pytest.raises(ValueError, match="at 0 and 1 are tied now, and have two states"):
        tree.update_(free, [a, a], [a.clone(), b])
    with pytest.raises(
        ValueError, match=r"at 1 has the shape \(3,\), and its state is for \(2,\): call setup"
    ):
        tree.update_(free, [a, torch.ones(3)], [a, torch.ones(3)])
    assert torch.equal(a, torch.ones(2))
    assert free[0].state["step"].item() == 0


@pytest.mark.parametrize(
    "array",
    [torch.ones(2, dtype=torch.complex64), np.ones(2, np.longdouble), torch.ones(2).to(torch.float8_e5m2)],
)
def test_storage_that_cannot_be_trained(array):
    with pytest.raises(ValueError, match=r"the array at layers\.1\.w is .*; optgen trains float32, float64"):
        tree.setup(tree.Adam(), {"layers": [1, {"w": array}]})


def test_unknown_rules():
    with pytest.raises(AttributeError, match=r"module 'optgen\.tree' has no attribute 'Adamm'"):
        _ = tree.Adamm
    assert {"Adam", "LAMB", "setup"} <= set(dir(tree))
    with pytest.raises(optgen.RuleError):
        tree.setup(tree.Cautious(), torch.ones(1))  # a transform that needs a rule before it
    state = tree.setup(tree.chain(tree.Adam(), tree.Cautious()), torch.ones(1))
    assert isinstance(state, tree.Leaf)


def test_the_page_runs():
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 5
    for text in blocks:
        exec(compile(text, str(PAGE), "exec"), names)
    assert not torch.equal(names["model"]["scale"], torch.ones(1))
    assert isinstance(names["net"], nn.Sequential)
