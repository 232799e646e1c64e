"""What Sardana adds: dead time of a point in a step scan, and how fly scans end. Real servers, the simulator.

Dead time of a point is its period less the exposure. In turn, so that all see the same machine:

bare        a script that calls the device: SoftwareTrigger, then nFramesAcquired until the frame is there
controller  our controller as a Pool calls it, every millisecond, but without a Pool
counter     a measurement group with Sardana's own dummy counter: what Sardana needs by itself
detector    a measurement group with the detector
"""

from __future__ import annotations

import argparse
import logging
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import tango
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tangods_detector.localtango import LocalTango  # noqa: E402
from tests.sardana.stack import Sardana  # noqa: E402
from tests.system.beamline import ON, Beamline, wait_for  # noqa: E402

PAUSE = 0.001  # s between two looks, as acqloop_sleep_time of the configuration that we ship
BUSY = (tango.DevState.RUNNING, tango.DevState.MOVING)


def bare(beamline: Beamline, points: int, exposure: float) -> Iterator[float]:
    """Time of each point, s."""
    detector = beamline.detector
    beamline.set(TriggerMode="SOFTWARE", nTriggers=points, nFramesPerTrigger=1, ExposureTime=exposure, FrameTime=0.0)
    detector.Arm()
    beamline.wait_running()
    for point in range(1, points + 1):
        begin = time.perf_counter()
        detector.SoftwareTrigger()
        while detector.nFramesAcquired < point:
            time.sleep(0.001)
        yield time.perf_counter() - begin
    beamline.wait_on()


def by_controller(beamline: Beamline, points: int, exposure: float) -> Iterator[float]:
    from sardana.pool import AcqSynch

    from sardana_ctrl import POOL_PATH

    sys.path.append(str(POOL_PATH))
    from StandardDetectorTwoDCtrl import StandardDetectorTwoDCtrl, State

    name = f"tango://{beamline.local.tango_host}/{beamline.detector_name}"
    properties = {"Devices": [name], "Dataset": "entry/instrument/detector/data", "ArmTimeout": 30.0}
    controller = StandardDetectorTwoDCtrl("bench", properties)
    controller.AddDevice(1)
    controller.SetCtrlPar("synchronization", AcqSynch.SoftwareStart)
    controller.SetAxisPar(1, "value_ref_enabled", True)
    controller.setFilename(1, str(beamline.new_file()))
    controller.PrepareOne(1, exposure, 1, controller.GetCtrlPar("latency_time"), points)
    for point in range(points):
        begin = time.perf_counter()
        controller.LoadOne(1, exposure, 1, 0.0)
        controller.PreStartAll()
        controller.StartOne(1, exposure)
        controller.StartAll()
        while look(controller) == State.Moving:
            time.sleep(PAUSE)
        assert len(controller.RefOne(1)) == 1
        if point < points - 1:  # the last one waits until the file is closed
            yield time.perf_counter() - begin
    controller.DeleteDevice(1)


def look(controller: Any) -> Any:
    """Its state, as a Pool asks for it."""
    controller.PreStateAll()
    return controller.StateOne(1)[0]


def by_group(sardana: Sardana, name: str, points: int, exposure: float) -> Iterator[float]:
    group = sardana.element(name)
    if name == "mg":
        sardana.element("det01").Filename = str(sardana.beamlines[0].new_file())
    group.IntegrationTime = exposure
    group.NbStarts = points
    states: queue.SimpleQueue[Any] = queue.SimpleQueue()
    heard = group.subscribe_event("State", tango.EventType.CHANGE_EVENT, lambda event: states.put(event.attr_value))
    group.Prepare()
    for point in range(points):
        while not states.empty():
            states.get()
        begin = time.perf_counter()
        group.Start()
        while states.get(timeout=5.0).value not in BUSY:
            pass
        while states.get(timeout=5.0).value in BUSY:
            pass
        if point < points - 1:
            yield time.perf_counter() - begin
    group.unsubscribe_event(heard)


def dead_times(sardana: Sardana, rounds: int, points: int, exposure: float) -> dict[str, float]:
    """Median dead time of a point, s, by way."""
    beamline = sardana.beamlines[0]
    ways: dict[str, Callable[[], Iterator[float]]] = {
        "bare": lambda: bare(beamline, points, exposure),
        "controller": lambda: by_controller(beamline, points, exposure),
        "counter": lambda: by_group(sardana, "mg_counter", points, exposure),
        "detector": lambda: by_group(sardana, "mg", points, exposure),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, measure in ways.items():
            found[way] += [taken - exposure for taken in measure()]
    return {way: median(values) for way, values in found.items()}


def fly_scans(sardana: Sardana, rounds: int) -> tuple[int, int, float, int]:
    """500 points at 200 Hz by hardware: scans, frames lost in all, longest time from the last frame to the file being
    closed (s), most files of a scan."""
    beamline, worst, lost, files = sardana.beamlines[0], 0.0, 0, 0
    sardana.group("mg_hw")
    for _ in range(rounds):
        before = sardana.files()
        sardana.door.start("timescan", 500, 0.004, 0.001)
        wait_for("the last frame", lambda: beamline.detector.nFramesAcquired == 500, 60)
        last = time.perf_counter()
        wait_for("the file closed", lambda: beamline.detector.state() in ON, 60)
        worst = max(worst, time.perf_counter() - last)
        sardana.door.wait()
        scan = sardana.last_scan()
        lost += 500 - sum(tag == n for n, tag in enumerate(scan.tags()))
        files = max(files, len(sardana.files() - before))
    return rounds, lost, worst, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--exposure", type=float, default=0.01, help="s")
    given: Any = parser.parse_args()
    logging.disable(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="sardana-bench-"))
    data = folder / "data"
    data.mkdir()
    console = Console()
    with LocalTango(folder / "tango") as local, Beamline(local, "bench", data) as beamline:
        with Sardana(local, "bench", folder, [beamline]) as sardana:
            sardana.run("defctrl", "DummyCounterTimerController", "ctctrl")
            sardana.run("defelem", "ct01", "ctctrl", 1)
            sardana.run("defmeas", "mg_counter", "ct01")
            times = dead_times(sardana, given.rounds, given.points, given.exposure)
            scans = fly_scans(sardana, given.rounds)
    table = Table(title=f"dead time of a point, {given.exposure:g} s exposure, medians")
    table.add_column("way")
    table.add_column("ms", justify="right")
    table.add_column("over bare, ms", justify="right")
    for way, value in times.items():
        table.add_row(way, f"{value * 1e3:.1f}", f"{(value - times['bare']) * 1e3:.1f}")
    console.print(table)
    added = times["detector"] - times["counter"]
    console.print(f"the detector adds {added * 1e3:.1f} ms to a point of a measurement group")
    number, lost, worst, files = scans
    console.print(
        f"{number} fly scans of 500 points at 200 Hz: {lost} frames lost, {files} file each, "
        f"at most {worst:.3f} s from the last frame to the file closed"
    )


if __name__ == "__main__":
    main()
