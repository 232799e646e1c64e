"""The PILATUS against a camserver that is simulated to the letter: the contract, by both ways of the images."""

from __future__ import annotations

import math
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zmq
import zmq.utils.garbage

from tangods_detector.hw import pilatus_camserver, pilatus_stream
from tangods_detector.hw.base import Backend, Parameter, Phase
from tangods_detector.hw.pilatus import Pilatus
from tangods_detector.hw.pilatus_control import StreamOrders
from tangods_detector.hw.pilatus_link import REMEMBERED, PilatusOptions
from tangods_detector.hw.pilatus_run import Options as StreamOptions
from tangods_detector.hw.pilatus_stream import PilatusStream
from tangods_detector.options import parse_options
from tangods_detector.orders import Control
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.simulators.camserver import CamserverOptions, CamserverSimulator, Failures, commands
from tangods_detector.simulators.camserver.commands import HANDLERS
from tangods_receiver import cbf
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.protocol import SeriesEnd, SeriesStart
from tests.contract import BackendContract, Listener, wait_for

MODEL = "100K"
SHAPE = (195, 487)
ROOMY = 1 << 45  # bytes: any number of images, as far as camserver knows


@pytest.fixture(scope="module", autouse=True)
def collector_of_zmq() -> Iterator[None]:
    """pyzmq starts it with the first message that is sent without a copy, and keeps it."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as a, context.socket(zmq.PULL) as b:
        a.linger = 0
        b.bind("inproc://collector")
        a.connect("inproc://collector")
        a.send(bytes(1_000_000), copy=False)
        b.recv()
    yield
    zmq.utils.garbage.gc.stop()  # nothing of it for later tests, which fork servers
    REMEMBERED.clear()


def options(cam: CamserverSimulator, **more: Any) -> PilatusOptions:
    where = {"folder": cam.folder, "stream_port": 0} if "streamer" not in more else {}
    return PilatusOptions(**{"host": "127.0.0.1", "port": cam.port, "timeout": 5.0, **where, **more})


def connected(cam: CamserverSimulator, **more: Any) -> Pilatus:
    backend = Pilatus(options(cam, **more))
    backend.connect()
    return backend


class PilatusContract(BackendContract):
    """`version` of camserver."""

    version: ClassVar[str] = "7.9.0"

    @pytest.fixture
    def cam(self) -> Iterator[CamserverSimulator]:
        with CamserverSimulator(CamserverOptions(model=MODEL, version=self.version, capacity=ROOMY)) as cam:
            yield cam

    def fire(self, backend: Backend) -> None:
        self.cam_now.edge()


class TestImagesReadHere(PilatusContract):
    @pytest.fixture
    def backend(self, cam: CamserverSimulator) -> Iterator[Pilatus]:
        self.cam_now = cam
        with closing(connected(cam)) as backend:
            yield backend


class TestImagesReadByTheDetectorsComputer(PilatusContract):
    version = "7.4.3"

    @pytest.fixture
    def backend(self, cam: CamserverSimulator) -> Iterator[Pilatus]:
        self.cam_now = cam
        with PilatusStream(StreamOptions(cam.folder, port=0)) as stream:
            with Control(StreamOrders(stream), "127.0.0.1", 0) as control:
                with closing(connected(cam, streamer=control.endpoint)) as backend:
                    yield backend


# --- what the contract does not ask ---------------------------------------------------------------------------------


@pytest.fixture
def cam() -> Iterator[CamserverSimulator]:
    with CamserverSimulator(CamserverOptions(model=MODEL, capacity=ROOMY)) as cam:
        yield cam


@pytest.fixture
def pilatus(cam: CamserverSimulator) -> Iterator[Pilatus]:
    with closing(connected(cam)) as backend:
        yield backend


@pytest.fixture
def listener(pilatus: Pilatus) -> Iterator[Listener]:
    with Listener(pilatus.endpoints()) as listener:
        yield listener


def settings_of(cam: CamserverSimulator) -> Any:
    return cam.unit.settings


def parameter(backend: Pilatus, name: str) -> Parameter:
    return next(p for p in backend.parameters if p.name == name)


def read(backend: Pilatus, name: str) -> Any:
    return parameter(backend, name).get(backend)


def write(backend: Pilatus, name: str, given: Any) -> Any:
    """Set a parameter, and what it reads then."""
    p = parameter(backend, name)
    assert p.set is not None
    p.set(backend, given)
    return p.get(backend)


def run_series(backend: Pilatus, number: int = 1, **changes: Any) -> Series:
    """A whole INTERNAL series."""
    settings = replace(Settings(exposure_time=0.002, n_frames_per_trigger=5), **changes)
    series = Series(number, backend.configure(settings))
    backend.arm(series)
    backend.start()
    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR))
    assert backend.status().phase is Phase.DONE, backend.status().message
    backend.stop()
    return series


def pixels(listener: Listener, series: int) -> dict[int, np.ndarray]:
    return {f.number: cbf.decode(f.data, f.shape) for f in listener.frames(series)}


def start_of(listener: Listener, series: int) -> SeriesStart:
    return wait_for(
        "the start",
        lambda: next((m for m in listener.messages if isinstance(m, SeriesStart) and m.series == series), None),
    )


# --- the link ---


def test_nobody_there_and_somebody_else(cam: CamserverSimulator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    backend = Pilatus(options(cam, port=port))
    with pytest.raises(HardwareError, match="refused; does camserver run there"):
        backend.connect()
    assert backend.status().phase is Phase.IDLE and backend.endpoints() == []
    for act in (backend.stop, backend.close, backend.start):
        act()
    with pytest.raises(HardwareError, match="not connected"):
        backend.configure(Settings())


def test_all_wrong_options_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(PilatusOptions, ["host = http://det", "port = 0", "timeout = 0", "md5_share = 2", "folder = ram"])
    assert all(word in str(caught.value) for word in ("host", "port", "timeout", "md5_share", "folder"))
    with pytest.raises(ConfigError, match="host: missing"):
        parse_options(PilatusOptions, [])
    with pytest.raises(ConfigError, match="folder: missing; give the RAM disk, or streamer"):
        parse_options(PilatusOptions, ["host = det"])
    with pytest.raises(ConfigError, match="streamer: 'det:9998' is not like"):
        parse_options(PilatusOptions, ["host = det", "streamer = det:9998"])


def test_another_client_has_control(cam: CamserverSimulator) -> None:
    with socket.create_connection(("127.0.0.1", cam.port)) as other:
        wait_for("its control", lambda: cam.unit.controller)
        with pytest.raises(HardwareError, match="access denied; another client has control"):
            connected(cam)
        other.shutdown(socket.SHUT_RDWR)
    with closing(connected(cam)) as backend:
        assert backend.status().phase is Phase.IDLE


def test_what_it_says_it_is(pilatus: Pilatus) -> None:
    info = pilatus.connect()
    assert (info.model, info.serial_number, info.shape) == ("PILATUS3 100K", "1-0127", SHAPE)
    assert info.firmware == "camserver 7.9.0"
    assert read(pilatus, "DetectorTemperature") == pytest.approx(31.4), "the sensor that is absent does not count"
    assert read(pilatus, "Humidity") == pytest.approx(22.1)
    assert read(pilatus, "CamserverVersion") == "Code release: 7.9.0"


def test_a_connection_that_breaks_is_seen_and_a_new_one_works(
    pilatus: Pilatus, cam: CamserverSimulator, listener: Listener
) -> None:
    cam.fail(Failures(disconnect="df"))
    with pytest.raises(HardwareError, match="it has closed the connection"):
        write(pilatus, "Camserver", "df")
    assert pilatus.status().phase is Phase.ERROR
    pilatus.connect()
    series = run_series(pilatus)
    wait_for("its images", lambda: len(listener.frames(series.id)) == 5)


def test_a_camserver_that_was_started_again_is_told_everything_again(cam: CamserverSimulator) -> None:
    with closing(connected(cam)) as backend:
        write(backend, "Energy", 12000.0)
        write(backend, "GapFill", -2)
        backend.close()
        cam.unit.settings = cam.unit.usual()
        backend.connect()
        assert settings_of(cam).energy == 12000
        backend.knobs.tell()
        assert settings_of(cam).gapfill == -2


def test_what_others_have_left_exposing_is_ended(cam: CamserverSimulator) -> None:
    with socket.create_connection(("127.0.0.1", cam.port)) as other:
        other.sendall(b"exptime 60\nexpperiod 61\nexposure forgotten.cbf\n")
        wait_for("it", lambda: cam.unit.exposing)
    with closing(connected(cam)):
        assert not cam.unit.exposing


def test_a_camserver_that_knows_less(cam: CamserverSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "known", lambda unit: [n for n in HANDLERS if n not in ("setackint", "readouttime")])
    with closing(connected(cam)) as backend:
        assert backend.latency_time(Settings(exposure_time=0.1)) == pytest.approx(0.003), "as slow as a PILATUS2 may be"
        cam.fail(Failures(refuse="telemetry"))
        backend.connect()
        assert backend.image_format(Settings()) == (SHAPE, "int32"), "by the name of the model"


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(exposure_time=1e-8), "ExposureTime: 1e-08 s: .*Illegal exposure time"),
        (Settings(exposure_time=1e7), "ExposureTime: 1e\\+07 s: .*Illegal"),
        (Settings(frame_time=1e7), "FrameTime: 1e\\+07 s: .*Illegal"),
        (Settings(rotation=90), "let the receiver turn them"),
        (Settings(roi=(0, 0, 10, 10)), "RoiMode"),
        (Settings(bit_depth=20), "BitDepth: 20; images have 32 bits"),
    ],
)
def test_what_it_cannot_do(pilatus: Pilatus, settings: Settings, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pilatus.configure(settings)


def test_what_does_not_go_together_is_refused_at_arm(pilatus: Pilatus) -> None:
    multi = Settings(trigger_mode=TriggerMode.EXTERNAL_MULTI, n_frames_per_trigger=2)
    pilatus.configure(multi)
    with pytest.raises(ConfigError, match="in EXTERNAL_MULTI each edge gives one image; set it to 1"):
        pilatus.check(multi)
    pilatus.check(replace(multi, n_frames_per_trigger=1))
    with pytest.raises(ConfigError, match="1000000 images in one go: .*Illegal number of images"):
        pilatus.check(Settings(n_frames_per_trigger=1_000_000))


def test_a_disk_that_cannot_hold_the_series(cam: CamserverSimulator) -> None:
    with CamserverSimulator(CamserverOptions(model=MODEL, capacity=10_000_000)) as small:
        with closing(connected(small)) as backend:
            with pytest.raises(ConfigError, match="Not enough space on the image disk for 1000 images"):
                backend.check(Settings(n_frames_per_trigger=1000))
            backend.check(Settings(n_frames_per_trigger=10))


@pytest.mark.parametrize(
    ("kind", "model", "exposure", "period"),
    [
        ("PILATUS3 X", "300K", 0.5, 0.50095),
        ("PILATUS3 S", "1M", 0.001, 0.04),
        ("PILATUS2", "100K", 0.001, 0.00328),
    ],
)
def test_the_shortest_period(kind: Any, model: str, exposure: float, period: float) -> None:
    with CamserverSimulator(CamserverOptions(model=model, kind=kind)) as cam:
        with closing(connected(cam)) as backend:
            settings = backend.configure(Settings(exposure_time=exposure))
            assert exposure + backend.latency_time(settings) == pytest.approx(period)
            backend._link.there.ask(f"expperiod {period}")  # type: ignore[union-attr]
            cam.unit.check(cam.unit.settings)  # raises where camserver would refuse it
            assert backend.image_format(settings) == (cam.unit.model.shape, "int32")


def test_periods(pilatus: Pilatus, cam: CamserverSimulator) -> None:
    slow = pilatus.configure(Settings(exposure_time=0.00100004, frame_time=0.01))
    assert (slow.exposure_time, slow.frame_time) == (0.001, 0.01), "camserver's own digits"
    assert pilatus.configure(slow) == slow
    short = pilatus.configure(Settings(exposure_time=0.1, frame_time=0.01))
    assert short.frame_time == 0.01, "Arm refuses that"


# --- energies ---


@pytest.mark.parametrize("version", ["7.9.0", "7.4.3"])
def test_energies(version: str) -> None:
    with CamserverSimulator(CamserverOptions(model=MODEL, version=version)) as cam:
        with closing(connected(cam)) as backend:
            assert (read(backend, "Energy"), read(backend, "Threshold"), read(backend, "GainSetting")) == (0, 0, "")
            assert write(backend, "Energy", 12000.0) == 12000.0
            assert read(backend, "Threshold") == 6000.0, "camserver's own doing, read back"
            assert write(backend, "Threshold", 5000.0) == 5000.0
            assert read(backend, "Energy") == 12000.0, "it stays"
            assert write(backend, "Gain", "highg") == "highg" and read(backend, "GainSetting") == "highg"
            assert write(backend, "Energy", 10000.0) == 10000.0
            assert settings_of(cam).gain == "highg" and settings_of(cam).threshold == 5000
            with pytest.raises(ConfigError, match="out of range"):
                write(backend, "Energy", 100.0)
            assert read(backend, "Energy") == 10000.0
            with pytest.raises(ConfigError, match="Gain: 'much' is not one of"):
                write(backend, "Gain", "much")


def test_what_a_threshold_makes_camserver_forget_is_told_again(
    pilatus: Pilatus, cam: CamserverSimulator, listener: Listener
) -> None:
    pilatus.configure(Settings(exposure_time=0.003, n_frames_per_trigger=4))
    write(pilatus, "ExposuresPerFrame", 2)
    write(pilatus, "RetriggerMode", False)
    cam.fail(Failures(forget=True))
    write(pilatus, "Energy", 9000.0)
    assert settings_of(cam).nexpframe == 1 and settings_of(cam).exptime == 1.0 and settings_of(cam).gapfill == 0
    run_series(pilatus, exposure_time=0.003, frame_time=0.004, n_frames_per_trigger=4)
    now = settings_of(cam)
    assert (now.nimages, now.exptime, now.gapfill, now.nexpframe) == (4, 0.003, -1, 2)
    assert (now.setretriggermode, now.energy) == (0, 9000)
    wait_for("the images", lambda: len(listener.frames(1)) == 4)


def test_a_threshold_that_hangs(cam: CamserverSimulator) -> None:
    with closing(connected(cam, threshold_timeout=1.0)) as backend:
        cam.fail(Failures(hang="setenergy", hang_seconds=30))
        begun = time.monotonic()
        with pytest.raises(HardwareError, match="no answer to 'setenergy 9000' within 1 s"):
            write(backend, "Energy", 9000.0)
        assert time.monotonic() - begun < 8


# --- a series ---


def test_every_pixel_by_every_way_of_naming(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    for number, n in ((1, 1), (2, 7)):
        series = run_series(pilatus, number, n_frames_per_trigger=n)
        wait_for("the end message", lambda s=series: listener.ended(s.id))
        found = pixels(listener, series.id)
        assert sorted(found) == list(range(n))
        for k, image in found.items():
            np.testing.assert_array_equal(image, cam.image(k))


def test_numbers_go_on_from_trigger_to_trigger(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    settings = Settings(exposure_time=0.002, trigger_mode=TriggerMode.SOFTWARE, n_triggers=4, n_frames_per_trigger=3)
    pilatus.arm(Series(5, pilatus.configure(settings)))
    pilatus.start()
    for n in range(4):
        pilatus.trigger()
        with pytest.raises(HardwareError, match="busy with trigger|none is waited for"):
            pilatus.trigger()
        assert [name for name, _ in cam.written if name] == [] or cam.written[0][0] == f"s00005_{3 * n:05d}.cbf"
        wait_for("its images", lambda n=n: pilatus.status().frames == 3 * (n + 1))
    wait_for("the end", lambda: pilatus.status().phase is Phase.DONE)
    pilatus.stop()
    wait_for("the end message", lambda: listener.ended(5))
    assert sorted(f.number for f in listener.frames(5)) == list(range(12))


def test_an_edge_that_comes_at_once_is_taken(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    settings = pilatus.configure(Settings(exposure_time=0.001, trigger_mode=TriggerMode.EXTERNAL_SINGLE))
    for number in range(1, 6):
        pilatus.arm(Series(number, settings))
        cam.edge()  # armed: none is lost from here on
        pilatus.start()
        wait_for("the end", lambda: pilatus.status().phase is Phase.DONE)
        pilatus.stop()


def test_the_file_is_told_what_the_header_says(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    write(pilatus, "Energy", 12000.0)
    write(pilatus, "Wavelength", 1.0332)
    write(pilatus, "BeamX", 240.5)
    write(pilatus, "BeamY", 90.0)
    write(pilatus, "MxSettings", read(pilatus, "MxSettings") + "\nDetector_distance 0.3\nOscillation_axis X, CW")
    assert read(pilatus, "DetectorDistance") == 0.3 and read(pilatus, "BeamX") == 240.5
    run_series(pilatus, exposure_time=0.004)
    assert pilatus.status().message == "", "the header says what was set"
    start = start_of(listener, 1)
    assert start.metadata["metadata_follows"] is True
    detector = start.metadata["detector"]
    assert (detector["threshold_energy"], detector["detector_distance"], detector["beam_center_y"]) == (6000, 0.3, 90)
    told = wait_for("an image", lambda: listener.frames(1))[0].extra["metadata"]
    assert told["cbf_header"]["Beam_xy"] == "(240.50, 90.00) pixels"
    assert told["detector"]["sensor_thickness"] == 0.00045 and told["detector"]["saturation_value"] == 1009797
    assert "Exposure_time 0.0040000 s" in read(pilatus, "ImageHeader")


def test_a_header_that_says_otherwise_is_told(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    settings = pilatus.configure(Settings(exposure_time=0.002, n_frames_per_trigger=3))
    pilatus.arm(Series(1, settings))
    cam.unit.settings.exptime = 0.001  # somebody's hand, or a camserver that did not take it
    pilatus.start()
    wait_for("the end", lambda: pilatus.status().phase is Phase.DONE)
    pilatus.stop()
    assert "header: Exposure_time 0.0010000 s, expected 0.002" in pilatus.status().message


def test_an_exposure_that_is_refused(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    settings = pilatus.configure(Settings(exposure_time=0.002))
    for mode in (TriggerMode.INTERNAL, TriggerMode.EXTERNAL_SINGLE):
        cam.fail(Failures(refuse="exposure" if mode is TriggerMode.INTERNAL else "exttrigger"))
        with pytest.raises(HardwareError, match="15 ERR .*refused"):
            pilatus.arm(Series(1, replace(settings, trigger_mode=mode)))
            pilatus.start()
        pilatus.stop()
        run_series(pilatus, 2)


def test_a_reply_that_does_not_come_is_asked_for_again(
    pilatus: Pilatus, cam: CamserverSimulator, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    pilatus._link.there._timeout = 0.5  # type: ignore[union-attr]
    cam.fail(Failures(mute="Exposure time"))
    assert pilatus.configure(Settings(exposure_time=0.02)).exposure_time == 0.02
    assert settings_of(cam).exptime == 0.02
    run_series(pilatus)


def test_a_stop_need_not_wait_for_an_answer(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    settings = pilatus.configure(Settings(exposure_time=0.002, trigger_mode=TriggerMode.EXTERNAL_SINGLE))
    cam.fail(Failures(mute="Starting"))
    stopper = threading.Timer(0.3, pilatus.stop)
    stopper.start()
    begun = time.monotonic()
    with pytest.raises(HardwareError, match="broken off"):
        pilatus.arm(Series(1, settings))
    assert time.monotonic() - begun < 3
    stopper.join()
    assert not cam.unit.exposing
    run_series(pilatus, 2)


def test_a_stop_while_a_receiver_is_waited_for(pilatus: Pilatus, cam: CamserverSimulator) -> None:
    settings = pilatus.configure(Settings())
    stopper = threading.Timer(0.3, pilatus.stop)
    stopper.start()
    begun = time.monotonic()
    with pytest.raises(HardwareError, match="stopped before"):
        pilatus.arm(Series(1, settings))
    assert time.monotonic() - begun < 5
    stopper.join()


@pytest.mark.parametrize(
    ("kill_order", "idle_kill"), [("ERR OK", "ERR"), ("OK ERR", "OK"), ("OK", ""), ("ERR", "ERR"), ("OK ERR", "")]
)
def test_whatever_a_kill_is_answered_with(kill_order: Any, idle_kill: Any) -> None:
    with CamserverSimulator(
        CamserverOptions(model=MODEL, capacity=ROOMY, kill_order=kill_order, idle_kill=idle_kill)
    ) as cam:
        with closing(connected(cam)) as backend, Listener(backend.endpoints()) as listener:
            settings = backend.configure(Settings(exposure_time=0.002, n_frames_per_trigger=10_000))
            backend.arm(Series(1, settings))
            backend.start()
            wait_for("images", lambda: backend.status().frames > 2)
            backend.stop()
            assert not cam.unit.exposing
            wait_for("the end message", lambda: listener.ended(1))
            run_series(backend, 2)
            wait_for("all of the next", lambda: len(listener.frames(2)) == 5)


def test_a_kill_that_is_ignored_is_sent_again(
    pilatus: Pilatus, cam: CamserverSimulator, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilatus_camserver, "KILL_AGAIN", 0.2)
    pilatus.arm(Series(1, pilatus.configure(Settings(exposure_time=0.01, n_frames_per_trigger=10_000))))
    pilatus.start()
    wait_for("images", lambda: pilatus.status().frames > 2)
    cam.fail(Failures(kill_ignored=2))
    pilatus.stop()
    assert not cam.unit.exposing and cam.happened == ["kill_ignored"] * 2


def test_a_camserver_that_never_stops_is_told_of(
    pilatus: Pilatus, cam: CamserverSimulator, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilatus_camserver, "KILL_AGAIN", 0.2)
    monkeypatch.setattr("tangods_detector.hw.pilatus.KILL_LIMIT", 0.7)
    pilatus.arm(Series(1, pilatus.configure(Settings(exposure_time=0.01, n_frames_per_trigger=10_000))))
    pilatus.start()
    wait_for("images", lambda: pilatus.status().frames > 2)
    cam.fail(Failures(kill_ignored=1000))
    with pytest.raises(HardwareError, match="goes on exposing, although it was told to stop"):
        pilatus.stop()
    cam.fail(Failures())
    wait_for("the end message", lambda: listener.ended(1))
    pilatus.stop()
    assert not cam.unit.exposing
    run_series(pilatus, 2)


def test_parameters_in_a_series(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    temperature = read(pilatus, "DetectorTemperature")
    settings = pilatus.configure(Settings(trigger_mode=TriggerMode.EXTERNAL_SINGLE))
    pilatus.arm(Series(1, settings))
    cam.fail(Failures(disconnect=" "))
    for p in pilatus.parameters:
        assert isinstance(p.get(pilatus), p.dtype), p.name
    assert read(pilatus, "DetectorTemperature") == temperature
    for name, given in (("Energy", 9000.0), ("GapFill", 0), ("Camserver", "df"), ("Wavelength", 1.0)):
        with pytest.raises(ConfigError, match="not while a series is armed"):
            write(pilatus, name, given)
    assert cam.happened == [], "camserver is not asked"
    cam.fail(Failures())
    pilatus.stop()


def test_regions(cam: CamserverSimulator) -> None:
    with CamserverSimulator(CamserverOptions(model="1M")) as large:
        with closing(connected(large)) as backend, Listener(backend.endpoints()) as listener:
            assert write(backend, "RoiMode", "r3") == "R3"
            assert backend.image_format(Settings()) == ((619, 487), "int32")
            run_series(backend)
            assert {f.shape for f in wait_for("its images", lambda: listener.frames(1))} == {(619, 487)}
            with pytest.raises(ConfigError, match="RoiMode: .*C18 is not known"):
                write(backend, "RoiMode", "C18")
            with pytest.raises(ConfigError, match="RoiMode: 'MIDDLE' is not 0 or one of"):
                write(backend, "RoiMode", "middle")
            assert write(backend, "RoiMode", "0") == "0"
            assert backend.image_format(Settings()) == ((1043, 981), "int32")


def test_files_and_texts_for_camserver(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    Path(cam.folder, "mask.tif").write_bytes(b"mask")
    assert write(pilatus, "BadPixelMap", "mask.tif") == "mask.tif"
    with pytest.raises(ConfigError, match="FlatField: .*cannot read"):
        write(pilatus, "FlatField", "nothing.tif")
    assert write(pilatus, "RateCorrection", "0") == "0"
    assert write(pilatus, "HeaderString", "sample 5") == "sample 5"
    with pytest.raises(ConfigError, match="HeaderString: .*characters"):
        write(pilatus, "HeaderString", "two\nexposure trick.cbf")
    for bad in ("Wavelength", "Nonsense 5", "Flux much"):
        with pytest.raises(ConfigError, match="MxSettings"):
            write(pilatus, "MxSettings", bad)
    run_series(pilatus)
    detector = wait_for("an image", lambda: listener.frames(1))[0].extra["metadata"]["detector"]
    assert detector["pixel_mask_applied"] is True and detector["countrate_correction_applied"] is False


def test_any_command(pilatus: Pilatus) -> None:
    assert write(pilatus, "Camserver", "readouttime") == "15 OK Detector readout time [ms]: 0.95"
    assert write(pilatus, "Camserver", "df").startswith("5 OK ")
    with pytest.raises(ConfigError, match="1 ERR .*Unrecognized command: foo"):
        write(pilatus, "Camserver", "foo")
    assert write(pilatus, "Camserver", "") == ""


def test_a_live_series_announces_no_number_and_goes_on(
    pilatus: Pilatus, cam: CamserverSimulator, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangods_detector.hw.pilatus.LIVE", (5,))
    pilatus.arm(Series(1, pilatus.configure(Settings(exposure_time=0.002)), live=True))
    assert start_of(listener, 1).nframes is None
    pilatus.start()
    wait_for("more than one exposure", lambda: pilatus.status().frames > 12)
    pilatus.stop()
    wait_for("the end message", lambda: listener.ended(1))
    end = next(m for m in listener.messages if isinstance(m, SeriesEnd))
    numbers = sorted(f.number for f in listener.frames(1))
    assert numbers == list(range(end.nframes or 0))


def test_what_is_left_in_the_folder_goes_at_arm(pilatus: Pilatus, cam: CamserverSimulator, listener: Listener) -> None:
    for name in ("old_00001.cbf", "s00001_00002.cbf"):
        Path(cam.folder, name).write_bytes(b"old")
    run_series(pilatus)
    wait_for("the images", lambda: listener.ended(1))
    assert sorted(f.number for f in listener.frames(1)) == list(range(5))
    pilatus.frames_came(5)  # the receiver has closed the file
    assert list(Path(cam.folder).glob("*.cbf")) == []


def test_a_ram_disk_that_is_nearly_full_is_not_armed(
    pilatus: Pilatus, cam: CamserverSimulator, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = pilatus.configure(Settings(exposure_time=0.002, n_frames_per_trigger=5))
    monkeypatch.setattr(pilatus_stream, "room", lambda folder: (100_000, 1_000_000))
    with pytest.raises(HardwareError, match="has 0 MB free, 1 MB are needed for 5 images"):
        pilatus.arm(Series(1, settings))
    pilatus.stop()
    assert not cam.unit.exposing
    wait_for("the room", lambda: read(pilatus, "RamDiskFree") == 0.1)
    monkeypatch.undo()
    run_series(pilatus, 2)
    assert 0 < read(pilatus, "RamDiskLowest") <= read(pilatus, "RamDiskFree")


# --- the streamer on the detector's computer ---


@pytest.fixture
def ram_disk() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="test_pilatus_", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def test_a_streamer_that_is_started_again_goes_on(ram_disk: Path) -> None:
    with CamserverSimulator(CamserverOptions(model=MODEL, folder=str(ram_disk), capacity=ROOMY)) as cam:
        stream = PilatusStream(StreamOptions(cam.folder, port=0, file_wait=0.3))
        stream.start()
        port = int(stream.endpoint.rpartition(":")[2])
        control = Control(StreamOrders(stream), "127.0.0.1", 0)
        address = control.endpoint
        with control, closing(connected(cam, streamer=address)) as backend:
            with Listener(backend.endpoints()) as listener:
                backend.arm(Series(1, backend.configure(Settings(exposure_time=0.01, n_frames_per_trigger=100))))
                backend.start()
                wait_for("images", lambda: backend.status().frames > 5)
                with pytest.MonkeyPatch.context() as patch:  # as if it was killed: no end, nothing is deleted
                    patch.setattr(stream, "_end_quickly", lambda: None)
                    patch.setattr(stream._outlet, "delete", lambda all_of_them=False: None)
                    stream.close()
                again = PilatusStream(StreamOptions(cam.folder, port=port, file_wait=0.3))
                with again:
                    control._orders = StreamOrders(again)
                    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), 30)
                    status = backend.status()
                    assert status.phase is Phase.DONE and "the streamer was started again" in status.message
                    backend.stop()
                    wait_for("every image", lambda: {f.number for f in listener.frames(1)} == set(range(100)))


def test_a_streamer_that_is_gone(cam: CamserverSimulator) -> None:
    with PilatusStream(StreamOptions(cam.folder, port=0)) as stream:
        with Control(StreamOrders(stream), "127.0.0.1", 0) as control:
            backend = connected(cam, streamer=control.endpoint, patience=1.0)
            listener = Listener(backend.endpoints())
            with listener:
                backend.arm(Series(1, backend.configure(Settings(exposure_time=0.01, n_frames_per_trigger=10_000))))
                backend.start()
                wait_for("images", lambda: backend.status().frames > 2)
    with closing(backend):
        wait_for("the error", lambda: backend.status().phase is Phase.ERROR)
        assert "has not answered for" in backend.status().message
        backend.stop()
        assert not cam.unit.exposing
        backend._heard = 0.0
        with pytest.raises(HardwareError, match="does stream-pilatus run"):
            backend.status()


def test_where_receivers_pull_from(cam: CamserverSimulator) -> None:
    with PilatusStream(StreamOptions(cam.folder, host="0.0.0.0", port=0)) as stream:
        with Control(StreamOrders(stream), "127.0.0.1", 0) as control:
            port = stream.endpoint.rpartition(":")[2]
            with closing(connected(cam, streamer=control.endpoint)) as backend:
                assert backend.endpoints() == [f"tcp://127.0.0.1:{port}"]
            with closing(connected(cam, streamer=control.endpoint, endpoint="tcp://10.1.1.5:7")) as backend:
                assert backend.endpoints() == ["tcp://10.1.1.5:7"]


def test_the_port_is_the_same_again(cam: CamserverSimulator) -> None:
    with closing(connected(cam)) as backend:
        before = backend.endpoints()
        backend.connect()
        assert backend.endpoints() == before


def test_numbers_that_are_not_set(pilatus: Pilatus) -> None:
    assert math.isnan(read(pilatus, "Wavelength")) and math.isnan(read(pilatus, "BeamY"))
