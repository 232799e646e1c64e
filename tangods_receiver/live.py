"""The latest image for viewers: a reference is kept; it is decoded at a set rate, and only while somebody looks.

It never makes a frame wait: the workers leave the newest one here, those in between are not looked at. Sum, maximum,
average and regions of interest are therefore of the images that were decoded, not of all that came."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from tangods_receiver import codecs, rois
from tangods_receiver.accumulation import Accumulation
from tangods_receiver.errors import ConfigError, DaqError, StreamError
from tangods_receiver.mosaic import Collector, Mosaic, Piece, Shown
from tangods_receiver.priority import give_way
from tangods_receiver.protocol import Frame, SeriesStart
from tangods_receiver.rois import Roi, Sample
from tangods_receiver.stats import LiveStats, RoiStats
from tangods_receiver.transforms import Chain

log = logging.getLogger(__name__)

Kind = Literal["last", "sum", "max", "average"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LOOK = 2.0  # s that one look keeps the decoding going
SHARE = 0.25  # of a core that the thread may take: large images are decoded less often
CHANNELS = 64
UNKNOWN = Mosaic()  # of images that belong to no series


class LastFrame(NamedTuple):
    """`array` rows x columns (modules x rows x columns where nobody said how they lie), read only; `timestamp` s, nan
    unknown; `frames` how many went into it; `masked` True where the stream says that a pixel has no value (None: it
    does not say); `again` how often the image before it in the view had the same number in the same series."""

    number: int
    series: int
    array: codecs.Array
    timestamp: float
    frames: int = 1
    masked: codecs.Array | None = None
    again: int = 0

    @property
    def id(self) -> tuple[int, int, int]:
        """What tells it from the image before."""
        return self.series, self.number, self.again


class _View:
    """One channel: what was decoded last, and what is made of it."""

    def __init__(self) -> None:
        self.seen: Shown | None = None  # the last that was decoded, or could not be
        self.picture: LastFrame | None = None
        self.masked: codecs.Array | None = None
        self.error: StreamError | None = None
        self.mosaic: Mosaic | None = None
        self.sums: dict[Kind, Accumulation] = {}


class Live:
    """Written by the workers, one assignment each; read by anybody."""

    def __init__(self, rate: float = 10.0, average: int = 10, regions: Iterable[Roi] = ()) -> None:
        self._period = 1.0 / rate
        self._average = average
        self._latest: tuple[int, Frame, tuple[Piece | None, ...]] | None = None  # as Shown
        self._scene: tuple[int, Mosaic] = -1, UNKNOWN  # of the series that began last
        self._collector: Collector | None = None
        self._collecting = threading.Lock()
        self._decoding = threading.Lock()
        self._views: dict[int, _View] = {}  # by channel
        self._history = rois.History(tuple(regions))
        self._decoded = self._damaged = 0
        self._times: deque[float] = deque(maxlen=11)  # when images were decoded
        self._changed = threading.Condition()
        self._looks: dict[tuple[Kind, int], float] = {}  # kind and channel: when somebody last asked for it
        self._asleep = False
        self._halt = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._main, name="live view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody waits for a picture any longer; safe twice, and when it was not started."""
        with self._changed:
            self._halt = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    # --- what the reception calls ------------------------------------------------------------------------------------

    def begin(self, series: int, start: SeriesStart, chain: Chain) -> None:
        """A series is open: what its start says about images. Sums begin anew with its first image."""
        self._scene = series, Mosaic(start, chain)
        self._collector = None

    def show(self, series: int, frame: Frame) -> None:
        """A message that holds a whole image."""
        self._latest = series, frame, ()

    def show_modules(self, series: int, modules: int, frames: Sequence[Frame]) -> None:
        """Messages that hold one of several modules each, or some."""
        with self._collecting:
            collector = self._collector
            if collector is None or (collector.series, collector.modules) != (series, modules):
                collector = self._collector = Collector(series, modules)
            now = time.monotonic()
            for frame in frames:
                if (shown := collector.add(frame, now)) is not None:
                    self._latest = shown

    @property
    def number(self) -> int:
        """Number of the latest image in its series; -1 before the first."""
        latest = self._latest
        return -1 if latest is None else latest[1].number

    # --- what viewers call -------------------------------------------------------------------------------------------

    def last_frame(
        self, kind: Kind = "last", newer_than: tuple[int, ...] | None = None, wait: float = 0.0, channel: int = 0
    ) -> LastFrame | None:
        """The newest image, decoded now if need be; None before the first. StreamError: it is damaged, and there is
        none before it. With `newer_than` (series, number, or an `id`): another one as soon as the live view has it;
        None when there is none within `wait` s. ConfigError: no such kind or channel."""
        if kind not in KINDS:
            raise ConfigError(f"{kind!r} is not one of {', '.join(KINDS)}")
        self._check(channel)
        self._look(kind, channel)
        if newer_than is None or self._thread is None:
            picture = self._decode(channel)
        else:
            picture = self._wait_for(kind, channel, newer_than, time.monotonic() + wait)
        if picture is None or picture.id[: len(newer_than or ())] == newer_than:
            return None
        return picture if kind == "last" else self._made(kind, channel)

    @property
    def rois(self) -> tuple[Roi, ...]:
        return self._history.rois

    def set_rois(self, regions: Iterable[object]) -> None:
        """Others from now on; their history begins with the image that is there. ConfigError lists what is wrong."""
        found = rois.parse(regions)
        with self._decoding:
            self._history = rois.History(found)
            if found and (view := self._views.get(0)) is not None and view.picture is not None:
                self._measure(view, view.picture)
        self._wake()

    def measure(self) -> None:
        """The regions of interest in the newest image, now; where it is damaged, those of the last one remain."""
        if self._history.rois:
            try:
                self._decode(0)
            except StreamError:
                pass  # counted

    def roi_history(self) -> codecs.Array:
        """As `rois.History.table`."""
        return self._history.table()

    def stats(self) -> LiveStats:
        picture = view.picture if (view := self._views.get(0)) is not None else None
        history = self._history
        sample = history.latest
        measured = () if sample is None else tuple(map(_roi_stats, history.rois, sample.values))
        return LiveStats(
            number=-1 if picture is None else picture.number,
            series=0 if picture is None else picture.series,
            rate=self._rate(),
            decoded=self._decoded,
            damaged=self._damaged,
            roi_number=-1 if sample is None else sample.number,
            roi_series=0 if sample is None else sample.series,
            rois=measured or tuple(RoiStats(*roi) for roi in history.rois),
        )

    def _rate(self) -> float:
        times = list(self._times)
        if len(times) < 2 or time.monotonic() - times[-1] > max(1.0, 3 * self._period):
            return 0.0
        return round((len(times) - 1) / max(times[-1] - times[0], 1e-6), 1)

    def _check(self, channel: int) -> None:
        latest = self._latest
        if latest is not None:
            shown = Shown(*latest)
            self._mosaic(shown).chosen(_modules(shown), channel)
        elif not 0 <= channel < CHANNELS:
            raise ConfigError(f"channel {channel}: there are at most {CHANNELS}")

    def _wait_for(self, kind: Kind, channel: int, known: tuple[int, ...], end: float) -> LastFrame | None:
        with self._changed:
            while True:
                view = self._views.get(channel)
                picture = view.picture if view is not None else None
                if picture is not None and picture.id[: len(known)] != known:
                    return picture
                left = end - time.monotonic()
                if left <= 0 or self._halt:
                    return None
                self._looks[kind, channel] = time.monotonic()
                self._changed.wait(min(left, LOOK / 2))

    # --- the thread --------------------------------------------------------------------------------------------------

    def _look(self, kind: Kind, channel: int) -> None:
        self._looks[kind, channel] = time.monotonic()
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            with self._changed:
                self._changed.notify_all()

    def _wanted(self) -> set[tuple[Kind, int]]:
        """What somebody looks at."""
        since = self._since()
        wanted = {what for what, when in list(self._looks.items()) if when > since}
        return wanted | {("last", 0)} if self._history.rois else wanted

    def _since(self) -> float:
        """Looks before that are over."""
        return time.monotonic() - max(LOOK, 2 * self._period)

    def _main(self) -> None:
        give_way()
        due = 0.0
        while not self._halt:
            try:
                if not self._wanted():
                    self._forget(set())
                with self._changed:
                    self._asleep = True
                    while not self._halt and not self._wanted():
                        self._changed.wait()
                    self._asleep = False
                    while not self._halt and (left := due - time.monotonic()) > 0:
                        self._changed.wait(left)
                begun, used = time.monotonic(), time.thread_time()
                self._turn(self._wanted())
                due = begun + max(self._period, (time.thread_time() - used) / SHARE)
            except Exception:  # the outermost loop: a picture less
                log.exception("live view")
                due = time.monotonic() + 1.0

    def _turn(self, wanted: set[tuple[Kind, int]]) -> None:
        if self._halt:
            return
        self._forget(wanted)
        for channel in sorted({channel for _, channel in wanted}):
            try:
                self._decode(channel)
            except DaqError:
                pass  # counted; or a channel that the stream no longer has

    def _forget(self, wanted: set[tuple[Kind, int]]) -> None:
        """What nobody looks at any more, but for the last picture."""
        with self._decoding:
            for what, when in list(self._looks.items()):  # who looks at this moment enters it
                if what not in wanted and when < self._since():
                    self._looks.pop(what, None)
            for channel in [channel for channel in self._views if channel and ("last", channel) not in wanted]:
                if not any((kind, channel) in wanted for kind in KINDS):
                    del self._views[channel]
            for channel, view in self._views.items():
                view.sums = {kind: made for kind, made in view.sums.items() if (kind, channel) in wanted}

    # --- decoding ----------------------------------------------------------------------------------------------------

    def _mosaic(self, shown: Shown) -> Mosaic:
        series, mosaic = self._scene
        return mosaic if series == shown.series else UNKNOWN

    def _newest(self) -> Shown | None:
        if self._collector is not None:
            with self._collecting:
                collector = self._collector
                if collector is not None and (late := collector.overdue(time.monotonic())) is not None:
                    self._latest = late
        latest = self._latest
        return None if latest is None else Shown(*latest)

    def _decode(self, channel: int) -> LastFrame | None:
        """The newest image of this channel; the last good one where it is damaged."""
        with self._decoding:
            shown = self._newest()
            if shown is None:
                return None
            view = self._views.setdefault(channel, _View())
            seen = view.seen
            if seen is None or shown.frame is not seen.frame or shown.pieces is not seen.pieces:
                self._update(view, shown, channel)
            if view.picture is None and view.error is not None:
                raise view.error
            return view.picture

    def _update(self, view: _View, shown: Shown, channel: int) -> None:
        mosaic = self._mosaic(shown)
        chosen = mosaic.chosen(_modules(shown), channel)
        view.seen = shown
        try:
            array = mosaic.picture([_decoded(shown, module) for module in chosen])
        except StreamError as exc:
            self._damaged += 1
            view.error = exc
            return
        array.flags.writeable = False
        if channel == 0:
            self._decoded += 1
            self._times.append(time.monotonic())
        timestamp = math.nan if shown.frame.timestamp is None else shown.frame.timestamp
        view.masked = mosaic.masked(array.shape, channel)
        picture = LastFrame(shown.frame.number, shown.series, array, timestamp, masked=view.masked)
        if view.picture is not None and view.picture.id[:2] == picture.id[:2]:  # each exposure begins at 0, for example
            picture = picture._replace(again=view.picture.again + 1)
        wanted = self._wanted()
        same = view.mosaic is mosaic and view.picture is not None and view.picture.series == shown.series
        known = view.sums if same else {}
        view.mosaic = mosaic
        view.sums = {kind: made for kind, made in known.items() if (kind, channel) in wanted and made.fits(array)}
        for made in view.sums.values():
            made.add(array, view.masked)
        if channel == 0 and self._history.rois:
            self._measure(view, picture)
        with self._changed:
            view.picture = picture
            self._changed.notify_all()

    def _made(self, kind: Kind, channel: int) -> LastFrame | None:
        """What is accumulated; it begins with the image that is there when the first one looks."""
        with self._decoding:
            view = self._views.get(channel)
            if view is None or view.picture is None:
                return None
            picture = view.picture
            made = view.sums.get(kind)
            if made is None:
                assert kind != "last"
                made = view.sums[kind] = Accumulation(kind, picture.array, view.masked, self._average)
            return picture._replace(array=made.value(), frames=made.frames)

    def _measure(self, view: _View, picture: LastFrame) -> None:
        columns = picture.array.shape[-1]
        image = picture.array.reshape(-1, columns)
        masked = None if view.masked is None else view.masked.reshape(-1, columns)
        values = tuple(rois.measure(image, roi, masked) for roi in self._history.rois)
        self._history.add(Sample(picture.series, picture.number, time.time(), values))


def _modules(shown: Shown) -> int:
    return len(shown.pieces) or 1 + len(shown.frame.more)


def _decoded(shown: Shown, module: int) -> codecs.Array | None:
    """One module; None: it did not come."""
    if not shown.pieces:
        frame, data = shown.frame, (shown.frame.data, *shown.frame.more)[module]
    elif (piece := shown.pieces[module]) is not None:
        frame, data = piece
    else:
        return None
    return codecs.decompress(frame.codec, data, frame.shape, frame.dtype)


def _roi_stats(roi: Roi, values: rois.Values) -> RoiStats:
    """nan is None there, as JSON has it."""
    mean, largest, x, y = (None if math.isnan(value) else value for value in values[1:5])
    return RoiStats(*roi, values.sum, mean, largest, x, y, values.pixels)
