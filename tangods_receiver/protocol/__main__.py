"""`python -m tangods_receiver.protocol [RECORDING ...]`: the protocols known, or what is in recorded streams."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Decode, Frame, Message, SeriesStart, recording
from tangods_receiver.protocols import PROTOCOLS


def main(arguments: Sequence[str]) -> int:
    """Exit code 0; 1 when a file cannot be read."""
    out = sys.stdout.write
    if not arguments:
        for name, protocol in PROTOCOLS.items():
            out(f"{name:8} {protocol.about}\n")
        return 0
    try:
        for path in arguments:
            for line in describe(path):
                out(line + "\n")
    except (OSError, StreamError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


def describe(path: str) -> Iterator[str]:
    """One line per message."""
    yield path
    decoders = {name: protocol.decoders()(0, 1) for name, protocol in PROTOCOLS.items() if not protocol.images}
    for index, parts in enumerate(recording.read(path)):
        sizes = " + ".join(str(len(part)) for part in parts)
        yield f"{index:6}  {sizes} bytes  {_what(parts, decoders)}"


def _what(parts: Sequence[bytes], decoders: Mapping[str, Decode]) -> str:
    """By the protocol that knows it; else how it begins."""
    for name, decode in decoders.items():
        try:
            found = decode(parts)
        except StreamError:
            continue
        messages = found if isinstance(found, list) else [found]
        return f"{name}: {'; '.join(map(_in_words, messages))}"
    return bytes(parts[0][:100]).decode("utf-8", "replace") if parts else "empty"


def _in_words(message: Message) -> str:
    words = [f"message {message.serial}"] if message.serial is not None else []
    words += [f"series {message.series}"] if message.series is not None else []
    if isinstance(message, SeriesStart):
        words += [f"{message.nframes} frames"] if message.nframes is not None else []
        return ", ".join(["start", *words, f"file {message.filename!r}", *message.arrays])
    if isinstance(message, Frame):
        return ", ".join([f"image {message.number}", *words, f"{message.shape} {message.dtype} {message.codec}"])
    return ", ".join(["end", *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
