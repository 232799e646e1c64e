"""Which frame of a series it is that came, by the camera's counts. Pure."""

from __future__ import annotations

from typing import NamedTuple

WRAPS = (1 << 16, 1 << 32)  # where counters may begin again
NONSENSE = 1_000_000  # frames at once that no camera loses
SHOWN = 20  # ranges in a text


class Step(NamedTuple):
    """A frame: its number in the series, the frames before it that are lost, those of them that were written over."""

    number: int
    gap: int
    over: int
    place: int
    frame_stamp: int
    camera_stamp: int | None


class Numbers:
    """Tell it each frame that came; it says the frame's number in the series, and which are lost.

    A loss shows as a jump: of the frame stamp, of the camera's own stamp, or of the place in the capture where the
    buffers were written over before they were sent. Where a camera has no stamps, what the library told counts: one
    frame each time."""

    def __init__(self, before: Numbers | None = None) -> None:
        """`before`: of the capture before, with the same camera; its stamps may go on."""
        self.next = 0  # number that the next frame has if nothing is lost
        self.lost: list[tuple[int, int]] = []  # first, last
        self.overwritten = 0  # of them: for want of buffers
        self._told: list[int] = []  # losses that the library told of, not settled yet: frames that had come then
        self._ever_told = 0
        self._last: Step | None = None
        self._goes_on: bool = before is not None and before._goes_on  # else stamps begin at 0 in each capture
        self._behind = before._next_stamp if before is not None else 0

    @property
    def _next_stamp(self) -> int:
        return self._last.frame_stamp + 1 if self._last is not None else self._behind

    def tell(self, count: int) -> None:
        """The library says that frames were lost, one or several, when `count` of the capture had come."""
        self._told.append(count)
        self._ever_told += 1

    @property
    def told(self) -> int:
        """Losses that no frame has shown the place of, yet."""
        return len(self._told)

    @property
    def count_lost(self) -> int:
        return sum(last - first + 1 for first, last in self.lost)

    def look(self, place: int, frame_stamp: int, camera_stamp: int | None) -> Step:
        """What a frame is; nothing changes. `place` counts in the capture, from 0, and grows from frame to frame."""
        if self._last is None:
            over = place
            skipped = frame_stamp - (self._behind if self._goes_on else 0)
            gap = max(over, skipped if self._told and 0 <= skipped < NONSENSE else 0)
        else:
            over = place - self._last.place - 1
            jumps = [_jump(self._last.frame_stamp, frame_stamp), _jump(self._last.camera_stamp, camera_stamp)]
            counted = [jump for jump in jumps if jump is not None]
            gap = max(over, *counted) if counted else over + sum(count <= place for count in self._told)
        return Step(self.next + gap, gap, over, place, frame_stamp, camera_stamp)

    def take(self, step: Step) -> None:
        """It was such a frame."""
        if self._last is None and not self._told:
            self._goes_on = step.frame_stamp - step.place == self._behind > 0
        self._last = step
        self._told = [count for count in self._told[step.gap - step.over :] if count > step.place]
        self._lose(step.gap)
        self.overwritten += step.over
        self.next += 1

    def give_up_told(self) -> None:
        """What the library told to be lost was the end: no frame follows."""
        self._lose(self.told)
        self._told = []

    def _lose(self, gap: int) -> None:
        if gap:
            self.lost.append((self.next, self.next + gap - 1))
            self.next += gap

    def describe(self, total: int | None) -> str:
        """What is to be said of losses; empty: there were none. `total` frames of the series, None: without end."""
        end = total if total is not None else self.next
        ranges = [(first, min(last, end - 1)) for first, last in self.lost if first < end]
        lost = sum(last - first + 1 for first, last in ranges)
        words = []
        if lost:
            full = min(self.overwritten, lost)
            causes = [f"{full} because the buffers were full"] if full else []
            causes += [f"{lost - full} between camera and computer"] if lost > full else []
            words.append(f"lost frames: {text_of(ranges)} ({', '.join(causes)})")
        unseen = self._ever_told - (self.count_lost - self.overwritten)
        if unseen > 0:
            words.append(f"the library told of {unseen} lost frames that no frame stamp shows")
        return "; ".join(words)


def _jump(before: int | None, now: int | None) -> int | None:
    """Numbers left out between two stamps; None: these are none that count (-1, or always the same)."""
    if before is None or now is None or -1 in (before, now) or now == before:
        return None
    for wrap in (0, *WRAPS):
        gap = now + wrap - before - 1
        if 0 <= gap < NONSENSE:
            return gap
    return None


def text_of(ranges: list[tuple[int, int]]) -> str:
    """Such as 5-7, 12."""
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN]]
    more = len(ranges) - SHOWN
    return ", ".join(shown) + (f" and {more} more ranges" if more > 0 else "")
