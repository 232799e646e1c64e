"""What the simulated detector sees, encoded ahead of time: the images of a series take turns.

Only the last pixel, the stamp, differs between two turns of the same picture."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tangods_detector.simulators.camserver import byteoffset, models
from tangods_detector.simulators.camserver.models import Model
from tangods_detector.simulators.scenes import rings, spot
from tangods_receiver import cbf
from tangods_receiver.errors import ConfigError, StreamError

Array = np.ndarray[Any, Any]

CYCLE = 4  # different pictures
PIXELS = 10_000_000  # in all: fewer of a large detector
COUNTER = 2**20 - 1  # where a pixel is full
KEPT = 2  # sets of pictures
LOOSE = 1 << 20  # random numbers that are used again and again


class Picture:
    """One image. `array`: int32, rows x columns, before it is stamped."""

    def __init__(self, array: Array) -> None:
        self.array = np.ascontiguousarray(array, np.int32)
        self.array.setflags(write=False)
        flat = self.array.reshape(-1)
        self.code = byteoffset.encode(flat[:-1])  # of all pixels but the last
        self._before = int(flat[-2])
        self._last = int(flat[-1])
        self._code_md5 = hashlib.md5(self.code, usedforsecurity=False)
        self._pixel_md5 = hashlib.md5(self.raw, usedforsecurity=False)

    @property
    def raw(self) -> memoryview:
        """Bytes of all pixels but the last."""
        return self.array.data.cast("B")[:-4]

    def last(self, stamp: int | None) -> int:
        return self._last if stamp is None else stamp

    def tail(self, stamp: int | None) -> bytes:
        """The code of the last pixel."""
        return byteoffset.one(self.last(stamp) - self._before)

    def code_md5(self, tail: bytes) -> bytes:
        return _finished(self._code_md5, tail).digest()

    def pixel_md5(self, stamp: int | None) -> str:
        """Of int32 in little-endian order, row by row."""
        return _finished(self._pixel_md5, self.last(stamp).to_bytes(4, "little", signed=True)).hexdigest()

    def stamped(self, stamp: int | None) -> Array:
        array = self.array.copy()
        array[-1, -1] = self.last(stamp)
        return array


def _finished(begun: Any, rest: bytes) -> Any:
    whole = begun.copy()
    whole.update(rest)
    return whole


class Pictures:
    """Of one detector. `source`: `synthetic`, or where CBF files are, which are shown as they are."""

    def __init__(self, model: Model, source: str = "synthetic") -> None:
        self._model = model
        self._recorded = () if source == "synthetic" else tuple(_recorded(model, source))
        self._made: dict[tuple[Any, ...], tuple[Picture, ...]] = {}

    def get(self, pattern: str = "0", gapfill: int = -1, masked: bool = True, sums: int = 1) -> tuple[Picture, ...]:
        """The cycle as a series of these settings shows it."""
        key = (pattern, 0, False, 1) if self._recorded else (pattern, gapfill, masked, sums)
        found = self._made.pop(key, None)
        if found is None:
            while len(self._made) >= KEPT:
                self._made.pop(next(iter(self._made)))
            found = tuple(Picture(self._image(i, *key)) for i in range(self.count))
        self._made[key] = found
        return found

    def wide(self, pattern: str, gapfill: int, masked: bool) -> Picture:
        """One whose differences need all escapes."""
        image = self._image(0, pattern, gapfill, masked, 1).copy()
        values = [0, 127, -1, 300, 33_000, 2**31 - 1, -2, -(2**31), 2**31 - 1, -1, 1 << 20, 0]
        image[-1, : len(values)] = values
        return Picture(image)

    @property
    def count(self) -> int:
        return len(self._recorded) or int(np.clip(PIXELS // np.prod(self._model.shape), 2, CYCLE))

    def _image(self, i: int, pattern: str, gapfill: int, masked: bool, sums: int) -> Array:
        region = self._model.region(pattern)
        if self._recorded:
            return self._recorded[i][region]
        counts = np.minimum(synthetic(self._model, i, self.count).astype(np.int64) * sums, 2**31 - 1)
        image = counts.astype(np.int32)
        image[models.gaps(self._model)] = gapfill
        if masked:
            image[models.dead(self._model)] = -2
        return image[region]


@lru_cache(maxsize=2 * CYCLE)
def synthetic(model: Model, i: int, count: int) -> Array:
    """Counts of the whole detector, int32: picture `i` of `count`. Rings, spots, a beam that walks, full pixels."""
    rate = rings(*model.shape)
    height, width = rate.shape
    rng = np.random.default_rng((width, i))
    image = np.floor(rate + np.resize(rng.random(LOOSE, np.float32), rate.size).reshape(rate.shape)).astype(np.int32)
    angle = 2 * np.pi * i / count
    spot(image, height * (0.5 + 0.05 * np.sin(angle)), width * (0.5 + 0.05 * np.cos(angle)), 3.0, 900)
    for _ in range(40):
        spot(image, rng.uniform(0, height), rng.uniform(0, width), 1.2, rng.uniform(30, 40_000))
    y, x = rng.integers(0, height - 2), rng.integers(0, width - 2)
    image[y : y + 2, x : x + 2] = COUNTER
    image.setflags(write=False)
    return image


# --- recorded --------------------------------------------------------------------------------------------------------


def _recorded(model: Model, source: str) -> list[Array]:
    """ConfigError: there are none of this detector."""
    path = Path(source)
    files = sorted(f for f in path.iterdir() if re.search(r"\.cbf(\.gz|\.bz2)?$", f.name)) if path.is_dir() else [path]
    try:
        found = [cbf.decode(_read(file), model.shape) for file in files]
    except (OSError, StreamError) as exc:
        raise ConfigError(f"images: {source}: {exc}") from exc
    if not found:
        raise ConfigError(f"images: {source} has no CBF files")
    return found


def _read(path: Path) -> bytes:
    opened: Callable[..., Any] = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix.lower(), open)
    with opened(path, "rb") as file:
        data: bytes = file.read()
    return data
