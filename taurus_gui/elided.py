"""A label of so many lines and never more: what comes and goes in it moves nothing beside it."""

from __future__ import annotations

import re
from html import escape

from taurus.external.qt import Qt

from taurus_gui.sentence import BREAK

ELLIPSIS = "…"


class Elided(Qt.QLabel):
    """Its size does not depend on its text, and it asks for no width. `sentences` are what it says, each on lines of
    its own; what there is no room for is in the tool tip."""

    def __init__(self, lines: int = 1, parent: Qt.QWidget | None = None) -> None:
        super().__init__(parent)
        self.sentences: tuple[str, ...] = ()
        self._lines = lines
        self.setTextFormat(Qt.Qt.PlainText)
        self.setWordWrap(lines > 1)
        self.setSizePolicy(Qt.QSizePolicy.Ignored, Qt.QSizePolicy.Fixed)

    def sizeHint(self) -> Qt.QSize:
        margins = self.height() - self.contentsRect().height()
        return Qt.QSize(0, self._lines * self.fontMetrics().lineSpacing() + max(2, margins))

    def minimumSizeHint(self) -> Qt.QSize:
        return self.sizeHint()

    def heightForWidth(self, width: int) -> int:
        return self.sizeHint().height()

    def say(self, *sentences: str) -> None:
        if sentences != self.sentences:
            self.sentences = sentences
            self.setToolTip("<br>".join(f"<span>{escape(sentence)}</span>" for sentence in sentences))
            self._fit()

    def resizeEvent(self, event: Qt.QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def changeEvent(self, event: Qt.QEvent) -> None:
        super().changeEvent(event)
        if event.type() in (Qt.QEvent.FontChange, Qt.QEvent.StyleChange):
            self.updateGeometry()
            self._fit()

    def _fit(self) -> None:
        shown = [re.sub(r"(?<=[/_.,=])", BREAK, one) for one in self.sentences[: self._lines]]
        room = [self._needed(one) for one in shown]
        while sum(room) > self._lines:
            room[room.index(max(room))] -= 1
        self.setText("\n".join(self._cut(one, lines) for one, lines in zip(shown, room, strict=True)))

    def _needed(self, text: str) -> int:
        """Lines."""
        metrics = self.fontMetrics()
        wrap = Qt.Qt.TextWordWrap if self._lines > 1 else 0
        rect = metrics.boundingRect(Qt.QRect(0, 0, max(20, self.contentsRect().width() - 2), 1 << 20), wrap, text)
        if not wrap and rect.width() > self.contentsRect().width() - 2:
            return 2
        return max(1, round(rect.height() / metrics.lineSpacing()))

    def _cut(self, text: str, lines: int) -> str:
        """As much of it as goes into so many lines."""
        if self._needed(text) <= lines:
            return text
        low, high = 0, len(text)
        while low < high - 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._needed(text[:middle] + ELLIPSIS) <= lines else (low, middle)
        return text[:low].rstrip(f" {BREAK}") + ELLIPSIS
