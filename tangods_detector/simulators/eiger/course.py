"""What is exposed when: triggers and edges in, exposures out. Pure: the time is always told."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

EDGE_MODES = ("exts", "exte", "eies", "extg")


@dataclass(frozen=True)
class Exposure:
    """Times in s on the clock of the course."""

    number: int
    start: float
    stop: float
    real: float  # s that were counted


@dataclass(frozen=True)
class Run:
    """`n` exposures of one trigger, the first is image `first`."""

    first: int
    n: int
    start: float
    period: float
    count: float
    real: float

    def exposure(self, k: int) -> Exposure:
        start = self.start + k * self.period
        return Exposure(self.first + k, start, start + self.count, self.real)

    @property
    def end(self) -> float:
        """Of the last frame, its read-out included."""
        return self.start + (self.n - 1) * self.period + max(self.period, self.count)


@dataclass(frozen=True)
class Plan:
    """How a series is taken. `gap`: s between two frames in which nothing is counted."""

    mode: str
    nimages: int
    ntrigger: int
    count_time: float
    frame_time: float
    gap: float = 0.0
    delay: float = 0.0
    nexpi: int = 1
    double: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], readout_time: float) -> Plan:
        """From the detector's parameters."""
        return cls(
            mode=values["trigger_mode"],
            nimages=values["nimages"],
            ntrigger=values["ntrigger"],
            count_time=values["count_time"],
            frame_time=values["frame_time"],
            gap=readout_time,
            delay=values.get("trigger_start_delay", 0.0),
            nexpi=values.get("nexpi", 1),
            double=values.get("extg_mode") == "double",
        )

    @property
    def total(self) -> int:
        """Images that complete the series."""
        if self.mode == "eies":
            return max(self.nimages * self.ntrigger - 1, 0)
        return self.nimages if self.mode == "extg" else self.nimages * self.ntrigger


class Course:
    """One series. `busy_until` is when the exposures known so far are over."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.busy_until = 0.0
        self.triggers = 0  # accepted
        self.skipped = 0  # edges that came while the detector was busy
        self.taken = 0  # exposures handed out by `due`
        self.stopped = False
        self._runs: deque[Run] = deque()
        self._planned = 0
        self._at = 0  # in the first run
        self._last_edge: float | None = None
        self._gates: list[list[tuple[float, float]]] = [[], []]  # start, width of the gates that are being summed
        self._side = 0

    # --- in ----------------------------------------------------------------------------------------------------------

    def trigger(self, now: float, count_time: float | None = None) -> bool:
        """A software trigger. False: not now."""
        plan = self.plan
        if self.stopped or plan.mode not in ("ints", "inte") or now < self.busy_until or self.all_triggers:
            return False
        count = plan.count_time if count_time is None else count_time
        period = max(plan.frame_time, count + plan.gap) if plan.mode == "ints" else count + plan.gap
        self._expose(now + plan.delay, plan.nimages, period, count)
        return True

    def edge(self, now: float, width: float = 0.0) -> bool:
        """An external edge, or a gate of `width` s (0: the count time). False: ignored."""
        plan = self.plan
        if self.stopped or plan.mode not in EDGE_MODES or self.all_triggers:
            return False
        if plan.mode == "eies":
            return self._border(now)
        if now < self.busy_until:
            self.skipped += 1
            return False
        if plan.mode == "exts":
            self._expose(now + plan.delay, plan.nimages, plan.frame_time, plan.count_time)
        elif plan.mode == "exte":
            count = width or plan.count_time
            self._expose(now, 1, count + plan.gap, count)
        else:
            self._gate(now, width or plan.count_time)
        return True

    def _border(self, now: float) -> bool:
        """Ends one exposure and begins the next."""
        last = self._last_edge
        if last is not None and now - last < self.plan.frame_time * 0.999:
            self.skipped += 1
            return False
        self._last_edge = now
        if last is None:
            self.triggers += 1
            self.busy_until = now
        else:
            self._expose(last, 1, now - last, now - last - self.plan.gap)
        return True

    def _gate(self, now: float, width: float) -> None:
        """So many gates are summed into an image; `double`: they belong to two images in turn."""
        gates = self._gates[self._side]
        gates.append((now, width))
        self._side = 1 - self._side if self.plan.double else 0
        self.busy_until = now + width + self.plan.gap
        if len(gates) == self.plan.nexpi:
            first, last = gates[0], gates[-1]
            count = last[0] + last[1] - first[0]
            self._expose(first[0], 1, count, count, sum(w for _, w in gates))
            gates.clear()

    def _expose(self, start: float, n: int, period: float, count: float, real: float | None = None) -> None:
        run = Run(self._planned, n, start, period, count, count if real is None else real)
        self._runs.append(run)
        self._planned += n
        self.triggers += 1
        self.busy_until = max(self.busy_until, run.end)

    # --- out ---------------------------------------------------------------------------------------------------------

    @property
    def all_triggers(self) -> bool:
        return self._planned >= self.plan.total and (self.plan.mode != "eies" or self._planned > 0)

    def complete(self, now: float) -> bool:
        """All is exposed. Not so in `extg`, which waits for more gates for ever."""
        return self.all_triggers and now >= self.busy_until and self.plan.mode != "extg"

    def busy(self, now: float) -> bool:
        return not self.stopped and (now < self.busy_until or (self._last_edge is not None and not self.all_triggers))

    def free_at(self) -> float:
        """When the next edge is accepted at the earliest."""
        if self.plan.mode == "eies":
            return 0.0 if self._last_edge is None else self._last_edge + self.plan.frame_time
        return self.busy_until

    def next_at(self) -> float | None:
        """When the next exposure is over; None: none is known."""
        return self._runs[0].exposure(self._at).stop if self._runs else None

    def due(self, now: float) -> Iterator[Exposure]:
        """Those that are over, each once."""
        while self._runs:
            run = self._runs[0]
            exposure = run.exposure(self._at)
            if exposure.stop > now:
                return
            self._at += 1
            if self._at == run.n:
                self._runs.popleft()
                self._at = 0
            self.taken += 1
            yield exposure

    # --- the end -----------------------------------------------------------------------------------------------------

    def stop(self, now: float, finish: bool = False) -> None:
        """No more exposures but those that are over and, with `finish`, the one in progress."""
        self.stopped = True
        kept: deque[Run] = deque()
        for run, at in zip(self._runs, [self._at, *([0] * len(self._runs))], strict=False):
            n = at
            while n < run.n and self._goes_on(run.exposure(n), now, finish):
                n += 1
                if n - at > 1000 and run.exposure(n).stop < now:  # long runs: counted, not walked
                    n = min(run.n, max(n, int((now - run.start - run.count) / run.period)))
            if n > at:
                kept.append(replace(run, n=n))
        if not (kept and kept[0].first == (self._runs[0].first if self._runs else -1)):
            self._at = 0
        self._runs = kept
        end = now
        for run in kept:
            end = max(end, run.exposure(run.n - 1).stop)
        self.busy_until = end

    @staticmethod
    def _goes_on(exposure: Exposure, now: float, finish: bool) -> bool:
        return exposure.stop <= now or (finish and exposure.start <= now)

    def discard(self) -> int:
        """Forget what is not handed out; how many exposures these were."""
        lost = sum(run.n for run in self._runs) - self._at
        self._runs.clear()
        self._at = 0
        return lost
