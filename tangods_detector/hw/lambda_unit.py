"""A Lambda control unit: the thread that drives its hardware, and the orders to it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any, TypeVar

from tangods_detector.hw.lambda_hardware import LOOK, Hardware
from tangods_detector.hw.lambda_job import Job
from tangods_detector.hw.lambda_series import UnitOptions, UnitSeries, told
from tangods_detector.hw.lambda_stream import ModuleStream
from tangods_detector.hw.lambda_system import READINGS, SETTINGS, Description, LambdaSystem, ModuleStatus, Value
from tangods_detector.orders import Refused
from tangods_receiver.errors import HardwareError

log = logging.getLogger(__name__)

LOOK_IDLE = 0.5  # s between two looks at the modules without a series
TAKEN_ORDERS = 40.0  # s; connecting may take 30
RETURNED = 2.0  # s for frames to come back into the rings
SETTLE = 15.0  # s for the modules to leave a series behind
UNKNOWN = ModuleStatus(False, False, False, False, False)

T = TypeVar("T")


class Unit:
    """Use as a context manager. Any thread may call; every method raises HardwareError with the unit's own words, or
    Refused where it cannot be now."""

    def __init__(self, system: LambdaSystem, options: UnitOptions) -> None:
        self.options = options
        self._hardware = Hardware(system)
        self._orders: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._job: Callable[[], None] | None = None  # what an order began
        self._streams: list[ModuleStream] = []
        self._series: UnitSeries | None = None  # that is open, or was last
        self._phase = "idle"  # without one
        self._message = ""
        self._accepted: dict[str, Value] = {}

    def __enter__(self) -> Unit:
        self._thread = threading.Thread(target=self._work, name="lambda-unit")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._hardware.interrupt.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def alive(self) -> bool:
        """Does its thread run?"""
        return self._thread is not None and self._thread.is_alive()

    # --- orders ------------------------------------------------------------------------------------------------------

    def describe(self) -> Description:
        """What is there now; connects where that failed before."""
        return self._ask(self._describe)

    @property
    def endpoints(self) -> list[str]:
        """Of the modules; none before the unit was connected."""
        return [stream.endpoint for stream in self._streams]

    def get(self, name: str, module: int | None = None) -> Value:
        """`module` by its number in the whole image."""
        known = SETTINGS if module is None else READINGS
        if name not in known:
            raise Refused(f"get: {name} is not one of {', '.join(known)}")
        return self._ask(lambda: self._connected().get(name, self._position(module)))

    def set(self, name: str, value: Value, module: int | None = None) -> None:
        """One value at once."""
        known = ("voltage",) if module is not None else tuple(SETTINGS)
        if name not in known:
            raise Refused(f"set: {name} is not one of {', '.join(known)}")
        self._ask(lambda: self._free("set").set(name, value, self._position(module)))

    def configure(self, settings: Mapping[str, Value]) -> None:
        """Set them in the order that the hardware needs; `phase` is configuring until that is done."""
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise Refused(f"configure: {', '.join(unknown)}: not one of {', '.join(SETTINGS)}")

        def order() -> None:
            self._free("configure")
            self._be("configuring")
            self._job = lambda: self._configure(settings)

        self._ask(order)

    def arm(
        self,
        series: int,
        filename: str,
        nframes: int,
        modules: int,
        metadata: Mapping[str, Any],
        per_start: int,
        endless: bool,
        ready_limit: float,
        receiver_limit: float,
    ) -> None:
        """Wait for the modules, then for a receiver; `phase` is arming until that is done."""
        if not 1 <= per_start <= nframes or nframes % per_start:
            raise Refused(f"arm: frames_per_start is {per_start}, no part of {nframes} frames")

        def order() -> None:
            self._free("arm")
            first, last = self.options.first, self.options.first + len(self._streams) - 1
            if modules <= last:
                raise Refused(f"arm: an image of {modules} modules; those of this unit are {first} to {last}")
            self._be("arming")
            said = dict(series=series, filename=filename, nframes=nframes, per_start=per_start, modules=modules)
            more = dict(endless=endless, metadata=metadata, receiver_limit=receiver_limit)
            self._job = lambda: self._arm({**said, **more}, ready_limit)

        self._ask(order)

    def start(self) -> int:
        """Begin the next start of the series; its number. `starts` of the status tells when the hardware took it."""

        def order() -> int:
            series = self._series
            if series is None or series.over:
                raise Refused(f"start: the unit is {self._now}; arm it first")
            number = series.next_start()
            self._job = series.start
            return number

        return self._ask(order)

    def stop(self) -> None:
        """End the series with what the rings hold."""
        self._hardware.interrupt.set()
        self._ask(self._stop)

    def reset(self) -> None:
        """Initialise the hardware again, or connect where that failed before."""
        self._hardware.interrupt.set()
        self._ask(self._reset)

    def status(self) -> dict[str, Any]:
        """As JSON has it; at most LOOK s old in a series, else LOOK_IDLE."""
        series, look = self._series, self._hardware.look
        stopped = series is not None and series.stopped
        known = look.modules or [UNKNOWN] * len(self._streams)
        sentences = [self._message, "" if series is None else series.sentence()]
        if look.error and not self._is_free:
            sentences.append(look.error)
        return {
            "phase": self._now,
            "message": "; ".join(dict.fromkeys(one for one in sentences if one)),
            "series": -1 if series is None else series.job.series,
            "nframes": 0 if series is None else series.job.nframes,
            "frames": 0 if series is None else series.frames,
            "starts": 0 if series is None else series.starts,
            "fault": "" if series is None else series.fault,
            "halted": series is not None and series.halted,
            "modules": [told(stream, one, stopped) for stream, one in zip(self._streams, known, strict=False)],
            "accepted": self._accepted,
        }

    def _ask(self, order: Callable[[], T]) -> T:
        if not self.alive:
            raise Refused("the unit's thread has ended; see its log")
        answer: Future[T] = Future()
        self._orders.put((order, answer))
        try:
            return answer.result(TAKEN_ORDERS)
        except NoAnswer:
            raise Refused("the unit does not take orders; see its log") from None

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._attempt(self._connect)
            while not self._closing.is_set():
                self._take_order()
                job, self._job = self._job, None
                if job is not None:
                    self._attempt(job)
                self._watch()
        except Exception as exc:  # whatever it was, it shall be seen
            log.exception("the unit has ended")
            self._be("error", f"{type(exc).__name__}: {exc}")
        finally:
            self._let_go()

    def _attempt(self, job: Callable[[], None]) -> None:
        """What goes wrong becomes the phase."""
        try:
            job()
        except HardwareError as exc:
            self._be("error", str(exc))
            log.warning("%s", exc)

    def _take_order(self) -> None:
        try:
            order, answer = self._orders.get(timeout=LOOK)
        except queue.Empty:
            return
        try:
            answer.set_result(order())
        except Exception as exc:
            answer.set_exception(exc)

    def _watch(self) -> None:
        hardware, series = self._hardware, self._series
        pause = LOOK_IDLE if series is None or series.over else LOOK
        if hardware.description is not None and time.monotonic() - hardware.look.at >= pause:
            hardware.look_now()
        if series is not None:
            series.watch()

    def _let_go(self) -> None:
        """The modules end their series, then give their frames back."""
        if self._series is not None:
            self._series.halt()
        for stream in self._streams:
            stream.abort()
        for stream in self._streams:
            stream.close()
        self._hardware.system.close()

    @property
    def _now(self) -> str:
        return self._phase if self._series is None else self._series.phase

    @property
    def _is_free(self) -> bool:
        return self._now in ("idle", "done", "error")

    def _be(self, phase: str, message: str = "") -> None:
        """Without a series."""
        self._series, self._message, self._phase = None, message, phase

    # --- what the orders do ------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        hardware, streams = self._hardware, self._streams
        found = hardware.system.connect()
        if streams and len(streams) != len(found.modules):
            raise HardwareError(
                f"{found.detector} has {len(found.modules)} modules now, {len(streams)} before: restart the unit's "
                "process"
            )
        if not streams:
            self._streams = self._opened(found)
        hardware.description = found
        hardware.look_now()
        self._be("idle")

    def _opened(self, found: Description) -> list[ModuleStream]:
        """A stream for each module. HardwareError: a port is not to be had; then there is none."""
        hardware, options, streams = self._hardware, self.options, list[ModuleStream]()
        try:
            for k, module in enumerate(found.modules):
                stream = ModuleStream(
                    hardware.system,
                    k,
                    options.first + k,
                    module.name,
                    lambda: hardware.look,
                    host=options.host,
                    port=options.port and options.port + k,
                    memory=options.memory,
                    guard=options.guard,
                )
                stream.open()
                streams.append(stream)
        except HardwareError:
            for stream in streams:
                stream.close()
            raise
        return streams

    def _connected(self) -> LambdaSystem:
        if self._hardware.description is None:
            self._connect()
        return self._hardware.system

    def _free(self, what: str) -> LambdaSystem:
        """Refused unless no series is open, and no frame is out of the rings: libxsp may make them anew."""
        if not self._is_free:
            series = "" if self._series is None else f" (series {self._series.job.series})"
            raise Refused(f"{what}: the unit is {self._now}{series}; stop it first")
        self._hardware.interrupt.clear()
        self._wait_for_rings(what)
        return self._connected()

    def _wait_for_rings(self, what: str) -> None:
        end = time.monotonic() + RETURNED
        while held := sum(stream.held for stream in self._streams):
            if time.monotonic() > end:
                raise Refused(f"{what}: {held} frames of the series before are not taken by the receiver: restart it")
            time.sleep(LOOK)

    def _position(self, module: int | None) -> int | None:
        if module is None:
            return None
        position = module - self.options.first
        if not 0 <= position < len(self._streams):
            raise Refused(f"module {module} is not of this unit, which has {[s.number for s in self._streams]}")
        return position

    def _describe(self) -> Description:
        self._connected()
        if self._is_free:
            self._hardware.describe()
        assert self._hardware.description is not None
        return self._hardware.description

    def _configure(self, settings: Mapping[str, Value]) -> None:
        self._accepted = self._hardware.configure(settings)
        self._be("idle")

    def _arm(self, said: Mapping[str, Any], ready_limit: float) -> None:
        hardware = self._hardware
        if not hardware.system.get("thresholds"):
            raise HardwareError("no thresholds are set since power-up: it would count noise; set them, then arm again")
        if hardware.busy:  # with what somebody else began
            hardware.system.stop()
        hardware.wait_for(lambda look: hardware.not_ready(look, voltage=True), ready_limit)
        found = hardware.describe()
        shapes = {module.shape for module in found.modules}
        if len(shapes) > 1:
            raise HardwareError(f"the modules differ in size: {', '.join(map(str, sorted(shapes)))}")
        dual = hardware.system.get("counter_mode") == "DUAL"
        job = Job(**said, shape=shapes.pop(), dtype=found.dtype, dual=dual)
        self._series = UnitSeries(hardware, self._streams, job, self.options)
        self._series.arm()

    def _stop(self) -> None:
        self._hardware.interrupt.clear()
        if self._series is not None and not self._series.over:
            self._series.halt()
        elif self._hardware.description is not None and self._hardware.busy:
            self._hardware.system.stop()

    def _reset(self) -> None:
        if self._hardware.description is None:
            self._connect()
        else:
            if self._series is not None and not self._series.over:
                self._series.finish_now(SETTLE)
            self._wait_for_rings("reset")
            try:
                self._hardware.system.reset()
            except HardwareError as exc:
                log.warning("reset: %s; connecting anew", exc)
                self._connect()
        self._hardware.interrupt.clear()
        self._be("idle")
