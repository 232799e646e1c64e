"""The only user of the StreamReceiver: a Tango device, or an engine elsewhere by its HTTP address."""

from __future__ import annotations

import io
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tangods_receiver import access, imaging
from tangods_receiver.errors import ConfigError, DaqError
from tangods_receiver.stats import Snapshot

TIMEOUT = 1.5  # s for an answer; an Arm asks a few times and a Tango client waits 3 s


class ReceiverError(DaqError):
    """The receiver must be looked at: it cannot be reached, or refuses."""


@dataclass(frozen=True)
class Picture:
    """The newest image that the receiver shows: frame number in its series, rows x columns."""

    number: int
    array: NDArray[Any]


class Receiver(ABC):
    """What the detector asks of a receiver. Every call returns within seconds, or raises ReceiverError."""

    name: str

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """What it has done so far."""

    @abstractmethod
    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str:
        """A sentence why a file cannot be written there; "" when it can. `overwrite`: one that exists may go."""

    @abstractmethod
    def stop(self, series: int) -> None:
        """Close the file of this series soon, with what came; harmless when it is not open."""

    @abstractmethod
    def reset(self) -> None:
        """Acknowledge its error."""

    @abstractmethod
    def restart(self) -> None:
        """Begin afresh: its sockets and threads are replaced, an open file is closed."""

    @abstractmethod
    def last_frame(self) -> Picture | None:
        """The newest image; None before the first."""

    def video_image(self) -> bytes:
        """The newest image as LImA's viewers read it; before the first: no pixels, number -1."""
        picture = self.last_frame()
        return imaging.NO_VIDEO_IMAGE if picture is None else imaging.video_image(picture.array, picture.number)

    @abstractmethod
    def last_number(self) -> int:
        """Its frame number; -1 before the first."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection."""


def open_receiver(address: str, token_file: str = "") -> Receiver:
    """The receiver that a `Receiver` property names; nothing is asked of it yet. ConfigError: that is no address.

    `token_file` holds what an engine asks for by HTTP; a Tango device needs none."""
    address = address.strip()
    if address.startswith(("http://", "https://")):
        try:
            host = httpx.URL(address).host
            if not re.fullmatch(r"[\w.:-]+", host):
                raise httpx.InvalidURL("there is no host in it")
            return HttpReceiver(address, token_file)
        except httpx.InvalidURL as exc:
            raise ConfigError(f"Receiver: {address!r}: {exc}; give an address such as http://host:8000") from exc
    if re.fullmatch(r"(tango://[^/]+/)?[^/\s]+/[^/\s]+/[^/\s#]+(#dbase=\w+)?|[\w.-]+", address) and address != "None":
        return TangoReceiver(address)
    raise ConfigError(
        f"Receiver: {address!r} is no receiver; set the property to a StreamReceiver device such as "
        "b1/daq/receiver, or to an address such as http://host:8000"
    )


def snapshot_from(values: Mapping[str, Any]) -> Snapshot:
    """From the JSON object that a receiver gives; keys of a newer version are left out."""
    try:
        return Snapshot.from_dict(values)
    except TypeError as exc:
        raise ReceiverError(f"the receiver's state makes no sense: {exc}; is this the address of a receiver?") from exc


class TangoReceiver(Receiver):
    """A StreamReceiver device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._proxy: Any = None

    def snapshot(self) -> Snapshot:
        with self._asked("its state") as proxy:
            return snapshot_from(json.loads(proxy.read_attribute("Snapshot").value))

    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str:
        with self._asked(f"about {path}") as proxy:
            return str(proxy.command_inout("CheckFile", [path, str(nbytes), *(["overwrite"] if overwrite else [])]))

    def stop(self, series: int) -> None:
        with self._asked("to stop") as proxy:
            proxy.command_inout("Stop")

    def reset(self) -> None:
        with self._asked("to reset") as proxy:
            proxy.command_inout("Reset")

    def restart(self) -> None:
        with self._asked("to restart") as proxy:
            proxy.command_inout("Init")

    def last_frame(self) -> Picture | None:
        with self._asked("for its last image") as proxy:
            number, image = (reply.value for reply in proxy.read_attributes(["LastImageNumber", "LastImage"]))
        if number is None or number < 0 or image is None or not image.size:
            return None
        return Picture(int(number), image)

    def video_image(self) -> bytes:
        with self._asked("for its last image") as proxy:
            return bytes(proxy.read_attribute("video_last_image").value[1])  # in its own type, unlike LastImage

    def last_number(self) -> int:
        with self._asked("for its last image") as proxy:
            number = proxy.read_attribute("LastImageNumber").value
        return -1 if number is None else int(number)

    def close(self) -> None:
        self._proxy = None

    @contextmanager
    def _asked(self, what: str) -> Iterator[Any]:
        import tango

        try:
            with tango.EnsureOmniThread():
                proxy = self._proxy  # another thread may take it away meanwhile
                if proxy is None:
                    proxy = tango.DeviceProxy(self.name)
                    proxy.set_timeout_millis(int(TIMEOUT * 1000))
                    self._proxy = proxy
                yield proxy
        except tango.DevFailed as exc:
            if isinstance(exc, tango.ConnectionFailed | tango.CommunicationFailed):
                self._proxy = None  # a new one connects at once; the old would refuse to try again within a second
            reason = exc.args[0].desc.strip().splitlines()[0]
            raise ReceiverError(
                f"receiver {self.name}, asked {what}: {reason}; check that its server StreamReceiver runs"
            ) from exc
        except (ValueError, TypeError) as exc:
            raise ReceiverError(f"receiver {self.name}, asked {what}: the answer makes no sense: {exc}") from exc


class HttpReceiver(Receiver):
    """An engine without Tango, by its HTTP side."""

    def __init__(self, address: str, token_file: str = "") -> None:
        self.name = address.rstrip("/")
        self._token_file = access.TokenFile(token_file) if token_file else None
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every question, many a second
        self._client = httpx.Client(base_url=self.name, timeout=TIMEOUT, trust_env=False)

    def snapshot(self) -> Snapshot:
        return snapshot_from(self._json("GET", "/status"))

    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str:
        params = {"path": path, "nbytes": nbytes, **({"overwrite": "true"} if overwrite else {})}
        return str(self._json("GET", "/check", params=params).get("value", ""))

    def stop(self, series: int) -> None:
        self._json("POST", "/stop", json={"series": series})

    def reset(self) -> None:
        self._json("POST", "/reset")

    def restart(self) -> None:
        self._json("POST", "/stop", json={})
        self._json("POST", "/reset")

    def last_frame(self) -> Picture | None:
        response = self._ask("GET", "/last_frame", params={"format": "npy"}, none=404)
        if response is None:
            return None
        try:
            array = np.load(io.BytesIO(response.content), allow_pickle=False)
            return Picture(int(response.headers.get("X-Frame", 0)), array)
        except ValueError as exc:
            raise ReceiverError(f"receiver {self.name}: GET /last_frame: not an image: {exc}") from exc

    def last_number(self) -> int:
        picture = self.last_frame()
        return picture.number if picture else -1

    def close(self) -> None:
        self._client.close()

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        response = self._ask(method, path, **request)
        try:
            value = response.json() if response is not None else None
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
            return value
        except ValueError as exc:
            raise ReceiverError(f"receiver {self.name}: {method} {path}: the answer makes no sense: {exc}") from exc

    def _ask(self, method: str, path: str, none: int = 0, **request: Any) -> httpx.Response | None:
        try:
            headers = access.authorization(self._token_file) if method == "POST" else {}
        except ConfigError as exc:
            raise ReceiverError(f"receiver {self.name}: {method} {path}: {exc} (property ReceiverTokenFile)") from exc
        try:
            response = self._client.request(method, path, headers=headers, **request)
        except httpx.HTTPError as exc:
            raise ReceiverError(
                f"receiver {self.name}: {method} {path}: {exc or type(exc).__name__}; check that it runs there"
            ) from exc
        if response.status_code == none:
            return None
        if response.is_error:
            raise ReceiverError(f"receiver {self.name}: {method} {path}: {response.status_code} {response.text[:200]}")
        return response
