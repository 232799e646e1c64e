"""Values along a line in the image."""

from __future__ import annotations

import pyqtgraph as pg
from taurus.external.qt import Qt

from taurus_gui import pictures, theme
from taurus_gui.overlays import Profile
from taurus_gui.pictures import Picture
from taurus_gui.pictureview import PictureView


class ProfilePane(Qt.QWidget):
    def __init__(self, view: PictureView, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._view = view
        self.line: Profile | None = None
        self.plot = pg.PlotWidget()
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.getAxis("bottom").setLabel("pixels along the line")
        self.plot.getAxis("left").setWidth(52)
        self.curve = self.plot.plot([], [], connect="finite")
        self.hint = Qt.QLabel("“Profile” draws a line in the image; move its ends with the mouse.")
        self.hint.setWordWrap(True)
        theme.set_property(self.hint, "dim", True)
        self.about = Qt.QLabel()
        self.about.setWordWrap(True)
        theme.set_property(self.about, "dim", True)
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addWidget(self.hint)
        layout.addWidget(self.plot, 1)
        layout.addWidget(self.about)
        theme.told.changed.connect(self.restyle)
        self.restyle()
        self.switch(False)

    def restyle(self) -> None:
        now = theme.now()
        self.plot.setBackground(now.base)
        self.curve.setPen(pg.mkPen(now.curves[0], width=1.5))
        for side in ("left", "bottom"):
            self.plot.getAxis(side).setPen(now.line)
            self.plot.getAxis(side).setTextPen(now.dim)

    def switch(self, on: bool) -> None:
        self.hint.setVisible(not on)
        self.plot.setVisible(on)
        self.about.setVisible(on)
        if not on:
            if self.line is not None:
                self._view.removeItem(self.line)
                self.line = None
            return
        picture = self._view.picture
        rows, columns = picture.full if picture else (100, 100)
        top, left, bottom, right = self._view.shown_part() or (0, 0, rows, columns)
        middle = (top + bottom) / 2
        self.line = Profile((middle, left + 0.15 * (right - left)), (middle, left + 0.85 * (right - left)))
        self.line.sigRegionChanged.connect(lambda *_: self._again())
        self._view.addItem(self.line, ignoreBounds=True)
        self._again()

    def _again(self) -> None:
        if self._view.picture is not None:
            self.show_picture(self._view.picture)

    def show_picture(self, picture: Picture) -> None:
        if self.line is None:
            return
        start, end = self.line.ends()
        distance, values = pictures.profile(picture, start, end)
        self.curve.setData(distance, values)
        places = f"row {start[0]:.0f}, column {start[1]:.0f} to row {end[0]:.0f}, column {end[1]:.0f}"
        blocks = f"; means of {picture.factor} × {picture.factor}" if picture.factor > 1 else ""
        self.about.setText(f"{places}{blocks}")
