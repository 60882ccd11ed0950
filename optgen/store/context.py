"""Parameter contexts, which name a store, and the registry of the parameters that each owner uses.

In: contexts, dicts that name a store; owners and names. Out: stores, and IDs grouped by store.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optgen.locks import lock
from optgen.store.base import ParameterID, ParameterStore, checked_id, owner_text
from optgen.store.memory import TorchParameterStore

PARAMETER_STORE_KEY = "parameter_store"
default_parameter_store = TorchParameterStore()
default_parameter_context: dict[str, Any] = {PARAMETER_STORE_KEY: default_parameter_store}

Grouped = Mapping[ParameterStore, set[ParameterID]]
Items = Iterable[str | ParameterID] | Callable[[Mapping[str, Any]], Grouped]


@dataclass(frozen=True)
class _Registration:
    """An owner's registration: IDs in the context's store, or a function of the context; and callees."""

    ids: frozenset[ParameterID]
    find: Callable[[Mapping[str, Any]], Grouped] | None
    calls: tuple[Hashable, ...]


_registered: dict[Hashable, _Registration] = {}
_registering = lock()


def get_store(context: Mapping[str, Any] | None = None) -> ParameterStore:
    """The store of a context, by default of `default_parameter_context`.

    Raises:
        KeyError: the context names none.
        TypeError: what it names is not a store.
    """
    context = default_parameter_context if context is None else context
    if PARAMETER_STORE_KEY not in context:
        raise KeyError(f"the parameter context has no '{PARAMETER_STORE_KEY}': give it a ParameterStore")
    store = context[PARAMETER_STORE_KEY]
    if not isinstance(store, ParameterStore):
        raise TypeError(f"the context's '{PARAMETER_STORE_KEY}' is {store!r}, which is no ParameterStore")
    return store


def register_parameters(owner: Hashable, items: Items, calls: Iterable[Hashable] = ()) -> None:
    """Register the parameters that an owner uses.

    Args:
        owner: the model or function that computes with them; anything hashable.
        items: names of its own and IDs of others' parameters, in the store of the context in use; or a
            function from a context to a dict from stores to sets of IDs.
        calls: other owners, whose parameters it uses too.

    Raises:
        ValueError: the owner is registered already, or an item is neither a name nor an ID.
    """
    if isinstance(items, str):
        raise ValueError(f"register_parameters takes a list of names, not the string {items!r}")
    ids = set()
    for item in () if callable(items) else items:
        try:
            ids.add((owner, item) if isinstance(item, str) else checked_id(item))
        except TypeError:
            raise ValueError(f"a parameter is a name or a tuple (owner, name), not {item!r}") from None
    registration = _Registration(frozenset(ids), items if callable(items) else None, tuple(calls))
    with _registering:  # of two threads that register one owner, the second must get the error
        if owner in _registered:
            raise ValueError(
                f"the parameters of {owner_text(owner)} are registered already: unregister_parameters first"
            )
        _registered[owner] = registration


def unregister_parameters(owner: Hashable) -> None:
    """Remove an owner's registration, if there is one."""
    _registered.pop(owner, None)


def get_parameters(
    owner: Hashable, context: Mapping[str, Any] | None = None
) -> dict[ParameterStore, set[ParameterID]]:
    """The IDs registered for an owner and for all that it calls, transitively, by store."""
    context = default_parameter_context if context is None else context
    by_store: dict[ParameterStore, set[ParameterID]] = {}
    waiting, seen = [owner], {owner}  # owners may call each other
    while waiting:
        entry = _registered.get(waiting.pop())
        if entry is None:
            continue
        groups = entry.find(context) if entry.find else {get_store(context): entry.ids} if entry.ids else {}
        for store, ids in groups.items():
            by_store.setdefault(store, set()).update(ids)
        unseen = [callee for callee in entry.calls if callee not in seen]
        waiting += unseen
        seen.update(unseen)
    return by_store
