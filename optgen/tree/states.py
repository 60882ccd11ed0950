"""State trees: the optimizer state of each array of a model, in a tree of the model's nesting.

In: a rule and a model. Out: a state tree of the same nesting, with a `Leaf` for each array that is trained,
and `()` elsewhere. Tied arrays share one leaf.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from optgen.ir.extent import Extent
from optgen.launch.launcher import Launcher
from optgen.optim.checkpoint import counter_dtype
from optgen.tree.nodes import (
    Path,
    check_storage,
    children,
    identity,
    is_array,
    tensor_of,
)
from optgen.tree.rules import Rule


class Engine:
    """The launcher and the global states that all leaves of one rule in one tree share."""

    def __init__(self, rule: Rule, backend: str, math: str):
        self.rule, self.backend, self.math = rule, backend, math
        self.program = rule.program
        self.launcher = Launcher(self.program, backend, math)
        self.numbers: dict[str, Tensor] = {}  # global states, 0-d float64, on the device of the first array
        self.steps = 0  # of the tree, which rules with global states count

    def start(self, values: Mapping[str, Any], device: torch.device) -> None:
        """Create the global states that are missing, with their initial values."""
        for state in self.program.states.values():
            if state.extent is Extent.ALL and state.name not in self.numbers:
                first = self.launcher.number(state.init, values)
                self.numbers[state.name] = torch.tensor(first, dtype=torch.float64, device=device)

    def __reduce__(self) -> Any:
        # Without the launcher: compiled kernels and addresses mean nothing elsewhere.
        state = {"numbers": self.numbers, "steps": self.steps}
        return Engine, (self.rule, self.backend, self.math), state

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        new = object.__new__(Engine)
        # Copies share the launcher, which has plans and tables and no state; steps take its lock.
        new.__dict__.update(self.__dict__)
        new.numbers = {name: value.clone() for name, value in self.numbers.items()}
        memo[id(self)] = new
        return new


@dataclass(eq=False)
class Leaf:
    """The rule and the state of one array, or of tied arrays.

    Attributes:
        rule: what moves it.
        state: tensors by the keys of `state_dict`; `step` is a 0-d count of its steps, `master` the copy of
            `MixedPrecision`.
        frozen: whether steps leave it alone.
    """

    rule: Rule
    state: dict[str, Tensor]
    engine: Engine = field(repr=False)
    shape: tuple[int, ...] = ()  # of the array
    frozen: bool = False
    index: int = 0  # among the leaves of its tree, which the random numbers of a rule depend on

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Leaf):
            return NotImplemented
        if (self.rule, self.frozen, self.state.keys()) != (other.rule, other.frozen, other.state.keys()):
            return False
        pairs = ((value, other.state[key]) for key, value in self.state.items())
        return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        state = {key: value.tolist() for key, value in self.state.items()}
        return f"Leaf({self.rule!r}, {state}{', frozen=True' if self.frozen else ''})"

    def begin(self, target: Tensor) -> None:
        """Create the state that is missing, with its initial values."""
        # States are those of the master copy where there is one: its dtype, and it is what the kernel moves.
        if self.rule.master is not None:
            target = self.state.setdefault("master", target.detach().to(self.rule.master, copy=True))
        self.state.setdefault("step", torch.tensor(0.0, dtype=counter_dtype()))
        launcher, values = self.engine.launcher, self.rule.values
        facts = launcher.compiler.facts(values, target.dim())
        for state in launcher.compiler.specialised(facts).states.values():
            if state.extent is not Extent.ALL and state.key not in self.state:
                self.state[state.key] = launcher.initial(state, target, values, None)


def setup(rule: Rule, model: Any, *, backend: str = "auto", math: str = "exact") -> Any:
    """Create the state tree of a model: a `Leaf` for each trained array, of the model's nesting.

    Args:
        rule: such as `tree.Adam()`.
        model: a tree of arrays, or one array: torch tensors and NumPy arrays in float16, float32 or float64,
            tensors also in bfloat16.
        backend: "auto" (Triton on a GPU, Numba on the CPU), "triton", "cpu" or "numpy".
        math: "exact" (the same bits on every back end) or "fast".

    Returns:
        The state tree, with `()` in place of what is not trained. Tied arrays share one leaf.

    Warns:
        UserWarning: nothing in the model is trained.

    Raises:
        TypeError: the first argument is no rule.
        ValueError: an array's dtype is not supported.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"setup takes a rule first, such as tree.Adam(), not {rule!r}")
    engine = Engine(rule, backend, math)
    leaves: dict[Any, Leaf] = {}

    def mirror(node: Any, path: Path) -> Any:
        inside = children(node)
        if inside is not None:
            return inside.nest([mirror(child, (*path, key)) for key, child in inside.items])
        if not is_array(node):
            return ()
        check_storage(node, path)
        key = identity(node)
        if key not in leaves:
            target = tensor_of(node)
            leaves[key] = Leaf(rule, {}, engine, tuple(target.shape), index=len(leaves))
            leaves[key].begin(target)
            engine.start(rule.values, target.device)
        return leaves[key]

    tree = mirror(model, ())
    if not leaves:
        warnings.warn("setup found no trainable parameters in this model", UserWarning, stacklevel=2)
    return tree


# What may be changed between steps


def leaves(state: Any) -> list[Leaf]:
    """The leaves of a state tree or of a part of it, each once, depth first.

    Raises:
        ValueError: there is something else in it, as in a model.
    """
    by_id: dict[int, Leaf] = {}

    def visit(node: Any) -> None:
        if isinstance(node, Leaf):
            by_id[id(node)] = node
            return
        inside = children(node)
        if inside is None or isinstance(node, nn.Module):
            raise ValueError(
                f"this takes a state tree from setup, or a part of one, not {type(node).__name__}"
            )
        for _, child in inside.items:
            visit(child)

    visit(state)
    return list(by_id.values())


def freeze(state: Any) -> None:
    """Freeze the arrays of a state tree, or of a part of it, and their state until `thaw`.

    Args:
        state: what `setup` returned, or a part of it; changed in place.

    Raises:
        ValueError: it is no state tree.
    """
    for leaf in leaves(state):
        leaf.frozen = True


def thaw(state: Any) -> None:
    """Undo `freeze`; ValueError for anything but a state tree or a part of one."""
    for leaf in leaves(state):
        leaf.frozen = False


def adjust(state: Any, *eta: float, strict: bool = True, **values: Any) -> None:
    """Change hyperparameters in a state tree or in a part of it; the state stays.

    Args:
        state: what `setup` returned, or a part of it.
        *eta: the learning rate; rules without one stay as they are.
        strict: with False, names that no rule in it has are ignored.
        **values: hyperparameters by name, in every rule in it that has them.

    Raises:
        TypeError: no value, or one of the wrong kind.
        ValueError: no rule has such a hyperparameter, or a value is out of bounds; nothing is changed.
    """
    selected = leaves(state)
    rules = dict.fromkeys(leaf.rule for leaf in selected)
    for name in values if strict else ():
        if not any(part.kind.target(name) for rule in rules for part in rule.parts):
            for rule in rules:
                rule.adjusted(**{name: values[name]})  # raises, and lists the names that there are
    # All new rules first: an error must leave every leaf as it was.
    new = {rule: rule.adjusted(*eta, strict=False, **values) for rule in rules}
    for leaf in selected:
        leaf.rule = new[leaf.rule]


def adjusted(state: Any, *eta: float, strict: bool = True, **values: Any) -> Any:
    """A copy of a state tree, or of a rule, with other hyperparameters; see `adjust`."""
    if isinstance(state, Rule):
        return state.adjusted(*eta, strict=strict, **values)
    copied = copy.deepcopy(state)
    adjust(copied, *eta, strict=strict, **values)
    return copied


def to(state: Any, device: torch.device | str) -> Any:
    """Copy a state tree to a device, ties kept; step counts and states computed by the host stay on the CPU.

    Args:
        state: what `setup` returned, or a part of it; it stays as it is.
        device: as torch takes it.

    Raises:
        ValueError: it is no state tree.
    """
    copied = copy.deepcopy(state)
    for leaf in leaves(copied):
        launcher = leaf.engine.launcher
        declared = launcher.compiler.specialised(launcher.compiler.facts(leaf.rule.values)).states.values()
        host = {"step", *(s.key for s in declared if s.extent is Extent.STEP)}
        leaf.state = {k: v if k in host else v.to(device) for k, v in leaf.state.items()}
        leaf.engine.numbers = {k: v.to(device) for k, v in leaf.engine.numbers.items()}
    return copied


def state_bytes(state: Any) -> int:
    """The bytes of all tensors in a state tree, step counts included, global states not.

    Raises:
        ValueError: it is no state tree.
    """
    return sum(t.numel() * t.element_size() for leaf in leaves(state) for t in leaf.state.values())
