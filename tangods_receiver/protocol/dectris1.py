"""Dectris stream V1 ("legacy"): message parts -> SeriesStart, Frame, SeriesEnd. Pure functions.

Shapes on the wire are [width, height]; ours are rows first. Times are nanoseconds on a clock of the detector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import nan
from types import MappingProxyType
from typing import Any, NamedTuple

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Array, Buffer, Frame, Message, Parts, SeriesEnd, SeriesStart, Times, appendix
from tangods_receiver.protocol.appendix import Appendix
from tangods_receiver.protocol.checks import (
    ITEMSIZE,
    MAX_FRAMES,
    MAX_IMAGE,
    MAX_NUMBER,
    check_compressed,
    check_plain,
    dumps,
    image_bytes,
    json_object,
    loads,
    show,
    whole,
)

DETAILS = ("none", "basic", "all")  # of the header
ENCODINGS = {  # codec, bytes of a pixel (0: any)
    "<": ("none", 0),
    ">": ("none", 0),  # documented, not seen: put in order
    "lz4<": ("lz4", 0),
    "bs8-lz4<": ("bslz4", 1),
    "bs16-lz4<": ("bslz4", 2),
    "bs32-lz4<": ("bslz4", 4),
}
ARRAYS = {  # htype -> name in the file
    "dflatfield-1.0": "flatfield",
    "dpixelmask-1.0": "pixel_mask",
    "dcountrate_table-1.0": "countrate_correction_table",  # pairs; NXdetector's lookup table is something else
}
BOOLEANS = ("auto_summation", "mask_to_zero", "fast_arm")  # and all that end in _applied: 0 and 1 in API 1.6
EDGES = "eies"  # trigger mode where each edge ends an image and begins the next: how many come, nobody knows before
MAX_REMARKS = 10
NO_EXTRA: Mapping[str, Any] = MappingProxyType({})


def decode(parts: Parts) -> Message:
    """One received message. StreamError says what was found; nothing else is ever raised."""
    if not parts:
        raise StreamError("empty message: no part at all")
    head = json_object(parts[0], "part 0")
    kind = head.get("htype")
    if kind == "dimage-1.0":
        return _frame(head, parts)
    if kind == "dheader-1.0":
        return _start(head, parts)
    if kind == "dseries_end-1.0":
        return SeriesEnd(series=_series(head, "end message"))
    raise StreamError(f"htype is {show(kind)}, not 'dheader-1.0', 'dimage-1.0' or 'dseries_end-1.0'")


# --- start -----------------------------------------------------------------------------------------------------------


def _start(head: dict[str, Any], parts: Parts) -> SeriesStart:
    """What the detector was configured to is kept under `detector`, what its user says in the appendix beside that."""
    series = _series(head, "start message")
    config, arrays, at, remarks = _walk(head, parts)
    told = _appendix(parts[at]) if at < len(parts) else Appendix()
    unknown = {key: value for key, value in head.items() if key not in ("htype", "series")}
    return SeriesStart(
        filename=told.filename,
        series=series,
        nframes=told.expected(_announced(config)),
        save=told.save,
        metadata={**unknown, **(told.beside(config) if config else told.metadata)},
        arrays=arrays,
        times=True,
        remarks=tuple(remarks[:MAX_REMARKS]),
    )


def with_filename(parts: Parts, filename: str) -> list[Buffer]:
    """A start message that names this file, whatever it named before."""
    at = _walk(json_object(parts[0], "part 0"), parts)[2]
    told = _appendix(parts[at]) if at < len(parts) else Appendix()
    options = {**told.metadata, "filename": filename, "nframes": told.nframes}
    return [*parts[:at], dumps({key: value for key, value in options.items() if value is not None})]


def _walk(head: Mapping[str, Any], parts: Parts) -> tuple[dict[str, Any], dict[str, Array], int, list[str]]:
    """Configuration, arrays, where the appendix is if there is one, and what cannot be read: images do not need it."""
    detail = head.get("header_detail")
    if detail not in DETAILS:
        raise StreamError(f"start message: header_detail is {show(detail)}, known are {', '.join(DETAILS)}")
    config: dict[str, Any] = {}
    at = 1
    if detail != "none":
        if len(parts) < 2:
            raise StreamError(f"start message: header_detail is {detail!r}, and there is no configuration")
        if _array_head(parts[1]) is None:  # else the configuration is missing
            config = _plain_booleans(_configuration(parts[1]))
            at = 2
    return config, *_arrays(parts, at)


def _configuration(part: Buffer) -> dict[str, Any]:
    try:
        return json_object(part, "start message: configuration")
    except StreamError:
        try:  # NaN and Infinity, as Python writes them
            found = json.loads(bytes(part))
        except (ValueError, RecursionError):
            found = None
        if type(found) is not dict:
            raise
        return found


def _arrays(parts: Parts, at: int) -> tuple[dict[str, Array], int, list[str]]:
    """Flat field, pixel mask and so on, each a part that says what follows and a part of numbers; where the appendix
    is, the last part that is neither; and what is left out. Several of a kind are those of the thresholds."""
    found: dict[str, list[Array | None]] = {}
    remarks: list[str] = []
    last = len(parts) - 1
    while at <= last:
        head = _array_head(parts[at])
        if head is None:
            if at == last:
                break
            text = show(bytes(memoryview(parts[at])[:60]))
            remarks.append(f"part {at} of the start message is no array that is known, nor the last part: {text}")
            at += 1
            continue
        if name := ARRAYS.get(head["htype"]):  # others are left out: nobody knows what to do with them
            of_kind = found.setdefault(name, [])
            try:
                if at == last:
                    raise StreamError("without its data")
                of_kind.append(_array(head, parts[at + 1]))
            except StreamError as exc:
                of_kind.append(None)  # the next is that of the next threshold
                remarks.append(f"{name} of the start message is not stored: {exc}")
        at += 2
    arrays = {}
    for name, several in found.items():
        for number, array in enumerate(several, 1):
            if array is not None:
                arrays[name if len(several) == 1 else f"threshold_{number}/{name}"] = array
    return arrays, at, remarks


def _array_head(part: Buffer) -> dict[str, Any] | None:
    """None: it is something else, such as the appendix."""
    if len(part) > 1000 or bytes(memoryview(part)[:1]) != b"{":
        return None
    try:
        head = loads(bytes(part))
    except (ValueError, RecursionError):
        return None
    return head if type(head) is dict and type(head.get("htype")) is str and {"shape", "type"} <= head.keys() else None


def _array(head: dict[str, Any], data: Buffer) -> Array:
    shape, dtype = head.get("shape"), head.get("type")
    if type(shape) is not list or not 1 <= len(shape) <= 4 or not all(map(_is_length, shape)):
        raise StreamError(f"shape is {show(shape)}, not a list of 1 to 4 whole numbers")
    nbytes = image_bytes(shape, dtype)
    if len(data) != nbytes:
        raise StreamError(f"{len(data)} bytes, {nbytes} expected of {shape} {dtype}")
    return Array(tuple(reversed(shape)), str(dtype), data)


def _appendix(part: Buffer) -> Appendix:
    return appendix.read(str(memoryview(part), "utf-8", "replace"))


def _plain_booleans(config: dict[str, Any]) -> dict[str, Any]:
    for key, value in config.items():
        if (key.endswith("_applied") or key in BOOLEANS) and type(value) is int and value in (0, 1):
            config[key] = bool(value)
    return config


def _announced(config: Mapping[str, Any]) -> int | None:
    """Frames of the series by the configuration; None: it does not say, or more than anybody waits for."""
    nimages, ntrigger = config.get("nimages"), config.get("ntrigger", 1)
    if type(nimages) is not int or type(ntrigger) is not int or config.get("trigger_mode") == EDGES:
        return None
    return nimages * ntrigger if 0 < nimages * ntrigger <= MAX_FRAMES else None


# --- image -----------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    shape: tuple[int, int]
    dtype: str
    codec: str
    nbytes: int


_layouts: dict[tuple[Any, ...], _Layout] = {}  # the few that are in use; checked once each


def _frame(head: dict[str, Any], parts: Parts) -> Frame:
    number, series = head.get("frame"), head.get("series")
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise StreamError(f"image: frame is {show(number)}, not a whole number from 0")
    if type(series) is not int or series < 0:
        series = _series(head, f"image {number}")
    if len(parts) < 3:
        raise StreamError(f"image {number}: {len(parts)} parts, 3 or more expected")
    try:
        about = json_object(parts[1], "part 1")
    except StreamError as exc:
        raise StreamError(f"image {number}: {exc}") from exc
    if about.get("htype") != "dimage_d-1.0":
        raise StreamError(f"image {number}: htype of part 1 is {show(about.get('htype'))}, not 'dimage_d-1.0'")
    shape, dtype, codec, nbytes = _layout(number, about.get("shape"), about.get("type"), about.get("encoding"))
    data, size = parts[2], about.get("size")
    found = len(data)
    if size != found and size is not None or type(size) is float:
        raise StreamError(f"image {number}: size is {show(size)}, the data have {found} bytes")
    if codec != "none":
        check_compressed(number, codec, nbytes, data)
    else:
        if found != nbytes:
            check_plain(number, nbytes, found)
        if about["encoding"] == ">":
            data = _swapped(data, ITEMSIZE[dtype])
    if len(parts) == 3:
        return Frame(number, shape, dtype, codec, data, 0, None, series)
    timestamp, times, extra = _rest(number, parts)
    return Frame(number, shape, dtype, codec, data, 0, None, series, timestamp, False, (), extra, False, times)


def _layout(number: int, shape: Any, dtype: Any, encoding: Any) -> _Layout:
    key: tuple[Any, ...]
    try:  # the types are part of the key because True == 1 == 1.0
        width, height = shape
        key = (dtype, encoding, width, height, type(width), type(height))
        found = _layouts.get(key)
    except (TypeError, ValueError):
        key, found = (), None
    if found is not None:
        return found
    try:
        found = _new_layout(shape, dtype, encoding)
    except StreamError as exc:
        raise StreamError(f"image {number}: {exc}") from None
    if len(_layouts) > 100:
        _layouts.clear()
    _layouts[key] = found
    return found


def _new_layout(shape: Any, dtype: Any, encoding: Any) -> _Layout:
    if type(shape) is not list or len(shape) != 2 or not all(map(_is_length, shape)):
        raise StreamError(f"shape is {show(shape)}, not [width, height]")
    if type(encoding) is not str or encoding not in ENCODINGS:
        raise StreamError(f"encoding is {show(encoding)}, known are {', '.join(ENCODINGS)}")
    codec, itemsize = ENCODINGS[encoding]
    nbytes = image_bytes(shape, dtype)
    if itemsize not in (0, ITEMSIZE[dtype]):
        raise StreamError(f"encoding {encoding} does not fit type {dtype}, which has {ITEMSIZE[dtype]} bytes")
    return _Layout((shape[1], shape[0]), dtype, codec, nbytes)


def _rest(number: int, parts: Parts) -> tuple[float | None, Times | None, Mapping[str, Any]]:
    """What follows the pixels, if it is there: timestamp, times, and the appendix."""
    timestamp, times, at = None, None, 3
    text = bytes(parts[3])
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        value = text.decode("utf-8", "replace")
    if type(value) is dict and value.get("htype") == "dconfig-1.0":
        start, stop, real = value.get("start_time"), value.get("stop_time"), value.get("real_time")
        if type(start) is int and type(stop) is int and type(real) is int:  # nearly always
            if not 0 <= start <= MAX_NUMBER or not 0 <= stop <= MAX_NUMBER or not 0 <= real <= MAX_NUMBER:
                raise StreamError(f"image {number}: times {show([start, stop, real])} are not nanoseconds")
            timestamp, times = start / 1e9, Times(stop / 1e9, real / 1e9)
        else:
            timestamp, times = _some_times(number, start, stop, real)
        at = 4
    if len(parts) == at:
        return timestamp, times, NO_EXTRA
    if at == 4:
        text = bytes(parts[4])
        try:
            value = loads(text)
        except (ValueError, RecursionError):
            value = text.decode("utf-8", "replace")
    return timestamp, times, {"image_appendix": value}


def _some_times(number: int, start: Any, stop: Any, real: Any) -> tuple[float | None, Times | None]:
    """Where the detector leaves some out."""
    names = ("start_time", "stop_time", "real_time")
    known = [
        None if (n := whole(f"image {number}: {name}", value)) is None else n / 1e9
        for name, value in zip(names, (start, stop, real), strict=True)
    ]
    times = [nan if seconds is None else seconds for seconds in known[1:]]
    return known[0], None if known[1] is known[2] is None else Times(*times)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _swapped(data: Buffer, itemsize: int) -> bytearray:
    """Big-endian numbers as little-endian ones."""
    sent, out = memoryview(data), bytearray(len(data))
    for k in range(itemsize):
        out[k::itemsize] = sent[itemsize - 1 - k :: itemsize]
    return out


def _series(head: dict[str, Any], what: str) -> int:
    series = whole(f"{what}: series", head.get("series"))
    if series is None:
        raise StreamError(f"{what}: no series")
    return series


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_IMAGE
