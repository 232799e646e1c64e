"""What the simulated detector sees, made and compressed before it is sent: the frames of a series take turns.

Pictures are synthetic (rings, peaks, a beam that walks) or those of a recorded stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tangods_detector.simulators.eiger.models import Model
from tangods_detector.simulators.eiger.parameters import Setup
from tangods_detector.simulators.scenes import rings, spot
from tangods_receiver import codecs, lz4block
from tangods_receiver.errors import ConfigError
from tangods_receiver.protocol import Frame, dectris1, recording

Array = np.ndarray[Any, Any]

CYCLE = 8  # different pictures
PIXELS = 40_000_000  # in all: fewer of a large detector
LOOSE = 1 << 20  # random numbers that are used again and again


@dataclass(frozen=True)
class Picture:
    """One image as all formats need it: pixels and blob of each channel."""

    arrays: tuple[Array, ...]
    blobs: tuple[bytes, ...]


class Pictures:
    """Of one detector. `source`: `synthetic` or the path of a recorded stream. Keeps what it encoded last."""

    def __init__(self, model: Model, source: str = "synthetic") -> None:
        self._model = model
        self._recorded = () if source == "synthetic" else tuple(_recorded(model, source))
        self._encoded: dict[tuple[Any, ...], tuple[Picture, ...]] = {}

    def encoded(self, setup: Setup, compression: str, raw_lz4: bool) -> tuple[Picture, ...]:
        """The cycle as this series sends it. `raw_lz4`: lz4 is a bare block, not a chunk of HDF5."""
        values = setup.values
        masked = bool(values["pixel_mask_applied"])
        key = (setup.dtype, compression, raw_lz4, setup.channels, values["roi_mode"], setup.shape, masked,
               bool(values.get("mask_to_zero")), setup.version)  # fmt: skip
        found = self._encoded.get(key)
        if found is None:
            found = tuple(self._picture(setup, i, compression, raw_lz4, masked) for i in range(self.count))
            self._encoded = {key: found}  # one at a time: those of a large detector are hundreds of megabytes
        return found

    @property
    def count(self) -> int:
        if self._recorded:
            return len(self._recorded)
        return int(np.clip(PIXELS // (self._model.width * self._model.height), 2, CYCLE))

    def _picture(self, setup: Setup, i: int, compression: str, raw_lz4: bool, masked: bool) -> Picture:
        sensor = self._recorded[i] if self._recorded else synthetic(self._model, i, self.count)
        counts = sensor[setup.region]
        if setup.merge > 1:
            rows, columns = (n * setup.merge for n in setup.shape)
            blocks = counts[:rows, :columns].reshape(setup.shape[0], setup.merge, setup.shape[1], setup.merge)
            counts = blocks.sum(axis=(1, 3))
        largest = np.iinfo(setup.dtype).max
        arrays = tuple(
            _finished(seen, mask, setup, largest, masked) for seen, mask in _channels(counts, setup, largest)
        )
        return Picture(arrays, tuple(encode(array, compression, raw_lz4) for array in arrays))


def _channels(counts: Array, setup: Setup, largest: int) -> list[tuple[Array, Array]]:
    """Counts and mask of each channel: fewer photons are above the second threshold."""
    limit = min(largest - 1, int(setup.values["countrate_correction_count_cutoff"]))
    counts = np.minimum(counts, limit)
    seen = {"threshold_1": counts, "threshold_2": counts // 3}
    seen["difference"] = seen["threshold_1"] - seen["threshold_2"]
    thresholds = [name for name in setup.channels if name != "difference"]
    masks = dict(zip(thresholds, setup.masks, strict=True))
    return [(seen[name], masks.get(name, setup.masks[0])) for name in setup.channels]


def _finished(counts: Array, mask: Array, setup: Setup, largest: int, masked: bool) -> Array:
    """Gaps are always there, other pixels that are masked only when the mask is applied."""
    image = np.ascontiguousarray(counts, np.dtype(setup.dtype))
    image = image.copy() if image is counts else image
    where = mask != 0 if masked else (mask & 1) != 0
    image[where] = 0 if masked and setup.values.get("mask_to_zero") else largest
    image.setflags(write=False)
    return image


def encode(array: Array, compression: str, raw_lz4: bool = False) -> bytes:
    if compression == "lz4" and raw_lz4:
        return bytes(lz4block.compress(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    return bytes(codecs.compress(compression, array))


# --- synthetic -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2 * CYCLE)
def synthetic(model: Model, i: int, count: int) -> Array:
    """Counts of the whole sensor, uint32: picture `i` of `count`. Small ones are Poisson, large ones nearly."""
    rate = rings(model.height, model.width)
    rng = np.random.default_rng((model.width, i))
    loose = rng.random(LOOSE, np.float32)
    noise = np.resize(loose, rate.size).reshape(rate.shape)
    image = np.floor(rate + noise).astype(np.uint32)
    angle = 2 * np.pi * i / count
    spot(image, model.height * (0.5 + 0.05 * np.sin(angle)), model.width * (0.5 + 0.05 * np.cos(angle)), 4.0, 150)
    for _ in range(40):
        spot(image, rng.uniform(0, model.height), rng.uniform(0, model.width), 1.2, rng.uniform(30, 400))
    image.setflags(write=False)
    return image


# --- recorded --------------------------------------------------------------------------------------------------------


def _recorded(model: Model, path: str) -> Sequence[Array]:
    """The images of a recorded stream V1. ConfigError: there are none of this detector."""
    if not Path(path).exists():
        raise ConfigError(f"images: {path} does not exist; give `synthetic` or a recorded stream")
    found = []
    for parts in recording.read(path):
        frame = dectris1.decode(parts)
        if isinstance(frame, Frame):
            if frame.shape != (model.height, model.width):
                raise ConfigError(
                    f"images: {path} has images of {frame.shape[1]} x {frame.shape[0]} pixels, an {model.name} "
                    f"{model.width} x {model.height}; choose another model"
                )
            found.append(codecs.decompress(frame.codec, frame.data, frame.shape, frame.dtype).astype(np.uint32))
    if not found:
        raise ConfigError(f"images: {path} has none")
    return found
