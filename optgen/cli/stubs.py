"""The type stub of the package, `optgen/__init__.pyi`.

In: the shipped rules. Out: the text of the stub, in which the classes that `optgen.__getattr__` makes have
their constructors written out. `optgen stubs` prints it, and a test keeps the file current.

A class carries its whole docstring. Editors and type checkers never run optgen: what they show of a class,
the meaning of an argument too, is what stands in the stub, and there is no source file to look into.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from inspect import Parameter
from math import isinf
from textwrap import indent
from typing import Any

import optgen
from optgen import library
from optgen.optim.signature import FLAGS, spelled

HEAD = '''\
"""The types of optgen's public names. Made by `optgen stubs` from the rules; do not edit."""

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
'''
PRIVATE = "_HOME: dict[str, str]\n_MODULES: tuple[str, ...]\n"


def stub() -> str:
    """The text of `optgen/__init__.pyi`, as `ruff format` would leave it."""
    shipped = sorted(library.optimizers())
    imports = [f"from optgen import {name} as {name}" for name in optgen._MODULES]
    homes = sorted((home, name) for name, home in optgen._HOME.items())
    imports += [f"from {home} import {name} as {name}" for home, name in homes]
    listed = "".join(f'    "{name}",\n' for name in (*optgen._HOME, *shipped))
    names = f"__version__: str\n{PRIVATE}\n__all__ = [\n{listed}]\n"
    return "\n".join([HEAD, "\n".join(imports) + "\n", names, *map(_class, shipped)])


def _class(name: str) -> str:
    cls = getattr(optgen, name)
    doc = indent(_escaped(cls.__doc__), "    ").lstrip()
    parameters = "".join(f"        {line},\n" for line in _parameters(cls.__signature__))
    return (
        f'class {name}(Optimizer):\n    """{doc}\n    """\n\n'
        f"    def __init__(\n        self,\n{parameters}    ) -> None: ...\n"
    )


def _escaped(text: str) -> str:
    """A text as it stands between triple quotes."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    """The constructor's parameters, and after them torch's flags."""
    keyword = False
    for name, parameter in signature.parameters.items():
        if parameter.kind is Parameter.KEYWORD_ONLY and not keyword:
            keyword = True
            yield "*"
        default = "" if parameter.default is Parameter.empty else f" = {_literal(parameter.default)}"
        yield f"{name}: {spelled(parameter.annotation)}{default}"
    for name, (kind, value) in FLAGS.items():
        yield f"{name}: {spelled(kind)} = {_literal(value)}"


def _literal(value: Any) -> str:
    """A default as source; Python has no literal for an infinite number."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, float) and isinf(value):
        return 'float("inf")' if value > 0 else 'float("-inf")'
    return f'"{value}"' if isinstance(value, str) and value.isidentifier() else repr(value)
