"""What a parameter store is: values and gradient accumulators by ID, and one way to update them.

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

    durable = False  # whether `update` may fail after its step has run; an optimizer then steps back

    @abstractmethod
    def init_parameter(self, id: ParameterID, value: Any, *, copy: bool = True) -> None:
        """Give a parameter a value, and a gradient of zeros; whatever it had before, of any shape, is gone.

        Args:
            id: the owner and the name.
            value: a number, a sequence, an array or a tensor, of floating point or to be converted to it.
            copy: without it the store keeps the very memory of the tensor or array.
        """

    @abstractmethod
    def ids(self) -> list[ParameterID]:
        """The initialised parameters, in the order of their first initialisation."""

    @abstractmethod
    def get_parameter_value(self, id: ParameterID) -> Tensor:
        """The value, as a leaf that autograd follows."""

    @abstractmethod
    def set_parameter_value(self, id: ParameterID, value: Any) -> None:
        """Give a parameter another value of its shape; its gradient stays.

        Raises:
            ValueError: the value has another shape (`init_parameter` takes any).
        """

    @abstractmethod
    def get_gradient(self, id: ParameterID, *, copy: bool = False) -> Tensor:
        """The accumulated gradient: the accumulator itself where the store has it in memory, or a copy."""

    @abstractmethod
    def increment_gradient(self, id: ParameterID, increment: Any, scale: float = 1.0) -> None:
        """Add `increment*scale` to the gradient. Any number of threads may do so at once.

        Raises:
            ValueError: the increment has another shape than the parameter.
        """

    @abstractmethod
    def reset_gradient(self, id: ParameterID) -> None:
        """Make the gradient zero."""

    def set_gradient(self, id: ParameterID, value: Any) -> None:
        """Make the gradient this."""
        self.reset_gradient(id)
        self.increment_gradient(id, value)

    def local_parameters(self, owner: Hashable) -> dict[str, Tensor]:
        """The values of an owner's parameters by name; none if the store does not know the owner."""
        return {id[1]: self.get_parameter_value(id) for id in self.ids() if id[0] == owner}

    def update(
        self,
        ids: Sequence[ParameterID],
        step: Step,
        name: str | None = None,
        state: SavedState | None = None,
    ) -> None:
        """Change values by their gradients, then make these gradients zero.

        Args:
            ids: distinct parameters.
            step: called once with their values and gradients; it changes the values in place.
            name: what to keep the optimizer's state under, if at all.
            state: what returns that state after the step; needed with a name.
        """
        values = [self.get_parameter_value(id) for id in ids]
        step(values, [self.get_gradient(id) for id in ids])
        for id, value in zip(ids, values, strict=True):
            self.set_parameter_value(id, value)
            self.reset_gradient(id)
        if name is not None and state is not None:
            self.set_optimizer_state(name, state())

    def get_optimizer_state(self, name: str) -> Mapping[str, Any] | None:
        """The state dict kept under a name, or None.

        Raises:
            NotImplementedError: the store keeps none.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no optimizer's state: leave `name` out")

    def set_optimizer_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep a state dict under a name.

        Raises:
            NotImplementedError: the store keeps none.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no optimizer's state: leave `name` out")


def label(id: ParameterID) -> str:
    """A parameter as messages call it."""
    owner = id[0] if isinstance(id[0], str) else getattr(id[0], "__qualname__", type(id[0]).__name__)
    return f"{owner}.{id[1]}"


def missing(id: ParameterID) -> KeyError:
    """The error for a parameter that was not initialised."""
    return KeyError(
        f"parameter '{id[1]}' of {owner_text(id[0])} was not initialised: call init_parameter first"
    )


def owner_text(owner: Hashable) -> str:
    """An owner as messages call it."""
    return f"owner '{owner}'" if isinstance(owner, str) else f"owner {owner!r}"


def checked_id(id: Any) -> ParameterID:
    """An ID, if it is one.

    Raises:
        TypeError: it is not a pair of something hashable and a string.
    """
    if not isinstance(id, tuple) or len(id) != 2 or not isinstance(id[1], str):
        raise TypeError(f"a parameter's ID is a tuple (owner, name) with a string for the name, not {id!r}")
    hash(id[0])
    return id


def checked_ids(ids: Iterable[Any]) -> list[ParameterID]:
    """IDs without repetition, in their order; those of a set in the order of their labels."""
    found = list(dict.fromkeys(checked_id(id) for id in ids))
    return sorted(found, key=label) if isinstance(ids, set | frozenset) else found


def tensor_of(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A value as a tensor of floating point, numbers as `dtype`; integers get torch's default one.

    Raises:
        ValueError: it is complex, or no number.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"not a number, a sequence, an array or a tensor: {error}") from None
    if found.is_complex():
        raise ValueError("parameters are real: keep torch.view_as_real(value) in the store")
    return found if found.is_floating_point() else found.to(torch.get_default_dtype())


def check_shape(id: ParameterID, what: str, found: Tensor, wanted: Tensor) -> None:
    """Refuse another shape than the parameter's.

    Raises:
        ValueError: naming the parameter and both shapes.
    """
    if found.shape != wanted.shape:
        raise ValueError(
            f"{what} of shape {tuple(found.shape)} does not fit the parameter {label(id)}, "
            f"whose shape is {tuple(wanted.shape)}"
        )
