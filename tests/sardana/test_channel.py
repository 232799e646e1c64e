"""A channel before a pretended device: what it tells a measurement group."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest
import tango

from sardana_ctrl.channel import Channel, wait_all_ready
from sardana_ctrl.plan import Request, Synch

ALL = ("INTERNAL", "SOFTWARE", "EXTERNAL_SINGLE", "EXTERNAL_MULTI", "EXTERNAL_GATE")


class Value(NamedTuple):
    value: Any


class Device:
    """Attributes as they were set; Arm runs a series, the test takes its frames."""

    def __init__(self, modes: tuple[str, ...] = ALL) -> None:
        self.values: dict[str, Any] = {
            "State": tango.DevState.ON,
            "Status": "as pretended",
            "TriggerModes": modes,
            "LatencyTime": 0.0,
            "OverwritePolicy": "ABORT",
            "DestinationFilename": "",
            "SaveRaw": True,
            "LastFilename": "",
            "ReceiverState": "on",
        }
        self.values.update(dict.fromkeys(("ExposureTime", "FrameTime", "TriggerMode", "nTriggers")))
        self.values["nFramesPerTrigger"] = None
        self.count(0)

    def count(self, acquired: int, missing: int = 0, received: int | None = None) -> None:
        received = acquired - missing if received is None else received
        self.values.update(nFramesAcquired=acquired, nFramesReceived=received, nFramesMissing=missing)

    def state(self) -> tango.DevState:
        return self.values["State"]

    def read_attributes(self, names: list[str]) -> list[Value]:
        return [Value(self.values[name]) for name in names]

    def write_attributes(self, pairs: list[tuple[str, Any]]) -> None:
        self.values.update(pairs)

    def write_attribute(self, name: str, value: Any) -> None:
        self.values[name] = value

    def command_inout(self, command: str) -> None:
        if command == "Arm":
            self.count(0)
            self.values["State"] = tango.DevState.RUNNING
        elif command in ("Stop", "Abort"):
            self.values["State"] = tango.DevState.ON


def prepared(synch: Synch, repetitions: int, starts: int, modes: tuple[str, ...] = ALL) -> tuple[Channel, Device]:
    channel, device = Channel("b1/dia/det1", lambda: "det01"), Device(modes)
    channel._proxy = device
    channel.prepare(Request(synch, 0.01, repetitions, 0.001, starts))
    return channel, device


def ended(device: Device, state: tango.DevState = tango.DevState.ON) -> None:
    device.values["State"] = state


@pytest.mark.parametrize("synch", [Synch.HARDWARE_TRIGGER, Synch.SOFTWARE_START])
def test_a_series_that_somebody_else_stopped(synch: Synch) -> None:
    channel, device = prepared(synch, 1, 10)
    for point in range(3):
        channel.start()
        device.count(point)
        assert channel.state()[0] == "Moving"
        device.count(point + 1)
        assert channel.state()[0] == "On"
    ended(device)
    assert channel.state()[0] == "On", "what was due is there"
    channel.start()
    state, sentence = channel.state()
    assert state == "Fault"
    assert "b1/dia/det1: series ended after 3 of 10 frames: stopped from outside?" in sentence
    channel.prepare(Request(synch, 0.01, 1, 0.001, 10))
    assert channel.state()[0] == "On"


def test_a_fly_scan_that_somebody_else_stopped() -> None:
    channel, device = prepared(Synch.HARDWARE_TRIGGER, 100, 1)
    channel.start()
    device.count(40)
    ended(device)
    assert channel.state()[0] == "Fault"


@pytest.mark.parametrize("state", [tango.DevState.ON, tango.DevState.ALARM])
def test_a_series_that_ended_well_is_over(state: tango.DevState) -> None:
    channel, device = prepared(Synch.HARDWARE_TRIGGER, 100, 1)
    channel.start()
    device.count(100, missing=3)
    ended(device, state)
    assert channel.state()[0] == "On"
    device.count(1)  # of a series that somebody took since
    assert channel.state()[0] == "On"


def test_lost_frames_that_the_hardware_does_not_count() -> None:
    channel, device = prepared(Synch.HARDWARE_TRIGGER, 100, 1)
    channel.start()
    device.count(97, missing=3, received=97)
    ended(device, tango.DevState.ALARM)
    assert channel.state()[0] == "On"


def test_a_series_that_we_stopped_is_over() -> None:
    channel, device = prepared(Synch.HARDWARE_TRIGGER, 100, 1)
    channel.start()
    device.count(40)
    channel.stop()
    assert channel.state()[0] == "On"


def test_each_start_of_a_detector_without_triggers_is_judged_alone() -> None:
    channel, device = prepared(Synch.SOFTWARE_START, 1, 3, ("INTERNAL",))
    for _ in range(3):
        assert channel.state()[0] == "On"
        channel.start()
        assert channel.state()[0] == "Moving"
        device.count(1)
        ended(device)
        assert channel.state()[0] == "On"
    channel.start()
    ended(device)
    assert "after 0 of 1 frames" in channel.state()[1]


def test_detectors_that_are_slow_to_arm_are_waited_for_side_by_side() -> None:
    channels = []
    for _ in range(5):
        channel, device = prepared(Synch.HARDWARE_TRIGGER, 100, 1)
        device.values["State"] = tango.DevState.MOVING
        channels.append(channel)
    begun = time.monotonic()
    wait_all_ready(channels, 0.2)
    assert 0.2 <= time.monotonic() - begun < 0.4


def test_who_looked_first_may_be_the_last_to_tell() -> None:
    """Two threads of a Pool: the count of the slower one is old."""
    channel, device = prepared(Synch.HARDWARE_TRIGGER, 10, 1)
    device.values["LastFilename"] = channel._path = "/data/a.h5"
    channel.start()
    device.count(9)
    read = device.read_attributes

    def overtaken(names: list[str]) -> list[Value]:
        found = read(names)
        device.read_attributes = read  # type: ignore[method-assign]
        device.count(10)
        ended(device)
        assert channel.state()[0] == "On"
        return found

    device.read_attributes = overtaken  # type: ignore[method-assign]
    assert channel.state()[0] == "Moving", "as it was"
    assert len(channel.new_references()) == 10


def test_points_after_a_lost_frame_have_their_references() -> None:
    channel, device = prepared(Synch.HARDWARE_TRIGGER, 10, 1)
    channel._path = "/data/a.h5"
    channel.start()
    device.count(8, missing=2, received=8)
    ended(device)
    assert channel.state()[0] == "On"
    assert len(channel.new_references()) == 10
