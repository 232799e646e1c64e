"""What the live view costs a receiver: frames/s of one worker with somebody looking, and with nobody.

One series after the other of 4M images (2070 x 2167 uint32, Poisson counts, bslz4), as fast as they are taken, into a
file in memory; the engine runs in this process, benchmarks/generator.c sends. In each round every way to look comes
once, in an order shuffled anew; ratios are to "nobody" of the same round.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import payloads
import psutil
from contenders import DATASET, LIMIT
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sizes import QUEUE_BYTES
from trial import SERIES, process

from build import HERE, build
from tangods_receiver import config
from tangods_receiver.engine import Engine
from tangods_receiver.live import Kind

ROWS, COLUMNS, MEAN = 2070, 2167, 2.0
BAR = 0.95  # of the frame rate with nobody looking
REGIONS = [f"r{k} {250 * k} {200 * k} 200 200" for k in range(4)]


@dataclass(frozen=True)
class Way:
    """How somebody looks; `kinds` of pictures, each fetched by a thread of its own as soon as there is another."""

    name: str
    kinds: tuple[Kind, ...] = ()
    rois: tuple[str, ...] = ()
    bar: float | None = None


WAYS = (
    Way("nobody"),
    Way("nobody, again", bar=0.0),  # what differs from run to run
    Way("the newest image", ("last",), bar=BAR),
    Way("4 regions of 200 x 200", rois=tuple(REGIONS), bar=BAR),
    Way("image, sum and average", ("last", "sum", "average")),
)


@dataclass(frozen=True)
class Trial:
    way: str
    rate: float  # frames/s
    cpu: float  # s per s
    pictures: float  # decoded per s


@contextmanager
def looking(engine: Engine, way: Way) -> Iterator[None]:
    """Somebody who wants each new picture, and drops it."""
    stop = threading.Event()

    def look(kind: Kind) -> None:
        seen = (-1, -1)
        while not stop.is_set():
            if (picture := engine.last_frame(kind, seen, 0.2)) is not None:
                seen = picture.series, picture.number

    threads = [threading.Thread(target=look, args=(kind,)) for kind in way.kinds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def measure(way: Way, frames: int, payload: tuple[Path, int, int], folder: Path, rate: float) -> Trial:
    """One series; seconds are from the first frame sent to the last one written."""
    content, tag_at, size = payload
    argv = [str(HERE / "build/generator"), "-P", str(content), "-C", "bslz4", "-y", "uint32", "-d", "0.5"]
    values = {"-r": ROWS, "-c": COLUMNS, "-n": frames, "-i": SERIES, "-T": tag_at, "-t": LIMIT}
    values |= {"-q": max(4, QUEUE_BYTES // size), "-f": folder / "series.h5"}
    for option, value in values.items():
        argv += [option, str(value)]
    settings = {"root": folder, "dataset": DATASET, "http": "", "hwm_bytes": QUEUE_BYTES, "live_rate": rate}
    with process(argv) as sender:
        endpoint = sender.wait_for(r"^endpoint (\S+)")[1][1]
        sender.wait_for(r"^pool (\d+)")
        with Engine(config.make({**settings, "endpoints": endpoint, "rois": way.rois})) as engine:
            _until(lambda: engine.snapshot().opened == SERIES, "the series opened")
            with looking(engine, way):
                first = float(sender.wait_for(r"^first ([\d.]+)")[1][1])
                used = _cpu()
                _until(lambda: engine.snapshot().written == frames, f"{frames} frames written")
                seconds = time.monotonic() - first
                used = _cpu() - used
                pictures = engine.snapshot().live.decoded
            _until(lambda: engine.snapshot().closed == SERIES, "the series closed")
            if (error := engine.snapshot().error) or engine.snapshot().live.damaged:
                raise SystemExit(f"{way.name}: {error or 'damaged images'}")
    (folder / "series.h5").unlink()
    return Trial(way.name, frames / seconds, used / seconds, pictures / seconds)


def _cpu() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {LIMIT:g} s: {what}")
        time.sleep(0.005)


def table(trials: list[Trial], rate: float) -> tuple[Table, bool]:
    """The medians, and whether the bars hold."""
    reference = [trial.rate for trial in trials if trial.way == WAYS[0].name]
    found = Table(title=f"{len(reference)} rounds, {rate:g} pictures/s", title_justify="left")
    for name in ("who looks", "frames/s", "of nobody", "range", "CPU s/s", "pictures/s", "bar"):
        found.add_column(name, justify="left" if name == "who looks" else "right")
    fine = True
    for way in WAYS:
        mine = [trial for trial in trials if trial.way == way.name]
        ratios = [trial.rate / other for trial, other in zip(mine, reference, strict=True)]
        bar = ""
        if way.bar:
            good = median(ratios) >= way.bar
            fine, bar = fine and good, f">= {way.bar:g} {'holds' if good else 'fails'}"
        found.add_row(
            way.name,
            f"{median(trial.rate for trial in mine):.0f}",
            f"{median(ratios):.3f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{median(trial.cpu for trial in mine):.2f}",
            f"{median(trial.pictures for trial in mine):.1f}",
            bar,
        )
    return found, fine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=1500, help="of one series, 1.9 MB each")
    parser.add_argument("--rate", type=float, default=10.0, help="pictures/s of the live view")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    wish = parser.parse_args()
    build()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    folder = Path(tempfile.mkdtemp(prefix="live-", dir=wish.folder))
    try:
        data, tag_at = payloads.chunk(payloads.photons(ROWS, COLUMNS, MEAN))
        payload = folder / "payload", tag_at, len(data)
        payload[0].write_bytes(data)
        trials = []
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("series", total=wish.rounds * len(WAYS) + 1)
            measure(WAYS[0], wish.frames, payload, folder, wish.rate)  # touches the memory
            progress.advance(task)
            for _ in range(wish.rounds):
                for way in random.sample(WAYS, len(WAYS)):
                    trials.append(measure(way, wish.frames, payload, folder, wish.rate))
                    progress.advance(task)
    finally:
        shutil.rmtree(folder)
    shown, fine = table(trials, wish.rate)
    console.print(shown)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
