"""Images made smaller, against the most straightforward NumPy; LImA's format, against its published header."""

import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tangods_receiver import imaging
from tangods_receiver.imaging import downsample, factor_for, no_value, valid, video_image

TYPES = ["uint8", "uint16", "uint32", "uint64", "int16", "int32", "float32", "float64"]


@st.composite
def images(draw):
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    shape = draw(st.sampled_from([(), (3,)])) + draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    if dtype.kind == "f":
        numbers = st.integers(-500, 1000).map(float) | st.sampled_from([np.nan, np.inf, -np.inf])
    else:
        top = int(np.iinfo(dtype).max)
        numbers = st.integers(0, min(top, 1000)) | st.sampled_from([top, top] + [-1, -2] * (dtype.kind == "i"))
    return draw(hnp.arrays(dtype, shape, elements=numbers))


def blocks(array, factor):
    """Each block's pixels that have a value."""
    high, broad = (min(factor, n) for n in array.shape[-2:])
    rows, columns = array.shape[-2] // high, array.shape[-1] // broad
    for index in np.ndindex(*array.shape[:-2], rows, columns):
        *first, row, column = index
        block = array[(*first, slice(row * high, (row + 1) * high), slice(column * broad, (column + 1) * broad))]
        where = valid(block)
        yield index, block.ravel() if where is None else block[where]


@given(images(), st.integers(2, 12), st.sampled_from([1, 60, 1 << 17]))
def test_mean_and_maximum_are_of_the_pixels_that_have_a_value(array, factor, band):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(imaging, "BAND", band)
        mean, largest = downsample(array, factor, "mean"), downsample(array, factor, "max")
    assert mean.dtype == np.float32 and largest.dtype == array.dtype and mean.shape == largest.shape
    seen = 0
    for index, pixels in blocks(array, factor):
        seen += 1
        if pixels.size:
            assert mean[index] == pytest.approx(pixels.astype(float).mean(), rel=1e-5, abs=1e-3)
            assert largest[index] == pixels.max()
        else:
            assert np.isnan(mean[index])
            assert np.isnan(largest[index]) if array.dtype.kind == "f" else largest[index] == no_value(array.dtype)
    assert seen == mean.size


@settings(max_examples=25)
@given(images(), st.integers(1, 12))
def test_samples_are_the_first_pixels(array, factor):
    high, broad = (min(factor, n) for n in array.shape[-2:])
    rows, columns = array.shape[-2] // high, array.shape[-1] // broad
    np.testing.assert_array_equal(
        downsample(array, factor, "sample"), array[..., : rows * high : high, : columns * broad : broad]
    )


def test_what_does_not_fill_a_block_is_left_out():
    array = np.arange(35).reshape(5, 7).astype("uint16")
    assert downsample(array, 2, "max").tolist() == [[8, 10, 12], [22, 24, 26]]
    assert downsample(array, 1) is array
    assert downsample(np.ones((1, 1280), np.uint32), 4).shape == (1, 320)  # a strip stays a strip
    assert downsample(np.zeros((0, 0), np.uint8), 4).shape == (0, 0)


def test_few_photons_do_not_vanish():
    array = np.zeros((4, 4), np.uint32)
    array[0, 0] = 1
    assert downsample(array, 4).tolist() == [[0.0625]]


@pytest.mark.parametrize(
    ("shape", "size", "factor"),
    [
        ((1024, 1024), (1024, 1024), 1),
        ((1025, 10), (1024, 1024), 2),
        ((4371, 4150), (1024, 1024), 5),
        ((8, 512, 1024), (512, 512), 2),
        ((5, 5), (0, 0), 5),
    ],
)
def test_the_factor_that_fits(shape, size, factor):
    assert factor_for(shape, size) == factor


def test_pixels_without_a_value():
    assert valid(np.array([0, 65534], "uint16")) is None
    assert valid(np.array([0, 65535], "uint16")).tolist() == [True, False]
    assert valid(np.array([0, -1, -2], "int32")).tolist() == [True, False, False]
    assert valid(np.array([-1.0, np.nan, np.inf])).tolist() == [True, False, False]
    assert valid(np.array([True, False])) is None


# --- VIDEO_IMAGE -----------------------------------------------------------------------------------------------------

# As LImA's clients read it: "VDEO", version 1, mode, frame, width, height, endianness, header size, two of padding.
HEADER = "!IHHqiiHHHH"
MODES = {0: np.uint8, 1: np.uint16, 2: np.uint32, 3: np.uint64}


def decoded(data):
    magic, version, mode, number, width, height, endian, size, *padding = struct.unpack(HEADER, data[:32])
    assert (magic.to_bytes(4, "big"), version, endian, size, padding) == (b"VDEO", 1, 0, 32, [0, 0])
    return np.frombuffer(data[size:], MODES[mode]).reshape(height, width), number


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_an_encoded_image_is_what_lima_viewers_read(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    array[0, 0] = np.iinfo(dtype).max
    image, number = decoded(video_image(array, 2**40))
    assert image.dtype == array.dtype and number == 2**40
    np.testing.assert_array_equal(image, array)


def test_other_types_become_unsigned():
    image, _ = decoded(video_image(np.array([[-1, 5]], "int16"), 0))
    assert image.dtype == np.uint16 and image.tolist() == [[65535, 5]]
    image, _ = decoded(video_image(np.array([[0.4, 1.6, np.nan, np.inf, -3, 1e20]], "float32"), 0))
    assert image.dtype == np.uint32 and image.tolist() == [[0, 2, 2**32 - 1, 2**32 - 1, 0, 2**32 - 2]]


def test_modules_lie_below_each_other_and_other_orders_are_straightened():
    image, _ = decoded(video_image(np.arange(12, dtype="uint8").reshape(2, 2, 3), 0))
    assert image.shape == (4, 3)
    turned = np.arange(6, dtype="uint16").reshape(2, 3).T
    np.testing.assert_array_equal(decoded(video_image(turned, 0))[0], turned)
    assert decoded(video_image(np.zeros((0, 0), np.uint8), -1))[1] == -1


def test_pixels_are_sent_little_endian():
    array = np.array([[1, 2]], ">u2")
    np.testing.assert_array_equal(decoded(video_image(array, 0))[0], [[1, 2]])
