"""What drives the modules of one Lambda control unit, whichever way in is taken: xspd, or libxsp through the C wrapper.

Names and units are those of the vendor's interface (xspd's variables): times in ms, energies in keV, voltages in V.
`module` in calls is the position in `Description.modules`, from 0 (the vendor's lambda/1 is 0)."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

Value = float | int | str | list[float] | list[int] | list[str]

#: Settings of the detector, in the order in which they must be set; switches are ON or OFF. `set` knows these and, of a
#: module, `voltage`.
SETTINGS: dict[str, type] = {
    "bit_depth": int,  # 1, 6, 12, 24
    "counter_mode": str,  # SINGLE, DUAL
    "charge_summing": str,
    "interpolation": str,
    "roi_rows": int,  # of each chip, 256: all
    "countrate_correction": str,
    "flatfield_correction": str,
    "saturation_flag": str,
    "beam_energy": float,  # keV
    "thresholds": list,  # keV; none after power-up
    "trigger_mode": str,  # SOFTWARE, EXT_SEQUENCE, EXT_FRAMES
    "gating_mode": str,
    "frames_per_trigger": int,
    "n_frames": int,  # of one `start`; in DUAL twice as many come
    "shutter_time": float,  # ms
}

#: Readings of each module.
READINGS: dict[str, type] = {
    "voltage": float,  # V
    "temperature": list,  # three values, degrees Celsius; which sensor is which is not stated
    "humidity": float,  # %
    "sensor_current": float,  # uA
    "saturation_threshold": float,  # counts/s in each pixel
    "frames_queued": int,  # in the ring
    "max_frames": int,  # that fit into the ring
}

RESIZING = ("bit_depth", "counter_mode", "interpolation", "roi_rows")  # the RAM is allocated anew
DTYPES = {1: "uint8", 6: "uint8", 12: "uint16", 24: "uint32"}  # by bit depth; little endian, C order


class Feature(enum.IntFlag):
    """What the firmware of a module can do."""

    HV = 1
    BITS_1_6 = 2
    MEDIPIX_DAC_IO = 4
    EXTENDED_GATING = 8


class FrameStatus(enum.IntEnum):
    """How a frame came."""

    OK = 0
    INCOMPLETE = 1  # packets were lost on the way from the module; the pixels that came are there
    MISSING = 2  # there are no pixels
    COMPRESSION_FAILED = 3


@dataclass(frozen=True)
class Module:
    """`shape` (rows, columns) as it is now; `x`, `y` (pixels in the whole image) and `rotation` (degrees) as the unit
    has them; `chip_ids` where they are told."""

    name: str
    shape: tuple[int, int]
    x: float = 0.0
    y: float = 0.0
    rotation: float = 0.0
    serial_number: str = ""
    firmware: str = ""
    features: Feature = Feature(0)
    chip_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """`detector` is the vendor's id; `library` what drives it, with its version; `sensor_material` where it is told."""

    detector: str
    library: str
    modules: tuple[Module, ...]
    bit_depth: int
    sensor_material: str = ""

    @property
    def dtype(self) -> str:
        """NumPy name of the pixels' type."""
        return DTYPES[self.bit_depth]


@dataclass(frozen=True)
class ModuleStatus:
    """`ready` for `start`; `busy` from start to the last frame; where the unit does not tell `ram_allocated` or
    `voltage_settled` they are true."""

    connected: bool
    ready: bool
    busy: bool
    ram_allocated: bool = True
    voltage_settled: bool = True
    frames_queued: int = 0


class RawFrame(NamedTuple):
    """A frame as it came. `number` as the unit counts, from 1 after each `start`, of which only the lowest
    `counter_bits` of its system are of use; `trigger` likewise; `pixels` C order, good until `release` is called: once,
    from any thread. MISSING ones have no pixels, and must be released likewise."""

    number: int
    status: FrameStatus
    pixels: memoryview
    release: Callable[[], None]
    trigger: int = 0


class LambdaSystem(ABC):
    """The modules of one unit. Every method raises HardwareError with the unit's own words when it is refused or fails.

    Calls come from one thread at a time, but for `next_frame`: from one thread for each module, beside the others.

    `counter_bits` of a frame's number are of use. `settle` s frames may still come after a module is no longer busy and
    its ring is empty. `dual_shares_numbers`: the two frames of a DUAL acquisition have the same number (False: each its
    own; None: found out when it happens)."""

    counter_bits: ClassVar[int] = 24
    settle: ClassVar[float] = 0.0
    dual_shares_numbers: ClassVar[bool | None] = None

    @abstractmethod
    def connect(self) -> Description:
        """Open the link; returns what is there. Within 30 s."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; safe at any time, also twice. No frame may be in use any more."""

    @abstractmethod
    def describe(self) -> Description:
        """Read again: shapes, positions, bit depth as they are now."""

    @abstractmethod
    def get(self, name: str, module: int | None = None) -> Value:
        """A setting or (with `module`) a reading."""

    @abstractmethod
    def set(self, name: str, value: Value, module: int | None = None) -> None:
        """Set it; `get` tells what became of it. The unit may be busy with it afterwards: look at `status`."""

    @abstractmethod
    def start(self) -> None:
        """`n_frames` from all modules; in external modes they may not be ready for triggers yet when it returns."""

    @abstractmethod
    def stop(self) -> None:
        """Also where nothing runs."""

    @abstractmethod
    def reset(self) -> None:
        """Initialise the hardware again; settings may be lost."""

    @abstractmethod
    def status(self) -> tuple[ModuleStatus, ...]:
        """Of each module; cheap."""

    @abstractmethod
    def next_frame(self, module: int, timeout: float) -> RawFrame | None:
        """The oldest that was not taken yet; None: there is none within `timeout` s. Holds no lock of Python while it
        waits. Frames of an earlier `start` do not come after a later one."""


def switch(on: bool) -> str:
    """The vendor's word."""
    return "ON" if on else "OFF"
