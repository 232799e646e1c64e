"""What a kill leaves is found again; what is wrong with a file is told."""

from __future__ import annotations

import errno
import fcntl
import gzip
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_receiver import nexus, recovery
from tangods_receiver.errors import ConfigError, WriteError
from tangods_receiver.protocol import Times
from tangods_receiver.records import INCOMPLETE
from tangods_receiver.recovery import check, recover
from tangods_receiver.seriesfile import ImageLayout, Record, SeriesFile
from tests.receiver.series_files import (
    CHANNELS,
    CHANNELS_TIMED,
    DATASET,
    DETECTOR,
    MODULES,
    PACKED,
    SMALL,
    TIMED,
    assert_times,
    books,
    header,
    image,
    pixels,
    record,
    records,
    written,
)

LAYOUTS = {
    "plain": SMALL,
    "modules": MODULES,
    "bslz4": PACKED,
    "channels": CHANNELS,
    "timed": TIMED,
    "channels_timed": CHANNELS_TIMED,
}


def killed(
    path: Path, frames: list[int], committed: int = 0, nframes: int | None = 20, **options: object
) -> SeriesFile:
    """A file as a kill leaves it: some frames committed, all appended."""
    layout = options.pop("layout", SMALL)
    file = SeriesFile.create(path, header(nframes), layout, **options)  # type: ignore[arg-type]
    file.append(records(frames[:committed], layout))  # type: ignore[arg-type]
    file.commit()
    for frame in frames[committed:]:
        file.append(records([frame], layout))  # type: ignore[arg-type]
    file.abandon()
    return file


def assert_frames(path: Path, frames: list[int], layout: ImageLayout = SMALL) -> None:
    with h5py.File(path) as h5:
        status = h5[DETECTOR]["frame_status"][()]
        assert np.flatnonzero(status).tolist() == sorted(frames)
        for n in frames:
            for m in range(layout.modules):
                np.testing.assert_array_equal(pixels(h5, n, m, layout), image(n, m, layout))
        assert_times(h5, frames, layout)


@pytest.mark.parametrize("committed", [0, 3, 9])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("nframes", [None, 20])
def test_recover(tmp_path: Path, committed: int, layout: ImageLayout, nframes: int | None) -> None:
    frames = [0, 2, 1, 5, 4, 7, 11, 12, 13]
    path = killed(tmp_path / "a.h5", frames, committed, nframes, layout=layout).path
    assert not check(path).ok
    report = recover(path)
    assert report.ok and report.recovered and report.frames == 9 and report.torn == 0
    tail = [(14, 19)] if nframes else []
    assert report.missing == [(3, 3), (6, 6), (8, 10), *tail]
    assert_frames(path, frames, layout)
    again = check(path)
    assert again.ok and again.missing == report.missing, again.lines()
    with h5py.File(path) as h5:
        assert h5[DETECTOR]["frames_received"][()] == 9
        assert h5[DETECTOR]["end_reason"][()].startswith(b"recovered")
        assert h5["entry/end_time"][()].startswith(b"2001-09-09")
        assert h5[DETECTOR]["message_number"][5] == 105
    assert path.stat().st_size < 1 << 20
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert recover(path).frames == 9
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before, "a closed file is left untouched"


def test_nothing_was_written(tmp_path: Path) -> None:
    path = killed(tmp_path / "a.h5", []).path
    report = recover(path)
    assert report.frames == 0 and report.missing == [(0, 19)]
    assert check(path).ok


def test_killed_before_the_shape_was_known(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(3), None)
    file.abandon()
    assert recover(file.path).missing == [(0, 2)]
    assert check(file.path).ok


def test_closed_file_is_left_untouched(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5")
    before = path.read_bytes(), path.stat().st_mtime_ns
    path.chmod(0o400)
    report = recover(path)
    assert report.ok and report.frames == 10 and not report.recovered
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_incomplete_frame(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(3), MODULES)
    file.append([*records([0], MODULES), record(1, 2, MODULES)])
    file.abandon()
    assert recover(file.path).frames == 2
    report = check(file.path)
    assert report.ok, report.lines()
    with h5py.File(file.path) as h5:
        assert h5[DETECTOR]["frame_status"][()].tolist() == [1, 2, 0]


def test_a_module_without_all_its_pixels_makes_the_frame_incomplete(tmp_path: Path) -> None:
    """The sender says so of one record; whichever comes last, in the same batch or not."""
    for layout in (MODULES, CHANNELS):
        for order in ((0, 1, 2), (1, 0, 2), (0, 2, 1)):
            file = SeriesFile.create(tmp_path / "a.h5", header(4), layout)
            bad = record(1, 1, layout)._replace(status=INCOMPLETE)
            parts = [bad if m == 1 else record(1, m, layout) for m in order]
            file.append(parts[:2])
            file.commit()
            file.append([parts[2], *records([0, 3], layout)])
            file.commit()
            shutil.copy(file.path, tmp_path / "killed.h5")
            file.close(books(4, 3, [(2, 2)]))
            recover(tmp_path / "killed.h5")
            for path in (file.path, tmp_path / "killed.h5"):
                with h5py.File(path) as h5:
                    assert h5[DETECTOR]["frame_status"][()].tolist() == [1, 2, 0, 1]
                    assert h5[DETECTOR]["frames_received"][()] == 3, "it came, and is stored"
                assert check(path).ok, check(path).lines()
                path.unlink()


def test_a_single_image_without_all_its_pixels(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(2), SMALL)
    file.append([record(0), record(1)._replace(status=INCOMPLETE)])
    file.close(books(2, 2))
    assert check(file.path).ok, check(file.path).lines()
    with h5py.File(file.path, "r+") as h5:
        h5[DETECTOR]["frame_status"][0] = INCOMPLETE
    assert any("lack modules or pixels" in problem for problem in check(file.path).problems)


def test_times_come_with_their_frame_or_not_at_all(tmp_path: Path) -> None:
    """Records without times among those with them; of a torn record the times go too."""
    file = SeriesFile.create(tmp_path / "a.h5", header(6), TIMED)
    plain = record(2, 0, TIMED)._replace(times=None)
    half = record(3, 0, TIMED)._replace(times=Times(np.nan, 0.5))
    file.append([*records([0, 1], TIMED), plain, half, *records([4, 5], TIMED)])
    file.commit()
    file.abandon()
    at = find(file.path, 4)
    with file.path.open("r+b") as raw:
        raw.seek(at + 64 + SMALL.chunk_bytes + 3)  # in the times
        raw.write(b"?")
    report = recover(file.path)
    assert report.frames == 5 and report.torn == 1
    with h5py.File(file.path) as h5:
        np.testing.assert_array_equal(h5[DETECTOR]["stop_time"][()], [0.25, 0.75, np.nan, np.nan, np.nan, 2.75])
        np.testing.assert_array_equal(h5[DETECTOR]["real_time"][()], [0, 0.125, np.nan, 0.5, np.nan, 0.625])
    assert check(file.path).ok, check(file.path).lines()
    with h5py.File(file.path, "r+") as h5:
        h5[DETECTOR]["real_time"][1] = 7
    assert check(file.path).problems == ["real_time does not fit the records for 1 frames: 1"]


def test_modules_with_their_own_times(tmp_path: Path) -> None:
    """The last that came counts; check takes that of any."""
    layout = replace(MODULES, times=True)
    file = SeriesFile.create(tmp_path / "a.h5", header(2), layout)
    parts = [record(0, m, layout)._replace(times=Times(m, m)) for m in range(2)]
    file.append([*parts, record(0, 2, layout)._replace(times=None)])
    file.close(books(2, 1, [(1, 1)]))
    with h5py.File(file.path) as h5:
        assert h5[DETECTOR]["stop_time"][0] == 1
    assert check(file.path).ok, check(file.path).lines()


def test_a_file_of_the_first_format(tmp_path: Path) -> None:
    """As an earlier version left it when it was killed: modules, some of it committed."""
    path = tmp_path / "old.h5"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "format_1_killed.h5.gz").read_bytes()))
    with path.open("r+b") as raw:
        raw.truncate(int.from_bytes(path.read_bytes()[40:48], "little"))
    problems = check(path).problems
    assert "frame 5, module 2: record is not in the index" in problems and problems[0].startswith("not closed")
    report = recover(path)
    assert report.frames == 5 and report.missing == [(3, 4), (6, 6), (8, 19)]
    assert check(path).ok
    with h5py.File(path) as h5:
        assert h5.attrs["series_file_format"] == 1
        assert h5[DETECTOR]["frame_status"][:9].tolist() == [1, 1, 1, 0, 0, 1, 0, 2, 0]
        np.testing.assert_array_equal(h5[DATASET][5, 2], image(5, 2, MODULES))


def test_a_file_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5")
    with h5py.File(path, "r+") as h5:
        h5.attrs["series_file_format"] = 3
    for look in (check, recover):
        with pytest.raises(ConfigError, match="format 3, this version knows 2: use a newer one"):
            look(path)


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_any_order_of_modules_and_channels(tmp_path_factory, data: st.DataObject) -> None:
    """Any records in any batches, with commits between them: what a reader sees after a kill and a recovery."""
    path = tmp_path_factory.mktemp("order") / "a.h5"
    layout = data.draw(st.sampled_from([MODULES, CHANNELS, CHANNELS_TIMED, replace(MODULES, times=True)]))
    places = [(frame, module) for frame in (0, 1, 2, 63, 64, 200) for module in range(layout.modules)]
    chosen = data.draw(st.permutations(places).flatmap(lambda all: st.integers(0, len(all)).map(lambda n: all[:n])))
    bad = data.draw(st.sets(st.sampled_from(places), max_size=3))
    file = SeriesFile.create(path, header(data.draw(st.sampled_from([None, 201]))), layout)
    at = 0
    while at < len(chosen):
        size = data.draw(st.integers(1, 7))
        batch = [record(*place, layout) for place in chosen[at : at + size]]
        file.append([r._replace(status=INCOMPLETE) if (r.frame, r.module) in bad else r for r in batch])
        at += size
        if data.draw(st.booleans()):
            file.commit()
    came: dict[int, set[int]] = {}
    for frame, module in chosen:
        came.setdefault(frame, set()).add(module)
    ended = data.draw(st.sampled_from([SeriesFile.abandon, SeriesFile.close]))
    if ended is SeriesFile.abandon:
        file.abandon()
        recover(path)
    else:
        lost = recovery.gaps(np.array(sorted(came), np.int64), 201)
        file.close(books(201, sum(len(m) == layout.modules for m in came.values()), lost))
    assert check(path).ok, check(path).lines()
    with h5py.File(path) as h5:
        status = h5[DETECTOR]["frame_status"][()]
        for frame, modules in came.items():
            whole = len(modules) == layout.modules and not any((frame, m) in bad for m in modules)
            assert status[frame] == (1 if whole else INCOMPLETE)
            for m in range(layout.modules):
                np.testing.assert_array_equal(
                    pixels(h5, frame, m, layout), image(frame, m, layout) * (m in modules), f"{frame}, {m}"
                )
        assert np.count_nonzero(status) == len(came)
        assert_times(h5, came, layout)


# --- torn records, holes


def cut(path: Path, frame: int, keep: int) -> None:
    """As if the kill came when `keep` bytes of this frame's record (192 in all) were written."""
    with path.open("r+b") as file:
        where = find(path, frame)
        file.seek(where + keep)
        file.write(bytes(192 - keep))


def find(path: Path, frame: int) -> int:
    """Where the record of a frame begins."""
    fd = os.open(path, os.O_RDONLY)
    with h5py.File(path, "r", locking=False) as h5:
        nonce = nexus.identity(h5).nonce
    scan = recovery._scan(fd, nonce)
    os.close(fd)
    return int(scan.addresses[scan.headers["frame"] == frame][0]) - 64


@pytest.mark.parametrize("keep", [0, 1, 63, 64, 65, 100, 128, 129, 135])
def test_torn_record_is_refused_and_those_behind_are_found(tmp_path: Path, keep: int) -> None:
    path = killed(tmp_path / "a.h5", list(range(6)), 2).path
    cut(path, 3, keep)
    report = recover(path)
    assert report.frames == 5 and report.missing == [(3, 3), (6, 19)]
    assert report.torn == (keep >= 64)
    assert_frames(path, [0, 1, 2, 4, 5])
    assert check(path).ok


def test_last_record_torn(tmp_path: Path) -> None:
    path = killed(tmp_path / "a.h5", list(range(6)), 2).path
    cut(path, 5, 135)
    assert recover(path).frames == 5
    assert check(path).ok


def test_holes_of_killed_threads(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(None), SMALL)
    file.append(records([0, 1]))
    file._take(10 << 20)  # reserved, never written
    file.append(records([2]))
    file._take(64)
    file.append(records([3]))
    file.abandon()
    assert recover(file.path).frames == 4
    assert_frames(file.path, [0, 1, 2, 3])
    assert check(file.path).ok


def test_payload_that_looks_like_a_record(tmp_path: Path) -> None:
    """Bytes of another series file, or of this one with a wrong checksum, are pixels."""
    layout = ImageLayout((32, 32), "uint8", "none")
    other = killed(tmp_path / "other.h5", [7], 0).path
    at = find(other, 7)
    foreign = other.read_bytes()[at : at + 192] if other.stat().st_size < 1 << 28 else b""
    if not foreign:
        with other.open("rb") as opened:
            opened.seek(at)
            foreign = opened.read(192)
    file = SeriesFile.create(tmp_path / "a.h5", header(2), layout)
    file.append([Record(0, 0, (foreign * 6)[:1024]), Record(1, 0, bytes(1024))])
    at = find(file.path, 0)
    with file.path.open("r+b") as opened:  # torn: so its payload is searched
        opened.seek(at + 64 + 1024)
        opened.write(bytes(8))
    file.abandon()
    report = recover(file.path)
    assert report.frames == 1 and report.missing == [(0, 0)] and report.torn == 1
    assert check(file.path).ok


@pytest.mark.slow
@pytest.mark.usefixtures("python_writes")
@settings(max_examples=25)
@given(data=st.data())
def test_killed_anywhere_between_the_writes(tmp_path_factory, data: st.DataObject) -> None:
    """Every prefix of the writes of appends, commits and close is a file that opens and can be recovered."""
    path = tmp_path_factory.mktemp("kill") / "a.h5"
    layout = data.draw(st.sampled_from([SMALL, MODULES, CHANNELS, TIMED]))
    file = SeriesFile.create(path, header(data.draw(st.sampled_from([None, 12]))), layout)
    left = data.draw(st.integers(0, 90))
    done: list[int] = []
    real = os.pwritev

    class Killed(BaseException):
        pass

    def until(fd: int, buffers: list, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raw = b"".join(bytes(b) for b in buffers)
            if len(raw) > 8:  # fields of 8 bytes are whole or not there
                real(fd, [raw[: data.draw(st.integers(0, len(raw)))]], offset)
            raise Killed
        return real(fd, buffers, offset)

    os.pwritev = until  # type: ignore[assignment]
    try:
        for frame in range(12):
            file.append(records([frame], layout))
            done.append(frame)
            if frame % 4 == 3:
                file.commit()
        file.close(books(12, 12))
    except Killed:
        pass
    finally:
        os.pwritev = real
        file.abandon()
    with h5py.File(path) as h5:
        for n in np.flatnonzero(h5[DETECTOR]["frame_status"][()] == 1).tolist():
            for m in range(layout.modules):
                np.testing.assert_array_equal(pixels(h5, n, m, layout), image(n, m, layout))
    assert recover(path).frames >= len(done)
    report = check(path)
    assert report.ok and report.frames >= len(done), report.lines()
    with h5py.File(path) as h5:
        for n in done:
            for m in range(layout.modules):
                np.testing.assert_array_equal(pixels(h5, n, m, layout), image(n, m, layout))
        assert_times(h5, np.flatnonzero(h5[DETECTOR]["frame_status"][()]).tolist(), layout)


@pytest.mark.slow
@pytest.mark.usefixtures("python_writes")
@settings(max_examples=15)
@given(left=st.integers(0, 60))
def test_recovery_killed_and_repeated(tmp_path_factory, left: int) -> None:
    path = killed(tmp_path_factory.mktemp("twice") / "a.h5", list(range(12)), 5, None).path
    real = os.pwritev

    class Killed(BaseException):
        pass

    def until(fd: int, buffers: list, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return real(fd, buffers, offset)

    os.pwritev = until  # type: ignore[assignment]
    try:
        recover(path)
    except Killed:
        pass
    finally:
        os.pwritev = real
    with h5py.File(path) as h5:
        for n in range(5):
            np.testing.assert_array_equal(h5[DATASET][n], image(n))
    assert recover(path).frames == 12
    report = check(path)
    assert report.ok, report.lines()
    assert_frames(path, list(range(12)))


def test_storage_that_does_not_tell_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_SILENCE", 64 << 20)
    monkeypatch.setattr(os, "lseek", lambda fd, offset, whence: offset)
    path = killed(tmp_path / "a.h5", [0, 1, 2], 1, None).path
    assert recover(path).frames == 3
    assert path.stat().st_size < 2 << 20
    assert check(path).ok


@pytest.mark.usefixtures("python_writes")
def test_full_disk_at_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed(tmp_path / "a.h5", [0, 1]).path

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(WriteError, match="free some space"):
        recover(path)
    monkeypatch.undo()
    assert recover(path).frames == 2


# --- killed for real


def _write_until_killed(path: str, reports: Connection, nframes: int | None, layout: ImageLayout) -> None:
    file = SeriesFile.create(Path(path), header(nframes), layout)
    reports.send(-1)
    committed = time.monotonic()
    for first in range(0, 1_000_000, 4):
        file.append(records(range(first, first + 4), layout))
        reports.send(first + 3)
        if time.monotonic() - committed > 0.02:
            file.commit()
            committed = time.monotonic()


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    """Every frame whose append had returned is there afterwards."""
    random.seed(time.time_ns())
    context = multiprocessing.get_context("spawn")
    waiting = []
    for number in range(10):  # started beforehand: starting Python takes longer than the rest
        ours, theirs = context.Pipe(duplex=False)
        layout = (SMALL, ImageLayout((64, 128), "uint16", "none"), MODULES, CHANNELS, TIMED)[number % 5]
        path = tmp_path / f"{number}.h5"
        child = context.Process(
            target=_write_until_killed, args=(str(path), theirs, None if number % 2 else 100_000, layout)
        )
        waiting.append((child, ours, theirs, path, layout))
    for child, ours, theirs, path, layout in waiting:
        child.start()
        theirs.close()
        assert ours.poll(30) and ours.recv() == -1
        end = time.monotonic() + random.uniform(0.0, 0.25)
        last = -1
        while time.monotonic() < end:
            if ours.poll(0.001):
                last = ours.recv()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        try:
            while True:
                last = ours.recv()
        except EOFError:
            ours.close()
        with h5py.File(path) as h5:
            assert h5[DATASET].shape[-2:] == layout.shape
        report = recover(path)
        assert report.ok and report.frames >= last + 1, f"{path}: {last + 1} had returned; {report.lines()}"
        report = check(path)
        assert report.ok and report.frames >= last + 1, report.lines()
        if last >= 0:
            assert_frames(path, list(range(report.frames)), layout) if last < 500 else None
        path.unlink()


# --- what is refused


def test_refusals(tmp_path: Path) -> None:
    empty, zeros, text_file, other = (tmp_path / n for n in ("empty", "zeros", "text", "other.h5"))
    empty.touch()
    zeros.write_bytes(bytes(100_000))
    text_file.write_text("x" * 1000)
    with h5py.File(other, "w", libver="earliest") as h5:
        h5["a"] = 1
    with h5py.File(tmp_path / "new.h5", "w", libver="latest") as h5:
        h5["a"] = 1
    for action in (recover, check):
        for path, words in (
            (empty, "being created.*delete"),
            (zeros, "being created.*delete"),
            (text_file, "not an HDF5 file that this package wrote"),
            (tmp_path / "new.h5", "not an HDF5 file that this package wrote"),
            (other, "not a series file"),
            (tmp_path / "no.h5", "No such file"),
            (tmp_path, "Is a directory|not a file"),
        ):
            with pytest.raises(ConfigError, match=words):
                action(path)


def test_killed_while_the_tree_was_written(tmp_path: Path) -> None:
    path = killed(tmp_path / "a.h5", []).path
    with path.open("rb") as file:
        start = file.read(40_000)
    for size in (64, 100, 1000, 5000):
        part = tmp_path / f"{size}.h5"
        part.write_bytes(start[:size] + bytes(1 << 16))
        with pytest.raises(ConfigError, match="killed while|being created"):
            recover(part)


def test_check_of_a_file_that_is_being_written_says_just_that(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(None), SMALL)
    over = threading.Event()

    def write() -> None:
        for first in range(0, 20_000, 7):
            file.append(records(range(first, first + 7)))
            if not first % 5:
                file.commit()
            if over.wait(0.001):
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            (problem,) = check(file.path).problems
            assert problem.startswith("not closed: it is being written")
    finally:
        over.set()
        writer.join()
        file.abandon()
    assert any("the writer was killed" in problem for problem in check(file.path).problems)


def test_check_of_far_more_announced_frames_than_fit_into_memory(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(1 << 40), SMALL)
    file.append(records([0, 1, 5000]))
    file.close(books(1 << 40, received=3, missing=[(2, 4999), (5001, (1 << 40) - 1)]))
    report = check(file.path)
    assert report.ok, report.problems
    assert report.frames == 3


def test_file_in_use_is_refused(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(3), SMALL)
    file.append(records([0]))
    with pytest.raises(ConfigError, match="being written"):
        recover(file.path)
    file.append(records([1]))
    file.abandon()
    assert recover(file.path).frames == 2


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed(tmp_path / "a.h5", [0]).path

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert recover(path).frames == 1


def test_lock_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = killed(tmp_path / "a.h5", [0]).path

    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match="lock"):
        recover(path)


# --- what check finds


def spoil(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_check_finds_a_changed_header(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5")
    spoil(path, find(path, 4) + 20, b"\x01")
    report = check(path)
    assert any("frame 4: chunk in the index has no record" in p for p in report.problems), report.lines()
    assert any("frame_status" in p for p in report.problems)
    assert "NOT ok" in report.lines()[-1]


def test_check_finds_a_changed_payload(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(3), SMALL, payload_crc=True)
    file.append(records(range(3)))
    file.close(books(3, 3))
    assert check(file.path).ok
    spoil(file.path, find(file.path, 1) + 64 + 30, b"\xff")
    assert check(file.path).problems == ["frame 1: payload differs from its checksum"]


def test_check_finds_what_cannot_be_decoded(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 3, PACKED)
    spoil(path, find(path, 2) + 64, b"\xff" * 40)
    assert check(path).problems == ["frame 2: cannot be decoded"]


def test_check_finds_a_wrong_index(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 3)
    with h5py.File(path, "r+") as h5:
        info = h5[DATASET].id.get_chunk_info(0)
        h5[DATASET].resize(2, axis=0)
    report = check(path)
    assert any("frame 2: record is not in the index" in p for p in report.problems), report.lines()
    path = written(tmp_path / "b.h5", 3)
    raw = path.read_bytes()
    child = info.byte_offset.to_bytes(8, "little")
    spoil(path, raw.rindex(child), (info.byte_offset + 192 * 8 + 64).to_bytes(8, "little"))
    assert any("does not point" in p for p in check(path).problems)


def test_check_compares_the_books(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    file = SeriesFile.create(path, header(20), SMALL)
    file.append(records(range(10)))
    file.close(books(20, 11, [(12, 19)]))
    report = check(path)
    assert any("frames_received is 11, there are 10" in p for p in report.problems)
    assert any("frames_missing lists 12-19, it is 10-19" in p for p in report.problems)
    with h5py.File(path, "r+") as h5:
        h5[DETECTOR]["frame_status"][15] = 1
    assert any("frame_status does not fit the records for 1 frames: 15" in p for p in check(path).problems)


def test_check_finds_a_file_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5")
    os.truncate(path, path.stat().st_size + 100)
    assert "end-of-file address" in check(path).problems[0]
    shutil.copy(path, tmp_path / "b.h5")
    os.truncate(path, path.stat().st_size - 5000)
    with pytest.raises(ConfigError, match="truncated"):
        check(path)


def test_many_problems_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 100)
    with h5py.File(path, "r+") as h5:
        h5[DATASET].resize(10, axis=0)
    assert any("and 70 more" in p for p in check(path).problems)


def test_progress_and_report(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = killed(tmp_path / "a.h5", list(range(15)), 3).path
    report = recover(path, progress=lambda done, total: told.append((done, total)))
    assert told and told[-1][0] == told[-1][1]
    assert report.lines() == [f"{path}: recovered, 15 of 20 frames, 5 missing", "missing: 15-19", "ok"]
    told.clear()
    assert check(path, progress=lambda done, total: told.append((done, total))).ok
    assert told[-1] == (15, 15)
