"""What needs no server: plans, names, references, virtual datasets, the configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import sardana_ctrl
from sardana_ctrl import images, naming, pool
from sardana_ctrl.plan import PlanError, Request, Synch, plan
from sardana_ctrl.references import DATASET, Reference, Run, as_text, parse, runs, without

TOP = Path(sardana_ctrl.__file__).parent.parent
ALL = ("INTERNAL", "SOFTWARE", "EXTERNAL_SINGLE", "EXTERNAL_MULTI", "EXTERNAL_GATE")


# --- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("synch", "repetitions", "starts", "expected"),
    [  # mode, triggers, frames of each, frames of a start
        (Synch.SOFTWARE_TRIGGER, 1, 20, ("SOFTWARE", 20, 1, 1)),
        (Synch.SOFTWARE_GATE, 1, 20, ("SOFTWARE", 20, 1, 1)),
        (Synch.SOFTWARE_START, 200, 1, ("SOFTWARE", 1, 200, 200)),
        (Synch.SOFTWARE_START, 1, 20, ("SOFTWARE", 20, 1, 1)),
        (Synch.HARDWARE_TRIGGER, 200, 1, ("EXTERNAL_MULTI", 200, 1, 200)),
        (Synch.HARDWARE_TRIGGER, 1, 20, ("EXTERNAL_MULTI", 20, 1, 1)),
        (Synch.HARDWARE_GATE, 200, 1, ("EXTERNAL_GATE", 200, 1, 200)),
        (Synch.HARDWARE_START, 200, 1, ("EXTERNAL_SINGLE", 1, 200, 200)),
        (Synch.HARDWARE_START, 10, 20, ("EXTERNAL_MULTI", 20, 10, 10)),
    ],
)
def test_a_whole_scan_is_one_series(
    synch: Synch, repetitions: int, starts: int, expected: tuple[str, int, int, int]
) -> None:
    made = plan(Request(synch, 0.01, repetitions, 0.002, starts), ALL, 0.001)
    assert (made.trigger_mode, made.triggers, made.frames_per_trigger, made.frames_per_start) == expected
    assert made.frames == repetitions * starts
    assert made.exposure == 0.01
    assert made.frame_time == (pytest.approx(0.012) if made.frames_per_trigger > 1 else 0.0)
    assert made.software == (synch.name.startswith("SOFTWARE"))


def test_frames_of_a_point_share_its_time() -> None:
    made = plan(Request(Synch.HARDWARE_TRIGGER, 0.03, 100, 0.001, 1, frames_per_point=3), ALL, 0.001)
    assert (made.triggers, made.frames_per_trigger) == (100, 3)
    assert made.frame_time == pytest.approx(0.01)
    assert made.exposure + 0.001 <= made.frame_time
    with pytest.raises(PlanError, match="FramesPerPoint"):
        plan(Request(Synch.HARDWARE_TRIGGER, 0.003, 100, 0.001, 1, frames_per_point=3), ALL, 0.001)


def test_hardware_that_cannot_all() -> None:
    made = plan(Request(Synch.SOFTWARE_TRIGGER, 0.01, 1, 0, 20), ("INTERNAL",), 0)
    assert made.arms_each_start and (made.triggers, made.frames_per_trigger, made.starts) == (1, 1, 1)
    assert plan(Request(Synch.HARDWARE_GATE, 0.01, 9, 0, 1), ("EXTERNAL_MULTI",), 0).trigger_mode == "EXTERNAL_MULTI"
    with pytest.raises(PlanError, match="needs trigger mode EXTERNAL_MULTI and has INTERNAL, SOFTWARE"):
        plan(Request(Synch.HARDWARE_TRIGGER, 0.01, 9, 0, 1), ("INTERNAL", "SOFTWARE"), 0)


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_of_scans() -> None:
    def name(pattern: str) -> str:
        return naming.for_scan(pattern, "/data/b1/", "scan.h5", 7, "det01")

    assert name(naming.SCAN_PATTERN) == "/data/b1/scan_00007_det01.h5"
    assert name("{ScanDir}/{channel}/{ScanID}_{index:02d}_{number}.h5") == "/data/b1/det01/7_{index:02d}_{number}.h5"
    for wrong in ("{ScanDir}/{colour}.h5", "scan_{ScanID}.h5", "{ScanDir}/{ScanID:zz}.h5", "{ScanDir}/{.h5"):
        with pytest.raises(naming.PatternError):
            name(wrong)


def test_names_of_series() -> None:
    assert naming.for_series("h5file:///data/a.h5", "det01", 0) == "/data/a.h5"
    assert naming.for_series("/data/a.h5", "det01", 3) == "/data/a_003.h5"
    assert naming.for_series("/data.d/a", "det01", 3) == "/data.d/a_003"
    assert naming.for_series("/data/{channel}_{index}.h5", "det01", 3) == "/data/det01_3.h5"
    assert naming.for_series("/data/{number:03d}.h5", "det01", 3) == "/data/{number:03d}.h5", "the device knows"
    with pytest.raises(naming.PatternError, match="ScanID"):
        naming.for_series("/data/{ScanID}.h5", "det01", 0)
    with pytest.raises(naming.PatternError, match="whole path"):
        naming.for_series("h5file://data/a.h5", "det01", 0)


# --- references -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(1, 50))
def test_references_are_read_as_they_are_written(first: int, points: int, per_point: int) -> None:
    reference = Reference("/data/a b_1.h5", DATASET, first, first + points * per_point, points)
    assert parse(str(reference)) == reference
    assert reference.per_point == per_point


@pytest.mark.parametrize(
    "text", ["", None, 1.5, float("nan"), "h5file:///a.h5", "h5file:///a.h5::d#5:5", "h5file:///a.h5::d#0:3/4", "x#1"]
)
def test_what_is_no_reference(text: object) -> None:
    assert parse(text) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40))
def test_runs_cover_each_point_once(points: list[tuple[int, bool]]) -> None:
    """Frames of three files, some points without: each point is where its reference says."""
    taken = [0, 0, 0]
    texts: list[object] = []
    for file, there in points:
        texts.append(str(Reference(f"/{file}.h5", DATASET, taken[file], taken[file] + 1)) if there else None)
        taken[file] += 1
    found = runs(texts, len(texts))
    again: list[object] = [None] * len(texts)
    for run in found:
        for i in range(run.points):
            assert again[run.point + i] is None
            again[run.point + i] = str(Reference(run.path, run.dataset, run.first + i, run.first + i + 1))
    assert again == texts
    assert without(found, len(texts)) == [n for n, (_, there) in enumerate(points) if not there]
    assert not any(a.goes_on_with(b) for a, b in zip(found, found[1:], strict=False)), "joined"


def test_one_reference_for_many_points() -> None:
    text = str(Reference("/a.h5", DATASET, 0, 1000, 500))
    assert runs([text, *[None] * 499], 500) == [Run("/a.h5", DATASET, 0, 0, 500, 2)]
    assert runs([text, *[None] * 99], 100) == [Run("/a.h5", DATASET, 0, 0, 100, 2)], "a scan that was stopped"


def test_numbers_for_people() -> None:
    assert as_text([7, 3, 5, 6, 12, 3]) == "3, 5-7, 12"
    assert as_text([]) == ""


# --- virtual datasets -----------------------------------------------------------------------------------------------


def detector_file(path: Path, frames: int, lost: tuple[int, ...] = (), closed: bool = True) -> Path:
    """Frame n is full of n + 1."""
    with h5py.File(path, "w") as h5:
        data = np.repeat(np.arange(1, frames + 1, dtype=np.uint16), 6).reshape(frames, 2, 3)
        status = np.ones(frames, np.uint8)
        status[list(lost)] = 0
        data[list(lost)] = 0
        h5[DATASET] = data
        h5["entry/instrument/detector/frame_status"] = status
        h5["entry/end_time"] = b"2026-01-01T00:00:00" if closed else b""
    return path


def linked(scan: Path, references: list[object], points: int) -> tuple[images.Linked, np.ndarray, list[int]]:
    with h5py.File(scan, "w") as h5:
        result = images.link(h5.create_group("m"), "det01", references, points, wait=0.0)
    with h5py.File(scan) as h5:
        return result, h5["m/det01"][()], h5["m/det01_missing"][()].tolist()


def test_points_over_several_files(tmp_path: Path) -> None:
    """A row that is armed anew, a lost frame, a point that was never taken."""
    (tmp_path / "raw").mkdir()
    a = detector_file(tmp_path / "raw" / "a.h5", 4, lost=(2,))
    b = detector_file(tmp_path / "raw" / "b.h5", 4)
    texts: list[object] = [str(Reference(str(a), DATASET, n, n + 1)) for n in range(4)]
    texts += [None, *(str(Reference(str(b), DATASET, n, n + 1)) for n in range(3))]
    result, data, missing = linked(tmp_path / "scan.h5", texts, 8)
    assert data[:, 0, 0].tolist() == [1, 2, 0, 4, 0, 1, 2, 3]
    assert missing == [2, 4] == list(result.missing)
    assert result.problem == ""


def test_several_frames_a_point(tmp_path: Path) -> None:
    file = detector_file(tmp_path / "a.h5", 6, lost=(3,))
    texts: list[object] = [str(Reference(str(file), DATASET, n, n + 2)) for n in (0, 2, 4)]
    result, data, missing = linked(tmp_path / "scan.h5", texts, 3)
    assert data.shape == (3, 2, 2, 3)
    assert data[..., 0, 0].tolist() == [[1, 2], [3, 0], [5, 6]]
    assert missing == [1]


def test_files_that_cannot_be_read_here(tmp_path: Path) -> None:
    file = detector_file(tmp_path / "a.h5", 2)
    good: list[object] = [str(Reference(str(file), DATASET, n, n + 1)) for n in range(2)]
    bad = str(Reference("/nowhere/b.h5", DATASET, 0, 1))
    result, data, missing = linked(tmp_path / "scan.h5", [*good, bad], 3)
    assert data[:, 0, 0].tolist() == [1, 2, 0] and missing == [2]
    assert "/nowhere/b.h5" in result.problem
    with h5py.File(tmp_path / "none.h5", "w") as h5:
        result = images.link(h5, "det01", [bad], 1, wait=0.0)
        assert result.missing == (0,) and "/nowhere/b.h5" in result.problem
        assert "det01" not in h5


def test_a_file_that_is_still_open_is_waited_for(tmp_path: Path) -> None:
    file = detector_file(tmp_path / "a.h5", 3, lost=(1, 2), closed=False)
    assert images.look_at(str(file), DATASET, 0.2).lost == {1, 2}


# --- configuration --------------------------------------------------------------------------------------------------


def test_the_configuration_names_what_is_there(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "sardana_ctrl", "config", "b1", "b1/dia/det1", "b1/dia/det2"]
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=tmp_path, timeout=60, env={"PYTHONPATH": str(TOP)}
    )
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    pool = found["pools"]["b1"]
    assert pool["controllers"]["detctrl"]["properties"]["Devices"] == ["b1/dia/det1", "b1/dia/det2"]
    assert list(pool["controllers"]["detctrl"]["elements"]) == ["det01", "det02"]
    server = found["macro_servers"]["b1"]
    for directory in (*pool["pool_path"], *server["macro_path"], *server["recorder_path"]):
        assert list(Path(directory).glob("*.py")), directory
    for controller in pool["controllers"].values():
        if "Dummy" not in controller["python_module"]:
            text = (Path(pool["pool_path"][0]) / controller["python_module"]).read_text()
            assert f"class {controller['python_class']}(" in text
    assert server["environment_db"] == str(tmp_path / "b1-environment")
    paths = subprocess.run([sys.executable, "-m", "sardana_ctrl", "paths"], capture_output=True, text=True, cwd=TOP)
    assert str(sardana_ctrl.POOL_PATH) in paths.stdout


def test_the_page_tells_all() -> None:
    top = TOP / "sardana_ctrl"
    text = (TOP / "resources" / "sardana.md").read_text()
    macros = (top / "macros/detector_macros.py").read_text()
    names = set(re.findall(r"^class (det_\w+)", macros, re.MULTILINE))
    assert {name for name in names if f"`{name}" not in text} == set()
    for file in ("StandardDetectorTwoDCtrl", "SimulatedTriggerGateCtrl", "StandardDetectorRoiCtrl"):
        settings = re.findall(r'^        "(\w+)": \{$', (top / f"controllers/{file}.py").read_text(), re.MULTILINE)
        assert {name for name in settings if f"`{name}`" not in text} <= {"DeviceName", "Device", "Receiver"}


class Group:
    """Over, or not, when it is looked at."""

    def __init__(self, *looks: bool) -> None:
        self.looks = list(looks)
        self._pending_starts = 0
        self.acquisition = self

    def is_running(self) -> bool:
        return not self.looks.pop(0)


def test_a_group_is_over_when_it_is_so_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two points it looks so for a moment."""
    monkeypatch.setattr(pool, "LOOK", 0.0)
    group = Group(False, True, False, True, False, True, True, True)
    assert pool.wait_over(group, lambda: True)
    assert len(group.looks) == 1
    assert not pool.wait_over(Group(True, True), lambda: False)
    wanted = [True, True, False]
    assert not pool.wait_over(Group(True, True), lambda: wanted.pop(0)), "somebody prepared anew"


# --- Sardana's own names --------------------------------------------------------------------------------------------

NAMES = """
import importlib.metadata
import inspect
import pathlib
import sardana
from sardana_ctrl.pool import CHECKED_WITH
found = importlib.metadata.version("sardana")
assert found.startswith(CHECKED_WITH + "."), f"Sardana {found}: sardana_ctrl was checked with {CHECKED_WITH} only"
from sardana.macroserver.macro import Macro
from sardana.macroserver.recorders.h5storage import NXscanH5_FileRecorder as Recorder
from sardana.pool.controller import Controller
from sardana.pool.poolacquisition import PoolAcquisition
from sardana.pool.poolbaseelement import PoolBaseElement
from sardana.pool.poolcontroller import PoolController
from sardana.pool.poolmeasurementgroup import (
    ChannelConfiguration, ControllerConfiguration, MeasurementConfiguration, PoolMeasurementGroup)
from taurus import tauruscustomsettings
from taurus.core.tango import tangoattribute
for owner, names in {
    Controller: ["_getPoolController"],
    PoolController: ["operator", "get_element"],
    PoolBaseElement: ["get_state"],
    MeasurementConfiguration: ["get_timerable_ctrls"],
    ControllerConfiguration: ["get_channels"],
    PoolMeasurementGroup: ["configuration", "acquisition", "nb_starts"],
    PoolAcquisition: ["is_running"],
    Recorder: ["_endRecordList", "sanitizeName"],
    Macro: ["addObj"],
    tauruscustomsettings: ["FILTER_OLD_TANGO_EVENTS"],
}.items():
    for name in names:
        assert hasattr(owner, name), f"{owner.__name__}.{name} is gone"
for owner, words in {
    PoolMeasurementGroup: ["self._pending_starts = self.nb_starts", "self._pending_starts -= 1"],
    Recorder: ["self.datadesc", "self.entryname", "self.currentlist", "self.fd"],
    tangoattribute: ["FILTER_OLD_TANGO_EVENTS"],
}.items():
    for word in words:
        assert word in inspect.getsource(owner), f"{owner.__name__}: {word} is gone"
assert list(inspect.signature(PoolBaseElement.get_state).parameters) == ["self", "cache", "propagate"]
assert "enabled" in inspect.signature(MeasurementConfiguration.get_timerable_ctrls).parameters
macros = pathlib.Path(sardana.__file__).parent / "macroserver/macros"
assert "_GeneralHooks" in (macros / "env.py").read_text(), "general hooks are kept elsewhere"
"""


@pytest.mark.timeout(300)
def test_names_of_sardana_that_are_not_documented() -> None:
    """They are listed, with reasons, in sardana_ctrl/pool.py: another version of Sardana may have others."""
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, timeout=280, cwd=TOP)
    assert done.returncode == 0, done.stderr
