"""kill -9 of the receiver in mid-series: what it had written is there."""

from __future__ import annotations

import random
import time
from pathlib import Path

import h5py
import pytest
import tango

from tangods_receiver.recovery import check, recover
from tests.system.beamline import DATASET, Beamline, wait_for
from tests.system.readers import READERS

pytestmark = [pytest.mark.system, pytest.mark.slow]
KILLS = 20


def readable(file: Path) -> bool:
    with h5py.File(file) as h5:
        return bool(h5[DATASET][0].any())


@pytest.mark.timeout(300)
def test_kill_at_random_moments(own_beamline: Beamline) -> None:
    random.seed(time.time_ns())
    for number in range(KILLS):
        file = own_beamline.set(ExposureTime=0.0005, FrameTime=0.001, nFramesPerTrigger=100_000)
        own_beamline.detector.Arm()
        wait_for("frames", lambda: own_beamline.snapshot()["written"] > 5)
        if number == 0:
            wait_for("a commit", lambda file=file: readable(file))
        time.sleep(random.uniform(0, 2.2 if number % 4 == 0 else 0.3))  # the moment: before, at or after a commit
        written = own_beamline.snapshot()["written"]
        own_beamline.stop_receiver(kill=True)
        if number == 0:
            for read in READERS.values():
                read(file)
        found = recover(file)
        assert found.frames >= written, f"round {number}: {written} writes had returned"
        report = check(file)
        assert report.ok, report.lines()
        assert report.frames == found.frames
        own_beamline.assert_frames(file, range(0, found.frames, max(1, found.frames // 20)))
        own_beamline.start_receiver()
        own_beamline.wait_state(tango.DevState.FAULT)
        own_beamline.detector.Reset()
        own_beamline.wait_on()
        file.unlink()
    own_beamline.good_series()
