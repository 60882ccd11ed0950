"""The demo: a rule that torch does not have, from its text to a trained network.

In: a console and where the picture goes. Out: the rule, its plan and its Triton kernel; a check on every
back end; the loss curves of three trainings on handwritten digits, printed and drawn. The curves of
`torch.optim.AdamW` and `optgen.AdamW` must coincide; exit code 1 where they do not, or a back end disagrees.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from optgen import library
from optgen.backends import cache
from optgen.cli import render
from optgen.compiler import planned
from optgen.errors import Source
from optgen.ir.program import Program
from optgen.optim.optimizer import optimizer
from optgen.verify.check import Answer, Request, check, option_sets, present

RULE = '''\
"""CautiousBelief: the step of AdaBelief, where it agrees with the gradient; decoupled decay."""
hyper(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
require(lr >= 0, eps >= 0, 0 <= betas[0] < 1, 0 <= betas[1] < 1, weight_decay >= 0)
state(m=0, v=0)
beta1, beta2 = betas
m = lerp(m, g, 1 - beta1)
v = lerp(v, (g - m)**2, 1 - beta2)
step = (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
p = p*(1 - lr*weight_decay)
p = p - lr*(step if step*g > 0 else 0)
'''
EPOCHS = 60
BATCH = 64
CLOSE = 1e-4  # relative difference of two loss curves that coincide


def run(console: Console, output: str = "demo.png", epochs: int | None = None, checked: bool = True) -> int:
    """Run the demo. Returns the exit code.

    Raises:
        ModuleNotFoundError: scikit-learn, matplotlib or numba is not installed.
        OSError: the picture cannot be written; found out before anything else is done.
    """
    for module in ("sklearn", "matplotlib", "numba"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"no module named '{module}'", name=module)
    with open(output, "ab"):
        pass
    program = library.rule(Source(RULE, "cautious_belief.rule"))
    _heading(console, "a rule that torch does not have")
    console.print(render.code(RULE), soft_wrap=True)
    _heading(console, "its plan")
    made = planned(program)
    console.print(render.plan(made))
    _heading(console, "its Triton kernel: the arithmetic, and the path for whole blocks")
    console.print(render.code(excerpt(cache.emit(made, "triton"))), soft_wrap=True)
    passed = not checked or _check(console, program)
    _heading(console, "a small network on scikit-learn's handwritten digits")
    runs = _train(console, program, epochs or EPOCHS)
    worst = _report(console, runs)
    draw(runs, output)
    console.print(f"the curves: {output}", markup=False, highlight=False)
    return 0 if passed and worst <= CLOSE else 1


def _heading(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def excerpt(source: str) -> str:
    """The update function of a Triton module, and the loop over blocks up to its masked path."""
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def update0"))
    end = next(i for i in range(start, len(lines)) if not lines[i].strip())
    sweep = next(i for i in range(end, len(lines)) if lines[i].startswith("def sweep0"))
    loop = next(i for i in range(sweep, len(lines)) if lines[i].lstrip().startswith("for "))
    tail = next(i for i in range(loop, len(lines)) if lines[i].strip() == "else:")
    gap = "    ...  # addresses and scalars, from tables"
    rest = "            ...  # the same with a mask"
    return "\n".join(
        [*lines[start - 1 : end], "", *lines[sweep - 1 : sweep + 1], gap, *lines[loop : tail + 1], rest]
    )


def _check(console: Console, program: Program) -> bool:
    """Check the rule on every back end that can run here; print the table."""
    _heading(console, "the same bits on every back end")
    sets, total = option_sets(program)
    request = Request(program, present(), option_sets=sets[:1])
    with _bar(console) as bar:
        task = bar.add_task("trials", total=len(request.backends) * len(request.dtypes))
        rows = check(request, lambda: bar.advance(task))
    answer = Answer(request, total, rows)
    console.print(render.verdicts(answer))
    return answer.passed


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


# Training


@dataclass
class Run:
    """One training: the loss of every minibatch, and the accuracy on the test set at the end."""

    name: str
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Digits:
    """1797 images of 8 by 8 pixels, a fifth of them kept for the test."""

    images: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor


def digits() -> Digits:
    """scikit-learn's handwritten digits, which lie in its package."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 8 - 1, dtype=torch.float32)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    cut = len(order) // 5
    return Digits(pixels, torch.tensor(labels), order[cut:], order[:cut])


def train(run: Run, data: Digits, epochs: int, progress: Callable[[], None] = lambda: None) -> None:
    """Train a network from the same start on the same minibatches as every other run."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = run.make(network.parameters())
    shuffle = torch.Generator().manual_seed(1)
    start = time.perf_counter()
    for _ in range(epochs):
        order = data.train[torch.randperm(len(data.train), generator=shuffle)]
        for batch in torch.split(order, BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(data.images[batch]), data.labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            run.losses.append(loss.item())
        progress()
    run.seconds = time.perf_counter() - start
    with torch.no_grad():
        guessed = network(data.images[data.test]).argmax(1)
    run.accuracy = (guessed == data.labels[data.test]).double().mean().item()


def _train(console: Console, program: Program, epochs: int) -> list[Run]:
    """The three trainings, with a progress bar."""
    # The same learning rate and decay for all three, each class's own default for the rest.
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}
    runs = [
        Run("torch.optim.AdamW", lambda params: torch.optim.AdamW(params, **options)),
        Run("optgen.AdamW", lambda params: optimizer("adamw")(params, **options)),
        Run("CautiousBelief", lambda params: optimizer(program)(params, **options)),
    ]
    data = digits()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is slower with two
    try:
        with _bar(console) as bar:
            for run in runs:
                task = bar.add_task(run.name, total=epochs)
                train(run, data, epochs, lambda task=task: bar.advance(task))  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads)
    return runs


def differences(runs: list[Run]) -> np.ndarray:
    """The relative difference of the first two loss curves at every step."""
    a, b = (np.array(run.losses) for run in runs[:2])
    return np.asarray(np.abs(a - b) / np.abs(a))


def _report(console: Console, runs: list[Run]) -> float:
    """Print what the trainings came to. Returns the largest difference of the two AdamW curves."""
    rows = [(r.name, len(r.losses), float(_smooth(r.losses)[-1]), r.accuracy, r.seconds) for r in runs]
    console.print(render.trainings(rows))
    worst = float(differences(runs).max())
    verdict = "coincide" if worst <= CLOSE else "DIFFER"
    text = f"the two AdamW loss curves {verdict}: at most {worst:.1e} apart, relatively; allowed: {CLOSE:g}"
    console.print(text, style="green" if worst <= CLOSE else "bold red", highlight=False)
    return worst


def draw(runs: list[Run], output: str) -> None:
    """Draw the loss curves and, below, the difference of the first two."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6.5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    styles = [("#9ecae1", "-", 5.0), ("#08519c", "--", 1.6), ("#d95f02", "-", 1.8)]
    for run, (colour, style, width) in zip(runs, styles, strict=True):
        label = f"{run.name}, test accuracy {run.accuracy:.1%}"
        top.semilogy(_smooth(run.losses), color=colour, linestyle=style, linewidth=width, label=label)
    top.set_ylabel("training loss (moving average)")
    top.set_title("A small network on scikit-learn's digits: the same seed and minibatches for all")
    top.legend()
    top.grid(alpha=0.3)
    bottom.semilogy(differences(runs), ".", color="#08519c", markersize=2)  # a log axis leaves out zeros
    bottom.axhline(CLOSE, color="black", linestyle=":", linewidth=1)
    bottom.text(0, CLOSE, " allowed", va="bottom")
    bottom.set_ylim(1e-8, 1e-3)
    bottom.set_ylabel("relative difference\nof the two AdamW")
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.3)
    figure.savefig(output, dpi=150, format="png")
    plt.close(figure)


def _smooth(losses: list[float], window: int = 23) -> np.ndarray:
    """The mean of each loss and those before it, over an epoch of 23 minibatches."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))
