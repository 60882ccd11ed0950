"""What several threads may do at once, and what a fork waits for.

In: tables that are filled when they are first asked, and work that must not be cut in two. Out: one value for
a key, whatever the number of threads that ask, and children of a fork that never wait for a thread which
does not exist there: a fork waits until all such work is done, and then nobody holds a lock.

All are re-entrant locks of Python's own: a handler may want what its thread holds, and no signal comes
between the end of a `with` statement and the release of such a lock, as it may in one written in Python.
Where there is no fork, as on Windows, nothing waits for one.
"""

from __future__ import annotations

import ast
import concurrent.futures.thread  # noqa: F401 - its own handler of forks takes a lock, and must run after ours
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from functools import cached_property
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakSet

V = TypeVar("V")
# What a first step imports.
AWAITED = {"llvmlite", "numba", "numpy", "optgen", "torch", "triton", *sys.stdlib_module_names}
LONGEST_IMPORT = 60.0  # seconds; one that takes longer may be waiting for the thread that forks
PATIENCE = 0.05  # seconds for which a fork keeps others from going on while it waits for one of them

_making_locks = RLock()
_locks: WeakSet[Any] = WeakSet()
_sections: WeakSet[Any] = WeakSet()


def lock() -> Any:
    """A re-entrant lock that is free in the child of a fork, unless the thread that forks holds it."""
    made = RLock()
    with _making_locks:
        _locks.add(made)
    return made


def section() -> Any:
    """A re-entrant lock that a fork waits for, so that a child finds nothing half changed."""
    made = lock()
    with _making_locks:
        _sections.add(made)
    return made


class _Mine(threading.local):
    def __init__(self) -> None:
        self.section = section()


_mine = _Mine()


def uncut() -> Any:
    """A context that a fork waits for: any number of threads are in it at once, each as deep as it likes."""
    return _mine.section


def holding(locks: Sequence[Any], act: Callable[..., V], *args: Any) -> V:
    """What a function returns that is called while all of these are held, whatever their number."""
    if not locks:
        return act(*args)
    with locks[0]:
        found = holding(locks[1:], act, *args)
    return found  # noqa: RET504 - returned within it, a signal could leave the lock closed


_parsing = lock()


def parse(source: str, mode: str = "exec", feature_version: tuple[int, int] | None = None) -> Any:
    """`ast.parse`, one thread at a time: Python 3.11 raises a SystemError where several are in it."""
    with _parsing:
        return ast.parse(source, mode=mode, feature_version=feature_version)


_making: dict[tuple[int, Hashable], Any] = {}  # a lock for each table and key that is being filled


def once(table: MutableMapping[Any, V], key: Hashable, make: Callable[[], V]) -> V:
    """The table's value for a key, made by the thread that asks first; who asks meanwhile waits for it."""
    try:
        return table[key]
    except KeyError:
        pass
    # A fork waits for whoever waits here, so nobody may hold the lock without being inside.
    with uncut(), _making.setdefault((id(table), key), lock()):
        if key not in table:
            table[key] = make()
            _making.pop((id(table), key), None)
        return table[key]


# Forks


def _importing() -> bool:
    """Whether another thread is importing what a step needs: a child could never complete that import."""
    me, others = threading.get_ident(), False
    for name, entry in list(getattr(importlib._bootstrap, "_module_locks", {}).items()):
        owner = getattr(entry(), "owner", None)
        if owner == me:
            return False  # the other thread may be waiting for this one's import
        others |= owner is not None and name.partition(".")[0] in AWAITED
    return others


_held: list[Any] = []  # by the thread that forks; the first, which is let go last, is `_making_locks`


def _close() -> bool:
    """Hold every section, once nobody else does; whether this thread is in none itself.

    A thread that forks inside does not wait for the others, who may be waiting for it.
    """
    while True:
        _hold(_making_locks)
        sections = list(_sections)
        if any(each._is_owned() for each in sections):
            return False
        for each in sections:
            if not each.acquire(timeout=PATIENCE):
                break
            _held.append(each)
        else:
            return True
        _open()  # who is inside may wait for what is held here
        time.sleep(0.001)


def _hold(what: Any) -> None:
    what.acquire()
    _held.append(what)


def _open() -> None:
    while _held:
        _held.pop().release()


def _before() -> None:
    latest = time.monotonic() + LONGEST_IMPORT
    outside = _close()
    while outside and _importing() and time.monotonic() < latest:
        _open()  # for what the import may compile
        time.sleep(0.001)
        _close()
    numba = sys.modules.get("numba.core.compiler_lock")
    if outside and numba is not None:  # others than optgen compile with it too
        _hold(numba.global_compiler_lock)


def _in_child() -> None:
    _open()
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
    os.register_at_fork(before=_before, after_in_parent=_open, after_in_child=_in_child)
