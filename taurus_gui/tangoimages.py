"""Pictures by Tango where a receiver has no HTTP side: whole images, a few a second, made smaller here. No Qt."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import tango

from taurus_gui import pictures
from taurus_gui.mailbox import Mailbox
from taurus_gui.pictures import Look, Picture

PERIOD = 0.4  # s between two images
RETRY = 2.0  # s
TIMEOUT = 10_000  # ms: an image of 16 million pixels takes its time
END = 11.0  # s


class TangoImages:
    """The same calls as an ImageLink's, of which it knows less: the newest image, no exact pixels."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._box = mailbox
        self._name = ""
        self._view: dict[str, Any] = {"region": None, "size": [768, 768]}
        self._look = Look()
        self._again: queue.Queue[bool] = queue.Queue()
        self._stop = threading.Event()
        self._whole: Picture | None = None  # as it came
        self._thread = threading.Thread(target=self._run, name="tango images", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._again.put(False)
        if self._thread.is_alive():
            self._thread.join(END)

    def point_at(self, name: str) -> None:
        """A StreamReceiver device, or none ("")."""
        self._name = name

    def wish(self, **values: Any) -> None:
        self._view = self._view | {key: values[key] for key in ("region", "size") if key in values}
        if self._name:
            self._again.put(False)

    def look(self, look: Look) -> None:
        self._look = look
        if self._name:
            self._again.put(False)

    def _run(self) -> None:
        with tango.EnsureOmniThread():
            proxy: tango.DeviceProxy | None = None
            seen: tuple[str, int, int] | None = None
            while not self._stop.is_set():
                name = self._name
                if not name:
                    proxy = None
                    self._pause(PERIOD)
                    continue
                try:
                    if proxy is None or seen is None or seen[0] != name:
                        proxy = tango.DeviceProxy(name)
                        proxy.set_timeout_millis(TIMEOUT)
                    seen = self._fetch(proxy, name, seen)
                    self._box.put("images", "", "")
                    self._pause(PERIOD)
                except tango.DevFailed as exc:
                    proxy = seen = None
                    self._box.put("images", "", str(exc.args[0].desc).strip())
                    self._pause(RETRY)

    def _pause(self, seconds: float) -> None:
        """Ends early when what is wanted changes: then the last image is shown anew."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stop.is_set():
            try:
                self._again.get(timeout=left)
            except queue.Empty:
                return
            if self._whole is not None and not self._stop.is_set():
                self._show(self._whole)

    def _fetch(self, proxy: tango.DeviceProxy, name: str, seen: tuple[str, int, int] | None) -> tuple[str, int, int]:
        number, series = (
            int(v.value or 0) for v in proxy.read_attributes(["video_last_image_counter", "SeriesOpened"])
        )
        now = name, number, series
        if now == seen or number < 0:
            return now
        array = proxy.read_attribute("LastImage").value
        if array is None or array.size == 0:
            return now
        full = array.shape
        self._whole = Picture(
            array, None, (0, 0, *full), full, series=series, number=number, source="float32",
            came=time.monotonic(),
        )  # fmt: skip
        self._show(self._whole)
        return now

    def _show(self, whole: Picture) -> None:
        self._box.put("picture", "", pictures.coloured(_cut(whole, **self._view), self._look))


def _cut(whole: Picture, region: Any = None, size: Any = None) -> Picture:
    """The part that is wanted; of each block the first pixel, which costs nothing."""
    top, left, bottom, right = region or (0, 0, *whole.full)
    factor = 1
    if size:
        factor = max(1, int(np.ceil(max((bottom - top) / size[0], (right - left) / size[1]))))
    top, left = top // factor * factor, left // factor * factor
    pixels = whole.pixels[top:bottom:factor, left:right:factor]
    rows, columns = pixels.shape
    return replace(
        whole, pixels=pixels, region=(top, left, top + rows * factor, left + columns * factor), factor=factor
    )
