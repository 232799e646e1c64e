"""A detector that knows no trigger: each start of a scan is a series of its own."""

from tangods_detector.hw.simulator import Simulator
from tangods_detector.settings import TriggerMode


class InternalOnly(Simulator):
    trigger_modes = frozenset({TriggerMode.INTERNAL})
