"""One series in several files: part files, each a `SeriesFile`, and a master file that shows them as one.

The master is small and never changed in place: a new one takes its name when there is more to show.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from . import arrays, nexus
from .errors import StreamError, WriteError
from .nexus import Source
from .records import Books, FileHeader, ImageLayout, Part, Record
from .seriesfile import SeriesFile, lock_shared, write_error
from .spread import Key, Spread
from .writing import write_all

log = logging.getLogger(__name__)

FIRST: Key = (0, 0)
MOST_FILES = 20_000  # announced; beyond, master files take seconds to make
MANY_FILES = 1000  # readers have one descriptor for each file they have read from, and by default 1024 of them


class _PartFile:
    """One part file, and how many records are in it."""

    __slots__ = ("key", "file", "stored", "closed", "synced")

    def __init__(self, key: Key, file: SeriesFile) -> None:
        self.key, self.file = key, file
        self.stored = 0
        self.closed = self.synced = False


class FileSet:
    """To be used as a `SeriesFile`: `append` by many threads, the other methods by one."""

    def __init__(
        self, path: Path, header: FileHeader, layout: ImageLayout | None, spread: Spread, payload_crc: bool
    ) -> None:
        """Nothing is made yet; use `create`."""
        self.path, self.layout = path, layout
        self.payload_crc = payload_crc
        # Only the first file has the arrays of the start message, the others and the master lead to it.
        self._arrays = header.arrays if header.nframes != 0 else {}
        names = arrays.without_data(self._arrays)
        self._header = replace(header, arrays=names, arrays_in=spread.name(path, FIRST))
        self._spread = spread
        self._nonce = int.from_bytes(os.urandom(8), "little")
        self._lock = Lock()  # guards the counts; never held over the disk
        self._making = Lock()  # one part file is made at a time; who has his file does not wait for that
        self._parts: dict[Key, _PartFile] = {}
        self._mapped = 0  # groups that the master shows, whether they are there or not
        self._length = header.nframes or 0
        self._received = 0
        self._failure: WriteError | None = None  # of a part that could not be closed
        self._master = -1  # descriptor, for its lock
        self._frames_received = 0  # where that is in the master

    @classmethod
    def create(
        cls,
        path: Path,
        header: FileHeader,
        layout: ImageLayout | None,
        spread: Spread,
        payload_crc: bool = False,
        replace: bool = False,
    ) -> FileSet:
        """Make the master and the files of the first group; WriteError says what to do.

        None of the names may be taken, or (`replace`) the files of the old set go when the new ones are there."""
        nexus.detector_path(header.dataset)
        _must_be_few(spread, header.nframes)
        if sentence := obstacle(path, spread, header.nframes, replace):
            raise WriteError(sentence)
        if not replace and os.path.lexists(path):
            raise write_error("create", path, OSError(errno.EEXIST, os.strerror(errno.EEXIST)))
        old = _members(path) if replace else []
        new = cls(path, header, layout, spread, payload_crc)
        try:
            new._make_first(old, replace)
        except BaseException as exc:
            new._discard(replace)
            if isinstance(exc, OSError):
                raise write_error("create", path, exc) from exc
            raise
        return new

    def _make_first(self, old: Sequence[Path], replacing: bool) -> None:
        for key in [(0, part) for part in range(self._spread.parts)]:
            if self._header.nframes is None or self._spread.share(key, self._header.nframes):
                self._parts[key] = self._make(key)
                if not replacing:
                    self._name(self._parts[key])
        self._arrays = {}  # they may be large
        if replacing:
            names = {self._spread.name(self.path, key) for key in self._parts}
            for gone in old:
                if gone.name not in names:
                    gone.unlink(missing_ok=True)
            for part in self._parts.values():
                final = self._path(part.key)
                os.replace(part.file.path, final)
                part.file.path = final
        self._show(first=not replacing)

    def _discard(self, replace: bool) -> None:
        """Nothing is left of a set that could not be made, but for what has taken an old one's place."""
        for part in self._parts.values():
            part.file.abandon()
            if not replace or part.file.path != self._path(part.key):
                part.file.path.unlink(missing_ok=True)
        self._let_go()

    def _path(self, key: Key) -> Path:
        return self.path.with_name(self._spread.name(self.path, key))

    def _make(self, key: Key) -> _PartFile:
        """A new part file, still under a hidden name: who reads the master must not find half a file."""
        path, nframes = self._path(key), self._header.nframes
        header = replace(
            self._header,
            nframes=None if nframes is None else self._spread.share(key, nframes),
            filename=path.name,
            part=Part(self._nonce, self._spread.first(key), self._spread.parts),
        )
        if key == FIRST:
            header = replace(header, arrays=self._arrays, arrays_in="")
        path = path.with_name(f".{self._nonce:016x}.{path.name}")
        return _PartFile(key, SeriesFile.create(path, header, self.layout, self.payload_crc))

    def _name(self, part: _PartFile) -> None:
        """Give a part file its name, which must be free."""
        hidden, final = part.file.path, self._path(part.key)
        try:
            _move_new(hidden, final)
        except OSError as exc:
            part.file.abandon()
            hidden.unlink(missing_ok=True)
            raise write_error("create", final, exc) from exc
        part.file.path = final

    def define(self, layout: ImageLayout, metadata: Mapping[str, Any] | None = None) -> None:
        """Say how frames are stored when that was not known at the start. Once, before the first `append`. `metadata`
        instead of that of the header (None: it stays)."""
        if self.layout is not None:
            raise ValueError(f"{self.path}: the layout is already {self.layout}")
        self._must_be_open()
        if metadata is not None:
            self._header = replace(self._header, metadata=metadata)
        for part in self._parts.values():
            if part.file.layout is None:  # else this is tried again after a failure
                part.file.define(layout, metadata)
        with self._on_storage("define the images of"):
            self._show(layout=layout)
        self.layout = layout  # last: only now is there something to commit

    def append(self, records: Sequence[Record]) -> int:
        """Write these records, for each file in one go; returns the bytes of their payloads.

        StreamError: a record does not fit the layout, nothing is written. WriteError: the storage failed, and none of
        these records is in any file; all earlier ones are, and all files can still be committed and closed."""
        if self.layout is None:
            raise WriteError(f"{self.path}: the shape of the frames was not defined before the first was written")
        written, payload = [], 0
        try:
            for key, own in self._by_file(records).items():
                part = self._part(key)
                batch, size = part.file.write(own)
                written.append((part, batch, len(own)))
                payload += size
        except BaseException:
            for part, batch, _ in written:
                part.file.take_back(batch)
            raise
        for part, batch, _ in written:
            part.file.keep(batch)
        with self._lock:
            for part, _, count in written:
                part.stored += count
            self._received += len(records)
            self._length = max(self._length, 1 + max((record[0] for record in records), default=-1))
        return payload

    def _by_file(self, records: Sequence[Record]) -> dict[Key, list[Record]]:
        """The records for each file, their frames as positions in it."""
        found: dict[Key, list[Record]] = {}
        for record in records:
            if record[0] < 0:
                raise StreamError(f"frame {record[0]}: no such place")
            key, position = self._spread.place(record[0])
            found.setdefault(key, []).append(Record(position, *record[1:]))
        return found

    def _part(self, key: Key) -> _PartFile:
        """The file of these frames, made when its first one comes."""
        part = self._parts.get(key)
        if part is None:
            with self._making:
                part = self._parts.get(key)
                if part is None:
                    self._must_be_open()
                    part = self._make(key)
                    self._name(part)
                    self._parts = self._parts | {key: part}  # who goes through them is not disturbed
        return part

    def commit(self) -> None:
        """Make everything whose `append` has returned visible to readers, and close files that are complete;
        WriteError when the storage fails (all other files are committed)."""
        self._must_be_open()
        failure = None
        for part in self._open_parts():
            try:
                if self._is_complete(part):
                    self._close_part(part, None)
                else:
                    part.file.commit()
            except WriteError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure
        with self._on_storage("commit"):
            self._show_more()
            self._write_received()

    def _open_parts(self) -> list[_PartFile]:
        return [part for part in self._parts.values() if not part.closed]

    def _is_complete(self, part: _PartFile) -> bool:
        """Nothing more can come, and nothing is on its way: what was counted has been written."""
        nframes, size = self._header.nframes, self._spread.frames_per_file
        share = size if nframes is None else self._spread.share(part.key, nframes)
        modules = self.layout.modules if self.layout else 1
        return bool(share) and part.stored == share * modules and (bool(size) or nframes is not None)

    def _close_part(self, part: _PartFile, books: Books | None) -> None:
        """`books`: those of the series; None: the part is complete before its end."""
        try:
            part.file.close(self._books_of(part, books))
        except WriteError as exc:
            self._failure = self._failure or exc
            raise
        finally:
            part.closed = True

    def _books_of(self, part: _PartFile, books: Books | None) -> Books:
        if books is None:
            share = part.stored // (self.layout.modules if self.layout else 1)
            return Books(share, share, [], 0, 0, 0, time.time(), "complete")
        missing = self._spread.ranges_in(part.key, books.missing)
        share = self._spread.share(part.key, self._length)
        gone = sum(last - first + 1 for first, last in missing)
        return Books(share, share - gone, missing, 0, 0, 0, books.end_time, books.end_reason)

    def close(self, books: Books) -> None:
        """Close all files, then the master with the books; harmless when closed. WriteError when the storage fails:
        `recover` can finish what was not closed, and the master is then as a kill would leave it."""
        if self._master < 0:
            return
        self._length = max([self._length, books.frames_expected or 0, *(last + 1 for _, last in books.missing)])
        try:
            for part in self._open_parts():
                try:
                    self._close_part(part, books)
                except WriteError:
                    log.debug("%s", part.file.path, exc_info=True)  # raised below, when the others are closed
            if self._failure is not None:
                raise self._failure
            with self._on_storage("close"):
                self._show(books)
        finally:
            self._let_go()

    def sync(self) -> None:
        """Have what was written put on the disk; may take long, may run in a thread of its own at any time."""
        for part in list(self._parts.values()):
            if not part.synced:
                closed = part.closed
                part.file.sync()
                part.synced = closed
        with self._on_storage("sync"):
            for path in (self.path, self.path.parent):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def abandon(self) -> None:
        """Let go of all files as they are, as a kill would."""
        for part in self._parts.values():
            part.file.abandon()
        self._let_go()

    # --- the master file ---------------------------------------------------------------------------------------------

    def _show_more(self) -> None:
        """A new master where a group has begun that the present one does not know."""
        if self._header.nframes is None and max(key[0] for key in self._parts) >= self._mapped:
            self._show()
            if len(self._parts) >= MANY_FILES:
                log.debug("%s: %d files", self.path, len(self._parts))

    def _show(self, books: Books | None = None, first: bool = False, layout: ImageLayout | None = None) -> None:
        """Make the master and put it in its place; `layout`: it becomes known with that."""
        layout = layout or self.layout
        sources = self._sources(closing=books is not None)
        try:
            image, self._frames_received = nexus.build_master(
                self._header,
                layout,
                self._nonce,
                self._spread,
                sources,
                self._length,
                books,
                nexus.stored_arrays(self._header, layout),
            )
        except (ValueError, TypeError) as exc:
            raise StreamError(f"frames of {layout} cannot be stored in HDF5: {exc}") from exc
        old, self._master = self._master, put_file(self.path, image, self._nonce, first, self._master)
        if old >= 0:
            os.close(old)

    def _sources(self, closing: bool) -> list[Source]:
        """All files that the master shows: those of known length, or that still grow, also before they are there."""
        nframes = self._length if closing else self._header.nframes
        if nframes is not None:
            return [self._source(key, self._spread.share(key, nframes)) for key in self._spread.keys(nframes)]
        newest = max((key[0] for key in self._parts), default=0)
        # Some more than there are, so that a long series makes few masters.
        self._mapped = newest + 2 + newest // 8 if self._spread.frames_per_file else 1
        keys = [(group, part) for group in range(self._mapped) for part in range(self._spread.parts)]
        return [self._source(key, self._final_length(key)) for key in keys]

    def _source(self, key: Key, length: int | None) -> Source:
        return Source(self._spread.name(self.path, key), self._spread.first(key), self._spread.parts, length)

    def _final_length(self, key: Key) -> int | None:
        part = self._parts.get(key)
        complete = part is not None and part.closed and self._is_complete(part) and self._failure is None
        return self._spread.frames_per_file if complete else None

    def _write_received(self) -> None:
        modules = self.layout.modules if self.layout else 1
        count = (self._received // modules).to_bytes(8, "little")
        write_all(self._master, [count], self._frames_received)

    @contextmanager
    def _on_storage(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise write_error(action, self.path, exc) from exc

    def _let_go(self) -> None:
        fd, self._master = self._master, -1
        if fd >= 0:
            os.close(fd)

    def _must_be_open(self) -> None:
        if self._master < 0:
            raise WriteError(f"{self.path}: is already closed")


def put_file(path: Path, content: bytes, nonce: int, first: bool = False, present: int = -1) -> int:
    """Write a whole small file and put it in place in one step, or (`first`) make it where none is; OSError.

    `present`: descriptor of the file that must be there now. Returns a descriptor that holds a shared lock."""
    made = path.with_name(os.fsdecode(os.fsencode(f".{nonce:016x}.{path.name}")[:255]))
    fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        lock_shared(fd, path)
        write_all(fd, [content], 0)
        if first:
            _move_new(made, path)
        else:
            if present >= 0 and not os.path.samestat(os.fstat(present), os.stat(path)):
                raise OSError(errno.EEXIST, "another file has taken this name")
            os.replace(made, path)
    except BaseException:
        os.close(fd)
        made.unlink(missing_ok=True)
        raise
    return fd


def _move_new(old: Path, new: Path) -> None:
    """Rename in one step, but never over another file; OSError."""
    try:
        os.link(old, new)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(new):  # there are no hard links here: nearly as good
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST)) from exc
        os.rename(old, new)
    else:
        os.unlink(old)


def _must_be_few(spread: Spread, nframes: int | None) -> None:
    files = spread.groups(nframes or 0) * spread.parts
    if files > MOST_FILES:
        raise WriteError(
            f"{nframes} frames would make {files} files, more than {MOST_FILES}: choose a larger frames_per_file than "
            f"{spread.frames_per_file}"
        )
    if files > MANY_FILES:
        log.warning("%d files: programs that read all of them at once need `ulimit -n` to be larger than that", files)


def obstacle(path: Path, spread: Spread, nframes: int | None, replace: bool) -> str:
    """Why a new set cannot be made for want of a free name, in words; "" when it can. Does not look at the master.

    `replace`: files of the set whose master is there may go."""
    mine = set(_members(path)) if replace else set()
    groups = None if nframes is None else spread.groups(nframes)
    for other in _named_so(path, spread):
        key = spread.key_of(path, other.name)
        if key is not None and (groups is None or key[0] < groups) and other not in mine:
            what = " and is of another series" if replace else ""
            return f"{path}: its part file {other.name} exists{what}; choose another name, or move that file away"
    return ""


def _named_so(path: Path, spread: Spread) -> list[Path]:
    """What is there under a name of this set."""
    with os.scandir(path.parent) as entries:
        return sorted(path.with_name(e.name) for e in entries if spread.key_of(path, e.name) is not None)


def _members(path: Path) -> list[Path]:
    """The part files of the set whose master is at `path`; none where it is no master."""
    master = nexus.read_identity(path)
    if master is None or master.spread is None:
        return []
    return [other for other in _named_so(path, master.spread) if belongs(other, master.nonce)]


def belongs(path: Path, nonce: int) -> bool:
    """Whether this is a part file of the master with that nonce."""
    identity = nexus.read_identity(path)
    return identity is not None and identity.part is not None and identity.part.of == nonce
