"""What the GUI decides, without Qt."""

from __future__ import annotations

import ast
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver.pictures import COLOURS, colormap
from tangods_receiver.viewers import Wish
from taurus_gui import control, estimate, geometry, levels, past, pictures, roistats, words
from taurus_gui.events import Events
from taurus_gui.mailbox import Mailbox
from taurus_gui.orders import Answer, Connection, Order, ReceiverSide
from taurus_gui.rings import Geometry

SERIES = {
    "nTriggers": 2,
    "nFramesPerTrigger": 50,
    "ExposureTime": 0.1,
    "FrameTime": 0.0,
    "LatencyTime": 0.01,
    "TriggerMode": "INTERNAL",
    "FrameShape": (1000, 2000),
    "DataType": "uint32",
    "DestinationFilename": "/data/a.h5",
    "SaveRaw": True,
}
QT_FREE = (
    "control described estimate events geometry h5reading filelink imagelink levels mailbox orders past pictures "
    "receiverlink rings roistats tangoimages tangolink words"
).split()


@pytest.mark.parametrize("module", QT_FREE)
def test_logic_knows_nothing_of_qt(module):
    """Also not by way of another module of ours."""
    folder = Path(sys.modules["taurus_gui"].__file__).parent
    tree = ast.parse((folder / f"{module}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "taurus_gui"
        for alias in node.names
    } | {name.partition(".")[2] for name in names if name.startswith("taurus_gui.")}
    assert not any(name.startswith(("PyQt", "taurus.", "pyqtgraph", "silx.gui")) for name in names)
    assert ours <= set(QT_FREE)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("20 ms", 0.02), ("100us", 1e-4), ("1,5", 1.5), ("2 min", 120), ("1e-3 s", 1e-3), ("3 µs", 3e-6)],
)
def test_times_are_read_as_people_write_them(text, value):
    assert words.seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "fast", "1 day", "--2", "1.2.3"])
def test_what_is_no_time_is_said(text):
    with pytest.raises(ValueError, match="not a time; write for example"):
        words.seconds(text)


@given(st.floats(1e-7, 1e5))
def test_a_time_that_is_shown_reads_back_as_it_was(value):
    assert words.seconds(words.number(value)) == pytest.approx(value, rel=1e-9)


def test_sizes_and_durations():
    assert [words.size(n) for n in (0, 999, 1000, 4.2e9, 3e12)] == ["0 B", "999 B", "1 kB", "4.2 GB", "3 TB"]
    shown = [words.duration(s) for s in (5e-5, 0.02, 3.14159, 42.4, 61, 3700, 3e5)]
    assert shown == ["50 µs", "20 ms", "3.1 s", "42 s", "1 min 01 s", "1 h 02 min", "3.5 days"]
    assert words.count(12345) == "12\u202f345" and words.count(1.5) == "1.5"
    assert words.whole("10 000") == 10_000
    with pytest.raises(ValueError, match="'1.5' is not a whole number"):
        words.whole("1.5")


def test_free_space_is_read_from_the_receivers_words():
    from tangods_receiver.destination import refusal

    sentence = refusal(Path("/tmp"), "nothing_is_called_so.h5", 2**62)
    assert words.free_space(sentence) > 0
    assert words.free_space("x: 4.6 EB needed, 12.3 GB free; make room") == 12.3e9
    assert words.free_space("x: exists; choose another name") is None


# --- what can be done ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "mode", "can"),
    [
        (None, "INTERNAL", set()),
        ("ON", "INTERNAL", {"Arm", "Live"}),
        ("ALARM", "SOFTWARE", {"Arm", "Live"}),
        ("MOVING", "INTERNAL", {"Stop", "Abort"}),
        ("RUNNING", "INTERNAL", {"Stop", "Abort"}),
        ("RUNNING", "SOFTWARE", {"Stop", "Abort", "SoftwareTrigger"}),
        ("FAULT", "INTERNAL", {"Reset"}),
        ("UNKNOWN", "INTERNAL", set()),
        ("DISABLE", "INTERNAL", set()),
        ("INIT", "INTERNAL", set()),
        ("CLOSE", "INTERNAL", set()),
    ],
)
def test_only_what_the_state_allows(state, mode, can):
    refused = control.refusals(state, {"TriggerMode": mode, "nFramesExpected": 10})
    assert {name for name, why in refused.items() if not why} == can


def test_every_state_has_a_symbol_and_a_word():
    seen = {
        str(control.headline(s, {})) for s in (None, "ON", "ALARM", "MOVING", "RUNNING", "FAULT", "UNKNOWN", "INIT")
    }
    assert len(seen) == 8 and all(text[0] in "✖●▲◐▶◌" for text in seen)


def test_waiting_for_triggers():
    told = {"TriggerMode": "EXTERNAL_MULTI", "nTriggers": 5, "nFramesPerTrigger": 2, "nFramesExpected": 10}
    assert control.waits("RUNNING", {**told, "nFramesAcquired": 4})
    assert not control.waits("RUNNING", {**told, "nFramesAcquired": 5})
    assert not control.waits("RUNNING", {**told, "nFramesAcquired": 10})
    assert not control.waits("ON", {**told, "nFramesAcquired": 4})
    assert control.waiting_text({**told, "nFramesAcquired": 4}, 0.5) == "Waiting for trigger 3 of 5"
    assert control.waiting_text({**told, "nFramesAcquired": 4}, 75) == "Waiting for trigger 3 of 5, for 1 min 15 s"
    assert control.headline("RUNNING", {**told, "nFramesAcquired": 4}).word == "Waiting for trigger"


def test_problems_are_told_worst_first():
    running = {"TriggerMode": "INTERNAL", "nFramesExpected": 10, "FrameTime": 0.1, "ExposureTime": 0.1}
    assert control.problems("RUNNING", running, silence=1.9) == []
    assert "No new frame for 5 s" in control.problems("RUNNING", running, silence=5.0)[0].sentence
    assert control.problems("RUNNING", {**running, "FrameTime": 60}, silence=100) == []  # slow frames are no silence
    missing = control.problems("ON", {"nFramesMissing": 3, "LastError": "series 4: 3 frames missing"})
    assert len(missing) == 1 and missing[0].bad and "3 frames are missing" in missing[0].sentence
    fault = control.problems("FAULT", {"LastError": "disk full"})
    assert fault[0].remedy == "Reset" and fault[0].sentence == "disk full"
    assert control.problems(None, {}, "gone")[0].sentence == "gone"


# --- the coming series -----------------------------------------------------------------------------------------------


def test_the_coming_series():
    found = estimate.estimate(SERIES)
    assert found == estimate.Estimate(100, pytest.approx(11.0), 100 * 8_000_000)
    assert found.text(5e9) == "100 frames · 11 s · at most 800 MB · 5 GB free"
    assert found.fits(None) and found.fits(1e9) and not found.fits(7e8)
    assert estimate.estimate({**SERIES, "SaveRaw": False}).text() == "100 frames · 11 s · no file"
    assert estimate.estimate({**SERIES, "TriggerMode": "EXTERNAL_MULTI"}).seconds is None
    assert estimate.estimate({}) is None


def test_time_left():
    told = {**SERIES, "nFramesExpected": 100, "nFramesReceived": 40, "MeasuredRate": 5.0}
    assert estimate.time_left(told) == pytest.approx(12.0)
    assert estimate.time_left({**told, "MeasuredRate": 0.0}) == pytest.approx(60 * 0.11)
    assert estimate.time_left({**told, "nFramesExpected": 0}) is None


# --- images ----------------------------------------------------------------------------------------------------------


def test_colours_are_those_of_the_live_page():
    for title, name in (("Viridis", "viridis"), ("Grey", "grey"), ("Turbo", "turbo")):
        ours, theirs = levels.table(title), colormap(name)
        assert np.abs(ours[0].astype(int) - theirs[0]).max() <= 1
        assert np.abs(ours[253].astype(int) - theirs[255]).max() <= 1
    assert tuple(ours[levels.MASKED]) == COLOURS[1] and tuple(ours[levels.SATURATED]) == COLOURS[2]


def test_pixels_become_indices():
    pixels = np.array([[0, 10, 20], [5, 30, 4]], np.uint16)
    marks = np.array([[0, 0, 0], [0, 1, 2]], np.uint8)
    index = levels.indexed(pixels, marks, 0, 20)
    assert index.tolist() == [[0, 126, 253], [63, levels.MASKED, levels.SATURATED]]
    assert levels.indexed(pixels, None, 10, 10.0001)[0, 0] == 0  # below the range
    log = levels.indexed(np.array([[0, 1, 10, 100]], np.float32), None, 1, 100, True)
    assert log.tolist() == [[0, 0, 126, 253]]
    assert levels.indexed(np.array([[np.nan, np.inf, 1.0]]), None, 0, 2).tolist() == [[254, 254, 126]]


def test_the_automatic_range_leaves_marks_and_extremes_out():
    pixels = np.arange(10_000, dtype=np.uint32).reshape(100, 100)
    pixels[0, :3] = 2**32 - 1
    marks = (pixels == 2**32 - 1).astype(np.uint8)
    low, high = levels.auto_range(pixels, marks, 0.1)
    assert 10 <= low <= 20 and 9980 <= high <= 9995
    assert levels.auto_range(np.full((5, 5), 7)) == (7.0, 8.0)
    assert levels.auto_range(np.full((5, 5), np.nan)) == (0.0, 1.0)


@given(st.integers(1, 5000), st.integers(1, 5000), st.tuples(*[st.floats(-0.5, 1.5)] * 4), st.integers(16, 4000))
def test_what_is_asked_for_is_what_the_receiver_takes(rows, columns, part, screen):
    top, bottom = sorted((part[0] * rows, part[1] * rows))
    left, right = sorted((part[2] * columns, part[3] * columns))
    asked = pictures.wish((top, left, bottom, right), (rows, columns), (screen, screen))
    wish = Wish.model_validate({**asked, "kind": "last", "method": "mean", "rate": 15})
    if wish.region:
        assert 0 <= wish.region[0] < wish.region[2] <= rows and 0 <= wish.region[1] < wish.region[3] <= columns


def test_a_message_of_the_receiver_is_read():
    import time

    from tangods_receiver import viewers
    from tangods_receiver.live import LastFrame
    from tangods_receiver.pictures import view

    image = np.arange(60, dtype=np.uint16).reshape(6, 10)
    image[2, 3] = 65535
    shot = viewers.Shot(LastFrame(7, 3, image, 1.5), None, 0.25)
    made = view(image, (0, 0, 6, 10), 0, (6, 10))
    picture = pictures.parse(viewers.message(12, shot, Wish(pixel=(1, 2)), made))
    np.testing.assert_array_equal(picture.pixels, image)
    assert picture.marks[2, 3] == 1 and picture.marks.sum() == 1
    assert (picture.id, picture.series, picture.number, picture.full) == (12, 3, 7, (6, 10))
    assert picture.pixel["value"] == 12 and 0.2 < time.monotonic() - picture.came < 5
    assert pictures.value_at(picture, 2, 3) == (65535, "masked") and pictures.value_at(picture, 6, 0) is None
    distance, values = pictures.profile(picture, (1.5, 0.5), (1.5, 9.5))
    assert distance[-1] == 9 and values.tolist() == list(range(10, 20))
    assert np.isnan(pictures.profile(picture, (2.5, 0.5), (2.5, 9.5))[1][3])


# --- geometry --------------------------------------------------------------------------------------------------------


def test_rings_of_known_spacing():
    there = Geometry(12398.41984, 0.1, (1e-4, 1e-4), (500, 500))
    assert there.wavelength == pytest.approx(1.0)
    rows, columns = there.radius(2.0)  # 2θ = 2 asin(1/4) = 28.955 degrees
    assert rows == columns == pytest.approx(0.1 * np.tan(np.radians(28.9550)) / 1e-4, rel=1e-4)
    assert there.spacing(500, 500 + columns) == pytest.approx(2.0)
    assert there.spacing(500, 500) is None and there.radius(0.5) is None
    drawn = there.rings(1000, 1000)
    assert 2 <= len(drawn) <= 6 and all(a[1] < b[1] for a, b in zip(drawn, drawn[1:], strict=False))
    assert Geometry().rings(10, 10) == [] and Geometry().lacks() == "energy, distance, pixel size, beam centre"


def test_geometry_is_read_from_and_written_into_metadata():
    told = {"Metadata": '{"sample": "A1", "detector_distance": 0.2, "beam_center_x": 5}', "PixelSize": (1e-4, 2e-4),
            "Binning": (2, 1), "Energy": 8000.0}  # fmt: skip
    values = geometry.told(told)
    assert values == {"distance": 0.2, "column": 5.0, "energy": 8000.0}
    found = geometry.geometry(told, {**values, "row": 7.0})
    assert found == Geometry(8000.0, 0.2, (1e-4, 4e-4), (7.0, 5.0))
    for angle, pixel in ((90, (4e-4, 1e-4)), (180, (1e-4, 4e-4)), (270, (4e-4, 1e-4))):
        assert geometry.geometry({**told, "Rotation": angle}, values).pixel == pixel
    written = json.loads(geometry.with_geometry(told, {"row": 7.0, "energy": 1.0}))
    assert written == {"sample": "A1", "detector_distance": 0.2, "beam_center_x": 5, "beam_center_y": 7.0,
                       "incident_energy": 1.0}  # fmt: skip
    assert geometry.told({"Metadata": "[1]"}) == {}


# --- what was --------------------------------------------------------------------------------------------------------


def test_regions_against_time():
    rows = [[1, n, 100.0 + n, *range(10 * n, 10 * n + 6), *range(6)] for n in range(3)]
    assert roistats.curve(rows, 0).values.tolist() == [0, 10, 20]
    assert roistats.curve(rows, 0, "max").ages.tolist() == [-2, -1, 0]
    assert roistats.newest(rows, 1) == dict(zip(roistats.FIELDS, range(6), strict=True))
    assert roistats.newest(rows, 2) == {} and len(roistats.curve(np.zeros((0, 0)), 0).values) == 0
    assert roistats.new_name(["roi1", "roi3"]) == "roi2"


def test_last_series_and_trends_are_bounded():
    told = [{"file": f"/a/{n}.h5", "written": 5, "missing": n, "ended": 0.0} for n in range(70)]
    found = past.from_receiver([{"file": ""}, *told])
    assert len(found) == 49 and found[0].well and not found[1].well and "1 missing" in found[1].cells()[2]
    trend = past.Trend(10)
    for n in range(1000):
        trend.add(n, n)
    assert len(trend) == 10 and trend.curve(4, 999)[1].tolist() == [995, 996, 997, 998, 999]


def test_a_trend_is_of_a_whole_hour_however_often_it_is_told():
    trend = past.Trend(every=3.0)
    for n in range(2 * 3600 * 2):
        trend.add(n, n / 2)
    assert len(trend) == 1200 and trend.curve(3600, 7200)[0][0] == pytest.approx(-3600, abs=3)
    trend.add(1, 10.0)  # somebody set the clock
    assert trend.curve(3600, 10.0)[0][-1] == 0


def test_what_is_worth_a_line():
    events = Events(most=5)
    assert events.connection(Connection(False, "no database"))[0].level == "error"
    assert events.connection(Connection(False, "no database")) == []
    assert events.connection(Connection(True))[0].text == "Connected again"
    assert events.receiver(ReceiverSide("b1/rec/1", error="timeout"))[0].level == "error"
    fault = {"State": "FAULT", "Status": "disk full", "LastError": "disk full"}
    assert [e.text for e in events.readings({"State", "LastError"}, fault)] == ["FAULT: disk full"]
    refused = events.answer(Answer(Order("write", "Roi", [1]), "outside"))[0]
    assert refused.level == "error" and refused.text == "Roi = [1] was refused: outside"
    assert events.answer(Answer(Order("check", "CheckFile"), "")) == []
    lost = {"openings": 1, "lost": [{"kind": "missing", "count": 2, "sentence": "2 of 5"}]}
    assert events.status(lost) == []  # it was before we looked
    assert len(events.status({**lost, "openings": 2})) == 1 and events.status({**lost, "openings": 2}) == []
    assert len(events.entries) == 6  # of each sort not more than 5


def test_errors_are_not_pushed_out_of_the_log_by_routine():
    events = Events(most=5)
    events.note("the disk is full")
    for n in range(20):
        events.answer(Answer(Order("write", "nTriggers", n)))
    events.note("the cable is loose")
    texts = [entry.text for entry in events.entries]
    assert texts == ["the disk is full", *(f"nTriggers = {n}" for n in range(15, 20)), "the cable is loose"]
    events.clear()
    assert events.entries == []


def test_of_each_thing_the_newest_waits():
    rung = []
    box = Mailbox(lambda: rung.append(1))
    threads = [threading.Thread(target=lambda: [box.put("a", "x", n) for n in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(500):
        box.append("notes", n)
    newest, queues = box.take()
    assert newest == {"a": {"x": 999}} and queues["notes"] == list(range(300, 500)) and len(rung) == 1
    assert box.take() == ({}, {})
    box.put("a", "x", 1)
    assert len(rung) == 2
    box.close()
    box.take()
    box.put("a", "x", 2)
    assert len(rung) == 2
