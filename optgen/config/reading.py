"""Parses YAML text to plain data, with the position of every key.

In: text. Out: the data, and a `Span` for every dotted path. Only plain YAML is read, with the numbers of
YAML 1.2, in which `1e-9` is one (PyYAML reads YAML 1.1, in which it is a string); a duplicate key and a tag
are errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from optgen.config.schema import ConfigError, Path
from optgen.errors import Source, Span

FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


@dataclass
class Places:
    """The positions of keys in a YAML text, and of values that are one line of text."""

    source: Source
    keys: dict[Path, Span] = field(default_factory=dict)
    texts: dict[Path, Span] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)  # ids of nodes that were walked: aliases are the same nodes

    def key(self, path: Path) -> Span | None:
        """The position of a key, or of the nearest one that contains it."""
        while path and path not in self.keys:
            path = path[:-1]
        return self.keys.get(path)

    def inside(self, path: Path, span: Span) -> Span | None:
        """The position of a span inside a value, if the value is written on one line without escapes."""
        start = self.texts.get(path)
        if start is None or span.line != 1:
            return None
        return Span(self.source, start.line, start.column + span.column - 1, span.width)


def read(text: str) -> tuple[Any, Places]:
    """Parse a YAML text; returns its data and the positions of its keys.

    Raises:
        ConfigError: it is not plain YAML; with its line.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError("YAML needs PyYAML: pip install 'optgen[config]'") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Plain YAML with the floats of YAML 1.2."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
    places = Places(Source(text, "<yaml>"))
    try:
        # Nodes first, for their positions, then the data from the same nodes: the text is parsed once.
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise ConfigError("the configuration is empty", (), Span(places.source, 1, 1))
        _walk(root, (), places)
        return loader.construct_document(root), places
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        span = None if mark is None else Span(places.source, mark.line + 1, mark.column + 1)
        raise ConfigError(f"not plain YAML: {error.problem or error.context}", (), span) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not plain YAML: {error}") from None


def _walk(node: Any, path: Path, places: Places) -> None:
    """Record the position of every key and text below a YAML node, each node once."""
    if id(node) in places.seen:
        return
    places.seen.add(id(node))
    if node.id == "mapping":
        for key, value in node.value:
            inner = (*path, key.value if isinstance(key.value, str) else str(key.value))
            span = _span(key, places.source)
            # Several merge keys `<<` in one mapping are no duplicates.
            if inner in places.keys and key.tag != "tag:yaml.org,2002:merge":
                first = places.keys[inner].line
                raise ConfigError("this key is there twice", inner, span, f"the first is on line {first}")
            places.keys[inner] = span
            _walk(value, inner, places)
    elif node.id == "sequence":
        for i, value in enumerate(node.value):
            places.keys[(*path, i)] = _span(value, places.source)
            _walk(value, (*path, i), places)
    else:
        start, quote = node.start_mark, 1 if node.style in ("'", '"') else 0
        written = places.source.line(start.line + 1)[start.column + quote :]
        if written.startswith(node.value):  # else escapes or folding: columns would be wrong
            places.texts[path] = Span(places.source, start.line + 1, start.column + 1 + quote)


def _span(node: Any, source: Source) -> Span:
    """The span of a YAML node in the text, its first character if it goes over several lines."""
    start, end = node.start_mark, node.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Span(source, start.line + 1, start.column + 1, max(1, width))
