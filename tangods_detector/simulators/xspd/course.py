"""What is exposed when: starts and edges in, exposures out. Pure: the time is always told."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Exposure(NamedTuple):
    """Number from 0, and when it is over."""

    number: int
    stop: float


@dataclass(frozen=True)
class Plan:
    """One acquisition; times in s. `shutter` of each frame, after which the next begins `gap` later; `gated`: each gate
    is a frame, as long as the gate; `counters` frames of one exposure; `continuous` (below 24 bit, where two counters
    are read in turn): in EXT_FRAMES an edge ends a frame and begins the next, the shutter time is of no account."""

    mode: str
    n_frames: int
    shutter: float
    gap: float = 0.0
    gated: bool = False
    counters: int = 1
    continuous: bool = False

    @property
    def borders(self) -> bool:
        return self.continuous and self.mode == "EXT_FRAMES" and not self.gated


class Course:
    """One acquisition, from the moment when the modules are busy."""

    def __init__(self, plan: Plan, now: float) -> None:
        self.plan = plan
        self.skipped = 0  # edges that came while the detector was busy
        self.stopped = False
        self._runs: deque[tuple[float, int]] = deque()  # first start, exposures that are left
        self._over: deque[float] = deque()  # ends of single exposures
        self._planned = self._taken = 0
        self._busy_until = now
        self._last_edge: float | None = None
        if plan.mode == "SOFTWARE" and not plan.gated:
            self._run(now)

    # --- in ----------------------------------------------------------------------------------------------------------

    def edge(self, now: float, width: float = 0.0) -> bool:
        """An external edge, or a gate of `width` s (0: the shutter time). False: ignored."""
        plan = self.plan
        if self.stopped or self.all_triggers or (plan.mode == "SOFTWARE" and not plan.gated):
            return False
        if plan.borders:
            if self._last_edge is not None:
                self._single(now)
            self._last_edge = now
            return True
        if now < self._busy_until:
            self.skipped += 1
            return False
        if plan.gated or plan.mode == "EXT_FRAMES":
            self._single(now + (width if plan.gated and width else plan.shutter))
            self._busy_until += plan.gap
        else:
            self._run(now)
        return True

    def _run(self, start: float) -> None:
        self._runs.append((start, self.plan.n_frames))
        self._planned = self.plan.n_frames
        self._busy_until = start + self.plan.n_frames * (self.plan.shutter + self.plan.gap)

    def _single(self, stop: float) -> None:
        self._over.append(stop)
        self._planned += 1
        self._busy_until = stop

    # --- out ---------------------------------------------------------------------------------------------------------

    @property
    def all_triggers(self) -> bool:
        return self._planned >= self.plan.n_frames

    @property
    def complete(self) -> bool:
        """All exposures are handed out."""
        return self.stopped or self._taken >= self.plan.n_frames

    def free_at(self) -> float:
        """When the next edge is accepted at the earliest."""
        return self._busy_until if not self.plan.borders else 0.0

    def next_at(self) -> float | None:
        """When the next exposure is over; None: none is known."""
        if self.stopped:
            return None
        if self._runs:
            return self._runs[0][0] + self.plan.shutter
        return self._over[0] if self._over else None

    def due(self, now: float) -> Iterator[Exposure]:
        """Those that are over, each once."""
        while (stop := self.next_at()) is not None and stop <= now:
            if self._runs:
                start, left = self._runs.popleft()
                if left > 1:
                    self._runs.appendleft((start + self.plan.shutter + self.plan.gap, left - 1))
            else:
                self._over.popleft()
            self._taken += 1
            yield Exposure(self._taken - 1, stop)

    def stop(self) -> None:
        """What is not handed out is lost."""
        self.stopped = True
