"""CBOR (RFC 8949) from a sender that nobody vouches for: strict, and without a copy of the pixels.

cbor2 copies each byte string with the GIL held, and makes what tags ask for: dates, patterns, shared and cyclic values.
Stream V2's image message as ZeroMQ gives it, medians: 200 kB 27 us with cbor2, 24 us here; 2 MB 232 us and 24 us."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

MAX_DEPTH = 64
MAX_ITEMS = 1 << 18  # in one message: with values of a byte each it would keep a worker busy for minutes


class Tag(NamedTuple):
    """A value that is more than it looks like; none is interpreted here."""

    number: int
    value: Any


class Simple(NamedTuple):
    """A simple value that is not false, true or null."""

    value: int


UNDEFINED = Simple(23)

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)  # the high three bits of the first byte
_INDEFINITE = 31
_BREAK = 0xFF
_NUMBERS = {24: struct.Struct(">B"), 25: struct.Struct(">H"), 26: struct.Struct(">I"), 27: struct.Struct(">Q")}
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_CONSTANTS: dict[int, Any] = {20: False, 21: True, 22: None, 23: UNDEFINED}
_SHORT_TEXT, _LONGER_TEXT = 0x60, 0x78  # first bytes of texts: below 24 bytes, from 24 bytes

Read = tuple[Any, int]  # a value, and where the next one begins


def loads(data: Buffer) -> Any:
    """The one value that these bytes are. Byte strings are slices of `data` (sent in pieces: joined), maps dicts.

    StreamError: not CBOR, cut short, or followed by something; nothing else is raised."""
    view = memoryview(data).cast("B")
    try:
        value, end = _value(view, 0, MAX_DEPTH, [MAX_ITEMS])
    except (IndexError, struct.error):
        raise StreamError(f"CBOR: cut short, {len(view)} bytes are not a whole value") from None
    except UnicodeDecodeError as exc:
        raise StreamError(f"CBOR: a text is not UTF-8 ({exc.reason})") from exc
    if end != len(view):
        raise StreamError(f"CBOR: the value ends at byte {end}, the message at {len(view)}")
    return value


def map_pairs(data: Buffer) -> list[tuple[Any, memoryview]]:
    """Of a map, also behind a tag: each key, and the bytes of this key with its value. StreamError: it is none."""
    value = loads(data)
    if not isinstance(value.value if type(value) is Tag else value, dict):
        raise StreamError(f"CBOR: a {type(value).__name__}, not a map")
    view = memoryview(data).cast("B")
    at = _start(view, 0) if type(value) is Tag else 0
    pairs, last = [], view[at] == 0xA0 | _INDEFINITE
    at, end = _start(view, at), len(view) - last
    while at < end:
        begin, found = at, dict[Any, Any]()
        at = _pair(view, at, MAX_DEPTH, [MAX_ITEMS], found)
        pairs.append((*found, view[begin:at]))
    return pairs


def _start(view: memoryview, at: int) -> int:
    """Where what is in the tag or map that begins here begins."""
    n = view[at] & 31
    return at + 1 + (_NUMBERS[n].size if n in _NUMBERS else 0)


def text(value: str) -> bytes:
    """The one value that is ever written here."""
    data = value.encode()
    return b"\x7a" + len(data).to_bytes(4, "big") + data


def _value(view: memoryview, at: int, depth: int, left: list[int]) -> Read:
    """The value that begins here; `depth` how many may be in each other, `left` how many there may still be.

    Runs thirty times for each image: a class with a position takes half as long again."""
    begin = at
    first = view[at]
    kind, n = first >> 5, first & 31
    at += 1
    if n > 23:
        if kind == _OTHER:
            return _float(view, begin, n)
        if n == _INDEFINITE and _BYTES <= kind <= _MAP:
            return _indefinite(view, begin, kind, depth, left)
        if n not in _NUMBERS:
            raise _no_value(view, begin)
        form = _NUMBERS[n]
        (n,) = form.unpack_from(view, at)
        at += form.size
    if kind == _TEXT or kind == _BYTES:
        end = at + n
        if end > len(view):
            raise StreamError(f"CBOR: {n} bytes announced at byte {begin}, {len(view) - at} are left")
        return (str(view[at:end], "utf-8") if kind == _TEXT else view[at:end]), end
    if kind == _UNSIGNED:
        return n, at
    if kind == _ARRAY:
        _reserve(view, at, n, depth, left)
        values = []
        for _ in range(n):
            value, at = _value(view, at, depth - 1, left)
            values.append(value)
        return values, at
    if kind == _MAP:
        _reserve(view, at, 2 * n, depth, left)
        found: dict[Any, Any] = {}
        for _ in range(n):
            at = _pair(view, at, depth - 1, left, found)
        return found, at
    if kind == _TAG:
        _reserve(view, at, 1, depth, left)
        value, at = _value(view, at, depth - 1, left)
        return Tag(n, value), at
    if kind == _NEGATIVE:
        return -1 - n, at
    return (_CONSTANTS[n] if n in _CONSTANTS else Simple(n)), at


def _pair(view: memoryview, at: int, depth: int, left: list[int], found: dict[Any, Any]) -> int:
    """A key and its value, into `found`."""
    begin = at
    first = view[at]
    if _SHORT_TEXT < first < _LONGER_TEXT:  # nearly always
        at += first - _SHORT_TEXT + 1
        if at > len(view):
            raise StreamError(f"CBOR: cut short in the key at byte {begin}")
        key: Any = str(view[begin + 1 : at], "utf-8")
    else:
        key, at = _value(view, at, depth, left)
        if isinstance(key, memoryview):
            key = bytes(key)
        if isinstance(key, list | dict | Tag):
            raise StreamError(f"CBOR: the key at byte {begin} is neither a text nor a number")
    if key in found:
        raise StreamError(f"CBOR: the key at byte {begin} comes a second time")
    found[key], at = _value(view, at, depth, left)
    return at


def _float(view: memoryview, at: int, n: int) -> Read:
    """What is longer than a byte and no number of bytes or values."""
    if n in _FLOATS:
        form = _FLOATS[n]
        return form.unpack_from(view, at + 1)[0], at + 1 + form.size
    if n == 24 and view[at + 1] > 31:
        return Simple(view[at + 1]), at + 2
    raise _no_value(view, at)


def _indefinite(view: memoryview, at: int, kind: int, depth: int, left: list[int]) -> Read:
    """What goes on up to a break."""
    begin = at
    at += 1
    values: list[Any] = []
    found: dict[Any, Any] = {}
    while (first := view[at]) != _BREAK:
        _reserve(view, at, 1 if kind != _MAP else 2, depth, left)
        if kind == _MAP:
            at = _pair(view, at, depth - 1, left, found)
            continue
        if kind != _ARRAY and (first >> 5 != kind or first & 31 == _INDEFINITE):
            raise StreamError(f"CBOR: {first:#04x} at byte {at} is no piece of the string at byte {begin}")
        value, at = _value(view, at, depth - 1, left)
        values.append(value)
    if kind == _ARRAY or kind == _MAP:
        return (values if kind == _ARRAY else found), at + 1
    return ("".join(values) if kind == _TEXT else memoryview(b"".join(values))), at + 1


def _reserve(view: memoryview, at: int, items: int, depth: int, left: list[int]) -> None:
    """Before so many more values, each of a byte at least, are read one level deeper."""
    if items > len(view) - at:
        raise StreamError(f"CBOR: {items} values announced before byte {at}, {len(view) - at} bytes are left")
    left[0] -= items
    if left[0] < 0:
        raise StreamError(f"CBOR: more than {MAX_ITEMS} values")
    if not depth:
        raise StreamError(f"CBOR: more than {MAX_DEPTH} values in each other at byte {at}")


def _no_value(view: memoryview, at: int) -> StreamError:
    return StreamError(f"CBOR: {view[at]:#04x} at byte {at} begins no value")
