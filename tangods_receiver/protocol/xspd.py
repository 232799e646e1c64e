"""X-Spectrum xspd, data port: message parts -> Frame.

Three parts: a subject, a header, the pixels. Of the header only the first four bytes are known: the lowest eight bits
of the frame's number, those of the trigger's, a status, the depth. Shape, type and compression are not in it: they are
configured (`Images`). No message says where a series begins or ends. Where there are several ports, each sends the
frames of one module, under the same numbers."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.protocol import Buffer, Decode, Frame, Images, Parts
from tangods_receiver.protocol.checks import ITEMSIZE

PARTS = 3
HEADER = 4  # bytes that are known
GOOD = 0  # status
TURN = 256  # numbers come modulo this
TYPES = {1: "uint8", 2: "uint16", 4: "uint32"}  # by the bytes of a pixel


class Numbers:
    """Frame numbers of all ports of a detector, from their lowest eight bits.

    A port that lost more than a turn finds its place again by what the others are at; so does one that comes later."""

    def __init__(self) -> None:
        self.latest = -1  # of all ports


class Port:
    """Decodes the messages of one data port."""

    def __init__(self, module: int, images: Images, numbers: Numbers) -> None:
        self._module = module
        self._images = images
        self._pixels = images.shape[0] * images.shape[1]
        self._numbers = numbers
        self._last: int | None = None  # frame number of the last message
        self._of_it = 0  # messages that had this number before

    def __call__(self, parts: Parts) -> Frame:
        """One received message. StreamError says what was found; nothing else is ever raised."""
        if len(parts) != PARTS:
            raise StreamError(f"{len(parts)} parts, not {PARTS}: subject, header and pixels")
        if bytes(memoryview(parts[0])[:1]) == b"{":
            raise StreamError("part 0 is JSON, not a subject: the endpoint is that of another kind of detector")
        header = bytes(memoryview(parts[1])[:HEADER])
        if len(header) < HEADER:
            raise StreamError(f"a header of {len(header)} bytes, less than {HEADER}")
        data, dtype = self._image(parts[2])
        number = self._number(header[0])
        return Frame(number, self._images.shape, dtype, "none", data, self._module, incomplete=header[2] != GOOD)

    def _image(self, data: Buffer) -> tuple[Buffer, str]:
        """The plain pixels and their type."""
        if self._images.compression == "zlib":
            data = _inflated(data, self._pixels * max(ITEMSIZE.values()))
        size, left = divmod(len(data), self._pixels)
        dtype = self._images.dtype or TYPES.get(size, "")
        if left or ITEMSIZE.get(dtype) != size:
            rows, columns = self._images.shape
            kind = dtype or ", ".join(TYPES.values())
            raise StreamError(
                f"{len(data)} bytes of pixels are no image of {rows} x {columns} {kind}: compare images in the "
                "receiver's configuration with frame_height, frame_width and compressor of the detector"
            )
        return data, dtype

    def _number(self, low: int) -> int:
        """Of the message: the frame's number, times the images that each number has."""
        last, numbers, counters = self._last, self._numbers, self._images.counters
        if last is not None and (last - low) % TURN == 0 and self._of_it + 1 < counters:
            self._of_it += 1
            return last * counters + self._of_it
        number = low if last is None else last + 1 + (low - last - 1) % TURN
        behind = numbers.latest - number
        if behind > TURN // 2:  # the others have gone on
            number += (behind + TURN // 2) // TURN * TURN
        self._last, self._of_it = number, 0
        numbers.latest = max(numbers.latest, number)
        return number * counters


def decoders(images: Images | None) -> Callable[[int, int], Decode]:
    """Of the ports of one detector."""
    if images is None:
        raise ConfigError("images: missing; messages do not tell how images are")
    numbers, known = Numbers(), images
    return lambda port, ports: Port(port, known, numbers)


def _inflated(data: Buffer, most: int) -> bytes:
    """StreamError: damaged, or more than `most` bytes."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, most + 1)
    except zlib.error as exc:
        raise StreamError(f"{len(data)} bytes are no zlib ({exc}); is the detector's compressor set to zlib?") from exc
    if not stream.eof or stream.unused_data:
        raise StreamError(f"{len(data)} bytes of zlib are cut, or no image of the size that is configured")
    return plain
