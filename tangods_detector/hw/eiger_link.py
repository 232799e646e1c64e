"""The link to a control unit: one connection for what may block, one for stop and state; what is done with a unit as a
whole."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from tangods_detector.hw.base import DetectorInfo
from tangods_detector.hw.eiger_monitor import Monitor
from tangods_detector.hw.eiger_series import Request
from tangods_detector.hw.eiger_unit import Unit
from tangods_detector.hw.rest import Connection, Refused
from tangods_detector.options import option
from tangods_receiver.errors import ConfigError, HardwareError

log = logging.getLogger(__name__)

PORTS = {"v1": 9999, "v2": 31001}
FORMATS = {"v1": "legacy", "v2": "cbor"}
STATE = "detector/status/state"
ARMED = ("ready", "acquire")
LOST = {  # states in which nothing can be recorded any more
    "na": "was restarted and is not initialised",
    "initialize": "is being initialised by somebody else",
    "error": "reports an error",
    "test": "is being tested",
}
LISTS = ("detector/config", "detector/status", "detector/command", "stream/config", "stream/status")
STATE_LIMIT = 2.0  # s for the answer to a look at the state
STOP_LIMIT = 2.0  # s for a stop to take effect
BROKEN_OFF_AFTER = 1.0  # s that a request has to return after it was given up


@dataclass(frozen=True)
class EigerOptions:
    """Where the control unit is, and how it sends."""

    host: str = field(metadata={"doc": "name or address of the control unit; must be given"})
    port: int = option(80, "its HTTP port")
    api: str = option("", "version of its interface, such as 1.8.0; empty: it is asked")
    stream: Literal["v1", "v2"] = option(
        "v2", "v1 (legacy) or v2 (CBOR, from 1.8 on); the receiver's protocol must fit"
    )
    endpoint: str = option("", "where the stream is pulled from; empty: tcp://HOST:9999 for v1, :31001 for v2")
    header_detail: Literal["none", "basic", "all"] = option("basic", "what the start message holds; all: with arrays")
    filewriter: bool = option(False, "true: the unit writes files of its own besides")
    monitor: bool = option(False, "true: the unit keeps images for its monitor besides, for LastImage")
    timeout: float = option(10.0, "limit for an ordinary request, s")
    arm_timeout: float = option(120.0, "limit for arm, and for what makes the unit calculate tables, s")
    initialize_timeout: float = option(240.0, "limit for initialize, s")
    patience: float = option(10.0, "how long the unit may be silent in a series, s")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("port", self.port, 1, 65535),
                ("timeout", self.timeout, 0.1, 3600),
                ("arm_timeout", self.arm_timeout, 1, 3600),
                ("initialize_timeout", self.initialize_timeout, 1, 3600),
                ("patience", self.patience, 1, 3600),
            )
            if not low <= value <= high
        ]
        if not self.host.strip() or "/" in self.host:
            problems.append(f"host: {self.host!r} is no name or address of a computer")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def pull_from(self) -> str:
        return self.endpoint or f"tcp://{self.host}:{PORTS[self.stream]}"


class Link:
    """From its making to `close`. The thread that owns the detector uses `unit`, all may use `quick`."""

    def __init__(self, options: EigerOptions, chosen: dict[str, Any], transport: httpx.BaseTransport | None) -> None:
        """`chosen`: keys that the user has set, to be set again after initialize."""
        self.options, self.chosen, self._transport = options, chosen, transport
        self.quick = self._connection()
        self.unit = Unit(self._connection(), options.api, options.arm_timeout)
        self.monitor = Monitor(self._connection(), self.unit.path)
        self.given_up = threading.Event()  # what blocks is to return
        self.in_series = False  # the unit is not to be asked for more than its state

    def _connection(self) -> Connection:
        o = self.options
        return Connection(o.host, o.port, o.timeout, self._transport)

    def close(self) -> None:
        self.quick.close()
        self.monitor.close()
        self.unit.connection.close()

    def begin(self) -> None:
        """Find out what is there and make it ready for a series."""
        self.unit.discover()
        for section in LISTS:
            self.unit.has(f"{section}/?")
        self.make_idle(mend=True)
        self.set_up_modules()

    def make_idle(self, mend: bool = False) -> bool:
        """Initialise a unit that was restarted, end a series that somebody has left armed; with `mend` initialise one
        with an error too. True: it was initialised. HardwareError: it is in no state to go on."""
        state = self.state()
        if state == "na" or (mend and state == "error"):
            log.warning("the control unit %s%s: it is initialised", LOST[state], self.words_of_error(state))
            self.initialize()
            return True
        if state in ARMED:
            self.end(complete=False)
        else:
            self.refuse_lost(state)
        return False

    def set_up_modules(self) -> None:
        """The stream on, in our format; filewriter and monitor as configured."""
        unit, o = self.unit, self.options
        wanted: dict[str, str] = {"header_detail": o.header_detail}
        if unit.has("stream/config/format"):
            wanted["format"] = FORMATS[o.stream]
        elif o.stream != "v1":
            raise ConfigError(f"stream: this control unit (API {unit.api}) has no stream v2; set stream = v1")
        if any(unit.get(f"stream/config/{name}") != value for name, value in wanted.items()):
            unit.set("stream/config/mode", "disabled")  # formats are changed while it is off
            for name, value in wanted.items():
                unit.set(f"stream/config/{name}", value)
        unit.set("stream/config/mode", "enabled")
        for module, on in (("filewriter", o.filewriter), ("monitor", o.monitor)):
            if unit.has(f"{module}/config/mode"):
                unit.set(f"{module}/config/mode", "enabled" if on else "disabled")

    def initialize(self) -> None:
        """The unit forgets everything, also its count of series; what the user had set is set again."""
        unit, limit = self.unit, self.options.initialize_timeout
        self.blocking(lambda: unit.connection.command(unit.path("detector/command/initialize"), None, limit))
        if (state := self.state()) != "idle":
            raise HardwareError(f"initialize: the state is {state} and not idle{self.words_of_error(state)}")
        unit.forget()
        unit.set("stream/config/mode", "disabled")
        self.arm()  # some parameters, such as flatfields, are only final after the first
        self.command("disarm")
        unit.forget()
        for key, value in list(self.chosen.items()):
            try:
                unit.set(key, value)
            except (ConfigError, Refused) as exc:
                log.warning("not set again: %s", exc)

    def info(self) -> DetectorInfo:
        """What the unit says of itself; only the number of pixels must be there."""
        unit = self.unit

        def told(name: str, absent: Any) -> Any:
            key = f"detector/config/{name}"
            return unit.get(key) if unit.has(key) else absent

        return DetectorInfo(
            model=str(told("description", "SIMPLON")),
            serial_number=str(told("detector_number", "")),
            shape=(
                int(unit.get("detector/config/y_pixels_in_detector")),
                int(unit.get("detector/config/x_pixels_in_detector")),
            ),
            pixel_size=(float(told("y_pixel_size", 0.0)), float(told("x_pixel_size", 0.0))),
            sensor_material=str(told("sensor_material", "")),
            sensor_thickness=float(told("sensor_thickness", 0.0)),
            firmware=f"{told('software_version', '')}, API {unit.api}",
        )

    def arm(self) -> int:
        """The number that the unit gives the series; its start message is sent."""
        unit, limit = self.unit, self.options.arm_timeout
        answer = self.blocking(lambda: unit.connection.command(unit.path("detector/command/arm"), None, limit))
        number = answer.get("sequence id", answer.get("series id")) if isinstance(answer, dict) else None
        if type(number) is not int:
            raise HardwareError(f"arm: the answer {answer!r} has no sequence id")
        return number

    def end(self, complete: bool) -> None:
        """Disarm; what is under way is ended before: after the image in progress where that is soon."""
        if not complete and (state := self.state()) in (*ARMED, "configure"):
            soon = self.unit.known("detector/config/frame_time").value < STOP_LIMIT / 4
            self.command("cancel" if soon and state == "acquire" else "abort")
        refused: Refused | None = None
        try:
            self.command("disarm")
        except Refused as exc:  # in the wrong state, or busy: the state decides
            refused = exc
        deadline, aborted = time.monotonic() + STOP_LIMIT, False
        while (state := self.state()) in ARMED or state == "configure":
            if time.monotonic() > deadline:
                raise refused or HardwareError(f"the control unit is still in state {state} after disarm")
            if not aborted and time.monotonic() > deadline - STOP_LIMIT / 2:
                aborted = True
                self.command("abort")
                self.command("disarm")
            time.sleep(0.02)
        self.refuse_lost(state)

    def refuse_lost(self, state: str) -> None:
        """HardwareError when nothing can be recorded in this state."""
        if state in LOST:
            raise HardwareError(f"the control unit {LOST[state]}{self.words_of_error(state)}")

    # --- the state ---------------------------------------------------------------------------------------------------

    def state(self) -> str:
        """As it is now, in SIMPLON's word."""
        return str(self.unit.read(STATE, self.quick, STATE_LIMIT).value)

    def words_of_error(self, state: str) -> str:
        """What the unit says of its error, in its own words."""
        if state != "error":
            return ""
        try:
            told = self.unit.read("detector/status/error", self.quick, STATE_LIMIT).value
        except HardwareError as exc:
            return f" ({exc})"
        words = "; ".join(map(str, told)) if isinstance(told, list) else str(told or "")
        return f": {words}" if words else ""

    def dropped_since(self, before: int) -> str:
        """A sentence when the stream has dropped messages since there were so many."""
        dropped = self.dropped()
        lost = dropped - before if dropped >= before else dropped
        if lost <= 0:
            return ""
        return (
            f"the control unit has dropped {lost} messages of the stream (stream/status/dropped): the receiver or the "
            "network is too slow"
        )

    def dropped(self) -> int:
        """Messages of the stream, by the unit's count."""
        unit = self.unit
        return int(unit.read("stream/status/dropped", self.quick).value) if unit.has("stream/status/dropped") else 0

    # --- requests ----------------------------------------------------------------------------------------------------

    def command(self, name: str) -> None:
        """Of the detector, on the quick connection."""
        self.quick.command(self.unit.path(f"detector/command/{name}"))

    def blocking(self, ask: Callable[[], Any]) -> Any:
        """Ask in a thread of its own, so that a stop need not wait for the answer: arming takes up to minutes."""
        request = Request(ask)
        request.start()
        while request.is_alive():
            request.join(0.02)
            if self.given_up.is_set() and not request.leave(BROKEN_OFF_AFTER, self._disarm_late):
                self.replace_connection()
                raise HardwareError("broken off; the control unit may be busy with it for a while")
        return request.result()

    def replace_connection(self) -> None:
        """The present one waits for an answer that nobody wants any more; it goes with whoever waits."""
        self.unit.connection = self._connection()

    def _disarm_late(self) -> None:
        """What was given up has been done after all."""
        if not self.in_series:
            self.command("disarm")
