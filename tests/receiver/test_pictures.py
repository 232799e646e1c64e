"""Parts of images, smaller, marked, in colours."""

import base64
import io
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tangods_receiver import imaging, pictures
from tangods_receiver.pictures import MASKED, SATURATED, Knowledge, colormap, contrast, drawn, pixel, view
from tangods_receiver.protocol import SeriesStart

TOP = 65535


def ramp(rows=12, columns=16, dtype="uint16"):
    return np.arange(rows * columns).reshape(rows, columns).astype(dtype)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_the_whole_image_as_it_is():
    image = ramp()
    shown = view(image)
    np.testing.assert_array_equal(shown.pixels, image)
    assert (shown.marks, shown.region, shown.factor, shown.full) == (None, (0, 0, 12, 16), 1, (12, 16))


def test_a_part_of_it():
    shown = view(ramp(), (2, 3, 5, 9))
    np.testing.assert_array_equal(shown.pixels, ramp()[2:5, 3:9])
    assert shown.region == (2, 3, 5, 9)


def test_modules_lie_below_each_other():
    modules = np.stack([ramp(2, 3), ramp(2, 3) + 100])
    np.testing.assert_array_equal(view(modules).pixels, modules.reshape(4, 3))
    assert pixel(modules, 2, 1)["value"] == 101


@given(
    st.tuples(*[st.integers(0, 80)] * 4),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 9),
    st.sampled_from(["mean", "max", "sample"]),
)
def test_every_region_is_what_it_says_it_is(region, rows, columns, factor, method):
    """It holds what was asked for as far as whole blocks go, and its pixels are those of the full image there."""
    image = ramp(rows, columns, "uint32")
    shown = view(image, region, factor, method=method)
    top, left, bottom, right = shown.region
    assert 0 <= top < bottom <= rows and 0 <= left < right <= columns
    np.testing.assert_array_equal(shown.pixels, imaging.downsample(image[top:bottom, left:right], shown.factor, method))
    assert shown.pixels.shape == ((bottom - top) // shown.factor, (right - left) // shown.factor)
    assert top % shown.factor == left % shown.factor == 0
    wanted = pictures.fitted(region, (rows, columns))
    whole = rows - rows % shown.factor, columns - columns % shown.factor
    assert top <= wanted[0] and left <= wanted[1]
    assert bottom >= min(wanted[2], whole[0]) and right >= min(wanted[3], whole[1])


@pytest.mark.parametrize(("size", "factor"), [((12, 16), 1), ((6, 16), 2), ((5, 16), 3), ((1, 1), 12), ((99, 99), 1)])
def test_as_small_as_it_takes(size, factor):
    shown = view(ramp(), size=size)
    assert shown.factor == factor and shown.pixels.shape <= size


# --- marks -----------------------------------------------------------------------------------------------------------


def marked(image, factor=1, mask=None, saturation=None, method="mean"):
    return view(image, None, factor, method=method, known=Knowledge(mask, saturation)).marks


def test_the_largest_number_is_a_masked_pixel():
    image = ramp()
    image[1, 2] = TOP
    marks = marked(image)
    assert marks[1, 2] == MASKED and marks.sum() == MASKED
    assert pixel(image, 1, 2) == {"row": 1, "column": 2, "value": TOP, "masked": True, "saturated": False}


def test_where_the_mask_is_known_the_largest_number_is_a_counter_that_is_full():
    image = ramp()
    image[1, 2] = image[3, 4] = TOP
    mask = np.zeros(image.shape, bool)
    mask[1, 2] = mask[5, 5] = True
    marks = marked(image, mask=mask)
    assert (marks[1, 2], marks[5, 5], marks[3, 4]) == (MASKED, MASKED, SATURATED)
    assert np.count_nonzero(marks) == 3


def test_a_byte_has_no_room_for_a_mask():
    image = ramp(4, 4, "uint8")
    image[0, 0] = 255
    assert marked(image)[0, 0] == SATURATED


@pytest.mark.parametrize(("limit", "expected"), [(190, 2), (190.5, 1), (191, 1), (192, 0), (1e9, 0), (-1e9, 192)])
def test_saturated_from_a_value_on(limit, expected):
    marks = marked(ramp(), saturation=limit)
    assert (0 if marks is None else np.count_nonzero(marks == SATURATED)) == expected


def test_masked_pixels_are_not_saturated_unless_saturation_begins_there():
    image = ramp()
    image[0, 0] = TOP
    assert marked(image, saturation=150)[0, 0] == MASKED
    assert marked(image, saturation=TOP)[0, 0] == SATURATED


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_what_has_no_value_in_other_types(dtype):
    image = ramp(dtype=dtype)
    image[0, 0] = np.nan if dtype.startswith("f") else -2
    assert marked(image)[0, 0] == MASKED and np.count_nonzero(marked(image)) == 1
    assert pixel(image, 0, 0)["value"] == (None if dtype.startswith("f") else -2)


def test_a_smaller_block_is_masked_when_all_of_it_is_and_saturated_when_any_is():
    image = np.ones((6, 6), np.uint16)
    image[0:2, 0:2] = TOP  # a masked block
    image[0, 2] = TOP  # a masked pixel
    image[4, 5] = 900  # a saturated one
    image[2:4, 0:2] = TOP
    image[3, 1] = 901
    for method in ("mean", "max", "sample"):
        marks = marked(image, 2, saturation=900, method=method)
        np.testing.assert_array_equal(marks, [[MASKED, 0, 0], [SATURATED, 0, 0], [0, 0, SATURATED]])


def test_masked_pixels_take_no_part_in_a_mean():
    image = np.full((4, 4), 10, np.uint16)
    mask = np.zeros((4, 4), bool)
    image[0, 0], mask[0, 0] = 60000, True
    before = image.copy()
    shown = view(image, None, 2, known=Knowledge(mask))
    assert (shown.pixels == 10).all() and shown.marks is None
    np.testing.assert_array_equal(image, before)


def test_a_mask_of_another_size_is_left_alone():
    assert marked(ramp(), mask=np.ones((3, 3), bool)) is None


@pytest.mark.parametrize(
    ("metadata", "limit"),
    [
        ({}, None),
        ({"saturation_value": 500}, 500),
        ({"countrate_correction_count_cutoff": 7.5}, 7.5),
        ({"saturation_value": "many"}, None),
        ({"saturation_value": 0}, None),
        ({"saturation_value": True}, None),
    ],
)
def test_what_the_stream_says_about_saturation(metadata, limit):
    assert pictures.knowledge(None, SeriesStart("", metadata=metadata)) == (None, limit)
    assert pictures.knowledge(None, None) == (None, None)


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (12, 0), (0, 16), (0, -1)])
def test_a_pixel_that_is_not_there(row, column):
    with pytest.raises(IndexError, match="the image has 12 x 16 pixels"):
        pixel(ramp(), row, column)


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [("uint8", "u1"), ("uint32", "<u4"), (">u2", "<u2"), ("int16", "<i2"), ("uint64", "<f4"), ("float64", "<f4")],
)
def test_types_that_every_viewer_knows(dtype, becomes):
    plain = pictures.plain(ramp(dtype=dtype)[:, ::2])
    assert plain.dtype == np.dtype(becomes) and plain.flags.c_contiguous
    np.testing.assert_array_equal(plain, ramp()[:, ::2])
    assert pictures.plain(np.eye(3, dtype=bool)).dtype == np.uint8


@pytest.mark.parametrize("dtype", ["uint8", ">u4", "uint64", "float64"])
def test_raw_bytes(dtype):
    image = ramp(dtype=dtype)
    content, headers = pictures.encode_raw(image)
    shape = tuple(map(int, headers["X-Shape"].split(",")))
    back = np.frombuffer(content, headers["X-Dtype"]).reshape(shape)
    assert headers["X-Dtype"].startswith("<")
    np.testing.assert_array_equal(back, image)


# --- colours ---------------------------------------------------------------------------------------------------------


def test_every_colour_map_is_there_and_has_its_ends():
    assert set(get_args(pictures.Colours)) == set(pictures.COLORMAPS)
    for name in pictures.COLORMAPS:
        assert colormap(name).shape == (256, 3) and len(np.unique(colormap(name), axis=0)) > 200
    assert colormap("grey")[[0, 255]].tolist() == colormap("grey_r")[[255, 0]].tolist() == [[0] * 3, [255] * 3]
    assert colormap("viridis")[0].tolist() == [68, 1, 84] and colormap("viridis")[255].tolist() == [253, 231, 37]
    said = pictures.colormaps()
    assert base64.b64decode(said["maps"]["turbo"]["colours"]) == colormap("turbo").tobytes()


def test_marks_cannot_be_taken_for_a_colour_of_a_map():
    for colour in pictures.COLOURS.values():
        for name in pictures.COLORMAPS:
            assert np.abs(colormap(name).astype(int) - colour).sum(axis=1).min() > 60, (colour, name)


def test_the_right_colour_in_the_right_place():
    image = np.array([[0, 50, 100], [25, 75, 200]], np.uint16)
    colours = np.asarray(drawn(view(image), "viridis", 0, 100))
    expected = colormap("viridis")[[[0, 128, 255], [64, 191, 255]]]
    np.testing.assert_array_equal(colours, expected)


def test_a_logarithmic_scale():
    image = np.array([[0, 1, 10], [100, 1000, 10000]], np.uint16)
    grey = np.asarray(drawn(view(image), "grey", 1, 10000, log=True))[..., 0]
    np.testing.assert_array_equal(grey, [[0, 0, 64], [128, 191, 255]])


def test_marks_have_colours_of_their_own():
    image = np.array([[TOP, 5, 900]], np.uint16)
    picture = np.asarray(drawn(view(image, known=Knowledge(None, 900)), "magma"))[0]
    assert tuple(picture[0]) == pictures.COLOURS[MASKED] and tuple(picture[2]) == pictures.COLOURS[SATURATED]


def test_an_automatic_range_leaves_out_marks_and_the_brightest():
    image = np.full((100, 100), 7, np.uint16)
    image[0, :50] = 3
    image[0, 60] = 60000  # 1 of 10 000
    image[1, :] = TOP
    assert contrast(view(image), None, None, False) == (3, 7)
    assert contrast(view(image), 1, None, False) == (1, 7)
    assert contrast(view(image), None, 2, False) == (3, 4)
    low, high = contrast(view(np.zeros((4, 4), np.uint16)), None, None, True)
    assert 0 < low < high


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_pictures_can_be_opened(format):
    picture = drawn(view(ramp(64, 80)), "inferno")
    back = Image.open(io.BytesIO(pictures.encode_picture(picture, format)))
    assert back.size == (80, 64) and back.format == format.upper()
