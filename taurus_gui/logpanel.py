"""Panel: what happened, with times: states, errors of the device and the receiver, refused orders."""

from __future__ import annotations

import time

from taurus.external.qt import Qt

from taurus_gui import theme
from taurus_gui.events import Entry, Events
from taurus_gui.source import Source


class LogPanel(Qt.QWidget):
    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._events = Events()
        self._source = source
        self.list = Qt.QTreeWidget()
        self.list.setHeaderLabels(["Time", "", "Message"])
        self.list.setRootIsDecorated(False)
        self.list.setAlternatingRowColors(True)
        self.list.setWordWrap(True)
        self.list.setAccessibleName("What happened, newest first")
        self.list.setSelectionMode(Qt.QTreeWidget.ExtendedSelection)
        self.list.header().setSectionResizeMode(0, Qt.QHeaderView.ResizeToContents)
        self.list.header().setSectionResizeMode(1, Qt.QHeaderView.ResizeToContents)
        self.only = Qt.QCheckBox("Errors and warnings only")
        self.only.toggled.connect(self._again)
        copy = Qt.QPushButton("Copy")
        copy.setToolTip("What is selected, or all, as text")
        copy.clicked.connect(self.copy)
        clear = Qt.QPushButton("Clear")
        clear.clicked.connect(self._clear)
        top = Qt.QHBoxLayout()
        top.addWidget(self.only)
        top.addStretch(1)
        top.addWidget(copy)
        top.addWidget(clear)
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(8, 6, 8, 6)
        layout.addLayout(top)
        layout.addWidget(self.list, 1)
        source.changed.connect(lambda names: self._take(self._events.readings(names, source.readings)))
        source.connection_changed.connect(lambda: self._take(self._events.connection(source.connection)))
        source.receiver_changed.connect(lambda: self._take(self._events.receiver(source.receiver)))
        source.answered.connect(lambda answer: self._take(self._events.answer(answer)))
        source.status_told.connect(lambda status: self._take(self._events.status(status)))
        source.noted.connect(lambda text: self._take([self._events.note(text)]))
        theme.told.changed.connect(self._again)

    def _take(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._show(entry)
        if self.list.topLevelItemCount() > 3 * self._events.most:
            self._again()

    def _show(self, entry: Entry) -> None:
        if self.only.isChecked() and entry.level == "info":
            return
        when = time.strftime("%H:%M:%S", time.localtime(entry.time))
        symbol = {"info": "·", "warning": "▲", "error": "✖"}[entry.level]
        item = Qt.QTreeWidgetItem([when, symbol, entry.text])
        item.setToolTip(2, entry.text)
        item.setToolTip(0, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.time)))
        role = {"info": "idle", "warning": "warning", "error": "bad"}[entry.level]
        if role != "idle":
            for column in (1, 2):
                item.setForeground(column, Qt.QColor(theme.now().ink(role)))
        self.list.insertTopLevelItem(0, item)

    def _again(self) -> None:
        self.list.clear()
        for entry in self._events.entries:
            self._show(entry)

    def _clear(self) -> None:
        self._events.clear()
        self.list.clear()

    def texts(self) -> list[str]:
        """Newest first."""
        return [self.list.topLevelItem(n).text(2) for n in range(self.list.topLevelItemCount())]

    def copy(self) -> None:
        items = self.list.selectedItems() or [self.list.topLevelItem(n) for n in range(self.list.topLevelItemCount())]
        lines = [f"{item.toolTip(0)}\t{item.text(2)}" for item in items]
        Qt.QApplication.clipboard().setText("\n".join(lines))
