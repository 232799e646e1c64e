"""LZ4 blocks, and the chunks that HDF5's LZ4 filter (32004) makes of them.

The functions are those inside bitshuffle's extension module, which every installation has and which carries LZ4
with it (or is linked to it); a system's liblz4 is the second choice. Both release the GIL while they work."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import bitshuffle.ext
import numpy as np

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

RATIO = 255  # no LZ4 block holds more than so many times its own size
HEAD = struct.Struct(">QI")  # of a chunk: bytes of pixels, bytes of a block; before each block its length
SMALLEST_BLOCK = 4096  # of a chunk with several blocks; HDF5 makes one block of a chunk
LARGEST = 0x7E000000  # bytes that one block can hold


def _library() -> Any:
    for name in (bitshuffle.ext.__file__, "liblz4.so.1"):
        try:
            library = ctypes.CDLL(name)
            for function, arguments in (("LZ4_compress_default", 2), ("LZ4_decompress_safe", 2)):
                found = getattr(library, function)
                found.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int] * arguments
                found.restype = ctypes.c_int
            library.LZ4_compress_fast.restype = ctypes.c_int
        except (OSError, AttributeError):
            continue
        return library
    raise ImportError("no LZ4: neither bitshuffle's extension module nor liblz4.so.1 offers its functions")


_lib = _library()


def addresses() -> tuple[int, int]:
    """Of LZ4_compress_fast and LZ4_decompress_safe, for compiled callers."""
    found = [ctypes.cast(f, ctypes.c_void_p).value for f in (_lib.LZ4_compress_fast, _lib.LZ4_decompress_safe)]
    assert found[0] and found[1]
    return found[0], found[1]


def compress(raw: Bytes) -> Bytes:
    """One raw block."""
    if raw.size > LARGEST:
        raise StreamError(f"lz4: {raw.size} bytes are more than a block can hold")
    out = np.empty(raw.size + raw.size // 255 + 16, np.uint8)
    size = _lib.LZ4_compress_default(raw.ctypes.data, out.ctypes.data, raw.size, out.size)
    return out[:size]


def decompress_into(data: Bytes, out: Bytes) -> None:
    """A raw block that must fill `out` exactly; StreamError when it does not."""
    size = _lib.LZ4_decompress_safe(data.ctypes.data, out.ctypes.data, data.size, out.size)
    if size != out.size:
        found = "damaged" if size < 0 else f"{size} bytes of pixels, {out.size} expected"
        raise StreamError(f"lz4: {found}")


def is_chunk(data: Buffer) -> bool:
    """Is this the chunk of the HDF5 filter, not a raw block? The chunk begins with a size below 2**40, three zeros;
    in a block these would be a match at the distance 0, which there is not."""
    return bytes(memoryview(data)[:3]) == b"\0\0\0"


def to_chunk(data: Buffer, nbytes: int) -> Buffer:
    """A raw block (or a chunk: as it is) -> the chunk of the HDF5 filter, without compressing again."""
    _plausible(data, nbytes)
    if is_chunk(data):
        _blocks(memoryview(data), nbytes)
        return data
    if len(data) == nbytes:  # the filter would take it for plain pixels
        out = np.empty(nbytes, np.uint8)
        decompress_into(np.frombuffer(data, np.uint8), out)
        data = out.data
    return b"".join((HEAD.pack(nbytes, nbytes), len(data).to_bytes(4, "big"), data))


def from_any(data: Buffer, nbytes: int) -> Bytes:
    """The pixels of a raw block or of a chunk. StreamError: damaged data."""
    _plausible(data, nbytes)
    view = np.frombuffer(data, np.uint8)
    blocks = _blocks(memoryview(data), nbytes) if is_chunk(data) else [(0, view.size, 0, nbytes)]
    out = np.empty(nbytes, np.uint8)
    for start, size, at, length in blocks:
        if len(blocks) > 1 or start:
            if size == length:
                out[at : at + length] = view[start : start + size]
                continue
        decompress_into(view[start : start + size], out[at : at + length])
    return out


def _plausible(data: Buffer, nbytes: int) -> None:
    if len(data) * RATIO < nbytes or not len(data):
        raise StreamError(f"lz4: {len(data)} bytes cannot hold an image of {nbytes}")


def _blocks(view: memoryview, nbytes: int) -> list[tuple[int, int, int, int]]:
    """Of a chunk: (start, size) in the data and (start, size) in the pixels."""
    if len(view) < HEAD.size + 4:
        raise StreamError(f"lz4: {len(view)} bytes are less than a header")
    found, block = HEAD.unpack_from(view)
    if found != nbytes:
        raise StreamError(f"lz4: header says {found} bytes, shape and type say {nbytes}")
    if block < min(nbytes, SMALLEST_BLOCK):
        raise StreamError(f"lz4: blocks of {block} bytes")
    blocks, start, end = [], HEAD.size, len(view)
    for at in range(0, nbytes, block):
        size = int.from_bytes(view[start : start + 4], "big")
        start += 4
        if not 0 < size <= end - start:
            raise StreamError(f"lz4: block of {size} bytes where {max(0, end - start)} are left")
        blocks.append((start, size, at, min(block, nbytes - at)))
        start += size
    if start != end:
        raise StreamError(f"lz4: blocks end at byte {start}, the data at {end}")
    return blocks
