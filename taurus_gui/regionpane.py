"""Regions of interest: drawn and moved in the image, written to the receiver, their values in a table and a curve."""

from __future__ import annotations

from typing import Any

import pyqtgraph as pg
from taurus.external.qt import Qt

from taurus_gui import roistats, theme, words
from taurus_gui.orders import Answer
from taurus_gui.overlays import Region
from taurus_gui.pictureview import PictureView
from taurus_gui.sentence import Sentence
from taurus_gui.source import Source

MOST = 8  # as the receiver
COLUMNS = ("", "Sum", "Max", "Centre x, y")


class RegionPane(Qt.QWidget):
    def __init__(self, source: Source, view: PictureView, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source, self._view = source, view
        self.regions: list[Region] = []
        self._lines: tuple[str, ...] = ()  # as the receiver has them
        self._unanswered = 0  # orders
        self.plot = pg.PlotWidget()
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setMouseEnabled(x=False, y=False)
        self.plot.getAxis("bottom").setLabel("s before the newest")
        self.plot.getAxis("left").setWidth(52)
        self.field = Qt.QComboBox()
        self.field.addItems([name.capitalize() for name in ("sum", "mean", "max")])
        self.field.setToolTip("What is drawn against time")
        self.field.currentIndexChanged.connect(lambda _: self._draw())
        self.remove = Qt.QToolButton()
        self.remove.setText("Remove")
        self.remove.setToolTip("Remove the selected region (Delete)")
        self.remove.clicked.connect(self.remove_selected)
        self.table = Qt.QTableWidget(0, len(COLUMNS))
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.verticalHeader().hide()
        self.table.setSelectionBehavior(Qt.QTableWidget.SelectRows)
        self.table.setEditTriggers(Qt.QTableWidget.NoEditTriggers)
        self.table.setAccessibleName("Regions of interest")
        self.table.horizontalHeader().setSectionResizeMode(Qt.QHeaderView.ResizeToContents)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.complaint = Sentence(self, ink="bad")
        self.hint = Qt.QLabel("No regions. “+ Region” draws one in the image; move it and its corners with the mouse.")
        self.hint.setWordWrap(True)
        theme.set_property(self.hint, "dim", True)
        top = Qt.QHBoxLayout()
        top.addWidget(self.field)
        top.addStretch(1)
        top.addWidget(self.remove)
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.addWidget(self.hint)
        layout.addLayout(top)
        layout.addWidget(self.plot, 3)
        layout.addWidget(self.table, 2)
        layout.addWidget(self.complaint)
        delete = Qt.QShortcut(Qt.QKeySequence.Delete, self)
        delete.setContext(Qt.Qt.WidgetWithChildrenShortcut)
        delete.activated.connect(self.remove_selected)
        source.receiver_changed.connect(self._follow)
        source.connection_changed.connect(self._forget_orders)
        source.rois_told.connect(lambda _: self._draw())
        source.status_told.connect(self._status)
        source.answered.connect(self._answered)
        theme.told.changed.connect(self.restyle)
        self.restyle()
        self._draw()

    def restyle(self) -> None:
        now = theme.now()
        self.plot.setBackground(now.base)
        for side in ("left", "bottom"):
            self.plot.getAxis(side).setPen(now.line)
            self.plot.getAxis(side).setTextPen(now.dim)
        self._draw()

    # --- regions in the image -----------------------------------------------------------------------------------------

    def _status(self, status: dict[str, Any]) -> None:
        """Of a receiver without Tango."""
        if not self._source.receiver.name:
            rois = (status.get("live") or {}).get("rois") or ()
            self._take(tuple(f"{r['name']} {r['x']} {r['y']} {r['width']} {r['height']}" for r in rois))

    def _follow(self) -> None:
        if self._source.receiver.name and not self._source.receiver.error:
            self._take(self._source.receiver.rois)

    def _take(self, lines: tuple[str, ...]) -> None:
        """Regions as the receiver has them; one that is being moved is left alone, and what was told before the last
        order was obeyed would move it back."""
        if lines == self._lines or self._unanswered or any(region.held for region in self.regions):
            return
        self._lines = lines
        wanted = [line.split() for line in lines]
        if [words_[0] for words_ in wanted] != [region.name for region in self.regions]:
            for region in self.regions:
                self._view.removeItem(region)
                self._view.removeItem(region.text)
            self.regions = []
            for name, *numbers in wanted:
                x, y, width, height = map(int, numbers)
                colour = theme.DARK.curves[len(self.regions) % len(theme.DARK.curves)]
                region = Region(name, x, y, width, height, colour)
                region.moved.connect(self._send)
                region.sigRemoveRequested.connect(lambda gone: self._drop(gone))
                self._view.addItem(region, ignoreBounds=True)
                self._view.addItem(region.text, ignoreBounds=True)
                self.regions.append(region)
        else:
            for region, (_, *numbers) in zip(self.regions, wanted, strict=True):
                if region.line.split()[1:] != numbers:
                    region.place(*map(int, numbers))
        self._draw()

    def add(self) -> None:
        """In the middle of what is shown."""
        picture = self._view.picture
        if picture is None:
            self._complain("There is no image to draw a region in yet.")
            return
        if len(self.regions) >= MOST:
            self._complain(f"A receiver has {MOST} regions at most: remove one first.")
            return
        rows, columns = picture.full
        top, left, bottom, right = self._view.shown_part() or (0, 0, rows, columns)
        top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, rows), min(right, columns)
        width, height = max(2, int((right - left) / 6)), max(2, int((bottom - top) / 6))
        shift = 0.25 * len(self.regions)
        x = int((left + right - width) / 2 + shift * width)
        y = int((top + bottom - height) / 2 + shift * height)
        name = roistats.new_name([region.name for region in self.regions])
        self._ask([*(region.line for region in self.regions), f"{name} {x} {y} {width} {height}"])

    def remove_selected(self) -> None:
        rows = {index.row() for index in self.table.selectedIndexes()} or {len(self.regions) - 1}
        self._ask([region.line for n, region in enumerate(self.regions) if n not in rows])

    def _drop(self, gone: Region) -> None:
        self._ask([region.line for region in self.regions if region is not gone])

    def _send(self) -> None:
        self._ask([region.line for region in self.regions])

    def _ask(self, lines: list[str]) -> None:
        self._complain("")
        self._unanswered += 1
        self._source.set_rois(lines)

    def _answered(self, answer: Answer) -> None:
        """The receiver was looked at after it had obeyed."""
        if answer.order.kind == "rois":
            self._unanswered = max(0, self._unanswered - 1)
            self._complain(answer.error)
            if answer.error:  # back to what the receiver has
                lines, self._lines = self._lines, ()
                self._take(lines)
            self._follow()

    def _forget_orders(self) -> None:
        """A device that went away answers no more."""
        self._unanswered = 0
        self._follow()

    def _complain(self, sentence: str) -> None:
        self.complaint.say(f"▲ {sentence}" if sentence else "")

    # --- their values -------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        none = not self.regions
        self.hint.setVisible(none)
        for widget in (self.plot, self.table, self.field, self.remove):
            widget.setVisible(not none)
        if none:
            return
        known = self._source.rois.names == tuple(region.name for region in self.regions)
        rows = self._source.rois.rows if known else ()
        field = self.field.currentText().lower()
        if len(self.plot.listDataItems()) != len(self.regions):
            self.plot.clear()
            for _ in self.regions:
                self.plot.plot([], [])
        if self.table.rowCount() != len(self.regions):
            self.table.setRowCount(len(self.regions))
        for n, (region, line) in enumerate(zip(self.regions, self.plot.listDataItems(), strict=True)):
            found = roistats.curve(rows, n, field)
            line.setData(found.ages, found.values)
            colour = theme.now().curves[n % len(theme.now().curves)]
            line.setPen(pg.mkPen(colour, width=2))
            values = roistats.newest(rows, n)
            texts = [
                f"■ {region.name}",
                words.count(values["sum"]) if values else "–",
                words.count(values["max"]) if values else "–",
                f"{values['x']:.1f}, {values['y']:.1f}" if values else "–",
            ]
            for column, text in enumerate(texts):
                item = self.table.item(n, column)
                if item is None:
                    item = Qt.QTableWidgetItem()
                    self.table.setItem(n, column, item)
                if item.text() != text:
                    item.setText(text)
                if column == 0:
                    item.setForeground(Qt.QColor(colour))
                    item.setToolTip(f"x, y, width, height: {', '.join(region.line.split()[1:])}")
                elif values:
                    item.setToolTip(f"mean {values['mean']:.6g} of {words.count(values['pixels'])} pixels")
