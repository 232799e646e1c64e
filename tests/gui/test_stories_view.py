"""User stories: images and files are looked at."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PyQt5.QtCore import Qt

from tests.gui import mouse
from tests.gui.conftest import READY, Desk, make_beamline

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(300)]


def one_image(beamline, desk: Desk) -> np.ndarray:
    """A series of one image; what is in it."""
    beamline.acquire(nFramesPerTrigger=1)
    series = beamline.receiver.SeriesClosed
    desk.until(lambda: desk.live.view.picture is not None and desk.live.view.picture.series == series)
    return beamline.expected(0)


def test_alignment_with_live_and_the_sum_in_a_region(beamline, desk):
    live, regions = desk.live, desk.live.regions
    beamline.set(FrameTime=0.1, ExposureTime=0.05, DestinationFilename="")
    desk.press("Live")
    desk.until(lambda: "Live" in desk.widget.bar.state.text() and live.view.picture is not None)
    desk.click(live.add)
    desk.until(lambda: len(regions.regions) == 1 and len(beamline.receiver.Rois) == 1)
    region = regions.regions[0]
    before = region.line
    x, y, width, height = map(int, before.split()[1:])
    start = y + height / 2, x + width / 2
    mouse.drag(live.view, mouse.place(live.view, *start), mouse.place(live.view, start[0] + 60, start[1] + 30))
    desk.until(lambda: list(beamline.receiver.Rois) == [region.line] and region.line != before)
    moved = list(map(int, region.line.split()[1:]))
    assert moved[2:] == [width, height] and abs(moved[0] - x - 30) <= 2 and abs(moved[1] - y - 60) <= 2
    curve = regions.plot.listDataItems()[0]
    desk.until(lambda: curve.yData is not None and len(curve.yData) > 10)
    desk.until(lambda: len(set(curve.yData)) > 2)  # the beam moves
    live.log.setChecked(True)
    assert re.search(r"\d", regions.table.item(0, 1).text())
    desk.picture("alignment")
    beamline.receiver.Rois = [*beamline.receiver.Rois, "elsewhere 10 20 30 40"]  # by somebody else
    desk.until(lambda: [r.name for r in regions.regions] == ["roi1", "elsewhere"])
    regions.table.selectRow(1)
    desk.click(regions.remove)
    desk.until(lambda: len(beamline.receiver.Rois) == 1)
    desk.press("Stop")
    desk.wait_state(*READY)


def test_a_pixel_is_read(beamline, desk):
    image = one_image(beamline, desk)
    row, column = (int(n) for n in np.unravel_index(image.argmax(), image.shape))
    mouse.point_at(desk.live.view, row, column)
    seen = desk.live.view.cursor
    assert seen == (row, column)  # the window's pixels are smaller than the image's
    expected = f"{int(image[seen]):,}".replace(",", "\u202f")
    desk.until(lambda: f"row {seen[0]}  column {seen[1]}  <b>{expected}</b>" in desk.live.cursor_text.text())
    desk.live.view.setFocus()
    desk.qtbot.keyClick(desk.live.view, Qt.Key_Right, Qt.ShiftModifier)  # and with keys
    seen = seen[0], seen[1] + 1
    desk.until(lambda: f"column {seen[1]}  <b>{int(image[seen])}</b>" in desk.live.cursor_text.text())
    desk.picture("pixel")


def test_colours_and_range(beamline, desk):
    from taurus_gui import levels

    image = one_image(beamline, desk)
    live = desk.live
    row, column = (int(n) for n in np.unravel_index(image.argmax(), image.shape))
    assert live.look().auto

    def colour(title: str, low: float, high: float, log: bool) -> tuple[int, ...]:
        value = image[row : row + 1, column : column + 1]
        return tuple(levels.table(title)[levels.indexed(value, None, low, high, log)[0, 0]].tolist())

    live.view.getViewBox().setRange(xRange=(column - 4, column + 5), yRange=(row - 4, row + 5), padding=0)
    live.view._moved_by_hand()
    desk.until(lambda: live.view.picture.factor == 1)
    for title, low, high, log in (("Viridis", 0, 2000, False), ("Grey", 0, 500, False), ("Turbo", 1, 4000, True)):
        live.colours.setCurrentText(title)
        live.log.setChecked(log)
        desk.type(live.low, str(low))
        desk.type(live.high, str(high))
        desk.until(lambda high=high: live.view.picture.high == high and not live.auto.isChecked())
        expected = colour(title, low, high, log)
        desk.until(lambda expected=expected: live.view.shown_colour(row, column) == expected)
    desk.picture("colours")
    desk.click(live.auto)
    desk.until(lambda: live.view.picture.high not in (500, 2000, 4000))
    desk.click(live.fit)
    desk.until(lambda: live.view.picture.region == (0, 0, *image.shape))


def test_the_beam_centre_is_read_and_rings_are_drawn(beamline, desk):
    live, pane = desk.live, desk.live.geometry
    one_image(beamline, desk)
    live.rings.setChecked(True)
    assert "energy, distance, beam centre" in pane.about.text()
    live.cross.setChecked(True)
    pane.pick.setChecked(True)
    at = mouse.place(live.view, 250, 320)
    desk.qtbot.mouseClick(live.view.viewport(), Qt.LeftButton, pos=at)
    desk.until(lambda: pane.lines["row"].text() != "")
    assert abs(float(pane.lines["row"].text()) - 250) < 2 and abs(float(pane.lines["column"].text()) - 320) < 2
    desk.type(pane.lines["distance"], "80")
    desk.type(pane.lines["energy"], "12398.42")
    assert pane.geometry().known and abs(pane.geometry().wavelength - 1) < 1e-6
    assert len(live.beam) > 4
    live.log.setChecked(True)
    desk.picture("rings")
    desk.click(pane.write)  # the next files have it
    desk.until(lambda: "detector_distance" in beamline.detector.Metadata)
    live.view.setFocus()
    mouse.point_at(live.view, 250, 500)
    desk.until(lambda: " Å" in live.cursor_text.text())


def test_the_last_file_is_opened_while_it_grows(beamline, desk):
    file = beamline.set(FrameTime=0.05, ExposureTime=0.01, nFramesPerTrigger=200)
    beamline.detector.Arm()
    desk.wait_state("RUNNING")
    desk.until(lambda: desk.source.get("nFramesWritten") > 20)
    desk.widget.show_panel("File")
    desk.click(desk.file.last)
    desk.until(lambda: desk.file.opened is not None and "growing" in desk.file.about.sentence)
    desk.until(lambda: desk.file.slider.value() > 10)
    first = desk.file.slider.value()
    desk.until(lambda: desk.file.slider.value() > first)
    desk.file.log.setChecked(True)
    desk.until(lambda: desk.file.view.picture is not None and desk.file.view.picture.number > 10)
    desk.picture("file_growing")
    beamline.detector.Stop()
    desk.wait_state(*READY)
    desk.file.follow.setChecked(False)
    desk.file.number.setValue(7)
    desk.until(lambda: desk.file.view.picture.number == 7)
    assert str(file) == desk.file.name.text()
    shown = desk.file.view.picture
    whole = beamline.expected(7)[:: shown.factor, :: shown.factor]
    np.testing.assert_array_equal(shown.pixels, whole[: shown.pixels.shape[0], : shown.pixels.shape[1]])
    progress = desk.widget.progress
    desk.until(lambda: progress.table.rowCount() and progress.table.item(0, 1).text() == file.name)
    progress.table.cellActivated.emit(0, 0)  # double click, Enter
    desk.until(lambda: desk.file.path == str(file) and desk.file.opened is not None)


def test_two_detectors(beamline, local_tango, tmp_path, qtbot, open_window, keep):
    with make_beamline(local_tango, tmp_path, "seed = 7") as other:
        window = open_window(beamline, other)
        one, two = (Desk(qtbot, window, n, keep) for n in (0, 1))
        two.window.tabs.setCurrentIndex(1)
        two.arm(FrameTime=0.1, ExposureTime=0.01, nTriggers=1, nFramesPerTrigger=500, TriggerMode="INTERNAL",
                DestinationFilename=other.new_file())  # fmt: skip
        two.live.log.setChecked(True)
        two.until(lambda: two.live.view.picture is not None and two.source.get("nFramesReceived") > 20)
        two.until(lambda: "▶" in window.tabs.tabText(1) and window.tabs.tabText(0)[0] in "●▲")
        assert one.source.state in READY
        two.picture("two_detectors")
        window.side_by_side.setChecked(True)
        window.resize(1900, 900)
        two.until(lambda: two.widget.isVisible() and one.widget.isVisible())
        two.picture("side_by_side")
        window.side_by_side.setChecked(False)
        window.tabs.setCurrentIndex(1)
        two.press("Stop")
        two.wait_state(*READY)


def test_what_the_window_was_like_is_kept(beamline, open_window, qtbot, keep, settings: Path):
    window = open_window(beamline)
    desk = Desk(qtbot, window, 0, keep)
    window.use_theme("dark")
    one_image(beamline, desk)
    desk.live.log.setChecked(True)
    desk.picture("dark")
    desk.live.colours.setCurrentText("Inferno")
    window.savePerspective("alignment")
    window.close()
    again = open_window(beamline)
    again.loadSettings()
    assert again.getPerspectivesList() == ["alignment"]
    from taurus_gui import theme

    assert theme.now().name == "dark"
    live = again.detectors[0].live
    assert live.log.isChecked() and live.colours.currentText() == "Inferno"
    again.use_theme("light")
