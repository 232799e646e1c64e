"""What decoders check alike: JSON parts, whole numbers, and whether a payload can be the image that it is said to be.

Nothing heavy is imported here, see the package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Buffer

loads: Callable[[bytes], Any]
try:
    import orjson
except ImportError:  # a streamer on an old detector computer
    loads = json.loads

    def dumps(value: Any) -> bytes:
        return json.dumps(value, separators=(",", ":")).encode()
else:
    loads = orjson.loads

    def dumps(value: Any) -> bytes:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


ITEMSIZE = {
    **{"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4},
    **{"uint64": 8, "int64": 8, "float32": 4, "float64": 8},
}
MAX_IMAGE = 1 << 30  # bytes of one image; a chunk of an HDF5 file must stay below 4 GiB, and nobody has more
MAX_NUMBER = (1 << 63) - 1  # what a file can hold
MAX_FRAMES = 1 << 40  # of a series
BSLZ4_HEADER = 12  # u64 BE bytes of the image, u32 BE bytes of a block


def json_object(part: Buffer, what: str) -> dict[str, Any]:
    """A part that must be a JSON object."""
    text = part if type(part) is bytes else bytes(part)
    try:
        value = loads(text)
    except (ValueError, RecursionError) as exc:
        raise StreamError(f"{what} is not JSON ({exc}): {show(text[:60])}") from exc
    if type(value) is not dict:
        raise StreamError(f"{what} is {show(value)}, not a JSON object")
    return value


def whole(key: str, value: Any) -> int | None:
    """A whole number from 0, or None when the sender left it out."""
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise StreamError(f"{key} is {show(value)}, not a whole number from 0")
    return value


def image_bytes(shape: Sequence[int], dtype: Any, known: Iterable[str] = ITEMSIZE) -> int:
    """Bytes of a plain image; `known` types that the sentence names."""
    itemsize = ITEMSIZE.get(dtype) if type(dtype) is str else None
    if itemsize is None:
        raise StreamError(f"type is {show(dtype)}, known are {', '.join(known)}")
    nbytes = itemsize
    for n in shape:
        nbytes *= n
    if nbytes > MAX_IMAGE:
        raise StreamError(f"an image of shape {list(shape)} and type {dtype} has {nbytes} bytes, more than {MAX_IMAGE}")
    return nbytes


def check_plain(number: int, nbytes: int, found: int) -> None:
    """Refuse pixels that are not exactly `nbytes`."""
    if found != nbytes:
        raise StreamError(f"image {number}: {found} bytes of pixels, {nbytes} expected")


def check_compressed(number: int, codec: str, nbytes: int, data: Buffer) -> None:
    """Refuse what cannot be an image of `nbytes` before anybody reserves memory or room in the file for it."""
    found = len(data)
    if not 0 < found <= 2 * nbytes + 65536:
        raise StreamError(f"image {number}: {found} bytes of {codec} for an image of {nbytes} bytes")
    if codec == "bslz4":
        head = bytes(memoryview(data)[:BSLZ4_HEADER])
        if len(head) < BSLZ4_HEADER:
            raise StreamError(f"image {number}: {found} bytes of bslz4, less than its header")
        size = int.from_bytes(head[:8], "big")
        if size != nbytes:
            raise StreamError(f"image {number}: bslz4 header says {size} bytes, shape and type say {nbytes}")


def show(value: Any) -> str:
    """What was found, cut to a length that fits in a sentence."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested thousands deep; an int of more digits than Python prints
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
