"""Hours in minutes: many series, many interrupted ones, and one of a million frames leave both servers as they were."""

from __future__ import annotations

import random
import time
from pathlib import Path

import psutil
import pytest

from tests.system.beamline import ON, Beamline, wait_for

pytestmark = [pytest.mark.system, pytest.mark.slow]
QUICK = {"ExposureTime": 0.0001, "FrameTime": 0.0002}  # 5 000 frames/s


def usage(beamline: Beamline) -> dict[str, tuple[int, int, int]]:
    """Threads, descriptors, resident bytes of each server."""
    found = {}
    for server in ("Detector", "StreamReceiver"):
        process = psutil.Process(beamline.local.process(f"{server}/{beamline.instance}").pid)
        found[server] = (process.num_threads(), process.num_fds(), process.memory_info().rss)
    return found


def assert_unchanged(beamline: Beamline, before: dict[str, tuple[int, int, int]], more_memory: float = 16e6) -> None:
    for server, (threads, descriptors, resident) in usage(beamline).items():
        assert threads <= before[server][0] + 1, server
        assert descriptors <= before[server][1] + 2, server
        assert resident <= before[server][2] + more_memory, server


@pytest.mark.timeout(900)
@pytest.mark.parametrize("series", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_series_in_a_row(own_beamline: Beamline, series: int) -> None:
    def one(number: int) -> None:
        file = own_beamline.acquire(**QUICK, nFramesPerTrigger=20)
        if number % 25 == 0:
            own_beamline.assert_frames(file, range(20))
        Path(file).unlink()

    for number in range(30):  # caches and pools fill
        one(number)
    before = usage(own_beamline)
    for number in range(series):
        one(number)
    assert_unchanged(own_beamline, before)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cycles", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_stop_and_abort_at_random_moments(own_beamline: Beamline, cycles: int) -> None:
    own_beamline.good_series()
    for number in range(cycles):
        mode = random.choice(["INTERNAL", "SOFTWARE"])
        file = own_beamline.set(**QUICK, TriggerMode=mode, nFramesPerTrigger=random.choice([3, 100_000]))
        own_beamline.detector.Arm()
        time.sleep(random.choice([0, random.uniform(0, 0.1)]))  # the moment
        begun = time.monotonic()
        random.choice([own_beamline.detector.Stop, own_beamline.detector.Abort])()
        assert own_beamline.wait_end() in ON, f"cycle {number}: {own_beamline.detector.status()}"
        assert time.monotonic() - begun < 3
        file.unlink(missing_ok=True)
        if number == 20:
            before = usage(own_beamline)
    assert_unchanged(own_beamline, before)
    own_beamline.good_series()


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_million_frames(own_beamline: Beamline) -> None:
    """Memory is flat in the number of frames, and the last costs what the first cost."""
    file = own_beamline.set(**QUICK, nFramesPerTrigger=1_000_000)
    own_beamline.detector.Arm()
    wait_for("a tenth", lambda: own_beamline.detector.nFramesWritten > 100_000, limit=300)
    before = usage(own_beamline)
    assert own_beamline.wait_end(limit=900) in ON
    assert_unchanged(own_beamline, before, more_memory=30e6)
    assert own_beamline.detector.nFramesMissing == 0
    own_beamline.assert_frames(file, range(0, 1_000_000, 9973))
