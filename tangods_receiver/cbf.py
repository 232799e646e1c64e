"""A miniCBF as camserver writes it: where its pixels are, and the byte-offset code -> int32."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tangods_receiver import kernels
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

START = b"\x0c\x1a\x04\xd5"
HEADER_MAX = 65536  # bytes of text before the pixels
_LONG = b"\x80\x00\x80\x00\x00\x00\x80"  # before a difference of 64 bits, which fabio's fast function does not know
_SPARE = 16  # bytes behind the pixels, so that a cut escape reads them and not foreign memory


def decode(data: Buffer, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """int32 pixels of the first binary section. StreamError: damaged data."""
    code = _code(data, shape)
    if kernels.pixels is None:
        return _by_fabio(code, shape)
    out = np.empty(shape, np.int32)
    _complete(kernels.pixels.cbf_decode(code, out.reshape(-1)), out.size)
    return out


def to_bslz4(data: Buffer, shape: tuple[int, ...]) -> bytes | None:
    """The chunk of filter 32008 in one pass; None: the compiled part is not there."""
    if kernels.pixels is None:
        return None
    code, pixels = _code(data, shape), shape[0] * shape[1]
    found, chunk = kernels.pixels.cbf_to_bslz4(code, pixels)
    _complete(found, pixels)
    return bytes(chunk)


def _complete(found: int, pixels: int) -> None:
    """`found`: pixels decoded, -1 when the code went on behind the last one."""
    if found != pixels:
        said = f"{found} pixels" if found >= 0 else f"more than {pixels} pixels"
        raise StreamError(f"cbf: {said}, the image has {pixels}")


def _by_fabio(code: memoryview, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    from fabio.ext import byte_offset  # half a second to import, and only Pilatus needs it

    # With the spare zeros behind it, a complete image decodes to exactly so many pixels more: neither short nor long.
    pixels = shape[0] * shape[1]
    padded = bytes(code) + bytes(_SPARE)
    decoded = np.asarray(byte_offset.dec_cbf32(padded, pixels + _SPARE + 1))
    if decoded.size != pixels + _SPARE and _LONG in padded:  # it has taken each of them for two pixels or more
        decoded = np.asarray(byte_offset.dec_cbf(padded, pixels + _SPARE + 1))
    if decoded.size != pixels + _SPARE:
        raise StreamError(f"cbf: {max(0, decoded.size - _SPARE)} pixels or more, the image has {pixels}")
    return decoded[:pixels].astype(np.int32, copy=False).reshape(shape)


def _code(data: Buffer, shape: tuple[int, ...]) -> memoryview:
    """The bytes of the pixels; nothing as large as the image is reserved before it is sure that they can fill it."""
    view = memoryview(data).cast("B")
    head = bytes(view[:HEADER_MAX])
    start = head.find(START)
    if start < 0:
        raise StreamError(f"cbf: no start of the pixels in the first {len(head)} bytes")
    size, rows, columns = _header(head[:start])
    if len(shape) != 2 or (rows, columns) != (shape[0], shape[1]):
        raise StreamError(f"cbf: image of {rows} x {columns}, shape says {' x '.join(map(str, shape))}")
    start += len(START)
    if size > len(view) - start:
        raise StreamError(f"cbf: X-Binary-Size says {size} bytes, {len(view) - start} are there")
    if size < rows * columns:  # at least a byte each
        raise StreamError(f"cbf: {size} bytes cannot hold {rows * columns} pixels")
    return view[start : start + size]


def _header(head: bytes) -> tuple[int, int, int]:
    """Bytes of pixels, rows, columns."""
    if b"x-CBF_BYTE_OFFSET" not in head:
        raise StreamError("cbf: not byte-offset compressed")
    kind = re.search(rb'X-Binary-Element-Type:\s*"([^"\r\n]*)"', head)
    if kind and kind[1] != b"signed 32-bit integer":
        raise StreamError(f"cbf: pixels are {kind[1].decode('latin-1')!r}, not 'signed 32-bit integer'")
    columns, rows = (_number(head, rb"X-Binary-Size-%s-Dimension" % name) for name in (b"Fastest", b"Second"))
    return _number(head, b"X-Binary-Size"), rows, columns


def _number(head: bytes, name: bytes) -> int:
    found = re.search(rb"^" + name + rb":\s*(\d{1,12})\s*$", head, re.MULTILINE)
    if not found:
        raise StreamError(f"cbf: no line {name.decode()}")
    return int(found[1])
