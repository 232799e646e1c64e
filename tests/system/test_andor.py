"""Andor cameras from Arm to the file: Zyla 5.5 and Balor, every trigger mode, every fault and the series after it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tango

from tangods_detector.hw.andor_parameters import PARAMETERS
from tangods_detector.localtango import LocalTango
from tangods_detector.simulators import andor
from tests.hw.andor_library import numbers_in
from tests.system.andor import AndorBeamline
from tests.system.beamline import DATASET, ON, wait_for

pytestmark = pytest.mark.system
MEMORY = {"zyla": 60_000_000, "balor": 250_000_000}
LINES = {"zyla": ["padding 64", "ramp 0.1"], "balor": ["ramp 0.1"]}


def made(model: str, local: LocalTango, folders: pytest.TempPathFactory) -> AndorBeamline:
    options = ["cooling_timeout = 0.5", f"memory = {MEMORY[model]}"]
    return AndorBeamline(
        local, f"andor{model}", folders.mktemp(model), model, options, LINES[model], TriggerTimeout=3.0
    )


@pytest.fixture(scope="module")
def zyla(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AndorBeamline]:
    with made("zyla", local_tango, tmp_path_factory) as both:
        yield both


@pytest.fixture(scope="module")
def balor(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AndorBeamline]:
    with made("balor", local_tango, tmp_path_factory) as both:
        yield both


@pytest.fixture(scope="module", params=["zyla", "balor"])
def beamline(request: pytest.FixtureRequest) -> AndorBeamline:
    beamline = request.getfixturevalue(request.param)
    assert isinstance(beamline, AndorBeamline)
    return beamline


# --- images ----------------------------------------------------------------------------------------------------------


def software(beamline: AndorBeamline) -> None:
    for n in range(10):
        wait_for("its frames", lambda n=n: beamline.detector.nFramesAcquired == 5 * n)
        beamline.detector.SoftwareTrigger()


MODES: dict[str, tuple[int, int, Callable[[AndorBeamline], None]]] = {  # triggers, frames of each, who starts them
    "INTERNAL": (1, 200, lambda b: None),
    "SOFTWARE": (10, 5, software),
    "EXTERNAL_SINGLE": (10, 20, lambda b: b.tell("edge 1")),
    "EXTERNAL_MULTI": (200, 1, lambda b: b.tell("edge 200 0.003")),
    "EXTERNAL_GATE": (200, 1, lambda b: b.tell("edge 200 0.003 0.001")),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_trigger_mode(beamline: AndorBeamline, mode: str) -> None:
    triggers, each, act = MODES[mode]
    assert mode in beamline.detector.TriggerModes
    file = beamline.set(TriggerMode=mode, nTriggers=triggers, nFramesPerTrigger=each)
    beamline.detector.Arm()
    beamline.wait_running()
    act(beamline)
    assert beamline.wait_end(60) in ON, beamline.detector.status()
    detector, n = beamline.detector, triggers * each
    counts = (detector.nFramesAcquired, detector.nFramesWritten, detector.nFramesMissing, detector.LastError)
    assert counts == (n, n, 0, "")
    beamline.assert_taken(file, n)
    file.unlink()


@pytest.mark.parametrize("beamline", [pytest.param("zyla", marks=pytest.mark.soak), "balor"], indirect=True)
def test_the_whole_sensor(beamline: AndorBeamline) -> None:
    """Also binned, and with 16 bits."""
    detector, roi = beamline.detector, list(beamline.detector.Roi)
    rows, columns = {"zyla": (2160, 2560), "balor": (4104, 4128)}[beamline.model]
    try:
        detector.Roi = [0, 0, 0, 0]
        assert (list(detector.Roi), list(detector.FrameShape)) == ([0, 0, columns, rows], [rows, columns])
        file = beamline.acquire(nFramesPerTrigger=2, FrameTime=0.0, ExposureTime=0.01)
        beamline.assert_taken(file, 2)
        file.unlink()
        detector.Binning, detector.BitDepth = [2, 2], 16
        file = beamline.acquire(nFramesPerTrigger=2, FrameTime=0.0, ExposureTime=0.01)
        assert detector.PixelEncoding == "Mono16"
        assert list(detector.FrameShape) == [rows // 2 // 8 * 8, columns // 2], "a Balor takes steps of 8"
        beamline.assert_taken(file, 2)
        file.unlink()
    finally:
        detector.Binning, detector.BitDepth, detector.Roi = [1, 1], 0, roi
        detector.Gain = detector.GainChoices.split("; ")[0]


def test_the_camera_s_clock_is_in_the_file(beamline: AndorBeamline) -> None:
    begun = time.time()
    file = beamline.acquire(nFramesPerTrigger=50, FrameTime=0.004)
    period = beamline.detector.FrameTime
    with h5py.File(file) as h5:
        times = h5["entry/instrument/detector/timestamp"][:]
    assert begun - 1 < times[0] < time.time()
    np.testing.assert_allclose(np.diff(times), period, atol=1e-6)
    file.unlink()


def test_a_live_view_with_another_exposure_on_the_fly(beamline: AndorBeamline) -> None:
    detector = beamline.detector
    beamline.set()
    detector.Live()
    wait_for("images", lambda: detector.nFramesAcquired > 20)
    detector.LiveExposureTime = 0.02
    assert detector.LiveExposureTime == pytest.approx(0.02, rel=0.01)
    before = detector.nFramesAcquired
    wait_for("more images", lambda: detector.nFramesAcquired > before + 5)
    assert detector.LastImage.shape == tuple(detector.FrameShape)
    detector.Stop()
    assert beamline.wait_end() in ON, detector.status()
    with pytest.raises(tango.DevFailed, match="only in a live view"):
        detector.LiveExposureTime = 0.03
    beamline.good_series()
    assert detector.ExposureTime == pytest.approx(0.001, rel=0.01)


def test_its_own_attributes(beamline: AndorBeamline) -> None:
    detector = beamline.detector
    for p in PARAMETERS:
        assert detector.read_attribute(p.name).value is not None, p.name
    with pytest.raises(tango.DevFailed, match=r"ExposureTime: 5000 s; .* the camera takes 9.* to 1800 s"):
        detector.ExposureTime = 5000.0
    with pytest.raises(tango.DevFailed, match="Roi: 9999 x 10 at 0, 0; the sensor has"):
        detector.Roi = [0, 0, 9999, 10]
    with pytest.raises(tango.DevFailed, match="Gain: 'much'; can be '"):
        detector.Gain = "much"
    beamline.set(TriggerMode="EXTERNAL_MULTI", nFramesPerTrigger=2)
    with pytest.raises(tango.DevFailed, match="nFramesPerTrigger: 2; in EXTERNAL_MULTI"):
        detector.Arm()
    detector.ShutterMode = "Global"
    assert detector.ShutterMode == "Global"
    file = beamline.acquire(FrameTime=0.0)
    beamline.assert_taken(file, 10)
    file.unlink()
    detector.ShutterMode = "Rolling"
    detector.Cooling = True
    wait_for("a stable temperature", lambda: detector.TemperatureStatus == "Stabilised")
    wait_for("its reading", lambda: abs(detector.SensorTemperature - detector.TargetTemperature) < 1)
    detector.Cooling = False


# --- a receiver that stops -------------------------------------------------------------------------------------------


def test_a_receiver_that_stops_for_two_seconds(zyla: AndorBeamline) -> None:
    """Back-pressure, then lost frames that are counted exactly, then all goes on."""
    detector, total = zyla.detector, 500
    detector.Roi, detector.BitDepth = [0, 0, 1280, 320], 16  # 0.8 MB, 73 of them in memory
    try:
        file = zyla.set(nFramesPerTrigger=total, FrameTime=0.012)
        detector.Arm()
        wait_for("frames", lambda: detector.nFramesAcquired > 30)
        receiver = zyla.local.process(f"StreamReceiver/{zyla.instance}")
        os.kill(receiver.pid, signal.SIGSTOP)
        try:
            time.sleep(2)  # longer, and it counts as gone
        finally:
            os.kill(receiver.pid, signal.SIGCONT)
        assert zyla.wait_end(60) in ON, detector.status()
        lost = detector.LostFrames
        assert 20 < lost == detector.nFramesMissing == total - detector.nFramesWritten
        assert zyla.count("exposed") == total and zyla.count("lost") <= lost
        assert f"{lost} frames were lost: " in detector.status() and "too slow" in detector.LastError
        with h5py.File(file) as h5:
            data = h5[DATASET]
            there = sorted(data.id.get_chunk_info(k).chunk_offset[0] for k in range(data.id.get_num_chunks()))
            assert len(there) == total - lost and data.shape[0] == total
            assert numbers_in(data[there, :, :8]) == there
        file.unlink()
    finally:
        detector.Roi, detector.BitDepth = [100, 200, 260, 128], 0
        detector.Gain = detector.GainChoices.split("; ")[0]
    zyla.good_series()


# --- faults ----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """`faults` are told before Arm, `act` is done when the detector runs (or, `early`, at once); the series ends in
    `state` with these `words`; `lost` images, None: the file is not looked at."""

    name: str
    state: str
    words: str
    faults: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    act: Callable[[AndorBeamline], None] = lambda b: None
    early: bool = False
    lost: int | None = None
    soak: bool = False


LONG = {"nFramesPerTrigger": 5000}
MULTI = {"TriggerMode": "EXTERNAL_MULTI", "nTriggers": 4, "nFramesPerTrigger": 1}
SOFTWARE = {"TriggerMode": "SOFTWARE", "nTriggers": 2, "nFramesPerTrigger": 100}


def stop(beamline: AndorBeamline) -> None:
    time.sleep(0.3)
    beamline.detector.Stop()


def overflow(beamline: AndorBeamline) -> None:
    wait_for("frames", lambda: beamline.detector.nFramesAcquired > 10)
    beamline.tell("lose 5")


def cool(beamline: AndorBeamline) -> None:
    beamline.detector.Cooling = True


CASES = (
    Case("refused setting", "FAULT", r"AT_SetFloat ExposureTime = .*: COMM \(17\)",
         ("fail AT_SetFloat:ExposureTime 17",)),
    Case("a buffer is refused", "FAULT", r"AT_QueueBuffer of \d+ bytes: NOMEMORY \(37\)", ("fail AT_QueueBuffer 37",)),
    Case("wrong size of a buffer", "FAULT", r"INVALIDSIZE \(15\)", ("size 64",)),
    Case("start is refused", "FAULT", r"AcquisitionStart: COMM \(17\)", ("fail AT_Command:AcquisitionStart 17",)),
    Case("unplugged in a series", "FAULT", r"CONNECTION \(10\)", (), LONG, lambda b: b.tell("unplug")),
    Case("unplugged, only time-outs", "FAULT", r"CONNECTION \(10\)", (), LONG, lambda b: b.tell("unplug quiet")),
    Case("buffer time-out: no frame any more", "FAULT", "gave no frame for", (), LONG, lambda b: b.tell("silent 1")),
    Case("frames come late", "ON", "complete: 20 frames", ("stall 0.5",), lost=0),
    Case("camera's own overflow", "ON", "HARDWARE_OVERFLOW", (), {"nFramesPerTrigger": 300}, overflow, lost=5),
    Case("the same among edges", "FAULT", "HARDWARE_OVERFLOW.*nothing tells which ones", (), MULTI,
         lambda b: (b.tell("lose 1"), b.tell("edge 4"))),  # type: ignore[func-returns-value]
    Case("damaged metadata", "ON", "damaged metadata", ("corrupt 1",), lost=0),
    Case("too few edges", "FAULT", "no trigger for 3 s", (), MULTI, lambda b: b.tell("edge 2")),
    Case("too few edges, then Stop", "ON", "ended by Stop: 2 frames", (), MULTI,
         lambda b: (b.tell("edge 2"), stop(b))),  # type: ignore[func-returns-value]
    Case("stop in a software trigger", "ON", "ended by Stop", ("slow AT_Command:SoftwareTrigger 1",), SOFTWARE,
         lambda b: (b.detector.command_inout_asynch("SoftwareTrigger"), stop(b))),  # type: ignore[func-returns-value]
    Case("Abort in an exposure of 60 s", "ON", "ended by Abort", (), {"ExposureTime": 60.0, "FrameTime": 0.0},
         lambda b: b.detector.Abort()),
    Case("cooling not reached", "FAULT", "not stable at 0 degC within 0.5 s", ("ramp never",), {}, cool, early=True),
    Case("cooling reports a fault", "FAULT", "a fault of its cooling", ("cooler fault",)),
    Case("a call lasts 2 s", "ON", "complete: 20 frames", ("slow AT_Command:AcquisitionStop 2",), lost=0,
         soak=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, ...]]]:
    """Told at the end: what was injected, and what came of it."""
    rows: list[tuple[str, ...]] = [("fault", "state", "s", "Status", "next")]
    yield rows
    for row in rows:
        print(" | ".join(row))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.soak] if c.soak else []) for c in CASES]
)
def test_a_fault(zyla: AndorBeamline, case: Case, table: list[tuple[str, ...]]) -> None:
    detector = zyla.detector
    file = zyla.set(nFramesPerTrigger=20)
    for name, value in case.settings.items():
        setattr(detector, name, value)
    zyla.tell(*case.faults)
    if case.early:
        case.act(zyla)
    begun = time.monotonic()
    detector.Arm()
    if case.settings and not case.early:
        zyla.wait_running()
        case.act(zyla)
    state = zyla.wait_end(40)
    taken = time.monotonic() - begun
    status, missing = detector.status(), detector.nFramesMissing
    table.append((case.name, str(state), f"{taken:.1f}", status, ""))
    zyla.tell("calm", "ramp 0.1")
    detector.Cooling = False
    if state is tango.DevState.FAULT:
        detector.Reset()
        wait_for("the end of the fault", lambda: detector.state() is not tango.DevState.FAULT)
        zyla.wait_on(30)
    zyla.good_series()
    table[-1] = (*table[-1][:-1], "good")
    assert re.search(case.words, status), status
    assert str(state) == case.state or (state in ON and case.state == "ON"), status
    if case.lost is not None:
        assert missing == case.lost
        with h5py.File(file) as h5:
            data = h5[DATASET]
            there = sorted(data.id.get_chunk_info(k).chunk_offset[0] for k in range(data.id.get_num_chunks()))
            assert len(there) == len(data) - case.lost and numbers_in(data[there, :, :8]) == there
    file.unlink(missing_ok=True)


def test_no_library_no_camera_and_then_there_is_one(local_tango: LocalTango, tmp_path: Path) -> None:
    both = AndorBeamline(local_tango, "andornone", tmp_path)
    detector, library = both.detector_name, both.library
    options = [f"library = {library}", "memory = 4000000"]
    both.put("Detector", detector, Backend="andor", BackendOptions=options, Receiver="no/such/receiver")
    local_tango.start("Detector/andornone")
    try:
        proxy = local_tango.device(detector)
        wait_for("FAULT", lambda: proxy.state() is tango.DevState.FAULT)
        assert re.search(rf"library: '{library}' is not Andor's SDK3: .*cannot open.*Init", proxy.status())
        both.make_library()  # which finds no camera
        proxy.Init()
        wait_for("UNKNOWN", lambda: proxy.state() is tango.DevState.UNKNOWN)
        wait_for("why", lambda: "no camera; the SDK finds none" in proxy.status())
        both.make_library("zyla SN-7")  # switched on
        wait_for("the camera", lambda: proxy.state() is tango.DevState.DISABLE)
        assert (
            proxy.read_attribute("DetectorModel").value == "ZYLA-5.5-CL10" if hasattr(proxy, "DetectorModel") else True
        )
    finally:
        local_tango.stop("Detector/andornone")


def test_unplugged_while_idle_and_plugged_in_again(zyla: AndorBeamline) -> None:
    zyla.tell("unplug")
    zyla.wait_state(tango.DevState.UNKNOWN)
    wait_for("why", lambda: "no camera" in zyla.detector.status())
    andor.make(zyla.library.parent, ["zyla SN-1"], [*LINES["zyla"], "plug"])  # read when the library begins anew
    zyla.wait_on(30)
    zyla.good_series()
