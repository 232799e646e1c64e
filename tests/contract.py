"""What every backend must do; a detector's own test class inherits it and brings a connected `backend`."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import zmq

from tangods_detector.hw.base import Backend, DetectorInfo, Phase, Status
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError, StreamError
from tangods_receiver.protocol import Decode, Frame, Message, SeriesEnd, SeriesStart, stins

LIMIT = 10.0  # s for anything to happen


def wait_for(what: str, condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Wait until the condition is true and return its value."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {limit} s for {what}"
        time.sleep(0.002)
    return value


class Listener:
    """A receiver of messages in a thread of its own; `messages` grows, and so does what was `refused`."""

    def __init__(self, endpoints: list[str], decode: Decode = stins.decode) -> None:
        self.messages: list[Message] = []
        self.refused: list[StreamError] = []
        self._endpoints, self._decode = endpoints, decode
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LIMIT)

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.linger = 0
            for endpoint in self._endpoints:
                socket.connect(endpoint)
            while not self._stop.is_set():
                if not socket.poll(20):
                    continue
                try:
                    message = self._decode(socket.recv_multipart())
                    self.messages += message if isinstance(message, list) else [message]
                except StreamError as exc:
                    self.refused.append(exc)

    def frames(self, series: int | None = None) -> list[Frame]:
        """Of this series, as far as the stream tells; None: all."""
        frames = [m for m in list(self.messages) if isinstance(m, Frame)]
        return [f for f in frames if series is None or f.series in (None, series)]

    def ended(self, series: int) -> bool:
        return any(isinstance(m, SeriesEnd) and m.series == series for m in list(self.messages))

    def started(self, series: int) -> bool:
        return any(isinstance(m, SeriesStart) and m.series == series for m in list(self.messages))


class BackendContract:
    """Inherit it, give a fixture `backend` (connected, closed afterwards), `fire` if modes need it, `decode` for a
    stream that is not STINS.

    Hardware may count its series itself, so the number that `arm` tells is used; and it may have no count of frames,
    so it is told what came, as the acquisition does."""

    settings = Settings(exposure_time=0.002, n_triggers=1, n_frames_per_trigger=5)
    decode: ClassVar[Decode] = staticmethod(stins.decode)
    series = Series(0, settings)  # armed last

    def fire(self, backend: Backend) -> None:
        """Let one edge or gate come at the trigger input."""
        pytest.skip("no pretended signal generator")

    @pytest.fixture
    def listener(self, backend: Backend) -> Iterator[Listener]:
        with Listener(backend.endpoints(), self.decode) as listener:
            yield listener

    def ready(self, backend: Backend, number: int = 1, live: bool = False, **changes: Any) -> Series:
        """Configured and armed; the series has the number that the stream gives it."""
        series = Series(number, backend.configure(replace(self.settings, **changes)), live=live)
        own = backend.arm(series)
        self.series = series if own is None else replace(series, id=own)
        return self.series

    def status(self, backend: Backend, listener: Listener) -> Status:
        """Of the series armed last, when the backend knows what came."""
        backend.frames_came(len({f.number for f in listener.frames(self.series.id)}))
        return backend.status()

    def finish(self, backend: Backend, listener: Listener) -> None:
        wait_for("the end of the series", lambda: self.status(backend, listener).phase is Phase.DONE)
        backend.stop()
        wait_for("the end message", lambda: listener.ended(self.series.id))

    # --- what it is ---

    def test_says_what_it_is(self, backend: Backend) -> None:
        info = backend.connect()  # also a second time
        assert isinstance(info, DetectorInfo)
        assert info.model and min(info.shape) > 0 and min(info.pixel_size) > 0
        assert backend.endpoints() and all("://" in endpoint for endpoint in backend.endpoints())
        assert backend.trigger_modes

    def test_configure_says_what_was_accepted_and_accepts_that_again(self, backend: Backend) -> None:
        accepted = backend.configure(self.settings)
        assert backend.configure(accepted) == accepted
        (rows, columns), dtype = backend.image_format(accepted)
        assert rows > 0 and columns > 0 and np.dtype(dtype).itemsize > 0
        assert backend.latency_time(accepted) >= 0
        assert backend.frame_bytes(accepted) > 0

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"roi": (0, 0, 1_000_000, 1_000_000)}, "Roi"),
            ({"binning": (1000, 1000)}, "Binning"),
            ({"bit_depth": 7}, "BitDepth"),
        ],
    )
    def test_the_impossible_is_refused_in_words_and_the_possible_works_then(
        self, backend: Backend, changes: dict[str, Any], word: str
    ) -> None:
        with pytest.raises(ConfigError, match=word):
            backend.configure(replace(self.settings, **changes))
        accepted = backend.configure(self.settings)
        assert accepted.exposure_time == pytest.approx(self.settings.exposure_time)

    def test_parameters_are_readable_and_documented(self, backend: Backend) -> None:
        for p in backend.parameters:
            assert isinstance(p.get(backend), p.dtype), p.name
            assert len(p.doc) > 10, p.name
            if p.set:
                p.set(backend, p.get(backend))

    # --- a series ---

    def test_a_series_from_start_to_end(self, backend: Backend, listener: Listener) -> None:
        series = self.ready(backend)
        wait_for("the start message", lambda: listener.started(series.id))
        backend.start()
        self.finish(backend, listener)
        assert backend.status().frames == series.n_frames
        assert sorted(f.number for f in listener.frames()) == list(range(5))
        shape, dtype = backend.image_format(series.settings)
        assert {(f.shape, f.dtype) for f in listener.frames()} == {(shape, dtype)}

    def test_the_start_message_tells_what_the_file_needs(self, backend: Backend, listener: Listener) -> None:
        series = self.ready(backend)
        wait_for("the start message", lambda: listener.started(series.id))
        start = next(m for m in listener.messages if isinstance(m, SeriesStart))
        assert start.metadata["exptime"] == pytest.approx(self.settings.exposure_time)
        detector = start.metadata["detector"]
        assert detector.get("x_pixel_size", detector.get("pixel_size_x")) > 0
        backend.stop()

    def test_nothing_is_exposed_before_start(self, backend: Backend, listener: Listener) -> None:
        series = self.ready(backend)
        wait_for("the start message", lambda: listener.started(series.id))
        time.sleep(0.05)
        assert not listener.frames()
        backend.stop()
        wait_for("the end message", lambda: listener.ended(series.id))

    def test_series_after_series(self, backend: Backend, listener: Listener) -> None:
        for number in range(1, 6):
            self.ready(backend, number)
            backend.start()
            self.finish(backend, listener)
        assert len(listener.frames()) == 25

    def test_software_triggers(self, backend: Backend, listener: Listener) -> None:
        if TriggerMode.SOFTWARE not in backend.trigger_modes:
            pytest.skip("no software trigger")
        self.ready(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=3, n_frames_per_trigger=2)
        backend.start()
        for n in (1, 2, 3):
            if n > 1:  # the first comes as soon as a client sees RUNNING
                wait_for("readiness", lambda: self.status(backend, listener).phase is Phase.ACQUIRING)
            backend.trigger()
            wait_for("its frames", lambda n=n: self.status(backend, listener).frames == 2 * n)
        self.finish(backend, listener)
        assert len(listener.frames()) == 6

    @pytest.mark.parametrize("mode", [m for m in TriggerMode if m.value.startswith("EXTERNAL")])
    def test_external_triggers(self, backend: Backend, listener: Listener, mode: TriggerMode) -> None:
        if mode not in backend.trigger_modes:
            pytest.skip(f"no {mode.value}")
        series = self.ready(backend, trigger_mode=mode, n_triggers=3, n_frames_per_trigger=1)
        backend.start()
        each = series.settings.frames_per_start
        for n in range(series.settings.n_starts):
            self.fire(backend)
            wait_for("its frames", lambda n=n: self.status(backend, listener).frames == (n + 1) * each)
        self.finish(backend, listener)
        assert len(listener.frames()) == 3

    def test_a_live_series_runs_until_stop(self, backend: Backend, listener: Listener) -> None:
        series = self.ready(backend, live=True)
        backend.start()
        wait_for("more frames than any number", lambda: self.status(backend, listener).frames > 8)
        backend.stop()
        wait_for("the end message", lambda: listener.ended(series.id))

    def test_the_status_is_cheap(self, backend: Backend, listener: Listener) -> None:
        """It is asked for fifty times a second."""
        self.ready(backend, n_frames_per_trigger=100_000)
        backend.start()
        taken = []
        for _ in range(100):
            begun = time.perf_counter()
            backend.status()
            taken.append(time.perf_counter() - begun)
            time.sleep(0.002)
        backend.stop()
        assert statistics.median(taken) < 0.001

    # --- stop ---

    def test_stop_when_nothing_runs_and_twice(self, backend: Backend) -> None:
        backend.stop()
        backend.stop()
        assert backend.status().phase is Phase.IDLE

    def test_stop_before_start(self, backend: Backend, listener: Listener) -> None:
        series = self.ready(backend)
        backend.stop()
        backend.stop()
        wait_for("the end message", lambda: listener.ended(series.id))
        assert backend.status().phase is Phase.IDLE
        self.ready(backend, 2)
        backend.start()
        self.finish(backend, listener)

    def test_stop_in_the_middle_sends_the_end(self, backend: Backend, listener: Listener) -> None:
        series = self.ready(backend, n_frames_per_trigger=100_000)
        backend.start()
        wait_for("frames", lambda: self.status(backend, listener).frames > 2)
        begun = time.monotonic()
        backend.stop()
        backend.stop()
        assert time.monotonic() - begun < 2
        wait_for("the end message", lambda: listener.ended(series.id))
        assert len(listener.frames()) == self.status(backend, listener).frames
        self.ready(backend, 2)
        backend.start()
        self.finish(backend, listener)

    def test_stop_breaks_off_a_long_exposure(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend, exposure_time=60.0)
        backend.start()
        wait_for("the exposure", lambda: self.status(backend, listener).phase is Phase.ACQUIRING)
        begun = time.monotonic()
        backend.stop()
        assert time.monotonic() - begun < 2
        assert backend.status().phase in (Phase.IDLE, Phase.DONE)

    def test_close_in_the_middle_and_twice(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend, n_frames_per_trigger=100_000)
        backend.start()
        wait_for("frames", lambda: self.status(backend, listener).frames > 2)
        backend.close()
        backend.close()
        backend.connect()
        backend.stop()

    def test_a_series_after_a_new_connection(self, backend: Backend) -> None:
        backend.close()
        backend.connect()
        with Listener(backend.endpoints(), self.decode) as listener:
            self.ready(backend)
            backend.start()
            self.finish(backend, listener)
            assert len(listener.frames()) == 5

    def test_a_trigger_nobody_waits_for_is_refused(self, backend: Backend) -> None:
        with pytest.raises((HardwareError, ConfigError)):
            backend.trigger()
