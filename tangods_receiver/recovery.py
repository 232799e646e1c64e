"""Look after series files: `check` one, `recover` what a killed receiver left behind.

The records are the truth: they are found by their magic at 64-byte steps, whatever the index says.
"""

from __future__ import annotations

import errno
import fcntl
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from stat import S_ISREG
from types import ModuleType
from zlib import crc32

import h5py
import numpy as np
from numpy.typing import NDArray

from . import arrays, codecs, h5fields, nexus
from .catalogue import TIME_FIELDS, Catalogue, missing_writes
from .chunkindex import runs
from .errors import ConfigError, StreamError, WriteError
from .records import (
    ALIGN,
    HEADER,
    HEADER_SIZE,
    INCOMPLETE,
    MAGIC,
    MISSING,
    NO_TIMES,
    PAYLOAD_CRC,
    TIMES,
    TRAILER_SIZE,
    Books,
    ImageLayout,
    aligned,
    header_is_sound,
    record_size,
    tail_size,
    trailer_of,
)
from .seriesfile import write_all

Progress = Callable[[int, int], None]  # done, total
Look = Callable[[Path, "Progress | None"], "Report"]

_Index = tuple[NDArray, NDArray, NDArray]  # position, address and size of chunks
_NO_INDEX = np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.uint64)
_NODE = 64 << 10  # no node or block of values is longer; its end may be zeros
_WINDOW = 1 << 22  # bytes looked through at a time for the next record
_SILENCE = 4 << 30  # bytes of zeros after which nothing more is expected (file systems that do not tell holes)
_SHOWN = 20  # problems of one kind that are told one by one
RECOVERED = "recovered: the writer was killed"


@dataclass(frozen=True)
class Report:
    """What is in a series file: `missing` inclusive ranges, `torn` records without their end, `problems` sentences."""

    path: Path
    frames: int
    expected: int | None
    missing: list[tuple[int, int]]
    torn: int
    problems: list[str] = field(default_factory=list)
    recovered: bool = False

    @property
    def ok(self) -> bool:
        """There are no problems; frames may be missing all the same."""
        return not self.problems

    def lines(self) -> list[str]:
        """The report in words, as `tangods-detector check` prints it."""
        of = "" if self.expected is None else f" of {self.expected}"
        lost = sum(last - first + 1 for first, last in self.missing)
        head = f"{self.path}: {'recovered, ' if self.recovered else ''}{self.frames}{of} frames, {lost} missing"
        torn = f", {self.torn} torn by the kill and refused" if self.torn else ""
        gaps = [f"missing: {_ranges_text(self.missing)}"] if self.missing else []
        return [head + torn, *gaps, *(f"problem: {p}" for p in self.problems), "ok" if self.ok else "NOT ok"]


@dataclass(frozen=True)
class _Scan:
    """All whole records of a file: their headers and times, where their payloads are, the end of the last; how many
    were torn."""

    headers: NDArray
    times: NDArray
    addresses: NDArray[np.uint64]
    end: int
    torn: int


@dataclass(frozen=True)
class _Known:
    """What the tree of a file says, read by h5py before anything is changed."""

    identity: nexus.Identity
    places: nexus.Places
    layout: ImageLayout | None
    length: int
    closed: bool


def recover(path: Path | str, progress: Progress | None = None) -> Report:
    """Index every whole record, complete the books and give the file its true end. A closed file is left untouched.

    ConfigError: not a series file, or in use. WriteError: the storage refused. May be killed and repeated at any point:
    the old index stays valid until the new one is written."""
    path = Path(path)
    if masters := _masters_of(path):
        return masters.recover(path, progress)
    with opened(path, os.O_RDONLY) as fd:
        known = _known(path, fd)
        if known.closed and os.fstat(fd).st_size == h5fields.end_of_file(os.pread(fd, HEADER_SIZE, 0)):
            return _report(path, fd, known, [])
    with opened(path, os.O_RDWR) as fd:
        lock_exclusive(fd, path)
        known = _known(path, fd)  # again: only now nobody else changes it
        scan = _scan(fd, known.identity.nonce, progress)
        try:
            frames, missing = _mend(fd, known, scan)
        except OSError as exc:
            raise WriteError(f"cannot recover {path}: {exc.strerror}: free some space or look at the disk") from exc
    return Report(path, frames, known.identity.nframes, missing, scan.torn, recovered=True)


def check(path: Path | str, progress: Progress | None = None) -> Report:
    """Compare index, records and books, and decode every frame; what is wrong stands in `problems`.

    ConfigError when it is not a series file at all."""
    path = Path(path)
    if masters := _masters_of(path):
        return masters.check(path, progress)
    with opened(path, os.O_RDONLY) as fd:
        known = _known(path, fd)
        live = not known.closed and in_use(fd)
        known = known if live or known.closed else _known(path, fd)  # it may have been closed just now
        problems = _end_problems(fd, known, live)
        with _h5(path) as h5:
            # Before the records are looked for: while the file is being written these may become more, never fewer.
            index = _index(_datasets(h5, known), known.layout) if known.layout else _NO_INDEX
            scan = _scan(fd, known.identity.nonce)
            problems += _index_problems(fd, h5, known, scan, index, live, progress)
            problems += _array_problems(h5, known)
            if not live:
                problems += _book_problems(h5, known, scan)
                problems += _time_problems(h5, known, scan)
        return _report(path, fd, known, problems, scan)


def _masters_of(path: Path) -> ModuleType | None:
    """What looks after a series in several files, if this is the master of one."""
    from . import masters  # it looks after the files by what is here

    return masters if masters.is_master(path) else None


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(f"cannot open {path}: {exc.strerror}") from exc
    if not S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"cannot open {path}: not a file")
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _h5(path: Path) -> Iterator[h5py.File]:
    """Without HDF5's lock: we hold our own, or only look."""
    with h5py.File(path, "r", locking=False) as h5:
        yield h5


def _known(path: Path, fd: int) -> _Known:
    """What the file says about itself; ConfigError when it is not one of ours."""
    start = os.pread(fd, HEADER_SIZE, 0)
    if len(start) < HEADER_SIZE or not start.strip(b"\0"):
        raise ConfigError(f"{path}: killed while it was being created, there are no frames in it: delete it")
    if not h5fields.is_version_0(start):
        raise ConfigError(f"{path}: not an HDF5 file that this package wrote")
    try:
        with _h5(path) as h5:
            return _read_tree(h5, fd)
    except (OSError, KeyError, RuntimeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"{path}: not a series file of this package, or killed while it was created: {exc}") from exc


def _read_tree(h5: h5py.File, fd: int) -> _Known:
    identity = nexus.identity(h5)
    layout = nexus.stored_layout(h5, identity)
    datasets = [h5[path] for path in identity.images] if layout else []
    return _Known(
        identity=identity,
        places=nexus.find_places(h5, identity, lambda offset, size: os.pread(fd, size, offset)),
        layout=layout,
        length=max(len(a) for a in (h5[nexus.detector_path(identity.dataset)]["frame_status"], *datasets)),
        closed=bool(h5[identity.dataset.split("/")[0]]["end_time"][()].strip(b"\0")),
    )


def lock_exclusive(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise ConfigError(
            f"{path}: is being written, or open in another program: wait for the end of the series, or close it there"
        ) from exc
    except OSError as exc:
        # Nobody can tell whether it is being written; a file that is would grow under our hands.
        if exc.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise ConfigError(f"cannot lock {path}: {exc.strerror}") from exc


def _scan(fd: int, nonce: int, progress: Progress | None = None) -> _Scan:
    """Walk through the records; where there is none, look for the next magic, skipping holes of sparse files."""
    headers, times, addresses = bytearray(), bytearray(), array("Q")
    offset = end = torn = 0
    size = os.fstat(fd).st_size
    while (header_at := _next_magic(fd, offset, size)) is not None:
        header = os.pread(fd, HEADER_SIZE, header_at)
        offset = header_at + ALIGN
        if not header_is_sound(header, nonce):
            continue
        payload, flags = int.from_bytes(header[48:52], "little"), header[62]
        tail = os.pread(fd, tail_size(flags), header_at + HEADER_SIZE + payload)
        own_times = tail[:-TRAILER_SIZE]
        if tail[-TRAILER_SIZE:] != trailer_of(header, own_times):
            torn += 1
            continue
        headers += header
        times += own_times or NO_TIMES
        addresses.append(header_at + HEADER_SIZE)
        offset = end = header_at + record_size(payload, flags)
        if progress and not len(addresses) % 1000:
            progress(offset, size)
    if progress:
        progress(size, size)
    return _Scan(
        np.frombuffer(bytes(headers), HEADER),
        np.frombuffer(bytes(times), TIMES),
        np.array(addresses, np.uint64),
        end,
        torn,
    )


def _next_magic(fd: int, offset: int, size: int) -> int | None:
    """Where the next header may begin, at or after `offset`; None: nowhere."""
    magic = int.from_bytes(MAGIC, "little")
    if os.pread(fd, 4, offset) == MAGIC:  # the usual case: records lie behind each other
        return offset
    for begin, window in _windows(fd, offset, size):
        words = np.frombuffer(window[: len(window) & -ALIGN], "<u4")[:: ALIGN // 4]
        found = np.flatnonzero(words == magic)
        if len(found):
            return begin + int(found[0]) * ALIGN
    return None


def _windows(fd: int, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The bytes from `offset` on without the holes, each window at a multiple of 64; nothing after a long silence."""
    silent = 0
    while offset < size and silent < _SILENCE:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA) & -ALIGN
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole up to the end
                return
            raise
        window = os.pread(fd, _WINDOW, offset)
        if window.count(0) == len(window):
            silent += len(window)
        else:
            silent = 0
            yield offset, window
        offset += _WINDOW


def _mend(fd: int, known: _Known, scan: _Scan) -> tuple[int, list[tuple[int, int]]]:
    """Write the whole index anew behind everything, in the order of a commit, then the books and the true end."""
    places, expected = known.places, known.identity.nframes
    end = _data_end(fd, scan.end)

    def place(size: int) -> int:
        nonlocal end
        start, end = end, end + aligned(size)
        if end > h5fields.end_of_file(os.pread(fd, HEADER_SIZE, 0)):
            _push_horizon(fd, end)
        return start

    catalogue = Catalogue(
        places, known.layout, 0, known.identity.part
    )  # 0: all lengths are written, a kill may have come between them
    catalogue.extend(known.length)
    if known.layout is not None:
        catalogue.add(scan.headers, scan.addresses, scan.times if known.layout.times else None)
    for offset, data in catalogue.writes(place, last=True):
        write_all(fd, [data], offset)
    frames = np.unique(scan.headers["frame"])
    missing = gaps(frames, expected if expected is not None else catalogue.length)
    books = Books(
        frames_expected=expected,
        frames_received=catalogue.complete,
        missing=missing,
        repeated=0,
        rejected=0,
        foreign=0,
        end_time=_last_time(scan.headers, os.fstat(fd).st_mtime),
        end_reason=RECOVERED,
    )
    if not known.closed:  # else it was killed between the books and the true end: they are right
        for offset, data in missing_writes(places, missing, place):
            write_all(fd, [data], offset)
        for name, value in nexus.scalar_values(books).items():
            write_all(fd, [value], places.scalars[name][0])
    write_all(fd, [end.to_bytes(8, "little")], h5fields.END_OF_FILE)
    os.ftruncate(fd, end)
    os.fdatasync(fd)
    return len(frames), missing


def _push_horizon(fd: int, end: int) -> None:
    """The file has to reach further than the writer thought: size first, then the address."""
    size = max(os.fstat(fd).st_size, end)
    os.ftruncate(fd, size)
    write_all(fd, [size.to_bytes(8, "little")], h5fields.END_OF_FILE)


def _data_end(fd: int, scanned: int) -> int:
    """Where the bytes of a sparse file end: behind all records and all nodes of the index that is valid until now."""
    last = scanned
    for begin, window in _windows(fd, scanned, os.fstat(fd).st_size):
        last = begin + len(window.rstrip(b"\0"))
    return aligned(last) + _NODE


def _last_time(headers: NDArray, otherwise: float) -> float:
    arrived = headers["arrived"][np.isfinite(headers["arrived"])]
    last = float(arrived.max()) if len(arrived) else otherwise
    return last if isfinite(last) else otherwise


def gaps(frames: NDArray, length: int) -> list[tuple[int, int]]:
    """Inclusive ranges of the numbers below `length` that are not in the sorted, unique `frames`."""
    known = np.concatenate(([-1], frames[frames < length].astype(np.int64), [length]))
    at = np.flatnonzero(np.diff(known) > 1)
    return [(int(known[i]) + 1, int(known[i + 1]) - 1) for i in at]


def _report(path: Path, fd: int, known: _Known, problems: list[str], scan: _Scan | None = None) -> Report:
    scan = scan or _scan(fd, known.identity.nonce)
    with _h5(path) as h5:
        group = h5[nexus.detector_path(known.identity.dataset)]
        expected = int(group["frames_expected"][()])
        missing = [(int(first), int(last)) for first, last in group["frames_missing"][()]]
    frames = len(np.unique(scan.headers["frame"]))
    return Report(path, frames, None if expected < 0 else expected, missing, scan.torn, problems)


def in_use(fd: int) -> bool:
    """Whether a writer (or a reader) has it open now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return isinstance(exc, BlockingIOError)
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def not_closed(live: bool) -> str:
    if live:
        return "not closed: it is being written (check again at the end of the series), or open in another program"
    return "not closed: the writer was killed (then: tangods-detector recover), or writes on where there are no locks"


def is_only_hole(fd: int) -> bool:
    """Nothing was ever written into this file."""
    return next(_windows(fd, 0, os.fstat(fd).st_size), None) is None


def _end_problems(fd: int, known: _Known, live: bool) -> list[str]:
    if live or not known.closed:
        return [not_closed(live)]
    size, end = os.fstat(fd).st_size, h5fields.end_of_file(os.pread(fd, HEADER_SIZE, 0))
    return [] if size == end else [f"the file has {size} bytes, its end-of-file address is {end}"]


def _index_problems(
    fd: int, h5: h5py.File, known: _Known, scan: _Scan, index: _Index, live: bool, progress: Progress | None
) -> list[str]:
    """The index against the records, and each frame decoded; `live`: not all records are in the index yet."""
    if known.layout is None:
        return ["there are records, but no images"] if len(scan.headers) else []
    datasets, modules = _datasets(h5, known), known.layout.modules
    length = min(map(len, datasets))
    recorded = scan.headers["frame"].astype(np.int64) * modules + scan.headers["module"]
    indexed, addresses, sizes = index
    unindexed = np.setdiff1d(recorded, indexed)
    problems = [] if live else _some("record is not in the index", unindexed, modules)
    problems += _some("chunk in the index has no record", np.setdiff1d(indexed, recorded), modules)
    both, _, at = np.intersect1d(recorded, indexed, return_indices=True)
    if live:  # chunks come before the length
        both, at = both[both < length * modules], at[both < length * modules]
    order = np.argsort(scan.addresses)
    nearest = order[np.searchsorted(scan.addresses, addresses[at], sorter=order).clip(max=len(order) - 1)]
    # A repeated frame has several records: the index must point at one of them, with its size.
    right = scan.addresses[nearest] == addresses[at]
    right &= (scan.headers["size"][nearest] == sizes[at]) & (recorded[nearest] == both)
    problems += _some("index does not point at a record of it", both[~right], modules)
    problems += _some("payload differs from its checksum", recorded[_bad_payloads(fd, scan)], modules)
    return problems + _some("cannot be decoded", _undecodable(datasets, both, known.layout, progress), modules)


def _datasets(h5: h5py.File, known: _Known) -> list[h5py.Dataset]:
    """Those of the images: one, or one for each channel."""
    return [h5[path] for path in known.identity.images]


def _index(datasets: Sequence[h5py.Dataset], layout: ImageLayout) -> _Index:
    """Position, address and size of every chunk that HDF5 finds, by position."""
    found = array("Q")
    for channel, data in enumerate(datasets):

        def note(chunk: h5py.h5d.StoreInfo, channel: int = channel) -> None:
            at = chunk.chunk_offset
            module = at[1] if layout.axis else channel
            found.extend((at[0] * layout.modules + module, chunk.byte_offset, chunk.size))

        data.id.chunk_iter(note)
    table = np.array(found, np.uint64).reshape(-1, 3)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0].astype(np.int64), table[:, 1], table[:, 2]


def _bad_payloads(fd: int, scan: _Scan) -> list[int]:
    """Which records have a payload CRC that is wrong."""
    bad = []
    for i in np.flatnonzero(scan.headers["flags"] & PAYLOAD_CRC).tolist():
        header = scan.headers[i]
        if crc32(os.pread(fd, int(header["size"]), int(scan.addresses[i]))) != header["payload_crc"]:
            bad.append(i)
    return bad


def _undecodable(
    datasets: Sequence[h5py.Dataset], positions: NDArray, layout: ImageLayout, progress: Progress | None
) -> NDArray:
    bad = []
    for done, position in enumerate(positions.tolist(), 1):
        frame, module = divmod(position, layout.modules)
        data = datasets[module if layout.channels else 0]
        try:
            if frame >= len(data):
                bad.append(position)
            else:
                _decode(data, layout, (frame, module) if layout.axis else (frame,))
        except (OSError, RuntimeError, StreamError):
            bad.append(position)
        if progress and (not done % 100 or done == len(positions)):
            progress(done, len(positions))
    return np.array(bad, np.int64)


def _decode(data: h5py.Dataset, layout: ImageLayout, place: tuple[int, ...]) -> None:
    """Read this chunk. StreamError, OSError: it is damaged. HDF5's own filter may crash on a damaged one: not used."""
    if layout.codec == "none":
        data[place]
    else:
        _, chunk = data.id.read_direct_chunk((*place, 0, 0))
        codecs.decompress(layout.codec, chunk, layout.shape, layout.dtype)


def _book_problems(h5: h5py.File, known: _Known, scan: _Scan) -> list[str]:
    """Whether the counts, the missing ranges and the per-frame arrays say what the records say."""
    group = h5[nexus.detector_path(known.identity.dataset)]
    frames, modules = _modules_of(scan)
    seen, status = statuses(group["frame_status"])
    problems = []
    if not np.array_equal(seen, frames):
        odd = np.setxor1d(seen, frames)
        problems.append(f"frame_status does not fit the records for {len(odd)} frames: {_first(odd.tolist())}")
    if not known.closed:
        return problems
    wanted = known.layout.modules if known.layout else 1
    incomplete = frames[modules < wanted] if wanted > 1 else frames[:0]
    told = np.union1d(incomplete, scan.headers["frame"][scan.headers["status"] == INCOMPLETE])
    if not np.array_equal(seen[status == INCOMPLETE], told):
        problems.append(f"{len(told)} frames lack modules or pixels, frame_status says otherwise")
    received, expected = int(group["frames_received"][()]), int(group["frames_expected"][()])
    if received not in (len(frames), len(frames) - len(incomplete)):
        problems.append(f"frames_received is {received}, there are {len(frames)}")
    listed = [(int(first), int(last)) for first, last in group["frames_missing"][()]]
    length = expected if expected >= 0 else known.length
    gone = gaps(frames, length), gaps(np.setdiff1d(frames, incomplete), length)
    if listed not in gone:
        problems.append(
            f"frames_missing lists {_ranges_text(listed) or 'none'}, it is {_ranges_text(gone[0]) or 'none'}"
        )
    return problems


def _time_problems(h5: h5py.File, known: _Known, scan: _Scan) -> list[str]:
    """Whether each frame has the times of one of its records."""
    if known.layout is None or not known.layout.times or not known.closed:
        return []
    group, problems = h5[nexus.detector_path(known.identity.dataset)], []
    frames = scan.headers["frame"].astype(np.int64)
    for name, field_name in TIME_FIELDS.items():
        told = scan.times[field_name]
        there = np.isfinite(told)
        wanted, values = frames[there], told[there]
        odd = np.setdiff1d(wanted, wanted[_column(group[name], wanted) == values])
        if len(odd):
            problems.append(f"{name} does not fit the records for {len(odd)} frames: {_first(odd.tolist())}")
    return problems


def _column(dataset: h5py.Dataset, frames: NDArray) -> NDArray:
    """Values of these frames, read block by block; NaN beyond the end."""
    values, (size,) = np.full(len(frames), np.nan), dataset.chunks
    order = np.argsort(frames)
    for number, begin, end in runs(frames[order] // size):
        block = dataset[number * size : (number + 1) * size]
        at = order[begin:end]
        at = at[frames[at] < number * size + len(block)]
        values[at] = block[frames[at] - number * size]
    return values


def _array_problems(h5: h5py.File, known: _Known) -> list[str]:
    """Whether the arrays of the start message can be read; links to those of another file are its business."""
    problems = []
    for dataset in arrays.own(h5[nexus.detector_path(known.identity.dataset)]):
        try:
            arrays.read(dataset)
        except (OSError, RuntimeError, StreamError) as exc:
            problems.append(f"{dataset.name} cannot be read: {exc}")
    return problems


def _modules_of(scan: _Scan) -> tuple[NDArray, NDArray]:
    """The frames, and how many modules of each there are; records that say the same twice count once."""
    numbers = scan.headers["frame"].astype(np.int64) << 16 | scan.headers["module"]
    return np.unique(np.unique(numbers) >> 16, return_counts=True)


def statuses(dataset: h5py.Dataset) -> tuple[NDArray, NDArray]:
    """Numbers and status of the frames that are not missing. Only blocks that are there are read: far more frames may
    have been announced than fit into memory."""
    (size,), starts = dataset.chunks, []
    dataset.id.chunk_iter(lambda chunk: starts.append(chunk.chunk_offset[0]))
    numbers, values = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    for start in sorted(starts):
        block = dataset[start : start + size]
        at = np.flatnonzero(block != MISSING)
        numbers.append(at + start)
        values.append(block[at])
    return np.concatenate(numbers), np.concatenate(values)


def _some(what: str, positions: NDArray, modules: int) -> list[str]:
    """One sentence for each of these frames (or modules), the first few of them."""
    shown = []
    for position in positions[:_SHOWN].tolist():
        frame, module = divmod(position, modules)
        shown.append(f"frame {frame}{f', module {module}' if modules > 1 else ''}: {what}")
    return shown + ([f"... and {len(positions) - _SHOWN} more: {what}"] if len(positions) > _SHOWN else [])


def _first(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")


def _ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")
