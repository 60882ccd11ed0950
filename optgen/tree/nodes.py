"""Tree traversal: the children of a node, which of them are trained, and how to rebuild the node.

In: dicts, lists, tuples and whatever else `torch.utils._pytree` knows; modules, dataclasses, and classes
that `trainable` is told about. Out: their children with keys. Arrays are torch tensors and NumPy arrays of
floating point; nothing else is trained, and of a module only the parameters that require a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from optgen.launch.work import CODEC_OF, SUPPORTED

Path = tuple[Hashable, ...]
Array = Tensor | np.ndarray


@singledispatch
def trainable(node: Any) -> Mapping[str, Any] | None:
    """Which attributes of a class are trained, for classes registered here; None for all children.

    `trainable.register(Layer, lambda layer: {"alpha": layer.alpha})` leaves all else in a Layer alone.
    """
    return None


@dataclass
class Children:
    """The trained children of a node, and constructors for nodes like it."""

    items: list[tuple[Hashable, Any]]
    names: set[Hashable]  # of all children, also those that are not trained
    remake: Callable[[Sequence[Any]], Any]  # a copy of the node with other children
    nest: Callable[[Sequence[Any]], Any]  # a container of the same nesting for state trees


def children(node: Any) -> Children | None:
    """A node's children, or None for a leaf."""
    chosen = trainable(node)
    if chosen is not None:
        return _attributes(node, dict(chosen))
    if isinstance(node, nn.Module):
        own = {k: p for k, p in node._parameters.items() if p is not None and _moves(p)}
        return _attributes(node, {**own, **{k: m for k, m in node._modules.items() if m is not None}})
    if isinstance(node, torch.Tensor | np.ndarray | nn.Module):
        return None
    if type(node) not in pytree.SUPPORTED_NODES and not pytree.is_namedtuple_instance(node):
        if is_dataclass(node) and not isinstance(node, type):
            return _attributes(node, {f.name: getattr(node, f.name) for f in fields(node)})
        return None
    # One level only: each child is asked for its own children.
    entries, spec = pytree.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    items = [(_key(path[0]), child) for path, child in entries]

    def remake(new: Sequence[Any]) -> Any:
        return pytree.tree_unflatten(new, spec)

    return Children(items, {key for key, _ in items}, remake, remake)


def _moves(p: Tensor) -> bool:
    """Whether a module's parameter is trained: also a plain tensor, which `destructure` puts in its place."""
    return p.requires_grad or not isinstance(p, nn.Parameter)


def _key(entry: Any) -> Hashable:
    """The key, index or name in an entry of a pytree path."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            key: Hashable = getattr(entry, name)
            return key
    return str(entry)


def _attributes(node: Any, trained: dict[str, Any]) -> Children:
    """The children of a node with attributes: a module, a dataclass or a registered class."""
    names = {*trained, *(node._parameters if isinstance(node, nn.Module) else getattr(node, "__dict__", ()))}
    if isinstance(node, nn.Module):
        names |= {*node._buffers, *node._modules}

    def remake(new: Sequence[Any]) -> Any:
        return _with_attributes(node, dict(zip(trained, new, strict=True)))

    def nest(new: Sequence[Any]) -> Any:
        return dict(zip(trained, new, strict=True))

    return Children(list(trained.items()), names, remake, nest)


def _with_attributes(node: Any, new: Mapping[str, Any]) -> Any:
    """A shallow copy of a node with other attributes; a module's parameters may become any tensors."""
    if not isinstance(node, nn.Module):
        new_node = copy.copy(node)
        for name, value in new.items():
            object.__setattr__(new_node, name, value)  # also of a frozen dataclass
        return new_node
    # Not copy.copy, which parametrized modules refuse. The original keeps its own three dictionaries.
    new_node = object.__new__(type(node))
    new_node.__dict__.update(node.__dict__)
    for table in ("_parameters", "_buffers", "_modules"):
        new_node.__dict__[table] = dict(getattr(node, table))
    for name, value in new.items():
        new_node.__dict__["_modules" if name in new_node._modules else "_parameters"][name] = value
    return new_node


def is_array(leaf: Any) -> bool:
    """Whether a leaf is trained: a tensor or NumPy array of floating point or complex numbers."""
    if isinstance(leaf, Tensor):
        return leaf.is_floating_point() or leaf.is_complex()
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fc"


def check_storage(array: Array, path: Path) -> None:
    """Refuse an array whose dtype optgen cannot train.

    Raises:
        ValueError: the array is complex, or of a dtype that optgen does not support.
    """
    if isinstance(array, Tensor):
        supported = array.dtype in CODEC_OF
    else:
        supported = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    if not supported:
        hint = "; train its real and imaginary parts" if "complex" in str(array.dtype) else ""
        raise ValueError(f"the array at {text_of(path)} is {array.dtype}; optgen trains {SUPPORTED}{hint}")


def arrays(node: Any, path: Path = ()) -> Iterator[tuple[Path, Array]]:
    """Every trained array with its path, depth first; tied ones at every place."""
    inside = children(node)
    if inside is None:
        if is_array(node):
            yield path, node
        return
    for key, child in inside.items:
        yield from arrays(child, (*path, key))


def replaced(node: Any, new: Mapping[int, Any], memo: dict[int, Any] | None = None) -> Any:
    """The tree with other leaves, by the old ones' `id`; subtrees without any are not copied."""
    # By id, so that a node which is at two places stays one object. The caller keeps all nodes alive.
    memo = {} if memo is None else memo
    if id(node) in memo:
        return memo[id(node)]
    inside = children(node)
    if inside is None:
        return new.get(id(node), node)
    others = [replaced(child, new, memo) for _, child in inside.items]
    same = all(a is b for a, (_, b) in zip(others, inside.items, strict=True))
    memo[id(node)] = node if same else inside.remake(others)
    return memo[id(node)]


def text_of(path: Path) -> str:
    """A path as error messages show it."""
    return ".".join(map(str, path)) or "the root"


# Tied arrays


def shares(array: np.ndarray) -> bool:
    """Whether `torch.from_numpy` can share an array's memory and write into it."""
    return bool(array.flags.writeable and array.dtype.isnative and all(s >= 0 for s in array.strides))


def tensor_of(array: Array) -> Tensor:
    """A tensor that shares the array's memory, or a copy where torch cannot write into it."""
    if isinstance(array, Tensor):
        return array.detach()
    return torch.from_numpy(array if shares(array) else np.array(array, array.dtype.newbyteorder("=")))


def identity(array: Array) -> Hashable:
    """A key that tied arrays share: same memory, dtype and strides, in whatever order of dimensions.

    Views of the same elements with other sizes, as from `reshape`, have other keys. So has every array
    without an address of its own: empty ones, sparse ones, those on meta.
    """
    if isinstance(array, Tensor):
        if array.layout is not torch.strided or not array.numel() or not _has_memory(array):
            return id(array)
        address, strides = array.data_ptr(), array.stride()
    else:
        address, strides = array.__array_interface__["data"][0], array.strides
        if not array.size:
            return id(array)
    # Dimensions of 1 have arbitrary strides, and only their number counts.
    dims = sorted((s, n) for s, n in zip(strides, array.shape, strict=True) if n > 1)
    where = str(getattr(array, "device", "numpy"))
    return where, address, str(array.dtype), len(dims), array.ndim, *dims


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has an address: not on meta, and not a wrapper of `torch.func`."""
    return not tensor.is_meta and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def aligned(other: Tensor, of: Tensor, to: Tensor) -> Tensor:
    """Permute a tensor as `to` is a permutation of `of`: tied arrays may be transposes of each other."""
    if of.shape == to.shape and of.stride() == to.stride():
        return other
    # Dimensions correspond by their place in the order of strides, which a permutation leaves as it is.
    mine, theirs = (sorted(range(t.dim()), key=lambda d: (t.stride(d), t.shape[d])) for t in (of, to))
    order = [0] * len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        order[b] = a
    return other.permute(order)
