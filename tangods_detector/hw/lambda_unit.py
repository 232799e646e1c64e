"""A Lambda control unit: one thread that drives the hardware, one for each module, and a series from arm to end."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, TypeVar

from tangods_detector.hw.lambda_stream import RANGES, Course, Job, Look, ModuleStream
from tangods_detector.hw.lambda_system import (
    READINGS,
    RESIZING,
    SETTINGS,
    Description,
    LambdaSystem,
    ModuleStatus,
    Value,
)
from tangods_detector.orders import Refused
from tangods_receiver.errors import HardwareError

log = logging.getLogger(__name__)

LOOK = 0.02  # s between two looks at the modules in a series
LOOK_IDLE = 0.5  # s
TAKEN_ORDERS = 40.0  # s; connecting may take 30
PAUSE = 0.005  # s

T = TypeVar("T")


@dataclass(frozen=True)
class UnitOptions:
    """Module k of the unit is sent at `port` + k (0: any free ones), and is number `first` + k of the whole image;
    `memory` bytes of its frames may be with libzmq at a time.

    Limits in s: `ready` for the modules after a setting, `start` for the hardware to begin, `stop` for it to end and
    for a receiver that takes nothing then, `lag` for a module that sends nothing after the others of the unit are
    over, `deaf` for a unit that does not tell of its modules."""

    host: str = "127.0.0.1"
    port: int = 9010
    first: int = 0
    memory: int = 512 << 20
    start: float = 5.0
    stop: float = 5.0
    lag: float = 10.0
    deaf: float = 5.0


class Unit:
    """Use as a context manager. Any thread may call; every method raises HardwareError with the unit's own words, or
    Refused where it cannot be now."""

    def __init__(self, system: LambdaSystem, options: UnitOptions) -> None:
        self.options = options
        self._system = system
        self._orders: queue.Queue[tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._closing = threading.Event()
        self._interrupt = threading.Event()  # a stop was ordered: whatever is waited for, it is not any longer
        self._thread: threading.Thread | None = None
        self._job: Callable[[], None] | None = None
        self._description: Description | None = None
        self._streams: list[ModuleStream] = []
        self._course: Course | None = None
        self._look = Look(0.0)
        self._heard = 0.0  # when it last told of its modules
        self._phase = "idle"
        self._message = ""
        self._fault = ""  # of the series
        self._halted = False
        self._given_up_at = inf
        self._starts = 0  # that the hardware has taken
        self._accepted: dict[str, Value] = {}

    def __enter__(self) -> Unit:
        self._thread = threading.Thread(target=self._work, name="lambda-unit")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._interrupt.set()
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
        self._ask(lambda: self._closed("set").set(name, value, self._position(module)))

    def configure(self, settings: Mapping[str, Value]) -> None:
        """Set them in the order that the hardware needs; `phase` is configuring until that is done."""
        if unknown := [name for name in settings if name not in SETTINGS]:
            raise Refused(f"configure: {', '.join(unknown)}: not one of {', '.join(SETTINGS)}")

        def order() -> None:
            self._closed("configure")
            self._phase, self._message = "configuring", ""
            self._job = lambda: self._configure({name: settings[name] for name in SETTINGS if name in settings})

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
            self._closed("arm")
            if modules < self.options.first + len(self._streams):
                raise Refused(
                    f"arm: an image of {modules} modules; those of this unit are {self.options.first} to "
                    f"{self.options.first + len(self._streams) - 1}"
                )
            self._phase, self._message, self._fault, self._course = "arming", "", "", None
            self._starts, self._halted, self._given_up_at = 0, False, inf
            said = dict(series=series, filename=filename, nframes=nframes, per_start=per_start, modules=modules)
            more = dict(endless=endless, metadata=metadata, receiver_limit=receiver_limit)
            self._job = lambda: self._arm({**said, **more}, ready_limit)

        self._ask(order)

    def start(self) -> int:
        """Begin the next start of the series; its number. `starts` of the status tells when the hardware took it."""
        return self._ask(self._begin_start)

    def stop(self) -> None:
        """End the series with what the rings hold."""
        self._interrupt.set()
        self._ask(self._stop)

    def reset(self) -> None:
        """Initialise the hardware again, or connect where that failed before."""
        self._interrupt.set()
        self._ask(self._reset)

    def status(self) -> dict[str, Any]:
        """As JSON has it; at most LOOK s old in a series, else LOOK_IDLE."""
        course, look = self._course, self._look
        told = look.modules or [ModuleStatus(False, False, False, False, False)] * len(self._streams)
        stopped = self._halted
        modules = [_module_told(stream, status, stopped) for stream, status in zip(self._streams, told, strict=False)]
        return {
            "phase": self._phase,
            "message": self._sentence(modules),
            "series": -1 if course is None else course.job.series,
            "nframes": 0 if course is None else course.job.nframes,
            "frames": 0 if course is None else min((self._behind(s, course.job) for s in self._streams), default=0),
            "starts": self._starts,
            "modules": modules,
            "fault": self._fault,
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
            self._attempt(lambda: None if self._connect() else None)
            while not self._closing.is_set():
                self._take_order()
                job, self._job = self._job, None
                if job is not None:
                    self._attempt(job)
                self._watch()
        except Exception as exc:  # whatever it was, it shall be seen
            log.exception("the unit has ended")
            self._phase, self._message = "error", f"{type(exc).__name__}: {exc}"
        finally:
            self._let_go()

    def _attempt(self, job: Callable[[], None]) -> None:
        """What goes wrong becomes the phase."""
        try:
            job()
        except (HardwareError, Refused) as exc:
            self._phase, self._message = "error", str(exc)
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

    def _let_go(self) -> None:
        """The modules end their series, then give their frames back."""
        try:
            if self._course is not None and not self._is_idle:
                self._system.stop()
        except HardwareError as exc:
            log.warning("%s", exc)
        for stream in self._streams:
            stream.abort()
        for stream in self._streams:
            stream.close()
        self._system.close()

    # --- the hardware ------------------------------------------------------------------------------------------------

    def _connect(self) -> Description:
        description = self._system.connect()
        options, streams = self.options, self._streams
        if streams and len(streams) != len(description.modules):
            raise HardwareError(
                f"{description.detector} has {len(description.modules)} modules now, {len(streams)} before: "
                "restart the unit's process"
            )
        for k, module in enumerate(description.modules[len(streams) :]):
            stream = ModuleStream(
                self._system,
                k,
                options.first + k,
                module.name,
                lambda: self._look,
                host=options.host,
                port=options.port and options.port + k,
                memory=options.memory,
            )
            stream.open()
            streams.append(stream)
        self._description = description
        self._look_now()
        return description

    def _connected(self) -> LambdaSystem:
        if self._description is None:
            self._connect()
            self._phase, self._message = "idle", ""
        return self._system

    @property
    def _is_idle(self) -> bool:
        return self._phase in ("idle", "done", "error")

    def _closed(self, what: str) -> LambdaSystem:
        """Refused unless no series is open."""
        if not self._is_idle:
            series = "" if self._course is None else f" (series {self._course.job.series})"
            raise Refused(f"{what}: the unit is {self._phase}{series}; stop it first")
        self._interrupt.clear()
        return self._connected()

    def _position(self, module: int | None) -> int | None:
        if module is None:
            return None
        position = module - self.options.first
        if not 0 <= position < len(self._streams):
            raise Refused(f"module {module} is not of this unit, which has {[s.number for s in self._streams]}")
        return position

    def _describe(self) -> Description:
        system = self._connected()
        if self._is_idle:
            self._description = system.describe()
        assert self._description is not None
        return self._description

    def _look_now(self) -> Look:
        """Ask for the state of the modules."""
        at = time.monotonic()
        try:
            self._look = Look(at, self._system.status())
            self._heard = at
        except HardwareError as exc:
            self._look = Look(at, self._look.modules, str(exc))
        return self._look

    def _wait_for(self, what: Callable[[Look], str], limit: float) -> None:
        """Until `what` finds nothing lacking any more. HardwareError: what is, or stopped."""
        end = time.monotonic() + limit
        while True:
            look = self._look_now()
            lacks = look.error or what(look)
            if not lacks:
                return
            if self._interrupt.is_set():
                raise HardwareError(f"stopped; {lacks}")
            if time.monotonic() > end:
                raise HardwareError(f"{lacks}, after {limit:g} s")
            self._interrupt.wait(LOOK)

    def _not_ready(self, look: Look, voltage: bool) -> str:
        """Which modules are not, and what of them."""
        lacking = []
        for stream, module in zip(self._streams, look.modules, strict=False):
            what = [
                word
                for word, good in (
                    ("not connected", module.connected),
                    ("not ready", module.ready),
                    ("its RAM is not allocated", module.ram_allocated),
                    ("its high voltage is not settled", module.voltage_settled or not voltage),
                )
                if not good
            ]
            if what:
                lacking.append(f"{stream.name} {'is ' if what[0].startswith('not') else ''}{what[0]}")
        return ", ".join(lacking)

    def _configure(self, settings: Mapping[str, Value]) -> None:
        system, resized = self._system, False
        if any(module.busy for module in self._look_now().modules):
            system.stop()
        for name, value in settings.items():
            if not _same(system.get(name), value):
                system.set(name, value)
                resized |= name in RESIZING
        self._wait_for(lambda look: self._not_ready(look, voltage=False), READY)
        self._description = system.describe()
        self._accepted = {name: system.get(name) for name in settings}
        self._phase = "idle"

    def _reset(self) -> None:
        if self._description is None:
            self._connect()
        else:
            self._give_up()
            self._system.reset()
        self._interrupt.clear()
        self._phase, self._message, self._course = "idle", "", None

    # --- a series ----------------------------------------------------------------------------------------------------

    def _arm(self, said: Mapping[str, Any], ready_limit: float) -> None:
        system = self._system
        if not system.get("thresholds"):
            raise HardwareError("no thresholds are set since power-up: it would count noise; set them, then arm again")
        self._wait_for(lambda look: self._not_ready(look, voltage=True), ready_limit)
        self._description = description = system.describe()
        shapes = {module.shape for module in description.modules}
        if len(shapes) > 1:
            raise HardwareError(f"the modules differ in size: {', '.join(map(str, sorted(shapes)))}")
        dual = system.get("counter_mode") == "DUAL"
        course = Course(Job(**said, shape=shapes.pop(), dtype=description.dtype, dual=dual))
        for stream in self._streams:
            stream.begin(course)
        self._course = course
        while any(stream.phase == "arming" for stream in self._streams):
            if self._interrupt.wait(PAUSE):
                self._give_up()
        if wrong := _wrong(self._streams):
            self._fault = wrong
            course.halted_at = time.monotonic()  # those that have sent a start message send an end message
            self._phase = "running"
            return
        log.info("series %d: armed, %d frames of %d modules", course.job.series, course.job.nframes, len(self._streams))
        self._phase = "armed"

    def _begin_start(self) -> int:
        course = self._course
        if course is None or self._phase not in ("armed", "running") or self._halted:
            raise Refused(f"start: the unit is {self._phase}; arm it first")
        if course.starts * course.job.per_start >= course.job.nframes:
            raise Refused(f"start: all {course.job.nframes} frames were asked for already")
        if self._starts < course.starts:
            raise Refused(f"start: the one before, number {course.starts}, has not been taken yet")
        if course.starts and any(s.finished < course.starts for s in self._streams):
            if any(module.busy for module in self._look_now().modules):
                raise Refused(f"start: the unit is busy with the one before, number {course.starts}")
        self._job = lambda: self._start(course)
        return course.starts + 1

    def _start(self, course: Course) -> None:
        try:
            self._wait_for(lambda look: self._still_sending(course), self.options.stop)
            course.confirmed_at = inf
            for stream in self._streams:
                stream.came = False
            course.starts += 1
            self._phase = "running"
            begun = time.monotonic()
            self._system.start()
            self._wait_for(lambda look: self._not_begun(look, begun), self.options.start)
        except HardwareError as exc:
            if not self._interrupt.is_set():  # else a stop follows
                self._fail(f"start: {exc}")
            return
        course.confirmed_at, self._starts = time.monotonic(), course.starts

    def _still_sending(self, course: Course) -> str:
        late = [stream.name for stream in self._streams if stream.finished < course.starts]
        return f"{', '.join(late)} still has frames of the start before" if late else ""

    def _not_begun(self, look: Look, begun: float) -> str:
        lazy = [
            stream.name
            for stream, module in zip(self._streams, look.modules, strict=False)
            if look.at < begun or not (module.busy or module.frames_queued or stream.came)
        ]
        return f"{', '.join(lazy)} did not begin, the start was ignored" if lazy else ""

    def _stop(self) -> None:
        self._interrupt.clear()
        if self._job is not None:
            self._job = None  # it had not begun
            self._phase = "idle" if self._course is None else self._phase
        if self._course is None or self._is_idle:
            if self._description is not None and any(module.busy for module in self._look_now().modules):
                self._system.stop()
        else:
            self._halt()

    def _fail(self, sentence: str) -> None:
        """The series ends, in error."""
        self._fault = self._fault or sentence
        log.warning("%s", sentence)
        self._halt()

    def _halt(self) -> None:
        """The hardware stops; what the rings hold is sent."""
        course = self._course
        if course is None or self._halted:
            return
        self._halted = True
        self._given_up_at = time.monotonic() + self.options.stop
        try:
            self._system.stop()
        except HardwareError as exc:
            self._fault = self._fault or str(exc)
            self._give_up()
        course.halted_at = time.monotonic()

    def _give_up(self) -> None:
        """Nothing is waited for any longer, and what was not sent is lost."""
        if self._course is not None:
            self._course.given_up.set()
            for stream in self._streams:
                stream.abort()

    def _watch(self) -> None:
        idle = self._course is None or self._is_idle
        if self._description is not None and time.monotonic() - self._look.at >= (LOOK_IDLE if idle else LOOK):
            self._look_now()
        if self._course is not None and self._phase in ("armed", "running", "ending"):
            self._watch_course(self._course)

    def _watch_course(self, course: Course) -> None:
        streams, now = self._streams, time.monotonic()
        if all(stream.phase in ("done", "error") for stream in streams):
            self._finish(course)
        elif all(stream.over for stream in streams):
            self._phase = "ending"
            course.ending.set()
        elif self._look.error and now - self._heard > self.options.deaf:
            self._fail(f"the unit does not tell of its modules: {self._look.error}")
            self._give_up()
        elif self._halted:
            newest = max(stream.last for stream in streams)
            if now > max(self._given_up_at, newest + self.options.stop):
                late = [stream.name for stream in streams if not stream.over]
                self._fault = self._fault or f"{', '.join(late)} did not come to an end after a stop"
                self._give_up()
        elif broken := _wrong(streams):  # the other modules go on
            self._fault = self._fault or broken
        elif any(stream.over for stream in streams):
            newest = max(stream.last for stream in streams)
            if now - newest > self.options.lag and not any(stream.blocked for stream in streams):
                late = [stream.name for stream in streams if not stream.over]
                self._fail(f"{', '.join(late)} sent nothing for {self.options.lag:g} s after the others were over")

    def _finish(self, course: Course) -> None:
        broken = self._fault or _wrong(self._streams)
        if not broken and not self._halted:
            broken = self._not_ready(self._look_now(), voltage=False) if self._lost() else ""
        self._message, self._phase = broken, "error" if broken else "done"
        told = self.status()
        log.info(
            "series %d: %s, %d of %d frames%s",
            course.job.series,
            self._phase,
            told["frames"],
            course.job.nframes,
            f"; {told['message']}" if told["message"] else "",
        )

    def _lost(self) -> int:
        return sum(stream.missing(self._halted)[0] for stream in self._streams)

    def _behind(self, stream: ModuleStream, job: Job) -> int:
        """Frames that this module has sent, or missed for good."""
        if stream.over and not self._halted:
            return job.nframes
        return max(stream.ledger.highest + 1, stream.finished * job.per_start if not self._halted else 0)

    def _sentence(self, modules: Sequence[Mapping[str, Any]]) -> str:
        """What is not as it should be."""
        course, found = self._course, [self._message or self._fault]
        if self._look.error and self._phase not in ("done", "error"):
            found.append(self._look.error)
        if course is not None and self._phase in ("ending", "done", "error"):
            for module, stream in zip(modules, self._streams, strict=True):
                if module["missing"]:
                    of = f"{module['missing']} of {course.job.nframes} frames"
                    found.append(f"{stream.name}: {of} missing: {_words(module['missing_numbers'])}")
                if stream.remark:
                    found.append(f"{stream.name}: {stream.remark}")
        return "; ".join(dict.fromkeys(word for word in found if word))


READY = 30.0  # s for the modules after their settings


def _wrong(streams: Sequence[ModuleStream]) -> str:
    found = [(stream.name, stream.error) for stream in streams if stream.error]
    if len({error for _, error in found}) == 1 and len(found) > 1:
        return f"{', '.join(name for name, _ in found)}: {found[0][1]}"
    return "; ".join(f"{name}: {error}" for name, error in found)


def _module_told(stream: ModuleStream, status: ModuleStatus, stopped: bool) -> dict[str, Any]:
    told = asdict(status)
    missing, numbers = stream.missing(stopped)
    return {
        "module": stream.number,
        "name": stream.name,
        "queued": told.pop("frames_queued"),
        **told,
        "sent": stream.sent,
        "missing": missing,
        "missing_numbers": numbers,
        "incomplete": stream.incomplete,
        "repeated": stream.repeated,
        "foreign": stream.foreign,
        "failed": stream.failed,
        "blocked": stream.blocked,
        "over": stream.over,
    }


def _same(found: Value, wanted: Value) -> bool:
    """As far as the hardware rounds."""
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, str) or isinstance(found, str | list):
        return found == wanted
    return abs(found - wanted) <= 1e-9 * max(1.0, abs(wanted))


def _words(ranges: Sequence[Sequence[int]]) -> str:
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:10]]
    return ", ".join(shown) + (", ..." if len(ranges) > 10 or len(ranges) == RANGES else "")
