"""Methods that torch.compile calls and does not look into.

In: a method. Out: the same method, which a compiled function around it leaves as one call. Traced, a step
would become dozens of graphs of the code that computes the arguments of a kernel, and the kernel is
compiled already.

`torch.compiler.disable` imports torch's compiler where it is applied, which takes a second. A process in
which nobody has imported that compiler compiles nothing, so the question is asked of `sys.modules` in
each call.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def opaque(method: Callable[P, R]) -> Callable[P, R]:
    """The method, untouched by torch.compile; does not import torch's compiler."""
    untraced: list[Callable[P, R]] = []

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **kwargs)
        if not untraced:
            why = "optgen's kernels are compiled already"
            untraced.append(torch.compiler.disable(method, reason=why))  # type: ignore[no-untyped-call]
        return untraced[0](*args, **kwargs)

    return call
