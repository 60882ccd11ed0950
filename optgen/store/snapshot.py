"""The file format of a store, in which a commit is atomic because it is one write.

    part-000000000007.safetensors      the tensors that commit 7 changed
    store-000000000007.json            the manifest of commit 7: which part has each tensor, optimizer states

In: tensors by key and the states of optimizers, as trees. Out: bytes of parts and manifests, and back.

A commit writes one part, under a name that nothing refers to yet, then one manifest, and then removes the
files that the new manifest does not name. The newest complete manifest defines the store: **the write of the
manifest is the commit**. Before it the old manifest is the newest, and everything that it names is still
there; after it, the new one. A manifest has a checksum of itself, so that half a manifest counts as none
where a file system writes in place, and checksums of its parts, so that damage is detected. No rename is
needed, and no file that a manifest names is ever overwritten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote
from zlib import crc32

import numpy as np
from torch import Tensor

from optgen.store.base import ParameterID
from optgen.store.folder import INSTALL

FORMAT = "optgen parameter store"
VERSION = 1
NAMES = re.compile(r"(?:store-(\d{12})\.json|part-\d{12}\.safetensors)(?:\.tmp)?")


@dataclass(frozen=True)
class Part:
    """A file of tensors, by its size and checksum."""

    size: int
    crc32: int

    @classmethod
    def of(cls, data: bytes) -> Part:
        """The size and checksum of these bytes."""
        return cls(len(data), crc32(data))


@dataclass(frozen=True)
class Manifest:
    """The store at one commit: which part each tensor is in, and the optimizers' states as trees."""

    generation: int = 0  # the number of the commit; 0 for an empty store
    parts: Mapping[str, Part] = field(default_factory=dict)  # by file name
    tensors: Mapping[str, str] = field(default_factory=dict)  # by key, the name of the part
    optimizers: Mapping[str, Any] = field(default_factory=dict)  # by the name that a state is stored under


def manifest_name(generation: int) -> str:
    """The file name of a commit's manifest."""
    return f"store-{generation:012d}.json"


def part_name(generation: int) -> str:
    """The file name of a commit's tensors."""
    return f"part-{generation:012d}.safetensors"


def generations(names: list[str]) -> list[int]:
    """The generations whose manifests are among these file names, the newest first."""
    matches = [NAMES.fullmatch(name) for name in names if not name.endswith(".tmp")]
    return sorted((int(m[1]) for m in matches if m and m[1]), reverse=True)


def key_of(kind: str, *names: str) -> str:
    """The key of a tensor: a kind and names, percent-encoded, so that `/` separates them."""
    return "/".join([kind, *(quote(name, safe="", errors="surrogatepass") for name in names)])


def names_of(key: str) -> list[str]:
    """Decode a key: the kind and the names."""
    return [unquote(part, errors="surrogatepass") for part in key.split("/")]


def value_key(id: ParameterID) -> str:
    """The key of a parameter's value.

    Raises:
        TypeError: the owner is not a string, and so means nothing to another process.
    """
    return key_of("value", _owner(id), id[1])


def gradient_key(id: ParameterID) -> str:
    """The key of a parameter's gradient."""
    return key_of("gradient", _owner(id), id[1])


def _owner(id: ParameterID) -> str:
    """An owner that another process can name: a string."""
    if not isinstance(id[0], str):
        raise TypeError(
            f"a file store needs strings for owners, not {id[0]!r}: another process must find '{id[1]}' again"
        )
    return id[0]


def pack_manifest(manifest: Manifest) -> bytes:
    """Serialize a manifest as JSON with a checksum of its content."""
    content = {
        "generation": manifest.generation,
        "parts": {name: [part.size, part.crc32] for name, part in manifest.parts.items()},
        "tensors": dict(manifest.tensors),
        "optimizers": dict(manifest.optimizers),
    }
    envelope = {"format": FORMAT, "version": VERSION, "crc32": _checksum(content), "content": content}
    return json.dumps(envelope).encode("ascii")


def unpack_manifest(data: bytes, where: str) -> Manifest:
    """Deserialize a manifest and check it.

    Raises:
        ValueError: they are damaged, or something else, or of a version that is not known here.
    """
    try:
        envelope = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{where} is damaged: {error}") from None
    if not isinstance(envelope, dict) or envelope.get("format") != FORMAT:
        raise ValueError(f"{where} is not the manifest of an {FORMAT}")
    if envelope.get("version") != VERSION:
        raise UnknownVersion(
            f"{where} has version {envelope.get('version')} of the format, and this optgen reads {VERSION}: "
            "open it with the optgen that wrote it"
        )
    content: Any = envelope.get("content")
    if envelope.get("crc32") != _checksum(content):
        raise ValueError(f"{where} is damaged: its checksum is wrong")
    parts = {name: Part(*numbers) for name, numbers in content["parts"].items()}
    return Manifest(content["generation"], parts, content["tensors"], content["optimizers"])


class UnknownVersion(ValueError):
    """A complete manifest of another format version, for which no older one may be taken instead."""


def _checksum(content: Any) -> int:
    """The CRC-32 of the content's JSON, which is the same after `json.loads`: dicts keep their order."""
    return crc32(json.dumps(content).encode("ascii"))


def pack_part(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialize tensors as a safetensors file."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError(INSTALL.format("safetensors")) from error
    return save({key: tensor.contiguous() for key, tensor in tensors.items()})


def unpack_part(data: bytes, part: Part, where: str) -> dict[str, Tensor]:
    """Deserialize the tensors of a part, on the CPU.

    Raises:
        ValueError: its size or its checksum is not the manifest's.
    """
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError(INSTALL.format("safetensors")) from error
    if Part.of(data) != part:
        what = "its checksum is wrong" if len(data) == part.size else f"{len(data)} bytes of {part.size}"
        raise ValueError(f"{where} is damaged: {what}")
    return load(data)


def pack_tree(tree: Any, keys: Mapping[int, str]) -> Any:
    """Convert a state dict to JSON values; `keys` has the key of each tensor by its `id`.

    Raises:
        TypeError: something in it is neither a container, a number, a string, None nor a tensor.
    """
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, np.generic):
        return tree.item()
    if isinstance(tree, Tensor):
        return {"tensor": keys[id(tree)]}
    if isinstance(tree, Mapping):
        # Pairs, for JSON has strings for keys, and `state` has numbers.
        return {"dict": [[pack_tree(k, keys), pack_tree(v, keys)] for k, v in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [pack_tree(item, keys) for item in tree]}
    raise TypeError(f"an optimizer's state holds a {type(tree).__name__}, which a file store cannot keep")


def unpack_tree(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Convert JSON values of `pack_tree` back to a state dict."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {unpack_tree(k, tensors): unpack_tree(v, tensors) for k, v in content}
    items = [unpack_tree(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def tree_tensors(tree: Any) -> list[Tensor]:
    """The tensors in a state dict, depth first, each once."""
    if isinstance(tree, Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return list({id(t): t for item in items for t in tree_tensors(item)}.values())
