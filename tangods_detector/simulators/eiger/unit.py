"""The control unit: commands come from the threads of the REST side, one thread exposes and sends."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

import zmq

from tangods_detector.simulators.eiger import models, states, table
from tangods_detector.simulators.eiger.course import EDGE_MODES, Course, Exposure, Plan
from tangods_detector.simulators.eiger.failures import Failures
from tangods_detector.simulators.eiger.images import Picture, Pictures
from tangods_detector.simulators.eiger.monitor import Monitor
from tangods_detector.simulators.eiger.options import EigerOptions
from tangods_detector.simulators.eiger.outlet import Outlet
from tangods_detector.simulators.eiger.parameters import SLOW, Detector, Parameters, Refused, Status, Stream, now
from tangods_detector.simulators.eiger.stream1 import Series1
from tangods_detector.simulators.eiger.stream2 import Series2

log = logging.getLogger(__name__)

# s, times the speed; energy: what the largest detector needs
DELAYS = {"initialize": 240.0, "arm": 3.0, "energy": 10.0, "disarm": 0.1, "restart": 60.0}
SHORTEST_RESTART = 0.1  # s: a client must be able to notice it
BATCH = 32  # images between two looks at the orders
LOOK = 0.1  # s
RETRY = 0.005  # s between two attempts to send what waits
STALE = 41  # series id of stale images before the first series
PEER_BYTES = 400_000_000  # that may wait in the socket of one peer
BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass
class Pulse:
    """An external edge. `at` None: as soon as the detector is free after `asked`."""

    at: float | None
    asked: float
    width: float


class Series:
    """One arm. What follows `over` is history."""

    def __init__(self, number: int, course: Course, messages: Series1 | Series2 | None, outlet: Outlet | None) -> None:
        self.id = number
        self.course = course
        self.messages = messages
        self.outlet = outlet
        self.pictures: tuple[Picture, ...] = ()
        self.started = threading.Event()  # the start message is sent
        self.ending = False
        self.silent = False  # no end message
        self.aborted = False
        self.over = threading.Event()
        self.offset: float | None = None  # s to add for the time since the first exposure
        self.sent: list[tuple[int, bytes]] = []
        self.held: list[tuple[list[Any], int, tuple[bytes, ...]]] = []  # sent after the next image


class ControlUnit:
    """`options` say what it is. `on_restart` is called when the connections have to drop."""

    def __init__(self, options: EigerOptions, on_restart: Callable[[], None] = lambda: None) -> None:
        self.options = options
        self.model = models.model(options.model, options.sensor)
        self.new = options.api != "1.6.0"
        self.on_restart = on_restart
        self.failures = Failures()
        self.happened: list[str] = []  # failures that took place, oldest first
        self.sent: list[tuple[int, bytes]] = []  # in the last series
        self.detector = Detector(self.model, self.new, options.bit_depth)
        self.stream = Stream(table.module_config("stream", self.new), self.new)
        self.filewriter = Parameters(table.module_config("filewriter", self.new), self.new)
        self.monitor_config = Parameters(table.module_config("monitor", self.new), self.new)
        self.monitor = Monitor(self.monitor_config)
        self.dropped = 0
        self._pictures = Pictures(self.model, options.images)
        self._cv = threading.Condition()
        self._phase: str = options.state
        self._errors: list[str] = []
        self._series: Series | None = None
        self._series_id = 0
        self._unique = ""
        self._interrupted = threading.Event()  # ends a slow arm or energy
        self._high_voltage_at = 0.0
        self._down_until = 0.0
        self._pulses: deque[Pulse] = deque()
        self._late: list[tuple[float, Series, list[Exposure]]] = []
        self._reopen = False
        self._closing = False
        self._outlets: dict[str, Outlet] = {}
        self._opened = threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="eiger stream", daemon=True)
        self.status = self._statuses()

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The sockets are bound when it returns."""
        self._thread.start()
        self._opened.wait(10)
        if self._problem is not None:
            raise self._problem

    def close(self) -> None:
        with self._cv:
            self._closing = True
            self._interrupted.set()
            self._end_now(silent=True)
            self._cv.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)

    def endpoint(self, which: str) -> str:
        return self._outlets[which].endpoint

    # --- states ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        with self._cv:
            series = self._series
            if self._phase != "idle" or series is None:
                return self._phase
            clock = time.monotonic()
            if series.ending:
                return "idle" if series.course.next_at() is None else "acquire"
            if series.course.busy(clock):
                return "acquire"
            return "idle" if series.course.complete(clock) else "ready"

    @property
    def down(self) -> bool:
        """It restarts: nobody answers."""
        return time.monotonic() < self._down_until

    def _statuses(self) -> dict[str, Status]:
        fixed = {"error": lambda: list(self._errors), "state": lambda: self.state, "time": now}
        high_voltage = {"high_voltage/state": lambda: self._high_voltage(), "series_unique_id": lambda: self._unique}
        monitor = self.monitor
        told: dict[str, dict[str, Callable[[], Any]]] = {
            "stream": {"dropped": lambda: self.dropped, "state": self._stream_state},
            "filewriter": {"state": self._writer_state},
            "monitor": {
                "buffer_free": lambda: monitor.free,
                "dropped": lambda: monitor.dropped,
                "monitor_image_number": lambda: monitor.last,
                "state": lambda: monitor.state,
            },
            "system": {},
        }
        made = {name: Status(table.module_status(name, self.new), self.new, live) for name, live in told.items()}
        return {"detector": Status(table.detector_status(self.model, self.new), self.new, fixed | high_voltage), **made}

    def _stream_state(self) -> str:
        if self.stream.values["mode"] != "enabled":
            return "disabled"
        return "acquire" if self._series is not None else "ready"

    def _writer_state(self) -> str:
        if self.filewriter.values["mode"] != "enabled":
            return "disabled"
        return "acquire" if self._series is not None else "ready"

    def _high_voltage(self) -> str:
        return "READY" if time.monotonic() >= self._high_voltage_at else "RAMPING"

    # --- parameters --------------------------------------------------------------------------------------------------

    def write(self, name: str, value: Any) -> list[str]:
        """Of the detector; new energies take their time."""
        with self._cv:
            state = self.state
            if name in self.detector.keys and state not in states.WRITABLE:
                raise Refused(400, f"Parameter {name} cannot be written in state {state}")
            changed = self.detector.write(name, value)
            if not changed or name not in SLOW or state != "idle":
                return changed
            self._phase = "configure"
            self._interrupted.clear()
        self._interrupted.wait(DELAYS["energy"] * self.options.speed)
        self._back_to_idle()
        return changed

    def write_stream(self, values: dict[str, Any]) -> list[str]:
        """One or several keys; none is written when one is refused."""
        with self._cv:
            before = dict(self.stream.values)
            try:
                changed = [
                    name for key in sorted(values, key=_format_first) for name in self.stream.write(key, values[key])
                ]
            except Refused:
                self.stream.values = before
                raise
            if "mode" in changed and self.stream.values["mode"] == "enabled":
                self.dropped = 0
            return sorted(changed)

    def _back_to_idle(self) -> None:
        with self._cv:
            if self._phase == "configure":
                self._phase = "idle"

    # --- commands ----------------------------------------------------------------------------------------------------

    def command(self, name: str, value: Any = None) -> dict[str, Any]:
        """Of the detector; blocks as the real one does. Refused: unknown, or in a wrong state."""
        if name not in table.detector_commands(self.model, self.new):
            raise Refused(404, f"Command {name} does not exist")
        with self._cv:
            self._check_state(name)
        do: dict[str, Callable[[], dict[str, Any]]] = {
            "initialize": self._initialize,
            "arm": self._arm,
            "trigger": lambda: self._trigger(value),
            "disarm": lambda: self._end("disarm"),
            "cancel": lambda: self._end("cancel"),
            "abort": lambda: self._end("abort"),
            "wait": self._wait,
            "hv_reset": lambda: self._hv_reset(value),
            "status_update": dict,
        }
        return do[name]()

    def _check_state(self, name: str) -> None:
        state = self.state
        if not states.allowed(state, name):
            raise Refused(400, f"Command {name} is not allowed in state {state}")

    def _initialize(self) -> dict[str, Any]:
        with self._cv:
            self._check_state("initialize")
            self._end_now(silent=True)
            self._phase = "initialize"
            self._errors = []
            self._interrupted.clear()
        self._interrupted.wait(DELAYS["initialize"] * self.options.speed)
        with self._cv:
            if self._phase == "initialize":
                self.detector.reset()
                self._series_id = 0
                self._unique = ""
                self._phase = "idle"
        return {}

    def _arm(self) -> dict[str, Any]:
        with self._cv:
            self._check_state("arm")
            self._end_now()  # of a series that is complete and was not disarmed
            former = self._series
        if former is not None:
            former.over.wait(10)
        with self._cv:
            self._check_state("arm")
            depth = self.failures.take("bit_depth")
            self.detector.bit_depth = depth or self.options.bit_depth
            if depth:
                self._note(f"bit_depth {depth}")
            setup = self.detector.arm()
            self._phase = "configure"
            self._interrupted.clear()
            wait = self.failures.take("arm_seconds")
            if wait:
                self._note(f"arm_seconds {wait:g}")
        interrupted = self._interrupted.wait(wait or DELAYS["arm"] * self.options.speed)
        cbor = self.new and self.stream.values["format"] == "cbor"
        values = setup.values
        pictures = self._pictures.encoded(setup, str(values["compression"]), raw_lz4=not cbor)
        course = Course(
            Plan(
                mode=values["trigger_mode"],
                nimages=values["nimages"],
                ntrigger=values["ntrigger"],
                count_time=values["count_time"],
                frame_time=values["frame_time"],
                gap=self.model.readout_time,
                delay=values.get("trigger_start_delay", 0.0),
                nexpi=values.get("nexpi", 1),
                double=values.get("extg_mode") == "double",
            )
        )
        with self._cv:
            if self._phase != "configure":
                raise Refused(400, f"arm was interrupted, the state is {self._phase}")
            self._phase = "idle"
            if interrupted:
                raise Refused(400, "arm was aborted")
            self._series_id += 1
            self._unique = ulid()
            messages: Series1 | Series2 | None = None
            told = self.stream.values
            detail, appendix, image_appendix = told["header_detail"], told["header_appendix"], told["image_appendix"]
            if told["mode"] == "enabled":
                if cbor:
                    date = values["data_collection_date"]
                    messages = Series2(
                        self._series_id, self._unique, setup, pictures, detail, appendix, image_appendix, date
                    )
                else:
                    texts = [text if isinstance(text, str) else "" for text in (appendix, image_appendix)]
                    messages = Series1(self._series_id, setup, pictures, detail, *texts)
            outlet = self._outlets["v2" if cbor else "v1"] if messages else None
            series = self._series = Series(self._series_id, course, messages, outlet)
            series.pictures = pictures
            self.sent = series.sent
            self._pulses.clear()
            self._cv.notify_all()
        series.started.wait(10)
        return self._answer()

    def _trigger(self, value: Any) -> dict[str, Any]:
        with self._cv:
            self._check_state("trigger")
            series = self._series
            assert series is not None  # the state is ready
            mode = series.course.plan.mode
            if mode in EDGE_MODES:
                raise Refused(400, f"Command trigger is not allowed in trigger_mode {mode}")
            if value is not None and (mode != "inte" or type(value) not in (int, float) or not 0 < value <= 3600):
                raise Refused(400, f"trigger in {mode}: {value!r} is no count time")
            begun = time.monotonic()
            if not series.course.trigger(begun, value):
                raise Refused(400, "Command trigger is not possible now")
            self._cv.notify_all()
            if mode == "ints":
                while not series.over.is_set() and not series.course.stopped and not self._closing:
                    left = series.course.busy_until - time.monotonic()
                    if left <= 0 or self._phase != "idle":
                        break
                    self._cv.wait(left)
        return {}

    def _end(self, how: str) -> dict[str, Any]:
        """disarm, cancel, abort: the end message is on its way when it returns."""
        with self._cv:
            if self._phase == "configure":  # arming, or a new energy
                self._interrupted.set()
                return self._answer()
            self._check_state(how)
            series = self._series
            if series is not None and not series.ending:
                clock = time.monotonic()
                series.course.stop(clock, finish=how == "cancel")
                series.ending = True
                if how == "abort":
                    self._abort(series, clock)
                if self.failures.take("no_end"):
                    series.silent = True
                    self._note("no_end")
                self._cv.notify_all()
        if series is not None:
            while not series.over.wait(LOOK) and not self._closing:
                pass
        if how == "disarm":
            time.sleep(DELAYS["disarm"] * self.options.speed)
        return self._answer()

    def _abort(self, series: Series, clock: float) -> None:
        first = series.course.taken
        series.aborted = True
        series.course.discard()
        late = self.failures.take("late")
        if late and series.messages:
            plan = series.course.plan
            images = [Exposure(first + k, clock, clock + plan.count_time, plan.count_time) for k in range(late)]
            self._late.append((clock + self.failures.late_seconds, series, images))

    def _end_now(self, silent: bool = False) -> None:
        """Whatever series there is, is over; with the lock held."""
        self._pulses.clear()
        series = self._series
        if series is None:
            return
        series.course.stop(time.monotonic())
        series.ending = True
        if silent:
            series.silent = True
            series.course.discard()
        self._cv.notify_all()

    def _wait(self) -> dict[str, Any]:
        """Until the series is over; as unreliable as the real one."""
        with self._cv:
            while self.state == "acquire" and not self._closing:
                self._cv.wait(LOOK)
        return {}

    def _hv_reset(self, value: Any) -> dict[str, Any]:
        if type(value) not in (int, float) or not 0 <= value <= 600:
            raise Refused(400, f"hv_reset: {value!r} is no time in seconds")
        self._high_voltage_at = time.monotonic() + value * self.options.speed
        return {}

    def _answer(self) -> dict[str, Any]:
        return {self.options.id_key: self._series_id}

    def module_command(self, module: str, name: str) -> dict[str, Any]:
        if name not in table.MODULE_COMMANDS.get(module, ()):
            raise Refused(404, f"Command {name} of {module} does not exist")
        with self._cv:
            if module == "system":
                self._restart()
            elif module == "stream":
                self.stream.reset()
                self.dropped = 0
            elif module == "monitor":
                self.monitor.clear()
                if name == "initialize":
                    self.monitor_config.reset()
            elif name == "initialize":
                self.filewriter.reset()
        return {}

    def _restart(self) -> None:
        """The series is gone without an end message, the connections drop, the state is `na`."""
        self._end_now(silent=True)
        self._interrupted.set()
        self._phase = "na"
        self._errors = []
        self._reopen = True
        self._down_until = time.monotonic() + max(SHORTEST_RESTART, DELAYS["restart"] * self.options.speed)
        for module in (self.detector, self.stream, self.filewriter, self.monitor_config):
            module.reset()
        self._cv.notify_all()
        self.on_restart()

    # --- from the bench ----------------------------------------------------------------------------------------------

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> None:
        """`n` external edges, or gates of `width` s, each `period` s after the one before; None: as soon as the
        detector is free. What comes when it is not armed for edges is ignored."""
        with self._cv:
            series = self._series
            if series is None or series.ending or series.course.plan.mode not in EDGE_MODES:
                return
            asked = time.monotonic()
            for k in range(n):
                if self.failures.skip_edges:
                    self.failures.skip_edges -= 1
                    self._note("skip_edges")
                    continue
                self._pulses.append(Pulse(None if period is None else asked + k * period, asked, width))
            self._cv.notify_all()

    def fail(self, failures: Failures) -> None:
        """Instead of what is still pending."""
        with self._cv:
            self.failures = failures
            if failures.restart:
                failures.restart = False
                self._note("restart")
                self._restart()
            if failures.error and failures.error_at is None:
                self._fall(failures.take("error"))

    def _fall(self, text: str) -> None:
        self._note(f"error: {text}")
        self._errors = [text]
        self._phase = "error"
        self._pulses.clear()
        if self._series is not None:
            self._series.course.stop(time.monotonic())
            self._series.course.discard()
        self._cv.notify_all()

    def _note(self, what: str) -> None:
        self.happened.append(what)

    # --- the thread that exposes and sends ---------------------------------------------------------------------------

    def _run(self) -> None:
        options = self.options
        context = zmq.Context()
        peer = max(4, min(200, PEER_BYTES // (4 * self.model.width * self.model.height)))
        try:
            for name, port in (("v1", options.stream_port), ("v2", options.cbor_port)):
                self._outlets[name] = Outlet(context, options.host, port, options.hwm, peer)
        except Exception as exc:
            self._problem = exc
        self._opened.set()
        try:
            while self._problem is None and not self._closing:
                self._turn()
        finally:
            for outlet in self._outlets.values():
                outlet.close()
            context.destroy(linger=0)

    def _turn(self) -> None:
        with self._cv:
            clock = time.monotonic()
            series = self._series
            if series is not None:
                self._take_pulses(series, clock)
                if self.options.end_message == "complete" and series.course.complete(clock):
                    series.ending = True
            exposures = list(islice(series.course.due(clock), BATCH)) if series is not None else []
            finished = series is not None and series.ending and series.course.next_at() is None
            late = [entry for entry in self._late if entry[0] <= clock]
            self._late = [entry for entry in self._late if entry[0] > clock]
        if self._reopen:
            self._reopen = False
            for outlet in self._outlets.values():
                outlet.reopen()
        for outlet in self._outlets.values():
            if outlet.waiting:
                outlet.flush()
        if series is not None:
            if not series.started.is_set():
                self._send_start(series)
            for exposure in exposures:
                self._send_image(series, exposure)
            if finished:
                self._send_end(series)
        for _, former, images in late:
            for exposure in images:
                self._note(f"late {exposure.number}")
                self._put_image(former, exposure)
        if not exposures and not finished:
            self._sleep()

    def _sleep(self) -> None:
        with self._cv:
            if self._closing:
                return
            waiting = any(outlet.waiting for outlet in self._outlets.values())
            times = [entry[0] for entry in self._late]
            series = self._series
            if series is not None:
                if not series.started.is_set() or (series.ending and series.course.next_at() is None):
                    return
                times += [at for at in (series.course.next_at(), self._next_pulse(series)) if at is not None]
            clock = time.monotonic()
            until = min(times, default=clock + LOOK)
            self._cv.wait(max(0.0, min(until - clock, RETRY if waiting else LOOK)))

    def _next_pulse(self, series: Series) -> float | None:
        return self._pulse_time(series, self._pulses[0]) if self._pulses else None

    @staticmethod
    def _pulse_time(series: Series, pulse: Pulse) -> float:
        return max(pulse.asked, series.course.free_at()) if pulse.at is None else pulse.at

    def _take_pulses(self, series: Series, clock: float) -> None:
        while self._pulses and self._pulse_time(series, self._pulses[0]) <= clock:
            pulse = self._pulses.popleft()
            series.course.edge(self._pulse_time(series, pulse), pulse.width)
            if series.course.stopped or series.course.all_triggers:
                self._pulses.clear()
        if "ntriggers_skipped" in self.detector.keys:
            self.detector.values["ntriggers_skipped"] = series.course.skipped

    def _send_start(self, series: Series) -> None:
        stale = self.failures.take("stale")
        if series.messages is not None and series.outlet is not None:
            if stale:
                self._send_stale(series, stale)
            series.outlet.put(series.messages.start(), series.messages.joined)
        series.started.set()

    def _send_stale(self, series: Series, n: int) -> None:
        """Images as an aborted series left them."""
        former = series.id - 1 or STALE
        for k in range(n):
            self._note(f"stale image {k} of series {former}")
            exposure = Exposure(k, time.monotonic(), time.monotonic(), 0.001)
            assert series.messages is not None and series.outlet is not None
            parts, _ = series.messages.of_series(former).image(exposure, 0.0)
            series.outlet.put(parts, series.messages.joined, True)

    def _send_image(self, series: Series, exposure: Exposure) -> None:
        if series.aborted or (series.ending and series.silent):
            return
        number = exposure.number
        if self.monitor.enabled:
            self.monitor.put(series.id, number, series.pictures[number % len(series.pictures)].arrays[0])
        if series.messages is None:
            return
        if self.failures.of_images():
            with self._cv:
                self._send_with_failures(series, exposure)
        else:
            self._put_image(series, exposure)

    def _send_with_failures(self, series: Series, exposure: Exposure) -> None:
        failures, number = self.failures, exposure.number
        if failures.restart_at == number:
            failures.restart_at = None
            self._note(f"restart at {number}")
            self._restart()
            return
        if failures.error_at == number:
            failures.error_at = None
            self._fall(failures.take("error"))
            return
        if failures.take_image("lose", number):
            self._note(f"lose {number}")
            return
        if failures.full_queue:
            failures.full_queue -= 1
            self._note(f"full_queue {number}")
            self.dropped += 1
            return
        fault = ""
        for name in ("corrupt", "wrong_size", "missing_part"):
            if failures.take_image(name, number):
                fault = name
                self._note(f"{name} {number}")
        if failures.take_image("reorder", number):
            self._note(f"reorder {number}")
            self._put_image(series, exposure, fault, hold=True)
            return
        self._put_image(series, exposure, fault)
        if failures.take_image("duplicate", number):
            self._note(f"duplicate {number}")
            self._put_image(series, exposure, fault)

    def _put_image(self, series: Series, exposure: Exposure, fault: str = "", hold: bool = False) -> None:
        messages = series.messages
        assert messages is not None and series.outlet is not None
        if series.offset is None:
            series.offset = 0.0 if isinstance(messages, Series1) else -exposure.start
            if isinstance(messages, Series2):
                began = datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - exposure.start)
                messages.date = began.isoformat(timespec="microseconds")
        parts, blobs = messages.image(exposure, series.offset, fault)
        if hold:
            series.held.append((parts, exposure.number, blobs))
            return
        self._put(series, parts, exposure.number, blobs)
        for held in series.held:
            self._put(series, *held)
        series.held.clear()

    def _put(self, series: Series, parts: list[Any], number: int, blobs: tuple[bytes, ...]) -> None:
        assert series.messages is not None and series.outlet is not None
        if not series.outlet.put(parts, series.messages.joined, True):
            self.dropped += 1
        elif self.options.keep_sent:
            series.sent += [(number, blob) for blob in blobs]

    def _send_end(self, series: Series) -> None:
        if series.messages is not None and series.outlet is not None:
            for held in series.held:
                self._put(series, *held)
            if series.aborted:
                series.outlet.discard_images()
            if not series.silent:
                series.outlet.put(series.messages.end(), series.messages.joined)
        with self._cv:
            if self._series is series:
                self._series = None
            series.started.set()
            series.over.set()
            self._cv.notify_all()


def _format_first(key: str) -> tuple[bool, str]:
    """What an appendix may be depends on it."""
    return key != "format", key


def ulid() -> str:
    """A sortable id: milliseconds, then chance."""
    number = (time.time_ns() // 1_000_000) << 80 | random.getrandbits(80)
    return "".join(BASE32[number >> 5 * k & 31] for k in range(25, -1, -1))
