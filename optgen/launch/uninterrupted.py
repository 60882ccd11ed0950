"""A stretch of a step that no signal handler cuts in two: from the first launch until all is counted.

Python runs a handler, such as the one that raises KeyboardInterrupt, between two lines of the main thread,
wherever that is. In between tensors would have moved and not been counted, or some of them only.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any, Self

# What `signal` wraps does without enumerations, and takes a twentieth of the time.
_wrapped = import_module("_signal")
_get: Callable[[int], Any] = _wrapped.getsignal
_set: Callable[[int, Any], Any] = _wrapped.signal
_NAMES = (
    "SIGINT SIGTERM SIGHUP SIGQUIT SIGALRM SIGVTALRM SIGPROF SIGUSR1 SIGUSR2 SIGXCPU SIGTSTP SIGCONT SIGCHLD "
    "SIGWINCH SIGBREAK"
)
# Ctrl-C is held back first and let through last.
_NUMBERS = tuple(int(getattr(signal, name)) for name in _NAMES.split() if hasattr(signal, name))


class Uninterrupted:
    """A context in which signals wait: their handlers run at its end, each at most once.

    Handlers run in the main thread only, so elsewhere there is nothing to hold back.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.arrived: dict[int, FrameType | None] = {}
        self.holding = False

    def __enter__(self) -> Self:
        if threading.get_ident() != threading.main_thread().ident:
            return self
        self.holding = True
        try:
            for number in _NUMBERS:
                handler = _get(number)
                if callable(handler):
                    self.handlers[number] = handler
                    _set(number, self.hold)
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.handlers:
            self.release()

    def hold(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. One that finds this handler in place afterwards goes to the handler before."""
        if self.holding:
            self.arrived[number] = frame
        else:
            _set(number, self.handlers[number])
            self.handlers[number](number, frame)

    def release(self) -> None:
        """Put the handlers back, and run those of the signals that came, though one of them raises."""
        try:
            for number in reversed(self.handlers):
                if _get(number) == self.hold:
                    _set(number, self.handlers[number])
        finally:
            try:
                self.holding = False
            finally:
                self._run()

    def _run(self) -> None:
        while self.arrived:
            number, frame = self.arrived.popitem()
            try:
                self.handlers[number](number, frame)
            finally:
                self._run()
