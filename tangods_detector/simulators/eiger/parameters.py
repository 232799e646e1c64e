"""Values of the parameters of a control unit and what a write does to others. Pure: no clock, thread or socket."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from math import isfinite, prod
from typing import Any

import numpy as np

from tangods_detector.simulators.eiger import models, table, tiff
from tangods_detector.simulators.eiger.models import Model
from tangods_detector.simulators.eiger.table import Key, Table

Array = np.ndarray[Any, Any]

SUMMED = 0.01  # s of frame time from which images are sums of 32 bits
SUBFRAME = 0.0013240272897398063  # s, of such a sum
LINES_4M = 1 / 750  # s, the shortest frame time of a part of 4M
CUTOFF_RATE = 2_943_293  # counts in a second that are corrected
TIFF = "application/tiff"
ONLY_ONE = ("inte", "exte")  # trigger modes in which nimages must be 1
OF_ENERGY = (
    "element", "flatfield", "incident_energy", "photon_energy", "threshold/1/energy", "threshold/1/flatfield",
    "threshold/2/energy", "threshold/2/flatfield", "threshold_energy", "wavelength",
)  # fmt: skip
OF_TIMES = (
    "bit_depth_image", "bit_depth_readout", "count_time", "countrate_correction_count_cutoff", "frame_count_time",
    "frame_time",
)  # fmt: skip
OF_THRESHOLD = ("flatfield", "threshold/1/energy", "threshold/1/flatfield", "threshold/2/flatfield", "threshold_energy")
CHANGED: dict[str, tuple[str, ...]] = {  # what a write answers; all others answer their own name
    **dict.fromkeys(("count_time", "frame_time"), OF_TIMES),
    **dict.fromkeys(("photon_energy", "incident_energy", "wavelength", "element"), OF_ENERGY),
    **dict.fromkeys(("threshold_energy", "threshold/1/energy"), OF_THRESHOLD),
    "threshold/2/energy": ("flatfield", "threshold/1/flatfield", "threshold/2/energy", "threshold/2/flatfield"),
    "threshold/1/mode": ("threshold/1/mode", "threshold/difference/mode"),
    "threshold/2/mode": ("threshold/2/mode", "threshold/difference/mode"),
    "auto_summation": ("auto_summation", "frame_count_time"),
    "roi_mode": ("count_time", "frame_time", "roi_mode"),
    **dict.fromkeys(("pixel_mask", "threshold/1/pixel_mask"), ("pixel_mask", "threshold/1/pixel_mask")),
    **dict.fromkeys(("flatfield", "threshold/1/flatfield"), ("flatfield", "threshold/1/flatfield")),
}
DIFFERENCE = "threshold/difference/mode"
SLOW = ("photon_energy", "incident_energy", "wavelength", "element")  # the flat fields are computed again
TYPES: dict[str, tuple[type, ...]] = {
    "float": (int, float), "int": (int,), "uint": (int,), "bool": (bool,), "string": (str,), "datetime": (str,),
    "float[]": (list,),
}  # fmt: skip


class Refused(Exception):
    """The answer to a request that cannot be done: HTTP status and a plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def now() -> str:
    """As the control unit writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Parameters:
    """Those of one module, by their keys. `new`: API 1.8."""

    def __init__(self, keys: Table, new: bool = True) -> None:
        self.keys = keys
        self.new = new
        self.values: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        self.values = {name: key.default for name, key in self.keys.items()}

    def listed(self) -> list[str]:
        return sorted(name for name, key in self.keys.items() if key.listed)

    def limits(self, name: str) -> tuple[float | None, float | None]:
        return self.keys[name].low, self.keys[name].high

    def read(self, name: str) -> dict[str, Any]:
        """The object that a GET answers."""
        key = self._key(name)
        low, high = self.limits(name)
        told = {
            "access_mode": key.access,
            "allowed_values": list(key.allowed) or None,
            "max": high,
            "min": low,
            "unit": key.unit or None,
            "value": self.shown(name),
            "value_type": key.type,
        }
        return {word: what for word, what in told.items() if what is not None}

    def shown(self, name: str) -> Any:
        value = self.values[name]
        return int(value) if type(value) is bool and not self.new else value

    def write(self, name: str, value: Any) -> list[str]:
        """Names of what changed. Refused: 404 or 400."""
        value = self.checked(name, value)
        if self.values[name] == value and type(self.values[name]) is type(value):
            return []
        self.values[name] = value
        return [name]

    def checked(self, name: str, value: Any) -> Any:
        """The value as it is kept."""
        key = self._key(name)
        if "w" not in key.access:
            raise Refused(400, f"Parameter {name} is read-only")
        if not self.new and key.type == "bool" and type(value) is int and value in (0, 1):
            value = bool(value)
        known = TYPES[key.type]
        if type(value) not in known:
            raise Refused(400, f"Value of {name} is of the wrong type: {key.type} expected")
        if key.type == "float[]" and not all(type(v) in (int, float) for v in value):
            raise Refused(400, f"Value of {name} is not a list of numbers")
        if key.type == "float":
            value = float(value)
            if not isfinite(value):
                raise Refused(400, f"Value of {name} is not a finite number")
        low, high = self.limits(name)
        if (low is not None and value < low) or (high is not None and value > high):
            raise Refused(400, f"Value {value} of {name} is out of range: {low} to {high}")
        if key.allowed and value not in key.allowed:
            raise Refused(400, f"Value {value!r} of {name} is not allowed, allowed are {', '.join(key.allowed)}")
        return value

    def _key(self, name: str) -> Key:
        try:
            return self.keys[name]
        except KeyError:
            raise Refused(404, f"Parameter {name} does not exist") from None


class Status(Parameters):
    """Read only; values may be functions. The old API tells more of each."""

    def __init__(self, keys: Table, new: bool, live: Mapping[str, Callable[[], Any]]) -> None:
        self.live = live
        super().__init__(keys, new)

    def shown(self, name: str) -> Any:
        return self.live[name]() if name in self.live else super().shown(name)

    def read(self, name: str) -> dict[str, Any]:
        told = super().read(name)
        if not self.new:
            told |= {"critical_limits": [None, None], "critical_values": [], "state": "normal", "time": now()}
        return told


class Stream(Parameters):
    """The appendices may be any JSON in CBOR, a string in the old stream."""

    def checked(self, name: str, value: Any) -> Any:
        if name.endswith("_appendix") and self.values.get("format") == "cbor":
            return value
        return super().checked(name, value)


@dataclass(frozen=True)
class Setup:
    """What one series is taken with, frozen at arm: `values` of all parameters and what follows from them.

    `mask` and `flatfields` have the shape of the images, [rows, columns]."""

    values: Mapping[str, Any]
    shape: tuple[int, int]
    dtype: str
    channels: tuple[str, ...]
    region: tuple[slice, slice]
    merge: int  # pixels in each direction that become one
    masks: tuple[Array, ...]  # of each threshold that is on
    flatfields: tuple[Array, ...]
    version: int  # of the mask: images are made again when it is another
    new: bool


class Detector(Parameters):
    """Configuration of the detector module: derived values, side effects, what becomes final at arm."""

    def __init__(self, model: Model, new: bool = True, bit_depth: int = 0) -> None:
        self.model = model
        self.bit_depth = bit_depth  # forced, 0: as a detector chooses
        self._final_mask = models.factory_mask(model)  # what an arm made permanent
        self._version = 0
        self._flatfield = models.factory_flatfield(model)
        super().__init__(table.detector_config(model, new), new)

    def reset(self) -> None:
        """As after `initialize`. What an arm has made of a mask stays."""
        super().reset()
        self._masks = [self._final_mask, self._final_mask]
        self._mask_is_new = False
        self._flatfields = [self._flatfield, self._flatfield]
        self._derive()
        self._exclude()

    def limits(self, name: str) -> tuple[float | None, float | None]:
        low, high = super().limits(name)
        return (self._frame_time_min() if name == "frame_time" else low), high

    def shown(self, name: str) -> Any:
        return darray(self.array(name)) if self.is_array(name) else super().shown(name)

    def is_array(self, name: str) -> bool:
        return name in self.keys and self.keys[name].type.endswith("[][]")

    def array(self, name: str) -> Array:
        arrays = self._masks if name.endswith("pixel_mask") else self._flatfields
        return arrays[1 if "/2/" in name else 0]

    def as_tiff(self, name: str) -> bytes:
        self._key(name)
        if not self.is_array(name):
            raise Refused(400, f"Parameter {name} is not an array")
        return tiff.encode(self.array(name))

    def write(self, name: str, value: Any) -> list[str]:
        """Answers what the real unit answers, its odd name of the difference mode included; nothing when the value is
        what it was."""
        if self.is_array(name):
            self._write_array(name, value)
        else:
            value = self.checked(name, value)
            if self.values[name] == value:
                return []
            self._refuse_if_it_does_not_fit(name, value)
            self.values[name] = value
            self._follow(name, value)
            self._derive()
        if name == DIFFERENCE:
            return ["difference_mode"]
        return [changed for changed in CHANGED.get(name, (name,)) if changed in self.keys]

    def _refuse_if_it_does_not_fit(self, name: str, value: Any) -> None:
        values = self.values
        if name == "trigger_mode" and value in ONLY_ONE and values["nimages"] != 1:
            raise Refused(400, f"trigger_mode {value} needs nimages 1, it is {values['nimages']}")
        if name == "nimages" and values["trigger_mode"] in ONLY_ONE:
            raise Refused(400, f"nimages must be 1 in trigger_mode {values['trigger_mode']}")
        if name == DIFFERENCE and value == "enabled" and len(self._thresholds()) < 2:
            raise Refused(400, "the difference needs both thresholds enabled")
        low, high = self.model.energy
        if name == "element" and value and not low <= table.ELEMENTS[value] <= high:
            raise Refused(400, f"element {value}: {table.ELEMENTS[value]} eV is out of range: {low} to {high}")

    def _follow(self, name: str, value: Any) -> None:
        """What else a write changes."""
        values = self.values
        if name == "count_time":
            values["frame_time"] = max(values["frame_time"], value + self.model.readout_time)
        elif name in ("photon_energy", "incident_energy"):
            self._set_energy(value)
        elif name == "wavelength":
            self._set_energy(12398.4198 / value)
        elif name == "element" and value:
            self._set_energy(table.ELEMENTS[value], value)
        elif name in ("threshold_energy", "threshold/1/energy"):
            self._set("threshold_energy", value)
            self._set("threshold/1/energy", value)
        elif name in ("threshold/1/mode", "threshold/2/mode") and value == "disabled":
            self._set(DIFFERENCE, "disabled")
        elif name == "roi_mode":
            values["frame_time"] = max(values["frame_time"], self._frame_time_min())

    def _set(self, name: str, value: Any) -> None:
        if name in self.keys:
            self.values[name] = value

    def _set_energy(self, energy: float, element: str = "") -> None:
        self._set("photon_energy", energy)
        self._set("incident_energy", energy)
        self.values["wavelength"] = 12398.4198 / energy
        self.values["element"] = element
        low, high = self.keys["threshold_energy"].low, self.keys["threshold_energy"].high
        half = float(np.clip(energy / 2, low, high))
        self._set("threshold_energy", half)
        self._set("threshold/1/energy", half)
        self._set("threshold/2/energy", float(np.clip(energy, low, high)))

    def _write_array(self, name: str, value: Any) -> None:
        """`value`: the JSON form, or a TIFF file as bytes."""
        is_mask = name.endswith("pixel_mask")
        try:
            array = tiff.decode(value) if isinstance(value, bytes) else from_darray(value)
        except ValueError as exc:
            raise Refused(400, f"{name}: {exc}") from exc
        wanted = np.dtype("<u4" if is_mask else "<f4")
        if array.shape != (self.model.height, self.model.width):
            raise Refused(400, f"{name}: shape {list(array.shape)} is not {[self.model.height, self.model.width]}")
        if array.dtype != wanted:
            raise Refused(400, f"{name}: type {array.dtype} is not {wanted}")
        (self._masks if is_mask else self._flatfields)[1 if "/2/" in name else 0] = array
        self._mask_is_new |= is_mask
        self._exclude()

    # --- derived -----------------------------------------------------------------------------------------------------

    def _derive(self) -> None:
        values, readout = self.values, self.model.readout_time
        summed = bool(values["auto_summation"]) and values["frame_time"] >= SUMMED
        small = values["roi_mode"] == "lines" and values["roi_bit_depth"] == 8
        bits = self.bit_depth or (32 if summed else 8 if small else 16)
        values["bit_depth_image"] = bits
        values["bit_depth_readout"] = 16 if self.model.rich else 8 if bits == 8 else 12
        values["frame_count_time"] = SUBFRAME if summed else values["count_time"]
        self._set("frame_period", values["frame_count_time"] + readout)
        rate = max(4000, int(CUTOFF_RATE * values["count_time"]))
        values["countrate_correction_count_cutoff"] = min(2**bits - 2, rate)

    def _exclude(self) -> None:
        """Counts the pixels of the masks."""
        for name, mask in (("", 0), ("threshold/1/", 0), ("threshold/2/", 1)):
            self._set(f"{name}number_of_excluded_pixels", int(np.count_nonzero(self._masks[mask])))

    def _frame_time_min(self) -> float:
        mode = self.values["roi_mode"]
        if mode.startswith("4M"):
            return LINES_4M
        if mode == "lines":
            return self.model.frame_time_min * self.values["roi_y_size"] / self.model.height
        return self.model.frame_time_min

    def _thresholds(self) -> list[int]:
        if not self.model.rich:
            return [1]
        return [n for n in (1, 2) if self.values[f"threshold/{n}/mode"] == "enabled"]

    # --- arm ---------------------------------------------------------------------------------------------------------

    def arm(self) -> Setup:
        """Clamps what must fit together, makes a written mask permanent, and freezes all. Refused: it cannot be."""
        values = self.values
        mode = values["trigger_mode"]
        if mode == "extg" and (values["countrate_correction_applied"] or values["counting_mode"] != "normal"):
            raise Refused(400, "extg needs countrate_correction_applied false and counting_mode normal")
        if not self._thresholds():
            raise Refused(400, "no threshold is enabled")
        shortest = values["count_time"] + self.model.readout_time
        values["frame_time"] = max(values["frame_time"], shortest, self._frame_time_min())
        values["data_collection_date"] = now()
        if self._mask_is_new:
            self._final_mask = self._masks[0]
            self._version += 1
            self._mask_is_new = False
        self._derive()
        return self._setup()

    def _setup(self) -> Setup:
        values = self.values
        lines = values.get("roi_y_size", 0)
        where = models.region(self.model, values["roi_mode"], lines)
        merge = 2 if values["roi_mode"] == "merge2x2" else 1
        shape = self._masks[0][where][::merge, ::merge].shape
        thresholds = self._thresholds()
        channels = [f"threshold_{n}" for n in thresholds]
        if values.get(DIFFERENCE) == "enabled":
            channels.append("difference")
        return Setup(
            values={name: value for name, value in values.items() if not self.is_array(name)},
            shape=(shape[0], shape[1]),
            dtype=f"uint{values['bit_depth_image']}",
            channels=tuple(channels),
            region=where,
            merge=merge,
            masks=tuple(_merged(self._masks[n - 1][where], merge, np.maximum) for n in thresholds),
            flatfields=tuple(_merged(self._flatfields[n - 1][where], merge, np.maximum) for n in thresholds),
            version=self._version,
            new=self.new,
        )


def _merged(array: Array, merge: int, how: np.ufunc) -> Array:
    if merge == 1:
        return np.ascontiguousarray(array)
    rows, columns = array.shape[0] // merge * merge, array.shape[1] // merge * merge
    blocks = array[:rows, :columns].reshape(rows // merge, merge, columns // merge, merge)
    return np.ascontiguousarray(how.reduce(blocks, axis=(1, 3)))


# --- arrays in JSON --------------------------------------------------------------------------------------------------


def darray(array: Array) -> dict[str, Any]:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "__darray__": [1, 0, 0],
        "data": base64.b64encode(np.ascontiguousarray(little).tobytes()).decode(),
        "filters": ["base64"],
        "shape": list(array.shape),
        "type": little.dtype.str.replace("|", "<"),
    }


def from_darray(value: Any) -> Array:
    """Refused: it is none."""
    try:
        if value["filters"] != ["base64"]:
            raise Refused(400, f"filters {value['filters']} are not ['base64']")
        shape = tuple(int(n) for n in value["shape"])
        dtype = np.dtype(value["type"])
        data = base64.b64decode(value["data"], validate=True)
        if "__darray__" not in value or dtype.kind not in "uif" or prod(shape) * dtype.itemsize != len(data):
            raise Refused(400, f"the array of {list(shape)} {dtype} does not have {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("<"))
    except (KeyError, TypeError, ValueError, binascii.Error) as exc:
        raise Refused(400, f"not an array: {exc!r}") from exc
