"""Pictures by Tango where a receiver has no HTTP side: whole images, a few a second, made smaller here. No Qt."""

from __future__ import annotations

import math
import queue
import threading
import time
from dataclasses import replace
from typing import Any

import tango

from taurus_gui import pictures
from taurus_gui.mailbox import Mailbox
from taurus_gui.pictures import Look, Picture

PREVIEW = 1024  # rows and columns into which a receiver fits images when its LiveDownsample is 0
PERIOD = 0.4  # s between two images
RETRY = 2.0  # s
TIMEOUT = 10_000  # ms: an image of 16 million pixels takes its time
END = 11.0  # s


class TangoImages:
    """The same calls as an ImageLink's, of which it knows less: the newest image, no exact pixels."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._box = mailbox
        self.frame_shape: tuple[int, ...] = ()  # rows and columns, as the Detector says
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
                watched = proxy is not None
                try:
                    if proxy is None or seen is None or seen[0] != name:
                        proxy = tango.DeviceProxy(name)
                        proxy.set_timeout_millis(TIMEOUT)
                    seen = self._fetch(proxy, name, seen, watched and seen is not None and seen[0] == name)
                    self._box.put("images", "", "")
                    self._pause(PERIOD)
                except tango.DevFailed as exc:
                    proxy = None
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

    def _fetch(
        self, proxy: tango.DeviceProxy, name: str, seen: tuple[str, int, int] | None, watched: bool
    ) -> tuple[str, int, int]:
        """`watched`: a counter that has changed did so just now."""
        told = proxy.read_attributes(["video_last_image_counter", "SeriesOpened", "LiveDownsample"])
        number, series, blocks = (int(v.value or 0) for v in told)
        now = name, number, series
        if now == seen or number < 0:
            return now
        array = proxy.read_attribute("LastImage").value
        if array is None or array.size == 0:
            return now
        full, factor = _full(array.shape, blocks, self.frame_shape)
        rows, columns = array.shape
        self._whole = Picture(
            array, None, (0, 0, rows * factor, columns * factor), full, factor, series=series, number=number,
            source="float32", came=time.monotonic() if watched else math.nan,
        )  # fmt: skip
        self._show(self._whole)
        return now

    def _show(self, whole: Picture) -> None:
        self._box.put("picture", "", pictures.coloured(_cut(whole, **self._view), self._look))


def _full(shape: tuple[int, int], blocks: int, frame: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Rows and columns of the image that was made to `shape`, and the pixels of a block's side. `blocks` 0: as many as
    it takes."""
    if len(frame) == 2:
        factor = blocks or max(1, *(math.ceil(n / PREVIEW) for n in frame))
        if (frame[0] // factor, frame[1] // factor) == shape:
            return (frame[0], frame[1]), factor
    factor = max(1, blocks)
    return (shape[0] * factor, shape[1] * factor), factor


def _cut(whole: Picture, region: Any = None, size: Any = None) -> Picture:
    """The part that is wanted, or all where that is no part of it; of each block the first pixel, which costs
    nothing."""
    _, _, rows, columns = whole.region
    top, left, bottom, right = region or whole.region
    top, left, bottom, right = max(0, top), max(0, left), min(rows, bottom), min(columns, right)
    if top >= bottom or left >= right:
        top, left, bottom, right = whole.region
    base, step = whole.factor, 1
    if size:
        step = max(1, math.ceil(max((bottom - top) / size[0], (right - left) / size[1]) / base))
    factor = base * step
    top, left = top // factor * factor, left // factor * factor
    pixels = whole.pixels[top // base : -(-bottom // base) : step, left // base : -(-right // base) : step]
    rows, columns = pixels.shape
    return replace(
        whole, pixels=pixels, region=(top, left, top + rows * factor, left + columns * factor), factor=factor
    )
