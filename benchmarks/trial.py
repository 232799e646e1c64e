"""One trial: a generator and a receiver, each a process of its own, one series, its time, and its file read back."""

from __future__ import annotations

import queue
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  the filters
import numpy as np
import psutil
import verify
from contenders import LIMIT, Contender
from sizes import TAGGED, Size

from build import HERE

SAMPLES = 25  # frames compared pixel by pixel
SERIES = 1
CLOSED = r"\bclosed (?:(\d+)(?: |$)|.*?: (\d+) frames)"  # of the C programs, of ours


class TrialError(Exception):
    """A process that did not do what it should, or a file that is not what was sent."""


@dataclass(frozen=True)
class Trial:
    """One series received by one contender: seconds from first frame to file closed, CPU seconds meanwhile, memory in
    bytes (the most that was resident; 0: not known)."""

    contender: str
    size: str
    round: int
    frames: int
    seconds: float
    cpu: float
    memory: int = 0


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
        """When the first line with `pattern` came, and the match. TrialError: the process ended or says nothing."""
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                item = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                item = None
            if item is None:
                raise TrialError(f"{self.name} did not say {pattern!r}; it said:\n" + "\n".join(self._seen))
            self._seen.append(item[1])
            if match := re.search(pattern, item[1]):
                return item[0], match

    def cpu(self) -> float:
        times = psutil.Process(self._child.pid).cpu_times()  # works for one that has ended and is not waited for
        return times.user + times.system

    def main_thread(self) -> float:
        """CPU time of its first thread, in s, without ZeroMQ's; while it lives."""
        pid = self._child.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9

    def memory(self) -> int:
        """Bytes that were resident at most; 0: it has ended."""
        status = Path(f"/proc/{self._child.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        return 1024 * int(match[1]) if match else 0

    def io_threads(self) -> int:
        """Of ZeroMQ, in all its contexts."""
        names = [task.read_text() for task in Path(f"/proc/{self._child.pid}/task").glob("*/comm")]
        return sum(name.startswith("ZMQbg/IO") for name in names)

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


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(contender: Contender, size: Size, number: int, folder: Path) -> Trial:
    """One series to one contender in round `number`; what it wrote is verified and removed."""
    path = folder / "series.h5"
    try:
        trial = _receive(contender, size, number, path)
        if contender.writes:
            look_at(contender, size, path)
        elif path.exists():
            raise TrialError(f"{contender.title}: a file from a receiver that writes none")
    finally:
        for file in folder.glob("series*"):
            file.unlink()
    return trial


def generator(contender: Contender, size: Size, path: Path) -> list[str]:
    argv = [str(HERE / "build/generator"), "-t", str(LIMIT), "-f", str(path) if contender.writes else ""]
    argv += ["-p", contender.protocol]
    values = {"-r": size.rows, "-c": size.columns, "-n": size.frames, "-q": size.queue, "-i": SERIES}
    values |= {"-k": contender.senders, "-o": contender.senders}
    if size.ratio:
        payload = path.parent / f"series.{size.name.replace('/', '-')}"
        payload.write_bytes(size.prepared()[0])
        argv += ["-P", str(payload), "-C", "bslz4", "-T", str(size.tag_at)]
    return argv + [text for option, value in values.items() for text in (option, str(value))]


def _receive(contender: Contender, size: Size, number: int, path: Path) -> Trial:
    with process(generator(contender, size, path)) as sender:
        endpoints = sender.wait_for(r"^endpoint (\S+)")[1][1]
        sender.wait_for(r"^pool (\d+)")
        with process(contender.command(endpoints, size, path)) as receiver:
            receiver.wait_for(r"\bopened\b")
            cpu = receiver.cpu()
            first = float(sender.wait_for(r"^first ([\d.]+)")[1][1])
            closed, match = receiver.wait_for(CLOSED)
            cpu = receiver.cpu() - cpu
            memory = receiver.memory()
            if contender.program == "ours":
                _check_contexts(contender, receiver.io_threads())
    if int(match[1] or match[2]) != size.frames:
        raise TrialError(f"{contender.title}: {match[0]}, not {size.frames} frames")
    return Trial(contender.key, size.name, number, size.frames, closed - first, cpu, memory)


def _check_contexts(contender: Contender, found: int) -> None:
    """TrialError: a receiver that knows the option and does not do it."""
    expected = contender.io_threads * (1 if contender.shared else contender.workers)
    if found != expected:
        raise TrialError(f"{contender.title}: {found} I/O threads, not {expected}")


# --- looking at the file ---------------------------------------------------------------------------------------------


def look_at(contender: Contender, size: Size, path: Path) -> None:
    """Every tag, and the pixels of some frames; TrialError says what is missing or wrong."""
    try:
        if contender.dataset:
            found = verify.hdf5(path, contender.dataset, size.tag_at)
        else:
            found = verify.flat(path, size.bytes, size.tag_at)
    except (OSError, KeyError, ValueError) as exc:
        raise TrialError(f"{contender.title}: {path.name} cannot be verified: {exc}") from exc
    if problems := verify.judge(found, size.frames, SERIES):
        raise TrialError(f"{contender.title}, {size.name}: of {size.frames} frames {'; '.join(problems)}")
    if not size.ratio or contender.program == "ours":  # the others write compressed frames as if they were not
        with _reader(contender, size, path) as read:
            _compare(contender, size, read)


@contextmanager
def _reader(contender: Contender, size: Size, path: Path) -> Iterator[Callable[[int], np.ndarray]]:
    """Pixels of a frame by its place; HDF5 through the library, as anybody reads it."""
    if contender.dataset:
        with h5py.File(path) as file:
            images = file[contender.dataset]
            if images.shape != (size.frames, size.rows, size.columns):
                raise TrialError(f"{contender.title}: shape {images.shape}")
            if images.is_virtual != (contender.parts > 1):
                raise TrialError(f"{contender.title}: not {contender.parts} files")
            yield lambda k: images[k].ravel()
    else:
        frames = np.memmap(path, np.uint16, "r").reshape(-1, size.rows * size.columns)
        yield lambda k: frames[k % len(frames)]


def _compare(contender: Contender, size: Size, read: Callable[[int], np.ndarray]) -> None:
    for k in sorted({0, size.frames - 1, *random.sample(range(size.frames), min(SAMPLES, size.frames))}):
        pixels = read(k)
        low = np.packbits((pixels[:TAGGED] & 1).astype(np.uint8), bitorder="little")
        tag = (low if size.ratio else np.ascontiguousarray(pixels[:8])).view(verify.TAG)[0]
        if contender.dataset and tag["frame"] != k or not np.array_equal(pixels[TAGGED:], size.picture(tag["picture"])):
            raise TrialError(f"{contender.title}: frame {k} of {size.frames} has wrong pixels")


def able(contender: Contender, folder: Path) -> str:
    """A series of a few frames: empty, or why this contender cannot take part."""
    try:
        measure(contender, Size("few", 64, 64, 200), 0, folder)
    except TrialError as exc:
        return str(exc)
    return ""


def touch_memory(folder: Path, size: int) -> None:
    """Write and remove a file once: pages that a virtual machine has never used are slow the first time."""
    block = bytes(16_000_000)
    with open(folder / "touch", "wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
    (folder / "touch").unlink()
