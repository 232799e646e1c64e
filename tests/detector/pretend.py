"""A pretended backend and a pretended receiver: they do what they are told, so that every error can be provoked."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.receiver import Picture, Receiver, ReceiverError
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.stats import Snapshot


class PretendReceiver(Receiver):
    """A snapshot that tests and the pretended backend change."""

    name = "pretended/receiver/1"

    def __init__(self) -> None:
        self.now = Snapshot()
        self.calls: list[str] = []
        self.unreachable = False
        self.opens = self.closes = self.stops = True
        self.refusal = ""
        self.shown: Picture | None = Picture(3, np.zeros((2, 3), np.uint16))

    def _asked(self, what: str) -> None:
        self.calls.append(what)
        if self.unreachable:
            raise ReceiverError(f"receiver {self.name}: does not answer")

    def snapshot(self) -> Snapshot:
        if self.unreachable:
            raise ReceiverError(f"receiver {self.name}: does not answer")
        return self.now

    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str:
        self._asked(f"check {path} {nbytes}")
        return self.refusal

    def stop(self, series: int) -> None:
        self._asked(f"stop {series}")
        if self.stops:
            self.end(series)

    def reset(self) -> None:
        self._asked("reset")
        self.now = replace(self.now, state="idle", error="")

    def restart(self) -> None:
        self._asked("restart")
        self.now = Snapshot()

    def last_frame(self) -> Picture | None:
        if self.unreachable:
            raise ReceiverError(f"receiver {self.name}: does not answer")
        return self.shown

    def last_number(self) -> int:
        picture = self.last_frame()
        return picture.number if picture else -1

    def close(self) -> None:
        self.calls.append("close")

    # what the stream would tell it

    def begin(self, series: Series) -> None:
        if self.opens:
            self.now = replace(
                self.now,
                state="running",
                series=series.id,
                opened=series.id,
                openings=self.now.openings + 1,
                file=series.filename,
                expected=series.n_frames,
                **dict.fromkeys(("received", "written", "missing", "discarded", "rejected", "repeated"), 0),
            )

    def frame(self) -> None:
        self.now = replace(self.now, received=self.now.received + 1, written=self.now.written + 1)

    def end(self, series: int) -> None:
        if self.closes and self.now.opened == series:
            state = "error" if self.now.state == "error" else "idle"
            closings = self.now.closings + 1
            self.now = replace(
                self.now, state=state, closed=series, closings=closings, last_file=self.now.file, file=""
            )


@dataclass(frozen=True)
class PretendOptions:
    """None."""


class Pretend(Backend):
    """Gives a frame to the receiver at each `status` that it is asked for, unless it is told otherwise."""

    Options: ClassVar[type] = PretendOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(
        {TriggerMode.INTERNAL, TriggerMode.SOFTWARE, TriggerMode.EXTERNAL_MULTI, TriggerMode.EXTERNAL_GATE}
    )
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("Temperature", float, "Temperature of nothing", lambda b: b.temperature, max_alarm=50.0),
    )

    def __init__(self, options: PretendOptions | None = None, receiver: PretendReceiver | None = None) -> None:
        self.receiver = receiver or PretendReceiver()
        self.errors: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.temperature = 20.0
        self.silent_at = -1
        self.blocked = False
        self.lose = 0
        self.sends_end = True
        self.block_arm = False
        self.own_number: int | None = None
        self.remark = ""
        self.now = Status(Phase.IDLE)
        self.series: Series | None = None
        self.kept: tuple[int, Any] | None = None
        self._freed = threading.Event()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if error := self.errors.get(name):
            raise error

    def connect(self) -> DetectorInfo:
        self._called("connect")
        return DetectorInfo("Pretended", "0", (10, 20), (1e-6, 1e-6), "Si")

    def close(self) -> None:
        self._called("close")

    def configure(self, settings: Settings) -> Settings:
        self._called("configure")
        if settings.bit_depth == 13:
            raise ConfigError("BitDepth: 13 brings bad luck; can be 16")
        return replace(settings, exposure_time=round(settings.exposure_time, 3))

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        return (10, 20), "uint16"

    def arm(self, series: Series) -> int | None:
        self._called("arm")
        if self.own_number is not None:
            series = replace(series, id=self.own_number)
        self.series = series
        self.now = Status(Phase.ARMED)
        if self.block_arm:
            self._freed.clear()
            if not self._freed.wait(30):
                raise HardwareError("nobody has freed me")
            raise HardwareError("arming was interrupted")
        self.receiver.begin(series)
        return self.own_number

    def start(self) -> None:
        self._called("start")
        internal = self.series is not None and self.series.settings.trigger_mode is TriggerMode.INTERNAL
        self.now = Status(Phase.ACQUIRING, triggers=1 if internal else 0)

    def trigger(self) -> None:
        self._called("trigger")
        self.now = replace(self.now, triggers=self.now.triggers + 1)

    def stop(self) -> None:
        self._called("stop")
        self._freed.set()
        if self.now.phase in (Phase.ARMED, Phase.ACQUIRING):
            self.now = replace(self.now, phase=Phase.IDLE)
            self._end()

    def _end(self) -> None:
        if self.series and self.sends_end:
            self.receiver.end(self.series.id)

    def status(self) -> Status:
        if error := self.errors.get("status"):
            raise error
        now, series = self.now, self.series
        if now.phase is Phase.ACQUIRING and series and now.frames != self.silent_at and not self.blocked:
            due = 10**9 if series.live else max(1, series.settings.n_starts) * series.settings.frames_per_start
            allowed = due if series.settings.n_starts == 0 else now.triggers * series.settings.frames_per_start
            if now.frames < min(due, allowed):
                if self.lose:
                    self.lose -= 1
                else:
                    self.receiver.frame()
                now = replace(now, frames=now.frames + 1)
            if now.frames >= due:
                missing = now.frames - self.receiver.now.written
                self.receiver.now = replace(self.receiver.now, missing=missing)
                self._end()
                now = replace(now, phase=Phase.DONE, message=self.remark)
            self.now = now
        return replace(now, blocked=self.blocked)

    def latency_time(self, settings: Settings) -> float:
        return 0.001

    def picture(self) -> tuple[int, Any] | None:
        return self.kept

    def endpoints(self) -> list[str]:
        return ["tcp://127.0.0.1:9999"]


def wait_for(what: str, condition: Any, limit: float = 10.0) -> Any:
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {limit} s for {what}"
        time.sleep(0.002)
    return value
