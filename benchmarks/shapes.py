"""The tensors that benchmarks run on: two lists of shapes."""

from __future__ import annotations

Shape = tuple[int, ...]


def gpt2_small() -> list[Shape]:
    """52 tensors, 44.5 million elements: GPT-2's width of 768, 4 of its 12 layers, 20,000 tokens."""
    d = 768
    attention = [(3 * d, d), (3 * d,), (d, d), (d,)]
    mlp = [(4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    norm = [(d,), (d,)]
    return [(20_000, d), (1024, d), *4 * [*norm, *attention, *norm, *mlp], *norm]


def many_small() -> list[Shape]:
    """1,000 tensors, 2.1 million elements: matrices of 64 by 64, each with a bias."""
    return 500 * [(64, 64), (64,)]


SETS = {52: gpt2_small, 1000: many_small}
