"""What is sent: frames of so many pixels, and how many of them make a trial."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import payloads

QUEUE_BYTES = 128_000_000  # high-water mark of every receiver and of the generator
MAX_BYTES = 2_000_000_000  # of one file
TAGGED = 128  # pixels at the start that hold the tag: 8 of them, or the lowest bits of all


@dataclass(frozen=True)
class Size:
    """Frames of rows x columns uint16; with a `ratio` compressed beforehand as bslz4, about so many times smaller."""

    name: str
    rows: int
    columns: int
    frames: int
    ratio: float = 0

    @property
    def bytes(self) -> int:
        """Of one payload, as it is sent."""
        return len(self.prepared()[0]) if self.ratio else 2 * self.rows * self.columns

    @property
    def queue(self) -> int:
        """Messages."""
        return max(4, QUEUE_BYTES // self.bytes)

    @property
    def tag_at(self) -> int:
        return self.prepared()[1] if self.ratio else 0

    def prepared(self) -> tuple[bytes, int]:
        """The compressed payload and the place of the tag in it."""
        return _bslz4(self.rows, self.columns, self.ratio)

    def picture(self, number: int) -> np.ndarray:
        """Pixels of picture `number` of the generator's pool, from the first that no tag is written over."""
        pixels = self.rows * self.columns
        if self.ratio:
            return payloads.noisy(pixels, self.ratio)[TAGGED:]
        return (31 * np.arange(TAGGED, pixels, dtype=np.int64) + number).astype(np.uint16)


_bslz4 = cache(payloads.bslz4)

SIZES = {
    size.name: size
    for size in (
        Size("2kB", 25, 40, 60_000),
        Size("6kB", 50, 60, 50_000),
        Size("20kB", 100, 100, 40_000),
        Size("60kB", 150, 200, 15_000),
        Size("200kB", 250, 400, 5_000),
        Size("600kB", 500, 600, 1_600),
        Size("2MB", 1000, 1000, 500),
        Size("6MB", 1500, 2000, 160),
        Size("20MB", 2500, 4000, 60),
        Size("160kB/8", 200, 400, 40_000, ratio=8),  # bslz4, 27 kB
        Size("1.6MB/8", 800, 1000, 5_000, ratio=8),  # bslz4, 0.2 MB
        Size("2MB/8", 1000, 1000, 3_000, ratio=8),  # bslz4, 0.3 MB
    )
}
