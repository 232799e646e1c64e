"""A protocol in one file.

`{"begin": NAME, "frames": N}`; `{"frame": N, "shape": [ROWS, COLUMNS], "type": TYPE}` and pixels; `{}` at the end."""

from __future__ import annotations

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, Message, Parts, SeriesEnd, SeriesStart
from tangods_receiver.protocol.checks import check_plain, image_bytes, json_object, show, whole
from tangods_receiver.protocols import PROTOCOLS, Protocol


def decode(parts: Parts) -> Message:
    """One received message. StreamError says what was found."""
    head = json_object(parts[0], "part 0")
    if "begin" in head:
        name = head["begin"]
        if type(name) is not str:
            raise StreamError(f"begin is {show(name)}, not a file name")
        return SeriesStart(name, nframes=whole("frames", head.get("frames")))
    if "frame" not in head:
        return SeriesEnd()
    number, shape, dtype = whole("frame", head["frame"]), head.get("shape"), head.get("type")
    if number is None or len(parts) != 2:
        raise StreamError(f"frame {show(head['frame'])} in {len(parts)} parts, not a number and two parts")
    if type(shape) is not list or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise StreamError(f"image {number}: shape is {show(shape)}, not [rows, columns]")
    check_plain(number, image_bytes(shape, dtype), len(parts[1]))
    return Frame(number, (shape[0], shape[1]), str(dtype), "none", parts[1])


PROTOCOLS["mine"] = Protocol("my own stream", lambda connection, connections: decode)
