"""A Detector with a PILATUS, its StreamReceiver, the simulated camserver and the streamer: a process each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tangods_detector.localtango import LocalTango
from tangods_detector.simulators.camserver import models
from tangods_detector.simulators.camserver.pictures import Picture, Pictures
from tests.system.beamline import DATASET, Beamline, wait_for

MODEL = "100K"
KIND = "PILATUS3 X"
ROOMY = 1 << 45  # bytes: any number of images, as far as camserver knows
PROGRAM = str(Path(sys.executable).parent / "tangods-detector")
GOOD = {"nFramesPerTrigger": 20}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Process:
    """A program with these arguments; `line` is what it prints when it is ready."""

    program: tuple[str, ...] = (PROGRAM,)

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        self.process = subprocess.Popen([*self.program, *self._arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().split()
        assert self.line, "it did not begin"

    def end(self, sign: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(sign)
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Camserver(Process):
    """`tangods-detector simulate pilatus`, with a RAM disk of its own; `folder` is what it writes into."""

    def __init__(self, model: str = MODEL, *arguments: str) -> None:
        self.model, self.port = model, free_port()
        self._more = arguments

    def start(self) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix="system_pilatus_", dir="/dev/shm"))
        self.folder = self._temporary / "images"
        self._begin()

    def _begin(self) -> None:
        where = ("--folder", str(self.folder), "--port", str(self.port))
        more = ("--model", self.model, "--kind", KIND, "--capacity", str(ROOMY))
        self._arguments = ("simulate", "pilatus", *where, *more, *self._more)
        super().start()
        self._test_port = int(self.line[-2].rpartition(":")[2])

    def end(self, sign: int = signal.SIGTERM) -> None:
        super().end(sign)
        shutil.rmtree(self._temporary)

    def switch_off(self) -> None:
        super().end(signal.SIGKILL)

    def switch_on(self) -> None:
        """Again, where it was; it has forgotten everything."""
        self._begin()

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> None:
        self._ask(edge=n, width=width, period=period)

    def fail(self, **failures: Any) -> None:
        """Instead of what was wished before."""
        self._ask(fail=failures)

    @property
    def exposing(self) -> bool:
        return bool(self._ask()["exposing"])

    def images(self) -> list[str]:
        """Names of the files that are there."""
        return sorted(p.name for p in self.folder.glob("*.cbf"))

    def _ask(self, **told: Any) -> dict[str, Any]:
        with socket.create_connection(("127.0.0.1", self._test_port), 10) as sock, sock.makefile("rb") as file:
            sock.sendall(json.dumps(told).encode() + b"\n")
            return dict(json.loads(file.readline()))


class Streamer(Process):
    """stream-pilatus as a detector's computer runs it, which begins quickly; always at the same ports."""

    program = (sys.executable, "-m", "tangods_detector.hw.pilatus_control")

    def __init__(self, folder: Path, *arguments: str) -> None:
        stream, control = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.endpoint, self.address = f"tcp://{stream}", f"tcp://{control}"
        folder.mkdir(exist_ok=True)
        super().__init__(str(folder), "--stream", stream, "--control", control, *arguments)


class PilatusBeamline(Beamline):
    """`way`: `here` the Detector reads the images, `there` a streamer of its own process does."""

    def __init__(
        self,
        local: LocalTango,
        instance: str,
        root: Path,
        cam: Camserver,
        way: str,
        options: Sequence[str] = ("md5_share = 1",),
        receiver: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        properties = {"Transforms": ["bslz4"], "EndTimeout": 1.0, **(receiver or {})}
        super().__init__(local, instance, root, **properties)
        self.cam, self.way, self._options, self._more = cam, way, options, more
        self.streamer: Streamer | None = None

    def __enter__(self) -> PilatusBeamline:
        options = ["host = 127.0.0.1", f"port = {self.cam.port}", "timeout = 2", *self._options]
        if self.way == "there":
            said = dict(option.replace(" ", "").split("=") for option in self._options)
            self.streamer = Streamer(self.cam.folder, "--md5-share", said.get("md5_share", "0.05"))
            self.streamer.start()
            options.append(f"streamer = {self.streamer.address}")
            endpoint = self.streamer.endpoint
        else:
            port = free_port()
            options += [f"folder = {self.cam.folder}", f"stream_port = {port}"]
            endpoint = f"tcp://127.0.0.1:{port}"
        properties = {"Backend": "pilatus", "BackendOptions": options, "Receiver": self.receiver_name, **self._more}
        self.put("Detector", self.detector_name, **properties)
        self.put("StreamReceiver", self.receiver_name, Root=str(self.root), Endpoints=[endpoint])
        self.put("StreamReceiver", self.receiver_name, **self.receiver_properties)
        self.start_receiver()
        self.start_detector()
        self.wait_on(60)
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if self.streamer is not None:
            self.streamer.end()

    def processes(self) -> dict[str, int]:
        """Names and numbers of those that have to do with images."""
        servers = {name: f"{name}/{self.instance}" for name in ("Detector", "StreamReceiver")}
        found = {name: self.local.process(server).pid for name, server in servers.items()}
        found["camserver"] = self.cam.process.pid
        return found if self.streamer is None else found | {"stream-pilatus": self.streamer.process.pid}

    def good_series(self) -> None:
        file = self.acquire(**GOOD)
        assert_pixels(file, range(20))
        assert self.detector.nFramesMissing == 0, self.detector.status()
        assert self.detector.LastError == "", self.detector.status()
        assert not self.cam.exposing
        wait_for("an empty RAM disk", lambda: not self.cam.images(), 30)
        file.unlink()


@lru_cache
def pictures(model: str = MODEL, gapfill: int = -1) -> tuple[Picture, ...]:
    """What camserver shows in turn."""
    return Pictures(models.model(KIND, model)).get("0", gapfill)


def assert_pixels(
    file: Path, numbers: Sequence[int], each: int = 0, model: str = MODEL, lost: Sequence[int] = ()
) -> None:
    """The file has these images and no others, each pixel of each as camserver has shown it. `each` images of one
    exposure command (0: all), after which the stamp and the pictures begin again."""
    kept = pictures(model)
    with h5py.File(file) as h5:
        data = h5[DATASET]
        assert data.shape == (len(numbers), *kept[0].array.shape) and data.dtype == np.int32
        for number in numbers:
            if number in lost:
                assert not data[number].any()
                continue
            k = number % each if each else number
            image, picture = data[number], kept[k % len(kept)]
            assert image[-1, -1] == picture.last(k), f"image {number} is not at its place"
            image[-1, -1] = picture.array[-1, -1]
            assert np.array_equal(image, picture.array), f"image {number}"


def most_files(folder: Path, until: Callable[[], bool]) -> int:
    """How many images lay there at the same time, at most."""
    most = 0
    while not until():
        most = max(most, sum(name.endswith(".cbf") for name in os.listdir(folder)))
    return most
