"""Every back end against the reference, on every dtype, setting and shape: the engine of `optgen check`.

In: a program that assigns `p`. Out: a `Row` for each back end and dtype. A case runs one optimizer over
tensors of all shapes and layouts, in lockstep with the reference in the same dtype and with the reference
in float64, and compares `p`, every state and the untouched memory after each step.

What must agree, and how closely, follows from the IR: without a sum or a transcendental function beyond
STEP the bits are equal; with one, a tensor's relative error stays below `TOLERANCE`.

Triton's interpreter must be asked for before Triton decorates a kernel, so without a GPU Triton's cases
run in a process of their own, beside the others.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from optgen import library
from optgen.compose import complete, with_defaults, with_maximize
from optgen.errors import Source
from optgen.ir import Extent, Op, Program, toposort
from optgen.launch import Launcher
from optgen.optim import Optimizer, check as check_options, optimizer
from optgen.settings import DTYPES, Options, every

TORCH = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of a sum or a transcendental function, per tensor: max|a-b| / max|b|. 16-bit storage: two to four units.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
INEXACT = frozenset({Op.SUM, Op.EXP, Op.LOG, Op.TANH, Op.ATAN2, Op.POW, Op.MOD})
STEPS = 50
LIMIT = 8  # settings of one back end and dtype
SEED = 20240229
ABSENT = 1  # the tensor that has no gradient in every fifth step, the first among them
FEW = ("0-d", "odd", "2**k + 1")  # samples under options that differ from the defaults


# Tensors


@dataclass(frozen=True)
class Sample:
    """A tensor to update: a view of contiguous memory, and how its gradient lies."""

    name: str
    memory: tuple[int, ...]
    view: Callable[[Tensor], Tensor] = lambda memory: memory
    gradient: Callable[[Tensor], Tensor] = lambda values: values.contiguous()


def _transposed(x: Tensor) -> Tensor:
    return x.mT


def _like_transposed(values: Tensor) -> Tensor:
    return values.mT.contiguous().mT


def _like_channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last)


def samples(interpreted: bool) -> list[Sample]:
    """A tensor of each kind that a kernel must treat apart; small ones for Triton's interpreter."""
    one_more, several = (65, 257) if interpreted else (1025, 40_001)
    return [
        Sample("0-d", ()),
        Sample("one element", (1,)),
        Sample("odd", (7,)),
        Sample("2**k + 1", (one_more,)),
        Sample("several chunks", (several,)),
        Sample("empty", (0, 3)),
        Sample("transposed", (5, 9), _transposed, _like_transposed),
        Sample("channels last", (2, 4, 5, 3), lambda x: x.permute(0, 3, 1, 2), _like_channels_last),
        Sample("misaligned", (34,), lambda x: x[1:]),
        Sample("slice", (9, 12), lambda x: x[::2, 1:8]),
        Sample("gradient transposed", (6, 11), gradient=_like_transposed),
    ]


def _values(sample: Sample, generator: torch.Generator) -> Tensor:
    return torch.randn(sample.memory, generator=generator, dtype=torch.float64)


def _gradients(chosen: Sequence[Sample], step: int) -> Iterator[Tensor | None]:
    """Each tensor's gradient in float64: magnitudes over four decades, one zero in ten."""
    generator = torch.Generator().manual_seed(SEED + step)
    for index, sample in enumerate(chosen):
        shape = sample.view(torch.empty(sample.memory)).shape
        size = 10 ** (4 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3)
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * size
        values[torch.rand(shape, generator=generator) < 0.1] = 0
        yield None if index == ABSENT and step % 5 == 1 else values


class Trainee:
    """An optimizer over the samples: one of those that take each step together."""

    def __init__(
        self,
        kind: type[Optimizer],
        chosen: Sequence[Sample],
        options: Options,
        dtype: torch.dtype,
        rounded: torch.dtype,
        device: str,
        **settings: Any,
    ):
        generator = torch.Generator().manual_seed(SEED)
        self.chosen, self.dtype, self.rounded, self.device = chosen, dtype, rounded, device
        self.memory = [_values(s, generator).to(rounded).to(dtype).to(device) for s in chosen]
        self.params = [
            torch.nn.Parameter(s.view(m)) for s, m in zip(chosen, self.memory, strict=True)
        ]
        groups: list[dict[str, Any]] = [{"params": self.params[::2]}, {"params": self.params[1::2]}]
        lr = options.get("lr", kind.program.hypers["lr"].default if "lr" in kind.program.hypers else None)
        if isinstance(lr, float):
            groups[1]["lr"] = lr / 2  # two rows of scalars
        self.optimizer = kind(groups, **options, **settings)

    def step(self, step: int) -> None:
        """One step with the gradients of that step.

        Raises:
            AssertionError: the step wrote into a gradient.
        """
        given = []
        for param, sample, values in zip(self.params, self.chosen, _gradients(self.chosen, step), strict=True):
            if values is None:
                param.grad = None
                continue
            laid_out = sample.gradient(values.to(self.rounded).to(self.dtype)).to(self.device)
            param.grad = laid_out
            given.append((sample, laid_out, laid_out.clone()))
        self.optimizer.step()
        for sample, now, before in given:
            assert torch.equal(now, before), f"step {step}: the gradient of '{sample.name}' was written to"

    def stored(self) -> Iterator[tuple[Sample, str, Tensor]]:
        """Every tensor that a step may change, with the memory around it."""
        for sample, memory, param in zip(self.chosen, self.memory, self.params, strict=True):
            yield sample, "p", memory
            for key, value in sorted(self.optimizer.state[param].items()):
                yield sample, key, value


def difference(a: Tensor, b: Tensor) -> float:
    """max|a-b| / max|b|; 0 where the bits agree, up to a zero's sign and a NaN's payload."""
    x, y = (t.detach().to("cpu", torch.float64) for t in (a, b))
    other = ~((x == y) | (x.isnan() & y.isnan()))
    if not other.any():
        return 0.0
    worst = (x - y)[other].abs().max().item()
    finite = y[y.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    return worst / largest if math.isfinite(worst) and largest else math.inf


# Cases


@dataclass(frozen=True)
class Case:
    """One back end on one dtype under one setting of the options."""

    backend: str
    dtype: str
    state_dtype: str | None
    options: Options
    thorough: bool  # all shapes, or a few: under the default options, or where the rule asks for ndim

    @property
    def label(self) -> str:
        """The options as one would write them."""
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items()) or "the defaults"


@dataclass(frozen=True)
class Outcome:
    """How one case ended. `worst` and `error` are relative; `allowed` is 0 where bits must be equal."""

    tensors: int
    worst: float
    allowed: float
    error: float
    failure: str | None
    seconds: float


def allowed(program: Program, options: Options, dtypes: Iterable[torch.dtype], ndims: Iterable[int]) -> float:
    """The relative difference that the numerics contract allows under these options: 0 for equal bits."""
    launcher = Launcher(program)
    given = {name: options.get(name, hyper.default) for name, hyper in program.hypers.items()}
    for ndim in set(ndims):
        for mode in (None, *program.modes):
            lowered = launcher.lowered(launcher.truths(given, ndim), mode)
            nodes = toposort(lowered.assigns.values())
            if any(n.op in INEXACT and n.extent > Extent.STEP for n in nodes):
                return max(TOLERANCE[dtype] for dtype in dtypes)
    return 0.0


def run(program: Program, case: Case, steps: int = STEPS) -> Outcome:
    """Run one case. Whatever the back end raises is a failure, and its text is kept."""
    start = time.perf_counter()
    kind = optimizer(program)
    device, interpreted = place(case.backend)
    chosen = samples(interpreted)
    if not case.thorough:
        chosen = [s for s in chosen if s.name in FEW]
    dtype = TORCH[case.dtype]
    kept = TORCH[case.state_dtype] if case.state_dtype else None
    limit = allowed(kind.program, case.options, {dtype, kept or dtype}, (len(s.memory) for s in chosen))
    reference = Trainee(kind, chosen, case.options, dtype, dtype, "cpu", backend="numpy", state_dtype=kept)
    precise = Trainee(kind, chosen, case.options, torch.float64, dtype, "cpu", backend="numpy")
    subject = reference
    if case.backend != "numpy":
        subject = Trainee(
            kind, chosen, case.options, dtype, dtype, device, backend=case.backend, state_dtype=kept
        )
    worst, failure = 0.0, None
    try:
        for step in range(1, steps + 1):
            for trainee in dict.fromkeys((reference, precise, subject)):
                trainee.step(step)
            found, failure = _compare(subject, reference, limit, f"step {step}")
            worst = max(worst, found)
            if failure:
                break
        if kind.program.modes and not failure:
            for trainee in dict.fromkeys((reference, precise, subject)):
                trainee.optimizer.eval()
            found, failure = _compare(subject, reference, limit, "eval()")
            worst = max(worst, found)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    error64 = max(difference(a, b) for a, b in zip(subject.memory, precise.memory, strict=True))
    if failure:
        failure = f"with {case.label}: {failure}"
    seconds = time.perf_counter() - start
    return Outcome(len(chosen), worst, limit, error64, failure, seconds)


def _compare(subject: Trainee, reference: Trainee, limit: float, when: str) -> tuple[float, str | None]:
    """The largest difference between two trainees, and the first that is too large, in words."""
    worst = 0.0
    for (sample, key, mine), (_, other, right) in zip(subject.stored(), reference.stored(), strict=True):
        assert key == other, f"{when}: '{sample.name}' has state '{key}', the reference '{other}'"
        found = difference(mine, right)
        if not found <= limit:
            return found, f"{when}: {key} of '{sample.name}' {_first(mine, right)}"
        worst = max(worst, found)
    return worst, None


def _first(mine: Tensor, right: Tensor) -> str:
    """Where two tensors differ most, and both values."""
    x, y = (t.detach().to("cpu", torch.float64).flatten() for t in (mine, right))
    gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs().nan_to_num(math.inf, math.inf))
    index = int(gap.argmax())
    return f"is {x[index].item():.9g} and not {y[index].item():.9g} at element {index} of its memory"


# Back ends


def present() -> list[str]:
    """The back ends that can run here: the reference, Numba where it is installed, Triton likewise."""
    modules = {"numpy": "numpy", "cpu": "numba", "triton": "triton"}
    return [backend for backend, module in modules.items() if importlib.util.find_spec(module)]


def place(backend: str) -> tuple[str, bool]:
    """The device that a back end is checked on, and whether it is Triton's interpreter."""
    if backend != "triton":
        return "cpu", False
    from optgen.backends.triton import interpreting

    alone = interpreting() or not torch.cuda.is_available()
    return ("cpu" if alone else "cuda"), alone


def where(backend: str) -> str:
    """What a back end runs on, in words."""
    device, interpreted = place(backend)
    if device == "cuda":
        return torch.cuda.get_device_name()
    return {"numpy": "the reference", "cpu": "numba"}.get(backend, "interpreter" if interpreted else device)


# Rows


@dataclass
class Row:
    """The cases of one back end and dtype together."""

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
        """Whether no case disagreed."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """The answer in a few words."""
        if self.backend == "numpy":
            return "reference" if self.passed else "failed"
        if not self.passed:
            return "differs"
        return "bit-exact" if self.worst == 0 else f"within {self.worst:.1e}"

    def add(self, outcome: Outcome) -> None:
        """Count one case in."""
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
        dtypes: names of dtypes, keys of `TORCH`.
        state_dtype: the storage of new state; by default each parameter's own.
        settings: options that depart from the defaults, one dict a setting.
        steps: how many steps each case takes.
    """

    program: Program
    backends: Sequence[str]
    dtypes: Sequence[str] = DTYPES
    state_dtype: str | None = None
    settings: Sequence[Options] = ({},)
    steps: int = STEPS

    def cases(self, backend: str) -> list[Case]:
        """The cases of one back end, dtype by dtype."""
        per_shape = any(fact.subject == "ndim" for fact in self.program.facts.values())
        return [
            Case(backend, dtype, self.state_dtype, options, per_shape or not options)
            for dtype in self.dtypes
            for options in self.settings
        ]


def settings_of(
    program: Program, fixed: Collection[str] = (), limit: int | None = LIMIT
) -> tuple[list[Options], int]:
    """The settings to check a program under, and how many combinations of its options there are.

    Raises:
        ValueError: the defaults violate the rule's requirements.
    """
    full = optimizer(program).program
    defaults = {name: hyper.default for name, hyper in full.hypers.items()}
    check_options(full, defaults)

    def valid(options: Options) -> bool:
        try:
            check_options(full, {**defaults, **options})
        except ValueError:
            return False
        return True

    return every(full, valid, fixed, limit)


def check(request: Request, progress: Callable[[], None] = lambda: None) -> list[Row]:
    """Run every case and gather rows; `progress` is called after each case.

    Raises:
        RuntimeError: the process with Triton's interpreter ended early.
    """
    apart = [b for b in request.backends if b == "triton" and _needs_process()]
    rows: list[Row] = []
    with _interpreter(request, apart) as theirs:
        for backend in request.backends:
            cases = request.cases(backend)
            outcomes = theirs if backend in apart else (run(request.program, c, request.steps) for c in cases)
            for case, outcome in zip(cases, outcomes, strict=True):
                if not rows or (rows[-1].backend, rows[-1].dtype) != (backend, case.dtype):
                    kept = request.state_dtype or case.dtype
                    rows.append(Row(backend, where(backend), case.dtype, kept, request.steps))
                rows[-1].add(outcome)
                progress()
    return rows


def _needs_process() -> bool:
    from optgen.backends.triton import interpreting

    return place("triton")[1] and not interpreting()


# The process with Triton's interpreter: a request in, a line for each case out

WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from optgen.check import work; work()"


@contextmanager
def _interpreter(request: Request, backends: Sequence[str]) -> Iterator[Iterator[Outcome]]:
    """The outcomes of these back ends' cases, as another process finds them."""
    if not backends:
        yield iter(())
        return
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
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message))
            process.stdin.close()
            yield _outcomes(process, said)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _outcomes(process: Any, said: Any) -> Iterator[Outcome]:
    for line in process.stdout:
        yield Outcome(**json.loads(line))
    if process.wait() != 0:
        said.seek(0)
        raise RuntimeError(f"the process with Triton's interpreter ended early:\n{said.read().strip()}")


def work() -> None:
    """Serve one request of `check` as the process with Triton's interpreter."""
    message: Mapping[str, Any] = json.load(sys.stdin)
    program = complete(library.chain(*(Source(text, name) for text, name in message["parts"])))
    if "maximize" in message["defaults"]:
        program = with_maximize(program)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in message["defaults"].items()}
    request = Request(
        with_defaults(program, **values),
        ["triton"],
        message["dtypes"],
        message["state_dtype"],
        message["settings"],
        message["steps"],
    )
    for case in request.cases("triton"):
        print(json.dumps(asdict(run(request.program, case, request.steps))), flush=True)
