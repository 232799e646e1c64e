"""CBF files as camserver writes them, and how it brings them into a folder."""

import base64
import hashlib
import os
import time
from pathlib import Path

import numpy as np
from fabio.compression import compByteOffset

SHAPE = (12, 10)
PATTERN = "test_%05d.cbf"

HEADER = """###CBF: VERSION 1.5, CBFlib v0.7.8 - PILATUS detectors

data_{stem}

_array_data.header_convention "PILATUS_1.2"
_array_data.header_contents
;
# Detector: PILATUS3 2M, S/N 24-0124
# 2026-01-05T10:00:00.250
# Pixel_size 172e-6 m x 172e-6 m
# Silicon sensor, thickness 0.001000 m
# Exposure_time 0.0990000 s
# Exposure_period 0.1000000 s
# Tau = 0 s
# Count_cutoff 1009797 counts
# Threshold_setting: 6344 eV
# Gain_setting: autog (vrf = 1.000)
# Wavelength 0.9763 A
# Beam_xy (1231.50, 1263.50) pixels
;

_array_data.data
;
--CIF-BINARY-FORMAT-SECTION--
Content-Type: application/octet-stream;
     conversions="x-CBF_BYTE_OFFSET"
Content-Transfer-Encoding: BINARY
X-Binary-Size: {size}
X-Binary-ID: 1
X-Binary-Element-Type: "signed 32-bit integer"
X-Binary-Element-Byte-Order: LITTLE_ENDIAN
Content-MD5: {md5}
X-Binary-Number-of-Elements: {pixels}
X-Binary-Size-Fastest-Dimension: {columns}
X-Binary-Size-Second-Dimension: {rows}
X-Binary-Size-Padding: 4095

"""


def image(number: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Pixels that tell which image they are; all the escapes of the code occur, and gaps and dead pixels."""
    pixels = (np.arange(shape[0] * shape[1], dtype=np.int32) % 50).reshape(shape)
    pixels[0, :4] = -1, -2, 1_009_797, 30_000
    pixels[-1, -1] = number
    return pixels


def cbf(pixels: np.ndarray, stem: str = "test") -> bytes:
    """The whole file."""
    code = bytes(compByteOffset(pixels))
    text = HEADER.format(
        stem=stem,
        size=len(code),
        md5=base64.b64encode(hashlib.md5(code).digest()).decode(),
        pixels=pixels.size,
        rows=pixels.shape[0],
        columns=pixels.shape[1],
    )
    end = b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n\r\n"
    return text.replace("\n", "\r\n").encode() + b"\x0c\x1a\x04\xd5" + code + bytes(4095) + end


def place(folder: Path, name: str, data: bytes) -> None:
    """Under another name first, then renamed."""
    temporary = os.path.join(folder, f".{name}.tmp")
    with open(temporary, "wb", buffering=0) as file:
        file.write(data)
    os.rename(temporary, os.path.join(folder, name))


def write(folder: Path, numbers, shape: tuple[int, int] = SHAPE, pattern: str = PATTERN, first: int = 0) -> None:
    """Images of these numbers, file names from `first`, in this order."""
    for number in numbers:
        place(folder, pattern % (number + first), cbf(image(number, shape)))


class Template:
    """Files that differ in the last pixel only, at no cost: for rates."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._cache = cbf(image(0, shape))

    def write(self, folder: Path, number: int, pattern: str = PATTERN) -> None:
        place(folder, pattern % number, self._cache)


def paced(rate: float, count: int):
    """0 to `count` - 1, each at its time."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        yield number
