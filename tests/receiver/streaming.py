"""A STINS sender that does as it is told, and an engine to receive it."""

from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  the filters
import numpy as np
import zmq

from tangods_receiver import config
from tangods_receiver.engine import Engine
from tangods_receiver.protocol import stins
from tangods_receiver.recovery import check
from tests.waiting import wait_for

DATASET = "entry/instrument/detector/data"
SHAPE = (6, 10)


def image(number, shape=SHAPE, dtype="uint16"):
    """Pixels that tell which frame they are."""
    return (np.arange(np.prod(shape)).reshape(shape) + 7 * number).astype(dtype)


class Sender:
    """Binds a PUSH socket on a free port; numbers every message; `series` None: as streamers that send no ids."""

    def __init__(self, port=None):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.linger = 0
        self._socket.sndtimeo = 10_000
        self.port = port or self._socket.bind_to_random_port("tcp://127.0.0.1")
        if port:
            self._socket.bind(f"tcp://127.0.0.1:{port}")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.serial = 0
        self.series = None

    def close(self):
        self._socket.close()
        self._context.term()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def parts(self, parts):
        self._socket.send_multipart(parts)
        self.serial += 1

    def start(self, filename="", series=None, **optional):
        self.series = series
        self.parts(stins.encode_start(str(filename), self.serial, series=series, **optional))

    def frame(self, number, pixels=None, **optional):
        pixels = image(number) if pixels is None else pixels
        optional = {"serial": self.serial, "series": self.series} | optional
        head = stins.encode_frame_header(number, pixels.shape, str(pixels.dtype), "none", **optional)
        self.parts([head, pixels.tobytes()])

    def frames(self, numbers):
        for number in numbers:
            self.frame(number)

    def end(self, **optional):
        self.parts(stins.encode_end(**({"serial": self.serial, "series": self.series} | optional)))

    def lose(self, messages=1):
        """Messages that were numbered and never arrive."""
        self.serial += messages


@contextmanager
def running(root, *endpoints, **values):
    values = {"http": "", "end_timeout": 0.3, "commit_interval": 0.05} | values
    with Engine(config.make({"endpoints": endpoints, "root": root, **values})) as engine:
        yield engine


def wait_opened(engine, series):
    wait_for(lambda: engine.snapshot().opened == series, what=f"series {series} opened: {engine.snapshot()}")


def wait_closed(engine, series):
    """The snapshot right after; its books balance."""
    wait_for(lambda: engine.snapshot().closed == series, what=f"series {series} closed: {engine.snapshot()}")
    return balanced(engine)


def balanced(engine):
    s = engine.snapshot()
    assert s.received == s.written + s.repeated + s.foreign + s.rejected + s.discarded
    return s


def read(path):
    """All frames of a file, and the values of its NXdetector."""
    with h5py.File(Path(path)) as file:
        data = file[DATASET][()]
        books = {k: v[()] for k, v in file["entry/instrument/detector"].items() if isinstance(v, h5py.Dataset)}
    return data, books


def holds(path, numbers, length=None):
    """The file holds exactly these frames, each in its place, the others are 0; its books fit."""
    report = check(Path(path))
    assert report.ok, report.problems
    data, _ = read(path)
    numbers = set(numbers)
    assert len(data) == (length if length is not None else max(numbers, default=-1) + 1)
    for k, pixels in enumerate(data):
        expected = image(k) if k in numbers else np.zeros(SHAPE)
        assert (pixels == expected).all(), f"frame {k}"
    return True
