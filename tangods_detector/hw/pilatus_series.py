"""One armed series of a Pilatus: what camserver is told for it, and where it is. No sockets, threads or files."""

from __future__ import annotations

import math
import posixpath
from dataclasses import dataclass
from typing import Any

from tangods_detector.hw.base import Phase, Status
from tangods_detector.hw.pilatus_client import StreamStatus
from tangods_detector.hw.pilatus_replies import Reply
from tangods_detector.hw.pilatus_watcher import Pattern
from tangods_detector.settings import Settings, TriggerMode

COMMANDS = {
    TriggerMode.INTERNAL: "exposure",
    TriggerMode.SOFTWARE: "exposure",
    TriggerMode.EXTERNAL_SINGLE: "exttrigger",
    TriggerMode.EXTERNAL_MULTI: "extmtrigger",
    TriggerMode.EXTERNAL_GATE: "extenable",
}
WORDS = 2.0  # s after the last image in which camserver says that the exposure is over


@dataclass(frozen=True)
class Plan:
    """`exposures` commands of `nimages` images each (0: without an end); `ours`: we send them, when it is time."""

    command: str
    nimages: int
    exposures: int
    ours: bool
    prefix: str

    @classmethod
    def of(cls, settings: Settings, series: int, nimages: int = 0) -> Plan:
        """`nimages` of each command of a live series (0: it is none)."""
        mode, prefix = settings.trigger_mode, f"s{series:05d}_"
        if nimages:
            return cls("exposure", nimages, 0, True, prefix)
        if mode is TriggerMode.SOFTWARE:
            return cls("exposure", settings.n_frames_per_trigger, settings.n_triggers, True, prefix)
        return cls(COMMANDS[mode], settings.n_frames, 1, mode is TriggerMode.INTERNAL, prefix)

    @property
    def pattern(self) -> str:
        """Of the files' names."""
        return f"{self.prefix}%05d.cbf"

    @property
    def total(self) -> int | None:
        return self.nimages * self.exposures or None

    def line(self, exposure: int) -> str:
        """The command of one exposure, from 0; file numbers go on from the one before."""
        return f"{self.command} {self.pattern % (exposure * self.nimages)}"

    def belongs(self, exposure: int, name: str) -> bool:
        """Is this the file of an image of that exposure?"""
        number = Pattern.parse(self.pattern).number(posixpath.basename(name))
        first = exposure * self.nimages
        return number is not None and first <= number < first + self.nimages


class Run:
    """An armed series. Times are told, in s of time.monotonic()."""

    def __init__(self, plan: Plan, series: int) -> None:
        self.plan, self.series = plan, series
        self.begun = self.stopped = False
        self.finished = False  # the streamer was told that there will be no more
        self.sent = self.ended = 0  # exposure commands; those that are over
        self.failure = ""
        self.remark = ""
        self.order: dict[str, Any] = {}  # that the streamer got
        self.stream = StreamStatus("armed")
        self.connections_lost = 0  # by the streamer, until the series was armed
        self._before = 0  # images that a streamer had sent which has died
        self._done_since = 0.0
        self._was_complete = False
        self._ended_badly = False  # by 7 ERR

    def exposure_over(self, end: Reply) -> None:
        """camserver has said 7."""
        self.ended += 1
        if not end.ok and not self.stopped:
            self._ended_badly = True
            self.remark = self.remark or f"camserver has ended the exposure with {end}"

    def all_exposed(self) -> bool:
        """No more exposures follow."""
        return 0 < self.plan.exposures <= self.ended

    def see(self, stream: StreamStatus, now: float) -> None:
        """What the streamer says of this series."""
        self.stream = stream
        if stream.phase == "error" and not self.stopped:
            self.failure = self.failure or stream.message or "the stream of images has failed"
        if stream.phase != "done":
            self._done_since = 0.0
        elif not self._done_since:
            self._done_since = now

    def streamer_restarted(self) -> None:
        """It counts anew."""
        self._before += self.stream.sent
        self.remark = self.remark or "the streamer was started again in the series; it went on"

    @property
    def frames(self) -> int:
        """Handed to the stream."""
        sent = self._before + self.stream.sent
        return sent if self.plan.total is None else min(sent, self.plan.total)

    @property
    def busy(self) -> bool:
        """An exposure is not over."""
        return self.sent > self.ended

    def overdue(self, now: float) -> bool:
        """All images are there, and camserver does not say that they are all."""
        return bool(self.busy and self._done_since and now - self._done_since > WORDS)

    def words_are_missing(self) -> None:
        """Go on without them."""
        self.ended = self.sent
        self.remark = self.remark or "camserver has not said that the exposure is over (7)"

    @property
    def complete(self) -> bool:
        """It ended by itself."""
        return self._was_complete if self.stopped else self.all_exposed() and self.stream.phase == "done"

    def stop(self) -> None:
        """What comes from now on does not count as the end."""
        self._was_complete, self.stopped = self.complete, True

    @property
    def status(self) -> Status:
        stream, plan = self.stream, self.plan
        each = 1 if plan.command in ("extmtrigger", "extenable") else plan.nimages
        triggers = self.sent if plan.ours else math.ceil(self.frames / each)
        message = "; ".join(filter(None, (self.remark, stream.message)))
        lost = self._ended_badly and stream.lost and self.complete and not self.stopped
        failure = self.failure or (message if lost else "")
        return Status(self._phase(bool(failure)), self.frames, triggers, failure or message, stream.blocked)

    def _phase(self, failed: bool) -> Phase:
        if failed:
            return Phase.ERROR
        if self.complete:
            return Phase.DONE
        if self.stopped:
            return Phase.IDLE
        return Phase.ACQUIRING if self.begun else Phase.ARMED
