"""What a rule does on two functions of two variables: paths, and a drawing of them.

In: a program and options. Out: an SVG, a text that stands for it, and a caption. Everything runs in float64
on the reference back end.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

import optgen
from optgen.ir.extent import Extent
from optgen.ir.program import Program
from optgen.library import class_of

STEPS = 150
DOTS = 10  # steps from one dot on a path to the next
DECADES = range(-2, 3)  # of lr, around the one that the rule's oracle has
FAR = 1e6  # a path whose function is larger than this has left
TINY = 1e-12  # a function below this counts as this
FLAT, STEEP, ANGLE = (
    1.0,
    100.0,
    math.pi / 6,
)  # of the quadratic: its curvatures, and where the flat one points
SIDE = 4.0  # of the square that is drawn
GREY, COLOUR = "#808080", "#e8590c"  # to be seen on white and on black
Array = np.ndarray
Pair = tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """A function of two variables, the diagonal of its Hessian, where to start, and what to draw of it."""

    name: str
    value: Callable[[Any, Any], Any]
    gradient: Callable[[float, float], Pair]
    curvature: Callable[[float, float], Pair]
    start: Pair
    minimum: Pair
    corner: Pair  # the lower left one of the square that is drawn


def _rosenbrock() -> Problem:
    return Problem(
        "Rosenbrock's function",
        lambda x, y: (1 - x) ** 2 + 100 * (y - x * x) ** 2,
        lambda x, y: (2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)),
        lambda x, y: (2 - 400 * y + 1200 * x * x, 200.0),
        start=(-1.2, 1.0),
        minimum=(1.0, 1.0),
        corner=(-2.0, -1.0),
    )


def _quadratic() -> Problem:
    c, s = math.cos(ANGLE), math.sin(ANGLE)
    xx, yy = FLAT * c * c + STEEP * s * s, FLAT * s * s + STEEP * c * c
    xy = (FLAT - STEEP) * c * s
    return Problem(
        f"a quadratic of condition {STEEP / FLAT:g}",
        lambda x, y: (xx * x * x + 2 * xy * x * y + yy * y * y) / 2,
        lambda x, y: (xx * x + xy * y, xy * x + yy * y),
        lambda x, y: (xx, yy),
        start=(-1.5, 0.5),
        minimum=(0.0, 0.0),
        corner=(-2.0, -2.0),
    )


PROBLEMS = (_rosenbrock(), _quadratic())


@dataclass(frozen=True)
class Path:
    """The points of one run, the first being the start, and the lr that it had; None: the rule has no lr."""

    problem: Problem
    points: Array
    lr: float | None

    @property
    def mean(self) -> float:
        """The geometric mean of the function along the path; infinite where the path left."""
        if len(self.points) <= STEPS:
            return math.inf
        return float(np.exp(np.log(self.problem.value(*self.points.T) + TINY).mean()))

    @property
    def in_view(self) -> bool:
        """Whether every point is inside the square that is drawn."""
        offset = self.points - self.problem.corner
        return bool(((offset >= 0) & (offset <= SIDE)).all())

    def value(self, step: int) -> float:
        """The function after a step."""
        return float(self.problem.value(*self.points[step]))


@dataclass(frozen=True)
class Drawing:
    """A figure: its SVG, what it shows in words, and what stands below it (both plain text)."""

    svg: str
    alt: str
    caption: str


def run(program: Program, options: Mapping[str, Any], problem: Problem) -> Path:
    """`STEPS` steps from the start, fewer if the function grows beyond `FAR`.

    Args:
        program: a rule or a chain that can be trained with.
        options: hyperparameters by name.
        problem: what to minimise.
    """
    p = torch.nn.Parameter(torch.tensor(problem.start, dtype=torch.float64).reshape(shape_of(program)))
    optimizer = optgen.optimizer(program)([p], backend="numpy", **options)
    points = [problem.start]
    for _ in range(STEPS):
        p.grad = torch.tensor(problem.gradient(*points[-1]), dtype=torch.float64).reshape(p.shape)
        with np.errstate(all="ignore"):
            optimizer.step(**_inputs(program, p, problem, points[-1]))
        x, y = p.detach().flatten().tolist()
        points.append((x, y))
        if not abs(problem.value(x, y)) < FAR:
            break
    return Path(problem, np.array(points), options.get("lr"))


def _inputs(program: Program, p: torch.Tensor, problem: Problem, at: Pair) -> dict[str, Any]:
    """What a rule is handed besides gradients: the function's value, or the diagonal of its Hessian."""
    found: dict[str, Any] = {}
    for name, given in program.inputs.items():
        if given.extent is Extent.ALL:
            found[name] = problem.value(*at)
        else:
            found[name] = {p: torch.tensor(problem.curvature(*at), dtype=torch.float64).reshape(p.shape)}
    return found


def shape_of(program: Program) -> tuple[int, ...]:
    """A vector of two, or a matrix of one row where the rule has values per slice."""
    parts = program.parts or (program,)
    return (1, 2) if any(class_of(part) == "slices" for part in parts) else (2,)


def best(program: Program, options: Mapping[str, Any], problem: Problem) -> Path:
    """The run of lowest mean, of those with lr in `DECADES` around the one in the options.

    A path that stays in view comes before one that does not.
    """
    if "lr" not in program.hypers:
        return run(program, options, problem)
    found = [run(program, {**options, "lr": lr}, problem) for lr in rates(options)]
    return min(found, key=lambda path: (not path.in_view, path.mean))


def rates(options: Mapping[str, Any]) -> list[float]:
    """Powers of ten around the lr in the options."""
    centre = round(math.log10(options.get("lr", 0.03)))
    return [float(f"1e{centre + k}") for k in DECADES]


def draw(title: str, program: Program, learns: Mapping[str, Any]) -> Drawing:
    """The best path on each problem.

    Args:
        title: what to call the rule.
        program: a rule or a chain that can be trained with.
        learns: options to begin with, of which the program takes those that it has.
    """
    options = {k: v for k, v in learns.items() if k in program.hypers}
    paths = [best(program, options, problem) for problem in PROBLEMS]
    ends = "; ".join(_end(path) for path in paths)
    others = ", ".join(f"{k}={v}" for k, v in options.items() if k != "lr")
    notes = [
        f"{STEPS} steps from ○ to ●, a dot every {DOTS}; + is the minimum.",
        f"{ends[0].upper()}{ends[1:]}.",
    ]
    if "lr" in program.hypers:
        span = rates(options)
        notes.append(
            f"lr is the power of ten, of {span[0]:g} to {span[-1]:g}, with the lowest geometric mean of the "
            "function along a path in view."
        )
    else:
        notes.append("The rule has no lr.")
    notes.append(f"Set besides: {others}." if others else "All else is as by default.")
    if shape_of(program) != (2,):
        notes.append(f"The two variables are a tensor of shape {shape_of(program)}.")
    for given in program.inputs.values():
        what = "the function's value" if given.extent is Extent.ALL else "the diagonal of the Hessian"
        notes.append(f"{given.name} is {what}.")
    if program.modes:
        notes.append("The path is of p in training.")
    alt = f"Paths of {title} over {STEPS} steps: {ends}."
    return Drawing(_svg(paths), alt, " ".join(notes))


def _end(path: Path) -> str:
    rate = "" if path.lr is None else f" with lr={path.lr:g}"
    return f"on {path.problem.name}{rate} from {path.value(0):.3g} to {path.value(-1):.2g}"


# Drawing


@functools.cache
def _contours(problem: Problem) -> tuple[Array, Array, Array]:
    """A grid of the drawn square, and the function on it."""
    x, y = (np.linspace(low, low + SIDE, 81) for low in problem.corner)
    return x, y, problem.value(*np.meshgrid(x, y))


def _svg(paths: list[Path]) -> str:
    """Contours and paths, without a background of their own."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "optgen",
        "path.simplify_threshold": 0.3,
    }
    with matplotlib.rc_context({**settings, "font.size": 9, "text.color": GREY}):
        figure = Figure(figsize=(6.4, 3.1), layout="constrained")
        for axes, path in zip(figure.subplots(1, 2), paths, strict=True):
            _panel(axes, path)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return re.sub(r"(\.\d\d)\d+", r"\1", text.getvalue())  # two decimals of a point are enough


def _panel(axes: Any, path: Path) -> None:
    problem = path.problem
    axes.contour(*_contours(problem), levels=10 ** np.arange(0, 3.1, 0.5), colors=GREY, linewidths=0.5)
    axes.plot(*path.points.T, color=COLOUR, linewidth=1.2, marker=".", markersize=4, markevery=DOTS)
    axes.plot(*path.points[0], "o", color=COLOUR, markerfacecolor="none")
    axes.plot(*path.points[-1], "o", color=COLOUR, markersize=5)
    axes.plot(*problem.minimum, "+", color=GREY, markersize=9, markeredgewidth=1.5, zorder=3)
    x, y = problem.corner
    axes.set(xlim=(x, x + SIDE), ylim=(y, y + SIDE), xticks=[], yticks=[], aspect="equal")
    axes.set_title(problem.name, fontsize=9)
    axes.spines[:].set_color(GREY)
