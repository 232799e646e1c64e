"""Where the modules of a Lambda lie, in the words of the start message. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tangods_detector.hw.lambda_system import Module


def told(modules: Sequence[Module], about: str = "box", clockwise: bool = False) -> dict[str, Any]:
    """`x`, `y`, `rotation` of all modules, and `full_shape` where it can be told; empty for one alone.

    `about`: what a position is the place of, as of `tangods_receiver.geometry`; `clockwise`: so the unit counts
    angles."""
    if len(modules) < 2:
        return {}
    rotations = [(-m.rotation if clockwise else m.rotation) % 360 for m in modules]
    said: dict[str, Any] = {
        "x": [m.x for m in modules],
        "y": [m.y for m in modules],
        "rotation": rotations,
        "rotation_about": about,
    }
    if (full := full_shape(modules, about)) is not None:
        said["full_shape"] = list(full)
    return said


def full_shape(modules: Sequence[Module], about: str = "box") -> tuple[int, int] | None:
    """Rows, columns that hold all modules; None: positions are not those of what the turned modules cover."""
    if len(modules) == 1:
        return modules[0].shape
    if any(m.rotation % 90 for m in modules) or (about != "box" and any(m.rotation % 360 for m in modules)):
        return None
    sizes = [m.shape if m.rotation % 180 == 0 else m.shape[::-1] for m in modules]
    rows = max(m.y + size[0] for m, size in zip(modules, sizes, strict=True))
    columns = max(m.x + size[1] for m, size in zip(modules, sizes, strict=True))
    return math.ceil(rows), math.ceil(columns)
