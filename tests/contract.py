"""What every backend must do; a detector's own test class inherits it and brings a connected `backend`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zmq

from tangods_detector.hw.base import Backend, DetectorInfo, Phase
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError, StreamError
from tangods_receiver.protocol import Frame, Message, SeriesEnd, SeriesStart, stins

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

    def __init__(self, endpoints: list[str], decode: Callable[[Any], Message] = stins.decode) -> None:
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
                    self.messages.append(self._decode(socket.recv_multipart()))
                except StreamError as exc:
                    self.refused.append(exc)

    def frames(self) -> list[Frame]:
        return [m for m in list(self.messages) if isinstance(m, Frame)]

    def ended(self, series: int) -> bool:
        return any(isinstance(m, SeriesEnd) and m.series == series for m in list(self.messages))

    def started(self, series: int) -> bool:
        return any(isinstance(m, SeriesStart) and m.series == series for m in list(self.messages))


class BackendContract:
    """Inherit it, give a fixture `backend` (connected, closed afterwards) and, if the mode needs it, `fire`."""

    settings = Settings(exposure_time=0.002, n_triggers=1, n_frames_per_trigger=5)

    def fire(self, backend: Backend) -> None:
        """Let one edge or gate come at the trigger input."""
        pytest.skip("no pretended signal generator")

    @pytest.fixture
    def listener(self, backend: Backend) -> Iterator[Listener]:
        with Listener(backend.endpoints()) as listener:
            yield listener

    def ready(self, backend: Backend, number: int = 1, live: bool = False, **changes: Any) -> Series:
        """Configured and armed."""
        series = Series(number, backend.configure(replace(self.settings, **changes)), live=live)
        backend.arm(series)
        return series

    def finish(self, backend: Backend) -> None:
        wait_for("the end of the series", lambda: backend.status().phase is Phase.DONE)
        backend.stop()

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

    def test_parameters_are_readable_and_documented(self, backend: Backend) -> None:
        for p in backend.parameters:
            assert isinstance(p.get(backend), p.dtype), p.name
            assert len(p.doc) > 10, p.name
            if p.set:
                p.set(backend, p.get(backend))

    # --- a series ---

    def test_a_series_from_start_to_end(self, backend: Backend, listener: Listener) -> None:
        series = self.ready(backend)
        wait_for("the start message", lambda: listener.started(1))
        backend.start()
        self.finish(backend)
        wait_for("the end message", lambda: listener.ended(1))
        assert backend.status().frames == series.n_frames
        assert sorted(f.number for f in listener.frames()) == list(range(5))
        shape, dtype = backend.image_format(series.settings)
        assert {(f.shape, f.dtype) for f in listener.frames()} == {(shape, dtype)}

    def test_the_start_message_tells_what_the_file_needs(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend)
        wait_for("the start message", lambda: listener.started(1))
        start = next(m for m in listener.messages if isinstance(m, SeriesStart))
        assert start.metadata["exptime"] == pytest.approx(self.settings.exposure_time)
        assert start.metadata["detector"]["x_pixel_size"] > 0
        backend.stop()

    def test_nothing_is_exposed_before_start(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend)
        wait_for("the start message", lambda: listener.started(1))
        time.sleep(0.05)
        assert not listener.frames()
        backend.stop()
        wait_for("the end message", lambda: listener.ended(1))

    def test_series_after_series(self, backend: Backend, listener: Listener) -> None:
        for number in range(1, 6):
            self.ready(backend, number)
            backend.start()
            self.finish(backend)
            wait_for("the end message", lambda n=number: listener.ended(n))
        assert len(listener.frames()) == 25

    def test_software_triggers(self, backend: Backend, listener: Listener) -> None:
        if TriggerMode.SOFTWARE not in backend.trigger_modes:
            pytest.skip("no software trigger")
        self.ready(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=3, n_frames_per_trigger=2)
        backend.start()
        for n in (1, 2, 3):
            if n > 1:  # the first comes as soon as a client sees RUNNING
                wait_for("readiness", lambda: backend.status().phase is Phase.ACQUIRING)
            backend.trigger()
            wait_for("its frames", lambda n=n: backend.status().frames == 2 * n)
        self.finish(backend)
        wait_for("the end message", lambda: listener.ended(1))
        assert len(listener.frames()) == 6

    @pytest.mark.parametrize("mode", [m for m in TriggerMode if m.value.startswith("EXTERNAL")])
    def test_external_triggers(self, backend: Backend, listener: Listener, mode: TriggerMode) -> None:
        if mode not in backend.trigger_modes:
            pytest.skip(f"no {mode.value}")
        series = self.ready(backend, trigger_mode=mode, n_triggers=3, n_frames_per_trigger=1)
        backend.start()
        for n in range(series.settings.n_starts):
            self.fire(backend)
            wait_for("its frames", lambda n=n: backend.status().frames == (n + 1) * series.settings.frames_per_start)
        self.finish(backend)
        wait_for("the end message", lambda: listener.ended(1))
        assert len(listener.frames()) == 3

    def test_a_live_series_runs_until_stop(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend, live=True)
        backend.start()
        wait_for("more frames than any number", lambda: backend.status().frames > 8)
        backend.stop()
        wait_for("the end message", lambda: listener.ended(1))

    # --- stop ---

    def test_stop_when_nothing_runs_and_twice(self, backend: Backend) -> None:
        backend.stop()
        backend.stop()
        assert backend.status().phase is Phase.IDLE

    def test_stop_in_the_middle_sends_the_end(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend, n_frames_per_trigger=100_000)
        backend.start()
        wait_for("frames", lambda: backend.status().frames > 2)
        begun = time.monotonic()
        backend.stop()
        backend.stop()
        assert time.monotonic() - begun < 2
        wait_for("the end message", lambda: listener.ended(1))
        assert len(listener.frames()) == backend.status().frames
        self.ready(backend, 2)
        backend.start()
        self.finish(backend)
        wait_for("the end of the next", lambda: listener.ended(2))

    def test_stop_breaks_off_a_long_exposure(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend, exposure_time=60.0)
        backend.start()
        wait_for("the exposure", lambda: backend.status().phase is Phase.ACQUIRING)
        begun = time.monotonic()
        backend.stop()
        assert time.monotonic() - begun < 2
        assert backend.status().phase in (Phase.IDLE, Phase.DONE)

    def test_close_in_the_middle_and_twice(self, backend: Backend, listener: Listener) -> None:
        self.ready(backend, n_frames_per_trigger=100_000)
        backend.start()
        wait_for("frames", lambda: backend.status().frames > 2)
        backend.close()
        backend.close()
        backend.connect()
        backend.stop()

    def test_a_trigger_nobody_waits_for_is_refused(self, backend: Backend) -> None:
        with pytest.raises((HardwareError, ConfigError)):
            backend.trigger()
