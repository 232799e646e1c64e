"""A Tango database, two simulated detectors with their receivers, and a Sardana server, for all that need them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tango

from tangods_detector.localtango import LocalTango
from tests.sardana.stack import TOP, Sardana
from tests.system.beamline import ON, Beamline, wait_for

REGION = "roi01 8 8 40 40"


@pytest.fixture(scope="session")
def local_tango() -> Iterator[LocalTango]:
    """Our own backends and Sardana's files import what is below the top of the repository."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(TOP)
    folder = Path(tempfile.mkdtemp(prefix="sardana-tests-"))
    try:
        with LocalTango(folder) as local:
            yield local
    finally:
        shutil.rmtree(folder)
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def beamlines(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Beamline]]:
    root = tmp_path_factory.mktemp("data")
    with (
        Beamline(local_tango, "sa", root, InitialRois=[REGION]) as first,
        Beamline(local_tango, "sb", root, ["seed = 2"]) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="session")
def sardana(
    local_tango: LocalTango, beamlines: list[Beamline], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sardana]:
    with Sardana(local_tango, "s", tmp_path_factory.mktemp("sardana"), beamlines) as running:
        yield running


@pytest.fixture
def first(beamlines: list[Beamline]) -> Beamline:
    """The Detector of channel det01."""
    return beamlines[0]


@pytest.fixture
def fresh(sardana: Sardana, first: Beamline) -> None:
    """What one test broke is not the next one's trouble. A macro that hangs is beyond stopping: only a new server frees
    the Door; the test that left it so, or without its server, has failed."""
    if not _free(sardana.door.door):
        sardana.stop(kill=True)
        sardana.start()
    if first.detector.state() == tango.DevState.FAULT:
        first.detector.Reset()
        wait_for("the detector idle", lambda: first.detector.state() in ON, 30)
    sardana.group("mg")


def _free(door: tango.DeviceProxy) -> bool:
    try:
        return bool(door.state() != tango.DevState.RUNNING)
    except tango.DevFailed:
        return False


@pytest.fixture
def nobody_armed(beamlines: list[Beamline]) -> Iterator[None]:
    """After the test all detectors and receivers are idle."""
    yield
    for beamline in beamlines:
        wait_for(f"{beamline.detector_name} idle", lambda b=beamline: b.detector.state() in ON, 30)
        wait_for(f"{beamline.receiver_name} idle", lambda b=beamline: b.receiver.state() in ON, 30)
