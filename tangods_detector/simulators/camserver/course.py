"""What is exposed when: edges in, exposures out. Pure: the time is always told, in s."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MODES = {
    "exposure": "{exptime:.7f} second background",
    "exttrigger": "externally triggered exposure(s)",
    "extmtrigger": "externally multi-triggered exposure(s)",
    "extenable": "externally enabled exposure(s)",
}


@dataclass(frozen=True)
class Exposure:
    number: int
    start: float
    stop: float
    ready: float  # when it is read out


@dataclass(frozen=True)
class Plan:
    """Of one exposure command. A sum of several exposures is one image."""

    mode: str
    nimages: int
    exptime: float
    period: float  # of exposures
    readout: float
    delay: float = 0.0
    sums: int = 1

    @property
    def count(self) -> float:
        """s from the start of an image to its end."""
        return (self.sums - 1) * self.period + self.exptime


class Course:
    def __init__(self, plan: Plan, now: float) -> None:
        self.plan = plan
        self.skipped = 0  # edges that were ignored
        self.stopped = False
        self.busy_until = now
        self._runs: deque[tuple[float, float, int]] = deque()  # start, count, images
        self._at = 0  # in the first run
        self._planned = 0
        self.taken = 0  # handed out
        if plan.mode == "exposure":
            self._expose(now, plan.count, plan.nimages)

    def edge(self, now: float, width: float = 0.0) -> bool:
        """An edge, or a gate of `width` s (0: the exposure time). False: it is ignored."""
        if self.stopped or self.complete or now < self.busy_until:
            self.skipped += 1
            return False
        plan = self.plan
        if plan.mode == "exttrigger":
            self._expose(now + plan.delay, plan.count, plan.nimages)
        elif plan.mode == "extmtrigger":
            self._expose(now + plan.delay, plan.count, 1)
        else:
            self._expose(now, width or plan.exptime, 1)
        return True

    def _expose(self, start: float, count: float, images: int) -> None:
        self._runs.append((start, count, images))
        self._planned += images
        self.busy_until = start + (images - 1) * self.plan.sums * self.plan.period + count + self.plan.readout

    @property
    def complete(self) -> bool:
        """No edge is expected any more."""
        return self._planned >= self.plan.nimages

    @property
    def over(self) -> bool:
        """All that will be exposed is handed out."""
        return not self._runs and (self.stopped or self.complete)

    def next(self) -> Exposure | None:
        """The one that is read out next."""
        if not self._runs:
            return None
        start, count, _ = self._runs[0]
        start += self._at * self.plan.sums * self.plan.period
        return Exposure(self.taken, start, start + count, start + count + self.plan.readout)

    def take(self, now: float) -> Exposure | None:
        """The next one if it is read out; each once."""
        found = self.next()
        if found is None or found.ready > now:
            return None
        self.taken += 1
        self._at += 1
        if self._at == self._runs[0][2]:
            self._runs.popleft()
            self._at = 0
        return found

    def stop(self) -> None:
        """What is not read out is lost."""
        self.stopped = True
        self._runs.clear()
        self._at = 0
