"""Parameters that lie in each other's memory, and those that only seem to."""

import gc

import numpy as np
import pytest
import torch
from torch import nn

import optgen
from optgen.launch.overlap import check_memory


def views(*tensors):
    return [nn.Parameter(t) for t in tensors]


def overlapping():
    flat, square = torch.zeros(12), torch.zeros(6, 6)
    array = np.zeros(8, np.float32)
    return {
        "the same memory": (flat, flat.view(3, 4)),
        "one inside of the other": (flat, flat[5:6]),
        "by one element": (flat[:7], flat[6:]),
        "rows and columns": (square[2], square[:, 3]),
        "transposed": (square, square.t()[1:2]),
        "another dtype": (flat, flat.view(torch.float64)[1:2]),
        "of one array": (torch.from_numpy(array[:5]), torch.from_numpy(array[4:])),
        "behind another": (flat[:10], flat[2:4], flat[8:]),
    }


def separate():
    flat, square = torch.zeros(12), torch.zeros(6, 6)
    freed = [torch.zeros(4), torch.zeros(4)]
    for tensor in freed:
        tensor.untyped_storage().resize_(0)
    return {
        "one buffer": (*flat.split(4), flat[:0]),
        "columns": (square[:, :2], square[:, 2:4], square[:, 4:]),
        "even and odd": (flat[::2], flat[1::2]),
        "quarters": (square[:3, :3], square[:3, 3:], square[3:, :3], square[3:, 3:]),
        "another dtype": (flat[:4], flat.view(torch.float64)[2:]),
        "meta": (torch.zeros(3, device="meta"), torch.zeros(3, device="meta")),
        "freed": freed,
        "empty": (torch.zeros(0, 3), torch.zeros(0)),
    }


def shapes(tensors):
    return [str(tuple(t.shape)) for t in tensors]


@pytest.mark.parametrize("case", overlapping())
def test_overlap_is_refused(case):
    params = views(*overlapping()[case])
    with pytest.raises(
        ValueError, match="overlap in memory, so a step of one would change the other"
    ) as error:
        optgen.SGD(params)
    assert sum(shape in str(error.value) for shape in shapes(params)) >= 2
    optimizer = optgen.SGD(params[:1])
    with pytest.raises(ValueError, match="overlap in memory"):
        optimizer.add_param_group({"params": params[1:]})
    with pytest.raises(ValueError, match="overlap in memory"):
        optgen.SGD([{"params": p} for p in params])
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("case", separate())
def test_what_does_not_overlap_is_taken(case):
    params = views(*separate()[case])
    optimizer = optgen.SGD(params[:1])
    optimizer.add_param_group({"params": params[1:]})
    assert len(optgen.SGD(params).param_groups[0]["params"]) == len(params)


def test_views_of_a_buffer_are_stepped_each_by_itself():
    flat = torch.arange(12.0)
    params = views(flat[::2], flat[1::2])
    optimizer = optgen.SGD(params, lr=1.0, backend="numpy")
    params[1].grad = torch.ones(6)
    optimizer.step()
    assert torch.equal(flat, torch.arange(12.0) - torch.tensor([0.0, 1.0]).repeat(6))


def test_a_parameter_that_overlaps_with_itself_is_refused():
    windows = torch.zeros(6).as_strided((3, 2), (1, 1))
    for p in views(torch.zeros(1).expand(4), torch.zeros(3, 1).expand(3, 2), windows):
        with pytest.raises(ValueError, match="share memory, so it cannot be updated in place"):
            optgen.SGD([p])
    optgen.SGD(views(torch.zeros(3, 1).expand(3, 1)))


def test_the_same_parameter_again_is_torchs_error():
    (p,) = views(torch.zeros(3))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optgen.SGD([{"params": p}, {"params": p}])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optgen.SGD([p]).add_param_group({"params": p})


def test_random_views_as_elements_say():
    """Against the addresses of all elements, written out."""
    random = np.random.default_rng(0)
    found = set()
    for _ in range(300):
        buffer = torch.zeros(40)
        tensors = []
        for _ in range(2):
            size, stride = random.integers(1, 4, 2), random.integers(1, 4, 2)
            inner = int(stride[1])
            strides = (inner * int(size[1]) + int(stride[0]) - 1, inner)  # no overlap within one
            tensors.append(buffer.as_strided(tuple(map(int, size)), strides, int(random.integers(0, 5))))
        index = torch.arange(40)
        cells = [
            set(index.as_strided(t.shape, t.stride(), t.storage_offset()).flatten().tolist()) for t in tensors
        ]
        apart = not cells[0] & cells[1]
        found.add(apart)
        if apart:
            check_memory(views(*tensors))
        else:
            with pytest.raises(ValueError, match="overlap"):
                check_memory(views(*tensors))
    assert found == {True, False}


@pytest.mark.parametrize("count", [1, 300])
def test_a_lazily_negated_gradient_that_is_not_all_there_is_not_read(count):
    params = [nn.Parameter(torch.ones(6)) for _ in range(count)]
    for p in params:
        p.grad = torch._neg_view(torch.ones(6))
    optimizer = optgen.SGD(params, lr=1.0)
    optimizer.step()
    assert torch.equal(params[-1].detach(), torch.full((6,), 2.0))
    params[-1].grad.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match="lies in a storage of 8 bytes"):
        optimizer.step()
    assert torch.equal(params[-1].detach(), torch.full((6,), 2.0))


def test_memory_is_not_kept():
    """Addresses are read anew: a parameter's memory may be another's after `.data =`."""
    p, q = views(torch.zeros(4), torch.zeros(4))
    optimizer = optgen.SGD([p])
    old = p.data
    p.data = torch.zeros(4)
    q.data = old
    gc.collect()
    optimizer.add_param_group({"params": [q]})
    assert len(optimizer.param_groups) == 2
