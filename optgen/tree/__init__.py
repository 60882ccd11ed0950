"""A functional API with the semantics of Optimisers.jl: rules are values, and state is a tree of its own.

    state = tree.setup(tree.Adam(1e-3), model)
    state, model = tree.update(state, model, grads)

In: a model (any nesting of dicts, lists, tuples, dataclasses and modules with arrays in it) and gradients of
the same nesting. Out: a state tree, and the model after a step. `tree.Adam`, `tree.Momentum` and the other
rules of Optimisers.jl have its names and defaults; every other shipped rule has its class's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optgen.tree.flat import Restructure, destructure, get_path, trainables
from optgen.tree.nodes import trainable
from optgen.tree.rules import NAMES, Kind, MixedPrecision, Rule, chain, named, rule
from optgen.tree.states import Leaf, adjust, adjusted, freeze, setup, state_bytes, thaw, to
from optgen.tree.steps import gradients, update, update_

OptimiserChain = chain

__all__ = [
    "Kind",
    "Leaf",
    "MixedPrecision",
    "OptimiserChain",
    "Restructure",
    "Rule",
    "adjust",
    "adjusted",
    "chain",
    "destructure",
    "freeze",
    "get_path",
    "gradients",
    "rule",
    "setup",
    "state_bytes",
    "thaw",
    "to",
    "trainable",
    "trainables",
    "update",
    "update_",
]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Kind: ...

else:

    def __getattr__(name: str) -> Any:
        """A rule's constructor, made on first use."""
        kind = None if name.startswith("_") else named(name)
        if kind is None:
            raise AttributeError(f"module 'optgen.tree' has no attribute '{name}'")
        globals()[name] = kind
        return kind


def __dir__() -> list[str]:
    """The public names, of which rules' constructors are made on first use."""
    from optgen.library import classes

    return sorted({*__all__, *NAMES, *classes()})
