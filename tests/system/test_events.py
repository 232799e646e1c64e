"""What archivers and panels subscribe to: change and archive events, alarms, set points; nothing is polled."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import tango
from tango import AttrQuality, DevState, EventType

from tests.system.beamline import ON, Beamline, wait_for

pytestmark = pytest.mark.system

LIMIT = 30.0
BOTH = (EventType.CHANGE_EVENT, EventType.ARCHIVE_EVENT)
COUNTERS = ("nFramesAcquired", "nFramesReceived", "nFramesWritten", "Progress")


class Subscriber:
    """What it was told of one attribute: (value, quality), newest last."""

    def __init__(self, device: tango.DeviceProxy, name: str, kind: EventType) -> None:
        self.told: list[tuple[object, AttrQuality]] = []
        self.name, self._device = name, device
        self._id = device.subscribe_event(name, kind, self._event)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self._device.unsubscribe_event(self._id)

    def _event(self, event: tango.EventData) -> None:
        if not event.err:
            self.told.append((event.attr_value.value, event.attr_value.quality))

    @property
    def value(self) -> object:
        return self.told[-1][0] if self.told else None

    @property
    def values(self) -> list[object]:
        return [value for value, _ in self.told]

    def wait(self, condition: Callable[[object, AttrQuality], bool], what: str) -> None:
        """Until the newest is so."""
        wait_for(f"{self.name} {what}, not {self.told[-3:]}", lambda: self.told and condition(*self.told[-1]), LIMIT)


def subscribe(stack: ExitStack, device: tango.DeviceProxy, *names: str) -> dict[str, list[Subscriber]]:
    """To change and archive events of each."""
    return {name: [stack.enter_context(Subscriber(device, name, kind)) for kind in BOTH] for name in names}


def connect(subscribers: list[Subscriber], change: Callable[[], object]) -> None:
    """Tango connects a first subscriber in the background and loses what is pushed before: change until each is told
    of a change."""
    first = [list(one.told) for one in subscribers]

    def told() -> bool:
        change()
        return all(len(one.told) > len(before) + 1 for one, before in zip(subscribers, first, strict=True))

    wait_for(f"pushed events of {subscribers[0].name}", told, LIMIT)


@pytest.fixture
def warm(beamline: Beamline) -> Iterator[Beamline]:
    """As it was before, whatever the test made of it."""
    yield beamline
    beamline.detector.SimulatedTemperature = 25.0
    wait_for("ON", lambda: beamline.detector.state() == DevState.ON, LIMIT)


def test_a_series_as_an_archiver_sees_it(beamline: Beamline) -> None:
    detector = beamline.detector
    times = itertools.cycle((0.006, 0.007))
    with ExitStack() as stack:
        seen = subscribe(stack, detector, "ExposureTime", "State", *COUNTERS)
        connect(seen["ExposureTime"], lambda: setattr(detector, "ExposureTime", next(times)))
        for frames in (7, 8, 9, 30):  # short ones first, until all are connected
            beamline.acquire(ExposureTime=0.005, FrameTime=0.01, nFramesPerTrigger=frames)
        for one in seen["ExposureTime"]:
            one.wait(lambda value, _: value == 0.005, "as set")
        for name in COUNTERS:
            for one in seen[name]:
                one.wait(
                    lambda value, _, name=name: value == (100.0 if name == "Progress" else 30), "of the last series"
                )
        for one in seen["State"]:
            one.wait(lambda value, _: value in ON, "at the end")
            assert {DevState.MOVING, DevState.RUNNING} <= set(one.values)
    assert not any(detector.is_attribute_polled(name) for name in ("State", "ExposureTime", *COUNTERS))


def test_a_sensor_that_gets_too_warm_raises_an_alarm(warm: Beamline) -> None:
    detector = warm.detector
    config = detector.get_attribute_config("SensorTemperature")
    assert float(config.alarms.max_alarm) == 50
    assert (config.events.ch_event.abs_change, config.events.arch_event.archive_abs_change) == ("0.1", "0.5")
    temperatures = itertools.cycle((25.0, 27.0, 29.0))
    with ExitStack() as stack:
        seen = subscribe(stack, detector, "SensorTemperature", "State")
        connect(seen["SensorTemperature"], lambda: setattr(detector, "SimulatedTemperature", next(temperatures)))
        detector.SimulatedTemperature = 61.0
        for one in seen["SensorTemperature"]:
            one.wait(lambda value, quality: value > 55 and quality is AttrQuality.ATTR_ALARM, "in alarm")
        for one in seen["State"]:
            one.wait(lambda value, _: value == DevState.ALARM, "in alarm")
        assert "SensorTemperature" in detector.status()
        detector.SimulatedTemperature = 25.0
        for one in seen["SensorTemperature"]:
            one.wait(lambda value, quality: value < 30 and quality is AttrQuality.ATTR_VALID, "well again")
        for one in seen["State"]:
            one.wait(lambda value, _: value == DevState.ON, "well again")
    assert not detector.is_attribute_polled("SensorTemperature")


def test_noise_of_a_reading_is_no_event(warm: Beamline) -> None:
    detector = warm.detector
    temperatures = itertools.cycle((25.0, 27.0))
    with Subscriber(detector, "SensorTemperature", EventType.ARCHIVE_EVENT) as seen:
        connect([seen], lambda: setattr(detector, "SimulatedTemperature", next(temperatures)))
        detector.SimulatedTemperature = 25.0
        seen.wait(lambda value, _: abs(value - 25.0) < 0.6, "steady")
        looks = {detector.SensorTemperature}
        before = len(seen.told)
        wait_for("readings that differ", lambda: looks.add(detector.SensorTemperature) or len(looks) > 2, LIMIT)
        values = seen.values[before - 1 :]
        assert all(abs(a - b) >= 0.5 for a, b in itertools.pairwise(values)), values


def test_missing_frames_are_an_alarm_until_the_next_series(beamline: Beamline) -> None:
    both = (beamline.detector, beamline.receiver)
    with ExitStack() as stack:
        seen = [subscribe(stack, device, "nFramesMissing", "State") for device in both]
        for one in [subscriber for of in seen for subscribers in of.values() for subscriber in subscribers]:
            wait_for("a first event", lambda one=one: one.told, LIMIT)

        def lose() -> None:
            beamline.detector.InjectDrop = 2
            beamline.acquire(nFramesPerTrigger=10)
            beamline.acquire(nFramesPerTrigger=5)

        connect([one for of in seen for one in of["nFramesMissing"]], lose)
        beamline.detector.InjectDrop = 2
        beamline.acquire(nFramesPerTrigger=10)
        for of, device in zip(seen, both, strict=True):
            for one in of["nFramesMissing"]:
                one.wait(lambda value, quality: (value, quality) == (2, AttrQuality.ATTR_ALARM), "in alarm")
            for one in of["State"]:
                one.wait(lambda value, _: value == DevState.ALARM, "in alarm")
            assert device.state() == DevState.ALARM and "Frames missing" in device.status()
        beamline.good_series()
        for of, device in zip(seen, both, strict=True):
            for one in of["nFramesMissing"]:
                one.wait(lambda value, quality: (value, quality) == (0, AttrQuality.ATTR_VALID), "well again")
            assert device.state() == DevState.ON


def test_little_room_is_an_alarm(beamline: Beamline) -> None:
    receiver = beamline.receiver
    beamline.good_series()
    wait_for("the first look", lambda: receiver.read_attribute("FreeSpace").quality is AttrQuality.ATTR_VALID, LIMIT)
    free = receiver.FreeSpace
    assert free > 1 and receiver.state() == DevState.ON
    config = receiver.get_attribute_config("FreeSpace")
    limits = config.alarms.min_alarm, config.alarms.min_warning
    assert (config.unit, *map(float, limits)) == ("GB", 1, 10)
    config.alarms.min_alarm, config.alarms.min_warning = str(free + 1000), "Not specified"
    receiver.set_attribute_config(config)
    try:
        assert receiver.read_attribute("FreeSpace").quality is AttrQuality.ATTR_ALARM
        assert receiver.state() == DevState.ALARM and "Free space" in receiver.status()
        beamline.good_series()
    finally:
        config.alarms.min_alarm, config.alarms.min_warning = limits
        receiver.set_attribute_config(config)
    assert receiver.state() == DevState.ON


def test_panels_know_what_everything_is_set_to_from_the_start(own_beamline: Beamline) -> None:
    for device in (own_beamline.detector, own_beamline.receiver):
        names = [info.name for info in device.attribute_list_query() if info.writable == tango.AttrWriteType.READ_WRITE]
        assert len(names) > 1
        for name in names:
            read = device.read_attribute(name)
            if name not in ("Roi", "FrameRate", "BitDepth"):  # what they are set to means: what fits the hardware
                assert str(read.w_value) == str(read.value), name
            assert "ot initialised" not in str(read.w_value)
    own_beamline.detector.ExposureTime = 0.25
    assert own_beamline.detector.read_attribute("ExposureTime").w_value == 0.25
    own_beamline.detector.Init()
    own_beamline.wait_on()
    assert own_beamline.detector.read_attribute("ExposureTime").w_value == 0.25, "memorised"
