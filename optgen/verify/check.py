"""Every back end against the reference on every dtype and setting: the engine of `optgen check`.

In: a `Request` with a program that assigns `p`. Out: a `Row` for each back end and dtype, from the trials
(see `optgen.verify.differential`) of each setting of the program's options.

Triton's interpreter must be asked for before Triton decorates a kernel, so without a GPU Triton's trials
run in processes of their own, beside the others.
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
LIMIT = 8  # settings for each back end and dtype


def present() -> list[str]:
    """The back ends that can run here: the reference first, and those whose package is installed."""
    return [backend.name for backend in reversed(BACKENDS.values()) if backend.available]


def where(backend: str) -> str:
    """What a back end runs on, in words."""
    device, interpreted = place(backend)
    if device == "cuda":
        return torch.cuda.get_device_name()
    return "interpreter" if interpreted else "CPU"


@dataclass
class Row:
    """The trials of one back end and dtype together."""

    backend: str
    device: str
    dtype: str
    state_dtype: str
    steps: int
    settings: int = 0
    tensors: int = 0
    worst: float = 0.0
    allowed: float = 0.0
    error: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no trial disagreed."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """The answer in a few words."""
        if not self.passed:
            return "disagrees"
        if self.backend == "numpy":
            return "reference"
        return "bit-exact" if self.worst == 0 else f"within {self.worst:.1e}"

    def add(self, outcome: Outcome) -> None:
        """Count one trial in."""
        self.settings += 1
        self.tensors = max(self.tensors, outcome.tensors)
        self.worst = max(self.worst, outcome.worst)
        self.allowed = max(self.allowed, outcome.allowed)
        self.error = max(self.error, outcome.error)
        self.seconds += outcome.seconds
        if outcome.failure:
            self.failures.append(outcome.failure)

    def record(self) -> dict[str, Any]:
        """The row as JSON holds it; a number that is not finite becomes a string."""
        plain = {**asdict(self), "passed": self.passed, "verdict": self.verdict}
        return {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in plain.items()}


@dataclass(frozen=True)
class Request:
    """What to check: every back end on every dtype under every setting.

    Attributes:
        program: a rule, or a chain with one.
        backends: some of `present()`.
        dtypes: of parameters and gradients, some of `plan.codecs.DTYPES`.
        state_dtype: the storage of new state; by default each parameter's own.
        settings: options that depart from the defaults, one dict a setting.
        steps: how many steps each trial takes.
    """

    program: Program
    backends: Sequence[str]
    dtypes: Sequence[str] = DTYPES
    state_dtype: str | None = None
    settings: Sequence[Options] = ({},)
    steps: int = STEPS

    def cases(self, backend: str) -> list[Case]:
        """The trials of one back end, dtype by dtype. Settings without an influence on how tensors are
        walked get a few samples only, except the first.
        """
        per_shape = any(fact.subject == "ndim" for fact in self.program.facts.values())
        return [
            Case(backend, dtype, self.state_dtype, options, per_shape or i == 0, self.steps)
            for dtype in self.dtypes
            for i, options in enumerate(self.settings)
        ]


@dataclass(frozen=True)
class Answer:
    """A request, how many combinations its program's options have, and what the trials found."""

    request: Request
    combinations: int
    rows: Sequence[Row]

    @property
    def passed(self) -> bool:
        """Whether no trial disagreed."""
        return all(row.passed for row in self.rows)

    def record(self) -> dict[str, Any]:
        """The answer as JSON holds it."""
        return {
            "rule": self.request.program.name,
            "passed": self.passed,
            "settings": self.request.settings,
            "combinations": self.combinations,
            "rows": [row.record() for row in self.rows],
        }


def settings_of(
    program: Program, fixed: Collection[str] = (), limit: int | None = LIMIT
) -> tuple[list[Options], int]:
    """The settings to check a program under, and how many combinations of its options there are.

    Raises:
        RuleError: the defaults violate the rule's requirements.
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
    """Run every trial and gather rows; `progress` is called after each trial."""
    apart = "triton" in request.backends and _needs_process()
    rows: list[Row] = []
    with ExitStack() as stack:
        theirs = stack.enter_context(_interpreter(request)) if apart else iter(())
        for backend in request.backends:
            cases = request.cases(backend)
            mine = (run(request.program, case) for case in cases)
            outcomes = theirs if apart and backend == "triton" else mine
            for case, outcome in zip(cases, outcomes, strict=True):
                if not rows or (rows[-1].backend, rows[-1].dtype) != (backend, case.dtype):
                    kept = request.state_dtype or case.dtype
                    rows.append(Row(backend, where(backend), case.dtype, kept, request.steps))
                rows[-1].add(outcome)
                progress()
    return rows


def _needs_process() -> bool:
    from optgen.backends.triton.kernels import interpreting

    return place("triton")[1] and not interpreting()


# Processes with Triton's interpreter: each takes some dtypes of a request, and answers a line a trial.

WORKER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from optgen.verify.check import work; work()"
)


@contextmanager
def _interpreter(request: Request) -> Iterator[Iterator[Outcome]]:
    """The outcomes of Triton's trials, dtype by dtype; this process keeps a core for itself."""
    count = max(1, min(len(request.dtypes), (os.cpu_count() or 1) - 1))
    with ExitStack() as stack:
        shares = [replace(request, dtypes=request.dtypes[i::count]) for i in range(count)]
        answers = [stack.enter_context(_process(share)) for share in shares]
        turns = (islice(answers[i % count], len(request.settings)) for i in range(len(request.dtypes)))
        yield chain.from_iterable(turns)


@contextmanager
def _process(request: Request) -> Iterator[Iterator[Outcome]]:
    """The outcomes of a request's trials, as a process of its own finds them."""
    program = request.program
    message = {
        "parts": [(part.sources[0].text, part.sources[0].name) for part in program.parts or (program,)],
        "defaults": {name: hyper.default for name, hyper in program.hypers.items()},
        "dtypes": request.dtypes,
        "state_dtype": request.state_dtype,
        "settings": request.settings,
        "steps": request.steps,
    }
    command = [sys.executable, "-P", "-c", WORKER, json.dumps(sys.path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message))
            process.stdin.close()
            yield _answers(process, said)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _answers(process: subprocess.Popen[str], said: IO[str]) -> Iterator[Outcome]:
    """An outcome for each line; where the process ended early, failures for all that it still owed."""
    for line in process.stdout or ():
        yield Outcome(**json.loads(line))
    process.wait()
    said.seek(0)
    text = said.read().strip()
    yield _lost(f"the process with Triton's interpreter ended early:\n{text}")
    while True:
        yield _lost(f"the process had ended: {text.splitlines()[-1] if text else process.returncode}")


def _lost(failure: str) -> Outcome:
    return Outcome(0, math.inf, 0.0, math.inf, failure, 0.0)


def work() -> None:
    """Serve one request as a process with Triton's interpreter."""
    torch.set_num_threads(1)
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
        message["settings"],
        message["steps"],
    )
    for case in request.cases("triton"):
        print(json.dumps(asdict(run(program, case))), flush=True)
