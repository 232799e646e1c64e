"""What a series is made of, and the form of one record in its file: header, payload, trailer. Pure.

Every record begins at a multiple of 64 bytes: a header of 64 bytes, the payload (exactly the HDF5 chunk), 16 bytes of
times where a flag says so, a trailer of 8, zeros up to the next multiple. The trailer has the header's CRC, continued
over the times, and is written last: without it the record was torn.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .errors import StreamError
from .protocol import Array, Buffer, Times

ALIGN = 64
MAGIC = b"\x89TDR"
END_MAGIC = b"TDRe"
VERSION = 1
HEADER_SIZE = 64
TRAILER_SIZE = 8
OVERHEAD = HEADER_SIZE + TRAILER_SIZE
HIGHEST_FRAME = 1 << 40
TIMES_SIZE = 16
# Flags: `payload_crc` holds the CRC-32 of the payload; its times stand between payload and trailer.
PAYLOAD_CRC, TIMES_FOLLOW = 1, 2

#: After magic and header CRC: file's nonce, frame, serial, timestamp, arrived, size, payload CRC, module, filter mask,
#: dataset (0: the images), status, flags, version.
_BODY = struct.Struct("<QQqddIIHHBBBB")
_pack_body = _BODY.pack
HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("crc", "<u4"),
        ("nonce", "<u8"),
        ("frame", "<u8"),
        ("serial", "<i8"),
        ("timestamp", "<f8"),
        ("arrived", "<f8"),
        ("size", "<u4"),
        ("payload_crc", "<u4"),
        ("module", "<u2"),
        ("mask", "<u2"),
        ("dataset", "u1"),
        ("status", "u1"),
        ("flags", "u1"),
        ("version", "u1"),
    ]
)
TIMES = np.dtype([("stop", "<f8"), ("real", "<f8")])
_pack_times = struct.Struct("<dd").pack
NO_TIMES = _pack_times(nan, nan)
_PADS = [bytes(n) for n in range(ALIGN)]

MISSING, WRITTEN, INCOMPLETE = 0, 1, 2
STATUS_TEXT = "0: missing (reads as 0), 1: written, 2: incomplete (modules missing), others: as the writer noted"


@dataclass(frozen=True)
class ImageLayout:
    """How frames are stored: `shape` (rows, columns) of one frame, or of one module where `modules` > 1;
    `codec` none, bslz4 (one filter-32008 chunk) or lz4 (one filter-32004 chunk);
    `channels` names of the modules where each is an image of its own, with a dataset of that name;
    `times` frames bring `Times`, which have columns then; `begun` the moment from which their times count (ISO 8601;
    "": not known)."""

    shape: tuple[int, int]
    dtype: str
    codec: str
    modules: int = 1
    channels: tuple[str, ...] = ()
    times: bool = False
    begun: str = ""

    def __post_init__(self) -> None:
        if self.channels and len(self.channels) != self.modules:
            raise ValueError(f"{self.modules} modules, {len(self.channels)} names of channels")

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return int(np.dtype(self.dtype).itemsize) * self.shape[0] * self.shape[1]

    @property
    def rank(self) -> int:
        return 4 if self.axis else 3

    @property
    def axis(self) -> bool:
        """Whether the modules have an axis of the dataset."""
        return self.modules > 1 and not self.channels


@dataclass(frozen=True)
class Part:
    """One of several files of a series, with frames `first`, first + `step`, ...; `of` the nonce of the master file."""

    of: int
    first: int
    step: int


@dataclass(frozen=True)
class FileHeader:
    """What is known when a series starts; times in unix seconds, `nframes` None: not announced."""

    series: int
    dataset: str
    nframes: int | None
    start_time: float
    metadata: Mapping[str, Any]
    filename: str = ""
    part: Part | None = None  # where this is one of several files; all frames are then positions in it
    arrays: Mapping[str, Array] = field(default_factory=dict)
    arrays_in: str = ""  # name of the file of the series that has them: this one only leads there


class Record(NamedTuple):  # one is made for each frame: a quarter of the time of a frozen dataclass
    """One frame, or one module of it, as it is to be stored: `data` is exactly the HDF5 chunk.

    `serial` the sender's message number (-1: unknown), `timestamp` the detector's time in s (nan: unknown),
    `arrived` unix seconds; `times` what else the detector says of it."""

    frame: int
    module: int
    data: Buffer
    serial: int = -1
    timestamp: float = nan
    arrived: float = nan
    status: int = WRITTEN
    times: Times | None = None


@dataclass(frozen=True)
class Books:
    """The account of a series at its end; `missing` inclusive ranges, times in unix seconds."""

    frames_expected: int | None
    frames_received: int
    missing: Sequence[tuple[int, int]]
    repeated: int
    rejected: int
    foreign: int
    end_time: float
    end_reason: str


def aligned(size: int) -> int:
    """`size` rounded up to the next multiple of 64."""
    return (size + ALIGN - 1) & -ALIGN


def record_size(payload: int, flags: int = 0) -> int:
    return (payload + tail_size(flags) + HEADER_SIZE + ALIGN - 1) & -ALIGN


def tail_size(flags: int) -> int:
    """Bytes of times, if any, and trailer."""
    return TRAILER_SIZE + TIMES_SIZE if flags & TIMES_FOLLOW else TRAILER_SIZE


def record_sizes(headers: NDArray) -> NDArray[np.uint64]:
    """Of the records with these headers."""
    times = (headers["flags"] & TIMES_FOLLOW).astype(bool) * np.uint64(TIMES_SIZE)
    return (headers["size"] + times + np.uint64(OVERHEAD + ALIGN - 1)) & ~np.uint64(ALIGN - 1)


def pack(
    records: Sequence[Record], layout: ImageLayout, nonce: int, payload_crc: bool = False
) -> tuple[list[Buffer], bytes, bytes, int, int]:
    """The buffers of these records (header, payload, trailer with padding of each), the headers behind each other, the
    times likewise (none where the layout has none), the bytes in all and those of the payloads.

    StreamError when a number or a payload does not fit the layout. Runs once for each frame: it is spelled out."""
    buffers: list[Buffer] = []
    headers: list[bytes] = []
    all_times: list[bytes] = []
    total = payload = flags = data_crc = 0
    exact = layout.chunk_bytes if layout.codec == "none" else 0
    modules, with_times = layout.modules, layout.times
    for frame, module, data, serial, timestamp, arrived, status, times in records:
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        if size != exact and (exact or not 0 < size < 1 << 32):
            raise StreamError(f"frame {frame}: {size} bytes of data do not make a chunk of {exact or '> 0'} bytes")
        if not (0 <= frame < HIGHEST_FRAME and 0 <= module < modules):
            raise StreamError(f"frame {frame}, module {module}: no such place ({modules} modules)")
        if payload_crc:
            flags, data_crc = PAYLOAD_CRC, crc32(data)
        behind = b""
        try:
            if with_times:
                flags &= ~TIMES_FOLLOW
                if times is not None:
                    flags, behind = flags | TIMES_FOLLOW, _pack_times(*times)
                all_times.append(behind or NO_TIMES)
            # fmt: off
            body = _pack_body(nonce, frame, serial, timestamp, arrived, size, data_crc, module, 0, 0, status, flags,
                              VERSION)
            # fmt: on
        except (struct.error, TypeError) as exc:
            raise StreamError(f"frame {frame}, module {module}: cannot be stored: {exc}") from exc
        crc = crc32(body)
        header = MAGIC + crc.to_bytes(4, "little") + body
        if behind:
            crc = crc32(behind, crc)
        trailer = behind + END_MAGIC + crc.to_bytes(4, "little") + _PADS[-(size + OVERHEAD + len(behind)) & 63]
        buffers += (header, data, trailer)
        headers.append(header)
        payload += size
        total += HEADER_SIZE + size + len(trailer)
    return buffers, b"".join(headers), b"".join(all_times), total, payload


def header_is_sound(header: bytes, nonce: int) -> bool:
    """Whether these 64 bytes are the header of a record of the file with this nonce."""
    return (
        header[:4] == MAGIC
        and len(header) == HEADER_SIZE
        and header[8:16] == nonce.to_bytes(8, "little")
        and header[4:8] == crc32(header[8:]).to_bytes(4, "little")
    )


def trailer_of(header: bytes, times: bytes = b"") -> bytes:
    """The 8 bytes that must follow the payload, or these times behind it."""
    return END_MAGIC + crc32(times, int.from_bytes(header[4:8], "little")).to_bytes(4, "little")
