"""The cache folder: read and write files that no other user can have written; or no files at all.

In: names and bytes. Out: those bytes again, in this process or a later one; or None. Its files are
unpickled, and so executed: the folder is used only if it belongs to this user and nobody else can write
in it or replace it, and likewise each file. Any problem is warned of once, with a remedy, and then kernels
stay in memory: nothing here fails because of a disk.

The folder is `$OPTGEN_CACHE_DIR`, or `optgen` in `$XDG_CACHE_HOME` or `~/.cache`. What optgen creates there
has mode 0600 or 0700 whatever the umask, and folders that older versions created are tightened.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import time
import warnings
from pathlib import Path

from optgen.locks import lock, once

OWNERS = hasattr(os, "getuid")  # elsewhere a user's folders are that user's by themselves
OURS = re.compile(r"(\w+_)?(cpu|triton)_[0-9a-f]{20}\b.*|__pycache__|\.optgen-.*")
TEMPORARY = ".optgen-"
LEFT_BEHIND = 3600  # seconds after which nobody is writing a temporary file any more
MOST_LINKS = 40

_folders: dict[str, Path | None] = {}  # the folder, once it was looked for
_warned: set[str] = set()
_warn_lock = lock()


def folder() -> Path | None:
    """The cache folder; None if there is none that only this user can write."""
    return once(_folders, "cache", _locate)


def read(name: str) -> bytes | None:
    """Read a file; None if it does not exist, or another user may have written it."""
    where = folder()
    if where is None:
        return None
    path = where / name
    flags = sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        handle = os.open(path, os.O_RDONLY | flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn_once("file", f"{path}, which cannot be read ({error.strerror})", "remove it")
        return None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            _warn_once("file", f"{path}, which is no file", "remove it")
            return None
        if OWNERS and _writable_by_others(status, str(path)):
            _warn_once("file", f"{path}, which somebody else can write or has written", "remove it")
            remove(name)
            return None
        if OWNERS and status.st_mode & 0o077:
            with contextlib.suppress(OSError):  # where nothing can be written, nobody else can either
                os.fchmod(handle, 0o600)
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        _warn_once("file", f"{path}, which cannot be read ({error.strerror})", "remove it")
        return None
    finally:
        os.close(handle)


def write(name: str, data: bytes) -> None:
    """Write a file atomically; after a failure this process writes nothing more."""
    where = folder()
    if where is None or "space" in _warned:
        return
    try:
        _make_private(str(where))  # somebody may have removed it
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=where)
        try:
            with open(handle, "wb") as file:
                if OWNERS:
                    os.fchmod(handle, 0o600)
                file.write(data)
            # Atomic: a reader sees the old file or the complete new one.
            os.replace(temporary, where / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        what = f"{where}, where nothing can be written ({error.strerror or error})"
        _warn_once("space", what, "make room there, or set OPTGEN_CACHE_DIR to another folder of yours")


def remove(name: str) -> None:
    """Remove a file, if it exists and can be removed."""
    where = folder()
    if where is not None:
        with contextlib.suppress(OSError):
            os.unlink(where / name)


def _warn_once(kind: str, what: str, remedy: str) -> None:
    """Warn, once for each kind of problem."""
    with _warn_lock:
        if kind in _warned:
            return
        _warned.add(kind)
    warnings.warn(
        f"optgen does not use {what}: kernels stay in memory, and the next process compiles them again. "
        f"To avoid that, {remedy}.",
        RuntimeWarning,
        stacklevel=3,
    )


def _locate() -> Path | None:
    """Find, create and check the cache folder; warn and return None if it cannot be trusted."""
    configured = os.environ.get("OPTGEN_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.abspath(os.path.expanduser(configured)) if configured else os.path.join(base, "optgen")
    try:
        fault = None if os.path.isabs(path) else "there is no home folder"
        path.encode()  # the name of a module's file
        if fault is None:
            _make_private(path)
            # The parents first: in a folder that others can replace, nothing is tightened.
            fault = exposure(os.path.dirname(path), used=False)
        if fault is None:
            _tighten(path, not configured)
            fault = exposure(path)
    except OSError as error:
        fault = error.strerror or str(error)
    except UnicodeEncodeError:
        fault = "its name is not UTF-8"
    if fault is None:
        _remove_stale(path)
        return Path(path)
    place = f"OPTGEN_CACHE_DIR={configured}" if configured else f"the cache folder {path}"
    _warn_once("folder", f"{place} ({fault})", "set OPTGEN_CACHE_DIR to a folder that only you can write")
    return None


def _make_private(path: str) -> None:
    """Create a folder and its missing parents with mode 0700."""
    missing = []
    while path != os.path.dirname(path) and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(each, 0o700)
            os.chmod(each, 0o700)


def _tighten(path: str, own: bool) -> None:
    """Restrict a folder that optgen created to this user: the default one, or one with only its files."""
    status = os.stat(path)
    if not OWNERS or status.st_uid != os.geteuid() or not status.st_mode & 0o077:
        return
    names = os.listdir(path)
    if not own and not (names and all(map(OURS.fullmatch, names))):
        return
    os.chmod(path, 0o700)
    for each in (os.path.join(path, name) for name in names if OURS.fullmatch(name)):
        status = os.lstat(each)
        if stat.S_ISREG(status.st_mode) and _writable_by_others(status, each):
            os.unlink(each)  # closing it would make it look like ours
        elif stat.S_ISREG(status.st_mode):
            os.chmod(each, 0o600)


def _remove_stale(path: str) -> None:
    """Remove temporary files of processes that were killed."""
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_BEHIND:
                        os.unlink(entry.path)


def exposure(path: str, used: bool = True) -> str | None:
    """How another user could change files in a folder (an absolute path); None if nobody could.

    Every folder and link on the way is checked. Those above the folder itself may be root's, and may be
    writable by everybody if the sticky bit is set, as in /tmp.
    """
    if not OWNERS:
        return None
    remaining, at, links = path.split("/")[::-1], "/", 0
    while True:
        status = os.lstat(at)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if status.st_uid not in (os.geteuid(), 0) or links > MOST_LINKS:
                return f"{at} is a link that somebody else made"
            target = os.readlink(at)
            remaining += target.split("/")[::-1]
            at = "/" if target.startswith("/") else os.path.dirname(at)
            continue
        fault = _folder_exposure(at, status, used and not any(remaining))
        if fault is not None or not any(remaining):
            return fault
        part = remaining.pop()
        at = os.path.dirname(at) if part == ".." else os.path.join(at, part) if part not in ("", ".") else at


def _folder_exposure(path: str, status: os.stat_result, used: bool) -> str | None:
    """The same for one folder on the way; `used` says that it is the cache folder itself."""
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is no folder"
    me = os.geteuid()
    if status.st_uid != me and (used or status.st_uid != 0):
        return f"{path} belongs to another user"
    open_to_all = _writable_by_others(status, path) if status.st_uid == me else bool(status.st_mode & 0o022)
    if open_to_all and (used or not status.st_mode & stat.S_ISVTX):
        return f"others can write in {path}"
    return None


def _writable_by_others(status: os.stat_result, path: str) -> bool:
    """Whether another user owns or can write a file or folder; the user's private group does not count.

    With an access control list, the group bits are a mask of what any user or group in it may do.
    """
    if status.st_uid != os.geteuid() or status.st_mode & 0o002:
        return True
    return bool(status.st_mode & 0o020) and (_has_acl(path) or not _alone_in(status.st_gid))


def _has_acl(path: str) -> bool:
    """Whether a path has a POSIX access control list."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except (OSError, AttributeError):  # no list, or a system that has none
        return False


def _alone_in(group: int) -> bool:
    """Whether a group has no member but this user, as many systems create one for each user."""
    import grp
    import pwd

    try:
        name, entry = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    primary = {
        each.pw_name for each in pwd.getpwall() if each.pw_gid == group
    }  # whom the group does not list
    return entry.gr_name == name and {*entry.gr_mem, *primary} <= {name}
