"""A Detector with a Lambda on several control units, each with a simulated xspd and a stream-lambda, and its
StreamReceiver: all in processes of their own."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import tango

from tangods_detector.localtango import LocalTango
from tangods_detector.simulators.xspd import XspdOptions, layouts
from tangods_detector.simulators.xspd.layouts import Drawing
from tests.system.beamline import DATASET, Beamline, wait_for

PROGRAM = str(Path(sys.executable).parent / "tangods-detector")
CHIP = 16
GOOD = {"nFramesPerTrigger": 20}


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`tangods-detector ...` and the words of its first line."""
    with subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()
        finally:
            process.kill()


def free_ports(count: int) -> int:
    """The first of so many in a row that are free, where the system hands out none by itself: a unit that is started
    again has the same."""
    for base in random.sample(range(20_000, 32_000, count), 100):
        with ExitStack() as stack, suppress(OSError):
            for port in range(base, base + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return base
    raise AssertionError(f"no {count} free ports in a row")


class Unit:
    """A control unit: xspd of some modules of a layout, and the process that sends them. `first` of them, from 0."""

    def __init__(self, layout: str, modules: str, first: int, *arguments: str, stream: Sequence[str] = ()) -> None:
        self.first, self._stream = first, stream
        self._xspd = ("--layout", layout, "--modules", modules, "--chip", str(CHIP), "--speed", "0.2", *arguments)
        self._ports = f"127.0.0.1:{free_ports(10)}", "127.0.0.1:0"

    def __enter__(self) -> Unit:
        self._stack = ExitStack()
        self.process, words = self._stack.enter_context(running("simulate", "lambda", *self._xspd))
        self.http = words[1]
        self._client = self._stack.enter_context(httpx.Client(base_url=self.http, timeout=10, trust_env=False))
        self.start_stream()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_stream()
        self._stack.close()

    def start_stream(self) -> None:
        """Again where it was."""
        stream, control = self._ports
        self._streamer = ExitStack()
        self.streamer, words = self._streamer.enter_context(
            running("stream-lambda", "--xspd", self.http, "--first", str(self.first), "--stream", stream,
                    "--control", control, *self._stream)
        )  # fmt: skip
        found = [word.strip(",") for word in words if word.startswith("tcp://")]
        self.endpoints, self.orders = found[:-1], found[-1]
        self._ports = stream, self.orders.removeprefix("tcp://")

    def stop_stream(self) -> None:
        self._streamer.close()

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> int:
        return int(self._post("/simulator/edge", n=n, width=width, period=period)["taken"])

    def fail(self, **failures: Any) -> None:
        """Instead of what was wished before."""
        self._post("/simulator/failures", **failures)

    def lost(self) -> dict[int, list[int]]:
        """Images that were never sent, by module from 1."""
        told = self._client.get("/simulator/failures").json()["lost"]
        return {int(module): numbers for module, numbers in told.items()}

    def read(self, path: str) -> Any:
        return self._variables("get", path=path)["value"]

    def write(self, path: str, value: str) -> None:
        """By somebody else than the Detector."""
        self._variables("put", path=path, value=value)

    def command(self, name: str) -> None:
        self._client.put("/api/v1/devices/lambda01/commands", params={"path": name}).raise_for_status()

    def _variables(self, verb: str, **query: str) -> dict[str, Any]:
        answer = self._client.request(verb, "/api/v1/devices/lambda01/variables", params=query)
        answer.raise_for_status()
        return dict(answer.json())

    def _post(self, path: str, **values: Any) -> dict[str, Any]:
        answer = self._client.post(path, json=values)
        answer.raise_for_status()
        return dict(answer.json())


class LambdaBeamline(Beamline):
    """Modules of `units` in the order of their numbers."""

    def __init__(
        self, local: LocalTango, instance: str, root: Path, layout: str, units: Sequence[Unit], **more: Any
    ) -> None:
        super().__init__(local, instance, root, EndTimeout=1.0)
        self.layout, self.units, self._more = layout, units, more

    def __enter__(self) -> LambdaBeamline:
        options = [f"units = {', '.join(unit.orders for unit in self.units)}", "ready_limit = 3"]
        options += ["initialize_limit = 3", "readout_time = 0.001"]
        properties = {"Backend": "lambda", "BackendOptions": options, "Receiver": self.receiver_name, **self._more}
        endpoints = [endpoint for unit in self.units for endpoint in unit.endpoints]
        self.put("Detector", self.detector_name, **properties)
        self.put("StreamReceiver", self.receiver_name, Root=str(self.root), Endpoints=endpoints)
        self.put("StreamReceiver", self.receiver_name, **self.receiver_properties)
        self.start_receiver()
        self.start_detector()
        self.wait_on(60)
        self.write("BitDepth", 12)
        self.write("Energy", 12000.0)
        return self

    def set(self, **settings: Any) -> Path:
        """On a busy machine a write may say that it takes long; it is repeated then."""
        chosen = {"DestinationFilename": str(self.new_file()), "ExposureTime": 0.002, "FrameTime": 0.0, **settings}
        for _ in range(10):
            with self.patience():
                return super().set(**chosen)
        raise AssertionError(f"{settings} cannot be set")

    @staticmethod
    @contextmanager
    def patience() -> Iterator[None]:
        """What only takes long is no failure."""
        try:
            yield
        except tango.DevFailed as exc:
            if "it goes on" not in exc.args[0].desc:
                raise
            time.sleep(1.0)

    def write(self, name: str, value: Any) -> None:
        with self.patience():
            setattr(self.detector, name, value)
        wait_for(f"{name} = {value}", lambda: getattr(self.detector, name) == value, 30)

    def edges(self, n: int = 1, width: float = 0.0, period: float | None = None) -> None:
        """At all units, as one cable would."""
        for unit in self.units:
            assert unit.edge(n, width, period), "the detector is not busy"

    def fail(self, **failures: Any) -> None:
        for unit in self.units:
            unit.fail(**failures)

    def good_series(self) -> None:
        file = self.acquire(**GOOD)
        assert self.detector.nFramesMissing == 0, self.detector.status()
        self.assert_sent(file, 20)
        file.unlink()

    def assert_sent(
        self,
        file: Path,
        n: int,
        lost: dict[int, list[int]] | None = None,
        counters: int = 1,
        depth: int = 12,
        each: int = 0,
    ) -> None:
        """Each module of each frame is in its place, as it was drawn; those that are lost read as 0 and are listed.

        `lost` by module from 1; `each` images of a start, after which they are drawn anew (0: of one start)."""
        lost = lost or {}
        picture = drawing(self.layout, depth)
        with h5py.File(file) as h5:
            data = h5[DATASET]
            assert data.shape[:1] == (n,)
            modules = data[:] if data.ndim == 4 else data[:][:, None]
            missing = {int(k) for a, b in h5["entry/instrument/detector/frames_missing"][()] for k in range(a, b + 1)}
        assert missing == {number for numbers in lost.values() for number in numbers}
        for number in range(n):
            for k, place in enumerate(picture.places):
                if number in lost.get(place.number, ()):
                    assert not modules[number, k].any(), f"module {place.number} of image {number} is not empty"
                    continue
                sent = picture.module(k, number % (each or n), number % counters)
                assert np.array_equal(modules[number, k], sent), (
                    f"image {number}, module {place.number}: there is {layouts.stamped(modules[number, k])}"
                )


@lru_cache
def drawing(layout: str, depth: int = 12) -> Drawing:
    """What is drawn over all modules."""
    options = XspdOptions(layout=layout, chip=CHIP)  # type: ignore[arg-type]
    shape = layouts.module_shape(options)
    places = layouts.layout(layout, shape)
    return Drawing(places, shape, depth, layouts.full_shape(places, shape))


def wait_frames(beamline: LambdaBeamline, n: int) -> None:
    wait_for(f"{n} frames", lambda: beamline.detector.nFramesAcquired >= n, 30)
