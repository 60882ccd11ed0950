"""Rules with values for rows, columns, units, dimensions, blocks and all tensors, and how to run them.

In: a rule's text and a back end. Out: parameters and states after some steps, for tensors of every number of
dimensions, sizes below and above a tile, and memory in other orders.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import optgen
from optgen import library

RULES = {
    "factored": """
hyper(lr=1e-2, beta=0.9)
state(r=0, per=row)
state(c=0, per=col)
state(v=0)
if ndim >= 2:
    r = beta*r + (1 - beta)*mean(g**2, axis=-1)
    c = beta*c + (1 - beta)*mean(g**2, axis=-2)
    x = g/sqrt(r*c/mean(r, axis=-2) + 1e-3)
else:
    v = beta*v + (1 - beta)*g**2
    x = g/sqrt(v + 1e-3)
x = x/maximum(1, rms(x))
p = p - lr*maximum(1e-3, rms(p))*x
""",
    "matrix": """
hyper(lr=1e-2)
state(top=0, per=matrix)
state(r=0, per=row)
c = norm(g, axis=-2)
r = maximum(r, amax(abs(g), axis=-1))
top = maximum(top, amax(r, axis=-2) + sum(c, axis=-1))
p = p - lr*g/(top + c + r)*mean(c)
""",
    "unit": """
hyper(lr=1e-2)
state(a=0, per=unit)
a = maximum(a, norm(g, axis=unit))
p = p - lr*g/(a + 1e-3)*sum(a)
""",
    "dims": """
hyper(lr=1e-2)
state(a=0, per=dim(0))
state(b=0, per=dim(1))
state(c=0, per=dim(2))
state(last=0, per=dim(-1))
m = 1
if ndim > 0:
    last = last + mean(g, axis=dim(-1))
    m = a + last**2
if ndim > 1:
    m = minimum(m, b + 1)
if ndim > 2:
    m = minimum(m, c + 2)
v = m + g**2
if ndim > 0:
    a = amax(v, axis=dim(0))
if ndim > 1:
    b = amax(v, axis=dim(1))
if ndim > 2:
    c = amax(v, axis=dim(2))
p = p - lr*g/sqrt(v + 1e-3)
""",
    "block": """
hyper(lr=1e-2)
state(v=0, per=block(8))
v = 0.9*v + 0.1*mean(g**2, axis=block(8))
p = p - lr*g/sqrt(v + 1e-3)*amax(v)
""",
    "total": """
hyper(lr=1e-2, max_norm=1.0)
state(d=1e-3, k=0, per=all)
size = norm(g, over=all)
x = g*minimum(1, max_norm/(size + 1e-6))
d = maximum(d, 0.1*rms(x, over=all) + 0.01*lr)
k = t
p = p - lr*d*x - 1e-3*lr*amax(abs(g), over=all)
""",
    "row total": """
hyper(lr=1e-2)
state(r=0, per=row)
x = norm(g, axis=-1)
far = amax(amax(x), over=all)
r = r + x/far
p = p - lr*g/(r + mean(sum(x/far), over=all))
""",
    "noise": """
hyper(lr=1e-2)
p = p - lr*g + 0.01*normal() + 0.1*uniform() - 0.3*normal()
""",
}
FACTORED = {name: name for name in ("adafactor", "came", "sm3", "adamp", "sgdp")}
FACTORED["adafactor with a first moment"] = library.rule("adafactor", beta1=0.9)
FACTORED["sm3 with momentum"] = library.rule("sm3", momentum=0.9)
FACTORED["neuron_norm"] = library.chain("adamw", "neuron_norm")
SHAPES = ((7,), (6, 5), (4, 3, 2), (), (2, 3, 4, 5), (1, 9), (11, 1))
LARGE = (*SHAPES, (70, 530), (130, 3), (3, 65, 33), (20_000,))
SMALL = (*SHAPES, (19, 35), (3, 5, 17))


def parameters(shapes, dtype):
    """Tensors of these shapes, some in other memory orders, and one of another dtype."""
    generator = torch.Generator().manual_seed(0)

    def make(shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    found = [make(shape) for shape in shapes]
    found += [make((5, 12)).t(), make((6, 8))[::2, 1:6], make((2, 5, 3, 4)).permute(0, 3, 1, 2)]
    found.append(make((3, 4), torch.float64 if dtype is torch.float32 else torch.float32))
    return [nn.Parameter(p) for p in found]


def train(text, backend, shapes, dtype=torch.float32, steps=3, **options):
    """The optimizer and its parameters after some steps of a rule."""
    params = parameters(shapes, dtype)
    optimizer = optgen.optimizer(text)(params, backend=backend, **options)
    for k in range(steps):
        generator = torch.Generator().manual_seed(k + 1)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
    return optimizer, params


def stored(optimizer, params):
    """Every number that the optimizer has, by name, in float64."""
    found = {f"p of {i}": p for i, p in enumerate(params)}
    for i, p in enumerate(params):
        found |= {f"{key} of {i}": value for key, value in optimizer.state[p].items()}
    found |= {key: x for key, x in optimizer.param_groups[0].items() if isinstance(x, torch.Tensor)}
    return {name: x.detach().double().numpy() for name, x in found.items()}


def check(text, backend, shapes, dtype, tolerance):
    """A back end agrees with the reference, and with itself."""
    mine, again, right = (stored(*train(text, b, shapes, dtype)) for b in (backend, backend, "numpy"))
    assert mine.keys() == right.keys()
    for name, x in right.items():
        assert np.array_equal(mine[name], again[name]), name
        assert np.isfinite(x).all(), name
        assert np.abs(mine[name] - x).max() <= tolerance * max(np.abs(x).max(), 1e-3), name
