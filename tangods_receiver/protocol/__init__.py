"""What every stream protocol is turned into: the start of a series, its frames, its end.

Nothing heavy is imported here: a streamer on an old detector computer needs this package with json and zmq only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

Buffer = Any  # bytes, memoryview or zmq.Frame: whatever offers the buffer protocol


class Array(NamedTuple):
    """Numbers that a start message carries, such as a flat field: `shape` rows first, `dtype` a NumPy name,
    `data` plain, little-endian, of exactly that size."""

    shape: tuple[int, ...]
    dtype: str
    data: Buffer


class Images(NamedTuple):
    """How images are, by the configuration, where messages do not tell: `shape` rows first; `dtype` "": as their size
    says; `compression` none or zlib; `counters` images of one number that follow each other."""

    shape: tuple[int, int]
    dtype: str = ""
    compression: str = "none"
    counters: int = 1


class Times(NamedTuple):
    """Of one frame, besides its timestamp, in seconds: when the exposure stopped, on the timestamp's clock, and how
    long was really counted."""

    stop: float
    real: float


@dataclass(frozen=True)
class SeriesStart:
    """A series begins: the sender says so, or (`relative`) whoever controls it, because its stream does not.

    `series` is the sender's own id (None: the protocol has none, the receiver counts);
    `serial` the message number of the start (None: the stream has no message numbers);
    `nframes` the number of frames announced (None: unknown, 0 is a valid number);
    `shape` of one frame or module, rows first; `save` False means "live view only although there is a file name";
    `channels` names of the modules where these are not parts of an image but whole ones, such as thresholds;
    `arrays` for the file, by the names of NXdetector: flatfield, pixel_mask, countrate_correction_lookup_table (one
    value a count) or countrate_correction_table (pairs); those of one channel as threshold_1/flatfield;
    `relative` numbers of frames count from that of the first frame that comes, of whatever module;
    `times` its frames bring `Times`, for which the file then has a place;
    `unique` tells it from all others where ids repeat (its frames have it as `extra["series_unique_id"]`); "": none;
    `remarks` sentences on what of the message could not be read and is left out.
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
    channels: tuple[str, ...] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)
    relative: bool = False
    times: bool = False
    unique: str = ""
    remarks: tuple[str, ...] = ()


class Frame(NamedTuple):
    """One image, or one module of an image, as it came (a tuple, because tens of thousands are made in a second).

    `number` counts from 0 in each series; `shape` is that of the pixels, rows first; `dtype` a NumPy name;
    `codec` one of `none`, `bslz4`, `lz4`, `cbf`, `mono12p`, `mono12packed`, `padded` (as `codecs` says);
    `data` the payload in one part (no copy is made);
    `timestamp` the detector's own time in seconds (None: not sent); `discard` True: count it, do not store it;
    `more` the payloads of modules `module + 1`, `module + 2` ... where one message carries several modules;
    `incomplete` the sender says that pixels of it are missing.
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
    incomplete: bool = False
    times: Times | None = None


@dataclass(frozen=True)
class SeriesEnd:
    """The sender has sent everything of this series; `nframes` that it had, sent or not (None: it does not say);
    `unique` as that of the start."""

    serial: int | None = None
    series: int | None = None
    nframes: int | None = None
    unique: str = ""


Message = SeriesStart | Frame | SeriesEnd
Parts = Sequence[Buffer]
Decode = Callable[[Parts], Message | list[Message]]  # several: of one message, in this order
