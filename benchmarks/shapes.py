"""The tensors that benchmarks run on: two lists of shapes, and parameters of them with gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Shape = tuple[int, ...]


def gpt2_small(scale: float = 1.0) -> list[Shape]:
    """52 tensors, 44.5 million elements: GPT-2's width of 768, 4 of its 12 layers, 20,000 tokens.

    `scale` shrinks the width and the number of tokens, for tests.
    """
    d, tokens = round(768 * scale), round(20_000 * scale)
    attention = [(3 * d, d), (3 * d,), (d, d), (d,)]
    mlp = [(4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    norm = [(d,), (d,)]
    return [(tokens, d), (1024, d), *4 * [*norm, *attention, *norm, *mlp], *norm]


def many_small() -> list[Shape]:
    """1,000 tensors, 2.1 million elements: matrices of 64 by 64, each with a bias."""
    return 500 * [(64, 64), (64,)]


SETS = {52: gpt2_small, 1000: many_small}


def tensors(shapes: Iterable[Shape], dtype: Any = None, device: Any = None) -> list[Any]:
    """Parameters with gradients, the same ones at every call; torch is imported by the first."""
    import torch

    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype, device=device)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def copies(params: Iterable[Any], dtype: Any = None) -> list[Any]:
    """The same parameters and gradients again, which is faster than to draw them again."""
    import torch

    made = []
    for p in params:
        made.append(torch.nn.Parameter(p.detach().to(dtype or p.dtype, copy=True)))
        made[-1].grad = p.grad.to(dtype or p.dtype, copy=True)
    return made
