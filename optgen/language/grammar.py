"""Bytes to text to Python's syntax tree, and what a rule may not contain, in the language's own words.

In: the bytes or the text of a rule. Out: an `ast.Module` whose every place is known, or a `RuleError`.
The texts of Python's own syntax errors change between its versions, so none of them is passed on: each
kind gets a message of ours. The grammar is Python 3.11's on every version.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from keyword import kwlist
from typing import cast

from optgen import locks
from optgen.errors import RuleError, Source, Span

MAX_BYTES = 1 << 16
MAX_DEPTH = 100  # nested operations; lowering takes 4 of Python's 1000 stack frames for each

# What people write out of habit, and what to write here instead.
ADVICE: dict[str, tuple[str, str | None]] = {
    "BitXor": ("'^'", "write `**` for a power"),
    "FloorDiv": ("'//'", "write floor(a / b)"),
    "BitAnd": ("'&'", "write `and`"),
    "BitOr": ("'|'", "write `or`"),
    "LShift": ("'<<'", "write a multiplication by a power of 2"),
    "RShift": ("'>>'", "write a division by a power of 2"),
    "Invert": ("'~'", "write `not`"),
    "In": ("'in'", None),
    "NotIn": ("'not in'", None),
    "While": ("'while'", "only `for _ in range(n)` with a constant n is unrolled"),
    "Import": ("'import'", "a rule has only the functions of the language"),
    "ImportFrom": ("'import'", "a rule has only the functions of the language"),
    "ClassDef": ("'class'", None),
    "AsyncFunctionDef": ("'async'", None),
    "AsyncFor": ("'async'", None),
    "AsyncWith": ("'async'", None),
    "Await": ("'await'", None),
    "Match": ("'match'", "write `if` and `elif`"),
    "Return": ("'return'", "assign to p or to a state instead"),
    "Lambda": ("'lambda'", "'lambda' is a word of Python: call the variable `lam` or `λ`"),
    "AnnAssign": ("a type annotation", "write `name = expression`"),
    "NamedExpr": ("':='", "write the assignment on its own line"),
    "JoinedStr": ("a formatted string", None),
    "Dict": ("a dict", None),
    "Set": ("a set", None),
    "List": ("a list", "write a tuple, with round brackets"),
    "ListComp": ("a comprehension", "write a `for` loop over range(n)"),
    "SetComp": ("a comprehension", "write a `for` loop over range(n)"),
    "DictComp": ("a comprehension", "write a `for` loop over range(n)"),
    "GeneratorExp": ("a comprehension", "write a `for` loop over range(n)"),
    "Slice": ("a slice", "write the items one by one"),
    "Try": ("'try'", None),
    "TryStar": ("'try'", None),
    "With": ("'with'", None),
    "Delete": ("'del'", None),
    "Global": ("'global'", None),
    "Nonlocal": ("'nonlocal'", None),
    "Assert": ("'assert'", "write require(condition)"),
    "Raise": ("'raise'", "write require(condition)"),
    "Break": ("'break'", "choose the number of rounds in range(n)"),
    "Continue": ("'continue'", "write the rest of the loop under an `if`"),
    "Yield": ("'yield'", None),
    "YieldFrom": ("'yield'", None),
    "Starred": ("'*' before a name", None),
}
# Python's message -> ours, and a help line. What matches none of them is "invalid syntax".
SYNTAX_ERRORS: list[tuple[str, str, str | None]] = [
    (r"'(.)' was never closed", r"'\1' is never closed", None),
    (r"unmatched '(.)'", r"'\1' closes nothing", None),
    (r"closing parenthesis '(.)' does not match opening parenthesis '(.)'", r"'\1' cannot close '\2'", None),
    (r"unterminated (triple-quoted )?string", "a string is never closed", None),
    (r"inconsistent use of tabs", "tabs and spaces are mixed", "indent with spaces only"),
    (r"expected an indented block after '(\w+)'", r"nothing is indented below '\1'", "or write `pass`"),
    (r"expected an indented block", "nothing is indented below the last line", "or write `pass`"),
    (r"unexpected indent|unindent does not match", "the indentation fits no line above", None),
    (r"cannot assign to (None|True|False)", r"'\1' cannot be assigned", None),
    (r"cannot assign|illegal expression for augmented", "only a name can be assigned", None),
    (r"Maybe you meant '=='", "invalid syntax", "`==` compares"),
    (r"perhaps you meant \"==\"", "an argument's name is needed before '='", "`==` compares"),
    (r"Perhaps you forgot a comma", "invalid syntax", "is a comma missing?"),
    (r"positional argument follows", "an argument without a name follows one with a name", None),
    (r"expected ':'", "':' is missing", None),
    (r"leading zeros", "a number cannot begin with 0", None),
    (r"invalid .*literal|invalid digit", "invalid number", "write `*` between two factors"),
    (r"Exceeds the limit", "the number is too large for a float", None),
    (r"invalid escape|unicode error", "invalid escape in a string", None),
]  # fmt: skip
RESERVED_WORDS = frozenset(kwlist) - {
    "True", "False", "None", "and", "or", "not", "is", "if", "elif", "else", "for", "in", "def", "pass",
}  # fmt: skip
INVALID_CHARACTER = re.compile(r"invalid (?:non-printable )?character.*U\+([0-9A-F]+)")
TYPOGRAPHY = {
    "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "²": "**2", "³": "**3",
    "≤": "<=", "≥": ">=", "≠": "!=", "←": "=", "√": "sqrt(…)", "∞": "inf", "“": '"', "”": '"', "‘": "'",
    "’": "'", "\u00a0": "a plain space", "\u3000": "a plain space", "（": "(", "）": ")", "，": ",",
}  # fmt: skip


def decode(data: bytes, name: str) -> Source:
    """The source of a rule file's bytes, which must be UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        index = next(i for i, c in enumerate(text) if "\udc80" <= c <= "\udcff")
        line, column = _position(text, index)
        raise RuleError(
            f"byte 0x{ord(text[index]) - 0xDC00:02x} is not UTF-8",
            Span(Source(text, name), line, column),
            "save the file as UTF-8",
        ) from None
    return Source(text.replace("\r\n", "\n"), name)


def read(source: Source) -> ast.Module:
    """The syntax tree of a source, or a `RuleError` where Python's grammar already refuses it."""
    start = Span(source, 1, 1)
    size = len(source.text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise RuleError(
            f"the rule is {size:,} bytes long, and the limit is {MAX_BYTES:,}",
            start,
            f"is {source.name} a rule?",
        )
    for forbidden, what in (("\0", "a null byte"), ("[\ud800-\udfff]", "half of a surrogate pair")):
        if found := re.search(forbidden, source.text):
            raise RuleError(f"the rule holds {what}", Span(source, *_position(source.text, found.start())))
    try:
        tree = _parse(source.text)
    except (RecursionError, MemoryError):
        raise _too_deep(source, _deep_line(source)) from None
    except SyntaxError as error:
        raise _syntax_error(source, error) from None
    if not tree.body:
        raise RuleError("the rule is empty", start, "a rule assigns p, for example `p = p - 0.1*g`")
    _check_depth(source, tree)
    return tree


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a SyntaxWarning is about Python, not about rules
        return cast(ast.Module, locks.parse(text, feature_version=(3, 11)))


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column, from 1, of a character."""
    before = Source(text[:index]).lines
    return len(before), len(before[-1]) + 1


def _syntax_error(source: Source, error: SyntaxError) -> RuleError:
    """Python's syntax error in words that are the same on every version of Python."""
    line, column = error.lineno or 1, error.offset or 1
    text = source.line(line)
    column = max(1, min(column, len(text) + 1))
    width = 1
    if error.end_lineno == line and error.end_offset and error.end_offset > column:
        width = error.end_offset - column
    if isinstance(error, IndentationError):
        column = len(text) - len(text.lstrip()) + 1
    place = Span(source, line, column, width)
    if found := INVALID_CHARACTER.search(error.msg):
        character = chr(int(found[1], 16))
        shown = f"'{character}' (U+{found[1]})" if character.isprintable() else f"U+{found[1]}"
        instead = TYPOGRAPHY.get(character)
        return RuleError(
            f"the character {shown} is not part of the rule language",
            place,
            f"write {instead}" if instead else None,
        )
    if re.search(r"too many (nested parentheses|levels of indentation)", error.msg):
        return _too_deep(source, line)
    for pattern, message, help in SYNTAX_ERRORS:
        if found := re.search(pattern, error.msg):
            return RuleError(found.expand(message), place, help)
    return RuleError("invalid syntax", place, _reserved_word(text, column))


def _reserved_word(text: str, column: int) -> str | None:
    """A help line where a word of Python stands in a name's place."""
    if re.search(r"\blambda\b", text):  # the error is at the sign after it
        return ADVICE["Lambda"][1]
    word = re.compile(r"\w*").match(text, column - 1)
    if word and word[0] in RESERVED_WORDS:
        return f"'{word[0]}' is a word of Python: choose another name"
    return None


def _too_deep(source: Source, line: int) -> RuleError:
    text = source.line(line)
    column = len(text) - len(text.lstrip()) + 1
    help = "give parts of it names, on lines of their own"
    return RuleError("nested too deeply", Span(source, line, column), help)


def _deep_line(source: Source) -> int:
    """The line that Python's parser gives up on; the first where only several lines together do that."""
    for number, line in enumerate(source.lines, 1):
        try:
            _parse(line.strip())
        except (RecursionError, MemoryError):
            return number
        except SyntaxError:
            pass
    return 1


def _check_depth(source: Source, tree: ast.Module) -> None:
    """Refuse what is nested so deeply that lowering it could exhaust Python's stack."""
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in ast.iter_child_nodes(parent)]
    deepest = next((n for n in level if isinstance(n, ast.expr | ast.stmt)), None)
    if deepest is not None:
        raise _too_deep(source, deepest.lineno)


@lru_cache(maxsize=32)
def _characters(line: str) -> list[int]:
    """The index of the character at each byte of a line, and past its end: Python counts bytes."""
    return [i for i, c in enumerate(line) for _ in c.encode()] + [len(line)]


class Report:
    """Points at places of one source: the spans of syntax nodes, and the errors there."""

    def __init__(self, source: Source):
        self.source = source

    def span(self, at: ast.AST) -> Span:
        """The characters that a syntax node covers on its first line."""
        line: int = getattr(at, "lineno", 1)
        start: int = getattr(at, "col_offset", 0)
        index = _characters(self.source.line(line))
        end: int = getattr(at, "end_col_offset", 0) if getattr(at, "end_lineno", 0) == line else -1
        return Span(self.source, line, index[start] + 1, max(1, index[end] - index[start]))

    def error(self, message: str, at: ast.AST | Span, help: str | None = None) -> RuleError:
        """A mistake at a syntax node or a span."""
        if len(message) > 200:  # a rule's own words can be of any length
            message = message[:199] + "…"
        return RuleError(message, at if isinstance(at, Span) else self.span(at), help)

    def refusal(self, at: ast.AST, kind: ast.AST | None = None) -> RuleError:
        """What to raise at syntax that is Python's but not the rule language's."""
        kind = at if kind is None else kind
        if isinstance(kind, ast.MatMult):
            return self.error("'@' is not yet supported", at)
        if isinstance(kind, ast.Attribute):
            if kind.attr == "T":
                return self.error("'.T' is not yet supported", at)
            return self.error(f"attribute '.{kind.attr}' is not part of the rule language", at)
        what, help = ADVICE.get(type(kind).__name__, (f"'{type(kind).__name__}'", None))
        return self.error(f"{what} is not part of the rule language", at, help)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A help line with the known name that is most like an unknown one, if any is."""
    if len(name) > 64:  # the comparison is quadratic
        return None
    close = get_close_matches(name, [k for k in dict.fromkeys(known) if len(k) <= 64], 1, 0.6)
    return f"did you mean '{close[0]}'?" if close else None
