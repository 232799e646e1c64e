"""array-1.0, the plain array stream of PSI: message parts -> Frame. Pure functions.

Part 0 is a JSON object: `htype` "array-1.0", `shape` rows first, `type`, `frame`; part 1 the pixels, C order. No
message says where a series begins or ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Decode, Frame, Parts
from tangods_receiver.protocol.checks import ITEMSIZE, MAX_NUMBER, check_plain, image_bytes, json_object, show

HTYPE = "array-1.0"
LITTLE = (None, "", "little", "<", "|")
NONE = (None, "", "none")


def decoder(connection: int, connections: int) -> Decode:
    """Of one connection; where there are several, each sends one module of the images."""
    return decode if connections == 1 else _of_module(connection)


def _of_module(module: int) -> Callable[[Parts], Frame]:
    return lambda parts: decode(parts)._replace(module=module)


def decode(parts: Parts) -> Frame:
    """One received message. StreamError says what was found; nothing else is ever raised."""
    if len(parts) != 2:
        raise StreamError(f"{len(parts)} parts, not 2: a header and the pixels")
    head = json_object(parts[0], "part 0")
    pop = head.pop
    kind = pop("htype", None)
    if kind != HTYPE and kind != [HTYPE]:  # some write a list
        raise StreamError(f"htype is {show(kind)}, not {HTYPE!r}")
    number = pop("frame", None)
    if type(number) is not int or not 0 <= number <= MAX_NUMBER:
        raise StreamError(f"frame is {show(number)}, not a whole number from 0")
    shape, dtype = _shape(number, pop("shape", None)), pop("type", None)
    try:
        nbytes = image_bytes(shape, dtype)
    except StreamError as exc:
        raise StreamError(f"image {number}: {exc}") from None
    if head:
        _check_the_rest(number, dtype, head)
    check_plain(number, nbytes, len(parts[1]))
    return Frame(number, shape, dtype, "none", parts[1], timestamp=_timestamp(number, head), extra=head)


def _shape(number: int, value: Any) -> tuple[int, int]:
    """A line of pixels is an image of one row."""
    if type(value) is not list or len(value) not in (1, 2) or not all(type(n) is int and n > 0 for n in value):
        raise StreamError(f"image {number}: shape is {show(value)}, not [rows, columns]")
    return (1, value[0]) if len(value) == 1 else (value[0], value[1])


def _check_the_rest(number: int, dtype: str, head: dict[str, Any]) -> None:
    """What a sender may say of its pixels besides."""
    order = head.get("endianess", head.get("endianness"))
    if not _is_one_of(order, LITTLE) and ITEMSIZE[dtype] > 1:
        raise StreamError(f"image {number}: endianess is {show(order)}; send little-endian pixels")
    for key in ("encoding", "compression"):
        if not _is_one_of(head.get(key), NONE):
            raise StreamError(f"image {number}: {key} is {show(head[key])}; send plain pixels")


def _is_one_of(value: Any, known: Sequence[Any]) -> bool:
    return value is None or (type(value) is str and value in known)


def _timestamp(number: int, head: dict[str, Any]) -> float | None:
    """Seconds, where the sender gives a number."""
    value = head.pop("timestamp", None)
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= MAX_NUMBER:
        raise StreamError(f"image {number}: timestamp is {show(value)}, not a number of seconds")
    return float(value)
