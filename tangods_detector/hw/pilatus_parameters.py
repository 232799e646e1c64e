"""The PILATUS' own attributes: what camserver is told for the expert, told again whenever it forgets."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tangods_detector.hw import pilatus_replies as replies
from tangods_detector.hw.base import Parameter
from tangods_receiver.errors import ConfigError, HardwareError

if TYPE_CHECKING:
    from tangods_detector.hw.pilatus import Pilatus
    from tangods_detector.hw.pilatus_link import Link

log = logging.getLogger(__name__)

NEARLY = 0.5  # eV; camserver takes whole ones
GAINS = ("lowg", "midg", "highg", "uhighg", "autog")
GAP_FILL = -1
# Attribute: line of the header, which is also the key of mxsettings; where its number is
MX = {
    "Wavelength": ("Wavelength", 0),
    "DetectorDistance": ("Detector_distance", 0),
    "BeamX": ("Beam_xy", 0),
    "BeamY": ("Beam_xy", 1),
    "StartAngle": ("Start_angle", 0),
    "AngleIncrement": ("Angle_increment", 0),
    "FilterTransmission": ("Filter_transmission", 0),
}
ONE_LINE = re.compile(r"[ -~]*")  # what a command may hold: printable ASCII
PLAIN = {  # commands with one value that camserver does not give back by itself: what it is before one is chosen
    "gapfill": GAP_FILL,
    "nexpframe": 1,
    "delay": 0.0,
    "setroi": "0",
}


class Knobs:
    """What an expert reads and turns, in the thread that owns the detector. `there` gives the link, or raises."""

    def __init__(self, there: Callable[[], Link]) -> None:
        self._there = there
        self._chosen: dict[str, Any] = {}  # command: value, told to camserver before each series
        self._mx: dict[str, tuple[str, ...]] = {}  # key of mxsettings: values
        self._threshold = replies.Threshold()  # that was chosen; 0: camserver's own stays
        self.gain = ""  # for the next threshold; "": camserver chooses
        self.answer = ""  # of the last command by hand

    def connected(self) -> None:
        """A camserver that was started again has no threshold any more, or another: it is set as it was."""
        wanted, link = self._threshold, self._there()
        if wanted.threshold and not _same(wanted, link.threshold):
            try:
                self._set_threshold(wanted)
            except ConfigError as exc:
                log.warning("not set again: %s", exc)
                self._threshold = replies.Threshold()

    # --- threshold ---------------------------------------------------------------------------------------------------

    @property
    def threshold(self) -> replies.Threshold:
        """As camserver has it."""
        return self._there().threshold

    def choose_energy(self, energy: float) -> None:
        """eV. The threshold becomes half of it."""
        self._set_threshold(replies.Threshold(energy, energy / 2, self.gain))

    def choose_threshold(self, threshold: float) -> None:
        """eV, for the same energy; for twice as much where none is set."""
        self._set_threshold(replies.Threshold(self.threshold.energy or 2 * threshold, threshold, self.gain))

    def choose_gain(self, gain: str) -> None:
        """For this threshold, and those that follow."""
        if gain and gain not in GAINS:
            raise ConfigError(f"Gain: {gain!r} is not one of {', '.join(GAINS)}; empty: camserver chooses")
        now = self.threshold
        if gain and now.threshold:
            self._set_threshold(now._replace(gain=gain))
        self.gain = gain

    def _set_threshold(self, wanted: replies.Threshold) -> None:
        if not 0 < wanted.threshold < 1e6 or not 0 < wanted.energy < 1e6:
            raise ConfigError(f"Energy {wanted.energy:g} eV, Threshold {wanted.threshold:g} eV: not possible")
        link = self._there()
        before = link.threshold
        try:
            link.set_threshold(threshold_command(wanted))
        except ConfigError:
            if before.threshold and not _same(before, link.threshold):  # an old camserver had to be told 0 first
                link.set_threshold(threshold_command(before))
            raise
        if not _same(wanted, link.threshold):
            now = link.threshold
            raise HardwareError(
                f"camserver was told energy {wanted.energy:g} eV, threshold {wanted.threshold:g} eV, and has "
                f"{now.energy:g} eV, {now.threshold:g} eV"
            )
        self._threshold = wanted

    # --- what is told before each series -----------------------------------------------------------------------------

    def tell(self) -> None:
        """Everything that is the user's: camserver loses some of it with each new threshold."""
        link = self._there()
        for command, value in {**PLAIN, **self._chosen}.items():
            if value != PLAIN.get(command) or command == "gapfill" or command in self._chosen:
                link.set(command, value)
        for key, values in self._mx.items():
            link.set(f"mxsettings {key}", " ".join(values))

    def chosen(self, command: str, absent: Any) -> Any:
        return self._chosen.get(command, PLAIN.get(command, absent))

    def choose(self, command: str, value: Any, name: str) -> None:
        """Tell it now, and again before each series. ConfigError: camserver does not take it."""
        try:
            self._there().set(command, value)
        except ConfigError as exc:
            raise ConfigError(f"{name}: {exc}") from exc
        self._chosen[command] = value

    @property
    def region(self) -> str:
        return str(self.chosen("setroi", "0")).upper()

    def choose_region(self, region: str) -> None:
        region = region.strip().upper() or "0"
        if region != "0" and region not in replies.REGIONS:
            raise ConfigError(f"RoiMode: {region!r} is not 0 or one of {', '.join(replies.REGIONS)}")
        self.choose("setroi", region, "RoiMode")

    def mx(self, name: str) -> float:
        """Of the header, by the name of its attribute; NaN: not set."""
        key, place = MX[name]
        values = self._mx.get(key, ())
        try:
            return float(values[place])
        except (IndexError, ValueError):
            return math.nan

    def choose_mx(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            return
        key, place = MX[name]
        values = list(self._mx.get(key, ("0", "0")[: 2 if key == "Beam_xy" else 1]))
        values[place] = f"{value:.9g}"
        self._choose_mx(key, tuple(values))

    @property
    def mx_settings(self) -> str:
        """One `key value` a line."""
        return "\n".join(f"{key} {' '.join(values)}" for key, values in self._mx.items())

    def choose_mx_settings(self, text: str) -> None:
        """Those lines; what is not among them stays in camserver as it is, but is told no more."""
        lines = [line.split() for line in text.replace(",", " ").splitlines() if line.strip()]
        for words in lines:
            if len(words) < 2 or not ONE_LINE.fullmatch(" ".join(words)):
                raise ConfigError(f"MxSettings: {' '.join(words)!r} is not `key value`, such as Wavelength 0.9763")
        self._mx = {key: values for key, values in self._mx.items() if key in {words[0] for words in lines}}
        for key, *values in lines:
            self._choose_mx(key, tuple(values))

    def _choose_mx(self, key: str, values: tuple[str, ...]) -> None:
        try:
            self._there().set(f"mxsettings {key}", " ".join(values))
        except ConfigError as exc:
            raise ConfigError(f"MxSettings: {exc}") from exc
        self._mx[key] = values

    # --- for the file ------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """What the file has of these before there is an image, by the receiver's names."""
        found: dict[str, Any] = {}
        if self.threshold.threshold:
            found["threshold_energy"] = self.threshold.threshold
            found["photon_energy"] = self.threshold.energy
        for ours, name in (("detector_distance", "DetectorDistance"), ("beam_center_x", "BeamX")):
            if not math.isnan(value := self.mx(name)):
                found[ours] = value
        if not math.isnan(value := self.mx("BeamY")):
            found["beam_center_y"] = value
        return found

    def expected(self, exposure: float, period: float) -> dict[str, Any]:
        """Lines of the images' header, as they should be."""
        found: dict[str, Any] = {}
        if self.chosen("nexpframe", 1) == 1:
            found |= {"Exposure_time": exposure, "Exposure_period": period}
        if self.threshold.threshold:
            found["Threshold_setting"] = self.threshold.threshold
        for key, values in self._mx.items():
            try:
                numbers = [float(value) for value in values]
            except ValueError:
                continue
            if key != "Start_angle":  # goes on with the images
                found[key] = numbers
        return found


def threshold_command(wanted: replies.Threshold) -> str:
    """The shortest that says it: setenergy chooses threshold and gain by itself."""
    if not wanted.gain and abs(wanted.threshold - wanted.energy / 2) < NEARLY:
        return f"setenergy {wanted.energy:.0f}"
    gain = f" {wanted.gain}" if wanted.gain else ""
    return f"setthreshold energy {wanted.energy:.0f}{gain} {wanted.threshold:.0f}"


def _same(one: replies.Threshold, other: replies.Threshold) -> bool:
    """Whole eV, and half of an odd energy is none."""
    gains = {one.gain, other.gain} - {""}
    return abs(one.threshold - other.threshold) <= 1 and abs(one.energy - other.energy) <= 1 and len(gains) < 2


# --- the attributes --------------------------------------------------------------------------------------------------


def _chosen(name: str, dtype: type, doc: str, command: str, absent: Any, **more: Any) -> Parameter:
    """A command with one value; `absent` before it was chosen."""

    def get(backend: Pilatus) -> Any:
        return dtype(backend.knobs.chosen(command, absent))

    def put(backend: Pilatus, value: Any) -> None:
        _refuse_in_series(backend, name)
        if value != get(backend):
            text = value if not isinstance(value, str) else _line(name, value)
            backend.knobs.choose(command, int(text) if isinstance(text, bool) else text, name)

    return Parameter(name, dtype, doc, get, put, **more)


def _line(name: str, text: str) -> str:
    if not ONE_LINE.fullmatch(text):
        raise ConfigError(f"{name}: {text!r} has characters that camserver does not know")
    return text


def _knob(
    name: str, dtype: type, doc: str, get: Callable[[Pilatus], Any], put: Callable[[Pilatus, Any], None], **more: Any
) -> Parameter:
    """Written only where it changes; never in a series."""

    def write(backend: Pilatus, value: Any) -> None:
        _refuse_in_series(backend, name)
        if not _equal(value, get(backend)):
            put(backend, value)

    return Parameter(name, dtype, doc, get, write, **more)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _mx(name: str, doc: str, **more: Any) -> Parameter:
    return _knob(name, float, doc, lambda b: b.knobs.mx(name), lambda b, value: b.knobs.choose_mx(name, value), **more)


def _reading(name: str, dtype: type, doc: str, get: Callable[[Pilatus], Any], **more: Any) -> Parameter:
    return Parameter(name, dtype, doc, get, None, **more)


def _refuse_in_series(backend: Pilatus, name: str) -> None:
    if backend.running:
        raise ConfigError(f"{name}: not while a series is armed; give the command Stop first")


def _command(backend: Pilatus, text: str) -> None:
    backend.knobs.answer = backend.command(_line("Camserver", text.strip())) if text.strip() else ""


EV: dict[str, Any] = {"unit": "eV", "format": "%9.2f"}

PARAMETERS = (
    _knob("Energy", float, "Energy of the photons; the threshold becomes half of it. 0: not set. Takes 3 to 20 s",
          lambda b: b.knobs.threshold.energy, lambda b, value: b.knobs.choose_energy(value), **EV),
    _knob("Threshold", float, "Energy from which a photon counts. 0: not set. Takes up to 96 s on a 6M",
          lambda b: b.knobs.threshold.threshold, lambda b, value: b.knobs.choose_threshold(value), **EV),
    _knob("Gain", str, "For thresholds: lowg, midg, highg, uhighg or autog; empty: camserver chooses",
          lambda b: b.knobs.gain, lambda b, value: b.knobs.choose_gain(value)),
    _reading("GainSetting", str, "Gain that camserver has chosen or taken", lambda b: b.knobs.threshold.gain),
    _chosen("GapFill", int, "Value of the pixels between the modules: 0, -1 or -2", "gapfill", GAP_FILL,
            min_value=-2, max_value=0),
    _knob("RoiMode", str, "Part of the detector that is read: 0 (all), C2, C18, C12, R8, L8, R1, L1, R3, L3",
          lambda b: b.knobs.region, lambda b, value: b.knobs.choose_region(value)),
    _chosen("ExposuresPerFrame", int, "So many exposures are added up in each image", "nexpframe", 1, min_value=1),
    _chosen("TriggerDelay", float, "From an external edge to the exposure, below 64 s", "delay", 0.0, unit="s",
            min_value=0.0),
    _chosen("BadPixelMap", str, "File of the bad pixels, on the detector's computer; 0: none; empty: camserver's",
            "ldbadpixmap", ""),
    _chosen("FlatField", str, "File of the flat field there; 0: none; empty: camserver's, which comes with a threshold",
            "ldflatfield", ""),
    _chosen("RateCorrection", str, "Tables of a PILATUS3, such as ContinuousStandard_v1.1; 0: off; empty: camserver's",
            "ratecorrlutdir", ""),
    _chosen("Tau", float, "Dead time of a PILATUS2 for the rate correction; 0: off", "tau", 0.0, unit="s",
            min_value=0.0),
    _chosen("RetriggerMode", bool, "Retrigger mode of a PILATUS3", "setretriggermode", True),
    _mx("Wavelength", "For the images' header; NaN: not set", unit="Angstrom"),
    _mx("DetectorDistance", "For header and file; NaN: not set", unit="m"),
    _mx("BeamX", "Centre of the beam, for header and file; NaN: not set", unit="pixel"),
    _mx("BeamY", "Centre of the beam, for header and file; NaN: not set", unit="pixel"),
    _mx("StartAngle", "Of the first image, for the header; NaN: not set", unit="deg"),
    _mx("AngleIncrement", "From image to image, for the header; NaN: not set", unit="deg"),
    _mx("FilterTransmission", "For the header; NaN: not set"),
    _knob("MxSettings", str, "All lines for the images' header, one `key value` a line, such as Flux 1e12",
          lambda b: b.knobs.mx_settings, lambda b, value: b.knobs.choose_mx_settings(value)),
    _chosen("HeaderString", str, "Comment in the images' header, 68 characters", "headerstring", ""),
    _reading("DetectorTemperature", float, "Warmest sensor; looked at while no series runs; NaN: none is there",
             lambda b: b.climate(lambda c: c.temperature), unit="degC", format="%5.1f", max_alarm=55.0),
    _reading("Humidity", float, "Relative, at the dampest sensor; NaN: none is there",
             lambda b: b.climate(lambda c: c.humidity), unit="%", format="%5.1f"),
    _reading("CamserverVersion", str, "In camserver's words", lambda b: b.camserver_version),
    _reading("RamDiskFree", float, "Room on the RAM disk", lambda b: b.stream.free_bytes / 1e6, unit="MB"),
    _reading("RamDiskLowest", float, "The least room since the last Arm", lambda b: b.stream.lowest_free_bytes / 1e6,
             unit="MB"),
    _reading("FilesWaiting", int, "Image files that are not sent yet", lambda b: b.stream.waiting),
    _reading("FilesKept", int, "Image files that were sent and not deleted yet", lambda b: b.stream.kept),
    _reading("FilesChecked", int, "Images of this series whose sums (MD5) are right", lambda b: b.stream.checked),
    _reading("StreamState", str, "Of the streamer: idle, arming, armed, running, ending, done, error",
             lambda b: b.stream.phase),
    _reading("ImageHeader", str, "Header of the first image of the series, one line each",
             lambda b: "\n".join(f"{name} {text}" for name, text in b.stream.header.items())),
    Parameter("Camserver", str, "Write any command, such as `expend`; reads the whole answer. Settings are told again "
              "before the next series", lambda b: b.knobs.answer, _command),
)  # fmt: skip
