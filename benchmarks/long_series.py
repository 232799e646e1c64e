"""One series of a million frames: does frame 1 000 000 cost what frame 1 000 costs, in time and in memory?

The engine runs in this process, benchmarks/generator.c sends. Time per frame is that between the arrivals in the file.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import psutil
import verify
from contenders import DATASET, contender
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sizes import SIZES, Size
from trial import SERIES, generator, process

from build import build
from tangods_receiver import config
from tangods_receiver.engine import Engine

ARRIVAL = "entry/instrument/detector/arrival_time"
HWM = 32 << 20  # bytes; what waits in the socket must not hide what grows
EVERY = 0.1  # s between samples
GROWTH, DRIFT, CLOSING = 64e6, 1.10, 2.0  # bytes, ratio, s


@dataclass(frozen=True)
class Sample:
    received: int
    memory: int  # bytes, resident
    cpu: float  # s


@dataclass(frozen=True)
class Run:
    samples: list[Sample]
    closed: float  # unix s
    commits: int
    longest_commit: float  # s


@dataclass(frozen=True)
class Verdict:
    what: str
    found: str
    wanted: str
    fine: bool | None  # None: no bar


def sample(engine: Engine) -> Sample:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = psutil.Process().memory_info().rss
    return Sample(engine.snapshot().received, memory, usage.ru_utime + usage.ru_stime)


def receive(path: Path, size: Size, workers: int, rate: float, console: Console) -> Run:
    argv = generator(contender("ours"), size, path)
    with process(argv + (["-R", str(rate)] if rate else [])) as sender:
        endpoint = sender.wait_for(r"^endpoint (\S+)")[1][1]
        values = {"endpoints": [endpoint], "root": str(path.parent), "http": "", "workers": workers, "hwm_bytes": HWM}
        samples: list[Sample] = []
        with (
            Engine(config.make({**values, "dataset": DATASET})) as engine,
            Progress(console=console, transient=True) as bar,
        ):
            task = bar.add_task("frames", total=size.frames)
            while not engine.snapshot().closed and not engine.snapshot().error:
                samples.append(sample(engine))
                bar.update(task, completed=samples[-1].received)
                late = samples[-1].received >= size.frames
                time.sleep(0.005 if late else EVERY)
            now, end = time.time(), engine.snapshot()
    if end.error or end.missing or end.written != size.frames:
        sys.exit(f"{end.written} of {size.frames} frames written: {end.error or end.state}")
    return Run(samples, now, end.commits, end.longest_commit)


def judge(run: Run, path: Path, size: Size, window: int) -> list[Verdict]:
    with h5py.File(path) as file:
        arrival = np.sort(file[ARRIVAL][()])
    window = min(window, len(arrival) // 4)
    settled = [s for s in run.samples if s.received >= min(50_000, size.frames // 4)]
    growth = max(s.memory for s in settled) - settled[0].memory
    first, last = (arrival[window - 1] - arrival[0]) / window, (arrival[-1] - arrival[-window]) / window
    blocks = np.diff(arrival[::window]) / window
    closing = run.closed - arrival[-1]
    problems = verify.judge(verify.hdf5(path, DATASET, size.tag_at), size.frames, SERIES)
    return [
        Verdict("frames", f"{size.frames} of {size.bytes} bytes", "", None),
        Verdict("tags", "; ".join(problems) or "every one is in its place", "all there", not problems),
        Verdict("memory when settled", f"{settled[0].memory / 1e6:.0f} MB", "", None),
        Verdict("growth from there", f"{growth / 1e6:.1f} MB", f"< {GROWTH / 1e6:.0f} MB", growth < GROWTH),
        Verdict("time per frame, first", f"{1e6 * first:.1f} us", "", None),
        Verdict("time per frame, last", f"{1e6 * last:.1f} us", f"< {DRIFT:.2f} of the first", last < DRIFT * first),
        Verdict("between: median, longest", f"{1e6 * np.median(blocks):.1f} us, {1e6 * blocks.max():.1f} us", "", None),
        Verdict("CPU per frame, early and late", "{:.1f} us, {:.1f} us".format(*cpu(run.samples)), "", None),
        Verdict("closing", f"{closing:.2f} s", f"< {CLOSING:g} s", closing < CLOSING),
        Verdict("commits, longest", f"{run.commits}, {run.longest_commit:.3f} s", "", None),
    ]


def cpu(samples: list[Sample]) -> tuple[float, float]:
    """Microseconds per frame in the first and in the last tenth of the series."""
    frames = np.array([s.received for s in samples])
    seconds = np.array([s.cpu for s in samples])
    total = frames[-1]
    marks = np.interp([0.0 * total + 1, 0.1 * total, 0.9 * total, total], frames, seconds)
    return 1e6 * (marks[1] - marks[0]) / (0.1 * total), 1e6 * (marks[3] - marks[2]) / (0.1 * total)


def show(verdicts: list[Verdict], console: Console) -> bool:
    table = Table()
    for name in ("", "found", "wanted", ""):
        table.add_column(name)
    for v in verdicts:
        table.add_row(v.what, v.found, v.wanted, "" if v.fine is None else "met" if v.fine else "missed")
    console.print(table)
    return all(v.fine is not False for v in verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--frames", type=int, default=1_000_000, help="default: 1 000 000")
    parser.add_argument("--size", choices=SIZES, default="20kB", help="of a frame; default: 20kB")
    parser.add_argument("--folder", default="/var/tmp", help="where the file goes; default: /var/tmp")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="frames/s; default: as fast as it goes")
    parser.add_argument("--window", type=int, default=10_000, help="frames compared at both ends; default: 10 000")
    args = parser.parse_args()
    size = replace(SIZES[args.size], frames=args.frames)
    needed = 1.05 * size.bytes * size.frames
    if shutil.disk_usage(args.folder).free < needed:
        sys.exit(f"{args.folder}: less than {needed / 1e9:.1f} GB free; use --frames or --folder")
    build()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.folder) as folder:
        path = Path(folder) / "series.h5"
        run = receive(path, size, args.workers, args.rate, console)
        fine = show(judge(run, path, size, args.window), console)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
