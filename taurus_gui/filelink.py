"""The thread that reads one file for the File panel; of what is asked for only the newest counts. No Qt."""

from __future__ import annotations

import logging
import threading
from typing import Any

from taurus_gui import h5reading, pictures
from taurus_gui.h5reading import FileError
from taurus_gui.mailbox import Mailbox
from taurus_gui.pictures import Look, Picture

log = logging.getLogger(__name__)

END = 5.0  # s


class FileLink:
    def __init__(self, mailbox: Mailbox) -> None:
        self._box = mailbox
        self._wanted: dict[str, Any] = {}
        self._bell = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="file", daemon=True)
        self._last: tuple[str, str, Picture] | None = None  # file, dataset

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._bell:
            self._over = True
            self._bell.notify()
        if self._thread.is_alive():
            self._thread.join(END)

    def open(self, path: str) -> None:
        """Also again, to see how far it has grown."""
        self._ask("open", path)

    def frame(self, path: str, dataset: str, number: int, region: Any, size: Any, look: Look) -> None:
        self._ask("frame", (path, dataset, number, region, size, look))

    def look(self, look: Look) -> None:
        """The same picture in other colours."""
        self._ask("look", look)

    def curve(self, path: str, dataset: str) -> None:
        self._ask("curve", (path, dataset))

    def _ask(self, kind: str, value: Any) -> None:
        with self._bell:
            self._wanted[kind] = value
            self._bell.notify()

    def _run(self) -> None:
        while True:
            with self._bell:
                while not self._wanted and not self._over:
                    self._bell.wait()
                if self._over:
                    return
                wanted, self._wanted = self._wanted, {}
            for kind, value in wanted.items():
                try:
                    self._do(kind, value)
                except FileError as exc:
                    self._box.put("file_error", "", str(exc))
                except Exception as exc:  # the thread lives on: the next file may be a better one
                    log.warning("%s %s", kind, value, exc_info=True)
                    self._box.put("file_error", "", f"It cannot be read ({type(exc).__name__}: {exc})")

    def _do(self, kind: str, value: Any) -> None:
        if kind == "open":
            self._box.put("opened", "", h5reading.opened(value))
        elif kind == "frame":
            path, dataset, number, region, size, look = value
            self._last = path, dataset, h5reading.frame(path, dataset, number, region, size)
            self._tell(look)
        elif kind == "curve":
            self._box.put("curve", "", (*value, h5reading.curve(*value)))
        else:
            self._tell(value)

    def _tell(self, look: Look) -> None:
        if self._last is not None:
            path, dataset, picture = self._last
            self._box.put("frame", "", (path, dataset, pictures.coloured(picture, look)))
