"""Differential test: a back end in lockstep with the reference, over tensors of every shape and layout.

In: a program and a `Case`. Out: an `Outcome`. Three optimizers take the same steps: one of the back end, one
of the reference in the same dtype, and one of the reference in float64, for the error of both. After each
step `p`, every state and the memory around them are compared.

How closely they must agree follows from the IR: without a sum or a transcendental function beyond STEP the
bits must be equal; with one, a tensor's difference must stay below `TOLERANCE` times the largest value that
the tensor has had, for an accumulator keeps the rounding errors of all its values. With a global state that
depends on all tensors, and they on it (Prodigy's `d`), rounding errors feed back: `FEEDBACK` times that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optgen.compiler import Compiler
from optgen.ir.extent import Extent
from optgen.ir.functions import operation
from optgen.ir.node import Op, toposort
from optgen.ir.program import Program
from optgen.optim.optimizer import Optimizer, optimizer
from optgen.verify.option_grid import Options

TORCH = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
# With sums or transcendental functions, per tensor: max|a-b| / max|b|. For 16-bit storage, a few units.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
FEEDBACK = 10
INEXACT = frozenset({Op.SUM, Op.POW, Op.MOD})  # of what is no function; a function's row says it
SEED = 20240229
ABSENT = 1  # the index of a tensor without a gradient in the first and every fifth step after it
FEW = ("odd", "2**k + 1")  # names of the samples of a case that is not thorough


@dataclass(frozen=True)
class Sample:
    """A parameter to test with: a view of contiguous memory, and the layout of its gradient."""

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


def samples(interpreted: bool, thorough: bool = True) -> list[Sample]:
    """A parameter for each case that kernels distinguish; small ones for Triton's interpreter."""
    # Below 32768 elements: from there on torch starts threads, which compete with those of other processes.
    one_more, several = (65, 129) if interpreted else (1025, 20_001)
    all_samples = [
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
    return all_samples if thorough else [s for s in all_samples if s.name in FEW]


def _gradients(chosen: Sequence[Sample], step: int) -> Iterator[Tensor | None]:
    """The gradient of each sample in a step, in float64: magnitudes over four decades, a tenth zeros."""
    generator = torch.Generator().manual_seed(SEED + step)
    for index, sample in enumerate(chosen):
        shape = sample.view(torch.empty(sample.memory)).shape
        size = 10 ** (4 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3)
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * size
        values[torch.rand(shape, generator=generator) < 0.1] = 0
        yield None if index == ABSENT and step % 5 == 1 else values


class Trainee:
    """An optimizer with one parameter for each sample, and the same steps as every other one.

    Args:
        kind: the optimizer's class.
        chosen: the samples.
        options: hyperparameters.
        dtype: of parameters and gradients.
        rounded: the dtype to which initial values, gradients and inputs are rounded first: the same in all
            trainees of a case, so that one in float64 starts from the same numbers.
        device: of all tensors.
        **compile_options: `backend`, `state_dtype` and the like.
    """

    def __init__(
        self,
        kind: type[Optimizer],
        chosen: Sequence[Sample],
        options: Options,
        dtype: torch.dtype,
        rounded: torch.dtype,
        device: str = "cpu",
        **compile_options: Any,
    ):
        self.chosen, self.dtype, self.rounded, self.device = chosen, dtype, rounded, device
        generator = torch.Generator().manual_seed(SEED)
        values = [torch.randn(s.memory, generator=generator, dtype=torch.float64) for s in chosen]
        self.memory = [v.to(rounded).to(dtype).to(device) for v in values]
        self.params = [torch.nn.Parameter(s.view(m)) for s, m in zip(chosen, self.memory, strict=True)]
        groups: list[dict[str, Any]] = [{"params": self.params[::2]}, {"params": self.params[1::2]}]
        hyper = kind.program.hypers.get("lr")
        lr = options.get("lr", hyper.default if hyper else None)
        global_states = any(state.extent is Extent.ALL for state in kind.program.states.values())
        # A group of its own lr is a second row of scalars; global states must start alike in all groups.
        if isinstance(lr, float) and not global_states:
            groups[1]["lr"] = lr / 2
        self.optimizer = kind(groups, **options, **compile_options)

    def step(self, step: int) -> None:
        """Take a step with the gradients and inputs of that number, and check that gradients are only read.

        Raises:
            AssertionError: the optimizer wrote into a gradient.
        """
        gradients = []
        for param, sample, values in zip(
            self.params, self.chosen, _gradients(self.chosen, step), strict=True
        ):
            if values is None:
                param.grad = None
                continue
            param.grad = sample.gradient(values.to(self.rounded).to(self.dtype)).to(self.device)
            gradients.append((sample, param.grad, param.grad.clone()))
        self.optimizer.step(**self.inputs(step))
        for sample, now, before in gradients:
            assert torch.equal(now, before), f"step {step} wrote into the gradient of '{sample.name}'"

    def inputs(self, step: int) -> dict[str, Any]:
        """The inputs of a step: positive numbers; those with a default are missing in every third step."""
        generator = torch.Generator().manual_seed(1000 * SEED + step)
        inputs: dict[str, Any] = {}
        for name, declared in self.optimizer.program.inputs.items():
            if declared.default is not None and step % 3 == 0:
                continue
            if declared.extent is Extent.ALL:
                inputs[name] = torch.rand((), generator=generator, dtype=torch.float64)
                continue
            inputs[name] = {}
            for param in self.params:
                values = torch.rand(param.shape, generator=generator, dtype=torch.float64)
                inputs[name][param] = values.to(self.rounded).to(self.dtype).to(self.device)
        return inputs

    def stored(self) -> Iterator[tuple[Sample, str, Tensor]]:
        """Every tensor that a step may write: parameters with the memory around them, and states."""
        for sample, memory, param in zip(self.chosen, self.memory, self.params, strict=True):
            yield sample, "p", memory
            for key, value in sorted(self.optimizer.state[param].items()):
                yield sample, key, value
        for key, value in sorted(self.optimizer.param_groups[0].items()):
            if isinstance(value, Tensor):  # a global state
                yield self.chosen[0], key, value


def largest(x: Tensor) -> float:
    """The largest finite magnitude in a tensor, 0 without any."""
    finite = x.detach()[x.isfinite()].double().abs()
    return finite.max().item() if finite.numel() else 0.0


def difference(a: Tensor, b: Tensor, scale: float = 0.0) -> float:
    """The relative difference max|a-b| / max(max|b|, scale); 0 for equal bits, zeros and NaNs of any kind."""
    x, y = (t.detach().to("cpu", torch.float64) for t in (a, b))
    unequal = ~((x == y) | (x.isnan() & y.isnan()))
    if not unequal.any():
        return 0.0
    worst = (x - y)[unequal].abs().max().item()
    scale = max(scale, largest(y))
    return worst / scale if math.isfinite(worst) and scale else math.inf


@dataclass(frozen=True)
class Case:
    """One differential test: a back end, a dtype, and options; `thorough` means all samples."""

    backend: str
    dtype: str
    state_dtype: str | None
    options: Options
    thorough: bool
    steps: int

    @property
    def label(self) -> str:
        """The options as keyword arguments."""
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items()) or "the defaults"


@dataclass(frozen=True)
class Outcome:
    """The result of a case; `worst` and `error` are relative, `allowed` is 0 where bits must be equal."""

    tensors: int  # how many samples
    worst: float  # the largest difference from the reference
    allowed: float  # the largest difference without a failure
    error: float  # the largest difference of a parameter from the reference in float64
    failure: str | None
    seconds: float


def exact(op: Op) -> bool:
    """Whether all back ends give the same bits for an operation."""
    row = operation(op)
    return row.exact if row else op not in INEXACT


def allowed(program: Program, options: Options, dtypes: Iterable[torch.dtype], ndims: Iterable[int]) -> float:
    """The relative difference that the numerics contract allows under these options; 0 means equal bits."""
    compiler = Compiler.of(program)
    for ndim in set(ndims):
        facts = compiler.facts({**compiler.defaults, **options}, ndim)
        for mode in (None, *program.modes):
            # STEP values are computed by the host, the same for every back end.
            lowered = compiler.specialised(facts, mode)
            nodes = toposort(lowered.assigns.values())
            if any(not exact(n.op) and n.extent > Extent.STEP for n in nodes):
                return max(TOLERANCE[dtype] for dtype in dtypes) * (FEEDBACK if compiler.counts else 1)
    return 0.0


def place(backend: str) -> tuple[str, bool]:
    """The device on which a back end runs here, and whether it runs in Triton's interpreter."""
    if backend != "triton":
        return "cpu", False
    from optgen.backends.triton.kernels import interpreting

    alone = interpreting() or not torch.cuda.is_available()
    return ("cpu" if alone else "cuda"), alone


def run(program: Program, case: Case) -> Outcome:
    """Run one differential test; an exception of the back end is a failure with its text."""
    start = time.perf_counter()
    kind = optimizer(program)
    device, interpreted = place(case.backend)
    chosen = samples(interpreted, case.thorough)
    dtype, state_dtype = TORCH[case.dtype], TORCH[case.state_dtype] if case.state_dtype else None
    limit = allowed(
        kind.program, case.options, {dtype, state_dtype or dtype}, (len(s.memory) for s in chosen)
    )
    reference = Trainee(kind, chosen, case.options, dtype, dtype, backend="numpy", state_dtype=state_dtype)
    precise = Trainee(kind, chosen, case.options, torch.float64, dtype, backend="numpy")
    subject = reference  # of the reference only the error against float64 is of interest
    if case.backend != "numpy":
        compile_options = {"backend": case.backend, "state_dtype": state_dtype}
        subject = Trainee(kind, chosen, case.options, dtype, dtype, device, **compile_options)
    trainees = list(dict.fromkeys((reference, precise, subject)))
    worst, failure = 0.0, None
    scales: dict[tuple[str, str], float] = {}
    try:
        for when, act in _acts(case.steps, bool(kind.program.modes)):
            for trainee in trainees:
                act(trainee)
            largest_now, failure = _compare(subject, reference, limit, scales)
            worst = max(worst, largest_now)
            if failure:
                failure = f"{when}: {failure}"
                break
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    error64 = max(difference(a, b) for a, b in zip(subject.memory, precise.memory, strict=True))
    if failure:
        failure = f"with {case.label}, {failure}"
    return Outcome(len(chosen), worst, limit, error64, failure, time.perf_counter() - start)


def _acts(steps: int, modes: bool) -> Iterator[tuple[str, Callable[[Trainee], None]]]:
    """The steps and mode changes of a case, each with its name, which every trainee takes in turn."""
    for step in range(1, steps + 1):
        yield f"step {step}", lambda trainee, step=step: trainee.step(step)  # type: ignore[misc]
    if modes:
        yield "eval()", lambda trainee: trainee.optimizer.eval()
        yield "train()", lambda trainee: trainee.optimizer.train()


def _compare(
    subject: Trainee, reference: Trainee, limit: float, scales: dict[tuple[str, str], float] | None = None
) -> tuple[float, str | None]:
    """The largest difference between two trainees, and a text about the first that is not allowed.

    `scales` has the largest value so far of each tensor, and is updated.
    """
    worst, scales = 0.0, {} if scales is None else scales
    for (sample, key, mine), (_, other, right) in zip(subject.stored(), reference.stored(), strict=True):
        assert key == other, f"'{sample.name}' has state '{key}', in the reference '{other}'"
        place = sample.name, key
        scales[place] = max(scales.get(place, 0.0), largest(right))
        relative = difference(mine, right, scales[place])
        if not relative <= limit:  # also for NaN
            return relative, f"{key} of '{sample.name}' {_first(mine, right)}"
        worst = max(worst, relative)
    return worst, None


def _first(mine: Tensor, right: Tensor) -> str:
    """The element where two tensors differ most, with both values."""
    x, y = (t.detach().to("cpu", torch.float64).flatten() for t in (mine, right))
    gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs().nan_to_num(math.inf, math.inf))
    index = int(gap.argmax())
    return f"is {x[index].item():.9g}, in the reference {y[index].item():.9g}, at element {index}"
