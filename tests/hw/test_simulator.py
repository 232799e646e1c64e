"""The simulated detector: the contract, the content of every image, timing, and failures on request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import bitshuffle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tangods_detector.hw.base import Backend, Phase
from tangods_detector.hw.simulator import Edges, Simulator
from tangods_detector.hw.simulator_images import (
    BLOCK_BYTES,
    Prepared,
    SimulatorOptions,
    accepted_settings,
    base_image,
    expected_frame,
    image_format,
)
from tangods_detector.options import parse_options
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.protocol import Frame
from tests.contract import BackendContract, Listener, wait_for

SMALL = SimulatorOptions(width=96, height=64)


def decoded(frame: Frame) -> np.ndarray:
    data = np.frombuffer(frame.data, np.uint8)
    dtype = np.dtype(frame.dtype)
    if frame.codec == "none":
        return data.view(dtype).reshape(frame.shape)
    return bitshuffle.decompress_lz4(data[12:], frame.shape, dtype, BLOCK_BYTES // dtype.itemsize)


class TestSimulator(BackendContract):
    @pytest.fixture
    def backend(self) -> Iterator[Simulator]:
        backend = Simulator(SMALL)
        backend.connect()
        yield backend
        backend.close()

    def fire(self, backend: Backend) -> None:
        assert isinstance(backend, Simulator)
        backend.edges.fire(1)

    # --- content ---

    @pytest.mark.parametrize("codec", ["bslz4", "none"])
    def test_every_pixel(self, codec: Any) -> None:
        backend = Simulator(replace(SMALL, codec=codec))
        backend.connect()
        try:
            with Listener(backend.endpoints()) as listener:
                series = self.ready(backend, n_frames_per_trigger=40, rotation=90, binning=(2, 1), fliplr=True)
                backend.start()
                self.finish(backend, listener)
                wait_for("the end message", lambda: listener.ended(1))
            for frame in listener.frames():
                expected = expected_frame(SMALL, series.settings, frame.number)
                np.testing.assert_array_equal(decoded(frame), expected)
                assert int(decoded(frame).reshape(-1).view(np.uint64)[0]) == frame.number
        finally:
            backend.close()

    # --- timing ---

    def test_the_schedule_is_absolute(self, backend: Simulator, listener: Listener) -> None:
        self.ready(backend, exposure_time=0.0005, frame_time=0.001, n_frames_per_trigger=500)
        begun = time.monotonic()
        backend.start()
        self.finish(backend, listener)
        assert 0.499 <= time.monotonic() - begun < 1.5
        assert backend.status().frames == 500

    def test_arming_is_quick_when_nothing_has_changed(self, listener: Listener, backend: Simulator) -> None:
        self.ready(backend)
        backend.stop()
        begun = time.monotonic()
        self.ready(backend, 2)
        assert time.monotonic() - begun < 0.1
        backend.stop()

    def test_edges_that_find_it_busy_are_ignored_and_counted(self, backend: Simulator, listener: Listener) -> None:
        self.ready(
            backend, trigger_mode=TriggerMode.EXTERNAL_MULTI, exposure_time=0.05, n_triggers=2, n_frames_per_trigger=1
        )
        backend.start()
        backend.edges.period = 0.02
        backend.edges.fire(50)
        self.finish(backend, listener)
        assert backend.status().triggers == 2
        assert backend.edges.ignored >= 2
        backend.edges.period = 0.0

    def test_a_gate_is_as_long_as_it_is(self, backend: Simulator, listener: Listener) -> None:
        self.ready(backend, trigger_mode=TriggerMode.EXTERNAL_GATE, n_triggers=2, n_frames_per_trigger=1)
        backend.edges.width = 0.1
        backend.start()
        begun = time.monotonic()
        backend.edges.fire(2)
        self.finish(backend, listener)
        assert time.monotonic() - begun >= 0.2

    def test_a_second_software_trigger_is_refused_while_busy(self, backend: Simulator, listener: Listener) -> None:
        self.ready(backend, trigger_mode=TriggerMode.SOFTWARE, exposure_time=0.2, n_triggers=2, n_frames_per_trigger=1)
        backend.start()
        wait_for("readiness", lambda: backend.status().phase is Phase.ACQUIRING)
        backend.trigger()
        with pytest.raises(HardwareError, match="busy"):
            backend.trigger()
        backend.stop()

    # --- failures on request ---

    def test_drop_repeat_reorder_are_used_up_by_one_series(self, backend: Simulator, listener: Listener) -> None:
        backend.failures.drop, backend.failures.repeat, backend.failures.reorder = 2, 3, 4
        self.ready(backend, n_frames_per_trigger=60)
        backend.start()
        self.finish(backend, listener)
        wait_for("the end message", lambda: listener.ended(1))
        numbers = [f.number for f in listener.frames()]
        assert len(set(numbers)) == 58
        assert len(numbers) == 61
        assert numbers != sorted(numbers)
        listener.messages.clear()
        self.ready(backend, 2)
        backend.start()
        self.finish(backend, listener)
        wait_for("the end message", lambda: listener.ended(2))
        assert [f.number for f in listener.frames()] == list(range(5))

    def test_the_last_frame_can_be_held_back_too(self, backend: Simulator, listener: Listener) -> None:
        backend.failures.reorder = 5
        self.ready(backend)
        backend.start()
        self.finish(backend, listener)
        wait_for("the end message", lambda: listener.ended(1))
        assert sorted(f.number for f in listener.frames()) == list(range(5))

    def test_wrong_shape(self, backend: Simulator, listener: Listener) -> None:
        backend.failures.wrong_shape = 2
        self.ready(backend, n_frames_per_trigger=20)
        backend.start()
        self.finish(backend, listener)
        wait_for("the end message", lambda: listener.ended(1))
        assert len(listener.refused) == 2, "the bytes do not fit the announced shape"
        assert len(listener.frames()) == 18

    def test_stall_and_die(self, backend: Simulator, listener: Listener) -> None:
        backend.failures.stall = 3
        self.ready(backend)
        backend.start()
        wait_for("the silence", lambda: backend.status().frames == 3)
        time.sleep(0.05)
        assert backend.status().frames == 3
        backend.stop()
        backend.failures.die = 2
        self.ready(backend, 2)
        backend.start()
        wait_for("its death", lambda: backend.status().phase is Phase.ERROR)
        assert "died at frame 2" in backend.status().message
        backend.stop()
        self.ready(backend, 3)
        backend.start()
        self.finish(backend, listener)

    def test_no_end_message(self, backend: Simulator, listener: Listener) -> None:
        backend.failures.no_end = True
        self.ready(backend)
        backend.start()
        wait_for("the end of the series", lambda: backend.status().phase is Phase.DONE)
        backend.stop()
        self.ready(backend, 2)
        wait_for("the next start message", lambda: listener.started(2))
        assert not listener.ended(1)
        backend.stop()

    def test_refused_arm_and_unreachable(self, backend: Simulator, listener: Listener) -> None:
        backend.failures.refuse_arm = True
        with pytest.raises(HardwareError, match="503"):
            self.ready(backend)
        backend.failures.unreachable = True
        for call in (backend.connect, backend.status, lambda: backend.configure(Settings())):
            with pytest.raises(HardwareError, match="does not answer"):
                call()
        backend.failures.unreachable = False
        backend.connect()
        self.ready(backend)
        backend.stop()

    def test_no_receiver(self) -> None:
        backend = Simulator(replace(SMALL, send_timeout=0.2))
        backend.connect()
        try:
            with pytest.raises(HardwareError, match="no receiver connected to tcp://127.0.0.1:"):
                self.ready(backend)
            assert backend.status().phase is Phase.IDLE
        finally:
            backend.close()

    def test_the_port_stays_the_same_after_a_reconnection(self, backend: Simulator) -> None:
        before = backend.endpoints()
        backend.connect()
        assert backend.endpoints() == before
        backend.close()
        other = Simulator(SMALL)
        other.connect()
        assert other.endpoints() == before, "also after Init"
        third = Simulator(SMALL)
        third.connect()  # the port is in use, but nobody asked for this one
        assert third.endpoints() != before
        third.close()
        other.close()

    def test_a_port_in_use_is_told(self, backend: Simulator) -> None:
        port = int(backend.endpoints()[0].rpartition(":")[2])
        other = Simulator(replace(SMALL, port=port))
        with pytest.raises(HardwareError, match=f"{port}.*in use"):
            other.connect()
        other.close()


# --- pure parts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@hypothesis_settings(max_examples=60)
@given(
    width=st.integers(8, 200),
    height=st.integers(1, 60),
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "int32", "float32"]),
    look=st.sampled_from(["photon", "scmos"]),
    k=st.integers(0, 2**64 - 1),
)
def test_compressed_frames_decode_to_what_is_expected(width: int, height: int, dtype: Any, look: Any, k: int) -> None:
    options = SimulatorOptions(width=width, height=height, dtype=dtype, look=look, images=2)
    for codec in ("bslz4", "none"):
        image = base_image(options, Settings(), k % 2)
        payload = Prepared(image, codec).payload(k)
        frame = Frame(0, image.shape, dtype, codec, payload)
        assert decoded(frame).tobytes() == expected_frame(options, Settings(), k).tobytes()


def test_large_images_in_many_blocks() -> None:
    options = SimulatorOptions(width=1030, height=514, dtype="uint32", images=2)
    image = base_image(options, Settings(), 1)
    frame = Frame(0, image.shape, "uint32", "bslz4", Prepared(image, "bslz4").payload(7))
    np.testing.assert_array_equal(decoded(frame), expected_frame(options, Settings(), 7))
    assert len(frame.data) < image.nbytes / 4


def test_region_binning_orientation_and_depth() -> None:
    options = SimulatorOptions(width=64, height=32, look="scmos", dtype="uint16")
    full = base_image(options, Settings(), 0).astype(int)
    part = base_image(options, Settings(roi=(8, 4, 16, 12)), 0)
    np.testing.assert_array_equal(part, full[4:16, 8:24])
    binned = base_image(options, Settings(binning=(4, 2)), 0)
    np.testing.assert_array_equal(binned, full.reshape(16, 2, 16, 4).sum(axis=(1, 3)))
    turned = base_image(options, Settings(fliplr=True, flipud=True, rotation=90), 0)
    np.testing.assert_array_equal(turned, np.rot90(full[::-1, ::-1]))
    assert turned.shape == image_format(options, Settings(rotation=90))[0] == (64, 32)
    eight = base_image(options, Settings(bit_depth=8, binning=(2, 2)), 0)
    assert eight.dtype == np.uint8 and eight.max() == 255
    assert base_image(options, Settings(bit_depth=12), 0).dtype == np.uint16


def test_accepted_settings() -> None:
    options = SimulatorOptions(width=64, height=32)
    assert accepted_settings(options, Settings()).bit_depth == 16
    assert accepted_settings(options, Settings(roi=(0, 0, 64, 32))).roi is None
    assert accepted_settings(options, Settings(roi=(1, 0, 9, 9), binning=(2, 2))).roi == (1, 0, 8, 8)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (Settings(roi=(0, 0, 65, 32)), "64 x 32"),
        (Settings(roi=(-1, 0, 5, 5)), "Roi"),
        (Settings(roi=(0, 0, 2, 2)), "too few"),
        (Settings(binning=(9, 1)), "8 x 8"),
        (Settings(bit_depth=7), "8, 12, 16, 32"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: Settings, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        accepted_settings(SimulatorOptions(width=64, height=32), settings)
    with pytest.raises(ConfigError, match=word):
        Simulator(SimulatorOptions(width=64, height=32)).configure(settings)


def test_all_wrong_options_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(SimulatorOptions, ["width = 1", "port = 99999", "latency = -1"])
    assert all(word in str(caught.value) for word in ("width", "port", "latency"))


def test_edges_with_and_without_a_clock() -> None:
    edges = Edges()
    edges.fire(2)
    assert edges.take(ready=edges.next + 5, now=edges.next + 1) is None, "it waits until the detector is ready"
    assert edges.take(ready=0.0, now=edges.next + 1) == edges.next
    edges.period = 1.0
    edges.fire(3)
    first = edges.next
    assert edges.take(ready=first + 1.5, now=first + 10) == first + 2
    assert (edges.ignored, edges.left) == (2, 0)
    assert edges.take(0.0, first + 100) is None


def test_names_of_a_series_are_not_needed_to_arm() -> None:
    backend = Simulator(SMALL)
    with pytest.raises(HardwareError, match="not connected"):
        backend.arm(Series(1, Settings()))
    assert backend.status().phase is Phase.IDLE
    backend.start()
    backend.stop()
    backend.close()
