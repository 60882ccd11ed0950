"""Steps of the functional API: a model updated with gradients, in place or as a copy.

In: a state tree, a model, and gradients of the model's nesting. Out: the state tree and the model after one
step. The gradients of tied arrays are summed, and all arrays of one step go through the launcher together,
as in `optgen.optim.steps`. As there, whatever can fail comes before the first launch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optgen.ir.extent import Extent
from optgen.launch.door import resolved
from optgen.launch.recording import Ready
from optgen.launch.uninterrupted import Uninterrupted
from optgen.launch.work import Work
from optgen.locks import holding
from optgen.tree.nodes import (
    Array,
    Path,
    aligned,
    arrays,
    check_storage,
    children,
    identity,
    is_array,
    replaced,
    shares,
    tensor_of,
    text_of,
)
from optgen.tree.rules import Rule
from optgen.tree.states import Engine, Leaf


@dataclass
class Move:
    """The update of one array in a step, or of tied arrays: leaf, tensor, summed gradient and inputs."""

    leaf: Leaf
    path: Path
    target: Tensor
    arrays: list[Array] = field(default_factory=list)  # at all places; `path` and `target` are of the first
    summed: list[Any] = field(default_factory=list)  # the gradients in `grad`, by identity
    grad: Tensor | None = None  # laid out like `target`
    inputs: dict[str, Tensor] = field(default_factory=dict)


def update(state: Any, model: Any, grads: Any, **inputs: Any) -> tuple[Any, Any]:
    """One step out of place: the given state and model stay as they are.

    Args:
        state: what `setup` or the last step returned.
        model: of the same nesting.
        grads: likewise, each of its array's shape, as a tensor or an array; it is converted to a dtype that
            the kernel takes. None, or a key that is missing, is no gradient: that part does not move, nor
            does its state. For a module also a dict by dotted names, or `gradients(module)`.
        **inputs: what the rule declares with `input()`: a tree of the same nesting, or one number.

    Returns:
        The new state tree and the new model.

    Raises:
        TypeError: something else where the state tree, or an input, belongs.
        ValueError: the trees do not fit; the message says where.
    """
    new: dict[int, Any] = {}
    first: dict[Any, tuple[Tensor, Tensor]] = {}  # by identity, the old and the new tensor at the first place
    for _, array in arrays(model):
        if id(array) in new:
            continue
        old, key = tensor_of(array), identity(array)
        if key not in first:
            first[key] = old, old.clone(memory_format=torch.preserve_format)
        aligned_copy = aligned(first[key][1], first[key][0], old)
        if isinstance(array, Tensor):
            is_parameter = isinstance(array, nn.Parameter)
            new[id(array)] = nn.Parameter(aligned_copy, array.requires_grad) if is_parameter else aligned_copy
            new[id(array)].requires_grad_(array.requires_grad)
        else:
            new[id(array)] = aligned_copy.numpy()
    return update_(copy.deepcopy(state), replaced(model, new), grads, **inputs)


@torch.no_grad()
def update_(state: Any, model: Any, grads: Any, **inputs: Any) -> tuple[Any, Any]:
    """One step in place, wherever arrays can be written; see `update`.

    Returns:
        The same state tree, and the model: the same object, unless it has NumPy arrays that cannot be
        written, which are new in the model that is returned.
    """
    with Uninterrupted():  # a signal handler could change what has been checked
        return _update(state, model, grads, inputs)


def _update(state: Any, model: Any, grads: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Match trees into one `Move` for each array, then make the step under the launchers' locks."""
    moves: dict[Any, Move] = {}
    owners: dict[int, Move] = {}
    for path, leaf, array, grad, array_inputs in _pairs(state, model, grads, inputs, ()):
        key = identity(array)
        if key not in moves:
            moves[key] = _first(owners, path, leaf, array)
        move = moves[key]
        # Arrays may have been tied or untied since `setup`.
        if move.leaf is not leaf:
            places = f"{text_of(move.path)} and {text_of(path)}"
            raise ValueError(f"the arrays at {places} are tied now, and have two states")
        move.arrays.append(array)
        if grad is not None and not leaf.frozen:
            _add(move, path, array, grad, array_inputs)
    moving = [move for move in moves.values() if move.grad is not None]
    for move in moving:  # states that a changed hyperparameter uses for the first time
        move.leaf.begin(move.target)
    engines = list({id(m.leaf.engine): m.leaf.engine for m in moving}.values())
    # Copies of a state tree share a launcher and its tables. Locks are taken in one order everywhere, so that
    # two threads never wait for each other.
    launchers = sorted({engine.launcher for engine in engines}, key=id)
    new: dict[int, np.ndarray] = holding([x.lock for x in launchers], _move, engines, moving, inputs)
    return state, replaced(model, new) if new else model


def _move(engines: Sequence[Engine], moving: list[Move], inputs: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """Prepare the launches of all engines, then launch and count; values of read-only arrays by id.

    `_prepare` is all that may raise: once an engine has launched, the others must too.
    """
    steps = [(engine, _prepare(engine, moving, inputs)) for engine in engines]
    new: dict[int, np.ndarray] = {}
    for engine, ready in steps:
        if ready is not None:
            ready.launch()
        engine.steps += 1
    for move in moving:
        new |= _finish(move)
    return new


def _finish(move: Move) -> dict[int, np.ndarray]:
    """Count an array's step, and write its value where the kernel did not: master and NumPy copies."""
    leaf, new = move.leaf, {}
    leaf.state["step"] += 1
    if "master" in leaf.state:
        move.target.copy_(leaf.state["master"])
    for array in move.arrays:
        if isinstance(array, np.ndarray) and not shares(array):
            value = aligned(move.target, move.target, tensor_of(array)).numpy()
            if array.flags.writeable:
                array[...] = value
            else:
                new[id(array)] = value
    return new


def _first(owners: dict[int, Move], path: Path, leaf: Leaf, array: Array) -> Move:
    """The `Move` of an array that this step meets for the first time.

    Raises:
        ValueError: the state belongs to another array.
    """
    check_storage(array, path)
    target = tensor_of(array)
    if id(leaf) in owners:
        places = f"{text_of(owners[id(leaf)].path)} and {text_of(path)}"
        raise ValueError(f"the arrays at {places} have one state, and are not tied now")
    if tuple(target.shape) != leaf.shape:
        shapes = f"{tuple(target.shape)}, and its state is for {leaf.shape}"
        raise ValueError(f"the array at {text_of(path)} has the shape {shapes}: call setup again")
    owners[id(leaf)] = move = Move(leaf, path, target)
    return move


def _add(move: Move, path: Path, array: Array, grad: Any, inputs: Mapping[str, Any]) -> None:
    """Add an array's gradient at one of its places to the sum of its move."""
    target = tensor_of(array)
    tensor = aligned(_like(grad, target, path, "gradient"), target, move.target)
    if move.grad is None:
        move.inputs = {
            name: aligned(_like(value, target, path, name), target, move.target)
            for name, value in inputs.items()
        }
        move.grad = tensor
    # A module's tied parameters are one object with one `.grad`, in which torch has summed both places.
    elif not any(grad is g for g in move.summed):
        move.grad = move.grad + tensor
    move.summed.append(grad)


def _like(value: Any, target: Tensor, path: Path, what: str) -> Tensor:
    """Convert a gradient or an input to a tensor of the array's shape and device, in a dtype for kernels.

    Raises:
        ValueError: it has another shape, is complex, or is no array.
    """
    try:
        tensor = resolved(value.detach()) if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except TypeError as error:
        raise ValueError(f"the {what} at {text_of(path)} is no array: {error}") from None
    if tensor.is_complex():
        raise ValueError(f"the {what} at {text_of(path)} is complex, and the array is not")
    if tensor.shape != target.shape:
        shapes = f"{tuple(tensor.shape)}, and the array {tuple(target.shape)}"
        raise ValueError(f"the {what} at {text_of(path)} has the shape {shapes}")
    if tensor.layout is not torch.strided or not tensor.is_floating_point():
        tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
        tensor = tensor.to(torch.promote_types(target.dtype, torch.float32))
    # NumPy's numbers are float64 by default, which must not make the step of a float32 array one in float64.
    if tensor.dtype.itemsize > max(4, target.dtype.itemsize):
        tensor = tensor.to(torch.float32)
    return tensor.to(target.device)


def _prepare(engine: Engine, moves: list[Move], inputs: Mapping[str, Any]) -> Ready | None:
    """The step of one engine's arrays up to its first launch; None if all are empty."""
    launcher, mine = engine.launcher, [m for m in moves if m.leaf.engine is engine]
    global_values = engine.numbers | _global_inputs(engine, inputs, mine[0].target.device)
    known_inputs = {*global_values, *mine[0].inputs}
    groups: dict[Rule, int] = {}  # leaves with equal rules share a row of scalars, as a parameter group
    work = []
    for move in mine:
        rule, state = move.leaf.rule, move.leaf.state
        group = groups.setdefault(rule, len(groups))
        target = state.get("master", move.target)
        facts = launcher.compiler.facts(rule.values, target.dim(), known_inputs)
        declared = launcher.compiler.specialised(facts).states.values()
        states = {s.name: state[s.key] for s in declared if s.extent is not Extent.ALL}
        step = state["step"].item() + 1.0
        if target.numel():  # an empty one is only counted
            work.append(Work(target, move.grad, states, group, facts, step, move.inputs, move.leaf.index))
    options = [rule.values for rule in groups]
    return launcher.prepare(work, options, None, global_values, engine.steps) if work else None


def _global_inputs(engine: Engine, inputs: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The inputs that are one number for all arrays, 0-d float64 on a device; checks the names of all inputs.

    Raises:
        TypeError: the rule has no such input, or needs one that is missing.
    """
    declared = engine.program.inputs
    for name in inputs:
        if name not in declared:
            raise TypeError(f"the rule has no input '{name}'; it has: {', '.join(declared) or 'none'}")
    for name, one in declared.items():
        if name not in inputs and one.default is None:
            raise TypeError(f"the rule needs the input '{name}': update(state, model, grads, {name}=…)")
    global_names = {name for name, one in declared.items() if one.extent is Extent.ALL}
    return {
        name: torch.as_tensor(value, dtype=torch.float64, device=device).detach().reshape(())
        for name, value in inputs.items()
        if name in global_names
    }


# Walks over several trees at once


def _pairs(
    state: Any, node: Any, grad: Any, inputs: Mapping[str, Any], path: Path
) -> Iterator[tuple[Path, Leaf, Array, Any, dict[str, Any]]]:
    """Walk state, model, gradients and inputs together; yields path, leaf, array, gradient, inputs."""
    inside = children(node)
    if inside is None:
        if not isinstance(state, Leaf):
            if is_array(node):
                what = "nothing" if isinstance(state, tuple) else type(state).__name__
                raise ValueError(
                    f"the state tree has {what} at {text_of(path)}, where the model has an array: "
                    "pass what setup(rule, model) returned"
                )
            return
        if not is_array(node):
            raise ValueError(f"the state tree has a leaf at {text_of(path)}, where the model has {node!r}")
        own = state.engine.program.inputs
        array_inputs = {n: v for n, v in inputs.items() if n in own and own[n].extent is not Extent.ALL}
        yield path, state, node, grad, array_inputs
        return
    states = _entries(state, path)
    wrong = set(grad) - inside.names if isinstance(grad, Mapping) else set()
    if wrong := {n for n in wrong if not _dotted(n, inside.names)}:
        raise ValueError(f"the gradients have '{min(map(str, wrong))}' at {text_of(path)}, the model has not")
    for key, child in inside.items:
        if key not in states:
            raise ValueError(
                f"the state tree has nothing at {text_of((*path, key))}: set it up for this model"
            )
        others = {
            name: _child(value, key, path, inside.names) for name, value in inputs.items() if not _one(value)
        }
        others |= {name: value for name, value in inputs.items() if _one(value)}
        yield from _pairs(states[key], child, _child(grad, key, path, inside.names), others, (*path, key))


def _one(value: Any) -> bool:
    """Whether an input is one number, and no tree."""
    return isinstance(value, float | int) or (isinstance(value, Tensor) and value.dim() == 0)


def _entries(state: Any, path: Path) -> dict[Any, Any]:
    """The children of a state tree's node by key."""
    inside = None if isinstance(state, Leaf) else children(state)
    if inside is None:
        raise ValueError(
            f"{type(state).__name__} stands at {text_of(path)} where the state tree has a node: "
            "pass what setup(rule, model) returned"
        )
    return dict(inside.items)


def _dotted(name: Any, names: set[Any]) -> bool:
    """Whether a name begins with one of these names and a dot, as `encoder.weight` does with `encoder`."""
    return isinstance(name, str) and any(name.startswith(f"{n}.") for n in names)


def _child(grad: Any, key: Any, path: Path, names: set[Any]) -> Any:
    """A child's part of the gradients or of an input, None without; mappings may have dotted names."""
    if grad is None:
        return None
    if isinstance(grad, Mapping):
        if key in grad:
            return grad[key]
        below = {
            n[len(f"{key}.") :]: v for n, v in grad.items() if isinstance(n, str) and n.startswith(f"{key}.")
        }
        return below or None
    inside = children(grad)
    entries = None if inside is None else dict(inside.items)
    if entries is None or (isinstance(key, int) and len(entries) != len(names)) or not names & {*entries}:
        raise ValueError(
            f"the gradients at {text_of(path)} do not have the model's nesting: {type(grad).__name__}"
        )
    return entries.get(key)


def gradients(module: Any) -> Any:
    """The tree of a model's `.grad`s, None where there is none: what `update` takes."""
    inside = children(module)
    if inside is None:
        return module.grad if isinstance(module, Tensor) else None
    return inside.nest([gradients(child) for _, child in inside.items])
