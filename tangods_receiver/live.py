"""The latest image for viewers: a reference is kept; it is decoded at a set rate, and only while somebody looks.

It never makes a frame wait: the workers leave the newest one here, those in between are not looked at. Sum, maximum
and average are therefore over the frames that were decoded, not over all that came."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Literal, NamedTuple

import numpy as np

from tangods_receiver import codecs
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame

log = logging.getLogger(__name__)

Kind = Literal["last", "sum", "max", "average"]
LOOK = 2.0  # s that one look keeps the decoding going


class LastFrame(NamedTuple):
    """`array` rows x columns (modules x rows x columns where one message has several), read only; `timestamp` s, nan
    unknown; `frames` how many went into it."""

    number: int
    series: int
    array: codecs.Array
    timestamp: float
    frames: int = 1


class Live:
    """Written by the workers, one assignment each; read by anybody."""

    def __init__(self, rate: float = 10.0, average: int = 10) -> None:
        self._period = 1.0 / rate
        self._average = average
        self._latest: tuple[int, Frame] | None = None
        self._decoding = threading.Lock()
        self._changed = threading.Condition()
        self._picture: LastFrame | None = None
        self._seen: tuple[int, Frame] | None = None  # the last that was decoded, or could not be
        self._looked = -math.inf
        self._asleep = False
        self._halt = False
        self._thread: threading.Thread | None = None
        self.damaged = 0  # images that could not be decoded

    def start(self) -> None:
        self._thread = threading.Thread(target=self._main, name="live view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._halt = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def show(self, series: int, frame: Frame) -> None:
        self._latest = series, frame

    @property
    def number(self) -> int:
        """Number of the latest image in its series; -1 before the first."""
        latest = self._latest
        return -1 if latest is None else latest[1].number

    def last_frame(
        self, kind: Kind = "last", newer_than: tuple[int, int] | None = None, wait: float = 0.0, channel: int = 0
    ) -> LastFrame | None:
        """The newest image, decoded now if need be; None before the first. StreamError: it is damaged, and there is
        none before it. With `newer_than` (series, number): another one than that as soon as the live view has it;
        None when there is none within `wait` s."""
        self._look()
        if newer_than is None or self._thread is None:
            picture = self._decode()
            return None if picture is None or (picture.series, picture.number) == newer_than else picture
        end = time.monotonic() + wait
        with self._changed:
            while True:
                picture = self._picture
                if picture is not None and (picture.series, picture.number) != newer_than:
                    return picture
                left = end - time.monotonic()
                if left <= 0 or self._halt:
                    return None
                self._looked = time.monotonic()
                self._changed.wait(min(left, LOOK / 2))

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self._asleep:
            with self._changed:
                self._changed.notify_all()

    @property
    def _wanted(self) -> bool:
        return time.monotonic() - self._looked < LOOK

    def _main(self) -> None:
        due = 0.0
        while not self._halt:
            with self._changed:
                self._asleep = True
                while not self._halt and not self._wanted:
                    self._changed.wait()
                self._asleep = False
                while not self._halt and (left := due - time.monotonic()) > 0:
                    self._changed.wait(left)
            due = time.monotonic() + self._period
            try:
                self._decode()
            except StreamError:
                pass  # counted
            except Exception:  # the outermost loop: a picture less
                log.exception("live view")

    def _decode(self) -> LastFrame | None:
        with self._decoding:
            latest = self._latest
            if latest is None or latest is self._seen:
                return self._picture
            self._seen = latest
            series, frame = latest
            try:
                array = _decoded(frame)
            except StreamError:
                self.damaged += 1
                if self._picture is None:
                    raise
                return self._picture
            array.flags.writeable = False
            timestamp = math.nan if frame.timestamp is None else frame.timestamp
            picture = LastFrame(frame.number, series, array, timestamp)
            with self._changed:
                self._picture = picture
                self._changed.notify_all()
            return picture


def _decoded(frame: Frame) -> codecs.Array:
    if not frame.more:
        return codecs.decompress(frame.codec, frame.data, frame.shape, frame.dtype)
    modules = (frame.data, *frame.more)
    return np.stack([codecs.decompress(frame.codec, data, frame.shape, frame.dtype) for data in modules])
