"""Series files for the tests: frames whose content tells their number."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from tangods_receiver.protocol import Times
from tangods_receiver.seriesfile import Books, FileHeader, ImageLayout, Record, SeriesFile

DATASET = "entry/instrument/detector/data"
DETECTOR = "entry/instrument/detector"
SMALL = ImageLayout((4, 8), "uint16", "none")
MODULES = ImageLayout((4, 8), "uint16", "none", modules=3)
PACKED = ImageLayout((64, 32), "uint32", "bslz4")
NAMES = ("threshold_1", "threshold_2", "difference")
CHANNELS = ImageLayout((4, 8), "uint16", "none", 3, NAMES)
TIMED = ImageLayout((4, 8), "uint16", "none", times=True)
CHANNELS_TIMED = ImageLayout((64, 32), "uint32", "bslz4", 2, NAMES[:2], times=True)


def header(nframes: int | None = None, dataset: str = DATASET, **metadata: object) -> FileHeader:
    return FileHeader(7, dataset, nframes, 1_750_000_000.25, metadata, "a.h5")


def image(frame: int, module: int = 0, layout: ImageLayout = SMALL) -> np.ndarray:
    """Frame and module as 8 bytes each, then the frame's number again and again."""
    pixels = np.full(layout.shape, (frame + 1) % 60_000, layout.dtype)
    pixels.reshape(-1).view(np.uint8)[:16].view("<u8")[:] = frame, module
    return pixels


def record(frame: int, module: int = 0, layout: ImageLayout = SMALL) -> Record:
    data = image(frame, module, layout)
    times = Times(frame * 0.5 + 0.25, frame * 0.125) if layout.times else None
    pixels = packed(data) if layout.codec == "bslz4" else data
    return Record(frame, module, pixels, frame + 100, frame * 0.5, 1e9 + frame, times=times)


def pixels(h5: h5py.File, frame: int, module: int, layout: ImageLayout) -> np.ndarray:
    """What a reader finds there."""
    if layout.channels:
        return h5[DETECTOR][layout.channels[module]][frame]
    return h5[DATASET][frame, module] if layout.axis else h5[DATASET][frame]


def assert_times(h5: h5py.File, frames: Iterable[int], layout: ImageLayout) -> None:
    """These frames, and no others, have their times; none has where the layout has none."""
    detector, frames = h5[DETECTOR], sorted(frames)
    assert [name in detector for name in ("stop_time", "real_time")] == [layout.times] * 2
    if layout.times:
        for name, first, step in (("stop_time", 0.25, 0.5), ("real_time", 0.0, 0.125)):
            values = detector[name][()]
            assert len(values) == len(detector["frame_status"])
            assert np.flatnonzero(~np.isnan(values)).tolist() == frames
            assert values[frames].tolist() == [first + step * n for n in frames]


def packed(pixels: np.ndarray, block: int = 0) -> bytes:
    """A filter-32008 chunk as detectors send it: u64 BE size, u32 BE block size in bytes, bitshuffled LZ4 blocks."""
    import bitshuffle

    size = block or 8192 // pixels.itemsize
    body = bitshuffle.compress_lz4(pixels.reshape(-1), size).tobytes()
    return pixels.nbytes.to_bytes(8, "big") + (size * pixels.itemsize).to_bytes(4, "big") + body


def records(frames: Iterable[int], layout: ImageLayout = SMALL) -> list[Record]:
    return [record(frame, module, layout) for frame in frames for module in range(layout.modules)]


def books(expected: int | None, received: int, missing: list[tuple[int, int]] | None = None) -> Books:
    return Books(expected, received, missing or [], 1, 2, 3, time.time(), "complete")


def written(path: Path, nframes: int | None = 10, layout: ImageLayout = SMALL, **metadata: object) -> Path:
    """A closed file with all its frames."""
    file = SeriesFile.create(path, header(nframes, **metadata), layout)
    file.append(records(range(nframes or 10), layout))
    file.close(books(nframes, nframes or 10))
    return path


def crash(file: SeriesFile) -> None:
    """What a kill leaves."""
    file.abandon()
