"""A Detector with an EIGER, its StreamReceiver and the simulated control unit, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np

from tangods_detector.localtango import LocalTango
from tangods_detector.simulators.eiger import models
from tangods_detector.simulators.eiger.images import Picture, Pictures
from tangods_detector.simulators.eiger.parameters import Detector
from tests.system.beamline import DATASET, Beamline

MODEL = "EIGER2 500K"
PROGRAM = str(Path(sys.executable).parent / "tangods-detector")
PROTOCOLS = {"v1": "dectris1", "v2": "dectris2"}
GOOD = {"nFramesPerTrigger": 20}


class ControlUnit:
    """`tangods-detector simulate eiger`; `http` is its address, `endpoints` are those of the streams."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments

    def __enter__(self) -> ControlUnit:
        self._start(*self._arguments)
        return self

    def _start(self, *arguments: str) -> None:
        command = [PROGRAM, "simulate", "eiger", "--model", MODEL, "--speed", "0.002", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.http, v1, v2 = words[-3:]
        self.endpoints = {"v1": v1, "v2": v2}
        self.port = int(self.http.rpartition(":")[2])
        self._client = httpx.Client(base_url=self.http, timeout=10, trust_env=False)

    def switch_on(self) -> None:
        """Again, where it was; not initialised, as real ones are."""
        ports = [self.http, self.endpoints["v1"], self.endpoints["v2"]]
        names = ("--port", "--stream-port", "--cbor-port")
        self._start("--state", "na", *chain(*zip(names, (p.rpartition(":")[2] for p in ports), strict=True)))

    def __exit__(self, *_: object) -> None:
        self.switch_off()

    def switch_off(self) -> None:
        self._client.close()
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> None:
        self._post("/simulator/edge", n=n, width=width, period=period)

    def fail(self, **failures: Any) -> None:
        """Instead of what was wished before."""
        with suppress(httpx.RemoteProtocolError):  # a restart drops all connections
            self._post("/simulator/failures", **failures)

    def happened(self) -> list[str]:
        return list(self._client.get("/simulator/failures").json()["happened"])

    def command(self, name: str) -> None:
        """By somebody else than the Detector."""
        self._client.put(f"/detector/api/1.8.0/command/{name}").raise_for_status()

    def state(self) -> str:
        return str(self._client.get("/detector/api/1.8.0/status/state").json()["value"])

    def _post(self, path: str, **values: Any) -> None:
        self._client.post(path, json=values).raise_for_status()


class EigerBeamline(Beamline):
    """`stream` is v1 or v2."""

    def __init__(
        self,
        local: LocalTango,
        instance: str,
        root: Path,
        unit: ControlUnit,
        stream: str,
        options: Sequence[str] = (),
        **more: Any,
    ) -> None:
        super().__init__(local, instance, root, Protocol=PROTOCOLS[stream], EndTimeout=1.0)
        self.unit, self.stream, self._options, self._more = unit, stream, options, more

    def __enter__(self) -> EigerBeamline:
        endpoint = self.unit.endpoints[self.stream]
        options = ["host = 127.0.0.1", f"port = {self.unit.port}", f"stream = {self.stream}", f"endpoint = {endpoint}"]
        options += ["timeout = 3", "patience = 4", *self._options]
        properties = {"Backend": "eiger", "BackendOptions": options, "Receiver": self.receiver_name, **self._more}
        self.put("Detector", self.detector_name, **properties)
        self.put("StreamReceiver", self.receiver_name, Root=str(self.root), Endpoints=[endpoint])
        self.put("StreamReceiver", self.receiver_name, **self.receiver_properties)
        self.start_receiver()
        self.start_detector()
        self.wait_on(60)
        return self

    def good_series(self) -> None:
        file = self.acquire(**GOOD)
        assert_sent(file, 20)
        assert self.detector.nFramesMissing == 0, self.detector.status()
        assert self.unit.state() == "idle"
        file.unlink()


@lru_cache
def sent(exposure: float, period: float) -> tuple[bytes, ...]:
    """The blobs that the control unit sends in turn with these settings."""
    return tuple(picture.blobs[0] for picture in _encoded(exposure, period))


def pictures(exposure: float, period: float) -> list[np.ndarray]:
    """What is in them."""
    return [picture.arrays[0] for picture in _encoded(exposure, period)]


def _encoded(exposure: float, period: float) -> Sequence[Picture]:
    model = models.model(MODEL, "")
    detector = Detector(model)
    for name, value in (("count_time", exposure), ("frame_time", period)):
        detector.write(name, value)
    return Pictures(model).encoded(detector.arm(), "bslz4", raw_lz4=False)


def assert_sent(file: Path, n: int, exposure: float = 0.001, period: float = 0.002, lost: Sequence[int] = ()) -> None:
    """Chunk by chunk, what is in the file is what was sent."""
    blobs = sent(exposure, period)
    with h5py.File(file) as h5:
        data = h5[DATASET]
        assert data.shape[0] == n
        there = {}
        for k in range(data.id.get_num_chunks()):
            info = data.id.get_chunk_info(k)
            there[info.chunk_offset[0]] = info.chunk_offset
        assert sorted(there) == [k for k in range(n) if k not in lost]
        for k, offset in there.items():
            mask, blob = data.id.read_direct_chunk(offset)
            assert mask == 0 and blob == blobs[k % len(blobs)], f"image {k} is not what was sent"
