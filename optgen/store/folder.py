"""A folder of small, named blobs, on whatever file system.

In: a URL. Out: listing, reading, and writing that has reached the disk when it returns. On a local file
system a blob appears whole or not at all (a temporary name, fsync, rename); on others it is what their
`pipe_file` makes of it, one put on an object store, and possibly half a blob after a failure elsewhere.
What must not depend on that is checked by those who read (see `optgen.store.snapshot`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

INSTALL = "a file store needs {}: pip install 'optgen[store]'"


def open_folder(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Folder:
    """The folder at a URL or path; it need not exist yet.

    Raises:
        ImportError: fsspec is not installed, or what it needs for this kind of URL.
        ValueError: fsspec does not know this kind of URL.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(INSTALL.format("fsspec")) from error
    system, root = url_to_fs(os.fspath(url), **(options or {}))
    local = "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)
    return LocalFolder(root) if local else FsspecFolder(system, root)


class Folder(ABC):
    """Named blobs."""

    @abstractmethod
    def names(self) -> list[str]:
        """What is in the folder now, sorted; nothing if there is no folder.

        Raises:
            NotADirectoryError: it is a file.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A blob; FileNotFoundError if there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a blob that lasts, making the folder where it is missing."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a blob."""


class FsspecFolder(Folder):
    """A folder of an fsspec file system."""

    def __init__(self, system: Any, root: str):
        self.system, self.root = system, root.rstrip("/")

    def __str__(self) -> str:
        return str(self.system.unstrip_protocol(self.root))

    def path(self, name: str) -> str:
        """Where a blob lies."""
        return f"{self.root}/{name}"

    def names(self) -> list[str]:
        """As in the base class; the file system's cache of listings is not believed."""
        self.system.invalidate_cache(self.root)
        try:
            found = [path.rstrip("/") for path in self.system.ls(self.root, detail=False)]
        except FileNotFoundError:
            return []
        if found == [self.root] and self.system.isfile(self.root):
            raise NotADirectoryError(f"{self} is a file, not a folder")
        # an object store may list the folder's own marker
        return sorted(path.rsplit("/", 1)[-1] for path in found if path != self.root)

    def read(self, name: str) -> bytes:
        """A blob; FileNotFoundError if there is none."""
        return bytes(self.system.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a blob; what a failure leaves of it is up to the file system."""
        self.system.makedirs(self.root, exist_ok=True)
        self.system.pipe_file(self.path(name), data)

    def remove(self, name: str) -> None:
        """Remove a blob."""
        self.system.rm_file(self.path(name))


class LocalFolder(Folder):
    """A folder on this machine, written so that a power failure leaves each blob whole or absent."""

    def __init__(self, root: str):
        self.root = root

    def __str__(self) -> str:
        return self.root

    def path(self, name: str) -> str:
        """Where a blob lies."""
        return os.path.join(self.root, name)

    def names(self) -> list[str]:
        """As in the base class."""
        try:
            return sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """A blob; FileNotFoundError if there is none."""
        with open(self.path(name), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Write a blob, and let it reach the disk before its name does, and its name before returning."""
        os.makedirs(self.root, exist_ok=True)
        temporary = self.path(f"{name}.tmp")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path(name))
        if hasattr(os, "O_DIRECTORY"):  # where a folder can be opened
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def remove(self, name: str) -> None:
        """Remove a blob."""
        os.remove(self.path(name))
