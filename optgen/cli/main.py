"""The command line, `optgen` and `python -m optgen`.

In: arguments. Out: tables, source or JSON on standard output, everything else on standard error. Exit
code 0; 1 where a back end disagrees or a kernel spills; 2 for a mistake in a rule or in the arguments.

torch and Triton are imported by the commands that need them only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from optgen import library
from optgen.backends import cache
from optgen.backends.layout import Layout
from optgen.backends.registry import BACKENDS
from optgen.cli import generated, new, render
from optgen.cli.arguments import parser, unknown_command
from optgen.cli.set_option import assign
from optgen.compiler import Compiler, costs, planned
from optgen.errors import RuleError
from optgen.ir.program import Program
from optgen.language.grammar import decode
from optgen.library import class_of, runnable
from optgen.passes.pipeline import trace
from optgen.plan.codecs import DTYPES
from optgen.plan.plan import Plan

EXTRAS = {"numba": "optgen[cpu]", "matplotlib": "optgen[demo,cpu]", "sklearn": "optgen[demo,cpu]"}
PACKAGES = (*EXTRAS, "triton", "torch", "sympy")


class Pipe(Console):
    """A console that leaves a closed pipe to `main`; rich's own would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Let the error through."""
        raise


# Rules


def find(name: str) -> Program:
    """The program of one RULE argument.

    Raises:
        RuleError: there is no such rule, or its text is wrong.
    """
    if name == "-":
        return library.rule(decode(sys.stdin.buffer.read(), "<stdin>"))
    if name in library.names():
        return library.rule(name)
    if os.path.sep in name or name.endswith(".rule") or os.path.exists(name):
        return library.rule(library.read(name))
    close = get_close_matches(name, library.names(), 1)
    hint = f"did you mean '{close[0]}'?" if close else "`optgen list` lists them; a path ends in .rule"
    raise RuleError(f"there is no rule '{name}'", None, hint)


def chosen(arguments: argparse.Namespace, run: bool = True) -> tuple[Program, list[str]]:
    """The program that the arguments name, and the hyperparameters that they set.

    With `run`, transforms without a rule get one, which is said on standard error.
    """
    programs = [find(name) for name in arguments.rule]
    program, partner = programs[0], None
    if run or len(programs) > 1:
        program, partner = runnable(programs)
    if partner:
        names = ", ".join(p.name for p in programs)
        print(f"note: {names} cannot run without a rule: chained with {partner}", file=sys.stderr)
    return assign(program, arguments.set)


# Commands


def _list(arguments: argparse.Namespace) -> int:
    records = [_record(name) for name in library.names()]
    if arguments.json:
        _print_json(records)
    else:
        _print_sections([render.listing(records)])
    return 0


def _record(name: str) -> dict[str, Any]:
    """What `list` says about one rule; of a transform, what it adds to the rule that it is chained with."""
    program = library.rule(name)
    own = {"name": name, "kind": program.kind, "class": class_of(program)}
    return {**own, **costs(program), "source": program.doc.partition("\n")[0]}


def _new(arguments: argparse.Namespace) -> int:
    if arguments.shipped:
        for line in generated.ship(arguments.name):
            print(line, flush=True)
    else:
        new.check_name(arguments.name)
        print(new.next_steps(new.write(arguments.name, Path())))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    program, _ = chosen(arguments, run=arguments.plan)
    sections: list[Any] = []
    if arguments.passes:
        compiler = Compiler.of(program)
        sections.append(render.passes(trace(program, compiler.named(compiler.facts(ndim=arguments.ndim)))))
    if arguments.plan:
        sections.append(render.plan(_planned(program, arguments)))
    if arguments.latex:
        from optgen.algebra.latex import latex

        sections.append(Text(latex(program)))
    _print_sections(sections or render.rule(program))
    return 0


def _planned(program: Program, arguments: argparse.Namespace) -> Plan:
    return planned(program, arguments.dtype, arguments.state_dtype, arguments.ndim)


def _emit(arguments: argparse.Namespace) -> int:
    program, _ = chosen(arguments)
    sys.stdout.write(cache.emit(_planned(program, arguments), arguments.backend, arguments.math))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if arguments.all == bool(arguments.rule):
        raise RuleError("check takes the rules of one chain, or --all", None, "optgen check adamw")
    if arguments.all and arguments.set:
        raise RuleError("--set is for one rule, --all for every one", None, "leave one of them out")
    from optgen.verify.check import present

    there = present()
    for backend in arguments.backend or ():
        if backend not in there:
            raise ModuleNotFoundError(name=BACKENDS[backend].package)
    backends = [b for b in there if b in (arguments.backend or there)]
    return _check_all(arguments, backends) if arguments.all else _check_one(arguments, backends)


def _check_one(arguments: argparse.Namespace, backends: Sequence[str]) -> int:
    from optgen.verify.check import Answer, check

    request, total = _request(*chosen(arguments), arguments, backends)
    with _progress("trials", len(backends) * len(request.dtypes) * len(request.option_sets)) as advance:
        answer = Answer(request, total, check(request, advance))
    if arguments.json:
        _print_json(answer.record())
    else:
        _print_sections([render.verdicts(answer)])
    return 0 if answer.passed else 1


def _check_all(arguments: argparse.Namespace, backends: Sequence[str]) -> int:
    from optgen.verify.check import Answer, check

    answers = []
    with _progress("rules", len(library.names())) as advance:
        for name in library.names():
            request, total = _request(runnable([find(name)])[0], [], arguments, backends)
            answers.append((name, Answer(request, total, check(request))))
            advance()
    if arguments.json:
        _print_json([{**answer.record(), "rule": name} for name, answer in answers])
    else:
        _print_sections([render.answers(answers)])
    return 0 if all(answer.passed for _, answer in answers) else 1


def _request(
    program: Program, fixed: Sequence[str], arguments: argparse.Namespace, backends: Sequence[str]
) -> tuple[Any, int]:
    """What the arguments ask of one program, and how many combinations its options have."""
    from optgen.verify.check import LIMIT, STEPS, Request, option_sets

    steps, limit = (10, 2) if arguments.all else (STEPS, LIMIT)
    sets, total = option_sets(program, fixed, arguments.settings or limit)
    dtypes = [d for d in DTYPES if d in (arguments.dtype or DTYPES)]
    made = Request(program, backends, dtypes, arguments.state_dtype, sets, arguments.steps or steps)
    return made, total


def _compile(arguments: argparse.Namespace) -> int:
    program, _ = chosen(arguments)
    from optgen.backends.triton.ahead_of_time import compile_ahead
    from optgen.backends.triton.kernels import interpreting

    if interpreting():
        hint = "run `env -u TRITON_INTERPRET optgen compile …`"
        raise RuleError(
            "TRITON_INTERPRET is set, and Triton cannot interpret and compile at once", None, hint
        )
    made = _planned(program, arguments)
    module = cache.load(cache.emit(made, "triton", arguments.math), made.name, "triton")
    found = []
    targets = arguments.target or ["sm_90"]
    with _progress("targets", len(targets)) as advance, _always_compile():
        for target in targets:
            try:
                found += compile_ahead(Layout(made), module, target, arguments.math)
            except Exception as error:  # Triton and its assemblers have many kinds
                message = f"optgen: cannot compile for {target}: {type(error).__name__}: {error}"
                print(message.rstrip(), file=sys.stderr)
                return 2
            advance()
    passed = not any(report.spilled for report in found)
    if arguments.json:
        storage = {"dtype": made.codecs["p"], "storage": dict(made.codecs), "math": arguments.math}
        kernels = [asdict(report) for report in found]
        _print_json({"rule": program.name, "passed": passed, **storage, "kernels": kernels})
    else:
        title = f"{render.title_of(program)}: {render.storage(made)}, math={arguments.math}"
        _print_sections([render.reports(found, title)])
    return 0 if passed else 1


@contextmanager
def _always_compile() -> Iterator[None]:
    """Keep Triton from answering out of its cache, so that the seconds are a compilation's."""
    before = os.environ.get("TRITON_ALWAYS_COMPILE")
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"
    try:
        yield
    finally:
        del os.environ["TRITON_ALWAYS_COMPILE"]
        if before is not None:
            os.environ["TRITON_ALWAYS_COMPILE"] = before


def _stubs(arguments: argparse.Namespace) -> int:
    from optgen.cli import stubs

    sys.stdout.write(stubs.stub())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from optgen.cli import demo

    return demo.run(_console(), arguments.output, arguments.epochs, not arguments.skip_check)


# Output


def _console() -> Console:
    return Pipe()


def _print_sections(sections: Sequence[Any]) -> None:
    """Print what rich prints, a blank line between two."""
    console = _console()
    for i, section in enumerate(sections):
        if i:
            console.print()
        # A line of source or of LaTeX stays one line.
        console.print(section, soft_wrap=isinstance(section, Text))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """A bar on standard error, where that is a terminal; yields a function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except RuleError as error:
        print(error, file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        package = EXTRAS.get(error.name, error.name)
        print(f"optgen: this needs {error.name}\n = help: pip install '{package}'", file=sys.stderr)
    except BrokenPipeError:  # the reader has seen enough, as in `optgen list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"optgen: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _run(words: Sequence[str]) -> int:
    unknown = unknown_command(words)
    if unknown:
        print(unknown, file=sys.stderr)
        return 2
    arguments = parser().parse_args(words)
    if arguments.command is None:
        parser().print_help()
        return 2
    return COMMANDS[arguments.command](arguments)


COMMANDS = {
    "list": _list,
    "new": _new,
    "show": _show,
    "emit": _emit,
    "check": _check,
    "compile": _compile,
    "stubs": _stubs,
    "demo": _demo,
}
