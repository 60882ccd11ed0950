"""Methods that torch.compile calls and does not look into.

In: a method. Out: the same method, which a compiled function around it leaves as one call. Traced, a step
would become dozens of graphs of the code that computes the arguments of a kernel, and the kernel is
compiled already.

`torch.compiler.disable` imports torch's compiler where it is applied, which takes a second. A process in
which nobody has imported that compiler compiles nothing, so the question is asked of `sys.modules` in
each call. Who is not called by a compiled function goes without, which takes 3 µs less.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

_frames: Any = getattr(torch._C._dynamo, "eval_frame", None)  # private to torch, and so perhaps not there
# What torch's compiler has done with each frame that begins, in this thread: None, where that is nothing.
_callback: Callable[[], Any] = getattr(_frames, "get_eval_frame_callback", lambda: False)
_traced: Callable[[], bool] = torch.compiler.is_dynamo_compiling
P = ParamSpec("P")
R = TypeVar("R")


def opaque(method: Callable[P, R]) -> Callable[P, R]:
    """The method, untouched by torch.compile; does not import torch's compiler."""
    untraced: list[Callable[P, R]] = []

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules or (not _traced() and _callback() is None):
            return method(*args, **kwargs)
        if not untraced:
            why = "optgen's kernels are compiled already"
            untraced.append(torch.compiler.disable(method, reason=why))  # type: ignore[no-untyped-call]
        return untraced[0](*args, **kwargs)

    return call
