"""On top of everything: how the detector is, in a symbol and words, and what is wrong."""

from __future__ import annotations

from taurus.external.qt import Qt

from taurus_gui import control, theme
from taurus_gui.elided import Elided
from taurus_gui.source import Source

LINES = 2  # of text, always: what is wrong takes the place of the status, and nothing below moves


class StateBar(Qt.QWidget):
    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self._remedy = ""
        self.state = Qt.QLabel()
        font = self.state.font()
        font.setPointSizeF(font.pointSizeF() * 1.3)
        font.setBold(True)
        self.state.setFont(font)
        self.state.setAccessibleName("State")
        self.state.setMinimumWidth(210)
        self.status = Elided(LINES)
        self.status.setAccessibleName("Status")
        self.problem = Elided(LINES)
        self.problem.setAccessibleName("What is wrong")
        theme.set_property(self.problem, "role", "bad")
        self.remedy = Qt.QPushButton()
        self.remedy.clicked.connect(lambda: source.command(self._remedy))
        self.model = Qt.QLabel()
        theme.set_property(self.model, "dim", True)
        layout = Qt.QHBoxLayout(self)
        layout.setContentsMargins(6, 4, 6, 2)
        layout.setSpacing(10)
        layout.addWidget(self.state)
        layout.addWidget(self.status, 1)
        layout.addWidget(self.problem, 1)
        layout.addWidget(self.remedy)
        layout.addWidget(self.model)
        for signal in (source.connection_changed, source.ticked, theme.told.changed):
            signal.connect(self.refresh)
        source.changed.connect(lambda _: self.refresh())
        self.refresh()

    def refresh(self) -> None:
        source = self._source
        line = control.headline(source.state, source.readings)
        if self.state.text() != str(line):
            self.state.setText(str(line))
        theme.set_property(self.state, "role", line.role)
        about = " ".join(filter(None, (source.get("Model", ""), source.get("SerialNumber", ""))))
        self.model.setText(f"{source.name}   {about}".strip())
        self.model.setToolTip(source.device)
        self._show_status()
        self._show_problems()
        height = self.layout().contentsMargins().top() + self.layout().contentsMargins().bottom()
        self.setFixedHeight(height + max(self.problem.sizeHint().height(), self.state.sizeHint().height()))

    def _show_status(self) -> None:
        source = self._source
        status = " ".join(str(source.get("Status", "")).split())
        if source.state is None:
            status = f"last known: {status}" if status else source.device
        elif control.waits(source.state, source.readings):
            status = control.waiting_text(source.readings, source.silence)
        self.status.say(status)
        self.state.setToolTip(self.status.toolTip())

    def _show_problems(self) -> None:
        found = self._source.problems()
        self.problem.say(*(f"{'✖' if problem.bad else '▲'} {problem.sentence}" for problem in found))
        theme.set_property(self.problem, "role", "bad" if any(problem.bad for problem in found) else "warning")
        self._remedy = next((problem.remedy for problem in found if problem.remedy), "")
        self.remedy.setText(f"&{self._remedy}")
        for widget, wanted in (
            (self.problem, bool(found)),
            (self.remedy, bool(self._remedy)),
            (self.status, not found),
            (self.model, not found),
        ):
            if widget.isHidden() == wanted:
                widget.setVisible(wanted)

    def sentences(self) -> list[str]:
        """What is wrong, as shown."""
        return [] if self.problem.isHidden() else list(self.problem.sentences)
