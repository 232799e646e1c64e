"""Malformed messages by the thousand: `make fuzz` does the same with a million."""

import resource
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from random import Random

import psutil
import pytest

from tangods_receiver import codecs
from tangods_receiver import protocols as known
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame, SeriesStart, stins
from tests.fuzz import checks, messages
from tests.fuzz.messages import PROTOCOLS
from tests.receiver.streaming import SHAPE, Sender, balanced, holds, image, running, wait_closed
from tests.waiting import wait_for

protocols = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


def test_every_protocol_is_here():
    assert set(PROTOCOLS) == set(known.PROTOCOLS)


@protocols
def test_the_seeds_are_good(protocol):
    for parts in protocol.seeds:
        for message in checks.decoded(protocol, parts):
            if isinstance(message, Frame):
                codecs.decompress(message.codec, message.data, message.shape, message.dtype)


# --- the decoder alone -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@protocols
def test_nothing_but_a_stream_error(protocol):
    rng = Random(1)
    refused = 0
    for _ in range(8000):
        message = checks.decoded(protocol, messages.message(rng, protocol.seeds))
        checks.seen(message)
        refused += message is None
    assert 2000 < refused < 7000, "neither all good nor all bad"


@protocols
def test_messages_of_another_protocol(protocol):
    others = [seed for other in PROTOCOLS.values() if other is not protocol for seed in other.seeds]
    for parts in others:
        assert checks.decoded(protocol, parts) is None
    for parts in messages.recorded_seeds():  # stream V1, of which a start with cut arrays is still a start
        found = checks.decoded(protocol, parts)
        assert found is None or (protocol is PROTOCOLS["dectris1"] and isinstance(found[0], SeriesStart))


@protocols
def test_memory_in_proportion_to_what_came(protocol):
    rng = Random(2)
    codecs.decompress("cbf", messages.cbf(messages.ramp(0, "int32")), messages.SHAPE, "int32")  # imports its library
    tracemalloc.start()
    try:
        for _ in range(1500):
            checks.within_bounds(protocol, messages.message(rng, protocol.seeds))
    finally:
        tracemalloc.stop()


def bombs():
    """Little messages that claim to be large images."""
    side = 16384  # a GiB of int32
    text = messages.CBF_TEXT.format(size=10, rows=side, columns=side).encode() + b"\x0c\x1a\x04\xd5" + bytes(10)
    yield "cbf of ten bytes", "cbf", "int32", [side, side], text
    yield "bslz4 of empty blocks", "bslz4", "int32", [side, side], struct.pack(">QI", 1 << 30, 1 << 24) + bytes(256)
    short = struct.pack(">I", 20) + b"\x0f" + b"\xff" * 19
    yield "bslz4 of short blocks", "bslz4", "int32", [side, side], struct.pack(">QI", 1 << 30, 1 << 24) + short * 64
    petabyte = struct.pack(">QI", 1 << 50, 8192) + bytes(100)
    yield "bslz4 of a petabyte", "bslz4", "uint8", [1 << 25, 1 << 25], petabyte
    yield "pixels of a petabyte", "none", "uint8", [1 << 25, 1 << 25], bytes(100)
    yield "pixels of a GiB", "none", "int32", [side, side], bytes(100)


@pytest.mark.parametrize(("codec", "dtype", "shape", "payload"), [pytest.param(*b[1:], id=b[0]) for b in bombs()])
def test_bombs(codec, dtype, shape, payload):
    """Refused before anything is set aside for them, by the one who decodes and by the one who shows."""
    codecs.decompress("cbf", messages.cbf(messages.ramp(0, "int32")), messages.SHAPE, "int32")
    parts = [stins.encode_frame_header(0, shape, dtype, codec), payload]
    tracemalloc.start()
    try:
        checks.within_bounds(PROTOCOLS["stins"], parts)
        tracemalloc.reset_peak()
        with pytest.raises(StreamError):
            codecs.decompress(codec, payload, tuple(shape), dtype)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_the_whole_in_little_address_space():
    """In a process of its own: a crash, or a request for all memory, ends that one. Without orjson as well."""
    command = [sys.executable, "-m", "tests.fuzz", "--messages", "1500", "--engine", "random", "--plain-json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1500 messages" in done.stdout


# --- the worker's hands, and real files ------------------------------------------------------------------------------


@pytest.mark.slow
@protocols
@pytest.mark.parametrize("seed", range(3))
def test_workers_reception_and_files(tmp_path, protocol, seed):
    """Nothing comes out of the worker's handling, the books balance, and no file is written outside the root."""
    rng = Random(seed)
    with checks.Stage(checks.Yard(tmp_path), protocol=protocol.name) as stage:
        for _ in range(20):
            stage.send([messages.message(rng, protocol.seeds) for _ in range(60)])
            stage.settle()
        for name in messages.NAMES:
            stage.name(name)
            stage.send(rng.sample(protocol.seeds, 5))
    assert len(stage.yard.written()) > 5, "good ones were written"


METADATA = [
    {"": 1, ".": 2, "..": 3, "/": 4, "a/b": 5, "//a//": 6},
    {"\0": "\0", "a\0b": "c\0d"},
    {"\ud800": "\udfff"},
    {"x" * 70000: 1},
    {"x": "y" * 70000},
    {"n": [10**400, -(10**30), 2**64, 2**63, 1e400, -1e400, float("nan")]},
    {"mixed": [1, "a", None, [2, [3]], {"b": True}]},
    {"ragged": [[1, 2], [3], []]},
    {"null": None, "empty": [], "none": {}},
    {"detector": 5, "exptime": {"not": "a number"}, "sensor_material": [1], "beam_center_x": "left"},
    {"detector": {"detector": {"detector": {}}}},
    {"NX_class": "NXnothing", "@NX_class": 1, "data": 1, "frame_status": "mine", "end_reason": "never"},
    {str(n): n for n in range(5000)},
    {"long": list(range(20000))},
    {
        "deep": [
            [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]
        ]
    },
    {"save_raw": "yes", "overwrite": "yes", "nframes": -1, "shape": "round"},
]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [False, True], ids=["metadata", "header"])
def test_metadata_that_a_file_cannot_hold(tmp_path, extra):
    """Kept in another form or refused in words; the frames are written all the same, or nothing is."""
    with checks.Stage(checks.Yard(tmp_path)) as stage:
        for number, metadata in enumerate(METADATA):
            text = messages.json.dumps(metadata).encode()
            marks = {"msg_number": 10 * number, "series": number + 1}
            head = messages.json.dumps({"htype": "header", "filename": f"{number}.h5"} | marks)
            parts = [head[:-1].encode() + b", " + text[1:]] if extra else [head.encode(), text]
            frame = [
                stins.encode_frame_header(0, SHAPE, "uint16", "none", 10 * number + 1, series=number + 1),
                image(0).tobytes(),
            ]
            stage.send([parts, frame, stins.encode_end(10 * number + 2, series=number + 1)])
            wait_for(lambda n=number: (s := stage.engine.snapshot()).error or s.closed == n + 1)
            s = stage.engine.snapshot()
            assert s.error or s.written == 1, metadata
            stage.engine.reset()


# --- the engine and a socket -----------------------------------------------------------------------------------------


def decoded(parts):
    return checks.decoded(PROTOCOLS["stins"], parts)


def harmless(parts, workers):
    """Is it refused by itself, or by a series of 6 x 10 uint16, whatever it is mixed with?

    Several workers wait a second for the start message of any sound frame: none of those here."""
    found = decoded(parts)
    message = found[0] if found else None
    if not isinstance(message, Frame):
        return message is None
    return workers == 1 and (message.shape, message.dtype, message.codec) != (SHAPE, "uint16", "none")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_good_series_among_garbage(tmp_path, workers):
    """Every good frame is in its file; afterwards the threads live, the memory is as it was, and a series is clean."""
    rng, seeds = Random(workers), PROTOCOLS["stins"].seeds
    process = psutil.Process()
    with Sender() as sender, running(tmp_path, sender.endpoint, workers=workers, hwm_bytes=2**20) as engine:
        wait_for(lambda: len([t for t in threading.enumerate() if "worker" in t.name]) == workers)
        before = set(threading.enumerate())
        memory = process.memory_info().rss

        def garbage(most):
            for _ in range(rng.randrange(most)):
                parts = messages.message(rng, seeds)
                if parts and harmless(parts, workers):
                    sender._socket.send_multipart(parts)

        for series in range(1001, 1006):
            known = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}
            sender.start(tmp_path / f"{series}.h5", series=series, nframes=100, **known)
            for number in range(100):
                garbage(8)
                sender.frame(number)
            sender.end()
            s = wait_closed(engine, series)
            assert (s.written, s.missing, s.state) == (100, 0, "error") and s.rejected > 100
            assert holds(tmp_path / f"{series}.h5", range(100))
        for _ in range(300 if workers == 1 else 0):  # whatever it is
            if parts := messages.message(rng, seeds):
                sender._socket.send_multipart(parts)
        sender.start(tmp_path / "clean.h5", series=2**40, nframes=50, **known)
        sender.frames(range(50))
        wait_closed(engine, 2**40)
        engine.reset()
        sender.start(tmp_path / "cleaner.h5", series=2**40 + 1, nframes=50, **known)
        sender.frames(range(50))
        s = wait_closed(engine, 2**40 + 1)
        assert (s.written, s.missing, s.state, s.error) == (50, 0, "idle", "")
        assert holds(tmp_path / "cleaner.h5", range(50))
        assert set(threading.enumerate()) >= before and process.memory_info().rss - memory < 60e6
        balanced(engine)


def test_limits_are_those_of_the_process():
    """The child above really has little room."""
    code = "from tests.fuzz.__main__ import little_room; little_room(); bytearray(4 << 30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "MemoryError" in done.stderr and resource.RLIMIT_AS
