"""Other programs open the file while it grows, and after."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.system.beamline import DATASET, Beamline, wait_for
from tests.system.readers import READERS

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def growing(beamline: Beamline) -> Path:
    """A file in the middle of its series."""
    file = beamline.set(ExposureTime=0.0005, FrameTime=0.001, nFramesPerTrigger=1_000_000)
    beamline.detector.Arm()
    wait_for("a first commit with frames", lambda: file.exists() and beamline.snapshot()["written"] > 1500)
    return file


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_growing_file(beamline: Beamline, growing: Path, read: Callable[[Path], None]) -> None:
    for _ in range(3):
        read(growing)
    assert beamline.snapshot()["file"] == str(growing), "it was being written all the time"


@pytest.fixture(scope="module")
def closed(beamline: Beamline, growing: Path) -> Path:
    """The same file when the series is over."""
    beamline.detector.Stop()
    beamline.wait_on()
    return growing


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_closed_file(closed: Path, read: Callable[[Path], None]) -> None:
    read(closed)


def stamp(image: np.ndarray) -> int:
    return int(image.reshape(-1).view(np.uint8)[:8].view("<u8")[0])


def refreshed(data: h5py.Dataset, status: h5py.Dataset) -> int:
    """The newest frame of a file that is held open, -1: none yet."""
    status.id.refresh()
    data.id.refresh()
    return max(np.flatnonzero(status[:100_000]).tolist(), default=-1)


def read_in_a_loop(file: Path, seconds: float, results: multiprocessing.Queue[tuple[int, int, str]]) -> None:
    """Open, look at the newest and at some other indexed frame, close; again and again."""
    import hdf5plugin  # noqa: F401

    opens = wrong = 0
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            with h5py.File(file, "r") as h5:
                written = np.flatnonzero(h5[DATASET].parent["frame_status"][:100_000])
                opens += 1
                for number in written[[0, len(written) // 2, -1]] if len(written) else []:
                    wrong += stamp(h5[DATASET][number]) != number
        results.put((opens, wrong, ""))
    except Exception as exc:  # to the test, which fails on it
        results.put((opens, wrong, f"{type(exc).__name__}: {exc}"))


@pytest.mark.slow
def test_two_readers_in_a_tight_loop_and_one_that_refreshes(beamline: Beamline, closed: Path) -> None:
    file = beamline.set(ExposureTime=0.001, FrameTime=0.002, nFramesPerTrigger=100_000)
    beamline.detector.Arm()
    wait_for("the file", lambda: file.exists() and beamline.snapshot()["written"] > 0)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    readers = [spawn.Process(target=read_in_a_loop, args=(file, 12.0, results)) for _ in range(2)]
    for reader in readers:
        reader.start()
    with h5py.File(file, "r") as h5:
        data, status = h5[DATASET], h5[DATASET].parent["frame_status"]
        last = -1
        for _ in range(4):
            last = wait_for(
                "newer frames", lambda last=last: newest if (newest := refreshed(data, status)) > last else 0
            )
            assert stamp(data[last]) == last
    outcomes = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    beamline.detector.Stop()
    beamline.wait_on()
    assert [(wrong, error) for _, wrong, error in outcomes] == [(0, ""), (0, "")]
    assert sum(opens for opens, _, _ in outcomes) > 1000
