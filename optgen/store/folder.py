"""Durable files in one folder of a local or remote file system.

In: a URL. Out: listing, reading, and writes that have reached the disk when they return. On a local file
system a write is atomic (a temporary name, fsync, rename). On others it is what their `pipe_file` does: one
put on an object store, and possibly half a file after a failure elsewhere. Readers detect such a file by its
checksum (see `optgen.store.snapshot`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

INSTALL = "a file store needs {}: pip install 'optgen[store]'"


def open_folder(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Folder:
    """Open the folder at a URL or path; it need not exist yet.

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
    """Files by name in one folder."""

    @abstractmethod
    def names(self) -> list[str]:
        """The names of the files that are there now, sorted; none if there is no folder.

        Raises:
            NotADirectoryError: it is a file.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file durably, and make the folder if it is missing."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file."""


class FsspecFolder(Folder):
    """A folder of an fsspec file system."""

    def __init__(self, system: Any, root: str):
        self.system, self.root = system, root.rstrip("/")

    def __str__(self) -> str:
        return str(self.system.unstrip_protocol(self.root))

    def path(self, name: str) -> str:
        """The path of a file."""
        return f"{self.root}/{name}"

    def names(self) -> list[str]:
        """As in the base class, past the file system's cache of listings."""
        self.system.invalidate_cache(self.root)
        try:
            paths = [path.rstrip("/") for path in self.system.ls(self.root, detail=False)]
        except FileNotFoundError:
            return []
        if paths == [self.root] and self.system.isfile(self.root):
            raise NotADirectoryError(f"{self} is a file, not a folder")
        # An object store may list an empty object for the folder itself.
        return sorted(path.rsplit("/", 1)[-1] for path in paths if path != self.root)

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        return bytes(self.system.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file; what a failure leaves of it is up to the file system."""
        self.system.makedirs(self.root, exist_ok=True)
        self.system.pipe_file(self.path(name), data)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.system.rm_file(self.path(name))


class LocalFolder(Folder):
    """A folder on this machine, where a power failure leaves each file whole or absent."""

    def __init__(self, root: str):
        self.root = root

    def __str__(self) -> str:
        return self.root

    def path(self, name: str) -> str:
        """The path of a file."""
        return os.path.join(self.root, name)

    def names(self) -> list[str]:
        """As in the base class."""
        try:
            return sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError if there is none."""
        with open(self.path(name), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: fsync its content under another name, rename it, fsync the folder."""
        os.makedirs(self.root, exist_ok=True)
        temporary = self.path(f"{name}.tmp")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path(name))
        # Without this the rename may be lost in a power failure after the caller has gone on.
        if hasattr(os, "O_DIRECTORY"):  # where a folder can be opened
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.remove(self.path(name))
