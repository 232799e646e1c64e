"""SLS detector package (Eiger, Jungfrau, Mythen and others of PSI): message parts -> SeriesStart, Frame, SeriesEnd.

Each port of the detector is a stream of its own: a JSON header and the pixels of that port, for each frame; a header
with `data` 0 ends an acquisition. Nothing announces one: its first frame does, on each port. Shapes on the wire are
[columns, rows], `detshape` [ports beside each other, ports above each other].

A frame is numbered by `frameNumber`, which the detector gave it and which is the same on all ports. `frameIndex` is
not: each port counts it from the first frame that it caught itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import nan
from posixpath import dirname, normpath
from typing import Any, NamedTuple

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import (
    Buffer,
    Decode,
    Frame,
    Images,
    Message,
    Parts,
    SeriesEnd,
    SeriesStart,
    Times,
)
from tangods_receiver.protocol.checks import MAX_FRAMES, MAX_IMAGE, MAX_NUMBER, json_object, loads, show

DETECTORS = ("Generic", "Eiger", "Gotthard", "Jungfrau", "ChipTestBoard", "Moench", "Mythen3", "Gotthard2", "XilinxCTB")
EIGER, JUNGFRAU = 1, 3
TYPES = {  # bitmode -> type, codec
    4: ("uint8", "none"),  # two pixels in a byte, which are unpacked
    8: ("uint8", "none"),
    12: ("uint16", "mono12p"),
    16: ("uint16", "none"),
    32: ("uint32", "none"),
}
TICK = 1e-7  # s of the detector's clock
MAX_PORTS = 1024
CHIP, CHIP_GAP = 256, 2  # pixels of Eiger and Jungfrau, in both directions
MODULE_CHIPS, MODULE_GAP = (2, 4), (36, 8)  # rows, columns
_HIGH = bytes(n >> 4 for n in range(256))
_LOW = bytes(n & 15 for n in range(256))


class Head(NamedTuple):
    """What matters of a header."""

    number: int  # of the frame, as the detector counts
    first: int  # that this port caught of the acquisition
    shape: tuple[int, int]
    bits: int
    detector: int
    module: int
    flipped: bool
    complete: bool
    timestamp: float | None
    exposure: float | None
    key: tuple[Any, ...]  # differs from acquisition to acquisition, mostly


@dataclass
class Acquisition:
    """One acquisition, as its ports see it."""

    start: SeriesStart
    key: tuple[Any, ...]
    first: int  # number of its first frame
    highest: int
    begun: set[int] = field(default_factory=set)  # by these ports
    ended: set[int] = field(default_factory=set)

    @property
    def series(self) -> int:
        assert self.start.series is not None
        return self.start.series

    def may_have(self, port: int, head: Head) -> bool:
        """May this be the first frame that comes of it from this port?"""
        if port in self.begun or self.key != head.key:
            return False
        return head.first <= self.highest or self.ended < self.begun or self._has_a_file

    @property
    def _has_a_file(self) -> bool:
        """Another acquisition with the same key would be refused: the file exists."""
        return bool(self.start.filename) and self.start.save and not self.start.metadata.get("overwrite")


class Acquisitions:
    """What the ports of one detector are at: all that are at the same acquisition give its series the same id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Acquisition | None = None

    def begin(self, port: int, ports: int, head: Head, values: Mapping[str, Any]) -> Acquisition:
        """The first frame of an acquisition came from this port. StreamError: what its header says of the series is
        wrong."""
        with self._lock:
            now = self._now
            if now is None or not now.may_have(port, head):
                last = None if now is None else now.series
                now = self._now = Acquisition(_start(last, ports, head, values), head.key, head.first, head.number)
            now.begun.add(port)
            return now


class Port:
    """Decodes the messages of one port."""

    def __init__(self, port: int, ports: int, acquisitions: Acquisitions) -> None:
        self._port = port
        self._ports = ports
        self._acquisitions = acquisitions
        self._now: Acquisition | None = None
        self._head: Head | None = None  # of the last frame

    def __call__(self, parts: Parts) -> Message | list[Message]:
        """One received message. StreamError says what was found; nothing else is ever raised."""
        if not parts:
            raise StreamError("empty message: no part at all")
        values = json_object(parts[0], "header")
        if _is_end(values):
            return self._end()
        head = _head(values, self._port, self._ports)
        dtype, codec = TYPES[head.bits]
        data = _pixels(head, parts)
        now, begins = self._now, self._begins(head)
        if begins or now is None:
            now = self._now = self._acquisitions.begin(self._port, self._ports, head, values)
        self._head = head
        now.highest = max(now.highest, head.number)
        frame = Frame(
            head.number - now.first,
            head.shape,
            dtype,
            codec,
            data,
            head.module,
            series=now.series,
            timestamp=head.timestamp,
            incomplete=not head.complete,
            times=None if head.exposure is None else Times(nan, head.exposure),
        )
        return [now.start, frame] if begins else frame

    def _begins(self, head: Head) -> bool:
        """Is it the first of an acquisition? The end of the one before may have been dropped."""
        last = self._head
        return last is None or head.key != last.key or head.first != last.first or head.number < last.number

    def _end(self) -> Message | list[Message]:
        self._head = None
        if self._now is None:
            return []  # of an acquisition that was over before
        self._now.ended.add(self._port)
        return SeriesEnd(series=self._now.series)


def decoders(images: Images | None = None) -> Callable[[int, int], Decode]:
    """Of the ports of one detector."""
    acquisitions = Acquisitions()
    return lambda port, ports: Port(port, ports, acquisitions)


# --- a header --------------------------------------------------------------------------------------------------------


def _is_end(values: Mapping[str, Any]) -> bool:
    found = values.get("data", values.get("size"))
    if type(found) not in (int, bool):
        raise StreamError(f"data is {show(found)}, not 0 or 1")
    return not found


def _head(values: Mapping[str, Any], port: int, ports: int) -> Head:
    number, index = _whole(values, "frameNumber"), _whole(values, "frameIndex")
    if index > number:
        raise StreamError(f"frame {number}: frameIndex is {index}, more than its frameNumber")
    columns, rows = _pair(values, "shape", MAX_IMAGE)
    bits = values.get("bitmode")
    if type(bits) is not int or bits not in TYPES:
        raise StreamError(f"frame {number}: bitmode is {show(bits)}, known are {', '.join(map(str, TYPES))}")
    if rows * columns * bits > 8 * MAX_IMAGE:
        raise StreamError(
            f"frame {number}: an image of {rows} x {columns} at {bits} bits is more than {MAX_IMAGE} bytes"
        )
    detector = _whole(values, "detType", 0)
    exposed = 0 if detector == EIGER else _whole(values, "expLength", 0)  # Eiger: number of a sub-frame
    return Head(
        number,
        number - index,
        (rows, columns),
        bits,
        detector,
        _module(values, number, port, ports),
        detector == EIGER and _whole(values, "flipRows", 0) > 0,
        _whole(values, "completeImage", 1) > 0,
        _whole(values, "timestamp") * TICK if "timestamp" in values else None,
        exposed * TICK or None,
        _key(values),
    )


def _module(values: Mapping[str, Any], number: int, port: int, ports: int) -> int:
    """By its place in the image where there is an endpoint for each port of the detector, else that of the endpoint."""
    across, down = _pair(values, "detshape", MAX_PORTS)
    if across * down > MAX_PORTS or ports > across * down:
        raise StreamError(
            f"frame {number}: detshape is {across} x {down} ports, for which {ports} endpoints are configured"
        )
    row, column = _whole(values, "row"), _whole(values, "column")
    if row >= down or column >= across:
        raise StreamError(f"frame {number}: row {row}, column {column} of {down} x {across} ports")
    return row * across + column if ports == across * down else port


def _key(values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of what the user gave to this acquisition; the rest of `addJsonHeader` may change at any time."""
    own = values.get("addJsonHeader")
    said = (own.get("series"), own.get("filename")) if type(own) is dict else ()
    return tuple(map(repr, (values.get("fileIndex"), values.get("fname"), *said)))


def _pixels(head: Head, parts: Parts) -> Buffer:
    """The pixels as they lie in the image, checked for their size."""
    if len(parts) != 2:
        raise StreamError(f"frame {head.number}: {len(parts)} parts, not 2: a header and the pixels")
    (rows, columns), data = head.shape, parts[1]
    wanted, left = divmod(rows * columns * head.bits, 8)
    if left or len(data) != wanted:
        raise StreamError(
            f"frame {head.number}: {len(data)} bytes of pixels, {wanted} expected for {rows} x {columns} pixels of "
            f"{head.bits} bits"
        )
    if head.bits == 4:
        data = _unpacked(bytes(data))
    if head.flipped:
        stride, left = divmod(len(data), rows)
        if left:
            raise StreamError(f"frame {head.number}: rows of {columns} pixels at {head.bits} bits cannot be flipped")
        view = memoryview(data)
        data = b"".join([view[k : k + stride] for k in range(len(view) - stride, -1, -stride)])
    return data


def _unpacked(data: bytes) -> bytearray:
    """The upper four bits are the first pixel."""
    pixels = bytearray(2 * len(data))
    pixels[0::2], pixels[1::2] = data.translate(_HIGH), data.translate(_LOW)
    return pixels


# --- the start of a series -------------------------------------------------------------------------------------------


def _start(last: int | None, ports: int, head: Head, values: Mapping[str, Any]) -> SeriesStart:
    """What the first frame tells of the series; `last` the id of the one before."""
    texts = values.get("addJsonHeader", {})
    if type(texts) is not dict:
        raise StreamError(f"frame {head.number}: addJsonHeader is {show(texts)}, not an object")
    said = {key: _value(text) for key, text in texts.items()}
    series, nframes, filename = said.pop("series", None), said.pop("nframes", None), said.pop("filename", None)
    for key, value, most in (("series", series, MAX_NUMBER), ("nframes", nframes, MAX_FRAMES)):
        if value is not None and (type(value) is not int or not 0 <= value <= most):
            raise StreamError(f"addJsonHeader: {key} is {show(value)}, not a whole number up to {most}")
    dtype, codec = TYPES[head.bits]
    across, down = _pair(values, "detshape", MAX_PORTS)
    detector = {"description": _name(head.detector), "bit_depth_readout": head.bits}
    if ports == across * down:
        detector |= _places(head, across, down, values.get("quad") == 1)
    own = said.pop("detector", {})
    kept = ("jsonversion", "fileIndex", "fname", "detshape", "quad", "rx_roi", "version")
    return SeriesStart(
        filename=str(texts["filename"]) if filename is not None else _filename(values),
        series=series if series not in (None, last) else 1 if last is None else min(last + 1, MAX_NUMBER),
        nframes=nframes,
        shape=head.shape,
        dtype=dtype,
        codec=codec,
        modules=ports,
        save=said.get("save_raw") not in (False, 0),
        metadata={
            **said,
            "detector": {**detector, **own} if isinstance(own, Mapping) else detector,
            "slsdet": {key: values[key] for key in kept if key in values},
        },
        times=head.exposure is not None,
    )


def _value(text: Any) -> Any:
    """`addJsonHeader` holds texts only: numbers, true and false are meant as such."""
    if type(text) is not str:
        return text
    try:
        return loads(text.encode())
    except (ValueError, RecursionError):
        return text


def _filename(values: Mapping[str, Any]) -> str:
    """As the package names its own files; "" where the user has given no directory."""
    name, index = values.get("fname", ""), values.get("fileIndex", 0)
    if type(name) is not str:
        raise StreamError(f"fname is {show(name)}, not a string")
    if type(index) is not int or index < 0:
        raise StreamError(f"fileIndex is {show(index)}, not a whole number from 0")
    if not name or dirname(normpath("/" + name.lstrip("/"))) == "/":
        return ""
    return f"{name}_{index}.h5"


def _name(detector: int) -> str:
    return DETECTORS[detector] if detector < len(DETECTORS) else f"detector type {detector}"


def _places(head: Head, across: int, down: int, quad: bool) -> dict[str, Any]:
    """Of the ports in the whole image: `x`, `y`, `full_shape`, with the gaps between the chips where they are known."""
    rows, columns = head.shape
    chips = (MODULE_CHIPS[0], 2 if quad else MODULE_CHIPS[1])
    gaps = head.detector in (EIGER, JUNGFRAU) and rows % CHIP == 0 and columns % CHIP == 0
    x = [_with_gaps(column * columns, chips[1], MODULE_GAP[1], gaps) for column in range(across)]
    y = [_with_gaps(row * rows, chips[0], MODULE_GAP[0], gaps) for row in range(down)]
    last = (
        _with_gaps(down * rows - 1, chips[0], MODULE_GAP[0], gaps),
        _with_gaps(across * columns - 1, chips[1], MODULE_GAP[1], gaps),
    )
    return {"x": x * down, "y": [place for place in y for _ in x], "full_shape": [last[0] + 1, last[1] + 1]}


def _with_gaps(pixel: int, chips: int, gap: int, known: bool) -> int:
    """Where a row or column of pixels lies in the whole image; a module has so many `chips`, then comes its `gap`."""
    if not known:
        return pixel
    modules, chip = divmod(pixel // CHIP, chips)
    return pixel + modules * ((chips - 1) * CHIP_GAP + gap) + chip * CHIP_GAP


# --- pieces ----------------------------------------------------------------------------------------------------------


def _whole(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise StreamError(f"{key} is {show(value)}, not a whole number from 0")
    return value


def _pair(values: Mapping[str, Any], key: str, most: int) -> tuple[int, int]:
    value = values.get(key)
    if type(value) is not list or len(value) != 2 or not all(type(n) is int and 0 < n <= most for n in value):
        raise StreamError(f"{key} is {show(value)}, not two whole numbers from 1")
    return value[0], value[1]
