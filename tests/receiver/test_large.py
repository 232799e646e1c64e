"""Large series: files beyond 4 GB and 1 TB (sparse), millions of frames, masters over a million frames."""

import errno
import resource
import subprocess
import time

import h5py
import pytest

from tangods_receiver.fileset import FileSet
from tangods_receiver.records import ImageLayout, Record
from tangods_receiver.recovery import check, recover
from tangods_receiver.seriesfile import SeriesFile
from tangods_receiver.spread import Spread
from tests.receiver.series_files import DATASET, SMALL, books, header, image, records

TINY = ImageLayout((1, 1), "uint16", "none")
FAR = [5 << 30, (1 << 40) + (3 << 30)]


def tiny(frame):
    return Record(frame, 0, (frame % 65_535 + 1).to_bytes(2, "little"), frame, 0.0, 1.0)


def far_file(path, far, nframes=None):
    """Frames 0 to 4 at the start, 5 to 9 beyond `far`."""
    file = SeriesFile.create(path, header(nframes), SMALL)
    file.append(records(range(5)))
    file.commit()
    file._end = far  # as if everything up to there were written
    try:
        file.append(records(range(5, 10)))
    except Exception as exc:
        file.abandon()
        if getattr(exc.__cause__, "errno", 0) == errno.EFBIG:
            pytest.skip("this file system has no files of that size")
        raise
    return file


def holds_ten(path, far):
    with h5py.File(path) as h5:
        data = h5[DATASET]
        assert data.id.get_chunk_info(9).byte_offset > far
        assert all((data[k] == image(k)).all() for k in range(10))
    return True


@pytest.mark.parametrize("far", FAR, ids=["4GB", "1TB"])
@pytest.mark.parametrize("nframes", [10, None])
def test_a_file_beyond(tmp_path, far, nframes):
    path = tmp_path / "a.h5"
    file = far_file(path, far, nframes)
    file.commit()
    assert holds_ten(path, far)
    file.close(books(10, 10))
    assert path.stat().st_size > far and path.stat().st_blocks * 512 < 10 << 20
    began = time.monotonic()
    report = check(path)
    assert report.ok and report.frames == 10, report.problems
    assert holds_ten(path, far) and time.monotonic() - began < 10
    assert dumped(path) == [k + 1 for k in range(10)]


def dumped(path):
    """Pixel 3, 7 of each frame as HDF5's own tool reads it."""
    command = ["h5dump", "-d", f"/{DATASET}", "-s", "0,3,7", "-c", "10,1,1", path]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("h5dump is not installed")
    values = text.partition("DATA {")[2].partition("}")[0].splitlines()
    return [int(line.split(":")[1].strip(", ")) for line in values if ":" in line]


@pytest.mark.parametrize("far", FAR, ids=["4GB", "1TB"])
def test_recover_finds_frames_beyond_the_hole(tmp_path, far):
    path = tmp_path / "a.h5"
    far_file(path, far).abandon()  # the last five were not committed
    began = time.monotonic()
    report = recover(path)
    assert report.frames == 10 and time.monotonic() - began < 10
    assert check(path).ok and holds_ten(path, far)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_three_million_frames_in_one_file(tmp_path):
    """The cost of a commit and the memory do not grow with what was written before."""
    total, part = 3_000_000, 300_000
    file = SeriesFile.create(tmp_path / "a.h5", header(None), TINY)
    costs, memory = [], []
    for start in range(0, total, part):
        cost = 0.0
        for first in range(start, start + part, 5000):
            for begin in range(first, first + 5000, 500):
                file.append([tiny(frame) for frame in range(begin, begin + 500)])
            began = time.thread_time()
            file.commit()
            cost += time.thread_time() - began
        costs.append(cost)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    began = time.monotonic()
    file.close(books(total, total))
    closing = time.monotonic() - began
    print(f"commits {[round(cost, 2) for cost in costs]} s, rss {[m >> 10 for m in memory]} MB, close {closing:.2f} s")
    assert max(costs[-3:]) < 1.5 * min(costs[:3]) + 0.2
    assert memory[-1] - memory[0] < 64 << 10
    assert closing < 2
    with h5py.File(tmp_path / "a.h5") as h5:
        data = h5[DATASET]
        assert len(data) == total
        assert [int(data[k][0, 0]) for k in (0, 1_234_567, total - 1)] == [
            k % 65_535 + 1 for k in (0, 1_234_567, total - 1)
        ]


def a_million(path, spread, nframes):
    """A closed set of so many tiny frames, and how long its closing took."""
    total, size = 1_000_000, 512 * spread.parts
    file = FileSet.create(path, header(nframes), TINY, spread)
    for start in range(0, total, size):
        file.append([tiny(frame) for frame in range(start, min(total, start + size))])
        if not start % (size * 20):
            file.commit()
    look_quickly(path, file)
    began = time.monotonic()
    file.close(books(total, total))
    return time.monotonic() - began


def look_quickly(path, file=None):
    """Open and read single frames, all in less than a second, a frame in some milliseconds."""
    if file is not None:
        file.commit()
    began = time.monotonic()
    with h5py.File(path) as h5:
        data = h5[DATASET]
        assert len(data) == 1_000_000
        opened = time.monotonic() - began
        times = []
        for k in (0, 500_000, 999_999, 500_000, 123_456):
            began = time.monotonic()
            assert data[k][0, 0] == k % 65_535 + 1
            times.append(time.monotonic() - began)
    print(f"{path.name}: opened in {opened:.3f} s, frames in {[f'{1000 * t:.1f}' for t in times]} ms")
    assert opened < 1 and sorted(times)[2] < 0.05


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("nframes", [1_000_000, None])
@pytest.mark.parametrize(
    "spread", [Spread(2), Spread(4), Spread(1, 10_000), Spread(2, 1000), Spread(4, 10_000)], ids=str
)
def test_a_master_over_a_million_frames(tmp_path, spread, nframes):
    closing = a_million(tmp_path / "a.h5", spread, nframes)
    print(f"closed in {closing:.2f} s, master of {(tmp_path / 'a.h5').stat().st_size} bytes")
    assert closing < 2
    look_quickly(tmp_path / "a.h5")
