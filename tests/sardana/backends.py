"""Detectors that are harder to scan with than the simulator."""

import time

from tangods_detector.hw.simulator import Simulator
from tangods_detector.settings import Series, TriggerMode


class InternalOnly(Simulator):
    """It knows no trigger: each start of a scan is a series of its own."""

    trigger_modes = frozenset({TriggerMode.INTERNAL})


class SlowToArm(Simulator):
    """Longer than Sardana's clients wait for an answer, 3 s."""

    def arm(self, series: Series) -> None:
        time.sleep(3.5)
        super().arm(series)
