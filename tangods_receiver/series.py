"""One series: which frames are its own, what becomes of each, and when it is over. No threads, no sockets.

`reception.py` calls everything here with its lock held, except `write`, which is the disk's time.

How a frame finds its series, by what its sender gives:

    series ids        they decide; with several workers a frame of an unknown id waits a second for its start. Unique
                      ids besides, where both sides have one, for the others may begin anew
    message numbers   those between start and end are its own (`owns`). The streamer may have restarted and count from
                      0 again: `_fits_before` knows its leftovers. With several workers the next series may come
                      before this one's end is read: `doubts`, `doubts_end` and `leaves_room_before` wait for that,
                      a second at most
    neither           order of arrival: one worker, one endpoint; others are refused at the start

Several endpoints: each sender sends a start and an end; the next series must begin only when this one is closed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan, prod
from typing import Any

from tangods_receiver import arrays, channels, nexus
from tangods_receiver import ledger as ledgers
from tangods_receiver.codecs import stored_as
from tangods_receiver.errors import StreamError
from tangods_receiver.fileset import FileSet
from tangods_receiver.ledger import Ledger, Verdict
from tangods_receiver.protocol import Buffer, Frame, SeriesEnd, SeriesStart
from tangods_receiver.protocol.stins import ITEMSIZE
from tangods_receiver.records import INCOMPLETE, WRITTEN, Books, FileHeader, ImageLayout, Record
from tangods_receiver.seriesfile import SeriesFile
from tangods_receiver.stats import Tally
from tangods_receiver.transforms import Chain

log = logging.getLogger(__name__)

AS_IT_IS = Chain()
ULID = 26  # characters
MORE = "metadata_follows"  # key of a start message: the first images have metadata for the file too
QUIET = 0.15  # s without a message after which a stopped series gets nothing more


class Series:
    """The stream comes from `endpoints` senders, each spread over `workers`; `previous` the series before, whose
    leftovers may still come; `subscribed` to senders that drop what they cannot send;
    `channels_apart` each channel has a dataset of its own."""

    def __init__(
        self,
        id: int,
        start: SeriesStart,
        *,
        workers: int = 1,
        endpoints: int = 1,
        previous: Series | None = None,
        chain: Chain = AS_IT_IS,
        subscribed: bool = False,
        channels_apart: bool = False,
    ) -> None:
        start = _modules_first(start)
        self.id = id
        self.start = start
        self.ledger = Ledger(start.nframes, start.modules)
        self.tallies = [Tally() for _ in range(workers)]
        self.troubles: dict[str, tuple[int, str]] = {}  # kind -> how often, the first in words
        self._chain = chain
        self._apart = nexus.channel_names(start.channels) if channels_apart else ()
        self.impossible = ""  # why the pixel work cannot be done on such frames
        self._begun = ""  # moment from which the times of frames count
        self.layout = self._announced_layout()
        self._completed: tuple[Mapping[str, Any], ...] = ()  # metadata, where the first image has said the rest
        if start.metadata.get(MORE) is True:
            self.layout = None  # the file is made anew then
        self.file: SeriesFile | FileSet | None = None
        self.ready = False  # the file is there, or there is none to be
        self.opened = False  # was told to have been: false where the file could not be made
        self.closing = False  # no frame is taken any longer
        self.booked = False  # and the last that was taken is written
        self.busy = 0  # batches on their way to the disk
        self.messages = 0  # image messages of this series, good or not
        self.ended = False
        self.end_serial: int | None = None
        self.deadline: float | None = None  # when it closes whatever is missing
        self._patience = 0.0  # s after a frame that came though the end had come
        self.stopped = False
        self.headers = 1  # start messages that came: each sender has its own
        self.trusting = False  # its sender numbers frames and messages differently
        self.abandoned = ""  # why it must close at once
        self.failure = ""  # the first write failure: nothing more is stored
        self.acknowledged = False  # a reset came after the failure
        self.committed = self.durable = 0  # images that a reader sees; that survive a power loss
        self.not_durable = False  # a sync failed: nobody knows what the disk has
        self.opened_at = time.time()
        self.begun = self.last_arrival = time.monotonic()
        self.latest: Frame | None = None
        self.accepted: list[Frame] | None = None  # frames that are new, until somebody takes them; None: nobody does
        self.pieces: Sequence[Frame] = ()  # of the last batch, those that hold only some modules of an image
        self.missing: ledgers.Ranges = []
        self._endpoints = endpoints
        self._subscribed = subscribed
        self._in_order = workers * endpoints == 1  # nothing is overtaken by the end message
        self._ends = 0  # end messages that came
        self._told: int | None = None  # frames that there were, by the end message
        self._defining = threading.Lock()
        self._origin: int | None = None  # number of the first frame that came, where numbers are relative
        self._before = _restarted_from(start, previous)
        for remark in start.remarks:
            self.trouble("left_out", remark)
        if rotate := start.metadata.get("rotate"):
            self.trouble(
                "unrotated", f"rotate {rotate} is asked for and not done: only configured transforms turn images"
            )

    # --- belonging ---------------------------------------------------------------------------------------------------

    def owns(self, frame: Frame) -> bool:
        """By the sender's series id; without one by message number; without both by order of arrival."""
        start = self.start
        if start.relative:  # the stream goes on when all that were asked for are there
            return not self.ended and (start.nframes is None or frame.number < start.nframes)
        if start.series is not None and frame.series is not None:
            return frame.series == start.series and not _differ(start.unique, unique_of(frame))
        serial, first = frame.serial, start.serial
        if serial is None or first is None:
            return not self.ended
        if serial <= first or (self.end_serial is not None and serial > self.end_serial) or self.doubts(frame):
            return False
        return self._before is None or not self._fits_before(frame.number, serial, first)

    def _owns_all(self, frames: Sequence[Frame]) -> bool:
        """Are all these frames, of the same series id or none, its own? False also where that takes a closer look."""
        start, series = self.start, frames[0].series
        if start.relative:
            return not self.ended
        if start.series is not None and series is not None:
            if not start.unique:
                return series == start.series
            return all(map(self.owns, {id(frame.extra): frame for frame in frames}.values()))  # mostly one
        serials = [frame[6] for frame in frames]
        if start.serial is None or self._before is not None or None in serials:
            return False
        if not self._in_order and any(map(self.doubts, frames)):
            return False
        return min(serials) > start.serial and (self.end_serial is None or max(serials) <= self.end_serial)  # type: ignore

    def doubts(self, frame: Frame) -> bool:
        """More messages were sent before it than its number tells: it may be of the next series, while the end of this
        one and that start are still in the hands of other workers. They are waited for once; then it is trusted."""
        sent_before = self._images_before(frame)
        return not self.trusting and sent_before is not None and frame.number < sent_before // self.start.modules

    def doubts_end(self, end: SeriesEnd) -> bool:
        """It may be that of a later series: fewer images came than were sent before it."""
        sent_before = self._images_before(end)
        return sent_before is not None and self.messages < sent_before

    def leaves_room_before(self, start: SeriesStart) -> bool:
        """Messages between this series and that start have not come yet: there may be another series among them."""
        first, serial = self.start.serial, start.serial
        if first is None or serial is None:
            return False
        return serial > (first + self.messages + 1 if self.end_serial is None else self.end_serial) + 1

    def _images_before(self, message: Frame | SeriesEnd) -> int | None:
        """Images between the start and this message, if it is of this series; None where that is of no use."""
        first, serial = self.start.serial, message.serial
        if self._in_order or self._endpoints > 1 or self.end_serial is not None or first is None or serial is None:
            return None
        return None if self.start.series is not None and message.series is not None else serial - first - 1

    def ends_with(self, end: SeriesEnd) -> bool:
        """Is this the end message of this series?"""
        if self.start.series is not None and end.series is not None:
            return end.series == self.start.series and not _differ(self.start.unique, end.unique)
        if end.serial is not None and self.start.serial is not None:
            return end.serial > self.start.serial and self.end_serial in (None, end.serial)
        return not self.ended

    def _fits_before(self, number: int, serial: int, first: int) -> bool:
        """The streamer restarted and counts from 0 again: leftovers of its life before follow the old numbering."""
        modules = self.start.modules
        assert self._before is not None
        return number == (serial - self._before - 1) // modules != (serial - first - 1) // modules

    # --- frames ------------------------------------------------------------------------------------------------------

    def admit(self, frames: Sequence[Frame], worker: int) -> tuple[list[Record], list[Frame]]:
        """Account for the frames: (what is to be written, what is not of this series)."""
        tally, arrived = self.tallies[worker], time.time()
        if self.start.relative:
            frames = [self._counted(frame) for frame in frames]
        if self._are_plain(frames):
            self.messages += len(frames)
            self.latest = frames[-1]
            self.pieces = () if self.ledger.modules == 1 else frames
            self._heard()
            if self.accepted is not None:
                self.accepted += frames
            return _records(frames, arrived), []
        records: list[Record] = []
        strangers: list[Frame] = []
        if self.start.channels:
            frames = [piece for frame in frames for piece in self._by_channel(frame)]
        own = -1 if self.start.series is None else self.start.series
        pieces: list[Frame] = []
        for frame in frames:
            if (frame.series != own or self.start.unique) and not self.owns(frame):
                strangers.append(self._as_it_came(frame))
                continue
            self.messages += 1
            if (wrong := self._mismatch(frame)) is not None:
                self._refuse(frame, wrong, tally)
                continue
            if 1 + len(frame.more) < self.ledger.modules:
                pieces.append(frame)
            new = [self._enter(frame, frame.module, frame.data, records, tally, arrived)]
            for module, data in enumerate(frame.more, frame.module + 1):
                new.append(self._enter(frame, module, data, records, tally, arrived))
            if self.accepted is not None:
                self.accepted += _new_parts(frame, new)
        self.pieces = pieces
        if len(strangers) < len(frames):
            self._heard()
        return records, strangers

    def _heard(self) -> None:
        """There are frames of it: after its end, too, others may be behind them, with a worker who was held up."""
        self.last_arrival = time.monotonic()
        if self.deadline is not None and not self.stopped:
            self.deadline = max(self.deadline, self.last_arrival + self._patience)

    def _are_plain(self, frames: Sequence[Frame]) -> bool:
        """Nearly always: all of this series, all alike, none repeated, all to be written. They are then entered."""
        first, step = frames[0], 1
        if self.file is None or self.failure or self.layout is None or self._mismatch(first) is not None:
            return False
        kind = first[1:4], first[5], first[7], first[9:11], first[12]
        if (
            first.discard
            or first.more
            or first.incomplete
            or any((f[1:4], f[5], f[7], f[9:11], f[12]) != kind for f in frames)
        ):
            return False
        if not self._owns_all(frames):
            return False
        if len(frames) > 1:
            step = frames[1].number - first.number
        if frames[-1].number - first.number != step * (len(frames) - 1):  # they may lie 2^62 apart
            return False
        numbers = range(first.number, frames[-1].number + 1, max(1, step))
        return [f[0] for f in frames] == [*numbers] and self.ledger.see_range(numbers)

    def _by_channel(self, frame: Frame) -> list[Frame]:
        """Each channel in its place, where a message has only some of those that the series has."""
        named, sent = self.start.channels, frame.extra.get("channels")
        if sent == named or type(sent) is not tuple or not set(sent) <= set(named) or not self.owns(frame):
            return [frame]
        extra, there = {**frame.extra, "channels": named}, zip(sent, (frame.data, *frame.more), strict=True)
        return [frame._replace(module=named.index(name), data=data, more=(), extra=extra) for name, data in there]

    def _counted(self, frame: Frame) -> Frame:
        """Its number counted from the first frame that came."""
        if self._origin is None:
            self._origin = frame.number
        return frame._replace(number=frame.number - self._origin) if self._origin else frame

    def _as_it_came(self, frame: Frame) -> Frame:
        """With the sender's number again."""
        return frame._replace(number=frame.number + self._origin) if self._origin else frame

    def _enter(
        self, frame: Frame, module: int, data: Buffer, records: list[Record], tally: Tally, arrived: float
    ) -> bool:
        """One frame or module: a record to be written, or a number in the books. False: it was not new."""
        verdict = self.ledger.see(frame.number, module)
        if verdict is not Verdict.NEW:
            self._count_unwanted(frame, verdict, tally)
            return False
        self.latest = frame
        if frame.incomplete:
            self.trouble("incomplete", f"image {frame.number}: pixels are missing, says the sender")
        if self.file is not None and not self.failure and not frame.discard:
            serial = -1 if frame.serial is None else frame.serial
            timestamp = nan if frame.timestamp is None else frame.timestamp
            status = INCOMPLETE if frame.incomplete else WRITTEN
            records.append(Record(frame.number, module, data, serial, timestamp, arrived, status, frame.times))
            return True
        tally.received += 1
        tally.discarded += 1
        if self.failure:
            self.ledger.lose(frame.number, module)
        elif self.file is not None:
            self.ledger.leave_out(frame.number, module)
        return True

    def _mismatch(self, frame: Frame) -> str | None:
        """What does not fit the series, with both values; the first frame tells what was not announced."""
        layout, named = self.layout, self.start.channels
        if named and type(sent := frame.extra.get("channels")) is tuple and sent != named:
            return f"channels {', '.join(sent)}, the series has {', '.join(named)}"
        if layout is None:
            return self._learn(frame)
        if frame.shape == layout.shape and frame.dtype == layout.dtype and frame.codec == layout.codec:
            if len(frame.more) + frame.module < layout.modules:
                return None
            return f"modules {frame.module} to {frame.module + len(frame.more)}, the series has {layout.modules}"
        return (
            f"{_size(frame.shape)} {frame.dtype} {frame.codec}, "
            f"the series has {_size(layout.shape)} {layout.dtype} {layout.codec}"
        )

    def _learn(self, frame: Frame) -> str | None:
        """Frames are as the first one, in what was not announced."""
        start = self.start
        shape, dtype, codec = frame.shape, frame.dtype, frame.codec
        if self._chain.is_empty:  # else the frame is no longer as it was announced
            shape = start.shape or shape
            codec, dtype = stored_as(start.codec or codec, start.dtype or dtype)
        modules = max(start.modules, 1 + len(frame.more))
        if modules != self.ledger.modules:
            self.ledger = Ledger(start.nframes, modules)
        self._begun = str(frame.extra.get("series_date", ""))
        self.layout = self._layout(shape, dtype, codec, modules)
        if (wrong := self._mismatch(frame)) is not None:
            self.layout = None
        elif start.metadata.get(MORE) is True:
            metadata = _joined(start.metadata, frame.extra.get("metadata"))
            self.start, self._completed = replace(start, metadata=metadata), (metadata,)
        return wrong

    def _announced_layout(self) -> ImageLayout | None:
        """How frames will be stored, where the start message tells everything."""
        start = self.start
        if start.shape is None or start.dtype is None or start.codec is None:
            return None
        try:
            shape, dtype, codec = self._chain.stored(start.shape, start.dtype, start.codec)
        except StreamError as exc:
            self.impossible = f"the transforms cannot be applied to this series: {exc}"
            return None
        return self._layout(shape, dtype, codec, start.modules)

    def _layout(self, shape: Sequence[int], dtype: str, codec: str, modules: int) -> ImageLayout:
        apart = self._apart if len(self._apart) == modules else ()
        return ImageLayout((shape[0], shape[1]), dtype, codec, modules, apart, self.start.times, self._begun)

    def _refuse(self, frame: Frame, wrong: str, tally: Tally) -> None:
        count = 1 + len(frame.more)
        tally.received += count
        tally.rejected += count
        self.trouble("rejected", f"image {frame.number} refused: {wrong}")

    def _count_unwanted(self, frame: Frame, verdict: Verdict, tally: Tally) -> None:
        tally.received += 1
        if verdict is Verdict.REPEATED:
            tally.repeated += 1
            self.trouble("repeated", f"image {frame.number} came more than once; the first was kept")
        else:
            tally.foreign += 1
            if verdict is Verdict.FOREIGN:
                announced = self.ledger.expected
                limit = "far beyond those before" if announced is None else f"{announced} were announced"
                if frame.number < 0:
                    limit = "it is older than the first of the series"
                self.trouble("beyond", f"image {frame.number} refused: {limit}")

    def late(self, frame: Frame, worker_tally: Tally) -> None:
        """A frame of this series that came after its end: counted, never written."""
        for module in range(frame.module, frame.module + 1 + len(frame.more)):
            worker_tally.received += 1
            if self.ledger.see(frame.number, module) is Verdict.REPEATED:
                worker_tally.repeated += 1
            else:
                worker_tally.foreign += 1

    @property
    def rejected(self) -> int:
        """Frames refused so far."""
        return self.troubles.get("rejected", (0, ""))[0]

    def trouble(self, kind: str, sentence: str, count: int = 1) -> None:
        """Note an anomaly: counted, its first case in words."""
        before, first = self.troubles.get(kind, (0, sentence))
        self.troubles[kind] = before + count, first

    # --- the file ----------------------------------------------------------------------------------------------------

    def write(self, records: Sequence[Record]) -> int:
        """Bytes of pixels written; WriteError. Without the lock: several workers at a time."""
        assert self.file is not None and self.layout is not None
        if self.file.layout is None:
            with self._defining:
                if self.file.layout is None:
                    self.file.define(self.layout, *self._completed)
        return self.file.append(records)

    def wrote(self, records: Sequence[Record], worker: int, payload: int, seconds: float, failure: str) -> None:
        """Account for a batch that is on the disk, or (`failure`) is not."""
        tally = self.tallies[worker]
        tally.received += len(records)
        tally.writing += seconds
        self._heard()  # a slow storage is no silence of the sender
        if not failure:
            tally.written += len(records)
            tally.bytes += payload
            return
        tally.discarded += len(records)
        self.failure = self.failure or failure
        for record in records:
            self.ledger.lose(record.frame, record.module)

    def header(self, dataset: str) -> FileHeader:
        found = self.start.arrays if self._chain.is_empty else arrays.moved(self.start.arrays, self._chain.placed)
        return FileHeader(
            series=self.id,
            dataset=dataset,
            nframes=self.start.nframes,
            start_time=self.opened_at,
            metadata=self.start.metadata,
            filename=self.start.filename,
            arrays=found if self._apart else channels.stacked(found, self.start.channels),
        )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one message's pixels, 0 while not known."""
        layout = self.layout
        return frame_bytes(self.start) if layout is None else layout.chunk_bytes

    # --- the end -----------------------------------------------------------------------------------------------------

    def end(self, message: SeriesEnd, deadline: float, patience: float = 0.0) -> None:
        """Missing frames are waited for until the deadline, and for `patience` s after each one that comes."""
        self.ended, self.deadline, self._patience = True, deadline, patience
        self._ends += 1
        if message.serial is not None:
            self.end_serial = message.serial
        if message.nframes is not None:
            self._told = min(max(self._told or 0, message.nframes), self.ledger.highest + 1 + ledgers.JUMP)

    def stop(self, deadline: float) -> None:
        self.stopped = True
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def due(self, now: float, quiet_for: float, stall_timeout: float) -> bool:
        """Can it be closed now? `quiet_for` seconds since any socket gave a message."""
        if not self.ready or self.booked or self.busy:
            return False
        if self.closing or self.abandoned or self.ledger.all_came:
            return True
        if self.ended and self._everything_came(quiet_for):
            return True
        if self.deadline is not None and now >= self.deadline:
            return True
        if self.stopped:
            return quiet_for >= QUIET
        if stall_timeout and not self.ended and now - self.last_arrival >= stall_timeout:
            self.abandoned = f"nothing came for {stall_timeout:g} s"
            return True
        return False

    def shut_if_overdue(self, now: float) -> None:
        """It must close, however much still comes: else several workers may have no moment in common in which none of
        them writes."""
        if self.ready and (self.abandoned or (self.stopped and self.deadline is not None and now >= self.deadline)):
            self.closing = self.ledger.closed = True

    def is_complete(self) -> bool:
        """Everything came, whether it is closed already or not."""
        return self.ledger.all_came or (self.ended and self._everything_came(0.0))

    def _everything_came(self, quiet_for: float) -> bool:
        """After the end message: is nothing on its way any more, also not in the hands of another worker?"""
        if self._endpoints == 1 and self.end_serial is not None and self.start.serial is not None:
            return self.messages >= self.end_serial - self.start.serial - 1
        if self.ledger.expected is not None:
            return self.ledger.all_came
        if self.ledger.complete != max(self.ledger.highest + 1, self._told or 0):
            return False
        return self._in_order or (self._ends >= self._endpoints and quiet_for >= QUIET)

    def expected(self) -> int | None:
        """Frames announced; else what the message numbers say; None: nobody said."""
        if self.ledger.expected is not None:
            return self.ledger.expected
        if not self.ended:
            return None
        came = self.ledger.highest + 1
        if self._told is not None:
            return max(came, self._told)
        if self.end_serial is None or self.start.serial is None or self._endpoints != 1:
            return came
        images = self.end_serial - self.start.serial - 1
        if self.messages >= images:
            return came
        return max(came, min((images - self.ledger.repeated) // self.ledger.modules, came + ledgers.JUMP))

    def close(self) -> Books:
        """No frame is taken from here on; the final books."""
        self.closing = self.booked = self.ledger.closed = True
        expected = self.expected()
        self.missing = self.ledger.missing(expected)
        total = Tally.sum(self.tallies)
        return Books(
            frames_expected=expected,
            frames_received=self.ledger.stored,
            missing=self.ledger.absent(expected),
            repeated=total.repeated,
            rejected=total.rejected,
            foreign=total.foreign,
            end_time=time.time(),
            end_reason=self.end_reason(),
        )

    def end_reason(self) -> str:
        """ "complete", or a sentence."""
        reason = self.failure or self.abandoned
        if not reason and self.stopped and not self.ended and not self.ledger.all_came:
            reason = "stopped"
        missing = ledgers.total(self.missing)
        if not missing:
            return reason or "complete"
        expected = self.expected()
        of = f"{missing} of {expected}" if expected is not None else str(missing)
        shared = "" if self._subscribed else _shared(self.missing)
        lost = f"{of} frames missing: {_ranges(self.missing)}{shared}"
        if self._subscribed and (not self.rejected or Tally.sum(self.tallies).dropped):
            lost += "; a PUB socket drops what its subscriber does not fetch in time"
        return f"{reason}; {lost}" if reason else lost

    def known_missing(self) -> int:
        """Frames known lost so far; frames still on their way in another worker look like it for a moment."""
        if self.booked:
            return ledgers.total(self.missing)
        return self.ledger.known_missing


def _records(frames: Sequence[Frame], arrived: float) -> list[Record]:
    """Of frames with one payload each."""
    make = tuple.__new__  # a third of the time of Record()
    return [
        make(
            Record,
            (f[0], f[5], f[4], -1 if f[6] is None else f[6], nan if f[8] is None else f[8], arrived, WRITTEN, f[13]),
        )
        for f in frames
    ]


def _new_parts(frame: Frame, new: Sequence[bool]) -> list[Frame]:
    """Of a frame what was new: as it came, or the new ones of its modules."""
    if all(new):
        return [frame]
    parts = enumerate(zip(new, (frame.data, *frame.more), strict=True), frame.module)
    return [frame._replace(module=module, data=data, more=()) for module, (is_new, data) in parts if is_new]


def unique_of(frame: Frame) -> str:
    """What tells its series from all others; "": the protocol has none."""
    return str(frame.extra.get("series_unique_id", ""))


def _differ(one: str, other: str) -> bool:
    """Are they those of two series? Not where one is not known."""
    return bool(one and other) and one != other


def is_earlier(start: SeriesStart, series: int, unique: str) -> bool | None:
    """Is a series of this id, and this id for ever (ULIDs, which grow with time), from before that start? None: the
    unique ids do not tell."""
    if len(unique) != ULID or len(start.unique) != ULID or unique == start.unique:
        return None
    if unique > start.unique:
        return False
    return True if series == start.series else None


def frame_bytes(start: SeriesStart) -> int:
    """Bytes of one message's pixels as announced, 0 when that was not said."""
    if start.shape is None or start.dtype is None:
        return 0
    return prod(start.shape) * ITEMSIZE[start.dtype]


def _modules_first(start: SeriesStart) -> SeriesStart:
    """A shape of [modules, rows, columns] says how many modules there are."""
    if start.shape is not None and len(start.shape) == 3:
        return replace(start, modules=start.shape[0], shape=start.shape[1:])
    return start


def _joined(said: Mapping[str, Any], more: Any) -> dict[str, Any]:
    """What the start message said, and what an image adds to it."""
    joined = {key: value for key, value in said.items() if key != MORE}
    for key, value in more.items() if isinstance(more, Mapping) else ():
        if isinstance(value, Mapping) and isinstance(joined.get(key), Mapping):
            joined[key] = _joined(joined[key], value)
        else:
            joined.setdefault(key, value)
    return joined


def _restarted_from(start: SeriesStart, previous: Series | None) -> int | None:
    """Start number of the series before when the streamer counts from a lower number now; else None."""
    if start.serial is None or previous is None or previous.start.serial is None:
        return None
    return previous.start.serial if previous.start.serial > start.serial else None


def _size(shape: Sequence[Any]) -> str:
    return " x ".join(str(n) for n in shape)


def _shared(ranges: ledgers.Ranges) -> str:
    """Every second, third or fourth frame is there: a stream shared out among several clients."""
    gaps = [after[0] - before[0] for before, after in zip(ranges, ranges[1:], strict=False)]
    if len(gaps) >= 5 and len(set(gaps)) == 1 and gaps[0] <= 4:
        return "; does another client pull from this stream?"
    return ""


def _ranges(ranges: ledgers.Ranges, most: int = 5) -> str:
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:most]]
    return ", ".join(shown) + (f" and {len(ranges) - most} more gaps" if len(ranges) > most else "")
