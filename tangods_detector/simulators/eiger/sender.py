"""Sends the messages of a series, and does with them what failures ask for. In the one thread that has the sockets."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from tangods_detector.simulators.eiger.course import Course, Exposure
from tangods_detector.simulators.eiger.failures import Failures, Luck
from tangods_detector.simulators.eiger.images import Picture
from tangods_detector.simulators.eiger.monitor import Monitor
from tangods_detector.simulators.eiger.outlet import Outlet
from tangods_detector.simulators.eiger.parameters import Setup
from tangods_detector.simulators.eiger.stream1 import Series1
from tangods_detector.simulators.eiger.stream2 import Series2

STALE = 41  # series id of stale images before the first series
BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

Held = tuple[list[Any], int, tuple[bytes, ...]]  # parts, number, blobs of an image


class Series:
    """One arm. `messages` None: the stream is off."""

    def __init__(
        self,
        number: int,
        course: Course,
        pictures: tuple[Picture, ...],
        messages: Series1 | Series2 | None,
        outlet: Outlet,
    ) -> None:
        self.id = number
        self.course = course
        self.pictures = pictures
        self.messages = messages
        self.outlet = outlet
        self.started = threading.Event()  # the start message is on its way
        self.ending = False
        self.silent = False  # no end message
        self.aborted = False
        self.over = threading.Event()
        self.offset: float | None = None  # s to add for the time since the first exposure
        self.held: list[Held] = []  # sent after the next image
        self.sent: list[tuple[int, bytes]] = []


def messages_of(
    number: int,
    unique: str,
    setup: Setup,
    pictures: tuple[Picture, ...],
    stream: Mapping[str, Any],
    cbor: bool,
) -> Series1 | Series2:
    """`stream`: the parameters of that module."""
    detail, appendices = stream["header_detail"], (stream["header_appendix"], stream["image_appendix"])
    if cbor:
        date = setup.values["data_collection_date"]
        return Series2(number, unique, setup, pictures, detail, *appendices, arm_date=date)
    header, image = (text if isinstance(text, str) else "" for text in appendices)
    return Series1(number, setup, pictures, detail, header, image)


class Sender:
    """`dropped` counts images that found the queue full."""

    def __init__(self, luck: Luck, monitor: Monitor, keep_sent: bool) -> None:
        self.dropped = 0
        self._luck = luck
        self._monitor = monitor
        self._keep_sent = keep_sent

    def start(self, series: Series) -> None:
        messages = series.messages
        stale = self._luck.next.take("stale")
        if messages is not None:
            former = messages.of_series(series.id - 1 or STALE) if stale else messages
            for k in range(stale):
                self._luck.note(f"stale image {k} of series {series.id - 1 or STALE}")
                clock = time.monotonic()
                parts, _ = former.image(Exposure(k, clock, clock, 0.001), 0.0)
                series.outlet.put(parts, messages.joined, True)
            series.outlet.put(messages.start(), messages.joined)
        series.started.set()

    def image(self, series: Series, exposure: Exposure) -> str:
        """`restart` or `error`: what happens to the control unit now, instead of sending this image."""
        if series.aborted:
            return ""
        number = exposure.number
        if self._monitor.enabled:
            self._monitor.put(series.id, number, series.pictures[number % len(series.pictures)].arrays[0])
        if series.messages is None:
            return ""
        failures = self._luck.next
        if failures.of_images():
            return self._with_failures(series, exposure, failures)
        self.put_image(series, exposure)
        return ""

    def _with_failures(self, series: Series, exposure: Exposure, failures: Failures) -> str:
        number, note = exposure.number, self._luck.note
        if failures.restart_at == number:
            failures.restart_at = None
            note(f"restart at {number}")
            return "restart"
        if failures.error_at == number:
            failures.error_at = None
            return "error"
        if failures.take_image("lose", number):
            note(f"lose {number}")
            return ""
        if failures.full_queue:
            failures.full_queue -= 1
            self.dropped += 1
            note(f"full_queue {number}")
            return ""
        fault = ""
        for name in ("corrupt", "wrong_size", "missing_part"):
            if failures.take_image(name, number):
                fault = name
                note(f"{name} {number}")
        if failures.take_image("reorder", number):
            note(f"reorder {number}")
            self.put_image(series, exposure, fault, hold=True)
            return ""
        self.put_image(series, exposure, fault)
        if failures.take_image("duplicate", number):
            note(f"duplicate {number}")
            self.put_image(series, exposure, fault)
        return ""

    def put_image(self, series: Series, exposure: Exposure, fault: str = "", hold: bool = False) -> None:
        messages = series.messages
        assert messages is not None
        if series.offset is None:
            series.offset = 0.0 if isinstance(messages, Series1) else -exposure.start
            if isinstance(messages, Series2):
                began = datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - exposure.start)
                messages.date = began.isoformat(timespec="microseconds")
        parts, blobs = messages.image(exposure, series.offset, fault)
        if hold:
            series.held.append((parts, exposure.number, blobs))
            return
        self._put(series, messages.joined, parts, exposure.number, blobs)
        self._put_held(series, messages.joined)

    def _put_held(self, series: Series, joined: bool) -> None:
        for held in series.held:
            self._put(series, joined, *held)
        series.held.clear()

    def _put(self, series: Series, joined: bool, parts: list[Any], number: int, blobs: tuple[bytes, ...]) -> None:
        if not series.outlet.put(parts, joined, True):
            self.dropped += 1
        elif self._keep_sent:
            series.sent += [(number, blob) for blob in blobs]

    def end(self, series: Series) -> None:
        messages = series.messages
        if messages is not None:
            self._put_held(series, messages.joined)
            if series.aborted:
                series.outlet.discard_images()
            if not series.silent:
                series.outlet.put(messages.end(), messages.joined)
        series.started.set()


def ulid() -> str:
    """A sortable id: milliseconds, then chance."""
    number = (time.time_ns() // 1_000_000) << 80 | random.getrandbits(80)
    return "".join(BASE32[number >> 5 * k & 31] for k in range(25, -1, -1))
