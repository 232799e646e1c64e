"""Series that are over, and curves of a few numbers against time: bounded, so that a night costs no memory. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taurus_gui import words

MOST = 50  # series


class Trend:
    """Values against time; `most` of them are kept, of those that come closer than `every` s only the first."""

    def __init__(self, most: int = 1200, every: float = 0.0) -> None:
        self._every = every
        self._times: deque[float] = deque(maxlen=most)
        self._values: deque[float] = deque(maxlen=most)

    def add(self, value: float, now: float | None = None) -> None:
        now = time.time() if now is None else now
        if self._times and 0 <= now - self._times[-1] < self._every:
            return
        self._times.append(now)
        self._values.append(value)

    def curve(self, seconds: float, now: float | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Seconds before now (negative) and values of the last so many seconds."""
        times = np.array(self._times) - (time.time() if now is None else now)
        values = np.array(self._values)
        recent = times >= -seconds
        return times[recent], values[recent]

    def __len__(self) -> int:
        return len(self._times)


@dataclass(frozen=True)
class PastSeries:
    """`ended` Unix time; `reason` "complete" or a sentence."""

    file: str
    written: int
    missing: int
    expected: int | None
    ended: float
    nbytes: int = 0
    reason: str = "complete"

    @property
    def name(self) -> str:
        return PurePosixPath(self.file).name if self.file else "no file"

    @property
    def well(self) -> bool:
        return not self.missing and self.reason == "complete"

    def cells(self) -> tuple[str, str, str, str]:
        """When, file, frames, size."""
        frames = words.count(self.written)
        if self.missing:
            frames = f"▲ {frames}, {words.count(self.missing)} missing"
        elif self.reason != "complete":
            frames = f"▲ {frames}"
        when = time.strftime("%H:%M:%S", time.localtime(self.ended))
        return when, self.name, frames, words.size(self.nbytes) if self.nbytes else ""


def from_receiver(series: list[Mapping[str, Any]]) -> list[PastSeries]:
    """Of its /series, newest first; live views without a file are left out."""
    found = []
    for one in series[:MOST]:
        if one.get("file"):
            found.append(
                PastSeries(
                    str(one["file"]), int(one.get("written", 0)), int(one.get("missing", 0)), one.get("expected"),
                    float(one.get("ended", 0)), int(one.get("bytes", 0)), str(one.get("reason", "complete")),
                )
            )  # fmt: skip
    return found


def from_detector(readings: Mapping[str, Any], ended: float) -> PastSeries | None:
    """The series that just ended, where the receiver cannot be asked for its list."""
    file = str(readings.get("LastFilename") or "")
    if not file:
        return None
    return PastSeries(
        file,
        int(readings.get("nFramesWritten") or 0),
        int(readings.get("nFramesMissing") or 0),
        int(readings.get("nFramesExpected") or 0) or None,
        ended,
        0,
        str(readings.get("LastError") or "complete"),
    )
