"""A label for sentences: it wraps wherever it must, and never makes its panel wider."""

from __future__ import annotations

import re

from taurus.external.qt import Qt

from taurus_gui import theme

BREAK = "\u200b"  # a place where a line may end


class Sentence(Qt.QLabel):
    """Hidden while there is nothing to say. `sentence` is what it says, without the places to break."""

    def __init__(self, parent: Qt.QWidget | None = None, **properties: str) -> None:
        super().__init__(parent)
        self.sentence = ""
        self.setWordWrap(True)
        self.setTextFormat(Qt.Qt.PlainText)
        self.setTextInteractionFlags(Qt.Qt.TextSelectableByMouse)
        policy = Qt.QSizePolicy(Qt.QSizePolicy.Ignored, Qt.QSizePolicy.Preferred)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        for name, value in properties.items():
            theme.set_property(self, name, value)
        self.hide()

    def say(self, sentence: str) -> None:
        if sentence != self.sentence:
            self.sentence = sentence
            self.setText(re.sub(r"(?<=[/_.,=])", BREAK, sentence))
        if self.isHidden() == bool(sentence):
            self.setVisible(bool(sentence))
            theme.restyle(self)
