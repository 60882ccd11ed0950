"""Every mistake in a rule is one `RuleError` that shows the place.

The wrong rules are tests/golden/errors/*.rule, the texts they give *.txt beside them. The texts do not depend
on the version of Python: `grammar` has words of its own for each of Python's syntax errors, whose own words
change. What Python 3.12 and later parse differently (f-strings, `type X = …`) is not among the goldens.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optgen.errors import RuleError, Source, Span
from optgen.ir.program import Program
from optgen.language.grammar import decode
from optgen.language.parse import parse

Golden = Callable[[str, str], None]
ERRORS = Path(__file__).parents[1] / "golden" / "errors"
WRONG = sorted(ERRORS.glob("*.rule"))


def mistake(text: str | Source) -> RuleError:
    with pytest.raises(RuleError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_wrong_rule(path, golden: Golden):
    error = mistake(decode(path.read_bytes(), path.name))
    assert error.span is not None
    assert error.message in str(error)
    golden(f"errors/{path.stem}.txt", str(error))


def test_unsupported_constructs_are_refused_by_name():
    unsupported = [path for path in WRONG if path.stem.startswith("not-yet-")]
    assert len(unsupported) == 6
    for path in unsupported:
        assert mistake(path.read_text(encoding="utf-8")).message.endswith("is not yet supported")


GENERATED = {
    "empty": "",
    "only-a-comment": "# p = p - g\n",
    "deep": "hyper(lr=0.1)\n\n  # Python's parser gives up with a MemoryError\np = " + "-" * 10_000 + "g\n",
    "deep-brackets": "p = p - " + "(" * 10_000 + "g" + ")" * 10_000 + "\n",
    "deep-sum": "p = p - " + "g + " * 10_000 + "g\n",
    "deep-for-lowering-only": "p = p - " + "-" * 101 + "g\n",
    "deep-if": "".join(" " * i + "if True:\n" for i in range(120)) + " " * 120 + "p = p - g\n",
    "too-long": "p = p - g  # one million bytes\n" * 33_000,
    "unrolls-too-far": "for i in range(10**9):\n    p = p - 0.1*g\n",
    "null-byte": "p = p - \0g\n",
    "half-a-surrogate-pair": "p = p - g  # \ud800\n",
    "control-character": "p = p - \x1b[31mg\n",
    "long-line": "p = p - ("
    + " + ".join(["0.125*g"] * 60)
    + " + missing + "
    + " + ".join(["g"] * 30)
    + ")\n",
    "long-name": "p = p - " + "m" * 5_000 + "\n",
    "carriage-returns": "hyper(lr=0.1)\r\nd = lr*g\rp = p - missing\r\n",
    "no-break-space": "p = p\u00a0- 0.1*g\n",
}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_rule(name: str, golden: Golden):
    golden(f"errors/{name}.txt", str(mistake(Source(GENERATED[name], f"{name}.rule"))))


BYTES = {
    "not-utf-8": 'hyper(lr=0.1)\np = p - lr*g  # "é" in Latin-1: '.encode() + b"\xe9\n",
    "not-utf-8-after-greek": "λ = 0.1\np = p - λ*g  # λ ".encode() + b"\xff\xfe",
    "utf-16": b"\xff\xfep\0 \0=\0 \0p\0\n\0",
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_not_utf_8(name: str, golden: Golden):
    with pytest.raises(RuleError) as caught:
        decode(BYTES[name], f"{name}.rule")
    golden(f"errors/{name}.txt", str(caught.value))


def test_every_golden_text_belongs_to_a_test():
    texts = {path.stem for path in ERRORS.glob("*.txt")}
    assert texts == {*(path.stem for path in WRONG), *GENERATED, *BYTES}


def test_an_error_without_a_place_or_help_is_its_message():
    assert str(RuleError("no rule is named 'adamv'")) == "no rule is named 'adamv'"
    assert (
        str(RuleError("no rule", None, "did you mean 'adamw'?")) == "no rule\n = help: did you mean 'adamw'?"
    )


def test_an_error_survives_pickling():
    error = mistake(Source("p = p - missing\n", "a.rule"))
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, RuleError)
    assert str(copy) == str(error)
    assert copy.span == error.span


def test_a_place_past_the_end_of_its_line_has_a_caret():
    text = str(RuleError("here", Span(Source("p = 1\n"), 1, 6, 3)))
    assert text.endswith("1 | p = 1\n  |      ^")


def test_columns_count_characters():
    span = mistake("hyper(λ=0.1)\nμ = λ*g; p = p - μ*ελλειψη").span
    assert span is not None
    assert (span.line, span.column, span.width) == (2, 20, 7)


def test_the_place_of_an_undefined_name_is_where_it_is_read():
    program = parse("hyper(a=False)\nif a:\n    x = g\np = p - 0.1*x\n")
    places = {node.value: span for node, span in program.spans.items() if node.op.name == "UNDEF"}
    assert (places["x"].line, places["x"].column) == (4, 13)


# Any text at all gives a program or a RuleError.

WORDS = r"""
p g u t m lr betas eps x i _ λ numel ndim pi inf True False None hyper state keys require input normal sum
mean norm sqrt where prev len range lerp if elif else for in def train lambda not and or is pass while import
class async await yield del global match case type with try except return raise ( ) [ ] { } , : ; = == != < <=
> >= + - * / ** // % @ += -= := -> . ... | & ^ ~ << >> 0 1 2 0.5 1e-3 1e999 1j 0x10 10**9 9**9**9 'a' b'c'
f'{p}' copies per axis over tensor row all # \ $ ? ! × ² 漢
"""
SPACES = ["\n", "\n    ", "\n\t", "\r", "\r\n", "\x0c", "\0", "\ud800", "\u2028", "\ufeff"]
PIECES = [*WORDS.split(), *SPACES, '"""', "1" * 5000]
RULES = [path.read_text(encoding="utf-8") for path in WRONG]


def mutate(rule: str, seed: int) -> str:
    """The rule with a few characters cut, doubled or replaced by pieces of the grammar."""
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(len(rule) + 1)
        stop = start + chance.choice([0, 0, 1, 2, 8])
        middle = chance.choice(
            ["", chance.choice(PIECES), f" {chance.choice(PIECES)} ", rule[start:stop] * 2]
        )
        rule = rule[:start] + middle + rule[stop:]
    return rule


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join),
    st.builds(mutate, st.sampled_from(RULES), st.integers(0, 2**32)),
)


def outcome(text: str) -> Program | RuleError:
    try:
        return parse(text)
    except RuleError as error:
        return error


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_any_text_is_a_rule_or_a_rule_error(text: str):
    found = outcome(text)
    assert str(found).encode()
    if isinstance(found, RuleError):
        assert found.span is not None
        line = found.span.source.line(found.span.line)
        assert 1 <= found.span.column <= len(line) + 1


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40))
def test_bytes_are_a_source_where_they_are_utf_8(data: bytes):
    if data.decode("utf-8", "ignore").encode() == data:
        assert decode(data, "any.rule").text == data.decode("utf-8-sig").replace("\r\n", "\n")
    else:
        with pytest.raises(RuleError, match="is not UTF-8"):
            decode(data, "any.rule")
