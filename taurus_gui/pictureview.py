"""A picture with axes in pixels of the detector: zoom, pan, cursor, colours. Used by the live view and the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg
from taurus.external.qt import Qt

from taurus_gui import levels, theme
from taurus_gui.pictures import Picture

SETTLE = 60  # ms without a move before other pixels are asked for
CLOSEST = 4.0  # pixels of the detector that fill the window at least

pg.setConfigOptions(mouseRateLimit=0)  # else moves that follow one another fast are lost: where the mouse stopped, too


class PictureView(pg.PlotWidget):
    """`wanted` is emitted when other pixels are needed; `pointed` with row and column under the cursor, or None."""

    wanted = Qt.pyqtSignal()
    pointed = Qt.pyqtSignal(object)
    clicked = Qt.pyqtSignal(float, float)  # row, column

    def __init__(self, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self.picture: Picture | None = None
        self.cursor: tuple[int, int] | None = None
        self._colours = "Viridis"
        self._fits = True
        self._setting = False
        self.item = pg.ImageItem(axisOrder="row-major")
        self.item.setLookupTable(levels.table(self._colours))
        box = self.getViewBox()
        box.setAspectLocked(True)
        box.invertY(True)
        box.setMenuEnabled(False)
        box.setDefaultPadding(0.0)
        self.addItem(self.item)
        self.item.setZValue(-10)
        self.hideButtons()
        self.getPlotItem().layout.setContentsMargins(0, 7, 6, 0)
        for side in ("left", "bottom"):
            self.getAxis(side).setStyle(tickLength=-4, autoExpandTextSpace=False)
        self.getAxis("left").setWidth(38)
        self.getAxis("bottom").setHeight(20)
        self.setFocusPolicy(Qt.Qt.StrongFocus)
        self.hideAxis("left")  # until there is something to count
        self.hideAxis("bottom")
        self._mark = pg.TargetItem(movable=False, size=13, symbol="s", pen=pg.mkPen("w", width=1.5), brush=None)
        self._mark.setZValue(20)
        self._mark.hide()
        self.addItem(self._mark)
        self._settle = Qt.QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE)
        self._settle.timeout.connect(self.wanted)
        box.sigRangeChangedManually.connect(self._moved_by_hand)
        box.sigRangeChanged.connect(lambda *_: self._settle.start())
        box.sigResized.connect(self._resized)
        self.scene().sigMouseMoved.connect(self._moved)
        self.scene().sigMouseClicked.connect(self._clicked)
        theme.told.changed.connect(self.restyle)
        self.restyle()

    def restyle(self) -> None:
        now = theme.now()
        self.setBackground(now.base)
        for side in ("left", "bottom"):
            self.getAxis(side).setPen(now.line)
            self.getAxis(side).setTextPen(now.dim)

    # --- what is shown ------------------------------------------------------------------------------------------------

    def show_picture(self, picture: Picture) -> None:
        new_size = self.picture is None or self.picture.full != picture.full
        if self.picture is None:
            self.showAxis("left")
            self.showAxis("bottom")
        self.picture = picture
        top, left, bottom, right = picture.region
        self._setting = True
        try:
            self.item.setImage(
                picture.index, autoLevels=False, levels=None, rect=(left, top, right - left, bottom - top)
            )
            if new_size:
                rows, columns = picture.full
                box = self.getViewBox()
                side = 20 * max(rows, columns)  # wide: pyqtgraph would cut a narrow window's view to it
                box.setLimits(
                    xMin=-side, xMax=side, yMin=-side, yMax=side, minXRange=CLOSEST, minYRange=CLOSEST
                )  # fmt: skip
                self.fit()
        finally:
            self._setting = False

    def forget(self) -> None:
        """Show nothing."""
        self.picture = self.cursor = None
        self.item.clear()
        self._mark.hide()
        self.hideAxis("left")
        self.hideAxis("bottom")

    def set_colours(self, title: str) -> None:
        self._colours = title
        self.item.setLookupTable(levels.table(title))

    def shown_colour(self, row: int, column: int) -> tuple[int, int, int]:
        """Red, green, blue of a pixel of the detector, as on the screen."""
        place = self.getViewBox().mapViewToScene(Qt.QPointF(column + 0.5, row + 0.5))
        colour = self.grab().toImage().pixelColor(self.mapFromScene(place))
        return colour.red(), colour.green(), colour.blue()

    # --- what part ----------------------------------------------------------------------------------------------------

    @property
    def fits(self) -> bool:
        """The whole image is shown."""
        return self._fits

    def fit(self) -> None:
        """The whole image."""
        self._fits = True
        if self.picture is not None:
            rows, columns = self.picture.full
            box = self.getViewBox()
            scale = max(columns / max(1.0, box.width()), rows / max(1.0, box.height()))  # pixels for one of the screen
            width, height = scale * box.width() / 2, scale * box.height() / 2
            x, y = columns / 2, rows / 2
            box.setRange(xRange=(x - width, x + width), yRange=(y - height, y + height), padding=0.0)
        self._settle.start()

    def one_to_one(self) -> None:
        """A pixel of the detector on one of the screen, about the middle of what is shown."""
        box = self.getViewBox()
        ratio = self.devicePixelRatioF()
        (left, right), (top, bottom) = box.viewRange()
        x, y = (left + right) / 2, (top + bottom) / 2
        width, height = box.width() * ratio, box.height() * ratio
        self._fits = False
        box.setRange(xRange=(x - width / 2, x + width / 2), yRange=(y - height / 2, y + height / 2), padding=0.0)

    def zoom(self, factor: float) -> None:
        """About the middle; more than 1 is closer."""
        self._fits = False
        self.getViewBox().scaleBy((1 / factor, 1 / factor))

    def move(self, x: float, y: float) -> None:
        """By so many parts of the window."""
        box = self.getViewBox()
        (left, right), (top, bottom) = box.viewRange()
        self._fits = False
        box.translateBy(x=x * (right - left), y=y * (bottom - top))

    def shown_part(self) -> tuple[float, float, float, float] | None:
        """First row, first column, last row, last column; None: the whole image."""
        if self._fits or self.picture is None:
            return None
        (left, right), (top, bottom) = self.getViewBox().viewRange()
        return top, left, bottom, right

    def screen(self) -> tuple[int, int]:
        """Rows and columns of real pixels that the image has."""
        ratio = self.devicePixelRatioF()
        box = self.getViewBox()
        return max(16, int(box.height() * ratio)), max(16, int(box.width() * ratio))

    def _moved_by_hand(self, *_: Any) -> None:
        self._fits = False

    def _resized(self, *_: Any) -> None:
        if self._fits:
            self.fit()
        self._settle.start()

    # --- the cursor ---------------------------------------------------------------------------------------------------

    def _moved(self, place: Qt.QPointF) -> None:
        self._mark.hide()
        at = self.getViewBox().mapSceneToView(place)
        self._point(int(np.floor(at.y())), int(np.floor(at.x())))

    def _point(self, row: int, column: int) -> None:
        full = self.picture.full if self.picture else (0, 0)
        self.cursor = (row, column) if 0 <= row < full[0] and 0 <= column < full[1] else None
        self.pointed.emit(self.cursor)

    def move_cursor(self, rows: int, columns: int) -> None:
        """By pixels of the detector, with keys."""
        if self.picture is None:
            return
        full = self.picture.full
        row, column = self.cursor or (full[0] // 2, full[1] // 2)
        row, column = min(full[0] - 1, max(0, row + rows)), min(full[1] - 1, max(0, column + columns))
        self._mark.setPos(column + 0.5, row + 0.5)
        self._mark.show()
        self._point(row, column)

    def _clicked(self, event: Any) -> None:
        if event.double():
            self.fit()
            return
        at = self.getViewBox().mapSceneToView(event.scenePos())
        self.clicked.emit(at.y(), at.x())

    def leaveEvent(self, event: Qt.QEvent) -> None:
        super().leaveEvent(event)
        if not self._mark.isVisible():
            self.cursor = None
            self.pointed.emit(None)

    def keyPressEvent(self, event: Qt.QKeyEvent) -> None:
        arrows = {Qt.Qt.Key_Left: (0, -1), Qt.Qt.Key_Right: (0, 1), Qt.Qt.Key_Up: (-1, 0), Qt.Qt.Key_Down: (1, 0)}
        key = event.key()
        if key in arrows:
            rows, columns = arrows[key]
            if event.modifiers() & Qt.Qt.ShiftModifier:
                self.move_cursor(rows, columns)
            else:
                self.move(0.1 * columns, 0.1 * rows)
        elif key in (Qt.Qt.Key_Plus, Qt.Qt.Key_Equal):
            self.zoom(1.4)
        elif key == Qt.Qt.Key_Minus:
            self.zoom(1 / 1.4)
        elif key == Qt.Qt.Key_0:
            self.fit()
        elif key == Qt.Qt.Key_1:
            self.one_to_one()
        else:
            event.ignore()
            return
        event.accept()


class ColourScale(Qt.QWidget):
    """The colours from the lowest to the highest value, upright, with numbers beside it."""

    WIDTH = 62

    def __init__(self, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._colours, self._low, self._high, self._log = "Viridis", 0.0, 1.0, False
        self.setFixedWidth(self.WIDTH)
        self.setAccessibleName("Scale of colours")

    def show_range(self, colours: str, low: float, high: float, log: bool) -> None:
        now = colours, *levels.usable(low, high, log), log
        if now != (self._colours, self._low, self._high, self._log):
            self._colours, self._low, self._high, self._log = now
            self.update()

    def ticks(self) -> list[tuple[float, str]]:
        """Parts of the height from below, and numbers."""
        if self._log:
            first, last = np.log10(self._low), np.log10(self._high)
            powers = [p for p in range(int(np.ceil(first)), int(np.floor(last)) + 1)]
            found = [((p - first) / (last - first), 10.0**p) for p in powers]
            if len(found) < 2:
                found = [(0.0, self._low), (0.5, 10 ** ((first + last) / 2)), (1.0, self._high)]
        else:
            found = [(part, self._low + part * (self._high - self._low)) for part in (0, 0.25, 0.5, 0.75, 1)]
        return [(part, levels.tick_text(value)) for part, value in found]

    def paintEvent(self, event: Qt.QPaintEvent) -> None:
        painter = Qt.QPainter(self)
        now = theme.now()
        top, bottom, width = 8, self.height() - 26, 12
        strip = np.ascontiguousarray(levels.table(self._colours)[: levels.COLOURS][::-1].reshape(-1, 1, 3))
        image = Qt.QImage(strip.data, 1, len(strip), 3, Qt.QImage.Format_RGB888)
        painter.drawImage(Qt.QRect(2, top, width, bottom - top), image)
        painter.setPen(Qt.QColor(now.line))
        painter.drawRect(2, top, width, bottom - top)
        font = painter.font()
        font.setPointSizeF(font.pointSizeF() * 0.85)
        painter.setFont(font)
        painter.setPen(Qt.QColor(now.dim))
        half = painter.fontMetrics().height() // 2
        for part, text in self.ticks():
            y = round(bottom - part * (bottom - top))
            painter.drawText(width + 6, min(max(y + half - 3, top + half), bottom), text)
        painter.end()
