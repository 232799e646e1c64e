"""The mouse, as a hand moves it: QTest's own moves come all at once and have no button pressed."""

from __future__ import annotations

from typing import Any

from PyQt5.QtCore import QEvent, QPoint, QPointF, Qt
from PyQt5.QtGui import QMouseEvent
from PyQt5.QtWidgets import QApplication


def place(view: Any, row: float, column: float) -> QPoint:
    """Where a place of the image is in the view's window."""
    return view.mapFromScene(view.getViewBox().mapViewToScene(QPointF(column, row)))


def send(view: Any, kind: QEvent.Type, at: QPoint, button: Qt.MouseButton, buttons: Qt.MouseButton) -> None:
    """One event of the mouse, and what comes of it."""
    port = view.viewport()
    event = QMouseEvent(kind, QPointF(at), QPointF(port.mapToGlobal(at)), button, buttons, Qt.NoModifier)
    QApplication.sendEvent(port, event)
    QApplication.processEvents()


def point_at(view: Any, row: int, column: int) -> None:
    """Over the middle of a pixel, from a few pixels away."""
    at = place(view, row + 0.5, column + 0.5)
    for step in (3, 0):
        send(view, QEvent.MouseMove, at + QPoint(step, step), Qt.NoButton, Qt.NoButton)


def press(view: Any, at: QPoint) -> None:
    send(view, QEvent.MouseMove, at, Qt.NoButton, Qt.NoButton)
    send(view, QEvent.MouseButtonPress, at, Qt.LeftButton, Qt.LeftButton)


def move(view: Any, at: QPoint) -> None:
    """With the left button down."""
    send(view, QEvent.MouseMove, at, Qt.NoButton, Qt.LeftButton)


def release(view: Any, at: QPoint) -> None:
    send(view, QEvent.MouseButtonRelease, at, Qt.LeftButton, Qt.NoButton)


def drag(view: Any, start: QPoint, end: QPoint) -> None:
    press(view, start)
    for part in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        move(view, start + (end - start) * part)
    release(view, end)
