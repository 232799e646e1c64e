"""Detector GUI: a Tango and HTTP client that imports neither server. `python -m taurus_gui`, or `detector-gui`."""
