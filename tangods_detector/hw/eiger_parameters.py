"""The EIGER's own attributes: SIMPLON's keys by name, with what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tangods_detector.hw.base import Parameter

if TYPE_CHECKING:
    from tangods_detector.hw.eiger import Eiger

ABSENT = {float: math.nan, int: 0, str: "", bool: False}  # what a key reads that this detector has not
CONFIG, STATUS = "detector/config/", "detector/status/"


def _of_key(name: str, dtype: type, doc: str, *keys: str, writable: bool = True, **more: Any) -> Parameter:
    """The first of these keys that the unit has."""

    def get(eiger: Eiger) -> Any:
        return dtype(eiger.value(eiger.first(*keys), ABSENT[dtype]))

    def put(eiger: Eiger, value: Any) -> None:
        if eiger.running or not _same(value, get(eiger)):  # to write what it is does no harm where it is not
            eiger.choose(eiger.first(*keys), value, name)

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
              lambda b: b.trigger_exposure, lambda b, value: b.expose_by_trigger(value), unit="s", min_value=0.0,
              writable_while_running=True),
    _reading("DetectorTemperature", float, "Of the detector head; looked at while no series runs",
             lambda b: b.temperature(), unit="degC", format="%5.1f", max_alarm=50.0),
    _of_key("Humidity", float, "In the detector head", STATUS + "humidity", STATUS + "board_000/th0_humidity",
            writable=False, unit="%", format="%5.1f"),
    _of_key("HighVoltage", str, "State of the high voltage of a CdTe sensor; empty: this detector has none",
            STATUS + "high_voltage/state", writable=False),
    _reading("Links", str, "State of the data links to the detector head, such as up up", lambda b: b.links()),
    _of_key("UnitState", str, "State of the control unit, in SIMPLON's word", STATUS + "state", writable=False),
    _of_key("StreamState", str, "State of the unit's stream, in SIMPLON's word", "stream/status/state", writable=False),
    _of_key("DroppedMessages", int, "Messages of the stream that the unit has dropped for want of room",
            "stream/status/dropped", writable=False),
    _action("SavePixelMask", "Write a path: the mask is saved there (.npy, .tif), on the Detector's computer",
            lambda b: b.paths["save pixel_mask"], lambda b, path: b.save_array("pixel_mask", path)),
    _action("LoadPixelMask", "Write a path: that mask is given to the detector; permanent from the next Arm on",
            lambda b: b.paths["load pixel_mask"], lambda b, path: b.load_array("pixel_mask", path)),
    _action("SaveFlatfield", "Write a path: the flat field is saved there (.npy, .tif), on the Detector's computer",
            lambda b: b.paths["save flatfield"], lambda b, path: b.save_array("flatfield", path)),
    _action("LoadFlatfield", "Write a path: that flat field is given to the detector",
            lambda b: b.paths["load flatfield"], lambda b, path: b.load_array("flatfield", path)),
    _action("Simplon", "Write `detector/config/chi_start` to read a key, `... = 1.5` to write it (JSON), "
            "`detector/command/hv_reset = 45` for a command; reads the answer as JSON",
            lambda b: b.answer, lambda b, text: b.request(text), writable_while_running=True),
)  # fmt: skip
