"""Connections that came to nothing: who and why, counted; told in the log at once and then once a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

QUIET = 60.0  # s without another line
MOST = 20  # lines at a time, and what is kept for them


class Refusals:
    """Any thread may add; `tell` is to be called now and then. `total` only grows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._new: dict[tuple[str, str], int] = {}  # since the last line
        self._others = 0
        self._present: dict[str, str] = {}
        self._quiet_until = float("-inf")
        self.total = 0

    def add(self, who: str, why: str) -> None:
        with self._lock:
            self.total += 1
            self._present[who] = why
            if len(self._present) > MOST:
                del self._present[next(iter(self._present))]
            if len(self._new) < MOST or (who, why) in self._new:
                self._new[who, why] = self._new.get((who, why), 0) + 1
            else:
                self._others += 1
        self.tell()

    def clear(self, who: str) -> None:
        """It is connected."""
        if self._present:
            with self._lock:
                self._present.pop(who, None)

    def remark(self) -> str:
        """Who has not come through since, in words."""
        with self._lock:
            return "; ".join(f"{who}: {why}" for who, why in self._present.items())

    def tell(self) -> None:
        if not self._new or self._clock() < self._quiet_until:
            return
        with self._lock:
            self._quiet_until = self._clock() + QUIET
            new, others = self._new, self._others
            self._new, self._others = {}, 0
        for (who, why), count in new.items():
            log.warning("%s: %s%s", who, why, f" ({count} times)" if count > 1 else "")
        if others:
            log.warning("and %d more refused, of other addresses or for other reasons", others)
