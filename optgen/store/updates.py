"""Optimizers of parameters in stores.

In: a configuration, and parameters of one or several stores. Out: objects whose `apply_update` updates the
values by the accumulated gradients, and sets these to zeros. The class is looked up by the types of the
configuration and the store, so that users can add either: see `register_update`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor

from optgen.launch.uninterrupted import Uninterrupted
from optgen.locks import section
from optgen.store.base import ParameterID, ParameterStore, checked_ids, label, owner_text
from optgen.store.configurations import Configuration
from optgen.store.context import default_parameter_store, get_parameters
from optgen.store.snapshot import tree_tensors


class Update(Protocol):
    """What a factory returns: an object with `apply_update`."""

    def apply_update(self, **inputs: Any) -> None:
        """Update the values by the gradients, and set the gradients to zeros."""


Factory = Callable[[Any, Sequence[ParameterID], Any], Update]

_factories: dict[tuple[type, type], Factory] = {}


def register_update(conf: type, store: type = ParameterStore) -> Callable[[Factory], Factory]:
    """Decorator: register a factory of optimizers for a configuration's type and a store's type.

    It is called with the configuration, a list of distinct IDs and the store, and returns something with a
    method `apply_update`. Subclasses of both types are served too, the nearest first.
    """

    def register(factory: Factory) -> Factory:
        _factories[conf, store] = factory
        return factory

    return register


def _factory(conf: Any, store: Any) -> Factory:
    """The factory registered for the types of a configuration and a store, or for base classes."""
    for conf_type in type(conf).__mro__:
        for store_type in type(store).__mro__:
            if (conf_type, store_type) in _factories:
                return _factories[conf_type, store_type]
    raise NotImplementedError(
        f"no update is registered for the configuration {type(conf).__name__} and the store "
        f"{type(store).__name__}: decorate one with register_update({type(conf).__name__}, "
        f"{type(store).__name__})"
    )


@register_update(Configuration, ParameterStore)
class StoreOptimizer:
    """The optimizer of a configuration for parameters of one store.

    Made by `init_optimizer`. Parameters are looked up in each update, so they may be initialised after it. A
    parameter that is initialised again keeps its state, unless its shape, dtype or device changes.
    """

    def __init__(
        self,
        conf: Configuration,
        ids: Sequence[ParameterID],
        store: ParameterStore,
        name: str | None = None,
    ):
        conf.make([torch.zeros(())])  # raises now for wrong hyperparameters, not in the first update
        self.conf, self.ids, self.store, self.name = conf, list(ids), store, name
        self._params: list[Tensor] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._lock = section()  # of these two attributes; taken after the locks of a store, never before
        saved = None if name is None else store.get_optimizer_state(name)
        if saved is not None:
            self.load_state_dict(saved)

    def __repr__(self) -> str:
        return f"StoreOptimizer({self.conf!r}, {[label(id) for id in self.ids]})"

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer, whose parameters share the memory of the store's values."""
        values = [self.store.get_parameter_value(id) for id in self.ids]
        with self._lock:
            return self._bound(values)

    def apply_update(self, **inputs: Any) -> None:
        """One step for every parameter, then zero gradients; KeyError if one is not initialised.

        In a file store this is one commit, and after an error nothing has changed.

        Args:
            **inputs: what the rule declares with `input()`: a mapping from IDs to tensors of the parameters'
                shapes, or one number.
        """
        if not self.ids:
            return

        restore: list[Callable[[], None]] = []

        def step(values: list[Tensor], gradients: list[Tensor]) -> None:
            with self._lock:
                if self.store.durable:
                    restore.append(self._undo())
                torch_optimizer = self._bound(values)
                for p, gradient in zip(self._params, gradients, strict=True):
                    p.grad = -gradient if self.conf.negates else gradient
                # The gradients are the store's accumulators: no reference to them may stay.
                try:
                    torch_optimizer.step(**{key: self._ordered(value) for key, value in inputs.items()})
                finally:
                    for p in self._params:
                        p.grad = None

        with Uninterrupted():  # a signal would undo the optimizer's state after the store's commit
            try:
                self.store.update(self.ids, step, self.name, self.state_dict)
            except BaseException:
                for undo in restore:
                    undo()
                raise

    def _ordered(self, value: Any) -> Any:
        """An input by ID as a list in the order of the optimizer's parameters."""
        return [value[id] for id in self.ids] if isinstance(value, Mapping) else value

    def _bound(self, values: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The torch optimizer with these values as parameters; made when first needed.

        A value that was initialised again is another tensor: it takes the old one's place and its state.
        """
        if self._optimizer is None:
            params = [value.detach() for value in values]
            self._optimizer, self._params = self.conf.make(params), params
            return self._optimizer
        state, (group,) = self._optimizer.state, self._optimizer.param_groups
        # The optimizer's parameters are detached views of the store's values: they share their memory.
        for i, (old, value) in enumerate(zip(self._params, values, strict=True)):
            if _same(old, value):
                continue
            self._params[i] = group["params"][i] = new = value.detach()
            entry = state.pop(old, None)
            alike = (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
            # A step count alone, as stateless rules have it, fits any shape.
            if entry and (alike or entry.keys() == {"step"}):
                state[new] = entry
        return self._optimizer

    def _undo(self) -> Callable[[], None]:
        """Copy the optimizer's state; returns a function that restores it."""
        if self._optimizer is None:
            return self._unbind
        torch_optimizer, params = self._optimizer, list(self._params)
        states = [(p, state, dict(state)) for p, state in torch_optimizer.state.items()]
        groups = [(g, {k: v for k, v in g.items() if k != "params"}) for g in torch_optimizer.param_groups]
        copies = [(t, t.clone()) for t in tree_tensors([*(s for *_, s in states), *(o for _, o in groups)])]

        def back() -> None:
            torch_optimizer.state.clear()
            for p, state, old in states:
                state.clear()
                state.update(old)
                torch_optimizer.state[p] = state
            for group, old in groups:
                group.clear()
                group.update({"params": list(params), **old})
            for tensor, copied in copies:  # in place: the store may have the same tensors
                tensor.copy_(copied)
            self._params = params

        return back

    def _unbind(self) -> None:
        """Forget the torch optimizer: restores an optimizer that had made none."""
        self._optimizer, self._params = None, []

    def state_dict(self) -> dict[str, Any]:
        """The torch optimizer's state dict, and the labels of its parameters under `parameters`."""
        torch_optimizer = self._optimizer or self.optimizer
        return {**torch_optimizer.state_dict(), "parameters": [label(id) for id in self.ids]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, for the same parameters in the same order.

        Raises:
            ValueError: other parameters, or another rule.
        """
        own = [label(id) for id in self.ids]
        saved = state_dict.get("parameters", own)
        if list(saved) != own:
            raise ValueError(f"the state dict is for the parameters {saved}, the optimizer for {own}")
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != "parameters"})


class CompositeOptimizer:
    """The optimizers of one configuration for several stores, each with its own state.

    An update is a commit in each store, one after the other: atomic in each, not over all of them.
    """

    def __init__(self, optimizers: Mapping[ParameterStore, Update]):
        self.optimizers = dict(optimizers)

    def apply_update(self, **inputs: Any) -> None:
        """Call `apply_update` of each, in their order."""
        for optimizer in self.optimizers.values():
            optimizer.apply_update(**inputs)

    def state_dict(self) -> dict[str, Any]:
        """The state dicts of all optimizers, in their order, under `optimizers`."""
        return {"optimizers": [_stateful(o).state_dict() for o in self.optimizers.values()]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, for as many stores in the same order.

        Raises:
            ValueError: other stores, parameters or rules; nothing is loaded then.
        """
        states, optimizers = state_dict["optimizers"], [_stateful(o) for o in self.optimizers.values()]
        if len(states) != len(optimizers):
            raise ValueError(f"the state dict is for {len(states)} stores, not {len(optimizers)}")
        # State dicts share tensors with the optimizers, which loading changes.
        before = [deepcopy(optimizer.state_dict()) for optimizer in optimizers]
        try:
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)
        except BaseException:
            for optimizer, state in zip(optimizers, before, strict=True):
                optimizer.load_state_dict(state)
            raise


def init_optimizer(
    conf: Any,
    parameters: Any,
    store: ParameterStore | None = None,
    *,
    context: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Any:
    """Make the optimizer of a configuration for parameters in one or several stores.

    Args:
        conf: a configuration; `RuleConf` makes one of any rule.
        parameters: a list or set of IDs in `store`; a dict from stores to such; or an owner, for all
            parameters that it and what it calls are registered to use (see `register_parameters`).
        store: where the IDs are; by default `default_parameter_store`.
        context: where an owner's parameters are; by default `default_parameter_context`.
        name: the key under which the store keeps the optimizer's state, committed together with the
            values. A state that is there is loaded. Without a name only the optimizer has the state.

    Returns:
        Something with a method `apply_update`: a `StoreOptimizer`, a `CompositeOptimizer`, or what
        `register_update` was given.

    Raises:
        NotImplementedError: nothing is registered for the types of the configuration and the store.
        TypeError: the parameters are none of these.
        ValueError: no parameters are registered for the owner, or a hyperparameter is out of bounds.
    """
    if isinstance(parameters, Mapping):
        return _composite(conf, parameters, name)
    if isinstance(parameters, list | tuple | set | frozenset):
        target = default_parameter_store if store is None else store
        keywords = {} if name is None else {"name": name}  # which a user's factory need not take
        return _factory(conf, target)(conf, checked_ids(parameters), target, **keywords)
    if store is not None:
        raise TypeError("an owner's parameters are found by `context=`; `store=` goes with a list of IDs")
    by_store = get_parameters(parameters, context)
    if not by_store:
        raise ValueError(
            f"no parameters are registered for {owner_text(parameters)}: register_parameters first"
        )
    return _composite(conf, by_store, name)


def _composite(
    conf: Any, groups: Mapping[ParameterStore, Collection[ParameterID]], name: str | None
) -> CompositeOptimizer:
    """One optimizer for each store."""
    optimizers = {s: init_optimizer(conf, checked_ids(ids), s, name=name) for s, ids in groups.items()}
    return CompositeOptimizer(optimizers)


def apply_update(optimizer: Update, **inputs: Any) -> None:
    """Call `optimizer.apply_update(**inputs)`."""
    optimizer.apply_update(**inputs)


def _stateful(optimizer: Any) -> Any:
    """An optimizer, if it has a state dict; a user's class need not."""
    if not hasattr(optimizer, "state_dict"):
        raise NotImplementedError(f"{type(optimizer).__name__} has no state_dict")
    return optimizer


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one view: same address, shape, strides, dtype and device."""
    return (a.data_ptr(), a.shape, a.stride(), a.dtype, a.device) == (
        b.data_ptr(), b.shape, b.stride(), b.dtype, b.device,
    )  # fmt: skip
