"""DECTRIS camserver (PILATUS2, PILATUS3) for tests: text protocol, image files, faults.

What it does not do: nothing is measured; flat field, rate correction and bad pixel maps only change the header, but
for the dead pixels of the map; the sums of `nexpframe` are products."""

from tangods_detector.simulators.camserver.failures import Failures
from tangods_detector.simulators.camserver.options import CamserverOptions
from tangods_detector.simulators.camserver.server import CamserverSimulator

__all__ = ["CamserverOptions", "CamserverSimulator", "Failures"]
