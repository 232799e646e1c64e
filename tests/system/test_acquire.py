"""The main job: set, arm, trigger, wait for ON, read the file back, in every trigger mode."""

from __future__ import annotations

import subprocess
import time

import h5py
import pytest
import tango

from tests.system.beamline import DATASET, ON, Beamline, wait_for

pytestmark = pytest.mark.system


def test_internal(beamline: Beamline) -> None:
    file = beamline.acquire(nFramesPerTrigger=50)
    beamline.assert_frames(file, range(50))
    detector = beamline.detector
    assert detector.nFramesExpected == detector.nFramesAcquired == 50
    assert detector.nFramesReceived == detector.nFramesWritten == 50
    assert detector.nFramesMissing == 0
    assert detector.Progress == 100
    assert detector.LastFilename == str(file)


def test_internal_with_several_triggers_runs_them_all(beamline: Beamline) -> None:
    file = beamline.acquire(nTriggers=3, nFramesPerTrigger=4)
    beamline.assert_frames(file, range(12))


def test_software_triggers(beamline: Beamline) -> None:
    file = beamline.set(TriggerMode="SOFTWARE", nTriggers=4, nFramesPerTrigger=3)
    beamline.detector.Arm()
    beamline.wait_running()
    for trigger in range(1, 5):
        beamline.detector.SoftwareTrigger()
        wait_for("the frames of this trigger", lambda t=trigger: beamline.detector.nFramesAcquired == 3 * t)
        if trigger < 4:
            assert beamline.detector.state() == tango.DevState.RUNNING, "armed until the last trigger"
    assert beamline.wait_end() in ON
    beamline.assert_frames(file, range(12))


@pytest.mark.parametrize(
    ("mode", "triggers", "frames", "edges"),
    [("EXTERNAL_SINGLE", 2, 5, 1), ("EXTERNAL_MULTI", 5, 2, 5), ("EXTERNAL_GATE", 6, 1, 6)],
)
def test_external_triggers(beamline: Beamline, mode: str, triggers: int, frames: int, edges: int) -> None:
    file = beamline.set(TriggerMode=mode, nTriggers=triggers, nFramesPerTrigger=frames)
    beamline.detector.Arm()
    beamline.wait_running()
    for edge in range(1, edges + 1):
        assert beamline.detector.state() == tango.DevState.RUNNING
        beamline.detector.SimulatedEdges = 1
        due = triggers * frames if mode == "EXTERNAL_SINGLE" else edge * frames
        wait_for("the frames of this edge", lambda due=due: beamline.detector.nFramesAcquired == due)
    assert beamline.wait_end() in ON
    beamline.assert_frames(file, range(triggers * frames))


def test_software_trigger_before_arm_is_refused(beamline: Beamline) -> None:
    with pytest.raises(tango.DevFailed):
        beamline.detector.SoftwareTrigger()
    beamline.good_series()


@pytest.mark.parametrize(
    "options", [("codec = none",), ("dtype = uint32", "look = photon"), ("dtype = uint16", "look = scmos")]
)
def test_kinds_of_images(local_tango: object, tmp_path: object, options: tuple[str, ...]) -> None:
    from tests.system.conftest import _numbers

    with Beamline(local_tango, f"k{next(_numbers)}", tmp_path, options) as own:  # type: ignore[arg-type]
        file = own.acquire(nFramesPerTrigger=12)
        own.assert_frames(file, range(12))


def test_roi_binning_and_orientation_reach_the_file(beamline: Beamline) -> None:
    try:
        beamline.detector.Roi = [8, 4, 48, 32]
        beamline.detector.Binning = [2, 2]
        beamline.detector.Rotation = 90
        beamline.detector.Fliplr = True
        shape = tuple(beamline.detector.FrameShape)
        assert shape == (24, 16)
        file = beamline.acquire(nFramesPerTrigger=5)
        with h5py.File(file) as h5:
            assert h5[DATASET].shape == (5, *shape)
        beamline.assert_frames(file, range(5), roi=(8, 4, 48, 32), binning=(2, 2), rotation=90, fliplr=True)
    finally:
        beamline.detector.Roi = [0, 0, 80, 64]
        beamline.detector.Binning = [1, 1]
        beamline.detector.Rotation = 0
        beamline.detector.Fliplr = False
    beamline.good_series()


def test_no_file_when_the_name_is_empty(beamline: Beamline) -> None:
    before = set(beamline.root.iterdir())
    beamline.acquire(DestinationFilename="")
    assert set(beamline.root.iterdir()) == before
    assert beamline.detector.nFramesReceived == 10


def test_live_runs_until_stop_and_writes_nothing(beamline: Beamline) -> None:
    before = set(beamline.root.iterdir())
    beamline.set()
    beamline.detector.Live()
    beamline.wait_running()
    wait_for("live images", lambda: beamline.detector.nFramesReceived > 20)
    assert beamline.detector.LastImage.shape == (64, 80)
    beamline.detector.Stop()
    assert beamline.wait_end() in ON
    assert set(beamline.root.iterdir()) == before
    beamline.good_series()


def test_metadata_reach_the_file(beamline: Beamline) -> None:
    beamline.detector.Label = "Lysozyme 3"
    beamline.detector.Metadata = '{"sample": {"name": "lysozyme", "temperature": 100.0}, "none": null}'
    try:
        file = beamline.acquire()
    finally:
        beamline.detector.Metadata = "{}"
        beamline.detector.Label = ""
    out = subprocess.run(
        ["h5dump", "-d", "/entry/instrument/detector/count_time", file], capture_output=True, text=True
    )
    assert "(0): 0.001" in out.stdout
    everything = subprocess.run(["h5dump", "-H", "-A", file], capture_output=True, text=True, check=True).stdout
    assert "NXdetector" in everything
    text = []
    with h5py.File(file) as h5:
        h5.visititems(
            lambda _, item: text.append(str(item[()])) if isinstance(item, h5py.Dataset) and item.ndim == 0 else None
        )
    assert any("Lysozyme 3" in t for t in text)
    assert any("lysozyme" in t for t in text)


def test_file_name_patterns(beamline: Beamline) -> None:
    first = beamline.acquire(DestinationFilename=str(beamline.root / "scan_{number}.h5"))
    one = beamline.detector.LastFilename
    beamline.detector.Arm()
    assert beamline.wait_end() in ON
    two = beamline.detector.LastFilename
    assert "{" not in one + two
    assert one != two != str(first)
    beamline.assert_frames(one, range(10))
    beamline.assert_frames(two, range(10))


def test_overwrite_policies(beamline: Beamline) -> None:
    file = beamline.acquire(OverwritePolicy="ABORT")
    beamline.detector.OverwritePolicy = "NEXT_NUMBER"
    try:
        beamline.detector.Arm()
        assert beamline.wait_end() in ON
        assert beamline.detector.LastFilename != str(file)
        beamline.assert_frames(file, range(10))
        beamline.assert_frames(beamline.detector.LastFilename, range(10))
        with pytest.raises(tango.DevFailed, match="AllowOverwrite"):
            beamline.detector.OverwritePolicy = "OVERWRITE"
            beamline.detector.Arm()
    finally:
        beamline.detector.OverwritePolicy = "ABORT"


def test_thousands_of_frames_per_second(beamline: Beamline) -> None:
    file = beamline.acquire(ExposureTime=0.0002, FrameTime=0.0005, nFramesPerTrigger=4000)
    assert beamline.detector.nFramesMissing == 0
    beamline.assert_frames(file, range(0, 4000, 97))


def test_arm_leaves_on_before_it_returns(beamline: Beamline) -> None:
    for _ in range(20):
        beamline.set(nFramesPerTrigger=1)
        beamline.detector.Arm()
        # a client that polls for ON must find a finished series, never the ON from before
        while beamline.detector.state() not in ON:
            time.sleep(0.001)
        assert beamline.detector.nFramesWritten == 1
