"""What a user chose: Settings (a scan) and Series (one Arm), checked when they are made, never later."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tangods_receiver.errors import ConfigError


class TriggerMode(str, enum.Enum):
    """Who starts an exposure. The names are those that MAX IV's and Dectris' users know.

    INTERNAL: the detector itself, all frames one after the other. SOFTWARE: each SoftwareTrigger gives
    nFramesPerTrigger frames. EXTERNAL_SINGLE: one edge starts all frames. EXTERNAL_MULTI: each edge gives
    nFramesPerTrigger frames. EXTERNAL_GATE: each gate is one exposure, as long as the gate."""

    INTERNAL = "INTERNAL"
    SOFTWARE = "SOFTWARE"
    EXTERNAL_SINGLE = "EXTERNAL_SINGLE"
    EXTERNAL_MULTI = "EXTERNAL_MULTI"
    EXTERNAL_GATE = "EXTERNAL_GATE"


class OverwritePolicy(str, enum.Enum):
    """What Arm does when the file exists already."""

    ABORT = "ABORT"
    NEXT_NUMBER = "NEXT_NUMBER"
    OVERWRITE = "OVERWRITE"


@dataclass(frozen=True)
class Settings:
    """What the hardware is asked for. `roi` is x, y, width, height in unbinned pixels (None: the full sensor);
    `binning` is horizontal, vertical; `frame_time` 0 means as fast as possible; `bit_depth` 0 the hardware's default;
    `rotation` is counter-clockwise, in degrees, applied after `fliplr` and `flipud`."""

    exposure_time: float = 0.1
    frame_time: float = 0.0
    trigger_mode: TriggerMode = TriggerMode.INTERNAL
    n_triggers: int = 1
    n_frames_per_trigger: int = 1
    roi: tuple[int, int, int, int] | None = None
    binning: tuple[int, int] = (1, 1)
    bit_depth: int = 0
    rotation: int = 0
    fliplr: bool = False
    flipud: bool = False

    def __post_init__(self) -> None:
        for name, value in (("ExposureTime", self.exposure_time), ("FrameTime", self.frame_time)):
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"{name}: {value} s is not a time; give seconds, 0 or more")
        if self.exposure_time == 0:
            raise ConfigError("ExposureTime: 0 s; an exposure must be longer than that")
        if self.n_triggers < 1 or self.n_frames_per_trigger < 1:
            raise ConfigError(
                f"nTriggers {self.n_triggers}, nFramesPerTrigger {self.n_frames_per_trigger}: both must be 1 or more"
            )
        if self.rotation not in (0, 90, 180, 270):
            raise ConfigError(f"Rotation: {self.rotation} degrees; can be 0, 90, 180 or 270")
        if min(self.binning) < 1:
            raise ConfigError(f"Binning: {self.binning}; each must be 1 or more")

    @property
    def n_frames(self) -> int:
        """Frames of the whole series."""
        return self.n_triggers * self.n_frames_per_trigger

    @property
    def n_starts(self) -> int:
        """Triggers, edges or gates that the whole series takes; 0 when nobody has to send any."""
        if self.trigger_mode is TriggerMode.INTERNAL:
            return 0
        if self.trigger_mode is TriggerMode.EXTERNAL_SINGLE:
            return 1
        if self.trigger_mode is TriggerMode.EXTERNAL_GATE:
            return self.n_frames
        return self.n_triggers

    @property
    def frames_per_start(self) -> int:
        """Frames that follow one trigger, edge or gate."""
        return self.n_frames // max(1, self.n_starts)


@dataclass(frozen=True)
class Series:
    """One Arm: what is recorded and where; `filename` "" means no file, `live` runs until it is stopped;
    `overwrite` True: an existing file may be replaced."""

    id: int
    settings: Settings
    filename: str = ""
    save_raw: bool = True
    label: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    live: bool = False
    overwrite: bool = False

    @property
    def n_frames(self) -> int | None:
        """Frames expected; None when the series runs until it is stopped."""
        return None if self.live else self.settings.n_frames


def parse_metadata(text: str) -> dict[str, Any]:
    """The user's JSON object. ConfigError when it is none."""
    try:
        value = json.loads(text, parse_constant=_no_json) if text.strip() else {}
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8, and so no way into the file
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f'Metadata: not JSON ({exc}); give an object such as {{"sample": "A1"}}') from exc
    if not isinstance(value, dict):
        raise ConfigError('Metadata: not a JSON object; give one such as {"sample": "A1"}')
    return value


def _no_json(word: str) -> float:
    """NaN and Infinity, which Python would take."""
    raise ValueError(f"{word} is not a JSON value")


def check_together(settings: Settings, latency: float) -> None:
    """ConfigError when values that are fine alone do not go together; `latency` in s, the hardware's dead time."""
    shortest = settings.exposure_time + latency
    if 0 < settings.frame_time < shortest * (1 - 1e-6):
        raise ConfigError(
            f"FrameTime {settings.frame_time:g} s is shorter than ExposureTime {settings.exposure_time:g} s plus "
            f"LatencyTime {latency:g} s; set it to {shortest:g} or more, or to 0"
        )
    if settings.trigger_mode is TriggerMode.EXTERNAL_GATE and settings.n_frames_per_trigger != 1:
        raise ConfigError(
            f"nFramesPerTrigger {settings.n_frames_per_trigger}: in EXTERNAL_GATE each gate is one frame; set it to 1"
        )
