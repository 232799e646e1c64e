"""A receiver engine that runs elsewhere, seen through its HTTP address."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import numpy as np

from tangods_receiver import access
from tangods_receiver.errors import ConfigError, HardwareError, StreamError
from tangods_receiver.live import Kind, LastFrame
from tangods_receiver.stats import Past, Snapshot

LIMIT = httpx.Timeout(2.0, connect=1.0)  # s; below Tango's 3 s


class RemoteEngine:
    """The same calls as an Engine's. HardwareError: it cannot be reached, or refuses; in its own words."""

    def __init__(self, address: str, token_file: str = "") -> None:
        """`address` like http://host:8000; ConfigError when it is not. `token_file` holds what the engine there asks of
        those who change something ("": it is only looked at)."""
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL as exc:
            raise ConfigError(f"Address: {address!r} is not like http://host:8000 ({exc})") from exc
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"Address: {address!r} is not like http://host:8000")
        self.address = str(url).rstrip("/")
        self._token_file = access.TokenFile(token_file) if token_file else None
        self._client = httpx.Client(base_url=url, timeout=LIMIT, trust_env=False)

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def snapshot(self) -> Snapshot:
        values = self._json("GET", "/status")
        try:
            return Snapshot.from_dict(values)
        except TypeError as exc:
            raise HardwareError(f"{self.address}/status: {exc}; is this the address of a receiver?") from exc

    def history(self) -> list[Past]:
        """The last series that are over, newest first."""
        values = self._json("GET", "/series")
        try:
            return [Past.from_dict(series) for series in values["series"]]
        except (TypeError, KeyError) as exc:
            raise HardwareError(f"{self.address}/series: {exc}; is this the address of a receiver?") from exc

    def stop(self, series: int | None = None) -> None:
        self._json("POST", "/stop", json={} if series is None else {"series": series})

    def begin(self, filename: str, nframes: int | None = None, metadata: Mapping[str, Any] | None = None) -> int:
        told = {"filename": filename, "nframes": nframes, "metadata": None if metadata is None else dict(metadata)}
        return int(self._json("POST", "/begin", json=told).get("series", 0))

    def reset(self) -> None:
        self._json("POST", "/reset")

    def check(self, path: str, nbytes: int, overwrite: bool = False) -> str:
        params = {"path": path, "nbytes": nbytes, "overwrite": overwrite}
        return str(self._json("GET", "/check", params=params).get("value", ""))

    def set_rois(self, rois: Iterable[object]) -> None:
        """Regions of interest from now on: lines "name x y width height", or mappings with these keys."""
        self._json("POST", "/rois", json={"rois": list(rois)})

    def roi_history(self) -> np.ndarray[Any, Any]:
        """As Engine's."""
        told = self._json("GET", "/rois/history")
        try:
            return np.array(told["rows"], np.float64).reshape(-1, len(told["columns"]))
        except (KeyError, TypeError, ValueError) as exc:
            raise HardwareError(f"{self.address}/rois/history: {exc}; is this the address of a receiver?") from exc

    def last_frame(
        self, kind: Kind = "last", newer_than: tuple[int, int] | None = None, wait: float = 0.0, channel: int = 0
    ) -> LastFrame | None:
        """None before the first image, or when no other one than `newer_than` came within `wait` s."""
        params: dict[str, Any] = {"format": "npy", "kind": kind}
        if channel:
            params["channel"] = channel
        if newer_than is not None:
            params |= {"newer": "{}:{}".format(*newer_than), "wait": wait}
        reply = self._ask("GET", "/last_frame", params=params, timeout=httpx.Timeout(2.0 + wait, connect=1.0))
        if reply.status_code in (204, 404):
            return None
        self._refused(reply)
        try:
            array = np.load(io.BytesIO(reply.content), allow_pickle=False)
            number, series = int(reply.headers["X-Frame"]), int(reply.headers["X-Series"])
        except (ValueError, EOFError, KeyError) as exc:
            raise StreamError(f"{self.address}/last_frame: not an image ({exc})") from exc
        timestamp = float(reply.headers.get("X-Timestamp", math.nan))
        return LastFrame(number, series, array, timestamp, int(reply.headers.get("X-Frames", 1)))

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        reply = self._ask(method, path, **request)
        self._refused(reply)
        try:
            values = reply.json()
        except ValueError as exc:
            raise HardwareError(f"{method} {reply.url}: not JSON; is this the address of a receiver?") from exc
        if not isinstance(values, dict):
            raise HardwareError(f"{method} {reply.url}: {str(values)[:80]}; is this the address of a receiver?")
        return values

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        if method == "POST":
            request["headers"] = access.authorization(self._token_file)
        try:
            return self._client.request(method, path, **request)
        except httpx.HTTPError as exc:
            raise HardwareError(
                f"receiver at {self.address} cannot be reached ({exc or type(exc).__name__}): "
                "start it there, or correct the property Address"
            ) from exc

    @staticmethod
    def _refused(reply: httpx.Response) -> None:
        if reply.is_success:
            return
        try:
            sentence = str(reply.json()["error"])
        except (ValueError, KeyError, TypeError):
            sentence = f"{reply.status_code} {reply.reason_phrase}"
        raise HardwareError(f"{reply.request.method} {reply.url}: {sentence}")
