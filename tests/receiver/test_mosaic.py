"""Modules to one picture: those that come one by one, their places, channels, masks."""

import random

import numpy as np
import pytest

from tangods_receiver import transforms
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.mosaic import LATE, Collector, Mosaic
from tangods_receiver.protocol import Array, Frame, SeriesStart


def piece(number, module, more=0):
    data = tuple(bytes([number % 250, module + k]) for k in range(1 + more))
    return Frame(number, (1, 2), "uint8", "none", data[0], module=module, more=data[1:])


def numbers(shown):
    """(number of the image, modules that are there); every one is of that image."""
    for module, found in enumerate(shown.pieces):
        assert found is None or bytes(found[1]) == bytes([shown.frame.number % 250, module])
    return shown.frame.number, [module for module, found in enumerate(shown.pieces) if found is not None]


def collect(collector, frames, now=0.0):
    return [numbers(shown) for frame in frames if (shown := collector.add(frame, now)) is not None]


# --- modules one by one ----------------------------------------------------------------------------------------------


def test_every_image_in_step_is_put_together():
    frames = [piece(number, module) for number in range(5) for module in range(3)]
    assert collect(Collector(1, 3), frames) == [(number, [0, 1, 2]) for number in range(5)]


def test_messages_of_some_modules_each():
    frames = [piece(number, module, more=1) for number in range(3) for module in (2, 0)]
    assert collect(Collector(1, 4), frames) == [(number, [0, 1, 2, 3]) for number in range(3)]


def test_one_sender_ahead_of_the_other():
    """Never mixed, and what is shown is whole as soon as both come to the same image."""
    frames = [piece(number, 0) for number in range(60)] + [piece(number, 1) for number in range(60)]
    assert collect(Collector(1, 2), frames) == [(0, [0, 1]), (59, [0, 1])]
    by_turns = [piece(number + 20 * (1 - module), module) for number in range(100) for module in (0, 1)]
    shown = collect(Collector(1, 2), by_turns)
    assert len(shown) >= 4 and all(modules == [0, 1] for _, modules in shown)


def test_shuffled_senders():
    """Each sends its module in order; how they overtake each other is random."""
    source = random.Random(3)
    for _ in range(50):
        queues = [[piece(number, module) for number in range(40)] for module in range(4)]
        frames = []
        while any(queues):
            frames.append(source.choice([queue for queue in queues if queue]).pop(0))
        shown = collect(Collector(1, 4), frames)
        assert all(modules == [0, 1, 2, 3] for _, modules in shown)
        assert [number for number, _ in shown] == sorted({number for number, _ in shown})
        assert shown[-1][0] == 39, "the last image is shown when all have ended"


def test_workers_that_share_a_stream():
    """Also the messages of one module overtake each other."""
    source = random.Random(4)
    for _ in range(50):
        messages = [piece(number, module) for number in range(40) for module in range(3)]
        queues, frames = [messages[0::2], messages[1::2]], []
        while any(queues):
            frames.append(source.choice([queue for queue in queues if queue]).pop(0))
        shown = collect(Collector(1, 3), frames)
        assert len(shown) >= 2 and all(modules == [0, 1, 2] for _, modules in shown)
        assert shown[-1][0] == 39


def test_an_image_that_lacks_a_module_is_passed_over():
    frames = [piece(0, 0), piece(0, 1), piece(1, 0), piece(2, 0), piece(2, 1)]
    assert collect(Collector(1, 2), frames) == [(0, [0, 1]), (2, [0, 1])]


def test_a_module_that_never_comes_is_waited_for_once():
    collector = Collector(1, 2)
    assert collector.add(piece(0, 0), 10.0) is None
    assert collector.overdue(10.0 + LATE) is None
    shown = collector.overdue(10.1 + LATE)
    assert shown is not None and numbers(shown) == (0, [0])
    assert collector.overdue(20.0 + LATE) is None  # once
    assert collect(collector, [piece(1, 0), piece(2, 0)], 20.0) == [(1, [0]), (2, [0])]
    assert collect(collector, [piece(3, 1), piece(3, 0), piece(4, 0), piece(4, 1)], 21.0)[-1] == (4, [0, 1])


def test_a_stream_that_begins_again_at_0():
    collector = Collector(0, 2)
    assert collect(collector, [piece(100, 0), piece(100, 1)]) == [(100, [0, 1])]
    assert collect(collector, [piece(0, 0), piece(0, 1)], 5.0) == []
    assert collect(collector, [piece(1, 1)], 5.1 + LATE) == []
    assert collect(collector, [piece(2, 0), piece(2, 1)], 5.1 + LATE) == [(2, [0, 1])]


def test_modules_beyond_those_that_were_announced_are_left_out():
    assert collect(Collector(1, 2), [piece(0, 0, more=2), piece(0, 1)])[0] == (0, [0, 1])


# --- one picture -----------------------------------------------------------------------------------------------------


def start(**values):
    return SeriesStart("", series=1, **values)


def module(value, dtype="uint16"):
    return np.full((2, 3), value, dtype)


def test_modules_without_places_stay_apart():
    picture = Mosaic(start()).picture([module(1), None, module(3)])
    assert picture.shape == (3, 2, 3) and (picture[1] == 65535).all() and (picture[2] == 3).all()
    assert Mosaic().picture([module(7)]).shape == (2, 3)


@pytest.mark.parametrize(("dtype", "gap"), [("uint16", 65535), ("int32", -1), ("float32", np.nan)])
def test_straight_modules_lie_where_the_start_says(dtype, gap):
    said = {"x": [0, 4], "y": [1, 0], "full_shape": [3, 8]}
    picture = Mosaic(start(metadata=said, modules=2)).picture([module(1, dtype), module(2, dtype)])
    expected = np.full((3, 8), gap, dtype)
    expected[1:3, 0:3], expected[0:2, 4:7] = 1, 2
    np.testing.assert_array_equal(picture, expected)
    lacking = Mosaic(start(metadata=said, modules=2)).picture([module(1, dtype), None])
    np.testing.assert_array_equal(lacking[0:2, 4:7], module(gap, dtype))


@pytest.mark.parametrize(
    "said",
    [
        {"x": [0, 4], "y": [0, 0], "rotation": [0, 90]},
        {"x": [0, 4.5], "y": [0, 0]},
        {"x": [0, 1], "y": [0, 0]},
        {"x": "left", "y": [0, 0]},
        {"x": [0, 0], "y": [0, 0]},
    ],
)
def test_other_places_leave_the_modules_apart(said):
    assert Mosaic(start(metadata=said)).picture([module(1), module(2)]).shape == (2, 2, 3)


def test_modules_that_differ_are_no_image():
    with pytest.raises(StreamError, match="differ in size"):
        Mosaic().picture([module(1), module(1)[:1]])
    with pytest.raises(StreamError, match="no module"):
        Mosaic().picture([None, None])


def test_channels_are_chosen():
    mosaic = Mosaic(start(channels=("low", "high"), modules=2))
    assert (mosaic.chosen(2, 0), mosaic.chosen(2, 1)) == (range(0, 1), range(1, 2))
    with pytest.raises(ConfigError, match=r"channel 2: the stream has channels 0 to 1 \(low, high\)"):
        mosaic.chosen(2, 2)
    assert Mosaic(start(modules=4)).chosen(4, 0) == range(4)
    with pytest.raises(ConfigError, match="channel 1: the stream has one channel, 0"):
        Mosaic().chosen(4, 1)


# --- masks -----------------------------------------------------------------------------------------------------------


def array(values, dtype="uint32"):
    values = np.array(values, dtype)
    return Array(values.shape, dtype, values.astype(values.dtype.newbyteorder("<")).tobytes())


def test_the_mask_of_the_stream():
    mosaic = Mosaic(start(arrays={"pixel_mask": array([[0, 1, 0], [0, 0, 1 << 30]])}))
    assert mosaic.masked((2, 3), 0).tolist() == [[False, True, False], [False, False, True]]
    assert mosaic.masked((2, 3), 0) is mosaic.masked((2, 3), 0)
    assert mosaic.masked((3, 2), 0) is None and mosaic.masked((4, 3), 0) is None
    assert Mosaic().masked((2, 3), 0) is None and Mosaic(start()).masked((2, 3), 0) is None


def test_each_channel_may_have_its_own():
    arrays = {"low/pixel_mask": array([[1, 0]]), "pixel_mask": array([[0, 1]])}
    mosaic = Mosaic(start(channels=("low", "high"), arrays=arrays))
    assert mosaic.masked((1, 2), 0).tolist() == [[True, False]]
    assert mosaic.masked((1, 2), 1).tolist() == [[False, True]]


def test_the_mask_is_turned_as_the_pixels_are():
    mask = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], "uint32")
    chain = transforms.build([{"rotate": 90}, "flipud", {"crop": {"rows": [0, 4]}}, {"bin": [2, 1]}])
    marked = np.flip(np.rot90(mask), 0)[0:4].reshape(2, 2, 3).any(axis=1)
    found = Mosaic(start(arrays={"pixel_mask": array(mask)}), chain).masked(marked.shape, 0)
    assert marked.sum() == 1
    np.testing.assert_array_equal(found, marked)


def test_masks_of_modules_go_where_the_modules_are():
    mask = np.zeros((2, 2, 3), "uint8")
    mask[1, 0, 0] = 1
    said = {"x": [0, 3], "y": [0, 0]}
    mosaic = Mosaic(start(arrays={"pixel_mask": array(mask, "uint8")}, metadata=said))
    assert np.argwhere(mosaic.masked((2, 6), 0)).tolist() == [[0, 3]]
    apart = Mosaic(start(arrays={"pixel_mask": array(mask, "uint8")}))
    assert np.argwhere(apart.masked((2, 2, 3), 0)).tolist() == [[1, 0, 0]]


def test_a_mask_that_is_none_is_told_once(caplog):
    mosaic = Mosaic(start(arrays={"pixel_mask": Array((2, 2), "uint32", b"123")}))
    assert mosaic.masked((2, 2), 0) is None and mosaic.masked((2, 2), 0) is None
    assert len(caplog.records) == 1 and "of no use" in caplog.text
