"""The data ports: PUB sockets that drop what a subscriber does not fetch in time, and what waits to be sent."""

from __future__ import annotations

import heapq
import itertools
import struct
import zlib
from typing import Any, NamedTuple

import zmq
from numpy.typing import NDArray

from tangods_detector import blosc
from tangods_receiver.errors import HardwareError

SIZES = {1: 0, 6: 1, 12: 2, 24: 3}  # byte 3 of the header; what it is in truth is not known
COPY_BELOW = 1_000_000  # bytes


class Job(NamedTuple):
    """A frame to be sent `at` some time by the port `port`; `order` so that none overtakes another at the same time."""

    at: float
    order: int
    port: int
    modules: tuple[int, ...]  # positions of those in it
    number: int
    counter: int
    incomplete: bool


class Ports:
    """Made and closed in one thread; `send` is for that thread alone."""

    def __init__(self, host: str, count: int, first: int, hwm: int) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._sockets: list[Any] = []
        self.numbers: list[int] = []
        try:
            for k in range(count):
                socket = self._context.socket(zmq.PUB)
                self._sockets.append(socket)
                socket.linger, socket.sndhwm = 0, hwm
                socket.bind(f"tcp://{host}:{first + k if first else '*'}")
                endpoint = str(socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
                self.numbers.append(int(endpoint.rpartition(":")[2]))
        except zmq.ZMQError as exc:
            self.close()
            raise HardwareError(f"cannot bind a data port to tcp://{host}:{first + k}: {exc}") from exc

    def send(self, port: int, header: bytes, data: Any) -> None:
        self._sockets[port].send_multipart([b"", header, data], copy=len(data) < COPY_BELOW)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()
        self._context.term()


class Waiting:
    """Frames that are exposed and not sent yet, by the time when they are to be."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._orders = itertools.count()
        self._latest: dict[int, float] = {}  # of each port, so that frames of a module stay in order
        self.queued: dict[int, int] = {}  # frames of each port

    def add(
        self, at: float, port: int, modules: tuple[int, ...], number: int, counter: int, incomplete: bool = False
    ) -> None:
        at = self._latest[port] = max(at, self._latest.get(port, 0.0))
        heapq.heappush(self._jobs, Job(at, next(self._orders), port, modules, number, counter, incomplete))
        self.queued[port] = self.queued.get(port, 0) + 1

    def next_at(self) -> float | None:
        return self._jobs[0].at if self._jobs else None

    def pop(self, now: float) -> Job | None:
        """The first whose time has come."""
        if not self._jobs or self._jobs[0].at > now:
            return None
        job = heapq.heappop(self._jobs)
        self.queued[job.port] -= 1
        return job

    def clear(self) -> None:
        self._jobs.clear()
        self._latest.clear()
        self.queued.clear()


def header(number: int, trigger: int, incomplete: bool, depth: int) -> bytes:
    """The lowest eight bits of the frame's number, those of the trigger's, status, depth; what follows is unknown, here
    the whole number."""
    return struct.pack("<BBBBI", number & 0xFF, trigger & 0xFF, incomplete, SIZES[depth], number & 0xFFFFFF)


def packed(image: NDArray[Any], compressor: str, level: int, shuffle: str) -> Any:
    """The pixels as they are sent."""
    if compressor == "none":
        return image.data.cast("B")
    raw = image.tobytes()
    if compressor == "zlib":
        return zlib.compress(raw, level)
    return blosc.compress(raw, image.itemsize, compressor.partition("/")[2], level, shuffle)
