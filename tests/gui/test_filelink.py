"""The thread of the File panel: it outlives what it cannot read. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from taurus_gui import h5reading
from taurus_gui.filelink import FileLink
from taurus_gui.mailbox import Mailbox
from taurus_gui.pictures import Look
from tests.detector.pretend import wait_for


@pytest.fixture
def box() -> Mailbox:
    return Mailbox(lambda: None)


@pytest.fixture
def link(box: Mailbox) -> Iterator[FileLink]:
    link = FileLink(box)
    link.start()
    yield link
    link.close()


@pytest.fixture
def told(box: Mailbox) -> Callable[[str], Any]:
    """Wait for a message of this kind."""

    def wait(kind: str) -> Any:
        found: dict[str, Any] = {}
        wait_for(kind, lambda: found.update(box.take()[0]) or kind in found)
        return found[kind][""]

    return wait


def test_a_file_that_may_not_be_looked_at_is_told_and_the_next_is_read(
    link: FileLink, told: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(h5reading, "opened", refuse)
        link.open("/secret/a.h5")
        assert "Permission denied" in told("file_error")
    file = tmp_path / "b.h5"
    with h5py.File(file, "w") as h5:
        h5["data"] = np.ones((2, 8, 8), np.uint16)
    link.open(str(file))
    assert told("opened").default == "/data"


def test_a_file_without_frames_is_told(link: FileLink, told: Callable[[str], Any], tmp_path: Path) -> None:
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as h5:
        h5.create_dataset("data", (0, 8, 8), np.uint16)
        h5["one"] = np.ones((1, 8, 8), np.uint16)
    link.frame(str(file), "/data", 0, None, (8, 8), Look())
    assert told("file_error").endswith("/data has no frames in it")
    link.frame(str(file), "/one", 0, None, (8, 8), Look())
    assert told("frame")[2].pixels.sum() == 64
