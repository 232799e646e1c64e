"""Orders for a Pilatus stream, in this process or on the detector's own computer."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import zmq

from tangods_detector.hw.pilatus_control import Orders
from tangods_detector.hw.pilatus_run import Options
from tangods_detector.hw.pilatus_stream import PilatusStream, Refused
from tangods_receiver import security
from tangods_receiver.errors import HardwareError
from tangods_receiver.security import Credentials

REPLY = 15.0  # s; an order is taken within TAKEN_ORDERS of the stream


@dataclass(frozen=True)
class StreamStatus:
    """As the stream tells it. `phase`: idle, arming, armed, running, ending, done, error; `waiting` images that came
    and are not sent; `lost` images that never came (known after the end), `damaged` ones that were put aside, `checked`
    ones whose sums are right."""

    phase: str
    message: str = ""
    series: int = -1
    nframes: int = 0
    sent: int = 0
    waiting: int = 0
    lost: int = 0
    lost_numbers: Sequence[Sequence[int]] = ()
    damaged: int = 0
    damaged_numbers: Sequence[Sequence[int]] = ()
    late: int = 0
    foreign: int = 0
    sent_again: int = 0
    checked: int = 0
    overflows: int = 0
    connections_lost: int = 0
    kept: int = 0
    polling: bool = False
    blocked: bool = False
    free_bytes: int = 0
    lowest_free_bytes: int = 0
    total_bytes: int = 0
    header: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, str] = field(default_factory=dict)


KNOWN = {one.name for one in fields(StreamStatus)}


class PilatusStreamer:
    """The stream at `address` (tcp://host:port), or (`here`) one in this process. Any thread may call; every method
    raises HardwareError with the stream's own words, or when it does not answer for `timeout` s."""

    def __init__(self, address: str, timeout: float = 3.0, credentials: Credentials | None = None) -> None:
        """`credentials` where the stream asks for keys."""
        self._line: _Line | None = _Line(address, timeout, credentials)
        self._ask: Callable[[dict[str, Any]], dict[str, Any]] = self._line.ask
        self._begin(address)

    @classmethod
    def here(cls, options: Options) -> PilatusStreamer:
        """Starts a stream in a thread of this process; `close` ends it."""
        new = cls.__new__(cls)
        stream = PilatusStream(options)
        try:
            stream.start()
        except Refused as exc:
            raise HardwareError(str(exc)) from exc
        new._line, new._ask = None, Orders(stream).answer
        new._begin(f"the stream of {options.folder}")
        new._stream = stream
        return new

    def _begin(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._stream: PilatusStream | None = None
        self._client = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:6]}"

    def __enter__(self) -> PilatusStreamer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ping(self) -> dict[str, Any]:
        """Program, version, folder, endpoint of the stream, who has control."""
        return self._order("ping")

    def endpoint(self) -> str:
        """Where the images are pulled from, as the stream's computer names it."""
        return str(self.ping()["endpoint"])

    def arm(
        self,
        series: int,
        filename: str,
        pattern: str,
        nframes: int | None,
        *,
        first: int = 0,
        folder: str = "",
        shape: Sequence[int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        expect: Mapping[str, Any] | None = None,
        present: str = "refuse",
        resume: bool = False,
        limit: float = 12.0,
    ) -> None:
        """Watch for the files of a series; returns when a receiver has the start message.

        `pattern` as test_%05d.cbf, `nframes` None: until it is stopped; `first` the number of the first file;
        `folder` below the stream's; `present` what is
        done with such files that are there already: refuse, send, delete, delete_all; `resume` a series whose streamer
        died; `expect` values of lines of the images' header."""
        wanted = {"filename": filename, "pattern": pattern, "first": first, "nframes": nframes, "folder": folder}
        wanted |= {"metadata": dict(metadata or {}), "expect": dict(expect or {}), "present": present, "resume": resume}
        self._order("arm", series=series, shape=None if shape is None else list(shape), **wanted)
        end = time.monotonic() + limit
        while (status := self.status()).phase == "arming":
            if time.monotonic() > end:
                raise HardwareError(f"{self._name}: series {series} is not armed after {limit:g} s")
            time.sleep(0.005)
        if status.phase == "error":
            raise HardwareError(f"{self._name}: {status.message}")

    def finish(self, frames: int | None = None) -> None:
        """camserver has written its last image: what is not there soon is lost."""
        self._order("finish", frames=frames)

    def stop(self, keep: bool = True) -> None:
        """End the series with what is there (`keep`) or at once; also without a series."""
        self._order("stop", keep=keep)

    def closed(self) -> None:
        """The receiver has closed the file of the series that is over: the last images may be deleted."""
        self._order("closed")

    def status(self) -> StreamStatus:
        """Cheap."""
        return StreamStatus(**{key: value for key, value in self._order("status").items() if key in KNOWN})

    def wait_over(self, limit: float) -> StreamStatus:
        """Until the series is done, or in error."""
        end = time.monotonic() + limit
        while (status := self.status()).phase not in ("idle", "done", "error"):
            if time.monotonic() > end:
                raise HardwareError(f"{self._name}: series {status.series} is {status.phase} after {limit:g} s")
            time.sleep(0.01)
        return status

    def close(self) -> None:
        """Give control back. A stream in this process ends; one elsewhere stays. Safe twice."""
        if self._line is not None and not self._line.closed:
            try:
                self._order("release")
            except HardwareError:
                pass  # it has ended, or another has control
            self._line.close()
        if self._stream is not None:
            self._stream.close()

    def _order(self, command: str, **more: Any) -> dict[str, Any]:
        with self._lock:
            reply = self._ask({"command": command, "client": self._client, **more})
        if not reply.get("ok"):
            raise HardwareError(f"{self._name}: {reply.get('error', 'no reason given')}")
        return reply


class _Line:
    """A REQ socket; after a reply that did not come it is made anew, because it would wait for that for ever."""

    def __init__(self, address: str, timeout: float, credentials: Credentials | None) -> None:
        self._address, self._timeout, self._credentials = address, timeout, credentials
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self.closed = False

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.closed:
            raise HardwareError(f"{self._address}: closed")
        limit = self._timeout if request["command"] in ("ping", "status", "release") else max(self._timeout, REPLY)
        try:
            if self._socket is None:
                self._socket = self._context.socket(zmq.REQ)
                self._socket.linger = 0
                if self._credentials is not None:
                    security.secure_client(self._socket, self._credentials)
                self._socket.connect(self._address)
            self._socket.send(json.dumps(request).encode())
            if not self._socket.poll(int(limit * 1000)):
                self._drop()
                raise HardwareError(f"{self._address} does not answer within {limit:g} s; does stream-pilatus run?")
            reply = json.loads(self._socket.recv())
        except (zmq.ZMQError, ValueError) as exc:
            self._drop()
            raise HardwareError(f"{self._address}: {exc}") from exc
        if type(reply) is not dict:
            raise HardwareError(f"{self._address}: the answer is {reply!r:.80}")
        return reply

    def close(self) -> None:
        self.closed = True
        self._drop()
        self._context.term()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
