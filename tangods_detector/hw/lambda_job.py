"""What a Lambda unit and the streams of its modules tell each other about a series."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from tangods_detector.hw.lambda_system import ModuleStatus


@dataclass(frozen=True)
class Job:
    """One series, as armed. `nframes` and `per_start` count what comes: twice the acquisitions where `dual`; `shape`
    (rows, columns) of each module, `modules` of the whole image."""

    series: int
    filename: str
    nframes: int
    per_start: int
    modules: int
    shape: tuple[int, int]
    dtype: str
    dual: bool
    metadata: Mapping[str, Any]
    receiver_limit: float
    endless: bool = False  # the receiver is told no number of frames

    @property
    def frame_bytes(self) -> int:
        """Of one module."""
        return self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Look:
    """What the unit told of its modules, at this moment (monotonic); `error`: it did not."""

    at: float
    modules: tuple[ModuleStatus, ...] = ()
    error: str = ""


class Course:
    """A series on its way: what the unit tells its modules. Times are monotonic, `inf`: not yet."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.starts = 0  # that the hardware was given; before the first frame of it can come
        self.confirmed_at = inf  # when the last start was seen to have been taken
        self.halted_at = inf  # when the hardware had been stopped for good
        self.given_up = threading.Event()  # nothing more is waited for
        self.ending = threading.Event()  # all modules are over: the end messages may go
