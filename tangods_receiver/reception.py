"""Where the workers bring what they received: which series it belongs to, and what state the receiver is in.

One lock guards everything here; it is never held over the disk or a socket."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf

from tangods_receiver import channels, destination, transforms
from tangods_receiver.config import ReceiverConfig
from tangods_receiver.errors import ConfigError, DaqError, StreamError, WriteError
from tangods_receiver.fileset import FileSet
from tangods_receiver.forwarder import Forwarder
from tangods_receiver.ledger import total
from tangods_receiver.live import Live
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart
from tangods_receiver.protocols import PROTOCOLS
from tangods_receiver.records import Books, Record
from tangods_receiver.series import Series, is_earlier, unique_of
from tangods_receiver.seriesfile import SeriesFile
from tangods_receiver.spread import Spread
from tangods_receiver.stats import Loss, Meter, Past, Snapshot, Tally, Timing, summary

log = logging.getLogger(__name__)

HEADER_WAIT = 1.0  # s a worker waits for what another worker has not read yet: a header, the rest of a series
DOUBT = 0.02  # s between looks at whether what other workers hold has come
SLOW = 10.0  # s that a call to the storage may take before the status tells
HANGS = 60.0  # s after which that is an error
REMEMBERED = 100  # ids of past series whose leftovers are recognised
HISTORY = 50  # past series that are told about

Sync = Callable[[Series], None]


class Reception:
    """`wake` is set when the keeper has something to do at once; `sync` is given each closed series that has a file."""

    def __init__(
        self,
        config: ReceiverConfig,
        live: Live,
        wake: threading.Event,
        sync: Sync,
        forwarder: Forwarder | None = None,
    ) -> None:
        self._config = config
        self.chain = transforms.build(config.transforms, config.root)
        self._live = live
        self._wake = wake
        self._sync = sync
        self._forwarder = forwarder
        self._announces = PROTOCOLS[config.protocol].announces
        self._sockets = config.workers * len(config.endpoints)
        self._changed = threading.Condition(threading.Lock())
        self._halting = False
        self._open: Series | None = None
        self._last: Series | None = None
        self._starting: list[SeriesStart] = []  # that wait for their turn
        self._past: deque[int] = deque(maxlen=REMEMBERED)
        self._history: deque[Past] = deque(maxlen=HISTORY)
        self._last_id = 0
        self._opened = self._closed = 0
        self._openings = self._closings = 0
        self.begun = 0  # series, by who controls the sender
        self._last_file = ""
        self._error = ""
        self._serious = False
        self._tallies = [Tally() for _ in range(config.workers)]
        self._told: dict[str, tuple[int, str]] = {}  # anomalies between series, which the log has: how often, the first
        self._generation = 0  # grows with every start, end and close
        self._gave_up: list[Frame | None] = [None] * config.workers  # frame of no series that was waited with in vain
        self._reading = [False] * config.workers
        self._calls: dict[int, tuple[float, str]] = {}  # to the storage, by thread: since when, what
        self._heard = time.monotonic()
        self._earlier = [Tally() for _ in range(config.workers)]  # of all series before the one now or last open
        self._earlier_missing = 0
        self._end_reason = ""  # of the last series
        self._commits = Timing()  # `longest`: of the series now or last open
        self._meter = Meter(config.workers, self._heard)

    # --- what the workers call ---------------------------------------------------------------------------------------

    def reading(self, worker: int, messages: int, nbytes: int, full: bool) -> None:
        """A worker has messages in hand; a stop waits for that."""
        self._reading[worker] = True
        self._heard = time.monotonic()
        tally = self._tallies[worker]
        tally.batches += 1
        tally.full += full
        tally.received_bytes += nbytes

    def idle(self, worker: int) -> None:
        """A worker has nothing in hand any more."""
        self._reading[worker] = False

    def waited(self, worker: int, seconds: float) -> None:
        """A worker waited for its socket."""
        self._tallies[worker].waiting += seconds

    def dropped(self, worker: int, messages: int) -> None:
        """By the numbers of those that came, so many were dropped by a PUB socket."""
        self._tallies[worker].dropped += messages

    def transformed(self, worker: int, seconds: float) -> None:
        """A worker did the pixel work of a frame."""
        self._tallies[worker].transforming += seconds

    def start(self, worker: int, start: SeriesStart) -> None:
        """A header came: end what was open, open the file."""
        self._begin(start)

    def _begin(self, start: SeriesStart) -> Series | None:
        with self._changed:
            self._starting.append(start)
            try:
                if not self._make_way(start):
                    return None
                series = self._enter(start)
            finally:
                self._starting = [other for other in self._starting if other is not start]
        with self._storage("creating", series):
            failure = self._create(series)
        if failure:
            log.error("series %d not opened: %s", series.id, failure)
        else:
            log.info("series %d opened %s", series.id, series.file.path if series.file else "(no file)")
        self._live.begin(series.id, series.start, self.chain)
        with self._changed:
            if self._forwarder is not None:
                self._forwarder.open(series)
            series.ready, series.last_arrival = True, time.monotonic()
            if failure:
                series.failure = failure
                self._fail(failure)
            else:
                self._opened = series.id
                self._openings += 1
                series.opened = True
                self._error, self._serious = "", False
            self._change()
        return series

    def begin(self, start: SeriesStart) -> int:
        """As `start`, for streams that do not announce series; the id. DaqError: the file cannot be made."""
        self.begun += 1
        series = self._begin(start)
        if series is None:
            raise ConfigError("the receiver is being shut down")
        if series.failure:
            with self._changed:
                self._abandon(series, series.failure)
            raise WriteError(series.failure)
        return series.id

    def frames(self, worker: int, frames: Sequence[Frame]) -> None:
        """Frames came: write what belongs to the open series, count the rest. Returns when that is done."""
        give_up = 0.0
        while frames:
            records: list[Record] = []
            with self._changed:
                series = self._open
                if series is not None and series.ready and not series.closing:
                    before, frames = len(frames), self._take(series, worker, frames, records)
                    if records or len(frames) < before:
                        give_up = 0.0
                if frames and not records and not self._announces:
                    self._only_show(worker, frames)
                    frames = ()
                elif frames and not records:
                    give_up = self._wait_for_header(worker, frames[0], give_up)
                    if give_up:
                        continue
                    if series is not None and series is self._open and series.doubts(frames[0]):
                        series.trusting = True
                    else:
                        self._refuse(worker, frames)
                        frames = ()
            if records and series is not None:
                self._write(series, worker, records)
            if self._forwarder is not None and series is not None:
                self._forwarder.wait(partial(self._waits_no_longer, series))

    def _waits_no_longer(self, series: Series) -> bool:
        """For those to whom its frames are sent on."""
        return self._halting or series.stopped or series.closing or bool(series.abandoned)

    def end(self, worker: int, end: SeriesEnd) -> None:
        """An end message came."""
        with self._changed:
            limit = time.monotonic() + HEADER_WAIT
            while (left := limit - time.monotonic()) > 0 and self._doubts_end(end) and not self._halting:
                self._changed.wait(min(left, DOUBT))
            while not self._ends(end):
                if self._starting:
                    limit = time.monotonic() + HEADER_WAIT
                left = limit - time.monotonic()
                if self._config.workers == 1 or left <= 0 or self._halting:
                    self._orphan(worker, end)
                    return
                self._changed.wait(left)

    def _doubts_end(self, end: SeriesEnd) -> bool:
        """Images before it have not come: it may end a later series, whose start another worker has not read yet."""
        series = self._open
        return series is not None and not series.closing and series.ends_with(end) and series.doubts_end(end)

    def malformed(self, worker: int, count: int, error: StreamError) -> None:
        """Messages that are none: counted, never written."""
        with self._changed:
            tally = self._tallies[worker]
            tally.received += count
            tally.rejected += count
            self._anomaly("rejected", f"message refused: {error}", serious=True, count=count)

    def fail(self, error: Exception) -> None:
        """A worker met what nobody foresaw."""
        sentence = str(error) if isinstance(error, DaqError) else f"{type(error).__name__}: {error}"
        with self._changed:
            self._fail(f"receiving failed: {sentence}; see the log, then Reset")

    @contextmanager
    def _storage(self, what: str, series: Series) -> Iterator[None]:
        """A call to the storage, which may never return: `snapshot` tells."""
        thread = threading.get_ident()
        self._calls[thread] = time.monotonic(), f"{what} {series.file.path if series.file else series.start.filename}"
        try:
            yield
        finally:
            del self._calls[thread]

    def _slow_call(self) -> tuple[str, bool]:
        """The call to the storage that has taken longest, if that is long, in words; is that an error?"""
        since, what = min(list(self._calls.values()), default=(inf, ""))
        seconds = time.monotonic() - since
        if seconds <= SLOW:
            return "", False
        return f"{what} has taken {seconds:.0f} s and is waited for; look at the storage", seconds > HANGS

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame of the open series, for the high-water mark; 0: none open, or not known."""
        series = self._open
        return 0 if series is None else series.frame_bytes

    # --- what the engine's clients call ------------------------------------------------------------------------------

    def snapshot(self, durable: bool, sync_time: float = 0.0) -> Snapshot:
        with self._changed:
            series = self._open or self._last
            tally = Tally.sum(self._tallies)
            missing = 0 if series is None else series.known_missing()
            workers = self._meter.read(time.monotonic(), self._totals())
            slow, hangs = self._slow_call()
            return Snapshot(
                state="error" if self._serious or hangs else "running" if self._open is not None else "idle",
                series=0 if series is None else series.id,
                file=str(self._open.file.path) if self._open is not None and self._open.file is not None else "",
                received=tally.received,
                written=tally.written,
                missing=missing,
                repeated=tally.repeated,
                foreign=tally.foreign,
                rejected=tally.rejected,
                discarded=tally.discarded,
                dropped=tally.dropped,
                bytes=tally.bytes,
                expected=None if series is None else series.start.nframes,
                opened=self._opened,
                closed=self._closed,
                openings=self._openings,
                closings=self._closings,
                last_file=self._last_file,
                rate=sum(worker.rate for worker in workers),
                throughput=sum(worker.throughput for worker in workers),
                durable=durable,
                durable_frames=0 if series is None else series.durable,
                last_number=self._live.number,
                modules=1 if series is None else series.ledger.modules,
                live=self._live.stats(),
                error=self._error or slow or (self._forwarder.remark() if self._forwarder is not None else ""),
                forward=self._forwarder.stats() if self._forwarder is not None else (),
                workers=workers,
                lost=self._lost(series, tally, missing),
                missing_total=self._earlier_missing,
                commits=self._commits.count,
                commit_seconds=self._commits.total,
                commit_time=self._commits.last,
                longest_commit=self._commits.longest,
                sync_time=sync_time,
            )

    @property
    def silence(self) -> float:
        """Seconds since a message came."""
        return time.monotonic() - self._heard

    def history(self) -> list[Past]:
        """The last series that are over, newest first."""
        with self._changed:
            return list(reversed(self._history))

    def announced(self, series: int) -> SeriesStart | None:
        """What the start of the open or last series said; None: it is another one."""
        with self._changed:
            for known in (self._open, self._last):
                if known is not None and known.id == series:
                    return known.start
        return None

    def _lost(self, series: Series | None, tally: Tally, missing: int) -> tuple[Loss, ...]:
        """What went wrong in the open or last series and, once it is over, since then."""
        found = dict(self._told)
        for kind, (count, first) in series.troubles.items() if series else ():
            found[kind] = count + found.get(kind, (0, ""))[0], first
        if missing:
            found["missing"] = (
                missing,
                self._end_reason if series is self._last else "not here yet, while later ones are",
            )
        if tally.discarded:
            reason = series.failure if series else ""
            found["discarded"] = tally.discarded, reason or "sent as not to be stored, or no file is wanted"
        return tuple(Loss(kind, count, first) for kind, (count, first) in found.items())

    def stop(self, series: int | None = None) -> None:
        """Close the open series (if it has this id) with what came, as soon as the sockets are quiet."""
        with self._changed:
            if self._open is not None and series in (None, self._open.id):
                self._open.stop(time.monotonic() + self._config.end_timeout)
                self._wake.set()

    def reset(self) -> None:
        """Acknowledge the error; a series that can no longer be written is closed."""
        with self._changed:
            if self._open is not None and self._open.failure:
                self._open.acknowledged = True
                self._abandon(self._open, "closed by a reset")
            self._error, self._serious = "", False

    # --- what the keeper calls ---------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Look at what the workers do; several times a second."""
        with self._changed:
            self._meter.read(time.monotonic(), self._totals())

    def _totals(self) -> list[Tally]:
        """Of each worker since the engine began."""
        return [Tally.sum(pair) for pair in zip(self._earlier, self._tallies, strict=True)]

    @property
    def stopping(self) -> bool:
        series = self._open
        return series is not None and series.stopped

    def halt(self) -> None:
        """Nobody waits here any longer; the engine is going down."""
        with self._changed:
            self._halting = True
            self._changed.notify_all()

    def abandon(self, reason: str) -> None:
        """Close the open series now, whatever is missing."""
        with self._changed:
            if self._open is not None:
                self._abandon(self._open, reason)

    def commit(self) -> Series | None:
        """Make what was written readable; the series for which that was done."""
        series = self._open
        if series is None or series.file is None or series.file.layout is None:
            return None
        written = Tally.sum(series.tallies).written
        try:
            with self._storage("committing", series):
                begun = time.monotonic()
                series.file.commit()
                self._commits.add(time.monotonic() - begun)
        except DaqError as exc:
            with self._changed:
                series.failure = series.failure or str(exc)
                self._fail(str(exc))
            return None
        series.committed = written
        return series

    def close_when_due(self) -> bool:
        """True when a series was closed."""
        now = time.monotonic()
        with self._changed:
            series = self._open
            quiet_for = 0.0 if any(self._reading) else now - self._heard
            if series is None:
                return False
            if not series.due(now, quiet_for, self._config.stall_timeout):
                series.shut_if_overdue(now)
                return False
            books = series.close()
            if self._forwarder is not None:
                self._forwarder.close(series)
        failure = f"series {series.id}: closing was interrupted; see the log"
        try:
            with self._storage("closing", series):
                failure = self._close_file(series, books)
            if not failure:
                series.committed = Tally.sum(series.tallies).written
            self._log_close(series, self._commits)
        finally:  # whatever happened, the next series can come
            with self._changed:
                self._let_go(series, failure)
        if series.file is not None:
            self._sync(series)
        return True

    def _let_go(self, series: Series, failure: str) -> None:
        """It is closed: what is left of it."""
        self._judge(series, failure)
        self._last, self._open = series, None
        self._earlier_missing += total(series.missing)
        self._end_reason = series.end_reason()
        self._history.append(_past(series, failure))
        if series.start.series is not None:
            self._past.append(series.start.series)
        if series.file is not None:
            self._last_file = str(series.file.path)
        if series.opened:
            self._closed = series.id
            self._closings += 1
        series.latest, series.pieces = None, ()
        self._change()

    @staticmethod
    def _close_file(series: Series, books: Books) -> str:
        """A sentence when that failed."""
        if series.file is None:
            return ""
        try:
            series.file.close(books)
        except DaqError as exc:
            return str(exc)
        except Exception as exc:  # whatever it was, the series is over
            log.exception("series %d", series.id)
            return f"{series.file.path}: not closed ({type(exc).__name__}: {exc}); see the log"
        return ""

    # --- a start -----------------------------------------------------------------------------------------------------

    def _joins(self, start: SeriesStart) -> bool:
        """Several senders of one series each send a header; the first opened it, and it may be over already. A sender
        may also say again what it said, to tell those who came late."""
        for series in (self._open, self._last):
            known = series and (series.start.series, series.start.serial)
            if known == (start.series, start.serial) and None not in known:
                return True
        endpoints = len(self._config.endpoints)
        if endpoints == 1 or start.series is None:
            return False
        for series in (self._open, self._last):
            if series is not None and series.start.series == start.series:
                if series is self._open or series.headers < endpoints:
                    series.headers += 1
                    return True
        return False

    def _make_way(self, start: SeriesStart) -> bool:
        """Wait until nothing is open and it is this start's turn; False when there is no series to be opened."""
        several, limit = self._config.workers > 1, time.monotonic() + HEADER_WAIT
        while not self._halting and not self._joins(start):
            earlier = self._open
            if earlier is None:
                if not several or time.monotonic() > limit or not self._is_too_early(start):
                    return True
                self._changed.wait(DOUBT)
                continue
            if several and self._changes_from(earlier):
                limit = time.monotonic() + HEADER_WAIT  # another worker held its last frames
                continue
            if not earlier.abandoned and earlier.ready:
                self._abandon(earlier, "a new series began before its end")
            self._changed.wait(0.1)
        return False

    def _changes_from(self, series: Series) -> bool:
        """Waits for another series, or none, to be open; False: in vain."""
        return self._changed.wait_for(lambda: self._open is not series or self._halting, HEADER_WAIT)

    def _is_too_early(self, start: SeriesStart) -> bool:
        """Another worker holds the start of a series before this one, or has not read it yet."""
        one_sender = len(self._config.endpoints) == 1
        for other in self._starting:
            if one_sender and other.serial is not None and start.serial is not None:
                if other.serial < start.serial:
                    return True
            elif other.series is not None and start.series is not None:
                earlier = is_earlier(start, other.series, other.unique)
                if other.series < start.series if earlier is None else earlier:
                    return True
        return one_sender and self._last is not None and self._last.leaves_room_before(start)

    def _enter(self, start: SeriesStart) -> Series:
        series = Series(
            self._last_id + 1 if start.series is None else start.series,
            start,
            workers=self._config.workers,
            endpoints=len(self._config.endpoints),
            previous=self._last,
            chain=self.chain,
            subscribed=self._config.subscribes,
            channels_apart=self._config.channels == channels.DATASETS,
        )
        self._earlier = self._totals()
        self._commits.longest = 0.0
        if self._forwarder is not None:
            series.accepted = []
        self._last_id = series.id
        self._open = series
        self._tallies = series.tallies
        self._told.clear()
        self._change()
        return series

    def _create(self, series: Series) -> str:
        """Open the file; a sentence when that failed."""
        start = series.start
        if series.impossible:
            return series.impossible
        if start.series is None and start.serial is None and self._sockets > 1 and not start.relative:
            return (
                "the stream has neither series ids nor message numbers: its frames can only be told apart by order of "
                "arrival; configure workers: 1 and one endpoint"
            )
        if not start.filename or not start.save:
            return ""
        try:
            root = self._config.root
            path = destination.confine(root, start.filename)
            replace = self._config.allow_overwrite and start.metadata.get("overwrite") is True
            spread = Spread(self._config.parts, self._config.frames_per_file)
            nframes = -1 if start.nframes is None else start.nframes
            if obstacle := destination.refusal(root, start.filename, 0, replace, spread, nframes):
                return obstacle
            header, crc = series.header(self._config.dataset), self._config.payload_crc
            if spread.is_one_file:
                series.file = SeriesFile.create(path, header, series.layout, crc, replace)
            else:
                series.file = FileSet.create(path, header, series.layout, spread, crc, replace)
        except DaqError as exc:
            return str(exc)
        except Exception as exc:  # whatever it was, the series must not stay half open
            log.exception("series %d", series.id)
            return f"{start.filename}: not created ({type(exc).__name__}: {exc}); see the log"
        return ""

    # --- frames ------------------------------------------------------------------------------------------------------

    def _take(self, series: Series, worker: int, frames: Sequence[Frame], records: list[Record]) -> list[Frame]:
        """Enter the frames of this series; those to be written join `records`, the others are returned."""
        rejected = series.rejected
        mine, strangers = series.admit(frames, worker)
        records += mine
        if self._forwarder is not None:
            self._forwarder.put(series)
        if (latest := series.latest) is not None:
            if len(latest.more) + 1 < series.ledger.modules:
                self._live.show_modules(series.id, series.ledger.modules, series.pieces)
            else:
                self._live.show(series.id, latest)
        if series.rejected != rejected:
            self._fail(series.troubles["rejected"][1])
        if records:
            series.busy += 1
        else:
            self._look_at(series)
        return strangers

    def _only_show(self, worker: int, frames: Sequence[Frame]) -> None:
        """Frames that nobody asked to be stored, of a stream that goes on whether a series is open or not."""
        self._live.show(0, frames[-1])
        tally, count = self._tallies[worker], sum(1 + len(frame.more) for frame in frames)
        tally.received += count
        tally.discarded += count

    def _write(self, series: Series, worker: int, records: Sequence[Record]) -> None:
        failure, payload, begun = "writing was interrupted", 0, time.monotonic()
        try:
            with self._storage("writing to", series):
                payload = series.write(records)
            failure = ""
        except DaqError as exc:
            failure = str(exc)
        finally:
            seconds = time.monotonic() - begun
            with self._changed:
                series.wrote(records, worker, payload, seconds, failure)
                series.busy -= 1
                if failure:
                    self._fail(failure)
                self._look_at(series)

    def _wait_for_header(self, worker: int, frame: Frame, give_up: float) -> float:
        """A frame of no open series: wait a while if another worker may hold its header. 0.0: in vain.

        `give_up` is when the wait ends (0.0: it begins); returned for the next call."""
        if self._halting:
            return 0.0
        series = self._open
        if self._starting or (series is not None and not series.ready):
            self._changed.wait(HEADER_WAIT)
            return time.monotonic() + HEADER_WAIT
        if self._config.workers == 1 or self._follows(self._gave_up[worker], frame):
            return 0.0
        if not (series is not None and series.doubts(frame)) and self._is_old(frame):
            return 0.0
        now = time.monotonic()
        give_up = give_up or now + HEADER_WAIT
        if now >= give_up:
            self._gave_up[worker] = frame
            return 0.0
        self._changed.wait(give_up - now)
        return give_up

    @staticmethod
    def _follows(earlier: Frame | None, frame: Frame) -> bool:
        """Is it of the same headless series as the one before, so that waiting for its header is as vain?"""
        return earlier is not None and earlier.series == frame.series and earlier.number <= frame.number

    def _is_old(self, frame: Frame) -> bool:
        """Left over from a series that is over."""
        if any(series.owns(frame) for series in (self._open, self._last) if series is not None and series.closing):
            return True
        known = self._open or self._last
        if known is None:
            return False
        if frame.series is not None and known.start.series is not None:
            return self._is_over(frame.series, unique_of(frame), known.start)
        if frame.serial is not None and known.start.serial is not None:
            return known is self._open and (frame.serial <= known.start.serial or not known.ended)
        return False

    def _is_over(self, series: int, unique: str, start: SeriesStart) -> bool:
        """A series of this id, by what is known of the series that began last."""
        earlier = is_earlier(start, series, unique)
        if earlier is not None:
            return earlier
        return start.series is None or series < start.series or series in self._past

    def _refuse(self, worker: int, frames: Sequence[Frame]) -> None:
        """Frames without a series: leftovers are counted and forgotten, others are an error of the sender."""
        tally = self._tallies[worker]
        over = self._open or self._last
        for frame in frames:
            if over is not None and over.closing and over.owns(frame):
                over.late(frame, tally)
                self._anomaly("late", f"image {frame.number} came after the end of series {over.id}")
            else:
                count = 1 + len(frame.more)
                tally.received += count
                tally.foreign += count
                self._foreign(frame)

    def _foreign(self, frame: Frame) -> None:
        if self._is_old(frame):
            self._anomaly("foreign", f"image {frame.number} is left over from an earlier series")
            return
        marks = {"series": frame.series, "message": frame.serial}
        known = ", ".join(f"{name} {value}" for name, value in marks.items() if value is not None)
        self._anomaly(
            "headless",
            f"image {frame.number}{f' ({known})' if known else ''} belongs to no open series: its start message was "
            "lost, or the receiver came late; stop the series and arm again",
            serious=True,
        )

    # --- an end ------------------------------------------------------------------------------------------------------

    def _ends(self, end: SeriesEnd) -> bool:
        """Does it end the open series, or one that is over?"""
        for series in (self._open, self._last):
            if series is not None and series.ends_with(end):
                patience = self._config.end_timeout
                series.end(end, time.monotonic() + patience, patience)
                self._change()
                self._look_at(series)
                return True
        known = self._open or self._last
        if known is None:
            return False
        if end.series is not None and known.start.series is not None:
            return self._is_over(end.series, end.unique, known.start)
        return end.serial is not None and known.start.serial is not None and end.serial <= known.start.serial

    def _orphan(self, worker: int, end: SeriesEnd) -> None:
        tally = self._tallies[worker]
        tally.received += 1
        tally.rejected += 1
        which = f"series {end.series}" if end.series is not None else f"message {end.serial}"
        self._anomaly(
            "orphan",
            f"end message ({which}) without a start message: it was lost, or the receiver came late; arm again",
            serious=True,
        )

    # --- state -------------------------------------------------------------------------------------------------------

    def _change(self) -> None:
        self._generation += 1
        self._changed.notify_all()
        self._wake.set()

    def _look_at(self, series: Series) -> None:
        """Wake the keeper if the series can be closed."""
        over = series.ended or series.closing or series.abandoned or series.ledger.all_came
        if over and series.due(time.monotonic(), 0.0, 0.0):
            self._wake.set()

    def _abandon(self, series: Series, reason: str) -> None:
        """Have it closed, as what it is: one of which everything came is complete."""
        if not series.closing and not series.is_complete():
            series.abandoned = series.abandoned or reason
        self._wake.set()

    def _fail(self, sentence: str) -> None:
        """First failure wins; a serious one displaces a remark."""
        if not self._serious:
            self._error, self._serious = sentence, True

    def _anomaly(self, kind: str, sentence: str, serious: bool = False, count: int = 1) -> None:
        """Counted in the open series, else told to the log once; `serious`: the state becomes error."""
        if serious:
            self._fail(sentence)
        if self._open is not None and not self._open.closing:
            self._open.trouble(kind, sentence, count)
            return
        if kind not in self._told:
            log.warning("%s", sentence)
        before, first = self._told.get(kind, (0, sentence))
        self._told[kind] = before + count, first

    def _judge(self, series: Series, failure: str) -> None:
        """What a closed series leaves in `error`: bad ends are failures, missing frames a remark."""
        sentence = f"series {series.id}: {series.end_reason()}"
        if failure:
            self._fail(failure)
        elif series.acknowledged:
            return
        elif series.failure:
            self._fail(series.failure)
        elif series.abandoned:
            self._fail(sentence)
        elif series.missing and not self._serious and not self._error:
            self._error = sentence

    @staticmethod
    def _log_close(series: Series, commits: Timing) -> None:
        tally = Tally.sum(series.tallies)
        seconds = time.monotonic() - series.begun
        for kind, (count, first) in series.troubles.items():
            log.warning("series %d: %d %s: %s", series.id, count, kind, first)
        if (reason := series.end_reason()) != "complete":
            log.warning("series %d: %s", series.id, reason)
        log.info(
            "series %d closed %s: %d frames, %d missing, %d repeated, %.2f s, %s",
            series.id,
            series.file.path if series.file else "(no file)",
            series.ledger.stored if series.file else series.ledger.complete,
            total(series.missing),
            tally.repeated,
            seconds,
            summary(tally, len(series.tallies), seconds, commits),
        )


def _past(series: Series, failure: str) -> Past:
    """What is told about it later."""
    tally, now = Tally.sum(series.tallies), time.time()
    return Past(
        series.id,
        str(series.file.path) if series.file is not None else "",
        series.start.nframes,
        tally.received,
        tally.written,
        total(series.missing),
        tally.repeated,
        tally.foreign,
        tally.rejected,
        tally.discarded,
        tally.bytes,
        now - (time.monotonic() - series.begun),
        now,
        failure or series.end_reason(),
    )
