"""A pretended libdcamapi in a folder of its own, with its cameras: what `tangods-detector simulate hamamatsu` makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tangods_detector.simulators.build import place, tell

__all__ = ["MODELS", "NAME", "make", "tell"]

MODELS = ("flash4", "fusion", "lightning")
NAME = "libdcamapi.so"


def make(
    folder: Path, cameras: Sequence[str] = ("flash4 000123",), lines: Sequence[str] = (), flags: Sequence[str] = ()
) -> Path:
    """The library in `folder` (made if it is not there), for the option `library`.

    `cameras` are model and serial number; `lines` more commands of fake_dcam.c, obeyed when the library is first
    initialised. ConfigError: no compiler, or the folder cannot be written."""
    return place("fake_dcam.c", folder / NAME, [*(f"camera {camera}" for camera in cameras), *lines], flags)
