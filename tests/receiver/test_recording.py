"""Recorded streams: written, read, damaged; a real one where it is at hand."""

import gzip
import io
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import recording, stins
from tangods_receiver.protocol.__main__ import main

DATA = Path(os.environ.get("DETECTOR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = DATA / "eiger1m_stream1.bin.gz"
messages = st.lists(st.lists(st.binary(max_size=50), max_size=4), max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recording")


@given(messages, st.sampled_from(["a.bin", "a.bin.gz"]))
def test_round_trip(folder, messages, name):
    assert recording.write(folder / name, messages) == len(messages)
    assert list(recording.read(folder / name)) == messages


@given(messages, st.data())
def test_cut_or_changed_anywhere(folder, messages, data):
    path = folder / "cut.bin"
    recording.write(path, messages)
    content = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(content)))
    if cut < len(content):
        content[cut] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for parts in recording.read(path):
            assert all(type(part) is bytes for part in parts)
    except StreamError as exc:
        assert "cut.bin" in str(exc)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.bin.gz"
    content = gzip.compress(b"\1\0\0\0\4\0\0\0abcd")
    for damaged in (content[:-9], content[:-1], content[:12] + b"\xff\xff" + content[14:], content[:2]):
        path.write_bytes(damaged)
        with pytest.raises(StreamError, match="a.bin.gz"):
            list(recording.read(path))


def test_hostile_numbers(tmp_path):
    path = tmp_path / "a.bin"
    for content in (b"\xff\xff\xff\xff", b"\1\0\0\0\xff\xff\xff\xff"):
        path.write_bytes(content)
        with pytest.raises(StreamError, match="not a recording"):
            list(recording.read(path))


def test_what_is_in_it(tmp_path):
    path = tmp_path / "a.bin"
    header = stins.encode_frame_header(0, (1, 2), "uint8", "none", 1)
    recording.write(path, [stins.encode_start("/x.h5", 0), [header, b"ab"], stins.encode_end(2), [b"?"], []])
    with redirect_stdout(io.StringIO()) as out:
        assert main([str(path)]) == 0
    for part in ("start, message 0", "'/x.h5'", "image 0", "end, message 2", "?", "empty"):
        assert part in out.getvalue()


def test_no_such_recording(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


@pytest.mark.skipif(not REAL.exists(), reason="the recorded Eiger stream is not at hand")
def test_a_real_recording():
    parts = list(recording.read(REAL))
    assert len(parts) == 10 and len(parts[0]) == 9 and all(len(image) == 4 for image in parts[1:])
    assert b'"dheader-1.0"' in parts[0][0]
