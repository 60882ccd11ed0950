"""What `--set name=value` says.

In: a program and texts. Out: the program with these defaults, or an error that names the hyperparameter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from optgen.errors import RuleError
from optgen.ir.facts import Value
from optgen.ir.program import Program
from optgen.passes.variants import with_defaults, with_maximize


def assign(program: Program, texts: Iterable[str]) -> tuple[Program, list[str]]:
    """The program with the defaults that `name=value` texts set, and the names.

    Raises:
        RuleError: a text is no assignment, or the program has no such hyperparameter or not this value.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise RuleError(f"--set {text}: write name=value", None, "for example --set weight_decay=0.1")
        values[name.strip()] = _literal(value.strip())
    if "maximize" in values:
        program = with_maximize(program)
    for name, value in values.items():
        if name in program.hypers:
            values[name] = _fit(name, value, program.hypers[name].default)
    return with_defaults(program, **values), list(values)


def _literal(text: str) -> Any:
    """A Python literal; anything else is a word, such as an option's name."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _fit(name: str, value: Any, given: Value | tuple[Value, ...]) -> Any:
    """The value as the kind of thing that the default is."""
    if isinstance(given, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(given):
            raise RuleError(f"'{name}' is a tuple of {len(given)} values, not {value!r}")
        pairs = zip(value, given, strict=True)
        return tuple(_fit(f"{name}[{i}]", v, d) for i, (v, d) in enumerate(pairs))
    if isinstance(given, bool):
        if not isinstance(value, bool):
            raise RuleError(f"'{name}' is True or False, not {value!r}")
    elif isinstance(given, str):
        if not isinstance(value, str):
            raise RuleError(f"'{name}' is a word, not {value!r}")
    elif value is not None or given is not None:
        return _number(name, value)
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise RuleError(f"'{name}' is a number, not {value!r}")
