"""Payloads that are made beforehand and sent as they are: a bslz4 chunk of an image that compresses as wanted."""

from __future__ import annotations

import bitshuffle
import numpy as np

BLOCK = 4096  # pixels of uint16 in a block of 8192 bytes
HEADER, LENGTH = 12, 4  # bytes before the first block, and of a block's length


def noisy(pixels: int, ratio: float) -> np.ndarray:
    """As generator.c -z: the first of `ratio` parts of each block noise, the rest 0."""
    image = np.random.default_rng(1).integers(0, 1 << 16, pixels, np.uint16)
    image[(np.arange(pixels) % BLOCK) * ratio >= BLOCK] = 0
    return image


def bslz4(rows: int, columns: int, ratio: float) -> tuple[bytes, int]:
    """A chunk as of HDF5 filter 32008, and where in it the tag may be written.

    Its first block is stored by LZ4 as it is (all literals), so that the tag, in the lowest bits of the first 128
    pixels, can be changed without compressing anew. ValueError: fewer than 4096 pixels."""
    if rows * columns < BLOCK:
        raise ValueError(f"an image of {rows * columns} pixels has no whole block of {BLOCK}")
    return chunk(noisy(rows * columns, ratio))


def photons(rows: int, columns: int, mean: float) -> np.ndarray:
    """uint32 counts of a photon counting detector, Poisson distributed; one pixel in a thousand is masked."""
    source = np.random.default_rng(1)
    image = source.poisson(mean, rows * columns).astype(np.uint32)
    image[source.random(image.size) < 0.001] = np.iinfo(np.uint32).max
    return image


def chunk(image: np.ndarray) -> tuple[bytes, int]:
    """As `bslz4`, of these pixels."""
    block = BLOCK * 2 // image.itemsize
    shuffled = bitshuffle.bitshuffle(image[:block], block).tobytes()
    first = literals(shuffled)
    rest = bitshuffle.compress_lz4(image[block:], block).tobytes() if len(image) > block else b""
    header = image.nbytes.to_bytes(8, "big") + (block * image.itemsize).to_bytes(4, "big")
    return header + len(first).to_bytes(4, "big") + first + rest, HEADER + LENGTH + len(first) - len(shuffled)


def literals(data: bytes) -> bytes:
    """An LZ4 block that holds `data` (15 bytes or more) as it is."""
    more, last = divmod(len(data) - 15, 255)
    return b"\xf0" + b"\xff" * more + bytes([last]) + data
