"""Hamamatsu cameras by the pretended library: the contract, every pixel, settings with the camera's own limits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from tangods_detector.hw.base import Backend, Phase
from tangods_detector.hw.hamamatsu import Hamamatsu
from tangods_detector.hw.hamamatsu_camera import Camera, Limits
from tangods_detector.hw.hamamatsu_dcam import Code, Prop
from tangods_detector.hw.hamamatsu_options import HamamatsuOptions
from tangods_detector.options import parse_options
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.protocol import SeriesStart
from tests.contract import BackendContract, Listener, wait_for
from tests.hw.dcam import (
    FLASH,
    FUSION,
    LIGHTNING,
    Fake,
    code,
    connected,
    expected,
    exposure,
    fresh,
    number_in,
    pixels,
    small,
)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fresh() as fake:
        yield fake


class CameraContract(BackendContract):
    """For all models."""

    serial: ClassVar[str]
    longest: ClassVar[float]

    @pytest.fixture
    def backend(self, fake: Fake) -> Iterator[Hamamatsu]:
        self.fake = fake
        with connected(fake, self.serial) as backend:
            yield backend

    def fire(self, backend: Backend) -> None:
        self.fake.tell("edge 1")

    def test_stop_breaks_off_a_long_exposure(self, backend: Backend, listener: Listener) -> None:
        """As long as the camera can."""
        self.ready(backend, exposure_time=self.longest)
        backend.start()
        wait_for("the exposure", lambda: self.status(backend, listener).phase is Phase.ACQUIRING)
        begun = time.monotonic()
        backend.stop()
        assert time.monotonic() - begun < 2
        assert backend.status().phase in (Phase.IDLE, Phase.DONE)


class TestFlash(CameraContract):
    serial, longest, settings = FLASH, 9.0, small(FLASH)


class TestLightning(CameraContract):
    serial, longest, settings = LIGHTNING, 1.7, small(LIGHTNING)


class TestFusion(CameraContract):
    serial, longest, settings = FUSION, 9.0, small(FUSION)


# --- images -----------------------------------------------------------------------------------------------------------


def run(backend: Hamamatsu, listener: Listener, settings: Settings, number: int = 1) -> Series:
    """One whole series without triggers."""
    series = Series(number, backend.configure(settings))
    backend.arm(series)
    backend.start()
    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), 30)
    backend.stop()
    assert backend.status().phase is Phase.DONE, backend.status().message
    wait_for("the end message", lambda: listener.ended(number), 30)
    return series


FORMATS = [  # camera, bits, packed, binning, what the stream says of it
    (FLASH, 16, True, 1, "none"),
    (FLASH, 12, True, 1, "none"),
    (FLASH, 8, True, 2, "none"),
    (LIGHTNING, 16, True, 4, "none"),
    (LIGHTNING, 12, True, 1, "mono12p"),
    (LIGHTNING, 12, True, 2, "mono12p"),
    (LIGHTNING, 12, False, 1, "none"),
    (FUSION, 8, True, 1, "none"),
]


@pytest.mark.parametrize(("serial", "bits", "packed", "binning", "codec"), FORMATS)
@pytest.mark.parametrize("alignment", [0, 256])
def test_every_pixel(
    fake: Fake, serial: str, bits: int, packed: bool, binning: int, codec: str, alignment: int
) -> None:
    fake.set(row_alignment=alignment)
    with connected(fake, serial) as backend, Listener(backend.endpoints()) as listener:
        backend.knobs.packed = packed
        settings = small(serial, bit_depth=bits, binning=(binning, binning))
        series = run(backend, listener, replace(settings, roi=(64, 32, 208, 64)))
        shape, dtype = backend.image_format(series.settings)
        assert shape == (64 // binning, 208 // binning) and series.settings.bit_depth == bits
        frames = listener.frames()
        assert [f.number for f in frames] == list(range(5))
        padded = codec == "none" and alignment and shape[1] * np.dtype(dtype).itemsize % alignment
        for frame in frames:
            assert frame.codec == ("padded" if padded else codec) and frame.dtype == dtype
            np.testing.assert_array_equal(pixels(frame), expected(shape, bits, frame.number))


def test_the_whole_sensor_is_sent_as_it_is(fake: Fake) -> None:
    with connected(fake, LIGHTNING, 260_000_000) as backend, Listener(backend.endpoints()) as listener:
        run(backend, listener, Settings(0.01, n_frames_per_trigger=2))
        for frame in listener.frames():
            assert np.array_equal(pixels(frame), expected((2592, 4608), 16, frame.number))


def test_stamps_and_times_go_with_the_images(fake: Fake) -> None:
    begun = time.time()
    with connected(fake, LIGHTNING) as backend, Listener(backend.endpoints()) as listener:
        series = run(backend, listener, small(LIGHTNING))
        frames = listener.frames()
        assert [f.extra["frame_stamp"] for f in frames] == list(range(5))
        first = frames[0].extra["camera_stamp"]
        assert first > 0 and [f.extra["camera_stamp"] for f in frames] == list(range(first, first + 5))
        times = [f.timestamp or 0.0 for f in frames]
        assert times == sorted(times) and begun - 1 < times[0] < time.time() + 1
        start = next(m for m in listener.messages if isinstance(m, SeriesStart))
        assert start.metadata["detector"]["saturation_value"] == 65535
        assert start.metadata["frame_time"] == pytest.approx(series.settings.exposure_time)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_regions_grow_to_the_steps_of_the_camera(fake: Fake) -> None:
    with connected(fake, FLASH) as backend:
        assert backend.configure(small(FLASH)).roi == (64, 32, 128, 64)
        grown = backend.configure(replace(small(FLASH), roi=(65, 33, 126, 62)))
        assert grown.roi == (64, 32, 128, 64)
        binned = backend.configure(replace(small(FLASH), roi=(2041, 2043, 5, 3), binning=(4, 4)))
        assert binned.roi == (2040, 2040, 8, 8) and backend.image_format(binned)[0] == (2, 2)
        assert backend.configure(replace(small(FLASH), roi=(0, 0, 2048, 2048))).roi is None
        for roi in ((0, 0, 4, 4), (2044, 2044, 4, 4), (0, 2044, 2048, 4)):  # up and down, in any order
            assert backend.configure(replace(small(FLASH), roi=roi)).roi == roi


def test_the_limits_of_exposure_follow_the_read_out_speed(fake: Fake) -> None:
    by_name = {p.name: p for p in Hamamatsu.parameters}
    with connected(fake, FLASH) as backend:
        settings = replace(small(FLASH), roi=None)
        backend.configure(settings)
        readout, step = by_name["ReadoutTime"].get(backend), by_name["ExposureTimeStep"].get(backend)
        assert backend.latency_time(settings) == pytest.approx(readout - settings.exposure_time)
        by_name["ReadoutSpeed"].set(backend, 1)  # type: ignore[misc]
        assert by_name["ReadoutTime"].get(backend) == pytest.approx(readout * 32.4812 / 9.74436)
        slow = backend.configure(settings)
        assert slow.exposure_time != settings.exposure_time, "rounded to longer rows"
        assert slow.exposure_time == pytest.approx(settings.exposure_time, abs=step * 2)
        low, high = by_name["ExposureTimeMin"].get(backend), by_name["ExposureTimeMax"].get(backend)
        for wrong in (low * 0.9, high * 1.1):
            with pytest.raises(ConfigError, match="ExposureTime: .* is not between .* and .* in steps of"):
                backend.configure(replace(settings, exposure_time=wrong))


def test_periods(fake: Fake) -> None:
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()) as listener:
        settings = backend.configure(replace(small(FLASH), frame_time=0.01))
        assert settings.frame_time == pytest.approx(0.01)
        begun = time.time()
        run(backend, listener, settings)
        assert (listener.frames()[-1].timestamp or 0.0) - begun > 0.04
        assert backend.configure(replace(settings, frame_time=0.0)).frame_time == 0
        assert backend.configure(replace(settings, frame_time=1e-4)).frame_time == 1e-4, "Arm says why not"
    with connected(fake, FUSION) as backend:
        with pytest.raises(ConfigError, match="FrameTime: .* has no rate of its own.*; set 0"):
            backend.configure(replace(small(FUSION), frame_time=1.0))


def test_a_period_that_is_refused_matters_only_where_one_is_wanted(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Camera.put

    def refused(camera: Camera, prop: int, value: float) -> float:
        if prop in (Prop.INTERNAL_FRAMEINTERVAL, Prop.INTERNALFRAMERATE):
            raise ConfigError("not in this mode")
        return put(camera, prop, value)

    with connected(fake, LIGHTNING) as backend:
        backend.configure(replace(small(LIGHTNING), frame_time=0.5))  # so that there is something to write
        monkeypatch.setattr(Camera, "put", refused)
        edges = replace(small(LIGHTNING), trigger_mode=TriggerMode.EXTERNAL_MULTI, n_frames_per_trigger=1, n_triggers=3)
        assert backend.configure(edges).trigger_mode is TriggerMode.EXTERNAL_MULTI
        with pytest.raises(ConfigError, match="FrameTime: not in this mode"):
            backend.configure(replace(small(LIGHTNING), frame_time=0.25))


def test_as_fast_as_possible_never_cuts_the_exposure(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some cameras take any period, and shorten the exposure for it."""
    put, limits = Camera.put, Camera.limits

    def cutting(camera: Camera, prop: int, value: float) -> float:
        taken = put(camera, prop, value)
        if prop == Prop.INTERNAL_FRAMEINTERVAL and value < camera.get(Prop.EXPOSURETIME):
            put(camera, Prop.EXPOSURETIME, value)
        return taken

    def loose(camera: Camera, prop: int) -> Limits:
        found = limits(camera, prop)
        return replace(found, low=1e-4) if prop == Prop.INTERNAL_FRAMEINTERVAL else found

    with connected(fake, LIGHTNING) as backend:
        backend.configure(replace(small(LIGHTNING), exposure_time=0.2, frame_time=0.5))
        monkeypatch.setattr(Camera, "put", cutting)
        monkeypatch.setattr(Camera, "limits", loose)
        taken = backend.configure(replace(small(LIGHTNING), exposure_time=0.2, frame_time=0.0))
        assert taken.exposure_time == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize(
    ("serial", "changes", "words"),
    [
        (FLASH, {"bit_depth": 10}, "BitDepth: 10; this camera has 8, 12, 16"),
        (LIGHTNING, {"bit_depth": 8}, "BitDepth: 8; this camera has 12, 16"),
        (FLASH, {"binning": (2, 1)}, "Binning: 2 x 1; this camera has 1 x 1, 2 x 2, 4 x 4"),
        (FLASH, {"roi": (2000, 0, 100, 10)}, "Roi: .* is not within the sensor, 2048 x 2048"),
        (FLASH, {"rotation": 90}, "Rotation"),
        (FLASH, {"trigger_mode": TriggerMode.EXTERNAL_MULTI}, "nFramesPerTrigger: 5; .* one frame with each edge"),
    ],
)
def test_what_it_has_not_is_refused_in_words(fake: Fake, serial: str, changes: dict[str, Any], words: str) -> None:
    with connected(fake, serial) as backend:
        with pytest.raises(ConfigError, match=words):
            backend.configure(replace(small(serial), **changes))
        assert backend.configure(small(serial)) == small(serial, bit_depth=16)


def test_a_refused_property_is_told_by_name_and_code(fake: Fake) -> None:
    with connected(fake, FLASH) as backend:
        fake.set(refuse=Prop.EXPOSURETIME)
        with pytest.raises(ConfigError, match=r"ExposureTime: .*EXPOSURE TIME = .*INVALIDVALUE \(0x80000821\)"):
            backend.configure(replace(small(FLASH), exposure_time=0.5))
        fake.set(refuse_code=code(Code.FAILWRITECAMERA))
        with pytest.raises(HardwareError, match=r"EXPOSURE TIME = .*FAILWRITECAMERA \(0x83001003\)"):
            backend.configure(replace(small(FLASH), exposure_time=0.5))
        fake.set(refuse=0, wrong=Prop.EXPOSURETIME, wrong_by=0.1)
        taken = backend.configure(replace(small(FLASH), exposure_time=0.5)).exposure_time
        assert taken == pytest.approx(0.6, abs=1e-4), "what it took is what is shown"


def test_a_property_that_vanishes_is_done_without(fake: Fake) -> None:
    with connected(fake, FLASH) as backend:
        fake.set(vanish=Prop.SENSORTEMPERATURE)
        by_name = {p.name: p for p in Hamamatsu.parameters}
        assert np.isnan(by_name["SensorTemperature"].get(backend))
        backend.connect()
        assert np.isnan(by_name["SensorTemperature"].get(backend))


def test_what_the_camera_takes_when_armed_is_what_the_file_tells(fake: Fake) -> None:
    """A slower read-out has longer rows, and exposures are whole rows; it was chosen after the exposure."""
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()) as listener:
        settings = backend.configure(small(FLASH))
        backend.knobs.choose(Prop.READOUTSPEED, 1, "ReadoutSpeed")
        backend.arm(Series(1, settings))
        taken = backend.loaded.exposure_time
        assert taken != settings.exposure_time and taken == pytest.approx(61 * 32.4812e-6)
        start = wait_for("it", lambda: next((m for m in listener.messages if isinstance(m, SeriesStart)), None))
        assert start.metadata["exptime"] == pytest.approx(taken)
        backend.stop()


# --- triggers ---------------------------------------------------------------------------------------------------------


def test_several_frames_with_each_edge(fake: Fake) -> None:
    with connected(fake, LIGHTNING) as backend, Listener(backend.endpoints()) as listener:
        changes = {"trigger_mode": TriggerMode.EXTERNAL_MULTI, "n_triggers": 3, "n_frames_per_trigger": 4}
        backend.arm(Series(1, backend.configure(replace(small(LIGHTNING), **changes))))
        backend.start()
        for n in (1, 2, 3):
            fake.tell("edge 1")
            wait_for("its frames", lambda n=n: backend.status().frames == 4 * n)
            assert backend.status().triggers == n
        wait_for("the end", lambda: backend.status().phase is Phase.DONE)
        backend.stop()
        wait_for("the end message", lambda: listener.ended(1))
        assert [number_in(pixels(f)) for f in listener.frames()] == list(range(12))


def test_an_edge_ends_a_frame_and_begins_the_next(fake: Fake) -> None:
    """In SyncReadout n + 1 edges give n frames, as long as they are apart."""
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()) as listener:
        backend.knobs.sync_readout = True
        changes = {"trigger_mode": TriggerMode.EXTERNAL_MULTI, "n_triggers": 6, "n_frames_per_trigger": 1}
        backend.arm(Series(1, backend.configure(replace(small(FLASH), **changes))))
        backend.start()
        fake.tell("edge 6 0.02")
        wait_for("five frames", lambda: backend.status().frames == 5)
        time.sleep(0.1)
        assert backend.status().frames == 5
        fake.tell("edge 1")
        wait_for("the end", lambda: backend.status().phase is Phase.DONE)
        wait_for("the frames", lambda: len(listener.frames()) == 6)


def test_a_gate_is_as_long_as_it_is(fake: Fake) -> None:
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()) as listener:
        changes = {"trigger_mode": TriggerMode.EXTERNAL_GATE, "n_triggers": 2, "n_frames_per_trigger": 1}
        backend.arm(Series(1, backend.configure(replace(small(FLASH), **changes))))
        backend.start()
        begun = time.monotonic()
        fake.tell("edge 2 0 0.15")
        wait_for("the end", lambda: backend.status().phase is Phase.DONE)
        assert time.monotonic() - begun >= 0.3
        wait_for("the frames", lambda: len(listener.frames()) == 2)


def test_edges_that_find_it_busy_are_shown(fake: Fake) -> None:
    with connected(fake, FLASH) as backend:
        with Listener(backend.endpoints()):
            changes = {"trigger_mode": TriggerMode.EXTERNAL_MULTI, "n_triggers": 2, "n_frames_per_trigger": 1}
            long = replace(small(FLASH), exposure_time=0.1, **changes)
            backend.arm(Series(1, backend.configure(long)))
            backend.start()
            fake.tell("edge 30 0.02")
            wait_for("the end", lambda: backend.status().phase is Phase.DONE)
        assert fake.get("edges_ignored") >= 2
        by_name = {p.name: p for p in Hamamatsu.parameters}
        assert by_name["TriggerInput"].get(backend) in ("TOO FREQUENT", "GOOD")


def test_a_second_software_trigger_is_refused_while_busy(fake: Fake) -> None:
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()):
        changes = {"trigger_mode": TriggerMode.SOFTWARE, "n_triggers": 2, "n_frames_per_trigger": 1}
        backend.arm(Series(1, backend.configure(replace(small(FLASH), exposure_time=0.5, **changes))))
        with pytest.raises(HardwareError, match="the camera is armed in SOFTWARE mode"):
            backend.trigger()
        backend.start()
        backend.trigger()
        with pytest.raises(HardwareError, match="busy with frame 0"):
            backend.trigger()
        backend.stop()


# --- live -------------------------------------------------------------------------------------------------------------


def test_the_exposure_changes_on_the_fly(fake: Fake) -> None:
    live_exposure = {p.name: p for p in Hamamatsu.parameters}["LiveExposureTime"]
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()) as listener:
        settings = replace(small(FLASH), frame_time=exposure(FLASH, 0.01))
        backend.arm(Series(1, backend.configure(settings), live=True))
        backend.start()
        wait_for("frames", lambda: len(listener.frames()) > 3)
        assert live_exposure.set is not None and live_exposure.writable_while_running
        live_exposure.set(backend, 0.05)
        assert live_exposure.get(backend) == pytest.approx(0.05, abs=1e-5)
        before = len(listener.frames())
        wait_for("more", lambda: len(listener.frames()) > before + 5)
        times = [f.timestamp or 0.0 for f in listener.frames()]
        assert times[-1] - times[before - 1] > 0.1, "five exposures of 50 ms, the first may have begun before"
        with pytest.raises(ConfigError, match="LiveExposureTime: 99 s is not between"):
            live_exposure.set(backend, 99.0)
        fake.set(refuse=Prop.EXPOSURETIME, refuse_code=code(Code.ACCESSDENY))
        with pytest.raises(HardwareError, match="ACCESSDENY"):
            live_exposure.set(backend, 0.02)
        backend.stop()
        assert backend.status().phase is Phase.IDLE
        fake.set(refuse=0)
        assert backend.configure(settings) == replace(settings, bit_depth=16)


# --- options ----------------------------------------------------------------------------------------------------------


def test_all_wrong_options_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(HamamatsuOptions, ["port = 99999", "memory = 1", "library = "])
    assert all(word in str(caught.value) for word in ("port", "memory", "library"))


def test_the_port_stays_the_same_and_a_taken_one_is_told(fake: Fake) -> None:
    with connected(fake, FLASH) as backend:
        before = backend.endpoints()
        backend.connect()
        assert backend.endpoints() == before
        port = int(before[0].rpartition(":")[2])
        other = Hamamatsu(HamamatsuOptions(fake.path, LIGHTNING, port=port, memory=64_000_000))
        with pytest.raises(HardwareError, match=f"{port}.*in use"):
            other.connect()
        other.close()


def test_two_cameras_at_a_time(fake: Fake) -> None:
    with connected(fake, FLASH) as one, connected(fake, LIGHTNING) as two:
        with Listener(one.endpoints()) as first, Listener(two.endpoints()) as second:
            for backend, serial in ((one, FLASH), (two, LIGHTNING)):
                backend.arm(Series(1, backend.configure(replace(small(serial), n_frames_per_trigger=50))))
            for backend in (one, two):
                backend.start()
            for backend, listener in ((one, first), (two, second)):
                wait_for("the end", lambda backend=backend: backend.status().phase is Phase.DONE, 30)
                wait_for("all frames", lambda listener=listener: len(listener.frames()) == 50, 30)


def test_any_property_by_its_name(fake: Fake) -> None:
    dcam = {p.name: p for p in Hamamatsu.parameters}["Dcam"]
    assert dcam.set is not None
    with connected(fake, FLASH) as backend:
        dcam.set(backend, "trigger delay = 0.5")
        assert dcam.get(backend) == "0.5; between 0 and 10"
        dcam.set(backend, "0x00400110")
        assert dcam.get(backend) == "2; between 1 and 2 in steps of 1"
        dcam.set(backend, "DEFECT CORRECT MODE = off")
        assert dcam.get(backend) == "1 OFF; 1 OFF, 2 ON"
        with pytest.raises(ConfigError, match="this camera has no such property; it has TRIGGER SOURCE"):
            dcam.set(backend, "no such")
        with pytest.raises(ConfigError, match="'maybe'; can be OFF, ON"):
            dcam.set(backend, "DEFECT CORRECT MODE = maybe")
        backend.connect()
        dcam.set(backend, "TRIGGER DELAY")
        assert dcam.get(backend).startswith("0.5"), "what was chosen is chosen again after a new connection"
        dcam.set(backend, "TRIGGER DELAY = 0")
