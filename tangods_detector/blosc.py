"""Blosc buffers, which xspd may send: the functions inside hdf5plugin's filter, else a system's libblosc."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

OVERHEAD = 16  # bytes that an incompressible buffer grows by; the size of the header, too
SHUFFLES = {"NO_SHUFFLE": 0, "BYTE_SHUFFLE": 1, "BIT_SHUFFLE": 2, "AUTO_SHUFFLE": 2}
LARGEST = 1 << 30  # bytes that a buffer is believed to hold


@lru_cache
def _library() -> Any:
    """None: there is none on this machine."""
    found = importlib.util.find_spec("hdf5plugin")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    for name in (*(str(folder / "plugins" / "libh5blosc.so") for folder in folders), "libblosc.so.1"):
        try:
            library = ctypes.CDLL(name)
            shrink, grow = library.blosc_compress_ctx, library.blosc_decompress_ctx
        except (OSError, AttributeError):
            continue
        size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
        shrink.argtypes = [number, number, size, size, ctypes.c_char_p, pointer, size, ctypes.c_char_p, size, number]
        grow.argtypes = [ctypes.c_char_p, pointer, size, number]
        return library
    return None


def available() -> bool:
    return _library() is not None


def compress(raw: bytes, itemsize: int, compressor: str, level: int, shuffle: str) -> bytes:
    """`compressor` such as `lz4`; `shuffle` in xspd's words. StreamError: this library has it not."""
    library = _need()
    out = ctypes.create_string_buffer(len(raw) + OVERHEAD)
    mode = SHUFFLES[shuffle]
    size = library.blosc_compress_ctx(
        level, mode, itemsize, len(raw), raw, out, len(out), compressor.encode(), 0, 1
    )  # one thread
    if size <= 0:
        raise StreamError(f"blosc: cannot compress with {compressor} ({size})")
    return out.raw[:size]


def decompress(data: Buffer, nbytes: int) -> bytes:
    """The `nbytes` that are in it. StreamError: damaged, or another number of bytes."""
    library = _need()
    packed = bytes(data)
    told = int.from_bytes(packed[4:8], "little"), int.from_bytes(packed[12:16], "little")
    if len(packed) < OVERHEAD or told != (nbytes, len(packed)) or nbytes > LARGEST:
        raise StreamError(f"{len(packed)} bytes are no blosc buffer of {nbytes} bytes")
    out = ctypes.create_string_buffer(nbytes)
    if (size := library.blosc_decompress_ctx(packed, out, nbytes, 1)) != nbytes:
        raise StreamError(f"blosc: {len(packed)} bytes are damaged ({size})")
    return out.raw


def _need() -> Any:
    library = _library()
    if library is None:
        raise StreamError("blosc: neither hdf5plugin nor libblosc.so.1 is here; set the detector's compressor to none")
    return library
