"""The course of one series: arm -> the receiver has opened the file -> run -> the receiver has closed it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from tangods_detector.hw.base import Backend, Phase
from tangods_detector.progress import Limits, Progress
from tangods_detector.receiver import Receiver, ReceiverError
from tangods_detector.settings import Series, TriggerMode
from tangods_detector.snapshot import Snapshot
from tangods_detector.states import Event, State
from tangods_receiver import stats
from tangods_receiver.errors import DaqError, HardwareError

log = logging.getLogger(__name__)


class Desk(Protocol):
    """What a series needs of the thread that runs it: it shows the state, and goes on taking orders while we wait."""

    @property
    def snapshot(self) -> Snapshot: ...
    @property
    def quitting(self) -> bool: ...
    def enter(self, event: Event, status: str, **more: Any) -> None: ...
    def publish(self, **values: Any) -> None: ...
    def fail(self, sentence: str) -> None: ...
    def serve(self, wait: float) -> None: ...
    def ask_receiver(self) -> stats.Snapshot: ...
    def look_at_readings(self) -> None: ...


class Stopped(Exception):
    """Somebody wants the series to end."""


class Course:
    """One series. Everything but `wish` is called by the thread that owns the hardware."""

    def __init__(
        self,
        desk: Desk,
        series: Series,
        backend: Backend,
        receiver: Receiver | None,
        limits: Limits,
        trigger_timeout: float,
        before: stats.Snapshot,
    ) -> None:
        """`before`: what the receiver had done until now; ids of series may come again, its counts do not."""
        self._desk, self._series, self._backend, self._receiver = desk, series, backend, receiver
        self._limits, self._trigger_timeout, self._before = limits, trigger_timeout, before
        self._name, self._who = f"series {series.id}", f"receiver {receiver.name if receiver else ''}"
        self._wish = ""
        self._interruptible = False
        self._interrupter: threading.Thread | None = None
        self._interrupting = threading.Lock()  # guards the two above
        self._rate: deque[tuple[float, int]] = deque()
        self.begun = False

    def wish(self, word: str) -> None:
        """Let it end: "Stop" or "Abort", from any thread. A blocking `arm` is made to return, in a thread, because that
        may block too."""
        if self._wish != "Abort":
            self._wish = word
        with self._interrupting:
            if self._interruptible and self._interrupter is None:
                self._interrupter = threading.Thread(target=self._interrupt, name="interrupt arming", daemon=True)
                self._interrupter.start()

    def _interrupt(self) -> None:
        """Again and again: the first may come before the call has begun."""
        while self._interruptible:
            quietly(self._backend.stop)
            time.sleep(0.1)

    def run(self) -> None:
        """From the first word to the hardware until the receiver has closed the file. Never raises."""
        self.begun = True
        armed = False
        try:
            self._arm_hardware()
            armed = True
            self._heed()
            self._wait_opened()
            self._backend.start()  # INTERNAL begins, or triggers are let through
            self._desk.enter(Event.READY, self._what_runs())  # not before: a client that sees it may trigger at once
            self._watch()
            self._desk.enter(Event.DONE, f"{self._name}: waiting for the receiver to close the file")
            self._backend.stop()
            receiver = self._wait_closed(self._limits.closed)
        except Stopped:
            self._end_early(armed)
        except DaqError as exc:
            if (self._wish or self._desk.quitting) and not armed:  # the stop has broken off the arming
                self._end_early(armed)
            else:
                self._break_off(exc)
        except Exception as exc:  # a bug, perhaps in a vendor's library: the hardware must be stopped all the same
            log.exception(self._name)
            self._break_off(HardwareError(f"internal error: {exc!r}; see the log"))
        else:
            self._judge(receiver, "")

    def _arm_hardware(self) -> None:
        """May block for long (an Eiger takes minutes), so a Stop interrupts it. When it returns the start message is on
        its way."""
        self._interruptible = True
        try:
            self._heed()
            number = self._backend.arm(self._series)
            if number is not None:
                self._series, self._name = replace(self._series, id=number), f"series {number}"
                self._desk.publish(series=number)
        finally:
            with self._interrupting:
                self._interruptible = False
                interrupter, self._interrupter = self._interrupter, None
            if interrupter:
                interrupter.join(self._limits.closed)

    def _heed(self) -> None:
        """Raise Stopped when somebody has asked for it."""
        if self._wish or self._desk.quitting:
            raise Stopped

    def _what_runs(self) -> str:
        mode = self._series.settings.trigger_mode
        where = self._series.filename if self._series.filename and self._series.save_raw else "no file"
        if self._series.live:
            return f"{self._name}: live view until Stop"
        waiting = "" if mode is TriggerMode.INTERNAL else f", {self._series.settings.n_starts} triggers ({mode.value})"
        return f"{self._name}: {self._series.n_frames} frames{waiting} into {where}"

    def _wait_opened(self) -> None:
        deadline = failed = time.monotonic() + self._limits.opened
        while True:
            receiver = self._look_at_receiver(deadline)
            if receiver and self._is_opened(receiver):
                self._show_path(receiver)
                return
            error = receiver.error if receiver and receiver.state == "error" else ""
            if not error or not receiver or receiver.series != self._series.id:
                failed = time.monotonic() + self._limits.opened / 10
            elif time.monotonic() > failed:  # it lasts, so it is of this series, and not of leftovers before it
                raise ReceiverError(f"{self._who}: {error}")
            if time.monotonic() > deadline:
                raise ReceiverError(
                    f"{self._who} did not open {self._name} within {self._limits.opened:g} s"
                    f"{f' ({error})' if error else ''}; "
                    f"is it connected to {', '.join(self._backend.endpoints())}?"
                )
            self._desk.serve(0.003)
            self._heed()

    def _show_path(self, receiver: stats.Snapshot) -> None:
        """Of a name that counts from the receiver's root, the whole path: where it is, only the receiver knows."""
        path = receiver.file or receiver.last_file
        if path and self._series.save_raw and self._series.filename and not self._series.filename.startswith("/"):
            self._desk.publish(filename=path)

    def _is_opened(self, receiver: stats.Snapshot) -> bool:
        """This series, and no earlier one of its id; it may be closed again."""
        return receiver.openings > self._before.openings and receiver.opened == self._series.id

    def _is_closed(self, receiver: stats.Snapshot) -> bool:
        return receiver.closings > self._before.closings and receiver.closed == self._series.id

    def _look_at_receiver(self, deadline: float) -> stats.Snapshot | None:
        """None: it does not answer at the moment; ReceiverError when it has not until the deadline."""
        try:
            return self._desk.ask_receiver()
        except DaqError:
            if time.monotonic() > deadline:
                raise
            return None

    def _watch(self) -> None:
        """Until the hardware is done. Looks at it 50 times a second or more, at the receiver 10 times."""
        progress = Progress(
            self._series, self._backend.latency_time(self._series.settings), self._limits, self._trigger_timeout
        )
        next_receiver = 0.0
        answered = time.monotonic()
        begun = answered
        while True:
            status = self._backend.status()
            now = time.monotonic()
            self._desk.look_at_readings()
            values: dict[str, Any] = {}
            if status.frames != self._desk.snapshot.acquired:
                values.update(acquired=status.frames, rate=self._measured(now, status.frames))
            if now >= next_receiver:
                next_receiver = now + 0.1
                receiver = self._look_at_receiver(answered + self._limits.receiver)
                if receiver:
                    answered = now
                    self._check_receiver(receiver)
                    self._backend.frames_came(receiver.frames + receiver.missing)
                    values.update(self._counters(receiver))
            values = {name: value for name, value in values.items() if value != getattr(self._desk.snapshot, name)}
            if values:
                self._desk.publish(**values)
            if status.phase is Phase.ERROR:
                raise HardwareError(status.message or "the hardware reports an error")
            if status.phase in (Phase.DONE, Phase.IDLE):
                if status.frames and now > begun:
                    self._desk.publish(rate=status.frames / (now - begun))
                return
            progress.see(status, now)
            self._desk.serve(progress.pause(status, now))
            self._heed()

    def _measured(self, now: float, frames: int) -> float:
        """Frames per second over the last second."""
        self._rate.append((now, frames))
        while now - self._rate[0][0] > 1.0 and len(self._rate) > 2:
            self._rate.popleft()
        (t0, n0), (t1, n1) = self._rate[0], self._rate[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else 0.0

    def _check_receiver(self, receiver: stats.Snapshot) -> None:
        """ReceiverError when the series cannot go on there."""
        if receiver.openings <= self._before.openings:
            raise ReceiverError(
                f"{self._who} was restarted during {self._name}; "
                f"frames that it had not written are lost {self._series.filename}".rstrip()
            )
        if not self._is_opened(receiver):
            raise ReceiverError(f"{self._who} began series {receiver.opened} during {self._name}, which it closed")
        if receiver.state == "error" and (not receiver.rejected or self._is_closed(receiver)):
            raise ReceiverError(f"{self._who}: {receiver.error}")
        if self._is_closed(receiver) and self._desk.snapshot.state is State.RUNNING and not self._all_there(receiver):
            raise ReceiverError(f"{self._who} closed {self._name} before its end; was it stopped by hand?")

    def _all_there(self, receiver: stats.Snapshot) -> bool:
        unique = receiver.frames + receiver.missing
        return self._series.n_frames is not None and unique >= self._series.n_frames

    @staticmethod
    def _counters(receiver: stats.Snapshot) -> dict[str, Any]:
        return {
            "received": receiver.frames,
            "written": receiver.frames_written,
            "missing": receiver.missing,
            "receiver_state": receiver.state,
        }

    def _wait_closed(self, limit: float, heed: bool = True) -> stats.Snapshot:
        """Until the receiver has closed the series; the limit counts from when it last did anything."""
        deadline = time.monotonic() + limit
        done = -1
        while True:
            receiver = self._look_at_receiver(time.monotonic() + 1.0 if time.monotonic() < deadline else 0.0)
            if receiver:
                values = {k: v for k, v in self._counters(receiver).items() if v != getattr(self._desk.snapshot, k)}
                if values:
                    self._desk.publish(**values)
                if self._is_closed(receiver):
                    return receiver
                if not self._is_opened(receiver) and heed:
                    self._check_receiver(receiver)
                if receiver.received != done:
                    done, deadline = receiver.received, time.monotonic() + limit
            if self._wish == "Abort" and limit > self._limits.aborted:  # asked for while we wait
                limit, deadline = self._limits.aborted, time.monotonic() + self._limits.aborted
            if time.monotonic() > deadline:
                count = receiver.frames if receiver else self._desk.snapshot.received
                raise ReceiverError(
                    f"{self._who} did not close {self._name} within {limit:g} s: "
                    f"{count} of {self._desk.snapshot.acquired} frames and no end came through"
                )
            self._desk.serve(0.005)
            if heed:
                self._heed()

    def _end_early(self, armed: bool) -> None:
        """Stop or Abort: what came is kept, the file is closed."""
        word = self._wish or "Stop"
        limit = self._limits.aborted if word == "Abort" or self._desk.quitting else self._limits.closed
        self._desk.enter(Event.STOP, f"{self._name}: stopping")
        problem = quietly(self._backend.stop)
        if self._desk.quitting:
            limit = min(limit, self._limits.quit / 2)
        if not armed:
            self._desk.enter(Event.CLOSED, f"{self._name} stopped before it began")
            return
        try:
            receiver = self._stop_at_receiver(limit)
        except DaqError as exc:
            self._desk.fail(f"{self._name} stopped: {exc}")
            return
        if problem:
            self._desk.fail(f"{self._name} stopped, but {problem}")
            return
        self._judge(receiver, f"ended by {word}")

    def _stop_at_receiver(self, limit: float) -> stats.Snapshot:
        """Let the receiver close the series with what came. The start message may still be under way to it."""
        deadline = time.monotonic() + limit
        while (receiver := self._look_at_receiver(deadline)) is None or not self._is_opened(receiver):
            if time.monotonic() > deadline:
                raise ReceiverError(f"{self._who} did not open it within {limit:g} s")
            self._desk.serve(0.005)
        if not self._is_closed(receiver):
            assert self._receiver is not None
            self._receiver.stop(self._series.id)
        return self._wait_closed(limit, heed=False)

    def _break_off(self, why: DaqError) -> None:
        """An error: the hardware is stopped, the file closed if that can be, and the state says why."""
        quietly(self._backend.stop)
        try:
            status = self._backend.status()
            self._desk.publish(acquired=max(self._desk.snapshot.acquired, status.frames))
        except DaqError:
            pass
        if self._receiver:
            try:
                if self._is_opened(self._receiver.snapshot()):
                    self._stop_at_receiver(self._limits.aborted)
            except DaqError as exc:
                log.warning("%s", exc)
        self._desk.fail(f"{self._name}: {why}")

    def _judge(self, receiver: stats.Snapshot, ended: str) -> None:
        """The file is closed: was it a good series?"""
        unique = receiver.frames
        if not ended and receiver.expected is not None:  # a frame is missing where one of its modules is
            unique = min(unique, receiver.expected - receiver.missing)
        self._backend.frames_came(unique)
        acquired, remark = self._desk.snapshot.acquired, ""
        try:
            status = self._backend.status()
            acquired, remark = max(acquired, status.frames), status.message
        except DaqError as exc:
            log.warning("%s", exc)
        missing = max(0, acquired - unique) if ended else receiver.missing
        self._desk.publish(**{**self._counters(receiver), "acquired": acquired, "missing": missing})
        if receiver.state == "error":
            self._desk.fail(f"{self._name}: {self._who}: {receiver.error}")
            return
        text = f"{self._name} {ended or 'complete'}: {unique} frames"
        if self._series.filename and self._series.save_raw:
            text += f" in {self._series.filename}"
        problem = ""
        if missing:
            problem = f"{missing} of {unique + missing} frames are missing in {self._name}"
        problem = "; ".join(filter(None, (problem, remark)))
        if problem:
            text = f"{text}; {problem}"
            log.warning("%s", text)
        self._desk.enter(Event.CLOSED, text, last_error=problem)


def quietly(act: Callable[..., Any], *arguments: Any) -> str:
    """Do it; what goes wrong is only a sentence, because something else went wrong before."""
    try:
        act(*arguments)
    except Exception as exc:
        log.warning("%s", exc)
        return str(exc)
    return ""
