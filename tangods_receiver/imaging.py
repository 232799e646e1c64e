"""Images made smaller or handed to other programs; pure NumPy.

Pixels without a value take no part in a mean or a maximum: the largest number of an unsigned type (detectors mark
masked and saturated pixels by it), negative counts of a signed type (gaps and bad pixels of a Pilatus), and numbers
that are not finite.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Method = Literal["mean", "max", "sample"]

_VIDEO = struct.Struct(
    ">IHHqiiHHHH"
)  # magic, version, mode, frame, width, height, endianness, header size, 2 x padding
_VIDEO_MAGIC = int.from_bytes(b"VDEO", "big")
_VIDEO_VERSION = 1
_VIDEO_MODES = {1: 0, 2: 1, 4: 2, 8: 3}  # bytes of a pixel -> LImA's Y8, Y16, Y32, Y64


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


def downsample(array: Array, factor: int, method: Method = "mean") -> Array:
    """Blocks of factor x factor pixels become one: their mean (float32), their largest value, or their first pixel.

    What does not fill a block at the last rows and columns is left out, unless nothing would remain."""
    factor = max(1, min(factor, *array.shape[-2:]))
    if factor == 1:
        return array
    rows, columns = (n // factor for n in array.shape[-2:])
    array = array[..., : rows * factor, : columns * factor]
    if method == "sample":
        return array[..., ::factor, ::factor]
    blocks = array.reshape(*array.shape[:-2], rows, factor, columns, factor)
    if method == "max":
        return blocks.max(axis=(-3, -1))
    return blocks.mean(axis=(-3, -1), dtype=np.float64).astype(np.float32)


def video_image(array: Array, number: int) -> bytes:
    """An image as LImA's VIDEO_IMAGE: a header, big-endian, and the pixels as they are on this computer."""
    rows, columns = array.shape
    mode = _VIDEO_MODES[array.dtype.itemsize]
    endianness = 0 if sys.byteorder == "little" else 1
    header = _VIDEO.pack(_VIDEO_MAGIC, _VIDEO_VERSION, mode, number, columns, rows, endianness, _VIDEO.size, 0, 0)
    return header + np.ascontiguousarray(array).tobytes()
