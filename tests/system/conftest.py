"""Both devices as users run them: separate processes, a real database, real files."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tangods_detector.localtango import LocalTango
from tests.system.beamline import Beamline


@pytest.fixture(scope="session")
def local_tango() -> Iterator[LocalTango]:
    """One database for all system tests; each beamline registers its own servers in it."""
    folder = Path(tempfile.mkdtemp(prefix="system-tests-"))
    with LocalTango(folder) as local:
        yield local
    shutil.rmtree(folder)


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def beamline(local_tango: LocalTango, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beamline]:
    """A Detector (simulator, 64 x 80 pixels) and its StreamReceiver, shared by the tests of one module."""
    root = tmp_path_factory.mktemp("data")
    with Beamline(local_tango, f"m{next(_numbers)}", root) as both:
        yield both


@pytest.fixture
def own_beamline(local_tango: LocalTango, tmp_path: Path) -> Iterator[Beamline]:
    """A pair for one test that damages it."""
    with Beamline(local_tango, f"t{next(_numbers)}", tmp_path) as both:
        yield both
