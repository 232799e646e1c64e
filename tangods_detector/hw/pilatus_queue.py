"""Which image of a series is sent next, and what became of each. No threads, files or sockets. Python 3.6."""

import heapq
from typing import Iterable, List, Optional, Set, Tuple

ABSENT, WAITING, SENT, DAMAGED = range(4)


class Queue:
    """Images by number from 0, in their order as far as they come in it.

    An image that is missing holds the later ones up for `gap_wait` s, and never more than `hold` of them; when it comes
    after all it is sent at once. What comes again was sent already."""

    def __init__(self, nframes: int, gap_wait: float = 0.5, hold: int = 20) -> None:
        self.total = nframes
        self.sent = 0
        self.damaged = 0
        self.late = 0  # sent behind images of a higher number
        self.highest = -1  # number seen
        self._states = bytearray(nframes)
        self._foreign: Set[int] = set()
        self._waiting: List[int] = []
        self._next = 0  # the number whose turn it is
        self._gap_since: Optional[float] = None
        self._gap_wait = gap_wait
        self._hold = hold

    @property
    def waiting(self) -> int:
        """Images that came and are not sent."""
        return len(self._waiting)

    @property
    def foreign(self) -> int:
        """Files of numbers that the series has not; counted to 1000."""
        return len(self._foreign)

    @property
    def over(self) -> bool:
        """Every image was sent, or is damaged."""
        return self.sent + self.damaged >= self.total

    def found(self, number: int) -> bool:
        """A file of this number is there; False: that is known, or no image of this series."""
        if not 0 <= number < self.total:
            if len(self._foreign) < 1000:
                self._foreign.add(number)
            return False
        if self._states[number] != ABSENT:
            return False
        self._states[number] = WAITING
        self.highest = max(self.highest, number)
        heapq.heappush(self._waiting, number)
        return True

    def next(self, now: float, hurry: bool = False) -> Optional[int]:
        """Take the image that is to be sent; None: nothing is there, or an earlier one is waited for (in a hurry:
        never)."""
        if not self._waiting:
            return None
        first = self._waiting[0]
        while self._next < first and self._states[self._next] in (SENT, DAMAGED):
            self._next += 1
        if first > self._next and not hurry and self.waiting <= self._hold:
            if self._gap_since is None:
                self._gap_since = now
            if now - self._gap_since < self._gap_wait:
                return None
        if first < self._next:
            self.late += 1
        else:
            self._gap_since = None
            self._next = first + 1
        return heapq.heappop(self._waiting)

    def was_sent(self, number: int) -> None:
        """That `next` gave."""
        self._states[number] = SENT
        self.sent += 1

    def was_damaged(self, number: int) -> None:
        """That `next` gave."""
        self._states[number] = DAMAGED
        self.damaged += 1

    def is_absent(self, number: int) -> None:
        """That `next` gave: it is not there after all, or not complete."""
        self._states[number] = ABSENT
        if self._next == number + 1:
            self._next = number

    def back(self, number: int) -> None:
        """That `next` gave: it is there and not sent after all."""
        heapq.heappush(self._waiting, number)
        self._next = min(self._next, number)

    def again(self, numbers: Iterable[int]) -> None:
        """Send these once more."""
        for number in numbers:
            if self._states[number] == SENT:
                self._states[number] = WAITING
                self.sent -= 1
                heapq.heappush(self._waiting, number)

    def shorten(self, nframes: int) -> None:
        """The series ends earlier than was announced; what was seen stays part of it."""
        self.total = max(self.highest + 1, min(self.total, nframes))

    def missing(self) -> int:
        """Images that are not here and were not sent."""
        return self.total - self.sent - self.damaged - self.waiting

    def ranges(self, state: int = ABSENT, most: int = 100) -> List[Tuple[int, int]]:
        """First and last number of each stretch in that state, at most so many."""
        found: List[Tuple[int, int]] = []
        mark, at = bytes([state]), 0
        while len(found) < most:
            at = self._states.find(mark, at, self.total)
            if at < 0:
                break
            end = at
            while end + 1 < self.total and self._states[end + 1] == state:
                end += 1
            found.append((at, end))
            at = end + 1
        return found
