"""The WebSocket, over real sockets: what viewers get, and what slow ones do not."""

import contextlib
import json
import math
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tangods_receiver import http, viewers
from tangods_receiver.errors import ConfigError
from tangods_receiver.http import HttpServer
from tangods_receiver.protocol import SeriesStart
from tangods_receiver.stats import Snapshot
from tests.receiver.streaming import Sender, read, running, wait_closed
from tests.receiver.test_http import Engine, Shot
from tests.waiting import wait_for


class Camera(Engine):
    """An engine whose images the test hands over; it counts how often it was asked for them."""

    def __init__(self, **more):
        super().__init__(**more)
        self.came = threading.Condition()
        self.given = 0

    def put(self, shot):
        with self.came:
            self.shot = shot
            self.came.notify_all()

    def last_frame(self, kind="last", newer_than=None, wait=0.0, channel=0):
        if channel > 1:
            raise ConfigError(f"channel {channel}: the stream has channels 0 to 1")
        with self.came:
            self.came.wait_for(lambda: self.shot is not None and self.shot.id != newer_than, wait)
            shot = self.shot
        if shot is None or shot.id == newer_than:
            return None
        self.given += 1
        self.asked.append((kind, channel))
        return shot


class Client:
    """A viewer that shows nothing; it acknowledges when it is told to."""

    def __init__(self, socket):
        self.socket = socket
        self.others = []

    def say(self, **values):
        self.socket.send(json.dumps(values))

    def picture(self, timeout=5.0, shown=True):
        """(header, pixels, marks) of the next one."""
        end = time.monotonic() + timeout
        while True:
            message = self.socket.recv(max(0.0, end - time.monotonic()))
            if isinstance(message, bytes):
                break
            self.others.append(json.loads(message))
        header, pixels, marks = unpacked(message)
        if shown:
            self.say(shown=header["id"])
        return header, pixels, marks

    def other(self, kind, timeout=5.0):
        """The next message of this type."""
        end = time.monotonic() + timeout
        while True:
            for message in self.others:
                if message["type"] == kind:
                    self.others.remove(message)
                    return message
            message = self.socket.recv(max(0.0, end - time.monotonic()))
            if isinstance(message, str):
                self.others.append(json.loads(message))


def unpacked(message):
    length = int.from_bytes(message[:4], "little")
    header = json.loads(message[4 : 4 + length])
    assert (4 + length) % 8 == 0
    count, dtype = math.prod(header["shape"]), np.dtype(header["dtype"]).newbyteorder("<")
    pixels = np.frombuffer(message, dtype, count, 4 + length).reshape(header["shape"])
    rest = message[4 + length + pixels.nbytes :]
    assert len(rest) == (count if header["marks"] else 0)
    return header, pixels, np.frombuffer(rest, np.uint8).reshape(header["shape"]) if rest else None


@pytest.fixture
def engine():
    return Camera()


@pytest.fixture
def server(engine):
    with HttpServer(engine, "127.0.0.1:0") as server:
        yield server


@contextlib.contextmanager
def viewer(server):
    with connect(f"ws://127.0.0.1:{server.port}/ws", max_size=None) as socket:
        yield Client(socket)


def shot(number, array=None, series=3, **more):
    array = np.arange(48, dtype=np.uint16).reshape(6, 8) if array is None else array
    return Shot(number, series, array, **more)


def test_a_picture_is_told_about_and_its_values_are_the_detectors(engine, server):
    image = np.arange(48, dtype=np.uint32).reshape(6, 8) * 70000
    image[2, 3] = 2**32 - 1
    engine.start = SeriesStart("a.h5", metadata={"saturation_value": 70000 * 47}, channels=("low", "high"))
    engine.put(shot(7, image, timestamp=1.5, frames=2))
    with viewer(server) as client:
        client.say(kind="sum", channel=1, pixel=[5, 6])
        header, pixels, marks = client.picture()
    np.testing.assert_array_equal(pixels, image)
    assert (marks[2, 3], marks[5, 7], np.count_nonzero(marks)) == (1, 2, 2)
    assert header.pop("age") < 10
    assert header == {
        **{"type": "picture", "id": 1, "kind": "sum", "channel": 1, "channels": ["low", "high"]},
        **{"series": 3, "number": 7, "frames": 2, "timestamp": 1.5},
        **{"shape": [6, 8], "dtype": "uint32", "source": "uint32", "region": [0, 0, 6, 8], "full": [6, 8]},
        **{"factor": 1, "method": "mean", "marks": True},
        "pixel": {"row": 5, "column": 6, "value": 46 * 70000, "masked": False, "saturated": False},
    }
    assert engine.asked == [("sum", 1)]


def test_what_is_wished_for_is_cut_out_and_made_smaller(engine, server):
    engine.put(shot(1, np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)))
    with viewer(server) as client:
        client.say(size=[16, 16], method="max")
        header, pixels, _ = client.picture()
        np.testing.assert_array_equal(pixels, engine.shot.array[3::4, 3::4])
        assert (header["factor"], header["region"]) == (4, [0, 0, 64, 64])
        client.say(region=[10, 20, 26, 36])  # of the same image: nothing new came
        header, pixels, _ = client.picture()
        np.testing.assert_array_equal(pixels, engine.shot.array[10:26, 20:36])
        assert (header["factor"], header["region"], header["number"]) == (1, [10, 20, 26, 36], 1)
        client.say(region=None, size=[8, 64], method="sample")
        header, pixels, _ = client.picture()
        np.testing.assert_array_equal(pixels, engine.shot.array[::8, ::8])


@pytest.mark.parametrize(("dtype", "sent"), [("int16", "int16"), ("float32", "float32"), ("uint64", "float32")])
def test_types(engine, server, dtype, sent):
    engine.put(shot(1, np.arange(12).reshape(3, 4).astype(dtype)))
    with viewer(server) as client:
        client.say()
        header, pixels, _ = client.picture()
    assert (header["dtype"], header["source"]) == (sent, dtype)
    np.testing.assert_array_equal(pixels, engine.shot.array)


def test_nothing_is_sent_before_the_viewer_says_what_it_wants(engine, server):
    engine.put(shot(1))
    with viewer(server) as client:
        with pytest.raises(TimeoutError):
            client.picture(0.4)
        client.say()
        assert client.picture()[0]["number"] == 1


def test_the_next_picture_waits_until_the_last_is_shown_and_is_the_newest(engine, server):
    with viewer(server) as client:
        client.say(rate=50)
        engine.put(shot(0))
        header, *_ = client.picture(shown=False)
        for number in range(1, 30):
            engine.put(shot(number))
        with pytest.raises(TimeoutError):
            client.picture(0.5)
        client.say(shown=header["id"] + 1)  # not the one that was sent
        with pytest.raises(TimeoutError):
            client.picture(0.2)
        engine.put(shot(30))
        wait_for(lambda: engine.shot.number == 30)
        client.say(shown=header["id"])
        numbers = [client.picture()[0]["number"]]
        while numbers[-1] != 30:
            numbers.append(client.picture()[0]["number"])
        assert len(numbers) <= 2  # no queue: at most what it had looked at already
        with pytest.raises(TimeoutError):  # it is sent once
            client.picture(0.4)


def test_an_image_of_the_same_number_is_another_one(engine, server):
    """Single exposures that each begin at 0."""
    with viewer(server) as client:
        engine.put(shot(0))
        client.say(rate=50)
        client.picture()
        engine.put(shot(0, np.full((6, 8), 7, np.uint16), again=1))
        assert (client.picture()[1] == 7).all()


def test_no_more_pictures_than_wished_for(engine, server):
    stop = threading.Event()

    def feed():
        number = 0
        while not stop.wait(0.01):
            engine.put(shot(number := number + 1))

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with viewer(server) as client:
            client.say(rate=5)
            client.picture()
            began = time.monotonic()
            for _ in range(5):
                client.picture()
            assert time.monotonic() - began > 0.9
    finally:
        stop.set()
        feeder.join()


def test_many_viewers_share_the_decoding_and_the_cutting_out(engine, server, monkeypatch):
    cut = []
    original = viewers.pictures.view
    monkeypatch.setattr(viewers.pictures, "view", lambda *args: cut.append(args[1:5]) or original(*args))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(viewer(server)) for _ in range(8)]
        for client in clients:
            client.say(size=[3, 4], rate=50)
        time.sleep(0.3)
        for number in range(5):
            engine.put(shot(number))
            assert [client.picture()[0]["number"] for client in clients] == [number] * 8
        assert engine.given == 5 and len(cut) == 5


def test_a_slow_viewer_holds_nobody_up(engine, server):
    big = np.random.default_rng(1).integers(0, 9, (3000, 3000)).astype(np.uint32)  # larger than all buffers on the way
    with viewer(server) as slow, viewer(server) as quick:
        slow.say(size=[3000, 3000])
        quick.say(size=[30, 30], rate=50)
        engine.put(shot(0, big))
        quick.picture()
        for number in range(1, 6):
            engine.put(shot(number, big))
            assert quick.picture()[0]["number"] == number
        assert httpx.get(f"http://127.0.0.1:{server.port}/status").status_code == 200
        header, pixels, _ = slow.picture(20)
        assert header["number"] == 0
        np.testing.assert_array_equal(pixels, big)
        assert slow.picture(20)[0]["number"] == 5


def test_a_pixel_of_the_image_that_is_shown(engine, server):
    engine.put(shot(1, np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)))
    with viewer(server) as client:
        client.say(size=[8, 8])
        header, *_ = client.picture()
        assert header["factor"] == 8 and header["pixel"] is None
        client.say(pixel=[10, 3])
        said = client.other("pixel")
        assert (said["series"], said["number"], said["pixel"]["value"]) == (3, 1, 643)
        client.say(pixel=[64, 3])
        assert client.other("pixel")["pixel"] is None
        client.say(pixel=[10, 4])
        assert client.other("pixel")["pixel"]["value"] == 644
        engine.put(shot(2, engine.shot.array + 1))
        assert client.picture()[0]["pixel"]["value"] == 645
        client.say(pixel=None)
        client.other("pixel")
        engine.put(shot(3))
        assert client.picture()[0]["pixel"] is None


def test_status_twice_a_second(engine, server):
    with viewer(server) as client:
        first = client.other("status")
        assert Snapshot.from_dict(first) == engine.now
        began = time.monotonic()
        for _ in range(3):
            client.other("status")
        assert 1.0 < time.monotonic() - began < 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "message: Invalid JSON"),
        ("[]", "message: Input should be an object"),
        ('{"kind": "first"}', "kind: Input should be 'last', 'sum', 'max' or 'average'"),
        ('{"region": [1, 2, 3]}', "region"),
        ('{"region": [-1, 2, 3, 4]}', "region.0"),
        ('{"size": [0, 100]}', "size.0"),
        ('{"size": [1, 1000000000]}', "size.1"),
        ('{"rate": 1e9}', "rate: Input should be less than or equal to 50"),
        ('{"rate": 0}', "rate: "),
        ('{"saturation": NaN}', "Invalid JSON|finite"),
        ('{"colour": "red"}', "colour: Extra inputs are not permitted"),
        ('{"channel": 99}', "channel 99: the stream has channels 0 to 1"),
        (b"\xff\xfe", "message: "),
    ],
)
def test_a_wish_that_is_none_gets_a_sentence_and_nothing_else_happens(engine, server, text, words):
    import re

    engine.put(shot(1))
    with viewer(server) as client:
        client.socket.send(text)
        assert re.search(words, client.other("error")["error"])
        client.say(channel=0)
        assert client.picture()[0]["number"] == 1


def test_a_message_that_is_too_long_ends_the_connection(server):
    with viewer(server) as client:
        client.socket.send("x" * 5000)
        with pytest.raises(ConnectionClosed):
            while True:
                client.socket.recv(5)


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def text(**values):
    """A WebSocket message of a client, masked with zeros; up to 125 bytes."""
    payload = json.dumps(values).encode()
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


@contextlib.contextmanager
def deaf(server):
    """A viewer that says what it likes and reads nothing but the handshake."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(UPGRADE)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += sock.recv(1)
        assert answer.startswith(b"HTTP/1.1 101")
        yield sock


def waiting(server):
    """Bytes that wait in memory for each connection."""
    return [connection.transport.get_write_buffer_size() for connection in server._server.server_state.connections]


BIG = np.random.default_rng(1).integers(0, 9, (3000, 3000)).astype(np.uint32)


def test_for_a_viewer_that_reads_nothing_one_picture_waits_however_much_it_says(engine, server):
    with deaf(server) as sock:
        engine.put(shot(1, BIG))
        sock.sendall(text(size=[3000, 3000]))
        wait_for(lambda: waiting(server)[0] > BIG.nbytes / 2)
        sock.settimeout(0.05)
        with contextlib.suppress(TimeoutError):  # nobody reads that any more
            for number in range(2, 20_000):
                if number % 1000 == 2:
                    engine.put(shot(number, BIG))
                sock.sendall(text(shown=number % 50, pixel=[1, 1]))
        time.sleep(1.2)  # status twice
        assert waiting(server)[0] < BIG.nbytes + 100_000
        assert httpx.get(f"http://127.0.0.1:{server.port}/status").status_code == 200


def test_who_reads_nothing_for_long_is_cut_off_and_what_waited_for_him_is_gone(engine, monkeypatch):
    monkeypatch.setattr(http, "STALLED", 1.0)
    engine.put(shot(1, BIG))
    get = b"GET /last_frame HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with HttpServer(engine, "127.0.0.1:0") as server:
        with deaf(server) as one, deaf(server) as two, socket.socket() as page:
            one.sendall(text(size=[3000, 3000]))
            two.sendall(text(size=[3000, 3000]))
            page.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            page.connect(("127.0.0.1", server.port))
            page.sendall(get)
            wait_for(lambda: sum(size > BIG.nbytes / 2 for size in waiting(server)) == 3)
            wait_for(lambda: waiting(server) == [], timeout=20)
        with viewer(server) as client:  # its place is free
            client.say()
            assert client.picture()[0]["number"] == 1


def test_viewers_that_read_nothing_do_not_touch_the_recording(tmp_path):
    images = [np.full((1500, 1400), number, np.uint32) for number in range(12)]  # larger than buffers of the system
    with Sender() as sender, running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(deaf(engine._http)) for _ in range(8)]
            for sock in socks:
                sock.sendall(text(size=[1500, 1400], rate=50))
            sender.start(tmp_path / "a.h5", 1, nframes=12)
            for number, pixels in enumerate(images):
                sender.frame(number, pixels)
                time.sleep(0.05)
            sender.end()
            closed = wait_closed(engine, 1)
            wait_for(lambda: sum(size > 1e6 for size in waiting(engine._http)) == 8)  # pictures nobody takes
        assert (closed.written, closed.missing) == (12, 0)
    data, _ = read(tmp_path / "a.h5")
    np.testing.assert_array_equal(data, images)


def test_more_viewers_than_there_is_room_for(server, monkeypatch):
    monkeypatch.setattr(viewers, "MOST", 2)
    with viewer(server) as one, viewer(server) as two:
        one.other("status"), two.other("status")
        with viewer(server) as three, pytest.raises(ConnectionClosed) as refused:
            three.other("status")
        assert refused.value.rcvd.code == 1013 and "2 viewers" in refused.value.rcvd.reason
    wait_for(lambda: _welcome(server))


def _welcome(server):
    with viewer(server) as client:
        try:
            return client.other("status")
        except ConnectionClosed:
            return None


def test_no_image_yet(engine, server):
    with viewer(server) as client:
        client.say()
        with pytest.raises(TimeoutError):
            client.picture(0.3)
        engine.put(shot(1))
        assert client.picture()[0]["number"] == 1


def test_when_nobody_looks_nothing_is_decoded_and_no_image_is_kept(engine, server):
    engine.put(shot(1))
    with viewer(server) as client:
        client.say()
        client.picture()
    time.sleep(0.4)
    given = engine.given
    engine.put(shot(2))
    time.sleep(0.4)
    assert engine.given == given


@pytest.mark.parametrize("reading", [True, False])
def test_the_server_ends_at_once_also_when_a_viewer_does_not_read(engine, reading):
    before = set(threading.enumerate())
    server = HttpServer(engine, "127.0.0.1:0")
    server.start()
    big = np.random.default_rng(1).integers(0, 9, (3000, 3000)).astype(np.uint32)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(viewer(server)) for _ in range(3)]
        for client in clients:
            client.say(size=[3000, 3000])
            if not reading:
                client.socket.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
        engine.put(shot(1, big))
        if reading:
            for client in clients:
                client.picture(20)
        else:
            time.sleep(1.0)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1.5
        if reading:
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    clients[0].socket.recv(5)
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1012
    wait_for(lambda: {t for t in threading.enumerate() if not t.name.startswith("AnyIO")} <= before)
