"""A window before a detector that the test plays: what the threads would tell is put into the mailbox. No servers."""

from __future__ import annotations

from typing import Any

import numpy as np
from PyQt5.QtCore import QPoint, QRect
from PyQt5.QtWidgets import QApplication

from taurus_gui.orders import Answer, Order, ReceiverSide
from taurus_gui.pictures import Look, Picture, coloured
from tests.gui import mouse

LIMIT = 30_000  # ms that things may take on a busy machine
ROWS, COLUMNS = 512, 640
READINGS = {
    "State": "ON", "Status": "", "TriggerMode": "INTERNAL", "TriggerModes": ("INTERNAL", "SOFTWARE"), "nTriggers": 1,
    "nFramesPerTrigger": 100, "nFramesExpected": 100, "nFramesAcquired": 0, "nFramesReceived": 0, "nFramesWritten": 0,
    "nFramesMissing": 0, "Progress": 0.0, "MeasuredRate": 0.0, "ExposureTime": 0.1, "FrameTime": 0.1,
    "LatencyTime": 0.0, "FrameRate": 10.0, "FrameShape": (ROWS, COLUMNS), "DataType": "uint16", "SaveRaw": True,
    "DestinationFilename": "/data/a.h5", "OverwritePolicy": "ABORT", "LastFilename": "", "LastError": "", "Model": "X",
}  # fmt: skip


class Bench:
    """`put`, `tell` and `answer` as the threads do."""

    def __init__(self, qtbot: Any, window: Any) -> None:
        self.qtbot, self.window = qtbot, window
        self.widget = window.detectors[0]
        self.source, self.live = self.widget.source, self.widget.live
        self.view = self.live.view
        self.number = 0

    def put(self, kind: str, value: Any) -> None:
        self.source._box.put(kind, "", value)

    def tell(self, **readings: Any) -> None:
        self.source._box.put_all("readings", readings)

    def picture(self, high: float = 50.0, full: tuple[int, int] = (ROWS, COLUMNS), **more: Any) -> None:
        """One more, and wait until it is drawn."""
        self.number += 1
        drawn = self.live.pictures_drawn
        pixels = np.random.default_rng(self.number).uniform(0, high, full)
        one = Picture(pixels, None, (0, 0, *full), full, id=self.number, source="uint16", **more)
        self.put("picture", coloured(one, Look()))
        self.qtbot.waitUntil(lambda: self.live.pictures_drawn > drawn, timeout=LIMIT)

    def answer(self, order: Order, error: str = "", value: Any = None) -> None:
        self.source._box.append("answers", Answer(order, error, value))

    def orders(self, kind: str) -> list[Any]:
        """Values of what was asked of the device."""
        return [order.value for order in self.source.link._orders.queue if order and order.kind == kind]

    def open_region(self, line: str) -> Any:
        """Tools beside the image, and a region in it."""
        self.put("receiver", ReceiverSide("b1/rec/1", rois=(line,)))
        self.live.tools.setChecked(True)
        self.qtbot.waitUntil(lambda: len(self.live.regions.regions) == 1, timeout=LIMIT)
        return self.live.regions.regions[0]

    def geometry(self) -> tuple[QRect, QPoint, QPoint]:
        """The view in the window, and where two far corners of the image are on the screen."""
        for _ in range(5):  # what has to be laid out again
            QApplication.sendPostedEvents()
            QApplication.processEvents()
        port = self.view.viewport()
        corner = self.view.mapTo(self.window, QPoint(0, 0))
        corners = (port.mapToGlobal(mouse.place(self.view, *at)) for at in ((0, 0), (ROWS, COLUMNS)))
        return QRect(corner, self.view.size()), *corners
