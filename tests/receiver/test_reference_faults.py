"""Faults that other receivers are known for. The number is that of our list of them; the rest of it is tested beside
what it belongs to."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tangods_receiver import codecs
from tangods_receiver.protocol import stins
from tangods_receiver.recovery import check
from tangods_receiver.seriesfile import SeriesFile
from tests.receiver.streaming import SHAPE, Sender, balanced, holds, image, read, running, wait_closed, wait_opened
from tests.waiting import wait_for

SENDER = """
import sys, zmq
from tangods_receiver import codecs
from tangods_receiver.protocol import stins
from tangods_receiver.recovery import check
port, size, count, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
    socket.sndhwm = 2  # what waits, waits at the receiver
    socket.sndbuf = 65536
    socket.bind(f"tcp://127.0.0.1:{port}")
    shape = (1, size)
    known = {"shape": shape, "dtype": "uint8", "codec": "none"}
    socket.send_multipart(stins.encode_start(path, 0, series=1, nframes=count, **known))
    pixels = bytes(size)
    for n in range(count):
        head = stins.encode_frame_header(n, shape, "uint8", "none", n + 1, series=1)
        socket.send_multipart([head, pixels], copy=False)
    socket.send_multipart(stins.encode_end(count + 1, series=1))
    print("sent", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_4_many_workers_neither_misorder_nor_lose(tmp_path, workers):
    """3000 frames of 20 kB at full speed: each in its place, the last too."""
    shape = (100, 100)
    with Sender() as sender, running(tmp_path, sender.endpoint, workers=workers, end_timeout=5) as engine:
        sender.start(tmp_path / "a.h5", series=1)
        for number in range(3000):
            sender.frame(number, np.full(shape, number, "uint16"))
        sender.end()
        s = wait_closed(engine, 1)
        assert (s.written, s.missing, s.repeated, s.foreign, s.state) == (3000, 0, 0, 0, "idle")
    data, _ = read(tmp_path / "a.h5")
    assert (data == np.arange(3000, dtype="uint16")[:, None, None]).all()


def test_5_a_file_that_cannot_be_opened_sends_no_frame_into_the_old_one(tmp_path):
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "old.h5", series=1, nframes=10)
        sender.frames(range(4))  # and no end
        sender.start(tmp_path / "missing" / "new.h5", series=2, nframes=5)
        sender.frame(4, image(99))
        sender.frames(range(4))
        wait_for(lambda: engine.snapshot().discarded == 5)
        assert balanced(engine).state == "error" and holds(tmp_path / "old.h5", range(4), length=10)


def test_10_a_message_of_an_unknown_kind_is_no_black_frame(tmp_path):
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=3)
        sender.frame(0)
        head = stins.encode_frame_header(1, SHAPE, "uint16", "none", sender.serial, series=1)
        sender.parts([head.replace(b'"image"', b'"picture"'), image(1).tobytes()])
        sender.frame(2)
        sender.end()
        s = wait_closed(engine, 1)
        assert (s.written, s.rejected, s.missing, s.state) == (2, 1, 1, "error") and "picture" in s.error
        assert holds(tmp_path / "a.h5", (0, 2))


def test_10_a_damaged_chunk_is_found_by_a_check_that_survives_it(tmp_path):
    """The library's own filter follows a false length out of its buffer."""
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=2)
        pixels = image(0, (100, 200), "uint32")
        good = bytes(codecs.compress("bslz4", pixels))
        for number, payload in enumerate((good, good[:12] + b"\x7f" * 4 + good[16:])):
            head = stins.encode_frame_header(number, pixels.shape, "uint32", "bslz4", sender.serial, series=1)
            sender.parts([head, payload])
        sender.end()
        s = wait_closed(engine, 1)
    if s.written == 2:
        report = check(tmp_path / "a.h5")
        assert not report.ok and "1" in " ".join(report.problems)
    else:
        assert s.rejected == 1


def test_12_an_open_error_stays_until_somebody_takes_note(tmp_path):
    """Also a client that asks long after the end of the series sees it; a null in the metadata is no error."""
    (tmp_path / "a.h5").touch()
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=2)
        sender.frames(range(2))
        sender.end()
        wait_for(lambda: engine.snapshot().discarded == 2 and engine.snapshot().file == "")
        time.sleep(0.5)
        s = balanced(engine)
        assert (s.state, s.written, s.opened, s.closed) == ("error", 0, 0, 0) and "exists" in s.error
        sender.start(tmp_path / "b.h5", series=2, nframes=2, metadata={"energy": None, "exptime": None})
        sender.frames(range(2))
        s = wait_closed(engine, 2)
        assert (s.state, s.written, s.error) == ("idle", 2, "") and holds(tmp_path / "b.h5", range(2))
        assert list(read(tmp_path / "b.h5")[1]["sequence_number"]) == [0, 1]


GB = 1_000_000_000


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000, 200_000, 20_000_000])
def test_13_memory_is_bounded_when_the_disk_is_slow(tmp_path, monkeypatch, size):
    """1 GB offered at full speed to a disk that stands still for a while: the sender waits, and nothing is lost."""
    hold_back, goes = 64 << 20, threading.Event()
    real = SeriesFile.append
    monkeypatch.setattr(SeriesFile, "append", lambda self, records: goes.wait(60) and real(self, records))
    process, count = psutil.Process(), GB // size
    with Sender() as sender, running(tmp_path, sender.endpoint, hwm_bytes=hold_back) as engine:
        sender.start("", series=9, nframes=100)  # small ones first: the socket has room for many
        sender.frames(range(100))
        wait_closed(engine, 9)
        port, before = sender.port, process.memory_info().rss
        sender.close()
        command = [sys.executable, "-c", SENDER, str(port), str(size), str(count), str(tmp_path / "a.h5")]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            wait_opened(engine, 1)
            peak, end = 0, time.monotonic() + 1.5
            while time.monotonic() < end:
                peak = max(peak, process.memory_info().rss - before)
                time.sleep(0.02)
            assert peak < hold_back + 3 * max(size, 4_000_000) + 30e6, "what waits is held to hwm_bytes"
            goes.set()
            while engine.snapshot().closed != 1:
                assert time.monotonic() < end + 60
                peak = max(peak, process.memory_info().rss - before)
                time.sleep(0.02)
            s = balanced(engine)
            assert (s.written, s.missing, s.state) == (count, 0, "idle")
            assert peak < hold_back + 3 * max(size, 4_000_000) + 30e6
        finally:
            goes.set()
            child.stdin.close()
            assert child.wait(20) == 0
            child.stdout.close()
    (tmp_path / "a.h5").unlink()


def test_16_one_of_several_streams_stalls(tmp_path):
    """Nobody spins while waiting for it, the file can be closed, and what is missing is known."""
    with Sender() as left, Sender() as right, running(tmp_path, left.endpoint, right.endpoint) as engine:
        for sender in (left, right):
            sender.start(tmp_path / "a.h5", series=1, nframes=10, shape=SHAPE, dtype="uint16", codec="none", modules=2)
        for number in range(10):
            left.frame(number, module=0)
            if number < 4:
                right.frame(number, module=1)
        wait_for(lambda: engine.snapshot().written == 14)
        begun, used = time.monotonic(), time.process_time()
        time.sleep(1)
        assert time.process_time() - used < 0.25 * (time.monotonic() - begun)
        assert engine.snapshot().missing == 6
        engine.stop()
        s = wait_closed(engine, 1)
        assert s.missing == 6 and "4-9" in s.error
        _, books = read(tmp_path / "a.h5")
        assert list(books["frame_status"]) == [1] * 4 + [2] * 6


@pytest.mark.parametrize("peer", ["nobody", "silent", "in mid-series"])
def test_16_it_ends_quickly_whatever_it_waits_for(tmp_path, peer):
    with Sender() as sender:
        endpoint = "tcp://127.0.0.1:9" if peer == "nobody" else sender.endpoint
        with running(tmp_path, endpoint, workers=2) as engine:
            if peer == "in mid-series":
                sender.start(tmp_path / "a.h5", series=1, nframes=10)
                wait_opened(engine, 1)
            begun = time.monotonic()
        assert time.monotonic() - begun < 3


@pytest.mark.slow
def test_9_viewers_that_do_not_read_stop_nothing(tmp_path):
    """Some ask for the image without a pause, some ask and never take the answer."""
    shape = (1000, 1000)
    pixels = np.zeros(shape, "uint16")
    with Sender() as sender, running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        address = f"http://127.0.0.1:{engine.http_port}/last_frame"
        sender.start(tmp_path / "a.h5", series=1, nframes=300, shape=shape, dtype="uint16", codec="none")
        sender.frame(0, pixels)
        wait_for(lambda: engine.snapshot().last_number == 0)
        over = threading.Event()

        def look():
            with httpx.Client() as client:
                while not over.is_set():
                    client.get(address)

        with httpx.Client() as idle, idle.stream("GET", address):
            looking = [threading.Thread(target=look) for _ in range(2)]
            for thread in looking:
                thread.start()
            try:
                for number in range(1, 300):
                    sender.frame(number, pixels)
                s = wait_closed(engine, 1)
            finally:
                over.set()
                for thread in looking:
                    thread.join()
        assert (s.written, s.missing, s.state) == (300, 0, "idle")


def test_20_nothing_in_the_receiver_loads_code_from_the_network():
    """No pickle and no evaluation anywhere, not even imported."""
    folder = Path(stins.__file__).parents[1]
    for path in folder.rglob("*.py*"):
        if path.suffix in (".py", ".pyx"):
            words = path.read_text()
            for word in (
                "import pickle",
                "import marshal",
                "import dill",
                "eval(",
                "exec(",
                "yaml.load(",
                "allow_pickle=True",
            ):
                assert word not in words, f"{path}: {word}"
