"""A pulse generator: external edges and gates that are still to come. Pure: the time is always told."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol


class Course(Protocol):
    """What is exposed when, as far as pulses matter."""

    stopped: bool

    @property
    def all_triggers(self) -> bool: ...
    def free_at(self) -> float: ...
    def edge(self, now: float, width: float = 0.0) -> bool: ...


class Pulse(NamedTuple):
    """`at` None: as soon as the detector is free after `asked`."""

    at: float | None
    asked: float
    width: float

    def time(self, course: Course) -> float:
        return max(self.asked, course.free_at()) if self.at is None else self.at


class Pulses:
    """Those of one series."""

    def __init__(self) -> None:
        self._pulses: deque[Pulse] = deque()

    def add(self, now: float, n: int, width: float, period: float | None) -> None:
        """`n` of them, `period` s apart; None: as soon as the detector is free."""
        self._pulses.extend(Pulse(None if period is None else now + k * period, now, width) for k in range(n))

    def clear(self) -> None:
        self._pulses.clear()

    def next_at(self, course: Course) -> float | None:
        return self._pulses[0].time(course) if self._pulses else None

    def give(self, course: Course, now: float) -> None:
        """Those whose time has come. What comes after the last that is needed is gone."""
        while self._pulses and (at := self._pulses[0].time(course)) <= now:
            course.edge(at, self._pulses.popleft().width)
            if course.stopped or course.all_triggers:
                self._pulses.clear()
