"""Where a pixel lies in reciprocal space, for a flat detector across the beam. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

HC = 12398.41984  # eV Å
SPACINGS = (50.0, 30.0, 20.0, 15.0, 10.0, 8.0, 6.0, 5.0, 4.0, 3.5, 3.0, 2.5, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2, 1.1, 1.0,
            0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # fmt: skip
MOST = 6  # rings


@dataclass(frozen=True)
class Geometry:
    """`energy` eV, `distance` m, `pixel` rows and columns m, `centre` row and column where the beam hits; 0 or None:
    not known."""

    energy: float = 0.0
    distance: float = 0.0
    pixel: tuple[float, float] = (0.0, 0.0)
    centre: tuple[float, float] | None = None

    @property
    def known(self) -> bool:
        return self.energy > 0 and self.distance > 0 and min(self.pixel) > 0 and self.centre is not None

    @property
    def wavelength(self) -> float:
        """Å."""
        return HC / self.energy

    def lacks(self) -> str:
        """What must be told before rings can be drawn; "": nothing."""
        names = []
        if self.energy <= 0:
            names.append("energy")
        if self.distance <= 0:
            names.append("distance")
        if min(self.pixel) <= 0:
            names.append("pixel size")
        if self.centre is None:
            names.append("beam centre")
        return ", ".join(names)

    def radius(self, spacing: float) -> tuple[float, float] | None:
        """Half axes in rows and columns of the ring of `spacing` Å; None: it does not go forward."""
        sine = self.wavelength / (2 * spacing)
        if not self.known or sine >= math.sin(math.pi / 4):
            return None
        length = self.distance * math.tan(2 * math.asin(sine))
        return length / self.pixel[0], length / self.pixel[1]

    def spacing(self, row: float, column: float) -> float | None:
        """Å of a place on the detector; None at the beam, or when the geometry is not known."""
        if not self.known or self.centre is None:
            return None
        length = math.hypot((row - self.centre[0]) * self.pixel[0], (column - self.centre[1]) * self.pixel[1])
        if length == 0:
            return None
        return self.wavelength / (2 * math.sin(math.atan2(length, self.distance) / 2))

    def rings(self, rows: int, columns: int) -> list[tuple[float, float, float]]:
        """(spacing Å, half axis in rows, in columns) of a few rings that can be seen in the image, well apart."""
        if not self.known or self.centre is None:
            return []
        corners = [(r - self.centre[0], c - self.centre[1]) for r in (0, rows) for c in (0, columns)]
        furthest = max(math.hypot(r * self.pixel[0], c * self.pixel[1]) for r, c in corners)
        gap = furthest / (MOST + 2)
        found: list[tuple[float, float, float]] = []
        last = 0.0
        for spacing in SPACINGS:
            axes = self.radius(spacing)
            if axes is None:
                break
            length = axes[0] * self.pixel[0]
            if length > furthest:
                break
            if length - last >= gap:
                found.append((spacing, *axes))
                last = length
        return found[:MOST]
