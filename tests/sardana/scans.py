"""Scans through a Door: each point has its own image, all of a scan in one file of the detector.

Collected by test_with_servers.py."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.sardana.door import MacroError
from tests.sardana.stack import TOP, Sardana, Scan
from tests.system.beamline import ON, Beamline, wait_for

PAGE = TOP / "resources" / "sardana.md"


@pytest.fixture
def one_file(sardana: Sardana) -> Iterator[None]:
    """The test makes exactly one detector file."""
    before = sardana.files()
    yield
    assert len(sardana.files() - before) == 1


def scan(sardana: Sardana, *macro: object, points: int, channel: str = "det01") -> Scan:
    """Run a scan; each point has its image, none is missing."""
    sardana.run(*macro)
    made = sardana.last_scan()
    assert made.tags(channel) == list(range(points))
    assert made.missing(channel) == []
    return made


def test_step_scan(sardana: Sardana, one_file: None) -> None:
    made = scan(sardana, "ascan", "mot01", 0, 1, 19, 0.005, points=20)
    np.testing.assert_allclose(made.column("mot01"), np.linspace(0, 1, 20), atol=1e-6)
    assert made.sources() == [f"scan_{made.number:05d}_det01.h5"], "one mapping, relative to the scan file"


def test_step_scan_by_software_triggers(sardana: Sardana, one_file: None) -> None:
    sardana.run("set_meas_conf", "Synchronization", "Trigger", "det01")
    try:
        scan(sardana, "ascan", "mot01", 0, 1, 4, 0.005, points=5)
    finally:
        sardana.run("set_meas_conf", "Synchronization", "Start", "det01")


def test_mesh(sardana: Sardana, one_file: None) -> None:
    made = scan(sardana, "mesh", "mot01", 0, 1, 4, "mot02", 0, 1, 4, 0.005, "True", points=25)
    assert made.column("mot02").reshape(5, 5)[:, 0] == pytest.approx(np.linspace(0, 1, 5))


def test_fly_scan_by_software(sardana: Sardana, one_file: None) -> None:
    scan(sardana, "ascanct", "mot01", 0, 1, 199, 0.008, 0.002, points=200)


def test_time_scan(sardana: Sardana, first: Beamline, one_file: None) -> None:
    scan(sardana, "timescan", 100, 0.003, 0.002, points=100)
    assert first.detector.nTriggers == 1, "the detector keeps the time itself"


def test_fly_scan_by_hardware(sardana: Sardana, first: Beamline, one_file: None) -> None:
    sardana.group("mg_hw")
    scan(sardana, "ascanct", "mot01", 0, 1, 199, 0.008, 0.002, points=200)
    assert (first.detector.TriggerMode, first.detector.nTriggers) == ("EXTERNAL_MULTI", 200)


def test_fly_scan_by_position(sardana: Sardana, first: Beamline, one_file: None) -> None:
    """Edges come where the motor is, whatever the time: here a second motor, which only we move."""
    sardana.group("mg_hw")
    scanned, motor, trigger = (sardana.element(name) for name in ("mot01", "mot02", "tg01"))
    sardana.run("mv", "mot01", 0, "mot02", -1)
    sardana.run("senv", "ScanMntGrpFinishTimeout", 100)
    trigger.Motor = "mot02"
    try:
        sardana.door.start("ascanct", "mot01", 0, 1, 39, 0.008, 0.002)
        wait_for("the end of the motion", lambda: scanned.Position > 1 and scanned.state() in ON, 30)
        assert first.detector.nFramesAcquired == 0
        motor.Position = 0.3
        wait_for("some images", lambda: first.detector.nFramesAcquired >= 12, 30)
        wait_for("the motor", lambda: motor.state() in ON, 30)
        assert first.detector.nFramesAcquired == 12, "at 0/39, 1/39 ... 11/39"
        motor.Position = 1.1
        sardana.door.wait()
    finally:
        trigger.Motor = ""
        sardana.run("usenv", "ScanMntGrpFinishTimeout")
    made = sardana.last_scan()
    assert made.tags() == list(range(40)) and made.missing() == []


def test_500_points_at_200_hz_lose_nothing(sardana: Sardana, first: Beamline, one_file: None) -> None:
    sardana.group("mg_hw")
    made = scan(sardana, "timescan", 500, 0.004, 0.001, points=500)
    assert len(made.sources()) == 1, "consecutive frames are one mapping"
    assert first.detector.state().name == "ON", "the file is closed when the scan ends"


def test_step_scan_by_hardware(sardana: Sardana, one_file: None) -> None:
    sardana.group("mg_hw")
    scan(sardana, "ascan", "mot01", 0, 1, 4, 0.005, points=5)


def test_scan_of_one_point(sardana: Sardana, one_file: None) -> None:
    scan(sardana, "timescan", 1, 0.005, 0, points=1)


def test_a_row_that_is_armed_anew_has_its_own_file(sardana: Sardana) -> None:
    sardana.group("mg_hw")
    before = sardana.files()
    sardana.run("meshct", "mot01", 0, 1, 3, "mot02", 0, 1, 2, 0.01, "True", 0.005)
    made = sardana.last_scan()
    assert made.tags() == [0, 1, 2, 3] * 3
    names = [f"scan_{made.number:05d}_det01{suffix}.h5" for suffix in ("", "_001", "_002")]
    assert made.sources() == names
    assert {file.name for file in sardana.files() - before} == set(names)


def test_fast_scan_has_one_reference(sardana: Sardana, first: Beamline, one_file: None) -> None:
    """Above 500 points a second Sardana would be busy with references."""
    made = scan(sardana, "timescan", 1000, 0.0008, 0.0002, points=1000)
    references = [text for text in made.column("det01_ref") if text]
    assert references == [f"h5file://{first.detector.LastFilename}::entry/instrument/detector/data#0:1000/1".encode()]


def test_single_counts(sardana: Sardana, first: Beamline) -> None:
    before = sardana.files()
    sardana.run("ct", 0.005)
    assert "not kept" in sardana.door.said()
    assert sardana.files() == before

    sardana.run("set_meas_conf", "ValueRefPattern", f"h5file://{sardana.data}/ct_{{index}}.h5", "det01")
    try:
        for number in range(3):
            sardana.run("ct", 0.005)
            path = sardana.data / f"ct_{number}.h5"
            assert f"h5file://{path}::entry/instrument/detector/data#0" in sardana.door.said()
            first.assert_frames(path, [0])
        sardana.run("det_uct", 0.005)
        assert "ct_3.h5" in sardana.door.said()
        first.assert_frames(sardana.data / "ct_3.h5", [0])
    finally:
        sardana.run("set_meas_conf", "ValueRefPattern", "h5file://", "det01")  # none


def test_single_channels_after_groups(sardana: Sardana, beamlines: list[Beamline]) -> None:
    """The group that was used before has nothing to do with them."""
    first, second = beamlines
    sardana.run("ascan", "mot01", 0, 1, 2, 0.002)
    second.detector.ExposureTime = 1.0
    sardana.run("ct", 0.006, "det02")
    assert (second.detector.ExposureTime, second.detector.nFramesAcquired) == (0.006, 1)
    assert first.detector.ExposureTime == 0.002 and first.detector.state() in ON, "the controller's timer is left alone"
    sardana.run("defmeas", "mg_both", "det01", "det02")
    try:
        sardana.group("mg_both")
        sardana.run("det_setup")
        sardana.run("ct", 0.007)
        assert first.detector.ExposureTime == second.detector.ExposureTime == 0.007
        sardana.run("ct", 0.008, "det01")
        assert (first.detector.ExposureTime, first.detector.nFramesAcquired) == (0.008, 1)
        assert second.detector.ExposureTime == 0.007 and second.detector.state() in ON, "it is left alone"
    finally:
        sardana.group("mg")
        sardana.run("udefmeas", "mg_both")


def test_another_detector_is_counted_during_a_scan(sardana: Sardana, beamlines: list[Beamline]) -> None:
    """Both are of one controller, and synchronized otherwise."""
    first, second = beamlines
    sardana.run("defmeas", "mg_second", "det02")
    try:
        sardana.group("mg_hw")
        other = sardana.element("mg_second")
        other.IntegrationTime = 0.02
        sardana.door.start("timescan", 300, 0.008, 0.002)
        for n in range(1, 4):
            wait_for("points", lambda n=n: first.detector.nFramesAcquired > 50 * n, 30)
            other.Prepare()
            other.Start()
            wait_for("the other", lambda: other.state() in ON and second.detector.state() in ON, 30)
            assert (second.detector.ExposureTime, second.detector.nFramesAcquired) == (0.02, 1)
        sardana.door.wait()
        made = sardana.last_scan()
        assert made.tags() == list(range(300)) and made.missing() == []
    finally:
        sardana.group("mg")
        sardana.run("udefmeas", "mg_second")


def test_plain_values(sardana: Sardana, first: Beamline) -> None:
    """References off: the image itself goes to whoever counts."""
    sardana.run("set_meas_conf", "ValueRefEnabled", "False", "det01")
    sardana.run("set_meas_conf", "Synchronization", "Trigger", "det01")
    try:
        before = sardana.files()
        sardana.run("ct", 0.005)
        np.testing.assert_array_equal(sardana.element("det01").Value, first.expected(0))
        assert sardana.files() == before
    finally:
        sardana.run("set_meas_conf", "Synchronization", "Start", "det01")
        sardana.run("det_setup")


def test_several_detectors_with_different_rates(sardana: Sardana) -> None:
    sardana.run("defmeas", "mg_both", "det01", "det02")
    try:
        sardana.group("mg_both")
        sardana.run("det_setup")
        for channel in ("det01", "det02"):
            sardana.run("set_meas_conf", "Synchronizer", "tg01", channel)
        sardana.element("det02").FramesPerPoint = 3
        before = sardana.files()
        sardana.run("ascanct", "mot01", 0, 1, 29, 0.015, 0.005)
        made = sardana.last_scan()
        assert made.tags("det01") == list(range(30))
        assert made.tags("det02") == list(range(90))
        assert made.column("det02").shape[:2] == (30, 3)
        names = {f"scan_{made.number:05d}_{channel}.h5" for channel in ("det01", "det02")}
        assert {file.name for file in sardana.files() - before} == names
    finally:
        sardana.element("det02").FramesPerPoint = 1
        sardana.group("mg")
        sardana.run("udefmeas", "mg_both")


def test_a_counter_with_an_event_for_each_point_beside_a_detector(
    sardana: Sardana, first: Beamline, one_file: None
) -> None:
    sardana.run("defctrl", "DummyCounterTimerController", "ctctrl01")
    sardana.run("defelem", "ct01", "ctctrl01", 1)
    sardana.run("defmeas", "mg_mixed", "ct01", "det01", "roi01")
    try:
        sardana.group("mg_mixed")
        for channel in ("det01", "roi01"):
            sardana.run("set_meas_conf", "Synchronization", "Start", channel)
        sardana.run("det_setup")
        made = scan(sardana, "timescan", 5, 0.2, 0.1, points=5)
        assert first.detector.nFramesExpected == 5
        assert made.column("roi01")[4] == first.expected(4)[8:48, 8:48].sum()
    finally:
        sardana.group("mg")
        sardana.run("udefmeas", "mg_mixed")
        sardana.run("udefelem", "ct01")
        sardana.run("udefctrl", "ctctrl01")


def test_region_of_interest(sardana: Sardana, first: Beamline) -> None:
    sardana.group("mg_roi")
    made = scan(sardana, "ascan", "mot01", 0, 1, 5, 0.005, points=6)
    sums = [first.expected(number)[8:48, 8:48].sum() for number in range(6)]
    assert made.column("roi01").tolist() == sums

    made = scan(sardana, "timescan", 60, 0.008, 0.002, points=60)
    measured = {n: value for n, value in enumerate(made.column("roi01")) if not np.isnan(value)}
    assert len(measured) >= 2 and 59 in measured, "some of the images on the way, and the last"
    assert measured == {n: first.expected(n)[8:48, 8:48].sum() for n in measured}


def test_lost_frames_are_told(sardana: Sardana, first: Beamline, one_file: None) -> None:
    first.detector.InjectDrop = 3
    sardana.run("timescan", 40, 0.004, 0.001)
    made = sardana.last_scan()
    assert made.missing() == [10, 20, 30]
    assert [tag for n, tag in enumerate(made.tags()) if n not in (10, 20, 30)] == [
        n for n in range(40) if n not in (10, 20, 30)
    ]
    assert not made.column("det01")[20].any(), "reads as 0"
    assert "det01: no image at 3 of 40 points: 10, 20, 30" in sardana.door.said("Warning")
    assert sardana.element("det01").MissingFrames == 3


def test_software_triggers_that_sardana_leaves_out(sardana: Sardana, first: Beamline, one_file: None) -> None:
    """Too fast for a software event for each point: images stay with their points, the detector is not left armed."""
    sardana.run("set_meas_conf", "Synchronization", "Trigger", "det01")
    try:
        sardana.run("timescan", 20, 0.002, 0.001)
        made = sardana.last_scan()
        missing = made.missing()
        assert missing, "3 ms a point is too fast"
        present = [tag for n, tag in enumerate(made.tags()) if n not in missing]
        assert present == list(range(len(present)))
    finally:
        sardana.run("set_meas_conf", "Synchronization", "Start", "det01")


def test_file_names_by_a_pattern(sardana: Sardana, first: Beamline) -> None:
    sardana.run("senv", "DetectorFilePattern", "{ScanDir}/raw/{channel}/s{ScanID}_{number:02d}.h5")
    try:
        for _ in range(2):
            made = scan(sardana, "ascan", "mot01", 0, 1, 2, 0.002, points=3)
            assert made.sources() == [f"raw/det01/s{made.number}_01.h5"], "directories are made"
        sardana.run("senv", "DetectorFilePattern", "{ScanDir}/fixed.h5")
        scan(sardana, "ascan", "mot01", 0, 1, 2, 0.002, points=3)
        content = (sardana.data / "fixed.h5").read_bytes()
        made = scan(sardana, "ascan", "mot01", 0, 1, 2, 0.002, points=3)
        assert made.sources() == ["fixed_001.h5"]
        assert (sardana.data / "fixed.h5").read_bytes() == content
        (sardana.data / "taken.h5").write_bytes(b"of somebody else")
        sardana.run("senv", "DetectorFilePattern", "{ScanDir}/taken.h5")
        with pytest.raises(MacroError, match="taken.h5"):
            sardana.run("ascan", "mot01", 0, 1, 2, 0.002)
        assert (sardana.data / "taken.h5").read_bytes() == b"of somebody else"
        sardana.run("senv", "DetectorFilePattern", "{ScanDir}/{colour}.h5")
        with pytest.raises(MacroError, match="colour"):
            sardana.run("ascan", "mot01", 0, 1, 2, 0.002)
    finally:
        sardana.run("usenv", "DetectorFilePattern")


def test_a_name_that_was_left_over_is_not_taken(sardana: Sardana) -> None:
    sardana.run("usenv", "ScanFile")
    try:
        sardana.element("det01").Filename = str(sardana.data / "of_before.h5")
        with pytest.raises(MacroError, match="there is no file name"):
            sardana.run("ascan", "mot01", 0, 1, 2, 0.002)
    finally:
        sardana.run("senv", "ScanFile", "scan.h5")
    assert not (sardana.data / "of_before.h5").exists()


def test_files_can_be_moved_together(sardana: Sardana, tmp_path: Path) -> None:
    sardana.run("senv", "ScanFile", "moved.h5")
    try:
        sardana.run("ascan", "mot01", 0, 1, 4, 0.002)
    finally:
        sardana.run("senv", "ScanFile", "scan.h5")
    made = Scan(sardana.data / "moved.h5")
    for file in (made.file, sardana.data / made.sources()[0]):
        shutil.move(file, tmp_path / file.name)
    assert Scan(tmp_path / "moved.h5").tags() == list(range(5))


def test_scan_file_is_nexus(sardana: Sardana) -> None:
    made = scan(sardana, "ascan", "mot01", 0, 1, 4, 0.002, points=5)
    with h5py.File(made.file) as h5:
        entry = h5[h5.attrs["default"]]
        assert entry["definition"][()] == b"NXscan"
        plot = entry[entry.attrs["default"]]
        assert plot.attrs["signal"] == "det01"
        assert list(plot.attrs["axes"]) == ["mot01", ".", "."]
        assert plot["det01"].shape == (5, 64, 80) and plot["mot01"].shape == (5,)
        detector = entry["instrument/det01"]
        assert detector.attrs["NX_class"] == "NXdetector"
        assert detector["data"].shape == (5, 64, 80)
        assert detector["detector_file/frame_status"][()].tolist() == [1] * 5, "the detector's own file has the rest"


def test_macros_for_users(sardana: Sardana, first: Beamline) -> None:
    assert sardana.ask("det_info", "det01") == ["ON"]
    for word in (first.detector_name.split("/")[0], "64 x 80 uint16", "SOFTWARE"):
        assert word in sardana.door.said()

    (path,) = sardana.ask("det_expose", 4, 0.002, sardana.data / "exposed_{number}.h5", "det01")
    assert path == str(sardana.data / "exposed_1.h5")
    first.assert_frames(Path(path), range(4))
    assert sardana.ask("det_expose", 1, 0.002) == [""], "without a name nothing is kept"

    (path,) = sardana.ask("det_dark", 3, 0.002)
    with h5py.File(path) as h5:
        assert h5["entry/instrument/detector/header/label"][()] == b"dark"
    first.assert_frames(Path(path), range(3))
    assert first.detector.Label == ""
    assert path in sardana.run("genv", "DetectorDark") or path in sardana.door.said()

    sardana.run("det_live", 0.01)
    deadline = time.monotonic() + 30
    while first.detector.nFramesAcquired < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sardana.run("det_stop")
    assert first.detector.state().name == "ON"


def test_hooks_of_a_macro(sardana: Sardana) -> None:
    """A shutter is opened and closed by hooks."""
    sardana.run("defgh", "mv mot02 5", "pre-acq")
    sardana.run("defgh", "mv mot02 7", "post-acq")
    try:
        sardana.run("mv", "mot02", 0)
        sardana.run("det_expose", 1, 0.002)
        assert sardana.element("mot02").Position == pytest.approx(7)
    finally:
        sardana.run("udefgh", "mv mot02 5", "pre-acq")
        sardana.run("udefgh", "mv mot02 7", "post-acq")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def like(line: str, data: Path) -> re.Pattern[str]:
    """The line of the page, with any numbers and our directory."""
    text = re.escape(" ".join(line.split())).replace(r"/data/b1", re.escape(str(data)))
    return re.compile(re.sub(r"\d+", r"\\d+", text).replace(r"\.\d+", r"[.\d]+"))


def test_what_the_page_for_users_says(sardana: Sardana) -> None:
    """Its macros run and say what it shows, its program reads the file. What it does in a shell the fixtures did."""
    (shell,) = blocks("sh")
    for command in (
        "-m sardana_ctrl config",
        "sardana-config load --write --environment",
        "Pool b1",
        "MacroServer b1",
        "door/b1/1",
    ):
        assert command in shell
    (session,) = blocks("spock")
    said = ""
    for line in session.splitlines():
        if found := re.match(r"\[\d+\]: (.*)", line):
            sardana.run(*found[1].replace("/data/b1", str(sardana.data)).split())
            said = " ".join(sardana.door.said().split())
        else:
            assert like(line, sardana.data).search(said), f"{line!r} is not in {said!r}"
    (program,) = blocks("python")
    printed = sardana.program("python", "-c", program.replace("/data/b1", str(sardana.data)))
    assert printed.split() == ["(200,", "64,", "80)", "True", "0"]
