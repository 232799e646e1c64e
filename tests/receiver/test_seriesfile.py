"""The series file while it is written, when the storage fails, and with readers beside it."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_receiver import seriesfile
from tangods_receiver.errors import ConfigError, StreamError, WriteError
from tangods_receiver.records import aligned
from tangods_receiver.recovery import check
from tangods_receiver.seriesfile import ImageLayout, Record, SeriesFile, write_all
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


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and status, with HDF5's own lock, as any program does."""
    import hdf5plugin  # noqa: F401

    with h5py.File(path, "r") as h5:
        return h5[DATASET][()], h5[DETECTOR]["frame_status"][()]


def frames_in(path: Path, layout: ImageLayout = SMALL) -> list[int]:
    """The frames that a reader sees now; each must be right."""
    images, status = read(path)
    there = [n for n in range(len(images)) if images[n].any()]
    for n in there:
        np.testing.assert_array_equal(images[n], image(n, 0, layout))
    assert set(np.flatnonzero(status)) <= set(there), "no frame may be marked that cannot be read"
    return there


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SeriesFile]:
    file = SeriesFile.create(tmp_path / "a.h5", header(100), SMALL)
    yield file
    file.abandon()


# --- the life of a file


def test_frames_appear_with_each_commit(file: SeriesFile) -> None:
    assert frames_in(file.path) == []
    file.append(records([3, 4]))
    assert frames_in(file.path) == []
    file.commit()
    assert frames_in(file.path) == [3, 4]
    file.append(records([0]))
    file.commit()
    file.commit()
    assert frames_in(file.path) == [0, 3, 4]
    with h5py.File(file.path) as h5:
        group = h5[DETECTOR]
        assert h5[DATASET].shape == (100, 4, 8)
        assert group["frames_received"][()] == 3
        assert group["frame_status"][:5].tolist() == [1, 0, 0, 1, 1]
        assert group["sequence_number"][:5].tolist() == [0, -1, -1, 3, 4]
        assert group["message_number"][:5].tolist() == [100, -1, -1, 103, 104]
        np.testing.assert_array_equal(group["timestamp"][:5], [0, np.nan, np.nan, 1.5, 2])
        np.testing.assert_array_equal(group["arrival_time"][:5], [1e9, np.nan, np.nan, 1e9 + 3, 1e9 + 4])
        assert group["end_reason"][()].startswith(b"not closed")


def test_closed_file(file: SeriesFile) -> None:
    file.append(records(range(100)))
    file.close(books(100, 100))
    file.close(books(100, 100))
    file.sync()
    assert frames_in(file.path) == list(range(100))
    with h5py.File(file.path) as h5:
        group = h5[DETECTOR]
        assert (group["frame_status"][()] == 1).all()
        for name, value in {"expected": 100, "received": 100, "repeated": 1, "rejected": 2, "foreign": 3}.items():
            assert group[f"frames_{name}"][()] == value
        assert group["end_reason"][()] == b"complete"
        assert group["frames_missing"].shape == (0, 2)
    assert check(file.path).ok
    assert file.path.stat().st_size < 200 * 192 + 500_000, "the horizon is gone"


@pytest.mark.parametrize(
    "layout",
    [SMALL, MODULES, PACKED, CHANNELS, TIMED, CHANNELS_TIMED],
    ids=["plain", "modules", "bslz4", "channels", "timed", "channels_timed"],
)
@pytest.mark.parametrize("nframes", [None, 0, 1, 2500])
def test_every_kind_of_series(tmp_path: Path, layout: ImageLayout, nframes: int | None) -> None:
    count = 1100 if nframes is None else nframes
    file = SeriesFile.create(tmp_path / "a.h5", header(nframes), layout)
    for first in range(0, count, 100):
        file.append(records(range(first, min(count, first + 100)), layout))
        file.commit()
    file.close(books(nframes, count))
    report = check(file.path)
    assert report.ok, report.lines()
    assert report.frames == count
    with h5py.File(file.path) as h5:
        assert len(h5[DATASET]) == len(h5[DETECTOR]["frame_status"]) == count
        for n in range(0, count, 97):
            for m in range(layout.modules):
                np.testing.assert_array_equal(pixels(h5, n, m, layout), image(n, m, layout))
        assert_times(h5, range(count), layout)
        assert h5.attrs["series_file_format"] == (2 if layout.channels or layout.times else 1)


@pytest.mark.parametrize("layout", [SMALL, MODULES, CHANNELS, CHANNELS_TIMED], ids=["plain", "modules", "ch", "timed"])
@settings(max_examples=25)
@given(batches=st.lists(st.sets(st.tuples(st.integers(0, 40_000), st.integers(0, 1)), min_size=1), max_size=5))
def test_a_commit_takes_no_more_than_was_kept_for_it(
    tmp_path_factory, layout: ImageLayout, batches: list[set[tuple[int, int]]]
) -> None:
    """Else a full disk could not commit."""
    file, took = SeriesFile.create(tmp_path_factory.mktemp("cost") / "a.h5", header(None), layout), 0
    real = file._place

    def place(size: int) -> int:
        nonlocal took
        took += aligned(size)
        return real(size)

    file._place = place  # type: ignore[method-assign]
    for places in batches:
        file.append([record(frame, module % layout.modules, layout) for frame, module in places])
        kept, took = file._cost(file._leaves, file._blocks), 0
        file.commit()
        assert 0 < took <= kept
    file.abandon()


def test_unknown_number_grows_with_commits(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(None), SMALL)
    assert read(file.path)[0].shape == (0, 4, 8)
    file.append(records([1, 5]))
    file.commit()
    images, status = read(file.path)
    assert len(images) == len(status) == 6
    file.close(books(8, 2, [(0, 0), (2, 4), (6, 7)]))
    assert len(read(file.path)[0]) == 8, "as many as were sent"
    assert check(file.path).missing == [(0, 0), (2, 4), (6, 7)]
    assert check(file.path).ok, check(file.path).lines()


def test_modules_make_a_frame_whole(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(5), MODULES)
    file.append([record(2, 1, MODULES), record(1, 0, MODULES), record(2, 0, MODULES)])
    file.commit()
    file.append([record(2, 2, MODULES), record(1, 2, MODULES)])
    file.commit()
    file.commit()
    with h5py.File(file.path) as h5:
        assert h5[DETECTOR]["frame_status"][()].tolist() == [0, 2, 1, 0, 0]
        assert h5[DETECTOR]["frames_received"][()] == 1
        np.testing.assert_array_equal(h5[DATASET][2, 1], image(2, 1, MODULES))
        assert not h5[DATASET][1, 1].any()
    file.close(books(5, 2, [(0, 0), (3, 4)]))
    assert check(file.path).ok, check(file.path).lines()


def test_other_status_is_kept(file: SeriesFile) -> None:
    file.append([Record(0, 0, image(0), status=17), Record(1, 0, image(1))])
    file.close(books(100, 2, [(2, 99)]))
    assert read(file.path)[1][:3].tolist() == [17, 1, 0]
    assert check(file.path).ok


def test_shape_known_from_the_first_frame(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(10), None)
    with h5py.File(file.path) as before:  # a reader that came too early keeps its empty file
        assert "data" not in before[DETECTOR]
        with pytest.raises(WriteError, match="not defined"):
            file.append(records([0]))
        file.commit()
        file.define(SMALL)
        assert before[DETECTOR]["frames_received"][()] == 0
    with pytest.raises(ValueError, match="already"):
        file.define(SMALL)
    file.append(records(range(10)))
    file.close(books(10, 10))
    assert frames_in(file.path) == list(range(10))
    assert check(file.path).ok
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_never_defined(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(10), None)
    file.close(books(10, 0, [(0, 9)]))
    report = check(file.path)
    assert report.ok and report.frames == 0 and report.missing == [(0, 9)], report.lines()


def test_define_refuses_when_the_name_was_taken(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(10), None)
    file.path.rename(tmp_path / "moved.h5")
    file.path.write_text("mine")
    with pytest.raises(WriteError, match="another file"):
        file.define(SMALL)
    assert file.path.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "moved.h5"]
    file.close(books(10, 0))
    assert check(tmp_path / "moved.h5").frames == 0


def test_define_refuses_what_hdf5_cannot_store(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(10), None)
    with pytest.raises(StreamError, match="cannot be stored"):
        file.define(ImageLayout((4, 8), "no type", "none"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    file.define(SMALL)
    file.close(books(10, 0, [(0, 9)]))
    assert check(file.path).ok


@settings(max_examples=15)
@given(
    frames=st.lists(st.integers(0, 2500), unique=True, max_size=60),
    batch=st.integers(1, 20),
    announced=st.booleans(),
)
def test_any_order(tmp_path_factory, frames: list[int], batch: int, announced: bool) -> None:
    path = tmp_path_factory.mktemp("any") / "a.h5"
    file = SeriesFile.create(path, header(2501 if announced else None), SMALL)
    for begin in range(0, len(frames), batch):
        file.append(records(frames[begin : begin + batch]))
        if begin % 3 == 0:
            file.commit()
    length = 2501 if announced else max(frames, default=-1) + 1
    missing = [n for n in range(length) if n not in frames]
    file.close(books(length, len(frames), ranges(missing)))
    assert frames_in(path) == sorted(frames)
    report = check(path)
    assert report.ok, report.lines()


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and found[-1][1] == n - 1:
            found[-1] = (found[-1][0], n)
        else:
            found.append((n, n))
    return found


def test_more_missing_ranges_than_one_block(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(3000), SMALL)
    file.append(records(range(0, 3000, 2)))
    missing = [(n, n) for n in range(1, 3000, 2)]
    file.close(books(3000, 1500, missing))
    report = check(file.path)
    assert report.missing == missing
    assert report.ok, report.lines()


def test_frame_repeated_in_the_file_keeps_the_first(file: SeriesFile) -> None:
    file.append(records([0, 1]))
    file.append([Record(1, 0, image(9)), *records([2])])
    file.commit()
    file.append([Record(0, 0, image(8))])
    file.close(books(100, 3, [(3, 99)]))
    assert frames_in(file.path) == [0, 1, 2]
    assert check(file.path).ok, check(file.path).lines()


# --- what does not fit


@pytest.mark.parametrize(
    "bad",
    [
        Record(0, 0, b"short"),
        Record(0, 0, b""),
        Record(0, 0, bytes(65)),
        Record(-1, 0, image(0)),
        Record(1 << 60, 0, image(0)),
        Record(0, 1, image(0)),
        Record(0, -1, image(0)),
        Record(0, 0, image(0), serial=1 << 70),
        Record(0, 0, image(0), status=1000),
    ],
)
def test_refused_records(file: SeriesFile, bad: Record) -> None:
    with pytest.raises(StreamError, match="frame"):
        file.append([*records([1]), bad])
    file.append(records([2]))
    file.close(books(100, 1, [(0, 1), (3, 99)]))
    assert frames_in(file.path) == [2], "nothing of a refused batch is in the file"
    assert check(file.path).ok


def test_after_close(file: SeriesFile) -> None:
    file.close(books(100, 0))
    for use in (lambda: file.append(records([0])), file.commit, lambda: file.define(SMALL)):
        with pytest.raises((WriteError, ValueError), match="already"):
            use()


def test_empty_batch(file: SeriesFile) -> None:
    assert file.append([]) == 0


def test_any_buffer(file: SeriesFile) -> None:
    import zmq

    pixels = image(5)
    data = [pixels, pixels.tobytes(), bytearray(pixels.tobytes()), memoryview(pixels), zmq.Frame(pixels.tobytes())]
    file.append([Record(n, 0, d) for n, d in enumerate(data)])
    file.commit()
    for n in range(len(data)):
        np.testing.assert_array_equal(read(file.path)[0][n], pixels)


# --- creation


def test_create_refusals(tmp_path: Path) -> None:
    there = tmp_path / "there.h5"
    there.write_text("precious")
    for path, words in (
        (there, "exists"),
        (tmp_path / "no" / "a.h5", "create it"),
        (there / "a.h5", "not a directory"),
        (tmp_path, "exists|directory"),
        (tmp_path / ("n" * 300), "shorter"),
    ):
        with pytest.raises(WriteError, match=words):
            SeriesFile.create(path, header(1), SMALL)
    assert there.read_text() == "precious"
    for dataset in ("data", "", "/"):
        with pytest.raises(ConfigError, match="group"):
            SeriesFile.create(tmp_path / "a.h5", header(1, dataset), SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["there.h5"]


@pytest.mark.usefixtures("python_writes")
def test_the_old_file_goes_only_when_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there.h5"
    there.write_text("precious")
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwritev", refusing(errno.ENOSPC))
        with pytest.raises(WriteError, match="disk is full"):
            SeriesFile.create(there, header(1), SMALL, replace=True)
    assert there.read_text() == "precious"
    file = SeriesFile.create(there, header(1), None, replace=True)
    file.define(SMALL)
    file.append([Record(0, 0, image(0).tobytes())])
    file.close(books(1, 1))
    np.testing.assert_array_equal(read(there)[0][0], image(0))
    assert [p.name for p in tmp_path.iterdir()] == ["there.h5"]


def refusing(code: int) -> Callable[..., int]:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return refuse


def test_create_in_a_read_only_directory(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="permission"):
        SeriesFile.create(tmp_path / "a.h5", header(1), SMALL)


@pytest.mark.usefixtures("python_writes")
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_create_says_what_the_system_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open" if code in (errno.EACCES, errno.EROFS) else "pwritev", refuse)
    with pytest.raises(WriteError, match=os.strerror(code)):
        SeriesFile.create(tmp_path / "a.h5", header(1), SMALL)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir()), "what we made is taken away again"


@pytest.mark.parametrize("nframes", [None, 3])
@pytest.mark.parametrize("layout", [None, SMALL, MODULES, PACKED], ids=["unknown", "plain", "modules", "bslz4"])
def test_no_field_is_read_half_changed(tmp_path: Path, layout: ImageLayout | None, nframes: int | None) -> None:
    for n, label in enumerate(("", "x" * 13, "y" * 100, "z" * 1001)):
        file = SeriesFile.create(
            tmp_path / f"{n}.h5", header(nframes, label=label, detector={"description": label}), layout
        )
        arrays = [*file._places.columns.values(), file._places.missing, *file._places.images]
        assert len(arrays) == 6 + (layout is not None)
        for field in (f for a in arrays for f in (a.root, a.length)):
            assert field // 64 == (field + 7) // 64
        file.abandon()


def test_size_does_not_move_during_the_series(file: SeriesFile) -> None:
    size = file.path.stat().st_size
    for first in range(0, 100, 10):
        file.append(records(range(first, first + 10)))
        file.commit()
        assert file.path.stat().st_size == size
        assert int.from_bytes(file.path.read_bytes()[40:48] if size < 1 << 20 else raw(file.path), "little") == size
    file.close(books(100, 100))
    assert int.from_bytes(raw(file.path), "little") == file.path.stat().st_size < size


def raw(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(40)
        return file.read(8)


@pytest.mark.slow
def test_beyond_the_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seriesfile, "UNKNOWN", 1 << 20)
    monkeypatch.setattr(seriesfile, "MARGIN", 4096)
    file = SeriesFile.create(tmp_path / "a.h5", header(None), SMALL)
    sizes = set()
    for first in range(0, 20_000, 500):
        file.append(records(range(first, first + 500)))
        if first % 3000 == 0:
            file.commit()
            last = read(file.path)[0][-1]
            np.testing.assert_array_equal(last, image(first + 499))
        sizes.add(file.path.stat().st_size)
    assert 1 < len(sizes) < 8, "extended, rarely"
    file.close(books(20_000, 20_000))
    assert check(file.path).ok


# --- locks


def test_other_writers_are_kept_out_and_readers_come_in(file: SeriesFile) -> None:
    with pytest.raises(OSError, match="lock"):
        h5py.File(file.path, "r+")
    h5py.File(file.path, "r").close()
    with file.path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    file.close(books(100, 0, [(0, 99)]))
    with h5py.File(file.path, "r+") as h5:
        h5["note"] = "mine"
    assert check(file.path).ok


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    file = SeriesFile.create(tmp_path / "a.h5", header(1), SMALL)
    assert "no lock" in caplog.text
    file.append(records([0]))
    file.close(books(1, 1))
    assert check(file.path).ok


def test_without_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert check(written(tmp_path / "a.h5")).ok


# --- many threads


def test_many_threads_append_one_commits(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(4000), SMALL)
    failed: list[BaseException] = []

    def work(mine: list[int]) -> None:
        try:
            for begin in range(0, len(mine), 7):
                file.append(records(mine[begin : begin + 7]))
        except BaseException as exc:
            failed.append(exc)

    order = np.random.default_rng(2).permutation(4000)
    threads = [threading.Thread(target=work, args=(part.tolist(),)) for part in np.array_split(order, 4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        file.commit()
        frames_in(file.path)
    for thread in threads:
        thread.join()
    assert not failed
    file.close(books(4000, 4000))
    assert frames_in(file.path) == list(range(4000))
    assert check(file.path).ok


@pytest.mark.usefixtures("python_writes")
def test_a_commit_leaves_out_what_is_still_being_written(file: SeriesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_go = threading.Event(), threading.Event()
    real = os.pwritev

    def slow(fd: int, buffers: list, offset: int) -> int:
        if threading.current_thread() is writer:
            begun.set()
            may_go.wait(10)
        return real(fd, buffers, offset)

    writer = threading.Thread(target=lambda: file.append(records([1])))
    monkeypatch.setattr(os, "pwritev", slow)
    writer.start()
    assert begun.wait(10)
    file.append(records([2]))
    file.commit()
    assert frames_in(file.path) == [2]
    may_go.set()
    writer.join()
    file.commit()
    assert frames_in(file.path) == [1, 2]


# --- storage that fails


@pytest.mark.usefixtures("python_writes")
def test_short_writes(file: SeriesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real, rng = os.pwritev, np.random.default_rng(3)

    def short(fd: int, buffers: list, offset: int) -> int:
        data = b"".join(bytes(b) for b in buffers)
        return real(fd, [data[: int(rng.integers(1, len(data) + 1))]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    for first in range(0, 100, 9):
        file.append(records(range(first, min(100, first + 9))))
    file.close(books(100, 100))
    monkeypatch.undo()
    assert frames_in(file.path) == list(range(100))
    assert check(file.path).ok


def test_batch_longer_than_one_call_takes(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(1000), SMALL)
    assert file.append(records(range(1000))) == 1000 * SMALL.chunk_bytes
    file.close(books(1000, 1000))
    assert check(file.path).ok


@pytest.mark.usefixtures("python_writes")
def test_nothing_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *args: 0)
    with (tmp_path / "a").open("wb") as file, pytest.raises(OSError, match="nothing"):
        write_all(file.fileno(), [b"abc"], 0)


@pytest.mark.usefixtures("python_writes")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_failed_append_leaves_a_good_file(file: SeriesFile, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    file.append(records(range(5)))
    real = os.pwritev

    def half(fd: int, buffers: list, offset: int) -> int:
        data = b"".join(bytes(b) for b in buffers)
        if len(data) == 3 * 192:
            return real(fd, [data[: 192 + 100]], offset)  # one whole record and a part of the next ...
        if len(data) == 2 * 192 - 100:
            raise OSError(code, os.strerror(code))  # ... and then the disk is full
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", half)
    with pytest.raises(WriteError, match=os.strerror(code)):
        file.append(records([5, 6, 7]))
    monkeypatch.undo()
    file.append(records([8]))
    file.commit()
    assert frames_in(file.path) == [0, 1, 2, 3, 4, 8]
    file.close(books(100, 6, [(5, 7), (9, 99)]))
    report = check(file.path)
    assert report.ok and report.torn == 0, report.lines()


@pytest.mark.usefixtures("python_writes")
def test_failed_commit_is_made_up_for_by_the_next(file: SeriesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.pwritev, 0

    def failing(fd: int, buffers: list, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    for n in range(14):
        file.append(records([n]))
        monkeypatch.setattr(os, "pwritev", failing)
        left = n
        try:
            file.commit()
        except WriteError as exc:
            assert "Input/output" in str(exc)
        monkeypatch.undo()
        frames_in(file.path)
    file.close(books(100, 14, [(14, 99)]))
    assert frames_in(file.path) == list(range(14))
    assert check(file.path).ok, check(file.path).lines()


@pytest.mark.usefixtures("python_writes")
def test_failed_close_can_be_recovered(file: SeriesFile, monkeypatch: pytest.MonkeyPatch) -> None:
    from tangods_receiver.recovery import recover

    def refuse(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    file.append(records([0, 1]))
    monkeypatch.setattr(os, "pwritev", refuse)
    with pytest.raises(WriteError, match="close"):
        file.close(books(100, 2))
    monkeypatch.undo()
    file.close(books(100, 2))  # it is let go of: nothing happens
    assert recover(file.path).frames == 2
    assert check(file.path).ok


def test_sync_says_when_it_fails(file: SeriesFile) -> None:
    file.sync()
    file.close(books(100, 0))
    file.path.unlink()
    with pytest.raises(WriteError, match="sync"):
        file.sync()


def fill(path: Path, layout: ImageLayout) -> tuple[int, str]:
    """Append until it fails, with a commit now and then; the frames whose append returned, and the error."""
    file = SeriesFile.create(path, header(None), layout)
    done = 0
    error = ""
    for first in range(0, 1_000_000, 8):
        try:
            file.append(records(range(first, first + 8), layout))
        except WriteError as exc:
            error = str(exc)
            break
        done = first + 8
        if first % 160 == 0:
            file.commit()
    file.commit()
    assert len(frames_in(path, layout)) == done
    file.close(books(done + 8, done, [(done, done + 7)]))
    report = check(path)
    assert report.ok and report.frames == done, report.lines()
    return done, error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "series", str(tmp_path)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system of its own: {made.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [SMALL, ImageLayout((64, 100), "uint16", "none")], ids=["tiny", "12 kB"])
def test_disk_full(small_disk: Path, layout: ImageLayout) -> None:
    done, error = fill(small_disk / "a.h5", layout)
    assert done > 100
    assert "free some space" in error
    with suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:  # what the failed batch gave back
        while rest.write(bytes(4096)):
            pass
    with pytest.raises(WriteError, match="free some space"):
        SeriesFile.create(small_disk / "b.h5", header(10), layout)
    assert sorted(p.name for p in small_disk.iterdir()) == ["a.h5", "rest"]


@pytest.mark.parametrize("layout", [SMALL, MODULES], ids=["plain", "modules"])
def test_disk_full_under_threads_with_scattered_frames(small_disk: Path, layout: ImageLayout) -> None:
    """Each frame touches other nodes of the index, and commits come at any time: there is room for them all."""
    file = SeriesFile.create(small_disk / "a.h5", header(20_000), layout)
    order = np.random.default_rng(5).permutation(20_000)
    done: list[int] = []
    refused: list[str] = []

    def work(mine: list[int]) -> None:
        for begin in range(0, len(mine), 2):
            try:
                file.append(records(mine[begin : begin + 2], layout))
                done.extend(mine[begin : begin + 2])
            except WriteError as exc:
                refused.append(str(exc))
                return

    threads = [threading.Thread(target=work, args=(order[n::3].tolist(),)) for n in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        file.commit()
    for thread in threads:
        thread.join()
    assert len(refused) == 3 and "free some space" in refused[0]
    file.close(books(20_000, len(done), ranges(sorted(set(range(20_000)) - set(done)))[:256]))
    report = check(file.path)
    assert report.frames == len(done) > 0
    assert not [p for p in report.problems if "frames_missing" not in p], report.lines()


def _limited(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    done, error = fill(Path(path), SMALL)
    assert done > 100 and "ulimit" in error, (done, error)


@pytest.mark.slow
def test_file_size_limit(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_limited, args=(str(tmp_path / "a.h5"),))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert check(tmp_path / "a.h5").ok


# --- readers beside the writer


def _reader(path: str, seconds: float, seed: int, grown: bool, results: multiprocessing.Queue) -> None:
    """Open, read what must be there, close; as fast as it goes."""
    opens = wrong = 0
    rng = np.random.default_rng(seed)
    problem = ""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            with h5py.File(path, "r") as h5:
                status = np.flatnonzero(h5[DETECTOR]["frame_status"][()])
                data = h5[DATASET]
                opens += 1
                if len(status):
                    for n in (status[-1], *rng.choice(status, 2)):
                        wrong += not np.array_equal(data[n], image(int(n)))
                if grown and len(data):
                    wrong += not np.array_equal(data[len(data) - 1], image(len(data) - 1))
    except Exception as exc:  # to the test, which fails on it
        problem = f"after {opens} opens: {type(exc).__name__}: {exc}"
    results.put((opens, wrong, problem))


@pytest.fixture
def readers() -> Iterator[Callable[..., multiprocessing.Queue]]:
    """Starts two of them; they are gone when the test is over, whatever happens."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    started: list[multiprocessing.process.BaseProcess] = []

    def start(path: Path, seconds: float, grown: bool) -> multiprocessing.Queue:
        for seed in range(2):
            started.append(context.Process(target=_reader, args=(str(path), seconds, seed, grown, results)))
            started[-1].start()
        return results

    yield start
    for reader in started:
        reader.join(10)
        reader.kill()
        reader.join()
    results.close()
    results.join_thread()


@pytest.mark.slow
@pytest.mark.parametrize("nframes, horizon", [(None, 1 << 40), (None, 1 << 20), (200_000, 0)])
def test_readers_in_a_tight_loop(
    tmp_path: Path, nframes: int | None, horizon: int, monkeypatch: pytest.MonkeyPatch, readers: Callable
) -> None:
    """Two open and read all the time, one holds the file open and refreshes (which cannot lead it beyond the horizon
    that it saw when it opened). The writer commits much more often than it would."""
    monkeypatch.setattr(seriesfile, "UNKNOWN", horizon)
    monkeypatch.setattr(seriesfile, "MARGIN", 1 << 20)
    seconds = 4.0
    file = SeriesFile.create(tmp_path / "a.h5", header(nframes), SMALL)
    sizes = {file.path.stat().st_size}
    results = readers(file.path, seconds, nframes is None)
    first = 0
    with h5py.File(file.path, "r") as held:
        data, status = held[DATASET], held[DETECTOR]["frame_status"]
        while results.qsize() < 2:
            file.append(records(range(first, first + 10)))
            first += 10
            time.sleep(0.01)  # beside real detectors there is a pause too
            if first % 50 == 0:
                file.commit()
                sizes.add(file.path.stat().st_size)
            if first % 500 == 0 and len(sizes) == 1:
                status.refresh()
                data.refresh()
                marked = np.flatnonzero(status[()])
                assert len(marked) > first - 200, "one commit behind, no more"
                np.testing.assert_array_equal(data[marked[-1]], image(int(marked[-1])))
    outcomes = [results.get() for _ in range(2)]
    file.close(books(nframes or first, first, [(first, nframes - 1)] if nframes else []))
    assert [(wrong, problem) for _, wrong, problem in outcomes] == [(0, "")] * 2
    assert sum(opens for opens, _, _ in outcomes) > 50  # thousands on a machine that has nothing else to do
    assert first > 500
    assert (len(sizes) > 1) == (horizon == 1 << 20)
    report = check(file.path)
    assert report.ok, report.lines()
