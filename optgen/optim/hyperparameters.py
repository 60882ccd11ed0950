"""Validation of hyperparameters, before anything uses their values.

In: values that a user passed. Out: values as a parameter group has them, or a `ValueError` that names the
hyperparameter and what it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
from torch import Tensor

from optgen.compiler import Compiler
from optgen.ir.facts import lookup
from optgen.ir.node import Node, Op, toposort
from optgen.ir.program import Program, Requirement
from optgen.ir.semantics import evaluate

GROUP = "group:"  # prefix in `State.key` of a global state, which `param_groups` keep without the prefix
# Keys of a parameter group besides hyperparameters and global states.
OWN_KEYS = ("params", "rule", "frozen", "train_mode", "steps")


def complete_group(program: Program, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A group's hyperparameters: defaults filled in, each value checked, then the rule's `require`s.

    Unknown keys are ignored, as torch does (schedulers keep `initial_lr` there), unless one looks like a
    misspelt hyperparameter.

    Raises:
        ValueError: a value is of the wrong kind, a requirement fails, or a key is misspelt.
    """
    own = {*OWN_KEYS, *(s.key.removeprefix(GROUP) for s in program.states.values())}
    for key in group:
        if key not in program.hypers and key not in own and not key.startswith("initial_"):
            # Only a likely misspelling is an error: other libraries keep their own keys in groups.
            close = get_close_matches(key, program.hypers, 1, 0.8)
            if close:
                raise ValueError(f"unknown option '{key}' in a parameter group: did you mean '{close[0]}'?")
    options = {name: checked(program, name, group.get(name, defaults[name])) for name in program.hypers}
    check(program, options)
    return options


def checked(program: Program, name: str, value: Any) -> Any:
    """Check the type of a hyperparameter's value against that of its default; a list becomes a tuple.

    A tensor of one element stays a tensor, so that a captured CUDA graph can read it.

    Raises:
        ValueError: it is of another type, or a tuple of another length.
    """
    default = program.hypers[name].default  # whose type is that of the hyperparameter
    if not isinstance(default, tuple):
        return _item(name, value, default)
    if not isinstance(value, tuple | list) or len(value) != len(default):
        raise ValueError(f"{name} is a tuple of {len(default)} values, not {value!r}")
    return tuple(_item(f"{name}[{i}]", v, d) for i, (v, d) in enumerate(zip(value, default, strict=True)))


def _item(name: str, value: Any, default: Any) -> Any:
    """Check one value, or one item of a tuple, which is called `name`."""
    if isinstance(default, bool):  # first, for a bool is an int
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} is True or False, not {value!r}")
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise ValueError(f"{name} is a string, not {value!r}")
    elif value is None and default is None:
        pass
    elif isinstance(value, bool | str) or value is None:
        raise ValueError(f"{name} is a number, not {value!r}")
    elif isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} is one number, not a tensor of shape {tuple(value.shape)}")
    else:
        try:
            float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} is a number, not {value!r}") from None
    return value


def check(program: Program, options: Mapping[str, Any]) -> None:
    """Check a group's options against the rule's `require` conditions.

    Raises:
        ValueError: a condition does not hold; the message quotes it and the values.
    """
    for requirement in broken(program, options):
        leaves = [n for n in toposort([requirement.condition]) if n.op in (Op.HYPER, Op.FACT)]
        subjects = [program.facts[n.value or ""].subject if n.op is Op.FACT else n.value for n in leaves]
        values = ", ".join(f"{s} = {lookup(options, s or '')}" for s in dict.fromkeys(subjects))
        raise ValueError(f"{program.name} needs {requirement.text}, but {values}")


def broken(program: Program, options: Mapping[str, Any]) -> Iterator[Requirement]:
    """Evaluate the rule's `require` conditions under a group's options, and yield those that do not hold."""
    compiler = Compiler.of(program)
    truths = compiler.named(compiler.facts(options))

    def leaf(n: Node) -> Any:
        if n.op is Op.FACT:
            return np.bool_(truths[n.value or ""])
        value = lookup(options, n.value or "")
        # None as NaN, of which comparisons are false; whether an option is None is a FACT of its own.
        return np.float64(np.nan if value is None else float(value))

    for requirement in program.requires:
        if not evaluate([requirement.condition], leaf)[requirement.condition]:
            yield requirement
