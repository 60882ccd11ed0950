"""`optgen new NAME`: a rule to start from.

In: a name. Out: a file that checks and trains as it is, and what to do with it. Nothing is ever overwritten.
"""

from __future__ import annotations

import re
from keyword import iskeyword
from pathlib import Path

import optgen
from optgen import library
from optgen.errors import RuleError

TEXT = '''\
"""{title}: the heavy ball, to start from.  Authors, venue year, arXiv:0000.00000.

What the paper leaves open, and whose defaults these are.
"""
hyper(lr=1e-2, momentum=0.9)
require(lr >= 0, 0 <= momentum < 1)
state(m=0)
keys(m="momentum_buffer")

m = momentum*m + g
p = p - lr*m
'''
NEXT = """\
wrote {path}: {title}, the heavy ball to start from

next:
    write your rule in its place; `optgen show adamw` and docs/language.md show what it can say
    optgen show {path} --plan
    optgen check {path}

to train with it:
    {title} = optgen.optimizer({path!r})
    opt = {title}(model.parameters(), lr=1e-2)"""
ANOTHER = "choose another name"


def check_name(name: str) -> None:
    """Refuse what can name no rule, and what names one already.

    Raises:
        RuleError: the name is no identifier, or it or its class is taken.
    """
    if not _can_name(name):
        stem = re.sub(r"\W+", "_", Path(name).name.removesuffix(".rule")).strip("_")
        likely = stem if _can_name(stem) and stem not in library.names() else "my_rule"
        help = f"write at most 100 letters, digits and _, and no word of Python, for example {likely}"
        raise RuleError(f"'{name}' cannot name a rule", None, help)
    if name in library.names():
        help = f"{ANOTHER}; `optgen show {name}` shows that rule"
        raise RuleError(f"'{name}' is a shipped rule", None, help)
    title = library.camel(name)
    if title in library.classes():
        own = library.classes()[title]
        raise RuleError(f"'{name}' would be the class {title}, as '{own}' is, a shipped rule", None, ANOTHER)
    if title in optgen._HOME:
        raise RuleError(f"'{name}' would be the class {title}, and optgen has that name", None, ANOTHER)


def _can_name(name: str) -> bool:
    """Whether a name can be that of a rule, and in CamelCase that of its class; and of a file."""
    return len(name) <= 100 and all(
        x.isidentifier() and not iskeyword(x) for x in (name, library.camel(name))
    )


def write(name: str, folder: Path) -> Path:
    """Write a rule of that name into a folder.

    Raises:
        RuleError: there is such a file already.
    """
    path = folder / f"{name}.rule"
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(TEXT.format(title=library.camel(name)))
    except FileExistsError:
        help = f"{ANOTHER}, or remove it first"
        raise RuleError(f"'{path}' exists, and is not overwritten", None, help) from None
    return path


def next_steps(path: Path) -> str:
    """What has been written, and what to do with it."""
    return NEXT.format(path=str(path), title=library.camel(path.stem))
