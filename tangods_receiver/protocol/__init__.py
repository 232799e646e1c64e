"""What every stream protocol is turned into: the start of a series, its frames, its end.

Nothing heavy is imported here: a streamer on an old detector computer needs this package with json and zmq only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

Buffer = Any  # bytes, memoryview or zmq.Frame: whatever offers the buffer protocol


@dataclass(frozen=True)
class SeriesStart:
    """The sender begins a series.

    `series` is the sender's own id (None: the protocol has none, the receiver counts);
    `serial` the message number of the start (None: the stream has no message numbers);
    `nframes` the number of frames announced (None: unknown, 0 is a valid number);
    `shape` of one frame or module, rows first; `save` False means "live view only although there is a file name".
    """

    filename: str
    serial: int | None = None
    series: int | None = None
    nframes: int | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    codec: str | None = None
    modules: int = 1
    save: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Frame(NamedTuple):
    """One image, or one module of an image, as it came (a tuple, because tens of thousands are made in a second).

    `number` counts from 0 in each series; `shape` is that of the pixels, rows first; `dtype` a NumPy name;
    `codec` one of `none`, `bslz4`, `lz4`, `cbf`, `mono12p`, `mono12packed`;
    `data` the payload in one part (no copy is made);
    `timestamp` the detector's own time in seconds (None: not sent); `discard` True: count it, do not store it;
    `more` the payloads of modules `module + 1`, `module + 2` ... where one message carries several modules.
    """

    number: int
    shape: tuple[int, ...]
    dtype: str
    codec: str
    data: Buffer
    module: int = 0
    serial: int | None = None
    series: int | None = None
    timestamp: float | None = None
    discard: bool = False
    more: tuple[Buffer, ...] = ()
    extra: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class SeriesEnd:
    """The sender has sent everything of this series."""

    serial: int | None = None
    series: int | None = None


Message = SeriesStart | Frame | SeriesEnd
Parts = Sequence[Buffer]
