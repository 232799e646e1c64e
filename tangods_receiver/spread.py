"""Which file of a series in several files a frame is in, and where in it. Pure.

The frames of a group of `parts` files go round: frame f is in file f % parts. A group is full after `frames_per_file`
frames in each of its files; 0: there is one group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Key = tuple[int, int]  # group, part: one file


@dataclass(frozen=True)
class Spread:
    parts: int = 1
    frames_per_file: int = 0

    @property
    def is_one_file(self) -> bool:
        """No master, no parts."""
        return self.parts == 1 and not self.frames_per_file

    def place(self, frame: int) -> tuple[Key, int]:
        """The file of a frame, and its position in it."""
        row, part = divmod(frame, self.parts)
        if not self.frames_per_file:
            return (0, part), row
        group, position = divmod(row, self.frames_per_file)
        return (group, part), position

    def first(self, key: Key) -> int:
        """The first frame of a file; the next ones follow in steps of `parts`."""
        return key[0] * self.parts * self.frames_per_file + key[1]

    def share(self, key: Key, nframes: int) -> int:
        """How many of the first `nframes` frames are in this file."""
        rows = max(0, -(-(nframes - self.first(key)) // self.parts))
        return min(rows, self.frames_per_file) if self.frames_per_file else rows

    def groups(self, nframes: int) -> int:
        """How many groups so many frames need."""
        if not self.frames_per_file:
            return 1 if nframes else 0
        return -(-nframes // (self.parts * self.frames_per_file))

    def keys(self, nframes: int) -> list[Key]:
        """The files of so many frames, in order."""
        keys = [(group, part) for group in range(self.groups(nframes)) for part in range(self.parts)]
        return [key for key in keys if self.share(key, nframes)]

    def ranges_in(self, key: Key, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Inclusive ranges of frames -> those of positions in this file."""
        found: list[tuple[int, int]] = []
        for first, last in ranges:
            low, high = self.share(key, first), self.share(key, last + 1) - 1
            if low > high:
                continue
            if found and found[-1][1] + 1 == low:
                found[-1] = found[-1][0], high
            else:
                found.append((low, high))
        return found

    def name(self, master: Path, key: Key) -> str:
        """File name, in the directory of the master file."""
        group = f"_{key[0]:06d}" if self.frames_per_file else ""
        part = f"_part{key[1]:02d}" if self.parts > 1 else ""
        return f"{master.stem}{group}{part}{master.suffix}"

    def key_of(self, master: Path, name: str) -> Key | None:
        """The file of this set with that name; None: it is none of them."""
        pattern = re.escape(master.stem) + r"(?:_(\d{6,}))?(?:_part(\d\d))?" + re.escape(master.suffix)
        match = re.fullmatch(pattern, name)
        if match is None:
            return None
        key = int(match[1] or 0), int(match[2] or 0)
        return key if key[1] < self.parts and self.name(master, key) == name else None
