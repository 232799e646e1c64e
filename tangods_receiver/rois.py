"""Regions of interest: rectangles of the image, and what is counted in them. Pure.

Positions are in pixels of the whole image, x columns, y rows, both from 0; pixel 0 has its centre at 0.0.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

import numpy as np

from tangods_receiver import imaging
from tangods_receiver.errors import ConfigError

Array = np.ndarray[Any, Any]

MOST = 8  # regions at a time
HISTORY = 1000  # samples that are kept
SIDE = 1 << 16  # rows and columns that an image can have
KEYS = ("name", "x", "y", "width", "height")
COLUMNS = ("series", "number", "time")  # of the history, then for each region the fields of Values
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class Roi(NamedTuple):
    """The pixels from column `x` and row `y` on, as many as there are of them in the image."""

    name: str
    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.name} {self.x} {self.y} {self.width} {self.height}"


class Values(NamedTuple):
    """Of the pixels that have a value, `pixels` of them: `sum`, `mean`, the largest, and the centre of mass, in pixels
    of the whole image. nan: there is none, because no pixel has a value, or (centre) nothing positive is there."""

    sum: float
    mean: float
    max: float
    x: float
    y: float
    pixels: int


class Sample(NamedTuple):
    """All regions in one image: `number` in its series, `time` (Unix) when it was decoded."""

    series: int
    number: int
    time: float
    values: tuple[Values, ...]


# --- what a user wrote -----------------------------------------------------------------------------------------------


def parse(given: Iterable[Any]) -> tuple[Roi, ...]:
    """Lines "name x y width height", mappings with these keys, or Rois. ConfigError lists all mistakes."""
    found: list[Roi] = []
    mistakes: list[str] = []
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ConfigError(f"rois: {str(given)[:80]!r} is not a list")
    for item in given:
        try:
            roi = _one(item)
            if roi.name in (other.name for other in found):
                raise ConfigError("this name is there twice")
            found.append(roi)
        except ConfigError as exc:
            mistakes.append(f"{str(item)[:80]!r}: {exc}")
    if len(found) > MOST:
        mistakes.append(f"{len(found)} regions, at most {MOST} are possible")
    if mistakes:
        raise ConfigError(f"rois: {'; '.join(mistakes)}")
    return tuple(found)


def _one(item: Any) -> Roi:
    if isinstance(item, str):
        words = item.split()
        if len(words) != len(KEYS):
            raise ConfigError("not like 'beam 100 200 50 40': name x y width height")
        name: Any = words[0]
        numbers: list[Any] = [int(word) if word.isdecimal() and len(word) < 9 else word for word in words[1:]]
    elif isinstance(item, Mapping):
        if set(item) != set(KEYS):
            raise ConfigError(f"needs exactly {', '.join(KEYS)}")
        name, numbers = item["name"], [item[key] for key in KEYS[1:]]
    elif isinstance(item, Roi):
        name, numbers = item.name, list(item[1:])
    else:
        raise ConfigError("neither a line 'name x y width height' nor a mapping")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError("the name has 1 to 32 letters, digits, _, - or .")
    for key, number in zip(KEYS[1:], numbers, strict=True):
        least = 1 if key in ("width", "height") else 0
        if type(number) is not int or not least <= number <= SIDE:
            raise ConfigError(f"{key} is {number!r}, not a whole number from {least} to {SIDE}")
    return Roi(name, *numbers)


# --- counting --------------------------------------------------------------------------------------------------------


def measure(image: Array, roi: Roi, masked: Array | None = None) -> Values:
    """Only pixels of the region are touched. `masked` True: a pixel has no value, besides those that
    `imaging.valid` knows; of the image's shape. Sums of whole numbers are exact up to 2**53."""
    window = image[roi.y : roi.y + roi.height, roi.x : roi.x + roi.width]
    hidden = None if masked is None else masked[roi.y : roi.y + roi.height, roi.x : roi.x + roi.width]
    rows, columns = window.shape
    if not window.size:
        return Values(0.0, nan, nan, nan, nan, 0)
    across, down, pixels, largest = np.zeros(columns), np.empty(rows), 0, -np.inf
    step = max(1, imaging.BAND // columns)
    for first in range(0, rows, step):
        band = window[first : first + step]
        there = imaging.valid(band)
        if hidden is not None:
            unmasked = ~hidden[first : first + step]
            there = unmasked if there is None else there & unmasked
        if there is not None:
            count = int(np.count_nonzero(there))
            band = np.where(there, band, band.dtype.type(0))
            if count:
                largest = max(largest, float(np.max(band, where=there, initial=_least(band.dtype))))
        else:
            count = band.size
            largest = max(largest, float(band.max()))
        wide = np.float64 if band.dtype.kind == "f" else np.uint64 if band.dtype.kind == "u" else np.int64
        down[first : first + step] = band.sum(axis=1, dtype=wide)
        across += band.sum(axis=0, dtype=wide)
        pixels += count
    total = float(down.sum())
    if not pixels:
        return Values(0.0, nan, nan, nan, nan, 0)
    x = y = nan
    if total > 0:
        x = roi.x + float(across @ np.arange(columns)) / total
        y = roi.y + float(down @ np.arange(rows)) / total
    return Values(total, total / pixels, largest, x, y, pixels)


def _least(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


class History:
    """The last samples of one set of regions."""

    def __init__(self, rois: Sequence[Roi] = (), length: int = HISTORY) -> None:
        self.rois = tuple(rois)
        self._samples: deque[Sample] = deque(maxlen=length)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)

    @property
    def latest(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    def table(self) -> Array:
        """Rows: samples, the oldest first. Columns: `COLUMNS`, then the fields of Values of each region."""
        width = len(COLUMNS) + len(Values._fields) * len(self.rois)
        lines = [
            (*sample[:3], *(number for values in sample.values for number in values)) for sample in list(self._samples)
        ]
        return np.array(lines, np.float64).reshape(-1, width)
