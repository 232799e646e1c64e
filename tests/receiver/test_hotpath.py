"""The compiled receiver and writer do exactly what their Python twins do."""

import errno
import json
import os
import resource
import shutil
import struct
import sysconfig
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver import compiled, source
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, Times, stins
from tangods_receiver.records import (
    HEADER,
    TIMES_FOLLOW,
    ImageLayout,
    Record,
    header_is_sound,
    record_size,
    record_sizes,
    tail_size,
    trailer_of,
)
from tangods_receiver.writing import PythonPacked
from tests.receiver.test_stins import head, heads

hotpath = compiled.module("_hotpath")
pytestmark = pytest.mark.skipif(
    not compiled.WANTED, reason="TANGODS_NO_COMPILED is set: the twins are tested elsewhere"
)
LAYOUT = ImageLayout((4, 8), "uint16", "none")


def test_is_built():
    """Without it everything works, at half the speed; where there is a compiler it must not be missing."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.exists() or not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler, or no Python.h: the Python twins are used")
    assert hotpath is not None and compiled.module("_pixels") is not None


@pytest.fixture(scope="module")
def wire():
    """What is sent, and two receivers of it: (socket, compiled, socket, Python)."""
    with zmq.Context() as context:
        sockets = []
        for name in ("inproc://compiled", "inproc://python"):
            taker, giver = context.socket(zmq.PULL), context.socket(zmq.PUSH)
            for socket in (taker, giver):
                socket.linger = 0
                socket.sndhwm = socket.rcvhwm = 100_000
            taker.bind(name)
            giver.connect(name)
            sockets += [taker, giver]
        yield (
            sockets[1],
            hotpath.Receiver(sockets[0], stins.decode, stins.ITEMSIZE),
            sockets[3],
            source.PythonReceiver(sockets[2]),
        )
        for socket in sockets:
            socket.close()


def decoded(item):
    """The message, or why it is none."""
    if type(item) is Frame:
        return item
    try:
        return stins.decode(item)
    except StreamError as exc:
        return str(exc)


def plain(message):
    """Comparable, whatever holds the bytes."""
    if isinstance(message, Frame):
        return message._replace(
            data=bytes(message.data), more=tuple(map(bytes, message.more)), extra=dict(message.extra)
        )
    return message


def both(wire, messages, *limits):
    """The same messages through both receivers."""
    for giver in (wire[0], wire[2]):
        for parts in messages:
            giver.send_multipart(parts)
    taken = []
    for receiver in (wire[1], wire[3]):
        items = []
        while batch := receiver.take(*(limits or (64, 1 << 20, 2048))):
            items += batch
        assert not receiver.full
        taken.append(items)
    compiled_items, python_items = taken
    assert len(compiled_items) == len(python_items) == len(messages)
    for one, other in zip(compiled_items, python_items, strict=True):
        assert repr(plain(decoded(one))) == repr(plain(decoded(other)))
    return compiled_items


@pytest.mark.parametrize("limit", [2048, 5, 1])
def test_messages_of_many_parts(wire, limit):
    """All parts of all messages come, up to the limit; those of a few parts by the batch, as those of two."""
    messages = [[b"%d.%d" % (k, part) for part in range(1 + k % 11)] for k in range(300)]
    for giver, receiver in (wire[:2], wire[2:]):
        for parts in messages:
            giver.send_multipart(parts)
        items = []
        while batch := receiver.take(64, 1 << 20, limit):
            items += batch
        assert [[bytes(part) for part in item] for item in items] == [parts[:limit] for parts in messages]
        assert (receiver.full, receiver.nbytes) == (False, 0)
        for _ in range(70):
            giver.send_multipart([b"head", b"about", b"pixels", b"times", b"appendix"])
        assert [len(receiver.take(64, 1 << 20, limit)) for _ in range(2)] == [64, 6]
        giver.send_multipart([b"head", b"about", b"pixels", b"times"])
        assert len(receiver.take(64, 1 << 20, limit)) == 1 and receiver.nbytes == 16


numbers = st.integers(0, 2**63 - 1) | st.integers(0, 100)
likely = st.fixed_dictionaries(
    {
        "htype": st.just("image"),
        "frame": numbers,
        "shape": st.just([2, 3]) | st.lists(st.integers(0, 4), min_size=1, max_size=3),
        "type": st.sampled_from(["uint16", "uint8", "float32", "mono12p", "uint128"]),
        "compression": st.sampled_from(["none", "none", "none", "bslz4", "lz4", ""]),
    },
    optional={
        "msg_number": numbers,
        "series": numbers | st.none(),
        "module": st.integers(0, 2000),
        "timestamp": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5),
        "discard": st.booleans(),
        "other": st.text(max_size=3),
    },
)


@pytest.mark.slow
@given(st.lists(st.tuples(likely | heads, st.integers(0, 3), st.sampled_from([0, 6, 12, 24, 90])), max_size=20))
def test_images_of_any_kind(wire, messages):
    data = struct.pack(">QI", 12, 0)
    both(
        wire,
        [[json.dumps(header).encode(), *[(data + bytes(size))[:size]] * count] for header, count, size in messages],
    )


@pytest.mark.parametrize(
    "text",
    [
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b' {"compression":"none","type":"uint16","shape":[2,3],"frame":0,"htype":"image"} \n',
        b'{"htype": "image", "frame": 1, "frame": 2, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": 01, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": 1.0, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": 1e2, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": -1, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": 9223372036854775808, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": true, "shape": [2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3,], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": 1, "shape": [1, 2, 3], "type": "uint16", "compression": "none"}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint\\u0031\\u0036", "compression": "none"}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none"} x',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none",}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none"',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none", "timestamp": -0.0}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none", "timestamp": 1.}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none", "timestamp": .5}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none", "timestamp": 1.5e3}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "uint16", "compression": "none", "x": "\xc3\xa9"}',
        b'{"htype": "image", "frame": 1, "shape": [2, 3], "type": "\xff", "compression": "none"}',
        b"{", b"", b"{}", b"[]", b'{"', b'{"htype"', b'{"htype":', b'{"shape":[', b'{"shape":[2', b'{"frame":',
        b" " * 5000 + b'{"htype": "series_end"}',
    ],
)  # fmt: skip
def test_odd_headers(wire, text):
    both(wire, [[text, bytes(12)], [text, bytes(11)], [text], [text, bytes(6), bytes(6)]])


def test_plain_images_come_decoded(wire):
    items = both(wire, [[head(frame=k, msg_number=k, series=3, timestamp=k + 0.5), bytes(12)] for k in range(300)])
    assert all(type(item) is Frame for item in items)
    assert items[7][:3] + items[7][5:9] == (7, (2, 3), "uint16", 0, 7, 3, 7.5)


def test_many_parts(wire):
    messages = [[head(), bytes(12)], [head(), *[b"x"] * 700], [head(), bytes(12)], [b"{}"], [b""]]
    assert [len(item) for item in both(wire, messages, 64, 1 << 20, 100)][1:] == [100, len(Frame._fields), 1, 1]


def test_limits(wire):
    for _ in range(10):
        wire[0].send_multipart([head(), bytes(12)])
    receiver = wire[1]
    assert len(receiver.take(4, 1 << 20, 9)) == 4 and receiver.full and receiver.nbytes == 48
    assert len(receiver.take(64, 13, 9)) == 2 and receiver.full
    assert len(receiver.take(64, 1 << 20, 9)) == 4 and not receiver.full
    assert receiver.take(64, 1 << 20, 9) == [] and not receiver.full


def test_pixels_outlive_the_batch(wire):
    """What was taken before stays as it was while more is taken, also when it is all that is kept of it."""
    kept = []
    for k in range(50):
        wire[0].send_multipart([head(), struct.pack("<6H", *[k] * 6)])
        (frame,) = wire[1].take(1, 1 << 20, 9)
        kept.append(memoryview(frame.data))
        del frame
    assert [view.tolist() for view in kept] == [[k, 0] * 6 for k in range(50)]
    assert all(view.readonly for view in kept)


def test_closed_socket():
    with zmq.Context() as context:
        socket = context.socket(zmq.PULL)
        receiver = hotpath.Receiver(socket, stins.decode, stins.ITEMSIZE)
        assert receiver.take(1, 1, 1) == []
        socket.close()


records = st.lists(
    st.builds(
        Record,
        st.integers(-1, 1 << 41),
        st.integers(0, 3),
        st.binary(min_size=64, max_size=64) | st.binary(max_size=100),
        st.integers(-1, 2**63 - 1),
        st.floats(allow_nan=False) | st.just(nan),
        st.floats(0, 1e10),
        st.integers(0, 255),
        st.none() | st.builds(Times, st.floats(), st.floats()),
    ),
    min_size=1,
    max_size=20,
)


@given(
    records,
    st.sampled_from(["none", "bslz4"]),
    st.sampled_from([1, 3]),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.booleans(),
)
def test_same_bytes(tmp_path_factory, batch, codec, modules, nonce, crc, times):
    layout = ImageLayout((4, 8), "uint16", codec, modules, times=times)
    path = tmp_path_factory.getbasetemp() / "packed"
    results = []
    for kind in (PythonPacked, hotpath.Packed):
        try:
            packed = kind(batch, layout, nonce, crc)
        except StreamError as exc:
            results.append(str(exc))
            continue
        with open(path, "wb+") as file:
            packed.write(file.fileno(), 5)
            results.append((packed.headers, packed.times, packed.total, packed.payload, path.read_bytes()))
    assert results[0] == results[1]
    if not isinstance(results[1], str):
        first = results[1][0][:64]
        assert header_is_sound(first, nonce) and np.frombuffer(first, HEADER)["frame"] == batch[0].frame
        assert_records(results[1], batch, layout)


def assert_records(result, batch, layout):
    """Each as the format says: where it begins, its times, its trailer."""
    headers, times, total, _, raw = result
    at = 5
    for number, record in enumerate(batch):
        header = headers[64 * number : 64 * number + 64]
        assert raw[at : at + 64] == header and raw[at + 64 : at + 64 + len(record.data)] == record.data
        timed = layout.times and record.times is not None
        flags, own = header[62], struct.pack("<dd", *record.times) if timed else b""
        assert bool(flags & TIMES_FOLLOW) == timed
        tail = raw[at + 64 + len(record.data) :][: tail_size(flags)]
        assert tail == own + trailer_of(header, own)
        if layout.times:
            assert times[16 * number : 16 * number + 16] == (own or struct.pack("<dd", nan, nan))
        at += record_size(len(record.data), flags)
    assert at == 5 + total == len(raw) and record_sizes(np.frombuffer(headers, HEADER)).sum() == total
    assert len(times) == (16 * len(batch) if layout.times else 0)


def test_numbers_that_do_not_fit():
    for record in (Record(0, 0, bytes(64), 2**63), Record(0, 0, bytes(64), -1, nan, nan, 256), Record(1, 0, "text")):
        with pytest.raises((StreamError, TypeError)):
            hotpath.Packed([record], LAYOUT, 1)


@pytest.mark.parametrize("times", [(1.0,), (1.0, 2.0, 3.0), ("a", 1.0), 5])
@pytest.mark.parametrize("kind", ["compiled", "python"])
def test_times_that_are_none(kind, times):
    packed = hotpath.Packed if kind == "compiled" else PythonPacked
    record = Record(3, 0, bytes(64), times=times)
    with pytest.raises(StreamError, match="frame 3, module 0: cannot be stored"):
        packed([record], replace(LAYOUT, times=True), 1)
    assert packed([record], LAYOUT, 1).times == b"", "nobody asked for them"


def test_longer_than_one_call(tmp_path):
    packed = hotpath.Packed([Record(k, 0, bytes([k & 255]) * 64) for k in range(3000)], LAYOUT, 1)
    with open(tmp_path / "a", "wb") as file:
        packed.write(file.fileno(), 0)
    table = np.frombuffer((tmp_path / "a").read_bytes(), np.uint8).reshape(3000, 192)
    assert (table[:, 64] == np.arange(3000) % 256).all() and packed.total == 3000 * 192


def test_storage_that_takes_only_a_part(tmp_path):
    """A limit of the file's size: the system writes up to it and refuses the rest."""
    packed = hotpath.Packed([Record(k, 0, bytes(64)) for k in range(100)], LAYOUT, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(tmp_path / "a", "wb") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            with pytest.raises(OSError) as caught:
                packed.write(file.fileno(), 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and os.path.getsize(tmp_path / "a") == 5000


def test_bad_file():
    packed = hotpath.Packed([Record(0, 0, bytes(64))], LAYOUT, 1)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        packed.write(-1, 0)
