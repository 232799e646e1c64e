"""A Tango database, two simulated detectors with their receivers, and a Sardana server, for the tests of one file."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tangods_detector.localtango import LocalTango
from tests.sardana.stack import TOP, Sardana
from tests.system.beamline import ON, Beamline, wait_for

_numbers = itertools.count(1)
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


@pytest.fixture(scope="module")
def beamlines(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Beamline]]:
    root, number = tmp_path_factory.mktemp("data"), next(_numbers)
    with (
        Beamline(local_tango, f"s{number}a", root, InitialRois=[REGION]) as first,
        Beamline(local_tango, f"s{number}b", root, ["seed = 2"]) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def sardana(
    local_tango: LocalTango, beamlines: list[Beamline], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sardana]:
    folder = tmp_path_factory.mktemp("sardana")
    with Sardana(local_tango, f"s{next(_numbers)}", folder, beamlines) as running:
        yield running


@pytest.fixture
def first(beamlines: list[Beamline]) -> Beamline:
    """The Detector of channel det01."""
    return beamlines[0]


@pytest.fixture
def nobody_armed(beamlines: list[Beamline]) -> Iterator[None]:
    """After the test all detectors and receivers are idle."""
    yield
    for beamline in beamlines:
        wait_for(f"{beamline.detector_name} idle", lambda b=beamline: b.detector.state() in ON, 30)
        wait_for(f"{beamline.receiver_name} idle", lambda b=beamline: b.receiver.state() in ON, 30)
