"""How long the acquisition waits for what, and whether the frames come that are due."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from tangods_detector.hw.base import Status
from tangods_detector.settings import Series, TriggerMode
from tangods_receiver.errors import HardwareError

LOOK = 0.02  # s between two looks at hardware that runs
SOON = 0.002  # s, when a frame of a software trigger should be there: somebody waits for it to move a motor


@dataclass(frozen=True)
class Limits:
    """How long the acquisition waits, in seconds; what is derived from exposures is added to these."""

    reply: float = 2.6  # for a Tango command to get its answer; clients give up after 3 s
    opened: float = 5.0  # for the receiver to open the file
    closed: float = 10.0  # for the receiver to close the file, since it last did anything
    aborted: float = 2.0  # the same after Abort
    silent: float = 10.0  # without a frame that is due, besides two periods
    blocked: float = 120.0  # without a frame because the receiver takes none
    receiver: float = 3.0  # without an answer of the receiver during a series
    retry: float = 1.0  # between two attempts to reach hardware or receiver, and two looks while idle
    quit: float = 2.0  # for everything when the device is deleted


class Progress:
    """Are the frames coming that are due? Tell it what the hardware says; HardwareError when nothing moves any more."""

    def __init__(self, series: Series, latency: float, limits: Limits, trigger_timeout: float) -> None:
        self._settings, self._limits, self._live = series.settings, limits, series.live
        self._series, self._trigger_timeout = series, trigger_timeout
        self._period = max(series.settings.frame_time, series.settings.exposure_time + latency)
        self._last = (-1, -1)
        self._since = time.monotonic()

    def see(self, status: Status, now: float) -> None:
        if (status.frames, status.triggers) != self._last:
            self._last, self._since = (status.frames, status.triggers), now
        idle = now - self._since
        counts = f"{status.frames} of {self._series.n_frames or 'endless'} frames"
        if status.blocked:
            if idle > self._limits.blocked:
                raise HardwareError(f"the receiver has taken no frame for {idle:.0f} s ({counts} sent)")
        elif self._frame_is_due(status):
            limit = self._limits.silent + 2 * self._period
            if idle > limit:
                raise HardwareError(f"the hardware gave no frame for {limit:.3g} s ({counts} came)")
        elif 0 < self._trigger_timeout < idle:
            raise HardwareError(
                f"no trigger for {self._trigger_timeout:g} s (property TriggerTimeout): {status.triggers} of "
                f"{self._settings.n_starts} triggers, {counts} came; look at the cable and its source"
            )

    def pause(self, status: Status, now: float) -> float:
        """Seconds until the next look; call it after `see`. Shorter when the last frame of a software trigger should be
        there, longer again the later it is."""
        if self._settings.trigger_mode is not TriggerMode.SOFTWARE or not self._frame_is_due(status):
            return LOOK
        rest = status.triggers * self._settings.frames_per_start - status.frames
        due = self._since + (rest - 1) * self._period + self._settings.exposure_time
        return min(LOOK, max(SOON, abs(due - now)))

    def _frame_is_due(self, status: Status) -> bool:
        """Something has been started that is not finished; a gate may be as long as it likes."""
        mode = self._settings.trigger_mode
        if mode is TriggerMode.INTERNAL:
            return True
        if mode is TriggerMode.EXTERNAL_GATE:
            return False
        each = self._settings.frames_per_start
        return status.frames < max(status.triggers, math.ceil(status.frames / each)) * each
