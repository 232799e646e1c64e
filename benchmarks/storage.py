"""What two threads write into one file, into a file each, through the page cache or with O_DIRECT (storage.c).

    python benchmarks/storage.py /dev/shm /var/tmp         # the file systems of these folders
    python benchmarks/storage.py --xfs /dev/shm            # an XFS in a file there; as root, with mkfs.xfs (xfsprogs)

Interleaved in shuffled rounds; a ratio is that to one thread through the page cache in the same round, then the median.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from machine import said
from rich.console import Console
from rich.table import Table

from build import build

WAYS = {
    "1 thread": ["-t", "1"],
    "2 threads, one file": ["-t", "2"],
    "2 threads, two files": ["-t", "2", "-f"],
    "2 threads, one allocated file": ["-t", "2", "-a"],
    "1 thread, O_DIRECT": ["-t", "1", "-d"],
    "2 threads, one file, O_DIRECT": ["-t", "2", "-d"],
    "2 threads, two files, O_DIRECT": ["-t", "2", "-f", "-d"],
    "2 threads, one allocated file, O_DIRECT": ["-t", "2", "-d", "-a"],
}
FIRST = "1 thread"
RECORDS = {"20kB": 20_480, "200kB": 200_704, "2MB": 2_002_944, "20MB": 20_000_768}  # multiples of 4096
XFS_BYTES = 3 << 30


@contextmanager
def xfs(folder: Path) -> Iterator[Path]:
    """A new XFS in a sparse file in the folder, mounted; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="xfs-", dir=folder) as place:
        image, mounted = Path(place) / "image", Path(place) / "mounted"
        with open(image, "wb") as file:
            file.truncate(XFS_BYTES)
        mounted.mkdir()
        for argv in (["mkfs.xfs", "-q", str(image)], ["mount", "-o", "loop", str(image), str(mounted)]):
            subprocess.run(argv, check=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", str(mounted)], check=True)


def write(program: Path, folder: Path, record: int, nbytes: int, options: list[str]) -> float | None:
    """MB/s until the last write has returned; None: this file system refuses."""
    count = max(2, nbytes // record)
    argv = [str(program), "-p", str(folder / "records"), "-r", str(record), "-n", str(count), *options]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        return None
    return record * count / float(done.stdout.split()[0]) / 1e6


def measure(folder: Path, sizes: list[str], rounds: int, nbytes: int) -> dict[tuple[str, str], list[float | None]]:
    program = build()["storage"]
    found: dict[tuple[str, str], list[float | None]] = {}
    for _ in range(rounds):
        for size in sizes:
            for way in random.sample(list(WAYS), len(WAYS)):
                rate = write(program, folder, RECORDS[size], nbytes, WAYS[way])
                found.setdefault((size, way), []).append(rate)
    return found


def show(title: str, found: dict[tuple[str, str], list[float | None]], console: Console) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("MB/s (of one thread)")
    sizes = list(dict.fromkeys(size for size, _ in found))
    for size in sizes:
        table.add_column(size, justify="right")
    for way in WAYS:
        table.add_row(way, *(cell(found[size, way], found[size, FIRST]) for size in sizes))
    console.print(table)


def cell(rates: list[float | None], first: list[float | None]) -> str:
    pairs = [(rate, one) for rate, one in zip(rates, first, strict=True) if rate and one]
    if not pairs:
        return "refused"
    return f"{median(rate for rate, _ in pairs):.0f} ({median(rate / one for rate, one in pairs):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="to write in; default: /dev/shm")
    parser.add_argument("--xfs", action="append", type=Path, default=[], metavar="FOLDER", help="make an XFS there")
    parser.add_argument("--sizes", nargs="+", choices=RECORDS, default=list(RECORDS), help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--megabytes", type=int, default=300, help="of each trial; default: 300")
    args = parser.parse_args()
    folders = args.folders or ([] if args.xfs else [Path("/dev/shm")])
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with ExitStack() as stack:
        places = [(str(f), Path(stack.enter_context(tempfile.TemporaryDirectory(dir=f)))) for f in folders]
        places += [(f"XFS in a file in {f}", stack.enter_context(xfs(f))) for f in args.xfs]
        for title, folder in places:
            kind = said("stat", "-f", "-c", "%T", str(folder))
            show(f"{title} ({kind})", measure(folder, args.sizes, args.rounds, args.megabytes * 1_000_000), console)


if __name__ == "__main__":
    main()
