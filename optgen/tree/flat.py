"""A model's arrays as a list, and as one flat vector.

In: a tree. Out: its arrays, tied ones once, in the order of traversal; or all of them in one vector, and
what makes the tree of such a vector again. Both directions can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.tree.nodes import Array, Path, aligned, arrays, children, identity, replaced, tensor_of, text_of


def trainables(model: Any, path: bool = False) -> list[Any]:
    """The arrays that are trained, tied ones once, in the order of traversal.

    Args:
        model: a tree.
        path: whether to return pairs of a path, a tuple of keys, and an array.
    """
    found: dict[Any, tuple[Path, Array]] = {}
    for place, array in arrays(model):
        found.setdefault(identity(array), (place, array))
    return list(found.values()) if path else [array for _, array in found.values()]


def get_path(model: Any, path: Sequence[Any]) -> Any:
    """What lies at a path, as `trainables(model, path=True)` gives it.

    Args:
        model: a tree.
        path: keys from the outermost in: indices, names of fields or attributes, keys of dicts.

    Raises:
        KeyError: nothing lies there; the message says what does.
    """
    node = model
    for depth, key in enumerate(path):
        inside = children(node)
        entries = {} if inside is None else dict(inside.items)
        if key not in entries:
            raise KeyError(
                f"{text_of(tuple(path[: depth + 1]))}; there are: {', '.join(map(str, entries)) or 'none'}"
            )
        node = entries[key]
    return node


class Restructure:
    """What makes a tree like the one that was flattened: `re(flat)`; of another model, `re(model, flat)`.

    Args:
        model: a tree, which stays as it is.
    """

    def __init__(self, model: Any):
        self.model = model
        self.length = sum(_size(array) for array in trainables(model))

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"Restructure({type(self.model).__name__}, {self.length})"

    def __call__(self, *arguments: Any) -> Any:
        """The model with its arrays' values from a flat vector.

        Raises:
            ValueError: the vector is not as long as the model needs.
        """
        model, flat = arguments if len(arguments) == 2 else (self.model, *arguments)
        length = sum(_size(array) for array in trainables(model))
        if flat.ndim != 1 or len(flat) != length:
            raise ValueError(f"this model needs a vector of {length} values, not shape {tuple(flat.shape)}")
        first: dict[Any, tuple[Array, Any]] = {}
        new, used = {}, 0
        for _, array in arrays(model):
            key = identity(array)
            if key not in first:
                size = _size(array)
                first[key] = array, _shaped(flat[used : used + size], array)
                used += size
            new[id(array)] = _aligned(first[key][1], first[key][0], array)
        return replaced(model, new)


def destructure(model: Any) -> tuple[Any, Restructure]:
    """All trained arrays in one vector of their common dtype, and what makes the model again.

    Args:
        model: a tree; tied arrays are in the vector once, at their first place.

    Returns:
        A tensor of one dimension, or a NumPy array where all are; and a function: `re(flat)` is the model
        with these values, each in its own dtype, ties kept; `len(re)` is the length.
    """
    found = trainables(model)
    if found and all(isinstance(array, np.ndarray) for array in found):
        return np.concatenate([array.reshape(-1) for array in found]), Restructure(model)
    tensors = [array if isinstance(array, Tensor) else tensor_of(array) for array in found]
    kind = torch.get_default_dtype()
    for i, tensor in enumerate(tensors):
        kind = torch.promote_types(kind, tensor.dtype) if i else tensor.dtype
    parts = [tensor.reshape(-1).to(kind) for tensor in tensors]
    return torch.cat(parts) if parts else torch.empty(0, dtype=kind), Restructure(model)


def _size(array: Array) -> int:
    return array.numel() if isinstance(array, Tensor) else array.size


def _shaped(values: Any, like: Array) -> Any:
    """A part of a flat vector as an array like another one."""
    if isinstance(like, Tensor):
        values = values if isinstance(values, Tensor) else torch.as_tensor(values)
        return values.reshape(like.shape).to(like.device, like.dtype)
    if isinstance(values, Tensor):
        values = values.detach().numpy()
    return values.reshape(like.shape).astype(like.dtype)


def _aligned(made: Any, first: Array, array: Array) -> Any:
    """A tied array at another place, where its dimensions may come in another order."""
    if isinstance(made, Tensor):
        return aligned(made, tensor_of(first), tensor_of(array))
    return aligned(torch.from_numpy(made), tensor_of(first), tensor_of(array)).numpy()
