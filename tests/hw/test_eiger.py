"""The EIGER against a control unit that is simulated to the letter: the contract, by both streams and both versions."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import zmq
import zmq.utils.garbage

from tangods_detector.hw import eiger_arrays, eiger_monitor
from tangods_detector.hw.base import Backend, Parameter, Phase
from tangods_detector.hw.eiger import Eiger
from tangods_detector.hw.eiger_link import EigerOptions
from tangods_detector.options import parse_options
from tangods_detector.settings import Series, Settings, TriggerMode, check_together
from tangods_detector.simulators.eiger import EigerOptions as UnitOptions
from tangods_detector.simulators.eiger import EigerSimulator, Failures
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.protocol import Decode, SeriesStart, dectris1, dectris2
from tests.contract import BackendContract, Listener, wait_for


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


def connected(dcu: EigerSimulator, stream: str, **options: Any) -> Eiger:
    host, _, port = dcu.address.rpartition(":")
    endpoint = dcu.endpoint_v1 if stream == "v1" else dcu.endpoint_v2
    backend = Eiger(EigerOptions(host=host, port=int(port), stream=stream, endpoint=endpoint, **options))
    backend.connect()
    return backend


class EigerContract(BackendContract):
    """By one version of the interface and one format of the stream."""

    api: ClassVar[Any] = "1.8.0"
    model = "EIGER2 500K"
    stream = "v2"

    @pytest.fixture
    def dcu(self) -> Iterator[EigerSimulator]:
        with EigerSimulator(UnitOptions(model=self.model, api=self.api, speed=0.002)) as dcu:
            yield dcu

    @pytest.fixture
    def backend(self, dcu: EigerSimulator) -> Iterator[Eiger]:
        self.dcu = dcu
        backend = connected(dcu, self.stream)
        yield backend
        backend.close()

    def fire(self, backend: Backend) -> None:
        self.dcu.edge()


class TestEiger2ByStream2(EigerContract):
    decode: ClassVar[Decode] = staticmethod(dectris2.decode)


class TestEiger2ByStream1(EigerContract):
    stream = "v1"
    decode: ClassVar[Decode] = staticmethod(dectris1.decode)


class TestEiger1WithTheOldInterface(EigerContract):
    api, model, stream = "1.6.0", "EIGER 500K", "v1"
    decode: ClassVar[Decode] = staticmethod(dectris1.decode)


# --- what the contract does not ask ---------------------------------------------------------------------------------


@pytest.fixture
def dcu() -> Iterator[EigerSimulator]:
    with EigerSimulator(UnitOptions(model="EIGER2 500K", speed=0.002)) as dcu:
        yield dcu


@pytest.fixture
def eiger(dcu: EigerSimulator) -> Iterator[Eiger]:
    backend = connected(dcu, "v2", timeout=2.0, patience=1.0)
    yield backend
    backend.close()


@pytest.fixture
def listener(eiger: Eiger) -> Iterator[Listener]:
    with Listener(eiger.endpoints(), dectris2.decode) as listener:
        yield listener


def value(dcu: EigerSimulator, key: str) -> Any:
    return httpx.get(f"http://{dcu.address}/detector/api/1.8.0/{key}").json()["value"]


def put(dcu: EigerSimulator, key: str, given: Any = None) -> None:
    body = {} if given is None else {"json": {"value": given}}
    httpx.put(f"http://{dcu.address}/detector/api/1.8.0/{key}", **body).raise_for_status()


def parameter(backend: Eiger, name: str) -> Parameter:
    return next(p for p in backend.parameters if p.name == name)


def write(backend: Eiger, name: str, given: Any) -> Any:
    """Set a parameter, and what it reads then."""
    p = parameter(backend, name)
    assert p.set is not None
    p.set(backend, given)
    return p.get(backend)


def test_a_unit_that_was_switched_on_is_initialised_and_its_stream_set_up() -> None:
    with EigerSimulator(UnitOptions(model="EIGER2 500K", speed=0.002, state="na")) as dcu:
        with closing(connected(dcu, "v2", header_detail="all")) as backend:
            info = backend.connect()
            assert (info.shape, info.sensor_material) == ((512, 1028), "Si")
            assert value(dcu, "status/state") == "idle"
            stream = {name: dcu.unit.stream.values[name] for name in ("mode", "format", "header_detail")}
            assert stream == {"mode": "enabled", "format": "cbor", "header_detail": "all"}
            assert dcu.unit.filewriter.values["mode"] == dcu.unit.monitor_config.values["mode"] == "disabled"


def test_version_1_6_has_no_stream_2() -> None:
    with EigerSimulator(UnitOptions(model="EIGER 500K", api="1.6.0", speed=0.002)) as dcu:
        with pytest.raises(ConfigError, match="set stream = v1"):
            connected(dcu, "v2")


def test_nobody_there_and_somebody_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    backend = Eiger(EigerOptions(host="127.0.0.1", port=port))
    with pytest.raises(HardwareError, match="refused"):
        backend.connect()
    assert backend.status().phase is Phase.IDLE
    for act in (backend.stop, backend.close, backend.start):
        act()
    with pytest.raises(HardwareError, match="not connected"):
        backend.configure(Settings())


def test_all_wrong_options_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(EigerOptions, ["host = http://dcu", "port = 0", "timeout = 0", "patience = 0"])
    assert all(word in str(caught.value) for word in ("host", "port", "timeout", "patience"))
    with pytest.raises(ConfigError, match="host: missing"):
        parse_options(EigerOptions, [])
    assert parse_options(EigerOptions, ["host = dcu"]).pull_from == "tcp://dcu:31001"
    assert parse_options(EigerOptions, ["host = dcu", "stream = v1"]).pull_from == "tcp://dcu:9999"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(exposure_time=1e-8), "ExposureTime: .*1e-08 is not between"),
        (Settings(exposure_time=4000), "ExposureTime: .*4000 is not between"),
        (Settings(frame_time=4000), "FrameTime: .*4000 is not between"),
        (Settings(n_frames_per_trigger=2_100_000_000), "nFramesPerTrigger: .* is not between"),
        (Settings(rotation=90), "let the receiver turn them"),
        (Settings(roi=(0, 0, 10, 10)), "RoiMode"),
        (Settings(bit_depth=24), "BitDepth: the detector chooses it"),
    ],
)
def test_what_it_cannot_do(eiger: Eiger, settings: Settings, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        eiger.configure(settings)


def test_periods(eiger: Eiger) -> None:
    fast = eiger.configure(Settings(exposure_time=0.5))
    assert fast.frame_time == 0
    assert 0.5 + eiger.latency_time(fast) == pytest.approx(value(eiger_dcu(eiger), "config/frame_time"))
    slow = eiger.configure(Settings(exposure_time=0.001, frame_time=0.01))
    assert slow.frame_time == pytest.approx(0.01)
    short = eiger.configure(Settings(exposure_time=0.1, frame_time=0.01))
    assert short.frame_time == 0.01, "Arm refuses that"
    with pytest.raises(ConfigError, match="shorter than ExposureTime"):
        check_together(short, eiger.latency_time(short))


def eiger_dcu(backend: Eiger) -> Any:
    """Something with an address."""
    return type("Address", (), {"address": f"127.0.0.1:{backend._options.port}"})


def test_nothing_is_written_that_is_so_already(eiger: Eiger, dcu: EigerSimulator) -> None:
    settings = Settings(exposure_time=0.01, n_frames_per_trigger=3)
    eiger.configure(settings)
    dcu.fail(Failures(refuse="detector/api/1.8.0/config"))
    eiger.configure(settings)
    assert dcu.happened == []
    with pytest.raises(ConfigError, match="400"):
        eiger.configure(replace(settings, exposure_time=0.02))


def test_what_others_have_set_by_hand_is_set_right_at_arm(
    eiger: Eiger, dcu: EigerSimulator, listener: Listener
) -> None:
    settings = eiger.configure(Settings(exposure_time=0.002, n_frames_per_trigger=4))
    put(dcu, "config/trigger_mode", "exts")
    put(dcu, "config/nimages", 77)
    put(dcu, "config/count_time", 0.5)
    number = eiger.arm(Series(1, settings))
    assert [value(dcu, f"config/{name}") for name in ("trigger_mode", "nimages", "count_time")] == ["ints", 4, 0.002]
    eiger.start()
    wait_for("the end", lambda: eiger.status().phase is Phase.DONE)
    eiger.stop()
    wait_for("the images", lambda: len(listener.frames(number)) == 4)


def test_the_appendix_tells_the_receiver(eiger: Eiger, listener: Listener) -> None:
    series = Series(1, eiger.configure(Settings()), "/d/a.h5", label="blue", metadata={"a": 1}, overwrite=True)
    eiger.arm(series)
    start = wait_for("the start", lambda: next((m for m in listener.messages if isinstance(m, SeriesStart)), None))
    assert (start.filename, start.save, start.nframes) == ("/d/a.h5", True, 1)
    told = {key: start.metadata[key] for key in ("label", "user", "overwrite", "trigger_mode", "exptime")}
    assert told == {"label": "blue", "user": {"a": 1}, "overwrite": True, "trigger_mode": "INTERNAL", "exptime": 0.1}
    assert start.metadata["detector"]["sensor_material"] == "Si"
    eiger.stop()


def test_each_software_trigger_says_how_long_it_exposes(eiger: Eiger, dcu: EigerSimulator, listener: Listener) -> None:
    assert write(eiger, "TriggerExposure", 0.3) == 0.3
    settings = eiger.configure(Settings(trigger_mode=TriggerMode.SOFTWARE, exposure_time=0.01, n_triggers=2))
    eiger.arm(Series(1, settings))
    assert value(dcu, "config/trigger_mode") == "inte"
    eiger.start()
    begun = time.monotonic()
    eiger.trigger()
    wait_for("the first", lambda: eiger.status().frames == 1)
    assert 0.3 <= time.monotonic() - begun < 1.0
    write(eiger, "TriggerExposure", 0.01)
    begun = time.monotonic()
    eiger.trigger()
    wait_for("the end", lambda: eiger.status().phase is Phase.DONE)
    assert time.monotonic() - begun < 0.25
    eiger.stop()
    write(eiger, "TriggerExposure", 0.0)
    eiger.configure(settings)
    assert value(dcu, "config/trigger_mode") == "ints"


def test_numbers_begin_again_and_what_was_set_is_set_again_after_a_restart(
    eiger: Eiger, dcu: EigerSimulator, listener: Listener
) -> None:
    settings = eiger.configure(Settings(exposure_time=0.004, n_frames_per_trigger=2))
    assert write(eiger, "Energy", 12000.0) == 12000.0
    numbers = []
    for _ in range(3):
        numbers.append(eiger.arm(Series(1, settings)))
        eiger.stop()
    assert numbers == [1, 2, 3]
    dcu.fail(Failures(restart=True))
    wait_for("its return", lambda: not dcu.unit.down)
    again = eiger.arm(Series(4, settings))
    assert again < 3, "one goes by when it is initialised"
    assert value(dcu, "config/photon_energy") == 12000.0
    assert value(dcu, "config/count_time") == pytest.approx(0.004)
    assert dcu.unit.stream.values["mode"] == "enabled"
    eiger.start()
    wait_for("the end", lambda: eiger.status().phase is Phase.DONE)
    eiger.stop()
    wait_for("its images", lambda: len(listener.frames(again)) == 2)


def test_a_stream_that_somebody_has_switched_off_is_switched_on(
    eiger: Eiger, dcu: EigerSimulator, listener: Listener
) -> None:
    httpx.put(f"http://{dcu.address}/stream/api/1.8.0/config/mode", json={"value": "disabled"}).raise_for_status()
    number = eiger.arm(Series(1, eiger.configure(Settings())))
    wait_for("the start", lambda: listener.started(number))
    eiger.stop()


def test_an_edge_that_comes_at_once_is_taken(eiger: Eiger, dcu: EigerSimulator, listener: Listener) -> None:
    settings = eiger.configure(Settings(exposure_time=0.001, trigger_mode=TriggerMode.EXTERNAL_SINGLE))
    over = threading.Event()

    def generator() -> None:
        while not over.wait(0.001):
            dcu.edge()

    thread = threading.Thread(target=generator)
    thread.start()
    try:
        for _ in range(5):
            number = eiger.arm(Series(1, settings))
            eiger.start()
            wait_for("the image", lambda n=number: listener.frames(n))
            eiger.frames_came(1)
            assert eiger.status().phase is Phase.DONE
            eiger.stop()
    finally:
        over.set()
        thread.join()


def test_a_restart_is_seen_between_series_and_in_one(eiger: Eiger, dcu: EigerSimulator, listener: Listener) -> None:
    settings = eiger.configure(Settings(n_triggers=2, trigger_mode=TriggerMode.EXTERNAL_MULTI))
    eiger.arm(Series(1, settings))
    eiger.start()
    dcu.fail(Failures(restart=True))
    wait_for("the error", lambda: eiger.status().phase is Phase.ERROR)
    assert re.search("restarted|has not answered", eiger.status().message)
    wait_for("its return", lambda: not dcu.unit.down)
    with pytest.raises(HardwareError, match="was restarted"):
        eiger.stop()
    eiger.connect()
    assert eiger.status().phase is Phase.IDLE
    dcu.fail(Failures(error="high voltage lost"))
    time.sleep(1.0)
    status = eiger.status()
    assert status.phase is Phase.ERROR and status.message.endswith("reports an error: high voltage lost")


def test_a_stop_need_not_wait_for_arm(eiger: Eiger, dcu: EigerSimulator, listener: Listener) -> None:
    settings = eiger.configure(Settings())
    for failures in (Failures(arm_seconds=60), Failures(hang="command/arm", hang_seconds=3)):
        dcu.fail(failures)
        stopper = threading.Timer(0.3, eiger.stop)
        stopper.start()
        begun = time.monotonic()
        with pytest.raises(HardwareError):
            eiger.arm(Series(1, settings))
        assert time.monotonic() - begun < 3
        stopper.join()
        number = eiger.arm(Series(2, settings))
        eiger.stop()
        wait_for("the end", lambda n=number: listener.ended(n))


def test_dropped_messages_are_told(eiger: Eiger, dcu: EigerSimulator, listener: Listener) -> None:
    dcu.fail(Failures(full_queue=2))
    settings = eiger.configure(Settings(exposure_time=0.002, n_frames_per_trigger=5))
    for words in ("dropped 2 messages", ""):
        eiger.arm(Series(1, settings))
        eiger.start()
        wait_for("the end", lambda: eiger.status().phase is Phase.DONE)
        eiger.stop()
        assert (words in eiger.status().message) and bool(words) == bool(eiger.status().message)
    assert parameter(eiger, "DroppedMessages").get(eiger) == 2


def test_somebody_elses_series_is_ended_before_ours(eiger: Eiger, dcu: EigerSimulator, listener: Listener) -> None:
    put(dcu, "command/arm")
    eiger.arm(Series(1, Settings()))
    eiger.stop()
    put(dcu, "command/arm")
    eiger.stop()
    assert value(dcu, "status/state") == "idle"


# --- parameters -----------------------------------------------------------------------------------------------------


def test_energies(eiger: Eiger, dcu: EigerSimulator) -> None:
    assert write(eiger, "Energy", 10000.0) == 10000.0
    assert parameter(eiger, "Threshold").get(eiger) == 5000.0, "the unit's own doing, read back"
    dcu.fail(Failures(refuse="config/photon_energy"))
    write(eiger, "Energy", 10000.04)
    assert dcu.happened == [], "less than 0.05 eV is not written"
    dcu.fail(Failures())
    with pytest.raises(ConfigError, match="Energy: .*1 is not between"):
        write(eiger, "Energy", 1.0)
    assert write(eiger, "Threshold2Mode", "enabled") == "enabled"
    with pytest.raises(ConfigError, match="'on' is not one of enabled, disabled"):
        write(eiger, "Threshold2Mode", "on")
    assert eiger.frame_bytes(Settings()) == 2 * 512 * 1028 * 4 // 4
    assert write(eiger, "MaskToZero", True) is True
    assert write(eiger, "Compression", "lz4") == "lz4"


def test_parameters_in_a_series(eiger: Eiger, dcu: EigerSimulator, listener: Listener) -> None:
    temperature = parameter(eiger, "DetectorTemperature").get(eiger)
    energy = parameter(eiger, "Energy").get(eiger)
    eiger.arm(Series(1, eiger.configure(Settings())))
    dcu.fail(Failures(server_error="/detector"))
    assert parameter(eiger, "DetectorTemperature").get(eiger) == temperature
    assert parameter(eiger, "Energy").get(eiger) == energy
    assert dcu.happened == [], "the unit is not asked"
    dcu.fail(Failures())
    for name, given in (("Energy", 9000.0), ("SavePixelMask", "/tmp/mask.npy")):
        with pytest.raises(ConfigError, match="not while a series is armed"):
            write(eiger, name, given)
    assert json.loads(write(eiger, "Simplon", "detector/status/state"))["value"] == "ready"
    eiger.stop()


def test_what_a_model_has_not() -> None:
    with EigerSimulator(UnitOptions(model="EIGER 500K", api="1.6.0", speed=0.002)) as dcu:
        with closing(connected(dcu, "v1")) as backend:
            assert math.isnan(parameter(backend, "Threshold2").get(backend))
            assert parameter(backend, "CountingMode").get(backend) == ""
            with pytest.raises(ConfigError, match="Threshold2: this detector has no"):
                write(backend, "Threshold2", 9000.0)
            assert write(backend, "MaskToZero", False) is False
            assert write(backend, "FlatfieldCorrection", False) is False
            assert parameter(backend, "DetectorTemperature").get(backend) == pytest.approx(23.4)


def test_any_key(eiger: Eiger) -> None:
    assert json.loads(write(eiger, "Simplon", "detector/config/chi_start"))["unit"] == "deg"
    limits = json.loads(write(eiger, "Simplon", "detector/config/count_time"))
    assert 0 < limits["min"] < limits["max"] <= 3600, "as the page says"
    assert write(eiger, "Simplon", "detector/config/chi_start = 1.5") == "1.5"
    assert write(eiger, "Simplon", "detector/config/sample_name = lysozyme") == '"lysozyme"'
    assert json.loads(write(eiger, "Simplon", "detector/command/arm")) == {"sequence id": 1}
    assert json.loads(write(eiger, "Simplon", "detector/command/disarm")) == {"sequence id": 1}
    assert write(eiger, "Simplon", "") == ""
    for text, words in (("chi_start", "is no key"), ("detector/config/nothing", "404"), ("detector/command/x", "404")):
        with pytest.raises(ConfigError, match=words):
            write(eiger, "Simplon", text)


@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_mask_and_flat_field_as_files(eiger: Eiger, tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"mask.{suffix}")
    assert write(eiger, "SavePixelMask", path) == path
    mask = eiger_arrays.load(path).astype(np.uint32)
    assert mask.shape == (512, 1028)
    mask[3, 5] = 2
    eiger_arrays.save(path, mask)
    write(eiger, "LoadPixelMask", path)
    eiger.arm(Series(1, eiger.configure(Settings())))
    eiger.stop()
    write(eiger, "SavePixelMask", path)
    np.testing.assert_array_equal(eiger_arrays.load(path).astype(np.uint32), mask)
    write(eiger, "SaveFlatfield", path)
    flat = eiger_arrays.load(path)
    assert flat.dtype == np.float32 and flat.shape == mask.shape
    write(eiger, "LoadFlatfield", path)
    np.save(tmp_path / "small.npy", np.zeros((2, 3), np.uint32))
    with pytest.raises(ConfigError, match="2 x 3 pixels"):
        write(eiger, "LoadPixelMask", str(tmp_path / "small.npy"))


def test_named_regions() -> None:
    with EigerSimulator(UnitOptions(model="EIGER2 16M", speed=0.001)) as dcu:
        with closing(connected(dcu, "v2")) as backend:
            assert backend.image_format(Settings())[0] == (4362, 4148)
            assert write(backend, "RoiMode", "4M") == "4M"
            assert backend.image_format(backend.configure(Settings()))[0] == (2162, 2068)
            with pytest.raises(ConfigError, match="is not one of"):
                write(backend, "RoiMode", "middle")


def test_a_live_series_announces_no_number(eiger: Eiger, listener: Listener) -> None:
    eiger.arm(Series(1, eiger.configure(Settings()), live=True))
    start = wait_for("the start", lambda: next((m for m in listener.messages if isinstance(m, SeriesStart)), None))
    assert start.nframes is None
    eiger.stop()


# --- the monitor ----------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(dcu: EigerSimulator) -> Iterator[Eiger]:
    backend = connected(dcu, "v2", monitor=True, timeout=2.0)
    yield backend
    backend.close()


def one_series(backend: Eiger, n: int) -> int:
    """Its number."""
    number = backend.arm(Series(1, backend.configure(Settings(exposure_time=0.002, n_frames_per_trigger=n))))
    backend.start()
    wait_for("the end", lambda: backend.status().phase is Phase.DONE)
    return number


def last_of_monitor(dcu: EigerSimulator) -> Any:
    """Pixels, as the unit keeps them."""
    return next(reversed(dcu.unit.monitor._images.values()))


def test_the_monitors_picture(watched: Eiger, dcu: EigerSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eiger_monitor, "LOOK", 0.0)
    assert watched.picture() is None and parameter(watched, "MonitorFailures").get(watched) == 0, "none is no failure"
    with Listener(watched.endpoints(), dectris2.decode):
        one_series(watched, 5)
        number, pixels = wait_for("the last", lambda: (p := watched.picture()) and p[0] == 4 and p)
        assert pixels.dtype == last_of_monitor(dcu).dtype
        np.testing.assert_array_equal(pixels, last_of_monitor(dcu))
        watched.stop()
        assert watched.picture() is not None, "also when the series is over"
        settings = watched.configure(Settings(trigger_mode=TriggerMode.EXTERNAL_SINGLE, n_frames_per_trigger=2))
        watched.arm(Series(2, settings))
        assert dcu.unit.monitor.last == [1, 4]
        assert watched.picture() is None, "that one is of an earlier series"
        watched.start()
        dcu.edge()
        assert wait_for("the first of this one", watched.picture)[1].shape == (512, 1028)
        watched.stop()
    assert parameter(watched, "MonitorFailures").get(watched) == 0
    watched.close()
    assert watched.picture() is None


def test_the_monitor_is_looked_at_once_a_second_and_an_image_fetched_once(
    watched: Eiger, dcu: EigerSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    latest, status = dcu.unit.monitor.latest, dcu.unit.status["monitor"]
    monkeypatch.setattr(dcu.unit.monitor, "latest", lambda: (asked.append(time.monotonic()), latest())[1])
    looked: list[str] = []
    read = type(status).read
    monkeypatch.setattr(type(status), "read", lambda self, key: (looked.append(key), read(self, key))[1])
    with Listener(watched.endpoints(), dectris2.decode):
        number = one_series(watched, 2)
        wait_for("the last", lambda: dcu.unit.monitor.last == [number, 1])
        looked.clear()
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5:
            watched.picture()
            time.sleep(0.01)
        watched.stop()
    assert looked.count("monitor_image_number") == 2
    assert len(asked) == 1


@pytest.mark.parametrize(
    "failures",
    [
        {"hang": "monitor_image_number", "hang_seconds": 3},
        {"hang": "images/monitor", "hang_seconds": 3},
        {"server_error": "images/monitor"},
        {"drop_connection": "images/monitor", "drop_after": 0.0},
    ],
    ids=lambda failures: "-".join(map(str, failures.values())),
)
def test_a_monitor_that_fails_is_in_nobodys_way(
    watched: Eiger, dcu: EigerSimulator, failures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eiger_monitor, "FAILED", 0.3)
    monkeypatch.setattr(eiger_monitor, "LIMIT", 2.0)
    with Listener(watched.endpoints(), dectris2.decode) as listener:
        number = one_series(watched, 5)
        dcu.fail(Failures(**failures))
        looker = threading.Thread(target=watched.picture)
        begun = time.monotonic()
        looker.start()
        wait_for("the failure", lambda: len(dcu.happened) == 1)
        watched.stop()
        assert time.monotonic() - begun < 1.5, "the stop does not wait for the monitor"
        looker.join()
        assert time.monotonic() - begun < 2.9, "nor does who looks wait for longer than the limit"
        assert parameter(watched, "MonitorFailures").get(watched) == 1
        wait_for("the images", lambda: len(listener.frames(number)) == 5)
        assert wait_for("the next look", watched.picture)[0] == 4
        assert parameter(watched, "MonitorFailures").get(watched) == 1


def test_the_monitor_is_left_alone_while_the_unit_is_armed(watched: Eiger, dcu: EigerSimulator) -> None:
    settings = watched.configure(Settings())
    dcu.fail(Failures(arm_seconds=1.0, server_error="/monitor"))
    with Listener(watched.endpoints(), dectris2.decode):
        armer = threading.Thread(target=watched.arm, args=(Series(1, settings),))
        armer.start()
        wait_for("arm", lambda: value(dcu, "status/state") == "configure")
        assert watched.picture() is None
        assert not [what for what in dcu.happened if "monitor" in what]
        armer.join()
        assert watched.picture() is None
        assert [what for what in dcu.happened if "monitor" in what], "now it is asked"
        watched.stop()


def test_without_the_option_the_monitor_is_not_asked(eiger: Eiger, dcu: EigerSimulator) -> None:
    dcu.fail(Failures(server_error="/monitor"))
    assert eiger.picture() is None
    assert dcu.happened == []
