"""A DECTRIS control unit (SIMPLON: EIGER, EIGER2, PILATUS4) for tests, faults included.

What it does not do: the filewriter writes no files, `/data` is empty; nothing is ever measured."""

from tangods_detector.simulators.eiger.failures import Failures
from tangods_detector.simulators.eiger.options import EigerOptions
from tangods_detector.simulators.eiger.server import EigerSimulator

__all__ = ["EigerOptions", "EigerSimulator", "Failures"]
