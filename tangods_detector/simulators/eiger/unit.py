"""The control unit: commands come from the threads of the REST side, one thread exposes and sends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import zmq

from tangods_detector.simulators.eiger import models, states, table
from tangods_detector.simulators.eiger.course import EDGE_MODES, Course, Exposure, Plan
from tangods_detector.simulators.eiger.failures import Failures, Luck
from tangods_detector.simulators.eiger.images import Picture, Pictures
from tangods_detector.simulators.eiger.monitor import Monitor
from tangods_detector.simulators.eiger.options import EigerOptions
from tangods_detector.simulators.eiger.outlet import Outlet
from tangods_detector.simulators.eiger.parameters import SLOW, Detector, Parameters, Refused, Setup, Status, Stream, now
from tangods_detector.simulators.eiger.sender import Sender, Series, messages_of, ulid
from tangods_detector.simulators.pulses import Pulses

log = logging.getLogger(__name__)

# s, times the speed; energy: what the largest detector needs
DELAYS = {"initialize": 240.0, "arm": 3.0, "energy": 10.0, "disarm": 0.1, "restart": 60.0}
SHORTEST_RESTART = 0.1  # s: a client must be able to notice it
BATCH = 32  # images between two looks at the orders
LOOK = 0.1  # s
RETRY = 0.005  # s between two attempts to send what waits
PEER_BYTES = 400_000_000  # that may wait in the socket of one peer


class ControlUnit:
    """`options` say what it is. `on_restart` is called when the connections have to drop."""

    def __init__(self, options: EigerOptions, on_restart: Callable[[], None] = lambda: None) -> None:
        self.options = options
        self.model = models.model(options.model, options.sensor)
        self.new = options.api != "1.6.0"
        self.on_restart = on_restart
        self.luck = Luck()
        self.sent: list[tuple[int, bytes]] = []  # in the last series
        self.detector = Detector(self.model, self.new, options.bit_depth)
        self.stream = Stream(table.module_config("stream", self.new), self.new)
        self.filewriter = Parameters(table.module_config("filewriter", self.new), self.new)
        self.monitor_config = Parameters(table.module_config("monitor", self.new), self.new)
        self.monitor = Monitor(self.monitor_config)
        self._sender = Sender(self.luck, self.monitor, options.keep_sent)
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
        self._pulses = Pulses()
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

    @property
    def failures(self) -> Failures:
        """What goes wrong next."""
        return self.luck.next

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
            "stream": {"dropped": lambda: self._sender.dropped, "state": self._stream_state},
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
                self._sender.dropped = 0
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
        self._end_former()
        with self._cv:
            self._check_state("arm")
            setup, wait = self._set_up()
            self._phase = "configure"
            self._interrupted.clear()
        interrupted = self._interrupted.wait(wait)
        cbor = self.new and self.stream.values["format"] == "cbor"
        pictures = self._pictures.encoded(setup, str(setup.values["compression"]), raw_lz4=not cbor)
        with self._cv:
            if self._phase != "configure":
                raise Refused(400, f"arm was interrupted, the state is {self._phase}")
            self._phase = "idle"
            if interrupted:
                raise Refused(400, "arm was aborted")
            series = self._open(setup, pictures, cbor)
        series.started.wait(10)
        return self._answer()

    def _end_former(self) -> None:
        """A series that is complete and was not disarmed."""
        with self._cv:
            self._check_state("arm")
            self._end_now()
            former = self._series
        if former is not None:
            former.over.wait(10)

    def _set_up(self) -> tuple[Setup, float]:
        """What the series is taken with, and how long arming takes."""
        depth, wait = self.failures.take("bit_depth"), self.failures.take("arm_seconds")
        for name, wished in (("bit_depth", depth), ("arm_seconds", wait)):
            if wished:
                self.luck.note(f"{name} {wished:g}")
        self.detector.bit_depth = depth or self.options.bit_depth
        return self.detector.arm(), wait or DELAYS["arm"] * self.options.speed

    def _open(self, setup: Setup, pictures: tuple[Picture, ...], cbor: bool) -> Series:
        """The new series; its start message is on its way."""
        self._series_id += 1
        self._unique = ulid()
        told = self.stream.values
        messages = None
        if told["mode"] == "enabled":
            messages = messages_of(self._series_id, self._unique, setup, pictures, told, cbor)
        course = Course(Plan.of(setup.values, self.model.readout_time))
        series = Series(self._series_id, course, pictures, messages, self._outlets["v2" if cbor else "v1"])
        self._series = series
        self.sent = series.sent
        self._pulses.clear()
        self._cv.notify_all()
        return series

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
                    self.luck.note("no_end")
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
            series.silent = series.aborted = True
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
                self._sender.dropped = 0
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
            skipped = min(n, self.failures.skip_edges)
            self.failures.skip_edges -= skipped
            self.luck.happened += ["skip_edges"] * skipped
            self._pulses.add(time.monotonic(), n - skipped, width, period)
            self._cv.notify_all()

    def fail(self, failures: Failures) -> None:
        """Instead of what is still pending."""
        with self._cv:
            self.luck.next = failures
            if failures.restart:
                failures.restart = False
                self.luck.note("restart")
                self._restart()
            if failures.error and failures.error_at is None:
                self._fall(failures.take("error"))

    def _fall(self, text: str) -> None:
        self.luck.note(f"error: {text}")
        self._errors = [text]
        self._phase = "error"
        self._pulses.clear()
        if self._series is not None:
            self._series.course.stop(time.monotonic())
            self._series.course.discard()
        self._cv.notify_all()

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
        except Exception as exc:
            log.exception("the thread that sends has failed")
            with self._cv:
                self._closing = True  # nobody waits for it any more
                self._fall(f"Internal error of the simulator: {exc!r}")
        finally:
            for outlet in self._outlets.values():
                outlet.close()
            context.destroy(linger=0)

    def _turn(self) -> None:
        with self._cv:
            clock = time.monotonic()
            series = self._series
            if series is not None:
                self._pulses.give(series.course, clock)
                if "ntriggers_skipped" in self.detector.keys:
                    self.detector.values["ntriggers_skipped"] = series.course.skipped
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
            self._send(series, exposures, finished)
        for _, former, images in late:
            for exposure in images:
                self.luck.note(f"late {exposure.number}")
                self._sender.put_image(former, exposure)
        if not exposures and not finished:
            self._sleep()

    def _send(self, series: Series, exposures: list[Exposure], finished: bool) -> None:
        if not series.started.is_set():
            self._sender.start(series)
        for exposure in exposures:
            what = self._sender.image(series, exposure)
            if what:
                with self._cv:
                    if what == "restart":
                        self._restart()
                    else:
                        self._fall(self.failures.take("error"))
                return
        if finished:
            self._sender.end(series)
            with self._cv:
                if self._series is series:
                    self._series = None
                series.over.set()
                self._cv.notify_all()

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
                times += [at for at in (series.course.next_at(), self._pulses.next_at(series.course)) if at is not None]
            clock = time.monotonic()
            until = min(times, default=clock + LOOK)
            self._cv.wait(max(0.0, min(until - clock, RETRY if waiting else LOOK)))


def _format_first(key: str) -> tuple[bool, str]:
    """What an appendix may be depends on it."""
    return key != "format", key
