"""What the simulated detector sees: pure functions from options and settings to images and their compressed bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import bitshuffle
import numpy as np
from numpy.typing import NDArray

from tangods_detector.options import option
from tangods_detector.settings import Settings
from tangods_receiver.errors import ConfigError

Image = NDArray[Any]

STAMP = struct.Struct("<Q")  # the frame number, in the first 8 bytes of every image
BLOCK_BYTES = 8192  # of one bitshuffle block
RENDER_PIXELS = 8_000_000  # so many pixels are rendered in all: more different images when they are small


@dataclass(frozen=True)
class SimulatorOptions:
    """What kind of detector is simulated, and where it streams."""

    host: str = option("127.0.0.1", "address the stream is bound to; * for all interfaces")
    port: int = option(0, "TCP port of the stream; 0 takes any free one (see the Endpoints attribute)")
    width: int = option(1024, "pixels in a row")
    height: int = option(1024, "rows")
    dtype: Literal["uint8", "uint16", "uint32", "int32", "float32"] = option("uint16", "type of the pixels")
    look: Literal["photon", "scmos"] = option(
        "photon", "photon: rings and peaks that are counted; scmos: offset, noise"
    )
    codec: Literal["bslz4", "none"] = option("bslz4", "how the images are sent: bslz4 (compressed) or none")
    images: int = option(0, "how many different images are rendered, sent in turn; 0 chooses by size (2 to 16)")
    latency: float = option(1e-5, "dead time between two frames, s")
    pixel_size: float = option(75e-6, "edge of a pixel, m")
    serial_number: str = option("SIM-0001", "shown and written into the file")
    hwm_bytes: int = option(256_000_000, "so many bytes of images may wait for a slow receiver")
    send_timeout: float = option(5.0, "limit for the start message to find a receiver, s")
    seed: int = option(1, "of the random numbers")
    curve_key: str = option("", "this sender's .key_secret file: the stream is encrypted; needs curve_clients")
    curve_clients: str = option("", "directory with the public .key files of the receivers that may connect")
    allow_peers: tuple[str, ...] = option((), "addresses or networks, with commas, that may connect; empty: all")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("port", self.port, 0, 65535),
                ("width", self.width, 8, 32768),
                ("height", self.height, 1, 32768),
                ("images", self.images, 0, 1000),
                ("latency", self.latency, 0, 10),
                ("send_timeout", self.send_timeout, 0.01, 3600),
                ("hwm_bytes", self.hwm_bytes, 1, 2**40),
            )
            if not low <= value <= high
        ]
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def n_images(self) -> int:
        """How many different images there are."""
        return self.images or int(np.clip(RENDER_PIXELS // (self.width * self.height), 2, 16))


# --- what the sensor sees -----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def sensor_image(options: SimulatorOptions, i: int) -> Image:
    """The full sensor, as float32 of whole numbers: base image `i` of `options.n_images`."""
    draw: Callable[[SimulatorOptions, int, np.random.Generator], Image] = {"photon": _photon, "scmos": _scmos}[
        options.look
    ]
    image = draw(options, i, np.random.default_rng((options.seed, i)))
    image.setflags(write=False)
    return image


def _photon(options: SimulatorOptions, i: int, rng: np.random.Generator) -> Image:
    """Powder rings and single peaks on a little background, counted; gaps between modules; a beam that moves."""
    rows, columns = options.height, options.width
    y, x = np.ogrid[:rows, :columns]
    size = np.float32(min(rows, columns))
    radius = np.hypot((y - rows * 0.5), (x - columns * 0.5)).astype(np.float32) / size
    profile = np.full(2048, 0.05, np.float32)  # the rings as a table over the radius, which is quick
    r = np.linspace(0, 1.5, profile.size, dtype=np.float32)
    for ring, strength in ((0.12, 3.0), (0.2, 2.0), (0.27, 1.2), (0.34, 0.8), (0.41, 0.5), (0.55, 0.3)):
        profile += strength * np.exp(-(((r - ring) / 0.006) ** 2))
    rate = profile[np.minimum((radius * (profile.size / 1.5)).astype(np.intp), profile.size - 1)]
    image = rng.poisson(rate).astype(np.float32)
    for _ in range(20):
        _add_blob(image, rng.uniform(0, rows), rng.uniform(0, columns), 1.2, rng.uniform(50, 500))
    _add_blob(image, *_beam(options, i), max(1.5, size / 100), 150.0)
    for start in range(256, columns, 264):
        image[:, start : start + 8] = 0
    for start in range(512, rows, 529):
        image[start : start + 17] = 0
    return image


def _scmos(options: SimulatorOptions, i: int, rng: np.random.Generator) -> Image:
    """An offset of 100, read-out noise of 2, and one wide spot that moves."""
    noise = rng.standard_normal((options.height, options.width), dtype=np.float32)
    image = np.rint(100 + 2 * noise)
    _add_blob(image, *_beam(options, i), max(2.0, min(image.shape) / 12), 60.0)
    return image.clip(0)


def _beam(options: SimulatorOptions, i: int) -> tuple[float, float]:
    """Row and column of the beam: it walks on a circle around the middle."""
    angle = 2 * np.pi * i / options.n_images
    return options.height * (0.5 + 0.05 * np.sin(angle)), options.width * (0.5 + 0.05 * np.cos(angle))


def _add_blob(image: Image, row: float, column: float, sigma: float, height: float) -> None:
    """Add a Gaussian spot of whole numbers, in place."""
    reach = int(4 * sigma) + 1
    top, left = max(0, int(row) - reach), max(0, int(column) - reach)
    part = image[top : int(row) + reach + 1, left : int(column) + reach + 1]
    y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    part += np.rint(height * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2))).astype(np.float32)


# --- what the electronics makes of it -------------------------------------------------------------------------------


def accepted_settings(options: SimulatorOptions, settings: Settings) -> Settings:
    """What this detector makes of the settings: region cut to whole bins, bit depth chosen. ConfigError: impossible."""
    roi = settings.roi
    bx, by = settings.binning
    if bx > 8 or by > 8:
        raise ConfigError(f"Binning: {bx} x {by}; at most 8 x 8")
    x, y, width, height = roi or (0, 0, options.width, options.height)
    if min(x, y) < 0 or min(width, height) < 1 or x + width > options.width or y + height > options.height:
        raise ConfigError(
            f"Roi: x {x}, y {y}, width {width}, height {height} is not inside the sensor of "
            f"{options.width} x {options.height} pixels"
        )
    width, height = width // bx * bx, height // by * by
    if (width // bx) * (height // by) < 8:
        raise ConfigError(f"Roi: {width} x {height} pixels in bins of {bx} x {by} are too few; at least 8 must be left")
    roi = None if (x, y, width, height) == (0, 0, options.width, options.height) else (x, y, width, height)
    return replace(settings, roi=roi, bit_depth=_bit_depth(options, settings.bit_depth))


def _bit_depth(options: SimulatorOptions, wanted: int) -> int:
    native = np.dtype(options.dtype).itemsize * 8
    choices = (8, 12, 16, 32) if options.dtype.startswith("uint") else (native,)
    if wanted and wanted not in choices:
        raise ConfigError(f"BitDepth: {wanted}; can be {', '.join(map(str, choices))}, or 0 for {native}")
    return wanted or native


def image_format(options: SimulatorOptions, settings: Settings) -> tuple[tuple[int, int], str]:
    """Shape (rows, columns) and dtype name of the images that these settings give."""
    settings = accepted_settings(options, settings)
    _, _, width, height = settings.roi or (0, 0, options.width, options.height)
    shape = (height // settings.binning[1], width // settings.binning[0])
    if settings.rotation in (90, 270):
        shape = shape[::-1]
    if not options.dtype.startswith("uint"):
        return shape, options.dtype
    return shape, {8: "uint8", 12: "uint16", 16: "uint16", 32: "uint32"}[settings.bit_depth]


def base_image(options: SimulatorOptions, settings: Settings, i: int) -> Image:
    """Base image `i` as it is sent: region, binning (a sum), flips, rotation, bit depth."""
    settings = accepted_settings(options, settings)
    image = sensor_image(options, i)
    if settings.roi:
        x, y, width, height = settings.roi
        image = image[y : y + height, x : x + width]
    bx, by = settings.binning
    if (bx, by) != (1, 1):
        rows, columns = image.shape[0] // by, image.shape[1] // bx
        image = image[: rows * by, : columns * bx].reshape(rows, by, columns, bx).sum(axis=(1, 3))
    if settings.fliplr:
        image = image[:, ::-1]
    if settings.flipud:
        image = image[::-1]
    image = np.rot90(image, settings.rotation // 90)
    dtype = np.dtype(image_format(options, settings)[1])
    if dtype.kind in "ui":
        image = np.minimum(image, 2.0**settings.bit_depth - 1 if dtype.kind == "u" else np.iinfo(dtype).max)
    return np.ascontiguousarray(image, dtype)


def expected_frame(options: SimulatorOptions, settings: Settings, k: int) -> Image:
    """Exactly what frame `k` of any series contains: base image k mod n, with k (u64 LE) in its first 8 bytes."""
    return _stamped(base_image(options, settings, k % options.n_images), k)


def _stamped(image: Image, k: int) -> Image:
    stamped = image.copy()
    stamped.reshape(-1).view(np.uint8)[: STAMP.size] = np.frombuffer(STAMP.pack(k), np.uint8)
    return stamped


# --- what goes over the wire ----------------------------------------------------------------------------------------


class Prepared:
    """One base image made ready: `payload(k)` gives the bytes of frame `k` at little cost.

    Compressed, the stamp changes one byte in each bit plane of the first block and nothing else. So that block is kept
    bit-shuffled and sent as LZ4 literals, and no frame is compressed while the detector runs."""

    def __init__(self, image: Image, codec: str) -> None:
        self._codec = codec
        self._flat = image.reshape(-1)
        self._at_stamp = np.zeros(8, image.dtype)  # the eight elements that share those bytes
        self._at_stamp[:] = self._flat[:8]
        if codec == "none":
            self.nbytes = image.nbytes
            return
        block = BLOCK_BYTES // image.itemsize
        count = min(block, self._flat.size // 8 * 8)
        rest = self._flat[count:]
        tail = bitshuffle.compress_lz4(rest, block).tobytes() if count == block and rest.size else rest.tobytes()
        shuffled = bitshuffle.bitshuffle(self._flat[:count].copy(), count).view(np.uint8)
        head = struct.pack(">QI", image.nbytes, BLOCK_BYTES)
        before = _lz4_literals(shuffled.size)
        head += struct.pack(">I", len(before) + shuffled.size) + before
        self._chunk = bytearray(head + shuffled.tobytes() + tail)
        planes = np.frombuffer(self._chunk, np.uint8, shuffled.size, len(head))
        self._planes = planes[:: count // 8]
        self.nbytes = len(self._chunk)

    def payload(self, k: int) -> bytes | memoryview:
        """The image of frame `k` as it is sent; a buffer of its own that nobody changes afterwards."""
        stamp = np.frombuffer(STAMP.pack(k), np.uint8)
        if self._codec == "none":
            data = self._flat.copy()
            data.view(np.uint8)[: STAMP.size] = stamp
            return memoryview(data.view(np.uint8))
        self._at_stamp.view(np.uint8)[: STAMP.size] = stamp
        self._planes[:] = _transposed_bits(self._at_stamp)
        return bytes(self._chunk)


def _transposed_bits(eight: Image) -> NDArray[np.uint8]:
    """Bit j of byte p of the answer is bit p of element j: what bitshuffle makes of eight elements."""
    bits = np.unpackbits(eight.view(np.uint8).reshape(8, -1), axis=1, bitorder="little")
    return np.packbits(bits.T, axis=1, bitorder="little").reshape(-1)


def _lz4_literals(n: int) -> bytes:
    """What an LZ4 block begins with that is nothing but `n` literal bytes."""
    if n < 15:
        return bytes([n << 4])
    full, last = divmod(n - 15, 255)
    return b"\xf0" + b"\xff" * full + bytes([last])
