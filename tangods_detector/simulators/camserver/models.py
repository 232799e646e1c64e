"""The sizes of PILATUS: modules, gaps, dead pixels, regions, limits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tangods_receiver.errors import ConfigError

MODULE = (487, 195)  # columns, rows
GAP = (7, 17)
DEAD = 14  # pixels of each module

MODULES = {"100K": (1, 1), "200K": (1, 2), "300K": (1, 3), "300K-W": (3, 1), "1M": (2, 5), "2M": (3, 8), "6M": (5, 12)}
SERIAL = {"100K": 1, "200K": 2, "300K": 3, "300K-W": 3, "1M": 10, "2M": 24, "6M": 60}  # first part of the S/N
READOUT = {"PILATUS3 X": 0.95e-3, "PILATUS3 S": 2.04e-3, "PILATUS2": 2.28e-3}  # s
RATES = {"6M": 100, "2M": 250}  # images/s of a whole PILATUS3 X; 500 of the others
# Patterns of setroi in modules: first column, first row, columns, rows; images/s
REGIONS = {
    "6M": {"C2": (2, 5, 1, 2, 500), "C18": (1, 3, 3, 6, 200)},
    "2M": {"C2": (1, 3, 1, 2, 500), "C12": (0, 2, 3, 4, 250), "R8": (1, 2, 2, 4, 500), "L8": (0, 2, 2, 4, 500)},
    "1M": {"R1": (1, 2, 1, 1, 500), "L1": (0, 2, 1, 1, 500), "R3": (1, 1, 1, 3, 500), "L3": (0, 1, 1, 3, 500)},
}


@dataclass(frozen=True)
class Model:
    kind: str  # PILATUS3 X, PILATUS3 S or PILATUS2
    size: str  # 6M ...

    @property
    def new(self) -> bool:
        """PILATUS3"""
        return self.kind != "PILATUS2"

    @property
    def name(self) -> str:
        return f"{self.kind.partition(' ')[0]} {self.size}"

    @property
    def serial(self) -> str:
        return f"{SERIAL[self.size]}-0127"

    @property
    def modules(self) -> tuple[int, int]:
        """Columns, rows."""
        return MODULES[self.size]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns of the image."""
        columns, rows = self.modules
        return _extent(rows, 1), _extent(columns, 0)

    @property
    def readout(self) -> float:
        return READOUT[self.kind]

    def regions(self) -> dict[str, tuple[int, int, int, int, int]]:
        return {} if self.kind == "PILATUS3 S" else REGIONS.get(self.size, {})

    def region(self, pattern: str) -> tuple[slice, slice]:
        """Rows, columns of the whole image that are read; `0`: all."""
        if pattern == "0":
            return slice(None), slice(None)
        column, row, columns, rows, _ = self.regions()[pattern]
        top, left = row * (MODULE[1] + GAP[1]), column * (MODULE[0] + GAP[0])
        return slice(top, top + _extent(rows, 1)), slice(left, left + _extent(columns, 0))

    def rate(self, pattern: str) -> float:
        """Images/s at most."""
        if self.kind == "PILATUS3 S":
            return 25.0
        if pattern != "0" and self.new:
            return self.regions()[pattern][4]
        return RATES.get(self.size, 500.0) if self.new else 1 / self.readout


def model(kind: str, size: str) -> Model:
    """ConfigError: there is none such."""
    if kind not in READOUT:
        raise ConfigError(f"kind: {kind!r} is not one of {', '.join(READOUT)}")
    if size not in MODULES:
        raise ConfigError(f"model: {size!r} is not one of {', '.join(MODULES)}")
    return Model(kind, size)


def _extent(modules: int, axis: int) -> int:
    return modules * MODULE[axis] + (modules - 1) * GAP[axis]


@lru_cache(maxsize=4)
def gaps(model: Model) -> np.ndarray[Any, Any]:
    """Between the modules: bool, rows x columns."""
    height, width = model.shape
    rows = np.arange(height) % (MODULE[1] + GAP[1]) >= MODULE[1]
    columns = np.arange(width) % (MODULE[0] + GAP[0]) >= MODULE[0]
    found: np.ndarray[Any, Any] = rows[:, None] | columns
    found.setflags(write=False)
    return found


@lru_cache(maxsize=4)
def dead(model: Model) -> np.ndarray[Any, Any]:
    """Pixels of the bad pixel map: bool, rows x columns; never the last pixel."""
    rng = np.random.default_rng(model.shape)
    found = np.zeros(model.shape, bool)
    columns, rows = model.modules
    for row in range(rows):
        for column in range(columns):
            y = row * (MODULE[1] + GAP[1]) + rng.integers(0, MODULE[1] - 1, DEAD)
            x = column * (MODULE[0] + GAP[0]) + rng.integers(0, MODULE[0], DEAD)
            found[y, x] = True
    found.setflags(write=False)
    return found
