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
    buffers were written over before they were sent."""

    def __init__(self) -> None:
        self.next = 0  # number that the next frame has if nothing is lost
        self.told = 0  # losses that the library told of, since the last frame
        self.unseen = 0  # losses that were told, and that no count shows
        self.lost: list[tuple[int, int]] = []  # first, last
        self.overwritten = 0  # of them: for want of buffers
        self._last: Step | None = None

    @property
    def count_lost(self) -> int:
        return sum(last - first + 1 for first, last in self.lost)

    def look(self, place: int, frame_stamp: int, camera_stamp: int | None) -> Step:
        """What a frame is; nothing changes. `place` counts in the capture, from 0, and grows from frame to frame."""
        if self._last is None:
            over = place
            gap = max(over, frame_stamp if 0 < frame_stamp <= place + self.told else 0)
        else:
            over = place - self._last.place - 1
            gap = max(over, _jump(self._last.frame_stamp, frame_stamp))
            if camera_stamp is not None and self._last.camera_stamp is not None:
                gap = max(gap, _jump(self._last.camera_stamp, camera_stamp))
        return Step(self.next + gap, gap, over, place, frame_stamp, camera_stamp)

    def take(self, step: Step) -> None:
        """It was such a frame."""
        self._last = step
        self.unseen += max(0, self.told - (step.gap - step.over))
        self.told = 0
        self._lose(step.gap)
        self.overwritten += step.over
        self.next += 1

    def give_up_told(self) -> None:
        """What the library told to be lost was the end: no frame follows."""
        self._lose(self.told)
        self.told = 0

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
        if self.unseen:
            words.append(f"the library told of {self.unseen} lost frames that no frame stamp shows")
        return "; ".join(words)


def _jump(before: int, now: int) -> int:
    """Numbers left out between two stamps; -1 is a stamp that is none."""
    if -1 in (before, now) or now == before:
        return 0
    for wrap in (0, *WRAPS):
        gap = now + wrap - before - 1
        if 0 <= gap < NONSENSE:
            return gap
    return 0


def text_of(ranges: list[tuple[int, int]]) -> str:
    """Such as 5-7, 12."""
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN]]
    more = len(ranges) - SHOWN
    return ", ".join(shown) + (f" and {more} more ranges" if more > 0 else "")
