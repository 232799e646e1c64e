"""The ring with real sockets: what is lent stays as it is until it is sent, and comes back. `make test` runs this again
without the compiled part."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from zmq.utils.garbage import gc

from tangods_detector.hw import frame_ring
from tangods_detector.hw.frame_ring import PAGE, FrameRing, RingStreamer
from tangods_detector.settings import Series, Settings
from tangods_receiver import codecs
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.protocol import SeriesStart, stins
from tests.contract import Listener, wait_for

LIMIT = 30.0
SIZE = 100_000
SERIES = Series(7, Settings(n_triggers=3))
IMAGE = {"shape": (100, 1000), "dtype": "uint8", "codec": "none"}


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.stop()  # pyzmq's own, of the ring without the compiled part


@pytest.fixture
def ring() -> Iterator[FrameRing]:
    ring = FrameRing(20 * (SIZE // PAGE + 1) * PAGE)
    assert ring.divide(SIZE) == 20
    yield ring
    ring.close(LIMIT)


@pytest.fixture
def streamer(ring: FrameRing) -> Iterator[RingStreamer]:
    streamer = RingStreamer("127.0.0.1", 0)
    yield streamer
    streamer.close()


def put(ring: FrameRing, slot: int, value: int) -> None:
    ctypes.memset(ring.address(slot), value, SIZE)


def is_all(data: Any, value: int) -> bool:
    return bytes(data) == bytes([value]) * len(data)


def send(streamer: RingStreamer, ring: FrameRing, slot: int, number: int, **more: Any) -> bool:
    return streamer.send(ring, slot, number, **{**IMAGE, "nbytes": SIZE, **more})


def test_slots_are_pages_of_one_memory(ring: FrameRing) -> None:
    addresses = ring.addresses
    assert all(address % PAGE == 0 for address in addresses)
    assert {b - a for a, b in zip(addresses, addresses[1:], strict=False)} == {ring.stride} and ring.stride >= SIZE
    assert [ring.slot(address) for address in addresses] == list(range(20))
    for wrong in (addresses[0] - ring.stride, addresses[-1] + ring.stride, addresses[3] + 8):
        with pytest.raises(HardwareError, match="was not given"):
            ring.slot(wrong)
    put(ring, 3, 65)
    assert bytes(ring.memory(3)) == b"A" * SIZE and bytes(ring.memory(3, 4, offset=2)) == b"AAAA"
    assert bytes(ring.memory(4, 1)) == b"\0"


def test_the_budget_is_kept() -> None:
    ring = FrameRing(1_000_000)
    assert ring.divide(300_000) == 3 and ring.divide(10, most=5) == 5 and ring.divide(1, most=10**6) == 245
    with pytest.raises(
        ConfigError, match=r"0 MiB have room for 1 frames of 600000 bytes, not for 2; set the memory to 2"
    ):
        ring.divide(600_000)
    assert ring.count == 245, "it is as it was"
    ring.close()
    with pytest.raises(ConfigError, match="cannot be had"):
        FrameRing(2**60)


def test_frames_come_as_they_were_and_slots_come_back(ring: FrameRing, streamer: RingStreamer) -> None:
    with Listener([streamer.endpoint]) as listener:
        streamer.begin(SERIES, {}, **IMAGE, limit=LIMIT)
        free, out = list(ring.ours()), 0
        while out < 100:
            free += ring.back()
            if not free:
                ring.wait(1.0)
                continue
            slot = free.pop(0)
            put(ring, slot, out % 251)
            assert send(streamer, ring, slot, out, extra=b'"camera_ticks":%d' % out, timestamp=out / 4)
            out += 1
        assert streamer.end()
        wait_for("the end", lambda: listener.ended(7), LIMIT)
        assert ring.wait_all_back(LIMIT) and ring.held == 0 and list(ring.ours()) == list(range(20))
    frames = listener.frames()
    assert [f.number for f in frames] == list(range(100)) and [m.serial for m in listener.messages] == list(range(102))
    assert all(is_all(f.data, n % 251) for n, f in enumerate(frames))
    assert [(f.extra["camera_ticks"], f.timestamp) for f in frames] == [(n, n / 4) for n in range(100)]


@pytest.mark.parametrize("codec, nbytes, stride", [("none", 64 * 100, 64), ("mono12packed", 50 * 100, 50)])
def test_padded_and_packed_rows(ring: FrameRing, streamer: RingStreamer, codec: str, nbytes: int, stride: int) -> None:
    with Listener([streamer.endpoint]) as listener:
        image = {"shape": (100, 30), "dtype": "uint16", "codec": codec}
        streamer.begin(SERIES, {}, **image, limit=LIMIT)  # type: ignore[arg-type]
        put(ring, 0, 0xFF)
        assert streamer.send(ring, 0, 0, **image, nbytes=nbytes, stride=stride)  # type: ignore[arg-type]
        wait_for("it", listener.frames, LIMIT)
    start, frame = listener.messages
    assert isinstance(start, SeriesStart) and (start.dtype, start.codec) == ("uint16", codec)
    pixels = codecs.decompress(frame.codec, frame.data, frame.shape, frame.dtype)  # type: ignore[union-attr,arg-type]
    assert pixels.shape == (100, 30) and set(pixels.ravel()) == {0xFFFF if codec == "none" else 0xFFF}


class Sink:
    """Connected, and takes nothing until it is asked to."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVBUF, 4096)
        self._socket.rcvhwm, self._socket.linger = 1, 0
        self._socket.connect(endpoint)

    def take(self) -> Any:
        assert self._socket.poll(1000 * LIMIT)
        return stins.decode(self._socket.recv_multipart())

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def large() -> Iterator[FrameRing]:
    """More than the kernel's buffers take."""
    ring = FrameRing(40 * 1024 * 1024)
    assert ring.divide(1024 * 1024) == 40
    yield ring
    ring.close(LIMIT)


def test_a_sink_that_stops(large: FrameRing) -> None:
    """All slots are out, none comes back, nothing waits in `send`; then all go on, unchanged."""
    streamer = RingStreamer("127.0.0.1", 0)
    sink = Sink(streamer.endpoint)
    image = {"shape": (1024, 1024), "dtype": "uint8", "codec": "none", "nbytes": 1024 * 1024}
    try:
        streamer.begin(SERIES, {}, shape=(1024, 1024), dtype="uint8", codec="none", limit=LIMIT)
        for slot in range(40):
            ctypes.memset(large.address(slot), slot, 1024 * 1024)
            assert streamer.send(large, slot, slot, **image)  # type: ignore[arg-type]
        assert not streamer.blocked
        with pytest.raises(ValueError, match="not back"):
            streamer.send(large, 39, 40, **image)  # type: ignore[arg-type]
        large.back()
        stuck = large.held
        assert stuck > 20 and large.is_held(39) and len(large.ours()) == 40 - stuck
        begun = time.monotonic()
        with pytest.raises(HardwareError, match=f"{stuck} frames of the series before are not taken"):
            large.divide(512 * 1024, limit=0.1)
        assert time.monotonic() - begun < LIMIT
        assert large.divide(1024 * 1024 - 100) == 40, "the same pages: nothing to wait for"
        assert isinstance(sink.take(), SeriesStart)
        for number in range(40):
            frame = sink.take()
            assert frame.number == number and is_all(frame.data, number)
        assert large.wait_all_back(LIMIT) and not large.is_held(39)
        assert large.divide(512 * 1024) == 80
    finally:
        sink.close()
        streamer.close()


def test_closing_with_frames_that_nobody_takes(large: FrameRing) -> None:
    streamer = RingStreamer("127.0.0.1", 0)
    sink = Sink(streamer.endpoint)
    try:
        streamer.begin(SERIES, {}, shape=(1024, 1024), dtype="uint8", codec="none", limit=LIMIT)
        for slot in range(40):
            assert streamer.send(large, slot, slot, shape=(1024, 1024), dtype="uint8", codec="none", nbytes=1024 * 1024)
        large.back()
        assert large.held
    finally:
        streamer.close()
        assert large.wait_all_back(LIMIT), "ZeroMQ lets go of what it cannot send"
        sink.close()


def test_a_ring_that_is_closed_too_early_leaves_its_memory(large: FrameRing) -> None:
    streamer = RingStreamer("127.0.0.1", 0)
    sink = Sink(streamer.endpoint)
    kept = len(frame_ring._kept)
    try:
        streamer.begin(SERIES, {}, shape=(1024, 1024), dtype="uint8", codec="none", limit=LIMIT)
        for slot in range(40):
            ctypes.memset(large.address(slot), slot, 1024 * 1024)
            assert streamer.send(large, slot, slot, shape=(1024, 1024), dtype="uint8", codec="none", nbytes=1024 * 1024)
        large.close(0.05)
        assert len(frame_ring._kept) == kept + 1
        sink.take()
        assert all(is_all(sink.take().data, n) for n in range(40))
    finally:
        sink.close()
        streamer.close()
        del frame_ring._kept[kept:]


def test_nobody_is_connected(ring: FrameRing, streamer: RingStreamer) -> None:
    streamer._series = 7
    with pytest.raises(HardwareError, match=r"nobody takes frames at tcp://.* for 0.2 s; frame 5 is not sent"):
        send(streamer, ring, 0, 5, limit=0.2)
    assert not send(streamer, ring, 0, 5, wait=False)
    stopper = threading.Timer(0.2, streamer.abort.set)
    stopper.start()
    assert not send(streamer, ring, 0, 5)
    stopper.join()
    assert ring.held == 0 and streamer.serial == 0 and not streamer.blocked
    streamer.abort.clear()
    with Listener([streamer.endpoint]) as listener:
        assert send(streamer, ring, 0, 5, limit=LIMIT)
        wait_for("it", listener.frames, LIMIT)


def test_a_client_that_goes_away_gives_its_slots_back(large: FrameRing) -> None:
    streamer = RingStreamer("127.0.0.1", 0)
    sink = Sink(streamer.endpoint)
    try:
        streamer.begin(SERIES, {}, shape=(1024, 1024), dtype="uint8", codec="none", limit=LIMIT)
        for slot in range(40):
            assert streamer.send(large, slot, slot, shape=(1024, 1024), dtype="uint8", codec="none", nbytes=1024 * 1024)
        sink.close()
        deadline = time.monotonic() + LIMIT
        while not large.wait_all_back(0.1):  # libzmq looks after its connections when it is asked for something
            streamer._socket.poll(1, zmq.POLLOUT)
            assert time.monotonic() < deadline
    finally:
        streamer.close()
