"""DECTRIS EIGER, EIGER2, PILATUS4: any detector with a SIMPLON control unit, which sends its images itself."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import httpx

from tangods_detector.hw import eiger_arrays
from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.hw.eiger_parameters import PARAMETERS
from tangods_detector.hw.eiger_rest import Connection, Refused, Unreachable
from tangods_detector.hw.eiger_series import Plan, Request, Run, wait_until
from tangods_detector.hw.eiger_unit import Unit
from tangods_detector.options import option
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import start_metadata
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
STATE_LIMIT = 2.0  # s for the answer to a look at the state
LOOK = 1.0  # s between two looks at the state; more often has hung control units
STOP_LIMIT = 2.0  # s for a stop to take effect
TRIGGER_MARGIN = 10.0  # s that a trigger may last longer than its exposures
NEARLY = 0.05  # eV; energies that differ less are the same, for to write one takes long
EARLY = 0.95  # of its time; a trigger that returns before was ended by something
BROKEN_OFF_AFTER = 1.0  # s that a request has to return after it was given up
CLIMATE = 5.0  # s between two looks at the temperature
ARRAYS = {"pixel_mask": "<u4", "flatfield": "<f4"}
LISTS = ("detector/config", "detector/status", "detector/command", "stream/config", "stream/status")
DECISIVE = ("trigger_mode", "nimages", "ntrigger", "count_time", "frame_time")  # others may have changed them


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
    monitor: bool = option(False, "true: the unit keeps images for its monitor besides")
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
            if not low <= (value or 0) <= high
        ]
        if self.host is not None and (not self.host.strip() or "/" in self.host):
            problems.append(f"host: {self.host!r} is no name or address of a computer")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def pull_from(self) -> str:
        return self.endpoint or f"tcp://{self.host}:{PORTS[self.stream]}"


class Eiger(Backend):
    """Two connections: one for what may block, one for stop and state. The thread that calls owns the first."""

    Options: ClassVar[type] = EigerOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(TriggerMode)
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def __init__(self, options: EigerOptions, transport: httpx.BaseTransport | None = None) -> None:
        self._options, self._transport = options, transport
        self._quick: Connection | None = None
        self._unit: Unit | None = None
        self._run: Run | None = None
        self._info: DetectorInfo | None = None
        self._given_up = threading.Event()  # what blocks is to return
        self._chosen: dict[str, Any] = {}  # parameters that the user has set, to be set again after initialize
        self._looked = self._answered = 0.0  # at the state; monotonic
        self._dropped = 0  # before the series
        self.trigger_exposure = 0.0  # s; 0: software triggers do not say how long
        self.answer: str = ""  # of the last request to a key by name
        self.paths: dict[str, str] = {f"{act} {name}": "" for act in ("save", "load") for name in ARRAYS}
        self._felt = 0.0  # the temperature, monotonic

    # --- the link ----------------------------------------------------------------------------------------------------

    def connect(self) -> DetectorInfo:
        self.close()
        o = self._options
        self._quick = Connection(o.host, o.port, o.timeout, self._transport)
        unit = Unit(Connection(o.host, o.port, o.timeout, self._transport), o.api, o.arm_timeout)
        self._unit = unit
        try:
            unit.discover()
            for section in LISTS:
                unit.has(f"{section}/?")
            self._given_up.clear()
            state = self._ask_state()
            if state in ("na", "error"):
                log.warning("the control unit %s%s: it is initialised", LOST[state], self._words_of_error(state))
                self._initialize()
            elif state in ARMED:
                self._end(complete=False)
            elif state not in ("idle", "configure"):
                raise HardwareError(f"the control unit {LOST.get(state, f'is in state {state}')}")
            self._set_up_modules()
            self._info = self._read_info()
        except BaseException:
            self.close()
            raise
        return self._info

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.stop()
            if self._quick is not None and not run.finished:
                try:
                    self._end(complete=run.status.phase is Phase.DONE)
                except (HardwareError, ConfigError) as exc:
                    log.warning("%s", exc)
        for connection in (self._quick, self._unit.connection if self._unit else None):
            if connection is not None:
                connection.close()
        if run is not None:
            run.leave(STOP_LIMIT)
        self._quick = self._unit = None

    def _set_up_modules(self) -> None:
        """The stream on, in our format; filewriter and monitor as configured."""
        unit, o = self._connected, self._options
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

    def _initialize(self) -> None:
        """The unit forgets everything, also its count of series; what the user had set is set again."""
        unit = self._connected
        self._blocking(lambda: unit.connection.command(unit.path("detector/command/initialize"), None,
                                                       self._options.initialize_timeout))  # fmt: skip
        unit.forget()
        if (state := self._ask_state()) != "idle":
            raise HardwareError(f"initialize: the state is {state} and not idle{self._words_of_error(state)}")
        if unit.has("stream/config/mode"):
            unit.set("stream/config/mode", "disabled")
        self._arm_command()  # some parameters, such as flatfields, are only final after the first
        self._command("disarm")
        for key, value in list(self._chosen.items()):
            try:
                unit.set(key, value)
            except (ConfigError, Refused) as exc:
                log.warning("not set again: %s", exc)

    def _read_info(self) -> DetectorInfo:
        unit = self._connected
        get = {name: unit.get(f"detector/config/{name}") for name in (
            "description", "detector_number", "x_pixel_size", "y_pixel_size", "sensor_material", "sensor_thickness",
            "software_version", "x_pixels_in_detector", "y_pixels_in_detector",
        )}  # fmt: skip
        return DetectorInfo(
            model=str(get["description"]),
            serial_number=str(get["detector_number"]),
            shape=(int(get["y_pixels_in_detector"]), int(get["x_pixels_in_detector"])),
            pixel_size=(float(get["y_pixel_size"]), float(get["x_pixel_size"])),
            sensor_material=str(get["sensor_material"]),
            sensor_thickness=float(get["sensor_thickness"]),
            firmware=f"{get['software_version']}, API {unit.api}",
        )

    @property
    def _connected(self) -> Unit:
        if self._unit is None:
            raise HardwareError("not connected to the control unit")
        return self._unit

    @property
    def _quickly(self) -> Connection:
        if self._quick is None:
            raise HardwareError("not connected to the control unit")
        return self._quick

    def endpoints(self) -> list[str]:
        return [self._options.pull_from]

    # --- settings ----------------------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> Settings:
        _refuse_what_it_has_not(settings)
        unit = self._connected
        self._apply(settings, Plan.of(settings, own_exposure=self.trigger_exposure > 0))
        depth = int(unit.get("detector/config/bit_depth_image"))
        if settings.bit_depth not in (0, depth):
            raise ConfigError(f"BitDepth: the detector chooses it, by the exposure time; it is {depth} now; set 0")
        period = float(unit.get("detector/config/frame_time")) if settings.frame_time else 0.0
        if settings.frame_time < self._shortest(settings.exposure_time) * (1 - 1e-6):
            period = settings.frame_time  # Arm refuses that, unless the exposure is made shorter until then
        exposure = float(unit.get("detector/config/count_time"))
        return replace(settings, exposure_time=exposure, frame_time=period, bit_depth=depth)

    def _apply(self, settings: Settings, plan: Plan) -> None:
        unit = self._connected
        for name, value in plan.writes(str(unit.get("detector/config/trigger_mode"))):
            self._put(name, value, {"nimages": "nFramesPerTrigger", "ntrigger": "nTriggers"}.get(name, "TriggerMode"))
        self._put("count_time", settings.exposure_time, "ExposureTime")
        low = unit.known("detector/config/frame_time").low or 0.0
        period = max(settings.frame_time, self._shortest(settings.exposure_time), low)
        self._put("frame_time", period, "FrameTime")

    def _put(self, name: str, value: object, ours: str) -> None:
        try:
            self._connected.set(f"detector/config/{name}", value)
        except ConfigError as exc:
            raise ConfigError(f"{ours}: {exc}") from exc

    def _shortest(self, exposure: float) -> float:
        """Period, s."""
        frame_time = self._connected.known("detector/config/frame_time")
        readout = float(self._connected.get("detector/config/detector_readout_time"))
        return max(exposure + readout, frame_time.low or 0.0)

    def latency_time(self, settings: Settings) -> float:
        return self._shortest(settings.exposure_time) - settings.exposure_time

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        unit = self._connected
        shape = tuple(int(unit.get(f"detector/config/{axis}_pixels_in_detector")) for axis in "yx")
        mode = str(unit.get("detector/config/roi_mode")) if unit.has("detector/config/roi_mode") else ""
        if mode.startswith("4M") and shape[1] > 2070:
            shape = (2162, 2068) if unit.has("detector/config/threshold/1/energy") else (2167, 2070)
        elif mode in ("lines", "merge2x2") and unit.has("detector/config/roi_y_size"):
            shape = (min(shape[0], int(unit.get("detector/config/roi_y_size"))), shape[1])
        return (shape[0], shape[1]), f"uint{int(unit.get('detector/config/bit_depth_image'))}"

    def frame_bytes(self, settings: Settings) -> int:
        """Counts compress to a quarter and better, as a rule."""
        unit = self._connected
        channels = 1
        for key in ("detector/config/threshold/2/mode", "detector/config/threshold/difference/mode"):
            channels += unit.has(key) and unit.get(key) == "enabled"
        plain = unit.get("detector/config/compression") == "none"
        return super().frame_bytes(settings) * channels // (1 if plain else 4)

    # --- a series ----------------------------------------------------------------------------------------------------

    def arm(self, series: Series) -> int:
        """The number that the unit gives the series."""
        self._given_up.clear()
        unit = self._connected
        state = self._ask_state()
        if state == "na":
            log.warning("the control unit %s: it is initialised", LOST[state])
            self._initialize()
            self._set_up_modules()
        elif state in ARMED:
            self._end(complete=False)
        else:
            self._refuse_lost(state)
        self._run = None
        plan = Plan.of(series.settings, series.live, self.trigger_exposure > 0)
        for name in DECISIVE:  # somebody may have set them by hand
            unit.read(f"detector/config/{name}")
        self._apply(series.settings, plan)
        self._tell_receiver(series)
        self._dropped = self._read_dropped()
        number = self._arm_command()
        if (state := self._ask_state()) not in ARMED:
            raise HardwareError(f"arm: the state is {state} and not ready{self._words_of_error(state)}")
        self._run = Run(plan, series.settings, self._fire)
        return number

    def _tell_receiver(self, series: Series) -> None:
        """File name and options, as the receiver wants them in the appendix of the start message."""
        info = self._info
        assert info is not None
        told = start_metadata(series, info, float(self._connected.get("detector/config/frame_time")))
        del told["detector"]  # the unit says more of itself
        if series.live:
            told["nframes"] = None
        text = json.dumps({"filename": series.filename, **told})
        if self._connected.get("stream/config/header_appendix") != text:
            self._connected.write("stream/config/header_appendix", text)

    def _arm_command(self) -> int:
        unit, limit = self._connected, self._options.arm_timeout
        answer = self._blocking(lambda: unit.connection.command(unit.path("detector/command/arm"), None, limit))
        number = answer.get("sequence id", answer.get("series id")) if isinstance(answer, dict) else None
        if type(number) is not int:
            raise HardwareError(f"arm: the answer {answer!r} has no sequence id")
        return number

    def start(self) -> None:
        if self._run is not None:
            self._looked = self._answered = time.monotonic()
            self._run.begin()

    def trigger(self) -> None:
        if self._run is None:
            raise HardwareError("software trigger refused: no series is armed")
        self._run.trigger(self.trigger_exposure)

    def frames_came(self, frames: int) -> None:
        if self._run is not None:
            self._run.came = max(self._run.came, frames)

    def _fire(self, exposure: float) -> None:
        """In the run's thread: one trigger, until its images are exposed."""
        unit, run = self._connected, self._run
        assert run is not None
        begun, plan = time.monotonic(), run.plan
        period = float(unit.get("detector/config/frame_time"))
        delay = (
            unit.get("detector/config/trigger_start_delay") if unit.has("detector/config/trigger_start_delay") else 0
        )
        value = exposure if plan.mode == "inte" else None
        lasts = (value or 0.0) + float(delay or 0.0) if plan.mode == "inte" else plan.nimages * period + float(delay)
        try:
            unit.connection.command(unit.path("detector/command/trigger"), value, lasts + TRIGGER_MARGIN)
        except Unreachable as exc:  # its web server lets go of long requests, the exposure goes on
            if run.stopped:
                return
            log.warning("%s; waiting for the end of the exposure", exc)
            self._wait_exposed(begun + lasts + TRIGGER_MARGIN, exc)
        if plan.mode != "inte" and time.monotonic() - begun < EARLY * lasts and not run.stopped:
            self._refuse_lost(self._ask_state())
        if plan.mode == "inte":  # it has returned at the beginning
            readout = float(unit.get("detector/config/detector_readout_time"))
            wait_until(time.monotonic() + lasts + readout, self._given_up)

    def _wait_exposed(self, deadline: float, why: Unreachable) -> None:
        """Until the state says that nothing is being exposed."""
        run = self._run
        while run is not None and not run.stopped:
            try:
                state = self._ask_state()
            except HardwareError:  # `status` counts how long
                state = "acquire"
            if state in ("ready", "idle", "configure"):
                return
            self._refuse_lost(state)
            if time.monotonic() > deadline:
                raise HardwareError(f"{why}; the state is still {state}")
            wait_until(time.monotonic() + LOOK, self._given_up)

    # --- the end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self._given_up.set()
        run = self._run
        if self._quick is None:
            return
        if run is None or run.stopped:
            if self._ask_state() in (*ARMED, "configure"):  # it is being armed, or that is somebody else's series
                self._end(complete=False)
            return
        complete = run.status.phase is Phase.DONE
        run.stop()
        run.finished = complete
        self._end(complete)
        if not run.leave(STOP_LIMIT):
            log.warning("the answer to the last trigger has not come, although the series is over")
            self._replace_connection().close()
        run.remark = self._dropped_since()

    def _end(self, complete: bool) -> None:
        """Disarm; what is under way is ended before: after the image in progress where that is soon."""
        if not complete and (state := self._ask_state()) in (*ARMED, "configure"):
            soon = self._connected.known("detector/config/frame_time").value < STOP_LIMIT / 4
            self._command("cancel" if soon and state == "acquire" else "abort")
        refused: Refused | None = None
        try:
            self._command("disarm")
        except Refused as exc:  # in the wrong state, or busy: the state decides
            refused = exc
        deadline, aborted = time.monotonic() + STOP_LIMIT, False
        while (state := self._ask_state()) in ARMED or state == "configure":
            if time.monotonic() > deadline:
                raise refused or HardwareError(f"the control unit is still in state {state} after disarm")
            if not aborted and time.monotonic() > deadline - STOP_LIMIT / 2:
                aborted = True
                self._command("abort")
                self._command("disarm")
            time.sleep(0.02)
        self._refuse_lost(state)

    def _refuse_lost(self, state: str) -> None:
        """HardwareError when nothing can be recorded in this state."""
        if state in LOST:
            raise HardwareError(f"the control unit {LOST[state]}{self._words_of_error(state)}")

    def _dropped_since(self) -> str:
        """A sentence when the stream has dropped messages in this series."""
        dropped = self._read_dropped()
        lost = dropped - self._dropped if dropped >= self._dropped else dropped
        if lost <= 0:
            return ""
        return (
            f"the control unit has dropped {lost} messages of the stream (stream/status/dropped): the receiver or the "
            "network is too slow"
        )

    def _read_dropped(self) -> int:
        unit = self._connected
        return int(unit.read("stream/status/dropped", self._quick).value) if unit.has("stream/status/dropped") else 0

    # --- the state ---------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        run, now = self._run, time.monotonic()
        if self._quick is None:
            return Status(Phase.IDLE)
        if run is not None and not run.stopped:
            if run.begun and now - self._looked >= LOOK and not run.failure:
                self._look_in_series(run, now)
            return run.status
        if now - self._looked >= LOOK * 0.9:
            self._looked = now
            if (state := self._ask_state()) in LOST:
                return Status(Phase.ERROR, message=f"the control unit {LOST[state]}{self._words_of_error(state)}")
        return run.status if run is not None else Status(Phase.IDLE)

    def _look_in_series(self, run: Run, now: float) -> None:
        self._looked = now
        try:
            state = self._ask_state()
        except HardwareError as exc:
            silent = time.monotonic() - self._answered
            if silent > self._options.patience:
                run.failure = run.failure or f"the control unit has not answered for {silent:.0f} s: {exc}"
            return
        self._answered = time.monotonic()
        if state in LOST:
            run.failure = run.failure or f"the control unit {LOST[state]}{self._words_of_error(state)}"
        elif state == "idle" and not run.plan.ours:
            run.finished = True

    def _ask_state(self) -> str:
        return str(self._connected.read(STATE, self._quickly, STATE_LIMIT).value)

    def _words_of_error(self, state: str) -> str:
        """What the unit says of its error, in its own words."""
        if state != "error":
            return ""
        try:
            told = self._connected.read("detector/status/error", self._quickly, STATE_LIMIT).value
        except HardwareError as exc:
            return f" ({exc})"
        words = "; ".join(map(str, told)) if isinstance(told, list) else str(told or "")
        return f": {words}" if words else ""

    @property
    def running(self) -> bool:
        """A series is armed: the unit is not to be asked for more than its state."""
        return self._run is not None and not self._run.stopped

    # --- requests ----------------------------------------------------------------------------------------------------

    def _command(self, name: str) -> None:
        """On the quick connection."""
        self._quickly.command(self._connected.path(f"detector/command/{name}"))

    def _blocking(self, ask: Callable[[], Any]) -> Any:
        """Ask in a thread of its own, so that a stop need not wait for the answer: arming takes up to minutes."""
        request = Request(ask, self._disarm_late)
        request.start()
        while request.is_alive():
            request.join(0.02)
            if self._given_up.is_set() and not request.leave(BROKEN_OFF_AFTER):
                self._replace_connection()
                raise HardwareError("broken off; the control unit may be busy with it for a while")
        return request.result()

    def _replace_connection(self) -> Connection:
        """The old one, which waits for an answer that nobody wants any more."""
        o, unit = self._options, self._connected
        old, unit.connection = unit.connection, Connection(o.host, o.port, o.timeout, self._transport)
        return old

    def _disarm_late(self) -> None:
        """What was given up has been done after all."""
        if self._quick is not None and self._run is None:
            self._command("disarm")

    # --- what the parameters ask for ---------------------------------------------------------------------------------

    def value(self, key: str, absent: Any) -> Any:
        """Of a key; what was last known in a series, when the unit is not to be asked; `absent` where it has none."""
        unit = self._connected
        if self.running:
            return unit.get(key) if key in unit else absent
        return unit.read(key).value if unit.has(key) else absent

    def choose(self, key: str, value: Any, name: str) -> None:
        """Set a key for the user, for good; ConfigError: not there, or not so, or not now."""
        if not self._not_in_series(name).has(key):
            raise ConfigError(f"{name}: this detector has no {key}")
        try:
            self._connected.set(key, value, NEARLY if key.endswith("_energy") or key.endswith("/energy") else 0.0)
        except ConfigError as exc:
            raise ConfigError(f"{name}: {exc}") from exc
        self._chosen.pop(key, None)
        self._chosen[key] = value

    def first(self, *keys: str) -> str:
        return self._connected.first(*keys)

    def expose_by_trigger(self, seconds: float) -> None:
        """Each software trigger says how long it exposes; 0: none does."""
        if seconds < 0:
            raise ConfigError(f"TriggerExposure: {seconds:g} s; give 0 or more")
        self.trigger_exposure = seconds

    def temperature(self) -> float:
        """degC; asked for every few seconds, and not in a series."""
        key = self.first("detector/status/temperature", "detector/status/board_000/th0_temp")
        unit, now = self._connected, time.monotonic()
        if not self.running and (now - self._felt > CLIMATE or key not in unit):
            self._felt = now
            if unit.has("detector/command/status_update"):  # API 1.6
                unit.connection.command(unit.path("detector/command/status_update"))
            return float(unit.read(key).value)
        return float(unit.get(key)) if key in unit else float("nan")

    def links(self) -> str:
        keys = self._connected.names("detector/status", "link_")
        return " ".join(str(self.value(key, "")) for key in keys)

    def save_array(self, name: str, path: str) -> None:
        """pixel_mask or flatfield into a file."""
        if path:
            unit = self._not_in_series(f"Save {name}")
            answer = unit.read(self._array_key(name), timeout=self._options.arm_timeout)
            eiger_arrays.save(path, eiger_arrays.from_json(answer.value))
        self.paths[f"save {name}"] = path

    def load_array(self, name: str, path: str) -> None:
        """The same the other way."""
        if path:
            unit = self._not_in_series(f"Load {name}")
            array = eiger_arrays.load(path)
            shape = tuple(int(unit.get(f"detector/config/{axis}_pixels_in_detector")) for axis in "yx")
            if array.shape != shape:
                raise ConfigError(f"{path}: {array.shape[0]} x {array.shape[1]} pixels; the detector has {shape}")
            unit.write(self._array_key(name), eiger_arrays.to_json(array, ARRAYS[name]), checked=False)
        self.paths[f"load {name}"] = path

    def _array_key(self, name: str) -> str:
        return self.first(f"detector/config/threshold/1/{name}", f"detector/config/{name}")

    def _not_in_series(self, what: str) -> Unit:
        if self.running:
            raise ConfigError(f"{what}: not while a series is armed; give the command Stop first")
        return self._connected

    def request(self, text: str) -> None:
        """`KEY` reads, `KEY = JSON` writes, `module/command/NAME [= JSON]` commands; `answer` is what comes back."""
        text = text.strip()
        if not text:
            self.answer = ""
            return
        key, equals, value = (part.strip() for part in text.partition("="))
        unit = self._connected
        path = unit.path(key)
        connection = self._quickly if self.running else unit.connection
        try:
            given = json.loads(value) if equals else None
        except ValueError:
            given = value
        try:
            if "/command/" in key:
                answer = connection.command(path, given, self._options.arm_timeout)
            elif equals:
                unit.write(key, given, checked=False, connection=connection)
                answer = unit.get(key)
                self._chosen[key] = given
            else:
                answer = connection.read(path)
        except Refused as exc:
            raise ConfigError(str(exc)) from exc
        self.answer = json.dumps(answer)


def _refuse_what_it_has_not(settings: Settings) -> None:
    if settings.roi is not None:
        raise ConfigError("Roi: an EIGER has named regions only; set 0, 0, 0, 0 and choose one by RoiMode")
    if settings.binning != (1, 1):
        raise ConfigError(f"Binning: {settings.binning[0]} x {settings.binning[1]}; an EIGER has none, only 1 x 1")
    if settings.rotation or settings.fliplr or settings.flipud:
        raise ConfigError(
            "Rotation, Fliplr, Flipud: the detector sends images as they are; let the receiver turn them (its "
            "transforms), and set these to 0 and False"
        )
