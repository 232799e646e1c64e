"""The latest image for viewers: a reference is kept, decoding is done by who asks. It never makes a frame wait."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tangods_receiver import codecs
from tangods_receiver.protocol import Frame


class LastFrame(NamedTuple):
    """`array` rows x columns (modules x rows x columns where one message has several); `timestamp` s, nan unknown."""

    number: int
    series: int
    array: codecs.Array
    timestamp: float


class Live:
    """Written by the workers, read by anybody: one assignment each, no lock."""

    def __init__(self) -> None:
        self._latest: tuple[int, Frame] | None = None

    def show(self, series: int, frame: Frame) -> None:
        self._latest = series, frame

    @property
    def number(self) -> int:
        """Number of the latest image in its series; -1 before the first."""
        latest = self._latest
        return -1 if latest is None else latest[1].number

    def last_frame(self) -> LastFrame | None:
        """Decodes; None before the first image. StreamError: the image is damaged."""
        latest = self._latest
        if latest is None:
            return None
        series, frame = latest
        timestamp = math.nan if frame.timestamp is None else frame.timestamp
        return LastFrame(frame.number, series, _decoded(frame), timestamp)


def _decoded(frame: Frame) -> codecs.Array:
    if not frame.more:
        return codecs.decompress(frame.codec, frame.data, frame.shape, frame.dtype)
    modules = (frame.data, *frame.more)
    return np.stack([codecs.decompress(frame.codec, data, frame.shape, frame.dtype) for data in modules])
