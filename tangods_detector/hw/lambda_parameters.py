"""The Lambda's own attributes: the vendor's settings and readings by name, with what they mean. Energies in eV."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tangods_detector.hw.base import Parameter
from tangods_detector.hw.lambda_system import Value, switch
from tangods_detector.hw.lambda_units import Refused, Units, modules_of
from tangods_receiver.errors import ConfigError

if TYPE_CHECKING:
    from tangods_detector.hw.xlambda import XLambda

KEV = 1000.0  # eV
CLIMATE = 5.0  # s between two looks at the temperature
WARM = 70.0  # degrees Celsius; real modules run at 53


class Knobs:
    """What an expert reads and turns, in the thread that owns the detector. `there` gives the units, or raises;
    `changed` is called after the unit has something new."""

    def __init__(self, there: Callable[[], Units], changed: Callable[[], None]) -> None:
        self._there, self._changed = there, changed
        self.chosen: dict[str, Value] = {}  # that were set, to be set again after an initialisation
        self.running = False  # a series is armed
        self._felt = -math.inf  # the temperatures, monotonic
        self._warmth: list[list[float]] = []

    def get(self, name: str) -> Value:
        return self._there().get(name)

    def energies(self) -> list[float]:
        """Thresholds, eV."""
        told = self.get("thresholds")
        return [float(value) * KEV for value in told] if isinstance(told, list) else []

    def choose(self, name: str, attribute: str, **settings: Value) -> None:
        """Set for good; ConfigError: not so, or not now."""
        if self.running:
            raise ConfigError(f"{attribute}: not while a series is armed; give the command Stop first")
        try:
            accepted = self._there().configure(settings)
        except Refused as exc:
            raise ConfigError(f"{attribute}: {exc}") from exc
        self.chosen.update({key: accepted[key] for key in settings})
        self._changed()

    def set_energy(self, value: float) -> None:
        """A single threshold becomes half of it."""
        _positive("Energy", value)
        settings: dict[str, Value] = {"beam_energy": value / KEV}
        if len(self.energies()) < 2:
            settings["thresholds"] = [value / KEV / 2]
        self.choose("beam_energy", "Energy", **settings)

    def set_thresholds(self, energies: list[float], attribute: str) -> None:
        for value in energies:
            _positive(attribute, value)
        if not energies or len(energies) > 8 or sorted(energies) != energies:
            raise ConfigError(f"{attribute}: {energies}; give one to eight energies in eV, ascending")
        self.choose("thresholds", attribute, thresholds=[value / KEV for value in energies])

    def set_voltage(self, volts: float) -> None:
        if self.running:
            raise ConfigError("HighVoltage: not while a series is armed; give the command Stop first")
        self._there().set_voltage(volts)

    def readings(self, name: str) -> list[float]:
        """Of each module."""
        return [float(value) for value in self._there().readings(name)]  # type: ignore[arg-type]

    def temperatures(self) -> list[list[float]]:
        """Of each module; asked for every few seconds, and not in a series."""
        now = time.monotonic()
        if not self.running and now - self._felt > CLIMATE:
            self._felt = now
            told = self._there().readings("temperature")
            self._warmth = [[float(one) for one in values] for values in told]  # type: ignore[union-attr]
        return self._warmth

    def warmest(self) -> float:
        return max((value for values in self.temperatures() for value in values), default=math.nan)

    def module_states(self) -> str:
        """One word for each."""
        modules = modules_of(self._there().statuses())
        return " ".join(
            "busy" if m.busy else "ready" if m.ready else "connected" if m.connected else "away" for m in modules
        )

    def of_modules(self, name: str) -> int:
        """Summed: incomplete, queued."""
        return sum(int(getattr(m, name)) for m in modules_of(self._there().statuses()))


def _positive(attribute: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{attribute}: {value:g} eV; give an energy above 0")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise ConfigError(f"Thresholds: {text!r}; give energies in eV, such as 4000, 8000") from None


def _setting(name: str, key: str, dtype: type, doc: str, **more: Any) -> Parameter:
    """A setting as the unit has it; switches are true or false here."""

    def get(backend: XLambda) -> Any:
        value = backend.knobs.get(key)
        return value == "ON" if dtype is bool else dtype(value)

    def put(backend: XLambda, value: Any) -> None:
        backend.knobs.choose(key, name, **{key: switch(value) if dtype is bool else value})

    return Parameter(name, dtype, doc, get, put, **more)


def _reading(name: str, dtype: type, doc: str, get: Callable[[XLambda], Any], **more: Any) -> Parameter:
    return Parameter(name, dtype, doc, get, None, **more)


EV: dict[str, Any] = {"unit": "eV", "format": "%9.2f"}

PARAMETERS = (
    Parameter("Energy", float, "Energy of the photons. A single threshold becomes half of it",
              lambda b: float(b.knobs.get("beam_energy")) * KEV, lambda b, value: b.knobs.set_energy(value), **EV),
    Parameter("Threshold", float, "Energy from which a photon counts, of the first counter; NaN: none is set, Arm is "
              "refused", lambda b: next(iter(b.knobs.energies()), math.nan),
              lambda b, value: b.knobs.set_thresholds([value, *b.knobs.energies()[1:]], "Threshold"), **EV),
    Parameter("Thresholds", str, "All of them, in eV: one for each counter, up to 8 with charge summing",
              lambda b: ", ".join(f"{value:g}" for value in b.knobs.energies()),
              lambda b, text: b.knobs.set_thresholds(_numbers(text), "Thresholds")),
    _setting("CounterMode", "counter_mode", str, "SINGLE, or DUAL: each exposure gives two images, the low "
             "threshold's first"),
    _setting("ChargeSumming", "charge_summing", bool, "Charge that pixels share is put together"),
    _setting("Interpolation", "interpolation", bool, "Counts of larger pixels between chips are shared out; the image "
             "is larger"),
    _setting("RoiRows", "roi_rows", int, "Rows of each chip that are read, 256: all"),
    _setting("CountRateCorrection", "countrate_correction", bool, "Losses at high rates are made up for"),
    _setting("FlatfieldCorrection", "flatfield_correction", bool, "Differences of pixels are made up for"),
    _setting("SaturationFlag", "saturation_flag", bool, "Saturated pixels have their unused high bits set"),
    Parameter("HighVoltage", float, "Of the sensors, the lowest of all modules; Arm waits until it has settled",
              lambda b: min(b.knobs.readings("voltage"), default=math.nan),
              lambda b, value: b.knobs.set_voltage(value), unit="V", format="%6.1f", min_value=0.0),
    _reading("DetectorTemperature", float, "Highest of all modules; looked at while no series runs",
             lambda b: b.knobs.warmest(), unit="degC", format="%5.1f", max_alarm=WARM),
    _reading("ModuleTemperatures", str, "Three of each module, in degC",
             lambda b: "; ".join(" ".join(f"{t:.1f}" for t in values) for values in b.knobs.temperatures())),
    _reading("Humidity", float, "In the modules, the highest",
             lambda b: max(b.knobs.readings("humidity"), default=math.nan), unit="%", format="%5.1f"),
    _reading("SensorCurrent", float, "Of the high voltage, the highest of all modules",
             lambda b: max(b.knobs.readings("sensor_current"), default=math.nan), unit="uA", format="%7.2f"),
    _reading("SaturationThreshold", float, "Counts per second in a pixel that saturate it, of the first module",
             lambda b: next(iter(b.knobs.readings("saturation_threshold")), math.nan), unit="1/s", format="%9.0f"),
    _reading("MaxFrames", int, "Frames that fit into the memory of every module: the most of one series, or trigger",
             lambda b: b.max_frames),
    _reading("ModuleStates", str, "Of each module: ready, busy, connected or away", lambda b: b.knobs.module_states()),
    _reading("IncompleteFrames", int, "Frames of modules in this series that had lost pixels on their way",
             lambda b: b.knobs.of_modules("incomplete")),
    _reading("QueuedFrames", int, "Frames of modules that wait in their units' memory",
             lambda b: b.knobs.of_modules("queued")),
)  # fmt: skip
