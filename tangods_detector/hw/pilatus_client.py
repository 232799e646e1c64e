"""Orders for a Pilatus stream, in this process or on the detector's own computer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tangods_detector.caller import Caller, Line
from tangods_detector.hw.pilatus_control import StreamOrders
from tangods_detector.hw.pilatus_run import Options
from tangods_detector.hw.pilatus_stream import PilatusStream
from tangods_detector.orders import Refused
from tangods_receiver.errors import HardwareError
from tangods_receiver.security import Credentials


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
        self._line: Line | None = Line(address, timeout, StreamOrders.program, StreamOrders.questions, credentials)
        self._stream: PilatusStream | None = None
        self._name = address
        self._order = Caller(address, self._line.ask)

    @classmethod
    def here(cls, options: Options) -> PilatusStreamer:
        """Starts a stream in a thread of this process; `close` ends it."""
        new = cls.__new__(cls)
        stream = PilatusStream(options)
        try:
            stream.start()
        except Refused as exc:
            raise HardwareError(str(exc)) from exc
        new._line, new._stream, new._name = None, stream, f"the stream of {options.folder}"
        new._order = Caller(new._name, StreamOrders(stream).answer)
        return new

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
