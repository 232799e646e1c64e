"""The byte-offset code of CBF: differences of one byte, or longer ones behind an escape."""

from __future__ import annotations

from typing import Any

import numpy as np

ESCAPE = b"\x80"
SHORT = 127
MIDDLE = 32767
LONG = 2**31 - 1


def encode(pixels: np.ndarray[Any, Any]) -> bytes:
    """Any shape, integers that fit 64 bits. Escapes are rare, so these are put between the bytes one by one."""
    differences = np.diff(pixels.reshape(-1).astype(np.int64), prepend=0)
    plain = differences.astype(np.int8).tobytes()
    pieces, done = [], 0
    wide = np.flatnonzero(np.abs(differences) > SHORT)
    for at, difference in zip(wide.tolist(), differences[wide].tolist(), strict=True):
        pieces += [plain[done:at], one(difference)]
        done = at + 1
    return b"".join([*pieces, plain[done:]])


def one(difference: int) -> bytes:
    """A single difference."""
    if abs(difference) <= SHORT:
        return difference.to_bytes(1, "little", signed=True)
    if abs(difference) <= MIDDLE:
        return ESCAPE + difference.to_bytes(2, "little", signed=True)
    if abs(difference) <= LONG:
        return ESCAPE + b"\x00\x80" + difference.to_bytes(4, "little", signed=True)
    return ESCAPE + b"\x00\x80" + b"\x00\x00\x00\x80" + difference.to_bytes(8, "little", signed=True)
