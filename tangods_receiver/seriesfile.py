"""One series in one HDF5 file, written like a log: `append` from any thread, `commit` once a second, `close`.

The order of writes is what keeps the file readable at every moment, also after a kill: see resources/file_format.md.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arrays, h5fields, nexus
from .catalogue import Catalogue, Write, missing_cost, missing_writes
from .errors import StreamError, WriteError
from .records import (
    HEADER,
    HEADER_SIZE,
    TIMES,
    TIMES_FOLLOW,
    Books,
    FileHeader,
    ImageLayout,
    Record,
    aligned,
    record_size,
    record_sizes,
)
from .writing import Packed, PythonPacked, punch_hole, write_all

__all__ = ["Books", "FileHeader", "ImageLayout", "Record", "SeriesFile", "write_all"]

log = logging.getLogger(__name__)

FIRST_RESERVE = 128 << 10  # bytes set aside for the index, so that a full disk still commits; each file has these
RESERVE = 512 << 10  # the next ones
RANGES = 256  # ranges of missing frames that closing has room for, also on a full disk
MARGIN = 64 << 20  # the horizon lies this much beyond what is expected
UNKNOWN = 1 << 40  # horizon of a series of unknown size; who holds the file open cannot follow beyond it
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_LEAF = 6  # chunkindex.SHIFT: positions per leaf, as a shift

_ADVICE = {
    errno.EEXIST: "the file exists and is never overwritten: choose another name, or move it away",
    errno.ENOENT: "the directory does not exist: create it, or choose another",
    errno.ENOTDIR: "a part of the path is not a directory: choose another",
    errno.EISDIR: "this is a directory: choose another name",
    errno.EACCES: "no permission: let the user of this server write to the directory",
    errno.EPERM: "no permission: let the user of this server write to the directory",
    errno.EROFS: "the file system is read-only: mount it for writing, or choose another",
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota is used up: free some space, or have it raised",
    errno.EFBIG: "larger than the file system or the limit of this process (ulimit -f) allows",
    errno.EIO: "the storage failed: look at the disk and the system log",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ESTALE: "the network file system lost the file: look at the mount",
}


class _Batch:
    """Records of one `append`: where they lie, their headers and their times behind each other, the leaves and blocks
    that indexing them touches, and the bytes that this takes at most."""

    __slots__ = ("start", "headers", "times", "leaves", "blocks", "cost")

    def __init__(self, packed: PythonPacked, leaves: set[int], blocks: set[int]) -> None:
        self.start = self.cost = 0
        self.headers, self.times = packed.headers, packed.times
        self.leaves, self.blocks = leaves, blocks


class SeriesFile:
    """`append` may be called by many threads, the other methods by one; `close` when no `append` runs any more."""

    def __init__(self, fd: int, path: Path, header: FileHeader, layout: ImageLayout | None, nonce: int) -> None:
        """Take over a new, empty, open file; use `create`."""
        self.path, self.layout = path, layout
        self.payload_crc = False
        self._fd, self._header, self._nonce = fd, header, nonce
        self._lock = Lock()  # guards what is reserved and what is outstanding; never held while frames are written
        self._committing = Lock()
        self._done: list[_Batch] = []
        self._leaves: set[int] = set()  # touched by `_done`
        self._blocks: set[int] = set()
        self._highest = 0
        # Bytes that indexing takes at most: of the batches in flight, of what the commit now running has taken over.
        self._inflight_cost = self._commit_cost = 0
        self._todo: deque[Write] = deque()  # of a commit, in order; what failed is tried again by the next
        self._lay_out()

    @classmethod
    def create(
        cls,
        path: Path,
        header: FileHeader,
        layout: ImageLayout | None,
        payload_crc: bool = False,
        replace: bool = False,
    ) -> SeriesFile:
        """Make the file; WriteError says what to do. It is readable when this returns.

        It must not exist yet, or (`replace`) it goes in the moment in which the new one is there."""
        nexus.detector_path(header.dataset)
        nonce = int.from_bytes(os.urandom(8), "little")
        made = _beside(path, nonce) if replace else path
        fd = _open_new(made)
        try:
            file = cls(fd, path, header, layout, nonce)
            if replace:
                os.replace(made, path)
        except BaseException as exc:
            os.close(fd)
            made.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                raise write_error("create", path, exc) from exc
            raise
        file.payload_crc = payload_crc
        return file

    def define(self, layout: ImageLayout, metadata: Mapping[str, Any] | None = None) -> None:
        """Say how frames are stored when that was not known at the start. Once, before the first `append`. `metadata`
        instead of that of the header (None: it stays).

        The file is made anew and takes the old one's place in one step: who has the old one open sees no frames."""
        if self.layout is not None:
            raise ValueError(f"{self.path}: the layout is already {self.layout}")
        self._must_be_open()
        beside = _beside(self.path, self._nonce)
        fd = _open_new(beside)
        try:
            header = self._header if metadata is None else replace(self._header, metadata=metadata)
            fresh = SeriesFile(fd, beside, header, layout, self._nonce)
            if not os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                raise OSError(errno.EEXIST, "another file has taken this name")
            os.replace(beside, self.path)
        except BaseException as exc:
            os.close(fd)
            beside.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                raise write_error("define the images of", self.path, exc) from exc
            raise
        os.close(self._fd)
        kept = {"path": self.path, "payload_crc": self.payload_crc}
        vars(self).update(vars(fresh) | kept)

    def _lay_out(self) -> None:
        """Write the tree, with the end of file beyond all that is expected, and keep space for the index."""
        stored = nexus.stored_arrays(self._header, self.layout)
        try:
            image, self._places = nexus.build(self._header, self.layout, self._nonce, stored)
        except (ValueError, TypeError) as exc:
            raise StreamError(f"frames of {self.layout} cannot be stored in HDF5: {exc}") from exc
        self._catalogue = Catalogue(self._places, self.layout, self._header.nframes or 0, self._header.part)
        lock_shared(self._fd, self.path)
        self._end = aligned(len(image))
        self._size = self._eof = 0
        self._reserve = self._reserve_end = 0
        self._committed_end = self._end
        first_end = self._end + sum(arrays.most_bytes(array) for array in stored)
        self._extend(_horizon(self._header.nframes, self.layout, first_end), at_least=first_end + 2 * FIRST_RESERVE)
        self._eof = self._size
        start = bytearray(image)
        start[h5fields.END_OF_FILE : h5fields.END_OF_FILE + 8] = self._size.to_bytes(8, "little")
        if self._places.arrays:
            self._write_arrays(stored, start)
        write_all(self._fd, [start], 0)
        self._keep_reserve()
        if self.layout is not None:
            self._header = replace(self._header, arrays={})  # they may be large

    def _write_arrays(self, stored: Sequence[arrays.Stored], start: bytearray) -> None:
        """Behind the tree, which they become a part of."""
        for offset, data in arrays.writes(stored, self._places.arrays, lambda size: self._take(aligned(size))):
            if offset < len(start):
                start[offset : offset + len(data)] = data
            else:
                write_all(self._fd, [data], offset)

    def append(self, records: Sequence[Record]) -> int:
        """Write these records behind each other in one go; returns the bytes of their payloads.

        StreamError: a record does not fit the layout, nothing is written. WriteError: the storage failed, and none of
        these records is in the file; all earlier ones are, and it can still be committed and closed."""
        if not records:
            return 0
        batch, payload = self.write(records)
        self.keep(batch)
        return payload

    def write(self, records: Sequence[Record]) -> tuple[_Batch, int]:
        """The first half of `append`: on the disk, but of no effect before `keep`; with the bytes of their payloads."""
        packed, batch = self._pack(records)
        try:
            with self._lock:
                self._must_be_open()
                self._expect(batch)
                batch.start = self._take(packed.total)
                self._inflight_cost += batch.cost
        except OSError as exc:
            raise write_error("write to", self.path, exc) from exc
        try:
            packed.write(self._fd, batch.start)
        except OSError as exc:
            self.take_back(batch)
            raise write_error(f"write {packed.total} bytes to", self.path, exc) from exc
        return batch, packed.payload

    def keep(self, batch: _Batch) -> None:
        """What `write` wrote is in the file: the next commit shows it."""
        with self._lock:
            self._inflight_cost -= batch.cost
            self._done.append(batch)
            self._leaves |= batch.leaves
            self._blocks |= batch.blocks

    def take_back(self, batch: _Batch) -> None:
        """What `write` wrote is not in the file."""
        self._erase(batch)
        with self._lock:
            self._inflight_cost -= batch.cost

    def _pack(self, records: Sequence[Record]) -> tuple[PythonPacked, _Batch]:
        """StreamError when a record does not fit."""
        layout = self.layout
        if layout is None:
            raise WriteError(f"{self.path}: the shape of the frames was not defined before the first was written")
        packed = Packed(records, layout, self._nonce, self.payload_crc)
        modules, block = layout.modules, self._places.block
        if layout.channels:
            leaves = {record[1] << 48 | record[0] >> _LEAF for record in records}
        else:
            leaves = {record[0] * modules + record[1] >> _LEAF for record in records}
        blocks = {record[0] // block for record in records}
        return packed, _Batch(packed, leaves, blocks)

    def _expect(self, batch: _Batch) -> None:
        """Make sure that the index of these records will have space too; OSError when it has not.

        Each batch in flight counts by itself: nobody knows which of them the next commit finds done."""
        self._highest = max(self._highest, (max(batch.blocks) + 1) * self._places.block)
        batch.cost = self._cost(batch.leaves, batch.blocks)
        done = self._cost(self._leaves, self._blocks)
        self._keep_reserve(self._commit_cost + done + self._inflight_cost + batch.cost)

    def _cost(self, leaves: set[int], blocks: set[int]) -> int:
        """Bytes that indexing these takes at most."""
        return self._catalogue.cost(len(leaves), self._catalogue.new_blocks(blocks), self._highest)

    def _keep_reserve(self, needed: int = 0) -> None:
        """Have at least this many bytes (and what closing needs) allocated on the disk for the index."""
        needed += missing_cost(RANGES)
        if self._reserve_end - self._reserve >= needed:
            return
        try:
            self._new_reserve(max(RESERVE if self._reserve else FIRST_RESERVE, 2 * needed))
        except OSError:
            self._new_reserve(needed)  # nearly full: no more than this

    def _new_reserve(self, size: int) -> None:
        size = aligned(size)
        start = self._take(size)
        try:
            os.posix_fallocate(self._fd, start, size)
        except OSError as exc:
            if exc.errno not in _NO_FALLOCATE:
                raise
            log.debug("%s: space cannot be reserved here: %s", self.path, exc)
        self._reserve, self._reserve_end = start, start + size

    def _take(self, size: int) -> int:
        """Reserve a range of the file."""
        start = self._end
        if start + size > self._size:
            self._extend(max(2 * self._size, start + size + MARGIN), at_least=start + size)
        self._end = start + size
        return start

    def _extend(self, size: int, at_least: int) -> None:
        """Move the horizon; a file system that does not allow that much gets less. Sparse: it takes no space."""
        size = size + 4095 & -4096
        while True:
            try:
                os.ftruncate(self._fd, size)
                break
            except OSError as exc:
                if exc.errno not in (errno.EFBIG, errno.EINVAL) or size <= at_least:
                    raise
                size = max(size // 2, at_least)
        self._size = size

    def _erase(self, batch: _Batch) -> None:
        """Take back a batch that failed: no recovery finds what the books call lost, and a full disk has room again."""
        headers = np.frombuffer(batch.headers, HEADER)
        sizes = record_sizes(headers).tolist()
        try:
            if punch_hole(self._fd, batch.start, sum(sizes)):
                return
            for offset in accumulate(sizes[:-1], initial=batch.start):
                write_all(self._fd, [bytes(HEADER_SIZE)], offset)
        except OSError as exc:
            log.debug("%s: failed range not cleaned: %s", self.path, exc)

    def commit(self) -> None:
        """Make everything whose `append` has returned visible to readers; WriteError when the storage fails (what was
        not written is tried again by the next commit)."""
        with self._committing:
            self._must_be_open()
            try:
                self._commit()
            except OSError as exc:
                raise write_error("commit", self.path, exc) from exc

    def _commit(self, last: bool = False) -> None:
        if self._is_deleted():
            raise WriteError(f"{self.path} was deleted while it was being written: what was in it is lost")
        with self._lock:
            done, self._done = self._done, []
            self._commit_cost = self._cost(self._leaves, self._blocks)
            self._leaves, self._blocks = set(), set()
        if done:
            headers, addresses = _located(done)
            times = np.frombuffer(b"".join([batch.times for batch in done]), TIMES)
            self._catalogue.add(headers, addresses, times if len(times) else None)
        self._todo += self._horizon_writes()
        self._todo += self._catalogue.writes(self._place, last)
        with self._lock:
            self._commit_cost = 0
        self._write_todo()

    def _is_deleted(self) -> bool:
        """Nobody will ever read it; a file that was moved is still written."""
        try:
            return not os.fstat(self._fd).st_nlink and not os.path.lexists(self.path)
        except OSError as exc:
            return exc.errno == errno.ESTALE

    def _horizon_writes(self) -> Iterator[Write]:
        """The end-of-file address where the file was extended before; where it will have to be, extend it now.

        The size moves well before the address: a reader that asked for the size must not find the address beyond it."""
        with self._lock:
            size, end, grown = self._size, self._end, self._end - self._committed_end
            self._committed_end = end
            if size == self._eof and size - end < 2 * grown:
                try:
                    self._extend(max(2 * size, end + 4 * grown + MARGIN), at_least=size)
                except OSError as exc:
                    log.debug("%s: not extended yet: %s", self.path, exc)
        if size > self._eof:
            self._eof = size
            yield h5fields.END_OF_FILE, size.to_bytes(8, "little")

    def _place(self, size: int) -> int:
        """Free space for a node or a block of values, from the reserve."""
        size = aligned(size)
        with self._lock:
            if self._reserve_end - self._reserve < size:
                return self._take(size)
            start, self._reserve = self._reserve, self._reserve + size
            return start

    def _write_todo(self) -> None:
        while self._todo:
            offset, data = self._todo[0]
            write_all(self._fd, [data], offset)
            self._todo.popleft()

    def close(self, books: Books) -> None:
        """Last commit, the books, the true end; harmless when closed. WriteError when the storage fails: the file is
        then as a kill would leave it, and `recover` can finish it."""
        with self._committing:
            if self._fd < 0:
                return
            try:
                self._catalogue.extend(max([books.frames_expected or 0, *(last + 1 for _, last in books.missing)]))
                self._commit(last=True)
                self._todo += self._book_writes(books)
                self._write_todo()
                self._end_here()
                self._release()  # network file systems tell here what they could not write
            except OSError as exc:
                raise write_error("close", self.path, exc) from exc
            finally:
                with suppress(OSError):
                    self._release()

    def _book_writes(self, books: Books) -> Iterator[Write]:
        ranges = list(books.missing)
        if len(ranges) > RANGES:
            try:
                with self._lock:
                    self._keep_reserve(missing_cost(len(ranges)))
            except OSError as exc:
                log.warning("%s: only %d ranges of missing frames listed: %s", self.path, RANGES, exc)
                ranges = ranges[:RANGES]
        if ranges:
            yield from missing_writes(self._places, ranges, self._place)
        for name, value in nexus.scalar_values(books).items():
            yield self._places.scalars[name][0], value

    def _end_here(self) -> None:
        """Lower the end-of-file address, then the size: in this order no reader finds the address beyond the size."""
        with self._lock:
            end = self._reserve if self._reserve_end == self._end else self._end
            write_all(self._fd, [end.to_bytes(8, "little")], h5fields.END_OF_FILE)
            os.ftruncate(self._fd, end)
            if self._reserve < min(self._reserve_end, end):  # a full disk has room for other files of the series
                punch_hole(self._fd, self._reserve, self._reserve_end - self._reserve)

    def sync(self) -> None:
        """Have what was written put on the disk (fdatasync); may take long, may run in a thread of its own at any time,
        also after `close`."""
        try:
            fd = self._second_fd()
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise write_error("sync", self.path, exc) from exc

    def _second_fd(self) -> int:
        """The file opened again: it may have been moved, and `close` must not wait for who uses this one. Not a copy of
        the descriptor, which would hold the lock."""
        with self._lock:
            copy = os.dup(self._fd) if self._fd >= 0 else -1
        if copy < 0:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.open(f"/proc/self/fd/{copy}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(copy)

    def abandon(self) -> None:
        """Let go of the file as it is, as a kill would."""
        with self._committing:
            self._release()

    def _release(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _must_be_open(self) -> None:
        if self._fd < 0:
            raise WriteError(f"{self.path}: is already closed")


def _located(batches: Iterable[_Batch]) -> tuple[NDArray, NDArray[np.uint64]]:
    """All headers of these batches, and where their payloads are."""
    headers = np.frombuffer(b"".join([batch.headers for batch in batches]), HEADER)
    counts = [len(batch.headers) // HEADER_SIZE for batch in batches]
    sizes = record_sizes(headers)
    before = np.cumsum(sizes) - sizes  # as if all batches lay behind each other
    firsts = np.cumsum(counts) - counts
    shift = np.array([batch.start for batch in batches], np.uint64) - before[firsts]  # wraps, and back below
    return headers, before + np.repeat(shift, counts) + np.uint64(HEADER_SIZE)


def _horizon(nframes: int | None, layout: ImageLayout | None, end: int) -> int:
    """A size that this series will not reach, in bytes."""
    if nframes is None or layout is None:
        return end + UNKNOWN
    chunk = layout.chunk_bytes
    largest = chunk if layout.codec == "none" else chunk + chunk // 64 + 4096  # incompressible
    return end + nframes * layout.modules * (record_size(largest, TIMES_FOLLOW) + 256) * 9 // 8 + MARGIN


def _beside(path: Path, nonce: int) -> Path:
    """A hidden name in the same directory, for a file that will take the place of `path`."""
    return path.with_name(os.fsdecode(os.fsencode(f".{nonce:016x}.{path.name}")[:255]))


def _open_new(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as exc:
        raise write_error("create", path, exc) from exc


def lock_shared(fd: int, path: Path) -> None:
    """Readers may come in, other HDF5 writers may not."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as exc:
        log.warning("%s: no lock on this file system (%s): keep other writers away from the file", path, exc)


def write_error(action: str, path: Path, exc: OSError) -> WriteError:
    reason = _ADVICE.get(exc.errno or 0, "look at the file system")
    return WriteError(f"cannot {action} {path}: {exc.strerror or exc}: {reason}")
