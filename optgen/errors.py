"""Where a piece of rule text stands, and the one exception that every mistake in a rule becomes.

In: a source, a span in it, a message and a help line. Out: a `RuleError` that shows the place.
Columns count characters, from 1, not bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

NEWLINE = re.compile("\r\n|\r|\n")  # where Python's parser ends a line; str.splitlines knows more


@dataclass(frozen=True)
class Source:
    """The text of one rule and the name under which errors show it (a path, or `<rule>`)."""

    text: str
    name: str = "<rule>"

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text, without their ends."""
        return NEWLINE.split(self.text)

    def line(self, number: int) -> str:
        """The text of a line, counted from 1; empty past the end."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


@dataclass(frozen=True)
class Span:
    """A place in a source: line and column from 1, and how many characters it covers."""

    source: Source
    line: int
    column: int
    width: int = 1


class RuleError(ValueError):
    """A mistake in a rule: `message`, its `span` (or None) and a `help` line (or None)."""

    def __init__(self, message: str, span: Span | None = None, help: str | None = None):
        super().__init__(message, span, help)  # all three, so that the error survives pickling
        self.message, self.span, self.help = message, span, help

    def __str__(self) -> str:
        lines = [self.message]
        margin = ""
        if self.span is not None:
            number = str(self.span.line)
            margin = " " * len(number)
            text, column = _window(self.span.source.line(self.span.line), self.span.column)
            lead = "".join("\t" if c == "\t" else " " for c in text[: column - 1])
            width = max(1, min(self.span.width, len(text) - column + 1))
            lines += [
                f"{margin}--> {self.span.source.name}:{self.span.line}:{self.span.column}",
                f"{margin} |",
                f"{number} | {text}".rstrip(),
                f"{margin} | {lead}{'^' * width}",
            ]
        if self.help is not None:
            lines.append(f"{margin} = help: {self.help}")
        return "\n".join(map(_printable, lines))


WINDOW = 120


def _window(text: str, column: int) -> tuple[str, int]:
    """The part of an overlong line around a column, and the column within that part."""
    if len(text) <= WINDOW:
        return text, column
    start = max(0, min(column - 1 - WINDOW // 2, len(text) - WINDOW))
    lead = "…" if start else ""
    tail = "…" if start + WINDOW < len(text) else ""
    return lead + text[start : start + WINDOW] + tail, column - start + len(lead)


def _printable(text: str) -> str:
    """The text with one visible character for each that a terminal would not show, or would obey."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
