"""What several threads may do at once, and what a fork waits for.

In: tables that are filled when they are first asked, and work that must not be cut in two. Out: one value for
a key, whatever the number of threads that ask, and children of a fork that never wait for a thread which
does not exist there: a fork waits until all such work is done, and then nobody holds a lock.

Where there is no fork, as on Windows, nothing waits for one.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - its own handler of forks takes a lock, and must run after ours
import importlib
import os
import sys
import time
from collections.abc import Callable, Hashable, MutableMapping
from functools import cached_property
from threading import Condition, RLock, get_ident
from typing import Any, TypeVar
from weakref import WeakSet

V = TypeVar("V")
# What a first step imports.
AWAITED = {"llvmlite", "numba", "numpy", "optgen", "torch", "triton", *sys.stdlib_module_names}
LONGEST_IMPORT = 60.0  # seconds; one that takes longer may be waiting for the thread that forks


class Uncut:
    """Work that a fork waits for. Any number of threads are in it at once, each as deep as it likes.

    A thread that forks inside does not wait for the others, who may be waiting for it.
    """

    def __init__(self) -> None:
        self._lock = RLock()  # a signal's handler may compile too
        self._changed = Condition(self._lock)
        self._depth: dict[int, int] = {}  # by thread
        self._forks = 0  # that wait

    def __enter__(self) -> None:
        me = get_ident()
        with self._lock:
            while self._forks and me not in self._depth:
                self._changed.wait()
            self._depth[me] = self._depth.get(me, 0) + 1

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        with self._lock:
            self._depth[me] -= 1
            if not self._depth[me]:
                del self._depth[me]
                if self._forks:
                    self._changed.notify_all()

    def close(self) -> bool:
        """Wait until nobody else is inside, and keep others out; whether this thread is outside itself."""
        self._lock.acquire()
        outside = get_ident() not in self._depth
        self._forks += 1
        while outside and self._depth:
            self._changed.wait()
        return outside

    def open(self) -> None:
        """Let others in again."""
        self._forks -= 1
        self._changed.notify_all()
        self._lock.release()

    def restart(self) -> None:
        """Forget the threads that a child of a fork does not have."""
        me = get_ident()
        depth = self._depth.get(me, 0)
        self.__init__()  # type: ignore[misc]
        if depth:
            self._depth[me] = depth


uncut = Uncut()
_locks: WeakSet[Any] = WeakSet()


def lock() -> Any:
    """A re-entrant lock that is free in the child of a fork, unless the thread that forks holds it."""
    made = RLock()
    _locks.add(made)
    return made


class Section:
    """A re-entrant lock that a fork waits for, so that a child finds nothing half changed."""

    def __init__(self) -> None:
        self._lock = lock()

    def __enter__(self) -> None:
        uncut.__enter__()
        try:
            self._lock.acquire()
        except BaseException:
            uncut.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        uncut.__exit__()


_making: dict[tuple[int, Hashable], Any] = {}  # a lock for each table and key that is being filled


def once(table: MutableMapping[Any, V], key: Hashable, make: Callable[[], V]) -> V:
    """The table's value for a key, made by the thread that asks first; who asks meanwhile waits for it."""
    try:
        return table[key]
    except KeyError:
        pass
    # A fork waits for whoever waits here, so nobody may hold the lock without being inside.
    with uncut, _making.setdefault((id(table), key), lock()):
        if key not in table:
            table[key] = make()
            _making.pop((id(table), key), None)
        return table[key]


# Forks


def _importing() -> bool:
    """Whether another thread is importing what a step needs: a child could never complete that import."""
    me, others = get_ident(), False
    for name, entry in list(getattr(importlib._bootstrap, "_module_locks", {}).items()):
        owner = getattr(entry(), "owner", None)
        if owner == me:
            return False  # the other thread may be waiting for this one's import
        others |= owner is not None and name.partition(".")[0] in AWAITED
    return others


_held: list[Any] = []  # Numba's lock, while a thread forks


def _before() -> None:
    latest = time.monotonic() + LONGEST_IMPORT
    outside = uncut.close()
    while outside and _importing() and time.monotonic() < latest:
        uncut.open()  # for what the import may compile
        time.sleep(0.001)
        uncut.close()
    numba = sys.modules.get("numba.core.compiler_lock")
    if outside and numba is not None:  # others than optgen compile with it too
        numba.global_compiler_lock.acquire()
        _held.append(numba.global_compiler_lock)


def _release() -> None:
    while _held:
        _held.pop().release()


def _in_parent() -> None:
    _release()
    uncut.open()


def _in_child() -> None:
    _release()
    uncut.restart()
    for each in list(_locks):
        if not each._is_owned():
            each._at_fork_reinit()
    if hasattr(cached_property(len), "lock"):  # Python 3.11: all objects of a class share one
        _free_properties()


def _free_properties() -> None:
    """Free the locks of cached properties that a thread was computing."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "optgen"]
    classes = {x for module in modules for x in list(vars(module).values()) if isinstance(x, type)}
    for each in (x for kind in classes for x in list(vars(kind).values()) if isinstance(x, cached_property)):
        if not each.lock._is_owned():  # type: ignore[attr-defined]
            each.lock._at_fork_reinit()  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
