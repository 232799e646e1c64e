"""A step of `transforms` in one file: pixels below a threshold become 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tangods_receiver.errors import ConfigError
from tangods_receiver.pixelsteps import Array, Shape, Step
from tangods_receiver.transforms import STEPS


@dataclass(frozen=True)
class Threshold:
    """`counts`: what is less becomes 0."""

    counts: float

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        """As it was."""
        return shape, dtype

    def apply(self, pixels: Array, module: int) -> Array:
        return np.where(pixels < self.counts, pixels.dtype.type(0), pixels)


def threshold(argument: Any, root: Path | None) -> Step:
    """Of `threshold: 5` in the configuration; `root` is where relative file names begin."""
    if type(argument) not in (int, float):
        raise ConfigError(f"needs a number of counts, found {argument!r}")
    return Threshold(argument)


STEPS["threshold"] = threshold
