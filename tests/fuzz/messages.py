"""Messages that no sender should send: what a stream may hold when the other end is broken, or hostile."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import cbor2
import numpy as np

from tangods_receiver import codecs
from tangods_receiver.protocol import Images, Message, array1, dectris1, dectris2, recording, slsdet, stins, xspd
from tests.receiver import dectris, dectris2_messages, senders

Parts = list[bytes]
SHAPE = (6, 10)
#: Recordings of real detectors, which are not part of this repository: more seeds where they are at hand.
DATA = Path(os.environ.get("DETECTOR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

CBF_TEXT = """###CBF: VERSION 1.5\r
_array_data.data\r
;\r
--CIF-BINARY-FORMAT-SECTION--\r
Content-Type: application/octet-stream;\r
     conversions="x-CBF_BYTE_OFFSET"\r
X-Binary-Size: {size}\r
X-Binary-Element-Type: "signed 32-bit integer"\r
X-Binary-Size-Fastest-Dimension: {columns}\r
X-Binary-Size-Second-Dimension: {rows}\r
\r
"""


def cbf(image: np.ndarray) -> bytes:
    """A miniCBF file of an int32 image."""
    body = bytearray()
    for step in np.diff(image.reshape(-1).astype(np.int64), prepend=0).tolist():
        if -128 < step < 128:
            body += struct.pack("<b", step)
        elif -32768 < step < 32768:
            body += struct.pack("<Bh", 0x80, step)
        else:
            body += struct.pack("<Bhi", 0x80, -32768, step)
    text = CBF_TEXT.format(size=len(body), rows=image.shape[0], columns=image.shape[1])
    return text.encode() + b"\x0c\x1a\x04\xd5" + bytes(body)


def ramp(number: int, dtype: str = "uint16", shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return (np.arange(shape[0] * shape[1]).reshape(shape) + 300 * number).astype(dtype)


def stins_seeds() -> list[Parts]:
    """Good messages of every kind; file names count from the receiver's root."""
    known = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}
    metadata = {
        "exptime": 0.01,
        "save_raw": True,
        "detector": {"energy": 9000.0, "x_pixel_size": 75e-6},
        "list": [1, 2],
    }
    seeds = [
        stins.encode_start("a.h5", 0),
        stins.encode_start("b.h5", 1, series=1, nframes=20, **known, metadata=metadata),
        stins.encode_start("c.h5", 2, series=2, nframes=5, shape=SHAPE, dtype="uint32", codec="bslz4", modules=2),
        stins.encode_start("d.h5", 3, nframes=5, shape=SHAPE, dtype="int32", codec="cbf"),
        stins.encode_start("", 4, metadata={"x": [1, 2, 3, 4], "rotation": 0, "full_shape": [100, 100]}),
        stins.encode_end(9),
        stins.encode_end(series=1),
    ]
    for number in range(4):
        for dtype, codec in (("uint16", "none"), ("uint32", "bslz4"), ("uint8", "none"), ("float32", "none")):
            head = stins.encode_frame_header(number, SHAPE, dtype, codec, 5 + number, series=1, timestamp=1.5)
            seeds.append([head, codecs.compress(codec, ramp(number, dtype))])
        seeds.append([stins.encode_frame_header(number, SHAPE, "int32", "cbf", 5 + number), cbf(ramp(number, "int32"))])
    many = stins.encode_frame_header(1, (3, *SHAPE), "uint16", "none", 6, series=2, chunks=[1, *SHAPE])
    seeds.append([many, *(ramp(n).tobytes() for n in range(3))])
    seeds.append([stins.encode_frame_header(1, (2, *SHAPE), "uint16", "none", 7), ramp(0).tobytes() * 2])
    big = ramp(1, "uint32", (100, 200))
    seeds.append([stins.encode_frame_header(2, big.shape, "uint32", "bslz4", 8), codecs.compress("bslz4", big)])
    seeds.append([stins.encode_frame_header(3, SHAPE, "uint16", "none", 8, module=1, discard=True), ramp(3).tobytes()])
    return [[bytes(part) for part in parts] for parts in seeds]


def recorded_seeds(most: int = 20, longest: int = 20_000) -> list[Parts]:
    """The first messages of recordings, their pixels cut; of whatever protocol."""
    found: list[Parts] = []
    for path in sorted(DATA.glob("*.bin.gz")) if DATA.is_dir() else ():
        for count, parts in enumerate(recording.read(path)):
            if count == most:
                break
            found.append([part[:longest] for part in parts])
    return found


def dectris1_seeds() -> list[Parts]:
    """Good messages of every kind; file names count from the receiver's root."""
    text = dectris.text
    seeds = [
        dectris.start(1, SHAPE, "none", {"filename": "a.h5"}),
        dectris.start(2, SHAPE, "basic", {"filename": "b.h5", "nframes": 20, "label": "x", "detector": {"energy": 1}}),
        dectris.start(3, SHAPE, "all", {"filename": "c.h5", "rotate": 0, "save_raw": True}, nimages=5, ntrigger=4),
        dectris.start(4, SHAPE, "all", thresholds=2, integers=True),
        dectris.start(5, SHAPE, "basic", "not JSON", trigger_mode="eies"),
        dectris.end(1),
        dectris.end(3),
    ]
    for number in range(4):
        for dtype in ("uint8", "uint16", "uint32"):
            for encoding in dectris.ENCODINGS:
                appendix = '{"angle":1.5}' if number == 3 else ""
                pixels = ramp(number, dtype)
                seeds.append(dectris.image(1 + number, number, pixels, encoding, times=number > 0, appendix=appendix))
    seeds.append(dectris.image(2, 1, ramp(1, "uint32", (100, 200))))
    few = text({"htype": "dconfig-1.0", "start_time": 12})
    seeds.append([*dectris.image(1, 2, ramp(2), times=False), few])
    return [[bytes(part) for part in parts] for parts in seeds]


def dectris2_seeds() -> list[Parts]:
    """Good messages of every kind; file names count from the receiver's root."""
    v2 = dectris2_messages
    seeds = [
        v2.start(1, SHAPE, user_data='{"filename": "a.h5"}'),
        v2.start(2, SHAPE, "all", {"filename": "b.h5", "nframes": 20, "detector": {"energy": 1}}, channels=2),
        v2.start(3, SHAPE, "all", {"filename": "c.h5", "save_raw": True}, dtype="uint32"),
        v2.start(4, SHAPE, user_data="not JSON", channels=3, nimages=5),
        v2.message({"type": "start", "series_id": 5}),
        v2.end(1),
        v2.end(3),
    ]
    for number in range(4):
        for dtype in ("uint8", "uint16", "uint32"):
            for encoding in v2.ENCODINGS:
                several = {name: ramp(number + k, dtype) for k, name in enumerate(v2.THRESHOLDS[: 1 + number % 3])}
                seeds.append(v2.image(1 + number, number, several, encoding))
    seeds.append(v2.image(3, 1, ramp(1, "uint32", (100, 200)), user_data={"angle": 1.5}))
    seeds.append(v2.image(1, 2, ramp(2).astype(">u2"), "none", start_time=...))
    return seeds


def array1_seeds() -> list[Parts]:
    """Of several types, with and without the keys that are optional."""
    types = ("uint16", "uint16", "uint16", "uint8", "float32")
    seeds = [senders.Array1.message(n, ramp(n, dtype)) for n in range(6) for dtype in types]
    seeds.append(senders.Array1.message(6, ramp(6), timestamp=1.5, pulse_id=7, endianess="little"))
    return [*seeds, senders.Array1.message(2**40, ramp(7), htype=["array-1.0"])]


def xspd_seeds() -> list[Parts]:
    return [senders.Xspd.message(n, ramp(n, dtype)) for n in range(256) for dtype in ("uint16", "uint16", "uint8")]


def slsdet_frame(number: int, **more: Any) -> Parts:
    """Of a detector with one port."""
    header = senders.SlsPort.usual(**more) | {"frameNumber": number, "frameIndex": number, "data": 1}
    return [json.dumps(header).encode(), ramp(number % 100).tobytes()]


def slsdet_seeds() -> list[Parts]:
    """Acquisitions and their ends."""
    seeds = [slsdet_frame(n, fileIndex=k, fname="sub/run") for n in range(5) for k in range(3)]
    seeds += [slsdet_frame(n, addJsonHeader={"filename": f"{n}.h5", "nframes": "3"}) for n in range(5)]
    seeds += [slsdet_frame(n, timestamp=10**9, expLength=5, completeImage=n % 2) for n in range(4)]
    pixels = bytes(30)
    seeds += [[slsdet_frame(1, bitmode=4, detType=1, flipRows=1)[0], pixels], [senders.SlsPort.dummy()]]
    return seeds


class Protocol(NamedTuple):
    """`named` a start message for this file; `marker` one of this series, in which no frame is announced; None: there
    are no start messages. `settings` of a receiver that pulls such a stream."""

    name: str
    decode: Callable[[Sequence[bytes]], Message | list[Message]]
    seeds: list[Parts]
    named: Callable[[str], Parts] | None
    marker: Callable[[int], Parts] | None
    settings: Mapping[str, Any] = {}


#: One line for each protocol of the receiver.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "stins",
            stins.decode,
            stins_seeds(),
            lambda name: [b'{"htype": "header", "filename": %s}' % json.dumps(name).encode()],
            lambda series: stins.encode_start("", series=series, nframes=0),
        ),
        Protocol(
            "dectris1",
            dectris1.decode,
            dectris1_seeds(),
            lambda name: dectris.start(1, SHAPE, "none", {"filename": name}),
            lambda series: dectris.start(series, SHAPE, "none", {"nframes": 0}),
        ),
        Protocol(
            "dectris2",
            dectris2.decode,
            dectris2_seeds(),
            lambda name: dectris2_messages.start(1, SHAPE, user_data=json.dumps({"filename": name})),
            lambda series: dectris2_messages.start(series, SHAPE, user_data={"nframes": 0}),
        ),
        Protocol("array1", array1.decode, array1_seeds(), None, None),
        Protocol(
            "xspd",
            xspd.decoders(Images(SHAPE))(0, 1),
            xspd_seeds(),
            None,
            None,
            {"socket": "pull", "images": {"shape": list(SHAPE)}},
        ),
        Protocol(
            "slsdet",
            slsdet.decoders()(0, 1),
            slsdet_seeds(),
            lambda name: slsdet_frame(0, fname=name),
            lambda series: slsdet_frame(0, addJsonHeader={"series": str(series), "nframes": "0"}),
            {"socket": "pull"},
        ),
    )
}

# --- nonsense --------------------------------------------------------------------------------------------------------

NUMBERS: list[Any] = [0, 1, -1, 2, 3, 7, 255, 1024, 1025, 65536, 2**24, 2**31 - 1, 2**31, 2**32, 2**40, 2**40 + 1]
NUMBERS += [2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**300, 0.0, 1.0, -0.5, 1e308, float("nan")]
NUMBERS += [float("inf"), float("-inf")]
TEXTS = [
    "",
    "a",
    "none",
    "bslz4",
    "cbf",
    "lz4",
    "uint8",
    "uint16",
    "int32",
    "float64",
    "object",
    "O",
    "V8",
    ">u2",
    "M8",
]
TEXTS += [
    "image",
    "header",
    "series_end",
    "dheader-1.0",
    "dimage-1.0",
    "dflatfield-1.0",
    "bs16-lz4<",
    "lz4<",
    "<",
    "all",
    "\0",
    "\ud800",
    "é" * 300,
    "x" * 5000,
    "\r\n",
    "1",
    "null",
    "/",
]
SHAPES = [[6, 10], [10, 6], [60], [1, 6, 10], [2, 6, 10], [1, 1], [0, 5], [-6, -10], [2**20, 2**20], [2**40, 2**40]]
SHAPES += [
    [16384, 16384],
    [32768, 32768],
    [1024, 1024, 1024],
    [1] * 64,
    [6.0, 10],
    ["6", "10"],
    [[6], [10]],
    [True, True],
]
NAMES = [
    "a.h5",
    "b.h5",
    "sub/a.h5",
    "../outside/a.h5",
    "../../a.h5",
    "sub/../../outside/a.h5",
    "link/a.h5",
    "loop/a.h5",
]
NAMES += [
    "linked.h5",
    "dangling.h5",
    "fifo",
    "zero",
    "there.h5",
    "sub",
    ".",
    "",
    "..",
    "/",
    "//",
    "~/a.h5",
    "a.h5/",
    "%n%s.h5",
]
NAMES += ["/etc/passwd", "/dev/null", "/dev/full", "/proc/self/mem", "/dev/shm/a.h5", "/tmp/a.h5", "x" * 255, "x" * 256]
NAMES += [
    "x" * 5000,
    "a/" * 3000,
    "a\0b.h5",
    "\0",
    "a\nb.h5",
    "\ud800.h5",
    "\udcff.h5",
    "\u202egpj.h5",
    "é.h5",
    "😀.h5",
]
KEYS = ["htype", "filename", "msg_number", "series", "nframes", "shape", "type", "compression", "modules", "frame"]
KEYS += [
    "module",
    "timestamp",
    "discard",
    "chunks",
    "exptime",
    "save_raw",
    "overwrite",
    "detector",
    "frame_time",
    "",
    "a/b",
]
KEYS += ["image_id", "series_id", "data", "channels", "user_data", "number_of_images", "flatfield", "threshold_1"]
KEYS += ["encoding", "size", "header_detail", "start_time", "stop_time", "real_time", "nimages", "ntrigger"]
KEYS += [".", "..", "\0", "x" * 70000, "description", "sensor_material", "beam_center_x", "NX_class", "@x", "\ud800"]
TAGS = [0, 1, 2, 3, 28, 29, 40, 64, 65, 69, 76, 84, 85, 87, 1040, 55799, 56500, 2**64 - 1]  # of CBOR
LENGTHS = [0, 1, 12, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
DEEP = [64, 1000, 20_000]


def value(rng: Random, depth: int = 0) -> Any:
    """Anything that JSON can hold, and some that it should not."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind == 3:
        return rng.choice(TEXTS)
    if kind == 4:
        return rng.choice(SHAPES)
    if kind == 5:
        return rng.choice(NAMES)
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.randrange(5))}


def _value_for(rng: Random, key: str) -> Any:
    """Mostly of the kind that belongs there."""
    if rng.random() < 0.3:
        return value(rng)
    if key == "filename":
        return rng.choice(NAMES)
    if key in ("shape", "chunks"):
        return rng.choice(SHAPES)
    if key in ("htype", "type", "compression", "encoding", "header_detail"):
        return rng.choice(TEXTS)
    return rng.choice(NUMBERS[:12]) if rng.random() < 0.5 else rng.choice(NUMBERS)


def _json(rng: Random, held: Any) -> bytes:
    text = json.dumps(held, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.02:
        depth = rng.choice(DEEP)
        text = text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    return text.encode("utf-8", "surrogatepass")


def _change_values(rng: Random, part: bytes) -> bytes:
    """Other values, keys gone, keys added."""
    if part.startswith(b"\xd9\xd9\xf7"):
        return _change_cbor(rng, part)
    try:
        held = json.loads(part)
    except (ValueError, RecursionError):
        return _change_bytes(rng, part)
    if type(held) is not dict:
        return _json(rng, value(rng))
    return _json(rng, _changed_keys(rng, held))


def _change_cbor(rng: Random, part: bytes) -> bytes:
    """Also inside of what is in it, and deep, and with what JSON cannot hold."""
    try:
        whole = cbor2.loads(part)
        held = dict(whole) if hasattr(whole, "keys") else {"value": whole}
        inner = [key for key in held if hasattr(held[key], "keys")]
        if inner and rng.random() < 0.3:
            key = rng.choice(inner)
            held[key] = _changed_keys(rng, dict(held[key]))
        else:
            held = _changed_keys(rng, held)
        if rng.random() < 0.2:
            content = rng.choice(
                [value(rng), rng.randbytes(12), [[6, 10], value(rng)], ["bslz4", 2, rng.randbytes(30)]]
            )
            held[rng.choice([*held])] = cbor2.CBORTag(rng.choice(TAGS), content)
        data = cbor2.dumps(cbor2.CBORTag(55799, held))
    except (
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        cbor2.CBORError,
    ):  # cannot be read, or made
        return _change_bytes(rng, part)
    if rng.random() < 0.02:
        begin, depth = rng.choice([b"\x81", b"\x9f", b"\xc1", b"\xa1\x00"]), rng.choice(DEEP)
        data = data[:3] + b"\xa1\x64deep" + begin * depth
    return data


def _changed_keys(rng: Random, held: dict[Any, Any]) -> dict[Any, Any]:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if held and rng.random() < 0.6:
            key = rng.choice(list(held))
            if rng.random() < 0.15:
                del held[key]
            else:
                held[key] = _value_for(rng, key)
        else:
            key = rng.choice(KEYS)
            held[key] = _value_for(rng, key)
    return held


def _change_bytes(rng: Random, part: bytes) -> bytes:
    """Bits turned, bytes cut, put in, doubled; lengths and counts made huge."""
    data = bytearray(part)
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(7)
    if kind == 0 and data:
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.choice([1, 2, 4, 100]))
    elif kind == 3:
        data += data[at:]
    elif kind == 4:
        form = rng.choice([">I", "<I", ">Q", "<Q"])
        new = struct.pack(
            form, rng.choice(LENGTHS) if form[1] == "I" else rng.choice([*LENGTHS, 2**50, 2**63, 2**64 - 1])
        )
        at = rng.choice([0, 8, 12, at])
        data[at : at + len(new)] = new
    elif kind == 5:
        data = bytearray(rng.randbytes(rng.choice([0, 1, 4, 11, 12, 13, 64, 120])))
    elif (where := data.find(b":", data.find(rng.choice([b"X-Binary-Size", b"X-Binary-Size-Fastest"])))) > 0:
        digits = str(rng.choice([0, 1, 2**31, 2**40, 10**11, 10**15])).encode()
        data[where + 1 : where + rng.choice([1, 4])] = b" " + digits
    return bytes(data)


def _change_parts(rng: Random, parts: Parts, seeds: Sequence[Parts]) -> Parts:
    """Parts lost, doubled, swapped, taken from another message, thousands of them."""
    kind = rng.randrange(6)
    at = rng.randrange(len(parts)) if parts else 0
    if kind == 0 and parts:
        return parts[:at] + parts[at + 1 :]
    if kind == 1:
        return parts[:at] + parts[at : at + 1] * rng.choice([2, 3, 3, 1000]) + parts[at + 1 :]
    if kind == 2:
        return rng.sample(parts, len(parts))
    if kind == 3:
        return [*parts[:1], *rng.choice(seeds)[1:]]
    if kind == 4:
        return [*parts, *(rng.randbytes(rng.randrange(20)) for _ in range(rng.choice([1, 1, 2, 2000])))]
    return [b"" if k == at else part for k, part in enumerate(parts)]


def changed(rng: Random, parts: Parts, seeds: Sequence[Parts]) -> Parts:
    """One change."""
    kind = rng.random()
    if kind < 0.15 or not parts:
        return _change_parts(rng, parts, seeds)
    if kind < 0.6:
        return [_change_values(rng, parts[0]), *parts[1:]]
    at = rng.randrange(len(parts))
    how = _change_values if at and parts[at][:1] == b"{" else _change_bytes
    return [how(rng, part) if k == at else part for k, part in enumerate(parts)]


def message(rng: Random, seeds: Sequence[Parts]) -> Parts:
    """One message: good, changed once or several times, or random bytes."""
    kind = rng.random()
    if kind < 0.05:
        return [rng.randbytes(rng.choice([0, 1, 10, 100])) for _ in range(rng.choice([0, 1, 1, 2, 3, 10]))]
    parts = list(rng.choice(seeds))
    for _ in range(0 if kind < 0.2 else rng.choice([1, 1, 1, 2, 3])):
        parts = changed(rng, parts, seeds)
    return parts


def size(parts: Sequence[bytes]) -> int:
    return sum(map(len, parts))
