"""Statistics of a region of interest, point by point, from the StreamReceiver that measures it. A Tango client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import nan
from typing import Any

import numpy as np
import tango

STATISTICS = ("Sum", "Mean", "Max", "CentreX", "CentreY", "Pixels")  # attributes RoiSum, ... and columns of RoiHistory
FIRST_COLUMNS = 3  # of RoiHistory: series, frame number, time
BUSY = (tango.DevState.RUNNING, tango.DevState.MOVING)
LATE = 2.0  # s that an image may take from the detector to the receiver's live view; then it is lost


class RoiError(RuntimeError):
    """What an operator reads."""


class Meter:
    """One number of one region for each point: `start` a start, wait until `done`, then `values`."""

    def __init__(self, detector: str, name: Callable[[], str], receiver: str = "") -> None:
        self._detector_name, self._receiver_name, self._name = detector, receiver, name
        self._detector: tango.DeviceProxy | None = None
        self._receiver: tango.DeviceProxy | None = None
        self.roi = ""
        self.statistic = "Sum"
        self.prepare(1, 1)

    @property
    def detector(self) -> tango.DeviceProxy:
        if self._detector is None:
            self._detector = tango.DeviceProxy(self._detector_name)
        return self._detector

    @property
    def receiver(self) -> tango.DeviceProxy:
        """Named, or the one that the detector uses."""
        if self._receiver is None:
            name = self._receiver_name
            if not name:
                found = self.detector.get_property("Receiver")["Receiver"]
                name = found[0] if found else ""
            if not name or "://" in name.removeprefix("tango://"):
                raise RoiError(f"{self._name()}: the receiver of {self._detector_name} is no Tango device ({name!r})")
            self._receiver = tango.DeviceProxy(name)
        return self._receiver

    def prepare(self, points_per_start: int, starts: int) -> None:
        self._points_per_start, self._all_points = points_per_start, points_per_start * starts
        self._frames_per_point = 1
        self._starts = self._given = self._series = 0
        self._found: dict[int, float] = {}  # by frame number
        self._since: float | None = None  # when the frames of the starts so far were there

    def check(self) -> None:
        """RoiError: the region is not there; which are."""
        names = list(self.receiver.RoiNames or [])
        if self.roi not in names:
            raise RoiError(
                f"{self._name()}: {self._receiver_dev} has no region {self.roi!r}"
                f" (it has {', '.join(names) or 'none'}); set the receiver's attribute Rois, or Roi of this channel"
            )

    @property
    def _receiver_dev(self) -> str:
        return str(self.receiver.dev_name())

    def start(self) -> None:
        """The detector is armed now: the receiver has opened its series."""
        self._starts += 1
        self._since = None
        if not self._series:
            self._series = int(self.receiver.SeriesOpened)
            self._frames_per_point = max(1, int(self.detector.nFramesExpected) // self._all_points)

    @property
    def points(self) -> int:
        """That are due after the starts so far."""
        return self._starts * self._points_per_start

    def done(self) -> bool:
        """The newest image of the starts so far was measured, or is not to be had."""
        if not self._starts:
            return True
        due = self.points * self._frames_per_point
        state, acquired = (a.value for a in self.detector.read_attributes(["State", "nFramesAcquired"]))
        self._look()
        if self._found and max(self._found) >= due - 1:
            return True
        if state in BUSY and acquired < due:
            return False
        if self._since is None:
            self._since = time.monotonic()
        return time.monotonic() - self._since > (LATE if state in BUSY else LATE / 4)

    def _look(self) -> None:
        """Reading measures the newest image first."""
        names = ["RoiNames", f"Roi{self.statistic}", "RoiFrameNumber", "RoiSeries"]
        regions, values, number, series = (a.value for a in self.receiver.read_attributes(names))
        if series == self._series and self.roi in (regions or ()):
            self._found[int(number)] = float(values[list(regions).index(self.roi)])

    def value(self) -> float:
        """Of the last point; NaN: its image was not measured."""
        return self._of_point(self.points - 1)

    def new_values(self, final: bool) -> list[float]:
        """Of the points whose images are past since last asked; NaN where none of a point's images was measured.

        `final`: nothing more will come, so all points that are due are told."""
        self._look()
        self._remember(self.receiver.RoiHistory)
        newest = max(self._found, default=-1)
        there = self.points if final else min(self.points, (newest + 1) // self._frames_per_point)
        first, self._given = self._given, max(self._given, there)
        return [self._of_point(point) for point in range(first, there)]

    def _remember(self, history: Any) -> None:
        if history is None or not len(history):
            return
        table = np.asarray(history)
        names: Sequence[str] = list(self.receiver.RoiNames or [])
        if self.roi not in names:
            return
        column = FIRST_COLUMNS + names.index(self.roi) * len(STATISTICS) + STATISTICS.index(self.statistic)
        ours = table[table[:, 0] == self._series]
        self._found.update(zip(ours[:, 1].astype(int).tolist(), ours[:, column].tolist(), strict=True))

    def _of_point(self, point: int) -> float:
        """Mean over the frames of the point that were measured."""
        first = point * self._frames_per_point
        found = [self._found[n] for n in range(first, first + self._frames_per_point) if n in self._found]
        return sum(found) / len(found) if found else nan
