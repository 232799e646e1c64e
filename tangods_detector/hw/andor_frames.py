"""What lies in a buffer of the SDK, and which place in its series a frame has. Pure."""

from __future__ import annotations

import struct
import time
from collections import deque
from dataclasses import dataclass

from tangods_receiver.protocol import Buffer

IMAGE, TICKS = 0, 1  # chunks of the metadata block
_END = struct.Struct("<II")  # of a chunk: its id, the bytes of its data and of this id
_TICKS = struct.Struct("<Q")
RANGES_MAX = 50  # that are listed


def ticks_of(block: Buffer) -> int | None:
    """The camera's clock from the metadata behind the image; None: there is none, or it is damaged.

    Chunks are read from the end backwards: data, id, length (u32 LE each)."""
    at = len(block)
    while at >= _END.size:
        kind, length = _END.unpack_from(block, at - _END.size)
        begin = at - length - 4
        if length < 4 or begin < 0:
            return None
        if kind == TICKS:
            return int(_TICKS.unpack_from(block, begin)[0]) if length == _TICKS.size + 4 else None
        if kind == IMAGE:
            return None
        at = begin
    return None


@dataclass(frozen=True)
class Layout:
    """Of one buffer: what is sent of it and how. `nbytes` of all, metadata included; `stride` bytes from row to row,
    None: rows follow each other; `hz` of the camera's clock, 0: its ticks are not in the buffer."""

    shape: tuple[int, int]
    codec: str
    stride: int | None
    image_bytes: int
    nbytes: int
    hz: int = 0

    @classmethod
    def of(cls, shape: tuple[int, int], encoding: str, stride: int, nbytes: int, hz: int) -> Layout:
        """`encoding` as the camera names it. ValueError: the image does not fit into the buffer."""
        rows, columns = shape
        packed = encoding == "Mono12Packed"
        row = (3 * columns + 1) // 2 if packed else 2 * columns
        if stride < row or rows * stride > nbytes:
            raise ValueError(f"{rows} rows of {row} bytes, {stride} bytes apart, in {nbytes} bytes")
        straight = stride == row and not (packed and columns % 2)
        codec = "mono12packed" if packed else "none"
        return cls(shape, codec, None if straight else stride, rows * stride, nbytes, hz)


class Losses:
    """Frames of a series that never came, as ranges of numbers."""

    def __init__(self) -> None:
        self.count = 0
        self._ranges: list[tuple[int, int]] = []

    def add(self, first: int, count: int) -> None:
        self.count += count
        if self._ranges and self._ranges[-1][1] == first - 1:
            self._ranges[-1] = (self._ranges[-1][0], first + count - 1)
        elif len(self._ranges) < RANGES_MAX:
            self._ranges.append((first, first + count - 1))

    def __str__(self) -> str:
        words = [str(a) if a == b else f"{a}-{b}" for a, b in self._ranges]
        return ", ".join([*words, "..."] if len(words) == RANGES_MAX else words)


class Numbers:
    """Gives each frame that came its number in the series, from 0; those that were lost keep theirs.

    Where frames follow each other at a known `period` (in ticks of the camera's clock; 0: they do not), the clock tells
    how many are missing between two. Else the library's overflow events do: a frame is lost when the camera has no
    buffer, so after all those that were queued until then, and in any case before one that was exposed later."""

    def __init__(self, period: float = 0.0, total: int | None = None) -> None:
        """`total` frames of the series; None: without end."""
        self.period, self._total = period, total
        self.losses = Losses()
        self.next = 0
        self.dropped = 0  # frames that came and were not sent on
        self.damaged = 0  # frames that should have had ticks
        self.queued = 0  # buffers that the camera was given in this series
        self._events: deque[tuple[int, float]] = deque()  # buffers queued then, when it was
        self.came = 0  # frames
        self._ticks: int | None = None

    def overflow(self) -> None:
        """The library says that a frame was lost, in any thread."""
        self._events.append((self.queued, time.time()))

    @property
    def told(self) -> int:
        """Frames that the library told to be lost after the last one that came."""
        return len(self._events)

    def take(self, ticks: int | None, exposed: float | None = None) -> int:
        """The number of the frame that came; `exposed` when, in s since 1970, None: not known."""
        lost = 0
        while self._events and (
            self._events[0][0] <= self.came or (exposed is not None and self._events[0][1] < exposed)
        ):
            self._events.popleft()
            lost += 1
        if self.period:
            if ticks is None:
                self.damaged += 1
            elif self._ticks is not None:
                lost = max(0, round((ticks - self._ticks) / self.period) - self._since)
        if self._total is not None:
            lost = min(lost, max(0, self._total - 1 - self.next))
        self._since += 1 + lost
        if ticks is not None:
            self._ticks, self._since = ticks, 1
        self.came += 1
        if lost:
            self.losses.add(self.next, lost)
        number = self.next + lost
        self.next = number + 1
        return number

    _since = 0  # places since the frame whose ticks are known, its own included

    def drop(self) -> None:
        """The frame that came last is not sent on."""
        self.dropped += 1
        self.losses.add(self.next - 1, 1)

    def finish(self) -> None:
        """The camera has taken its last frame; what has not come is lost."""
        rest = len(self._events) if self._total is None else self._total - self.next
        self._events.clear()
        if rest > 0:
            self.losses.add(self.next, rest)
            self.next += rest
