"""How long a step takes: on the device, for the host, and from one step to the next.

`device`: from when the device begins with a step to when it ends, with all that the host has to do done
before: the steps are queued behind a kernel that does nothing for long enough. `host`: until `step()`
returns, on an idle device. `wall`: steps one after the other, the longer of both.

Where what a step moves would fit in the L2 cache, the cache is overwritten before each step that is timed on
the device, as it is in training, where a whole model has run since the last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import torch

Step = Callable[[], Any]


class Clock(Protocol):
    """Seconds of one step, seen in three ways."""

    def device(self, step: Step, moved: int) -> float:
        """The device's time; `moved` bytes say whether they would stay in its cache."""

    def host(self, step: Step) -> float:
        """Until the call returns."""

    def wall(self, step: Step) -> float:
        """From one step to the next."""


class HostClock:
    """On the CPU all three are the same."""

    repeat = 3

    def device(self, step: Step, moved: int) -> float:
        """The median of a few calls."""
        return self.host(step)

    def host(self, step: Step) -> float:
        """The median of a few calls."""
        found = []
        for _ in range(self.repeat):
            start = time.perf_counter()
            step()
            found.append(time.perf_counter() - start)
        return median(found)

    def wall(self, step: Step) -> float:
        """The median of a few calls."""
        return self.host(step)


class CudaClock:
    """CUDA events for the device, the host's own clock for the rest."""

    repeat = 5
    hertz = 2e9  # an upper bound of the rate at which `torch.cuda._sleep` counts
    longest = 0.5  # seconds that the device is kept waiting at most

    def __init__(self, device: torch.device):
        self.place = device
        self.cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(2 * self.cache, dtype=torch.uint8, device=device)

    def device(self, step: Step, moved: int) -> float:
        """The median of steps timed by events."""
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.repeat)
        ]  # fmt: skip
        wait = min(self.longest, 2 * self.repeat * self.host(step))
        torch.cuda.synchronize(self.place)
        torch.cuda._sleep(int(wait * self.hertz))
        for start, end in events:
            if moved < 4 * self.cache:
                self.flush.zero_()
            start.record()
            step()
            end.record()
        torch.cuda.synchronize(self.place)
        return median(start.elapsed_time(end) for start, end in events) / 1e3

    def host(self, step: Step) -> float:
        """The median of calls on an idle device."""
        found = []
        for _ in range(self.repeat):
            torch.cuda.synchronize(self.place)
            start = time.perf_counter()
            step()
            found.append(time.perf_counter() - start)
        torch.cuda.synchronize(self.place)
        return median(found)

    def wall(self, step: Step) -> float:
        """The mean of steps that are not waited for one by one."""
        torch.cuda.synchronize(self.place)
        start = time.perf_counter()
        for _ in range(self.repeat):
            step()
        torch.cuda.synchronize(self.place)
        return (time.perf_counter() - start) / self.repeat

    def bandwidth(self, size: int = 1 << 30) -> float:
        """Bytes per second of a copy, read and written, of a block of `size`: the best of a few."""
        source = torch.ones(size, dtype=torch.uint8, device=self.place)
        target = torch.empty_like(source)
        return 2 * size / min(self.device(lambda: target.copy_(source), 2 * size) for _ in range(5))


def launches(step: Step) -> dict[str, int] | None:
    """How many kernels and copies a step puts on the device; None where the profiler sees no device."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - copies, "copies": copies} if names else None
