"""Receive and write side by side: C programs, a plain h5py loop and ours, one after the other in shuffled rounds.

Every contender is a process of its own that takes one series from benchmarks/generator.c. The same clock for all: from
the first frame sent to the line that says "closed", read here; CPU time from /proc. What was written is verified.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import psutil
from build import HERE, build
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

QUEUE_BYTES = 128_000_000  # high-water mark of every receiver and of the generator
MAX_BYTES = 2_000_000_000  # of one file
LIMIT = 60.0  # s, for each step of a trial
SAMPLES = 25  # frames compared pixel by pixel
REFERENCE = "pwrite"
DATASET = "entry/instrument/detector/data"


@dataclass(frozen=True)
class Size:
    """Frames of rows x columns uint16, and how many of them make a trial."""

    name: str
    rows: int
    columns: int
    frames: int

    @property
    def bytes(self) -> int:
        return 2 * self.rows * self.columns

    @property
    def queue(self) -> int:
        return max(4, QUEUE_BYTES // self.bytes)


@dataclass(frozen=True)
class Contender:
    """How to start a receiver of the series to `path`, and how to look at what it left there."""

    title: str
    command: Callable[[str, Size, Path], list[str]]
    verify: Callable[[Path, Size, int], None]


@dataclass(frozen=True)
class Trial:
    """One series received by one contender: seconds from first frame to file closed, CPU seconds meanwhile."""

    contender: str
    size: str
    round: int
    frames: int
    seconds: float
    cpu: float


# --- processes -------------------------------------------------------------------------------------------------------


class Process:
    """A child whose lines (stdout and stderr) are read with the time when they came."""

    def __init__(self, argv: list[str]) -> None:
        self.name = Path(argv[0]).name if argv[0] != sys.executable else " ".join(argv[1:3])
        self._child = subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._lines: queue.Queue[tuple[float, str] | None] = queue.Queue()
        self._seen: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout
        for line in self._child.stdout:
            self._lines.put((time.monotonic(), line.rstrip()))
        self._lines.put(None)

    def wait_for(self, pattern: str) -> tuple[float, re.Match[str]]:
        """When the first line with `pattern` came, and the match. SystemExit when the process ends or says nothing."""
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                item = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                item = None
            if item is None:
                sys.exit(f"{self.name} did not say {pattern!r}; it said:\n" + "\n".join(self._seen))
            self._seen.append(item[1])
            if match := re.search(pattern, item[1]):
                return item[0], match

    def cpu(self) -> float:
        times = psutil.Process(self._child.pid).cpu_times()  # works for one that has ended and is not waited for
        return times.user + times.system

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join()
        if self._child.stdout:
            self._child.stdout.close()


@contextmanager
def process(argv: list[str]) -> Iterator[Process]:
    running = Process(argv)
    try:
        yield running
    finally:
        running.end()


# --- the contenders --------------------------------------------------------------------------------------------------


def c_sink(mode: str) -> Callable[[str, Size, Path], list[str]]:
    return lambda endpoint, size, path: [str(HERE / "build/sink"), mode, endpoint, str(size.queue), str(LIMIT)]


def python_sink(mode: str) -> Callable[[str, Size, Path], list[str]]:
    script = str(HERE / "python_sink.py")
    return lambda endpoint, size, path: [sys.executable, script, mode, endpoint, str(size.queue), str(LIMIT)]


def ours(endpoint: str, size: Size, path: Path) -> list[str]:
    """`tangods-detector receive` with a configuration beside the file; JSON is YAML."""
    config = path.with_suffix(".yaml")
    config.write_text(
        json.dumps(
            {
                "name": "bench",
                "protocol": "stins",
                "endpoints": [endpoint],
                "workers": 1,
                "io_threads": 2,
                "root": str(path.parent),
                "dataset": DATASET,
                "http": "",
                "hwm_bytes": QUEUE_BYTES,
            }
        )
    )
    return [str(Path(sys.executable).parent / "tangods-detector"), "receive", str(config)]


def picture(size: Size, number: int) -> np.ndarray:
    """What generator.c draws for picture `number` of its pool."""
    pixels = np.arange(size.rows * size.columns, dtype=np.int64)
    return (31 * pixels + number).astype(np.uint16).reshape(size.rows, size.columns)


def samples(size: Size) -> list[int]:
    return sorted({0, size.frames - 1, *random.sample(range(size.frames), min(SAMPLES, size.frames))})


def compare(size: Size, pool: int, read: Callable[[int], np.ndarray]) -> None:
    for k in samples(size):
        if not np.array_equal(read(k), picture(size, k % pool)):
            sys.exit(f"frame {k} of {size.frames} has wrong pixels")


def verify_nothing(path: Path, size: Size, pool: int) -> None:
    if path.exists():
        sys.exit("a file from a receiver that writes none")


def verify_flat(path: Path, size: Size, pool: int) -> None:
    frames = np.memmap(path, np.uint16, "r").reshape(-1, size.rows, size.columns)
    if len(frames) != size.frames:
        sys.exit(f"{path.name} has {len(frames)} of {size.frames} frames")
    compare(size, pool, lambda k: frames[k])


def verify_hdf5(dataset: str) -> Callable[[Path, Size, int], None]:
    def verify(path: Path, size: Size, pool: int) -> None:
        with h5py.File(path) as file:
            images = file[dataset]
            chunks = images.id.get_num_chunks()
            if images.shape != (size.frames, size.rows, size.columns) or chunks != size.frames:
                sys.exit(f"{path.name}: shape {images.shape}, {chunks} chunks, not {size.frames} frames")
            compare(size, pool, lambda k: images[k])

    return verify


CONTENDERS = {
    "null": Contender("C: PULL, null", c_sink("null"), verify_nothing),
    "pwrite": Contender("C: PULL + pwrite", c_sink("pwrite"), verify_flat),
    "chunk": Contender("C: PULL + H5Dwrite_chunk", c_sink("chunk"), verify_hdf5("data")),
    "h5py": Contender("Python: plain h5py loop", python_sink("h5py"), verify_hdf5("data")),
    "flat": Contender("Python: PULL + pwritev", python_sink("flat"), verify_flat),
    "ours": Contender("tangods-detector receive", ours, verify_hdf5(DATASET)),
}

SIZES = {
    size.name: size
    for size in (
        Size("20kB", 100, 100, 40_000),
        Size("200kB", 250, 400, 5_000),
        Size("2MB", 1000, 1000, 500),
        Size("20MB", 2500, 4000, 60),
    )
}


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(key: str, size: Size, number: int, folder: Path) -> Trial:
    """One series to one contender; the file is verified and removed."""
    contender = CONTENDERS[key]
    path = folder / f"{key}.h5"
    generator = [str(HERE / "build/generator"), "-t", str(LIMIT), "-f", "" if key == "null" else str(path)]
    for option, value in {"-r": size.rows, "-c": size.columns, "-n": size.frames, "-q": size.queue}.items():
        generator += [option, str(value)]
    with process(generator) as sender:
        endpoint = sender.wait_for(r"^endpoint (\S+)")[1][1]
        pool = int(sender.wait_for(r"^pool (\d+)")[1][1])
        with process(contender.command(endpoint, size, path)) as receiver:
            receiver.wait_for(r"\bopened\b")
            cpu = receiver.cpu()
            first = float(sender.wait_for(r"^first ([\d.]+)")[1][1])
            closed, match = receiver.wait_for(r"\bclosed\b.*?(?:: | )(\d+)")
            cpu = receiver.cpu() - cpu
    if int(match[1]) != size.frames:
        sys.exit(f"{contender.title}: {match[0]}, not {size.frames} frames")
    contender.verify(path, size, pool)
    path.unlink(missing_ok=True)
    return Trial(key, size.name, number, size.frames, closed - first, cpu)


def touch_memory(folder: Path, size: int) -> None:
    """Write and remove a file once: pages that a virtual machine has never used are slow the first time."""
    block = bytes(16_000_000)
    with open(folder / "touch", "wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
    (folder / "touch").unlink()


def run(keys: list[str], sizes: list[Size], rounds: int, folder: Path, console: Console) -> list[Trial]:
    trials: list[Trial] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("touching memory", total=rounds * len(sizes) * len(keys))
        touch_memory(folder, max(size.bytes * size.frames for size in sizes) * 3 // 2)
        for number in range(rounds):
            for size in sizes:
                for key in random.sample(keys, len(keys)):
                    progress.update(task, description=f"round {number + 1}, {size.name}, {CONTENDERS[key].title}")
                    trials.append(measure(key, size, number, folder))
                    progress.advance(task)
    return trials


# --- reporting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; the ratios are those of one round each, then the median, lowest and highest."""

    contender: str
    size: str
    rate: float  # frames/s
    throughput: float  # MB/s
    cpu: float  # microseconds per frame
    ratio: tuple[float, float, float] | None
    cpu_ratio: float | None


def summarise(trials: list[Trial], size: Size, key: str) -> Row:
    mine = {t.round: t for t in trials if (t.size, t.contender) == (size.name, key)}
    reference = {t.round: t for t in trials if (t.size, t.contender) == (size.name, REFERENCE)}
    rate = median(t.frames / t.seconds for t in mine.values())
    ratios = [reference[n].seconds / t.seconds for n, t in mine.items() if n in reference]
    cpu_ratios = [t.cpu / reference[n].cpu for n, t in mine.items() if n in reference]
    return Row(
        contender=key,
        size=size.name,
        rate=rate,
        throughput=rate * size.bytes / 1e6,
        cpu=1e6 * median(t.cpu / t.frames for t in mine.values()),
        ratio=(median(ratios), min(ratios), max(ratios)) if ratios else None,
        cpu_ratio=median(cpu_ratios) if cpu_ratios else None,
    )


def show(rows: list[Row], sizes: list[Size], rounds: int, console: Console) -> None:
    for size in sizes:
        table = Table(title=f"{size.name}: {size.frames} frames, {rounds} rounds", title_justify="left")
        table.add_column("receiver")
        for name in ("frames/s", "MB/s", "of C pwrite", "range", "CPU us/frame", "of C pwrite"):
            table.add_column(name, justify="right")
        for row in rows:
            if row.size == size.name:
                ratio = ("", "") if row.ratio is None else (f"{row.ratio[0]:.2f}", "{1:.2f}-{2:.2f}".format(*row.ratio))
                cpu_ratio = "" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}"
                numbers = (f"{row.rate:.0f}", f"{row.throughput:.0f}", *ratio, f"{row.cpu:.0f}", cpu_ratio)
                table.add_row(
                    CONTENDERS[row.contender].title, *numbers, style="bold" if row.contender == "ours" else ""
                )
        console.print(table)


def save(path: Path, trials: list[Trial], rows: list[Row]) -> None:
    machine = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    found = {"machine": machine, "summary": [asdict(r) for r in rows], "trials": [asdict(t) for t in trials]}
    path.write_text(json.dumps(found, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    def names(known: dict[str, object]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(known)}")
            return text.split(",")

        return parse

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    default = [key for key in CONTENDERS if key != "flat"]
    parser.add_argument("--sizes", type=names({**SIZES}), help=f"of {','.join(SIZES)}; default: all")
    parser.add_argument("--contenders", type=names({**CONTENDERS}), default=default, help=f"of {','.join(CONTENDERS)}")
    parser.add_argument("--rounds", type=int, help="default: 9")
    parser.add_argument("--frames", type=int, help="per trial; default: about 1 GB")
    parser.add_argument("--folder", default="/dev/shm", help="where the files go; default: memory (/dev/shm)")
    parser.add_argument("--quick", action="store_true", help="20kB and 200kB, 3 rounds, fewer frames")
    parser.add_argument("--json", type=Path, metavar="OUT", help="save every trial and the summary")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    sizes = [SIZES[name] for name in args.sizes or (["20kB", "200kB"] if args.quick else SIZES)]
    rounds = args.rounds or (3 if args.quick else 9)
    for i, size in enumerate(sizes):
        frames = args.frames or (size.frames // 2 if args.quick else size.frames)
        sizes[i] = Size(size.name, size.rows, size.columns, max(1, min(frames, MAX_BYTES // size.bytes)))
    largest = max(size.bytes * size.frames for size in sizes)
    if shutil.disk_usage(args.folder).free < 2 * largest:
        sys.exit(f"{args.folder}: less than {2 * largest / 1e9:.1f} GB free; use --frames or --folder")
    build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that children and files go then, too
    console = Console() if sys.stdout.isatty() else Console(width=100)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.folder) as folder:
        trials = run(args.contenders, sizes, rounds, Path(folder), console)
    rows = [summarise(trials, size, key) for size in sizes for key in args.contenders]
    show(rows, sizes, rounds, console)
    if args.json:
        save(args.json, trials, rows)


if __name__ == "__main__":
    main()
