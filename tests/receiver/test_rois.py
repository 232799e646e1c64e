"""Regions of interest against the most straightforward NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tangods_receiver import imaging, rois
from tangods_receiver.errors import ConfigError
from tangods_receiver.rois import History, Roi, Sample, Values, measure, parse

TYPES = ["uint8", "uint16", "uint32", "int16", "int32", "float32"]


@st.composite
def images(draw):
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    if dtype.kind == "f":
        numbers = st.floats(0, 1e4, width=32) | st.sampled_from([math.nan, math.inf, -3.5])
    else:
        top = int(np.iinfo(dtype).max)
        numbers = st.integers(0, min(top, 5000)) | st.sampled_from([top, top - 1] + [-1, -2] * (dtype.kind == "i"))
    array = draw(hnp.arrays(dtype, shape, elements=numbers))
    masked = draw(st.none() | hnp.arrays(bool, shape))
    return array, masked


def plain(image, roi, masked):
    """Pixel by pixel."""
    found = []
    for y in range(roi.y, min(roi.y + roi.height, image.shape[0])):
        for x in range(roi.x, min(roi.x + roi.width, image.shape[1])):
            value = image[y, x].item()
            marked = image.dtype.kind == "u" and value == np.iinfo(image.dtype).max
            negative = image.dtype.kind == "i" and value < 0
            if not (marked or negative or not math.isfinite(value) or (masked is not None and masked[y, x])):
                found.append((x, y, value))
    if not found:
        return Values(0.0, math.nan, math.nan, math.nan, math.nan, 0)
    total = math.fsum(value for _, _, value in found)
    x = math.fsum(x * value for x, _, value in found) / total if total > 0 else math.nan
    y = math.fsum(y * value for _, y, value in found) / total if total > 0 else math.nan
    return Values(total, total / len(found), max(value for _, _, value in found), x, y, len(found))


@given(images(), st.tuples(*[st.integers(0, 45)] * 2, *[st.integers(1, 45)] * 2), st.sampled_from([1, 50, 1 << 17]))
def test_as_counted_pixel_by_pixel(given_, rectangle, band):
    image, masked = given_
    roi = Roi("a", *rectangle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imaging, "BAND", band)
        found, expected = measure(image, roi, masked), plain(image, roi, masked)
    assert found.pixels == expected.pixels
    if image.dtype.kind == "f":
        scale = max(1.0, abs(expected.sum), found.pixels * 1e4)
        assert found.sum == pytest.approx(expected.sum, abs=1e-9 * scale)
        assert found.max == pytest.approx(expected.max, nan_ok=True)
        return  # the centre of numbers that cancel out is anywhere
    assert found.sum == expected.sum
    assert found[1:5] == pytest.approx(expected[1:5], nan_ok=True)


def test_sums_of_large_numbers_are_exact():
    image = np.full((1000, 1000), 2**32 - 2, np.uint32)
    found = measure(image, Roi("all", 0, 0, 1000, 1000))
    assert found == Values(1e6 * (2**32 - 2), 2**32 - 2, 2**32 - 2, 499.5, 499.5, 10**6)


def test_the_centre_is_in_pixels_of_the_whole_image():
    image = np.zeros((50, 60), np.uint16)
    image[20, 30] = image[22, 30] = 7
    assert measure(image, Roi("spot", 25, 10, 20, 20))[3:5] == (30, 21)


def test_only_the_pixels_of_the_region_are_touched():
    image = np.lib.stride_tricks.as_strided(np.ones((1, 1), np.uint16), (100_000, 100_000), (0, 0))  # 20 GB, if copied
    assert measure(image, Roi("a", 99_990, 10, 20, 5)).pixels == 50


def test_regions_beside_the_image_have_no_value():
    found = measure(np.ones((4, 5), np.uint8), Roi("a", 5, 0, 3, 3))
    assert (found.sum, found.pixels) == (0.0, 0) and math.isnan(found.mean) and math.isnan(found.x)


# --- what a user wrote -----------------------------------------------------------------------------------------------


def test_lines_and_mappings():
    line = "beam 100 200 50 40"
    roi = Roi("beam", 100, 200, 50, 40)
    assert parse([line]) == parse([dict(zip(rois.KEYS, roi, strict=True))]) == parse([roi]) == (roi,)
    assert str(roi) == line and parse([]) == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["beam 1 2 3"], "name x y width height"),
        (["beam 1 2 3 0"], "height is 0"),
        (["beam -1 2 3 4"], "x is '-1'"),
        (["beam 1.5 2 3 4"], "x is '1.5'"),
        (["a/b 1 2 3 4"], "the name has"),
        (["a 0 0 1 1", "a 1 1 1 1"], "this name is there twice"),
        ([f"r{k} 0 0 1 1" for k in range(9)], "9 regions, at most 8"),
        ([{"name": "a", "x": 0, "y": 0, "width": 1}], "needs exactly name, x, y, width, height"),
        ([{"name": "a", "x": True, "y": 0, "width": 1, "height": 1}], "x is True"),
        ([{"name": 7, "x": 0, "y": 0, "width": 1, "height": 1}], "the name has"),
        ([["a", 0, 0, 1, 1]], "neither a line"),
        ("a 0 0 1 1", "is not a list"),
        ({"name": "a"}, "is not a list"),
        (7, "is not a list"),
        (["a 0 0 1 99999999999"], "height is '99999999999'"),
    ],
)
def test_mistakes_are_told(wrong, words):
    with pytest.raises(ConfigError, match=words):
        parse(wrong)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match="^rois: 'a': not like.*; 'b 0 0 0 1': width is 0"):
        parse(["a", "b 0 0 0 1"])


# --- history ---------------------------------------------------------------------------------------------------------


def test_the_history_keeps_the_last_samples():
    history = History([Roi("a", 0, 0, 1, 1)], length=3)
    assert history.latest is None and history.table().shape == (0, 9)
    for number in range(5):
        history.add(Sample(2, number, 1000.0 + number, (Values(number, 1, 2, 3, 4, 5),)))
    assert history.latest is not None and history.latest.number == 4
    np.testing.assert_array_equal(
        history.table(), [[2, number, 1000 + number, number, 1, 2, 3, 4, 5] for number in (2, 3, 4)]
    )
