"""The simplest TIFF: one plain grey image in one strip, little-endian."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_HEAD = struct.Struct("<2sHI")
_ENTRY = struct.Struct("<HHII")
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _LOOK, _OFFSETS, _SAMPLES, _STRIP, _COUNTS, _FORMAT = (
    256, 257, 258, 259, 262, 273, 277, 278, 279, 339,
)  # fmt: skip
_KINDS = {"u": 1, "i": 2, "f": 3}
_SHORT, _LONG = 3, 4


def encode(array: Array) -> bytes:
    """[rows, columns] of whole numbers or floats."""
    rows, columns = array.shape
    pixels = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
    entries = [
        (_WIDTH, _LONG, columns),
        (_HEIGHT, _LONG, rows),
        (_BITS, _SHORT, 8 * array.dtype.itemsize),
        (_COMPRESSION, _SHORT, 1),
        (_LOOK, _SHORT, 1),
        (_OFFSETS, _LONG, _HEAD.size),
        (_SAMPLES, _SHORT, 1),
        (_STRIP, _LONG, rows),
        (_COUNTS, _LONG, len(pixels)),
        (_FORMAT, _SHORT, _KINDS[array.dtype.kind]),
    ]
    padding = len(pixels) % 2
    directory = struct.pack("<H", len(entries)) + b"".join(
        _ENTRY.pack(tag, kind, 1, value) for tag, kind, value in entries
    )
    return b"".join(
        (_HEAD.pack(b"II", 42, _HEAD.size + len(pixels) + padding), pixels, b"\0" * padding, directory, b"\0" * 4)
    )


def decode(data: bytes) -> Array:
    """ValueError: not a plain little-endian image in strips that follow each other."""
    try:
        mark, magic, at = _HEAD.unpack_from(data)
        if mark != b"II" or magic != 42:
            raise ValueError("not a little-endian TIFF")
        (count,) = struct.unpack_from("<H", data, at)
        tags = {}
        for n in range(count):
            tag, kind, number, value = _ENTRY.unpack_from(data, at + 2 + _ENTRY.size * n)
            tags[tag] = (kind, number, value & 0xFFFF if kind == _SHORT and number == 1 else value)
        if tags.get(_COMPRESSION, (0, 1, 1))[2] != 1:
            raise ValueError("compressed TIFF")
        kind, number, start = tags[_OFFSETS]
        if number > 1:
            (start,) = struct.unpack_from("<I" if kind == _LONG else "<H", data, start)
        letter = {1: "u", 2: "i", 3: "f"}[tags.get(_FORMAT, (0, 1, 1))[2]]
        dtype = np.dtype(f"<{letter}{tags[_BITS][2] // 8}")
        rows, columns = tags[_HEIGHT][2], tags[_WIDTH][2]
        return np.frombuffer(data, dtype, rows * columns, start).reshape(rows, columns).copy()
    except (struct.error, KeyError, TypeError) as exc:
        raise ValueError(f"damaged TIFF: {exc!r}") from exc
