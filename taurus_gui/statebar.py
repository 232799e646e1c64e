"""On top of everything: how the detector is, in a symbol and words, and what is wrong."""

from __future__ import annotations

from taurus.external.qt import Qt

from taurus_gui import control, theme
from taurus_gui.sentence import Sentence
from taurus_gui.source import Source

MOST = 3  # problems shown


class StateBar(Qt.QWidget):
    def __init__(self, source: Source, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self._source = source
        self._waiting = 0.0  # s
        self.state = Qt.QLabel()
        font = self.state.font()
        font.setPointSizeF(font.pointSizeF() * 1.3)
        font.setBold(True)
        self.state.setFont(font)
        self.state.setAccessibleName("State")
        self.state.setMinimumWidth(210)
        self.status = Qt.QLabel()
        self.status.setTextFormat(Qt.Qt.PlainText)
        self.status.setSizePolicy(Qt.QSizePolicy.Ignored, Qt.QSizePolicy.Preferred)
        self.status.setTextInteractionFlags(Qt.Qt.TextSelectableByMouse)
        self.status.setAccessibleName("Status")
        self.model = Qt.QLabel()
        theme.set_property(self.model, "dim", True)
        top = Qt.QHBoxLayout()
        top.setSpacing(10)
        top.addWidget(self.state)
        top.addWidget(self.status, 1)
        top.addWidget(self.model)
        self._problems = [_Banner(source, self) for _ in range(MOST)]
        layout = Qt.QVBoxLayout(self)
        layout.setContentsMargins(6, 4, 6, 2)
        layout.setSpacing(3)
        layout.addLayout(top)
        for banner in self._problems:
            layout.addWidget(banner)
        for signal in (source.connection_changed, source.ticked):
            signal.connect(self.refresh)
        source.changed.connect(lambda _: self.refresh())
        self.refresh()

    def refresh(self) -> None:
        source = self._source
        line = control.headline(source.state, source.readings)
        self.state.setText(str(line))
        theme.set_property(self.state, "role", line.role)
        if source.state is None:
            status = " ".join(str(source.get("Status", "")).split())
            text = f"last known: {status}" if status else source.device
        elif control.waits(source.state, source.readings):
            text = control.waiting_text(source.readings, source.silence)
        else:
            text = " ".join(str(source.get("Status", "")).split())
        if self.status.text() != text:
            self.status.setText(text)
            self.status.setToolTip(text)
        about = " ".join(filter(None, (source.get("Model", ""), source.get("SerialNumber", ""))))
        self.model.setText(f"{source.name}   {about}".strip())
        self.model.setToolTip(source.device)
        found = source.problems()
        for banner, problem in zip(self._problems, [*found[:MOST], *[None] * MOST], strict=False):
            banner.show_problem(problem)

    def sentences(self) -> list[str]:
        """What is wrong, as shown."""
        return [banner.text.sentence for banner in self._problems if not banner.isHidden()]


class _Banner(Qt.QFrame):
    """One problem, and the command that helps."""

    def __init__(self, source: Source, parent: Qt.QWidget) -> None:
        super().__init__(parent)
        self._source = source
        self._problem: control.Problem | None = None
        self.text = Sentence(self)
        self.remedy = Qt.QPushButton()
        self.remedy.clicked.connect(self._help)
        layout = Qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.text, 1)
        layout.addWidget(self.remedy)
        self.hide()

    def _help(self) -> None:
        if self._problem is not None:
            self._source.command(self._problem.remedy)

    def show_problem(self, problem: control.Problem | None) -> None:
        self.setVisible(problem is not None)
        if problem is None or problem == self._problem:
            self._problem = problem
            return
        self._problem = problem
        self.text.say(f"{'✖' if problem.bad else '▲'} {problem.sentence}")
        theme.set_property(self.text, "role", "bad" if problem.bad else "warning")
        theme.restyle(self.text)
        self.remedy.setVisible(bool(problem.remedy))
        self.remedy.setText(f"&{problem.remedy}" if problem.remedy else "")
