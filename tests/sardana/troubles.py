"""Scans that are stopped or go wrong: no detector is left armed, the user reads why, the next scan is right.

Collected by test_with_servers.py."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
import tango

from tests.sardana.door import MacroError
from tests.sardana.stack import Sardana
from tests.system.beamline import ON, Beamline, wait_for

FLY = ("ascanct", "mot01", 0, 1, 99, 0.008, 0.002)
STEP = ("ascan", "mot01", 0, 1, 9, 0.005)


def good_scan(sardana: Sardana) -> None:
    sardana.run("ascan", "mot01", 0, 1, 2, 0.002)
    assert sardana.last_scan().tags() == [0, 1, 2]


def wait_busy(beamline: Beamline, frames: int = 1) -> None:
    def taking() -> bool:
        state, acquired = (a.value for a in beamline.detector.read_attributes(["State", "nFramesAcquired"]))
        return state == tango.DevState.RUNNING and acquired >= frames

    wait_for(f"{frames} frames", taking, 30)


def idle(beamline: Beamline) -> bool:
    return beamline.detector.state() in ON


def closed_file(path: str) -> int:
    """Frames that a detector's file says it has; it is closed, and they can all be read."""
    with h5py.File(path) as h5:
        assert h5["entry/end_time"][()], "closed"
        written = h5["entry/instrument/detector/frame_status"][()].astype(bool)
        data = h5["entry/instrument/detector/data"]
        for number in written.nonzero()[0]:
            assert int(data[number].reshape(-1)[:4].view("<u8")[0]) == number
        return int(written.sum())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_broken_off_at_random_moments_of_a_fly_scan(sardana: Sardana, first: Beamline, times: int) -> None:
    dice = random.Random(8)
    for attempt in range(times):
        old = first.detector.LastFilename
        sardana.group("mg_hw")
        sardana.door.start(*FLY)
        wait_for("a new file", lambda old=old: first.detector.LastFilename != old, 30)
        time.sleep(dice.uniform(0, 1.4))  # anywhere between arming and the end
        if attempt % 2:
            sardana.door.abort()
        else:
            sardana.door.stop()
        assert sardana.door.door.state() in ON, sardana.door.door.status()
        wait_for("detector and receiver idle", lambda: idle(first) and first.receiver.state() in ON, 30)
        assert first.detector.LastError == "", first.detector.LastError
        assert closed_file(first.detector.LastFilename) == first.detector.nFramesWritten
        good_scan(sardana)


def test_stop_in_a_step_scan(sardana: Sardana, first: Beamline) -> None:
    sardana.door.start("ascan", "mot01", 0, 1, 200, 0.01)
    wait_busy(first, 3)
    sardana.door.stop()
    made = sardana.last_scan()
    points = len(made.column("Pt_No"))
    assert points >= 2 and made.tags() == list(range(points)), "the points until then are kept"
    wait_for("the detector idle", lambda: idle(first), 30)
    assert closed_file(first.detector.LastFilename) >= points
    good_scan(sardana)


@pytest.mark.parametrize("end", ["stop", "abort"])
def test_a_scan_that_is_broken_off_leaves_no_name(sardana: Sardana, first: Beamline, end: str) -> None:
    sardana.door.start("ascan", "mot01", 0, 1, 200, 0.01)
    wait_busy(first, 3)
    assert sardana.element("det01").Filename
    getattr(sardana.door, end)()
    assert sardana.element("det01").Filename == ""
    good_scan(sardana)


@pytest.mark.parametrize(("group", "macro", "at"), [("mg", STEP, 4), ("mg", FLY, 20), ("mg_hw", FLY, 20)])
def test_detector_fails_in_mid_scan(
    sardana: Sardana, first: Beamline, group: str, macro: tuple[object, ...], at: int
) -> None:
    sardana.group(group)
    first.detector.InjectDie = at
    with pytest.raises(MacroError) as failed:
        sardana.run(*macro)
    words = first.detector.LastError
    assert "the simulated camera died" in words
    assert words in str(failed.value), "the device's own words"
    assert words in sardana.door.said("Error"), "for the user too"
    made = sardana.last_scan()
    there = [n for n in range(len(made.tags())) if n not in made.missing()]
    assert there == list(range(at)), "the images until then"

    with pytest.raises(MacroError, match="Give the command Reset"):
        sardana.run(*macro)
    first.detector.Reset()
    wait_for("the detector idle", lambda: idle(first), 30)
    good_scan(sardana)


@pytest.mark.parametrize("macro", [("ascan", "mot01", 0, 1, 60, 0.02), FLY])
def test_somebody_else_stops_the_detector_in_mid_scan(
    sardana: Sardana, first: Beamline, macro: tuple[object, ...]
) -> None:
    """No point gets the image of another one, and the user reads why."""
    sardana.group("mg_hw")
    sardana.door.start(*macro)
    wait_busy(first, 3)
    first.detector.Stop()
    with pytest.raises(MacroError, match=r"det01: .*series ended after \d+ of \d+ frames: stopped from outside\?"):
        sardana.door.wait()
    made = sardana.last_scan()
    there = [tag for n, tag in enumerate(made.tags()) if n not in made.missing()]
    assert there == list(range(len(there)))
    good_scan(sardana)


def test_detector_refuses_to_arm(sardana: Sardana, first: Beamline) -> None:
    sardana.group("mg_hw")
    first.detector.InjectRefuseArm = True
    with pytest.raises(MacroError, match="refuse"):
        sardana.run(*STEP)
    first.detector.Reset()
    wait_for("the detector idle", lambda: idle(first), 30)
    good_scan(sardana)


def test_what_cannot_be_is_told_at_once(sardana: Sardana, first: Beamline) -> None:
    sardana.run("senv", "ScanDir", "/proc/nowhere")
    try:
        with pytest.raises(MacroError, match="/proc/nowhere"):
            sardana.run(*STEP)
    finally:
        sardana.run("senv", "ScanDir", sardana.data)
    assert idle(first)
    good_scan(sardana)


def test_a_scan_that_would_keep_nothing(sardana: Sardana, first: Beamline) -> None:
    first.detector.SaveRaw = False
    try:
        with pytest.raises(MacroError, match="SaveRaw is off"):
            sardana.run(*STEP)
    finally:
        first.detector.SaveRaw = True
    good_scan(sardana)


def test_two_scans_at_once(sardana: Sardana, first: Beamline) -> None:
    """A second macro is refused; the detector refuses who would change it in mid-scan."""
    sardana.group("mg_hw")
    sardana.door.start(*FLY)
    wait_busy(first)
    with pytest.raises(tango.DevFailed):
        sardana.door.door.RunMacro(["ct", "0.1"])
    with pytest.raises(tango.DevFailed):
        first.detector.ExposureTime = 1.0
    with pytest.raises(tango.DevFailed, match="Stop first|not while"):
        first.detector.Arm()
    sardana.door.wait()
    assert sardana.last_scan().tags() == list(range(100))


@pytest.fixture
def limit_switch(sardana: Sardana) -> Iterator[None]:
    """The motor runs into it at 0.3."""
    motor = sardana.element("mot01")
    sardana.run("mv", "mot01", 0)
    motor.UpperLimitSwitch = 0.3
    yield
    motor.UpperLimitSwitch = 1e6
    wait_for("the motor", lambda: motor.state() in ON, 30)


@pytest.mark.parametrize(("group", "macro"), [("mg", STEP), ("mg_hw", FLY)])
def test_motor_error_in_mid_scan(
    sardana: Sardana, first: Beamline, limit_switch: None, group: str, macro: tuple[object, ...]
) -> None:
    sardana.group(group)
    with pytest.raises(MacroError, match="(?i)alarm"):
        sardana.run(*macro)
    wait_for("the detector idle", lambda: idle(first), 30)
    made = sardana.last_scan()
    there = [n for n, tag in enumerate(made.tags()) if n not in made.missing()]
    assert [made.tags()[n] for n in there] == there == list(range(len(there)))
    assert closed_file(first.detector.LastFilename) >= len(there)
    sardana.element("mot01").UpperLimitSwitch = 1e6
    good_scan(sardana)


def good_scan_with_region(sardana: Sardana) -> None:
    sardana.run("ascan", "mot01", 0, 1, 2, 0.002)
    assert sardana.last_scan().tags() == [0, 1, 2]
    assert (sardana.last_scan().column("roi01") > 0).all()


def test_a_region_that_is_not_there(sardana: Sardana) -> None:
    sardana.group("mg_roi")
    sardana.element("roi01").Roi = "nowhere"
    try:
        with pytest.raises(MacroError, match="no region 'nowhere'"):
            sardana.run(*STEP)
        with pytest.raises(MacroError, match="no region 'nowhere'"):
            sardana.run("ct", 0.005)
    finally:
        sardana.element("roi01").Roi = "roi01"
    good_scan_with_region(sardana)


def test_a_region_that_goes_away_in_mid_scan(sardana: Sardana, first: Beamline) -> None:
    sardana.group("mg_roi")
    regions = first.receiver.Rois
    sardana.door.start("ascan", "mot01", 0, 1, 100, 0.01)
    wait_busy(first, 3)
    first.receiver.Rois = ["other 8 8 40 40"]
    try:
        with pytest.raises(MacroError, match="no region 'roi01'"):
            sardana.door.wait()
    finally:
        first.receiver.Rois = regions
    good_scan_with_region(sardana)


@contextlib.contextmanager
def group_of(sardana: Sardana, beamline: Beamline, backend: str) -> Iterator[None]:
    """The second detector with another backend, alone in a group that is active."""
    usual = {"Backend": "simulator"}
    beamline.put("Detector", beamline.detector_name, Backend=f"tests.sardana.backends:{backend}")
    beamline.detector.Init()
    wait_for("the detector", lambda: idle(beamline), 30)
    sardana.run("defmeas", "mg_other", "det02")
    try:
        sardana.group("mg_other")
        sardana.run("set_meas_conf", "Synchronization", "Start", "det02")
        sardana.run("det_setup")
        yield
    finally:
        sardana.group("mg")
        sardana.run("udefmeas", "mg_other")
        beamline.put("Detector", beamline.detector_name, **usual)
        beamline.detector.Init()
        wait_for("the detector", lambda: idle(beamline), 30)


def test_a_detector_without_triggers(sardana: Sardana, beamlines: list[Beamline]) -> None:
    """Each point of a step scan is a series, with a file of its own; a fly scan by software is one."""
    second = beamlines[1]
    with group_of(sardana, second, "InternalOnly"):
        assert list(second.detector.TriggerModes) == ["INTERNAL"]
        sardana.run("ascan", "mot01", 0, 1, 3, 0.005)
        made = sardana.last_scan()
        assert made.tags("det02") == [0, 0, 0, 0] and len(made.sources("det02")) == 4
        sardana.run("timescan", 30, 0.004, 0.001)
        made = sardana.last_scan()
        assert made.tags("det02") == list(range(30)) and len(made.sources("det02")) == 1
        sardana.run("set_meas_conf", "Synchronizer", "tg01", "det02")
        with pytest.raises(MacroError, match="needs trigger mode EXTERNAL_.* and has INTERNAL"):
            sardana.run("timescan", 30, 0.004, 0.001)


def test_a_detector_that_is_slow_to_arm(sardana: Sardana, beamlines: list[Beamline]) -> None:
    """Longer than Sardana waits for an answer (3 s): scans wait, and no image is lost."""
    with group_of(sardana, beamlines[1], "SlowToArm"):
        sardana.run("timescan", 30, 0.004, 0.001)
        assert sardana.last_scan().tags("det02") == list(range(30))
        sardana.run("set_meas_conf", "Synchronizer", "tg01", "det02")
        sardana.run("ascanct", "mot01", 0, 1, 29, 0.008, 0.002)
        made = sardana.last_scan()
        assert made.tags("det02") == list(range(30)) and made.missing("det02") == []


def test_spock(sardana: Sardana) -> None:
    """A user's shell: the first time it makes a profile."""
    folder = sardana.folder / "ipython"
    environment = {**os.environ, "TANGO_HOST": sardana.local.tango_host, "IPYTHONDIR": str(folder)}
    door = sardana.name("door")
    done = subprocess.run(
        [Path(sys.executable).parent / "spock", "--profile=test", "--no-banner", "--simple-prompt"],
        input=f"y\n{door}\ndet_info det01\nascan mot01 0 1 3 0.002\nquit\n",
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "64 x 80 uint16" in done.stdout, done.stdout + done.stderr
    assert re.search(r"Scan #\d+ ended", done.stdout), done.stdout + done.stderr
    assert sardana.last_scan().tags() == [0, 1, 2, 3]


def test_pool_is_killed_in_mid_scan(sardana: Sardana, first: Beamline) -> None:
    """The new Pool ends what waits for triggers that nobody will send."""
    sardana.door.start("ascan", "mot01", 0, 1, 500, 0.01)
    wait_busy(first, 3)
    path = first.detector.LastFilename
    sardana.stop(kill=True)
    still_armed = not idle(first)
    sardana.start()
    assert still_armed
    wait_for("the detector idle", lambda: idle(first), 30)
    assert closed_file(path) >= 3
    good_scan(sardana)


def test_detector_server_is_killed_in_mid_scan(sardana: Sardana, first: Beamline) -> None:
    sardana.group("mg_hw")
    sardana.door.start(*FLY)
    wait_busy(first, 5)
    first.stop_detector(kill=True)
    try:
        with pytest.raises(MacroError):
            sardana.door.wait()
    finally:
        first.start_detector()
    wait_for("the detector idle", lambda: idle(first), 30)
    good_scan(sardana)
