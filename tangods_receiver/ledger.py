"""Accounting of the frames of one series: new, repeated, late, foreign, missing. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator

Ranges = list[tuple[int, int]]  # inclusive, ascending

JUMP = 1_000_000  # frames that may be skipped at once where no number was announced; beyond it is nonsense
_BITS = 12
_PAGE = 1 << _BITS
_MASK = _PAGE - 1
_FULL = b"\1" * _PAGE  # shared by all complete pages: memory stays flat in a long series


class Verdict(enum.Enum):
    NEW = "new"
    REPEATED = "repeated"
    LATE = "late"  # came after the books were closed
    FOREIGN = "foreign"  # no such frame in this series


class NumberSet:
    """Whole numbers from 0, dense or sparse, in any order; adding costs the same for the first and the millionth."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray | bytes] = {}
        self._room: dict[int, int] = {}  # numbers still absent from a page
        self.count = 0
        self.highest = -1

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number >> _BITS)
        return page is not None and page[number & _MASK] == 1

    def add(self, number: int) -> bool:
        """False when it was there before."""
        index, at = number >> _BITS, number & _MASK
        page = self._pages.get(index)
        if page is None:
            page = self._pages[index] = bytearray(_PAGE)
            self._room[index] = _PAGE
        elif page[at]:
            return False
        page[at] = 1  # type: ignore[index]  # full pages hold no room for a new number
        self.count += 1
        if number > self.highest:
            self.highest = number
        self._take_room(index, 1)
        return True

    def add_range(self, numbers: range) -> bool:
        """All of them, ascending; False (and nothing is added) when one was there before."""
        pages = [*self._split(numbers)]
        for index, at in pages:
            page = self._pages.get(index)
            if page is not None and any(page[at.start : at.stop : at.step]):
                return False
        for index, at in pages:
            self._fill(index, at)
        self.count += len(numbers)
        self.highest = max(self.highest, numbers[-1])
        return True

    @staticmethod
    def _split(numbers: range) -> Iterator[tuple[int, range]]:
        """The places in each page."""
        while numbers:
            index = numbers[0] >> _BITS
            count = -(-((index + 1 << _BITS) - numbers[0]) // numbers.step)
            part, numbers = numbers[:count], numbers[count:]
            yield index, range(part[0] & _MASK, (part[-1] & _MASK) + 1, part.step)

    def _fill(self, index: int, at: range) -> None:
        page = self._pages.get(index)
        if page is None:
            page = self._pages[index] = bytearray(_PAGE)
            self._room[index] = _PAGE
        page[at.start : at.stop : at.step] = _FULL[: len(at)]  # type: ignore[index]
        self._take_room(index, len(at))

    def _take_room(self, index: int, count: int) -> None:
        room = self._room[index] - count
        if room:
            self._room[index] = room
        else:
            self._pages[index] = _FULL
            del self._room[index]

    def gaps(self, upto: int) -> Ranges:
        """Ranges below `upto` that are not in the set."""
        ranges: Ranges = []
        for start, stop in self._absent(upto):
            if ranges and ranges[-1][1] == start - 1:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))
        return ranges

    def _absent(self, upto: int) -> Iterator[tuple[int, int]]:
        """Absent ranges page by page, ascending; a hole of many pages is one range."""
        start = 0
        for index in sorted(self._pages):
            first = index << _BITS
            if first >= upto:
                break
            if first > start:
                yield start, first - 1
            page, stop = self._pages[index], min(_PAGE, upto - first)
            at = page.find(0, 0, stop)
            while at >= 0:
                end = page.find(1, at, stop)
                yield first + at, first + (stop if end < 0 else end) - 1
                at = -1 if end < 0 else page.find(0, end, stop)
            start = first + _PAGE
        if start < upto:
            yield start, upto - 1


class Ledger:
    """No threads, no sockets, no files: tell it what came, it says what that was and what is still missing.

    `expected` None: the number of frames was not announced. A frame of several modules is complete when all came."""

    def __init__(self, expected: int | None = None, modules: int = 1) -> None:
        self.expected = expected
        self.modules = modules
        self.complete = 0  # frames of which all modules came
        self.repeated = 0
        self.foreign = 0
        self.late = 0
        self.closed = False
        self._seen = NumberSet()
        self._lost = NumberSet()
        self._left_out = NumberSet()

    @property
    def highest(self) -> int:
        """The highest frame number that came; -1 before the first."""
        return self._seen.highest // self.modules

    @property
    def all_came(self) -> bool:
        """Every announced frame was seen; False while no number is announced."""
        return self.expected is not None and self.complete >= self.expected

    @property
    def known_missing(self) -> int:
        """Frames below the highest that are not complete or could not be stored; cheap, for looking on."""
        return self.highest + 1 - self.complete + self._lost.count // self.modules

    def see(self, frame: int, module: int = 0) -> Verdict:
        """Enter one frame (or module) and say what it was."""
        modules = self.modules
        if not 0 <= module < modules or not 0 <= frame < self._limit():
            self.foreign += 1
            return Verdict.FOREIGN
        slot = frame if modules == 1 else frame * modules + module
        if self.closed:
            return self._after_the_end(slot)
        if not self._seen.add(slot):
            self.repeated += 1
            return Verdict.REPEATED
        if modules == 1:
            self.complete += 1
        elif all(other in self._seen for other in range(frame * modules, (frame + 1) * modules)):
            self.complete += 1
        return Verdict.NEW

    def see_range(self, frames: range) -> bool:
        """Enter frames of one module that are all new, ascending; False: they are not, and nothing was entered."""
        fits = self.modules == 1 and not self.closed and frames[0] >= 0 and frames[-1] < self._limit()
        if not fits or not self._seen.add_range(frames):
            return False
        self.complete += len(frames)
        return True

    def lose(self, frame: int, module: int = 0) -> None:
        """A frame that came could not be stored: it counts as missing, and a repetition as repeated."""
        self._lost.add(frame * self.modules + module)

    def leave_out(self, frame: int, module: int = 0) -> None:
        """A frame that came is not stored because the sender said so: absent, not missing."""
        self._left_out.add(frame * self.modules + module)

    def missing(self, upto: int | None = None) -> Ranges:
        """Frames below `upto` of which something is missing; by default below what was announced, else came."""
        return self._without(self._limit_of(upto), self._lost)

    def absent(self, upto: int | None = None) -> Ranges:
        """Frames of which something is not stored: missing, or left out."""
        return self._without(self._limit_of(upto), self._lost, self._left_out)

    @property
    def stored(self) -> int:
        """Frames of which everything is stored."""
        return self.highest + 1 - total(self.absent(self.highest + 1))

    def _limit_of(self, upto: int | None) -> int:
        if upto is not None:
            return upto
        return self.highest + 1 if self.expected is None else self.expected

    def _without(self, limit: int, *sets: NumberSet) -> Ranges:
        slots = limit * self.modules
        gaps = self._seen.gaps(slots)
        for numbers in sets:
            gaps += _members(numbers, slots)
        return _joined([(first // self.modules, last // self.modules) for first, last in gaps])

    def _limit(self) -> int:
        return self._seen.highest // self.modules + JUMP if self.expected is None else self.expected

    def _after_the_end(self, slot: int) -> Verdict:
        if slot in self._seen:
            self.repeated += 1
            return Verdict.REPEATED
        self.late += 1
        return Verdict.LATE


def total(ranges: Ranges) -> int:
    """How many numbers the ranges hold."""
    return sum(last - first + 1 for first, last in ranges)


def _members(numbers: NumberSet, upto: int) -> Ranges:
    """The ranges that are in the set."""
    if not numbers.count:
        return []
    ranges, start, end = [], 0, min(upto, numbers.highest + 1)
    for first, last in [*numbers.gaps(end), (end, end)]:
        if first > start:
            ranges.append((start, first - 1))
        start = last + 1
    return ranges


def _joined(ranges: Ranges) -> Ranges:
    """Ascending, touching and overlapping ranges made one."""
    joined: Ranges = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined
