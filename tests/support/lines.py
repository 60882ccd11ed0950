"""The lines that a package runs, and something else in the place of one of them.

In: a `with` block. Out: its events in order, with those marked that lie between a step's first launch and its
last count; or what `act` does before one of them, which is as if the line had done it.
"""

from __future__ import annotations

import dis
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import optgen

PACKAGE = str(Path(optgen.__file__).parent) + "/"
# Where a step begins to do what cannot be taken back, and where all is done, by file and function.
BEGIN, END = (("launch/uninterrupted.py", name) for name in ("__enter__", "__exit__"))
BEGINS = {
    ("optim/state.py", "enter"),
    ("launch/recording.py", "launch"),
    ("backends/cpu/kernel.py", "run"),
    ("backends/reference.py", "run"),
}
ONE_CALL = (
    "launch/one_call.py",
    "make",
)  # which is begun and done at once, but where signals wait for an end
# After these the interpreter looks whether a signal has come.
LOOKS = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"}


class Place(NamedTuple):
    """Where an event is."""

    file: str
    line: int
    at: int = 0  # the instruction, where those are told apart


class Event(NamedTuple):
    """A line that is run for the so-manieth time.

    How often others are run differs a little from step to step, with the addresses of tensors.
    """

    place: Place
    time: int
    inside: bool = False  # whether it is between the first launch and the last count


class Lines:
    """Records the lines of a package that run in a `with` block; before event `at` it calls `act` instead.

    With `calls`, not lines are events, but the instructions before which a signal can be noticed.
    """

    def __init__(self, at: Event | None = None, act: Any = None, package: str = PACKAGE, calls: bool = False):
        self.at, self.act, self.package, self.calls = at, act, package, calls
        self.times: Counter[Place] = Counter()
        self.events: list[Event] = []
        self.depth, self.launching, self.acted = 0, False, False
        self.looked: dict[int, str] = {}  # by frame, its last instruction
        self.having: dict[CodeType, bool] = {}

    def __enter__(self) -> Lines:
        self.before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _name(self, code: CodeType) -> tuple[str, str]:
        return code.co_filename.removeprefix(self.package), code.co_name

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(self.package) or not (self.at is None or self._has(code)):
            return None
        name = self._name(code)
        self.launching |= name in BEGINS or (name == ONE_CALL and self.depth > 0)
        self.depth += name == BEGIN
        frame.f_trace_opcodes = self.calls
        return self._line

    def _has(self, code: CodeType) -> bool:
        """Whether the event can be in this function: others need not be watched."""
        if code not in self.having:
            place = self.at.place
            lines = (line for *_, line in code.co_lines())
            self.having[code] = code.co_filename == place.file and place.line in lines
        return self.having[code]

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            last = self.looked.get(id(frame))
            self.looked[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if last in LOOKS:
                self._meet(frame, frame.f_lasti)
        elif event == "line" and not self.calls:
            self._meet(frame)
        elif event == "return":
            self.looked.pop(id(frame), None)
            if self._name(frame.f_code) == END:
                self.depth -= 1
                self.launching = self.launching and self.depth > 0
        return self._line

    def _meet(self, frame: FrameType, at: int = 0) -> None:
        line = frame.f_lineno
        if self.at is not None and line != self.at.place.line:
            return
        place = Place(frame.f_code.co_filename, line, at)
        time = self.times[place] = self.times[place] + 1
        if self.at is None:
            self.events.append(Event(place, time, self.launching))
        elif (place, time) == self.at[:2]:
            self.acted = True
            self.act()


def chosen(events: Sequence[Event], each: int = 1, early: int = 1, late: int = 1) -> list[Event]:
    """Some events: of each place `each`, the first and the last among them, before and in the launches.

    Of those long before the first launch only every so many-th is left, and so of the others.
    """
    alike: dict[tuple[Place, bool], list[int]] = {}
    for number, event in enumerate(events):
        alike.setdefault((event.place, event.inside), []).append(number)
    found = set()
    for mine in alike.values():
        last = len(mine) - 1
        found |= {mine[last * i // max(1, each - 1)] for i in range(min(each, last + 1))}
    first = next((i for i, event in enumerate(events) if event.inside), len(events)) - 5
    start = sum(found)  # so that cases differ in what they leave out
    parts = (early, [i for i in found if i < first]), (late, [i for i in found if i >= first])
    return [events[i] for n, part in parts for i in sorted(part)[start % n :: n]]
