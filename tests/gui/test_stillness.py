"""The picture stands still while one points at it and drags in it, whatever comes meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from taurus_gui.orders import Order, ReceiverSide, RoiTable
from tests.gui import mouse
from tests.gui.bench import LIMIT

pytestmark = [pytest.mark.slow]
LONG = "series 41: writing /data/visitor/2026/commissioning/raw/series_0041.h5 failed: no space left on the disk. " * 3
CHANGES: tuple[dict[str, Any], ...] = (
    {"State": "MOVING", "Status": "arming"},
    {"State": "RUNNING", "Status": "41", "nFramesAcquired": 9, "nFramesReceived": 9, "LastFilename": "/data/a.h5"},
    {"nFramesAcquired": 123_456_789, "nFramesReceived": 123_456_788, "nFramesWritten": 99_999_999, "MeasuredRate": 9.8},
    {"nFramesMissing": 123_456_789, "LastError": "2 of 20 frames are missing in series 7", "MeasuredRate": 12_345.6},
    {"LastError": LONG, "Status": LONG},
    {"nFramesMissing": 0, "LastError": "", "nFramesExpected": 1_000_000_000, "nTriggers": 1_000_000},
    {"nFramesExpected": 0},
    {"State": "FAULT", "LastError": LONG, "Status": LONG + LONG},
    {"State": "UNKNOWN"},
    {"State": "INIT", "LastError": ""},
    {"State": "ALARM", "Status": "the sensor is too warm"},
    {"State": "ON", "nFramesAcquired": 0, "nFramesReceived": 0, "ExposureTime": 1.23456789e-5, "FrameRate": 81_000.1},
)  # fmt: skip


def near(line: str, wanted: str) -> bool:
    """The same region, to a pixel of the screen."""
    return bool(np.abs(np.subtract(*([int(n) for n in one.split()[1:]] for one in (line, wanted)))).max() <= 2)


def test_the_picture_stands_still(bench):
    """To the pixel: over 20 pictures, with numbers that grow and shrink, states, and sentences that come and go."""
    bench.open_region("roi1 100 120 80 60")
    first = bench.geometry()
    for n in range(20):
        high = 10.0 ** (n % 9)
        bench.tell(**CHANGES[n % len(CHANGES)])
        rows = np.full((n + 1, 16), 1.2345678 * high)
        bench.put("rois", RoiTable(("roi1",), rows))
        bench.answer(Order("check", "CheckFile", ("/data/a.h5", 1)), value=(LONG if n % 2 else "", 1e12))
        bench.answer(Order("command", "Arm"), LONG if n % 3 == 1 else "")
        kind = "last" if n % 2 else "sum"
        bench.picture(high, number=10 ** (n % 10), kind=kind, frames=n + 1, factor=1)
        row, column = 10 + 17 * n, 10 + 30 * n
        mouse.point_at(bench.view, row, column)
        assert bench.geometry() == first, (n, CHANGES[n % len(CHANGES)])
        seen = bench.view.cursor
        assert np.abs(np.subtract(seen, (row, column))).max() <= 1  # the screen's pixels are larger here
        assert f"row {seen[0]}  column {seen[1]}" in bench.live.cursor_text.text()


def test_a_drag_is_disturbed_by_nothing(bench):
    region = bench.open_region("roi1 100 120 80 60")
    first = bench.geometry()
    start, end = mouse.place(bench.view, 150, 140), mouse.place(bench.view, 230, 300)
    mouse.press(bench.view, start)
    for n, part in enumerate((0.1, 0.4, 0.7, 1.0)):
        mouse.move(bench.view, start + (end - start) * part)
        bench.tell(**CHANGES[3 * n + 1])
        bench.put("receiver", ReceiverSide("b1/rec/1", rois=(f"roi1 {n} {n} 50 50",)))  # by somebody else
        bench.picture()
    assert bench.geometry() == first
    mouse.release(bench.view, end)
    moved = region.line
    assert near(moved, "roi1 260 200 80 60") and bench.orders("rois")[-1] == [moved]
    bench.put("receiver", ReceiverSide("b1/rec/1", rois=("roi1 9 9 50 50",)))  # told before the order was obeyed
    bench.picture()
    assert region.line == moved
    bench.put("receiver", ReceiverSide("b1/rec/1", rois=("roi1 260 200 80 61",)))  # as the receiver took it
    bench.answer(Order("rois", "Rois", [moved]))
    bench.qtbot.waitUntil(lambda: region.line == "roi1 260 200 80 61", timeout=LIMIT)
    start = mouse.place(bench.view, 200, 260)  # a corner
    mouse.drag(bench.view, start, mouse.place(bench.view, 180, 230))
    assert near(region.line, "roi1 230 180 110 81")


def test_what_is_shown_stays_when_pictures_come_and_fits_an_image_of_another_shape(bench):
    view = bench.view
    assert view.fits
    mouse.drag(view, mouse.place(view, 300, 300), mouse.place(view, 250, 200))  # moves the image
    view.zoom(3)
    shown = view.getViewBox().viewRange()
    for _ in range(3):
        bench.picture()
    assert view.getViewBox().viewRange() == shown and not view.fits
    bench.picture(full=(100, 300))
    assert view.fits
    (left, right), (top, bottom) = view.getViewBox().viewRange()
    assert left <= 0 and right >= 300 and top <= 0 and bottom >= 100
    assert min(right - left - 300, bottom - top - 100) < 1


def test_what_does_not_fit_is_cut_off_and_in_the_tool_tip(bench):
    bar = bench.widget.bar
    bench.tell(State="FAULT", LastError=LONG, nFramesMissing=3)
    bench.qtbot.waitUntil(lambda: not bar.problem.isHidden(), timeout=LIMIT)
    bench.geometry()
    fault, missing = bar.problem.text().replace("\u200b", "").split("\n")
    assert fault.endswith("…") and fault[:-1] in f"✖ {LONG}" and len(fault) > 80
    assert missing == "✖ 3 frames are missing in this series."
    assert LONG.strip() in bar.problem.toolTip() and bar.remedy.text() == "&Reset"
    bench.tell(nFramesMissing=0)
    bench.qtbot.waitUntil(lambda: "\n" not in bar.problem.text(), timeout=LIMIT)
    assert len(bar.problem.text()) > 1.5 * len(fault)  # on two lines
    bench.tell(State="ON", LastError="")
    bench.qtbot.waitUntil(bar.problem.isHidden, timeout=LIMIT)
    assert bar.remedy.isHidden() and not bar.status.isHidden()
