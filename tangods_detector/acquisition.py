"""The thread that owns the hardware: keeps the link, takes orders, and runs one series after the other."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from tangods_detector import filenames
from tangods_detector.course import Course, quietly
from tangods_detector.hw.base import Backend, Phase
from tangods_detector.progress import Limits
from tangods_detector.receiver import Picture, Receiver, ReceiverError
from tangods_detector.settings import OverwritePolicy, Series, Settings, TriggerMode, check_together
from tangods_detector.snapshot import Request, Snapshot
from tangods_detector.states import AWAY, BUSY, READY, Event, State, after
from tangods_receiver import imaging, stats
from tangods_receiver.errors import ConfigError, DaqError, HardwareError

log = logging.getLogger(__name__)
T = TypeVar("T")

RESET_LIMIT = 1.0  # s for the receiver to close its file


@dataclass
class Order:
    """Something for the thread to do; its result, or its error, comes back through `done`."""

    act: Callable[[], Any]
    while_busy: bool = False
    done: Future[Any] = field(default_factory=Future)


class Acquisition:
    """One detector with its receiver. Public methods may be called from any thread and return within seconds."""

    def __init__(
        self,
        backend: Backend,
        receiver: Receiver | None,
        *,
        allow_overwrite: bool = False,
        trigger_timeout: float = 0.0,
        limits: Limits = Limits(),  # noqa: B008  frozen
        changed: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        self._backend, self._receiver = backend, receiver
        self._allow_overwrite, self._trigger_timeout = allow_overwrite, trigger_timeout
        self._limits, self._changed = limits, changed
        modes = tuple(mode.value for mode in TriggerMode if mode in backend.trigger_modes)
        self.snapshot = Snapshot(trigger_modes=modes)
        self._wanted = Settings()
        self._configured: Settings | None = None  # what was asked for last; snapshot.settings is what came of it
        self._inbox: queue.Queue[Order] = queue.Queue()
        self._course: Course | None = None  # the series that runs
        self._quit = threading.Event()
        self._next_look = 0.0
        self._last_id = 0
        self._thread = threading.Thread(target=self._run, name="acquisition", daemon=True)

    def __enter__(self) -> Acquisition:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the hardware and end the series, so that its file is closed; bounded."""
        self._quit.set()
        if course := self._course:
            course.wish("Abort")
        self._inbox.put(Order(lambda: None, while_busy=True))
        self._thread.join(self._limits.quit + 0.5)
        if self._thread.is_alive():
            log.error("the hardware does not return from a call; its thread is left behind")

    # --- what users ask for ------------------------------------------------------------------------------------------

    def arm(self, request: Request) -> None:
        """Begin a series: everything that can be checked is checked now, the rest goes on elsewhere."""
        self._ask(lambda: self._accept(request, live=False), "Arm")

    def live(self) -> None:
        """Images without a file, until `stop`."""
        self._ask(lambda: self._accept(Request(label="live"), live=True), "Live")

    def trigger(self) -> None:
        """One software trigger. ConfigError when none is waited for."""
        self._ask(self._trigger, "SoftwareTrigger")

    def stop(self, abort: bool = False) -> None:
        """End the series and keep what came; harmless when there is none. Returns at once."""
        word = "Abort" if abort else "Stop"
        if self.snapshot.state in BUSY:
            if course := self._course:
                course.wish(word)
            self._inbox.put(Order(lambda: None, while_busy=True))
        else:
            self._ask(self._stop_idle, word)

    def reset(self) -> None:
        """Acknowledge the error, ours and the receiver's."""
        self._ask(self._reset, "Reset")

    def restart_receiver(self) -> None:
        """Let the receiver begin afresh; returns at once."""
        if self.snapshot.state in BUSY:
            raise ConfigError("RestartReceiver: a series is running; give the command Stop first")
        self._inbox.put(Order(self._restart_receiver))

    def change(self, **values: Any) -> None:
        """Change settings of the hardware; ConfigError says why they cannot be so.

        As long as the hardware is not there they are kept, and loaded when it comes."""
        wanted = replace(self._wanted, **values)
        self._mode(wanted.trigger_mode)
        if self._away:
            self._wanted = wanted
            self._inbox.put(Order(self._catch_up))
        else:
            self._ask(lambda: self._load(wanted), ", ".join(values))
            self._wanted = wanted

    def call(self, function: Callable[[Backend], T], what: str, while_busy: bool = True) -> T:
        """Run something with the backend, in the thread that owns it."""
        return self._ask(lambda: function(self._backend), what, while_busy)

    @property
    def settings(self) -> Settings:
        """What the hardware accepted; what was asked for as long as it has not got it."""
        return self._wanted if self._away or not self._is_loaded() else self.snapshot.settings

    @property
    def _away(self) -> bool:
        return self.snapshot.state in AWAY or self.snapshot.info is None

    def picture(self) -> Picture | None:
        """The newest image that the receiver has; the hardware's own where the receiver has none, or an older one."""
        return self._newest(lambda receiver: receiver.last_frame(), lambda own: own, None)

    def video_image(self) -> bytes:
        """The same for LImA's viewers."""
        return self._newest(
            lambda receiver: receiver.video_image(),
            lambda own: imaging.video_image(own.array, own.number),
            imaging.NO_VIDEO_IMAGE,
        )

    def picture_number(self) -> int:
        """Its number in its series; -1: there is none."""
        return self._newest(lambda receiver: receiver.last_number(), lambda own: own.number, -1)

    def _newest(self, theirs: Callable[[Receiver], T], ours: Callable[[Picture], T], none: T) -> T:
        """What the receiver answers; of the hardware's picture where that is `none`, an error, or of an earlier series:
        until the first frame of a series has come, the receiver shows its last one."""
        earlier = self.snapshot.state in BUSY and self.snapshot.received == 0
        own = self._own_picture() if earlier or self._receiver is None else None
        if own is not None or self._receiver is None:
            return none if own is None else ours(own)
        try:
            answer = theirs(self._receiver)
        except ReceiverError:
            if (own := self._own_picture()) is None:
                raise
            return ours(own)
        if answer == none and (own := self._own_picture()) is not None:
            return ours(own)
        return answer

    def _own_picture(self) -> Picture | None:
        found = self._backend.picture()
        return None if found is None else Picture(*found)

    def _ask(self, act: Callable[[], T], what: str, while_busy: bool = True) -> T:
        """Let the thread do it and wait for the answer, for a bounded time."""
        order = Order(act, while_busy)
        self._inbox.put(order)
        try:
            return order.done.result(self._limits.reply)
        except (FutureTimeout, CancelledError):
            begun = not order.done.cancel()
            rest = "it goes on, look at State" if begun else "it is not done"
            doing = self.snapshot.status
            raise HardwareError(
                f"{what}: no answer within {self._limits.reply:g} s, the device is busy ({doing}); {rest}"
            ) from None

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._quit.is_set():
            try:
                self._turn()
            except DaqError as exc:
                self.fail(str(exc))
            except Exception as exc:  # outermost loop of this thread: it becomes the state
                log.exception("acquisition")
                self.fail(f"internal error: {exc!r}; see the log")
        quietly(self._backend.close)
        if self._receiver:
            self._receiver.close()

    def _turn(self) -> None:
        """One round while no series runs: look after hardware and receiver, then at the inbox."""
        if time.monotonic() >= self._next_look:
            if self.snapshot.state in AWAY:
                self._connect()
            elif self.snapshot.state in READY:
                self._look_after()
            self._next_look = time.monotonic() + self._limits.retry
        self.serve(max(0.0, self._next_look - time.monotonic()))

    @property
    def quitting(self) -> bool:
        """The device is about to be deleted."""
        return self._quit.is_set()

    def serve(self, wait: float) -> None:
        """Do what is in the inbox; waits `wait` seconds at most for the first order."""
        try:
            order = self._inbox.get(timeout=wait) if wait > 0 else self._inbox.get_nowait()
        except queue.Empty:
            return
        while True:
            self._do(order)
            try:
                order = self._inbox.get_nowait()
            except queue.Empty:
                return

    def _do(self, order: Order) -> None:
        if not order.done.set_running_or_notify_cancel():
            return
        try:
            if self.snapshot.state in BUSY and not order.while_busy:
                raise ConfigError(f"not while {self.snapshot.state.value}; give the command Stop first")
            answer = order.act()
        except Exception as exc:
            if not isinstance(exc, DaqError):
                log.exception("order failed")
                exc = HardwareError(f"internal error: {exc!r}; see the log")
            order.done.set_exception(exc)
        else:
            order.done.set_result(answer)
        if self._course and not self._course.begun:
            self._course.run()
            self._course = None

    def enter(self, event: Event, status: str, **more: Any) -> None:
        """Go on to the state that follows, and say why."""
        self.publish(state=after(self.snapshot.state, event), status=status, **more)

    def publish(self, **values: Any) -> None:
        """Replace the snapshot by one with these values."""
        self.snapshot = replace(self.snapshot, **values)
        self._changed(self.snapshot)

    def fail(self, sentence: str) -> None:
        """Go to FAULT."""
        log.error("%s", sentence)
        self.enter(Event.FAIL, f"{sentence}. Give the command Reset", last_error=sentence)

    # --- hardware and receiver while idle ----------------------------------------------------------------------------

    def _connect(self) -> None:
        try:
            info = self._backend.connect()
            problem = ""
            self._configured = None
            while not self._is_loaded():  # again when somebody changes something meanwhile
                problem = self._load_wanted()
            self._read()
        except HardwareError as exc:
            self._lost(exc)
            return
        log.info("connected to %s %s", info.model, info.serial_number)
        more = dict(info=info, endpoints=tuple(self._backend.endpoints()), last_error=problem)
        try:
            receiver = self.ask_receiver()
        except DaqError as exc:
            log.warning("%s", exc)
            self.enter(Event.CONNECTED_ALONE, str(exc), receiver_state="unreachable", **more)
        else:
            self.enter(Event.CONNECTED, problem or "ready", receiver_state=receiver.state, **more)

    def _lost(self, exc: DaqError) -> None:
        if self.snapshot.state is not State.OFFLINE:
            log.warning("hardware unreachable: %s", exc)
        quietly(self._backend.close)
        self.enter(Event.LOST, f"hardware unreachable: {exc}; trying again", last_error=str(exc), readings={})

    def _look_after(self) -> None:
        """Is everything there still? Keeps the sentence of the last series."""
        try:
            status = self._backend.status()
            self._read()
            if status.phase is Phase.ERROR:
                raise HardwareError(status.message or "the hardware reports an error")
        except DaqError as exc:
            self._lost(exc)
            return
        try:
            receiver = self.ask_receiver()
        except DaqError as exc:
            if self.snapshot.state is State.IDLE:
                log.warning("%s", exc)
            self.enter(Event.RECEIVER_LOST, str(exc), receiver_state="unreachable")
        else:
            if self.snapshot.state is State.NO_RECEIVER:
                self.enter(Event.RECEIVER_BACK, "ready")
            if self.snapshot.receiver_state != receiver.state:
                self.publish(receiver_state=receiver.state)

    def look_at_readings(self) -> None:
        """Once a second, also in a series."""
        if time.monotonic() >= self._next_look:
            self._read()

    def _read(self) -> None:
        """What has an alarm level: Tango looks at it whenever somebody asks for the state, so it is kept here."""
        readings = {p.name: p.get(self._backend) for p in self._backend.parameters if p.max_alarm is not None}
        self._next_look = time.monotonic() + self._limits.retry
        self.publish(readings=readings)

    def ask_receiver(self) -> stats.Snapshot:
        """ReceiverError when it does not answer."""
        if self._receiver is None:
            raise ReceiverError(
                "no receiver: set the property Receiver to a StreamReceiver device or an http:// address, then Init"
            )
        return self._receiver.snapshot()

    def _load(self, wanted: Settings) -> None:
        """Give settings to the hardware and show what it made of them."""
        if self.snapshot.state in BUSY:
            raise ConfigError(f"settings cannot be changed while {self.snapshot.state.value}")
        accepted = self._backend.configure(wanted)
        self._configured = wanted
        shape, dtype = self._backend.image_format(accepted)
        latency = self._backend.latency_time(accepted)
        self.publish(settings=accepted, shape=shape, dtype=dtype, latency=latency)

    def _is_loaded(self) -> bool:
        return self._configured == self._wanted

    def _catch_up(self) -> None:
        """Load what was asked for while the hardware was coming."""
        if not self._away and self.snapshot.state not in BUSY and not self._is_loaded():
            refused = self._load_wanted()
            if refused:
                self.publish(status=refused, last_error=refused)

    def _load_wanted(self) -> str:
        """Load what was asked for while the hardware was away; returns what had to be left out, as a sentence."""
        try:
            self._load(self._wanted)
            return ""
        except ConfigError as exc:
            refused = str(exc)
        good = Settings()
        for f in fields(Settings):  # which of them is it? the others are kept
            trial = replace(good, **{f.name: getattr(self._wanted, f.name)})
            try:
                self._load(trial)
                good = trial
            except ConfigError as exc:
                refused = f"a kept setting is refused and left at its default: {exc}"
        self._load(good)
        self._wanted = good
        log.warning("%s", refused)
        return refused

    # --- orders ------------------------------------------------------------------------------------------------------

    def _accept(self, request: Request, live: bool) -> None:
        """Check everything, then leave the idle state; the series itself begins after the caller has its answer."""
        name = "Live" if live else "Arm"
        if self.snapshot.state not in READY:
            raise ConfigError(f"{name}: not while {self.snapshot.state.value} ({self.snapshot.status})")
        receiver = self.ask_receiver()
        if self.snapshot.state is State.NO_RECEIVER:
            self.enter(Event.RECEIVER_BACK, "ready")
        if receiver.state == "error" and not receiver.file:
            receiver = self._acknowledge(receiver)
        if receiver.state == "error":
            raise ReceiverError(
                f"{name}: receiver {self._receiver_name} has an error: {receiver.error}; give the command Reset"
            )
        if receiver.state != "idle":
            raise ConfigError(
                f"{name}: receiver {self._receiver_name} is {receiver.state}"
                f"{' with ' + receiver.file if receiver.file else ''}; give the command Stop"
            )
        if not self._is_loaded():
            self._load(self._wanted)
        settings = self.snapshot.settings
        if live:
            self._configured = None  # the hardware is loaded with other settings than the user's
            settings = self._backend.configure(replace(settings, trigger_mode=self._mode(TriggerMode.INTERNAL)))
        check_together(settings, self._backend.latency_time(settings))
        self._backend.check(settings)
        if request.policy is OverwritePolicy.OVERWRITE and not self._allow_overwrite:
            raise ConfigError("OverwritePolicy: OVERWRITE is only allowed where the property AllowOverwrite is true")
        path, overwrite = self._destination(request, settings)
        self._last_id = max(self._last_id, receiver.series, receiver.opened, receiver.closed) + 1
        series = Series(
            id=self._last_id,
            settings=settings,
            filename=path,
            save_raw=request.save_raw,
            label=request.label,
            metadata=request.metadata,
            live=live,
            overwrite=overwrite,
        )
        self._course = Course(
            self, series, self._backend, self._receiver, self._limits, self._trigger_timeout, receiver
        )
        counters = dict(acquired=0, received=0, written=0, missing=0, rate=0.0)
        self.enter(
            Event.ARM,
            f"arming series {series.id}",
            series=series.id,
            filename=path,
            expected=series.n_frames or 0,
            last_error="",
            **counters,
        )

    def _mode(self, mode: TriggerMode) -> TriggerMode:
        """The same; ConfigError when this detector does not have it."""
        if mode not in self._backend.trigger_modes:
            can = ", ".join(self.snapshot.trigger_modes)
            raise ConfigError(f"TriggerMode: this detector has no {mode.value}; can be {can}")
        return mode

    def _acknowledge(self, receiver: stats.Snapshot) -> stats.Snapshot:
        """An error between two series (a leftover of a broken one, a stray message) does not hold up the next."""
        assert self._receiver is not None
        log.warning("receiver %s: acknowledged: %s", self._receiver_name, receiver.error)
        self._receiver.reset()
        return self._receiver.snapshot()

    @property
    def _receiver_name(self) -> str:
        return self._receiver.name if self._receiver else ""

    def _destination(self, request: Request, settings: Settings) -> tuple[str, bool]:
        """What the receiver will write to; it is asked, because the file system is its own."""
        assert self._receiver is not None
        if not request.filename or not request.save_raw:
            return filenames.complete(request.filename, request.pattern) if not request.save_raw else "", False
        nbytes = settings.n_frames * self._backend.frame_bytes(settings)
        receiver = self._receiver
        return filenames.resolve(
            filenames.complete(request.filename, request.pattern),
            request.policy,
            lambda path, overwrite: receiver.check(path, nbytes, overwrite),
        )

    def _trigger(self) -> None:
        settings = self.snapshot.settings
        if self.snapshot.state is not State.RUNNING or settings.trigger_mode is not TriggerMode.SOFTWARE:
            raise ConfigError(
                f"SoftwareTrigger: none is waited for, the detector is {self.snapshot.state.value} and TriggerMode is "
                f"{settings.trigger_mode.value}; set SOFTWARE, Arm, and wait for RUNNING"
            )
        self._backend.trigger()

    def _stop_idle(self) -> None:
        """Nothing of ours runs; what somebody else left running is ended too."""
        if self.snapshot.state in BUSY:  # an Arm was quicker
            if self._course:
                self._course.wish("Stop")
            return
        if self.snapshot.state not in AWAY:
            quietly(self._backend.stop)
        if self._receiver and self.snapshot.state is not State.NO_RECEIVER:
            quietly(self._stop_receiver)

    def _stop_receiver(self, series: int = 0) -> None:
        if self._receiver:
            open_now = self._receiver.snapshot()
            if open_now.state != "idle" and (not series or open_now.series == series):
                self._receiver.stop(open_now.series)

    def _reset(self) -> None:
        if self.snapshot.state in BUSY:
            raise ConfigError("Reset: a series is running; give the command Stop first")
        if self._receiver:
            quietly(self._reset_receiver, self._receiver)
        if self.snapshot.state is State.FAULT:
            quietly(self._backend.stop)
            self.enter(Event.RESET, "connecting to the hardware", last_error="")
            self._next_look = 0.0
        else:
            self.publish(last_error="", status="ready" if self.snapshot.state is State.IDLE else self.snapshot.status)

    @staticmethod
    def _reset_receiver(receiver: Receiver) -> None:
        before = receiver.snapshot()
        if before.file or before.state == "running":
            receiver.stop(before.series)
            end = time.monotonic() + RESET_LIMIT
            while (now := receiver.snapshot()).file or now.state == "running":
                if time.monotonic() > end:
                    break
                time.sleep(0.02)
        if before.state == "error":
            receiver.reset()

    def _restart_receiver(self) -> None:
        if self._receiver is None:
            return
        before = self.snapshot
        self.publish(status=f"restarting receiver {self._receiver_name}")
        problem = quietly(self._receiver.restart)
        if before.state is State.IDLE:
            self.publish(status=problem or "ready", last_error=problem)
        else:  # what is wrong here is still wrong
            self.publish(status=f"{before.status}; RestartReceiver: {problem}" if problem else before.status)
        self._next_look = 0.0
