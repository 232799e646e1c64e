"""The simulated unit: variables, commands, states with delays, and the thread that exposes and sends."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from tangods_detector import blosc
from tangods_detector.simulators.pulses import Pulses
from tangods_detector.simulators.xspd import layouts, outlet
from tangods_detector.simulators.xspd.course import Course, Plan
from tangods_detector.simulators.xspd.failures import Failures
from tangods_detector.simulators.xspd.layouts import Drawing
from tangods_detector.simulators.xspd.options import XspdOptions
from tangods_detector.simulators.xspd.variables import COMMANDS, RESIZING, Refused, Variables
from tangods_receiver.errors import HardwareError

T = TypeVar("T")

BUSY_AFTER = 0.15  # s from `start` until the modules are busy
READY_AFTER = 5.0  # s that a reset takes
STOP_AFTER = 0.1  # s that a stop takes
ALLOCATION = 2.0  # s until the RAM is allocated anew
VOLTAGE = {"Si": 0.0, "GaAs": 300.0, "CdTe": 298.0}  # V
ROLL = 1 << 24  # where the counter of the hardware begins anew
START_LIMIT = 10.0  # s
IDLE = 0.5  # s that the thread sleeps at most


class Unit:
    """All public methods may be called from any thread. Times are those of `time.monotonic`."""

    def __init__(self, options: XspdOptions) -> None:
        self.options = options
        shape = layouts.module_shape(options)
        everything = layouts.layout(options.layout, shape)
        self.places = layouts.chosen(everything, options.modules)
        self._everything = everything
        self._combined = options.ports == "combined"
        self.ports = 1 if self._combined else len(self.places)
        self.variables = Variables(len(self.places), self.ports)
        self.failures = Failures()
        self.happened: list[str] = []
        self.lost: dict[int, list[int]] = {}  # images of each module (of the layout) in the last acquisition
        self.sent = 0  # messages since the beginning
        self._wake = threading.Condition(threading.RLock())
        self._closing = False
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._problem: Exception | None = None
        self.data_ports: list[int] = []
        self._course: Course | None = None
        self._pulses = Pulses()
        self._waiting = outlet.Waiting()
        self._drawing: Drawing | None = None
        self._chance = random.Random()
        self._ready_at = 0.0 if options.state == "ready" else math.inf
        self._busy_at = self._stopping_until = self._ram_at = self._volts_from = 0.0
        self._volts_until = 0.0
        self._restarting = False  # when all frames that are exposed are sent
        self._counter = 0  # of the hardware, before the first frame of the acquisition
        self._triggers = 0
        self._set_up()

    def _set_up(self) -> None:
        values, options = self.variables.values, self.options
        values["lambda/roi_rows"] = options.chip
        for k, place in enumerate(self.places, 1):
            values[f"lambda/{k}/position"] = [float(place.x), float(place.y), 0.0]
            values[f"lambda/{k}/rotation"] = [float(place.rotation), 0.0, 0.0]
            values[f"lambda/{k}/max_frames"] = options.max_frames
            values[f"lambda/{k}/voltage"] = VOLTAGE[options.sensor]
            values[f"lambda/{k}/chip_ids"] = [
                f"w{chip}-A{place.number:02},SIM,0x{place.number:04x}{chip:04x}" for chip in range(1, 13)
            ]
            if options.sensor == "Si":
                values[f"lambda/{k}/features"] = [f for f in values[f"lambda/{k}/features"] if f != "FEAT_HV"]
        self._resize()

    # --- the thread --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """HardwareError: a data port is taken."""
        self._thread = threading.Thread(target=self._run, name="xspd frames", daemon=True)
        self._thread.start()
        self._started.wait(START_LIMIT)
        if self._problem is not None:
            self._thread.join(START_LIMIT)
            raise self._problem

    def close(self) -> None:
        """Safe twice."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(START_LIMIT)
            self._thread = None

    def _run(self) -> None:
        options = self.options
        try:
            ports = outlet.Ports(options.host, self.ports, options.first_data_port, options.hwm)
            self.data_ports = ports.numbers
        except HardwareError as exc:
            self._problem = exc
            return
        finally:
            self._started.set()
        try:
            while not self._closing:
                self._turn(ports)
        finally:
            ports.close()

    def _turn(self, ports: outlet.Ports) -> None:
        with self._wake:
            now = time.monotonic()
            self._expose(now)
            job = self._waiting.pop(now)
            if self._restarting and self._waiting.next_at() is None and job is None:
                self._restart(now)
            if job is None:
                self._wake.wait(max(0.0, min(IDLE, self._next_at(now) - now)))
                return
            message = self._message(job)
        if message is not None:
            ports.send(job.port, *message)
            self.sent += 1

    def _next_at(self, now: float) -> float:
        course = self._course
        times = [self._waiting.next_at()]
        if course is not None and not course.complete:
            times += [course.next_at(), self._busy_at if now < self._busy_at else None]
            if now >= self._busy_at:
                times.append(self._pulses.next_at(course))
        return min((at for at in times if at is not None), default=math.inf)

    def _expose(self, now: float) -> None:
        """What is over by now waits to be sent."""
        course, failures = self._course, self.failures
        if course is None or now < self._busy_at:
            return
        while (at := self._pulses.next_at(course)) is not None and at <= now:
            for exposure in course.due(at):
                self._hand_out(exposure.number, exposure.stop)
            self._pulses.give(course, at)
        for exposure in course.due(now):
            if failures.restart_at == exposure.number:
                failures.restart_at, self._restarting = None, True
                course.stop()
                return
            self._hand_out(exposure.number, exposure.stop)

    def _hand_out(self, exposure: int, over: float) -> None:
        assert self._course is not None
        for counter in range(self._course.plan.counters):
            number = exposure * self._course.plan.counters + counter
            there = [k for k, place in enumerate(self.places) if not self._is_lost(place.number, number)]
            late = [self._late(place.number) for place in self.places]
            if self._combined:
                broken = len(there) < len(self.places) or any(
                    self._broken(self.places[k].number, number) for k in there
                )
                if there:
                    self._waiting.add(over + max(late), 0, tuple(there), number, counter, broken)
                continue
            for k in there:
                broken = self._broken(self.places[k].number, number)
                self._waiting.add(over + late[k], k, (k,), number, counter, broken)

    def _late(self, module: int) -> float:
        failures = self.failures
        late = failures.lag.get(module, 0.0)
        return late + self._chance.random() * failures.jitter if failures.jitter else late

    def _is_lost(self, module: int, number: int) -> bool:
        f = self.failures
        silent = f.silent.get(module)
        lost = (
            (silent is not None and number >= silent)
            or number in f.lose.get(module, ())
            or f.drop_at <= number < f.drop_at + f.drop
            or (module in f.lose_share and self._chance_of(module, number) < f.lose_share[module])
        )
        if lost:
            self.lost.setdefault(module, []).append(number)
        return lost

    def _chance_of(self, module: int, number: int) -> float:
        """The same for the same seed, whatever else happens."""
        return random.Random(self.failures.share_seed * 1_000_003 + module * 10_007 + number * 101).random()

    def _broken(self, module: int, number: int) -> bool:
        return number in self.failures.incomplete.get(module, ())

    def _message(self, job: outlet.Job) -> tuple[bytes, Any] | None:
        drawing, values = self._drawing, self.variables.values
        if drawing is None:
            return None
        if not self._combined:
            image = drawing.module(job.modules[0], job.number, job.counter)
            if job.incomplete:
                image[len(image) // 2 :] = 0
        else:
            image = drawing.whole(job.number, job.counter)
            for k, place in enumerate(self.places):
                if k not in job.modules:
                    layouts.view(image, place, drawing.shape)[:] = 0
        of = "lambda" if self._combined else f"lambda/{job.modules[0] + 1}"
        how = values[f"{of}/compressor"], values[f"{of}/compression_level"], values[f"{of}/shuffle_mode"]
        data = outlet.packed(np.ascontiguousarray(image), *how)
        number = (self._counter + 1 + job.number) % ROLL
        return outlet.header(number, self._triggers, job.incomplete, values["lambda/bit_depth"]), data

    # --- variables ---------------------------------------------------------------------------------------------------

    def read(self, path: str) -> Any:
        """Refused: there is no such variable."""
        with self._wake:
            value = self.variables.read(path)
            of, _, name = path.rpartition("/")
            now = time.monotonic()
            if name == "status":
                return self._status(now, None if of == "lambda" else int(of.rpartition("/")[2]) - 1)
            if name == "ram_allocated":
                return self._has_ram(int(of.rpartition("/")[2]) - 1, now)
            if name == "voltage":
                return round(value * self._charge(now), 3)
            if name == "frames_queued":
                port = 0 if self._combined or of == "port-1" else int(of.replace("-", "/").rpartition("/")[2]) - 1
                return self._waiting.queued.get(port, 0)
            return value

    def write(self, path: str, text: str) -> Any:
        """What is read then. Refused: it cannot be written now, or never."""
        with self._wake:
            now = time.monotonic()
            value = self.variables.checked(path, text)
            of, _, name = path.rpartition("/")
            if self._status(now) == "busy":
                raise Refused(400, f"{path}: busy: an acquisition is running")
            if name == "roi_rows" and value > self.options.chip:
                raise Refused(400, f"{path}: argument out of range: {value}, a chip has {self.options.chip} rows")
            if name == "n_frames" and value > self.options.max_frames:
                raise Refused(400, f"{path}: argument out of range: {value} frames, RAM has {self.options.max_frames}")
            if name == "gating_mode" and value == "ON" and not self._can("FEAT_EXTENDED_GATING"):
                raise Refused(400, f"{path}: not supported by the firmware")
            if name == "compressor" and value.startswith("blosc") and not blosc.available():
                raise Refused(400, f"{path}: {value} is not supported")
            before = self.variables.values[path]
            self.variables.write(path, value)
            if name in RESIZING and value != before:
                self._ram_at = now + (self.failures.take("ram_seconds") or ALLOCATION * self.options.speed)
            self._resize()
            return self.read(path)

    def _can(self, feature: str) -> bool:
        return all(feature in self.variables.values[f"{module}/features"] for module in self.variables.modules)

    def _resize(self) -> None:
        values = self.variables.values
        on, rows = values["lambda/interpolation"] == "ON", values["lambda/roi_rows"]
        self._shape = layouts.module_shape(self.options, on, rows)
        self._full = layouts.full_shape(self._everything, self._shape)
        depth = values["lambda/bit_depth"]
        sizes = {f"lambda/{k}": self._shape for k in range(1, len(self.places) + 1)}
        sizes |= {f"port-{k}": self._full if self._combined else self._shape for k in range(1, self.ports + 1)}
        for of, (rows, columns) in sizes.items():
            values[f"{of}/frame_height"], values[f"{of}/frame_width"], values[f"{of}/frame_depth"] = (
                rows,
                columns,
                depth,
            )

    @property
    def _counters(self) -> int:
        return 2 if self.variables.values["lambda/counter_mode"] == "DUAL" else 1

    # --- states ------------------------------------------------------------------------------------------------------

    def _status(self, now: float, module: int | None = None) -> str:
        if module is None:
            told = [self._status(now, k) for k in range(len(self.places))]
            return next((word for word in ("connected", "busy") if word in told), "ready")
        if now < self._ready_at or self.places[module].number in self.failures.never_ready:
            return "connected"
        course = self._course
        if now < self._stopping_until:
            return "busy"
        if course is None or now < self._busy_at:
            return "ready"
        queued = self._waiting.queued.get(0 if self._combined else module, 0)
        return "ready" if course.complete and not queued else "busy"

    def _has_ram(self, module: int, now: float) -> bool:
        return now >= self._ram_at and self.places[module].number not in self.failures.no_ram

    def _charge(self, now: float) -> float:
        """Of the high voltage, from 0 to 1."""
        if now >= self._volts_until:
            return 1.0
        return (now - self._volts_from) / (self._volts_until - self._volts_from)

    def _restart(self, now: float) -> None:
        """As after switching on: nothing is set, nothing runs."""
        self.happened.append("restart")
        self._restarting = False
        self._idle()
        self._ready_at = now + self.failures.restart_seconds
        fresh = Variables(len(self.places), self.ports)
        fresh.values["lambda/user_data"] = ""
        self.variables = fresh
        self._set_up()

    def _idle(self) -> None:
        self._course = None
        self._pulses.clear()
        self._waiting.clear()

    # --- commands ----------------------------------------------------------------------------------------------------

    def command(self, path: str) -> dict[str, str]:
        """Refused: there is no such command, or not now."""
        name = path.removeprefix("lambda/")
        if name not in COMMANDS:
            raise Refused(404, f"command not found: {path}")
        with self._wake:
            now = time.monotonic()
            answer = getattr(self, f"_{name}")(now)
            self._wake.notify_all()
            return {"status": answer}

    def _start(self, now: float) -> str:
        values, failures = self.variables.values, self.failures
        status = self._status(now)
        if status != "ready" or (self._course is not None and now < self._busy_at):
            raise Refused(400, f"start: {'not ready' if status == 'connected' else 'busy'}")
        for k, place in enumerate(self.places):
            if not self._has_ram(k, now):
                raise Refused(400, f"start: failed to allocate RAM buffer on module {place.number}")
        if failures.start_ignored:
            failures.start_ignored -= 1
            self.happened.append("start_ignored")
            return "started"
        depth, mode = values["lambda/bit_depth"], values["lambda/trigger_mode"]
        plan = Plan(
            mode,
            values["lambda/n_frames"],
            values["lambda/shutter_time"] / 1000,
            self.options.readout if depth == 24 else 0.0,
            values["lambda/gating_mode"] == "ON",
            self._counters,
            depth < 24,
        )
        self._drawing = Drawing(self.places, self._shape, depth, self._full)
        self._chance = random.Random(failures.jitter_seed)
        self._counter = failures.take("counter_at") - 1 if failures.counter_at else 0
        self._triggers += 1
        self.lost = {}
        self._waiting.clear()
        self._pulses.clear()
        late = failures.take("start_late") or BUSY_AFTER * self.options.speed
        self._busy_at = time.monotonic() + late
        self._course = Course(plan, self._busy_at)
        return "started"

    def _stop(self, now: float) -> str:
        if self._status(now) == "busy" or (self._course is not None and now < self._busy_at):
            self._stopping_until = now + STOP_AFTER * self.options.speed
        self._idle()
        return "stopped"

    def _reset(self, now: float) -> str:
        self._idle()
        self._ready_at = now + READY_AFTER * self.options.speed
        self.variables.write("lambda/thresholds", [])
        return "reset"

    def _generate_flatfield(self, now: float) -> str:
        for module in self.variables.modules:
            self.variables.values[f"{module}/flatfield_status"] = "Flatfield measurement finished"
        return "started"

    # --- what tests do -----------------------------------------------------------------------------------------------

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> int:
        """`n` external edges, or gates of `width` s, `period` s apart (None: as soon as the detector is free); how many
        of them may count: none while nothing is busy."""
        with self._wake:
            now = time.monotonic()
            skipped = min(n, self.failures.skip_edges)
            self.failures.skip_edges -= skipped
            if self._course is None or now < self._busy_at or self._course.complete:
                self.happened.append(f"{n} edges ignored")
                return 0
            self._pulses.add(now, n - skipped, width, period)
            self._wake.notify_all()
            return n - skipped

    def fail(self, failures: Failures) -> None:
        """What goes wrong next, instead of what was wished before."""
        with self._wake:
            now = time.monotonic()
            self.failures = failures
            if failures.take("restart"):
                self._restart(now)
            self._volts_from, self._volts_until = now, now + failures.take("voltage_seconds")
            self._wake.notify_all()

    def locked(self, act: Callable[[], T]) -> T:
        with self._wake:
            return act()

    # --- what it is --------------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        values = self.variables.values
        modules = [
            {"module": m, "firmware": values[f"{m}/firmware_version"], "chips": 12, "chip-ids": values[f"{m}/chip_ids"]}
            for m in self.variables.modules
        ]
        return {
            "libxsp version": "2.7.6",
            "id": "SIMULATED",
            "detectors": [{"detector-id": "lambda", "modules": modules}],
        }

    def described(self) -> dict[str, Any]:
        refs = ["lambda"] if self._combined else self.variables.modules
        ports = [
            {"ref": ref, "id": f"port-{k}", "ip": "0.0.0.0", "port": number}
            for k, (ref, number) in enumerate(zip(refs, self.data_ports, strict=True), 1)
        ]
        system = {
            "id": "SIMULATED",
            "detectors": [{"id": "lambda", "modules": len(self.places)}],
            "data-ports": ports,
        }
        return {"id": self.options.device, "type": "xsp", "configfile": "/opt/xsp/config/system.yml", "system": system}
