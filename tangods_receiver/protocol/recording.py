"""Recorded streams: per message u32 LE number of parts, then per part u32 LE length and the bytes; gzip or plain."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

MAX_PARTS = 4096
MAX_PART = 1 << 31  # bytes: a damaged length must not ask for all memory
_U32 = struct.Struct("<I")


def read(path: str | Path) -> Iterator[list[bytes]]:
    """The messages of a recording, one list of parts each. StreamError: damaged or cut short; OSError: not readable."""
    with _open(Path(path)) as file:
        try:
            while (first := file.read(4)) != b"":
                yield [_part(file, path) for _ in range(_number(first, MAX_PARTS, "parts", path))]
        except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
            raise StreamError(f"{path}: gzip data damaged or cut short ({exc})") from exc


def write(path: str | Path, messages: Iterable[Iterable[Buffer]]) -> int:
    """Write a recording, compressed when the name ends in .gz; returns the number of messages."""
    count = 0
    opened = gzip.open(path, "wb", compresslevel=1) if str(path).endswith(".gz") else open(path, "wb")
    with cast(IO[bytes], opened) as file:
        for message in messages:
            parts = [memoryview(part) for part in message]
            file.write(_U32.pack(len(parts)))
            for part in parts:
                file.write(_U32.pack(part.nbytes))
                file.write(part)
            count += 1
    return count


def _open(path: Path) -> IO[bytes]:
    file = open(path, "rb")
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not gzipped:
        return file
    file.close()
    return cast(IO[bytes], gzip.open(path, "rb"))


def _part(file: IO[bytes], path: str | Path) -> bytes:
    size = _number(file.read(4), MAX_PART, "bytes in a part", path)
    data = file.read(size)
    if len(data) != size:
        raise StreamError(f"{path}: ends inside a part ({len(data)} of {size} bytes)")
    return data


def _number(data: bytes, limit: int, what: str, path: str | Path) -> int:
    if len(data) != 4:
        raise StreamError(f"{path}: ends inside a message")
    (value,) = _U32.unpack(data)
    if value > limit:
        raise StreamError(f"{path}: {value} {what}, not a recording")
    return int(value)
