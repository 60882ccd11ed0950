"""Deferral of signals, from a step's first launch until it is counted.

Python runs a handler, such as the one that raises KeyboardInterrupt, between two bytecodes of the main
thread. In between, some tensors would be updated and not counted, or only some of them updated.
"""

from __future__ import annotations

import ctypes
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


# How the system handles a signal: Python's function or another's, such as faulthandler's, and flags. Python's
# own `signal` puts its function and its flags in their place, so all is remembered and put back as it was.
_Action = ctypes.c_char * 256  # more than any system's structure has
_free_actions: list[Any] = []  # that are free; only the main thread has any


def _c_function() -> Any:
    """libc's sigaction; None where there is none, as on Windows."""
    try:
        function = ctypes.CDLL(None).sigaction
    except (AttributeError, OSError, TypeError):  # as on Windows
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    return function


_sigaction = _c_function()


class Uninterrupted:
    """A context that defers signals: their handlers run at its end, each at most once.

    Handlers run in the main thread only, so it does nothing in others.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.actions: dict[int, Any] = {}
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
                    if _sigaction is not None:
                        self.actions[number] = action = _free_actions.pop() if _free_actions else _Action()
                        _sigaction(number, None, action)
                    _set(number, self.hold)
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.handlers:
            self.release()

    def hold(self, number: int, frame: FrameType | None) -> None:
        """The temporary handler: note the signal; if still installed afterwards, call the original one."""
        if self.holding:
            self.arrived[number] = frame
        else:
            self.restore(number)
            self.handlers[number](number, frame)

    def restore(self, number: int) -> None:
        """Reinstall a signal's original handler."""
        _set(number, self.handlers[number])
        if _sigaction is not None:
            _sigaction(number, self.actions[number], None)

    def release(self) -> None:
        """Reinstall all handlers, and run those of signals that arrived, even if one raises."""
        # A handler that is back already may run, and raise, between any two lines here: hence the loops.
        remaining, raised = list(self.handlers), None
        try:
            while remaining:
                try:
                    while remaining:
                        number = remaining[-1]
                        if _get(number) == self.hold:
                            self.restore(number)
                            _free_actions.extend([self.actions[number]] if number in self.actions else [])
                        remaining.pop()
                except BaseException as error:  # of a handler that is back already
                    raised = error
            if raised is not None:
                raise raised
        finally:
            try:
                self.holding = False
            finally:
                self._run()

    def _run(self) -> None:
        """Run the handlers of signals that arrived; each runs even if another raises."""
        while self.arrived:
            number, frame = self.arrived.popitem()
            try:
                self.handlers[number](number, frame)
            finally:
                self._run()


_harmless: list[list[Any]] = []  # what `undisturbed` has found to do no harm


def undisturbed() -> bool:
    """Whether in this thread no handler could do more than raise KeyboardInterrupt.

    One compiled call then needs no deferral: it either runs completely or not at all.
    """
    handlers = list(map(_get, _NUMBERS))
    if handlers in _harmless:
        return True
    if threading.get_ident() != threading.main_thread().ident:
        return True
    if any(callable(handler) and handler is not signal.default_int_handler for handler in handlers):
        return False
    _harmless[:] = [handlers]
    return True
