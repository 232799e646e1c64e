"""Dectris stream V1: what a detector sends comes back, all else is a StreamError; through a socket to a file."""

import json
import os
import random
import struct
import subprocess
import time
from itertools import count
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  the filters
import numpy as np
import pytest
from dectris.compression import decompress
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.replay import open_recording, replay
from tangods_receiver import codecs
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, Times, dectris1, recording
from tangods_receiver.protocol.__main__ import describe
from tangods_receiver.protocol.checks import ITEMSIZE
from tangods_receiver.recovery import check
from tangods_receiver.seriesfile import SeriesFile
from tests.receiver import dectris, disturbed
from tests.receiver.streaming import DATASET, Sender, balanced, read, running, wait_closed, wait_opened
from tests.waiting import wait_for

DATA = Path(os.environ.get("DETECTOR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = DATA / "eiger1m_stream1.bin.gz"
SHAPE = (7, 12)
DTYPES = ("uint8", "uint16", "uint32")


def picture(number, shape=SHAPE, dtype="uint16"):
    """Pixels that tell which image they are."""
    return (np.arange(np.prod(shape)).reshape(shape) * 3 + 5 * number).astype(dtype)


def changed(part, **values):
    """A JSON part with other values; ... takes a key away."""
    held = {**json.loads(part), **values}
    return json.dumps({key: value for key, value in held.items() if value is not ...}).encode()


# --- the start message -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", dectris.DETAILS)
@pytest.mark.parametrize("appendix", ["", {"filename": "a.h5", "label": "x", "rotate": 0}])
def test_start(detail, appendix):
    start = dectris1.decode(dectris.start(14, SHAPE, detail, appendix, nimages=50, ntrigger=3))
    assert (start.series, start.serial, start.save, start.modules) == (14, None, True, 1)
    assert start.filename == ("a.h5" if appendix else "")
    assert start.nframes == (None if detail == "none" else 150)
    assert (start.shape, start.dtype, start.codec) == (None, None, None), "a region of interest is smaller: images tell"
    assert start.times and start.metadata["header_detail"] == detail
    assert ("label" in start.metadata, "rotate" in start.metadata) == (bool(appendix), bool(appendix))
    assert "filename" not in start.metadata
    if detail == "none":
        assert "detector" not in start.metadata
    else:
        config = dectris.configuration(SHAPE, nimages=50, ntrigger=3)
        assert start.metadata["detector"] == config
    expected = {"flatfield", "pixel_mask", "countrate_correction_table"} if detail == "all" else set()
    assert set(start.arrays) == expected


def test_arrays_are_rows_first():
    arrays = dectris1.decode(dectris.start(1, SHAPE, "all")).arrays
    for name, values in (
        ("flatfield", dectris.flatfield(SHAPE)),
        ("pixel_mask", dectris.pixel_mask(SHAPE)),
        ("countrate_correction_table", dectris.countrate_table()),
    ):
        found = arrays[name]
        assert (found.shape, found.dtype) == (values.shape, values.dtype.name)
        assert bytes(found.data) == values.tobytes()


def test_arrays_of_several_thresholds():
    arrays = dectris1.decode(dectris.start(1, SHAPE, "all", thresholds=2)).arrays
    assert set(arrays) == {
        *("threshold_1/flatfield", "threshold_2/flatfield", "threshold_1/pixel_mask", "threshold_2/pixel_mask"),
        "countrate_correction_table",
    }


def test_arrays_are_found_by_what_they_say():
    """In any order, some missing, some that nobody knows; the appendix comes last."""
    head, config, *rest = dectris.start(1, SHAPE, "all")
    flatfield, mask, table = rest[:2], rest[2:4], rest[4:]
    strange = dectris.array("dtrimbits-1.0", np.zeros((3, 2), np.uint8))
    for arrays in (table + mask + flatfield, mask, strange + flatfield + strange, []):
        start = dectris1.decode([head, config, *arrays, b'{"filename":"z.h5"}'])
        assert start.filename == "z.h5"
        known = {"flatfield": flatfield, "pixel_mask": mask, "countrate_correction_table": table}
        assert set(start.arrays) == {name for name, parts in known.items() if parts[0] in arrays}


def test_booleans_of_the_old_interface():
    new = dectris1.decode(dectris.start(1, SHAPE)).metadata["detector"]
    old = dectris1.decode(dectris.start(1, SHAPE, integers=True)).metadata["detector"]
    for key in ("auto_summation", "flatfield_correction_applied", "pixel_mask_applied"):
        assert old[key] is new[key]
    assert type(old["nimages"]) is int and old["ntrigger"] == 1


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"nimages": 1, "ntrigger": 1}, 1),
        ({"nimages": 100, "ntrigger": 20}, 2000),
        ({"nimages": 5, "ntrigger": ...}, 5),
        ({"nimages": ..., "ntrigger": 5}, None),
        ({"nimages": "5"}, None),
        ({"nimages": True}, None),
        ({"nimages": 0}, None),
        ({"nimages": 2_000_000_000, "ntrigger": 2_000_000_000}, None),  # without end
        ({"nimages": 1, "ntrigger": 7, "trigger_mode": "exte"}, 7),
        ({"nimages": 1, "ntrigger": 7, "trigger_mode": "eies"}, None),  # six, or seven
    ],
)
def test_frames_announced(config, expected):
    parts = dectris.start(1, SHAPE)
    parts[1] = changed(parts[1], **config)
    assert dectris1.decode(parts).nframes == expected
    assert dectris1.decode([*parts, b'{"nframes": 3}']).nframes == 3
    assert dectris1.decode([*parts, b'{"nframes": null}']).nframes is None, "nobody knows how many"


@pytest.mark.parametrize("text", [b"scan 7", b"{not JSON", b"\xff\xfe", b"[1]", b"5", b'"x"', b"[" * 100_000])
def test_an_appendix_that_is_not_for_us(text):
    """Kept, and no file."""
    start = dectris1.decode([*dectris.start(1, SHAPE), text])
    assert (start.filename, start.save, start.nframes) == ("", True, 10)
    assert start.metadata["appendix"] in (text.decode("utf-8", "replace"), "x", [1], 5)


@pytest.mark.parametrize("text", [b"", b"  ", b"null"])
def test_no_appendix(text):
    start = dectris1.decode([*dectris.start(1, SHAPE), text])
    assert start.filename == "" and "appendix" not in start.metadata


def test_options_of_the_appendix():
    told = {"filename": "a.h5", "save_raw": False, "detector": {"energy": 9}, "label": "x", "metadata": {"a": [1]}}
    start = dectris1.decode(dectris.start(1, SHAPE, appendix=told))
    assert (start.filename, start.save) == ("a.h5", False)
    assert start.metadata["detector"]["energy"] == 9 and start.metadata["detector"]["count_time"] == 0.0009999
    assert (start.metadata["label"], start.metadata["metadata"]) == ("x", {"a": [1]})
    assert dectris1.decode(dectris.start(1, SHAPE, "none", told)).metadata["detector"] == {"energy": 9}


# --- images ----------------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
CODEC = {"<": "none", "lz4<": "lz4", "bs-lz4<": "bslz4"}


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    shapes,
    st.sampled_from(DTYPES),
    st.sampled_from(dectris.ENCODINGS),
    st.booleans(),
    st.sampled_from(["", '{"angle":1.5}', "a remark"]),
)
def test_image_round_trip(series, number, shape, dtype, encoding, times, appendix):
    pixels = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    parts = dectris.image(series, number % 10**9, pixels, encoding, times=times, appendix=appendix)
    frame = dectris1.decode(parts)
    assert (frame.number, frame.series, frame.serial, frame.module) == (number % 10**9, series, None, 0)
    assert (frame.shape, frame.dtype, frame.codec, frame.data) == (shape, dtype, CODEC[encoding], parts[2])
    clock = {key: value / 1e9 for key, value in dectris.clock(number % 10**9).items()}
    assert frame.timestamp == (clock["start_time"] if times else None)
    assert frame.times == (Times(clock["stop_time"], clock["real_time"]) if times else None)
    kept = {"": {}, '{"angle":1.5}': {"image_appendix": {"angle": 1.5}}, "a remark": {"image_appendix": "a remark"}}
    assert frame.extra == kept[appendix]
    assert not (frame.more or frame.discard or frame.incomplete)


def test_the_hash_is_never_verified():
    parts = dectris.image(1, 0, picture(0))
    parts[0] = changed(parts[0], hash="0" * 32)
    assert dectris1.decode(parts).number == 0
    parts[0] = changed(parts[0], hash=...)
    assert dectris1.decode(parts).number == 0


def test_times_of_which_some_are_missing():
    parts = dectris.image(1, 0, picture(0))
    assert dectris1.decode([*parts[:3], changed(parts[3], stop_time=...)]).times.real == 0.000994
    assert np.isnan(dectris1.decode([*parts[:3], changed(parts[3], stop_time=...)]).times.stop)
    frame = dectris1.decode([*parts[:3], changed(parts[3], stop_time=..., real_time=...)])
    assert frame.times is None and frame.timestamp == 4843.21380696
    frame = dectris1.decode([*parts[:3], changed(parts[3], start_time=...)])
    assert frame.times is not None and frame.timestamp is None


@given(st.integers(0, 2**63 - 1))
def test_end(series):
    assert dectris1.decode(dectris.end(series)) == SeriesEnd(series=series)


# --- what is refused -------------------------------------------------------------------------------------------------

START, IMAGE = dectris.start(1, SHAPE, "all", {"filename": "a.h5"}), dectris.image(1, 3, picture(3))
PLAIN = dectris.image(1, 3, picture(3), "<")


def at(parts, index, **values):
    return [changed(part, **values) if k == index else part for k, part in enumerate(parts)]


def with_data(parts, data):
    return [parts[0], changed(parts[1], size=len(data)), data, parts[3]]


@pytest.mark.parametrize(
    "parts, found",
    [
        ([], "no part"),
        ([b""], "not JSON"),
        ([b"{}"], "None"),
        (at(IMAGE, 0, htype="image"), "'image'"),
        (at(IMAGE, 0, htype=["dimage-1.0"]), "['dimage-1.0']"),
        (at(IMAGE, 0, frame=-1), "-1"),
        (at(IMAGE, 0, frame=True), "True"),
        (at(IMAGE, 0, frame=1.0), "1.0"),
        (at(IMAGE, 0, frame=...), "None"),
        (at(IMAGE, 0, series=...), "no series"),
        (at(IMAGE, 0, series=-1), "-1"),
        (at(IMAGE, 0, series="1"), "'1'"),
        (IMAGE[:1], "1 parts"),
        (IMAGE[:2], "2 parts"),
        ([IMAGE[0], IMAGE[2], IMAGE[1], IMAGE[3]], "not JSON"),
        ([IMAGE[0], IMAGE[3], IMAGE[2], IMAGE[1]], "dconfig-1.0"),
        (at(IMAGE, 1, shape=[12]), "[12]"),
        (at(IMAGE, 1, shape=[12, 7, 1]), "[12, 7, 1]"),
        (at(IMAGE, 1, shape=[12, 7.0]), "[12, 7.0]"),
        (at(IMAGE, 1, shape=[12, True]), "True"),
        (at(IMAGE, 1, shape=[12, 0]), "[12, 0]"),
        (at(IMAGE, 1, shape=[[12], 7]), "[[12], 7]"),
        (at(IMAGE, 1, shape={"12": 1, "7": 2}), "{"),
        (at(IMAGE, 1, shape="ab"), "'ab'"),
        (at(IMAGE, 1, shape=None), "None"),
        (at(IMAGE, 1, shape=[12, 8]), "168 bytes, shape and type say 192"),
        (at(IMAGE, 1, shape=[1 << 30, 1 << 30]), "more than"),
        (at(IMAGE, 1, type="uint32"), "does not fit"),
        (at(IMAGE, 1, type="float16"), "'float16'"),
        (at(IMAGE, 1, type=...), "None"),
        (at(IMAGE, 1, type=["uint16"]), "['uint16']"),
        (at(IMAGE, 1, encoding="bs32-lz4<"), "does not fit"),
        (at(IMAGE, 1, encoding="bs16-lz4>"), "bs16-lz4>"),
        (at(IMAGE, 1, encoding="bs16-lz4"), "known are <,"),
        (at(IMAGE, 1, encoding={}), "{}"),
        (at(IMAGE, 1, encoding=...), "None"),
        (at(IMAGE, 1, size=5), "size is 5"),
        (at(IMAGE, 1, size=float(len(IMAGE[2]))), ".0"),
        (at(IMAGE, 1, size="5"), "'5'"),
        ([*IMAGE[:2], IMAGE[2][:-1], IMAGE[3]], "the data have"),
        (with_data(PLAIN, bytes(167)), "167 bytes of pixels, 168 expected"),
        (with_data(PLAIN, bytes(169)), "169 bytes of pixels, 168 expected"),
        (with_data(IMAGE, b""), "0 bytes of bslz4"),
        (with_data(IMAGE, bytes(11)), "11 bytes of bslz4"),
        (with_data(IMAGE, struct.pack(">QI", 2**63, 0) + bytes(9)), str(2**63)),
        (with_data(IMAGE, bytes(70000)), "70000 bytes of bslz4"),
        (at(IMAGE, 3, start_time=-1), "-1"),
        (at(IMAGE, 3, start_time=1.5), "1.5"),
        (at(IMAGE, 3, start_time="now"), "'now'"),
        (at(IMAGE, 3, stop_time=2**63), str(2**63)),
        (at(IMAGE, 3, real_time=True), "True"),
        (at(dectris.end(1), 0, series=...), "no series"),
        (at(START, 0, series=...), "no series"),
        (at(START, 0, header_detail="some"), "'some'"),
        (at(START, 0, header_detail=["all"]), "['all']"),
        (at(START, 0, header_detail=...), "None"),
        (START[:1], "no configuration"),
        ([START[0], b"[]", *START[2:]], "[]"),
        ([START[0], b"{broken", *START[2:]], "configuration is not JSON"),
        ([START[0], b"[NaN]", *START[2:]], "configuration is not JSON"),
        ([*START[:-1], b'{"filename": 5}'], "5"),
        ([*START[:-1], b'{"nframes": -5}'], "-5"),
        ([*START[:-1], b'{"nframes": "all"}'], "'all'"),
    ],
)
def test_what_is_refused_and_what_is_said(parts, found):
    with pytest.raises(StreamError) as caught:
        dectris1.decode(parts)
    assert found in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "parts, left_out, remark",
    [
        (START[:3], "flatfield", "flatfield of the start message is not stored: without its data"),
        ([*START[:3], START[3][:-1], *START[4:]], "flatfield", "335 bytes, 336 expected"),
        (at(START, 2, shape=[12, 8]), "flatfield", "336 bytes, 384 expected"),
        (at(START, 2, shape=[]), "flatfield", "[]"),
        (at(START, 2, shape=[12, -7]), "flatfield", "-7"),
        (at(START, 2, shape=[1 << 20, 1 << 20]), "flatfield", "more than"),
        (at(START, 2, type="complex"), "flatfield", "'complex'"),
        (at(START, 4, type="float16"), "pixel_mask", "pixel_mask of the start message is not stored"),
        (at(START, 6, shape=[2]), "countrate_correction_table", "32000 bytes, 8 expected"),
    ],
)
def test_an_array_that_cannot_be_read_does_not_lose_the_series(parts, left_out, remark):
    """The others are kept, and so is the name of the file."""
    start, whole = dectris1.decode(parts), dectris1.decode(START)
    assert len(start.remarks) == 1 and remark in start.remarks[0] and len(start.remarks[0]) < 300
    if len(parts) == len(START):
        assert start.filename == "a.h5" and {*start.arrays} == {*whole.arrays} - {left_out}
    assert left_out not in start.arrays and start.metadata["detector"] == whole.metadata["detector"]


def test_the_second_threshold_keeps_its_name_when_the_array_of_the_first_is_left_out():
    parts = dectris.start(1, SHAPE, "all", thresholds=2)
    parts[3] = parts[3][:-1]
    start = dectris1.decode(parts)
    assert "threshold_2/flatfield" in start.arrays and "threshold_1/flatfield" not in start.arrays
    assert len(start.remarks) == 1


@pytest.mark.parametrize("detail", dectris.DETAILS)
def test_several_appendices(detail):
    """The last part is the appendix; what is before it, and no array, nobody knows."""
    more = [b"a remark", b'{"other": 1}', b'{"filename": "z.h5"}']
    start = dectris1.decode([*dectris.start(1, SHAPE, detail), *more])
    assert start.filename == "z.h5" and len(start.remarks) == 2 and "a remark" in start.remarks[0]
    assert len(start.arrays) == (3 if detail == "all" else 0)
    assert dectris1.decode(dectris1.with_filename([*START[:2], *more], "new.h5")).filename == "new.h5"
    many = [*dectris.start(1, SHAPE, detail), *[b"x"] * 50, b'{"filename": "z.h5"}']
    assert dectris1.decode(many).filename == "z.h5" and len(dectris1.decode(many).remarks) == 10


def test_no_configuration():
    """The arrays are found all the same."""
    start = dectris1.decode([START[0], *START[2:]])
    assert (start.filename, len(start.arrays), start.nframes, start.remarks) == ("a.h5", 3, None, ())
    assert "detector" not in start.metadata


def test_numbers_that_json_does_not_have():
    """As Python's json writes them, which makes these messages in the control unit."""
    config = dectris.configuration(SHAPE) | {"wavelength": float("nan"), "photon_energy": float("inf")}
    parts = dectris.start(1, SHAPE, appendix={"filename": "a.h5"}, config=config)
    assert b"NaN" in parts[1] and b"Infinity" in parts[1]
    start = dectris1.decode(parts)
    assert start.filename == "a.h5" and np.isnan(start.metadata["detector"]["wavelength"])
    assert (start.metadata["detector"]["photon_energy"], start.nframes) == (float("inf"), 10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_big_endian_pixels_are_put_in_order(dtype):
    """Documented, and sent by nothing that is known; packed ones are refused in words."""
    pixels = picture(3, dtype=dtype)
    turned = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    sent = at(dectris.image(1, 3, pixels, "<", payload=turned), 1, encoding=">")
    frame = dectris1.decode(sent)
    assert (frame.dtype, frame.codec, bytes(frame.data)) == (dtype, "none", pixels.tobytes())
    with pytest.raises(StreamError, match="encoding is 'lz4>', known are"):
        dectris1.decode(at(dectris.image(1, 3, pixels, "lz4<"), 1, encoding="lz4>"))


def test_images_without_any_time_and_at_time_zero():
    parts = dectris.image(1, 0, picture(0))
    frame = dectris1.decode([*parts[:3], changed(parts[3], start_time=0, stop_time=0, real_time=0)])
    assert (frame.timestamp, frame.times) == (0.0, Times(0.0, 0.0)), "zero is a time"
    frame = dectris1.decode([*parts[:3], b'{"htype":"dconfig-1.0"}'])
    assert (frame.timestamp, frame.times, frame.extra) == (None, None, {})


def test_a_good_layout_that_is_remembered_lets_nothing_else_pass():
    dectris1.decode(dectris.image(1, 0, picture(0, (1, 1)), "<"))
    for shape in ([True, True], [1.0, 1], [1, 1, 1]):
        with pytest.raises(StreamError, match="shape"):
            dectris1.decode(dectris.image(1, 0, picture(0, (1, 1)), "<", shape=shape))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
KEYS = ["htype", "series", "frame", "header_detail", "shape", "type", "encoding", "size", "start_time", "stop_time"]
KEYS += ["real_time", "nimages", "ntrigger", "trigger_mode", "filename", "nframes", "save_raw", "detector"]
seeds = st.sampled_from([START, IMAGE, PLAIN, dectris.start(2, SHAPE, "none"), dectris.end(3)])


@given(seeds, st.integers(0, 8), st.dictionaries(st.sampled_from(KEYS), json_values | st.just(...), max_size=3))
def test_any_values(parts, index, values):
    index %= len(parts)
    if parts[index][:1] == b"{":
        parts = at(parts, index, **values)
    survives(parts)


@given(seeds, st.data())
def test_any_parts(parts, data):
    """Left out, doubled, swapped, replaced by any bytes."""
    piece = st.sampled_from(parts) | st.binary(max_size=30)
    survives([*parts[: data.draw(st.integers(0, 2))], *data.draw(st.lists(piece, max_size=9))])


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes(parts):
    with pytest.raises(StreamError):
        dectris1.decode(parts)


def survives(parts):
    try:
        message = dectris1.decode(parts)
    except StreamError as exc:
        assert 0 < len(str(exc)) < 1000
        return
    assert isinstance(message, SeriesStart | Frame | SeriesEnd)
    if isinstance(message, Frame) and message.codec == "none":
        assert len(message.data) == message.shape[0] * message.shape[1] * ITEMSIZE[message.dtype]


# --- through a socket to a file --------------------------------------------------------------------------------------


@pytest.fixture
def sender():
    with Sender() as sender:
        yield sender


@pytest.fixture
def engine(tmp_path, sender):
    with running(tmp_path, sender.endpoint, protocol="dectris1") as engine:
        yield engine


def send_images(sender, series, numbers, **options):
    for number in numbers:
        sender.parts(dectris.image(series, number, picture(number), **options))


def holds(path, numbers, length, dtype="uint16"):
    """Exactly these images, each in its place; the others are 0."""
    report = check(Path(path))
    assert report.ok, report.problems
    data, _ = read(path)
    numbers = set(numbers)
    assert data.shape == (length, *SHAPE) and data.dtype == dtype
    for k, pixels in enumerate(data):
        assert (pixels == (picture(k, dtype=dtype) if k in numbers else 0)).all(), f"image {k}"


def chunk(path, number):
    with h5py.File(path) as file:
        return file[DATASET].id.read_direct_chunk((number, 0, 0))[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoding", dectris.ENCODINGS)
def test_every_encoding_type_and_detail(tmp_path, sender, engine, dtype, encoding):
    """The payloads are in the file as they were sent, byte for byte; lz4 behind the header that HDF5's filter wants."""
    for series, detail in enumerate(dectris.DETAILS, 1):
        path = tmp_path / f"{detail}.h5"
        sender.parts(dectris.start(series, SHAPE, detail, {"filename": str(path)}, dtype=dtype, nimages=5, ntrigger=2))
        images = [dectris.image(series, k, picture(k, dtype=dtype), encoding) for k in range(10)]
        for parts in images:
            sender.parts(parts)
        sender.parts(dectris.end(series))
        s = wait_closed(engine, series)
        assert (s.written, s.missing, s.state, s.error) == (10, 0, "idle", "")
        assert s.expected == (None if detail == "none" else 10)
        holds(path, range(10), 10, dtype)
        for k, parts in enumerate(images):
            found = chunk(path, k)
            assert (found[16:] if encoding == "lz4<" else found) == parts[2]


def test_what_the_file_says(tmp_path, sender, engine):
    told = {"filename": str(tmp_path / "a.h5"), "label": "lysozyme", "user": {"sample": 7}, "rotate": 0}
    sender.parts(dectris.start(3, SHAPE, "all", told, nimages=4))
    send_images(sender, 3, range(4))
    wait_closed(engine, 3)
    with h5py.File(tmp_path / "a.h5") as file:
        detector = file["entry/instrument/detector"]
        values = {"count_time": 0.0009999, "frame_time": 0.001, "beam_center_x": 6, "sensor_thickness": 0.00045}
        for name, value in {**values, "x_pixel_size": 7.5e-05, "bit_depth_readout": 16}.items():
            assert detector[name][()] == pytest.approx(value), name
        texts = {"description": "Dectris EIGER1 Si 1M", "detector_number": "E-02-0153", "sensor_material": "Si"}
        for name, value in {**texts, "trigger_mode": "ints"}.items():
            assert detector[name].asstr()[()] == value, name
        assert file["entry/title"].asstr()[()] == "lysozyme"
        assert detector["header/user/sample"][()] == 7 and detector["header/rotate"][()] == 0
        for key, value in dectris.configuration(SHAPE, nimages=4).items():
            found = detector["header/detector"][key]
            assert (found.asstr()[()] == value) if isinstance(value, str) else np.array_equal(found[()], value), key
        assert detector["saturation_value"][()] == 65000
        flags = {"flatfield_applied": True, "pixel_mask_applied": False, "countrate_correction_applied": True}
        assert {name: bool(detector[name][()]) for name in flags} == flags
        clocks = [dectris.clock(k) for k in range(4)]
        for name, key in (("timestamp", "start_time"), ("stop_time", "stop_time"), ("real_time", "real_time")):
            assert detector[name][()].tolist() == [clock[key] / 1e9 for clock in clocks], name
        assert np.array_equal(detector["flatfield"], dectris.flatfield(SHAPE))
        assert np.array_equal(detector["pixel_mask"], dectris.pixel_mask(SHAPE))
        assert np.array_equal(detector["countrate_correction_table"], dectris.countrate_table())


def test_arrays_of_two_thresholds_in_the_file(tmp_path, sender, engine):
    sender.parts(dectris.start(1, SHAPE, "all", {"filename": "a.h5"}, nimages=2, thresholds=2))
    send_images(sender, 1, range(2))
    s = wait_closed(engine, 1)
    assert (s.written, s.state, s.error) == (2, "idle", "") and check(tmp_path / "a.h5").ok
    with h5py.File(tmp_path / "a.h5") as file:
        for number in (1, 2):
            channel = file[f"entry/instrument/detector/threshold_{number}_channel"]
            assert np.array_equal(channel["flatfield"], dectris.flatfield(SHAPE))
            assert np.array_equal(channel["pixel_mask"], dectris.pixel_mask(SHAPE))


def test_images_without_times_have_none(tmp_path, sender, engine):
    sender.parts(dectris.start(1, SHAPE, "basic", {"filename": "a.h5"}, nimages=3))
    for k in range(3):
        sender.parts(dectris.image(1, k, picture(k), times=k != 1))
    wait_closed(engine, 1)
    holds(tmp_path / "a.h5", range(3), 3)
    _, books = read(tmp_path / "a.h5")
    for name in ("timestamp", "stop_time", "real_time"):
        assert np.isnan(books[name]).tolist() == [False, True, False]


def test_no_file_name_is_live_view_only(tmp_path, sender, engine):
    for series, appendix in enumerate(["", "a remark", {"label": "x"}, {"filename": "a.h5", "save_raw": False}], 1):
        sender.parts(dectris.start(series, SHAPE, "basic", appendix, nimages=3))
        send_images(sender, series, range(3))
        s = wait_closed(engine, series)
        assert (s.discarded, s.written, s.missing, s.state) == (3, 0, 0, "idle")
        last = engine.last_frame()
        assert (last.number, last.series) == (2, series) and (last.array == picture(2)).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_shuffled_repeated_and_lost(tmp_path, sender, workers):
    with running(tmp_path, sender.endpoint, protocol="dectris1", workers=workers) as engine:
        sender.parts(dectris.start(1, SHAPE, "all", {"filename": "a.h5"}, nimages=100))
        wait_opened(engine, 1)
        lost = {0, 13, 14, 99}
        numbers = [k for k in range(100) if k not in lost] * 2
        random.Random(workers).shuffle(numbers)
        send_images(sender, 1, numbers)
        sender.parts(dectris.end(1))
        s = wait_closed(engine, 1)
        assert (s.written, s.repeated, s.missing, s.state) == (96, 96, 4, "idle")
        holds(tmp_path / "a.h5", set(range(100)) - lost, 100)
        assert read(tmp_path / "a.h5")[1]["frames_missing"].tolist() == [[0, 0], [13, 14], [99, 99]]


def test_messages_that_are_cut_or_damaged(tmp_path, sender, engine):
    """The others are written."""
    sender.parts(dectris.start(1, SHAPE, "basic", {"filename": "a.h5"}, nimages=20))
    for k in range(20):
        parts = dectris.image(1, k, picture(k))
        broken = {
            3: parts[:2],
            4: [parts[0], parts[2], parts[3]],
            7: [*parts[:2], parts[2][:-5], parts[3]],
            9: with_data(parts, parts[2][:12] + b"\xff" * (len(parts[2]) - 12)),  # blocks that lead out of the data
            11: dectris.image(1, k, picture(k, (8, 12))),
            12: dectris.image(1, k, picture(k, dtype="uint32")),
        }
        sender.parts(broken.get(k, parts))
        if k in (5, 6):
            sender.parts(parts[:3] if k == 5 else [*parts, b"appendix"])  # whole, and here already
    sender.parts(dectris.end(1))
    s = wait_closed(engine, 1)
    assert (s.written, s.rejected, s.repeated, s.missing) == (14, 6, 2, 6)
    assert s.state == "error" and "refused" in s.error
    holds(tmp_path / "a.h5", set(range(20)) - {3, 4, 7, 9, 11, 12}, 20)


@pytest.mark.parametrize("encoding", dectris.ENCODINGS)
def test_whatever_happens_to_images_on_their_way(tmp_path, sender, encoding):
    """Those that came whole are in the file, each in its place and once; all are counted."""
    ids = count(1)

    def series(steps):
        number = next(ids)
        sender.parts(dectris.start(number, SHAPE, "basic", {"filename": f"{number}.h5"}, nimages=disturbed.COUNT))
        for k, percent in steps:
            whole = dectris.image(number, k, picture(k), encoding)
            sender.parts([*whole[:2], *disturbed.cut(whole[2:3], percent), *whole[3:]])
        sender.parts(dectris.end(number))
        s, expected = wait_closed(engine, number), disturbed.outcome(steps)
        assert (s.written, s.repeated, s.rejected) == (len(expected.kept), expected.repeated, expected.refused)
        assert s.missing == disturbed.COUNT - len(expected.kept)
        if expected.kept:
            holds(tmp_path / f"{number}.h5", expected.kept, disturbed.COUNT)

    with running(tmp_path, sender.endpoint, protocol="dectris1", end_timeout=0.1) as engine:
        disturbed.few(given(disturbed.shuffled)(series))()


def test_no_end_message(tmp_path, sender):
    """As when the detector is switched off: the time limit closes the file with what came."""
    with running(tmp_path, sender.endpoint, protocol="dectris1", stall_timeout=0.4) as engine:
        sender.parts(dectris.start(8, SHAPE, "basic", {"filename": "a.h5"}, nimages=30))
        send_images(sender, 8, range(12))
        s = wait_closed(engine, 8)
        assert (s.written, s.missing, s.state) == (12, 18, "error") and "nothing came for 0.4 s" in s.error
        reason = read(tmp_path / "a.h5")[1]["end_reason"].decode()
        assert "nothing came for 0.4 s" in reason and "18 of 30 frames missing: 12-29" in reason


def test_a_slow_storage_is_no_silence(tmp_path, sender, monkeypatch):
    """The time limit counts from when the file is there, and what was written."""
    create, append = SeriesFile.create, SeriesFile.append

    def slow_create(*arguments):
        time.sleep(0.6)
        return create(*arguments)

    def slow_append(*arguments):
        time.sleep(0.6)
        return append(*arguments)

    monkeypatch.setattr(SeriesFile, "create", slow_create)
    monkeypatch.setattr(SeriesFile, "append", slow_append)
    with running(tmp_path, sender.endpoint, protocol="dectris1", stall_timeout=0.4) as engine:
        sender.parts(dectris.start(1, SHAPE, "basic", {"filename": "a.h5"}, nimages=80))
        send_images(sender, 1, range(80))  # more than one batch
        s = wait_closed(engine, 1)
        assert (s.written, s.missing, s.state) == (80, 0, "idle"), s.error


def test_an_aborted_series(tmp_path, sender, engine):
    sender.parts(dectris.start(1, SHAPE, "basic", {"filename": "a.h5"}, nimages=1000))
    send_images(sender, 1, range(5))
    sender.parts(dectris.end(1))
    s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.state) == (5, 995, "idle")
    holds(tmp_path / "a.h5", range(5), 1000)


def test_a_series_without_images(tmp_path, sender, engine):
    sender.parts(dectris.start(1, SHAPE, "all", {"filename": "a.h5"}, nimages=3))
    sender.parts(dectris.end(1))
    s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.state) == (0, 3, "idle")
    assert check(tmp_path / "a.h5").ok


def test_leftovers_of_an_aborted_series(tmp_path, sender, engine):
    """They come before, between and after the images of the next series, and are in neither file."""
    sender.parts(dectris.start(6, SHAPE, "basic", {"filename": "6.h5"}, nimages=50))
    send_images(sender, 6, range(3))
    sender.parts(dectris.end(6))
    wait_closed(engine, 6)
    send_images(sender, 6, [3])
    sender.parts(dectris.start(7, SHAPE, "basic", {"filename": "7.h5"}, nimages=10))
    for k in range(9):
        send_images(sender, 6, [4 + k])
        send_images(sender, 7, [k])
    sender.parts(dectris.end(6))
    send_images(sender, 7, [9])
    s = wait_closed(engine, 7)
    assert (s.written, s.foreign, s.missing, s.state) == (10, 9, 0, "idle")
    holds(tmp_path / "6.h5", range(3), 50)
    holds(tmp_path / "7.h5", range(10), 10)


@pytest.mark.parametrize("workers", [1, 4])
def test_many_series_at_full_speed(tmp_path, sender, workers):
    """No image in a wrong file or place, whichever worker takes which message."""
    with running(tmp_path, sender.endpoint, protocol="dectris1", workers=workers, end_timeout=5) as engine:
        for series in range(1, 6):
            detail = dectris.DETAILS[series % 3]
            sender.parts(dectris.start(series, SHAPE, detail, {"filename": f"{series}.h5"}, nimages=300))
            send_images(sender, series, range(300))
            sender.parts(dectris.end(series))
        wait_for(lambda: engine.snapshot().closed == 5, timeout=20)
        assert balanced(engine).state == "idle"
        for series in range(1, 6):
            holds(tmp_path / f"{series}.h5", range(300), 300)


@pytest.mark.parametrize("workers", [1, 2])
def test_ids_that_start_again(tmp_path, sender, workers):
    """After `initialize`; the images follow when the file is open, as the control side sees to it."""
    with running(tmp_path, sender.endpoint, protocol="dectris1", workers=workers) as engine:
        for name, series in (("a", 40), ("b", 1), ("c", 2), ("d", 1)):
            sender.parts(dectris.start(series, SHAPE, "basic", {"filename": f"{name}.h5"}, nimages=20))
            wait_opened(engine, series)
            send_images(sender, series, range(20))
            wait_closed(engine, series)
            sender.parts(dectris.end(series))
        for name in "abcd":
            holds(tmp_path / f"{name}.h5", range(20), 20)
        assert engine.snapshot().error == ""


def test_messages_of_another_protocol_are_refused(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1)
    sender.frame(0)
    wait_for(lambda: engine.snapshot().rejected == 2)
    s = balanced(engine)
    assert s.state == "error" and "dheader-1.0" in s.error and list(tmp_path.iterdir()) == []


def test_a_rotation_that_is_asked_for_is_told_and_not_done(tmp_path, sender, engine):
    sender.parts(dectris.start(1, SHAPE, "basic", {"filename": "a.h5", "rotate": 1}, nimages=2))
    send_images(sender, 1, range(2))
    s = wait_closed(engine, 1)
    assert (s.written, s.state, s.error) == (2, "idle", "")
    assert any(loss.kind == "unrotated" and "transforms" in loss.sentence for loss in s.lost)
    holds(tmp_path / "a.h5", range(2), 2)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["entry/instrument/detector/header/rotate"][()] == 1


# --- a real recording ------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.exists(), reason=f"no Eiger recording in {DATA}; DETECTOR_TEST_DATA names it")


@real
def test_a_real_series(tmp_path):
    messages = list(recording.read(REAL))
    with Sender() as spare:
        endpoint = spare.endpoint
    with running(tmp_path, endpoint, protocol="dectris1", stall_timeout=1.0, end_timeout=1.0) as engine:
        assert replay(open_recording(REAL, str(tmp_path / "a.h5")), endpoint) == 10
        s = wait_closed(engine, 14)
        assert (s.written, s.rejected, s.expected) == (9, 0, 100_000)
    report = check(tmp_path / "a.h5")
    assert report.ok, report.problems
    with h5py.File(tmp_path / "a.h5") as file:
        images, detector = file[DATASET], file[DATASET].parent
        assert images.shape[1:] == (1065, 1030) and images.dtype == np.uint32
        assert "nothing came for 1 s" in detector["end_reason"].asstr()[()]
        assert detector["frames_received"][()] == 9 and detector["frames_missing"][()].tolist() == [[9, 99_999]]
        for number, parts in enumerate(messages[1:]):
            assert images.id.read_direct_chunk((number, 0, 0))[1] == parts[2]
            plain = np.frombuffer(decompress(parts[2], "bslz4", elem_size=4), "<u4").reshape(1065, 1030)
            assert np.array_equal(images[number], plain), "as HDF5's filter unpacks it"
            assert np.array_equal(codecs.decompress("bslz4", parts[2], (1065, 1030), "uint32"), plain), "as we do"
            clock = json.loads(parts[3])
            assert detector["timestamp"][number] == clock["start_time"] / 1e9
            assert detector["stop_time"][number] == clock["stop_time"] / 1e9
            assert detector["real_time"][number] == clock["real_time"] / 1e9
        assert (images[0, 514:551] == 2**32 - 1).all(), "the gap between the modules"
        for name, part, shape, dtype in (
            ("flatfield", 3, (1065, 1030), "<f4"),
            ("pixel_mask", 5, (1065, 1030), "<u4"),
            ("countrate_correction_table", 7, (4000, 2), "<f4"),
        ):
            assert detector[name].dtype == dtype
            assert np.array_equal(detector[name][()], np.frombuffer(messages[0][part], dtype).reshape(shape)), name
        assert detector["countrate_correction_table"][1].tolist() == pytest.approx([1125, 1124.66], abs=0.01)
        masked = detector["pixel_mask"][()] & 1 == 1
        assert masked[514:551].all() and (images[0][masked] == 2**32 - 1).all()
        assert detector["count_time"][()] == 0.9999999
        assert detector["detector_number"].asstr()[()] == "E-02-0153"


@real
def test_a_real_series_by_the_command_line(tmp_path):
    """As the page says: replayed to a receiver, then checked."""
    with Sender() as spare:
        endpoint = spare.endpoint
    replayed = ["tangods-detector", "replay", str(REAL), "--endpoint", endpoint, "--filename", "sub.h5"]
    with running(tmp_path, endpoint, protocol="dectris1", workers=2, stall_timeout=1.0) as engine:
        done = subprocess.run(replayed, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "10 messages sent" in done.stdout, done.stderr
        s = wait_closed(engine, 14)
        assert (s.written, s.missing, s.rejected, s.foreign, s.state) == (9, 99_991, 0, 0, "error")
        assert "nothing came for 1 s" in s.error
    checked = ["tangods-detector", "check", str(tmp_path / "sub.h5")]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "9" in done.stdout, done.stdout + done.stderr
    with h5py.File(tmp_path / "sub.h5") as file:
        for number, parts in enumerate(list(recording.read(REAL))[1:]):
            assert file[DATASET].id.read_direct_chunk((number, 0, 0))[1] == parts[2]


@real
def test_what_is_in_a_real_recording():
    lines = list(describe(str(REAL)))
    assert "start, series 14, 100000 frames, file ''" in lines[1]
    assert "image 8, series 14, (1065, 1030) uint32 bslz4" in lines[-1]


def test_what_is_in_a_recording(tmp_path):
    messages = [
        dectris.start(2, SHAPE, "all", {"filename": "x.h5"}),
        IMAGE,
        dectris.end(2),
        [b'{"htype":"dimage-1.0"}'],
    ]
    recording.write(tmp_path / "a.bin", messages)
    lines = list(describe(str(tmp_path / "a.bin")))
    assert "dectris1" in lines[1] and "start, series 2, 10 frames, file 'x.h5'" in lines[1]
    assert "image 3, series 1, (7, 12) uint16 bslz4" in lines[2]
    assert "end, series 2" in lines[3] and '{"htype":"dimage-1.0"}' in lines[4]
