"""What a kind of detector must offer."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tangods_detector.settings import Series, Settings, TriggerMode


class Phase(enum.Enum):
    """Where the hardware is in a series."""

    IDLE = "idle"
    ARMED = "armed"
    ACQUIRING = "acquiring"
    DONE = "done"
    ERROR = "error"


@dataclass(frozen=True)
class Status:
    """Cheap to get, asked often. `frames` acquired and handed to the stream in this series; `triggers` accepted;
    `blocked` True while a frame waits because the receiver takes none (back-pressure, not a fault of the hardware)."""

    phase: Phase
    frames: int = 0
    triggers: int = 0
    message: str = ""
    blocked: bool = False


@dataclass(frozen=True)
class DetectorInfo:
    """What the hardware is. `shape` is the full sensor, rows first; `pixel_size` rows, columns in metres;
    `sensor_thickness` in metres (0: not known)."""

    model: str
    serial_number: str
    shape: tuple[int, int]
    pixel_size: tuple[float, float]
    sensor_material: str
    sensor_thickness: float = 0.0
    firmware: str = ""


@dataclass(frozen=True)
class Parameter:
    """An expert knob or reading of one backend, shown as a dynamic Tango attribute.

    `get(backend)` and `set(backend, value)` run in the acquisition thread; without `set` it is read only."""

    name: str
    dtype: type
    doc: str
    get: Callable[[Any], Any]
    set: Callable[[Any, Any], None] | None = None
    unit: str = ""
    format: str = ""
    min_value: float | None = None
    max_value: float | None = None
    max_alarm: float | None = None
    writable_while_running: bool = False


class Backend(ABC):
    """One kind of detector. All calls come from one thread, but for `stop`, which may interrupt a blocking `arm` or
    `trigger`, and `picture`. Every method raises HardwareError with the hardware's own words when it fails."""

    Options: ClassVar[type]
    trigger_modes: ClassVar[frozenset[TriggerMode]]
    parameters: ClassVar[tuple[Parameter, ...]] = ()

    @abstractmethod
    def __init__(self, options: Any) -> None:
        """`options` is an instance of Options. Nothing is opened yet."""

    @abstractmethod
    def connect(self) -> DetectorInfo:
        """Open the link and read what the hardware is."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; safe at any time, also twice."""

    @abstractmethod
    def configure(self, settings: Settings) -> Settings:
        """Load the settings; returns what the hardware accepted (rounded, clipped). ConfigError: it cannot do that."""

    def check(self, settings: Settings) -> None:  # noqa: B027  most take what is good by itself
        """At Arm, before anything is done: do settings that are good by themselves go together? ConfigError says why
        not."""

    @abstractmethod
    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        """Shape (rows, columns) and NumPy dtype name of the images that these settings give."""

    @abstractmethod
    def arm(self, series: Series) -> int | None:
        """Hardware armed and the start message sent when it returns. The number that the stream gives the series,
        where the hardware counts them itself; None: it is `series.id`."""

    @abstractmethod
    def start(self) -> None:
        """Begin (INTERNAL), or let triggers through (the other modes)."""

    @abstractmethod
    def trigger(self) -> None:
        """One software trigger; returns as soon as it is accepted."""

    @abstractmethod
    def stop(self) -> None:
        """Back to idle from anywhere, also twice; the end message of an open series is sent."""

    @abstractmethod
    def status(self) -> Status:
        """Cheap: phase, frames so far, a sentence."""

    @abstractmethod
    def latency_time(self, settings: Settings) -> float:
        """Dead time between two frames, seconds: the shortest period is exposure plus this."""

    @abstractmethod
    def endpoints(self) -> list[str]:
        """Where the stream can be pulled from."""

    def frames_came(self, frames: int) -> None:  # noqa: B027  most do not need it
        """So many of this series has the receiver; for hardware that does not tell how many it has sent."""

    def picture(self) -> tuple[int, NDArray[Any]] | None:
        """Number (from 0, in its series) and pixels (rows x columns) of the newest image that the hardware itself keeps
        for viewers; None: none, or none of the series that runs. Shown where the receiver has none.

        From any thread, at any time, again and again: answers within a second, never raises, holds up no other call."""
        return None

    def frame_bytes(self, settings: Settings) -> int:
        """Bytes that one frame will take in the file, roughly; less than the pixels when the stream is compressed."""
        (rows, columns), dtype = self.image_format(settings)
        return rows * columns * np.dtype(dtype).itemsize
