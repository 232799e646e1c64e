"""Detector devices in Sardana: controllers, macros and a recorder. Tango clients: they import nothing of the servers.

Sardana loads the files in `controllers`, `macros` and `recorders` by their paths; they are no packages."""

from pathlib import Path

HERE = Path(__file__).parent

POOL_PATH = HERE / "controllers"  # property PoolPath of a Pool
MACRO_PATH = HERE / "macros"  # property MacroPath of a MacroServer
RECORDER_PATH = HERE / "recorders"  # property RecorderPath of a MacroServer
