"""From numbers to colours: the range, and one byte for each pixel. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COLOURS = 254  # of a map; two more indices are for marks
MASKED, SATURATED = 254, 255  # indices
MARKS = {1: MASKED, 2: SATURATED}  # as the receiver marks pixels
MARK_COLOURS = {MASKED: (32, 80, 16), SATURATED: (240, 160, 240)}  # as on the receiver's live page
SAMPLE = 60_000  # pixels are enough to find a range

#: As on the receiver's live page: title -> name in the package cmap.
MAPS = {
    "Viridis": "bids:viridis",
    "Grey": "cmap:white",
    "Grey, inverted": "cmap:white_r",
    "Magma": "bids:magma",
    "Inferno": "bids:inferno",
    "Plasma": "bids:plasma",
    "Cividis": "cividis:cividis",
    "Turbo": "google:turbo",
    "Hot": "matlab:hot",
}


@lru_cache(maxsize=len(MAPS))
def table(title: str) -> NDArray[np.uint8]:
    """256 x red, green, blue: the map, and the two marks at its end."""
    import cmap

    colours = np.rint(cmap.Colormap(MAPS[title]).lut(COLOURS)[:, :3] * 255).astype(np.uint8)
    marks = np.array([MARK_COLOURS[index] for index in (MASKED, SATURATED)], np.uint8)
    full = np.concatenate([colours, marks])
    full.flags.writeable = False
    return full


def auto_range(pixels: Array, marks: Array | None = None, percent: float = 0.1) -> tuple[float, float]:
    """Lowest and highest value but for `percent` of the pixels at either end; marked ones and NaN do not count."""
    flat = pixels.reshape(-1)
    step = max(1, flat.size // SAMPLE) | 1  # odd: it does not hit the same columns of an even width
    values = flat[::step].astype(np.float64)
    good = np.isfinite(values)
    if marks is not None:
        good &= marks.reshape(-1)[::step] == 0
    values = values[good]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (percent, 100 - percent)))
    return low, high if high > low else low + 1.0


def usable(low: float, high: float, log: bool) -> tuple[float, float]:
    """The same range, such that colours can be spread over it."""
    if log and low <= 0:
        low = min(1.0, high / 10) if high > 0 else 1.0
    if not high > low:
        high = low * 10 if log else low + 1.0
    return low, high


def indexed(
    pixels: Array, marks: Array | None = None, low: float = 0.0, high: float = 1.0, log: bool = False
) -> NDArray[np.uint8]:
    """Index into a `table` for each pixel; what has no number is as if masked."""
    low, high = usable(low, high, log)
    values = pixels.astype(np.float32)
    nothing = None
    if pixels.dtype.kind == "f":
        nothing = ~np.isfinite(values)
        if not nothing.any():
            nothing = None
        else:
            values[nothing] = low
    if log:
        np.maximum(values, np.float32(low), out=values)
        values *= np.float32(1 / low)
        np.log(values, out=values)
        values *= np.float32((COLOURS - 1) / np.log(high / low))
    else:
        values -= np.float32(low)
        values *= np.float32((COLOURS - 1) / (high - low))
    np.clip(values, 0, COLOURS - 1, out=values)
    index: NDArray[np.uint8] = values.astype(np.uint8)
    if nothing is not None:
        index[nothing] = MASKED
    if marks is not None:
        for mark, colour in MARKS.items():
            index[marks == mark] = colour
    return index


def tick_text(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}".replace("e+0", "e").replace("e+", "e")
