"""The data thread of an SDK3 camera: takes filled buffers, sends them from where they lie, queues them again."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

from tangods_detector.hw.andor_frames import Layout, Numbers, ticks_of
from tangods_detector.hw.andor_sdk import NODATA, OVERFLOW, TIMEDOUT, Camera, SdkError
from tangods_detector.hw.andor_settings import AndorOptions
from tangods_detector.hw.base import Phase, Status
from tangods_detector.hw.frame_ring import FrameRing, RingStreamer
from tangods_detector.settings import Series, TriggerMode
from tangods_receiver import security
from tangods_receiver.errors import DaqError, HardwareError

log = logging.getLogger(__name__)

WAIT = 50  # ms in the library at a time; a stop is seen after it
BACK_PRESSURE_LIMIT = 120.0  # s that a frame may wait for somebody to connect
STOP_LIMIT = 10.0  # s for the library to let us go
LOOK = 1.0  # s between two looks whether a silent camera is still there
REPEATS = 1.0  # s that the library may tell of overflows, beyond the time of two frames, and no frame comes
LAST = 0.2  # s that a camera which has stopped by itself may take to deliver its last frame


@dataclass
class Clock:
    """The camera's ticks as seconds since 1970; `hz` 0: there are none, and frames have the time when they came."""

    hz: int
    ticks: int = 0
    seconds: float = 0.0

    @classmethod
    def now(cls, camera: Camera, hz: int) -> Clock:
        if not hz or not camera.has("TimestampClock"):
            return cls(0)
        before = time.time()
        ticks = camera.get_int("TimestampClock")
        return cls(hz, ticks, (before + time.time()) / 2)

    def at(self, ticks: int | None) -> float | None:
        if not self.hz or ticks is None:
            return None
        return self.seconds + (ticks - self.ticks) / self.hz


@dataclass
class Run:
    """One series: what is to be done, and how far it is. Written by the data thread but for `wanted`, `fired`."""

    series: Series
    camera: Camera
    layout: Layout
    metadata: Mapping[str, Any]
    exposure: float  # s
    period: float  # s between frames, where the camera decides that
    numbers: Numbers
    armed: Future[None] = field(default_factory=Future)
    begun: Future[None] = field(default_factory=Future)
    go: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    frames: int = 0
    phase: Phase = Phase.ARMED
    failure: str = ""
    overflows: int = 0  # that AT_WaitBuffer told of
    wanted: int = 0  # frames of the last software trigger that are still to be triggered
    fired: float = 0.0  # when the last was; 0: none is under way
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def mode(self) -> TriggerMode:
        return self.series.settings.trigger_mode

    def overflow(self) -> None:
        """The library tells of a lost frame; it does so once when it is asked to, too."""
        if self.phase is Phase.ACQUIRING:
            self.numbers.overflow()

    @property
    def triggers(self) -> int:
        """Accepted. Where an edge or gate is a frame, those that gave one."""
        if self.mode is TriggerMode.SOFTWARE:
            each = self.series.settings.frames_per_start
            return (self.numbers.next + self.wanted + (self.fired > 0)) // each
        if self.mode in (TriggerMode.EXTERNAL_MULTI, TriggerMode.EXTERNAL_GATE):
            return self.frames
        return int(self.frames > 0)

    @property
    def remark(self) -> str:
        """What was lost, as a sentence."""
        losses, words = self.numbers.losses, []
        missed = losses.count - self.numbers.dropped
        if losses.count:
            words.append(f"{losses.count} frames were lost: {losses}")
        if self.numbers.dropped:
            words.append("the receiver was too slow, and the memory for frames was full")
        if missed:
            full = f", or its own memory was full (AT_ERR_HARDWARE_OVERFLOW {self.overflows} times)"
            words.append(f"{missed} of them by the camera: it had no buffer{full if self.overflows else ''}")
        if self.numbers.told and self.phase is Phase.ACQUIRING:
            words.append(f"the camera had no buffer for {self.numbers.told} frames after the last one that came")
        if self.numbers.damaged:
            words.append(f"{self.numbers.damaged} frames came with damaged metadata")
        return "; ".join(words)


class Pump(threading.Thread):
    """Owns the stream. Orders come by `arm`, `go`, `halt`, `quit`, which wait for it, for a bounded time."""

    def __init__(self, options: AndorOptions, port: int, ring: FrameRing) -> None:
        super().__init__(name="andor frames", daemon=True)
        self._options, self._port, self._ring = options, port, ring
        self._orders: queue.Queue[Run | None] = queue.Queue()
        self._abort = threading.Event()
        self._streamer: RingStreamer | None = None
        self.bound: Future[str] = Future()
        self.current: Run | None = None
        self._starved = False

    # --- asked from other threads ---

    def arm(self, run: Run) -> None:
        """Buffers queued and the start message sent when it returns; HardwareError when that fails."""
        self._abort.clear()
        self.current = run
        self._orders.put(run)
        _wait(run.armed, self._options.send_timeout + STOP_LIMIT, "the camera was not armed")

    def go(self) -> None:
        """The camera acquires, or waits for triggers, when it returns."""
        if (run := self.current) is not None and not run.over.is_set():
            run.go.set()
            _wait(run.begun, STOP_LIMIT, "the camera did not start")

    def trigger(self) -> None:
        """One software trigger is accepted; the frames that follow it are triggered one by one."""
        run = self.current
        if run is None or run.phase is not Phase.ACQUIRING or run.mode is not TriggerMode.SOFTWARE:
            raise HardwareError("software trigger refused: the camera does not wait for one")
        with run.lock:
            if run.wanted or run.fired:
                raise HardwareError(
                    f"software trigger refused: busy with frame {run.numbers.next}; "
                    "send the next one when nFramesAcquired has gone up"
                )
            run.wanted = run.series.settings.frames_per_start
            try:
                self._fire_next(run)
            except HardwareError:
                run.wanted = 0
                raise

    def halt(self) -> None:
        """End the series now; the end message is sent."""
        self._abort.set()
        if (run := self.current) is not None and not run.over.wait(STOP_LIMIT):
            raise HardwareError(f"the camera did not stop within {STOP_LIMIT:g} s; the vendor's library hangs")

    def quit(self) -> bool:
        """False: it hangs in the library and is left alone."""
        self._abort.set()
        self._orders.put(None)
        self.join(STOP_LIMIT)
        return not self.is_alive()

    @property
    def status(self) -> Status:
        run = self.current
        if run is None:
            return Status(Phase.IDLE)
        blocked = self._starved or (self._streamer is not None and self._streamer.blocked)
        return Status(run.phase, run.frames, run.triggers, run.failure or run.remark, blocked)

    # --- the thread ---

    def run(self) -> None:
        o = self._options
        try:
            guard = security.guard(o.curve_key, o.curve_clients, o.allow_peers)
            self._streamer = RingStreamer(o.host, self._port, self._abort, guard)
        except DaqError as exc:
            self.bound.set_exception(exc)
            return
        self.bound.set_result(self._streamer.endpoint)
        try:
            while (run := self._orders.get()) is not None:
                self._series(run, self._streamer)
        finally:
            self._streamer.close()

    def _series(self, run: Run, streamer: RingStreamer) -> None:
        """From the first buffer to the end message."""
        try:
            self._prepare(run, streamer)
        except Exception as exc:
            run.phase = Phase.IDLE
            _quietly(run.camera.flush)
            run.over.set()
            run.armed.set_exception(exc)
            return
        run.armed.set_result(None)
        try:
            self._expose(run, streamer)
        except HardwareError as exc:
            run.failure = str(exc)
        except Exception as exc:  # outermost loop of this thread: it becomes the status
            log.exception("andor")
            run.failure = f"internal error: {exc!r}; see the log"
        aborted = self._abort.is_set()
        self._starved = False
        _quietly(run.camera.command, "AcquisitionStop")
        _quietly(run.camera.flush)
        if not aborted and not run.failure:
            run.numbers.finish()
        if not run.failure:
            streamer.end()
        if not run.begun.done():
            run.begun.set_result(None)
        run.phase = Phase.ERROR if run.failure else Phase.IDLE if aborted else Phase.DONE
        run.over.set()

    def _prepare(self, run: Run, streamer: RingStreamer) -> None:
        layout, o = run.layout, self._options
        run.camera.flush()
        self._wait_for_room(o.send_timeout)
        for slot in self._ring.ours():
            self._queue(run, slot)
        streamer.begin(
            run.series, run.metadata, shape=layout.shape, dtype="uint16", codec=layout.codec, limit=o.send_timeout
        )

    def _wait_for_room(self, limit: float) -> None:
        """Of the series before frames may still be under way."""
        deadline = time.monotonic() + limit
        self._ring.back()
        while not self._has_room:
            if self._abort.is_set():
                raise HardwareError("stopped before the receiver had taken the frames of the series before")
            if time.monotonic() > deadline:
                raise HardwareError(
                    f"{self._ring.held} frames of the series before are not taken by the receiver within {limit:g} s; "
                    "is it stuck? Restart it"
                )
            self._ring.wait(0.05)
            self._ring.back()

    def _queue(self, run: Run, slot: int) -> None:
        run.camera.queue(self._ring.address(slot), run.layout.nbytes)
        run.numbers.queued += 1

    def _expose(self, run: Run, streamer: RingStreamer) -> None:
        """Until all frames came, or could not; HardwareError when they do not come any more."""
        while not run.go.wait(0.02):
            if self._abort.is_set():
                return
        clock = Clock.now(run.camera, run.layout.hz)
        silence = Silence(run, self._options.frame_timeout)
        try:
            run.camera.command("AcquisitionStart")
        except HardwareError as exc:
            run.failure, run.phase = str(exc), Phase.ERROR
            run.begun.set_exception(exc)
            raise
        run.phase = Phase.ACQUIRING
        run.begun.set_result(None)
        ring, layout, numbers = self._ring, run.layout, run.numbers
        total = run.series.n_frames
        wait = run.camera.waiter()
        silence.broken()
        while not self._abort.is_set() and (total is None or numbers.next < total):
            self._take_back(run)
            self._fire(run)
            if run.wanted and not run.fired:  # no room: nothing is triggered, and nothing comes
                silence.broken()
                ring.wait(0.05)
                continue
            code, address = wait(WAIT)
            if code == 0:
                silence.broken()
                slot = ring.slot(address)
                ticks = ticks_of(ring.memory(slot, layout.nbytes)) if layout.hz else None
                exposed = clock.at(ticks)
                number = numbers.take(ticks, exposed)
                with run.lock:  # not before the one who triggered has noted it
                    run.fired = 0.0
                if not self._has_room:
                    self._take_back(run)
                self._starved = not self._has_room
                if self._starved:
                    numbers.drop()
                    self._queue(run, slot)
                elif not streamer.send(
                    ring,
                    slot,
                    number,
                    shape=layout.shape,
                    dtype="uint16",
                    codec=layout.codec,
                    nbytes=layout.image_bytes,
                    stride=layout.stride,
                    timestamp=exposed,
                    extra=b'"camera_ticks":%d' % ticks if ticks is not None else b"",
                    limit=BACK_PRESSURE_LIMIT,
                ):
                    return
                else:
                    run.frames += 1
                continue
            if code == OVERFLOW:
                run.overflows += 1
                if total is not None and not numbers.period:
                    raise HardwareError(
                        f"the camera's own memory was full (AT_ERR_HARDWARE_OVERFLOW) after {run.frames} frames, and "
                        "nothing tells which ones it lost: those that came are at their places, "
                        "later ones could not be put at theirs; use a lower rate, or a faster link"
                    )
            elif code not in (TIMEDOUT, NODATA):
                raise SdkError(code, f"AT_WaitBuffer after {run.frames} frames")
            if silence.is_the_end(code):
                return

    def _take_back(self, run: Run) -> None:
        for slot in self._ring.back():
            self._queue(run, slot)

    @property
    def _has_room(self) -> bool:
        """One more frame may wait to be sent. The last few slots are always the camera's: if it had none it would lose
        frames, and nobody would know which."""
        ring = self._ring
        return ring.count - ring.held > spare(ring.count)

    def _fire(self, run: Run) -> None:
        if run.wanted:
            with run.lock:
                self._fire_next(run)

    def _fire_next(self, run: Run) -> None:
        """The next software trigger, when one is wanted, the camera is ready and its frame has room. Locked."""
        self._starved = not self._has_room
        if run.wanted and not run.fired and not self._starved:
            run.wanted -= 1
            run.fired = time.monotonic()
            try:
                run.camera.command("SoftwareTrigger")
            except HardwareError:
                run.fired = 0.0
                raise


class Silence:
    """No frame comes: is that right?"""

    def __init__(self, run: Run, limit: float) -> None:
        self._run, self._limit = run, limit
        self._begun = time.monotonic()
        self.broken()

    def broken(self) -> None:
        """A frame came, or none can."""
        self._since = self._looked = time.monotonic()
        if self._run.mode is TriggerMode.EXTERNAL_SINGLE and not self._run.numbers.came:
            self._begun = self._since
        self._full = 0.0  # since when AT_WaitBuffer tells of overflows; 0: it does not
        self._stopped = 0.0  # when the camera was first seen so; 0: it was not

    def is_the_end(self, code: int) -> bool:
        """The camera has stopped by itself. HardwareError: it is gone, frames are overdue, an overflow stopped it."""
        now, run = time.monotonic(), self._run
        if code == OVERFLOW:
            self._full = self._full or now
        if code != TIMEDOUT or self._stopped or now - self._looked >= LOOK:
            self._looked = now
            if not run.camera.get_bool("CameraAcquiring"):
                self._stopped = self._stopped or now
                if now - self._stopped >= LAST:
                    if self._overflowed and self._is_too_soon():
                        raise self._full_memory("it has ended the acquisition")
                    return True
            if code != TIMEDOUT:
                time.sleep(0.002)
        frames = 2 * max(run.period, run.exposure)
        if code == OVERFLOW and now - self._full > (limit := frames + REPEATS):
            raise self._full_memory(f"for {limit:.3g} s it has told so and given no frame")
        since = max(self._since, run.fired) if run.mode is TriggerMode.SOFTWARE else self._since
        if self._is_due() and now - since > (limit := frames + self._limit):
            if self._overflowed:
                raise self._full_memory(f"it has given no frame for {limit:.3g} s, although it says that it acquires")
            raise HardwareError(
                f"the camera gave no frame for {limit:.3g} s, although it says that it acquires ({run.frames} came); "
                "look at its cable, or switch it off and on"
            )
        return False

    @property
    def _overflowed(self) -> bool:
        """Since the last frame came."""
        return self._full > 0 or self._run.numbers.told > 0

    def _is_too_soon(self) -> bool:
        """For a camera that has taken all of its frames, even if it could not deliver the last ones."""
        run, total = self._run, self._run.series.n_frames
        if total is None:
            return True
        if run.numbers.period:
            return self._stopped - self._begun < 0.999 * (total - 1) * run.period
        return run.numbers.next + run.numbers.told < total

    def _full_memory(self, what: str) -> HardwareError:
        told = "AT_ERR_HARDWARE_OVERFLOW" if self._full else "BufferOverflowEvent"
        return HardwareError(
            f"the camera could not deliver its frames ({told}) after {self._run.frames} of them, and {what}; "
            "use a lower rate, a smaller region or a faster link, then Reset and Arm"
        )

    def _is_due(self) -> bool:
        run = self._run
        if run.mode is TriggerMode.SOFTWARE:
            return run.fired > 0
        if run.mode is TriggerMode.EXTERNAL_SINGLE:
            return run.frames > 0
        return run.mode is TriggerMode.INTERNAL


def spare(count: int) -> int:
    """Slots of a ring that frames are never sent from."""
    return max(1, min(16, count // 4))


def _wait(done: Future[None], limit: float, what: str) -> None:
    try:
        done.result(limit)
    except FutureTimeout:
        raise HardwareError(f"{what} within {limit:g} s; the vendor's library hangs") from None


def _quietly(act: Callable[..., Any], *arguments: Any) -> None:
    try:
        act(*arguments)
    except DaqError as exc:
        log.debug("%s", exc)
