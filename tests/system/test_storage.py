"""Real damage to the storage: disks that fill up, fail, vanish, stall and lose power while a series is written."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import h5py
import httpx
import numpy as np
import psutil
import pytest
import zmq

from tangods_receiver import reception
from tangods_receiver.engine import Engine
from tangods_receiver.protocol import stins
from tangods_receiver.recovery import check, recover
from tangods_receiver.stats import Snapshot
from tests.receiver.streaming import DATASET, Sender, balanced, image, running, wait_closed
from tests.system.beamline import ON, Beamline
from tests.system.disks import Ext4, FailingDisk, tmpfs, unmount
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
SHAPE = (100, 100)  # 20 kB
BATCH_BYTES = 5 << 20  # that a worker holds while it writes
LAYOUT = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}
STATUS = DATASET.rpartition("/")[0] + "/frame_status"


@pytest.fixture
def sender() -> Iterator[Sender]:
    with Sender() as sender:
        yield sender


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[FailingDisk]:
    with FailingDisk(tmp_path) as disk:
        yield disk


@contextmanager
def small_tmpfs(folder: Path) -> Iterator[Path]:
    with tmpfs(folder / "small", "8m") as point:
        yield point


@contextmanager
def small_ext4(folder: Path) -> Iterator[Path]:
    with Ext4(folder, 16) as disk:
        yield disk.point


def start(sender: Sender, path: Path, series: int, nframes: int | None) -> None:
    sender.start(path, series=series, nframes=nframes, **LAYOUT)


def send(sender: Sender, numbers: range) -> float:
    """Returns how long the slowest took; a sender that is blocked for 10 s gets an error from ZeroMQ."""
    slowest = 0.0
    for number in numbers:
        begun = time.monotonic()
        sender.frame(number, image(number, SHAPE))
        slowest = max(slowest, time.monotonic() - begun)
    return slowest


def frames_in(path: Path) -> list[int]:
    """The frames of a file that `check` finds sound; each is right, the others read as 0."""
    report = check(path)
    assert report.ok, report.lines()
    with h5py.File(path) as file:
        status, data = file[STATUS][()], file[DATASET]
        there = np.flatnonzero(status).tolist()
        for number in range(len(data)):
            wanted = image(number, SHAPE) if status[number] else np.zeros(SHAPE)
            assert (data[number] == wanted).all(), f"frame {number}"
    assert report.frames == len(there)
    return there


def assert_lost_in_words(s: Snapshot, sent: int, words: str) -> None:
    """The series ended in error, each frame is in the books."""
    assert s.state == "error" and words in s.error, s
    assert s.received == sent and s.written + s.discarded == sent
    assert s.discarded == s.missing > 0, s


def assert_good_series(engine: Engine, sender: Sender, path: Path, series: int, frames: int = 30) -> None:
    start(sender, path, series, frames)
    send(sender, range(frames))
    s = wait_closed(engine, series)
    assert (s.state, s.error, s.written, s.missing) == ("idle", "", frames, 0), s
    assert frames_in(path) == list(range(frames))


# --- full ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [small_tmpfs, small_ext4], ids=["tmpfs", "ext4"])
@pytest.mark.parametrize(("workers", "nframes", "parts"), [(1, 1200, 1), (2, None, 1), (2, 1200, 2)])
def test_disk_full(
    tmp_path: Path, sender: Sender, small: Callable, workers: int, nframes: int | None, parts: int
) -> None:
    with small(tmp_path) as full, running(tmp_path, sender.endpoint, workers=workers, parts=parts) as engine:
        start(sender, full / "a.h5", 1, nframes)
        assert send(sender, range(1200)) < 2, "nobody waits for a full disk"
        sender.end()
        s = wait_closed(engine, 1)
        assert_lost_in_words(s, 1200, "the disk is full: free some space")
        assert s.written > 200 and len(frames_in(full / "a.h5")) == s.written

        engine.reset()
        assert_good_series(engine, sender, tmp_path / "elsewhere.h5", 2)

        start(sender, full / "b.h5", 3, 500)  # refused in words, at once or soon, and nobody waits
        assert send(sender, range(500)) < 2
        s = wait_for(lambda: (s := engine.snapshot()).received == 500 and s, what="frames without room")
        assert balanced(engine).state == "error" and "free" in s.error and s.discarded > 0
        engine.reset()
        wait_for(lambda: engine.snapshot().file == "" and engine.snapshot().state == "idle")

        wait_for(lambda: engine.snapshot().durable, what="the last sync")
        for file in full.glob("*.h5"):
            file.unlink()
        assert_good_series(engine, sender, full / "c.h5", 4)


def test_not_enough_room_is_told_before(tmp_path: Path, sender: Sender) -> None:
    with small_tmpfs(tmp_path) as small, running(tmp_path, sender.endpoint) as engine:
        assert engine.check(str(small / "a.h5"), 1_000_000) == ""
        assert "make room" in engine.check(str(small / "a.h5"), 100_000_000)


def test_file_size_limit_of_the_process(tmp_path: Path, sender: Sender) -> None:
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
    try:
        with running(tmp_path, sender.endpoint) as engine:
            start(sender, tmp_path / "a.h5", 1, 500)
            send(sender, range(500))
            s = wait_closed(engine, 1)
            assert_lost_in_words(s, 500, "ulimit -f")
            assert s.written > 100 and len(frames_in(tmp_path / "a.h5")) == s.written
            engine.reset()
            assert_good_series(engine, sender, tmp_path / "b.h5", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- failing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [("EIO", "look at the disk"), ("EDQUOT", "quota"), ("ENOSPC", "disk is full"), ("ESTALE", "look at the mount")],
)
def test_error_of_the_disk_in_mid_series(failing: FailingDisk, sender: Sender, error: str, words: str) -> None:
    """Whatever the error: all that was written before is there."""
    with running(failing.point, sender.endpoint) as engine:
        start(sender, failing.point / "a.h5", 1, 200)
        send(sender, range(100))
        wait_for(lambda: engine.snapshot().written == 100)
        failing.rule(call="write", error=error)
        send(sender, range(100, 200))
        s = wait_closed(engine, 1)
        assert_lost_in_words(s, 200, words)
        assert s.written == 100
        failing.rule()
        engine.reset()
        assert_good_series(engine, sender, failing.point / "b.h5", 2)
    assert recover(failing.behind / "a.h5").frames == 100, "closing failed too: it is as a kill would leave it"
    assert frames_in(failing.behind / "a.h5") == list(range(100))


def test_disk_that_recovers_in_mid_series(failing: FailingDisk, sender: Sender) -> None:
    """The first failure ends the writing, for good; but the file is closed as if nothing had been."""
    with running(failing.point, sender.endpoint) as engine:
        start(sender, failing.point / "a.h5", 1, 300)
        send(sender, range(100))
        wait_for(lambda: engine.snapshot().written == 100)
        failing.rule(call="write", error="EIO")
        send(sender, range(100, 200))
        wait_for(lambda: engine.snapshot().received == 200)
        failing.rule()
        send(sender, range(200, 300))
        s = wait_closed(engine, 1)
        assert_lost_in_words(s, 300, "look at the disk")
    assert frames_in(failing.behind / "a.h5") == list(range(100))


def test_read_only_in_mid_series(tmp_path: Path, sender: Sender) -> None:
    """As the system does after an error of the disk."""
    with Ext4(tmp_path, 64) as disk, running(tmp_path, sender.endpoint) as engine:
        start(sender, disk.point / "a.h5", 1, 200)
        send(sender, range(100))
        wait_for(lambda: engine.snapshot().written == 100)
        disk.fail()
        send(sender, range(100, 200))
        s = wait_closed(engine, 1)
        assert_lost_in_words(s, 200, "read-only")
        start(sender, disk.point / "b.h5", 2, 10)
        send(sender, range(10))
        s = wait_for(lambda: (s := engine.snapshot()).discarded == 10 and s)
        assert s.state == "error" and "read-only" in s.error
        engine.reset()
        assert_good_series(engine, sender, tmp_path / "b.h5", 3)


@pytest.mark.parametrize("whole_directory", [True, False])
def test_deleted_in_mid_series(tmp_path: Path, sender: Sender, whole_directory: bool) -> None:
    folder = tmp_path / "day"
    folder.mkdir()
    with running(tmp_path, sender.endpoint, workers=2) as engine:
        start(sender, folder / "a.h5", 1, 200)
        send(sender, range(100))
        wait_for(lambda: engine.snapshot().written == 100)
        shutil.rmtree(folder) if whole_directory else (folder / "a.h5").unlink()
        wait_for(lambda: "deleted" in engine.snapshot().error, what="the next commit")
        send(sender, range(100, 200))
        s = wait_closed(engine, 1)
        assert s.state == "error" and s.discarded == 100, s
        engine.reset()
        folder.mkdir(exist_ok=True)
        assert_good_series(engine, sender, folder / "a.h5", 2)


def test_permission_taken_in_mid_series(sender: Sender) -> None:
    """The open file is written to its end; the next is refused before a frame is lost."""
    if os.geteuid():
        pytest.skip("needs root, which can become a user without rights")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, 65534, -1)
    os.seteuid(65534)
    try:
        with running(folder, sender.endpoint) as engine:
            start(sender, folder / "a.h5", 1, 100)
            send(sender, range(50))
            wait_for(lambda: engine.snapshot().written == 50)
            folder.chmod(0o500)
            send(sender, range(50, 100))
            s = wait_closed(engine, 1)
            assert (s.state, s.written, s.missing) == ("idle", 100, 0), s
            assert "no permission" in engine.check(str(folder / "b.h5"), 0)
            start(sender, folder / "b.h5", 2, 10)
            send(sender, range(10))
            s = wait_for(lambda: (s := engine.snapshot()).discarded == 10 and s)
            assert s.state == "error" and "no permission" in s.error
            folder.chmod(0o700)
            engine.reset()
            assert frames_in(folder / "a.h5") == list(range(100))
            assert_good_series(engine, sender, folder / "c.h5", 3)
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


# --- stalls ----------------------------------------------------------------------------------------------------------


class Flood:
    """A thread that sends one series of 1 MB frames as fast as the receiver takes them; counts what it got rid of."""

    SHAPE = (512, 1024)
    HWM = 2

    def __init__(self, path: Path, nframes: int) -> None:
        self.sent = 0
        self.endpoint = ""
        self._path, self._nframes = path, nframes
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> Flood:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _main(self) -> None:
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.sndhwm, socket.linger = self.HWM, 0
            self.endpoint = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
            self._ready.set()
            for message in self._messages():
                if not self._sent(socket, message):
                    return
                self.sent += 1
            self._over.wait()  # what is on its way must not be dropped

    def _sent(self, socket: zmq.Socket, message: list) -> bool:
        while not self._over.is_set():
            with suppress(zmq.Again):
                if socket.poll(50, zmq.POLLOUT):
                    socket.send_multipart(message, zmq.NOBLOCK)
                    return True
        return False

    def _messages(self) -> Iterator[list]:
        pixels = np.zeros(self.SHAPE, np.uint16)
        layout = {"shape": self.SHAPE, "dtype": "uint16", "codec": "none"}
        yield stins.encode_start(str(self._path), 0, series=1, nframes=self._nframes, **layout)
        for number in range(self._nframes):
            yield [
                stins.encode_frame_header(number, self.SHAPE, "uint16", "none", serial=number + 1, series=1),
                pixels,
            ]


def stall(disk: FailingDisk, how: str) -> Callable[[], None]:
    """Make it hang; returns what ends that."""
    if how == "stopped":
        disk.stop()
        return disk.go_on
    disk.rule(call="write", sleep=3)
    return disk.rule


def kernel_buffers() -> int:
    """Bytes that the system may hold of one connection."""
    limits = (Path(f"/proc/sys/net/ipv4/tcp_{which}mem").read_text().split()[2] for which in "rw")
    return sum(map(int, limits))


def standing_still(look: Callable[[], int], seconds: float = 0.4) -> int:
    """The value when it has not moved for so long."""
    since, value = time.monotonic(), look()
    while time.monotonic() - since < seconds:
        time.sleep(0.02)
        if look() != value:
            since, value = time.monotonic(), look()
    return value


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["sleeps", "stopped"])
def test_storage_that_stalls(failing: FailingDisk, monkeypatch: pytest.MonkeyPatch, how: str, workers: int) -> None:
    """Back-pressure down to the sender, bounded memory, the call is named, who asks is answered; then all is well."""
    monkeypatch.setattr(reception, "SLOW", 0.5)
    hwm, nframes, path = 8 << 20, 300, failing.point / "a.h5"
    with (
        Flood(path, nframes) as flood,
        running(failing.point, flood.endpoint, workers=workers, hwm_bytes=hwm, http="127.0.0.1:0") as engine,
    ):
        wait_for(lambda: engine.snapshot().written >= 20)
        memory = psutil.Process().memory_info().rss
        end_stall = stall(failing, how)
        wait_for(lambda: "has taken" in engine.snapshot().error, what="a word about the call that hangs")
        sent = standing_still(lambda: flood.sent)
        s = engine.snapshot()
        assert str(path) in s.error and s.state == "running", s
        assert sent < nframes, "the sender must wait"
        held = (sent - s.written) << 20
        ours = workers * (hwm + BATCH_BYTES)
        assert held < ours + workers * ((Flood.HWM << 20) + kernel_buffers()), "what is sent and not written"
        assert psutil.Process().memory_info().rss - memory < ours + (8 << 20)
        begun = time.monotonic()
        answer = httpx.get(f"http://127.0.0.1:{engine.http_port}/status", timeout=2).json()
        assert "has taken" in answer["error"] and time.monotonic() - begun < 1
        end_stall()
        s = wait_for(lambda: (s := engine.snapshot()).closed == 1 and s, 30, "the end of the series")
        assert (s.state, s.error, s.written, s.missing) == ("idle", "", nframes, 0), s
    assert check(failing.behind / "a.h5").frames == nframes


def test_storage_that_stalls_for_ever(
    tmp_path: Path, failing: FailingDisk, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "SLOW", 0.2)
    monkeypatch.setattr(reception, "HANGS", 0.6)
    monkeypatch.setattr("tangods_receiver.engine.JOIN_LIMIT", 0.5)
    with ExitStack() as stack:
        engine = stack.enter_context(running(tmp_path, sender.endpoint, workers=2))
        start(sender, failing.point / "a.h5", 1, 500)
        send(sender, range(100))
        wait_for(lambda: engine.snapshot().written == 100)
        failing.stop()
        send(sender, range(100, 200))
        wait_for(lambda: engine.snapshot().state == "error", what="a call that hangs for long is an error")
        assert "a.h5 has taken" in engine.snapshot().error
        engine.stop()
        engine.reset()
        begun = time.monotonic()
        for _ in range(3):
            assert "no answer from the storage" in engine.check(str(failing.point / "b.h5"), 0)
        assert engine.check(str(tmp_path / "b.h5"), 0) == "" and time.monotonic() - begun < 8
        assert len([t for t in threading.enumerate() if t.name.startswith("check ")]) == 1
        begun = time.monotonic()
        stack.close()
        assert time.monotonic() - begun < 3, "the engine ends although its threads hang"
    try:
        with running(tmp_path, sender.endpoint, workers=2) as fresh:  # what hangs takes no frame away from it
            for series in range(7, 10):
                assert_good_series(fresh, sender, tmp_path / f"{series}.h5", series, 200)
    finally:
        failing.kill()
    assert recover(failing.behind / "a.h5").frames >= 100


@pytest.mark.system
def test_tango_answers_while_the_storage_stalls(own_beamline: Beamline, failing: FailingDisk, tmp_path: Path) -> None:
    receiver = own_beamline.receiver
    file = own_beamline.set(DestinationFilename=str(failing.point / "a.h5"), nFramesPerTrigger=1000)
    own_beamline.detector.Arm()
    wait_for(lambda: own_beamline.snapshot()["written"] > 50)
    failing.stop()
    try:
        slowest = 0.0
        for _ in range(20):
            begun = time.monotonic()
            receiver.state(), receiver.status(), own_beamline.detector.state(), own_beamline.snapshot()
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.1)
        assert slowest < 1
        assert receiver.CheckFile([str(failing.point / "b.h5")])
        assert receiver.CheckFile([str(tmp_path / "b.h5")]) == ""
    finally:
        failing.go_on()
    assert own_beamline.wait_end() in ON, own_beamline.detector.status()
    assert check(failing.behind / file.name).frames == 1000
    own_beamline.good_series()


# --- what survives a power loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_durable_survives_a_power_loss(tmp_path: Path, sender: Sender, parts: int) -> None:
    with Ext4(tmp_path, 128) as disk:
        with running(tmp_path, sender.endpoint, fsync_interval=0.2, payload_crc=True, parts=parts) as engine:
            start(sender, disk.point / "a.h5", 1, 1000)
            send(sender, range(200))
            wait_for(lambda: engine.snapshot().durable_frames == 200, what="a sync")
            send(sender, range(200, 400))
            s = wait_for(lambda: (s := engine.snapshot()).written == 400 and s)
            disk.lose_power()
            engine.stop()
            assert wait_closed(engine, 1).state == "error"
        unmount(disk.point)
        disk.mount()
        found = recover(disk.point / "a.h5")
        assert found.frames >= s.durable_frames >= 200
        with h5py.File(disk.point / "a.h5") as file:
            for number in range(s.durable_frames):
                assert (file[DATASET][number] == image(number, SHAPE)).all()


def test_only_closed_files_are_synced_when_no_interval_is_set(tmp_path: Path, sender: Sender) -> None:
    with running(tmp_path, sender.endpoint) as engine:
        start(sender, tmp_path / "a.h5", 1, 100)
        send(sender, range(50))
        wait_for(lambda: engine.snapshot().commits > 2)
        assert engine.snapshot().durable_frames == 0
        send(sender, range(50, 100))
        wait_closed(engine, 1)
        wait_for(lambda: engine.snapshot().durable_frames == 100)


def test_sync_that_fails(failing: FailingDisk, sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    """Told once, the series goes on; and it is not called durable because a later sync succeeds."""
    with running(failing.point, sender.endpoint, fsync_interval=0.05) as engine:
        failing.rule(call="fsync", error="EIO")
        start(sender, failing.point / "a.h5", 1, 100)
        send(sender, range(50))
        wait_for(lambda: "may not survive a power loss" in engine.snapshot().error)
        assert engine.snapshot().state == "running"
        failing.rule()
        send(sender, range(50, 100))
        s = wait_closed(engine, 1)
        assert (s.state, s.written, s.missing) == ("idle", 100, 0) and "power loss" in s.error, s
        wait_for(lambda: engine.snapshot().sync_time and not engine._syncer._closed_waiting)
        assert (engine.snapshot().durable, engine.snapshot().durable_frames) == (False, 0)
        assert len([r for r in caplog.records if "power loss" in r.message]) == 1
        engine.reset()
        assert_good_series(engine, sender, failing.point / "b.h5", 2)
        wait_for(lambda: engine.snapshot().durable)
    assert frames_in(failing.behind / "a.h5") == list(range(100))


def test_sync_that_is_slow(tmp_path: Path, sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it: frames are written, commits come, the series closes; the status tells."""
    real, let_go = os.fdatasync, threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda fd: let_go.wait(30) and real(fd))
    monkeypatch.setattr(reception, "SLOW", 0.3)
    with running(tmp_path, sender.endpoint, fsync_interval=0.05) as engine:
        start(sender, tmp_path / "a.h5", 1, 200)
        send(sender, range(100))
        wait_for(lambda: f"syncing {tmp_path / 'a.h5'} has taken" in engine.snapshot().error)
        commits = engine.snapshot().commits
        wait_for(lambda: engine.snapshot().commits > commits)
        send(sender, range(100, 200))
        s = wait_closed(engine, 1)
        assert (s.state, s.written, s.durable, s.durable_frames) == ("idle", 200, False, 0), s
        let_go.set()
        wait_for(lambda: (s := engine.snapshot()).durable and s.durable_frames == 200 and not s.error)
    assert frames_in(tmp_path / "a.h5") == list(range(200))


def test_a_file_that_is_taken_away_before_it_is_synced(
    tmp_path: Path, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed, and moved elsewhere at once: no fault of the storage, and none of the series after it."""
    real, let_go = os.fdatasync, threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda fd: let_go.wait(30) and real(fd))
    with running(tmp_path, sender.endpoint, fsync_interval=0.05) as engine:
        start(sender, tmp_path / "a.h5", 1, 100)
        send(sender, range(50))
        wait_for(lambda: engine._syncer._busy)
        send(sender, range(50, 100))
        wait_closed(engine, 1)
        (tmp_path / "a.h5").rename(tmp_path / "moved.h5")
        let_go.set()
        wait_for(lambda: not engine._syncer._closed_waiting)
        s = engine.snapshot()
        assert (s.error, s.durable) == ("", False), s
        assert_good_series(engine, sender, tmp_path / "a.h5", 2)
    assert frames_in(tmp_path / "moved.h5") == list(range(100))


def test_slow_sync_of_the_disk_loses_nothing(failing: FailingDisk, sender: Sender) -> None:
    """Here the file system makes the writes wait too."""
    failing.rule(call="fsync", sleep=0.3)
    with running(failing.point, sender.endpoint, fsync_interval=0.1) as engine:
        start(sender, failing.point / "a.h5", 1, 300)
        for number in range(300):
            send(sender, range(number, number + 1))
            time.sleep(0.003)
        assert wait_closed(engine, 1).written == 300
        wait_for(lambda: engine.snapshot().durable_frames == 300)
    assert frames_in(failing.behind / "a.h5") == list(range(300))


def test_moved_file_is_synced_too(tmp_path: Path, sender: Sender) -> None:
    with running(tmp_path, sender.endpoint, fsync_interval=0.05) as engine:
        start(sender, tmp_path / "a.h5", 1, 100)
        send(sender, range(50))
        wait_for(lambda: engine.snapshot().durable_frames == 50)
        (tmp_path / "a.h5").rename(tmp_path / "b.h5")
        send(sender, range(50, 90))
        s = wait_for(lambda: (s := engine.snapshot()).durable_frames == 90 and s)
        assert s.error == ""
