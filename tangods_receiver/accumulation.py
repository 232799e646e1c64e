"""Images that are made of many: their sum, their maximum, their moving average. Pure.

Pixels without a value in an image (`imaging.valid`, or masked) are left out of its sum and average. The maximum is that
of the numbers as they are: a pixel that was saturated once stays visible as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from tangods_receiver import imaging

Array = np.ndarray[Any, Any]
Kind = Literal["sum", "max", "average"]
Part = tuple[int | slice, ...]


class Accumulation:
    """Of images of one shape and type, from the first on. The average is the mean of the first `length`; then each new
    image weighs 1 / `length` and the older ones fade, so that no old image has to be kept."""

    def __init__(self, kind: Kind, image: Array, masked: Array | None = None, length: int = 1) -> None:
        self.kind = kind
        self.frames = 1  # that are in it; of the average at most `length`
        self._length = length
        self._dtype = image.dtype
        self._shown: Array | None = None
        self._seen = np.zeros(0 if kind == "max" else image.shape, bool)  # that had a value
        if kind == "max":
            self._total = image.copy()
        else:
            self._total = np.zeros(image.shape, np.float64 if kind == "sum" else np.float32)
            self._add(image, masked)

    def fits(self, image: Array) -> bool:
        """Can it join those that are there?"""
        return self._total.shape == image.shape and self._dtype == image.dtype

    def add(self, image: Array, masked: Array | None = None) -> None:
        """`masked` True: the pixel has no value; of the image's shape."""
        self._shown = None
        self.frames += 1
        if self.kind == "max":
            (np.fmax if image.dtype.kind == "f" else np.maximum)(self._total, image, out=self._total)
            return
        if self.kind == "average":
            self.frames = min(self.frames, self._length)
        self._add(image, masked)

    def value(self) -> Array:
        """Read only. Sum: float64 (exact up to 2**53), average: float32, both NaN where no image had a value; maximum:
        of the images' own type."""
        if self._shown is None:
            self._shown = self._total.copy()
            if self.kind != "max":
                self._shown[~self._seen] = np.nan
            self._shown.flags.writeable = False
        return self._shown

    def _add(self, image: Array, masked: Array | None) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # of pixels that are left out
            for part in _bands(image.shape):
                there = imaging.valid(image[part])
                if masked is not None:
                    there = ~masked[part] if there is None else there & ~masked[part]
                self._add_band(part, image[part].astype(self._total.dtype), there)

    def _add_band(self, part: Part, values: Array, there: Array | None) -> None:
        """`there` True where a pixel has a value (None: everywhere)."""
        total, seen = self._total[part], self._seen[part]
        if self.kind == "average":
            new = ~seen if there is None else there & ~seen
            if new.any():
                np.copyto(total, values, where=new)
            values -= total
            values *= values.dtype.type(1 / self.frames)
        if there is None:
            seen[...] = True
        else:
            seen |= there
            if self._dtype.kind == "f":
                values[~there] = 0
            else:
                values *= there
        total += values


def _bands(shape: tuple[int, ...]) -> Iterator[Part]:
    """Rows of a two- or three-dimensional image, some at a time."""
    step = max(1, imaging.BAND // max(1, shape[-1]))
    for index in np.ndindex(shape[:-2]):
        for first in range(0, shape[-2], step):
            yield (*index, slice(first, first + step))
