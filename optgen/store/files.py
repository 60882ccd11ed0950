"""Parameters in a folder of a local or remote file system.

In: a URL that fsspec understands (a path, `memory://…`, `s3://…`). Out: a store that another process finds
again. Working copies are in memory, on a device. A commit writes all that changed since the last one, found
by the version counters of the tensors, in one atomic write (`optgen.store.snapshot` says how): killed at any
instant, the store opens as it was before or after a commit, as a whole.

Every change is committed before its method returns, an `update` as one commit of values, gradients and the
optimizer's state, but for `increment_gradient`: increments are committed with the next change of any kind, or
by `flush`. A commit for each of them would make them as slow as the disk, and after a kill they can be
computed again. A change that could not be committed is undone in memory too.

One process writes a store at a time, which is checked at each commit; any number may open it to read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from optgen.store.base import ParameterID, SavedState, Step
from optgen.store.folder import Folder, open_folder
from optgen.store.memory import Entry, TorchParameterStore
from optgen.store.snapshot import (
    NAMES,
    Manifest,
    Part,
    UnknownVersion,
    generations,
    gradient_key,
    key_of,
    manifest_name,
    names_of,
    pack_manifest,
    pack_part,
    pack_tree,
    part_name,
    tree_tensors,
    unpack_manifest,
    unpack_part,
    unpack_tree,
    value_key,
)

MOST_PARTS = 16  # a commit that would leave more writes everything into one
ATTEMPTS = 10  # to read a store that another process is writing


class FileParameterStore(TorchParameterStore):
    """Parameters in a folder, with working copies in memory.

    Args:
        url: the folder, which need not exist yet, or be empty, or hold a store.
        device: where the working copies lie; by default where each value was given, and on the CPU what is
            read from the folder.
        storage_options: for the file system, as fsspec takes them.

    Owners are strings. As a context manager the store flushes when it is left without an error.

    Raises:
        ImportError: fsspec or safetensors is not installed.
        ValueError: the folder holds something else, or a damaged store.
    """

    durable = True

    def __init__(
        self,
        url: str | os.PathLike[str],
        device: torch.device | str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ):
        super().__init__(device)
        self.url = os.fspath(url)
        self._folder = open_folder(url, storage_options)
        self._manifest = Manifest()
        self._seen: set[int] = set()  # numbers of manifests that may be there: read, written, or cut short
        self._saved: dict[str, tuple[Tensor, int]] = {}  # by key, what was last committed, in which version
        self._committing = False
        self._load()

    def __repr__(self) -> str:
        return f"<FileParameterStore({self.url!r}) of {len(self._entries)} parameters>"

    def __enter__(self) -> FileParameterStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()

    # Changes, each a commit

    def init_parameters(self, values: Mapping[ParameterID, Any], *, copy: bool = True) -> None:
        """`init_parameter` for several, in one commit."""
        for id in values:
            value_key(id)  # it refuses an owner that is not a string
        with self._commit(values):
            super().init_parameters(values, copy=copy)

    def set_parameter_value(self, id: ParameterID, value: Any) -> None:
        """Give a parameter another value, in memory and in the folder."""
        with self._commit([id]):
            super().set_parameter_value(id, value)

    def reset_gradient(self, id: ParameterID) -> None:
        """Make the gradient zero, in memory and in the folder."""
        with self._commit([id]):
            super().reset_gradient(id)

    def set_gradient(self, id: ParameterID, value: Any) -> None:
        """Make the gradient this, in memory and in the folder."""
        with self._commit([id]):
            super().set_gradient(id, value)

    def set_optimizer_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep a state dict under a name, in memory and in the folder."""
        with self._commit([]):
            super().set_optimizer_state(name, state)

    def update(
        self,
        ids: Sequence[ParameterID],
        step: Step,
        name: str | None = None,
        state: SavedState | None = None,
    ) -> None:
        """Values, zeroed gradients and the optimizer's state in one commit; after an error nothing changed.

        What `step` changed elsewhere, such as the state itself, is for its owner to undo.
        """
        with self._commit(ids):
            super().update(ids, step, name, state)

    def flush(self) -> None:
        """Commit the increments since the last commit, and what was changed in place."""
        with self._commit([]):
            pass

    @contextmanager
    def _commit(self, ids: Iterable[ParameterID]) -> Iterator[None]:
        """Commit what the block changes; if it or the commit fails, undo its changes of these parameters.

        Their locks are held until then, so that no increment falls between a change and its undoing.
        """
        with self._table:
            if self._committing:  # a part of a larger change
                yield
                return
            ids = list(ids)
            with self._held([id for id in ids if id in self._entries]):
                undo = [self._undo(id) for id in ids]
                states = dict(self._states)
                self._committing = True
                try:
                    yield
                    stale = self._save()
                except BaseException:
                    for back in undo:
                        back()
                    self._states = states
                    raise
                finally:
                    self._committing = False
            self._clean(stale)

    def _undo(self, id: ParameterID) -> Callable[[], object]:
        """What puts a parameter back as it is now."""
        entry = self._entries.get(id)
        if entry is None:
            return partial(self._entries.pop, id, None)
        kept, value, gradient = entry, entry.value.detach().clone(), entry.gradient.clone()

        def back() -> None:
            self._entries[id] = kept
            with torch.no_grad(), kept.held():
                kept.value.copy_(value)
                kept.gradient.copy_(gradient)

        return back

    # The folder

    def _save(self) -> list[str]:
        """Write what changed since the last commit as the next one. Returns the files that were there."""
        names = self._folder.names()
        last = next(iter(generations(names)), 0)
        if last not in self._seen:
            raise RuntimeError(
                f"another process has written {self._folder} since this one read it: open the store again, "
                "and let one process at a time write it"
            )
        tensors, trees = self._contents()
        rewritten = {key for key, (tensor, _) in tensors.items() if self._changed(key, tensor)}
        same = tensors.keys() == self._manifest.tensors.keys() and trees == self._manifest.optimizers
        if same and not rewritten:
            return []
        rewritten |= self._moved(rewritten, tensors)
        places = {key: self._manifest.tensors[key] for key in tensors if key not in rewritten}
        parts = {name: self._manifest.parts[name] for name in dict.fromkeys(places.values())}
        copies = {key: _copied(*tensors[key]) for key in rewritten}
        part = part_name(last + 1)
        if copies:
            data = pack_part({key: copy for key, (copy, _) in copies.items()})
            parts[part] = Part.of(data)
            self._folder.write(part, data)
        manifest = Manifest(last + 1, parts, {key: places.get(key, part) for key in tensors}, trees)
        self._seen.add(last + 1)
        self._folder.write(manifest_name(last + 1), pack_manifest(manifest))
        self._manifest, self._seen = manifest, {last + 1}
        kept = {key: saved for key, saved in self._saved.items() if key in places}
        self._saved = kept | {key: (tensors[key][0], version) for key, (_, version) in copies.items()}
        return names

    def _contents(self) -> tuple[dict[str, tuple[Tensor, Entry | None]], dict[str, Any]]:
        """Every tensor by key, with the parameter whose lock it needs; the optimizers' states, packed."""
        tensors: dict[str, tuple[Tensor, Entry | None]] = {}
        for name, entry in self._entries.items():
            tensors[value_key(name)] = entry.value, entry
            tensors[gradient_key(name)] = entry.gradient, entry
        trees = {}
        for owner, state in self._states.items():
            keys = {id(t): key_of("state", owner, str(i)) for i, t in enumerate(tree_tensors(state))}
            tensors |= {keys[id(t)]: (t, None) for t in tree_tensors(state)}
            trees[owner] = pack_tree(state, keys)
        return tensors, trees

    def _changed(self, key: str, tensor: Tensor) -> bool:
        saved = self._saved.get(key)
        return saved is None or saved[0] is not tensor or saved[1] != tensor._version

    def _moved(self, rewritten: set[str], tensors: Mapping[str, Any]) -> set[str]:
        """Further tensors to write: those in parts of which less than half is still used."""
        stay = [key for key in tensors if key not in rewritten]
        used: dict[str, int] = {}
        for key in stay:
            tensor = tensors[key][0]
            place = self._manifest.tensors[key]
            used[place] = used.get(place, 0) + tensor.numel() * tensor.element_size()
        if len(used) >= MOST_PARTS:
            return set(stay)
        sparse = {place for place, size in used.items() if 2 * size < self._manifest.parts[place].size}
        return {key for key in stay if self._manifest.tensors[key] in sparse}

    def _clean(self, names: Iterable[str]) -> None:
        """Remove the files of earlier commits, finished or not."""
        needed = {manifest_name(self._manifest.generation), *self._manifest.parts}
        for name in names:
            if name in needed or not NAMES.fullmatch(name):
                continue
            try:
                self._folder.remove(name)
            except FileNotFoundError:  # a temporary file, whose name this commit used again
                continue
            except Exception as error:  # the commit is done, and the next one tries again
                warnings.warn(f"cannot remove '{name}' from {self._folder}: {error}", stacklevel=2)

    def _load(self) -> None:
        """Read the newest commit, again if another process removes it meanwhile."""
        for _ in range(ATTEMPTS):
            names = self._folder.names()
            try:
                self._manifest = _newest(self._folder, names)
                found: dict[str, Tensor] = {}
                for name, part in self._manifest.parts.items():
                    read = unpack_part(self._folder.read(name), part, f"'{name}' in {self._folder}")
                    found |= {key: read[key] for key in read if self._manifest.tensors.get(key) == name}
            except FileNotFoundError as error:
                gone = error
                if self._folder.names() == names:
                    break
            else:
                self._seen = {next(iter(generations(names)), 0)}
                self._fill(found)
                return
        raise ValueError(f"the parameter store in {self._folder} is damaged: a file of it is missing: {gone}")

    def _fill(self, found: Mapping[str, Tensor]) -> None:
        """Make the entries and states of what was read."""
        for key in self._manifest.tensors:
            kind, owner, *rest = names_of(key)
            if kind == "value":
                id = (owner, rest[0])
                value = self._adopted(found[key], True)
                gradient = found[gradient_key(id)].to(value.device, copy=True)
                self._entries[id] = Entry(value, gradient, next(self._numbers))
        self._states = {n: unpack_tree(tree, found) for n, tree in self._manifest.optimizers.items()}
        self._saved = {key: (tensor, tensor._version) for key, (tensor, _) in self._contents()[0].items()}


def _newest(folder: Folder, names: Sequence[str]) -> Manifest:
    """The newest whole manifest; an empty one in a folder with nothing in it but unfinished commits."""
    found = generations(list(names))
    damage = None
    for generation in found:
        name = manifest_name(generation)
        try:
            return unpack_manifest(folder.read(name), f"'{name}' in {folder}")
        except UnknownVersion:
            raise
        except ValueError as error:  # where files are written in place: a commit that was cut short
            damage = damage or error
    if damage is not None:
        raise damage
    others = [name for name in names if not NAMES.fullmatch(name)]
    if others:
        raise ValueError(
            f"{folder} is no parameter store, and not empty either (it has '{others[0]}'): "
            "name an empty or a new folder"
        )
    return Manifest()


def _copied(tensor: Tensor, entry: Entry | None) -> tuple[Tensor, int]:
    """A copy of a tensor on the CPU, and its version then."""
    if entry is None:
        return tensor.detach().to("cpu", copy=True), tensor._version
    with entry.held():
        return tensor.detach().to("cpu", copy=True), tensor._version
