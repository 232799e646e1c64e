"""The EIGER's own attributes: SIMPLON's keys by name, with what they mean."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tangods_detector.hw import eiger_arrays
from tangods_detector.hw.base import Parameter
from tangods_detector.hw.eiger_unit import Unit
from tangods_detector.hw.rest import Refused
from tangods_receiver.errors import ConfigError

if TYPE_CHECKING:
    from tangods_detector.hw.eiger import Eiger
    from tangods_detector.hw.eiger_link import Link

ABSENT = {float: math.nan, int: 0, str: "", bool: False}  # what a key reads that this detector has not
CONFIG, STATUS = "detector/config/", "detector/status/"
ARRAYS = {"pixel_mask": "<u4", "flatfield": "<f4"}
NEARLY = 0.05  # eV; energies that differ less are the same, for to write one takes long
CLIMATE = 5.0  # s between two looks at the temperature


class Knobs:
    """What an expert reads and turns, in the thread that owns the detector. `there` gives the link, or raises."""

    def __init__(self, there: Callable[[], Link]) -> None:
        self._there = there
        self.chosen: dict[str, Any] = {}  # keys that were set, to be set again after initialize
        self.trigger_exposure = 0.0  # s; 0: software triggers do not say how long
        self.answer = ""  # of the last request to a key by name
        self.paths = {f"{act} {name}": "" for act in ("save", "load") for name in ARRAYS}
        self._felt = 0.0  # the temperature, monotonic

    @property
    def running(self) -> bool:
        """A series is armed: the unit is not to be asked for more than its state."""
        return self._there().in_series

    def value(self, key: str, absent: Any) -> Any:
        """Of a key; what was last known in a series, when the unit is not to be asked; `absent` where it has none."""
        unit = self._there().unit
        if self.running:
            return unit.get(key) if key in unit else absent
        return unit.read(key).value if unit.has(key) else absent

    def choose(self, key: str, value: Any, name: str) -> None:
        """Set a key for the user, for good; ConfigError: not there, or not so, or not now."""
        unit = self._not_in_series(name)
        if not unit.has(key):
            raise ConfigError(f"{name}: this detector has no {key}")
        try:
            unit.set(key, value, NEARLY if key.endswith("_energy") or key.endswith("/energy") else 0.0)
        except ConfigError as exc:
            raise ConfigError(f"{name}: {exc}") from exc
        self.chosen.pop(key, None)
        self.chosen[key] = value

    def first(self, *keys: str) -> str:
        return self._there().unit.first(*keys)

    def expose_by_trigger(self, seconds: float) -> None:
        """Each software trigger says how long it exposes; 0: none does."""
        if seconds < 0:
            raise ConfigError(f"TriggerExposure: {seconds:g} s; give 0 or more")
        self.trigger_exposure = seconds

    def temperature(self) -> float:
        """degC; asked for every few seconds, and not in a series."""
        key = self.first("detector/status/temperature", "detector/status/board_000/th0_temp")
        unit, now = self._there().unit, time.monotonic()
        if not unit.has(key):
            return math.nan
        if not self.running and (now - self._felt > CLIMATE or key not in unit):
            self._felt = now
            if unit.has("detector/command/status_update"):  # API 1.6
                unit.connection.command(unit.path("detector/command/status_update"))
            return float(unit.read(key).value)
        return float(unit.get(key)) if key in unit else math.nan

    def links(self) -> str:
        keys = self._there().unit.names("detector/status", "link_")
        return " ".join(str(self.value(key, "")) for key in keys)

    def save_array(self, name: str, path: str) -> None:
        """pixel_mask or flatfield into a file."""
        if path:
            unit = self._not_in_series(f"Save {name}")
            answer = unit.read(self._array_key(name), timeout=self._there().options.arm_timeout)
            eiger_arrays.save(path, eiger_arrays.from_json(answer.value))
        self.paths[f"save {name}"] = path

    def load_array(self, name: str, path: str) -> None:
        """The same the other way."""
        if path:
            unit = self._not_in_series(f"Load {name}")
            array = eiger_arrays.load(path)
            shape = tuple(int(unit.get(f"detector/config/{axis}_pixels_in_detector")) for axis in "yx")
            if array.shape != shape:
                raise ConfigError(f"{path}: {array.shape[0]} x {array.shape[1]} pixels; the detector has {shape}")
            unit.write(self._array_key(name), eiger_arrays.to_json(array, ARRAYS[name]), checked=False)
        self.paths[f"load {name}"] = path

    def _array_key(self, name: str) -> str:
        return self.first(f"detector/config/threshold/1/{name}", f"detector/config/{name}")

    def _not_in_series(self, what: str) -> Unit:
        if self.running:
            raise ConfigError(f"{what}: not while a series is armed; give the command Stop first")
        return self._there().unit

    def request(self, text: str) -> None:
        """`KEY` reads, `KEY = JSON` writes, `module/command/NAME [= JSON]` commands; `answer` is what comes back."""
        text = text.strip()
        if not text:
            self.answer = ""
            return
        key, equals, value = (part.strip() for part in text.partition("="))
        unit = self._there().unit
        path = unit.path(key)
        connection = self._there().quick if self.running else unit.connection
        try:
            given = json.loads(value) if equals else None
        except ValueError:
            given = value
        try:
            if "/command/" in key:
                answer = connection.command(path, given, self._there().options.arm_timeout)
            elif equals:
                unit.write(key, given, checked=False, connection=connection)
                answer = unit.get(key)
                self.chosen[key] = given
            else:
                answer = connection.read(path)
        except Refused as exc:
            raise ConfigError(str(exc)) from exc
        self.answer = json.dumps(answer)


def _of_key(name: str, dtype: type, doc: str, *keys: str, writable: bool = True, **more: Any) -> Parameter:
    """The first of these keys that the unit has."""

    def get(eiger: Eiger) -> Any:
        return dtype(eiger.knobs.value(eiger.knobs.first(*keys), ABSENT[dtype]))

    def put(eiger: Eiger, value: Any) -> None:
        if eiger.knobs.running or not _same(value, get(eiger)):  # to write what it is does no harm where it is not
            eiger.knobs.choose(eiger.knobs.first(*keys), value, name)

    return Parameter(name, dtype, doc, get, put if writable else None, **more)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))


def _config(name: str, dtype: type, doc: str, *keys: str, **more: Any) -> Parameter:
    return _of_key(name, dtype, doc, *(CONFIG + key for key in keys), **more)


def _reading(name: str, dtype: type, doc: str, get: Callable[[Eiger], Any], **more: Any) -> Parameter:
    return Parameter(name, dtype, doc, get, None, **more)


def _action(
    name: str, doc: str, get: Callable[[Eiger], str], do: Callable[[Eiger, str], None], **more: Any
) -> Parameter:
    return Parameter(name, str, doc, get, do, **more)


EV: dict[str, Any] = {"unit": "eV", "format": "%9.2f"}

PARAMETERS = (
    _config("Energy", float, "Energy of the photons. Thresholds become half of it. Slow: 10 s on a 16M",
            "photon_energy", "incident_energy", **EV),
    _config("Threshold", float, "Energy from which a photon counts", "threshold/1/energy", "threshold_energy", **EV),
    _config("Threshold1Mode", str, "First threshold: enabled or disabled; empty: there is but one", "threshold/1/mode"),
    _config("Threshold2", float, "Energy of the second threshold; NaN: this detector has none", "threshold/2/energy",
            **EV),
    _config("Threshold2Mode", str, "Second threshold: enabled or disabled; its images are channels of their own",
            "threshold/2/mode"),
    _config("ThresholdDifference", str, "Image between the thresholds: enabled or disabled",
            "threshold/difference/mode"),
    _config("CountRateCorrection", bool, "Losses at high rates are made up for", "countrate_correction_applied"),
    _config("FlatfieldCorrection", bool, "Differences of pixels are made up for", "flatfield_correction_applied"),
    _config("PixelMaskApplied", bool, "Bad pixels have no value in the images", "pixel_mask_applied"),
    _config("VirtualPixelCorrection", bool, "Counts of larger pixels between chips are shared out",
            "virtual_pixel_correction_applied"),
    _config("MaskToZero", bool, "Masked pixels are 0 instead of the largest value", "mask_to_zero"),
    _config("AutoSummation", bool, "Long exposures are sums of short ones, up to 32 bits", "auto_summation"),
    _config("CountingMode", str, "normal or retrigger", "counting_mode"),
    _config("RoiMode", str, "Part of the detector that is read: disabled, 4M, lines ... as the model has it",
            "roi_mode"),
    _config("Compression", str, "Of the images in the stream: bslz4, lz4 or none", "compression"),
    _config("TriggerStartDelay", float, "From a trigger to the exposure", "trigger_start_delay", unit="s"),
    _config("BitDepthReadout", int, "Bits of the counters that are read out", "bit_depth_readout", writable=False),
    _config("CountCutoff", int, "Largest count that is reliable; the file has it as saturation_value",
            "countrate_correction_count_cutoff", writable=False),
    _of_key("HeaderDetail", str, "What the start message holds: none, basic, all (with mask and flat field)",
            "stream/config/header_detail"),
    _of_key("ImageAppendix", str, "Text that is sent with each image", "stream/config/image_appendix"),
    Parameter("TriggerExposure", float,
              "Exposure that each SoftwareTrigger asks for, whatever ExposureTime; may be changed between triggers. "
              "0: as ExposureTime. Takes nFramesPerTrigger 1, and counts from the next Arm on",
              lambda b: b.knobs.trigger_exposure, lambda b, value: b.knobs.expose_by_trigger(value), unit="s",
              min_value=0.0, writable_while_running=True),
    _reading("DetectorTemperature", float, "Of the detector head; looked at while no series runs",
             lambda b: b.knobs.temperature(), unit="degC", format="%5.1f", max_alarm=50.0),
    _of_key("Humidity", float, "In the detector head", STATUS + "humidity", STATUS + "board_000/th0_humidity",
            writable=False, unit="%", format="%5.1f"),
    _of_key("HighVoltage", str, "State of the high voltage of a CdTe sensor; empty: this detector has none",
            STATUS + "high_voltage/state", writable=False),
    _reading("Links", str, "State of the data links to the detector head, such as up up", lambda b: b.knobs.links()),
    _of_key("UnitState", str, "State of the control unit, in SIMPLON's word", STATUS + "state", writable=False),
    _of_key("StreamState", str, "State of the unit's stream, in SIMPLON's word", "stream/status/state", writable=False),
    _of_key("DroppedMessages", int, "Messages of the stream that the unit has dropped for want of room",
            "stream/status/dropped", writable=False),
    _reading("MonitorFailures", int, "How often the monitor's image was asked for in vain, since connecting",
             lambda b: b.monitor_failures),
    _action("SavePixelMask", "Write a path: the mask is saved there (.npy, .tif), on the Detector's computer",
            lambda b: b.knobs.paths["save pixel_mask"], lambda b, path: b.knobs.save_array("pixel_mask", path)),
    _action("LoadPixelMask", "Write a path: that mask is given to the detector; permanent from the next Arm on",
            lambda b: b.knobs.paths["load pixel_mask"], lambda b, path: b.knobs.load_array("pixel_mask", path)),
    _action("SaveFlatfield", "Write a path: the flat field is saved there (.npy, .tif), on the Detector's computer",
            lambda b: b.knobs.paths["save flatfield"], lambda b, path: b.knobs.save_array("flatfield", path)),
    _action("LoadFlatfield", "Write a path: that flat field is given to the detector",
            lambda b: b.knobs.paths["load flatfield"], lambda b, path: b.knobs.load_array("flatfield", path)),
    _action("Simplon", "Write `detector/config/chi_start` to read a key, `... = 1.5` to write it (JSON), "
            "`detector/command/hv_reset = 45` for a command; reads the answer as JSON",
            lambda b: b.knobs.answer, lambda b, text: b.knobs.request(text), writable_while_running=True),
)  # fmt: skip
