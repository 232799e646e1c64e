"""What clients see of a detector, and what they ask to be recorded: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tangods_detector.hw.base import DetectorInfo
from tangods_detector.settings import OverwritePolicy, Settings
from tangods_detector.states import State


@dataclass(frozen=True)
class Request:
    """What is recorded besides the settings of the hardware; `filename` as the user wrote it."""

    filename: str = ""
    pattern: str = ""
    policy: OverwritePolicy = OverwritePolicy.ABORT
    save_raw: bool = True
    label: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Everything that clients read, at one moment; replaced as a whole. Numbers are of the running or last series.

    `expected` 0: until it is stopped; `rate` in Hz over the last second, or of the whole series when it is over;
    `readings` are the backend's parameters that have an alarm level."""

    state: State = State.CONNECTING
    status: str = "connecting to the hardware"
    settings: Settings = field(default_factory=Settings)
    info: DetectorInfo | None = None
    endpoints: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    dtype: str = ""
    latency: float = 0.0
    series: int = 0
    filename: str = ""
    expected: int = 0
    acquired: int = 0
    received: int = 0
    written: int = 0
    missing: int = 0
    rate: float = 0.0
    last_error: str = ""
    receiver_state: str = ""
    readings: Mapping[str, float] = field(default_factory=dict)
    trigger_modes: tuple[str, ...] = ()

    @property
    def progress(self) -> float:
        """Percent of the expected frames that the receiver has."""
        return min(100.0, 100.0 * self.received / self.expected) if self.expected else 0.0
