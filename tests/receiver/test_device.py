"""The StreamReceiver as its clients see it, in a process of its own, with a real engine and a real sender."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import h5py
import httpx
import numpy as np
import pytest
import tango
from tango import DevState

from tangods_receiver.config import make
from tangods_receiver.device import SHOWN, StreamReceiver, file_to_check, in_property_names, status_text
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError
from tangods_receiver.reception import Reception
from tangods_receiver.stats import Snapshot
from tests.receiver.streaming import DATASET, Sender, image
from tests.tangocontext import started
from tests.waiting import wait_for

IDLE = (DevState.ON, DevState.ALARM)


def send(sender: Sender, series: int, path: Path, numbers: Iterable[int], nframes: int = 5) -> None:
    """A series whose end is sent, with these of its frames."""
    sender.start(path, series, nframes=nframes)
    for number in range(nframes):
        if number in numbers:
            sender.frame(number)
        else:
            sender.lose()
    sender.end()


@pytest.fixture
def sender():
    with Sender() as sender:
        yield sender


@pytest.fixture
def properties(sender, tmp_path):
    return {"Root": str(tmp_path), "Endpoints": [sender.endpoint], "Http": "127.0.0.1:0", "EndTimeout": 0.3}


@pytest.fixture
def device(properties):
    with started(StreamReceiver, properties=properties) as proxy:
        yield proxy


def wait_closed(device, series: int) -> None:
    wait_for(lambda: device.SeriesClosed >= series, what=f"series {series} closed")


# --- pure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (Snapshot(), "Idle"),
        (Snapshot(state="running", series=4, file="/d/a.h5"), "Series 4 into /d/a.h5"),
        (Snapshot(state="running", series=4), "Series 4, no file: live view only"),
        (Snapshot(closed=4, written=9, last_file="/d/a.h5"), "Idle. Series 4: 9 frames, 0 missing, in /d/a.h5"),
        (Snapshot(closed=4, written=9, missing=1, error="gone"), "Idle. Series 4: 9 frames, 1 missing. gone"),
        (Snapshot(state="error", error="disk full"), "disk full"),
        (Snapshot(state="error"), "error, for a reason that was not given"),
        (Snapshot(state="unreachable", error="no answer"), "no answer"),
    ],
)
def test_status(snapshot, text):
    assert status_text(snapshot) == text


def test_mistakes_are_told_with_the_names_of_the_properties():
    text = "properties: endpoints: missing; end_timeout: too small (found -1); http: 'x' is not like 127.0.0.1:8000"
    assert in_property_names(text) == (
        "properties: Endpoints: missing; EndTimeout: too small (found -1); Http: 'x' is not like 127.0.0.1:8000"
    )


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (["/a"], ("/a", 0, False)),
        (["/a", "12"], ("/a", 12, False)),
        (["a b", "0", "overwrite"], ("a b", 0, True)),
    ],
)
def test_arguments_of_check_file(arguments, result):
    assert file_to_check(arguments) == result


@pytest.mark.parametrize("arguments", [[], [""], ["/a", "-1"], ["/a", "1.5"], ["/a", "1", "2"], ["/a", "many"]])
def test_wrong_arguments_of_check_file(arguments):
    with pytest.raises(ConfigError, match="CheckFile takes"):
        file_to_check(arguments)


# --- a series --------------------------------------------------------------------------------------------------------


def test_a_series_is_written_and_everything_is_shown(device, sender, tmp_path):
    assert device.State() == DevState.ON
    assert device.Status() == "Idle"
    assert (device.SeriesOpened, device.SeriesClosed, device.LastFile) == (0, 0, "")
    path = str(tmp_path / "a.h5")
    sender.start(path, 41, nframes=10)
    wait_for(lambda: device.SeriesOpened == 41)
    assert device.State() == DevState.RUNNING
    assert device.Status() == f"Series 41 into {path}"
    assert device.CurrentFile == path
    sender.frames(range(10))
    sender.end()
    wait_closed(device, 41)
    assert device.State() == DevState.ON
    assert (device.CurrentFile, device.LastFile) == ("", path)
    assert device.Status() == f"Idle. Series 41: 10 frames, 0 missing, in {path}"
    shown = device.read_attributes(list(SHOWN))
    values = {attribute.name: attribute.value for attribute in shown}
    assert values["nFramesExpected"] == values["nFramesReceived"] == values["nFramesWritten"] == 10
    for name in ("Missing", "Repeated", "Foreign", "Rejected", "Discarded"):
        assert values[f"nFrames{name}"] == 0
    assert Snapshot.from_dict(json.loads(device.Snapshot)).closed == 41
    assert device.LastError == ""
    wait_for(lambda: device.Durable)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file[DATASET], [image(k) for k in range(10)])


def test_the_last_image(device, sender):
    assert device.LastImageNumber == -1
    empty = device.read_attribute("LastImage")
    assert empty.value is None or empty.value.size == 0
    sender.start("", 1)
    sender.frame(7)
    wait_for(lambda: device.LastImageNumber == 7)
    np.testing.assert_array_equal(device.LastImage, image(7))
    assert device.LastImage.dtype == np.float32
    sender.end()


def test_missing_frames_are_a_warning_and_no_fault(device, sender, tmp_path):
    send(sender, 1, tmp_path / "a.h5", {0, 1, 3, 4})
    wait_closed(device, 1)
    assert device.State() == DevState.ALARM
    assert device.read_attribute("nFramesMissing").quality == tango.AttrQuality.ATTR_ALARM
    assert "1 missing" in device.Status()
    send(sender, 2, tmp_path / "b.h5", range(5))
    wait_closed(device, 2)
    assert device.State() == DevState.ON
    assert device.nFramesMissing == 0


def test_stop_keeps_what_came(device, sender, tmp_path):
    device.Stop()  # idle: harmless
    sender.start(tmp_path / "a.h5", 1, nframes=100)
    sender.frame(0)
    wait_for(lambda: device.nFramesWritten == 1)
    device.Stop()
    wait_closed(device, 1)
    assert device.State() in IDLE
    assert device.nFramesMissing == 99
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file[DATASET][0], image(0))


def test_an_error_is_a_fault_until_reset(device, sender, tmp_path):
    (tmp_path / "taken.h5").write_bytes(b"mine")
    send(sender, 1, tmp_path / "taken.h5", range(5))
    wait_for(lambda: device.State() == DevState.FAULT)
    assert "taken.h5" in device.Status() and device.LastError in device.Status()
    assert device.nFramesWritten == 0, "attributes stay readable"
    device.Stop()
    device.Reset()
    wait_for(lambda: device.State() in IDLE)
    assert device.LastError == ""
    send(sender, 2, tmp_path / "b.h5", range(5))
    wait_closed(device, 2)
    assert device.State() == DevState.ON
    assert (tmp_path / "taken.h5").read_bytes() == b"mine"


def test_garbage_is_a_fault_and_good_frames_are_still_written(device, sender, tmp_path):
    sender.start(tmp_path / "a.h5", 1, nframes=2)
    sender.frame(0)
    sender.parts([b"\x80no json"])
    sender.frame(1)
    sender.end()
    wait_closed(device, 1)
    assert device.State() == DevState.FAULT
    assert "JSON" in device.LastError
    assert (device.nFramesWritten, device.nFramesRejected, device.nFramesMissing) == (2, 1, 0)


def test_check_file(device, tmp_path):
    good = str(tmp_path / "a.h5")
    assert device.CheckFile([good, "1000"]) == device.CheckFile([good]) == ""
    (tmp_path / "a.h5").touch()
    assert "exist" in device.CheckFile([good, "1000"])
    assert str(tmp_path) in device.CheckFile([str(tmp_path / ".." / "x.h5"), "0"])
    assert device.CheckFile([str(tmp_path / "b.h5"), str(10**18)])
    with pytest.raises(tango.DevFailed) as failed:
        device.CheckFile([good, "much"])
    assert failed.value.args[0].reason == "ConfigError"
    assert failed.value.args[0].origin == "StreamReceiver.CheckFile"


def test_status_takes_no_value_away_that_is_read_with_it(device):
    """Tango's alarm logic reads attributes once more."""
    for name in ("nFramesMissing", "nFramesWritten"):
        for names in (["Status", name], [name, "Status"], [name, "State", "Status"], ["State", name, "Status"], [name]):
            replies = device.read_attributes(names)
            assert not any(reply.has_failed for reply in replies), names
            assert dict(zip(names, (reply.value for reply in replies), strict=True))[name] == 0, names


# --- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_but_the_image_is_pushed(device, sender, tmp_path):
    seen: dict[str, list] = {}
    lock = threading.Lock()

    def keep(event: tango.EventData) -> None:
        if not event.err:
            with lock:
                seen.setdefault(event.attr_value.name.lower(), []).append(event.attr_value.value)

    names = ["State", "Status", *SHOWN]
    ids = [device.subscribe_event(name, tango.EventType.CHANGE_EVENT, keep) for name in names]
    try:
        wait_for(lambda: set(seen) >= {name.lower() for name in names})
        path = str(tmp_path / "a.h5")
        sender.start(path, 1, nframes=200)
        wait_for(lambda: seen["state"][-1] == DevState.RUNNING)
        wait_for(lambda: seen["status"][-1] == f"Series 1 into {path}")
        began = time.monotonic()
        for number in range(200):
            sender.frame(number)
            time.sleep(0.003)  # 0.6 s in all, so that many values come between two events
        sender.end()
        wait_for(lambda: seen["nframeswritten"][-1] == 200)
        wait_for(lambda: seen["state"][-1] == DevState.ON)
        wait_for(lambda: (seen["seriesclosed"][-1], seen["lastfile"][-1]) == (1, path))
        assert len(seen["nframeswritten"]) <= 4 + (time.monotonic() - began) / 0.1
        assert len(seen["status"]) <= 6
    finally:
        for one in ids:
            device.unsubscribe_event(one)
    with pytest.raises(tango.DevFailed, match="PollingNotStarted|not polled"):
        device.subscribe_event("LastImage", tango.EventType.CHANGE_EVENT, keep)


# --- set-up ----------------------------------------------------------------------------------------------------------


def test_everything_is_documented(device):
    for attribute in device.attribute_list_query():
        if attribute.name not in ("State", "Status"):
            assert len(attribute.description) > 20, attribute.name
            assert attribute.label, attribute.name
            writable = attribute.name in ("Rois", "LiveDownsample")
            assert attribute.writable == (tango.AttrWriteType.READ_WRITE if writable else tango.AttrWriteType.READ)
    assert device.get_attribute_config("Throughput").unit == "MB/s"
    assert device.get_attribute_config("FrameRate").unit == "Hz"
    assert device.get_attribute_config("nFramesMissing").alarms.max_alarm == "1"
    units = {"WaitingShare": "%", "RatePerWorker": "Hz", "Backlog": "s", "CommitTime": "s", "SyncTime": "s"}
    assert {name: device.get_attribute_config(name).unit for name in units} == units
    klass = device.info().dev_class
    wizard = list(tango.DeviceProxy(device.adm_name()).QueryWizardDevProperty(klass))
    defaults = dict(zip(wizard[0::3], wizard[2::3], strict=True))
    assert set(defaults) == {
        *("Address", "Name", "Protocol", "Socket", "Endpoints", "Workers", "IoThreads", "Root", "Dataset", "Http"),
        *("HttpHosts", "TokenFile", "Forward"),
        *("HwmBytes", "EndTimeout", "StallTimeout", "CommitInterval", "AllowOverwrite", "Transforms", "Parts"),
        *("FramesPerFile", "FsyncInterval", "PayloadCrc", "ContextPerWorker", "Images", "Channels"),
        *("LiveMaxRate", "LiveAverage", "InitialRois"),
        *("CurveKey", "CurveServerKeys", "CurveClients", "AllowPeers"),
    }
    assert "None" not in defaults.values()
    assert (defaults["Workers"], defaults["Dataset"]) == ("1", DATASET)
    assert all(len(doc) > 20 for doc in wizard[1::3])
    assert "tangods-receiver" in device.info().version_info


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"Root": None, "Endpoints": None}, ["Endpoints: missing", "Root: missing"]),
        ({"Root": "/nowhere/at/all"}, ["Root: /nowhere/at/all does not exist"]),
        ({"Endpoints": ["9999"]}, ["Endpoints: '9999' is not like tcp://host:9999"]),
        ({"Workers": 0, "EndTimeout": -1}, ["Workers", "EndTimeout"]),
        ({"Workers": "two"}, ["Workers", "two"]),
        ({"Protocol": "smoke"}, ["Protocol: 'smoke' is not known"]),
        ({"Http": "8000"}, ["Http: '8000'"]),
        ({"Parts": 0, "FsyncInterval": -1.0}, ["Parts", "FsyncInterval"]),
        ({"Transforms": ["sharpen"]}, ["Transforms: step 1, 'sharpen'", "bslz4"]),
        ({"InitialRois": ["beam 1 2 3"], "LiveMaxRate": 0}, ["InitialRois: 'beam 1 2 3': not like", "LiveMaxRate"]),
        ({"Http": "192.0.2.1:0"}, ["192.0.2.1:0"]),
        ({"Address": "nowhere"}, ["Address: 'nowhere' is not like http://host:8000"]),
    ],
)
def test_a_wrong_property_is_a_fault_that_says_what_to_set(properties, wrong, words):
    properties = {name: value for name, value in {**properties, **wrong}.items() if value is not None}
    with started(StreamReceiver, properties=properties) as device:
        assert device.State() == DevState.FAULT
        status = device.Status()
        assert all(word in status for word in words), status
        assert status.endswith("Correct the properties, then give the command Reset")
        assert device.LastError == status
        assert json.loads(device.Snapshot)["state"] == "error"
        with pytest.raises(tango.DevFailed, match="Correct the properties"):
            device.CheckFile(["/a"])
        device.Stop()
        device.Reset()
        assert device.State() == DevState.FAULT
        assert device.HttpAddress == ""
        assert device.read_attribute("LastImage").dim_x == 0


@pytest.mark.parametrize("command", ["Reset", "Init"])
def test_properties_are_read_again(properties, sender, tmp_path, command):
    root = tmp_path / "later"
    with started(StreamReceiver, properties={**properties, "Root": str(root)}) as device:
        assert device.State() == DevState.FAULT
        root.mkdir()
        device.command_inout(command)
        assert device.State() == DevState.ON
        send(sender, 1, root / "a.h5", range(5))
        wait_closed(device, 1)


@pytest.mark.parametrize("http", ["", "none"])
def test_no_http(properties, http):
    with started(StreamReceiver, properties={**properties, "Http": http}) as device:
        assert device.State() == DevState.ON
        assert device.HttpAddress == ""


def test_http_of_the_engine(device, sender):
    address = device.HttpAddress
    assert address.startswith("http://127.0.0.1:")
    status, shown = httpx.get(f"{address}/status").json(), json.loads(device.Snapshot)
    assert status.keys() == shown.keys()
    for values in (status, shown):
        for worker in values.pop("workers"):  # their clock runs on
            assert worker["index"] == 0
    assert status == shown
    assert "stream_receiver_received_frames_total" in httpx.get(f"{address}/metrics").text


def test_what_each_worker_does(properties, sender, tmp_path):
    with started(StreamReceiver, properties={**properties, "Workers": 2}) as device:
        assert list(device.FramesPerWorker) == [0, 0]
        for series in (1, 2):
            send(sender, series, tmp_path / f"{series}.h5", {0, 1, 3}, nframes=4)
            wait_closed(device, series)
        assert sum(device.FramesPerWorker) == 6, "since the engine began"
        wait_for(lambda: any(share > 50 for share in device.WaitingShare))
        for name in ("RatePerWorker", "BatchSize", "Backlog", "WaitingShare", "TransformShare", "WritingShare"):
            values = device.read_attribute(name).value
            assert len(values) == 2 and all(value >= 0 for value in values), name
        assert all(share <= 100 for share in [*device.WaitingShare, *device.TransformShare, *device.WritingShare])
        assert device.Losses == ("missing 1: 1 of 4 frames missing: 2",)
        wait_for(lambda: device.SyncTime > 0)


def test_every_property_of_the_configuration(properties, sender, tmp_path):
    given = {"Transforms": ["rotate: 90", "bslz4"], "FsyncInterval": 0.1, "PayloadCrc": True, "ContextPerWorker": False}
    with started(StreamReceiver, properties={**properties, **given}) as device:
        send(sender, 1, tmp_path / "a.h5", range(5))
        wait_closed(device, 1)
        assert device.State() == DevState.ON, device.Status()
        wait_for(lambda: device.nFramesDurable == 5)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file[DATASET], [np.rot90(image(k)) for k in range(5)])


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Init", "DevRestart"])
def test_init_closes_the_open_file_and_starts_again(device, sender, tmp_path, how):
    sender.start(tmp_path / "a.h5", 1, nframes=100)
    sender.frame(0)
    wait_for(lambda: device.nFramesWritten == 1)
    began = time.monotonic()
    if how == "Init":
        device.Init()
    else:
        tango.DeviceProxy(device.adm_name()).DevRestart(device.dev_name())
    assert time.monotonic() - began < 2.5
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file[DATASET][0], image(0))
        assert file[DATASET].parent["frames_received"][()] == 1
    wait_for(lambda: device.State() == DevState.ON)
    send(sender, 2, tmp_path / "b.h5", range(5))
    wait_closed(device, 2)
    assert device.nFramesWritten == 5


@pytest.mark.parametrize("how", ["Kill", signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_server_closes_the_open_file(properties, sender, tmp_path, how):
    context = started(StreamReceiver, properties=properties)
    device = context.device
    sender.start(tmp_path / "a.h5", 1, nframes=100)
    sender.frame(0)
    wait_for(lambda: device.nFramesWritten == 1)
    began = time.monotonic()
    if how == "Kill":
        tango.DeviceProxy(device.adm_name()).Kill()
    else:
        os.kill(context.thread.pid, how)
    context.thread.join(5)
    assert context.thread.exitcode == 0
    assert time.monotonic() - began < 3
    with contextlib.suppress(tango.ConnectionFailed):  # nobody to stop any more
        context.stop()
    with h5py.File(tmp_path / "a.h5") as file:
        assert file[DATASET].parent["frames_received"][()] == 1


def test_slow_storage_does_not_hold_init_up_and_the_process_waits_for_the_file(
    properties, sender, tmp_path, monkeypatch
):
    abandon = Reception.abandon

    def slow(reception, reason):  # the last thing before the file is closed
        time.sleep(1.5)
        abandon(reception, reason)

    monkeypatch.setattr(Reception, "abandon", slow)  # the server's process is forked from this one
    monkeypatch.setattr("tangods_receiver.device.CLOSE_LIMIT", 0.2)
    context = started(StreamReceiver, properties={**properties, "Http": ""})
    began = time.monotonic()
    context.device.Init()
    assert time.monotonic() - began < 1.4
    wait_for(lambda: context.device.State() == DevState.ON)
    sender.start(tmp_path / "a.h5", 1, nframes=100)
    sender.frame(0)
    wait_for(lambda: context.device.nFramesReceived == 1)
    os.kill(context.thread.pid, signal.SIGTERM)
    context.thread.join(10)
    assert context.thread.exitcode == 0
    with contextlib.suppress(tango.ConnectionFailed):
        context.stop()
    with h5py.File(tmp_path / "a.h5") as file:
        assert file[DATASET].parent["frames_received"][()] == 1


@pytest.mark.slow
def test_thirty_inits_leave_threads_and_descriptors_as_they_were(properties, tmp_path):
    context = started(StreamReceiver, properties=properties)

    def counts() -> tuple[int, int]:
        process = Path(f"/proc/{context.thread.pid}")
        return len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))

    with context as device:
        for _ in range(3):
            device.Init()
        before = counts()
        for _ in range(30):
            device.Init()
        # omniORB's own pool grows and shrinks by a few; a leak would be thirty
        wait_for(lambda: all(now < then + 10 for now, then in zip(counts(), before, strict=True)))


# --- an engine elsewhere ---------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(sender, tmp_path):
    """Configuration of an engine and its address. Start it after the device, whose process is forked from this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        http = f"127.0.0.1:{free.getsockname()[1]}"
    values = {"root": str(tmp_path), "endpoints": [sender.endpoint], "http": http, "end_timeout": 0.3}
    config = make(values | {"http_token_file": str(tmp_path / "token")})
    return config, f"http://{http}"


def test_an_engine_elsewhere_is_shown_and_commanded(sender, tmp_path, elsewhere):
    config, address = elsewhere
    properties = {"Address": address, "TokenFile": config.http_token_file}
    with started(StreamReceiver, properties=properties) as device, Engine(config):
        wait_for(lambda: device.State() == DevState.ON)
        assert device.HttpAddress == address
        assert device.LastImage is None or device.LastImage.size == 0
        good = str(tmp_path / "a.h5")
        assert device.CheckFile([good, "10"]) == ""
        assert str(tmp_path) in device.CheckFile(["/elsewhere.h5"])
        sender.start(good, 5, nframes=10)
        sender.frame(0)
        wait_for(lambda: device.State() == DevState.RUNNING and device.nFramesWritten == 1)
        np.testing.assert_array_equal(device.LastImage, image(0))
        device.Stop()
        wait_closed(device, 5)
        wait_for(lambda: device.State() in IDLE)
        sender.parts([b"?"])
        wait_for(lambda: device.State() == DevState.FAULT)
        device.Reset()
        wait_for(lambda: device.State() in IDLE)


def test_an_engine_that_is_gone_is_unknown_and_comes_back(elsewhere, tmp_path):
    config, address = elsewhere
    with started(StreamReceiver, properties={"Address": address}) as device:
        for _ in range(2):
            wait_for(lambda: device.State() == DevState.UNKNOWN)
            wait_for(lambda: f"receiver at {address} cannot be reached" in device.Status())
            assert "Address" in device.Status()
            with pytest.raises(tango.DevFailed) as failed:
                device.CheckFile([str(tmp_path / "a.h5")])
            assert failed.value.args[0].reason == "HardwareError"
            with Engine(config):
                wait_for(lambda: device.State() == DevState.ON)
