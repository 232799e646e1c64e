"""What it costs to send a camera's frames from where they lie: ours with pretended libraries, beside a C program.

A Balor, and an ORCA Lightning, whose frames come as fast as they are taken (software triggers: each waits for room, so
none is lost) push 24 MB frames over loopback to `sink.c`, which forgets them; `generator.c` does the same from as many
buffers. In each round all come once, in an order shuffled anew; and ours with frames of 0.2 and 2 MB, too: what the
data thread, in Python, takes of the processor for each. The camera paints its buffers once, before the series, as if by
DMA.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from trial import process

from build import HERE, build
from tangods_detector.hw.andor import Andor
from tangods_detector.hw.andor_settings import AndorOptions
from tangods_detector.hw.base import Phase
from tangods_detector.hw.hamamatsu import Hamamatsu
from tangods_detector.hw.hamamatsu_options import HamamatsuOptions
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.simulators import andor, hamamatsu

SHAPES = {"0.2 MB": (256, 400), "2 MB": (1000, 1000), "24 MB": (2904, 4128)}
LIGHTNING = {**SHAPES, "24 MB": (2592, 4608)}  # its whole sensor; what is compared is bytes in a second
OURS = {"Andor Balor": SHAPES, "Hamamatsu Lightning": LIGHTNING}
WAYS = (("C", "24 MB"), *((camera, size) for camera in OURS for size in SHAPES))
BUFFERS = 8
DELAY = 0.3  # s between start message and first frame
LIMIT = 60.0
BAR = 0.9


@dataclass(frozen=True)
class Trial:
    """`cpu` of the sender's process and `thread` of its data thread, us per frame; 0: not measured."""

    way: str
    size: str
    rate: float
    cpu: float
    thread: float = 0.0


def backend_of(camera: str, library: str, nbytes: int) -> Andor | Hamamatsu:
    """Of which some buffers are never sent from: two of the one, two or more of the other, by which it is safe."""
    if camera == "Andor Balor":
        return Andor(AndorOptions(library=library, memory=nbytes * (BUFFERS + 3) + 2**20, buffers=BUFFERS + 2))
    return Hamamatsu(HamamatsuOptions(library=library, memory=nbytes * (BUFFERS + 2) + 2**20))


def stream(camera: str, library: str, rows: str, columns: str, frames: str) -> None:
    """One series in this process; what it took of the processor, in s."""
    height, width, count = int(rows), int(columns), int(frames)
    backend = backend_of(camera, library, 2 * height * width)
    backend.connect()
    print("endpoint", *backend.endpoints(), flush=True)
    roi = (0, 0, width, height)
    settings = Settings(2e-5, trigger_mode=TriggerMode.SOFTWARE, n_frames_per_trigger=count, roi=roi)
    backend.arm(Series(1, backend.configure(settings)))
    time.sleep(DELAY)
    clock = time.pthread_getcpuclockid(backend.data_thread)
    thread, used = time.clock_gettime(clock), time.process_time()
    backend.start()
    backend.trigger()
    while backend.status().phase is Phase.ACQUIRING:
        time.sleep(0.02)
    print(f"used {time.clock_gettime(clock) - thread:.6f} {time.process_time() - used:.6f}", flush=True)
    time.sleep(LIMIT)  # the last frames are still under way


def measure(way: str, size: str, frames: int, libraries: dict[str, Path]) -> Trial:
    rows, columns = OURS.get(way, SHAPES)[size]
    if way == "C":
        values = {"-r": rows, "-c": columns, "-n": frames, "-q": BUFFERS, "-d": DELAY, "-t": LIMIT, "-o": 1}
        argv = [str(HERE / "build/generator"), *(str(x) for pair in values.items() for x in pair)]
    else:
        argv = [sys.executable, __file__, "stream", way, str(libraries[way]), str(rows), str(columns), str(frames)]
    with process(argv) as sender:
        endpoint = sender.wait_for(r"^endpoint (\S+)")[1][1]
        with process([str(HERE / "build/sink"), "-m", "null", "-e", endpoint, "-q", "4"]) as sink:
            sink.wait_for(r"\bopened\b")
            used = sender.cpu()
            closed = sink.wait_for(r"\bclosed (\d+) ([\d.]+)")[1]
            if way == "C":
                thread, total = 0.0, sender.cpu() - used
            else:
                found = sender.wait_for(r"^used ([\d.]+) ([\d.]+)")[1]
                thread, total = float(found[1]), float(found[2])
    return Trial(way, size, (frames - 1) / float(closed[2]), 1e6 * total / frames, 1e6 * thread / frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=300, help="of 24 MB in each series")
    parser.add_argument("--json", type=Path, help="all trials, for other tables")
    wish = parser.parse_args()
    build()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    folder = Path(tempfile.mkdtemp(prefix="cameras-"))
    trials = []
    try:
        libraries = {
            "Andor Balor": andor.make(folder, ["balor SIM-1"], ["speed 100"]),
            "Hamamatsu Lightning": hamamatsu.make(folder, ["lightning 1"], ["set pace 0"]),
        }
        for _ in range(wish.rounds):
            for way, size in random.sample(WAYS, len(WAYS)):
                trials.append(measure(way, size, wish.frames if size == "24 MB" else 10 * wish.frames, libraries))
    finally:
        shutil.rmtree(folder)
    if wish.json:
        wish.json.write_text(json.dumps([asdict(trial) for trial in trials]))
    c = [t for t in trials if t.way == "C"]
    found = Table(title=f"24 MB frames to a null sink, {wish.rounds} rounds", title_justify="left")
    for name in ("sender", "frames/s", "of C, in bytes", "range", "CPU us/frame", "bar"):
        found.add_column(name)
    found.add_row("C", f"{median(t.rate for t in c):.1f}", "1", "", f"{median(t.cpu for t in c):.0f}", "")
    all_fine = True
    for camera, shapes in OURS.items():
        ours = [t for t in trials if (t.way, t.size) == (camera, "24 MB")]
        size = prod(shapes["24 MB"]) / prod(SHAPES["24 MB"])
        ratios = [size * a.rate / b.rate for a, b in zip(ours, c, strict=True)]
        fine = median(ratios) >= BAR
        all_fine = all_fine and fine
        found.add_row(
            camera,
            f"{median(t.rate for t in ours):.1f}",
            f"{median(ratios):.3f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{median(t.cpu for t in ours):.0f}",
            f">= {BAR} {'holds' if fine else 'fails'}",
        )
    console.print(found)
    shown = Table(title="ours: CPU us/frame", title_justify="left")
    for name in ("camera", "frame", "frames/s", "data thread (Python)", "range", "process, with ZeroMQ and the camera"):
        shown.add_column(name)
    for camera, size in WAYS[1:]:
        mine = [t for t in trials if (t.way, t.size) == (camera, size)]
        threads = [t.thread for t in mine]
        shown.add_row(
            camera,
            size,
            f"{median(t.rate for t in mine):.0f}",
            f"{median(threads):.0f}",
            f"{min(threads):.0f}-{max(threads):.0f}",
            f"{median(t.cpu for t in mine):.0f}",
        )
    console.print(shown)
    sys.exit(0 if all_fine else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["stream"]:
        stream(*sys.argv[2:])
    else:
        main()
