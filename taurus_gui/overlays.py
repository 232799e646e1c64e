"""What is drawn over an image: regions of interest, a profile line, the beam centre, resolution rings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg
from taurus.external.qt import Qt

from taurus_gui.rings import Geometry

SHADE = (0, 0, 0, 170)
CIRCLE = np.linspace(0, 2 * np.pi, 181)


def _pens(colour: str, width: float = 1.6) -> dict[str, Any]:
    return {"pen": pg.mkPen(colour, width=width), "hoverPen": pg.mkPen(colour, width=width + 1.5)}


def label(text: str, colour: str, anchor: tuple[float, float] = (0, 1)) -> pg.TextItem:
    """Readable upon every image."""
    item = pg.TextItem(text, color=colour, fill=pg.mkBrush(*SHADE), anchor=anchor)
    item.setZValue(15)
    return item


class Region(pg.RectROI):
    """A rectangle of whole pixels with its name; `moved` when the mouse let it go."""

    moved = Qt.pyqtSignal()

    def __init__(self, name: str, x: int, y: int, width: int, height: int, colour: str) -> None:
        super().__init__((x, y), (width, height), snapSize=1, translateSnap=True, scaleSnap=True, rotatable=False,
                         removable=True, **_pens(colour))  # fmt: skip
        self.name, self.colour = name, colour
        self.held = False
        self.addScaleHandle((0, 0), (1, 1))
        for handle in self.getHandles():
            handle.pen = pg.mkPen(colour, width=1.5)
            handle.currentPen = handle.pen
        self.text = label(name, colour, (0, 1))
        self.setZValue(12)
        self.sigRegionChanged.connect(self._follow)
        self.sigRegionChangeStarted.connect(self._hold)
        self.sigRegionChangeFinished.connect(self._let_go)
        self._follow()

    def _hold(self, *_: Any) -> None:
        self.held = True

    def _let_go(self, *_: Any) -> None:
        if self.held:
            self.held = False
            self.moved.emit()

    def _follow(self, *_: Any) -> None:
        self.text.setPos(self.pos().x(), self.pos().y())

    @property
    def line(self) -> str:
        """As the receiver has it: name x y width height."""
        x, y = self.pos()
        width, height = self.size()
        left, top = max(0, round(x)), max(0, round(y))
        return f"{self.name} {left} {top} {max(1, round(x + width) - left)} {max(1, round(y + height) - top)}"

    def place(self, x: int, y: int, width: int, height: int) -> None:
        self.setPos((x, y), update=False, finish=False)
        self.setSize((width, height), finish=False)


class Profile(pg.LineSegmentROI):
    """A line whose ends can be drawn about."""

    def __init__(self, start: tuple[float, float], end: tuple[float, float], colour: str = "#ffffff") -> None:
        super().__init__([(start[1], start[0]), (end[1], end[0])], **_pens(colour, 2))
        self.setZValue(13)

    def ends(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(row, column) of both."""
        points = [self.mapToParent(handle["item"].pos()) for handle in self.handles]
        return (points[0].y(), points[0].x()), (points[1].y(), points[1].x())


class Beam:
    """Cross hair at the beam centre, and rings about it."""

    def __init__(self, plot: pg.PlotWidget) -> None:
        self._plot = plot
        self._items: list[Any] = []

    def show(self, geometry: Geometry, full: tuple[int, int] | None, cross: bool, rings: bool) -> None:
        for item in self._items:
            self._plot.removeItem(item)
        self._items = []
        if geometry.centre is None:
            return
        row, column = geometry.centre
        if cross:
            pen = pg.mkPen("#ff6ad5", width=1.2, style=Qt.Qt.DashLine)
            self._add(pg.InfiniteLine(pos=column, angle=90, pen=pen), pg.InfiniteLine(pos=row, angle=0, pen=pen))
        if rings and full:
            for spacing, half_rows, half_columns in geometry.rings(*full):
                x, y = column + half_columns * np.cos(CIRCLE), row + half_rows * np.sin(CIRCLE)
                self._add(pg.PlotCurveItem(x, y, pen=pg.mkPen("#ff6ad5", width=1.3), antialias=True))
                inside = (x > 0) & (x < full[1]) & (y > 0) & (y < full[0])
                if inside.any():
                    wanted = np.flatnonzero(inside)
                    at = wanted[np.argmin(np.abs(CIRCLE[wanted] - 1.25 * np.pi))]  # up left where it can be
                    text = label(f"{spacing:g} Å", "#ffb3ec", (0.5, 0.5))
                    text.setPos(x[at], y[at])
                    self._add(text)

    def _add(self, *items: Any) -> None:
        for item in items:
            item.setZValue(11)
            self._plot.addItem(item, ignoreBounds=True)
            self._items.append(item)

    def __len__(self) -> int:
        return len(self._items)
