"""Stream V1 ("legacy"): the messages of one series, as the parts of a multipart message."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import orjson
import zmq

from tangods_detector.simulators.eiger.course import Exposure
from tangods_detector.simulators.eiger.images import Picture
from tangods_detector.simulators.eiger.parameters import Setup

Parts = list[Any]

NOT_TOLD = (  # parameters that the configuration object of a header does not have
    "counting_mode", "extg_mode", "fast_arm", "incident_energy", "incident_particle_type",
    "instrument_name", "mask_to_zero", "nexpi", "ntriggers_skipped", "roi_bit_depth", "roi_y_size", "sample_name",
    "source_name", "total_flux", "trigger_start_delay",
)  # fmt: skip
TABLE = (4000, 2)
TICK = 20  # ns of the detector's clock
LIVE = 0.9943448  # part of the exposure that is counted when images are sums


class Series1:
    """`pictures` take turns. `appendix` and `image_appendix`: texts; empty: none."""

    joined = False

    def __init__(
        self, series: int, setup: Setup, pictures: Sequence[Picture], detail: str, appendix: str, image_appendix: str
    ) -> None:
        self._series = series
        self._setup = setup
        self._detail = detail
        self._appendix = appendix.encode()
        self._image_appendix = [image_appendix.encode()] if image_appendix else []
        self._compression = str(setup.values["compression"])
        self._end = _json({"htype": "dseries_end-1.0", "series": series})
        self._live = LIVE if setup.dtype == "uint32" else 1.0
        self._ready = [self._prepared(picture.blobs[0]) for picture in pictures]

    def of_series(self, series: int) -> Series1:
        """The same of another series."""
        twin = copy(self)
        twin._series = series
        return twin

    def start(self) -> Parts:
        parts: Parts = [_json({"header_detail": self._detail, "htype": "dheader-1.0", "series": self._series})]
        if self._detail != "none":
            parts.append(_json(configuration(self._setup)))
        if self._detail == "all":
            for flatfield, mask in zip(self._setup.flatfields, self._setup.masks, strict=True):
                parts += _array("dflatfield-1.0", flatfield) + _array("dpixelmask-1.0", mask)
            parts += _array("dcountrate_table-1.0", countrate_table())
        return [*parts, self._appendix] if self._appendix else parts

    def image(self, exposure: Exposure, clock: float, fault: str = "") -> tuple[Parts, tuple[bytes, ...]]:
        """The parts and the blobs in them. `clock`: s that the detector's clock is ahead of the exposures' one."""
        about, digest, data, blob = self._ready[exposure.number % len(self._ready)]
        if fault == "corrupt":
            blob = damaged(blob)
            data = _shared(blob)
        elif fault == "wrong_size":
            about = _json({**orjson.loads(about), "size": len(blob) + 1})
        first = b'{"frame":%d,"hash":"%s","htype":"dimage-1.0","series":%d}' % (exposure.number, digest, self._series)
        start = int((exposure.start + clock) * 1e9) // TICK * TICK
        stop = start + int((exposure.stop - exposure.start) * 1e9) // TICK * TICK
        real = int(exposure.real * self._live * 1e9) // TICK * TICK
        times = b'{"htype":"dconfig-1.0","real_time":%d,"start_time":%d,"stop_time":%d}' % (real, start, stop)
        if fault == "missing_part":
            return [first, about, times, *self._image_appendix], (blob,)
        return [first, about, data, times, *self._image_appendix], (blob,)

    def end(self) -> Parts:
        return [self._end]

    def _prepared(self, blob: bytes) -> tuple[bytes, bytes, Any, bytes]:
        dtype = np.dtype(self._setup.dtype)
        encoding = {"none": "<", "lz4": "lz4<", "bslz4": f"bs{8 * dtype.itemsize}-lz4<"}[self._compression]
        rows, columns = self._setup.shape
        about = _json(
            {
                "encoding": encoding,
                "htype": "dimage_d-1.0",
                "shape": [columns, rows],
                "size": len(blob),
                "type": self._setup.dtype,
            }
        )
        digest = hashlib.md5(about, usedforsecurity=False).hexdigest().encode()
        return about, digest, _shared(blob), blob


def configuration(setup: Setup) -> dict[str, Any]:
    """The configuration object: what the parameters say, booleans as the version has them."""
    told = {
        name: int(value) if type(value) is bool and not setup.new else value
        for name, value in setup.values.items()
        if "/" not in name and name not in NOT_TOLD
    }
    told.setdefault("frame_period", told["frame_count_time"] + told["detector_readout_time"])
    return told


def countrate_table() -> np.ndarray[Any, Any]:
    """Pairs of what is counted and what came."""
    counted = np.arange(TABLE[0]) * 1125.0
    return np.stack([counted, 1_320_576 * (1 - np.exp(-counted / 1_320_576))], axis=1).astype("<f4")


def damaged(blob: bytes) -> bytes:
    """Bytes where a compressed blob has the length of its first block, turned round."""
    return blob[:12] + bytes(255 - byte for byte in blob[12:20]) + blob[20:]


def _array(kind: str, values: np.ndarray[Any, Any]) -> Parts:
    about = {"htype": kind, "shape": [*reversed(values.shape)], "type": values.dtype.name}
    return [_json(about), _shared(np.ascontiguousarray(values).tobytes())]


def _shared(data: bytes) -> zmq.Frame:
    """Copied once into ZeroMQ's own memory, to which every message refers; pyzmq needs no thread to free it."""
    return zmq.Frame(data, copy=True)


def _json(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
