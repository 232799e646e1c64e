"""The STINS sender with real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import zmq
from zmq.utils.garbage import gc

from tangods_detector.hw.base import DetectorInfo
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import Streamer, start_metadata
from tangods_receiver.errors import HardwareError
from tangods_receiver.protocol import SeriesEnd, SeriesStart, stins
from tests.contract import Listener, wait_for

SERIES = Series(7, Settings(n_triggers=3), filename="/d/a.h5")
IMAGE = {"shape": (2, 4), "dtype": "uint8", "codec": "none"}


@pytest.fixture(autouse=True)
def pyzmqs_own_thread() -> Iterator[None]:
    """pyzmq frees buffers that were sent without a copy in a thread that otherwise stays for good."""
    yield
    gc.stop()


@pytest.fixture
def streamer() -> Iterator[Streamer]:
    streamer = Streamer("127.0.0.1", 0, 1_000_000, 100_000)
    yield streamer
    streamer.close()


def test_a_whole_series_and_numbers_that_run_on(streamer: Streamer) -> None:
    with Listener([streamer.endpoint]) as listener:
        for series in (SERIES, Series(8, SERIES.settings)):
            streamer.begin(series, {"label": "x"}, **IMAGE, limit=5)
            for number in range(3):
                assert streamer.frame(number, bytes(range(8)), **IMAGE)
            assert streamer.end()
        wait_for("the last message", lambda: listener.ended(8))
    start = listener.messages[0]
    assert isinstance(start, SeriesStart)
    assert (start.series, start.nframes, start.shape, start.dtype, start.codec) == (7, 3, (2, 4), "uint8", "none")
    assert start.filename == "/d/a.h5" and start.metadata["label"] == "x"
    assert [m.serial for m in listener.messages] == list(range(10)) == list(range(streamer.serial))
    assert all(bytes(f.data) == bytes(range(8)) and f.series in (7, 8) for f in listener.frames())
    assert all(abs((f.timestamp or 0) - time.time()) < 60 for f in listener.frames())
    assert isinstance(listener.messages[-1], SeriesEnd)


def test_no_receiver_is_told_in_time(streamer: Streamer) -> None:
    begun = time.monotonic()
    with pytest.raises(HardwareError, match=f"no receiver connected to {streamer.endpoint} within 0.2 s"):
        streamer.begin(SERIES, {}, **IMAGE, limit=0.2)
    assert time.monotonic() - begun < 1
    assert streamer.serial == 0, "what was not sent has no number"
    assert not streamer.end(limit=0.1)


def test_a_receiver_that_takes_nothing_holds_it_up_until_the_limit(streamer: Streamer) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as lazy:
        lazy.linger = 0
        lazy.rcvhwm = 1
        lazy.connect(streamer.endpoint)
        streamer.begin(SERIES, {}, **IMAGE, limit=5)
        big = bytes(3_000_000)
        with pytest.raises(HardwareError, match="took no frame for 0.2 s"):
            for number in range(1000):
                streamer.frame(number, big, shape=(1000, 3000), dtype="uint8", codec="none", limit=0.2)
        assert 4 <= number < 40, "the high-water mark is in bytes"
        assert not streamer.blocked


def test_abort_frees_who_waits_and_the_end_message_is_still_sent(streamer: Streamer) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as lazy:
        lazy.linger = 0
        lazy.rcvhwm = 1
        lazy.connect(streamer.endpoint)
        streamer.begin(SERIES, {}, **IMAGE, limit=5)
        sent: list[bool] = []

        def send() -> None:
            number = 0
            while streamer.frame(number, bytes(3_000_000), shape=(1000, 3000), dtype="uint8", codec="none"):
                number += 1
            sent.append(True)

        thread = threading.Thread(target=send)
        thread.start()
        wait_for("a full socket", lambda: streamer.blocked)
        streamer.abort.set()
        thread.join(5)
        assert sent
        count = streamer.serial
        reader = threading.Thread(target=lambda: [lazy.recv_multipart() for _ in range(count)])
        reader.start()
        assert streamer.end(limit=5)
        reader.join(5)
        assert stins.decode(lazy.recv_multipart()) == SeriesEnd(count, 7)
        with pytest.raises(HardwareError, match="stopped before"):
            streamer.begin(SERIES, {}, **IMAGE, limit=5)


def test_a_receiver_that_comes_late_gets_everything(streamer: Streamer) -> None:
    def later() -> None:
        with Listener([streamer.endpoint]) as listener:
            wait_for("the start message", lambda: listener.started(7))

    thread = threading.Timer(0.3, later)
    thread.start()
    streamer.begin(SERIES, {}, **IMAGE, limit=5)
    thread.join(5)


def test_a_receiver_that_goes_does_not_end_the_sender() -> None:
    """Peers that die while the socket is full: what crashed libzmq when the high-water mark was changed meanwhile."""
    for _ in range(10):
        streamer = Streamer("127.0.0.1", 0, 1_000_000, 100_000)
        context = zmq.Context()
        lazy = context.socket(zmq.PULL)
        lazy.linger, lazy.rcvhwm = 0, 1
        lazy.connect(streamer.endpoint)
        streamer.begin(SERIES, {}, **IMAGE, limit=5)
        closing = threading.Timer(0.05, lambda s=lazy: s.close())
        closing.start()
        with pytest.raises(HardwareError):
            for number in range(10_000):
                streamer.frame(number, bytes(100_000), shape=(100, 1000), dtype="uint8", codec="none", limit=0.2)
        closing.join(5)
        context.term()
        streamer.close()


def test_a_port_in_use(streamer: Streamer) -> None:
    with pytest.raises(HardwareError, match="in use"):
        Streamer("127.0.0.1", streamer.port, 1, 1)


def test_metadata_of_a_series() -> None:
    info = DetectorInfo("Model", "S1", (10, 20), (1e-6, 2e-6), "Si", 3e-4, "2.0")
    settings = Settings(binning=(2, 1), n_triggers=4, trigger_mode=TriggerMode.SOFTWARE)
    series = Series(1, settings, label="run", metadata={"a": 1}, overwrite=True)
    told = start_metadata(series, info, 0.25)
    assert (told["exptime"], told["frame_time"], told["label"], told["n_triggers"]) == (0.1, 0.25, "run", 4)
    assert told["roi"] == [0, 0, 20, 10] and told["user"] == {"a": 1} and told["overwrite"] is True
    assert told["detector"]["x_pixel_size"] == 4e-6 and told["detector"]["y_pixel_size"] == 1e-6
    gated = start_metadata(Series(1, Settings(trigger_mode=TriggerMode.EXTERNAL_GATE)), info, 0.1)
    assert "exptime" not in gated and "overwrite" not in gated
