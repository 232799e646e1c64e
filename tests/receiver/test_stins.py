"""STINS: what is sent comes back; whatever else comes is a StreamError."""

import json
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, stins

counts = st.integers(0, 2**63 - 1)
maybe = st.none() | counts
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
KEYS = ["htype", "frame", "shape", "type", "compression", "msg_number", "series", "module", "modules", "nframes"]
KEYS += ["filename", "chunks", "timestamp", "discard", "save_raw", "stride"]
almost = {
    "htype": st.sampled_from(["image", "header", "series_end"]),
    "shape": st.lists(st.integers(-1, 5) | counts, max_size=4),
    "chunks": st.lists(st.integers(0, 5), max_size=4),
    "type": st.sampled_from(["uint8", "uint16", "float64", "mono12p", "O"]),
    "compression": st.sampled_from(["", "none", "bslz4", "cbf", "lz4"]),
    "filename": st.text(),
}
heads = st.fixed_dictionaries(
    {"htype": almost["htype"]}, optional={key: almost.get(key, st.integers(0, 3)) | json_values for key in KEYS[1:]}
)


def head(**values):
    base = {"htype": "image", "frame": 3, "shape": [2, 3], "type": "uint16", "compression": "none", "msg_number": 42}
    return json.dumps({k: v for k, v in (base | values).items() if v is not ...}).encode()


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes(parts):
    with pytest.raises(StreamError):
        stins.decode(parts)


@given(heads | json_values, st.lists(st.binary(max_size=80), max_size=4))
def test_any_json(value, parts):
    try:
        message = stins.decode([json.dumps(value).encode(), *parts])
    except StreamError as exc:
        assert str(exc)
        return
    assert isinstance(message, SeriesStart | Frame | SeriesEnd)
    if isinstance(message, Frame) and message.codec == "none":
        pixels = message.shape[0] * message.shape[1] * stins.ITEMSIZE[message.dtype]
        assert len(message.shape) == 2 and all(len(data) == pixels for data in (message.data, *message.more))


@given(
    st.text(),
    maybe,
    maybe,
    st.none() | st.integers(0, stins.MAX_FRAMES),
    st.none() | st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    st.none() | st.sampled_from(sorted(stins.ITEMSIZE)),
    st.none() | st.sampled_from(stins.CODECS),
    st.integers(1, 8),
    st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.none()),
)
def test_start_round_trip(filename, serial, series, nframes, shape, dtype, codec, modules, metadata):
    parts = stins.encode_start(
        filename,
        serial,
        series=series,
        nframes=nframes,
        shape=shape,
        dtype=dtype,
        codec=codec,
        modules=modules,
        metadata=metadata,
    )
    save = metadata.get("save_raw") != 0
    assert stins.decode(parts) == SeriesStart(
        filename, serial, series, nframes, shape, dtype, codec, modules, save, metadata
    )


@given(
    counts,
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from(sorted(stins.ITEMSIZE)),
    maybe,
    maybe,
    st.integers(0, 1000),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
def test_frame_round_trip(number, shape, dtype, serial, series, module, timestamp, discard):
    data = bytes(shape[0] * shape[1] * stins.ITEMSIZE[dtype])
    part = stins.encode_frame_header(
        number, shape, dtype, "none", serial, series=series, module=module, timestamp=timestamp, discard=discard
    )
    frame = stins.decode([part, data])
    assert frame == Frame(number, shape, dtype, "none", data, module, serial, series, timestamp, discard)


@given(maybe, maybe)
def test_end_round_trip(serial, series):
    assert stins.decode(stins.encode_end(serial, series=series)) == SeriesEnd(serial, series)


def test_the_examples_of_the_description():
    start = stins.decode(
        [
            b'{"htype": "header", "filename": "/data/run1/scan_7.h5", "msg_number": 41}',
            b'{"exptime": 0.01, "save_raw": true, "detector": {"energy": 9000}}',
        ]
    )
    assert (start.filename, start.serial, start.series, start.save) == ("/data/run1/scan_7.h5", 41, None, True)
    assert start.metadata["detector"] == {"energy": 9000}
    frame = stins.decode([head(frame=1, msg_number=43, discard=True), struct.pack("<6H", *range(6))])
    assert (frame.number, frame.shape, frame.serial, frame.discard) == (1, (2, 3), 43, True)
    assert stins.decode([b'{"htype": "series_end", "msg_number": 44}']) == SeriesEnd(44)


def test_unknown_keys_are_kept():
    frame = stins.decode([head(exposure_time=0.1, colour="red"), bytes(12)])
    assert frame.extra == {"exposure_time": 0.1, "colour": "red"}
    start = stins.decode([b'{"htype":"header","filename":"","overwritable":true}', b'{"x":1}'])
    assert start.metadata == {"overwritable": True, "x": 1}


def test_dialects():
    frame = stins.decode([head(msg_number=..., compression=""), bytes(12)])
    assert (frame.serial, frame.codec) == (None, "none")
    assert stins.decode([head(compression=...), bytes(12)]).codec == "none"
    assert stins.decode([head(shape=[1, 2, 3]), bytes(12)]).shape == (2, 3)
    for nothing in ([], [b""], [b"null"]):
        assert stins.decode([b'{"htype":"header","filename":""}', *nothing]).metadata == {}


def test_images_in_parts():
    frame = stins.decode([head(shape=[2, 2, 3], chunks=[1, 2, 3]), bytes(12), b"b" * 12])
    assert (frame.shape, frame.data, frame.more) == ((2, 3), bytes(12), (b"b" * 12,))
    assert stins.decode([head(shape=[2, 2, 3]), bytes(24)]).more == (bytes(12),)
    joined = stins.decode([head(chunks=[1, 3]), b"a" * 6, b"b" * 6])
    assert (joined.shape, joined.data, joined.more) == ((2, 3), b"a" * 6 + b"b" * 6, ())


@pytest.mark.parametrize(
    "parts, found",
    [
        ([], "no part"),
        ([head()], "no pixel part"),
        ([head(frame=-1), bytes(12)], "-1"),
        ([head(frame=True), bytes(12)], "True"),
        ([head(frame=1.0), bytes(12)], "1.0"),
        ([head(frame="1"), bytes(12)], "'1'"),
        ([head(frame=...), bytes(12)], "None"),
        ([head(msg_number=-5), bytes(12)], "-5"),
        ([head(msg_number=False), bytes(12)], "False"),
        ([head(series="a"), bytes(12)], "'a'"),
        ([head(module=9999), bytes(12)], "9999"),
        ([head(timestamp="now"), bytes(12)], "'now'"),
        ([head(shape=[2, True]), bytes(4)], "True"),
        ([head(shape=[1, 1]), bytes(2)], None),
        ([head(shape=[True, True]), bytes(2)], "True"),
        ([head(shape=[1.0, 1]), bytes(2)], "1.0"),
        ([head(shape=[[1], 1]), bytes(2)], "[[1], 1]"),
        ([head(shape=[0, 3]), b""], "[0, 3]"),
        ([head(shape=[6]), bytes(12)], "[6]"),
        ([head(shape=6), bytes(12)], "6"),
        ([head(shape=[1 << 30, 1 << 30]), bytes(12)], "bytes, more than"),
        ([head(type="object"), bytes(12)], "'object'"),
        ([head(type=["uint16"]), bytes(12)], "['uint16']"),
        ([head(type=..., shape=[2, 2]), bytes(12)], "None"),
        ([head(compression="gzip"), bytes(12)], "'gzip'"),
        ([head(compression={}), bytes(12)], "{}"),
        ([head(), bytes(11)], "11 bytes"),
        ([head(), bytes(13)], "13 bytes"),
        ([head(compression="bslz4"), bytes(11)], "11 bytes"),
        ([head(compression="bslz4"), struct.pack(">QI", 13, 0) + bytes(9)], "13 bytes"),
        ([head(compression="bslz4"), struct.pack(">QI", 2**63, 0) + bytes(9)], str(2**63)),
        ([head(compression="bslz4"), struct.pack(">QI", 12, 0) + bytes(70000)], "70012"),
        ([head(compression="cbf"), b""], "0 bytes"),
        ([head(compression="bslz4"), bytes(12), bytes(12)], "cannot be joined"),
        ([head(shape=[3, 2, 3]), bytes(12), bytes(12)], "2 parts for 3 modules"),
        ([head(shape=[2, 2, 3], chunks=[2, 2, 3]), bytes(12), bytes(12)], "chunks"),
        ([head(chunks="x"), bytes(6), bytes(6)], "'x'"),
        ([head(), bytes(6), bytes(7)], "13 bytes in 2 parts"),
        ([head(htype="dheader-1.0"), b""], "dheader"),
        ([b"[" * 100_000], "not JSON"),
        ([b'{"htype":"image","frame":' + b"9" * 5000 + b"}"], ""),
        ([b'{"htype":"header","filename":null}'], "None"),
        ([b'{"htype":"header","filename":"","nframes":-1}'], "-1"),
        ([b'{"htype":"header","filename":"","nframes":9000000000000000000}'], "nframes"),
        ([b'{"htype":"header","filename":"","modules":0}'], "0"),
        ([b'{"htype":"header","filename":"","shape":[2]}'], "[2]"),
        ([b'{"htype":"header","filename":"","type":"x"}'], "'x'"),
        ([b'{"htype":"header","filename":"","compression":"x"}'], "'x'"),
        ([b'{"htype":"header","filename":""}', b"[]"], "[]"),
        ([b'{"htype":"header","filename":""}', b"{"], "metadata"),
    ],
)
def test_what_is_refused_and_what_is_said(parts, found):
    if found is None:  # primes what is remembered of good layouts
        stins.decode(parts)
        return
    with pytest.raises(StreamError) as caught:
        stins.decode(parts)
    assert found in str(caught.value) and len(str(caught.value)) < 400


def test_it_works_without_orjson_and_imports_nothing_heavy():
    code = """
import sys
sys.modules["orjson"] = None
from tangods_receiver.protocol import stins
parts = stins.encode_start("/a.h5", 1, series=2, metadata={"x": 1})
assert stins.decode(parts).metadata == {"x": 1}
for wrong in (b"[" * 100000, b'{"htype":"image","frame":' + b"9" * 5000 + b"}", b'{"a":NaN}'):
    try:
        stins.decode([wrong])
    except stins.StreamError:
        continue
    raise SystemExit("accepted")
from tangods_receiver.protocol import checks
assert checks.loads.__module__ == "json"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    code = """
import runpy, sys
sys.argv = ["tangods_receiver.protocol"]
try:
    runpy.run_module("tangods_receiver.protocol", run_name="__main__")
except SystemExit as exc:
    assert not exc.code
heavy = {"tango", "h5py", "numpy", "zmq", "pydantic", "bitshuffle"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert "stins" in done.stdout


@pytest.mark.parametrize("kind", stins.PACKED)
@pytest.mark.parametrize("shape, nbytes", [([1, 1], 2), ([1, 2], 3), ([3, 5], 23), ([2, 3, 5], 46)])
def test_pixels_of_twelve_bits(kind, shape, nbytes):
    """Each module of an odd number of pixels ends in half a byte that is not used."""
    frame = stins.decode([head(shape=shape, type=kind), bytes(nbytes)])
    assert (frame.dtype, frame.codec, frame.shape) == ("uint16", kind, tuple(shape[-2:]))
    assert 1 + len(frame.more) == (shape[0] if len(shape) == 3 else 1)
    for wrong in (nbytes - 1, nbytes + 1):
        with pytest.raises(StreamError, match=f"{nbytes} expected"):
            stins.decode([head(shape=shape, type=kind), bytes(wrong)])
    with pytest.raises(StreamError, match="not compressed any further"):
        stins.decode([head(shape=shape, type=kind, compression="bslz4"), bytes(nbytes)])


@pytest.mark.parametrize(
    "kind, shape, stride, codec",
    [
        ("uint16", [2, 3], 8, "padded"),
        ("uint16", [2, 3], 6, "none"),
        ("uint16", [1, 3], 9, "none"),
        ("mono12packed", [3, 5], 8, "mono12packed"),
        ("mono12p", [3, 4], 9, "mono12p"),
        ("mono12p", [1, 4], 9, "mono12p"),
    ],
)
def test_rows_that_are_padded(kind, shape, stride, codec):
    rows, columns = shape
    row = 2 * columns if kind == "uint16" else (3 * columns + 1) // 2
    data = bytes(range(rows * stride))
    frame = stins.decode([head(shape=shape, type=kind, stride=stride), data])
    assert (frame.shape, frame.dtype, frame.codec, dict(frame.extra)) == (tuple(shape), "uint16", codec, {})
    assert bytes(frame.data) == (data if rows > 1 else data[:row])
    for wrong in (data[:-1], data + b"x"):
        with pytest.raises(StreamError, match=f"{len(data)} expected"):
            stins.decode([head(shape=shape, type=kind, stride=stride), wrong])
    for wrong in (row - 1, str(stride), 10.0, True, -stride):
        with pytest.raises(StreamError, match=f"a row takes {row} bytes"):
            stins.decode([head(shape=shape, type=kind, stride=wrong), data])
    for parts in ([], [data, data]):
        with pytest.raises(StreamError, match="in one part"):
            stins.decode([head(shape=shape, type=kind, stride=stride), *parts])
    for more in ({"shape": [2, *shape]}, {"type": "uint16", "compression": "lz4"}):
        with pytest.raises(StreamError, match="not compressed"):
            stins.decode([head(**{"shape": shape, "type": kind, "stride": stride} | more), data])


def test_a_start_that_announces_twelve_bits():
    start = stins.decode(stins.encode_start("a.h5", 1, shape=(4, 6), dtype="mono12p"))
    assert (start.shape, start.dtype, start.codec) == ((4, 6), "uint16", "mono12p")
    with pytest.raises(StreamError, match="not compressed any further"):
        stins.decode(stins.encode_start("a.h5", 1, dtype="mono12p", codec="lz4"))


def test_lz4_is_taken_up_to_what_such_an_image_can_need():
    assert stins.decode([head(compression="lz4"), b"12345"]).codec == "lz4"
    for size in (0, 70000):
        with pytest.raises(StreamError, match="bytes of lz4"):
            stins.decode([head(compression="lz4"), bytes(size)])
