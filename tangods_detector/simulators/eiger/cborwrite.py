"""Values to CBOR, as short as they can be and with the keys in the order given."""

from __future__ import annotations

import struct
from math import isnan
from typing import Any, NamedTuple

import numpy as np

SELF_DESCRIBED = b"\xd9\xd9\xf7"  # tag 55799, the first bytes of a message
TYPED = {"uint8": 64, "uint16": 69, "uint32": 70, "float32": 85}
ROWS_FIRST, COMPRESSED, DATE = 40, 56500, 0
_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(7)


class Tag(NamedTuple):
    number: int
    value: Any


class Encoded(bytes):
    """CBOR already."""


def head(major: int, n: int) -> bytes:
    """First byte or bytes of a value."""
    if n < 24:
        return bytes((major << 5 | n,))
    for more, letter in ((24, "B"), (25, "H"), (26, "I"), (27, "Q")):
        if n < 1 << 8 * struct.calcsize(letter):
            return struct.pack(f">B{letter}", major << 5 | more, n)
    raise ValueError(f"{n} is too large for CBOR")


def dumps(value: Any) -> bytes:
    if isinstance(value, Encoded):
        return bytes(value)
    if value is None or isinstance(value, bool):
        return {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[value]
    if isinstance(value, int):
        return head(_UINT, value) if value >= 0 else head(_NEGATIVE, -1 - value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        text = value.encode()
        return head(_TEXT, len(text)) + text
    if isinstance(value, bytes):
        return head(_BYTES, len(value)) + value
    if isinstance(value, Tag):
        return head(_TAG, value.number) + dumps(value.value)
    if isinstance(value, dict):
        return head(_MAP, len(value)) + b"".join(dumps(k) + dumps(v) for k, v in value.items())
    return head(_ARRAY, len(value)) + b"".join(map(dumps, value))


def _float(value: float) -> bytes:
    """The shortest that is exact."""
    for first, letter in ((0xF9, "e"), (0xFA, "f")):
        try:
            packed = struct.pack(f">{letter}", value)
        except OverflowError:
            continue
        if struct.unpack(f">{letter}", packed)[0] == value or isnan(value):
            return bytes((first,)) + packed
    return b"\xfb" + struct.pack(">d", value)


def typed(dtype: str, data: bytes, compression: str) -> Encoded:
    """A typed array of these bytes, `compression` none, lz4 or bslz4."""
    size = np.dtype(dtype).itemsize
    content = data if compression == "none" else Tag(COMPRESSED, [compression, size, data])
    return Encoded(dumps(Tag(TYPED[dtype], content)))


def array(shape: tuple[int, ...], dtype: str, data: bytes, compression: str) -> Encoded:
    return Encoded(dumps(Tag(ROWS_FIRST, [list(shape), typed(dtype, data, compression)])))
