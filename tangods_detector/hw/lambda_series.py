"""A series of a Lambda unit, from its arming to the end of all its modules, in the thread of the unit."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from tangods_detector.hw.lambda_hardware import Hardware
from tangods_detector.hw.lambda_job import Course, Job, Look
from tangods_detector.hw.lambda_stream import RANGES, ModuleStream
from tangods_detector.hw.lambda_system import ModuleStatus
from tangods_detector.orders import Refused
from tangods_receiver.errors import HardwareError
from tangods_receiver.security import Guard

log = logging.getLogger(__name__)

PAUSE = 0.005  # s


@dataclass(frozen=True)
class UnitOptions:
    """Module k of the unit is sent at `port` + k (0: any free ones), and is number `first` + k of the whole image;
    `memory` bytes of its frames may be with libzmq at a time; `guard` (`security.guard`) says who may connect, None:
    everybody.

    Limits in s: `start` for the hardware to begin, `stop` for it to end and for a receiver that takes nothing then,
    `lag` for a module that sends nothing after the others of the unit are over, `deaf` for a unit that does not tell of
    its modules."""

    host: str = "127.0.0.1"
    port: int = 9010
    first: int = 0
    memory: int = 512 << 20
    guard: Guard | None = None
    start: float = 5.0
    stop: float = 5.0
    lag: float = 10.0
    deaf: float = 5.0


class UnitSeries:
    """One arm. `phase` arming, armed, running, ending, done, error; `fault` why it will be in error; `halted` no more
    is asked of the hardware, `stopped` what did not come is not missing; `starts` that the hardware has taken."""

    def __init__(self, hardware: Hardware, streams: Sequence[ModuleStream], job: Job, limits: UnitOptions) -> None:
        self.job = job
        self.phase = "arming"
        self.fault = ""
        self.halted = self.stopped = False
        self.starts = 0
        self._hardware, self._streams, self._limits = hardware, streams, limits
        self._course = Course(job)
        self._give_up_at = inf

    @property
    def over(self) -> bool:
        """Nothing is left to be done."""
        return self.phase in ("done", "error")

    # --- from arm to stop --------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Send the start messages; what does not succeed ends the series."""
        for stream in self._streams:
            stream.begin(self._course)
        while any(stream.phase == "arming" for stream in self._streams):
            if self._hardware.interrupt.wait(PAUSE):
                self.give_up()
        if wrong := _wrong(self._streams):
            self.fault, self.phase = wrong, "running"
            self.halted = self.stopped = True  # who has begun sends an end message
            self._course.halted_at = time.monotonic()
            return
        log.info("series %d: armed, %d frames of %d modules", self.job.series, self.job.nframes, len(self._streams))
        self.phase = "armed"

    def next_start(self) -> int:
        """Which one would be begun now. Refused: none can be."""
        course = self._course
        if self.phase not in ("armed", "running") or self.halted:
            raise Refused(f"start: the unit is {'stopping' if self.halted else self.phase}; arm it first")
        if course.starts * self.job.per_start >= self.job.nframes:
            raise Refused(f"start: all {self.job.nframes} frames were asked for already")
        if self._still_sending() and self._hardware.busy:
            raise Refused(f"start: the unit is busy with the one before, number {course.starts}")
        return course.starts + 1

    def start(self) -> None:
        """Begin; returns when every module is busy, or has sent. What does not succeed ends the series."""
        course, hardware = self._course, self._hardware
        try:
            hardware.wait_for(lambda look: self._still_sending(), self._limits.stop)
            course.confirmed_at = inf
            for stream in self._streams:
                stream.came = False
            course.starts += 1
            self.phase, begun = "running", time.monotonic()
            hardware.system.start()
            hardware.wait_for(lambda look: self._not_begun(look, begun), self._limits.start)
        except HardwareError as exc:
            if not hardware.interrupt.is_set():  # else a stop follows
                self.fail(f"start: {exc}")
            return
        course.confirmed_at, self.starts = time.monotonic(), course.starts

    def _still_sending(self) -> str:
        late = [stream.name for stream in self._streams if stream.finished < self._course.starts and not stream.over]
        return f"{', '.join(late)} still has frames of the start before" if late else ""

    def _not_begun(self, look: Look, begun: float) -> str:
        lazy = [
            stream.name
            for stream, module in zip(self._streams, look.modules, strict=False)
            if not stream.over and (look.at < begun or not (module.busy or module.frames_queued or stream.came))
        ]
        return f"{', '.join(lazy)} did not begin, the start was ignored" if lazy else ""

    def halt(self, stopped: bool = True) -> None:
        """The hardware stops; what the rings hold is sent."""
        if self.halted or self.over:
            return
        self.halted, self.stopped = True, stopped
        self._give_up_at = time.monotonic() + self._limits.stop
        try:
            self._hardware.system.stop()
        except HardwareError as exc:
            self.fault = self.fault or str(exc)
            self.give_up()
        self._course.halted_at = time.monotonic()

    def fail(self, sentence: str, stopped: bool = True) -> None:
        """Stop; it ends in error."""
        self.fault = self.fault or sentence
        log.warning("series %d: %s", self.job.series, sentence)
        self.halt(stopped)

    def give_up(self) -> None:
        """Nothing is waited for any longer, and what was not sent is lost."""
        self._course.given_up.set()
        for stream in self._streams:
            stream.abort()

    def finish_now(self, limit: float) -> None:
        """End it whatever is missing; returns when the modules are done with it, or after `limit` s."""
        self.halt()
        self.give_up()
        self._course.ending.set()
        end = time.monotonic() + limit
        while not self._settled and time.monotonic() < end:
            time.sleep(PAUSE)
        self._finish()

    # --- on its way --------------------------------------------------------------------------------------------------

    @property
    def _settled(self) -> bool:
        return all(stream.phase in ("done", "error") for stream in self._streams)

    def watch(self) -> None:
        """Look how far it is; often."""
        if self.phase not in ("armed", "running", "ending"):
            return
        streams, hardware, now = self._streams, self._hardware, time.monotonic()
        if self._settled:
            self._finish()
            return
        if all(stream.over for stream in streams):
            self.phase = "ending"
            self._course.ending.set()
            return
        self.fault = self.fault or _wrong(streams)  # the other modules go on
        newest = max(stream.last for stream in streams)
        late = ", ".join(stream.name for stream in streams if not stream.over)
        if hardware.look.error and now - hardware.heard > self._limits.deaf:
            self.fail(f"the unit does not tell of its modules: {hardware.look.error}", stopped=False)
            self.give_up()
        elif self.halted:
            if now > max(self._give_up_at, newest + self._limits.stop):
                self.fault = self.fault or f"{late} did not come to an end after a stop"
                self.give_up()
        elif self._was_reset:
            self.fail("no module is busy or ready: the hardware was restarted, or reset by hand", stopped=False)
        elif self._some_are_through and not any(stream.blocked for stream in streams):
            if now - newest > self._limits.lag:
                self.fail(f"{late} sent nothing for {self._limits.lag:g} s after the others were over", stopped=False)

    @property
    def _was_reset(self) -> bool:
        """All modules of the unit are at their beginning again; where it is but one, the others go on."""
        look = self._hardware.look
        told = [one.busy or one.ready for one in look.modules]
        return look.at > self._course.confirmed_at and bool(told) and not any(told)

    @property
    def _some_are_through(self) -> bool:
        """Modules that are well have come to the end of the series: the others should, too."""
        told = zip(self._streams, self._hardware.look.modules, strict=False)
        return any(stream.over and not stream.error and one.connected and one.ready for stream, one in told)

    def _finish(self) -> None:
        self.fault = self.fault or _wrong(self._streams)
        if not self.halted and any(stream.missing(False)[0] for stream in self._streams):
            unready = self._hardware.not_ready(self._hardware.look_now(), voltage=False)
            self.fault = self.fault or unready
        self.phase = "error" if self.fault else "done"
        frames, words = self.frames, self.sentence()
        log.info(
            "series %d: %s, %d of %d frames%s",
            self.job.series,
            self.phase,
            frames,
            self.job.nframes,
            f"; {words}" if words else "",
        )

    # --- what is told ------------------------------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """That all modules have sent, or missed for good."""
        return min((self._behind(stream) for stream in self._streams), default=0)

    def _behind(self, stream: ModuleStream) -> int:
        if self.stopped:
            return stream.ledger.highest + 1
        if stream.over:
            return self.job.nframes
        return max(stream.ledger.highest + 1, stream.finished * self.job.per_start)

    def sentence(self) -> str:
        """What is not as it should be."""
        found = [self.fault]
        for stream in self._streams if self.phase in ("ending", "done", "error") else ():
            missing, ranges = stream.missing(self.stopped)
            if missing:
                found.append(f"{stream.name}: {missing} of {self.job.nframes} frames missing: {_words(ranges)}")
            if stream.remark:
                found.append(f"{stream.name}: {stream.remark}")
        return "; ".join(dict.fromkeys(word for word in found if word))


def told(stream: ModuleStream, status: ModuleStatus, stopped: bool) -> dict[str, Any]:
    """A module, for the status."""
    missing, numbers = stream.missing(stopped)
    flags = asdict(status)
    return {
        "module": stream.number,
        "name": stream.name,
        "queued": flags.pop("frames_queued"),
        **flags,
        "sent": stream.sent,
        "missing": missing,
        "missing_numbers": numbers,
        "incomplete": stream.incomplete,
        "repeated": stream.repeated,
        "foreign": stream.foreign,
        "failed": stream.failed,
        "blocked": stream.blocked,
        "over": stream.over,
    }


def _wrong(streams: Sequence[ModuleStream]) -> str:
    found = [(stream.name, stream.error) for stream in streams if stream.error]
    if len({error for _, error in found}) == 1 and len(found) > 1:
        return f"{', '.join(name for name, _ in found)}: {found[0][1]}"
    return "; ".join(f"{name}: {error}" for name, error in found)


def _words(ranges: Sequence[Sequence[int]]) -> str:
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:10]]
    return ", ".join(shown) + (", ..." if len(ranges) > 10 or len(ranges) == RANGES else "")
