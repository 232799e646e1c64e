"""What the coming series will be: frames, time, bytes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taurus_gui import words

PIXEL_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4}


@dataclass(frozen=True)
class Estimate:
    """`seconds` of exposure and dead time, None where triggers decide; `nbytes` at most, before compression (0: no
    file)."""

    frames: int
    seconds: float | None
    nbytes: int

    def text(self, free: float | None = None) -> str:
        """One line for people."""
        parts = [f"{words.count(self.frames)} {'frame' if self.frames == 1 else 'frames'}"]
        if self.seconds is not None:
            parts.append(words.duration(self.seconds))
        parts.append(f"at most {words.size(self.nbytes)}" if self.nbytes else "no file")
        if free is not None and self.nbytes:
            parts.append(f"{words.size(free)} free")
        return " · ".join(parts)

    def fits(self, free: float | None) -> bool:
        return free is None or self.nbytes <= free


def estimate(readings: Mapping[str, Any]) -> Estimate | None:
    """From the detector's attributes; None while they are not known."""
    try:
        frames = int(readings["nTriggers"]) * int(readings["nFramesPerTrigger"])
        period = max(float(readings["FrameTime"]), float(readings["ExposureTime"]) + float(readings["LatencyTime"]))
        mode = str(readings["TriggerMode"])
        rows, columns = (int(n) for n in readings["FrameShape"])
        pixel = PIXEL_BYTES.get(str(readings["DataType"]), 8)
        save = bool(readings["DestinationFilename"]) and bool(readings["SaveRaw"])
    except (KeyError, TypeError, ValueError):
        return None
    seconds = frames * period if mode in ("INTERNAL", "EXTERNAL_SINGLE") else None
    return Estimate(frames, seconds, frames * rows * columns * pixel if save else 0)


def time_left(readings: Mapping[str, Any]) -> float | None:
    """Seconds until the receiver has the last frame; None: not known."""
    try:
        expected, received = int(readings["nFramesExpected"]), int(readings["nFramesReceived"])
        rate = float(readings["MeasuredRate"])
        period = max(float(readings["FrameTime"]), float(readings["ExposureTime"]) + float(readings["LatencyTime"]))
    except (KeyError, TypeError, ValueError):
        return None
    if expected <= 0:
        return None
    left = max(0, expected - received)
    if readings.get("TriggerMode") == "INTERNAL" and period > 0:
        rate = min(rate, 1 / period) if rate > 0 else 1 / period
    return left / rate if rate > 0 else None
