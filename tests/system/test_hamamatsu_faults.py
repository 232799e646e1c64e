"""Every fault of a Hamamatsu camera as clients see it: the state, the words, what the file has, and the next series."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import tango

from tangods_detector.localtango import LocalTango
from tests.hw.dcam import code
from tests.system.beamline import wait_for
from tests.system.hamamatsu import MEMORY, ROI, CameraBeamline, assert_images

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def beamline(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CameraBeamline]:
    with faulty(local_tango, tmp_path_factory, "flash4") as both:
        yield both


@pytest.fixture(scope="module")
def lightning(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CameraBeamline]:
    with faulty(local_tango, tmp_path_factory, "lightning") as both:
        yield both


def faulty(local: LocalTango, folders: pytest.TempPathFactory, model: str) -> CameraBeamline:
    options = [MEMORY, "cooling_timeout = 2"]
    root = folders.mktemp(model)
    return CameraBeamline(local, f"bad{model}", root, f"{model} 000123", options, TriggerTimeout=3.0)


@dataclass
class Case:
    """`orders` are told before Arm, `act` is done when the detector runs (or, `early`, at once); the series ends in
    `state` within `limit` s, with these `words`."""

    name: str
    state: str
    words: str
    orders: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    act: Callable[[CameraBeamline], None] = lambda b: None
    early: bool = False
    limit: float = 15.0
    lost: tuple[int, ...] | None = None  # images; None: the file is not looked at
    only: str = ""  # model
    soak: bool = False


def order(name: str, number: int) -> str:
    return f"set {name} {code(number):.0f}"


LONG = {"nFramesPerTrigger": 5000}
MULTI = {"TriggerMode": "EXTERNAL_MULTI", "nTriggers": 20, "nFramesPerTrigger": 1}
CLICKS = {"TriggerMode": "SOFTWARE", "nTriggers": 3, "nFramesPerTrigger": 1, "ExposureTime": 1.0}


def stop(beamline: CameraBeamline) -> None:
    time.sleep(0.3)
    beamline.detector.Stop()


def trigger_and_stop(beamline: CameraBeamline) -> None:
    beamline.detector.SoftwareTrigger()
    time.sleep(0.2)
    beamline.detector.Stop()


CASES = (
    Case("no memory for buffers", "FAULT", r"dcambuf_attach .* NOMEMORY \(0x80000203\).*set memory to less",
         (order("alloc_error", 0x80000203),)),
    Case("start refused", "FAULT", r"dcamcap_start: NORESOURCE", (order("start_error", 0x80000201),)),
    Case("unplugged in the series", "FAULT", r"NOCONNECTION \(0x80000F07\)", ("set unplug_at 50",), LONG),
    Case("no frame any more", "FAULT", "the hardware gave no frame for 10", ("set stall_at 5",), LONG, limit=20,
         soak=True),
    Case("no frame any more, then Stop", "ON", "ended by Stop: 5 frames", ("set stall_at 5",), LONG,
         act=lambda b: (wait_for("five", lambda: b.detector.nFramesAcquired == 5), b.detector.Stop())),  # type: ignore[func-returns-value]
    Case("an error while waiting", "FAULT", "dcamwait_start: FAILREADCAMERA",
         (order("wait_error", 0x83001002), "set wait_error_at 5")),
    Case("LOSTFRAME", "ALARM", r"2 of 20 frames are missing.*lost frames: 3, 7 \(2 between camera", ("lose 3 7",),
         lost=(3, 7)),
    Case("MISSINGFRAME_TROUBLE", "ALARM", "lost frames: 3", ("lose 3", "set missing 1"), lost=(3,)),
    Case("frames lost and not told", "ALARM", "lost frames: 5-9", ("set jump_at 5", "set jump 5", "set untold 1"),
         lost=(5, 6, 7, 8, 9)),
    Case("the last frame lost, external", "ALARM", "1 of 20 frames are missing.*lost frames: 19", ("lose 19",), MULTI,
         act=lambda b: b.tell("edge 20"), lost=(19,)),
    Case("too few edges", "FAULT", "no trigger for 3 s", ("set skip_edges 2",), MULTI, act=lambda b: b.tell("edge 20"),
         soak=True),
    Case("too few edges, then Stop", "ON", "ended by Stop: 18 frames", ("set skip_edges 2",), MULTI,
         act=lambda b: (b.tell("edge 20"), wait_for("18", lambda: b.detector.nFramesAcquired == 18),
                        b.detector.Stop())),  # type: ignore[func-returns-value]
    Case("Stop in a series", "ON", "ended by Stop", (), LONG, act=stop),
    Case("Stop during a software trigger", "ON", "ended by Stop: 0 frames", (), CLICKS, act=trigger_and_stop),
    Case("Abort in a long exposure", "ON", "ended by Abort", (), {"ExposureTime": 1.5},
         act=lambda b: b.detector.Abort()),
    Case("cooling not reached", "FAULT", "has not reached its temperature within 2 s.*5.0 degC",
         ("set cooling_stuck 5", "set cooling_speed 1000"), only="flash4", soak=True),
    Case("cooling not reached, then Stop", "ON", "stopped before it began", ("set cooling_stuck 5",), act=stop,
         early=True, only="flash4"),
)  # fmt: skip


def run_fault(beamline: CameraBeamline, case: Case) -> str:
    """The case and the series after it; returns a row of the table."""
    detector = beamline.detector
    if "cooling" in case.name:
        detector.Cooler = "ON"
    file = beamline.set(**case.settings)
    for words in case.orders:
        beamline.tell(words)
    time.sleep(0.1)  # that the library has heard it
    begun = time.monotonic()
    detector.Arm()
    if not case.early:
        wait_for("the end of arming", lambda: detector.state() is not tango.DevState.MOVING)
    if detector.state() is not tango.DevState.FAULT:
        case.act(beamline)
    state = beamline.wait_end(40)
    taken = time.monotonic() - begun
    status = detector.status()
    beamline.tell("reset")
    beamline.tell("plug")
    if "cooling" in case.name:
        detector.Cooler = "OFF"
    if state is tango.DevState.FAULT:
        detector.Reset()
        wait_for("the end of the fault", lambda: detector.state() is not tango.DevState.FAULT)
        beamline.wait_on(30)
    beamline.good_series()
    assert str(state) == case.state, status
    assert re.search(case.words, status), status
    assert taken < case.limit, f"{taken:.1f} s"
    if case.lost is not None:
        assert_images(file, 20, lost=case.lost)
    if file.exists():
        file.unlink()
    return " | ".join((case.name, beamline.camera.split()[0], str(state), f"{taken:.1f} s", status, "next series good"))


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Told at the end: what was injected, and what came of it."""
    rows: list[str] = []
    yield rows
    print("\n".join(["", *rows]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.soak] if c.soak else []) for c in CASES]
)
def test_a_fault(beamline: CameraBeamline, case: Case, table: list[str]) -> None:
    table.append(run_fault(beamline, case))


@pytest.mark.soak
@pytest.mark.parametrize("case", [case for case in CASES if not case.only], ids=lambda case: case.name)
def test_a_fault_of_another_camera(lightning: CameraBeamline, case: Case, table: list[str]) -> None:
    table.append(run_fault(lightning, case))


def test_a_refused_setting(beamline: CameraBeamline) -> None:
    detector = beamline.detector
    taken = [detector.ExposureTime]
    beamline.tell(order("refuse_code", 0x83001003))
    beamline.tell("set refuse 0x1F0110")

    def is_refused() -> bool:
        """The library hears of it a little later."""
        detector.ExposureTime = time.time() % 1 + 0.01
        taken.append(detector.ExposureTime)
        return False

    with pytest.raises(tango.DevFailed, match=r"EXPOSURE TIME = .*: FAILWRITECAMERA \(0x83001003\)"):
        wait_for("the refusal", is_refused)
    beamline.tell("reset")
    assert detector.ExposureTime == taken[-1]
    detector.ExposureTime = 0.003
    assert detector.ExposureTime == pytest.approx(0.003, abs=1e-5)
    beamline.good_series()


def test_a_library_that_is_not_there(beamline: CameraBeamline) -> None:
    good = beamline.options
    detector = beamline.detector
    beamline.put("Detector", beamline.detector_name, BackendOptions=["library = /nowhere/libdcamapi.so", MEMORY])
    detector.Init()
    beamline.wait_state(tango.DevState.FAULT)
    assert "/nowhere/libdcamapi.so cannot be loaded" in detector.status() and "install" in detector.LastError
    with pytest.raises(tango.DevFailed, match="cannot be loaded"):
        detector.Arm()
    beamline.put("Detector", beamline.detector_name, BackendOptions=["serial_number = 4711", *good[:1]])
    detector.Init()
    beamline.wait_state(tango.DevState.UNKNOWN)
    assert "no camera with the serial number 4711; found: 000123" in detector.status()
    beamline.put("Detector", beamline.detector_name, BackendOptions=good)
    port = beamline.receiver.get_property("Endpoints")["Endpoints"][0].rpartition(":")[2]
    beamline.put("Detector", beamline.detector_name, BackendOptions=[*good, f"port = {port}"])
    detector.Init()
    beamline.wait_on(30)
    detector.Roi = ROI
    beamline.good_series()


def test_switched_off_and_on_between_series(beamline: CameraBeamline) -> None:
    beamline.tell("pull")
    beamline.wait_state(tango.DevState.UNKNOWN)
    wait_for("the reason", lambda: "NOCAMERA" in beamline.detector.status())
    beamline.tell("plug")
    beamline.wait_on(30)
    beamline.good_series()
