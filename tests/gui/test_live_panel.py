"""The panel Live view, before a detector that the test plays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.gui.bench import LIMIT, Bench

pytestmark = [pytest.mark.slow]


def test_a_picture_that_could_not_be_written_is_told(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taurus.external.qt import Qt

    noted: list[str] = []
    bench.source.noted.connect(noted.append)
    name = str(tmp_path / "nowhere" / "a.png")
    monkeypatch.setattr(Qt.QFileDialog, "getSaveFileName", lambda *_: (name, ""))
    bench.live.save_picture()
    bench.qtbot.waitUntil(lambda: bool(noted), timeout=LIMIT)
    assert f"{name} could not be written" in noted[0]


def test_the_age_of_a_picture_is_not_guessed(bench: Bench) -> None:
    bench.picture(came=math.nan)
    bench.qtbot.waitUntil(lambda: "age not known" in bench.live.badge.text(), timeout=LIMIT)
