"""Timing several contestants side by side: turns in which each runs once, in random order.

A slow moment of the machine then meets all of them, and none always runs after the same other one. A ratio
is the median of the ratios within a turn, with its quartiles.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

WARMUP = 2  # turns that are run and not counted
FEWEST = 5  # turns that are counted whatever the time
Times = dict[str, list[float]]


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @property
    def quartiles(self) -> tuple[float, float]:
        """The quartiles alone."""
        return self.low, self.high


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least two values."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high)


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(
    contestants: Mapping[str, Callable[[], Any]],
    turns: int,
    before: Callable[[], Any] | None = None,
    clock: Callable[[Callable[[], Any]], float] = seconds,
    limit: float = float("inf"),
) -> Times:
    """Seconds of each contestant in each turn; `before` is run, untimed, at the start of every turn.

    Past `limit` seconds no further turn begins, once there are a few.
    """
    order, dice = list(contestants), random.Random(0)
    times: Times = {name: [] for name in contestants}
    start = time.perf_counter()
    for turn in range(WARMUP + turns):
        if turn >= WARMUP + FEWEST and time.perf_counter() - start > limit:
            break
        if before is not None:
            before()
        dice.shuffle(order)
        for name in order:
            found = clock(contestants[name])
            if turn >= WARMUP:
                times[name].append(found)
    return times


def ratio(times: Times, mine: str, *others: str, scale: float = 1.0) -> Spread:
    """`mine` over the fastest of `others` in the same turn, times `scale`."""
    best = [min(found) for found in zip(*(times[name] for name in others), strict=True)]
    return spread([scale * a / b for a, b in zip(times[mine], best, strict=True)])


def milliseconds(times: Times) -> dict[str, dict[str, float]]:
    """The medians and quartiles of all contestants and their fastest turns, for JSON."""
    figures = {name: {**spread(found)._asdict(), "fastest": min(found)} for name, found in times.items()}
    return {name: {key: round(1e3 * x, 4) for key, x in found.items()} for name, found in figures.items()}
