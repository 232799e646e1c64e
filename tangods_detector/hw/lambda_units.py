"""All units of a Lambda as one: orders go to each at the same time, answers are put together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from tangods_detector.hw.lambda_client import LambdaUnit, ModuleState, UnitOptions, UnitStatus
from tangods_detector.hw.lambda_system import Description, Feature, LambdaSystem, Module, Value
from tangods_detector.options import option
from tangods_receiver import security
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.security import Credentials

log = logging.getLogger(__name__)
T = TypeVar("T")

ANYWHERE = ("0.0.0.0", "*", "[::]")  # a unit that sends at every address of its computer
PAUSE = 0.02  # s
REFUSED = (": 400 ", "0x8040", "0x8042", "0x804a", "0x804b")  # in the words of a unit that cannot do what it was asked


@dataclass(frozen=True)
class LambdaOptions:
    """Where the units are, and what they do not tell. One of `units`, `xspd` and `libxsp` is given."""

    units: tuple[str, ...] = option((), "where the stream-lambda processes take orders, such as tcp://dcu1:9009, ...")
    curve_key: str = option("", "units: this side's .key_secret file, where they ask for keys")
    curve_server_keys: tuple[str, ...] = option((), "units: the .key file of each, or the one of all")
    xspd: str = option("", "address of an xspd that is driven from here, such as lambda1:8008")
    libxsp: str = option("", "path of the C wrapper of libxsp, which is driven from here")
    config: str = option("", "libxsp: its system.yml; empty: where libxsp looks for it")
    device: str = option("", "xspd: name of its device; empty: the first")
    high_voltage: float = option(0.0, "xspd: V that modules must have; 0: what they have must not change any more")
    stream_host: str = option("127.0.0.1", "xspd, libxsp: address from which the modules are sent")
    port: int = option(9010, "xspd, libxsp: of the first module, the others follow; 0: any free ones")
    sensor_material: str = option("", "such as Si, GaAs, CdTe; empty: as the unit tells")
    sensor_thickness: float = option(0.0, "in m; 0: not known")
    readout_time: float = option(0.001, "s of dead time in 24 bit; the vendor does not publish it")
    rotation_about: Literal["box", "corner", "centre"] = option("box", "what the positions of modules are the place of")
    clockwise: bool = option(False, "true: the unit counts the angles of modules clockwise")
    timeout: float = option(3.0, "limit for an answer of a unit, s")
    ready_limit: float = option(30.0, "limit for all modules to be ready, their high voltage too, s")
    initialize_limit: float = option(60.0, "limit for modules to be ready after they were initialised, s")

    def __post_init__(self) -> None:
        ways = [name for name in ("units", "xspd", "libxsp") if getattr(self, name)]
        problems = []
        if len(ways) != 1:
            problems.append(f"give one of units, xspd and libxsp, not {' and '.join(ways) or 'none'}")
        problems += [f"units: {u!r} is not like tcp://dcu1:9009" for u in self.units if not _is_address(u)]
        if bool(self.curve_key) != bool(self.curve_server_keys):
            problems.append("curve_key, curve_server_keys: both or none")
        if len(self.curve_server_keys) not in (0, 1, len(self.units)):
            problems.append(
                f"curve_server_keys: {len(self.curve_server_keys)} files for {len(self.units)} units; "
                "give one for all, or one for each"
            )
        if len(set(self.units)) < len(self.units):
            problems.append("units: one is given twice")
        for name in ("timeout", "ready_limit", "initialize_limit"):
            if getattr(self, name) <= 0:
                problems.append(f"{name}: {getattr(self, name)}; give seconds, more than 0")
        if not 0 <= self.port <= 65535:
            problems.append(f"port: {self.port} is not between 0 and 65535")
        if self.readout_time < 0:
            problems.append(f"readout_time: {self.readout_time}; give seconds, 0 or more")
        if problems:
            raise ConfigError("; ".join(problems))

    def open(self) -> list[LambdaUnit]:
        """Nothing is asked of them yet."""
        if self.units:
            credentials = self._credentials()
            return [LambdaUnit(unit, self.timeout, key) for unit, key in zip(self.units, credentials, strict=True)]
        return [LambdaUnit.here(self._system(), UnitOptions(self.stream_host, self.port))]

    def _credentials(self) -> Sequence[Credentials | None]:
        if not self.curve_key:
            return [None] * len(self.units)
        own, servers = security.key_pair(self.curve_key), [security.public_key(name) for name in self.curve_server_keys]
        found = [security.Credentials(own, server) for server in servers]
        return found if len(found) == len(self.units) else found * len(self.units)

    def _system(self) -> LambdaSystem:
        if self.xspd:
            from tangods_detector.hw.lambda_xspd import LambdaXspd, XspdOptions

            return LambdaXspd(XspdOptions(self.xspd, self.device, high_voltage=self.high_voltage))
        from tangods_detector.hw.lambda_libxsp import LambdaLibxsp, LibxspOptions

        return LambdaLibxsp(LibxspOptions(self.libxsp, self.config))


def _is_address(words: str) -> bool:
    try:
        parts = urlsplit(words)
        return parts.scheme == "tcp" and bool(parts.hostname) and bool(parts.port) and not parts.path
    except ValueError:
        return False


class Refused(HardwareError):
    """A unit cannot do what it was asked."""


class Units:
    """From its making to `close`. Every method raises HardwareError; another thread may call `stop` meanwhile."""

    def __init__(self, options: LambdaOptions) -> None:
        self._options = options
        self._units = options.open()
        self._where: dict[int, LambdaUnit] = {}  # by number of the module
        self._deaf: dict[LambdaUnit, str] = {}  # that do not answer, and their words
        self.modules: list[Module] = []  # in the order of their numbers
        self.library = ""
        self.bit_depth = 0
        self.sensor_material = ""

    # --- what is there -----------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """All units answer, and their modules make one detector. Those that are not initialised are."""
        for unit in self._units:
            unit.ping()  # has its answer at once, or is not there
        self.describe()
        if not all(status.ready for status in self.statuses()):
            self._wait_ready(1.0)
        if any(not (m.connected and m.ready) for status in self.statuses() for m in status.modules):
            self._initialise()
            self.describe()

    def describe(self) -> None:
        """Read again: sizes, positions, depth."""
        found: dict[int, tuple[LambdaUnit, Module]] = {}
        told: list[Description] = []
        for unit in self._units:
            told.append(unit.describe())
            numbers = unit.modules()
            for number, module in zip(numbers, told[-1].modules, strict=True):
                if number in found:
                    raise HardwareError(
                        f"two units have a module {number}: give each stream-lambda the --first of its modules"
                    )
                found[number] = unit, module
        if sorted(found) != list(range(len(found))):
            raise HardwareError(
                f"the units have the modules {', '.join(map(str, sorted(found)))}, not 0 to {len(found) - 1}: give "
                "each stream-lambda the --first of its modules, and all of them to this device"
            )
        depths = {description.bit_depth for description in told}
        self._where = {number: unit for number, (unit, _) in found.items()}
        self.modules = [found[number][1] for number in sorted(found)]
        self.library = ", ".join(dict.fromkeys(description.library for description in told))
        self.bit_depth = told[0].bit_depth if len(depths) == 1 else 0
        self.sensor_material = next((d.sensor_material for d in told if d.sensor_material), "")
        if len({module.shape for module in self.modules}) > 1:
            sizes = ", ".join(f"{m.name} {m.shape[0]} x {m.shape[1]}" for m in self.modules)
            raise HardwareError(f"the modules differ in size: {sizes}")

    def _initialise(self) -> None:
        log.warning("modules are not ready, they are initialised: %s", self.not_ready())
        for unit in self._units:
            unit.reset()
        self._wait_ready(self._options.initialize_limit)
        if lacking := self.not_ready():
            raise HardwareError(f"{lacking}, {self._options.initialize_limit:g} s after it was initialised")

    def _wait_ready(self, limit: float) -> None:
        """Or until the limit."""
        end = time.monotonic() + limit
        while self.not_ready() and time.monotonic() < end:
            time.sleep(PAUSE)

    def not_ready(self) -> str:
        """Modules that are not, in a sentence; "": all are."""
        found = [
            f"{m.name}{where}"
            for where, status in zip(self._places(), self.statuses(), strict=True)
            for m in status.modules
            if not (m.connected and m.ready)
        ]
        return f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} not ready" if found else ""

    def lacking(self) -> str:
        """The same, and modules whose memory is not allocated."""
        found = [
            f"the RAM of {m.name}{where} is not allocated"
            for where, status in zip(self._places(), self.statuses(), strict=True)
            for m in status.modules
            if not m.ram_allocated
        ]
        return ", ".join(filter(None, (self.not_ready(), *found)))

    def sentence(self, statuses: list[UnitStatus]) -> str:
        """What units have to say; each counts its modules from lambda/1."""
        said = [f"{s.message}{where}" for where, s in zip(self._places(), statuses, strict=True) if s.message]
        return "; ".join(said)

    def _places(self) -> list[str]:
        """Words that tell one of several units."""
        units = self._options.units
        return [f" ({urlsplit(address).netloc})" for address in units] if len(units) > 1 else [""] * len(self._units)

    def features(self) -> Feature:
        """That all modules have."""
        common = Feature.HV | Feature.BITS_1_6 | Feature.MEDIPIX_DAC_IO | Feature.EXTENDED_GATING
        for module in self.modules:
            common &= module.features
        return common

    def endpoints(self) -> list[str]:
        """In the order of the units."""
        found = []
        for k, unit in enumerate(self._units):
            host = urlsplit(self._options.units[k]).hostname if self._options.units else self._options.stream_host
            for endpoint in unit.endpoints():
                parts = urlsplit(endpoint)
                address = host if parts.hostname in ANYWHERE or parts.netloc.startswith("*") else parts.hostname
                found.append(f"tcp://{address}:{endpoint.rpartition(':')[2]}")
        return found

    # --- values ------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Value:
        """A setting, as the first unit has it; all are set alike."""
        return self._units[0].get(name)

    def readings(self, name: str) -> list[Value]:
        """Of each module."""
        return [self._where[number].get(name, number) for number in sorted(self._where)]

    def set_voltage(self, volts: float) -> None:
        for number, unit in self._where.items():
            unit.set("voltage", volts, number)

    def configure(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """At all units; what they made of it. Refused: one of them cannot, in its own words."""
        self._all(lambda unit: unit.begin_configure(settings), self._wait_configured)
        accepted = [unit.wait_configured() for unit in self._units]
        for name in settings:
            if any(other[name] != accepted[0][name] for other in accepted[1:]):
                raise HardwareError(f"{name}: the units have {', '.join(str(other[name]) for other in accepted)}")
        return accepted[0]

    def _wait_configured(self, unit: LambdaUnit) -> None:
        limit = self._options.ready_limit
        try:
            unit.wait_configured(limit)
        except HardwareError as exc:
            if any(word in str(exc) for word in REFUSED):
                raise Refused(str(exc)) from exc
            if lacking := self.lacking():
                raise HardwareError(f"{lacking}, {limit:g} s after a setting") from exc
            raise

    # --- a series ----------------------------------------------------------------------------------------------------

    def arm(self, series: int, filename: str, nframes: int, **more: Any) -> None:
        """Every module is ready, and the receiver has the start message of each. See `LambdaUnit.begin_arm`."""
        limit = self._options.ready_limit
        self._all(
            lambda unit: unit.begin_arm(
                series, filename, nframes, modules=len(self.modules), ready_limit=limit, **more
            ),
            lambda unit: unit.wait_armed(limit + 15.0),
        )

    def start(self, wait: bool = True) -> None:
        """At all units; `wait` until every module is busy: triggers may come."""
        numbers = {id(unit): unit.begin_start() for unit in self._units}
        if wait:
            for unit in self._units:
                unit.wait_started(numbers[id(unit)])

    def start_again(self) -> None:
        """Those units that are through with the last start: a series without an end."""
        for unit in self._units:
            status = unit.status()
            if status.phase == "running" and status.starts and not any(m.busy for m in status.modules):
                each = status.nframes // ENDLESS
                if status.frames >= status.starts * each:
                    unit.begin_start()

    def stop(self, limit: float) -> None:
        """All of them, whatever one of them says; the end messages are sent when it returns."""
        problems: dict[int, str] = {}
        for act in (LambdaUnit.status, LambdaUnit.stop, lambda unit: unit.wait_over(limit)):  # status answers at once
            for k, unit in enumerate(self._units):
                if k not in problems:
                    try:
                        self._heard(unit, act)
                    except HardwareError as exc:
                        problems[k] = str(exc)
        if problems:
            raise HardwareError("; ".join(problems.values()))

    def statuses(self) -> list[UnitStatus]:
        return [self._heard(unit, LambdaUnit.status) for unit in self._units]

    def _heard(self, unit: LambdaUnit, act: Callable[[LambdaUnit], T]) -> T:
        """Its answer. A unit that has not answered once is not waited for again, until all are connected anew."""
        if unit in self._deaf:
            raise HardwareError(self._deaf[unit])
        try:
            return act(unit)
        except HardwareError as exc:
            if "does not answer within" in str(exc):
                self._deaf[unit] = str(exc)
            raise

    def close(self) -> None:
        """Safe twice."""
        for unit in self._units:
            unit.close()

    def _all(self, begin: Callable[[LambdaUnit], Any], wait: Callable[[LambdaUnit], Any]) -> None:
        """Begun by all, then waited for; where one fails the others are stopped."""
        begun: list[LambdaUnit] = []
        try:
            for unit in self._units:
                begun.append(unit)
                begin(unit)
            for unit in self._units:
                wait(unit)
        except HardwareError:
            for unit in begun:
                try:
                    unit.stop()
                except HardwareError as exc:
                    log.debug("%s", exc)
            raise


ENDLESS = 1_000_000  # starts of a series that runs until it is stopped


def phase_of(statuses: list[UnitStatus]) -> str:
    """Of all units: the worst, else the earliest."""
    phases = [status.phase for status in statuses]
    for phase in ("error", "configuring", "arming", "armed", "running", "ending", "idle"):
        if phase in phases:
            return phase
    return "done"


def modules_of(statuses: list[UnitStatus]) -> list[ModuleState]:
    return sorted((module for status in statuses for module in status.modules), key=lambda m: m.module)
