"""STINS, the streaming format of MAX IV: message parts <-> SeriesStart, Frame, SeriesEnd. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer, Frame, Message, Parts, SeriesEnd, SeriesStart, Times
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
    show,
    whole,
)

CODECS = ("none", "bslz4", "lz4", "cbf")
PACKED = ("mono12p", "mono12packed")  # types: uint16 in 12 bits each, two pixels in three bytes, in one of two orders
MAX_MODULES = 1024
IMAGE_KEYS = frozenset(
    "htype frame shape type compression msg_number series module timestamp discard chunks incomplete stop_time "
    "real_time stride".split()
)


def decode(parts: Parts) -> Message:
    """One received message. StreamError says what was found; nothing else is ever raised."""
    if not parts:
        raise StreamError("empty message: no part at all")
    head = json_object(parts[0], "part 0")
    kind = head.pop("htype", None)
    if kind == "image":
        return _frame(head, parts)
    if kind == "header":
        return _start(head, parts)
    if kind == "series_end":
        return SeriesEnd(_count(head, "msg_number"), _count(head, "series"), _frames(head, "end message"))
    raise StreamError(f"htype is {show(kind)}, not 'header', 'image' or 'series_end'")


# --- start -----------------------------------------------------------------------------------------------------------


def _start(head: dict[str, Any], parts: Parts) -> SeriesStart:
    """Keys of the header that nobody knows are kept with the metadata."""
    filename = head.pop("filename", None)
    if type(filename) is not str:
        raise StreamError(f"start message: filename is {show(filename)}, not a string")
    metadata = _metadata(parts)
    shape, dtype, codec = head.pop("shape", None), head.pop("type", None), head.pop("compression", None)
    modules = _count(head, "modules")
    if modules is not None and not 1 <= modules <= MAX_MODULES:
        raise StreamError(f"start message: modules is {modules}, not 1 to {MAX_MODULES}")
    nframes = _frames(head, "start message")
    if shape is not None:
        shape = _shape(shape)
    if codec is not None or dtype in PACKED:
        dtype, codec = _kind(dtype, codec)
    if shape is not None or dtype is not None:
        _image_bytes((1, 1) if shape is None else shape, "uint8" if dtype is None else dtype)
    return SeriesStart(
        filename=filename,
        serial=_count(head, "msg_number"),
        series=_count(head, "series"),
        nframes=nframes,
        shape=shape,
        dtype=dtype,
        codec=codec,
        modules=1 if modules is None else modules,
        save=metadata.get("save_raw") not in (False, 0),
        channels=_channels(head, shape, modules),
        times=head.pop("times", None) is True,
        metadata={**head, **metadata},
    )


def _channels(head: dict[str, Any], shape: tuple[int, ...] | None, modules: int | None) -> tuple[str, ...]:
    """Names of the modules where these are whole images; what does not name them all is only metadata."""
    count = shape[0] if shape is not None and len(shape) == 3 else modules or 1
    names = head.get("channels")
    if type(names) is not list or len(names) != count or not all(type(name) is str and name for name in names):
        return ()
    return tuple(head.pop("channels"))


def _metadata(parts: Parts) -> dict[str, Any]:
    text = bytes(parts[1]) if len(parts) > 1 else b""
    if text.strip() in (b"", b"null"):
        return {}
    return json_object(text, "start message: metadata")


# --- image -----------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    codec: str
    nbytes: int


_layouts: dict[tuple[Any, ...], _Layout] = {}  # the few that are in use; checked once each


def _frame(head: dict[str, Any], parts: Parts) -> Frame:
    pop = head.pop
    number, serial, series = pop("frame", None), pop("msg_number", None), pop("series", None)
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise StreamError(f"image: frame is {show(number)}, not a whole number from 0")
    if type(serial) is not int or serial < 0:
        serial = whole("msg_number", serial)
    if type(series) is not int or series < 0:
        series = whole("series", series)
    timestamp = pop("timestamp", None)
    if timestamp is not None and type(timestamp) is not float:
        timestamp = _seconds(number, timestamp)
    layout = _layout(number, pop("shape", None), pop("type", None), pop("compression", None))
    module, discard, chunks = 0, False, None
    if head:  # what few senders send
        module, discard, chunks = pop("module", 0), pop("discard", False) is True, pop("chunks", None)
        if type(module) is not int or not 0 <= module < MAX_MODULES:
            raise StreamError(f"image {number}: module is {show(module)}, not 0 to {MAX_MODULES - 1}")
    shape, dtype, codec, nbytes = layout
    incomplete, times, stride = False, None, None
    if head:  # what only our forwarding port and cameras send
        stride = pop("stride", None)
        incomplete, times = pop("incomplete", False) is True, _times(head)
    more: tuple[Buffer, ...] = ()
    if stride is not None:
        data, codec = _padded(number, layout, stride, parts[1:])
    elif len(parts) == 2 and len(shape) == 2:
        data = parts[1]
        if codec != "none" or len(data) != nbytes:
            _check_payload(number, codec, nbytes, data)
    else:
        shape, data, more = _several(number, layout, chunks, parts[1:])
    return Frame(
        number, shape, dtype, codec, data, module, serial, series, timestamp, discard, more, head, incomplete, times
    )


def _times(head: dict[str, Any]) -> Times | None:
    """Both of them, or none; what is no time is kept with the unknown keys."""
    stop: Any = head.get("stop_time")
    real: Any = head.get("real_time")
    if type(stop) not in (int, float) or type(real) not in (int, float) or max(abs(stop), abs(real)) > MAX_NUMBER:
        return None
    return Times(float(head.pop("stop_time")), float(head.pop("real_time")))


def _layout(number: int, shape: Any, dtype: Any, codec: Any) -> _Layout:
    try:  # the types are part of the key because True == 1 == 1.0
        key = (dtype, codec, *shape, *map(type, shape))
        found = _layouts.get(key)
    except TypeError:
        key, found = (), None
    if found is not None:
        return found
    try:
        checked = _shape(shape)
        dtype, codec = _kind(dtype, codec)
        nbytes = _image_bytes(checked, dtype)
        found = _Layout(checked, dtype, codec, _packed_bytes(checked) if codec in PACKED else nbytes)
    except StreamError as exc:
        raise StreamError(f"image {number}: {exc}") from None
    if len(_layouts) > 100:
        _layouts.clear()
    _layouts[key] = found
    return found


def _padded(number: int, layout: _Layout, stride: Any, payload: Sequence[Buffer]) -> tuple[Buffer, str]:
    """An image whose rows begin `stride` bytes apart, and the codec that says so."""
    shape, _, codec, nbytes = layout
    if len(shape) != 2 or len(payload) != 1 or codec not in ("none", *PACKED):
        raise StreamError(f"image {number}: stride needs [rows, columns] in one part that is not compressed")
    rows, columns = shape
    least = (3 * columns + 1) // 2 if codec in PACKED else nbytes // rows
    if type(stride) is not int or stride < least:
        raise StreamError(f"image {number}: stride is {show(stride)}, a row takes {least} bytes")
    check_plain(number, rows * stride, len(payload[0]))
    if rows == 1:
        return memoryview(payload[0])[:least], codec
    return payload[0], "padded" if codec == "none" and stride > least else codec


def _several(
    number: int, layout: _Layout, chunks: Any, payload: Sequence[Buffer]
) -> tuple[tuple[int, ...], Buffer, tuple[Buffer, ...]]:
    """An image of several parts or modules: (shape of one module, first payload, payloads of the other modules)."""
    shape, _, codec, nbytes = layout
    if not payload:
        raise StreamError(f"image {number}: no pixel part")
    if len(payload) > MAX_MODULES:
        raise StreamError(f"image {number}: {len(payload)} parts, more than {MAX_MODULES}")
    if chunks is not None and (type(chunks) is not list or len(chunks) != len(shape)):
        raise StreamError(f"image {number}: chunks {show(chunks)} do not fit shape {list(shape)}")
    if len(shape) == 3:
        modules = shape[0]
        if chunks is not None and chunks != [1, *shape[1:]]:
            raise StreamError(f"image {number}: chunks {show(chunks)} is not one module of shape {list(shape)}")
        if len(payload) == 1 and (codec == "none" or codec in PACKED):
            payload = _split(number, payload[0], modules, nbytes)
        if len(payload) != modules:
            raise StreamError(f"image {number}: {len(payload)} parts for {modules} modules of shape {list(shape)}")
        for part in payload:
            _check_payload(number, codec, nbytes // modules, part)
        return shape[1:], payload[0], tuple(payload[1:])
    if codec != "none" and codec not in PACKED:
        raise StreamError(f"image {number}: {codec} of shape {list(shape)} in {len(payload)} parts cannot be joined")
    found = sum(len(part) for part in payload)
    if found != nbytes:
        raise StreamError(f"image {number}: {found} bytes in {len(payload)} parts, {nbytes} expected")
    return shape, b"".join(bytes(part) for part in payload), ()


def _split(number: int, part: Buffer, modules: int, nbytes: int) -> list[Buffer]:
    view, size = memoryview(part), nbytes // modules
    if len(view) != nbytes:
        raise StreamError(f"image {number}: {len(view)} bytes of pixels, {nbytes} expected")
    return [view[k * size : (k + 1) * size] for k in range(modules)]


def _check_payload(number: int, codec: str, nbytes: int, data: Buffer) -> None:
    if codec == "none" or codec in PACKED:
        check_plain(number, nbytes, len(data))
    else:
        check_compressed(number, codec, nbytes, data)


# --- pieces ----------------------------------------------------------------------------------------------------------


def _count(head: dict[str, Any], key: str) -> int | None:
    return whole(key, head.pop(key, None))


def _frames(head: dict[str, Any], what: str) -> int | None:
    nframes = _count(head, "nframes")
    if nframes is not None and nframes > MAX_FRAMES:
        raise StreamError(f"{what}: nframes is {nframes}, more than {MAX_FRAMES}")
    return nframes


def _seconds(number: int, value: Any) -> float:
    if type(value) is not int or abs(value) > MAX_NUMBER:
        raise StreamError(f"image {number}: timestamp is {show(value)}, not a number of seconds")
    return float(value)


def _shape(value: Any) -> tuple[int, ...]:
    """[rows, columns], or [modules, rows, columns] (one module: as if it were not there)."""
    if type(value) is not list or not all(type(n) is int and 0 < n <= MAX_IMAGE for n in value):
        raise StreamError(f"shape is {show(value)}, not a list of whole numbers")
    if len(value) == 3 and value[0] == 1:
        value = value[1:]
    if len(value) not in (2, 3) or (len(value) == 3 and value[0] > MAX_MODULES):
        raise StreamError(f"shape is {show(value)}, not [rows, columns] or [modules, rows, columns]")
    return tuple(value)


def _codec(value: Any) -> str:
    if value in ("", None):
        return "none"
    if value not in CODECS:
        raise StreamError(f"compression is {show(value)}, known are {', '.join(CODECS)}")
    return str(value)


def _kind(dtype: Any, codec: Any) -> tuple[Any, str]:
    """Type of the pixels and codec: what STINS calls a packed type is a way to write uint16."""
    codec = _codec(codec)
    if type(dtype) is not str or dtype not in PACKED:
        return dtype, codec
    if codec != "none":
        raise StreamError(f"type {dtype} with compression {codec}: it is not compressed any further")
    return "uint16", dtype


def _packed_bytes(shape: tuple[int, ...]) -> int:
    """Each module begins with a byte of its own."""
    *modules, rows, columns = shape
    return (modules[0] if modules else 1) * ((3 * rows * columns + 1) // 2)


def _image_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return image_bytes(shape, dtype, (*ITEMSIZE, *PACKED))


# --- the sender's side -----------------------------------------------------------------------------------------------


def encode_start(
    filename: str,
    serial: int | None = None,
    *,
    series: int | None = None,
    nframes: int | None = None,
    shape: Sequence[int] | None = None,
    dtype: str | None = None,
    codec: str | None = None,
    modules: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    channels: Sequence[str] = (),
    times: bool = False,
) -> list[bytes]:
    """Parts of a start message; what is None is left out."""
    head = _filled(
        {"htype": "header", "filename": filename},
        msg_number=serial,
        series=series,
        nframes=nframes,
        shape=None if shape is None else list(shape),
        type=dtype,
        compression=codec,
        modules=modules,
        channels=list(channels) or None,
        times=times or None,
    )
    return [dumps(head)] if metadata is None else [dumps(head), dumps(dict(metadata))]


def encode_frame_header(
    frame: int,
    shape: Sequence[int],
    dtype: str,
    codec: str,
    serial: int | None = None,
    *,
    series: int | None = None,
    module: int | None = None,
    timestamp: float | None = None,
    discard: bool = False,
    chunks: Sequence[int] | None = None,
    stride: int | None = None,
) -> bytes:
    """Part 0 of an image message; the pixel part(s) follow it. `stride` in bytes, where rows are padded."""
    head = _filled(
        {"htype": "image", "frame": frame, "shape": list(shape), "type": dtype, "compression": codec},
        msg_number=serial,
        series=series,
        module=module,
        timestamp=timestamp,
        discard=True if discard else None,
        chunks=None if chunks is None else list(chunks),
        stride=stride,
    )
    return dumps(head)


def encode_frame(frame: Frame, number: int, serial: int, series: int) -> bytes:
    """Part 0 of a frame as it is, under these numbers; its payloads follow, each in a part.

    Of `extra` what no other key says and JSON can tell."""
    shape: list[int] = list(frame.shape)
    dtype, codec = (frame.codec, "none") if frame.codec in PACKED else (frame.dtype, frame.codec)
    codec = "none" if codec == "padded" else codec
    if frame.more:
        shape.insert(0, 1 + len(frame.more))
    head: dict[str, Any] = {"htype": "image", "frame": number, "shape": shape, "type": dtype, "compression": codec}
    head["msg_number"], head["series"] = serial, series
    if frame.module:
        head["module"] = frame.module
    if frame.timestamp is not None:
        head["timestamp"] = frame.timestamp
    if frame.discard:
        head["discard"] = True
    if frame.codec == "padded" or (
        frame.codec in PACKED and not frame.more and len(frame.data) != _packed_bytes(frame.shape)
    ):
        head["stride"] = len(frame.data) // frame.shape[0]
    if frame.incomplete:
        head["incomplete"] = True
    if frame.times is not None:
        head["stop_time"], head["real_time"] = frame.times
    if not frame.extra:
        return dumps(head)
    known = {key: value for key, value in frame.extra.items() if key not in IMAGE_KEYS}
    try:
        return dumps(head | known)
    except (TypeError, ValueError, RecursionError):  # some other protocol's
        return dumps(head | {key: value for key, value in known.items() if _is_json({key: value})})


def _is_json(value: Any) -> bool:
    try:
        dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def encode_end(serial: int | None = None, *, series: int | None = None, nframes: int | None = None) -> list[bytes]:
    """Parts of an end message; `nframes` that the series had, where some of them are not sent."""
    return [dumps(_filled({"htype": "series_end"}, msg_number=serial, series=series, nframes=nframes))]


def _filled(head: dict[str, Any], **optional: Any) -> dict[str, Any]:
    head.update((key, value) for key, value in optional.items() if value is not None)
    return head
