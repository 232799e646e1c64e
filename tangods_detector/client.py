"""A Detector from Python, itango or Jupyter: one call takes images and returns the file; Ctrl-C stops the detector."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tango
from numpy.typing import NDArray
from tango import DevState

from tangods_detector.display import Picture, bar, draw
from tangods_receiver.errors import ConfigError, DaqError, HardwareError, StreamError, WriteError

log = logging.getLogger(__name__)

READY = (DevState.ON, DevState.ALARM)
BUSY = (DevState.MOVING, DevState.RUNNING)
LOOK = 0.05  # s between two looks at a series
SILENT_LIMIT = 30.0  # s without an answer of the device before a series is given up
STOP_LIMIT = 30.0  # s from Stop until the file is closed
SEEN = (
    "State",
    "nFramesExpected",
    "nFramesAcquired",
    "nFramesReceived",
    "nFramesWritten",
    "nFramesMissing",
    "LastFilename",
    "LastError",
)
ERRORS = {kind.__name__: kind for kind in (ConfigError, HardwareError, StreamError, WriteError)}


class IncompleteSeries(DaqError):
    """The series is over and its file is closed, but not all frames are in it; `path` is the file, if there is one."""

    def __init__(self, text: str, path: Path | None) -> None:
        super().__init__(text)
        self.path = path


@dataclass(frozen=True)
class _Seen:
    """One look at the device."""

    state: DevState
    expected: int
    acquired: int
    received: int
    written: int
    missing: int
    filename: str
    error: str

    @property
    def path(self) -> Path | None:
        return Path(self.filename) if self.filename else None

    @property
    def done(self) -> int:
        """Frames that are where they should go: in the file, or at the receiver when there is none."""
        return self.written if self.filename else self.received


class DetectorClient:
    """One Detector device.

        det = DetectorClient("b1/dia/det1")
        path = det.acquire(n=100, exposure=0.01, file="x.h5")
        det.plot()

    `acquire` waits until the file is closed. Ctrl-C, and any error, while it waits stops the detector, so that the file
    is closed with what came. For series that need more than waiting, `with` does the same:

        with DetectorClient("b1/dia/det1") as det:
            det.arm(exposure=0.01, file="x.h5", mode="SOFTWARE", triggers=5)
            for position in positions:
                move(position)
                det.trigger()
            path = det.wait()

    Refusals and faults are raised as what they are: ConfigError (a setting, the file), HardwareError (the detector),
    WriteError (storage), DaqError for all else, each with the device's own sentence. `proxy` is the tango.DeviceProxy,
    for everything that has no method here."""

    def __init__(self, device: str | tango.DeviceProxy, progress: bool = True) -> None:
        """`device`: its name, alias or proxy. `progress`: a bar while `acquire` and `wait` wait, in a terminal or
        notebook. ConfigError: there is no such device."""
        self._progress = progress
        self._begun = False
        if isinstance(device, tango.DeviceProxy):
            self.proxy = device
            return
        try:
            self.proxy = tango.DeviceProxy(device)
        except tango.DevFailed as exc:
            raise ConfigError(f"{device}: {_sentence(exc)}; is it registered, and TANGO_HOST right?") from exc

    def __enter__(self) -> DetectorClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """A series that was begun here and still runs is stopped; its file is closed."""
        if self._begun:
            self._stop_after(exc)

    def __repr__(self) -> str:
        return f"DetectorClient({self.name!r})"

    @property
    def name(self) -> str:
        """Of the device: domain/family/member."""
        return str(self.proxy.dev_name())  # unlike name() it does not ask the device

    @property
    def state(self) -> DevState:
        """ON or ALARM: ready. MOVING, RUNNING: a series is under way."""
        with self._asked("for its state"):
            return self.proxy.state()

    @property
    def status(self) -> str:
        """What the detector does, or what is wrong with it and what to do, in a sentence."""
        with self._asked("for its status"):
            return str(self.proxy.status())

    # --- series ------------------------------------------------------------------------------------------------------

    def acquire(
        self,
        n: int = 1,
        exposure: float | None = None,
        file: str | os.PathLike[str] = "",
        *,
        period: float = 0.0,
        mode: str = "INTERNAL",
        triggers: int = 1,
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Path | None:
        """Take a series and wait until it is in its file; returns the file's whole path on the receiver's computer.

        `n` frames for each of `triggers` triggers; `exposure` and `period` (from frame to frame; 0: as fast as
        possible) in s; `exposure`, `label` and `metadata` None: as they are set. `file` "": no file, and None is
        returned; to a name that does not begin with / the property FilenamePattern applies. In `mode` SOFTWARE all
        triggers are given, one after the other; in EXTERNAL modes they are waited for, at most `timeout` s (None: for
        ever).
        Raises as the class says; IncompleteSeries (with `path`) where frames are missing or somebody stopped it."""
        try:
            self.arm(n, exposure, file, period=period, mode=mode, triggers=triggers, label=label, metadata=metadata)
            if mode.strip().upper() == "SOFTWARE":
                for _ in range(triggers):
                    self.trigger()
            return self.wait(timeout)
        except BaseException as exc:  # Ctrl-C too: nobody else would end the series
            if self._begun:
                self._stop_after(exc)
            raise

    def arm(
        self,
        n: int = 1,
        exposure: float | None = None,
        file: str | os.PathLike[str] = "",
        *,
        period: float = 0.0,
        mode: str = "INTERNAL",
        triggers: int = 1,
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a series and return; the arguments are those of `acquire`. Then `trigger` and `wait`."""
        settings = {
            "TriggerMode": mode,
            "nTriggers": triggers,
            "nFramesPerTrigger": n,
            "ExposureTime": exposure,
            "FrameTime": period,
            "DestinationFilename": os.fspath(file),
            "Label": label,
            "Metadata": None if metadata is None else json.dumps(dict(metadata)),
        }
        for name, value in settings.items():
            if value is not None:
                with self._asked(f"for {name} = {value!r}"):
                    self.proxy.write_attribute(name, value)
        self._begin("Arm")

    def live(self) -> None:
        """Images without a file until `stop`, for a live view."""
        self._begin("Live")

    def trigger(self, timeout: float = 30.0) -> None:
        """Give one software trigger as soon as the detector takes one, and wait until its frames are taken.

        DaqError: they were not after the time of their exposures plus `timeout` s."""
        end = time.monotonic() + timeout
        while (seen := self._look()).state == DevState.MOVING:
            self._in_time(end, "it is still being armed")
        with self._asked("for a trigger"):
            n, exposure, period = (
                self.proxy.read_attribute(name).value for name in ("nFramesPerTrigger", "ExposureTime", "FrameTime")
            )
            self.proxy.command_inout("SoftwareTrigger")
        due = seen.acquired + n
        end += n * max(exposure, period)
        while (seen := self._look()).acquired < due:
            if seen.state not in BUSY:
                self._outcome(seen)
                raise DaqError(f"{self.name}: the series ended before the frames of this trigger were taken")
            self._in_time(end, f"{due - seen.acquired} of {n} frames of the trigger are not taken")

    def wait(self, timeout: float | None = None) -> Path | None:
        """Wait until the running series is over; returns and raises as `acquire` does. After `timeout` s (None: for
        ever), Ctrl-C or an error the series is stopped."""
        end = None if timeout is None else time.monotonic() + timeout
        try:
            with bar(self.name, self._progress) as step:
                while (seen := self._look()).state in BUSY:
                    step(seen.done, seen.expected or None)
                    if end is not None and time.monotonic() > end:
                        raise DaqError(f"{self.name}: {seen.done} of {seen.expected} frames after {timeout:g} s")
                    time.sleep(LOOK)
                seen = self._look()  # now of the end: the first may have come while the last frames were counted
                step(seen.done, seen.expected or None)
        except BaseException as exc:  # Ctrl-C too: nobody else would end the series
            self._stop_after(exc)
            raise
        self._begun = False
        return self._outcome(seen)

    def stop(self) -> None:
        """End the series, wait until its file is closed; harmless when none runs. DaqError: it is not after 30 s."""
        self._begun = False
        with self._asked("to stop"):
            self.proxy.command_inout("Stop")
        end = time.monotonic() + STOP_LIMIT
        while self._look().state in BUSY:
            self._in_time(end, "it does not stop")

    # --- images ------------------------------------------------------------------------------------------------------

    def image(self) -> NDArray[np.float32]:
        """The newest image of the running or last series, rows x columns, float32; DaqError: there is none yet."""
        with self._asked("for its last image"):
            image = self.proxy.read_attribute("LastImage").value
        if image is None or not image.size:
            raise DaqError(f"{self.name}: there is no image yet; take one")
        return np.asarray(image, np.float32)

    def plot(self, image: NDArray[Any] | None = None, log: bool = True) -> Picture:
        """Draw an image (rows x columns; None: the newest), colours logarithmic or not. ConfigError: matplotlib, which
        draws it, is not there."""
        return draw(self.image() if image is None else image, self.name, log)

    # --- the device --------------------------------------------------------------------------------------------------

    def _begin(self, command: str) -> None:
        self._begun = True  # before it is: Ctrl-C may come while the device answers
        try:
            with self._asked(f"to {command}"):
                self.proxy.command_inout(command)
        except DaqError as exc:
            # refused: what runs may be somebody else's; without an answer it may be ours
            self._begun = isinstance(exc.__cause__, tango.CommunicationFailed)
            raise

    def _outcome(self, seen: _Seen) -> Path | None:
        if seen.state not in READY:
            raise HardwareError(f"{self.name}: the series failed, {seen.state}: {seen.error or self.status}")
        if seen.done < seen.expected:
            where = f", in {seen.path}" if seen.path else ""
            why = f"{seen.missing} lost" if seen.missing else "it was stopped"
            raise IncompleteSeries(
                f"{self.name}: {seen.done} of {seen.expected} frames{where}: {why}. {seen.error}".strip(), seen.path
            )
        return seen.path

    def _look(self) -> _Seen:
        """Repeated while the device does not answer: a server that is busy must not end a series of hours."""
        end = time.monotonic() + SILENT_LIMIT
        while True:
            try:
                with self._asked("how the series goes"):
                    return _Seen(*(reply.value for reply in self.proxy.read_attributes(list(SEEN))))
            except DaqError:
                if time.monotonic() > end:
                    raise
                time.sleep(LOOK)

    def _in_time(self, end: float, what: str) -> None:
        """Until the next look; DaqError after `end`."""
        if time.monotonic() > end:
            raise DaqError(f"{self.name}: waited in vain: {what}. {self.status}")
        time.sleep(LOOK / 5)

    def _stop_after(self, exc: BaseException | None) -> None:
        """Stop; while an error is on its way, one of stopping is only told."""
        try:
            self.stop()
        except DaqError as failed:
            if exc is None:
                raise
            log.error("%s could not be stopped: %s", self.name, failed)

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except tango.ConnectionFailed as exc:
            raise DaqError(f"{self.name}, asked {what}: {_sentence(exc)}; check that its server runs") from exc
        except tango.DevFailed as exc:
            kind = ERRORS.get(exc.args[0].reason, DaqError)
            raise kind(f"{self.name}, asked {what}: {_sentence(exc)}") from exc


def _sentence(exc: tango.DevFailed) -> str:
    return str(exc.args[0].desc).strip().partition("\n")[0]
