"""A Lambda behind the C interface of libxsp that is pretended by a library of our own."""

import ctypes
import hashlib
import os
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tangods_detector.hw.lambda_client import LambdaUnit, UnitOptions
from tangods_detector.hw.lambda_libxsp import LambdaLibxsp, LibxspOptions
from tangods_detector.simulators.build import build
from tangods_receiver.protocol import SeriesEnd
from tests.waiting import wait_for

HEADER = Path(__file__).parents[2] / "resources/lambda/xl.h"
SHAPE = (32, 64)
LONG = 30  # s, for what takes a moment on an idle machine


def library(folder=None, *flags):
    """Built with gcc."""
    if shutil.which(os.environ.get("CC", "gcc").split()[0]) is None:
        pytest.skip("no C compiler here (gcc, or $CC): the pretended libxsp cannot be built")
    version = hashlib.sha256(HEADER.read_bytes()).hexdigest()[:16]
    return build("fake_xl.c", ("-Werror", f"-I{HEADER.parent}", f"-DXL_HEADER=0x{version[:8]}", *flags), folder)


class Fake:
    """The library loaded here: what it is told, and what it tells. A system opens it."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.fake_xl.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_double]
        self._library.fake_xl_get.argtypes = [ctypes.c_char_p, ctypes.c_int]
        self._library.fake_xl_get.restype = ctypes.c_int64

    def tell(self, name, value, module=0):
        assert self._library.fake_xl(name.encode(), module, value), name

    def get(self, name, module=0):
        return self._library.fake_xl_get(name.encode(), module)

    def edges(self, count=1):
        self.tell("edge", count)


def config(folder, modules=2, **values):
    """A configuration file; a list has a value for each module."""
    lines = [f"modules {modules}", f"width {SHAPE[1]}", f"height {SHAPE[0]}"]
    for name, value in {"ring": 2000, **values}.items():
        each = enumerate(value) if isinstance(value, list | tuple) else [("", value)]
        lines += [f"{name} {module} {one}" for module, one in each]
    path = folder / "system.yml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def image(module, number, shape=SHAPE, depth=12):
    """What a module (in its unit) sends under this number of its counter (from 1)."""
    mask = {24: 0xFFFFFF, 12: 0xFFF}.get(depth, 0xFF)
    pixels = (3 * np.arange(shape[0] * shape[1]).reshape(shape) + 101 * module) & mask
    pixels[0] = number & mask
    return pixels.astype({24: np.uint32, 12: np.uint16}.get(depth, np.uint8))


@contextmanager
def unit(path, config_file, first=0, connect=True, **options):
    """A unit in this process."""
    system = LambdaLibxsp(LibxspOptions(str(path), config_file))
    with LambdaUnit.here(system, UnitOptions(**{"port": 0, "first": first, **options})) as client:
        if connect:
            client.describe()
        yield client


def arm(client, series, filename, nframes, modules=2, *, wait=True, **more):
    """With places below each other."""
    places = {"x": [0] * modules, "y": [k * SHAPE[0] for k in range(modules)], "rotation": [0] * modules}
    client.begin_arm(series, filename, nframes, modules=modules, metadata={"exptime": 0.001, **places}, **more)
    if wait:
        client.wait_armed()


def set_up(client, frames=20, **settings):
    client.begin_configure({"n_frames": frames, "shutter_time": 1.0, "thresholds": [6.0], **settings})
    return client.wait_configured()


def module(client, number=0):
    return next(one for one in client.status().modules if one.module == number)


def given_back(fake, modules=2):
    """Every frame that was taken is in the ring again."""
    taken = [fake.get("taken", k) for k in range(modules)]
    assert [fake.get("released", k) for k in range(modules)] == taken
    assert [fake.get("refused", k) for k in range(modules)] == [0] * modules


def pixels_of(listener, number):
    """Frames of a module, by their number, from a listener."""
    return {f.number: np.frombuffer(f.data, f.dtype).reshape(f.shape) for f in listener.frames() if f.module == number}


def over(client, listener, series, modules=2):
    """The status, when all end messages have come too."""
    status = client.wait_over(LONG)
    wait_for(lambda: sum(isinstance(m, SeriesEnd) and m.series == series for m in listener.messages) == modules, LONG)
    return status


def two_ports(taken):
    """Has this socket listen at a port; the one before it is free."""
    for port in range(20_001, 60_000, 97):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port - 1))
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.listen()
        return port
    raise AssertionError("no two ports are free")
