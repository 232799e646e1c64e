"""The receiver's history of regions of interest: values of each against time. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIRST = 3  # columns of all regions: series, number, time
FIELDS = ("sum", "mean", "max", "x", "y", "pixels")


class Curve(NamedTuple):
    """`ages` seconds before the newest, negative; `values` of one field."""

    ages: NDArray[Any]
    values: NDArray[Any]


def curve(rows: Any, region: int, field: str = "sum") -> Curve:
    """Of the region with this index; empty where the table has none."""
    table = np.asarray(rows, float)
    column = FIRST + len(FIELDS) * region + FIELDS.index(field)
    if table.ndim != 2 or not len(table) or column >= table.shape[1]:
        return Curve(np.zeros(0), np.zeros(0))
    return Curve(table[:, 2] - table[-1, 2], table[:, column])


def newest(rows: Any, region: int) -> dict[str, float]:
    """The last values of one region; {}: there are none."""
    table = np.asarray(rows, float)
    first = FIRST + len(FIELDS) * region
    if table.ndim != 2 or not len(table) or first + len(FIELDS) > table.shape[1]:
        return {}
    return dict(zip(FIELDS, table[-1, first : first + len(FIELDS)].tolist(), strict=True))


def new_name(taken: list[str]) -> str:
    """roi1, roi2 ...: the first that is free."""
    return next(name for n in range(1, len(taken) + 2) if (name := f"roi{n}") not in taken)
