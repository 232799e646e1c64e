"""`python -m tangods_receiver.protocol [RECORDING ...]`: the protocols known, or what is in recorded streams."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, Message, SeriesStart, recording, stins
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
    for index, parts in enumerate(recording.read(path)):
        sizes = " + ".join(str(len(part)) for part in parts)
        yield f"{index:6}  {sizes} bytes  {_what(parts)}"


def _what(parts: Sequence[bytes]) -> str:
    try:
        return _stins(stins.decode(parts))
    except StreamError:
        return bytes(parts[0][:100]).decode("utf-8", "replace") if parts else "empty"


def _stins(message: Message) -> str:
    if isinstance(message, SeriesStart):
        return f"start, message {message.serial}, series {message.series}, file {message.filename!r}"
    if isinstance(message, Frame):
        return f"image {message.number}, message {message.serial}, {message.shape} {message.dtype} {message.codec}"
    return f"end, message {message.serial}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
