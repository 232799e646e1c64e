"""What waits to be sent by one forwarding port: messages in their order, bounded in bytes. No threads, no sockets."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart

OVERHEAD = 1024  # bytes that a message costs besides its payload


class Opening(NamedTuple):
    """A series begins; its metadata as JSON."""

    start: SeriesStart
    metadata: bytes


class Ending(NamedTuple):
    """A series is over; this port dropped so many of its frames, and nobody was there for so many others."""

    end: SeriesEnd
    dropped: int
    unheard: int


Item = Opening | Frame | Ending


class Outbox:
    """Frames that do not fit are refused: the newest, so that what goes out stays in order. Starts and ends are always
    taken; when it is full, a series of which they are all that is left makes room for the next one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[Item, int]] = deque()
        self._frames = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return self.nbytes >= self._limit

    def open(self, opening: Opening) -> None:
        if self.full and len(self._items) > 2:  # the first may be on its way
            (before, _), (last, _) = self._items[-2], self._items[-1]
            if isinstance(last, Ending) and isinstance(before, Opening):
                self._forget_last()
                self._forget_last()
        self._add(opening, OVERHEAD + len(opening.metadata))

    def put(self, frame: Frame, beyond: bool = False) -> bool:
        """False: no room. `beyond` the limit: taken all the same. One frame is taken however large it is."""
        size = frame_bytes(frame)
        if self._frames and self.nbytes + size > self._limit and not beyond:
            return False
        self._frames += 1
        self._add(frame, size)
        return True

    def close(self, ending: Ending) -> None:
        self._add(ending, OVERHEAD)

    def first(self) -> Item | None:
        return self._items[0][0] if self._items else None

    def taken(self) -> None:
        """The first one has gone."""
        item, size = self._items.popleft()
        self.nbytes -= size
        self._frames -= isinstance(item, Frame)

    def _add(self, item: Item, size: int) -> None:
        self._items.append((item, size))
        self.nbytes += size

    def _forget_last(self) -> None:
        self.nbytes -= self._items.pop()[1]


def frame_bytes(frame: Frame) -> int:
    """What a frame costs while it waits."""
    return OVERHEAD + len(frame.data) + (sum(map(len, frame.more)) if frame.more else 0)
