"""The CBOR reader against the examples of RFC 8949, against cbor2, and against what nobody should send."""

import math
import struct
import tracemalloc

import cbor2
import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import cbor
from tangods_receiver.protocol.cbor import UNDEFINED, Simple, Tag, loads

EXAMPLES = {  # appendix A of RFC 8949
    "00": 0,
    "17": 23,
    "1818": 24,
    "1864": 100,
    "1903e8": 1000,
    "1a000f4240": 1000000,
    "1b000000e8d4a51000": 1000000000000,
    "1bffffffffffffffff": 18446744073709551615,
    "c249010000000000000000": Tag(2, b"\1" + bytes(8)),
    "3bffffffffffffffff": -18446744073709551616,
    "20": -1,
    "3863": -100,
    "3903e7": -1000,
    "f90000": 0.0,
    "f93c00": 1.0,
    "fb3ff199999999999a": 1.1,
    "f93e00": 1.5,
    "f97bff": 65504.0,
    "fa47c35000": 100000.0,
    "fa7f7fffff": 3.4028234663852886e38,
    "fb7e37e43c8800759c": 1.0e300,
    "f90001": 5.960464477539063e-8,
    "f90400": 0.00006103515625,
    "f9c400": -4.0,
    "fbc010666666666666": -4.1,
    "f97c00": math.inf,
    "f9fc00": -math.inf,
    "fa7f800000": math.inf,
    "fb7ff0000000000000": math.inf,
    "f4": False,
    "f5": True,
    "f6": None,
    "f7": UNDEFINED,
    "f0": Simple(16),
    "f8ff": Simple(255),
    "c074323031332d30332d32315432303a30343a30305a": Tag(0, "2013-03-21T20:04:00Z"),
    "c11a514b67b0": Tag(1, 1363896240),
    "d74401020304": Tag(23, b"\1\2\3\4"),
    "d818456449455446": Tag(24, b"dIETF"),
    "d82076687474703a2f2f7777772e6578616d706c652e636f6d": Tag(32, "http://www.example.com"),
    "40": b"",
    "4401020304": b"\1\2\3\4",
    "60": "",
    "6161": "a",
    "6449455446": "IETF",
    "62225c": '"\\',
    "62c3bc": "\u00fc",
    "63e6b0b4": "\u6c34",
    "64f0908591": "\U00010151",
    "80": [],
    "83010203": [1, 2, 3],
    "8301820203820405": [1, [2, 3], [4, 5]],
    "98190102030405060708090a0b0c0d0e0f101112131415161718181819": list(range(1, 26)),
    "a0": {},
    "a201020304": {1: 2, 3: 4},
    "a26161016162820203": {"a": 1, "b": [2, 3]},
    "826161a161626163": ["a", {"b": "c"}],
    "a56161614161626142616361436164614461656145": {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E"},
    "5f42010243030405ff": b"\1\2\3\4\5",
    "7f657374726561646d696e67ff": "streaming",
    "9fff": [],
    "9f018202039f0405ffff": [1, [2, 3], [4, 5]],
    "9f01820203820405ff": [1, [2, 3], [4, 5]],
    "83018202039f0405ff": [1, [2, 3], [4, 5]],
    "83019f0203ff820405": [1, [2, 3], [4, 5]],
    "9f0102030405060708090a0b0c0d0e0f101112131415161718181819ff": list(range(1, 26)),
    "bf61610161629f0203ffff": {"a": 1, "b": [2, 3]},
    "826161bf61626163ff": ["a", {"b": "c"}],
    "bf6346756ef563416d7421ff": {"Fun": True, "Amt": -2},
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(text):
    found = loads(bytes.fromhex(text))
    assert found == EXAMPLES[text]
    assert type(found) is type(EXAMPLES[text]) or isinstance(found, memoryview)


@pytest.mark.parametrize("text", ["f97e00", "fa7fc00000", "fb7ff8000000000000"])
def test_not_a_number(text):
    assert math.isnan(loads(bytes.fromhex(text)))


# --- against cbor2 ---------------------------------------------------------------------------------------------------

TAGS = st.integers(0, 2**64 - 1).filter(lambda tag: not 0 <= tag < 1024 and tag not in (43000, 55799))  # none is known
SIMPLE = st.integers(0, 255).filter(lambda n: n < 20 or n > 31)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(allow_nan=False),
    st.floats(width=16, allow_nan=False),
    st.text(),
    st.binary(max_size=300),
    SIMPLE.map(cbor2.CBORSimpleValue),
    st.just(cbor2.undefined),
)
KEYS = st.one_of(st.text(), st.integers(-(2**64), 2**64 - 1), st.binary(max_size=30), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=30),
        st.dictionaries(KEYS, inner, max_size=30),
        st.builds(cbor2.CBORTag, TAGS, inner),
    ),
    max_leaves=60,
)


def same(ours, theirs):
    """What cbor2 was given, or gives, and what is read here."""
    if isinstance(theirs, cbor2.CBORTag):
        return type(ours) is Tag and ours.number == theirs.tag and same(ours.value, theirs.value)
    if isinstance(theirs, cbor2.CBORSimpleValue):
        return ours == Simple(theirs.value)
    if theirs is cbor2.undefined:
        return ours == UNDEFINED
    if isinstance(theirs, bytes):
        return isinstance(ours, memoryview | bytes) and ours == theirs
    if isinstance(theirs, list | tuple):
        return type(ours) is list and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if hasattr(theirs, "keys"):
        return type(ours) is dict and list(ours) == list(theirs) and all(same(ours[k], v) for k, v in theirs.items())
    return type(ours) is type(theirs) and ours == theirs


@settings(max_examples=200, deadline=None)
@given(VALUES, st.booleans(), st.booleans())
def test_all_that_cbor2_writes(value, canonical, endless):
    data = cbor2.dumps(value, canonical=canonical, indefinite_containers=endless and not canonical)
    found = loads(data)
    if canonical:  # in another order
        assert same(found, cbor2.loads(data, tag_hook=lambda tag, immutable=False: tag))
    else:
        assert same(found, value)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.data())
def test_whatever_is_cut_off(value, data):
    whole = cbor2.dumps(value)
    with pytest.raises(StreamError):
        loads(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(StreamError, match="the value ends at byte"):
        loads(whole + b"\0")


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60))
@example(b"\xfb" + b"\xff" * 7)
@example(b"\xbf\x61")
@example(b"\x7f\x61\xc3\x61\xa4\xff")  # a character in two pieces: each must be UTF-8
def test_any_bytes(data):
    """Nothing but a StreamError; what is read here, cbor2 can read too, but for what its tags mean."""
    try:
        found = loads(data)
    except StreamError as exc:
        assert 0 < len(str(exc)) < 300
        return
    if b"Tag" not in repr(found).encode():
        assert same(found, cbor2.loads(data)) or "nan" in repr(found)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_turned(value, changes):
    data = bytearray(cbor2.dumps(value))
    for at, byte in changes:
        data[at % len(data)] = byte
    try:
        loads(bytes(data))
    except StreamError as exc:
        assert 0 < len(str(exc)) < 300


# --- what it promises ------------------------------------------------------------------------------------------------


def test_byte_strings_are_slices():
    data = cbor2.dumps({"data": cbor2.CBORTag(40, [b"x" * 100_000])})
    blob = loads(data)["data"].value[0]
    assert isinstance(blob, memoryview) and blob.obj is data and blob == b"x" * 100_000
    assert loads(memoryview(bytearray(data)))["data"].value[0].tobytes() == b"x" * 100_000


def test_whatever_offers_the_buffer_protocol():
    data = cbor2.dumps([1, b"abcd"])  # 7 bytes
    for buffer in (bytearray(data), memoryview(data), zmq.Frame(data)):
        assert loads(buffer) == [1, b"abcd"]
    numbers = memoryview(cbor2.dumps([1, b"abcde"])).cast("I")  # 2 numbers
    assert loads(numbers) == [1, b"abcde"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cut short, 0 bytes"),
        ("18", "cut short"),
        ("1b00000000", "cut short"),
        ("f9ff", "cut short"),
        ("f8", "cut short"),
        ("8201", "cut short|1 bytes are left"),
        ("9f01", "cut short"),
        ("bf6161", "cut short"),
        ("5f4101", "cut short"),
        ("a16161", "1 bytes are left|cut short"),
        ("a1626100", "cut short"),
        ("c0", "1 values announced"),
        ("440102", "4 bytes announced at byte 0, 2 are left"),
        ("1c", "0x1c at byte 0 begins no value"),
        ("1f", "0x1f at byte 0 begins no value"),
        ("3f", "begins no value"),
        ("df", "begins no value"),
        ("fc", "begins no value"),
        ("ff", "begins no value"),
        ("81ff", "0xff at byte 1 begins no value"),
        ("a1ff00", "begins no value"),
        ("bf6161ff", "0xff at byte 3 begins no value"),
        ("f81f", "begins no value"),
        ("f800", "begins no value"),
        ("5f6161ff", "is no piece of the string at byte 0"),
        ("7f4161ff", "is no piece of the string"),
        ("5f5f4101ffff", "is no piece of the string"),
        ("5f00ff", "is no piece of the string"),
        ("61ff", "not UTF-8"),
        ("a161ff00", "not UTF-8"),
        ("62eda0", "not UTF-8"),
        ("a2616101616102", "the key at byte 4 comes a second time"),
        ("bf616101616102ff", "comes a second time"),
        ("a2010102", "3 bytes are left|cut short"),
        ("a18001", "neither a text nor a number"),
        ("a1a001", "neither a text nor a number"),
        ("a1c16161f6", "neither a text nor a number"),
        ("0000", "the value ends at byte 1, the message at 2"),
        ("9bffffffffffffffff00", "18446744073709551615 values announced"),
        ("bbffffffffffffffff00", "values announced"),
        ("bb800000000000000000", "values announced"),
        ("5bffffffffffffffff00", "18446744073709551615 bytes announced"),
        ("7bffffffffffffffff00", "bytes announced"),
        ("7b2268747970", "cut short"),  # '{"htyp': JSON
    ],
)
def test_refused(text, sentence):
    with pytest.raises(StreamError, match=sentence):
        loads(bytes.fromhex(text))


@pytest.mark.parametrize("begin", [b"\x81", b"\x9f", b"\xc1", b"\xa1\x00", b"\xbf\x00", b"\xd9\xd9\xf7"])
def test_depth(begin):
    end = {b"\x9f": b"\xff", b"\xbf\x00": b"\xff"}.get(begin, b"")
    value = loads(begin * cbor.MAX_DEPTH + b"\0" + end * cbor.MAX_DEPTH)
    for _ in range(cbor.MAX_DEPTH):
        value = value[0] if not isinstance(value, Tag) else value.value
    assert value == 0
    for deep in (cbor.MAX_DEPTH + 1, 1_000_000):
        with pytest.raises(StreamError, match="more than 64 values in each other"):
            loads(begin * deep + b"\0" + end * deep)


@pytest.mark.parametrize("value", [b"\0", b"\x80", b"\xa0", b"\x40", b"\x60", b"\xf9\0\0"])
def test_number_of_values(value):
    count = cbor.MAX_ITEMS
    assert len(loads(b"\x9a" + struct.pack(">I", count) + value * count)) == count
    for data in (b"\x9a" + struct.pack(">I", count + 1) + value * (count + 1), b"\x9f" + value * (count + 1) + b"\xff"):
        with pytest.raises(StreamError, match="more than 262144 values"):
            loads(data)


def test_pieces_are_counted():
    with pytest.raises(StreamError, match="more than 262144 values"):
        loads(b"\x5f" + b"\x40" * (cbor.MAX_ITEMS + 1) + b"\xff")


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x9b\x00\x00\x00\xff" + b"\xff" * 4 + bytes(100),
        b"\xbb\x00\x00\x00\xff" + b"\xff" * 4 + bytes(100),
        b"\x5b\x00\x00\x00\xff" + b"\xff" * 4 + bytes(100),
        b"\x9a\x0f\xff\xff\xff" * 30,
        b"\x9f" * 1_000_000,
        b"\x81" * 1_000_000,
    ],
)
def test_bombs(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(StreamError):
            loads(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_pairs_of_a_map():
    inside = cbor2.dumps({"a": [1, 2], "b": {"c": b"x"}})[1:]
    pairs = [("a", inside[:5]), ("b", inside[5:])]
    for begin, end in [(b"\xa2", b""), (b"\xb8\x02", b""), (b"\xbf", b"\xff"), (b"\xd9\xd9\xf7\xa2", b"")]:
        assert cbor.map_pairs(begin + inside + end) == pairs
    assert cbor.map_pairs(b"\xd9\xd9\xf7\xbf" + inside + b"\xff") == pairs
    assert cbor.map_pairs(b"\xa0") == cbor.map_pairs(b"\xbf\xff") == []
    for none in (b"\x80", b"\xc1\x01", b"\xa1\x01"):
        with pytest.raises(StreamError):
            cbor.map_pairs(none)


@given(st.text())
def test_texts_written(value):
    assert loads(cbor.text(value)) == cbor2.loads(cbor.text(value)) == value
