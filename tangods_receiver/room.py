"""How much room is left where files are written, looked at now and then by a thread that may hang with the storage."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

log = logging.getLogger(__name__)

LOOK = 5.0  # s between two looks


class Room:
    """From `start` to `stop`: `free` bytes that a user may still write below `root`, as of the last answer of the
    storage; None before the first, and when it says no."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"{name} room", daemon=True)
        self.free: int | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, limit: float) -> None:
        """A thread that hangs in the storage is left behind. Also where it was never started."""
        self._halt.set()
        if self._thread.is_alive():
            self._thread.join(limit)

    def _main(self) -> None:
        while True:
            try:
                storage = os.statvfs(self._root)
                self.free = storage.f_bavail * storage.f_frsize
            except OSError as exc:
                if self.free is not None:
                    log.warning("%s: free space is not known: %s", self._root, exc.strerror)
                self.free = None
            if self._halt.wait(LOOK):
                return
