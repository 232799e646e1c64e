"""Orders for a Lambda unit, in this process or on the unit's own computer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tangods_detector.hw.lambda_system import Description, LambdaSystem, Value
from tangods_receiver.errors import HardwareError


@dataclass(frozen=True)
class UnitOptions:
    """Where a unit process sends: module k of the unit at `port` + k (0: any free ones). `first` is the number that the
    unit's first module has in the whole image, from 0."""

    host: str = "127.0.0.1"
    port: int = 9010
    first: int = 0


@dataclass(frozen=True)
class ModuleState:
    """One module as the unit tells it. `sent` frames of this series; `missing` ones that did not come (known after the
    end, or once a later one came); `incomplete` ones that were sent with lost packets, and `queued` frames in the
    ring; `blocked` while the receiver takes none."""

    module: int  # in the whole image
    name: str = ""
    connected: bool = False
    ready: bool = False
    busy: bool = False
    ram_allocated: bool = False
    voltage_settled: bool = False
    queued: int = 0
    sent: int = 0
    missing: int = 0
    missing_numbers: Sequence[Sequence[int]] = ()  # ranges, first and last
    incomplete: int = 0
    repeated: int = 0
    foreign: int = 0  # beyond the end of the series
    blocked: bool = False
    over: bool = False  # nothing more will be sent


@dataclass(frozen=True)
class UnitStatus:
    """`phase`: idle, configuring, arming, armed, running, ending, done, error. `frames` that all modules of the unit
    have sent or missed for good; `starts` that were given in this series."""

    phase: str
    message: str = ""
    series: int = -1
    nframes: int = 0
    frames: int = 0
    starts: int = 0
    modules: Sequence[ModuleState] = field(default_factory=tuple)

    @property
    def ready(self) -> bool:
        """Connected, ready, memory there, voltage settled, of every module."""
        return all(m.connected and m.ready and m.ram_allocated and m.voltage_settled for m in self.modules)

    @property
    def busy(self) -> bool:
        """Of every module: triggers may come."""
        return all(m.busy for m in self.modules)


class LambdaUnit:
    """The unit process at `address` (tcp://host:port), or (`here`) one in this process. Any thread may call; every
    method raises HardwareError with the unit's own words, or when it does not answer for `timeout` s.

    Orders that take long (configure, arm) are begun by one call and waited for by another, so that several units do
    them at the same time: `for u in units: u.begin_arm(...)`, then `for u in units: u.wait_armed()`."""

    def __init__(self, address: str, timeout: float = 3.0) -> None:
        raise HardwareError("not there yet")

    @classmethod
    def here(cls, system: LambdaSystem, options: UnitOptions) -> LambdaUnit:
        """Runs the unit in threads of this process; it connects `system` and closes it. `close` ends it."""
        raise HardwareError("not there yet")

    def __enter__(self) -> LambdaUnit:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ping(self) -> dict[str, Any]:
        """Program, version, endpoints, who has control; answers also where the hardware is not there."""
        raise HardwareError("not there yet")

    def describe(self) -> Description:
        """What the unit has, now: shapes follow `bit_depth` and `interpolation`."""
        raise HardwareError("not there yet")

    def modules(self) -> list[int]:
        """Numbers of the unit's modules in the whole image."""
        raise HardwareError("not there yet")

    def endpoints(self) -> list[str]:
        """Where the frames of each module are pulled from, as the unit's computer names it."""
        raise HardwareError("not there yet")

    def get(self, name: str, module: int | None = None) -> Value:
        """A setting, or a reading of the module of this number (in the whole image)."""
        raise HardwareError("not there yet")

    def set(self, name: str, value: Value, module: int | None = None) -> None:
        """One value at once, such as a module's `voltage`; refused while a series is open."""
        raise HardwareError("not there yet")

    def begin_configure(self, settings: Mapping[str, Value]) -> None:
        """Set these in the order that the hardware needs; those that are as wanted are left alone."""
        raise HardwareError("not there yet")

    def wait_configured(self, limit: float = 30.0) -> dict[str, Value]:
        """Until they are set, the RAM is allocated and the modules are ready; what the unit made of them."""
        raise HardwareError("not there yet")

    def begin_arm(
        self,
        series: int,
        filename: str,
        nframes: int,
        *,
        modules: int,
        metadata: Mapping[str, Any],
        frames_per_start: int | None = None,
        ready_limit: float = 30.0,
        receiver_limit: float = 10.0,
    ) -> None:
        """Send the start messages once every module of the unit is ready (voltage settled too, within `ready_limit` s).

        `nframes` of the series, doubled in DUAL; `modules` of all units; `metadata` of the start message, the same for
        all units, with `x`, `y`, `rotation` (lists of all modules) and `full_shape`. `frames_per_start` where there are
        several `start`s (software triggers), each of which counts anew; None: `nframes`."""
        raise HardwareError("not there yet")

    def wait_armed(self, limit: float = 45.0) -> None:
        """Until a receiver has the start message of every module."""
        raise HardwareError("not there yet")

    def start(self) -> None:
        """Begin, or (`frames_per_start`) the next software trigger; returns when every module is busy, or has sent."""
        raise HardwareError("not there yet")

    def stop(self) -> None:
        """The hardware stops, what is in the rings is sent, then the end messages; also without a series. Returns at
        once: `wait_over`."""
        raise HardwareError("not there yet")

    def reset(self) -> None:
        """Stop and initialise the hardware again; settings may be lost."""
        raise HardwareError("not there yet")

    def status(self) -> UnitStatus:
        """Cheap."""
        raise HardwareError("not there yet")

    def wait_over(self, limit: float) -> UnitStatus:
        """Until the series is done, or in error."""
        raise HardwareError("not there yet")

    def close(self) -> None:
        """Give control back. A unit in this process ends; one elsewhere stays. Safe twice."""
        raise HardwareError("not there yet")
