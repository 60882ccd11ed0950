"""Flattening: a model's arrays as a list, or concatenated into one vector and back.

In: a tree. Out: its arrays, tied ones once, in the order of traversal; or one vector of all of them, and a
function that rebuilds the tree from such a vector. torch can differentiate through both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optgen.tree.nodes import Array, Path, aligned, arrays, children, identity, replaced, tensor_of, text_of


def trainables(model: Any, path: bool = False) -> list[Any]:
    """The trained arrays of a model, tied ones once, in the order of traversal.

    Args:
        model: a tree.
        path: whether to return pairs of a path, a tuple of keys, and an array.

    Returns:
        The arrays themselves, not copies: torch tensors and NumPy arrays of floating point.
    """
    first_places: dict[Any, tuple[Path, Array]] = {}
    for place, array in arrays(model):
        first_places.setdefault(identity(array), (place, array))
    return list(first_places.values()) if path else [array for _, array in first_places.values()]


def get_path(model: Any, path: Sequence[Any]) -> Any:
    """The part of a model at a path, such as `trainables(model, path=True)` returns.

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
    """Rebuilds a model from a flat vector: `re(flat)`; in the structure of another model, `re(model, flat)`.

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
        """A copy of the model whose trained arrays have their values from a flat vector.

        Args:
            *arguments: a vector, or a model and a vector. A vector is a tensor or an array of one dimension,
                as long as the model's trained arrays together.

        Returns:
            A model in which each array has its own shape, dtype and device, and ties are kept. The rest is
            shared with the model.

        Raises:
            ValueError: the vector is not as long as the model needs.
        """
        model, flat = arguments if len(arguments) == 2 else (self.model, *arguments)
        length = sum(_size(array) for array in trainables(model))
        if flat.ndim != 1 or len(flat) != length:
            raise ValueError(f"this model needs a vector of {length} values, not shape {tuple(flat.shape)}")
        # By identity: the array at its first place, which decides the order of elements, and its new values.
        first: dict[Any, tuple[Array, Any]] = {}
        new, offset = {}, 0
        for _, array in arrays(model):
            key = identity(array)
            if key not in first:
                size = _size(array)
                first[key] = array, _shaped(flat[offset : offset + size], array)
                offset += size
            new[id(array)] = _aligned(first[key][1], first[key][0], array)
        return replaced(model, new)


def destructure(model: Any) -> tuple[Any, Restructure]:
    """Concatenate all trained arrays into one vector of their common dtype, with a function back.

    Args:
        model: a tree; tied arrays are in the vector once, at their first place.

    Returns:
        A tensor of one dimension, or a NumPy array where all are; and a function: `re(flat)` is the model
        with these values, each in its own dtype, ties kept; `len(re)` is the length.
    """
    sources = trainables(model)
    if sources and all(isinstance(array, np.ndarray) for array in sources):
        return np.concatenate([array.reshape(-1) for array in sources]), Restructure(model)
    tensors = [array if isinstance(array, Tensor) else tensor_of(array) for array in sources]
    dtype = torch.get_default_dtype()
    # Not from the default dtype: float16 arrays alone make a float16 vector.
    for i, tensor in enumerate(tensors):
        dtype = torch.promote_types(dtype, tensor.dtype) if i else tensor.dtype
    parts = [tensor.reshape(-1).to(dtype) for tensor in tensors]
    return torch.cat(parts) if parts else torch.empty(0, dtype=dtype), Restructure(model)


def _size(array: Array) -> int:
    return array.numel() if isinstance(array, Tensor) else array.size


def _shaped(values: Any, like: Array) -> Any:
    """Reshape a part of a flat vector to an array's shape, device, dtype and type."""
    if isinstance(like, Tensor):
        values = values if isinstance(values, Tensor) else torch.as_tensor(values)
        return values.reshape(like.shape).to(like.device, like.dtype)
    if isinstance(values, Tensor):
        values = values.detach().numpy()
    return values.reshape(like.shape).astype(like.dtype)


def _aligned(new: Any, first: Array, array: Array) -> Any:
    """New values for a tied array that is a view with another order of dimensions, a transpose."""
    if isinstance(new, Tensor):
        return aligned(new, tensor_of(first), tensor_of(array))
    return aligned(torch.from_numpy(new), tensor_of(first), tensor_of(array)).numpy()
