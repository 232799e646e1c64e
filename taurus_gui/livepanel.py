"""Panel: the newest image, as the receiver makes it smaller for this screen, and the tools to judge it."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from silx.gui.widgets.FlowLayout import FlowLayout
from taurus.external.qt import Qt

from taurus_gui import control, levels, pictures, theme, tools, words
from taurus_gui.elided import Elided
from taurus_gui.geometrypane import GeometryPane
from taurus_gui.overlays import Beam
from taurus_gui.pictures import Look, Picture
from taurus_gui.pictureview import ColourScale, PictureView
from taurus_gui.profilepane import ProfilePane
from taurus_gui.regionpane import RegionPane
from taurus_gui.source import Source

METHODS = {"mean": "Mean", "max": "Largest", "sample": "First"}
TOLD = 3.0  # s over which the shown rate is counted


class LivePanel(Qt.QWidget):
    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self._shown_at: list[float] = []
        self._range_set = False
        self.pictures_drawn = 0
        self.view = PictureView(self)
        self.view.setAccessibleName("Image of the detector")
        self.scale = ColourScale(self)
        self.beam = Beam(self.view)
        self.regions = RegionPane(source, self.view, self)
        self.profile = ProfilePane(self.view, self)
        self.geometry = GeometryPane(source, self.view, self)
        self._make_tools()
        self._place()
        self._saying = Qt.QTimer(self)
        self._saying.setSingleShot(True)
        self._saying.setInterval(40)
        self._saying.timeout.connect(lambda: source.images.wish(pixel=list(self.view.cursor or ()) or None))
        self.view.wanted.connect(self._wish)
        self.view.pointed.connect(self._pointed)
        source.pictured.connect(self._show)
        source.pixel_told.connect(self._pixel_told)
        source.ticked.connect(self._show_age)
        source.images_changed.connect(self._show_age)
        source.connection_changed.connect(self._show_age)
        source.noted.connect(self.note)
        self.geometry.changed.connect(self._draw_beam)
        theme.told.changed.connect(self.view.restyle)
        self._look()

    # --- layout -------------------------------------------------------------------------------------------------------

    def _make_tools(self) -> None:
        self.kind = tools.combo("Show: the newest image, or what became of those that were looked at (K)",
                                list(pictures.KINDS.values()), self._wish)  # fmt: skip
        self.colours = tools.combo("Colours (C, Shift+C)", list(levels.MAPS), self._recolour)
        self.method = tools.combo("Mean, largest or first: what stands for pixels where there is no room for all",
                                  list(METHODS.values()), self._wish)  # fmt: skip
        self.method.setMinimumContentsLength(5)
        self.log = tools.switch("Log", "Colours by the logarithm (L)", self._look)
        self.auto = tools.switch(
            "Auto", "Range: all but the darkest and brightest part of what is shown (A)", self._look
        )
        self.percent = Qt.QDoubleSpinBox()
        self.percent.setRange(0.0, 20.0)
        self.percent.setSingleStep(0.1)
        self.percent.setValue(0.1)
        self.percent.setSuffix(" %")
        self.percent.setToolTip("Part of the pixels that may lie below and above the automatic range")
        self.percent.valueChanged.connect(self._look)
        self.low, self.high = (tools.number(tip, self._typed_range) for tip in ("Lowest value", "Highest value"))
        self.auto.setChecked(True)
        self.fit = tools.button("Fit", "The whole image (0, double click)", self.view.fit)
        self.one = tools.button("1:1", "A pixel of the detector on one of the screen (1)", self.view.one_to_one)
        self.hold = tools.switch("Full", "Fetch the newest image in full resolution, and hold it (F)", self._hold)
        self.add = tools.button("+ Region", "A new region of interest (R)", self._add_region)
        self.line = tools.switch("Profile", "Values along a line (P)", self._toggle_profile)
        self.cross = tools.switch("Centre", "Cross at the beam centre (B)", self._draw_beam)
        self.rings = tools.switch("Rings", "Resolution rings (G)", self._toggle_rings)
        self.tools = tools.switch("Tools", "Regions, profile and geometry beside the image (T)", self._toggle_side)
        self.save = tools.button("Save…", "Write what is shown: a picture, or the numbers", self.save_picture)

    def _place(self) -> None:
        ends = Qt.QWidget()  # wrapped together
        between = Qt.QHBoxLayout(ends)
        between.setContentsMargins(0, 0, 0, 0)
        between.setSpacing(4)
        for widget in (self.log, self.auto, self.percent, self.low, Qt.QLabel("–"), self.high):
            between.addWidget(widget)
        bar = FlowLayout()
        bar.setHorizontalSpacing(2)
        bar.setVerticalSpacing(3)
        for widget in (self.kind, self.colours, ends, self.method):
            bar.addWidget(widget)
        for widget in (
            self.fit,
            self.one,
            self.hold,
            self.add,
            self.line,
            self.cross,
            self.rings,
            self.tools,
            self.save,
        ):
            bar.addWidget(widget)
        self.badge = Qt.QLabel(self.view)
        self.badge.setAccessibleName("Age of the image")
        self.badge.move(46, 8)
        self.nothing = Qt.QLabel("No image has been received yet.", self.view)
        self.nothing.setAlignment(Qt.Qt.AlignCenter)
        self.nothing.setWordWrap(True)
        theme.set_property(self.nothing, "dim", True)
        self.cursor_text = Qt.QLabel()
        self.cursor_text.setAccessibleName("Pixel under the cursor")
        self.about = Elided()
        theme.set_property(self.about, "dim", True)
        below = Qt.QHBoxLayout()
        self.cursor_text.setTextFormat(Qt.Qt.RichText)
        self.cursor_text.setSizePolicy(Qt.QSizePolicy.Ignored, Qt.QSizePolicy.Fixed)
        self.cursor_text.setFixedHeight(self.cursor_text.fontMetrics().lineSpacing() + 2)
        self.about.setAlignment(Qt.Qt.AlignRight)
        below.addWidget(self.cursor_text, 6)
        for mark, text in ((levels.MASKED, "masked"), (levels.SATURATED, "saturated")):
            red, green, blue = levels.MARK_COLOURS[mark]
            swatch = Qt.QLabel(
                f'<span style="background: rgb({red},{green},{blue})">&nbsp;&nbsp;&nbsp;&nbsp;</span> {text}'
            )
            below.addWidget(swatch)
        below.addWidget(self.about, 5)
        picture = Qt.QHBoxLayout()
        picture.setSpacing(2)
        picture.addWidget(self.view, 1)
        picture.addWidget(self.scale)
        left = Qt.QWidget()
        column = Qt.QVBoxLayout(left)
        column.setContentsMargins(4, 4, 2, 4)
        column.setSpacing(3)
        column.addLayout(bar)
        column.addLayout(picture, 1)
        column.addLayout(below)
        self.side = Qt.QTabWidget()
        self.side.setDocumentMode(True)
        self.side.addTab(self.regions, "Regions")
        self.side.addTab(self.profile, "Profile")
        self.side.addTab(self.geometry, "Geometry")
        self.splitter = Qt.QSplitter()
        self.splitter.addWidget(left)
        self.splitter.addWidget(self.side)
        self.splitter.setStretchFactor(0, 3)
        self.splitter.setStretchFactor(1, 1)
        self.splitter.setSizes([700, 320])
        self.splitter.setCollapsible(0, False)
        self.side.setMinimumWidth(255)
        self.side.hide()
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.splitter)

    # --- pictures -----------------------------------------------------------------------------------------------------

    def _show(self, picture: Picture) -> None:
        self.view.show_picture(picture)
        self.pictures_drawn += 1
        if not picture.whole:
            self._source.images.shown(picture.id)
        now = time.monotonic()
        self._shown_at = [then for then in self._shown_at if now - then < TOLD] + [now]
        self.nothing.hide()
        self._show_range(picture)
        self._show_age()
        self._show_cursor(picture.pixel)
        if self.line.isChecked():
            self.profile.show_picture(picture)
        if self.cross.isChecked() and len(self.beam) == 0:
            self._draw_beam()
        if self.hold.isChecked() != picture.whole and not self.hold.property("asked"):
            self.hold.blockSignals(True)
            self.hold.setChecked(picture.whole)
            self.hold.blockSignals(False)
        if picture.whole:
            self.hold.setProperty("asked", False)

    @property
    def shown_rate(self) -> float:
        """Pictures per second of the last seconds."""
        return (len(self._shown_at) - 1) / (self._shown_at[-1] - self._shown_at[0]) if len(self._shown_at) > 2 else 0.0

    def _show_range(self, picture: Picture) -> None:
        if self.auto.isChecked():
            for line, value in ((self.low, picture.low), (self.high, picture.high)):
                if not line.hasFocus():
                    line.setText(levels.tick_text(value))
        self.scale.show_range(self.colours.currentText(), picture.low, picture.high, self.log.isChecked())

    def _show_age(self) -> None:
        source, picture = self._source, self.view.picture
        if picture is None:
            if source.state is None:
                text = "No connection to the device."
            elif source.images_error:
                text = f"No images: {source.images_error}. Trying again."
            elif source.receiver.error:
                text = f"No images, the receiver does not answer: {source.receiver.error}"
            else:
                text = "No image has been received yet."
            self.nothing.setText(text)
            self.nothing.setGeometry(40, 0, max(100, self.view.width() - 80), self.view.height())
            self.badge.hide()
            return
        unknown = math.isnan(picture.came)
        seconds = 0.0 if unknown else max(0.0, time.monotonic() - picture.came)
        running = source.state == "RUNNING" and not control.waits(source.state, source.readings)
        cut_off = bool(source.images_error) or source.state is None
        old = running and seconds > control.patience(source.readings)
        parts = [f"frame {words.count(picture.number)}" if picture.number >= 0 else "no frame"]
        parts.append("age not known" if unknown else words.age(seconds))
        if picture.kind != "last":
            parts.insert(1, f"{pictures.KINDS[picture.kind].lower()} of {words.count(picture.frames)}")
        symbol = (
            "■ held, full resolution ·" if picture.whole else "✖ cut off ·" if cut_off else "▲ old ·" if old else ""
        )
        self.badge.setText(f" {symbol} {' · '.join(parts)} ".replace("  ", " "))
        theme.set_property(self.badge, "role", "bad" if cut_off else "warning" if old or picture.whole else "idle")
        if self.badge.isHidden():
            self.badge.show()
            theme.restyle(self.badge)
        self.badge.adjustSize()
        rate = self.shown_rate if seconds < TOLD else 0.0
        made = "full" if picture.factor == 1 else f"1/{picture.factor}"
        self.about.say(f"{picture.full[0]} × {picture.full[1]} {picture.source} · {made} · {words.rate(rate)}")

    def _wish(self) -> None:
        kind = list(pictures.KINDS)[self.kind.currentIndex()]
        method = list(METHODS)[self.method.currentIndex()]
        full = self.view.picture.full if self.view.picture else None
        wanted = pictures.wish(self.view.shown_part(), full, self.view.screen())
        self._source.images.wish(kind=kind, method=method, **wanted)
        self._source.slow_images.wish(**wanted)
        if self.hold.isChecked() and self.view.picture and self.view.picture.kind != kind:
            self.hold.setChecked(False)

    def _hold(self) -> None:
        if self.hold.isChecked():
            self.hold.setProperty("asked", True)
            self._source.images.hold(list(pictures.KINDS)[self.kind.currentIndex()])
        else:
            self.hold.setProperty("asked", False)
            self._source.images.resume()

    # --- colours ------------------------------------------------------------------------------------------------------

    def look(self) -> Look:
        ends = [0.0, 1.0]
        for i, line in enumerate((self.low, self.high)):
            try:
                ends[i] = words.real(line.text())
                theme.set_property(line, "wrong", False)
            except ValueError:
                theme.set_property(line, "wrong", bool(line.text()))
        return Look(self.auto.isChecked(), self.log.isChecked(), ends[0], ends[1], self.percent.value())

    def _look(self, *_: Any) -> None:
        self.percent.setEnabled(self.auto.isChecked())
        look = self.look()
        self._source.images.look(look)
        self._source.slow_images.look(look)

    def _typed_range(self) -> None:
        line = self.sender()
        if line.isModified():
            line.setModified(False)
            if self.auto.isChecked():
                self.auto.setChecked(False)
            else:
                self._look()

    def _recolour(self) -> None:
        self.view.set_colours(self.colours.currentText())
        if self.view.picture is not None:
            self._show_range(self.view.picture)

    def kept(self) -> dict[str, Any]:
        """What is remembered between starts."""
        return {
            "colours": self.colours.currentText(),
            "method": self.method.currentText(),
            "log": self.log.isChecked(),
            "percent": self.percent.value(),
            "tools": self.tools.isChecked(),
        }

    def restore(self, kept: dict[str, Any]) -> None:
        self.colours.setCurrentText(kept.get("colours", "Viridis"))
        self.method.setCurrentText(kept.get("method", ""))
        self.log.setChecked(bool(kept.get("log")))
        self.percent.setValue(float(kept.get("percent", 0.1)))
        self.tools.setChecked(bool(kept.get("tools")))

    # --- the cursor ---------------------------------------------------------------------------------------------------

    def _pointed(self, cursor: tuple[int, int] | None) -> None:
        self._saying.start()
        self._show_cursor(None)

    def _pixel_told(self, told: dict[str, Any]) -> None:
        self._show_cursor(told.get("pixel"))

    def _show_cursor(self, exact: Any) -> None:
        """`exact` is what the receiver says of a pixel; else what is shown, which may be of several."""
        cursor, picture = self.view.cursor, self.view.picture
        if cursor is None or picture is None:
            self.cursor_text.setText("Point at a pixel")
            return
        spacing = self.geometry.geometry().spacing(cursor[0] + 0.5, cursor[1] + 0.5)
        text = pictures.readout(picture, cursor, exact, spacing)
        if text:
            self.cursor_text.setText(text)

    # --- tools --------------------------------------------------------------------------------------------------------

    def _toggle_side(self) -> None:
        self.side.setVisible(self.tools.isChecked())

    def _open_side(self, pane: Qt.QWidget) -> None:
        self.side.setCurrentWidget(pane)
        self.tools.setChecked(True)

    def _add_region(self) -> None:
        self._open_side(self.regions)
        self.regions.add()

    def _toggle_profile(self) -> None:
        self.profile.switch(self.line.isChecked())
        if self.line.isChecked():
            self._open_side(self.profile)

    def _toggle_rings(self) -> None:
        if self.rings.isChecked() and not self.geometry.geometry().known:
            self._open_side(self.geometry)
        self._draw_beam()

    def _draw_beam(self) -> None:
        full = self.view.picture.full if self.view.picture else None
        self.beam.show(self.geometry.geometry(), full, self.cross.isChecked(), self.rings.isChecked())

    def note(self, sentence: str) -> None:
        self.cursor_text.setText(sentence)

    def save_picture(self) -> None:
        picture = self.view.picture
        if picture is None:
            return
        name, _ = Qt.QFileDialog.getSaveFileName(
            self, "Write what is shown", f"frame_{max(0, picture.number)}.png", "Picture (*.png);;Numbers (*.npy)"
        )
        if name.endswith(".npy"):
            self._source.in_background(lambda: _write_numbers(name, picture), f"{name} could not be written")
        elif name:
            shot = self.view.grab().toImage()
            self._source.in_background(lambda: _write_picture(name, shot), f"{name} could not be written")

    def keyPressEvent(self, event: Qt.QKeyEvent) -> None:
        key, shift = event.key(), bool(event.modifiers() & Qt.Qt.ShiftModifier)
        switches = {
            Qt.Qt.Key_L: self.log, Qt.Qt.Key_A: self.auto, Qt.Qt.Key_P: self.line, Qt.Qt.Key_B: self.cross,
            Qt.Qt.Key_G: self.rings, Qt.Qt.Key_F: self.hold,
            Qt.Qt.Key_T: self.tools,
        }  # fmt: skip
        if key in switches:
            switches[key].toggle()
        elif key == Qt.Qt.Key_C:
            step = -1 if shift else 1
            self.colours.setCurrentIndex((self.colours.currentIndex() + step) % self.colours.count())
        elif key == Qt.Qt.Key_K:
            self.kind.setCurrentIndex((self.kind.currentIndex() + 1) % self.kind.count())
        elif key == Qt.Qt.Key_R:
            self._add_region()
        else:
            super().keyPressEvent(event)


def _write_picture(name: str, shot: Qt.QImage) -> None:
    if not shot.save(name):
        raise OSError("no such folder, no room, or no kind of picture that is known")


def _write_numbers(name: str, picture: Picture) -> None:
    np.save(name, picture.pixels, allow_pickle=False)
