"""Panel: what the detector is, its image's orientation, temperatures, and the backend's own parameters as a form."""

from __future__ import annotations

import math
from html import escape

import numpy as np
import pyqtgraph as pg
from taurus.external.qt import Qt

from taurus_gui import control, past, theme, words
from taurus_gui.described import STANDARD
from taurus_gui.fields import Field, field_for, tip
from taurus_gui.orders import Described
from taurus_gui.source import Source

IMAGE = ("Rotation", "Fliplr", "Flipud", "Binning", "Roi", "BitDepth")
ABOUT = ("Model", "SerialNumber", "Firmware", "SensorShape", "PixelSize", "SensorMaterial", "SensorThickness",
         "FrameShape", "DataType", "LatencyTime", "Endpoints", "ReceiverState")  # fmt: skip
TRENDS = {"degC": "°C", "°C": "°C", "C": "°C", "K": "K"}
SECONDS = 3600.0  # of the trend
EVERY = 3.0  # s between its values: 1200 of them
AWAY = (None, "UNKNOWN", "INIT")  # states in which a reading is of a time before


def text_of(value: object, described: Described) -> str:
    """A value with its unit, for people."""
    if value is None:
        return "–"
    if described.unit == "m" and isinstance(value, tuple | float):
        lengths = value if isinstance(value, tuple) else (value,)
        return f"{' × '.join(f'{1e6 * length:.5g}' for length in lengths)} µm" if any(lengths) else "–"
    if described.unit == "s" and isinstance(value, float):
        return words.duration(value)
    if described.unit == "pixel" and isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]} × {value[1]} pixels"
    if isinstance(value, tuple):
        text = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
    elif isinstance(value, float):
        try:
            text = (described.format % value).strip() if "%" in described.format else f"{value:.6g}"
        except (TypeError, ValueError):
            text = f"{value:.6g}"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    else:
        text = str(value)
    return f"{text} {TRENDS.get(described.unit, described.unit)}".strip() if text else "–"


class HardwarePanel(Qt.QWidget):
    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self.fields: dict[str, Field] = {}
        self.shown: dict[str, Qt.QLabel] = {}
        self.trends: dict[str, past.Trend] = {}
        self._of: tuple[str, ...] = ()
        self._rows: list[tuple[str, list[Qt.QWidget]]] = []
        self._place()
        source.described.connect(self._described)
        source.changed.connect(self._changed)
        source.connection_changed.connect(self._enable)
        source.ticked.connect(self._tick)
        theme.told.changed.connect(self.restyle)
        self.restyle()
        self._described()

    def _place(self) -> None:
        self.status = Qt.QLabel()
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.Qt.TextSelectableByMouse)
        about = Qt.QGroupBox("Detector")
        self._about = Qt.QFormLayout(about)
        self._about.setContentsMargins(0, 0, 0, 0)
        self._about.setVerticalSpacing(2)
        image = Qt.QGroupBox("Image")
        self._image = Qt.QGridLayout(image)
        self._image.setContentsMargins(0, 0, 0, 0)
        self.plot = pg.PlotWidget()
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setMouseEnabled(x=False, y=False)
        self.plot.getAxis("left").setLabel("°C")
        self.plot.getAxis("left").setWidth(48)
        self.plot.getAxis("bottom").setLabel("minutes before now")
        self.plot.setMinimumHeight(120)
        self.plot.setMaximumHeight(230)
        self.plot.getPlotItem().getViewBox().setLimits(minYRange=2)  # noise is not to look like a storm
        self.legend = self.plot.addLegend(offset=(8, 4))
        self._temperature = Qt.QGroupBox("Temperatures")
        inside = Qt.QVBoxLayout(self._temperature)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.addWidget(self.plot)
        left = Qt.QWidget()
        column = Qt.QVBoxLayout(left)
        column.setContentsMargins(8, 2, 8, 6)
        for widget in (self.status, about, image, self._temperature):
            column.addWidget(widget, 1 if widget is self._temperature else 0)
        self.search = Qt.QLineEdit()
        self.search.setPlaceholderText("Find a parameter")
        self.search.setClearButtonEnabled(True)
        self.search.setAccessibleName("Find a parameter")
        self.search.textChanged.connect(self._find)
        again = Qt.QPushButton("Read again")
        again.setToolTip("They are read every 5 s while this panel is shown and no series runs")
        again.clicked.connect(lambda: self._read_again())
        self._form = Qt.QWidget()
        self._grid = Qt.QGridLayout(self._form)
        self._grid.setContentsMargins(2, 2, 8, 2)
        self._grid.setVerticalSpacing(3)
        self._grid.setColumnStretch(1, 1)
        scroll = Qt.QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(Qt.QFrame.NoFrame)
        scroll.setWidget(self._form)
        own = Qt.QGroupBox("The detector's own parameters")
        right = Qt.QVBoxLayout(own)
        right.setContentsMargins(0, 0, 0, 0)
        bar = Qt.QHBoxLayout()
        bar.addWidget(self.search, 1)
        bar.addWidget(again)
        right.addLayout(bar)
        right.addWidget(scroll, 1)
        area = Qt.QScrollArea()
        area.setWidgetResizable(True)
        area.setFrameShape(Qt.QFrame.NoFrame)
        area.setWidget(left)
        splitter = Qt.QSplitter()
        splitter.addWidget(area)
        splitter.addWidget(own)
        splitter.setSizes([480, 520])
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 2, 6, 4)
        layout.addWidget(splitter)

    def restyle(self) -> None:
        now = theme.now()
        self.plot.setBackground(now.base)
        self.legend.setLabelTextColor(now.text)
        for side in ("left", "bottom"):
            self.plot.getAxis(side).setPen(now.line)
            self.plot.getAxis(side).setTextPen(now.dim)
        for n, line in enumerate(self.plot.listDataItems()):
            line.setPen(pg.mkPen(now.curves[n % len(now.curves)], width=1.8))

    # --- what there is ------------------------------------------------------------------------------------------------

    def _described(self) -> None:
        """Build the form anew when the device has other attributes."""
        attributes = self._source.attributes
        names = tuple(attributes)
        if not names or names == self._of:
            return
        self._of = names
        for field in self.fields.values():
            field.deleteLater()
        for layout in (self._about, self._image, self._grid):
            while layout.count():
                widget = layout.takeAt(0).widget()
                if widget is not None:
                    widget.deleteLater()
        self.fields, self.shown, self._rows = {}, {}, []
        for name in ABOUT:
            if name in attributes:
                self._about.addRow(f"{attributes[name].label}:", self._label(attributes[name]))
        self._build_image(attributes)
        own = [a for a in attributes.values() if a.name not in STANDARD and a.kind not in ("image", "state")]
        for row, described in enumerate(sorted(own, key=lambda a: (a.expert, not a.writable))):
            self._build_row(row, described)
        self._grid.setRowStretch(2 * len(own), 1)
        self.trends = {a.name: self.trends.get(a.name, past.Trend(every=EVERY)) for a in own if a.unit in TRENDS}
        self.plot.clear()
        for name in self.trends:
            self.plot.plot([], [], name=name)
        self._temperature.setVisible(bool(self.trends))
        self.restyle()
        self._changed(set(self._source.readings))

    def _build_image(self, attributes: dict[str, Described]) -> None:
        places = {"Rotation": (0, 0, 1), "BitDepth": (0, 2, 1), "Fliplr": (1, 0, 1), "Flipud": (1, 2, 1),
                  "Binning": (2, 0, 1), "Roi": (3, 0, 3)}  # fmt: skip
        for name, (row, column, width) in places.items():
            if name not in attributes:
                continue
            field = self.fields[name] = field_for(self._source, attributes[name], self)
            self._image.addWidget(field.label, 2 * row, column)
            self._image.addWidget(field.editor, 2 * row, column + 1, 1, width)
            self._image.addWidget(field.complaint, 2 * row + 1, column, 1, width + 1)

    def _label(self, described: Described) -> Qt.QLabel:
        label = self.shown[described.name] = Qt.QLabel("–")
        label.setTextInteractionFlags(Qt.Qt.TextSelectableByMouse)
        label.setWordWrap(True)
        label.setToolTip(tip(described))
        return label

    def _build_row(self, row: int, described: Described) -> None:
        if described.writable:
            field = self.fields[described.name] = field_for(self._source, described, self._form)
            widgets = [field.label, field.editor, field.complaint]
        else:
            title = Qt.QLabel(described.label)
            title.setToolTip(tip(described))
            widgets = [title, self._label(described)]
        for widget, place in zip(widgets, ((0, 0, 1, 1), (0, 1, 1, 1), (1, 0, 1, 2)), strict=False):
            self._grid.addWidget(widget, 2 * row + place[0], *place[1:])
        self._rows.append((f"{described.name} {described.doc}".lower(), widgets[:2]))

    def _find(self, text: str) -> None:
        for text_of_row, widgets in self._rows:
            for widget in widgets:
                widget.setVisible(text.lower() in text_of_row)

    # --- values -------------------------------------------------------------------------------------------------------

    def _changed(self, names: set[str]) -> None:
        source = self._source
        for name in names & set(self.shown):
            self.shown[name].setText(escape(text_of(source.readings[name], source.attributes[name])))
        if names & {"Status", "State"}:
            self.status.setText(str(source.get("Status", "")))
        if names & {"State"}:
            self._enable()

    def _enable(self) -> None:
        """What belongs to the image is fixed while a series runs; of its own parameters the backend decides."""
        state = self._source.state
        for name, field in self.fields.items():
            field.editor.setEnabled(state is not None and not (name in IMAGE and state in control.BUSY))

    def _tick(self) -> None:
        for name, trend in self.trends.items():
            value = self._source.readings.get(name)
            if isinstance(value, int | float) and self._source.state not in AWAY:
                trend.add(float(value))
            else:
                trend.add(math.nan)
        if self.isVisible():
            for (_, trend), line in zip(self.trends.items(), self.plot.listDataItems(), strict=False):
                ages, values = trend.curve(SECONDS)
                if not np.isfinite(values).any():
                    ages = values = np.zeros(0)
                line.setData(ages / 60, values, connect="finite")  # a gap where there was no value

    def _read_again(self) -> None:
        self._source.link.look_closely(False)
        self._source.link.look_closely(True)

    def showEvent(self, event: Qt.QShowEvent) -> None:
        super().showEvent(event)
        self._source.link.look_closely(True)

    def hideEvent(self, event: Qt.QHideEvent) -> None:
        super().hideEvent(event)
        self._source.link.look_closely(False)
