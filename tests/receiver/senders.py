"""Detectors that publish: array-1.0, xspd and the SLS detector package, as their makers' programs send."""

import contextlib
import json
import time
import zlib

import numpy as np
import zmq

from tests.receiver.streaming import SHAPE, image
from tests.waiting import wait_for


class Publisher:
    """Binds a PUB socket (or PUSH) on a free port; `hwm` messages wait for a subscriber, then they are dropped."""

    def __init__(self, kind=zmq.PUB, hwm=1000):
        self._context = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.sndhwm = hwm
        self.socket.sndtimeo = 10_000
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"

    def close(self):
        self.socket.close(0)
        self._context.term()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def parts(self, parts):
        self.socket.send_multipart(parts)


class Array1(Publisher):
    """array-1.0."""

    def frame(self, number, pixels=None, **more):
        pixels = image(number) if pixels is None else pixels
        self.parts(self.message(number, pixels, **more))

    def frames(self, numbers):
        for number in numbers:
            self.frame(number)

    @staticmethod
    def message(number, pixels, **more):
        head = {"htype": "array-1.0", "shape": list(pixels.shape), "type": str(pixels.dtype), "frame": number} | more
        return [json.dumps(head).encode(), pixels.tobytes()]


class Xspd(Publisher):
    """One data port of xspd. Numbers begin anew with each start of the detector."""

    def frame(self, number, pixels=None, trigger=0, status=0, compressed=False):
        pixels = image(number) if pixels is None else pixels
        self.parts(self.message(number, pixels, trigger, status, compressed))

    def frames(self, numbers):
        for number in numbers:
            self.frame(number)

    @staticmethod
    def message(number, pixels, trigger=0, status=0, compressed=False):
        data = pixels.tobytes()
        header = bytes([number % 256, trigger % 256, status, 8 * pixels.itemsize])
        return [b"", header, zlib.compress(data, 1) if compressed else data]


class SlsPort(Publisher):
    """One port of a receiver of the SLS detector package, at (row, column) of `detshape` (columns, rows)."""

    def __init__(self, row=0, column=0, detshape=(1, 1), shape=SHAPE, detector=3, bits=16, **socket):
        super().__init__(**socket)
        place = {"row": row, "column": column, "detshape": list(detshape)}
        self.settings = self.usual(shape, bits, detType=detector, **place)
        self.first = None

    @staticmethod
    def usual(shape=SHAPE, bits=16, **more):
        """What is in every header."""
        kind = {"jsonversion": 4, "bitmode": bits, "fileIndex": 0, "detshape": [1, 1], "shape": [shape[1], shape[0]]}
        kind |= {"size": shape[0] * shape[1] * bits // 8, "fname": "/run", "row": 0, "column": 0, "detType": 3}
        return kind | {"version": 2, "flipRows": 0, "quad": 0, "rx_roi": [-1, -1, -1, -1]} | more

    def acquire(self, **settings):
        """A new acquisition: what its headers hold besides."""
        self.settings |= settings
        self.first = None

    def header(self, number, **more):
        """`number` is the detector's."""
        self.first = number if self.first is None else self.first
        counts = {"acqIndex": number, "frameIndex": number - self.first, "frameNumber": number, "progress": 1.5}
        udp = {"expLength": 0, "packetNumber": 8, "detSpec1": 0, "timestamp": 0, "modId": 1}
        rest = {"data": 1, "completeImage": 1, "detSpec2": 0, "detSpec3": 0, "detSpec4": 0}
        return self.settings | counts | udp | rest | more

    def frame(self, number, pixels=None, **more):
        pixels = image(number).tobytes() if pixels is None else pixels
        self.parts([json.dumps(self.header(number, **more)).encode() + b"\n", pixels])

    def frames(self, numbers):
        for number in numbers:
            self.frame(number)

    def end(self):
        """The dummy header: all zeros."""
        self.parts([self.dummy()])

    @staticmethod
    def dummy():
        zeros = dict.fromkeys(("bitmode", "fileIndex", "size", "acqIndex", "frameIndex", "progress", "frameNumber"), 0)
        shapes = {"detshape": [0, 0], "shape": [0, 0], "fname": "", "data": 0, "completeImage": 0}
        return json.dumps({"jsonversion": 4} | zeros | shapes).encode()


def subscribed(engine, *publishers, beat):
    """PUB drops what it sends before it knows its subscribers: `beat(publisher)` is sent until each is heard. Then
    nothing of it is under way any more."""
    for count, publisher in enumerate(publishers):
        wait_for(lambda p=publisher: _heard_after(engine, p, beat), what=f"subscriber of publisher {count}")
    last = -1
    while (now := total(engine)) != last:
        last = now
        time.sleep(0.15)


def _heard_after(engine, publisher, beat):
    before = total(engine)
    beat(publisher)
    with contextlib.suppress(AssertionError):
        return wait_for(lambda: total(engine) > before, timeout=0.1)
    return False


def total(engine):
    """Messages of all kinds that came since the engine began."""
    return sum(worker.received for worker in engine.snapshot().workers)


def turned(pixels):
    return np.ascontiguousarray(pixels[::-1])
