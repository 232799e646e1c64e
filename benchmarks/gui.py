"""The GUI's bars: shown rate, longest stall of its event loop, what it costs the recording, and its start.

    python benchmarks/gui.py [--seconds 20] [--rounds 3] [--size 2167 2070] [--dtype uint32] [--rate 10]

Prints a line for each figure. Needs Xvfb, or a display."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

from tangods_detector.localtango import LocalTango  # noqa: E402
from tests.system.beamline import Beamline  # noqa: E402

BEAT = 10  # ms between two beats of the heart
PROBE = """
import json, os, sys, time
imported = time.monotonic()
from taurus_gui.app import application
from taurus_gui import theme
app = application()
import taurus_gui.window
from taurus.external.qt import Qt
begun = time.monotonic()
theme.apply("light")
window = taurus_gui.window.DetectorWindow([sys.argv[1]])
window.show()
beats, first = [], []
detector = window.detectors[0]
detector.source.pictured.connect(lambda _: first or first.append(time.monotonic() - begun))
heart = Qt.QTimer()
heart.setTimerType(Qt.Qt.PreciseTimer)
heart.timeout.connect(lambda: beats.append(time.monotonic()))
heart.start({beat})
tell = Qt.QTimer()

def report():
    gaps = [b - a for a, b in zip(beats, beats[1:])]
    picture = detector.source.picture
    print(json.dumps(dict(time=time.monotonic(), drawn=detector.live.pictures_drawn, first=first[0] if first else None,
        stall=max(gaps, default=0.0), stalls=sum(g > 0.1 for g in gaps), state=detector.source.state,
        shown=picture.number if picture else -1, factor=picture.factor if picture else 0,
        pixels=picture.pixels.shape if picture else None, imports=begun - imported,
        cpu=time.process_time(), gui=time.thread_time())), flush=True)
    del beats[:-1]

tell.timeout.connect(report)
tell.start(1000)
app.exec_()
"""


@contextlib.contextmanager
def screen() -> Iterator[dict[str, str]]:
    """The environment of a screen of its own."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1920x1200x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as told:
        number = told.readline().strip()
    try:
        yield {**os.environ, "DISPLAY": f":{number}", "QT_QPA_PLATFORM": "xcb"}
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def window(device: str, environment: dict[str, str], reports: list[dict[str, Any]]) -> Iterator[None]:
    """A window in a process of its own; what it tells each second."""
    code = PROBE.replace("{beat}", str(BEAT))
    command = [sys.executable, "-W", "ignore", "-c", code, device]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    import threading

    assert process.stdout is not None
    lines = process.stdout

    def read() -> None:
        for line in lines:
            reports.append(json.loads(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end = time.monotonic() + 60
    while not reports or reports[-1]["state"] is None:
        if time.monotonic() > end or process.poll() is not None:
            raise SystemExit("the window did not come up")
        time.sleep(0.1)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        reader.join()


def record(line: Beamline, frames: int, period: float) -> float:
    """Frames per second from the first to the last that is written; `period` 0: as fast as it goes."""
    line.set(FrameTime=period, ExposureTime=min(0.001, period or 0.001), nFramesPerTrigger=frames)
    line.detector.Arm()
    line.wait_running()
    begun = time.monotonic()
    line.wait_end(600)
    took = time.monotonic() - begun
    assert line.detector.nFramesWritten == frames, line.detector.status()
    Path(line.detector.LastFilename).unlink()
    return frames / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(2167, 2070))
    parser.add_argument("--dtype", default="uint32")
    parser.add_argument("--rate", type=float, default=10.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gui-bench-", dir="/dev/shm"))
    with LocalTango(folder / "servers") as local, screen() as environment:
        line = Beamline(local, "bench", folder, Http="127.0.0.1:0")
        line.options = [f"width = {options.size[1]}", f"height = {options.size[0]}", f"dtype = {options.dtype}"]
        with line:
            device = f"tango://{local.tango_host}/{line.detector_name}"
            run(options, line, device, environment)
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def run(options: argparse.Namespace, line: Beamline, device: str, environment: dict[str, str]) -> None:
    frames = round(options.seconds * options.rate)
    alone: list[float] = []
    watched: list[float] = []
    rates: list[float] = []
    stalls: list[float] = []
    starts: list[float] = []
    costs: list[list[float]] = []
    paced: list[float] = []
    record(line, 20, 0.0)  # warm; and there is an image
    fast = max(50, round(record(line, 100, 0.0) * options.seconds / 2))
    for _ in range(options.rounds):
        alone.append(record(line, fast, 0.0))
        reports: list[dict[str, Any]] = []
        with window(device, environment, reports):
            time.sleep(3)
            starts.append(next((r["first"] for r in reports if r["first"]), float("nan")))
            time.sleep(1)
            mark = len(reports)
            paced.append(record(line, frames, 1 / options.rate))
            steady = reports[mark + 1 : -1]
            seconds = steady[-1]["time"] - steady[0]["time"]
            rates.append((steady[-1]["drawn"] - steady[0]["drawn"]) / seconds)
            stalls += [r["stall"] for r in steady]
            drawn = steady[-1]["drawn"] - steady[0]["drawn"]
            costs += [[(steady[-1][key] - steady[0][key]) / drawn for key in ("gui", "cpu")]]
            watched.append(record(line, fast, 0.0))
        about = steady[-1]
    print(f"{options.size[0]} x {options.size[1]} {options.dtype} at {options.rate:g} Hz, {options.rounds} rounds")
    median, slow = statistics.median, sum(s > 0.1 for s in stalls)
    ratio = median(w / a for w, a in zip(watched, alone, strict=True))
    gui, all_ = (1000 * median(cost[n] for cost in costs) for n in (0, 1))
    print(f"shown            {median(rates):.2f} pictures/s (least {min(rates):.2f}), {about['pixels']}: each pixel")
    print(f"                 of them for {about['factor']} x {about['factor']} of the detector's")
    print(f"cost             {gui:.1f} ms of the GUI's thread for a picture, {all_:.1f} ms of all its threads")
    print(f"longest stall    {1000 * max(stalls):.0f} ms, {1000 * median(stalls):.0f} ms in the median second; more")
    print(f"                 than 100 ms in {slow} of {len(stalls)} seconds")
    print(f"recording        {median(paced):.2f} Hz of {options.rate:g} with the GUI; as fast as it goes, sharing")
    print(f"                 the cores: {median(alone):.1f} Hz alone, {median(watched):.1f} with it, ratio {ratio:.3f}")
    print(f"first image      {median(starts):.2f} s after the imports (longest {max(starts):.2f} s), which took")
    print(f"                 {about['imports']:.1f} s; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
