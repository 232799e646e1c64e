"""Orders for a Lambda unit, in this process or on the unit's own computer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tangods_detector.caller import Caller, Line
from tangods_detector.hw.lambda_control import QUESTIONS, UnitOrders
from tangods_detector.hw.lambda_series import UnitOptions
from tangods_detector.hw.lambda_system import Description, Feature, LambdaSystem, Module, Value
from tangods_detector.hw.lambda_unit import Unit
from tangods_receiver.errors import HardwareError
from tangods_receiver.security import Credentials

__all__ = ["LambdaUnit", "ModuleState", "UnitOptions", "UnitStatus"]

PAUSE = 0.005  # s between two looks


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
    failed: int = 0  # without pixels, or not of the size that was expected; they count as missing
    blocked: bool = False
    over: bool = False  # nothing more will be sent


@dataclass(frozen=True)
class UnitStatus:
    """`phase`: idle, configuring, arming, armed, running, ending, done, error. `frames` that all modules of the unit
    have sent or missed for good; `starts` of this series that the hardware has taken."""

    phase: str
    message: str = ""
    series: int = -1
    nframes: int = 0
    frames: int = 0
    starts: int = 0
    fault: str = ""  # why the series will be in error; it may go on all the same
    halted: bool = False  # no more is asked of the hardware
    modules: Sequence[ModuleState] = ()

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

    Orders that take long (configure, arm, start) are begun by one call and waited for by another, so that several units
    do them at the same time: `for u in units: u.begin_arm(...)`, then `for u in units: u.wait_armed()`."""

    def __init__(self, address: str, timeout: float = 3.0, credentials: Credentials | None = None) -> None:
        """`credentials` where the unit asks for keys."""
        self._unit: Unit | None = None
        self._line: Line | None = Line(address, timeout, "stream-lambda", QUESTIONS, credentials)
        self._name = address
        self._order = Caller(address, self._line.ask)

    @classmethod
    def here(cls, system: LambdaSystem, options: UnitOptions) -> LambdaUnit:
        """Runs the unit in threads of this process; it connects `system` and closes it. `close` ends it."""
        new = cls.__new__(cls)
        new._line, new._name = None, "the unit here"
        new._unit = Unit(system, options).__enter__()
        new._order = Caller(new._name, UnitOrders(new._unit).answer)
        return new

    def __enter__(self) -> LambdaUnit:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ping(self) -> dict[str, Any]:
        """Program, version, endpoints, who has control; answers also where the hardware is not there."""
        return self._order("ping")

    def describe(self) -> Description:
        """What the unit has, now: shapes follow `bit_depth` and `interpolation`. Connects where that failed before."""
        told = self._order("describe")["description"]
        return Description(**{**told, "modules": tuple(map(_module, told["modules"]))})

    def modules(self) -> list[int]:
        """Numbers of the unit's modules in the whole image."""
        return [module.module for module in self.status().modules]

    def endpoints(self) -> list[str]:
        """Where the frames of each module are pulled from, as the unit's computer names it."""
        return list(self.ping()["endpoints"])

    def get(self, name: str, module: int | None = None) -> Value:
        """A setting, or a reading of the module of this number (in the whole image)."""
        return self._order("get", name=name, module=module)["value"]

    def set(self, name: str, value: Value, module: int | None = None) -> None:
        """One value at once, such as a module's `voltage`; refused while a series is open."""
        self._order("set", name=name, value=value, module=module)

    def begin_configure(self, settings: Mapping[str, Value]) -> None:
        """Set these in the order that the hardware needs; those that are as wanted are left alone."""
        self._order("configure", settings=dict(settings))

    def wait_configured(self, limit: float = 45.0) -> dict[str, Value]:
        """Until they are set, the RAM is allocated and the modules are ready; what the unit made of them."""
        self._wait("configuring", limit, "has not taken its settings")
        return dict(self._order("status")["accepted"])

    def begin_arm(
        self,
        series: int,
        filename: str,
        nframes: int,
        *,
        modules: int,
        metadata: Mapping[str, Any],
        frames_per_start: int | None = None,
        endless: bool = False,
        ready_limit: float = 30.0,
        receiver_limit: float = 10.0,
    ) -> None:
        """Send the start messages once every module of the unit is ready (voltage settled too, within `ready_limit` s).

        `nframes` of the series, doubled in DUAL; `modules` of all units; `metadata` of the start message, the same for
        all units, with `x`, `y`, `rotation` (lists of all modules) and `full_shape`. `frames_per_start` where there are
        several `start`s (software triggers), each of which counts anew; None: `nframes`. `endless`: the series ends by
        `stop`, so the receiver is told no number of frames; `nframes` is only the most that may come."""
        self._order(
            "arm",
            series=series,
            filename=filename,
            nframes=nframes,
            modules=modules,
            metadata=dict(metadata),
            frames_per_start=nframes if frames_per_start is None else frames_per_start,
            endless=endless,
            ready_limit=ready_limit,
            receiver_limit=receiver_limit,
        )

    def wait_armed(self, limit: float = 45.0) -> None:
        """Until a receiver has the start message of every module."""
        self._wait("arming", limit, "is not armed")

    def begin_start(self) -> int:
        """Begin, or (`frames_per_start`) the next software trigger; which one it is, from 1. Refused while the unit is
        busy with the one before."""
        return int(self._order("start")["start"])

    def wait_started(self, number: int, limit: float = 15.0) -> None:
        """Until every module is busy, or has sent: triggers may come."""
        end = time.monotonic() + limit
        while (status := self.status()).starts < number:
            if status.phase not in ("armed", "running") or status.halted:
                raise HardwareError(f"{self._name}: {status.message or f'start {number} was not taken'}")
            if time.monotonic() > end:
                raise HardwareError(f"{self._name}: start {number} is not taken after {limit:g} s")
            time.sleep(PAUSE)

    def start(self) -> None:
        """Both."""
        self.wait_started(self.begin_start())

    def stop(self) -> None:
        """The hardware stops, what is in the rings is sent, then the end messages; also without a series. Returns when
        the hardware has stopped: `wait_over`."""
        self._order("stop")

    def reset(self) -> None:
        """Initialise the hardware again (settings may be lost), or connect where that failed before."""
        self._order("reset")

    def status(self) -> UnitStatus:
        """Cheap."""
        told = {key: value for key, value in self._order("status").items() if key in UNIT}
        modules = [{key: value for key, value in one.items() if key in MODULE} for one in told.pop("modules")]
        return UnitStatus(**told, modules=tuple(ModuleState(**one) for one in modules))

    def wait_over(self, limit: float) -> UnitStatus:
        """Until the series is done, or in error."""
        end = time.monotonic() + limit
        while (status := self.status()).phase not in ("idle", "done", "error"):
            if time.monotonic() > end:
                raise HardwareError(f"{self._name}: series {status.series} is {status.phase} after {limit:g} s")
            time.sleep(2 * PAUSE)
        return status

    def close(self) -> None:
        """Give control back. A unit in this process ends; one elsewhere stays. Safe twice."""
        if self._line is not None and not self._line.closed:
            try:
                self._order("release")
            except HardwareError:
                pass  # it has ended, or another has control
            self._line.close()
        if self._unit is not None:
            self._unit.__exit__()

    def _wait(self, phase: str, limit: float, what: str) -> None:
        end = time.monotonic() + limit
        while (status := self.status()).phase == phase or (status.halted and status.phase in ("running", "ending")):
            if time.monotonic() > end:
                raise HardwareError(f"{self._name}: {what} after {limit:g} s; {status.message}")
            time.sleep(PAUSE)
        if status.phase == "error":
            raise HardwareError(f"{self._name}: {status.message}")


UNIT = {one.name for one in fields(UnitStatus)}
MODULE = {one.name for one in fields(ModuleState)}


def _module(told: Mapping[str, Any]) -> Module:
    shape, chips = told["shape"], told["chip_ids"]
    return Module(
        **{**told, "shape": (shape[0], shape[1]), "features": Feature(told["features"]), "chip_ids": tuple(chips)}
    )
