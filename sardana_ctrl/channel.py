"""One Detector device as a channel of a measurement group: prepare, start, look, stop. A Tango client; no Sardana."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tango

from sardana_ctrl import naming
from sardana_ctrl.plan import Plan, PlanError, Request, Synch, plan
from sardana_ctrl.references import DATASET, Reference

IDLE = (tango.DevState.ON, tango.DevState.ALARM, tango.DevState.STANDBY)
BUSY = (tango.DevState.RUNNING, tango.DevState.MOVING)
LOOK = 0.003  # s between two looks at a device that is waited for
REST = 0.01  # s between two looks of a Pool, when nothing is due that somebody waits for
LEFT_LIMIT, LEFT_PAUSE = 5.0, 0.2  # s for a receiver to close what it was left with
STOP_LIMIT = 15.0  # s for a series of somebody else, or an old one, to end
NOT_KEPT = "not kept: neither Filename nor ValueRefPattern is set"  # instead of a reference
SERIES_RATE = 500.0  # Hz; above, one reference stands for a whole start in mode AUTO

Settings = dict[str, Any]


class ChannelError(RuntimeError):
    """What an operator reads: which channel, what it wanted, what the device said."""


def wait_all_ready(channels: Iterable[Channel], limit: float) -> None:
    """`limit` s for all of them together: they arm side by side. ChannelError: the arming of one failed."""
    end = time.monotonic() + limit
    for channel in channels:
        channel.wait_ready(max(0.0, end - time.monotonic()))


def said(exc: tango.DevFailed) -> str:
    """The device's own sentence."""
    return str(exc.args[0].desc).strip().removeprefix("ConfigError: ")


class Channel:
    """`starts` and `frames` count from the last prepare. Calls come from several threads of a Pool."""

    def __init__(self, device: str, name: Callable[[], str], dataset: str = DATASET) -> None:
        self.device, self._name, self._dataset = device, name, dataset
        self._proxy: tango.DeviceProxy | None = None
        self.refs_enabled = False
        self.pattern = ""
        self.filename = ""  # of the next series; goes before the pattern
        self.frames_per_point = 1
        self.reference_mode = "AUTO"
        self._named: tuple[str, int] = ("", 0)  # name asked for, how often it was armed
        self._lock = threading.Lock()
        self._armings = 0
        self._forget()

    def _forget(self) -> None:
        self._plan: Plan | None = None
        self._request: Request | None = None
        self._starts = 0  # begun since prepare
        self._due = 0.0  # when the frames of the last start may be there
        self._armed = False  # a series of ours runs, or has run to its end
        self._ready = False  # it was seen running
        self._path = ""
        self._given = 0  # points whose reference was handed out
        self._acquired = 0  # frames of this series, when `state` looked last
        self._points_before = 0  # of series that are over, when each start is one
        self._open = False  # frames of the last start were not seen to be all there
        self._stopped = False
        self._error = ""

    # --- the device --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name()

    @property
    def synch(self) -> Synch:
        """As it was prepared."""
        return self._request.synch if self._request is not None else Synch.SOFTWARE_TRIGGER

    @property
    def proxy(self) -> tango.DeviceProxy:
        if self._proxy is None:
            try:
                self._proxy = tango.DeviceProxy(self.device)
            except tango.DevFailed as exc:
                raise ChannelError(f"{self.name}: no device {self.device!r}: {said(exc)}") from exc
        return self._proxy

    def _do(self, what: str, act: Callable[[tango.DeviceProxy], Any]) -> Any:
        """ChannelError has the device's words."""
        try:
            return act(self.proxy)
        except tango.DevFailed as exc:
            raise ChannelError(f"{self.name} ({self.device}): {what}: {said(exc)}") from exc

    def _read(self, *names: str) -> list[Any]:
        def read(proxy: tango.DeviceProxy) -> list[Any]:
            return [value.value for value in proxy.read_attributes(list(names))]

        return list(self._do("reading " + ", ".join(names), read))

    def latency(self) -> float:
        return float(self._read("LatencyTime")[0])

    def shape(self) -> list[int]:
        """Rows, columns."""
        rows, columns = self._read("FrameShape")[0]
        return [int(rows), int(columns)]

    def missing(self) -> int:
        """Frames of the last series that are known to be lost."""
        return int(self._read("nFramesMissing")[0])

    # --- prepare -----------------------------------------------------------------------------------------------------

    def prepare(self, request: Request) -> None:
        """Settings written and, where triggers follow, armed: one series for all starts. ChannelError says why not.

        Returns before the detector is ready; `wait_ready` waits for it."""
        self._end_what_runs()
        with self._lock:
            self._forget()
        modes, latency = self._read("TriggerModes", "LatencyTime")
        try:
            chosen = plan(request, list(modes or ()), float(latency))
        except PlanError as exc:
            raise ChannelError(f"{self.name}: {exc}") from exc
        self._plan, self._request = chosen, request
        self._write(self._settings(chosen))
        if not chosen.arms_each_start:
            self._arm()

    def _settings(self, chosen: Plan) -> Settings:
        return {
            "ExposureTime": chosen.exposure,
            "FrameTime": chosen.frame_time,
            "TriggerMode": chosen.trigger_mode,
            "nTriggers": chosen.triggers,
            "nFramesPerTrigger": chosen.frames_per_trigger,
        }

    def _write(self, wanted: Settings) -> None:
        """Only what is different: each change may cost the hardware an answer."""
        names = [*wanted, "OverwritePolicy"]
        now = dict(zip(names, self._read(*names), strict=True))
        changed = [(name, value) for name, value in wanted.items() if now[name] != value]
        if now["OverwritePolicy"] == "OVERWRITE":  # a scan never takes the place of another
            changed.append(("OverwritePolicy", "ABORT"))
        if not changed:
            return
        try:
            self.proxy.write_attributes(changed)
        except tango.NamedDevFailedList as exc:
            first = exc.errors[0]
            text = str(first.err_stack[0].desc)
            raise ChannelError(f"{self.name} ({self.device}): {first.name}: {text}") from exc
        except tango.DevFailed as exc:
            raise ChannelError(f"{self.name} ({self.device}): {said(exc)}") from exc

    def _arm(self) -> None:
        path = self._next_name(self._plan)
        if path and not self._read("SaveRaw")[0]:
            raise ChannelError(
                f"{self.name} ({self.device}): SaveRaw is off, so nothing would be kept in {path}; switch it on"
            )
        if path or self._read("DestinationFilename")[0]:
            self._do("DestinationFilename", lambda proxy: proxy.write_attribute("DestinationFilename", path))
        self._arm_or_clear()
        with self._lock:
            self._armings, self._acquired = self._armings + 1, 0
        self._armed, self._ready = True, False
        self._path = self._read("LastFilename")[0] if path else ""

    def _arm_or_clear(self) -> None:
        """A detector that went away in mid-series has left its receiver busy: that is ended, and tried again."""
        end = time.monotonic() + LEFT_LIMIT
        while True:
            try:
                self._do("Arm", lambda proxy: proxy.command_inout("Arm"))
                return
            except ChannelError:
                state, receiver = self._read("State", "ReceiverState")
                if state not in IDLE or receiver != "running" or time.monotonic() > end:
                    raise
            self._do("Stop", lambda proxy: proxy.command_inout("Stop"))
            time.sleep(LEFT_PAUSE)

    def _next_name(self, chosen: Plan | None) -> str:
        """ "" without references, and for a single point that nobody gave a name: nothing is written."""
        if not self.refs_enabled:
            return ""
        pattern = (self.filename or self.pattern).removeprefix(naming.PREFIX)
        if not pattern and chosen is not None and chosen.frames <= chosen.frames_per_point:
            return ""
        if not pattern:
            raise ChannelError(
                f"{self.name}: value references are enabled but there is no file name: set ValueRefPattern, such as "
                "h5file:///data/{channel}_{number:04d}.h5, or Filename"
            )
        last, count = self._named
        count = count + 1 if pattern == last else 0
        self._named = pattern, count
        try:
            return naming.for_series(pattern, self.name, count)
        except naming.PatternError as exc:
            raise ChannelError(f"{self.name}: {exc}") from exc

    def wait_ready(self, limit: float) -> bool:
        """Until triggers are let through; False: not within `limit` s. ChannelError: the arming failed."""
        end = time.monotonic() + limit
        while self._armed and not self._ready and not self._stopped:
            state = self._do("State", lambda proxy: proxy.state())
            if state == tango.DevState.RUNNING or (state in IDLE and self._read("nFramesAcquired")[0]):
                self._ready = True
            elif state not in BUSY:
                raise ChannelError(f"{self.name} ({self.device}): did not arm: {self._status()}")
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(LOOK)
        return True

    def _status(self) -> str:
        state, status = self._read("State", "Status")
        return f"{state}: {status}"

    def _end_what_runs(self) -> None:
        """What was left armed, by us or by somebody else, is ended first."""
        state = self._do("State", lambda proxy: proxy.state())
        if state in BUSY:
            self._do("Stop", lambda proxy: proxy.command_inout("Stop"))
            end = time.monotonic() + STOP_LIMIT
            while (state := self._do("State", lambda proxy: proxy.state())) in BUSY:
                if time.monotonic() > end:
                    raise ChannelError(f"{self.name} ({self.device}): still busy {STOP_LIMIT:g} s after Stop")
                time.sleep(LOOK)
        if state not in IDLE:
            raise ChannelError(f"{self.name} ({self.device}): cannot start: {self._status()}")

    def fail(self, sentence: str) -> None:
        """Shown as Fault until the next prepare."""
        self._error = sentence

    # --- start and look ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """One start: a trigger in software modes, in INTERNAL mode a whole series. Errors show in the state."""
        chosen = self._plan
        if chosen is None:
            self._error = f"{self.name}: was not prepared"
            return
        with self._lock:
            self._starts += 1
            self._due = time.monotonic() + chosen.exposure * chosen.frames_per_start
        try:
            if chosen.arms_each_start:
                self._points_before = (self._starts - 1) * chosen.frames_per_start // chosen.frames_per_point
                self._arm()
            elif chosen.software:
                self._do("SoftwareTrigger", lambda proxy: proxy.command_inout("SoftwareTrigger"))
        except ChannelError as exc:
            self._error = str(exc)
        self._open = True

    def rest(self) -> float:
        """Seconds in which nothing ends that a motor waits for, so that a Pool need not look."""
        chosen = self._plan
        if chosen is None or not self._starts or self._stopped:
            return 0.0
        return max(0.0, min(REST, self._due - time.monotonic())) if chosen.software else REST

    def state(self) -> tuple[str, str]:
        """("On" | "Moving" | "Fault", sentence): On when the frames of the starts so far are there, and at the last
        start not before the file is closed.

        Before the first start it is On, whatever the detector does: a group that is Moving does not start, and one that
        was seen Moving before it starts makes its macro wait for ever."""
        if self._error:
            return "Fault", self._error
        try:
            state, acquired, status, is_open = self._look()
        except ChannelError as exc:
            return "Fault", str(exc)
        if state in IDLE:
            return self._when_idle(status, is_open)
        if state not in BUSY:
            return "Fault", f"{self.device} is {state}: {status}"
        chosen = self._plan
        if chosen is None or not self._starts:
            return "On", status
        if self._stopped:
            return "Moving", status
        due = self._starts * chosen.frames_per_start
        between = self._starts < chosen.starts and not chosen.arms_each_start
        if between and acquired >= due and state == tango.DevState.RUNNING:
            return "On", status
        return "Moving", status

    def _look(self) -> tuple[Any, int, str, bool]:
        """State, frames, status, and whether frames are still to come; all of one series, and the frames never fewer
        than before: several threads of a Pool look, and the one that looked first may be the last to tell."""
        while True:
            armings = self._armings
            state, acquired, status = self._read("State", "nFramesAcquired", "Status")
            with self._lock:
                if armings == self._armings:
                    self._acquired = max(self._acquired, int(acquired))
                    return state, self._acquired, status, self._open

    def _when_idle(self, status: str, is_open: bool) -> tuple[str, str]:
        """A series that ended before the frames that are due, and not by us, would give old images as new ones."""
        chosen = self._plan
        if chosen is None or not is_open or self._stopped:
            return "On", status
        there, due = self._acquired, chosen.frames_per_start * (1 if chosen.arms_each_start else self._starts)
        if there < due:  # a lost frame is not missing for us; some hardware counts it, of other it is known here
            try:
                received, missing = self._read("nFramesReceived", "nFramesMissing")
            except ChannelError as exc:
                return "Fault", str(exc)
            there = max(there, int(received) + int(missing))
        if there < due:
            return "Fault", (
                f"{self.device}: series ended after {there} of {chosen.frames} frames: stopped from outside? {status}"
            )
        self._acquired = there
        self._open = False
        return "On", status

    @property
    def busy(self) -> bool:
        try:
            return self._do("State", lambda proxy: proxy.state()) in BUSY
        except ChannelError:
            return False

    # --- what comes out ----------------------------------------------------------------------------------------------

    def reference(self) -> str:
        """Of the point that was started last."""
        chosen = self._plan
        if chosen is None or not self._starts:
            return ""
        if not self._path:
            return NOT_KEPT
        point = self._starts - 1 - self._points_before
        return str(self._frames_of(chosen, point))

    def new_references(self) -> list[str]:
        """Of the points whose frames were there when `state` looked last. One for all in mode SERIES."""
        chosen, request = self._plan, self._request
        if chosen is None or request is None or self._given >= request.points:
            return []
        if not self._path:  # a single point
            self._given = request.points
            return [NOT_KEPT]
        points = self._starts * chosen.frames_per_start // chosen.frames_per_point
        if self._whole_series(request):
            if self._given >= points:
                return []
            first, self._given = self._given, points
            k = chosen.frames_per_point
            return [str(Reference(self._path, self._dataset, first * k, points * k, points - first))]
        there = min(points, self._acquired // chosen.frames_per_point + self._points_before)
        first, self._given = self._given, max(self._given, there)
        return [str(self._frames_of(chosen, point - self._points_before)) for point in range(first, there)]

    def _frames_of(self, chosen: Plan, point: int) -> Reference:
        k = chosen.frames_per_point
        return Reference(self._path, self._dataset, point * k, point * k + k)

    def _whole_series(self, request: Request) -> bool:
        if self.reference_mode == "AUTO":
            period = request.integration + request.dead_time
            return request.repetitions > 1 and period * SERIES_RATE < 1
        return self.reference_mode == "SERIES" and request.repetitions > 1

    def image(self) -> np.ndarray[Any, Any]:
        """The newest image that the receiver has, rows x columns, float32."""
        return np.asarray(self._read("LastImage")[0])

    # --- end ---------------------------------------------------------------------------------------------------------

    def stop(self, abort: bool = False) -> None:
        """Returns at once; the state goes back to On when the file is closed."""
        self._stopped = True
        self._do("Abort" if abort else "Stop", lambda proxy: proxy.command_inout("Abort" if abort else "Stop"))

    def wait_idle(self, limit: float) -> bool:
        """Until the file of a stopped series is closed; False: not within `limit` s."""
        end = time.monotonic() + limit
        while self.busy:
            if time.monotonic() > end:
                return False
            time.sleep(LOOK)
        return True

    def disarm_leftover(self) -> None:
        """A Pool that was killed in mid-scan left the detector waiting for triggers that nobody will send."""
        try:
            state, mode = self._read("State", "TriggerMode")
            if state == tango.DevState.RUNNING and mode != "INTERNAL":
                self.stop()
        except ChannelError:
            pass  # not there now; prepare says so when it is needed
