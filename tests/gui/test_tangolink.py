"""The thread that speaks Tango, before a device that the test plays. No Qt, no servers."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import tango

from taurus_gui import tangolink
from taurus_gui.mailbox import Mailbox
from taurus_gui.tangolink import TangoLink

VALID, INVALID = tango.AttrQuality.ATTR_VALID, tango.AttrQuality.ATTR_INVALID


class Device:
    """Says 7 for everything but what is in `failed` and `invalid`; ends the link at its first look."""

    def __init__(self, link: TangoLink) -> None:
        self._link = link
        self.asked: list[list[str]] = []
        self.failed: set[str] = set()
        self.invalid: set[str] = set()

    def read_attributes(self, names: list[str]) -> list[Any]:
        self.asked.append(names)
        self._link._stop.set()
        return [
            SimpleNamespace(
                has_failed=name in self.failed, quality=INVALID if name in self.invalid else VALID, value=7
            )
            for name in names
        ]  # fmt: skip


@pytest.fixture
def box() -> Mailbox:
    return Mailbox(lambda: None)


@pytest.fixture
def link(box: Mailbox) -> TangoLink:
    return TangoLink("a/b/c", box)


@pytest.fixture
def device(link: TangoLink) -> Device:
    return Device(link)


def event(value: int | None) -> Any:
    reading = None if value is None else SimpleNamespace(value=value, quality=VALID)
    return SimpleNamespace(err=value is None, attr_value=reading, errors=[SimpleNamespace(desc="timeout")])


def looked_at(link: TangoLink, device: Device) -> list[str]:
    """In the next look of each second."""
    device.asked.clear()
    link._stop.clear()
    assert link._serve(device) == ""  # type: ignore[arg-type]
    return device.asked[0]


def test_what_sends_no_events_is_read_until_it_does(
    link: TangoLink, device: Device, box: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    assert looked_at(link, device) == ["State", "Status"]
    with caplog.at_level(logging.WARNING):
        for name in ("nFramesWritten", "Progress", "Progress"):
            link._event(name, event(None))
    assert [record.getMessage() for record in caplog.records] == [
        "a/b/c: no events of nFramesWritten (timeout): what sends none is read every second"
    ]
    assert looked_at(link, device) == ["Progress", "State", "Status", "nFramesWritten"]
    assert box.take()[0]["readings"]["nFramesWritten"] == 7
    for name in ("nFramesWritten", "Progress"):
        link._event(name, event(8))
    assert looked_at(link, device) == ["State", "Status"]


def test_what_cannot_be_subscribed_is_read(link: TangoLink, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def subscribe(name: str, *_: Any) -> int:
        if name == "Progress":
            tango.Except.throw_exception("API_x", "no event channel", "here")
        return 1

    config = SimpleNamespace(
        data_type=tango.CmdArgType.DevDouble, data_format=tango.AttrDataFormat.SCALAR, label="", unit="",
        description="", writable=tango.AttrWriteType.READ, disp_level=tango.DispLevel.OPERATOR, min_value="",
        max_value="", format="",
    )  # fmt: skip
    more = SimpleNamespace(
        set_timeout_millis=lambda ms: None, ping=lambda: 1, command_list_query=lambda: [],
        attribute_list_query=lambda: [SimpleNamespace(name=n, **vars(config)) for n in ("Progress", "FrameRate")],
        read_attributes=device.read_attributes, subscribe_event=subscribe, get_property=lambda name: {},
    )  # fmt: skip
    monkeypatch.setattr(tangolink.tango, "DeviceProxy", lambda name: more)
    assert link._connect()[1] == [1]
    link._receiver = None
    assert looked_at(link, device) == ["Progress", "State", "Status"]


def test_of_what_cannot_be_read_now_there_is_no_value(link: TangoLink, device: Device, box: Mailbox) -> None:
    link._own = {"Temperature": False, "Humidity": False, "Gain": True}
    device.failed, device.invalid = {"Humidity", "nTriggers"}, {"Temperature"}
    link._read(device, ["Temperature", "Humidity", "Gain", "nTriggers"])  # type: ignore[arg-type]
    assert box.take()[0]["readings"] == {"Temperature": None, "Humidity": None, "Gain": 7}
