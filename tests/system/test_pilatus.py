"""A PILATUS from Arm to the file, a process each: trigger modes, both ways of the images, faults and what follows."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import tango

from tangods_detector.hw.pilatus_parameters import PARAMETERS
from tangods_detector.localtango import LocalTango
from tests.hw.test_pilatus_watcher_stream import REAL
from tests.system.beamline import DATASET, ON, wait_for
from tests.system.pilatus import Camserver, PilatusBeamline, assert_pixels, most_files

pytestmark = pytest.mark.system
WAYS = ("here", "there")
HERE = pytest.mark.parametrize("beamline", ["here"], indirect=True)
THERE = pytest.mark.parametrize("beamline", ["there"], indirect=True)
DETECTOR = "entry/instrument/detector"


@pytest.fixture(scope="module", params=WAYS)
def beamline(
    request: pytest.FixtureRequest, local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PilatusBeamline]:
    way = request.param
    root = tmp_path_factory.mktemp(way)
    with Camserver() as cam, PilatusBeamline(local_tango, f"pil{way}", root, cam, way, TriggerTimeout=2.0) as both:
        yield both


# --- trigger modes ----------------------------------------------------------------------------------------------------

N = 200


def software(beamline: PilatusBeamline) -> None:
    for n in range(5):
        wait_for("its frames", lambda n=n: beamline.detector.nFramesAcquired == n * N // 5)
        beamline.detector.SoftwareTrigger()


# Triggers, frames of each, images of one exposure command (0: all), who starts them
MODES: dict[str, tuple[int, int, int, Callable[[PilatusBeamline], None]]] = {
    "INTERNAL": (1, N, 0, lambda b: None),
    "SOFTWARE": (5, N // 5, N // 5, software),
    "EXTERNAL_SINGLE": (10, N // 10, 0, lambda b: b.cam.edge()),
    "EXTERNAL_MULTI": (N, 1, 0, lambda b: b.cam.edge(N)),
    "EXTERNAL_GATE": (N, 1, 0, lambda b: b.cam.edge(N, width=0.003)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_pixel_in_every_trigger_mode(beamline: PilatusBeamline, mode: str) -> None:
    triggers, each, stamps, act = MODES[mode]
    file = beamline.set(nFramesPerTrigger=1, nTriggers=triggers, TriggerMode=mode)
    beamline.detector.nFramesPerTrigger = each
    beamline.detector.Arm()
    beamline.wait_running()
    act(beamline)
    assert beamline.wait_end() in ON, beamline.detector.status()
    detector = beamline.detector
    counts = (detector.nFramesAcquired, detector.nFramesWritten, detector.nFramesMissing, detector.LastError)
    assert counts == (N, N, 0, "")
    assert_pixels(file, range(N), stamps)
    wait_for("an empty RAM disk", lambda: not beamline.cam.images(), 30)
    file.unlink()


# --- faults -----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """`failures` are wished before Arm, `act` is done when the detector runs (or is armed); the series ends in `state`
    within `limit` s, with these `words`."""

    name: str
    state: str
    words: str
    failures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    act: Callable[[PilatusBeamline], None] = lambda b: None
    limit: float = 30.0
    lost: tuple[int, ...] | None = None  # images; None: the file is not looked at
    way: str = "here"  # in `make test`; the soak test has the other


LONG = {"nFramesPerTrigger": 1000}
MULTI = {"TriggerMode": "EXTERNAL_MULTI", "nTriggers": 20, "nFramesPerTrigger": 1}


def stop(beamline: PilatusBeamline) -> None:
    time.sleep(0.3)
    beamline.detector.Stop()


def edges_then_stop(beamline: PilatusBeamline, n: int, **more: Any) -> None:
    beamline.cam.edge(n, **more)
    time.sleep(0.6)
    beamline.detector.Stop()


def restart_streamer(beamline: PilatusBeamline) -> None:
    """As systemd does it, after a kill; on a machine with other work it takes seconds."""
    assert beamline.streamer is not None
    wait_for("images", lambda: beamline.detector.nFramesAcquired > 50)
    beamline.streamer.end(signal.SIGKILL)
    beamline.streamer.start()


def restart_camserver(beamline: PilatusBeamline) -> None:
    wait_for("images", lambda: beamline.detector.nFramesAcquired > 50)
    beamline.cam.switch_off()
    beamline.cam.switch_on()


CASES = (
    Case("replies byte by byte", "ON", "complete", {"split": 20}, lost=()),
    Case("replies joined", "ON", "complete", {"merge": 3}, lost=(), way="there"),
    Case("a reply missing", "ON", "complete", {"mute": "N images"}, {"nFramesPerTrigger": 21}, lost=()),
    Case("the words that it begins missing", "FAULT", "no answer to 'exposure ", {"mute": "Starting"},
         {"nFramesPerTrigger": 2000}),
    Case("7 missing", "ON", "complete.*has not said that the exposure is over", {"mute": "7 OK"}, lost=()),
    Case("noise between replies", "ON", "complete", {"noise": "*** something new 7 OK"}, lost=(), way="there"),
    Case("an exposure refused", "FAULT", "'exposure .*': 15 ERR .*refused", {"refuse": "exposure"}),
    Case("connection closed at the exposure", "FAULT", "has closed the connection", {"disconnect": "exposure"}),
    Case("connection closed in the series", "FAULT", "has closed the connection", {"disconnect_at": 50}, LONG),
    Case("disk full", "FAULT", "15 ERR cannot write .*No space left", {"full_at": 10}),
    Case("a file missing", "ALARM", "1 of 20 images never came: 7", {"missing": [7]}, lost=(7,)),
    Case("the last file missing", "ALARM", "1 of 20 images never came: 19", {"missing": [19]}, lost=(19,),
         way="there"),
    Case("a file cut off", "ALARM", "1 damaged: s.*00007.cbf: .* bytes of", {"truncated": [7]}, lost=(7,)),
    Case("a wrong MD5", "ALARM", "1 damaged: s.*00007.cbf: MD5 of the pixels", {"wrong_md5": [7]}, lost=(7,),
         way="there"),
    Case("a file renamed a second late", "ON", "complete", {"late": [7]}, lost=()),
    Case("the last file a second late", "ON", "complete", {"late": [19]}, lost=(), way="there"),
    Case("files of an earlier series", "ON", "complete", {"old": 5}, lost=()),
    Case("files out of order", "ON", "complete", {"reorder": [3, 7, 12]}, lost=()),
    Case("differences of 32 and 64 bits", "ON", "complete", {"wide": [7]}),
    Case("7 ERR", "ON", "complete.*ended the exposure with 7 ERR", {"seven_error": True}, lost=()),
    Case("7 ERR, and a file missing", "FAULT", "7 ERR .*1 of 20 images never came", {"seven_error": True,
         "missing": [7]}),
    Case("7 twice", "ON", "complete", {"two_sevens": True}, lost=()),
    Case("stop", "ON", "ended by Stop", {}, LONG, act=stop, way="there"),
    Case("two kills ignored", "ON", "ended by Stop", {"kill_ignored": 2}, {"nFramesPerTrigger": 5000}, act=stop),
    Case("all kills ignored", "FAULT", "goes on exposing", {"kill_ignored": 100}, {"nFramesPerTrigger": 2800},
         act=stop),
    Case("Abort in an exposure of 60 s", "ON", "ended by Abort", {}, {"ExposureTime": 60.0, "FrameTime": 0.0},
         act=lambda b: b.detector.Abort()),
    Case("too few edges", "FAULT", "no trigger for 2 s", {"skip_edges": 2}, MULTI, act=lambda b: b.cam.edge(20)),
    Case("too few edges, then Stop", "ON", "ended by Stop: 18 frames", {"skip_edges": 2}, MULTI,
         act=lambda b: edges_then_stop(b, 20)),
    Case("edges in the read-out", "ON", "ended by Stop: 10 frames", {}, MULTI | {"ExposureTime": 0.1, "FrameTime": 0.0},
         act=lambda b: (b.cam.edge(20, period=0.075), time.sleep(2.0), b.detector.Stop())),
    Case("camserver killed and started", "FAULT", "camserver: ", {}, LONG, act=restart_camserver),
    Case("streamer killed and started", "ON", "complete: 1000 frames.*streamer was started again", {},
         LONG | {"FrameTime": 0.004}, act=restart_streamer, limit=60, lost=(), way="there"),
)  # fmt: skip

Table = list[tuple[str, ...]]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Told at the end: what was injected, and what came of it."""
    rows: Table = [("fault", "images read", "state", "s", "Status", "next")]
    yield rows
    for row in rows:
        print(" | ".join(row))


def cases(choose: Callable[[Case], bool]) -> Any:
    return pytest.mark.parametrize("case", list(filter(choose, CASES)), ids=lambda case: case.name)


@HERE
@pytest.mark.slow
@cases(lambda case: case.way == "here")
def test_a_fault_where_images_are_read_here(beamline: PilatusBeamline, case: Case, table: Table) -> None:
    try_fault(beamline, case, table)


@THERE
@pytest.mark.slow
@cases(lambda case: case.way == "there")
def test_a_fault_where_images_are_read_there(beamline: PilatusBeamline, case: Case, table: Table) -> None:
    try_fault(beamline, case, table)


@THERE
@pytest.mark.soak
@cases(lambda case: case.way == "here")
def test_the_other_faults_there(beamline: PilatusBeamline, case: Case, table: Table) -> None:
    try_fault(beamline, case, table)


@HERE
@pytest.mark.soak
@cases(lambda case: case.way == "there" and case.act is not restart_streamer)
def test_the_other_faults_here(beamline: PilatusBeamline, case: Case, table: Table) -> None:
    try_fault(beamline, case, table)


def try_fault(beamline: PilatusBeamline, case: Case, table: Table) -> None:
    detector = beamline.detector
    file = beamline.set(nFramesPerTrigger=1)
    detector.nFramesPerTrigger = 20
    for name, value in case.settings.items():
        setattr(detector, name, value)
    beamline.cam.fail(**case.failures)
    begun = time.monotonic()
    detector.Arm()
    if case.settings:
        wait_for("RUNNING", lambda: detector.state() is not tango.DevState.MOVING)
    case.act(beamline)
    state = beamline.wait_end(60)
    taken, status = time.monotonic() - begun, detector.status()
    table.append((case.name, beamline.way, str(state), f"{taken:.1f}", status, ""))
    beamline.cam.fail()
    if state is tango.DevState.FAULT:
        detector.Reset()
        wait_for("the end of the fault", lambda: detector.state() is not tango.DevState.FAULT)
        beamline.wait_on(30)
    beamline.good_series()
    table[-1] = (*table[-1][:-1], "good")
    assert str(state) == case.state, status
    assert re.search(case.words, status), status
    assert taken < case.limit, f"{taken:.1f} s"
    if case.lost is not None:
        n = int(case.settings.get("nTriggers", 1) * case.settings.get("nFramesPerTrigger", 20))
        assert_pixels(file, range(n), lost=case.lost)
    if "64 bits" in case.name:
        with h5py.File(file) as h5:
            values = [0, 127, -1, 300, 33_000, 2**31 - 1, -2, -(2**31), 2**31 - 1, -1, 1 << 20, 0]
            assert h5[DATASET][7, -1, : len(values)].tolist() == values
    if file.exists():
        file.unlink()


@HERE
@pytest.mark.slow
def test_a_threshold_that_hangs(beamline: PilatusBeamline, table: Table) -> None:
    """The write is over after 2.6 s, the device goes on when camserver does."""
    beamline.cam.fail(hang="setenergy", hang_seconds=4.0)
    begun = time.monotonic()
    with pytest.raises(tango.DevFailed) as caught:
        beamline.detector.Energy = 9500.0
    said, taken = caught.value.args[0].desc.splitlines()[0], time.monotonic() - begun
    table.append(("setenergy hangs for 4 s", beamline.way, "ON", f"{taken:.1f}", said, ""))
    assert re.search("no answer within .* s, the device is busy .*it goes on", said)
    wait_for("it", lambda: _energy(beamline) == 9500.0, 30)
    beamline.good_series()
    table[-1] = (*table[-1][:-1], "good")


def _energy(beamline: PilatusBeamline) -> float:
    try:
        return float(beamline.detector.Energy)
    except tango.DevFailed:
        return 0.0


@THERE
@pytest.mark.slow
def test_camserver_restarted_between_series(beamline: PilatusBeamline, table: Table) -> None:
    beamline.detector.Energy = 12000.0
    begun = time.monotonic()
    beamline.cam.switch_off()
    wait_for("the loss to be seen", lambda: beamline.detector.state() is tango.DevState.UNKNOWN, 20)
    said = beamline.detector.status()
    assert re.search("camserver", said)
    beamline.cam.switch_on()
    beamline.wait_on(30)
    taken = time.monotonic() - begun
    table.append(("camserver restarted between series", beamline.way, "UNKNOWN, ON", f"{taken:.1f}", said, ""))
    assert beamline.detector.Energy == 12000.0, "told again"
    beamline.good_series()
    table[-1] = (*table[-1][:-1], "good")


@HERE
@pytest.mark.slow
def test_another_client_takes_control(beamline: PilatusBeamline, table: Table) -> None:
    """While camserver is away somebody is quicker."""
    detector, cam = beamline.detector, beamline.cam
    cam.switch_off()
    wait_for("the loss to be seen", lambda: detector.state() is tango.DevState.UNKNOWN, 20)
    beamline.stop_detector()
    cam.switch_on()
    with socket.create_connection(("127.0.0.1", cam.port)):
        time.sleep(0.3)
        beamline.start_detector()
        begun = time.monotonic()
        wait_for("the words", lambda: "has control" in beamline.detector.status(), 30)
        assert beamline.detector.state() is tango.DevState.UNKNOWN
        said, taken = beamline.detector.status(), time.monotonic() - begun
        table.append(("another client has control", beamline.way, "UNKNOWN, ON", f"{taken:.1f}", said, ""))
    beamline.wait_on(30)
    beamline.good_series()
    table[-1] = (*table[-1][:-1], "good")


@THERE
@pytest.mark.soak
def test_the_streamer_goes_for_good(beamline: PilatusBeamline, table: Table) -> None:
    assert beamline.streamer is not None
    detector = beamline.detector
    beamline.set(nFramesPerTrigger=100_000)
    detector.Arm()
    wait_for("images", lambda: detector.nFramesAcquired > 20)
    begun = time.monotonic()
    beamline.streamer.end(signal.SIGKILL)
    assert beamline.wait_end(40) is tango.DevState.FAULT
    said, taken = detector.LastError, time.monotonic() - begun
    table.append(("streamer killed", beamline.way, "FAULT", f"{taken:.1f}", said, ""))
    assert re.search("streamer has not answered for", said)
    assert not beamline.cam.exposing
    detector.Reset()
    wait_for("UNKNOWN", lambda: detector.state() is tango.DevState.UNKNOWN, 20)
    wait_for("the words", lambda: "does stream-pilatus run?" in detector.status(), 20)
    beamline.streamer.start()
    beamline.wait_on(30)
    beamline.good_series()
    table[-1] = (*table[-1][:-1], "good")


@THERE
@pytest.mark.slow
def test_a_receiver_that_is_killed(beamline: PilatusBeamline, table: Table) -> None:
    detector = beamline.detector
    beamline.set(nFramesPerTrigger=100_000)
    detector.Arm()
    wait_for("images", lambda: detector.nFramesWritten > 20)
    begun = time.monotonic()
    beamline.stop_receiver(kill=True)
    beamline.start_receiver()
    assert beamline.wait_end(40) is tango.DevState.FAULT
    said, taken = detector.LastError, time.monotonic() - begun
    table.append(("receiver killed and started", beamline.way, "FAULT", f"{taken:.1f}", said, ""))
    assert not beamline.cam.exposing
    wait_quiet(beamline)  # it hears of images of a series that it has never known
    detector.Reset()
    beamline.wait_on(30)
    beamline.good_series()
    table[-1] = (*table[-1][:-1], "good")


def wait_quiet(beamline: PilatusBeamline) -> None:
    """The receiver gets nothing any more."""
    seen, since = -1, time.monotonic()
    end = since + 30
    while time.monotonic() - since < 0.5:
        assert time.monotonic() < end
        received = beamline.snapshot()["received"]
        if received != seen:
            seen, since = received, time.monotonic()
        time.sleep(0.02)


# --- as clients see it ------------------------------------------------------------------------------------------------


@HERE
def test_its_own_attributes(beamline: PilatusBeamline) -> None:
    detector = beamline.detector
    for p in PARAMETERS:
        value = detector.read_attribute(p.name).value
        assert value is not None, p.name
    detector.Energy = 11000.0
    assert (detector.Energy, detector.Threshold, detector.GainSetting) == (11000.0, 5500.0, "autog")
    with pytest.raises(tango.DevFailed, match="out of range"):
        detector.Energy = 100.0
    beamline.set(nFramesPerTrigger=2_000_000)
    with pytest.raises(tango.DevFailed, match="2000000 images in one go: .*Illegal number of images"):
        detector.Arm()
    detector.DetectorDistance, detector.BeamX, detector.BeamY = 0.25, 240.5, 90.25
    detector.Camserver = "df"
    assert detector.Camserver.startswith("5 OK ")
    file = beamline.acquire(nFramesPerTrigger=3)
    assert detector.LastError == "", "the header says what was set"
    with h5py.File(file) as h5:
        found = {name: h5[f"{DETECTOR}/{name}"][()] for name in ("count_time", "frame_time", "distance")}
        assert found == {"count_time": 0.001, "frame_time": 0.002, "distance": 0.25}
        found = {name: h5[f"{DETECTOR}/{name}"][()] for name in ("threshold_energy", "saturation_value")}
        assert found == {"threshold_energy": 5500.0, "saturation_value": 1009797.0}
        assert h5[f"{DETECTOR}/beam_center_y"][()] == 90.25
        assert h5[f"{DETECTOR}/sensor_material"].asstr()[()] == "Si"
        assert h5[f"{DETECTOR}/sensor_thickness"][()] == 0.00045
        assert h5[f"{DETECTOR}/description"].asstr()[()] == "PILATUS3 100K"
        assert h5[f"{DETECTOR}/flatfield_applied"][()], "it comes with the threshold"
        header = h5[f"{DETECTOR}/header/cbf_header"]
        assert header["Exposure_time"].asstr()[()] == "0.0010000 s"
        assert header["Beam_xy"].asstr()[()] == "(240.50, 90.25) pixels"
    file.unlink()


@HERE
def test_what_does_not_go_together_is_refused(beamline: PilatusBeamline) -> None:
    detector = beamline.detector
    beamline.set(nFramesPerTrigger=2, TriggerMode="EXTERNAL_MULTI")
    with pytest.raises(tango.DevFailed, match="nFramesPerTrigger 2: in EXTERNAL_MULTI"):
        detector.Arm()
    assert detector.state() in ON
    beamline.good_series()


@HERE
def test_a_live_view(beamline: PilatusBeamline) -> None:
    beamline.set()
    beamline.detector.Live()
    wait_for("images", lambda: beamline.detector.nFramesAcquired > 20)
    assert beamline.detector.LastImage.shape == (195, 487)
    beamline.detector.Stop()
    assert beamline.wait_end() in ON, beamline.detector.status()
    assert beamline.detector.nFramesMissing == beamline.snapshot()["missing"] == 0
    beamline.good_series()


@pytest.mark.slow
def test_real_images_of_a_6m(local_tango: LocalTango, tmp_path: Path) -> None:
    """What a real detector has measured: camserver -> watcher -> STINS -> recompression -> HDF5 -> h5py."""
    if not REAL:
        print("no real images of a PILATUS 6M are here")
        return
    import bz2

    import fabio

    (tmp_path / "one.cbf").write_bytes(bz2.decompress(REAL[0].read_bytes()))
    expected = fabio.open(str(tmp_path / "one.cbf")).data
    recorded = ("--images", str(tmp_path / "one.cbf"), "--no-stamp")
    with Camserver("6M", *recorded) as cam, PilatusBeamline(local_tango, "pilreal", tmp_path, cam, "there") as both:
        file = both.acquire(nFramesPerTrigger=4, ExposureTime=0.05, FrameTime=0.1)
        assert both.detector.nFramesMissing == 0 and both.detector.LastError == ""
        with h5py.File(file) as h5:
            assert h5[DATASET].shape == (4, 2527, 2463)
            for k in range(4):
                assert np.array_equal(h5[DATASET][k], expected)


# --- rates ------------------------------------------------------------------------------------------------------------


def one_rate(both: PilatusBeamline, n: int, period: float, model: str) -> dict[str, Any]:
    """A series of `n` images, `period` s apart: what it took, and how full the RAM disk was."""
    file = both.set(nFramesPerTrigger=n, ExposureTime=0.0005, FrameTime=period)
    over, most = threading.Event(), []
    watch = threading.Thread(target=lambda: most.append(most_files(both.cam.folder, lambda: over.wait(0.01))))
    watch.start()
    try:
        both.detector.Arm()
        both.wait_running()
        begun, spent = time.monotonic(), cpu_times(both)
        state = both.wait_end(600)
        taken = time.monotonic() - begun
        used = {name: round(1000 * (now - spent[name]) / n, 2) for name, now in cpu_times(both).items()}
    finally:
        over.set()
        watch.join()
    assert state in ON, both.detector.status()
    assert both.detector.nFramesMissing == 0 and both.snapshot()["missing"] == 0, both.detector.status()
    assert_pixels(file, range(n), model=model)
    file.unlink()
    rates = {"images": n, "per s wanted": round(1 / period), "per s": round(n / taken, 1), "files": most[0]}
    return rates | {"CPU ms per image": used}


def cpu_times(both: PilatusBeamline) -> dict[str, float]:
    """s that each process has used. Of a machine with other work they tell more than the rate."""
    processes = both.processes()
    return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in processes.items()}


@pytest.mark.soak
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("model", "n", "rates"), [("2M", 1000, (250, 140, 110, 80, 40)), ("300K", 4000, (500, 250))])
def test_the_highest_rate(
    local_tango: LocalTango, tmp_path: Path, model: str, n: int, rates: tuple[int, ...], way: str
) -> None:
    """No image is lost at any rate, and where the machine keeps up the RAM disk stays nearly empty."""
    receiver = {"Workers": 2}
    with (
        Camserver(model) as cam,
        PilatusBeamline(local_tango, f"pilrate{model}{way}", tmp_path, cam, way, (), receiver) as both,
    ):
        kept_up = []
        for rate in rates:
            found = one_rate(both, n, 1 / rate, model)
            print(model, way, found)
            if found["per s"] > 0.95 * rate:
                kept_up.append(found["files"])
        assert not kept_up or min(kept_up) <= 50
