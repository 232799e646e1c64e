"""Look after a series in several files: each of its files as `recovery` does, then the master that shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from . import nexus, recovery
from .errors import ConfigError, WriteError
from .fileset import belongs, put_file
from .nexus import Identity, Source
from .records import Books, ImageLayout
from .recovery import Progress, Report
from .spread import Key, Spread


@dataclass(frozen=True)
class _Master:
    """What a master file says."""

    identity: Identity
    spread: Spread
    layout: ImageLayout | None
    length: int
    closed: bool
    expected: int | None
    received: int
    missing: list[tuple[int, int]]


@dataclass(frozen=True)
class _PartState:
    """What one of the files holds: its length, numbers of its frames in the series, the last arrival."""

    length: int
    frames: NDArray[np.int64]
    received: int
    last: float


def is_master(path: Path) -> bool:
    identity = nexus.read_identity(path)
    return identity is not None and identity.spread is not None


def check(path: Path, progress: Progress | None = None) -> Report:
    """Each file, and whether the master shows just these; `problems` name the file."""
    master = _read(path)
    parts = _there(path, master)
    reports, problems = _each(path, parts, master, recovery.check, progress)
    if master.closed:
        problems += _map_problems(path, master, parts)
        problems += _book_problems(path, master, reports)
    else:
        problems.append(_not_closed(path))
    return _sum(path, master, reports, problems)


def recover(path: Path, progress: Progress | None = None) -> Report:
    """Recover each file, then make a master that shows what is in them. A closed set is left untouched."""
    with recovery.opened(path, os.O_RDWR) as fd:
        recovery.lock_exclusive(fd, path)
        master = _read(path)
        if not master.closed:
            _tidy(path, master)
        reports, problems = _each(path, _there(path, master), master, recovery.recover, progress)
        if master.closed:
            return _sum(path, master, reports, problems)
        try:
            missing = _mend(path, fd, master)
        except OSError as exc:
            raise WriteError(f"cannot recover {path}: {exc.strerror or exc}: look at the disk") from exc
    frames = sum(report.frames for report in reports.values())
    torn = sum(report.torn for report in reports.values())
    return Report(path, frames, master.identity.nframes, missing, torn, problems, recovered=True)


def _read(path: Path) -> _Master:
    try:
        with h5py.File(path, "r", locking=False) as h5:
            identity = nexus.identity(h5)
            assert identity.spread is not None
            detector = h5[nexus.detector_path(identity.dataset)]
            expected = int(detector["frames_expected"][()])
            return _Master(
                identity=identity,
                spread=identity.spread,
                layout=nexus.stored_layout(h5, identity),
                length=len(detector["frame_status"]),
                closed=bool(h5[identity.dataset.split("/")[0]]["end_time"][()].strip(b"\0")),
                expected=None if expected < 0 else expected,
                received=int(detector["frames_received"][()]),
                missing=[(int(first), int(last)) for first, last in detector["frames_missing"][()]],
            )
    except (OSError, KeyError, RuntimeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"{path}: damaged, or not a master file of this package: {exc}") from exc


def _there(path: Path, master: _Master) -> dict[Key, Path]:
    """The part files that exist."""
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries]
    found = {key: path.with_name(name) for name in names if (key := master.spread.key_of(path, name)) is not None}
    return dict(sorted(found.items()))


def _each(
    path: Path, parts: dict[Key, Path], master: _Master, look: recovery.Look, progress: Progress | None
) -> tuple[dict[Key, Report], list[str]]:
    """The reports on the files of this set, and what is wrong with them, with their names."""
    reports, problems = {}, []
    for key, part in parts.items():
        try:
            if not belongs(part, master.identity.nonce):
                look(part, None)  # says what it is, where it is damaged
                if _is_shown(key, master):
                    problems.append(f"{part.name}: is of another series than {path.name}")
                continue
            reports[key] = look(part, progress)
        except ConfigError as exc:
            problems.append(str(exc))
        else:
            problems += [f"{part.name}: {problem}" for problem in reports[key].problems]
    return reports, problems


def _is_shown(key: Key, master: _Master) -> bool:
    return master.spread.share(key, master.length) > 0


def _sum(path: Path, master: _Master, reports: dict[Key, Report], problems: list[str]) -> Report:
    frames = sum(report.frames for report in reports.values())
    return Report(path, frames, master.expected, master.missing, sum(r.torn for r in reports.values()), problems)


def _not_closed(path: Path) -> str:
    with recovery.opened(path, os.O_RDONLY) as fd:
        return recovery.not_closed(recovery.in_use(fd))


# --- check -----------------------------------------------------------------------------------------------------------


def _map_problems(path: Path, master: _Master, parts: dict[Key, Path]) -> list[str]:
    """Whether each dataset shows all files, each in its place, and none longer than it is: HDF5 may crash then."""
    spread = master.spread
    wanted: dict[str, tuple[int, int, int | None]] = {}
    for key in spread.keys(master.length):
        share = spread.share(key, master.length)
        wanted[spread.name(path, key)] = spread.first(key), spread.parts if share > 1 else 1, share
    problems: list[str] = []
    fixed: dict[str, int] = {}
    with h5py.File(path, "r", locking=False) as h5:
        detector = nexus.detector_path(master.identity.dataset)
        columns = [f"{detector}/{column}" for column in nexus.columns_of(master.layout)]
        for name in columns + master.identity.images:
            found = _shown(h5[name]) if name in h5 else wanted
            fixed |= {file: count or 0 for file, (_, _, count) in found.items()}
            if found != wanted and not _still_grow(found, wanted):
                odd = sorted(file for file in {*found, *wanted} if found.get(file) != wanted.get(file))
                problems.append(f"{name} does not show these files in their places: {', '.join(odd[:5])}")
    for part in parts.values():
        if (shown := fixed.get(part.name, 0)) > (length := _length(part)):
            problems.append(f"{part.name}: has {length} frames, the master would read {shown}")
    return problems


def _shown(dataset: h5py.Dataset) -> dict[str, tuple[int, int, int | None]]:
    """File name -> first frame, step, number of frames (None: as many as there are)."""
    if not dataset.is_virtual:
        return {}
    found = {}
    for source in dataset.virtual_sources():
        start, stride, count, block = (int(values[0]) for values in source.vspace.get_regular_hyperslab())
        endless = h5py.h5s.UNLIMITED in (count, block)
        step = 1 if count == 1 else stride  # HDF5 makes one block of what lies side by side
        found[source.file_name.replace("%%", "%")] = start, step, None if endless else count * block
    return found


def _still_grow(found: dict[str, tuple[int, int, int | None]], wanted: dict[str, tuple[int, int, int | None]]) -> bool:
    """Right but for files of which the recovered master shows as much as there is."""
    return found.keys() == wanted.keys() and all(
        place == wanted[name] or (place[0] == wanted[name][0] and place[2] is None) for name, place in found.items()
    )


def _length(part: Path) -> float:
    """Frames of a part file; inf: it cannot be read, which was said before."""
    try:
        with h5py.File(part, "r", locking=False) as h5:
            return len(h5[nexus.detector_path(nexus.identity(h5).dataset)]["frame_status"])
    except (OSError, KeyError, RuntimeError, ConfigError):
        return inf


def _book_problems(path: Path, master: _Master, reports: dict[Key, Report]) -> list[str]:
    problems = []
    for key in master.spread.keys(master.length):
        share, name = master.spread.share(key, master.length), master.spread.name(path, key)
        missing = master.spread.ranges_in(key, master.missing)
        if key not in reports:
            if (lost := share - _count(missing)) > 0:
                problems.append(f"{name}: is missing, and {lost} frames with it")
        elif reports[key].frames != share - _count(missing):
            problems.append(f"{name}: has {reports[key].frames} frames, by the master {share - _count(missing)}")
    frames = sum(report.frames for report in reports.values())
    modules = master.layout.modules if master.layout else 1
    if master.received > frames or (modules == 1 and master.received != frames):
        problems.append(f"frames_received is {master.received}, there are {frames}")
    return problems


def _count(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)


# --- recover ---------------------------------------------------------------------------------------------------------


def _tidy(path: Path, master: _Master) -> None:
    """Remove what a kill left half made: files under a hidden name, and part files in which nothing was written yet."""
    for hidden in path.parent.glob(f".{master.identity.nonce:016x}.*"):
        hidden.unlink(missing_ok=True)
    for part in _there(path, master).values():
        with recovery.opened(part, os.O_RDONLY) as fd:
            empty = not os.pread(fd, 64, 0).strip(b"\0") and recovery.is_only_hole(fd)
        if empty:
            part.unlink()


def _mend(path: Path, fd: int, master: _Master) -> list[tuple[int, int]]:
    spread, states = master.spread, dict(_states(path, master))
    ends = [spread.first(key) + (state.length - 1) * spread.parts + 1 for key, state in states.items() if state.length]
    nframes = master.identity.nframes
    length = max(ends, default=0) if nframes is None else nframes
    frames = np.unique(np.concatenate([np.zeros(0, np.int64), *(state.frames for state in states.values())]))
    missing = recovery.gaps(frames, length)
    books = Books(
        frames_expected=nframes,
        frames_received=sum(state.received for state in states.values()),
        missing=missing,
        repeated=0,
        rejected=0,
        foreign=0,
        end_time=max([state.last for state in states.values()], default=os.fstat(fd).st_mtime),
        end_reason=recovery.RECOVERED,
    )
    sources = [_source(path, spread, key, spread.share(key, length), states.get(key)) for key in spread.keys(length)]
    image, _ = nexus.rebuild_master(
        os.pread(fd, os.fstat(fd).st_size, 0), master.identity.nonce, master.layout, sources, length, books
    )
    new = put_file(path, image, master.identity.nonce, present=fd)
    try:
        os.fsync(new)
    finally:
        os.close(new)
    return missing


def _source(path: Path, spread: Spread, key: Key, share: int, state: _PartState | None) -> Source:
    """A file that is shorter than its share is shown as long as it is."""
    length = None if state is not None and state.length != share else share
    return Source(spread.name(path, key), spread.first(key), spread.parts, length)


def _states(path: Path, master: _Master) -> Iterator[tuple[Key, _PartState]]:
    for key, part in _there(path, master).items():
        if not belongs(part, master.identity.nonce):
            continue
        with h5py.File(part, "r", locking=False) as h5:
            detector = h5[nexus.detector_path(master.identity.dataset)]
            numbers, _ = recovery.statuses(detector["frame_status"])
            frames = numbers.astype(np.int64) * master.spread.parts + master.spread.first(key)
            arrivals = detector["arrival_time"][max(0, len(detector["arrival_time"]) - 4096) :]
            last = np.nanmax(arrivals) if np.isfinite(arrivals).any() else part.stat().st_mtime
            length = len(detector["frame_status"])
            yield key, _PartState(length, frames, int(detector["frames_received"][()]), float(last))
