"""Two hundred series in a row leave both servers as they were."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.system.beamline import Beamline

pytestmark = [pytest.mark.system, pytest.mark.slow]
SERIES = int(os.environ.get("SOAK_SERIES", "200"))


def usage(beamline: Beamline) -> dict[str, tuple[int, int, int]]:
    """Threads, descriptors, resident bytes of each server."""
    found = {}
    for server in ("Detector", "StreamReceiver"):
        process = psutil.Process(beamline.local._processes[f"{server}/{beamline.instance}"].pid)
        found[server] = (process.num_threads(), process.num_fds(), process.memory_info().rss)
    return found


@pytest.mark.timeout(600)
def test_many_series(own_beamline: Beamline) -> None:
    def one(number: int) -> None:
        settings = {"ExposureTime": 0.0002, "FrameTime": 0.0004, "nFramesPerTrigger": 20}
        file = own_beamline.acquire(**settings)
        if number % 25 == 0:
            own_beamline.assert_frames(file, range(20))
        Path(file).unlink()

    for number in range(30):  # caches and pools fill
        one(number)
    before = usage(own_beamline)
    for number in range(SERIES):
        one(number)
    after = usage(own_beamline)
    for server, (threads, descriptors, resident) in after.items():
        assert threads <= before[server][0] + 1, server
        assert descriptors <= before[server][1] + 2, server
        assert resident <= before[server][2] + 16e6, server
