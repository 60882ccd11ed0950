"""Steps that are stopped at every line: whether all of the step has happened then, or nothing.

In: a `Case`, which makes a subject just before the step that is judged. Out: a `Report`. A trace function
numbers the lines that optgen runs in that step, and at one of them raises a signal or an error, as if the
line had. Each time the subject is a new one, and afterwards it makes two more steps, undisturbed.

A subject consists of units, such as the parameters of an optimizer whose gradients are released: each is as
it was, or as it is after the step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn, Protocol
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from lines import PACKAGE, Event, Lines, Place, chosen
from optgen import locks
from optgen.launch.launcher import Launcher

RAISING = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGALRM: TimeoutError}
Look = dict[str, dict[str, Any]]  # by unit and item, what compares equal if it is the same


class Stopped(Exception):
    """An error that nothing catches."""


class Subject(Protocol):
    """What makes steps."""

    def ready(self, k: int) -> None:
        """Do all that is to be done before step k, such as to fill gradients."""

    def step(self) -> None:
        """Make the step."""

    def look(self) -> Look:
        """All that a step may change."""


_made: deque[Subject] = deque(maxlen=3)  # kept, so that a subject has no addresses of the one before it


@dataclass(frozen=True)
class Case:
    """A subject's step number k, counted from 0."""

    name: str
    new: Callable[[], Subject]
    k: int = 0
    last: Callable[[Any], None] = id  # what is done to the subject before that step
    package: str = PACKAGE

    def make(self) -> Subject:
        """A subject that has made k steps."""
        subject = self.new()
        for k in range(self.k):
            subject.ready(k)
            subject.step()
        self.last(subject)
        subject.ready(self.k)
        _made.append(subject)
        return subject


@dataclass
class Report:
    """What became of the steps of a case."""

    name: str
    events: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Place, str]] = field(default_factory=list)
    locked: list[Place] = field(default_factory=list)  # where locks were left closed

    @property
    def lines(self) -> set[tuple[str, int]]:
        """The lines that fail."""
        return {(place.file, place.line) for place, _ in self.failures}

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in sorted(self.outcomes.items()))
        lines: dict[str, dict[str, None]] = {}
        for place, what in [*self.failures, *((place, "left locks closed") for place in self.locked)]:
            line = f"{place.file.removeprefix(PACKAGE)}:{place.line}"
            lines.setdefault(what, {})[line] = None
        texts = [f"  {what}\n      at {' '.join(where)}" for what, where in lines.items()]
        head = f"{self.name}: {self.outcomes.total()} of {self.events} events tried: {counts}"
        return "\n".join([head, *texts])


def judge(
    case: Case,
    act: Callable[[], Any],
    raises: tuple[type[BaseException], ...],
    choose: Callable[[Sequence[Event]], Sequence[Event]] = chosen,
    calls: bool = False,
) -> Report:
    """Stop a case's step at each chosen event by `act`, which makes it raise one of these, if any."""
    assert threading.current_thread() is threading.main_thread(), "signals reach the main thread"
    with _settled() as handlers:
        events, looks = _undisturbed(case, calls)
        report = Report(case.name, len(events))
        for event in choose(events):
            signal.alarm(10)
            outcome = _attempt(case, Lines(event, act, case.package, calls), raises, looks)
            signal.alarm(0)
            outcome = _put_back(handlers) + outcome
            if _unlock():
                report.locked.append(event.place)
            known = outcome in ("none", "all", "missed")
            report.outcomes[outcome if known else "other"] += 1
            if not known:
                report.failures.append((event.place, outcome))
    return report


def _undisturbed(case: Case, calls: bool) -> tuple[list[Event], list[Look]]:
    """The events of the step, once all is compiled, and looks before it and after each of three."""
    case.make().step()
    subject = case.make()
    looks = [subject.look()]
    with Lines(package=case.package, calls=calls) as lines:
        subject.step()
    for k in (1, 2):
        looks.append(subject.look())
        subject.ready(case.k + k)
        subject.step()
    return lines.events, [*looks, subject.look()]


def _attempt(case: Case, lines: Lines, raises: tuple[type[BaseException], ...], looks: Sequence[Look]) -> str:
    """Whether all or nothing has happened, or what else; "missed" if it did not come to the event."""
    subject, raised = case.make(), None
    with np.errstate():  # a stop at the end of a `with` statement leaves it without its end
        try:
            with lines, torch.set_grad_enabled(True):
                subject.step()
        except BaseException as error:
            raised = error
    if not lines.acted and raised is None:
        return "missed"
    if not isinstance(raised, raises or type(None)):
        return f"raised {raised!r}"
    found = subject.look()
    outcomes = {unit: _compare(mine, looks[0][unit], looks[1][unit]) for unit, mine in found.items()}
    wrong = [f"{unit}: {outcome}" for unit, outcome in outcomes.items() if outcome not in ("none", "all")]
    if wrong:
        return "; ".join(wrong)
    done = all(outcome == "all" for outcome in outcomes.values())
    if not raises and not done:
        return "nothing was raised, and the step was not made"
    try:
        for k in range(2):
            subject.ready(case.k + done + k)
            subject.step()
    except BaseException as error:
        return f"then the next step raised {error!r}"
    for unit, mine in subject.look().items():
        end = _compare(mine, {}, looks[3 if outcomes[unit] == "all" else 2][unit])
        if end != "all":
            return f"then went wrong in the next steps: {unit}: {end}"
    return "all" if done else "none"


def _put_back(handlers: dict[int, Any]) -> str:
    """Put handlers back, and say which were not."""
    moved = [n for n, handler in handlers.items() if signal.getsignal(n) != handler]
    for number in moved:
        signal.signal(number, handlers[number])
    return f"left other handlers for the signals {moved}, " if moved else ""


def _unlock() -> bool:
    """Open the locks that this thread holds, for which others would wait; whether there are any."""
    held = [lock for lock in list(locks._locks) if lock._is_owned()]
    for lock in held:
        while lock._is_owned():
            lock.release()
    return bool(held)


def _compare(found: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str:
    """Whether a unit is as it was before, or as it is after the step; of versions at least that."""
    keys = {k for k in found | before | after if not k.startswith("version")}
    if before and all(found.get(k) == before.get(k) for k in keys):
        return "none"
    unseen = [k for k in after if k.startswith("version") and found[k] < after[k]]
    wrong = [k for k in keys if found.get(k) != after.get(k)]
    if not wrong and not unseen:
        return "all"
    made = [k for k in keys if before.get(k) != after.get(k) == found.get(k)]
    left = [k for k in wrong if found.get(k) == before.get(k)]
    odd = [k for k in wrong if k not in left]
    parts = {"moved": made, "not moved": left, "neither": odd, "autograd does not know": unseen}
    return ", ".join(f"{name} {sorted(keys)}" for name, keys in parts.items() if keys)


def bits(value: Any) -> Any:
    """What compares equal if a value is the same, to the bit."""
    if isinstance(value, Tensor):
        flat = value.detach().reshape(-1).view(torch.uint8).numpy()
        return str(value.dtype), tuple(value.shape), flat.tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [bits(each) for each in value]
    return type(value).__name__, repr(value)


@contextlib.contextmanager
def _settled() -> Iterator[dict[int, Any]]:
    """Handlers that raise, whatever runs the tests, and plans that are made once for all subjects."""
    known: dict[Any, Launcher] = {}

    def launcher(program: Any, backend: str = "auto", math: str = "exact") -> Launcher:
        key = id(program), backend, math
        if key not in known:
            known[key] = Launcher(program, backend, math)
        return known[key].clone()

    before = {number: signal.getsignal(number) for number in RAISING}
    with contextlib.ExitStack() as stack:
        for module in ("optgen.optim.state", "optgen.optim.steps", "optgen.tree.states"):
            stack.enter_context(mock.patch(f"{module}.Launcher", launcher))
        for number in RAISING:
            signal.signal(number, _raise)
            stack.callback(signal.signal, number, before[number])
        yield {number: signal.getsignal(number) for number in signal.valid_signals()}


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise RAISING[signal.Signals(number)]
