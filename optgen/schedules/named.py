"""Named schedules of the literature, each a text of the rule language.

In: their constants. Out: a `Schedule`. `t` counts steps from 1, so torch's epoch is `t - 1`; `base` stands
for the value that the hyperparameter has in its group. After its last step a schedule keeps its last value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from optgen.errors import Source
from optgen.ir.program import Hyper
from optgen.language.schedule_expressions import Expression, expression
from optgen.schedules.values import value


@dataclass(frozen=True)
class Schedule:
    """A schedule of any hyperparameter.

    Attributes:
        title: the call that made it, such as `constant()`.
        text: an expression of `t` and of `base`, the hyperparameter's value in its group.
    """

    title: str
    text: str

    def __call__(self, t: float, base: float = 1.0) -> float:
        """The value in step `t`, counted from 1, in float64."""
        return value(self._expression, t, {"base": base})

    def __repr__(self) -> str:
        return self.title

    def of(self, path: str) -> str:
        """The text for a hyperparameter, `lr` or `betas[0]`, whose name replaces `base`."""
        return re.sub(r"\bbase\b", path, self.text)

    @cached_property
    def _expression(self) -> Expression:
        """The parsed text."""
        return expression(Source(self.text, self.title), "base", {"base": Hyper("base", 1.0)})


def _schedule(name: str, text: str, **arguments: object) -> Schedule:
    """A schedule whose title is the call with its arguments."""
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return Schedule(f"{name}({listed})", text)


def _check(holds: bool, name: str, needs: str, **values: float) -> None:
    """Raise a ValueError for constants out of bounds, NaN included, for which no comparison holds."""
    if not holds:
        listed = ", ".join(f"{key} = {value!r}" for key, value in values.items())
        raise ValueError(f"{name} needs {needs}, but {listed}")


def _number(value: float) -> str:
    """A number as rule text: `repr`, without a trailing `.0`."""
    return repr(float(value)).removesuffix(".0")


def _rising(warmup: float) -> str:
    """The text of a linear warmup from 0, over `warmup` steps."""
    return f"base*(t / {_number(warmup)})"


def constant() -> Schedule:
    """The group's own value in every step: `base`."""
    return _schedule("constant", "base")


def warmup(steps: float) -> Schedule:
    """Linear warmup, Goyal et al., 2017, arXiv:1706.02677: `base*t/steps`, and `base` from `t = steps` on.

    Args:
        steps: the step that has `base`; at least 1.

    Raises:
        ValueError: `steps` is less.
    """
    _check(steps >= 1, "warmup", "steps >= 1", steps=steps)
    return _schedule("warmup", f"base*minimum(t / {_number(steps)}, 1)", steps=steps)


def linear(total: float, start: float = 1 / 3, end: float = 1.0) -> Schedule:
    """Linear from `start*base` to `end*base` in `total` steps, as torch's `LinearLR`.

    Args:
        total: how many steps it takes, torch's `total_iters`; the last value is that of step `total + 1`.
        start: the first value, as a part of `base`.
        end: the last value, as a part of `base`.

    Raises:
        ValueError: `total` is not more than 0.
    """
    _check(total > 0, "linear", "total > 0", total=total)
    slope = f"{_number(end - start)}*minimum((t - 1) / {_number(total)}, 1)"
    return _schedule("linear", f"base*({_number(start)} + {slope})", total=total, start=start, end=end)


def exponential(gamma: float = 0.999, every: float = 1) -> Schedule:
    """Exponential decay: `base*gamma**((t - 1)/every)`, torch's `ExponentialLR` where `every` is 1.

    Args:
        gamma: the factor; more than 0.
        every: in how many steps the factor comes in once; more than 0.

    Raises:
        ValueError: an argument is out of bounds.
    """
    _check(gamma > 0 and every > 0, "exponential", "gamma > 0 and every > 0", gamma=gamma, every=every)
    steps = "t - 1" if every == 1 else f"(t - 1) / {_number(every)}"
    return _schedule("exponential", f"base*{_number(gamma)}**({steps})", gamma=gamma, every=every)


def step(size: float, gamma: float = 0.1) -> Schedule:
    """Step decay: `base*gamma**floor((t - 1)/size)`, as torch's `StepLR`.

    Args:
        size: how many steps have the same value; at least 1.
        gamma: the factor between them; more than 0.

    Raises:
        ValueError: an argument is out of bounds.
    """
    _check(size >= 1 and gamma > 0, "step", "size >= 1 and gamma > 0", size=size, gamma=gamma)
    text = f"base*{_number(gamma)}**floor((t - 1) / {_number(size)})"
    return _schedule("step", text, size=size, gamma=gamma)


def polynomial(total: float, power: float = 1.0, floor: float = 0.0) -> Schedule:
    """Polynomial decay to `floor*base`: `(1 - (t - 1)/total)**power`, as torch's `PolynomialLR` to 0.

    Args:
        total: how many steps it takes; the last value is reached in step `total + 1`.
        power: 1 falls evenly, more falls faster at first; more than 0.
        floor: the last value, as a part of `base`.

    Raises:
        ValueError: an argument is out of bounds.
    """
    _check(total > 0 and power > 0, "polynomial", "total > 0 and power > 0", total=total, power=power)
    rest = f"(1 - minimum((t - 1) / {_number(total)}, 1))**{_number(power)}"
    text = f"base*{_between(rest, floor)}"
    return _schedule("polynomial", text, total=total, power=power, floor=floor)


def _between(rest: str, floor: float) -> str:
    """The text of an interpolation: 1 where `rest` is 1, and `floor` where it is 0."""
    return rest if floor == 0 else f"({_number(floor)} + {_number(1 - floor)}*{rest})"


def cosine(total: float, warmup: float = 0, floor: float = 0.0) -> Schedule:
    """Cosine decay from `base` to `floor*base`, Loshchilov & Hutter, 2017, arXiv:1608.03983.

    Without warmup this is torch's `CosineAnnealingLR(T_max=total, eta_min=floor*base)` up to its end.

    Args:
        total: how many steps there are; the last value is reached in step `total + 1`.
        warmup: how many of them rise linearly, `base*t/warmup`, before.
        floor: the last value, as a part of `base`.

    Raises:
        ValueError: not `0 <= warmup < total`.
    """
    _check(0 <= warmup < total, "cosine", "0 <= warmup < total", total=total, warmup=warmup)
    begin = _number(1 + warmup)  # in the next step after the warmup the cosine is still `base`
    part = f"minimum((t - {begin}) / {_number(total - warmup)}, 1)"
    rest = f"(0.5*(1 + cos(pi*{part})))"
    text = f"base*{_between(rest, floor)}"
    if warmup:
        text = f"{_rising(warmup)} if t <= {_number(warmup)} else {text}"
    return _schedule("cosine", text, total=total, warmup=warmup, floor=floor)


def wsd(total: float, warmup: float, decay: float, floor: float = 0.0, shape: str = "linear") -> Schedule:
    """Warmup, stable, decay (trapezoid), Hu et al., 2024, arXiv:2404.06395.

    Args:
        total: how many steps there are.
        warmup: how many of them rise linearly, `base*t/warmup`.
        decay: how many of them, at the end, fall to `floor*base`, which is reached in step `total + 1`.
        floor: the last value, as a part of `base`.
        shape: how it falls: "linear", or "sqrt" for `1 - sqrt(x)`, Hägele et al., 2024, arXiv:2405.18392.

    Raises:
        ValueError: the parts are longer than the whole, or there is no such shape.
    """
    _check(
        warmup >= 0 and decay > 0 and warmup + decay <= total, "wsd", "warmup + decay <= total and decay > 0",
        total=total, warmup=warmup, decay=decay,
    )  # fmt: skip
    if shape not in ("linear", "sqrt"):
        raise ValueError(f"shape={shape!r} is not one of linear, sqrt")
    part = f"clip((t - {_number(total - decay + 1)}) / {_number(decay)}, 0, 1)"
    rest = f"(1 - {f'sqrt({part})' if shape == 'sqrt' else part})"
    text = f"base*{_between(rest, floor)}"
    if warmup:
        text = f"{_rising(warmup)} if t <= {_number(warmup)} else {text}"
    return _schedule("wsd", text, total=total, warmup=warmup, decay=decay, floor=floor, shape=shape)


def one_cycle(
    total: float,
    pct_start: float = 0.3,
    anneal: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """One cycle, up to `base` and down again, Smith & Topin, 2018, arXiv:1708.07120, as in torch.

    The arguments are those of torch's `OneCycleLR`, whose `max_lr` is `base`. Its momentum goes the other
    way: with 0.85 as `base` that is `one_cycle(total, div_factor=0.85/0.95, final_div_factor=1)`.

    Args:
        total: how many steps there are, torch's `total_steps`.
        pct_start: the part of them that rises; `total*pct_start` must be more than 1.
        anneal: "cos" or "linear", torch's `anneal_strategy`.
        div_factor: the first value is `base/div_factor`.
        final_div_factor: the last value is the first one divided by this.
        three_phase: down to the first value as fast as up, and to the last one in the rest.

    Raises:
        ValueError: an argument is out of bounds.
    """
    _check(
        total * pct_start > 1 and 0 < pct_start < 1 and (not three_phase or pct_start < 0.5),
        "one_cycle", "total*pct_start > 1 and pct_start < 1, or < 0.5 with three phases",
        total=total, pct_start=pct_start,
    )  # fmt: skip
    if anneal not in ("cos", "linear"):
        raise ValueError(f"anneal={anneal!r} is not one of cos, linear")
    # torch counts steps from 0 and puts the ends of phases at `pct*total - 1`.
    low, last = 1 / div_factor, 1 / div_factor / final_div_factor
    peak = pct_start * total - 1
    ends = [(peak, low, 1.0), (total - 1, 1.0, last)]
    if three_phase:
        ends = [(peak, low, 1.0), (2 * peak, 1.0, low), (total - 1, low, last)]
    begins = [0.0, *(end for end, _, _ in ends)]
    pieces = [_piece(begin, end, a, b, anneal) for begin, (end, a, b) in zip(begins, ends, strict=False)]
    text = pieces[-1]  # the conditions are nested from the last piece on
    for (end, _, _), piece in reversed([*zip(ends[:-1], pieces[:-1], strict=True)]):
        text = f"{piece} if t - 1 <= {_number(end)} else {text}"
    constants = {"total": total, "pct_start": pct_start, "anneal": anneal, "div_factor": div_factor}
    return _schedule(
        "one_cycle", text, **constants, final_div_factor=final_div_factor, three_phase=three_phase
    )


def _piece(begin: float, end: float, a: float, b: float, anneal: str) -> str:
    """The text of a piece from `a*base` to `b*base` between two epochs, by cosine or linearly."""
    part = f"minimum((t - {_number(1 + begin)}) / {_number(end - begin)}, 1)"
    if anneal == "linear":
        return f"base*({_number(a)} + {_number(b - a)}*{part})"
    return f"base*({_number(b)} + {_number((a - b) / 2)}*(1 + cos(pi*{part})))"


def inverse_sqrt(warmup: float = 4000) -> Schedule:
    """Inverse square root, Vaswani et al., 2017: `base*t/warmup`, then `base*sqrt(warmup/t)`.

    Scaled as in fairseq and T5, so that the peak is `base`.

    Args:
        warmup: the step that has the peak, `base`; at least 1.

    Raises:
        ValueError: `warmup` is less.
    """
    _check(warmup >= 1, "inverse_sqrt", "warmup >= 1", warmup=warmup)
    steps = _number(warmup)
    return _schedule("inverse_sqrt", f"base*minimum(t / {steps}, sqrt({steps} / t))", warmup=warmup)


def noam(warmup: float = 4000, d_model: float | None = None) -> Schedule:
    """Noam, Vaswani et al., 2017, arXiv:1706.03762: `d_model**-0.5 * min(t**-0.5, t*warmup**-1.5)`.

    Without `d_model` its factor is `base*warmup**0.5`, so that the peak, in step `warmup`, is `base`.

    Args:
        warmup: the step that has the peak; at least 1.
        d_model: the width of the model, with which `base` has no effect; more than 0.

    Raises:
        ValueError: an argument is out of bounds.
    """
    _check(warmup >= 1, "noam", "warmup >= 1", warmup=warmup)
    _check(d_model is None or d_model > 0, "noam", "d_model > 0", d_model=d_model or 0)
    factor = f"base*{_number(math.sqrt(warmup))}" if d_model is None else _number(d_model**-0.5)
    text = f"{factor}*minimum(t**-0.5, t*{_number(warmup)}**-1.5)"
    return _schedule("noam", text, warmup=warmup, d_model=d_model)


NAMED: dict[str, Callable[..., Schedule]] = {
    function.__name__: function
    for function in (
        constant, warmup, linear, exponential, step, polynomial, cosine, wsd, one_cycle, inverse_sqrt, noam,
    )
}  # fmt: skip
