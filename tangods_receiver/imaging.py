"""Images made smaller or handed to other programs; pure NumPy.

Pixels without a value take no part in a mean or a maximum: the largest number of an unsigned type (detectors mark
masked and saturated pixels by it), negative counts of a signed type (gaps and bad pixels of a Pilatus), and numbers
that are not finite.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Method = Literal["mean", "max", "sample"]

BAND = 1 << 17  # pixels worked on at a time: what stays in the cache is done twice as fast
VIDEO_FORMAT = "VIDEO_IMAGE"  # of a DevEncoded
_VIDEO = struct.Struct(
    ">IHHqiiHHHH"
)  # magic, version, mode, frame, width, height, endianness, header size, 2 x padding
_VIDEO_MAGIC = int.from_bytes(b"VDEO", "big")
_VIDEO_VERSION = 1
_LITTLE = 0
_VIDEO_MODES = {1: 0, 2: 1, 4: 2, 8: 3}  # bytes of a pixel -> LImA's Y8, Y16, Y32, Y64


def no_value(dtype: np.dtype[Any]) -> Any:
    """What a pixel without a value holds: the largest number of an unsigned type, -1 of a signed one, NaN."""
    if dtype.kind == "u":
        return np.iinfo(dtype).max
    return {"i": -1, "f": np.nan}.get(dtype.kind, 0)


def valid(array: Array) -> Array | None:
    """True where a pixel has a value; None: all have."""
    kind = array.dtype.kind
    if kind == "u":
        where = array != np.iinfo(array.dtype).max
    elif kind == "i":
        where = array >= 0
    elif kind == "f":
        where = np.isfinite(array)
    else:
        return None
    return None if where.all() else where


def factor_for(shape: tuple[int, ...], size: tuple[int, int]) -> int:
    """The smallest factor by which an image of `shape` (rows, columns last) fits into `size` (rows, columns)."""
    rows, columns = shape[-2:]
    return max(1, math.ceil(rows / max(1, size[0])), math.ceil(columns / max(1, size[1])))


# --- smaller ---------------------------------------------------------------------------------------------------------


def downsample(array: Array, factor: int, method: Method = "mean") -> Array:
    """Blocks of factor x factor pixels become one: their mean (float32), their largest value, or their first pixel.

    Pixels without a value are left out of a block; a block of nothing else has none (NaN, or as `no_value`). What does
    not fill a block at the last rows and columns is left out; an image narrower than a block is one block wide."""
    if factor <= 1 or not array.size:
        return array
    high, broad = (min(factor, n) for n in array.shape[-2:])
    rows, columns = array.shape[-2] // high, array.shape[-1] // broad
    array = array[..., : rows * high, : columns * broad]
    if method == "sample":
        return array[..., ::high, ::broad]
    work, dtype = (_largest, array.dtype) if method == "max" else (_mean, np.dtype(np.float32))
    out = np.empty((*array.shape[:-2], rows, columns), dtype)
    step = max(1, BAND // (high * array.shape[-1]))
    for index in np.ndindex(array.shape[:-2]):
        image, smaller = array[index], out[index]
        for first in range(0, rows, step):
            last = min(rows, first + step)
            blocks = image[first * high : last * high].reshape(last - first, high, columns * broad)
            smaller[first:last] = work(blocks, broad)
    return out


def _largest(blocks: Array, broad: int) -> Array:
    """(rows, pixels high, columns x pixels broad) -> (rows, columns)."""
    kind = blocks.dtype.kind
    if kind == "u":
        blocks = blocks + blocks.dtype.type(1)  # what has no value becomes the smallest number
    elif kind == "f":
        blocks = np.where(np.isfinite(blocks), blocks, np.nan)
    larger = np.fmax if kind == "f" else np.maximum
    found = _columns(larger, larger.reduce(blocks, axis=1), broad)
    if kind == "u":
        found -= blocks.dtype.type(1)
    elif kind == "i":
        np.maximum(found, -1, out=found)
    return found


def _mean(blocks: Array, broad: int) -> Array:
    there = valid(blocks)
    values = blocks.astype(np.float64 if blocks.dtype.itemsize == 8 else np.float32)
    if there is None:
        total = _columns(np.add, np.add.reduce(values, axis=1), broad)
        return total / values.dtype.type(blocks.shape[1] * broad)
    if blocks.dtype.kind == "f":
        values[~there] = 0
    else:
        values *= there
    counts = _columns(np.add, np.add.reduce(there, axis=1, dtype=np.float32), broad)
    total = _columns(np.add, np.add.reduce(values, axis=1), broad)
    with np.errstate(invalid="ignore"):
        return total / counts


def _columns(reduce: np.ufunc, lines: Array, broad: int) -> Array:
    found = lines[:, ::broad].copy()
    for column in range(1, broad):
        reduce(found, lines[:, column::broad], out=found)
    return found


# --- for LImA's viewers ----------------------------------------------------------------------------------------------


def video_image(array: Array, number: int) -> bytes:
    """An image as LImA's VIDEO_IMAGE: a header, big-endian, and the pixels, little-endian.

    The format knows unsigned integers only: the bits of signed ones are sent as they are (-1 becomes the largest
    number), real numbers are rounded to 32 bits, what has no value to the largest number. Modules lie below each
    other."""
    if array.ndim > 2:
        array = array.reshape(-1, array.shape[-1])
    if array.dtype.kind == "f":
        array = _whole(array)
    rows, columns = array.shape
    mode = _VIDEO_MODES[array.dtype.itemsize]
    header = _VIDEO.pack(_VIDEO_MAGIC, _VIDEO_VERSION, mode, number, columns, rows, _LITTLE, _VIDEO.size, 0, 0)
    return b"".join((header, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data))


def _whole(array: Array) -> Array:
    largest = np.iinfo(np.uint32).max
    with np.errstate(invalid="ignore"):
        whole = np.rint(np.clip(array.astype(np.float64), 0, largest - 1))
    return np.where(np.isfinite(array), whole, largest).astype(np.uint32)


NO_VIDEO_IMAGE = video_image(np.zeros((0, 0), np.uint8), -1)  # before the first
