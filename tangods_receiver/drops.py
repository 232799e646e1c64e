"""What a PUB socket did not send: gaps in the numbers of what came over one connection. Pure."""

from __future__ import annotations

from collections.abc import Callable

from tangods_receiver.errors import StreamError
from tangods_receiver.ledger import JUMP
from tangods_receiver.protocol import Decode, Frame, Message, Parts, SeriesStart


class Gaps:
    """Decodes the messages of one connection by `decode`, and tells `dropped` how many are missing between them, by
    their numbers, or by those of the frames where messages have none.

    A SUB socket gets what it gets in the order in which it was sent: a number that is too high tells of a gap, one that
    is too low that the sender counts anew. `begun` grows where whoever controls the sender begins a series: then, too,
    it may count anew."""

    def __init__(self, decode: Decode, dropped: Callable[[int], None], begun: Callable[[], int] = int) -> None:
        self._decode = decode
        self._dropped = dropped
        self._begun = begun
        self._series = begun()
        self._started: int | None = None  # number of the last start
        self._serial: int | None = None  # of the last message; None: the next may be any
        self._number: int | None = None  # of the last frame
        self._unread = 0  # messages since then that came but told no number

    def __call__(self, parts: Parts) -> Message | list[Message]:
        try:
            decoded = self._decode(parts)
        except StreamError:
            self._unread += 1
            raise
        for message in decoded if isinstance(decoded, list) else (decoded,):
            if gap := self._gap_before(message):
                self._dropped(gap)
        return decoded

    def _gap_before(self, message: Message) -> int:
        last: int | None
        if isinstance(message, SeriesStart):
            again, self._started = message.serial is not None and message.serial == self._started, message.serial
            if again:  # for those who came late, or had no room for it
                return 0
        if message.serial is not None:
            last, number = self._serial, message.serial
            self._serial = number
        elif isinstance(message, Frame):
            last, number = self._number, message.number
            self._number = number
            if (series := self._begun()) != self._series:
                self._series, last = series, None
        else:  # frames count from 0 in each series; nobody knows what follows its end
            self._number = -1 if isinstance(message, SeriesStart) else None
            return 0
        gap = 0 if last is None else number - last - 1
        unread, self._unread = self._unread, 0
        return gap - unread if unread < gap <= JUMP else 0
