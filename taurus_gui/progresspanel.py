"""Panel: how far the series is, how fast, and which were before."""

from __future__ import annotations

import time
from typing import Any

import pyqtgraph as pg
from taurus.external.qt import Qt

from taurus_gui import control, estimate, past, theme, words
from taurus_gui.source import Source

WINDOW = 300.0  # s of the plot
COUNTERS = (
    ("nFramesAcquired", "Acquired"),
    ("nFramesReceived", "Received"),
    ("nFramesWritten", "Written"),
    ("nFramesMissing", "Missing"),
)


class ProgressPanel(Qt.QWidget):
    """`file_wanted` is emitted with a path when one of the last series is to be opened."""

    file_wanted = Qt.pyqtSignal(str)

    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self._throughput, self._rate = past.Trend(), past.Trend()
        self._series: list[past.PastSeries] = []
        self.bar = Qt.QProgressBar()
        self.bar.setAccessibleName("Progress")
        self.text = Qt.QLabel()
        self.text.setWordWrap(True)
        self.numbers: dict[str, Qt.QLabel] = {}
        self._place()
        source.changed.connect(self._changed)
        source.connection_changed.connect(self._refresh)
        source.receiver_changed.connect(self._note_series)
        source.ticked.connect(self._tick)
        source.status_told.connect(self._status)
        source.series_told.connect(lambda told: self._show_series(past.from_receiver(told)))
        theme.told.changed.connect(self.restyle)
        self.restyle()
        self._refresh()

    def _place(self) -> None:
        counts = Qt.QGridLayout()
        counts.setHorizontalSpacing(10)
        counts.setVerticalSpacing(0)
        for column, (name, text) in enumerate(COUNTERS):
            title = Qt.QLabel(text)
            theme.set_property(title, "dim", True)
            value = Qt.QLabel("–")
            value.setSizePolicy(Qt.QSizePolicy.Ignored, Qt.QSizePolicy.Fixed)  # large numbers move nothing
            value.setAccessibleName(text)
            font = value.font()
            font.setPointSizeF(font.pointSizeF() * 1.15)
            font.setBold(True)
            value.setFont(font)
            counts.addWidget(title, 0, column)
            counts.addWidget(value, 1, column)
            counts.setColumnStretch(column, 1)
            self.numbers[name] = value
        self.plot = pg.PlotWidget()
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setMouseEnabled(x=False, y=False)
        self.plot.getAxis("left").setLabel("MB/s to disk")
        self.plot.getAxis("left").setWidth(56)
        self.plot.getAxis("bottom").setHeight(18)
        self.plot.setMinimumHeight(70)
        self.plot.getPlotItem().getViewBox().setLimits(yMin=0)
        self.curve = self.plot.plot([], [], fillLevel=0)
        self.table = Qt.QTableWidget(0, 4)
        self.table.setHorizontalHeaderLabels(["Ended", "File", "Frames", "Size"])
        self.table.verticalHeader().hide()
        self.table.setShowGrid(False)
        self.table.setSelectionBehavior(Qt.QTableWidget.SelectRows)
        self.table.setEditTriggers(Qt.QTableWidget.NoEditTriggers)
        self.table.setAccessibleName("Last series; Enter opens the file")
        self.table.setToolTip("Double click or Enter opens the file")
        self.table.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 5)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(Qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(1, Qt.QHeaderView.Stretch)
        self.table.cellActivated.connect(lambda row, _: self._open(row))
        self.tabs = Qt.QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.addTab(self.plot, "Throughput")
        self.tabs.addTab(self.table, "Last series")
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(8, 4, 8, 6)
        layout.setSpacing(4)
        layout.addWidget(self.bar)
        layout.addWidget(self.text)
        layout.addLayout(counts)
        layout.addWidget(self.tabs, 1)

    def restyle(self) -> None:
        now = theme.now()
        self.plot.setBackground(now.base)
        colour = Qt.QColor(now.curves[0])
        self.curve.setPen(pg.mkPen(colour, width=1.5))
        colour.setAlpha(60)
        self.curve.setBrush(colour)
        for side in ("left", "bottom"):
            self.plot.getAxis(side).setPen(now.line)
            self.plot.getAxis(side).setTextPen(now.dim)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def _changed(self, names: set[str]) -> None:
        if names & {"State", "LastFilename", "nFramesWritten", "nFramesMissing"}:
            self._note_series()
        self._refresh()

    def _note_series(self) -> None:
        """A series that is over, where the receiver cannot be asked for its list."""
        source = self._source
        if source.receiver.address or source.readings.get("State") in control.BUSY:
            return
        ended = past.from_detector(source.readings, time.time())
        if ended is not None:
            before = self._series[1:] if self._series and self._series[0].file == ended.file else self._series
            self._show_series([ended, *before])

    def _refresh(self) -> None:
        source = self._source
        expected, received = source.get("nFramesExpected", 0), source.get("nFramesReceived", 0)
        state = source.state
        live = control.is_live(state, source.readings)
        if live:
            self.bar.setRange(0, 0 if source.silence < control.patience(source.readings) else 1)
            self.bar.setFormat("")
        else:
            self.bar.setRange(0, max(1, expected))
            self.bar.setValue(min(received, max(1, expected)))
            self.bar.setFormat(f"{words.count(received)} of {words.count(expected)}  (%p %)" if expected else "")
        self.text.setText(self._sentence(state, live))
        for name, label in self.numbers.items():
            value = source.get(name)
            text = "–" if value is None else words.count(value)
            bad = name == "nFramesMissing" and bool(value)
            label.setText(f"▲ {text}" if bad else text)
            theme.set_property(label, "ink", "bad" if bad else None)
            label.setToolTip(source.attributes[name].doc if name in source.attributes else "")

    def _sentence(self, state: str | None, live: bool) -> str:
        source = self._source
        rate = words.rate(source.get("MeasuredRate", 0.0))
        if state is None:
            return "No connection: these are the last numbers known"
        if state == "RUNNING":
            if live:
                return f"Live at {rate}, until Stop"
            if control.waits(state, source.readings):
                return control.waiting_text(source.readings, source.silence)
            left = estimate.time_left(source.readings)
            return f"{rate} · {words.duration(left)} left" if left is not None else rate
        if state == "MOVING":
            return "Arming or stopping"
        if not source.get("LastFilename") and not source.get("nFramesReceived"):
            return "No series yet"
        return f"Last series: {rate}" if source.get("nFramesReceived") else "Last series: no frames"

    # --- the plot -----------------------------------------------------------------------------------------------------

    def _status(self, status: dict[str, Any]) -> None:
        self._throughput.add(float(status.get("throughput", 0.0)) / 1e6)
        self._draw()

    def _tick(self) -> None:
        self._refresh()
        if not self._source.receiver.address and not self._source.receiver.error:
            self._throughput.add(self._source.receiver.throughput)
            self._draw()

    def _draw(self) -> None:
        if self.plot.isVisible():
            ages, values = self._throughput.curve(WINDOW)
            self.curve.setData(ages, values)
            self.plot.setXRange(-WINDOW if len(ages) and ages[0] < -60 else -60, 0, padding=0)
            self.plot.setYRange(0, 1.1 * max(1.0, float(values.max()) if len(values) else 0.0), padding=0)

    # --- the last series ----------------------------------------------------------------------------------------------

    def _show_series(self, series: list[past.PastSeries]) -> None:
        if series == self._series:
            return
        self._series = series[: past.MOST]
        self.table.setRowCount(len(self._series))
        for row, one in enumerate(self._series):
            for column, text in enumerate(one.cells()):
                item = Qt.QTableWidgetItem(text)
                item.setToolTip(one.file if one.reason == "complete" else f"{one.file}: {one.reason}")
                if not one.well:
                    item.setForeground(Qt.QColor(theme.now().ink("bad")))
                self.table.setItem(row, column, item)
        self.tabs.setTabText(1, f"Last series ({len(self._series)})")

    def _open(self, row: int) -> None:
        if 0 <= row < len(self._series):
            self.file_wanted.emit(self._series[row].file)
