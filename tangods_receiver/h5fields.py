"""Where the few fields that a commit overwrites lie in a file (superblock 0, object headers version 1). Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ConfigError

Read = Callable[[int, int], bytes]  # offset, size -> bytes

SIGNATURE = b"\x89HDF\r\n\x1a\n"
END_OF_FILE = 40  # offset of the end-of-file address in a version-0 superblock
LINE = 64  # an 8-byte field within one such line is read whole, also while it is written

_DATASPACE, _LAYOUT, _CONTINUATION = 0x0001, 0x0008, 0x0010


@dataclass(frozen=True)
class ArrayFields:
    """Offsets in the file of a chunked dataset's index root and of its first dimension (u64 both)."""

    root: int
    length: int


def array_fields(read: Read, header: int) -> ArrayFields:
    """The fields of the chunked dataset whose object header is at `header`; ConfigError when it is of another form."""
    places = _messages(read, header)
    layout = read(places.get(_LAYOUT, 0), 2)
    if _DATASPACE not in places or _LAYOUT not in places or layout != b"\x03\x02":
        raise ConfigError(
            "the dataset is not chunked in the way this package writes it (layout version 3, B-tree index)"
        )
    return ArrayFields(root=places[_LAYOUT] + 3, length=places[_DATASPACE] + 8)


def straddles(offset: int) -> bool:
    """Whether an 8-byte field lies across the border of a 64-byte line, so that readers could see half a change."""
    return offset % LINE > LINE - 8


def is_version_0(start: bytes) -> bool:
    """Whether a file that begins with these 64 bytes has the superblock this package writes (8-byte addresses)."""
    return start[:9] == SIGNATURE + b"\x00" and start[13:15] == b"\x08\x08"


def end_of_file(start: bytes) -> int:
    return int.from_bytes(start[END_OF_FILE : END_OF_FILE + 8], "little")


def _messages(read: Read, header: int) -> dict[int, int]:
    """Offsets of the first message of each type in an object header."""
    version, count, size = struct.unpack("<BxH4xI", read(header, 12))
    if version != 1:
        raise ConfigError(f"object header of version {version}, not 1")
    places: dict[int, int] = {}
    blocks = [(header + 16, size)]
    for begin, length in blocks:  # continuations are appended on the way
        block, at = read(begin, length), 0
        while at + 8 <= len(block) and count:
            kind, size = struct.unpack_from("<HH", block, at)
            if kind == _CONTINUATION:
                blocks.append(struct.unpack_from("<QQ", block, at + 8))
            places.setdefault(kind, begin + at + 8)
            at, count = at + 8 + size, count - 1
    return places
