"""Nothing is cut off in a window of 1366 x 768, on plain screens and on those with two pixels for one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PyQt5.QtWidgets import QAbstractButton, QComboBox, QLabel, QSizePolicy, QStyle, QStyleOptionComboBox, QWidget

from taurus_gui.orders import Described
from tests.gui.bench import LIMIT, Bench
from tests.gui.test_stillness import LONG

pytestmark = [pytest.mark.slow]
LABELS = {
    "ExposureTime": ("Exposure time", "s"), "FrameTime": ("Frame period", "s"), "TriggerMode": ("Trigger mode", ""),
    "nTriggers": ("Triggers", ""), "DestinationFilename": ("File", ""), "SaveRaw": ("Save images", ""),
    "Rotation": ("Rotation", "deg"), "Fliplr": ("Flip left-right", ""), "Flipud": ("Flip up-down", ""),
    "Binning": ("Binning", ""), "Roi": ("Region of interest", "pixel"), "BitDepth": ("Bit depth", "bit"),
}  # fmt: skip
SCALE = os.environ.get("QT_SCALE_FACTOR", "")


def room(widget: QWidget) -> tuple[int, int]:
    """Width that it needs, and width that it has."""
    if isinstance(widget, QComboBox):
        option = QStyleOptionComboBox()
        widget.initStyleOption(option)
        field = widget.style().subControlRect(QStyle.CC_ComboBox, option, QStyle.SC_ComboBoxEditField, widget)
        return max(
            widget.fontMetrics().horizontalAdvance(widget.itemText(n)) for n in range(widget.count())
        ), field.width()
    return widget.minimumSizeHint().width(), widget.width()


def cut_off(window: QWidget) -> Iterator[str]:
    for widget in window.findChildren(QWidget):
        known = isinstance(widget, QAbstractButton | QLabel) or (isinstance(widget, QComboBox) and widget.count())
        if not known or not widget.isVisible() or widget.sizePolicy().horizontalPolicy() == QSizePolicy.Ignored:
            continue
        inside = widget.mapTo(window, widget.rect().bottomRight())
        if inside.x() < 0:  # Qt keeps there what is behind a tab
            continue
        needs, has = room(widget)
        text = getattr(widget, "text", lambda widget=widget: widget.currentText())()
        if needs > has:
            yield f"{type(widget).__name__} {text!r}: needs {needs}, has {has}"
        if isinstance(widget, QAbstractButton) and text and not window.rect().contains(inside):
            yield f"{text!r} ends at {inside}, outside of the window"


def test_nothing_is_cut_off(bench: Bench) -> None:
    attributes = {name: Described(name, label, "", unit, "int", True) for name, (label, unit) in LABELS.items()}
    bench.put("described", attributes)
    bench.tell(Rotation=270, Fliplr=True, Binning=(16, 16), Roi=(1024, 1024, 4096, 4096), BitDepth=32)
    live = bench.live
    bench.open_region("roi1 100 120 80 60")
    bench.qtbot.waitUntil(lambda: "Roi" in bench.widget.hardware.fields, timeout=LIMIT)
    for change in ({}, {"State": "FAULT", "LastError": LONG, "nFramesMissing": 12_345_678}, {"State": "RUNNING"}):
        bench.tell(**change)
        bench.picture(1e6)
        for page in range(live.side.count()):
            bench.widget.show_panel("Live view")
            live.side.setCurrentIndex(page)
            bench.geometry()
            assert (bench.window.width(), bench.window.height()) == (1366, 768)
            assert list(cut_off(bench.window)) == []
        form = bench.widget.acquire.area
        assert form.widget().width() == form.viewport().width()  # is not scrolled sideways
        for panel in ("File", "Hardware", "Log"):
            bench.widget.show_panel(panel)
            bench.geometry()
            assert list(cut_off(bench.window)) == []
    assert live.view.screen()[1] == int(live.view.getViewBox().width() * float(SCALE or 1))


@pytest.mark.skipif(bool(SCALE), reason="is run so already")
def test_nothing_is_cut_off_with_two_pixels_for_one(screen: Any) -> None:
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{here}::test_nothing_is_cut_off"],
        env=os.environ | {"QT_SCALE_FACTOR": "2"}, cwd=here.parents[2], capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]
