"""The thread that takes the frames of a camera and sends them, from the start message to the end message."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from tangods_detector.hw.base import Phase, Status
from tangods_detector.hw.frame_ring import RingStreamer
from tangods_detector.hw.hamamatsu_camera import NO_ERROR, Camera, Found, Waiter
from tangods_detector.hw.hamamatsu_dcam import LOST, Code, DcamError
from tangods_detector.hw.hamamatsu_frames import Numbers
from tangods_detector.hw.hamamatsu_ring import CameraRing
from tangods_detector.settings import Series, TriggerMode
from tangods_receiver.errors import DaqError, HardwareError
from tangods_receiver.security import Guard

log = logging.getLogger(__name__)

LOOK = 0.1  # s; a wait for a frame is never longer, so that a stop is seen
FULL = 0.002  # s; the least while the receiver takes nothing: the camera goes on
TOLD_LIMIT = 1.0  # s after a loss was told, and two periods, until the last frames of a triggered series are given up
STOP_LIMIT = 5.0  # s for a series to end
TAKEN_LIMIT = 5.0  # s for the receiver to take what is left of the series before


@dataclass(frozen=True)
class Plan:
    """What one series sends. `kind`: a PixelType. `nbytes` of a frame in memory, from `offset` on; `stride` None: rows
    are not padded; `period` s between frames at best; `pace` s between the triggers that we fire."""

    series: Series
    metadata: dict[str, Any]
    shape: tuple[int, int]
    kind: int
    dtype: str
    codec: str
    nbytes: int
    offset: int
    stride: int | None
    period: float
    pace: float
    start_limit: float

    @property
    def total(self) -> int | None:
        return self.series.n_frames

    @property
    def free(self) -> bool:
        """The camera needs no triggers."""
        return self.series.settings.trigger_mode is TriggerMode.INTERNAL

    @property
    def software(self) -> bool:
        """We fire each frame, when the one before is sent: no more come while the receiver takes nothing."""
        return self.series.settings.trigger_mode is TriggerMode.SOFTWARE


class Run(threading.Thread):
    """Owns the stream, and the camera while it captures. `begin`, `go` and `halt` wait for it, for a bounded time."""

    def __init__(self, host: str, port: int, guard: Guard | None, ring: CameraRing) -> None:
        super().__init__(name="Hamamatsu frames", daemon=True)
        self._where, self._guard, self._ring = (host, port), guard, ring
        self._orders: queue.Queue[tuple[Plan, Camera, Future[None]] | None] = queue.Queue()
        self._abort = threading.Event()
        self._go = threading.Event()
        self._begun = threading.Event()  # the camera captures, or cannot
        self._idle = threading.Event()
        self._idle.set()
        self._streamer: RingStreamer | None = None
        self._waiter: Waiter | None = None
        self._ending = threading.Lock()  # guards the waiter: who aborts must not meet its end
        self._running: tuple[Plan, Camera] | None = None
        self._phase, self._message, self._blocked, self._frames = Phase.IDLE, "", False, 0
        self._firing = threading.Lock()  # guards the three below
        self._fired = 0  # software triggers that were accepted
        self._each = 0  # frames of each edge or gate; 0: none are waited for
        self._to_fire = 0  # more of ours that a burst needs
        self._fired_at = 0.0
        self._told_at = 0.0  # the library, of a lost frame
        self.bound: Future[str] = Future()
        self.numbers = Numbers()
        self.waiting = 0  # frames that have come and are not sent

    # --- asked from other threads ------------------------------------------------------------------------------------

    def begin(self, plan: Plan, camera: Camera) -> None:
        """Buffers attached and the start message sent; HardwareError when nobody takes it, or `halt` comes first."""
        done: Future[None] = Future()
        self._abort.clear()
        self._go.clear()
        self._begun.clear()
        self._idle.clear()
        self._orders.put((plan, camera, done))
        limit = plan.start_limit + TAKEN_LIMIT + STOP_LIMIT
        try:
            done.result(limit)
        except FutureTimeout:
            raise HardwareError(f"arming took longer than {limit:g} s") from None

    def go(self) -> None:
        """Returns when the camera captures: a client fires the first trigger as soon as it sees RUNNING."""
        self._go.set()
        self._begun.wait(STOP_LIMIT)

    def fire(self) -> None:
        """One software trigger; HardwareError: none is waited for, or the frames of the last one are not there."""
        running, phase = self._running, self._phase
        mode = running[0].series.settings.trigger_mode if running else TriggerMode.INTERNAL
        if running is None or phase is not Phase.ACQUIRING or not running[0].software:
            raise HardwareError(f"software trigger refused: the camera is {phase.value} in {mode.value} mode")
        plan, camera = running
        each = plan.series.settings.n_frames_per_trigger
        with self._firing:
            if self.numbers.next + self.numbers.told < self._fired * each:
                raise HardwareError(
                    f"software trigger refused: busy with frame {self.numbers.next}; send the next one when "
                    "nFramesAcquired has gone up"
                )
            before = self._fired, self._to_fire
            self._fired, self._to_fire = self._fired + 1, each - 1  # the frame may be there before the call returns
            try:
                self._fire_soon(camera, plan)
            except BaseException:
                self._fired, self._to_fire = before
                raise

    def halt(self) -> None:
        """End the series now; returns when the camera stands still and the end message is sent."""
        self._give_up()
        if not self._idle.wait(STOP_LIMIT):
            raise HardwareError(f"the camera did not stop within {STOP_LIMIT:g} s")

    def quit(self) -> bool:
        """False: it is stuck in the vendor's library, which may still use camera and memory."""
        self._give_up()
        self._orders.put(None)
        self.join(STOP_LIMIT)
        return not self.is_alive()

    def _give_up(self) -> None:
        self._abort.set()
        with self._ending:
            if self._waiter is not None:
                self._waiter.abort()

    @property
    def status(self) -> Status:
        triggers = -(-self.numbers.next // self._each) if self._each else self._fired
        blocked = self._blocked or (self._streamer is not None and self._streamer.blocked)
        return Status(self._phase, self._frames, triggers, self._message, blocked)

    # --- the thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._streamer = RingStreamer(*self._where, self._abort, self._guard)
        except DaqError as exc:
            self.bound.set_exception(exc)
            return
        self.bound.set_result(self._streamer.endpoint)
        try:
            while (order := self._orders.get()) is not None:
                self._series(*order)
        finally:
            self._streamer.close()

    def _series(self, plan: Plan, camera: Camera, started: Future[None]) -> None:
        streamer = self._streamer
        assert streamer is not None
        self.numbers, self._message, self._frames, self._blocked = Numbers(self.numbers), "", 0, False
        self._fired = self._to_fire = self.waiting = 0
        settings = plan.series.settings
        external = settings.trigger_mode not in (TriggerMode.INTERNAL, TriggerMode.SOFTWARE)
        self._each = settings.frames_per_start if external else 0
        self._phase = Phase.ARMED
        try:
            self._ring.begin(TAKEN_LIMIT)
            camera.attach(self._ring.addresses)
            streamer.begin(
                plan.series,
                plan.metadata,
                shape=plan.shape,
                dtype=plan.dtype,
                codec=plan.codec,
                limit=plan.start_limit,
            )
            if not plan.free:
                self._start(camera)  # armed: a client sends edges as soon as it sees RUNNING
        except Exception as exc:
            self._stand_still(camera)
            self._phase = Phase.IDLE
            self._idle.set()
            started.set_exception(exc)
            return
        self._running = plan, camera
        started.set_result(None)
        failure = ""
        try:
            self._capture(plan, camera)
        except DaqError as exc:
            failure = str(exc)
        except Exception as exc:  # outermost loop of this thread: it becomes the status
            log.exception("Hamamatsu frames")
            failure = f"internal error: {exc!r}; see the log"
        self._running, self._blocked = None, False
        self._message = "; ".join(filter(None, (failure, self.numbers.describe(plan.total))))
        ended = Phase.IDLE if self._abort.is_set() else Phase.DONE
        if not failure:
            streamer.end()
        self._phase = Phase.ERROR if failure else ended
        self._begun.set()
        self._idle.set()

    def _capture(self, plan: Plan, camera: Camera) -> None:
        """From the first exposure to the last; the camera stands still afterwards."""
        while not self._go.wait(0.02) and not self._abort.is_set():
            pass
        try:
            if self._abort.is_set():
                return
            waiter = self._waiter or self._start(camera)
            self._phase = Phase.ACQUIRING
            self._begun.set()
            self._take(plan, camera, waiter)
            camera.stop()
        finally:
            self._stand_still(camera)

    def _start(self, camera: Camera) -> Waiter:
        self._waiter = waiter = camera.waiter()
        camera.start()
        return waiter

    def _stand_still(self, camera: Camera) -> None:
        """Whatever happened."""
        quietly(camera.stop)
        with self._ending:
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.close()
        quietly(camera.release)

    def _take(self, plan: Plan, camera: Camera, waiter: Waiter) -> None:
        """Frames as they come, until all are there or somebody stops. HardwareError: the camera is lost."""
        numbers, ring, total = self.numbers, self._ring, plan.total
        place = 0  # in the capture, of the next frame to send
        capturing = True
        heard = False  # the library: it tells of lost frames before it tells of one that came
        while not self._abort.is_set() and (total is None or numbers.next < total):
            count = camera.transferred()
            if capturing and total is not None and numbers.next + count - place >= total:
                camera.stop()  # all are there: the camera must not write over what waits
                capturing = False
                count = camera.transferred()
                if not heard:  # nor is there anything to wait for any more; what it told is there at once
                    self._collect_losses(plan, camera, waiter)
                    heard = True
            ring.guard(count, camera.transferred)
            if capturing:
                if total is None or total - numbers.next + ring.margin // 2 > ring.buffers:
                    place = ring.place(place, count)  # else the camera ends before it comes round
            else:
                place = max(place, count - ring.buffers + 1)
            self.waiting = count - place
            if place < count and heard:
                if ring.has_room(place) and self._send(plan, camera, waiter, place):
                    place += 1
                    self._blocked = False
                    self._next_of_burst(plan, camera)
                else:
                    self._blocked = True
                    soon = max(FULL, ring.slack(place, count) * plan.period / 2)
                    ring.ring.wait(min(LOOK / 2, LOOK if plan.software else soon))
                continue
            code = self._listen(plan, camera, waiter, LOOK)
            heard = heard or code == NO_ERROR or (code == Code.TIMEOUT and place < count)
            if code not in LOST and numbers.told and self._no_more_come(plan):
                numbers.give_up_told()

    def _listen(self, plan: Plan, camera: Camera, waiter: Waiter, limit: float) -> int:
        """What the library says within `limit` s; its losses are counted. DcamError: anything bad."""
        code = waiter.wait(limit)
        if code in LOST:
            self.numbers.tell(camera.transferred())
            self._told_at = time.monotonic()
            self._next_of_burst(plan, camera)
        elif code not in (NO_ERROR, Code.TIMEOUT, Code.ABORT, Code.NOTBUSY) and not self._abort.is_set():
            raise DcamError("dcamwait_start", code)
        return code

    def _collect_losses(self, plan: Plan, camera: Camera, waiter: Waiter) -> None:
        """What the library has to tell of them now."""
        while self._listen(plan, camera, waiter, 0) in LOST:
            pass

    def _no_more_come(self, plan: Plan) -> bool:
        """What the library told to be lost are the last frames that were to come: no trigger will bring more."""
        if plan.total is None or plan.free:
            return False
        late = time.monotonic() - self._told_at > TOLD_LIMIT + 2 * plan.period
        return late and self.numbers.next + self.numbers.told >= plan.total

    def _send(self, plan: Plan, camera: Camera, waiter: Waiter, place: int) -> bool:
        """False: nobody is connected."""
        ring, streamer = self._ring, self._streamer
        assert streamer is not None
        slot = ring.slot(place)
        found = camera.frame(slot)
        if not self._frames:
            _compare(plan, found, ring.ring.address(slot))
        step = self.numbers.look(place, found.frame_stamp, found.camera_stamp)
        if step.gap > step.over or found.frame_stamp == -1:  # what the library tells now is of this gap
            self._collect_losses(plan, camera, waiter)
            step = self.numbers.look(place, found.frame_stamp, found.camera_stamp)
        if plan.total is None or step.number < plan.total:
            stamps = b'"frame_stamp":%d' % found.frame_stamp
            if found.camera_stamp is not None:
                stamps += b',"camera_stamp":%d' % found.camera_stamp
            if not streamer.send(
                ring.ring,
                slot,
                step.number,
                shape=plan.shape,
                dtype=plan.dtype,
                codec=plan.codec,
                nbytes=plan.nbytes,
                timestamp=found.time or None,
                extra=stamps,
                offset=plan.offset + ring.shift,
                stride=plan.stride,
                wait=False,
            ):
                return False
            ring.given(place, step.number)
            self._frames += 1
        self.numbers.take(step)
        return True

    def _next_of_burst(self, plan: Plan, camera: Camera) -> None:
        if not self._to_fire:
            return
        with self._firing:
            self._abort.wait(max(0.0, self._fired_at + plan.pace - time.monotonic()))
            self._fire_soon(camera, plan)
            self._to_fire -= 1

    def _fire_soon(self, camera: Camera, plan: Plan) -> None:
        """Right after a frame the camera may not be ready for the next."""
        deadline = time.monotonic() + 0.5 + 2 * plan.period
        while not self._abort.is_set():
            try:
                camera.fire()
            except DcamError as exc:
                if exc.code != Code.TOOFREQUENTTRIGGER or time.monotonic() > deadline:
                    raise
                self._abort.wait(0.001)
            else:
                self._fired_at = time.monotonic()
                return


def _compare(plan: Plan, found: Found, address: int) -> None:
    """HardwareError: a frame does not lie in memory as it was said to; what is sent would be no image."""
    rows, columns = plan.shape
    told = (found.kind, found.width, found.height, found.rowbytes)
    expected = (plan.kind, columns, rows, plan.nbytes // rows)
    if told != expected:
        raise HardwareError(
            "the camera's library has frames of pixel type {}, {} x {} pixels, {} bytes a row".format(*told)
            + " in memory, and told {}, {} x {}, {} before the series; nothing was sent".format(*expected)
        )
    if found.address not in (address, address + plan.offset):
        raise HardwareError(
            f"the camera's library has a frame at {found.address:#x} and not in the buffer it was given, {address:#x}"
        )


def quietly(act: Callable[[], object]) -> None:
    """Something went wrong before, or is about to end."""
    try:
        act()
    except HardwareError as exc:
        log.debug("%s", exc)
