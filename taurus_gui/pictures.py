"""Pictures as the receiver sends them, the wish for them, and what is drawn of them. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from taurus_gui import levels, words

Array = levels.Array
Region = tuple[int, int, int, int]  # first row and column, row and column after the last

DETAIL = 1.35  # pixels asked for, of each that the screen has, so that shrinking is smooth
MOST = 2048  # rows or columns asked for
MARGIN = 0.1  # of the window, beyond its edges, so that moving shows no bare rim at once
KINDS = {"last": "Newest image", "sum": "Sum", "max": "Maximum", "average": "Average"}


@dataclass(frozen=True)
class Look:
    """How numbers become colours: `auto` finds the range, without `percent` of the pixels at either end."""

    auto: bool = True
    log: bool = False
    low: float = 0.0
    high: float = 1.0
    percent: float = 0.1


@dataclass(frozen=True)
class Picture:
    """A part of an image, `pixels` rows x columns, made smaller by `factor`; `region` is where it lies in the image of
    `full` rows and columns. `marks` 1 masked, 2 saturated (None: nothing is marked). `came` is of time.monotonic, when
    the receiver got the image. `index`, `low`, `high`: as `coloured` made them."""

    pixels: Array
    marks: Array | None
    region: Region
    full: tuple[int, int]
    factor: int = 1
    kind: str = "last"
    series: int = 0
    number: int = -1
    frames: int = 1
    source: str = ""  # type of the detector's pixels
    came: float = 0.0
    id: int = 0
    pixel: Mapping[str, Any] | None = None
    whole: bool = False  # full resolution, asked for once
    index: Array = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    low: float = 0.0
    high: float = 1.0


def parse(message: bytes) -> Picture:
    """A message of the receiver's /ws. ValueError: it is none."""
    length = int.from_bytes(message[:4], "little")
    header = json.loads(message[4 : 4 + length])
    rows, columns = header["shape"]
    dtype = np.dtype(header["dtype"]).newbyteorder("<")
    pixels = np.frombuffer(message, dtype, rows * columns, 4 + length).reshape(rows, columns)
    marks = None
    if header["marks"]:
        marks = np.frombuffer(message, np.uint8, rows * columns, 4 + length + pixels.nbytes).reshape(rows, columns)
    return Picture(
        pixels,
        marks,
        tuple(header["region"]),
        tuple(header["full"]),
        header["factor"],
        header["kind"],
        header["series"],
        header["number"],
        header["frames"],
        header["source"],
        time.monotonic() - header["age"],
        header["id"],
        header["pixel"],
    )


def coloured(picture: Picture, look: Look) -> Picture:
    """With an index into the table of colours for each pixel."""
    low, high = look.low, look.high
    if look.auto:
        low, high = levels.auto_range(picture.pixels, picture.marks, look.percent)
    index = levels.indexed(picture.pixels, picture.marks, low, high, look.log)
    return replace(picture, index=index, low=low, high=high)


def wish(
    view: tuple[float, float, float, float] | None, full: tuple[int, int] | None, screen: tuple[int, int]
) -> dict[str, Any]:
    """What to ask for: `view` first row, first column, last row, last column that the window shows (None: the whole
    image), `screen` its rows and columns in real pixels."""
    region = None
    detail = DETAIL
    if view is not None and full is not None:
        top, left, bottom, right = view
        rows, columns = (bottom - top) * MARGIN, (right - left) * MARGIN
        seen = (
            max(0, int(np.floor(top - rows))),
            max(0, int(np.floor(left - columns))),
            min(full[0], int(np.ceil(bottom + rows))),
            min(full[1], int(np.ceil(right + columns))),
        )
        if seen[0] < seen[2] and seen[1] < seen[3] and seen != (0, 0, *full):
            region = seen
            detail *= 1 + 2 * MARGIN
    size = [max(16, min(MOST, round(n * detail))) for n in screen]
    return {"region": region, "size": size}


def value_at(picture: Picture, row: int, column: int) -> tuple[float, str] | None:
    """(value, mark) as shown: of a block where the picture was made smaller. None: it is not in the picture."""
    r, c = (row - picture.region[0]) // picture.factor, (column - picture.region[1]) // picture.factor
    if not (0 <= r < picture.pixels.shape[0] and 0 <= c < picture.pixels.shape[1]):
        return None
    mark = 0 if picture.marks is None else int(picture.marks[r, c])
    return float(picture.pixels[r, c]), ("", "masked", "saturated")[mark]


def readout(
    picture: Picture, cursor: tuple[int, int], exact: Mapping[str, Any] | None = None, spacing: float | None = None
) -> str:
    """The pixel under the cursor in HTML: `exact` is what the receiver says of it, else what is shown, which may be of
    several; `spacing` its resolution in Å. "": it is not in the picture."""
    row, column = cursor
    if exact and (exact["row"], exact["column"]) == cursor:
        value, mark = exact["value"], "masked" if exact["masked"] else "saturated" if exact["saturated"] else ""
        text = "no value" if value is None else words.count(value)
    else:
        found = value_at(picture, row, column)
        if found is None:
            return ""
        text, mark = words.count(found[0]), found[1]
        if picture.factor > 1:
            text = f"about {text}"
    resolution = f"  {spacing:.3g} Å" if spacing else ""
    return f"row {row}  column {column}  <b>{text}</b>{f' ({mark})' if mark else ''}{resolution}"


def profile(
    picture: Picture, start: tuple[float, float], end: tuple[float, float], most: int = 1000
) -> tuple[Array, Array]:
    """Distance in pixels of the detector, and values along a line between two places (row, column), the nearest pixel
    of the picture each; NaN outside and where a pixel is marked."""
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    n = int(min(most, max(2, length / picture.factor + 1)))
    steps = np.linspace(0.0, 1.0, n)
    rows = np.floor((start[0] + steps * (end[0] - start[0]) - picture.region[0]) / picture.factor).astype(int)
    columns = np.floor((start[1] + steps * (end[1] - start[1]) - picture.region[1]) / picture.factor).astype(int)
    inside = (rows >= 0) & (columns >= 0) & (rows < picture.pixels.shape[0]) & (columns < picture.pixels.shape[1])
    values = np.full(n, np.nan)
    values[inside] = picture.pixels[rows[inside], columns[inside]]
    if picture.marks is not None:
        marked = np.zeros(n, bool)
        marked[inside] = picture.marks[rows[inside], columns[inside]] != 0
        values[marked] = np.nan
    return steps * length, values
