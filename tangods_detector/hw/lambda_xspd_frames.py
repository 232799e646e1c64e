"""xspd's data ports: a thread that fetches frames as they come, so that no PUB socket drops any, and counts them.

A header tells only the lowest eight bits of a frame's number. Where more are lost in a row, the time that went by tells
how many, and what the other ports have sent meanwhile: to half a turn, which is 128 frames. Of a port alone, exactly
256 cannot be told from none."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import zmq

from tangods_detector import blosc
from tangods_detector.hw.lambda_system import FrameStatus, RawFrame
from tangods_receiver.errors import HardwareError, StreamError

log = logging.getLogger(__name__)

TURN = 256  # numbers come modulo this
HEADER = 4  # bytes that are known
LOOK = 50  # ms between two looks at what is asked of the thread
SEEN = 32  # frames after which the pace that is seen counts
SURE = 0.9  # of a turn must have gone by where no frame seems to be lost
LATE = 2.0  # times as many frames as went by may have been lost at the beginning
BATCH = 500  # messages that are taken from a port before the next has its turn
PAUSE = 0.02  # s
AWAKE = 0.06  # s that one such look takes at most
JOIN_LIMIT = 5.0  # s


@dataclass(frozen=True)
class Acquisition:
    """What one `start` gives: `frames` on each port (in DUAL twice n_frames), `period` s between two exposures (None:
    edges decide), of which each has `counters` frames; `compressor` of each port, in xspd's words; `nbytes` of the
    pixels of each."""

    frames: int
    period: float | None
    counters: int
    compressor: Sequence[str]
    nbytes: Sequence[int]


@dataclass
class Port:
    """Where a port is in the numbers of an acquisition, from 1; 0 before its first frame. Its frames come in order."""

    last: int = 0
    at: float = 0.0  # when that came
    first: int = 0  # the first that came
    begun: float = 0.0  # and when
    shift: int = 0  # of the unit's counter, where that did not begin at 1
    waiting: deque[tuple[int, int, int, Any]] = field(default_factory=deque)  # number, trigger, status, pixels
    nbytes: int = 0  # of what waits

    def place(self, low: int, now: float, acquisition: Acquisition, latest: int, behind: int = 0) -> int:
        """The number whose lowest bits came; `latest` that any port is at, `behind` frames that came right after it:
        where they had only been held up, they are many."""
        step = (low - self.shift - self.last) % TURN
        by_time, others = self.silent_for(now, acquisition), float(latest - self.last)
        if not self.last:
            step = step or TURN
        elif step == 0 and (acquisition.counters > 1 or max(by_time, others) < TURN / 2):
            return self.last  # both counters have it, or it came again
        if step != 1 or (self.last and min(by_time, others) > SURE * TURN):
            went_by = by_time - behind if acquisition.period else others
            if acquisition.period and others > TURN / 2:  # which were not held up
                went_by = (by_time + others) / 2
            room = max(0, acquisition.frames - self.last - step) // TURN
            step += min(max(0, round((went_by - step) / TURN)), room) * TURN
            if not self.last and step > min(acquisition.frames, LATE * went_by + SEEN):
                self.shift, step = step - 1, 1  # it did not begin at 1
        self.last, self.at = self.last + step, now
        if not self.first:
            self.first, self.begun = self.last, now
        return self.last

    def silent_for(self, now: float, acquisition: Acquisition) -> float:
        """In frames; 0 where edges decide. The dead time between frames is not known, so the pace is that of the frames
        that came."""
        if not acquisition.period:
            return 0.0
        pace = acquisition.period / acquisition.counters
        if self.last - self.first >= SEEN:
            pace = max(pace, (self.at - self.begun) / (self.last - self.first))
        return (now - self.at) / pace


class Frames:
    """The thread and its queues, from `__init__` to `close`. `memory` bytes of pixels may wait; beyond that the newest
    are dropped and counted."""

    def __init__(self, endpoints: Sequence[str], memory: int) -> None:
        self.dropped = 0
        self._memory = memory
        self._ports = [Port() for _ in endpoints]
        self._acquisition: Acquisition | None = None
        self._changed = threading.Condition()
        self._clock = 0.0  # s in which this thread was awake: what it sleeps through is no silence of the sender
        self._flush = threading.Event()
        self._flushed = threading.Event()
        self._closing = threading.Event()
        self._problem = ""
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets = [self._subscribed(endpoint) for endpoint in endpoints]
        self._thread = threading.Thread(target=self._run, name="xspd ports", daemon=True)
        self._thread.start()

    def _subscribed(self, endpoint: str) -> Any:
        socket = self._context.socket(zmq.SUB)
        socket.linger, socket.rcvhwm = 0, 0  # the limit is ours
        socket.subscribe(b"")
        socket.connect(endpoint)
        return socket

    def close(self) -> None:
        """Safe twice."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(JOIN_LIMIT)

    # --- what the system calls ---------------------------------------------------------------------------------------

    def forget(self, limit: float = 2.0) -> None:
        """What has come is of no use: an acquisition is about to begin. HardwareError: the thread does not answer."""
        self._flushed.clear()
        self._flush.set()
        if not self._flushed.wait(limit):
            raise HardwareError(f"the thread of xspd's data ports has not answered for {limit:g} s")

    def begin(self, acquisition: Acquisition) -> None:
        """Frames that come from now on are its own."""
        with self._changed:
            now = self._clock
            self._problem, self.dropped = "", 0
            for port in self._ports:
                port.last, port.at, port.first, port.begun, port.shift = 0, now, 0, now, 0
            self._acquisition = acquisition

    def next(self, position: int, timeout: float) -> RawFrame | None:
        """Of one port; None: none within `timeout` s. HardwareError: what comes cannot be read."""
        port = self._ports[position]
        with self._changed:
            if not port.waiting and timeout > 0:
                self._changed.wait_for(lambda: port.waiting or self._problem or self._closing.is_set(), timeout)
            if not port.waiting:
                if self._problem:
                    raise HardwareError(self._problem)
                return None
            number, trigger, status, data = port.waiting.popleft()
            port.nbytes -= len(data)
            acquisition = self._acquisition
        assert acquisition is not None
        return _raw(number, trigger, status, data, acquisition.compressor[position], acquisition.nbytes[position])

    def waiting(self, position: int) -> int:
        """Frames that came and were not taken yet."""
        return len(self._ports[position].waiting)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in self._sockets:
            poller.register(socket, zmq.POLLIN)
        try:
            seen = time.monotonic()
            while not self._closing.is_set():
                ready = dict(poller.poll(LOOK))
                now = time.monotonic()
                self._clock, seen = self._clock + min(now - seen, AWAKE), now
                for position, socket in enumerate(self._sockets):
                    if socket in ready:
                        self._fetch(position, socket)
                if self._flush.is_set():
                    self._empty()
        finally:
            for socket in self._sockets:
                socket.close()
            self._context.term()

    def _fetch(self, position: int, socket: Any) -> None:
        """All that this port has, up to a number."""
        messages = _received(socket)
        acquisition, port = self._acquisition, self._ports[position]
        if acquisition is None:
            return
        if messages and port.last and port.silent_for(self._clock, acquisition) > TURN / 2:
            time.sleep(PAUSE)  # were they held up, or were there none?
            messages += _received(socket)
        for k, parts in enumerate(messages, 1):
            self._take(position, parts, acquisition, len(messages) - k)

    def _take(self, position: int, parts: Sequence[Any], acquisition: Acquisition, behind: int) -> None:
        header = bytes(parts[1].buffer[:HEADER]) if len(parts) == 3 else b""
        with self._changed:
            if len(header) < HEADER:
                self._problem = (
                    f"xspd's port {position + 1}: {len(parts)} parts, the second of {len(header)} bytes, are no frame: "
                    "is this the data port of another program?"
                )
            else:
                port = self._ports[position]
                latest = max(other.last for other in self._ports)
                number = port.place(header[0], self._clock, acquisition, latest, behind)
                data = parts[2].buffer
                if sum(other.nbytes for other in self._ports) + len(data) > self._memory:
                    self.dropped += 1
                    return
                port.waiting.append((number, header[1], header[2], data))
                port.nbytes += len(data)
            self._changed.notify_all()

    def _empty(self) -> None:
        with self._changed:
            self._acquisition = None
            for port in self._ports:
                port.waiting.clear()
                port.nbytes = 0
        for socket in self._sockets:
            while _received(socket):
                pass
        self._flush.clear()
        self._flushed.set()


def _received(socket: Any) -> list[Any]:
    """What is there, up to a number."""
    messages: list[Any] = []
    while len(messages) < BATCH:
        try:
            messages.append(socket.recv_multipart(zmq.NOBLOCK, copy=False))
        except zmq.Again:
            break
    return messages


def _raw(number: int, trigger: int, status: int, data: Any, compressor: str, nbytes: int) -> RawFrame:
    """The frame with its pixels unpacked."""
    told = FrameStatus(status) if status in FrameStatus._value2member_map_ else FrameStatus.INCOMPLETE
    if compressor != "none" and told is not FrameStatus.MISSING:
        try:
            data = memoryview(_inflated(data, nbytes) if compressor == "zlib" else blosc.decompress(data, nbytes))
        except StreamError as exc:
            log.debug("frame %d: %s", number, exc)
            told, data = FrameStatus.COMPRESSION_FAILED, memoryview(b"")
    return RawFrame(number, told, memoryview(data), _nothing, trigger)


def _nothing() -> None:
    """The memory is ZeroMQ's, or ours."""


def _inflated(data: Any, nbytes: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, nbytes + 1)
    except zlib.error as exc:
        raise StreamError(f"{len(data)} bytes are no zlib: {exc}") from exc
    if len(plain) != nbytes or not stream.eof:
        raise StreamError(f"{len(data)} bytes of zlib do not hold {nbytes} bytes")
    return plain
