"""Bytes and records to a file: gathered writes that go on where the system stopped."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from tangods_receiver import compiled
from tangods_receiver.protocol import Buffer
from tangods_receiver.records import ImageLayout, Record, pack

IOV_MAX = 1024
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_fallocate = getattr(ctypes.CDLL(None), "fallocate64", None)  # glibc
if _fallocate is not None:
    _fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64


def write_all(fd: int, buffers: Sequence[Buffer], offset: int, total: int = -1) -> None:
    """Write these buffers behind each other at `offset`; OSError. `total`: their bytes, where known."""
    left = list(buffers)
    while left:
        part = left[:IOV_MAX]
        written = os.pwritev(fd, part, offset)
        if written == total:
            return
        offset, total = offset + written, -1
        left = _unwritten(part, written) + left[IOV_MAX:]
        if not written and left:
            raise OSError(errno.EIO, "nothing was written")


def punch_hole(fd: int, offset: int, size: int) -> bool:
    """Give this range back to the disk, to read as zeros; False where that is not possible."""
    return _fallocate is not None and _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, size) == 0


def _unwritten(buffers: Sequence[Buffer], written: int) -> list[Buffer]:
    for i, buffer in enumerate(buffers):
        view = memoryview(buffer)
        if written < view.nbytes:
            return [view.cast("B")[written:], *buffers[i + 1 :]]
        written -= view.nbytes
    return []


class PythonPacked:
    """Records ready to be written behind each other; StreamError when one does not fit the layout.

    `headers` behind each other, and so `times` where the layout has them; `total` bytes with headers and trailers,
    `payload` bytes without."""

    def __init__(self, records: Sequence[Record], layout: ImageLayout, nonce: int, payload_crc: bool = False) -> None:
        packed = pack(records, layout, nonce, payload_crc)
        self._buffers, self.headers, self.times, self.total, self.payload = packed

    def write(self, fd: int, offset: int) -> None:
        """All of it, once; OSError."""
        write_all(fd, self._buffers, offset, self.total)


_hotpath = compiled.module("_hotpath")
Packed: type[PythonPacked] = PythonPacked if _hotpath is None else _hotpath.Packed
