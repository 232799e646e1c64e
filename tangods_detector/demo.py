"""The whole system on one machine in one command: database, both servers, one series, the file checked and drawn."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the bitshuffle filter
import numpy as np
import tango
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.tree import Tree

from tangods_detector.hw.simulator import Simulator
from tangods_detector.hw.simulator_images import SimulatorOptions, expected_frame
from tangods_detector.localtango import LocalTango
from tangods_detector.options import parse_options
from tangods_detector.register import checked_registration, register
from tangods_detector.settings import Settings
from tangods_receiver.errors import ConfigError, DaqError, HardwareError
from tangods_receiver.recovery import check

DETECTOR, RECEIVER = "demo/detector/1", "demo/receiver/1"
DATASET = "entry/instrument/detector/data"
READY_LIMIT = 30.0  # s, from the start of the servers to ON


def run_demo(
    console: Console,
    frames: int,
    rate: float,
    size: tuple[int, int],
    output: Path | None,
    keep: bool,
    gui: bool = False,
) -> None:
    """Acquire `frames` images of `size` (rows, columns) at `rate` Hz; DaqError says which step failed. `keep`: all goes
    on until Ctrl-C; `gui`: until its window is closed.

    The data file and the picture stay in `output` (a new folder if None), everything else goes again."""
    if gui and not importlib.util.find_spec("taurus"):
        raise ConfigError("--gui: the packages of the window are missing; install tangods-detector[gui]")
    output = _output_folder(output)
    servers = Path(tempfile.mkdtemp(prefix="servers-", dir=output))
    options = [f"width = {size[1]}", f"height = {size[0]}"]
    with LocalTango(servers) as local:
        console.print(f"[bold]1.[/] Tango database on {local.tango_host}, SQLite in {servers}")
        detector = _start_servers(console, local, output, options)
        file = _acquire(console, detector, output, frames, rate)
        _verify(console, file, frames, options, detector)
        _show_tree(console, file)
        console.print(f"[bold]6.[/] picture: {_draw(file, output / (file.stem + '.png'))}")
        if keep or gui:
            _stay(console, local, gui)
    shutil.rmtree(servers)


def _output_folder(output: Path | None) -> Path:
    if output is None:
        return Path(tempfile.mkdtemp(prefix="detector-demo-"))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"output folder {output}: {exc.strerror}; choose another with --output") from exc
    return output.resolve()


def _start_servers(console: Console, local: LocalTango, output: Path, options: list[str]) -> tango.DeviceProxy:
    _put(local, "Detector", DETECTOR, {"Backend": "simulator", "BackendOptions": options, "Receiver": RECEIVER})
    local.start("Detector/demo")
    detector = local.device(DETECTOR)
    # the simulator's stream is on a free port, which the properties of both then name
    _wait_for("the detector's stream", lambda: list(detector.Endpoints or []))
    (endpoint,) = detector.Endpoints
    _put(local, "Detector", DETECTOR, {"BackendOptions": [*options, f"port = {endpoint.rpartition(':')[2]}"]})
    _put(local, "StreamReceiver", RECEIVER, {"Root": str(output), "Endpoints": endpoint, "Http": "127.0.0.1:0"})
    local.start("StreamReceiver/demo")
    _wait_for(f"{DETECTOR} to be ON", lambda: detector.state() == tango.DevState.ON, lambda: detector.status())
    console.print(f"[bold]2.[/] Detector {DETECTOR} and StreamReceiver {RECEIVER} run, each in a process of its own")
    return detector


def _put(local: LocalTango, klass: str, device: str, properties: dict[str, Any]) -> None:
    entry = {"servers": {klass: {"demo": {klass: {device: {"properties": properties}}}}}}
    register(local.database, checked_registration(entry, "demo"))


def _acquire(console: Console, detector: tango.DeviceProxy, output: Path, frames: int, rate: float) -> Path:
    detector.ExposureTime = 0.9 / rate
    detector.FrameTime = 1 / rate
    detector.TriggerMode = "INTERNAL"
    detector.nTriggers = 1
    detector.nFramesPerTrigger = frames
    detector.DestinationFilename = str(output / "demo_{number}.h5")
    rows, columns = detector.FrameShape
    console.print(f"[bold]3.[/] {frames} frames of {rows} x {columns} {detector.DataType} at {rate:g} Hz")
    begun = time.monotonic()
    detector.Arm()
    limit = begun + frames / rate + READY_LIMIT
    columns_ = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns_, console=console) as bar:
        task = bar.add_task("written", total=frames)
        while (state := detector.state()) in (tango.DevState.MOVING, tango.DevState.RUNNING):
            bar.update(task, completed=detector.nFramesWritten)
            if time.monotonic() > limit:
                raise DaqError(f"the series did not end in time: {detector.status()}")
            time.sleep(0.05)
        bar.update(task, completed=detector.nFramesWritten)
    if state not in (tango.DevState.ON, tango.DevState.ALARM):
        raise HardwareError(f"the series failed, {state}: {detector.status()}")
    took = time.monotonic() - begun
    file = Path(detector.LastFilename)
    size = file.stat().st_size / 1e6
    console.print(f"[bold]4.[/] file: {file}, {size:.1f} MB; {frames / took:.1f} frames/s from Arm to ON")
    return file


def _verify(console: Console, file: Path, frames: int, options: list[str], detector: tango.DeviceProxy) -> None:
    report = check(file)
    if not report.ok or report.frames != frames:
        raise DaqError(f"{file} is not right: " + "; ".join(report.lines()))
    simulated: SimulatorOptions = parse_options(Simulator.Options, options)
    with h5py.File(file) as h5:
        data = h5[DATASET]
        wrong = [n for n in range(frames) if not np.array_equal(data[n], expected_frame(simulated, Settings(), n))]
    if wrong:
        raise DaqError(f"{file}: {len(wrong)} of {frames} frames differ from what was sent, first: frame {wrong[0]}")
    console.print(f"[bold]5.[/] checked: index, checksums and books; all {frames} frames equal what was sent")


def _show_tree(console: Console, file: Path) -> None:
    def grow(tree: Tree, group: h5py.Group) -> None:
        for name, item in group.items():
            kind = item.attrs.get("NX_class", "")
            if isinstance(item, h5py.Group):
                grow(tree.add(f"{name} [dim]{kind}[/]"), item)
            else:
                tree.add(f"{name} [dim]{_summary(item)}[/]")

    with h5py.File(file) as h5:
        tree = Tree(file.name)
        grow(tree, h5)
        console.print(Padding(tree, (0, 0, 0, 3)))


def _summary(dataset: h5py.Dataset) -> str:
    if dataset.shape:
        return f"{' x '.join(map(str, dataset.shape))} {dataset.dtype}"
    value = dataset[()]
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if isinstance(value, float):
        text = f"{value:.10g}"
    return f"{text} {dataset.attrs.get('units', '')}".strip()[:70]


def _draw(file: Path, picture: Path) -> Path:
    """One frame and the sum over all, side by side, colours on a logarithmic scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    with h5py.File(file) as h5:
        data = h5[DATASET]
        middle = len(data) // 2
        total = np.zeros(data.shape[1:])
        for frame in data:
            total += frame
        images = {f"frame {middle}": data[middle].astype(float), f"sum of {len(data)} frames": total}
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, image) in zip(figure.subplots(1, 2), images.items(), strict=True):
        image.reshape(-1)[:8] = 0  # the simulator's frame stamp
        top = max(2.0, float(np.percentile(image, 99.99)))
        drawn = axes.imshow(image + 1, norm=LogNorm(1, top), cmap="inferno", interpolation="nearest")
        axes.set(title=title, xlabel="column", ylabel="row")
        figure.colorbar(drawn, ax=axes, label="counts + 1", shrink=0.85)
    figure.suptitle(str(file.name))
    figure.savefig(picture, dpi=110)
    return picture


def _stay(console: Console, local: LocalTango, gui: bool) -> None:
    page = local.device(RECEIVER).HttpAddress
    console.print(
        f"\nRunning until Ctrl-C. In another terminal:  export TANGO_HOST={local.tango_host}\n"
        f"then Jive, the GUI or itango:  det = Device('{DETECTOR}'); det.Arm(); det.State()\n"
        f"The live page: {page}"
    )
    try:
        if gui:
            command = [sys.executable, "-m", "taurus_gui", DETECTOR]
            subprocess.run(command, env={**os.environ, "TANGO_HOST": local.tango_host}, check=False)
            return
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("ending")


def _wait_for(what: str, done: Callable[[], object], status: Callable[[], str] = lambda: "") -> None:
    end = time.monotonic() + READY_LIMIT
    while not done():
        if time.monotonic() > end:
            raise DaqError(f"waited {READY_LIMIT:.0f} s for {what}, in vain. {status()}")
        time.sleep(0.05)
