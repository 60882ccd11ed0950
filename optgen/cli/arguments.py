"""The grammar of the command line.

In: words. Out: an `argparse.Namespace` with the command's name in `command`.

Several RULEs make a chain. They are arguments of their own, and not joined by a sign, because a path may
hold any sign.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from optgen import library
from optgen.__version__ import __version__
from optgen.backends.registry import BACKENDS
from optgen.compiler import NDIM
from optgen.plan.codecs import DTYPES

RULE_HELP = """\
RULE is the name of a shipped rule (optgen list), the path of a file, or - for standard input.
Several RULEs are chained in order: transforms of the gradient, one rule, transforms of its update,
for example: optgen check clip_norm adamw cautious
Transforms alone cannot run: they are chained with sgd, or with adamw where one comes after a rule."""
COMMANDS = {
    "list": "list the shipped rules",
    "new": "write a rule to start from, NAME.rule, and say what comes next",
    "show": "show a rule: its text, hyperparameters and state, or only the views asked for",
    "emit": "print the source that a back end compiles",
    "check": "compare every back end with the reference; exit code 1 where one disagrees",
    "compile": "compile for a GPU that need not be there, and read the machine code; exit code 1 on spills",
    "stubs": "print the types of optgen's classes: what optgen/__init__.pyi holds",
    "demo": "a new rule: its plan, its kernel, a check, and a training with it",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are short."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and a way out, and exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n = help: {self.prog} --help\n")


def parser() -> Parser:
    """The parser of every command."""
    top = Parser(
        prog="optgen",
        description="From an optimizer's update rule to fused kernels.",
        epilog="`optgen COMMAND --help` says more.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"optgen {__version__}")
    group = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    made: dict[str, argparse.ArgumentParser] = {}
    for name, text in COMMANDS.items():
        made[name] = group.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    for name in ("show", "emit", "check", "compile"):
        _rule(made[name], "*" if name == "check" else "+")
    for name in ("list", "check", "compile"):
        made[name].add_argument("--json", action="store_true", help="print JSON and nothing else")
    for name in ("show", "emit", "compile"):
        _storage(made[name])
    for name in ("emit", "compile"):
        made[name].add_argument("--math", choices=("exact", "fast"), default="exact", help="default: exact")
    _new(made["new"])
    _show(made["show"])
    _emit(made["emit"])
    _check(made["check"])
    _compile(made["compile"])
    _demo(made["demo"])
    return top


def _rule(made: argparse.ArgumentParser, count: str) -> None:
    made.epilog = RULE_HELP
    made.add_argument("rule", nargs=count, metavar="RULE", help="a name, a path, or -; several are a chain")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter or option; repeatable",
    )


def _storage(made: argparse.ArgumentParser) -> None:
    made.add_argument("--dtype", choices=DTYPES, default="fp32", help="of p and g; default: fp32")
    made.add_argument("--state-dtype", choices=DTYPES, help="of state; default: fp32, or fp64 beside fp64")
    made.add_argument(
        "--ndim",
        type=int,
        default=NDIM,
        metavar="N",
        help=f"dimensions, where the rule asks; default: {NDIM}",
    )


def _new(made: argparse.ArgumentParser) -> None:
    made.add_argument("name", metavar="NAME", help="what the rule is called: letters, digits and _")
    made.add_argument(
        "--shipped",
        action="store_true",
        help="in a checkout: write rules/NAME.rule, if it is not there, and what is generated for it",
    )


def _show(made: argparse.ArgumentParser) -> None:
    made.add_argument("--passes", action="store_true", help="operations after each pass")
    made.add_argument("--plan", action="store_true", help="phases, loads, stores, bytes per element")
    made.add_argument("--latex", action="store_true", help="the mathematics")


def _emit(made: argparse.ArgumentParser) -> None:
    made.add_argument("--backend", choices=BACKENDS, default="triton", help="default: triton")


def _check(made: argparse.ArgumentParser) -> None:
    made.add_argument("--all", action="store_true", help="every shipped rule, one after the other")
    made.add_argument("--backend", action="append", choices=BACKENDS, help="only this one")
    made.add_argument("--dtype", action="append", choices=DTYPES, help="of p and g: only this one")
    made.add_argument("--state-dtype", choices=DTYPES, help="of state; default: each parameter's own")
    made.add_argument("--steps", type=_positive, metavar="N", help="default: 50; with --all, 10")
    made.add_argument(
        "--settings",
        type=_positive,
        metavar="N",
        help="settings of its options at most; default: 8; with --all, 2",
    )


def _compile(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--target",
        type=_target,
        action="append",
        metavar="ARCH",
        help="sm_90 (default), sm_80, gfx942, …; repeatable",
    )


def _demo(made: argparse.ArgumentParser) -> None:
    made.add_argument("--output", default="demo.png", metavar="PATH", help="the picture; default: demo.png")
    made.add_argument("--epochs", type=_positive, metavar="N", help="a longer or shorter training")
    made.add_argument("--skip-check", action="store_true", help="leave the check out")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return int(text)


def _target(text: str) -> str:
    if not re.fullmatch(r"sm_[1-9]\d{1,2}a?|gfx[19]\w{2,3}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no target: write sm_90, gfx942 or the like")
    return text


def unknown_command(words: Sequence[str]) -> str | None:
    """What to say about a first word that is no command, or None where it is one."""
    if not words or words[0].startswith("-") or words[0] in COMMANDS:
        return None
    close = get_close_matches(words[0], COMMANDS, 1)
    if close:
        hint = f"did you mean 'optgen {' '.join((close[0], *words[1:]))}'?"
    elif words[0] in library.names() or os.path.exists(words[0]):
        hint = f"it is a rule: optgen show {words[0]}"
    else:
        hint = f"the commands are {', '.join(COMMANDS)}"
    return f"optgen: there is no command '{words[0]}'\n = help: {hint}"
