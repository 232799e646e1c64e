"""What the receiver has done so far: one tally per thread, summed into one frozen snapshot that everybody reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

WINDOW = 1.0  # s that rates and shares look back
TIMES = ("waiting", "transforming", "writing")
RESOLUTION = 0.25  # s; workers look at their sockets and the meter at the workers every 0.1 s: what is less is nothing


@dataclass
class Tally:
    """Counters of one thread for one series; only that thread writes them.

    What is counted are images as they come: where a stream sends the modules of an image one by one, each counts.
    The books balance: received == written + repeated + foreign + rejected + discarded.
    `dropped` never came: a PUB socket did not send them, as the numbers of those that came tell.
    `bytes` of pixels were written, `received_bytes` came; `batches` were taken together, `full` of them left the socket
    with more; `waiting` (for the socket), `transforming` and `writing` are seconds."""

    received: int = 0
    written: int = 0
    repeated: int = 0
    foreign: int = 0
    rejected: int = 0
    discarded: int = 0
    dropped: int = 0
    bytes: int = 0
    received_bytes: int = 0
    batches: int = 0
    full: int = 0
    waiting: float = 0.0
    transforming: float = 0.0
    writing: float = 0.0

    @staticmethod
    def sum(tallies: Iterable[Tally]) -> Tally:
        total = Tally()
        for tally in tallies:
            for f in fields(Tally):
                setattr(total, f.name, getattr(total, f.name) + getattr(tally, f.name))
        return total


@dataclass(frozen=True)
class Shares:
    """Parts of the time, 0 to 1: waiting for the socket, in transforms, in writing. What is left to 1 is the rest."""

    waiting: float = 0.0
    transforming: float = 0.0
    writing: float = 0.0

    @staticmethod
    def of(tally: Tally, seconds: float) -> Shares:
        """A call that began earlier counts when it ends, so that a share is cut at 1."""
        return Shares(*(_part(t, seconds) for t in (tally.waiting, tally.transforming, tally.writing)))


def _part(amount: float, of: float) -> float:
    return round(min(1.0, max(0.0, amount / of)), 3) if of > 0 else 0.0


@dataclass(frozen=True)
class Loss:
    """Frames that are not in the file, or other things that went wrong, and the first case in words."""

    kind: str
    count: int
    sentence: str


@dataclass(frozen=True)
class WorkerStats:
    """One worker. Frames, bytes, batches and seconds since the engine began, which never go back (`Tally` says what
    they are; the seconds are told once a second, so that an idle worker has no news); `rate` frames received/s,
    `throughput` bytes written/s, `batch_size` frames, `full_share` of the batches and the shares `now` over the last
    second; `overall` since the engine began.

    ZeroMQ does not tell how much is waiting; `behind` is the next best: seconds since the socket was last found empty,
    0 when that was just now. With `full_share` 1 the worker is the bottleneck."""

    index: int = 0
    received: int = 0
    written: int = 0
    repeated: int = 0
    foreign: int = 0
    rejected: int = 0
    discarded: int = 0
    dropped: int = 0
    bytes: int = 0
    received_bytes: int = 0
    batches: int = 0
    full: int = 0
    waiting: float = 0.0
    transforming: float = 0.0
    writing: float = 0.0
    rate: float = 0.0
    throughput: float = 0.0
    batch_size: float = 0.0
    full_share: float = 0.0
    now: Shares = Shares()
    overall: Shares = Shares()
    behind: float = 0.0


class _Dial:
    """Of one worker: what was last looked at."""

    def __init__(self, index: int, now: float) -> None:
        self._index = index
        self._began = self._sampled = self._empty = now
        self._sample = self._looked = Tally()
        self._recent = WorkerStats(index)

    def read(self, now: float, tally: Tally) -> WorkerStats:
        """`tally` of all that it did since the engine began."""
        self._look_for_an_empty_socket(now, tally)
        if now - self._sampled >= WINDOW:
            self._recent = self._measured(now, tally)
            self._sampled, self._sample = now, replace(tally)
        behind = now - self._empty
        return replace(
            self._recent,
            **{key: value for key, value in _known(WorkerStats, vars(tally)).items() if key not in TIMES},
            behind=round(behind, 2) if behind > RESOLUTION else 0.0,
        )

    def _look_for_an_empty_socket(self, now: float, tally: Tally) -> None:
        before, self._looked = self._looked, replace(tally)
        batches, full = tally.batches - before.batches, tally.full - before.full
        if batches > full or (not batches and tally.waiting > before.waiting):
            self._empty = now

    def _measured(self, now: float, tally: Tally) -> WorkerStats:
        before, seconds = self._sample, now - self._sampled
        past = Tally(**{f.name: getattr(tally, f.name) - getattr(before, f.name) for f in fields(Tally)})
        return WorkerStats(
            self._index,
            rate=past.received / seconds,
            throughput=past.bytes / seconds,
            batch_size=round(past.received / past.batches, 1) if past.batches else 0.0,
            full_share=_part(past.full, past.batches),
            now=Shares.of(past, seconds),
            overall=Shares.of(tally, now - self._began),
            **{key: getattr(tally, key) for key in TIMES},
        )


class Meter:
    """Counts that only grow -> rates and shares over the last second; it has no clock and no lock of its own."""

    def __init__(self, workers: int, now: float) -> None:
        self._dials = [_Dial(index, now) for index in range(workers)]

    def read(self, now: float, tallies: Sequence[Tally]) -> tuple[WorkerStats, ...]:
        """`tallies` of each worker since the engine began, at `now`. Ask at least every `RESOLUTION`."""
        return tuple(dial.read(now, tally) for dial, tally in zip(self._dials, tallies, strict=True))


@dataclass
class Timing:
    """Calls of one kind and how long they took, in seconds."""

    count: int = 0
    total: float = 0.0
    last: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.total += seconds
        self.last = seconds
        self.longest = max(self.longest, seconds)


def summary(tally: Tally, workers: int, seconds: float, commits: Timing) -> str:
    """How a series went, for the log."""
    shares = Shares.of(tally, seconds * workers)
    size = tally.received / tally.batches if tally.batches else 0.0
    return (
        f"{tally.bytes / max(seconds, 1e-6) / 1e6:.1f} MB/s, batches of {size:.1f}, waiting {shares.waiting:.0%}, "
        f"transforms {shares.transforming:.0%}, writing {shares.writing:.0%}, longest commit {commits.longest:.3f} s"
    )


@dataclass(frozen=True)
class Past:
    """A series that is over: counts as in a snapshot, `file` "" when none was written, `begun` and `ended` seconds
    since 1970, `reason` "complete" or a sentence."""

    series: int = 0
    file: str = ""
    expected: int | None = None
    received: int = 0
    written: int = 0
    missing: int = 0
    repeated: int = 0
    foreign: int = 0
    rejected: int = 0
    discarded: int = 0
    bytes: int = 0
    begun: float = 0.0
    ended: float = 0.0
    reason: str = "complete"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Past:
        """From JSON of any version; TypeError."""
        return cls(**_known(cls, values))


@dataclass(frozen=True)
class RoiStats:
    """A region of interest in full pixels, and what is in it: `sum`, `mean`, `max` and the centre of mass of its
    `pixels` that have a value; None: there is none."""

    name: str = ""
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    sum: float = 0.0
    mean: float | None = None
    max: float | None = None
    centre_x: float | None = None
    centre_y: float | None = None
    pixels: int = 0


@dataclass(frozen=True)
class LiveStats:
    """The live view: `number` and `series` of the image that was decoded last (-1, 0: none yet), `rate` of decoding in
    Hz; images `decoded`, and `damaged` ones that could not be; `rois` in the image `roi_number` of `roi_series`."""

    number: int = -1
    series: int = 0
    rate: float = 0.0
    decoded: int = 0
    damaged: int = 0
    roi_number: int = -1
    roi_series: int = 0
    rois: tuple[RoiStats, ...] = ()


@dataclass(frozen=True)
class PortStats:
    """A forwarding port, since the engine began: `frames` and `bytes` of pixels handed to ZeroMQ, frames `dropped` for
    want of room, `unheard` because no client was there, `left_out` on purpose (`every`); together all that were new.
    `passed_by` times that a subscriber of PUB had no room and lost frames, which the others got.
    Now: `peers` connected, `queued` bytes that wait. `waited` s that recording waited for it (policy lossless);
    connections that were `refused` (keys, addresses)."""

    endpoint: str = ""
    socket: str = "push"
    peers: int = 0
    frames: int = 0
    bytes: int = 0
    dropped: int = 0
    unheard: int = 0
    left_out: int = 0
    passed_by: int = 0
    queued: int = 0
    waited: float = 0.0
    refused: int = 0


@dataclass(frozen=True)
class Snapshot:
    """The state of a receiver at one moment: what /status, the Tango attributes and the tests read.

    `state` is idle, running or error; `series` the series now open, or the last one (0: none yet); `opened`, `closed`
    the ids of the last series opened and closed; senders may begin their ids anew, `openings` and `closings` count on
    since the engine began; `file` the path being written ("" when none), `last_file` the one closed last; `missing`
    frames known lost (of the open or last series); `dropped` by PUB sockets since it began, also
    after its end; `expected` None: not announced;
    `rate` frames/s and `throughput` bytes/s over the last second; `durable` True when the last closed file was synced,
    `durable_frames` the images of the open or last series that survive a power loss;
    `last_number` the number of the newest image in its series (-1: none yet); `modules` or channels of a frame of that
    series: what is counted one by one, see `Tally`.

    `workers` what each did since the engine began; `lost` what went wrong in the open or last series, by kind;
    `missing_total` frames missing in all closed series; `commits` and `commit_seconds` since the engine began,
    `commit_time` of the last one, `longest_commit` of the open or last series; `sync_time` s that putting the last
    closed file on the disk took; `free` bytes that can still be written below root (None: not known); `live` what the
    live view shows; `forward` the forwarding ports; `refused` connections to senders that failed in the handshake
    (keys, addresses) and `peers_refused` those to the forwarding port, since the engine began.
    """

    state: str = "idle"
    series: int = 0
    file: str = ""
    received: int = 0
    written: int = 0
    missing: int = 0
    repeated: int = 0
    foreign: int = 0
    rejected: int = 0
    discarded: int = 0
    dropped: int = 0
    bytes: int = 0
    expected: int | None = None
    opened: int = 0
    closed: int = 0
    openings: int = 0
    closings: int = 0
    last_file: str = ""
    rate: float = 0.0
    throughput: float = 0.0
    durable: bool = True
    durable_frames: int = 0
    last_number: int = -1
    modules: int = 1
    error: str = ""
    workers: tuple[WorkerStats, ...] = ()
    lost: tuple[Loss, ...] = ()
    missing_total: int = 0
    commits: int = 0
    commit_seconds: float = 0.0
    commit_time: float = 0.0
    longest_commit: float = 0.0
    sync_time: float = 0.0
    live: LiveStats = LiveStats()
    forward: tuple[PortStats, ...] = ()
    refused: int = 0
    peers_refused: int = 0
    free: int | None = None

    @property
    def frames(self) -> int:
        """Frames of the open or last series that came and were new, of all modules."""
        return (self.written + self.discarded) // self.modules

    @property
    def frames_written(self) -> int:
        return self.written // self.modules

    def as_dict(self) -> dict[str, Any]:
        """For JSON: of plain values, lists and dictionaries."""
        values = asdict(self)
        values["live"]["rois"] = list(values["live"]["rois"])
        values["forward"] = list(values["forward"])
        return values | {"workers": list(values["workers"]), "lost": list(values["lost"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Snapshot:
        """From JSON of any version: what is unknown here is left out, what is lacking has its default. TypeError."""
        known = _known(cls, values)
        known["workers"] = tuple(_worker(worker) for worker in known.get("workers", ()))
        known["lost"] = tuple(Loss(**_known(Loss, loss)) for loss in known.get("lost", ()))
        known["forward"] = tuple(PortStats(**_known(PortStats, port)) for port in known.get("forward", ()))
        live = _known(LiveStats, known.get("live", {}))
        live["rois"] = tuple(RoiStats(**_known(RoiStats, roi)) for roi in live.get("rois", ()))
        known["live"] = LiveStats(**live)
        return cls(**known)


def _worker(values: Mapping[str, Any]) -> WorkerStats:
    known = _known(WorkerStats, values)
    for name in {"now", "overall"} & set(known):
        known[name] = Shares(**_known(Shares, known[name]))
    return WorkerStats(**known)


def _known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{kind.__name__}: {str(values)[:80]}")
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in values.items() if key in names}
