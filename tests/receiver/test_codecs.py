"""Codecs: round trips, agreement with HDF5's filter and fabio, and damaged data of every kind."""

import bz2
import io
import struct
from pathlib import Path

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
from fabio.cbfimage import CbfImage
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver import codecs, transforms
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame
from tangods_receiver.protocol.stins import ITEMSIZE

REAL = sorted((Path(__file__).parents[3] / "shared/data").glob("pilatus3_6m_*.cbf.bz2"))
shapes = st.tuples(st.integers(1, 70), st.integers(1, 70))


def cbf(pixels):
    out = io.BytesIO()
    path = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    path = path / f"test_codecs_{id(out)}.cbf"
    try:
        CbfImage(data=np.asarray(pixels, np.int32)).write(str(path))
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


@given(shapes, st.sampled_from(sorted(ITEMSIZE)), st.integers(0, 2**32 - 1))
def test_round_trip(shape, dtype, seed):
    pixels = np.random.default_rng(seed).poisson(3, shape).astype(dtype)
    for codec in ("none", "bslz4"):
        data = codecs.compress(codec, pixels)
        back = codecs.decompress(codec, memoryview(data), shape, dtype)
        assert back.dtype == pixels.dtype and (back == pixels).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (257, 131), (512, 512)])
def test_bslz4_is_what_hdf5_writes_and_reads(shape):
    pixels = np.random.default_rng(1).poisson(3, shape).astype("uint16")
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset("a", shape, "uint16", chunks=shape, **hdf5plugin.Bitshuffle())
        data.id.write_direct_chunk((0, 0), codecs.compress("bslz4", pixels))
        assert (data[()] == pixels).all()
        data[...] = pixels + 1
        chunk = data.id.read_direct_chunk((0, 0))[1]
    assert (codecs.decompress("bslz4", chunk, shape, "uint16") == pixels + 1).all()


@given(st.data())
def test_damaged_bslz4(data):
    pixels = np.arange(5000, dtype="uint16").reshape(50, 100) // 7
    good = bytearray(codecs.compress("bslz4", pixels))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(0, len(good)))]) + data.draw(st.binary(max_size=20))
    try:
        assert codecs.decompress("bslz4", damaged, (50, 100), "uint16").shape == (50, 100)
    except StreamError as exc:
        assert "bslz4" in str(exc)


@pytest.mark.parametrize("block", [1, 2, 17, 0x20000000, 0xFFFFFFFF])
def test_bslz4_with_impossible_blocks(block):
    data = struct.pack(">QI", 200, block) + bytes(100)
    with pytest.raises(StreamError):
        codecs.decompress("bslz4", data, (10, 10), "uint16")


@given(shapes, st.integers(0, 2**32 - 1))
def test_cbf_against_fabio(shape, seed):
    pixels = np.random.default_rng(seed).integers(-(2**31), 2**31, shape, dtype=np.int32) >> (seed % 31)
    assert (codecs.decompress("cbf", cbf(pixels), shape, "int32") == pixels).all()


@given(st.data())
def test_damaged_cbf(data):
    pixels = np.arange(2000, dtype=np.int32).reshape(40, 50) ** 2
    good = bytearray(cbf(pixels))
    start = good.index(b"X-Binary-Size:") if data.draw(st.booleans()) else 0
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(start, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        assert codecs.decompress("cbf", damaged, (40, 50), "int32").shape == (40, 50)
    except StreamError as exc:
        assert "cbf" in str(exc)


def changed(old, new):
    data = cbf(np.arange(600, dtype=np.int32).reshape(20, 30))
    assert old in data
    return data.replace(old, new)


@pytest.mark.parametrize(
    "data, found",
    [
        (b"", "start of the pixels"),
        (b"\x0c\x1a\x04\xd5", "byte-offset"),
        (changed(b"X-Binary-Size:", b"X-Binary-Sice:"), "no line X-Binary-Size"),
        (changed(b"X-Binary-Size-Second", b"X-Binary-Size-Third!"), "Second"),
        (changed(b"X-Binary-Size-Fastest-Dimension: 30", b"X-Binary-Size-Fastest-Dimension: 31"), "20 x 31"),
        (changed(b"x-CBF_BYTE_OFFSET", b"x-CBF_PACKED_____"), "byte-offset"),
        (changed(b"signed 32-bit", b"signed 16-bit"), "16-bit"),
        (cbf(np.zeros((20, 30), np.int32))[:-5000], "cbf"),
    ],
)
def test_cbf_that_is_refused(data, found):
    with pytest.raises(StreamError, match=found):
        codecs.decompress("cbf", data, (20, 30), "int32")


@pytest.mark.parametrize("size", [599, 601, 1000])
def test_cbf_with_another_number_of_pixels(size):
    """The dimensions are right, the pixels are not."""
    data = cbf(np.arange(size, dtype=np.int32).reshape(1, size))
    data = data.replace(b"Fastest-Dimension: %d" % size, b"Fastest-Dimension: 30")
    data = data.replace(b"Second-Dimension: 1", b"Second-Dimension: 20")
    with pytest.raises(StreamError, match="pixels"):
        codecs.decompress("cbf", data, (20, 30), "int32")


@pytest.mark.skipif(not REAL, reason="the Pilatus images are not at hand")
def test_real_pilatus_images(tmp_path):
    data = bz2.decompress(REAL[0].read_bytes())
    (tmp_path / "a.cbf").write_bytes(data)
    with fabio.open(tmp_path / "a.cbf") as opened:
        pixels = opened.data
    frame = transforms.apply(Frame(0, pixels.shape, "int32", "cbf", data))
    assert (frame.codec, frame.dtype) == ("none", "int32")
    assert (np.frombuffer(frame.data, np.int32).reshape(pixels.shape) == pixels).all()


def test_what_is_not_known():
    for call in (lambda: codecs.compress("cbf", np.zeros((1, 1))), lambda: codecs.decompress("zip", b"", (1, 1), "u1")):
        with pytest.raises(StreamError):
            call()
    with pytest.raises(StreamError, match="11 bytes"):
        codecs.decompress("none", bytes(11), (2, 3), "uint16")
    with pytest.raises(StreamError, match="image 7"):
        transforms.apply(Frame(7, (2, 2), "int32", "cbf", b"x"))


def test_stored():
    assert transforms.stored("cbf", "uint16") == ("none", "int32")
    assert transforms.stored("bslz4", "uint16") == ("bslz4", "uint16")
