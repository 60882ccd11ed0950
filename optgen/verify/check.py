"""Differential tests of every back end on every dtype and option set: the engine of `optgen check`.

In: a `Request` with a program that assigns `p`. Out: a `Row` for each back end and dtype, which sums up the
differential tests (see `optgen.verify.differential`) of each set of the program's options.

TRITON_INTERPRET must be set before Triton decorates a kernel, so without a GPU Triton's tests run in
processes of their own, in parallel with the others.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from typing import IO, Any

import torch

from optgen import library
from optgen.backends.registry import BACKENDS
from optgen.errors import RuleError, Source
from optgen.ir.program import Program
from optgen.optim.hyperparameters import check as check_options
from optgen.optim.optimizer import optimizer
from optgen.passes.variants import with_defaults, with_maximize
from optgen.plan.codecs import DTYPES
from optgen.verify.differential import Case, Outcome, place, run
from optgen.verify.option_grid import Options, every

STEPS = 50
LIMIT = 8  # option sets for each back end and dtype


def present() -> list[str]:
    """The names of the back ends that can run here: the reference, and those whose package is installed."""
    return [backend.name for backend in reversed(BACKENDS.values()) if backend.available]


def where(backend: str) -> str:
    """The name of the device that a back end runs on."""
    device, interpreted = place(backend)
    if device == "cuda":
        return torch.cuda.get_device_name()
    return "interpreter" if interpreted else "CPU"


@dataclass
class Row:
    """The summary of the differential tests of one back end and dtype."""

    backend: str
    device: str
    dtype: str
    state_dtype: str
    steps: int
    runs: int = 0  # differential tests, one for each option set
    tensors: int = 0
    worst: float = 0.0
    allowed: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no test failed."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if not self.passed:
            return "disagrees"
        if self.backend == "numpy":
            return "reference"
        return "bit-exact" if self.worst == 0 else f"within {self.worst:.1e}"

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of one test."""
        self.runs += 1
        self.tensors = max(self.tensors, outcome.tensors)
        self.worst = max(self.worst, outcome.worst)
        self.allowed = max(self.allowed, outcome.allowed)
        self.error = max(self.error, outcome.error)
        self.seconds += outcome.seconds
        if outcome.failure:
            self.failures.append(outcome.failure)

    def record(self) -> dict[str, Any]:
        """The row as JSON values; infinities and NaN become strings."""
        # In the JSON of `optgen check` the number of tests is "settings".
        fields = {"settings" if key == "runs" else key: value for key, value in asdict(self).items()}
        plain = {**fields, "passed": self.passed, "verdict": self.verdict}
        return {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in plain.items()}


@dataclass(frozen=True)
class Request:
    """What to check: every back end on every dtype under every option set.

    Attributes:
        program: a rule, or a chain with one.
        backends: some of `present()`.
        dtypes: of parameters and gradients, some of `optgen.plan.codecs.DTYPES`.
        state_dtype: the dtype of new state; by default each parameter's own.
        option_sets: dicts of options that are not the defaults.
        steps: how many steps each test takes.
    """

    program: Program
    backends: Sequence[str]
    dtypes: Sequence[str] = DTYPES
    state_dtype: str | None = None
    option_sets: Sequence[Options] = ({},)
    steps: int = STEPS

    def cases(self, backend: str) -> list[Case]:
        """The tests of one back end, dtype by dtype.

        All samples are tested with the first option set, and with others only where the program depends on
        the number of dimensions: else options have no influence on how tensors are walked.
        """
        per_shape = any(fact.subject == "ndim" for fact in self.program.facts.values())
        return [
            Case(backend, dtype, self.state_dtype, options, per_shape or i == 0, self.steps)
            for dtype in self.dtypes
            for i, options in enumerate(self.option_sets)
        ]


@dataclass(frozen=True)
class Answer:
    """The result of a request: its rows, and the number of combinations of its program's options."""

    request: Request
    combinations: int
    rows: Sequence[Row]

    @property
    def passed(self) -> bool:
        """Whether no test failed."""
        return all(row.passed for row in self.rows)

    def record(self) -> dict[str, Any]:
        """The answer as JSON values."""
        return {
            "rule": self.request.program.name,
            "passed": self.passed,
            "settings": self.request.option_sets,
            "combinations": self.combinations,
            "rows": [row.record() for row in self.rows],
        }


def option_sets(
    program: Program, fixed: Collection[str] = (), limit: int | None = LIMIT
) -> tuple[list[Options], int]:
    """The option sets to check a program with, and the number of all combinations of its options.

    Raises:
        RuleError: the defaults violate a `require` of the rule.
    """
    full = optimizer(program).program
    defaults = {name: hyper.default for name, hyper in full.hypers.items()}
    try:
        check_options(full, defaults)
    except ValueError as error:
        raise RuleError(str(error)) from None

    def valid(options: Options) -> bool:
        try:
            check_options(full, {**defaults, **options})
        except ValueError:
            return False
        return True

    return every(full, valid, fixed, limit)


def check(request: Request, progress: Callable[[], None] = lambda: None) -> list[Row]:
    """Run every test and sum up rows; `progress` is called after each test."""
    in_processes = "triton" in request.backends and _needs_process()
    rows: list[Row] = []
    with ExitStack() as stack:
        interpreted_outcomes = stack.enter_context(_interpreter(request)) if in_processes else iter(())
        for backend in request.backends:
            cases = request.cases(backend)
            outcomes_here = (run(request.program, case) for case in cases)
            outcomes = interpreted_outcomes if in_processes and backend == "triton" else outcomes_here
            for case, outcome in zip(cases, outcomes, strict=True):
                if not rows or (rows[-1].backend, rows[-1].dtype) != (backend, case.dtype):
                    state_dtype = request.state_dtype or case.dtype
                    rows.append(Row(backend, where(backend), case.dtype, state_dtype, request.steps))
                rows[-1].add(outcome)
                progress()
    return rows


def _needs_process() -> bool:
    """Whether Triton's tests need a process of their own, with the interpreter."""
    from optgen.backends.triton.kernels import interpreting

    return place("triton")[1] and not interpreting()


# Processes with Triton's interpreter: each gets some dtypes of a request, and writes a line of JSON for each
# test.

WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from optgen.verify.check import work; work()"
)


@contextmanager
def _interpreter(request: Request) -> Iterator[Iterator[Outcome]]:
    """The outcomes of Triton's tests, dtype by dtype, from processes on all cores but this one's."""
    count = max(1, min(len(request.dtypes), (os.cpu_count() or 1) - 1))
    with ExitStack() as stack:
        # Interleaved, for dtypes differ in how long they take; outcomes are put in the order of dtypes again.
        shares = [replace(request, dtypes=request.dtypes[i::count]) for i in range(count)]
        answers = [stack.enter_context(_process(share)) for share in shares]
        turns = (islice(answers[i % count], len(request.option_sets)) for i in range(len(request.dtypes)))
        yield chain.from_iterable(turns)


@contextmanager
def _process(request: Request) -> Iterator[Iterator[Outcome]]:
    """The outcomes of a request's tests in a process with Triton's interpreter."""
    program = request.program
    message = {
        "parts": [(part.sources[0].text, part.sources[0].name) for part in program.parts or (program,)],
        "defaults": {name: hyper.default for name, hyper in program.hypers.items()},
        "dtypes": request.dtypes,
        "state_dtype": request.state_dtype,
        "option_sets": request.option_sets,
        "steps": request.steps,
    }
    # The same modules as here, whatever the working folder has: -P, and this process's sys.path.
    command = [sys.executable, "-P", "-c", WORKER, json.dumps(sys.path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message))
            process.stdin.close()
            yield _answers(process, stderr)
        finally:  # also if the caller stops early
            process.kill()
            process.stdout.close()
            process.wait()


def _answers(process: subprocess.Popen[str], stderr: IO[str]) -> Iterator[Outcome]:
    """One outcome for each line of the process, then failures for all tests that it did not answer."""
    for line in process.stdout or ():
        yield Outcome(**json.loads(line))
    process.wait()
    stderr.seek(0)
    text = stderr.read().strip()
    yield _lost(f"the process with Triton's interpreter ended early:\n{text}")
    while True:
        yield _lost(f"the process had ended: {text.splitlines()[-1] if text else process.returncode}")


def _lost(failure: str) -> Outcome:
    """The outcome of a test whose process ended early."""
    return Outcome(0, math.inf, 0.0, math.inf, failure, 0.0)


def work() -> None:
    """The main function of a process with Triton's interpreter: runs the request on stdin."""
    torch.set_num_threads(1)  # one process for each core
    message: Mapping[str, Any] = json.load(sys.stdin)
    program = library.chain(*(Source(text, name) for text, name in message["parts"]))
    if "maximize" in message["defaults"]:
        program = with_maximize(program)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in message["defaults"].items()}
    program = with_defaults(program, **values)
    request = Request(
        program,
        ["triton"],
        message["dtypes"],
        message["state_dtype"],
        message["option_sets"],
        message["steps"],
    )
    for case in request.cases("triton"):
        print(json.dumps(asdict(run(program, case))), flush=True)
