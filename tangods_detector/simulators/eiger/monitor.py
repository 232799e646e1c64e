"""The monitor's few latest images, for clients that ask for them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

import numpy as np

from tangods_detector.simulators.eiger import tiff
from tangods_detector.simulators.eiger.parameters import Parameters, Refused

Array = np.ndarray[Any, Any]

NEW = 500  # ms that `next` waits when it is not told


class Monitor:
    """`config` are the module's parameters. Any thread."""

    def __init__(self, config: Parameters) -> None:
        self._config = config
        self._come = threading.Condition()
        self._images: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self.dropped = 0
        self.last: list[int] = []

    @property
    def enabled(self) -> bool:
        return bool(self._config.values["mode"] == "enabled")

    def put(self, series: int, number: int, image: Array) -> None:
        """When there is no room the oldest goes, or with `discard_new` this one."""
        with self._come:
            if len(self._images) >= self._config.values["buffer_size"]:
                self.dropped += 1
                if self._config.values["discard_new"]:
                    return
                self._images.popitem(last=False)
            self._images[series, number] = image
            self.last = [series, number]
            self._come.notify_all()

    def clear(self) -> None:
        with self._come:
            self._images.clear()
            self.dropped = 0
            self.last = []

    @property
    def free(self) -> int:
        return max(0, int(self._config.values["buffer_size"]) - len(self._images))

    @property
    def state(self) -> str:
        return "overflow" if self.enabled and self.dropped else "normal"

    def listed(self) -> list[list[Any]]:
        """[[series, [numbers]]]"""
        found: dict[int, list[int]] = {}
        with self._come:
            for series, number in self._images:
                found.setdefault(series, []).append(number)
        return [[series, numbers] for series, numbers in found.items()]

    def latest(self) -> bytes:
        with self._come:
            if not self._images:
                raise Refused(408, "no image is there")
            return tiff.encode(next(reversed(self._images.values())))

    def next(self, timeout: float = NEW) -> bytes:
        """The oldest, which goes. `timeout` in ms. Refused with 408: none came."""
        end = time.monotonic() + timeout / 1000
        with self._come:
            while not self._images:
                if not self._come.wait(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                    raise Refused(408, f"no image came in {timeout:g} ms")
            return tiff.encode(self._images.popitem(last=False)[1])

    def get(self, series: int, number: int) -> bytes:
        with self._come:
            try:
                return tiff.encode(self._images[series, number])
            except KeyError:
                raise Refused(404, f"image {number} of series {series} is not in the buffer") from None
