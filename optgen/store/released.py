"""The API of Gen.jl's released versions: `ParamUpdate`, and functions of an owner and a parameter's name.

In: owners, names, a configuration. Out: the same stores and optimizers as in `optgen.store.updates`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

from torch import Tensor

from optgen.store.base import ParameterStore
from optgen.store.context import default_parameter_store
from optgen.store.updates import init_optimizer


class ParamUpdate:
    """The optimizers of several owners: `ParamUpdate(conf, (foo, ["a", "b"]), (bar, ["theta"]))`.

    Each owner has its own optimizer, with its own state and count. An owner given twice counts once, as the
    last one says. Names are looked up by `apply`, which raises KeyError for one that was not initialised.

    Args:
        conf: a configuration.
        *selections: pairs of an owner and a list of names; or a dict of such; or one owner alone, for the
            parameters of its own that are initialised now. None at all make an update that does nothing.
        store: where the parameters are; by default `default_parameter_store`.
        name: the key under which the store keeps the optimizers' states, each followed by its owner.

    Raises:
        TypeError: a selection is none of these.
    """

    def __init__(
        self,
        conf: Any,
        *selections: Any,
        store: ParameterStore | None = None,
        name: str | None = None,
    ):
        place = default_parameter_store if store is None else store
        self.conf, self.store = conf, place
        self.optimizers = {
            owner: init_optimizer(
                conf,
                [(owner, each) for each in names],
                place,
                name=None if name is None else f"{name}/{owner}",
            )
            for owner, names in _selected(selections, place).items()
        }

    def apply(self, **inputs: Any) -> None:
        """Update every parameter by its gradient, and set the gradients to zeros; one commit an owner."""
        for optimizer in self.optimizers.values():
            optimizer.apply_update(**inputs)


def _selected(selections: tuple[Any, ...], store: ParameterStore) -> dict[Hashable, Collection[str]]:
    """The names of parameters by owner."""
    if len(selections) == 1 and isinstance(selections[0], Mapping):
        pairs = list(selections[0].items())
    elif len(selections) == 1 and not isinstance(selections[0], tuple):
        owner = selections[0]
        return {owner: list(store.local_parameters(owner))}
    else:
        pairs = list(selections)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], list | tuple | set):
            raise TypeError(f"ParamUpdate takes pairs of an owner and a list of names, not {pair!r}")
    return {owner: sorted(names) if isinstance(names, set) else names for owner, names in pairs}


def init_param(owner: Hashable, name: str, value: Any, store: ParameterStore | None = None) -> None:
    """Set a parameter's value, of any shape, and its gradient to zeros."""
    _store(store).init_parameter((owner, name), value)


def get_param(owner: Hashable, name: str, store: ParameterStore | None = None) -> Tensor:
    """A parameter's value as a leaf tensor; KeyError if it was not initialised."""
    return _store(store).get_parameter_value((owner, name))


def set_param(owner: Hashable, name: str, value: Any, store: ParameterStore | None = None) -> None:
    """Set a parameter's value, of the shape that it has; its gradient stays. A new one is initialised."""
    place = _store(store)
    try:
        place.set_parameter_value((owner, name), value)
    except KeyError:
        place.init_parameter((owner, name), value)


def get_param_grad(owner: Hashable, name: str, store: ParameterStore | None = None) -> Tensor:
    """A parameter's accumulated gradient; KeyError if it was not initialised."""
    return _store(store).get_gradient((owner, name))


def set_param_grad(owner: Hashable, name: str, value: Any, store: ParameterStore | None = None) -> None:
    """Set a parameter's gradient; ValueError for another shape."""
    _store(store).set_gradient((owner, name), value)


def zero_param_grad(owner: Hashable, name: str, store: ParameterStore | None = None) -> None:
    """Set a parameter's gradient to zeros."""
    _store(store).reset_gradient((owner, name))


def _store(store: ParameterStore | None) -> ParameterStore:
    """The given store, or the default one."""
    return default_parameter_store if store is None else store
