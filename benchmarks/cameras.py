"""What it costs to send a camera's frames from where they lie: ours with pretended libraries, beside a C program.

A Balor, and an ORCA Lightning, whose frames come as fast as they are taken (software triggers: each waits for room, so
none is lost) push 0.2, 2 and 24 MB frames over loopback to `sink.c`, which forgets them; `generator.c` does the same
from as many buffers. In each round all come once, in an order shuffled anew. The camera paints its buffers once, before
the series, as if by DMA.

CPU time of the thread that sends (ours: Python with its compiled part; C: the program's own) is told apart from the
rest of the process, which is the camera and ZeroMQ's I/O thread, where the kernel copies each frame into the socket.
Ours once more without a network: a socket in the same process drops all frames, so nothing is copied anywhere.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median

import zmq
from rich.console import Console
from rich.table import Table
from trial import Process, process

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
C, ALONE = "C", ", no network"
WAYS = [(way, size) for way in (C, *OURS, *(camera + ALONE for camera in OURS)) for size in SHAPES]
BUFFERS = 8
DELAY = 0.3  # s between start message and first frame
LIMIT = 60.0
BAR = 0.9


@dataclass(frozen=True)
class Trial:
    """`cpu` of the sender's process and `thread` of the thread that sends, us per frame."""

    way: str
    size: str
    rate: float
    cpu: float
    thread: float


def backend_of(camera: str, library: str, nbytes: int) -> Andor | Hamamatsu:
    """Of which some buffers are never sent from: two of the one, two or more of the other, by which it is safe."""
    if camera == "Andor Balor":
        return Andor(AndorOptions(library=library, memory=nbytes * (BUFFERS + 3) + 2**20, buffers=BUFFERS + 2))
    return Hamamatsu(HamamatsuOptions(library=library, memory=nbytes * (BUFFERS + 2) + 2**20))


def drop_all(backend: Andor | Hamamatsu) -> None:
    """Connect it to a socket in this process that drops all messages, in C, without a look at them."""
    streamer = (backend._pump if isinstance(backend, Andor) else backend._run)._streamer
    streamer._socket.bind("inproc://frames")  # its thread does nothing now
    taken, dropped = streamer._context.socket(zmq.PULL), streamer._context.socket(zmq.PUB)
    taken.rcvhwm = BUFFERS
    taken.connect("inproc://frames")
    threading.Thread(target=zmq.proxy, args=(taken, dropped), daemon=True).start()


def stream(way: str, library: str, rows: str, columns: str, frames: str) -> None:
    """One series in this process; what it took of the processor, and how long, in s."""
    height, width, count = int(rows), int(columns), int(frames)
    backend = backend_of(way.removesuffix(ALONE), library, 2 * height * width)
    backend.connect()
    if way.endswith(ALONE):
        drop_all(backend)
    print("endpoint", *backend.endpoints(), flush=True)
    roi = (0, 0, width, height)
    settings = Settings(2e-5, trigger_mode=TriggerMode.SOFTWARE, n_frames_per_trigger=count, roi=roi)
    backend.arm(Series(1, backend.configure(settings)))
    time.sleep(DELAY)
    clock = time.pthread_getcpuclockid(backend.data_thread)
    begun, thread, used = time.monotonic(), time.clock_gettime(clock), time.process_time()
    backend.start()
    backend.trigger()
    while backend.status().phase is Phase.ACQUIRING:
        time.sleep(0.02)
    thread, used = time.clock_gettime(clock) - thread, time.process_time() - used
    print(f"used {thread:.6f} {used:.6f} {time.monotonic() - begun:.6f}", flush=True)
    time.sleep(LIMIT)  # the last frames are still under way


def measure(way: str, size: str, frames: int, libraries: dict[str, Path]) -> Trial:
    camera = way.removesuffix(ALONE)
    rows, columns = OURS.get(camera, SHAPES)[size]
    if way == C:
        values = {"-r": rows, "-c": columns, "-n": frames, "-q": BUFFERS, "-d": DELAY, "-t": LIMIT, "-o": 1}
        argv = [str(HERE / "build/generator"), *(str(x) for pair in values.items() for x in pair)]
    else:
        argv = [sys.executable, __file__, "stream", way, str(libraries[camera]), str(rows), str(columns), str(frames)]
    with process(argv) as sender:
        endpoint = sender.wait_for(r"^endpoint (\S+)")[1][1]
        if way.endswith(ALONE):
            thread, total, seconds = found_of(sender)
        else:
            with process([str(HERE / "build/sink"), "-m", "null", "-e", endpoint, "-q", "4"]) as sink:
                sink.wait_for(r"\bopened\b")
                before = sender.main_thread(), sender.cpu()
                seconds = float(sink.wait_for(r"\bclosed (\d+) ([\d.]+)")[1][2])
                if way == C:
                    thread, total = sender.main_thread() - before[0], sender.cpu() - before[1]
                else:
                    thread, total, _ = found_of(sender)
    return Trial(way, size, (frames - 1) / seconds, 1e6 * total / frames, 1e6 * thread / frames)


def found_of(sender: Process) -> tuple[float, float, float]:
    """CPU of the thread and of the process, and the time between, in s."""
    thread, total, seconds = sender.wait_for(r"^used ([\d.]+) ([\d.]+) ([\d.]+)")[1].groups()
    return float(thread), float(total), float(seconds)


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
    all_fine = show_rates(console, trials, wish.rounds)
    show_cpu(console, trials)
    sys.exit(0 if all_fine else 1)


def of(trials: list[Trial], way: str, size: str) -> list[Trial]:
    """One of each round."""
    return [trial for trial in trials if (trial.way, trial.size) == (way, size)]


def show_rates(console: Console, trials: list[Trial], rounds: int) -> bool:
    """Of the largest frames, beside C; True: as they should be."""
    c = of(trials, C, "24 MB")
    table = Table(title=f"24 MB frames to a null sink, {rounds} rounds", title_justify="left")
    for name in ("sender", "frames/s", "of C, in bytes", "range", "CPU us/frame", "bar"):
        table.add_column(name)
    table.add_row(C, f"{median(t.rate for t in c):.1f}", "1", "", f"{median(t.cpu for t in c):.0f}", "")
    all_fine = True
    for camera, shapes in OURS.items():
        ours = of(trials, camera, "24 MB")
        size = prod(shapes["24 MB"]) / prod(SHAPES["24 MB"])
        ratios = [size * a.rate / b.rate for a, b in zip(ours, c, strict=True)]
        fine = median(ratios) >= BAR
        all_fine = all_fine and fine
        table.add_row(
            camera,
            f"{median(t.rate for t in ours):.1f}",
            f"{median(ratios):.3f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{median(t.cpu for t in ours):.0f}",
            f">= {BAR} {'holds' if fine else 'fails'}",
        )
    console.print(table)
    return all_fine


def show_cpu(console: Console, trials: list[Trial]) -> None:
    """Of each size: the thread that sends, and what else the process takes."""
    table = Table(title="CPU us/frame", title_justify="left")
    for name in ("sender", "frame", "frames/s", "thread that sends", "range", "rest: ZeroMQ's I/O thread, camera"):
        table.add_column(name)
    for way, size in WAYS:
        some = of(trials, way, size)
        threads = [t.thread for t in some]
        table.add_row(
            way,
            size,
            f"{median(t.rate for t in some):.0f}",
            f"{median(threads):.0f}",
            f"{min(threads):.0f}-{max(threads):.0f}",
            f"{median(t.cpu - t.thread for t in some):.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["stream"]:
        stream(*sys.argv[2:])
    else:
        main()
