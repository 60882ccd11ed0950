"""`torch.compiler.disable` for methods, without importing torch's compiler.

In: a method. Out: the same method, which a function compiled by torch.compile calls and does not trace.
Traced, a step would become dozens of graphs of the code that computes the arguments of a kernel, and the
kernel is compiled already.

`torch.compiler.disable` imports torch._dynamo where it is applied, which takes a second. A process that has
not imported torch._dynamo compiles nothing, so each call looks it up in `sys.modules`. A call from outside a
compiled function runs the bare method, which takes 3 µs less than the disabled one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

_frames: Any = getattr(torch._C._dynamo, "eval_frame", None)  # private to torch, and so perhaps not there
# The callback that torch._dynamo has installed for new frames of this thread; None where it compiles none.
_callback: Callable[[], Any] = getattr(_frames, "get_eval_frame_callback", lambda: False)
_traced: Callable[[], bool] = torch.compiler.is_dynamo_compiling
P = ParamSpec("P")
R = TypeVar("R")


def untraced(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator: torch.compile calls the method and does not trace it; like `torch.compiler.disable`."""
    disabled: list[Callable[P, R]] = []  # made when torch's compiler is first there

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules or (not _traced() and _callback() is None):
            return method(*args, **kwargs)
        if not disabled:
            why = "optgen's kernels are compiled already"
            disabled.append(torch.compiler.disable(method, reason=why))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return call
