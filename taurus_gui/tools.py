"""Small widgets of a tool bar: reached with Tab, told of by their tips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taurus.external.qt import Qt


def combo(tip: str, items: Sequence[str], call: Callable[[], object]) -> Qt.QComboBox:
    """A choice; the tip's beginning is its name for screen readers."""
    widget = Qt.QComboBox()
    widget.addItems(list(items))
    widget.setToolTip(tip)
    widget.setAccessibleName(tip.partition("(")[0].partition(":")[0].strip())
    widget.setFocusPolicy(Qt.Qt.TabFocus)
    widget.setSizeAdjustPolicy(Qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
    widget.setMinimumContentsLength(8)
    widget.currentIndexChanged.connect(lambda _: call())
    return widget


def button(text: str, tip: str, call: Callable[[], object]) -> Qt.QToolButton:
    widget = Qt.QToolButton()
    widget.setText(text)
    widget.setToolTip(tip)
    widget.setFocusPolicy(Qt.Qt.TabFocus)
    widget.clicked.connect(lambda _=False: call())
    return widget


def switch(text: str, tip: str, call: Callable[[], object]) -> Qt.QToolButton:
    """A button that stays down."""
    widget = Qt.QToolButton()
    widget.setText(text)
    widget.setToolTip(tip)
    widget.setCheckable(True)
    widget.setFocusPolicy(Qt.Qt.TabFocus)
    widget.toggled.connect(lambda _: call())
    return widget


def number(tip: str, call: Callable[[], object]) -> Qt.QLineEdit:
    """One end of the range of colours."""
    line = Qt.QLineEdit()
    line.setToolTip(f"{tip}: Enter sets it, and Auto goes off")
    line.setAccessibleName(tip)
    line.setFixedWidth(64)
    line.editingFinished.connect(call)
    return line
