"""What the panels of one detector share: what is known of it, and how it is asked. The only bridge between threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from taurus.external.qt import Qt

from taurus_gui import control
from taurus_gui.imagelink import ImageLink
from taurus_gui.mailbox import Mailbox
from taurus_gui.orders import Answer, Connection, Described, Order, ReceiverSide, RoiTable
from taurus_gui.pictures import Picture
from taurus_gui.tangoimages import TangoImages
from taurus_gui.tangolink import TangoLink

PAUSE = 30  # ms between two looks into the mailbox
TICK = 500  # ms between two looks at the clock


class Source(Qt.QObject):
    """One detector. Signals come in the GUI's thread; `ask` returns at once, its answer is the signal `answered`."""

    rang = Qt.pyqtSignal()
    changed = Qt.pyqtSignal(set)  # names of attributes that have another value
    described = Qt.pyqtSignal()  # the device said what attributes it has
    connection_changed = Qt.pyqtSignal()
    receiver_changed = Qt.pyqtSignal()
    answered = Qt.pyqtSignal(object)  # Answer
    pictured = Qt.pyqtSignal(object)  # Picture
    pixel_told = Qt.pyqtSignal(object)
    status_told = Qt.pyqtSignal(object)  # of the receiver, twice a second
    series_told = Qt.pyqtSignal(list)
    rois_told = Qt.pyqtSignal(object)  # RoiTable
    images_changed = Qt.pyqtSignal()
    noted = Qt.pyqtSignal(str)
    ticked = Qt.pyqtSignal()

    def __init__(self, device: str, parent: Any = None) -> None:
        super().__init__(parent)
        self.device = device
        self.readings: dict[str, Any] = {}
        self.attributes: dict[str, Described] = {}
        self.connection = Connection(False, "connecting", time.time())
        self.receiver = ReceiverSide()
        self.images_error = ""  # why no pictures come; "": they do
        self.picture: Picture | None = None
        self.status: dict[str, Any] = {}
        self.rois = RoiTable()
        self._moved = time.monotonic()  # when a counter of the running series changed last
        self._looked = 0.0
        self._box = Mailbox(self.rang.emit)
        self.link = TangoLink(device, self._box)
        self.images = ImageLink(self._box)
        self.slow_images = TangoImages(self._box)
        self.rang.connect(self._deliver, Qt.Qt.QueuedConnection)
        self._later = Qt.QTimer(self)
        self._later.setSingleShot(True)
        self._later.timeout.connect(self._deliver)
        self._clock = Qt.QTimer(self)
        self._clock.timeout.connect(self.ticked)
        self._running = False
        self._files = ThreadPoolExecutor(1, thread_name_prefix="files")

    def start(self) -> None:
        self._running = True
        self.images.start()
        self.slow_images.start()
        self.link.start()
        self._clock.start(TICK)

    def close(self) -> None:
        """Ends all threads; safe twice."""
        if not self._running:
            return
        self._running = False
        self._clock.stop()
        self._later.stop()
        self._box.close()
        self.images.close()
        self.slow_images.close()
        self.link.close()
        self._files.shutdown(cancel_futures=True)

    # --- asking -------------------------------------------------------------------------------------------------------

    def write(self, name: str, value: Any) -> None:
        self.link.order(Order("write", name, value))

    def command(self, name: str) -> None:
        self.link.order(Order("command", name))

    def check(self, path: str, nbytes: int) -> None:
        self.link.order(Order("check", "CheckFile", (path, nbytes)))

    def set_rois(self, lines: list[str]) -> None:
        self.link.order(Order("rois", "Rois", lines))

    def in_background(self, work: Callable[[], object], failed: str) -> None:
        """Work with files; `noted` tells of a failure."""

        def done() -> None:
            try:
                work()
            except OSError as exc:
                self._box.append("notes", f"{failed}: {exc.strerror or exc}")

        self._files.submit(done)

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str | None:
        """As Tango names it; None: no connection."""
        return self.readings.get("State") if self.connection.there else None

    @property
    def name(self) -> str:
        """Of the device, without its database."""
        return self.device.partition("//")[2].partition("/")[2] if "//" in self.device else self.device

    def get(self, name: str, default: Any = None) -> Any:
        value = self.readings.get(name)
        return default if value is None else value

    @property
    def silence(self) -> float:
        """Seconds since a counter of the running series changed last."""
        return time.monotonic() - self._moved

    def problems(self) -> list[control.Problem]:
        lost = ""
        if not self.connection.there:
            since = time.strftime("%H:%M:%S", time.localtime(self.connection.since))
            lost = f"No connection to {self.name} since {since}: {self.connection.error}. Trying again every second."
        return control.problems(self.state, self.readings, lost, self.silence)

    # --- the mailbox --------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """In the GUI's thread, not more often than every PAUSE."""
        if not self._running:
            return
        wait = PAUSE - 1000 * (time.monotonic() - self._looked)
        if wait > 1:
            if not self._later.isActive():
                self._later.start(int(wait))
            return
        self._looked = time.monotonic()
        newest, queues = self._box.take()
        if "described" in newest:
            self.attributes = newest["described"][""]
            self.described.emit()
        if "connection" in newest:
            self.connection = newest["connection"][""]
        if "readings" in newest:
            self._take_readings(newest["readings"])
        if "connection" in newest:
            self.connection_changed.emit()
        if "receiver" in newest:
            self._take_receiver(newest["receiver"][""])
        if "images" in newest:
            self.images_error = newest["images"][""]
            self.images_changed.emit()
        for kind, signal in (
            ("status", self.status_told),
            ("pixel", self.pixel_told),
            ("series", self.series_told),
            ("rois", self.rois_told),
        ):
            if kind in newest:
                value = newest[kind][""]
                if kind in ("status", "rois"):
                    setattr(self, kind, value)
                signal.emit(value)
        if "picture" in newest:
            self.picture = newest["picture"][""]
            self.pictured.emit(self.picture)
        for answer in queues.get("answers", ()):
            self._take_answer(answer)
        for note in queues.get("notes", ()):
            self.noted.emit(note)

    def _take_readings(self, values: dict[str, Any]) -> None:
        different = {name for name, value in values.items() if self.readings.get(name) != value}
        self.readings.update(values)
        self.slow_images.frame_shape = self.get("FrameShape", ())
        if different & {"nFramesAcquired", "nFramesReceived", "State"}:
            self._moved = time.monotonic()
        if different:
            self.changed.emit(different)

    def _take_receiver(self, receiver: ReceiverSide) -> None:
        if receiver == self.receiver:
            return
        self.receiver = receiver
        self.images.point_at("" if receiver.error else receiver.address)
        self.slow_images.point_at("" if receiver.error or receiver.address else receiver.name)
        self.receiver_changed.emit()

    def _take_answer(self, answer: Answer) -> None:
        self.answered.emit(answer)
