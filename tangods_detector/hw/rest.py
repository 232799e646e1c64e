"""HTTP to a control unit: one kept-alive connection, its own words in every error. Knows no key."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tangods_receiver.errors import HardwareError

BUSY_PAUSE = 0.2  # s after a 5xx, before a request that may be repeated is
CONNECT = 3.0  # s for the connection itself
WORDS = 500  # characters of an answer that are shown

SENT_IN_VAIN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)  # a kept connection that had gone


class Refused(HardwareError):
    """The unit answered, and the answer is an error: `status` is HTTP's, `words` are the unit's."""

    def __init__(self, tried: str, status: int, words: str) -> None:
        super().__init__(f"{tried}: {status} {words}".strip())
        self.status, self.words = status, words


class Unreachable(HardwareError):
    """No answer, or half of one. What was asked for may have been done all the same."""


class Connection:
    """One connection, used by one thread at a time; others wait for their turn. `what` is there, for sentences."""

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float,
        transport: httpx.BaseTransport | None = None,
        what: str = "SIMPLON control unit",
    ) -> None:
        self._base = f"http://{host}:{port}" if port != 80 else f"http://{host}"
        self._timeout = timeout
        self._what = what
        self._turn = threading.Lock()
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every request
        self._client = httpx.Client(
            base_url=self._base,
            transport=transport,
            trust_env=False,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60.0),
        )

    def get(self, path: str, timeout: float = 0.0, **more: Any) -> httpx.Response:
        """Repeated once when the unit is busy or the connection had gone."""
        return self._repeated("GET", path, timeout, **more)

    def put(self, path: str, value: Any, timeout: float = 0.0) -> Any:
        """Write a value: as `get`, for writing the same twice does no harm. The answer, from JSON."""
        return self._json(self._repeated("PUT", path, timeout, json={"value": value}))

    def put_query(self, path: str, /, timeout: float = 0.0, **query: str) -> Any:
        """The same where the value stands in the query."""
        return self._json(self._repeated("PUT", path, timeout, params=query))

    def command(self, path: str, /, value: Any = None, timeout: float = 0.0, **query: str) -> Any:
        """Never repeated. The answer, from JSON."""
        more: dict[str, Any] = {} if value is None else {"json": {"value": value}}
        return self._json(self._ask("PUT", path, timeout, **more, **({"params": query} if query else {})))

    def read(self, path: str, /, timeout: float = 0.0, **query: str) -> Any:
        return self._json(self.get(path, timeout, **({"params": query} if query else {})))

    def fetch(self, path: str, timeout: float) -> bytes:
        """Whatever is there; never repeated. The limit is for all of it, for a large answer may trickle in."""
        tried, end = f"GET {self._base}{path}", time.monotonic() + timeout
        with self._asking(tried, timeout) as limits, self._client.stream("GET", path, timeout=limits) as response:
            parts = []
            for part in response.iter_bytes():
                parts.append(part)
                if time.monotonic() > end:
                    raise Unreachable(f"{tried}: not all of the answer within {timeout:g} s")
        content = b"".join(parts)
        if response.is_error:
            raise Refused(tried, response.status_code, content[:WORDS].decode(errors="replace").strip())
        return content

    def close(self) -> None:
        self._client.close()

    def _repeated(self, method: str, path: str, timeout: float, **more: Any) -> httpx.Response:
        try:
            return self._ask(method, path, timeout, **more)
        except Refused as exc:
            if exc.status < 500:
                raise
            time.sleep(BUSY_PAUSE)
        except Unreachable as exc:
            if not isinstance(exc.__cause__, SENT_IN_VAIN):
                raise
        return self._ask(method, path, timeout, **more)

    def _ask(self, method: str, path: str, timeout: float, **more: Any) -> httpx.Response:
        query = "&".join(f"{name}={value}" for name, value in more.get("params", {}).items())
        tried = f"{method} {self._base}{path}{'?' if query else ''}{query}"
        with self._asking(tried, timeout or self._timeout) as limits:
            response = self._client.request(method, path, timeout=limits, **more)
        if response.is_error:
            raise Refused(tried, response.status_code, response.text.strip()[:WORDS])
        return response

    @contextmanager
    def _asking(self, tried: str, limit: float) -> Iterator[httpx.Timeout]:
        """Our turn on the connection."""
        if not self._turn.acquire(timeout=limit):
            raise Unreachable(f"{tried}: an earlier request has no answer yet after {limit:g} s")
        try:
            yield httpx.Timeout(limit, connect=min(CONNECT, limit))
        except httpx.TimeoutException as exc:
            raise Unreachable(f"{tried}: no answer within {limit:g} s") from exc
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as exc:  # RuntimeError: it was closed meanwhile
            raise Unreachable(f"{tried}: {str(exc) or type(exc).__name__}") from exc
        finally:
            self._turn.release()

    def _json(self, response: httpx.Response) -> Any:
        """None: an empty answer."""
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError as exc:
            raise HardwareError(
                f"{response.request.method} {response.request.url}: the answer is no JSON: {response.text[:80]!r}; "
                f"is this a {self._what}?"
            ) from exc
