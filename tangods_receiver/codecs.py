"""Pixels to bytes and back, by name. Input comes from the network: the worst that it does is a StreamError.

| name | bytes |
| --- | --- |
| none | plain pixels, little-endian |
| bslz4 | a chunk of HDF5 filter 32008 |
| lz4 | a raw LZ4 block (Dectris' `lz4<`), or a chunk of HDF5 filter 32004, into which it is made for the file |
| cbf | a whole miniCBF file, byte-offset compressed; only read |
| mono12p | 12-bit pixels, two in three bytes: b0 + (b1 & 15) * 256, (b1 >> 4) + b2 * 16 |
| mono12packed | Andor's: b0 * 16 + (b1 & 15), (b1 >> 4) + b2 * 16 |
| padded | plain pixels, each row followed by bytes that mean nothing; only read |

Rows of 12-bit pixels may be padded, too: each then begins with a byte of its own, at len / rows from the one before.
"""

from __future__ import annotations

import ctypes
import struct
from math import prod
from typing import Any

import bitshuffle
import bitshuffle.ext
import numpy as np

from tangods_receiver import cbf, kernels, lz4block
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

Array = np.ndarray[Any, Any]

STORED = {"none": "none", "bslz4": "bslz4", "lz4": "lz4", "cbf": "none", "mono12p": "none", "mono12packed": "none"}
STORED["padded"] = "none"
PACKED = ("mono12p", "mono12packed")
_HEAD = struct.Struct(">QI")
_BLOCK = 8192  # bytes, as bitshuffle chooses itself


def stored_as(codec: str, dtype: str) -> tuple[str, str]:
    """Codec and type in a file of what arrives so: HDF5 has no filter for all of them."""
    try:
        becomes = STORED[codec]
    except KeyError:
        raise StreamError(f"compression {codec!r} is not known, known are {', '.join(STORED)}") from None
    return becomes, {"cbf": "int32", "mono12p": "uint16", "mono12packed": "uint16"}.get(codec, dtype)


def compress(codec: str, array: Array) -> Buffer:
    """The bytes of one chunk. StreamError: a codec that is only read, or not known."""
    array = np.ascontiguousarray(array)
    if codec == "none":
        return _bytes_of(array).data
    if codec == "bslz4":
        return _to_bslz4(array)
    if codec == "lz4":
        raw = _bytes_of(array)
        return lz4block.to_chunk(lz4block.compress(raw).data, raw.size)
    if codec in PACKED:
        return _pack12(codec, array).data
    raise StreamError(f"cannot compress to {codec!r}")


def decompress(codec: str, data: Buffer, shape: tuple[int, ...], dtype: str) -> Array:
    """Pixels of one image or module, read only where they need no decoding. StreamError: damaged data."""
    if codec == "none":
        return _plain(data, shape, np.dtype(dtype))
    if codec == "bslz4":
        return _bslz4(data, shape, np.dtype(dtype))
    if codec == "cbf":
        return cbf.decode(data, shape)
    if codec == "lz4":
        kind = np.dtype(dtype)
        return lz4block.from_any(data, prod(shape) * kind.itemsize).view(kind).reshape(shape)
    if codec in PACKED:
        return _unpack12(codec, data, shape)
    if codec == "padded":
        kind = np.dtype(dtype)
        return np.ascontiguousarray(_rows(codec, data, shape, shape[-1] * kind.itemsize)).view(kind)
    raise StreamError(f"compression {codec!r} is not known, known are {', '.join(STORED)}")


def convert(data: Buffer, shape: tuple[int, ...], dtype: str, codec: str, target: str) -> Buffer:
    """The chunk `target` of what came as `codec`, by the shortest way there is. StreamError: damaged data."""
    if codec == target == "lz4":
        return lz4block.to_chunk(data, prod(shape) * np.dtype(dtype).itemsize)
    if codec == target == "bslz4":
        _bslz4_block(memoryview(data).cast("B"), prod(shape), np.dtype(dtype))
        return data
    if codec == target:
        return data
    if codec == "cbf" and target == "bslz4" and (chunk := cbf.to_bslz4(data, shape)) is not None:
        return chunk
    return compress(target, decompress(codec, data, shape, dtype))


def _bytes_of(array: Array) -> lz4block.Bytes:
    return array.reshape(-1).view(np.uint8)


def _plain(data: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    pixels = prod(shape)
    if len(data) != pixels * dtype.itemsize:
        raise StreamError(f"{len(data)} bytes of pixels, {pixels * dtype.itemsize} expected")
    array = np.frombuffer(data, dtype, pixels).reshape(shape)
    array.flags.writeable = False  # it is the message itself
    return array


# --- bitshuffle and LZ4 ----------------------------------------------------------------------------------------------


def _library() -> Any:
    """bitshuffle's OpenMP would start a thread for each core in each worker, and their waiting burns the cores."""
    return getattr(ctypes.CDLL(bitshuffle.ext.__file__), "omp_set_num_threads", None)


_set_threads = _library()


def _one_thread() -> None:
    """The setting belongs to the calling thread."""
    if _set_threads is not None:
        _set_threads(1)


def _default_block(itemsize: int) -> int:
    """Pixels in a block."""
    return max(128, _BLOCK // itemsize // 8 * 8)


def _to_bslz4(array: Array) -> bytes:
    if kernels.pixels is not None:
        return bytes(kernels.pixels.bslz4_encode(_bytes_of(array), array.itemsize))
    _one_thread()
    block = _default_block(array.itemsize)
    head = _HEAD.pack(array.nbytes, block * array.itemsize)
    return head + bytes(bitshuffle.compress_lz4(array.reshape(-1), block))


def _bslz4(data: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    view = memoryview(data).cast("B")
    block = _bslz4_block(view, prod(shape), dtype)
    _one_thread()
    try:
        return np.asarray(bitshuffle.decompress_lz4(np.frombuffer(view, np.uint8)[_HEAD.size :], shape, dtype, block))
    except Exception as exc:  # the extension raises bare Exception
        raise StreamError(f"bslz4: damaged ({exc})") from exc


def _bslz4_block(view: memoryview, pixels: int, dtype: np.dtype[Any]) -> int:
    """Pixels in a block of a chunk that no reader will stumble over; the pixels themselves may still be damaged."""
    if len(view) < _HEAD.size:
        raise StreamError(f"bslz4: {len(view)} bytes are less than a header")
    nbytes, block_bytes = _HEAD.unpack_from(view)
    if nbytes != pixels * dtype.itemsize:
        raise StreamError(f"bslz4: header says {nbytes} bytes, shape and type say {pixels * dtype.itemsize}")
    if len(view) * lz4block.RATIO < nbytes:
        raise StreamError(f"bslz4: {len(view)} bytes cannot hold an image of {nbytes}")
    block = block_bytes // dtype.itemsize or _default_block(dtype.itemsize)
    if block % 8 or block_bytes % dtype.itemsize or block_bytes > 1 << 24:
        raise StreamError(f"bslz4: blocks of {block_bytes} bytes cannot hold pixels of {dtype.itemsize} bytes")
    _walk_blocks(view, pixels, dtype.itemsize, block)
    return block


def _walk_blocks(view: memoryview, pixels: int, itemsize: int, block: int) -> None:
    """Bitshuffle trusts the length before each block; a false one would send it out of the buffer."""
    at, end = _HEAD.size, len(view)
    rest = pixels % block
    blocks = pixels // block + (1 if rest >= 8 else 0)
    if 5 * blocks > end:
        raise StreamError(f"bslz4: {end} bytes cannot hold {blocks} blocks")
    if kernels.pixels is not None:
        if kernels.pixels.walk(view, blocks, rest % 8 * itemsize):
            raise StreamError(f"bslz4: the {blocks} blocks do not fill the {end} bytes of data")
        return
    for index in range(blocks):
        if at + 4 > end:
            raise StreamError(f"bslz4: ends before block {index} of {blocks}")
        at += 4 + int.from_bytes(view[at : at + 4], "big")
    if at + rest % 8 * itemsize != end:
        raise StreamError(f"bslz4: blocks end at byte {at + rest % 8 * itemsize}, the data at {end}")


# --- twelve bits -----------------------------------------------------------------------------------------------------


def packed_size(pixels: int) -> int:
    """Bytes of so many pixels of 12 bits."""
    return (3 * pixels + 1) // 2


def _unpack12(codec: str, data: Buffer, shape: tuple[int, ...]) -> Array:
    pixels = prod(shape)
    if len(data) == packed_size(pixels):
        return _unpacked(codec, np.frombuffer(data, np.uint8), pixels).reshape(shape)
    rows = _rows(codec, data, shape, packed_size(shape[-1]))
    if shape[-1] % 2:
        return np.stack([_unpacked(codec, row, shape[-1]) for row in rows])
    return _unpacked(codec, np.ascontiguousarray(rows).reshape(-1), pixels).reshape(shape)


def _rows(codec: str, data: Buffer, shape: tuple[int, ...], nbytes: int) -> Array:
    """Rows without their padding, each of `nbytes` bytes."""
    if len(shape) != 2 or shape[0] < 2 or len(data) % shape[0] or len(data) // shape[0] < nbytes:
        raise StreamError(f"{codec}: {len(data)} bytes, {shape[0]} rows of {nbytes} or more expected")
    return np.frombuffer(data, np.uint8).reshape(shape[0], -1)[:, :nbytes]


def _unpacked(codec: str, raw: lz4block.Bytes, pixels: int) -> Array:
    out = np.empty(pixels, np.uint16)
    if kernels.pixels is not None:
        kernels.pixels.unpack12(raw, out, codec == "mono12packed")
    else:
        _unpack12_by_numpy(raw, out, codec == "mono12packed")
    return out


def _unpack12_by_numpy(raw: lz4block.Bytes, out: Array, high_first: bool) -> None:
    first, second = out[0::2], out[1::2]
    middle = raw[1::3]
    first[...] = raw[0::3]
    if high_first:
        first <<= 4
        first |= middle & 15
    else:
        first |= (middle & 15).astype(np.uint16) << 8
    second[...] = raw[2::3]
    second <<= 4
    second |= middle[: second.size] >> 4


def _pack12(codec: str, array: Array) -> lz4block.Bytes:
    if array.dtype.kind not in "iu" or (array.size and (array.min() < 0 or array.max() > 4095)):
        raise StreamError(f"{codec}: pixels of 12 bits are 0 to 4095")
    flat = array.astype(np.uint16).reshape(-1)
    out = np.zeros(packed_size(flat.size), np.uint8)
    first, second = flat[0::2], flat[1::2]
    out[0::3] = first >> 4 if codec == "mono12packed" else first & 255
    out[1::3] = first & 15 if codec == "mono12packed" else first >> 8
    out[1::3][: second.size] |= ((second & 15) << 4).astype(np.uint8)
    out[2::3] = second >> 4
    return out
