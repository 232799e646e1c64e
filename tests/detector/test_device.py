"""The Detector device in a process of its own, without a database; the receiver is a real engine over HTTP."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the bitshuffle filter
import numpy as np
import pytest
import tango
from tango import DevState

from tangods_detector.device import Detector
from tangods_detector.hw.simulator_images import SimulatorOptions, expected_frame
from tangods_detector.settings import Settings
from tangods_receiver import config
from tangods_receiver.engine import Engine
from tests.contract import wait_for
from tests.detector.test_receiver import unused_port
from tests.tangocontext import started

ON = (DevState.ON, DevState.ALARM)
OPTIONS = {"width": 80, "height": 64}


@contextmanager
def detector(receiver: str, port: int, **properties: Any) -> Iterator[tango.DeviceProxy]:
    lines = [f"{key} = {value}" for key, value in {**OPTIONS, "port": port, "send_timeout": 1}.items()]
    given = {"Backend": "simulator", "BackendOptions": lines, "Receiver": receiver, **properties}
    with started(Detector, properties=given, host="127.0.0.1") as proxy:
        wait_for("the connection", lambda: proxy.state() is not DevState.INIT)
        yield proxy


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return unused_port(), unused_port()


@pytest.fixture(scope="module")
def pair(ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tango.DeviceProxy, Path]]:
    """A device and its receiver; the process of the device is started first, before threads are here."""
    stream, http = ports
    root = tmp_path_factory.mktemp("data")
    token_file = str(root / "token")
    keys = {"endpoints": [f"tcp://127.0.0.1:{stream}"], "root": str(root), "http": f"127.0.0.1:{http}"}
    keys["http_token_file"] = token_file
    with ExitStack() as stack:
        proxy = stack.enter_context(detector(f"http://127.0.0.1:{http}", stream, ReceiverTokenFile=token_file))
        stack.enter_context(Engine(config.make(keys, "test")))
        wait_for("ON", lambda: proxy.state() in ON)
        yield proxy, root


@pytest.fixture
def device(pair: tuple[tango.DeviceProxy, Path]) -> tango.DeviceProxy:
    proxy, _ = pair
    for name, value in {
        "ExposureTime": 0.001,
        "FrameTime": 0.0,
        "TriggerMode": "INTERNAL",
        "nTriggers": 1,
        "nFramesPerTrigger": 5,
        "DestinationFilename": "",
        "OverwritePolicy": "ABORT",
        "SaveRaw": True,
        "Roi": [0, 0, 0, 0],
        "Binning": [1, 1],
    }.items():
        proxy.write_attribute(name, value)
    return proxy


def wait_end(proxy: tango.DeviceProxy) -> DevState:
    """The state when nothing runs any more (ON counts as false, hence the tuple)."""

    def ended() -> tuple[DevState] | None:
        state = proxy.state()
        return None if state in (DevState.MOVING, DevState.RUNNING) else (state,)

    return wait_for("the end", ended)[0]


def test_a_series_into_a_file(device: tango.DeviceProxy, pair: tuple[tango.DeviceProxy, Path]) -> None:
    file = pair[1] / "a.h5"
    device.DestinationFilename = str(file)
    device.Arm()
    assert device.state() not in ON or device.nFramesWritten == 5
    assert wait_end(device) in ON, device.status()
    names = ("nFramesExpected", "nFramesAcquired", "nFramesReceived", "nFramesWritten")
    assert [device.read_attribute(name).value for name in names] == [5] * 4
    assert (device.nFramesMissing, device.Progress, device.LastError) == (0, 100, "")
    assert device.LastFilename == str(file)
    with h5py.File(file) as h5:
        for k in range(5):
            expected = expected_frame(SimulatorOptions(**OPTIONS), Settings(), k)
            np.testing.assert_array_equal(h5["entry/instrument/detector/data"][k], expected)
    assert device.LastImageNumber == 4
    np.testing.assert_array_equal(device.LastImage, expected.astype(np.float32))
    format, data = device.video_last_image
    assert format == "VIDEO_IMAGE" and bytes(data[32:]) == expected.tobytes()
    with pytest.raises(tango.DevFailed, match="exist") as refused:
        device.Arm()
    assert refused.value.args[0].reason == "ConfigError"
    assert refused.value.args[0].origin == "Detector.Arm"
    assert device.state() in ON


def test_arm_is_quick_and_the_end_too(device: tango.DeviceProxy) -> None:
    took = []
    for _ in range(5):
        begun = time.monotonic()
        device.Arm()
        wait_end(device)
        took.append(time.monotonic() - begun)
    assert min(took) < 0.5, "arm, five frames of 1 ms, closed"


def test_software_and_external_triggers(device: tango.DeviceProxy) -> None:
    device.TriggerMode = "software"
    assert device.TriggerMode == "SOFTWARE"
    device.nTriggers = 2
    device.Arm()
    wait_for("RUNNING", lambda: device.state() is DevState.RUNNING)
    for n in (1, 2):
        device.SoftwareTrigger()
        wait_for("frames", lambda n=n: device.nFramesAcquired == 5 * n)
    assert wait_end(device) in ON
    device.TriggerMode = "EXTERNAL_MULTI"
    device.Arm()
    wait_for("RUNNING", lambda: device.state() is DevState.RUNNING)
    device.SimulatedEdges = 2
    assert wait_end(device) in ON
    assert device.nFramesReceived == 10


def test_live_stop_abort(device: tango.DeviceProxy) -> None:
    for end in (device.Stop, device.Abort):
        end()
        device.Live()
        wait_for("images", lambda: device.nFramesReceived > 5)
        assert device.LastImage.shape == (64, 80)
        with pytest.raises(tango.DevFailed):
            device.ExposureTime = 1.0
        end()
        assert wait_end(device) in ON
        assert device.nFramesExpected == 0


def test_every_attribute_reads_and_is_documented(device: tango.DeviceProxy) -> None:
    for info in device.attribute_list_query():
        device.read_attribute(info.name)
        if info.name not in ("State", "Status"):
            assert len(info.description) > 10 and info.description != "No description", info.name
            assert info.label, info.name


def test_settings_read_back_what_was_accepted(device: tango.DeviceProxy) -> None:
    device.FrameRate = 50.0
    assert device.FrameTime == pytest.approx(0.02)
    device.FrameRate = 0.0
    assert device.FrameTime == 0.0
    assert device.FrameRate == pytest.approx(1 / (0.001 + device.LatencyTime))
    device.Roi = [8, 8, 33, 16]
    device.Binning = [2, 2]
    assert list(device.Roi) == [8, 8, 32, 16]
    assert list(device.FrameShape) == [8, 16]
    device.Roi = [0, 0, 0, 0]
    device.Binning = [1, 1]
    assert list(device.Roi) == [0, 0, 80, 64]
    device.BitDepth = 8
    assert device.DataType == "uint8"
    device.BitDepth = 0
    assert (device.DataType, device.BitDepth) == ("uint16", 16)
    device.Metadata = '{"a":1}'
    assert device.Metadata == '{"a": 1}'


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TriggerMode", "NEVER", "EXTERNAL_GATE"),
        ("OverwritePolicy", "X", "NEXT_NUMBER"),
        ("Rotation", 1, "180"),
        ("Metadata", "[]", "JSON object"),
        ("DestinationFilename", "/d/{scan}.h5", "{number}"),
        ("Roi", [0, 0, 5], "x, y, width, height"),
        ("Roi", [0, 0, 500, 5], "80 x 64"),
        ("Binning", [1], "horizontal"),
        ("Binning", [0, 1], "1 or more"),
        ("BitDepth", 5, "8, 12, 16, 32"),
        ("ExposureTime", 0.0, "min"),
        ("nTriggers", 0, "min"),
        ("SimulatedEdges", -1, "0 or more"),
    ],
)
def test_what_cannot_be_is_refused(device: tango.DeviceProxy, name: str, value: Any, words: str) -> None:
    before = np.array(device.read_attribute(name).value)
    with pytest.raises(tango.DevFailed, match=words):
        device.write_attribute(name, value)
    np.testing.assert_array_equal(device.read_attribute(name).value, before)


def test_status_takes_no_value_away_that_is_read_with_it(device: tango.DeviceProxy) -> None:
    """Tango's alarm logic reads attributes once more."""
    for name in ("nFramesMissing", "nFramesWritten"):
        for names in (["Status", name], [name, "Status"], [name, "State", "Status"], ["State", name, "Status"], [name]):
            replies = device.read_attributes(names)
            assert not any(reply.has_failed for reply in replies), names
            assert dict(zip(names, (reply.value for reply in replies), strict=True))[name] == 0, names


def test_events_of_states_settings_and_counters(device: tango.DeviceProxy) -> None:
    seen: dict[str, list[Any]] = {}
    changed = threading.Condition()

    def keep(event: tango.EventData) -> None:
        if not event.err:
            with changed:
                seen.setdefault(event.attr_value.name.lower(), []).append(event.attr_value.value)
                changed.notify()

    names = ("State", "Status", "nFramesWritten", "nFramesReceived", "Progress", "ExposureTime", "LastError")
    ids = [device.subscribe_event(name, tango.EventType.CHANGE_EVENT, keep) for name in names]

    def wait_event(name: str, condition: Callable[[list[Any]], bool]) -> None:
        with changed:
            assert changed.wait_for(lambda: condition(seen.get(name.lower(), [])), 10), (name, seen.get(name.lower()))

    try:
        for name in names:
            wait_event(name, bool)
        for _ in range(100):  # Tango connects a subscriber late and loses what was pushed before
            device.ExposureTime = 0.001
            device.ExposureTime = 0.002
            time.sleep(0.1)
            if len(seen["exposuretime"]) > 2 and seen["exposuretime"][-1] == pytest.approx(0.002):
                break
        else:
            pytest.fail(f"no event of ExposureTime came: {seen}")
        device.nFramesPerTrigger = 500
        device.Arm()
        wait_event("State", lambda states: DevState.MOVING in states)
        wait_event("State", lambda states: DevState.RUNNING in states)
        wait_event("State", lambda states: states[-1] in ON)
        wait_event("nFramesReceived", lambda counts: counts[-1] == 500)
        wait_event("Progress", lambda values: values[-1] == 100)
        assert len(seen["nframesreceived"]) < 20, "at most ten a second"
    finally:
        for one in ids:
            device.unsubscribe_event(one)


def test_frames_missing(device: tango.DeviceProxy) -> None:
    device.nFramesPerTrigger = 20
    device.InjectDrop = 2
    device.Arm()
    assert wait_end(device) in ON
    assert device.nFramesMissing == 2
    assert "missing" in device.LastError and "missing" in device.status()


def test_fault_and_reset(device: tango.DeviceProxy) -> None:
    device.InjectDie = 2
    device.Arm()
    assert wait_end(device) is DevState.FAULT
    assert "died at frame 2" in device.LastError and "Reset" in device.status()
    with pytest.raises(tango.DevFailed, match="Reset"):
        device.Arm()
    device.Stop()
    device.Reset()
    wait_for("ON", lambda: device.state() in ON)
    device.Arm()
    assert wait_end(device) in ON, device.status()


def test_hardware_gone_and_back(device: tango.DeviceProxy) -> None:
    device.InjectUnreachable = True
    wait_for("UNKNOWN", lambda: device.state() is DevState.UNKNOWN)
    assert "does not answer" in device.status()
    device.ExposureTime = 0.004
    device.InjectUnreachable = False
    wait_for("ON", lambda: device.state() in ON)
    assert device.ExposureTime == pytest.approx(0.004)


def test_an_alarm_counts_as_on(device: tango.DeviceProxy) -> None:
    device.SimulatedTemperature = 70.0
    wait_for("ALARM", lambda: device.state() is DevState.ALARM)
    assert device.read_attribute("SensorTemperature").quality is tango.AttrQuality.ATTR_ALARM
    device.ExposureTime = 0.003
    device.Arm()
    assert wait_end(device) is DevState.ALARM
    device.SimulatedTemperature = 25.0
    wait_for("ON", lambda: device.state() is DevState.ON)


def test_init_keeps_the_hardwares_lists_and_its_port(device: tango.DeviceProxy) -> None:
    device.Roi = [8, 8, 40, 40]
    endpoints = device.Endpoints
    device.Init()
    wait_for("ON", lambda: device.state() in ON)
    assert list(device.Roi) == [8, 8, 40, 40] and device.Endpoints == endpoints
    device.Arm()
    assert wait_end(device) in ON, device.status()


@pytest.mark.slow
def test_restart_of_the_receiver_by_command(device: tango.DeviceProxy) -> None:
    device.RestartReceiver()
    wait_for("the end of it", lambda: device.status() == "ready")
    device.Arm()
    assert wait_end(device) in ON


@pytest.mark.slow
def test_the_end_of_the_server_in_mid_series_is_quick() -> None:
    stream, http = unused_port(), unused_port()
    with detector(f"http://127.0.0.1:{http}", stream) as proxy:
        assert proxy.state() is DevState.DISABLE
        begun = time.monotonic()
        proxy.Init()
        assert time.monotonic() - begun < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"Backend": ""}, "Backend: not set; give one of"),
        ({"Backend": "None"}, "Backend: not set"),
        ({"Backend": "pilatux"}, "pilatux"),
        ({"BackendOptions": ["wdith = 3", "dtype = complex"]}, "did you mean 'width'.*complex"),
        ({"Receiver": "a b"}, "Receiver: 'a b' is no receiver"),
        ({"Receiver": ""}, "set the property Receiver"),
    ],
)
def test_wrong_properties_leave_a_server_that_says_so(properties: dict[str, Any], words: str) -> None:
    with detector("http://127.0.0.1:1", 0, **properties) as proxy:
        assert proxy.state() in (DevState.FAULT, DevState.DISABLE)
        assert re.search(words, proxy.status())
        assert proxy.read_attribute("LastError").value or proxy.state() is DevState.DISABLE
        proxy.Stop()
        proxy.Abort()
        for command in (proxy.Arm, proxy.Live, proxy.SoftwareTrigger):
            with pytest.raises(tango.DevFailed):
                command()
        proxy.Reset()
        proxy.Init()
        wait_for("the same again", lambda: proxy.state() in (DevState.FAULT, DevState.DISABLE))
