"""Detector: one Tango device class for every area detector."""

from tangods_receiver import __version__

__all__ = ["__version__"]
