"""A series in several files: what a reader sees in the master during the series, after its end, after a kill."""

import errno
import os
import random
import subprocess
import threading
import time
from math import nan
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  the filters
import numpy as np
import pytest

from tangods_receiver import seriesfile
from tangods_receiver.errors import StreamError, WriteError
from tangods_receiver.fileset import FileSet
from tangods_receiver.records import Record
from tangods_receiver.seriesfile import SeriesFile
from tangods_receiver.spread import Spread
from tests.receiver.series_files import (
    CHANNELS_TIMED,
    DATASET,
    DETECTOR,
    MODULES,
    PACKED,
    SMALL,
    assert_times,
    books,
    header,
    image,
    record,
    records,
)

SPREADS = [Spread(2), Spread(4), Spread(1, 5), Spread(2, 3), Spread(3, 4)]
FILLS = {"timestamp": nan, "arrival_time": nan, "sequence_number": -1, "message_number": -1, "frame_status": 0}


def ids(spread):
    return f"{spread.parts}x{spread.frames_per_file}"


def gaps(frames, length):
    """The inclusive ranges that are not among the frames."""
    found = []
    for frame in sorted(set(range(length)) - set(frames)):
        if found and found[-1][1] == frame - 1:
            found[-1] = found[-1][0], frame
        else:
            found.append((frame, frame))
    return found


def shows(path, frames, length=None, layout=SMALL):
    """A reader of the master finds exactly these frames, with all that belongs to them."""
    frames = set(frames)
    with h5py.File(path) as h5:
        data, detector = h5[DATASET], h5[DETECTOR]
        assert len(data) == (length if length is not None else max(frames, default=-1) + 1)
        assert h5["entry/data/data"].shape == data.shape
        columns = {name: detector[name][()] for name in FILLS}
        assert {len(values) for values in columns.values()} == {len(data)}
        sets = [detector[name][()] for name in layout.channels] or [data[()]]
        assert {len(images) for images in sets} == {len(data)}
        for k in range(len(data)):
            wanted = [image(k, m, layout) * (k in frames) for m in range(layout.modules)]
            found = sets[0][k] if layout.axis else [images[k] for images in sets]
            assert (np.array(found) == wanted).all(), f"frame {k}"
            values = (k * 0.5, 1e9 + k, k, k + 100, 1) if k in frames else FILLS.values()
            np.testing.assert_array_equal([columns[name][k] for name in FILLS], list(values), f"frame {k}")
        assert_times(h5, frames, layout)
    return True


def closed_with(path, expected, received, missing):
    with h5py.File(path) as h5:
        detector = h5[DETECTOR]
        assert detector["frames_expected"][()] == (-1 if expected is None else expected)
        assert detector["frames_received"][()] == received
        assert [tuple(row) for row in detector["frames_missing"][()]] == missing
        assert detector["end_reason"].asstr()[()] == "complete"
        assert h5["entry/end_time"].asstr()[()]
    return True


def commit(file):
    """Twice: what is marked as written follows one commit behind."""
    file.commit()
    file.commit()


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("spread", SPREADS, ids=ids)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "layout", [SMALL, MODULES, PACKED, CHANNELS_TIMED], ids=["plain", "modules", "packed", "channels_timed"]
)
def test_any_order_and_gaps(tmp_path, spread, known, layout):
    path, n = tmp_path / "a.h5", 31
    before = descriptors()
    file = FileSet.create(path, header(n if known else None), layout, spread)
    frames = [k for k in range(n) if k not in (0, 3, 4, 5, 6, 7, 29)]
    shuffled = random.Random(1).sample(frames, len(frames))
    for at in range(0, len(shuffled), 5):
        file.append(records(shuffled[at : at + 5], layout))
        file.commit()
        if at == 10:
            file.commit()
            assert shows(path, shuffled[: at + 5], n if known else None, layout)
    file.close(books(n, len(frames), gaps(frames, n)))
    assert shows(path, frames, n, layout)
    assert closed_with(path, n, len(frames), gaps(frames, n))
    assert descriptors() <= before


@pytest.mark.parametrize("spread", SPREADS, ids=ids)
def test_the_end_was_not_known(tmp_path, spread):
    file = FileSet.create(tmp_path / "a.h5", header(None), SMALL, spread)
    frames = [*range(9), 12]
    file.append(records(frames))
    file.close(books(None, 10, [(9, 11)]))
    assert shows(tmp_path / "a.h5", frames, 13) and closed_with(tmp_path / "a.h5", None, 10, [(9, 11)])


@pytest.mark.parametrize("known", [0, None])
@pytest.mark.parametrize("spread", SPREADS, ids=ids)
def test_no_frame_at_all(tmp_path, spread, known):
    file = FileSet.create(tmp_path / "a.h5", header(known), SMALL, spread)
    file.commit()
    file.close(books(known, 0))
    assert shows(tmp_path / "a.h5", [], 0)


@pytest.mark.parametrize("spread", SPREADS, ids=ids)
def test_each_frame_is_in_its_file_and_says_which_it_is(tmp_path, spread):
    file = FileSet.create(tmp_path / "a.h5", header(20), SMALL, spread)
    file.append(records(range(20)))
    file.close(books(20, 20))
    for key in spread.keys(20):
        with h5py.File(tmp_path / spread.name(tmp_path / "a.h5", key)) as h5:
            frames = [k for k in range(20) if spread.place(k)[0] == key]
            assert h5[DETECTOR]["sequence_number"][()].tolist() == frames
            assert [int(pixels.reshape(-1).view("<u8")[0]) for pixels in h5[DATASET]] == frames
            assert h5[DETECTOR]["frames_expected"][()] == h5[DETECTOR]["frames_received"][()] == len(frames)


def test_later_files_come_with_their_first_frame_and_go_when_they_are_full(tmp_path):
    before = descriptors()
    file = FileSet.create(tmp_path / "a.h5", header(100), SMALL, Spread(2, 5))
    assert files(tmp_path) == ["a.h5", "a_000000_part00.h5", "a_000000_part01.h5"]
    for frame in range(100):
        file.append([record(frame)])
        file.commit()
        assert descriptors() <= before + 4
        assert len(files(tmp_path)) <= 3 + frame // 10 * 2 + 2
    file.close(books(100, 100))
    assert len(files(tmp_path)) == 21 and shows(tmp_path / "a.h5", range(100))


@pytest.mark.slow
def test_a_long_series_of_unknown_length_makes_few_masters(tmp_path, monkeypatch):
    from tangods_receiver import fileset

    made = []
    real = fileset.put_file
    monkeypatch.setattr(fileset, "put_file", lambda *args: made.append(1) or real(*args))
    file = FileSet.create(tmp_path / "a.h5", header(None), SMALL, Spread(1, 2))
    for frame in range(100):
        file.append([record(frame)])
        file.commit()
        if not frame % 7:
            with h5py.File(tmp_path / "a.h5") as h5:
                assert len(h5[DATASET]) == frame + 1
    file.close(books(None, 100))
    assert len(made) < 30 and shows(tmp_path / "a.h5", range(100))


@pytest.mark.parametrize("spread", SPREADS, ids=ids)
def test_the_layout_is_told_later(tmp_path, spread):
    file = FileSet.create(tmp_path / "a.h5", header(None), None, spread)
    with pytest.raises(WriteError, match="shape of the frames was not defined"):
        file.append([record(0)])
    file.define(SMALL)
    file.append(records(range(20)))
    commit(file)
    assert shows(tmp_path / "a.h5", range(20))
    file.close(books(20, 20))
    assert shows(tmp_path / "a.h5", range(20))


@pytest.mark.slow
def test_threads_write_into_files_of_their_own(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(2000), SMALL, Spread(2, 100))

    def write(worker):
        for start in range(worker, 2000, 20):
            file.append(records(range(start, start + 20, 2)))

    threads = [threading.Thread(target=write, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        file.commit()
    for thread in threads:
        thread.join()
    file.close(books(2000, 2000))
    assert shows(tmp_path / "a.h5", range(2000))


def test_a_missing_file_reads_as_missing_frames(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(20), SMALL, Spread(2, 5))
    file.append(records(range(20)))
    file.close(books(20, 20))
    (tmp_path / "a_000001_part01.h5").unlink()
    assert shows(tmp_path / "a.h5", [k for k in range(20) if k not in range(11, 20, 2)], 20)


@pytest.mark.parametrize("spread", SPREADS, ids=ids)
def test_the_directory_may_be_moved(tmp_path, spread, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new 100%b"
    old.mkdir()
    file = FileSet.create(old / "a 50%b é.h5", header(20), SMALL, spread)
    file.append(records(range(20)))
    file.close(books(20, 20))
    old.rename(new)
    monkeypatch.chdir("/")
    assert shows(new / "a 50%b é.h5", range(20))


def test_hdf5_tools_read_it_during_the_series_and_after(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(None), SMALL, Spread(2, 5))
    file.append(records(range(17)))
    file.commit()
    tree = run("h5ls", "-r", tmp_path / "a.h5")
    assert "/entry/data/data         Dataset {17/Inf, 4, 8}" in tree
    file.close(books(17, 17))
    text = run("h5dump", "-d", f"/{DATASET}", "-s", "0,3,7", "-c", "17,1,1", tmp_path / "a.h5")
    values = text.partition("DATA {")[2].partition("}")[0].splitlines()
    assert [int(line.split(":")[1].strip(", ")) for line in values if ":" in line] == [k + 1 for k in range(17)]
    assert "VIRTUAL" in run("h5dump", "-H", "-p", tmp_path / "a.h5")


def run(program, *args):
    try:
        return subprocess.run([program, *args], capture_output=True, text=True, check=True, cwd="/").stdout
    except FileNotFoundError:
        pytest.skip(f"{program} is not installed")


def test_silx_finds_the_default_plot(tmp_path):
    from silx.io import nxdata

    file = FileSet.create(tmp_path / "a.h5", header(6), SMALL, Spread(2))
    file.append(records(range(6)))
    file.close(books(6, 6))
    with h5py.File(tmp_path / "a.h5") as h5:
        plot = nxdata.get_default(h5)
        assert plot.is_valid and plot.signal.shape == (6, 4, 8)


# --- names that are taken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["a.h5", "a_000000_part01.h5", "a_000001_part00.h5"])
@pytest.mark.parametrize("nframes", [20, None])
def test_a_name_that_is_taken_is_refused_before_anything_is_made(tmp_path, taken, nframes):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(WriteError, match=f"{taken}.*exists"):
        FileSet.create(tmp_path / "a.h5", header(nframes), SMALL, Spread(2, 5))
    assert files(tmp_path) == [taken] and (tmp_path / taken).read_text() == "mine"


def test_a_name_that_is_taken_during_the_series_is_never_overwritten(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(20), SMALL, Spread(2, 5))
    (tmp_path / "a_000001_part00.h5").write_text("mine")
    with pytest.raises(WriteError, match="a_000001_part00.h5: File exists"):
        file.append(records([9, 10]))
    file.append(records([8, 11]))
    file.close(books(20, 2, gaps([8, 11], 20)))
    assert len(files(tmp_path)) == 5
    assert (tmp_path / "a_000001_part00.h5").read_text() == "mine"
    (tmp_path / "a_000001_part00.h5").unlink()  # HDF5 does not read on where a file is none of its own
    assert shows(tmp_path / "a.h5", [8, 11], 20)


def test_names_beyond_the_series_are_free(tmp_path):
    (tmp_path / "a_000002_part00.h5").write_text("mine")
    FileSet.create(tmp_path / "a.h5", header(20), SMALL, Spread(2, 5)).close(books(20, 0))
    assert (tmp_path / "a_000002_part00.h5").read_text() == "mine"


def old_set(directory, spread, n=40):
    file = FileSet.create(directory / "a.h5", header(n), SMALL, spread)
    file.append(records(range(n)))
    file.close(books(n, n))


@pytest.mark.parametrize("old", [Spread(4, 3), Spread(2, 5), Spread(3)], ids=ids)
@pytest.mark.parametrize("nframes", [20, None])
def test_a_whole_set_is_replaced(tmp_path, old, nframes):
    old_set(tmp_path, old)
    file = FileSet.create(tmp_path / "a.h5", header(nframes), SMALL, Spread(2, 5), replace=True)
    assert files(tmp_path) == ["a.h5", "a_000000_part00.h5", "a_000000_part01.h5"]
    file.append(records([3, 17]))
    commit(file)
    assert shows(tmp_path / "a.h5", [3, 17], nframes)
    file.close(books(20, 2, gaps([3, 17], 20)))
    assert shows(tmp_path / "a.h5", [3, 17], 20)


def test_replacing_spares_a_file_of_another_series(tmp_path):
    old_set(tmp_path, Spread(2, 5), 10)
    SeriesFile.create(tmp_path / "a_000001_part00.h5", header(1), SMALL).close(books(1, 0))
    with pytest.raises(WriteError, match="a_000001_part00.h5 exists and is of another series"):
        FileSet.create(tmp_path / "a.h5", header(20), SMALL, Spread(2, 5), replace=True)
    assert shows(tmp_path / "a.h5", range(10))
    FileSet.create(tmp_path / "a.h5", header(10), SMALL, Spread(2, 5), replace=True).close(books(10, 0))
    assert (tmp_path / "a_000001_part00.h5").exists()


def test_nothing_is_gone_when_the_new_set_cannot_be_made(tmp_path, monkeypatch):
    old_set(tmp_path, Spread(2, 5))
    before = files(tmp_path)
    real, calls = SeriesFile.create.__func__, []

    def create(cls, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise WriteError("full")
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(SeriesFile, "create", classmethod(create))
    with pytest.raises(WriteError, match="full"):
        FileSet.create(tmp_path / "a.h5", header(20), SMALL, Spread(2, 5), replace=True)
    assert files(tmp_path) == before and shows(tmp_path / "a.h5", range(40))


def test_far_too_many_files_are_refused(tmp_path):
    with pytest.raises(WriteError, match="1000000 files.*larger frames_per_file than 1"):
        FileSet.create(tmp_path / "a.h5", header(1_000_000), SMALL, Spread(1, 1))
    assert files(tmp_path) == []


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failed_write_to_one_file_leaves_no_frame_of_the_batch(tmp_path, monkeypatch):
    file = FileSet.create(tmp_path / "a.h5", header(10), SMALL, Spread(2))
    file.append(records([0, 1]))
    real, left = SeriesFile.write, [1]

    def write(self, some):
        if left and "part01" in self.path.name:
            left.pop()
            raise seriesfile.write_error("write to", self.path, OSError(errno.ENOSPC, "full"))
        return real(self, some)

    monkeypatch.setattr(SeriesFile, "write", write)
    with pytest.raises(WriteError, match="part01.*full: free some space"):
        file.append(records([2, 3]))
    file.append(records([4, 5]))
    file.close(books(10, 4, [(2, 3), (6, 9)]))
    assert shows(tmp_path / "a.h5", [0, 1, 4, 5], 10) and closed_with(tmp_path / "a.h5", 10, 4, [(2, 3), (6, 9)])


def test_a_record_that_does_not_fit_is_refused_with_its_batch(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(10), SMALL, Spread(2))
    with pytest.raises(StreamError, match="bytes of data do not make a chunk"):
        file.append([record(0), Record(1, 0, b"short")])
    with pytest.raises(StreamError, match="frame -1"):
        file.append([Record(-1, 0, record(0).data)])
    file.append([record(1)])
    file.close(books(10, 1, [(0, 0), (2, 9)]))
    assert shows(tmp_path / "a.h5", [1], 10)


@pytest.mark.parametrize("method", ["commit", "close"])
def test_one_file_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, method):
    file = FileSet.create(tmp_path / "a.h5", header(10), SMALL, Spread(2))
    file.append(records(range(6)))
    real = getattr(SeriesFile, method)

    def fail(self, *args):
        if "part00" in self.path.name:
            self.abandon()
            raise WriteError(f"{self.path}: broken")
        return real(self, *args)

    monkeypatch.setattr(SeriesFile, method, fail)
    with pytest.raises(WriteError, match=r"part00.*broken"):
        commit(file) if method == "commit" else file.close(books(10, 6, [(6, 9)]))
    if method == "commit":
        with pytest.raises(WriteError, match="part00"):
            file.commit()
    assert shows(tmp_path / "a.h5", [1, 3, 5], 10)
    file.abandon()


def test_a_master_that_was_deleted_or_replaced_is_an_error(tmp_path):
    for spoil in (Path.unlink, lambda path: (path.unlink(), path.write_text("other"))):
        directory = tmp_path / str(time.monotonic_ns())
        directory.mkdir()
        file = FileSet.create(directory / "a.h5", header(10), SMALL, Spread(2))
        file.append(records(range(6)))
        spoil(directory / "a.h5")
        with pytest.raises(WriteError, match="cannot close"):
            file.close(books(10, 6))
        with h5py.File(directory / "a_part01.h5") as h5:
            assert h5[DETECTOR]["sequence_number"][()].tolist() == [1, 3, 5, -1, -1]


def test_closing_is_harmless_twice_and_afterwards_nothing_is_taken(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(10), SMALL, Spread(2, 2))
    file.append(records(range(10)))
    file.close(books(10, 10))
    file.close(books(10, 10))
    file.sync()
    with pytest.raises(WriteError, match="already closed"):
        file.commit()
    with pytest.raises(WriteError, match="already closed"):
        file.append([record(0)])


def test_sync_at_any_time(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(None), SMALL, Spread(2, 2))
    for frame in range(10):
        file.append([record(frame)])
        file.commit()
        file.sync()
    file.close(books(10, 10))
    file.sync()
