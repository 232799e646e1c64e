"""Stream V2: the messages of one series, one part of CBOR each."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from tangods_detector.simulators.eiger.cborwrite import DATE, SELF_DESCRIBED, Encoded, Tag, array, dumps, head, typed
from tangods_detector.simulators.eiger.course import Exposure
from tangods_detector.simulators.eiger.images import Picture, encode
from tangods_detector.simulators.eiger.parameters import Setup
from tangods_detector.simulators.eiger.stream1 import LIVE, damaged

Parts = list[Any]

CLOCK = 50_000_000  # Hz
LOOKUP = 65536
_MAP = 5


class Series2:
    """`pictures` take turns. Appendices are any JSON value; an empty text is none."""

    joined = True  # the parts are pieces of one

    def __init__(
        self,
        series: int,
        unique: str,
        setup: Setup,
        pictures: Sequence[Picture],
        detail: str,
        appendix: Any,
        image_appendix: Any,
        arm_date: str,
    ) -> None:
        self._series = series
        self._unique = unique
        self._setup = setup
        self._detail = detail
        self._appendix = appendix
        self._user_data = b"" if image_appendix == "" else dumps("user_data") + dumps(image_appendix)
        self._arm_date = arm_date
        self._compression = str(setup.values["compression"])
        self._live = LIVE if setup.dtype == "uint32" else 1.0
        self._pictures = pictures
        self._images = [self._before(self._data(picture.blobs)) for picture in pictures]
        self.date = arm_date  # of the first exposure

    def of_series(self, series: int) -> Series2:
        """The same of another series."""
        twin = copy(self)
        twin._series = series
        twin._images = [twin._before(twin._data(picture.blobs)) for picture in twin._pictures]
        return twin

    def start(self) -> Parts:
        values = self._setup.values
        thresholds = [name for name in self._setup.channels if name != "difference"]
        rows, columns = self._setup.shape
        told: dict[str, Any] = {
            **self._first("start"),
            "arm_date": Tag(DATE, self._arm_date),
            "beam_center_x": values["beam_center_x"],
            "beam_center_y": values["beam_center_y"],
            "channels": list(self._setup.channels),
            "count_time": values["count_time"],
            "countrate_correction_enabled": values["countrate_correction_applied"],
            "detector_description": values["description"],
            "detector_serial_number": values["detector_number"],
            "detector_translation": values["detector_translation"],
            "flatfield_enabled": values["flatfield_correction_applied"],
            "frame_time": values["frame_time"],
            "image_size_x": columns,
            "image_size_y": rows,
            "incident_energy": values["photon_energy"],
            "incident_wavelength": values["wavelength"],
            "number_of_images": values["nimages"] * values["ntrigger"],
            "pixel_mask_enabled": values["pixel_mask_applied"],
            "pixel_size_x": values["x_pixel_size"],
            "pixel_size_y": values["y_pixel_size"],
            "saturation_value": values["countrate_correction_count_cutoff"],
            "sensor_material": values["sensor_material"],
            "sensor_thickness": values["sensor_thickness"],
            "threshold_energy": {
                name: values.get(name.replace("_", "/") + "/energy", values["threshold_energy"]) for name in thresholds
            },
            "virtual_pixel_interpolation_enabled": values["virtual_pixel_correction_applied"],
        }
        if "counting_mode" in values:  # an EIGER1 does not tell these
            told["goniometer"] = {
                axis: {"increment": values[f"{axis}_increment"], "start": values[f"{axis}_start"]}
                for axis in ("chi", "kappa", "omega", "phi", "two_theta")
            }
            told["image_dtype"] = self._setup.dtype
        if self._detail == "all":
            lookup = np.minimum(np.arange(LOOKUP), values["countrate_correction_count_cutoff"]).astype("<u4")
            told["countrate_correction_lookup_table"] = typed("uint32", encode(lookup, "bslz4"), "bslz4")
            told["flatfield"] = self._of_thresholds(thresholds, self._setup.flatfields)
            told["pixel_mask"] = self._of_thresholds(thresholds, self._setup.masks)
        first, rest = dict(list(told.items())[:3]), dict(sorted(list(told.items())[3:]))
        if self._appendix != "":
            rest["user_data"] = self._appendix
        return [SELF_DESCRIBED + dumps({**first, **rest})]

    def image(self, exposure: Exposure, clock: float, fault: str = "") -> tuple[Parts, tuple[bytes, ...]]:
        """Pieces of the message and the blobs in it. `clock`: s to add for times since the first exposure."""
        k = exposure.number % len(self._images)
        blobs, before = self._pictures[k].blobs, self._images[k]
        if fault in ("corrupt", "wrong_size"):
            change = damaged if fault == "corrupt" else self._wrong_size
            blobs = tuple(map(change, blobs))
            before = self._before(self._data(blobs))
        elif fault == "missing_part":
            before = self._before(None)
        start = round((exposure.start + clock) * CLOCK)
        stop = start + round((exposure.stop - exposure.start) * CLOCK)
        after = b"".join(
            (
                b"\x68image_id" + dumps(exposure.number),
                b"\x69real_time" + _ratio(int(exposure.real * self._live * CLOCK)),
                b"\x6bseries_date" + dumps(Tag(DATE, self.date)),
                b"\x6astart_time" + _ratio(max(start, 0)),
                b"\x69stop_time" + _ratio(max(stop, 0)),
                self._user_data,
            )
        )
        return [before, after], blobs

    def end(self) -> Parts:
        return [SELF_DESCRIBED + dumps(self._first("end"))]

    def _first(self, kind: str) -> dict[str, Any]:
        return {"type": kind, "series_id": self._series, "series_unique_id": self._unique}

    def _before(self, data: bytes | None) -> bytes:
        """What all images with these pixels begin with."""
        keys = 8 + (data is not None) + bool(self._user_data)
        pairs = b"".join(dumps(key) + dumps(value) for key, value in self._first("image").items())
        return SELF_DESCRIBED + head(_MAP, keys) + pairs + (b"" if data is None else dumps("data") + data)

    def _data(self, blobs: Sequence[bytes]) -> bytes:
        """The map of the channels."""
        setup = self._setup
        return dumps(
            {
                name: array(setup.shape, setup.dtype, blob, self._compression)
                for name, blob in zip(setup.channels, blobs, strict=True)
            }
        )

    def _wrong_size(self, blob: bytes) -> bytes:
        """A chunk that says one byte more, or plain pixels of which one byte is missing."""
        if self._compression == "none":
            return blob[:-1]
        (size,) = struct.unpack_from(">Q", blob)
        return struct.pack(">Q", size + 1) + blob[8:]

    @staticmethod
    def _of_thresholds(names: Sequence[str], arrays: Sequence[np.ndarray[Any, Any]]) -> dict[str, Encoded]:
        return {
            name: array(values.shape, values.dtype.name, encode(values, "bslz4"), "bslz4")
            for name, values in zip(names, arrays, strict=True)
        }


def _ratio(ticks: int) -> bytes:
    return b"\x82" + dumps(ticks) + b"\x1a\x02\xfa\xf0\x80"  # CLOCK
