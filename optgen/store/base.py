"""The interface of parameter stores: values and gradient accumulators by ID, and one way to update them.

In: IDs, pairs of an owner (a string, a module, anything hashable) and a name, and tensors. Out: the same.
A store is where parameters live outside of whatever computes with them. `TorchParameterStore` has them in
memory, `FileParameterStore` on a file system. A store of your own implements the abstract methods; where
it cannot hand out tensors to be changed in place, the base class's `update` writes them back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ParameterID = tuple[Hashable, str]
Step = Callable[[list[Tensor], list[Tensor]], None]  # changes values in place, given values and gradients
SavedState = Callable[[], Mapping[str, Any]]  # an optimizer's state dict, asked for after the step


class ParameterStore(ABC):
    """Values of parameters and, for each, an accumulator of its gradient.

    Every method that takes an ID raises KeyError, with the owner and the name, where the parameter was not
    initialised, but for `init_parameter`.
    """

    # Whether `update` may fail after its step has run, as a commit to a file can. An optimizer then copies
    # its state before the step, to restore it.
    durable = False

    @abstractmethod
    def init_parameter(self, id: ParameterID, value: Any, *, copy: bool = True) -> None:
        """Set a parameter's value, of any shape, and its gradient to zeros; what it had before is gone.

        Args:
            id: the owner and the name.
            value: a number, a sequence, an array or a tensor, of floating point or to be converted to torch's
                default dtype.
            copy: without it the store shares the memory of the tensor or array.

        Raises:
            TypeError: the ID is not a pair of something hashable and a string.
            ValueError: the value is complex, or no number.
        """

    @abstractmethod
    def ids(self) -> list[ParameterID]:
        """The initialised parameters, in the order of their first initialisation."""

    @abstractmethod
    def get_parameter_value(self, id: ParameterID) -> Tensor:
        """The value as a leaf tensor that requires a gradient."""

    @abstractmethod
    def set_parameter_value(self, id: ParameterID, value: Any) -> None:
        """Set a parameter's value, of the shape that it has; its gradient stays.

        Raises:
            ValueError: the value has another shape (`init_parameter` takes any).
        """

    @abstractmethod
    def get_gradient(self, id: ParameterID, *, copy: bool = False) -> Tensor:
        """The accumulated gradient, of the value's shape: the accumulator itself, or a copy.

        Args:
            id: the owner and the name.
            copy: whether it must be a copy; a store without accumulators in memory always makes one.
        """

    @abstractmethod
    def increment_gradient(self, id: ParameterID, increment: Any, scale: float = 1.0) -> None:
        """Add `increment*scale` to the gradient. Any number of threads may do so at once.

        Args:
            id: the owner and the name.
            increment: of the parameter's shape; converted to its dtype and device.
            scale: a factor.

        Raises:
            ValueError: the increment has another shape than the parameter.
        """

    @abstractmethod
    def reset_gradient(self, id: ParameterID) -> None:
        """Set the gradient to zeros."""

    def set_gradient(self, id: ParameterID, value: Any) -> None:
        """Set the gradient to a value of the parameter's shape."""
        self.reset_gradient(id)
        self.increment_gradient(id, value)

    def local_parameters(self, owner: Hashable) -> dict[str, Tensor]:
        """The values of an owner's parameters by name; empty for an unknown owner."""
        return {id[1]: self.get_parameter_value(id) for id in self.ids() if id[0] == owner}

    def update(
        self,
        ids: Sequence[ParameterID],
        step: Step,
        name: str | None = None,
        state: SavedState | None = None,
    ) -> None:
        """Update values by their gradients, then set these gradients to zeros.

        Args:
            ids: distinct parameters.
            step: called once with their values and gradients in this order; it changes the values in place.
            name: the key to store the optimizer's state under; None stores none.
            state: returns that state after the step; needed with a name.
        """
        # For stores that return copies; those with live tensors override it, with locks.
        values = [self.get_parameter_value(id) for id in ids]
        step(values, [self.get_gradient(id) for id in ids])
        for id, value in zip(ids, values, strict=True):
            self.set_parameter_value(id, value)
            self.reset_gradient(id)
        if name is not None and state is not None:
            self.set_optimizer_state(name, state())

    def get_optimizer_state(self, name: str) -> Mapping[str, Any] | None:
        """The state dict stored under a name, or None.

        Raises:
            NotImplementedError: the store keeps none.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no optimizer's state: leave `name` out")

    def set_optimizer_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Store a state dict under a name.

        Raises:
            NotImplementedError: the store keeps none.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no optimizer's state: leave `name` out")


def label(id: ParameterID) -> str:
    """A parameter's name in messages and state dicts: owner and name with a dot."""
    owner = id[0] if isinstance(id[0], str) else getattr(id[0], "__qualname__", type(id[0]).__name__)
    return f"{owner}.{id[1]}"


def missing(id: ParameterID) -> KeyError:
    """The KeyError for a parameter that was not initialised."""
    return KeyError(
        f"parameter '{id[1]}' of {owner_text(id[0])} was not initialised: call init_parameter first"
    )


def owner_text(owner: Hashable) -> str:
    """An owner as error messages show it."""
    return f"owner '{owner}'" if isinstance(owner, str) else f"owner {owner!r}"


def checked_id(id: Any) -> ParameterID:
    """Check that an ID is a pair of something hashable and a string.

    Raises:
        TypeError: it is not a pair of something hashable and a string.
    """
    if not isinstance(id, tuple) or len(id) != 2 or not isinstance(id[1], str):
        raise TypeError(f"a parameter's ID is a tuple (owner, name) with a string for the name, not {id!r}")
    hash(id[0])
    return id


def checked_ids(ids: Iterable[Any]) -> list[ParameterID]:
    """Check IDs and drop repetitions, in their order; a set is sorted by label."""
    unique = list(dict.fromkeys(checked_id(id) for id in ids))
    # A set of strings has another order in each process, and a state dict goes by position.
    return sorted(unique, key=label) if isinstance(ids, set | frozenset) else unique


def tensor_of(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Convert a value to a floating-point tensor: numbers to `dtype`, integers to torch's default dtype.

    Raises:
        ValueError: it is complex, or no number.
    """
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"not a number, a sequence, an array or a tensor: {error}") from None
    if tensor.is_complex():
        raise ValueError("parameters are real: keep torch.view_as_real(value) in the store")
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def check_shape(id: ParameterID, what: str, tensor: Tensor, param: Tensor) -> None:
    """Refuse a tensor whose shape is not the parameter's.

    Raises:
        ValueError: naming the parameter and both shapes.
    """
    if tensor.shape != param.shape:
        raise ValueError(
            f"{what} of shape {tuple(tensor.shape)} does not fit the parameter {label(id)}, "
            f"whose shape is {tuple(param.shape)}"
        )
