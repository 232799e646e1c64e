"""Buffers of a camera that fills them in turn and again from the first, whether they were sent or not.

DCAM waits for nobody: frame k goes into buffer k modulo their number. What ZeroMQ has not sent by then would leave with
the pixels of another frame. So ZeroMQ reads by a second mapping of the same memory; before the camera comes round, the
few frames that are under way are copied to spare slots, and the mapping shows ZeroMQ those instead. That is the only
copy there is, and only while the receiver does not keep up."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable

from tangods_detector.hw.frame_ring import FrameRing
from tangods_receiver.errors import HardwareError

MAY_MOVE, FIXED = 1, 2  # of mremap(2)
UNDER_WAY = 64_000_000  # bytes that ZeroMQ may have at a time, where the ring is large enough
FEWEST = 2  # frames that it may have: one leaves, the next is there
LEAST = 10  # slots
POPULATE_READ = 22  # madvise(2)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _show(source: int, nbytes: int, at: int | None = None) -> int:
    """Map the shared pages at `source` once more, anywhere or in place of what is mapped `at`; the address."""
    flags = MAY_MOVE if at is None else MAY_MOVE | FIXED
    found = _libc.mremap(source, 0, nbytes, flags, at)
    if found is None or found == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise HardwareError(f"buffer memory cannot be mapped twice: {errno.errorcode.get(code)} {os.strerror(code)}")
    return int(found)


class CameraRing:
    """`budget` bytes. One thread uses it; `divide` may be called by another while no series runs.

    `buffers` are the camera's, spare ones come behind them. At most `window` frames are under way at a time. Those that
    the camera would write over within `margin` frames are copied; a frame is not sent any more when that is near."""

    def __init__(self, budget: int) -> None:
        self.ring = FrameRing(budget)
        self._base = self.ring.address(0)
        self._view = _show(self._base, self.ring.budget)
        self._ready = 0
        self.shift = self._view - self._base  # from what the camera writes to what ZeroMQ reads
        self.buffers = self.window = self.margin = 0
        self.rescued = 0  # frames, since `begin`
        self._spare: list[int] = []
        self._moved: dict[int, int] = {}  # slot -> the spare one that is shown in its place
        self._under_way: dict[int, tuple[int, int]] = {}  # slot -> frame of the capture, number in the series

    def divide(self, frame_bytes: int) -> int:
        """Buffers for the camera; ConfigError: the memory is too small, HardwareError: the receiver keeps some."""
        ring, before = self.ring, (self.ring.stride, self.ring.count)
        slots = ring.divide(frame_bytes, least=LEAST)
        if before != (ring.stride, slots):
            _show(self._base, ring.budget, self._view)
            self._moved.clear()
            self._under_way.clear()
            self.window = max(FEWEST, min(slots // 8, UNDER_WAY // ring.stride))
            self.buffers = slots - self.window
            self.margin = max(2, 2 * self.buffers // 5)  # a computer may stand still for a tenth of a second
            self._spare = list(range(self.buffers, slots))
            _libc.madvise(self._view, ring.stride * slots, POPULATE_READ)  # an older kernel does it as it goes
        return self.buffers

    def begin(self, limit: float) -> None:
        """Before the camera writes: nothing of an earlier series may be under way. HardwareError after `limit` s."""
        deadline = time.monotonic() + limit
        while self.under_way:
            if time.monotonic() > deadline:
                raise HardwareError(
                    f"{len(self._under_way)} frames of the series before are not taken by the receiver after "
                    f"{limit:g} s; is it stuck? Restart it"
                )
            self.ring.wait(0.02)
        self.rescued = 0

    @property
    def addresses(self) -> list[int]:
        """Of the camera's buffers."""
        return self.ring.addresses[: self.buffers]

    def slot(self, frame: int) -> int:
        return frame % self.buffers

    def place(self, place: int, count: int) -> int:
        """The frame of the capture to send next, when `count` have come: `place`, or a later one where the camera comes
        too near to that. Then so much later that frames are not copied one after the other."""
        if count - place <= self.buffers // 2:
            return place
        return max(place, count - 3 * self.buffers // 10)

    def slack(self, place: int, count: int) -> int:
        """Frames that may still come before something has to be copied, or `place` is given up."""
        oldest = next(iter(self._under_way.values()))[0] if self._under_way else count
        return min(oldest + self.buffers - self.margin, place + self.buffers // 2) - count

    @property
    def under_way(self) -> int:
        """Frames that ZeroMQ has."""
        for slot in self.ring.back():
            del self._under_way[slot]
            if slot in self._moved:
                _show(self.ring.address(slot), self.ring.stride, self.ring.address(slot) + self.shift)
                self._spare.append(self._moved.pop(slot))
        return len(self._under_way)

    def has_room(self, frame: int) -> bool:
        """ZeroMQ may have one more, and this frame's slot is not there already."""
        return self.under_way < self.window and self.slot(frame) not in self._under_way

    def given(self, frame: int, number: int) -> None:
        """ZeroMQ has it now."""
        self._under_way[self.slot(frame)] = frame, number

    def guard(self, count: int, transferred: Callable[[], int]) -> None:
        """Copy what is under way and in danger when `count` frames have come; `transferred` asks for that count.

        HardwareError: the camera was quicker, and what is sent is not one image any more."""
        safe = count - self.buffers + self.margin
        if not self._under_way or next(iter(self._under_way.values()))[0] >= safe:
            return
        if not self.under_way:
            return
        for slot, (frame, number) in self._under_way.items():
            if frame >= safe:
                return
            if slot in self._moved:
                continue
            self._rescue(slot)
            if transferred() >= frame + self.buffers:
                raise HardwareError(
                    f"the camera wrote over frame {number} while it was sent, so that one is spoiled: the receiver is "
                    f"too slow, and {self.buffers} buffers are too few; give more memory"
                )

    def _rescue(self, slot: int) -> None:
        ring, spare = self.ring, self._spare.pop()
        ctypes.memmove(ring.address(spare), ring.address(slot), ring.frame_bytes)
        _show(ring.address(spare), ring.stride, ring.address(slot) + self.shift)
        self._moved[slot] = spare
        self.rescued += 1

    def close(self) -> None:
        """Close the streamer first."""
        self.ring.close()
        if not self.ring.held:
            _libc.munmap(self._view, self.ring.budget)
