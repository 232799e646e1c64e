"""Between threads that read and the one that draws: of each thing only the newest waits, of messages a few. No Qt."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MOST = 200  # messages of a kind that wait; then the oldest are forgotten


class Mailbox:
    """`ring` is called, from the thread that put something, when the box was empty before."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._newest: dict[str, dict[str, Any]] = {}
        self._queues: dict[str, deque[Any]] = {}
        self._rung = self._closed = False

    def put(self, kind: str, key: str, value: Any) -> None:
        """The newest of this kind and key; one that was not fetched is replaced."""
        with self._lock:
            self._newest.setdefault(kind, {})[key] = value
        self._wake()

    def put_all(self, kind: str, values: dict[str, Any]) -> None:
        with self._lock:
            self._newest.setdefault(kind, {}).update(values)
        self._wake()

    def append(self, kind: str, value: Any) -> None:
        """One more message of this kind, each of which is fetched."""
        with self._lock:
            self._queues.setdefault(kind, deque(maxlen=MOST)).append(value)
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._rung or self._closed:
                return
            self._rung = True
        self._ring()

    def take(self) -> tuple[dict[str, dict[str, Any]], dict[str, list[Any]]]:
        """All that waits: newest values by kind and key, messages by kind."""
        with self._lock:
            newest, self._newest = self._newest, {}
            queues, self._queues = self._queues, {}
            self._rung = False
        return newest, {kind: list(queue) for kind, queue in queues.items()}

    def close(self) -> None:
        """Nobody is called any more."""
        with self._lock:
            self._closed = True
