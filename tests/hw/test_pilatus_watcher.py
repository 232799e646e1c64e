"""The parts of the Pilatus stream: names, folder, order, what a CBF says of itself, messages."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.hw import pilatus_cbf as cbf_look
from tangods_detector.hw import pilatus_outlet as outlet
from tangods_detector.hw.pilatus_queue import DAMAGED, Queue
from tangods_detector.hw.pilatus_watcher import Pattern, Watcher, file_system
from tangods_receiver.protocol import stins
from tests.hw.pilatus_files import SHAPE, cbf, image, place

NEVER = 1e6  # s

# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "number", "name"),
    [
        ("test_%05d.cbf", 0, "test_00000.cbf"),
        ("test_%05d.cbf", 100000, "test_100000.cbf"),
        ("test_%03d.cbf", 10, "test_010.cbf"),
        ("a.b_%d.cbf", 7, "a.b_7.cbf"),
        ("a_1_%02d", 3, "a_1_03"),
    ],
)
def test_a_name_tells_its_number(pattern, number, name):
    names = Pattern.parse(pattern)
    assert (names.name(number), names.number(name)) == (name, number)


@pytest.mark.parametrize(
    "name",
    [
        *("test_0000.cbf", "test_000000.cbf", "test_00000.cbf.tmp", ".test_00000.cbf", "test_.cbf", "test_-0001.cbf"),
        *("test_0000١.cbf", "other_00000.cbf", "test_00000.tif", "test_00 00.cbf", "test_" + "9" * 30 + ".cbf", ""),
    ],
)
def test_names_of_something_else(name):
    assert Pattern.parse("test_%05d.cbf").number(name) is None


def test_a_single_image_has_the_name_as_it_was_typed():
    names = Pattern.parse("single.cbf", first=4)
    assert (names.number("single.cbf"), names.number("single_00004.cbf"), names.name(4)) == (4, None, "single.cbf")


@pytest.mark.parametrize(
    "text", ["", "a/b_%d.cbf", ".hidden_%d", "a_%s.cbf", "a_%d_%d.cbf", "a_%05x.cbf", "100%", "a\0"]
)
def test_patterns_that_are_none(text):
    with pytest.raises(ValueError, match="pattern is "):
        Pattern.parse(text)


# --- a folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["inotify", "polling"])
def watcher(request, tmp_path):
    watcher = Watcher(str(tmp_path), polling=request.param == "polling", rescan=NEVER)
    yield watcher
    watcher.close()


def seen(watcher, *names, limit=5.0):
    """What the watcher tells until all of these came."""
    found, end = set(), time.monotonic() + limit
    while not found.issuperset(names) and time.monotonic() < end:
        found |= set(watcher.look(0.05))
    return found


@pytest.mark.parametrize("polling", [False, True])
def test_what_was_there_before_the_watch_and_what_comes(tmp_path, polling):
    place(tmp_path, "before", b"1")
    watcher = Watcher(str(tmp_path), polling, rescan=NEVER)
    assert seen(watcher, "before") == {"before"}
    place(tmp_path, "after", b"2")
    assert "after" in seen(watcher, "after")
    watcher.close()


def test_a_file_written_under_its_own_name_is_told_when_it_is_closed(tmp_path):
    watcher = Watcher(str(tmp_path), polling=False, rescan=NEVER)
    watcher.look(0)
    with open(tmp_path / "slow", "wb") as file:
        file.write(b"half")
        file.flush()
        assert watcher.look(0.1) == set()
    assert watcher.look(1.0) == {"slow"}
    watcher.close()


def test_a_file_comes_at_once(tmp_path):
    watcher = Watcher(str(tmp_path), polling=False, rescan=NEVER)
    watcher.look(0)
    timer = threading.Timer(0.1, place, (tmp_path, "new", b""))
    timer.start()
    began = time.monotonic()
    assert "new" in seen(watcher, "new", limit=10.0)
    assert time.monotonic() - began < 5.0
    timer.join()
    watcher.close()


def test_a_queue_that_overflows_is_no_loss(tmp_path):
    """Nobody reads while more names come than the kernel keeps."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    watcher = Watcher(str(tmp_path), polling=False, rescan=NEVER)
    watcher.look(0)
    path = tmp_path / "file"
    for number in range(limit // 2 + 100):  # two events each
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.rename(path, tmp_path / f"n{number % 50}")
    place(tmp_path, "last", b"")
    assert seen(watcher, "last") >= {f"n{k}" for k in range(50)} | {"last"}
    assert (watcher.overflows, watcher.scans) == (1, 2)
    watcher.close()


def test_a_lost_event_is_made_good_by_the_next_scan(tmp_path):
    watcher = Watcher(str(tmp_path), polling=False, rescan=0.2)
    watcher.look(0)
    place(tmp_path, "lost", b"")
    watcher._inotify.read(0)
    assert "lost" in seen(watcher, "lost", limit=2.0)
    watcher.close()


def test_a_folder_that_goes(tmp_path, watcher):
    folder = tmp_path / "gone"
    folder.mkdir()
    other = Watcher(str(folder), polling=watcher.polling, rescan=NEVER)
    other.look(0)
    folder.rmdir()
    with pytest.raises(OSError, match="gone|No such file"):
        seen(other, "x", limit=2.0)
    other.close()
    with pytest.raises(FileNotFoundError):
        Watcher(str(folder)).look(0)


def test_network_file_systems_are_polled(tmp_path):
    table = tmp_path / "mounts"
    table.write_text("none / ext4 rw 0 0\nserver:/x /net\\040a nfs4 rw 0 0\ntmpfs /net\\040a/ram tmpfs rw 0 0\n")
    kinds = {path: file_system(path, str(table)) for path in ("/home", "/net a", "/net a/b", "/net a/ram/x", "/net ab")}
    assert list(kinds.values()) == ["ext4", "nfs4", "nfs4", "tmpfs", "ext4"]
    assert file_system("/home", str(tmp_path / "none")) == ""
    assert file_system("/dev/shm") == "tmpfs"


def test_without_watches_the_folder_is_polled(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "no space left: watches")

    monkeypatch.setattr("inotify_simple.INotify.add_watch", fail)
    watcher = Watcher(str(tmp_path))
    assert watcher.polling
    place(tmp_path, "new", b"")
    assert seen(watcher, "new") == {"new"}


# --- the order -------------------------------------------------------------------------------------------------------


def drain(queue, now=0.0):
    taken = []
    while (number := queue.next(now)) is not None:
        queue.was_sent(number)
        taken.append(number)
    return taken


@given(st.permutations(list(range(30))))
def test_any_order_within_the_hold_becomes_the_right_one(order):
    queue, taken = Queue(30, gap_wait=1.0, hold=30), []
    for number in order:
        assert queue.found(number)
        assert not queue.found(number)
        taken += drain(queue)
    assert taken == list(range(30))
    assert queue.over and not queue.late and not queue.missing()


def test_a_missing_image_holds_the_others_for_a_while_only():
    queue = Queue(10, gap_wait=0.5, hold=20)
    for number in (0, 1, 3, 4):
        queue.found(number)
    assert drain(queue, 10.0) == [0, 1]
    assert drain(queue, 10.4) == []
    assert drain(queue, 10.5) == [3, 4]
    queue.found(5)
    assert drain(queue, 10.6) == [5]
    queue.found(2)
    assert drain(queue, 10.7) == [2]
    assert (queue.late, queue.missing(), queue.ranges()) == (1, 4, [(6, 9)])


def test_a_missing_image_does_not_hold_many():
    queue = Queue(100, gap_wait=1e9, hold=3)
    for number in (1, 2, 3):
        queue.found(number)
    assert drain(queue) == []
    queue.found(4)
    assert drain(queue) == [1, 2, 3, 4]


def test_books_of_a_queue():
    queue = Queue(8)
    for number in (0, 2, 3, 9, -1, 9):
        queue.found(number)
    assert queue.next(0.0) == 0
    queue.was_damaged(0)
    assert queue.foreign == 2
    assert queue.next(0.0) is None
    assert queue.next(1.0) == 2
    queue.is_absent(2)
    assert queue.next(1.2) is None  # image 3 waits for it
    assert queue.ranges() == [(1, 2), (4, 7)] and queue.ranges(DAMAGED) == [(0, 0)]
    queue.found(2)
    assert drain(queue, 1.0) == [2, 3]
    queue.shorten(2)
    assert (queue.total, queue.missing(), queue.over) == (4, 1, False)
    queue.again([2, 3])
    assert (queue.sent, queue.waiting) == (0, 2)
    assert drain(queue, 1.0) == [2, 3]


# --- what a CBF says -------------------------------------------------------------------------------------------------


def test_a_whole_cbf_is_told_from_every_shorter_one():
    data = cbf(image(3))
    found = cbf_look.examine(data)
    assert found.shape == SHAPE
    cbf_look.check_md5(data, found)
    end = found.start + found.size + 4095
    for size in (0, 1, 5, 100, found.start - 4, found.start, found.start + 10, found.start + found.size, end - 1):
        with pytest.raises(cbf_look.Incomplete):
            cbf_look.examine(data[:size])
    assert cbf_look.examine(data[:end]).size == found.size


def test_damage_is_named():
    data = cbf(image(3))
    for change, words in [
        (lambda d: b"II*\0" + d, "not a miniCBF"),
        (lambda d: b"x" * 70000, "not a miniCBF"),
        (lambda d: d.replace(b"X-Binary-Size-Second-Dimension", b"X-Else"), "does not say how many rows"),
        (lambda d: d.replace(b"Fastest-Dimension: 10", b"Fastest-Dimension: 99"), "cannot hold 1188 pixels"),
    ]:
        with pytest.raises(cbf_look.Damaged, match=words):
            cbf_look.examine(change(data))
    found = cbf_look.examine(data)
    wrong = bytearray(data)
    wrong[found.start + 20] ^= 1
    with pytest.raises(cbf_look.Damaged, match="MD5 of the pixels is .*, the header says"):
        cbf_look.check_md5(bytes(wrong), found)


def test_the_header_is_compared_with_what_was_set():
    header = cbf_look.examine(cbf(image(0))).header
    said = cbf_look.fields(header)
    assert said["Threshold_setting"] == "6344 eV" and said["Detector"] == "PILATUS3 2M, S/N 24-0124"
    right = {"Exposure_time": 0.099, "Threshold_setting": 6344, "Wavelength": 0.9763, "Tau": 0, "Detector": "PILATUS3"}
    assert cbf_look.differences(said, {**right, "Beam_xy": [1231.5, 1263.5]}) == {}
    wrong = {
        "Exposure_time": 0.1,
        "Beam_xy": [1231.5, 1200],
        "Detector": "PILATUS2",
        "Phi": 1.0,
        "Gain_setting": [1, 2],
    }
    assert cbf_look.differences(said, wrong) == {
        "Exposure_time": "0.0990000 s, expected 0.1",
        "Beam_xy": "(1231.50, 1263.50) pixels, expected [1231.5, 1200]",
        "Detector": "PILATUS3 2M, S/N 24-0124, expected PILATUS2",
        "Phi": "not in the header, expected 1.0",
        "Gain_setting": "autog (vrf = 1.000), expected [1, 2]",
    }


def test_the_header_by_the_names_of_the_file():
    said = cbf_look.fields(cbf_look.examine(cbf(image(0))).header)
    told = cbf_look.metadata(said)
    assert told["cbf_header"] == said
    assert told["detector"] == {
        "threshold_energy": 6344.0,
        "saturation_value": 1009797.0,
        "sensor_material": "Si",
        "sensor_thickness": 0.001,
        "beam_center_x": 1231.5,
        "beam_center_y": 1263.5,
        "description": "PILATUS3 2M",
        "detector_number": "24-0124",
    }
    more = {"Tau": "1.2e-07 s", "Flat_field": "(nil)", "Excluded_pixels": "mask.tif", "Count_cutoff": "1e999 counts"}
    applied = {"countrate_correction_applied": True, "flatfield_correction_applied": False, "pixel_mask_applied": True}
    assert cbf_look.metadata(more)["detector"] == applied


@given(st.binary(max_size=300))
def test_whatever_a_header_says_can_be_sent(text):
    told = cbf_look.metadata(cbf_look.fields(b"\n".join(b"# " + line for line in text.split(b"\n"))))
    header = outlet.encode_frame_header(0, SHAPE, 1, 1, None, told)
    assert stins.decode([header, cbf(image(0))]).extra["metadata"] == told


def test_the_time_is_the_header_s():
    header = cbf_look.examine(cbf(image(0))).header
    expected = time.mktime((2026, 1, 5, 10, 0, 0, 0, 0, -1)) + 0.25
    assert cbf_look.taken_at(header) == pytest.approx(expected, abs=1e-6)
    assert cbf_look.taken_at(b"# 2026-13-05T10:00:00.25\n") is None
    assert cbf_look.taken_at(b"") is None


# --- messages --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT | st.lists(TEXT, max_size=3)
WHOLE = st.integers(0, 2**40)


@given(TEXT, WHOLE, WHOLE, WHOLE, st.sampled_from([None, (619, 487)]), st.dictionaries(TEXT, VALUES, max_size=4))
def test_start_messages_are_those_of_stins(filename, serial, series, nframes, shape, metadata):
    own = outlet.encode_start(filename, serial, series, nframes, shape, metadata)
    head = {"series": series, "nframes": nframes, "shape": shape, "dtype": "int32", "codec": "cbf"}
    assert own == stins.encode_start(filename, serial, metadata=metadata, **head)


@given(WHOLE, st.none() | WHOLE, WHOLE, st.none() | st.floats(1e5, 1e12))
def test_image_and_end_messages_are_those_of_stins(frame, serial, series, stamp):
    theirs = stins.encode_frame_header(frame, SHAPE, "int32", "cbf", serial, series=series, timestamp=stamp)
    assert outlet.encode_frame_header(frame, SHAPE, serial, series, stamp) == theirs
    assert outlet.encode_end(serial, series, frame) == stins.encode_end(serial, series=series, nframes=frame)


@given(st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_in_metadata_arrive_as_they_are(metadata):
    """Two JSON libraries write 1e-07 in two ways; it is the same number."""
    decoded = stins.decode(outlet.encode_start("", 0, 1, 2, None, {"values": metadata}))
    assert decoded.metadata["values"] == metadata
