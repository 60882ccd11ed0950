"""What each process of a group does in `test_dtensor.py`: train, save, load, count collectives."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import optgen
from optgen import library
from optgen.ir.extent import Extent
from optgen.launch.replay import Replay
from optgen.library import runnable

warnings.filterwarnings("ignore", message=".*safe_globals|.*TypedStorage")

SHAPES = [(7, 5), (7,), (2, 7), (2,), (3, 4, 5), (1, 6), ()]  # over 2 and 3 processes: uneven and empty parts
CHAINS = {
    "clipped": ("clip_global_norm", "adamw"),
    "clipped-each": ("clip_norm", "adamw"),
    "units": ("agc", "sgd"),
    "centred": ("gradient_centralization", "adamw"),
    "cautious": ("adamw", "cautious"),
}


def make(name):
    """An optimizer class: a shipped one, or of a chain."""
    if name == "unscaled":
        return optgen.optimizer("hyper(lr=0.1)\np = 0.9*p - lr*sign(g) - 0.01")
    if name in CHAINS:
        return optgen.optimizer(optgen.chain(*CHAINS[name]))
    return optgen.optimizer(runnable([library.rule(name)])[0])


def mesh_of(sizes=None):
    return init_device_mesh("cpu", sizes or (dist.get_world_size(),))


def values(shapes: Iterable[tuple[int, ...]], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def spread(tensor, mesh, placements):
    """A distributed tensor; a dimension that a tensor lacks is not divided."""
    kept = [p if not p.is_shard() or p.dim < tensor.dim() else Replicate() for p in placements]
    return distribute_tensor(tensor, mesh, kept, src_data_rank=None)


def inputs_of(optimizer, params, seed):
    """What the rule's step needs besides gradients."""
    found = {}
    for name, declared in optimizer.program.inputs.items():
        if declared.extent is Extent.ALL:
            found[name] = torch.tensor(0.7)
        else:
            numbers = values([tuple(p.shape) for p in params], seed + 100)
            found[name] = {
                p: spread(x, p.device_mesh, p.placements) if isinstance(p, DTensor) else x
                for p, x in zip(params, numbers, strict=True)
            }
    return found


def train(optimizer, params, steps, shapes=SHAPES):
    for k in steps:
        for p, g in zip(params, values(shapes, k), strict=True):
            p.grad = spread(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
        optimizer.step(**inputs_of(optimizer, params, k))
        optimizer.zero_grad()


def pair(name, mesh, placements, backend, shapes=SHAPES, **options):
    """Two optimizers of the same parameters: plain ones, and distributed ones."""
    cls = make(name)
    whole = [nn.Parameter(v) for v in values(shapes, 99)]
    parts = [nn.Parameter(spread(v, mesh, placements)) for v in values(shapes, 99)]
    return (cls(whole, backend=backend, **options), whole), (cls(parts, backend=backend, **options), parts)


def full(tensor):
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a - b| / max|b|; 0 where both are the same to the bit."""
    a, b = full(a).double(), full(b).double()
    if torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)):
        return 0.0
    return float((a - b).abs().max() / b.abs().max())


def replays(names, divided, backend="cpu"):
    """Of each rule how many of the steps after the first were replays, and how far it is from one process."""
    mesh = mesh_of()
    placements = [Shard(d) for d in divided]
    found, original = {}, Replay.ready
    try:
        for name in names:
            seen = []

            def ready(self, *args, seen=seen):
                made = original(self, *args)
                seen.append(made is not None)
                return made

            whole, parts = pair(name, mesh, placements, backend)
            train(*whole, range(4))
            Replay.ready = ready
            train(*parts, range(4))
            Replay.ready = original
            found[name] = sum(seen), compare(whole, parts)
    finally:
        Replay.ready = original
    return found


def compare(whole, parts) -> float:
    """The largest deviation of any parameter or state."""
    (mine, params), (theirs, others) = whole, parts
    found = [deviation(q, p) for p, q in zip(params, others, strict=True)]
    for p, q in zip(params, others, strict=True):
        kept, other = mine.state[p], theirs.state[q]
        assert kept.keys() == other.keys()
        for key in kept:
            assert other[key].shape == kept[key].shape, (key, other[key].shape, kept[key].shape)
            assert other[key].dtype == kept[key].dtype
            found.append(deviation(other[key], kept[key]))
    return max(found)


def agree(names, divided, backend, steps=3, sizes=None):
    """The largest deviation of each rule, as training whole tensors and divided ones goes."""
    mesh, found = mesh_of(sizes), {}
    placements = [Shard(d) if d >= 0 else Replicate() for d in divided]
    for name in names:
        whole, parts = pair(name, mesh, placements, backend)
        for one in (whole, parts):
            train(*one, range(steps))
        found[name] = compare(whole, parts)
    return found


class Collectives:
    """Counts what processes exchange."""

    def __enter__(self):
        self.original, self.calls = dist.all_reduce, []

        def counted(tensor, *args, **kwargs):
            self.calls.append(tensor.numel())
            return self.original(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self.calls

    def __exit__(self, *_):
        dist.all_reduce = self.original


def collectives(name, count):
    """How many collectives a step takes for `count` tensors."""
    shapes = [(3 + i % 4, 5) for i in range(count)]
    _, (optimizer, params) = pair(name, mesh_of(), [Shard(0)], "numpy", shapes)
    train(optimizer, params, range(1), shapes)
    with Collectives() as calls:
        train(optimizer, params, range(1, 2), shapes)
    return len(calls)


def fsdp(seed=1):
    """A model under FSDP2, whose last layer leaves some processes without a part."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    fully_shard(model[0], mesh=mesh_of())
    return fully_shard(model, mesh=mesh_of())


def backward(model, k):
    generator = torch.Generator().manual_seed(k)
    x, y = torch.randn(8, 5, generator=generator), torch.randn(8, 2, generator=generator)
    ((model(x) - y) ** 2).mean().backward()


def fsdp_agrees(names, backend):
    """The largest deviation of each rule between FSDP2 and a model that every process has whole."""
    found = {}
    for name in names:
        torch.manual_seed(1)
        plain = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
        divided, cls = fsdp(), make(name)
        one, two = (cls(m.parameters(), backend=backend) for m in (plain, divided))
        for k in range(3):
            for model, optimizer in ((plain, one), (divided, two)):
                backward(model, k)
                optimizer.step()
                optimizer.zero_grad()
        pairs = zip(divided.parameters(), plain.parameters(), strict=True)
        found[name] = max(deviation(a, b) for a, b in pairs)
    return found


def hand_out(model, k):
    """Gradients that do not depend on how many processes there are."""
    params = list(model.parameters())
    for p, g in zip(params, values([tuple(p.shape) for p in params], k), strict=True):
        p.grad = spread(g, p.device_mesh, p.placements)


def go_on(model, optimizer, steps):
    for k in steps:
        hand_out(model, k)
        optimizer.step()
        optimizer.zero_grad()
    return [full(p).numpy() for p in model.parameters()]


def save(names, folder):
    """Train, save, go on; what every parameter is at the end."""
    found = {}
    for name in names:
        model = fsdp()
        optimizer = make(name)(model.parameters(), backend="numpy")
        go_on(model, optimizer, range(3))
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{name}")
        found[name] = go_on(model, optimizer, range(3, 6))
    return found


def resume(names, folder):
    """Load what `save` saved into a new optimizer, which must not move on the way, and go on."""
    found = {}
    for name in names:
        model = fsdp(seed=2)
        optimizer = make(name)(model.parameters(), backend="numpy")
        before = [full(p).clone() for p in model.parameters()]
        weights, state = get_state_dict(model, optimizer)
        assert all(torch.equal(full(p), b) for p, b in zip(model.parameters(), before, strict=True))
        assert [float(s["step"]) for s in optimizer.state.values()] == [0.0] * 4
        saved = {"model": weights, "optimizer": state}
        dcp.load(saved, checkpoint_id=f"{folder}/{name}")
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        assert [float(s["step"]) for s in optimizer.state.values()] == [3.0] * 4
        found[name] = go_on(model, optimizer, range(3, 6))
    return found


def optimizer_alone(name):
    """get_optimizer_state_dict and its counterpart, into an optimizer that has stepped already."""
    model, other = fsdp(), fsdp()
    one, two = (make(name)(m.parameters(), backend="numpy") for m in (model, other))
    go_on(model, one, range(2))
    go_on(other, two, range(2))
    go_on(other, two, range(5, 8))
    set_optimizer_state_dict(other, two, get_optimizer_state_dict(model, one))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in one.state[p].items():
            assert torch.equal(full(two.state[q][key]), full(value)), key
            if isinstance(value, DTensor):
                assert two.state[q][key].placements == value.placements


def plain_into_distributed(name):
    """A state dict of whole tensors loads into an optimizer of divided ones, and the reverse."""
    whole, parts = pair(name, mesh_of(), [Shard(0)], "numpy")
    train(*whole, range(2))
    train(*parts, range(1))
    parts[0].load_state_dict(whole[0].state_dict())
    for p, q in zip(whole[1], parts[1], strict=True):
        with torch.no_grad():
            q.copy_(spread(p.detach(), mesh_of(), q.placements))
    train(*whole, range(2, 4))
    train(*parts, range(2, 4))
    there = compare(whole, parts)
    whole[0].load_state_dict(parts[0].state_dict())
    return max(there, compare(whole, parts))


def zero_redundancy(name):
    """torch's ZeroRedundancyOptimizer over an optgen class, and the class itself."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    plain, shared = ([nn.Parameter(v) for v in values(SHAPES, 99)] for _ in range(2))
    one = make(name)(plain, lr=0.1)
    two = ZeroRedundancyOptimizer(shared, optimizer_class=make(name), lr=0.1)
    for k in range(3):
        for params in (plain, shared):
            for p, g in zip(params, values(SHAPES, k), strict=True):
                p.grad = g
        one.step()
        two.step()
        two.param_groups[0]["lr"] = one.param_groups[0]["lr"] = 0.1 / (k + 1)
    return max(deviation(a, b) for a, b in zip(shared, plain, strict=True))


def data_parallel(name):
    """DDP: every process ends with the same parameters, which are those of all the data in one process."""
    from torch.nn.parallel import DistributedDataParallel

    models = []
    for _ in range(2):
        torch.manual_seed(1)
        models.append(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)))
    plain, wrapped = models[0], DistributedDataParallel(models[1])
    one, two = make(name)(plain.parameters()), make(name)(wrapped.parameters())
    world, rank = dist.get_world_size(), dist.get_rank()
    for k in range(3):
        generator = torch.Generator().manual_seed(k)
        x, y = torch.randn(12, 5, generator=generator), torch.randn(12, 2, generator=generator)
        for model, optimizer, mine in ((plain, one, slice(None)), (wrapped, two, slice(rank, None, world))):
            ((model(x[mine]) - y[mine]) ** 2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for p in wrapped.parameters():
        others = [torch.empty_like(p) for _ in range(world)]
        dist.all_gather(others, p.detach())
        assert all(torch.equal(other, p) for other in others)
    return max(deviation(a, b) for a, b in zip(wrapped.parameters(), plain.parameters(), strict=True))


def not_finite(name):
    """A NaN in one part, and an infinity in another, reach every process."""
    whole, parts = pair(name, mesh_of(), [Shard(0)], "numpy", [(7, 5)])
    for bad in (torch.nan, torch.inf):
        (g,) = values([(7, 5)], 0)
        g[6, 4] = bad
        for optimizer, (p,) in (whole, parts):
            p.grad = spread(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g
            optimizer.step()
        assert torch.equal(full(parts[1][0]).isfinite(), whole[1][0].isfinite())
    return compare(whole, parts)


def versions():
    """Autograd sees that a step wrote into a distributed parameter."""
    p = nn.Parameter(spread(torch.ones(4, 3), mesh_of(), [Shard(0)]))
    optimizer = optgen.SGD([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = spread(torch.ones(4, 3), mesh_of(), [Shard(0)])
    before = p._version
    optimizer.step()
    assert p._version > before
    try:
        loss.backward()
    except RuntimeError as error:
        return str(error)
    return ""


def errors():
    """The messages about what cannot be done."""
    mesh, found = mesh_of(), []

    def attempt(make_params, cls, grad=None):
        params = make_params()
        optimizer = cls(params, backend="numpy")
        for p in params:
            p.grad = grad(p) if grad else torch.zeros_like(p)
        try:
            optimizer.step()
        except ValueError as error:
            found.append(str(error))
        else:
            found.append("no error")
        assert all("step" not in s or float(s["step"]) == 0 for s in optimizer.state.values())

    partial = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    attempt(lambda: [nn.Parameter(partial)], optgen.SGD)
    divided = [Shard(0)]
    attempt(lambda: [nn.Parameter(spread(torch.ones(4), mesh, divided))], optgen.SGD, lambda p: torch.ones(4))
    attempt(lambda: [nn.Parameter(spread(torch.ones(64), mesh, divided))], make_blocks())
    return found


def make_blocks():
    blocks = "state(v=0, per=block(8))\nv = v + mean(g**2, axis=block(8))\np = p - g/sqrt(v + 1)"
    return optgen.optimizer(blocks)


def noise(divided, sizes=None):
    """What SGLD draws, divided in some way, for parameters of every shape."""
    mesh = mesh_of(sizes)
    placements = [Shard(d) if d >= 0 else Replicate() for d in divided]
    whole, parts = pair("sgld", mesh, placements, "cpu")
    for one in (whole, parts):
        train(*one, range(2))
    return compare(whole, parts)


def replicas(names):
    """Whether every process ends with the same values of what all of them hold whole."""
    for name in names:
        _, (optimizer, params) = pair(name, mesh_of(), [Shard(0)], "numpy")
        train(optimizer, params, range(3))
        for p in params:
            for key, value in optimizer.state[p].items():
                mine = value.to_local() if isinstance(value, DTensor) else value
                if not isinstance(value, DTensor) or value.placements[0].is_replicate():
                    others = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
                    dist.all_gather(others, mine.contiguous())
                    assert all(np.array_equal(o.numpy(), mine.numpy()) for o in others), (name, key)
