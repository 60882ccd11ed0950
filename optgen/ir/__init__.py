"""The typed program that every stage reads: extents, nodes, and what each operation means."""

from importlib import import_module
from typing import Any

# What pickles of 0.1.0 look for here: programs of rules, and what they are made of.
_PICKLED = {
    "extent": ("Extent",),
    "facts": ("Fact",),
    "node": ("DType", "Node", "Op"),
    "program": ("Hyper", "Input", "Program", "Requirement", "State"),
}


def __getattr__(name: str) -> Any:
    """Find what a pickle names here."""
    for module, names in _PICKLED.items():
        if name in names:
            return getattr(import_module(f"optgen.ir.{module}"), name)
    raise AttributeError(f"module 'optgen.ir' has no attribute '{name}'")
