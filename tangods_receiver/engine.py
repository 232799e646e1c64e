"""The receiver without Tango: builds the parts, owns their start and stop, keeps the time."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from tangods_receiver import destination, reception, security
from tangods_receiver.config import ReceiverConfig
from tangods_receiver.errors import ConfigError, WriteError
from tangods_receiver.forwarder import Forwarder
from tangods_receiver.live import Kind, LastFrame, Live
from tangods_receiver.protocol import SeriesStart
from tangods_receiver.protocols import PROTOCOLS
from tangods_receiver.reception import Reception
from tangods_receiver.refusals import Refusals
from tangods_receiver.room import Room
from tangods_receiver.series import Series
from tangods_receiver.source import Worker
from tangods_receiver.spread import Spread
from tangods_receiver.stats import Past, Snapshot

if TYPE_CHECKING:
    from tangods_receiver.http import HttpServer

log = logging.getLogger(__name__)

TURN = 0.1  # s between looks at deadlines; what can be closed at once wakes the keeper
STOPPING_TURN = 0.02
JOIN_LIMIT = 5.0  # s; a thread that hangs in the storage is left behind
ROOM_LIMIT = 0.2  # s; the same for one that only looks


class Keeper:
    """One thread that commits, closes and measures."""

    def __init__(self, config: ReceiverConfig, reception: Reception, syncer: Syncer, wake: threading.Event) -> None:
        self._config = config
        self._reception = reception
        self._syncer = syncer
        self._wake = wake
        self._halt = False
        self._next_commit = 0.0
        self._thread = threading.Thread(target=self._main, name=f"{config.name} keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit: float) -> bool:
        """Close what is open, then end; False: it hangs in a call to the storage."""
        self._halt = True
        self._wake.set()
        self._thread.join(limit)
        return not self._thread.is_alive()

    def _main(self) -> None:
        while not self._halt:
            self._wake.wait(STOPPING_TURN if self._reception.stopping else TURN)
            self._wake.clear()
            self._turn()
        self._reception.abandon("the receiver was stopped")
        self._turn()

    def _turn(self) -> None:
        try:
            now = time.monotonic()
            if not self._reception.close_when_due() and now >= self._next_commit:
                if (series := self._reception.commit()) is not None:
                    self._syncer.committed(series)
                self._next_commit = time.monotonic() + self._config.commit_interval
            self._reception.measure()
        except Exception as exc:  # the outermost loop: it becomes the state
            log.exception("keeper")
            self._reception.fail(exc)


class Syncer:
    """One thread that puts files on the disk, so that they survive a power loss; nobody waits for it.

    A file of which one sync failed is never called durable again: what the system dropped then, a later sync that
    succeeds does not bring back."""

    def __init__(self, name: str, interval: float) -> None:
        self._interval = interval
        self._jobs: queue.SimpleQueue[tuple[Series, bool] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed_waiting = 0  # files that are closed and not on the disk yet
        self._open_waiting = False
        self._failed = False  # the last closed file
        self._next = 0.0  # when the open file is due
        self._busy: tuple[float, str] | None = None  # since when, with which file
        self._remark = ""
        self.seconds = 0.0  # that the last sync took
        self._thread = threading.Thread(target=self._main, name=f"{name} sync", daemon=True)

    @property
    def durable(self) -> bool:
        """The last closed file is on the disk."""
        return not self._closed_waiting and not self._failed

    def remark(self) -> str:
        """What went wrong and was not acknowledged, or takes long while somebody relies on it; in words."""
        busy = self._busy
        if self._remark or busy is None or not self._interval:
            return self._remark
        seconds, path = time.monotonic() - busy[0], busy[1]
        if seconds <= max(reception.SLOW, self._interval):
            return ""
        return (
            f"syncing {path} has taken {seconds:.0f} s: what is newer may not survive a power loss; look at the storage"
        )

    def acknowledge(self) -> None:
        self._remark = ""

    def start(self) -> None:
        self._thread.start()

    def put(self, series: Series) -> None:
        """A series that was closed."""
        with self._lock:
            self._closed_waiting += 1
        self._jobs.put((series, True))

    def committed(self, series: Series) -> None:
        """A commit of the open series is done: sync what it holds if that is due and not still going on."""
        due = self._interval and time.monotonic() >= self._next
        if due and not self._open_waiting and series.durable < series.committed and not series.not_durable:
            self._open_waiting = True
            self._jobs.put((series, False))

    def stop(self, limit: float) -> bool:
        self._jobs.put(None)
        self._thread.join(limit)
        return not self._thread.is_alive()

    def _main(self) -> None:
        while (job := self._jobs.get()) is not None:
            series, closed = job
            self._busy = time.monotonic(), str(series.file.path if series.file else "")
            self._sync(series)
            self.seconds, self._busy = time.monotonic() - self._busy[0], None
            with self._lock:
                if closed:
                    self._closed_waiting -= 1
                    self._failed = series.not_durable
                else:
                    self._open_waiting = False
                    self._next = time.monotonic() + self._interval
            del series, job

    def _sync(self, series: Series) -> None:
        assert series.file is not None
        committed = series.committed
        try:
            series.file.sync()
        except (WriteError, OSError) as exc:
            sentence = f"{series.file.path} is written but may not survive a power loss: {exc}"
            if _is_gone(exc):  # deleted in mid-series, which the next commit tells; or taken elsewhere since
                log.info("%s is not there any more and was not synced", series.file.path)
            elif not series.not_durable:
                log.error("%s", sentence)
                self._remark = sentence
            series.not_durable = True
        if not series.not_durable:
            series.durable, self._remark = committed, ""


def _is_gone(exc: BaseException) -> bool:
    """A file, or its directory, that no longer exists."""
    return isinstance(exc, FileNotFoundError) or isinstance(exc.__cause__, FileNotFoundError)


class Engine:
    """`with Engine(config) as engine:` receives until the block is left; what was received is then in the file."""

    def __init__(self, config: ReceiverConfig) -> None:
        self.config = config
        self._security = security.of_receiver(config)
        self._refusals = Refusals()
        wake = threading.Event()
        self._live = Live(config.live_rate, config.live_average, config.rois)
        self._syncer = Syncer(config.name, config.fsync_interval)
        self._room = Room(config.root, config.name)
        self._forwarder = Forwarder(config.forward, config.name, self._security.guard) if config.forward else None
        self._reception = Reception(config, self._live, wake, self._syncer.put, self._forwarder)
        self._keeper = Keeper(config, self._reception, self._syncer, wake)
        self._context = None if config.context_per_worker else zmq.Context(config.io_threads)
        decoder = PROTOCOLS[config.protocol].decoders(config.image_kind)
        self._workers = [
            Worker(index, config, self._reception, decoder, self._context, self._refusals, self._security.inputs)
            for index in range(config.workers)
        ]
        self._started: list[Worker] = []
        self._http: HttpServer | None = None

    def __enter__(self) -> Engine:
        """Start from the file back to the socket. ConfigError: an endpoint or the HTTP address cannot be used."""
        self._room.start()
        self._syncer.start()
        self._keeper.start()
        self._live.start()
        try:
            if self.config.http:
                from tangods_receiver.http import HttpServer  # half a second to import, and not everybody wants it

                self._http = HttpServer(self, self.config.http, self.config.http_hosts, self.config.http_token_file)
                self._http.start()
            if self._forwarder is not None:
                self._forwarder.start()
            for worker in self._workers:
                self._started.append(worker)
                worker.start()
        except BaseException:
            self._shut_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shut_down()

    def _shut_down(self) -> None:
        """Stop from the socket forward to the file."""
        for worker in self._started:
            worker.stop()
        self._reception.halt()
        end = time.monotonic() + JOIN_LIMIT
        stuck = [worker for worker in self._started if not worker.join(max(0.0, end - time.monotonic()))]
        for worker in stuck:
            worker.abandon()
        ended = self._keeper.stop(JOIN_LIMIT), self._syncer.stop(JOIN_LIMIT)
        self._live.stop()
        self._room.stop(ROOM_LIMIT)
        if self._forwarder is not None:
            self._forwarder.stop()
        if stuck or not all(ended):
            log.error("the storage does not answer: threads of %s are left behind", self.config.name)
        if self._context is not None and not stuck:
            self._context.term()
        if self._http is not None:
            self._http.stop()
            self._http = None

    @property
    def http_port(self) -> int | None:
        """The port that HTTP took; None: not configured, or not running."""
        return None if self._http is None else self._http.port

    @property
    def forward_endpoints(self) -> list[str]:
        """Where frames are sent on, as bound."""
        return [] if self._forwarder is None else self._forwarder.endpoints

    def snapshot(self) -> Snapshot:
        """Everything countable, at one moment; cheap."""
        now = self._reception.snapshot(self._syncer.durable, self._syncer.seconds)
        remark = now.error or self._syncer.remark() or self._refusals.remark()
        peers_refused = sum(port.refused for port in now.forward)
        return replace(
            now, error=remark, refused=self._refusals.total, peers_refused=peers_refused, free=self._room.free
        )

    def history(self) -> list[Past]:
        """The last series that are over, newest first."""
        return self._reception.history()

    def silence(self) -> float:
        """Seconds since a message came."""
        return self._reception.silence

    def announced(self, series: int) -> SeriesStart | None:
        """What the start of the open or last series said; None: it is another one."""
        return self._reception.announced(series)

    def stop(self, series: int | None = None) -> None:
        """Close the open series with what came, within `end_timeout`; returns at once, harmless when none is open."""
        self._reception.stop(series)

    def begin(self, filename: str, nframes: int | None = None, metadata: Mapping[str, Any] | None = None) -> int:
        """Open a series of a stream that announces none: what comes from now on goes into this file ("": live view
        only) until `nframes` are there, or `stop`. Its id. ConfigError: the stream announces its series itself;
        WriteError: the file cannot be made."""
        protocol = PROTOCOLS[self.config.protocol]
        if protocol.announces:
            raise ConfigError(
                f"a stream of protocol {self.config.protocol} announces its series itself: arm the sender"
            )
        told = dict(metadata or {})
        start = SeriesStart(
            filename,
            nframes=nframes,
            modules=len(self.config.endpoints) if protocol.ports else 1,
            save=told.get("save_raw") not in (False, 0),
            metadata=told,
            relative=True,
        )
        return self._reception.begin(start)

    def reset(self) -> None:
        """Acknowledge the error."""
        self._reception.reset()
        self._syncer.acknowledge()

    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str:
        """Why a series of `nbytes` cannot be written to `path`, and what to do; "" when it can."""
        may_replace = overwrite and self.config.allow_overwrite
        spread = Spread(self.config.parts, self.config.frames_per_file)
        return destination.refusal_soon(self.config.root, path, nbytes, may_replace, spread) if path else ""

    def set_rois(self, rois: Iterable[object]) -> None:
        """Regions of interest from now on: lines "name x y width height", or mappings with these keys. ConfigError."""
        self._live.set_rois(rois)

    def measure_rois(self) -> None:
        """In the newest image, now; `snapshot` tells what was found."""
        self._live.measure()

    def roi_history(self) -> np.ndarray[Any, Any]:
        """Rows: the last images in which regions were measured; columns: series, number, time, and of each region sum,
        mean, max, x, y, pixels."""
        return self._live.roi_history()

    def last_frame(
        self, kind: Kind = "last", newer_than: tuple[int, ...] | None = None, wait: float = 0.0, channel: int = 0
    ) -> LastFrame | None:
        """The latest image, or what `kind` makes of the latest ones, decoded now if need be; None before the first.
        With `newer_than` (series, number, or an `id`): the next other one within `wait` s, else None.
        StreamError: damaged."""
        return self._live.last_frame(kind, newer_than, wait, channel)
