"""Dectris stream V2: a CBOR map per message -> SeriesStart, Frame, SeriesEnd. Pure functions.

Each message is decoded by itself. What tells thresholds apart is their name: modules are the channels in the order of
`channel_order`, whatever the order in the message, and frames say in `extra["channels"]` which they are. Times are
seconds since `series_date`, which each image has, and frames in `extra` too.

Images of a series differ in their number, their times and their pixels alone: from the second on they are compared with
what is remembered of the ones before (`_Known`), and only what is not like them is read by `cbor`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from types import MappingProxyType
from typing import Any, NamedTuple

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import (
    Array,
    Buffer,
    Frame,
    Message,
    Parts,
    SeriesEnd,
    SeriesStart,
    Times,
    appendix,
    cbor,
    cborform,
)
from tangods_receiver.protocol.cbor import Tag
from tangods_receiver.protocol.checks import (
    BSLZ4_HEADER,
    ITEMSIZE,
    MAX_FRAMES,
    MAX_IMAGE,
    MAX_NUMBER,
    check_compressed,
    check_plain,
    dumps,
    image_bytes,
    show,
    whole,
)

CBOR = 55799  # tag of a message that says itself what it is
HEAD = b"\xd9\xd9\xf7"  # that tag
DATE, BIG, BIG_NEGATIVE = 0, 2, 3
ROWS_FIRST, COLUMNS_FIRST = 40, 1040  # tags of arrays
COMPRESSED = 56500
TYPES = {  # tag of a typed array -> NumPy's name, big-endian
    **{64: ("uint8", False), 65: ("uint16", True), 66: ("uint32", True), 67: ("uint64", True)},
    **{68: ("uint8", False), 69: ("uint16", False), 70: ("uint32", False), 71: ("uint64", False)},
    **{72: ("int8", False), 73: ("int16", True), 74: ("int32", True), 75: ("int64", True)},
    **{77: ("int16", False), 78: ("int32", False), 79: ("int64", False)},
    **{81: ("float32", True), 82: ("float64", True), 85: ("float32", False), 86: ("float64", False)},
}
HALVES = {80: 65, 84: 69}  # tags of float16, which arrays of the start may have -> of numbers as long
ARRAYS = ("flatfield", "pixel_mask", "countrate_correction_lookup_table")
MAX_CHANNELS = 16
MAX_REMARKS = 10
MAX_BIG = 64  # bytes of a number that CBOR has no form of its own for
SIZE = 8  # bytes in which both compressions begin with that of the plain numbers
TIMES = ("start_time", "stop_time", "real_time")
MOST_REMEMBERED = 4096  # bytes of an image message besides its pixels
MOST_KNOWN = 4  # forms of images: of as many detectors


def decode(parts: Parts) -> Message:
    """One received message. StreamError says what was found; nothing else is ever raised."""
    if len(parts) != 1:
        raise StreamError(f"{len(parts)} parts, stream V2 has one: is the format of the detector's stream 'cbor'?")
    view = memoryview(parts[0]).cast("B")
    for known in _known:
        if (frame := known.frame(view)) is not None:
            return frame
    return _decoded(view)


def _decoded(view: memoryview) -> Message:
    """Whatever it is."""
    message = cbor.loads(view)
    if type(message) is Tag and message.number == CBOR:
        message = message.value
    if type(message) is not dict:
        raise StreamError(f"a CBOR {type(message).__name__}, not a map: is the format of the detector's stream 'cbor'?")
    kind = message.pop("type", None)
    if kind == "image":
        return _frame(message, view)
    if kind == "start":
        return _start(message)
    if kind == "end":
        return SeriesEnd(series=_series(message, "end message"), unique=_unique(message))
    raise StreamError(f"type is {show(kind)}, not 'start', 'image' or 'end'")


def is_message(part: Buffer) -> bool:
    """A CBOR map that says that it is CBOR; the other protocols begin with JSON."""
    return bytes(memoryview(part)[:3]) == HEAD


def kind(parts: Parts) -> str:
    """`start`, `image`, `end`, or what else it says; "": nothing."""
    try:
        message = cbor.loads(parts[0])
        return str(message.value["type"])
    except (StreamError, KeyError, TypeError):
        return ""


def with_filename(parts: Parts, filename: str) -> list[Buffer]:
    """A start message that names this file, whatever it named before; all else stays as it is."""
    kept = [pair for key, pair in cbor.map_pairs(parts[0]) if key != "user_data"]
    told = appendix.read(_json(cbor.loads(parts[0]).value.get("user_data")))
    options = {**told.metadata, "filename": filename, "nframes": told.nframes}
    text = dumps({key: value for key, value in options.items() if value is not None}).decode()
    count = (len(kept) + 1).to_bytes(2, "big")
    return [b"".join([HEAD, b"\xb9", count, *kept, cbor.text("user_data"), cbor.text(text)])]


def channel_order(name: str) -> tuple[int, int, str]:
    """threshold_1, threshold_2, ..., then difference, then what else there may be."""
    found = re.fullmatch(r"threshold_(\d{1,4})", name, re.ASCII)
    if found:
        return 0, int(found[1]), name
    return (1, 0, name) if name == "difference" else (2, 0, name)


# --- start -----------------------------------------------------------------------------------------------------------


def _start(message: dict[Any, Any]) -> SeriesStart:
    """What the detector says is kept under `detector`, what its user says in the appendix beside that."""
    series = _series(message, "start message")
    told = appendix.read(_json(message.pop("user_data", None)))
    channels = _channels(message.get("channels", []))
    arrays, remarks = _arrays(message, channels)
    about = _about(message)
    dtype = about.get("image_dtype")
    return SeriesStart(
        filename=told.filename,
        series=series,
        nframes=told.expected(_announced(about)),
        shape=_announced_shape(about),
        dtype=dtype if type(dtype) is str and dtype in ITEMSIZE else None,
        modules=max(1, len(channels)),
        save=told.save,
        metadata=told.beside(about),
        channels=channels if len(channels) > 1 else (),
        arrays=arrays,
        times=True,
        unique=_unique(about),
        remarks=remarks,
    )


def _announced(about: Mapping[str, Any]) -> int | None:
    """None: it does not say (nobody arms for 0), or more than anybody waits for."""
    nframes = whole("start message: number_of_images", about.get("number_of_images"))
    return None if not nframes or nframes > MAX_FRAMES else nframes


def _announced_shape(about: Mapping[str, Any]) -> tuple[int, int] | None:
    size = about.get("image_size_y"), about.get("image_size_x")
    if None in size:
        return None
    if not all(map(_is_length, size)):
        raise StreamError(f"start message: image_size_y and image_size_x are {show(list(size))}, not whole numbers")
    image_bytes(size, "uint8")  # type: ignore[arg-type]
    return size  # type: ignore[return-value]


def _channels(names: Any) -> tuple[str, ...]:
    if type(names) is not list:
        raise StreamError(f"start message: channels is {show(names)}, not a list of names")
    try:
        return _ordered(names)
    except StreamError as exc:
        raise StreamError(f"start message: {exc}") from None


def _arrays(message: dict[Any, Any], channels: tuple[str, ...]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Those that are there, out of the message; by channel where there are several. Of those that cannot be read why:
    images do not need them."""
    arrays, remarks = {}, []
    for name in ARRAYS:
        held = message.pop(name, None)
        several = held if type(held) is dict else {} if held is None else {"": held}
        for channel, array in several.items():
            alone = channel == "" or len(several) == 1 or (channel,) == channels
            try:
                path = name if alone else f"{_ordered([channel])[0]}/{name}"
                arrays[path] = _array(array)
            except StreamError as exc:
                of = f" of {show(channel)}" if channel != "" else ""
                remarks.append(f"{name}{of} of the start message is not stored: {exc}")
    return arrays, tuple(remarks[:MAX_REMARKS])


def _array(held: Any) -> Array:
    """Plain numbers in our order, whatever they were sent as, float16 as float32; a typed array alone is a row of
    numbers."""
    if type(held) is Tag and (held.number in TYPES or held.number in HALVES):
        held = Tag(ROWS_FIRST, [[_length(held)], held])
    if type(held) is Tag and type(held.value) is list and len(held.value) == 2 and type(held.value[1]) is Tag:
        order, (shape, (kind, content)) = held
        if kind in HALVES:
            import numpy as np  # heavy, as codecs: most messages do without

            found = _array(Tag(order, [shape, Tag(HALVES[kind], content)]))
            return Array(found.shape, "float32", np.frombuffer(found.data, "<f2").astype("<f4").view("u1").data)
    layout, data = _typed(held)
    shape, dtype, codec, nbytes, _ = layout
    if codec != "none":
        from tangods_receiver import codecs

        return Array(shape, dtype, codecs.decompress(codec, data, shape, dtype).reshape(-1).view("u1").data)
    if len(data) != nbytes:
        raise StreamError(f"{len(data)} bytes, {nbytes} expected of {list(shape)} {dtype}")
    return Array(shape, dtype, _in_order(layout, data))


def _length(typed: Tag) -> int:
    """How many numbers a typed array holds."""
    content = typed.value
    if type(content) is Tag:
        content = _compressed(content)[1][:SIZE]
        nbytes = int.from_bytes(content, "big")
    else:
        nbytes = len(content) if type(content) is memoryview else 0
    return nbytes // ITEMSIZE[TYPES[HALVES.get(typed.number, typed.number)][0]]


# --- image -----------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """`sent` type and order of NumPy where numbers do not come little-endian and rows first."""

    shape: tuple[int, ...]
    dtype: str
    codec: str
    nbytes: int
    sent: tuple[str, str] | None


_layouts: dict[tuple[Any, ...], _Layout] = {}  # the few that are in use; checked once each
_extras: dict[tuple[Any, ...], Mapping[str, Any]] = {}  # by names of channels, checked as well, date and id


def _frame(message: dict[Any, Any], view: memoryview) -> Frame:
    pop = message.pop
    number, series, data = pop("image_id", None), pop("series_id", None), pop("data", None)
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise StreamError(f"image: image_id is {show(number)}, not a whole number from 0")
    if type(series) is not int or not 0 <= series <= MAX_NUMBER:
        series = _series({"series_id": series}, f"image {number}")
    if type(data) is not dict or not data:
        raise StreamError(f"image {number}: data is {show(data)}, not a map of channels")
    try:
        extra = _extra(tuple(data), pop("series_date", None), pop("series_unique_id", None))
        layout, payloads = _pixels(data, extra["channels"])
        start, stop, real = pop("start_time", None), pop("stop_time", None), pop("real_time", None)
        timestamp = None if start is None else _seconds("start_time", start)
        times = None if stop is real is None else Times(_seconds("stop_time", stop), _seconds("real_time", real))
    except StreamError as exc:
        raise StreamError(f"image {number}: {exc}") from None
    shape, dtype, codec, nbytes, sent = layout
    for payload in payloads:
        if codec == "none":
            check_plain(number, nbytes, len(payload))
        else:
            check_compressed(number, codec, nbytes, payload)
    if sent is not None:
        payloads = [_in_order(layout, payload) for payload in payloads]
    more_said = _about(message)  # the image's appendix, and what nobody knows
    if more_said:
        extra = MappingProxyType({**more_said, **extra})
    if sent is None:
        _remember(view, payloads, tuple(data), series, layout, extra, (start, stop, real))
    first, *more = payloads
    return Frame(
        *(number, shape, dtype, codec, first, 0, None, series, timestamp, False, tuple(more), extra, False, times)
    )


def _pixels(data: Mapping[str, Any], names: Sequence[str]) -> tuple[_Layout, list[Buffer]]:
    """Of these channels, which are all alike."""
    layout, payloads = None, []
    for name in names:
        try:
            found, payload = _typed(data[name])
        except StreamError as exc:
            raise StreamError(f"{name}: {exc}") from None
        if layout is None:
            layout = found
            if len(found.shape) != 2:
                raise StreamError(f"{name}: shape is {list(found.shape)}, not [rows, columns]")
        if found is not layout and found != layout:
            raise StreamError(f"{name} is {found[:3]}, {names[0]} is {layout[:3]}: they do not fit into one file")
        payloads.append(payload)
    assert layout is not None  # there is a name
    return layout, payloads


def _extra(sent: tuple[Any, ...], date: Any, unique: Any) -> Mapping[str, Any]:
    """`channels`: these in their order; `series_date` and `series_unique_id` where they are texts."""
    if type(date) is Tag and date.number == DATE:
        date = date.value
    key = sent, _short_text(date), _short_text(unique)
    found = _extras.get(key)
    if found is None:
        said = {name: text for name, text in zip(("series_date", "series_unique_id"), key[1:], strict=True) if text}
        found = MappingProxyType({"channels": _ordered(sent), **said})
        if len(_extras) > 100:
            _extras.clear()
        _extras[key] = found
    return found


def _ordered(names: Iterable[Any]) -> tuple[str, ...]:
    """Names of channels, which may become names in a file, in our order."""
    known = list(names)
    if len(known) > MAX_CHANNELS:
        raise StreamError(f"{len(known)} channels, more than {MAX_CHANNELS}")
    for name in known:
        if type(name) is not str or not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name):
            raise StreamError(f"a channel is named {show(name)}, not like threshold_1")
    if len(set(known)) != len(known):
        raise StreamError(f"channels {show(known)}: the same twice")
    return tuple(sorted(known, key=channel_order))


def _seconds(key: str, value: Any) -> float:
    """[numerator, denominator]; nan: not said, or of a clock that does not run."""
    if value is None:
        return nan
    if type(value) is list and len(value) == 2:
        above, below = value
        if type(above) is type(below) is int and below >= 0 and abs(above) < 1 << 64:
            return float(above / below) if below else nan
    raise StreamError(f"{key} is {show(value)}, not [numerator, denominator]")


# --- images like those before ----------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """Images of one series at one detector. `order` of the channels in the message; `limit` bytes of compressed pixels,
    as `check_compressed` has it, which needs no more: a bslz4 chunk begins as `form` wants it; `numbers` where number
    and times are among those of `form`; `clocks` denominators of the times."""

    form: cborform.Form
    series: int
    layout: _Layout
    extra: Mapping[str, Any]
    order: tuple[int, ...]
    limit: int
    numbers: tuple[int, ...]
    clocks: tuple[int, ...]

    def frame(self, view: memoryview) -> Frame | None:
        """Just what `_frame` would make of it; None: that one is to look at it."""
        found = self.form.match(view)
        if found is None:
            return None
        shape, dtype, codec, nbytes, _ = self.layout
        said, payloads = found
        for payload in payloads:
            size = len(payload)
            if size != nbytes if codec == "none" else not BSLZ4_HEADER <= size <= self.limit:
                return None
        image, start, stop, real = [int.from_bytes(said[k][1:] or said[k], "big") for k in self.numbers]
        if image > MAX_NUMBER:
            return None
        ticks, ticks_stop, ticks_real = self.clocks
        times = Times(stop / ticks_stop, real / ticks_real)
        more: tuple[memoryview, ...] = ()
        if len(payloads) > 1:
            more = tuple([payloads[k] for k in self.order[1:]])
        return Frame(
            *(image, shape, dtype, codec, payloads[self.order[0]], 0, None, self.series, start / ticks, False, more),
            *(self.extra, False, times),
        )


_known: tuple[_Known, ...] = ()
_seen: Counter[tuple[Any, ...]] = Counter()  # images that were no known ones


def _remember(
    view: memoryview,
    payloads: Sequence[Buffer],
    sent: tuple[str, ...],
    series: int,
    layout: _Layout,
    extra: Mapping[str, Any],
    times: Sequence[Any],
) -> None:
    """Of the second image of a kind what all have alike; once, for they may differ in other things as well."""
    global _known
    if len(view) - sum(map(len, payloads)) > MOST_REMEMBERED:
        return
    if len(_seen) > 100:
        _seen.clear()
    kind = repr(extra), series, layout, sent
    _seen[kind] += 1
    if _seen[kind] != 2 or not all(type(time) is list and time[0] >= 0 < time[1] for time in times):
        return
    begins = layout.nbytes.to_bytes(SIZE, "big") if layout.codec == "bslz4" else b""
    form = cborform.learn(view, ("image_id", *TIMES), "data", begins)
    keys = [key for key, _ in cbor.map_pairs(view) if key == "image_id" or key in TIMES]
    if form is None:
        return
    new = _Known(
        form,
        series,
        layout,
        extra,
        tuple(sent.index(name) for name in extra["channels"]),
        2 * layout.nbytes + 65536,
        tuple(keys.index(key) for key in ("image_id", *TIMES)),
        tuple(time[1] for time in times),
    )
    _known = (new, *_known)[:MOST_KNOWN]


# --- arrays ----------------------------------------------------------------------------------------------------------


def _typed(held: Any) -> tuple[_Layout, memoryview]:
    """An array with a shape: how its numbers are sent, and these as they are in the message."""
    if type(held) is Tag and type(held.value) is list and len(held.value) == 2 and type(held.value[1]) is Tag:
        order, (shape, (kind, content)) = held
        how = None
        if type(content) is Tag:
            how, content = _compressed(content)
        if type(content) is memoryview and type(shape) is list:
            return _layout(order, kind, how, shape), content
    raise StreamError(f"{show(held)} is no array: tag 40 of [shape, typed array]")


def _compressed(content: Tag) -> tuple[tuple[str, int], memoryview]:
    """(algorithm, bytes of a number), data."""
    value = content.value
    if content.number != COMPRESSED or type(value) is not list or len(value) != 3:
        raise StreamError(f"{show(content)} is neither a byte string nor tag {COMPRESSED} of three values")
    algorithm, size, data = value
    if type(algorithm) is not str or type(size) is not int or type(data) is not memoryview:
        raise StreamError(f"tag {COMPRESSED} of {show(value)}, not [algorithm, bytes of a number, byte string]")
    return (algorithm, size), data


def _layout(order: int, kind: int, how: tuple[str, int] | None, shape: list[Any]) -> _Layout:
    try:  # the types are part of the key because True == 1 == 1.0
        key = (order, kind, how, *shape, *map(type, shape))
        found = _layouts.get(key)
    except TypeError:
        key, found = (), None
    if found is None:
        found = _new_layout(order, kind, how, shape)
        if len(_layouts) > 100:
            _layouts.clear()
        _layouts[key] = found
    return found


def _new_layout(order: int, kind: int, how: tuple[str, int] | None, shape: list[Any]) -> _Layout:
    if order not in (ROWS_FIRST, COLUMNS_FIRST):
        raise StreamError(f"tag {order} is no array with a shape, {ROWS_FIRST} and {COLUMNS_FIRST} are")
    if kind not in TYPES:
        raise StreamError(f"tag {kind} is no typed array of a known type, known are {', '.join(map(str, TYPES))}")
    if not 1 <= len(shape) <= 4 or not all(map(_is_length, shape)):
        raise StreamError(f"shape is {show(shape)}, not whole numbers such as [rows, columns]")
    dtype, big_endian = TYPES[kind]
    itemsize = ITEMSIZE[dtype]
    sent = None
    if (big_endian and itemsize > 1) or (order == COLUMNS_FIRST and len(shape) > 1):
        sent = f"{'>' if big_endian else '<'}{dtype[0]}{itemsize}", "F" if order == COLUMNS_FIRST else "C"
    nbytes = image_bytes(shape, dtype)
    if how is None:
        return _Layout(tuple(shape), dtype, "none", nbytes, sent)
    codec, size = how
    if codec not in ("bslz4", "lz4"):
        raise StreamError(f"compression is {show(codec)}, known are bslz4, lz4")
    if sent is not None:
        raise StreamError(f"{codec} of numbers that are big-endian or columns first: only plain ones are put in order")
    if codec == "bslz4" and size != itemsize:
        raise StreamError(f"bslz4 of {size} bytes a number, {dtype} has {itemsize}")
    return _Layout(tuple(shape), dtype, codec, nbytes, None)


def _in_order(layout: _Layout, data: Buffer) -> Buffer:
    """Little-endian, rows first: a copy where they are not."""
    if layout.sent is None:
        return data
    import numpy as np

    kind, order = layout.sent
    numbers = np.frombuffer(data, kind).reshape(layout.shape, order=order)  # type: ignore[call-overload]
    return np.ascontiguousarray(numbers, np.dtype(layout.dtype).newbyteorder("<")).reshape(-1).view("u1").data


# --- pieces ----------------------------------------------------------------------------------------------------------


def _series(message: Mapping[Any, Any], what: str) -> int:
    series = whole(f"{what}: series_id", message.get("series_id"))
    if series is None:
        raise StreamError(f"{what}: no series_id")
    return series


def _unique(message: Mapping[Any, Any]) -> str:
    """ "": it has none."""
    return _short_text(message.get("series_unique_id"))


def _short_text(value: Any) -> str:
    """ "": it is none."""
    return value if type(value) is str and len(value) <= 64 else ""


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_IMAGE


def _about(message: Mapping[Any, Any]) -> dict[str, Any]:
    return {key if type(key) is str else str(_json(key)): _json(value) for key, value in message.items()}


def _json(value: Any) -> Any:
    """As JSON would hold it: bytes in hexadecimal, of tags that nobody knows the number and the value."""
    if type(value) is dict:
        return _about(value)
    if type(value) is list:
        return [_json(item) for item in value]
    if isinstance(value, bytes | memoryview):
        return value.hex()
    if type(value) is cbor.Simple:
        return None if value == cbor.UNDEFINED else {"simple": value.value}
    if type(value) is not Tag:
        return value
    number, content = value
    if number == DATE and type(content) is str:
        return content
    if number in (BIG, BIG_NEGATIVE) and type(content) is memoryview and len(content) <= MAX_BIG:
        big = int.from_bytes(content, "big")
        return big if number == BIG else -1 - big
    return {"tag": number, "value": _json(content)}
