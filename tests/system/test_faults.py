"""What goes wrong at 3 a.m.: each ends in a defined state with a sentence, and the next series is fine."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import pytest
import tango

from tangods_receiver.recovery import check, recover
from tests.system.beamline import DATASET, ON, Beamline, wait_for

pytestmark = pytest.mark.system
FAULT = tango.DevState.FAULT


def refusal(beamline: Beamline) -> str:
    """Arm must refuse at once; returns what the operator reads."""
    with pytest.raises(tango.DevFailed) as failed:
        beamline.detector.Arm()
    assert beamline.detector.state() in ON, "a refused Arm moves nothing"
    return str(failed.value.args[0].desc)


def test_file_exists(beamline: Beamline) -> None:
    file = beamline.acquire()
    before = file.read_bytes()
    text = refusal(beamline)
    assert str(file) in text and "exist" in text
    assert file.read_bytes() == before
    beamline.good_series()


def test_directory_missing(beamline: Beamline) -> None:
    beamline.set(DestinationFilename=str(beamline.root / "missing" / "a.h5"))
    assert str(beamline.root / "missing") in refusal(beamline)
    beamline.good_series()


def test_directory_removed_between_arms(beamline: Beamline) -> None:
    folder = beamline.root / "day1"
    folder.mkdir()
    first = beamline.acquire(DestinationFilename=str(folder / "a.h5"))
    first.unlink()
    folder.rmdir()
    assert "day1" in refusal(beamline)
    beamline.good_series()


@pytest.mark.parametrize("escape", ["dots", "absolute", "symlink"])
def test_path_outside_root(beamline: Beamline, tmp_path: Path, escape: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    if escape == "symlink":
        link = beamline.root / "link"
        link.symlink_to(outside)
        target = link / "a.h5"
    else:
        target = beamline.root / ".." / "a.h5" if escape == "dots" else outside / "a.h5"
    beamline.set(DestinationFilename=str(target))
    assert str(beamline.root) in refusal(beamline), "the sentence names the root to write below"
    assert not list(outside.iterdir())
    beamline.good_series()


def test_no_room_for_the_announced_size(beamline: Beamline) -> None:
    beamline.set(nFramesPerTrigger=1_000_000_000)
    assert "room" in refusal(beamline) or "space" in refusal(beamline)
    beamline.good_series()


def test_receiver_down(own_beamline: Beamline) -> None:
    assert own_beamline.stop_receiver() == 0
    own_beamline.wait_state(tango.DevState.DISABLE)
    assert own_beamline.receiver_name in own_beamline.detector.status()
    with pytest.raises(tango.DevFailed):
        own_beamline.detector.Arm()
    own_beamline.start_receiver()
    own_beamline.wait_on()
    own_beamline.good_series()


@pytest.mark.parametrize("kill", [False, True], ids=["restarted", "killed"])
def test_receiver_restarted_while_armed(own_beamline: Beamline, kill: bool) -> None:
    file = own_beamline.set(TriggerMode="SOFTWARE", nTriggers=5, nFramesPerTrigger=2)
    own_beamline.detector.Arm()
    own_beamline.wait_running()
    own_beamline.detector.SoftwareTrigger()
    wait_for("two frames", lambda: own_beamline.detector.nFramesWritten == 2)
    own_beamline.stop_receiver(kill)
    own_beamline.start_receiver()
    own_beamline.wait_state(FAULT)
    assert "receiver" in own_beamline.detector.LastError.lower()
    if kill:
        assert recover(file).frames == 2
    assert check(file).ok
    own_beamline.assert_frames(file, range(2))
    own_beamline.detector.Reset()
    own_beamline.wait_on()
    own_beamline.good_series()


def test_receiver_killed_and_gone_while_running(own_beamline: Beamline) -> None:
    own_beamline.set(nFramesPerTrigger=100_000)
    own_beamline.detector.Arm()
    wait_for("frames", lambda: own_beamline.detector.nFramesWritten > 50)
    own_beamline.stop_receiver(kill=True)
    own_beamline.wait_state(FAULT)
    assert own_beamline.receiver_name in own_beamline.detector.LastError
    own_beamline.start_receiver()
    own_beamline.detector.Reset()
    own_beamline.wait_on()
    own_beamline.good_series()


def test_receiver_ended_in_mid_series_closes_its_file(own_beamline: Beamline) -> None:
    file = own_beamline.set(nFramesPerTrigger=100_000)
    own_beamline.detector.Arm()
    wait_for("frames", lambda: own_beamline.detector.nFramesWritten > 50)
    assert own_beamline.stop_receiver() == 0
    report = check(file)
    assert report.ok, report.lines()
    assert report.frames > 50


def test_stop_in_every_state(beamline: Beamline) -> None:
    beamline.detector.Stop()  # idle: harmless
    beamline.wait_on()
    beamline.set(TriggerMode="SOFTWARE", nTriggers=5, nFramesPerTrigger=1)
    beamline.detector.Arm()  # arming
    beamline.detector.Stop()
    assert beamline.wait_end() in ON
    file = beamline.set(TriggerMode="SOFTWARE", nTriggers=5, nFramesPerTrigger=1)
    beamline.detector.Arm()
    beamline.wait_running()
    for n in (1, 2):
        beamline.detector.SoftwareTrigger()
        wait_for("a frame", lambda n=n: beamline.detector.nFramesAcquired == n)
    begun = time.monotonic()
    beamline.detector.Stop()  # armed, three triggers to go
    beamline.detector.Stop()  # stopping
    assert beamline.wait_end() in ON
    assert time.monotonic() - begun < 2
    beamline.assert_frames(file, range(2))
    assert check(file).ok
    file = beamline.set(ExposureTime=30.0, FrameTime=0.0, nFramesPerTrigger=2)
    beamline.detector.Arm()
    beamline.wait_running()
    begun = time.monotonic()
    beamline.detector.Stop()  # in the middle of a long exposure
    assert beamline.wait_end() in ON
    assert time.monotonic() - begun < 2
    assert check(file).ok
    beamline.good_series()


def test_abort(beamline: Beamline) -> None:
    file = beamline.set(nFramesPerTrigger=100_000)
    beamline.detector.Arm()
    wait_for("frames", lambda: beamline.detector.nFramesWritten > 20)
    begun = time.monotonic()
    beamline.detector.Abort()
    beamline.wait_end()
    assert time.monotonic() - begun < 2
    assert check(file).ok
    beamline.good_series()


def test_leftovers_of_an_aborted_series_stay_out_of_the_next_file(beamline: Beamline) -> None:
    for _ in range(5):
        beamline.set(ExposureTime=0.0001, FrameTime=0.0002, nFramesPerTrigger=100_000)
        beamline.detector.Arm()
        beamline.wait_running()
        beamline.detector.Abort()
        beamline.wait_end()
        beamline.good_series()


def test_zero_frames(beamline: Beamline) -> None:
    with pytest.raises(tango.DevFailed):
        beamline.detector.nFramesPerTrigger = 0
    file = beamline.set(TriggerMode="EXTERNAL_MULTI", nTriggers=3, nFramesPerTrigger=1)
    beamline.detector.Arm()
    beamline.wait_running()
    beamline.detector.Stop()  # the cable was out: no edge, no frame
    assert beamline.wait_end() in ON
    report = check(file)
    assert report.ok and report.frames == 0
    beamline.good_series()


def test_lost_frames_are_missing_by_number(beamline: Beamline) -> None:
    beamline.detector.InjectDrop = 3
    file = beamline.set(nFramesPerTrigger=30)
    beamline.detector.Arm()
    assert beamline.wait_end() in ON
    assert beamline.detector.nFramesMissing == 3
    assert "missing" in beamline.detector.LastError
    assert "missing" in beamline.detector.status()
    with h5py.File(file) as h5:
        group = h5[DATASET].parent
        ranges = group["frames_missing"][()].tolist()
        lost = [n for first, last in ranges for n in range(first, last + 1)]
        assert len(lost) == 3
        status = group["frame_status"][()].tolist()
        assert [n for n, s in enumerate(status) if s == 0] == lost
        for n in lost:
            assert not h5[DATASET][n].any(), "a missing frame reads as the fill value"
    beamline.assert_frames(file, [n for n in range(30) if n not in lost])
    assert check(file).ok
    beamline.good_series()


def test_repeated_and_reordered_frames(beamline: Beamline) -> None:
    beamline.detector.InjectRepeat = 4
    beamline.detector.InjectReorder = 5
    file = beamline.acquire(nFramesPerTrigger=40)
    beamline.assert_frames(file, range(40))
    assert beamline.snapshot()["repeated"] == 4
    assert beamline.detector.nFramesMissing == 0
    beamline.good_series()


def test_wrong_shape_in_mid_series(beamline: Beamline) -> None:
    beamline.detector.InjectWrongShape = 2
    file = beamline.set(nFramesPerTrigger=20)
    beamline.detector.Arm()
    beamline.wait_end()
    assert beamline.snapshot()["rejected"] == 2
    assert beamline.detector.nFramesMissing == 2
    assert "shape" in beamline.detector.LastError
    assert check(file).ok
    if beamline.detector.state() == FAULT:
        beamline.detector.Reset()
    beamline.wait_on()
    beamline.good_series()


def test_no_end_message(beamline: Beamline) -> None:
    beamline.detector.InjectNoEnd = True
    file = beamline.set(nFramesPerTrigger=10)
    beamline.detector.Arm()
    beamline.wait_end()
    beamline.assert_frames(file, range(10))
    if beamline.detector.state() == FAULT:
        beamline.detector.Reset()
    beamline.wait_on()
    beamline.good_series()


def test_detector_dies_in_mid_series(beamline: Beamline) -> None:
    file = beamline.set(nFramesPerTrigger=1000)
    beamline.detector.InjectDie = 50
    beamline.detector.Arm()
    beamline.wait_state(FAULT)
    assert beamline.detector.LastError
    assert check(file).ok
    beamline.detector.Reset()
    beamline.wait_on()
    beamline.good_series()


def test_detector_server_killed_while_armed(own_beamline: Beamline) -> None:
    own_beamline.set(TriggerMode="SOFTWARE", nTriggers=5)
    own_beamline.detector.Arm()
    own_beamline.wait_running()
    own_beamline.stop_detector(kill=True)
    own_beamline.start_detector()
    own_beamline.wait_on(limit=20)
    own_beamline.set()
    assert "Stop" in refusal(own_beamline), "the receiver still has the file of the old series open"
    own_beamline.detector.Stop()
    wait_for("the old file to be closed", lambda: own_beamline.snapshot()["file"] == "")
    own_beamline.good_series()


def test_client_killed_while_armed(beamline: Beamline) -> None:
    """The series belongs to the device, not to the client that armed it."""
    import subprocess
    import sys

    file = beamline.set(TriggerMode="SOFTWARE", nTriggers=2, nFramesPerTrigger=1)
    name = f"tango://{beamline.local.tango_host}/{beamline.detector_name}"
    code = f"import tango, os, signal; tango.DeviceProxy({name!r}).Arm(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code], timeout=30)
    beamline.wait_running()
    for _ in range(2):
        beamline.detector.SoftwareTrigger()
        acquired = beamline.detector.nFramesAcquired
        wait_for("the frame", lambda a=acquired: beamline.detector.nFramesAcquired >= a)
        time.sleep(0.02)  # the exposure: a trigger during it is ignored
    assert beamline.wait_end() in ON
    beamline.assert_frames(file, range(2))
