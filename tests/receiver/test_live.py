"""The live view: who looks gets the newest image, nobody else pays for it."""

import math
import os
import threading
import time

import numpy as np
import pytest

from tangods_receiver import codecs, live, priority
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.live import Live
from tangods_receiver.protocol import Array, Frame, SeriesStart, stins
from tangods_receiver.transforms import Chain
from tests.receiver.streaming import SHAPE, Sender, image, running, wait_closed, wait_opened
from tests.waiting import wait_for


def frame(number, pixels=None, **more):
    pixels = image(number) if pixels is None else pixels
    return Frame(number, pixels.shape, str(pixels.dtype), "none", pixels.tobytes(), **more)


def damaged(number):
    return frame(number)._replace(codec="bslz4")


def begin(view, series=1, **values):
    view.begin(series, SeriesStart("", series=series, **values), Chain())


@pytest.fixture
def decoded(monkeypatch):
    """The first pixel of each image that was decoded."""
    numbers = []
    real = codecs.decompress

    def counted(codec, data, shape, dtype):
        array = real(codec, data, shape, dtype)
        numbers.append(array.flat[0])
        return array

    monkeypatch.setattr(live.codecs, "decompress", counted)
    return numbers


@pytest.fixture
def view():
    """Its thread runs, 50 times a second."""
    made = Live(50.0, 4)
    made.start()
    yield made
    made.stop()


# --- the newest ------------------------------------------------------------------------------------------------------


def test_the_newest_image_is_decoded_once(decoded):
    view = Live()
    assert view.last_frame() is None and view.number == -1
    begin(view)
    view.show(1, frame(0))
    view.show(1, frame(1, timestamp=2.5))
    first = view.last_frame()
    assert (first.number, first.series, first.timestamp, first.frames) == (1, 1, 2.5, 1)
    np.testing.assert_array_equal(first.array, image(1))
    with pytest.raises(ValueError, match="read-only"):
        first.array[0, 0] = 1
    assert view.last_frame() is first and len(decoded) == 1
    view.show(1, frame(2))
    assert view.number == 2 and math.isnan(view.last_frame().timestamp)
    assert view.last_frame("last", newer_than=(1, 2)) is None
    assert view.last_frame("last", newer_than=(1, 1)).number == 2


def test_a_frame_that_is_shown_again_is_the_same(decoded):
    view, one = Live(), frame(0)
    view.show(1, one)
    assert view.last_frame("sum").frames == 1
    view.show(1, one)  # as when a batch brings nothing of this series
    assert view.last_frame("sum").frames == 1 and len(decoded) == 1


def test_damaged_images_are_counted_and_the_last_good_one_stays():
    view = Live()
    view.show(1, damaged(0))
    for _ in range(2):
        with pytest.raises(StreamError, match="bslz4"):
            view.last_frame()
    assert view.stats().damaged == 1
    view.show(1, frame(1))
    assert view.last_frame().number == 1
    view.show(1, damaged(2))
    assert view.last_frame().number == 1 == view.last_frame("sum").number
    assert view.stats().damaged == 2
    view.show(1, frame(3))
    assert view.last_frame().number == 3 and view.stats().damaged == 2


def test_what_there_is_not_is_refused():
    view = Live()
    with pytest.raises(ConfigError, match="'least' is not one of last, sum, max, average"):
        view.last_frame("least")
    with pytest.raises(ConfigError, match="channel -1"):
        view.last_frame(channel=-1)
    view.show(1, frame(0))
    with pytest.raises(ConfigError, match="channel 1: the stream has one channel, 0"):
        view.last_frame(channel=1)


# --- nobody looks ----------------------------------------------------------------------------------------------------


def test_nobody_looking_costs_nothing(view, decoded, monkeypatch):
    """Nothing is decoded, and the thread sleeps without a time limit."""
    wait_for(lambda: view._asleep, what="it sleeps")
    woken = []
    monkeypatch.setattr(view, "_turn", lambda wanted: woken.append(wanted))
    for number in range(20):
        view.show(1, frame(number))
        time.sleep(0.01)
    assert decoded == [] and woken == []


def test_one_look_keeps_it_going_for_a_while(view, decoded, monkeypatch):
    monkeypatch.setattr(live, "LOOK", 0.3)
    view.show(1, frame(0))
    assert view.last_frame().number == 0
    looked = time.monotonic()
    number = 0
    while time.monotonic() < looked + 1.0:
        number += 1
        view.show(1, frame(number))
        time.sleep(0.005)
        if time.monotonic() > looked + 0.7:
            assert view._asleep
    last = int(decoded[-1]) // 7
    assert 0 < last < 0.7 * number, "it looked on, and stopped"
    assert len(decoded) <= 2 + 0.4 * 50
    assert view.last_frame().number == number, "and is there at once when somebody looks again"


def test_the_rate_is_a_limit(decoded):
    view = Live(rate=5.0)
    view.start()
    try:
        end = time.monotonic() + 1.0
        number, seen = 0, (1, -1)
        while time.monotonic() < end:
            view.show(1, frame(number))
            number += 1
            if (picture := view.last_frame("last", seen, 0.001)) is not None:
                seen = picture.series, picture.number
        assert 2 <= len(decoded) <= 7
        assert 3 <= view.stats().rate <= 6
    finally:
        view.stop()


def test_slow_decoding_gets_a_share_of_the_time(monkeypatch):
    real = codecs.decompress
    spent = []

    def slow(*args):
        spent.append(time.thread_time())
        while time.thread_time() < spent[-1] + 0.05:
            pass
        return real(*args)

    monkeypatch.setattr(live.codecs, "decompress", slow)
    view = Live(rate=100.0)
    view.start()
    try:
        begun, number = time.monotonic(), 0
        while time.monotonic() < begun + 1.0:
            view.show(1, frame(number))
            view.last_frame("last", (1, number), 0.01)
            number += 1
    finally:
        view.stop()
    assert 2 <= len(spent) <= 1.0 / 0.05 * live.SHARE + 2


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_gets_the_next_one(view):
    view.show(1, frame(0))
    assert view.last_frame().number == 0
    threading.Timer(0.1, view.show, (1, frame(5))).start()
    begun = time.monotonic()
    picture = view.last_frame("last", (1, 0), 5.0)
    assert picture.number == 5 and time.monotonic() - begun < 2.0


def test_who_waits_gets_the_next_one_also_where_each_begins_at_0(view):
    """Single exposures of a detector that announces no series."""
    view.show(0, frame(0))
    first = view.last_frame()
    view.show(0, frame(0, image(5)))
    second = view.last_frame(newer_than=first.id, wait=5.0)
    np.testing.assert_array_equal(second.array, image(5))
    assert view.last_frame(newer_than=second.id, wait=0.1) is None
    view.show(0, frame(1))
    assert view.last_frame(newer_than=second.id, wait=5.0).id == (0, 1, 0)


def test_who_waits_in_vain_gets_nothing(view):
    assert view.last_frame("last", (1, 0), 0.05) is None
    view.show(1, frame(0))
    begun = time.monotonic()
    assert view.last_frame("sum", (1, 0), 0.2) is None
    assert 0.15 < time.monotonic() - begun < 2.0


def test_a_wait_outlasts_the_look(view, monkeypatch):
    monkeypatch.setattr(live, "LOOK", 0.1)
    view.show(1, frame(0))
    view.last_frame()
    threading.Timer(0.4, view.show, (1, frame(1))).start()
    assert view.last_frame("last", (1, 0), 5.0).number == 1


def test_the_end_sets_those_free_who_wait():
    view = Live()
    view.start()
    threading.Timer(0.1, view.stop).start()
    begun = time.monotonic()
    assert view.last_frame("last", (1, 0), 20.0) is None
    assert time.monotonic() - begun < 5.0
    view.stop()


def test_it_survives_what_nobody_foresaw(view, monkeypatch, caplog):
    view.show(1, frame(0))
    monkeypatch.setattr(live.codecs, "decompress", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        view.last_frame()
    monkeypatch.undo()
    view.show(1, frame(1))
    assert view.last_frame("last", (1, 0), 5.0).number == 1


# --- sum, maximum, average -------------------------------------------------------------------------------------------


def test_sums_are_of_the_images_that_were_decoded_while_somebody_looked():
    view = Live(average=2)
    begin(view)
    view.show(1, frame(9))
    assert view.last_frame().number == 9
    assert view.last_frame("sum").frames == 1, "it begins with the image that is there"
    view.show(1, frame(10))
    view.show(1, frame(11))
    total, largest, average = (view.last_frame(kind) for kind in ("sum", "max", "average"))
    assert (total.number, total.frames) == (11, 2)
    np.testing.assert_array_equal(total.array, image(9).astype(float) + image(11))
    np.testing.assert_array_equal(largest.array, image(11))
    assert average.frames == 1, "nobody looked at it before"
    for number in (1, 2):
        view.show(1, frame(number))
        view.last_frame("average")
    average = view.last_frame("average")
    assert average.frames == 2
    np.testing.assert_allclose(average.array, ((image(11).astype(float) + image(1)) / 2 + image(2)) / 2)


def test_they_begin_anew_with_a_series():
    view = Live()
    begin(view, 1)
    view.show(1, frame(0))
    view.last_frame("sum")
    begin(view, 2)
    assert view.last_frame("sum").frames == 1, "nothing came of it yet"
    view.show(2, frame(0))
    assert (view.last_frame("sum").frames, view.last_frame("sum").series) == (1, 2)
    begin(view, 2)  # the same id again
    view.show(2, frame(0))
    assert view.last_frame("sum").frames == 1
    view.show(2, frame(0, np.ones((2, 2), np.uint16)))
    assert view.last_frame("sum").array.shape == (2, 2)


def test_what_nobody_looks_at_is_forgotten(view, monkeypatch):
    monkeypatch.setattr(live, "LOOK", 0.1)
    view.show(1, frame(0))
    view.last_frame("sum")
    view.show(1, frame(1))
    wait_for(lambda: view._asleep and not view._views[0].sums, what="the sum is forgotten")
    assert view.last_frame("sum").frames == 1 and view.last_frame().number == 1


def test_who_looks_while_it_is_forgotten_what_nobody_looks_at_is_not_forgotten():
    view = Live()
    view.show(1, frame(0))
    wanted = view._wanted()
    view.last_frame("sum")
    view._forget(wanted)  # the thread had seen before who looks
    assert ("sum", 0) in view._looks


def test_masked_pixels_take_no_part():
    mask = np.zeros(SHAPE, "<u4")
    mask[2, 3] = 1
    view = Live()
    begin(view, arrays={"pixel_mask": Array(SHAPE, "uint32", mask.tobytes())})
    pixels = image(0)
    pixels[0, 0] = 65535
    for number in (0, 1):
        view.show(1, frame(number, pixels))
        view.last_frame("sum")
    total = view.last_frame("sum").array
    assert np.argwhere(np.isnan(total)).tolist() == [[0, 0], [2, 3]]
    assert total[5, 5] == 2 * pixels[5, 5]
    view.set_rois(["all 0 0 10 6"])
    assert view.stats().rois[0].pixels == 58
    assert view.stats().rois[0].sum == pixels.sum() - 65535 - int(pixels[2, 3])


# --- channels and modules --------------------------------------------------------------------------------------------


def test_channels_are_decoded_when_they_are_looked_at(decoded):
    view = Live()
    begin(view, channels=("low", "high"), modules=2)
    both = [image(k).tobytes() for k in (3, 4)]
    view.show(1, Frame(0, SHAPE, "uint16", "none", both[0], more=(both[1],)))
    assert (view.last_frame().array == image(3)).all() and len(decoded) == 1
    assert (view.last_frame(channel=1).array == image(4)).all() and len(decoded) == 2
    assert (view.last_frame("sum", channel=1).array == image(4)).all()
    with pytest.raises(ConfigError, match=r"channels 0 to 1 \(low, high\)"):
        view.last_frame(channel=2)


def test_other_channels_are_forgotten(view, monkeypatch):
    monkeypatch.setattr(live, "LOOK", 0.1)
    begin(view, channels=("low", "high"), modules=2)
    view.show(1, Frame(0, SHAPE, "uint16", "none", image(3).tobytes(), more=(image(4).tobytes(),)))
    assert view.last_frame(channel=0) and view.last_frame(channel=1)
    wait_for(lambda: list(view._views) == [0], what="one channel is left")


def test_modules_that_come_one_by_one_are_one_image():
    view = Live()
    begin(view, modules=2, metadata={"x": [0, 10], "y": [0, 0]})
    view.show_modules(1, 2, [frame(0), frame(1)])
    assert view.number == -1 and view.last_frame() is None
    view.show_modules(1, 2, [frame(0, image(5), module=1)])
    assert view.number == 0
    np.testing.assert_array_equal(view.last_frame().array, np.hstack([image(0), image(5)]))
    view.set_rois(["second 10 0 10 6"])
    assert view.stats().rois[0].sum == image(5).sum()


def test_a_module_that_does_not_come_leaves_its_place_empty(monkeypatch):
    monkeypatch.setattr("tangods_receiver.mosaic.LATE", 0.05)
    view = Live()
    begin(view, modules=2)
    view.show_modules(1, 2, [frame(0)])
    assert view.last_frame() is None
    time.sleep(0.06)
    picture = view.last_frame()
    assert (picture.array[0] == image(0)).all() and (picture.array[1] == 65535).all()


# --- regions of interest ---------------------------------------------------------------------------------------------


def test_regions_are_measured_in_every_image_that_is_decoded():
    view = Live()
    view.set_rois(["a 0 0 2 1", "b 9 5 50 50"])
    assert [(roi.name, roi.pixels) for roi in view.stats().rois] == [("a", 0), ("b", 0)]
    begin(view, 3)
    for number in (2, 5):
        view.show(3, frame(number))
        view.measure()
    stats = view.stats()
    assert (stats.roi_series, stats.roi_number) == (3, 5)
    assert [roi.sum for roi in stats.rois] == [image(5)[0, :2].sum(), image(5)[5, 9]]
    assert (stats.rois[1].pixels, stats.rois[1].centre_x, stats.rois[1].centre_y) == (1, 9, 5)
    history = view.roi_history()
    assert history[:, :2].tolist() == [[3, 2], [3, 5]] and abs(history[:, 2] - time.time()).max() < 60
    assert history[:, 3].tolist() == [image(k)[0, :2].sum() for k in (2, 5)]
    view.measure()
    assert len(view.roi_history()) == 2, "the same image counts once"


def test_other_regions_begin_a_new_history():
    view = Live(regions=live.rois.parse(["a 0 0 2 2"]))
    view.show(1, frame(1))
    view.measure()
    view.set_rois(["b 1 1 2 2", "c 0 0 1 1"])
    assert view.roi_history().shape == (1, 15), "of the image that is there"
    with pytest.raises(ConfigError, match="rois: 'b': not like"):
        view.set_rois(["b"])
    assert [roi.name for roi in view.rois] == ["b", "c"]
    view.set_rois([])
    view.show(1, frame(2))
    view.measure()
    assert view.stats().rois == () and view.roi_history().shape == (0, 3)


def test_a_damaged_image_leaves_the_regions_as_they_were():
    view = Live(regions=live.rois.parse(["a 0 0 2 2"]))
    view.show(1, damaged(0))
    view.measure()
    assert view.stats().roi_number == -1
    view.show(1, frame(1))
    view.measure()
    view.show(1, damaged(2))
    view.measure()
    assert view.stats().roi_number == 1


def test_regions_are_measured_also_while_nobody_looks(view, decoded):
    view.set_rois(["a 0 0 2 2"])
    time.sleep(0.05)
    begun, number = time.monotonic(), 0
    while len(view.roi_history()) < 10:
        assert time.monotonic() < begun + 20
        view.show(1, frame(number))
        number += 1
        time.sleep(0.01)
    history = view.roi_history()
    assert (np.diff(history[:, 1]) > 0).all()
    assert history[:, 3].tolist() == [image(int(k))[:2, :2].sum() for k in history[:, 1]]
    view.set_rois([])
    time.sleep(0.1)
    count = len(decoded)
    view.show(1, frame(number))
    wait_for(lambda: view._asleep, what="it sleeps")
    assert len(decoded) == count


# --- from a socket ---------------------------------------------------------------------------------------------------


def test_what_is_received_is_shown_with_and_without_a_file(tmp_path):
    with Sender() as sender, running(tmp_path, sender.endpoint, live_rate=50.0, rois=["a 1 1 3 3"]) as engine:
        for series, name in ((1, tmp_path / "a.h5"), (2, "")):
            sender.start(name, series=series, nframes=2)
            sender.frames((0, 1))
            wait_closed(engine, series)
            engine.measure_rois()
            stats = engine.snapshot().live
            assert (stats.roi_series, stats.roi_number) == (series, 1)
            assert stats.rois[0].sum == image(1)[1:4, 1:4].sum()
            picture = engine.last_frame("sum", (series, 0), 5.0)
            assert (picture.series, picture.number) == (series, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_modules_in_messages_of_their_own(tmp_path, workers):
    with Sender() as sender, running(tmp_path, sender.endpoint, workers=workers) as engine:
        sender.start(tmp_path / "a.h5", series=1, modules=3, nframes=4)
        wait_opened(engine, 1)
        for number in range(4):
            for module in (2, 0, 1):
                head = stins.encode_frame_header(
                    number, SHAPE, "uint16", "none", sender.serial, series=1, module=module
                )
                sender.parts([head, image(10 * number + module).tobytes()])
        wait_closed(engine, 1)
        picture = engine.last_frame()
    assert picture.array.shape == (3, *SHAPE)
    for module in range(3):
        np.testing.assert_array_equal(picture.array[module], image(10 * picture.number + module))
    assert workers > 1 or picture.number == 3


def test_the_live_view_gives_way_to_recording():
    own = os.getpriority(os.PRIO_PROCESS, os.getpid())
    before = {t.ident for t in threading.enumerate()}
    view = Live()
    view.start()
    try:
        (thread,) = [t for t in threading.enumerate() if t.ident not in before]
        wanted = min(19, own + priority.NICE)
        wait_for(lambda: os.getpriority(os.PRIO_PROCESS, thread.native_id) == wanted)
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    finally:
        view.stop()
