"""A Hamamatsu camera from Arm to the file, in three processes: trigger modes, formats."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import h5py
import pytest
import tango

from tangods_detector.hw.hamamatsu_parameters import PARAMETERS
from tangods_detector.localtango import LocalTango
from tests.system.beamline import ON, wait_for
from tests.system.hamamatsu import MEMORY, ROI, CameraBeamline, assert_images
from tests.system.test_hamamatsu_faults import CASES, run_fault

pytestmark = pytest.mark.system
CAMERAS = ("flash4", "lightning")


@pytest.fixture(scope="module", params=CAMERAS)
def beamline(
    request: pytest.FixtureRequest, local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CameraBeamline]:
    model = request.param
    root = tmp_path_factory.mktemp(model)
    with CameraBeamline(local_tango, f"orca{model}", root, f"{model} 000123", [MEMORY], TriggerTimeout=3.0) as both:
        yield both


# --- series -----------------------------------------------------------------------------------------------------------


def software(beamline: CameraBeamline) -> None:
    for n in range(5):
        wait_for("its frames", lambda n=n: beamline.detector.nFramesAcquired == 10 * n)
        beamline.detector.SoftwareTrigger()


MODES: dict[str, tuple[int, int, Callable[[CameraBeamline], None]]] = {  # triggers, frames of each, who starts them
    "INTERNAL": (1, 200, lambda b: None),
    "SOFTWARE": (5, 10, software),
    "EXTERNAL_SINGLE": (2, 50, lambda b: b.tell("edge 1")),
    "EXTERNAL_MULTI": (50, 1, lambda b: b.tell("edge 50")),
    "EXTERNAL_GATE": (50, 1, lambda b: b.tell("edge 50 0 0.004")),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_series_in_each_mode(beamline: CameraBeamline, mode: str) -> None:
    triggers, each, act = MODES[mode]
    file = beamline.set(TriggerMode=mode, nTriggers=triggers, nFramesPerTrigger=each)
    beamline.detector.Arm()
    beamline.wait_running()
    act(beamline)
    assert beamline.wait_end(60) in ON, beamline.detector.status()
    detector = beamline.detector
    n = triggers * each
    assert (detector.nFramesAcquired, detector.nFramesWritten, detector.nFramesMissing, detector.LastError) == (
        n,
        n,
        0,
        "",
    )
    assert_images(file, n)
    file.unlink()


def test_edges_as_the_clock_of_the_read_out(beamline: CameraBeamline) -> None:
    beamline.detector.SyncReadout = True
    file = beamline.set(TriggerMode="EXTERNAL_MULTI", nTriggers=20, nFramesPerTrigger=1)
    beamline.detector.Arm()
    beamline.wait_running()
    beamline.tell("edge 21 0.005")
    assert beamline.wait_end() in ON, beamline.detector.status()
    beamline.detector.SyncReadout = False
    assert_images(file, 20)
    file.unlink()


def test_several_frames_with_each_edge(beamline: CameraBeamline) -> None:
    if "flash4" in beamline.camera:
        beamline.set(nFramesPerTrigger=5)
        with pytest.raises(tango.DevFailed, match="nFramesPerTrigger: 5; in EXTERNAL_MULTI this camera takes one"):
            beamline.detector.TriggerMode = "EXTERNAL_MULTI"
        return
    file = beamline.set(TriggerMode="EXTERNAL_MULTI", nTriggers=4, nFramesPerTrigger=5)
    beamline.detector.Arm()
    beamline.wait_running()
    beamline.tell("edge 4")
    assert beamline.wait_end() in ON, beamline.detector.status()
    assert_images(file, 20)
    file.unlink()


FORMATS = {"flash4": ((16, 1), (12, 1), (8, 2)), "lightning": ((16, 2), (12, 1), (12, 4))}


@pytest.mark.parametrize("alignment", [pytest.param(0, marks=pytest.mark.soak), 128])
def test_depths_binning_and_padded_rows(beamline: CameraBeamline, alignment: int) -> None:
    detector = beamline.detector
    beamline.tell(f"set row_alignment {alignment}")
    detector.Roi = 64, 32, 400, 128
    for bits, binning in FORMATS[beamline.camera.split()[0]]:
        detector.BitDepth, detector.Binning = bits, (binning, binning)
        file = beamline.acquire()
        assert detector.DataType == ("uint8" if bits == 8 else "uint16")
        assert_images(file, 20, shape=(128 // binning, 400 // binning), bits=bits)
        file.unlink()
    detector.BitDepth, detector.Binning, detector.Roi = 0, (1, 1), ROI
    beamline.tell("reset")
    beamline.good_series()


def test_the_whole_sensor(beamline: CameraBeamline) -> None:
    detector = beamline.detector
    detector.Roi = 0, 0, 0, 0
    if "lightning" in beamline.camera:
        detector.BitDepth = 12
    file = beamline.acquire(nFramesPerTrigger=2, ExposureTime=0.05)
    rows, columns = detector.SensorShape
    assert list(detector.FrameShape) == [rows, columns]
    assert_images(file, 2, shape=(rows, columns))
    file.unlink()
    detector.BitDepth, detector.Roi = 0, ROI


def test_what_goes_into_the_file(beamline: CameraBeamline) -> None:
    begun = time.time()
    file = beamline.acquire()
    with h5py.File(file) as h5:
        detector = h5["entry/instrument/detector"]
        assert h5["entry/instrument/detector/count_time"][()] == pytest.approx(beamline.detector.ExposureTime)
        assert detector["detector_number"][()].decode() == "000123"
        assert detector["saturation_value"][()] == 65535
        times = detector["timestamp"][()] if "timestamp" in detector else h5["entry/instrument/detector/start_time"][()]
        assert list(times) == sorted(times) and begun - 1 < times[0] < time.time()
    file.unlink()


# --- what its own stamps and buffers change ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("beamline", ["lightning"], indirect=True)  # the other one has them all, elsewhere
@pytest.mark.parametrize("name", ["LOSTFRAME", "unplugged in the series", "Stop during a software trigger"])
def test_a_fault(beamline: CameraBeamline, name: str) -> None:
    print(run_fault(beamline, next(case for case in CASES if case.name == name)))


# --- as clients see it ------------------------------------------------------------------------------------------------


def test_its_own_attributes(beamline: CameraBeamline) -> None:
    detector = beamline.detector
    for p in PARAMETERS:
        assert detector.read_attribute(p.name).value is not None, p.name
    detector.ShutterMode = "GLOBAL RESET"
    assert detector.ShutterMode == "GLOBAL RESET"
    detector.ShutterMode = "DELAYED"
    with pytest.raises(tango.DevFailed, match="ShutterMode: 'ROUND'; can be DELAYED, GLOBAL RESET"):
        detector.ShutterMode = "ROUND"
    low, high = detector.ExposureTimeMin, detector.ExposureTimeMax
    for wrong in (low / 2, high * 2):
        with pytest.raises(tango.DevFailed, match="ExposureTime: .* is not between"):
            detector.ExposureTime = wrong
    detector.ExposureTime = 0.0031
    lines = detector.ExposureTime / detector.ExposureTimeStep
    assert lines == pytest.approx(round(lines)), "whole rows"
    detector.Dcam = "TRIGGER DELAY"
    assert detector.Dcam == "0; between 0 and 10"


def test_a_live_view_whose_exposure_changes(beamline: CameraBeamline) -> None:
    beamline.set()
    detector = beamline.detector
    detector.Live()
    wait_for("images", lambda: detector.nFramesAcquired > 20)
    assert detector.LastImage.shape == (ROI[3], ROI[2])
    detector.LiveExposureTime = 0.1
    assert detector.LiveExposureTime == pytest.approx(0.1, abs=1e-4)
    wait_for("the slower rate", lambda: 5 < detector.MeasuredRate < 15, 30)
    detector.Stop()
    assert beamline.wait_end() in ON, detector.status()
    assert detector.ExposureTime == pytest.approx(0.002, abs=1e-5)
    beamline.good_series()
