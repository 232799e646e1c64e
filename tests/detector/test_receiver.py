"""The receiver as the detector sees it: a real HTTP side, a real Tango device in another process, and none at all."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
from tango.server import Device, attribute, command

from tangods_detector.receiver import (
    HttpReceiver,
    Receiver,
    ReceiverError,
    TangoReceiver,
    open_receiver,
    snapshot_from,
)
from tangods_receiver.errors import ConfigError
from tangods_receiver.http import encode_npy
from tangods_receiver.imaging import NO_VIDEO_IMAGE, video_image
from tangods_receiver.stats import Snapshot
from tests.tangocontext import started


def unused_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# --- addresses ---


@pytest.mark.parametrize("address", ["http://host:8000", "https://host", " http://h:1/ "])
def test_http_addresses(address: str) -> None:
    receiver = open_receiver(address)
    assert isinstance(receiver, HttpReceiver) and not receiver.name.endswith("/")
    receiver.close()


@pytest.mark.parametrize("address", ["b1/daq/rec", "tango://h:10000/b1/daq/rec", "tango://h:1/a/b/c#dbase=no", "alias"])
def test_tango_names(address: str) -> None:
    assert isinstance(open_receiver(address), TangoReceiver)


@pytest.mark.parametrize(
    "address", ["", "None", "a/b", "ftp://x", "a b", "a/b/c/d", "http://", "http://[", "http://h:x"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="http://host:8000"):
        open_receiver(address)


def test_a_snapshot_of_a_newer_receiver() -> None:
    assert snapshot_from({"state": "idle", "opened": 3, "invented_later": 1}) == Snapshot(opened=3)


# --- HTTP ---


class Side(BaseHTTPRequestHandler):
    """What an engine's HTTP side answers."""

    answers: dict[str, tuple[int, bytes]]
    asked: list[str]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.asked.append(f"{self.command} {self.path} {body}".strip())
        code, content = self.answers.get(self.path.split("?")[0], (404, b'{"error": "no image yet"}'))
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Frame", "12")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def side() -> Iterator[tuple[type[Side], Receiver]]:
    kind = type("ThisSide", (Side,), {"answers": {}, "asked": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    receiver = open_receiver(f"http://127.0.0.1:{server.server_port}")
    yield kind, receiver
    receiver.close()
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_http_calls(side: tuple[type[Side], Receiver]) -> None:
    kind, receiver = side
    kind.answers = {
        "/status": (200, json.dumps(Snapshot(opened=4, file="/d/a").as_dict()).encode()),
        "/check": (200, b'{"value": "no room"}'),
        "/stop": (200, b"{}"),
        "/reset": (200, b"{}"),
        "/last_frame": (200, encode_npy(np.arange(6, dtype=np.uint16).reshape(2, 3))),
    }
    assert receiver.snapshot() == Snapshot(opened=4, file="/d/a")
    assert receiver.check("/d/a b.h5", 12) == "no room"
    assert receiver.check("/d/a", 0, overwrite=True) == "no room"
    assert "overwrite=true" in kind.asked[-1] and "overwrite" not in kind.asked[-2]
    receiver.stop(4)
    receiver.reset()
    receiver.restart()
    picture = receiver.last_frame()
    assert picture and picture.number == receiver.last_number() == 12
    np.testing.assert_array_equal(picture.array, [[0, 1, 2], [3, 4, 5]])
    assert receiver.video_image() == video_image(picture.array, 12)
    assert any("path=%2Fd%2Fa" in line and "nbytes=12" in line for line in kind.asked)
    assert any(line.startswith("POST /stop") and json.loads(line[11:]) == {"series": 4} for line in kind.asked)


def test_http_answers_that_make_no_sense(side: tuple[type[Side], Receiver]) -> None:
    kind, receiver = side
    assert receiver.last_frame() is None and receiver.last_number() == -1
    assert receiver.video_image() == NO_VIDEO_IMAGE
    for answer in ((200, b"<html>"), (200, b"[1]"), (500, b"boom")):
        kind.answers = dict.fromkeys(("/status", "/last_frame"), answer)
        with pytest.raises(ReceiverError, match=receiver.name):
            receiver.snapshot()
        with pytest.raises(ReceiverError, match=receiver.name):
            receiver.last_frame()


def test_nobody_at_the_address() -> None:
    receiver = open_receiver(f"http://127.0.0.1:{unused_port()}")
    for call in (receiver.snapshot, receiver.reset, receiver.last_frame, lambda: receiver.check("/x", 0)):
        with pytest.raises(ReceiverError, match=f"receiver {receiver.name}.*check that it runs there"):
            call()
    receiver.close()


# --- Tango ---


class PretendDevice(Device):
    """The part of a StreamReceiver that a detector asks."""

    def init_device(self) -> None:
        super().init_device()
        self.called: list[str] = []

    @attribute(dtype=str)
    def Snapshot(self) -> str:
        return json.dumps(Snapshot(opened=7).as_dict()) if "Reset" not in self.called else "nonsense"

    @attribute(dtype=int)
    def LastImageNumber(self) -> int:
        return 5 if self.called else -1

    @attribute(dtype=((np.float32,),), max_dim_x=10, max_dim_y=10)
    def LastImage(self) -> np.ndarray:
        return np.ones((2, 3), np.float32)

    @attribute(dtype=str)
    def Called(self) -> str:
        return " ".join(self.called)

    @command(dtype_in=(str,), dtype_out=str)
    def CheckFile(self, arguments: list[str]) -> str:
        return f"no room for {' '.join(arguments[1:])} bytes at {arguments[0]}"

    @command
    def Stop(self) -> None:
        self.called.append("Stop")

    @command
    def Reset(self) -> None:
        self.called.append("Reset")


def test_tango_calls() -> None:
    context = started(PretendDevice, host="127.0.0.1")
    with context as proxy:
        receiver = open_receiver(context.get_device_access())
        assert receiver.snapshot() == Snapshot(opened=7)
        assert receiver.check("/d/a.h5", 12) == "no room for 12 bytes at /d/a.h5"
        assert "12 overwrite" in receiver.check("/d/a.h5", 12, overwrite=True)
        assert receiver.last_frame() is None and receiver.last_number() == -1
        receiver.stop(7)
        assert receiver.last_number() == 5
        picture = receiver.last_frame()
        assert picture and picture.number == 5 and picture.array.shape == (2, 3)
        receiver.reset()
        assert proxy.Called == "Stop Reset"
        with pytest.raises(ReceiverError, match="makes no sense"):
            receiver.snapshot()
        receiver.restart()
        assert receiver.snapshot() == Snapshot(opened=7)
    with pytest.raises(ReceiverError, match="check that its server StreamReceiver runs"):
        receiver.snapshot()
    receiver.close()


def test_no_such_device() -> None:
    receiver = open_receiver(f"tango://127.0.0.1:{unused_port()}/a/b/c#dbase=no")
    with pytest.raises(ReceiverError, match="check that its server StreamReceiver runs"):
        receiver.snapshot()
