"""Dectris stream V2: messages as a control unit sends them, and as none should, up to the file."""

import random
import re
import struct
from collections import Counter
from itertools import count

import cbor2
import h5py
import numpy as np
import pytest
from cbor2 import CBORTag
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tangods_receiver import codecs
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, dectris2, recording
from tangods_receiver.protocol.__main__ import describe
from tangods_receiver.protocol.dectris2 import decode
from tangods_receiver.recovery import check
from tests.receiver import dectris2_messages as v2
from tests.receiver import disturbed
from tests.receiver.dectris2_messages import THRESHOLDS
from tests.receiver.streaming import DATASET, Sender, running, wait_closed, wait_opened
from tests.waiting import wait_for

SHAPE = (6, 10)
TYPES = ("uint8", "uint16", "uint32")
GROUP = "entry/instrument/detector"


def image(number, channel=0, dtype="uint16", shape=SHAPE):
    """Pixels that tell which they are."""
    return (np.arange(np.prod(shape)).reshape(shape) + 7 * number + 101 * channel).astype(dtype)


def images(number, channels, dtype="uint16", shape=SHAPE):
    return {name: image(number, k, dtype, shape) for k, name in enumerate(THRESHOLDS[:channels])}


def pixels(frame):
    """Of all its modules."""
    return [codecs.decompress(frame.codec, part, frame.shape, frame.dtype) for part in (frame.data, *frame.more)]


def started(message):
    found = decode(message)
    assert isinstance(found, SeriesStart)
    return found


def framed(message):
    found = decode(message)
    assert isinstance(found, Frame)
    return found


def numbers(array):
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


# --- byte for byte ---------------------------------------------------------------------------------------------------

HEAD = (  # of an image as a control unit sent it
    "d9d9f7aa 647479706565696d616765 697365726965735f696401"  # type: image, series_id: 1
    "707365726965735f756e697175655f6964781a3031475258575438304a53445932464e573853474343445a4439"  # series_unique_id
    "68696d6167655f696401 697265616c5f74696d65821a000f423b1a02faf080"  # image_id: 1, real_time: [999995, 50000000]
    "6b7365726965735f64617465c0781d323032332d30322d31305431353a34393a30352e3238312b30313a3030"  # series_date
    "6a73746172745f74696d65821a000f42401a02faf080"  # start_time: [1000000, 50000000]
    "6973746f705f74696d65821a001e847b1a02faf080"  # stop_time: [1999995, 50000000]
    "69757365725f64617461820164f09f9299"  # user_data: [1, "\N{BLUE HEART}"]
    "6464617461a1 6b7468726573686f6c645f31 d82882 82060a d845"  # data: {threshold_1: 40([[6, 10], 69(
)
UNIQUE = "01GRXWT80JSDY2FNW8SGCCDZD9"
CHUNK = bytes.fromhex("000000000000007800002000") + b"some compressed bytes"


@pytest.mark.parametrize(
    ("tail", "codec", "payload"),
    [
        ("5878" + image(1).tobytes().hex(), "none", image(1).tobytes()),
        ("d9dcb4 8365 62736c7a34 02 5821" + CHUNK.hex(), "bslz4", CHUNK),
        ("d9dcb4 8363 6c7a34 00 5821" + CHUNK.hex(), "lz4", CHUNK),
    ],
)
def test_golden_images(tail, codec, payload):
    frame = framed([bytes.fromhex(HEAD + tail)])
    extra = {"user_data": [1, "\N{BLUE HEART}"], "channels": ("threshold_1",), "series_unique_id": UNIQUE}
    extra |= {"series_date": "2023-02-10T15:49:05.281+01:00"}
    assert frame[:4] == (1, SHAPE, "uint16", codec) and frame.data == payload
    assert (frame.module, frame.series, frame.serial, frame.more, frame.discard) == (0, 1, None, (), False)
    assert (frame.timestamp, frame.times, dict(frame.extra)) == (0.02, (0.0399999, 0.0199999), extra)


def test_golden_end():
    head = "d9d9f7a3 6474797065 63656e64 697365726965735f69640e 707365726965735f756e697175655f6964 6161"
    assert decode([bytes.fromhex(head)]) == SeriesEnd(series=14, unique="a")


def test_the_messages_of_these_tests_are_such():
    """The same bytes as the real ones."""
    plain = bytes.fromhex(HEAD + "5878") + image(1).tobytes()
    times = {"real_time": [999995, v2.CLOCK], "start_time": [1000000, v2.CLOCK], "stop_time": [1999995, v2.CLOCK]}
    date = CBORTag(0, "2023-02-10T15:49:05.281+01:00")
    heart = [1, "\N{BLUE HEART}"]
    made = v2.image(1, 1, image(1), "none", user_data=heart, series_unique_id=UNIQUE, series_date=date, **times)
    assert made == [plain]
    assert v2.message({"type": "start", "half": 1.5, "single": 100000.0, "double": 1.1}) == [
        bytes.fromhex("d9d9f7a4 6474797065 657374617274 6468616c66f93e00 6673696e676c65fa47c35000")
        + bytes.fromhex("66646f75626c65fb3ff199999999999a")
    ]


def test_no_tag_in_front():
    assert decode([v2.end(3)[0][3:]]) == SeriesEnd(series=3, unique=v2.UNIQUE)
    assert decode(v2.end(3, series_unique_id=...)) == decode(v2.end(3, series_unique_id=5)) == SeriesEnd(series=3)


# --- start -----------------------------------------------------------------------------------------------------------


def test_start_of_one_threshold():
    start = started(v2.start(16, SHAPE, nimages=300))
    detector = start.metadata["detector"]
    assert (start.filename, start.series, start.nframes, start.serial, start.save) == ("", 16, 300, None, True)
    assert (start.shape, start.dtype, start.codec, start.modules, start.channels) == (SHAPE, "uint16", None, 1, ())
    assert (start.arrays, start.relative, start.times) == ({}, False, True)
    assert (start.unique, start.remarks) == (v2.UNIQUE, ())
    assert detector["arm_date"] == "2024-03-07T10:14:53.853+01:00"
    assert detector["threshold_energy"] == {"threshold_1": 4020.5} and detector["channels"] == ["threshold_1"]
    assert detector["detector_translation"] == [0.0, 0.0, -0.25] and detector["series_unique_id"] == v2.UNIQUE
    assert detector["goniometer"]["omega"] == {"increment": 0.0, "start": 0.0}
    sent = cbor2.loads(v2.start(16, SHAPE)[0])
    assert {*detector} == {*sent} - {"type"}


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_start_with_all_arrays(channels, dtype):
    start = started(v2.start(1, SHAPE, "all", channels=channels, dtype=dtype))
    names = THRESHOLDS[:channels]
    assert (start.dtype, start.modules) == (dtype, channels)
    assert start.channels == (names if channels > 1 else ())
    prefix = [f"{name}/" for name in names] if channels > 1 else [""]
    table = {"countrate_correction_lookup_table"}
    assert {*start.arrays} == table | {f"{p}{what}" for p in prefix for what in ("flatfield", "pixel_mask")}
    for k, p in enumerate(prefix):
        assert (numbers(start.arrays[f"{p}flatfield"]) == v2.flatfield(SHAPE, k)).all()
        assert (numbers(start.arrays[f"{p}pixel_mask"]) == v2.pixel_mask(SHAPE, k)).all()
    assert (numbers(start.arrays["countrate_correction_lookup_table"]) == v2.lookup_table()).all()
    assert not {"flatfield", "pixel_mask", *table} & {*start.metadata["detector"]}


def test_channels_in_our_order():
    start = started(v2.start(1, SHAPE, "all", channels=("difference", "threshold_10", "threshold_2")))
    assert start.channels == ("threshold_2", "threshold_10", "difference")
    assert (numbers(start.arrays["threshold_2/flatfield"]) == v2.flatfield(SHAPE, 2)).all()


def test_arrays_of_a_threshold_that_is_off():
    """The only one that is on has the plain names."""
    both = v2.by_channel(THRESHOLDS[:2], lambda k: v2.array(v2.pixel_mask(SHAPE, k)))
    start = started(v2.start(1, SHAPE, channels=("threshold_2",), pixel_mask=both))
    assert {*start.arrays} == {"threshold_1/pixel_mask", "pixel_mask"} and start.modules == 1
    assert (numbers(start.arrays["pixel_mask"]) == v2.pixel_mask(SHAPE, 1)).all()
    start = started(v2.message({"type": "start", "series_id": 1, "pixel_mask": v2.array(v2.pixel_mask(SHAPE))}))
    assert {*start.arrays} == {"pixel_mask"}


def test_start_that_says_little():
    start = started(v2.message({"type": "start", "series_id": 0}))
    assert start == SeriesStart("", series=0, metadata={"detector": {"series_id": 0}}, times=True)


@pytest.mark.parametrize(
    ("sent", "filename", "nframes", "save", "kept"),
    [
        (..., "", 10, True, {}),
        (None, "", 10, True, {}),
        ("", "", 10, True, {}),
        ('{"filename": "a/b.h5"}', "a/b.h5", 10, True, {}),
        ({"filename": "a/b.h5"}, "a/b.h5", 10, True, {}),
        ({"filename": "a.h5", "nframes": 7, "label": "x"}, "a.h5", 7, True, {"label": "x"}),
        ('{"filename": "a.h5", "save_raw": false}', "a.h5", 10, False, {"save_raw": False}),
        ({"save_raw": 0, "list": [1, {"a": None}]}, "", 10, False, {"save_raw": 0, "list": [1, {"a": None}]}),
        ("Saturday", "", 10, True, {"appendix": "Saturday"}),
        ("{broken", "", 10, True, {"appendix": "{broken"}),
        ([1, "two"], "", 10, True, {"appendix": [1, "two"]}),
        (12.5, "", 10, True, {"appendix": 12.5}),
        ({"raw": b"\1\2"}, "", 10, True, {"raw": "0102"}),
        ({"when": CBORTag(0, "2024-03-07T10:14:53Z")}, "", 10, True, {"when": "2024-03-07T10:14:53Z"}),
        ({"odd": CBORTag(9999, [1, b"\xff"])}, "", 10, True, {"odd": {"tag": 9999, "value": [1, "ff"]}}),
        ({"big": 2**70, "small": -(2**70)}, "", 10, True, {"big": 2**70, "small": -(2**70)}),
        (
            {"nothing": cbor2.undefined, 5: cbor2.CBORSimpleValue(99)},
            "",
            10,
            True,
            {"nothing": None, "5": {"simple": 99}},
        ),
    ],
)
def test_user_data(sent, filename, nframes, save, kept):
    start = started(v2.start(1, SHAPE, user_data=sent))
    assert (start.filename, start.nframes, start.save) == (filename, nframes, save)
    assert {key: value for key, value in start.metadata.items() if key != "detector"} == kept


def test_what_the_user_says_of_the_detector_goes_first():
    metadata = started(v2.start(1, SHAPE, user_data={"detector": {"beam_center_x": 1.5, "note": "x"}})).metadata
    assert (metadata["detector"]["beam_center_x"], metadata["detector"]["note"]) == (1.5, "x")
    assert metadata["detector"]["beam_center_y"] == 3.0
    assert started(v2.start(1, SHAPE, user_data={"detector": "E1"})).metadata["appendix_detector"] == "E1"


@pytest.mark.parametrize("count", [2**41, 2**63 - 1])
def test_more_images_than_anybody_waits_for(count):
    assert started(v2.start(1, SHAPE, nimages=count)).nframes is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"series_id": ...}, "start message: no series_id"),
        ({"series_id": -1}, "series_id is -1"),
        ({"series_id": "7"}, "series_id is '7'"),
        ({"series_id": 2**63}, "series_id is 9223372036854775808"),
        ({"number_of_images": -5}, "number_of_images is -5"),
        ({"number_of_images": 1.5}, "number_of_images is 1.5"),
        ({"image_size_x": 0}, r"image_size_x are \[6, 0\]"),
        ({"image_size_y": "6"}, r"are \['6', 10\]"),
        ({"image_size_x": 2**29, "image_size_y": 2**29}, "bytes, more than"),
        ({"channels": [1]}, "a channel is named 1"),
        ({"channels": ["a/b"]}, "a channel is named 'a/b'"),
        ({"channels": [".."]}, "a channel is named"),
        ({"channels": ["x" * 65]}, "a channel is named"),
        ({"channels": ["a", "a"]}, "the same twice"),
        ({"channels": [f"threshold_{n}" for n in range(17)]}, "17 channels, more than 16"),
        ({"user_data": {"filename": 5}}, "header_appendix: filename is 5"),
        ({"user_data": '{"filename": null}'}, "filename is None"),
        ({"user_data": {"nframes": -1}}, "nframes is -1"),
        ({"user_data": {"nframes": True}}, "nframes is True"),
    ],
)
def test_starts_refused(changed, sentence):
    with pytest.raises(StreamError, match=sentence):
        decode(v2.start(1, SHAPE, **changed))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"flatfield": {"threshold_1": 5}}, "flatfield of 'threshold_1' of the start .* is not stored: 5 is no array"),
        ({"flatfield": {"a/b": v2.array(image(0)), "threshold_1": v2.array(image(0))}}, "a channel is named 'a/b'"),
        ({"flatfield": {"threshold_1": CBORTag(40, [[2, 2], CBORTag(69, b"123")])}}, "3 bytes, 8 expected"),
        ({"flatfield": {"threshold_1": CBORTag(40, [[1], CBORTag(87, bytes(16))])}}, "tag 87 is no typed array"),
        ({"pixel_mask": {"threshold_1": CBORTag(40, [[9], CBORTag(84, b"12")])}}, "2 bytes, 18 expected"),
        ({"pixel_mask": CBORTag(84, CBORTag(56500, ["lz4", 0, b"123"]))}, "shape is|cannot hold"),
        ({"pixel_mask": CBORTag(69, 5)}, "is no array"),
        ({"pixel_mask": CBORTag(69, b"")}, r"shape is \[0\]"),
        ({"pixel_mask": CBORTag(69, CBORTag(56500, ["lz4", 0, b"123"]))}, "shape is|cannot hold"),
        (
            {"pixel_mask": CBORTag(69, CBORTag(56500, ["lz4", 0, bytes(7) + b"\x08" + bytes(30)]))},
            "lz4: blocks of 0 bytes",
        ),
        ({"pixel_mask": CBORTag(69, CBORTag(56500, ["bslz4", 2, b"\0\0\0\0\3" + bytes(30)]))}, "cannot hold|more than"),
        ({"pixel_mask": CBORTag(69, CBORTag(56500, ["zip", 2, b"1"]))}, "compression is 'zip'"),
        ({"pixel_mask": CBORTag(69, CBORTag(56500, 1))}, "neither a byte string nor tag 56500"),
    ],
)
def test_an_array_that_cannot_be_read_does_not_lose_the_series(changed, sentence):
    start = started(v2.start(1, SHAPE, "all", {"filename": "a.h5"}, **changed))
    assert len(start.remarks) == 1 and re.search(sentence, start.remarks[0]) and len(start.remarks[0]) < 300
    kept = {"flatfield", "pixel_mask", "countrate_correction_lookup_table"} - {*changed}
    assert kept <= {*start.arrays} and start.filename == "a.h5"


def test_many_arrays_that_cannot_be_read():
    flatfield = {f"threshold_{n}": 5 for n in range(1000)}
    assert len(started(v2.start(1, SHAPE, flatfield=flatfield)).remarks) == 10


@pytest.mark.parametrize("kind", ["<f2", ">f2"])
@pytest.mark.parametrize("encoding", ["none", "bslz4", "lz4"])
def test_a_flat_field_of_half_precision(kind, encoding):
    """Kept as float32, in which each of its numbers is exact."""
    sent = (1 + np.arange(60).reshape(SHAPE) / 64).astype(kind)
    content = v2.compressed(sent.view(np.uint16), encoding)
    array = CBORTag(40, [list(SHAPE), CBORTag(v2.TYPES[kind], content)])
    start = started(v2.start(1, SHAPE, flatfield={"threshold_1": array}))
    if ">" in kind and encoding != "none":
        assert not start.arrays and "big-endian" in start.remarks[0]
        return
    assert (start.arrays["flatfield"].dtype, start.remarks) == ("float32", ())
    assert (numbers(start.arrays["flatfield"]) == sent).all()
    row = started(v2.start(1, SHAPE, countrate_correction_lookup_table=CBORTag(v2.TYPES[kind], content)))
    assert (numbers(row.arrays["countrate_correction_lookup_table"]) == sent.ravel()).all()


def test_nobody_arms_for_no_images():
    assert started(v2.start(1, SHAPE, nimages=0)).nframes is None
    assert started(v2.start(1, SHAPE, nimages=0, user_data={"nframes": 0})).nframes == 0


def test_channels_that_are_no_list():
    with pytest.raises(StreamError, match="channels is 'threshold_1', not a list of names"):
        decode(v2.message({"type": "start", "series_id": 1, "channels": "threshold_1"}))


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", v2.ENCODINGS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images(encoding, dtype, channels):
    sent = images(3, channels, dtype, (70, 100))  # several blocks, the last one not full
    message = v2.image(9, 3, sent, encoding)
    frame = framed(message)
    assert frame[:4] == (3, (70, 100), dtype, encoding) and frame.series == 9
    assert frame.extra == v2.said(channels=THRESHOLDS[:channels])
    for found, name in zip(pixels(frame), sent, strict=True):
        assert (found == sent[name]).all()
    for part in (frame.data, *frame.more):
        assert isinstance(part, memoryview) and part.obj is message[0], "not copied"


@pytest.mark.parametrize("kind", [kind for kind in v2.TYPES if kind[1:] != "f2"])
@pytest.mark.parametrize("columns_first", [False, True])
def test_numbers_in_any_order(kind, columns_first):
    """Plain ones become little-endian and rows first; compressed ones would have to be compressed anew."""
    sent = (np.arange(60).reshape(SHAPE) * 3 + 1).astype(kind)
    flat = sent.ravel("F" if columns_first else "C")
    tag = CBORTag(1040 if columns_first else 40, [list(SHAPE), v2.typed(flat)])
    frame = framed(v2.image(1, 0, None, data={"threshold_1": tag}))
    assert frame.dtype == np.dtype(kind).name and len(frame.data) == sent.nbytes
    assert (pixels(frame)[0] == sent).all()
    mask = numbers(started(v2.start(1, SHAPE, pixel_mask={"threshold_1": tag})).arrays["pixel_mask"])
    assert (mask == sent).all()
    if columns_first or (">" in kind and sent.itemsize > 1):
        packed = CBORTag(tag.tag, [list(SHAPE), v2.typed(flat, "lz4")])
        with pytest.raises(StreamError, match="lz4 of numbers that are big-endian or columns first"):
            decode(v2.image(1, 0, None, data={"threshold_1": packed}))


def test_clamped_bytes_are_bytes():
    tag = CBORTag(40, [list(SHAPE), CBORTag(68, image(1, dtype="uint8").tobytes())])
    assert (pixels(framed(v2.image(1, 0, None, data={"threshold_1": tag})))[0] == image(1, dtype="uint8")).all()


def test_lz4_in_one_block():
    """As the control unit sends it: blocks of more bytes than there are."""
    raw = np.ascontiguousarray(image(1, shape=(70, 100))).reshape(-1).view(np.uint8)
    tag = CBORTag(40, [[70, 100], CBORTag(69, CBORTag(56500, ["lz4", 0, v2.lz4_chunk(raw, 0x144D7102)]))])
    assert (pixels(framed(v2.image(1, 0, None, data={"threshold_1": tag})))[0] == image(1, shape=(70, 100))).all()


def test_thresholds_in_another_order_are_the_same_modules():
    sent = images(2, 3)
    for names in (THRESHOLDS, THRESHOLDS[::-1], ("threshold_2", "difference", "threshold_1")):
        frame = framed(v2.image(1, 2, {name: sent[name] for name in names}))
        assert frame.extra["channels"] == THRESHOLDS
        assert all((found == image(2, k)).all() for k, found in enumerate(pixels(frame)))


def test_what_nobody_knows_is_kept():
    frame = framed(v2.image(1, 2, image(2), user_data={"angle": 1.5}, new_key=CBORTag(0, "today"), channels="?"))
    assert frame.extra == v2.said(user_data={"angle": 1.5}, new_key="today", channels=("threshold_1",))
    frame = framed(v2.image(1, 2, image(2), series_date=..., series_unique_id=7))
    assert frame.extra == {"channels": ("threshold_1",)}


@pytest.mark.parametrize(
    ("changed", "timestamp", "times"),
    [
        ({}, 0.002, (0.0029999, 0.00099988)),
        ({"start_time": [0, 1]}, 0.0, (0.0029999, 0.00099988)),
        ({"start_time": ...}, None, (0.0029999, 0.00099988)),
        ({"stop_time": ..., "real_time": ...}, 0.002, None),
        ({"start_time": [2**64 - 1, 2**64 - 1]}, 1.0, (0.0029999, 0.00099988)),
    ],
)
def test_times(changed, timestamp, times):
    frame = framed(v2.image(1, 2, image(2), **changed))
    assert (frame.timestamp, frame.times) == (timestamp, times)


def test_times_of_a_clock_that_does_not_run():
    frame = framed(v2.image(1, 2, image(2), start_time=[0, 0], stop_time=[0, 0]))
    assert np.isnan([frame.timestamp, frame.times.stop]).all() and frame.times.real == 0.00099988


def test_some_times():
    times = framed(v2.image(1, 2, image(2), real_time=...)).times
    assert times.stop == 0.0029999 and np.isnan(times.real)
    times = framed(v2.image(1, 2, image(2), stop_time=...)).times
    assert np.isnan(times.stop) and times.real == 0.00099988


def one(content, shape=SHAPE, tag=40, kind=69):
    return {"threshold_1": CBORTag(tag, [shape if isinstance(shape, list) else list(shape), CBORTag(kind, content)])}


def packed(algorithm, size, data=CHUNK):
    return CBORTag(56500, [algorithm, size, data])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"image_id": ...}, "image_id is None"),
        ({"image_id": -1}, "image_id is -1"),
        ({"image_id": True}, "image_id is True"),
        ({"image_id": 2**63}, "image_id is 9223372036854775808"),
        ({"series_id": ...}, "image 4: no series_id"),
        ({"series_id": True}, "image 4: series_id is True"),
        ({"series_id": 2**63}, "image 4: series_id is"),
        ({"data": None}, "image 4: data is None"),
        ({"data": {}}, "data is {}"),
        ({"data": [1]}, r"data is \[1\], not a map"),
        ({"data": {"threshold_1": 5}}, "threshold_1: 5 is no array"),
        ({"data": {"threshold_1": [40, [[6, 10], [69, b"1"]]]}}, "is no array"),
        ({"data": {"threshold_1": CBORTag(40, [[6, 10]])}}, "is no array"),
        ({"data": {"threshold_1": CBORTag(40, [[6, 10], [1, 2, 3]])}}, "is no array"),
        ({"data": {"threshold_1": CBORTag(40, b"12")}}, "is no array"),
        ({"data": {"a b": 1}}, "a channel is named 'a b'"),
        ({"data": {7: 1}}, "a channel is named 7"),
        ({"data": {f"c{k}": 1 for k in range(17)}}, "17 channels"),
        ({"data": one(bytes(119))}, "image 4: 119 bytes of pixels, 120 expected"),
        ({"data": one(bytes(121))}, "121 bytes of pixels, 120 expected"),
        ({"data": one(bytes(120), tag=41)}, "tag 41 is no array with a shape"),
        ({"data": one(bytes(120), kind=76)}, "tag 76 is no typed array of a known type"),
        ({"data": one(bytes(120), kind=84)}, "tag 84 is no typed array"),
        ({"data": one(bytes(120), kind=87)}, "tag 87"),
        ({"data": one(5)}, "is no array"),
        ({"data": one("text")}, "is no array"),
        ({"data": one(bytes(120), [60])}, r"shape is \[60\], not \[rows, columns\]"),
        ({"data": one(bytes(120), [1, 6, 10])}, r"shape is \[1, 6, 10\]"),
        ({"data": one(bytes(120), [])}, r"shape is \[\]"),
        ({"data": one(bytes(120), [0, 10])}, r"shape is \[0, 10\]"),
        ({"data": one(bytes(120), [-6, -10])}, r"shape is \[-6, -10\]"),
        ({"data": one(bytes(120), [6.0, 10.0])}, r"shape is \[6.0, 10.0\]"),
        ({"data": one(bytes(120), [True, 60])}, r"shape is \[True, 60\]"),
        ({"data": one(bytes(120), [[6], 10])}, r"shape is \[\[6\], 10\]"),
        ({"data": one(bytes(120), [2**20, 2**20])}, "bytes, more than 1073741824"),
        ({"data": one(packed("bslz4", 4))}, "bslz4 of 4 bytes a number, uint16 has 2"),
        ({"data": one(packed("bslz4", "2"))}, "tag 56500 of .* not .algorithm"),
        ({"data": one(packed(4, 2))}, "tag 56500 of"),
        ({"data": one(packed("bslz4", 2, "text"))}, "tag 56500 of"),
        ({"data": one(CBORTag(56500, ["bslz4", CHUNK]))}, "neither a byte string nor tag 56500 of three values"),
        ({"data": one(CBORTag(56501, ["bslz4", 2, CHUNK]))}, "neither a byte string nor tag 56500"),
        ({"data": one(packed("bszstd", 2))}, "compression is 'bszstd', known are bslz4, lz4"),
        ({"data": one(packed("bslz4", 2, b""))}, "0 bytes of bslz4"),
        ({"data": one(packed("bslz4", 2, b"short"))}, "less than its header"),
        ({"data": one(packed("bslz4", 2, b"\0" + CHUNK))}, "bslz4 header says 0 bytes"),
        ({"data": one(packed("lz4", 2, b"\0" * 70000))}, "70000 bytes of lz4 for an image of 120"),
        ({"start_time": 5}, r"start_time is 5, not \[numerator, denominator\]"),
        ({"start_time": [1, -1]}, "start_time is"),
        ({"start_time": [1.5, 1]}, "start_time is"),
        ({"stop_time": [1, True]}, "stop_time is"),
        ({"stop_time": [2**70, 1]}, "stop_time is"),
        ({"real_time": [1, 2, 3]}, "real_time is"),
    ],
)
def test_images_refused(changed, sentence):
    with pytest.raises(StreamError, match=sentence) as refused:
        decode(v2.image(1, 4, image(4), **changed))
    assert len(str(refused.value)) < 500


def test_refused_again_when_one_like_it_was_taken():
    """What was checked is remembered; what is only equal to it is not the same."""
    decode(v2.image(1, 4, None, data=one(image(4).tobytes(), [6, 10])))
    for shape in ([6.0, 10], [6, 10.0]):
        with pytest.raises(StreamError, match="shape is"):
            decode(v2.image(1, 4, None, data=one(image(4).tobytes(), shape)))
    decode(v2.image(1, 4, None, data=one(bytes(1), [1, 1], kind=64)))
    with pytest.raises(StreamError, match="shape is"):
        decode(v2.image(1, 4, None, data=one(bytes(1), [True, True], kind=64)))


def test_layouts_that_are_remembered_are_few():
    for rows in range(1, 250):
        assert framed(v2.image(1, 0, image(0, shape=(rows, 2)), "none")).shape == (rows, 2)
        assert framed(v2.image(1, 0, {f"threshold_{rows}": image(0)}, "none")).extra["channels"] == (
            f"threshold_{rows}",
        )
    assert len(dectris2._layouts) <= 101 and len(dectris2._extras) <= 101


def test_thresholds_that_differ():
    with pytest.raises(
        StreamError, match="threshold_2 is .*uint32.*threshold_1 is .*uint16.* do not fit into one file"
    ):
        decode(v2.image(1, 0, {"threshold_1": image(0), "threshold_2": image(0, dtype="uint32")}))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([], "0 parts, stream V2 has one"),
        ([b'{"htype":"dheader-1.0","series":1,"header_detail":"basic"}', b"{}"], "2 parts.*'cbor'"),
        ([b'{"htype":"dseries_end-1.0","series":1}'], "CBOR: "),
        ([b""], "cut short"),
        ([b"\x01"], "a CBOR int, not a map.*'cbor'"),
        ([b"\xd9\xd9\xf7\x80"], "a CBOR list, not a map"),
        ([b"\xc1\xa0"], "a CBOR Tag, not a map"),
        ([b"\xa0"], "type is None, not 'start', 'image' or 'end'"),
        (v2.message({"type": "Image"}), "type is 'Image'"),
        (v2.message({"type": "end"}), "end message: no series_id"),
        (v2.message({"type": "end", "series_id": 1.0}), "end message: series_id is 1.0"),
    ],
)
def test_messages_refused(parts, sentence):
    with pytest.raises(StreamError, match=sentence):
        decode(parts)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**40),
    st.integers(0, 2**60),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(TYPES),
    st.sampled_from(v2.ENCODINGS),
    st.permutations(THRESHOLDS).flatmap(lambda names: st.integers(1, 3).map(lambda n: names[:n])),
)
def test_what_is_sent_is_found(number, series, shape, dtype, encoding, names):
    sent = {name: image(number % 1000, THRESHOLDS.index(name), dtype, shape) for name in names}
    frame = framed(v2.image(series, number, sent, encoding, period=1e-9))
    assert (frame.number, frame.series, frame.shape, frame.dtype, frame.codec) == (
        number,
        series,
        shape,
        dtype,
        encoding,
    )
    assert frame.extra["channels"] == tuple(sorted(names, key=THRESHOLDS.index))
    for name, found in zip(frame.extra["channels"], pixels(frame), strict=True):
        assert (found == sent[name]).all()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["start", "image"]), st.data())
def test_only_stream_errors(kind, data):
    """Bytes turned, cut out, put in."""
    whole = (v2.start(1, SHAPE, "all", {"filename": "a.h5"}) if kind == "start" else v2.image(1, 2, images(2, 2)))[0]
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(changed) - 1, 1500)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        decode([bytes(changed)])
    except StreamError as exc:
        assert 0 < len(str(exc)) < 600


# --- images like those before ----------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is remembered."""
    monkeypatch.setattr(dectris2, "_known", ())
    monkeypatch.setattr(dectris2, "_seen", Counter())


def remembered(message):
    """What is made of it by comparison alone; None: nothing."""
    found = [frame for known in dectris2._known if (frame := known.frame(memoryview(message[0]))) is not None]
    return found[0] if found else None


def told(frame):
    """All of a frame, to be compared."""
    data = [bytes(part) for part in (frame.data, *frame.more)]
    return frame._replace(data=b"", more=(), extra=dict(frame.extra)), data


kinds = {
    "encoding": st.sampled_from(v2.ENCODINGS),
    "names": st.permutations(THRESHOLDS).flatmap(lambda names: st.integers(1, 3).map(lambda n: names[:n])),
    "dtype": st.sampled_from(TYPES),
    "data_first": st.booleans(),
    "more": st.sampled_from([{}, {"user_data": "a"}, {"user_data": {"a": [1.5, None]}}, {"new": CBORTag(9999, 2)}]),
}


def like(number, kind):
    """An image of this kind."""
    sent = {name: image(number % 1000, THRESHOLDS.index(name), kind["dtype"]) for name in kind["names"]}
    return v2.image(5, number, sent, kind["encoding"], data_first=kind["data_first"], **kind["more"])


def learned(kind):
    """The third image of a kind is known."""
    dectris2._known, dectris2._seen = (), Counter()
    decode(like(1, kind))
    assert remembered(like(2, kind)) is None
    decode(like(1000, kind))
    assert remembered(like(2, kind)) is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries(kinds), st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_known_images_are_read_alike(fresh, kind, numbers):
    """By comparison and by the reader: the same frames, whatever the length of their numbers and pixels."""
    learned(kind)
    for number in numbers:
        message = v2.image(
            *(5, number, {name: image(number % 1000, 0, kind["dtype"]) for name in kind["names"]}, kind["encoding"]),
            data_first=kind["data_first"],
            start_time=[number, v2.CLOCK],
            stop_time=[2 * number, v2.CLOCK],
            real_time=[number % 300, v2.CLOCK],
            **kind["more"],
        )
        found = remembered(message)
        assert found is not None and told(found) == told(dectris2._decoded(memoryview(message[0])))
        assert told(decode(message)) == told(found)
        assert all(part.obj is message[0] for part in (found.data, *found.more)), "not copied"


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fixed_dictionaries(kinds), st.data())
def test_what_is_not_like_them_is_left_to_the_reader(fresh, kind, data):
    """Of messages cut, with bytes turned, cut out, put in: what is known makes the same of them, or nothing."""
    learned(kind)
    changed = bytearray(like(data.draw(st.sampled_from([3, 500, 2**40])), kind)[0])
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    message = [bytes(changed[: data.draw(st.sampled_from([None, None, len(changed) // 2]))])]
    found = remembered(message)
    try:
        expected = dectris2._decoded(memoryview(message[0]))
    except StreamError:
        assert found is None
        return
    if found is not None:
        assert told(found) == told(expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"image_id": 2**63},
        {"image_id": -1},
        {"start_time": [-1, v2.CLOCK]},
        {"start_time": [1, v2.CLOCK + 1]},
        {"stop_time": [1.5, v2.CLOCK]},
        {"series_unique_id": UNIQUE},
        {"series_id": 6},
        {"series_date": CBORTag(0, "2025-03-07T10:14:53.853+01:00")},
        {"user_data": "other"},
        {"real_time": ...},
        {"data": None},
    ],
)
def test_what_is_another_kind(fresh, changed):
    kind = {"names": THRESHOLDS[:1], "encoding": "bslz4", "dtype": "uint16", "data_first": False, "more": {}}
    learned(kind)
    assert remembered(v2.image(5, 7, image(7))) is not None
    assert remembered(v2.image(5, 7, image(7), **changed)) is None


def test_known_images_whose_pixels_cannot_be_an_image(fresh):
    for encoding in v2.ENCODINGS:
        kind = {"names": THRESHOLDS[:1], "encoding": encoding, "dtype": "uint16", "data_first": False, "more": {}}
        learned(kind)
        for content in (bytes(11), bytes(119), bytes(70000), struct.pack(">QI", 119, 8192) + bytes(50)):
            size = 2 if encoding == "bslz4" else 0
            held = content if encoding == "none" else CBORTag(56500, [encoding, size, content])
            message = v2.image(5, 7, None, data={"threshold_1": CBORTag(40, [list(SHAPE), CBORTag(69, held)])})
            found = remembered(message)
            if found is not None:
                assert encoding == "lz4" and told(found) == told(dectris2._decoded(memoryview(message[0])))


def test_few_are_remembered(fresh):
    """As many as detectors send here; images that all differ are remembered never."""
    for series in range(50):
        for number in range(3):
            decode(v2.image(series, number, image(number)))
    assert len(dectris2._known) == 4 and remembered(v2.image(49, 9, image(9))) is not None
    dectris2._known = ()
    for number in range(500):
        decode(v2.image(1, number, image(number), user_data={"angle": number}))
        decode(v2.image(1, number, image(number), user_data="x" * 5000))
        decode(v2.image(1, number, image(number), series_date="x" * 5000))
    assert dectris2._known == () and len(dectris2._seen) <= 101


def test_messages_in_pieces_are_not_remembered(fresh):
    """Of strings and lists of unknown length the bytes tell little."""
    whole = v2.image(1, 3, image(3), "none")[0]
    plain = image(3).tobytes()
    pieces = whole.replace(b"\x58\x78" + plain, b"\x5f\x58\x3c" + plain[:60] + b"\x58\x3c" + plain[60:] + b"\xff")
    for _ in range(4):
        assert (pixels(framed([pieces]))[0] == image(3)).all()
    assert dectris2._known == ()


# --- from the socket to the file -------------------------------------------------------------------------------------


class ControlUnit(Sender):
    """Sends stream V2; nothing of it has a message number."""

    def take(self, filename, sent, series=1, *, end=True, user_data=None, **optional):
        """Start, these image messages, end."""
        user_data = {"filename": str(filename)} if user_data is None else user_data
        self.parts(v2.start(series, SHAPE, user_data=user_data, **optional))
        for message in sent:
            self.parts(message)
        if end:
            self.parts(v2.end(series))


@pytest.fixture
def unit():
    with ControlUnit() as unit:
        yield unit


def messages(numbers, channels=1, series=1, encoding="bslz4", dtype="uint16"):
    return [v2.image(series, n, images(n, channels, dtype), encoding) for n in numbers]


def planes(path, channels):
    """Of each threshold all images."""
    assert check(path).ok, check(path).problems
    with h5py.File(path) as file:
        data = file[DATASET][()]
    return [data] if channels == 1 else [data[:, k] for k in range(channels)]


def holds(path, numbers, channels=1, length=None, dtype="uint16"):
    """Just these images, each where it belongs."""
    for k, data in enumerate(planes(path, channels)):
        assert len(data) == (length or len(numbers)) and data.dtype == dtype
        for number, found in enumerate(data):
            assert (found == (image(number, k, dtype) if number in numbers else 0)).all(), (
                f"image {number}, channel {k}"
            )
    return True


def value(path, name):
    with h5py.File(path) as file:
        return file[f"{GROUP}/{name}"][()]


@pytest.mark.parametrize("encoding", v2.ENCODINGS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_series_as_it_was_sent(tmp_path, unit, encoding, dtype, channels):
    """What was compressed is in the file byte for byte."""
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        sent = messages(range(4), channels, encoding=encoding, dtype=dtype)
        unit.take("a.h5", sent, channels=channels, nimages=4, dtype=dtype)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.error) == (4 * channels, 0, "")
    path = tmp_path / "a.h5"
    assert holds(path, range(4), channels, dtype=dtype)
    with h5py.File(path) as file:
        data = file[DATASET]
        assert data.shape == (4, *[channels] * (channels > 1), *SHAPE)
        for number in range(4):
            for k in range(channels):
                where = (number, *[k] * (channels > 1), 0, 0)
                blob = v2.blob(image(number, k, dtype), encoding)
                assert data.id.read_direct_chunk(where) == (0, blob)


@pytest.mark.parametrize(
    "user_data", ['{"filename": "a.h5", "label": "sample 7"}', {"filename": "a.h5", "label": "sample 7"}]
)
def test_what_the_start_says_is_in_the_file(tmp_path, unit, user_data):
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("", messages(range(3)), detail="all", user_data=user_data, nimages=3)
        wait_closed(engine, 1)
    path = tmp_path / "a.h5"
    with h5py.File(path) as file:
        detector = file[GROUP]
        assert file["entry/title"].asstr()[()] == "sample 7"
        assert detector["description"].asstr()[()] == "Dectris EIGER2 Si 500K"
        assert detector["detector_number"].asstr()[()] == "E-02-0153"
        assert [detector[name][()] for name in ("x_pixel_size", "sensor_thickness", "count_time")] == [
            75e-6,
            45e-5,
            9.999e-4,
        ]
        assert detector["header/detector/incident_energy"][()] == 8041.0
        assert detector["header/detector/threshold_energy/threshold_1"][()] == 4020.5
        assert (detector["flatfield"][()] == v2.flatfield(SHAPE)).all()
        assert (detector["pixel_mask"][()] == v2.pixel_mask(SHAPE)).all()
        assert (detector["countrate_correction_lookup_table"][()] == v2.lookup_table()).all()
        assert detector["timestamp"][()] == pytest.approx([0, 0.001, 0.002])
        assert detector["stop_time"][()] == pytest.approx([0.0009999, 0.0019999, 0.0029999])
        assert detector["real_time"][()] == pytest.approx([0.00099988] * 3)


def test_thresholds_in_datasets_of_their_own(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2", channels="datasets") as engine:
        mixed = [v2.image(1, n, dict(reversed(images(n, 3).items()))) for n in range(4)]
        unit.take("a.h5", mixed, detail="all", channels=3, nimages=4)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.error) == (12, 0, "")
    assert check(tmp_path / "a.h5").ok
    with h5py.File(tmp_path / "a.h5") as file:
        for k, name in enumerate(THRESHOLDS):
            data = file[f"{GROUP}/{name}"]
            assert data.shape == (4, *SHAPE) and (data[()] == [image(n, k) for n in range(4)]).all()
            assert data.id.read_direct_chunk((2, 0, 0))[1] == v2.blob(image(2, k), "bslz4")
            channel = file[f"{GROUP}/{name}_channel"]
            assert (channel["flatfield"][()] == v2.flatfield(SHAPE, k)).all()
            if name != "difference":
                assert channel["threshold_energy"][()] == 4020.5 + 3000 * k
        assert file[DATASET] == file[f"{GROUP}/threshold_1"], "for programs that know one dataset"


def test_thresholds_of_one_dataset_have_their_arrays_in_one(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", messages(range(2), 2), detail="all", channels=2, nimages=2)
        wait_closed(engine, 1)
    assert (value(tmp_path / "a.h5", "flatfield") == [v2.flatfield(SHAPE, k) for k in range(2)]).all()
    assert (value(tmp_path / "a.h5", "pixel_mask") == [v2.pixel_mask(SHAPE, k) for k in range(2)]).all()


def test_one_threshold_has_one_dataset_however_it_is_configured(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2", channels="datasets") as engine:
        unit.take("a.h5", messages(range(2)), detail="all", nimages=2)
        wait_closed(engine, 1)
    assert holds(tmp_path / "a.h5", range(2))
    assert (value(tmp_path / "a.h5", "flatfield") == v2.flatfield(SHAPE)).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("apart", ["axis", "datasets"])
def test_shuffled_lost_and_repeated(tmp_path, unit, channels, apart):
    lost, twice = {3, 11, 12}, {0, 7, 19}
    numbers = [n for n in range(20) if n not in lost] + list(twice)
    random.Random(channels).shuffle(numbers)
    with running(tmp_path, unit.endpoint, protocol="dectris2", channels=apart) as engine:
        unit.take("a.h5", messages(numbers, channels), channels=channels, nimages=20)
        s = wait_closed(engine, 1)
    kept = set(numbers)
    assert (s.written, s.missing, s.repeated) == (17 * channels, 3, 3 * channels)
    assert "3 of 20 frames missing: 3, 11-12" in s.error
    if apart == "axis":
        assert holds(tmp_path / "a.h5", kept, channels, length=20)
    else:
        with h5py.File(tmp_path / "a.h5") as file:
            for k, name in enumerate(THRESHOLDS[:channels] if channels > 1 else ["data"]):
                data = file[f"{GROUP}/{name}"][()]
                assert all((data[n] == (image(n, k) if n in kept else 0)).all() for n in range(20))


@pytest.mark.parametrize(("channels", "encoding"), [(1, "bslz4"), (2, "lz4"), (3, "none")])
def test_whatever_happens_to_images_on_their_way(tmp_path, unit, channels, encoding):
    """Those that came whole are in the file, each in its place and once; all are counted."""
    ids = count(1)

    def series(steps):
        number = next(ids)
        sent = [disturbed.cut(messages([k], channels, number, encoding)[0], percent) for k, percent in steps]
        unit.take(f"{number}.h5", sent, number, channels=channels, nimages=disturbed.COUNT)
        s, expected = wait_closed(engine, number), disturbed.outcome(steps)
        written, repeated = len(expected.kept) * channels, expected.repeated * channels
        assert (s.written, s.repeated, s.rejected) == (written, repeated, expected.refused)
        assert s.missing == disturbed.COUNT - len(expected.kept)
        if expected.kept:
            assert holds(tmp_path / f"{number}.h5", expected.kept, channels, length=disturbed.COUNT)

    with running(tmp_path, unit.endpoint, protocol="dectris2", end_timeout=0.1) as engine:
        disturbed.few(given(disturbed.shuffled)(series))()


def test_cut_messages_are_refused_and_the_others_stored(tmp_path, unit):
    sent = messages(range(6), 2)
    sent[2] = [sent[2][0][:-30]]
    sent[4] = [sent[4][0][:100]]
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", sent, channels=2, nimages=6)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.rejected) == (8, 2, 2)
    assert holds(tmp_path / "a.h5", {0, 1, 3, 5}, 2, length=6)


def test_damaged_pixels_are_not_stored(tmp_path, unit):
    """Readers of a file may crash on a chunk that is none."""
    sent = messages(range(4))
    blob = bytearray(v2.blob(image(2), "bslz4"))
    blob[12:16] = b"\xff" * 4  # the length of the first block
    sent[2] = v2.image(1, 2, None, data=one(CBORTag(56500, ["bslz4", 2, bytes(blob)])))
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", sent, nimages=4)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.rejected) == (3, 1, 1)
    assert holds(tmp_path / "a.h5", {0, 1, 3}, length=4)


def test_a_series_is_over_with_its_last_image(tmp_path, unit):
    """The end comes when the detector is disarmed, which may be late."""
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", messages(range(5)), nimages=5, end=False)
        assert wait_closed(engine, 1).missing == 0
        unit.parts(v2.end(1))
        unit.take("b.h5", messages(range(5), series=2), series=2, nimages=5)
        assert wait_closed(engine, 2).error == ""
    assert holds(tmp_path / "a.h5", range(5)) and holds(tmp_path / "b.h5", range(5))


def test_aborted(tmp_path, unit):
    """The end comes before all images: those that are there are kept."""
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", messages(range(3)), nimages=10)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing) == (3, 7) and "7 of 10 frames missing: 3-9" in s.error
    assert holds(tmp_path / "a.h5", range(3), length=10)


def test_no_end_at_all(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2", stall_timeout=0.3) as engine:
        unit.take("a.h5", messages(range(3)), nimages=10, end=False)
        s = wait_closed(engine, 1)
    assert "nothing came for 0.3 s" in s.error and holds(tmp_path / "a.h5", range(3), length=10)


def test_a_series_without_images(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", [], detail="all", nimages=3)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing) == (0, 3) and check(tmp_path / "a.h5").ok
    with h5py.File(tmp_path / "a.h5") as file:
        assert file[f"{GROUP}/header/detector/number_of_images"][()] == 3
        assert "3 of 3 frames missing" in file[f"{GROUP}/end_reason"].asstr()[()]


def test_an_array_that_is_left_out_is_told(tmp_path, unit):
    half = (1 + np.arange(60).reshape(SHAPE) / 64).astype("<f2")
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        changed = {"flatfield": v2.by_channel(["threshold_1"], lambda k: v2.array(half)), "pixel_mask": 5}
        unit.take("a.h5", messages(range(2)), detail="all", nimages=2, **changed)
        s = wait_closed(engine, 1)
    assert (s.written, s.state, s.error) == (2, "idle", "")
    assert [loss.kind for loss in s.lost] == ["left_out"] and "pixel_mask of the start" in s.lost[0].sentence
    assert (value(tmp_path / "a.h5", "flatfield") == half).all() and holds(tmp_path / "a.h5", range(2))


@pytest.mark.parametrize("values", [{}, {"parts": 2, "workers": 2}, {"channels": "datasets"}])
def test_the_moment_from_which_times_count(tmp_path, unit, values):
    with running(tmp_path, unit.endpoint, protocol="dectris2", **values) as engine:
        unit.take("a.h5", messages(range(4), 2), channels=2, nimages=4)
        wait_closed(engine, 1)
    assert check(tmp_path / "a.h5").ok
    for path in tmp_path.glob("*.h5"):
        with h5py.File(path) as file:
            for name in ("timestamp", "stop_time"):
                assert file[f"{GROUP}/{name}"].attrs["start"] == v2.ARMED.value
            assert "start" not in file[f"{GROUP}/real_time"].attrs


def test_no_moment_from_which_times_count(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", [v2.image(1, n, image(n), series_date=...) for n in range(2)], nimages=2)
        wait_closed(engine, 1)
    with h5py.File(tmp_path / "a.h5") as file:
        assert "start" not in file[f"{GROUP}/timestamp"].attrs and file[f"{GROUP}/timestamp"][1] == 0.001


NEXT = "01HRCJG000SA63WH8M5X1VBKFJ"  # a later one than UNIQUE


def test_numbers_of_series_that_begin_anew(tmp_path, unit):
    """After `initialize`, with what is left of the series that had the same number: images and end."""
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", messages(range(3)), nimages=10)
        wait_closed(engine, 1)
        unit.parts(v2.start(1, SHAPE, user_data={"filename": "b.h5"}, nimages=5, series_unique_id=NEXT))
        for n in range(4):
            unit.parts(v2.image(1, n + 5 if n % 2 else n, image(99)))
            unit.parts(v2.image(1, n, image(n), series_unique_id=NEXT))
        unit.parts(v2.end(1))
        unit.parts(v2.image(1, 4, image(4), series_unique_id=NEXT))
        wait_for(lambda: engine.snapshot().closed == 1 and engine.snapshot().last_file.endswith("b.h5"))
        s = engine.snapshot()
    assert (s.written, s.foreign, s.missing, s.error) == (5, 4, 0, "")
    assert holds(tmp_path / "a.h5", range(3), length=10) and holds(tmp_path / "b.h5", range(5))


def test_numbers_that_begin_anew_at_full_speed(tmp_path, unit):
    """Nobody waits for the file: images wait for the start that another worker has in its hands."""
    with running(tmp_path, unit.endpoint, protocol="dectris2", workers=3, end_timeout=5) as engine:
        for k, series in enumerate((40, 41, 1, 2, 1)):
            unique = f"01HRCJG{k:03}SA63WH8M5X1VBKFJM"[:26]
            unit.parts(v2.start(series, SHAPE, user_data={"filename": f"{k}.h5"}, nimages=30, series_unique_id=unique))
            for n in range(30):
                unit.parts(v2.image(series, n, image(n), series_unique_id=unique))
            unit.parts(v2.end(series, series_unique_id=unique))
        wait_for(lambda: engine.snapshot().last_file.endswith("4.h5"), timeout=20)
        assert engine.snapshot().error == ""
    for k in range(5):
        assert holds(tmp_path / f"{k}.h5", range(30))


def test_leftovers_of_a_stale_series(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        for message in (*messages(range(3), series=6), v2.end(6)):
            unit.parts(message)
        mixed = [m for n in range(5) for m in (*messages([n], series=7), *messages([n + 3], series=6))]
        unit.take("a.h5", mixed, series=7, nimages=5)
        s = wait_closed(engine, 7)
    assert (s.written, s.missing, s.repeated) == (5, 0, 0) and s.foreign >= 4
    assert holds(tmp_path / "a.h5", range(5))


@pytest.mark.parametrize("user_data", [..., "remark", {"filename": ""}, {"filename": "a.h5", "save_raw": False}])
def test_live_view_only(tmp_path, unit, user_data):
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("", messages(range(3), 2), user_data=user_data, channels=2, nimages=3)
        s = wait_closed(engine, 1)
    assert (s.written, s.discarded, s.missing, s.error) == (0, 6, 0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("apart", ["axis", "datasets"])
def test_images_of_which_a_threshold_is_missing(tmp_path, unit, apart):
    """What there is has its own place; the frame is incomplete."""
    sent = messages(range(4), 3)
    sent[1] = v2.image(1, 1, {name: image(1, THRESHOLDS.index(name)) for name in ("difference", "threshold_2")})
    sent[2] = v2.image(1, 2, {"threshold_2": image(2, 1)})
    with running(tmp_path, unit.endpoint, protocol="dectris2", channels=apart) as engine:
        unit.take("a.h5", sent, channels=3, nimages=4)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.rejected) == (9, 2, 0) and "2 of 4 frames missing: 1-2" in s.error
    assert check(tmp_path / "a.h5").ok
    with h5py.File(tmp_path / "a.h5") as file:
        assert file[f"{GROUP}/frame_status"][()].tolist() == [1, 2, 2, 1]
        for k, name in enumerate(THRESHOLDS):
            data = file[DATASET][:, k] if apart == "axis" else file[f"{GROUP}/{name}"][()]
            for n in range(4):
                there = n in (0, 3) or name == "threshold_2" or (name == "difference" and n == 1)
                assert (data[n] == (image(n, k) if there else 0)).all(), (name, n)


@pytest.mark.parametrize("names", [["threshold_1", "difference"], THRESHOLDS, ["threshold_3"]])
def test_images_of_other_thresholds_than_announced(tmp_path, unit, names):
    """They would come into the place of others."""
    sent = messages(range(4), 2)
    sent[2] = v2.image(1, 2, {name: image(2) for name in names})
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.take("a.h5", sent, channels=2, nimages=4)
        s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.rejected) == (6, 1, len(names))
    assert (
        f"channels {', '.join(names)}, the series has threshold_1, threshold_2"
        in s.lost[1].sentence + s.lost[0].sentence
    )
    assert holds(tmp_path / "a.h5", {0, 1, 3}, 2, length=4)


def test_a_start_that_says_little(tmp_path, unit):
    """Without channels and sizes, the first image tells."""
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.parts(v2.message({"type": "start", "series_id": 1, "user_data": '{"filename": "a.h5"}'}))
        for message in messages(range(4), 2):
            unit.parts(message)
        unit.parts(v2.end(1))
        s = wait_closed(engine, 1)
    assert (s.written, s.error) == (8, "") and holds(tmp_path / "a.h5", range(4), 2)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_several_workers(tmp_path, unit, workers, channels):
    with running(tmp_path, unit.endpoint, protocol="dectris2", workers=workers) as engine:
        for series in range(1, 5):
            sent = messages(range(40), channels, series)
            unit.take(f"{series}.h5", sent, series, channels=channels, nimages=40)
        wait_opened(engine, 4)
        s = wait_closed(engine, 4)
    assert (s.missing, s.foreign, s.rejected, s.error) == (0, 0, 0, "")
    for series in range(1, 5):
        assert holds(tmp_path / f"{series}.h5", range(40), channels)


def test_several_files_and_datasets(tmp_path, unit):
    """`parts`, and a dataset for each threshold."""
    values = {"workers": 2, "parts": 2, "channels": "datasets"}
    with running(tmp_path, unit.endpoint, protocol="dectris2", **values) as engine:
        unit.take("a.h5", messages(range(21), 2), detail="all", channels=2, nimages=21)
        assert wait_closed(engine, 1).error == ""
    with h5py.File(tmp_path / "a.h5") as file:
        for k, name in enumerate(THRESHOLDS[:2]):
            assert (file[f"{GROUP}/{name}"][()] == [image(n, k) for n in range(21)]).all()


def test_transforms(tmp_path, unit):
    with running(tmp_path, unit.endpoint, protocol="dectris2", transforms=["rotate: 90", "bslz4"]) as engine:
        unit.take("a.h5", messages(range(3), 2, encoding="lz4"), channels=2, nimages=3)
        assert wait_closed(engine, 1).error == ""
    for k, data in enumerate(planes(tmp_path / "a.h5", 2)):
        assert all((data[n] == np.rot90(image(n, k))).all() for n in range(3))


def test_the_wrong_stream(tmp_path, unit):
    """The detector's stream is in the format `legacy`: the error says so."""
    with running(tmp_path, unit.endpoint, protocol="dectris2") as engine:
        unit.parts([b'{"header_detail":"basic","htype":"dheader-1.0","series":14}', b"{}"])
        wait_for(lambda: engine.snapshot().error, what="the error")
        assert "is the format of the detector's stream 'cbor'?" in engine.snapshot().error


def test_a_recording_is_described(tmp_path):
    sent = [v2.start(14, SHAPE, user_data={"filename": "a.h5"}), *messages([3], series=14), v2.end(14)]
    recording.write(tmp_path / "v2.bin", sent)
    lines = list(describe(str(tmp_path / "v2.bin")))
    assert lines[1].endswith("dectris2: start, series 14, 10 frames, file 'a.h5'")
    assert lines[2].endswith("dectris2: image 3, series 14, (6, 10) uint16 bslz4")
    assert lines[3].endswith("dectris2: end, series 14")
