"""Editors of one attribute each: they show what the device has, and say at the field what it refused."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from taurus.external.qt import Qt

from taurus_gui import theme, words
from taurus_gui.orders import Answer, Described
from taurus_gui.sentence import Sentence
from taurus_gui.source import Source


def tip(described: Described) -> str:
    """The device's own documentation, for a tool tip."""
    limits = ""
    if described.writable and (described.low is not None or described.high is not None):
        low = "" if described.low is None else f"from {described.low:g} "
        high = "" if described.high is None else f"to {described.high:g} "
        limits = f"<br><i>{low}{high}{escape(described.unit)}</i>"
    return f"<p><b>{escape(described.name)}</b><br>{escape(described.doc)}{limits}</p>"


class Field(Qt.QObject):
    """`editor` and `complaint` are to be placed by the panel. Written with Enter, Tab or a click elsewhere; Escape
    takes it back."""

    written = Qt.pyqtSignal()

    def __init__(self, source: Source, name: str, parent: Qt.QWidget) -> None:
        super().__init__(parent)
        self.source, self.name = source, name
        self.label = Qt.QLabel(name, parent)
        self.complaint = Sentence(parent, ink="bad")
        self.editor = self._make(parent)
        self.editor.setAccessibleName(name)
        self.label.setBuddy(self.editor)
        self.edited = False  # typed and not accepted yet
        self._sent: Any = None
        source.described.connect(self._describe)
        source.changed.connect(self._changed)
        source.answered.connect(self._answered)
        self._describe()
        self._show_reading()

    def _make(self, parent: Qt.QWidget) -> Qt.QWidget:
        raise NotImplementedError

    def _show(self, value: Any) -> None:
        raise NotImplementedError

    def _show_reading(self) -> None:
        value = self.source.readings.get(self.name)
        if value is not None:
            self._show(value)

    @property
    def described(self) -> Described:
        return self.source.attributes.get(self.name) or Described(self.name, self.name, "")

    def _describe(self) -> None:
        described = self.described
        if described.doc:
            self.editor.setToolTip(tip(described))
            self.label.setToolTip(tip(described))
        self.set_label(described)

    def set_label(self, described: Described) -> None:
        unit = f" ({described.unit})" if described.unit else ""
        self.label.setText(f"{described.label or self.name}{unit}")

    def _changed(self, names: set[str]) -> None:
        if self.name in names and (not self.edited or self._took):
            self._accept()

    @property
    def typing(self) -> bool:
        """There is something that was not sent yet."""
        return False

    @property
    def _took(self) -> bool:
        """The device has what was sent."""
        value = self.source.readings.get(self.name)
        return self.edited and not self.typing and value is not None and self._text(value) == self._text(self._sent)

    def _text(self, value: Any) -> str:
        return str(value)

    def _accept(self) -> None:
        self.complain("")
        if not self.typing:
            self._mark(False)
            self._show_reading()

    def finish(self) -> None:
        """Send what was typed and not sent yet."""

    def send(self, value: Any) -> None:
        self.complain("")
        self._sent = value
        self._mark(True)
        self.source.write(self.name, value)

    def _answered(self, answer: Answer) -> None:
        order = answer.order
        if order.kind != "write" or order.name != self.name or order.value != self._sent:
            return
        if answer.error and not self._took:
            self.complain(answer.error)
        else:
            self._accept()
            self.written.emit()

    def complain(self, sentence: str) -> None:
        """Under the field; "" takes it away."""
        described = self.described
        if "authorized" in sentence and described.low is not None and described.high is not None:
            sentence += f". It can be from {described.low:g} to {described.high:g} {described.unit}".rstrip()
        self.complaint.say(f"▲ {sentence}" if sentence else "")
        theme.set_property(self.editor, "wrong", bool(sentence))
        self.editor.setAccessibleDescription(sentence)

    def _mark(self, edited: bool) -> None:
        self.edited = edited
        theme.set_property(self.editor, "edited", edited)


class _Line(Qt.QLineEdit):
    """A line that tells of Escape where there is something to take back."""

    escaped = Qt.pyqtSignal()

    def keyPressEvent(self, event: Qt.QKeyEvent) -> None:
        if event.key() == Qt.Qt.Key_Escape and (self.property("edited") or self.property("wrong")):
            self.escaped.emit()
            return
        super().keyPressEvent(event)


class TextField(Field):
    """`read`: text -> value for the device, ValueError in words; `write`: value -> text."""

    typed = Qt.pyqtSignal(str)
    taken_back = Qt.pyqtSignal()

    def __init__(
        self,
        source: Source,
        name: str,
        parent: Qt.QWidget,
        read: Callable[[str], Any] = str,
        write: Callable[[Any], str] = str,
    ) -> None:
        self._read, self._write = read, write
        self._sent_text: str | None = None
        super().__init__(source, name, parent)

    def _make(self, parent: Qt.QWidget) -> Qt.QWidget:
        self.line = _Line(parent)
        self.line.textEdited.connect(self._typed)
        self.line.returnPressed.connect(self._insist)
        self.line.editingFinished.connect(self.finish)
        self.line.setMinimumWidth(50)
        self.line.escaped.connect(self.revert)
        return self.line

    def _typed(self, text: str) -> None:
        self._mark(True)
        self.typed.emit(text)

    def revert(self) -> None:
        self._mark(False)
        self.complain("")
        self._show_reading()
        self.taken_back.emit()

    @property
    def typing(self) -> bool:
        return self.edited and self.line.text() != self._sent_text

    def _insist(self) -> None:
        """Enter sends what was refused once more; leaving the field does not."""
        self._sent_text = None

    def send(self, value: Any) -> None:
        self._sent_text = self.line.text()
        super().send(value)

    def _mark(self, edited: bool) -> None:
        if not edited:
            self._sent_text = None
        super()._mark(edited)

    def _text(self, value: Any) -> str:
        return self._write(value)

    def finish(self) -> None:
        if not self.typing:
            return
        try:
            value = self._read(self.line.text())
        except ValueError as exc:
            self.complain(str(exc))
            return
        self.send(value)

    def _show(self, value: Any) -> None:
        text = self._write(value)
        if self.line.text() != text:
            self.line.setText(text)
            self.line.setCursorPosition(0)


def real_field(source: Source, name: str, parent: Qt.QWidget) -> TextField:
    return TextField(source, name, parent, words.real, words.number)


def time_field(source: Source, name: str, parent: Qt.QWidget) -> TextField:
    """Takes 20 ms or 100 us too."""
    return TextField(source, name, parent, words.seconds, words.number)


def whole_field(source: Source, name: str, parent: Qt.QWidget) -> TextField:
    return TextField(source, name, parent, words.whole, str)


def list_field(source: Source, name: str, parent: Qt.QWidget) -> TextField:
    """Whole numbers with commas or blanks."""
    return TextField(
        source,
        name,
        parent,
        lambda text: [words.whole(word) for word in text.replace(",", " ").split()],
        lambda value: ", ".join(map(str, value)),
    )


class ChoiceField(Field):
    """`choices` are fixed, or the name of the attribute that lists them."""

    def __init__(self, source: Source, name: str, parent: Qt.QWidget, choices: str | list[str]) -> None:
        self._choices = choices
        super().__init__(source, name, parent)

    def _make(self, parent: Qt.QWidget) -> Qt.QWidget:
        self.combo = Qt.QComboBox(parent)
        self.combo.setSizeAdjustPolicy(Qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self.combo.setMinimumContentsLength(6)
        self.combo.activated.connect(lambda _: self.send(self.combo.currentText()))
        return self.combo

    def _changed(self, names: set[str]) -> None:
        listed = isinstance(self._choices, str) and self._choices in names
        if listed and not self.edited:
            self._show_reading()
        super()._changed(names)

    def _show(self, value: Any) -> None:
        listed = self._choices if isinstance(self._choices, list) else self.source.get(self._choices, ())
        choices = list(dict.fromkeys([*listed, value]))
        if [self.combo.itemText(i) for i in range(self.combo.count())] != choices:
            self.combo.clear()
            self.combo.addItems(choices)
        self.combo.setCurrentText(value)


class SwitchField(Field):
    """A check box."""

    def _make(self, parent: Qt.QWidget) -> Qt.QWidget:
        self.box = Qt.QCheckBox(parent)
        self.box.clicked.connect(self.send)
        return self.box

    def _show(self, value: Any) -> None:
        self.box.setChecked(bool(value))


def field_for(source: Source, described: Described, parent: Qt.QWidget) -> Field:
    """The editor that fits an attribute."""
    if described.kind == "bool":
        return SwitchField(source, described.name, parent)
    if described.kind == "float":
        make = time_field if described.unit == "s" else real_field
        return make(source, described.name, parent)
    if described.kind == "int":
        return whole_field(source, described.name, parent)
    if described.kind == "list":
        return list_field(source, described.name, parent)
    return TextField(source, described.name, parent)
