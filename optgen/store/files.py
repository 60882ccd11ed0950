"""The parameter store in a folder of a local or remote file system, with atomic commits.

In: a URL that fsspec understands (a path, `memory://…`, `s3://…`). Out: a store that another process can
open. Working copies are in memory, on a device. A commit writes all that changed since the last one, by the
version counters of the tensors, in one atomic write (`optgen.store.snapshot` says how): if the process is
killed at any instant, the store opens as it was before or after a commit.

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

MOST_PARTS = 16  # a commit that would leave more files rewrites all tensors into one
ATTEMPTS = 10  # to read a store that another process is writing


class FileParameterStore(TorchParameterStore):
    """A parameter store in a folder, with working copies in memory.

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
        # Generations that may be the newest in the folder: read, written, or cut short by this process. Any
        # other means that another process writes the store.
        self._seen: set[int] = set()
        self._committed: dict[str, tuple[Tensor, int]] = {}  # by key, a tensor and its version at that time
        self._committing = False  # inside a commit, whose parts must not commit themselves
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
        """`init_parameter` for several parameters, in one commit."""
        for id in values:
            value_key(id)  # raises for an owner that is not a string
        with self._commit(values):
            super().init_parameters(values, copy=copy)

    def set_parameter_value(self, id: ParameterID, value: Any) -> None:
        """Set a parameter's value, in memory and in the folder."""
        with self._commit([id]):
            super().set_parameter_value(id, value)

    def reset_gradient(self, id: ParameterID) -> None:
        """Set the gradient to zeros, in memory and in the folder."""
        with self._commit([id]):
            super().reset_gradient(id)

    def set_gradient(self, id: ParameterID, value: Any) -> None:
        """Set the gradient, in memory and in the folder."""
        with self._commit([id]):
            super().set_gradient(id, value)

    def set_optimizer_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Store a state dict under a name, in memory and in the folder."""
        with self._commit([]):
            super().set_optimizer_state(name, state)

    def update(
        self,
        ids: Sequence[ParameterID],
        step: Step,
        name: str | None = None,
        state: SavedState | None = None,
    ) -> None:
        """Commit values, zeroed gradients and the optimizer's state at once; after an error nothing changed.

        Whatever else `step` changed, such as the optimizer's state, its owner must restore.
        """
        with self._commit(ids):
            super().update(ids, step, name, state)

    def flush(self) -> None:
        """Commit the increments since the last commit, and tensors that were changed in place."""
        with self._commit([]):
            pass

    @contextmanager
    def _commit(self, ids: Iterable[ParameterID]) -> Iterator[None]:
        """Commit the changes of the block; if it or the commit fails, restore these parameters.

        Their locks are held until then: an increment between a change and its restoration would be lost.
        """
        with self._table:
            if self._committing:  # the outer commit will write it
                yield
                return
            ids = list(ids)
            with self._locked([id for id in ids if id in self._entries]):
                undo = [self._undo(id) for id in ids]  # twice the memory of these, until the commit is done
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
            self._clean(stale)  # the commit is complete: a failure here must not restore anything

    def _undo(self, id: ParameterID) -> Callable[[], object]:
        """Copy a parameter's value and gradient; returns a function that restores them."""
        entry = self._entries.get(id)
        if entry is None:
            return partial(self._entries.pop, id, None)
        before, value, gradient = entry, entry.value.detach().clone(), entry.gradient.clone()

        def back() -> None:
            self._entries[id] = before
            with torch.no_grad(), before.locked():
                before.value.copy_(value)
                before.gradient.copy_(gradient)

        return back

    # The folder

    def _save(self) -> list[str]:
        """Write the tensors that changed as the next generation; returns the files that were there before."""
        names = self._folder.names()
        last = next(iter(generations(names)), 0)
        # The listing is the only check, so two writers at the same instant may both pass it.
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
        # Copies with the versions that they have: increments of other threads during the write come later.
        copies = {key: _copied(*tensors[key]) for key in rewritten}
        part = part_name(last + 1)
        if copies:
            data = pack_part({key: copy for key, (copy, _) in copies.items()})
            parts[part] = Part.of(data)
            self._folder.write(part, data)  # before the manifest that names it
        manifest = Manifest(last + 1, parts, {key: places.get(key, part) for key in tensors}, trees)
        # Before the write: if that fails half way, its file may be there, and is ours.
        self._seen.add(last + 1)
        self._folder.write(manifest_name(last + 1), pack_manifest(manifest))
        self._manifest, self._seen = manifest, {last + 1}
        unchanged = {key: each for key, each in self._committed.items() if key in places}
        self._committed = unchanged | {
            key: (tensors[key][0], version) for key, (_, version) in copies.items()
        }
        return names

    def _contents(self) -> tuple[dict[str, tuple[Tensor, Entry | None]], dict[str, Any]]:
        """Every tensor by key, with the entry whose lock it needs; and the optimizers' states as trees."""
        tensors: dict[str, tuple[Tensor, Entry | None]] = {}
        for name, entry in self._entries.items():
            tensors[value_key(name)] = entry.value, entry
            tensors[gradient_key(name)] = entry.gradient, entry
        trees = {}
        for owner, state in self._states.items():
            # Keys go by position in the tree: the same state has the same ones in each commit.
            keys = {id(t): key_of("state", owner, str(i)) for i, t in enumerate(tree_tensors(state))}
            tensors |= {keys[id(t)]: (t, None) for t in tree_tensors(state)}
            trees[owner] = pack_tree(state, keys)
        return tensors, trees

    def _changed(self, key: str, tensor: Tensor) -> bool:
        """Whether a tensor is another object, or has another version, than at the last commit."""
        committed = self._committed.get(key)
        return committed is None or committed[0] is not tensor or committed[1] != tensor._version

    def _moved(self, rewritten: set[str], tensors: Mapping[str, Any]) -> set[str]:
        """Compaction: unchanged tensors to write again, so that their sparsely used parts can be removed."""
        unchanged = [key for key in tensors if key not in rewritten]
        used: dict[str, int] = {}
        for key in unchanged:
            tensor = tensors[key][0]
            place = self._manifest.tensors[key]
            used[place] = used.get(place, 0) + tensor.numel() * tensor.element_size()
        if len(used) >= MOST_PARTS:
            return set(unchanged)
        # Less than half of the file is still used.
        sparse = {place for place, size in used.items() if 2 * size < self._manifest.parts[place].size}
        return {key for key in unchanged if self._manifest.tensors[key] in sparse}

    def _clean(self, names: Iterable[str]) -> None:
        """Remove the files of earlier generations, complete or not."""
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
        """Read the newest generation; again if another process replaces it meanwhile."""
        for _ in range(ATTEMPTS):
            names = self._folder.names()
            try:
                self._manifest = _newest(self._folder, names)
                tensors: dict[str, Tensor] = {}
                for name, part in self._manifest.parts.items():
                    read = unpack_part(self._folder.read(name), part, f"'{name}' in {self._folder}")
                    tensors |= {key: read[key] for key in read if self._manifest.tensors.get(key) == name}
            except FileNotFoundError as error:
                gone = error
                if self._folder.names() == names:
                    break
            else:
                self._seen = {next(iter(generations(names)), 0)}
                self._fill(tensors)
                return
        raise ValueError(f"the parameter store in {self._folder} is damaged: a file of it is missing: {gone}")

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the entries and optimizer states of the tensors that were read."""
        for key in self._manifest.tensors:
            kind, owner, *rest = names_of(key)
            if kind == "value":
                id = (owner, rest[0])
                value = self._leaf(tensors[key], True)
                gradient = tensors[gradient_key(id)].to(value.device, copy=True)
                self._entries[id] = Entry(value, gradient, next(self._entry_numbers))
        # What was read counts as committed: an unchanged store writes nothing.
        self._states = {n: unpack_tree(tree, tensors) for n, tree in self._manifest.optimizers.items()}
        self._committed = {key: (tensor, tensor._version) for key, (tensor, _) in self._contents()[0].items()}


def _newest(folder: Folder, names: Sequence[str]) -> Manifest:
    """The newest complete manifest; an empty one if the folder has no files but unfinished commits."""
    newest_first = generations(list(names))
    damage = None
    for generation in newest_first:
        name = manifest_name(generation)
        try:
            return unpack_manifest(folder.read(name), f"'{name}' in {folder}")
        except UnknownVersion:  # a complete manifest: an older one is not what the store is
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
    """Copy a tensor to the CPU, with the version that it had then."""
    if entry is None:
        return tensor.detach().to("cpu", copy=True), tensor._version
    with entry.locked():
        return tensor.detach().to("cpu", copy=True), tensor._version
