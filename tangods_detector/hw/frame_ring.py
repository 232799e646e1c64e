"""Image memory that the camera fills and ZeroMQ sends from, without a copy: slots are lent, and come back."""

from __future__ import annotations

import mmap
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zmq

from tangods_detector.settings import Series
from tangods_detector.streamer import LOOK, Streamer
from tangods_receiver import compiled
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.protocol import stins
from tangods_receiver.security import Guard

PAGE = mmap.PAGESIZE
SLOTS_MAX = 1000  # of one ring; libzmq counts messages, so its queue has room for so many and never makes us wait
MESSAGES = SLOTS_MAX + 24  # and the starts and ends of series
POPULATE_WRITE = 23  # madvise(2): all pages now, not one by one while the camera writes
_kept: list[Any] = []  # memory of rings that were closed while libzmq still had some of it; never more than once each


class PythonLoans:
    """What `tangods_receiver._ring.Loans` does, by pyzmq's own means: 30 to 60 us of CPU more for each frame.

    Slots that are lent to libzmq. One thread calls it."""

    bell = -1  # a file descriptor that becomes readable when a slot comes back; -1: none

    def __init__(self, count: int) -> None:
        self._count = count
        self._out: dict[int, zmq.MessageTracker] = {}

    @property
    def held(self) -> int:
        """Slots that were lent and that `back` has not given yet."""
        return len(self._out)

    def is_held(self, slot: int) -> bool:
        """libzmq has not sent all of it yet."""
        tracker = self._out.get(slot)
        return tracker is not None and not tracker.done

    def ours(self) -> list[int]:
        """Slots that are not lent, as far as `back` has told."""
        return [slot for slot in range(self._count) if slot not in self._out]

    def send(self, socket: zmq.Socket[Any], head: bytes, slot: int, address: int, nbytes: int) -> bool:
        """A message of `head` and the memory; False: no room, or nobody there, and nothing is lent."""
        if not 0 <= slot < self._count or slot in self._out:
            raise ValueError(f"slot {slot} is not there, or not back yet")
        try:
            socket.send(head, zmq.NOBLOCK | zmq.SNDMORE)
            tracker = socket.send(_memory(address, nbytes), zmq.NOBLOCK, copy=False, track=True)
        except zmq.Again:
            return False
        assert tracker is not None
        self._out[slot] = tracker
        return True

    def back(self) -> list[int]:
        """Slots that are free again since this was last asked."""
        came = sorted(slot for slot, tracker in self._out.items() if tracker.done)
        for slot in came:
            del self._out[slot]
        return came


def _memory(address: int, nbytes: int) -> Any:
    """The bytes there as an array that does not own them."""
    kind = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}
    return np.asarray(type("Memory", (), {"__array_interface__": kind}))


_compiled = compiled.module("_ring")
Loans: Any = PythonLoans if _compiled is None else _compiled.Loans


class FrameRing:
    """`budget` bytes of page-aligned memory, allocated once; `divide` makes slots of them, each for one frame.

    A slot is at each time the camera's, ours, or ZeroMQ's: `RingStreamer.send` lends it, `back` tells that it is ours
    again. Whoever drives the camera knows which it has given to the camera. One thread uses it, but for `divide`, which
    any may call while no series runs."""

    def __init__(self, budget: int) -> None:
        """ConfigError: there is not so much memory."""
        self.budget = -(-max(1, budget) // PAGE) * PAGE
        try:
            self._map = mmap.mmap(-1, self.budget)
        except OSError as exc:
            raise ConfigError(f"buffer memory: {self.budget >> 20} MiB cannot be had ({exc}); ask for less") from exc
        self._base = np.frombuffer(self._map, np.uint8).ctypes.data
        self._ready = 0  # bytes that have pages
        self.frame_bytes = self.stride = self.count = 0
        self.loans: Any = Loans(0)

    def room(self, frame_bytes: int, most: int = SLOTS_MAX, least: int = 2) -> int:
        """Slots of this size that there can be. ConfigError: the budget is too small."""
        stride = -(-frame_bytes // PAGE) * PAGE
        count = min(most, SLOTS_MAX, self.budget // stride)
        if count < least:
            raise ConfigError(
                f"buffer memory: {self.budget >> 20} MiB have room for {count} frames of {frame_bytes} bytes, not for "
                f"{least}; set the memory to {-(-least * stride >> 20)} MiB or more"
            )
        return count

    def divide(self, frame_bytes: int, most: int = SLOTS_MAX, least: int = 2, limit: float = 5.0) -> int:
        """Slots of this size, as many as the budget has room for, at most `most`; returns how many.

        Nothing changes where it is the same already, and slots that are still lent come back in the next series. Else
        waits for all of them. ConfigError: the budget is too small; HardwareError: they do not come back in time."""
        stride = -(-frame_bytes // PAGE) * PAGE
        count = self.room(frame_bytes, most, least)
        if (stride, count) != (self.stride, self.count):
            if not self.wait_all_back(limit):
                raise HardwareError(
                    f"{self.loans.held} frames of the series before are not taken by the receiver after {limit:g} s; "
                    "is it stuck? Restart it"
                )
            self.stride, self.count, self.loans = stride, count, Loans(count)
            self._make_ready(stride * count)
        self.frame_bytes = frame_bytes
        return count

    def _make_ready(self, nbytes: int) -> None:
        if nbytes > self._ready:
            try:
                self._map.madvise(POPULATE_WRITE, self._ready, nbytes - self._ready)
            except OSError:
                pass  # an older kernel: pages come when they are first used
            self._ready = nbytes

    def address(self, slot: int) -> int:
        """Of its first byte."""
        return self._base + slot * self.stride

    @property
    def addresses(self) -> list[int]:
        """Of all slots, in their order."""
        return [self.address(slot) for slot in range(self.count)]

    def slot(self, address: int) -> int:
        """Which one begins there. HardwareError: none."""
        slot, rest = divmod(address - self._base, self.stride)
        if rest or not 0 <= slot < self.count:
            raise HardwareError(f"the library gave back a buffer at {address:#x} that it was not given")
        return slot

    def memory(self, slot: int, nbytes: int | None = None, offset: int = 0) -> memoryview:
        """Bytes of a slot, to look at or write; not beyond the frame unless asked for."""
        begin = slot * self.stride + offset
        return memoryview(self._map)[begin : begin + (self.frame_bytes - offset if nbytes is None else nbytes)]

    @property
    def held(self) -> int:
        """Slots that ZeroMQ has, as far as `back` has told."""
        return int(self.loans.held)

    def is_held(self, slot: int) -> bool:
        """ZeroMQ has not sent all of it yet: what the camera writes there now would be sent."""
        return bool(self.loans.is_held(slot))

    def back(self) -> Sequence[int]:
        """Slots that ZeroMQ is done with since this was last asked, in ascending order."""
        slots: list[int] = self.loans.back()
        return slots

    def ours(self) -> Sequence[int]:
        """Slots that ZeroMQ does not have, as far as `back` has told; what the camera has is among them."""
        slots: list[int] = self.loans.ours()
        return slots

    def wait(self, timeout: float) -> None:
        """Until a slot may have come back, or `timeout` seconds."""
        bell = self.loans.bell
        if bell < 0:
            time.sleep(min(timeout, 0.001))
        elif select.select([bell], [], [], timeout)[0]:
            _silence(bell)

    def wait_all_back(self, limit: float) -> bool:
        """False: not within `limit` seconds."""
        deadline = time.monotonic() + limit
        while True:
            self.back()
            if not self.held:
                return True
            if time.monotonic() > deadline:
                return False
            self.wait(0.05)

    def close(self, limit: float = 1.0) -> None:
        """Close the streamer first: libzmq lets go of what it cannot send then. What it keeps all the same stays."""
        if not self.wait_all_back(limit):
            _kept.append((self._map, self.loans))
        else:
            self.loans = Loans(0)
        self.count = 0


def _silence(bell: int) -> None:
    try:
        os.eventfd_read(bell)
    except BlockingIOError:
        pass


class RingStreamer(Streamer):
    """A Streamer whose frames are sent from the memory of a ring. Made, used and closed in one thread.

    Its queue has room for every slot there is, so a slow receiver never makes `send` wait: it holds slots, until the
    camera has none left. `send` waits only while nobody is connected."""

    def __init__(self, host: str, port: int, abort: threading.Event | None = None, guard: Guard | None = None) -> None:
        super().__init__(host, port, MESSAGES, 1, abort, guard)

    def begin(self, series: Series, metadata: Mapping[str, Any], *, dtype: str, codec: str, **more: Any) -> None:
        """As of Streamer, with the codecs that `send` takes."""
        if codec in stins.PACKED:
            dtype, codec = codec, "none"
        super().begin(series, metadata, dtype=dtype, codec=codec, **more)

    def send(
        self,
        ring: FrameRing,
        slot: int,
        number: int,
        *,
        shape: Sequence[int],
        dtype: str,
        codec: str,
        nbytes: int,
        timestamp: float | None = None,
        extra: bytes = b"",
        offset: int = 0,
        stride: int | None = None,
        limit: float | None = None,
        wait: bool = True,
    ) -> bool:
        """One frame, `nbytes` bytes of the slot from `offset` on; the slot is ZeroMQ's until `ring.back` names it.

        `codec` `mono12p` and `mono12packed` are sent as what STINS calls a type. With `stride` rows begin so many bytes
        apart, `nbytes` is rows x `stride`, and the receiver leaves the padding out. `extra` goes into the header
        as it is, as JSON without braces, such as b'"camera_frame":7'.

        False: not sent, because of `abort`, the slot is ours; or nobody is connected, and one is not to `wait`.
        HardwareError after `limit` seconds (None: no limit)."""
        if codec in stins.PACKED:
            dtype, codec = codec, "none"
        head = stins.encode_frame_header(
            number,
            shape,
            dtype,
            codec,
            self.serial,
            series=self._series,
            timestamp=time.time() if timestamp is None else timestamp,
            stride=stride,
        )
        if extra:
            head = b"%b,%b}" % (head[:-1], extra)
        address = ring.address(slot) + offset
        if ring.loans.send(self._socket, head, slot, address, nbytes):
            self.serial += 1
            return True
        if not wait:
            return False
        return self._send_later(ring, slot, head, address, nbytes, limit, number)

    def _send_later(
        self, ring: FrameRing, slot: int, head: bytes, address: int, nbytes: int, limit: float | None, number: int
    ) -> bool:
        """As soon as somebody is there."""
        deadline = None if limit is None else time.monotonic() + limit
        self.blocked = True
        try:
            while not self.abort.is_set():
                if ring.loans.send(self._socket, head, slot, address, nbytes):
                    self.serial += 1
                    return True
                if deadline is not None and time.monotonic() > deadline:
                    raise HardwareError(
                        f"nobody takes frames at {self.endpoint} for {limit:g} s; frame {number} is not sent"
                    )
                self._socket.poll(int(LOOK * 1000), zmq.POLLOUT)
            return False
        finally:
            self.blocked = False
