"""A Lambda of four modules on two control units, from Arm to the file, in seven processes: trigger modes, late and lost
modules, every fault and the next series."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tango

from tangods_detector.localtango import LocalTango
from tests.system.beamline import DATASET, ON, wait_for
from tests.system.xlambda import PROGRAM, LambdaBeamline, Unit, drawing, wait_frames

pytestmark = pytest.mark.system
LAYOUT = "windmill"


def everyday(value: Any, names: Sequence[str], name: str) -> Any:
    """Those that are named are tried each day, all by `make soak`."""
    return pytest.param(value, id=name, marks=() if name in names else pytest.mark.soak)


@pytest.fixture(scope="module")
def beamline(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaBeamline]:
    """Modules 1 and 2 on one unit, 3 and 4 on the other, which has a high voltage."""
    with (
        Unit(LAYOUT, "1-2", 0) as a,
        Unit(LAYOUT, "3-4", 2, "--sensor", "CdTe", stream=("--lag", "2")) as b,
        LambdaBeamline(
            local_tango, "lambda", tmp_path_factory.mktemp("lambda"), LAYOUT, [a, b], TriggerTimeout=3.0
        ) as both,
    ):
        yield both


# --- every frame at its place ----------------------------------------------------------------------------------------


def series_with_losses(beamline: LambdaBeamline, n: int, **failures: Any) -> tuple[Path, dict[int, list[int]]]:
    """A series of `n` frames, its file, and what was never sent, by module from 1."""
    beamline.fail(**failures)
    file = beamline.acquire(nFramesPerTrigger=n)
    beamline.fail()
    lost = {module: numbers for unit in beamline.units for module, numbers in unit.lost().items()}
    return file, lost


def test_two_thousand_frames_of_late_modules_of_which_one_loses_some(beamline: LambdaBeamline) -> None:
    file, lost = series_with_losses(beamline, 2000, jitter=0.2, lose_share={3: 0.01})
    assert set(lost) == {3} and 5 <= len(lost[3]) <= 50
    detector = beamline.detector
    assert (detector.nFramesAcquired, detector.nFramesMissing) == (2000, len(lost[3]))
    assert f"lambda/1: {len(lost[3])} of 2000 frames missing" in detector.status()
    beamline.assert_sent(file, 2000, lost)
    file.unlink()


def test_the_image_put_together_is_what_was_drawn(beamline: LambdaBeamline, tmp_path: Path) -> None:
    file = beamline.acquire(nFramesPerTrigger=6)
    whole = tmp_path / "whole.h5"
    subprocess.run([PROGRAM, "assemble", file, "--output", whole], check=True, capture_output=True, timeout=60)
    with h5py.File(whole) as h5:
        images = h5[DATASET][:]
    assert images.shape[1:] == drawing(LAYOUT).whole(0).shape
    for number, image in enumerate(images):
        np.testing.assert_array_equal(image, drawing(LAYOUT).whole(number))
    file.unlink()


@pytest.mark.soak
def test_ten_modules_of_one_unit_show_as_one_image(local_tango: LocalTango, tmp_path: Path) -> None:
    with Unit("ten", "1-10", 0) as unit, LambdaBeamline(local_tango, "ten", tmp_path, "ten", [unit]) as beamline:
        file = beamline.acquire(nFramesPerTrigger=20)
        beamline.assert_sent(file, 20)
        with h5py.File(file) as h5:
            assembled = h5["entry/instrument/detector/assembled"][:]
        for number, image in enumerate(assembled):
            np.testing.assert_array_equal(image, drawing("ten").whole(number))


# --- trigger modes ---------------------------------------------------------------------------------------------------


def software(beamline: LambdaBeamline) -> None:
    for n in range(4):
        wait_for("its frames", lambda n=n: beamline.detector.nFramesAcquired == 25 * n)
        beamline.detector.SoftwareTrigger()


MODES: dict[str, tuple[int, int, int, Callable[[LambdaBeamline], None]]] = {  # depth, triggers, frames of each, edges
    "INTERNAL": (12, 1, 100, lambda b: None),
    "SOFTWARE": (12, 4, 25, software),
    "EXTERNAL_SINGLE": (12, 4, 25, lambda b: b.edges()),
    "EXTERNAL_MULTI": (24, 100, 1, lambda b: b.edges(100)),
    "EXTERNAL_GATE": (24, 100, 1, lambda b: b.edges(100, width=0.003)),
    "EXTERNAL_MULTI below 24 bit": (12, 100, 1, lambda b: b.edges(101, period=0.003)),
}


@pytest.mark.parametrize(
    "mode", [everyday(mode, ("SOFTWARE", "EXTERNAL_MULTI", "EXTERNAL_GATE"), mode) for mode in MODES]
)
def test_a_hundred_images(beamline: LambdaBeamline, mode: str) -> None:
    depth, triggers, each, act = MODES[mode]
    file = beamline.set(BitDepth=depth, TriggerMode=mode.split()[0], nTriggers=triggers, nFramesPerTrigger=each)
    beamline.detector.Arm()
    beamline.wait_running()
    act(beamline)
    assert beamline.wait_end() in ON, beamline.detector.status()
    detector = beamline.detector
    counts = (detector.nFramesAcquired, detector.nFramesWritten, detector.nFramesMissing, detector.LastError)
    assert counts == (100, 100, 0, "")
    beamline.assert_sent(file, 100, depth=depth, each=each if mode == "SOFTWARE" else 100)
    file.unlink()
    beamline.write("BitDepth", 12)


@pytest.mark.soak
def test_two_counters(beamline: LambdaBeamline) -> None:
    """Two images of each exposure, the low threshold's first."""
    detector = beamline.detector
    beamline.write("Thresholds", "5000, 8000")
    beamline.write("CounterMode", "DUAL")
    beamline.set(nFramesPerTrigger=21)
    with pytest.raises(tango.DevFailed, match="nFramesPerTrigger: 21; with CounterMode DUAL"):
        detector.Arm()
    file = beamline.acquire(nFramesPerTrigger=20)
    beamline.assert_sent(file, 20, counters=2)
    assert [unit.read("lambda/n_frames") for unit in beamline.units] == [10, 10]
    beamline.write("CounterMode", "SINGLE")
    beamline.write("Thresholds", "6000")
    beamline.good_series()


@pytest.mark.soak
def test_a_live_view(beamline: LambdaBeamline) -> None:
    beamline.set(ExposureTime=0.01)
    beamline.detector.Live()
    wait_for("images", lambda: beamline.detector.nFramesAcquired > 20)
    assert beamline.detector.LastImage.size
    beamline.detector.Stop()
    assert beamline.wait_end() in ON, beamline.detector.status()
    beamline.good_series()


@pytest.mark.soak
def test_units_that_end_and_come_back(beamline: LambdaBeamline) -> None:
    """The process that sends the modules."""
    detector, unit = beamline.detector, beamline.units[1]
    beamline.set(nFramesPerTrigger=2000)
    detector.Arm()
    wait_frames(beamline, 50)
    begun = time.monotonic()
    unit.stop_stream()
    assert beamline.wait_end() is tango.DevState.FAULT
    print(f"stream-lambda killed: FAULT after {time.monotonic() - begun:.1f} s: {detector.status()}")
    assert "does stream-lambda run?" in detector.LastError
    detector.Reset()
    beamline.wait_state(tango.DevState.UNKNOWN)
    unit.start_stream()
    beamline.wait_on(30)
    beamline.good_series()


# --- faults ----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """`failures` are wished of the second unit before Arm (`both`: of both), `act` is done when the detector runs; the
    series ends in one of the states of `state` within `limit` s, with these `words`."""

    name: str
    state: str
    words: str
    failures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    before: Callable[[LambdaBeamline], None] = lambda b: None  # what somebody does between the settings and Arm
    act: Callable[[LambdaBeamline], None] = lambda b: None
    both: bool = False
    limit: float = 10.0
    lost: dict[int, list[int]] | None = None  # None: the file is not looked at


LONG = {"nFramesPerTrigger": 2000}
MULTI = {"TriggerMode": "EXTERNAL_MULTI", "nTriggers": 10, "nFramesPerTrigger": 1, "BitDepth": 24}


def stop(beamline: LambdaBeamline) -> None:
    wait_for("frames", lambda: beamline.detector.nFramesAcquired > 10)
    beamline.detector.Stop()


def restarted(beamline: LambdaBeamline) -> None:
    beamline.fail(restart=True, restart_seconds=0.2)
    wait_for("its return", lambda: all(unit.read("lambda/status") == "ready" for unit in beamline.units))
    assert beamline.units[0].read("lambda/thresholds") == []


def refused_several(beamline: LambdaBeamline) -> None:
    beamline.write("nFramesPerTrigger", 5)
    with pytest.raises(tango.DevFailed, match="nFramesPerTrigger: 5; .*one frame a trigger"):
        beamline.detector.Arm()
    beamline.write("nFramesPerTrigger", 1)


def broken(beamline: LambdaBeamline) -> None:
    wait_frames(beamline, 50)
    beamline.units[1].fail(server_errors="api")
    time.sleep(1.5)
    beamline.units[1].fail()


def edges_then_stop(beamline: LambdaBeamline) -> None:
    beamline.units[0].edge(6)
    beamline.units[1].edge(6)
    wait_for("frames", lambda: beamline.detector.nFramesAcquired >= 4)
    beamline.detector.Stop()


CASES = (
    Case("a module is never ready", "FAULT|UNKNOWN", "lambda/1.* is not ready", {"never_ready": [3]}),
    Case("a module lags by 1 s", "ON", "complete", {"lag": {3: 1.0}}, lost={}),
    Case("a module loses a frame", "ON|ALARM", "1 of 20 frames are missing.*lambda/1: 1 of 20 frames missing: 7",
         {"lose": {3: [7]}}, lost={3: [7]}),
    Case("a module loses its last frame", "ON|ALARM", "1 of 20 frames are missing", {"lose": {4: [19]}},
         lost={4: [19]}),
    Case("INCOMPLETE frames", "ON", "complete: 20 frames.*2 frames of modules came with lost pixels",
         {"incomplete": {4: [3, 5]}}),
    Case("a module sends nothing more", "ON|ALARM", "15 of 20 frames are missing", {"silent": {4: 5}},
         lost={4: [*range(5, 20)]}),
    Case("PUB drops 10 frames of a unit", "ON|ALARM", "10 of 20 frames are missing", {"drop": 10},
         lost={3: [*range(5, 15)], 4: [*range(5, 15)]}),
    Case("PUB drops 300 frames of all", "ON|ALARM", "300 of 2000 frames are missing", {"drop": 300, "drop_at": 100},
         LONG, both=True, limit=20, lost={m: [*range(100, 400)] for m in (1, 2, 3, 4)}),
    Case("restart in the series", "FAULT", "no module is busy or ready", {"restart_at": 50}, LONG),
    Case("restart between series", "ON", "complete", before=lambda b: restarted(b), lost={}),
    Case("high voltage settles late", "ON", "complete", {"voltage_seconds": 1.0}, lost={}),
    Case("high voltage does not settle", "FAULT", "high voltage of lambda/1 is not settled", {"voltage_seconds": 60.0}),
    Case("RAM is not allocated", "FAULT", "RAM of lambda/2 .*is not allocated", {"no_ram": [4]},
         before=lambda b: b.units[1].write("lambda/bit_depth", "24")),
    Case("RAM is allocated late", "ON", "complete", {"ram_seconds": 1.0},
         before=lambda b: b.units[1].write("lambda/bit_depth", "24"), lost={}),
    Case("500, once, for a variable", "ON", "complete", {"server_error": "lambda/shutter_time"}, lost={}),
    Case("500 for start", "FAULT", "start.* 500", {"server_error": "path=start"}),
    Case("500 for everything, for a while in the series", "ON", "complete", {}, LONG, limit=15,
         act=lambda b: broken(b)),
    Case("400 for a variable", "FAULT", "400 .*not accepted", {"refuse": "lambda/n_frames"},
         {"nFramesPerTrigger": 17}),
    Case("one frame a trigger", "ON", "complete: 10 frames", {}, MULTI,
         before=lambda b: refused_several(b), act=lambda b: b.edges(10)),
    Case("start is ignored", "FAULT", "start was ignored", {"start_ignored": 1}),
    Case("start takes 1 s, external", "ON", "complete", {"start_late": 1.0}, MULTI, act=lambda b: b.edges(10)),
    Case("the counter rolls over", "ON", "complete", {"counter_at": (1 << 24) - 10}, both=True, lost={}),
    Case("too few edges", "FAULT", "no trigger for 3 s", {"skip_edges": 2}, MULTI, act=lambda b: b.edges(8), both=True),
    Case("a unit misses edges, then Stop", "ON|ALARM", "ended by Stop", {"skip_edges": 2}, MULTI, act=edges_then_stop),
    Case("Stop", "ON|ALARM", "ended by Stop", {}, LONG, act=stop),
    Case("Abort in an exposure of 60 s", "ON", "ended by Abort", {}, {"ExposureTime": 60.0},
         act=lambda b: b.detector.Abort()),
    Case("somebody else stops it", "ON|ALARM", "frames are missing", {}, LONG,
         act=lambda b: (wait_frames(b, 50), b.units[1].command("stop"))),  # type: ignore[func-returns-value]
)  # fmt: skip


EVERYDAY = ("INCOMPLETE frames", "a module sends nothing more", "restart in the series", "RAM is not allocated")


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, ...]]]:
    """Told at the end: what was injected, and what came of it."""
    rows: list[tuple[str, ...]] = [("fault", "state", "s", "Status", "next")]
    yield rows
    for row in rows:
        print(" | ".join(row))


@pytest.mark.slow
@pytest.mark.parametrize("case", [everyday(case, EVERYDAY, case.name) for case in CASES])
def test_a_fault(beamline: LambdaBeamline, case: Case, table: list[tuple[str, ...]]) -> None:
    detector = beamline.detector
    file = beamline.set(**{"nFramesPerTrigger": 20, **case.settings})
    case.before(beamline)
    for unit in beamline.units if case.both else beamline.units[1:]:
        unit.fail(**case.failures)
    begun = time.monotonic()
    detector.Arm()
    wait_for("its beginning", lambda: detector.state() is not tango.DevState.MOVING)
    if detector.state() is tango.DevState.RUNNING:
        case.act(beamline)
    state = beamline.wait_end(40)
    taken = time.monotonic() - begun
    status = detector.status()
    table.append((case.name, str(state), f"{taken:.1f}", status, ""))
    beamline.fail()
    if state is tango.DevState.FAULT:
        detector.Reset()
        wait_for("the end of the fault", lambda: detector.state() is not tango.DevState.FAULT)
    beamline.wait_on(30)
    beamline.write("BitDepth", 12)
    beamline.good_series()
    table[-1] = (*table[-1][:-1], "good")
    assert re.fullmatch(case.state, str(state)), status
    assert re.search(case.words, status), status
    assert taken < case.limit, f"{taken:.1f} s"
    if case.lost is not None:
        beamline.assert_sent(file, case.settings.get("nFramesPerTrigger", 20), case.lost)
    if file.exists():
        file.unlink()
