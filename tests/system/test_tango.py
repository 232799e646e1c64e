"""What Jive, Astor, Taurus and a restart ask of a device."""

from __future__ import annotations

import itertools
import json
import threading
import time

import numpy as np
import pytest
import tango

from tests.system.beamline import ON, Beamline, wait_for

pytestmark = pytest.mark.system

SETTINGS = {
    "ExposureTime": 0.0125,
    "FrameTime": 0.25,
    "TriggerMode": "SOFTWARE",
    "nTriggers": 7,
    "nFramesPerTrigger": 3,
    "Label": "kept",
    "SaveRaw": False,
    "Rotation": 180,
    "Fliplr": True,
    "OverwritePolicy": "NEXT_NUMBER",
}


def both(beamline: Beamline) -> list[tango.DeviceProxy]:
    return [beamline.detector, beamline.receiver]


def assert_settings(detector: tango.DeviceProxy) -> None:
    assert {name: detector.read_attribute(name).value for name in SETTINGS} == pytest.approx(SETTINGS)


def test_memorised_settings_survive_init_and_restarts(own_beamline: Beamline) -> None:
    detector = own_beamline.detector
    for name, value in SETTINGS.items():
        setattr(detector, name, value)
    detector.Roi = [8, 8, 40, 40]
    detector.Init()
    own_beamline.wait_on()
    assert_settings(detector)
    tango.DeviceProxy(detector.adm_name()).DevRestart(detector.dev_name())
    own_beamline.wait_on()
    assert_settings(detector)
    assert own_beamline.stop_detector() == 0
    own_beamline.start_detector()
    own_beamline.wait_on()
    assert_settings(own_beamline.detector)
    assert list(own_beamline.detector.Roi) == [8, 8, 40, 40]


def test_every_attribute_property_and_command_is_documented(beamline: Beamline) -> None:
    for device in both(beamline):
        for attribute in device.attribute_list_query():
            if attribute.name not in ("State", "Status"):
                assert len(attribute.description) > 10, attribute.name
                assert attribute.description != "No description", attribute.name
                assert attribute.label, attribute.name
        for command in device.command_list_query():
            if command.cmd_name not in ("Init", "State", "Status"):
                info = f"{command.in_type_desc} {command.out_type_desc}"
                assert command.in_type == tango.DevVoid or "Uninitialised" not in info, command.cmd_name
        klass = device.info().dev_class
        wizard = list(tango.DeviceProxy(device.adm_name()).QueryWizardDevProperty(klass))
        assert len(wizard) >= 6
        for name, doc, default in zip(wizard[0::3], wizard[1::3], wizard[2::3], strict=True):
            assert len(doc) > 10, name
            assert default != "None", f"{name}: an operator who clicks Finish would store the text None"


def test_times_have_units_and_limits(beamline: Beamline) -> None:
    config = {c.name: c for c in beamline.detector.attribute_list_query()}
    assert config["ExposureTime"].unit == "s"
    assert float(config["ExposureTime"].min_value) > 0
    assert config["FrameRate"].unit == "Hz"
    assert config["PixelSize"].unit == "m"
    assert config["LatencyTime"].unit == "s"
    assert config["Progress"].unit == "%"


def test_state_and_counters_come_as_events(beamline: Beamline) -> None:
    seen: dict[str, list[object]] = {
        "state": [],
        "status": [],
        "nframeswritten": [],
        "progress": [],
        "exposuretime": [],
    }
    done = threading.Event()

    def keep(event: tango.EventData) -> None:
        if not event.err:
            name = event.attr_value.name.lower()
            seen[name].append(event.attr_value.value)
            if name == "state" and len(seen["state"]) > 2 and event.attr_value.value in ON:
                done.set()

    ids = [beamline.detector.subscribe_event(name, tango.EventType.CHANGE_EVENT, keep) for name in seen]
    try:
        wait_for("the first events", lambda: all(seen.values()))
        times = itertools.cycle((0.006, 0.007))  # Tango connects a subscriber late and loses what was pushed before
        wait_for(
            "a pushed event",
            lambda: setattr(beamline.detector, "ExposureTime", next(times)) or seen["exposuretime"][1:],
        )
        beamline.acquire(ExposureTime=0.005, FrameTime=0.01, nFramesPerTrigger=50)
        assert done.wait(5)
        wait_for("the last counters", lambda: seen["nframeswritten"][-1] == 50 and seen["progress"][-1] == 100)
    finally:
        for one in ids:
            beamline.detector.unsubscribe_event(one)
    states = [s for s, _ in itertools.groupby(seen["state"])]
    if states[-2] == tango.DevState.MOVING:
        del states[-2]  # closing the file took long enough to be seen
    assert states[-3:] == [tango.DevState.MOVING, tango.DevState.RUNNING, tango.DevState.ON]
    counts = seen["nframeswritten"]
    assert len(counts) < 30, "events are limited in rate"


def test_nothing_is_polled_by_a_client_that_subscribes(beamline: Beamline) -> None:
    for device, names in (
        (beamline.detector, ["State", "Status", "nFramesAcquired", "nFramesMissing", "Progress", "ExposureTime"]),
        (beamline.receiver, ["State", "Status", "CurrentFile", "nFramesWritten", "nFramesMissing"]),
    ):
        for name in names:
            number = device.subscribe_event(name, tango.EventType.CHANGE_EVENT, lambda _event: None)
            device.unsubscribe_event(number)


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("TriggerMode", "SOMETIMES", "EXTERNAL_MULTI"),
        ("OverwritePolicy", "MAYBE", "NEXT_NUMBER"),
        ("Rotation", 45, "90"),
        ("Metadata", "{not json", "JSON"),
        ("Roi", [0, 0, 1000, 1000], "80"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_do(beamline: Beamline, name: str, value: object, word: str) -> None:
    before = beamline.detector.read_attribute(name).value
    with pytest.raises(tango.DevFailed) as failed:
        beamline.detector.write_attribute(name, value)
    assert word in failed.value.args[0].desc
    after = beamline.detector.read_attribute(name).value
    np.testing.assert_array_equal(before, after)


def test_settings_are_refused_while_running(beamline: Beamline) -> None:
    beamline.set(TriggerMode="SOFTWARE")
    beamline.detector.Arm()
    beamline.wait_running()
    with pytest.raises(tango.DevFailed):
        beamline.detector.ExposureTime = 1.0
    assert beamline.detector.ExposureTime == pytest.approx(0.001), "attributes stay readable"
    beamline.detector.Stop()
    beamline.wait_end()


@pytest.mark.parametrize("moment", ["idle", "armed", "running"])
def test_kill_command_ends_the_server_quickly(own_beamline: Beamline, moment: str) -> None:
    detector = own_beamline.detector
    if moment != "idle":
        mode = "SOFTWARE" if moment == "armed" else "INTERNAL"
        own_beamline.set(TriggerMode=mode, nFramesPerTrigger=100_000)
        detector.Arm()
        own_beamline.wait_running()
    process = own_beamline.local.process(f"Detector/{own_beamline.instance}")
    begun = time.monotonic()
    tango.DeviceProxy(detector.adm_name()).Kill()
    assert process.wait(10) == 0
    assert time.monotonic() - begun < 3
    wait_for("the file to be closed", lambda: own_beamline.snapshot()["file"] == "")
    own_beamline.stop_detector()
    own_beamline.start_detector()
    own_beamline.wait_on()
    own_beamline.good_series()


def test_misconfigured_servers_stay_up_and_say_what_to_set(local_tango: object, own_beamline: Beamline) -> None:
    own_beamline.put("StreamReceiver", own_beamline.receiver_name, Root="/nowhere/at/all")
    own_beamline.receiver.Init()
    wait_for("FAULT", lambda: own_beamline.receiver.state() == tango.DevState.FAULT)
    assert "/nowhere/at/all" in own_beamline.receiver.status()
    own_beamline.put("StreamReceiver", own_beamline.receiver_name, Root=str(own_beamline.root))
    own_beamline.receiver.Reset()
    wait_for("ON", lambda: own_beamline.receiver.state() in ON)
    own_beamline.put("Detector", own_beamline.detector_name, BackendOptions=["wdith = 10", "dtype = complex"])
    own_beamline.detector.Init()
    own_beamline.wait_state(tango.DevState.FAULT)
    assert "wdith" in own_beamline.detector.status() and "complex" in own_beamline.detector.status()
    own_beamline.put("Detector", own_beamline.detector_name, BackendOptions=own_beamline.options)
    own_beamline.detector.Init()
    own_beamline.wait_on()
    own_beamline.good_series()


def test_books_balance(beamline: Beamline) -> None:
    beamline.good_series()
    s = json.loads(beamline.receiver.Snapshot)
    assert s["received"] == s["written"] + s["repeated"] + s["foreign"] + s["rejected"] + s["discarded"]
    assert beamline.receiver.nFramesWritten == s["written"]
    assert beamline.receiver.LastFile == s["last_file"]
    assert beamline.receiver.SeriesOpened == beamline.receiver.SeriesClosed == s["closed"]
