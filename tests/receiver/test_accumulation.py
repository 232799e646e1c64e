"""Sum, maximum and average of many images, against NumPy over all of them at once."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tangods_receiver import imaging
from tangods_receiver.accumulation import Accumulation

TYPES = ["uint8", "uint16", "uint32", "int32", "float32", "float64"]


@st.composite
def series(draw):
    dtype = np.dtype(draw(st.sampled_from(TYPES)))
    shape = draw(st.sampled_from([(), (2,)])) + (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    if dtype.kind == "f":
        numbers = st.integers(-50, 100).map(float) | st.sampled_from([np.nan, np.inf])
    else:
        top = int(np.iinfo(dtype).max)
        numbers = st.integers(0, 100) | st.sampled_from([top, -1 if dtype.kind == "i" else top])
    images = draw(st.lists(hnp.arrays(dtype, shape, elements=numbers), min_size=1, max_size=8))
    return images, draw(st.none() | hnp.arrays(bool, shape))


def with_gaps(images, masked):
    """As float64, NaN where a pixel has no value."""
    found = []
    for image in images:
        there = imaging.valid(image)
        there = np.ones(image.shape, bool) if there is None else there.copy()
        if masked is not None:
            there &= ~masked
        found.append(np.where(there, image.astype(np.float64), np.nan))
    return np.array(found)


def accumulated(kind, images, masked, length=100):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = Accumulation(kind, images[0], masked, length)
        for image in images[1:]:
            made.add(image, masked)
    return made


@given(series(), st.sampled_from([1, 10, 1 << 17]))
def test_sum_and_average_leave_out_pixels_without_a_value(given_, band):
    images, masked = given_
    stack = with_gaps(images, masked)
    never = np.isnan(stack).all(axis=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imaging, "BAND", band)
        total, average = accumulated("sum", images, masked), accumulated("average", images, masked)
    np.testing.assert_allclose(total.value(), np.where(never, np.nan, np.nansum(stack, axis=0)))
    assert np.array_equal(np.isnan(average.value()), never)
    always = ~np.isnan(stack).any(axis=0)
    np.testing.assert_allclose(average.value()[always], stack.mean(axis=0)[always], rtol=1e-4, atol=1e-3)
    assert total.frames == average.frames == len(images)
    assert (total.value().dtype, average.value().dtype) == (np.float64, np.float32)


@given(series())
def test_the_maximum_is_of_the_numbers_as_they_are(given_):
    images, masked = given_
    made = accumulated("max", images, masked)
    expected = np.fmax.reduce(images) if images[0].dtype.kind == "f" else np.maximum.reduce(images)
    np.testing.assert_array_equal(made.value(), expected)
    assert made.value().dtype == images[0].dtype


def test_sums_of_counts_are_exact():
    image = np.full((3, 3), 2**32 - 2, np.uint32)
    assert (accumulated("sum", [image] * 50, None).value() == 50 * (2**32 - 2)).all()


def test_the_average_forgets_what_is_old():
    """After a step it follows as a moving average of `length` does, and the number of images stays at that."""
    made = Accumulation("average", np.zeros((2, 2), np.uint16), None, 10)
    for _ in range(40):
        made.add(np.zeros((2, 2), np.uint16))
    for _ in range(10):
        made.add(np.full((2, 2), 1000, np.uint16))
    assert made.frames == 10
    assert made.value() == pytest.approx(1000 * (1 - 0.9**10), rel=1e-4)


def test_a_pixel_that_gets_a_value_later_begins_with_it():
    none = np.full((1, 1), 65535, np.uint16)
    made = accumulated("average", [none] * 8 + [np.full((1, 1), 100, np.uint16)], None)
    assert made.value() == 100


def test_what_was_handed_out_does_not_change():
    image = np.ones((2, 2), np.uint16)
    made = Accumulation("sum", image)
    before = made.value()
    assert before is made.value()
    made.add(image)
    assert (before == 1).all() and (made.value() == 2).all()
    with pytest.raises(ValueError, match="read-only"):
        before[0, 0] = 5


def test_other_images_do_not_fit():
    made = Accumulation("sum", np.ones((2, 2), np.uint16))
    assert made.fits(np.zeros((2, 2), np.uint16))
    assert not made.fits(np.zeros((2, 3), np.uint16)) and not made.fits(np.zeros((2, 2), np.uint32))
