"""Compress and decompress by name: `none`, `bslz4` (a chunk of HDF5 filter 32008), `cbf` (a whole miniCBF file).

Input comes from the network: whatever it holds, the worst that happens is a StreamError."""

from __future__ import annotations

import re
import struct
from typing import Any

import bitshuffle
import numpy as np

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

Array = np.ndarray[Any, Any]

_HEAD = struct.Struct(">QI")
_CBF_START = b"\x0c\x1a\x04\xd5"
_CBF_HEADER_MAX = 65536  # bytes of text before the pixels
_SPARE = 16  # bytes behind the pixels of a CBF, so that a cut escape reads them and not foreign memory


def compress(codec: str, array: Array) -> bytes:
    """The bytes of one chunk. StreamError: a codec that is only read, or not known."""
    if codec == "none":
        return np.ascontiguousarray(array).tobytes()
    if codec == "bslz4":
        array = np.ascontiguousarray(array)
        block = _default_block(array.itemsize)
        head = _HEAD.pack(array.nbytes, block * array.itemsize)
        return head + bytes(bitshuffle.compress_lz4(array.reshape(-1), block))
    raise StreamError(f"cannot compress to {codec!r}")


def decompress(codec: str, data: Buffer, shape: tuple[int, ...], dtype: str) -> Array:
    """Pixels of one image or module, read only where they need no decoding. StreamError: damaged data."""
    if codec == "none":
        return _plain(data, shape, np.dtype(dtype))
    if codec == "bslz4":
        return _bslz4(data, shape, np.dtype(dtype))
    if codec == "cbf":
        return _cbf(data, shape)
    raise StreamError(f"compression {codec!r} is not known")


def _plain(data: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    pixels = _size(shape)
    if len(data) != pixels * dtype.itemsize:
        raise StreamError(f"{len(data)} bytes of pixels, {pixels * dtype.itemsize} expected")
    return np.frombuffer(data, dtype, pixels).reshape(shape)


def _size(shape: tuple[int, ...]) -> int:
    pixels = 1
    for n in shape:
        pixels *= n
    return pixels


# --- bitshuffle and LZ4 ----------------------------------------------------------------------------------------------


def _default_block(itemsize: int) -> int:
    """Pixels in a block: 8 KiB, as bitshuffle chooses itself."""
    return max(128, 8192 // itemsize // 8 * 8)


def _bslz4(data: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    view = memoryview(data)
    pixels = _size(shape)
    if len(view) < _HEAD.size:
        raise StreamError(f"bslz4: {len(view)} bytes are less than a header")
    nbytes, block_bytes = _HEAD.unpack_from(view)
    if nbytes != pixels * dtype.itemsize:
        raise StreamError(f"bslz4: header says {nbytes} bytes, shape and type say {pixels * dtype.itemsize}")
    block = block_bytes // dtype.itemsize or _default_block(dtype.itemsize)
    if block % 8 or block_bytes % dtype.itemsize or block_bytes > 1 << 24:
        raise StreamError(f"bslz4: blocks of {block_bytes} bytes cannot hold pixels of {dtype.itemsize} bytes")
    _walk_blocks(view, pixels, dtype.itemsize, block)
    try:
        return np.asarray(bitshuffle.decompress_lz4(np.frombuffer(view, np.uint8)[_HEAD.size :], shape, dtype, block))
    except Exception as exc:  # the extension raises bare Exception
        raise StreamError(f"bslz4: damaged ({exc})") from exc


def _walk_blocks(view: memoryview, pixels: int, itemsize: int, block: int) -> None:
    """Bitshuffle trusts the length before each block; a false one would send it out of the buffer."""
    at, end = _HEAD.size, len(view)
    rest = pixels % block
    blocks = pixels // block + (1 if rest >= 8 else 0)
    for index in range(blocks):
        if at + 4 > end:
            raise StreamError(f"bslz4: ends before block {index} of {blocks}")
        at += 4 + int.from_bytes(view[at : at + 4], "big")
    if at + rest % 8 * itemsize != end:
        raise StreamError(f"bslz4: blocks end at byte {at + rest % 8 * itemsize}, the data at {end}")


# --- miniCBF ---------------------------------------------------------------------------------------------------------


def _cbf(data: Buffer, shape: tuple[int, ...]) -> Array:
    """int32 pixels of the first binary section."""
    view = memoryview(data)
    head = bytes(view[:_CBF_HEADER_MAX])
    start = head.find(_CBF_START)
    if start < 0:
        raise StreamError(f"cbf: no start of the pixels in the first {len(head)} bytes")
    size, rows, columns = _cbf_header(head[:start])
    pixels = _size(shape)
    if len(shape) != 2 or (rows, columns) != (shape[0], shape[1]):
        raise StreamError(f"cbf: image of {rows} x {columns}, shape says {' x '.join(map(str, shape))}")
    start += len(_CBF_START)
    if size > len(view) - start:
        raise StreamError(f"cbf: X-Binary-Size says {size} bytes, {len(view) - start} are there")
    from fabio.ext import byte_offset  # half a second to import, and only Pilatus needs it

    # With the spare zeros behind it, a complete image decodes to exactly so many pixels more: neither short nor long.
    decoded = byte_offset.dec_cbf32(bytes(view[start : start + size]) + bytes(_SPARE), pixels + _SPARE + 1)
    if decoded.size != pixels + _SPARE:
        raise StreamError(f"cbf: {max(0, decoded.size - _SPARE)} pixels or more, the image has {pixels}")
    return np.asarray(decoded[:pixels].reshape(shape), np.int32)


def _cbf_header(head: bytes) -> tuple[int, int, int]:
    """Bytes of pixels, rows, columns."""
    if b"x-CBF_BYTE_OFFSET" not in head:
        raise StreamError("cbf: not byte-offset compressed")
    kind = re.search(rb'X-Binary-Element-Type:\s*"([^"\r\n]*)"', head)
    if kind and kind[1] != b"signed 32-bit integer":
        raise StreamError(f"cbf: pixels are {kind[1].decode('latin-1')!r}, not 'signed 32-bit integer'")
    columns, rows = (_cbf_number(head, rb"X-Binary-Size-%s-Dimension" % name) for name in (b"Fastest", b"Second"))
    return _cbf_number(head, b"X-Binary-Size"), rows, columns


def _cbf_number(head: bytes, name: bytes) -> int:
    found = re.search(rb"^" + name + rb":\s*(\d{1,12})\s*$", head, re.MULTILINE)
    if not found:
        raise StreamError(f"cbf: no line {name.decode()}")
    return int(found[1])
