"""One armed series of an EIGER: how its triggers are numbered, and the thread that sends them, since each blocks."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tangods_detector.hw.base import Phase, Status
from tangods_detector.settings import Settings, TriggerMode
from tangods_receiver.errors import ConfigError, DaqError, HardwareError

log = logging.getLogger(__name__)

ONE_IMAGE = ("inte", "exte")  # modes that the unit refuses unless nimages is 1
ENDLESS = 2_000_000_000  # images of a live series


@dataclass(frozen=True)
class Plan:
    """What SIMPLON is told: `nimages` follow each of `ntrigger` triggers; `ours`: we send them."""

    mode: str
    nimages: int
    ntrigger: int
    ours: bool

    @classmethod
    def of(cls, settings: Settings, live: bool = False, own_exposure: bool = False) -> Plan:
        """`own_exposure`: each software trigger says how long it exposes. ConfigError: that takes single frames."""
        mode, each = settings.trigger_mode, settings.n_frames_per_trigger
        if live:
            return cls("ints", ENDLESS, 1, True)
        if mode is TriggerMode.EXTERNAL_SINGLE:
            return cls("exts", settings.n_frames, 1, False)
        if mode is TriggerMode.EXTERNAL_MULTI:
            return cls("exts", each, settings.n_triggers, False)
        if mode is TriggerMode.EXTERNAL_GATE:
            return cls("exte", 1, settings.n_frames, False)
        if mode is TriggerMode.SOFTWARE and own_exposure:
            if each != 1:
                raise ConfigError(
                    f"nFramesPerTrigger {each}: with TriggerExposure each trigger is one frame; set it to 1"
                )
            return cls("inte", 1, settings.n_triggers, True)
        return cls("ints", each, settings.n_triggers, True)

    def writes(self, mode_now: str) -> list[tuple[str, object]]:
        """Keys of detector/config in an order that the unit accepts: nimages 1 before a mode that needs it, the mode
        before more images where the present one forbids them."""
        numbers: list[tuple[str, object]] = [("nimages", self.nimages), ("ntrigger", self.ntrigger)]
        mode: tuple[str, object] = ("trigger_mode", self.mode)
        return [*numbers, mode] if self.mode in ONE_IMAGE and mode_now not in ONE_IMAGE else [mode, *numbers]


class Run(threading.Thread):
    """An armed series. `fire(exposure)` sends one trigger and returns when its images are exposed, or raises.

    Frames that the unit has taken are those of triggers that returned and those that the receiver has, whichever are
    more; it has no counter of its own."""

    def __init__(self, plan: Plan, settings: Settings, fire: Callable[[float], None]) -> None:
        super().__init__(name="eiger triggers", daemon=True)
        self.plan, self._settings, self._fire = plan, settings, fire
        self._changed = threading.Condition()
        self._exposures: deque[float] = deque()  # of triggers that are accepted, and not sent yet
        self._endless = False  # triggers follow each other without being asked for
        self.sent = self.returned = self.came = 0
        self.begun = self.stopped = False
        self.finished = False  # says the unit: it has taken all that it will
        self.failure = ""
        self.remark = ""

    def begin(self) -> None:
        """Triggers may come; ours are sent."""
        with self._changed:
            self.begun = True
            self._endless = self._settings.trigger_mode is not TriggerMode.SOFTWARE or self.plan.nimages == ENDLESS
        if self.plan.ours and not self.stopped:
            self.start()

    def trigger(self, exposure: float) -> None:
        """One more; HardwareError when none is waited for."""
        with self._changed:
            if not self.begun or self.stopped or not self.plan.ours or self._endless or self.sent >= self.plan.ntrigger:
                raise HardwareError("software trigger refused: none is waited for")
            if self._exposures or self.sent > self.returned:
                raise HardwareError(
                    f"software trigger refused: busy with trigger {self.sent}; "
                    "send the next one when nFramesAcquired has gone up"
                )
            self._exposures.append(exposure)
            self._changed.notify_all()

    def stop(self) -> None:
        """No more triggers; the one that blocks is ended by the unit."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def leave(self, limit: float) -> bool:
        """True: the thread has ended."""
        if self.is_alive():
            self.join(limit)
        return not self.is_alive()

    def run(self) -> None:
        try:
            while (exposure := self._next()) is not None:
                self._fire(exposure)
                with self._changed:
                    if not self.stopped:
                        self.returned += 1
        except DaqError as exc:
            self._failed(str(exc))
        except Exception as exc:  # outermost loop of this thread: it becomes the status
            log.exception("eiger triggers")
            self._failed(f"internal error: {exc!r}; see the log")

    def _next(self) -> float | None:
        """Exposure of the next trigger, when it is due; None: there is none any more."""
        with self._changed:
            while not self.stopped and self.sent < self.plan.ntrigger:
                if self._endless or self._exposures:
                    self.sent += 1
                    return self._exposures.popleft() if self._exposures else 0.0
                self._changed.wait()
        return None

    def _failed(self, sentence: str) -> None:
        with self._changed:
            if not self.stopped:
                self.failure = self.failure or sentence

    @property
    def status(self) -> Status:
        with self._changed:
            frames, plan = self.returned * self.plan.nimages, self.plan
            if not plan.ours or self.stopped or self.failure:
                frames = max(frames, self.came)
            else:  # those of a trigger are all there when it returns
                frames = max(frames, min(self.came, self.sent * plan.nimages - (self.sent > self.returned)))
            triggers = self.sent if plan.ours else math.ceil(frames / plan.nimages)
            return Status(self._phase(frames), frames, triggers, self.failure or self.remark)

    def _phase(self, frames: int) -> Phase:
        if self.failure:
            return Phase.ERROR
        plan = self.plan
        if self.returned >= plan.ntrigger if plan.ours else self.finished or frames >= plan.nimages * plan.ntrigger:
            return Phase.DONE
        if self.stopped:
            return Phase.IDLE
        return Phase.ACQUIRING if self.begun else Phase.ARMED


class Request(threading.Thread):
    """A question that may take minutes."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(name="eiger request", daemon=True)
        self._ask = ask
        self._deciding = threading.Lock()
        self._late: Callable[[], None] | None = None
        self._over = False
        self._answer: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._answer = self._ask()
        except Exception as exc:
            self._error = exc
        with self._deciding:
            self._over = True
        if self._late is not None and self._error is None:
            try:
                self._late()
            except DaqError as exc:
                log.warning("%s", exc)

    def leave(self, limit: float, late: Callable[[], None]) -> bool:
        """Wait so long, then no more: `late` is called if it is answered after that. True: the answer has come."""
        self.join(limit)
        with self._deciding:
            if not self._over:
                self._late = late
            return self._over

    def result(self) -> Any:
        """Of a question that is answered."""
        if self._error is not None:
            raise self._error
        return self._answer


def wait_until(moment: float, given_up: threading.Event) -> None:
    """A moment of time.monotonic(), or sooner."""
    given_up.wait(max(0.0, moment - time.monotonic()))
