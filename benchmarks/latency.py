"""How long `Arm` takes, and how long it takes from the last frame to ON: both devices, a real database, the simulator.

Arm: from the command to the state RUNNING (file open, simulator armed, waiting for a software trigger). End: from the
arrival of the last frame (its `arrival_time` in the file) to the state ON. States are asked for every millisecond.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import h5py
import tango
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tangods_detector.localtango import LocalTango
from tangods_detector.register import checked_registration, register

DETECTOR, RECEIVER = "bench/det/1", "bench/rec/1"
OPTIONS = ["width = 1024", "height = 1024"]
ON = (tango.DevState.ON, tango.DevState.ALARM)
LIMIT = 20.0  # s for each wait


def put(local: LocalTango, klass: str, device: str, properties: dict[str, object]) -> None:
    entry = {"servers": {klass: {"bench": {klass: {device: {"properties": properties}}}}}}
    register(local.database, checked_registration(entry, "latency"))


def start(local: LocalTango, root: str) -> tango.DeviceProxy:
    """Both servers, each in its process; the detector when it is ON."""
    put(local, "Detector", DETECTOR, {"Backend": "simulator", "BackendOptions": OPTIONS, "Receiver": RECEIVER})
    local.start("Detector/bench")
    detector = local.device(DETECTOR)
    deadline = time.monotonic() + LIMIT
    while not (endpoints := list(detector.Endpoints or [])):
        if time.monotonic() > deadline:
            sys.exit("the simulator has no endpoint")
        time.sleep(0.05)
    put(local, "StreamReceiver", RECEIVER, {"Root": root, "Endpoints": endpoints, "Http": ""})
    local.start("StreamReceiver/bench")
    wait_for(detector, *ON)
    return detector


def wait_for(detector: tango.DeviceProxy, *states: tango.DevState) -> float:
    """Unix time when one of these states was first seen."""
    deadline = time.monotonic() + LIMIT
    while (state := detector.state()) not in states:
        if state == tango.DevState.FAULT or time.monotonic() > deadline:
            sys.exit(f"{state} instead of {states[0]}: {detector.status()}")
        time.sleep(0.001)
    return time.time()


def one_series(detector: tango.DeviceProxy, path: Path) -> tuple[float, float, float]:
    """Seconds until `Arm` returned, until RUNNING, and from the last frame to ON."""
    detector.DestinationFilename = str(path)
    begun = time.time()
    detector.Arm()
    returned = time.time()
    armed = wait_for(detector, tango.DevState.RUNNING)
    detector.SoftwareTrigger()
    on = wait_for(detector, *ON)
    with h5py.File(path) as file:
        arrived = file["entry/instrument/detector/arrival_time"][()]
    if len(arrived) != detector.nFramesPerTrigger:
        sys.exit(f"{path.name}: {len(arrived)} of {detector.nFramesPerTrigger} frames")
    path.unlink()
    return returned - begun, armed - begun, on - float(arrived.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--series", type=int, default=30, help="how many, at least 20 for the bars; default: 30")
    count = parser.parse_args().series
    console = Console() if sys.stdout.isatty() else Console(width=100)
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, LocalTango(Path(folder) / "tango") as local:
        detector = start(local, folder)
        detector.ExposureTime, detector.FrameTime = 0.001, 0.01
        detector.TriggerMode, detector.nTriggers, detector.nFramesPerTrigger = "SOFTWARE", 1, 10
        one_series(detector, Path(folder) / "warm.h5")
        times = [
            one_series(detector, Path(folder) / f"{k}.h5")
            for k in track(range(count), "series", console=console, transient=True)
        ]
    table = Table(title=f"{count} series of 10 frames, ms", title_justify="left")
    for name in ("", "median", "lowest", "highest", "bar"):
        table.add_column(name, justify="right" if name else "left")
    titles = ("Arm returns", "Arm to RUNNING", "last frame to ON")
    for title, values, bar in zip(titles, zip(*times, strict=True), ("", "< 100", "< 100"), strict=True):
        table.add_row(title, *(f"{1000 * f(values):.1f}" for f in (median, min, max)), bar)
    console.print(table)


if __name__ == "__main__":
    main()
