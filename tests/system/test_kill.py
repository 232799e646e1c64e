"""kill -9 of the receiver in mid-series: what it had written is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import tango
import yaml
import zmq

from tangods_receiver.errors import ConfigError
from tangods_receiver.protocol import stins
from tangods_receiver.recovery import Report, check, recover
from tests.system.beamline import DATASET, Beamline, wait_for
from tests.system.readers import READERS

pytestmark = [pytest.mark.system, pytest.mark.slow]
KILLS = 4


def readable(file: Path) -> bool:
    with h5py.File(file) as h5:
        return bool(h5[DATASET][0].any())


@pytest.mark.timeout(300)
def test_kill_at_random_moments(own_beamline: Beamline) -> None:
    random.seed(time.time_ns())
    for number in range(KILLS):
        file = own_beamline.set(ExposureTime=0.0005, FrameTime=0.001, nFramesPerTrigger=100_000)
        own_beamline.detector.Arm()
        wait_for("frames", lambda: own_beamline.snapshot()["written"] > 5)
        if number == 0:
            wait_for("a commit", lambda file=file: readable(file))
        time.sleep(random.uniform(0, 2.2 if number % 4 == 0 else 0.3))  # the moment: before, at or after a commit
        written = own_beamline.snapshot()["written"]
        own_beamline.stop_receiver(kill=True)
        if number == 0:
            for read in READERS.values():
                read(file)
        found = recover(file)
        assert found.frames >= written, f"round {number}: {written} writes had returned"
        report = check(file)
        assert report.ok, report.lines()
        assert report.frames == found.frames
        own_beamline.assert_frames(file, range(0, found.frames, max(1, found.frames // 20)))
        own_beamline.start_receiver()
        own_beamline.wait_state(tango.DevState.FAULT)
        own_beamline.detector.Reset()
        own_beamline.wait_on()
        file.unlink()
    own_beamline.good_series()


# --- several workers at full speed, and the receiver's own record of what it wrote -----------------------------------


class Stream:
    """Sends series of frames whose first 8 bytes tell their number, as fast as they are taken."""

    def __init__(self, shape: tuple[int, int], waiting: int) -> None:
        self.shape = shape
        self.pixels = np.random.default_rng(1).integers(0, 1 << 16, shape, np.uint16)
        self._number = self.pixels.reshape(-1).view(np.uint64)[:1]
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.sndhwm, self._socket.linger = waiting, 0
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def send_series(self, series: int, path: Path, nframes: int | None, most: int, over: threading.Event) -> None:
        """Until the receiver is dead or `most` frames are on their way, and then until it is dead."""
        layout = {"shape": self.shape, "dtype": "uint16", "codec": "none"}
        self._send(over, stins.encode_start(str(path), 0, series=series, nframes=nframes, **layout))
        for number in range(most):
            self._number[0] = number
            head = stins.encode_frame_header(number, self.shape, "uint16", "none", serial=number + 1, series=series)
            self._send(over, [head, self.pixels])
        over.wait()

    def _send(self, over: threading.Event, message: list) -> None:
        while not over.is_set():
            with suppress(zmq.Again):  # who was there may be dead by now
                if self._socket.poll(20, zmq.POLLOUT):
                    self._socket.send_multipart(message, zmq.NOBLOCK)
                    return

    def are_frames(self, numbers: np.ndarray, images: np.ndarray) -> bool:
        words = images.reshape(-1, self.pixels.size).view(np.uint64)
        return bool(
            (words[:, 0] == numbers).all() and (words[:, 1:] == self.pixels.reshape(-1).view(np.uint64)[1:]).all()
        )


class Killed:
    """A receiver that is started and killed again and again; `counts` says what the kills did."""

    def __init__(self, stream: Stream, folders: list[Path], **settings: object) -> None:
        self.counts: Counter[str] = Counter()
        self._stream, self._folders = stream, folders
        self._values = {"endpoints": [stream.endpoint], "http": "", "commit_interval": 0.05, **settings}
        self._notes = folders[0] / "notes"
        command = [sys.executable, "-m", "tests.system.killed_receiver"]
        with (folders[0] / "log").open("w") as log:
            self._server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def close(self) -> None:
        self._server.communicate()

    def kill_once(self, number: int, moment: random.Random, span: float, most: int) -> None:
        """One series, one kill: within `span` s after the first frame is written, or in one of ten while it begins."""
        folder = self._folders[number % len(self._folders)]
        path = folder / f"{number}.h5"
        self._notes.write_bytes(bytes(most))
        pid, over = self._start(folder), threading.Event()
        early = number % 10 == 9
        delay = moment.uniform(0, 0.05 if early else span)
        killer = threading.Thread(target=self._kill, args=(pid, delay, early, over))
        killer.start()
        self._stream.send_series(number + 1, path, moment.choice([None, most]), most, over)
        killer.join()
        written = np.flatnonzero(np.frombuffer(self._notes.read_bytes(), np.uint8))
        self._judge(path, written, f"kill {number}, {delay:.4f} s after {'the start' if early else 'the first frame'}")
        for file in folder.glob("*.h5"):
            file.unlink()
        self._notes.unlink()

    def _start(self, folder: Path) -> int:
        config = folder / "receiver.yaml"
        config.write_text(yaml.safe_dump(self._values | {"root": str(folder)}))
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(f"{config} {self._notes}\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def _kill(self, pid: int, delay: float, early: bool, over: threading.Event) -> None:
        assert self._server.stdout
        try:
            if not early:
                wait_for("the first frame", lambda: 1 in self._notes.read_bytes())
            time.sleep(delay)
        finally:
            os.kill(pid, signal.SIGKILL)
            ended = int(self._server.stdout.readline())
            over.set()
        assert os.WTERMSIG(ended) == signal.SIGKILL, (
            f"it ended before: {(self._folders[0] / 'log').read_text()[-2000:]}"
        )

    def _judge(self, path: Path, written: np.ndarray, which: str) -> None:
        """Every frame whose write had returned is there, and right; so is what else is there."""
        self.counts["kills"] += 1
        self.counts["writes that had returned"] += len(written)
        try:
            found = recover(path)
        except (ConfigError, OSError):
            assert not len(written), which
            self.counts["killed before there was a file"] += 1
            return
        report = check(path)
        assert report.ok, (which, report.lines())
        there = self._frames(path, which)
        lost = np.setdiff1d(written, there)
        assert not len(lost), f"{which}: {len(lost)} of {len(written)} frames lost: {lost[:20]}; {found.lines()}"
        assert report.frames == found.frames == len(there), which
        self._count(path, found, len(there) - len(written))

    def _frames(self, path: Path, which: str) -> np.ndarray:
        with h5py.File(path) as file:
            group = file[DATASET].parent
            there, data = np.flatnonzero(group["frame_status"][()]), file[DATASET]
            at_once = max(1, (8 << 20) // self._stream.pixels.nbytes)
            for first in range(0, len(data), at_once):
                numbers = there[(there >= first) & (there < first + at_once)]
                images = data[first : first + at_once][numbers - first]
                assert self._stream.are_frames(numbers, images), f"{which}: one of {numbers}"
        return there

    def _count(self, path: Path, found: Report, more: int) -> None:
        self.counts["frames recovered"] += found.frames
        self.counts["whole frames of writes that had not returned"] += more
        self.counts["torn records refused"] += found.torn
        self.counts["kills that tore a record"] += found.torn > 0
        self.counts["kills with gaps between the frames"] += len(found.missing) > (found.expected is not None)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[list[Path]]:
    """On the disk and in memory, by turns."""
    memory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield [memory, tmp_path]
    shutil.rmtree(memory)


SMALL = {"shape": (100, 100), "waiting": 200, "span": 0.25, "most": 5000}
LARGE = {"shape": (3200, 3125), "waiting": 2, "span": 0.25, "most": 24}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("frames", "parts", "kills"),
    [
        pytest.param(SMALL, 1, 12, id="20kB"),
        pytest.param(LARGE, 1, 4, id="20MB"),
        pytest.param(SMALL, 2, 3, id="20kB-2-parts"),
        pytest.param(SMALL, 1, 200, marks=pytest.mark.soak, id="20kB-soak"),
        pytest.param(LARGE, 1, 50, marks=pytest.mark.soak, id="20MB-soak"),
        pytest.param(SMALL, 2, 50, marks=pytest.mark.soak, id="20kB-2-parts-soak"),
    ],
)
def test_kill_of_four_workers(
    folders: list[Path], frames: dict, parts: int, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = time.time_ns()
    moment = random.Random(seed)
    stream = Stream(frames["shape"], frames["waiting"])
    killed = Killed(stream, folders, workers=4, parts=parts, hwm_bytes=40 << 20)
    try:
        for number in range(kills):
            killed.kill_once(number, moment, frames["span"], frames["most"])
    finally:
        killed.close()
        stream.close()
    assert killed.counts["kills"] == kills
    with capsys.disabled():
        print(
            f"\n{parts} part(s), {kills} kills: "
            + ", ".join(f"{count} {what}" for what, count in killed.counts.items())
        )
