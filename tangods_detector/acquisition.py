"""The thread that owns the hardware: arm -> receiver has opened the file -> run -> receiver has closed it -> idle."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from tangods_detector import filenames
from tangods_detector.hw.base import Backend, DetectorInfo, Phase
from tangods_detector.progress import Limits, Progress
from tangods_detector.receiver import Picture, Receiver, ReceiverError
from tangods_detector.settings import OverwritePolicy, Series, Settings, TriggerMode
from tangods_detector.states import AWAY, BUSY, READY, Event, State, after
from tangods_receiver import stats
from tangods_receiver.errors import ConfigError, DaqError, HardwareError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What is recorded besides the settings of the hardware; `filename` as the user wrote it."""

    filename: str = ""
    pattern: str = ""
    policy: OverwritePolicy = OverwritePolicy.ABORT
    save_raw: bool = True
    label: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Everything that clients read, at one moment; replaced as a whole. Numbers are of the running or last series.

    `expected` 0: until it is stopped; `rate` in Hz over the last second, or of the whole series when it is over;
    `readings` are the backend's parameters that have an alarm level."""

    state: State = State.CONNECTING
    status: str = "connecting to the hardware"
    settings: Settings = field(default_factory=Settings)
    info: DetectorInfo | None = None
    endpoints: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    dtype: str = ""
    latency: float = 0.0
    series: int = 0
    filename: str = ""
    expected: int = 0
    acquired: int = 0
    received: int = 0
    written: int = 0
    missing: int = 0
    rate: float = 0.0
    last_error: str = ""
    receiver_state: str = ""
    readings: Mapping[str, float] = field(default_factory=dict)
    trigger_modes: tuple[str, ...] = ()

    @property
    def progress(self) -> float:
        """Percent of the expected frames that the receiver has."""
        return min(100.0, 100.0 * self.received / self.expected) if self.expected else 0.0


@dataclass
class Order:
    """Something for the thread to do; its result, or its error, comes back through `done`."""

    act: Callable[[], Any]
    while_busy: bool = False
    done: Future[Any] = field(default_factory=Future)


class Stopped(Exception):
    """Somebody wants the series to end; `abort` True: at once."""


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
        self._stop: str | None = None  # "Stop" or "Abort", wished for by somebody
        self._quit = threading.Event()
        self._interruptible = False
        self._interrupter: threading.Thread | None = None
        self._next_look = 0.0
        self._last_id = 0
        self._rate: deque[tuple[float, int]] = deque()
        self._thread = threading.Thread(target=self._run, name="acquisition", daemon=True)

    def __enter__(self) -> Acquisition:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the hardware and end the series, so that its file is closed; bounded."""
        self._quit.set()
        self._interrupt()
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
            self._stop = "Abort" if abort or self._stop == "Abort" else "Stop"
            self._interrupt()
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
        modes = self._backend.trigger_modes
        if wanted.trigger_mode not in modes:
            names = ", ".join(sorted(mode.value for mode in modes))
            raise ConfigError(f"TriggerMode: this detector has no {wanted.trigger_mode.value}; can be {names}")
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
        """What the hardware accepted; what was asked for as long as it is not there."""
        return self._wanted if self._away else self.snapshot.settings

    @property
    def _away(self) -> bool:
        return self.snapshot.state in AWAY or self.snapshot.info is None

    def picture(self) -> Picture | None:
        """The newest image that the receiver has."""
        return self._receiver.last_frame() if self._receiver else None

    def picture_number(self) -> int:
        """Its number in its series; -1: there is none."""
        return self._receiver.last_number() if self._receiver else -1

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

    def _interrupt(self) -> None:
        """Make a blocking call of the backend return; in a thread, because that may block too."""
        if self._interruptible and self._interrupter is None:
            thread = threading.Thread(
                target=self._quietly, args=(self._backend.stop,), name="interrupt arming", daemon=True
            )
            self._interrupter = thread
            thread.start()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._quit.is_set():
            try:
                self._turn()
            except DaqError as exc:
                self._fail(str(exc))
            except Exception as exc:  # outermost loop of this thread: it becomes the state
                log.exception("acquisition")
                self._fail(f"internal error: {exc!r}; see the log")
        self._quietly(self._backend.close)
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
        self._serve(max(0.0, self._next_look - time.monotonic()))

    def _serve(self, wait: float) -> None:
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
        series = None
        try:
            if self.snapshot.state in BUSY and not order.while_busy:
                raise ConfigError(f"not while {self.snapshot.state.value}; give the command Stop first")
            series = order.act()
        except Exception as exc:
            if not isinstance(exc, DaqError):
                log.exception("order failed")
                exc = HardwareError(f"internal error: {exc!r}; see the log")
            order.done.set_exception(exc)
        else:
            order.done.set_result(series)
        if isinstance(series, Series):
            self._take(series)

    def _enter(self, event: Event, status: str, **more: Any) -> None:
        self._publish(state=after(self.snapshot.state, event), status=status, **more)

    def _publish(self, **values: Any) -> None:
        self.snapshot = replace(self.snapshot, **values)
        self._changed(self.snapshot)

    def _fail(self, sentence: str) -> None:
        log.error("%s", sentence)
        self._enter(Event.FAIL, f"{sentence}. Give the command Reset", last_error=sentence)

    def _quietly(self, act: Callable[..., Any], *arguments: Any) -> str:
        """Do it; what goes wrong is only a sentence, because something else went wrong before."""
        try:
            act(*arguments)
        except Exception as exc:
            log.warning("%s", exc)
            return str(exc)
        return ""

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
            receiver = self._ask_receiver()
        except DaqError as exc:
            log.warning("%s", exc)
            self._enter(Event.CONNECTED_ALONE, str(exc), receiver_state="unreachable", **more)
        else:
            self._enter(Event.CONNECTED, problem or "ready", receiver_state=receiver.state, **more)

    def _lost(self, exc: DaqError) -> None:
        if self.snapshot.state is not State.OFFLINE:
            log.warning("hardware unreachable: %s", exc)
        self._quietly(self._backend.close)
        self._enter(Event.LOST, f"hardware unreachable: {exc}; trying again", last_error=str(exc))

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
            receiver = self._ask_receiver()
        except DaqError as exc:
            if self.snapshot.state is State.IDLE:
                log.warning("%s", exc)
            self._enter(Event.RECEIVER_LOST, str(exc), receiver_state="unreachable")
        else:
            if self.snapshot.state is State.NO_RECEIVER:
                self._enter(Event.RECEIVER_BACK, "ready")
            if self.snapshot.receiver_state != receiver.state:
                self._publish(receiver_state=receiver.state)

    def _read(self) -> None:
        """What has an alarm level is read once a second: Tango looks at it whenever somebody asks for the state."""
        readings = {p.name: p.get(self._backend) for p in self._backend.parameters if p.max_alarm is not None}
        self._next_look = time.monotonic() + self._limits.retry
        self._publish(readings=readings)

    def _ask_receiver(self) -> stats.Snapshot:
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
        self._publish(settings=accepted, shape=shape, dtype=dtype, latency=latency)

    def _is_loaded(self) -> bool:
        return self._configured == self._wanted

    def _catch_up(self) -> None:
        """Load what was asked for while the hardware was coming."""
        if not self._away and self.snapshot.state not in BUSY and not self._is_loaded():
            refused = self._load_wanted()
            if refused:
                self._publish(status=refused, last_error=refused)

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

    def _accept(self, request: Request, live: bool) -> Series:
        """Check everything, then leave the idle state; the series itself begins after the caller has its answer."""
        name = "Live" if live else "Arm"
        if self.snapshot.state not in READY:
            raise ConfigError(f"{name}: not while {self.snapshot.state.value} ({self.snapshot.status})")
        receiver = self._ask_receiver()
        if self.snapshot.state is State.NO_RECEIVER:
            self._enter(Event.RECEIVER_BACK, "ready")
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
        settings = self._live_settings() if live else self.snapshot.settings
        self._check_settings(settings)
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
        self._stop = None
        self._rate.clear()
        counters = dict(acquired=0, received=0, written=0, missing=0, rate=0.0)
        self._enter(
            Event.ARM,
            f"arming series {series.id}",
            series=series.id,
            filename=path,
            expected=series.n_frames or 0,
            last_error="",
            **counters,
        )
        return series

    def _acknowledge(self, receiver: stats.Snapshot) -> stats.Snapshot:
        """An error between two series (a leftover of a broken one, a stray message) does not hold up the next."""
        assert self._receiver is not None
        log.warning("receiver %s: acknowledged: %s", self._receiver_name, receiver.error)
        self._receiver.reset()
        return self._receiver.snapshot()

    @property
    def _receiver_name(self) -> str:
        return self._receiver.name if self._receiver else ""

    def _live_settings(self) -> Settings:
        if TriggerMode.INTERNAL not in self._backend.trigger_modes:
            raise ConfigError("Live: this detector cannot run by itself (TriggerMode INTERNAL)")
        return replace(self.snapshot.settings, trigger_mode=TriggerMode.INTERNAL)

    def _check_settings(self, settings: Settings) -> None:
        shortest = settings.exposure_time + self._backend.latency_time(settings)
        if 0 < settings.frame_time < shortest * (1 - 1e-6):
            raise ConfigError(
                f"FrameTime {settings.frame_time:g} s is shorter than ExposureTime {settings.exposure_time:g} s plus "
                f"LatencyTime {shortest - settings.exposure_time:g} s; set it to {shortest:g} or more, or to 0"
            )
        if settings.trigger_mode is TriggerMode.EXTERNAL_GATE and settings.n_frames_per_trigger != 1:
            raise ConfigError(
                f"nFramesPerTrigger {settings.n_frames_per_trigger}: "
                "in EXTERNAL_GATE each gate is one frame; set it to 1"
            )

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
            self._stop = self._stop or "Stop"
            return
        if self.snapshot.state not in AWAY:
            self._quietly(self._backend.stop)
        if self._receiver and self.snapshot.state is not State.NO_RECEIVER:
            self._quietly(self._stop_receiver)

    def _stop_receiver(self, series: int = 0) -> None:
        if self._receiver:
            open_now = self._receiver.snapshot()
            if open_now.state != "idle" and (not series or open_now.series == series):
                self._receiver.stop(open_now.series)

    def _reset(self) -> None:
        if self.snapshot.state in BUSY:
            raise ConfigError("Reset: a series is running; give the command Stop first")
        if self._receiver:
            self._quietly(self._reset_receiver, self._receiver)
        if self.snapshot.state is State.FAULT:
            self._quietly(self._backend.stop)
            self._enter(Event.RESET, "connecting to the hardware", last_error="")
            self._next_look = 0.0
        else:
            self._publish(last_error="", status="ready" if self.snapshot.state is State.IDLE else self.snapshot.status)

    @staticmethod
    def _reset_receiver(receiver: Receiver) -> None:
        before = receiver.snapshot()
        if before.file or before.state == "running":
            receiver.stop(before.series)
        if before.state == "error":
            receiver.reset()

    def _restart_receiver(self) -> None:
        if self._receiver is None:
            return
        self._publish(status=f"restarting receiver {self._receiver_name}")
        problem = self._quietly(self._receiver.restart)
        self._publish(status=problem or "ready", last_error=problem)
        self._next_look = 0.0

    # --- a series ----------------------------------------------------------------------------------------------------

    def _take(self, series: Series) -> None:
        """One series, from the first word to the hardware until the receiver has closed its file."""
        armed = False
        try:
            self._heed()
            self._arm_hardware(series)
            armed = True
            self._heed()
            self._wait_opened(series)
            self._enter(Event.READY, self._what_runs(series))
            self._backend.start()  # INTERNAL begins, or triggers are let through
            self._watch(series)
            self._enter(Event.DONE, f"series {series.id}: waiting for the receiver to close the file")
            self._backend.stop()
            receiver = self._wait_closed(series, self._limits.closed)
        except Stopped:
            self._end_early(series, armed)
        except DaqError as exc:
            if (self._stop or self._quit.is_set()) and not armed:  # the stop has broken off the arming
                self._end_early(series, armed)
            else:
                self._break_off(series, exc)
        except Exception as exc:  # a bug, perhaps in a vendor's library: the hardware must be stopped all the same
            log.exception("series %d", series.id)
            self._break_off(series, HardwareError(f"internal error: {exc!r}; see the log"))
        else:
            self._judge(series, receiver, "")

    def _arm_hardware(self, series: Series) -> None:
        """May block for long (an Eiger takes minutes), so a Stop interrupts it. When it returns the start message is on
        its way."""
        self._interruptible = True
        try:
            self._backend.arm(series)
        finally:
            self._interruptible = False
            if self._interrupter:
                self._interrupter.join(self._limits.closed)
                self._interrupter = None

    def _heed(self) -> None:
        """Raise Stopped when somebody has asked for it."""
        if self._stop or self._quit.is_set():
            raise Stopped

    def _what_runs(self, series: Series) -> str:
        mode = series.settings.trigger_mode
        where = series.filename if series.filename and series.save_raw else "no file"
        if series.live:
            return f"series {series.id}: live view until Stop"
        waiting = "" if mode is TriggerMode.INTERNAL else f", {series.settings.n_starts} triggers ({mode.value})"
        return f"series {series.id}: {series.n_frames} frames{waiting} into {where}"

    def _wait_opened(self, series: Series) -> None:
        deadline = time.monotonic() + self._limits.opened
        while True:
            receiver = self._look_at_receiver(deadline)
            if receiver and receiver.opened >= series.id:
                return
            if receiver and receiver.state == "error":
                raise ReceiverError(f"receiver {self._receiver_name}: {receiver.error}")
            if time.monotonic() > deadline:
                raise ReceiverError(
                    f"receiver {self._receiver_name} did not open series {series.id} within {self._limits.opened:g} s; "
                    f"is it connected to {', '.join(self._backend.endpoints())}?"
                )
            self._serve(0.003)
            self._heed()

    def _look_at_receiver(self, deadline: float) -> stats.Snapshot | None:
        """None: it does not answer at the moment; ReceiverError when it has not until the deadline."""
        try:
            return self._ask_receiver()
        except DaqError:
            if time.monotonic() > deadline:
                raise
            return None

    def _watch(self, series: Series) -> None:
        """Until the hardware is done. Looks at it 50 times a second, at the receiver 10 times."""
        progress = Progress(series, self._backend.latency_time(series.settings), self._limits, self._trigger_timeout)
        next_receiver = 0.0
        answered = time.monotonic()
        begun = answered
        while True:
            status = self._backend.status()
            now = time.monotonic()
            if now >= self._next_look:
                self._read()
            values: dict[str, Any] = {}
            if status.frames != self.snapshot.acquired:
                values.update(acquired=status.frames, rate=self._measured(now, status.frames))
            if now >= next_receiver:
                next_receiver = now + 0.1
                receiver = self._look_at_receiver(answered + self._limits.receiver)
                if receiver:
                    answered = now
                    self._check_receiver(series, receiver)
                    values.update(self._counters(receiver))
            values = {name: value for name, value in values.items() if value != getattr(self.snapshot, name)}
            if values:
                self._publish(**values)
            if status.phase is Phase.ERROR:
                raise HardwareError(status.message or "the hardware reports an error")
            if status.phase in (Phase.DONE, Phase.IDLE):
                if status.frames and now > begun:
                    self._publish(rate=status.frames / (now - begun))
                return
            progress.see(status, now)
            self._serve(0.02)
            self._heed()

    def _measured(self, now: float, frames: int) -> float:
        """Frames per second over the last second."""
        self._rate.append((now, frames))
        while now - self._rate[0][0] > 1.0 and len(self._rate) > 2:
            self._rate.popleft()
        (t0, n0), (t1, n1) = self._rate[0], self._rate[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

    def _check_receiver(self, series: Series, receiver: stats.Snapshot) -> None:
        """ReceiverError when the series cannot go on there."""
        if receiver.opened < series.id:
            raise ReceiverError(
                f"receiver {self._receiver_name} was restarted during series {series.id}; "
                f"frames that it had not written are lost{' (' + series.filename + ')' if series.filename else ''}"
            )
        if receiver.state == "error" and (not receiver.rejected or receiver.closed >= series.id):
            raise ReceiverError(f"receiver {self._receiver_name}: {receiver.error}")
        if (
            receiver.closed >= series.id
            and self.snapshot.state is State.RUNNING
            and not self._all_there(series, receiver)
        ):
            raise ReceiverError(
                f"receiver {self._receiver_name} closed series {series.id} before its end; was it stopped by hand?"
            )

    @staticmethod
    def _all_there(series: Series, receiver: stats.Snapshot) -> bool:
        unique = receiver.written + receiver.discarded + receiver.missing
        return series.n_frames is not None and unique >= series.n_frames

    @staticmethod
    def _counters(receiver: stats.Snapshot) -> dict[str, Any]:
        return {
            "received": receiver.written + receiver.discarded,
            "written": receiver.written,
            "missing": receiver.missing,
            "receiver_state": receiver.state,
        }

    def _wait_closed(self, series: Series, limit: float, heed: bool = True) -> stats.Snapshot:
        """Until the receiver has closed the series; the limit counts from when it last did anything."""
        deadline = time.monotonic() + limit
        done = -1
        while True:
            receiver = self._look_at_receiver(time.monotonic() + 1.0 if time.monotonic() < deadline else 0.0)
            if receiver:
                values = {k: v for k, v in self._counters(receiver).items() if v != getattr(self.snapshot, k)}
                if values:
                    self._publish(**values)
                if receiver.closed >= series.id:
                    return receiver
                if receiver.opened < series.id and heed:
                    self._check_receiver(series, receiver)
                if receiver.received != done:
                    done, deadline = receiver.received, time.monotonic() + limit
            if self._stop == "Abort" and limit > self._limits.aborted:  # asked for while we wait
                limit, deadline = self._limits.aborted, time.monotonic() + self._limits.aborted
            if time.monotonic() > deadline:
                count = receiver.written + receiver.discarded if receiver else self.snapshot.received
                raise ReceiverError(
                    f"receiver {self._receiver_name} did not close series {series.id} within {limit:g} s: "
                    f"{count} of {self.snapshot.acquired} frames and no end came through"
                )
            self._serve(0.005)
            if heed:
                self._heed()

    def _end_early(self, series: Series, armed: bool) -> None:
        """Stop or Abort: what came is kept, the file is closed."""
        word = self._stop or "Stop"
        limit = self._limits.aborted if word == "Abort" or self._quit.is_set() else self._limits.closed
        self._enter(Event.STOP, f"series {series.id}: stopping")
        problem = self._quietly(self._backend.stop)
        if self._quit.is_set():
            limit = min(limit, self._limits.quit / 2)
        if not armed:
            self._enter(Event.CLOSED, f"series {series.id} stopped before it began")
            return
        try:
            receiver = self._stop_at_receiver(series, limit)
        except DaqError as exc:
            self._fail(f"series {series.id} stopped: {exc}")
            return
        if problem:
            self._fail(f"series {series.id} stopped, but {problem}")
            return
        self._judge(series, receiver, f"ended by {word}")

    def _stop_at_receiver(self, series: Series, limit: float) -> stats.Snapshot:
        """Let the receiver close the series with what came. The start message may still be under way to it."""
        deadline = time.monotonic() + limit
        while (receiver := self._look_at_receiver(deadline)) is None or receiver.opened < series.id:
            if time.monotonic() > deadline:
                raise ReceiverError(f"receiver {self._receiver_name} did not open it within {limit:g} s")
            self._serve(0.005)
        if receiver.closed < series.id:
            assert self._receiver is not None
            self._receiver.stop(series.id)
        return self._wait_closed(series, limit, heed=False)

    def _break_off(self, series: Series, why: DaqError) -> None:
        """An error: the hardware is stopped, the file closed if that can be, and the state says why."""
        self._quietly(self._backend.stop)
        try:
            status = self._backend.status()
            self._publish(acquired=max(self.snapshot.acquired, status.frames))
        except DaqError:
            pass
        if self._receiver:
            try:
                if self._receiver.snapshot().opened >= series.id:
                    self._stop_at_receiver(series, self._limits.aborted)
            except DaqError as exc:
                log.warning("%s", exc)
        self._fail(f"series {series.id}: {why}")

    def _judge(self, series: Series, receiver: stats.Snapshot, ended: str) -> None:
        """The file is closed: was it a good series?"""
        try:
            acquired = max(self.snapshot.acquired, self._backend.status().frames)
        except DaqError:
            acquired = self.snapshot.acquired
        unique = receiver.written + receiver.discarded
        missing = max(0, acquired - unique) if ended else receiver.missing
        self._publish(**{**self._counters(receiver), "acquired": acquired, "missing": missing})
        if receiver.state == "error":
            self._fail(f"series {series.id}: receiver {self._receiver_name}: {receiver.error}")
            return
        text = f"series {series.id} {ended or 'complete'}: {unique} frames"
        if series.filename and series.save_raw:
            text += f" in {series.filename}"
        problem = ""
        if missing:
            problem = f"{missing} of {unique + missing} frames are missing in series {series.id}"
            text = f"{text}; {problem}"
            log.warning("%s", text)
        self._enter(Event.CLOSED, text, last_error=problem)
