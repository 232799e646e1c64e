"""The control unit's monitor: the newest image that it keeps, looked at on a connection of its own, now and then."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from tangods_detector.hw import eiger_arrays
from tangods_detector.hw.rest import Connection
from tangods_receiver.errors import HardwareError

log = logging.getLogger(__name__)

IMAGE, NUMBER = "monitor/images/monitor", "monitor/status/monitor_image_number"
LIMIT = 0.5  # s for each of two answers; whoever looks at images waits as long
LOOK = 1.0  # s between two looks
FAILED = 10.0  # s after a look that failed


class Monitor:
    """Any thread. `failures`: looks that failed, since it was made."""

    def __init__(self, connection: Connection, path: Callable[[str], str]) -> None:
        self.failures = 0
        self._connection, self._path = connection, path
        self._looking = threading.Lock()
        self._next = 0.0  # look, monotonic
        self._held = True
        self._series: int | None = None  # whose images are shown; None: anybody's
        self._newest: tuple[int, int, NDArray[Any]] | None = None  # series, number, pixels

    def hold(self) -> None:
        """As at first: nothing is asked and nothing shown until `show`."""
        self._held, self._newest = True, None

    def show(self, series: int | None) -> None:
        """Only images of this series from now on; None: of any."""
        self._series, self._held = series, False

    def picture(self) -> tuple[int, NDArray[Any]] | None:
        """Number in its series and pixels. Of several who ask at once, one looks; the others get what is known."""
        if self._held:
            return None
        if time.monotonic() >= self._next and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()
        newest = self._newest
        return newest[1:] if newest and self._series in (None, newest[0]) else None

    def _look(self) -> None:
        """An image is fetched once."""
        wait = LOOK
        try:
            if (there := self._number()) is None:
                self._newest = None
            elif self._newest is None or self._newest[:2] != there:
                pixels = eiger_arrays.from_tiff(self._connection.fetch(self._path(IMAGE), LIMIT))
                self._newest = (*there, pixels)
        except HardwareError as exc:
            self.failures += 1
            wait = FAILED
            log.log(logging.WARNING if self.failures == 1 else logging.DEBUG, "no picture of the monitor: %s", exc)
        self._next = time.monotonic() + wait

    def _number(self) -> tuple[int, int] | None:
        """Series and number of the newest image; None: there is none."""
        answer = self._connection.fetch(self._path(NUMBER), LIMIT)
        try:
            told = json.loads(answer)["value"]
            if not told:
                return None
            series, number = map(int, told)
        except (ValueError, TypeError, KeyError) as exc:
            raise HardwareError(f"{NUMBER}: {answer[:80]!r} makes no sense: {exc}") from exc
        return series, number

    def close(self) -> None:
        self._connection.close()
