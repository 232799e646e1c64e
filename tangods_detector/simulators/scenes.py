"""What simulated detectors look at: rings of a powder, spots of a crystal."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RINGS = ((0.12, 3.0), (0.2, 2.0), (0.27, 1.2), (0.34, 0.8), (0.41, 0.5), (0.55, 0.3))  # radius, strength


@lru_cache(maxsize=2)
def rings(height: int, width: int) -> NDArray[np.float32]:
    """Counts to expect around the middle; radii are parts of the shorter side."""
    y, x = np.ogrid[:height, :width]
    radius = np.hypot(y - height / 2, x - width / 2).astype(np.float32) / min(height, width)
    r = np.linspace(0, 6, 4096, dtype=np.float32)
    profile = np.full(r.size, 0.05, np.float32)
    for ring, strength in RINGS:
        profile += strength * np.exp(-(((r - ring) / 0.006) ** 2))
    found: NDArray[np.float32] = profile[np.minimum((radius * (r.size / 6)).astype(np.intp), r.size - 1)]
    return found


def spot(image: NDArray[Any], row: float, column: float, sigma: float, height: float) -> None:
    """Adds a round spot of whole numbers, in place."""
    reach = int(4 * sigma) + 1
    top, left = max(0, int(row) - reach), max(0, int(column) - reach)
    part = image[top : int(row) + reach + 1, left : int(column) + reach + 1]
    y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    part += np.rint(height * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2))).astype(image.dtype)
