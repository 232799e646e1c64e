"""A receiver that does not keep up with a Hamamatsu camera: what is lost is told by number, what is sent is whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import zmq

from tangods_detector.hw.base import Phase
from tangods_detector.hw.hamamatsu import Hamamatsu
from tangods_detector.settings import Series, Settings
from tangods_receiver.protocol import Frame, SeriesEnd, stins
from tests.contract import wait_for
from tests.hw.dcam import FLASH, LIGHTNING, Fake, connected, exposure, fresh, number_in, pixels

LIMIT = 30.0


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fresh() as fake:
        yield fake


class Sink:
    """Takes messages, or for a while none, with little room on the way."""

    def __init__(self, endpoint: str) -> None:
        self.frames: list[Frame] = []
        self.ended = False
        self.spoiled: list[str] = []
        self.taking = threading.Event()
        self.taking.set()
        self._stop = threading.Event()
        self._endpoint = endpoint
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT)

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.linger, socket.rcvhwm, socket.rcvbuf = 0, 1, 100_000
            socket.connect(self._endpoint)
            while not self._stop.is_set():
                if not self.taking.is_set():
                    time.sleep(0.01)
                elif socket.poll(20):
                    self._take(stins.decode(socket.recv_multipart(copy=False)))

    def _take(self, message: Any) -> None:
        if isinstance(message, SeriesEnd):
            self.ended = True
        elif isinstance(message, Frame):
            try:
                assert number_in(pixels(message)) == message.number
            except AssertionError as exc:
                self.spoiled.append(f"{message.number}: {exc}")
            self.frames.append(message._replace(data=b""))


def end(backend: Hamamatsu) -> None:
    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), 4 * LIMIT)


def overflow(fake: Fake, serial: str, settings: Settings, memory: int, pause: float, n: int) -> None:
    """A series of `n` frames whose receiver takes none for `pause` s. AssertionError: the books do not balance."""
    with connected(fake, serial, memory) as backend, Sink(backend.endpoints()[0]) as sink:
        settings = backend.configure(replace(settings, n_frames_per_trigger=n))
        backend.arm(Series(1, settings))
        backend.start()
        wait_for("some frames", lambda: len(sink.frames) > 20, LIMIT)
        sink.taking.clear()
        stuck = wait_for("back-pressure", lambda: backend.status().blocked and backend.status().frames, LIMIT)
        time.sleep(pause)
        assert backend.status().frames <= stuck + backend.window
        assert backend.status().phase is Phase.ACQUIRING
        sink.taking.set()
        end(backend)
        backend.stop()
        status, lost = backend.status(), backend.numbers.lost
        assert status.phase is Phase.DONE, status.message
        wait_for("the end message", lambda: sink.ended, LIMIT)
        assert sink.spoiled == [], "pixels of several frames in one"
        came = [f.number for f in sink.frames]
        assert came == sorted(set(came)) and len(came) == status.frames
        gone = [k for first, last in lost for k in range(first, last + 1) if k < n]
        assert sorted(came + gone) == list(range(n)), "each is there, or told to be lost"
        assert gone and backend.numbers.overwritten == len([k for a, b in lost for k in range(a, b + 1)])
        assert f"({len(gone)} because the buffers were full)" in status.message
        assert came[-1] == n - 1 or gone[-1] == n - 1
        after = [k for k in came if k > gone[0]]
        assert after, "it has gone on after the pause"
        print(f"{n} frames: {len(came)} came, {len(gone)} lost in {len(lost)} ranges, {backend.rescued} copied")


def test_a_receiver_that_stops_for_a_second(fake: Fake) -> None:
    """Images of half a megabyte, 200 in a second, buffers for half a second."""
    settings = Settings(exposure(FLASH, 0.005), roi=(0, 0, 512, 512))
    overflow(fake, FLASH, settings, 60_000_000, 1.0, 500)


def test_a_receiver_that_goes_away_and_comes_back(fake: Fake) -> None:
    with connected(fake, FLASH, 60_000_000) as backend:
        settings = backend.configure(Settings(exposure(FLASH, 0.005), roi=(0, 0, 512, 512)))
        with Sink(backend.endpoints()[0]) as sink:
            backend.arm(Series(1, settings, live=True))
            backend.start()
            wait_for("some frames", lambda: len(sink.frames) > 20, LIMIT)
        wait_for("back-pressure", lambda: backend.status().blocked, LIMIT)
        frames = fake.get("frames")
        wait_for("two rounds", lambda: fake.get("frames") > frames + 2 * backend.buffers, LIMIT)
        assert backend.status().phase is Phase.ACQUIRING, backend.status().message
        with Sink(backend.endpoints()[0]) as again:
            wait_for("frames again", lambda: len(again.frames) > 20, LIMIT)
            backend.stop()
            assert backend.status().phase is Phase.IDLE, backend.status().message
            wait_for("the end message", lambda: again.ended, LIMIT)
        came = [f.number for f in again.frames]
        assert not again.spoiled and came == sorted(set(came))
        assert "because the buffers were full" in backend.status().message
        gone = {k for first, last in backend.numbers.lost for k in range(first, last + 1)}
        assert len(gone) > backend.buffers and not gone & set(came)


def test_less_than_the_ring_holds_is_never_lost(fake: Fake) -> None:
    """The camera stands still as soon as it has taken all frames of a series."""
    with connected(fake, FLASH, 20_000_000) as backend, Sink(backend.endpoints()[0]) as sink:
        settings = Settings(exposure(FLASH, 0.005), roi=(0, 0, 512, 512), n_frames_per_trigger=26)
        backend.arm(Series(1, backend.configure(settings)))
        assert backend.buffers == 34 and backend.window == 4
        sink.taking.clear()
        backend.start()
        wait_for("all of them", lambda: fake.get("frames") >= 26, LIMIT)
        time.sleep(0.5)
        taken = fake.get("frames")
        time.sleep(0.3)
        assert fake.get("frames") == taken and backend.status().phase is Phase.ACQUIRING
        sink.taking.set()
        end(backend)
        wait_for("all", lambda: sink.ended, LIMIT)
        assert [f.number for f in sink.frames] == list(range(26)) and backend.status().message == ""


# --- minutes ----------------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize(("serial", "memory"), [(FLASH, 500_000_000), (LIGHTNING, 1_500_000_000)])
def test_a_receiver_that_stops_for_three_seconds(fake: Fake, serial: str, memory: int) -> None:
    """The whole sensor, 20 images in a second."""
    overflow(fake, serial, Settings(exposure(serial, 0.05)), memory, 3.0, 150)


def memory_now() -> int:
    """Bytes that this process has; what is mapped twice counts once."""
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))


@pytest.mark.soak
def test_memory_in_ten_thousand_frames(fake: Fake) -> None:
    budget = 500_000_000
    before = memory_now()
    with connected(fake, FLASH, budget) as backend, Sink(backend.endpoints()[0]) as sink:
        settings = Settings(exposure(FLASH, 0.005), roi=(0, 0, 1024, 512), n_frames_per_trigger=10_000)
        backend.arm(Series(1, backend.configure(settings)))
        backend.start()
        most = 0
        while backend.status().phase is Phase.ACQUIRING:
            most = max(most, memory_now() - before)
            time.sleep(0.2)
        end(backend)
        wait_for("the end message", lambda: sink.ended, LIMIT)
        print(
            f"{len(sink.frames)} frames, at most {most / 1e6:.0f} MB more than before, {budget / 1e6:.0f} of it buffers"
        )
        assert sink.spoiled == [] and backend.status().phase is Phase.DONE
        assert most < budget + 150_000_000
