"""Faults of network, processes and neighbours, each with the end it should have. The rest of the list is tested beside
what it belongs to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
import zmq

from tangods_receiver.stats import Snapshot
from tests.receiver.streaming import DATASET, SHAPE, Sender, balanced, holds, image, running, wait_closed, wait_opened
from tests.waiting import wait_for

PROGRAM = str(Path(sys.executable).parent / "tangods-detector")
KNOWN = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}


class Wire:
    """A TCP proxy in front of a sender: it can be cut by a reset, or go silent."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self.port = self._server.getsockname()[1]
        self.silent = threading.Event()
        self._over = threading.Event()
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for link in [*self._links, self._server]:
            link.close()

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Both ends get an RST, and what was on its way is gone."""
        for link in self._links:
            with suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.close()
        self._links.clear()

    def _accept(self) -> None:
        while not self._over.is_set():
            with suppress(OSError):
                one, _ = self._server.accept()
                other = socket.create_connection(("127.0.0.1", self._target))
                self._links += [one, other]
                for a, b in ((one, other), (other, one)):
                    a.settimeout(0.05)
                    self._threads.append(threading.Thread(target=self._carry, args=(a, b)))
                    self._threads[-1].start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        while not self._over.is_set():
            try:
                data = a.recv(65536)
                if not data:
                    return
                while self.silent.is_set() and not self._over.is_set():
                    time.sleep(0.01)
                b.sendall(data)
            except TimeoutError:
                continue
            except OSError:
                return


def test_6_a_second_client_that_takes_every_other_frame_is_named(tmp_path: Path) -> None:
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine, zmq.Context() as context:
        sender.start(tmp_path / "a.h5", series=1, nframes=40)
        wait_opened(engine, 1)
        with context.socket(zmq.PULL) as thief:
            thief.linger, thief.rcvtimeo = 0, 5000
            thief.connect(sender.endpoint)
            poller = zmq.Poller()
            poller.register(thief, zmq.POLLIN)
            number = 0
            while not poller.poll(5) and number < 20:  # its connection is there when it gets the first
                sender.frame(number)
                number += 1
            for rest in range(number, 40):
                sender.frame(rest)
            sender.end()
            sender.end()
        s = wait_closed(engine, 1)
        assert s.missing > 5 and "another client" in s.error


def test_8_numbers_beyond_24_and_32_bits(tmp_path: Path) -> None:
    numbers = [2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1]
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.serial = 2**32 - 3
        sender.start(tmp_path / "a.h5", series=2**32, nframes=2**32 + 2, **KNOWN)
        for number in numbers:
            sender.frame(number)
        sender.end()
        s = wait_closed(engine, 2**32)
        assert (s.written, s.missing) == (8, 2**32 + 2 - 8)
    with h5py.File(tmp_path / "a.h5") as h5:
        assert h5[DATASET].shape == (2**32 + 2, *SHAPE)
        for number in numbers:
            assert (h5[DATASET][number] == image(number)).all()
        serials = [int(h5[DATASET].parent["message_number"][n]) for n in numbers]
        assert serials == [*range(2**32 - 2, 2**32 + 6)]


def test_11_a_payload_far_larger_than_its_image(tmp_path: Path) -> None:
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=2, **KNOWN)
        sender.frame(0)
        from tangods_receiver.protocol import stins

        for codec in ("none", "bslz4", "cbf"):
            head = stins.encode_frame_header(1, SHAPE, "uint16", codec, sender.serial, series=1)
            sender.parts([head, bytes(50_000_000)])
        sender.frame(1)
        s = wait_closed(engine, 1)
        assert (s.written, s.rejected, s.missing) == (2, 3, 0) and "50000000" in s.error
        assert (tmp_path / "a.h5").stat().st_size < 1_000_000 and holds(tmp_path / "a.h5", range(2))


def test_15_a_connection_that_is_reset_in_mid_series(tmp_path: Path) -> None:
    """What was lost with it shows by the numbers; the next series comes over a new connection by itself."""
    with Sender() as sender, Wire(sender.port) as wire, running(tmp_path, wire.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=400)
        for number in range(400):
            sender.frame(number)
            if number == 200:
                wait_for(lambda: engine.snapshot().written > 50)
                wire.reset()
        sender.end()
        wait_for(lambda: engine.snapshot().last_number == 399)
        engine.stop()
        s = wait_closed(engine, 1)
        assert s.written + s.missing == 400 and s.state == "idle"
        assert holds(tmp_path / "a.h5", stored(tmp_path / "a.h5"), length=400)
        sender.start(tmp_path / "b.h5", series=2, nframes=20)
        sender.frames(range(20))
        assert wait_closed(engine, 2).missing == 0 and holds(tmp_path / "b.h5", range(20))


def stored(path: Path) -> list[int]:
    with h5py.File(path) as h5:
        return np.flatnonzero(h5[DATASET].parent["frame_status"][()]).tolist()


def test_16_a_connection_that_goes_silent(tmp_path: Path) -> None:
    """No reset, nothing: the series ends by its stall time-out, and when the network is back the next one is whole."""
    with Sender() as sender, Wire(sender.port) as wire, running(tmp_path, wire.endpoint, stall_timeout=0.5) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=100)
        sender.frames(range(10))
        wait_for(lambda: engine.snapshot().written == 10)
        wire.silent.set()
        sender.frames(range(10, 20))
        s = wait_closed(engine, 1)
        assert s.state == "error" and "nothing came" in s.error and "90 of 100" in s.error
        wire.silent.clear()
        wait_for(lambda: engine.snapshot().foreign == 10)  # what the network had kept
        sender.start(tmp_path / "b.h5", series=2, nframes=20)
        sender.frames(range(20))
        assert wait_closed(engine, 2).state == "idle" and holds(tmp_path / "b.h5", range(20))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel's table of connections is not there")
def test_16_idle_connections_are_probed(tmp_path: Path) -> None:
    """Each runs a timer of at most the 10 s after which TCP asks whether the other end still lives."""
    with Sender() as sender, running(tmp_path, sender.endpoint):
        wait_for(lambda: keep_alive(sender.port))
        assert all(0 < left <= 10.0 for left in keep_alive(sender.port))


def keep_alive(port: int) -> list[float]:
    """Seconds until the next probe of each connection to this port that has such a timer."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [row for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"]
    timers = [row[5].split(":") for row in mine]
    return [int(when, 16) / os.sysconf("SC_CLK_TCK") for kind, when in timers if kind == "02"]


FAR_SENDER = """
import sys, zmq
from tests.receiver.streaming import Sender
path, series, frames = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sender = Sender()
sender._socket.bind("tcp://10.213.7.2:9999")
sender.start(path, series=series, nframes=20)
sender.frames(range(frames))
print("sent", flush=True)
sys.stdin.read()
"""


@contextmanager
def far_away() -> Iterator[str]:
    """A network of its own behind a virtual cable; the name of the namespace. Address there: 10.213.7.2."""
    name = f"far{os.getpid()}"
    near, far = f"vn{os.getpid()}", f"vf{os.getpid()}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", "10.213.7.1/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", "10.213.7.2/30", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)


def may_make_networks() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


@pytest.mark.soak
@pytest.mark.skipif(not may_make_networks(), reason="only root, with iproute2, can make a network to cut")
def test_16_a_sender_that_vanished_behind_a_cut_cable(tmp_path: Path) -> None:
    """It cannot say good-bye. Only the probes of keep-alive find out, and let the receiver connect to its successor."""
    with far_away() as network, running(tmp_path, "tcp://10.213.7.2:9999", stall_timeout=1.0) as engine:

        def send(series: int, frames: int) -> subprocess.Popen[bytes]:
            path = str(tmp_path / f"{series}.h5")
            code = ["ip", "netns", "exec", network, sys.executable, "-c", FAR_SENDER, path, str(series), str(frames)]
            return subprocess.Popen(code, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2])

        def cable(state: str) -> None:
            link = f"vf{os.getpid()}"
            subprocess.run(["ip", "-n", network, "link", "set", link, state], check=True)

        first = send(1, 10)
        wait_for(lambda: engine.snapshot().written == 10, timeout=30)
        cable("down")
        first.kill()
        first.wait()
        first.stdin.close()  # type: ignore[union-attr]
        assert wait_closed(engine, 1).missing == 10
        cable("up")
        second = send(2, 20)
        try:
            wait_for(lambda: engine.snapshot().closed == 2, timeout=60)
            assert balanced(engine).missing == 0 and holds(tmp_path / "2.h5", range(20))
        finally:
            second.kill()
            second.wait()
            second.stdin.close()  # type: ignore[union-attr]


def test_19_two_receivers_race_for_one_name(tmp_path: Path) -> None:
    """One gets the file, the other an error; no file holds frames of both."""
    with Sender() as left, Sender() as right:
        with running(tmp_path, left.endpoint) as one, running(tmp_path, right.endpoint) as other:
            for series in range(1, 41):
                path = tmp_path / f"{series}.h5"
                ready = threading.Barrier(2)

                def send(sender: Sender, first: int, series: int = series, path: Path = path, ready=ready) -> None:
                    ready.wait()
                    sender.start(path, series=series, nframes=5, **KNOWN)
                    for number in range(5):
                        sender.frame(number, image(first + number))

                senders = [threading.Thread(target=send, args=a) for a in ((left, 0), (right, 1000))]
                for thread in senders:
                    thread.start()
                for thread in senders:
                    thread.join()
                wait_for(lambda n=series: all(took_five(e.snapshot(), n) for e in (one, other)))
                won = [e.snapshot().written for e in (one, other)]
                assert sorted(won) == [0, 5], won
                loser = other if won[0] else one
                assert "exist" in loser.snapshot().error
                wait_for(lambda: all(e.snapshot().file == "" for e in (one, other)))
                with h5py.File(path) as h5:
                    first = 0 if won[0] else 1000
                    assert all((h5[DATASET][n] == image(first + n)).all() for n in range(5))
                for engine in (one, other):
                    engine.stop()
                    engine.reset()


def took_five(s: Snapshot, series: int) -> bool:
    return s.series == series and s.written + s.discarded == 5


@pytest.mark.slow
@pytest.mark.parametrize("cycles", [15, pytest.param(1000, marks=pytest.mark.soak)])
def test_35_starts_and_stops_at_random_moments(tmp_path: Path, cycles: int) -> None:
    """Whatever the engine is doing, it ends within 3 s and leaves no thread; what it had written is sound."""
    rng = random.Random(cycles)
    for cycle in range(cycles):
        path = tmp_path / f"{cycle}.h5"
        threads = threading.active_count()
        with Sender() as sender:
            over = threading.Event()

            def send(sender: Sender = sender, path: Path = path, over=over) -> None:
                with suppress(zmq.Again):
                    sender._socket.sndtimeo = 100
                    sender.start(path, series=1, nframes=3000, **KNOWN)
                    for number in range(3000):
                        if over.is_set():
                            return
                        sender.frame(number)

            sending = threading.Thread(target=send)
            with running(tmp_path, sender.endpoint, workers=rng.choice([1, 2, 4])) as engine:
                sending.start()
                time.sleep(rng.choice([0, rng.uniform(0, 0.15)]))
                if rng.random() < 0.3:
                    engine.stop()
                begun = time.monotonic()
            assert time.monotonic() - begun < 3
            over.set()
            sending.join()
        assert threading.active_count() == threads
        if path.exists():
            assert holds(path, stored(path), length=3000)
            path.unlink()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("starts", [5, pytest.param(200, marks=pytest.mark.soak)])
def test_36_starts_under_load(tmp_path: Path, starts: int) -> None:
    """A busy machine and a sender that is already sending: none fails, each ends with 0."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    port = free_port()
    path = tmp_path / "receiver.yaml"
    endpoint = f"tcp://127.0.0.1:{port}"
    path.write_text(yaml.safe_dump({"endpoints": [endpoint], "root": str(tmp_path), "http": "", "workers": 2}))
    over = threading.Event()

    def send() -> None:
        with Sender(port) as sender:
            sender._socket.sndtimeo = 50
            while not over.is_set():
                with suppress(zmq.Again):
                    sender.start("", series=sender.serial, nframes=3)
                    sender.frames(range(3))

    sending = threading.Thread(target=send)
    sending.start()
    try:
        for _ in range(starts):
            process = subprocess.Popen([PROGRAM, "receive", str(path)], stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            seen = []
            for line in process.stderr:  # until it says that a series came
                seen.append(line)
                if "closed" in line:
                    break
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=30)[1]
            assert process.returncode == 0, "".join(seen) + rest
            assert "Traceback" not in "".join(seen) + rest
    finally:
        over.set()
        sending.join()
        for one in busy:
            one.kill()
            one.wait()


def test_36_a_start_that_fails_ends_with_a_code(tmp_path: Path) -> None:
    path = tmp_path / "receiver.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        path.write_text(yaml.safe_dump({"endpoints": ["tcp://127.0.0.1:9"], "root": str(tmp_path), "http": http}))
        failed = subprocess.run([PROGRAM, "receive", str(path)], capture_output=True, text=True, timeout=60)
    assert failed.returncode not in (0, None) and http.rpartition(":")[2] in failed.stderr
    assert "Traceback" not in failed.stderr


def test_39_many_receivers_and_readers_of_hdf5_in_one_process(tmp_path: Path) -> None:
    over, problems = threading.Event(), []

    def look() -> None:
        while not over.is_set():
            for path in tmp_path.glob("*/*.h5"):
                try:
                    with h5py.File(path) as h5:
                        if (
                            DATASET in h5
                            and len(h5[DATASET])
                            and (first := h5[DATASET][0]).any()
                            and (first != image(0)).any()
                        ):
                            problems.append(path)
                except (OSError, KeyError, ValueError, IndexError):  # it is just being made
                    pass

    def receive(root: Path) -> None:
        with Sender() as sender, running(root, sender.endpoint) as engine:
            for series in range(1, 16):
                sender.start(root / f"{series}.h5", series=series, nframes=5, **KNOWN)
                sender.frames(range(5))
                if wait_closed(engine, series).written != 5:
                    problems.append(root / f"{series}.h5")

    roots = [tmp_path / str(n) for n in range(4)]
    for root in roots:
        root.mkdir()
    readers = [threading.Thread(target=look) for _ in range(2)]
    receivers = [threading.Thread(target=receive, args=(root,)) for root in roots]
    for thread in (*readers, *receivers):
        thread.start()
    for thread in receivers:
        thread.join()
    over.set()
    for thread in readers:
        thread.join()
    assert not problems
    for root in roots:
        assert all(holds(root / f"{series}.h5", range(5)) for series in range(1, 16))


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" + bytes(8) + b"\x01\x7f\x03",
        # libzmq does not try again after this one
        pytest.param(b"\xff" + bytes(8) + b"\x7f\x03\x00PLAIN" + bytes(47), marks=pytest.mark.slow, id="mechanism"),
    ],
)
def test_40_a_peer_that_speaks_something_else(tmp_path: Path, says: bytes) -> None:
    """Nothing of it is written; when the right one takes its place, its series is whole."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as server:
        server.settimeout(5)
        port = server.getsockname()[1]
        with running(tmp_path, f"tcp://127.0.0.1:{port}") as engine:
            for _ in range(3):
                link, _ = server.accept()
                with link, suppress(OSError):
                    link.sendall(says)
                    link.shutdown(socket.SHUT_WR)
            assert balanced(engine).written == 0  # the oldest ZeroMQ had no greeting: bytes may pass for messages
            server.close()
            with Sender(port) as sender:
                sender.start(tmp_path / "a.h5", series=1, nframes=20)
                sender.frames(range(20))
                assert wait_closed(engine, 1).written == 20 and holds(tmp_path / "a.h5", range(20))
