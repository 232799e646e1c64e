"""A Lambda by xspd: what is asked for, frames and their numbers, and what may go wrong."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
import zmq

from tangods_detector import blosc
from tangods_detector.hw.lambda_system import Feature, FrameStatus
from tangods_detector.hw.lambda_xspd import LambdaXspd, XspdOptions, host_and_port
from tangods_detector.hw.lambda_xspd_frames import Acquisition, Frames, Port
from tangods_detector.simulators.xspd import Failures, XspdSimulator, layouts
from tangods_detector.simulators.xspd import XspdOptions as UnitOptions
from tangods_receiver.errors import ConfigError, HardwareError, StreamError
from tests.contract import wait_for

LIMIT = 30.0  # s


# --- numbers ---------------------------------------------------------------------------------------------------------


def plan(frames: int = 100_000, period: float | None = 0.001, counters: int = 1) -> Acquisition:
    return Acquisition(frames, period, counters, ["none"], [0])


class Clock:
    """Frames of one port as they come: their lowest bits, and when."""

    def __init__(self, acquisition: Acquisition) -> None:
        self.port, self.acquisition = Port(), acquisition

    def sees(self, number: int, at: float, latest: int = 0, behind: int = 0) -> int:
        return self.port.place(number % 256, at, self.acquisition, max(latest, self.port.last), behind)


def test_numbers_of_all_frames() -> None:
    clock = Clock(plan())
    assert [clock.sees(n, n / 1000) for n in range(1, 2000)] == [*range(1, 2000)]


@pytest.mark.parametrize("lost", [1, 100, 255, 257, 300, 511, 5000])
def test_a_loss_is_as_long_as_it_lasted(lost: int) -> None:
    clock = Clock(plan())
    for n in range(1, 101):
        clock.sees(n, n / 1000)
    back = 101 + lost
    assert clock.sees(back, back / 1000 + 0.05) == back
    assert clock.sees(back + 1, back / 1000 + 0.05) == back + 1


@pytest.mark.parametrize("lost", [256, 300, 512])
def test_a_loss_where_other_ports_went_on(lost: int) -> None:
    clock = Clock(plan())
    for n in range(1, 101):
        clock.sees(n, n / 1000, n)
    assert clock.sees(101 + lost, (101 + lost) / 1000, 101 + lost - 10) == 101 + lost


@pytest.mark.parametrize("lost", [300, 700])
def test_dead_time_that_nobody_tells_is_found_out(lost: int) -> None:
    clock = Clock(plan())
    for n in range(1, 101):
        clock.sees(n, n * 0.003)
    assert clock.sees(101 + lost, (101 + lost) * 0.003) == 101 + lost


@pytest.mark.parametrize("lost", [200, 300, 1000])
def test_where_edges_decide_the_other_ports_tell(lost: int) -> None:
    clock = Clock(plan(period=None))
    for n in range(1, 101):
        clock.sees(n, 0.0, n)
    assert clock.sees(101 + lost, 0.0, 101 + lost - 40) == 101 + lost


def test_a_module_that_is_late_is_not_taken_for_one_that_lost_frames() -> None:
    """By 200 frames, with one lost now and then."""
    clock = Clock(plan())
    for n in range(1, 1000):
        if n % 50:
            assert clock.sees(n, n / 1000 + 0.2, n + 200) == n


def test_frames_that_were_held_up_are_not_taken_for_lost() -> None:
    """For 300 frames, of which one is lost in truth; then all come at once."""
    clock = Clock(plan())
    for n in range(1, 101):
        clock.sees(n, n / 1000)
    assert [clock.sees(n, 0.4, behind=400 - n) for n in range(102, 401)] == [*range(102, 401)]


def test_numbers_end_with_the_acquisition() -> None:
    clock = Clock(plan(frames=300))
    for n in range(1, 101):
        clock.sees(n, n / 1000)
    assert clock.sees(300, 10.0) == 300


@pytest.mark.parametrize("first", [200, (1 << 24) - 2, 1 << 20])
def test_a_counter_that_does_not_begin_at_1(first: int) -> None:
    clock = Clock(plan(frames=150))
    assert [clock.sees(first + k, 0.001 * k) for k in range(150)] == [*range(1, 151)]


def test_the_first_frames_may_be_lost() -> None:
    clock = Clock(plan())
    assert clock.sees(51, 0.051) == 51
    assert clock.sees(52, 0.052) == 52


def test_frames_that_share_a_number_or_come_again() -> None:
    clock = Clock(plan(counters=2))
    assert [clock.sees(n, 0.001 * k) for k, n in enumerate([1, 1, 2, 2, 4])] == [1, 1, 2, 2, 4]
    again = Clock(plan())
    assert [again.sees(n, 0.001 * k) for k, n in enumerate([1, 2, 2, 3])] == [1, 2, 2, 3]


# --- the thread ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sender() -> Iterator[tuple[Any, str]]:
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher:
        publisher.linger = 0
        yield publisher, f"tcp://127.0.0.1:{publisher.bind_to_random_port('tcp://127.0.0.1')}"


def begin(frames: Frames, publisher: Any, **more: Any) -> None:
    """Once the subscription is there."""
    begun = {"frames": 1000, "period": None, "counters": 1, "compressor": ["none"], "nbytes": [4], **more}
    frames.begin(Acquisition(**begun))
    end = time.monotonic() + LIMIT
    while frames.next(0, 0.02) is None:
        assert time.monotonic() < end
        publisher.send_multipart([b"", b"\1\0\0\0", bytes(4)])
    frames.forget()
    frames.begin(Acquisition(**begun))


def test_frames_wait_until_they_are_taken_and_are_forgotten(sender: tuple[Any, str]) -> None:
    publisher, endpoint = sender
    with closing(Frames([endpoint], 1_000_000)) as frames:
        begin(frames, publisher)
        for n in (1, 2, 3):
            publisher.send_multipart([b"", bytes([n, 7, n == 2, 1]), bytes([n] * 4)])
        wait_for("them", lambda: frames.waiting(0) == 3, LIMIT)
        found = [frames.next(0, 1.0) for _ in range(2)]
        assert [(f.number, f.status, bytes(f.pixels), f.trigger) for f in found if f] == [
            (1, FrameStatus.OK, b"\1" * 4, 7),
            (2, FrameStatus.INCOMPLETE, b"\2" * 4, 7),
        ]
        frames.forget()
        assert frames.waiting(0) == 0 and frames.next(0, 0.0) is None


def test_beyond_the_memory_frames_are_dropped_and_their_numbers_known(sender: tuple[Any, str]) -> None:
    publisher, endpoint = sender
    with closing(Frames([endpoint], 100)) as frames:
        begin(frames, publisher, nbytes=[40])
        for n in range(1, 6):
            publisher.send_multipart([b"", bytes([n, 0, 0, 0]), bytes(40)])
        wait_for("the loss", lambda: frames.dropped == 3, LIMIT)
        assert [f.number for f in (frames.next(0, 1.0), frames.next(0, 1.0)) if f] == [1, 2]
        publisher.send_multipart([b"", bytes([6, 0, 0, 0]), bytes(40)])
        last = frames.next(0, LIMIT)
        assert last is not None and last.number == 6


@pytest.mark.parametrize("parts", [[b"one"], [b"", b"\1\0", b"data"], [b"", b"\1\0\0\0", b"a", b"b"]])
def test_what_is_no_frame(sender: tuple[Any, str], parts: list[bytes]) -> None:
    publisher, endpoint = sender
    with closing(Frames([endpoint], 1_000_000)) as frames:
        begin(frames, publisher)
        publisher.send_multipart(parts)
        with pytest.raises(HardwareError, match="are no frame"):
            frames.next(0, LIMIT)


@pytest.mark.parametrize("compressor", ["zlib", "blosc/lz4"])
def test_damaged_pixels_are_told(sender: tuple[Any, str], compressor: str) -> None:
    publisher, endpoint = sender
    with closing(Frames([endpoint], 1_000_000)) as frames:
        begin(frames, publisher, nbytes=[4000])
        frames.begin(Acquisition(1000, None, 1, [compressor], [4000]))
        raw = bytes(range(250)) * 16
        good = zlib.compress(raw) if compressor == "zlib" else blosc.compress(raw, 2, "lz4", 5, "BYTE_SHUFFLE")
        for n, data in enumerate((good, good[:-5], b"nonsense", zlib.compress(b"short")), 1):
            publisher.send_multipart([b"", bytes([n, 0, 0, 0]), data])
        found = [frames.next(0, LIMIT) for _ in range(4)]
        states = [f.status for f in found if f]
        assert states == [FrameStatus.OK, *[FrameStatus.COMPRESSION_FAILED] * 3]
        assert found[0] is not None and bytes(found[0].pixels) == raw


@pytest.mark.parametrize("shuffle", blosc.SHUFFLES)
def test_blosc(shuffle: str) -> None:
    raw = (np.arange(5000, dtype=np.uint16) % 37).tobytes()
    packed = blosc.compress(raw, 2, "lz4", 5, shuffle)
    assert len(packed) < len(raw) and blosc.decompress(memoryview(packed), len(raw)) == raw
    for wrong, size in ((packed, 9999), (packed[:-1], len(raw)), (b"", 0), (packed[:16], len(raw))):
        with pytest.raises(StreamError, match="blosc"):
            blosc.decompress(wrong, size)
    with pytest.raises(StreamError, match="nothing"):
        blosc.compress(raw, 2, "nothing", 5, shuffle)


# --- orders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unit() -> Iterator[XspdSimulator]:
    with XspdSimulator(UnitOptions(layout="pair", chip=16, sensor="CdTe")) as unit:
        yield unit


@pytest.fixture
def system(unit: XspdSimulator) -> Iterator[LambdaXspd]:
    with closing(LambdaXspd(XspdOptions(unit.address))) as system:
        system.connect()
        yield system


def test_what_is_there(unit: XspdSimulator, system: LambdaXspd) -> None:
    told = system.describe()
    assert (told.detector, told.library, told.bit_depth, told.dtype) == ("lambda", "xspd 1.6.0", 12, "uint16")
    assert [(m.name, m.shape, m.x, m.y, m.rotation) for m in told.modules] == [
        ("lambda/1", (36, 116), 0.0, 0.0, 0.0),
        ("lambda/2", (36, 116), 0.0, 44.0, 0.0),
    ]
    assert told.modules[0].features == Feature.HV | Feature.BITS_1_6 | Feature.EXTENDED_GATING
    assert len(told.modules[0].chip_ids) == 12


def test_values(unit: XspdSimulator, system: LambdaXspd) -> None:
    system.set("thresholds", [4.5, 8.0])
    system.set("trigger_mode", "EXT_FRAMES")
    system.set("voltage", 250.0, 1)
    assert system.get("thresholds") == [4.5, 8.0] and system.get("trigger_mode") == "EXT_FRAMES"
    assert [system.get("voltage", k) for k in (0, 1)] == [298.0, 250.0]
    assert system.get("temperature", 0) == [53.1, 53.3, 42.1] and system.get("max_frames", 1) == 6930
    assert system.get("frames_per_trigger") == 1
    system.set("frames_per_trigger", 1)
    with pytest.raises(HardwareError, match="one frame a trigger, not 2"):
        system.set("frames_per_trigger", 2)
    with pytest.raises(HardwareError, match="n_frames&value=0: 400 .*argument invalid"):
        system.set("n_frames", 0)
    with pytest.raises(HardwareError, match="no such variable"):
        system.get("nothing")
    with pytest.raises(HardwareError, match="no module 2"):
        system.get("voltage", 2)


def ready(system: LambdaXspd) -> bool:
    return all(m.ready and m.ram_allocated and m.voltage_settled for m in system.status())


def test_states_and_frames(unit: XspdSimulator, system: LambdaXspd) -> None:
    wait_for("readiness", lambda: ready(system), LIMIT)
    system.set("n_frames", 3)
    for _ in range(2):
        system.start()
        for module in (0, 1):
            frames = [system.next_frame(module, LIMIT) for _ in range(3)]
            assert [f.number for f in frames] == [1, 2, 3]
            images = [np.frombuffer(f.pixels, np.uint16).reshape(36, 116) for f in frames]
            assert [layouts.stamped(image) for image in images] == [(module + 1, n, 0) for n in range(3)]
        wait_for("the end", lambda: not any(m.busy for m in system.status()), LIMIT)
    system.set("shutter_time", 60_000.0)
    system.start()
    wait_for("busy", lambda: all(m.busy and not m.ready for m in system.status()), LIMIT)
    system.stop()
    wait_for("readiness", lambda: ready(system), LIMIT)
    system.reset()
    wait_for("readiness", lambda: ready(system), LIMIT)
    assert system.get("thresholds") == []


def test_what_is_not_ready(unit: XspdSimulator, system: LambdaXspd) -> None:
    unit.fail(Failures(never_ready=[2]))
    assert [(m.connected, m.ready) for m in system.status()] == [(True, True), (True, False)]
    unit.fail(Failures(no_ram=[1]))
    system.set("bit_depth", 24)
    wait_for("the memory of the other", lambda: system.status()[1].ram_allocated, LIMIT)
    assert [m.ram_allocated for m in system.status()] == [False, True]
    unit.fail(Failures(voltage_seconds=1.0))
    system.reset()
    assert not any(m.voltage_settled for m in system.status())
    wait_for("readiness", lambda: ready(system), LIMIT)


def test_the_voltage_that_is_wished(unit: XspdSimulator) -> None:
    with closing(LambdaXspd(XspdOptions(unit.address, high_voltage=250.0))) as system:
        system.connect()
        time.sleep(0.7)
        assert not any(m.voltage_settled for m in system.status()), "it is 298 V"
        for module in (0, 1):
            system.set("voltage", 251.0, module)
        wait_for("the voltage", lambda: ready(system), LIMIT)


def test_the_pixel_mask_where_it_is_told(unit: XspdSimulator, system: LambdaXspd) -> None:
    assert system.pixel_mask(0) is None
    mask = np.arange(36 * 116, dtype="<u4").reshape(36, 116)
    unit.unit.variables.values["port-2/pixel_mask"] = base64.b64encode(mask.tobytes()).decode()
    found = system.pixel_mask(1)
    assert found is not None
    np.testing.assert_array_equal(found, mask)
    unit.unit.variables.values["port-2/pixel_mask"] = "AAAA"
    assert system.pixel_mask(1) is None


# --- somebody else ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("lambda1", "lambda1", 8008),
        ("lambda1:80", "lambda1", 80),
        ("http://lambda1", "lambda1", 8008),
        ("http://10.1.1.1:8009/", "10.1.1.1", 8009),
    ],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert host_and_port(address) == (host, port)


@pytest.mark.parametrize("address", ["", "https://a", "http://", "a:b", "http://a/api", "a:0"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        LambdaXspd(XspdOptions(address))


DEVICE = {
    "id": "x",
    "system": {"detectors": [{"id": "lambda", "modules": 2}], "data-ports": [{"ref": "lambda/1", "id": "port-1",
                                                                             "ip": "", "port": 1}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "404"),
        ({"/api": "text"}, "is this a xspd"),
        ({"/api": []}, "is this xspd"),
        ({"/api": {}, "/api/v1/devices": {"devices": []}}, "no device ''; there are none"),
        ({"/api": {}, "/api/v1/devices": {}}, "is this xspd"),
        (
            {"/api": {}, "/api/v1/devices": {"devices": [{"id": "x"}]}, "/api/v1/devices/x": DEVICE,
             "/api/v1/devices/x/variables": []},
            "no data port for lambda/2",
        ),
    ],
)  # fmt: skip
def test_somebody_else_answers(answers: dict[str, Any], words: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = answers.get(self.path)
            self.send_response(404 if told is None else 200)
            self.end_headers()
            self.wfile.write(told.encode() if isinstance(told, str) else json.dumps(told).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            system = LambdaXspd(XspdOptions(f"127.0.0.1:{server.server_port}", timeout=LIMIT))
            with closing(system), pytest.raises(HardwareError, match=words):
                system.connect()
        finally:
            server.shutdown()
            thread.join()


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    system = LambdaXspd(XspdOptions(f"127.0.0.1:{port}"))
    with closing(system):
        with pytest.raises(HardwareError, match="refused"):
            system.connect()
        for act in (system.status, system.start, system.stop, lambda: system.next_frame(0, 0.0)):
            with pytest.raises(HardwareError, match="not connected"):
                act()
