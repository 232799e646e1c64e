"""One module of a Lambda unit: its frames from the ring to the receiver, in a thread with a port of its own.

Each module is a sender by itself, for the receiver joins the frames of several senders by their number: so no module
waits for another, and libzmq has a thread for each.

The pixels stay in the memory of the vendor's library: libzmq sends from there, and the frame is given back to the ring
when libzmq is done with it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import Any

import numpy as np
import zmq

from tangods_detector.hw.frame_ring import MESSAGES, SLOTS_MAX, Loans
from tangods_detector.hw.lambda_job import Course, Job, Look
from tangods_detector.hw.lambda_numbers import Numbers
from tangods_detector.hw.lambda_system import FrameStatus, LambdaSystem, RawFrame
from tangods_detector.streamer import LOOK, Streamer
from tangods_receiver import ledger as ledgers
from tangods_receiver.errors import HardwareError
from tangods_receiver.ledger import Ledger, Verdict
from tangods_receiver.protocol import stins
from tangods_receiver.security import Guard

log = logging.getLogger(__name__)

END_LIMIT = 5.0  # s for the end message, and for what is still in the socket
QUICKLY = 1.0  # s for the same, when nothing is waited for any longer
RANGES = 100  # of missing frames that are told
LEAST = 4  # frames that may be with libzmq at a time


class ModuleStreamer(Streamer):
    """Sends memory that is lent, one message for each frame. Made, used and closed in one thread."""

    def __init__(self, host: str, port: int, abort: threading.Event, guard: Guard | None) -> None:
        super().__init__(host, port, MESSAGES, 1, abort, guard)

    def lend(self, loans: Any, slot: int, head: bytes, address: int, nbytes: int) -> bool:
        """Waits while nobody is connected; False: not sent, because of `abort`."""
        try:
            while not self.abort.is_set():
                if loans.send(self._socket, head, slot, address, nbytes):
                    self.serial += 1
                    return True
                self.blocked = True
                self._socket.poll(int(LOOK * 1000), zmq.POLLOUT)
            return False
        finally:
            self.blocked = False

    def attend(self) -> None:
        """Have libzmq let go of what it held for a receiver that went: it does so in our calls only."""
        self._socket.getsockopt(zmq.EVENTS)


class ModuleStream:
    """The thread and what others may read. `position` in the unit, `number` in the whole image; `look` gives what the
    unit told last; at most `memory` bytes of frames are with libzmq."""

    def __init__(
        self,
        system: LambdaSystem,
        position: int,
        number: int,
        name: str,
        look: Callable[[], Look],
        *,
        host: str,
        port: int,
        memory: int,
        guard: Guard | None,
    ) -> None:
        self.number = number
        self.name = name
        self.endpoint = ""
        self.phase = "idle"  # arming, armed, over, done, error
        self.error = ""  # why it is in error
        self.remark = ""  # what was wrong with a frame
        self.finished = 0  # starts of which nothing more comes
        self.last = 0.0  # when a frame came, monotonic
        self.came = False  # one of this start
        self.sent = self.incomplete = self.repeated = self.foreign = self.failed = self.stale = 0
        self.ledger = Ledger(0)
        self._system, self._position, self._look = system, position, look
        self._address = host, port
        self._memory, self._guard = memory, guard
        self._missing: dict[bool, tuple[int, list[list[int]]]] = {}  # of the series that is over
        self._inbox: queue.Queue[Course] = queue.Queue()
        self._closing = threading.Event()
        self._abort = threading.Event()
        self._thread: threading.Thread | None = None
        self._streamer: ModuleStreamer
        self._loans: Any = Loans(SLOTS_MAX)
        self._lent: dict[int, RawFrame] = {}
        self._free = list(range(SLOTS_MAX))
        self._most = LEAST
        self._numbers = Numbers(system.counter_bits)
        self._shared = system.dual_shares_numbers
        self._skips_zero: bool | None = None
        self._current = 0  # the start that `_numbers` are of
        self._resting = inf  # since when nothing moves

    # --- what the unit calls -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """HardwareError: the port is not to be had."""
        ready: Future[str] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name=f"module {self.number}")
        self._thread.start()
        try:
            self.endpoint = ready.result()
        except Exception:
            self._thread.join()
            self._thread = None
            raise

    def close(self) -> None:
        """Every frame is back in the ring. Safe twice."""
        self._closing.set()
        self._abort.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def begin(self, course: Course) -> None:
        """Send the start message; `phase` tells when that is done."""
        self.phase, self.error, self.remark = "arming", "", ""
        self._abort.clear()
        self._inbox.put(course)

    def abort(self) -> None:
        """Whatever it waits for, it waits no longer."""
        self._abort.set()

    @property
    def over(self) -> bool:
        """It sends no more frames of this series."""
        return self.phase in ("over", "done", "error")

    @property
    def held(self) -> int:
        """Frames that are with libzmq, and so not free in the ring."""
        return len(self._lent)

    @property
    def blocked(self) -> bool:
        """The receiver takes nothing."""
        return self.phase == "armed" and (self._streamer.blocked or len(self._lent) >= self._most)

    def missing(self, stopped: bool) -> tuple[int, list[list[int]]]:
        """How many frames did not come, and the first ranges of them; in a stopped series below the last that came."""
        if not self.over:
            return self.ledger.known_missing, []
        if stopped not in self._missing:
            ranges = self.ledger.missing(self.ledger.highest + 1 if stopped else None)
            self._missing[stopped] = ledgers.total(ranges), [list(one) for one in ranges[:RANGES]]
        return self._missing[stopped]

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self, ready: Future[str]) -> None:
        try:
            self._streamer = ModuleStreamer(*self._address, self._abort, self._guard)
        except HardwareError as exc:
            ready.set_exception(exc)
            return
        ready.set_result(self._streamer.endpoint)
        try:
            while not self._closing.is_set():
                try:
                    course = self._inbox.get(timeout=0.1)
                except queue.Empty:
                    self._wait_for_some()
                    continue
                self._serve(course)
        finally:
            self._streamer.close()  # libzmq lets go of what it cannot send
            self._take_back()

    def _serve(self, course: Course) -> None:
        """One series."""
        try:
            self._reset(course)
            self._drain(course)
            self._announce(course.job)
        except Exception as exc:
            self._tell(exc)
            self.phase = "error"
            return
        self.phase = "armed"
        try:
            while not self._is_over(course):
                self._step(course)
        except Exception as exc:
            self._tell(exc)
        self.phase = "over"
        while not (course.ending.wait(LOOK) or self._closing.is_set()):
            self._wait_for_some()
        self._end()

    def _tell(self, exc: Exception) -> None:
        if not isinstance(exc, HardwareError):
            log.exception("module %d", self.number)
        self.error = str(exc) if isinstance(exc, HardwareError) else f"{type(exc).__name__}: {exc}"

    def _reset(self, course: Course) -> None:
        job = course.job
        self.ledger = Ledger(job.nframes)
        self._missing.clear()
        self.sent = self.incomplete = self.repeated = self.foreign = self.failed = self.stale = 0
        self.finished, self._current, self.came, self._resting = 0, 0, False, inf
        self._most = max(LEAST, min(SLOTS_MAX, self._memory // job.frame_bytes))

    def _drain(self, course: Course) -> None:
        """What an earlier series left in the ring."""
        while not course.given_up.is_set() and (raw := self._system.next_frame(self._position, 0.0)) is not None:
            raw.release()
            self.stale += 1

    def _announce(self, job: Job) -> None:
        parts = stins.encode_start(
            job.filename,
            self._streamer.serial,
            metadata=job.metadata,
            series=job.series,
            nframes=None if job.endless else job.nframes,
            shape=job.shape,
            dtype=job.dtype,
            codec="none",
            modules=job.modules,
        )
        self._streamer.announce(job.series, parts, job.receiver_limit)

    def _is_over(self, course: Course) -> bool:
        if course.given_up.is_set() or self._closing.is_set():
            return True
        if self.finished < course.starts:
            return False
        return course.halted_at < inf or course.starts * course.job.per_start >= course.job.nframes

    def _step(self, course: Course) -> None:
        starts, look = course.starts, self._look()  # before the ring is: what is empty then stays empty
        raw = self._system.next_frame(self._position, LOOK)
        self._take_back()
        if raw is not None:
            self._take(raw, course)
        elif self._rests(course, look):
            self.finished = starts

    def _rests(self, course: Course, look: Look) -> bool:
        """The hardware has nothing more of this start."""
        begun = min(course.confirmed_at, course.halted_at)
        if look.at <= begun or look.error:
            return False
        module, now = look.modules[self._position], time.monotonic()
        if module.busy or module.frames_queued:
            self._resting = inf
            return False
        self._resting = min(self._resting, look.at)
        return now - max(self.last, self._resting) >= self._system.settle

    def _take(self, raw: RawFrame, course: Course) -> None:
        """A frame came: find its place, send it or give it back."""
        job, self.last, self._resting = course.job, time.monotonic(), inf
        if self._current != course.starts:
            self._current = course.starts
            self._numbers = Numbers(
                self._system.counter_bits, dual=job.dual, shared=self._shared, skips_zero=self._skips_zero
            )
        if not self._current:
            self.stale += 1
            raw.release()
            return
        place = self._numbers.place(raw.number)
        self._shared = self._numbers.shared or self._shared
        self._skips_zero = self._numbers.skips_zero
        if not 0 <= place < job.per_start:
            self._refuse_foreign(raw, job)
            return
        self.came = True
        if not (self._is_good(raw, job) and self._send(raw, (self._current - 1) * job.per_start + place, job)):
            raw.release()
        if place == job.per_start - 1:
            self.finished = self._current

    def _refuse_foreign(self, raw: RawFrame, job: Job) -> None:
        self.foreign += 1
        self.remark = self.remark or f"a frame came with number {raw.number}, {job.per_start} were asked for"
        raw.release()

    def _is_good(self, raw: RawFrame, job: Job) -> bool:
        """Can it be sent? If not it counts as missing."""
        if raw.status in (FrameStatus.MISSING, FrameStatus.COMPRESSION_FAILED):
            self.failed += 1
            return False
        if raw.pixels.nbytes != job.frame_bytes:
            rows, columns = job.shape
            self.failed += 1
            self.error = self.error or (
                f"a frame has {raw.pixels.nbytes} bytes, {job.frame_bytes} are those of {rows} x {columns} "
                f"{job.dtype}; was the unit set up by another program? Arm again"
            )
            return False
        return True

    def _send(self, raw: RawFrame, number: int, job: Job) -> bool:
        """False: it was sent before, or could not be."""
        if self.ledger.see(number) is not Verdict.NEW:
            self.repeated += 1
            return False
        streamer = self._streamer
        head = stins.encode_frame_header(
            number,
            job.shape,
            job.dtype,
            "none",
            streamer.serial,
            series=job.series,
            module=self.number if job.modules > 1 else None,
            timestamp=time.time(),
        )
        if raw.status is FrameStatus.INCOMPLETE:
            self.incomplete += 1
            head = head[:-1] + b',"incomplete":true}'
        while len(self._lent) >= self._most and not self._abort.wait(0.001):
            self._wait_for_some()
        slot = self._free[-1]
        address = np.frombuffer(raw.pixels, np.uint8).__array_interface__["data"][0]
        if self._abort.is_set() or not streamer.lend(self._loans, slot, head, address, raw.pixels.nbytes):
            self.ledger.lose(number)
            return False
        self._lent[self._free.pop()] = raw
        self.sent += 1
        return True

    def _take_back(self) -> None:
        """Frames that libzmq is done with go back into the ring."""
        for slot in self._loans.back():
            self._free.append(slot)
            self._lent.pop(slot).release()

    def _wait_for_some(self) -> None:
        """The same, where nothing is sent meanwhile."""
        if self._lent:
            self._streamer.attend()
            self._take_back()

    def _end(self) -> None:
        """The end message, and every frame back in the ring."""
        try:
            limit = QUICKLY if self._abort.is_set() else END_LIMIT
            if not self._streamer.end(limit):
                self.error = self.error or "the receiver took no end message"
            deadline = time.monotonic() + limit
            while self._lent and time.monotonic() < deadline and not self._closing.is_set():
                self._wait_for_some()
                time.sleep(0.001)
            if self._lent:
                self.error = self.error or f"{len(self._lent)} frames have not left after {limit:g} s"
        except Exception as exc:
            self._tell(exc)
        self.phase = "error" if self.error else "done"
