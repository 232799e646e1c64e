"""Sends the files of a Pilatus as they come: a thread that watches, reads, sends and deletes.

This module and what it imports run alone on the detector's own computer, whose operating system is old: Python 3.6,
the standard library, pyzmq and inotify_simple, nothing else."""

import logging
import os
import queue
import threading
import time
from concurrent.futures import Future, TimeoutError
from typing import Any, Callable, Dict, List, Optional, Tuple, TypeVar

import zmq

from tangods_detector.hw import pilatus_outlet as outlets
from tangods_detector.hw.pilatus_run import LOOK, Options, Run, Series
from tangods_detector.orders import Refused

log = logging.getLogger(__name__)

TOLD = 0.02  # s between two snapshots
SETTLE = 1.0  # s after the end before the last files go
TAKEN_ORDERS = 10.0  # s
NOTHING = {"phase": "idle", "message": "", "sent": 0, "waiting": 0, "lost": 0}

T = TypeVar("T")


class PilatusStream:
    """The thread and what others may call. Use as a context manager, or `start` and `close`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.endpoint = ""
        self._orders: queue.Queue[Tuple[Callable[[], Any], Future[Any]]] = queue.Queue()
        self._closing = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._run: Optional[Run] = None
        self._serial = 0
        self._snapshot: Dict[str, Any] = dict(NOTHING)
        self._told_at = 0.0
        self._lowest: Optional[int] = None
        self._settle_at = 0.0

    def __enter__(self) -> "PilatusStream":
        self.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def start(self) -> None:
        """Bind the stream's port. Refused: it is not to be had, or the folder is not there."""
        if not os.path.isdir(self.options.folder):
            raise Refused(f"{self.options.folder} is not a folder")
        ready: Future[str] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="pilatus-stream")
        self._thread.start()
        try:
            self.endpoint = ready.result()
        except Exception:
            self._thread.join()
            self._thread = None
            raise

    def close(self) -> None:
        """A series that is open is ended with what was sent. Safe twice."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def alive(self) -> bool:
        """Does its thread run?"""
        return self._thread is not None and self._thread.is_alive()

    # --- orders: from any thread -------------------------------------------------------------------------------------

    def arm(self, series: Series) -> None:
        """Watch, and send the start message; the phase tells when that is done (`armed`). Refused: why not."""
        self._ask(lambda: self._arm(series))

    def finish(self, frames: Optional[int] = None) -> None:
        """Every image is written (`frames` of them): those that are not there soon are lost."""
        self._ask(lambda: self._open("finish").finish(frames))

    def stop(self, keep: bool = True) -> None:
        """End the series with what is there, or (`keep` False) at once; nothing happens without one."""
        self._ask(lambda: self._stop(keep))

    def closed(self) -> None:
        """The receiver has closed the file of the series that is over: its last files may go."""
        self._ask(self._closed)

    def status(self) -> Dict[str, Any]:
        """At most TOLD seconds old."""
        return dict(self._snapshot)

    def _ask(self, order: Callable[[], T]) -> T:
        if not self.alive:
            raise Refused("the stream has ended; see its log")
        answer: Future[T] = Future()
        self._orders.put((order, answer))
        try:
            return answer.result(TAKEN_ORDERS)
        except TimeoutError:
            raise Refused("the stream does not take orders; see its log") from None

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self, ready: "Future[str]") -> None:
        try:
            o = self.options
            self._outlet = outlets.Outlet(o.host, o.port, o.queue, o.keep, o.guard)
        except zmq.ZMQError as exc:
            where = f"tcp://{self.options.host}:{self.options.port}"
            ready.set_exception(Refused(f"cannot bind the stream to {where}: {exc}; is the port in use?"))
            return
        self._tell()
        ready.set_result(self._outlet.endpoint)
        try:
            while not self._closing.is_set():
                self._take_order()
                self._step()
            self._end_quickly()
        except Exception as exc:  # whatever it was, it shall be seen, and the files stay
            log.exception("the stream has ended")
            self._snapshot = dict(self._snapshot, phase="error", message=f"{type(exc).__name__}: {exc}")
        finally:
            if self._run is not None:
                self._run.close()
            sure = not self._outlet.broke()
            self._outlet.close()
            if sure:
                self._outlet.delete(all_of_them=True)

    def _take_order(self) -> None:
        """Wait for one where there is nothing else to do."""
        idle = self._run is None or self._run.over
        try:
            order, answer = self._orders.get(idle, LOOK)
        except queue.Empty:
            return
        try:
            result = order()
        except Exception as exc:
            self._tell()
            answer.set_exception(exc)
        else:
            self._tell()
            answer.set_result(result)

    def _step(self) -> None:
        run = self._run
        if run is None or run.over:
            self._settle()
        else:
            phase = run.phase
            try:
                run.step()
            except OSError as exc:
                run.gone(f"{run.series.folder}: {exc.strerror or exc}")
            self._serial = run.serial
            self._look_at(run)
            if run.phase == phase and time.monotonic() - self._told_at < TOLD:
                return
        self._tell()

    def _look_at(self, run: Run) -> None:
        if run.over:
            run.close()
            self._settle_at = time.monotonic() + SETTLE
            log.info("series %d: %s, %d sent%s", run.series.series, run.phase, run.queue.sent, _behind(run))

    def _settle(self) -> None:
        """The last files go a little after the end. If the connection broke until then they stay until somebody says
        that the series is closed, or arms again."""
        if self._outlet.unsure and time.monotonic() > self._settle_at and not self._outlet.broke():
            self._outlet.delete(all_of_them=True)

    def _end_quickly(self) -> None:
        """The process ends: the receiver shall hear of it, so that it closes the file."""
        run = self._run
        if run is None or run.over:
            return
        run.stop(keep=False)
        limit = time.monotonic() + 2.0
        while not run.over and time.monotonic() < limit:
            run.step()

    def _open(self, what: str) -> Run:
        if self._run is None or self._run.over:
            raise Refused(f"{what}: no series is open")
        return self._run

    def _stop(self, keep: bool) -> None:
        if self._run is not None and not self._run.over:
            self._run.stop(keep)

    def _closed(self) -> None:
        if self._run is not None and not self._run.over:
            raise Refused(f"closed: series {self._run.series.series} is {self._run.phase}")
        self._outlet.delete(all_of_them=True)

    def _arm(self, series: Series) -> None:
        if self._run is not None and not self._run.over:
            raise Refused(f"arm: series {self._run.series.series} is {self._run.phase}; stop it first")
        self._outlet.delete(all_of_them=True)
        self._outlet.again()
        try:
            os.makedirs(series.folder, exist_ok=True)
            present = present_files(series)
            if present and series.present == "refuse":
                raise Refused(
                    f"arm: {len(present)} files of these names are in {series.folder} already, such as {present[0]}; "
                    "say what to do with them (present: delete, delete_all or send)"
                )
            if series.present != "send":
                for name in present:
                    outlets.unlink(os.path.join(series.folder, name))
            self._check_room(series)
            self._run = Run(series, self.options, self._outlet, self._serial)
        except OSError as exc:
            raise Refused(f"arm: {series.folder}: {exc.strerror or exc}") from exc
        self._lowest = None
        log.info("series %d: %d images from %s", series.series, series.nframes, series.folder)

    def _check_room(self, series: Series) -> None:
        """For as many images as may wait there, at what they take on average: a byte and an eighth for each pixel."""
        if series.shape is None:
            return
        needed = min(series.nframes, self.options.room_for) * (series.shape[0] * series.shape[1] * 9 // 8 + 8192)
        free, _ = room(series.folder)
        if free < needed:
            raise Refused(
                f"arm: {series.folder} has {free // 1000000} MB free, {-(-needed // 1000000)} MB are needed for "
                f"{min(series.nframes, self.options.room_for)} images"
            )

    def _tell(self) -> None:
        run = self._run
        told: Dict[str, Any] = dict(NOTHING) if run is None else run.told()
        try:
            free, total = room(self.options.folder if run is None else run.series.folder)
            self._lowest = free if self._lowest is None else min(free, self._lowest)
            told.update(free_bytes=free, total_bytes=total, lowest_free_bytes=self._lowest)
            if run is not None and not run.over and run.last_bytes and free < 10 * run.last_bytes:
                told["message"] += ("; " if told["message"] else "") + "the RAM disk is nearly full"
        except OSError as exc:
            told["message"] = told["message"] or f"{self.options.folder}: {exc.strerror}"
        told.update(kept=self._outlet.unsure, deleted=self._outlet.deleted, connections_lost=self._outlet.breaks)
        self._snapshot, self._told_at = told, time.monotonic()


def _behind(run: Run) -> str:
    sentence = run.told()["message"]
    return "; " + sentence if sentence else ""


def present_files(series: Series) -> List[str]:
    """Names that this series would use, or (`delete_all`) of any images."""
    names = sorted(os.listdir(series.folder))
    if series.present == "delete_all":
        return [name for name in names if name.lower().endswith(".cbf")]
    return [name for name in names if series.pattern.number(name) is not None]


def room(folder: str) -> Tuple[int, int]:
    """Bytes free, and all that there are."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
