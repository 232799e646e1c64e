"""The panels File and Log, before a detector that the test plays: a picture is of the file whose name is above it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from taurus_gui.orders import Answer, Order
from tests.gui.bench import LIMIT, Bench

pytestmark = [pytest.mark.slow]


def shown(bench: Bench, file: Path, **datasets: Any) -> Any:
    """The panel with a file of these datasets."""
    with h5py.File(file, "w") as h5:
        for name, data in datasets.items():
            h5[name] = data
    panel = bench.widget.file
    bench.widget.show_panel("File")
    panel.open(str(file))
    bench.qtbot.waitUntil(lambda: panel.view.picture is not None, timeout=LIMIT)
    return panel


def test_the_picture_of_the_last_file_goes_with_it(bench: Bench, tmp_path: Path) -> None:
    first = tmp_path / "a.h5"
    panel = shown(bench, first, data=np.ones((9, 20, 30), np.uint16), curve=np.arange(5.0))
    panel.number.setValue(5)
    bench.qtbot.waitUntil(lambda: panel.view.picture.number == 5, timeout=LIMIT)
    old = panel.view.picture
    panel.link.curve(str(first), "/curve")
    bench.qtbot.waitUntil(lambda: panel.stack.currentIndex() == 1, timeout=LIMIT)
    panel.open(str(tmp_path / "b.h5"))
    assert panel.view.picture is None and panel.view.item.image is None
    assert panel.stack.currentIndex() == 0 and panel.slider.maximum() == panel.number.value() == 0
    bench.qtbot.waitUntil(lambda: "not to be seen" in panel.about.sentence, timeout=LIMIT)
    panel._box.put("frame", "", (str(first), "/data", old))  # that was under way
    panel.log.click()  # other colours of nothing
    bench.qtbot.wait(300)
    assert panel.view.picture is None
    panel = shown(bench, tmp_path / "c.h5", data=np.full((3, 20, 30), 7, np.uint16))
    assert panel.view.picture.number == 0 and panel.view.picture.pixels.max() == 7
    panel.log.click()
    bench.qtbot.waitUntil(lambda: panel.view.picture.pixels.max() == 7, timeout=LIMIT)


def test_the_tree_stays_open_where_it_is_when_images_are_chosen(bench: Bench, tmp_path: Path) -> None:
    panel = shown(bench, tmp_path / "a.h5", data=np.ones((9, 20, 30), np.uint16), mask=np.ones((20, 30), np.uint8))
    filled: list[object] = []
    panel._fill_tree = filled.append
    panel.tree.selectedH5Nodes = lambda: [SimpleNamespace(physical_name="/mask")]
    panel._chosen()
    assert panel.view.picture is None and panel.dataset == "/mask"
    bench.qtbot.waitUntil(lambda: panel.view.picture is not None, timeout=LIMIT)
    assert panel.view.picture.source == "uint8" and filled == [] and "/mask" in panel.about.sentence


def test_an_error_stays_in_the_log_however_much_comes_after_it(bench: Bench) -> None:
    log = bench.widget.log
    for n in range(1700):
        log._take(
            [log._events.note("the disk is full")]
            if n == 3
            else log._events.answer(Answer(Order("write", "nTriggers", n)))
        )
    assert "the disk is full" in log.texts() and log.list.topLevelItemCount() <= 1500
    assert log.texts()[0] == "nTriggers = 1699"
