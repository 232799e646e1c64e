"""Codecs: round trips, agreement with HDF5's filters and fabio, and damaged data of every kind.

Everything runs with the compiled part, at each set of instructions that it can choose, and without it."""

import bz2
import io
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import bitshuffle
import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
from fabio.cbfimage import CbfImage
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver import codecs, kernels, lz4block
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol.stins import ITEMSIZE

REAL = sorted((Path(__file__).parents[3] / "shared/data").glob("pilatus3_6m_*.cbf.bz2"))
COMPILED = kernels.pixels
LEVELS = {"portable": 0, "sse2": 1, "avx2": 2}
shapes = st.tuples(st.integers(1, 70), st.integers(1, 70)) | st.tuples(st.integers(1, 3), st.integers(1, 9))


@pytest.fixture(params=["libraries", *LEVELS], autouse=True)
def ways(request, monkeypatch):
    """Who does the work."""
    if request.param == "libraries":
        monkeypatch.setattr(kernels, "pixels", None)
        yield
        return
    if COMPILED is None:
        pytest.skip("the compiled part was not built")
    if COMPILED.choose(LEVELS[request.param]) != LEVELS[request.param]:
        COMPILED.choose(2)
        pytest.skip(f"this processor has no {request.param}")
    yield
    COMPILED.choose(2)


def some_pixels(shape, dtype, seed):
    """Of all kinds: counts, counts with marked pixels, anything."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    if seed % 3 == 2:
        return np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)
    pixels = rng.poisson(3 if seed % 2 else 200, shape).astype(dtype)
    if seed % 3:
        pixels[rng.random(shape) < 0.1] = np.array(-1).astype(dtype)
    return pixels


@given(shapes, st.sampled_from(sorted(ITEMSIZE)), st.integers(0, 2**32 - 1))
def test_round_trip(shape, dtype, seed):
    pixels = some_pixels(shape, dtype, seed)
    for codec in ("none", "bslz4", "lz4"):
        data = codecs.compress(codec, pixels)
        back = codecs.decompress(codec, memoryview(data), shape, dtype)
        assert back.dtype == pixels.dtype and back.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float64"])
def test_images_of_several_blocks(dtype):
    pixels = some_pixels((131, 257), dtype, 7)
    data = codecs.compress("bslz4", pixels)
    assert (codecs.decompress("bslz4", data, (131, 257), dtype) == pixels).all()


@given(st.integers(1, 120), st.sampled_from([1, 2, 4, 8]), st.integers(0, 63), st.integers(0, 2**32 - 1))
def test_planes_of_bits(eights, itemsize, shift, seed):
    """As bitshuffle makes them, whatever number of bits is in use."""
    if kernels.pixels is None:
        return
    pixels = np.frombuffer(np.random.default_rng(seed).bytes(8 * eights * itemsize), f"i{itemsize}")
    pixels = pixels >> np.array(shift % (8 * itemsize)).astype(pixels.dtype)
    expected = bitshuffle.bitshuffle(pixels, len(pixels))
    assert kernels.pixels.bitshuffle(pixels.view(np.uint8), itemsize) == expected.tobytes()


@pytest.mark.parametrize("codec, options", [("bslz4", hdf5plugin.Bitshuffle()), ("lz4", hdf5plugin.LZ4())])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (257, 131), (512, 512)])
def test_what_hdf5_writes_and_reads(shape, codec, options):
    pixels = np.random.default_rng(1).poisson(3, shape).astype("uint16")
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset("a", shape, "uint16", chunks=shape, **options)
        data.id.write_direct_chunk((0, 0), codecs.compress(codec, pixels))
        assert (data[()] == pixels).all()
        data[...] = pixels + 1
        chunk = data.id.read_direct_chunk((0, 0))[1]
    assert (codecs.decompress(codec, chunk, shape, "uint16") == pixels + 1).all()


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


def test_bslz4_cut_or_continued_at_every_byte():
    pixels = np.arange(9000, dtype="uint16").reshape(90, 100) // 7  # three blocks
    good = codecs.compress("bslz4", pixels)
    for size in [*range(0, len(good), 13), *range(len(good) - 20, len(good))]:
        with pytest.raises(StreamError, match="bslz4"):
            codecs.decompress("bslz4", good[:size], (90, 100), "uint16")
    with pytest.raises(StreamError, match="bslz4"):
        codecs.decompress("bslz4", good + b"\0", (90, 100), "uint16")


# --- LZ4 -------------------------------------------------------------------------------------------------------------


def raw_block(pixels):
    return lz4block.compress(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)).tobytes()


def as_long_as_its_pixels():
    """Bytes whose raw block has their own length, which HDF5's filter would take for plain ones."""
    for zeros in range(4, 60):
        for noise in range(20, 400, 7):
            pixels = np.frombuffer(np.random.default_rng(noise).bytes(noise) + bytes(zeros) + b"abcdefgh", np.uint8)
            if len(block := raw_block(pixels)) == pixels.size:
                return pixels, block
    raise AssertionError("none found")


@given(shapes, st.sampled_from(["uint8", "uint16", "int32"]), st.integers(0, 2**32 - 1))
def test_a_raw_lz4_block_and_the_chunk_that_it_becomes(shape, dtype, seed):
    pixels = some_pixels(shape, dtype, seed)
    block = raw_block(pixels)
    chunk = codecs.convert(block, shape, dtype, "lz4", "lz4")
    assert chunk.endswith(block) or len(block) == pixels.nbytes
    assert codecs.convert(chunk, shape, dtype, "lz4", "lz4") == chunk
    for data in (block, chunk):
        assert (codecs.decompress("lz4", data, shape, dtype) == pixels).all()


def test_a_raw_block_as_long_as_its_pixels():
    pixels, block = as_long_as_its_pixels()
    chunk = codecs.convert(block, (1, pixels.size), "uint8", "lz4", "lz4")
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset("a", (1, pixels.size), "uint8", chunks=(1, pixels.size), **hdf5plugin.LZ4())
        data.id.write_direct_chunk((0, 0), chunk)
        assert (data[0] == pixels).all()
    assert (codecs.decompress("lz4", chunk, (1, pixels.size), "uint8") == pixels).all()


def test_lz4_chunks_of_several_blocks():
    """As HDF5 makes them when it is told the size of a block."""
    pixels = np.random.default_rng(1).poisson(3, (100, 200)).astype("uint16")
    pixels[:30] = np.random.default_rng(2).integers(0, 1 << 16, (30, 200))  # blocks that are stored as they are
    with h5py.File(io.BytesIO(), "w") as file:
        data = file.create_dataset("a", data=pixels, chunks=pixels.shape, **hdf5plugin.LZ4(nbytes=4096))
        chunk = data.id.read_direct_chunk((0, 0))[1]
    assert (codecs.decompress("lz4", chunk, (100, 200), "uint16") == pixels).all()


@given(st.data())
def test_damaged_lz4(data):
    pixels = np.arange(5000, dtype="uint16").reshape(50, 100) // 7
    good = bytearray(raw_block(pixels) if data.draw(st.booleans()) else codecs.compress("lz4", pixels))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, min(40, len(good) - 1)))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(0, len(good)))]) + data.draw(st.binary(max_size=20))
    try:
        assert codecs.decompress("lz4", damaged, (50, 100), "uint16").shape == (50, 100)
    except StreamError as exc:
        assert "lz4" in str(exc)


@pytest.mark.parametrize(
    "data, found",
    [
        (b"", "cannot hold"),
        (struct.pack(">QII", 10001, 10000, 100) + bytes(100), "header says 10001"),
        (struct.pack(">QII", 10000, 1, 100) + bytes(100), "blocks of 1 bytes"),
        (struct.pack(">QII", 10000, 0, 100) + bytes(100), "blocks of 0 bytes"),
        (struct.pack(">QII", 10000, 10000, 101) + bytes(100), "100 are left"),
        (struct.pack(">QII", 10000, 10000, 99) + bytes(100), "blocks end at"),
        (struct.pack(">QII", 10000, 5000, 100) + bytes(100), "block of 0 bytes|0 are left"),
    ],
)
def test_lz4_that_is_refused(data, found):
    with pytest.raises(StreamError, match=found):
        codecs.decompress("lz4", data, (50, 100), "uint16")
    with pytest.raises(StreamError, match="less than a header"):
        codecs.decompress("lz4", bytes(13), (5, 10), "uint16")


@pytest.mark.parametrize("codec", ["bslz4", "lz4", "cbf", "none", "mono12p", "mono12packed"])
def test_no_memory_for_a_claim_that_cannot_be_true(codec):
    """A few bytes that pretend to be a GiB."""
    head = struct.pack(">QI", 1 << 30, 1 << 24) if codec == "bslz4" else b"\x1f" + b"\xff" * 11
    if codec == "cbf":
        head = cbf_file(b"\0" * 100, 32768, 16384)
    tracemalloc.start()
    with pytest.raises(StreamError):
        codecs.decompress(codec, head + bytes(1000), (32768, 16384), "uint16")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# --- CBF -------------------------------------------------------------------------------------------------------------


def cbf(pixels):
    """As fabio writes it."""
    path = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    path = path / f"test_codecs_{os.getpid()}.cbf"
    try:
        CbfImage(data=np.asarray(pixels, np.int32)).write(str(path))
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def cbf_file(code, rows, columns):
    head = (
        'conversions="x-CBF_BYTE_OFFSET"\r\nX-Binary-Element-Type: "signed 32-bit integer"\r\n'
        f"X-Binary-Size: {len(code)}\r\nX-Binary-Size-Fastest-Dimension: {columns}\r\n"
        f"X-Binary-Size-Second-Dimension: {rows}\r\n\r\n"
    )
    return head.encode() + b"\x0c\x1a\x04\xd5" + code


def coded(difference, at_least=0):
    """One difference in its shortest form, or in one of at least so many bytes of payload."""
    if -127 <= difference <= 127 and at_least <= 1:
        return struct.pack("<b", difference)
    if -32767 <= difference <= 32767 and at_least <= 2:
        return struct.pack("<Bh", 0x80, difference)
    if -(2**31) < difference < 2**31 and at_least <= 4:
        return struct.pack("<Bhi", 0x80, -(2**15), difference)
    return struct.pack("<Bhiq", 0x80, -(2**15), -(2**31), difference)


EXTREME = [0, 1, -1, 127, -127, 128, -128, 129, 32767, -32767, 32768, -32768, 2**31 - 1, -(2**31), 1 - 2**31]
steps = st.lists(
    st.tuples(st.integers(-127, 127), st.just(0)).flatmap(lambda step: st.lists(st.just(step), min_size=1, max_size=40))
    | st.lists(st.tuples(st.integers(-5, 5), st.just(0)), min_size=1, max_size=40)
    | st.lists(st.tuples(st.sampled_from(EXTREME), st.sampled_from([0, 0, 0, 2, 4])), min_size=1, max_size=3),
    min_size=1,
    max_size=20,
).map(lambda runs: [step for run in runs for step in run])


def walked(given_steps):
    """Pixels within 32 bits, and their code."""
    value, pixels, code = 0, [], b""
    for difference, at_least in given_steps:
        new = min(max(value + difference, -(2**31)), 2**31 - 1)
        code += coded(new - value, at_least)
        pixels.append(value := new)
    return np.array(pixels, np.int32), code


@given(steps)
def test_every_way_to_code_a_difference(given_steps):
    pixels, code = walked(given_steps)
    shape = (1, pixels.size)
    file = cbf_file(code, *shape)
    assert (codecs.decompress("cbf", file, shape, "int32")[0] == pixels).all()
    chunk = codecs.convert(file, shape, "int32", "cbf", "bslz4")
    assert (codecs.decompress("bslz4", chunk, shape, "int32")[0] == pixels).all()
    for wrong in (code[:-1], code + b"\0", code + b"\x80"):
        for target in ("none", "bslz4"):
            with pytest.raises(StreamError, match="cbf"):
                codecs.convert(cbf_file(wrong, *shape), shape, "int32", "cbf", target)


def test_differences_of_64_bits():
    """From one end of the 32 bits to the other and back."""
    pixels = np.array([[2**31 - 1, -(2**31), 2**31 - 1, 0, -(2**31)]], np.int32)
    code = b"".join(coded(int(d)) for d in np.diff(pixels[0].astype(np.int64), prepend=0))
    assert (codecs.decompress("cbf", cbf_file(code, 1, 5), (1, 5), "int32") == pixels).all()


@given(shapes, st.integers(0, 2**32 - 1))
def test_cbf_against_fabio(shape, seed):
    pixels = np.random.default_rng(seed).integers(-(2**31), 2**31, shape, dtype=np.int32) >> (seed % 31)
    file = cbf(pixels)
    assert (codecs.decompress("cbf", file, shape, "int32") == pixels).all()
    chunk = codecs.convert(memoryview(file), shape, "int32", "cbf", "bslz4")
    assert (codecs.decompress("bslz4", chunk, shape, "int32") == pixels).all()


@given(st.data())
def test_damaged_cbf(data):
    pixels = np.arange(2000, dtype=np.int32).reshape(40, 50) ** 2
    good = bytearray(cbf(pixels))
    start = good.index(b"X-Binary-Size:") if data.draw(st.booleans()) else 0
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(start, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(0, len(good)))])
    for target in ("none", "bslz4"):
        try:
            assert codecs.convert(damaged, (40, 50), "int32", "cbf", target)
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
        (cbf_file(b"\0" * 599, 20, 30), "cannot hold"),
    ],
)
def test_cbf_that_is_refused(data, found):
    for target in ("none", "bslz4"):
        with pytest.raises(StreamError, match=found):
            codecs.convert(data, (20, 30), "int32", "cbf", target)


@pytest.mark.parametrize("size", [599, 601, 1000])
def test_cbf_with_another_number_of_pixels(size):
    """The dimensions are right, the pixels are not."""
    data = cbf(np.arange(size, dtype=np.int32).reshape(1, size))
    data = data.replace(b"Fastest-Dimension: %d" % size, b"Fastest-Dimension: 30")
    data = data.replace(b"Second-Dimension: 1", b"Second-Dimension: 20")
    with pytest.raises(StreamError, match="pixels"):
        codecs.decompress("cbf", data, (20, 30), "int32")


@pytest.mark.skipif(not REAL, reason="the Pilatus images are not at hand")
@pytest.mark.parametrize("number", range(3))
def test_real_pilatus_images(number, tmp_path):
    data = bz2.decompress(REAL[number].read_bytes())
    (tmp_path / "a.cbf").write_bytes(data)
    with fabio.open(tmp_path / "a.cbf") as opened:
        pixels = opened.data
    assert (codecs.decompress("cbf", data, pixels.shape, "int32") == pixels).all()
    chunk = codecs.convert(data, pixels.shape, "int32", "cbf", "bslz4")
    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset("a", pixels.shape, "int32", chunks=pixels.shape, **hdf5plugin.Bitshuffle())
        dataset.id.write_direct_chunk((0, 0), chunk)
        assert (dataset[()] == pixels).all()


# --- twelve bits -----------------------------------------------------------------------------------------------------


def one_by_one(codec, raw, pixels):
    """The two formulas, pixel by pixel."""
    found = []
    for i in range(pixels):
        b = [*raw[i // 2 * 3 : i // 2 * 3 + 3], 0]
        if i % 2:
            found.append((b[1] >> 4) + b[2] * 16)
        elif codec == "mono12p":
            found.append(b[0] + (b[1] & 15) * 256)
        else:
            found.append((b[0] << 4) + (b[1] & 15))
    return found


@given(st.sampled_from(codecs.PACKED), st.binary(min_size=2, max_size=100))
def test_twelve_bits(codec, raw):
    pixels = len(raw) * 2 // 3
    raw = raw[: codecs.packed_size(pixels)]
    found = codecs.decompress(codec, raw, (1, pixels), "uint16")
    assert found.dtype == np.uint16 and found[0].tolist() == one_by_one(codec, raw, pixels)
    again = codecs.compress(codec, found)
    assert (codecs.decompress(codec, again, (1, pixels), "uint16") == found).all()
    for wrong in (raw[:-1], raw + b"\0"):
        with pytest.raises(StreamError, match="expected"):
            codecs.decompress(codec, wrong, (1, pixels), "uint16")


@pytest.mark.parametrize("codec", ["padded", *codecs.PACKED])
@pytest.mark.parametrize("shape, padding", [((4, 6), 1), ((4, 6), 7), ((2, 1), 64), ((3, 5), 0), ((3, 5), 3)])
def test_padded_rows(codec, shape, padding):
    pixels = np.random.default_rng(0).integers(0, 4096, shape, np.uint16)
    plain = "none" if codec == "padded" else codec
    rows = [bytes(codecs.compress(plain, row[None])) + b"\xff" * padding for row in pixels]
    data = b"".join(rows)
    found = codecs.decompress(codec, data, shape, "uint16")
    assert found.dtype == np.uint16 and (found == pixels).all() and found.flags.c_contiguous
    assert bytes(codecs.convert(data, shape, "uint16", codec, "none")) == pixels.tobytes()
    short = shape[0] * (len(rows[0]) - padding - 1)  # each row by a byte
    for wrong in (data[:short], data + b"x", b""):
        with pytest.raises(StreamError, match="expected"):
            codecs.decompress(codec, wrong, shape, "uint16")
    with pytest.raises(StreamError, match="cannot compress|12 bits"):
        codecs.compress(codec, pixels.astype("float32"))


def test_more_than_twelve_bits():
    for pixels in (np.full((2, 2), 4096), np.full((2, 2), -1), np.zeros((2, 2), "float32")):
        with pytest.raises(StreamError, match="0 to 4095"):
            codecs.compress("mono12p", pixels)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_what_is_not_known():
    for call in (
        lambda: codecs.compress("cbf", np.zeros((1, 1))),
        lambda: codecs.decompress("zip", b"", (1, 1), "u1"),
        lambda: codecs.stored_as("zip", "uint8"),
    ):
        with pytest.raises(StreamError):
            call()
    with pytest.raises(StreamError, match="11 bytes"):
        codecs.decompress("none", bytes(11), (2, 3), "uint16")


def test_the_compiled_part_can_be_left_out():
    code = "from tangods_receiver import kernels; print(kernels.pixels is None)"
    env = {**os.environ, "TANGODS_NO_COMPILED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "True", done.stderr
