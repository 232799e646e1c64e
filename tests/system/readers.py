"""Programs that people open the files with; each raises when it cannot."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import nexusformat.nexus as nx
from h5grove.content import create_content
from silx.io import open as silx_open
from silx.io.nxdata import get_default

from tests.system.beamline import DATASET


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "rror" not in done.stderr, f"{command}: {done.stdout[-300:]} {done.stderr[-600:]}"
    return done.stdout


def h5dump(path: Path) -> None:
    assert "DATASET" in _run("h5dump", "-H", path)


def h5ls(path: Path) -> None:
    assert "detector/data" in _run("h5ls", "-r", path)


def plain_h5py(path: Path) -> None:
    with h5py.File(path, "r") as h5:
        data = h5[DATASET]
        assert data.ndim == 3
        assert data[0].any()


def nexusformat(path: Path) -> None:
    """The default plot from the root on, as nexpy shows it."""
    root = nx.nxload(path, "r")
    with root.nxfile:
        shown = root.plottable_data
        assert shown.nxclass == "NXdata"
        assert shown.nxsignal.ndim == 3


def silx(path: Path) -> None:
    """The default plot that silx view shows."""
    with silx_open(str(path)) as h5:
        shown = get_default(h5)
        assert shown is not None and shown.is_valid
        assert shown.signal.ndim == 3


def h5grove(path: Path) -> None:
    """What h5web's server side reads."""
    with h5py.File(path, "r") as h5:
        group = create_content(h5, "/entry")
        assert {"instrument"} <= {child["name"] for child in group.metadata()["children"]}
        assert create_content(h5, "/" + DATASET).data("0") is not None


READERS: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (h5dump, h5ls, plain_h5py, nexusformat, silx, h5grove)
}
