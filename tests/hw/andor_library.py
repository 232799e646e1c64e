"""The pretended libatcore in this process: commands, counts, and what its images must be."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from tangods_detector.hw.andor_sdk import Library
from tangods_detector.settings import Settings

MARKS = (0xACE, 0x5A5)


class Fake:
    """The library at `path`, for those who know that it is pretended."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = Library.load(self.path).functions
        self._library.SIM_Command.argtypes = [ctypes.c_char_p]
        self._library.SIM_Count.argtypes = [ctypes.c_char_p]
        self._library.SIM_Count.restype = ctypes.c_longlong

    def tell(self, *commands: str) -> None:
        for words in commands:
            assert self._library.SIM_Command(words.encode()) == 0, words

    def count(self, what: str) -> int:
        return int(self._library.SIM_Count(what.encode()))


def expected_image(number: int, settings: Settings, size: tuple[int, int], bits: int) -> np.ndarray:
    """What the camera sees in exposure `number`, rows x columns of uint16, with settings that it accepted."""
    x, y, width, height = settings.roi or (0, 0, size[1], size[0])
    bin_x, bin_y = settings.binning
    columns = (37 * (x + bin_x * np.arange(width // bin_x))).astype(np.uint16)  # modulo 2^16
    rows = (1031 * (y + bin_y * np.arange(height // bin_y))).astype(np.uint16)
    image = rows[:, None] + columns
    image &= np.uint16((1 << bits) - 1)
    for row in (0, -1):
        image[row, :4] = (number & 0xFFF, number >> 12 & 0xFFF, *MARKS)
    return image


def numbers_in(images: np.ndarray) -> list[int]:
    """Which exposures these are (n x rows x columns); -1: the tag is damaged, or first and last row do not agree."""
    found = []
    for image in images:
        first, last = image[0, :4].astype(int), image[-1, :4].astype(int)
        good = (first == last).all() and tuple(first[2:]) == MARKS
        found.append(int(first[0] + (first[1] << 12)) if good else -1)
    return found
